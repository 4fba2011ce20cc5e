//! The table: what the comparison is held to, then every case with a row for each system.

use std::fmt::Write;

use crate::plan::{Case, Extent, Kind, Load};
use crate::results::{Results, median};
use crate::systems::System;

/// What Corelane is to reach against Kafka with its defaults.
struct Goal {
    what: &'static str,
    case: &'static str,
    /// In a line of results.
    path: &'static str,
    /// From the figure's unit to that of the table.
    scale: f64,
    /// Corelane over Kafka must be at least (true) or at most so much.
    at_least: bool,
    ratio: f64,
    words: &'static str,
}

const HUNDRED: &str = "java-50p-100t-1024b";
const THOUSAND: &str = "java-50p-1000t-1024b";
const HALF: &str = "java-50p-100t-1024b-half";
const THREE_NODES: &str = "java-12p-12t-1024b-three-nodes";
const THREE_NODES_HALF: &str = "java-12p-12t-1024b-three-nodes-half";
const MIB: f64 = 1.0 / 1048576.0;

#[rustfmt::skip]
const GOALS: [Goal; 12] = [
    Goal { what: "records/s, 50 producers, 100 partitions, 1 KiB", case: HUNDRED, path: "records_per_second", scale: 1.0, at_least: true, ratio: 1.5, words: "at least 1.5" },
    Goal { what: "records/s, 50 producers, 1,000 partitions, 1 KiB", case: THOUSAND, path: "records_per_second", scale: 1.0, at_least: true, ratio: 2.0, words: "at least 2" },
    Goal { what: "p99 at half load, ms", case: HALF, path: "latency/p99_us", scale: 1e-3, at_least: false, ratio: 1.0 / 3.0, words: "at most 1/3" },
    Goal { what: "p99.9 at half load, ms", case: HALF, path: "latency/p99_9_us", scale: 1e-3, at_least: false, ratio: 0.2, words: "at most 1/5" },
    Goal { what: "broker CPU s per million records, full load, 100 partitions", case: HUNDRED, path: "broker_cpu_us_per_record", scale: 1.0, at_least: false, ratio: 0.5, words: "at most 1/2" },
    Goal { what: "broker CPU s per million records, full load, 1,000 partitions", case: THOUSAND, path: "broker_cpu_us_per_record", scale: 1.0, at_least: false, ratio: 0.5, words: "at most 1/2" },
    Goal { what: "broker CPU s per million records, half load", case: HALF, path: "broker_cpu_us_per_record", scale: 1.0, at_least: false, ratio: 0.5, words: "at most 1/2" },
    Goal { what: "peak memory, MiB, 100 partitions", case: HUNDRED, path: "broker/peak_rss_bytes", scale: MIB, at_least: false, ratio: 0.25, words: "at most 1/4" },
    Goal { what: "peak memory, MiB, 1,000 partitions", case: THOUSAND, path: "broker/peak_rss_bytes", scale: MIB, at_least: false, ratio: 0.25, words: "at most 1/4" },
    Goal { what: "ready to serve, ms", case: HUNDRED, path: "start_up_ms", scale: 1.0, at_least: false, ratio: 0.05, words: "at most 1/20" },
    Goal { what: "records/s, three nodes, 12 producers, 12 partitions, 1 KiB", case: THREE_NODES, path: "records_per_second", scale: 1.0, at_least: true, ratio: 1.5, words: "at least 1.5" },
    Goal { what: "p99 at half load, three nodes, ms", case: THREE_NODES_HALF, path: "latency/p99_us", scale: 1e-3, at_least: false, ratio: 1.0 / 3.0, words: "at most 1/3" },
];

/// The whole report as Markdown.
pub fn write(extent: Extent, cases: &[Case], results: &Results) -> String {
    let mut text = format!("# Side by side, {}\n\n", extent.name());
    text += &machine(results);
    let goals: Vec<&Goal> = GOALS.iter().filter(|goal| cases.iter().any(|case| case.name() == goal.case)).collect();
    if !goals.is_empty() {
        text += "\n## Corelane, synced, against Kafka with its default settings, which do not sync\n\n";
        text += "| what | Kafka | Corelane | ratio | goal | |\n| --- | ---: | ---: | ---: | --- | --- |\n";
        goals.into_iter().for_each(|goal| text += &goal_row(goal, results));
    }
    let mut names: Vec<String> = Vec::new();
    for case in cases {
        let name = case.name();
        if names.contains(&name) || System::ALL.iter().all(|system| results.of(&name, *system).is_empty()) {
            continue;
        }
        text += &section(case, results);
        names.push(name);
    }
    for (step, words) in results.failures() {
        let _ = writeln!(text, "\nFailed: `{step}`: {words}");
    }
    text
}

fn machine(results: &Results) -> String {
    let Some(about) = results.about() else { return String::new() };
    let word = |name: &str| about[name].as_str().unwrap_or_default().to_string();
    format!(
        "{} cores ({}), {:.0} GiB, Linux {}; broker and client share them. {}; {}. Medians over the repeats; ratios are medians of the ratios of each repeat to Kafka's with its defaults.\n",
        about["cores"],
        word("processor"),
        about["memory_gib"].as_f64().unwrap_or(0.0),
        word("kernel"),
        word("versions"),
        word("java").replace('"', ""),
    )
}

