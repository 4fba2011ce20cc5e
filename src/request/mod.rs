//! What clients ask and what they are told, independent of the protocol that carried it.
//!
//! Record batches are not part of these values: a request points into the payload that came with it by byte
//! range, a response is paired by the codec with the batches' bytes, so nothing here copies a record.

pub mod cluster;
pub mod consumer_protocol;
pub mod fields;
pub mod group;
mod group_error;

use std::ops::Range;
use std::sync::Arc;

use self::cluster::{ClusterAnswer, ClusterRequest};
use self::group::{GroupAnswer, GroupError, GroupRequest};
use crate::types::{Durability, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp, TopicId, TopicPartition};

/// Which acknowledgement a producer waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acks {
    /// No answer at all.
    None,
    /// The leader's, at the topic's durability.
    Leader,
    /// All in-sync replicas', at the topic's durability.
    All,
}

/// Any request.
#[derive(Clone, PartialEq, Debug)]
pub enum Request {
    /// Brokers, topics, partitions and where each is led.
    Metadata(MetadataRequest),
    /// Create one topic.
    CreateTopic(CreateTopic),
    /// Delete one topic.
    DeleteTopic(String),
    /// Settings of a topic as in force.
    DescribeTopic(String),
    /// Change settings or add partitions.
    AlterTopic(AlterTopic),
    /// Append batches.
    Produce(Produce),
    /// Read batches.
    Fetch(Fetch),
    /// Resolve earliest, latest or a timestamp to an offset.
    ListOffsets(Vec<ListOffset>),
    /// A new identity for an idempotent producer.
    InitProducerId,
    /// Which brokers coordinate groups, by id.
    FindCoordinator(Vec<String>),
    /// To the coordinator of a group, or of groups.
    Group(GroupRequest),
    /// Delete the first records of partitions.
    DeleteRecords(Vec<DeleteRecords>),
    /// Where leader epochs of partitions end.
    EpochEnds(Vec<EpochQuestion>),
    /// Of an administrator of the cluster.
    Cluster(ClusterRequest),
}

/// Which topics to describe.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MetadataRequest {
    /// Names; `None` is all topics.
    pub topics: Option<Vec<String>>,
    /// Create the named topics that don't exist, where the broker's setting allows it.
    pub create_missing: bool,
}

/// Create a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateTopic {
    /// Its name.
    pub name: String,
    /// Number of partitions; `None` is the broker's default.
    pub partitions: Option<u32>,
    /// Replicas of each partition, counted in nodes; `None` is the broker's default.
    pub replication_factor: Option<u16>,
    /// Settings as (name, value).
    pub config: Vec<(String, String)>,
    /// Check only, change nothing.
    pub validate_only: bool,
}

/// Change a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AlterTopic {
    /// Its name.
    pub name: String,
    /// New number of partitions, at least the present one.
    pub partitions: Option<u32>,
    /// Settings to set (value) or to give back to the default (`None`).
    pub config: Vec<(String, Option<String>)>,
}

/// Append batches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Produce {
    /// What to wait for.
    pub acks: Acks,
    /// How long the broker may wait for it, ms.
    pub timeout_ms: u32,
    /// One batch each, in the payload, in ascending order of their ranges.
    pub batches: Vec<ProduceBatch>,
    /// The only batch's CRC-32C was not known when its header was sent: it is the 4 bytes (big-endian) that follow the batch, at
    /// the end of the payload. Whoever takes the batch checks it and writes it into the batch's CRC field.
    pub crc_trailer: bool,
}

/// One batch of a produce request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProduceBatch {
    /// Where to.
    pub partition: TopicPartition,
    /// Where the batch's bytes are in the request's payload.
    pub range: Range<usize>,
}

/// Read batches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// Longest wait for `min_bytes`, ms.
    pub max_wait_ms: u32,
    /// Answer at once when this many bytes are there.
    pub min_bytes: u32,
    /// Roughly the most bytes in the answer; one batch may exceed it.
    pub max_bytes: u32,
    /// In order of preference.
    pub partitions: Vec<FetchPartition>,
    /// Who may answer.
    pub from: ReadFrom,
}

/// Which replicas may answer a fetch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ReadFrom {
    /// The leader.
    #[default]
    Leader,
    /// A follower that is in sync too: up to the watermark that it knows.
    InSync,
    /// As [`ReadFrom::InSync`], and a leader that is not in this rack names an in-sync follower that is, in the place of records.
    Rack(Arc<str>),
}

/// One partition of a fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchPartition {
    /// Which.
    pub partition: TopicPartition,
    /// First offset wanted.
    pub offset: Offset,
    /// Roughly the most bytes of this partition.
    pub max_bytes: u32,
    /// The leader epoch that the client knows; `None` skips the check.
    pub leader_epoch: Option<LeaderEpoch>,
}

