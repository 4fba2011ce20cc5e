//! The two validations, and the walk over batches that lie one after the other.

use bytes::Bytes;

use super::header::{CONTROL, TRANSACTIONAL};
use super::{BatchError, BatchHeader, CRC_START, HEADER_LEN};
use crate::checksum::{Crc32c, crc32c};

/// The attribute bits that a client may set: the codec.
const INGRESS_ATTRIBUTES: i16 = 0b111;

/// Checks that `bytes` are exactly one batch that a client may send, of at most `max_bytes`.
///
/// Any base offset and leader epoch pass: the broker overwrites them.
///
/// # Errors
/// The first of: too short, wrong magic, impossible length or offsets; over the limit; more or less than one batch; wrong CRC;
/// unknown codec; control, transactional or other attribute bits; count other than `last offset delta + 1`; a producer id without
/// epoch and sequence.
pub fn check_ingress(bytes: &[u8], max_bytes: usize) -> Result<BatchHeader, BatchError> {
    let header = check_size(bytes, bytes.len(), max_bytes)?;
    header.check_crc(crc32c(&bytes[CRC_START..]))?;
    check_ingress_fields(&header)?;
    Ok(header)
}

/// As [`check_ingress`] for a batch of `whole_len` bytes of which only the head is at hand, its CRC-32C (of bytes 21 to the end)
/// `computed` while it came in.
///
/// # Errors
/// As [`check_ingress`].
pub fn check_ingress_computed(head: &[u8], whole_len: usize, max_bytes: usize, computed: u32) -> Result<BatchHeader, BatchError> {
    let header = check_size(head, whole_len, max_bytes)?;
    header.check_crc(computed)?;
    check_ingress_fields(&header)?;
    Ok(header)
}

/// As [`check_ingress`] without the CRC: lets a large batch be refused when only its first 61 bytes have come.
///
/// What passes here must still pass [`BatchHeader::check_crc`].
///
/// # Errors
/// As [`check_ingress`], but for the CRC.
pub fn check_ingress_head(head: &[u8], whole_len: usize, max_bytes: usize) -> Result<BatchHeader, BatchError> {
    let header = check_size(head, whole_len, max_bytes)?;
    check_ingress_fields(&header)?;
    Ok(header)
}

fn check_size(head: &[u8], whole_len: usize, max_bytes: usize) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::parse(head)?;
    let batch = header.total_len();
    if batch > max_bytes {
        return Err(BatchError::TooLarge { max: max_bytes, actual: batch });
    }
    if batch > whole_len {
        return Err(BatchError::Truncated { needed: batch, available: whole_len });
    }
    if batch < whole_len {
        return Err(BatchError::NotOneBatch { batch, available: whole_len });
    }
    Ok(header)
}

fn check_ingress_fields(header: &BatchHeader) -> Result<(), BatchError> {
    header.compression()?;
    if header.is_control() {
        return Err(BatchError::Control);
    }
    if header.is_transactional() {
        return Err(BatchError::Transactional);
    }
    let refused = header.attributes & !(INGRESS_ATTRIBUTES | CONTROL | TRANSACTIONAL);
    if refused != 0 {
        return Err(BatchError::Attributes { attributes: header.attributes, refused });
    }
    if header.record_count.checked_sub(1) != Some(header.last_offset_delta) {
        return Err(BatchError::Count { count: header.record_count, last_offset_delta: header.last_offset_delta });
    }
    // Without a producer id, epoch and sequence mean nothing, and clients differ in what they put there.
    let complete = header.producer_epoch >= 0 && header.base_sequence >= 0;
    if header.producer_id < super::NO_PRODUCER_ID || (header.has_producer() && !complete) {
        return Err(BatchError::Producer { id: header.producer_id, epoch: header.producer_epoch, base_sequence: header.base_sequence });
    }
    Ok(())
}

/// Checks the batch at the start of `bytes` as the log may hold it: CRC, a range of offsets, gaps allowed.
///
/// More bytes may follow: [`BatchHeader::total_len`] says where.
///
/// # Errors
/// [`BatchError`] of header, length, CRC, offsets, count or codec.
pub fn check_stored(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    check_stored_slices(&[bytes])
}

/// As [`check_stored`] for a batch that lies in several pieces, one after the other.
///
/// # Errors
/// As [`check_stored`].
pub fn check_stored_slices(slices: &[&[u8]]) -> Result<BatchHeader, BatchError> {
    let header = parse_slices(slices)?;
    let available = slices.iter().map(|s| s.len()).sum();
    let total = header.total_len();
    if total > available {
        return Err(BatchError::Truncated { needed: total, available });
    }
    header.check_crc(crc_of_slices(slices, total))?;
    check_stored_fields(&header)?;
    Ok(header)
}

fn parse_slices(slices: &[&[u8]]) -> Result<BatchHeader, BatchError> {
    if let Some(first) = slices.first()
        && first.len() >= HEADER_LEN
    {
        return BatchHeader::parse(first);
    }
    let mut head = [0; HEADER_LEN];
    let mut filled = 0;
    for slice in slices {
        let take = slice.len().min(HEADER_LEN - filled);
        head[filled..filled + take].copy_from_slice(&slice[..take]);
        filled += take;
    }
    BatchHeader::parse(&head[..filled])
}

/// CRC-32C of the bytes from 21 to `total` of the slices together.
fn crc_of_slices(slices: &[&[u8]], total: usize) -> u32 {
    if let [only] = slices {
        return crc32c(&only[CRC_START..total]);
    }
    let mut crc = Crc32c::new();
    let mut start = 0;
    for slice in slices {
        let from = CRC_START.saturating_sub(start).min(slice.len());
        let to = (total - start).min(slice.len());
        if from < to {
            crc.update(&slice[from..to]);
        }
        start = (start + slice.len()).min(total);
    }
    crc.finish()
}

