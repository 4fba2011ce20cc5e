//! Reads of what is no longer in memory: direct I/O, checked before anything is served, through a cache of fixed size.
//!
//! The unit is a *run*: consecutive whole batches of one segment in one aligned read, from one index entry to another where there are any, so that
//! no byte is read twice. Before a run is served, the CRC of each batch, the continuity of offsets and the running hash between
//! the index entries are checked; a consumer that goes on where a run ended needs no index, because the run remembers position and hash at
//! its end. Reads double in size for such a consumer, and the next few runs are fetched while it receives the present one: the index tells
//! where they begin before the ones in front of them have come.
//!
//! A segment that a cleaning has rewritten has gaps between its batches, and a run of it covers offsets that nothing is at. Which segment holds an offset may change while
//! it is read: then it is read once more, from the one that does now.
//!
//! Copies of a payload byte: none; the response is sent from the buffer of the read.
//! What does not check is corruption: the partition is quarantined and says so.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use glommio::io::ReadResult;

use crate::batch::{self, BatchHeader, HEADER_LEN};
use crate::checksum::{Crc32c, running_hash};
use crate::limits::{ADOPT_APPEND, BLOCK, CLEANER_PIECE};
use crate::log::index::{Index, IndexEntry};
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::metrics::{Counter, Gauge, ShardMetrics};
use crate::request::{Code, Refusal};
use crate::shard::disk::{DataFile, Disk};
use crate::shard::event::Event;
use crate::shard::handles::{Handles, file_key};
use crate::shard::partition_cell::PartitionCell;
use crate::shard::read_fault::{Fault, suspected};
use crate::shard::segment_files::read_index;
use crate::types::{Offset, TopicPartition};

/// First read of a consumer that jumps, bytes.
const MIN_READ: usize = 128 * 1024;
/// Largest read of a consumer that goes on, bytes.
const MAX_READ: usize = 2 * 1024 * 1024;
/// Runs that are fetched ahead of a consumer that goes on.
const AHEAD: usize = 4;
/// Open files for reading.
const MAX_FILES: usize = 256;
/// Indexes of sealed segments in memory.
const MAX_INDEXES: usize = 256;

/// Reads for one shard.
pub struct Reader {
    disk: Rc<Disk>,
    metrics: Arc<ShardMetrics>,
    capacity: usize,
    used: Cell<usize>,
    /// Bytes of all runs that are in memory: those of the cache, and those that wait for slow peers.
    alive: Rc<Cell<usize>>,
    /// Bytes of reads ahead that are under way.
    ahead: Cell<usize>,
    runs: RefCell<BTreeMap<(TopicPartition, Offset), Slot>>,
    order: RefCell<VecDeque<(TopicPartition, Offset)>>,
    files: RefCell<Handles<DataFile>>,
    indexes: RefCell<Handles<Index>>,
    /// Adopted segments whose bytes were checked.
    verified: RefCell<HashSet<(TopicPartition, Offset)>>,
}

#[derive(Clone)]
enum Slot {
    /// Up to this offset, where that is known before.
    Loading(Rc<Event>, Option<Offset>),
    Loaded(Rc<Run>),
}

/// Checked batches, contiguous in memory.
pub struct Run {
    /// First offset that it stands for.
    pub base_offset: Offset,
    /// One past the last offset.
    pub end_offset: Offset,
    /// Offsets may be missing in it.
    has_gaps: bool,
    /// How often the log had been cut when it was read.
    cuts: u32,
    data: ReadResult,
    range: Range<usize>,
    after: Place,
    alive: Rc<Cell<usize>>,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - self.data.len());
    }
}

/// Where a read starts, and what is known there.
#[derive(Clone, Copy)]
struct Place {
    segment: Offset,
    generation: u32,
    offset: Offset,
    position: u64,
    /// Unknown where nothing is left that says it.
    hash: Option<u64>,
    /// Size of the next read, bytes.
    read: usize,
}

impl Place {
    fn at(info: &SegmentInfo, entry: &IndexEntry, read: usize) -> Place {
        Place {
            segment: info.base_offset,
            generation: info.rewrite_generation,
            offset: entry.offset,
            position: entry.position,
            hash: Some(entry.running_hash),
            read,
        }
    }

    fn is_in(&self, info: &SegmentInfo) -> bool {
        (self.segment, self.generation) == (info.base_offset, info.rewrite_generation)
    }
}

