//! Putting replayed bytes where they belong in a partition's segments: whole blocks, each of which the journal holds all of.
//!
//! What a later entry cuts off again is never written: by then the log may have gone on with a batch whose bytes are in the segment alone, in those very blocks.
//!
//! Bytes are gathered in runs, one for each segment that has unflushed bytes, and written in large pieces. A run begins on a block boundary. Its last,
//! unfinished block stays in memory until the end: it is written zero-padded, and handed to the partition's next owner.

use std::collections::{BTreeMap, BTreeSet};

use super::Fault;
use crate::limits::{BLOCK, REPLAY_CHUNK};
use crate::log::damage::{Damage, DamageKind};
use crate::log::file_header::{self, SegmentHeader};
use crate::log::files::{FileError, StoreFiles, read_blocks};
use crate::log::paths;
use crate::log::segment::FIRST_POSITION;
use crate::types::{Offset, TopicPartition};

const BLOCK_LEN: u64 = BLOCK as u64;

/// The block boundary at or before a position.
pub(super) fn block_start(position: u64) -> u64 {
    position / BLOCK_LEN * BLOCK_LEN
}

#[derive(Debug)]
struct Run {
    segment: SegmentHeader,
    /// On a block boundary.
    start: u64,
    bytes: Vec<u8>,
}

impl Run {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// Where the replayed bytes of one partition go.
#[derive(Debug)]
pub(super) struct Placement {
    partition: TopicPartition,
    /// Everything below is in the segments and synced.
    flushed: (Offset, u64),
    /// The least place that a later entry cuts the log at.
    later_cut: Option<(Offset, u64)>,
    runs: Vec<Run>,
    /// Per segment: bytes below are flushed, in a run, or were proven to be in the segment.
    covered: Vec<(Offset, u64)>,
    /// Segments that were written to, or hold bytes that nothing says are synced.
    pub(super) touched: BTreeSet<Offset>,
    /// Segments whose file is known to be there with the right header.
    ready: BTreeSet<Offset>,
    /// Segments whose file is not there or not right. What the journal says of them may be followed by their removal, so this counts at the end only.
    broken: BTreeMap<Offset, Damage>,
    /// Bytes written.
    pub(super) written: u64,
}

impl Placement {
    pub(super) fn new(partition: TopicPartition, flushed: (Offset, u64)) -> Placement {
        Placement {
            partition,
            flushed,
            later_cut: None,
            runs: Vec::new(),
            covered: Vec::new(),
            touched: BTreeSet::new(),
            ready: BTreeSet::new(),
            broken: BTreeMap::new(),
            written: 0,
        }
    }

    /// Of the entries that are still to come, the least place that one cuts the log at.
    pub(super) fn set_later_cut(&mut self, cut: Option<(Offset, u64)>) {
        self.later_cut = cut;
    }

    /// The bytes of a run that may be written, from its start: whole blocks below any later cut.
    fn writable(&self, run: &Run) -> usize {
        match self.later_cut {
            Some((segment, position)) if segment == run.segment.base_offset => {
                run.bytes.len().min(block_start(position).saturating_sub(run.start) as usize)
            }
            Some((segment, _)) if segment < run.segment.base_offset => 0,
            _ => run.bytes.len(),
        }
    }

    /// Whether a segment's bytes up to `end` are known to be in it and synced.
    pub(super) fn is_flushed(&self, segment: Offset, end: u64) -> bool {
        segment < self.flushed.0 || (segment == self.flushed.0 && end <= self.flushed.1)
    }

    /// Where the bytes of a segment end that are flushed or placed without a gap.
    pub(super) fn covered(&self, segment: Offset) -> u64 {
        let flushed = if segment == self.flushed.0 { self.flushed.1 } else { 0 };
        let placed = self.covered.iter().find(|(base, _)| *base == segment).map_or(0, |(_, to)| *to);
        flushed.max(placed).max(FIRST_POSITION)
    }

    fn cover(&mut self, segment: Offset, to: u64) {
        match self.covered.iter_mut().find(|(base, _)| *base == segment) {
            Some((_, covered)) => *covered = to.max(*covered),
            None => self.covered.push((segment, to)),
        }
    }

    /// Puts bytes at a position. Those that are flushed already are left out.
    pub(super) fn place(&mut self, files: &mut impl StoreFiles, segment: &SegmentHeader, position: u64, bytes: &[u8]) -> Result<(), Fault> {
        let base = segment.base_offset;
        let end = position.saturating_add(bytes.len() as u64);
        if self.is_flushed(base, end) || bytes.is_empty() {
            return Ok(());
        }
        if position < FIRST_POSITION || u32::try_from(end).is_err() {
            return Err(Fault::partition(DamageKind::Entry, format!("bytes {position}..{end} of segment {base} are no place for batches")));
        }
        let floor = if base == self.flushed.0 { block_start(self.flushed.1) } else { FIRST_POSITION };
        let run = self.run_at(files, segment, position.max(floor))?;
        let from = position.max(floor).max(run.start);
        if from < end {
            overlay(run, from, &bytes[(from - position) as usize..]);
        }
        self.cover(base, end);
        self.write_whole_chunks(files, base)
    }

