//! The cleaner of a shard: rewrites compacted partitions, one at a time, beside everything else.
//!
//! ```text
//! dirty segments --read--> map of keys | all segments from the first on, group by group --read--> what stays --write--> a segment of the next generation
//!     its blocks, its index, both headers; both files synced; their names synced
//!     machine and journal entry in one step: from here on readers have the new one
//!     the entry is durable: the old files go
//! ```
//! A crash before the entry is durable leaves the old segments and a file that the next start removes; after it the new one and old files that it removes. Nothing is ever overwritten. What rules a record
//! stays by is in [`cleaning`](crate::log::cleaning).
//!
//! It runs in a task queue with few shares, reads past the cache in pieces, and no faster than [`CLEANER_BYTES_PER_S`]. A failure leaves the old segments as they are.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::{Latency, Shares};

use crate::batch::BatchIter;
use crate::limits::{CLEANER_BYTES_PER_S, CLEANER_PAUSE_MS, CLEANER_PIECE, MAX_COMPACTED_BLOCK};
use crate::log::cleaning::plan::{self, Group};
use crate::log::cleaning::{Finished, Kept, KeyMap, Noted, OutOfReach, Pass, RewrittenSegment};
use crate::log::files::is_no_space;
use crate::log::journal::{EntryHeader, EntryKind};
use crate::log::paths;
use crate::log::replacement::Replacement;
use crate::log::segment::SegmentInfo;
use crate::metrics::{Counter, Gauge};
use crate::partition::Plan;
use crate::request::Refusal;
use crate::shard::context::Context;
use crate::shard::disk::DataFile;
use crate::shard::journal::Urgency;
use crate::shard::partition_cell::{Outside, PartitionCell};
use crate::shard::reader::Run;
use crate::shard::ring::filled;
use crate::shard::store::now_ms;
use crate::shard::write_behind;
use crate::types::{Offset, TopicPartition};

/// Shares of the cleaner's queue; the others have 1000.
const SHARES: usize = 100;
/// A partition that could not be cleaned is not tried again for so long.
const REST: Duration = Duration::from_secs(60);
/// Bytes are paid for with time once they are worth so much of it.
const LEAST_SLEEP: Duration = Duration::from_millis(5);

/// Starts the task. It ends when `stopping` is set, at the next batch.
pub fn spawn(context: &Rc<Context>, stopping: &Rc<Cell<bool>>) -> glommio::Task<()> {
    let queue = glommio::executor().create_task_queue(Shares::Static(SHARES), Latency::NotImportant, "cleaner");
    let cleaner = Cleaner {
        context: context.clone(),
        stopping: stopping.clone(),
        resume: HashMap::new(),
        resting: HashMap::new(),
        paid_until: Instant::now(),
    };
    glommio::spawn_local_into(cleaner.run(), queue).expect("the queue was made just now")
}

/// Why a pass did not come to its end.
enum Stop {
    /// The broker stops, or the partition or a segment of it is gone: nothing is wrong.
    Over,
    /// It could not be read; the reader has said why.
    Unreadable(Refusal),
    /// It could not be written.
    Io(io::Error),
    /// What stays does not fit a segment.
    TooLong(OutOfReach),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Io(error)
    }
}

impl From<OutOfReach> for Stop {
    fn from(error: OutOfReach) -> Stop {
        Stop::TooLong(error)
    }
}

struct Cleaner {
    context: Rc<Context>,
    stopping: Rc<Cell<bool>>,
    /// Where the next pass goes on whose last one ended within a segment.
    resume: HashMap<TopicPartition, Offset>,
    /// Until when a partition is left alone.
    resting: HashMap<TopicPartition, Instant>,
    /// The bytes read and written so far are paid for at this time.
    paid_until: Instant,
}

impl Cleaner {
    async fn run(mut self) {
        while !self.stopping.get() {
            self.flush_sealed().await;
            let Some(cell) = self.dirtiest() else {
                glommio::timer::sleep(Duration::from_millis(CLEANER_PAUSE_MS)).await;
                continue;
            };
            match self.clean(&cell).await {
                Ok(()) | Err(Stop::Over) => glommio::executor().yield_task_queue_now().await,
                Err(stop) => {
                    match stop {
                        Stop::Unreadable(refusal) => tracing::warn!(partition = %cell.id, %refusal, "it can't be cleaned"),
                        Stop::Io(error) if is_no_space(&error) => tracing::warn!(partition = %cell.id, "no space to clean it"),
                        Stop::Io(error) => tracing::error!(partition = %cell.id, %error, "it can't be cleaned"),
                        Stop::TooLong(error) => tracing::error!(partition = %cell.id, %error, "it can't be cleaned"),
                        Stop::Over => {}
                    }
                    self.resting.insert(cell.id, Instant::now() + REST);
                }
            }
            self.context.metrics.set(Gauge::MemoryCleaner, 0);
        }
    }

