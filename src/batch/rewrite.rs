//! Leaving records out of a stored batch: what a cleaning does to it, and what it needs from those that come in.
//!
//! What is left keeps its offsets and timestamps; base offset, last offset delta, producer, epoch and sequence of the batch stay, so that it covers the same
//! offsets and the same sequence numbers as before. Records are copied as they are; only where the batch is given its delete horizon, which stands in the place of the base timestamp,
//! their timestamp deltas are written anew.

use super::header::{CODEC, CONTROL, DELETE_HORIZON, TRANSACTIONAL};
use super::record::Walk;
use super::varint::{MAX_VARINT, MAX_VARLONG, Reader, varlong_len, write_varint, write_varlong};
use super::{BatchError, BatchHeader, CRC_START, Compression, HEADER_LEN, LENGTH_PREFIX, RecordFault, Records, stamp_crc};
use crate::checksum::crc32c;
use crate::limits::MAX_MESSAGE_BYTES;
use crate::types::Timestamp;

/// Timestamp of a batch without records.
const NO_TIMESTAMP: Timestamp = -1;

/// Checks that every record of a batch, whose CRC was checked, has a key. The block of a compressed one may have `limit` bytes.
///
/// # Errors
/// [`BatchError::NoKey`]; those of decompression and of malformed records.
pub fn check_keys(header: &BatchHeader, block: &[u8], limit: usize) -> Result<(), BatchError> {
    let all_have_keys = |block: &[u8]| -> Result<(), BatchError> {
        for (index, record) in (0..).zip(Records::new(header, block)) {
            if record?.key.is_none() {
                return Err(BatchError::NoKey { index });
            }
        }
        Ok(())
    };
    match header.compression()? {
        Compression::None => all_have_keys(block),
        codec => all_have_keys(&codec.decompress(block, limit)?),
    }
}

/// The batch with the records that `keep` says, in their order. `block` is its uncompressed block. With a `horizon` it becomes the time at which its tombstones may go.
///
/// # Errors
/// When a record is malformed, has a timestamp too far from the horizon, or the result is longer than a batch may be.
pub fn keep_records(
    header: &BatchHeader,
    block: &[u8],
    horizon: Option<Timestamp>,
    keep: impl Fn(usize) -> bool,
) -> Result<Vec<u8>, BatchError> {
    let mut walk = Walk::new(header);
    let (mut kept, mut count, mut largest) = (Vec::with_capacity(block.len()), 0, NO_TIMESTAMP);
    for index in 0.. {
        let start = walk.position();
        let Some(parsed) = walk.advance(block) else { break };
        let timestamp = parsed?.timestamp;
        if !keep(index) {
            continue;
        }
        let record = &block[start..walk.position()];
        match horizon {
            None => kept.extend_from_slice(record),
            Some(base) => rebase(record, base, timestamp, &mut kept)?,
        }
        count += 1;
        largest = largest.max(timestamp);
    }
    let mut next = BatchHeader { record_count: count, ..*header };
    if !header.log_append_time() {
        next.max_timestamp = largest;
    }
    if let Some(horizon) = horizon {
        next.base_timestamp = horizon;
        next.attributes |= DELETE_HORIZON;
    }
    finish(next, &kept)
}

/// The batch without any record: it stands for its offsets, and for the last sequence number of its producer.
#[must_use]
pub fn emptied(header: &BatchHeader) -> Vec<u8> {
    let next = BatchHeader {
        attributes: header.attributes & (CONTROL | TRANSACTIONAL),
        base_timestamp: NO_TIMESTAMP,
        max_timestamp: NO_TIMESTAMP,
        record_count: 0,
        ..*header
    };
    seal(next, vec![0; HEADER_LEN])
}

/// A record with its timestamp told from another base.
fn rebase(record: &[u8], base: Timestamp, timestamp: Timestamp, out: &mut Vec<u8>) -> Result<(), BatchError> {
    let malformed = |fault: RecordFault| BatchError::Record { index: 0, position: 0, fault };
    let delta = timestamp.checked_sub(base).ok_or(BatchError::TimestampRange { base, timestamp })?;
    let mut reader = Reader::new(record, 0);
    reader.varint().map_err(malformed)?;
    let attributes = reader.take(1).map_err(malformed)?[0];
    reader.varlong().map_err(malformed)?;
    let rest = &record[reader.position()..];
    let mut front = [0; MAX_VARINT + 1 + MAX_VARLONG];
    let mut at = write_varint(&mut front, (1 + varlong_len(delta) + rest.len()) as i32);
    front[at] = attributes;
    at += 1;
    at += write_varlong(&mut front[at..], delta);
    out.extend_from_slice(&front[..at]);
    out.extend_from_slice(rest);
    Ok(())
}

/// Compresses the block with the batch's codec; where that makes it no shorter, it stays as it is and the batch says so.
fn finish(mut header: BatchHeader, block: &[u8]) -> Result<Vec<u8>, BatchError> {
    let codec = header.compression()?;
    let mut batch = Vec::with_capacity(HEADER_LEN + block.len());
    batch.resize(HEADER_LEN, 0);
    let is_packed = codec != Compression::None && codec.compress(block, &mut batch).is_ok() && batch.len() < HEADER_LEN + block.len();
    if !is_packed {
        header.attributes &= !CODEC;
        batch.truncate(HEADER_LEN);
        batch.extend_from_slice(block);
    }
    if batch.len() > MAX_MESSAGE_BYTES {
        return Err(BatchError::TooLarge { max: MAX_MESSAGE_BYTES, actual: batch.len() });
    }
    Ok(seal(header, batch))
}

