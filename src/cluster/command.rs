//! The commands of the catalogue and their encoding (`schemas/catalogue.fbs`).
//!
//! Decoding goes through FlatBuffers' verifier only. A kind that this version does not know is an error, never skipped:
//! a state machine that leaves out a command is another state machine.

use flatbuffers::{FlatBufferBuilder, VerifierOptions};

use super::codec;
use super::generated::corelane::catalogue as fb;
use super::node::{Node, Registration};
use crate::limits;
use crate::replication::{IsrChange, NodeId, PartitionRecord, Replica};
use crate::types::{TopicId, TopicPartition};

/// Who is to lead a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Election {
    /// Its first replica.
    Preferred,
    /// This member of the ISR.
    HandOver(NodeId),
    /// This replica, though it may lack what was acknowledged: by an administrator's word only.
    Unclean(NodeId),
}

/// Neighbouring partitions of a topic as they stood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionsSnapshot {
    /// The topic.
    pub topic: TopicId,
    /// The first partition.
    pub first: u32,
    /// Each one's record, and the shards that do not follow from the topic's id.
    pub partitions: Vec<(PartitionRecord, Vec<(NodeId, u32)>)>,
}

/// A change of the catalogue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// A new topic.
    CreateTopic {
        /// Its identity, chosen by the proposer at random.
        id: TopicId,
        /// Its name.
        name: String,
        /// Number of partitions.
        partitions: u32,
        /// Replicas of each partition, in nodes.
        replication_factor: u16,
        /// Settings as (name, value).
        config: Vec<(String, String)>,
    },
    /// A topic goes.
    DeleteTopic {
        /// Which.
        id: TopicId,
    },
    /// A topic changes.
    AlterTopic {
        /// Which.
        id: TopicId,
        /// The new number of partitions, more than before; `None` leaves it.
        partitions: Option<u32>,
        /// Settings to set, or (`None`) to give back to the default.
        config: Vec<(String, Option<String>)>,
    },
    /// The only node starts: the leader epoch of every partition rises by one. Not written any more, and refused once a node is registered.
    NodeStarted,
    /// A block of producer ids is given out.
    AllocateProducerIds {
        /// How many.
        count: u32,
    },
    /// A node is there, in this life and with these places.
    RegisterNode(Box<Registration>),
    /// A node's lease is over.
    FenceNode {
        /// Which.
        node: NodeId,
        /// Of which registration.
        node_epoch: u64,
    },
    /// A node is about to stop.
    DrainNode {
        /// Which.
        node: NodeId,
        /// Of which registration.
        node_epoch: u64,
    },
    /// A node is to hold no replicas, or may again.
    RetireNode {
        /// Which.
        node: NodeId,
        /// Whether it is to go.
        retiring: bool,
    },
    /// A node without replicas leaves the cluster.
    RemoveNode {
        /// Which.
        node: NodeId,
    },
    /// A leader proposes who is in sync.
    ChangeIsr {
        /// Of which partition.
        partition: TopicPartition,
        /// The proposal.
        change: IsrChange,
    },
    /// A replica lost something that it had acknowledged.
    ReplicaLost {
        /// Of which partition.
        partition: TopicPartition,
        /// Which replica, in which life: a second report of the same loss is refused.
        replica: Replica,
    },
    /// Somebody is to lead.
    ElectLeader {
        /// Which partition.
        partition: TopicPartition,
        /// Who.
        election: Election,
    },
    /// A partition's replicas are to be these.
    Reassign {
        /// Which partition.
        partition: TopicPartition,
        /// On which nodes, the preferred leader first.
        target: Vec<NodeId>,
    },
    /// Leadership goes to the preferred leaders that are in sync.
    BalanceLeaders {
        /// Of so many partitions, at most.
        most: u32,
    },
    /// A partition is another shard's of a node.
    PlaceOnShard {
        /// Which partition.
        partition: TopicPartition,
        /// On which node.
        node: NodeId,
        /// Which shard; `None` is the one that follows from the topic's id.
        shard: Option<u32>,
    },
    /// Of a snapshot: what there is besides topics, nodes and partitions.
    SnapshotCluster {
        /// UUID of the cluster.
        cluster: [u8; 16],
        /// The last node epoch that was given out.
        last_node_epoch: u64,
    },
    /// Of a snapshot: a node as it stood.
    SnapshotNode(Box<Node>),
    /// Of a snapshot: partitions as they stood.
    SnapshotPartitions(PartitionsSnapshot),
    /// Nothing; its presence in the log proves that everything before it was synced.
    DurableMark,
}

