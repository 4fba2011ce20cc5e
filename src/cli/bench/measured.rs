//! What was measured, and the clock that everything of one run is measured against.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::BenchError;
use super::histogram::Latencies;

/// Width of one step of the throughput curve, ms.
const STEP_MS: u64 = 250;

/// The run's time: warm-up, then the window that counts. Moments are nanoseconds since the start, so that they fit into a record.
#[derive(Clone, Copy, Debug)]
pub struct RunClock {
    start: Instant,
    /// First moment that counts, ns.
    pub window_start: u64,
    /// First moment that does not count any more, ns.
    pub window_end: u64,
}

impl RunClock {
    /// Starts now.
    pub fn start(warm_up: Duration, duration: Duration) -> RunClock {
        let window_start = warm_up.as_nanos() as u64;
        RunClock { start: Instant::now(), window_start, window_end: window_start + duration.as_nanos() as u64 }
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// The moment as the system's clock has it.
    pub fn instant(&self, moment: u64) -> Instant {
        self.start + Duration::from_nanos(moment)
    }

    /// Whether the moment counts.
    pub fn counts(&self, moment: u64) -> bool {
        (self.window_start..self.window_end).contains(&moment)
    }

    /// Length of the window, seconds.
    pub fn seconds(&self) -> f64 {
        (self.window_end - self.window_start) as f64 / 1e9
    }
}

/// Records that came through, and how long they took.
#[derive(Clone, Debug)]
pub struct Measured {
    clock: RunClock,
    /// Records that came through in the window.
    pub records: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Bytes of all values that came through, in the window or not.
    pub bytes_in_all: u64,
    /// Records that failed, at any time.
    pub failed: u64,
    /// Why the first one failed.
    pub first_failure: Option<String>,
    /// From the time that a record was meant to be sent at.
    pub from_intended: Latencies,
    /// From the time that it was sent at.
    pub from_actual: Latencies,
    /// Bytes in each step of the run, warm-up included.
    steps: Vec<u64>,
}

impl Measured {
    /// Nothing yet.
    pub fn new(clock: RunClock) -> Measured {
        let steps = vec![0; (clock.window_end / (STEP_MS * 1_000_000) + 1) as usize];
        let (from_intended, from_actual) = (Latencies::new(), Latencies::new());
        Measured { clock, records: 0, bytes: 0, bytes_in_all: 0, failed: 0, first_failure: None, from_intended, from_actual, steps }
    }

    /// A record of `bytes` came through `at`.
    pub fn arrived(&mut self, at: u64, bytes: usize) {
        self.bytes_in_all += bytes as u64;
        if self.clock.counts(at) {
            self.records += 1;
            self.bytes += bytes as u64;
        }
        if let Some(step) = self.steps.get_mut((at / (STEP_MS * 1_000_000)) as usize) {
            *step += bytes as u64;
        }
    }

    /// Its latencies; they count where it was meant to be sent in the window, however late it came.
    pub fn took(&mut self, intended: u64, actual: u64, at: u64) {
        if self.clock.counts(intended) {
            self.from_intended.record(Duration::from_nanos(at.saturating_sub(intended)));
            self.from_actual.record(Duration::from_nanos(at.saturating_sub(actual)));
        }
    }

    /// A record failed.
    pub fn failed(&mut self, cause: impl std::fmt::Display) {
        self.failed += 1;
        self.first_failure.get_or_insert_with(|| cause.to_string());
    }

    /// Adds what another task of the same run measured.
    pub fn merge(&mut self, other: &Measured) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.bytes_in_all += other.bytes_in_all;
        self.failed += other.failed;
        if self.first_failure.is_none() {
            self.first_failure.clone_from(&other.first_failure);
        }
        self.from_intended.merge(&other.from_intended);
        self.from_actual.merge(&other.from_actual);
        self.steps.iter_mut().zip(&other.steps).for_each(|(sum, add)| *sum += add);
    }

    /// Figures of a run in which records failed are no figures.
    pub fn check(&self) -> Result<(), BenchError> {
        match self.failed {
            0 => Ok(()),
            failed => Err(BenchError::Undelivered { failed, first: self.first_failure.clone().unwrap_or_default() }),
        }
    }

    /// The window ended at `moment`, because there was nothing more to come.
    pub fn end_at(&mut self, moment: u64) {
        self.clock.window_end = moment.clamp(self.clock.window_start + 1, self.clock.window_end);
    }

    /// Records a second in the window.
    pub fn record_rate(&self) -> f64 {
        self.records as f64 / self.clock.seconds()
    }

    /// Bytes a second in the window.
    pub fn byte_rate(&self) -> f64 {
        self.bytes as f64 / self.clock.seconds()
    }

    /// (seconds since the start, MB/s).
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let step_seconds = STEP_MS as f64 / 1000.0;
        // The last step is not whole.
        let whole = self.steps.len().saturating_sub(1);
        let steps = self.steps[..whole].iter().enumerate();
        steps.map(|(n, bytes)| (n as f64 * step_seconds, *bytes as f64 / 1e6 / step_seconds)).collect()
    }

    /// All figures with their units.
    pub fn to_json(&self) -> Value {
        json!({
            "records": self.records, "bytes": self.bytes, "seconds": self.clock.seconds(), "records_per_second": self.record_rate(),
            "bytes_per_second": self.byte_rate(), "failed": self.failed, "first_failure": self.first_failure,
            "latency_from_intended": self.from_intended.to_json(), "latency_from_actual": self.from_actual.to_json(),
            "throughput_mb_per_second": self.curve(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_window_counts() {
        let clock = RunClock::start(Duration::from_secs(1), Duration::from_secs(2));
        let mut measured = Measured::new(clock);
        let second = 1_000_000_000;
        for at in [second / 2, second, 2 * second, 3 * second] {
            measured.arrived(at, 500);
        }
        assert_eq!((measured.records, measured.bytes), (2, 1000));
        assert_eq!(measured.byte_rate(), 500.0);
        assert_eq!(measured.curve().iter().map(|(_, rate)| rate * 1e6 / 4.0).sum::<f64>(), 1500.0, "the curve has the warm-up too");
    }

    #[test]
    fn a_stall_shows_from_the_intended_time() {
        let clock = RunClock::start(Duration::ZERO, Duration::from_secs(10));
        let mut measured = Measured::new(clock);
        // Meant for 1 s, sent only at 3 s because the broker stood still, back at once; came after the window, and counts.
        measured.took(1_000_000_000, 3_000_000_000, 3_001_000_000);
        measured.took(9_000_000_000, 9_000_000_000, 11_000_000_000);
        assert!((measured.from_intended.quantile_us(1.0) - 2_001_000.0).abs() < 3_000.0);
        assert_eq!(measured.from_actual.count(), 2);
    }
}