/// Which offset of a partition is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OffsetSpec {
    /// The first readable one.
    Earliest,
    /// One past the last readable one.
    Latest,
    /// The first one whose timestamp is at least this.
    At(Timestamp),
    /// The one with the largest timestamp.
    MaxTimestamp,
}

/// One question of a list-offsets request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListOffset {
    /// Which partition.
    pub partition: TopicPartition,
    /// Which offset.
    pub spec: OffsetSpec,
}

/// The first records of one partition, to be deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeleteRecords {
    /// Which partition.
    pub partition: TopicPartition,
    /// First offset that stays; `None` is the high watermark. Below the first readable one nothing changes.
    pub before: Option<Offset>,
}

/// One question about where a leader epoch ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochQuestion {
    /// Which partition.
    pub partition: TopicPartition,
    /// The present leader epoch as the client knows it; `None` skips the check.
    pub current: Option<LeaderEpoch>,
    /// The epoch whose end is asked for.
    pub epoch: LeaderEpoch,
}

/// Any response but fetch, whose bytes travel beside it.
#[derive(Clone, PartialEq, Debug)]
pub enum Response {
    /// To [`Request::Metadata`].
    Metadata(Metadata),
    /// To [`Request::CreateTopic`].
    TopicCreated(TopicDescription),
    /// To [`Request::DeleteTopic`].
    TopicDeleted,
    /// To [`Request::DescribeTopic`].
    Topic(TopicDescription),
    /// To [`Request::AlterTopic`].
    TopicAltered(TopicDescription),
    /// To [`Request::Produce`], in the order of the request.
    Produce(Vec<ProduceResult>),
    /// To [`Request::Fetch`], in the order of the request; `bytes` of each say how the payload is divided.
    Fetch(Vec<FetchResult>),
    /// To [`Request::ListOffsets`], in the order of the request.
    ListOffsets(Vec<ListOffsetResult>),
    /// To [`Request::InitProducerId`].
    ProducerId(ProducerId, ProducerEpoch),
    /// To [`Request::FindCoordinator`], in the order of the request.
    Coordinators(Vec<Result<Broker, GroupError>>),
    /// To [`Request::Group`].
    Group(GroupAnswer),
    /// To [`Request::DeleteRecords`], in the order of the request.
    RecordsDeleted(Vec<DeleteRecordsResult>),
    /// To [`Request::EpochEnds`], in the order of the request.
    EpochEnds(Vec<EpochEndResult>),
    /// To [`Request::Cluster`].
    Cluster(ClusterAnswer),
    /// The whole request was refused.
    Refused(Refusal),
}

/// Brokers and topics.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// The cluster's UUID.
    pub cluster: [u8; 16],
    /// One entry per advertised shard of each node that is there.
    pub brokers: Vec<Broker>,
    /// Advertised id of a broker that takes topic changes; one of `brokers`.
    pub controller: u32,
    /// The topics asked for.
    pub topics: Vec<TopicMetadata>,
}

/// An advertised shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broker {
    /// node id * 1024 + shard.
    pub id: u32,
    /// Host to connect to.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
}

/// A topic, or why there is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicMetadata {
    /// Name as asked.
    pub name: String,
    /// Id and partitions, or the refusal.
    pub found: Result<TopicPartitions, Refusal>,
}

/// Identity and leaders of a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicPartitions {
    /// The topic's UUID.
    pub id: TopicId,
    /// Indexed by partition.
    pub partitions: Vec<PartitionMetadata>,
    /// Of each partition, by index; empty where each has one replica, its leader's. The native protocol does not carry them.
    pub replicas: ReplicaLists,
    /// Largest batch that the topic takes, bytes.
    pub max_message_bytes: u32,
}

/// Where a partition is led.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionMetadata {
    /// Advertised id of the leader; `None` while nobody may lead.
    pub leader: Option<u32>,
    /// Its epoch, or the last leader's.
    pub leader_epoch: LeaderEpoch,
}

/// Where the replicas of partitions are, as advertised ids. One list for all: an answer can be of a million partitions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReplicaLists {
    brokers: Vec<u32>,
    /// Of each partition: where its replicas end in `brokers`, then those in sync, then those of nodes that are away.
    ends: Vec<[u32; 3]>,
}

/// The replicas of one partition, as advertised ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replicas<'a> {
    /// All, the preferred leader first.
    pub all: &'a [u32],
    /// Those in sync.
    pub in_sync: &'a [u32],
    /// Those of nodes that are away.
    pub offline: &'a [u32],
}

