//! The simulated cluster: one clock, one queue of events, one source of randomness.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use corelane::replication::{Millis, NodeId};
use corelane::types::{LeaderEpoch, Offset};

use crate::checker::{Event as ClientEvent, Finding, History, Kind, Operation, Phase, check};
use crate::clients::{Client, Surroundings};
use crate::disk::PartitionId;
use crate::faults::{Fault, Heal};
use crate::metadata::Metadata;
use crate::node::{Around, Node};
use crate::oracle::Oracle;
use crate::planted::Planted;
use crate::random::{Random, mix};
use crate::stats::Stats;
use crate::wire::{CLIENTS, Endpoint, METADATA, Payload};

/// Faults and load end here; then everything heals.
pub const LOAD_MS: Millis = 36_000;
/// By then all replicas must have caught up.
const HEALED_BY_MS: Millis = LOAD_MS + 40_000;
const TICK_MS: Millis = 50;
const CLIENT_TICK_MS: Millis = 10;
const VERIFY_MS: Millis = 5000;

/// What a seed decides for the whole run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub nodes: u32,
    pub partitions: u32,
    pub min_insync: usize,
    /// With fewer than two in sync asked for, a lost disk may be a lost record, and no protocol helps.
    pub loses_disks: bool,
    pub unclean: bool,
    pub retains: bool,
    pub loss_per_mille: u64,
    pub doubling_per_mille: u64,
}

pub enum Event {
    Deliver { to: Endpoint, from: Endpoint, payload: Payload },
    Tick(NodeId),
    Synced { node: NodeId, boot: u32 },
    Client(usize),
    Metadata,
    Fault(Fault),
    Heal(Heal),
    Verify,
}

/// What came of a run.
pub struct Outcome {
    pub stats: Stats,
    /// Hash over all events, in order.
    pub trace: u64,
    pub violations: Vec<String>,
    pub history: History,
    pub findings: Vec<Finding>,
}

pub struct World {
    pub now: Millis,
    pub random: Random,
    pub setup: Setup,
    pub nodes: BTreeMap<NodeId, Node>,
    pub metadata: Metadata,
    pub oracle: Oracle,
    pub stats: Stats,
    /// Directed pairs over which nothing goes, and until when.
    pub cuts: BTreeMap<(Endpoint, Endpoint), Millis>,
    pub planted: Planted,
    queue: BinaryHeap<Reverse<(Millis, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    trace: u64,
    clients: Vec<Client>,
    history: History,
    next_value: u64,
    /// What was committed when an epoch began: the leader before may have shown it.
    committed_before: BTreeMap<(PartitionId, LeaderEpoch), Offset>,
    /// Nodes whose disk was lost and that have not joined again: (node, partition).
    pub wiped: Vec<(NodeId, PartitionId)>,
}

impl World {
    pub fn new(seed: u64, planted: Planted) -> World {
        let mut random = Random::new(seed);
        let nodes = random.one_of(&[3, 4, 4, 5]);
        let min_insync = random.one_of(&[1, 2, 2, 2]);
        let unclean = random.per_mille(100);
        let setup = Setup {
            nodes,
            partitions: 2,
            min_insync,
            // An unclean election leaves one copy, and a disk that was damaged before may be the one.
            loses_disks: min_insync == 2 && !unclean,
            unclean,
            retains: random.per_mille(400),
            loss_per_mille: random.below(25),
            doubling_per_mille: random.below(40),
        };
        let mut world = World {
            now: 0,
            random,
            setup,
            nodes: (1..=nodes).map(|id| (id, Node::new(id))).collect(),
            metadata: Metadata::new(planted),
            oracle: Oracle::default(),
            stats: Stats::default(),
            cuts: BTreeMap::new(),
            planted,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            trace: 0,
            clients: Vec::new(),
            history: History::default(),
            next_value: 1,
            committed_before: BTreeMap::new(),
            wiped: Vec::new(),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for partition in 0..self.setup.partitions {
            let first = self.random.below(ids.len() as u64) as usize;
            let replicas: Vec<NodeId> = (0..3).map(|at| ids[(first + at) % ids.len()]).collect();
            self.metadata.create(partition, &replicas, self.setup.min_insync);
        }
        for id in ids {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.start();
            }
            let at = self.random.below(TICK_MS);
            self.after(at, Event::Tick(id));
        }
        let partitions = self.setup.partitions;
        self.clients = (0..5).map(|number| Client::producer(number, partitions)).collect();
        self.clients.extend((5..9).map(|number| Client::consumer(number, partitions, number % partitions)));
        self.clients.push(Client::watcher(9, partitions));
        for at in 0..self.clients.len() {
            self.after(at as Millis, Event::Client(at));
        }
        self.after(10, Event::Metadata);
        self.after(VERIFY_MS, Event::Verify);
        self.plan_faults();
    }

