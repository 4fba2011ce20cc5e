//! What is asked of the coordinator of a consumer group and what it answers, independent of the protocol that carried it.

use std::sync::Arc;

use bytes::Bytes;

pub use super::group_error::GroupError;
use crate::types::{LeaderEpoch, Offset, Timestamp};

/// A request to the coordinator of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupRequest {
    /// Become a member, or join the next generation.
    Join(JoinGroup),
    /// Get the assignment; a leader gives it.
    Sync(SyncGroup),
    /// As `Sync`; if the member is the leader, the broker assigns in its place (nothing is in `assignments`).
    SyncAssignedByBroker(SyncGroup),
    /// Still here.
    Heartbeat(Heartbeat),
    /// Members leave.
    Leave(LeaveGroup),
    /// Store positions.
    Commit(CommitOffsets),
    /// Read them.
    FetchOffsets(FetchOffsets),
    /// Groups with their members, by id.
    Describe(Vec<String>),
    /// Groups in one of these states; without states all.
    List(Vec<State>),
    /// Delete empty groups with their positions, by id.
    Delete(Vec<String>),
    /// Delete positions in topics that the members do not read.
    DeleteOffsets {
        /// Which group.
        group: String,
        /// Topics and partitions.
        topics: Vec<(String, Vec<i32>)>,
    },
}

/// The answer to a [`GroupRequest`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupAnswer {
    /// To [`JoinGroup`].
    Join(Result<Joined, JoinRefused>),
    /// To [`SyncGroup`].
    Sync(Result<Synced, GroupError>),
    /// To [`Heartbeat`].
    Heartbeat(Result<(), GroupError>),
    /// To [`LeaveGroup`].
    Leave(Result<Vec<Left>, GroupError>),
    /// To [`CommitOffsets`].
    Commit(Vec<TopicOutcome>),
    /// To [`FetchOffsets`].
    FetchOffsets(Result<Vec<FetchedTopic>, GroupError>),
    /// To a description of groups, in the order of the request.
    Describe(Vec<(String, Result<DescribedGroup, GroupError>)>),
    /// To a list of groups.
    List(Result<Vec<ListedGroup>, GroupError>),
    /// To a deletion of groups, in the order of the request.
    DeleteGroups(Vec<(String, Result<(), GroupError>)>),
    /// To a deletion of positions.
    DeleteOffsets(Result<Vec<TopicOutcome>, GroupError>),
}

/// One protocol that a member offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Protocol {
    /// Of a consumer: its assignor.
    pub name: Arc<str>,
    /// Of a consumer: its subscription.
    pub metadata: Bytes,
}

/// JoinGroup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinGroup {
    /// Which group.
    pub group: String,
    /// As given out before; empty for a new member.
    pub member_id: String,
    /// Of a static member (KIP-345).
    pub instance_id: Option<String>,
    /// The client's name for itself.
    pub client_id: String,
    /// Where the client is.
    pub client_host: String,
    /// Dropped after so long without a sign of life, ms.
    pub session_timeout_ms: i32,
    /// How long a rebalance waits for this member, ms; negative where the request has none (version 0): the session timeout.
    pub rebalance_timeout_ms: i32,
    /// `consumer` for consumers.
    pub protocol_type: String,
    /// In order of preference.
    pub protocols: Vec<Protocol>,
    /// A new member is told its id first and joins again with it (KIP-394; JoinGroup from version 4 on).
    pub needs_member_id: bool,
    /// The client knows the field that tells a leader to keep the assignment (KIP-814; JoinGroup from version 9 on).
    pub can_skip_assignment: bool,
    /// 16 random bytes of the shell: the end of a new member's id.
    pub entropy: [u8; 16],
}

/// A member of a generation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joined {
    /// Of the group.
    pub generation: i32,
    /// Of the group.
    pub protocol_type: Option<Arc<str>>,
    /// The one that was chosen.
    pub protocol: Option<Arc<str>>,
    /// Its member id.
    pub leader: Arc<str>,
    /// Of the one that joined.
    pub member_id: Arc<str>,
    /// The leader keeps the assignment as it is (KIP-814).
    pub skip_assignment: bool,
    /// All members with their metadata for the chosen protocol; for the leader only.
    pub members: Vec<MemberMetadata>,
}

/// A member as the leader sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberMetadata {
    /// Which.
    pub member_id: Arc<str>,
    /// Of a static member.
    pub instance_id: Option<Arc<str>>,
    /// For the chosen protocol.
    pub metadata: Bytes,
}

/// No member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinRefused {
    /// Why.
    pub error: GroupError,
    /// With [`GroupError::MemberIdRequired`] the id to join with; else as asked, or empty.
    pub member_id: Arc<str>,
}

/// SyncGroup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyncGroup {
    /// Which group.
    pub group: String,
    /// Who.
    pub member: MemberRef,
    /// As joined.
    pub generation: i32,
    /// As joined; `None` where the request has none.
    pub protocol_type: Option<String>,
    /// As joined; `None` where the request has none.
    pub protocol: Option<String>,
    /// By member id; the leader's.
    pub assignments: Vec<(String, Bytes)>,
}

