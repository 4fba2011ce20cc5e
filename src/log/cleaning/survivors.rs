//! Which records a pass keeps, batch by batch.

use std::borrow::Cow;

use super::KeyMap;
use crate::batch::{self, BatchError, BatchHeader, Compression, HEADER_LEN, Records};
use crate::types::{Offset, Timestamp};

/// A pass over one partition: first it notes the keys of the dirty part, then it decides of each batch from the log's start on.
#[derive(Debug)]
pub struct Pass {
    map: KeyMap,
    /// Records at this offset and behind are not looked at.
    end: Offset,
    now: Timestamp,
    /// What tombstones get that are met for the first time.
    horizon: Timestamp,
    /// Longest uncompressed block of a batch that is looked into, bytes.
    block_limit: usize,
    /// A batch was left whole that may hide an older value of any key.
    is_blind: bool,
    counts: Counts,
}

/// What a pass met and did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Records that went because a later one has their key, or because they have none.
    pub superseded: u64,
    /// Tombstones whose time was over.
    pub tombstones: u64,
    /// Records that stay.
    pub kept: u64,
    /// Batches that could not be looked into.
    pub opaque_batches: u64,
}

/// See [`Pass::mark`].
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    counts: Counts,
    is_blind: bool,
}

/// What became of a batch whose keys were to be noted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Noted {
    /// They are, or it stays whole.
    All,
    /// There is no room for them: the pass ends before this batch.
    Full,
}

/// What stays of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kept<'a> {
    /// All of it, as it is.
    Whole(&'a [u8]),
    /// These bytes.
    Part(Vec<u8>),
    /// Nothing.
    Nothing,
}

impl Kept<'_> {
    /// The bytes that stay, if any do.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Kept::Whole(bytes) => Some(bytes),
            Kept::Part(bytes) => Some(bytes),
            Kept::Nothing => None,
        }
    }
}

impl Pass {
    /// A pass that has noted nothing yet. `now` and `delete_retention_ms` decide of tombstones; batches of more than `block_limit` uncompressed bytes are not looked into.
    pub fn new(map: KeyMap, now: Timestamp, delete_retention_ms: i64, block_limit: usize) -> Pass {
        let horizon = now.saturating_add(delete_retention_ms);
        Pass { map, end: Offset::MAX, now, horizon, block_limit, is_blind: false, counts: Counts::default() }
    }

    /// What it did so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Keys noted.
    pub fn keys(&self) -> usize {
        self.map.len()
    }

    /// Notes the keys of a batch that checks.
    pub fn note(&mut self, bytes: &[u8]) -> Noted {
        let Ok((header, block)) = self.open(bytes) else { return Noted::All };
        let count = header.record_count as usize;
        if count > self.map.capacity() {
            // Not in an empty map either: it stays whole.
            return Noted::All;
        }
        if count > self.map.capacity() - self.map.len() {
            return Noted::Full;
        }
        if Records::new(&header, &block).any(|record| record.is_err()) {
            return Noted::All;
        }
        for record in Records::new(&header, &block).flatten() {
            if let Some(key) = record.key {
                self.map.note(key, record.offset);
            }
        }
        Noted::All
    }

    /// The dirty part ends here: from now on batches are decided of.
    pub fn end_at(&mut self, end: Offset) {
        self.end = end;
    }

    /// Something of the log before what comes next stays whole unseen.
    pub fn pass_over(&mut self) {
        self.is_blind = true;
        self.counts.opaque_batches += 1;
    }

    /// What it did so far and has seen, for a look ahead that is taken back.
    pub fn mark(&self) -> Mark {
        Mark { counts: self.counts, is_blind: self.is_blind }
    }

    /// As if nothing had been decided since.
    pub fn back_to(&mut self, mark: Mark) {
        (self.counts, self.is_blind) = (mark.counts, mark.is_blind);
    }

    /// Decides of a batch that checks; they come in the log's order, from its start. With `must_stay` a batch of which nothing stays is kept without records.
    pub fn keep<'a>(&mut self, bytes: &'a [u8], must_stay: bool) -> Kept<'a> {
        let parsed = BatchHeader::parse(bytes);
        if parsed.is_ok_and(|header| header.next_offset() > self.end) {
            return Kept::Whole(bytes);
        }
        match self.decide(bytes, must_stay) {
            Ok(kept) => kept,
            Err(_) => {
                self.pass_over();
                Kept::Whole(bytes)
            }
        }
    }

    fn decide<'a>(&mut self, bytes: &'a [u8], must_stay: bool) -> Result<Kept<'a>, BatchError> {
        let (header, block) = self.open(bytes)?;
        if header.record_count as usize > self.map.capacity() {
            // Its keys were never noted, so it stays as [`Pass::note`] left it: whole.
            return Err(BatchError::Count { count: header.record_count, last_offset_delta: header.last_offset_delta });
        }
        let is_over = header.delete_horizon().is_some_and(|horizon| self.now >= horizon);
        let mut counts = self.counts;
        let (mut stays, mut noted_tombstones) = (Vec::with_capacity(header.record_count.max(0) as usize), 0);
        for record in Records::new(&header, &block) {
            let record = record?;
            let newest = record.key.and_then(|key| self.map.newest(key));
            let is_newest = record.key.is_some() && newest.is_none_or(|newest| record.offset >= newest);
            let is_gone_tombstone = is_newest && record.value.is_none() && is_over;
            counts.superseded += u64::from(!is_newest);
            counts.tombstones += u64::from(is_gone_tombstone);
            noted_tombstones += usize::from(newest == Some(record.offset) && record.value.is_none());
            stays.push(is_newest && !is_gone_tombstone);
        }
        let kept = stays.iter().filter(|stays| **stays).count();
        counts.kept += kept as u64;
        // A tombstone's time begins with the pass that removes all that it deletes: one that has noted it, and has looked into everything before it. (What a pass can't look
        // into, a later one with a larger map may, and then it does not look for what was noted before.)
        let horizon = (noted_tombstones > 0 && !self.is_blind && header.delete_horizon().is_none()).then_some(self.horizon);
        let result = match kept {
            0 if !must_stay => Kept::Nothing,
            0 if stays.is_empty() => Kept::Whole(bytes),
            0 => Kept::Part(batch::emptied(&header)),
            _ if kept == stays.len() && horizon.is_none() => Kept::Whole(bytes),
            _ => Kept::Part(batch::keep_records(&header, &block, horizon, |index| stays[index])?),
        };
        self.counts = counts;
        Ok(result)
    }

    /// The batch's header and its uncompressed block.
    fn open<'a>(&self, bytes: &'a [u8]) -> Result<(BatchHeader, Cow<'a, [u8]>), BatchError> {
        let header = BatchHeader::parse(bytes)?;
        if header.is_control() {
            return Err(BatchError::Control);
        }
        let block = &bytes[HEADER_LEN..header.total_len().min(bytes.len())];
        let block = match header.compression()? {
            Compression::None => Cow::Borrowed(block),
            _ if header.record_count == 0 && block.is_empty() => Cow::Borrowed(block),
            codec => Cow::Owned(codec.decompress(block, self.block_limit)?),
        };
        Ok((header, block))
    }
}