    pub fn after(&mut self, delay: Millis, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + delay, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    /// Until everything has healed, or something is wrong.
    pub fn run(mut self) -> Outcome {
        let mut healed = false;
        while let Some(Reverse((at, sequence))) = self.queue.pop() {
            let Some(event) = self.events.remove(&sequence) else { continue };
            self.now = at;
            if !healed && self.now >= LOAD_MS {
                healed = true;
                self.heal_everything();
            }
            self.handle(sequence, event);
            if !self.oracle.violations.is_empty()
                || (healed && self.now > LOAD_MS + 3000 && self.now.is_multiple_of(100) && self.has_converged())
            {
                break;
            }
            if self.now >= HEALED_BY_MS {
                let mut text = self.why_not_converged();
                for partition in self.metadata.partitions.keys() {
                    self.nodes.values().for_each(|node| text += &format!("\n  partition {partition}, {}", node.describe(*partition)));
                }
                self.oracle.violate(format!("{} s after the last fault: {text}", (HEALED_BY_MS - LOAD_MS) / 1000));
                break;
            }
        }
        self.finish()
    }

    fn handle(&mut self, sequence: u64, event: Event) {
        // A paused process finds everything that came meanwhile when it goes on.
        let (owner, digest) = match &event {
            Event::Deliver { to, from, payload } => (Some(*to), payload.digest() ^ u64::from(*from) << 48),
            Event::Tick(node) => (Some(*node), 1),
            Event::Synced { node, boot } => (Some(*node), 2 ^ u64::from(*boot) << 8),
            Event::Client(at) => (None, 3 ^ (*at as u64) << 8),
            Event::Metadata => (None, 4),
            Event::Fault(_) => (None, 5),
            Event::Heal(_) => (None, 6),
            Event::Verify => (None, 7),
        };
        if let Some(node) = owner.and_then(|owner| self.nodes.get(&owner)).filter(|node| node.up && node.paused_until > self.now) {
            let delay = node.paused_until - self.now;
            return self.after(delay, event);
        }
        self.trace = mix(self.trace ^ mix(self.now ^ sequence << 24) ^ digest ^ u64::from(owner.unwrap_or(0)) << 56);
        match event {
            Event::Deliver { to, from, payload } => self.deliver(to, from, payload),
            Event::Tick(id) => {
                self.after(TICK_MS, Event::Tick(id));
                self.with_node(id, |node, around| node.tick(around));
            }
            Event::Synced { node: id, boot } => self.synced(id, boot),
            Event::Client(at) => {
                self.after(CLIENT_TICK_MS, Event::Client(at));
                self.with_client(at, |client, around| {
                    client.tick(around);
                    None
                });
            }
            Event::Metadata => {
                self.after(50, Event::Metadata);
                self.metadata.tick(self.now);
                self.metadata_changed();
            }
            Event::Fault(fault) => self.inject(fault),
            Event::Heal(heal) => self.heal(heal),
            Event::Verify => {
                self.after(VERIFY_MS, Event::Verify);
                for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                    self.with_node(id, |node, around| node.verify(around));
                }
            }
        }
    }

