//! List-offsets requests: earliest, latest, the largest timestamp, the first record at or after a time.

use std::rc::Rc;

use bytes::Bytes;

use crate::batch::{self, BatchHeader, BatchIter};
use crate::limits::MAX_DECOMPRESSED;
use crate::metrics::Counter;
use crate::request::{ListOffset, ListOffsetResult, OffsetSpec, Refusal, Request, Response};
use crate::shard::context::Context;
use crate::shard::mesh::shard_gone;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::produce::batch_refusal;
use crate::shard::write_behind;
use crate::types::{Offset, Timestamp};

/// Answers questions about partitions anywhere on this node.
pub async fn list_offsets(context: &Rc<Context>, questions: &[ListOffset]) -> Vec<ListOffsetResult> {
    let mut results = Vec::with_capacity(questions.len());
    for question in questions {
        // One request may ask for a hundred thousand.
        glommio::yield_if_needed().await;
        let outcome = match context.is_mine(&question.partition) {
            true => answer(context, question).await,
            false => ask(context, question).await,
        };
        results.push(ListOffsetResult { partition: question.partition, outcome });
    }
    results
}

async fn ask(context: &Rc<Context>, question: &ListOffset) -> Result<(Offset, Timestamp), Refusal> {
    context.metrics.add(Counter::MeshSent, 1);
    let request = Request::ListOffsets(vec![*question]);
    let reply = context.mesh.send(context.owner(&question.partition), request, Bytes::new()).await;
    match reply.recv().await.map(|reply| reply.response) {
        Ok(Response::ListOffsets(mut results)) if results.len() == 1 => results.remove(0).outcome,
        _ => Err(shard_gone()),
    }
}

async fn answer(context: &Rc<Context>, question: &ListOffset) -> Result<(Offset, Timestamp), Refusal> {
    let Some(cell) = context.store.partition(&question.partition) else {
        return Err(context.unknown(&question.partition));
    };
    if let Some(refusal) = cell.gone() {
        return Err(refusal);
    }
    match question.spec {
        OffsetSpec::Earliest => Ok((cell.machine.borrow().log_start(), -1)),
        OffsetSpec::Latest => Ok((cell.machine.borrow().ladder().committed(), -1)),
        OffsetSpec::At(timestamp) => first_at(context, &cell, timestamp).await,
        OffsetSpec::MaxTimestamp => {
            let largest = cell.machine.borrow().max_timestamp();
            if cell.machine.borrow().ladder().committed() == cell.machine.borrow().log_start() {
                Ok((-1, -1))
            } else {
                first_at(context, &cell, largest).await
            }
        }
    }
}

/// The first committed record whose timestamp is at least `timestamp`; (-1, -1) if there is none.
async fn first_at(context: &Rc<Context>, cell: &Rc<PartitionCell>, timestamp: Timestamp) -> Result<(Offset, Timestamp), Refusal> {
    let (log_start, committed) = (cell.machine.borrow().log_start(), cell.machine.borrow().ladder().committed());
    let segments: Vec<_> = cell.machine.borrow().segments().iter().filter(|s| s.end_offset > log_start).copied().collect();
    for segment in segments.iter().filter(|s| s.max_timestamp >= timestamp) {
        if segment.adopted && segment.end_offset <= committed {
            // One batch that is too large to look into.
            return Ok((segment.base_offset.max(log_start), segment.max_timestamp));
        }
        let mut offset = context.store.reader.offset_before_time(cell, segment, timestamp).await?.max(log_start);
        while offset < segment.end_offset.min(committed) {
            let (found, next) = search(context, cell, offset, timestamp, log_start, committed).await?;
            if let Some(found) = found {
                return Ok(found);
            }
            offset = next;
        }
    }
    Ok((-1, -1))
}

/// Looks through the batches from the one that holds `offset`, as many as are at hand: the record found, and where to go on.
async fn search(
    context: &Rc<Context>,
    cell: &Rc<PartitionCell>,
    offset: Offset,
    timestamp: Timestamp,
    log_start: Offset,
    committed: Offset,
) -> Result<(Option<(Offset, Timestamp)>, Offset), Refusal> {
    let batch = cell.tail.borrow().from(offset).and_then(|mut chunks| {
        chunks.next().map(|chunk| {
            let mut bytes = Vec::with_capacity(chunk.batch_len());
            chunk.pieces().for_each(|piece| bytes.extend_from_slice(piece.bytes()));
            bytes
        })
    });
    if let Some(bytes) = batch {
        let header = BatchHeader::parse(&bytes).map_err(|e| batch_refusal(cell, &e))?;
        return Ok((in_batch(cell, &header, &bytes, timestamp, log_start, committed)?, header.next_offset()));
    }
    write_behind::bring_in(&context.store, cell, offset).await?;
    let run = context.store.reader.run(cell, offset).await?;
    for batch in BatchIter::new(run.bytes()) {
        let (header, bytes) = batch.map_err(|e| batch_refusal(cell, &e))?;
        if let Some(found) = in_batch(cell, &header, bytes, timestamp, log_start, committed)? {
            return Ok((Some(found), header.next_offset()));
        }
    }
    Ok((None, run.end_offset))
}

fn in_batch(
    cell: &PartitionCell,
    header: &BatchHeader,
    bytes: &[u8],
    timestamp: Timestamp,
    log_start: Offset,
    committed: Offset,
) -> Result<Option<(Offset, Timestamp)>, Refusal> {
    if header.max_timestamp < timestamp || header.next_offset() <= log_start {
        return Ok(None);
    }
    if header.log_append_time() {
        return Ok(Some((header.base_offset.max(log_start), header.max_timestamp)));
    }
    let refuse = |e: batch::BatchError| batch_refusal(cell, &e);
    let set = batch::decode(Bytes::copy_from_slice(bytes), MAX_DECOMPRESSED).map_err(refuse)?;
    for record in set.records() {
        let record = record.map_err(refuse)?;
        if record.timestamp >= timestamp && (log_start..committed).contains(&record.offset) {
            return Ok(Some((record.offset, record.timestamp)));
        }
    }
    Ok(None)
}