/// What is read at once.
#[derive(Clone, Copy)]
struct Stretch {
    info: SegmentInfo,
    place: Place,
    /// Where it ends; where no index entry tells, it ends with the last whole batch of the read.
    end: Option<IndexEntry>,
    /// How often the log had been cut: of another past neither place nor end mean anything.
    cuts: u32,
}

impl Stretch {
    fn new(info: SegmentInfo, place: Place, limit: u64, index: &Index, cuts: u32) -> Stretch {
        let entries = index.entries();
        let next = entries.partition_point(|e| e.position <= place.position);
        let beyond = entries.partition_point(|e| e.position <= place.position + place.read as u64);
        // The last entry within the read, or the first one behind it where a batch is longer than that.
        let end = entries[next..].get((beyond - next).saturating_sub(1)).copied();
        Stretch { info, place, end: end.filter(|e| e.position <= limit), cuts }
    }

    fn end_offset(&self) -> Option<Offset> {
        self.end.map(|e| e.offset)
    }
}

impl Run {
    /// Where the bytes from the batch that holds `offset` are, or from the next one where that is gone: as many whole batches as fit `max_bytes` and end at or before `upto`, at least
    /// one. Empty where the rest of the run stands for offsets that nothing is at.
    pub fn from(&self, offset: Offset, max_bytes: usize, upto: Offset) -> Range<usize> {
        let mut start = self.range.start;
        let mut header = self.header_at(start);
        while header.next_offset() <= offset {
            start += header.total_len();
            if start == self.range.end {
                return start..start;
            }
            header = self.header_at(start);
        }
        let mut end = start + header.total_len();
        while end < self.range.end {
            let header = self.header_at(end);
            let next = header.total_len();
            if end + next - start > max_bytes || header.next_offset() > upto {
                break;
            }
            end += next;
        }
        start..end
    }

    /// The offset after the batches of a range that [`Run::from`] returned.
    pub fn offset_after(&self, range: &Range<usize>) -> Offset {
        if range.end == self.range.end { self.end_offset } else { self.header_at(range.end).base_offset }
    }

    /// Records in a range that [`Run::from`] returned for `offset`.
    pub fn records(&self, offset: Offset, range: &Range<usize>) -> i64 {
        match self.has_gaps {
            // Of the records themselves nothing is parsed.
            false => self.offset_after(range) - offset,
            true => batch::BatchIter::new(self.part(range)).flatten().map(|(header, _)| i64::from(header.record_count)).sum(),
        }
    }

    /// Bytes of memory that it keeps.
    pub fn pinned(&self) -> usize {
        self.data.len()
    }

    /// The bytes of a range that [`Run::from`] returned, or of a part of it.
    pub fn part(&self, range: &Range<usize>) -> &[u8] {
        &self.data[range.clone()]
    }

    fn header_at(&self, at: usize) -> BatchHeader {
        BatchHeader::parse(&self.data[at..]).expect("a run holds checked batches")
    }

    /// All its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.data[self.range.clone()]
    }
}

impl Reader {
    /// Reads with a cache of `capacity` bytes.
    pub fn new(disk: Rc<Disk>, capacity: usize, metrics: Arc<ShardMetrics>) -> Reader {
        Reader {
            disk,
            metrics,
            capacity,
            used: Cell::new(0),
            alive: Rc::default(),
            ahead: Cell::new(0),
            runs: RefCell::default(),
            order: RefCell::default(),
            files: RefCell::new(Handles::new(MAX_FILES)),
            indexes: RefCell::new(Handles::new(MAX_INDEXES)),
            verified: RefCell::default(),
        }
    }

    /// Bytes in the cache.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// The run that holds `offset`, which must be below the flushed position. Another reader of the same run waits for the one read.
    ///
    /// # Errors
    /// When the device fails, or what it returns does not check.
    pub async fn run(self: &Reader, cell: &Rc<PartitionCell>, offset: Offset) -> Result<Rc<Run>, Refusal> {
        loop {
            match self.cached(cell.id, offset) {
                Some(Slot::Loaded(run)) => {
                    self.metrics.add(Counter::CacheHits, 1);
                    return Ok(run);
                }
                Some(Slot::Loading(event, _)) => event.wait(event.ticket()).await,
                None => return self.load(cell, offset, None).await,
            }
        }
    }

