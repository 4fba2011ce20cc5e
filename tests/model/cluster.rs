//! What can happen in the small cluster.

use std::sync::Arc;

use corelane::replication::{IsrChange, Joiner, NodeId, PartitionRecord, Replica};
use stateright::{Model, Property};

use crate::rules::{Meetings, Met, Rule};
use crate::state::{Acked, Acknowledged, Lead, Log, MIN_INSYNC, NODES, Node, RECORDS, State};

/// One step of one node, or between two. Messages are steps: one that is late is a step that comes later, and what it found is refused or taken by
/// the state of then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The elected one learns it, keeps the epoch and begins to lead.
    Lead(usize),
    /// A leader appends a record.
    Append(usize),
    /// A node's journal is synced.
    Sync(usize),
    /// A follower meets a leader of a new epoch, and cuts its log to what they have in common.
    Meet { leader: usize, follower: usize },
    /// A follower takes the next record, and the watermark.
    Push { leader: usize, follower: usize },
    /// A follower tells its durable end.
    Ack { leader: usize, follower: usize },
    /// A leader learns what consensus holds.
    Learn(usize),
    /// A leader puts a follower out: proposed and committed; it learns of that later.
    Shrink { leader: usize, follower: usize },
    /// A leader takes a follower in, in the same way.
    Join { leader: usize, follower: usize },
    /// Leadership is handed over.
    HandOver(usize),
    /// A node is taken for dead; a leader may be so wrongly. If there is an election, `prefer` is the first of the replicas.
    Away { node: usize, prefer: usize },
    /// A node registers, after a restart where it was down.
    Register { node: usize, prefer: usize },
    /// A node loses what is not on its disk.
    Crash(usize),
    /// And then its disk.
    Wipe(usize),
}

/// How far a run goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Epochs are 0 to this one.
    pub last_epoch: i8,
    /// Records that are appended in a run.
    pub records: u8,
    /// Crashes in a run.
    pub crashes: u8,
    /// A node that crashed may be wiped too.
    pub wipes: bool,
    /// Few steps: a leader's append is synced at once, and a follower tells its end as it takes a record. What lies between is left to smaller runs.
    pub coarse: bool,
}

/// The model.
#[derive(Clone)]
pub struct Cluster {
    /// The rules that are switched off.
    pub off: &'static [Rule],
    /// How far it goes.
    pub bounds: Bounds,
    /// What was met.
    pub met: Arc<Meetings>,
}

impl Cluster {
    fn keeps(&self, rule: Rule) -> bool {
        !self.off.contains(&rule)
    }

    /// A leader and a follower that takes its stream.
    fn connected(&self, state: &State, leader: usize, follower: usize) -> bool {
        let Some(lead) = &state.nodes[leader].lead else { return false };
        let known = lead.node_epochs[follower] == state.node_epochs[follower] || !self.keeps(Rule::StreamNamesNodeEpoch);
        leader != follower && state.nodes[follower].up && known
    }

    /// Whether the follower is in the leader's epoch, or takes it for that.
    fn in_epoch(&self, state: &State, leader: usize, follower: usize) -> bool {
        let (leader, follower) = (state.nodes[leader].epoch, state.nodes[follower].epoch);
        leader == follower || leader < follower && !self.keeps(Rule::OldEpochRefused)
    }

    /// The watermark of a leader moves as far as it may, and clients are told.
    fn advance(&self, state: &mut State, at: usize) {
        let node = &mut state.nodes[at];
        let Some(lead) = &node.lead else { return };
        let least = |set: u8| {
            let ends = (0..NODES).filter(|member| set & (1 << member) != 0).map(|member| lead.acked[member].end);
            ends.fold(node.durable, u8::min)
        };
        if (lead.isr.count_ones() as usize) < MIN_INSYNC && self.keeps(Rule::MinInsync) {
            return;
        }
        let others = |set: u8| set & !(1 << at);
        let bounded = least(others(lead.isr | lead.joining));
        if bounded < least(others(lead.isr)) {
            self.met.meet(Met::JoinerWaitedFor);
        }
        node.watermark = node.watermark.max(bounded);
        for offset in 0..usize::from(node.watermark) {
            let record = node.log.records()[offset];
            match state.acknowledged.get(offset) {
                Some(earlier) => state.two_at_an_offset |= earlier.record != record,
                None => {
                    self.met.meet(Met::Acknowledged);
                    if record < node.epoch {
                        self.met.meet(Met::AcknowledgedLater);
                    }
                    state.acknowledged.push(Acknowledged { record, by: node.epoch });
                }
            }
        }
    }

