//! A consumer of the classic protocol, as real ones behave: it joins, joins again with the id it was given, leads or follows, commits,
//! and starts again from what each error says.

use std::collections::{BTreeMap, BTreeSet};

use crate::group::assignors::{Strategy, lead};
use crate::group::consumer_protocol::{Assignment, PROTOCOL_TYPE, Subscription, TopicPartitions};
use crate::group::random::Random;
use crate::request::group::{
    CommitOffsets, CommitPartition, FetchOffsets, GroupAnswer, GroupError, Heartbeat, JoinGroup, JoinRefused, Joined, LeaveGroup,
    MemberRef, Protocol, SyncGroup, Synced, TopicOutcome,
};

pub const SESSION_MS: i32 = 6_000;
pub const REBALANCE_MS: i32 = 10_000;
const HEARTBEAT_MS: u64 = 1_500;
const REQUEST_MS: u64 = 4_000;

#[derive(Clone, Debug)]
pub enum Request {
    Join(JoinGroup),
    Sync(SyncGroup),
    Heartbeat(Heartbeat),
    Commit(CommitOffsets),
    Fetch(FetchOffsets),
    Leave(LeaveGroup),
    DeleteGroups(Vec<String>),
    DeleteOffsets(String, Vec<(String, Vec<i32>)>),
}

#[derive(Clone, Debug)]
pub enum Reply {
    Answer(GroupAnswer),
    Heartbeat(Result<(), GroupError>),
    /// The connection is gone.
    Lost,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Joining,
    Syncing,
    Active,
    Dead,
}

#[derive(Debug)]
pub struct Client {
    pub group: String,
    pub name: String,
    pub instance_id: Option<String>,
    pub strategies: Vec<Strategy>,
    pub topics: BTreeMap<String, u32>,
    pub is_old: bool,
    pub phase: Phase,
    pub member_id: String,
    pub generation: i32,
    pub owned: TopicPartitions,
    protocol: Option<String>,
    /// The join or sync that is awaited, and until when.
    awaited: Option<(u64, u64)>,
    not_before: u64,
    next_heartbeat: u64,
    paused_until: u64,
    next_request: u64,
    /// To be done at the next opportunity.
    pub wants_rejoin: bool,
}

impl Client {
    pub fn new(
        group: &str,
        name: String,
        instance_id: Option<String>,
        strategies: Vec<Strategy>,
        topics: &BTreeMap<String, u32>,
    ) -> Client {
        Client {
            group: group.into(),
            name,
            instance_id,
            strategies,
            topics: topics.clone(),
            is_old: false,
            phase: Phase::Joining,
            member_id: String::new(),
            generation: -1,
            owned: TopicPartitions::new(),
            protocol: None,
            awaited: None,
            not_before: 0,
            next_heartbeat: 0,
            paused_until: 0,
            next_request: 1,
            wants_rejoin: false,
        }
    }

    pub fn is_alive(&self) -> bool {
        self.phase != Phase::Dead
    }

    /// Stops looking at anything for a while, as in a long garbage collection.
    pub fn pause(&mut self, until: u64) {
        self.paused_until = until;
    }

    /// Goes without a word.
    pub fn crash(&mut self) {
        self.phase = Phase::Dead;
    }

    pub fn leave(&mut self) -> Request {
        self.phase = Phase::Dead;
        Request::Leave(LeaveGroup { group: self.group.clone(), members: vec![self.member()] })
    }

    pub fn member(&self) -> MemberRef {
        MemberRef { member_id: self.member_id.clone(), instance_id: self.instance_id.clone() }
    }

    fn is_eager(&self) -> bool {
        self.strategies.contains(&Strategy::Range)
    }

