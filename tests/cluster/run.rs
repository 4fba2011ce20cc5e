//! The check `cluster`: faults under load, and everything that clients were told must be so.
//!
//! A round is one plan: a fault, or two that overlap. Rounds form *lives* of one cluster. At the end of a life all is well again, producers settle what they have, every
//! partition is read from its start to its end, the history of all clients is judged by the judge of the simulator, the nodes are asked to stop, their stores are verified and
//! the replicas compared byte for byte.
//!
//! The seed decides the faults. Moments can't be replayed, and a replayed round begins a life of its own: replay the rounds from a life's first one
//! (`--rounds N` with the same seed) where a fault alone shows nothing. `CORELANE_FAULTS=kill,pause` draws from these kinds only.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use corelane::client::NewTopic;
use corelane::types::TopicId;

use super::clients::{Clients, Load, Shared};
use super::faults::{self, Kind, Means};
use super::lives::{Life, Lives};
use super::network::{Network, Node};
use super::nodes::{Nodes, copy_files};
use super::{replicas, view, wait_until};
use crate::broker::{verify, wait_quiet};
use crate::checker;
use crate::crash::Numbers;
use crate::harness::{Entry, Round};
use crate::small_disk::SmallDisk;

/// Rounds on one cluster, in the short form all of them.
const LIFE: u64 = 25;
const SHORT: u64 = 10;
/// How long it may take until all replicas are in sync again.
pub const HEALTH_PATIENCE: Duration = Duration::from_secs(180);
/// Records that must be acknowledged after a fault, and for how long they are waited for.
const PROGRESS: u64 = 50;
const PROGRESS_PATIENCE: Duration = Duration::from_secs(120);
/// Nodes.
const NODES: u32 = 3;
const TOPIC: &str = "faults";
const PARTITIONS: u32 = 6;
/// Producers, consumers of everything, members of a group.
const CLIENTS: (u32, u32, u32) = (2, 1, 2);
const LOAD: Load = Load { every: Duration::from_millis(8), value_bytes: 2000, large_one_in: 400 };
/// Rolls now and then.
const SEGMENT_BYTES: &str = "1048576";
/// Of the disk that can be filled.
const SMALL_DISK: u64 = 768 << 20;

/// The check.
pub const ENTRY: Entry = Entry {
    name: "cluster",
    about: "three nodes under faults: nothing acknowledged is lost, duplicated or out of order, replicas are the same",
    short_rounds: SHORT,
    start: || Box::new(Lives::<Cluster>(None)),
};

/// One cluster with its clients.
struct Cluster {
    directory: PathBuf,
    // Dropped in this order: nodes before the disk that one of them is on.
    clients: Option<Clients>,
    shared: Arc<Shared>,
    nodes: Nodes,
    disk: Option<SmallDisk>,
    means: Means,
    topic: TopicId,
    begun: Instant,
    log: Vec<String>,
}

impl Life for Cluster {
    const ROUNDS: (u64, u64) = (SHORT, LIFE);

    fn begin(directory: PathBuf, random: &mut Numbers) -> Result<Cluster, String> {
        let _ = fs::remove_dir_all(&directory);
        let mut kinds = Kind::wanted()?;
        let (network, reason) = Network::best(NODES, random.draw())?;
        if let Some(reason) = reason {
            eprintln!("SKIPPED: faults of the network, as there can be no namespaces: {reason}");
            kinds.retain(|kind| !kind.is_of_network());
        }
        let small: Node = 1 + random.below(NODES.into()) as Node;
        let mut nodes = Nodes::new(network, &directory)?;
        let disk = match SmallDisk::mount(SMALL_DISK) {
            Ok(disk) => {
                nodes.set_data(small, disk.data());
                Some(disk)
            }
            Err(reason) => {
                eprintln!("SKIPPED: full disks, as none can be mounted: {reason}");
                kinds.retain(|kind| *kind != Kind::DiskFull);
                None
            }
        };
        if kinds.is_empty() {
            return Err("none of the faults that are wanted can be made here".into());
        }
        let means = Means { kinds, small_disk: disk.as_ref().map(|_| small), partitions: PARTITIONS, nodes: NODES };
        nodes.form()?;
        let new = NewTopic::new(TOPIC).partitions(PARTITIONS).replication_factor(NODES as u16);
        let new = new.config("min.insync.replicas", "2").config("segment.bytes", SEGMENT_BYTES);
        let topic = nodes.create_topic(new)?;
        let shared = Shared::new(nodes.network.clone(), nodes.bootstrap(), TOPIC, PARTITIONS);
        let clients = Some(Clients::start(shared.clone(), CLIENTS, LOAD, random.draw()));
        let life = Cluster { directory, clients, shared, nodes, disk, means, topic, begun: Instant::now(), log: Vec::new() };
        life.wait_healthy().map_err(|what| life.explain(&what))?;
        Ok(life)
    }

    fn hit(&mut self, round: &mut Round<'_>, random: &mut Numbers) -> Result<(), String> {
        let plan = faults::draw(random, &self.means);
        if plan.faults.iter().any(|fault| fault.kind == Kind::Wipe) {
            // Two copies may be lost only where a third is whole.
            self.wait_healthy()?;
        }
        let mut begun = Vec::new();
        for (number, fault) in plan.faults.iter().enumerate() {
            if number > 0 {
                std::thread::sleep(plan.apart);
            }
            self.note(format!("{fault:?}"));
            let Some(one) = fault.begin(&mut self.nodes, TOPIC, self.disk.as_ref())? else { continue };
            self.note(format!("{one}"));
            round.count(fault.kind.name(), 1);
            begun.push((Instant::now() + fault.hold, one));
        }
        for (until, one) in begun {
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            self.note(format!("ends: {one}"));
            one.end(&mut self.nodes, self.disk.as_ref())?;
        }
        for node in self.nodes.network.nodes() {
            self.nodes.wait_ready(node)?;
        }
        self.nodes.expect_running()?;
        match plan.rest {
            Some(rest) => std::thread::sleep(rest),
            None => {
                let after = self.wait_healthy()?;
                self.note(format!("healthy after {:.1} s", after.as_secs_f64()));
                self.wait_progress()?;
            }
        }
        self.expect_no_complaint()
    }

