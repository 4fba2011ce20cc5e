//! Which partitions should be led elsewhere so that shards, and nodes, lead alike.
//!
//! A partition can be led on one shard of each node that has a replica. Shards first: while one leads two more than another that it can give to, directly or along a
//! chain of shards, it gives. Then nodes, by exchanges that leave shards as even as they were. Each step lowers the sum of squares over shards, or keeps it and lowers that
//! over nodes, so there is an end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Who leads how much, and what could lead elsewhere. Shards are numbered over all nodes.
pub(super) struct LeaderBalance {
    node_of: Vec<usize>,
    by_shard: Vec<u64>,
    by_node: Vec<u64>,
    /// Partitions that the first shard leads and the second can.
    movable: BTreeMap<(usize, usize), BTreeSet<usize>>,
    places: BTreeMap<usize, Vec<usize>>,
}

impl LeaderBalance {
    /// Nobody leads anything yet. `shards` is how many each node has.
    pub(super) fn new(shards: impl IntoIterator<Item = usize>) -> LeaderBalance {
        let (mut node_of, mut nodes) = (Vec::new(), 0);
        for shards in shards {
            node_of.resize(node_of.len() + shards, nodes);
            nodes += 1;
        }
        let (by_shard, by_node) = (vec![0; node_of.len()], vec![0; nodes]);
        LeaderBalance { node_of, by_shard, by_node, movable: BTreeMap::new(), places: BTreeMap::new() }
    }

    /// Counts what a shard leads besides what is put here, and keeps.
    pub(super) fn keep(&mut self, shard: usize, leads: u64) {
        self.by_shard[shard] += leads;
        self.by_node[self.node_of[shard]] += leads;
    }

    /// The node of a shard.
    pub(super) fn node_of(&self, shard: usize) -> usize {
        self.node_of[shard]
    }

    /// Counts a partition, led by the first of its places.
    pub(super) fn put(&mut self, at: usize, places: Vec<usize>) {
        let Some(leads) = places.first().copied() else { return };
        self.by_shard[leads] += 1;
        self.by_node[self.node_of[leads]] += 1;
        for other in &places[1..] {
            self.movable.entry((leads, *other)).or_default().insert(at);
        }
        self.places.insert(at, places);
    }

    /// Takes away the first partition that `from` leads and `to` can.
    pub(super) fn take(&mut self, from: usize, to: usize) -> usize {
        let at = *self.movable[&(from, to)].first().expect("a path has partitions");
        for other in &self.places.remove(&at).expect("what can move is counted")[1..] {
            let partitions = self.movable.get_mut(&(from, *other)).expect("it was put there");
            partitions.remove(&at);
            if partitions.is_empty() {
                self.movable.remove(&(from, *other));
            }
        }
        self.by_shard[from] -= 1;
        self.by_node[self.node_of[from]] -= 1;
        at
    }

    /// A chain of shards, along which each gives one leadership to the next, that makes the first and the last more even.
    pub(super) fn improvement(&self) -> Option<Vec<usize>> {
        let mut sources: Vec<usize> = (0..self.by_shard.len()).filter(|shard| self.by_shard[*shard] > 0).collect();
        sources.sort_by_key(|shard| (u64::MAX - self.by_shard[*shard], u64::MAX - self.by_node[self.node_of[*shard]], *shard));
        sources.into_iter().find_map(|from| self.path_from(from))
    }

    fn path_from(&self, from: usize) -> Option<Vec<usize>> {
        let mut came_from: BTreeMap<usize, usize> = BTreeMap::from([(from, from)]);
        let mut waiting = VecDeque::from([from]);
        let mut best: Option<((u64, u64), usize)> = None;
        while let Some(shard) = waiting.pop_front() {
            for (_, next) in self.movable.range((shard, 0)..(shard + 1, 0)).map(|(hop, _)| *hop) {
                if came_from.contains_key(&next) {
                    continue;
                }
                came_from.insert(next, shard);
                waiting.push_back(next);
                let key = (self.by_shard[next], self.by_node[self.node_of[next]]);
                // Strictly nearer, as breadth comes first: among equals the shortest chain.
                if self.improves(from, next) && best.is_none_or(|(present, _)| key < present) {
                    best = Some((key, next));
                }
            }
        }
        let (_, mut shard) = best?;
        let mut path = vec![shard];
        while shard != from {
            shard = came_from[&shard];
            path.push(shard);
        }
        path.reverse();
        Some(path)
    }

    fn improves(&self, from: usize, to: usize) -> bool {
        let (more, less) = (self.by_shard[from], self.by_shard[to]);
        let of_nodes = (self.by_node[self.node_of[from]], self.by_node[self.node_of[to]]);
        more >= less + 2 || (more == less + 1 && of_nodes.0 >= of_nodes.1 + 2)
    }
}
