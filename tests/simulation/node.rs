//! A node: the machines of its replicas, its disk, and what moves bytes between them. In the broker this is the shard.

use std::collections::BTreeMap;
use std::rc::Rc;

use corelane::replication::{
    Effect, Follower, Leader, LeaderSettings, Message, MetadataView, Millis, NodeId, Refusal, ReplicaIdentity, Shipped, ToShip,
};
use corelane::types::Offset;

use crate::disk::{Batch, Disk, Entry, Log, Op, PartitionId};
use crate::metadata::{LEASE_MS, Snapshot};
use crate::oracle::Oracle;
use crate::planted::Planted;
use crate::stats::Stats;
use crate::wire::{Answer, ClientRequest, Endpoint, METADATA, Payload, Produced};

/// Nodes that a leader may ever have a replica on.
const MOST_NODES: NodeId = 5;
const HEARTBEAT_MS: Millis = 300;
const SETTINGS: LeaderSettings = LeaderSettings { lag_time_ms: 2000, retry_ms: 250, window_bytes: 3000 };
/// Bytes of a record.
const RECORD_BYTES: u32 = 100;
/// Batches in a segment.
const SEGMENT_BATCHES: usize = 12;
/// Batches at the log's end that are read from memory, not from disk.
const TAIL_BATCHES: usize = 5;
/// Records of a poll.
const POLL_RECORDS: usize = 50;

/// What a node may touch of the world around it.
pub struct Around<'a> {
    pub now: Millis,
    pub out: &'a mut Vec<(Endpoint, Payload)>,
    pub oracle: &'a mut Oracle,
    pub stats: &'a mut Stats,
    pub planted: Planted,
}

#[derive(Debug)]
enum Role {
    None,
    Leader(Box<Leader>),
    Follower(Box<Follower>),
}

/// Who is to be answered when everything up to `end` is committed.
struct Waiter {
    end: Offset,
    base: Offset,
    client: Endpoint,
    operation: u64,
}

struct Replica {
    role: Role,
    /// What is in memory: the disk's log and what is in flight.
    log: Log,
    waiters: Vec<Waiter>,
}

pub struct Node {
    pub id: NodeId,
    pub disk: Disk,
    pub up: bool,
    /// Counts the starts: what belongs to an earlier one is dropped.
    pub boot: u32,
    pub paused_until: Millis,
    pub slow_disk_until: Millis,
    registration: u64,
    node_epoch: Option<u64>,
    asked_at: Millis,
    heartbeat_at: Millis,
    pub lease_until: Millis,
    had_lease: bool,
    snapshot: Option<Rc<Snapshot>>,
    replicas: BTreeMap<PartitionId, Replica>,
}

impl Node {
    pub fn new(id: NodeId) -> Node {
        Node {
            id,
            disk: Disk::new(1),
            up: false,
            boot: 0,
            paused_until: 0,
            slow_disk_until: 0,
            registration: 0,
            node_epoch: None,
            asked_at: 0,
            heartbeat_at: 0,
            lease_until: 0,
            had_lease: false,
            snapshot: None,
            replicas: BTreeMap::new(),
        }
    }

    pub fn start(&mut self) {
        self.boot += 1;
        self.up = true;
        self.registration += 1;
        self.asked_at = 0;
        self.disk.fails = false;
    }

    /// The power goes. `survives`: whether the group that is being written is whole.
    pub fn crash(&mut self, survives: bool) {
        self.up = false;
        self.disk.crash(survives);
        self.replicas.clear();
        (self.node_epoch, self.snapshot, self.lease_until, self.had_lease) = (None, None, 0, false);
    }

    /// Nothing is left of the disk.
    pub fn wipe(&mut self) {
        assert!(!self.up, "a disk is wiped while nobody uses it");
        self.disk = Disk::new(self.disk.incarnation + 1);
    }

    pub fn log(&self, partition: PartitionId) -> Option<&Log> {
        self.replicas.get(&partition).map(|replica| &replica.log)
    }