    /// Sealed segments are cleaned once they are flushed, which may take long where nothing else asks for it.
    async fn flush_sealed(&self) {
        let store = &self.context.store;
        let waits = |cell: &Rc<PartitionCell>| {
            let machine = cell.machine.borrow();
            cell.settings.get().compacted
                && cell.is_flushed()
                && machine.segments().iter().any(|s| s.sealed && s.base_offset >= machine.flushed().0)
        };
        let cells: Vec<_> = store.partitions().into_iter().filter(waits).collect();
        for some in cells.chunks(write_behind::FLUSHES) {
            write_behind::flush_all(store, some.to_vec(), true).await;
        }
    }

    /// The partition of which the largest part is dirty, among those that are due.
    fn dirtiest(&mut self) -> Option<Rc<PartitionCell>> {
        let (store, now) = (&self.context.store, Instant::now());
        self.resting.retain(|_, until| *until > now);
        self.resume.retain(|id, _| store.partition(id).is_some());
        if store.reserve.is_full() {
            return None;
        }
        let due = |cell: &Rc<PartitionCell>| {
            let settings = cell.settings.get();
            let may = settings.compacted && cell.gone().is_none() && !self.resting.contains_key(&cell.id);
            let survey = may.then(|| cell.machine.borrow().survey(now_ms(), &settings))?;
            survey.is_due(settings.dirty_millionths).then(|| survey.dirty_millionths())
        };
        store
            .partitions()
            .into_iter()
            .filter_map(|cell| due(&cell).map(|dirty| (dirty, cell)))
            .max_by_key(|(dirty, _)| *dirty)
            .map(|(_, cell)| cell)
    }

    /// One pass over a partition.
    async fn clean(&mut self, cell: &Rc<PartitionCell>) -> Result<(), Stop> {
        let (settings, now) = (cell.settings.get(), now_ms());
        let survey = cell.machine.borrow().survey(now, &settings);
        let Some(last) = survey.segments.last() else { return Ok(()) };
        let memory = self.context.store.budget.cleaner();
        self.context.metrics.set(Gauge::MemoryCleaner, memory as u64);
        let map = KeyMap::new(memory, *uuid::Uuid::new_v4().as_bytes());
        let mut pass = Pass::new(map, now, settings.delete_retention_ms, MAX_COMPACTED_BLOCK);
        let from = self.resume.remove(&cell.id).map_or(survey.first_dirty, |resume| resume.max(survey.first_dirty));
        let end = self.note_keys(cell, &mut pass, &survey.segments, from).await?.unwrap_or(last.end_offset);
        pass.end_at(end);
        for group in plan::groups(&survey.segments, end, settings.segment_bytes) {
            self.clean_group(cell, &mut pass, &group, end).await?;
        }
        if !survey.segments.iter().any(|segment| segment.end_offset == end) {
            self.resume.insert(cell.id, end);
        }
        let (counts, metrics) = (pass.counts(), &self.context.metrics);
        metrics.add(Counter::CleanerPasses, 1);
        metrics.add(Counter::CleanerRecordsRemoved, counts.superseded);
        metrics.add(Counter::CleanerTombstonesRemoved, counts.tombstones);
        tracing::debug!(partition = %cell.id, from, end, keys = pass.keys(), ?counts, "cleaned");
        Ok(())
    }

    /// Notes the keys from an offset on; where there was no room for more of them.
    async fn note_keys(
        &mut self,
        cell: &Rc<PartitionCell>,
        pass: &mut Pass,
        segments: &[SegmentInfo],
        from: Offset,
    ) -> Result<Option<Offset>, Stop> {
        for info in segments.iter().filter(|info| info.end_offset > from && !info.adopted) {
            let mut scan = Scan::of(info, from);
            while let Some(run) = scan.next(self, cell).await? {
                for (header, batch) in BatchIter::new(run.bytes()).flatten().filter(|(header, _)| header.base_offset >= from) {
                    if pass.note(batch) == Noted::Full {
                        return Ok(Some(header.base_offset));
                    }
                    glommio::yield_if_needed().await;
                }
            }
        }
        Ok(None)
    }

