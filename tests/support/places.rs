//! Nodes on loopback that form a cluster: where each is, how it is started, and what the program says when it is asked.
#![allow(dead_code, reason = "each test uses a part")]

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use serde_json::Value;

use crate::support::{Broker, eventually};

/// Shards of each node.
pub const SHARDS: u16 = 2;

/// A directory that can do direct I/O: the system's scratch directory may be in memory.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// The first of so many neighbouring ports that are free, below those that the kernel gives out by itself.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 400) as u16 * 30;
    loop {
        let first = 16_000 + (start + NEXT.fetch_add(count, Relaxed)) % 15_000;
        let ports = first..first + count;
        if ports.map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).all(|bound| bound.is_ok()) {
            return first;
        }
    }
}

/// Where a node is.
pub struct Place {
    /// Its id.
    pub node: u32,
    /// Its data.
    pub data: PathBuf,
    /// Where clients find its first shard.
    pub clients: String,
    /// Where consensus listens.
    pub consensus: String,
}

impl Place {
    /// A node's place below a directory, at ports that are free.
    pub fn new(directory: &Path, node: u32) -> Place {
        let first = free_ports(2 * SHARDS + 1);
        let at = |port: u16| format!("127.0.0.1:{port}");
        Place { node, data: directory.join(format!("n{node}")), clients: at(first), consensus: at(first + SHARDS) }
    }

    /// What it is started with by itself.
    pub fn flags(&self) -> Vec<String> {
        let node = self.node.to_string();
        let shards = SHARDS.to_string();
        let flags =
            ["--node-id", &node, "--shards", &shards, "--listen", &self.clients, "--cluster-listen", &self.consensus, "--memory", "128M"];
        flags.map(str::to_owned).to_vec()
    }

    /// Starts it, and waits until it is ready.
    pub fn start(&self, join: &[&Place]) -> Broker {
        Broker::start(&self.data, &self.with(join).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Its flags, and the members that it is told of.
    pub fn with(&self, join: &[&Place]) -> Vec<String> {
        let mut flags = self.flags();
        flags.extend(join.iter().flat_map(|member| ["--join".to_owned(), member.consensus.clone()]));
        flags
    }

    /// Starts it, which is to fail; what it says.
    pub fn refused(&self, flags: &[String]) -> String {
        let ended = command(&["serve", "--admin-listen", "none", "--data"]).arg(&self.data).args(flags).output().expect("it runs");
        assert!(!ended.status.success(), "it was to be refused: {ended:?}");
        String::from_utf8_lossy(&ended.stderr).into_owned()
    }

    /// Starts it, and does not wait.
    pub fn spawn(&self, join: &[&Place]) -> Child {
        let mut serve = command(&["serve", "--json", "--admin-listen", "none", "--data"]);
        serve.arg(&self.data).args(self.with(join)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs")
    }

    /// Runs the program with this node as the broker.
    pub fn ask(&self, words: &[&str]) -> Output {
        command(words).args(["--broker", &self.clients]).output().expect("it runs")
    }

    /// What the cluster says of itself here.
    pub fn status(&self) -> Value {
        serde_json::from_slice(&self.ask(&["cluster", "status", "--all", "--json"]).stdout).unwrap_or_default()
    }

    /// Until so many nodes are there and all replicas are in sync.
    pub fn wait_healthy(&self, nodes: usize) {
        let mut last = Value::Null;
        eventually(&format!("{nodes} nodes are healthy"), || {
            last = self.status();
            last["health"] == "healthy" && last["nodes"].as_array().is_some_and(|all| all.len() == nodes)
        });
    }

    /// Writes numbers to a topic; they are acknowledged.
    pub fn produce(&self, topic: &str, records: std::ops::Range<u32>) {
        let mut produce = command(&["produce", topic, "--broker", &self.clients]).stdin(Stdio::piped()).spawn().expect("it runs");
        let mut input = produce.stdin.take().expect("piped");
        for record in records {
            writeln!(input, "{record}").expect("it reads");
        }
        drop(input);
        let said = produce.wait_with_output().expect("our child");
        assert!(said.status.success(), "{topic}: {}", String::from_utf8_lossy(&said.stderr));
    }

    /// All records of a topic, sorted.
    pub fn consume(&self, topic: &str) -> Vec<u32> {
        let read = self.ask(&["consume", topic, "--exit-at-end"]);
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        let mut records: Vec<u32> = String::from_utf8_lossy(&read.stdout).lines().map(|line| line.parse().expect("a number")).collect();
        records.sort_unstable();
        records
    }
}

/// The program.
pub fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
    command.args(words).env("CORELANE_LOG", "warn,openraft=off").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Creates a topic.
pub fn create(at: &Place, topic: &str, partitions: u32, replicas: u32) {
    let (partitions, replicas) = (partitions.to_string(), replicas.to_string());
    let made = at.ask(&["topic", "create", topic, "--partitions", &partitions, "--replication-factor", &replicas]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