    /// Consensus: what is left of `eligible` by a record that does not empty it.
    fn keep_eligible(&self, record: &mut PartitionRecord, before: &[NodeId]) {
        if !self.keeps(Rule::EligibleEmptied) {
            let kept: Vec<NodeId> =
                before.iter().copied().filter(|node| !record.isr.contains(node) && !record.eligible.contains(node)).collect();
            record.eligible.extend(kept);
        }
    }

    fn change_isr(&self, state: &mut State, leader: usize, leave: Vec<NodeId>, join: Vec<Joiner>) -> bool {
        let Some(lead) = &state.nodes[leader].lead else { return false };
        let change =
            IsrChange { leader: leader as NodeId, leader_epoch: i32::from(state.nodes[leader].epoch), version: lead.version, leave, join };
        let eligible = state.record.eligible.clone();
        let (live, node_epochs) = (state.live, state.node_epochs);
        let registration = |node: NodeId| live[node as usize].then_some(node_epochs[node as usize]);
        if state.record.change_isr(&change, MIN_INSYNC, registration).is_err() {
            self.met.meet(Met::Refused);
            return false;
        }
        self.keep_eligible(&mut state.record, &eligible);
        true
    }

    fn learn(&self, state: &mut State, at: usize) {
        let (record, node_epochs) = (&state.record, state.node_epochs);
        let node = &mut state.nodes[at];
        if record.leader != Some(at as NodeId) || record.leader_epoch != i32::from(node.epoch) {
            self.met.meet(Met::Resigned);
            node.lead = None;
            return;
        }
        let Some(lead) = &mut node.lead else { return };
        lead.isr = record.isr.iter().fold(0, |set, member| set | 1 << member);
        lead.version = record.version;
        lead.node_epochs = node_epochs;
        // A proposal on the version before was committed or never will be.
        lead.joining = 0;
        self.advance(state, at);
    }

    /// Which replica is the preferred leader is no part of a state: whoever is, there is a cluster like that.
    fn prefer(state: &mut State, node: usize) {
        state.record.replicas.sort_by_key(|replica| (replica.node != node as NodeId, replica.node));
    }

    /// A registration: a node that was not known to be away was, or it would not register.
    fn register(&self, state: &mut State, at: usize) {
        let id = at as NodeId;
        let eligible = state.record.eligible.clone();
        let live = state.live;
        let others = |node: NodeId| node != id && live[node as usize];
        state.node_epochs[at] += 1;
        state.live[at] = true;
        if state.nodes[at].wiped && self.keeps(Rule::LossDeclared) {
            state.record.replica_lost(id, MIN_INSYNC, others);
        } else {
            state.record.node_away(id, MIN_INSYNC, others);
            self.keep_eligible(&mut state.record, &eligible);
            let live = state.live;
            state.record.node_back(id, MIN_INSYNC, |node| live[node as usize]);
        }
        let incarnation = state.incarnation(at);
        let node = &mut state.nodes[at];
        node.up = true;
        node.wiped = false;
        node.lead = None;
        node.incarnation = incarnation;
    }

    fn meet(&self, state: &mut State, leader: usize, follower: usize) {
        let (log, epoch) = (state.nodes[leader].log, state.nodes[leader].epoch);
        let node = &mut state.nodes[follower];
        node.epoch = epoch;
        // Whoever led an older epoch does not any more.
        node.lead = None;
        let common = node.log.common(&log);
        let cut = if !self.keeps(Rule::Cut) {
            node.log.len()
        } else if !self.keeps(Rule::CutToCommonEpoch) {
            usize::from(node.watermark)
        } else {
            common
        };
        if cut < node.log.len() {
            self.met.meet(Met::Truncated);
        }
        state.cut_below_watermark |= cut < usize::from(node.watermark);
        node.log.cut(cut);
        // The epoch's entry in the journal is synced, and with it all that stands before it.
        node.durable = node.log.len() as u8;
        node.watermark = node.watermark.min(node.durable);
    }

    fn ack(&self, state: &mut State, leader: usize, follower: usize) {
        let (node, node_epoch) = (&state.nodes[follower], state.node_epochs[follower]);
        let end = if self.keeps(Rule::AckedWhenDurable) { node.durable } else { node.log.len() as u8 };
        let acked = Acked { end, incarnation: node.incarnation, node_epoch };
        if let Some(lead) = &mut state.nodes[leader].lead {
            lead.acked[follower] = acked;
        }
        self.advance(state, leader);
    }

