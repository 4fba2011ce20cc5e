//! What goes over the simulated network.

use std::rc::Rc;

use corelane::replication::{IsrChange, Message, Millis, RecordRefusal};
use corelane::types::{LeaderEpoch, Offset};

use crate::disk::{Batch, PartitionId};
use crate::metadata::Snapshot;

/// Nodes by their ids, the metadata, clients from [`CLIENTS`] on.
pub type Endpoint = u32;
pub const METADATA: Endpoint = 100;
pub const CLIENTS: Endpoint = 200;

#[derive(Clone, Debug)]
pub enum Payload {
    Replica { partition: PartitionId, message: Message, batches: Vec<Rc<Batch>> },
    Register { registration: u64, disk: u64, sent_at: Millis },
    Registered { registration: u64, node_epoch: u64, sent_at: Millis, snapshot: Rc<Snapshot> },
    Heartbeat { node_epoch: u64, sent_at: Millis },
    Beat { node_epoch: u64, lives: bool, sent_at: Millis, snapshot: Rc<Snapshot> },
    Update { snapshot: Rc<Snapshot> },
    Propose { partition: PartitionId, change: IsrChange },
    ProposalRefused { partition: PartitionId, version: u32, refusal: RecordRefusal },
    Lost { partition: PartitionId, incarnation: u32 },
    Client { operation: u64, request: ClientRequest },
    Answer { operation: u64, answer: Answer },
}

#[derive(Clone, Debug)]
pub enum ClientRequest {
    Produce { partition: PartitionId, producer: i64, sequence: u32, values: Vec<u64> },
    Fetch { partition: PartitionId, offset: Offset },
    Latest { partition: PartitionId },
}

impl ClientRequest {
    pub fn partition(&self) -> PartitionId {
        match self {
            ClientRequest::Produce { partition, .. } | ClientRequest::Fetch { partition, .. } | ClientRequest::Latest { partition } => {
                *partition
            }
        }
    }
}

#[derive(Clone, Debug)]
pub enum Produced {
    At(Offset),
}

#[derive(Clone, Debug)]
pub enum Answer {
    Produced(Produced),
    Fetched(Vec<(Offset, u64)>),
    OutOfRange {
        start: Offset,
    },
    /// Not available while a new leader may know less than the one before. With the epoch of who answers.
    Latest(Option<(Offset, LeaderEpoch)>),
    /// Nothing was done.
    Refused,
}

impl Payload {
    /// Stands for its content in the trace.
    pub fn digest(&self) -> u64 {
        let (kind, a, b) = match self {
            Payload::Replica { partition, message, batches } => {
                let stream = message.stream();
                let last = batches.last().map_or(0, |batch| batch.hash_after);
                let claim = match message {
                    Message::Ack(ack) => ack.durable_end as u64,
                    Message::Epochs(epochs) => epochs.log_end as u64,
                    Message::Truncate(cut) => cut.to as u64,
                    Message::Append(append) => append.watermark as u64,
                    _ => 0,
                };
                (1, u64::from(*partition) << 32 | u64::from(stream.session), last ^ claim ^ (stream.leader_epoch as u64) << 40)
            }
            Payload::Register { registration, disk, .. } => (2, *registration, *disk),
            Payload::Registered { node_epoch, snapshot, .. } => (3, *node_epoch, snapshot.index),
            Payload::Heartbeat { node_epoch, sent_at } => (4, *node_epoch, *sent_at),
            Payload::Beat { node_epoch, snapshot, .. } => (5, *node_epoch, snapshot.index),
            Payload::Update { snapshot } => (6, snapshot.index, 0),
            Payload::Propose { partition, change } => (7, u64::from(*partition), u64::from(change.version)),
            Payload::ProposalRefused { partition, version, .. } => (8, u64::from(*partition), u64::from(*version)),
            Payload::Lost { partition, incarnation } => (9, u64::from(*partition), u64::from(*incarnation)),
            Payload::Client { operation, request } => (10, *operation, u64::from(request.partition())),
            Payload::Answer { operation, answer } => {
                let what = match answer {
                    Answer::Produced(Produced::At(offset)) => *offset as u64,
                    Answer::Fetched(records) => records.last().map_or(0, |(_, value)| *value),
                    Answer::Latest(Some((offset, _))) => *offset as u64,
                    _ => 0,
                };
                (11, *operation, what)
            }
        };
        crate::random::mix(crate::random::mix(kind ^ a << 8) ^ b)
    }
}
