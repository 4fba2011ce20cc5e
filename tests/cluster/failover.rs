//! The check `failover`: how long a producer gets no acknowledgement when the leader of its partition is killed, and when it is asked to stop.
//!
//! A round is one trial of each, on one cluster: the leader of a partition goes, and the longest time between two acknowledgements of that partition is taken until
//! producers go on; then the node comes back and is in sync before the next trial. The long form prints percentiles. The short form has no bound but a generous one: a busy
//! machine says nothing about time.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use corelane::client::NewTopic;

use super::clients::{Clients, Load, Shared};
use super::faults::leader_of;
use super::network::Network;
use super::nodes::Nodes;
use super::run::HEALTH_PATIENCE;
use super::{view, wait_until};
use crate::crash::Numbers;
use crate::harness::{Check, Entry, Round};

const NODES: u32 = 3;
const TOPIC: &str = "failover";
const PARTITIONS: u32 = 3;
/// Records of a partition follow each other so closely that a gap is the cluster's.
const LOAD: Load = Load { every: Duration::from_millis(2), value_bytes: 200, large_one_in: 0 };
/// After it, whoever has not gone on has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The new leader must have gone on for this long.
const AFTER: Duration = Duration::from_secs(1);

/// The check.
pub const ENTRY: Entry = Entry {
    name: "failover",
    about: "how long producers wait when a leader is killed, and when it is asked to stop",
    short_rounds: 1,
    start: || Box::new(Failover { running: None, killed: Vec::new(), stopped: Vec::new() }),
};

struct Failover {
    running: Option<Running>,
    killed: Vec<Duration>,
    stopped: Vec<Duration>,
}

struct Running {
    directory: PathBuf,
    clients: Clients,
    shared: Arc<Shared>,
    nodes: Nodes,
}

impl Check for Failover {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        let mut random = Numbers(round.seed);
        let mut running = match self.running.take() {
            Some(running) => running,
            None => Running::begin(round.scratch.with_extension("life"), &mut random)?,
        };
        let partition = random.below(PARTITIONS.into()) as u32;
        let mut trials = || -> Result<(Duration, Duration), String> {
            Ok((running.trial(partition, Nodes::kill)?, running.trial(partition, |nodes, node| nodes.stop(node).map(drop))?))
        };
        let (killed, stopped) = trials().map_err(|what| running.explain(&what))?;
        eprintln!("killed: {} ms, asked to stop: {} ms without an acknowledgement", killed.as_millis(), stopped.as_millis());
        self.killed.push(killed);
        self.stopped.push(stopped);
        self.running = Some(running);
        Ok(())
    }

    fn end(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        let Some(running) = self.running.take() else { return Ok(()) };
        running.end()?;
        for (name, gaps) in [("killed", &mut self.killed), ("stopped", &mut self.stopped)] {
            gaps.sort();
            // The least of the values that so many percent of all are not above.
            let at = |percent: usize| gaps[(gaps.len() * percent).div_ceil(100).max(1) - 1].as_millis() as u64;
            for percent in [50, 90, 99, 100] {
                round.count(&format!("{name}_p{percent}_ms"), at(percent));
            }
        }
        Ok(())
    }
}

impl Running {
    fn begin(directory: PathBuf, random: &mut Numbers) -> Result<Running, String> {
        let _ = fs::remove_dir_all(&directory);
        let (network, _) = Network::best(NODES, random.draw())?;
        let mut nodes = Nodes::new(network, &directory)?;
        nodes.form()?;
        let new = NewTopic::new(TOPIC).partitions(PARTITIONS).replication_factor(NODES as u16).config("min.insync.replicas", "2");
        nodes.create_topic(new)?;
        let shared = Shared::new(nodes.network.clone(), nodes.bootstrap(), TOPIC, PARTITIONS);
        let clients = Clients::start(shared.clone(), (1, 1, 0), LOAD, random.draw());
        Ok(Running { directory, clients, shared, nodes })
    }

    /// The leader of a partition goes in some way, and comes back.
    fn trial(&mut self, partition: u32, go: impl FnOnce(&mut Nodes, u32) -> Result<(), String>) -> Result<Duration, String> {
        let healthy = |nodes: &Nodes| view::expect_healthy(&nodes.network, TOPIC, NODES as usize).map(drop);
        wait_until("all replicas are in sync", HEALTH_PATIENCE, || healthy(&self.nodes))?;
        self.goes_on(partition)?;
        let leader = leader_of(&self.nodes.network, TOPIC, partition).ok_or("nobody leads")?;
        self.shared.reset_gap(partition);
        go(&mut self.nodes, leader)?;
        self.goes_on(partition)?;
        let gap = self.shared.longest_gap(partition);
        self.nodes.start(leader)?;
        self.nodes.wait_ready(leader)?;
        self.nodes.expect_running()?;
        match self.shared.complaints().first() {
            Some(complaint) => Err(format!("an error reached the clients' program: {complaint}")),
            None => Ok(gap),
        }
    }

    /// Until the partition's records have been acknowledged for a while.
    fn goes_on(&self, partition: u32) -> Result<(), String> {
        wait_until("the partition's records are acknowledged", PATIENCE, || {
            let since = self.shared.steady_for(partition);
            if since >= AFTER { Ok(()) } else { Err(format!("without a gap for {} ms only", since.as_millis())) }
        })
        .map(drop)
    }

    fn end(self) -> Result<(), String> {
        let Running { directory, clients, shared, nodes } = self;
        clients.finish()?;
        shared.judge()?;
        drop(nodes);
        fs::remove_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))
    }

    fn explain(&self, what: &str) -> String {
        format!("{what}\n{}", self.nodes.last_words())
    }
}