    /// The steps that bounds allow; `None` where a step does nothing.
    fn step(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Lead(at) => {
                let record = &state.record;
                let (isr, version) = (record.isr.iter().fold(0, |set, member| set | 1 << member), record.version);
                let node = &mut state.nodes[at];
                node.epoch = record.leader_epoch as i8;
                node.durable = node.log.len() as u8;
                let lead = Lead {
                    start: node.durable,
                    isr,
                    version,
                    node_epochs: state.node_epochs,
                    joining: 0,
                    acked: [Acked::default(); NODES],
                };
                node.lead = Some(lead);
                if last.nodes.iter().any(|node| node.lead.is_some()) {
                    self.met.meet(Met::TwoLeaders);
                }
            }
            Step::Append(at) => {
                state.appends_left -= 1;
                let node = &mut state.nodes[at];
                node.log.push(node.epoch);
                if self.bounds.coarse {
                    node.durable = node.log.len() as u8;
                    self.advance(&mut state, at);
                }
            }
            Step::Sync(at) => {
                state.nodes[at].durable = state.nodes[at].log.len() as u8;
                self.advance(&mut state, at);
            }
            Step::Meet { leader, follower } => self.meet(&mut state, leader, follower),
            Step::Push { leader, follower } => {
                let (log, watermark) = (state.nodes[leader].log, state.nodes[leader].watermark);
                let node = &mut state.nodes[follower];
                if let Some(record) = log.records().get(node.log.len()) {
                    node.log.push(*record);
                }
                // A follower's sync is part of this. Only what is durable is told, and what a crash would take might as well not have come yet; so
                // nothing new happens between the two, unless the rule is off.
                if self.keeps(Rule::AckedWhenDurable) {
                    node.durable = node.log.len() as u8;
                }
                node.watermark = node.watermark.max(watermark.min(node.log.len() as u8));
                if self.bounds.coarse {
                    self.ack(&mut state, leader, follower);
                }
            }
            Step::Ack { leader, follower } => self.ack(&mut state, leader, follower),
            Step::Learn(at) => self.learn(&mut state, at),
            Step::Shrink { leader, follower } => {
                if !self.keeps(Rule::ShrinkWhenCommitted) {
                    // Counts at once, whatever becomes of it.
                    state.nodes[leader].lead.as_mut()?.isr &= !(1 << follower);
                    self.advance(&mut state, leader);
                }
                if self.change_isr(&mut state, leader, vec![follower as NodeId], vec![]) {
                    self.met.meet(if state.record.isr.len() < MIN_INSYNC { Met::ShrunkBelowMin } else { Met::Shrunk });
                } else if self.keeps(Rule::ShrinkWhenCommitted) {
                    return None;
                }
            }
            Step::Join { leader, follower } => {
                let acked = state.nodes[leader].lead.as_ref()?.acked[follower];
                let now = state.incarnation(follower);
                let incarnation = if self.keeps(Rule::JoinNamesIncarnation) { acked.incarnation } else { now };
                let node_epoch = if self.keeps(Rule::JoinNamesNodeEpoch) { acked.node_epoch } else { state.node_epochs[follower] };
                let joiner = Joiner { replica: Replica { node: follower as NodeId, incarnation }, node_epoch };
                if !self.change_isr(&mut state, leader, vec![], vec![joiner]) {
                    return None;
                }
                self.met.meet(if now > 0 { Met::WipedJoined } else { Met::Joined });
                if self.keeps(Rule::JoinerBoundsWatermark) {
                    state.nodes[leader].lead.as_mut()?.joining |= 1 << follower;
                }
            }
            Step::HandOver(to) => {
                let live = state.live;
                state.record.hand_over(to as NodeId, |node| live[node as usize]).ok()?;
                self.met.meet(Met::HandedOver);
            }
            Step::Away { node: at, prefer } => {
                Cluster::prefer(&mut state, prefer);
                state.live[at] = false;
                let (live, eligible) = (state.live, state.record.eligible.clone());
                state.record.node_away(at as NodeId, MIN_INSYNC, |node| live[node as usize]);
                self.keep_eligible(&mut state.record, &eligible);
            }
            Step::Register { node, prefer } => {
                Cluster::prefer(&mut state, prefer);
                self.register(&mut state, node);
            }
            Step::Crash(at) => {
                state.crashes_left -= 1;
                let node = &mut state.nodes[at];
                if usize::from(node.durable) < node.log.len() {
                    self.met.meet(Met::TailLost);
                }
                node.log.cut(usize::from(node.durable));
                node.watermark = node.watermark.min(node.durable);
                node.up = false;
                node.lead = None;
                if !self.keeps(Rule::EpochPersisted) {
                    node.epoch = node.log.records().last().copied().unwrap_or(-1);
                }
            }
            Step::Wipe(at) => {
                let incarnation = state.nodes[at].incarnation;
                state.nodes[at] = Node { wiped: true, up: false, incarnation, ..new_node() };
            }
        }
        if state.record.leader_epoch > i32::from(self.bounds.last_epoch) {
            return None;
        }
        if state.record.leader_epoch > last.record.leader_epoch {
            let met = match state.record.leader {
                None => Met::NoLeader,
                Some(leader) if last.record.isr.contains(&leader) => Met::Elected,
                Some(_) => Met::EligibleElected,
            };
            self.met.meet(met);
        }
        let forgets = [Rule::JoinNamesIncarnation, Rule::JoinNamesNodeEpoch, Rule::StreamNamesNodeEpoch, Rule::OldEpochRefused];
        if forgets.into_iter().all(|rule| self.keeps(rule)) {
            forget(&mut state);
        }
        Some(state)
    }

    fn steps_of_leader(&self, state: &State, leader: usize, steps: &mut Vec<Step>) {
        let node = &state.nodes[leader];
        let Some(lead) = &node.lead else { return };
        if state.appends_left > 0 && node.log.len() < RECORDS {
            steps.push(Step::Append(leader));
        }
        if lead.version != state.record.version || lead.node_epochs != state.node_epochs {
            steps.push(Step::Learn(leader));
        }
        for follower in (0..NODES).filter(|follower| *follower != leader) {
            if lead.isr & (1 << follower) != 0 && (lead.version == state.record.version || !self.keeps(Rule::ShrinkWhenCommitted)) {
                steps.push(Step::Shrink { leader, follower });
            }
            let other = &state.nodes[follower];
            if other.up && other.epoch > node.epoch {
                self.met.meet(Met::Fenced);
            }
            if !self.connected(state, leader, follower) {
                continue;
            }
            if other.epoch < node.epoch {
                steps.push(Step::Meet { leader, follower });
                continue;
            }
            if !self.in_epoch(state, leader, follower) {
                continue;
            }
            if other.log.len() < node.log.len() || other.watermark < node.watermark.min(other.log.len() as u8) {
                steps.push(Step::Push { leader, follower });
            }
            let acked = lead.acked[follower];
            let end = if self.keeps(Rule::AckedWhenDurable) { other.durable } else { other.log.len() as u8 };
            let is_old = i32::from(node.epoch) < state.record.leader_epoch;
            let is_known = (acked.incarnation, acked.node_epoch) == (other.incarnation, state.node_epochs[follower]) || is_old;
            if acked.end != end || !is_known {
                steps.push(Step::Ack { leader, follower });
            }
        }
        for follower in (0..NODES).filter(|follower| *follower != leader && lead.isr & (1 << follower) == 0) {
            let end = lead.acked[follower].end;
            let has_watermark = end >= node.watermark || !self.keeps(Rule::JoinerHasWatermark);
            let has_start = end >= lead.start || !self.keeps(Rule::JoinerHasEpochStart);
            if has_watermark && has_start && lead.joining & (1 << follower) == 0 {
                steps.push(Step::Join { leader, follower });
            }
        }
    }
}

