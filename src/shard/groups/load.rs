//! Reads the groups of a partition from its log.
//!
//! Everything that the log holds when the read begins is committed before: an append that is still being written when a coordinator is made again counts, and so does what a leader
//! before this one left behind, so both are waited for. A new leader's epoch begins at its log's end, and nobody but a coordinator appends, so this is the wait for the watermark to
//! reach the epoch's start. Until then nobody knows which of the last records stay.

use std::rc::Rc;

use super::standing::Standing;
use crate::batch::{self, BatchIter};
use crate::group::{Coordinator, Settings};
use crate::limits;
use crate::metrics::Counter;
use crate::request::{Fetch, FetchPartition, ReadFrom};
use crate::shard::context::Context;
use crate::shard::fetch::fetch_mine;
use crate::shard::partition_cell::PartitionCell;
use crate::types::{LeaderEpoch, Offset, TopicPartition};

/// A coordinator with everything that its partition says; it does not serve yet. It is that of the leader in `epoch`, as long as that goes on.
///
/// # Errors
/// Why it can't be read, in words: the partition is quarantined, led by another by now, its disk fails, or it holds what is no group's.
pub async fn load(context: &Rc<Context>, partition: TopicPartition, settings: Settings, epoch: LeaderEpoch) -> Result<Coordinator, String> {
    let cell = context.store.partition(&partition).ok_or("the partition is not here")?;
    // Before it is its turn: others do not wait for its replicas.
    let end = wait_for_all(context, &cell, epoch).await?;
    let _turn = Turn::take(context).await;
    if Standing::of(context, &partition).epoch() != Some(epoch) {
        return Err(led_elsewhere(epoch));
    }
    let (mut machine, mut offset) = begin(&cell, settings, end);
    while offset < end {
        let chunk = read(context, partition, offset).await?;
        let next = replay(context, &mut machine, &chunk, offset)?;
        if chunk.is_empty() {
            // Nothing is left of what was there: the cleaner took it.
            break;
        }
        offset = next;
        glommio::yield_if_needed().await;
    }
    Ok(machine)
}

/// From the snapshot that the checkpoint had, or from nothing; the offset of the first record that is to be read.
fn begin(cell: &PartitionCell, settings: Settings, end: Offset) -> (Coordinator, Offset) {
    let log_start = cell.machine.borrow().log_start();
    let snapshot = cell.machine.borrow().groups().cloned();
    if let Some(snapshot) = snapshot {
        let mut machine = Coordinator::new(settings);
        match machine.restore(&snapshot) {
            // What the snapshot has may have been deleted since by a tombstone that is gone by now: the log alone knows.
            Ok(from) if cell.machine.borrow().is_rewritten_from(from) => {
                tracing::info!(partition = %cell.id, from, "the log was cleaned behind its snapshot of groups: all of it is read");
            }
            // A log that ends before it lost records that were not synced: the topic's durability allows that, and then the log alone counts.
            Ok(from) if (log_start..=end).contains(&from) => return (machine, from),
            Ok(from) => tracing::warn!(partition = %cell.id, from, log_start, end, "a snapshot of groups is not of this log"),
            Err(error) => tracing::warn!(partition = %cell.id, %error, "a snapshot of groups can't be read"),
        }
        cell.machine.borrow_mut().set_groups(None);
    }
    (Coordinator::new(settings), log_start)
}

fn led_elsewhere(epoch: LeaderEpoch) -> String {
    format!("the leadership of epoch {epoch} is over")
}

/// Until everything that was appended is committed; the log's end.
async fn wait_for_all(context: &Context, cell: &PartitionCell, epoch: LeaderEpoch) -> Result<Offset, String> {
    loop {
        // Notified when the role changes, too.
        let ticket = cell.committed.ticket();
        if let Some(refusal) = cell.gone() {
            return Err(refusal.to_string());
        }
        if Standing::of(context, &cell.id).epoch() != Some(epoch) {
            return Err(led_elsewhere(epoch));
        }
        let (committed, appended) = {
            let machine = cell.machine.borrow();
            (machine.ladder().committed(), machine.ladder().appended())
        };
        if committed == appended {
            return Ok(committed);
        }
        cell.committed.wait(ticket).await;
    }
}

/// Whole batches from the one that holds `offset` on.
async fn read(context: &Rc<Context>, partition: TopicPartition, offset: Offset) -> Result<Vec<u8>, String> {
    let max_bytes = limits::GROUP_LOAD_BYTES;
    let wanted = FetchPartition { partition, offset, max_bytes, leader_epoch: None };
    let answer =
        fetch_mine(context, &Fetch { max_wait_ms: 0, min_bytes: 0, max_bytes, partitions: vec![wanted], from: ReadFrom::Leader }).await;
    answer.results.first().map_or(Ok(()), |result| result.outcome.as_ref().map(drop).map_err(ToString::to_string))?;
    let mut bytes = Vec::with_capacity(answer.bytes);
    for piece in &answer.pieces {
        match piece.in_memory() == piece.len() {
            true => piece.copy_to(&mut bytes),
            false => return Err(format!("the batch at offset {offset} is larger than any of a group")),
        }
    }
    Ok(bytes)
}

/// Gives the records from `from` on to the machine; the offset after the last batch.
fn replay(context: &Context, machine: &mut Coordinator, batches: &[u8], from: Offset) -> Result<Offset, String> {
    let mut next = from;
    for batch in BatchIter::new(batches) {
        let (header, bytes) = batch.map_err(|error| format!("offset {next}: {error}"))?;
        let set = batch::decode(bytes::Bytes::copy_from_slice(bytes), limits::MAX_DECOMPRESSED)
            .map_err(|error| format!("offset {next}: {error}"))?;
        if !header.is_control() {
            for record in set.records() {
                let record = record.map_err(|error| format!("offset {next}: {error}"))?;
                let offset = record.offset;
                if offset < from {
                    continue;
                }
                let key = record.key.ok_or_else(|| format!("the record at offset {offset} has no key"))?;
                context.metrics.add(Counter::GroupRecordsLoaded, 1);
                machine.handle_record(offset, key, record.value).map_err(|error| format!("the record at offset {offset}: {error}"))?;
            }
        }
        next = header.next_offset();
    }
    Ok(next)
}

/// The right to load: one partition of a shard at a time.
struct Turn<'a>(&'a Context);

impl<'a> Turn<'a> {
    async fn take(context: &'a Context) -> Turn<'a> {
        loop {
            let ticket = context.groups.loaded.ticket();
            if !context.groups.loading.replace(true) {
                return Turn(context);
            }
            context.groups.loaded.wait(ticket).await;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.groups.loading.replace(false);
        self.0.groups.loaded.notify();
    }
}
