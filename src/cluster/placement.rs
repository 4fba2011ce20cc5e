//! Where the replicas of new partitions go, and who is to lead them.
//!
//! Deterministic: the same state gives the same places on every node. What would be chance elsewhere is the topic's id, which its proposer drew.
//!
//! The leader first: on the node, and there on the shard, that leads least, first of this topic and then of all (nodes with more shards lead more). So each topic is
//! even by itself and what is left over evens out the whole; a node that is new does not get all of the next topic. Then the followers: nodes that are there before
//! those that are not, racks that have none before others, then those with the least replicas.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

use super::leader_balance::LeaderBalance;
use super::node::{Node, NodeState};
use super::view::{CatalogueView, goal};
use crate::limits;
use crate::replication::NodeId;
use crate::types::{TopicId, TopicPartition};

/// Racks by number. A node that has none is a rack of its own.
pub(super) fn racks<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    let mut own = limits::MAX_NODES;
    nodes
        .map(|node| match &node.registration.rack {
            Some(rack) => {
                let next = numbers.len();
                *numbers.entry(rack.as_str()).or_insert(next)
            }
            None => {
                own += 1;
                own
            }
        })
        .collect()
}

/// What counts of a node.
#[derive(Debug)]
struct Candidate {
    id: NodeId,
    rack: usize,
    /// Nodes that stay come first, those that are not there last.
    rank: u8,
    replicas: u64,
    /// By shard.
    leaders: Vec<u64>,
    topic_replicas: u64,
    topic_leaders: Vec<u64>,
}

/// So many for each shard of a node, so that nodes of different size can be compared.
fn per_shard(leaders: &[u64]) -> u64 {
    leaders.iter().sum::<u64>() * u64::from(limits::MAX_SHARDS) / leaders.len() as u64
}

/// Places partitions of one topic, one after the other.
#[derive(Debug)]
pub struct Placer {
    seed: u64,
    candidates: Vec<Candidate>,
}

impl Placer {
    /// One that goes on from what the topic has. Nodes that retire take nothing.
    pub fn new(view: &CatalogueView, topic: TopicId) -> Placer {
        let nodes = || view.nodes().map(AsRef::as_ref).filter(|node: &&Node| !node.retiring);
        let candidate = |(node, rack): (&Node, usize)| {
            let load = view.load(node.id()).cloned().unwrap_or_default();
            Candidate {
                id: node.id(),
                rack,
                rank: match node.state {
                    NodeState::Live => 0,
                    NodeState::Draining => 1,
                    NodeState::Fenced => 2,
                },
                replicas: load.replicas,
                leaders: load.leaders,
                topic_replicas: 0,
                topic_leaders: vec![0; node.registration.shards as usize],
            }
        };
        let mut seed = [0; 8];
        seed.copy_from_slice(&topic.0[8..]);
        let candidates = nodes().zip(racks(nodes())).map(candidate).collect();
        let mut placer = Placer { seed: u64::from_le_bytes(seed), candidates };
        for (partition, record) in (0..).zip(view.partitions_of_topic(&topic)) {
            for (at, node) in goal(record).into_iter().enumerate() {
                let Some(candidate) = placer.candidates.iter_mut().find(|candidate| candidate.id == node) else { continue };
                candidate.topic_replicas += 1;
                if at == 0 {
                    let shard = view.shard_on(node, &TopicPartition { topic, partition }).expect("candidates are registered");
                    candidate.topic_leaders[shard as usize] += 1;
                }
            }
        }
        placer
    }

    /// Nodes for the replicas of these partitions, the leader first; `None` where there are not so many.
    pub fn place(&mut self, topic: TopicId, partitions: Range<u32>, replicas: usize) -> Option<Vec<Vec<NodeId>>> {
        if replicas == 0 || self.candidates.len() < replicas {
            return None;
        }
        let first = partitions.start;
        let mut placed = Vec::with_capacity(partitions.len());
        for partition in partitions {
            placed.push(self.place_one(&TopicPartition { topic, partition }, replicas)?);
        }
        self.even_leaders(topic, first, &mut placed);
        while self.move_follower(&mut placed).is_some() {}
        let ids = |places: Vec<usize>| places.into_iter().map(|at| self.candidates[at].id).collect();
        Some(placed.into_iter().map(ids).collect())
    }