impl ReplicaLists {
    /// Adds those of the next partition: all, those in sync, those of nodes that are away.
    pub fn push(&mut self, all: impl Iterator<Item = u32>, in_sync: impl Iterator<Item = u32>, offline: impl Iterator<Item = u32>) {
        self.brokers.extend(all);
        let all = self.brokers.len() as u32;
        self.brokers.extend(in_sync);
        let in_sync = self.brokers.len() as u32;
        self.brokers.extend(offline);
        self.ends.push([all, in_sync, self.brokers.len() as u32]);
    }

    /// Those of a partition; `None` where they are not told.
    pub fn get(&self, partition: usize) -> Option<Replicas<'_>> {
        let [all, in_sync, offline] = self.ends.get(partition)?.map(|end| end as usize);
        let start = partition.checked_sub(1).map_or(0, |before| self.ends[before][2] as usize);
        Some(Replicas { all: &self.brokers[start..all], in_sync: &self.brokers[all..in_sync], offline: &self.brokers[in_sync..offline] })
    }

    /// Ids in all lists.
    pub fn ids(&self) -> usize {
        self.brokers.len()
    }
}

/// A topic with its settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicDescription {
    /// Name.
    pub name: String,
    /// UUID.
    pub id: TopicId,
    /// Number of partitions.
    pub partitions: u32,
    /// Replicas of each.
    pub replication_factor: u16,
    /// Durability in force.
    pub durability: Durability,
    /// All settings: name, value in force, whether it is set on the topic.
    pub config: Vec<ConfigEntry>,
}

/// One setting in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigEntry {
    /// Kafka's name of it.
    pub name: String,
    /// Value in force.
    pub value: String,
    /// False where it is the default.
    pub is_set: bool,
}

/// What became of one batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProduceResult {
    /// Where to.
    pub partition: TopicPartition,
    /// The offsets, or the refusal.
    pub outcome: Result<Appended, Refusal>,
}

/// An acknowledged batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Offset of its first record.
    pub base_offset: Offset,
    /// The broker's timestamp where the topic uses LogAppendTime, else -1.
    pub log_append_time: Timestamp,
    /// First readable offset of the partition.
    pub log_start: Offset,
}

/// What was read of one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchResult {
    /// Which.
    pub partition: TopicPartition,
    /// Log bounds and bytes, or the refusal.
    pub outcome: Result<Fetched, Refusal>,
}

/// Bounds of the log, and how much of the payload is this partition's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// One past the last committed offset.
    pub high_watermark: Offset,
    /// First readable offset.
    pub log_start: Offset,
    /// Bytes of whole batches in the payload.
    pub bytes: u32,
    /// Advertised id of the broker that is to be asked from now on, in the place of records.
    pub preferred: Option<u32>,
}

/// The answer to one [`ListOffset`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListOffsetResult {
    /// Which partition.
    pub partition: TopicPartition,
    /// The offset, or the refusal.
    pub outcome: Result<FoundOffset, Refusal>,
}

/// An offset that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundOffset {
    /// -1 where no record is at or after a timestamp.
    pub offset: Offset,
    /// -1 where none applies.
    pub timestamp: Timestamp,
    /// The leader epoch in which it was or would be written; `None` where it is not known.
    pub leader_epoch: Option<LeaderEpoch>,
}

impl FoundOffset {
    /// There is none.
    pub const NONE: FoundOffset = FoundOffset { offset: -1, timestamp: -1, leader_epoch: None };
}

/// The answer to one [`DeleteRecords`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeleteRecordsResult {
    /// Which partition.
    pub partition: TopicPartition,
    /// First readable offset from now on, or the refusal.
    pub outcome: Result<Offset, Refusal>,
}

/// The answer to one [`EpochQuestion`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EpochEndResult {
    /// Which partition.
    pub partition: TopicPartition,
    /// The largest epoch up to the one asked for that has records, and one past its last; `None` where the partition never was in that epoch.
    pub outcome: Result<Option<EpochEnd>, Refusal>,
}

/// Where a leader epoch ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochEnd {
    /// The epoch.
    pub epoch: LeaderEpoch,
    /// One past its last record: the first offset of the next epoch, or the log's end.
    pub end_offset: Offset,
}

/// Why something was refused: a code for programs, and words that say what was expected and what came.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message} ({code:?})")]
pub struct Refusal {
    /// What kind.
    pub code: Code,
    /// What was expected and what came.
    pub message: String,
}

