//! Consumer groups: who is in a group, which generation it is in, where it has read to. A pure machine that serves Kafka's classic group protocol.
//!
//! A [`Coordinator`] owns the groups of *one partition* of `__consumer_offsets` ([`partition_of`]). A partition, not a shard: it is what is led, loaded, handed
//! over and checkpointed as a whole, its log gives the order of everything that is durable, and a failure of its log stops these groups and no others.
//!
//! ```text
//!              first join                       all have joined, or time is over
//!   Empty ------------------> PreparingRebalance -----------------------------> CompletingRebalance
//!   ^  |  ^                     ^   |        ^                                     |           |
//!   |  |  '---- nobody left ----|---'        |  join, leave, lost member, no sync  |           | the leader's assignment
//!   |  |                        |            '-------------------------------------'           v is durable
//!   |  | deleted, expired       '---------------- join, leave, lost member ----------------- Stable
//!   |  v
//!   '- Dead (the log did not take it)        Dead, durable: forgotten
//! ```
//!
//! # Driving
//! Events go in by `handle_*`, each with the time; then effects come out by [`Coordinator::poll_effect`] until there is none, and
//! [`Coordinator::handle_time`] is to be called at [`Coordinator::poll_timeout`]. An [`Effect::Append`] is one batch for the partition's log; its outcome goes back by
//! [`Coordinator::handle_appended`], in the order of the appends. An [`Effect::Answer`] names its request by the shell's own number.
//!
//! # What holds
//! - One answer for each request that waits, whatever happens to its group, member or connection.
//! - No answer leaves before the records that it relies on are durable: commits, assignments, deletions, the return of a static member to a stable group. A position that
//!   is fetched is durable.
//! - One generation at a time: a member has an assignment of a generation only when that generation is durable, and then no heartbeat or commit of an earlier one is taken.
//!   Numbers rise; one whose assignment never became durable may be used again after a crash, and nobody holds anything of it.
//! - Within a generation members get what the leader gave, which is stored once: a leader that asks again gets what was stored.
//! - Everything is bounded ([`crate::limits`], [`Settings`]) and is forgotten: a group of which nothing is left (no member, id given out, position or record) is dropped.
//!
//! # After a crash
//! The log has each group as of its last stable generation, or as empty, and its positions. A new coordinator begins there ([`Coordinator::restore`],
//! [`Coordinator::handle_record`], [`Coordinator::handle_loaded`]): members of that generation go on with their heartbeats as if nothing had happened; members of a rebalance that was under way are told
//! that generation or member are unknown and join again; members that are gone lose their place when their session ends. Ids that were given out and not joined with are forgotten.
//! Commits that were answered are there; one that was not may be. The state after loading is that of the records alone, so a snapshot with the records behind it, and all records, come to the same.
//!
//! # Where it differs from Kafka's coordinator
//! - A static member that returns to a stable group with other topics, or in place of one that others wait for to give up partitions, starts a rebalance: Kafka looks at the chosen protocol alone, and
//!   new topics, or partitions between two phases of a cooperative rebalance, are read by nobody until something else happens.
//! - A static member that returns to a full group gets its place: Kafka counts it as one more.
//! - A leader that syncs twice gets the assignment that is on its way to the log; a second one is not stored over it.
//! - A request that a newer one of the same member replaces, or whose member is removed, is answered (Kafka leaves such a sync to its time-out).
//! - A position that an administrator commits to an empty group ages from that commit, not from when the group became empty: it could be gone at once.
//! - A fetch that asks for stable positions is told of any commit that is on its way, not only of transactional ones.
//! - Votes for protocols that tie, and a new leader, go by name: the same events give the same answers.
//! - Groups, members, ids given out, metadata and positions are bounded.
//!
//! # What is not here
//! Connections, the choice of the partition, access control, whether a committed topic exists (the shell knows); transactions; the protocol of KIP-848; quarantine of a log that does not read.

pub mod assignors;
mod classic;
mod coordinator;
mod error;
mod join;
mod member;
mod message;
mod offsets;
mod outbox;
mod partition_of;
mod positions;
#[cfg(test)]
mod random;
mod rebalance;
pub mod records;
mod settings;
#[cfg(test)]
mod simulation;
mod snapshot;
mod sync;
#[cfg(test)]
mod tests;
mod timers;

pub use crate::request::consumer_protocol;
pub use crate::request::fields::FieldError;
pub use coordinator::Coordinator;
pub use error::AppendFailure;
pub use message::{Effect, Token, Waiter};
pub use partition_of::partition_of;
pub use settings::{Now, Settings};
pub use snapshot::SnapshotError;