    async fn clean_group(&mut self, cell: &Rc<PartitionCell>, pass: &mut Pass, group: &Group, end: Offset) -> Result<(), Stop> {
        let is_cleaned = group.end() <= end;
        if let [only] = &group.0[..] {
            let before = pass.mark();
            let is_whole = match only.adopted {
                true => {
                    pass.pass_over();
                    true
                }
                false => self.stays_whole(cell, pass, only).await?,
            };
            if is_whole {
                if is_cleaned {
                    cell.machine.borrow_mut().mark_cleaned(only);
                }
                return Ok(());
            }
            pass.back_to(before);
        }
        let outside = self.begin(cell)?;
        let new = group.rewrite();
        let mut output = Output::create(self, cell, &new, outside).await?;
        match self.rewrite(cell, pass, group, &mut output).await {
            Ok(()) => self.switch(output, is_cleaned).await,
            Err(stop) => {
                output.discard().await;
                Err(stop)
            }
        }
    }

    /// Whether nothing of a segment would go.
    async fn stays_whole(&mut self, cell: &Rc<PartitionCell>, pass: &mut Pass, info: &SegmentInfo) -> Result<bool, Stop> {
        let mut scan = Scan::of(info, info.base_offset);
        while let Some(run) = scan.next(self, cell).await? {
            for (header, batch) in BatchIter::new(run.bytes()).flatten() {
                if !matches!(pass.keep(batch, header.next_offset() == info.end_offset), Kept::Whole(_)) {
                    return Ok(false);
                }
                glommio::yield_if_needed().await;
            }
        }
        Ok(true)
    }

    async fn rewrite(&mut self, cell: &Rc<PartitionCell>, pass: &mut Pass, group: &Group, output: &mut Output) -> Result<(), Stop> {
        for info in &group.0 {
            let mut scan = Scan::of(info, info.base_offset);
            while let Some(run) = scan.next(self, cell).await? {
                for (header, batch) in BatchIter::new(run.bytes()).flatten() {
                    if let Some(bytes) = pass.keep(batch, header.next_offset() == group.end()).bytes() {
                        output.segment.push(bytes)?;
                    }
                    if let Some((at, blocks)) = output.segment.take_blocks(CLEANER_PIECE) {
                        output.log.write(filled(&blocks), at).await?;
                        self.pay(blocks.len()).await;
                    }
                    glommio::yield_if_needed().await;
                }
            }
        }
        Ok(())
    }

    /// Makes a rewritten segment durable and puts it in the place of those that it was made of.
    async fn switch(&mut self, output: Output, is_cleaned: bool) -> Result<(), Stop> {
        let store = self.context.store.clone();
        let Output { cell, segment, log, index, names, outside } = output;
        let finished = segment.finish();
        let info = SegmentInfo { cleaned: is_cleaned, ..finished.info };
        let written = async {
            write_rest(&cell, &finished, &info, &log, &index).await?;
            store.disk.sync_dir(&paths::partition_dir(cell.id)).await?;
            log.close().await?;
            index.close().await
        };
        let written = written.await.map_err(Stop::Io);
        let replaced = match written.and_then(|()| self.go_on(&cell)) {
            Ok(()) => cell.machine.borrow_mut().replace_segments(info).map_err(|_| Stop::Over),
            Err(stop) => Err(stop),
        };
        let replaced = match replaced {
            Ok(replaced) => replaced,
            Err(stop) => {
                remove(&cell, &self.context, &names).await;
                return Err(stop);
            }
        };
        // In one step with the machine's change: a checkpoint has both or neither.
        let payload = Replacement::of(&info).encode();
        let end_offset = cell.machine.borrow().ladder().appended();
        let plan = Plan { base_offset: end_offset, end_offset, segment: info.base_offset, position: info.valid_end, len: 0 };
        let entry = EntryHeader { payload_len: payload.len() as u32, ..store.entry(&cell, EntryKind::Replace, &plan) };
        let sequence = store.journal.add(&entry, Urgency::Lazy, None, |space| space.copy_from_slice(&payload)).sequence;
        store.mark("clean");
        replaced.iter().for_each(|old| cell.drop_files(old.base_offset));
        store.reader.forget_replaced(&cell, &replaced);
        // Memory would serve what is gone for as long as it has room; all of it is flushed.
        store.forget_entries(&cell, cell.forget_below(info.end_offset));
        let before: u64 = replaced.iter().map(SegmentInfo::batch_bytes).sum();
        let metrics = &self.context.metrics;
        metrics.add(Counter::CleanerBytesFreed, before.saturating_sub(info.batch_bytes()));
        metrics.add(Counter::CleanerBytesWritten, info.batch_bytes());
        metrics.add(Counter::SegmentsRewritten, replaced.len() as u64);
        store.journal.wait_durable(sequence).await;
        let old: Vec<_> = replaced.iter().flat_map(|old| [old.path(cell.id), old.index_path(cell.id)]).collect();
        remove(&cell, &self.context, &old).await;
        store.mark("replaced segments removed");
        drop(outside);
        Ok(())
    }