/// A member that holds an assignment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Synced {
    /// Of the group.
    pub protocol_type: Option<Arc<str>>,
    /// The one that was chosen.
    pub protocol: Option<Arc<str>>,
    /// What the leader gave this member.
    pub assignment: Bytes,
}

/// A member as it names itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemberRef {
    /// As given out; empty for none.
    pub member_id: String,
    /// Of a static member.
    pub instance_id: Option<String>,
}

/// Heartbeat.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heartbeat {
    /// Which group.
    pub group: String,
    /// Who.
    pub member: MemberRef,
    /// As joined.
    pub generation: i32,
}

/// LeaveGroup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaveGroup {
    /// Which group.
    pub group: String,
    /// Who; static members by instance id with an empty member id (an administrator's removal).
    pub members: Vec<MemberRef>,
}

/// One member of a [`LeaveGroup`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Left {
    /// As asked.
    pub member: MemberRef,
    /// Whether it was there.
    pub outcome: Result<(), GroupError>,
}

/// OffsetCommit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitOffsets {
    /// Which group.
    pub group: String,
    /// Who; nobody for a simple consumer.
    pub member: MemberRef,
    /// As joined; negative for a simple consumer.
    pub generation: i32,
    /// How long the positions are kept, ms, where the request says so (versions 2 to 4).
    pub retention_ms: Option<i64>,
    /// Topics that exist: the shell has refused the others.
    pub topics: Vec<(String, Vec<CommitPartition>)>,
}

/// One position of a [`CommitOffsets`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitPartition {
    /// Which partition.
    pub partition: i32,
    /// The next offset to read.
    pub offset: Offset,
    /// Of the last record that was read.
    pub leader_epoch: Option<LeaderEpoch>,
    /// The client's own words.
    pub metadata: Option<String>,
}

/// Outcome of each partition of a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicOutcome {
    /// Which topic.
    pub topic: String,
    /// In the order of the request.
    pub partitions: Vec<(i32, Result<(), GroupError>)>,
}

/// OffsetFetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchOffsets {
    /// Which group.
    pub group: String,
    /// Topics and partitions; `None` is all that are known.
    pub topics: Option<Vec<(String, Vec<i32>)>>,
    /// Say so where a commit is on its way, instead of the position before it.
    pub require_stable: bool,
}

/// Positions of one topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchedTopic {
    /// Which topic.
    pub topic: String,
    /// In the order of the request.
    pub partitions: Vec<FetchedOffset>,
}

/// One position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchedOffset {
    /// Which partition.
    pub partition: i32,
    /// The durable position, nothing if there is none, or that a commit is on its way.
    pub outcome: Result<Option<Arc<OffsetCommit>>, GroupError>,
}

/// States of a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    /// No members; positions may be kept.
    Empty,
    /// Joins are gathered.
    PreparingRebalance,
    /// Members have joined; the leader's assignment is awaited or being stored.
    CompletingRebalance,
    /// Members hold their assignments.
    Stable,
    /// Being deleted, or unknown.
    Dead,
}

impl State {
    /// All of them.
    pub const ALL: [State; 5] = [State::Empty, State::PreparingRebalance, State::CompletingRebalance, State::Stable, State::Dead];

    /// Kafka's name, as in answers.
    pub fn name(self) -> &'static str {
        match self {
            State::Empty => "Empty",
            State::PreparingRebalance => "PreparingRebalance",
            State::CompletingRebalance => "CompletingRebalance",
            State::Stable => "Stable",
            State::Dead => "Dead",
        }
    }

    /// The state of a name, in any case (as in the filter of ListGroups).
    pub fn from_name(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.name().eq_ignore_ascii_case(name.trim()))
    }
}

/// One group of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedGroup {
    /// Its id.
    pub group: Arc<str>,
    /// Empty for a simple group.
    pub protocol_type: Arc<str>,
    /// Now.
    pub state: State,
}

/// A group with its members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DescribedGroup {
    /// Its id.
    pub group: Arc<str>,
    /// [`State::Dead`] for a group that is not there.
    pub state: State,
    /// Empty for a simple group.
    pub protocol_type: Arc<str>,
    /// The chosen one, in a stable group; else empty.
    pub protocol: Arc<str>,
    /// By member id.
    pub members: Vec<DescribedMember>,
}

/// A member of a [`DescribedGroup`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DescribedMember {
    /// Which.
    pub member_id: Arc<str>,
    /// Of a static member.
    pub instance_id: Option<Arc<str>>,
    /// The client's name for itself.
    pub client_id: Arc<str>,
    /// Where the client is.
    pub client_host: Arc<str>,
    /// For the chosen protocol, in a stable group; else empty.
    pub metadata: Bytes,
    /// What the leader gave it.
    pub assignment: Bytes,
}

/// Where a group is in one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OffsetCommit {
    /// The next offset that the group wants to read.
    pub offset: Offset,
    /// Leader epoch of the last record that was read; `None` where the client did not say.
    pub leader_epoch: Option<LeaderEpoch>,
    /// The client's own words.
    pub metadata: Arc<str>,
    /// When it was committed, by the broker's clock.
    pub commit_timestamp: Timestamp,
    /// When it ends, where the client asked for a retention of its own (commit requests v2 to v4).
    pub expire_timestamp: Option<Timestamp>,
}
