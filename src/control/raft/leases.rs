//! What the leader knows of who lives. Pure: the time is an argument, and it is the leader's clock alone that counts.
//!
//! A node's lease at its own side is shorter and counts from when it *sent* the heartbeat, so it ends before the leader can call the node silent. While a node is
//! being fenced its heartbeats are not confirmed: a confirmation on the way beside the fence would make it believe in a lease that it has lost.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::ConsensusId;

/// Of one leadership.
#[derive(Debug, Default)]
pub struct Leases {
    /// The term, and when it was seen to begin.
    leads: Option<(u64, Instant)>,
    heard: HashMap<ConsensusId, Instant>,
    fencing: HashSet<u32>,
    /// Lives that were told that they live: they have a lease, and the next answer can wait.
    told: HashSet<ConsensusId>,
    /// Lives whose process has ended, as was seen since this leadership began or the one before ended.
    gone: HashSet<ConsensusId>,
    /// Lives whose port is being asked.
    suspected: HashSet<ConsensusId>,
}

impl Leases {
    /// This node leads in a term, or does not. A new leader gives every node the whole time: it can't know when they were heard last, nor whether a process that had ended has come back, since
    /// that greets the leader alone. Whoever has really ended is found so again, within moments.
    pub fn set_leadership(&mut self, term: Option<u64>, now: Instant) {
        if term != self.leads.map(|(term, _)| term) {
            let suspected = std::mem::take(&mut self.suspected);
            *self = Leases { leads: term.map(|term| (term, now)), suspected, ..Leases::default() };
        }
    }

    /// The term that this node leads in.
    pub fn term(&self) -> Option<u64> {
        self.leads.map(|(term, _)| term)
    }

    /// A node was heard.
    pub fn hear(&mut self, id: ConsensusId, now: Instant) {
        self.heard.insert(id, now);
        self.gone.remove(&id);
    }

    /// Whether a life's port is to be asked: not while that is done already.
    pub fn begin_suspicion(&mut self, id: ConsensusId) -> bool {
        self.suspected.insert(id)
    }

    /// It was asked.
    pub fn end_suspicion(&mut self, id: ConsensusId) {
        self.suspected.remove(&id);
    }

    /// A process greets: it lives, and may have just come back, without a lease.
    pub fn hear_greeting(&mut self, id: ConsensusId, now: Instant) {
        self.hear(id, now);
        self.told.remove(&id);
    }

    /// What a node was told: that it lives, or that it does not.
    pub fn note_told(&mut self, id: ConsensusId, lives: bool) {
        if lives {
            self.told.insert(id);
        } else {
            self.told.remove(&id);
        }
    }

    /// Whether a node has a lease from this leadership, which is only to be renewed.
    pub fn was_told(&self, id: ConsensusId) -> bool {
        self.told.contains(&id)
    }

    /// A node's process has ended; what is heard of it later is of the next one.
    pub fn note_gone(&mut self, id: ConsensusId) {
        self.gone.insert(id);
        self.heard.remove(&id);
        self.told.remove(&id);
    }

    /// Whether a node was heard in this leadership and within the lease.
    pub fn lives(&self, id: ConsensusId, now: Instant, lease: Duration) -> bool {
        self.heard.get(&id).is_some_and(|heard| now.saturating_duration_since(*heard) < lease)
    }

    /// Whether a node was not heard for longer than its lease, or has ended.
    pub fn is_silent(&self, id: ConsensusId, now: Instant, lease: Duration) -> bool {
        let Some((_, since)) = self.leads else { return false };
        let last = self.heard.get(&id).copied().unwrap_or(since);
        self.gone.contains(&id) || now.saturating_duration_since(last) >= lease
    }

    /// A node's fence is under way.
    pub fn begin_fence(&mut self, node: u32) {
        self.fencing.insert(node);
    }

    /// It is done, or was refused. That of an earlier leadership is forgotten already.
    pub fn end_fence(&mut self, node: u32, term: u64) {
        if self.term() == Some(term) {
            self.fencing.remove(&node);
        }
    }

    /// Whether a node's fence is under way.
    pub fn is_being_fenced(&self, node: u32) -> bool {
        self.fencing.contains(&node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    #[test]
    fn a_new_leader_waits_for_a_whole_lease() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut leases = Leases::default();
        assert!(!leases.is_silent(1, at(9_000), LEASE), "who does not lead calls nobody silent");
        leases.set_leadership(Some(5), at(0));
        leases.hear(1, at(1_000));
        leases.set_leadership(Some(5), at(2_000));
        assert!(!leases.is_silent(1, at(3_999), LEASE) && leases.is_silent(1, at(4_000), LEASE));
        assert!(!leases.is_silent(2, at(2_999), LEASE) && leases.is_silent(2, at(3_000), LEASE), "never heard");
        assert!(leases.lives(1, at(3_999), LEASE) && !leases.lives(2, at(0), LEASE));
        leases.begin_fence(7);
        leases.set_leadership(None, at(5_000));
        leases.set_leadership(Some(9), at(6_000));
        assert!(!leases.is_silent(1, at(8_999), LEASE) && !leases.is_being_fenced(7), "another leadership");
    }

    #[test]
    fn a_process_that_has_ended_is_silent_at_once_and_lives_when_the_next_one_is_heard() {
        let now = Instant::now();
        let mut leases = Leases::default();
        leases.note_gone(1);
        leases.set_leadership(Some(5), now);
        assert!(!leases.is_silent(1, now, LEASE), "it may have come back, and greeted the leader before");
        leases.note_gone(1);
        assert!(leases.is_silent(1, now, LEASE) && !leases.lives(1, now, LEASE));
        leases.hear(1, now);
        assert!(!leases.is_silent(1, now, LEASE) && leases.lives(1, now, LEASE));
    }

    #[test]
    fn who_greets_lives_and_is_told_so_anew() {
        let now = Instant::now();
        let mut leases = Leases::default();
        leases.set_leadership(Some(5), now);
        assert!(!leases.was_told(1));
        leases.note_told(1, true);
        leases.set_leadership(Some(5), now);
        assert!(leases.was_told(1));
        leases.note_gone(1);
        assert!(leases.is_silent(1, now, LEASE) && !leases.was_told(1));
        leases.hear_greeting(1, now);
        assert!(!leases.is_silent(1, now, LEASE) && !leases.was_told(1), "it is not fenced before its first heartbeat");
        leases.note_told(1, true);
        leases.hear_greeting(1, now);
        assert!(!leases.was_told(1), "it may have come back so fast that its end was not seen");
        leases.note_told(1, true);
        leases.note_told(1, false);
        assert!(!leases.was_told(1), "fenced");
        leases.note_told(1, true);
        leases.set_leadership(Some(6), now);
        assert!(!leases.was_told(1), "by another leader");
    }

    #[test]
    fn the_end_of_an_earlier_fence_does_not_end_a_later_one() {
        let mut leases = Leases::default();
        leases.set_leadership(Some(5), Instant::now());
        leases.begin_fence(7);
        leases.set_leadership(Some(6), Instant::now());
        leases.begin_fence(7);
        leases.end_fence(7, 5);
        assert!(leases.is_being_fenced(7));
        leases.end_fence(7, 6);
        assert!(!leases.is_being_fenced(7));
    }
}
