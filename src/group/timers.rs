//! Deadlines of the groups of one coordinator: at most one for each key, so what is pending is bounded by members and groups.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What becomes due.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    /// A member (or a member id that was given out) has shown no sign of life.
    Session(Arc<str>, Arc<str>),
    /// The group has waited long enough for joins.
    Join(Arc<str>),
    /// The group has waited long enough for syncs.
    Sync(Arc<str>),
    /// Positions are to be looked through for old ones.
    Retention,
}

/// The deadlines, ms of the steady clock.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_key: BTreeMap<Timer, u64>,
    by_time: BTreeSet<(u64, Timer)>,
}

impl Timers {
    /// Sets a deadline, in place of the one before.
    pub fn set(&mut self, timer: Timer, at: u64) {
        if let Some(before) = self.by_key.insert(timer.clone(), at) {
            self.by_time.remove(&(before, timer.clone()));
        }
        self.by_time.insert((at, timer));
    }

    pub fn cancel(&mut self, timer: &Timer) {
        if let Some((timer, at)) = self.by_key.remove_entry(timer) {
            self.by_time.remove(&(at, timer));
        }
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<u64> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the earliest one that is due.
    pub fn pop_due(&mut self, now: u64) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let (_, timer) = self.by_time.pop_first()?;
        self.by_key.remove(&timer);
        Some(timer)
    }

    pub fn clear(&mut self) {
        self.by_key.clear();
        self.by_time.clear();
    }

    #[cfg(test)]
    pub fn has(&self, timer: &Timer) -> bool {
        self.by_key.contains_key(timer)
    }

    #[cfg(test)]
    pub fn keys(&self) -> impl Iterator<Item = &Timer> {
        self.by_key.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_there_once_and_comes_in_its_turn() {
        let mut timers = Timers::default();
        timers.set(Timer::Join("a".into()), 5);
        timers.set(Timer::Sync("a".into()), 7);
        timers.set(Timer::Join("a".into()), 9);
        assert_eq!(timers.next(), Some(7));
        assert_eq!(timers.pop_due(6), None);
        assert_eq!(timers.pop_due(9), Some(Timer::Sync("a".into())));
        assert_eq!(timers.pop_due(9), Some(Timer::Join("a".into())));
        assert_eq!(timers.pop_due(9), None);
        timers.set(Timer::Retention, 1);
        timers.cancel(&Timer::Retention);
        assert_eq!((timers.next(), timers.keys().count()), (None, 0));
    }
}
