//! One partition's rules, as a pure machine: offsets, duplicates, rolls, retention, and how far each byte has come.
//!
//! The machine decides and remembers; the shard that owns it moves bytes. Nothing here knows a clock, a file or a socket:
//! time comes as an argument, and what is to be done comes back as a value.
//!
//! ```text
//! plan (refuse | duplicate | roll first | append here) -> append -> durable -> committed -> flushed to the segment
//! ```
//!
//! Invariants: offsets are given without gaps; `log start <= committed <= durable <= written <= appended`
//! ([`Ladder`]); a segment is appended to only while it is the last one and not sealed; the flushed position never passes
//! the durable end.

mod ladder;
mod machine;
mod settings;

pub use ladder::{Ladder, LadderError};
pub use machine::{Cut, Opened, Partition, Plan, Planned, ReplicaAppend, ReplicaRefusal, Sealed};
pub use settings::Settings;
