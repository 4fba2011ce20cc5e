//! A batch of one record whose value is too large to hold, when it is sent ([`StreamedBatch`]) and when it is read ([`RecordHead`]).
//!
//! The batch's CRC stands before the bytes that it covers, and of a value that streams through it is known only at the end. So it
//! travels *behind* the batch: the sender writes the prefix with a zero CRC, the value, the suffix, and then the CRC, for which the
//! native protocol has a place after the payload. The receiver computes the CRC as bytes come in, compares, writes it into bytes 17 to
//! 20 ([`super::stamp_crc`]) together with base offset and epoch, and from there on the batch is like any other. The CRC is as
//! end-to-end as in any other batch: the sender computes it over what it read, before the network.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::builder::{HeaderPair, RecordShape, new_header, write_headers};
use super::record::{Walk, parse_headers};
use super::{BatchError, BatchHeader, CRC_START, Compression, HEADER_LEN, Headers, RecordFault};
use crate::checksum::Crc32c;
use crate::limits::MAX_MESSAGE_BYTES;
use crate::types::{Offset, ProducerEpoch, ProducerId, Timestamp};

/// An uncompressed batch of one record, without the record's value.
#[derive(Clone, Debug)]
pub struct StreamedBatch {
    /// What comes before the value: the batch's header with a CRC of 0, and the beginning of the record.
    pub prefix: Bytes,
    /// What comes after the value.
    pub suffix: Bytes,
    /// Bytes of the value.
    pub value_len: usize,
    /// Bytes of prefix, value and suffix.
    pub total_len: usize,
}

impl StreamedBatch {
    /// A batch whose record's value will have exactly `value_len` bytes.
    ///
    /// `producer` is id, epoch and sequence of an idempotent producer.
    ///
    /// # Errors
    /// [`BatchError::TooLarge`] when the batch would be over [`MAX_MESSAGE_BYTES`].
    pub fn new(
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value_len: usize,
        headers: &[HeaderPair<'_>],
        producer: Option<(ProducerId, ProducerEpoch, i32)>,
    ) -> Result<StreamedBatch, BatchError> {
        let shape = RecordShape::new(0, 0, key.map(<[u8]>::len), Some(value_len), headers)?;
        let total_len = HEADER_LEN + shape.whole_len();
        if total_len > MAX_MESSAGE_BYTES {
            return Err(BatchError::TooLarge { max: MAX_MESSAGE_BYTES, actual: total_len });
        }
        let mut header = new_header(total_len, 1, timestamp, timestamp);
        if let Some((id, epoch, sequence)) = producer {
            header = BatchHeader { producer_id: id, producer_epoch: epoch, base_sequence: sequence, ..header };
        }
        let mut prefix = BytesMut::zeroed(HEADER_LEN);
        header.write(&mut prefix);
        shape.write_until_value(&mut prefix, key);
        let mut suffix = BytesMut::new();
        write_headers(&mut suffix, headers);
        debug_assert_eq!(prefix.len() + value_len + suffix.len(), total_len, "a record is as long as computed");
        Ok(StreamedBatch { prefix: prefix.freeze(), suffix: suffix.freeze(), value_len, total_len })
    }

    /// The CRC up to the value, to be fed with the value.
    #[must_use]
    pub fn crc(&self) -> StreamedCrc {
        let mut crc = Crc32c::new();
        crc.update(&self.prefix[CRC_START..]);
        StreamedCrc { crc, suffix: self.suffix.clone(), announced: self.value_len, taken: 0 }
    }
}

/// The CRC of a [`StreamedBatch`] on its way.
#[derive(Clone, Debug)]
pub struct StreamedCrc {
    crc: Crc32c,
    suffix: Bytes,
    announced: usize,
    taken: usize,
}

impl StreamedCrc {
    /// Takes the next piece of the value.
    ///
    /// # Errors
    /// [`BatchError::StreamedLength`] when that is more than announced; the batch can't be finished then.
    pub fn update(&mut self, piece: &[u8]) -> Result<(), BatchError> {
        self.taken = self.taken.saturating_add(piece.len());
        if self.taken > self.announced {
            return Err(BatchError::StreamedLength { announced: self.announced, actual: self.taken });
        }
        self.crc.update(piece);
        Ok(())
    }

    /// Bytes of the value still to come.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.announced.saturating_sub(self.taken)
    }

    /// The batch's CRC, for the place behind the payload.
    ///
    /// # Errors
    /// [`BatchError::StreamedLength`] when the value was shorter or longer than announced.
    pub fn finish(mut self) -> Result<u32, BatchError> {
        if self.taken != self.announced {
            return Err(BatchError::StreamedLength { announced: self.announced, actual: self.taken });
        }
        self.crc.update(&self.suffix);
        Ok(self.crc.finish())
    }
}

/// The first record of an uncompressed batch of which only the beginning has come: where its parts are in the batch.
///
/// The batch's CRC is only known to be right when the whole batch has passed through a [`Crc32c`] (from byte 21 on) and
/// [`BatchHeader::check_crc`] has found it so: what was handed out before must be taken back otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// The batch's header.
    pub header: BatchHeader,
    /// The record's offset in the partition.
    pub offset: Offset,
    /// The record's timestamp.
    pub timestamp: Timestamp,
    /// Where its key is, if it has one.
    pub key: Option<Range<usize>>,
    /// Where its value is, if it has one; it need not have come.
    pub value: Option<Range<usize>>,
    /// Where its headers are, with their count before them.
    pub headers: Range<usize>,
}

