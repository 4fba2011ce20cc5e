//! What a shard counts: one enumerated list, so that nothing is measured in two ways or without a name.
//!
//! A shard writes, the control plane reads at any time; neither waits for the other. Counters and gauges are relaxed atomics. A
//! stage's latencies go into a histogram behind a mutex that the reader holds only to swap in an empty one, so recording costs
//! an uncontended lock (tens of nanoseconds) and never waits for a scrape to add up.
//! Not here: names for Prometheus, JSON, rates (`control::http`).

use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;

use crate::limits;

macro_rules! enumerated {
    ($(#[$doc:meta])* $list:ident { $($variant:ident = $name:literal, $help:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(usize)]
        pub enum $list { $(#[doc = $help] $variant,)* }

        impl $list {
            /// All of them, in the order of the list.
            pub const ALL: &'static [$list] = &[$($list::$variant,)*];

            /// Its name, in snake case.
            pub fn name(self) -> &'static str {
                match self { $($list::$variant => $name,)* }
            }

            /// One line for people.
            pub fn help(self) -> &'static str {
                match self { $($list::$variant => $help,)* }
            }
        }
    };
}

enumerated! {
    /// What only rises.
    Counter {
        RecordsIn = "records_in", "Records acknowledged to producers.";
        RecordBytesIn = "record_bytes_in", "Bytes of record batches acknowledged to producers.";
        BatchesIn = "batches_in", "Record batches acknowledged to producers.";
        RecordsOut = "records_out", "Records sent to consumers.";
        RecordBytesOut = "record_bytes_out", "Bytes of record batches sent to consumers.";
        BytesReceived = "bytes_received", "Bytes read from sockets.";
        BytesSent = "bytes_sent", "Bytes written to sockets.";
        ConnectionsAccepted = "connections_accepted", "Connections accepted.";
        ConnectionsRefused = "connections_refused", "Connections closed at once, over the limit.";
        FramesRefused = "frames_refused", "Frames that did not check or came too slowly; their connection was closed.";
        SlowPeersClosed = "slow_peers_closed", "Connections closed because their peer took nothing of what it had asked for.";
        MeshSent = "mesh_sent", "Requests forwarded to the shard that owns the partition.";
        MeshServed = "mesh_served", "Requests served for another shard.";
        GroupRecordsLoaded = "group_records_loaded", "Records of consumer groups read when their coordinators were loaded; what the checkpoint had is not among them.";
        LongPolls = "long_polls", "Fetches that had to wait for records.";
        DuplicateBatches = "duplicate_batches", "Batches that an idempotent producer sent again.";
        LargeAppends = "large_appends", "Batches written straight to a segment.";
        BatchesLeftOut = "batches_left_out", "Large batches of which memory kept the ragged ends only, before their flush.";
        AdoptedAppends = "adopted_appends", "Batches received into a file and adopted as a segment.";
        JournalGroups = "journal_groups", "Groups committed by the journal.";
        JournalEntries = "journal_entries", "Entries in those groups.";
        JournalBytes = "journal_bytes", "Bytes written to the journal, padding included.";
        DurableMarks = "durable_marks", "Groups that only mark what is durable.";
        SegmentBytes = "segment_bytes", "Bytes written to segments and indexes.";
        DeviceBytes = "device_bytes", "Bytes written to the device for any purpose.";
        DiskReadBytes = "disk_read_bytes", "Bytes read from segments and indexes.";
        Syncs = "syncs", "Syncs of any file.";
        CacheHits = "cache_hits", "Reads served by the cache.";
        CacheMisses = "cache_misses", "Reads that went to the disk.";
        TailHits = "tail_hits", "Fetches served from the memory tail.";
        SegmentsRolled = "segments_rolled", "Segments sealed.";
        SegmentsDeleted = "segments_deleted", "Segments deleted by retention or with their topic.";
        CleanerPasses = "cleaner_passes", "Passes of the cleaner over a compacted partition that were finished.";
        CleanerBytesRead = "cleaner_bytes_read", "Bytes of batches that the cleaner read.";
        CleanerBytesWritten = "cleaner_bytes_written", "Bytes of segments that the cleaner wrote.";
        CleanerBytesFreed = "cleaner_bytes_freed", "Bytes that rewritten segments are shorter than those they replaced.";
        CleanerRecordsRemoved = "cleaner_records_removed", "Records that the cleaner left out because a later one has their key.";
        CleanerTombstonesRemoved = "cleaner_tombstones_removed", "Tombstones that the cleaner left out after their time.";
        SegmentsRewritten = "segments_rewritten", "Segments that the cleaner replaced.";
        ReplicationBytesSent = "replication_bytes_sent", "Bytes of batches shipped to followers.";
        ReplicationBytesReceived = "replication_bytes_received", "Bytes of batches taken from leaders.";
        SegmentBytesReceived = "segment_bytes_received", "Of these, bytes that came as parts of whole segments.";
        SegmentsShipped = "segments_shipped", "Whole segments sent to followers.";
        SegmentsInstalled = "segments_installed", "Whole segments of leaders that were taken into logs.";
        ReplicationRefused = "replication_refused", "Messages and connections of other nodes that were refused.";
        ReplicasRestored = "replicas_restored", "Damaged replicas that began anew, to get their records from their leaders.";
        ReplicationTruncations = "replication_truncations", "Logs cut back to where they agree with their leader's.";
        SegmentsVerified = "segments_verified", "Sealed segments that were read again, to see whether they are as they were written.";
        VerifiedBytes = "verified_bytes", "Bytes of those segments.";
        SegmentsMended = "segments_mended", "Damaged segments that were replaced by another replica's.";
        Checkpoints = "checkpoints", "Checkpoints made durable.";
        Stalls = "executor_stalls", "Times that a task kept the executor longer than its limit.";
        StallNs = "executor_stall_ns", "Time spent in those, ns.";
    }
}

enumerated! {
    /// What rises and falls; the value as of now.
    Gauge {
        Connections = "connections", "Open connections.";
        Partitions = "partitions", "Partitions that this shard owns.";
        PartitionsQuarantined = "partitions_quarantined", "Partitions whose files do not check.";
        SegmentsDamaged = "segments_damaged", "Sealed segments that were read and do not check.";
        JournalUsed = "journal_used_bytes", "Bytes of the journal that are still needed.";
        JournalCapacity = "journal_capacity_bytes", "Size of the journal's files.";
        WriteBehind = "write_behind_bytes", "Bytes on their way to segments.";
        MemoryBudget = "memory_budget_bytes", "Bytes that the shard may use.";
        MemoryUnflushed = "memory_unflushed_bytes", "Acknowledged bytes that are not yet in a segment.";
        MemoryTail = "memory_tail_bytes", "Flushed bytes kept for readers at the tail.";
        MemoryCache = "memory_cache_bytes", "The read cache.";
        MemoryCleaner = "memory_cleaner_bytes", "The cleaner's map of keys, while a partition is cleaned.";
        MemoryReceive = "memory_receive_bytes", "Requests being received.";
        MemorySend = "memory_send_bytes", "Responses being sent.";
        DiskFull = "disk_full", "1 while produce is refused for want of space.";
    }
}

enumerated! {
    /// The kinds of requests.
    RequestKind {
        Metadata = "metadata", "Brokers, topics, partitions.";
        CreateTopic = "create_topic", "Create a topic.";
        DeleteTopic = "delete_topic", "Delete a topic.";
        DescribeTopic = "describe_topic", "Settings of a topic.";
        AlterTopic = "alter_topic", "Change a topic.";
        Produce = "produce", "Append batches.";
        Fetch = "fetch", "Read batches.";
        ListOffsets = "list_offsets", "Resolve offsets.";
        InitProducerId = "init_producer_id", "A new producer id.";
        Group = "group", "Membership and positions of consumer groups.";
        EpochEnds = "epoch_ends", "Where leader epochs end.";
        DeleteRecords = "delete_records", "Delete the first records of partitions.";
        Cluster = "cluster", "Operation of the cluster.";
        Other = "other", "Any other.";
    }
}

enumerated! {
    /// The stages of a request's time in the broker.
    Stage {
        Receive = "receive", "From a frame's first byte to its last.";
        Queue = "queue", "From the last byte until the journal or the reader takes it.";
        JournalWrite = "journal_write", "The device write of a group.";
        Sync = "sync", "The sync of a group.";
        Respond = "respond", "From the answer being known to its last byte in the socket.";
    }
}

/// Label of what topics over the bound count together; no topic can have this name.
pub const OTHER_TOPICS: &str = "(other)";

/// The counters of one shard.
#[derive(Debug)]
pub struct ShardMetrics {
    shard: u32,
    counters: [AtomicU64; Counter::ALL.len()],
    gauges: [AtomicU64; Gauge::ALL.len()],
    requests: [AtomicU64; RequestKind::ALL.len()],
    errors: Mutex<BTreeMap<i16, u64>>,
    stages: [StageHistogram; Stage::ALL.len()],
    topics: Mutex<BTreeMap<String, Arc<TopicMetrics>>>,
}

impl ShardMetrics {
    /// All at zero.
    pub fn new(shard: u32) -> ShardMetrics {
        ShardMetrics {
            shard,
            counters: zeros(),
            gauges: zeros(),
            requests: zeros(),
            errors: Mutex::default(),
            stages: std::array::from_fn(|_| StageHistogram::new()),
            topics: Mutex::default(),
        }
    }

    /// Which shard.
    pub fn shard(&self) -> u32 {
        self.shard
    }

    /// Adds to a counter.
    #[inline]
    pub fn add(&self, counter: Counter, amount: u64) {
        self.counters[counter as usize].fetch_add(amount, Relaxed);
    }

    /// The value of a counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Relaxed)
    }

    /// Sets a gauge.
    #[inline]
    pub fn set(&self, gauge: Gauge, value: u64) {
        self.gauges[gauge as usize].store(value, Relaxed);
    }

    /// Raises a gauge.
    #[inline]
    pub fn raise(&self, gauge: Gauge, by: u64) {
        self.gauges[gauge as usize].fetch_add(by, Relaxed);
    }

    /// Lowers a gauge. One that was raised by less stays at 0 for the reader: see [`ShardMetrics::gauge`].
    #[inline]
    pub fn lower(&self, gauge: Gauge, by: u64) {
        self.gauges[gauge as usize].fetch_sub(by, Relaxed);
    }

    /// The value of a gauge; 0 where a reader comes between a lowering and its raising.
    pub fn gauge(&self, gauge: Gauge) -> u64 {
        (self.gauges[gauge as usize].load(Relaxed) as i64).max(0) as u64
    }

    /// Counts a request.
    #[inline]
    pub fn count_request(&self, kind: RequestKind) {
        self.requests[kind as usize].fetch_add(1, Relaxed);
    }

    /// How many requests of a kind came.
    pub fn requests(&self, kind: RequestKind) -> u64 {
        self.requests[kind as usize].load(Relaxed)
    }

    /// Counts a refusal by its code's value (`request::Code::value`).
    pub fn count_error(&self, code: i16) {
        *lock(&self.errors).entry(code).or_default() += 1;
    }

    /// Refusals by the value of their code.
    pub fn errors(&self) -> BTreeMap<i16, u64> {
        lock(&self.errors).clone()
    }

    /// Records how long a stage took, ns.
    #[inline]
    pub fn record(&self, stage: Stage, elapsed_ns: u64) {
        self.stages[stage as usize].record(elapsed_ns);
    }

    /// All latencies of a stage since the start, ns.
    pub fn stage(&self, stage: Stage) -> Histogram<u64> {
        self.stages[stage as usize].total()
    }

    /// The counters of a topic; past [`limits::MAX_TOPIC_METRICS`] topics, those that the rest have together. Keep the result.
    pub fn topic(&self, name: &str) -> Arc<TopicMetrics> {
        let mut topics = lock(&self.topics);
        let full = topics.len() >= limits::MAX_TOPIC_METRICS && !topics.contains_key(name);
        let label = if full { OTHER_TOPICS } else { name };
        Arc::clone(topics.entry(label.into()).or_default())
    }

    /// Forgets a topic that was deleted.
    pub fn forget_topic(&self, name: &str) {
        lock(&self.topics).remove(name);
    }

    /// The counters of all topics, by name.
    pub fn topics(&self) -> Vec<(String, Arc<TopicMetrics>)> {
        lock(&self.topics).iter().map(|(name, topic)| (name.clone(), Arc::clone(topic))).collect()
    }
}

