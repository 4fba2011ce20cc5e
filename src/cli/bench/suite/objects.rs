//! The named figures of the suite: what each is held against, and how samples become a verdict. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// What a figure over its reference must be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Goal {
    /// At most this ratio.
    AtMost(f64),
    /// At least this ratio.
    AtLeast(f64),
    /// Between these ratios.
    Within(f64, f64),
    /// Reported only.
    None,
}

impl Goal {
    fn holds(self, ratio: f64) -> Option<bool> {
        match self {
            Goal::AtMost(most) => Some(ratio <= most),
            Goal::AtLeast(least) => Some(ratio >= least),
            Goal::Within(least, most) => Some((least..=most).contains(&ratio)),
            Goal::None => None,
        }
    }

    fn to_json(self) -> Value {
        match self {
            Goal::AtMost(most) => json!({"ratio_at_most": most}),
            Goal::AtLeast(least) => json!({"ratio_at_least": least}),
            Goal::Within(least, most) => json!({"ratio_at_least": least, "ratio_at_most": most}),
            Goal::None => Value::Null,
        }
    }
}

/// One named figure.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Its name, for ever.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What it is held against.
    pub reference_name: &'static str,
    /// What the ratio must be.
    pub goal: Goal,
    /// Durability in force.
    pub durability: &'static str,
}

const REDIS: &str = "Redis XADD, appendfsync always";

macro_rules! figures {
    ($($name:literal, $unit:literal, $reference:expr, $goal:expr, $durability:literal;)*) => {
        /// All figures, in the order of the report.
        pub const FIGURES: &[Figure] =
            &[$(Figure { name: $name, unit: $unit, reference_name: $reference, goal: $goal, durability: $durability },)*];
    };
}

figures! {
    "latency_durable_p50", "us", "raw ping-pong + 4 KiB direct write and fdatasync, p50s", Goal::AtMost(1.3), "durable";
    "latency_durable_p99", "us", REDIS, Goal::None, "durable";
    "latency_memory_p50", "us", "raw ping-pong, p50", Goal::AtMost(1.3), "memory";
    "group_commit_rate", "records/s", REDIS, Goal::AtLeast(1.2), "durable";
    "produce_1p_1k", "MB/s", "raw sequential direct write, 1 MiB, best depth", Goal::AtLeast(0.4), "durable";
    "produce_1000p_1k", "MB/s", "produce_1p_1k", Goal::AtLeast(0.8), "durable";
    "produce_1p_100b", "records/s", "the goal of 2.5 million", Goal::AtLeast(1.0), "durable";
    "consume_tail", "MB/s", "raw one-way TCP", Goal::AtLeast(0.5), "durable";
    "consume_cold", "MB/s", "raw sequential direct read, 1 MiB, best depth", Goal::AtLeast(0.7), "durable";
    "write_amplification_1m", "bytes/byte", "the acknowledged bytes", Goal::AtMost(1.1), "durable";
    "rss_loaded", "MiB", "the memory budget", Goal::AtMost(1.2), "durable";
    "rss_idle", "MiB", "the goal of 48 MiB", Goal::AtMost(1.0), "durable";
    "cpu_tail_consumer", "% of a core", "the goal of 1 %", Goal::AtMost(1.0), "durable";
    "start_empty", "ms", "the goal of 200 ms", Goal::AtMost(1.0), "durable";
    "restart_4gib", "ms", "the goal of 1500 ms", Goal::AtMost(1.0), "durable";
    "cpu_per_record_shards", "us/record, 2 shards", "us/record, 1 shard", Goal::Within(0.9, 1.1), "durable";
}

/// One measurement of a figure.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    /// The figure.
    pub value: f64,
    /// Its reference of the same repeat; `None` where the peer is missing.
    pub reference: Option<f64>,
}

/// All samples of a run.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    samples: BTreeMap<&'static str, Vec<Sample>>,
    second: BTreeMap<&'static str, (&'static str, Vec<Sample>)>,
    seconds: BTreeMap<&'static str, f64>,
    notes: BTreeMap<&'static str, BTreeMap<String, Vec<f64>>>,
}

impl Collected {
    /// One more sample.
    pub fn add(&mut self, name: &'static str, value: f64, reference: Option<f64>) {
        assert!(FIGURES.iter().any(|figure| figure.name == name), "{name} is a figure");
        self.samples.entry(name).or_default().push(Sample { value, reference });
    }

    /// One more sample against Redis, for a figure that has another reference first.
    pub fn add_second(&mut self, name: &'static str, value: f64, reference: Option<f64>) {
        self.second.entry(name).or_insert((REDIS, Vec::new())).1.push(Sample { value, reference });
    }

    /// Something worth reading beside a figure.
    pub fn note(&mut self, name: &'static str, what: impl Into<String>, value: f64) {
        self.notes.entry(name).or_default().entry(what.into()).or_default().push(value);
    }

    /// Time spent for a figure.
    pub fn spent(&mut self, name: &'static str, seconds: f64) {
        *self.seconds.entry(name).or_default() += seconds;
    }