    /// Whether runs that the cache has let go fill as much memory as a third of it: reads are small then, and none goes ahead.
    fn is_pressed(&self) -> bool {
        self.alive.get().saturating_sub(self.used.get()) > self.capacity / 3
    }

    fn cached(&self, partition: TopicPartition, offset: Offset) -> Option<Slot> {
        let runs = self.runs.borrow();
        let ((_, base_offset), slot) = runs.range(..=(partition, offset)).next_back().filter(|((p, _), _)| *p == partition)?;
        let holds = match slot {
            Slot::Loaded(run) => run.end_offset > offset,
            Slot::Loading(_, end) => *base_offset == offset || end.is_some_and(|end| end > offset),
        };
        holds.then(|| slot.clone())
    }

    /// Reads the run that holds `offset`; `stretch` starts there, if it is known already.
    async fn load(&self, cell: &Rc<PartitionCell>, offset: Offset, stretch: Option<Stretch>) -> Result<Rc<Run>, Refusal> {
        let key = (cell.id, offset);
        let event = Event::shared();
        let after = self.run_before(cell.id, offset);
        self.runs.borrow_mut().insert(key, Slot::Loading(event.clone(), stretch.and_then(|s| s.end_offset())));
        self.metrics.add(Counter::CacheMisses, 1);
        // A request that is given up in the middle leaves nothing behind that others would wait for.
        let place = LoadingPlace { reader: self, key, event };
        let (loaded, is_current) = self.read_current(cell, offset, stretch, after).await;
        drop(place);
        let run = Rc::new(loaded.map_err(|fault| self.refusal(cell, offset, fault))?);
        if is_current {
            self.keep(cell.id, run.clone());
        }
        Ok(run)
    }

    /// Reads a run, and once more where a cleaning has replaced its segment meanwhile and the old one is gone, or the log was cut; whether what was read still is the log's.
    async fn read_current(
        &self,
        cell: &Rc<PartitionCell>,
        offset: Offset,
        stretch: Option<Stretch>,
        after: Option<Place>,
    ) -> (Result<Run, Fault>, bool) {
        let segment = || cell.machine.borrow().segment_of(offset).map(|info| (file_key(cell, info), cell.cuts.get()));
        let (mut stretch, mut after) = (stretch, after);
        loop {
            let before = segment();
            let read = async {
                let stretch = match stretch.take().filter(|stretch| Some((file_key(cell, &stretch.info), stretch.cuts)) == before) {
                    Some(stretch) => stretch,
                    None => self.stretch(cell, offset, after).await?,
                };
                self.read_checked(cell, offset, &stretch).await
            };
            let read = read.await;
            let is_current = segment() == before;
            if read.is_ok() || is_current || before.is_none() {
                return (read, is_current);
            }
            after = None;
        }
    }

    /// As [`Reader::run`] for the cleaner, past the cache: the batches of `info` from the one that holds `offset` on, or behind `previous`.
    ///
    /// # Errors
    /// As [`Reader::run`].
    pub async fn scan(&self, cell: &Rc<PartitionCell>, info: &SegmentInfo, offset: Offset, previous: Option<&Run>) -> Result<Run, Refusal> {
        let cuts = cell.cuts.get();
        let after =
            previous.filter(|run| run.cuts == cuts).map(|run| run.after).filter(|place| place.is_in(info) && place.offset == offset);
        let read = async {
            let mut stretch = self.stretch_in(cell, info, offset, after).await?;
            stretch.place.read = CLEANER_PIECE;
            stretch.end = None;
            self.read_checked(cell, offset, &stretch).await
        };
        read.await.map_err(|fault| {
            let is_there = cell.machine.borrow().segment_of(offset).is_some_and(|now| file_key(cell, now) == file_key(cell, info));
            match is_there && cell.cuts.get() == cuts {
                true => self.refusal(cell, offset, fault),
                false => Refusal::new(Code::OffsetOutOfRange, format!("partition {}: segment {} is gone", cell.id, info.base_offset)),
            }
        })
    }