impl RecordHead {
    /// Reads it from the beginning of a batch. `None` when more than `head` is needed to see where the value starts: some
    /// 100 bytes and the key.
    ///
    /// # Errors
    /// As [`BatchHeader::parse`] when there are 61 bytes; [`BatchError::Codec`], [`BatchError::Compressed`], [`BatchError::Record`].
    pub fn parse(head: &[u8]) -> Result<Option<RecordHead>, BatchError> {
        if head.len() < HEADER_LEN {
            return Ok(None);
        }
        let header = BatchHeader::parse(head)?;
        match header.compression()? {
            Compression::None => {}
            codec => return Err(BatchError::Compressed { codec }),
        }
        let end = header.total_len().min(head.len());
        match Walk::new(&header).parse_head(&head[..end], HEADER_LEN, header.total_len()) {
            Ok(record) => Ok(Some(record)),
            // Truncated by what has come, not by the batch's own length.
            Err(RecordFault::Truncated { .. }) if end < header.total_len() => Ok(None),
            Err(fault) => Err(BatchError::Record { index: 0, position: 0, fault }),
        }
    }

    /// The record's headers, from the bytes at [`RecordHead::headers`] of the batch.
    ///
    /// # Errors
    /// [`BatchError::Record`] when they are malformed, or followed by something.
    pub fn parse_headers<'a>(&self, bytes: &'a [u8]) -> Result<Headers<'a>, BatchError> {
        parse_headers(bytes).map_err(|fault| BatchError::Record { index: 0, position: 0, fault })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Records, check_ingress, stamp_crc};

    const HEADERS: [HeaderPair<'static>; 2] = [("a", Some(b"1")), ("b", None)];

    fn value(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    fn streamed(value: &[u8], pieces: usize) -> Vec<u8> {
        let batch = StreamedBatch::new(1000, Some(b"key"), value.len(), &HEADERS, Some((9, 1, 5))).unwrap();
        let mut crc = batch.crc();
        let mut whole = batch.prefix.to_vec();
        for piece in value.chunks(value.len().div_ceil(pieces).max(1)) {
            crc.update(piece).unwrap();
            whole.extend_from_slice(piece);
        }
        assert_eq!(crc.remaining(), 0);
        whole.extend_from_slice(&batch.suffix);
        assert_eq!(whole.len(), batch.total_len);
        stamp_crc(&mut whole, crc.finish().unwrap());
        whole
    }

    #[test]
    fn a_streamed_batch_is_a_batch() {
        for len in [0, 1, 62, 63, 64, 8191, 8192, 300_000] {
            let value = value(len);
            let whole = streamed(&value, 3);
            let header = check_ingress(&whole, 1 << 20).unwrap();
            assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (9, 1, 5));
            let records: Vec<_> = Records::of_batch(&whole).unwrap().map(Result::unwrap).collect();
            let [record] = &records[..] else { panic!("one record") };
            assert_eq!((record.timestamp, record.key, record.value), (1000, Some(&b"key"[..]), Some(&value[..])));
            assert_eq!(record.headers.last("a"), Some(Some(&b"1"[..])));
            assert_eq!(record.headers.last("b"), Some(None));
            assert_eq!(record.headers.last("c"), None);
        }
    }

    #[test]
    fn a_value_of_another_length_is_refused() {
        let batch = StreamedBatch::new(0, None, 10, &[], None).unwrap();
        let mut crc = batch.crc();
        crc.update(&[0; 9]).unwrap();
        assert_eq!(crc.clone().finish(), Err(BatchError::StreamedLength { announced: 10, actual: 9 }));
        assert_eq!(crc.update(&[0; 2]), Err(BatchError::StreamedLength { announced: 10, actual: 11 }));
        assert_eq!(crc.finish(), Err(BatchError::StreamedLength { announced: 10, actual: 11 }));
        let too_large = StreamedBatch::new(0, None, MAX_MESSAGE_BYTES, &[], None);
        assert!(matches!(too_large, Err(BatchError::TooLarge { max: MAX_MESSAGE_BYTES, .. })));
    }

    #[test]
    fn the_head_shows_where_the_value_is() {
        let value = value(5000);
        let whole = streamed(&value, 1);
        let needed = whole.windows(20).position(|w| w == &value[..20]).unwrap();
        for cut in 0..needed {
            assert_eq!(RecordHead::parse(&whole[..cut]), Ok(None), "{cut}");
        }
        for cut in [needed, needed + 1, whole.len() - 1, whole.len()] {
            let head = RecordHead::parse(&whole[..cut]).unwrap().unwrap();
            assert_eq!((head.offset, head.timestamp), (0, 1000));
            assert_eq!(head.key.clone().map(|range| &whole[range]), Some(&b"key"[..]));
            assert_eq!(head.value.clone().map(|range| &whole[range]), Some(&value[..]));
            let headers = head.parse_headers(&whole[head.headers.clone()]).unwrap();
            assert_eq!(headers.iter().map(|h| (h.name_str().unwrap(), h.value)).collect::<Vec<_>>(), HEADERS);
            assert!(head.parse_headers(&whole[head.headers.start..head.headers.end - 1]).is_err());
        }
    }

    #[test]
    fn a_head_that_reaches_out_of_its_batch_is_refused() {
        // The record: 0 length, 1 attributes, 2 timestamp delta, 3 offset delta, 4 key length, 5..8 key, 8 value length.
        for (position, field) in [(0, "record"), (4, "key"), (8, "value")] {
            let mut lying = streamed(&value(5), 1);
            lying[HEADER_LEN + position] = 0x7e;
            let fault = RecordFault::Length { field, actual: 63 };
            assert_eq!(RecordHead::parse(&lying[..HEADER_LEN + 10]), Err(BatchError::Record { index: 0, position: 0, fault }));
        }
    }
}