/// The counters of a topic on one shard.
#[derive(Debug, Default)]
pub struct TopicMetrics {
    records_in: AtomicU64,
    bytes_in: AtomicU64,
    records_out: AtomicU64,
    bytes_out: AtomicU64,
}

/// The values of a [`TopicMetrics`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TopicCounts {
    /// Records acknowledged.
    pub records_in: u64,
    /// Bytes of batches acknowledged.
    pub bytes_in: u64,
    /// Records sent to consumers.
    pub records_out: u64,
    /// Bytes of batches sent to consumers.
    pub bytes_out: u64,
}

impl TopicMetrics {
    /// Records were acknowledged.
    #[inline]
    pub fn count_in(&self, records: u64, bytes: u64) {
        self.records_in.fetch_add(records, Relaxed);
        self.bytes_in.fetch_add(bytes, Relaxed);
    }

    /// Records were sent to a consumer.
    #[inline]
    pub fn count_out(&self, records: u64, bytes: u64) {
        self.records_out.fetch_add(records, Relaxed);
        self.bytes_out.fetch_add(bytes, Relaxed);
    }

    /// The present values.
    pub fn counts(&self) -> TopicCounts {
        TopicCounts {
            records_in: self.records_in.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            records_out: self.records_out.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
        }
    }
}

