//! One partition as its shard holds it: the machine, its memory, its open files, and what waits for it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crate::limits::BLOCK;
use crate::log::index::Index;
use crate::log::segment::SegmentInfo;
use crate::metrics::TopicMetrics;
use crate::partition::{Partition, Sealed, Settings};
use crate::request::{Appended, Code, Refusal};
use crate::shard::disk::Disk;
use crate::shard::event::Event;
use crate::shard::pending::Completion;
use crate::shard::segment_files::SegmentFiles;
use crate::shard::tail::Tail;
use crate::shard::trace::TraceEvent;
use crate::types::{Durability, Offset, TopicPartition};

/// A partition on its shard.
pub struct PartitionCell {
    /// Which.
    pub id: TopicPartition,
    /// Rules and offsets.
    pub machine: RefCell<Partition>,
    /// Batches in memory.
    pub tail: RefCell<Tail>,
    /// Settings in force.
    pub settings: Cell<Settings>,
    /// The topic's counters.
    pub metrics: Arc<TopicMetrics>,
    /// Notified when the watermark moves or the partition goes.
    pub committed: Event,
    /// Last journal group that this partition is in.
    pub touched_in: Cell<u64>,
    /// Bytes of the unfinished block, where the journal does not hold them: the next append carries them.
    pub remainder: RefCell<Option<Vec<u8>>>,
    /// The journal knows the present leader epoch.
    pub epoch_journaled: Cell<bool>,
    /// Its directory is there.
    pub has_directory: Cell<bool>,
    /// A flush is under way.
    pub flushing: Cell<bool>,
    /// The partition waits for write-behind.
    pub queued_for_flush: Cell<bool>,
    /// When the last append came, by the shard's seconds counter.
    pub last_append: Cell<u64>,
    /// Slow changes (rolls, allocation, truncation) exclude each other.
    pub busy: Cell<bool>,
    /// Notified when `busy` or `flushing` ends.
    pub idle: Event,
    gone: RefCell<Option<Refusal>>,
    files: RefCell<BTreeMap<Offset, Rc<SegmentFiles>>>,
    sealed_indexes: RefCell<BTreeMap<Offset, Rc<Index>>>,
    in_flight: RefCell<InFlightQueue>,
    disk: Rc<Disk>,
}

/// Appends that are not durable yet, in order of offset.
#[derive(Default)]
struct InFlightQueue {
    appends: VecDeque<InFlight>,
    /// How many of the first are written.
    written: usize,
    /// How many of the first are answered; at least those that are durable.
    answered: usize,
}

/// An append that is not durable yet.
struct InFlight {
    base_offset: Offset,
    end_offset: Offset,
    count: u32,
    crc: u32,
    segment: Offset,
    position: u64,
    sequence: u64,
    direct: Option<Rc<DirectWrite>>,
    completion: Option<Completion>,
}

impl InFlight {
    fn is_written(&self, group: u64) -> bool {
        self.sequence <= group && self.direct.as_deref().is_none_or(|d| d.written.get())
    }

    fn is_durable(&self, group: u64) -> bool {
        self.sequence <= group && self.direct.as_deref().is_none_or(|d| d.durable.get())
    }
}

/// How far the blocks that went straight to the segment are.
#[derive(Default)]
pub struct DirectWrite {
    /// The device write is done.
    pub written: Cell<bool>,
    /// And synced, with the file's name.
    pub durable: Cell<bool>,
}

/// What is appended, for [`PartitionCell::track`].
pub struct Tracked {
    /// First offset.
    pub base_offset: Offset,
    /// One past the last offset.
    pub end_offset: Offset,
    /// Records.
    pub count: u32,
    /// The batch's CRC-32C.
    pub crc: u32,
    /// Segment.
    pub segment: Offset,
    /// Position of the batch.
    pub position: u64,
    /// Journal group.
    pub sequence: u64,
    /// Blocks that went straight to the segment.
    pub direct: Option<Rc<DirectWrite>>,
    /// Who waits.
    pub completion: Option<Completion>,
}

