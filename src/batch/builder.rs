//! Making batches, record by record.

use bytes::{Bytes, BytesMut};

use super::varint::{MAX_VARINT, MAX_VARLONG, varint_len, varlong_len, write_varint, write_varlong};
use super::{BATCH_MAGIC, BatchError, BatchHeader, CRC_START, Compression, HEADER_LEN, LENGTH_PREFIX};
use super::{NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, stamp_crc};
use crate::checksum::crc32c;
use crate::limits::MAX_MESSAGE_BYTES;
use crate::types::{ProducerEpoch, ProducerId, Timestamp};

const _: () = assert!(MAX_MESSAGE_BYTES < i32::MAX as usize, "every length of a batch fits its field");

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

    /// Header room and compressed block, where that is shorter. A codec that fails in memory leaves the records uncompressed,
    /// which is always right.
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::batch::{Records, check_ingress, decode};

    const LIMIT: usize = 1 << 24;

    #[test]
    fn the_length_is_known_before_a_record_is_added() {
        let mut builder = BatchBuilder::new(Compression::None);
        for len in [0, 1, 62, 63, 64, 8000, 8192, 70_000] {
            let (key, value) = (vec![1; len / 2], vec![2; len]);
            let headers: [HeaderPair<'_>; 2] = [("name", Some(&value)), ("none", None)];
            let expected = builder.len_after(len as i64, Some(&key), Some(&value), &headers);
            builder.append(len as i64, Some(&key), Some(&value), &headers).unwrap();
            assert_eq!(builder.estimated_len(), expected);
        }
        assert_eq!((builder.count(), builder.base_timestamp()), (8, 0));
        let len = builder.estimated_len();
        assert_eq!(builder.build().len(), len);
    }

    #[test]
    fn what_does_not_fit_leaves_the_batch_as_it_was() {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.append(i64::MAX, None, None, &[]).unwrap();
        let len = builder.estimated_len();
        assert_eq!(builder.append(-2, None, None, &[]), Err(BatchError::TimestampRange { base: i64::MAX, timestamp: -2 }));
        assert_eq!(builder.len_after(-2, None, None, &[]), usize::MAX);
        // Never touched, so never resident.
        let huge = vec![0; MAX_MESSAGE_BYTES - 60];
        assert!(matches!(builder.append(0, None, Some(&huge), &[]), Err(BatchError::TooLarge { .. })));
        assert!(matches!(builder.append(0, Some(&huge), Some(&huge), &[("h", Some(&huge))]), Err(BatchError::TooLarge { .. })));
        assert_eq!((builder.count(), builder.estimated_len()), (1, len));
        assert!(check_ingress(&builder.build(), LIMIT).is_ok());
    }

    #[test]
    fn what_does_not_compress_stays_as_it_is() {
        let noise: Vec<u8> = (0..2000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for codec in Compression::ALL {
            let mut builder = BatchBuilder::new(codec);
            builder.append(0, None, Some(&noise[..8]), &[]).unwrap();
            let plain = builder.estimated_len();
            let batch = builder.build();
            assert_eq!(batch.len(), plain);
            assert_eq!(check_ingress(&batch, LIMIT).unwrap().compression(), Ok(Compression::None));
        }
    }

    #[test]
    fn an_uncompressed_batch_gives_its_allocation_back() {
        let buffer = BytesMut::with_capacity(4096);
        let place = buffer.as_ptr();
        let mut builder = BatchBuilder::with_buffer(Compression::None, buffer);
        builder.append(0, Some(b"k"), Some(b"v"), &[]).unwrap();
        let batch = builder.build();
        assert_eq!(batch.as_ptr(), place);
        let again = batch.try_into_mut().expect("the only owner");
        let mut builder = BatchBuilder::with_buffer(Compression::None, again);
        assert!(builder.is_empty());
        builder.append(0, None, Some(&[7; 1000]), &[]).unwrap();
        assert_eq!(builder.build().as_ptr(), place);
    }

    #[test]
    #[should_panic(expected = "a batch has records")]
    fn an_empty_batch_is_our_own_mistake() {
        let _ = BatchBuilder::new(Compression::None).build();
    }

    type Drawn = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

    fn drawn_records() -> impl Strategy<Value = Vec<Drawn>> {
        let bytes = || option::of(vec(any::<u8>(), 0..200));
        let headers = vec(("[a-zß]{0,5}", bytes()), 0..4);
        vec((-1_000_000_000_000i64..2_000_000_000_000, bytes(), bytes(), headers), 1..40)
    }

    proptest! {
        #[test]
        fn what_is_built_is_read(records in drawn_records(), codec in 0..5u8, producer in option::of((0..i64::MAX, 0..i16::MAX, 0..i32::MAX))) {
            let codec = Compression::from_codec(codec).unwrap();
            let mut builder = BatchBuilder::new(codec);
            for (timestamp, key, value, headers) in &records {
                let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
                let expected = builder.len_after(*timestamp, key.as_deref(), value.as_deref(), &headers);
                builder.append(*timestamp, key.as_deref(), value.as_deref(), &headers).unwrap();
                prop_assert_eq!(builder.estimated_len(), expected);
            }
            if let Some((id, epoch, sequence)) = producer {
                builder.set_producer(id, epoch, sequence);
            }
            let batch = builder.build();
            let header = check_ingress(&batch, LIMIT).unwrap();
            prop_assert_eq!(header.has_producer(), producer.is_some());
            prop_assert_eq!(header.record_count as usize, records.len());
            prop_assert_eq!(Some(header.max_timestamp), records.iter().map(|r| r.0).max());
            prop_assert_eq!(Records::of_batch(&batch).is_ok(), header.compression() == Ok(Compression::None));
            let set = decode(batch, LIMIT).unwrap();
            let read: Vec<Drawn> = set.records().map(|r| r.unwrap()).map(|r| {
                let headers = r.headers.iter().map(|h| (h.name_str().unwrap().to_owned(), h.value.map(<[u8]>::to_vec))).collect();
                (r.timestamp, r.key.map(<[u8]>::to_vec), r.value.map(<[u8]>::to_vec), headers)
            }).collect();
            prop_assert_eq!(read, records);
        }
    }
}
