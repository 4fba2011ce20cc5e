//! Opening a store: from what a run left behind to what the next one starts with.
//!
//! The last generation's checkpoints and journals are read; the journal's bytes are put into the segments and synced; the next generation's
//! checkpoints are written and synced; then one rename puts the next generation in force. Until that rename the old generation is whole, so that a crash anywhere
//! leads to the same work on the same data; after it the old checkpoints are garbage and the old journals have another salt.
//!
//! What can't have been acknowledged is cut. Everything else that does not check is damage: its partition is set aside (`quarantined`), named, and
//! not touched again.
//!
//! The pieces: `journals` finds the groups that count, `replay` takes one partition through them, `place` and `index_tail`
//! write what that brings, `install` ends the old generation and starts the new one. Not here: the lock and the catalogue (the caller's), `meta`
//! ([`identity`](crate::log::identity)).

mod batch_check;
mod index_rebuild;
mod index_tail;
mod install;
pub(crate) mod journals;
mod place;
pub mod repair;
mod replay;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;

pub(crate) use self::batch_check::BatchCheck;
pub use self::journals::TornGroup;
use self::journals::{Chain, Scan};
use self::replay::Replay;
use crate::limits::{BLOCK, INDEX_CHECK, LARGE_CHECK, MAX_CHECKPOINT, MAX_SHARDS};
use crate::log::checkpoint::{self, CheckpointBody, CheckpointError, PartitionState};
use crate::log::damage::{Damage, DamageKind};
use crate::log::file_header::{self, CheckpointHeader, GenerationRecord, HeaderError};
use crate::log::files::{FileError, ReadFiles, StoreFiles, len_if_exists, list_sorted, read_blocks};
use crate::log::journal::{Entries, EntryError, EntryHeader, EntryKind, PayloadError};
use crate::log::paths::{self, Slot};
use crate::types::{Offset, Timestamp, TopicPartition};

/// What the next run wants.
pub struct OpenRequest<'a> {
    /// The cluster's UUID, as in `meta`.
    pub cluster: [u8; 16],
    /// Shards of the next run, 1 to [`MAX_SHARDS`].
    pub shards: u32,
    /// A random number other than 0, for the next generation's groups.
    pub salt: u64,
    /// Now, ms; producers count as used at this time.
    pub now_ms: Timestamp,
    /// Every partition that exists, by the catalogue.
    pub catalogue: &'a [TopicPartition],
    /// The shard, of the next run's, that a partition goes to.
    pub owner: &'a dyn Fn(TopicPartition) -> u32,
}

/// A partition as the next run's shard takes it over. Everything is in its segments and synced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionImage {
    /// As in the new checkpoint.
    pub state: PartitionState,
    /// The bytes of the log's unfinished block, from its boundary: the next append carries them.
    pub remainder: Vec<u8>,
}

/// A journal file that can be used again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AvailableJournal {
    /// Its id.
    pub id: u64,
    /// Where it is.
    pub path: String,
    /// Its size, bytes.
    pub size: u64,
}

/// A store that is ready for its next run.
#[derive(Debug)]
pub struct RecoveredStore {
    /// The generation that is in force now.
    pub generation: u64,
    /// Its salt.
    pub salt: u64,
    /// By shard: its partitions, in order. Its checkpoint is in slot a, with sequence 0: its next group is number 1.
    pub shards: Vec<Vec<PartitionImage>>,
    /// Written files for the shards to take.
    pub journals: Vec<AvailableJournal>,
    /// No journal file ever had this id or a larger one.
    pub next_journal_id: u64,
    /// What was found.
    pub report: RecoveryReport,
}