    /// The machine of a replica, for the report of a run that ends badly.
    pub fn describe(&self, partition: PartitionId) -> String {
        let role = self.replicas.get(&partition).map(|replica| &replica.role);
        format!(
            "node {} (up: {}, node epoch {:?}, lost in {:?}): {role:?}",
            self.id,
            self.up,
            self.node_epoch,
            self.disk.logs.get(&partition).and_then(|disk| disk.lost_in)
        )
    }

    pub fn watermark(&self, partition: PartitionId) -> Option<Offset> {
        match &self.replicas.get(&partition)?.role {
            Role::None => None,
            Role::Leader(leader) => Some(leader.log().watermark),
            Role::Follower(follower) => Some(follower.log().watermark),
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, around: &mut Around<'_>) {
        let now = around.now;
        match self.node_epoch {
            None if now >= self.asked_at + HEARTBEAT_MS => {
                self.asked_at = now;
                let (registration, disk) = (self.registration, self.disk.incarnation);
                around.out.push((METADATA, Payload::Register { registration, disk, sent_at: now }));
            }
            Some(node_epoch) if now >= self.heartbeat_at + HEARTBEAT_MS => {
                self.heartbeat_at = now;
                around.out.push((METADATA, Payload::Heartbeat { node_epoch, sent_at: now }));
            }
            _ => {}
        }
        let has_lease = now < self.lease_until;
        if self.had_lease && !has_lease && self.replicas.values().any(|replica| matches!(replica.role, Role::Leader(_))) {
            around.stats.lost_leases += 1;
        }
        self.had_lease = has_lease;
        for id in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.drive(id, around, |role, effects| {
                if let Role::Leader(leader) = role
                    && leader.next_timeout().is_some_and(|at| at <= now)
                {
                    leader.poll(now, effects);
                }
            });
        }
        // Told until it is heard: the first word may have been lost, or the node with it.
        for (id, disk) in &self.disk.logs {
            if let Some(incarnation) = disk.lost_in {
                around.out.push((METADATA, Payload::Lost { partition: *id, incarnation }));
            }
        }
        // A role that had to wait for a cut.
        if let Some(snapshot) = self.snapshot.clone() {
            self.take_roles(&snapshot, around);
        }
    }

    pub fn handle(&mut self, from: Endpoint, payload: Payload, around: &mut Around<'_>) {
        let now = around.now;
        match payload {
            Payload::Registered { registration, node_epoch, sent_at, snapshot } if registration == self.registration => {
                self.node_epoch = Some(node_epoch);
                self.heard_lease(sent_at, around);
                self.learn(snapshot, around);
            }
            Payload::Beat { node_epoch, lives, sent_at, snapshot } if self.node_epoch == Some(node_epoch) => {
                match lives {
                    true => self.heard_lease(sent_at, around),
                    false => {
                        self.node_epoch = None;
                        self.registration += 1;
                    }
                }
                self.learn(snapshot, around);
            }
            Payload::Update { snapshot } if self.node_epoch.is_some() => self.learn(snapshot, around),
            Payload::ProposalRefused { partition, version, refusal } => self.drive(partition, around, |role, effects| {
                if let Role::Leader(leader) = role {
                    leader.handle_proposal_refused(version, &refusal, now, effects);
                }
            }),
            Payload::Replica { partition, message, batches } => self.handle_replica(from, partition, &message, batches, around),
            Payload::Client { operation, request } => {
                if let Some(answer) = self.serve(from, operation, request, around) {
                    around.out.push((from, Payload::Answer { operation, answer }));
                }
            }
            _ => {}
        }
    }

