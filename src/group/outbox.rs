//! What a coordinator has to say and what it waits for: effects, appends that are on their way, timers.

use crate::request::group::{GroupAnswer, GroupError, JoinRefused};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::error::AppendFailure;
use super::member::Member;
use super::message::{Effect, Token, Waiter};
use super::records::Change;
use super::settings::Settings;
use super::timers::Timers;

/// An append that is on its way.
#[derive(Debug)]
pub(super) struct InFlight {
    pub token: Token,
    /// What the records say: in force when they are durable.
    pub changes: Vec<Change>,
    pub purpose: Purpose,
    /// Answers that rely on the records.
    pub held: Vec<(Waiter, Held)>,
}

/// An answer that relies on an append.
#[derive(Debug)]
pub(super) enum Held {
    /// Of its own.
    Whole(GroupAnswer),
    /// A part of a deletion of several groups.
    Deletion(Arc<str>),
}

/// What else happens when an append is durable or has failed.
#[derive(Debug)]
pub(super) enum Purpose {
    /// Nothing.
    Changes,
    /// The leader's assignment of a generation.
    Assignment { group: Arc<str> },
    /// A static member came back with a new id and the group stays stable.
    Replacement(Box<Replacement>),
    /// A group is deleted; comes with its tombstone.
    Removal { group: Arc<str> },
}

/// How to take back the replacement of a static member.
#[derive(Debug)]
pub(super) struct Replacement {
    pub group: Arc<str>,
    pub generation: i32,
    pub old_id: Arc<str>,
    pub new_id: Arc<str>,
    /// The old member as it was, without waiters.
    pub old: Member,
    /// Whom a leader that can't skip an assignment is told to be led by.
    pub old_leader: Option<Arc<str>>,
    pub can_skip_assignment: bool,
}

/// A deletion of several groups: answered when the last is over.
#[derive(Debug)]
pub(super) struct Deletion {
    pub outcomes: Vec<(String, Option<Result<(), GroupError>>)>,
}

#[derive(Debug)]
pub(super) struct Outbox {
    pub settings: Settings,
    pub timers: Timers,
    pub effects: VecDeque<Effect>,
    pub in_flight: VecDeque<InFlight>,
    pub deletions: BTreeMap<Waiter, Deletion>,
    next_token: u64,
    /// A planted bug of the simulation.
    #[cfg(test)]
    pub has_frozen_generations: bool,
}

impl Outbox {
    pub fn new(settings: Settings) -> Outbox {
        Outbox {
            settings,
            timers: Timers::default(),
            effects: VecDeque::new(),
            in_flight: VecDeque::new(),
            deletions: BTreeMap::new(),
            next_token: 1,
            #[cfg(test)]
            has_frozen_generations: false,
        }
    }

    pub fn answer(&mut self, waiter: Waiter, answer: GroupAnswer) {
        self.effects.push_back(Effect::Answer { waiter, answer });
    }

    pub fn refuse_join(&mut self, waiter: Waiter, error: GroupError, member_id: impl Into<Arc<str>>) {
        self.answer(waiter, GroupAnswer::Join(Err(JoinRefused { error, member_id: member_id.into() })));
    }

    pub fn refuse_sync(&mut self, waiter: Waiter, error: GroupError) {
        self.answer(waiter, GroupAnswer::Sync(Err(error)));
    }

    /// Sends changes to the log.
    pub fn append(&mut self, changes: Vec<Change>, purpose: Purpose) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        self.effects.push_back(Effect::Append { token, records: changes.iter().map(Change::encode).collect() });
        self.in_flight.push_back(InFlight { token, changes, purpose, held: Vec::new() });
        token
    }

    /// Gives an answer when the append is durable.
    ///
    /// # Panics
    /// When the append is not on its way: its caller has just sent it.
    pub fn hold(&mut self, token: Token, waiter: Waiter, held: Held) {
        let append = self.in_flight.iter_mut().rfind(|append| append.token == token).expect("an append that was just sent");
        append.held.push((waiter, held));
    }

    /// Gives the answers that an append has held back.
    pub fn release(&mut self, held: Vec<(Waiter, Held)>, outcome: Result<(), AppendFailure>) {
        for (waiter, held) in held {
            match (held, outcome) {
                (Held::Whole(answer), Ok(())) => self.answer(waiter, answer),
                (Held::Whole(answer), Err(failure)) => self.answer(waiter, answer.failed(failure.of_group(), failure.of_commit())),
                (Held::Deletion(group), outcome) => self.settle_deletion(waiter, &group, outcome.map_err(AppendFailure::of_group)),
            }
        }
    }

    /// One group of a deletion is over; the answer goes when all are.
    pub fn settle_deletion(&mut self, waiter: Waiter, group: &str, outcome: Result<(), GroupError>) {
        let Some(deletion) = self.deletions.get_mut(&waiter) else { return };
        for (_, settled) in deletion.outcomes.iter_mut().filter(|(id, settled)| id == group && settled.is_none()) {
            *settled = Some(outcome);
        }
        if deletion.outcomes.iter().all(|(_, settled)| settled.is_some()) {
            let deletion = self.deletions.remove(&waiter).expect("found above");
            let outcomes = deletion.outcomes.into_iter().filter_map(|(id, settled)| Some((id, settled?))).collect();
            self.answer(waiter, GroupAnswer::DeleteGroups(outcomes));
        }
    }
}
