//! Rebalances: when joins are gathered, when a generation begins, who is dropped.
//!
//! After Kafka's `GroupMetadataManager` (classic groups). A function that may end in an append gives its token back, so that an answer can wait for it.

use crate::request::group::{GroupAnswer, GroupError, State, Synced};
use std::sync::Arc;

use bytes::Bytes;

use super::classic::{ClassicGroup, InitialWait};
use super::message::Token;
use super::outbox::{Outbox, Purpose};
use super::records::Change;
use super::settings::Now;
use super::timers::Timer;
use crate::limits;

impl ClassicGroup {
    /// Something has changed: begins a rebalance, or ends the gathering of the present one if nobody is missing.
    pub fn rebalance(&mut self, out: &mut Outbox, now: Now) -> Option<Token> {
        match self.state() {
            State::Empty | State::CompletingRebalance | State::Stable => self.prepare_rebalance(out, now),
            State::PreparingRebalance => self.complete_if_all_joined(out, now),
            State::Dead => None,
        }
    }

    /// Begins to gather joins.
    pub fn prepare_rebalance(&mut self, out: &mut Outbox, now: Now) -> Option<Token> {
        if self.state() == State::CompletingRebalance {
            // An assignment on its way to the log belongs to a generation that ends here.
            self.reset_assignments(GroupError::RebalanceInProgress, out, now);
        }
        self.pending_syncs.clear();
        self.storing = None;
        out.timers.cancel(&Timer::Sync(self.id.clone()));
        let is_initial = self.state() == State::Empty;
        self.enter(State::PreparingRebalance, now);
        if is_initial {
            let delay_ms = out.settings.initial_rebalance_delay_ms;
            let remaining_ms = self.rebalance_timeout_ms().saturating_sub(delay_ms).max(0);
            self.initial = Some(InitialWait { delay_ms, remaining_ms, is_extended: false });
            out.timers.set(Timer::Join(self.id.clone()), now.after(delay_ms));
            return None;
        }
        if self.all_joined() {
            return self.complete_join(out, now);
        }
        out.timers.set(Timer::Join(self.id.clone()), now.after(self.rebalance_timeout_ms()));
        None
    }

    /// Ends the gathering if nobody is missing; the first one of an empty group goes on for its time all the same.
    pub fn complete_if_all_joined(&mut self, out: &mut Outbox, now: Now) -> Option<Token> {
        let is_complete = self.state() == State::PreparingRebalance && self.initial.is_none() && self.all_joined();
        if is_complete { self.complete_join(out, now) } else { None }
    }

    /// The gathering's time is over, or the first part of an empty group's.
    pub fn handle_join_timer(&mut self, out: &mut Outbox, now: Now) {
        if self.state() != State::PreparingRebalance {
            return;
        }
        if let Some(wait) = self.initial.filter(|wait| wait.is_extended && wait.remaining_ms > 0) {
            let delay_ms = out.settings.initial_rebalance_delay_ms.min(wait.remaining_ms);
            let remaining_ms = (wait.remaining_ms - wait.delay_ms).max(0);
            self.initial = Some(InitialWait { delay_ms, remaining_ms, is_extended: false });
            out.timers.set(Timer::Join(self.id.clone()), now.after(delay_ms));
            return;
        }
        self.complete_join(out, now);
    }

    /// Ends the gathering: who has not joined is dropped (static members stay until their session ends), and a generation begins.
    fn complete_join(&mut self, out: &mut Outbox, now: Now) -> Option<Token> {
        out.timers.cancel(&Timer::Join(self.id.clone()));
        self.initial = None;
        let missing: Vec<Arc<str>> =
            self.members().iter().filter(|(_, m)| m.join.is_none() && !m.is_static()).map(|(id, _)| id.clone()).collect();
        for id in missing {
            self.drop_member(&id, out);
        }
        if !self.elect_leader() && !self.members().is_empty() {
            // Static members only, and none of them has come back: wait until one does or their sessions end.
            out.timers.set(Timer::Join(self.id.clone()), now.after(self.rebalance_timeout_ms().max(limits::GROUP_LEAST_WAIT_MS)));
            return None;
        }
        self.begin_generation(out, now)
    }

    fn begin_generation(&mut self, out: &mut Outbox, now: Now) -> Option<Token> {
        self.generation = self.next_generation();
        #[cfg(test)]
        if out.has_frozen_generations {
            self.generation = 1;
        }
        if self.members().is_empty() {
            self.protocol = None;
            self.subscribed = self.subscription();
            self.enter(State::Empty, now);
            return Some(self.store_empty(out));
        }
        self.protocol = Some(self.select_protocol());
        self.subscribed = self.subscription();
        self.enter(State::CompletingRebalance, now);
        let ids: Vec<Arc<str>> = self.members().keys().cloned().collect();
        for id in ids {
            if let Some(waiter) = self.take_join(&id) {
                out.answer(waiter, GroupAnswer::Join(Ok(self.joined(&id))));
            }
            self.acquaint(&id);
            self.renew_session(&id, out, now);
            self.pending_syncs.insert(id);
        }
        out.timers.set(Timer::Sync(self.id.clone()), now.after(self.rebalance_timeout_ms()));
        None
    }

