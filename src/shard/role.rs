//! What a partition is on this node, and what waits until its records are committed.

use std::collections::VecDeque;
use std::time::Instant;

use crate::shard::pending::Completion;
use crate::types::{LeaderEpoch, Offset, Timestamp};

/// What this node is to a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Has the only replica: it leads, and what is durable here is committed.
    Alone,
    /// Leads in that epoch. The watermark is set from outside ([`crate::shard::partition_cell::PartitionCell::set_watermark`]): it depends on other replicas.
    Leader(LeaderEpoch),
    /// Takes what the leader of that epoch sends. The watermark is the leader's.
    Follower(LeaderEpoch),
    /// Not known yet, or nothing: nobody is served, and nothing is taken.
    Unassigned,
}

impl Role {
    /// Whether clients are served.
    pub fn leads(self) -> bool {
        matches!(self, Role::Alone | Role::Leader(_))
    }
}

/// An append, or a retry of one, that has reached its topic's level here and is answered once it is committed.
pub struct Awaiting {
    /// First offset.
    pub base_offset: Offset,
    /// One past the last offset.
    pub end_offset: Offset,
    /// Records.
    pub count: u32,
    /// The batch's CRC-32C; a retry has none.
    pub crc: Option<u32>,
    /// The broker's timestamp where it set one, else -1.
    pub log_append_time: Timestamp,
    /// Who waits.
    pub completion: Completion,
}

/// Those of one partition, in order of their ends.
#[derive(Default)]
pub struct AwaitingQueue(VecDeque<Awaiting>);

impl AwaitingQueue {
    /// Adds one, behind all that end at or before its end.
    pub fn push(&mut self, awaiting: Awaiting) {
        let at = self.0.partition_point(|other| other.end_offset <= awaiting.end_offset);
        self.0.insert(at, awaiting);
    }

    /// Takes those out that end at or below `committed`.
    pub fn take_committed(&mut self, committed: Offset) -> impl Iterator<Item = Awaiting> {
        let at = self.0.partition_point(|other| other.end_offset <= committed);
        self.0.drain(..at)
    }

    /// The one with the smallest end.
    pub fn first(&self) -> Option<&Awaiting> {
        self.0.front()
    }

    /// Takes those out whose wait is over.
    pub fn take_expired(&mut self, now: Instant) -> Vec<Awaiting> {
        let (over, left) = std::mem::take(&mut self.0).into_iter().partition(|awaiting| awaiting.completion.patience.deadline <= now);
        self.0 = left;
        Vec::from(over)
    }

    /// Takes all out.
    pub fn take_all(&mut self) -> VecDeque<Awaiting> {
        std::mem::take(&mut self.0)
    }
}
