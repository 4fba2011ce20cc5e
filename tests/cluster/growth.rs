//! The check `growth`: under load a fourth node is added and another one decommissioned, by commands that are killed on the way and typed again.
//!
//! What clients are told is judged as in the check `cluster`; besides, there is keyed load, of which each record must be there once and in order.
//! Where replicas and leaders are in the end,
//! the command `status` says. Before, a topic gets more partitions under load: see `raise`.
//!
//! In the long form, rounds with an even number have keyed load of half of the maximum, and its latencies are compared with those before. In the
//! others a node is killed in the middle of
//! each move, which is felt, and nothing is measured.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corelane::client::NewTopic;
use corelane::types::TopicId;
use serde_json::Value;

use super::clients::{Clients, Load, Shared};
use super::keyed::{Keyed, Shape};
use super::network::{Network, Node};
use super::nodes::Nodes;
use super::run::HEALTH_PATIENCE;
use super::{raise, replicas, wait_until};
use crate::broker::{verify, wait_quiet};
use crate::crash::Numbers;
use crate::harness::{Check, Entry, Round};

const NODES: u32 = 4;
const NEW: Node = 4;
const TOPIC: &str = "growth";
/// With three replicas each, every node has nine in the end of the first part.
const PARTITIONS: u32 = 12;
/// The topic with keyed load, of as many.
const KEYED: &str = "keyed";
/// Bytes of one of its segments, and bytes that are kept of each partition.
const KEYED_SEGMENT: &str = "67108864";
const KEYED_BYTES: &str = "268435456";
/// Shards of each node.
const SHARDS: u16 = 2;
/// Keyed records a second where nothing is measured.
const LITTLE: f64 = 200.0;
/// How long the maximum is measured, and latencies before anything moves.
const MAXIMUM: Duration = Duration::from_secs(10);
const BEFORE: Duration = Duration::from_secs(20);
/// Whatever was changed is let be for so long before latencies are taken.
const SETTLE: Duration = Duration::from_secs(3);
/// Load, percent of the maximum.
const PERCENT: f64 = 50.0;
/// The 99th percentile may be twice that before.
const MOST_RATIO: f64 = 2.0;
/// Clients refresh their metadata so often, where partitions are raised: in the long form, and in the short one.
const METADATA_MAX_AGE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));
const LOAD: Load = Load { every: Duration::from_millis(10), value_bytes: 2000, large_one_in: 400 };
/// Longest time that a command is left alone before it is killed.
const MOST_BEFORE_KILL_MS: u64 = 1500;
/// How often a command is killed before it is left alone.
const KILLS: u32 = 3;
/// A command that is left alone must end within this.
const COMMAND_PATIENCE: Duration = Duration::from_secs(300);

/// The check.
pub const ENTRY: Entry = Entry {
    name: "growth",
    about: "a node is added and another decommissioned under load, by commands that are killed: nothing is lost, all is even",
    short_rounds: 1,
    start: || Box::new(Growth),
};

struct Growth;

impl Check for Growth {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        let mut random = Numbers(round.seed);
        let directory = round.scratch.with_extension("growth");
        let _ = fs::remove_dir_all(&directory);
        let mut grown = Grown::begin(Nodes::new(Network::loopback(NODES, random.draw())?, &directory)?, round, &mut random)?;
        let outcome = grown.run(round, &mut random);
        outcome.map_err(|what| format!("{what}\n{}", grown.nodes.last_words()))?;
        drop(grown);
        fs::remove_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))
    }
}

struct Grown {
    keyed: Option<Keyed>,
    clients: Option<Clients>,
    shared: Arc<Shared>,
    nodes: Nodes,
    topic: TopicId,
    /// What latencies are held against, where they are.
    p99_before_us: Option<f64>,
    /// Whether a node is killed in the middle of each move.
    crashes: bool,
}

