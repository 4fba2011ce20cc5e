//! A shard: one pinned executor that owns its partitions, its journal, its memory and its sockets.
//!
//! Everything here runs on one thread and is not `Send`; what crosses to another thread goes through the mesh (shards) or the
//! bridge (control plane). See [`store`] for the ways that a batch takes.

pub mod budget;
pub mod buffer;
pub mod checkpoint;
pub mod disk;
pub mod event;
pub mod executor;
pub mod journal;
pub mod net;
pub mod partition_cell;
pub mod pending;
pub mod reader;
pub mod ring;
pub mod segment_files;
pub mod store;
pub mod tail;
pub mod trace;
pub mod write_behind;
