//! Recovers what a crash left, and compares it with what was acknowledged.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use corelane::batch::{BatchError, HEADER_LEN, RecordRef, Records, check_stored, decode};
use corelane::checksum::running_hash;
use corelane::limits::{BLOCK, MAX_COMPACTED_BLOCK};
use corelane::log::checkpoint::PartitionState;
use corelane::log::file_header::{self, MetaSlot};
use corelane::log::identity;
use corelane::log::index::{Index, IndexEntry};
use corelane::log::inspect::verify;
use corelane::log::recovery::{OpenRequest, RecoveredStore, open_store};
use corelane::log::segment::{FIRST_POSITION, SegmentInfo};
use corelane::shard::trace::TraceEvent;
use corelane::types::{Offset, TopicPartition};

use super::Numbers;
use super::disk::{CrashDisk, Image, Loss};

/// The cluster of a store that these tests make.
pub const CLUSTER: [u8; 16] = [0xc1; 16];

/// A batch that somebody was told is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Records in it.
    pub count: u32,
    /// The CRC that it carries.
    pub crc: u32,
}

/// All that was acknowledged, by partition and base offset.
pub type Acknowledged = BTreeMap<TopicPartition, BTreeMap<Offset, Kept>>;

/// Opens a store for a number of shards.
pub fn open(image: &mut Image, catalogue: &[TopicPartition], shards: u32, salt: u64) -> Result<RecoveredStore, String> {
    let meta = identity::read(image).map_err(|error| error.to_string())?;
    let next = MetaSlot { oldest_reader: 1, node_id: 1, cluster: CLUSTER, incarnation: [7; 16], sequence: 0, clean_shutdown: false };
    let cluster = meta.map_or(CLUSTER, |meta| meta.cluster);
    let next = MetaSlot { cluster, ..next };
    identity::write(image, meta.as_ref(), &next).map_err(|error| error.to_string())?;
    let owner = |partition: TopicPartition| partition.topic.shard_of(partition.partition, shards);
    let request = OpenRequest { cluster, shards, salt, now_ms: 0, catalogue, owner: &owner };
    open_store(image, &request).map_err(|error| format!("the store does not open: {error}"))
}

/// A batch as it is in a log.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its first offset.
    pub base_offset: Offset,
    /// What was acknowledged of it, if it was.
    pub kept: Kept,
    /// Idempotent producer's id, epoch and first sequence.
    pub producer: Option<(i64, i16, i32)>,
    /// Its records that have a key.
    pub keyed: Arc<Vec<Keyed>>,
}

/// A record with a key: its offset, and hashes of its key and, if it is no tombstone, its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keyed {
    /// Its offset.
    pub offset: Offset,
    /// Of its key.
    pub key: u64,
    /// Of its value.
    pub value: Option<u64>,
}

/// The records of a batch that have a key.
pub fn keyed(batch: &[u8]) -> Result<Vec<Keyed>, String> {
    let hash = |bytes: &[u8]| crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
    let one = |record: RecordRef<'_>| record.key.map(|key| Keyed { offset: record.offset, key: hash(key), value: record.value.map(hash) });
    let text = |error: BatchError| error.to_string();
    let records: Vec<Option<Keyed>> = match Records::of_batch(batch) {
        Ok(records) => records.map(|record| record.map(one)).collect::<Result<_, _>>().map_err(text)?,
        Err(_) => {
            let set = decode(Bytes::copy_from_slice(batch), MAX_COMPACTED_BLOCK).map_err(text)?;
            set.records().map(|record| record.map(one)).collect::<Result<_, _>>().map_err(text)?
        }
    };
    Ok(records.into_iter().flatten().collect())
}

/// A segment that checks: its batches, the offset after them, and the running hash, if the one before it was known.
type CheckedSegment = (Arc<Vec<Stored>>, Offset, Option<u64>);

