//! Why a machine of replication refuses something.

use crate::types::{LeaderEpoch, Offset};

/// Nothing was applied.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Of a leader that others have followed: its epoch is over.
    #[error("leader epoch {actual} is over, the replica has promised to keep to {promised}")]
    StaleEpoch {
        /// The replica's.
        promised: LeaderEpoch,
        /// The message's.
        actual: LeaderEpoch,
    },
    /// For another registration of this node.
    #[error("meant for node epoch {actual}, the node is registered with {expected}")]
    StaleNodeEpoch {
        /// The node's.
        expected: u64,
        /// The message's.
        actual: u64,
    },
    /// For another life of this replica.
    #[error("meant for incarnation {actual}, the replica has {expected}")]
    StaleIncarnation {
        /// The replica's.
        expected: u32,
        /// The message's.
        actual: u32,
    },
    /// Its records don't follow the replica's last one.
    #[error("records from offset {offset} follow epoch {actual}, the replica's last record is of {expected}")]
    PreviousEpoch {
        /// The first record's.
        offset: Offset,
        /// The replica's.
        expected: LeaderEpoch,
        /// The message's.
        actual: LeaderEpoch,
    },
    /// What is before them is not the same on both sides.
    #[error("the running hash before offset {offset} is {actual:016x} for the leader and {expected:016x} here")]
    RunningHash {
        /// Before which offset.
        offset: Offset,
        /// The replica's.
        expected: u64,
        /// The message's.
        actual: u64,
    },
    /// A cut of what was committed, in an epoch that nobody marked unclean.
    #[error("a cut to offset {to} is below the watermark {watermark}, and no election was unclean")]
    BelowWatermark {
        /// Where to.
        to: Offset,
        /// The replica's.
        watermark: Offset,
    },
    /// The replica has no room for more, or its disk fails.
    #[error("the replica ends at offset {end} and can't store more")]
    Storage {
        /// Where it ends.
        end: Offset,
    },
    /// Contradicts itself.
    #[error("{0}")]
    Invalid(&'static str),
    /// Leadership in an epoch in which this log was led or followed already: after a restart an epoch never goes on.
    #[error("epoch {epoch} was used before, the replica has promised to keep to {promised}")]
    EpochUsed {
        /// The epoch.
        epoch: LeaderEpoch,
        /// The replica's.
        promised: LeaderEpoch,
    },
}

impl Refusal {
    /// Whether the two logs differ where they must not: nothing that is tried again will help, the replica is damaged or the leader is.
    pub fn is_divergence(&self) -> bool {
        matches!(self, Refusal::PreviousEpoch { .. } | Refusal::RunningHash { .. } | Refusal::BelowWatermark { .. })
    }
}