pub(crate) fn check_stored_fields(header: &BatchHeader) -> Result<(), BatchError> {
    header.compression()?;
    if header.base_offset < 0 {
        return Err(BatchError::OffsetRange { base_offset: header.base_offset, last_offset_delta: header.last_offset_delta });
    }
    let most = i64::from(header.last_offset_delta) + 1;
    if header.record_count < 0 || i64::from(header.record_count) > most {
        return Err(BatchError::Count { count: header.record_count, last_offset_delta: header.last_offset_delta });
    }
    Ok(())
}

/// The batches that lie one after the other in some bytes, by their headers; CRCs are not looked at.
///
/// Ends after the first error.
#[derive(Clone, Debug)]
pub struct BatchIter<'a> {
    rest: &'a [u8],
}

impl<'a> BatchIter<'a> {
    /// Over `bytes`, which start with a batch and end with one.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> BatchIter<'a> {
        BatchIter { rest: bytes }
    }

    /// Bytes not yet given out.
    #[must_use]
    pub fn remaining(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for BatchIter<'a> {
    type Item = Result<(BatchHeader, &'a [u8]), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let header = match whole_batch(self.rest) {
            Ok(header) => header,
            Err(e) => {
                self.rest = &[];
                return Some(Err(e));
            }
        };
        let (batch, rest) = self.rest.split_at(header.total_len());
        self.rest = rest;
        Some(Ok((header, batch)))
    }
}

/// Splits the first batch off `payload`, by its header; `None` when nothing is left. The CRC is not looked at.
///
/// # Errors
/// As [`BatchHeader::parse`], and [`BatchError::Truncated`]. `payload` is unchanged then.
pub fn split_batch(payload: &mut Bytes) -> Result<Option<Bytes>, BatchError> {
    if payload.is_empty() {
        return Ok(None);
    }
    let header = whole_batch(payload)?;
    Ok(Some(payload.split_to(header.total_len())))
}

fn whole_batch(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::parse(bytes)?;
    let needed = header.total_len();
    if needed > bytes.len() {
        return Err(BatchError::Truncated { needed, available: bytes.len() });
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, Compression, stamp};

    fn batch(base_offset: i64, records: usize) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Compression::None);
        for i in 0..records {
            builder.append(1000, None, Some(&[i as u8; 10]), &[]).unwrap();
        }
        let mut batch = builder.build().to_vec();
        stamp(&mut batch, base_offset, 1);
        batch
    }

    #[test]
    fn the_ways_of_ingress_agree() {
        let whole = batch(0, 4);
        let (head, crc) = (&whole[..HEADER_LEN], crc32c(&whole[CRC_START..]));
        let header = check_ingress(&whole, whole.len()).unwrap();
        assert_eq!(check_ingress_head(head, whole.len(), whole.len()), Ok(header));
        assert_eq!(check_ingress_computed(head, whole.len(), whole.len(), crc), Ok(header));
        assert_eq!(
            check_ingress_computed(head, whole.len(), whole.len(), crc ^ 1),
            Err(BatchError::Crc { stored: crc, computed: crc ^ 1 })
        );
        let max = whole.len() - 1;
        assert_eq!(check_ingress_head(head, whole.len(), max), Err(BatchError::TooLarge { max, actual: whole.len() }));
    }

    #[test]
    fn a_batch_in_pieces_checks_wherever_it_is_cut() {
        let mut bytes = batch(9, 2);
        let header = check_stored(&bytes).unwrap();
        bytes.extend_from_slice(b"the next batch");
        for first in 0..=bytes.len() {
            for second in (first..=bytes.len()).step_by(7) {
                let slices = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(check_stored_slices(&slices), Ok(header), "cut at {first} and {second}");
            }
        }
        let last = header.total_len() - 1;
        let short = [&bytes[..30], &bytes[30..last]];
        assert_eq!(check_stored_slices(&short), Err(BatchError::Truncated { needed: last + 1, available: last }));
        assert_eq!(check_stored_slices(&[]), Err(BatchError::Truncated { needed: HEADER_LEN, available: 0 }));
        bytes[last] ^= 1;
        for first in 0..=last {
            assert!(matches!(check_stored_slices(&[&bytes[..first], &bytes[first..]]), Err(BatchError::Crc { .. })));
        }
    }

    #[test]
    fn batches_are_walked_one_by_one() {
        let bytes = [batch(0, 1), batch(1, 3), batch(4, 2)].concat();
        let walked: Vec<_> =
            BatchIter::new(&bytes).map(|b| b.map(|(h, batch)| (h.base_offset, h.next_offset(), batch.len() == h.total_len()))).collect();
        assert_eq!(walked, [Ok((0, 1, true)), Ok((1, 4, true)), Ok((4, 6, true))]);

        let cut = &bytes[..bytes.len() - 1];
        let mut walk = BatchIter::new(cut);
        assert!(walk.by_ref().take(2).all(|b| b.is_ok()));
        assert!(matches!(walk.next(), Some(Err(BatchError::Truncated { .. }))));
        assert!(walk.next().is_none(), "nothing after an error");

        let mut payload = Bytes::copy_from_slice(cut);
        assert_eq!(split_batch(&mut payload).unwrap().unwrap(), batch(0, 1));
        assert_eq!(split_batch(&mut payload).unwrap().unwrap(), batch(1, 3));
        let left = payload.len();
        assert!(split_batch(&mut payload).is_err());
        assert_eq!(payload.len(), left);
        assert_eq!(split_batch(&mut Bytes::new()), Ok(None));
    }
}