/// What a recovery found and did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    /// Groups that were replayed.
    pub groups: u64,
    /// Entries in them.
    pub entries: u64,
    /// Bytes written to segments.
    pub bytes: u64,
    /// Partitions, quarantined ones included.
    pub partitions: u64,
    /// Per shard at most one: the group behind the last one, where something is left of it.
    pub torn: Vec<TornGroup>,
    /// Checkpoint slots that are damaged where nothing says that they ever were whole: writing them was interrupted.
    pub torn_checkpoints: Vec<Damage>,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that everything depends on does not check.
    #[error("{file}: {error}")]
    Header {
        /// The file.
        file: String,
        /// What is wrong.
        error: HeaderError,
    },
    /// Both checkpoints of a shard are damaged: the store may be read and repaired, not opened.
    #[error(
        "no checkpoint of shard {shard} can be read: {first}; {second}; put one back from a copy, or see `corelane inspect repair --help`"
    )]
    Checkpoints {
        /// The shard.
        shard: u32,
        /// What is wrong with slot a.
        first: Box<Damage>,
        /// What is wrong with slot b.
        second: Box<Damage>,
    },
    /// There are journals or partitions, and nothing says of which generation.
    #[error("{found:?} is there and the file \"generation\" is not")]
    NoGeneration {
        /// What is there.
        found: String,
    },
    /// Another cluster's file.
    #[error("{file} is of cluster {}, the store is of {}", uuid::Uuid::from_bytes(*actual), uuid::Uuid::from_bytes(*expected))]
    OtherCluster {
        /// The file.
        file: String,
        /// As in `meta`.
        expected: [u8; 16],
        /// As in the file.
        actual: [u8; 16],
    },
    /// An entry that this program must understand and does not.
    #[error("{file}, group at {offset}: {error}")]
    Entry {
        /// The journal file.
        file: String,
        /// Position of the group.
        offset: u64,
        /// What is wrong.
        error: EntryError,
    },
    /// A number of shards that can't be.
    #[error("{actual} shards, expected 1 to {MAX_SHARDS}")]
    Shards {
        /// What the generation record or the request says.
        actual: u32,
    },
}

/// Where an entry comes from.
#[derive(Clone, Debug)]
struct Source {
    file: String,
    offset: u64,
    /// The group, and the segments that it points into, were known durable.
    proven_durable: bool,
}

/// What can go wrong with one partition, or with everything.
#[derive(Debug)]
enum Fault {
    File(FileError),
    Partition(Damage),
}

impl Fault {
    /// Found in the entry at hand.
    fn partition(kind: DamageKind, detail: impl fmt::Display) -> Fault {
        Fault::Partition(Damage::new("", 0, kind, detail))
    }

    /// The entry's payload can't be read.
    fn entry(error: PayloadError) -> Fault {
        Fault::partition(DamageKind::Entry, error)
    }

    /// Found in another file.
    fn at(file: &str, offset: u64, kind: DamageKind, detail: impl fmt::Display) -> Fault {
        Fault::Partition(Damage::new(file, offset, kind, detail))
    }
}

impl From<FileError> for Fault {
    fn from(error: FileError) -> Fault {
        Fault::File(error)
    }
}

/// Opens a store whose identity is known and whose lock is held: recovers what the last run left, and puts the next generation in force. An
/// empty store gets its first generation. Interrupted anywhere, it can be run again.
///
/// # Errors
/// When a file can't be read or written, or what everything depends on is damaged. Damage to single partitions is in the report.
pub fn open_store(files: &mut impl StoreFiles, request: &OpenRequest<'_>) -> Result<RecoveredStore, OpenError> {
    expect_shards(request.shards)?;
    let mut recovery = Recovery::default();
    let (journals, unknown) = journals::read_all(files)?;
    recovery.unknown_files = unknown;
    let (generation, scan) = match read_generation(files, request, &journals)? {
        Some(record) => {
            let scan = journals::scan(journals, &record);
            recovery.replay_all(files, request, &record, &scan)?;
            (record.generation, scan)
        }
        None => (0, Scan { files: journals, ..Scan::default() }),
    };
    install::install(files, request, generation, scan, recovery)
}

fn expect_shards(actual: u32) -> Result<(), OpenError> {
    if (1..=MAX_SHARDS).contains(&actual) { Ok(()) } else { Err(OpenError::Shards { actual }) }
}

