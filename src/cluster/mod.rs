//! The catalogue, the metadata of a cluster: its topics with their settings, its nodes, the record of every partition, and producer-id blocks.
//!
//! Everything here is pure. [`Catalogue`] is a state machine: the same commands in the same order give the same state on
//! every machine and at every start, so a single node can run it over a file and a cluster over a consensus log. Elections are part of the command that causes them.
//!
//! | module | has |
//! | --- | --- |
//! | [`command`], `codec` | the commands and their encoding |
//! | [`catalogue`], `membership`, `leadership`, `restore` | what they do: topics, nodes, partitions; a snapshot's |
//! | [`view`], `partitions` | the state as others read it, shared between its versions |
//! | [`node`], [`config`] | a node, the settings of a topic |
//! | [`placement`], [`rebalance`], `leader_balance` | where replicas of new partitions go; plans for a cluster that changes |
//! | [`survey`], [`rebalance_step`] | what an administrator is told, and a plan's next step |
//! | [`command_log`] | the file format of `<data>/catalogue`, and of a snapshot |
//!
//! Invariants: a refused command changes nothing; a topic's id is never reused for another topic; leader epochs, versions of records, node epochs and
//! producer ids only rise; who leads is in the ISR, and only nodes that are there are. Not here: what a record's transitions mean (`replication`), where the log is
//! kept and when it is synced (`control`), who tells the shards (`bridge`).

pub mod catalogue;
mod codec;
pub mod command;
pub mod command_log;
pub mod config;
mod leader_balance;
mod leadership;
mod membership;
pub mod node;
mod partitions;
pub mod placement;
pub mod rebalance;
pub mod rebalance_step;
mod restore;
pub mod survey;
#[cfg(test)]
mod tests;
pub mod view;

#[allow(unsafe_code, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks, rustdoc::all, unused_imports, dead_code)]
#[rustfmt::skip]
#[path = "generated/catalogue_generated.rs"]
mod generated;

pub use catalogue::{Applied, Catalogue, ChangedPartitions, Committed};
pub use command::{Command, Election};
pub use config::TopicConfig;
pub use node::{Endpoint, Node, NodeState, Registration};
pub use view::{CatalogueView, Changes, NodeLoad, Role, Topic};
