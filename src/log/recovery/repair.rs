//! An explicit repair: the checkpoint of a shard both of whose slots are damaged, made again from segments and journal.
//!
//! The journal says, by each partition's first entry in the groups that are left, where the log stood before them; the segments are walked up to there, batch by batch. The
//! checkpoint made of that is the one "before the first group that is left", so that the next opening replays those groups with all its checks, the running
//! hash among them. A partition for which segments and journal don't fit together is written down as quarantined, with the reason; the others are whole.
//!
//! A scan of segments is never done by an opening itself: what is not in checkpoint and journal does not count there. Here somebody asked for it.

use std::collections::BTreeMap;

use super::journals::{self, FoundGroup, Scan};
use super::{OpenError, newest_checkpoint, read_record};
use crate::checksum::running_hash;
use crate::limits::{ADOPT_APPEND, BLOCK, MAX_PRODUCERS};
use crate::log::checkpoint::{self, CheckpointBody, PartitionState};
use crate::log::damage::{Damage, DamageKind};
use crate::log::file_header::{self, CheckpointHeader, SegmentHeader};
use crate::log::files::{DirEntry, FileError, ReadFiles, StoreFiles, len_if_exists, list_sorted, read_blocks};
use crate::log::index::{Index, IndexEntry};
use crate::log::journal::{Entries, EntryHeader, EntryKind};
use crate::log::paths::{self, PartitionFile, Slot};
use crate::log::producers::ProducerTable;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::log::segment_walk::{Found, Pieces};
use crate::types::{Offset, Timestamp, TopicPartition};

/// What a repair is told.
pub struct RepairRequest<'a> {
    /// The cluster's UUID, as in `meta`.
    pub cluster: [u8; 16],
    /// Now, ms.
    pub now_ms: Timestamp,
    /// Every partition that exists, by the catalogue.
    pub catalogue: &'a [TopicPartition],
    /// The shard that a partition belongs to, of so many.
    pub owner: &'a dyn Fn(TopicPartition, u32) -> u32,
    /// Write the checkpoints; else nothing is changed.
    pub apply: bool,
}

/// One partition of a repair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RepairedPartition {
    /// The shard whose checkpoint is made again.
    pub shard: u32,
    /// Which.
    pub partition: TopicPartition,
    /// Where its log ends before the journal is replayed.
    pub log_end: Offset,
    /// Its segments.
    pub segments: usize,
    /// Why it is quarantined, if it is.
    pub damage: Option<Damage>,
}

/// Makes the checkpoints again that no slot is left of. A store that has them all gives an empty list.
///
/// # Errors
/// When a file can't be read or written, or what everything depends on is damaged.
pub fn repair(files: &mut impl StoreFiles, request: &RepairRequest<'_>) -> Result<Vec<RepairedPartition>, OpenError> {
    let record = read_record(files, request.cluster)?;
    let (journals, _) = journals::read_all(files)?;
    let scan = journals::scan(journals, &record);
    let mut repaired = Vec::new();
    for shard in 0..record.shards {
        match newest_checkpoint(files, request.cluster, record.generation, shard) {
            Err(OpenError::Checkpoints { .. }) => {}
            Err(error) => return Err(error),
            Ok(_) => continue,
        }
        let left = linked_tail(&scan, shard);
        let before = left.first().map_or(0, |group| group.header.sequence - 1);
        let entries = first_entries(&scan, &left)?;
        let mut partitions = Vec::new();
        for partition in request.catalogue.iter().filter(|p| (request.owner)(**p, record.shards) == shard) {
            let state = match Salvage::of(entries.get(partition)).state(files, *partition, request.now_ms) {
                Ok(state) => Ok(state),
                Err(Stop::File(error)) => return Err(error.into()),
                Err(Stop::Damage(damage)) => Err(damage),
            };
            let (state, damage) = match state {
                Ok(state) => (state, None),
                Err(damage) => (PartitionState { quarantined: true, ..PartitionState::new(*partition) }, Some(damage)),
            };
            if request.apply && damage.is_none() {
                flush_carried(files, &state, entries.get(partition))?;
            }
            let (log_end, segments) = (state.log_end, state.segments.len());
            repaired.push(RepairedPartition { shard, partition: *partition, log_end, segments, damage });
            partitions.push(state);
        }
        if request.apply {
            let header = CheckpointHeader {
                cluster: record.cluster,
                generation: record.generation,
                sequence: before,
                shard,
                body_crc: 0,
                body_len: 0,
            };
            let bytes = checkpoint::encode(&header, &CheckpointBody { sequence: before, replay_from: before + 1, partitions });
            write_checkpoint(files, &paths::checkpoint(record.generation, shard, Slot::A), &bytes)?;
        }
    }
    Ok(repaired)
}