impl PartitionCell {
    /// A partition as recovered.
    pub fn new(
        machine: Partition,
        settings: Settings,
        remainder: Option<Vec<u8>>,
        metrics: Arc<TopicMetrics>,
        disk: Rc<Disk>,
    ) -> Rc<PartitionCell> {
        Rc::new(PartitionCell {
            id: machine.id(),
            machine: RefCell::new(machine),
            tail: RefCell::default(),
            settings: Cell::new(settings),
            metrics,
            committed: Event::default(),
            touched_in: Cell::new(0),
            remainder: RefCell::new(remainder.filter(|r| !r.is_empty())),
            epoch_journaled: Cell::new(false),
            has_directory: Cell::new(false),
            flushing: Cell::new(false),
            queued_for_flush: Cell::new(false),
            last_append: Cell::new(0),
            busy: Cell::new(false),
            idle: Event::default(),
            gone: RefCell::new(None),
            files: RefCell::default(),
            sealed_indexes: RefCell::default(),
            in_flight: RefCell::default(),
            disk,
        })
    }

    /// Refuses everything from now on: the topic was deleted, or the partition is quarantined.
    pub fn close(&self, refusal: Refusal) {
        *self.gone.borrow_mut() = Some(refusal.clone());
        for waiting in self.in_flight.take().appends {
            if let Some(completion) = waiting.completion {
                completion.complete(Err(refusal.clone()));
            }
        }
        self.committed.notify();
    }

    /// Why nothing is served, if so.
    pub fn gone(&self) -> Option<Refusal> {
        self.gone.borrow().clone()
    }

    /// Open files of the segment that is appended to.
    pub fn active_files(&self) -> Option<Rc<SegmentFiles>> {
        let machine = self.machine.borrow();
        let active = machine.active()?;
        self.files.borrow().get(&active.base_offset).cloned()
    }

    /// Open files of a segment that is not wholly flushed.
    pub fn files_of(&self, segment: Offset) -> Option<Rc<SegmentFiles>> {
        self.files.borrow().get(&segment).cloned()
    }

    /// Remembers open files.
    pub fn keep_files(&self, segment: Offset, files: Rc<SegmentFiles>) {
        self.files.borrow_mut().insert(segment, files);
    }

    /// Lets the files of a segment go that is sealed and flushed, or cut off.
    pub fn drop_files(&self, segment: Offset) {
        self.files.borrow_mut().remove(&segment);
        self.sealed_indexes.borrow_mut().remove(&segment);
    }

    /// Keeps the index of a segment that was sealed but is not flushed.
    pub fn keep_sealed(&self, sealed: Sealed) {
        self.sealed_indexes.borrow_mut().insert(sealed.segment.base_offset, Rc::new(sealed.index));
    }

    /// The index of a sealed segment that is still in memory.
    pub fn sealed_index(&self, segment: Offset) -> Option<Rc<Index>> {
        self.sealed_indexes.borrow().get(&segment).cloned()
    }

    /// Writes index entries before `position` of a segment to its file.
    pub async fn write_index(&self, files: &SegmentFiles, info: &SegmentInfo, position: u64) -> io::Result<()> {
        if let Some(index) = self.sealed_index(info.base_offset) {
            return files.write_index(&index, position).await;
        }
        // The entries before `position` don't change while they are written; a clone of the few new ones would be cheaper, an index is small.
        let index = self.machine.borrow().index().clone();
        match index.segment() == info.base_offset {
            true => files.write_index(&index, position).await,
            false => Ok(()),
        }
    }

    /// Follows an append until it is durable and its completion is answered.
    pub fn track(&self, append: Tracked) {
        let Tracked { base_offset, end_offset, count, crc, segment, position, sequence, direct, completion } = append;
        self.in_flight.borrow_mut().appends.push_back(InFlight {
            base_offset,
            end_offset,
            count,
            crc,
            segment,
            position,
            sequence,
            direct,
            completion,
        });
        if self.settings.get().durability == Durability::Memory {
            self.advance(0, 0);
        }
    }

    /// Answers `completion` with an earlier append's offset once everything up to `end_offset` is committed.
    pub fn track_duplicate(&self, base_offset: Offset, end_offset: Offset, completion: Completion) {
        let mut in_flight = self.in_flight.borrow_mut();
        let at = in_flight.appends.partition_point(|f| f.end_offset < end_offset);
        match in_flight.appends.get_mut(at).and_then(|f| f.completion.take().map(|first| (f, first))) {
            Some((original, first)) => original.completion = Some(first.and(completion, base_offset)),
            None => {
                drop(in_flight);
                completion.complete(Ok(self.acknowledgement(base_offset)));
            }
        }
    }

