//! What a broker that starts on an image makes of it, the catalogue included, and whether that is what its clients were told.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, mpsc};

use corelane::cluster::{Catalogue, CatalogueView, command_log};
use corelane::limits::BLOCK;
use corelane::log::checkpoint::PartitionState;
use corelane::log::file_header::MetaSlot;
use corelane::log::files::StoreFiles;
use corelane::log::journal::peek_group;
use corelane::log::recovery::{OpenRequest, RecoveredStore, open_store};
use corelane::log::segment::SegmentInfo;
use corelane::log::{identity, paths};
use corelane::shard::trace::TraceEvent;
use corelane::types::{Offset, TopicId, TopicPartition};

use super::life::{Compacted, Life};
use crate::crash::check::{self, Acknowledged, CLUSTER, Kept, Keyed, Loser, Stored};
use crate::crash::disk::{CrashDisk, Image, Loss};

/// Producer batches that a restart must remember.
const REMEMBERED: usize = 5;

/// A store as the next run takes it over.
pub struct Opened {
    catalogue: Arc<CatalogueView>,
    store: RecoveredStore,
}

/// Does what a start does before its shards run.
pub fn open(image: &mut Image, shards: u32, salt: u64) -> Result<Opened, String> {
    let meta = identity::read(image).map_err(|error| error.to_string())?;
    let fresh = meta.is_none();
    let meta = match meta {
        Some(meta) => meta,
        None => {
            let first =
                MetaSlot { oldest_reader: 1, node_id: 0, cluster: CLUSTER, incarnation: [7; 16], sequence: 0, clean_shutdown: false };
            identity::write(image, None, &first).map_err(|error| error.to_string())?
        }
    };
    let catalogue = open_catalogue(image, &meta, fresh)?;
    let partitions: Vec<_> =
        catalogue.topics().flat_map(|topic| (0..topic.partitions).map(|partition| TopicPartition { topic: topic.id, partition })).collect();
    let owner = |partition: TopicPartition| partition.topic.shard_of(partition.partition, shards);
    let request = OpenRequest { cluster: meta.cluster, shards, salt, now_ms: 0, catalogue: &partitions, owner: &owner };
    let store = open_store(image, &request).map_err(|error| format!("the store does not open: {error}"))?;
    identity::write(image, Some(&meta), &MetaSlot { clean_shutdown: false, ..meta }).map_err(|error| error.to_string())?;
    Ok(Opened { catalogue, store })
}

fn open_catalogue(image: &mut Image, meta: &MetaSlot, fresh: bool) -> Result<Arc<CatalogueView>, String> {
    const FILE: &str = paths::CATALOGUE;
    if fresh || (image.data(FILE).is_none() && image.data(paths::GENERATION).is_none()) {
        image.put(FILE, &command_log::encode_header(meta.cluster, &command_log::Snapshot::default()));
    }
    if image.data(FILE).is_none() {
        return Err("the catalogue is not there".into());
    }
    // Where the making of the catalogue was cut short, it is made anew; the rename takes the name away.
    if image.data(paths::CATALOGUE_TMP).is_some() {
        image.unlink(paths::CATALOGUE_TMP).map_err(|error| error.to_string())?;
    }
    let log = command_log::decode_log(&image.bytes(FILE)).map_err(|error| error.to_string())?;
    if log.cluster != meta.cluster {
        return Err("the catalogue is another cluster's".into());
    }
    image.file_mut(FILE).set_len(log.end as u64);
    let catalogue = Catalogue::replay(&log).map_err(|(sequence, refusal)| format!("command {sequence} of the catalogue: {refusal}"))?;
    Ok(catalogue.view().clone())
}

