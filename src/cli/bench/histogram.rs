//! Latency histograms: nanoseconds in, microseconds out.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Longest latency that is told from longer ones.
const LONGEST: Duration = Duration::from_secs(120);

/// Latencies of one kind of operation, from 1 ns to two minutes with three significant digits.
#[derive(Clone, Debug)]
pub struct Latencies {
    nanoseconds: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies::new()
    }
}

impl Latencies {
    /// None yet.
    pub fn new() -> Latencies {
        let nanoseconds = Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3).expect("the bounds are right");
        Latencies { nanoseconds }
    }

    /// Adds one; what is longer than the longest counts as the longest.
    pub fn record(&mut self, latency: Duration) {
        self.nanoseconds.saturating_record(latency.as_nanos() as u64);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Latencies) {
        self.nanoseconds.add(&other.nanoseconds).expect("all have the same bounds");
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.nanoseconds.len()
    }

    /// The latency that this share (0 to 1) of all does not exceed, microseconds.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.nanoseconds.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// The percentiles that are always given, microseconds.
    pub fn to_json(&self) -> Value {
        json!({
            "count": self.count(),
            "mean_us": self.nanoseconds.mean() / 1000.0,
            "p50_us": self.quantile_us(0.5),
            "p90_us": self.quantile_us(0.9),
            "p99_us": self.quantile_us(0.99),
            "p99_9_us": self.quantile_us(0.999),
            "p99_99_us": self.quantile_us(0.9999),
            "max_us": self.nanoseconds.max() as f64 / 1000.0,
        })
    }

    /// The percentile curve: (quantile, microseconds), denser towards 1.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let steps = self.nanoseconds.iter_quantiles(10);
        steps.map(|step| (step.quantile_iterated_to(), step.value_iterated_to() as f64 / 1000.0)).collect()
    }
}

/// One line for people.
impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99, p999, p9999] = [0.5, 0.99, 0.999, 0.9999].map(|quantile| self.quantile_us(quantile));
        let max = self.nanoseconds.max() as f64 / 1000.0;
        write!(f, "p50 {p50:.1} us, p99 {p99:.1}, p99.9 {p999:.1}, p99.99 {p9999:.1}, max {max:.1} ({} samples)", self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_recorded() {
        let mut latencies = Latencies::new();
        (1..=1000).for_each(|us| latencies.record(Duration::from_micros(us)));
        assert!((latencies.quantile_us(0.5) - 500.0).abs() <= 1.0);
        assert!((latencies.quantile_us(0.99) - 990.0).abs() <= 2.0);
        latencies.record(LONGEST * 2);
        assert_eq!(latencies.count(), 1001);
        let curve = latencies.curve();
        assert!(curve.windows(2).all(|pair| pair[0].1 <= pair[1].1) && curve.len() > 20);
    }
}