    /// What it sends now, each with its number.
    pub fn tick(&mut self, now: u64, offset: &mut i64, random: &mut Random) -> Vec<(u64, Request)> {
        if !self.is_alive() || now < self.paused_until {
            return Vec::new();
        }
        if self.awaited.is_some_and(|(_, until)| until <= now) {
            self.awaited = None;
            self.rejoin();
        }
        let mut requests = Vec::new();
        match self.phase {
            Phase::Joining if self.awaited.is_none() && now >= self.not_before => {
                let join = self.join(random);
                // A join may wait for the others for a whole rebalance timeout; an impatient client shows what a second join does.
                let patience = if random.is(85) { REBALANCE_MS as u64 + 3_000 } else { random.between(500, 5_000) };
                requests.push((self.expect(now + patience), Request::Join(join)));
            }
            Phase::Active => {
                if self.wants_rejoin {
                    self.rejoin();
                    return requests;
                }
                if now >= self.next_heartbeat {
                    self.next_heartbeat = now + HEARTBEAT_MS;
                    let heartbeat = Heartbeat { group: self.group.clone(), member: self.member(), generation: self.generation };
                    requests.push((self.number(), Request::Heartbeat(heartbeat)));
                }
                if random.is(6) && !self.owned.is_empty() {
                    requests.push((self.number(), Request::Commit(self.commit(offset, random))));
                }
                if random.is(3) {
                    let topics = self.owned.iter().map(|(topic, p)| (topic.clone(), p.iter().copied().collect())).collect();
                    let fetch =
                        FetchOffsets { group: self.group.clone(), topics: random.is(50).then_some(topics), require_stable: random.is(50) };
                    requests.push((self.number(), Request::Fetch(fetch)));
                }
            }
            _ => {}
        }
        requests
    }