/// What the clients know at one moment, and what may be besides.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Batches, of topics that are not deleted.
    pub batches: Acknowledged,
    /// Topics and their partitions.
    pub topics: BTreeMap<TopicId, u32>,
    /// Topics of which nobody is to see anything again.
    pub deleted: BTreeSet<TopicId>,
    /// Topics whose deletion is under way.
    pub leaving: BTreeSet<TopicId>,
    /// Everything that the life acknowledges, sooner or later: the log can hold nothing else.
    pub ever: Arc<Acknowledged>,
    /// What is in the batches of compacted topics.
    pub compacted: Arc<Compacted>,
    /// How many acknowledgements there were.
    count: usize,
}

impl Told {
    fn take(&mut self, event: &TraceEvent) {
        match event {
            TraceEvent::Acknowledge { partition, base_offset, count, crc } => {
                self.batches.entry(*partition).or_default().insert(*base_offset, Kept { count: *count, crc: *crc });
            }
            TraceEvent::Topic { topic, partitions: 0 } => {
                self.topics.remove(topic);
                self.leaving.remove(topic);
                self.deleted.insert(*topic);
                self.batches.retain(|partition, _| partition.topic != *topic);
            }
            TraceEvent::Topic { topic, partitions } => {
                self.topics.insert(*topic, *partitions);
            }
            _ => return,
        }
        self.count += 1;
    }

    /// Holds a recovered store against it.
    pub fn compare(&self, image: &Image, opened: &Opened) -> Result<(), String> {
        let Opened { catalogue, store } = opened;
        if !store.report.damage.is_empty() {
            return Err(format!("damage is reported: {:?}", store.report.damage));
        }
        for (topic, partitions) in &self.topics {
            match catalogue.topic_by_id(topic) {
                Some(found) if found.partitions == *partitions => {}
                None if self.leaving.contains(topic) => {}
                found => return Err(format!("topic {topic} of {partitions} partitions is {found:?}")),
            }
        }
        if let Some(topic) = self.deleted.iter().find(|topic| catalogue.topic_by_id(topic).is_some()) {
            return Err(format!("topic {topic} was deleted and is there again"));
        }
        if let Some((path, _)) = image.files().find(|(path, _)| is_left_over(path, catalogue)) {
            return Err(format!("{path} is there, and its topic is not"));
        }
        let mut seen = BTreeSet::new();
        for partition in store.shards.iter().flatten() {
            seen.insert(partition.state.partition);
            self.compare_partition(image, &partition.state)?;
            let open = partition.state.segments.last().filter(|last| !last.sealed);
            let remainder = open.map_or(0, |last| last.valid_end as usize % BLOCK);
            if partition.remainder.len() != remainder {
                return Err(format!("{}: a remainder of {} bytes", partition.state.partition, partition.remainder.len()));
            }
        }
        let lost = self.batches.keys().find(|partition| !seen.contains(*partition) && !self.leaving.contains(&partition.topic));
        lost.map_or(Ok(()), |lost| Err(format!("{lost} is gone")))
    }

    fn compare_partition(&self, image: &Image, state: &PartitionState) -> Result<(), String> {
        let id = state.partition;
        let batches = check::read_stored(image, state)?;
        if self.compacted.topics.contains(&id.topic) {
            return self.compare_compacted(state, &batches);
        }
        let ever = self.ever.get(&id);
        let mut found = BTreeMap::new();
        let mut producers: BTreeMap<(i64, i16), Vec<(i32, i64)>> = BTreeMap::new();
        for batch in &batches {
            if ever.and_then(|ever| ever.get(&batch.base_offset)) != Some(&batch.kept) {
                return Err(format!("{id} at {}: {:?}, which nobody was ever told of", batch.base_offset, batch.kept));
            }
            found.insert(batch.base_offset, batch.kept);
            if let Some((producer, epoch, sequence)) = batch.producer {
                producers.entry((producer, epoch)).or_default().push((sequence, batch.base_offset));
            }
        }
        for (offset, kept) in self.batches.get(&id).into_iter().flatten() {
            if *offset >= state.log_start && found.get(offset) != Some(kept) {
                return Err(format!("{id} at {offset}: acknowledged {kept:?}, found {:?}", found.get(offset)));
            }
        }
        expect_producers(state, producers)
    }

