//! Judges what clients saw of a cluster, in the manner of Jepsen's Kafka workload.
//!
//! A [`History`] is a list of events in the order in which they happened: what a client began, and how it ended. The simulator writes one as it runs; clients of real
//! processes log theirs as JSON lines, which are merged by time. [`check`] finds what no correct cluster can have answered. It knows nothing of brokers, replicas or
//! faults, so nothing that it finds can be explained away by one.
//!
//! ```text
//! History::push ... -> check(&history) -> Vec<Finding>, empty if all is well; report(&history, &findings) for a person
//! ```
//!
//! What each kind of finding means is said at [`Kind`]. What the judge takes for granted:
//! - A value is sent once in a history. A client that retries by its own hand sends another value, or says that it is no idempotent producer.
//! - A send that ends with `Ok` is acknowledged, one with `Fail` was refused for certain, one with `Info`, or without an end, may be there or not. `acks=0` ends with `Info`.
//! - Every time that a consumer's position is set by something else than its own reading (assignment, rebalance, seek, a fresh process), it logs [`Operation::Assign`] or
//!   [`Operation::Subscribe`]. A client that polls without either reads every partition from its start.
//! - A final read is made when all else has ended. Without one, a write counts as lost only where a consumer passed by its offset.
//! - No compaction and no control records: the log has no holes.
//!
//! Everything is linear but for sorting.
//!
//! - `history`: events, and histories as JSON lines.
//! - `facts`: one pass over the events: sends with their ends, who saw which value where, final reads.
//! - `values`, `ends`, `order`, `polls`: the rules.
//! - `finding`: what is found, and its words.

#![allow(dead_code, reason = "each test uses a part")]

mod ends;
mod facts;
mod finding;
mod history;
mod order;
mod polls;
mod values;

pub use finding::{Finding, Kind, report};
pub use history::{ClientId, Event, History, HistoryError, Operation, Partition, Phase, Record, Value};

use facts::Facts;

/// All that is wrong with a history, by kind and then by event.
pub fn check(history: &History) -> Vec<Finding> {
    let mut found = Vec::new();
    let facts = Facts::gather(history, &mut found);
    let passed = polls::check(history, &facts, &mut found);
    values::check(&facts, &mut found);
    ends::check(&facts, &passed, &mut found);
    order::check(&facts, &mut found);
    found.sort_by(|a, b| (a.kind, &a.events, a.partition, a.offset).cmp(&(b.kind, &b.events, b.partition, b.offset)));
    found
}