    /// The one batch of an adopted segment, too large for memory: the open file and the batch's length. Its bytes are checked once before the first time.
    ///
    /// # Errors
    /// As [`Reader::run`].
    pub async fn whole_segment(&self, cell: &Rc<PartitionCell>, info: &SegmentInfo) -> Result<(Rc<DataFile>, usize), Refusal> {
        let checked = async {
            let file = self.file(cell, info).await?;
            if !self.verified.borrow().contains(&(cell.id, info.base_offset)) {
                self.check_whole(&file, info).await?;
                self.verified.borrow_mut().insert((cell.id, info.base_offset));
            }
            Ok((file, (info.valid_end - FIRST_POSITION) as usize))
        };
        let cuts = cell.cuts.get();
        checked.await.map_err(|fault| match cell.cuts.get() == cuts {
            true => self.refusal(cell, info.base_offset, fault),
            false => cell.refusal(Code::OffsetOutOfRange, "the log was cut while it was read"),
        })
    }

    async fn check_whole(&self, file: &DataFile, info: &SegmentInfo) -> Result<(), Fault> {
        let damaged = |what: String| Fault::Damaged(format!("segment {}: {what}", info.base_offset));
        let mut position = FIRST_POSITION;
        let mut crc = Crc32c::new();
        let mut header = None;
        while position < info.valid_end {
            let left = (info.valid_end - position) as usize;
            let data = file.read(position, left.min(MAX_READ).next_multiple_of(BLOCK)).await?;
            let bytes = &data[..data.len().min(left)];
            if bytes.is_empty() {
                return Err(damaged(format!("the file ends at {position}, its valid end is {}", info.valid_end)));
            }
            let from = if header.is_none() { batch::CRC_START.min(bytes.len()) } else { 0 };
            if header.is_none() {
                header = Some(BatchHeader::parse(bytes).map_err(|e| damaged(e.to_string()))?);
            }
            crc.update(&bytes[from..]);
            self.metrics.add(Counter::DiskReadBytes, data.len() as u64);
            position += bytes.len() as u64;
        }
        let header = header.ok_or_else(|| damaged("it is empty".into()))?;
        if header.base_offset != info.base_offset || header.total_len() as u64 != info.valid_end - FIRST_POSITION {
            return Err(damaged(format!("it holds a batch of {} bytes at offset {}", header.total_len(), header.base_offset)));
        }
        header.check_crc(crc.finish()).map_err(|e| damaged(e.to_string()))
    }

    /// Reads the runs after `run` in the background, as far as they are on disk and not there already.
    pub fn read_ahead(self: &Reader, store: &Rc<crate::shard::store::Store>, cell: &Rc<PartitionCell>, run: &Run) {
        if run.after.read <= MIN_READ || self.is_pressed() || run.cuts != cell.cuts.get() {
            return;
        }
        let on_disk = cell.tail.borrow().first_offset().unwrap_or(Offset::MAX).min(cell.machine.borrow().ladder().committed());
        let (mut next, mut after) = (run.end_offset, Some(run.after));
        for _ in 0..AHEAD {
            if next >= on_disk || self.ahead.get() > self.capacity / 4 {
                return;
            }
            // An adopted batch is too large for memory: it is sent from its file.
            if cell.machine.borrow().segment_of(next).is_none_or(|segment| segment.adopted) {
                return;
            }
            let stretch = match self.cached(cell.id, next) {
                Some(Slot::Loaded(known)) => {
                    (next, after) = (known.end_offset, Some(known.after));
                    continue;
                }
                Some(Slot::Loading(_, Some(end))) => {
                    (next, after) = (end, None);
                    continue;
                }
                Some(Slot::Loading(_, None)) => return,
                None => self.stretch_now(cell, next, after, run.after.read),
            };
            let (store, cell, offset) = (store.clone(), cell.clone(), next);
            let bytes = stretch.map_or(MAX_READ, |s| s.end.map_or(s.place.read, |e| (e.position - s.place.position) as usize));
            self.ahead.set(self.ahead.get() + bytes);
            glommio::spawn_local(async move {
                // A failure shows when the consumer asks.
                let _ = match store.reader.cached(cell.id, offset) {
                    None => store.reader.load(&cell, offset, stretch).await.map(drop),
                    Some(_) => Ok(()),
                };
                store.reader.ahead.set(store.reader.ahead.get() - bytes);
            })
            .detach();
            match stretch.and_then(|s| s.end_offset()) {
                Some(end) => (next, after) = (end, None),
                None => return,
            }
        }
    }

