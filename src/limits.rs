//! Every bound of the broker and the client, by name, with its unit; relations between them hold at compile time.

/// Unit of direct I/O, bytes: every file position and length of a read or write is a multiple of it.
pub const BLOCK: usize = 4096;

/// Longest frame that is read into a shared receive buffer, bytes; longer ones get a buffer of their own.
pub const RECEIVE_BUFFER: usize = 64 * 1024;
/// Longest frame header (FlatBuffers), bytes.
pub const MAX_FRAME_HEADER: usize = 1024 * 1024;
/// Longest frame header of a response, bytes: metadata of many partitions is larger than any request.
pub const MAX_RESPONSE_HEADER: usize = 64 * 1024 * 1024;
/// A header's content, shared parts counted each time they are used, is at most this many times its length: what a decoder
/// copies out of a hostile header is bounded by the header.
pub const HEADER_EXPANSION: usize = 8;
/// Deepest nesting of tables in a header.
pub const MAX_HEADER_DEPTH: usize = 8;
/// Longest frame but for its batch payload's own limit, bytes: a 1 GiB record and its wrapping.
pub const MAX_FRAME: usize = (1 << 30) + 2 * MAX_FRAME_HEADER;

/// Default of the topic setting `max.message.bytes`, bytes (Kafka's default).
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;
/// Largest value of `max.message.bytes`, bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 30;
/// Smallest value of `max.message.bytes`, bytes: an empty batch.
pub const MIN_MAX_MESSAGE_BYTES: usize = 61;
/// Smallest value of `segment.bytes`, bytes.
pub const MIN_SEGMENT_BYTES: u64 = 1024 * 1024;
/// Default of `segment.bytes`, bytes (Kafka's default).
pub const DEFAULT_SEGMENT_BYTES: u64 = 1 << 30;
/// Largest value of `segment.bytes`, bytes (Kafka's): positions in an index are 32 bits.
pub const MAX_SEGMENT_BYTES: u64 = i32::MAX as u64;
/// Largest zstd window that a reader of batches allocates, as a power of two, bytes: 128 MiB, what level 22 uses.
pub const MAX_ZSTD_WINDOW_LOG: u32 = 27;
/// A batch of at least this many bytes is written straight to its segment.
pub const LARGE_APPEND: usize = 128 * 1024;
/// A batch of more than this many bytes is received into a file of its own and adopted as a segment.
pub const ADOPT_APPEND: usize = 8 * 1024 * 1024;

/// Largest journal group, bytes, header and padding included.
pub const MAX_GROUP: usize = 512 * 1024;
/// Size of a journal file, bytes.
pub const JOURNAL_FILE: u64 = 32 * 1024 * 1024;
/// Largest sum of all journal files of a node, bytes: replay must fit the start-up target.
pub const MAX_JOURNAL: u64 = 512 * 1024 * 1024;
/// A journal group that nobody waits for is written after this long, ms.
pub const LAZY_GROUP_MS: u64 = 5;
/// Groups that nobody waits for are synced after this long, ms, while others are written; at once when none are.
pub const UNSYNCED_MS: u64 = 50;
/// An idle shard writes a durable mark after this long, ms.
pub const DURABLE_MARK_MS: u64 = 10;

/// Longest body of a checkpoint, bytes: what a start may read and hold for one shard.
pub const MAX_CHECKPOINT: u64 = 1 << 30;
/// Recovery writes a partition's replayed bytes when it holds this many, bytes.
pub const REPLAY_CHUNK: usize = 4 * 1024 * 1024;
/// Recovery and inspection read a segment in pieces of this many bytes.
pub const SEGMENT_READ: usize = 1024 * 1024;