    /// Something happens at a node that is up; what it sends goes out, its journal goes on, who was answered is checked.
    pub fn with_node(&mut self, id: NodeId, event: impl FnOnce(&mut Node, &mut Around<'_>)) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.up && node.paused_until <= self.now) else { return };
        let mut out = Vec::new();
        let (now, planted) = (self.now, self.planted);
        let mut around = Around { now, out: &mut out, oracle: &mut self.oracle, stats: &mut self.stats, planted };
        event(node, &mut around);
        let starts = node.disk.start_group().then_some((node.boot, node.slow_disk_until > now));
        for (to, payload) in out {
            self.send(id, to, payload);
        }
        if let Some((boot, slow)) = starts {
            let delay = if slow { self.random.between(50, 700) } else { self.random.between(1, 4) };
            self.after(delay, Event::Synced { node: id, boot });
        }
        for (partition, node, epoch) in std::mem::take(&mut self.stats.acknowledgements) {
            self.check_acknowledgement(partition, node, epoch);
        }
    }

    fn with_client(
        &mut self,
        at: usize,
        event: impl FnOnce(&mut Client, &mut Surroundings<'_>) -> Option<(PartitionId, Offset, LeaderEpoch)>,
    ) {
        let mut out = Vec::new();
        let metadata = &self.metadata;
        let mut around = Surroundings {
            now: self.now,
            random: &mut self.random,
            history: &mut self.history,
            out: &mut out,
            nodes: self.setup.nodes,
            leader: &|partition| metadata.partitions.get(&partition)?.record.leader,
            next_value: &mut self.next_value,
            ends: self.now >= LOAD_MS,
        };
        let told = event(&mut self.clients[at], &mut around);
        let id = self.clients[at].id;
        for (to, payload) in out {
            self.send(id, to, payload);
        }
        if let Some((partition, offset, epoch)) = told {
            self.check_latest(partition, offset, epoch);
        }
    }

    fn synced(&mut self, id: NodeId, boot: u32) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.up && node.boot == boot) else { return };
        if node.disk.fails {
            // Nothing of the doubtful group is answered: the process goes down into recovery.
            self.stats.failed_syncs += 1;
            let delay = self.random.between(100, 1500);
            return self.crash(id, delay);
        }
        self.with_node(id, |node, around| node.synced(around));
    }

    pub fn send(&mut self, from: Endpoint, to: Endpoint, payload: Payload) {
        if self.cuts.get(&(from, to)).is_some_and(|until| *until > self.now) {
            return;
        }
        let among_nodes = from < CLIENTS && to < CLIENTS;
        if among_nodes && self.now < LOAD_MS && self.random.per_mille(self.setup.loss_per_mille) {
            self.stats.lost_messages += 1;
            return;
        }
        if among_nodes && self.random.per_mille(self.setup.doubling_per_mille) {
            self.stats.doubled_messages += 1;
            // Now and then very late: what is long over comes again.
            let most = if self.random.per_mille(300) { 6000 } else { 100 };
            let delay = self.random.between(1, most);
            self.after(delay, Event::Deliver { to, from, payload: payload.clone() });
        }
        let delay = if self.random.per_mille(15) { self.random.between(5, 300) } else { self.random.between(1, 4) };
        self.after(delay, Event::Deliver { to, from, payload });
    }

    fn deliver(&mut self, to: Endpoint, from: Endpoint, payload: Payload) {
        if to == METADATA {
            return self.deliver_to_metadata(from, payload);
        }
        if to >= CLIENTS {
            let Payload::Answer { operation, answer } = payload else { return };
            let at = (to - CLIENTS) as usize;
            return self.with_client(at, |client, around| client.handle(operation, answer, around));
        }
        self.with_node(to, |node, around| node.handle(from, payload, around));
    }