/// Writes the header, with length and CRC as they are now.
fn seal(mut header: BatchHeader, mut batch: Vec<u8>) -> Vec<u8> {
    header.batch_length = (batch.len() - LENGTH_PREFIX) as i32;
    header.write(&mut batch);
    let crc = crc32c(&batch[CRC_START..]);
    stamp_crc(&mut batch, crc);
    batch
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::batch::{BatchBuilder, Record, check_stored, decode, stamp, stamp_log_append_time};

    const LIMIT: usize = 1 << 20;

    /// Six records, the even ones without a value.
    fn batch(codec: Compression, keyless: Option<usize>) -> Vec<u8> {
        let mut builder = BatchBuilder::new(codec);
        for n in 0..6 {
            let key = format!("key {n}");
            let key = (keyless != Some(n)).then_some(key.as_bytes());
            let value = vec![n as u8; 100 * n];
            builder.append(1_000_000 - n as i64, key, (n % 2 == 1).then_some(&value[..]), &[("h", Some(&[n as u8]))]).unwrap();
        }
        builder.set_producer(7, 1, 30);
        let mut batch = builder.build().to_vec();
        stamp(&mut batch, 500, 3);
        batch
    }

    fn records(batch: &[u8]) -> Vec<Record> {
        decode(Bytes::copy_from_slice(batch), LIMIT).unwrap().into_iter().map(Result::unwrap).collect()
    }

    fn block_of(batch: &[u8]) -> (BatchHeader, Vec<u8>) {
        let header = check_stored(batch).unwrap();
        (header, header.compression().unwrap().decompress(&batch[HEADER_LEN..], LIMIT).unwrap())
    }

    #[test]
    fn what_is_kept_is_as_it_was() {
        for codec in Compression::ALL {
            let before = batch(codec, None);
            let (header, block) = block_of(&before);
            for mask in 1..64_usize {
                for horizon in [None, Some(2_000_000_000_000)] {
                    let keep = |index: usize| mask & (1 << index) != 0;
                    let after = keep_records(&header, &block, horizon, keep).unwrap();
                    let kept = check_stored(&after).unwrap();
                    let wanted: Vec<_> = records(&before).into_iter().enumerate().filter(|(n, _)| keep(*n)).map(|(_, r)| r).collect();
                    assert_eq!(records(&after), wanted, "{codec:?} {mask:b} {horizon:?}");
                    assert_eq!(kept.delete_horizon(), horizon);
                    let expected = BatchHeader {
                        batch_length: kept.batch_length,
                        crc: kept.crc,
                        attributes: kept.attributes,
                        base_timestamp: horizon.unwrap_or(header.base_timestamp),
                        max_timestamp: wanted.iter().map(|record| record.timestamp).max().unwrap(),
                        record_count: wanted.len() as i32,
                        ..header
                    };
                    assert_eq!(kept, expected, "offsets, epoch and producer stay");
                }
            }
            let whole = keep_records(&header, &block, None, |_| true).unwrap();
            assert_eq!(records(&whole), records(&before));
        }
    }

    #[test]
    fn a_second_horizon_is_told_from_the_first() {
        let (header, block) = block_of(&batch(Compression::None, None));
        let once = keep_records(&header, &block, Some(5), |n| n < 4).unwrap();
        let (header, block) = block_of(&once);
        let twice = keep_records(&header, &block, Some(9_000_000_000_000), |n| n > 0).unwrap();
        let times: Vec<_> = records(&twice).iter().map(|record| (record.offset, record.timestamp)).collect();
        assert_eq!(times, [(501, 999_999), (502, 999_998), (503, 999_997)]);
        assert!(matches!(keep_records(&header, &block, Some(i64::MIN), |_| true), Err(BatchError::TimestampRange { .. })));
    }

    #[test]
    fn the_brokers_time_stays() {
        let mut stamped = batch(Compression::None, None);
        stamp_log_append_time(&mut stamped, 77_000_000);
        let (header, block) = block_of(&stamped);
        let after = keep_records(&header, &block, Some(80_000_000), |n| n == 3).unwrap();
        assert_eq!(check_stored(&after).unwrap().append_time(), 77_000_000);
        assert_eq!(records(&after)[0].timestamp, 77_000_000);
    }

    #[test]
    fn an_empty_batch_covers_its_offsets() {
        for codec in Compression::ALL {
            let (header, _) = block_of(&batch(codec, None));
            let after = emptied(&header);
            let empty = check_stored(&after).unwrap();
            assert_eq!((empty.base_offset, empty.next_offset(), empty.record_count), (500, 506, 0));
            assert_eq!((empty.producer_id, empty.last_sequence()), (7, 35));
            assert!(records(&after).is_empty());
        }
    }

    #[test]
    fn a_record_without_a_key_is_found_in_every_codec() {
        for codec in Compression::ALL {
            for (keyless, expected) in [(None, Ok(())), (Some(4), Err(BatchError::NoKey { index: 4 }))] {
                let batch = batch(codec, keyless);
                let header = check_stored(&batch).unwrap();
                assert_eq!(check_keys(&header, &batch[HEADER_LEN..], LIMIT), expected, "{codec:?}");
            }
            if codec != Compression::None {
                let batch = batch(codec, None);
                let header = check_stored(&batch).unwrap();
                assert!(matches!(check_keys(&header, &batch[HEADER_LEN..], 100), Err(BatchError::DecompressedTooLarge { .. })));
            }
        }
    }
}
