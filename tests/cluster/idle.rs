//! The check `idle`: what many replicated partitions cost that nobody uses: processor time of each node, bytes between each pair of nodes.
//!
//! Bytes are those of the nodes' own network interfaces, headers included, so they need namespaces. Where three nodes talk to each other only, the bytes of a pair
//! follow from what each of the three sent and received.

use std::fs;
use std::time::{Duration, Instant};

use corelane::client::NewTopic;

use super::network::{Network, Node};
use super::nodes::Nodes;
use super::run::HEALTH_PATIENCE;
use super::{view, wait_until};
use crate::harness::{Check, Entry, Round};

const NODES: u32 = 3;
const TOPIC: &str = "idle";
/// Of the long form, unless `--partitions` says otherwise.
const PARTITIONS: u32 = 5000;
/// What was begun by the topic's creation is over then.
const SETTLE: Duration = Duration::from_secs(30);
const MEASURED: Duration = Duration::from_secs(60);

/// The check.
pub const ENTRY: Entry = Entry {
    name: "idle",
    about: "what idle replicated partitions cost: processor time, bytes between nodes",
    short_rounds: 1,
    start: || Box::new(Idle),
};

struct Idle;

impl Check for Idle {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        let (partitions, settle, measured) = match round.is_short {
            true => (50, Duration::from_secs(1), Duration::from_secs(2)),
            false => (round.partitions.unwrap_or(PARTITIONS), SETTLE, MEASURED),
        };
        let (network, reason) = Network::best(NODES, round.seed)?;
        if let Some(reason) = reason {
            eprintln!("SKIPPED: bytes between nodes, as there can be no namespaces: {reason}");
        }
        let mut nodes = Nodes::new(network, round.scratch)?;
        nodes.form()?;
        measure(round, &mut nodes, partitions, settle, measured).map_err(|what| format!("{what}\n{}", nodes.last_words()))
    }
}

fn measure(round: &mut Round<'_>, nodes: &mut Nodes, partitions: u32, settle: Duration, measured: Duration) -> Result<(), String> {
    let new = NewTopic::new(TOPIC).partitions(partitions).replication_factor(NODES as u16).config("min.insync.replicas", "2");
    nodes.create_topic(new)?;
    let healthy = || view::expect_healthy(&nodes.network, TOPIC, NODES as usize).map(drop);
    let after = wait_until("all replicas are in sync", HEALTH_PATIENCE, healthy)?;
    eprintln!("{partitions} partitions are in sync after {:.1} s", after.as_secs_f64());
    std::thread::sleep(settle);
    let before = Reading::take(nodes)?;
    std::thread::sleep(measured);
    let used = before.until(&Reading::take(nodes)?);
    nodes.expect_running()?;
    for (at, percent) in used.processor_percent.iter().enumerate() {
        eprintln!("node {}: {percent:.2} % of a core", at + 1);
        round.count(&format!("node{}_core_permyriad", at + 1), (percent * 100.0).round() as u64);
    }
    for (pair, rate) in &used.pair_bytes_s {
        eprintln!("nodes {} and {}: {rate:.0} bytes/s both ways", pair.0, pair.1);
        round.count(&format!("pair{}{}_bytes_s", pair.0, pair.1), rate.round() as u64);
    }
    Ok(())
}

/// Counters of all nodes at one moment.
struct Reading {
    at: Instant,
    /// Processor time by node, seconds.
    processor_s: Vec<f64>,
    /// Bytes sent and received by node, where they can be told apart.
    bytes: Option<Vec<u64>>,
}

/// Between two readings.
struct Used {
    processor_percent: Vec<f64>,
    pair_bytes_s: Vec<((Node, Node), f64)>,
}

impl Reading {
    fn take(nodes: &Nodes) -> Result<Reading, String> {
        let pids = nodes.network.nodes().map(|node| nodes.pid(node).ok_or_else(|| format!("node {node} does not run")));
        let pids = pids.collect::<Result<Vec<_>, _>>()?;
        let bytes = nodes.network.can_cut().then(|| pids.iter().map(|pid| interface_bytes(*pid)).collect::<Result<Vec<_>, _>>());
        let processor_s = pids.iter().map(|pid| processor_s(*pid)).collect::<Result<Vec<_>, _>>()?;
        Ok(Reading { at: Instant::now(), processor_s, bytes: bytes.transpose()? })
    }

    fn until(&self, later: &Reading) -> Used {
        let seconds = (later.at - self.at).as_secs_f64();
        let processor_percent = self.processor_s.iter().zip(&later.processor_s).map(|(a, b)| (b - a) / seconds * 100.0).collect();
        let mut pair_bytes_s = Vec::new();
        if let (Some(before), Some(after)) = (&self.bytes, &later.bytes) {
            let each: Vec<f64> = before.iter().zip(after).map(|(a, b)| (b - a) as f64 / seconds).collect();
            let sum: f64 = each.iter().sum();
            // What two of three exchange is counted by both, and not by the third one.
            for (one, other, third) in [(0, 1, 2), (0, 2, 1), (1, 2, 0)] {
                pair_bytes_s.push(((one as Node + 1, other as Node + 1), sum / 2.0 - each[third]));
            }
        }
        Used { processor_percent, pair_bytes_s }
    }
}

/// User and system time of a process, seconds.
fn processor_s(pid: u32) -> Result<f64, String> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    // Behind the name, which may hold anything but a last bracket: user time is the 12th field, system time the 13th.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: Vec<u64> = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    match ticks[..] {
        [user, system] => Ok((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64),
        _ => Err(format!("{path} is {text:?}")),
    }
}

/// What the interface of a node has received and sent, bytes.
fn interface_bytes(pid: u32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/net/dev");
    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).ok_or_else(|| format!("{path} is {text:?}"))?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    match fields[..] {
        [received, _, _, _, _, _, _, _, sent, ..] => Ok(received + sent),
        _ => Err(format!("{path} is {text:?}")),
    }
}