    /// What is to be read from `offset` on, by what is in memory: the place where a run ended, and the segment's index.
    fn stretch_now(&self, cell: &PartitionCell, offset: Offset, after: Option<Place>, read: usize) -> Option<Stretch> {
        let info = cell.machine.borrow().segment_of(offset).copied()?;
        let known = after.filter(|p| p.is_in(&info));
        self.with_index(cell, &info, |index| {
            let at_entry = || index.lookup(offset).filter(|e| e.offset == offset).map(|e| Place::at(&info, &e, read));
            let place = known.or_else(at_entry)?;
            Some(Stretch::new(info, place, self.limit(cell, &info), index, cell.cuts.get()))
        })?
    }

    /// As [`Reader::stretch_now`], reading the index if need be; where no run ended at `offset` from the nearest entry before it, or from the segment's start
    /// where the index does not have one (any more).
    async fn stretch(&self, cell: &Rc<PartitionCell>, offset: Offset, after: Option<Place>) -> Result<Stretch, Fault> {
        let segment = cell.machine.borrow().segment_of(offset).copied();
        let Some(info) = segment else {
            return Err(Fault::Damaged(format!("no segment holds offset {offset}")));
        };
        self.stretch_in(cell, &info, offset, after).await
    }

    async fn stretch_in(
        &self,
        cell: &Rc<PartitionCell>,
        info: &SegmentInfo,
        offset: Offset,
        after: Option<Place>,
    ) -> Result<Stretch, Fault> {
        let known = after.filter(|p| p.is_in(info));
        let (limit, cuts) = (self.limit(cell, info), cell.cuts.get());
        let start = |index: &Index| {
            let hash = match info.is_rewritten() {
                // It has a chain of its own, which begins with its first batch's entry; offsets before that one are gone.
                true => index.entries().first().filter(|e| e.position == FIRST_POSITION).map(|e| e.running_hash),
                false => {
                    let machine = cell.machine.borrow();
                    let previous = machine.segments().iter().rev().find(|other| other.base_offset < info.base_offset);
                    previous.map(|previous| previous.running_hash).or((info.base_offset == 0).then_some(0))
                }
            };
            let (segment, generation) = (info.base_offset, info.rewrite_generation);
            Place { segment, generation, offset: info.base_offset, position: FIRST_POSITION, hash, read: MIN_READ }
        };
        self.ask_index(cell, info, |index| {
            let place = known.or_else(|| index.lookup(offset).map(|e| Place::at(info, &e, MIN_READ))).unwrap_or_else(|| start(index));
            Stretch::new(*info, place, limit, index, cuts)
        })
        .await
    }

    /// Bytes of the segment before this position are on disk.
    fn limit(&self, cell: &PartitionCell, info: &SegmentInfo) -> u64 {
        let (flushed_segment, flushed) = cell.machine.borrow().flushed();
        if flushed_segment == info.base_offset { flushed.min(info.valid_end) } else { info.valid_end }
    }

    fn run_before(&self, partition: TopicPartition, offset: Offset) -> Option<Place> {
        let runs = self.runs.borrow();
        let (_, slot) = runs.range(..(partition, offset)).next_back().filter(|((p, _), _)| *p == partition)?;
        match slot {
            Slot::Loaded(run) if run.end_offset == offset => match self.is_pressed() {
                true => Some(Place { read: MIN_READ, ..run.after }),
                false => Some(run.after),
            },
            _ => None,
        }
    }

    fn keep(&self, partition: TopicPartition, run: Rc<Run>) {
        let key = (partition, run.base_offset);
        self.used.set(self.used.get() + run.data.len());
        if let Some(Slot::Loaded(before)) = self.runs.borrow_mut().insert(key, Slot::Loaded(run)) {
            self.used.set(self.used.get() - before.data.len());
        } else {
            self.order.borrow_mut().push_back(key);
        }
        while self.used.get() > self.capacity {
            let Some(oldest) = self.order.borrow_mut().pop_front() else { break };
            self.drop_run(&oldest);
        }
        self.metrics.set(Gauge::MemoryCache, self.used.get() as u64);
    }

    fn drop_run(&self, key: &(TopicPartition, Offset)) {
        let mut runs = self.runs.borrow_mut();
        if let Some(Slot::Loaded(run)) = runs.get(key) {
            self.used.set(self.used.get() - run.data.len());
            runs.remove(key);
        }
    }