/// With these rules, what can't matter any more is as if it had never been known, so that states which differ by it only are one.
fn forget(state: &mut State) {
    let epochs = state.nodes.each_ref().map(|node| node.epoch);
    let up = state.nodes.each_ref().map(|node| node.up);
    let incarnations: [u32; NODES] = std::array::from_fn(|node| state.incarnation(node));
    for at in 0..NODES {
        let node = &mut state.nodes[at];
        let Some(lead) = &mut node.lead else { continue };
        let is_old = i32::from(node.epoch) < state.record.leader_epoch;
        if is_old {
            lead.version = u32::MAX;
        }
        for other in (0..NODES).filter(|other| *other != at) {
            // It refuses this leader for good, or comes back as another registration.
            if epochs[other] > node.epoch || !up[other] {
                lead.node_epochs[other] = 0;
            }
            let acked = &mut lead.acked[other];
            let is_present = (acked.incarnation, acked.node_epoch) == (incarnations[other], state.node_epochs[other]);
            if (lead.isr | lead.joining) & (1 << other) == 0 && (is_old || !is_present) {
                // It can't join by it.
                *acked = Acked { end: 0, incarnation: u32::MAX, node_epoch: 0 };
            } else if is_old {
                // Only its end still counts.
                (acked.incarnation, acked.node_epoch) = (u32::MAX, 0);
            }
        }
    }
}

