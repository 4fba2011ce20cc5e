//! The catalogue's part of the disk trace: the control plane keeps that file, the shards' trace records it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cluster::Applied;
use crate::control::metadata::{FileStep, Witness};
use crate::shard::trace::{Trace, TraceEvent};

/// Hears what is done to the catalogue below `data`, and records it.
pub fn witness(trace: Option<Arc<Trace>>, data: PathBuf) -> Witness {
    let Some(trace) = trace else { return Witness::default() };
    // The file's steps come one after the other, so that the last number given out is that of the step that ends.
    let last = AtomicU64::new(0);
    Witness::new(move |step| {
        if let Some(event) = event(&step, &data, &trace, &last) {
            trace.record(&event);
        }
    })
}

fn event(step: &FileStep<'_>, data: &Path, trace: &Trace, last: &AtomicU64) -> Option<TraceEvent> {
    let below = |path: &Path| path.strip_prefix(data).unwrap_or(path).to_string_lossy().into_owned();
    let next = || {
        let id = trace.next_id();
        last.store(id, Ordering::Relaxed);
        id
    };
    let id = last.load(Ordering::Relaxed);
    Some(match step {
        FileStep::Create(path) => TraceEvent::Create { path: below(path) },
        FileStep::WriteStart { path, position, bytes } => {
            TraceEvent::WriteStart { id: next(), path: below(path), position: *position, bytes: bytes.to_vec() }
        }
        FileStep::WriteEnd => TraceEvent::WriteEnd { id },
        FileStep::SetLen(path, size) => TraceEvent::SetLen { path: below(path), size: *size },
        FileStep::SyncStart(path) => TraceEvent::SyncStart { id: next(), path: below(path) },
        FileStep::SyncDirStart(path) => TraceEvent::SyncDirStart { id: next(), path: below(path) },
        FileStep::SyncEnd => TraceEvent::SyncEnd { id },
        FileStep::Rename(from, to) => TraceEvent::Rename { from: below(from), to: below(to) },
        FileStep::Remove(path) => TraceEvent::Unlink { path: below(path) },
        FileStep::Committed(Applied::TopicCreated(topic) | Applied::TopicAltered(topic)) => {
            TraceEvent::Topic { topic: topic.id, partitions: topic.partitions }
        }
        FileStep::Committed(Applied::TopicDeleted(topic)) => TraceEvent::Topic { topic: topic.id, partitions: 0 },
        FileStep::Committed(_) => return None,
    })
}
