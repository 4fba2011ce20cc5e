//! A member of a group, from joining to leaving. A pure state machine: the shell asks the coordinator, keeps the time and moves the partitions.
//!
//! ```text
//!             release (eager: all)           answered          answered       release what went, take what came
//! Preparing ------------------------> Joining ------> Syncing ------> Settling --------------------------------> Stable
//!     ^                                  |               |               |                                         |
//!     '----------------------------------'---------------'---------------'----- rebalance, lost generation --------'
//! ```
//!
//! [`Membership::step`] says what is to be done now and changes nothing, so it may be asked at any time; what was done is told by the other methods. An
//! answer to a request that has been overtaken (the generation was lost meanwhile) is told by the `round` that it was made in.
//!
//! Reactions to errors are those of Kafka's clients (`AbstractCoordinator`, `ConsumerCoordinator`), but for a failure of the coordinator's log, after
//! which a member joins again.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::AssignmentStrategy;
use crate::request::consumer_protocol::{Assignment, PROTOCOL_TYPE, Subscription, TopicPartitions};
use crate::request::group::{GroupError, Heartbeat, JoinGroup, JoinRefused, Joined, LeaveGroup, MemberRef, Protocol, SyncGroup, Synced};

/// What a member is, apart from its subscription.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Profile {
    pub group: String,
    pub client_id: String,
    pub instance_id: Option<String>,
    pub session_timeout_ms: i32,
    pub rebalance_timeout_ms: i32,
    /// In order of preference, at least one.
    pub strategies: Vec<AssignmentStrategy>,
}

/// What is to be done now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Read these no more, then [`Membership::released`]. What was read of lost ones can't be committed: they may be somebody else's.
    Release { partitions: TopicPartitions, is_lost: bool },
    /// Ask the coordinator, then [`Membership::handle_joined`].
    Join(JoinGroup),
    /// Ask the coordinator, then [`Membership::handle_synced`].
    Sync(SyncGroup),
    /// Read these from now on, then [`Membership::taken`].
    Take(TopicPartitions),
    /// Heartbeats only.
    Rest,
    /// Nothing, not even heartbeats: the member has left.
    Away,
    /// Nothing any more.
    Failed(GroupError),
}