    /// The run that bytes at a position go to.
    fn run_at(&mut self, files: &mut impl StoreFiles, segment: &SegmentHeader, position: u64) -> Result<&mut Run, Fault> {
        let base = segment.base_offset;
        let found = self.runs.iter().position(|run| run.segment.base_offset == base);
        let at = match found {
            Some(at) if position <= self.runs[at].end() => at,
            _ => {
                let covered = self.covered(base);
                if position > covered || !position.is_multiple_of(BLOCK_LEN) {
                    let detail = format!("bytes from {position} on of segment {base} don't follow on {covered}");
                    return Err(Fault::partition(DamageKind::Continuity, detail));
                }
                if let Some(at) = found {
                    self.finish_run(files, at)?;
                }
                self.runs.push(Run { segment: *segment, start: position, bytes: Vec::new() });
                self.runs.len() - 1
            }
        };
        Ok(&mut self.runs[at])
    }

    /// Bytes up to `to` were found in the segment and proven; they still need a sync.
    pub(super) fn prove(&mut self, segment: Offset, to: u64) {
        self.cover(segment, to);
        self.touched.insert(segment);
    }

    /// The partition's log ends at `position` of `segment`; what the runs hold after it goes, and the block that is cut is not flushed any more.
    pub(super) fn cut(&mut self, segment: Offset, position: u64) {
        self.cut_runs(segment, position);
        self.flushed = self.flushed.min((segment, block_start(position)));
    }

    /// The log has nothing any more and goes on at `at`.
    pub(super) fn restart(&mut self, at: Offset) {
        self.cut_runs(Offset::MIN, 0);
        self.flushed = (at, 0);
    }

    /// Drops what the runs hold after `position` of `segment`.
    pub(super) fn cut_runs(&mut self, segment: Offset, position: u64) {
        self.runs.retain(|run| run.segment.base_offset <= segment);
        self.covered.retain(|(base, _)| *base <= segment);
        // Files of later segments may be gone; one of the same name that comes later is another one.
        self.touched.retain(|base| *base <= segment);
        self.ready.retain(|base| *base <= segment);
        self.broken.retain(|base, _| *base <= segment);
        self.trim(segment, position);
    }

    /// Drops what the run of one segment holds after `position`.
    pub(super) fn trim(&mut self, segment: Offset, position: u64) {
        self.runs.retain(|run| run.segment.base_offset != segment || run.start <= position);
        for run in self.runs.iter_mut().filter(|run| run.segment.base_offset == segment) {
            run.bytes.truncate((position - run.start) as usize);
        }
        for (_, covered) in self.covered.iter_mut().filter(|(base, _)| *base == segment) {
            *covered = position.min(*covered);
        }
    }

    /// Everything below is in the segments and synced: it needs no writing.
    pub(super) fn flushed_to(&mut self, segment: Offset, position: u64) {
        if (segment, position) <= self.flushed {
            return;
        }
        self.flushed = (segment, position);
        self.runs.retain(|run| (run.segment.base_offset, run.end()) >= (segment, position));
        for run in self.runs.iter_mut().filter(|run| run.segment.base_offset == segment) {
            let drop = block_start(position.min(run.end())).saturating_sub(run.start);
            run.bytes.drain(..drop as usize);
            run.start += drop;
        }
    }

    /// The bytes of the unfinished block before `end` in a segment, where the replay brought them.
    pub(super) fn remainder(&self, segment: Offset, end: u64) -> Option<&[u8]> {
        let run = self.runs.iter().find(|run| run.segment.base_offset == segment)?;
        let at = block_start(end).checked_sub(run.start)? as usize;
        (run.end() == end).then(|| &run.bytes[at..])
    }

    /// Writes everything that is left, the last blocks zero-padded.
    pub(super) fn finish(&mut self, files: &mut impl StoreFiles) -> Result<(), Fault> {
        (0..self.runs.len()).try_for_each(|at| self.write_run(files, at))
    }

    fn finish_run(&mut self, files: &mut impl StoreFiles, at: usize) -> Result<(), Fault> {
        self.write_run(files, at)?;
        self.runs.remove(at);
        Ok(())
    }

    fn write_run(&mut self, files: &mut impl StoreFiles, at: usize) -> Result<(), Fault> {
        let writable = self.writable(&self.runs[at]);
        if writable == 0 {
            return Ok(());
        }
        let segment = self.runs[at].segment;
        if !self.is_usable(files, &segment)? {
            return Ok(());
        }
        let run = &mut self.runs[at];
        let len = run.bytes.len();
        run.bytes.resize(len.next_multiple_of(BLOCK), 0);
        let written = writable.next_multiple_of(BLOCK);
        files.write(&paths::segment(self.partition, segment.base_offset), run.start, &run.bytes[..written])?;
        self.written += written as u64;
        run.bytes.truncate(len);
        self.touched.insert(segment.base_offset);
        Ok(())
    }