    /// Of a compacted partition: every record is one that was appended, the last one of each key is there, and what was not rewritten is whole.
    fn compare_compacted(&self, state: &PartitionState, found: &[Stored]) -> Result<(), String> {
        let id = state.partition;
        let end = state.log_end;
        let nothing = BTreeMap::new();
        let acknowledged = self.batches.get(&id).unwrap_or(&nothing);
        if let Some((offset, kept)) = acknowledged.iter().find(|(offset, kept)| **offset + i64::from(kept.count) > end) {
            return Err(format!("{id} ends at {end}: acknowledged {kept:?} at {offset}"));
        }
        let (mut appended, mut last, mut producers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::<_, Vec<_>>::new());
        for (offset, kept) in self.ever.get(&id).into_iter().flatten().filter(|(offset, _)| **offset < end) {
            let content = self.compacted.batches.get(&kept.crc).ok_or_else(|| format!("{id} at {offset}: a batch that nobody sent"))?;
            for record in &content.records {
                let record = Keyed { offset: offset + record.offset, ..*record };
                appended.insert(record.offset, record);
                last.insert(record.key, record);
            }
            if let Some((producer, epoch, sequence)) = content.producer {
                producers.entry((producer, epoch)).or_default().push((sequence, *offset));
            }
            let rewritten = |segment: &SegmentInfo| segment.is_rewritten() && (segment.base_offset..segment.end_offset).contains(offset);
            if !state.segments.iter().any(rewritten) && !found.iter().any(|batch| (batch.base_offset, batch.kept) == (*offset, *kept)) {
                return Err(format!("{id} at {offset}: {kept:?} is in no rewritten segment and is not there"));
            }
        }
        let mut read = BTreeMap::new();
        for record in found.iter().flat_map(|batch| batch.keyed.iter()) {
            if appended.get(&record.offset) != Some(record) {
                return Err(format!("{id}: {record:?} was never appended, but {:?}", appended.get(&record.offset)));
            }
            read.insert(record.key, *record);
        }
        // Tombstones too: nothing in a life is old enough for them to go.
        match last.iter().find(|(key, record)| read.get(key) != Some(*record)) {
            Some((key, record)) => Err(format!("{id}: the last of its key is {record:?}, found is {:?}", read.get(key))),
            None => expect_producers(state, producers),
        }
    }
}

/// Whoever repeats one of its last batches now must be recognized: otherwise it would be there twice. Of each producer and epoch: sequences and offsets.
fn expect_producers(state: &PartitionState, appended: BTreeMap<(i64, i16), Vec<(i32, Offset)>>) -> Result<(), String> {
    for ((producer, epoch), batches) in appended {
        let known = state.producers.iter().find(|known| (known.id, known.epoch) == (producer, epoch));
        let known: Vec<_> = known.map_or(Vec::new(), |known| known.batches.iter().map(|b| (b.first_sequence, b.base_offset)).collect());
        let last = &batches[batches.len().saturating_sub(REMEMBERED)..];
        if !known.ends_with(last) {
            return Err(format!("{}: producer {producer} has appended {last:?}, remembered are {known:?}", state.partition));
        }
    }
    Ok(())
}

fn is_left_over(path: &str, catalogue: &CatalogueView) -> bool {
    let topic = path.strip_prefix(paths::TOPICS_DIR).and_then(|rest| rest.split('/').nth(1));
    topic.and_then(paths::parse_topic_dir).is_some_and(|topic| catalogue.topic_by_id(&topic).is_none())
}

