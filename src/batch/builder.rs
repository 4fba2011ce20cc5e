//! Making batches, record by record.

use bytes::{Bytes, BytesMut};

use super::varint::{MAX_VARINT, MAX_VARLONG, varint_len, varlong_len, write_varint, write_varlong};
use super::{BATCH_MAGIC, BatchError, BatchHeader, CRC_START, Compression, HEADER_LEN, LENGTH_PREFIX};
use super::{NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, stamp_crc};
use crate::checksum::crc32c;
use crate::limits::MAX_MESSAGE_BYTES;
use crate::types::{ProducerEpoch, ProducerId, Timestamp};

/// A header to be sent: name and value.
pub(super) type HeaderPair<'a> = (&'a str, Option<&'a [u8]>);

/// Collects records and makes one batch of them.
///
/// Keys and values are copied once, straight into the batch; compression happens in [`BatchBuilder::build`].
#[derive(Debug)]
pub struct BatchBuilder {
    /// Room for the header, then the records.
    buffer: BytesMut,
    compression: Compression,
    count: u32,
    base_timestamp: Timestamp,
    max_timestamp: Timestamp,
    producer_id: ProducerId,
    producer_epoch: ProducerEpoch,
    base_sequence: i32,
}

impl BatchBuilder {
    /// An empty batch, to be compressed like that.
    #[must_use]
    pub fn new(compression: Compression) -> BatchBuilder {
        BatchBuilder::with_buffer(compression, BytesMut::new())
    }

    /// As [`BatchBuilder::new`], in an allocation that exists; what it holds is dropped.
    ///
    /// An uncompressed batch *is* this allocation, and gives it back when its last user drops it ([`Bytes::try_into_mut`]).
    #[must_use]
    pub fn with_buffer(compression: Compression, mut buffer: BytesMut) -> BatchBuilder {
        buffer.clear();
        buffer.resize(HEADER_LEN, 0);
        BatchBuilder {
            buffer,
            compression,
            count: 0,
            base_timestamp: 0,
            max_timestamp: 0,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: NO_PRODUCER_EPOCH,
            base_sequence: NO_SEQUENCE,
        }
    }

