//! Operating a cluster: how it is, where replicas are to be, who is to lead.
//!
//! Nodes are given by their ids, replicas in the order of preference: the first one is to lead. What takes long is asked for step by step, and each step follows from
//! the cluster's metadata alone; so whoever asks may be interrupted, and goes on where it was.

use super::Refusal;
use crate::types::{LeaderEpoch, Offset, TopicPartition};

/// What an administrator asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClusterRequest {
    /// How the cluster is.
    Status(StatusQuestion),
    /// Partitions of a topic are to have their replicas there.
    Reassign(Reassign),
    /// Somebody is to lead a partition.
    Elect(ElectLeader),
    /// One step towards an even cluster, or one in which a node has no replicas.
    Rebalance(Rebalance),
    /// A node is to get no replicas any more, or may get some again.
    Retire {
        /// Which.
        node: u32,
        /// Whether it is to go.
        retiring: bool,
    },
    /// A node that has no replicas and has stopped is no member any more.
    Remove {
        /// Which.
        node: u32,
    },
    /// What the node that is asked has of partitions.
    Logs(Vec<LogQuestion>),
    /// How sealed segments are on the disk of the node that is asked.
    Checks(CheckSegments),
}

/// What an administrator is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClusterAnswer {
    /// To [`ClusterRequest::Status`].
    Status(Box<ClusterStatus>),
    /// To [`ClusterRequest::Reassign`]: each partition, in the order of the request.
    Reassigned(Vec<(u32, Result<(), Refusal>)>),
    /// To [`ClusterRequest::Elect`].
    Elected {
        /// Who leads.
        leader: u32,
        /// In which epoch.
        leader_epoch: LeaderEpoch,
    },
    /// To [`ClusterRequest::Rebalance`].
    Rebalanced(RebalanceStep),
    /// To [`ClusterRequest::Retire`].
    Retired,
    /// To [`ClusterRequest::Remove`].
    Removed,
    /// To [`ClusterRequest::Logs`], in the order of the request.
    Logs(Vec<ReplicaLogResult>),
    /// To [`ClusterRequest::Checks`], in the order of the request.
    Checks(Vec<SegmentChecksResult>),
}

/// Which partitions a status names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StatusQuestion {
    /// Of this topic only; `None`: of all.
    pub topic: Option<String>,
    /// Those too that nothing is wrong with.
    pub all_partitions: bool,
    /// So many of them are left out: the pages before. The order is that of topics' names.
    pub skip: u32,
    /// At most so many; the broker has a bound of its own.
    pub most: u32,
}

/// Where replicas are to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reassign {
    /// Of which topic.
    pub topic: String,
    /// Partitions and the nodes of each.
    pub partitions: Vec<(u32, Vec<u32>)>,
}

/// Who is to lead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ElectLeader {
    /// Of which topic.
    pub topic: String,
    /// Of which partition.
    pub partition: u32,
    /// Who.
    pub candidate: Candidate,
}

/// The one that is to lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Candidate {
    /// The first replica.
    Preferred,
    /// This one, which is in sync.
    InSync(u32),
    /// This one, which may lack what was acknowledged; only where nobody leads and nobody else may.
    Unclean(u32),
}

/// A step of a rebalance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rebalance {
    /// This node is to have no replicas, and gets none any more; `None`: all are to have alike.
    pub empty: Option<u32>,
    /// Partitions whose replicas move at the same time, at most.
    pub most_moving: u32,
    /// Say what would be done, do nothing.
    pub dry_run: bool,
}

/// One partition of which a node's log is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogQuestion {
    /// Which.
    pub partition: TopicPartition,
}

/// Which partitions' sealed segments are asked about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckSegments {
    /// None: those of which the node knows a damaged segment.
    pub partitions: Vec<TopicPartition>,
    /// All of them are to be read now. That takes longer than an answer may: whoever asks comes back for what was found.
    pub read: bool,
}

/// How a cluster is, as one of its nodes knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterStatus {
    /// UUID of the cluster.
    pub cluster: [u8; 16],
    /// The node that tells it.
    pub node: u32,
    /// Counts changes of the metadata, as far as that node knows them.
    pub version: u64,
    /// The consensus.
    pub consensus: ConsensusState,
    /// All nodes, by id.
    pub nodes: Vec<NodeStatus>,
    /// Over all partitions.
    pub counts: ClusterCounts,
    /// The partitions that were asked for.
    pub partitions: Vec<PartitionState>,
    /// Those that come after the last one that is named.
    pub left: u32,
}

/// The consensus as a node sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConsensusState {
    /// The node that leads it; `None` where none is known.
    pub leader: Option<u32>,
    /// Counts elections.
    pub term: u64,
    /// The last entry that is applied on the node that tells it; `None` where there is none.
    pub applied: Option<u64>,
    /// Its members.
    pub members: Vec<ConsensusMember>,
    /// Why it has stopped on the node that tells it.
    pub failure: Option<String>,
}

/// A member of the consensus.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsensusMember {
    /// The node.
    pub node: u32,
    /// Where its consensus port is; empty of a node that is alone.
    pub address: String,
    /// Whether it votes.
    pub votes: bool,
}

/// Whether a node is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeCondition {
    /// It is, and does everything.
    Live,
    /// It is, and about to stop.
    Draining,
    /// It is away.
    Fenced,
}