/// Recovers an image and compares; `whole` verifies before and after and recovers a second time, which must change nothing.
pub fn check(mut image: Image, told: &Told, shards: u32, whole: bool) -> Result<(), String> {
    if whole && identity::read(&mut image).is_ok_and(|meta| meta.is_some()) {
        check::verify_clean(&mut image).map_err(|what| format!("before recovery: {what}"))?;
    }
    let first = open(&mut image, shards, 0xfeed)?;
    told.compare(&image, &first)?;
    if !whole {
        return Ok(());
    }
    check::verify_clean(&mut image).map_err(|what| format!("after recovery: {what}"))?;
    let second = open(&mut image, shards, 0xbeef)?;
    told.compare(&image, &second).map_err(|what| format!("after a second recovery: {what}"))?;
    let logs = |opened: &Opened| -> Vec<_> {
        opened
            .store
            .shards
            .iter()
            .flatten()
            .map(|p| (p.state.partition, p.state.log_start, p.state.log_end, p.state.running_hash))
            .collect()
    };
    if logs(&first) == logs(&second) { Ok(()) } else { Err("a second recovery changed something".into()) }
}

/// How a trace is crashed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Random crashes after each event, besides one that loses everything that may be lost and one that loses nothing.
    pub ways: u64,
    /// Start of everything random.
    pub seed: u64,
    /// Crashes after these events only.
    pub events: Range<usize>,
    /// Of so many images one is checked with [`check`]'s `whole`.
    pub whole_one_in: u64,
}

/// What an enumeration did.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Different images.
    pub images: u64,
    /// Recoveries: an image with more acknowledged is another question.
    pub recoveries: u64,
    /// By the kind of event: different images that a crash after one leaves (one image may come after several kinds).
    pub by_kind: BTreeMap<&'static str, u64>,
    /// The same by the step of the workload.
    pub by_step: BTreeMap<&'static str, u64>,
}

struct Job {
    image: Image,
    told: Arc<Told>,
    at: usize,
    loss: Loss,
    whole: bool,
}

/// Crashes a life after each event in several ways and checks every different image, on two threads. Ends at the first failure.
pub fn enumerate(
    life: &Life,
    plan: &Plan,
    check: impl Fn(Image, &Told, u32, bool) -> Result<(), String> + Sync,
) -> Result<Counts, Box<Loser>> {
    let (jobs, queue) = mpsc::sync_channel::<Job>(32);
    let (queue, loser) = (Mutex::new(queue), Mutex::new(None::<Box<Loser>>));
    let work = || {
        loop {
            let job = queue.lock().expect("no thread panics with it").recv();
            let Ok(job) = job else { return };
            let shards = 1 + (job.at % 3) as u32;
            if let Err(what) = check(job.image, &job.told, shards, job.whole) {
                let mut loser = loser.lock().expect("no thread panics with it");
                if loser.as_ref().is_none_or(|known| known.events > job.at + 1) {
                    *loser = Some(Box::new(Loser { events: job.at + 1, loss: job.loss, what }));
                }
            }
        }
    };
    let counts = std::thread::scope(|scope| {
        let workers = [scope.spawn(work), scope.spawn(work)];
        let counts = produce(life, plan, |job| {
            jobs.send(job).expect("the threads run");
            loser.lock().expect("no thread panics with it").is_none()
        });
        drop(jobs);
        workers.into_iter().for_each(|worker| worker.join().expect("recovery does not panic"));
        counts
    });
    let loser = loser.into_inner().expect("no thread panics with it");
    loser.map_or(Ok(counts), |loser| Err(Box::new(Loser { what: format!("{}\n{}", loser.what, before(life, loser.events)), ..*loser })))
}

/// The step and the last events before a crash, for people.
fn before(life: &Life, events: usize) -> String {
    let line = |event: &TraceEvent| match event {
        TraceEvent::WriteStart { id, path, position, bytes } => format!("write {id} of {} bytes to {path} at {position}", bytes.len()),
        other => format!("{other:?}"),
    };
    let lines: Vec<String> = life.events[events.saturating_sub(24)..events].iter().map(line).collect();
    format!("in step {:?}, after:\n{}", life.step(events - 1), lines.join("\n"))
}