    /// Forgets everything of a partition below `offset` (or all of it with `i64::MAX`): it was deleted.
    pub fn forget_below(&self, partition: TopicPartition, offset: Offset) {
        let keys: Vec<_> = self.runs.borrow().range((partition, Offset::MIN)..(partition, offset)).map(|(key, _)| *key).collect();
        for key in keys {
            self.drop_run(&key);
        }
        self.order.borrow_mut().retain(|(p, o)| *p != partition || *o >= offset);
        self.files.borrow_mut().forget(|(p, segment, _)| *p == partition && *segment < offset);
        self.verified.borrow_mut().retain(|(p, segment)| *p != partition || *segment >= offset);
        self.indexes.borrow_mut().forget(|(p, segment, _)| *p == partition && *segment < offset);
    }

    /// Forgets what it has of offsets from `offset` on, where the log was cut, and of the segment that it ends in now and those behind it.
    pub fn forget_cut(&self, partition: TopicPartition, segment: Offset, offset: Offset) {
        let is_cut = |slot: &Slot| matches!(slot, Slot::Loaded(run) if run.end_offset > offset);
        let of_partition = (partition, Offset::MIN)..=(partition, Offset::MAX);
        let keys: Vec<_> = self.runs.borrow().range(of_partition).filter(|(_, slot)| is_cut(slot)).map(|(key, _)| *key).collect();
        keys.iter().for_each(|key| self.drop_run(key));
        self.order.borrow_mut().retain(|key| !keys.contains(key));
        self.files.borrow_mut().forget(|(p, base, _)| *p == partition && *base >= segment);
        self.indexes.borrow_mut().forget(|(p, base, _)| *p == partition && *base >= segment);
        self.verified.borrow_mut().retain(|(p, base)| *p != partition || *base < segment);
    }

    /// Forgets what it has of segments that a cleaning replaced.
    pub fn forget_replaced(&self, cell: &PartitionCell, replaced: &[SegmentInfo]) {
        let (Some(first), Some(last)) = (replaced.first(), replaced.last()) else { return };
        let range = (cell.id, first.base_offset)..(cell.id, last.end_offset);
        let keys: Vec<_> = self.runs.borrow().range(range.clone()).map(|(key, _)| *key).collect();
        for key in keys {
            self.drop_run(&key);
        }
        self.order.borrow_mut().retain(|key| !range.contains(key));
        let gone: Vec<_> = replaced.iter().map(|info| file_key(cell, info)).collect();
        self.files.borrow_mut().forget(|key| gone.contains(key));
        self.indexes.borrow_mut().forget(|key| gone.contains(key));
    }

    async fn read_checked(&self, cell: &Rc<PartitionCell>, offset: Offset, stretch: &Stretch) -> Result<Run, Fault> {
        let Stretch { info, place, end: planned, .. } = stretch;
        let limit = planned.map_or_else(|| self.limit(cell, info), |e| e.position);
        let file = self.file(cell, info).await?;
        let mut read = if planned.is_some() { (limit - place.position / BLOCK as u64 * BLOCK as u64) as usize } else { place.read };
        loop {
            if limit <= place.position {
                let what = format!("segment {} ends at {limit}, wanted from {}", info.base_offset, place.position);
                return Err(Fault::Io(io::Error::new(io::ErrorKind::UnexpectedEof, what)));
            }
            let start = place.position / BLOCK as u64 * BLOCK as u64;
            let len = (read as u64).min(limit.next_multiple_of(BLOCK as u64).saturating_sub(start)) as usize;
            let data = file.read(start, len.next_multiple_of(BLOCK)).await?;
            self.metrics.add(Counter::DiskReadBytes, data.len() as u64);
            let from = (place.position - start) as usize;
            let to = data.len().min((limit - start) as usize);
            match self.check(cell, stretch, &data, from, to, offset)? {
                Checked::Run { end_offset, end, mut hash, base_offset } => {
                    if let Some(entry) = planned.filter(|e| e.position == start + end as u64) {
                        if entry.offset != end_offset || hash.is_some_and(|hash| hash != entry.running_hash) {
                            return Err(Fault::Damaged(format!(
                                "segment {} at {}: offset {end_offset} and running hash {hash:016x?}, the index has {} and {:016x}",
                                info.base_offset, entry.position, entry.offset, entry.running_hash
                            )));
                        }
                        hash = Some(entry.running_hash);
                    }
                    let grown = (place.read * 2).min(MAX_READ);
                    let after = Place { offset: end_offset, position: start + end as u64, hash, read: grown, ..*place };
                    self.alive.set(self.alive.get() + data.len());
                    let (has_gaps, alive, cuts) = (info.is_rewritten(), self.alive.clone(), stretch.cuts);
                    return Ok(Run { base_offset, end_offset, has_gaps, cuts, data, range: from..end, after, alive });
                }
                Checked::TooShort(needed) if needed > len && start + needed as u64 <= limit.next_multiple_of(BLOCK as u64) => {
                    if needed > ADOPT_APPEND + 2 * BLOCK + MAX_READ {
                        return Err(Fault::TooLarge(needed));
                    }
                    read = needed.max(2 * read).next_multiple_of(BLOCK);
                }
                Checked::TooShort(needed) => {
                    return Err(Fault::Damaged(format!(
                        "segment {} ends inside a batch: {needed} bytes wanted from {start}, valid end {limit}",
                        info.base_offset
                    )));
                }
            }
        }
    }