    fn judge(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        self.wait_healthy()?;
        self.wait_progress()?;
        if let Some(clients) = self.clients.take() {
            clients.finish()?;
        }
        self.expect_no_complaint()?;
        self.shared.judge()?;
        round.count("acknowledged", self.shared.acknowledged());
        round.count("refused", self.shared.refused());
        round.count("read", self.shared.read());
        self.wait_healthy()?;
        for node in self.nodes.network.nodes() {
            self.nodes.stop(node)?;
            wait_quiet(self.nodes.data(node))?;
            verify(self.nodes.data(node)).map_err(|e| format!("the store of node {node}: {e}"))?;
        }
        let stores: Vec<_> = self.nodes.network.nodes().map(|node| (node, self.nodes.data(node))).collect();
        let compared = replicas::compare(&stores, self.topic, PARTITIONS)?;
        round.count("compared_segments", compared.segments);
        round.count("compared_mib", compared.bytes >> 20);
        round.count("lives", 1);
        Ok(())
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn explain(&self, what: &str) -> String {
        let path = self.directory.join("history.jsonl");
        let kept = File::create(&path).and_then(|file| {
            let mut out = BufWriter::new(file);
            self.shared.history().write(&mut out)?;
            out.flush()
        });
        let kept = kept.map_or_else(|e| format!("the history is lost: {e}"), |()| format!("history: {}", path.display()));
        if let (Some(disk), Some(node)) = (&self.disk, self.means.small_disk) {
            // It goes with the test.
            let _ = copy_files(&disk.data(), &self.directory.join(format!("node{node}")));
        }
        let last = &self.log[self.log.len().saturating_sub(12)..];
        format!("{what}\n{kept}\nfaults:\n{}\n{}", last.join("\n"), self.nodes.last_words())
    }
}

impl Cluster {
    fn wait_healthy(&self) -> Result<Duration, String> {
        let healthy = || {
            view::expect_healthy(&self.nodes.network, TOPIC, NODES as usize)?;
            view::expect_voters(&self.nodes.network, &self.nodes.bootstrap())
        };
        wait_until("all replicas are in sync and all nodes vote", HEALTH_PATIENCE, healthy)
    }

    fn wait_progress(&self) -> Result<(), String> {
        let due = self.shared.acknowledged() + PROGRESS;
        let enough =
            || if self.shared.acknowledged() >= due { Ok(()) } else { Err(format!("{} acknowledged", self.shared.acknowledged())) };
        wait_until("producers go on", PROGRESS_PATIENCE, enough).map(drop)
    }

    fn note(&mut self, what: String) {
        let line = format!("{:8.3} s {what}", self.begun.elapsed().as_secs_f64());
        eprintln!("{line}");
        self.log.push(line);
    }

    fn expect_no_complaint(&self) -> Result<(), String> {
        let complaints = self.shared.complaints();
        match complaints.len() {
            0 => Ok(()),
            many => Err(format!("{many} errors reached the clients' program, the first: {}", complaints[0])),
        }
    }
}

/// Planted: all three disks lose what was written after a certain moment, and say nothing. The judge must miss the records that were acknowledged behind it.
pub fn finds_a_planted_loss() -> Result<(), String> {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|e| e.to_string())?;
    let mut life = Cluster::begin(scratch.path().join("life"), &mut Numbers(5))?;
    let nodes: Vec<Node> = life.nodes.network.nodes().collect();
    let older = |node: Node| scratch.path().join(format!("older{node}"));
    life.wait_progress()?;
    for node in &nodes {
        life.nodes.kill(*node)?;
        wait_quiet(life.nodes.data(*node))?;
        copy_files(life.nodes.data(*node), &older(*node))?;
    }
    let start = |life: &mut Cluster| -> Result<(), String> {
        nodes.iter().try_for_each(|node| life.nodes.start(*node))?;
        nodes.iter().try_for_each(|node| life.nodes.wait_ready(*node))?;
        life.wait_healthy().map(drop)
    };
    start(&mut life)?;
    life.wait_progress()?;
    for node in &nodes {
        life.nodes.kill(*node)?;
    }
    for node in &nodes {
        life.nodes.wipe(*node)?;
        copy_files(&older(*node), life.nodes.data(*node))?;
    }
    start(&mut life)?;
    let is_loss = |kind| matches!(kind, checker::Kind::LostWrite | checker::Kind::Unseen | checker::Kind::InconsistentOffset);
    let history = life.shared.clone();
    let is_found = || checker::check(&history.history()).iter().any(|finding| is_loss(finding.kind));
    // New records get offsets that others had: that is seen while the clients go on, most often.
    let seen = || if is_found() { Ok(()) } else { Err("no finding".to_string()) };
    if wait_until("a planted loss is seen", Duration::from_secs(30), seen).is_ok() {
        return Ok(());
    }
    if let Some(clients) = life.clients.take() {
        // Clients are told of the loss too, in one way or another, and may not come to an end for it.
        let _ = clients.finish();
    }
    if is_found() { Ok(()) } else { Err(life.explain("a planted loss is not found")) }
}
