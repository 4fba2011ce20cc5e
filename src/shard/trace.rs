//! A record of what a running broker did to its disk and what it acknowledged, in order, for tests that rebuild the
//! disk as it could be after a crash at any moment. Off unless the broker is started with `--disk-trace`.
//!
//! File format: records of u32 length, u8 kind, fields; integers little-endian, texts and bytes with u32 length in
//! front. The order of the records is the order of the events over all shards.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::{TopicId, TopicPartition};

/// One event. Starts are recorded before the operation is submitted, ends after it completed: what lies between may or may not be on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TraceEvent {
    /// A file came into being.
    Create {
        /// Below the data directory.
        path: String,
    },
    /// A directory came into being.
    CreateDir {
        /// Below the data directory.
        path: String,
    },
    /// A write was submitted.
    WriteStart {
        /// Matches the end.
        id: u64,
        /// Below the data directory.
        path: String,
        /// Where in the file.
        position: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// A write completed.
    WriteEnd {
        /// Matches the start.
        id: u64,
    },
    /// A sync of a file was submitted: it covers writes that had ended.
    SyncStart {
        /// Matches the end.
        id: u64,
        /// Below the data directory.
        path: String,
    },
    /// A sync of a directory was submitted.
    SyncDirStart {
        /// Matches the end.
        id: u64,
        /// Below the data directory.
        path: String,
    },
    /// A sync completed.
    SyncEnd {
        /// Matches the start.
        id: u64,
    },
    /// Blocks were allocated and the file grew to at least `size`.
    Allocate {
        /// Below the data directory.
        path: String,
        /// Bytes.
        size: u64,
    },
    /// The file was cut or extended.
    SetLen {
        /// Below the data directory.
        path: String,
        /// Bytes.
        size: u64,
    },
    /// A file got another name.
    Rename {
        /// Old name.
        from: String,
        /// New name.
        to: String,
    },
    /// A file or directory lost its name.
    Unlink {
        /// Below the data directory.
        path: String,
    },
    /// A batch was acknowledged.
    Acknowledge {
        /// Where.
        partition: TopicPartition,
        /// Its first offset.
        base_offset: i64,
        /// Its records.
        count: u32,
        /// The CRC-32C that it carries.
        crc: u32,
    },
    /// A change of a topic is durable and is about to be acknowledged.
    Topic {
        /// Which.
        topic: TopicId,
        /// Its partitions; 0: it is deleted.
        partitions: u32,
    },
    /// The log is about to be cut at an offset, or (`is_done`) that is durable: what was acknowledged behind it counts no more.
    Cut {
        /// Where.
        partition: TopicPartition,
        /// The log's end from then on.
        offset: i64,
        /// It is durable.
        is_done: bool,
    },
    /// Something that the store did, by name, for counting (`lap`, `roll`, `checkpoint`, ...).
    Mark {
        /// Its name.
        name: String,
    },
}

/// An open trace file.
pub struct Trace {
    file: Mutex<BufWriter<File>>,
    ids: AtomicU64,
}

impl Trace {
    /// Starts a trace in a new file, or goes on at the end of one.
    pub fn open(path: &Path) -> io::Result<Trace> {
        let file = File::options().create(true).append(true).open(path)?;
        // Ids stay unique over restarts that go on with one file.
        let first = file.metadata()?.len() << 8;
        Ok(Trace { file: Mutex::new(BufWriter::with_capacity(1 << 20, file)), ids: AtomicU64::new(first + 1) })
    }

    /// A number for a pair of start and end.
    pub fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds an event. A trace that can't be written is worthless: the process ends.
    pub fn record(&self, event: &TraceEvent) {
        let bytes = event.encode();
        let mut file = self.file.lock().expect("no panic while a trace is written");
        file.write_all(&bytes).and_then(|()| file.flush()).expect("the disk trace can be written");
    }
}

impl TraceEvent {
    /// The record's bytes, length included.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        let kind = |out: &mut Vec<u8>, k: u8| out.push(k);
        match self {
            TraceEvent::Create { path } => (kind(&mut out, 1), text(&mut out, path)).1,
            TraceEvent::CreateDir { path } => (kind(&mut out, 2), text(&mut out, path)).1,
            TraceEvent::WriteStart { id, path, position, bytes } => {
                kind(&mut out, 3);
                number(&mut out, *id);
                text(&mut out, path);
                number(&mut out, *position);
                out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                out.extend_from_slice(bytes);
            }
            TraceEvent::WriteEnd { id } => (kind(&mut out, 4), number(&mut out, *id)).1,
            TraceEvent::SyncStart { id, path } => (kind(&mut out, 5), number(&mut out, *id), text(&mut out, path)).2,
            TraceEvent::SyncDirStart { id, path } => (kind(&mut out, 6), number(&mut out, *id), text(&mut out, path)).2,
            TraceEvent::SyncEnd { id } => (kind(&mut out, 7), number(&mut out, *id)).1,
            TraceEvent::Allocate { path, size } => (kind(&mut out, 8), text(&mut out, path), number(&mut out, *size)).2,
            TraceEvent::SetLen { path, size } => (kind(&mut out, 9), text(&mut out, path), number(&mut out, *size)).2,
            TraceEvent::Rename { from, to } => (kind(&mut out, 10), text(&mut out, from), text(&mut out, to)).2,
            TraceEvent::Unlink { path } => (kind(&mut out, 11), text(&mut out, path)).1,
            TraceEvent::Acknowledge { partition, base_offset, count, crc } => {
                kind(&mut out, 12);
                out.extend_from_slice(&partition.topic.0);
                out.extend_from_slice(&partition.partition.to_le_bytes());
                out.extend_from_slice(&base_offset.to_le_bytes());
                out.extend_from_slice(&count.to_le_bytes());
                out.extend_from_slice(&crc.to_le_bytes());
            }
            TraceEvent::Mark { name } => (kind(&mut out, 13), text(&mut out, name)).1,
            TraceEvent::Topic { topic, partitions } => {
                kind(&mut out, 14);
                out.extend_from_slice(&topic.0);
                out.extend_from_slice(&partitions.to_le_bytes());
            }
            TraceEvent::Cut { partition, offset, is_done } => {
                kind(&mut out, 15);
                out.extend_from_slice(&partition.topic.0);
                out.extend_from_slice(&partition.partition.to_le_bytes());
                out.extend_from_slice(&offset.to_le_bytes());
                out.push(u8::from(*is_done));
            }
        }
        let len = (out.len() - 4) as u32;
        out[..4].copy_from_slice(&len.to_le_bytes());
        out
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}