    fn check(
        &self,
        cell: &PartitionCell,
        stretch: &Stretch,
        data: &[u8],
        from: usize,
        to: usize,
        wanted: Offset,
    ) -> Result<Checked, Fault> {
        let Stretch { info, place, end: planned, .. } = stretch;
        let start = place.position - from as u64;
        let machine = cell.machine.borrow();
        let known = machine.index();
        let entries = if known.segment() == info.base_offset { known.entries() } else { &[] };
        let mut at = from;
        let mut offset = place.offset;
        let mut hash = place.hash;
        let mut entry_at = entries.partition_point(|e| e.position < place.position);
        while at < to {
            let damaged = |what: String| Fault::Damaged(format!("segment {} at {}: {what}", info.base_offset, start + at as u64));
            if to - at < HEADER_LEN {
                break;
            }
            if let Some(entry) = entries.get(entry_at).filter(|e| e.position == start + at as u64) {
                if let Some(hash) = hash.filter(|hash| *hash != entry.running_hash) {
                    return Err(damaged(format!("running hash {hash:016x}, the index has {:016x}", entry.running_hash)));
                }
                hash = Some(entry.running_hash);
                entry_at += 1;
            }
            let header = BatchHeader::parse(&data[at..to]).map_err(|e| damaged(e.to_string()))?;
            if header.base_offset != offset && !(info.is_rewritten() && header.base_offset > offset) {
                return Err(damaged(format!("base offset {}, expected {offset}", header.base_offset)));
            }
            let len = header.total_len();
            if len > to - at {
                break;
            }
            batch::check_stored(&data[at..at + len]).map_err(|e| damaged(e.to_string()))?;
            let mut head = [0; HEADER_LEN];
            head.copy_from_slice(&data[at..at + HEADER_LEN]);
            hash = hash.map(|before| running_hash(before, &head));
            offset = header.next_offset();
            at += len;
        }
        if let Some(hash) = hash.filter(|hash| start + at as u64 == info.valid_end && *hash != info.running_hash) {
            return Err(Fault::Damaged(format!(
                "segment {}: running hash {hash:016x} at its end, expected {:016x}",
                info.base_offset, info.running_hash
            )));
        }
        if let Some(entry) = planned.filter(|e| info.is_rewritten() && e.position == start + at as u64 && e.offset > offset) {
            // The offsets up to the next batch are gone.
            offset = entry.offset;
        }
        if offset > wanted {
            return Ok(Checked::Run { base_offset: place.offset, end_offset: offset, end: at, hash });
        }
        // The wanted batch is not wholly in this read.
        let needed = match BatchHeader::parse(&data[at..to]) {
            Ok(header) => at + header.total_len(),
            Err(_) => at + MIN_READ,
        };
        Ok(Checked::TooShort(needed.max(to + BLOCK)))
    }

    /// Asks the index of a segment, reading it if it is not in memory.
    async fn ask_index<T>(&self, cell: &Rc<PartitionCell>, info: &SegmentInfo, ask: impl Fn(&Index) -> T) -> Result<T, Fault> {
        if let Some(answer) = self.with_index(cell, info, &ask) {
            return Ok(answer);
        }
        let file = self.disk.open(&info.index_path(cell.id)).await?;
        let index = Rc::new(read_index(&file, info).await?);
        file.close().await?;
        if info.sealed {
            // That of an open segment grows; as it is now it would be short for ever.
            self.indexes.borrow_mut().insert(file_key(cell, info), index.clone());
        }
        Ok(ask(&index))
    }

