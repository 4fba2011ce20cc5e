//! Reading as a member of a consumer group, with the offsets and the members that Kafka's clients have too.
//!
//! | file | what | kind |
//! | --- | --- | --- |
//! | `membership` | joining, staying, rebalances, leaving | pure |
//! | `coordinator` | the way to the group's coordinator | tokio |
//! | `task` | the task that keeps a member in its group: heartbeats, joins, new partitions | tokio |
//! | `consumer` | [`GroupConsumer`]: what the application sees | tokio |
//! | `admin` | groups as an administrator sees them | tokio |
//! | `tracker` | order per key, and up to where everything is handled | pure |
//! | `listener` | [`Listener`]: a handler for each record, with retries and a dead-letter topic | tokio |
//!
//! The task asks and keeps the member alive; partitions are taken and given up only while the application asks for the next record, so that a record that is
//! being handled is never given to somebody else behind its back (as in Kafka's clients, whose rebalances happen within `poll`).

mod admin;
mod builder;
mod consumer;
mod coordinator;
mod dead_letter;
mod listener;
mod membership;
mod task;
mod tracker;

pub use admin::{GroupPosition, PlannedReset, ResetTo, assigned};
pub use builder::{AssignmentStrategy, GroupConsumerBuilder, OffsetReset, RebalanceListener};
pub use consumer::GroupConsumer;
pub use listener::Listener;
