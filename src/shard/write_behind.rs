//! Moves bytes from memory to their segments, in large aligned writes, and lets memory and journal go.
//!
//! Only bytes that are durable in the journal are written, so a block that is rewritten (after an idle partition was
//! flushed with a padded last block) is wholly in the journal at that moment: its next entry carries the block's earlier bytes.
//! A large batch is in its segment already but for its ragged ends: under memory pressure it leaves the rest out and waits for its flush with many others
//! ([`crate::shard::tail::Tail`]); only a reader who wants it brings the flush forward.
//! Order: segment and index written and synced, then the machine's flushed position moves, then memory and, after a
//! checkpoint, the journal are used again.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{self, TryStreamExt};

use crate::limits::BLOCK;
use crate::log::journal::{EntryHeader, EntryKind};
use crate::log::segment::SegmentInfo;
use crate::metrics::{Counter, Gauge};
use crate::request::{Code, Refusal};
use crate::shard::buffer::Piece;
use crate::shard::journal::Urgency;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::store::Store;
use crate::types::Offset;

/// Largest single write, bytes.
const WRITE: usize = 1 << 20;
/// Writes of one flush in flight.
const WRITES_IN_FLIGHT: usize = 4;
/// Partitions flushed at once: their syncs share the file system's commits.
pub const FLUSHES: usize = 16;
/// Pause when nothing could be flushed.
const RETRY: Duration = Duration::from_millis(1);
/// A reader that waits for a flush looks again after this long.
const RECHECK: Duration = Duration::from_millis(10);
/// Batches that leave the memory tail for one that comes: more than one, so that memory falls back to its bound.
const EVICTED_PER_APPEND: usize = 4;
/// Batches that are looked at before it is decided whether to flush.
const EVICTED_PER_ROUND: usize = 256;
/// A partition without an append for so long is flushed whole, s.
const IDLE_SECONDS: u64 = 10;

/// The write-behind task: flushes, oldest first, while too much is in memory only.
pub async fn run(store: Rc<Store>) {
    loop {
        let ticket = store.write_behind.ticket();
        evict(&store, EVICTED_PER_ROUND);
        if !store.budget.wants_flush() {
            // Memory is also given back by peers that take their answers, by requests that end and by retention, and they tell nobody. Who waits
            // for room has notified this task, which looks again and again until there is some.
            store.room.notify();
            store.write_behind.wait(ticket).await;
            continue;
        }
        let before = (store.budget.unflushed(), store.budget.accounted().get());
        let cells = take_unflushed(&store, FLUSHES, |_| true);
        flush_all(&store, cells, false).await;
        if (store.budget.unflushed(), store.budget.accounted().get()) >= before && store.budget.wants_eviction() {
            // Unfinished blocks pin what is left: those partitions are flushed whole; of a batch that was left out the ends too, which no entry of `tails` tells.
            let mut cells = oldest_in_memory(&store);
            let known: Vec<_> = cells.iter().map(|cell| cell.id).collect();
            cells.extend(take_unflushed(&store, FLUSHES - known.len(), |cell| !known.contains(&cell.id)));
            flush_all(&store, cells, true).await;
        }
        if (store.budget.unflushed(), store.budget.accounted().get()) >= before {
            // The rest is not durable in the journal yet, or waits for peers.
            glommio::timer::sleep(RETRY).await;
        }
    }
}

/// Partitions of the oldest batches in memory.
fn oldest_in_memory(store: &Store) -> Vec<Rc<PartitionCell>> {
    let mut cells: Vec<Rc<PartitionCell>> = Vec::new();
    for cell in store.tails.borrow().iter().take(FLUSHES * 4) {
        if cells.len() < FLUSHES && !cells.iter().any(|c| c.id == cell.id) {
            cells.push(cell.clone());
        }
    }
    cells
}

/// Flushes partitions that have been idle for a while, so that a quiet broker holds nothing back. To be called once a second.
pub async fn flush_idle(store: &Rc<Store>) {
    let now = store.seconds.get();
    let cells = take_unflushed(store, FLUSHES, |cell| now.saturating_sub(cell.last_append.get()) >= IDLE_SECONDS);
    if !cells.is_empty() {
        flush_all(store, cells, true).await;
    }
}

