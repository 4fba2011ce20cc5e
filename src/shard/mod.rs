//! A shard: one pinned executor that owns its partitions, its journal, its memory and its sockets.
//!
//! Everything here runs on one thread and is not `Send`; what crosses to another thread goes through the mesh (shards) or the
//! bridge (control plane). See [`store`] for the ways that a batch takes.

pub mod adoption;
pub mod blocking_files;
pub mod budget;
pub mod buffer;
pub mod checkpoint;
pub mod cleaner;
pub mod connection;
pub mod context;
pub mod deletion;
pub mod disk;
pub mod epochs;
pub mod event;
pub mod executor;
pub mod fetch;
pub mod groups;
pub mod housekeeping;
pub mod journal;
pub mod kafka_admin;
pub mod kafka_batches;
pub mod kafka_config_entries;
pub mod kafka_configs;
pub mod kafka_connection;
pub mod kafka_delete_records;
pub mod kafka_epochs;
pub mod kafka_exchange;
pub mod kafka_fetch;
pub mod kafka_group_admin;
pub mod kafka_groups;
pub mod kafka_log_dirs;
pub mod kafka_offsets;
pub mod kafka_produce;
pub mod kafka_service;
pub mod kick;
pub mod mesh;
pub mod net;
pub mod offsets;
pub mod partition_cell;
pub mod pending;
pub mod produce;
pub mod reader;
pub mod reserve;
pub mod ring;
pub mod runtime;
pub mod segment_files;
pub mod service;
pub mod shared_sync;
pub mod spread;
pub mod store;
pub mod sync_choice;
pub mod tail;
pub mod topics;
pub mod trace;
pub mod write_behind;
