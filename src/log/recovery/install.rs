//! The end of the old generation and the start of the new one, in the order that makes an interruption harmless: segments and indexes synced, new
//! checkpoints synced, new generation record renamed into place and its directory synced. Only then anything is removed or set aside.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::journals::{JournalFile, Scan};
use super::{AvailableJournal, OpenError, OpenRequest, PartitionImage, RecoveredStore, Recovery, Source, settle};
use crate::log::checkpoint::{self, CheckpointBody, PartitionState};
use crate::log::damage::{Damage, DamageKind};
use crate::log::file_header::{self, CheckpointHeader, GenerationRecord};
use crate::log::files::{DirEntry, FileError, StoreFiles, len_if_exists, list_sorted};
use crate::log::paths::{self, PartitionFile, Slot};
use crate::types::TopicPartition;

pub(super) fn install(
    files: &mut impl StoreFiles,
    request: &OpenRequest<'_>,
    old_generation: u64,
    scan: Scan,
    mut recovery: Recovery,
) -> Result<RecoveredStore, OpenError> {
    let images = take_images(files, &mut recovery)?;
    let shards = by_owner(request, images, &mut recovery);
    let generation = old_generation + 1;
    write_checkpoints(files, request, generation, &shards)?;
    write_generation(files, request, generation)?;

    let mut cleanup = Cleanup { files, generation, damage: Vec::new() };
    cleanup.checkpoints()?;
    for path in &recovery.unknown_files {
        cleanup.quarantine(path, "not a journal file")?;
    }
    let next_journal_id = scan.files.iter().map(|journal| journal.id + 1).max().unwrap_or(1);
    let journals = cleanup.journals(scan.files, &recovery.kept_journals)?;
    cleanup.topics(request, &shards)?;
    cleanup.root()?;
    let mut report = recovery.report;
    report.damage.append(&mut cleanup.damage);
    report.partitions = shards.iter().map(|shard| shard.len() as u64).sum();
    Ok(RecoveredStore { generation, salt: request.salt, shards, journals, next_journal_id, report })
}

/// Syncs what the replay wrote and makes the partitions' new state of it.
fn take_images(files: &mut impl StoreFiles, recovery: &mut Recovery) -> Result<BTreeMap<TopicPartition, PartitionImage>, OpenError> {
    sync_written(files, recovery)?;
    let nowhere = Source { file: paths::TOPICS_DIR.into(), offset: 0, proven_durable: true };
    let mut images = BTreeMap::new();
    let mut replays = std::mem::take(&mut recovery.replays);
    for partition in replays.keys().copied().collect::<Vec<_>>() {
        let Some(replay) = replays.get_mut(&partition) else { continue };
        recovery.report.bytes += replay.placement.written;
        let damage = replay.indexes.iter_mut().filter_map(|index| index.damage.take());
        recovery.report.damage.extend(damage);
        match replay.remainder(files) {
            Ok(remainder) => {
                images.insert(partition, PartitionImage { state: flushed(&replay.state), remainder });
            }
            Err(fault) => settle(recovery, &mut replays, partition, Err(fault), &nowhere)?,
        }
    }
    Ok(images)
}

fn sync_written(files: &mut impl StoreFiles, recovery: &Recovery) -> Result<(), FileError> {
    let (mut written, mut dirs) = (Vec::new(), BTreeSet::new());
    for (partition, replay) in &recovery.replays {
        let segments = replay.placement.touched.iter().map(|base| paths::segment(*partition, *base));
        let before = written.len();
        written.extend(segments.chain(replay.written.iter().cloned()));
        if written.len() > before || replay.renamed {
            dirs.insert(paths::partition_dir(*partition));
        }
    }
    files.sync_all(&written)?;
    dirs.iter().try_for_each(|dir| files.sync_dir(dir))
}

/// The state with everything flushed.
fn flushed(state: &PartitionState) -> PartitionState {
    let (segment, position) = state.segments.last().map_or((state.log_end, 0), |last| (last.base_offset, last.valid_end));
    PartitionState { flushed_segment: segment, flushed_position: position, ..state.clone() }
}

/// Every partition of the catalogue at its owner: those that nothing is known of are new.
fn by_owner(
    request: &OpenRequest<'_>,
    mut images: BTreeMap<TopicPartition, PartitionImage>,
    recovery: &mut Recovery,
) -> Vec<Vec<PartitionImage>> {
    let mut shards = vec![Vec::new(); request.shards as usize];
    let catalogue: BTreeSet<TopicPartition> = request.catalogue.iter().copied().collect();
    for partition in catalogue {
        let known = match recovery.quarantined.remove(&partition) {
            Some(state) => Some(PartitionImage { state, remainder: Vec::new() }),
            None => images.remove(&partition),
        };
        let image = known.unwrap_or_else(|| PartitionImage { state: PartitionState::new(partition), remainder: Vec::new() });
        let owner = (request.owner)(partition);
        assert!(owner < request.shards, "{partition} goes to shard {owner} of {}", request.shards);
        shards[owner as usize].push(image);
    }
    shards
}