    /// The objects of the report, all of [`FIGURES`].
    pub fn objects(&self) -> Vec<Value> {
        FIGURES.iter().map(|figure| self.object(figure)).collect()
    }

    fn object(&self, figure: &Figure) -> Value {
        let samples = self.samples.get(figure.name).map(Vec::as_slice).unwrap_or_default();
        let first = Verdict::of(samples, figure.goal);
        let mut holds = first.holds;
        let mut object = json!({
            "name": figure.name, "value": first.value, "unit": figure.unit, "samples": samples.iter().map(|s| s.value).collect::<Vec<_>>(),
            "reference": first.reference, "reference_name": figure.reference_name, "ratio": first.ratio, "target": figure.goal.to_json(),
            "durability": figure.durability, "seconds": self.seconds.get(figure.name).copied().unwrap_or_default(),
        });
        if let Some((name, samples)) = self.second.get(figure.name) {
            let goal = SECOND_GOAL;
            let second = Verdict::of(samples, goal);
            object["second"] = json!({
                "reference": second.reference, "reference_name": name, "ratio": second.ratio, "target": goal.to_json(), "holds": second.holds,
            });
            holds = both(holds, second.holds);
        }
        if let Some(notes) = self.notes.get(figure.name) {
            object["notes"] = notes.iter().map(|(what, values)| (what.clone(), json!(median(values)))).collect();
        }
        object["holds"] = json!(holds);
        object
    }
}

/// Against Redis, one record in flight.
const SECOND_GOAL: Goal = Goal::AtMost(1.1);

/// Medians, and whether they hold; nothing holds without a reference.
struct Verdict {
    value: Option<f64>,
    reference: Option<f64>,
    ratio: Option<f64>,
    holds: Option<bool>,
}

impl Verdict {
    fn of(samples: &[Sample], goal: Goal) -> Verdict {
        let values: Vec<f64> = samples.iter().map(|sample| sample.value).collect();
        let references: Option<Vec<f64>> = samples.iter().map(|sample| sample.reference).collect();
        let ratios: Option<Vec<f64>> = samples.iter().map(|sample| sample.reference.map(|reference| sample.value / reference)).collect();
        let ratio = ratios.and_then(|ratios| median(&ratios));
        Verdict {
            value: median(&values),
            reference: references.and_then(|references| median(&references)),
            ratio,
            holds: ratio.and_then(|ratio| goal.holds(ratio)),
        }
    }
}

/// False if either is false, unknown if either is unknown.
fn both(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

/// The middle one; the mean of the two middle ones of an even number; `None` of none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(collected: &Collected, name: &str) -> Value {
        collected.objects().into_iter().find(|object| object["name"] == name).unwrap()
    }

    #[test]
    fn there_are_sixteen_figures() {
        let names: Vec<_> = Collected::default().objects().iter().map(|object| object["name"].as_str().unwrap().to_string()).collect();
        assert_eq!(names.len(), 16);
        assert_eq!(names.first().map(String::as_str), Some("latency_durable_p50"));
        assert_eq!(names.last().map(String::as_str), Some("cpu_per_record_shards"));
    }

    #[test]
    fn a_missing_peer_never_holds() {
        let mut collected = Collected::default();
        collected.add("group_commit_rate", 50_000.0, None);
        let object = object(&collected, "group_commit_rate");
        assert_eq!((&object["reference"], &object["ratio"], &object["holds"]), (&Value::Null, &Value::Null, &Value::Null));
        assert_eq!(object["value"], 50_000.0);
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        let object = object(&Collected::default(), "start_empty");
        assert_eq!((&object["value"], &object["holds"]), (&Value::Null, &Value::Null));
    }

    #[test]
    fn the_verdict_is_of_the_median_ratio() {
        let mut collected = Collected::default();
        for (value, reference) in [(10.0, 20.0), (90.0, 100.0), (30.0, 100.0)] {
            collected.add("produce_1p_1k", value, Some(reference));
        }
        let object = object(&collected, "produce_1p_1k");
        assert_eq!((&object["value"], &object["reference"], &object["ratio"]), (&json!(30.0), &json!(100.0), &json!(0.5)));
        assert_eq!(object["holds"], true);
    }

    #[test]
    fn a_second_reference_can_break_it() {
        for (redis, holds) in [(Some(100.0), json!(true)), (Some(50.0), json!(false)), (None, Value::Null)] {
            let mut collected = Collected::default();
            collected.add("latency_durable_p50", 100.0, Some(100.0));
            collected.add_second("latency_durable_p50", 100.0, redis);
            assert_eq!(object(&collected, "latency_durable_p50")["holds"], holds);
        }
    }

    #[test]
    fn goals_have_two_sides() {
        assert_eq!(Goal::Within(0.9, 1.1).holds(1.2), Some(false));
        assert_eq!(Goal::Within(0.9, 1.1).holds(0.8), Some(false));
        assert_eq!(Goal::AtLeast(0.4).holds(0.4), Some(true));
        assert_eq!(Goal::None.holds(1.0), None);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
