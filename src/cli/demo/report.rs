//! What the demo came to, for people and for machines.

use std::fmt;

use serde_json::{Value, json};

use super::ledger::Verdict;
use crate::cli::bench::histogram::Latencies;

/// The result of a demo.
#[derive(Debug)]
pub struct Report {
    /// The comparison.
    pub verdict: Verdict,
    /// Records that were given up, and why the first was.
    pub undelivered: u64,
    /// See `undelivered`.
    pub first_failure: Option<String>,
    /// From starting the broker again until it was ready, ms.
    pub recovered_ms: f64,
    /// Records that were neither acknowledged nor given up when the broker was killed.
    pub in_flight_at_kill: u64,
    /// Bytes of acknowledged keys and values.
    pub bytes: u64,
    /// From the first record sent until the last acknowledgement.
    pub seconds: f64,
    /// Records that the live consumers read.
    pub consumed: u64,
    /// How long the check took.
    pub check_seconds: f64,
    /// From sending to acknowledgement.
    pub latencies: Latencies,
    /// Where the lines are from, how many, and how often they were sent.
    pub input: Source,
    /// Producers, consumers, partitions, shards.
    pub shape: Shape,
    /// What an acknowledgement means here: the durability and how files are written.
    pub durability: &'static str,
}

/// What was sent.
#[derive(Debug)]
pub struct Source {
    /// Files and directories.
    pub places: Vec<String>,
    /// Files with at least one line.
    pub files: usize,
    /// Lines in them.
    pub lines: usize,
    /// Different keys.
    pub keys: usize,
    /// How often each line was sent, about.
    pub repeats: f64,
}

/// How many of each.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Producers.
    pub producers: u8,
    /// Live consumers.
    pub consumers: u32,
    /// Partitions of the topic.
    pub partitions: u32,
    /// Shards of the broker.
    pub shards: u32,
}

impl Report {
    /// Whether all is well.
    pub fn holds(&self) -> bool {
        self.verdict.holds() && self.undelivered == 0
    }

    /// What is not well, in a line.
    pub fn complaint(&self) -> String {
        let Verdict { lost, duplicated, out_of_order, foreign, .. } = self.verdict;
        let mut complaint = format!("lost {lost}, duplicated {duplicated}, out of order {out_of_order}, sent by nobody {foreign}");
        if let Some(first) = &self.first_failure {
            complaint += &format!(", not delivered {}; the first: {first}", self.undelivered);
        }
        complaint
    }

    fn records_per_second(&self) -> f64 {
        self.verdict.acknowledged as f64 / self.seconds
    }

    fn mb_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds
    }

    /// For machines.
    pub fn to_json(&self) -> Value {
        json!({
            "scenario": "logs",
            "acknowledged": self.verdict.acknowledged,
            "lost": self.verdict.lost,
            "duplicated": self.verdict.duplicated,
            "out_of_order": self.verdict.out_of_order,
            "foreign": self.verdict.foreign,
            "undelivered": self.undelivered,
            "first_failure": self.first_failure,
            "recovered_ms": self.recovered_ms,
            "in_flight_at_kill": self.in_flight_at_kill,
            "read": self.verdict.read,
            "consumed": self.consumed,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "records_per_second": self.records_per_second(),
            "mb_per_second": self.mb_per_second(),
            "check_seconds": self.check_seconds,
            "latency": self.latencies.to_json(),
            "input": {
                "places": self.input.places, "files": self.input.files, "lines": self.input.lines, "keys": self.input.keys,
                "repeats": self.input.repeats,
            },
            "producers": self.shape.producers,
            "consumers": self.shape.consumers,
            "partitions": self.shape.partitions,
            "shards": self.shape.shards,
            "durability": self.durability,
            "holds": self.holds(),
        })
    }
}

/// For people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { acknowledged, lost, duplicated, out_of_order, read, .. } = self.verdict;
        let recovered = self.recovered_ms;
        writeln!(
            f,
            "\nacknowledged {acknowledged}, lost {lost}, duplicated {duplicated}, out of order {out_of_order}, recovered in {recovered:.0} ms"
        )?;
        if !self.holds() {
            writeln!(f, "not well:   {}", self.complaint())?;
        }
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|quantile| self.latencies.quantile_us(quantile) / 1000.0);
        writeln!(
            f,
            "rates       {:.0} records/s, {:.1} MB/s acknowledged over {:.1} s, the crash included; checked at {:.0} records/s",
            self.records_per_second(),
            self.mb_per_second(),
            self.seconds,
            read as f64 / self.check_seconds.max(1e-3),
        )?;
        writeln!(
            f,
            "latencies   p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms from sending to acknowledgement; the max has the crash in it"
        )?;
        writeln!(f, "durability  {}", self.durability)?;
        writeln!(
            f,
            "input       {} lines of {} files in {}, each sent {:.1} times, {} keys",
            self.input.lines,
            self.input.files,
            self.input.places.join(", "),
            self.input.repeats,
            self.input.keys,
        )?;
        write!(f, "{NEXT}")
    }
}

const NEXT: &str = "
Try next:
  corelane serve                                      a broker of your own, data in ./corelane-data
  corelane topic create scores --partitions 3         (in another terminal)
  printf 'alice:42\\nbob:7\\n' | corelane produce scores --key-separator :
  corelane stat                                       what every shard does
  corelane demo --input YOUR-FILES                    the same with your own files
";