/// The generation in force; `None` in a store that never had one.
fn read_generation(
    files: &mut impl StoreFiles,
    request: &OpenRequest<'_>,
    journals: &[journals::JournalFile],
) -> Result<Option<GenerationRecord>, OpenError> {
    if len_if_exists(files, paths::GENERATION)?.is_none() {
        // A first opening that was interrupted leaves checkpoints only. Anything else means that the record is lost.
        if let Some(journal) = journals.iter().find(|journal| journal.holds_group()) {
            return Err(OpenError::NoGeneration { found: journal.path.clone() });
        }
        return match list_sorted(files, paths::TOPICS_DIR)?.first() {
            Some(topic) => Err(OpenError::NoGeneration { found: format!("{}/{}", paths::TOPICS_DIR, topic.name) }),
            None => Ok(None),
        };
    }
    read_record(files, request.cluster).map(Some)
}

fn read_record(files: &mut impl ReadFiles, cluster: [u8; 16]) -> Result<GenerationRecord, OpenError> {
    let block = read_blocks(files, paths::GENERATION, 0, BLOCK)?;
    let record: GenerationRecord =
        file_header::decode(&block).map_err(|error| OpenError::Header { file: paths::GENERATION.into(), error })?;
    expect_cluster(paths::GENERATION, cluster, record.cluster)?;
    expect_shards(record.shards)?;
    Ok(record)
}

fn expect_cluster(file: &str, expected: [u8; 16], actual: [u8; 16]) -> Result<(), OpenError> {
    if actual == expected { Ok(()) } else { Err(OpenError::OtherCluster { file: file.into(), expected, actual }) }
}

/// A checkpoint slot as it was found.
enum FoundSlot {
    Absent,
    Valid(Box<CheckpointBody>),
    Damaged(Damage),
}

/// Reads a checkpoint file.
///
/// # Errors
/// The inner one when it does not check.
pub(crate) fn read_checkpoint(
    files: &mut impl ReadFiles,
    path: &str,
) -> Result<Result<(CheckpointHeader, CheckpointBody), CheckpointError>, FileError> {
    let block = read_blocks(files, path, 0, BLOCK)?;
    let header: CheckpointHeader = match file_header::decode(&block) {
        Ok(header) => header,
        Err(error) => return Ok(Err(error.into())),
    };
    let len = BLOCK as u64 + header.body_len.min(MAX_CHECKPOINT);
    let bytes = read_blocks(files, path, 0, len as usize)?;
    Ok(checkpoint::decode(&bytes))
}

fn read_slot(files: &mut impl ReadFiles, cluster: [u8; 16], generation: u64, shard: u32, slot: Slot) -> Result<FoundSlot, OpenError> {
    let path = paths::checkpoint(generation, shard, slot);
    if len_if_exists(files, &path)?.is_none() {
        return Ok(FoundSlot::Absent);
    }
    match read_checkpoint(files, &path)? {
        Ok((header, body)) => {
            expect_cluster(&path, cluster, header.cluster)?;
            if (header.generation, header.shard) != (generation, shard) {
                let detail = format!("of generation {} and shard {}", header.generation, header.shard);
                return Ok(FoundSlot::Damaged(Damage::new(path, 0, DamageKind::Checkpoint, detail)));
            }
            Ok(FoundSlot::Valid(Box::new(body)))
        }
        Err(CheckpointError::Header(error @ HeaderError::NewerVersion { .. })) => Err(OpenError::Header { file: path, error }),
        Err(error) => Ok(FoundSlot::Damaged(Damage::new(path, 0, DamageKind::Checkpoint, error))),
    }
}

/// The newer valid slot of a shard, and the damaged one, if one is.
fn newest_checkpoint(
    files: &mut impl ReadFiles,
    cluster: [u8; 16],
    generation: u64,
    shard: u32,
) -> Result<(CheckpointBody, Option<Damage>), OpenError> {
    let absent = |slot| Damage::new(paths::checkpoint(generation, shard, slot), 0, DamageKind::Missing, "the checkpoint is not there");
    let first = read_slot(files, cluster, generation, shard, Slot::A)?;
    let second = read_slot(files, cluster, generation, shard, Slot::B)?;
    match (first, second) {
        (FoundSlot::Valid(a), FoundSlot::Valid(b)) => Ok((if b.sequence > a.sequence { *b } else { *a }, None)),
        (FoundSlot::Valid(body), FoundSlot::Absent) | (FoundSlot::Absent, FoundSlot::Valid(body)) => Ok((*body, None)),
        (FoundSlot::Valid(body), FoundSlot::Damaged(damage)) | (FoundSlot::Damaged(damage), FoundSlot::Valid(body)) => {
            Ok((*body, Some(damage)))
        }
        (first, second) => {
            let damage = |found, slot| match found {
                FoundSlot::Damaged(damage) => damage,
                _ => absent(slot),
            };
            Err(OpenError::Checkpoints { shard, first: Box::new(damage(first, Slot::A)), second: Box::new(damage(second, Slot::B)) })
        }
    }
}

