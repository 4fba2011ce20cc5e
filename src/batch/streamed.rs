//! A batch of one record whose value is too large to hold.
//!
//! The batch's CRC stands before the bytes that it covers, and of a value that streams through it is known only at the end. So it travels
//! *behind* the batch: the sender writes the prefix with a zero CRC, the value, the suffix, and then tells the CRC (the wire format has a
//! place for it after the payload). The receiver computes the CRC as bytes come in, compares, writes it into bytes 17 to 20 ([`super::stamp_crc`]) together
//! with base offset and epoch, and from there on the batch is like any other. The CRC is thus as end-to-end as in any other batch: the sender computes it over
//! what it read, before the network.

use bytes::{Bytes, BytesMut};

use super::builder::{HeaderPair, RecordShape, new_header, write_headers};
use super::{BatchError, BatchHeader, CRC_START, HEADER_LEN};
use crate::checksum::Crc32c;
use crate::limits::MAX_MESSAGE_BYTES;
use crate::types::{ProducerEpoch, ProducerId, Timestamp};

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