    fn handle_replica(&mut self, from: NodeId, id: PartitionId, message: &Message, batches: Vec<Rc<Batch>>, around: &mut Around<'_>) {
        let now = around.now;
        if matches!(message, Message::Segment(_)) {
            around.stats.segments += 1;
        }
        if self.disk.full && !batches.is_empty() {
            let refusal = self.replicas.get(&id).and_then(|replica| match &replica.role {
                Role::Follower(follower) => follower.storage_refusal(),
                _ => None,
            });
            if let Some((to, message)) = refusal {
                around.out.push((to, Payload::Replica { partition: id, message, batches: Vec::new() }));
            }
            return;
        }
        self.drive_with(id, around, batches, |role, effects| match role {
            Role::None => {}
            Role::Leader(leader) => leader.handle_message(from, message, now, effects),
            Role::Follower(follower) => follower.handle_message(from, message, effects),
        });
    }

    /// A group of the journal is on disk.
    pub fn synced(&mut self, around: &mut Around<'_>) {
        let now = around.now;
        for op in self.disk.finish_group() {
            self.drive(op.partition, around, |role, effects| match (&op.entry, role) {
                (Entry::Append(batch), Role::Leader(leader)) => leader.handle_durable(batch.end(), now, effects),
                (Entry::Append(batch), Role::Follower(follower)) => follower.handle_durable(batch.end(), effects),
                (Entry::Epoch(epoch), Role::Leader(leader)) => leader.handle_epoch_journaled(*epoch, now, effects),
                (Entry::Epoch(epoch), Role::Follower(follower)) => follower.handle_epoch_journaled(*epoch, effects),
                _ => {}
            });
            if let Entry::Truncate(to) | Entry::Restart(to) = op.entry {
                let hash = self.replicas.get(&op.partition).and_then(|replica| replica.log.hash());
                self.drive(op.partition, around, |role, effects| {
                    if let Role::Follower(follower) = role
                        && follower.is_cutting()
                    {
                        follower.handle_truncated(to, hash, effects);
                    }
                });
            }
        }
    }

    fn heard_lease(&mut self, sent_at: Millis, around: &mut Around<'_>) {
        let (now, until) = (around.now, sent_at + LEASE_MS);
        self.lease_until = self.lease_until.max(until);
        for id in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.drive(id, around, |role, effects| {
                if let Role::Leader(leader) = role {
                    leader.handle_lease(until, now, effects);
                }
            });
        }
    }

    fn learn(&mut self, snapshot: Rc<Snapshot>, around: &mut Around<'_>) {
        if self.snapshot.as_ref().is_some_and(|known| known.index >= snapshot.index) {
            return;
        }
        self.snapshot = Some(snapshot.clone());
        self.take_roles(&snapshot, around);
    }
}

/// Roles.
impl Node {
    fn take_roles(&mut self, snapshot: &Rc<Snapshot>, around: &mut Around<'_>) {
        let Some(node_epoch) = self.node_epoch else { return };
        for (id, meta) in &snapshot.partitions {
            let Some(replica) = meta.record.replica(self.id) else {
                // It was moved away.
                self.replicas.remove(id);
                self.disk.forget(*id);
                self.disk.logs.remove(id);
                continue;
            };
            let disk = self.disk.log(*id);
            if disk.lost_in.is_some_and(|lost| lost < replica.incarnation) {
                disk.lost_in = None;
                self.replicas.remove(id);
            }
            if disk.lost_in.is_some() {
                continue;
            }
            if !self.replicas.contains_key(id) {
                let replica = Replica { role: Role::None, log: disk.log.clone(), waiters: Vec::new() };
                self.replicas.insert(*id, replica);
            }
            let identity = ReplicaIdentity { node_epoch, incarnation: replica.incarnation };
            self.take_role(*id, identity, snapshot, around);
        }
    }

