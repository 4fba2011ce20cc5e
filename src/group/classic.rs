//! One group of the classic protocol: its members, what they have in common, and the checks of who somebody is.
//!
//! Only the bookkeeping is here; what happens when is in `rebalance`, `join`, `sync` and `leave`.

use crate::request::group::{DescribedGroup, DescribedMember, GroupError, JoinGroup, Joined, MemberMetadata, MemberRef, Protocol, State};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::consumer_protocol::{self, PROTOCOL_TYPE};
use super::member::Member;
use super::message::{Token, Waiter};
use super::positions::Positions;
use super::records::{Change, GroupMetadata};
use super::settings::Now;
use crate::types::Timestamp;

/// How long the first rebalance of an empty group waits (KIP-134).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct InitialWait {
    /// This time, ms.
    pub delay_ms: i32,
    /// At most so much more, ms.
    pub remaining_ms: i32,
    /// Somebody came during this wait: wait again.
    pub is_extended: bool,
}

#[derive(Debug)]
pub(super) struct ClassicGroup {
    pub id: Arc<str>,
    state: State,
    /// When it got into its state.
    state_since: Option<Timestamp>,
    pub generation: i32,
    pub protocol_type: Option<Arc<str>>,
    pub protocol: Option<Arc<str>>,
    pub leader: Option<Arc<str>>,
    members: BTreeMap<Arc<str>, Member>,
    /// Group instance id to member id.
    instances: BTreeMap<Arc<str>, Arc<str>>,
    /// Member ids that were given out and have not joined yet.
    pub pending_joins: BTreeSet<Arc<str>>,
    /// Members of this generation that have not synced yet.
    pub pending_syncs: BTreeSet<Arc<str>>,
    /// How many members offer a protocol.
    offered: BTreeMap<Arc<str>, usize>,
    /// Members whose join waits.
    joins_waiting: usize,
    metadata_bytes: usize,
    /// While the first rebalance of an empty group gathers members.
    pub initial: Option<InitialWait>,
    /// Topics of all members; `None` where that is not known.
    pub subscribed: Option<BTreeSet<String>>,
    /// The append of this generation's assignment, in CompletingRebalance.
    pub storing: Option<Token>,
    /// As the log has it.
    pub stored: Option<Arc<GroupMetadata>>,
    /// Records of the group itself on their way.
    pub records_in_flight: usize,
    pub positions: Positions,
}

impl ClassicGroup {
    pub fn new(id: Arc<str>, now: Timestamp) -> ClassicGroup {
        ClassicGroup {
            id,
            state: State::Empty,
            state_since: Some(now),
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            instances: BTreeMap::new(),
            pending_joins: BTreeSet::new(),
            pending_syncs: BTreeSet::new(),
            offered: BTreeMap::new(),
            joins_waiting: 0,
            metadata_bytes: 0,
            initial: None,
            subscribed: None,
            storing: None,
            stored: None,
            records_in_flight: 0,
            positions: Positions::default(),
        }
    }

    /// Becomes what the log says of it: stable with its members, or empty.
    pub fn activate(&mut self) {
        let Some(stored) = self.stored.clone() else { return };
        self.generation = stored.generation;
        self.protocol_type = (!stored.protocol_type.is_empty()).then(|| stored.protocol_type.clone());
        self.protocol = stored.protocol.clone();
        self.state_since = stored.state_timestamp;
        for member in &stored.members {
            let protocol = stored.protocol.clone().expect("members of a record have a protocol");
            self.insert(member.member_id.clone(), Member::loaded(member, protocol));
        }
        self.leader = stored.leader.clone().filter(|leader| self.members.contains_key(leader));
        self.state = if self.members.is_empty() { State::Empty } else { State::Stable };
        self.subscribed = self.subscription();
    }