/// Recovery reads the indexes of flushed segments up to this sum for each shard, bytes: some 8 GiB of log, or a thousand small segments.
pub const INDEX_CHECK: usize = 8 * 1024 * 1024;
/// Recovery reads large batches that are known durable and not flushed yet up to this sum, of all shards, bytes: 0.1 to 0.2 s of a device that reads 2 GB/s.
pub const LARGE_CHECK: usize = 256 * 1024 * 1024;
/// Log bytes between two index entries.
pub const INDEX_INTERVAL: u64 = 32 * 1024;
/// Batches that a producer entry remembers, and that a producer of ours has in flight to a partition: Kafka guarantees five; large batches that each wait
/// for the sync of their segment need more to keep the device busy.
pub const PRODUCER_BATCHES: usize = 16;
/// Longest topic name, bytes (Kafka's limit).
pub const MAX_TOPIC_NAME: usize = 249;
/// Largest number of partitions of one topic.
pub const MAX_PARTITIONS: u32 = 100_000;
/// Bytes that wait to be sent on one connection for replication, of all its partitions together; and bytes of messages that a shard has received and not looked at.
pub const LINK_WINDOW: usize = 16 * 1024 * 1024;
/// Bytes of batches in one frame between nodes, unless a single batch has more.
pub const MAX_LINK_PAYLOAD: usize = 1024 * 1024;
/// A sealed segment of fewer bytes is fed to a follower batch by batch: a file costs syncs of its own, and ends the group commit of what is around it.
pub const SHIP_LEAST: u64 = 1024 * 1024;
/// What replicas that are not in sync lack leaves a node no faster than this unless told otherwise, bytes per second, all shards together.
pub const CATCH_UP_BYTES_PER_S: u64 = 100 * 1024 * 1024;
/// Sealed segments are read again to see whether they are as they were written, no faster than this unless told otherwise, bytes per second, all shards together:
/// a terabyte in a day and a half, and little beside what a disk can do.
pub const VERIFY_BYTES_PER_S: u64 = 8 * 1024 * 1024;
/// A segment that was found sound is read again after so long, s: a week, well within the time in which a second disk is likely to fail too.
pub const VERIFY_AGAIN_S: u64 = 7 * 24 * 3600;
/// A segment that was sealed in this run is read for the first time after so long, s: the cost of a load is not to rise by its being read back.
pub const VERIFY_FIRST_S: u64 = 24 * 3600;
/// Segments that are due are looked for so often, s.
pub const VERIFY_LOOK_S: u64 = 60;
/// A damaged segment that could not be had from another replica is asked for again after so long, s.
pub const MEND_AGAIN_S: u64 = 30;
/// A leader with a damaged segment gives leadership away no more often than this, s: another replica may have the same damage, and give it back.
pub const HAND_OVER_AGAIN_S: u64 = 600;
/// After so many bytes of received segments with idempotent producers a checkpoint is taken, though the journal has room: a recovery reads those behind it.
pub const INSTALLED_PER_CHECKPOINT: u64 = 2 * 1024 * 1024 * 1024;
/// Whole segments that are sent on one connection at the same time.
pub const LINK_SEGMENTS: usize = 2;
/// Bytes of segments that wait to be sent on one connection: messages of other partitions wait for no more than this.
pub const PARTS_QUEUED: usize = 1024 * 1024;
/// Messages in one frame between nodes.
pub const MAX_LINK_MESSAGES: usize = 1024;
/// How long a node that starts waits for a cluster to answer before it says so, ms; and for an earlier life of it to be fenced.
pub const JOIN_PATIENCE_MS: u64 = 15_000;
/// A registration that has to wait is tried again after so long, ms.
pub const REGISTER_RETRY_MS: u64 = 250;
/// How long a node that stops waits for others to vote that are about to, ms.
pub const VOTERS_PATIENCE_MS: u64 = 2_000;
/// A node that has left the ISRs stays for so long, so that the slowest of the others hears of it, ms.
pub const LEAVE_SETTLE_MS: u64 = 50;
/// How long a node that stops waits for others to lead, ms.
pub const HAND_OVER_MS: u64 = 5_000;
/// Longest wait of a produce request for other replicas, ms; and that of one that names none.
pub const MAX_PRODUCE_WAIT_MS: u32 = 30_000;
/// Longest frame between nodes: one batch that is not shipped as a segment, and the header.
pub const MAX_LINK_FRAME: usize = ADOPT_APPEND + 2 * MAX_FRAME_HEADER;
/// Longest first frame of either side on a connection for replication: nobody is known yet.
pub const MAX_LINK_HELLO: usize = 4096;
/// Connections for replication that a shard accepts.
pub const MAX_LINKS: usize = 4096;
/// Between two heartbeats of the consensus' leader, ms; at least, and unless a setting says otherwise.
pub const MIN_CONSENSUS_HEARTBEAT_MS: u64 = 50;
/// The same, by default: what idle nodes exchange is for the most part this.
pub const CONSENSUS_HEARTBEAT_MS: u64 = 450;
/// A voter that hears no leader waits so long, ms, by default and at least: below it a pause of a busy machine would be an election.
pub const CONSENSUS_ELECTION_MS: u64 = 1000;
/// The same, at most: nothing about topics can be changed meanwhile.
pub const MAX_CONSENSUS_ELECTION_MS: u64 = 60_000;
/// Nodes that vote, once there are so many, by default.
pub const CONSENSUS_VOTERS: usize = 3;
/// A connection for replication with nothing to say says so after this long, ms.
pub const LINK_BEAT_MS: u64 = 1000;
/// One that has heard nothing for so long is ended, ms.
pub const LINK_DEAD_MS: u64 = 3500;
/// Connecting, and each side's part of the handshake, may take this long, ms.
pub const LINK_CONNECT_MS: u64 = 2000;
/// First pause before a connection is tried again, ms; it doubles up to [`LINK_PAUSE_MOST_MS`].
pub const LINK_PAUSE_MS: u64 = 50;
/// Longest of those pauses, ms.
pub const LINK_PAUSE_MOST_MS: u64 = 1000;
/// Largest number of shards of a node: the advertised id is node id * 1024 + shard.
pub const MAX_SHARDS: u32 = 1024;
/// Largest id of a node: its shards' broker ids are 31 bits.
pub const MAX_NODE_ID: u32 = (1 << 21) - 1;
/// Nodes of one cluster.
pub const MAX_NODES: usize = 1_000;
/// Replicas of one partition.
pub const MAX_REPLICAS: usize = 32;
/// Partitions that one answer about the cluster names: whoever wants more asks for the next page.
pub const STATUS_PARTITIONS: u32 = 20_000;
/// Moves that one step of a rebalance begins.
pub const REBALANCE_STEP: usize = 500;
/// Moves that come later and are named.
pub const NAMED_MOVES: usize = 10_000;
/// Partitions of which one request asks for the log of a replica.
pub const REPLICA_LOGS: usize = 1_000;
/// Segments of all logs in one answer.
pub const REPLICA_LOG_SEGMENTS: usize = 500_000;
/// How often it is looked whether leaders are elsewhere than they belong, ms.
pub const BALANCE_LOOK_MS: u64 = 2_000;
/// Looks in a row that must find some before they are moved.
pub const BALANCE_LOOKS: u32 = 5;
/// Leaderships that are moved at once to preferred leaders.
pub const BALANCED_LEADERS: u32 = 1_000;
/// Partitions that the outcome of a command names one by one; of more it says only that they are many.
pub const MAX_NAMED_PARTITIONS: usize = 1_000;
/// A record of partitions in a snapshot of the catalogue is closed at about this many bytes.
pub const SNAPSHOT_RECORD: usize = MAX_COMMAND / 2;
/// Names and addresses of one node, bytes.
pub const MAX_NODE_TEXT: usize = MAX_COMMAND / 4;
/// Registrations behind a catalogue's snapshot after which it is compacted: each is applied to every partition at a start.
pub const CATALOGUE_REGISTRATIONS: usize = 100;
/// Largest number of partitions of all topics together.
pub const MAX_ALL_PARTITIONS: u64 = 1_000_000;
/// Longest encoded command of the catalogue, bytes.
pub const MAX_COMMAND: usize = 64 * 1024;
/// Longest catalogue file, bytes; a command that would pass it is refused.
pub const MAX_CATALOGUE: usize = 256 * 1024 * 1024;
/// A catalogue shorter than this is not compacted, bytes; a longer one is when it has grown to four times its last snapshot.
pub const CATALOGUE_COMPACT: u64 = 1024 * 1024;
/// Commands of the catalogue that one write and one sync make durable, at most.
pub const CATALOGUE_GROUP: usize = 64;
/// Producer ids that a shard takes at once.
pub const PRODUCER_ID_BLOCK: u32 = 1000;
/// Topics whose traffic a shard counts one by one; the rest count together.
pub const MAX_TOPIC_METRICS: usize = 1000;
/// Longest latency that a stage's histogram tells from longer ones, ns.
pub const MAX_STAGE_NS: u64 = 60_000_000_000;
/// Requests from the shards that wait for the control plane.
pub const CONTROL_REQUESTS: usize = 256;
/// Events that wait for a shard.
pub const SHARD_EVENTS: usize = 16;
/// Longest wait until every shard has a new catalogue in force before its proposer is answered anyway, ms.
pub const IN_FORCE_MS: u64 = 5_000;
/// A file of the consensus log is followed by the next once it is so long, bytes.
pub const CONSENSUS_SEGMENT: u64 = 1024 * 1024;
/// Longest entry of the consensus log, bytes: a proposal of several commands, or a membership.
pub const MAX_CONSENSUS_ENTRY: usize = 1024 * 1024;
/// Entries that one message of consensus carries, bytes (a single larger one goes alone).
pub const CONSENSUS_APPEND: usize = 2 * 1024 * 1024;
/// Longest frame between nodes of the control plane, bytes.
pub const MAX_CONSENSUS_FRAME: usize = 4 * 1024 * 1024;
/// Longest frame before the other side is known, bytes.
pub const MAX_CONSENSUS_HELLO: usize = 256;
/// A snapshot travels in pieces of at most so many bytes.
pub const CONSENSUS_CHUNK: usize = 512 * 1024;
/// Longest snapshot of the metadata, bytes: a catalogue and the proposers.
pub const MAX_CONSENSUS_SNAPSHOT: usize = MAX_CATALOGUE + 64 * 1024;
/// Entries after which the next snapshot of the metadata is made.
pub const CONSENSUS_SNAPSHOT_ENTRIES: u64 = 1_000;
/// Bytes of entries in memory after which the next snapshot of the metadata is made, whatever their number.
pub const CONSENSUS_SNAPSHOT_BYTES: u64 = 16 * 1024 * 1024;
/// Entries that are kept behind a snapshot, for followers that are a little behind.
pub const CONSENSUS_KEEP_ENTRIES: u64 = 500;
/// Proposers whose last proposal is remembered; the least recent one is forgotten for the next. It must be long away by then: a proposal lives for seconds.
pub const MAX_PROPOSERS: usize = 1_000;
/// Groups of proposals of one node that wait for those before them.
pub const CONSENSUS_PROPOSALS: usize = 256;
/// Longest address of a node, bytes: a host name and a port.
pub const MAX_NODE_ADDRESS: usize = 300;
/// Connections of other nodes to the consensus port, at most: each keeps one for what it says as a member, one for its proposals, and another pair for a while when the leader changes.
pub const CONSENSUS_CONNECTIONS: usize = 4 * MAX_NODES;
/// Longest frame of one who is of no cluster yet, bytes: it asks who leads, and what else fits is refused in words. Anybody may be one, on all connections at once.
pub const MAX_NEWCOMER_FRAME: usize = MAX_CONSENSUS_HELLO + MAX_NODE_ADDRESS;
/// One who is of no cluster yet asks at once, s, or is gone.
pub const NEWCOMER_IDLE_S: u64 = 10;
/// A connection of a node over which nothing comes is asked whether the host is still there after so long, s, and three times more: one whose end was lost would be kept for ever.
pub const CONSENSUS_KEEPALIVE_S: u64 = 30;
/// A frame between nodes of the control plane is to be complete after this long, s; a peer that sends slower is gone.
pub const CONSENSUS_FRAME_S: u64 = 10;
/// Threads on which a control-plane runtime may block for files.
pub const CONTROL_BLOCKING_THREADS: usize = 2;
/// Connections that the admin port serves at once; more wait in the kernel's backlog.
pub const ADMIN_CONNECTIONS: usize = 64;
/// Longest wait for the head of an admin request, s.
pub const ADMIN_HEADER_S: u64 = 10;
/// Longest answer that `corelane stat` reads, bytes.
pub const MAX_STAT_ANSWER: usize = 64 * 1024 * 1024;
/// Longest life of an admin connection, s.
pub const ADMIN_CONNECTION_S: u64 = 120;
/// Default of `--memory`, bytes.
pub const DEFAULT_MEMORY: u64 = 1 << 30;
/// Least memory of a shard, bytes.
pub const MIN_SHARD_MEMORY: u64 = 32 * 1024 * 1024;
/// Most shards that clients are told of, unless somebody asks for more.
pub const DEFAULT_ADVERTISED_ENDPOINTS: u32 = 16;
/// Longest spin of an idle shard, us.
pub const MAX_SPIN_US: u64 = 100_000;
/// Longest host name, bytes (DNS).
pub const MAX_HOST_NAME: usize = 253;
/// Least memory that must be lockable, bytes (the runtime's own check).
pub const MIN_LOCKED_MEMORY: u64 = 512 * 1024;
/// Least number of descriptors that a broker starts with.
pub const MIN_DESCRIPTORS: u64 = 1024;
/// Space kept back for checkpoints, deletions and the like when the disk is full, bytes.
pub const RESERVE: u64 = 64 * 1024 * 1024;
/// The same for each partition on top, bytes: its unfinished block of log and of index.
pub const RESERVE_PER_PARTITION: u64 = 2 * BLOCK as u64;
/// Free space that a new store needs, bytes: the reserve and room to start.
pub const MIN_FREE_SPACE: u64 = 128 * 1024 * 1024;
/// Free space that each shard of a new store needs on top, bytes: its journal's files.
pub const MIN_FREE_SPACE_PER_SHARD: u64 = 4 * JOURNAL_FILE;