    fn take_role(&mut self, id: PartitionId, identity: ReplicaIdentity, snapshot: &Rc<Snapshot>, around: &mut Around<'_>) {
        let (me, now, lease_until, planted) = (self.id, around.now, self.lease_until, around.planted);
        let meta = &snapshot.partitions[&id];
        let record = &meta.record;
        let view = MetadataView { record, min_insync: meta.min_insync, node_epoch: &|node| snapshot.node_epochs.get(&node).copied() };
        let state = self.disk.log(id).state();
        let before = self.watermark(id).unwrap_or(0);
        let mut effects = Vec::new();
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let leads = record.leader == Some(me);
        match &mut replica.role {
            Role::Leader(leader) if leads && leader.epoch() == record.leader_epoch => leader.handle_record(&view, now, &mut effects),
            Role::Follower(follower) if !leads => follower.handle_record(identity, record.unclean_epoch),
            // The cut ends first.
            Role::Follower(follower) if follower.is_cutting() => return,
            _ => {
                let log = match std::mem::replace(&mut replica.role, Role::None) {
                    Role::Leader(leader) => leader.into_log(),
                    Role::Follower(follower) => follower.into_log(),
                    Role::None => state,
                };
                replica.waiters.clear();
                if !leads {
                    let mut follower = Follower::with_rules(identity, log, planted.rules);
                    follower.handle_record(identity, record.unclean_epoch);
                    replica.role = Role::Follower(Box::new(follower));
                } else {
                    let kept = log.clone();
                    match Leader::with_rules(me, &view, log, SETTINGS, planted.rules, now, &mut effects) {
                        Ok(mut leader) => {
                            leader.handle_lease(lease_until, now, &mut effects);
                            for node in (1..=MOST_NODES).filter(|node| *node != me) {
                                leader.handle_connection(node, true, now, &mut effects);
                            }
                            replica.role = Role::Leader(Box::new(leader));
                        }
                        // Of an epoch before: the metadata gives another one when this node registers anew.
                        Err(_) => replica.role = Role::Follower(Box::new(Follower::with_rules(identity, kept, planted.rules))),
                    }
                }
            }
        }
        self.carry_out(id, around, &[], before, effects);
    }

    /// A connection is lost and there again.
    pub fn reconnect(&mut self, node: NodeId, around: &mut Around<'_>) {
        let now = around.now;
        for id in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.drive(id, around, |role, effects| {
                if let Role::Leader(leader) = role {
                    leader.handle_connection(node, false, now, effects);
                    leader.handle_connection(node, true, now, effects);
                }
            });
        }
    }

    /// Bits of a batch were found changed: the replica is set aside, and the metadata is told.
    fn set_aside(&mut self, id: PartitionId, around: &mut Around<'_>) {
        let Some(incarnation) = self.snapshot.as_ref().and_then(|s| s.partitions.get(&id)?.record.replica(self.id)).map(|r| r.incarnation)
        else {
            return;
        };
        around.stats.quarantines += 1;
        self.disk.forget(id);
        let disk = self.disk.log(id);
        disk.log.restart(0);
        disk.rotten.clear();
        disk.watermark = 0;
        disk.lost_in = Some(incarnation);
        if let Some(replica) = self.replicas.get_mut(&id) {
            replica.role = Role::None;
            replica.log = Log::new();
            replica.waiters.clear();
        }
        around.out.push((METADATA, Payload::Lost { partition: id, incarnation }));
    }

    /// The verification in the background has come round.
    pub fn verify(&mut self, around: &mut Around<'_>) {
        for id in self.replicas.keys().copied().collect::<Vec<_>>() {
            if self.disk.logs.get(&id).is_some_and(|disk| !disk.rotten.is_empty()) {
                self.set_aside(id, around);
            }
        }
    }

    fn is_rotten(&self, id: PartitionId, at: usize) -> bool {
        let (Some(replica), Some(disk)) = (self.replicas.get(&id), self.disk.logs.get(&id)) else { return false };
        at + TAIL_BATCHES < replica.log.batches.len() && disk.rotten.contains(&replica.log.batches[at].base)
    }
}

/// Effects.
impl Node {
    fn drive(&mut self, id: PartitionId, around: &mut Around<'_>, event: impl FnOnce(&mut Role, &mut Vec<Effect>)) {
        self.drive_with(id, around, Vec::new(), event);
    }