    fn write_whole_chunks(&mut self, files: &mut impl StoreFiles, base: Offset) -> Result<(), Fault> {
        let Some(at) = self.runs.iter().position(|run| run.segment.base_offset == base && run.bytes.len() > REPLAY_CHUNK) else {
            return Ok(());
        };
        let segment = self.runs[at].segment;
        let whole = self.writable(&self.runs[at]) / BLOCK * BLOCK;
        if whole == 0 || !self.is_usable(files, &segment)? {
            return Ok(());
        }
        let run = &mut self.runs[at];
        files.write(&paths::segment(self.partition, base), run.start, &run.bytes[..whole])?;
        run.bytes.drain(..whole);
        run.start += whole as u64;
        self.written += whole as u64;
        self.touched.insert(base);
        Ok(())
    }

    /// As [`make_ready`](Placement::make_ready); what is wrong is kept for the end.
    fn is_usable(&mut self, files: &mut impl StoreFiles, segment: &SegmentHeader) -> Result<bool, FileError> {
        let ready = self.make_ready(files, segment);
        self.defer(segment.base_offset, ready).map(|()| !self.broken.contains_key(&segment.base_offset))
    }

    /// Keeps what is wrong with a segment's file for the end.
    pub(super) fn defer(&mut self, segment: Offset, found: Result<(), Fault>) -> Result<(), FileError> {
        match found {
            Ok(()) => Ok(()),
            Err(Fault::File(error)) => Err(error),
            Err(Fault::Partition(damage)) => {
                self.broken.insert(segment, damage);
                Ok(())
            }
        }
    }

    /// What is wrong with the file of a segment that is needed.
    pub(super) fn broken(&self, segment: Offset) -> Option<&Damage> {
        self.broken.get(&segment)
    }

    /// Segments below `first` are not part of the log any more.
    pub(super) fn forget_below(&mut self, first: Offset) {
        self.runs.retain(|run| run.segment.base_offset >= first);
        self.covered.retain(|(base, _)| *base >= first);
        self.broken.retain(|base, _| *base >= first);
        self.touched.retain(|base| *base >= first);
    }

    /// A rewritten segment has taken the place of those from `first` up to `end`: nothing of theirs is needed.
    pub(super) fn forget_range(&mut self, first: Offset, end: Offset) {
        let stays = |base: Offset| !(first..end).contains(&base);
        self.runs.retain(|run| stays(run.segment.base_offset));
        self.covered.retain(|(base, _)| stays(*base));
        self.broken.retain(|base, _| stays(*base));
        self.touched.retain(|base| stays(*base));
        self.ready.retain(|base| stays(*base));
    }

    /// Makes sure that the segment's file is there and is that segment: of which nothing is flushed, that one is made; any other one must be right.
    pub(super) fn make_ready(&mut self, files: &mut impl StoreFiles, segment: &SegmentHeader) -> Result<(), Fault> {
        let base = segment.base_offset;
        if self.ready.contains(&base) {
            return Ok(());
        }
        let path = paths::segment_of(self.partition, base, segment.rewrite_generation);
        if self.is_flushed(base, FIRST_POSITION + 1) {
            check_header(files, &path, segment)?;
        } else {
            make_partition_dir(files, self.partition)?;
            files.write(&path, 0, &file_header::encode_header(segment))?;
            self.touched.insert(base);
        }
        self.ready.insert(base);
        Ok(())
    }
}

/// Copies bytes into a run, over what it has there and beyond.
fn overlay(run: &mut Run, from: u64, bytes: &[u8]) {
    let at = (from - run.start) as usize;
    let over = (run.bytes.len() - at).min(bytes.len());
    run.bytes[at..at + over].copy_from_slice(&bytes[..over]);
    run.bytes.extend_from_slice(&bytes[over..]);
}

/// Checks the header block of a segment that must exist.
pub(super) fn check_header(files: &mut impl StoreFiles, path: &str, segment: &SegmentHeader) -> Result<(), Fault> {
    let block = match read_blocks(files, path, 0, BLOCK) {
        Ok(block) => block,
        Err(error) if error.is_not_found() => return Err(Fault::at(path, 0, DamageKind::Missing, "the segment is not there")),
        Err(error) => return Err(error.into()),
    };
    file_header::decode_expecting(&block, segment).map_err(|error| Fault::at(path, 0, DamageKind::Header, error))
}

/// Makes a partition's directory and those above it, and their names durable.
pub(super) fn make_partition_dir(files: &mut impl StoreFiles, partition: TopicPartition) -> Result<(), FileError> {
    for dir in [paths::TOPICS_DIR.to_string(), paths::topic_dir(partition.topic), paths::partition_dir(partition)] {
        match files.list(&dir) {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {
                files.create_dir(&dir)?;
                files.sync_dir(paths::parent(&dir))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
