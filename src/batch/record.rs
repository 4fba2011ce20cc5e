//! The records of one batch, read from its uncompressed block without copying.

use std::ops::Range;
use std::str::Utf8Error;

use super::varint::Reader;
use super::{BatchError, BatchHeader, Compression, HEADER_LEN, RecordFault, RecordHead};
use crate::types::{Offset, Timestamp};

/// A record that borrows from the block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Its offset in the partition.
    pub offset: Offset,
    /// The producer's timestamp, or the broker's where the batch has LogAppendTime.
    pub timestamp: Timestamp,
    /// Its key, if it has one.
    pub key: Option<&'a [u8]>,
    /// Its value; without one it is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: Headers<'a>,
}

/// One header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderRef<'a> {
    /// Its name, UTF-8 from well-behaved producers.
    pub name: &'a [u8],
    /// Its value, if it has one.
    pub value: Option<&'a [u8]>,
}

impl<'a> HeaderRef<'a> {
    /// Its name as text.
    ///
    /// # Errors
    /// When the producer sent something else than UTF-8.
    pub fn name_str(&self) -> Result<&'a str, Utf8Error> {
        std::str::from_utf8(self.name)
    }
}

/// The headers of a record, read when they are asked for. Their structure was checked with the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> Headers<'a> {
    pub(super) fn new(count: u32, bytes: &'a [u8]) -> Headers<'a> {
        Headers { count, bytes }
    }

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

    /// One after the other, in the producer's order; a name may come twice.
    pub fn iter(&self) -> impl Iterator<Item = HeaderRef<'a>> + use<'a> {
        let mut reader = Reader::new(self.bytes, 0);
        (0..self.count).map_while(move |_| read_header(&mut reader).ok())
    }

    /// The value of the last header of that name: `None` without such a header, `Some(None)` when it has no value.
    #[must_use]
    pub fn last(&self, name: &str) -> Option<Option<&'a [u8]>> {
        self.iter().filter(|h| h.name == name.as_bytes()).last().map(|h| h.value)
    }
}

/// Where the parts of a record are in its block.
pub(super) struct Parsed {
    pub offset: Offset,
    pub timestamp: Timestamp,
    pub key: Option<Range<usize>>,
    pub value: Option<Range<usize>>,
    pub header_count: u32,
    pub headers: Range<usize>,
}

/// Walks a block: where it stands, and what the next record must be like.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    header: BatchHeader,
    position: usize,
    index: u32,
    next_delta: i64,
    ended: bool,
}

impl Walk {
    pub(super) fn new(header: &BatchHeader) -> Walk {
        Walk { header: *header, position: 0, index: 0, next_delta: 0, ended: false }
    }

    /// Where the next record starts in the block.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Records not yet read, by the header's count.
    pub(super) fn remaining(&self) -> usize {
        if self.ended { 0 } else { (self.header.record_count.max(0) as usize).saturating_sub(self.index as usize) }
    }

    /// The next record; after the last one, that nothing follows it.
    pub(super) fn advance(&mut self, block: &[u8]) -> Option<Result<Parsed, BatchError>> {
        if self.ended {
            return None;
        }
        if i64::from(self.index) >= i64::from(self.header.record_count) {
            self.ended = true;
            let bytes = block.len() - self.position;
            return (bytes > 0).then_some(Err(BatchError::RecordsLeftOver { bytes, count: self.header.record_count }));
        }
        match self.parse(block) {
            Ok(parsed) => Some(Ok(parsed)),
            Err(fault) => {
                self.ended = true;
                Some(Err(BatchError::Record { index: self.index, position: self.position, fault }))
            }
        }
    }

    #[inline]
    fn parse(&mut self, block: &[u8]) -> Result<Parsed, RecordFault> {
        let mut outer = Reader::new(block, self.position);
        let len = length(outer.varint()?, "record")?;
        let start = outer.position();
        outer.take(len)?;
        let end = outer.position();

        let mut reader = Reader::new(&block[..end], start);
        reader.take(1)?;
        let timestamp = self.timestamp(reader.varlong()?)?;
        let delta = self.offset_delta(reader.varint()?)?;
        let key = optional_range(&mut reader, "key")?;
        let value = optional_range(&mut reader, "value")?;
        let header_count = length(reader.varint()?, "header count")? as u32;
        let headers = reader.position()..end;
        for _ in 0..header_count {
            read_header(&mut reader)?;
        }
        if reader.remaining() > 0 {
            return Err(RecordFault::LeftOver { bytes: reader.remaining() });
        }

        self.position = end;
        self.index += 1;
        self.next_delta = i64::from(delta) + 1;
        Ok(Parsed { offset: self.header.base_offset + i64::from(delta), timestamp, key, value, header_count, headers })
    }