impl Refusal {
    /// A refusal with its words.
    pub fn new(code: Code, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $retry:literal;)*) => {
        /// The kind of a refusal. Values are the Kafka protocol's error codes where it has one, 1000 and more where it has none.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(i16)]
        pub enum Code { $($(#[$doc])* $name = $value,)* }

        impl Code {
            /// All codes, in the order of this list.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The code of a value, if there is one.
            pub fn from_value(value: i16) -> Option<Code> {
                match value { $($value => Some(Code::$name),)* _ => None }
            }

            /// The value on the wire.
            pub fn value(self) -> i16 { self as i16 }

            /// Whether the same request may succeed later, unchanged.
            pub fn is_retriable(self) -> bool {
                match self { $(Code::$name => $retry,)* }
            }
        }
    };
}

codes! {
    /// A failure of the broker's own.
    Internal = -1, false;
    /// The offset is outside the log.
    OffsetOutOfRange = 1, false;
    /// The batch does not check.
    CorruptBatch = 2, false;
    /// No such topic or partition.
    UnknownTopicOrPartition = 3, true;
    /// This broker does not lead the partition.
    NotLeader = 6, true;
    /// The wait for replicas was over first. The batch may have been appended.
    RequestTimedOut = 7, true;
    /// The batch is larger than the topic allows.
    RecordTooLarge = 10, false;
    /// The name is not one.
    InvalidTopicName = 17, false;
    /// Fewer in-sync replicas than `min.insync.replicas`.
    NotEnoughReplicas = 19, true;
    /// The principal may not do that.
    NotAuthorized = 29, false;
    /// The version of the request is not served.
    UnsupportedVersion = 35, false;
    /// A topic of that name exists.
    TopicExists = 36, false;
    /// The number of partitions can't be.
    InvalidPartitions = 37, false;
    /// The replication factor can't be.
    InvalidReplicationFactor = 38, false;
    /// The replicas of a partition can't be these.
    InvalidReplicaAssignment = 39, false;
    /// A setting does not exist or has an impossible value.
    InvalidConfig = 40, false;
    /// The request contradicts itself.
    InvalidRequest = 42, false;
    /// It is against a rule that the topic was given.
    PolicyViolation = 44, false;
    /// The sequence is not the one that follows.
    OutOfOrderSequence = 45, false;
    /// Another producer has the id in a newer epoch.
    InvalidProducerEpoch = 47, false;
    /// A failure of the disk.
    Storage = 56, true;
    /// Nothing is known of the producer id here.
    UnknownProducerId = 59, false;
    /// The client's leader epoch is older than the broker's.
    FencedLeaderEpoch = 74, true;
    /// The client's leader epoch is newer than the broker's.
    UnknownLeaderEpoch = 75, true;
    /// The codec is not one.
    UnsupportedCompression = 76, false;
    /// The node was registered anew since, or is fenced.
    StaleBrokerEpoch = 77, false;
    /// A new leader does not know yet where its predecessor's committed records end.
    OffsetNotAvailable = 78, true;
    /// The preferred leader is not in sync, or not there.
    PreferredLeaderNotAvailable = 80, true;
    /// Nobody who may lead is there.
    EligibleLeadersNotAvailable = 83, true;
    /// The one that is to lead does.
    ElectionNotNeeded = 84, true;
    /// The record is not allowed here.
    InvalidRecord = 87, false;
    /// It was proposed on older knowledge of the partition.
    InvalidUpdateVersion = 95, false;
    /// The node's id is that of another life, which is not fenced.
    DuplicateBrokerRegistration = 101, false;
    /// No such node.
    BrokerIdNotRegistered = 102, false;
    /// The node is of another cluster.
    InconsistentClusterId = 104, false;
    /// The replica is not the one that may join.
    IneligibleReplica = 107, false;
    /// The disk is full: reads, deletes and replication go on.
    DiskFull = 1000, true;
    /// The partition is quarantined: its files do not check.
    Quarantined = 1001, false;
    /// The broker is stopping or recovering.
    Unavailable = 1002, true;
    /// A bound of the broker is reached.
    LimitReached = 1003, true;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_those_of_their_partition() {
        let mut lists = ReplicaLists::default();
        assert_eq!((lists.get(0), lists.ids()), (None, 0));
        lists.push([1, 2, 3].into_iter(), [1, 3].into_iter(), [2].into_iter());
        lists.push([9].into_iter(), [].into_iter(), [].into_iter());
        lists.push([4, 5].into_iter(), [5, 4].into_iter(), [].into_iter());
        assert_eq!(lists.get(0), Some(Replicas { all: &[1, 2, 3], in_sync: &[1, 3], offline: &[2] }));
        assert_eq!(lists.get(1), Some(Replicas { all: &[9], in_sync: &[], offline: &[] }));
        assert_eq!(lists.get(2), Some(Replicas { all: &[4, 5], in_sync: &[5, 4], offline: &[] }));
        assert_eq!((lists.get(3), lists.ids()), (None, 11));
    }

    #[test]
    fn code_values_round_trip() {
        for code in Code::ALL {
            assert_eq!(Code::from_value(code.value()), Some(*code));
        }
        assert_eq!(Code::from_value(0), None);
    }
}