    /// Gives a machine an event and carries out what it asks for. `batches` came with the event.
    fn drive_with(
        &mut self,
        id: PartitionId,
        around: &mut Around<'_>,
        batches: Vec<Rc<Batch>>,
        event: impl FnOnce(&mut Role, &mut Vec<Effect>),
    ) {
        let mut effects = Vec::new();
        let before = self.watermark(id).unwrap_or(0);
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        event(&mut replica.role, &mut effects);
        self.carry_out(id, around, &batches, before, effects);
    }

    /// `watermark` is where it was before the event.
    fn carry_out(&mut self, id: PartitionId, around: &mut Around<'_>, batches: &[Rc<Batch>], mut watermark: Offset, effects: Vec<Effect>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        for effect in effects {
            match effect {
                Effect::Watermark { to } => {
                    let leads = matches!(replica.role, Role::Leader(_));
                    // A follower's moves over what it has only.
                    around.oracle.watermark(id, self.id, leads, watermark, to, &replica.log);
                    watermark = to;
                }
                Effect::Append { .. } => {
                    for batch in batches {
                        replica.log.append(batch.clone());
                        self.disk.write(Op { partition: id, entry: Entry::Append(batch.clone()), watermark });
                    }
                }
                Effect::JournalEpoch { epoch, .. } => {
                    self.disk.write(Op { partition: id, entry: Entry::Epoch(epoch), watermark });
                }
                Effect::Truncate { to, unclean } => {
                    around.stats.truncations += 1;
                    if to < watermark && !(unclean && around.oracle.unclean.contains(&id)) {
                        around.oracle.violate(format!("partition {id}: node {} cuts to {to}, below its watermark {watermark}", self.id));
                    }
                    if !replica.log.truncate(to) {
                        around.oracle.violate(format!("partition {id}: node {} cuts a batch at {to}", self.id));
                    }
                    watermark = watermark.min(to);
                    self.disk.write(Op { partition: id, entry: Entry::Truncate(to), watermark });
                }
                Effect::Restart { at, .. } => {
                    around.stats.restarts += 1;
                    if at < watermark && !around.oracle.unclean.contains(&id) {
                        around
                            .oracle
                            .violate(format!("partition {id}: node {} begins anew at {at}, below its watermark {watermark}", self.id));
                    }
                    replica.log.restart(at);
                    watermark = at;
                    self.disk.write(Op { partition: id, entry: Entry::Restart(at), watermark });
                }
                Effect::LogStart { to } => {
                    replica.log.raise_start(to);
                    self.disk.write(Op { partition: id, entry: Entry::LogStart(to), watermark });
                }
                Effect::ProposeIsr(change) => around.out.push((METADATA, Payload::Propose { partition: id, change })),
                Effect::Refuse { from, refusal } => {
                    around.stats.refusals += 1;
                    let is_excused = around.oracle.unclean.contains(&id) && matches!(refusal, Refusal::BelowWatermark { .. });
                    if refusal.is_divergence() && !is_excused {
                        around.oracle.violate(format!("partition {id}: node {} refuses node {from}: {refusal}", self.id));
                    }
                }
                Effect::Send { to, message } => {
                    let disk = self.disk.logs.get(&id);
                    check_claims(self.id, id, &message, disk.map_or((0, -1), |disk| (disk.log.end(), disk.promised)), around.oracle);
                    around.out.push((to, Payload::Replica { partition: id, message, batches: Vec::new() }));
                }
            }
        }
        self.ship(id, around);
        self.answer_waiters(id, around);
    }

    fn ship(&mut self, id: PartitionId, around: &mut Around<'_>) {
        let Some(Replica { role: Role::Leader(leader), .. }) = self.replicas.get(&id) else { return };
        let nodes: Vec<NodeId> = leader.record().replicas.iter().map(|replica| replica.node).filter(|node| *node != self.id).collect();
        for node in nodes {
            loop {
                let Some(Replica { role: Role::Leader(leader), log, .. }) = self.replicas.get_mut(&id) else { return };
                let Some(to_ship) = leader.next_to_ship(node) else { break };
                let Some(first) = log.position(to_ship.from).filter(|at| log.batches[*at].base == to_ship.from) else {
                    return around.oracle.violate(format!("partition {id}: node {} can't ship from {}", self.id, to_ship.from));
                };
                let (count, is_segment) = to_read(log, first, &to_ship);
                if (first..first + count).any(|at| self.is_rotten(id, at)) {
                    return self.set_aside(id, around);
                }
                let Some(Replica { role: Role::Leader(leader), log, .. }) = self.replicas.get_mut(&id) else { return };
                let batches: Vec<Rc<Batch>> = log.batches.range(first..first + count).cloned().collect();
                let shipped = Shipped {
                    base_offset: batches[0].base,
                    end_offset: batches[count - 1].end(),
                    bytes: bytes_of(&batches),
                    hash_before: batches[0].hash_before,
                    hash_after: batches[count - 1].hash_after,
                    opens_segment: batches[0].opens_segment,
                };
                let message = match is_segment {
                    true => leader.handle_segment_shipped(node, &to_ship, &shipped, around.now).map(Message::Segment),
                    false => leader.handle_shipped(node, &to_ship, &shipped, around.now).map(Message::Append),
                };
                let Some(message) = message else { break };
                around.out.push((node, Payload::Replica { partition: id, message, batches }));
            }
            let Some(Replica { role: Role::Leader(leader), .. }) = self.replicas.get_mut(&id) else { return };
            if let Some(append) = leader.next_watermark(node) {
                let message = Message::Append(append);
                around.out.push((node, Payload::Replica { partition: id, message, batches: Vec::new() }));
            }
        }
    }

    fn answer_waiters(&mut self, id: PartitionId, around: &mut Around<'_>) {
        let (me, now) = (self.id, around.now);
        let Some(Replica { role: Role::Leader(leader), waiters, .. }) = self.replicas.get_mut(&id) else { return };
        if waiters.is_empty() || !leader.may_acknowledge(now) {
            return;
        }
        let watermark = leader.log().watermark;
        waiters.retain(|waiter| {
            let is_committed = waiter.end <= watermark;
            if is_committed {
                let answer = Answer::Produced(Produced::At(waiter.base));
                around.out.push((waiter.client, Payload::Answer { operation: waiter.operation, answer }));
                around.stats.acknowledgements.push((id, me, leader.epoch()));
            }
            !is_committed
        });
    }
}