fn new_node() -> Node {
    Node { up: true, wiped: false, log: Log::default(), durable: 0, watermark: 0, epoch: -1, incarnation: 0, lead: None }
}

impl Model for Cluster {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let nodes: Vec<NodeId> = (0..NODES as NodeId).collect();
        vec![State {
            record: PartitionRecord::new(&nodes, |_| true),
            live: [true; NODES],
            node_epochs: [1; NODES],
            nodes: [new_node(), new_node(), new_node()],
            acknowledged: Vec::new(),
            appends_left: self.bounds.records,
            crashes_left: self.bounds.crashes,
            two_at_an_offset: false,
            cut_below_watermark: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for at in 0..NODES {
            let node = &state.nodes[at];
            let leads = state.record.leader == Some(at as NodeId);
            if node.up {
                if leads && i32::from(node.epoch) < state.record.leader_epoch {
                    steps.push(Step::Lead(at));
                }
                if usize::from(node.durable) < node.log.len() {
                    steps.push(Step::Sync(at));
                }
                if state.crashes_left > 0 {
                    steps.push(Step::Crash(at));
                }
                if !leads && state.record.leader.is_some() && state.live[at] && state.record.in_sync(at as NodeId) {
                    steps.push(Step::HandOver(at));
                }
                self.steps_of_leader(state, at, steps);
            } else if !node.wiped && self.bounds.wipes {
                steps.push(Step::Wipe(at));
            }
            // Whom an election could choose among; where there is none to be, one is enough.
            let elects = leads || state.record.leader.is_none();
            let preferred = |other: &usize| if elects { state.live[*other] || *other == at } else { *other == at };
            if state.live[at] && (leads || !node.up) {
                steps.extend((0..NODES).filter(preferred).map(|prefer| Step::Away { node: at, prefer }));
            }
            if !node.up || !state.live[at] {
                steps.extend((0..NODES).filter(preferred).map(|prefer| Step::Register { node: at, prefer }));
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        self.step(last, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("an acknowledged record is in every later leader's log at its offset", |_, state: &State| {
                leaders(state).all(|(node, _)| {
                    let mut told = state.acknowledged.iter().enumerate();
                    told.all(|(offset, told)| told.by > node.epoch || node.log.records().get(offset) == Some(&told.record))
                })
            }),
            Property::always("one record is acknowledged at an offset", |_, state: &State| !state.two_at_an_offset),
            Property::always("logs are equal below the watermarks", |_, state: &State| {
                let below = |node: &Node| node.log.records()[..usize::from(node.watermark)].to_vec();
                let logs: Vec<Vec<i8>> = state.nodes.iter().map(below).collect();
                logs.iter().all(|a| logs.iter().all(|b| a.iter().zip(b).all(|(a, b)| a == b)))
            }),
            Property::always("nobody cuts below its watermark", |_, state: &State| !state.cut_below_watermark),
            Property::always("a leader that tells its watermark is not behind an earlier one's", |_, state: &State| {
                leaders(state).all(|(node, lead)| {
                    let before = state.acknowledged.iter().filter(|told| told.by < node.epoch).count();
                    node.watermark < lead.start || usize::from(node.watermark) >= before
                })
            }),
            Property::always("an epoch has one leader", |_, state: &State| {
                let epochs: Vec<i8> = leaders(state).map(|(node, _)| node.epoch).collect();
                (1..epochs.len()).all(|at| !epochs[..at].contains(&epochs[at]))
            }),
        ];
        macro_rules! sometimes {
            ($($at:literal)*) => { $(properties.push(Property::sometimes(Met::ALL[$at].1, |model: &Cluster, _| model.met.count(Met::ALL[$at].0) > 0));)* };
        }
        sometimes!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
        properties
    }
}

/// Those who believe that they lead.
fn leaders(state: &State) -> impl Iterator<Item = (&Node, &Lead)> {
    state.nodes.iter().filter_map(|node| Some((node, node.lead.as_ref()?)))
}
