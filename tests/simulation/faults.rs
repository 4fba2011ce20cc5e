//! What goes wrong, and how it gets well again.

use corelane::replication::{Millis, NodeId};

use crate::disk::PartitionId;
use crate::wire::{CLIENTS, Endpoint, METADATA};
use crate::world::{Event, LOAD_MS, World};

/// Faults of a seed, at least.
pub const FAULTS: u64 = 12;

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Any that is possible then.
    Any,
    /// A replica is put out, then all others are down, then an administrator has it lead.
    Unclean(PartitionId),
    UncleanOthersDown(PartitionId, NodeId),
    UncleanElect(PartitionId, NodeId),
}

#[derive(Clone, Copy, Debug)]
pub enum Heal {
    Start(NodeId),
    DiskEmptied(NodeId),
    Retain,
}

impl World {
    pub fn plan_faults(&mut self) {
        let count = FAULTS + self.random.below(6);
        for _ in 0..count {
            let at = self.random.between(1500, LOAD_MS - 2000);
            self.after(at, Event::Fault(Fault::Any));
        }
        if self.setup.unclean {
            let at = self.random.between(5000, LOAD_MS - 12_000);
            let partition = self.random.below(u64::from(self.setup.partitions)) as PartitionId;
            self.after(at, Event::Fault(Fault::Unclean(partition)));
        }
        if self.setup.retains {
            for at in 1..8 {
                self.after(at * 4500, Event::Heal(Heal::Retain));
            }
        }
    }

    pub fn inject(&mut self, fault: Fault) {
        if self.now >= LOAD_MS {
            return;
        }
        match fault {
            Fault::Any => {
                // Not every fault is possible at every time.
                let happens = (0..20).any(|_| self.inject_any());
                self.stats.faults += u64::from(happens);
            }
            Fault::Unclean(partition) => {
                let record = &self.metadata.partitions[&partition].record;
                let Some(victim) = record.isr.iter().copied().find(|node| Some(*node) != record.leader) else { return };
                self.stats.faults += 1;
                self.crash(victim, LOAD_MS);
                self.after(2500, Event::Fault(Fault::UncleanOthersDown(partition, victim)));
            }
            Fault::UncleanOthersDown(partition, victim) => {
                let record = self.metadata.partitions[&partition].record.clone();
                for node in record.isr.iter().chain(&record.eligible).filter(|node| **node != victim) {
                    self.crash(*node, 6000);
                }
                self.heal(Heal::Start(victim));
                self.after(3500, Event::Fault(Fault::UncleanElect(partition, victim)));
            }
            Fault::UncleanElect(partition, victim) => {
                self.metadata.elect_unclean(partition, victim);
                self.metadata_changed();
            }
        }
    }

    fn inject_any(&mut self) -> bool {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let id = self.random.one_of(&ids);
        let partition = self.random.below(u64::from(self.setup.partitions)) as PartitionId;
        let long = self.random.between(200, 4000);
        // Whoever leads is hit more often than by chance.
        let id = match self.metadata.partitions[&partition].record.leader {
            Some(leader) if self.random.per_mille(400) => leader,
            _ => id,
        };
        let is_up = self.nodes[&id].up;
        match self.random.below(17) {
            0 | 1 if is_up => self.crash(id, long),
            2 if is_up => {
                self.stats.pauses += 1;
                let until = self.now + long;
                self.node(id).paused_until = until;
            }
            3 | 4 => {
                let other = if self.random.per_mille(300) { METADATA } else { self.random.one_of(&ids) };
                if other == id {
                    return false;
                }
                self.stats.cuts += 1;
                let both = self.random.per_mille(500);
                self.cut(id, other, long);
                if both {
                    self.cut(other, id, long);
                }
            }
            5 => {
                self.stats.isolations += 1;
                let others = ids.iter().copied().filter(|other| *other != id).chain([METADATA]);
                let others: Vec<Endpoint> =
                    if self.random.per_mille(500) { others.chain(CLIENTS..CLIENTS + 10).collect() } else { others.collect() };
                for other in others {
                    self.cut(id, other, long);
                    self.cut(other, id, long);
                }
            }
            6 | 7 if is_up && self.may_lose(id) => {
                self.stats.wipes += 1;
                let delay = self.random.between(50, 3000);
                self.crash(id, delay);
                self.node(id).wipe();
                let held = self.metadata.partitions.iter().filter(|(_, meta)| meta.record.replica(id).is_some());
                let held: Vec<_> = held.map(|(partition, _)| (id, *partition)).collect();
                self.wiped.extend(held);
            }
            8 if is_up && self.may_lose(id) => return self.rot(id, partition),
            9 if is_up => self.node(id).disk.fails = true,
            10 if is_up => {
                self.stats.full_disks += 1;
                self.node(id).disk.full = true;
                self.after(long, Event::Heal(Heal::DiskEmptied(id)));
            }
            11 if is_up => {
                self.stats.slow_disks += 1;
                let until = self.now + long;
                self.node(id).slow_disk_until = until;
            }
            12 => return self.reassign(partition, &ids),
            13 => {
                let record = self.metadata.partitions[&partition].record.clone();
                let to = self.random.one_of(&record.replicas).node;
                if !record.in_sync(to) || record.leader == Some(to) || record.leader.is_none() {
                    return false;
                }
                self.stats.hand_overs += 1;
                self.metadata.hand_over(partition, to);
                self.metadata_changed();
            }
            14 => {
                let other = self.random.one_of(&ids);
                self.with_node(id, |node, around| node.reconnect(other, around));
            }
            15 if !self.setup.loses_disks => {
                let min_insync = self.random.between(1, 2) as usize;
                self.metadata.set_min_insync(partition, min_insync);
                self.metadata_changed();
            }
            16 if self.random.per_mille(300) => {
                for id in ids {
                    let delay = self.random.between(100, 2500);
                    self.crash(id, delay);
                }
            }
            _ => return false,
        }
        true
    }

