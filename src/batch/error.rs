//! What can be wrong with a batch.

use super::Compression;

/// Why bytes are not a batch, or not one that may be used this way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end too early.
    #[error("batch is cut: {needed} bytes needed, {available} there")]
    Truncated {
        /// Bytes that the batch or its header takes.
        needed: usize,
        /// Bytes that are there.
        available: usize,
    },
    /// The length field can't be.
    #[error("batch length {actual} is below the {min} bytes of an empty batch")]
    Length {
        /// As in the batch.
        actual: i32,
        /// Smallest possible.
        min: i32,
    },
    /// Bytes follow where exactly one batch should be.
    #[error("{available} bytes where one batch of {batch} bytes is expected")]
    NotOneBatch {
        /// Bytes of the batch by its own length.
        batch: usize,
        /// Bytes that are there.
        available: usize,
    },
    /// Over a size limit.
    #[error("batch of {actual} bytes is over the limit of {max}")]
    TooLarge {
        /// The limit, bytes.
        max: usize,
        /// Bytes of the batch.
        actual: usize,
    },
    /// Another version of the format.
    #[error("batch magic is {actual}, only {expected} is served")]
    Magic {
        /// The one that is served.
        expected: i8,
        /// As in the batch.
        actual: i8,
    },
    /// The bytes are not those that were sent or stored.
    #[error("batch CRC-32C is {stored:#010x} in the header, {computed:#010x} over the bytes")]
    Crc {
        /// As in the batch.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// The last offset delta is negative.
    #[error("last offset delta {actual} is negative")]
    LastOffsetDelta {
        /// As in the batch.
        actual: i32,
    },
    /// The record count can't be.
    #[error("record count {count} does not go with last offset delta {last_offset_delta}")]
    Count {
        /// As in the batch.
        count: i32,
        /// As in the batch.
        last_offset_delta: i32,
    },
    /// The base offset is negative, or the last offset beyond what an offset holds.
    #[error("base offset {base_offset} with last offset delta {last_offset_delta} is no range of offsets")]
    OffsetRange {
        /// As in the batch.
        base_offset: i64,
        /// As in the batch.
        last_offset_delta: i32,
    },
    /// The codec is not one.
    #[error("compression codec {actual} is unknown, 0 to 4 are served")]
    Codec {
        /// As in the attributes.
        actual: u8,
    },
    /// A client may not send a control batch.
    #[error("control batch from a client")]
    Control,
    /// Transactions are not served.
    #[error("transactional batch, but transactions are not served")]
    Transactional,
    /// Attribute bits that a client may not set.
    #[error("attributes {attributes:#06x} have bits {refused:#06x} set that a client may not set")]
    Attributes {
        /// As in the batch.
        attributes: i16,
        /// Those of them that are refused.
        refused: i16,
    },
    /// Producer id, epoch and sequence don't go together.
    #[error("producer id {id}, epoch {epoch} and base sequence {base_sequence} do not go together")]
    Producer {
        /// As in the batch.
        id: i64,
        /// As in the batch.
        epoch: i16,
        /// As in the batch.
        base_sequence: i32,
    },
    /// The records' block does not decompress.
    #[error("{codec} block does not decompress: {reason}")]
    Decompress {
        /// Codec of the batch.
        codec: Compression,
        /// What the codec says.
        reason: String,
    },
    /// The records' block is larger than the reader allows.
    #[error("{codec} block decompresses to more than {limit} bytes")]
    DecompressedTooLarge {
        /// Codec of the batch.
        codec: Compression,
        /// What the reader allows, bytes.
        limit: usize,
    },
    /// One record is malformed.
    #[error("record {index} at byte {position} of the block: {fault}")]
    Record {
        /// Which record, from 0.
        index: u32,
        /// Where it starts in the uncompressed block.
        position: usize,
        /// What is wrong with it.
        fault: RecordFault,
    },
    /// Bytes follow the last record.
    #[error("{bytes} bytes follow the last of {count} records")]
    RecordsLeftOver {
        /// How many bytes.
        bytes: usize,
        /// Records of the batch.
        count: i32,
    },
    /// A record without a key, where each must have one.
    #[error("record {index} has no key, and the topic is compacted by key")]
    NoKey {
        /// Which record, from 0.
        index: u32,
    },
    /// The records are compressed where plain ones are needed.
    #[error("records are compressed with {codec}")]
    Compressed {
        /// Codec of the batch.
        codec: Compression,
    },
    /// A timestamp is too far from the batch's first one.
    #[error("timestamp {timestamp} is too far from the batch's base timestamp {base}")]
    TimestampRange {
        /// The batch's.
        base: i64,
        /// The record's.
        timestamp: i64,
    },
    /// A streamed value is longer or shorter than announced.
    #[error("streamed value has {actual} bytes, {announced} were announced")]
    StreamedLength {
        /// When the batch was begun.
        announced: usize,
        /// Given since.
        actual: usize,
    },
}

/// The kinds of [`BatchError`], as far as a peer is told different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BatchErrorKind {
    /// The bytes are damaged (Kafka: CORRUPT_MESSAGE).
    Corrupt,
    /// Over a size limit (RECORD_TOO_LARGE / MESSAGE_TOO_LARGE).
    TooLarge,
    /// Intact, but of an unknown codec (UNSUPPORTED_COMPRESSION_TYPE).
    UnsupportedCompression,
    /// Intact, but not allowed (INVALID_RECORD).
    Invalid,
}

impl BatchError {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> BatchErrorKind {
        use BatchError::*;
        match self {
            Truncated { .. }
            | Length { .. }
            | NotOneBatch { .. }
            | Crc { .. }
            | Decompress { .. }
            | Record { .. }
            | RecordsLeftOver { .. } => BatchErrorKind::Corrupt,
            TooLarge { .. } | DecompressedTooLarge { .. } => BatchErrorKind::TooLarge,
            Codec { .. } => BatchErrorKind::UnsupportedCompression,
            Magic { .. }
            | LastOffsetDelta { .. }
            | Count { .. }
            | OffsetRange { .. }
            | Control
            | Transactional
            | Attributes { .. }
            | Producer { .. }
            | NoKey { .. }
            | Compressed { .. }
            | TimestampRange { .. }
            | StreamedLength { .. } => BatchErrorKind::Invalid,
        }
    }
}

/// What is wrong with one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// The block, or the record by its own length, ends too early.
    #[error("{needed} bytes needed, {available} left")]
    Truncated {
        /// Bytes of the next field.
        needed: usize,
        /// Bytes that are left.
        available: usize,
    },
    /// A varint has more bits than its type, or does not end.
    #[error("a varint does not fit its type")]
    Varint,
    /// A length below the smallest possible, or beyond what it is in.
    #[error("length {actual} of {field} can't be")]
    Length {
        /// Of what.
        field: &'static str,
        /// As in the record.
        actual: i32,
    },
    /// The record is longer than its fields.
    #[error("{bytes} bytes are left after the record's last field")]
    LeftOver {
        /// How many.
        bytes: usize,
    },
    /// The offset delta does not rise, or is beyond the batch's last.
    #[error("offset delta {actual} is not in {min}..={last}")]
    OffsetDelta {
        /// One more than the one before.
        min: i64,
        /// The batch's last.
        last: i32,
        /// As in the record.
        actual: i32,
    },
    /// Base timestamp and delta don't sum to a timestamp.
    #[error("timestamp delta {delta} on base {base}")]
    Timestamp {
        /// The batch's.
        base: i64,
        /// The record's.
        delta: i64,
    },
}
