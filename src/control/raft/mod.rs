//! Consensus for the metadata, inside the process: the library is openraft, its log, votes, snapshots and network are ours.
//!
//! ```text
//! propose_all ──> proposer ──> leader's raft ──> log of each voter (synced) ──> committed ──> each node's machine ──> view, subscribe
//!                    └── forwarded over the consensus port where another node leads, again under the same number until it is applied
//! ```
//!
//! One thread with one tokio runtime has all of it ([`ClusterStore`]); files are written and synced on blocking threads. Who reads this for the first time goes
//! [`store`] (what the rest of the node sees), [`proposer`], [`machine`] (applies entries), [`log_store`] and [`votes`] (what is synced before the
//! library is told so), [`peer`] and [`service`] (both ends of the consensus port), [`duties`] (what only the leader does).
//!
//! # Invariants
//! - An entry or a vote is synced before the library hears of it. A failed write or sync poisons: nothing more is taken until a restart has read the files again.
//! - A command is applied once, however often it was sent: each proposer counts its proposals, and the machine remembers the last number of each.
//! - A node's id in the consensus comes from its incarnation: a node that lost its disk comes back as another one that must be let in again, so it can't vote twice.
//! - Every node applies the same entries in the same order, and a proposer gets its outcome from its own machine: what it does next sees its change.
//! - A node's lease ends before the leader fences it: both count from the node's own sending, and the leader confirms its leadership in between.
//!
//! # Crash story
//! `<data>/consensus` counts once its file of votes is there, which is made last; before that a start makes everything anew. A torn last record of the log was never
//! acknowledged and is cut; anything else that does not check refuses to open.
//!
//! Not here: what commands mean (`cluster`), who proposes them.

pub mod codec;
pub mod confirmations;
pub mod directory;
pub mod duties;
pub mod formation;
#[cfg(test)]
mod golden;
pub mod gone;
pub mod leases;
pub mod log_files;
pub mod log_format;
pub mod log_store;
pub mod machine;
pub mod members;
pub mod node;
pub mod peer;
pub mod proposer;
pub mod service;
pub mod settings;
pub mod snapshot;
pub mod store;
#[cfg(test)]
mod tests;
pub mod votes;
pub mod wire;

pub use formation::Origin;
pub use settings::{ConsensusSettings, Timing};
pub use store::{ClusterStore, Consensus};

use bytes::Bytes;

/// A node's id in the consensus: of one life of it.
pub type ConsensusId = u64;

openraft::declare_raft_types!(
    /// The types of our consensus.
    pub Types:
        D = Proposal,
        R = (),
        NodeId = ConsensusId,
        Node = Member,
        SnapshotData = Bytes,
);

/// An entry of the log.
pub type Entry = openraft::Entry<Types>;
/// The id of an entry.
pub type LogId = openraft::LogId<ConsensusId>;
/// A vote.
pub type Vote = openraft::Vote<ConsensusId>;
/// The library, running.
pub type Raft = openraft::Raft<Types>;

/// A node as the consensus knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Member {
    /// Its id in the cluster, for ever.
    pub node: u32,
    /// Where its consensus port is: a host name or an address, and the port.
    pub address: String,
}

/// Commands that are to be applied one after the other, once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// Who proposes: chosen at random at each start of a node.
    pub proposer: u64,
    /// Counts its proposals, from 1.
    pub sequence: u64,
    /// The encoded commands.
    pub commands: Vec<Bytes>,
}

/// The id in the consensus of a node of this incarnation: its first 8 bytes, and never 0.
pub fn consensus_id(incarnation: &[u8; 16]) -> ConsensusId {
    u64::from_le_bytes(incarnation[..8].try_into().expect("8 bytes")).max(1)
}