fn take_unflushed(store: &Store, most: usize, want: impl Fn(&PartitionCell) -> bool) -> Vec<Rc<PartitionCell>> {
    let mut queue = store.unflushed.borrow_mut();
    let mut taken = Vec::new();
    for _ in 0..queue.len() {
        let Some(cell) = queue.pop_front() else { break };
        if taken.len() < most && want(&cell) {
            cell.queued_for_flush.set(false);
            taken.push(cell);
        } else {
            queue.push_back(cell);
        }
        if taken.len() == most {
            break;
        }
    }
    taken
}

/// Flushes several partitions at once; `padded` includes their unfinished blocks.
pub async fn flush_all(store: &Rc<Store>, cells: Vec<Rc<PartitionCell>>, padded: bool) {
    join_all(cells.iter().map(|cell| async move {
        if let Err(error) = flush(store, cell, padded).await {
            store.fail(format!("write-behind of {}: {error}", cell.id));
        }
        let more = cell.oldest_unflushed().is_some();
        if more && !cell.queued_for_flush.replace(true) {
            store.unflushed.borrow_mut().push_back(cell.clone());
        }
    }))
    .await;
    evict(store, usize::MAX);
    store.room.notify();
}

/// Writes what is durable of one partition to its segments and syncs it.
pub async fn flush(store: &Rc<Store>, cell: &Rc<PartitionCell>, padded: bool) -> io::Result<()> {
    cell.enter_flush().await;
    let result = flush_segments(store, cell, padded).await;
    cell.leave_flush();
    result
}

/// As [`flush`] for who has the partition's flush ([`PartitionCell::enter_flush`]).
pub(super) async fn flush_segments(store: &Rc<Store>, cell: &Rc<PartitionCell>, padded: bool) -> io::Result<()> {
    while cell.is_flushed() {
        let Some((info, from)) = cell.machine.borrow().unflushed() else { return Ok(()) };
        let durable = cell.durable_position(&info);
        let whole = durable == info.valid_end && (info.sealed || padded);
        let target = if whole { durable } else { durable / BLOCK as u64 * BLOCK as u64 };
        if target <= from {
            return Ok(());
        }
        if info.adopted {
            // Written and synced on its own; being durable is being flushed.
            flushed(store, cell, &info, from, target);
            continue;
        }
        let Some(files) = cell.files_of(info.base_offset) else {
            return Err(io::Error::other(format!("segment {} has unflushed bytes and is not open", info.base_offset)));
        };
        let start = from / BLOCK as u64 * BLOCK as u64;
        let writes = gather(cell, info.base_offset, start, target)?;
        let bytes: usize = writes.iter().map(|(_, memory)| memory.len()).sum();
        let spans: Vec<_> = writes.iter().map(|(at, memory)| (*at, at + memory.len() as u64)).collect();
        store.metrics.raise(Gauge::WriteBehind, bytes as u64);
        let written = stream::iter(writes.into_iter().map(|(position, memory)| Ok(files.log.write(memory, position))))
            .try_buffer_unordered(WRITES_IN_FLIGHT)
            .try_collect::<()>()
            .await;
        store.metrics.lower(Gauge::WriteBehind, bytes as u64);
        written?;
        cell.write_index(&files, &info, target).await?;
        files.sync().await?;
        store.metrics.add(Counter::SegmentBytes, bytes as u64);
        let reached = flushed(store, cell, &info, from, target);
        let copied: u64 = spans.iter().map(|(start, end)| (*end).min(reached).saturating_sub((*start).max(from))).sum();
        store.budget.sub_unflushed(copied as usize);
    }
    Ok(())
}

/// Aligned copies of the bytes [start, target) that did not go straight to the segment, the last block zero-padded. One pass over the chunks.
fn gather(cell: &PartitionCell, segment: Offset, start: u64, target: u64) -> io::Result<Vec<(u64, Rc<glommio::io::DmaBuffer>)>> {
    let tail = cell.tail.borrow();
    let mut gathered = Gathered { writes: Vec::new(), run: Vec::new(), run_start: start, at: start, target };
    for chunk in tail.reaching_past(segment, start).take_while(|c| c.segment == segment) {
        gathered.take(chunk.position, &chunk.front);
        if let (Some((from, to)), Some(body)) = (chunk.direct(), &chunk.body) {
            gathered.skip(from, to);
            gathered.take(to, &body.ragged_end());
        }
        if gathered.at >= target {
            break;
        }
    }
    let at = gathered.at;
    gathered.end_run();
    match at == target {
        true => Ok(gathered.writes),
        false => Err(io::Error::other(format!("segment {segment}: memory holds no bytes at {at}, write-behind wants {start}..{target}"))),
    }
}