    /// Stores that the group is empty. If the log does not take it, the generation before comes back with the next start and its members' sessions end.
    fn store_empty(&mut self, out: &mut Outbox) -> Token {
        let metadata = self.metadata(|_, member| member.assignment.clone());
        self.store(metadata, Purpose::Changes, out)
    }

    pub fn store(&mut self, metadata: super::records::GroupMetadata, purpose: Purpose, out: &mut Outbox) -> Token {
        self.records_in_flight += 1;
        out.append(vec![Change::Group { group: self.id.clone(), metadata: Some(Arc::new(metadata)) }], purpose)
    }

    /// Members of this generation that have not synced in time are dropped.
    pub fn handle_sync_timer(&mut self, out: &mut Outbox, now: Now) {
        let is_running = matches!(self.state(), State::CompletingRebalance | State::Stable);
        if !is_running || self.pending_syncs.is_empty() {
            return;
        }
        for id in self.pending_syncs.clone() {
            self.drop_member(&id, out);
        }
        self.prepare_rebalance(out, now);
    }

    /// The leader's assignment is durable: everybody who waits gets a part.
    pub fn handle_assignment_stored(&mut self, token: Token, out: &mut Outbox, now: Now) {
        if self.storing != Some(token) {
            // Of a generation that is over: what is in the log now is what a restart would begin with, and its members join again.
            return;
        }
        let stored = self.stored.clone().expect("applied before");
        for member in &stored.members {
            self.set_assignment(&member.member_id, member.assignment.clone());
        }
        self.storing = None;
        self.enter(State::Stable, now);
        let ids: Vec<Arc<str>> = self.members().keys().cloned().collect();
        for id in ids {
            if let Some(waiter) = self.take_sync(&id) {
                out.answer(waiter, GroupAnswer::Sync(Ok(self.synced(&id))));
                // Its session may have ended while it waited, which was overlooked.
                self.renew_session(&id, out, now);
            }
        }
    }

    /// The log did not take the assignment: everybody is told, and joins again.
    pub fn handle_assignment_lost(&mut self, token: Token, error: GroupError, out: &mut Outbox, now: Now) {
        if self.storing == Some(token) {
            self.storing = None;
            self.reset_assignments(error, out, now);
            self.prepare_rebalance(out, now);
        }
    }

    /// No assignment for anybody; who waits for one gets the error.
    pub fn reset_assignments(&mut self, error: GroupError, out: &mut Outbox, now: Now) {
        let ids: Vec<Arc<str>> = self.members().keys().cloned().collect();
        for id in ids {
            self.set_assignment(&id, Bytes::new());
            if let Some(waiter) = self.take_sync(&id) {
                out.refuse_sync(waiter, error);
                self.renew_session(&id, out, now);
            }
        }
    }

    pub fn synced(&self, id: &str) -> Synced {
        let assignment = self.member(id).map(|(_, member)| member.assignment.clone()).unwrap_or_default();
        Synced { protocol_type: self.protocol_type.clone(), protocol: self.protocol.clone(), assignment }
    }

    /// A sign of life.
    pub fn renew_session(&self, id: &str, out: &mut Outbox, now: Now) {
        if let Some((id, member)) = self.member(id) {
            out.timers.set(Timer::Session(self.id.clone(), id.clone()), now.after(member.session_timeout_ms));
        }
    }

    /// A member, or an id that was given out, has shown no sign of life for too long.
    pub fn handle_session_timer(&mut self, id: &str, out: &mut Outbox, now: Now) {
        if self.pending_joins.remove(id) {
            // A gathering may have waited for it alone, the first one of an empty group included if others have come.
            if self.state() == State::PreparingRebalance && self.all_joined() {
                self.complete_join(out, now);
            }
            return;
        }
        let Some((_, member)) = self.member(id) else { return };
        if member.is_excused() {
            return;
        }
        self.drop_member(id, out);
        match self.state() {
            State::Stable | State::CompletingRebalance => _ = self.prepare_rebalance(out, now),
            State::PreparingRebalance if self.all_joined() => _ = self.complete_join(out, now),
            _ => {}
        }
    }

    /// Takes a member out. A request of it that waits is told that it is no member any more: a client that is still there joins again.
    pub fn drop_member(&mut self, id: &str, out: &mut Outbox) {
        let Some(member) = self.remove(id) else { return };
        out.timers.cancel(&Timer::Session(self.id.clone(), id.into()));
        if let Some(waiter) = member.join {
            out.refuse_join(waiter, GroupError::UnknownMemberId, "");
        }
        if let Some(waiter) = member.sync {
            out.refuse_sync(waiter, GroupError::UnknownMemberId);
        }
        if self.pending_syncs.is_empty() {
            out.timers.cancel(&Timer::Sync(self.id.clone()));
        }
    }

    /// Stops every timer of the group.
    pub fn cancel_timers(&self, out: &mut Outbox) {
        for id in self.members().keys().chain(&self.pending_joins) {
            out.timers.cancel(&Timer::Session(self.id.clone(), id.clone()));
        }
        out.timers.cancel(&Timer::Join(self.id.clone()));
        out.timers.cancel(&Timer::Sync(self.id.clone()));
    }
}