    fn deliver_to_metadata(&mut self, from: NodeId, payload: Payload) {
        let now = self.now;
        match payload {
            Payload::Register { registration, disk, sent_at } => {
                if let Some(node_epoch) = self.metadata.register(from, registration, disk, now) {
                    let snapshot = self.metadata.snapshot();
                    self.send(METADATA, from, Payload::Registered { registration, node_epoch, sent_at, snapshot });
                }
            }
            Payload::Heartbeat { node_epoch, sent_at } => {
                let lives = self.metadata.heartbeat(from, node_epoch, now);
                let snapshot = self.metadata.snapshot();
                self.send(METADATA, from, Payload::Beat { node_epoch, lives, sent_at, snapshot });
            }
            Payload::Propose { partition, change } => {
                if let Err(refusal) = self.metadata.propose(partition, &change) {
                    self.send(METADATA, from, Payload::ProposalRefused { partition, version: change.version, refusal });
                }
            }
            Payload::Lost { partition, incarnation } => self.metadata.lost(partition, from, incarnation),
            _ => {}
        }
        self.metadata_changed();
    }

    /// Nodes hear of news; elections and memberships are checked.
    pub fn metadata_changed(&mut self) {
        if self.metadata.take_news() {
            let snapshot = self.metadata.snapshot();
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.send(METADATA, id, Payload::Update { snapshot: snapshot.clone() });
            }
        }
        for change in std::mem::take(&mut self.metadata.changes) {
            self.stats.reassignments += u64::from(change.is_reassigned);
            let (before, after) = (&change.before, &change.after);
            self.stats.shrinks += before.isr.iter().filter(|node| !after.in_sync(**node)).count() as u64;
            for joined in after.isr.iter().filter(|node| !before.in_sync(**node)) {
                self.stats.joins += 1;
                if let Some(at) = self.wiped.iter().position(|wiped| *wiped == (*joined, change.partition)) {
                    self.wiped.swap_remove(at);
                    self.stats.wiped_rejoins += 1;
                }
            }
            let is_elected = after.leader.is_some() && after.leader_epoch != before.leader_epoch;
            let is_unclean = after.unclean_epoch != before.unclean_epoch;
            self.stats.elections += u64::from(is_elected);
            if is_elected {
                self.committed_before.insert((change.partition, after.leader_epoch), self.oracle.committed_end(change.partition));
            }
            if let Some(leader) = after.leader.filter(|_| is_unclean)
                && let Some(disk) = self.nodes.get(&leader).and_then(|node| node.disk.logs.get(&change.partition))
            {
                self.stats.unclean_elections += 1;
                self.oracle.elected_unclean(change.partition, &disk.log);
            }
            for node in after.isr.iter().chain(&after.eligible) {
                let why = if after.leader == Some(*node) { "the leader" } else { "in sync or eligible" };
                self.check_holder(change.partition, *node, is_elected && after.leader == Some(*node), why);
            }
        }
    }

    /// Whether a replica lost something that the metadata has not heard of.
    pub fn is_damaged(&self, partition: PartitionId, id: NodeId) -> bool {
        let Some(node) = self.nodes.get(&id) else { return true };
        let Some(meta) = self.metadata.partitions.get(&partition) else { return true };
        let is_wiped = self.metadata.disk_of(id).is_some_and(|disk| disk != node.disk.incarnation);
        let lost_in = node.disk.logs.get(&partition).and_then(|disk| disk.lost_in);
        is_wiped || meta.record.replica(id).is_some_and(|replica| lost_in == Some(replica.incarnation))
    }

    fn check_holder(&mut self, partition: PartitionId, id: NodeId, whole: bool, why: &str) {
        if self.is_damaged(partition, id) {
            return;
        }
        let Some(node) = self.nodes.get(&id) else { return };
        match node.disk.logs.get(&partition) {
            Some(disk) => self.oracle.holds_everything(partition, id, disk, whole, why),
            None if self.oracle.committed_end(partition) > 0 => {
                self.oracle.violate(format!("partition {partition}: node {id}, {why}, has no log"))
            }
            None => {}
        }
    }