    /// What one after the other could not foresee: another of the replicas of what was placed leads, where that makes the topic's leaders more even.
    fn even_leaders(&mut self, topic: TopicId, first: u32, placed: &mut [Vec<usize>]) {
        let mut shards = 0;
        let first_shards: Vec<usize> = self
            .candidates
            .iter()
            .map(|candidate| {
                shards += candidate.leaders.len();
                shards - candidate.leaders.len()
            })
            .collect();
        let mut balance = LeaderBalance::new(self.candidates.iter().map(|candidate| candidate.leaders.len()));
        let shard_of = |candidate: &Candidate, at: usize| topic.shard_of(first + at as u32, candidate.leaders.len() as u32) as usize;
        let can_lead = |candidates: &[Candidate], at: usize, places: &[usize]| -> Vec<usize> {
            let places = places.iter().filter(|place| candidates[**place].rank == candidates[places[0]].rank);
            places.map(|place| first_shards[*place] + shard_of(&candidates[*place], at)).collect()
        };
        let mut new = vec![0; shards];
        for (at, places) in placed.iter().enumerate() {
            let can_lead = can_lead(&self.candidates, at, places);
            new[can_lead[0]] += 1;
            balance.put(at, can_lead);
        }
        // The topic's earlier partitions stay where they are.
        let all = self.candidates.iter().flat_map(|candidate| candidate.topic_leaders.iter());
        for (shard, (all, new)) in all.zip(&new).enumerate() {
            balance.keep(shard, all - new);
        }
        while let Some(path) = balance.improvement() {
            for hop in path.windows(2).rev() {
                let at = balance.take(hop[0], hop[1]);
                let (from, to) = (balance.node_of(hop[0]), balance.node_of(hop[1]));
                for (node, change) in [(from, u64::MAX), (to, 1)] {
                    let candidate = &mut self.candidates[node];
                    let shard = shard_of(candidate, at);
                    candidate.leaders[shard] = candidate.leaders[shard].wrapping_add(change);
                    candidate.topic_leaders[shard] = candidate.topic_leaders[shard].wrapping_add(change);
                }
                let place = placed[at].iter().position(|place| *place == to).expect("it has a replica there");
                placed[at].swap(0, place);
                balance.put(at, can_lead(&self.candidates, at, &placed[at]));
            }
        }
    }

    /// The same of replicas: a follower of what was placed goes to another node, where that makes the topic more even, or the whole with the
    /// topic as it is.
    fn move_follower(&mut self, placed: &mut [Vec<usize>]) -> Option<()> {
        let mut order: Vec<usize> = (0..self.candidates.len()).collect();
        order.sort_by_key(|at| (self.candidates[*at].topic_replicas, self.candidates[*at].replicas, *at));
        for from in order.iter().rev().copied() {
            for to in order.iter().copied() {
                let (more, less) = (&self.candidates[from], &self.candidates[to]);
                let of_topic = more.topic_replicas >= less.topic_replicas + 2;
                let of_all = more.topic_replicas == less.topic_replicas + 1 && more.replicas >= less.replicas + 2;
                if more.rank != less.rank || !(of_topic || of_all) {
                    continue;
                }
                let in_rack =
                    |places: &[usize], rack| places.iter().filter(|at| **at != from && self.candidates[**at].rack == rack).count();
                let may_move = |places: &Vec<usize>| {
                    places[1..].contains(&from) && !places.contains(&to) && in_rack(places, less.rack) <= in_rack(places, more.rack)
                };
                let Some(places) = placed.iter_mut().find(|places| may_move(places)) else { continue };
                places.iter_mut().filter(|at| **at == from).for_each(|at| *at = to);
                for (at, change) in [(from, u64::MAX), (to, 1)] {
                    self.candidates[at].replicas = self.candidates[at].replicas.wrapping_add(change);
                    self.candidates[at].topic_replicas = self.candidates[at].topic_replicas.wrapping_add(change);
                }
                return Some(());
            }
        }
        None
    }

    /// Candidates by number, the leader first.
    fn place_one(&mut self, partition: &TopicPartition, replicas: usize) -> Option<Vec<usize>> {
        let nodes = self.candidates.len() as u64;
        let turn = self.seed.wrapping_add(u64::from(partition.partition));
        // Each partition prefers another node, and each round other neighbours.
        let leader_turn = |at: usize| (at as u64 + nodes - turn % nodes) % nodes;
        let shift = turn / nodes;
        let follower_turn = |at: usize| (at as u64 + nodes - turn.wrapping_add(1).wrapping_add(shift) % nodes) % nodes;

        let shard_of = |candidate: &Candidate| partition.topic.shard_of(partition.partition, candidate.leaders.len() as u32) as usize;
        let leader_key = |(at, candidate): &(usize, &Candidate)| {
            let shard = shard_of(candidate);
            let of_nodes = (per_shard(&candidate.topic_leaders), per_shard(&candidate.leaders));
            let of_shards = (candidate.topic_leaders[shard], candidate.leaders[shard]);
            (candidate.rank, of_nodes, of_shards, candidate.topic_replicas, candidate.replicas, leader_turn(*at))
        };
        let (leader, _) = self.candidates.iter().enumerate().min_by_key(leader_key)?;
        let mut chosen = vec![leader];
        while chosen.len() < replicas {
            let follower_key = |(at, candidate): &(usize, &Candidate)| {
                let same_rack = chosen.iter().filter(|other| self.candidates[**other].rack == candidate.rack).count();
                (candidate.rank, same_rack, candidate.topic_replicas, candidate.replicas, follower_turn(*at))
            };
            let (follower, _) = self.candidates.iter().enumerate().filter(|(at, _)| !chosen.contains(at)).min_by_key(follower_key)?;
            chosen.push(follower);
        }
        let shard = shard_of(&self.candidates[leader]);
        self.candidates[leader].leaders[shard] += 1;
        self.candidates[leader].topic_leaders[shard] += 1;
        for at in &chosen {
            self.candidates[*at].replicas += 1;
            self.candidates[*at].topic_replicas += 1;
        }
        Some(chosen)
    }
}

/// The numbers of the fullest and the emptiest; (0, 0) of none.
pub fn extremes(counts: impl IntoIterator<Item = u64>) -> (u64, u64) {
    let (most, least) =
        counts.into_iter().fold((0, Reverse(u64::MAX)), |(most, least), count| (count.max(most), Reverse(count).max(least)));
    (most, least.0.min(most))
}
