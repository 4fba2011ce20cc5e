//! The result of one run: for people, for programs, as a picture.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::BenchError;
use super::measured::Measured;
use super::plot::{Line, Plot};
use super::process::Usage;
use super::reference::Reference;
use super::report::JsonArgs;
use super::workload::{Target, WorkloadArgs};

/// Where the result goes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct OutputArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArgs,
    /// Draw the percentile curves and the throughput over time.
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// Everything of one run.
pub struct Outcome {
    /// Of the benchmark.
    pub name: &'static str,
    /// By producers.
    pub produced: Option<Measured>,
    /// By consumers.
    pub consumed: Option<Measured>,
    /// Use of the broker, where it was started here.
    pub broker: Option<Usage>,
    /// Use of this process.
    pub client: Usage,
    /// What the machine could do at best.
    pub references: Vec<Reference>,
}

/// What broker and client use between two moments.
pub struct Used {
    broker: Option<Usage>,
    client: Usage,
}

impl Used {
    /// From here.
    pub fn start(target: &Target) -> Result<Used, BenchError> {
        Ok(Used { broker: target.usage()?, client: own_usage()? })
    }

    /// What the broker has used so far; the suite always starts its own.
    pub fn broker_so_far(&self, target: &Target) -> Result<Usage, BenchError> {
        let pair = target.usage()?.zip(self.broker);
        pair.map(|(now, before)| now.since(before)).ok_or_else(|| BenchError::Usage("the broker was not started here".into()))
    }

    /// To here: (broker where it was started here, client).
    pub fn end(self, target: &Target) -> Result<(Option<Usage>, Usage), BenchError> {
        let broker = target.usage()?.zip(self.broker).map(|(now, before)| now.since(before));
        Ok((broker, own_usage()?.since(self.client)))
    }
}

fn own_usage() -> Result<Usage, BenchError> {
    Usage::own().map_err(BenchError::io("reading what this process has used"))
}

impl Outcome {
    /// Prints, writes, draws; fails when a record failed.
    pub fn finish(self, workload: &WorkloadArgs, output: &OutputArgs) -> Result<(), BenchError> {
        if output.json.for_people() {
            println!("{}", self.to_text(workload));
        }
        output.json.write(&self.to_json(workload))?;
        if let Some(file) = &output.plot {
            self.plot(workload).write(file)?;
        }
        self.produced.iter().chain(&self.consumed).try_for_each(Measured::check)
    }

    fn to_json(&self, workload: &WorkloadArgs) -> Value {
        let measured = |measured: &Option<Measured>| measured.as_ref().map(Measured::to_json);
        json!({
            "benchmark": self.name, "durability": workload.durability.name(), "workload": workload.to_json(),
            "produce": measured(&self.produced), "consume": measured(&self.consumed),
            "broker": self.broker.map(Usage::to_json), "client": self.client.to_json(),
            "limits": self.references.iter().map(Reference::to_json).collect::<Vec<_>>(),
        })
    }

    fn to_text(&self, workload: &WorkloadArgs) -> String {
        let mut lines = vec![headline(self.name, workload)];
        for (what, measured) in [("acknowledged", &self.produced), ("consumed", &self.consumed)] {
            let Some(measured) = measured else { continue };
            lines.push(format!(
                "{what:14} {:.0} records/s, {:.1} MB/s ({} records, {} failed)",
                measured.record_rate(),
                measured.byte_rate() / 1e6,
                measured.records,
                measured.failed
            ));
            if measured.from_actual.count() > 0 {
                lines.push(format!("  from the intended send time  {}", measured.from_intended));
                lines.push(format!("  from the actual send time    {}", measured.from_actual));
            }
        }
        let used = |usage: &Usage| format!("{:.2} CPU seconds, peak memory {:.0} MB", usage.cpu_seconds, usage.peak_rss as f64 / 1e6);
        if let Some(broker) = &self.broker {
            lines.push(format!("broker         {}, {:.0} MB written to the device", used(broker), broker.device_written as f64 / 1e6));
        }
        lines.push(format!("client         {}", used(&self.client)));
        lines.extend(self.references.iter().map(|reference| format!("limit          {reference}")));
        lines.join("\n")
    }

    fn plot(&self, workload: &WorkloadArgs) -> Plot {
        let (mut latencies, mut throughput) = (Vec::new(), Vec::new());
        for (what, measured) in [("acknowledged", &self.produced), ("consumed", &self.consumed)] {
            let Some(measured) = measured else { continue };
            throughput.push(Line { name: what.into(), points: measured.curve() });
            for (from, curve) in [("intended", &measured.from_intended), ("actual", &measured.from_actual)] {
                // In a closed loop a record is meant to be sent when it is.
                let is_another = from == "actual" || workload.rate.is_some();
                if curve.count() > 0 && is_another {
                    latencies.push(Line { name: format!("{what}, from the {from} send time"), points: curve.curve() });
                }
            }
        }
        Plot { title: headline(self.name, workload), latencies, throughput }
    }
}

/// What was run, durability included.
fn headline(name: &str, workload: &WorkloadArgs) -> String {
    let load = match (workload.rate, workload.in_flight) {
        (Some(rate), _) => format!("{rate} records/s, open loop"),
        (None, Some(n)) => format!("{n} in flight each, closed loop"),
        (None, None) => "as fast as it goes".into(),
    };
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    format!(
        "bench {name}: {}, {}, {}, {}-byte records, {load}",
        workload.durability,
        counted(workload.producers, "producer"),
        counted(workload.partitions as usize, "partition"),
        workload.record_size
    )
}
