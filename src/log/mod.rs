//! The store: what every file holds, byte for byte, and the machines that read and recover it.
//!
//! Pure: formats are functions from bytes to values and back; recovery and inspection work on the
//! [`StoreFiles`](files::StoreFiles) that they are given. Who writes these files while the broker runs is the shard's matter, not this module's.
//! The formats are described in `src/docs/on_disk.md`, which is their contract.

pub mod checkpoint;
#[cfg(feature = "server")]
pub mod cleaning;
pub mod damage;
pub(crate) mod fields;
pub mod file_header;
pub mod files;
pub mod identity;
pub mod index;
pub mod inspect;
pub mod installation;
pub mod journal;
pub mod leader_epochs;
pub mod lost_producers;
pub mod paths;
pub mod producers;
pub mod recovery;
pub mod replacement;
pub mod segment;
pub mod segment_check;
pub(crate) mod segment_walk;
pub mod verification;
