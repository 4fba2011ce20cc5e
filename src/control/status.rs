//! What is said of the node as a whole: who it is, where it listens, whether it serves.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Instant;

/// How far the node is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum NodeState {
    /// Recovering; no shard accepts yet.
    Starting,
    /// Every shard accepts.
    Ready,
    /// Finishing what is in hand.
    Draining,
    /// A shard has failed; the process is going down.
    Failed,
}

impl NodeState {
    const ALL: [NodeState; 4] = [NodeState::Starting, NodeState::Ready, NodeState::Draining, NodeState::Failed];

    /// Its name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            NodeState::Starting => "starting",
            NodeState::Ready => "ready",
            NodeState::Draining => "draining",
            NodeState::Failed => "failed",
        }
    }
}

/// Where a shard is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardPlace {
    /// Which shard.
    pub shard: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// The CPU that it is pinned to.
    pub cpu: usize,
}

/// The node, as the admin port tells of it.
#[derive(Debug)]
pub struct NodeStatus {
    node: u32,
    started: Instant,
    state: AtomicU8,
    places: OnceLock<Vec<ShardPlace>>,
}

impl NodeStatus {
    /// A node that is starting now.
    pub fn new(node: u32) -> NodeStatus {
        NodeStatus { node, started: Instant::now(), state: AtomicU8::new(NodeState::Starting as u8), places: OnceLock::new() }
    }

    /// Every shard accepts, at these places.
    pub fn set_ready(&self, places: Vec<ShardPlace>) {
        // A second time would say the same: shards start once.
        let _ = self.places.set(places);
        self.advance(NodeState::Ready);
    }

    /// Goes to a later state; an earlier one is ignored, so that a failure is never covered up.
    pub fn advance(&self, state: NodeState) {
        self.state.fetch_max(state as u8, Relaxed);
    }

    /// How far the node is.
    pub fn state(&self) -> NodeState {
        NodeState::ALL[usize::from(self.state.load(Relaxed))]
    }

    /// The node's id.
    pub fn node(&self) -> u32 {
        self.node
    }

    /// Where the shards are; empty before they accept.
    pub fn places(&self) -> &[ShardPlace] {
        self.places.get().map_or(&[], Vec::as_slice)
    }

    /// Since the start, ms.
    pub fn uptime_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}
