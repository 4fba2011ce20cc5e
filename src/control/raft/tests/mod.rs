//! Several nodes in one process, on loopback, each with a directory and a thread of its own.

mod cluster;
mod crash;
mod cut;
mod faults;
mod formats;
mod isolation;
mod leases;
mod storage;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::settings::{NoRegistry, Registry};
use super::store::StartError;
use super::{ClusterStore, Consensus, ConsensusSettings, Origin, Timing};
use crate::cluster::{Applied, Command};
use crate::control::metadata::{MetadataStore, Witness};
use crate::request::{Code, Refusal};
use crate::types::TopicId;

const CLUSTER: [u8; 16] = [9; 16];
const LONG: Duration = Duration::from_secs(60);

/// Every incarnation and every start gets another one.
static LIVES: AtomicU8 = AtomicU8::new(1);

struct TestNode {
    scratch: tempfile::TempDir,
    node: u32,
    incarnation: [u8; 16],
    port: u16,
    /// What others are told, if not the port itself.
    advertised: Option<String>,
    timing: Timing,
    snapshot_entries: u64,
    registry: fn() -> Box<dyn Registry>,
    running: Option<(Consensus, ClusterStore)>,
    /// Its port, which stays open when it falls silent.
    held: Option<TcpListener>,
}

fn life() -> [u8; 16] {
    // Far apart, so that no two nodes draw neighbouring ids.
    let life = LIVES.fetch_add(1, Relaxed);
    std::array::from_fn(|at| life.wrapping_mul(37).wrapping_add(at as u8))
}

/// A port of its own, held until it is used. Below those that the kernel gives to whoever connects: one of them could take it while its node is down.
fn free_port() -> (TcpListener, u16) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = 16_000 + ((std::process::id() * 30) as u16).wrapping_add(NEXT.fetch_add(1, Relaxed)) % 15_000;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return (listener, port);
        }
    }
}

impl TestNode {
    fn new(node: u32) -> TestNode {
        let (held, port) = free_port();
        TestNode {
            scratch: tempfile::tempdir().unwrap(),
            node,
            incarnation: life(),
            port,
            advertised: None,
            timing: Timing::default(),
            snapshot_entries: 1_000,
            registry: || Box::new(NoRegistry),
            running: None,
            held: Some(held),
        }
    }

    fn directory(&self) -> PathBuf {
        self.scratch.path().join("consensus")
    }

    fn address(&self) -> String {
        self.advertised.clone().unwrap_or(format!("127.0.0.1:{}", self.port))
    }

    fn try_start(&mut self, cluster: [u8; 16], origin: Origin) -> Result<(), StartError> {
        let begun = Instant::now();
        let listener = loop {
            match self.held.take().map_or_else(|| TcpListener::bind(("127.0.0.1", self.port)), Ok) {
                Ok(listener) => break listener,
                Err(error) if begun.elapsed() > LONG => panic!("port {}: {error}", self.port),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        self.held = Some(listener.try_clone().unwrap());
        let settings = ConsensusSettings {
            directory: self.directory(),
            cluster,
            incarnation: self.incarnation,
            node: self.node,
            proposer: u64::from_le_bytes(life()[..8].try_into().unwrap()),
            listener: Some(listener),
            address: self.address(),
            origin,
            voters: 3,
            timing: self.timing,
            snapshot_entries: self.snapshot_entries,
            keep_entries: self.snapshot_entries.min(ConsensusSettings::ENTRIES.1) / 4,
            cpu: None,
        };
        self.running = Some(Consensus::start(settings, (self.registry)(), Witness::default())?);
        Ok(())
    }

    fn start(&mut self, origin: Origin) -> &mut TestNode {
        self.try_start(CLUSTER, origin).unwrap();
        self
    }

    /// Ends its runtime with everything on it, as a kill would.
    fn kill(&mut self) {
        self.held = None;
        self.running = None;
    }

    /// As a host that is gone, or cut off: its port refuses nothing, and nothing comes from it.
    fn fall_silent(&mut self) {
        self.running = None;
    }

    /// Its disk is lost; it comes back as another.
    fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.directory()).unwrap();
        self.incarnation = life();
    }

