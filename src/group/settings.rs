//! Settings of the coordinator, with Kafka's names and defaults.

use crate::limits;
use crate::types::Timestamp;

/// What the groups of a coordinator are held to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `group.min.session.timeout.ms`.
    pub min_session_timeout_ms: i32,
    /// `group.max.session.timeout.ms`.
    pub max_session_timeout_ms: i32,
    /// `group.initial.rebalance.delay.ms`: how long an empty group waits for more members, again for each that comes, at most the rebalance timeout (KIP-134).
    pub initial_rebalance_delay_ms: i32,
    /// A new member is dropped when its join is not over after this long, ms.
    pub new_member_timeout_ms: i32,
    /// `group.max.size` (KIP-389), members.
    pub max_members: usize,
    /// Groups of this coordinator.
    pub max_groups: usize,
    /// Member ids of one group that were given out and have not joined yet.
    pub max_pending_members: usize,
    /// Protocol metadata of all members of a group, bytes.
    pub max_group_metadata: usize,
    /// Longest record of a group, bytes.
    pub max_group_record: usize,
    /// Committed positions of all groups of this coordinator.
    pub max_offsets: usize,
    /// `offset.metadata.max.bytes`, UTF-16 units.
    pub max_offset_metadata: usize,
    /// `offsets.retention.minutes` in ms: from the last commit, or from when the group became empty (KIP-211).
    pub offsets_retention_ms: i64,
    /// `offsets.retention.check.interval.ms`.
    pub retention_check_ms: u64,
    /// `offsets.topic.replication.factor`: replicas of `__consumer_offsets` when it is made; fewer where there are fewer nodes.
    pub offsets_replication_factor: u16,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            min_session_timeout_ms: limits::GROUP_MIN_SESSION_TIMEOUT_MS,
            max_session_timeout_ms: limits::GROUP_MAX_SESSION_TIMEOUT_MS,
            initial_rebalance_delay_ms: limits::GROUP_INITIAL_REBALANCE_DELAY_MS,
            new_member_timeout_ms: limits::GROUP_NEW_MEMBER_TIMEOUT_MS,
            max_members: limits::MAX_GROUP_MEMBERS,
            max_groups: limits::MAX_CONSUMER_GROUPS,
            max_pending_members: limits::MAX_PENDING_MEMBERS,
            max_group_metadata: limits::MAX_GROUP_METADATA,
            max_group_record: limits::MAX_GROUP_RECORD,
            max_offsets: limits::MAX_GROUP_OFFSETS,
            max_offset_metadata: limits::OFFSET_METADATA_MAX,
            offsets_retention_ms: limits::OFFSETS_RETENTION_MS,
            retention_check_ms: limits::OFFSETS_RETENTION_CHECK_MS,
            offsets_replication_factor: limits::OFFSETS_REPLICATION_FACTOR,
        }
    }
}

/// One moment by two clocks.
///
/// Sessions and waits run by the steady one: a wall clock that is set forward would fence every member at once. What is stored has the wall clock's time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Now {
    /// Of a clock that never goes back, ms from any beginning.
    pub steady_ms: u64,
    /// Of the wall clock, ms since the Unix epoch.
    pub wall: Timestamp,
}

impl Now {
    /// The moment `ms` later by the steady clock; a negative wait is none.
    pub(super) fn after(self, ms: i32) -> u64 {
        self.steady_ms.saturating_add(u64::try_from(ms).unwrap_or(0))
    }
}