fn write_checkpoint(files: &mut impl StoreFiles, path: &str, bytes: &[u8]) -> Result<(), FileError> {
    files.write(path, 0, bytes)?;
    files.set_len(path, bytes.len() as u64)?;
    files.sync(path)?;
    files.sync_dir(paths::CHECKPOINT_DIR)
}

/// Puts what the walk took from the journal's carried bytes into the segment: the checkpoint counts it as flushed. The bytes behind it in its block stay: they may be
/// flushed ones that the journal only says so of.
fn flush_carried(files: &mut impl StoreFiles, state: &PartitionState, told: Option<&Told>) -> Result<(), FileError> {
    let Some((segment, position, bytes)) = told.and_then(|told| told.carried.as_ref()) else { return Ok(()) };
    if state.segments.last().is_none_or(|last| last.base_offset != *segment || last.sealed) {
        return Ok(());
    }
    let path = paths::segment(state.partition, *segment);
    let mut block = read_blocks(files, &path, *position, BLOCK)?.to_vec();
    block.resize(BLOCK, 0);
    if block[..bytes.len()] == bytes[..] {
        return Ok(());
    }
    block[..bytes.len()].copy_from_slice(bytes);
    files.write(&path, *position, &block)?;
    files.sync(&path)
}

/// The groups of a shard that lead without a gap to its last one.
fn linked_tail(scan: &Scan, shard: u32) -> Vec<FoundGroup> {
    let mut found = scan.groups[shard as usize].clone();
    found.sort_by_key(|group| group.header.sequence);
    let mut tail: Vec<FoundGroup> = Vec::new();
    for group in found.into_iter().rev() {
        let links = tail
            .last()
            .is_none_or(|next| next.header.sequence == group.header.sequence + 1 && next.header.previous_checksum == group.checksum);
        match links {
            true => tail.push(group),
            // A copy of one that is there already.
            false if tail.last().is_some_and(|next| next.header.sequence <= group.header.sequence) => {}
            false => break,
        }
    }
    tail.reverse();
    tail
}

/// What the groups that are left say of one partition.
#[derive(Default)]
struct Told {
    /// Its first entry.
    first: Option<EntryHeader>,
    /// Bytes of an unfinished block that an entry brings along, before any entry adds to the log: segment, position, bytes.
    carried: Option<(Offset, u64, Vec<u8>)>,
    /// Segments that come into being in these groups.
    opened: Vec<Offset>,
    /// Segments that are sealed in these groups.
    sealed: Vec<Offset>,
    adds: bool,
}