/// Latencies of one stage. The writer locks `live`; a reader locks `seen`, then swaps.
#[derive(Debug)]
struct StageHistogram {
    live: Mutex<Histogram<u64>>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    spare: Histogram<u64>,
    total: Histogram<u64>,
}

impl StageHistogram {
    /// Two digits: a percentile is off by at most 1 %. About 30 KB each.
    fn empty() -> Histogram<u64> {
        Histogram::new_with_bounds(1, limits::MAX_STAGE_NS, 2).expect("the bounds are constants")
    }

    fn new() -> StageHistogram {
        let seen = Seen { spare: Self::empty(), total: Self::empty() };
        StageHistogram { live: Mutex::new(Self::empty()), seen: Mutex::new(seen) }
    }

    #[inline]
    fn record(&self, elapsed_ns: u64) {
        lock(&self.live).saturating_record(elapsed_ns);
    }

    fn total(&self) -> Histogram<u64> {
        let mut seen = lock(&self.seen);
        let Seen { spare, total } = &mut *seen;
        mem::swap(&mut *lock(&self.live), spare);
        total.add(&*spare).expect("all have the same bounds");
        spare.reset();
        total.clone()
    }
}

fn zeros<const N: usize>() -> [AtomicU64; N] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

/// Numbers stay good when some thread has panicked over them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_read() {
        let metrics = ShardMetrics::new(3);
        metrics.add(Counter::RecordsIn, 5);
        metrics.add(Counter::RecordsIn, 2);
        metrics.set(Gauge::MemoryCache, 9);
        metrics.raise(Gauge::Connections, 2);
        metrics.lower(Gauge::Connections, 3);
        metrics.count_request(RequestKind::Fetch);
        metrics.count_error(3);
        metrics.count_error(3);
        metrics.topic("a").count_in(1, 100);
        metrics.topic("a").count_out(2, 200);
        assert_eq!((metrics.shard(), metrics.counter(Counter::RecordsIn), metrics.counter(Counter::RecordsOut)), (3, 7, 0));
        assert_eq!((metrics.gauge(Gauge::MemoryCache), metrics.gauge(Gauge::Connections)), (9, 0));
        assert_eq!((metrics.requests(RequestKind::Fetch), metrics.errors()), (1, BTreeMap::from([(3, 2)])));
        let counts = TopicCounts { records_in: 1, bytes_in: 100, records_out: 2, bytes_out: 200 };
        assert_eq!(metrics.topics()[0].1.counts(), counts);
        metrics.forget_topic("a");
        assert!(metrics.topics().is_empty());
    }

    #[test]
    fn no_latency_is_lost_between_readings() {
        let metrics = Arc::new(ShardMetrics::new(0));
        let writer = Arc::clone(&metrics);
        const EACH: u64 = 20_000;
        let thread = std::thread::spawn(move || (0..EACH).for_each(|n| writer.record(Stage::Sync, n % 1000 + 1)));
        while !thread.is_finished() {
            let _ = metrics.stage(Stage::Sync);
        }
        thread.join().unwrap();
        let total = metrics.stage(Stage::Sync);
        assert_eq!(total.len(), EACH);
        assert!((495..=505).contains(&total.value_at_quantile(0.5)), "{}", total.value_at_quantile(0.5));
        metrics.record(Stage::Sync, u64::MAX);
        assert!(metrics.stage(Stage::Sync).max() >= limits::MAX_STAGE_NS, "what is too long for the histogram counts as its longest");
        assert_eq!(metrics.stage(Stage::Queue).len(), 0);
    }

    #[test]
    fn topics_past_the_bound_count_together() {
        let metrics = ShardMetrics::new(0);
        for n in 0..limits::MAX_TOPIC_METRICS + 10 {
            metrics.topic(&format!("t{n}")).count_in(1, 1);
        }
        let topics = metrics.topics();
        assert_eq!(topics.len(), limits::MAX_TOPIC_METRICS + 1);
        let other = topics.iter().find(|(name, _)| name == OTHER_TOPICS).unwrap();
        assert_eq!(other.1.counts().records_in, 10);
    }

    #[test]
    fn names_are_one_of_a_kind_and_fit_prometheus() {
        let all = Counter::ALL.iter().map(|c| c.name()).chain(Gauge::ALL.iter().map(|g| g.name())).collect::<Vec<_>>();
        for (index, name) in all.iter().enumerate() {
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert!(!all[..index].contains(name), "{name} is there twice");
        }
    }
}
