//! JoinGroup.

use crate::request::group::{GroupAnswer, GroupError, JoinGroup, MemberRef, State};
use std::collections::BTreeSet;
use std::sync::Arc;

use super::classic::ClassicGroup;
use super::consumer_protocol;
use super::member::Member;
use super::message::Waiter;
use super::outbox::{Outbox, Purpose, Replacement};
use super::settings::{Now, Settings};
use super::timers::Timer;
use crate::limits;

impl JoinGroup {
    /// What can be said of a join without its group.
    pub(super) fn check(&self, settings: &Settings) -> Result<(), GroupError> {
        if self.group.is_empty() || self.group.len() > limits::MAX_GROUP_ID {
            return Err(GroupError::InvalidGroupId);
        }
        if !(settings.min_session_timeout_ms..=settings.max_session_timeout_ms).contains(&self.session_timeout_ms) {
            return Err(GroupError::InvalidSessionTimeout);
        }
        let strings = [&self.client_id, &self.client_host, &self.protocol_type].into_iter().chain(&self.instance_id).map(String::len);
        let names = self.protocols.iter().map(|p| p.name.len());
        if strings.chain(names).any(|len| len > limits::MAX_GROUP_STRING) || self.protocols.len() > limits::MAX_MEMBER_PROTOCOLS {
            return Err(GroupError::InvalidRequest);
        }
        if self.protocols.iter().map(|p| &p.name).collect::<BTreeSet<_>>().len() < self.protocols.len() {
            return Err(GroupError::InconsistentGroupProtocol);
        }
        if self.protocols.iter().map(|p| p.metadata.len()).sum::<usize>() > limits::MAX_MEMBER_METADATA {
            return Err(GroupError::MessageTooLarge);
        }
        Ok(())
    }

    /// The id of a new member: as in Kafka the client's name, or its instance's, and a UUID.
    fn new_member_id(&self) -> Arc<str> {
        let uuid = uuid::Builder::from_random_bytes(self.entropy).into_uuid();
        format!("{}-{uuid}", self.instance_id.as_ref().unwrap_or(&self.client_id)).into()
    }
}

impl ClassicGroup {
    /// A join to this group; its own checks have been passed.
    pub fn join(&mut self, waiter: Waiter, join: &JoinGroup, out: &mut Outbox, now: Now) {
        if !self.has_room(join, out.settings.max_members) {
            self.drop_member(&join.member_id, out);
            out.refuse_join(waiter, GroupError::GroupMaxSizeReached, "");
            // It may have been the one that the others waited for.
            self.complete_if_all_joined(out, now);
            return;
        }
        if let Err(error) = self.admit(waiter, join, out, now) {
            out.refuse_join(waiter, error, join.member_id.as_str());
        }
    }

    fn admit(&mut self, waiter: Waiter, join: &JoinGroup, out: &mut Outbox, now: Now) -> Result<(), GroupError> {
        if self.state() == State::Dead {
            return Err(GroupError::CoordinatorNotAvailable);
        }
        if !self.supports(&join.protocol_type, &join.protocols) {
            return Err(GroupError::InconsistentGroupProtocol);
        }
        if self.metadata_after(join) > out.settings.max_group_metadata {
            return Err(GroupError::MessageTooLarge);
        }
        if join.member_id.is_empty() { self.join_new(waiter, join, out, now) } else { self.join_known(waiter, join, out, now) }
    }

    /// Whether there is a place. While joins are gathered it is the joins that count: who comes last of too many loses its place (KIP-389).
    fn has_room(&self, join: &JoinGroup, max_members: usize) -> bool {
        let member = self.member(self.place_of(join));
        match self.state() {
            State::Empty | State::Dead => true,
            State::PreparingRebalance => member.is_some_and(|(_, m)| m.join.is_some()) || self.joins_waiting() < max_members,
            State::CompletingRebalance | State::Stable => member.is_some() || self.members().len() < max_members,
        }
    }

    /// The id of the member whose place a join is for: a static member has one by its instance id.
    fn place_of<'a>(&'a self, join: &'a JoinGroup) -> &'a str {
        join.instance_id.as_ref().and_then(|instance| self.static_member(instance)).map_or(join.member_id.as_str(), |id| id)
    }

