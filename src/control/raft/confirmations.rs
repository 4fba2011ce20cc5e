//! Which voters have acknowledged this node as the leader, and how late. Pure: times are arguments.
//!
//! The library sends every follower a heartbeat all the time. One that was sent after a moment, and acknowledged by a majority, proves that this node led at that moment: no
//! round of its own is needed to know it. What counts is when it was *sent*; an answer to one that was on its way already proves nothing about now.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use super::ConsensusId;

/// Of the latest term that this process has led in.
#[derive(Debug, Default)]
pub struct Confirmations {
    term: u64,
    sent: HashMap<ConsensusId, Instant>,
}

impl Confirmations {
    /// A follower has acknowledged what the leader of a term, this node, sent it then.
    pub fn note(&mut self, term: u64, from: ConsensusId, sent: Instant) {
        if term < self.term {
            return;
        }
        if term > self.term {
            *self = Confirmations { term, sent: HashMap::new() };
        }
        let latest = self.sent.entry(from).or_insert(sent);
        *latest = (*latest).max(sent);
    }

    /// Whether this node led in that term at a moment not before `since`: a majority of the voters has acknowledged what was sent from then on, while voters
    /// change a majority of the old and one of the new ones.
    pub fn led_since(&self, term: u64, me: ConsensusId, voters: &[BTreeSet<ConsensusId>], since: Instant) -> bool {
        let acknowledged = |id: &ConsensusId| *id == me || (self.term == term && self.sent.get(id).is_some_and(|sent| *sent >= since));
        voters.iter().all(|voters| voters.iter().filter(|id| acknowledged(id)).count() * 2 > voters.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_majority_must_have_acknowledged_what_was_sent_from_then_on() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let three = [BTreeSet::from([1, 2, 3])];
        let mut confirmations = Confirmations::default();
        confirmations.note(5, 2, at(100));
        assert!(confirmations.led_since(5, 1, &three, at(100)) && !confirmations.led_since(5, 1, &three, at(101)), "sent before");
        confirmations.note(5, 2, at(50));
        assert!(confirmations.led_since(5, 1, &three, at(100)), "a late answer takes nothing back");
        let five = [BTreeSet::from([1, 2, 3, 4, 5])];
        assert!(!confirmations.led_since(5, 1, &five, at(0)), "two of five");
        confirmations.note(5, 9, at(200));
        assert!(!confirmations.led_since(5, 1, &five, at(0)), "who does not vote does not count");
        confirmations.note(5, 4, at(100));
        assert!(confirmations.led_since(5, 1, &five, at(100)));
        assert!(!confirmations.led_since(5, 7, &three, at(100)), "the leader is no voter: it needs two others");
    }

    #[test]
    fn acknowledgements_of_another_term_prove_nothing() {
        let now = Instant::now();
        let three = [BTreeSet::from([1, 2, 3])];
        let mut confirmations = Confirmations::default();
        confirmations.note(5, 2, now);
        assert!(!confirmations.led_since(6, 1, &three, now) && !confirmations.led_since(4, 1, &three, now));
        confirmations.note(6, 3, now);
        assert!(confirmations.led_since(6, 1, &three, now) && !confirmations.led_since(5, 1, &three, now));
        confirmations.note(5, 2, now);
        assert!(confirmations.led_since(6, 1, &three, now), "an answer from an earlier term");
    }

    #[test]
    fn both_majorities_are_needed_while_voters_change() {
        let now = Instant::now();
        let joint = [BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 4, 5])];
        let mut confirmations = Confirmations::default();
        confirmations.note(5, 2, now);
        assert!(!confirmations.led_since(5, 1, &joint, now));
        confirmations.note(5, 4, now);
        assert!(confirmations.led_since(5, 1, &joint, now));
        assert!(confirmations.led_since(5, 1, &[BTreeSet::from([1])], now), "alone, nobody has to be asked");
    }
}
