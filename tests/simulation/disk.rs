//! A node's disk: what is on it for certain, and the journal whose groups get there one after the other.
//!
//! A crash loses all that is not synced; of the group that is being written either all is there afterwards or nothing (a torn group does not check). A truncation
//! is an entry of the journal like any other, so it takes effect in its place.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use corelane::replication::{EpochTable, LogState};
use corelane::types::{LeaderEpoch, Offset};

use crate::random::mix;

/// Partitions are numbered.
pub type PartitionId = u32;

/// What a producer sent at once: one offset for each value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    pub base: Offset,
    pub epoch: LeaderEpoch,
    pub producer: i64,
    pub sequence: u32,
    pub values: Vec<u64>,
    /// Running hash before and after it.
    pub hash_before: u64,
    pub hash_after: u64,
    /// The first one of a segment.
    pub opens_segment: bool,
}

impl Batch {
    pub fn end(&self) -> Offset {
        self.base + self.values.len() as Offset
    }

    pub fn hash_from(&self, before: u64) -> u64 {
        let seed = mix(before ^ self.base as u64) ^ mix(u64::from(self.epoch as u32) << 1 | u64::from(self.opens_segment));
        self.values.iter().fold(seed, |hash, value| mix(hash ^ *value))
    }
}

/// Batches in order of offset, without gaps.
#[derive(Clone, Default, Debug)]
pub struct Log {
    pub start: Offset,
    /// End of a log without batches.
    floor: Offset,
    /// Running hash at the floor, where it is known.
    floor_hash: Option<u64>,
    pub batches: VecDeque<Rc<Batch>>,
}

impl Log {
    pub fn new() -> Log {
        Log { floor_hash: Some(0), ..Log::default() }
    }

    pub fn end(&self) -> Offset {
        self.batches.back().map_or(self.floor, |batch| batch.end())
    }

    pub fn hash(&self) -> Option<u64> {
        self.batches.back().map_or(self.floor_hash, |batch| Some(batch.hash_after))
    }

    pub fn append(&mut self, batch: Rc<Batch>) {
        assert_eq!(batch.base, self.end(), "batches follow each other");
        self.batches.push_back(batch);
    }

    /// False if `to` is inside of a batch.
    pub fn truncate(&mut self, to: Offset) -> bool {
        while self.batches.back().is_some_and(|batch| batch.base >= to) {
            let last = self.batches.pop_back();
            if self.batches.is_empty() {
                self.floor = last.as_ref().map_or(self.floor, |batch| batch.base);
                self.floor_hash = last.map(|batch| batch.hash_before);
            }
        }
        self.end() <= to
    }

    pub fn restart(&mut self, at: Offset) {
        *self = Log { start: at, floor: at, floor_hash: (at == 0).then_some(0), batches: VecDeque::new() };
    }

    /// Whole batches below `start` go, but for those of an open segment.
    pub fn raise_start(&mut self, start: Offset) {
        self.start = self.start.max(start);
        while self.batches.len() > 1 && self.batches[0].end() <= start {
            self.batches.pop_front();
        }
    }

    /// Place of the batch that holds `offset`.
    pub fn position(&self, offset: Offset) -> Option<usize> {
        let at = self.batches.partition_point(|batch| batch.end() <= offset);
        (at < self.batches.len() && self.batches[at].base <= offset).then_some(at)
    }

    pub fn record(&self, offset: Offset) -> Option<(LeaderEpoch, u64)> {
        let batch = &self.batches[self.position(offset)?];
        Some((batch.epoch, batch.values[(offset - batch.base) as usize]))
    }

    /// First offset that is there, be it readable or not.
    pub fn first(&self) -> Offset {
        self.batches.front().map_or(self.floor, |batch| batch.base)
    }

    pub fn epochs(&self) -> EpochTable {
        let mut table = EpochTable::default();
        for batch in &self.batches {
            table.begin(batch.epoch, batch.base);
        }
        table
    }

    pub fn last_of(&self, producer: i64) -> Option<&Rc<Batch>> {
        self.batches.iter().rev().find(|batch| batch.producer == producer)
    }
}

