//! A whole store, stopped or running, held against itself.
//!
//! A running broker changes files while they are read. What looks damaged is therefore looked at again as long as checkpoints have moved meanwhile;
//! what is still there then is damage.

use std::collections::{BTreeMap, BTreeSet};

use super::tail::{Place, Tail};
use crate::batch::{BatchHeader, HEADER_LEN};
use crate::checksum::running_hash;
use crate::cluster::{Catalogue, command_log};
use crate::limits::BLOCK;
use crate::log::checkpoint::{CheckpointBody, PartitionState};
use crate::log::damage::{Damage, DamageKind};
use crate::log::fields::{u32_at, u64_at};
use crate::log::file_header::{self, CatalogueHeader, GenerationRecord, IndexHeader, MetaSlot, ReserveHeader};
use crate::log::files::{FileError, ReadFiles, len_if_exists, list_sorted, read_blocks};
use crate::log::index::{INDEX_ENTRY_LEN, IndexEntry, entry_position};
use crate::log::journal::{Entries, EntryKind};
use crate::log::paths::{self, PartitionFile, Slot};
use crate::log::recovery::journals::{self, Chain, Scan};
use crate::log::recovery::read_checkpoint;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::log::segment_walk::{Found, Pieces};
use crate::types::{Offset, Timestamp, TopicId, TopicPartition};

/// Rounds of looking again at a store that changes.
const ROUNDS: usize = 4;

/// Why a store can't be verified at all.
pub type VerifyError = FileError;

/// How far a verification is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VerifyProgress {
    /// Files looked at.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// What a verification found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifyReport {
    /// Files looked at.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Partitions.
    pub partitions: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
    /// What is not whole and was never acknowledged, as far as anything says: the last group of a journal, a checkpoint that was being written.
    pub ambiguous: Vec<Damage>,
}

/// Checks every byte of a store that has a meaning: headers, chains of groups, checkpoints, each batch's CRC, continuity, running hashes, indexes, and the
/// padding of sealed segments. (Padding behind groups and checkpoints has none: a torn write leaves there what was there before.)
///
/// # Errors
/// When a file can't be read.
pub fn verify(files: &mut impl ReadFiles, progress: &mut dyn FnMut(VerifyProgress)) -> Result<VerifyReport, VerifyError> {
    let mut confirmed: Option<Vec<Damage>> = None;
    for round in 1.. {
        let before = versions(files)?;
        let mut verification = Verification { files, progress, report: VerifyReport::default(), topics: None };
        verification.run()?;
        let mut report = verification.report;
        let moved = versions(files)? != before;
        if report.damage.is_empty() || !moved || round == ROUNDS {
            if let Some(earlier) = confirmed.filter(|_| moved) {
                report.damage.retain(|damage| earlier.contains(damage));
            }
            return Ok(report);
        }
        confirmed = Some(report.damage);
    }
    unreachable!("the last round returns")
}

/// Generation and checkpoint sequences: they move while a broker runs.
fn versions(files: &mut impl ReadFiles) -> Result<Vec<(String, Vec<u8>)>, FileError> {
    let mut paths = vec![paths::GENERATION.to_string()];
    let checkpoints = list_sorted(files, paths::CHECKPOINT_DIR)?;
    paths.extend(checkpoints.into_iter().map(|entry| format!("{}/{}", paths::CHECKPOINT_DIR, entry.name)));
    let mut versions = Vec::new();
    for path in paths {
        if len_if_exists(files, &path)?.is_some() {
            let header = read_blocks(files, &path, 0, BLOCK)?;
            versions.push((path, header.to_vec()));
        }
    }
    Ok(versions)
}

struct Verification<'a, F> {
    files: &'a mut F,
    progress: &'a mut dyn FnMut(VerifyProgress),
    report: VerifyReport,
    /// Those of the catalogue, where it can be read.
    topics: Option<BTreeSet<TopicId>>,
}

