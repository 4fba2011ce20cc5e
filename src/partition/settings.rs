//! What a topic's configuration means to one partition.

use crate::limits;
use crate::types::Durability;

/// Settings of a partition, already valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Largest batch, bytes.
    pub max_message_bytes: usize,
    /// A segment that would grow past this is rolled, bytes.
    pub segment_bytes: u64,
    /// A segment is rolled when its first record is this old, ms.
    pub segment_ms: i64,
    /// Sealed segments go, oldest first, while the log is larger; `None` keeps all, as where records are only compacted.
    pub retention_bytes: Option<u64>,
    /// Sealed segments go when their newest record is older, ms; `None` keeps all, as where records are only compacted.
    pub retention_ms: Option<i64>,
    /// Of each key the newest record stays.
    pub compacted: bool,
    /// A compacted partition is cleaned when more of it is dirty, millionths.
    pub dirty_millionths: u32,
    /// A tombstone stays so long after it was first cleaned, ms.
    pub delete_retention_ms: i64,
    /// A segment with a newer record is not cleaned, ms.
    pub compaction_lag_ms: i64,
    /// Stamp batches with the broker's time.
    pub log_append_time: bool,
    /// What an acknowledgement waits for.
    pub durability: Durability,
    /// Only the broker itself appends, and no client deletes.
    pub internal: bool,
}

impl Default for Settings {
    /// Kafka's defaults; durable.
    fn default() -> Settings {
        Settings {
            max_message_bytes: limits::DEFAULT_MAX_MESSAGE_BYTES,
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 3600 * 1000,
            retention_bytes: None,
            retention_ms: Some(7 * 24 * 3600 * 1000),
            compacted: false,
            dirty_millionths: limits::DEFAULT_DIRTY_RATIO_MILLIONTHS,
            delete_retention_ms: limits::DEFAULT_DELETE_RETENTION_MS as i64,
            compaction_lag_ms: 0,
            log_append_time: false,
            durability: Durability::Durable,
            internal: false,
        }
    }
}