    fn check_acknowledgement(&mut self, partition: PartitionId, node: NodeId, epoch: LeaderEpoch) {
        let is_live = self.metadata.is_live(node);
        let Some(meta) = self.metadata.partitions.get(&partition) else { return };
        if !is_live && meta.record.leader_epoch > epoch {
            self.oracle.violate(format!("partition {partition}: node {node} acknowledges in epoch {epoch}, its lease is over"));
        }
        let holders: Vec<NodeId> = meta.record.isr.iter().chain(&meta.record.eligible).copied().collect();
        for holder in holders {
            self.check_holder(partition, holder, false, "in sync or eligible when something is acknowledged");
        }
    }

    /// What a leader says to be the end is not below what the leaders before it may have shown.
    fn check_latest(&mut self, partition: PartitionId, offset: Offset, epoch: LeaderEpoch) {
        let before = self.committed_before.get(&(partition, epoch)).copied().unwrap_or(0);
        if offset < before && !self.oracle.unclean.contains(&partition) {
            let text = format!(
                "partition {partition}: the leader of epoch {epoch} says that it ends at {offset}, when its epoch began {before} were committed"
            );
            self.oracle.violate(text);
        }
    }

    fn has_converged(&self) -> bool {
        self.why_not_converged().is_empty()
    }

    fn why_not_converged(&self) -> String {
        for (id, meta) in &self.metadata.partitions {
            let record = &meta.record;
            let Some(leader) = record.leader.and_then(|leader| self.nodes.get(&leader)) else {
                return format!("partition {id} has no leader: {record:?}");
            };
            if record.target.is_some() || record.isr.len() != record.replicas.len() {
                return format!("partition {id}: not all are in sync: {record:?}");
            }
            let Some((end, watermark)) = leader.log(*id).map(|log| log.end()).zip(leader.watermark(*id)) else {
                return format!("partition {id} is not led");
            };
            if watermark != end {
                return format!("partition {id}: the watermark is {watermark} of {end}: {record:?}");
            }
            for replica in &record.replicas {
                if self.nodes[&replica.node].log(*id).is_none_or(|log| log.end() != end) {
                    return format!("partition {id}: node {} is not at the end: {record:?}", replica.node);
                }
            }
        }
        match self.clients.iter().all(Client::is_idle) {
            true => String::new(),
            false => "a producer has no answer".into(),
        }
    }

    fn finish(mut self) -> Outcome {
        let partitions: Vec<PartitionId> = self.metadata.partitions.keys().copied().collect();
        if self.oracle.violations.is_empty() {
            for id in &partitions {
                let record = self.metadata.partitions[id].record.clone();
                let logs: Vec<_> = record.replicas.iter().filter_map(|r| Some((r.node, self.nodes.get(&r.node)?.log(*id)?))).collect();
                self.oracle.converged(*id, &record, &logs);
                for (node, log) in logs {
                    let records =
                        (log.first()..log.end()).filter_map(|offset| log.record(offset).map(|(_, value)| (offset, value))).collect();
                    let operation = Operation::FinalRead { partition: *id, start: log.first(), end: log.end(), records };
                    self.history.push(ClientEvent { time_us: self.now * 1000, client: 1000 + node, phase: Phase::Ok, operation });
                }
            }
        }
        let unclean = self.oracle.unclean.clone();
        let mut findings = check(&self.history);
        // What an administrator allowed to be lost is lost, and its offsets are used again.
        findings
            .retain(|finding| finding.kind == Kind::Malformed || finding.partition.is_none_or(|partition| !unclean.contains(&partition)));
        for client in &self.clients {
            self.stats.operations += client.operations;
            self.stats.acknowledged += client.acknowledged;
            self.stats.indeterminate += client.indeterminate;
            self.stats.read += client.read;
        }
        let violations = self.oracle.violations;
        Outcome { stats: self.stats, trace: self.trace, violations, history: self.history, findings }
    }
}
