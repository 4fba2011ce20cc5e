//! Brokers that break a rule, and recoveries that believe what they must not: made from the trace of a whole broker, and from images of it.
//!
//! The planted bugs stay out of the product: a broken broker's trace is the whole one's with events taken out, moved or changed; a recovery that
//! trusts too much is the whole one, shown an image on which what it should refuse looks right.

use std::collections::{BTreeMap, HashMap, HashSet};

use corelane::limits::BLOCK;
use corelane::log::file_header::{self, GenerationRecord};
use corelane::log::journal::{GroupHeader, parse_group, peek_group, seal_group, stored_checksum};
use corelane::log::paths::{self, PartitionFile};
use corelane::shard::trace::TraceEvent;

use super::life::Life;
use crate::crash::disk::{FileData, Image};

/// A rule that a broker breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BrokenBroker {
    /// The journal is not synced.
    SkipJournalSync,
    /// Acknowledged before the sync of the journal begins.
    AcknowledgeEarly,
    /// Segments and indexes are not synced before the journal forgets their bytes, nor before a large append is acknowledged.
    SkipSegmentSync,
    /// Directories of topics and partitions are not synced.
    SkipNameSync,
    /// The catalogue is not synced before a topic is acknowledged.
    SkipCatalogueSync,
    /// The catalogue's mark is not synced before the next command is written.
    SkipMarkSync,
    /// A block that holds acknowledged batches is written anew with what comes after them only.
    OverwriteTailBlock,
    /// A rewritten segment is not synced before it takes the place of those that it was made of.
    SkipRewrittenSync,
    /// The segments that a rewritten one replaces go before the journal says so.
    RemoveReplacedEarly,
    /// The old generation is never retired: the second start replays, and every later one replays the same journal again.
    ReplayTwice,
}

/// All of them.
pub const BROKEN_BROKERS: [BrokenBroker; 10] = [
    BrokenBroker::SkipJournalSync,
    BrokenBroker::AcknowledgeEarly,
    BrokenBroker::SkipSegmentSync,
    BrokenBroker::SkipNameSync,
    BrokenBroker::SkipCatalogueSync,
    BrokenBroker::SkipMarkSync,
    BrokenBroker::OverwriteTailBlock,
    BrokenBroker::SkipRewrittenSync,
    BrokenBroker::RemoveReplacedEarly,
    BrokenBroker::ReplayTwice,
];

/// Something that a recovery believes and must not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BrokenRecovery {
    /// Groups of an earlier lap of the same run, left behind the last one in their file, follow it.
    TrustOldLap,
    /// Groups of an earlier generation are of this one.
    TrustOldGeneration,
}

/// Both.
pub const BROKEN_RECOVERIES: [BrokenRecovery; 2] = [BrokenRecovery::TrustOldLap, BrokenRecovery::TrustOldGeneration];

/// What a broken broker would have recorded, and the first event that is another than the whole one's.
pub fn broken(life: &Life, bug: BrokenBroker) -> (Vec<TraceEvent>, usize) {
    let events = match bug {
        BrokenBroker::SkipJournalSync => without_syncs(&life.events, |path| path.starts_with(paths::JOURNAL_DIR)),
        BrokenBroker::AcknowledgeEarly => acknowledged_early(&life.events),
        BrokenBroker::SkipSegmentSync => without_syncs(&life.events, |path| path.ends_with(".log") || path.ends_with(".index")),
        BrokenBroker::SkipNameSync => without_syncs(&life.events, |path| path.starts_with(paths::TOPICS_DIR) && !path.contains('.')),
        BrokenBroker::SkipCatalogueSync => without_syncs(&life.events, |path| path == paths::CATALOGUE),
        BrokenBroker::SkipMarkSync => {
            // Of the two syncs of a command the first is the mark's of the one before.
            let mut syncs = 0;
            without_syncs(&life.events, |path| {
                syncs += u32::from(path == paths::CATALOGUE);
                path == paths::CATALOGUE && syncs % 2 == 1
            })
        }
        BrokenBroker::OverwriteTailBlock => overwritten(&life.events),
        BrokenBroker::SkipRewrittenSync => without_syncs(&life.events, is_rewritten),
        BrokenBroker::RemoveReplacedEarly => removed_early(&life.events),
        BrokenBroker::ReplayTwice => never_retired(&life.events),
    };
    let first = events.iter().zip(&life.events).position(|(broken, whole)| broken != whole);
    let first = first.unwrap_or_else(|| panic!("{bug:?} changes nothing in this life"));
    (events, first)
}