/// Bytes that are not a command.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// The FlatBuffer does not verify.
    #[error("the command does not verify: {0}")]
    Invalid(String),
    /// A kind of a newer version.
    #[error("command kind {0} is not known to this version; start a newer one")]
    UnknownKind(u8),
    /// Longer than a command can be.
    #[error("a command has at most {most} bytes, this one has {actual}", most = limits::MAX_COMMAND)]
    TooLong {
        /// Its length, bytes.
        actual: usize,
    },
}

impl Command {
    /// The encoded command; at most [`limits::MAX_COMMAND`] bytes, else an error.
    pub fn encode(&self) -> Result<Vec<u8>, CommandError> {
        let mut builder = FlatBufferBuilder::new();
        let (body_type, body) = codec::build_body(self, &mut builder);
        let command = fb::Command::create(&mut builder, &fb::CommandArgs { body_type, body: Some(body) });
        builder.finish_minimal(command);
        let bytes = builder.finished_data();
        if bytes.len() > limits::MAX_COMMAND {
            return Err(CommandError::TooLong { actual: bytes.len() });
        }
        Ok(bytes.to_vec())
    }

    /// The command of these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Command, CommandError> {
        if bytes.len() > limits::MAX_COMMAND {
            return Err(CommandError::TooLong { actual: bytes.len() });
        }
        // Whatever `encode` lets through must verify: a table takes at least 8 bytes, vtables may be counted again and again.
        let (max_tables, max_apparent_size) = (limits::MAX_COMMAND / 8, 16 * limits::MAX_COMMAND);
        let options = VerifierOptions { max_depth: 8, max_tables, max_apparent_size, ..Default::default() };
        let command = fb::root_as_command_with_opts(&options, bytes).map_err(|e| CommandError::Invalid(e.to_string()))?;
        codec::read_body(&command)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cluster::node::NodeState;
    use crate::cluster::node::tests::registration;
    use crate::replication::Joiner;

    /// The commands of the versions without a cluster: the golden files of formats 1 and 2.
    pub(crate) fn one_of_each_before_clusters() -> Vec<Command> {
        let id = TopicId([7; 16]);
        vec![
            Command::NodeStarted,
            Command::CreateTopic {
                id,
                name: "orders.eu-1_x".into(),
                partitions: 12,
                replication_factor: 1,
                config: vec![("retention.ms".into(), "1000".into()), ("durability".into(), "memory".into())],
            },
            Command::AlterTopic { id, partitions: Some(13), config: vec![("retention.ms".into(), None)] },
            Command::AlterTopic { id, partitions: None, config: vec![("segment.bytes".into(), Some("1048576".into()))] },
            Command::AllocateProducerIds { count: 1000 },
            Command::DeleteTopic { id },
            Command::DurableMark,
        ]
    }

