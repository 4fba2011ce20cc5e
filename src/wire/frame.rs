//! The frame: lengths and checksum around a header and its payload.

use std::ops::Range;

use crate::checksum::crc32;
use crate::limits;

/// The first bytes of a connection, sent by the client.
///
/// A Kafka request starts with its length as a big-endian i32: read so, these bytes are negative. A TLS hello starts with 0x16, HTTP with a letter.
pub const MAGIC: [u8; 8] = *b"\xC0RELANE\n";

/// Bytes of a frame in front of its header.
pub const PREFIX_LEN: usize = 12;
/// Bytes that the frame length counts besides header and payload.
const COUNTED: usize = PREFIX_LEN - 4;

/// The lengths of a frame, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FramePrefix {
    frame_len: u32,
    header_len: u32,
    header_crc: u32,
}

/// Why bytes are not a frame. The connection can't go on: where the next frame starts is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame length can't even count the rest of the prefix.
    #[error("a frame of {len} bytes is too short: the least is 8")]
    TooShort {
        /// The length as received.
        len: u32,
    },
    /// The frame is longer than the reader takes.
    #[error("a frame of {len} bytes is too long: the most is {max}")]
    TooLong {
        /// The length as received.
        len: u32,
        /// The longest that is taken.
        max: usize,
    },
    /// The header is longer than the reader takes.
    #[error("a header of {len} bytes is too long: the most is {max}")]
    HeaderTooLong {
        /// The length as received.
        len: u32,
        /// The longest that is taken.
        max: usize,
    },
    /// The header does not fit its frame.
    #[error("a header of {header_len} bytes does not fit a frame of {frame_len}")]
    HeaderOutside {
        /// The header's length as received.
        header_len: u32,
        /// The frame's length as received.
        frame_len: u32,
    },
    /// The header is not what was sent.
    #[error("the header's crc is {actual:08x}, the frame says {expected:08x}")]
    HeaderCrc {
        /// As received.
        expected: u32,
        /// Of the bytes received.
        actual: u32,
    },
}

impl FramePrefix {
    /// Bytes of the whole frame, prefix included.
    pub fn total_len(&self) -> usize {
        4 + self.frame_len as usize
    }

    /// Bytes of the header.
    pub fn header_len(&self) -> usize {
        self.header_len as usize
    }

    /// Bytes of the payload.
    pub fn payload_len(&self) -> usize {
        self.frame_len as usize - COUNTED - self.header_len as usize
    }

    /// Where the header is, counted from the start of the frame.
    pub fn header_range(&self) -> Range<usize> {
        PREFIX_LEN..PREFIX_LEN + self.header_len()
    }

    /// Where the payload is, counted from the start of the frame.
    pub fn payload_range(&self) -> Range<usize> {
        PREFIX_LEN + self.header_len()..self.total_len()
    }

    /// Checks the header's bytes against their checksum.
    ///
    /// # Errors
    /// [`FrameError::HeaderCrc`] where they differ.
    pub fn check_header(&self, header: &[u8]) -> Result<(), FrameError> {
        let actual = crc32(header);
        if actual == self.header_crc { Ok(()) } else { Err(FrameError::HeaderCrc { expected: self.header_crc, actual }) }
    }
}

/// The lengths of the request (or hello) that `bytes` start with; `None` where more bytes are needed to tell.
///
/// A length that is out of bounds is refused as soon as it is there, before anything is allocated for it. `max_frame` bounds the frame
/// length, which counts everything but itself.
///
/// # Errors
/// The bytes can't be the start of a frame.
pub fn peek(bytes: &[u8], max_frame: usize) -> Result<Option<FramePrefix>, FrameError> {
    peek_within(bytes, max_frame, limits::MAX_FRAME_HEADER)
}

/// As [`peek`], for a response, whose header may be longer.
///
/// # Errors
/// The bytes can't be the start of a frame.
pub fn peek_response(bytes: &[u8], max_frame: usize) -> Result<Option<FramePrefix>, FrameError> {
    peek_within(bytes, max_frame, limits::MAX_RESPONSE_HEADER)
}