    /// The first record of a batch whose records start at `start` and which ends at `batch_end`; no more than `head` of it is there.
    pub(super) fn parse_head(&self, head: &[u8], start: usize, batch_end: usize) -> Result<RecordHead, RecordFault> {
        let mut reader = Reader::new(head, start);
        let len = length(reader.varint()?, "record")?;
        let record_end = within(reader.position(), len, batch_end, "record")?;
        reader.take(1)?;
        let timestamp = self.timestamp(reader.varlong()?)?;
        let delta = self.offset_delta(reader.varint()?)?;
        let key = range_within(&mut reader, record_end, "key")?;
        reader.take(key.as_ref().map_or(0, Range::len))?;
        let value = range_within(&mut reader, record_end, "value")?;
        let after = reader.position();
        let headers = value.as_ref().map_or(after, |v| v.end)..record_end;
        let offset = self.header.base_offset + i64::from(delta);
        Ok(RecordHead { header: self.header, offset, timestamp, key, value, headers })
    }

    fn timestamp(&self, delta: i64) -> Result<Timestamp, RecordFault> {
        let base = self.header.base_timestamp;
        if self.header.log_append_time() {
            return Ok(self.header.max_timestamp);
        }
        base.checked_add(delta).ok_or(RecordFault::Timestamp { base, delta })
    }

    fn offset_delta(&self, delta: i32) -> Result<i32, RecordFault> {
        if i64::from(delta) < self.next_delta || delta > self.header.last_offset_delta {
            return Err(RecordFault::OffsetDelta { min: self.next_delta, last: self.header.last_offset_delta, actual: delta });
        }
        Ok(delta)
    }
}

/// Where the next key or value is, after its length, which must not reach beyond `end`; its bytes are not taken.
fn range_within(reader: &mut Reader<'_>, end: usize, field: &'static str) -> Result<Option<Range<usize>>, RecordFault> {
    let len = reader.varint()?;
    if len == -1 {
        return Ok(None);
    }
    let start = reader.position();
    Ok(Some(start..within(start, length(len, field)?, end, field)?))
}

/// The end of `len` bytes from `start`, which must not be beyond `end`.
fn within(start: usize, len: usize, end: usize, field: &'static str) -> Result<usize, RecordFault> {
    if len > end.saturating_sub(start) { Err(RecordFault::Length { field, actual: len as i32 }) } else { Ok(start + len) }
}

/// Headers with their count before them, and nothing after.
pub(super) fn parse_headers(bytes: &[u8]) -> Result<Headers<'_>, RecordFault> {
    let mut reader = Reader::new(bytes, 0);
    let count = length(reader.varint()?, "header count")? as u32;
    let start = reader.position();
    for _ in 0..count {
        read_header(&mut reader)?;
    }
    if reader.remaining() > 0 {
        return Err(RecordFault::LeftOver { bytes: reader.remaining() });
    }
    Ok(Headers::new(count, &bytes[start..]))
}

fn length(actual: i32, field: &'static str) -> Result<usize, RecordFault> {
    usize::try_from(actual).map_err(|_| RecordFault::Length { field, actual })
}

#[inline]
fn optional_range(reader: &mut Reader<'_>, field: &'static str) -> Result<Option<Range<usize>>, RecordFault> {
    let len = reader.varint()?;
    if len == -1 {
        return Ok(None);
    }
    let len = length(len, field)?;
    let start = reader.position();
    reader.take(len)?;
    Ok(Some(start..start + len))
}

fn read_header<'a>(reader: &mut Reader<'a>) -> Result<HeaderRef<'a>, RecordFault> {
    let len = length(reader.varint()?, "header name")?;
    let name = reader.take(len)?;
    let len = reader.varint()?;
    let value = if len == -1 { None } else { Some(reader.take(length(len, "header value")?)?) };
    Ok(HeaderRef { name, value })
}

/// The records of one batch, in order.
///
/// Checks as it goes: every record is well-formed, offsets rise and stay within the batch, there are as many as the header says, and
/// nothing follows them. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    block: &'a [u8],
    walk: Walk,
}

impl<'a> Records<'a> {
    /// Over the uncompressed `block` of the batch with that header.
    #[must_use]
    pub fn new(header: &BatchHeader, block: &'a [u8]) -> Records<'a> {
        Records { block, walk: Walk::new(header) }
    }

    /// Over an uncompressed batch as a whole. Its CRC is not looked at.
    ///
    /// # Errors
    /// As [`BatchHeader::parse`]; [`BatchError::Truncated`], [`BatchError::Codec`], [`BatchError::Compressed`].
    pub fn of_batch(batch: &'a [u8]) -> Result<Records<'a>, BatchError> {
        let header = BatchHeader::parse(batch)?;
        match header.compression()? {
            Compression::None => {}
            codec => return Err(BatchError::Compressed { codec }),
        }
        let needed = header.total_len();
        let block = batch.get(HEADER_LEN..needed).ok_or(BatchError::Truncated { needed, available: batch.len() })?;
        Ok(Records::new(&header, block))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordRef<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let parsed = match self.walk.advance(self.block)? {
            Ok(parsed) => parsed,
            Err(e) => return Some(Err(e)),
        };
        let block = self.block;
        Some(Ok(RecordRef {
            offset: parsed.offset,
            timestamp: parsed.timestamp,
            key: parsed.key.map(|range| &block[range]),
            value: parsed.value.map(|range| &block[range]),
            headers: Headers::new(parsed.header_count, &block[parsed.headers]),
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.walk.remaining().saturating_add(1)))
    }
}
