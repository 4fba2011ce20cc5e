//! Where nodes are: on loopback, or each in a network namespace of its own behind a router, which can stop what one sends to another.
//!
//! The router is a namespace too; clients are in it, so that they reach every node whatever is cut. A cut is a rule of its routing ("from A to B: drop"): one
//! direction, without a word to the sender, for connections that are there as for new ones. Nothing of it touches the host's own network.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::broker::free_ports;

/// A node, from 1.
pub type Node = u32;

/// Shards that a node may have: each has a port for clients and one for other nodes.
pub const MOST_SHARDS: u16 = 2;
/// Ports of one node on loopback: clients of each shard, admin, consensus, replication of each shard, one that no broker has.
const PORTS_EACH: u32 = 2 * MOST_SHARDS as u32 + 3;
/// Of the host's namespaces, ours.
const PREFIX: &str = "corelane-test-";

/// The network between nodes.
pub struct Network {
    nodes: u32,
    kind: Kind,
}

enum Kind {
    /// The first port of all.
    Loopback(u16),
    /// What all namespaces of this network are called.
    Namespaces(String),
}

impl Network {
    /// All nodes on 127.0.0.1, with ports of their own. Nothing can be cut.
    pub fn loopback(nodes: u32, seed: u64) -> Result<Network, String> {
        let address = free_ports(nodes * PORTS_EACH, seed)?;
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).ok_or("no port")?;
        Ok(Network { nodes, kind: Kind::Loopback(port) })
    }

    /// Each node in a namespace of its own; an error says why there can be none.
    pub fn namespaces(nodes: u32) -> Result<Network, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remove_left_over();
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let network = Network { nodes, kind: Kind::Namespaces(name.clone()) };
        network.make(&name)?;
        Ok(network)
    }

    /// Namespaces where they are allowed; otherwise loopback, and the reason.
    pub fn best(nodes: u32, seed: u64) -> Result<(Network, Option<String>), String> {
        match Network::namespaces(nodes) {
            Ok(network) => Ok((network, None)),
            Err(reason) => Ok((Network::loopback(nodes, seed)?, Some(reason))),
        }
    }

    fn make(&self, name: &str) -> Result<(), String> {
        let router = format!("{name}-r");
        ip(&["netns", "add", &router])?;
        ip(&["-n", &router, "link", "set", "lo", "up"])?;
        self.within(None, || fs::write("/proc/sys/net/ipv4/ip_forward", "1")).and_then(|written| written.map_err(|e| e.to_string()))?;
        for node in 1..=self.nodes {
            let (own, outside) = (format!("{name}-{node}"), format!("node{node}"));
            ip(&["netns", "add", &own])?;
            ip(&["-n", &own, "link", "set", "lo", "up"])?;
            ip(&["-n", &router, "link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", &own])?;
            ip(&["-n", &router, "addr", "add", &format!("10.77.{node}.1/24"), "dev", &outside])?;
            ip(&["-n", &router, "link", "set", &outside, "up"])?;
            ip(&["-n", &own, "addr", "add", &format!("10.77.{node}.2/24"), "dev", "eth0"])?;
            ip(&["-n", &own, "link", "set", "eth0", "up"])?;
            ip(&["-n", &own, "route", "add", "default", "via", &format!("10.77.{node}.1")])?;
        }
        Ok(())
    }

    /// All nodes.
    pub fn nodes(&self) -> std::ops::RangeInclusive<Node> {
        1..=self.nodes
    }

    /// Whether it can stop what nodes send to each other.
    pub fn can_cut(&self) -> bool {
        matches!(self.kind, Kind::Namespaces(_))
    }

    fn host(&self, node: Node) -> Ipv4Addr {
        match self.kind {
            Kind::Loopback(_) => Ipv4Addr::LOCALHOST,
            Kind::Namespaces(_) => Ipv4Addr::new(10, 77, node as u8, 2),
        }
    }

    fn port(&self, node: Node, number: u16) -> u16 {
        match self.kind {
            Kind::Loopback(first) => first + (node - 1) as u16 * PORTS_EACH as u16 + number,
            Kind::Namespaces(_) => 9092 + number,
        }
    }

    /// Where clients connect; those of the second shard on the next port.
    pub fn clients(&self, node: Node) -> String {
        format!("{}:{}", self.host(node), self.port(node, 0))
    }

    /// The admin port.
    pub fn admin(&self, node: Node) -> String {
        format!("{}:{}", self.host(node), self.port(node, MOST_SHARDS))
    }

    /// Consensus; the ports of replication follow it.
    pub fn consensus(&self, node: Node) -> String {
        format!("{}:{}", self.host(node), self.port(node, MOST_SHARDS + 1))
    }

    /// Where something else than the broker may listen.
    pub fn spare(&self, node: Node) -> String {
        format!("{}:{}", self.host(node), self.port(node, 2 * MOST_SHARDS + 2))
    }

    /// Whether nodes listen on addresses that the broker calls reachable from elsewhere.
    pub fn is_exposed(&self) -> bool {
        self.can_cut()
    }

    /// Starts a process where a node is.
    pub fn spawn(&self, node: Node, command: &mut Command) -> Result<Child, String> {
        self.within(Some(node), || command.spawn())?.map_err(|e| format!("node {node}: {e}"))
    }

    /// Does something where a node is, or where clients are, on a thread of its own: a thread can go to another namespace, its process stays.
    pub fn within<T: Send>(&self, node: Option<Node>, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter(node)?;
                Ok(work())
            });
            thread.join().map_err(|_| "the thread has panicked".to_string())?
        })
    }

    /// What clients do, where they are.
    pub fn as_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        self.within(None, work)
    }

    /// Takes this thread to where clients are, for good.
    pub fn enter_clients(&self) -> Result<(), String> {
        self.enter(None)
    }

    fn enter(&self, node: Option<Node>) -> Result<(), String> {
        let Kind::Namespaces(name) = &self.kind else { return Ok(()) };
        let path = format!("/run/netns/{name}-{}", node.map_or("r".to_string(), |node| node.to_string()));
        let failed = |error: io::Error| format!("{path}: {error}");
        let file = File::open(&path).map_err(failed)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| failed(e.into()))
    }

    /// Nothing that `from` sends reaches `to` any more.
    pub fn cut(&self, from: Node, to: Node) -> Result<(), String> {
        self.rule("add", from, to)
    }

    /// It does again.
    pub fn mend(&self, from: Node, to: Node) -> Result<(), String> {
        self.rule("del", from, to)
    }

    fn rule(&self, verb: &str, from: Node, to: Node) -> Result<(), String> {
        let Kind::Namespaces(name) = &self.kind else { return Err("loopback can't be cut".into()) };
        let (from, to) = (self.host(from).to_string(), self.host(to).to_string());
        ip(&["-n", &format!("{name}-r"), "rule", verb, "from", &from, "to", &to, "blackhole"])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let Kind::Namespaces(name) = &self.kind else { return };
        for node in self.nodes() {
            let _ = ip(&["netns", "del", &format!("{name}-{node}")]);
        }
        let _ = ip(&["netns", "del", &format!("{name}-r")]);
    }
}

/// Namespaces of test processes that were killed.
fn remove_left_over() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !fs::exists(format!("/proc/{process}")).unwrap_or(true)) {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let done = Command::new("ip").args(arguments).env("PATH", path).output().map_err(|e| format!("ip: {e}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr).trim()))
}