/// Makes the images; `take` says whether to go on.
fn produce(life: &Life, plan: &Plan, mut take: impl FnMut(Job) -> bool) -> Counts {
    let mut disk = CrashDisk::of(&Image::default());
    let mut kinds = Kinds::default();
    let first = Told { ever: Arc::new(ever(&life.events)), compacted: life.compacted.clone(), ..Told::default() };
    let mut told = Arc::new(first);
    let deletions = deletions(&life.events);
    let mut counts = Counts::default();
    let (mut distinct, mut asked) = (HashSet::new(), HashSet::new());
    let (mut of_kind, mut of_step) = (HashSet::new(), HashSet::new());
    for (at, event) in life.events.iter().enumerate().take(plan.events.end) {
        let kind = kinds.of(event);
        let changed = disk.apply(event);
        if let Some(topic) = deletions.get(&at) {
            Arc::make_mut(&mut told).leaving.insert(*topic);
        }
        let news = matches!(event, TraceEvent::Acknowledge { .. } | TraceEvent::Topic { .. });
        if news {
            Arc::make_mut(&mut told).take(event);
        }
        if at < plan.events.start || !(changed || news) {
            continue;
        }
        let random = (0..plan.ways).map(|way| {
            let seed = plan.seed ^ ((at as u64) << 20) ^ way;
            match way % 3 {
                0 => Loss::Some(seed),
                1 => Loss::Torn(seed, 512),
                _ => Loss::Torn(seed, BLOCK),
            }
        });
        // Where nothing is pending, there is one image.
        let random = random.take(if disk.is_settled() { 0 } else { usize::MAX });
        for loss in [Loss::Nothing, Loss::Everything].into_iter().chain(random) {
            let image = disk.crash(loss);
            let fingerprint = image.fingerprint();
            counts.images += u64::from(distinct.insert(fingerprint));
            *counts.by_kind.entry(kind).or_default() += u64::from(of_kind.insert((kind, fingerprint)));
            *counts.by_step.entry(life.step(at)).or_default() += u64::from(of_step.insert((life.step(at), fingerprint)));
            if !asked.insert((fingerprint, told.count)) {
                continue;
            }
            counts.recoveries += 1;
            let whole = counts.recoveries % plan.whole_one_in == 0;
            if !take(Job { image, told: told.clone(), at, loss, whole }) {
                return counts;
            }
        }
    }
    counts
}

fn ever(events: &[TraceEvent]) -> Acknowledged {
    let mut ever = Acknowledged::new();
    for event in events {
        if let TraceEvent::Acknowledge { partition, base_offset, count, crc } = event {
            ever.entry(*partition).or_default().insert(*base_offset, Kept { count: *count, crc: *crc });
        }
    }
    ever
}

/// For each topic that is deleted: the write of the command, from which on it may be gone.
fn deletions(events: &[TraceEvent]) -> HashMap<usize, TopicId> {
    let mut write = 0;
    let mut deletions = HashMap::new();
    for (at, event) in events.iter().enumerate() {
        match event {
            TraceEvent::SyncStart { path, .. } if path == paths::CATALOGUE => {
                write = events[..at]
                    .iter()
                    .rposition(|e| matches!(e, TraceEvent::WriteStart { path, .. } if path == paths::CATALOGUE))
                    .unwrap_or(0);
            }
            TraceEvent::Topic { topic, partitions: 0 } => {
                deletions.insert(write, *topic);
            }
            _ => {}
        }
    }
    deletions
}

