//! Events of clients, and histories as JSON lines.

use std::io::{self, BufRead, Write};

use corelane::types::{Offset, ProducerId};
use serde::{Deserialize, Serialize};

/// Who acts: a producer or a consumer, one thread of it. Not used again for another one.
pub type ClientId = u32;
/// What is sent: a number that stands for a record's value, sent once in a history.
pub type Value = u64;
/// A partition of a topic. With several topics, whoever writes the history numbers all their partitions.
pub type Partition = u32;

/// How far an operation is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It begins.
    Invoke,
    /// It has been done.
    Ok,
    /// It has not been done, for certain, and never will be.
    Fail,
    /// It ended without an answer: it may have been done, or may be yet.
    Info,
}

/// One record that was read. In JSON: `[partition, offset, value]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "(Partition, Offset, Value)", into = "(Partition, Offset, Value)")]
pub struct Record {
    /// Where.
    pub partition: Partition,
    /// At which offset.
    pub offset: Offset,
    /// What.
    pub value: Value,
}

impl From<(Partition, Offset, Value)> for Record {
    fn from((partition, offset, value): (Partition, Offset, Value)) -> Record {
        Record { partition, offset, value }
    }
}

impl From<Record> for (Partition, Offset, Value) {
    fn from(record: Record) -> (Partition, Offset, Value) {
        (record.partition, record.offset, record.value)
    }
}

/// What a client does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Operation {
    /// Sends a value. A client may have many on their way.
    Send {
        /// The idempotent producer's id; `None` of a producer that is not idempotent, whose retries may leave a value twice.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        producer: Option<ProducerId>,
        /// Where to.
        partition: Partition,
        /// What.
        value: Value,
        /// With `Ok`: at which offset it is, if the client was told so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<Offset>,
    },
    /// Reads on.
    Poll {
        /// With `Ok`: what was read, in the order in which the application got it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        records: Vec<Record>,
    },
    /// The consumer reads these partitions from now on, each from the given offset, or from where it happens to begin. It counts when it ends.
    Assign {
        /// Partitions and their positions.
        positions: Vec<(Partition, Option<Offset>)>,
    },
    /// The consumer reads what its group gives it, from wherever the group is. Each later rebalance is one of these too, or an assignment.
    Subscribe,
    /// Everything that is in a partition, read when all else has ended; several are allowed, such as one from each replica.
    FinalRead {
        /// Which partition.
        partition: Partition,
        /// The log's start: nothing is expected below it.
        #[serde(default)]
        start: Offset,
        /// The log's end: one past the last offset.
        end: Offset,
        /// Offsets and values, as read.
        records: Vec<(Offset, Value)>,
    },
}

/// One moment of one client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When, in microseconds, by a clock that all clients of the history share. Only merging uses it.
    pub time_us: u64,
    /// Who.
    pub client: ClientId,
    /// How far it is.
    pub phase: Phase,
    /// What it does.
    #[serde(flatten)]
    pub operation: Operation,
}

/// Why a history can't be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The source.
    #[error("a history can't be read: {0}")]
    Io(#[from] io::Error),
    /// Not an event.
    #[error("line {line} of a history is not an event: {error}")]
    Line {
        /// Counts from 1.
        line: usize,
        /// What is wrong with it.
        error: serde_json::Error,
    },
}

/// Events in the order in which they happened.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct History {
    events: Vec<Event>,
}

impl History {
    /// Takes the next event. What has ended before something else begins must stand before it.
    pub fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// The events; findings name them by their place here.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Changes events, as a test does that plants a mistake.
    pub fn events_mut(&mut self) -> &mut Vec<Event> {
        &mut self.events
    }

    /// One history of the logs of several clients, by time. What began and what ended in the same microsecond counts as at the same time: the beginning goes first,
    /// which claims least about their order.
    pub fn merge(parts: impl IntoIterator<Item = History>) -> History {
        let mut events: Vec<Event> = parts.into_iter().flat_map(|part| part.events).collect();
        events.sort_by_key(|event| (event.time_us, event.phase != Phase::Invoke));
        History { events }
    }

    /// Reads JSON lines. A last line without its newline is what a killed client was writing, and is left out.
    pub fn read(mut lines: impl BufRead) -> Result<History, HistoryError> {
        let mut history = History::default();
        let mut text = Vec::new();
        for line in 1.. {
            text.clear();
            lines.read_until(b'\n', &mut text)?;
            if text.last() != Some(&b'\n') {
                break;
            }
            if !text.trim_ascii().is_empty() {
                history.push(serde_json::from_slice(&text).map_err(|error| HistoryError::Line { line, error })?);
            }
        }
        Ok(history)
    }

    /// Writes JSON lines.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        self.events.iter().try_for_each(|event| event.write(&mut to))
    }
}

impl Event {
    /// Writes one line. A client that may be killed does this before it sends and after it was answered.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        to.write_all(&line)
    }
}
