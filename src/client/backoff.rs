//! How long to wait before trying again. Pure.

use std::time::Duration;

/// Doubling pauses up to a limit.
///
/// Without a random part: a client has few connections, and what makes many clients fail at once also spreads their attempts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Backoff {
    pub first: Duration,
    pub longest: Duration,
}

impl Backoff {
    /// The pause after so many failed attempts (from 1).
    pub fn after(&self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(20);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit() {
        let backoff = Backoff { first: Duration::from_millis(10), longest: Duration::from_millis(50) };
        let pauses: Vec<u128> = [0, 1, 2, 3, 4, u32::MAX].map(|n| backoff.after(n).as_millis()).to_vec();
        assert_eq!(pauses, [10, 10, 20, 40, 50, 50]);
    }
}
