//! A sliding error rate: pure, so that a test can play any stream to it.

use std::collections::VecDeque;

use crate::types::Timestamp;

/// When a rate is too high.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Events of the last so many milliseconds count.
    pub window_ms: i64,
    /// Share of errors from which on it is too high.
    pub threshold: f64,
    /// It is well again, and may be reported again, below this share.
    pub recovered: f64,
    /// Events that there must be before a rate means anything.
    pub least: usize,
}

/// The error rate of one service.
#[derive(Debug)]
pub struct ErrorRate {
    rule: Rule,
    events: VecDeque<(Timestamp, bool)>,
    errors: usize,
    is_raised: bool,
}

impl ErrorRate {
    /// Nothing was seen yet.
    pub fn new(rule: Rule) -> ErrorRate {
        ErrorRate { rule, events: VecDeque::new(), errors: 0, is_raised: false }
    }

    /// Takes the next event, in the order of time; the rate, where it has just become too high.
    pub fn observe(&mut self, at: Timestamp, is_error: bool) -> Option<f64> {
        self.events.push_back((at, is_error));
        self.errors += usize::from(is_error);
        while let Some((oldest, was_error)) = self.events.front().copied().filter(|(oldest, _)| *oldest <= at - self.rule.window_ms) {
            debug_assert!(oldest <= at);
            self.events.pop_front();
            self.errors -= usize::from(was_error);
        }
        let rate = self.errors as f64 / self.events.len() as f64;
        if self.is_raised {
            self.is_raised = rate >= self.rule.recovered;
            return None;
        }
        self.is_raised = self.events.len() >= self.rule.least && rate >= self.rule.threshold;
        self.is_raised.then_some(rate)
    }
}

/// Where a stream crosses the threshold, found the slow way: each moment is looked at by itself. What [`ErrorRate`] finds is compared with this.
pub fn crossings(rule: &Rule, events: &[(Timestamp, bool)]) -> Vec<Timestamp> {
    let mut found = Vec::new();
    let mut is_raised = false;
    for (index, (at, _)) in events.iter().enumerate() {
        let inside = events[..=index].iter().filter(|(other, _)| *other > at - rule.window_ms);
        let (all, errors) = inside.fold((0, 0), |(all, errors), (_, is_error)| (all + 1, errors + usize::from(*is_error)));
        let rate = errors as f64 / all as f64;
        if is_raised {
            is_raised = rate >= rule.recovered;
        } else if all >= rule.least && rate >= rule.threshold {
            is_raised = true;
            found.push(*at);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: Rule = Rule { window_ms: 100, threshold: 0.5, recovered: 0.2, least: 4 };

    fn observed(rule: Rule, events: &[(Timestamp, bool)]) -> Vec<Timestamp> {
        let mut rate = ErrorRate::new(rule);
        events.iter().filter_map(|(at, is_error)| rate.observe(*at, *is_error).map(|_| *at)).collect()
    }

    fn stream() -> impl Strategy<Value = Vec<(Timestamp, bool)>> {
        let step = (0..40_i64, prop::bool::weighted(0.4));
        prop::collection::vec(step, 0..200).prop_map(|steps| {
            let mut now = 0;
            let moved = |(step, is_error)| {
                now += step;
                (now, is_error)
            };
            steps.into_iter().map(moved).collect()
        })
    }

    proptest! {
        #[test]
        fn every_crossing_is_found_at_once_and_nothing_else(events in stream()) {
            prop_assert_eq!(observed(RULE, &events), crossings(&RULE, &events));
        }
    }

    /// A window that is too long smooths a burst away or sees it late: the comparison shows that.
    #[test]
    fn a_planted_longer_window_is_noticed() {
        let burst: Vec<_> = (0..200).map(|n| (n * 5, n >= 100)).collect();
        let found = crossings(&RULE, &burst);
        assert_eq!(found.len(), 1);
        assert_ne!(observed(Rule { window_ms: 400, ..RULE }, &burst), found);
    }

    #[test]
    fn few_events_are_no_rate_and_one_burst_is_one_alert() {
        assert_eq!(observed(RULE, &[(0, true), (1, true), (2, true)]), Vec::<Timestamp>::new());
        assert_eq!(observed(RULE, &[(0, true), (1, true), (2, true), (3, false), (4, true), (5, true)]), [3]);
    }
}