    fn number(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    fn expect(&mut self, until: u64) -> u64 {
        let number = self.number();
        self.awaited = Some((number, until));
        number
    }

    fn join(&mut self, random: &mut Random) -> JoinGroup {
        if self.is_eager() {
            self.owned.clear();
        }
        let subscription = Subscription {
            topics: self.topics.keys().cloned().collect(),
            user_data: None,
            owned: self.owned.clone(),
            generation: Some(self.generation),
            rack: None,
        };
        let metadata = subscription.encode();
        JoinGroup {
            group: self.group.clone(),
            member_id: self.member_id.clone(),
            instance_id: self.instance_id.clone(),
            client_id: self.name.clone(),
            client_host: "/10.0.0.1".into(),
            session_timeout_ms: SESSION_MS,
            rebalance_timeout_ms: REBALANCE_MS,
            protocol_type: PROTOCOL_TYPE.into(),
            protocols: self.strategies.iter().map(|s| Protocol { name: s.name().into(), metadata: metadata.clone() }).collect(),
            needs_member_id: !self.is_old,
            can_skip_assignment: !self.is_old,
            entropy: random.bytes(),
        }
    }

    fn commit(&self, offset: &mut i64, random: &mut Random) -> CommitOffsets {
        let mut topics = Vec::new();
        for (topic, partitions) in &self.owned {
            let mut chosen = Vec::new();
            for partition in partitions {
                if random.is(40) {
                    continue;
                }
                *offset += 1;
                let metadata = random.is(30).then(|| "note".to_string());
                chosen.push(CommitPartition { partition: *partition, offset: *offset, leader_epoch: Some(1), metadata });
            }
            if !chosen.is_empty() {
                topics.push((topic.clone(), chosen));
            }
        }
        CommitOffsets { group: self.group.clone(), member: self.member(), generation: self.generation, retention_ms: None, topics }
    }

    /// What it does with a reply; may send at once.
    pub fn receive(&mut self, number: u64, reply: Reply, now: u64) -> Option<(u64, Request)> {
        if !self.is_alive() {
            return None;
        }
        let is_awaited = self.awaited.is_some_and(|(awaited, _)| awaited == number);
        match reply {
            Reply::Answer(GroupAnswer::Join(outcome)) if is_awaited => {
                self.awaited = None;
                match outcome {
                    Ok(joined) => return Some(self.handle_joined(joined, now)),
                    Err(refused) => self.handle_refused(refused, now),
                }
            }
            Reply::Answer(GroupAnswer::Sync(outcome)) if is_awaited => {
                self.awaited = None;
                match outcome {
                    Ok(synced) => self.handle_synced(&synced, now),
                    Err(error) => self.handle_error(error, now),
                }
            }
            Reply::Answer(GroupAnswer::Commit(topics)) => self.handle_committed(&topics, now),
            Reply::Heartbeat(Err(error)) if self.phase == Phase::Active => self.handle_error(error, now),
            Reply::Lost if is_awaited => {
                self.awaited = None;
                self.rejoin();
                self.not_before = now + 200;
            }
            _ => {}
        }
        None
    }

    fn handle_joined(&mut self, joined: Joined, now: u64) -> (u64, Request) {
        self.member_id = joined.member_id.to_string();
        self.generation = joined.generation;
        self.protocol = joined.protocol.as_deref().map(String::from);
        self.phase = Phase::Syncing;
        let is_leader = *joined.leader == *self.member_id && !joined.members.is_empty() && !joined.skip_assignment;
        let assignments = if is_leader {
            let strategy: Strategy = self.protocol.as_deref().expect("a generation has a protocol").parse().expect("one of ours");
            lead(strategy, &joined.members, &self.topics).expect("members of ours")
        } else {
            Vec::new()
        };
        let sync = SyncGroup {
            group: self.group.clone(),
            member: self.member(),
            generation: self.generation,
            protocol_type: Some(PROTOCOL_TYPE.into()),
            protocol: self.protocol.clone(),
            assignments,
        };
        (self.expect(now + REQUEST_MS), Request::Sync(sync))
    }

    fn handle_refused(&mut self, refused: JoinRefused, now: u64) {
        if refused.error == GroupError::MemberIdRequired {
            self.member_id = refused.member_id.to_string();
            return;
        }
        self.handle_error(refused.error, now);
    }

    fn handle_synced(&mut self, synced: &Synced, now: u64) {
        let assigned = Assignment::decode(&synced.assignment).expect("what the leader gave").partitions;
        let gives_up =
            |(topic, partitions): (&String, &BTreeSet<i32>)| partitions.iter().any(|p| !assigned.get(topic).is_some_and(|a| a.contains(p)));
        // A cooperative consumer that gave something up lets the others have it by a rebalance.
        self.wants_rejoin = self.owned.iter().any(gives_up);
        self.owned = assigned;
        self.phase = Phase::Active;
        self.next_heartbeat = now + 100;
    }

    fn handle_committed(&mut self, topics: &[TopicOutcome], now: u64) {
        if self.phase != Phase::Active {
            return;
        }
        let error = topics.iter().flat_map(|t| &t.partitions).find_map(|(_, outcome)| outcome.err());
        use GroupError::{FencedInstanceId, IllegalGeneration, RebalanceInProgress, UnknownMemberId};
        if let Some(error @ (FencedInstanceId | IllegalGeneration | RebalanceInProgress | UnknownMemberId)) = error {
            self.handle_error(error, now);
        }
    }

    fn handle_error(&mut self, error: GroupError, now: u64) {
        match error {
            // A loaded group knows of each member only the protocol that was chosen: who has others only can't join it.
            GroupError::FencedInstanceId | GroupError::GroupMaxSizeReached | GroupError::InconsistentGroupProtocol => {
                self.phase = Phase::Dead
            }
            GroupError::RebalanceInProgress => self.rejoin(),
            GroupError::UnknownMemberId | GroupError::IllegalGeneration => {
                if error == GroupError::UnknownMemberId {
                    self.member_id.clear();
                }
                self.generation = -1;
                self.owned.clear();
                self.rejoin();
            }
            GroupError::CoordinatorNotAvailable
            | GroupError::NotCoordinator
            | GroupError::CoordinatorLoadInProgress
            | GroupError::UnknownServerError => {
                // A heartbeat that finds no coordinator is sent again; a join or sync begins anew.
                if self.phase != Phase::Active {
                    self.rejoin();
                    self.not_before = now + 300;
                }
            }
            other => panic!("client {} was told {other:?}", self.name),
        }
    }

    fn rejoin(&mut self) {
        self.phase = Phase::Joining;
        self.wants_rejoin = false;
        self.awaited = None;
    }
}