/// Writes that are being put together. Carried bytes come a second time and are left out; what counts is that there is no hole.
struct Gathered {
    writes: Vec<(u64, Rc<glommio::io::DmaBuffer>)>,
    /// Pieces that follow each other from `run_start` to `at`.
    run: Vec<Piece>,
    run_start: u64,
    /// Everything before is gathered, or on disk.
    at: u64,
    target: u64,
}

impl Gathered {
    /// Takes what is news of bytes that lie at `position`.
    fn take(&mut self, position: u64, piece: &Piece) {
        let end = (position + piece.len() as u64).min(self.target);
        while position <= self.at && self.at < end {
            let upto = end.min(self.run_start + WRITE as u64);
            self.run.push(piece.part((self.at - position) as usize..(upto - position) as usize));
            self.at = upto;
            if self.at == self.run_start + WRITE as u64 {
                self.end_run();
            }
        }
    }

    /// [from, to) is in the segment already.
    fn skip(&mut self, from: u64, to: u64) {
        if from <= self.at && self.at < to {
            self.end_run();
            self.at = to.min(self.target);
            self.run_start = self.at;
        }
    }

    fn end_run(&mut self) {
        let len = (self.at - self.run_start) as usize;
        if len > 0 {
            let mut memory = glommio::allocate_dma_buffer_global(len.next_multiple_of(BLOCK));
            let mut rest = memory.as_bytes_mut();
            for piece in self.run.drain(..) {
                let (space, behind) = rest.split_at_mut(piece.len());
                space.copy_from_slice(piece.bytes());
                rest = behind;
            }
            rest.fill(0);
            self.writes.push((self.run_start, Rc::new(memory)));
        }
        self.run_start = self.at;
    }
}

/// Everything of the segment up to `target` is on disk; returns up to where that holds from now on.
fn flushed(store: &Store, cell: &Rc<PartitionCell>, info: &SegmentInfo, from: u64, target: u64) -> u64 {
    let mut target = target;
    {
        let mut machine = cell.machine.borrow_mut();
        let Some(present) = machine.segments().iter().find(|s| s.base_offset == info.base_offset).copied() else { return target };
        let block = target / BLOCK as u64 * BLOCK as u64;
        if block < target && target < present.valid_end {
            // An append came meanwhile (and maybe a seal after it): its entry starts in the middle of this block, so the block stays with the journal.
            target = block.max(from);
        } else if block < target && !present.sealed {
            *cell.remainder.borrow_mut() = block_bytes(cell, info.base_offset, block, target);
        }
        if target > from {
            machine.flushed_to(info.base_offset, target);
            cell.tail.borrow_mut().drop_left_out(machine.flushed());
        }
    }
    store.add_state_entry(cell, EntryKind::FlushedTo, info.base_offset, target, cell.machine.borrow().ladder().appended());
    let machine = cell.machine.borrow();
    let done = machine.segments().iter().any(|s| s.base_offset == info.base_offset && s.sealed && s.valid_end <= target);
    drop(machine);
    if done {
        cell.drop_files(info.base_offset);
    }
    target
}

/// The bytes [from, to) of a segment, from the memory tail.
fn block_bytes(cell: &PartitionCell, segment: Offset, from: u64, to: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; (to - from) as usize];
    let mut copied = 0;
    for (position, piece) in
        cell.tail.borrow().reaching_past(segment, from).take_while(|c| c.segment == segment).flat_map(|c| c.range(from, to))
    {
        let at = (position - from) as usize;
        bytes[at..at + piece.len()].copy_from_slice(piece.bytes());
        // A hole keeps it from the end.
        if at <= copied {
            copied = copied.max(at + piece.len());
        }
    }
    assert_eq!(copied, bytes.len(), "the unfinished block is in memory");
    Some(bytes)
}

