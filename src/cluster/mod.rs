//! The catalogue: which topics exist, with which settings, leader epochs and producer-id blocks.
//!
//! Everything here is pure. [`Catalogue`] is a state machine: the same commands in the same order give the same state on
//! every machine and at every start, so a single node can run it over a file and a cluster over a consensus log.
//! [`command`] encodes commands, [`command_log`] is the file format of `<data>/catalogue`, [`config`] the settings of a topic.
//!
//! Invariants: a refused command changes nothing; a topic's id is never reused for another topic; leader epochs and
//! producer ids only rise. Not here: where the log is kept and when it is synced (`control`), who tells the shards (`bridge`).

pub mod catalogue;
pub mod command;
pub mod command_log;
pub mod config;

#[allow(unsafe_code, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks, rustdoc::all, unused_imports, dead_code)]
#[rustfmt::skip]
#[path = "generated/catalogue_generated.rs"]
mod generated;

pub use catalogue::{Applied, Catalogue, CatalogueView, Changes, Committed, Topic};
pub use command::Command;
pub use config::TopicConfig;
