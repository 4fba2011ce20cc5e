//! What the broker writes into a batch.

use super::header::LOG_APPEND_TIME;
use super::{BatchError, BatchHeader, CRC_START, HEADER_LEN};
use crate::checksum::{crc32c, crc32c_exchange};
use crate::types::{LeaderEpoch, Offset, Timestamp};

/// Writes base offset and leader epoch, which the CRC does not cover. The first 16 bytes of the batch are enough.
///
/// # Panics
/// When there are fewer.
pub fn stamp(batch: &mut [u8], base_offset: Offset, leader_epoch: LeaderEpoch) {
    batch[0..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
}

/// Writes the CRC of a batch that was sent before its CRC was known (see [`super::StreamedBatch`]). The first 21 bytes are enough.
///
/// # Panics
/// When there are fewer.
pub fn stamp_crc(batch: &mut [u8], crc: u32) {
    batch[17..CRC_START].copy_from_slice(&crc.to_be_bytes());
}

/// Gives all records of a whole checked batch the broker's time: sets the LogAppendTime attribute and the max timestamp, and computes
/// the CRC anew.
///
/// `batch` is exactly one batch.
///
/// # Panics
/// When it is shorter than a header.
pub fn stamp_log_append_time(batch: &mut [u8], now: Timestamp) {
    write_log_append_time(batch, now);
    let crc = crc32c(&batch[CRC_START..]);
    stamp_crc(batch, crc);
}

/// As [`stamp_log_append_time`] with no more than the header at hand: the new CRC follows from the old one, whose batch must have been checked.
///
/// For batches whose body is already on its way to disk: it takes some 20 us whatever the length, as long as the other takes for half
/// a MiB.
///
/// # Errors
/// As [`BatchHeader::parse`].
pub fn stamp_log_append_time_head(head: &mut [u8], now: Timestamp) -> Result<(), BatchError> {
    let header = BatchHeader::parse(head)?;
    let old = crc32c(&head[CRC_START..HEADER_LEN]);
    write_log_append_time(head, now);
    let new = crc32c(&head[CRC_START..HEADER_LEN]);
    let body = (header.total_len() - HEADER_LEN) as u64;
    stamp_crc(head, crc32c_exchange(header.crc, old, new, body));
    Ok(())
}

fn write_log_append_time(head: &mut [u8], now: Timestamp) {
    let attributes = i16::from_be_bytes([head[21], head[22]]) | LOG_APPEND_TIME;
    head[21..23].copy_from_slice(&attributes.to_be_bytes());
    head[35..43].copy_from_slice(&now.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, Compression, check_stored};

    #[test]
    fn stamping_leaves_the_crc_right() {
        let mut builder = BatchBuilder::new(Compression::None);
        for i in 0..50 {
            builder.append(1000 + i, None, Some(&[i as u8; 100]), &[]).unwrap();
        }
        let mut batch = builder.build().to_vec();
        stamp(&mut batch[..16], 77, 3);
        let header = check_stored(&batch).unwrap();
        assert_eq!((header.base_offset, header.leader_epoch), (77, 3));

        let mut by_head = batch.clone();
        stamp_log_append_time(&mut batch, 5000);
        stamp_log_append_time_head(&mut by_head[..HEADER_LEN], 5000).unwrap();
        assert_eq!(by_head, batch);
        let stamped = check_stored(&batch).unwrap();
        assert_eq!(stamped, BatchHeader { attributes: LOG_APPEND_TIME, max_timestamp: 5000, crc: stamped.crc, ..header });
        assert_ne!(stamped.crc, header.crc);
    }
}