impl<F: ReadFiles> Verification<'_, F> {
    fn run(&mut self) -> Result<(), FileError> {
        self.root()?;
        self.meta()?;
        self.catalogue()?;
        let Some(record) = self.generation()? else { return Ok(()) };
        let (journals, unknown) = journals::read_all(self.files)?;
        for path in unknown {
            self.damage(path, 0, DamageKind::Unknown, "not a journal file");
        }
        for journal in &journals {
            self.count(journal.bytes.len() as u64);
            if !journal.is_unfinished()
                && let Err(error) = &journal.header
            {
                self.damage(&journal.path, 0, DamageKind::Header, error);
            }
        }
        let scan = journals::scan(journals, &record);
        let mut known = BTreeMap::new();
        for shard in 0..record.shards {
            let Some(body) = self.shard(&record, shard, &scan)? else { continue };
            for tail in body {
                known.insert(tail.state.partition, tail);
            }
        }
        self.partitions(known)
    }

    fn count(&mut self, bytes: u64) {
        self.report.files += 1;
        self.count_bytes(bytes);
    }

    fn count_bytes(&mut self, bytes: u64) {
        self.report.bytes += bytes;
        (self.progress)(VerifyProgress { files: self.report.files, bytes: self.report.bytes });
    }

    fn damage(&mut self, file: impl AsRef<str>, offset: u64, kind: DamageKind, detail: impl std::fmt::Display) {
        self.report.damage.push(Damage::new(file.as_ref(), offset, kind, detail));
    }

    fn root(&mut self) -> Result<(), FileError> {
        for entry in list_sorted(self.files, "")? {
            let is_known = paths::ROOT_NAMES.contains(&entry.name.as_str()) || entry.name == paths::GENERATION_TMP;
            // One that is being made or compacted, or was when the broker was killed; the next start removes it.
            let is_known = is_known || entry.name == paths::CATALOGUE_TMP;
            if !is_known && !paths::is_probe(&entry.name) {
                self.damage(&entry.name, 0, DamageKind::Unknown, "not a name of the store");
            }
        }
        if let Some(len) = len_if_exists(self.files, paths::RESERVE)? {
            let block = read_blocks(self.files, paths::RESERVE, 0, BLOCK)?;
            self.count(BLOCK.min(len as usize) as u64);
            // All zeros: it is being made.
            if let Err(error) = file_header::decode::<ReserveHeader>(&block)
                && block.iter().any(|byte| *byte != 0)
            {
                self.damage(paths::RESERVE, 0, DamageKind::Header, error);
            }
        }
        Ok(())
    }

    fn meta(&mut self) -> Result<(), FileError> {
        if len_if_exists(self.files, paths::META)?.is_none() {
            self.damage(paths::META, 0, DamageKind::Missing, "the store's identity is not there");
            return Ok(());
        }
        let mut bytes = read_blocks(self.files, paths::META, 0, 2 * BLOCK)?.to_vec();
        self.count(bytes.len() as u64);
        bytes.resize(2 * BLOCK, 0);
        let slot = |slot: usize| bytes.get(slot * BLOCK..(slot + 1) * BLOCK).unwrap_or_default();
        let slots = [0, 1].map(|number| file_header::decode::<MetaSlot>(slot(number)));
        let none = slots.iter().all(Result::is_err);
        for (number, found) in slots.iter().enumerate() {
            let Err(error) = found else { continue };
            let damage = Damage::new(paths::META, (number * BLOCK) as u64, DamageKind::Header, error);
            let blank = slot(number).iter().all(|byte| *byte == 0);
            match (none, blank) {
                (false, true) => {}
                // The slot that is written next may be torn by a crash; the other one holds.
                (false, false) => self.report.ambiguous.push(damage),
                (true, _) => self.report.damage.push(damage),
            }
        }
        Ok(())
    }

    /// Header and records of the command log, and which topics there are by it.
    fn catalogue(&mut self) -> Result<(), FileError> {
        const FILE: &str = paths::CATALOGUE;
        let Some(len) = len_if_exists(self.files, FILE)? else { return Ok(()) };
        let bytes = read_blocks(self.files, FILE, 0, len as usize)?;
        self.count(bytes.len() as u64);
        self.topics = topics(&bytes);
        if let Err(error) = file_header::decode::<CatalogueHeader>(&bytes) {
            self.damage(FILE, 0, DamageKind::Header, error);
            return Ok(());
        }
        let (mut at, mut sequence) = (BLOCK, 1);
        while let Some(end) = record_end(&bytes, at, sequence) {
            let padded = end.next_multiple_of(8).min(bytes.len());
            if bytes[end..padded].iter().any(|byte| *byte != 0) {
                self.damage(FILE, end as u64, DamageKind::Padding, "a record's padding is not zero");
            }
            (at, sequence) = (padded, sequence + 1);
        }
        if bytes[at..].iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let later = (at..bytes.len()).step_by(8).find_map(|at| (1..=64).find(|ahead| record_end(&bytes, at, sequence + ahead).is_some()));
        let detail = format!("record {sequence} does not check");
        match later {
            Some(ahead) => self.damage(FILE, at as u64, DamageKind::Catalogue, format!("{detail}, record {} does", sequence + ahead)),
            None => self.report.ambiguous.push(Damage::new(FILE, at as u64, DamageKind::Catalogue, detail)),
        }
        Ok(())
    }

    fn generation(&mut self) -> Result<Option<GenerationRecord>, FileError> {
        if len_if_exists(self.files, paths::GENERATION)?.is_none() {
            if !list_sorted(self.files, paths::TOPICS_DIR)?.is_empty() {
                self.damage(paths::GENERATION, 0, DamageKind::Missing, "there are topics and no generation record");
            }
            return Ok(None);
        }
        let block = read_blocks(self.files, paths::GENERATION, 0, BLOCK)?;
        self.count(block.len() as u64);
        match file_header::decode(&block) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                self.damage(paths::GENERATION, 0, DamageKind::Header, error);
                Ok(None)
            }
        }
    }

    /// Checkpoints and journal of one shard: its partitions as they are after the journal.
    fn shard(&mut self, record: &GenerationRecord, shard: u32, scan: &Scan) -> Result<Option<Vec<Tail>>, FileError> {
        let mut damaged = Vec::new();
        let mut newest: Option<CheckpointBody> = None;
        for slot in Slot::BOTH {
            let path = paths::checkpoint(record.generation, shard, slot);
            let Some(len) = len_if_exists(self.files, &path)? else { continue };
            self.count(len);
            match read_checkpoint(self.files, &path)? {
                Ok((header, body)) => {
                    if (header.generation, header.shard) != (record.generation, shard) {
                        self.damage(&path, 0, DamageKind::Checkpoint, "a checkpoint of another generation or shard");
                        continue;
                    }
                    if newest.as_ref().is_none_or(|newest| body.sequence > newest.sequence) {
                        newest = Some(body);
                    }
                }
                Err(error) => damaged.push(Damage::new(path, 0, DamageKind::Checkpoint, error)),
            }
        }
        let Some(body) = newest else {
            let path = paths::checkpoint(record.generation, shard, Slot::A);
            self.report.damage.append(&mut damaged);
            self.damage(path, 0, DamageKind::Missing, format!("shard {shard} has no checkpoint that checks"));
            return Ok(None);
        };
        let sequence = body.sequence;
        let chain = journals::chain(scan, shard, body.replay_from, sequence);
        let (tails, noted) = self.follow(body, scan, &chain);
        // A journal entry says that a checkpoint newer than the one that is left was whole once.
        let list = if noted > sequence { &mut self.report.damage } else { &mut self.report.ambiguous };
        list.append(&mut damaged);
        if let Some(torn) = chain.torn {
            let detail = format!("group {} of shard {}: {}", torn.sequence, torn.shard, torn.detail);
            self.report.ambiguous.push(Damage::new(torn.file, torn.offset, DamageKind::Group, detail));
        }
        Ok(Some(tails.into_values().collect()))
    }

    fn follow(&mut self, body: CheckpointBody, scan: &Scan, chain: &Chain) -> (BTreeMap<TopicPartition, Tail>, u64) {
        let mut noted = body.sequence;
        let mut tails: BTreeMap<_, _> = body.partitions.into_iter().map(|state| (state.partition, Tail::new(state))).collect();
        for (at, group) in chain.groups.iter().enumerate() {
            for lost in chain.lost.iter().filter(|lost| lost.before == at) {
                self.report.damage.push(lost.damage.clone());
                tails.values_mut().filter(|_| lost.last > body.sequence).for_each(Tail::stop);
            }
            let Ok(bytes) = scan.group(group) else { continue };
            let place = Place {
                file: scan.files[group.file].path.clone(),
                offset: group.header.position,
                seen: group.header.sequence <= body.sequence,
                durable: group.header.sequence <= chain.durable,
            };
            for entry in Entries::new(bytes) {
                let (entry, payload) = match entry {
                    Ok(entry) => entry,
                    Err(error) => {
                        self.damage(&place.file, place.offset, DamageKind::Entry, error);
                        break;
                    }
                };
                match entry.kind {
                    EntryKind::Checkpoint => noted = noted.max(u64::try_from(entry.base_offset).unwrap_or(0)),
                    EntryKind::DurableMark => {}
                    _ if place.seen && !tails.contains_key(&entry.topic_partition) => {}
                    _ => {
                        let new = || Tail::new(PartitionState::new(entry.topic_partition));
                        tails.entry(entry.topic_partition).or_insert_with(new).take(&entry, payload, &place);
                    }
                }
            }
        }
        for lost in chain.lost.iter().filter(|lost| lost.before >= chain.groups.len()) {
            self.report.damage.push(lost.damage.clone());
        }
        (tails, noted)
    }

    fn partitions(&mut self, known: BTreeMap<TopicPartition, Tail>) -> Result<(), FileError> {
        // Of a topic that is deleted in the catalogue, checkpoints and journals may still speak, and its files may be there or not.
        let exists = |tail: &Tail| self.topics.as_ref().is_none_or(|topics| topics.contains(&tail.state.partition.topic));
        let known: Vec<Tail> = known.into_values().filter(exists).collect();
        for mut tail in known {
            self.report.partitions += 1;
            if tail.state.quarantined {
                self.damage(paths::partition_dir(tail.state.partition), 0, DamageKind::Quarantined, "the partition is quarantined");
                continue;
            }
            let read = tail.read_references(self.files)?;
            self.count_bytes(read);
            self.report.damage.append(&mut tail.damage);
            self.report.ambiguous.append(&mut tail.ambiguous);
            self.partition(&tail)?;
        }
        Ok(())
    }

    fn partition(&mut self, tail: &Tail) -> Result<(), FileError> {
        let state = &tail.state;
        let dir = paths::partition_dir(state.partition);
        for entry in list_sorted(self.files, &dir)? {
            let path = format!("{dir}/{}", entry.name);
            match paths::parse_partition_file(&entry.name).filter(|_| !entry.is_dir) {
                Some(PartitionFile::Adopted(_)) => {}
                Some(PartitionFile::Segment(base, generation) | PartitionFile::Index(base, generation)) => {
                    let first = state.segments.first().map_or(state.log_end, |segment| segment.base_offset);
                    let known = state
                        .segments
                        .iter()
                        .any(|s| (s.base_offset, s.rewrite_generation) == (base, generation) || s.supersedes(base, generation));
                    // Left by a deletion, a roll or a cleaning that is not finished.
                    if !known && (first..state.log_end).contains(&base) {
                        self.damage(path, 0, DamageKind::Unknown, "a segment that the log does not have");
                    }
                }
                None => self.damage(path, 0, DamageKind::Unknown, "not a file of a partition"),
            }
        }
        let mut hash = None;
        for segment in &state.segments {
            if segment.is_rewritten() {
                // It has a chain of its own, which begins with what its index says and leads to the one of the segment behind it.
                hash = None;
            } else if segment.base_offset == 0 {
                hash = Some(0);
            }
            self.segment(tail, segment, hash)?;
            hash = Some(segment.running_hash);
        }
        Ok(())
    }

    /// Walks over the flushed part of a segment, with its index, and on over the headers that the journal has, so that the running hash comes to its end.
    fn segment(&mut self, tail: &Tail, info: &SegmentInfo, mut hash: Option<u64>) -> Result<(), FileError> {
        let state = &tail.state;
        let flushed = (state.flushed_segment, state.flushed_position);
        let limit = match info.base_offset {
            base if base < flushed.0 => info.valid_end,
            base if base == flushed.0 => info.valid_end.min(flushed.1),
            _ => return Ok(()),
        };
        if limit <= FIRST_POSITION {
            return Ok(());
        }
        let path = info.path(state.partition);
        if len_if_exists(self.files, &path)?.is_none() {
            self.damage(&path, 0, DamageKind::Missing, "the segment is not there");
            return Ok(());
        }
        let block = read_blocks(self.files, &path, 0, BLOCK)?;
        if let Err(error) = file_header::decode_expecting(&block, &info.header(state.partition)) {
            self.damage(&path, 0, DamageKind::Header, error);
        }
        let mut index = self.index(state, info, limit)?.into_iter().peekable();
        let mut found_damage = Vec::new();
        let mut pieces = Pieces::open(self.files, &path)?;
        let (mut at, mut next, mut largest) = (FIRST_POSITION, info.base_offset, Timestamp::MIN);
        while at < info.valid_end {
            let (header, head) = if at + HEADER_LEN as u64 > limit {
                let Some(head) = tail.headers.get(&(info.base_offset, at)) else { break };
                let Ok(header) = BatchHeader::parse(head) else { break };
                (header, *head)
            } else {
                match pieces.batch(at, info.valid_end)? {
                    Found::Batch(found) => *found,
                    // A batch whose end is not flushed yet: the journal has it.
                    Found::Damaged(found, _) if at + found.0.total_len() as u64 > limit => *found,
                    Found::Damaged(found, detail) => {
                        found_damage.push(Damage::new(&*path, at, DamageKind::Batch, detail));
                        *found
                    }
                    Found::Nothing(detail) => {
                        found_damage.push(Damage::new(&*path, at, DamageKind::Batch, detail));
                        hash = None;
                        break;
                    }
                }
            };
            if header.base_offset < next {
                let detail = format!("a batch of offset {}, expected {next}", header.base_offset);
                found_damage.push(Damage::new(&*path, at, DamageKind::Continuity, detail));
            }
            while index.peek().is_some_and(|(_, entry)| entry.position <= at) {
                let Some((place, entry)) = index.next() else { break };
                let wrong = if entry.position < at {
                    Some((DamageKind::Index, format!("no batch starts at {}", entry.position)))
                } else if entry.offset != header.base_offset {
                    // The entry has a checksum over its offset, the batch has none over its own.
                    let detail = format!("a batch of offset {}, the index has {} there", header.base_offset, entry.offset);
                    Some((DamageKind::Continuity, detail))
                } else if entry.max_timestamp < largest {
                    Some((DamageKind::Index, format!("{entry:?} for a batch after timestamp {largest}")))
                } else if hash.is_some_and(|hash| hash != entry.running_hash) {
                    Some((DamageKind::RunningHash, format!("the log's running hash at {at} is not the index's")))
                } else {
                    hash = Some(entry.running_hash);
                    None
                };
                if let Some((kind, detail)) = wrong {
                    let (file, offset) = match kind {
                        DamageKind::RunningHash | DamageKind::Continuity => (path.clone(), at),
                        _ => (info.index_path(state.partition), place),
                    };
                    found_damage.push(Damage::new(file, offset, kind, detail));
                }
            }
            hash = hash.map(|before| running_hash(before, &head));
            next = header.next_offset();
            largest = largest.max(header.max_timestamp);
            at += header.total_len() as u64;
        }
        if at == info.valid_end && found_damage.is_empty() {
            if next > info.end_offset {
                let detail = format!("the segment ends with offset {next}, expected {}", info.end_offset);
                found_damage.push(Damage::new(&*path, at, DamageKind::Continuity, detail));
            } else if hash.is_some_and(|hash| hash != info.running_hash) {
                found_damage.push(Damage::new(
                    &*path,
                    at,
                    DamageKind::RunningHash,
                    "the running hash at the segment's end is not the log's",
                ));
            }
        }
        if limit == info.valid_end && found_damage.is_empty() {
            if at != limit {
                let detail = format!("the last batch ends at {at}, the segment at {limit}");
                found_damage.push(Damage::new(&*path, at, DamageKind::Continuity, detail));
            }
            let end = limit.next_multiple_of(BLOCK as u64).min(pieces.len());
            if info.sealed
                && !is_left_of_a_cut(&mut pieces, info.end_offset, limit, end)?
                && let Some(at) = pieces.first_nonzero(limit, end)?
            {
                found_damage.push(Damage::new(&*path, at, DamageKind::Padding, "the padding behind the last batch is not zero"));
            }
        }
        let read = pieces.read;
        self.count(read + BLOCK as u64);
        self.report.damage.append(&mut found_damage);
        Ok(())
    }

    /// The entries of a segment's index that count, and where each is; those that don't check are reported.
    fn index(&mut self, state: &PartitionState, info: &SegmentInfo, limit: u64) -> Result<Vec<(u64, IndexEntry)>, FileError> {
        let path = info.index_path(state.partition);
        let Some(len) = len_if_exists(self.files, &path)? else {
            if info.index_entries > 0 {
                self.damage(path, 0, DamageKind::Missing, "the index is not there");
            }
            return Ok(Vec::new());
        };
        let bytes = read_blocks(self.files, &path, 0, len.min((BLOCK + info.index_entries as usize * INDEX_ENTRY_LEN) as u64) as usize)?;
        self.count(bytes.len() as u64);
        if let Err(error) = file_header::decode_expecting(&bytes, &IndexHeader(info.header(state.partition))) {
            self.damage(&path, 0, DamageKind::Header, error);
        }
        let mut entries = Vec::new();
        for number in 0..info.index_entries as usize {
            let at = entry_position(number);
            let bytes = bytes.get(at as usize..at as usize + INDEX_ENTRY_LEN).unwrap_or_default();
            match IndexEntry::decode(bytes, info.base_offset) {
                Ok(entry) if entry.position >= limit => break,
                Ok(entry) => entries.push((at, entry)),
                // Of the segment that is being flushed not every entry is in the file yet.
                Err(_) if info.base_offset == state.flushed_segment && bytes.iter().all(|byte| *byte == 0) => break,
                Err(error) => self.damage(&path, at, DamageKind::Index, error),
            }
        }
        Ok(entries)
    }
}