fn goal_row(goal: &Goal, results: &Results) -> String {
    let figure = |system| results.median(goal.case, system, goal.path).map(|value| value * goal.scale);
    let ratio = ratio(results, goal.case, System::Corelane, goal.path);
    let verdict = match ratio {
        None => "not measured",
        Some(ratio) if (goal.at_least && ratio >= goal.ratio) || (!goal.at_least && ratio <= goal.ratio) => "holds",
        Some(_) => "missed",
    };
    format!(
        "| {} | {} | {} | {} | {} | {verdict} |\n",
        goal.what,
        number(figure(System::Kafka)),
        number(figure(System::Corelane)),
        number(ratio),
        goal.words
    )
}

/// The median of a system's figure over Kafka's of the same repeat.
fn ratio(results: &Results, case: &str, system: System, path: &str) -> Option<f64> {
    let (ours, theirs) = (results.figures(case, system, path), results.figures(case, System::Kafka, path));
    if ours.len() == theirs.len() {
        return median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect());
    }
    Some(median(ours)? / median(theirs)?)
}

/// A column: its head, where its figure is, its factor.
type Column = (&'static str, &'static str, f64);

fn section(case: &Case, results: &Results) -> String {
    let name = case.name();
    let mut text = format!("\n## {}\n\n", case.title());
    if let Some(rate) = results.of(&name, System::Kafka).first().and_then(|line| line["rate"].as_f64()) {
        let _ = writeln!(text, "{rate:.0} records/s were meant to be sent; latency runs from when each was meant to be.\n");
    }
    if case.nodes > 1 {
        let _ = writeln!(
            text,
            "{} processes on this machine; CPU and memory are those of all of them, bytes on disk those of all replicas.\n",
            case.nodes
        );
    }
    let columns = columns(case);
    text += "| broker | an acknowledged record is | repeats |";
    columns.iter().for_each(|(head, path, _)| text += &if has_ratio(path) { format!(" {head} | ratio |") } else { format!(" {head} |") });
    text += "\n| --- | --- | ---: |";
    columns.iter().for_each(|(_, path, _)| text += if has_ratio(path) { " ---: | ---: |" } else { " ---: |" });
    text += "\n";
    for system in System::ALL {
        let repeats = results.of(&name, system).len();
        if repeats == 0 {
            continue;
        }
        let _ = write!(text, "| {} | {} | {repeats} |", system.title(), system.durability(case.nodes));
        for (_, path, factor) in &columns {
            let figure = results.median(&name, system, path).map(|value| value * factor);
            let _ = write!(text, " {} |", number(figure));
            if !has_ratio(path) {
                continue;
            }
            let ratio = (system != System::Kafka).then(|| ratio(results, &name, system, path)).flatten();
            let _ = write!(text, " {} |", number(ratio));
        }
        text += "\n";
    }
    text
}

/// Shares of the machine, counts and what is the same as another column are not set against Kafka's.
fn has_ratio(path: &str) -> bool {
    !path.ends_with("_share") && !["bytes_per_second", "fewest_in_sync"].contains(&path)
}

fn columns(case: &Case) -> Vec<Column> {
    const PERCENT: f64 = 100.0;
    const MS: f64 = 1e-3;
    const MB: f64 = 1e-6;
    let mut columns = vec![("records/s", "records_per_second", 1.0), ("MB/s", "bytes_per_second", MB)];
    if matches!(case.load, Load::HalfOf(_)) {
        columns.extend([("p50 ms", "latency/p50_us", MS), ("p99 ms", "latency/p99_us", MS), ("p99.9 ms", "latency/p99_9_us", MS)]);
    }
    match case.kind {
        Kind::Behind { .. } => {
            columns.extend([("catch-up MB/s", "catch_up_bytes_per_second", MB), ("catch-up s", "catch_up_seconds", 1.0)]);
        }
        Kind::Retention(_) => columns.extend([("most on disk, MiB", "disk_bytes_most", MIB), ("at the end, MiB", "disk_bytes", MIB)]),
        Kind::Consume(_) => {}
        Kind::Produce => columns.push(("bytes on disk per byte", "disk_bytes_per_byte", 1.0)),
    }
    if case.nodes > 1 {
        columns.push(("fewest in sync at the end", "fewest_in_sync", 1.0));
    }
    columns.extend([
        ("broker CPU us/record", "broker_cpu_us_per_record", 1.0),
        ("broker CPU %", "broker_cpu_share", PERCENT),
        ("client CPU %", "client_cpu_share", PERCENT),
        ("others CPU %", "other_cpu_share", PERCENT),
        ("peak MiB", "broker/peak_rss_bytes", MIB),
        ("ready ms", "start_up_ms", 1.0),
    ]);
    columns
}

/// Three digits that say something.
fn number(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value.fract() == 0.0 && value < 1000.0 => format!("{value:.0}"),
        Some(value) if value >= 1000.0 => {
            let digits = format!("{value:.0}");
            let head = digits.len() % 3;
            let groups = digits.as_bytes()[head..].chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
            let first = (head > 0).then(|| digits[..head].to_string());
            first.into_iter().chain(groups).collect::<Vec<_>>().join(",")
        }
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.3}"),
    }
}