fn without_syncs(events: &[TraceEvent], mut of: impl FnMut(&str) -> bool) -> Vec<TraceEvent> {
    let mut gone = HashSet::new();
    let stays = |event: &&TraceEvent| match event {
        TraceEvent::SyncStart { id, path } | TraceEvent::SyncDirStart { id, path } if of(path) => !gone.insert(*id),
        TraceEvent::SyncEnd { id } => !gone.contains(id),
        _ => true,
    };
    events.iter().filter(stays).cloned().collect()
}

fn is_rewritten(path: &str) -> bool {
    let file = path.rsplit('/').next().and_then(paths::parse_partition_file);
    matches!(file, Some(PartitionFile::Segment(_, 1..) | PartitionFile::Index(_, 1..)))
}

/// What goes after a cleaning goes when it begins to be journaled.
fn removed_early(events: &[TraceEvent]) -> Vec<TraceEvent> {
    let mut out: Vec<TraceEvent> = Vec::with_capacity(events.len());
    let mut switch = None;
    for event in events {
        match event {
            TraceEvent::Mark { name } if name == "clean" => switch = Some(out.len() + 1),
            TraceEvent::Mark { name } if name == "replaced segments removed" => switch = None,
            TraceEvent::Unlink { path } if path.ends_with(".log") || path.ends_with(".index") => {
                if let Some(at) = switch {
                    out.insert(at, event.clone());
                    continue;
                }
            }
            _ => {}
        }
        out.push(event.clone());
    }
    out
}

fn acknowledged_early(events: &[TraceEvent]) -> Vec<TraceEvent> {
    let mut out: Vec<TraceEvent> = Vec::with_capacity(events.len());
    let mut sync = 0;
    for event in events {
        match event {
            TraceEvent::SyncStart { path, .. } if path.starts_with(paths::JOURNAL_DIR) => sync = out.len(),
            TraceEvent::Acknowledge { .. } => {
                out.insert(sync, event.clone());
                sync += 1;
                continue;
            }
            _ => {}
        }
        out.push(event.clone());
    }
    out
}

/// Zeros in place of what a segment's first written block held when write-behind came to it again.
fn overwritten(events: &[TraceEvent]) -> Vec<TraceEvent> {
    let mut files: HashMap<String, FileData> = HashMap::new();
    let change = |event: &TraceEvent| match event {
        TraceEvent::WriteStart { id, path, position, bytes } if path.ends_with(".log") => {
            let file = files.entry(path.clone()).or_default();
            let mut before = vec![0; BLOCK];
            file.read(*position, &mut before);
            let held = before.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            file.write(*position, bytes);
            let mut bytes = bytes.clone();
            if *position > 0 && bytes.get(..held).is_some_and(|again| again == &before[..held]) {
                bytes[..held].fill(0);
            }
            TraceEvent::WriteStart { id: *id, path: path.clone(), position: *position, bytes }
        }
        TraceEvent::Rename { from, to } => {
            if let Some(file) = files.remove(from) {
                files.insert(to.clone(), file);
            }
            event.clone()
        }
        other => other.clone(),
    };
    events.iter().map(change).collect()
}