/// All that the result depends on: the file's bytes, its partition, base offset, valid end, and the running hash before it.
type SegmentKey = (u64, TopicPartition, Offset, u64, Option<u64>);

thread_local! {
    /// Segments that were read and check: most segments are the same in very many images.
    static CHECKED: RefCell<HashMap<SegmentKey, CheckedSegment>> = RefCell::default();
}

/// Reads a whole partition as its state says it is: every batch must check and follow the one before it, and the running hash must lead to the state's.
pub fn read_partition(image: &Image, state: &PartitionState) -> Result<BTreeMap<Offset, Kept>, String> {
    Ok(read_stored(image, state)?.iter().map(|batch| (batch.base_offset, batch.kept)).collect())
}

/// As [`read_partition`], with more of each batch.
pub fn read_stored(image: &Image, state: &PartitionState) -> Result<Vec<Stored>, String> {
    let mut batches = Vec::new();
    let mut next = state.segments.first().map_or(state.log_end, |segment| segment.base_offset);
    // Where the log no longer starts at 0, its hash is known from the end of its first segment on.
    let mut hash = (next == 0).then_some(0);
    for segment in &state.segments {
        let path = segment.path(state.partition);
        let data = image.data(&path).ok_or_else(|| format!("{path} is not there"))?;
        if segment.base_offset != next {
            return Err(format!("{path}: the segment starts at {}, the log goes on at {next}", segment.base_offset));
        }
        if segment.valid_end > FIRST_POSITION {
            hash = expect_first_entry(image, state, segment, hash)?;
        }
        let key = (data.fingerprint(), state.partition, segment.base_offset, segment.valid_end, hash);
        let known = CHECKED.with_borrow(|checked| checked.get(&key).cloned());
        let (found, end, after) = match known {
            Some(known) => known,
            None => {
                let read = read_segment(&path, &image.bytes(&path), state.partition, segment, hash)?;
                CHECKED.with_borrow_mut(|checked| checked.insert(key, read.clone()));
                read
            }
        };
        if after.is_some_and(|hash| hash != segment.running_hash) || end != segment.end_offset {
            return Err(format!("{path}: end offset {end} or running hash are not the state's: {segment:?}"));
        }
        batches.extend(found.iter().cloned());
        (next, hash) = (end, Some(segment.running_hash));
    }
    if next != state.log_end || hash.is_some_and(|hash| hash != state.running_hash) {
        return Err(format!("{}: ends at {next}, the state says {}", state.partition, state.log_end));
    }
    Ok(batches)
}

/// The index has the segment's first batch: reads of whatever comes before its second entry start there. Returns the running hash before that batch, where it is known.
fn expect_first_entry(image: &Image, state: &PartitionState, segment: &SegmentInfo, hash: Option<u64>) -> Result<Option<u64>, String> {
    let path = segment.index_path(state.partition);
    let bytes = image.bytes(&path);
    let (index, _) = Index::load(segment.base_offset, bytes.get(BLOCK..).unwrap_or_default(), segment.index_entries);
    let first = index.entries().first();
    if segment.is_rewritten() {
        // Its chain begins with what the index says, and must lead to the log's all the same.
        let start = first.filter(|entry| entry.position == FIRST_POSITION).map(|entry| entry.running_hash);
        return start.map(Some).ok_or_else(|| format!("{path}: a rewritten segment without its first entry"));
    }
    let is_right = |entry: &IndexEntry| {
        (entry.offset, entry.position) == (segment.base_offset, FIRST_POSITION) && hash.is_none_or(|hash| entry.running_hash == hash)
    };
    // What is before the log's first segment may be gone, and its running hash with it: a reader then begins at the segment's start.
    let is_unknown = first.is_none_or(|entry| entry.position > FIRST_POSITION) && hash.is_none();
    if is_unknown || first.is_some_and(is_right) {
        Ok(hash)
    } else {
        Err(format!("{path}: the first of {} entries is {first:?}", segment.index_entries))
    }
}