    fn metadata_after(&self, join: &JoinGroup) -> usize {
        let before = self.member(self.place_of(join)).map_or(0, |(_, member)| member.metadata_len());
        self.metadata_bytes() - before + join.protocols.iter().map(|p| p.metadata.len()).sum::<usize>()
    }

    fn join_new(&mut self, waiter: Waiter, join: &JoinGroup, out: &mut Outbox, now: Now) -> Result<(), GroupError> {
        let new_id = join.new_member_id();
        if self.has_member(&new_id) || self.pending_joins.contains(&new_id) {
            // Entropy that repeats itself: the next try has other bytes.
            return Err(GroupError::CoordinatorNotAvailable);
        }
        if let Some(instance) = &join.instance_id {
            match self.static_member(instance).cloned() {
                Some(old_id) => self.replace_static(waiter, join, &old_id, new_id, out, now),
                None => self.add_member(waiter, join, new_id, out, now),
            }
            return Ok(());
        }
        if !join.needs_member_id {
            self.add_member(waiter, join, new_id, out, now);
            return Ok(());
        }
        if self.pending_joins.len() >= out.settings.max_pending_members {
            return Err(GroupError::CoordinatorNotAvailable);
        }
        self.pending_joins.insert(new_id.clone());
        out.timers.set(Timer::Session(self.id.clone(), new_id.clone()), now.after(join.session_timeout_ms));
        out.refuse_join(waiter, GroupError::MemberIdRequired, new_id);
        Ok(())
    }

    fn join_known(&mut self, waiter: Waiter, join: &JoinGroup, out: &mut Outbox, now: Now) -> Result<(), GroupError> {
        if let Some(id) = self.pending_joins.get(join.member_id.as_str()).cloned() {
            if join.instance_id.is_some() {
                // Ids are given out in advance to dynamic members only.
                return Err(GroupError::InvalidRequest);
            }
            self.add_member(waiter, join, id, out, now);
            return Ok(());
        }
        self.check_member(&MemberRef { member_id: join.member_id.clone(), instance_id: join.instance_id.clone() })?;
        let (id, member) = self.member(&join.member_id).ok_or(GroupError::UnknownMemberId)?;
        // As Kafka compares them: names, metadata and their order.
        let (id, is_same) = (id.clone(), member.protocols == join.protocols);
        match self.state() {
            State::CompletingRebalance if is_same => {
                // It has missed the answer to its join.
                out.answer(waiter, GroupAnswer::Join(Ok(self.joined(&id))));
            }
            State::Stable if is_same && !self.is_leader(&id) => {
                // Nothing new: it may sync and gets what it had. (A leader that joins again wants a rebalance.)
                out.answer(waiter, GroupAnswer::Join(Ok(self.joined(&id))));
            }
            State::PreparingRebalance | State::CompletingRebalance | State::Stable => {
                self.update(&id, join);
                self.wait_for_generation(&id, waiter, out);
                self.rebalance(out, now);
            }
            State::Empty | State::Dead => return Err(GroupError::UnknownMemberId),
        }
        Ok(())
    }

    fn add_member(&mut self, waiter: Waiter, join: &JoinGroup, id: Arc<str>, out: &mut Outbox, now: Now) {
        if let Some(wait) = &mut self.initial {
            wait.is_extended = true;
        }
        self.add(id.clone(), join, waiter);
        // It can't send heartbeats before it is answered, and a client that has given up may come again as another member: joins end too.
        out.timers.set(Timer::Session(self.id.clone(), id), now.after(out.settings.new_member_timeout_ms));
        self.rebalance(out, now);
    }

    /// Parks a join; the member's older one is told to try again.
    fn wait_for_generation(&mut self, id: &Arc<str>, waiter: Waiter, out: &mut Outbox) {
        if let Some(older) = self.park_join(id, waiter) {
            out.refuse_join(older, GroupError::RebalanceInProgress, id.clone());
        }
    }

