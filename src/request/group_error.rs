//! Why the coordinator says no, with the Kafka protocol's numbers.

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $words:literal;)*) => {
        /// A refusal of the group coordinator. Values are the Kafka protocol's error codes.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, thiserror::Error)]
        #[repr(i16)]
        pub enum GroupError { $($(#[$doc])* #[error($words)] $name = $value,)* }

        impl GroupError {
            /// All of them, in the order of this list.
            pub const ALL: &'static [GroupError] = &[$(GroupError::$name,)*];

            /// The number on the wire.
            pub fn code(self) -> i16 { self as i16 }

            /// The error of a number, if it is one of the coordinator's.
            pub fn from_code(code: i16) -> Option<GroupError> {
                match code { $($value => Some(GroupError::$name),)* _ => None }
            }
        }
    };
}

errors! {
    /// The record of the group could not be stored as it is.
    UnknownServerError = -1, "the group could not be stored";
    /// A position in a partition that does not exist.
    UnknownTopicOrPartition = 3, "no such topic or partition";
    /// The member's metadata or the group's is past its bound (MESSAGE_TOO_LARGE).
    MessageTooLarge = 10, "the metadata is past its bound";
    /// The string that came with a committed offset is too long.
    OffsetMetadataTooLarge = 12, "the metadata of the offset is too long";
    /// The partition of `__consumer_offsets` is being read.
    CoordinatorLoadInProgress = 14, "the coordinator is loading";
    /// Not now: the group is being deleted, or the log did not take a record. To be tried again.
    CoordinatorNotAvailable = 15, "the coordinator can't serve the group now";
    /// Another broker has the partition of `__consumer_offsets` now.
    NotCoordinator = 16, "this is not the group's coordinator";
    /// The generation is not the group's.
    IllegalGeneration = 22, "the generation is not the group's";
    /// No protocol in common with the members, or another protocol type.
    InconsistentGroupProtocol = 23, "no protocol in common with the group's members";
    /// The group id is empty or too long.
    InvalidGroupId = 24, "not a group id";
    /// The member is not one of the group's.
    UnknownMemberId = 25, "the member is not in the group";
    /// The session timeout is outside the broker's bounds.
    InvalidSessionTimeout = 26, "the session timeout is out of bounds";
    /// The member has to join again.
    RebalanceInProgress = 27, "the group rebalances";
    /// The records of a commit are too large for the log.
    InvalidCommitOffsetSize = 28, "the commit is too large";
    /// The request contradicts itself or is past a bound.
    InvalidRequest = 42, "the request is not valid";
    /// A bound of the broker is reached: number of groups or of committed positions (POLICY_VIOLATION).
    PolicyViolation = 44, "a bound of the broker is reached";
    /// The group has members.
    NonEmptyGroup = 68, "the group has members";
    /// No such group.
    GroupIdNotFound = 69, "no such group";
    /// Join again, with the member id in this answer (KIP-394).
    MemberIdRequired = 79, "join again with the given member id";
    /// The group has as many members as it may have (KIP-389).
    GroupMaxSizeReached = 81, "the group is full";
    /// Another member id has the group instance id now (KIP-345).
    FencedInstanceId = 82, "another member has the group instance id";
    /// Offsets of a topic that the group's members subscribe to stay.
    GroupSubscribedToTopic = 86, "the group subscribes to the topic";
    /// A commit of this position is on its way to the log (KIP-447).
    UnstableOffsetCommit = 88, "a commit is on its way";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for error in GroupError::ALL {
            assert_eq!(GroupError::from_code(error.code()), Some(*error));
        }
        assert_eq!(GroupError::from_code(0), None);
    }
}
