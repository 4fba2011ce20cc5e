//! Whether what goes to a follower by batches is catch-up, which pays the node's rate, or live traffic, which does not.
//!
//! What the log had when a follower came is catch-up. Meanwhile more is appended, and were all of that live, it would come in one burst at the end, as large as the catch-up was long. So
//! it is catch-up again, in rounds that grow shorter as long as the rate is more than what is appended. Where it is not, a follower that paid would never be in sync: it goes free until it is.

use crate::types::Offset;

/// A round that is not shorter than this share of the one before leads nowhere.
const SHORTER: (i64, i64) = (3, 4);

/// How far one follower that is not in sync is with what it lacks. No clock, no I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Behind {
    /// In sync, or not seen since.
    #[default]
    No,
    /// In a round that began `lag` offsets before its end.
    Until {
        /// The log's end when the round began.
        end: Offset,
        /// How many offsets the round has.
        lag: i64,
    },
    /// It pays no more.
    Free,
}

impl Behind {
    /// Whether what is sent to it, from `from` to `to`, is to be paid for, while the log ends at `log_end`. What takes it to the end is free: it may be about to join, and
    /// producers wait for it then.
    pub fn pays(&mut self, from: Offset, to: Offset, log_end: Offset, is_in_sync: bool) -> bool {
        let left = log_end - from;
        *self = match *self {
            _ if is_in_sync => Behind::No,
            Behind::Free => Behind::Free,
            Behind::No => Behind::Until { end: log_end, lag: left },
            Behind::Until { end, lag } if from < end => Behind::Until { end, lag },
            Behind::Until { lag, .. } if left > lag.saturating_mul(SHORTER.0) / SHORTER.1 => Behind::Free,
            Behind::Until { .. } => Behind::Until { end: log_end, lag: left },
        };
        to < log_end && matches!(self, Behind::Until { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads steps of 10 at the rate of one a tick, or all that there is when it is free, while `appended` offsets come in a tick. How many ticks until it has all, and whether it paid to the end.
    fn run(lag: i64, appended: i64) -> (i64, bool) {
        let (mut behind, mut from, mut end) = (Behind::default(), 0, lag);
        for tick in 0..100_000 {
            if from == end {
                return (tick, behind != Behind::Free);
            }
            let to = end.min(from + 10);
            from = if behind.pays(from, to, end, false) || behind != Behind::Free { to } else { end };
            if from < end {
                end += appended;
            }
        }
        panic!("it never has all: {behind:?}");
    }

    #[test]
    fn it_pays_in_rounds_as_long_as_they_grow_shorter() {
        assert_eq!(run(1000, 0), (100, true));
        let (ticks, paid) = run(1000, 5);
        assert!(paid && (190..=200).contains(&ticks), "twice as long, as half of the rate is what is appended: {ticks}");
    }

    #[test]
    fn who_would_never_have_all_goes_free() {
        let (ticks, paid) = run(1000, 9);
        assert!(!paid && ticks <= 110, "after one round: {ticks}");
        assert!(!run(1000, 50).1);
    }

    #[test]
    fn in_sync_nothing_is_paid_and_the_next_time_all_begins_anew() {
        let mut behind = Behind::default();
        assert!(!behind.pays(0, 10, 100, true));
        assert!(behind.pays(0, 10, 100, false) && behind.pays(99, 120, 5000, false));
        assert!(!behind.pays(120, 130, 5000, false), "the second round would be longer");
        assert!(!behind.pays(4990, 4995, 5000, false), "until it is in sync");
        assert!(!behind.pays(5000, 5001, 5002, true));
        assert!(behind.pays(5001, 5002, 6000, false));
        assert!(!behind.pays(5002, 6000, 6000, false), "it is at the end with that");
    }
}
