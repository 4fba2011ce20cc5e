//! Replication: who may lead a partition, what a leader ships, what a follower takes.
//!
//! Everything here is pure: no clock, no I/O, no randomness; the broker's shards and the simulator drive the same machines. Consensus holds, for every
//! partition, a [`PartitionRecord`]; leaders and followers never elect.
//!
//! Events go into a [`Leader`] or a [`Follower`], [`Effect`]s come out, [`Message`]s go between them. A role ends with `into_log`, and the next one begins with that
//! [`LogState`]. [`codec`] has their frames. One stream per pair of shards carries the messages of many partitions; the machines are per partition and know nothing of that. There is no message and no timer for a
//! partition in which nothing happens.
//!
//! Not here: the commands that carry a record's changes and the nodes that they speak of (`cluster`), sockets and disks (`shard`).

pub mod codec;
mod effect;
pub mod epochs;
mod error;
mod follower;
#[allow(unsafe_code, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks, rustdoc::all, unused_imports, dead_code)]
#[rustfmt::skip]
#[path = "generated/replication_generated.rs"]
mod generated;
mod leader;
pub mod message;
pub mod record;
mod rules;
#[cfg(test)]
mod tests;

pub use effect::{Effect, LogState, Millis};
pub use epochs::{EpochStart, EpochTable};
pub use error::Refusal;
pub use follower::{Follower, ReplicaIdentity};
pub use leader::{Leader, LeaderSettings, MetadataView, Shipped, ToShip};
pub use message::{Message, StreamId};
pub use record::{IsrChange, Joiner, NodeId, PartitionRecord, RecordRefusal, Replica};
#[doc(hidden)]
pub use rules::Rules;