fn first_entries(scan: &Scan, groups: &[FoundGroup]) -> Result<BTreeMap<TopicPartition, Told>, OpenError> {
    let mut told: BTreeMap<TopicPartition, Told> = BTreeMap::new();
    for group in groups {
        let Ok(bytes) = scan.group(group) else { continue };
        for entry in Entries::new(bytes) {
            let entry_error = |error| OpenError::Entry { file: scan.files[group.file].path.clone(), offset: group.header.position, error };
            let (entry, payload) = entry.map_err(entry_error)?;
            if matches!(entry.kind, EntryKind::Checkpoint | EntryKind::DurableMark) {
                continue;
            }
            let told = told.entry(entry.topic_partition).or_default();
            told.first.get_or_insert(entry);
            match entry.kind {
                EntryKind::SegmentOpen | EntryKind::Adopt | EntryKind::Install => told.opened.push(entry.segment),
                EntryKind::SegmentSeal => told.sealed.push(entry.segment),
                EntryKind::Append | EntryKind::Carry if !told.adds && told.carried.is_none() && entry.carried > 0 => {
                    told.carried = Some((entry.segment, entry.position, payload[..entry.carried as usize].to_vec()));
                }
                EntryKind::LargeReference if !told.adds && told.carried.is_none() && entry.carried > 0 => {
                    if let Ok((_, ends)) = crate::log::journal::LargeReference::decode(&entry, payload) {
                        let bytes = ends.carried_and_head[..entry.carried as usize].to_vec();
                        told.carried = Some((entry.segment, entry.position, bytes));
                    }
                }
                _ => {}
            }
            told.adds |= adds(entry.kind);
        }
    }
    Ok(told)
}

fn adds(kind: EntryKind) -> bool {
    matches!(kind, EntryKind::Append | EntryKind::LargeReference | EntryKind::Adopt | EntryKind::Install | EntryKind::SegmentOpen)
}

enum Stop {
    File(FileError),
    Damage(Damage),
}

impl From<FileError> for Stop {
    fn from(error: FileError) -> Stop {
        Stop::File(error)
    }
}

fn damage(file: &str, at: u64, kind: DamageKind, detail: impl std::fmt::Display) -> Stop {
    Stop::Damage(Damage::new(file, at, kind, detail))
}

/// The walk over one partition's segments.
struct Salvage<'a> {
    told: Option<&'a Told>,
}