/// The topics of a command log; `None` where it can't be read.
fn topics(log: &[u8]) -> Option<BTreeSet<TopicId>> {
    let catalogue = Catalogue::replay(&command_log::decode_log(log).ok()?).ok()?;
    Some(catalogue.view().topics().map(|topic| topic.id).collect())
}

/// The end of the command record with this sequence at a position, if one is there that checks.
fn record_end(bytes: &[u8], at: usize, sequence: u64) -> Option<usize> {
    let record = bytes.get(at..).filter(|record| record.len() >= 16)?;
    let end = 16usize.checked_add(u32_at(record, 0) as usize)?;
    if u64_at(record, 8) != sequence || end > record.len() || end == 16 {
        return None;
    }
    (crc32fast::hash(&record[8..end]) == u32_at(record, 4)).then_some(at + end)
}

/// Whether what stands behind the last batch is the batch that a cut took away: a follower's log was cut there, and its segment sealed before another batch came. Its bytes stay, since a
/// recovery from before the cut needs them; they begin with the offset at which the segment ends.
fn is_left_of_a_cut<F: ReadFiles>(pieces: &mut Pieces<'_, F>, end_offset: Offset, from: u64, to: u64) -> Result<bool, FileError> {
    let mut first = [0; 8];
    let len = (to.saturating_sub(from) as usize).min(first.len());
    let copied = pieces.copy(from, &mut first[..len])?;
    Ok(copied == len && len > 0 && first[..len] == end_offset.to_be_bytes()[..len] && first[..len].iter().any(|byte| *byte != 0))
}