impl Grown {
    fn begin(mut nodes: Nodes, round: &mut Round<'_>, random: &mut Numbers) -> Result<Grown, String> {
        let (is_measured, crashes) =
            (!round.is_short && round.number.is_multiple_of(2), !round.is_short && !round.number.is_multiple_of(2));
        nodes.set_shards(SHARDS);
        nodes.form_of(NODES - 1)?;
        let maximum = if is_measured { Some(Keyed::maximum_of(&nodes, PARTITIONS, MAXIMUM)?) } else { None };
        let per_second = maximum.map_or(LITTLE, |maximum| maximum * PERCENT / 100.0);
        // Its group's own topic has fifty partitions, which are too much to move for the short form.
        if !round.is_short {
            raise::raise(round, &nodes, per_second, METADATA_MAX_AGE.0)?;
        }

        let new = |name: &str| NewTopic::new(name).partitions(PARTITIONS).replication_factor(3).config("min.insync.replicas", "2");
        let topic = nodes.create_topic(new(TOPIC).config("segment.bytes", "1048576"))?;
        // So that a disk holds it, however long it takes: the reader is never so far behind.
        nodes.create_topic(new(KEYED).config("segment.bytes", KEYED_SEGMENT).config("retention.bytes", KEYED_BYTES))?;
        let shared = Shared::new(nodes.network.clone(), nodes.bootstrap(), TOPIC, PARTITIONS);
        // A large value is felt by all others, at any time.
        let load = Load { large_one_in: if is_measured { 0 } else { LOAD.large_one_in }, ..LOAD };
        let clients = Some(Clients::start(shared.clone(), (2, 2, 0), load, random.draw()));
        let shape = Shape { topic: KEYED, partitions: PARTITIONS, per_second, metadata_max_age: None, is_read: true };
        let keyed = Some(Keyed::start(nodes.network.clone(), nodes.bootstrap(), &shape));
        let mut grown = Grown { keyed, clients, shared, nodes, topic, p99_before_us: None, crashes };
        grown.wait_healthy(NODES as usize - 1)?;
        if let (Some(maximum), Some(keyed)) = (maximum, &grown.keyed) {
            std::thread::sleep(SETTLE);
            let before = keyed.latencies_within(BEFORE);
            let (p50, p99) = (before.quantile_us(0.5), before.quantile_us(0.99));
            eprintln!(
                "keyed load: {per_second:.0} records/s of 1 KiB, {PERCENT} % of {maximum:.0}; p50 {p50:.0} us, p99 {p99:.0} us before anything moves"
            );
            round.count(&format!("run{}_keyed_max_per_s", round.number + 1), maximum as u64);
            round.count(&format!("run{}_p99_before_us", round.number + 1), p99 as u64);
            grown.p99_before_us = Some(p99);
        }
        Ok(grown)
    }

    fn run(&mut self, round: &mut Round<'_>, random: &mut Numbers) -> Result<(), String> {
        self.wait_progress()?;
        self.nodes.start(NEW)?;
        self.nodes.wait_ready(NEW)?;
        self.move_all(round, &["cluster", "add", "4"], random)?;
        let status = self.wait_healthy(NODES as usize)?;
        expect_even(&status, &[1, 2, 3, 4])?;

        let goes = 1 + random.below(3) as Node;
        eprintln!("node {goes} goes");
        let name = goes.to_string();
        self.move_all(round, &["cluster", "decommission", &name], random)?;
        let status = self.wait_healthy(NODES as usize)?;
        let left: Vec<Node> = (1..=NODES).filter(|node| *node != goes).collect();
        expect_even(&status, &left)?;
        if node(&status, goes)["replicas"] != 0 {
            return Err(format!("node {goes} is decommissioned and has replicas: {status}"));
        }
        self.nodes.stop(goes)?;
        // A command may be given up while the cluster is still at it: the next one finds the node gone.
        let removed = || match self.nodes.run_command(&["cluster", "remove", &name]) {
            Err(words) if !words.contains("BrokerIdNotRegistered") => Err(words),
            _ => Ok(()),
        };
        wait_until("the node that has stopped is fenced and can be removed", HEALTH_PATIENCE, removed)?;
        self.wait_healthy(NODES as usize - 1)?;
        self.wait_progress()?;
        if round.is_short {
            raise::raise(round, &self.nodes, LITTLE, METADATA_MAX_AGE.1)?;
        }
        self.judge(round, &left)
    }

    /// Runs a command until all is where it is to be, and takes latencies meanwhile.
    fn move_all(&mut self, round: &mut Round<'_>, arguments: &[&str], random: &mut Numbers) -> Result<(), String> {
        if let Some(keyed) = &self.keyed {
            keyed.take_latencies();
        }
        let begun = Instant::now();
        round.count("killed_commands", self.insist(arguments, self.crashes, random)?);
        self.wait_healthy(NODES as usize)?;
        let Some(keyed) = &self.keyed else { return Ok(()) };
        keyed.expect_no_complaint()?;
        let (took, during) = (begun.elapsed(), keyed.take_latencies());
        if let Some(before) = self.p99_before_us {
            let (p50, p99) = (during.quantile_us(0.5), during.quantile_us(0.99));
            let (command, ratio) = (arguments.join(" "), p99 / before);
            eprintln!("{command}: {:.1} s, p50 {p50:.0} us, p99 {p99:.0} us of {} records", took.as_secs_f64(), during.count());
            round.count(&format!("run{}_p99_{}_us", round.number + 1, arguments[1]), p99 as u64);
            round.target(
                ratio <= MOST_RATIO,
                &format!("during {command} the p99 is {ratio:.2} times that before, expected {MOST_RATIO} at most"),
            );
        }
        Ok(())
    }