/// Clients.
impl Node {
    fn serve(&mut self, client: Endpoint, operation: u64, request: ClientRequest, around: &mut Around<'_>) -> Option<Answer> {
        let (full, now) = (self.disk.full, around.now);
        let id = request.partition();
        let Some(Replica { role: Role::Leader(leader), log, waiters, .. }) = self.replicas.get_mut(&id) else {
            return Some(Answer::Refused);
        };
        if leader.record().leader != Some(self.id) {
            return Some(Answer::Refused);
        }
        match request {
            ClientRequest::Latest { .. } => Some(Answer::Latest(leader.latest(now).map(|offset| (offset, leader.epoch())))),
            ClientRequest::Produce { producer, sequence, values, .. } => {
                let last = log.last_of(producer).cloned();
                let next = last.as_ref().map_or(0, |last| last.sequence + 1);
                if let Some(last) = last.filter(|last| last.sequence == sequence) {
                    waiters.push(Waiter { end: last.end(), base: last.base, client, operation });
                    self.answer_waiters(id, around);
                    return None;
                }
                if full || !leader.has_enough_replicas() || sequence != next {
                    return Some(Answer::Refused);
                }
                let opens_segment = log.batches.iter().rev().take(SEGMENT_BATCHES).all(|batch| !batch.opens_segment);
                // A new leader of a log without a known hash can't be: it was followed from the beginning.
                let hash_before = log.hash().unwrap_or_default();
                let (base, epoch) = (log.end(), leader.epoch());
                let mut batch = Batch { base, epoch, producer, sequence, values, hash_before, hash_after: 0, opens_segment };
                batch.hash_after = batch.hash_from(hash_before);
                let batch = Rc::new(batch);
                log.append(batch.clone());
                leader.handle_appended(batch.end(), batch.hash_after, now);
                waiters.push(Waiter { end: batch.end(), base, client, operation });
                let watermark = leader.log().watermark;
                self.disk.write(Op { partition: id, entry: Entry::Append(batch), watermark });
                self.drive(id, around, |_, _| {});
                None
            }
            ClientRequest::Fetch { offset, .. } => {
                let (watermark, start) = (leader.log().watermark, log.start);
                if offset < start {
                    return Some(Answer::OutOfRange { start });
                }
                let Some(first) = log.position(offset).filter(|_| offset < watermark) else { return Some(Answer::Fetched(Vec::new())) };
                if self.is_rotten(id, first) {
                    self.set_aside(id, around);
                    return Some(Answer::Refused);
                }
                let records = log_records(&self.replicas[&id].log, offset, watermark.min(offset + POLL_RECORDS as Offset));
                Some(Answer::Fetched(records))
            }
        }
    }

