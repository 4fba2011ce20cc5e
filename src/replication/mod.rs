//! Replication: who may lead a partition, what a leader ships, what a follower takes.
//!
//! Everything here is pure: no clock, no I/O, no randomness; the broker's shards and the simulator drive the same machines. Consensus holds, for every
//! partition, a [`PartitionRecord`]; leaders and followers never elect.
//!
//! Not here: the commands that carry a record's changes and the nodes that they speak of (`cluster`), frames (`wire`), sockets and disks (`shard`).

pub mod record;

pub use record::{IsrChange, Joiner, NodeId, PartitionRecord, RecordRefusal, Replica};
