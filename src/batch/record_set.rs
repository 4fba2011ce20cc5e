//! The records of one batch, owned: keys and values are slices of the bytes that came in, or of the block they were compressed in.

use bytes::Bytes;

use super::record::Walk;
use super::{BatchError, BatchHeader, Compression, HEADER_LEN, HeaderRef, Headers, Records, check_stored};
use crate::types::{Offset, Timestamp};

/// A record whose parts share the ownership of their batch's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its offset in the partition.
    pub offset: Offset,
    /// The producer's timestamp, or the broker's where the batch has LogAppendTime.
    pub timestamp: Timestamp,
    /// Its key, if it has one.
    pub key: Option<Bytes>,
    /// Its value; without one it is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers.
    pub headers: RecordHeaders,
}

/// The headers of a [`Record`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordHeaders {
    count: u32,
    bytes: Bytes,
}

impl RecordHeaders {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// One after the other, borrowed.
    pub fn iter(&self) -> impl Iterator<Item = HeaderRef<'_>> {
        self.borrowed().iter()
    }

    /// As those of a borrowed record.
    #[must_use]
    pub fn borrowed(&self) -> Headers<'_> {
        Headers::new(self.count, &self.bytes)
    }
}

/// One checked batch, decompressed once at most.
#[derive(Clone, Debug)]
pub struct RecordSet {
    header: BatchHeader,
    block: Bytes,
}

/// Checks the batch at the start of `batch` ([`check_stored`]) and makes its records readable; bytes after it are ignored.
///
/// An uncompressed batch is not copied. A compressed one is decompressed to at most `limit` bytes.
///
/// # Errors
/// As [`check_stored`] and [`Compression::decompress`]. Malformed records are found by the iterators.
pub fn decode(batch: Bytes, limit: usize) -> Result<RecordSet, BatchError> {
    let header = check_stored(&batch)?;
    let block = batch.slice(HEADER_LEN..header.total_len());
    let block = match header.compression()? {
        Compression::None => block,
        // Compaction may leave a batch with no records, and with no block.
        _ if header.record_count == 0 && block.is_empty() => block,
        codec => Bytes::from(codec.decompress(&block, limit)?),
    };
    Ok(RecordSet { header, block })
}

impl RecordSet {
    /// The batch's header.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Bytes of the uncompressed block.
    #[must_use]
    pub fn block_len(&self) -> usize {
        self.block.len()
    }

    /// The records, borrowed.
    #[must_use]
    pub fn records(&self) -> Records<'_> {
        Records::new(&self.header, &self.block)
    }
}

impl IntoIterator for RecordSet {
    type Item = Result<Record, BatchError>;
    type IntoIter = RecordsBytes;

    /// The records, owned.
    fn into_iter(self) -> RecordsBytes {
        RecordsBytes { walk: Walk::new(&self.header), block: self.block }
    }
}

/// The records of one batch, in order, each owning its share; checks as [`Records`] does.
#[derive(Clone, Debug)]
pub struct RecordsBytes {
    walk: Walk,
    block: Bytes,
}

impl Iterator for RecordsBytes {
    type Item = Result<Record, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let parsed = match self.walk.advance(&self.block)? {
            Ok(parsed) => parsed,
            Err(e) => return Some(Err(e)),
        };
        let headers = if parsed.header_count == 0 {
            RecordHeaders::default()
        } else {
            RecordHeaders { count: parsed.header_count, bytes: self.block.slice(parsed.headers) }
        };
        Some(Ok(Record {
            offset: parsed.offset,
            timestamp: parsed.timestamp,
            key: parsed.key.map(|range| self.block.slice(range)),
            value: parsed.value.map(|range| self.block.slice(range)),
            headers,
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.walk.remaining().saturating_add(1)))
    }
}