const _: () = {
    assert!(LARGE_APPEND + 2 * BLOCK < MAX_GROUP, "a small append and its carried block fit a group");
    assert!(LARGE_APPEND < ADOPT_APPEND, "the three ways of an append are in order");
    assert!((MAX_GROUP as u64) < JOURNAL_FILE, "a group fits a journal file");
    assert!(MAX_MESSAGE_BYTES + MAX_FRAME_HEADER < MAX_FRAME, "the largest batch fits a frame");
    assert!(REPLAY_CHUNK.is_multiple_of(BLOCK) && SEGMENT_READ.is_multiple_of(BLOCK), "files are read and written in whole blocks");
    assert!(MAX_JOURNAL.is_multiple_of(JOURNAL_FILE), "journals are whole files");
};

/// How long a starting broker waits for a port that is in use, and how often it tries, ms.
pub const LISTEN_PATIENCE_MS: u64 = 2000;
/// See [`LISTEN_PATIENCE_MS`].
pub const LISTEN_RETRY_MS: u64 = 2;
/// Connections of one shard.
pub const MAX_CONNECTIONS: usize = 10_000;
/// Longest request of Kafka's protocol but for Produce, bytes.
pub const MAX_KAFKA_REQUEST: usize = 1024 * 1024;
/// What is made of a request of Kafka's protocol takes so many times its bytes, about: a fetch has 33 for a partition, of which some 250 are made.
pub const KAFKA_DECODED: usize = 8;
/// Longest Produce request of Kafka's protocol that is held whole, bytes; of a longer one, one batch is held at a time.
pub const MAX_KAFKA_PRODUCE: usize = ADOPT_APPEND + MAX_KAFKA_REQUEST;
/// Elements of all arrays of a request of Kafka's protocol, and tagged fields, at most: what a decoder allocates is bounded.
pub const MAX_KAFKA_ELEMENTS: usize = 100_000;
/// Topics and the like that one request of Kafka's administrators changes or describes, at most; those behind are refused.
pub const MAX_KAFKA_CHANGES: usize = 10_000;
/// Words of refusals and settings in one answer of Kafka's protocol, bytes; all else in it is in proportion to its request or to what there is.
pub const MAX_KAFKA_DETAILS: usize = 4 * 1024 * 1024;
/// Longest string of a request of Kafka's protocol, bytes (that of its classic encoding).
pub const MAX_KAFKA_TEXT: usize = i16::MAX as usize;
/// Topics that one request for metadata creates by naming them, at most.
pub const MAX_CREATED_BY_NAME: usize = 1000;
/// Requests of Kafka's protocol that wait for those before them, and answers that do, on one connection, bytes; more are not read.
pub const MAX_KAFKA_WAITING: usize = RECEIVE_BUFFER;
/// Requests that a shard reads ahead of its answers on one connection.
pub const MAX_IN_FLIGHT: u32 = 1024;
/// Bytes of answers that may wait for a slow reader before its requests wait too.
pub const MAX_QUEUED_ANSWER: usize = 8 * 1024 * 1024;
/// A connection whose peer takes nothing of what waits for it is closed after this long, s.
pub const ANSWER_DEADLINE_S: u64 = 30;
/// Taking less than this many bytes per second counts as taking nothing, for the part of the time that is missing.
pub const MIN_ANSWER_RATE: u64 = 16 * 1024;
/// The same while memory is short: what waits pins memory that appends need, s.
pub const ANSWER_DEADLINE_PRESSED_S: u64 = 5;
/// A frame is to be complete after this long and a second for each [`MIN_FRAME_RATE`] bytes, s.
pub const FRAME_DEADLINE_S: u64 = 30;
/// Slowest rate of a frame, bytes per second.
pub const MIN_FRAME_RATE: u64 = 64 * 1024;
/// A connection that has not said hello after this long is closed, s.
pub const HELLO_DEADLINE_S: u64 = 10;
/// Longest wait of a fetch, ms.
pub const MAX_FETCH_WAIT_MS: u32 = 60_000;
/// Most bytes of one answer to a fetch but for a single larger batch.
pub const MAX_FETCH_BYTES: u32 = 16 * 1024 * 1024;
/// Requests of one shard to another that wait.
pub const MESH_QUEUE: usize = 1024;
/// Idempotent producers that one partition remembers, in a running shard and in recovery; the least recently used one is forgotten for the next.
pub const MAX_PRODUCERS: usize = 10_000;
/// Bytes of a log that are looked through, from a cut backwards, for the last batches of producers that the cut made forget.
pub const PRODUCER_SEARCH_BYTES: u64 = 256 << 20;
/// A producer that was silent for so long is forgotten (Kafka's `producer.id.expiration.ms`), ms.
pub const PRODUCER_EXPIRATION_MS: i64 = 24 * 3600 * 1000;
/// A shard's memory divided by this is what a cleaning's map of keys takes: 24 bytes a slot, three of four in use.
pub const CLEANER_MEMORY_PART: usize = 32;
/// Most memory of a cleaning's map, bytes (Kafka's default of `log.cleaner.dedupe.buffer.size`).
pub const MAX_CLEANER_MEMORY: usize = 128 * 1024 * 1024;
/// A cleaning reads and writes in pieces of about this many bytes.
pub const CLEANER_PIECE: usize = 512 * 1024;
/// A cleaning reads and writes at most so many bytes per second in each shard: a small part of what a device does.
pub const CLEANER_BYTES_PER_S: u64 = 64 * 1024 * 1024;
/// Pause between two looks for what is to be cleaned, ms.
pub const CLEANER_PAUSE_MS: u64 = 1_000;
/// Largest uncompressed block of a batch for a compacted topic, bytes: its keys are looked at when it comes, and by every cleaning.
pub const MAX_COMPACTED_BLOCK: usize = ADOPT_APPEND;
/// Default of `delete.retention.ms` (Kafka's default), ms.
pub const DEFAULT_DELETE_RETENTION_MS: u64 = 24 * 3600 * 1000;
/// Default of `min.cleanable.dirty.ratio` (Kafka's default), millionths.
pub const DEFAULT_DIRTY_RATIO_MILLIONTHS: u32 = 500_000;
/// Largest uncompressed content of a batch that the broker looks into (a search by time), bytes.
pub const MAX_DECOMPRESSED: usize = 256 * 1024 * 1024;