    fn node(&mut self, id: NodeId) -> &mut crate::node::Node {
        self.nodes.get_mut(&id).expect("nodes are there from the start")
    }

    fn cut(&mut self, from: Endpoint, to: Endpoint, long: Millis) {
        let until = self.now + long;
        let known = self.cuts.entry((from, to)).or_default();
        *known = until.max(*known);
    }

    pub fn crash(&mut self, id: NodeId, restart_after: Millis) {
        let survives = self.random.per_mille(500);
        let node = self.node(id);
        if !node.up {
            return;
        }
        node.crash(survives);
        node.paused_until = 0;
        self.stats.crashes += 1;
        self.stats.torn_groups += u64::from(!survives);
        self.after(restart_after, Event::Heal(Heal::Start(id)));
    }

    /// Whether a node may lose records without any being lost for good: nothing else is damaged, and each partition of it has another holder of everything.
    fn may_lose(&self, id: NodeId) -> bool {
        if !self.setup.loses_disks {
            return false;
        }
        self.metadata.partitions.iter().all(|(partition, meta)| {
            let others = self.nodes.keys().copied().filter(|other| *other != id);
            let is_sound = |other: NodeId| {
                let rotten = self.nodes[&other].disk.logs.get(partition).is_some_and(|disk| !disk.rotten.is_empty());
                !rotten && !self.is_damaged(*partition, other)
            };
            let mut holders = meta.record.isr.iter().chain(&meta.record.eligible).filter(|holder| **holder != id);
            others.into_iter().all(is_sound) && !self.is_damaged(*partition, id) && holders.next().is_some()
        })
    }

    fn rot(&mut self, id: NodeId, partition: PartitionId) -> bool {
        let count = self.random.between(1, 3);
        let at = self.random.next();
        let Some(disk) = self.node(id).disk.logs.get_mut(&partition).filter(|disk| disk.log.batches.len() > 20) else { return false };
        for step in 0..count {
            let place = (at.wrapping_add(step * 7) % disk.log.batches.len() as u64) as usize;
            disk.rotten.insert(disk.log.batches[place].base);
        }
        self.stats.rotten_batches += count;
        true
    }

    fn reassign(&mut self, partition: PartitionId, ids: &[NodeId]) -> bool {
        if self.metadata.partitions[&partition].record.target.is_some() {
            return false;
        }
        let first = self.random.below(ids.len() as u64) as usize;
        let count = if ids.len() > 3 || self.metadata.partitions[&partition].record.replicas.len() < 3 { 3 } else { 2 };
        let target: Vec<NodeId> = (0..count).map(|at| ids[(first + at) % ids.len()]).collect();
        self.metadata.reassign(partition, &target);
        self.metadata_changed();
        true
    }

    pub fn heal(&mut self, heal: Heal) {
        match heal {
            Heal::Start(id) => {
                let node = self.node(id);
                if !node.up {
                    node.start();
                }
            }
            Heal::DiskEmptied(id) => self.node(id).disk.full = false,
            Heal::Retain if self.now < LOAD_MS => {
                self.stats.retentions += 1;
                for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                    self.with_node(id, |node, around| (0..2).for_each(|partition| node.retain(partition, around)));
                }
            }
            Heal::Retain => {}
        }
    }

    pub fn heal_everything(&mut self) {
        self.cuts.clear();
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            let now = self.now;
            let node = self.node(id);
            (node.disk.fails, node.disk.full, node.slow_disk_until) = (false, false, 0);
            node.paused_until = node.paused_until.min(now);
            self.heal(Heal::Start(id));
        }
    }
}