/// From the second start on, the generation record stays as it was, and so do the checkpoints that belong to it.
fn never_retired(events: &[TraceEvent]) -> Vec<TraceEvent> {
    let mut starts = 0;
    let stays = |event: &&TraceEvent| {
        match event {
            TraceEvent::Mark { name } if name == "start" => starts += 1,
            TraceEvent::Rename { to, .. } if to == paths::GENERATION => return starts < 2,
            TraceEvent::Unlink { path } if path.starts_with(paths::CHECKPOINT_DIR) => return starts < 2,
            _ => {}
        }
        true
    };
    events.iter().filter(stays).cloned().collect()
}

/// The first event after which an image may hold what the recovery must not believe.
pub fn concerned(life: &Life, bug: BrokenRecovery) -> usize {
    let step = match bug {
        BrokenRecovery::TrustOldLap => "journal lap",
        BrokenRecovery::TrustOldGeneration => "appends of the second run",
    };
    life.steps.iter().find(|(name, _)| *name == step).map_or(0, |(_, range)| range.start)
}

/// Makes an image look to a whole recovery as it does to a broken one.
pub fn misread(image: &mut Image, bug: BrokenRecovery) {
    let Some(Ok(record)) = image.data(paths::GENERATION).map(|_| file_header::decode::<GenerationRecord>(&image.bytes(paths::GENERATION)))
    else {
        return;
    };
    let journals: Vec<String> =
        image.files().map(|(path, _)| path.to_string()).filter(|path| path.starts_with(paths::JOURNAL_DIR)).collect();
    let groups: Vec<(String, GroupHeader, Vec<u8>)> = journals.iter().flat_map(|path| groups(image, path)).collect();
    match bug {
        BrokenRecovery::TrustOldLap => follow_old_laps(image, &record, &groups),
        BrokenRecovery::TrustOldGeneration => {
            for (path, header, group) in groups.into_iter().filter(|(_, header, _)| header.generation != record.generation) {
                write(image, &path, GroupHeader { generation: record.generation, salt: record.salt, ..header }, group);
            }
        }
    }
}

/// The groups of a file that check, of whatever lap and generation.
fn groups(image: &Image, path: &str) -> Vec<(String, GroupHeader, Vec<u8>)> {
    let bytes = image.bytes(path);
    let (mut found, mut at) = (Vec::new(), BLOCK);
    while at < bytes.len() {
        let group = peek_group(&bytes[at..]).and_then(|_| parse_group(&bytes[at..]).ok());
        match group {
            Some((header, group)) if header.position == at as u64 => {
                found.push((path.to_string(), header, group.to_vec()));
                at += header.space();
            }
            _ => at += BLOCK,
        }
    }
    found
}

/// Behind each shard's last group: what an older lap left there gets the numbers that would follow.
fn follow_old_laps(image: &mut Image, record: &GenerationRecord, groups: &[(String, GroupHeader, Vec<u8>)]) {
    let mut last: BTreeMap<u16, usize> = BTreeMap::new();
    for (at, (_, header, _)) in groups.iter().enumerate().filter(|(_, (_, header, _))| header.generation == record.generation) {
        let known = last.entry(header.shard).or_insert(at);
        if groups[*known].1.sequence < header.sequence {
            *known = at;
        }
    }
    for newest in last.values() {
        let (path, header, group) = &groups[*newest];
        let (mut sequence, mut previous_checksum) = (header.sequence, stored_checksum(group));
        let behind = groups.iter().filter(|(file, old, _)| {
            file == path && old.generation == record.generation && old.shard == header.shard && old.position > header.position
        });
        for (path, old, group) in behind {
            sequence += 1;
            let durable_sequence = sequence - 1;
            previous_checksum = write(image, path, GroupHeader { sequence, durable_sequence, previous_checksum, ..*old }, group.clone());
        }
    }
}

fn write(image: &mut Image, path: &str, header: GroupHeader, mut group: Vec<u8>) -> u32 {
    let checksum = seal_group(&mut group, &header);
    image.file_mut(path).write(header.position, &group);
    checksum
}