    /// Whether there is a point in going on with a partition.
    fn go_on(&self, cell: &PartitionCell) -> Result<(), Stop> {
        let is_over = self.stopping.get() || cell.gone().is_some() || !cell.settings.get().compacted;
        if is_over { Err(Stop::Over) } else { Ok(()) }
    }

    /// Keeps the partition's directory from going while something is written there.
    fn begin(&self, cell: &Rc<PartitionCell>) -> Result<Outside, Stop> {
        self.go_on(cell).map(|()| cell.begin_outside())
    }

    /// Waits until bytes that were read or written are paid for.
    async fn pay(&mut self, bytes: usize) {
        let now = Instant::now();
        let price = Duration::from_nanos(bytes as u64 * 1_000_000_000 / CLEANER_BYTES_PER_S);
        self.paid_until = self.paid_until.max(now) + price;
        let ahead = self.paid_until.saturating_duration_since(now);
        if ahead >= LEAST_SLEEP {
            glommio::timer::sleep(ahead).await;
        }
    }
}

/// The batches of a segment, run by run.
struct Scan<'a> {
    info: &'a SegmentInfo,
    offset: Offset,
    previous: Option<Rc<Run>>,
}

impl<'a> Scan<'a> {
    fn of(info: &'a SegmentInfo, from: Offset) -> Scan<'a> {
        Scan { info, offset: from.max(info.base_offset), previous: None }
    }

    async fn next(&mut self, cleaner: &mut Cleaner, cell: &Rc<PartitionCell>) -> Result<Option<Rc<Run>>, Stop> {
        cleaner.go_on(cell)?;
        if self.offset >= self.info.end_offset {
            return Ok(None);
        }
        let previous = self.previous.take();
        let run = cleaner.context.store.reader.scan(cell, self.info, self.offset, previous.as_deref()).await;
        let run = Rc::new(run.map_err(|refusal| cleaner.go_on(cell).err().unwrap_or(Stop::Unreadable(refusal)))?);
        let bytes = run.bytes().len();
        cleaner.context.metrics.add(Counter::CleanerBytesRead, bytes as u64);
        cleaner.pay(bytes).await;
        self.offset = run.end_offset;
        self.previous = Some(run.clone());
        Ok(Some(run))
    }
}

/// The files of a segment that is being put together.
struct Output {
    cell: Rc<PartitionCell>,
    segment: RewrittenSegment,
    log: DataFile,
    index: DataFile,
    names: [String; 2],
    outside: Outside,
}

impl Output {
    async fn create(cleaner: &Cleaner, cell: &Rc<PartitionCell>, new: &SegmentInfo, outside: Outside) -> Result<Output, Stop> {
        let disk = &cleaner.context.store.disk;
        let names = [new.path(cell.id), new.index_path(cell.id)];
        let created = async {
            // What an earlier try left holds nothing that counts: no entry names it.
            for name in &names {
                disk.remove(name).await?;
            }
            Ok((disk.create(&names[0]).await?, disk.create(&names[1]).await?))
        };
        match created.await {
            Ok((log, index)) => Ok(Output { cell: cell.clone(), segment: RewrittenSegment::new(*new), log, index, names, outside }),
            Err(error) => {
                remove(cell, &cleaner.context, &names).await;
                Err(Stop::Io(error))
            }
        }
    }

    /// Leaves no trace.
    async fn discard(self) {
        let disk = self.log.disk().clone();
        for name in &self.names {
            if let Err(error) = disk.remove(name).await {
                tracing::warn!(name, %error, "the file of a cleaning that was given up stays until the next start");
            }
        }
    }
}

/// The last blocks, the index, and last the headers; all durable but for the names.
async fn write_rest(cell: &PartitionCell, finished: &Finished, info: &SegmentInfo, log: &DataFile, index: &DataFile) -> io::Result<()> {
    let (at, rest) = &finished.rest;
    if !rest.is_empty() {
        log.write(filled(rest), *at).await?;
    }
    if let Some(blocks) = finished.index.blocks_from(0) {
        index.write(filled(&blocks.bytes), blocks.position).await?;
    }
    log.write(filled(&info.header_block(cell.id)), 0).await?;
    index.write(filled(&info.index_header_block(cell.id)), 0).await?;
    futures_util::try_join!(log.sync(), index.sync()).map(drop)
}

async fn remove(cell: &PartitionCell, context: &Context, names: &[String]) {
    for name in names {
        if let Err(error) = context.store.disk.remove(name).await {
            tracing::warn!(partition = %cell.id, name, %error, "a file that is not needed any more stays until the next start");
        }
    }
}
