//! The 61 bytes before a batch's records.

use super::{BatchError, Compression};
use crate::types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp};

/// Bytes before the records.
pub const HEADER_LEN: usize = 61;
/// Bytes that the length field does not count: base offset and the field itself.
pub const LENGTH_PREFIX: usize = 12;
/// The CRC covers the bytes from here to the end.
pub const CRC_START: usize = 21;
/// The version of the format.
pub const BATCH_MAGIC: i8 = 2;
/// The producer id of a batch without one.
pub const NO_PRODUCER_ID: ProducerId = -1;
/// The producer epoch of a batch without a producer.
pub const NO_PRODUCER_EPOCH: ProducerEpoch = -1;
/// The base sequence of a batch without a producer.
pub const NO_SEQUENCE: i32 = -1;

/// Smallest length field: that of a batch without records.
pub(super) const MIN_LENGTH: i32 = (HEADER_LEN - LENGTH_PREFIX) as i32;

pub(super) const CODEC: i16 = 0b111;
pub(super) const LOG_APPEND_TIME: i16 = 1 << 3;
pub(super) const TRANSACTIONAL: i16 = 1 << 4;
pub(super) const CONTROL: i16 = 1 << 5;
pub(super) const DELETE_HORIZON: i16 = 1 << 6;

/// The header of a batch, field by field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Bytes after this field, at least 49.
    pub batch_length: i32,
    /// Epoch of the leader that appended it.
    pub leader_epoch: LeaderEpoch,
    /// Version of the format, 2.
    pub magic: i8,
    /// CRC-32C of the bytes from 21 on.
    pub crc: u32,
    /// Codec and flags.
    pub attributes: i16,
    /// Offset of the last record, less the base offset.
    pub last_offset_delta: i32,
    /// Timestamp of the first record.
    pub base_timestamp: Timestamp,
    /// Largest timestamp of the records, or the broker's where it is LogAppendTime.
    pub max_timestamp: Timestamp,
    /// Id of the idempotent producer, -1 is none.
    pub producer_id: ProducerId,
    /// Its epoch.
    pub producer_epoch: ProducerEpoch,
    /// Its sequence number of the first record.
    pub base_sequence: i32,
    /// Records in the batch.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`; more than 61 bytes may be there, or less than the whole batch.
    ///
    /// # Errors
    /// [`BatchError::Truncated`] below 61 bytes; [`BatchError::Magic`]; [`BatchError::Length`] below 49;
    /// [`BatchError::LastOffsetDelta`] when negative; [`BatchError::OffsetRange`] when base offset and delta overflow.
    pub fn parse(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let Some(head) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(BatchError::Truncated { needed: HEADER_LEN, available: bytes.len() });
        };
        let header = BatchHeader::read(head);
        if header.magic != BATCH_MAGIC {
            return Err(BatchError::Magic { expected: BATCH_MAGIC, actual: header.magic });
        }
        if header.batch_length < MIN_LENGTH {
            return Err(BatchError::Length { actual: header.batch_length, min: MIN_LENGTH });
        }
        if header.last_offset_delta < 0 {
            return Err(BatchError::LastOffsetDelta { actual: header.last_offset_delta });
        }
        if header.base_offset.checked_add(i64::from(header.last_offset_delta) + 1).is_none() {
            return Err(BatchError::OffsetRange { base_offset: header.base_offset, last_offset_delta: header.last_offset_delta });
        }
        Ok(header)
    }

    fn read(head: &[u8; HEADER_LEN]) -> BatchHeader {
        BatchHeader {
            base_offset: i64::from_be_bytes(field(head, 0)),
            batch_length: i32::from_be_bytes(field(head, 8)),
            leader_epoch: i32::from_be_bytes(field(head, 12)),
            magic: i8::from_be_bytes(field(head, 16)),
            crc: u32::from_be_bytes(field(head, 17)),
            attributes: i16::from_be_bytes(field(head, 21)),
            last_offset_delta: i32::from_be_bytes(field(head, 23)),
            base_timestamp: i64::from_be_bytes(field(head, 27)),
            max_timestamp: i64::from_be_bytes(field(head, 35)),
            producer_id: i64::from_be_bytes(field(head, 43)),
            producer_epoch: i16::from_be_bytes(field(head, 51)),
            base_sequence: i32::from_be_bytes(field(head, 53)),
            record_count: i32::from_be_bytes(field(head, 57)),
        }
    }

    /// Writes the header to the first 61 bytes of `out`, its CRC as it is.
    ///
    /// # Panics
    /// When `out` is shorter.
    pub fn write(&self, out: &mut [u8]) {
        out[0..8].copy_from_slice(&self.base_offset.to_be_bytes());
        out[8..12].copy_from_slice(&self.batch_length.to_be_bytes());
        out[12..16].copy_from_slice(&self.leader_epoch.to_be_bytes());
        out[16..17].copy_from_slice(&self.magic.to_be_bytes());
        out[17..21].copy_from_slice(&self.crc.to_be_bytes());
        out[21..23].copy_from_slice(&self.attributes.to_be_bytes());
        out[23..27].copy_from_slice(&self.last_offset_delta.to_be_bytes());
        out[27..35].copy_from_slice(&self.base_timestamp.to_be_bytes());
        out[35..43].copy_from_slice(&self.max_timestamp.to_be_bytes());
        out[43..51].copy_from_slice(&self.producer_id.to_be_bytes());
        out[51..53].copy_from_slice(&self.producer_epoch.to_be_bytes());
        out[53..57].copy_from_slice(&self.base_sequence.to_be_bytes());
        out[57..61].copy_from_slice(&self.record_count.to_be_bytes());
    }

    /// Bytes of the whole batch, at least 61 in a parsed header.
    #[must_use]
    pub fn total_len(&self) -> usize {
        LENGTH_PREFIX + usize::try_from(self.batch_length).unwrap_or(0)
    }

    /// Offset of the last record.
    #[must_use]
    pub fn last_offset(&self) -> Offset {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta))
    }

    /// Offset after the last record.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.last_offset().saturating_add(1)
    }

    /// The codec of the records.
    ///
    /// # Errors
    /// [`BatchError::Codec`] when it is none of the five.
    pub fn compression(&self) -> Result<Compression, BatchError> {
        let codec = (self.attributes & CODEC) as u8;
        Compression::from_codec(codec).ok_or(BatchError::Codec { actual: codec })
    }

    /// Written by the broker for transactions, not by a client.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Part of a transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether all records bear the broker's time, the max timestamp, rather than their own.
    #[must_use]
    pub fn log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }

    /// When the tombstones of a batch that a cleaning has rewritten may go, ms: its base timestamp then (KIP-534).
    #[must_use]
    pub fn delete_horizon(&self) -> Option<Timestamp> {
        (self.attributes & DELETE_HORIZON != 0).then_some(self.base_timestamp)
    }

    /// The broker's time of the append where the records bear that, else -1.
    #[must_use]
    pub fn append_time(&self) -> Timestamp {
        if self.log_append_time() { self.max_timestamp } else { -1 }
    }

    /// Whether an idempotent producer sent it.
    #[must_use]
    pub fn has_producer(&self) -> bool {
        self.producer_id > NO_PRODUCER_ID
    }

    /// Sequence number of the last record; -1 without a producer.
    #[must_use]
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 { NO_SEQUENCE } else { sequence_after(self.base_sequence, self.last_offset_delta) }
    }

    /// Compares the header's CRC with the one `computed` over the bytes from 21 on.
    ///
    /// # Errors
    /// [`BatchError::Crc`] when they differ.
    pub fn check_crc(&self, computed: u32) -> Result<(), BatchError> {
        if self.crc == computed { Ok(()) } else { Err(BatchError::Crc { stored: self.crc, computed }) }
    }
}

