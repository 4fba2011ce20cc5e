//! How fast what followers catch up with leaves this node, whole segments and batches, all shards together: catch-up is not to take the disk from those who produce and consume.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::limits::CATCH_UP_BYTES_PER_S;

/// What was saved up while nothing was sent counts for so long.
const BURST: Duration = Duration::from_millis(100);

/// A rate that the shards of a node share. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Pace {
    bytes_per_s: u64,
    begun: Instant,
    /// Everything so far is paid for at this time, ns since `begun`.
    paid_until: Arc<AtomicU64>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace::of(CATCH_UP_BYTES_PER_S)
    }
}

impl Pace {
    /// Of so many bytes per second; 0 is as fast as it goes.
    pub fn of(bytes_per_s: u64) -> Pace {
        Pace { bytes_per_s, begun: Instant::now(), paid_until: Arc::default() }
    }

    /// Takes `bytes` out of the rate; how long to wait before they are sent.
    pub fn take(&self, bytes: usize) -> Duration {
        self.take_at(bytes, self.begun.elapsed())
    }

    fn take_at(&self, bytes: usize, now: Duration) -> Duration {
        if self.bytes_per_s == 0 {
            return Duration::ZERO;
        }
        let price = (bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_s)) as u64;
        let now = now.as_nanos() as u64;
        let least = now.saturating_sub(BURST.as_nanos() as u64);
        let pay = |paid: u64| Some(paid.max(least).saturating_add(price));
        let before = self.paid_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).unwrap_or(least);
        Duration::from_nanos(before.max(least).saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shards_together_keep_the_rate() {
        let pace = Pace::of(1_000_000);
        let other = pace.clone();
        let second = Duration::from_secs(1);
        // What was saved up goes at once, the rest at the rate, whoever asks.
        assert_eq!(pace.take_at(100_000, second), Duration::ZERO);
        assert_eq!(other.take_at(500_000, second), Duration::ZERO);
        assert_eq!(pace.take_at(1, second), Duration::from_millis(500));
        assert_eq!(other.take_at(0, second), Duration::from_nanos(500_001_000));
        // An hour of silence is not saved up.
        let hour = Duration::from_secs(3600);
        assert_eq!(pace.take_at(1_100_000, hour), Duration::ZERO);
        assert_eq!(pace.take_at(1, hour), second);
        assert_eq!(Pace::of(0).take_at(usize::MAX, hour), Duration::ZERO);
    }
}
