//! Plans that make a cluster even again: after a node came, or so that one can go.
//!
//! A plan is a list of [`Command::Reassign`] in the order in which they are to be made, a few at a time, since each ships data. Every step follows from the state
//! alone, with reassignments under way counted as done: so who is interrupted plans again and goes on where the first plan would have gone on. (Only a chain of
//! leaderships that is cut in its middle may be completed in another way, to the same evenness.)
//!
//! 1. Nodes that retire give away all replicas, each to the emptiest node that keeps the racks spread.
//! 2. While two nodes differ by more than one replica, one moves from the fullest to the emptiest: no replica moves twice, none more than needed.
//! 3. Leaderships: the order of replicas changes, no data moves. First shards are made even, then nodes as far as shards stay so. (What a shard can lead follows from
//!    the topics' ids: shard 0 of one node is even with shard 0 of another.)
//!
//! When all is done, [`Command::BalanceLeaders`] makes the preferred leaders lead.

use std::collections::{BTreeMap, BTreeSet};

use super::command::Command;
use super::leader_balance::LeaderBalance;
use super::node::{Node, NodeState};
use super::placement::racks;
use super::view::{CatalogueView, goal};
use crate::replication::NodeId;
use crate::request::{Code, Refusal};
use crate::types::TopicPartition;

/// A plan after which all nodes are even, and those that retire hold nothing.
///
/// # Errors
/// A retiring node's replicas can't all go anywhere.
pub fn plan_rebalance(view: &CatalogueView) -> Result<Plan, Refusal> {
    let mut planner = Planner::new(view, |node| node.retiring);
    planner.empty_retiring()?;
    planner.even_replicas();
    planner.even_leaders();
    Ok(planner.plan)
}

/// A plan after which a node holds nothing. The others are not made more even than that takes.
///
/// # Errors
/// The node is not registered, or its replicas can't all go anywhere.
pub fn plan_decommission(view: &CatalogueView, node: NodeId) -> Result<Plan, Refusal> {
    if view.node(node).is_none() {
        return Err(Refusal::new(Code::BrokerIdNotRegistered, format!("node {node} is not registered")));
    }
    let mut planner = Planner::new(view, |other| other.id() == node || other.retiring);
    planner.empty_retiring()?;
    planner.even_leaders();
    Ok(planner.plan)
}

/// What is to be done, and what can't be yet.
#[derive(Debug, Default)]
pub struct Plan {
    /// In this order.
    pub commands: Vec<Command>,
    /// Replicas of retiring nodes that can go nowhere but to nodes that are away.
    pub put_off: u32,
    /// Those nodes.
    pub waits_for: BTreeSet<NodeId>,
}

/// A node by its number in the planner.
type At = usize;

#[derive(Debug)]
struct PlannedNode {
    id: NodeId,
    rack: usize,
    retires: bool,
    /// It takes replicas and leaderships: it is there, and stays.
    takes: bool,
    /// Partitions of which it has, or is to have, a replica.
    on: BTreeSet<usize>,
    /// The number of its first shard, over all nodes.
    first_shard: usize,
}

#[derive(Debug)]
struct PlannedPartition {
    id: TopicPartition,
    /// The preferred leader first.
    goal: Vec<At>,
}

