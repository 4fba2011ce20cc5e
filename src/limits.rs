//! Every bound of the broker and the client, by name, with its unit; relations between them hold at compile time.

/// Unit of direct I/O, bytes: every file position and length of a read or write is a multiple of it.
pub const BLOCK: usize = 4096;

/// Longest frame that is read into a shared receive buffer, bytes; longer ones get a buffer of their own.
pub const RECEIVE_BUFFER: usize = 64 * 1024;
/// Longest frame header (FlatBuffers), bytes.
pub const MAX_FRAME_HEADER: usize = 1024 * 1024;
/// Longest frame but for its batch payload's own limit, bytes: a 1 GiB record and its wrapping.
pub const MAX_FRAME: usize = (1 << 30) + 2 * MAX_FRAME_HEADER;

/// Default of the topic setting `max.message.bytes`, bytes (Kafka's default).
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;
/// Largest value of `max.message.bytes`, bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 30;
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
/// An idle shard writes a durable mark after this long, ms.
pub const DURABLE_MARK_MS: u64 = 10;

/// Longest body of a checkpoint, bytes: what a start may read and hold for one shard.
pub const MAX_CHECKPOINT: u64 = 1 << 30;
/// Recovery writes a partition's replayed bytes when it holds this many, bytes.
pub const REPLAY_CHUNK: usize = 4 * 1024 * 1024;
/// Recovery and inspection read a segment in pieces of this many bytes.
pub const SEGMENT_READ: usize = 1024 * 1024;
/// Idempotent producers that a partition remembers; the least recently used one is forgotten for the next.
pub const PARTITION_PRODUCERS: usize = 4096;

/// Log bytes between two index entries.
pub const INDEX_INTERVAL: u64 = 32 * 1024;
/// Batches that a producer entry remembers (Kafka's guarantee for five requests in flight).
pub const PRODUCER_BATCHES: usize = 5;
/// Longest topic name, bytes (Kafka's limit).
pub const MAX_TOPIC_NAME: usize = 249;
/// Largest number of partitions of one topic.
pub const MAX_PARTITIONS: u32 = 100_000;
/// Largest number of shards of a node: the advertised id is node id * 1024 + shard.
pub const MAX_SHARDS: u32 = 1024;

const _: () = {
    assert!(LARGE_APPEND + 2 * BLOCK < MAX_GROUP, "a small append and its carried block fit a group");
    assert!(LARGE_APPEND < ADOPT_APPEND, "the three ways of an append are in order");
    assert!((MAX_GROUP as u64) < JOURNAL_FILE, "a group fits a journal file");
    assert!(MAX_MESSAGE_BYTES + MAX_FRAME_HEADER < MAX_FRAME, "the largest batch fits a frame");
    assert!(REPLAY_CHUNK.is_multiple_of(BLOCK) && SEGMENT_READ.is_multiple_of(BLOCK), "files are read and written in whole blocks");
    assert!(MAX_JOURNAL.is_multiple_of(JOURNAL_FILE), "journals are whole files");
};