/// The sequence number `increment` records after `sequence`: after the largest `i32` comes 0.
///
/// # Panics
/// When one of them is negative.
#[must_use]
pub fn sequence_after(sequence: i32, increment: i32) -> i32 {
    assert!(sequence >= 0 && increment >= 0, "sequence numbers start at 0");
    ((i64::from(sequence) + i64::from(increment)) % (i64::from(i32::MAX) + 1)) as i32
}

fn field<const N: usize>(head: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&head[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BatchHeader {
        BatchHeader {
            base_offset: 0x0102_0304_0506_0708,
            batch_length: 0x1112_1314,
            leader_epoch: 0x2122_2324,
            magic: 2,
            crc: 0x3132_3334,
            attributes: 0x0004,
            last_offset_delta: 0x4142_4344,
            base_timestamp: 0x5152_5354_5556_5758,
            max_timestamp: 0x6162_6364_6566_6768,
            producer_id: 0x7172_7374_7576_7778,
            producer_epoch: 0x0182,
            base_sequence: 0x1192_9394,
            record_count: 0x21a2_a3a4,
        }
    }

    #[test]
    fn fields_keep_their_places() {
        let mut bytes = [0; HEADER_LEN];
        header().write(&mut bytes);
        assert_eq!(BatchHeader::parse(&bytes), Ok(header()));
        assert_eq!(bytes[..12], [1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14]);
        assert_eq!(bytes[57..], [0x21, 0xa2, 0xa3, 0xa4]);
    }

    #[test]
    fn what_follows_from_the_fields() {
        let mut header = BatchHeader { base_offset: 100, batch_length: 49, last_offset_delta: 9, record_count: 10, ..header() };
        assert_eq!((header.total_len(), header.last_offset(), header.next_offset()), (61, 109, 110));
        assert_eq!(header.compression(), Ok(Compression::Zstd));
        assert!(!header.is_control() && !header.is_transactional() && !header.log_append_time());
        header.attributes = 0b0011_1111;
        assert!(header.is_control() && header.is_transactional() && header.log_append_time());
        assert_eq!(header.compression(), Err(BatchError::Codec { actual: 7 }));
        assert!(header.has_producer());
        header.producer_id = NO_PRODUCER_ID;
        assert!(!header.has_producer());
    }

    #[test]
    fn sequences_wrap_to_zero() {
        assert_eq!(sequence_after(0, 0), 0);
        assert_eq!(sequence_after(i32::MAX - 1, 1), i32::MAX);
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX, i32::MAX), i32::MAX - 1);
        let header = BatchHeader { base_sequence: i32::MAX, last_offset_delta: 4, ..header() };
        assert_eq!(header.last_sequence(), 3);
        assert_eq!(BatchHeader { base_sequence: -1, ..header }.last_sequence(), NO_SEQUENCE);
    }

    #[test]
    fn the_last_possible_offset_is_accepted() {
        let mut bytes = [0; HEADER_LEN];
        BatchHeader { base_offset: i64::MAX - 10, last_offset_delta: 9, ..header() }.write(&mut bytes);
        assert_eq!(BatchHeader::parse(&bytes).map(|h| h.next_offset()), Ok(i64::MAX));
        BatchHeader { base_offset: i64::MAX - 10, last_offset_delta: 10, ..header() }.write(&mut bytes);
        assert!(matches!(BatchHeader::parse(&bytes), Err(BatchError::OffsetRange { .. })));
    }
}