    /// Retention: whole segments below the watermark go, all but the last ones.
    pub fn retain(&mut self, id: PartitionId, around: &mut Around<'_>) {
        let now = around.now;
        let Some(Replica { role: Role::Leader(leader), log, .. }) = self.replicas.get_mut(&id) else { return };
        let watermark = leader.log().watermark;
        let bases: Vec<Offset> =
            log.batches.iter().filter(|batch| batch.opens_segment && batch.base <= watermark).map(|batch| batch.base).collect();
        let Some(start) = bases.len().checked_sub(3).map(|at| bases[at]) else { return };
        log.raise_start(start);
        self.disk.write(Op { partition: id, entry: Entry::LogStart(start), watermark });
        self.drive(id, around, |role, effects| {
            if let Role::Leader(leader) = role {
                leader.handle_log_start(start, now, effects);
            }
        });
    }
}

fn bytes_of(batches: &[Rc<Batch>]) -> u32 {
    batches.iter().map(|batch| batch.values.len() as u32 * RECORD_BYTES).sum()
}

/// How many batches to read, and whether they are a sealed segment with another one behind it.
fn to_read(log: &Log, first: usize, to_ship: &ToShip) -> (usize, bool) {
    let opens = |at: usize| at < log.batches.len() && log.batches[at].opens_segment;
    let next = (first + 1..log.batches.len()).find(|at| opens(*at));
    if let Some(next) = next.filter(|_| opens(first))
        && (next + 1..log.batches.len()).any(opens)
    {
        return (next - first, true);
    }
    let mut bytes = 0;
    let mut count = 0;
    for at in first..log.batches.len() {
        let batch = &log.batches[at];
        bytes += u64::from(RECORD_BYTES) * batch.values.len() as u64;
        // A roll begins a message of its own, so that one flag tells of it.
        if count > 0 && (bytes > to_ship.bytes || batch.base >= to_ship.until || batch.opens_segment) {
            break;
        }
        count += 1;
    }
    (count, false)
}

fn log_records(log: &Log, from: Offset, to: Offset) -> Vec<(Offset, u64)> {
    (from..to).filter_map(|offset| log.record(offset).map(|(_, value)| (offset, value))).collect()
}

/// No answer outruns what it relies on.
fn check_claims(node: NodeId, id: PartitionId, message: &Message, (end, promised): (Offset, i32), oracle: &mut Oracle) {
    let epoch = message.stream().leader_epoch;
    let claimed = match message {
        Message::Ack(ack) => ack.durable_end,
        Message::Epochs(epochs) => epochs.log_end,
        _ => return,
    };
    if promised < epoch {
        oracle.violate(format!("partition {id}: node {node} answers in epoch {epoch}, on its disk is the promise of {promised}"));
    }
    if claimed > end {
        oracle.violate(format!("partition {id}: node {node} reports {claimed}, on its disk are {end}"));
    }
}