fn read_segment(
    path: &str,
    bytes: &[u8],
    partition: TopicPartition,
    segment: &SegmentInfo,
    mut hash: Option<u64>,
) -> Result<CheckedSegment, String> {
    file_header::decode_expecting(bytes, &segment.header(partition)).map_err(|error| format!("{path}: {error}"))?;
    let (mut at, end) = (FIRST_POSITION as usize, segment.valid_end as usize);
    let (mut batches, mut next) = (Vec::new(), segment.base_offset);
    while at < end {
        let rest = bytes.get(at..end).ok_or_else(|| format!("{path}: {} bytes, the log needs {end}", bytes.len()))?;
        let header = check_stored(rest).map_err(|error| format!("{path} at {at}: {error}"))?;
        if header.base_offset != next && !(segment.is_rewritten() && header.base_offset > next) {
            return Err(format!("{path} at {at}: a batch of offset {}, expected {next}", header.base_offset));
        }
        let producer = (header.producer_id >= 0).then_some((header.producer_id, header.producer_epoch, header.base_sequence));
        let kept = Kept { count: header.record_count as u32, crc: header.crc };
        let keyed = Arc::new(keyed(&rest[..header.total_len()]).map_err(|error| format!("{path} at {at}: {error}"))?);
        batches.push(Stored { base_offset: header.base_offset, kept, producer, keyed });
        hash = hash.map(|before| running_hash(before, &rest[..HEADER_LEN]));
        next = header.next_offset();
        at += header.total_len();
    }
    Ok((Arc::new(batches), next, hash))
}

/// Compares a recovered store with what was acknowledged.
pub fn compare(image: &Image, store: &RecoveredStore, acknowledged: &Acknowledged) -> Result<(), String> {
    if !store.report.damage.is_empty() {
        return Err(format!("damage is reported: {:?}", store.report.damage));
    }
    let mut seen = BTreeSet::new();
    for partition in store.shards.iter().flatten() {
        let state = &partition.state;
        let batches = read_partition(image, state)?;
        seen.insert(state.partition);
        for (offset, kept) in acknowledged.get(&state.partition).into_iter().flatten() {
            if batches.get(offset) != Some(kept) && *offset >= state.log_start {
                return Err(format!("{} at {offset}: acknowledged {kept:?}, found {:?}", state.partition, batches.get(offset)));
            }
        }
        let len = state.segments.last().filter(|last| !last.sealed).map_or(0, |last| last.valid_end as usize % 4096);
        if partition.remainder.len() != len {
            return Err(format!("{}: a remainder of {} bytes, expected {len}", state.partition, partition.remainder.len()));
        }
    }
    match acknowledged.keys().find(|partition| !seen.contains(*partition)) {
        Some(lost) => Err(format!("{lost} is gone")),
        None => Ok(()),
    }
}

/// A store in which nothing acknowledged is damaged, by `inspect verify`.
pub fn verify_clean(image: &mut Image) -> Result<(), String> {
    let report = verify(image, &mut |_| ()).map_err(|error| error.to_string())?;
    if report.damage.is_empty() { Ok(()) } else { Err(format!("verify finds {:?}", report.damage)) }
}

/// Recovers an image and compares.
pub fn recover_once(mut image: Image, catalogue: &[TopicPartition], shards: u32, acknowledged: &Acknowledged) -> Result<(), String> {
    let store = open(&mut image, catalogue, shards, 0xfeed)?;
    compare(&image, &store, acknowledged)
}

