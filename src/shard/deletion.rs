//! Deletes the first records of partitions: by retention, and where a client says so.
//!
//! The journal knows a new log start durably before any file goes and before anybody is told. Only whole segments go; of the one that the new start lies in, what is
//! before it is not served any more and keeps its bytes, which running hash and write-behind go by.

use std::rc::Rc;

use futures_util::stream::{self, StreamExt};

use crate::cluster::config::CLEANUP_POLICY;
use crate::log::journal::EntryKind;
use crate::log::segment::SegmentInfo;
use crate::metrics::Counter;
use crate::request::{Code, DeleteRecords, DeleteRecordsResult, Refusal};
use crate::shard::context::Context;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::spread::spread;
use crate::types::{Durability, Offset};

/// Partitions of one request whose files are looked after at once.
const AT_ONCE: usize = 16;
/// The cleanup policy where records stay until others of their key come.
const ONLY_COMPACT: &str = "compact";

/// Deletes records of partitions anywhere on this node.
pub async fn delete_records(context: &Rc<Context>, asked: &[DeleteRecords]) -> Vec<DeleteRecordsResult> {
    let mine = async |part| stream::iter(part).map(|one| mine(context, one)).buffered(AT_ONCE).collect().await;
    spread(context, asked, mine).await
}

async fn mine(context: &Rc<Context>, asked: DeleteRecords) -> DeleteRecordsResult {
    DeleteRecordsResult { partition: asked.partition, outcome: delete(context, asked).await }
}

/// Deletes records of a partition of this shard, as Kafka does: up to the high watermark at most, and what is deleted already is no error.
async fn delete(context: &Rc<Context>, asked: DeleteRecords) -> Result<Offset, Refusal> {
    let id = asked.partition;
    let cell = context.store.partition(&id).ok_or_else(|| context.unknown(&id))?;
    if let Some(refusal) = cell.not_served() {
        return Err(refusal);
    }
    if cell.settings.get().internal {
        return Err(cell.refusal(Code::InvalidTopicName, "only the broker deletes from it"));
    }
    let policy = context.view.borrow().topic_by_id(&id.topic).and_then(|topic| topic.config.value(CLEANUP_POLICY, Durability::Durable));
    if policy.is_some_and(|policy| policy == ONLY_COMPACT) {
        let words = format!("{CLEANUP_POLICY} is {ONLY_COMPACT}: records are deleted by their keys only");
        return Err(cell.refusal(Code::PolicyViolation, words));
    }
    let high_watermark = cell.machine.borrow().ladder().committed();
    let start = asked.before.unwrap_or(high_watermark);
    if start > high_watermark {
        return Err(cell.refusal(Code::OffsetOutOfRange, format!("it ends at {high_watermark}: there is no {start} to delete up to")));
    }
    if start > cell.machine.borrow().log_start() {
        roll_what_goes(context, &cell, start).await;
    }
    raise_log_start(context, &cell, start).await?;
    Ok(cell.machine.borrow().log_start())
}

/// Seals the open segment where all of it goes: otherwise its file stays.
async fn roll_what_goes(context: &Rc<Context>, cell: &Rc<PartitionCell>, start: Offset) {
    let goes = || {
        let machine = cell.machine.borrow();
        cell.not_served().is_none() && machine.active().is_some_and(|open| open.base_offset < open.end_offset && open.end_offset <= start)
    };
    cell.enter().await;
    if goes() {
        let mut rolled = context.store.roll(cell).await;
        if let Err(error) = &rolled
            && context.store.make_space(error).await
            && goes()
        {
            rolled = context.store.roll(cell).await;
        }
        if let Err(error) = rolled {
            tracing::warn!(partition = %cell.id, %error, "the segment can't be rolled: the bytes of deleted records stay until it is");
        }
    }
    cell.leave();
}

/// Raises the log start to `start`, durably; a start that is not above the present one is the present one.
///
/// # Errors
/// The partition is gone, or `start` is above the high watermark.
pub async fn raise_log_start(context: &Rc<Context>, cell: &Rc<PartitionCell>, start: Offset) -> Result<(), Refusal> {
    let store = &context.store;
    cell.enter_flush().await;
    let raised = match cell.gone() {
        Some(refusal) => Err(refusal),
        // Another deletion came first, and it stayed in here until it was durable.
        None if start <= cell.machine.borrow().log_start() => Ok(None),
        None => raise_in_memory(context, cell, start).map(Some),
    };
    let Some(gone) = raised.inspect_err(|_| cell.leave_flush())? else {
        cell.leave_flush();
        return Ok(());
    };
    let sequence = store.add_state_entry(cell, EntryKind::LogStart, start, 0, start);
    store.journal.wait_durable(sequence).await;
    cell.leave_flush();
    // Followers hear of it.
    cell.reached.notify();
    for segment in gone {
        cell.drop_files(segment.base_offset);
        for path in [segment.path(cell.id), segment.index_path(cell.id)] {
            if let Err(error) = store.disk.remove(&path).await {
                tracing::warn!(path, %error, "a deleted segment's file stays until the next start");
            }
        }
        store.metrics.add(Counter::SegmentsDeleted, 1);
        store.mark("segment deleted");
    }
    Ok(())
}

/// Moves the log start and forgets what only memory has of the segments that go, which are returned.
fn raise_in_memory(context: &Context, cell: &Rc<PartitionCell>, start: Offset) -> Result<Vec<SegmentInfo>, Refusal> {
    let store = &context.store;
    let unflushed = cell.unflushed_bytes();
    let gone = cell.machine.borrow_mut().raise_log_start(start)?;
    let kept = cell.machine.borrow().segments().front().map_or(start, |first| first.base_offset);
    store.forget_entries(cell, cell.forget_below(kept));
    // What was deleted before it was flushed is no longer to be.
    store.budget.sub_unflushed(unflushed.saturating_sub(cell.unflushed_bytes()));
    store.reader.forget_below(cell.id, kept);
    Ok(gone)
}
