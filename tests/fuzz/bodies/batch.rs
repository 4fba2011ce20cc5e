//! Any bytes as record batches: nothing panics, nothing is unpacked beyond the limit, and the ways of reading one batch agree.
//!
//! The body of a fuzz target, and of a short random test.

use bytes::Bytes;
use corelane::batch::{
    BATCH_MAGIC, BatchBuilder, BatchError, BatchHeader, BatchIter, CRC_START, Compression, HEADER_LEN, LENGTH_PREFIX, Record, RecordHead,
    RecordRef, check_ingress, check_ingress_computed, check_stored, check_stored_slices, decode, split_batch, stamp_crc,
    stamp_log_append_time, stamp_log_append_time_head,
};
use corelane::checksum::crc32c;

/// Most bytes that a batch may be, and may unpack to.
const LIMIT: usize = 1 << 20;

/// Reads `data` as it is, and again with length, magic and CRC put right, so that what lies behind those checks is reached.
pub fn run(data: &[u8]) {
    read(data);
    if data.len() >= HEADER_LEN {
        let mut batch = data.to_vec();
        batch[8..12].copy_from_slice(&((data.len() - LENGTH_PREFIX) as i32).to_be_bytes());
        batch[16] = BATCH_MAGIC as u8;
        let crc = crc32c(&batch[CRC_START..]);
        stamp_crc(&mut batch, crc);
        read(&batch);
    }
}

fn read(bytes: &[u8]) {
    check_the_walk(bytes);
    let stored = check_stored(bytes);
    for cut in [bytes.len() / 3, bytes.len().min(30), bytes.len()] {
        assert_eq!(check_stored_slices(&[&bytes[..cut], &bytes[cut..]]), stored, "the same in one piece and in two");
    }
    if let Ok(header) = check_ingress(bytes, LIMIT) {
        let computed = crc32c(&bytes[CRC_START..]);
        assert_eq!(check_ingress_computed(&bytes[..HEADER_LEN], bytes.len(), LIMIT, computed), Ok(header));
        assert_eq!(stored.is_ok(), header.base_offset >= 0, "what a client may send may be stored, once it has an offset");
    }
    if let Ok(header) = stored {
        let batch = &bytes[..header.total_len()];
        check_log_append_time(batch);
        read_records(&header, batch);
    }
}

/// Batches one after the other, borrowed and owned.
fn check_the_walk(bytes: &[u8]) {
    let mut payload = Bytes::copy_from_slice(bytes);
    for walked in BatchIter::new(bytes) {
        match walked {
            Ok((header, batch)) => {
                assert_eq!(batch.len(), header.total_len());
                assert_eq!(split_batch(&mut payload), Ok(Some(Bytes::copy_from_slice(batch))));
            }
            Err(e) => assert_eq!(split_batch(&mut payload), Err(e)),
        }
    }
}

fn check_log_append_time(batch: &[u8]) {
    let (mut whole, mut head) = (batch.to_vec(), batch.to_vec());
    stamp_log_append_time(&mut whole, 1234);
    stamp_log_append_time_head(&mut head[..HEADER_LEN], 1234).expect("the header was read before");
    assert_eq!(whole, head);
    assert!(check_stored(&whole).is_ok_and(|h| h.log_append_time() && h.max_timestamp == 1234));
}

fn read_records(header: &BatchHeader, batch: &[u8]) {
    let head = RecordHead::parse(&batch[..batch.len() / 2]);
    let set = match decode(Bytes::copy_from_slice(batch), LIMIT) {
        Ok(set) => set,
        Err(e) => {
            assert!(matches!(e, BatchError::Decompress { .. } | BatchError::DecompressedTooLarge { .. }), "{e}");
            return;
        }
    };
    assert!(set.block_len() <= LIMIT || header.compression() == Ok(Compression::None));
    let borrowed: Vec<Result<RecordRef<'_>, BatchError>> = set.records().collect();
    let owned: Vec<Result<Record, BatchError>> = set.clone().into_iter().collect();
    assert_eq!(owned.len(), borrowed.len());
    for (owned, borrowed) in owned.iter().zip(&borrowed) {
        assert!(same(owned, borrowed));
    }
    if let (Ok(Some(head)), Some(Ok(first))) = (head, borrowed.first()) {
        assert_eq!((head.offset, head.timestamp), (first.offset, first.timestamp));
        assert_eq!(head.value.map(|range| &batch[range]), first.value);
        assert_eq!(head.key.map(|range| &batch[range]), first.key);
    }
    if let Ok(records) = borrowed.into_iter().collect::<Result<Vec<_>, _>>() {
        assert_eq!(records.len(), header.record_count as usize);
        assert!(records.windows(2).all(|pair| pair[0].offset < pair[1].offset));
        assert!(records.iter().all(|r| (header.base_offset..=header.last_offset()).contains(&r.offset)));
        rebuild(header, &records);
    }
}

fn same(owned: &Result<Record, BatchError>, borrowed: &Result<RecordRef<'_>, BatchError>) -> bool {
    match (owned, borrowed) {
        (Ok(o), Ok(b)) => {
            (o.offset, o.timestamp) == (b.offset, b.timestamp)
                && o.key.as_deref() == b.key
                && o.value.as_deref() == b.value
                && o.headers.iter().eq(b.headers.iter())
                && b.headers.iter().count() == b.headers.len()
        }
        (Err(o), Err(b)) => o == b,
        _ => false,
    }
}

/// Records that were read can be built again, and are the same then.
fn rebuild(header: &BatchHeader, records: &[RecordRef<'_>]) {
    let codec = header.compression().expect("a stored batch has a codec");
    let mut builder = BatchBuilder::new(codec);
    for record in records {
        let names: Result<Vec<_>, _> = record.headers.iter().map(|h| h.name_str().map(|name| (name, h.value))).collect();
        let Ok(headers) = names else { return };
        if builder.append(record.timestamp, record.key, record.value, &headers).is_err() {
            return;
        }
    }
    if builder.is_empty() {
        return;
    }
    let set = decode(builder.build(), usize::MAX).expect("a built batch");
    let again: Vec<_> = set.records().map(|r| r.expect("a built record")).collect();
    assert_eq!(again.len(), records.len());
    for (again, record) in again.iter().zip(records) {
        assert_eq!(
            (again.timestamp, again.key, again.value, again.headers.len()),
            (record.timestamp, record.key, record.value, record.headers.len())
        );
        assert!(again.headers.iter().eq(record.headers.iter()));
    }
}