    fn store(&self) -> &ClusterStore {
        &self.running.as_ref().expect("it runs").1
    }

    fn ready(&self) {
        self.store().ready_blocking(LONG).unwrap();
    }

    fn propose(&self, command: Command) -> Result<Applied, Refusal> {
        block_on(self.store().propose(command)).map(|committed| committed.applied)
    }

    /// A topic is made, as soon as there is a leader: on a busy machine an election may take longer than a proposal lives, and one that was given up may have been
    /// applied all the same.
    fn decide(&self, topic: Command) {
        let mut tries = 0;
        eventually("a topic is made", || {
            tries += 1;
            match self.propose(topic.clone()) {
                Ok(_) => true,
                Err(refusal) if refusal.code == Code::Unavailable => false,
                Err(refusal) if refusal.code == Code::TopicExists && tries > 1 => true,
                Err(refusal) => panic!("{refusal}"),
            }
        });
    }
}

fn found() -> Origin {
    Origin::Found { catalogue: None }
}

fn join(member: &TestNode) -> Origin {
    Origin::Join { members: vec![member.address()] }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn create(n: u8) -> Command {
    let id = std::array::from_fn(|at| if at == 0 { n } else { 3 });
    Command::CreateTopic { id: TopicId(id), name: format!("t{n}"), partitions: 1, replication_factor: 1, config: vec![] }
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LONG, "it does not come to this: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Three nodes that all vote.
fn three() -> Vec<TestNode> {
    three_with(|_| {})
}

fn three_with(change: impl Fn(&mut TestNode)) -> Vec<TestNode> {
    let mut nodes: Vec<TestNode> = (1..=3).map(TestNode::new).collect();
    nodes.iter_mut().for_each(&change);
    nodes[0].start(found());
    for at in 1..3 {
        let origin = join(&nodes[0]);
        nodes[at].start(origin);
    }
    nodes.iter().for_each(TestNode::ready);
    eventually("all three vote", || voters(&nodes[0]) == [1, 2, 3] && nodes.iter().all(|node| voters(node).len() == 3));
    nodes
}

/// The nodes that vote, as this one knows.
fn voters(node: &TestNode) -> Vec<u32> {
    let mut voters: Vec<u32> =
        node.store().status().members.iter().filter(|(.., votes)| *votes).map(|(_, member, _)| member.node).collect();
    voters.sort_unstable();
    voters
}

/// Which of them leads, by the word of all that run.
fn leader(nodes: &[TestNode]) -> usize {
    let mut found = None;
    eventually("there is one leader", || {
        let running: Vec<_> = nodes.iter().filter(|node| node.running.is_some()).collect();
        let said = running[0].store().status().leader;
        let leads = running.iter().position(|node| node.store().status().leads && Some(node.node) == said);
        let agree = running.iter().all(|node| node.store().status().leader == said);
        found = leads.filter(|_| agree).and_then(|_| nodes.iter().position(|node| Some(node.node) == said));
        found.is_some()
    });
    found.expect("there is one")
}

fn has_topics(node: &TestNode, topics: impl IntoIterator<Item = u8>) -> bool {
    let view = node.store().view();
    topics.into_iter().all(|n| view.topic(&format!("t{n}")).is_some())
}

/// The same state everywhere, to the last command.
#[track_caller]
fn all_alike(nodes: &[TestNode]) {
    nodes.iter().for_each(|node| block_on(node.store().barrier()).unwrap());
    let views: Vec<Arc<_>> = nodes.iter().map(|node| node.store().view()).collect();
    assert!(views.windows(2).all(|pair| pair[0] == pair[1]), "{views:?}");
}