/// A partition on disk.
#[derive(Clone, Debug)]
pub struct DiskLog {
    pub log: Log,
    pub promised: LeaderEpoch,
    pub watermark: Offset,
    /// Base offsets of batches whose bits have changed.
    pub rotten: BTreeSet<Offset>,
    /// It was found damaged in this incarnation: set aside until the metadata has given it another one.
    pub lost_in: Option<u32>,
}

/// A replica that was just made: it has promised nothing.
impl Default for DiskLog {
    fn default() -> DiskLog {
        DiskLog { log: Log::new(), promised: -1, watermark: 0, rotten: BTreeSet::new(), lost_in: None }
    }
}

impl DiskLog {
    /// The log as a machine begins with it after a start.
    pub fn state(&self) -> LogState {
        let end = self.log.end();
        LogState {
            log_start: self.log.start,
            log_end: end,
            durable_end: end,
            watermark: self.watermark.clamp(self.log.start, end),
            epochs: self.log.epochs(),
            promised: self.promised,
            running_hash: self.log.hash(),
        }
    }
}

/// What a journal entry does.
#[derive(Clone, Debug)]
pub enum Entry {
    Append(Rc<Batch>),
    Epoch(LeaderEpoch),
    Truncate(Offset),
    Restart(Offset),
    LogStart(Offset),
}

/// One entry, with the watermark as it was.
#[derive(Clone, Debug)]
pub struct Op {
    pub partition: PartitionId,
    pub entry: Entry,
    pub watermark: Offset,
}

/// The disk.
#[derive(Default)]
pub struct Disk {
    /// Another one after everything on it was lost.
    pub incarnation: u64,
    pub logs: BTreeMap<PartitionId, DiskLog>,
    /// Entries that wait for their group.
    open: Vec<Op>,
    /// The group that is being written.
    in_flight: Option<Vec<Op>>,
    pub fails: bool,
    pub full: bool,
}

impl Disk {
    pub fn new(incarnation: u64) -> Disk {
        Disk { incarnation, ..Disk::default() }
    }

    pub fn log(&mut self, partition: PartitionId) -> &mut DiskLog {
        self.logs.entry(partition).or_default()
    }

    pub fn write(&mut self, op: Op) {
        self.open.push(op);
    }

    /// Starts the next group if there is something to write and nothing is being written.
    pub fn start_group(&mut self) -> bool {
        let starts = self.in_flight.is_none() && !self.open.is_empty();
        if starts {
            self.in_flight = Some(std::mem::take(&mut self.open));
        }
        starts
    }

    /// The group is on disk: its entries, in order.
    pub fn finish_group(&mut self) -> Vec<Op> {
        let group = self.in_flight.take().unwrap_or_default();
        for op in &group {
            self.apply(op);
        }
        group
    }

    /// A replica ends: what is on its way to the disk is of no concern to the one that comes after it.
    pub fn forget(&mut self, partition: PartitionId) {
        self.open.retain(|op| op.partition != partition);
        self.in_flight.iter_mut().for_each(|group| group.retain(|op| op.partition != partition));
    }

    /// Power is gone. `survives` says whether the group that was being written is whole.
    pub fn crash(&mut self, survives: bool) {
        self.open.clear();
        match survives {
            true => drop(self.finish_group()),
            false => self.in_flight = None,
        }
    }

    fn apply(&mut self, op: &Op) {
        let disk = self.log(op.partition);
        match &op.entry {
            // Of a partition that was set aside or moved away meanwhile.
            Entry::Append(batch) if batch.base != disk.log.end() => return,
            Entry::Append(batch) => disk.log.append(batch.clone()),
            Entry::Epoch(epoch) => disk.promised = disk.promised.max(*epoch),
            Entry::Truncate(to) => {
                disk.log.truncate(*to);
                disk.watermark = disk.watermark.min(*to);
                disk.rotten.retain(|base| base < to);
            }
            Entry::Restart(at) => {
                disk.log.restart(*at);
                disk.rotten.clear();
                disk.watermark = *at;
            }
            Entry::LogStart(start) => disk.log.raise_start(*start),
        }
        disk.watermark = disk.watermark.max(op.watermark.min(disk.log.end()));
    }
}