impl<'a> Salvage<'a> {
    fn of(told: Option<&'a Told>) -> Salvage<'a> {
        Salvage { told }
    }

    /// Where the log stood before the groups that are left; `None`: they don't say, so it is where the segments end.
    fn end(&self) -> Option<Offset> {
        let first = self.told?.first?;
        let adds = matches!(first.kind, EntryKind::Append | EntryKind::LargeReference | EntryKind::Adopt | EntryKind::Install);
        Some(if adds { first.base_offset } else { first.end_offset })
    }

    fn has_opened(&self, segment: Offset) -> bool {
        self.told.is_some_and(|told| told.opened.contains(&segment))
    }

    fn state(&self, files: &mut impl ReadFiles, partition: TopicPartition, now_ms: Timestamp) -> Result<PartitionState, Stop> {
        if let Some(first) =
            self.told.and_then(|told| told.first).filter(|first| matches!(first.kind, EntryKind::Truncate | EntryKind::Restart))
        {
            let detail = format!("the journal that is left begins with a cut to {}", first.end_offset);
            return Err(damage(paths::JOURNAL_DIR, 0, DamageKind::Continuity, detail));
        }
        let mut state = PartitionState::new(partition);
        let mut producers = ProducerTable::new(MAX_PRODUCERS);
        let end = self.end();
        let dir = paths::partition_dir(partition);
        let bases = list_sorted(files, &dir)?.into_iter().filter_map(|DirEntry { name, .. }| match paths::parse_partition_file(&name) {
            Some(PartitionFile::Segment(base, generation)) => Some((base, generation)),
            _ => None,
        });
        let bases: Vec<_> = bases.filter(|(base, _)| !self.has_opened(*base) && end.is_none_or(|end| *base <= end)).collect();
        let last = bases.iter().map(|(base, _)| *base).max();
        let mut next = bases.iter().map(|(base, _)| *base).min();
        (state.log_start, state.log_end) = next.map_or((0, 0), |first| (first, first));
        while let Some(base) = next {
            let generations: Vec<_> = bases.iter().filter(|(other, _)| *other == base).map(|(_, generation)| *generation).collect();
            (state, producers) = self.newest(files, (&state, &producers), &generations, (base, now_ms), end, |end| {
                Some(base) == last || bases.iter().any(|(other, _)| *other == end)
            })?;
            let is_last = last.is_none_or(|last| last < state.log_end || last == base);
            let was_sealed = self.told.is_some_and(|told| !told.opened.is_empty() && !told.sealed.contains(&base));
            if let Some(segment) = state.segments.last_mut() {
                segment.sealed = !is_last || was_sealed || segment.adopted || segment.is_rewritten();
            }
            let is_rewritten = state.segments.last().is_some_and(SegmentInfo::is_rewritten);
            let follows = |other: &Offset| *other > base && (*other >= state.log_end || !is_rewritten);
            next = bases.iter().map(|(other, _)| *other).filter(follows).min();
            if let Some(next) = next.filter(|next| *next != state.log_end) {
                let detail = format!("a segment of offset {next}, the one before it ends with {}", state.log_end);
                return Err(damage(&paths::segment(partition, next), 0, DamageKind::Continuity, detail));
            }
        }
        let wrong = match self.told.and_then(|told| told.first) {
            Some(first) if !adds(first.kind) => state.running_hash != first.running_hash,
            _ => false,
        };
        if end.is_some_and(|end| end != state.log_end) || wrong {
            let detail = format!(
                "the journal goes on from offset {}, the segments end with {}{}",
                end.unwrap_or_default(),
                state.log_end,
                if wrong { " and another running hash" } else { "" }
            );
            return Err(damage(&dir, 0, DamageKind::Continuity, detail));
        }
        state.high_watermark = state.log_end;
        state.producers = producers.snapshot();
        (state.flushed_segment, state.flushed_position) =
            state.segments.last().map_or((state.log_end, 0), |last| (last.base_offset, last.valid_end));
        Ok(state)
    }

    /// Adds the segment of a base offset, of its newest generation that is whole: one that a cleaning had not finished does not end where another begins, and then what it
    /// was made of is still there.
    fn newest(
        &self,
        files: &mut impl ReadFiles,
        (state, producers): (&PartitionState, &ProducerTable),
        generations: &[u32],
        (base, now_ms): (Offset, Timestamp),
        end: Option<Offset>,
        is_followed: impl Fn(Offset) -> bool,
    ) -> Result<(PartitionState, ProducerTable), Stop> {
        let mut generations = generations.to_vec();
        generations.sort_unstable_by(|a, b| b.cmp(a));
        let oldest = generations.last().copied();
        for generation in generations {
            let (mut state, mut producers) = (state.clone(), producers.clone());
            let walked = self.segment(files, &mut state, &mut producers, (base, generation), now_ms, end);
            match walked {
                Ok(()) if Some(generation) == oldest || is_followed(state.log_end) => return Ok((state, producers)),
                Err(Stop::Damage(damage)) if Some(generation) == oldest => return Err(Stop::Damage(damage)),
                Err(Stop::File(error)) => return Err(error.into()),
                Ok(()) | Err(Stop::Damage(_)) => {}
            }
        }
        Ok((state.clone(), producers.clone()))
    }

    /// Adds a segment to the state, walked over up to the log's end.
    fn segment(
        &self,
        files: &mut impl ReadFiles,
        state: &mut PartitionState,
        producers: &mut ProducerTable,
        (base, generation): (Offset, u32),
        now_ms: Timestamp,
        end: Option<Offset>,
    ) -> Result<(), Stop> {
        let path = paths::segment_of(state.partition, base, generation);
        let block = read_blocks(files, &path, 0, BLOCK)?;
        let header: SegmentHeader = file_header::decode(&block).map_err(|error| damage(&path, 0, DamageKind::Header, error))?;
        if (header.partition, header.base_offset, header.rewrite_generation) != (state.partition, base, generation) {
            return Err(damage(&path, 0, DamageKind::Header, format!("of segment {} of {}", header.base_offset, header.partition)));
        }
        if (state.segments.is_empty() && base > 0) || generation > 0 {
            state.running_hash = hash_at_start(files, &paths::index_of(state.partition, base, generation), base)?;
        }
        let mut info = SegmentInfo::new(base, header.rewrite_generation, state.running_hash);
        let mut index = Index::new(base);
        let mut batches = 0;
        let carried = self.told.and_then(|told| told.carried.as_ref()).filter(|(segment, ..)| *segment == base);
        let mut view = Overlaid { files, carried: carried.map(|(_, position, bytes)| (*position, &bytes[..])) };
        let mut pieces = Pieces::open(&mut view, &path)?;
        while end.is_none_or(|end| info.end_offset < end) {
            let at = info.valid_end;
            let (batch, head) = match pieces.batch(at, u64::from(u32::MAX))? {
                Found::Batch(found) => *found,
                Found::Damaged(_, detail) => return Err(damage(&path, at, DamageKind::Batch, detail)),
                // Zeros, or the end of the file: whether the log ends there as well is asked at the end.
                Found::Nothing(_) => break,
            };
            if batch.base_offset < info.end_offset {
                let detail = format!("a batch of offset {}, expected {}", batch.base_offset, info.end_offset);
                return Err(damage(&path, at, DamageKind::Continuity, detail));
            }
            if index.wants(at) {
                index.push(IndexEntry {
                    offset: batch.base_offset,
                    position: at,
                    max_timestamp: info.max_timestamp,
                    running_hash: info.running_hash,
                });
            }
            if state.epochs.last().is_none_or(|(epoch, _)| *epoch < batch.leader_epoch) {
                state.epochs.push((batch.leader_epoch, batch.base_offset));
            }
            producers.record(&batch, now_ms);
            info.running_hash = running_hash(info.running_hash, &head);
            info.end_offset = batch.next_offset();
            info.valid_end += batch.total_len() as u64;
            info.max_timestamp = info.max_timestamp.max(batch.max_timestamp);
            (batches, info.adopted) = (batches + 1, batches == 0 && batch.total_len() > ADOPT_APPEND);
        }
        info.index_entries = index.len() as u32;
        state.log_end = info.end_offset;
        state.running_hash = info.running_hash;
        state.max_timestamp = state.max_timestamp.max(info.max_timestamp);
        state.segments.push(info);
        Ok(())
    }
}

/// The running hash before the first segment that is left, or before a rewritten one, as its index has it.
fn hash_at_start(files: &mut impl ReadFiles, path: &str, base: Offset) -> Result<u64, Stop> {
    let bytes = match len_if_exists(files, path)? {
        Some(_) => read_blocks(files, path, BLOCK as u64, BLOCK)?.to_vec(),
        None => Vec::new(),
    };
    match Index::load(base, &bytes, 1) {
        (index, None) => Ok(index.entries()[0].running_hash),
        (_, Some(error)) => {
            Err(damage(path, FIRST_POSITION, DamageKind::Index, format!("the hash that the log begins with is lost: {error}")))
        }
    }
}

/// A segment with the bytes over it that the journal carries.
struct Overlaid<'a, F> {
    files: &'a mut F,
    carried: Option<(u64, &'a [u8])>,
}

impl<F: ReadFiles> ReadFiles for Overlaid<'_, F> {
    fn list(&mut self, dir: &str) -> Result<Vec<DirEntry>, FileError> {
        self.files.list(dir)
    }

    fn len(&mut self, path: &str) -> Result<u64, FileError> {
        let carried = self.carried.map_or(0, |(position, _)| position + BLOCK as u64);
        Ok(self.files.len(path)?.max(carried))
    }

    fn read(&mut self, path: &str, offset: u64, into: &mut [u8]) -> Result<usize, FileError> {
        let mut read = self.files.read(path, offset, into)?;
        if let Some((position, bytes)) = self.carried {
            let end = position + bytes.len() as u64;
            let (from, to) = (position.max(offset), end.min(offset + into.len() as u64));
            if from < to {
                into[read.min((from - offset) as usize)..(from - offset) as usize].fill(0);
                into[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&bytes[(from - position) as usize..(to - position) as usize]);
                read = read.max((to - offset) as usize);
            }
        }
        Ok(read)
    }
}