/// Host and port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostPort {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A node and what it has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeStatus {
    /// Its id.
    pub node: u32,
    /// Whether it is there.
    pub condition: NodeCondition,
    /// It is to have no replicas.
    pub retiring: bool,
    /// Which registration this is, of all there were in the cluster.
    pub node_epoch: u64,
    /// UUID of this life of the node.
    pub incarnation: [u8; 16],
    /// Number of its shards.
    pub shards: u32,
    /// Rack, or whatever fails as one.
    pub rack: Option<String>,
    /// Version of its software.
    pub software: String,
    /// Where consensus listens; `None` of a node that is alone.
    pub cluster_address: Option<HostPort>,
    /// Where clients find its advertised shards.
    pub clients: Vec<HostPort>,
    /// Partitions that it leads, by shard.
    pub leads: Vec<u32>,
    /// Partitions that it leads once each preferred leader does.
    pub preferred: u32,
    /// Partitions of which it has a replica.
    pub replicas: u32,
    /// Those of them with which it is not in sync.
    pub behind: u32,
}

/// Partitions, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClusterCounts {
    /// Topics.
    pub topics: u32,
    /// Partitions of all topics.
    pub partitions: u32,
    /// Nobody leads them.
    pub offline: u32,
    /// They are led, and fewer are in sync than `min.insync.replicas`.
    pub below_min_insync: u32,
    /// Fewer are in sync than there are to be.
    pub under_replicated: u32,
    /// Their replicas move.
    pub moving: u32,
    /// The preferred leader could lead them and does not.
    pub led_elsewhere: u32,
}

/// A partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionState {
    /// Its topic's name.
    pub topic: String,
    /// Its number.
    pub partition: u32,
    /// Who leads it.
    pub leader: Option<u32>,
    /// In which epoch.
    pub leader_epoch: LeaderEpoch,
    /// Where its replicas are.
    pub replicas: Vec<u32>,
    /// Those in sync.
    pub isr: Vec<u32>,
    /// Those that may lead besides.
    pub eligible: Vec<u32>,
    /// Where they are to be; `None` where nothing moves.
    pub target: Option<Vec<u32>>,
    /// Its topic's `min.insync.replicas`.
    pub min_insync: u16,
}

impl PartitionState {
    /// Nobody leads it.
    pub fn is_offline(&self) -> bool {
        self.leader.is_none()
    }

    /// It is led, and takes nothing with `acks=all`.
    pub fn is_below_min_insync(&self) -> bool {
        self.leader.is_some() && self.isr.len() < usize::from(self.min_insync)
    }

    /// Fewer are in sync than there are to be.
    pub fn is_under_replicated(&self) -> bool {
        self.isr.len() < self.target.as_ref().unwrap_or(&self.replicas).len()
    }
}

/// A move of a partition's replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlannedMove {
    /// Its topic's name.
    pub topic: String,
    /// Its number.
    pub partition: u32,
    /// Where its replicas are, or are already on their way to.
    pub from: Vec<u32>,
    /// Where they are to be.
    pub to: Vec<u32>,
}

/// What a step of a rebalance did, and what is left.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RebalanceStep {
    /// Moves that were begun.
    pub begun: Vec<PlannedMove>,
    /// Those that come later; not all of them where there are many.
    pub planned: Vec<PlannedMove>,
    /// Later ones that are not named.
    pub unnamed: u32,
    /// Partitions whose replicas move now, those that were begun among them.
    pub moving: u32,
    /// Nodes that are away, and that moving partitions wait for.
    pub waits_for: Vec<u32>,
    /// Moving partitions that nobody leads: nobody can ship them.
    pub without_leader: u32,
    /// Partitions that the preferred leader could lead and does not.
    pub led_elsewhere: u32,
    /// Why moves that were to begin did not: the first reason.
    pub refusal: Option<Refusal>,
}

impl RebalanceStep {
    /// Nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.begun.is_empty() && self.planned.is_empty() && self.unnamed == 0 && self.moving == 0 && self.led_elsewhere == 0
    }
}

/// What a node has of a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaLogResult {
    /// Which partition.
    pub partition: TopicPartition,
    /// Its log, or the refusal.
    pub outcome: Result<ReplicaLog, Refusal>,
}

/// A replica's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaLog {
    /// First readable offset.
    pub log_start: Offset,
    /// One past the last offset.
    pub log_end: Offset,
    /// One past the last committed offset, as far as this replica knows.
    pub high_watermark: Offset,
    /// The present epoch, as far as this replica knows.
    pub leader_epoch: LeaderEpoch,
    /// The epoch of its last record; `None` of a log without records.
    pub last_epoch: Option<LeaderEpoch>,
    /// Its segments, in order.
    pub segments: Vec<SegmentHash>,
}

/// A segment, and the hash of the log up to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHash {
    /// Its name.
    pub base_offset: Offset,
    /// One past its last offset.
    pub end_offset: Offset,
    /// Over the heads of all batches from the log's beginning to this segment's end.
    pub running_hash: u64,
    /// Of its batches.
    pub bytes: u64,
    /// Counts its rewrites by the cleaner.
    pub generation: u32,
    /// No more batches come.
    pub sealed: bool,
}

/// How the sealed segments of a replica are on its node's disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentChecksResult {
    /// Which partition.
    pub partition: TopicPartition,
    /// Its segments, or the refusal.
    pub outcome: Result<SegmentChecks, Refusal>,
}

/// What is known of the sealed segments of a replica.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SegmentChecks {
    /// Those that are still to be read at somebody's wish.
    pub waiting: u32,
    /// Those that were read since the node started, and are as they were written.
    pub sound: u32,
    /// Those that are not, in order; the first ones where there are many.
    pub damaged: Vec<DamagedSegment>,
    /// Those that were found damaged since somebody had them read last, and that another replica's took the place of.
    pub mended: Vec<DamagedSegment>,
}

/// A segment that is not as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamagedSegment {
    /// Its name.
    pub base_offset: Offset,
    /// The file, where in it, and what is wrong.
    pub what: String,
}