    /// A static member has come back and takes its old place (KIP-345).
    fn replace_static(&mut self, waiter: Waiter, join: &JoinGroup, old_id: &Arc<str>, new_id: Arc<str>, out: &mut Outbox, now: Now) {
        let old_leader = self.leader.clone();
        let old = self.replace(old_id, &new_id);
        out.timers.cancel(&Timer::Session(self.id.clone(), old_id.clone()));
        if let Some(older) = old.join {
            out.refuse_join(older, GroupError::FencedInstanceId, old_id.clone());
        }
        if let Some(older) = old.sync {
            out.refuse_sync(older, GroupError::FencedInstanceId);
        }
        self.update(&new_id, join);
        self.renew_session(&new_id, out, now);
        match self.state() {
            State::Stable if !self.must_rebalance_for(&old, &new_id) => {
                self.park_join(&new_id, waiter);
                let metadata = self.metadata(|_, member| member.assignment.clone());
                let replacement = Replacement {
                    group: self.id.clone(),
                    generation: self.generation,
                    old_id: old_id.clone(),
                    new_id,
                    old: Member { join: None, sync: None, ..old },
                    old_leader,
                    can_skip_assignment: join.can_skip_assignment,
                };
                self.store(metadata, Purpose::Replacement(Box::new(replacement)), out);
            }
            State::CompletingRebalance => {
                // The leader may know the old id only: its assignment would leave the new one out.
                self.park_join(&new_id, waiter);
                self.prepare_rebalance(out, now);
            }
            State::PreparingRebalance => {
                self.park_join(&new_id, waiter);
                self.complete_if_all_joined(out, now);
            }
            State::Stable | State::Empty | State::Dead => {
                self.park_join(&new_id, waiter);
                self.rebalance(out, now);
            }
        }
    }

    /// Whether the group's assignment does not suit a static member that came back: another protocol would be chosen, it wants other topics, or others wait for
    /// what it was to give up.
    ///
    /// Of its new subscription only the topics count: what a cooperative consumer holds is gone whenever it restarts, and restarts are what static members are for.
    fn must_rebalance_for(&self, old: &Member, new_id: &str) -> bool {
        let Some(protocol) = &self.protocol else { return true };
        if self.select_protocol() != *protocol {
            return true;
        }
        let topics = |metadata: &[u8]| consumer_protocol::topics(metadata).ok().map(BTreeSet::from_iter);
        let (before, new) = (old.metadata(protocol), self.member(new_id).map(|(_, member)| member.metadata(protocol)).unwrap_or_default());
        self.is_of_consumers() && (topics(&before) != topics(&new) || consumer_protocol::gives_up(&before, &old.assignment))
    }

    /// The replacement of a static member is durable: it may go on where it was, unless a rebalance has begun that answers it.
    pub fn handle_replacement_stored(&mut self, replacement: &Replacement, out: &mut Outbox, now: Now) {
        if !self.is_as_replaced(replacement) {
            return;
        }
        let Some(waiter) = self.take_join(&replacement.new_id) else { return };
        let mut joined = self.joined(&replacement.new_id);
        let is_leader = self.is_leader(&replacement.new_id);
        joined.skip_assignment = is_leader && replacement.can_skip_assignment;
        if is_leader && !replacement.can_skip_assignment {
            // A client that does not know of skipping would assign anew, for a generation that goes on: it is told that another one leads, as it was.
            joined.members = Vec::new();
            joined.leader = replacement.old_leader.clone().unwrap_or_default();
        }
        out.answer(waiter, GroupAnswer::Join(Ok(joined)));
        // Its session may have ended while it waited, which was overlooked.
        self.renew_session(&replacement.new_id, out, now);
    }

    /// The log did not take the replacement: the old id is in force again, unless a later record that has the new one is on its way.
    pub fn handle_replacement_lost(&mut self, replacement: Replacement, error: GroupError, out: &mut Outbox, now: Now) {
        if !self.is_as_replaced(&replacement) {
            return;
        }
        if self.records_in_flight > 0 {
            // With the old id here and the new one in the log a restart would fence the member that lives. The new one comes again after this error.
            if let Some(waiter) = self.take_join(&replacement.new_id) {
                out.refuse_join(waiter, error, "");
            }
            self.renew_session(&replacement.new_id, out, now);
            return;
        }
        let Some(new) = self.restore(&replacement.new_id, &replacement.old_id, replacement.old) else { return };
        out.timers.cancel(&Timer::Session(self.id.clone(), replacement.new_id));
        self.renew_session(&replacement.old_id, out, now);
        if let Some(waiter) = new.join {
            out.refuse_join(waiter, error, "");
        }
    }

    fn is_as_replaced(&self, replacement: &Replacement) -> bool {
        self.state() == State::Stable && self.generation == replacement.generation && self.has_member(&replacement.new_id)
    }
}