    /// Adds a record and returns its offset less that of the first one.
    ///
    /// # Errors
    /// [`BatchError::TooLarge`] when the uncompressed batch would be over [`MAX_MESSAGE_BYTES`]; [`BatchError::TimestampRange`] when the
    /// difference to the first timestamp is no 64-bit number. The batch is unchanged then.
    pub fn append(
        &mut self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[HeaderPair<'_>],
    ) -> Result<u32, BatchError> {
        let shape = self.shape(timestamp, key, value.map(<[u8]>::len), headers)?;
        let after = self.buffer.len() + shape.whole_len();
        if after > MAX_MESSAGE_BYTES {
            return Err(BatchError::TooLarge { max: MAX_MESSAGE_BYTES, actual: after });
        }
        self.buffer.reserve(shape.whole_len());
        shape.write_until_value(&mut self.buffer, key);
        self.buffer.extend_from_slice(value.unwrap_or_default());
        write_headers(&mut self.buffer, headers);
        debug_assert_eq!(self.buffer.len(), after, "a record is as long as computed");

        let delta = self.count;
        if delta == 0 {
            self.base_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.count += 1;
        Ok(delta)
    }

    /// Bytes of the batch as it is, uncompressed. Compression never makes it longer.
    #[must_use]
    pub fn estimated_len(&self) -> usize {
        self.buffer.len()
    }

    /// What [`BatchBuilder::estimated_len`] would be with one more record.
    #[must_use]
    pub fn len_after(&self, timestamp: Timestamp, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[HeaderPair<'_>]) -> usize {
        match self.shape(timestamp, key, value.map(<[u8]>::len), headers) {
            Ok(shape) => self.buffer.len().saturating_add(shape.whole_len()),
            Err(_) => usize::MAX,
        }
    }

    /// Records so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// Whether there are no records yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Timestamp of the first record, 0 when there is none.
    #[must_use]
    pub fn base_timestamp(&self) -> Timestamp {
        self.base_timestamp
    }

    /// Makes it the batch of an idempotent producer. `base_sequence` is the first record's.
    pub fn set_producer(&mut self, id: ProducerId, epoch: ProducerEpoch, base_sequence: i32) {
        self.producer_id = id;
        self.producer_epoch = epoch;
        self.base_sequence = base_sequence;
    }

    /// The finished batch, base offset 0, leader epoch -1.
    ///
    /// Where the codec does not make the records smaller, they stay uncompressed and the batch says so.
    ///
    /// # Panics
    /// When there are no records.
    #[must_use]
    pub fn build(mut self) -> Bytes {
        assert!(self.count > 0, "a batch has records");
        if let Some(mut packed) = self.compressed() {
            self.finish(&mut packed, self.compression);
            return Bytes::from(packed);
        }
        let mut plain = std::mem::take(&mut self.buffer);
        self.finish(&mut plain, Compression::None);
        plain.freeze()
    }

    /// Header room and compressed block, where that is shorter. A codec that fails in memory leaves the records uncompressed, which is always right.
    fn compressed(&self) -> Option<Vec<u8>> {
        if self.compression == Compression::None {
            return None;
        }
        let mut packed = Vec::with_capacity(HEADER_LEN + self.buffer.len() / 2);
        packed.resize(HEADER_LEN, 0);
        self.compression.compress(&self.buffer[HEADER_LEN..], &mut packed).ok()?;
        (packed.len() < self.buffer.len()).then_some(packed)
    }

    fn finish(&self, batch: &mut [u8], compression: Compression) {
        let mut header = BatchHeader {
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
            ..new_header(batch.len(), self.count, self.base_timestamp, self.max_timestamp)
        };
        header.attributes = i16::from(compression.codec());
        header.write(batch);
        let crc = crc32c(&batch[CRC_START..]);
        stamp_crc(batch, crc);
    }

    fn shape(
        &self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value_len: Option<usize>,
        headers: &[HeaderPair<'_>],
    ) -> Result<RecordShape, BatchError> {
        let base = if self.count == 0 { timestamp } else { self.base_timestamp };
        let timestamp_delta = timestamp.checked_sub(base).ok_or(BatchError::TimestampRange { base, timestamp })?;
        RecordShape::new(timestamp_delta, self.count as i32, key.map(<[u8]>::len), value_len, headers)
    }
}

/// The header of a new uncompressed batch of `total_len` bytes without a producer; the CRC is not yet known.
pub(super) fn new_header(total_len: usize, count: u32, base_timestamp: Timestamp, max_timestamp: Timestamp) -> BatchHeader {
    BatchHeader {
        base_offset: 0,
        batch_length: (total_len - LENGTH_PREFIX) as i32,
        leader_epoch: -1,
        magic: BATCH_MAGIC,
        crc: 0,
        attributes: 0,
        last_offset_delta: count as i32 - 1,
        base_timestamp,
        max_timestamp,
        producer_id: NO_PRODUCER_ID,
        producer_epoch: NO_PRODUCER_EPOCH,
        base_sequence: NO_SEQUENCE,
        record_count: count as i32,
    }
}

/// The lengths of a record's fields, before any is written: the record's own length comes first.
pub(super) struct RecordShape {
    body_len: i32,
    timestamp_delta: i64,
    offset_delta: i32,
    key_len: i32,
    value_len: i32,
}

impl RecordShape {
    /// # Errors
    /// [`BatchError::TooLarge`] when the record alone is over [`MAX_MESSAGE_BYTES`].
    pub(super) fn new(
        timestamp_delta: i64,
        offset_delta: i32,
        key_len: Option<usize>,
        value_len: Option<usize>,
        headers: &[HeaderPair<'_>],
    ) -> Result<RecordShape, BatchError> {
        let header_bytes = headers.iter().fold(0usize, |sum, (name, value)| sum.saturating_add(header_len(name, *value)));
        let variable = key_len.unwrap_or(0).saturating_add(value_len.unwrap_or(0)).saturating_add(header_bytes);
        if variable > MAX_MESSAGE_BYTES {
            return Err(BatchError::TooLarge { max: MAX_MESSAGE_BYTES, actual: variable });
        }
        // All below MAX_MESSAGE_BYTES, so they fit an i32.
        let signed = |len: Option<usize>| len.map_or(-1, |len| len as i32);
        let (key_len, value_len) = (signed(key_len), signed(value_len));
        let fixed = 1 + varlong_len(timestamp_delta) + varint_len(offset_delta) + varint_len(key_len) + varint_len(value_len);
        let body_len = fixed + varint_len(headers.len() as i32) + variable;
        Ok(RecordShape { body_len: body_len as i32, timestamp_delta, offset_delta, key_len, value_len })
    }

    /// Bytes of the whole record.
    pub(super) fn whole_len(&self) -> usize {
        varint_len(self.body_len) + self.body_len as usize
    }

    /// Writes everything before the value's bytes.
    pub(super) fn write_until_value(&self, out: &mut BytesMut, key: Option<&[u8]>) {
        let mut fields = [0; MAX_VARINT + 1 + MAX_VARLONG + 2 * MAX_VARINT];
        let mut at = write_varint(&mut fields, self.body_len);
        at += 1; // attributes, all zero
        at += write_varlong(&mut fields[at..], self.timestamp_delta);
        at += write_varint(&mut fields[at..], self.offset_delta);
        at += write_varint(&mut fields[at..], self.key_len);
        out.extend_from_slice(&fields[..at]);
        out.extend_from_slice(key.unwrap_or_default());
        put_varint(out, self.value_len);
    }
}

/// Writes the header count and the headers: everything after the value's bytes.
pub(super) fn write_headers(out: &mut BytesMut, headers: &[HeaderPair<'_>]) {
    put_varint(out, headers.len() as i32);
    for (name, value) in headers {
        put_varint(out, name.len() as i32);
        out.extend_from_slice(name.as_bytes());
        put_varint(out, value.map_or(-1, |v| v.len() as i32));
        out.extend_from_slice(value.unwrap_or_default());
    }
}

fn header_len(name: &str, value: Option<&[u8]>) -> usize {
    let value_len = value.map_or(0, <[u8]>::len);
    // Beyond an i32 the sum of the plain lengths alone is refused, whatever the varints say.
    let prefixes = varint_len(name.len() as i32) + varint_len(value.map_or(-1, |v| v.len() as i32));
    prefixes.saturating_add(name.len()).saturating_add(value_len)
}

fn put_varint(out: &mut BytesMut, value: i32) {
    let mut bytes = [0; MAX_VARINT];
    let len = write_varint(&mut bytes, value);
    out.extend_from_slice(&bytes[..len]);
}