/// Default of `offsets.topic.num.partitions` (Kafka's default).
pub const OFFSETS_PARTITIONS: u32 = 50;
/// Default of `offsets.topic.replication.factor` (Kafka's default), nodes.
pub const OFFSETS_REPLICATION_FACTOR: u16 = 3;
/// Default of `group.min.session.timeout.ms` (Kafka's default), ms.
pub const GROUP_MIN_SESSION_TIMEOUT_MS: i32 = 6_000;
/// Default of `group.max.session.timeout.ms` (Kafka's default), ms.
pub const GROUP_MAX_SESSION_TIMEOUT_MS: i32 = 1_800_000;
/// Default of `group.initial.rebalance.delay.ms` (Kafka's default), ms.
pub const GROUP_INITIAL_REBALANCE_DELAY_MS: i32 = 3_000;
/// A new member whose join is not over after this long is dropped (as Kafka does), ms: its client has given up and joined again.
pub const GROUP_NEW_MEMBER_TIMEOUT_MS: i32 = 300_000;
/// Default of `offsets.retention.minutes` (Kafka's default), ms.
pub const OFFSETS_RETENTION_MS: i64 = 7 * 24 * 3600 * 1000;
/// Default of `offsets.retention.check.interval.ms` (Kafka's default), ms.
pub const OFFSETS_RETENTION_CHECK_MS: u64 = 600_000;
/// Default of `offset.metadata.max.bytes` (Kafka's default), UTF-16 units, as Kafka counts.
pub const OFFSET_METADATA_MAX: usize = 4096;
/// Largest value of `offset.metadata.max.bytes`: three bytes for each unit still fit the 15-bit length of a string.
pub const MAX_OFFSET_METADATA: usize = STRING_MAX / 3;
/// Longest string of Kafka's non-compact encoding, bytes: its length is a signed 16-bit number.
pub const STRING_MAX: usize = i16::MAX as usize;
/// Groups of one partition of `__consumer_offsets`.
pub const MAX_CONSUMER_GROUPS: usize = 100_000;
/// Longest group id, bytes.
pub const MAX_GROUP_ID: usize = 1024;
/// Longest client id, client host, group instance id, member id, protocol type or protocol name, bytes.
pub const MAX_GROUP_STRING: usize = 4096;
/// Groups that one request of the native protocol names, at most.
pub const MAX_GROUPS_OF_REQUEST: usize = 10_000;
/// Members of one group: default and largest value of `group.max.size`.
pub const MAX_GROUP_MEMBERS: usize = 10_000;
/// Member ids of one group that were given out and have not joined yet.
pub const MAX_PENDING_MEMBERS: usize = 10_000;
/// Protocols that one member offers.
pub const MAX_MEMBER_PROTOCOLS: usize = 64;
/// Metadata of all protocols of one member, bytes.
pub const MAX_MEMBER_METADATA: usize = 512 * 1024;
/// Protocol metadata of all members of one group, bytes.
pub const MAX_GROUP_METADATA: usize = 16 * 1024 * 1024;
/// Longest record of a group with its assignments, bytes: it is to fit a batch of the offsets topic.
pub const MAX_GROUP_RECORD: usize = DEFAULT_MAX_MESSAGE_BYTES - 1024;
/// Committed positions of all groups of one partition of `__consumer_offsets`.
pub const MAX_GROUP_OFFSETS: usize = 1_000_000;
/// Longest snapshot of a partition's groups that is kept in checkpoints, bytes: each checkpoint has it again. Groups of a longer one are loaded from the log.
pub const MAX_GROUP_SNAPSHOT: usize = 4 * 1024 * 1024;
/// Records of a partition's groups after which a snapshot is made again, at least; with more groups and positions than that, after as many.
pub const GROUP_SNAPSHOT_RECORDS: usize = 1_000;
/// Bytes of a partition of `__consumer_offsets` that are read at once when its groups are loaded.
pub const GROUP_LOAD_BYTES: u32 = 1024 * 1024;
/// Tombstones of one append when positions go: 249 bytes of topic and 1024 of group each still fit a batch.
pub const PURGE_RECORDS: usize = 500;
/// Groups that one step of the search for old positions looks at.
pub const GROUP_EXPIRY_STEP: usize = 256;
/// A rebalance that nobody joins is looked at no more often than this, ms: a client may say that it is to wait 0 ms.
pub const GROUP_LEAST_WAIT_MS: i32 = 1_000;
/// Records that a listener of a group holds for handlers that are not free yet, at most; more are not read.
pub const LISTENER_WAITING: usize = 1_000;