/// Recovers an image, compares, and recovers what that left once more: the second time nothing may change.
pub fn recover_and_compare(mut image: Image, catalogue: &[TopicPartition], shards: u32, acknowledged: &Acknowledged) -> Result<(), String> {
    if identity::read(&mut image).is_ok_and(|meta| meta.is_some()) {
        verify_clean(&mut image).map_err(|what| format!("before recovery: {what}"))?;
    }
    let first = open(&mut image, catalogue, shards, 0xfeed)?;
    compare(&image, &first, acknowledged)?;
    verify_clean(&mut image).map_err(|what| format!("after recovery: {what}"))?;
    let second = open(&mut image, catalogue, shards, 0xbeef)?;
    compare(&image, &second, acknowledged)?;
    let logs = |store: &RecoveredStore| -> Vec<(TopicPartition, Offset, u64)> {
        store.shards.iter().flatten().map(|p| (p.state.partition, p.state.log_end, p.state.running_hash)).collect()
    };
    if logs(&first) == logs(&second) { Ok(()) } else { Err("a second recovery changed something".into()) }
}

/// What an enumeration did.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Different images that were recovered.
    pub images: u64,
    /// By the kind of the event that the crash came after.
    pub by_event: BTreeMap<&'static str, u64>,
}

/// A crash that lost something.
#[derive(Clone, Debug)]
pub struct Loser {
    /// Number of events before the crash.
    pub events: usize,
    /// What the crash did.
    pub loss: Loss,
    /// What went wrong.
    pub what: String,
}

/// Crashes after every event of a trace, in several ways each (of which one in `one_in` is taken), and gives each different image that this can leave, with what was acknowledged by then, to
/// `check`. Ends at the first failure.
pub fn enumerate(
    start: &Image,
    events: &[TraceEvent],
    (ways, one_in): (u64, u64),
    seed: u64,
    mut check: impl FnMut(Image, &Acknowledged, usize) -> Result<(), String>,
) -> Result<Counts, Box<Loser>> {
    let mut disk = CrashDisk::of(start);
    let mut acknowledged = Acknowledged::new();
    let mut counts = Counts::default();
    let mut seen = HashSet::new();
    let mut sample = Numbers(seed);
    for (at, event) in events.iter().enumerate() {
        let changed = disk.apply(event);
        if let TraceEvent::Acknowledge { partition, base_offset, count, crc } = event {
            acknowledged.entry(*partition).or_default().insert(*base_offset, Kept { count: *count, crc: *crc });
        } else if !changed {
            continue;
        }
        let random = (0..ways).map(|way| {
            let seed = seed ^ ((at as u64) << 20) ^ way;
            match way % 3 {
                0 => Loss::Some(seed),
                1 => Loss::Torn(seed, 512),
                _ => Loss::Torn(seed, 4096),
            }
        });
        for loss in [Loss::Nothing, Loss::Everything].into_iter().chain(random) {
            if sample.below(one_in) > 0 {
                continue;
            }
            let image = disk.crash(loss);
            // The same image with more acknowledged is another question.
            if !seen.insert((image.fingerprint(), acknowledged.values().map(BTreeMap::len).sum::<usize>())) {
                continue;
            }
            counts.images += 1;
            *counts.by_event.entry(name(event)).or_default() += 1;
            check(image, &acknowledged, at).map_err(|what| Box::new(Loser { events: at + 1, loss, what }))?;
        }
    }
    Ok(counts)
}

fn name(event: &TraceEvent) -> &'static str {
    match event {
        TraceEvent::Create { .. } => "create",
        TraceEvent::CreateDir { .. } => "create_dir",
        TraceEvent::WriteStart { .. } => "write",
        TraceEvent::WriteEnd { .. } => "write_end",
        TraceEvent::SyncStart { .. } | TraceEvent::SyncDirStart { .. } => "sync_start",
        TraceEvent::SyncEnd { .. } => "sync",
        TraceEvent::Allocate { .. } => "allocate",
        TraceEvent::SetLen { .. } => "set_len",
        TraceEvent::Rename { .. } => "rename",
        TraceEvent::Unlink { .. } => "unlink",
        TraceEvent::Acknowledge { .. } => "acknowledge",
        TraceEvent::Topic { .. } => "topic",
        TraceEvent::Cut { .. } => "cut",
        TraceEvent::Mark { .. } => "mark",
    }
}
