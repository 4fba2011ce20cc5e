//! Tests of the state machine.

mod leadership;
mod membership;
mod operation;
mod placement;
mod random;
mod rebalance;
mod topics;

use super::node::tests::registration;
use super::{Applied, Catalogue, Command, Node, Registration};
use crate::replication::{IsrChange, Joiner, NodeId, PartitionRecord};
use crate::request::{Code, Refusal};
use crate::types::{TopicId, TopicPartition};

/// A cluster of these nodes, registered in this order; the id is also the first epoch.
fn cluster(nodes: impl IntoIterator<Item = NodeId>) -> Catalogue {
    let mut catalogue = Catalogue::new();
    for node in nodes {
        catalogue.apply(&register(node)).unwrap();
    }
    catalogue
}

fn register(node: NodeId) -> Command {
    register_with(node, |_| ())
}

fn register_with(node: NodeId, change: impl FnOnce(&mut Registration)) -> Command {
    let mut registration = registration(node);
    change(&mut registration);
    Command::RegisterNode(Box::new(registration))
}

fn topic(id: u8) -> TopicId {
    // All bytes count: placement draws from the last ones.
    TopicId([id; 16])
}

fn at(id: u8, partition: u32) -> TopicPartition {
    TopicPartition { topic: topic(id), partition }
}

fn create(id: u8, partitions: u32, replication_factor: u16, config: &[(&str, &str)]) -> Command {
    let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Command::CreateTopic { id: topic(id), name: format!("t{id}"), partitions, replication_factor, config }
}

/// Puts a topic's replicas in an order that a test can speak of, led by the first.
fn arrange(catalogue: &mut Catalogue, partition: TopicPartition, nodes: &[NodeId]) {
    let _ = catalogue.apply(&Command::Reassign { partition, target: nodes.to_vec() });
    catalogue.apply(&Command::BalanceLeaders { most: u32::MAX }).unwrap();
    let record = record(catalogue, partition);
    assert_eq!((record.leader, record.target), (Some(nodes[0]), None));
}

fn record(catalogue: &Catalogue, partition: TopicPartition) -> PartitionRecord {
    PartitionRecord::clone(catalogue.view().partition(&partition).unwrap())
}

fn sorted(nodes: &[NodeId]) -> Vec<NodeId> {
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable();
    nodes
}

fn epoch(catalogue: &Catalogue, node: NodeId) -> u64 {
    catalogue.view().node(node).unwrap().epoch
}

fn fence(catalogue: &mut Catalogue, node: NodeId) {
    let node_epoch = epoch(catalogue, node);
    catalogue.apply(&Command::FenceNode { node, node_epoch }).unwrap();
}

fn node(catalogue: &Catalogue, node: NodeId) -> &Node {
    catalogue.view().node(node).unwrap()
}

/// The proposal of the present leader, as it should be.
fn proposal(catalogue: &Catalogue, partition: TopicPartition, leave: &[NodeId], join: &[NodeId]) -> Command {
    let record = record(catalogue, partition);
    let joiner = |node: &NodeId| Joiner { replica: record.replica(*node).unwrap(), node_epoch: epoch(catalogue, *node) };
    let change = IsrChange {
        leader: record.leader.unwrap_or(0),
        leader_epoch: record.leader_epoch,
        version: record.version,
        leave: leave.to_vec(),
        join: join.iter().map(joiner).collect(),
    };
    Command::ChangeIsr { partition, change }
}

/// Each command is refused with its code and changes nothing.
fn check_refusals(catalogue: &mut Catalogue, refusals: Vec<(Command, Code)>) {
    let before = catalogue.view().clone();
    for (command, expected) in refusals {
        let refusal: Result<Applied, Refusal> = catalogue.apply(&command);
        assert_eq!(refusal.as_ref().map_err(|refusal| refusal.code), Err(expected), "{command:?}: {refusal:?}");
        assert_eq!(catalogue.view(), &before, "{command:?} changed something");
    }
}
