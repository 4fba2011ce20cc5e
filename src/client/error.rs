//! What can go wrong between a program and its brokers.

use crate::batch::BatchError;
use crate::request::group::GroupError;
use crate::request::{Code, Refusal};
use crate::types::Offset;

/// Why a request was not answered as hoped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made.
    #[error("can't connect to {address}: {cause}")]
    Connect {
        /// Where to.
        address: String,
        /// What the system or the broker said.
        cause: String,
    },
    /// The connection ended while an answer was awaited. What was asked for may have been done.
    #[error("the connection to {address} was lost: {cause}")]
    Disconnected {
        /// Where to.
        address: String,
        /// What ended it.
        cause: String,
    },
    /// No answer came in time. What was asked for may have been done.
    #[error("{address} did not answer within {timeout_ms} ms")]
    TimedOut {
        /// Where to.
        address: String,
        /// How long was waited, ms.
        timeout_ms: u64,
    },
    /// The other side does not keep to the protocol.
    #[error("{address} does not keep to the protocol: {cause}")]
    Protocol {
        /// Where to.
        address: String,
        /// What was expected and what came.
        cause: String,
    },
    /// The broker refused.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The coordinator of a consumer group refused.
    #[error("group {group:?}: {error}")]
    Group {
        /// Which group.
        group: String,
        /// Why.
        error: GroupError,
    },
    /// A batch that came from the broker does not check, or a record can't be a part of one.
    #[error("{0}")]
    Batch(#[from] BatchError),
    /// A setting or an argument can't be.
    #[error("{0}")]
    Invalid(String),
    /// The client, producer or consumer was closed.
    #[error("the client is closed")]
    Closed,
}

impl ClientError {
    /// Whether the same may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            ClientError::Connect { .. } | ClientError::Disconnected { .. } | ClientError::TimedOut { .. } => true,
            ClientError::Refused(refusal) => refusal.code.is_retriable(),
            ClientError::Group { error, .. } => matches!(
                error,
                GroupError::CoordinatorLoadInProgress
                    | GroupError::CoordinatorNotAvailable
                    | GroupError::NotCoordinator
                    | GroupError::UnstableOffsetCommit
            ),
            ClientError::Protocol { .. } | ClientError::Batch(_) | ClientError::Invalid(_) | ClientError::Closed => false,
        }
    }

    /// The broker's code, where it was a broker that refused.
    pub fn code(&self) -> Option<Code> {
        if let ClientError::Refused(refusal) = self { Some(refusal.code) } else { None }
    }

    /// Whether what the client knows of leaders may be out of date.
    pub(super) fn is_about_leadership(&self) -> bool {
        match self {
            ClientError::Refused(refusal) => matches!(
                refusal.code,
                Code::NotLeader
                    | Code::UnknownTopicOrPartition
                    | Code::FencedLeaderEpoch
                    | Code::UnknownLeaderEpoch
                    | Code::Unavailable
                    // What a leader says of batches that it had taken when it was one.
                    | Code::RequestTimedOut
            ),
            _ => self.is_retriable(),
        }
    }
}

/// Why a [`super::GroupConsumer`] has no record.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GroupConsumeError {
    /// A partition can't be read on. It is not read any more until a seek or until it is assigned again; the others are.
    #[error("{0}")]
    Partition(#[from] ConsumeError),
    /// The group or the whole client fails.
    #[error("{0}")]
    Group(#[from] ClientError),
}

/// Why a record was not delivered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a record for {topic}{} was not delivered: {cause}", partition.map_or(String::new(), |p| format!(" partition {p}")))]
pub struct ProduceError {
    /// The record's topic.
    pub topic: String,
    /// Its partition, where one was chosen.
    pub partition: Option<u32>,
    /// Why.
    pub cause: ProduceFailure,
}

/// The cause of a [`ProduceError`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProduceFailure {
    /// The broker refused it, or it can't be sent at all.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// `delivery_timeout` is over. The record may have been appended where a request was on its way.
    #[error("not acknowledged within {timeout_ms} ms; the last failure: {}", last.as_ref().map_or("none".into(), |e| e.to_string()))]
    Expired {
        /// The delivery timeout, ms.
        timeout_ms: u64,
        /// What the last attempt came to.
        last: Option<ClientError>,
    },
    /// An earlier record of the partition was given up, and whether this one was appended is not known: sending it again could duplicate it.
    #[error("an earlier record of the partition was given up while this one was on its way")]
    Unknown,
    /// The buffer is full ([`super::Producer::try_send`] only: the others wait).
    #[error("{buffered} of {limit} bytes of buffer memory are in use")]
    BufferFull {
        /// Bytes that wait for delivery.
        buffered: usize,
        /// The producer's `buffer_memory`.
        limit: usize,
    },
    /// Where the topic's partitions are is not known yet ([`super::Producer::try_send`] only: the others wait).
    #[error("the topic's metadata is not there yet")]
    NoMetadata,
    /// The reader of [`super::Producer::send_reader`] failed or gave another number of bytes than announced.
    #[error("the value can't be read: {0}")]
    Reader(String),
}

/// Why a partition can't be read on. It is not read any more until a seek; the others are.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{topic} partition {partition} can't be read at offset {offset}: {cause}")]
pub struct ConsumeError {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The next record that was wanted.
    pub offset: Offset,
    /// Why.
    pub cause: ClientError,
}