/// What is recovered so far.
#[derive(Default)]
struct Recovery {
    /// Partitions that are all right.
    replays: BTreeMap<TopicPartition, Replay>,
    /// Partitions that are not, as last known.
    quarantined: BTreeMap<TopicPartition, PartitionState>,
    /// Journal files that hold something of a partition that was set aside now: kept.
    kept_journals: HashSet<usize>,
    unknown_files: Vec<String>,
    report: RecoveryReport,
}

impl Recovery {
    fn replay_all(
        &mut self,
        files: &mut impl StoreFiles,
        request: &OpenRequest<'_>,
        record: &GenerationRecord,
        scan: &Scan,
    ) -> Result<(), OpenError> {
        let catalogue: HashSet<TopicPartition> = request.catalogue.iter().copied().collect();
        for shard in 0..record.shards {
            let (body, damaged_slot) = newest_checkpoint(files, request.cluster, record.generation, shard)?;
            let chain = journals::chain(scan, shard, body.replay_from, body.sequence);
            let set_aside = self.report.damage.len();
            let (checkpoint, noted) = (body.sequence, body.sequence);
            let cuts = Cuts::of(scan, &chain);
            let mut replay = ShardReplay { catalogue: &catalogue, request, scan, chain: &chain, checkpoint, noted, cuts };
            let partitions = self.start(body, &catalogue, request.now_ms);
            let done = replay.run(self, files, partitions)?;
            self.take_over(done);
            if self.report.damage.len() > set_aside {
                self.kept_journals.extend(chain.groups.iter().map(|group| group.file));
                self.kept_journals.extend(scan.suspects.iter().map(|suspect| suspect.file));
            }
            if let Some(damage) = damaged_slot {
                // A journal entry says that a checkpoint newer than the one that is left was whole once.
                let list = if replay.noted > replay.checkpoint { &mut self.report.damage } else { &mut self.report.torn_checkpoints };
                list.push(damage);
            }
            self.report.torn.extend(chain.torn);
        }
        Ok(())
    }

    fn start(&mut self, body: CheckpointBody, catalogue: &HashSet<TopicPartition>, now_ms: Timestamp) -> BTreeMap<TopicPartition, Replay> {
        let mut replays = BTreeMap::new();
        for state in body.partitions.into_iter().filter(|state| catalogue.contains(&state.partition)) {
            if state.quarantined {
                self.quarantined.insert(state.partition, state);
            } else {
                replays.insert(state.partition, Replay::new(state, now_ms));
            }
        }
        replays
    }

    fn take_over(&mut self, replays: BTreeMap<TopicPartition, Replay>) {
        for (partition, replay) in replays {
            if self.quarantined.contains_key(&partition) {
                continue;
            }
            if let Some(other) = self.replays.remove(&partition) {
                let detail = format!("{partition} is in the checkpoints of two shards");
                self.set_aside(other, Damage::new(paths::CHECKPOINT_DIR, 0, DamageKind::Checkpoint, detail));
                continue;
            }
            self.replays.insert(partition, replay);
        }
    }

    /// Nothing of the partition is touched any more; its state is what was last known good.
    fn set_aside(&mut self, replay: Replay, damage: Damage) {
        let state = replay.state;
        self.report.damage.push(damage);
        self.quarantined.insert(state.partition, PartitionState { quarantined: true, ..state });
    }
}