fn write_checkpoints(
    files: &mut impl StoreFiles,
    request: &OpenRequest<'_>,
    generation: u64,
    shards: &[Vec<PartitionImage>],
) -> Result<(), FileError> {
    for dir in [paths::CHECKPOINT_DIR, paths::JOURNAL_DIR, paths::TOPICS_DIR] {
        files.create_dir(dir)?;
    }
    files.sync_dir("")?;
    let mut written = Vec::new();
    for (shard, images) in (0..).zip(shards) {
        let header = CheckpointHeader { cluster: request.cluster, generation, sequence: 0, shard, body_crc: 0, body_len: 0 };
        let partitions = images.iter().map(|image| image.state.clone()).collect();
        let bytes = checkpoint::encode(&header, &CheckpointBody { sequence: 0, replay_from: 1, partitions });
        let path = paths::checkpoint(generation, shard, Slot::A);
        files.write(&path, 0, &bytes)?;
        files.set_len(&path, bytes.len() as u64)?;
        written.push(path);
    }
    files.sync_all(&written)?;
    files.sync_dir(paths::CHECKPOINT_DIR)
}

fn write_generation(files: &mut impl StoreFiles, request: &OpenRequest<'_>, generation: u64) -> Result<(), FileError> {
    let record = GenerationRecord { cluster: request.cluster, generation, salt: request.salt, shards: request.shards };
    files.write(paths::GENERATION_TMP, 0, &file_header::encode_header(&record))?;
    files.sync(paths::GENERATION_TMP)?;
    files.rename(paths::GENERATION_TMP, paths::GENERATION)?;
    files.sync_dir("")
}

/// What is left to remove and to set aside once the new generation is in force. Each step can be interrupted: the next opening does the rest.
struct Cleanup<'a, F> {
    files: &'a mut F,
    generation: u64,
    damage: Vec<Damage>,
}