    /// A record of the log is in force.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Group { metadata, .. } => self.stored = metadata.clone(),
            Change::Offset { topic, partition, commit, .. } => self.positions.apply(topic, *partition, commit.clone()),
        }
    }

    /// A record that was on its way has arrived or failed.
    pub fn settle(&mut self, change: &Change, is_durable: bool) {
        if is_durable {
            self.apply(change);
        }
        match change {
            Change::Group { .. } => self.records_in_flight = self.records_in_flight.checked_sub(1).expect("every end has its beginning"),
            Change::Offset { topic, partition, .. } => self.positions.end(topic, *partition),
        }
    }

    /// A deletion is over and something is left: all if it failed, or positions.
    pub fn revive(&mut self, now: Now) {
        self.enter(State::Empty, now);
        if self.stored.is_none() {
            let positions = std::mem::take(&mut self.positions);
            *self = ClassicGroup { positions, ..ClassicGroup::new(self.id.clone(), now.wall) };
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn state_since(&self) -> Option<Timestamp> {
        self.state_since
    }

    /// # Panics
    /// When the state can't follow the present one.
    pub fn enter(&mut self, state: State, now: Now) {
        let allowed = match state {
            State::Empty => matches!(self.state, State::PreparingRebalance | State::Dead),
            State::PreparingRebalance => matches!(self.state, State::Empty | State::CompletingRebalance | State::Stable),
            State::CompletingRebalance => self.state == State::PreparingRebalance,
            State::Stable => self.state == State::CompletingRebalance,
            State::Dead => self.state == State::Empty,
        };
        assert!(allowed, "{} does not become {}", self.state.name(), state.name());
        self.state = state;
        self.state_since = Some(now.wall);
    }

    pub fn members(&self) -> &BTreeMap<Arc<str>, Member> {
        &self.members
    }

    /// A member and its id.
    pub fn member(&self, id: &str) -> Option<(&Arc<str>, &Member)> {
        self.members.get_key_value(id)
    }

    pub fn has_member(&self, id: &str) -> bool {
        self.members.contains_key(id)
    }

    /// Member id of a static member.
    pub fn static_member(&self, instance_id: &str) -> Option<&Arc<str>> {
        self.instances.get(instance_id)
    }

    pub fn is_leader(&self, id: &str) -> bool {
        self.leader.as_deref() == Some(id)
    }

    pub fn joins_waiting(&self) -> usize {
        self.joins_waiting
    }

    pub fn metadata_bytes(&self) -> usize {
        self.metadata_bytes
    }

    /// Whether nobody is missing: every member's join waits here, and every id that was given out is in use.
    pub fn all_joined(&self) -> bool {
        self.joins_waiting == self.members.len() && self.pending_joins.is_empty()
    }

    /// The longest of its members', ms.
    pub fn rebalance_timeout_ms(&self) -> i32 {
        self.members.values().map(|member| member.rebalance_timeout_ms).max().unwrap_or(0)
    }

    /// Takes in a member whose join waits.
    pub fn add(&mut self, id: Arc<str>, join: &JoinGroup, waiter: Waiter) {
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type.as_str().into());
        }
        self.pending_joins.remove(&id);
        self.leader.get_or_insert_with(|| id.clone());
        self.insert(id.clone(), Member::new(join));
        self.park_join(&id, waiter);
    }

    fn insert(&mut self, id: Arc<str>, member: Member) {
        if let Some(instance) = &member.instance_id {
            let before = self.instances.insert(instance.clone(), id.clone());
            assert!(before.is_none(), "one member for each instance id");
        }
        self.count(&member, true);
        let before = self.members.insert(id, member);
        assert!(before.is_none(), "one member for each id");
    }

    /// Takes out a member; its waiters come with it, to be answered. A leader's place goes to another member.
    pub fn remove(&mut self, id: &str) -> Option<Member> {
        let member = self.take_out(id)?;
        if self.is_leader(id) {
            self.leader = self.members.keys().next().cloned();
        }
        self.pending_syncs.remove(id);
        Some(member)
    }

    fn take_out(&mut self, id: &str) -> Option<Member> {
        let member = self.members.remove(id)?;
        self.count(&member, false);
        self.joins_waiting -= usize::from(member.join.is_some());
        if let Some(instance) = &member.instance_id {
            self.instances.remove(instance);
        }
        Some(member)
    }

    /// Gives a static member's place to a new id; the old member comes back with its waiters.
    pub fn replace(&mut self, old_id: &str, new_id: &Arc<str>) -> Member {
        let old = self.take_out(old_id).expect("a static member is a member");
        let member = Member { join: None, sync: None, is_new: false, ..old.clone() };
        self.insert(new_id.clone(), member);
        if self.is_leader(old_id) {
            self.leader = Some(new_id.clone());
        }
        if self.pending_syncs.remove(old_id) {
            self.pending_syncs.insert(new_id.clone());
        }
        old
    }

    /// Takes back [`ClassicGroup::replace`].
    pub fn restore(&mut self, new_id: &str, old_id: &Arc<str>, old: Member) -> Option<Member> {
        let replaced = self.take_out(new_id)?;
        self.insert(old_id.clone(), old);
        if self.is_leader(new_id) {
            self.leader = Some(old_id.clone());
        }
        if self.pending_syncs.remove(new_id) {
            self.pending_syncs.insert(old_id.clone());
        }
        Some(replaced)
    }

    /// Takes what a member's new join says.
    pub fn update(&mut self, id: &str, join: &JoinGroup) {
        if let Some((id, mut member)) = self.members.remove_entry(id) {
            self.count(&member, false);
            member.update(join);
            self.count(&member, true);
            self.members.insert(id, member);
        }
    }

    /// A member's join waits; the one before it comes back.
    pub fn park_join(&mut self, id: &str, waiter: Waiter) -> Option<Waiter> {
        let before = self.members.get_mut(id).expect("a member joins").join.replace(waiter);
        self.joins_waiting += usize::from(before.is_none());
        before
    }

    /// A member's join, to be answered.
    pub fn take_join(&mut self, id: &str) -> Option<Waiter> {
        let waiter = self.members.get_mut(id)?.join.take()?;
        self.joins_waiting -= 1;
        Some(waiter)
    }

    /// A member's sync waits; the one before it comes back.
    pub fn park_sync(&mut self, id: &str, waiter: Waiter) -> Option<Waiter> {
        self.members.get_mut(id).expect("a member syncs").sync.replace(waiter)
    }

    /// A member's sync, to be answered.
    pub fn take_sync(&mut self, id: &str) -> Option<Waiter> {
        self.members.get_mut(id)?.sync.take()
    }

    pub fn set_assignment(&mut self, id: &str, assignment: Bytes) {
        if let Some(member) = self.members.get_mut(id) {
            member.assignment = assignment;
        }
    }

    /// A member has been answered a join: it can send heartbeats from now on.
    pub fn acquaint(&mut self, id: &str) {
        if let Some(member) = self.members.get_mut(id) {
            member.is_new = false;
        }
    }

    fn count(&mut self, member: &Member, is_added: bool) {
        for protocol in &member.protocols {
            let offering = self.offered.entry(protocol.name.clone()).or_default();
            *offering = if is_added { *offering + 1 } else { *offering - 1 };
            if *offering == 0 {
                self.offered.remove(&protocol.name);
            }
        }
        let bytes = member.metadata_len();
        self.metadata_bytes = if is_added { self.metadata_bytes + bytes } else { self.metadata_bytes - bytes };
    }

    /// Whether somebody with these protocols can be in this group.
    pub fn supports(&self, protocol_type: &str, protocols: &[Protocol]) -> bool {
        if self.state == State::Empty {
            return !protocol_type.is_empty() && !protocols.is_empty();
        }
        let of_all = |p: &Protocol| self.offered.get(&p.name).copied().unwrap_or(0) == self.members.len();
        self.protocol_type.as_deref() == Some(protocol_type) && protocols.iter().any(of_all)
    }

    /// The protocol of the next generation: of those that all members offer the one that most of them like best; of equals the first by name.
    ///
    /// # Panics
    /// When there is none: nobody gets in who has none in common with the others.
    pub fn select_protocol(&self) -> Arc<str> {
        let is_candidate = |p: &&Protocol| self.offered.get(&p.name).copied() == Some(self.members.len());
        let mut votes: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        for member in self.members.values() {
            let vote = member.protocols.iter().find(is_candidate).expect("a protocol in common");
            *votes.entry(&vote.name).or_default() += 1;
        }
        let most = votes.values().copied().max().unwrap_or(0);
        let (name, _) = votes.into_iter().find(|(_, count)| *count == most).expect("a group with members votes");
        name.clone()
    }

    /// Makes sure that the leader's join is here: else one whose join is takes its place. Whether there is such a leader.
    pub fn elect_leader(&mut self) -> bool {
        let waits = |id: &str| self.members.get(id).is_some_and(|member| member.join.is_some());
        match &self.leader {
            None => false,
            Some(leader) if waits(leader) => true,
            Some(_) => match self.members.iter().find(|(_, member)| member.join.is_some()) {
                Some((id, _)) => {
                    self.leader = Some(id.clone());
                    true
                }
                None => false,
            },
        }
    }

    /// The next generation's number.
    pub fn next_generation(&self) -> i32 {
        // -1 means none: after the last number it begins again.
        self.generation.checked_add(1).unwrap_or(1)
    }

    /// Whether somebody is the member that it says it is.
    pub fn check_member(&self, who: &MemberRef) -> Result<(), GroupError> {
        if let Some(instance) = &who.instance_id {
            match self.instances.get(instance.as_str()) {
                None => return Err(GroupError::UnknownMemberId),
                Some(id) if **id != *who.member_id => return Err(GroupError::FencedInstanceId),
                Some(_) => {}
            }
        }
        if self.has_member(&who.member_id) { Ok(()) } else { Err(GroupError::UnknownMemberId) }
    }

    /// Whether the members are consumers, whose subscriptions can be read.
    pub fn is_of_consumers(&self) -> bool {
        self.protocol_type.as_deref() == Some(PROTOCOL_TYPE)
    }

    /// Topics of all members; `None` where they can't be known.
    pub fn subscription(&self) -> Option<BTreeSet<String>> {
        if !self.is_of_consumers() {
            return None;
        }
        let Some(protocol) = &self.protocol else { return self.members.is_empty().then(BTreeSet::new) };
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            topics.extend(consumer_protocol::topics(&member.metadata(protocol)).ok()?);
        }
        Some(topics)
    }

    /// Whether positions of a topic must stay; of consumers whose subscriptions do not read all must.
    pub fn subscribes_to(&self, topic: &str) -> bool {
        self.subscribed.as_ref().map_or(self.is_of_consumers(), |topics| topics.contains(topic))
    }

    /// Nothing is known of it that would be missed: no member, no position, no record.
    pub fn is_nothing(&self) -> bool {
        let is_at_rest = matches!(self.state, State::Empty | State::Dead);
        is_at_rest
            && self.stored.is_none()
            && self.records_in_flight == 0
            && self.members.is_empty()
            && self.pending_joins.is_empty()
            && self.positions.is_empty()
    }

    /// As it is to be stored, with these assignments.
    pub fn metadata(&self, mut assignment: impl FnMut(&Arc<str>, &Member) -> Bytes) -> GroupMetadata {
        let protocol = self.protocol.clone().unwrap_or_default();
        GroupMetadata {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            state_timestamp: self.state_since,
            members: self.members.iter().map(|(id, member)| member.stored(id, &protocol, assignment(id, member))).collect(),
        }
    }

    /// The answer to a join of this generation.
    pub fn joined(&self, member_id: &Arc<str>) -> Joined {
        let members = if self.is_leader(member_id) { self.member_metadata() } else { Vec::new() };
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            member_id: member_id.clone(),
            skip_assignment: false,
            members,
        }
    }

    /// What a leader assigns by.
    pub fn member_metadata(&self) -> Vec<MemberMetadata> {
        let protocol = self.protocol.clone().unwrap_or_default();
        let of = |(id, member): (&Arc<str>, &Member)| MemberMetadata {
            member_id: id.clone(),
            instance_id: member.instance_id.clone(),
            metadata: member.metadata(&protocol),
        };
        self.members.iter().map(of).collect()
    }

    pub fn describe(&self) -> DescribedGroup {
        let is_stable = self.state == State::Stable;
        let protocol = self.protocol.clone().filter(|_| is_stable).unwrap_or_default();
        let of = |(id, member): (&Arc<str>, &Member)| DescribedMember {
            member_id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: if is_stable { member.metadata(&protocol) } else { Bytes::new() },
            assignment: member.assignment.clone(),
        };
        DescribedGroup {
            group: self.id.clone(),
            state: self.state,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            members: self.members.iter().map(of).collect(),
            protocol,
        }
    }

    /// That the counts are those of the members; of a test.
    #[cfg(test)]
    pub fn check(&self) {
        assert_eq!(self.joins_waiting, self.members.values().filter(|m| m.join.is_some()).count());
        assert_eq!(self.metadata_bytes, self.members.values().map(Member::metadata_len).sum::<usize>());
        assert_eq!(self.instances.len(), self.members.values().filter(|m| m.is_static()).count());
        assert!(self.instances.iter().all(|(instance, id)| self.members[id].instance_id.as_ref() == Some(instance)));
        for (name, count) in &self.offered {
            assert_eq!(*count, self.members.values().filter(|m| m.protocols.iter().any(|p| p.name == *name)).count());
        }
        assert!(self.pending_syncs.iter().all(|id| self.members.contains_key(id)), "who is to sync is a member");
        assert!(self.pending_joins.iter().all(|id| !self.members.contains_key(id)), "who is pending is no member");
        assert_eq!(self.leader.is_none(), self.members.is_empty(), "a group with members has a leader");
        assert!(self.leader.iter().all(|id| self.members.contains_key(id)), "the leader is a member");
        if matches!(self.state, State::Empty | State::Dead) {
            assert!(self.members.is_empty());
        }
        if self.state != State::CompletingRebalance {
            assert_eq!(self.storing, None);
            assert!(self.members.values().all(|m| m.sync.is_none()), "syncs wait in CompletingRebalance only");
        }
    }
}