fn peek_within(bytes: &[u8], max_frame: usize, max_header: usize) -> Result<Option<FramePrefix>, FrameError> {
    let Some(frame_len) = u32_at(bytes, 0) else { return Ok(None) };
    if (frame_len as usize) < COUNTED {
        return Err(FrameError::TooShort { len: frame_len });
    }
    if frame_len as usize > max_frame {
        return Err(FrameError::TooLong { len: frame_len, max: max_frame });
    }
    let Some(header_len) = u32_at(bytes, 4) else { return Ok(None) };
    if header_len as usize > max_header {
        return Err(FrameError::HeaderTooLong { len: header_len, max: max_header });
    }
    if header_len as usize > frame_len as usize - COUNTED {
        return Err(FrameError::HeaderOutside { header_len, frame_len });
    }
    let Some(header_crc) = u32_at(bytes, 8) else { return Ok(None) };
    Ok(Some(FramePrefix { frame_len, header_len, header_crc }))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Appends prefix and header of a frame whose payload the caller sends right after them.
///
/// # Panics
/// When the frame's length does not fit its field: the payload's bound is the caller's to keep.
pub(crate) fn write(header: &[u8], payload_len: usize, out: &mut Vec<u8>) {
    let frame_len = u32::try_from(COUNTED + header.len() + payload_len).expect("a payload within its bound");
    out.reserve(PREFIX_LEN + header.len());
    out.extend_from_slice(&frame_len.to_le_bytes());
    out.extend_from_slice(&(header.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32(header).to_le_bytes());
    out.extend_from_slice(header);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(frame_len: u32, header_len: u32) -> Vec<u8> {
        [frame_len, header_len, 0].iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn the_magic_is_no_kafka_request() {
        assert!(i32::from_be_bytes([MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3]]) < 0);
    }

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let mut out = vec![];
        write(b"header", 5, &mut out);
        out.extend_from_slice(b"bytes");
        let found = peek(&out, 1000).unwrap().unwrap();
        assert_eq!(found.total_len(), out.len());
        assert_eq!(&out[found.header_range()], b"header");
        assert_eq!(&out[found.payload_range()], b"bytes");
        assert_eq!(found.payload_len(), 5);
        found.check_header(b"header").unwrap();
        assert!(matches!(found.check_header(b"Header"), Err(FrameError::HeaderCrc { .. })));
        for cut in 0..PREFIX_LEN {
            assert_eq!(peek(&out[..cut], 1000), Ok(None));
        }
    }

    #[test]
    fn lying_lengths_are_refused_with_what_is_there() {
        assert_eq!(peek(&7u32.to_le_bytes(), 1000), Err(FrameError::TooShort { len: 7 }));
        assert_eq!(peek(&1001u32.to_le_bytes(), 1000), Err(FrameError::TooLong { len: 1001, max: 1000 }));
        assert_eq!(peek(&u32::MAX.to_le_bytes(), 1000), Err(FrameError::TooLong { len: u32::MAX, max: 1000 }));
        assert_eq!(peek(&prefix(100, 93)[..8], 1000), Err(FrameError::HeaderOutside { header_len: 93, frame_len: 100 }));
        assert!(peek(&prefix(100, 92), 1000).unwrap().is_some());
        let long = limits::MAX_FRAME_HEADER as u32 + 1;
        assert!(matches!(peek(&prefix(long + 100, long), limits::MAX_FRAME), Err(FrameError::HeaderTooLong { .. })));
        assert!(peek_response(&prefix(long + 100, long), limits::MAX_FRAME).unwrap().is_some());
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_in_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..16), frame_len in 0u32..2000, header_len in 0u32..2000) {
            for bytes in [bytes, prefix(frame_len, header_len)] {
                if let Ok(Some(found)) = peek(&bytes, 1500) {
                    prop_assert!(found.total_len() <= 1504);
                    prop_assert_eq!(found.header_range().end, found.payload_range().start);
                    prop_assert_eq!(found.payload_range().end, found.total_len());
                    prop_assert_eq!(found.payload_range().len(), found.payload_len());
                }
            }
        }
    }
}