/// How soon the next step may be tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Then {
    /// At once.
    Proceed,
    /// After a pause.
    BackOff,
    /// After a pause, at the coordinator as it is then.
    FindCoordinator,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase {
    Preparing,
    Syncing,
    Settling { assigned: TopicPartitions, rejoins: bool },
    Stable,
    Away,
    Failed(GroupError),
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Membership {
    profile: Profile,
    topics: BTreeSet<String>,
    member_id: Arc<str>,
    /// -1 for none.
    generation: i32,
    protocol: Option<Arc<str>>,
    is_leader: bool,
    owned: TopicPartitions,
    phase: Phase,
    /// Rises whenever answers to what was asked before are of no use any more.
    round: u64,
}

impl Membership {
    pub fn new(profile: Profile, topics: BTreeSet<String>) -> Membership {
        Membership {
            profile,
            topics,
            member_id: "".into(),
            generation: -1,
            protocol: None,
            is_leader: false,
            owned: TopicPartitions::new(),
            phase: Phase::Preparing,
            round: 0,
        }
    }

    /// All strategies move partitions one by one: then what is owned is read on during a rebalance.
    fn is_cooperative(&self) -> bool {
        self.profile.strategies.iter().all(|strategy| *strategy == AssignmentStrategy::CooperativeSticky)
    }

    pub fn step(&self) -> Step {
        match &self.phase {
            Phase::Preparing => {
                let (partitions, is_lost) = self.to_release();
                if partitions.is_empty() { Step::Join(self.join_request()) } else { Step::Release { partitions, is_lost } }
            }
            Phase::Syncing => Step::Sync(self.sync_request()),
            Phase::Settling { assigned, .. } => {
                let gone = difference(&self.owned, assigned);
                if gone.is_empty() {
                    Step::Take(difference(assigned, &self.owned))
                } else {
                    Step::Release { partitions: gone, is_lost: false }
                }
            }
            Phase::Stable => Step::Rest,
            Phase::Away if !self.owned.is_empty() => Step::Release { partitions: self.owned.clone(), is_lost: true },
            Phase::Away => Step::Away,
            Phase::Failed(_) if !self.owned.is_empty() => Step::Release { partitions: self.owned.clone(), is_lost: true },
            Phase::Failed(error) => Step::Failed(*error),
        }
    }

    /// Before it joins: everything where the generation is lost or the strategy is an eager one, else what is not subscribed to any more.
    fn to_release(&self) -> (TopicPartitions, bool) {
        if self.generation < 0 {
            return (self.owned.clone(), true);
        }
        if !self.is_cooperative() {
            return (self.owned.clone(), false);
        }
        let gone = self.owned.iter().filter(|(topic, _)| !self.topics.contains(*topic));
        (gone.map(|(topic, partitions)| (topic.clone(), partitions.clone())).collect(), false)
    }

    fn join_request(&self) -> JoinGroup {
        let owned = if self.is_cooperative() { self.owned.clone() } else { TopicPartitions::new() };
        let generation = Some(self.generation).filter(|generation| *generation >= 0);
        let topics = self.topics.iter().cloned().collect();
        let metadata = Subscription { topics, user_data: None, owned, generation, rack: None }.encode();
        let protocols = self.profile.strategies.iter();
        JoinGroup {
            group: self.profile.group.clone(),
            member_id: self.member_id.to_string(),
            instance_id: self.profile.instance_id.clone(),
            client_id: self.profile.client_id.clone(),
            client_host: String::new(),
            session_timeout_ms: self.profile.session_timeout_ms,
            rebalance_timeout_ms: self.profile.rebalance_timeout_ms,
            protocol_type: PROTOCOL_TYPE.into(),
            protocols: protocols.map(|s| Protocol { name: s.name().into(), metadata: metadata.clone() }).collect(),
            needs_member_id: true,
            can_skip_assignment: true,
            entropy: [0; 16],
        }
    }

    fn sync_request(&self) -> SyncGroup {
        SyncGroup {
            group: self.profile.group.clone(),
            member: self.me(),
            generation: self.generation,
            protocol_type: Some(PROTOCOL_TYPE.into()),
            protocol: self.protocol.as_deref().map(String::from),
            assignments: Vec::new(),
        }
    }

    /// As it names itself, with its generation; for commits too.
    pub fn identity(&self) -> (MemberRef, i32) {
        (self.me(), self.generation)
    }

    fn me(&self) -> MemberRef {
        MemberRef { member_id: self.member_id.to_string(), instance_id: self.profile.instance_id.clone() }
    }

    /// The heartbeat that is due every interval; none while it is no member.
    pub fn heartbeat(&self) -> Option<Heartbeat> {
        let is_member = self.generation >= 0 && !matches!(self.phase, Phase::Away | Phase::Failed(_));
        is_member.then(|| Heartbeat { group: self.profile.group.clone(), member: self.me(), generation: self.generation })
    }

    /// How it says good-bye; static members do not, so that they find their partitions again, and neither does who never was a member.
    pub fn farewell(&self) -> Option<LeaveGroup> {
        let leaves = self.profile.instance_id.is_none() && !self.member_id.is_empty() && !matches!(self.phase, Phase::Failed(_));
        leaves.then(|| LeaveGroup { group: self.profile.group.clone(), members: vec![self.me()] })
    }

    pub fn round(&self) -> u64 {
        self.round
    }

    pub fn owned(&self) -> &TopicPartitions {
        &self.owned
    }

    pub fn topics(&self) -> &BTreeSet<String> {
        &self.topics
    }

    pub fn is_leader(&self) -> bool {
        self.is_leader
    }

    /// Other topics: the group has to know.
    pub fn subscribe(&mut self, topics: BTreeSet<String>) {
        if topics != self.topics {
            self.topics = topics;
            self.rejoin();
        }
    }

    /// Joins the next generation, keeping the place in this one until then.
    pub fn rejoin(&mut self) {
        match &mut self.phase {
            Phase::Settling { rejoins, .. } => *rejoins = true,
            Phase::Syncing | Phase::Stable | Phase::Preparing => self.prepare(),
            Phase::Away | Phase::Failed(_) => {}
        }
    }

    fn prepare(&mut self) {
        self.round += 1;
        self.phase = Phase::Preparing;
    }

    /// It has left because the application took no records for too long.
    pub fn go_away(&mut self) {
        if !matches!(self.phase, Phase::Failed(_)) {
            self.lose(true);
            self.phase = Phase::Away;
        }
    }

    /// The application takes records again.
    pub fn come_back(&mut self) {
        if self.phase == Phase::Away {
            self.prepare();
        }
    }

    /// These are not read any more.
    pub fn released(&mut self, partitions: &TopicPartitions) {
        self.owned = difference(&self.owned, partitions);
        // What a cooperative member gave up is free for others in the next generation only.
        if let Phase::Settling { rejoins, .. } = &mut self.phase {
            *rejoins = true;
        }
    }

    /// What [`Step::Take`] named is read from now on.
    pub fn taken(&mut self) {
        if let Phase::Settling { assigned, rejoins } = &mut self.phase {
            self.owned = std::mem::take(assigned);
            let rejoins = *rejoins;
            self.phase = Phase::Stable;
            if rejoins {
                self.prepare();
            }
        }
    }

    /// The answer to a join of this round.
    pub fn handle_joined(&mut self, round: u64, answer: Result<Joined, JoinRefused>) -> Then {
        if round != self.round || self.phase != Phase::Preparing {
            return Then::Proceed;
        }
        match answer {
            Ok(joined) => {
                self.is_leader = joined.leader == joined.member_id;
                self.member_id = joined.member_id;
                self.generation = joined.generation;
                self.protocol = joined.protocol;
                self.round += 1;
                self.phase = Phase::Syncing;
                Then::Proceed
            }
            Err(JoinRefused { error: GroupError::MemberIdRequired, member_id }) => {
                self.member_id = member_id;
                Then::Proceed
            }
            Err(refused) => self.handle_error(refused.error),
        }
    }

    /// The answer to a sync of this round.
    pub fn handle_synced(&mut self, round: u64, answer: Result<Synced, GroupError>) -> Then {
        if round != self.round || self.phase != Phase::Syncing {
            return Then::Proceed;
        }
        match answer {
            Ok(synced) => {
                let Ok(assignment) = Assignment::decode(&synced.assignment) else {
                    self.phase = Phase::Failed(GroupError::InconsistentGroupProtocol);
                    return Then::Proceed;
                };
                self.round += 1;
                self.phase = Phase::Settling { assigned: full(assignment.partitions), rejoins: false };
                Then::Proceed
            }
            Err(error) => self.handle_error(error),
        }
    }

    /// The answer to a heartbeat, or to a commit, with this identity.
    pub fn handle_refusal(&mut self, identity: &(MemberRef, i32), error: GroupError) -> Then {
        if self.identity() != *identity {
            return Then::Proceed;
        }
        match error {
            // It learns so that the others gather; one that gathers with them knows.
            GroupError::RebalanceInProgress if matches!(self.phase, Phase::Preparing | Phase::Syncing) => Then::Proceed,
            error => self.handle_error(error),
        }
    }

    fn handle_error(&mut self, error: GroupError) -> Then {
        match error {
            GroupError::CoordinatorLoadInProgress => Then::BackOff,
            GroupError::NotCoordinator | GroupError::CoordinatorNotAvailable => Then::FindCoordinator,
            GroupError::RebalanceInProgress => {
                self.rejoin();
                Then::Proceed
            }
            // The coordinator could not store the generation.
            GroupError::UnknownServerError => {
                self.rejoin();
                Then::BackOff
            }
            GroupError::IllegalGeneration => {
                self.lose(false);
                Then::Proceed
            }
            GroupError::UnknownMemberId => {
                self.lose(true);
                Then::Proceed
            }
            error => {
                self.generation = -1;
                self.round += 1;
                self.phase = Phase::Failed(error);
                Then::Proceed
            }
        }
    }

    fn lose(&mut self, with_member_id: bool) {
        if with_member_id {
            self.member_id = "".into();
        }
        self.generation = -1;
        self.is_leader = false;
        self.prepare();
    }
}

/// Partitions of `a` that are not in `b`.
pub(super) fn difference(a: &TopicPartitions, b: &TopicPartitions) -> TopicPartitions {
    let left = a.iter().map(|(topic, partitions)| {
        let without = b.get(topic);
        (topic.clone(), partitions.iter().filter(|p| !without.is_some_and(|b| b.contains(p))).copied().collect::<BTreeSet<i32>>())
    });
    full(left.collect())
}

/// Without topics of no partitions.
fn full(mut partitions: TopicPartitions) -> TopicPartitions {
    partitions.retain(|_, numbers| !numbers.is_empty());
    partitions
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
