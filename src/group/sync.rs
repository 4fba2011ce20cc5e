//! SyncGroup, Heartbeat and LeaveGroup.

use crate::request::group::{GroupAnswer, GroupError, Heartbeat, LeaveGroup, Left, MemberRef, State, SyncGroup};
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::classic::ClassicGroup;
use super::message::{Token, Waiter};
use super::outbox::{Held, Outbox, Purpose};
use super::settings::Now;
use super::timers::Timer;

impl ClassicGroup {
    /// A sync: a follower's waits for the assignment, the leader's brings it.
    pub fn sync(&mut self, waiter: Waiter, sync: &SyncGroup, out: &mut Outbox, now: Now) {
        if let Err(error) = self.check_sync(sync) {
            out.refuse_sync(waiter, error);
            return;
        }
        let id: Arc<str> = sync.member.member_id.as_str().into();
        match self.state() {
            State::PreparingRebalance => out.refuse_sync(waiter, GroupError::RebalanceInProgress),
            State::CompletingRebalance => {
                if let Some(older) = self.park_sync(&id, waiter) {
                    out.refuse_sync(older, GroupError::RebalanceInProgress);
                }
                self.has_synced(&id, out);
                // A leader that asks again while its assignment is being stored waits for that one: what is in the log is what members get.
                if self.is_leader(&id) && self.storing.is_none() {
                    self.store_assignment(&sync.assignments, out, now);
                }
            }
            State::Stable => {
                self.has_synced(&id, out);
                let synced = self.synced(&id);
                out.answer(waiter, GroupAnswer::Sync(Ok(synced)));
            }
            State::Empty | State::Dead => out.refuse_sync(waiter, GroupError::UnknownMemberId),
        }
    }

    fn check_sync(&self, sync: &SyncGroup) -> Result<(), GroupError> {
        match self.state() {
            State::Dead => return Err(GroupError::CoordinatorNotAvailable),
            State::Empty => return Err(GroupError::UnknownMemberId),
            _ => {}
        }
        self.check_member(&sync.member)?;
        if sync.generation != self.generation {
            return Err(GroupError::IllegalGeneration);
        }
        let differs = |asked: &Option<String>, own: &Option<Arc<str>>| matches!((asked, own), (Some(asked), Some(own)) if **asked != **own);
        if differs(&sync.protocol_type, &self.protocol_type) || differs(&sync.protocol, &self.protocol) {
            return Err(GroupError::InconsistentGroupProtocol);
        }
        Ok(())
    }

    fn has_synced(&mut self, id: &str, out: &mut Outbox) {
        self.pending_syncs.remove(id);
        if self.pending_syncs.is_empty() {
            out.timers.cancel(&Timer::Sync(self.id.clone()));
        }
    }

    /// Sends the leader's assignment to the log; members that it does not mention get nothing.
    fn store_assignment(&mut self, assignments: &[(String, Bytes)], out: &mut Outbox, now: Now) {
        let by_member: BTreeMap<&str, &Bytes> = assignments.iter().map(|(id, assignment)| (id.as_str(), assignment)).collect();
        // Copied, or each would hold on to the leader's whole request.
        let metadata = self.metadata(|id, _| by_member.get(&**id).map(|a| Bytes::copy_from_slice(a)).unwrap_or_default());
        if metadata.encode().len() > out.settings.max_group_record {
            // As if the log had refused it: the error goes to everybody, and the members join again.
            self.reset_assignments(GroupError::UnknownServerError, out, now);
            self.prepare_rebalance(out, now);
            return;
        }
        let token = self.store(metadata, Purpose::Assignment { group: self.id.clone() }, out);
        self.storing = Some(token);
    }

    /// A heartbeat: a sign of life, and the way in which members learn of a rebalance.
    pub fn heartbeat(&mut self, heartbeat: &Heartbeat, out: &mut Outbox, now: Now) -> Result<(), GroupError> {
        match self.state() {
            State::Dead => return Err(GroupError::CoordinatorNotAvailable),
            State::Empty => return Err(GroupError::UnknownMemberId),
            _ => {}
        }
        self.check_member(&heartbeat.member)?;
        if heartbeat.generation != self.generation {
            return Err(GroupError::IllegalGeneration);
        }
        self.renew_session(&heartbeat.member.member_id, out, now);
        if self.state() == State::PreparingRebalance { Err(GroupError::RebalanceInProgress) } else { Ok(()) }
    }

    /// Members leave. The answer waits if the group is stored as empty.
    pub fn leave(&mut self, waiter: Waiter, leave: &LeaveGroup, out: &mut Outbox, now: Now) {
        if self.state() == State::Dead {
            out.answer(waiter, GroupAnswer::Leave(Err(GroupError::CoordinatorNotAvailable)));
            return;
        }
        let left: Vec<Left> =
            leave.members.iter().map(|member| Left { member: member.clone(), outcome: self.leave_one(member, out) }).collect();
        let mut token = None;
        if left.iter().any(|left| left.outcome.is_ok()) {
            token = self.close_ranks(out, now);
        }
        match token {
            Some(token) => out.hold(token, waiter, Held::Whole(GroupAnswer::Leave(Ok(left)))),
            None => out.answer(waiter, GroupAnswer::Leave(Ok(left))),
        }
    }

    fn leave_one(&mut self, member: &MemberRef, out: &mut Outbox) -> Result<(), GroupError> {
        let by_instance = member.instance_id.as_ref().and_then(|instance| self.static_member(instance)).cloned();
        let id: Arc<str> = match by_instance {
            // An administrator removes a static member: by its instance id alone.
            Some(id) if member.member_id.is_empty() => id,
            _ => member.member_id.as_str().into(),
        };
        if self.pending_joins.remove(&id) {
            out.timers.cancel(&Timer::Session(self.id.clone(), id));
            return Ok(());
        }
        self.check_member(&MemberRef { member_id: id.to_string(), instance_id: member.instance_id.clone() })?;
        self.drop_member(&id, out);
        Ok(())
    }

    /// After members are gone: the others rebalance, or the gathering ends if nobody is missing any more.
    fn close_ranks(&mut self, out: &mut Outbox, now: Now) -> Option<Token> {
        match self.state() {
            State::Stable | State::CompletingRebalance => self.prepare_rebalance(out, now),
            State::PreparingRebalance => self.complete_if_all_joined(out, now),
            State::Empty | State::Dead => None,
        }
    }
}
