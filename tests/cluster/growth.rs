//! The check `growth`: under load a fourth node is added and another one decommissioned, by commands that are killed on the way and typed again.
//!
//! In the long form a node is killed in the middle, too. What clients are told is judged as in the check `cluster`. Where replicas and leaders are in the end, the command `status` says.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use corelane::client::NewTopic;
use corelane::types::TopicId;
use serde_json::Value;

use super::clients::{Clients, Load, Shared};
use super::network::{Network, Node};
use super::nodes::Nodes;
use super::run::HEALTH_PATIENCE;
use super::{replicas, wait_until};
use crate::broker::{verify, wait_quiet};
use crate::crash::Numbers;
use crate::harness::{Check, Entry, Round};

const NODES: u32 = 4;
const NEW: Node = 4;
const TOPIC: &str = "growth";
/// With three replicas each, every node has nine in the end of the first part.
const PARTITIONS: u32 = 12;
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
        let mut grown = Grown::begin(Nodes::new(Network::loopback(NODES, random.draw())?, &directory)?, &mut random)?;
        let outcome = grown.run(round, &mut random);
        outcome.map_err(|what| format!("{what}\n{}", grown.nodes.last_words()))?;
        drop(grown);
        fs::remove_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))
    }
}

struct Grown {
    clients: Option<Clients>,
    shared: Arc<Shared>,
    nodes: Nodes,
    topic: TopicId,
}

impl Grown {
    fn begin(mut nodes: Nodes, random: &mut Numbers) -> Result<Grown, String> {
        nodes.form_of(NODES - 1)?;
        let new = NewTopic::new(TOPIC).partitions(PARTITIONS).replication_factor(3);
        let new = new.config("min.insync.replicas", "2").config("segment.bytes", "1048576");
        let topic = nodes.create_topic(new)?;
        let shared = Shared::new(nodes.network.clone(), nodes.bootstrap(), TOPIC, PARTITIONS);
        let clients = Some(Clients::start(shared.clone(), (2, 2, 0), LOAD, random.draw()));
        Ok(Grown { clients, shared, nodes, topic })
    }

    fn run(&mut self, round: &mut Round<'_>, random: &mut Numbers) -> Result<(), String> {
        self.wait_healthy(NODES as usize - 1)?;
        self.wait_progress()?;
        self.nodes.start(NEW)?;
        round.count("killed_commands", self.insist(&["cluster", "add", "4"], !round.is_short, random)?);
        let status = self.wait_healthy(NODES as usize)?;
        expect_even(&status, &[1, 2, 3, 4])?;

        let goes = 1 + random.below(3) as Node;
        eprintln!("node {goes} goes");
        let name = goes.to_string();
        round.count("killed_commands", self.insist(&["cluster", "decommission", &name], !round.is_short, random)?);
        let status = self.wait_healthy(NODES as usize)?;
        let left: Vec<Node> = (1..=NODES).filter(|node| *node != goes).collect();
        expect_even(&status, &left)?;
        if node(&status, goes)["replicas"] != 0 {
            return Err(format!("node {goes} is decommissioned and has replicas: {status}"));
        }
        self.nodes.stop(goes)?;
        let removed = || self.command(&["cluster", "remove", &name]).map(drop);
        wait_until("the node that has stopped is fenced and can be removed", HEALTH_PATIENCE, removed)?;
        self.wait_healthy(NODES as usize - 1)?;
        self.wait_progress()?;
        self.judge(round, &left)
    }

    /// Runs a command and kills it, again and again, then leaves it alone. How often it was killed.
    fn insist(&mut self, arguments: &[&str], crash: bool, random: &mut Numbers) -> Result<u64, String> {
        let mut killed = 0;
        for attempt in 0..=KILLS {
            let mut child = self.spawn(&[arguments, &["--at-once", "2"]].concat()).spawn().map_err(|e| e.to_string())?;
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

    fn spawn(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
        command.args(arguments).args(["--broker", &self.nodes.bootstrap()]).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// What a command prints. Its exit code and words where it fails.
    fn command(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.spawn(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).output().map_err(|e| e.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(format!("{arguments:?} ended with {}: {}{}", output.status, text(&output.stdout), text(&output.stderr))),
        }
    }

    /// Waits until all is well, every leader is where it belongs, and there are so many nodes.
    fn wait_healthy(&self, nodes: usize) -> Result<Value, String> {
        let mut last = Value::Null;
        wait_until("the cluster is healthy", HEALTH_PATIENCE, || {
            let status = self.command(&["cluster", "status", "--json"])?;
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
        let complaints = self.shared.complaints();
        if let Some(first) = complaints.first() {
            return Err(format!("{} errors reached the clients' program, the first: {first}", complaints.len()));
        }
        self.shared.judge()?;
        let verified = self.command(&["cluster", "verify", "--json"])?;
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

/// These nodes lead alike, and have as many replicas.
fn expect_even(status: &Value, nodes: &[Node]) -> Result<(), String> {
    for what in ["leads", "replicas"] {
        let numbers: Vec<u64> = nodes.iter().map(|id| node(status, *id)[what].as_u64().unwrap_or(u64::MAX)).collect();
        let (least, most) = (numbers.iter().min().copied().unwrap_or(0), numbers.iter().max().copied().unwrap_or(0));
        if most - least > 1 {
            return Err(format!("{what} of nodes {nodes:?} are {numbers:?}, which is not even: {status}"));
        }
    }
    Ok(())
}