    /// One of each that a log may have, which can be applied in this order; the mark is the last.
    pub(crate) fn one_of_each() -> Vec<Command> {
        let mut commands = one_of_each_before_clusters();
        let mark = commands.pop().unwrap();
        let topic = TopicId([8; 16]);
        let partition = TopicPartition { topic, partition: 1 };
        let of_cluster = |node| Registration { cluster: *b"the-cluster-uuid", ..registration(node) };
        let first = Registration { clients: vec![], cluster_address: None, replication_port: 0, rack: None, ..of_cluster(0) };
        let others = [1, 2].map(|node| Command::RegisterNode(Box::new(of_cluster(node))));
        let change = IsrChange { leader: 0, leader_epoch: 1, version: 4, leave: vec![2], join: vec![] };
        let joiner = Joiner { replica: Replica { node: 2, incarnation: 0 }, node_epoch: 3 };
        let back = IsrChange { version: 5, leave: vec![], join: vec![joiner], ..change.clone() };
        commands.push(Command::RegisterNode(Box::new(first)));
        commands.extend(others);
        commands.extend([
            Command::CreateTopic { id: topic, name: "t".into(), partitions: 2, replication_factor: 3, config: vec![] },
            Command::Reassign { partition, target: vec![0, 2, 1] },
            Command::ElectLeader { partition, election: Election::HandOver(0) },
            Command::FenceNode { node: 1, node_epoch: 2 },
            Command::ChangeIsr { partition, change },
            Command::ChangeIsr { partition, change: back },
            Command::ReplicaLost { partition, replica: Replica { node: 2, incarnation: 0 } },
            Command::BalanceLeaders { most: 10 },
            Command::PlaceOnShard { partition, node: 2, shard: Some(1) },
            Command::PlaceOnShard { partition, node: 2, shard: None },
            Command::PlaceOnShard { partition, node: 0, shard: Some(0) },
            Command::RetireNode { node: 1, retiring: true },
            // Node 1 is not there, so that this one stays under way.
            Command::Reassign { partition: TopicPartition { topic, partition: 0 }, target: vec![2, 1] },
            Command::DrainNode { node: 2, node_epoch: 3 },
            mark,
        ]);
        commands
    }

    /// One of each that a snapshot may have, and what is left.
    fn the_others() -> Vec<Command> {
        let partition = TopicPartition { topic: TopicId([8; 16]), partition: 1 };
        let mut record = PartitionRecord::new(&[1, 2, 3], |_| true);
        let plain = record.clone();
        record.node_away(3, 3, |_| true);
        record.reassign(&[4, 1]).unwrap();
        record.unclean_epoch = Some(0);
        let node = Node { registration: registration(4), epoch: 7, state: NodeState::Draining, retiring: true };
        let partitions = vec![(plain, vec![]), (record, vec![(1, 0), (3, 1)])];
        vec![
            Command::RemoveNode { node: 4 },
            Command::ElectLeader { partition, election: Election::Preferred },
            Command::ElectLeader { partition, election: Election::Unclean(9) },
            Command::SnapshotCluster { cluster: [3; 16], last_node_epoch: u64::MAX },
            Command::SnapshotNode(Box::new(node)),
            Command::SnapshotPartitions(PartitionsSnapshot { topic: partition.topic, first: 100, partitions }),
        ]
    }

    fn all() -> Vec<Command> {
        [one_of_each(), the_others()].concat()
    }

    #[test]
    fn commands_round_trip() {
        for command in all() {
            assert_eq!(Command::decode(&command.encode().unwrap()).unwrap(), command);
        }
    }

    #[test]
    fn every_cut_and_every_flip_gives_an_error_or_a_command_but_no_panic() {
        for command in all() {
            let bytes = command.encode().unwrap();
            for length in 0..bytes.len() {
                let _ = Command::decode(&bytes[..length]);
            }
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let _ = Command::decode(&flipped);
            }
        }
        assert!(Command::decode(&[]).is_err());
    }

    #[test]
    fn a_kind_of_a_newer_version_is_named() {
        let mut builder = FlatBufferBuilder::new();
        let body = fb::NodeStarted::create(&mut builder, &fb::NodeStartedArgs {}).as_union_value();
        let command = fb::Command::create(&mut builder, &fb::CommandArgs { body_type: fb::Body(77), body: Some(body) });
        builder.finish_minimal(command);
        assert_eq!(Command::decode(builder.finished_data()), Err(CommandError::UnknownKind(77)));
    }

    #[test]
    fn the_largest_commands_verify() {
        let config = vec![("s".to_owned(), None); 2000];
        let large = Command::AlterTopic { id: TopicId([1; 16]), partitions: None, config };
        let bytes = large.encode().unwrap();
        assert!(bytes.len() > limits::MAX_COMMAND / 2, "{}", bytes.len());
        assert_eq!(Command::decode(&bytes).unwrap(), large);
    }

    #[test]
    fn a_command_of_endless_length_is_refused() {
        let long = Command::AlterTopic { id: TopicId([1; 16]), partitions: None, config: vec![("x".repeat(limits::MAX_COMMAND), None)] };
        assert!(matches!(long.encode(), Err(CommandError::TooLong { .. })));
    }
}
