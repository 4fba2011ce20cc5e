//! What leader and follower of a partition tell each other. Which partition is meant, and who sends, stands in the frame; the bytes of records follow it
//! and are no part of these values.
//!
//! ```text
//! leader                                    follower
//!   OPEN (epoch, node epoch, incarnation) ->   journals the epoch; waits for what is in flight
//!                                         <-  EPOCHS (its epoch table and log end)
//!   TRUNCATE (the common end)             ->   cuts, if there is anything to cut
//!                                         <-  ACK (durable end)
//!   APPEND, APPEND, SEGMENT, ...          ->   appends
//!                                         <-  ACK
//! ```
//!
//! Each message names its [`StreamId`], so it may be late, twice, or out of order: what is not of the follower's present stream is dropped, and of two equal ones the second
//! changes nothing. Over one connection none of that happens; after a reconnection it does.

use crate::replication::epochs::{EpochStart, EpochTable};
use crate::replication::error::Refusal;
use crate::types::{LeaderEpoch, Offset};

/// One opening of the stream of one partition to one replica.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StreamId {
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
    /// The registration of the follower's node that the leader knows.
    pub node_epoch: u64,
    /// The life of the replica that the leader knows.
    pub incarnation: u32,
    /// Counts the openings in this epoch to this follower, from 1.
    pub session: u32,
}

/// Leader to follower: begins a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// Which.
    pub stream: StreamId,
}

/// Follower to leader: the answer to [`Open`]. Its epoch is journaled and nothing is in flight.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Epochs {
    /// Which.
    pub stream: StreamId,
    /// One past the follower's last record, durable.
    pub log_end: Offset,
    /// Which epochs its records are of.
    pub epochs: EpochTable,
    /// What the follower knows to be committed. It decides nothing: the common end does, since a follower hears of the watermark late.
    pub watermark: Offset,
}

/// Leader to follower: how much of the follower's log is the leader's too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Truncate {
    /// Which.
    pub stream: StreamId,
    /// The log is to end here. At its present end there is nothing to cut.
    pub to: Offset,
    /// The leader does not have what comes before `to` any more, or has nothing in common: the follower's log is to begin anew, empty, at `to`.
    pub restart: bool,
    /// Of a restart: the running hash before `to`, so that what follows can be checked. The leader's shell writes it in, for it has the log.
    pub hash_before: u64,
}

/// Leader to follower: records, all of one epoch. Without any (`base_offset == end_offset`) it brings the watermark only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append {
    /// Which.
    pub stream: StreamId,
    /// Epoch of the record before the first one; [`NO_EPOCH`](crate::replication::epochs::NO_EPOCH) if there is none.
    pub previous_epoch: LeaderEpoch,
    /// Epoch of these.
    pub epoch: LeaderEpoch,
    /// First offset.
    pub base_offset: Offset,
    /// One past the last offset.
    pub end_offset: Offset,
    /// The leader's watermark.
    pub watermark: Offset,
    /// The leader's log start: what is before it may go.
    pub log_start: Offset,
    /// Running hash before the first batch.
    pub hash_before: u64,
    /// Running hash after the last batch. The shell has checked the bytes against it before the machine sees the message.
    pub hash_after: u64,
    /// The first batch opens a segment: rolls are the leader's.
    pub opens_segment: bool,
}

/// Leader to follower: a whole sealed segment, whose bytes come in frames of their own. The machine sees it when all of them are there and checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Which.
    pub stream: StreamId,
    /// Epoch of the record before the first one, or none.
    pub previous_epoch: LeaderEpoch,
    /// Where epochs begin in it; the first one at the base offset.
    pub epochs: Vec<EpochStart>,
    /// First offset.
    pub base_offset: Offset,
    /// One past the last offset.
    pub end_offset: Offset,
    /// The leader's watermark.
    pub watermark: Offset,
    /// Running hash with which the chain through it begins: before it, unless it was rewritten.
    pub hash_before: u64,
    /// Running hash after it.
    pub hash_after: u64,
    /// How often a cleaning has rewritten it on the leader. Offsets may be missing in it then, and a chain of its own leads to the hash after it, so the hash before it is not compared with the log's.
    pub rewrite_generation: u32,
    /// It is one batch that has its segment for itself.
    pub adopted: bool,
}

/// Follower to leader: how far it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ack {
    /// Which.
    pub stream: StreamId,
    /// One past the last record that is synced.
    pub durable_end: Offset,
    /// One past the last record that it has.
    pub log_end: Offset,
    /// Something before what came is missing: the leader is to go on from `log_end`.
    pub rewind: bool,
}

/// Follower to leader: no.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Which.
    pub stream: StreamId,
    /// Why.
    pub refusal: Refusal,
}

/// Any of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// To a follower.
    Open(Open),
    /// To a follower.
    Truncate(Truncate),
    /// To a follower.
    Append(Append),
    /// To a follower.
    Segment(Segment),
    /// To the leader.
    Epochs(Epochs),
    /// To the leader.
    Ack(Ack),
    /// To the leader.
    Refused(Refused),
}

impl Message {
    /// The stream that it belongs to.
    pub fn stream(&self) -> StreamId {
        match self {
            Message::Open(m) => m.stream,
            Message::Truncate(m) => m.stream,
            Message::Append(m) => m.stream,
            Message::Segment(m) => m.stream,
            Message::Epochs(m) => m.stream,
            Message::Ack(m) => m.stream,
            Message::Refused(m) => m.stream,
        }
    }
}