    /// Runs a command and kills it, again and again, then leaves it alone. How often it was killed.
    fn insist(&mut self, arguments: &[&str], crash: bool, random: &mut Numbers) -> Result<u64, String> {
        let mut killed = 0;
        for attempt in 0..=KILLS {
            let mut child = self.nodes.command(&[arguments, &["--at-once", "2"]].concat()).spawn().map_err(|e| e.to_string())?;
            let wait = if attempt < KILLS { Duration::from_millis(1 + random.below(MOST_BEFORE_KILL_MS)) } else { COMMAND_PATIENCE };
            let until = Instant::now() + wait;
            let ended = loop {
                match child.try_wait().map_err(|e| e.to_string())? {
                    Some(status) => break Some(status),
                    None if Instant::now() >= until => break None,
                    None => std::thread::sleep(Duration::from_millis(5)),
                }
            };
            match ended {
                Some(status) if status.success() => {
                    eprintln!("{arguments:?} was killed {killed} times");
                    return Ok(killed);
                }
                Some(status) => return Err(format!("{arguments:?} ended with {status}")),
                None => child.kill().and_then(|()| child.wait()).map_err(|e| e.to_string())?,
            };
            killed += 1;
            if crash && killed == 1 {
                let node = 1 + random.below(u64::from(NODES) - 1) as Node;
                eprintln!("node {node} is killed and started again");
                self.nodes.kill(node)?;
                self.nodes.start(node)?;
                self.nodes.wait_ready(node)?;
            }
        }
        Err(format!("{arguments:?} does not end within {} s", COMMAND_PATIENCE.as_secs()))
    }

    /// Waits until all is well, every leader is where it belongs, and there are so many nodes.
    fn wait_healthy(&self, nodes: usize) -> Result<Value, String> {
        let mut last = Value::Null;
        wait_until("the cluster is healthy", HEALTH_PATIENCE, || {
            let status = self.nodes.run_command(&["cluster", "status", "--json"])?;
            last = serde_json::from_str(&status).map_err(|e| format!("{e}: {status}"))?;
            let counts = &last["counts"];
            let is_settled = counts["moving"] == 0 && counts["led_elsewhere"] == 0 && last["nodes"].as_array().map(Vec::len) == Some(nodes);
            if is_settled { Ok(()) } else { Err(status) }
        })?;
        Ok(last)
    }

    fn wait_progress(&self) -> Result<(), String> {
        let due = self.shared.acknowledged() + 50;
        let enough =
            || if self.shared.acknowledged() >= due { Ok(()) } else { Err(format!("{} acknowledged", self.shared.acknowledged())) };
        wait_until("producers go on", HEALTH_PATIENCE, enough).map(drop)
    }

    fn judge(&mut self, round: &mut Round<'_>, left: &[Node]) -> Result<(), String> {
        if let Some(clients) = self.clients.take() {
            clients.finish()?;
        }
        if let Some(keyed) = self.keyed.take() {
            round.count("keyed_records", keyed.finish()?.values().sum());
        }
        let complaints = self.shared.complaints();
        if let Some(first) = complaints.first() {
            return Err(format!("{} errors reached the clients' program, the first: {first}", complaints.len()));
        }
        self.shared.judge()?;
        let verified = self.nodes.run_command(&["cluster", "verify", "--json"])?;
        let verified: Value = serde_json::from_str(&verified).map_err(|e| format!("{e}: {verified}"))?;
        round.count("acknowledged", self.shared.acknowledged());
        round.count("read", self.shared.read());
        round.count("verified_segments", verified["segments"].as_u64().unwrap_or(0));
        for node in left {
            self.nodes.stop(*node)?;
            wait_quiet(self.nodes.data(*node))?;
            verify(self.nodes.data(*node)).map_err(|e| format!("the store of node {node}: {e}"))?;
        }
        // Three replicas on three nodes: each has all.
        let stores: Vec<_> = left.iter().map(|node| (*node, self.nodes.data(*node))).collect();
        let compared = replicas::compare(&stores, self.topic, PARTITIONS)?;
        round.count("compared_segments", compared.segments);
        Ok(())
    }
}

fn node(status: &Value, node: Node) -> &Value {
    status["nodes"].as_array().and_then(|nodes| nodes.iter().find(|found| found["node"] == node)).unwrap_or(&Value::Null)
}

/// These nodes lead alike, and have as many replicas; each of their shards leads as much as it has to, or one more or less.
fn expect_even(status: &Value, nodes: &[Node]) -> Result<(), String> {
    for what in ["leads", "replicas"] {
        let numbers: Vec<u64> = nodes.iter().map(|id| node(status, *id)[what].as_u64().unwrap_or(u64::MAX)).collect();
        let (least, most) = (numbers.iter().min().copied().unwrap_or(0), numbers.iter().max().copied().unwrap_or(0));
        if most - least > 1 {
            return Err(format!("{what} of nodes {nodes:?} are {numbers:?}, which is not even: {status}"));
        }
    }
    let by_shard = nodes.iter().flat_map(|id| node(status, *id)["leads_by_shard"].as_array().into_iter().flatten());
    let shards: Vec<f64> = by_shard.map(|leads| leads.as_f64().unwrap_or(f64::NAN)).collect();
    let even = shards.iter().sum::<f64>() / shards.len() as f64;
    let is_even = shards.len() == nodes.len() * usize::from(SHARDS) && shards.iter().all(|leads| (leads - even).abs() <= 1.0);
    let words = format!("leads by shard of nodes {nodes:?} are {shards:?}, {even:.2} each would be even");
    eprintln!("{words}");
    if is_even { Ok(()) } else { Err(format!("{words}: {status}")) }
}
