//! List-offsets requests: earliest, latest, the largest timestamp, the first record at or after a time.
//!
//! Questions about times of one partition are answered in the order of the times, so that a batch that several of them lie in is decompressed once.

use std::rc::Rc;

use bytes::Bytes;

use crate::batch::{self, BatchHeader, BatchIter, RecordSet};
use crate::limits::MAX_DECOMPRESSED;
use crate::request::{Code, FoundOffset, ListOffset, ListOffsetResult, OffsetSpec, Refusal};
use crate::shard::context::Context;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::produce::batch_refusal;
use crate::shard::read_replica::is_in_doubt;
use crate::shard::spread::spread;
use crate::shard::write_behind;
use crate::types::{Offset, Timestamp, TopicPartition};

/// The batch that was looked into last.
type Looked = Option<(TopicPartition, RecordSet)>;

/// Answers questions about partitions anywhere on this node.
pub async fn list_offsets(context: &Rc<Context>, questions: &[ListOffset]) -> Vec<ListOffsetResult> {
    spread(context, questions, async |part| mine(context, part).await).await
}

async fn mine(context: &Rc<Context>, questions: Vec<ListOffset>) -> Vec<ListOffsetResult> {
    let mut order: Vec<usize> = (0..questions.len()).collect();
    order.sort_by_key(|at| match questions[*at].spec {
        OffsetSpec::At(timestamp) => (questions[*at].partition, timestamp),
        OffsetSpec::MaxTimestamp => (questions[*at].partition, Timestamp::MAX),
        OffsetSpec::Earliest | OffsetSpec::Latest => (questions[*at].partition, Timestamp::MIN),
    });
    let unanswered = |question: &ListOffset| ListOffsetResult { partition: question.partition, outcome: Ok(FoundOffset::NONE) };
    let mut results: Vec<_> = questions.iter().map(unanswered).collect();
    let mut looked = None;
    for at in order {
        // One request may ask for a hundred thousand.
        glommio::yield_if_needed().await;
        results[at].outcome = answer(context, &questions[at], &mut looked).await;
    }
    results
}

async fn answer(context: &Rc<Context>, question: &ListOffset, looked: &mut Looked) -> Result<FoundOffset, Refusal> {
    let Some(cell) = context.store.partition(&question.partition) else {
        return Err(context.unknown(&question.partition));
    };
    if let Some(refusal) = cell.not_served() {
        return Err(refusal);
    }
    let (log_start, committed) = (cell.machine.borrow().log_start(), cell.machine.borrow().ladder().committed());
    let unavailable = || {
        cell.refusal(Code::OffsetNotAvailable, "a leader that has just begun, or is cut off, does not know where consumers have come to")
    };
    let knows_latest = || cell.latest_is_known.get() && !is_in_doubt(context, &cell);
    let (offset, timestamp) = match question.spec {
        OffsetSpec::Earliest => (log_start, -1),
        OffsetSpec::Latest | OffsetSpec::MaxTimestamp if !knows_latest() => return Err(unavailable()),
        OffsetSpec::Latest => (committed, -1),
        OffsetSpec::At(timestamp) => match first_at(context, &cell, timestamp, looked).await? {
            // It may be among what was acknowledged and is not known here to be committed.
            (-1, _) if !knows_latest() => return Err(unavailable()),
            found => found,
        },
        OffsetSpec::MaxTimestamp if committed == log_start => (-1, -1),
        OffsetSpec::MaxTimestamp => {
            // That of the log may have been a record's that a cleaning left out.
            let largest = cell.machine.borrow().segments().iter().map(|segment| segment.max_timestamp).max().unwrap_or(-1);
            first_at(context, &cell, largest, looked).await?
        }
    };
    // Of none there is none.
    let leader_epoch = cell.machine.borrow().epoch_of(offset);
    Ok(FoundOffset { offset, timestamp, leader_epoch })
}

