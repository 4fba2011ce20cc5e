//! The side-by-side comparison: Apache Kafka, NATS JetStream and Corelane in turn on this machine, the same client against Kafka and Corelane.
//!
//! `cargo bench --bench compare -- --quick`; README.md beside this file says what is compared and how.
//!
//! ```text
//! plan: cases, repeats, order ──> steps: one broker, one topic, one client ──> results: a JSON line each ──> table, chart
//!                                   │          │            │
//!                  systems, broker (1 or 3 nodes)  admin API   clients: java/Load, librdkafka, Kafka's own tool
//! ```
//! Each step has a broker of its own on an empty directory, which goes when it ends: no step sees what another one left.
#![allow(missing_docs)]

mod broker;
mod chart;
mod clients;
mod install;
mod librdkafka;
mod plan;
mod results;
mod steps;
mod systems;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use corelane::cli::bench::BenchError;
use serde_json::{Value, json};

use install::Installed;
use plan::{Case, Extent};
use results::Results;
use systems::System;

/// Kafka, NATS JetStream and Corelane side by side
#[derive(Parser)]
#[command(after_help = "Example: cargo bench --bench compare -- --quick")]
struct Arguments {
    /// A first look: at most 15 minutes
    #[arg(long, conflicts_with_all = ["full", "three_nodes", "smoke"])]
    quick: bool,
    /// Everything: at most 90 minutes
    #[arg(long, conflicts_with_all = ["three_nodes", "smoke"])]
    full: bool,
    /// Only three nodes against three, all repeats: about 8 minutes
    #[arg(long, conflicts_with = "smoke")]
    three_nodes: bool,
    /// Whether it runs at all, in about a minute: the figures say nothing
    #[arg(long)]
    smoke: bool,
    /// Go on where the last run with the same extent stopped
    #[arg(long)]
    resume: bool,
    /// Only write table and chart of what was measured
    #[arg(long, conflicts_with = "resume")]
    report: bool,
    /// Only install what is needed
    #[arg(long)]
    install: bool,
    /// Only steps whose name (CASE/SYSTEM/REPEAT) contains one of these
    #[arg(long, value_delimiter = ',', value_name = "WORD,...")]
    only: Vec<String>,
    /// Where results, table and chart go, with the jars below it
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/compare"), value_name = "DIR")]
    out: PathBuf,
    /// Where brokers keep their data: on a disk, with 30 GiB free [default: data below --out]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    let outcome = match words.peek().is_some_and(|word| word == "librdkafka") {
        true => librdkafka::run(words.skip(1)),
        false => run(&Arguments::parse()).map_err(|error| error.to_string()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(words) => {
            eprintln!("compare: {words}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), BenchError> {
    let extent = match arguments {
        Arguments { quick: true, .. } => Extent::Quick,
        Arguments { full: true, .. } => Extent::Full,
        Arguments { three_nodes: true, .. } => Extent::ThreeNodes,
        Arguments { smoke: true, .. } => Extent::Smoke,
        Arguments { install: true, .. } => Extent::Quick,
        _ => return Err(BenchError::Usage("say how much: --quick, --full, --three-nodes or --smoke".into())),
    };
    fs::create_dir_all(&arguments.out).map_err(BenchError::io(format!("creating {}", arguments.out.display())))?;
    // Maven has its own idea of what a relative path begins at.
    let out = &arguments.out.canonicalize().map_err(BenchError::io(format!("resolving {}", arguments.out.display())))?;
    let file = out.join(format!("{}.jsonl", extent.name()));
    if arguments.report {
        return report(extent, &Results::open(&file, true)?, out);
    }
    let steps = extent.steps();
    let with_nats = steps.iter().any(|step| !step.system.speaks_kafka());
    let installed = Installed::bring(&out.join("installed"), with_nats)?;
    if arguments.install {
        return Ok(());
    }
    let mut results = Results::open(&file, arguments.resume)?;
    if results.about().is_none() {
        results.add(json!({"about": about(&installed)}))?;
    }
    let scratch = steps::scratch(arguments.data.as_deref().unwrap_or(&out.join("data")))?;
    let context = steps::Context { installed, scratch };
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|word| name.contains(word.as_str()));
    let (begun, budget) = (Instant::now(), Duration::from_secs(extent.budget_seconds()));
    let wanted: Vec<_> = steps.iter().filter(|step| wanted(&step.name())).collect();
    for (number, step) in wanted.iter().enumerate() {
        let name = step.name();
        if results.has(&name) {
            continue;
        }
        if begun.elapsed() > budget {
            println!("stopped after {} s before {name}: --resume goes on from there", begun.elapsed().as_secs());
            break;
        }
        let started = Instant::now();
        let rate = steps::half_of(&step.case).map(|of| results.half_rate(&step.case, of)).transpose();
        let measured = rate.and_then(|rate| context.measure(step, rate));
        let mut line = measured.unwrap_or_else(|error| json!({"step": name.clone(), "failed": error.to_string()}));
        line["took_seconds"] = json!(started.elapsed().as_secs_f64());
        println!("{}/{} {name}: {} ({:.0} s)", number + 1, wanted.len(), in_short(&line), started.elapsed().as_secs_f64());
        results.add(line)?;
    }
    report(extent, &results, out)?;
    match results.failures().first() {
        None => Ok(()),
        Some((step, words)) => Err(BenchError::Host(format!("{} steps failed; {step}: {words}", results.failures().len()))),
    }
}

/// Writes table and chart.
fn report(extent: Extent, results: &Results, out: &Path) -> Result<(), BenchError> {
    let cases: Vec<Case> = extent.phases().into_iter().flatten().collect();
    let table = table::write(extent, &cases, results);
    let (markdown, svg) = (out.join(format!("{}.md", extent.name())), out.join(format!("{}.svg", extent.name())));
    fs::write(&markdown, &table).map_err(BenchError::io(format!("writing {}", markdown.display())))?;
    chart::write(&cases, results, &svg)?;
    println!("\n{table}\nwritten: {}, {}", markdown.display(), svg.display());
    Ok(())
}

fn in_short(line: &Value) -> String {
    if let Some(words) = line["failed"].as_str() {
        return format!("FAILED, {words}");
    }
    let figure = |path: &str| line.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
    let mut words = format!("{:.0} records/s, broker {:.2} us/record", figure("/records_per_second"), figure("/broker_cpu_us_per_record"));
    words += &format!(", peak {:.0} MiB", figure("/broker/peak_rss_bytes") / 1048576.0);
    if !line["latency"].is_null() {
        words += &format!(", p99 {:.1} ms, p99.9 {:.1} ms", figure("/latency/p99_us") / 1e3, figure("/latency/p99_9_us") / 1e3);
    }
    words
}

/// The machine and the versions.
fn about(installed: &Installed) -> Value {
    let words = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_string();
        line.split_once(':').map(|(_, value)| value.trim().to_string()).unwrap_or_default()
    };
    let java = std::process::Command::new("java").arg("-version").output().map(|output| output.stderr).unwrap_or_default();
    json!({
        "processor": words("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory_gib": words("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1048576.0,
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "java": String::from_utf8_lossy(&java).lines().next().unwrap_or_default().to_string(),
        "versions": installed.versions(),
        "systems": System::ALL.map(System::title),
    })
}
