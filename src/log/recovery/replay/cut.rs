//! Logs that were cut: a replay of what came before the cut, and of the cut.

use std::collections::BTreeSet;

use super::super::Fault;
use super::super::place::block_start;
use super::Replay;
use crate::batch::{BatchHeader, HEADER_LEN};
use crate::log::checkpoint::PartitionState;
use crate::log::files::{StoreFiles, len_if_exists};
use crate::log::journal::EntryHeader;
use crate::log::leader_epochs;
use crate::log::lost_producers::LostProducers;
use crate::log::paths;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::log::segment_walk::Pieces;
use crate::types::{Offset, ProducerId, Timestamp};

/// What is still to be done where a log was cut, once everything is placed.
#[derive(Debug, Default)]
pub(super) struct CutOff {
    /// Producers of whom a truncation left nothing in the table, though there may be something in the log before the cut.
    lost_producers: BTreeSet<ProducerId>,
    /// Segments that a truncation cut off. The replay of what came before it may have written to them.
    segments: BTreeSet<(Offset, u32)>,
}

impl Replay {
    pub(super) fn truncate(&mut self, files: &mut impl StoreFiles, entry: &EntryHeader, payload: &[u8]) -> Result<(), Fault> {
        let Some(kept) = self.segment(entry.segment).copied() else {
            return Err(self.misfit(entry, "segment", "one of the partition's", entry.segment));
        };
        let cut_block = block_start(entry.position);
        // What is cleaned is committed: no truncation reaches into it.
        let fits = !kept.is_rewritten()
            && entry.end_offset <= self.state.log_end
            && (FIRST_POSITION..=kept.valid_end).contains(&entry.position)
            && payload.len() as u64 == entry.position - cut_block;
        if !fits {
            return Err(self.misfit(entry, "cut", format!("one up to {} at {}", self.state.log_end, kept.valid_end), entry.position));
        }
        self.forget_after(files, entry.segment, entry.position)?;
        self.placement.place(files, &kept.header(self.state.partition), cut_block, payload)?;
        let cut_off = self.state.segments.iter().filter(|segment| segment.base_offset > entry.segment);
        self.cut_off.segments.extend(cut_off.map(|segment| (segment.base_offset, segment.rewrite_generation)));
        self.state.segments.retain(|segment| segment.base_offset <= entry.segment);
        if let Some(last) = self.state.segments.last_mut() {
            *last = SegmentInfo {
                end_offset: entry.end_offset,
                valid_end: entry.position,
                running_hash: entry.running_hash,
                // Never below that of what is left.
                max_timestamp: if entry.position > FIRST_POSITION { last.max_timestamp.min(entry.max_timestamp) } else { Timestamp::MIN },
                cleaned: false,
                sealed: false,
                adopted: false,
                ..*last
            };
        }
        let flushed = (self.state.flushed_segment, self.state.flushed_position).min((entry.segment, cut_block));
        (self.state.flushed_segment, self.state.flushed_position) = flushed;
        self.state.log_end = entry.end_offset;
        self.state.log_start = self.state.log_start.min(entry.end_offset);
        if entry.end_offset < self.state.high_watermark {
            // A snapshot holds what was committed when the checkpoint was taken, and some of that has gone.
            self.state.groups = None;
        }
        self.state.high_watermark = self.state.high_watermark.min(entry.end_offset);
        self.state.running_hash = entry.running_hash;
        self.state.max_timestamp = entry.max_timestamp;
        leader_epochs::cut(&mut self.state.epochs, entry.end_offset);
        leader_epochs::note(&mut self.state.epochs, entry.leader_epoch, entry.base_offset.max(entry.end_offset));
        self.cut_off.lost_producers.extend(self.producers.lost_by(entry.end_offset));
        self.producers.truncate_to(entry.end_offset);
        Ok(())
    }

