//! What a node of the consensus is told.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use super::ConsensusId;
use super::formation::Origin;
use crate::cluster::{CatalogueView, Command};
use crate::limits;

/// The times of the consensus. They must be alike on all nodes: leases of one are judged by another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// How often a leader says that it lives; at most half of `election`, so that one that is late starts no election.
    pub heartbeat: Duration,
    /// How long a voter that hears no leader waits at least; at random up to twice as long.
    pub election: Duration,
    /// A node that the leader has not heard for so long is fenced.
    pub node_lease: Duration,
    /// A proposal that is not decided by then is given up: its outcome is unknown.
    pub proposal: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing::new(Duration::from_millis(limits::CONSENSUS_HEARTBEAT_MS), Duration::from_millis(limits::CONSENSUS_ELECTION_MS))
    }
}

impl Timing {
    /// The times that go with these two: a node's lease outlives the election of a leader, which has to answer its heartbeats, and a proposal several.
    pub fn new(heartbeat: Duration, election: Duration) -> Timing {
        Timing { heartbeat, election, node_lease: election * 3, proposal: election * 10 }
    }

    /// How long a node may act on a heartbeat that it sent: a tenth less than what the leader gives it, for clocks that run apart.
    pub fn own_lease(&self) -> Duration {
        self.node_lease * 9 / 10
    }

    /// How often a node says that it lives.
    pub fn node_heartbeat(&self) -> Duration {
        self.node_lease / 3
    }
}

/// What a node of the consensus is told.
#[derive(Debug)]
pub struct ConsensusSettings {
    /// The directory, `<data>/consensus`.
    pub directory: PathBuf,
    /// UUID of the cluster.
    pub cluster: [u8; 16],
    /// UUID of this life of the node.
    pub incarnation: [u8; 16],
    /// Its id in the cluster.
    pub node: u32,
    /// A number for this start that no other start of any node has: random.
    pub proposer: u64,
    /// The consensus port, bound; `None` of a node that is alone and stays so.
    pub listener: Option<TcpListener>,
    /// Where others reach the port: host and port.
    pub address: String,
    /// What to do with an empty directory.
    pub origin: Origin,
    /// How many nodes vote: 3 or 5.
    pub voters: usize,
    /// The times.
    pub timing: Timing,
    /// Entries after which the next snapshot is made.
    pub snapshot_entries: u64,
    /// Entries that are kept behind a snapshot.
    pub keep_entries: u64,
    /// A CPU that no shard has.
    pub cpu: Option<usize>,
}

impl ConsensusSettings {
    /// The limits' number of entries after which a snapshot is made, and of those kept.
    pub const ENTRIES: (u64, u64) = (limits::CONSENSUS_SNAPSHOT_ENTRIES, limits::CONSENSUS_KEEP_ENTRIES);
}

/// What the consensus needs to know of the nodes in the catalogue, which it does not look into.
pub trait Registry: Send + Sync + 'static {
    /// Whether this life of a node may act: it is the one that is registered, and not fenced. One that was silent for long may have been followed by another.
    fn is_live(&self, view: &CatalogueView, node: u32, life: ConsensusId) -> bool;

    /// The command that fences a node that is live; `None` if there is nothing to do.
    fn fence(&self, view: &CatalogueView, node: u32) -> Option<Command>;

    /// Whether a node is to go: others are to vote in its place.
    fn retires(&self, _view: &CatalogueView, _node: u32) -> bool {
        false
    }
}

/// Nodes are not in the catalogue: each is taken for live, and none is fenced.
#[derive(Clone, Copy, Debug)]
pub struct NoRegistry;

impl Registry for NoRegistry {
    fn is_live(&self, _view: &CatalogueView, _node: u32, _life: ConsensusId) -> bool {
        true
    }

    fn fence(&self, _view: &CatalogueView, _node: u32) -> Option<Command> {
        None
    }
}