/// Copies the unfinished block of a partition into the present group, so that the old group is not needed for it.
pub fn carry(store: &Store, cell: &Rc<PartitionCell>) {
    let Some((info, from)) = cell.machine.borrow().unflushed() else { return };
    let (segment, end) = (info.base_offset, info.valid_end);
    // A block that was flushed in part is copied whole: the first append behind that part carries it, so memory has it.
    let from = from / BLOCK as u64 * BLOCK as u64;
    // What is sealed, or a block that is complete, can be flushed.
    if info.sealed || end - from >= BLOCK as u64 {
        return;
    }
    let Some(bytes) = block_bytes(cell, segment, from, end) else { return };
    let machine = cell.machine.borrow();
    let entry = EntryHeader {
        kind: EntryKind::Carry,
        must_understand: true,
        topic_partition: cell.id,
        leader_epoch: machine.epoch(),
        segment,
        position: from,
        base_offset: machine.ladder().appended(),
        end_offset: machine.ladder().appended(),
        high_watermark: machine.ladder().committed(),
        running_hash: machine.running_hash(),
        max_timestamp: machine.max_timestamp(),
        payload_len: bytes.len() as u32,
        carried: bytes.len() as u32,
    };
    drop(machine);
    let placed = store.journal.add(&entry, Urgency::Lazy, None, |space| space.copy_from_slice(&bytes));
    for chunk in cell.tail.borrow_mut().reaching_past_mut(segment, from).filter(|c| c.segment == segment) {
        chunk.sequence = placed.sequence;
    }
    store.mark("carry");
}

/// Makes the batch of `offset` readable from its segment, if all but its ragged ends was left out of memory.
///
/// # Errors
/// When the partition is gone, or the disk fails.
pub async fn bring_in(store: &Rc<Store>, cell: &Rc<PartitionCell>, offset: Offset) -> Result<(), Refusal> {
    let is_left_out = || cell.left_out(offset).is_some();
    while is_left_out() {
        let ticket = store.journal.progress().ticket();
        cell.enter_flush().await;
        // Others may have waited for the same.
        let flushed = if is_left_out() { flush_segments(store, cell, true).await } else { Ok(()) };
        cell.leave_flush();
        if let Some(refusal) = cell.gone() {
            return Err(refusal);
        }
        if let Err(error) = flushed {
            store.fail(format!("write-behind of {}: {error}", cell.id));
            return Err(cell.refusal(Code::Storage, error));
        }
        if store.is_failed() {
            return Err(cell.refusal(Code::Storage, "the broker is going down"));
        }
        if is_left_out() {
            // Its last block is shared with an append that is not durable yet.
            store.journal.progress().wait_until(ticket, Instant::now() + RECHECK).await;
        }
    }
    Ok(())
}

/// Lets batches leave the memory tail, oldest first, until half of its share is used: flushed ones, and the whole blocks of large ones. Unflushed
/// ones that pin a large buffer are copied out. Looks at `rounds` of them.
fn evict(store: &Store, rounds: usize) {
    let entries = store.tails.borrow().len();
    for _ in 0..rounds.min(entries) {
        if !store.budget.wants_eviction() {
            return;
        }
        let Some(cell) = store.tails.borrow_mut().pop_front() else { return };
        if evict_first(store, &cell) {
            continue;
        }
        let is_there = cell.tail.borrow_mut().copy_out_first(store.budget.accounted());
        match is_there {
            true => store.tails.borrow_mut().push_back(cell),
            false => store.entry_gone(&cell),
        }
    }
}

/// After an append: lets a few of the oldest go, as long as they can.
pub fn make_way(store: &Store) {
    for _ in 0..EVICTED_PER_APPEND {
        let Some(cell) = store.tails.borrow().front().filter(|_| store.budget.wants_eviction()).cloned() else { return };
        if !evict_first(store, &cell) {
            if cell.tail.borrow().holds_any() {
                return;
            }
            store.entry_gone(&cell);
        }
        store.tails.borrow_mut().pop_front();
    }
}

/// Lets the partition's oldest batch go if it is flushed, or leaves its whole blocks out if they are durable.
fn evict_first(store: &Store, cell: &PartitionCell) -> bool {
    let (flushed, durable) = {
        let machine = cell.machine.borrow();
        (machine.flushed(), machine.ladder().durable())
    };
    if cell.tail.borrow_mut().evict_flushed(flushed) {
        return true;
    }
    let left_out = cell.tail.borrow_mut().leave_out_next(durable, store.budget.accounted());
    if left_out {
        store.metrics.add(Counter::BatchesLeftOut, 1);
        store.mark("left out");
    }
    left_out
}