struct Planner<'a> {
    view: &'a CatalogueView,
    nodes: Vec<PlannedNode>,
    /// In an order that has nothing to do with topics, so that none moves as a whole.
    partitions: Vec<PlannedPartition>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(view: &'a CatalogueView, retires: impl Fn(&Node) -> bool) -> Planner<'a> {
        let mut first_shard = 0;
        let mut nodes: Vec<PlannedNode> = Vec::new();
        for (node, rack) in view.nodes().zip(racks(view.nodes().map(AsRef::as_ref))) {
            let retires = retires(node);
            let takes = node.state == NodeState::Live && !retires;
            nodes.push(PlannedNode { id: node.id(), rack, retires, takes, on: BTreeSet::new(), first_shard });
            first_shard += node.registration.shards as usize;
        }
        let number = |id: NodeId| nodes.binary_search_by_key(&id, |node| node.id).expect("replicas are on registered nodes");
        let planned = |(id, record)| PlannedPartition { id, goal: goal(record).into_iter().map(number).collect() };
        let mut partitions: Vec<_> =
            view.all_partitions().map(|(id, record): (TopicPartition, &std::sync::Arc<_>)| planned((id, record.as_ref()))).collect();
        partitions.sort_by_key(|partition| (mixed(&partition.id), partition.id));
        for (at, partition) in partitions.iter().enumerate() {
            for node in &partition.goal {
                nodes[*node].on.insert(at);
            }
        }
        Planner { view, nodes, partitions, plan: Plan::default() }
    }

    fn emit(&mut self, at: usize) {
        let PlannedPartition { id, goal } = &self.partitions[at];
        let target = goal.iter().map(|node| self.nodes[*node].id).collect();
        self.plan.commands.push(Command::Reassign { partition: *id, target });
    }

    /// A replica goes from one node to another, and to the end of the list: the new one has nothing yet, another is to lead where there is one.
    fn move_replica(&mut self, at: usize, from: At, to: At) {
        let goal = &mut self.partitions[at].goal;
        goal.retain(|node| *node != from);
        goal.push(to);
        self.nodes[from].on.remove(&at);
        self.nodes[to].on.insert(at);
        self.emit(at);
    }

    /// Other replicas than the one on `from` in a rack.
    fn in_rack(&self, at: usize, rack: usize, from: At) -> usize {
        self.partitions[at].goal.iter().filter(|node| **node != from && self.nodes[**node].rack == rack).count()
    }

    /// Nodes that could take a replica of a partition.
    fn free(&self, at: usize) -> impl Iterator<Item = At> {
        (0..self.nodes.len()).filter(move |to| self.nodes[*to].takes && !self.partitions[at].goal.contains(to))
    }

    fn empty_retiring(&mut self) -> Result<(), Refusal> {
        for from in (0..self.nodes.len()).filter(|from| self.nodes[*from].retires).collect::<Vec<_>>() {
            // Those first that can go to few nodes: the others then fill up what is left.
            let mut all: Vec<_> = self.nodes[from].on.iter().copied().collect();
            all.sort_by_key(|at| (self.free(*at).count(), *at));
            for at in all {
                let rack = |to: At| self.in_rack(at, self.nodes[to].rack, from);
                let found = self.free(at).min_by_key(|to| (rack(*to), self.nodes[*to].on.len(), *to));
                let Some(to) = found else {
                    let away = |to: &At| !self.nodes[*to].retires && !self.nodes[*to].takes && !self.partitions[at].goal.contains(to);
                    let away: Vec<_> = (0..self.nodes.len()).filter(away).map(|to| self.nodes[to].id).collect();
                    if !away.is_empty() {
                        self.plan.put_off += 1;
                        self.plan.waits_for.extend(away);
                        continue;
                    }
                    let PlannedPartition { id, goal } = &self.partitions[at];
                    let message = format!(
                        "partition {id} has {} replicas and there is no other node that takes the one of node {}: add a node or lower its replication factor",
                        goal.len(),
                        self.nodes[from].id
                    );
                    return Err(Refusal::new(Code::InvalidReplicationFactor, message));
                };
                self.move_replica(at, from, to);
            }
        }
        Ok(())
    }

    fn even_replicas(&mut self) {
        // Of each pair of nodes, no partition before this one can move: what can't once can't later, unless the partition itself changed.
        let mut cursors: BTreeMap<(At, At), usize> = BTreeMap::new();
        while let Some((at, from, to)) = self.next_move(&mut cursors) {
            self.move_replica(at, from, to);
            for ((from, to), cursor) in &mut cursors {
                if *cursor > at && self.may_move(at, *from, *to) {
                    *cursor = at;
                }
            }
        }
    }

    /// The first partition that can go from the fullest node to the emptiest, or to the next.
    fn next_move(&self, cursors: &mut BTreeMap<(At, At), usize>) -> Option<(usize, At, At)> {
        let mut nodes: Vec<At> = (0..self.nodes.len()).filter(|node| self.nodes[*node].takes).collect();
        nodes.sort_by_key(|node| (self.nodes[*node].on.len(), *node));
        for from in nodes.iter().rev() {
            for to in &nodes {
                if self.nodes[*from].on.len() < self.nodes[*to].on.len() + 2 {
                    break;
                }
                let cursor = cursors.entry((*from, *to)).or_default();
                let found = self.nodes[*from].on.range(*cursor..).copied().find(|at| self.may_move(*at, *from, *to));
                *cursor = found.unwrap_or(self.partitions.len());
                if let Some(at) = found {
                    return Some((at, *from, *to));
                }
            }
        }
        None
    }

    fn may_move(&self, at: usize, from: At, to: At) -> bool {
        let goal = &self.partitions[at].goal;
        goal.contains(&from)
            && !goal.contains(&to)
            && self.in_rack(at, self.nodes[to].rack, from) <= self.in_rack(at, self.nodes[from].rack, from)
    }

    fn even_leaders(&mut self) {
        let shards = |node: &PlannedNode| self.view.node(node.id).map_or(0, |node| node.registration.shards as usize);
        let mut leaders = LeaderBalance::new(self.nodes.iter().map(shards));
        (0..self.partitions.len()).for_each(|at| leaders.put(at, self.places(at)));
        while let Some(path) = leaders.improvement() {
            // From its end, so that no partition moves twice.
            for hop in path.windows(2).rev() {
                let at = leaders.take(hop[0], hop[1]);
                let node = leaders.node_of(hop[1]);
                let goal = &mut self.partitions[at].goal;
                let place = goal.iter().position(|other| *other == node).expect("it has a replica there");
                goal[..=place].rotate_right(1);
                leaders.put(at, self.places(at));
                self.emit(at);
            }
        }
    }

    /// The shards, over all nodes, that can lead a partition: the one that is to lead first. None where that one takes no part.
    fn places(&self, at: usize) -> Vec<usize> {
        let PlannedPartition { id, goal } = &self.partitions[at];
        if !self.nodes[goal[0]].takes {
            return Vec::new();
        }
        let shard = |node: &At| {
            let PlannedNode { id: node, first_shard, .. } = &self.nodes[*node];
            first_shard + self.view.shard_on(*node, id).expect("replicas are on registered nodes") as usize
        };
        goal.iter().filter(|node| self.nodes[**node].takes).map(shard).collect()
    }
}

/// The id's bits, mixed (splitmix64).
fn mixed(partition: &TopicPartition) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&partition.topic.0[..8]);
    let mut bits = u64::from_le_bytes(first).wrapping_add(u64::from(partition.partition).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