const _: () = {
    assert!(CONSENSUS_APPEND + MAX_CONSENSUS_ENTRY + 64 * 1024 <= MAX_CONSENSUS_FRAME, "entries fit a frame");
    assert!(MAX_COMMAND * 2 <= MAX_CONSENSUS_ENTRY, "a command fits an entry");
    assert!(MAX_NODES * (MAX_NODE_ADDRESS + 32) + 4096 <= MAX_CONSENSUS_ENTRY, "a membership fits an entry");
    assert!(CONSENSUS_CHUNK + MAX_NODES * (MAX_NODE_ADDRESS + 32) + 4096 <= MAX_CONSENSUS_FRAME, "a piece of a snapshot fits a frame");
};
const _: () = {
    assert!(MAX_GROUP_STRING + 64 <= STRING_MAX && MAX_GROUP_ID <= STRING_MAX, "a member id is a client id and a UUID");
    assert!(OFFSET_METADATA_MAX <= MAX_OFFSET_METADATA, "metadata fits a string of a record");
    assert!(MAX_MEMBER_METADATA <= MAX_GROUP_METADATA && MAX_MEMBER_METADATA <= MAX_GROUP_RECORD, "a group of one member is possible");
    assert!(PURGE_RECORDS * (MAX_GROUP_ID + MAX_TOPIC_NAME + 64) < DEFAULT_MAX_MESSAGE_BYTES, "tombstones fit a batch");
};