/// Kinds of event that there must be crashes after.
pub const KINDS: [&str; 29] = [
    "journal file made",
    "journal write",
    "journal write over an old lap",
    "journal sync",
    "segment made",
    "segment write",
    "segment sync",
    "index write",
    "index sync",
    "checkpoint write",
    "checkpoint sync",
    "checkpoint removed",
    "catalogue write",
    "catalogue sync",
    "identity write",
    "identity sync",
    "generation write",
    "generation sync",
    "adopted file made",
    "adopted write",
    "adopted sync",
    "allocation",
    "rename",
    "directory made",
    "directory sync",
    "segment removed",
    "directory removed",
    "batch acknowledged",
    "topic acknowledged",
];

/// Gives events their kinds.
#[derive(Default)]
struct Kinds {
    syncs: HashMap<u64, &'static str>,
    /// Where groups were written.
    groups: BTreeSet<(String, u64)>,
    dirs: BTreeSet<String>,
}

impl Kinds {
    fn of(&mut self, event: &TraceEvent) -> &'static str {
        match event {
            TraceEvent::Create { path } => {
                pick(path, ["journal file made", "segment made", "index made", "checkpoint made", "adopted file made", "file made"])
            }
            TraceEvent::CreateDir { path } => {
                self.dirs.insert(path.clone());
                "directory made"
            }
            TraceEvent::WriteStart { path, position, bytes, .. } if path.starts_with(paths::JOURNAL_DIR) && *position > 0 => {
                let group = peek_group(bytes).is_some();
                match (group, group && !self.groups.insert((path.clone(), *position))) {
                    (_, true) => "journal write over an old lap",
                    (true, false) => "journal write",
                    (false, false) => "journal file made",
                }
            }
            TraceEvent::WriteStart { path, .. } => {
                pick(path, ["journal file made", "segment write", "index write", "checkpoint write", "adopted write", own(path, false)])
            }
            TraceEvent::SyncStart { id, path } => {
                let kind = pick(path, ["journal sync", "segment sync", "index sync", "checkpoint sync", "adopted sync", own(path, true)]);
                self.syncs.insert(*id, kind);
                kind
            }
            TraceEvent::SyncDirStart { id, .. } => {
                self.syncs.insert(*id, "directory sync");
                "directory sync"
            }
            TraceEvent::SyncEnd { id } => self.syncs.remove(id).unwrap_or("sync without a start"),
            TraceEvent::WriteEnd { .. } => "write end",
            TraceEvent::Allocate { .. } => "allocation",
            TraceEvent::SetLen { .. } => "cut",
            TraceEvent::Rename { .. } => "rename",
            TraceEvent::Unlink { path } if self.dirs.contains(path) => "directory removed",
            TraceEvent::Unlink { path } => pick(
                path,
                ["journal file removed", "segment removed", "index removed", "checkpoint removed", "adopted file removed", "file removed"],
            ),
            TraceEvent::Acknowledge { .. } => "batch acknowledged",
            TraceEvent::Topic { .. } => "topic acknowledged",
            TraceEvent::Cut { .. } => "log cut",
            TraceEvent::Mark { .. } => "mark",
        }
    }
}

/// By what a file is: journal, segment, index, checkpoint, adopted, another.
fn pick(path: &str, kinds: [&'static str; 6]) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit('.').next() {
        Some("journal") => kinds[0],
        Some("log") => kinds[1],
        Some("index") => kinds[2],
        Some("checkpoint") => kinds[3],
        Some("tmp") if name.starts_with("adopt-") => kinds[4],
        _ => kinds[5],
    }
}

fn own(path: &str, sync: bool) -> &'static str {
    match (path, sync) {
        (paths::META, false) => "identity write",
        (paths::META, true) => "identity sync",
        (paths::CATALOGUE | paths::CATALOGUE_TMP, false) => "catalogue write",
        (paths::CATALOGUE | paths::CATALOGUE_TMP, true) => "catalogue sync",
        (paths::GENERATION_TMP | paths::GENERATION, false) => "generation write",
        (paths::GENERATION_TMP | paths::GENERATION, true) => "generation sync",
        _ => "another file",
    }
}