    fn acknowledgement(&self, base_offset: Offset) -> Appended {
        Appended { base_offset, log_append_time: -1, log_start: self.machine.borrow().log_start() }
    }

    /// Groups up to `written` are written and up to `durable` synced: moves the ends on, answers who waited, wakes readers.
    ///
    /// Each append is looked at once per step that it takes, however many are in flight.
    pub fn advance(&self, written: u64, durable: u64) {
        let level = self.settings.get().durability;
        let mut answered = Vec::new();
        let mut news = false;
        {
            let mut machine = self.machine.borrow_mut();
            let mut in_flight = self.in_flight.borrow_mut();
            let InFlightQueue { appends, written: all_written, answered: all_answered } = &mut *in_flight;
            let mut all_durable = 0;
            while let Some(next) = appends.get(*all_written).filter(|a| a.is_written(written)) {
                *all_written += 1;
                machine.ladder_mut().reach(next.end_offset, false).expect("in flight is below the appended end");
            }
            while all_durable < *all_written && appends[all_durable].is_durable(durable) {
                let end_offset = appends[all_durable].end_offset;
                machine.ladder_mut().reach(end_offset, true).expect("in flight is below the appended end");
                all_durable += 1;
            }
            let reached = match level {
                Durability::Durable => all_durable,
                Durability::Written => *all_written,
                Durability::Memory => appends.len(),
            };
            for append in appends.range_mut((*all_answered).min(reached)..reached) {
                news |= machine.ladder_mut().commit_to(append.end_offset, level).expect("the level was reached");
                let Some(completion) = append.completion.take() else { continue };
                answered.push((completion, append.base_offset));
                if let Some(trace) = self.disk.trace() {
                    let (base_offset, count, crc) = (append.base_offset, append.count, append.crc);
                    trace.record(&TraceEvent::Acknowledge { partition: self.id, base_offset, count, crc });
                }
            }
            *all_answered = reached.max(*all_answered);
            appends.drain(..all_durable);
            *all_written -= all_durable;
            *all_answered -= all_durable;
        }
        for (completion, base_offset) in answered {
            completion.complete(Ok(self.acknowledgement(base_offset)));
        }
        if news {
            self.committed.notify();
        }
    }

    /// Position up to which `segment` is durable in the journal (or on its own): write-behind stays below.
    pub fn durable_position(&self, segment: &SegmentInfo) -> u64 {
        match self.in_flight.borrow().appends.front() {
            Some(first) if first.segment == segment.base_offset => first.position,
            Some(first) if first.segment < segment.base_offset => BLOCK as u64,
            _ => segment.valid_end,
        }
    }

    /// Group of the oldest append in flight.
    pub fn oldest_in_flight(&self) -> Option<u64> {
        self.in_flight.borrow().appends.front().map(|f| f.sequence)
    }

    /// Group of the oldest byte that is only in the journal.
    pub fn oldest_unflushed(&self) -> Option<u64> {
        self.tail.borrow().oldest_unflushed(self.machine.borrow().flushed())
    }

    /// Bytes in memory that are in no segment.
    pub fn unflushed_bytes(&self) -> usize {
        let flushed = self.machine.borrow().flushed();
        self.tail.borrow().unflushed_bytes(flushed)
    }

    /// Lets batches below `offset` go from memory (they were deleted).
    pub fn forget_below(&self, offset: Offset) {
        self.tail.borrow_mut().forget_below(offset);
    }

    /// Excludes other slow changes until [`PartitionCell::leave`].
    pub async fn enter(&self) {
        loop {
            let ticket = self.idle.ticket();
            if !self.busy.replace(true) {
                return;
            }
            self.idle.wait(ticket).await;
        }
    }

    /// Ends a slow change.
    pub fn leave(&self) {
        self.busy.set(false);
        self.idle.notify();
    }

    /// Waits until no flush is under way, and begins one.
    pub async fn enter_flush(&self) {
        loop {
            let ticket = self.idle.ticket();
            if !self.flushing.replace(true) {
                return;
            }
            self.idle.wait(ticket).await;
        }
    }

    /// Ends a flush.
    pub fn leave_flush(&self) {
        self.flushing.set(false);
        self.idle.notify();
    }
}

/// The refusal of a partition whose topic was deleted.
pub fn deleted(id: TopicPartition) -> Refusal {
    Refusal::new(Code::UnknownTopicOrPartition, format!("partition {id} was deleted"))
}
