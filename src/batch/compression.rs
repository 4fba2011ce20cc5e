//! The five codecs, and decompression that stops at a limit.
//!
//! The records of a batch are compressed as one block: gzip (RFC 1952), an LZ4 frame, a zstd frame, and for snappy either one
//! raw block, as librdkafka sends and as is written here, or the framing of the Java library, which is read too.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::str::FromStr;

use super::BatchError;
use crate::limits::MAX_ZSTD_WINDOW_LOG;

/// How the records of a batch are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// Gzip, slow and small.
    Gzip,
    /// Snappy, fast.
    Snappy,
    /// LZ4, fast.
    Lz4,
    /// Zstandard, small and fairly fast.
    Zstd,
}

impl Compression {
    /// All of them, in the order of their codes.
    pub const ALL: [Compression; 5] = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

    /// The code in a batch's attributes, 0 to 4.
    #[must_use]
    pub fn codec(self) -> u8 {
        self as u8
    }

    /// The codec of a code, if there is one.
    #[must_use]
    pub fn from_codec(codec: u8) -> Option<Compression> {
        Compression::ALL.get(usize::from(codec)).copied()
    }

    /// The name as in settings: `none`, `gzip`, `snappy`, `lz4` or `zstd`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }

    /// Appends the compressed `block` to `out`.
    ///
    /// # Errors
    /// What the codec says; none is known for a block within [`crate::limits::MAX_MESSAGE_BYTES`].
    pub fn compress(self, block: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Compression::None => out.extend_from_slice(block),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                encoder.write_all(block)?;
                encoder.finish()?;
            }
            Compression::Snappy => {
                let room = snap::raw::max_compress_len(block.len());
                append_within(out, room, |to| snap::raw::Encoder::new().compress(block, to).map_err(io::Error::from))?;
            }
            Compression::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(out);
                encoder.write_all(block)?;
                encoder.finish()?;
            }
            Compression::Zstd => {
                let room = zstd::zstd_safe::compress_bound(block.len());
                let mut compressor = zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL)?;
                append_within(out, room, |to| compressor.compress_to_buffer(block, to))?;
            }
        }
        Ok(())
    }

    /// The block that `compressed` holds, of at most `limit` bytes.
    ///
    /// A block that would be larger costs no more memory than about twice the limit (and the codec's window) before it is given up.
    ///
    /// # Errors
    /// [`BatchError::Decompress`] when it is malformed, [`BatchError::DecompressedTooLarge`].
    pub fn decompress(self, compressed: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
        let out = match self {
            Compression::None => take_plain(compressed, limit),
            Compression::Gzip => gunzip(compressed, limit),
            Compression::Snappy => unsnap(compressed, limit),
            Compression::Lz4 => unlz4(compressed, limit),
            Compression::Zstd => unzstd(compressed, limit),
        };
        out.map_err(|failure| match failure {
            Failure::TooLarge => BatchError::DecompressedTooLarge { codec: self, limit },
            Failure::Malformed(reason) => BatchError::Decompress { codec: self, reason },
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A codec name that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compression must be none, gzip, snappy, lz4 or zstd, not {0:?}")]
pub struct UnknownCompression(pub String);

impl FromStr for Compression {
    type Err = UnknownCompression;
    fn from_str(text: &str) -> Result<Compression, UnknownCompression> {
        Compression::ALL.into_iter().find(|c| c.name() == text).ok_or_else(|| UnknownCompression(text.into()))
    }
}

/// Lets `write` fill up to `room` bytes after the end of `out`; it returns how many it wrote.
fn append_within(out: &mut Vec<u8>, room: usize, write: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<()> {
    let start = out.len();
    out.resize(start + room, 0);
    let written = write(&mut out[start..]).inspect_err(|_| out.truncate(start))?;
    out.truncate(start + written);
    Ok(())
}

enum Failure {
    TooLarge,
    Malformed(String),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        Failure::Malformed(e.to_string())
    }
}

impl From<snap::Error> for Failure {
    fn from(e: snap::Error) -> Failure {
        Failure::Malformed(e.to_string())
    }
}

fn malformed<T>(reason: &str) -> Result<T, Failure> {
    Err(Failure::Malformed(reason.into()))
}

/// What to reserve at first: text often compresses to a quarter. It follows from bytes that are there, not from what they say.
fn first_capacity(compressed: &[u8], limit: usize) -> usize {
    compressed.len().saturating_mul(4).min(limit)
}

fn take_plain(block: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    if block.len() > limit { Err(Failure::TooLarge) } else { Ok(block.to_vec()) }
}

fn gunzip(compressed: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::with_capacity(first_capacity(compressed, limit));
    let one_more = (limit as u64).saturating_add(1);
    flate2::bufread::MultiGzDecoder::new(compressed).take(one_more).read_to_end(&mut out)?;
    if out.len() > limit { Err(Failure::TooLarge) } else { Ok(out) }
}

/// Start of the Java library's framing; then two u32, version and oldest compatible version, then blocks, each after its length as u32.
const JAVA_SNAPPY_MAGIC: [u8; 8] = *b"\x82SNAPPY\0";
const JAVA_SNAPPY_HEADER: usize = 16;

fn unsnap(compressed: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    if !compressed.starts_with(&JAVA_SNAPPY_MAGIC) {
        unsnap_block(compressed, limit, &mut out)?;
        return Ok(out);
    }
    let Some(mut rest) = compressed.get(JAVA_SNAPPY_HEADER..) else { return malformed("the framing's header is cut") };
    while !rest.is_empty() {
        let Some((len, after)) = rest.split_first_chunk::<4>() else { return malformed("a block's length is cut") };
        let len = u32::from_be_bytes(*len) as usize;
        let Some((block, after)) = after.split_at_checked(len) else { return malformed("a block is cut") };
        unsnap_block(block, limit, &mut out)?;
        rest = after;
    }
    Ok(out)
}

/// No snappy block is longer than this many times its compressed form: an element of 3 bytes stands for at most 64.
const MAX_SNAPPY_RATIO: usize = 22;

fn unsnap_block(compressed: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Failure> {
    let len = snap::raw::decompress_len(compressed)?;
    if len > limit - out.len() {
        return Err(Failure::TooLarge);
    }
    if len > compressed.len().saturating_mul(MAX_SNAPPY_RATIO) {
        return malformed("a block is shorter than its announced length allows");
    }
    let start = out.len();
    out.resize(start + len, 0);
    snap::raw::Decoder::new().decompress(compressed, &mut out[start..])?;
    Ok(())
}

fn unlz4(compressed: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::with_capacity(first_capacity(compressed, limit));
    let mut decoder = lz4_flex::frame::FrameDecoder::new(compressed);
    loop {
        let piece = decoder.fill_buf()?;
        if piece.is_empty() {
            break;
        }
        if piece.len() > limit - out.len() {
            return Err(Failure::TooLarge);
        }
        out.extend_from_slice(piece);
        let len = piece.len();
        decoder.consume(len);
    }
    // A frame that is cut between two blocks ends without an error here; its missing records are noticed.
    if decoder.get_ref().is_empty() { Ok(out) } else { malformed("bytes follow the frame") }
}

fn unzstd(compressed: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};
    let mut out = Vec::with_capacity(first_capacity(compressed, limit));
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(MAX_ZSTD_WINDOW_LOG))?;
    let mut input = InBuffer::around(compressed);
    loop {
        if out.len() > limit {
            return Err(Failure::TooLarge);
        }
        if out.len() == out.capacity() {
            let grown = out.capacity().saturating_mul(2).max(4096).min(limit.saturating_add(1));
            out.reserve_exact(grown.saturating_sub(out.len()).max(1));
        }
        let (read, written) = (input.pos(), out.len());
        let mut output = OutBuffer::around_pos(&mut out, written);
        let wanted = decoder.run(&mut input, &mut output)?;
        let all_read = input.pos() == compressed.len();
        if wanted == 0 && all_read {
            break;
        }
        if out.len() == written && input.pos() == read && out.len() < out.capacity() {
            return malformed("the frame is cut");
        }
    }
    if out.len() > limit { Err(Failure::TooLarge) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: usize) -> Vec<u8> {
        b"a broker, a topic, a partition; ".iter().copied().cycle().take(len).collect()
    }

    fn compressed(codec: Compression, block: &[u8]) -> Vec<u8> {
        let mut out = b"before".to_vec();
        codec.compress(block, &mut out).unwrap();
        assert_eq!(&out[..6], b"before");
        out.split_off(6)
    }

    #[test]
    fn names_and_codes_round_trip() {
        for (code, codec) in Compression::ALL.into_iter().enumerate() {
            assert_eq!(codec.codec() as usize, code);
            assert_eq!(Compression::from_codec(code as u8), Some(codec));
            assert_eq!(codec.to_string().parse(), Ok(codec));
        }
        assert_eq!(Compression::from_codec(5), None);
        assert_eq!("brotli".parse::<Compression>(), Err(UnknownCompression("brotli".into())));
    }

    #[test]
    fn every_codec_round_trips() {
        for codec in Compression::ALL {
            for len in [0, 1, 100, 70_000, 5_000_000] {
                let block = text(len);
                let small = compressed(codec, &block);
                assert!(codec == Compression::None || len < 100 || small.len() < len, "{codec} {len}");
                assert_eq!(codec.decompress(&small, len).as_deref(), Ok(&block[..]), "{codec} {len}");
            }
        }
    }

    #[test]
    fn decompression_stops_at_the_limit() {
        for codec in Compression::ALL {
            let small = compressed(codec, &vec![0; 5_000_000]);
            for limit in [0, 1, 4095, 100_000, 4_999_999] {
                assert_eq!(codec.decompress(&small, limit), Err(BatchError::DecompressedTooLarge { codec, limit }));
            }
        }
    }

    #[test]
    fn what_follows_or_lacks_is_noticed() {
        for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
            let small = compressed(codec, &text(1000));
            let mut longer = small.clone();
            longer.extend_from_slice(b"and more");
            assert!(matches!(codec.decompress(&longer, 10_000), Err(BatchError::Decompress { .. })), "{codec}");
            assert!(matches!(codec.decompress(&small[..small.len() / 2], 10_000), Err(BatchError::Decompress { .. })), "{codec}");
        }
    }

    #[test]
    fn snappy_reads_the_java_framing() {
        let mut framed = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
        for part in [text(40_000), text(3)] {
            let block = compressed(Compression::Snappy, &part);
            framed.extend_from_slice(&(block.len() as u32).to_be_bytes());
            framed.extend_from_slice(&block);
        }
        let expected = [text(40_000), text(3)].concat();
        assert_eq!(Compression::Snappy.decompress(&framed, 50_000), Ok(expected));
        assert!(matches!(Compression::Snappy.decompress(&framed, 40_001), Err(BatchError::DecompressedTooLarge { .. })));
        for cut in [8, 15, 17, 19, 21, framed.len() - 1] {
            assert!(matches!(Compression::Snappy.decompress(&framed[..cut], 50_000), Err(BatchError::Decompress { .. })), "{cut}");
        }
    }

    #[test]
    fn a_lying_snappy_length_allocates_nothing() {
        // Announces 1 GiB in a block of 7 bytes.
        let lying = [0x80, 0x80, 0x80, 0x80, 0x04, 0x00, 0x00];
        assert!(matches!(Compression::Snappy.decompress(&lying, 1 << 30), Err(BatchError::Decompress { .. })));
    }
}