/// The first committed record whose timestamp is at least `timestamp`; (-1, -1) if there is none.
async fn first_at(
    context: &Rc<Context>,
    cell: &Rc<PartitionCell>,
    timestamp: Timestamp,
    looked: &mut Looked,
) -> Result<(Offset, Timestamp), Refusal> {
    let (log_start, committed) = (cell.machine.borrow().log_start(), cell.machine.borrow().ladder().committed());
    let segments: Vec<_> = cell.machine.borrow().segments().iter().filter(|s| s.end_offset > log_start).copied().collect();
    let mut search = Search { cell, timestamp, log_start, committed, looked };
    for segment in segments.iter().filter(|s| s.max_timestamp >= timestamp) {
        if segment.adopted && segment.end_offset <= committed {
            // One batch that is too large to look into.
            return Ok((segment.base_offset.max(log_start), segment.max_timestamp));
        }
        let mut offset = context.store.reader.offset_before_time(cell, segment, timestamp).await?.max(log_start);
        while offset < segment.end_offset.min(committed) {
            let (found, next) = search.from(context, offset).await?;
            if let Some(found) = found {
                return Ok(found);
            }
            offset = next;
        }
    }
    Ok((-1, -1))
}

/// A search for the first record of a time.
struct Search<'a> {
    cell: &'a Rc<PartitionCell>,
    timestamp: Timestamp,
    log_start: Offset,
    committed: Offset,
    looked: &'a mut Looked,
}

impl Search<'_> {
    /// Looks through the batches from the one that holds `offset`, as many as are at hand: the record found, and where to go on.
    async fn from(&mut self, context: &Rc<Context>, offset: Offset) -> Result<(Option<(Offset, Timestamp)>, Offset), Refusal> {
        let cell = self.cell;
        let batch = cell.tail.borrow().from(offset).and_then(|mut chunks| {
            chunks.next().map(|chunk| {
                let mut bytes = Vec::with_capacity(chunk.batch_len());
                chunk.pieces().for_each(|piece| bytes.extend_from_slice(piece.bytes()));
                bytes
            })
        });
        if let Some(bytes) = batch {
            let header = BatchHeader::parse(&bytes).map_err(|e| batch_refusal(cell, &e))?;
            return Ok((self.in_batch(&header, &bytes)?, header.next_offset()));
        }
        write_behind::bring_in(&context.store, cell, offset).await?;
        let run = context.store.reader.run(cell, offset).await?;
        for batch in BatchIter::new(run.bytes()) {
            let (header, bytes) = batch.map_err(|e| batch_refusal(cell, &e))?;
            if let Some(found) = self.in_batch(&header, bytes)? {
                return Ok((Some(found), header.next_offset()));
            }
        }
        Ok((None, run.end_offset))
    }

    fn in_batch(&mut self, header: &BatchHeader, bytes: &[u8]) -> Result<Option<(Offset, Timestamp)>, Refusal> {
        if header.max_timestamp < self.timestamp || header.next_offset() <= self.log_start {
            return Ok(None);
        }
        if header.log_append_time() {
            return Ok(Some((header.base_offset.max(self.log_start), header.max_timestamp)));
        }
        let refuse = |e: batch::BatchError| batch_refusal(self.cell, &e);
        let is_it = |looked: &(TopicPartition, RecordSet)| looked.0 == self.cell.id && looked.1.header() == header;
        let set = match self.looked.take().filter(is_it) {
            Some((_, set)) => set,
            None => batch::decode(Bytes::copy_from_slice(bytes), MAX_DECOMPRESSED).map_err(refuse)?,
        };
        let (_, set) = self.looked.insert((self.cell.id, set));
        for record in set.records() {
            let record = record.map_err(refuse)?;
            if record.timestamp >= self.timestamp && (self.log_start..self.committed).contains(&record.offset) {
                return Ok(Some((record.offset, record.timestamp)));
            }
        }
        Ok(None)
    }
}