/// The replay of one old shard's journal.
struct ShardReplay<'a> {
    catalogue: &'a HashSet<TopicPartition>,
    request: &'a OpenRequest<'a>,
    scan: &'a Scan,
    chain: &'a Chain,
    /// Sequence of the checkpoint.
    checkpoint: u64,
    /// Sequence of the newest checkpoint that the journal knows.
    noted: u64,
    cuts: Cuts,
}

type Replays = BTreeMap<TopicPartition, Replay>;

impl ShardReplay<'_> {
    fn run(&mut self, recovery: &mut Recovery, files: &mut impl StoreFiles, mut replays: Replays) -> Result<Replays, OpenError> {
        for (partition, replay) in &mut replays {
            replay.placement.set_later_cut(self.cuts.least(*partition));
        }
        let mut finished_seen = false;
        for (at, group) in self.chain.groups.iter().enumerate() {
            if !finished_seen && group.header.sequence > self.checkpoint {
                finish_seen(recovery, &mut replays)?;
                finished_seen = true;
            }
            self.note_lost(recovery, &mut replays, at);
            self.replay_group(recovery, files, &mut replays, group)?;
        }
        if !finished_seen {
            finish_seen(recovery, &mut replays)?;
        }
        self.note_lost(recovery, &mut replays, self.chain.groups.len());
        finish(recovery, files, replays)
    }

    /// A partition that the checkpoint does not know.
    fn anew(&self, partition: TopicPartition) -> Replay {
        let mut replay = Replay::new(PartitionState::new(partition), self.request.now_ms);
        replay.placement.set_later_cut(self.cuts.least(partition));
        replay
    }

    /// Lost groups before group number `at`: those after the checkpoint may have changed any partition; those before it may have held bytes, which
    /// shows where they are missing.
    fn note_lost(&self, recovery: &mut Recovery, replays: &mut Replays, at: usize) {
        for lost in self.chain.lost.iter().filter(|lost| lost.before == at) {
            recovery.report.damage.push(lost.damage.clone());
            if lost.last > self.checkpoint {
                replays.values_mut().for_each(|replay| replay.suspect(&lost.damage));
            }
        }
    }

    fn replay_group(
        &mut self,
        recovery: &mut Recovery,
        files: &mut impl StoreFiles,
        replays: &mut Replays,
        group: &journals::FoundGroup,
    ) -> Result<(), OpenError> {
        let sequence = group.header.sequence;
        let file = &self.scan.files[group.file].path;
        let source = Source { file: file.clone(), offset: group.header.position, proven_durable: sequence <= self.chain.durable };
        let Ok(bytes) = self.scan.group(group) else { return Ok(()) };
        recovery.report.groups += 1;
        for entry in Entries::new(bytes) {
            let (entry, payload) = entry.map_err(|error| OpenError::Entry { file: source.file.clone(), offset: source.offset, error })?;
            recovery.report.entries += 1;
            let partition = entry.topic_partition;
            if cut_of(&entry).is_some() {
                self.cuts.pass(partition);
                if let Some(replay) = replays.get_mut(&partition) {
                    replay.placement.set_later_cut(self.cuts.least(partition));
                }
            }
            match entry.kind {
                EntryKind::Checkpoint => self.noted = self.noted.max(u64::try_from(entry.base_offset).unwrap_or(0)),
                EntryKind::DurableMark => {}
                // What was damaged is gone since, and another replica's records came in its place.
                EntryKind::Restart | EntryKind::PartitionDropped
                    if self.catalogue.contains(&partition)
                        && sequence > self.checkpoint
                        && recovery.quarantined.contains_key(&partition) =>
                {
                    recovery.quarantined.remove(&partition);
                    let mut replay = self.anew(partition);
                    let outcome = replay.apply(files, &entry, payload, &source);
                    replays.insert(partition, replay);
                    settle(recovery, replays, partition, outcome, &source)?;
                }
                _ if !self.catalogue.contains(&partition) || recovery.quarantined.contains_key(&partition) => {}
                _ if sequence <= self.checkpoint => {
                    if let Some(replay) = replays.get_mut(&partition) {
                        let outcome = replay.place_seen(files, &entry, payload, &source);
                        settle(recovery, replays, partition, outcome, &source)?;
                    }
                }
                _ => {
                    let outcome = replays.entry(partition).or_insert_with(|| self.anew(partition)).apply(files, &entry, payload, &source);
                    settle(recovery, replays, partition, outcome, &source)?;
                }
            }
        }
        Ok(())
    }
}