    /// Asks the index of a segment if it is in memory.
    fn with_index<T>(&self, cell: &PartitionCell, info: &SegmentInfo, ask: impl Fn(&Index) -> T) -> Option<T> {
        let machine = cell.machine.borrow();
        if machine.index().segment() == info.base_offset && !machine.index().is_empty() {
            return Some(ask(machine.index()));
        }
        if let Some(index) = cell.sealed_index(info.base_offset) {
            return Some(ask(&index));
        }
        let index = self.indexes.borrow().get(&file_key(cell, info)).cloned();
        index.map(|index| ask(&index))
    }

    /// Where a search for the first batch with a timestamp of at least `timestamp` starts in this segment.
    ///
    /// # Errors
    /// When the index can't be read.
    pub async fn offset_before_time(&self, cell: &Rc<PartitionCell>, info: &SegmentInfo, timestamp: i64) -> Result<Offset, Refusal> {
        let entry = self
            .ask_index(cell, info, |index| index.lookup_time(timestamp))
            .await
            .map_err(|fault| self.refusal(cell, info.base_offset, fault))?;
        Ok(entry.map_or(info.base_offset, |e| e.offset))
    }

    /// The last index entry of this segment at or before `offset`.
    ///
    /// # Errors
    /// When the index can't be read.
    pub async fn entry_before(&self, cell: &Rc<PartitionCell>, info: &SegmentInfo, offset: Offset) -> Result<Option<IndexEntry>, Refusal> {
        let found = self.ask_index(cell, info, |index| index.lookup(offset)).await;
        found.map_err(|fault| self.refusal(cell, info.base_offset, fault))
    }

    async fn file(&self, cell: &PartitionCell, info: &SegmentInfo) -> io::Result<Rc<DataFile>> {
        let key = file_key(cell, info);
        if let Some(file) = self.files.borrow().get(&key) {
            return Ok(file.clone());
        }
        let file = Rc::new(self.disk.open(&info.path(cell.id)).await?);
        self.files.borrow_mut().insert(key, file.clone());
        Ok(file)
    }

    /// What a reader at `offset` is told. What was deleted while it was read is no damage.
    fn refusal(&self, cell: &PartitionCell, offset: Offset, fault: Fault) -> Refusal {
        if let Some(refusal) = cell.gone() {
            return refusal;
        }
        let log_start = cell.machine.borrow().log_start();
        if offset < log_start {
            return cell.refusal(Code::OffsetOutOfRange, format!("it begins at offset {log_start} now, {offset} was deleted"));
        }
        if let Some(refusal) = suspected(cell, offset, &fault) {
            return refusal;
        }
        match fault {
            Fault::Io(error) => {
                tracing::error!(partition = %cell.id, %error, "read failed");
                cell.refusal(Code::Storage, error)
            }
            Fault::TooLarge(bytes) => cell.refusal(Code::LimitReached, format!("a batch of {bytes} bytes does not fit a response")),
            Fault::Damaged(what) => {
                tracing::error!(partition = %cell.id, what, "corruption: the partition is quarantined");
                self.metrics.raise(Gauge::PartitionsQuarantined, 1);
                let refusal = cell.refusal(Code::Quarantined, what);
                cell.close(refusal.clone());
                refusal
            }
        }
    }
}

/// A slot that others wait at; it goes when the load ends or is given up.
struct LoadingPlace<'a> {
    reader: &'a Reader,
    key: (TopicPartition, Offset),
    event: Rc<Event>,
}

impl Drop for LoadingPlace<'_> {
    fn drop(&mut self) {
        let mut runs = self.reader.runs.borrow_mut();
        // A run that another load has put there meanwhile stays.
        if matches!(runs.get(&self.key), Some(Slot::Loading(event, _)) if Rc::ptr_eq(event, &self.event)) {
            runs.remove(&self.key);
        }
        drop(runs);
        self.event.notify();
    }
}

enum Checked {
    Run { base_offset: Offset, end_offset: Offset, end: usize, hash: Option<u64> },
    TooShort(usize),
}