    /// The log has no record any more and goes on at another offset. Whatever was wrong with it before is of no concern.
    pub(super) fn restart(&mut self, entry: &EntryHeader) {
        let at = entry.end_offset;
        self.forget_all(at);
        (self.state.log_start, self.state.log_end, self.state.high_watermark) = (at, at, at);
        self.state.running_hash = entry.running_hash;
        self.state.max_timestamp = entry.max_timestamp;
        self.state.groups = None;
        leader_epochs::cut(&mut self.state.epochs, Offset::MIN);
        leader_epochs::note(&mut self.state.epochs, entry.leader_epoch, leader_epochs::UNKNOWN_START);
    }

    /// The replica was dropped. What comes after is of another one, which begins with nothing.
    pub(super) fn drop_all(&mut self) {
        self.forget_all(0);
        self.state = PartitionState::new(self.state.partition);
    }

    fn forget_all(&mut self, at: Offset) {
        self.references.clear();
        self.indexes.clear();
        self.placement.restart(at);
        self.cut_off.segments.extend(self.state.segments.drain(..).map(|segment| (segment.base_offset, segment.rewrite_generation)));
        self.cut_off.lost_producers.clear();
        (self.state.flushed_segment, self.state.flushed_position) = (at, 0);
        self.producers.truncate_to(Offset::MIN);
    }

    /// A truncation that the checkpoint has seen: what was placed, indexed or to be proven by now at or after the cut was of another past. What
    /// is flushed is of the log as it is now.
    pub(super) fn forget_seen(&mut self, segment: Offset, position: u64) {
        self.references.retain(|reference| (reference.segment, reference.end()) <= (segment, position));
        self.placement.cut_runs(segment, position);
        let flushed = (self.state.flushed_segment, self.state.flushed_position);
        let cut = (segment, position).max(flushed);
        self.indexes.retain(|index| index.segment() <= cut.0);
        for index in self.indexes.iter_mut().filter(|index| index.segment() == cut.0) {
            index.truncate(cut.1);
        }
    }

    /// Forgets what was placed, indexed or to be proven at or after a cut.
    fn forget_after(&mut self, files: &mut impl StoreFiles, segment: Offset, position: u64) -> Result<(), Fault> {
        self.references.retain(|reference| (reference.segment, reference.end()) <= (segment, position));
        self.placement.cut(segment, position);
        self.indexes.retain(|index| index.segment() <= segment);
        let Some(kept) = self.segment(segment).copied() else { return Ok(()) };
        let at = self.index_of(files, &kept)?;
        self.indexes[at].truncate(position);
        Ok(())
    }

    /// What is left of segments that were cut off goes: later ones may have passed their offsets since, and then nothing tells it from a segment that was lost track of.
    pub(super) fn remove_cut_off(&mut self, files: &mut impl StoreFiles) -> Result<(), Fault> {
        for (base, generation) in std::mem::take(&mut self.cut_off.segments) {
            let partition = self.state.partition;
            let is_known = self.segment(base).is_some_and(|known| known.rewrite_generation == generation);
            for path in [paths::segment_of(partition, base, generation), paths::index_of(partition, base, generation)] {
                if !is_known && len_if_exists(files, &path)?.is_some() {
                    files.unlink(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Everything is in the segments now: what truncations made the producer table forget is looked for there.
    pub(super) fn find_lost_producers(&mut self, files: &mut impl StoreFiles) -> Result<(), Fault> {
        let mut search = LostProducers::new(std::mem::take(&mut self.cut_off.lost_producers), self.state.log_end);
        for segment in self.state.segments.iter().rev() {
            if !search.wants(segment) {
                continue;
            }
            let path = segment.path(self.state.partition);
            let mut pieces = Pieces::open(files, &path)?;
            let (mut at, mut head) = (FIRST_POSITION, [0; HEADER_LEN]);
            while at < segment.valid_end && pieces.copy(at, &mut head)? == HEADER_LEN {
                // Where it does not parse, a reader will say so.
                let Ok(header) = BatchHeader::parse(&head) else { break };
                search.handle_batch(&header);
                at += header.total_len() as u64;
            }
            search.end_segment();
        }
        self.producers.restore_lost(&search.found(), self.now_ms);
        Ok(())
    }
}
