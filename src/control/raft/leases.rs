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
}

impl Leases {
    /// This node leads in a term, or does not. A new leader gives every node the whole time: it can't know when they were heard last.
    pub fn set_leadership(&mut self, term: Option<u64>, now: Instant) {
        if term != self.leads.map(|(term, _)| term) {
            *self = Leases { leads: term.map(|term| (term, now)), ..Leases::default() };
        }
    }

    /// The term that this node leads in.
    pub fn term(&self) -> Option<u64> {
        self.leads.map(|(term, _)| term)
    }

    /// A node was heard.
    pub fn hear(&mut self, id: ConsensusId, now: Instant) {
        self.heard.insert(id, now);
    }

    /// Whether a node was heard in this leadership and within the lease.
    pub fn lives(&self, id: ConsensusId, now: Instant, lease: Duration) -> bool {
        self.heard.get(&id).is_some_and(|heard| now.saturating_duration_since(*heard) < lease)
    }

    /// Whether a node was not heard for longer than its lease.
    pub fn is_silent(&self, id: ConsensusId, now: Instant, lease: Duration) -> bool {
        let Some((_, since)) = self.leads else { return false };
        let last = self.heard.get(&id).copied().unwrap_or(since);
        now.saturating_duration_since(last) >= lease
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
