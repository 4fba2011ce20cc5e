//! Corelane: a Kafka-class message broker for Linux. This page is the map of the code.
//!
//! One pinned executor per core (a *shard*), every partition owned by exactly one shard, every byte written with direct I/O,
//! every acknowledgement given after the bytes are on disk.
//!
//! ```text
//!        clients: the native FlatBuffers protocol or Kafka's on the same port, pipelined, each shard at an address of its own
//!              |               |               |
//! data plane  [ shard 0 ]   [ shard 1 ]  ...  [ shard n-1 ]      glommio: pinned, nothing shared, direct I/O
//!              \               |               /
//!               ------- bridge: bounded queues -------
//!                              |
//! control plane           [ tokio threads ]                      the catalogue of topics | HTTP: metrics, health
//! ```
//!
//! # The way of a record
//! A producer's batch is encoded once, in Kafka's layout ([`batch`]). A frame carries it ([`wire`], [`kafka`]) to the shard that owns the
//! partition; the shard checks it, its machine gives it its offsets ([`partition`]), the bytes join the journal group that is being gathered
//! ([`log`] has its format), the group is written with one aligned write and one sync, and the producer is answered ([`shard`]). The same bytes go to the partition's segment later, and to consumers:
//! from memory at the tail, from disk further back. Each place that copies a byte is listed in [`docs::data_path`]; what survives which
//! failure is in [`docs::durability`]; the files are in [`docs::on_disk`].
//!
//! # The way of a group
//! A member's request is the same value from either protocol ([`request::group`]). Any shard takes it and passes it to the one that has the group's partition of
//! `__consumer_offsets` ([`shard::groups`]); there the coordinator, a pure machine ([`group`]), decides, its records go the way of any other, and the answer
//! leaves when they are committed. A group whose partition another node leads is refused, and the client is told which shard has it. [`shard::cleaner`] keeps that partition, and every compacted one, short ([`log::cleaning`] has the rules). The client's side is in
//! [`client`].
//!
//! # The metadata of a cluster
//! Topics and whatever else all nodes must agree on are commands ([`cluster`]) to one state machine, kept behind [`control::metadata::MetadataStore`]. The commands of a node that is alone
//! go through a log of its own ([`control::metadata::SingleNodeLog`]); [`control::raft`] is the same door with consensus behind it: any node proposes, the leader's log decides the order,
//! every node applies it. [`server::membership`] decides which it is. What a leader ships and a follower takes is decided in [`replication`], carried between shards by [`shard::replication`] and done to
//! the log in [`shard::replica`]; who may be read in the leader's place is in [`shard::read_replica`]. [`shard::verifier`] reads sealed segments again, [`log::verification`] remembers what was
//! found, and [`shard::replication`] mends what is damaged. [`docs::replication`] has all of it.
//!
//! # The layers
//! A module uses modules of its own layer or of those above it, never in a circle; `tests/architecture.rs` holds that.
//!
//! | layer | modules | rule |
//! | --- | --- | --- |
//! | vocabulary | [`types`], [`limits`], [`checksum`], [`metrics`] | no behaviour; every bound has its name in `limits` |
//! | formats | [`batch`], [`request`], [`wire`], [`kafka`] | pure: bytes to values and back |
//! | machines | [`log`], [`replication`], [`partition`], [`group`], [`cluster`] | pure: no clock, file, socket, thread or randomness; these are arguments |
//! | shells | [`shard`] (glommio), [`control`] (tokio), [`client`] (tokio), [`bridge`] | the planes meet in `bridge` only; `client` stands alone |
//! | assembly | [`server`], [`cli`] | settings, start, stop, commands |
//!
//! # Features
//! `server`, `client` and `cli`, all on by default; `kafka` is the formats of Kafka's protocol alone, a part of `server`. `default-features = false, features = ["client"]` compiles no broker and no
//! io_uring.
//!
//! # What is not here, on purpose
//! - No page cache: the broker knows better than the kernel which bytes are needed again, so the memory it uses is the memory it was given.
//! - No acknowledgement from memory unless asked for by name ([`types::Durability`]).
//! - No external coordinator, and no garbage collector.
//! - No second encoding of a record: what the producer made is what is stored and what the consumer reads.
//! - Not yet: transactions, TLS and access control.

pub mod batch;
#[cfg(feature = "server")]
pub mod bridge;
pub mod checksum;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
pub mod cluster;
#[cfg(feature = "server")]
pub mod control;
pub mod docs;
#[cfg(feature = "server")]
pub mod group;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod limits;
pub mod log;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod partition;
pub mod replication;
pub mod request;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod shard;
pub mod types;
pub mod wire;