impl<F: StoreFiles> Cleanup<'_, F> {
    /// Older checkpoints are garbage, as are this generation's that an interrupted opening wrote for more shards.
    fn checkpoints(&mut self) -> Result<(), FileError> {
        for entry in list_sorted(self.files, paths::CHECKPOINT_DIR)? {
            let path = format!("{}/{}", paths::CHECKPOINT_DIR, entry.name);
            match paths::parse_checkpoint(&entry.name).filter(|_| !entry.is_dir) {
                Some((generation, ..)) if generation < self.generation => self.files.unlink(&path)?,
                Some((generation, ..)) if generation == self.generation => {}
                _ => self.quarantine(&path, "not a checkpoint of this generation")?,
            }
        }
        self.files.sync_dir(paths::CHECKPOINT_DIR)
    }

    /// Keeps the journals that damaged partitions may be salvaged from, and gives out the rest.
    fn journals(&mut self, journals: Vec<JournalFile>, kept: &HashSet<usize>) -> Result<Vec<AvailableJournal>, FileError> {
        let mut available = Vec::new();
        for (at, journal) in journals.into_iter().enumerate() {
            let unfinished = journal.is_unfinished();
            match journal.header {
                _ if kept.contains(&at) => self.set_aside(&journal.path)?,
                _ if unfinished => self.files.unlink(&journal.path)?,
                Ok(header) if header.file == journal.id && header.size == journal.bytes.len() as u64 => {
                    available.push(AvailableJournal { id: journal.id, path: journal.path, size: header.size });
                }
                Ok(header) => {
                    let detail = format!("of id {} and {} bytes, found {} bytes", header.file, header.size, journal.bytes.len());
                    self.quarantine_damaged(&journal.path, DamageKind::Header, detail)?;
                }
                Err(error) => self.quarantine_damaged(&journal.path, DamageKind::Header, error.to_string())?,
            }
        }
        self.files.sync_dir(paths::JOURNAL_DIR)?;
        Ok(available)
    }

    fn topics(&mut self, request: &OpenRequest<'_>, shards: &[Vec<PartitionImage>]) -> Result<(), FileError> {
        let states: BTreeMap<TopicPartition, &PartitionState> =
            shards.iter().flatten().map(|image| (image.state.partition, &image.state)).collect();
        let topics: HashSet<_> = request.catalogue.iter().map(|partition| partition.topic).collect();
        for entry in list_sorted(self.files, paths::TOPICS_DIR)? {
            let path = format!("{}/{}", paths::TOPICS_DIR, entry.name);
            let Some(topic) = paths::parse_topic_dir(&entry.name).filter(|_| entry.is_dir) else {
                self.quarantine(&path, "not a topic's directory")?;
                continue;
            };
            for entry in list_sorted(self.files, &path)? {
                let path = format!("{path}/{}", entry.name);
                let Some(partition) = paths::parse_partition_dir(&entry.name).filter(|_| entry.is_dir) else {
                    self.quarantine(&path, "not a partition's directory")?;
                    continue;
                };
                let partition = TopicPartition { topic, partition };
                match states.get(&partition) {
                    Some(state) => self.partition(&path, state)?,
                    None => self.drop_partition(&path)?,
                }
            }
            if !topics.contains(&topic) && list_sorted(self.files, &path)?.is_empty() {
                self.files.remove_dir(&path)?;
            }
        }
        Ok(())
    }

    /// Removes what an interrupted roll, deletion or receipt left in a partition's directory.
    fn partition(&mut self, dir: &str, state: &PartitionState) -> Result<(), FileError> {
        if state.quarantined {
            return Ok(());
        }
        let first = state.segments.first().map_or(state.log_end, |segment| segment.base_offset);
        for DirEntry { name, is_dir } in list_sorted(self.files, dir)? {
            let path = format!("{dir}/{name}");
            match paths::parse_partition_file(&name).filter(|_| !is_dir) {
                Some(PartitionFile::Adopted(_)) => self.files.unlink(&path)?,
                Some(PartitionFile::Segment(base, generation) | PartitionFile::Index(base, generation)) => {
                    let known = state.segments.iter().any(|s| (s.base_offset, s.rewrite_generation) == (base, generation));
                    // Retention had removed it, or it is the roll's that the log never reached. A log that never was has neither. Or a cleaning was cut short.
                    let left_over = base < first
                        || base == state.log_end
                        || (base > state.log_end && !state.segments.is_empty())
                        || state.segments.iter().any(|segment| segment.supersedes(base, generation));
                    match (known, left_over) {
                        (true, _) => {}
                        (false, true) => self.files.unlink(&path)?,
                        (false, false) => self.quarantine(&path, "a segment that the log does not have")?,
                    }
                }
                None => self.quarantine(&path, "not a file of a partition")?,
            }
        }
        Ok(())
    }

    /// The catalogue does not have the partition: its deletion was committed.
    fn drop_partition(&mut self, dir: &str) -> Result<(), FileError> {
        for entry in list_sorted(self.files, dir)? {
            let path = format!("{dir}/{}", entry.name);
            match paths::parse_partition_file(&entry.name).filter(|_| !entry.is_dir) {
                Some(_) => self.files.unlink(&path)?,
                None => self.quarantine(&path, "not a file of a partition")?,
            }
        }
        self.files.remove_dir(dir)
    }

    fn root(&mut self) -> Result<(), FileError> {
        for entry in list_sorted(self.files, "")? {
            if paths::is_probe(&entry.name) && !entry.is_dir {
                self.files.unlink(&entry.name)?;
            } else if !paths::ROOT_NAMES.contains(&entry.name.as_str()) {
                self.quarantine(&entry.name, "not a name of the store")?;
            }
        }
        Ok(())
    }

    fn quarantine(&mut self, path: &str, why: &str) -> Result<(), FileError> {
        self.quarantine_damaged(path, DamageKind::Unknown, format!("{why}; moved to {}/", paths::QUARANTINE_DIR))
    }

    fn quarantine_damaged(&mut self, path: &str, kind: DamageKind, detail: String) -> Result<(), FileError> {
        self.damage.push(Damage::new(path, 0, kind, detail));
        self.set_aside(path)
    }

    /// Moves a file or directory to the quarantine, under a name that says where it was.
    fn set_aside(&mut self, path: &str) -> Result<(), FileError> {
        self.files.create_dir(paths::QUARANTINE_DIR)?;
        let flat = format!("{}/{:016x}-{}", paths::QUARANTINE_DIR, self.generation, path.replace('/', "-"));
        let mut to = flat.clone();
        for copy in 1.. {
            if len_if_exists(self.files, &to)?.is_none() {
                break;
            }
            to = format!("{flat}.{copy}");
        }
        self.files.rename(path, &to)?;
        self.files.sync_dir(paths::QUARANTINE_DIR)
    }
}
