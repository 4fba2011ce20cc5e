//! Why an append of the coordinator's failed.

use crate::request::group::GroupError;

/// Why the log did not take records.
///
/// An append that failed is *not* in the log and never will be. Where that is in doubt (a sync that failed, a broker that may have lost the
/// leadership) the shell unloads the coordinator instead and loads it again from the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppendFailure {
    /// The partition is led elsewhere, or its disk failed.
    NotLeader,
    /// Not now: too few replicas, disk full, stopping.
    Unavailable,
    /// Longer than a batch of the topic may be.
    TooLarge,
}

impl AppendFailure {
    /// For joins, syncs, leaves and deletions.
    pub(super) fn of_group(self) -> GroupError {
        match self {
            AppendFailure::NotLeader => GroupError::NotCoordinator,
            AppendFailure::Unavailable => GroupError::CoordinatorNotAvailable,
            AppendFailure::TooLarge => GroupError::UnknownServerError,
        }
    }

    /// For commits.
    pub(super) fn of_commit(self) -> GroupError {
        match self {
            AppendFailure::TooLarge => GroupError::InvalidCommitOffsetSize,
            other => other.of_group(),
        }
    }
}