/// Where entries that are still to come cut logs.
#[derive(Debug, Default)]
struct Cuts(HashMap<TopicPartition, VecDeque<(Offset, u64)>>);

impl Cuts {
    fn of(scan: &Scan, chain: &Chain) -> Cuts {
        let mut cuts = Cuts::default();
        for group in &chain.groups {
            let Ok(bytes) = scan.group(group) else { continue };
            // What can't be read is told where it is replayed.
            for (entry, _) in Entries::new(bytes).map_while(Result::ok) {
                if let Some(cut) = cut_of(&entry) {
                    cuts.0.entry(entry.topic_partition).or_default().push_back(cut);
                }
            }
        }
        for of_partition in cuts.0.values_mut() {
            // Each becomes the least of itself and those after it.
            let mut least = (Offset::MAX, u64::MAX);
            for cut in of_partition.iter_mut().rev() {
                least = least.min(*cut);
                *cut = least;
            }
        }
        cuts
    }

    /// The replay has come to the next one of a partition.
    fn pass(&mut self, partition: TopicPartition) {
        self.0.get_mut(&partition).map(VecDeque::pop_front);
    }

    /// The least place of those to come.
    fn least(&self, partition: TopicPartition) -> Option<(Offset, u64)> {
        self.0.get(&partition)?.front().copied()
    }
}

/// Where an entry cuts the log: what is behind it there counts for nothing.
fn cut_of(entry: &EntryHeader) -> Option<(Offset, u64)> {
    match entry.kind {
        EntryKind::Truncate => Some((entry.segment, entry.position)),
        EntryKind::Restart | EntryKind::PartitionDropped => Some((Offset::MIN, 0)),
        _ => None,
    }
}

/// Sets a partition aside where something of it does not check.
fn settle(
    recovery: &mut Recovery,
    replays: &mut Replays,
    partition: TopicPartition,
    outcome: Result<(), Fault>,
    source: &Source,
) -> Result<(), OpenError> {
    match outcome {
        Ok(()) => Ok(()),
        Err(Fault::File(error)) => Err(error.into()),
        Err(Fault::Partition(mut damage)) => {
            if damage.file.is_empty() {
                (damage.file, damage.offset) = (source.file.clone(), source.offset);
            }
            damage.detail = format!("{partition} is quarantined: {}", damage.detail);
            if let Some(replay) = replays.remove(&partition) {
                recovery.set_aside(replay, damage);
            }
            Ok(())
        }
    }
}

fn finish_seen(recovery: &mut Recovery, replays: &mut Replays) -> Result<(), OpenError> {
    let nowhere = Source { file: String::new(), offset: 0, proven_durable: true };
    for partition in replays.keys().copied().collect::<Vec<_>>() {
        let outcome = replays.get_mut(&partition).map_or(Ok(()), Replay::finish_seen);
        settle(recovery, replays, partition, outcome, &nowhere)?;
    }
    Ok(())
}

/// What a recovery may still read without having to, bytes.
struct Checks {
    /// Of indexes of flushed segments.
    index_bytes: usize,
    /// Of large batches that are known durable.
    batch_bytes: usize,
}

/// Proves and writes what the journal brought.
fn finish(recovery: &mut Recovery, files: &mut impl StoreFiles, mut replays: Replays) -> Result<Replays, OpenError> {
    let nowhere = Source { file: paths::JOURNAL_DIR.into(), offset: 0, proven_durable: true };
    let mut checks = Checks { index_bytes: INDEX_CHECK, batch_bytes: LARGE_CHECK };
    for partition in replays.keys().copied().collect::<Vec<_>>() {
        let outcome = replays.get_mut(&partition).map_or(Ok(()), |replay| replay.finish(files, &mut checks));
        settle(recovery, &mut replays, partition, outcome, &nowhere)?;
    }
    Ok(replays)
}
