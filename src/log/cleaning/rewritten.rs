//! A segment that is being put together from what stays of others.
//!
//! Its chain of running hashes ends where that of the last segment that it replaces did, so that the next segment goes on from it unchanged. As a hash can't be steered to an end, the
//! chain's *start* is chosen for it: the batches are hashed from 0, and the start that leads to the end follows from that (a CRC is linear). It stands in the index's first entry.

use crate::batch::{BatchHeader, HEADER_LEN};
use crate::checksum::{RunningHashFrom, running_hash, running_hash_start};
use crate::limits::{BLOCK, INDEX_INTERVAL};
use crate::log::index::{Index, IndexEntry, fits_segment};
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::types::Offset;

/// A segment on its way.
#[derive(Debug)]
pub struct RewrittenSegment {
    info: SegmentInfo,
    /// Batches that were not taken yet, from a block boundary on.
    pending: Vec<u8>,
    /// Where they begin in the file.
    pending_at: u64,
    /// Their hashes are from 0.
    index: Vec<IndexEntry>,
    /// For each entry, how many batches are before it.
    before: Vec<u64>,
    batches: u64,
    /// From 0.
    hash: u64,
}

/// All that is known of a finished segment.
#[derive(Debug)]
pub struct Finished {
    /// As it is to be known.
    pub info: SegmentInfo,
    /// Its index.
    pub index: Index,
    /// Where its last blocks go, and what they are, zero-padded; none where all were taken.
    pub rest: (u64, Vec<u8>),
}

/// A batch that does not fit: its place can't be told in an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a batch of offset {offset} at {position} is out of reach of segment {segment}'s index")]
pub struct OutOfReach {
    /// Base offset of the segment.
    pub segment: Offset,
    /// Offset of the batch.
    pub offset: Offset,
    /// Its position.
    pub position: u64,
}

impl RewrittenSegment {
    /// Without a batch yet. `info` says base offset, generation, and the running hash with which it must end.
    pub fn new(info: SegmentInfo) -> RewrittenSegment {
        RewrittenSegment {
            info,
            pending: Vec::new(),
            pending_at: FIRST_POSITION,
            index: Vec::new(),
            before: Vec::new(),
            batches: 0,
            hash: 0,
        }
    }

    /// Adds a batch behind the last one.
    ///
    /// # Errors
    /// When its place does not fit an index.
    ///
    /// # Panics
    /// When `batch` is none, or does not come after the last one.
    pub fn push(&mut self, batch: &[u8]) -> Result<(), OutOfReach> {
        let header = BatchHeader::parse(batch).expect("a batch that was checked");
        assert!(header.base_offset >= self.info.end_offset && header.total_len() == batch.len(), "batches come whole and in order");
        let (segment, position) = (self.info.base_offset, self.position());
        if !fits_segment(segment, header.next_offset(), position + batch.len() as u64) {
            return Err(OutOfReach { segment, offset: header.base_offset, position });
        }
        if self.index.last().is_none_or(|last| position >= last.position + INDEX_INTERVAL) {
            let max_timestamp = self.info.max_timestamp;
            self.index.push(IndexEntry { offset: header.base_offset, position, max_timestamp, running_hash: self.hash });
            self.before.push(self.batches);
        }
        self.hash = running_hash(self.hash, &batch[..HEADER_LEN]);
        self.batches += 1;
        self.info.end_offset = header.next_offset();
        self.info.max_timestamp = self.info.max_timestamp.max(header.max_timestamp);
        self.pending.extend_from_slice(batch);
        Ok(())
    }

    /// Where the next batch would begin.
    pub fn position(&self) -> u64 {
        self.pending_at + self.pending.len() as u64
    }

    /// The whole blocks that are ready, and where they go, once there are `least` bytes.
    pub fn take_blocks(&mut self, least: usize) -> Option<(u64, Vec<u8>)> {
        if self.pending.len() < least.max(BLOCK) {
            return None;
        }
        let rest = self.pending.split_off(self.pending.len() / BLOCK * BLOCK);
        let blocks = std::mem::replace(&mut self.pending, rest);
        let at = self.pending_at;
        self.pending_at += blocks.len() as u64;
        Some((at, blocks))
    }

    /// No more batches come: the last one reached to the end of what is replaced.
    pub fn finish(mut self) -> Finished {
        let end = self.info.running_hash;
        let start = running_hash_start(end, self.hash, self.batches);
        let mut from = RunningHashFrom::new(start);
        assert_eq!(from.after(self.batches, self.hash), end, "the chain leads to the next segment's");
        let mut index = Index::new(self.info.base_offset);
        for (entry, before) in self.index.iter().zip(&self.before) {
            index.push(IndexEntry { running_hash: from.after(*before, entry.running_hash), ..*entry });
        }
        self.info.valid_end = self.position();
        self.info.index_entries = index.len() as u32;
        self.pending.resize(self.pending.len().next_multiple_of(BLOCK), 0);
        Finished { info: self.info, index, rest: (self.pending_at, self.pending) }
    }
}
