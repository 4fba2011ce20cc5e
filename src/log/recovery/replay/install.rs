//! Segments that were received whole: a replay of the entries that brought them.

use super::super::Fault;
use super::super::place::check_header;
use super::Replay;
use crate::batch::{BatchHeader, HEADER_LEN};
use crate::log::damage::DamageKind;
use crate::log::files::{FileError, StoreFiles, len_if_exists};
use crate::log::installation::Installation;
use crate::log::journal::EntryHeader;
use crate::log::leader_epochs;
use crate::log::paths;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::log::segment_walk::Pieces;

impl Replay {
    /// A segment whose files were complete and synced before the entry was written is the log's last one from here on.
    pub(super) fn install(&mut self, files: &mut impl StoreFiles, entry: &EntryHeader, payload: &[u8]) -> Result<(), Fault> {
        let installation = Installation::decode(payload).map_err(Fault::entry)?;
        let new = installation.segment(entry);
        self.expect_new_segment(entry)?;
        if entry.base_offset != self.state.log_end || new.end_offset != entry.end_offset || new.end_offset <= entry.base_offset {
            return Err(self.misfit(entry, "offsets", self.state.log_end, entry.base_offset));
        }
        if new.running_hash != entry.running_hash || (!new.is_rewritten() && installation.hash_before != self.state.running_hash) {
            return Err(Fault::partition(DamageKind::RunningHash, "the installed segment does not go on from the log's running hash"));
        }
        if let Some(before) = self.state.segments.last().filter(|last| !self.placement.is_flushed(last.base_offset, last.valid_end)) {
            return Err(self.misfit(entry, "a segment behind one that was not flushed", before.base_offset, new.base_offset));
        }
        let found = self.ensure_installed(files, &new, &installation);
        let is_there = found.is_ok();
        self.placement.defer(new.base_offset, found)?;
        for (epoch, start) in &installation.epochs {
            leader_epochs::note(&mut self.state.epochs, *epoch, *start);
        }
        if is_there && installation.has_producers {
            self.note_producers(files, &new)?;
        }
        self.state.segments.push(new);
        self.state.log_end = new.end_offset;
        self.state.running_hash = new.running_hash;
        self.state.max_timestamp = self.state.max_timestamp.max(new.max_timestamp);
        // Its index is complete: it is read from its file where it is needed, and never made of what is replayed.
        (self.state.flushed_segment, self.state.flushed_position) = (new.base_offset, new.valid_end);
        self.placement.flushed_to(new.base_offset, new.valid_end);
        Ok(())
    }

    /// The same where the checkpoint has seen it: only the files may be unfinished.
    pub(super) fn install_seen(&mut self, files: &mut impl StoreFiles, entry: &EntryHeader, payload: &[u8]) -> Result<(), Fault> {
        let installation = Installation::decode(payload).map_err(Fault::entry)?;
        let new = installation.segment(entry);
        let is_same = |known: &SegmentInfo| (known.rewrite_generation, known.valid_end) == (new.rewrite_generation, new.valid_end);
        if !self.segment(entry.segment).is_some_and(is_same) {
            return Ok(());
        }
        let found = self.ensure_installed(files, &new, &installation);
        Ok(self.placement.defer(entry.segment, found)?)
    }

    /// Gives the files their names where that was interrupted, and looks whether they are there.
    fn ensure_installed(&mut self, files: &mut impl StoreFiles, new: &SegmentInfo, installation: &Installation) -> Result<(), Fault> {
        let partition = self.state.partition;
        let (log, index) = (new.path(partition), new.index_path(partition));
        for (id, path) in [(installation.log_id, &log), (installation.index_id, &index)] {
            let temporary = paths::adopted(partition, id);
            if len_if_exists(files, &temporary)?.is_some() {
                files.rename(&temporary, path)?;
            }
        }
        self.renamed = true;
        check_header(files, &log, &new.header(partition))?;
        let len = files.len(&log)?;
        match len < new.valid_end {
            true => {
                Err(Fault::at(&log, len, DamageKind::Continuity, format!("the file ends before the segment does, at {}", new.valid_end)))
            }
            false => Ok(()),
        }
    }

    /// Notes the producers of the segment's batches. Where a batch does not parse, a reader will say so.
    fn note_producers(&mut self, files: &mut impl StoreFiles, segment: &SegmentInfo) -> Result<(), FileError> {
        let path = segment.path(self.state.partition);
        let mut pieces = Pieces::open(files, &path)?;
        let (mut at, mut head) = (FIRST_POSITION, [0; HEADER_LEN]);
        while at < segment.valid_end && pieces.copy(at, &mut head)? == HEADER_LEN {
            let Ok(header) = BatchHeader::parse(&head) else { break };
            if !(segment.base_offset..segment.end_offset).contains(&header.base_offset) {
                break;
            }
            self.producers.record(&header, self.now_ms);
            at += header.total_len() as u64;
        }
        Ok(())
    }
}
