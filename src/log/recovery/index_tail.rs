//! The end of a segment's index file, and the entries that a replay adds to it.

use super::Fault;
use super::index_rebuild::{Rebuilt, rebuild};
use crate::limits::BLOCK;
use crate::log::damage::{Damage, DamageKind};
use crate::log::file_header::{self, IndexHeader, SegmentHeader};
use crate::log::files::{StoreFiles, len_if_exists, read_blocks};
use crate::log::index::{INDEX_ENTRY_LEN, Index, IndexEntry, entry_position, fits_segment};
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::types::{Offset, Timestamp, TopicPartition};

/// A segment's index, in memory while its partition is replayed.
#[derive(Debug)]
pub(super) struct IndexTail {
    path: String,
    index: Index,
    /// Entries that the file has.
    in_file: usize,
    /// The file has no header that is right.
    new_file: bool,
    /// Entries were dropped that the file may have.
    is_cut: bool,
    pub(super) damage: Option<Damage>,
}

impl IndexTail {
    /// Reads the entries of batches below `flushed`; only those are known to be in the file. From a damaged one on they are made again from the segment. `before`:
    /// the running hash at the segment's start, where it is known.
    pub(super) fn load(
        files: &mut impl StoreFiles,
        partition: TopicPartition,
        segment: &SegmentInfo,
        flushed: (Offset, u64),
        before: Option<u64>,
    ) -> Result<IndexTail, Fault> {
        let mut tail = IndexTail::read(files, partition, segment, flushed)?;
        let Some(damage) = tail.damage.as_mut() else { return Ok(tail) };
        let limit = if segment.base_offset < flushed.0 { segment.valid_end } else { segment.valid_end.min(flushed.1) };
        let log = segment.path(partition);
        let rebuilt = rebuild(files, &log, segment, limit, before, &mut tail.index)?;
        damage.detail = match rebuilt {
            Rebuilt::Whole => format!("{}; it was made again from the segment", damage.detail),
            Rebuilt::Partly(why) => format!("{}; it can't be made again: {why}", damage.detail),
        };
        Ok(tail)
    }

    fn read(
        files: &mut impl StoreFiles,
        partition: TopicPartition,
        segment: &SegmentInfo,
        flushed: (Offset, u64),
    ) -> Result<IndexTail, Fault> {
        let base = segment.base_offset;
        let path = segment.index_path(partition);
        let mut tail = IndexTail { path, index: Index::new(base), in_file: 0, new_file: true, is_cut: false, damage: None };
        if (base, FIRST_POSITION) >= flushed {
            return Ok(tail);
        }
        let count = segment.index_entries as usize;
        let len = len_if_exists(files, &tail.path)?;
        if len.is_none() && count == 0 {
            return Ok(tail);
        }
        let bytes = match len {
            Some(_) => read_blocks(files, &tail.path, 0, BLOCK + count * INDEX_ENTRY_LEN)?,
            None => return Ok(tail.damaged(0, DamageKind::Missing, "the index is not there")),
        };
        if let Err(error) = file_header::decode_expecting(&bytes, &IndexHeader(segment.header(partition))) {
            return Ok(if count == 0 { tail } else { tail.damaged(0, DamageKind::Header, error) });
        }
        tail.new_file = false;
        let (mut index, error) = Index::load(base, &bytes[BLOCK..], segment.index_entries);
        let at = entry_position(index.len());
        if base == flushed.0 {
            index.truncate(flushed.1);
        }
        tail.in_file = index.len();
        tail.index = index;
        // Of the segment that is being flushed the checkpoint counts entries that were never written: they are blank.
        let rest = bytes.get(at as usize..).unwrap_or_default();
        let blank = rest.iter().take(INDEX_ENTRY_LEN).all(|byte| *byte == 0);
        match error {
            Some(error) if !(blank && base == flushed.0) => Ok(tail.damaged(at, DamageKind::Index, error)),
            _ => Ok(tail),
        }
    }

    fn damaged(mut self, at: u64, kind: DamageKind, detail: impl std::fmt::Display) -> IndexTail {
        self.damage = Some(Damage::new(self.path.clone(), at, kind, detail));
        self
    }

    pub(super) fn segment(&self) -> Offset {
        self.index.segment()
    }

    /// Adds an entry for a batch, where one is due.
    pub(super) fn offer(&mut self, offset: Offset, position: u64, max_timestamp: Timestamp, running_hash: u64) {
        let after = self.index.entries().last().is_none_or(|last| offset > last.offset && position > last.position);
        if after && self.index.wants(position) && fits_segment(self.index.segment(), offset, position) {
            self.index.push(IndexEntry { offset, position, max_timestamp, running_hash });
        }
    }

    /// Drops the entries of batches at or after a position.
    pub(super) fn truncate(&mut self, position: u64) {
        let before = self.index.len();
        self.index.truncate(position);
        if self.index.len() < before || !self.index.wants(position) {
            // The damage, if any, was behind the cut: the broker, or a recovery that was interrupted, has cut the file already.
            self.damage = None;
        }
        self.in_file = self.in_file.min(self.index.len());
        self.is_cut = true;
    }

    /// Writes what is new, and returns how many entries count.
    pub(super) fn write(&mut self, files: &mut impl StoreFiles, segment: &SegmentHeader) -> Result<u32, Fault> {
        if self.new_file {
            files.write(&self.path, 0, &file_header::encode_header(&IndexHeader(*segment)))?;
            self.new_file = false;
        }
        // Where a log was cut, entries of another past must not count again when later ones do: behind the last one there is nothing.
        let from = if self.is_cut { self.in_file.min(self.index.len().saturating_sub(1)) } else { self.in_file };
        if let Some(blocks) = self.index.blocks_from(from) {
            files.write(&self.path, blocks.position, &blocks.bytes)?;
            self.in_file = self.index.len();
        }
        if std::mem::take(&mut self.is_cut) {
            files.set_len(&self.path, entry_position(self.index.len()).next_multiple_of(BLOCK as u64))?;
        }
        Ok(self.index.len() as u32)
    }

    /// The file.
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}
