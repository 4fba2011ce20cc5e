//! The shard's journal: group commit into a ring of recycled files.
//!
//! Appends add entries to the open group. The commit task takes every group that has come together, writes them at
//! once and syncs once; while that is in flight the next group fills. Nobody waits for a linger: a lone record is a
//! group of its own at once. Only entries that nobody waits for ([`Urgency::Lazy`]) may lie for a few milliseconds.
//!
//! The buffer of a group is also the tail memory of its records, so a small append is copied once, from the socket's
//! buffer to here.
//!
//! Crash story: a group counts whole or not at all (checksum), follows its predecessor (sequence, checksum), and says
//! up to which sequence groups were known durable when it was built, so recovery can tell a torn end from damage. After
//! an idle moment a durable mark is written, so that only the very last group is ever in doubt. A failed write or sync
//! ends the commit task with an error and nothing of the doubtful groups is answered: the process goes down into recovery.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use crate::limits::{BLOCK, DURABLE_MARK_MS, LAZY_GROUP_MS, MAX_GROUP, UNSYNCED_MS};
use crate::log::journal::{ENTRY_HEADER_LEN, EntryHeader, GROUP_HEADER_LEN, GroupHeader, entry_space, group_front};
use crate::metrics::{Counter, ShardMetrics, Stage};
use crate::shard::buffer::{AppendBuffer, Piece};
use crate::shard::event::Event;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::ring::Ring;
use crate::shard::sync_choice::{SyncChoice, SyncWay};
use crate::types::Durability;

/// Smallest buffer of a group, bytes.
const MIN_BUFFER: usize = BLOCK;
/// Buffer of a group under load, bytes: small enough that a partition that lags pins little.
const MAX_BUFFER: usize = 256 * 1024;

/// What an entry's author waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Urgency {
    /// Nothing: it is written with the next group that somebody waits for, or after [`LAZY_GROUP_MS`].
    Lazy,
    /// The device write. It is synced with the next group that somebody waits for, or after [`UNSYNCED_MS`].
    Write,
    /// The sync.
    Sync,
}

impl Urgency {
    /// What an append of a topic of that level waits for.
    pub fn of(level: Durability) -> Urgency {
        match level {
            Durability::Memory => Urgency::Lazy,
            Durability::Written => Urgency::Write,
            Durability::Durable => Urgency::Sync,
        }
    }
}

/// Identity of the groups that a journal writes.
#[derive(Clone, Copy, Debug)]
pub struct JournalIdentity {
    /// This run of the store.
    pub generation: u64,
    /// Random, per generation.
    pub salt: u64,
    /// Which shard.
    pub shard: u16,
}

/// The journal of a shard.
pub struct Journal {
    identity: JournalIdentity,
    ring: Rc<Ring>,
    state: RefCell<State>,
    written: Cell<u64>,
    durable: Cell<u64>,
    work: Event,
    progress: Event,
    /// Partitions whose groups are written and wait for a later sync.
    unsynced: RefCell<Vec<Rc<PartitionCell>>>,
    /// Since when groups are written and not synced.
    unsynced_since: Cell<Option<Instant>>,
    /// Groups that point to bytes outside of the journal which are not synced yet, with how often.
    outside: RefCell<BTreeMap<u64, usize>>,
    /// How a lone group is made durable.
    choice: RefCell<SyncChoice>,
    /// Somebody waits for a sync of what is written already.
    sync_wanted: Cell<bool>,
    stopping: Cell<bool>,
    /// Bytes of groups that have no place in the ring yet.
    unplaced: Cell<u64>,
    /// Capacity of all group buffers alive, bytes.
    accounted: Rc<Cell<usize>>,
    metrics: Arc<ShardMetrics>,
}

struct State {
    open: Option<Group>,
    closed: VecDeque<Group>,
    next_sequence: u64,
    /// The newest group with entries; marks, which nobody syncs, come after it.
    newest: u64,
    previous_checksum: u32,
    buffer_size: usize,
    /// Sequence that the last written header claimed durable.
    claimed: u64,
}

struct Group {
    buffer: Rc<AppendBuffer>,
    sequence: u64,
    entries: u16,
    touched: Vec<Rc<PartitionCell>>,
    urgency: Urgency,
    opened: Instant,
}

impl Group {
    /// When it is written at the latest.
    fn due(&self) -> Instant {
        self.opened + Duration::from_millis(LAZY_GROUP_MS)
    }
}

/// Where an entry went.
pub struct Placed {
    /// Its group.
    pub sequence: u64,
    /// Its payload.
    pub payload: Piece,
}

impl Journal {
    /// A journal that starts its generation with sequence 1.
    pub fn new(identity: JournalIdentity, ring: Rc<Ring>, accounted: Rc<Cell<usize>>, metrics: Arc<ShardMetrics>) -> Rc<Journal> {
        let state = State {
            open: None,
            closed: VecDeque::new(),
            next_sequence: 1,
            newest: 0,
            previous_checksum: 0,
            buffer_size: MIN_BUFFER,
            claimed: 0,
        };
        Rc::new(Journal {
            identity,
            ring,
            state: RefCell::new(state),
            written: Cell::new(0),
            durable: Cell::new(0),
            work: Event::default(),
            progress: Event::default(),
            unsynced: RefCell::default(),
            unsynced_since: Cell::new(None),
            outside: RefCell::default(),
            choice: RefCell::default(),
            sync_wanted: Cell::new(false),
            stopping: Cell::new(false),
            unplaced: Cell::new(0),
            accounted,
            metrics,
        })
    }

    /// This run of the store.
    pub fn generation(&self) -> u64 {
        self.identity.generation
    }

    /// Highest sequence whose device write is done.
    pub fn written(&self) -> u64 {
        self.written.get()
    }

    /// Whether the ring has room for appends, with the groups that are on their way.
    pub fn has_room(&self) -> bool {
        self.ring.has_room(self.unplaced.get())
    }

    /// Whether the ring has room for copies of unfinished blocks, with the groups that are on their way.
    pub fn has_carry_room(&self) -> bool {
        self.ring.has_carry_room(self.unplaced.get())
    }

    /// Highest sequence that is synced.
    pub fn durable(&self) -> u64 {
        self.durable.get()
    }

    /// The group `sequence` points to bytes that are being written elsewhere: until [`Journal::end_outside`] no header claims it durable.
    pub fn begin_outside(&self, sequence: u64) {
        *self.outside.borrow_mut().entry(sequence).or_default() += 1;
    }

    /// Those bytes are synced.
    pub fn end_outside(&self, sequence: u64) {
        let mut outside = self.outside.borrow_mut();
        if let Some(count) = outside.get_mut(&sequence) {
            *count -= 1;
            if *count == 0 {
                outside.remove(&sequence);
            }
        }
        drop(outside);
        self.work.notify();
    }

    /// The highest sequence that a header may claim durable.
    fn claimable(&self) -> u64 {
        let outside = self.outside.borrow().first_key_value().map_or(u64::MAX, |(sequence, _)| sequence - 1);
        self.durable.get().min(outside)
    }

    /// Closes the open group, so that whatever is added from now on is in a later one; returns the sequence of the newest group with
    /// entries. Not that of a mark behind it: a mark is never synced for its own sake, so who waits for its durability waits for ever.
    pub fn cut(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        if let Some(open) = state.open.take() {
            state.closed.push_back(open);
            self.work.notify();
        }
        state.newest
    }

    /// Notified when groups become durable.
    pub fn progress(&self) -> &Event {
        &self.progress
    }

    /// Adds an entry whose payload of `header.payload_len` bytes `fill` writes. `touched` hears when the group is written and durable, which is
    /// brought about as `urgency` asks.
    pub fn add(&self, header: &EntryHeader, urgency: Urgency, touched: Option<&Rc<PartitionCell>>, fill: impl FnOnce(&mut [u8])) -> Placed {
        let payload_len = header.payload_len as usize;
        let space = entry_space(payload_len);
        assert!(GROUP_HEADER_LEN + space <= MAX_GROUP, "an entry of {payload_len} bytes is no small append");
        let mut state = self.state.borrow_mut();
        if state.open.as_ref().is_some_and(|g| g.buffer.room() < space || g.entries == u16::MAX) {
            let full = state.open.take().expect("checked");
            state.closed.push_back(full);
            state.buffer_size = (state.buffer_size * 2).min(MAX_BUFFER);
        }
        if state.open.is_none() {
            let capacity = state.buffer_size.max(GROUP_HEADER_LEN + space);
            let buffer = Rc::new(AppendBuffer::new(capacity, GROUP_HEADER_LEN, &self.accounted));
            let sequence = state.next_sequence;
            state.next_sequence += 1;
            state.newest = sequence;
            self.unplaced.set(self.unplaced.get() + unplaced_bytes(GROUP_HEADER_LEN));
            state.open = Some(Group { buffer, sequence, entries: 0, touched: Vec::new(), urgency: Urgency::Lazy, opened: Instant::now() });
            self.work.notify();
        }
        let group = state.open.as_mut().expect("opened above");
        let head = group.buffer.push_with(ENTRY_HEADER_LEN, |space| header.write(space));
        let payload = group.buffer.push_with(payload_len, fill);
        group.buffer.push_zeros(space - ENTRY_HEADER_LEN - payload_len);
        debug_assert_eq!(head.end, payload.start);
        self.unplaced.set(self.unplaced.get() + space as u64);
        group.entries += 1;
        group.urgency = group.urgency.max(urgency);
        if let Some(cell) = touched
            && cell.touched_in.replace(group.sequence) != group.sequence
        {
            group.touched.push(cell.clone());
        }
        let placed = Placed { sequence: group.sequence, payload: Piece::new(group.buffer.clone(), payload) };
        drop(state);
        if urgency > Urgency::Lazy {
            self.work.notify();
        }
        placed
    }

    /// Waits until everything up to `sequence` is durable, asking for a sync if nobody has.
    pub async fn wait_durable(&self, sequence: u64) {
        loop {
            let ticket = self.progress.ticket();
            if self.durable.get() >= sequence {
                return;
            }
            {
                let mut state = self.state.borrow_mut();
                let State { open, closed, .. } = &mut *state;
                if let Some(newest) = open.as_mut().or(closed.back_mut()) {
                    newest.urgency = Urgency::Sync;
                }
            }
            self.sync_wanted.set(true);
            self.work.notify();
            self.progress.wait(ticket).await;
        }
    }

    /// Ends the commit task once everything is durable.
    pub fn stop(&self) {
        self.stopping.set(true);
        self.work.notify();
    }

    /// The commit task. Returns when stopped; an error means that groups are in doubt and the process must go down.
    pub async fn run(self: Rc<Journal>) -> io::Result<()> {
        loop {
            let ticket = self.work.ticket();
            let groups = self.take_groups();
            if !groups.is_empty() {
                self.commit(groups).await?;
                continue;
            }
            let lying = self.state.borrow().open.as_ref().map(Group::due);
            if let Some(due) = lying {
                // Its entries are in nobody's way until then.
                self.work.wait_until(ticket, due).await;
                continue;
            }
            let unsynced = self.written.get() > self.durable.get();
            if unsynced && self.sync_wanted.replace(false) {
                self.sync_written().await?;
                continue;
            }
            let unmarked = self.state.borrow().claimed < self.claimable();
            if self.stopping.get() && !unsynced {
                return Ok(());
            }
            if !unsynced && !unmarked {
                self.work.wait(ticket).await;
                continue;
            }
            let deadline = Instant::now() + Duration::from_millis(DURABLE_MARK_MS);
            if self.stopping.get() || !self.work.wait_until(ticket, deadline).await {
                match unsynced {
                    true => self.sync_written().await?,
                    false => self.write_mark().await?,
                }
            }
        }
    }

    fn take_groups(&self) -> Vec<Group> {
        let mut state = self.state.borrow_mut();
        let mut groups: Vec<Group> = state.closed.drain(..).collect();
        let is_wanted = |open: &Group| open.urgency > Urgency::Lazy || self.stopping.get() || open.due() <= Instant::now();
        if let Some(open) = state.open.take_if(|open| !groups.is_empty() || is_wanted(open)) {
            if groups.is_empty() && open.buffer.filled() * 4 < open.buffer.capacity() {
                state.buffer_size = (open.buffer.filled() * 2).next_power_of_two().clamp(MIN_BUFFER, MAX_BUFFER);
            }
            groups.push(open);
        }
        groups
    }

    async fn commit(&self, mut groups: Vec<Group>) -> io::Result<()> {
        let started = Instant::now();
        self.metrics.record(Stage::Queue, started.duration_since(groups[0].opened).as_nanos() as u64);
        let since = self.unsynced_since.get().unwrap_or(started);
        let is_overdue = started.duration_since(since) >= Duration::from_millis(UNSYNCED_MS);
        let must_sync = is_overdue || groups.iter().any(|g| g.urgency == Urgency::Sync);
        let mut writes = Vec::with_capacity(groups.len());
        let mut way = None;
        for group in &groups {
            let len = group.buffer.filled().next_multiple_of(BLOCK) as u64;
            let place = match self.ring.try_place(len, group.sequence) {
                Some(place) => place,
                // Who makes room waits for what is before this group to be durable: that comes first.
                None if !writes.is_empty() => break,
                None => {
                    if self.written.get() > self.durable.get() {
                        self.sync_written().await?;
                    }
                    self.ring.place(len, group.sequence).await
                }
            };
            self.unplaced.set(self.unplaced.get() - unplaced_bytes(group.buffer.filled()));
            let memory = group.buffer.seal(|entries| self.front(group.sequence, group.entries, place.file_id, place.position, entries));
            self.metrics.add(Counter::JournalBytes, memory.len() as u64);
            if must_sync && groups.len() == 1 && place.is_alone && place.file.can_write_through() {
                way = Some(self.choice.borrow_mut().choose());
            }
            let through = way == Some(SyncWay::Through);
            writes.push(async move {
                match through {
                    true => place.file.write_through(memory, place.position).await,
                    false => place.file.write(memory, place.position).await,
                }
            });
        }
        let placed = writes.len();
        try_join_all(writes).await?;
        for unplaced in groups.drain(placed..).rev() {
            self.state.borrow_mut().closed.push_front(unplaced);
        }
        let last = groups.last().expect("commit is called with groups").sequence;
        self.written.set(last);
        self.metrics.record(Stage::JournalWrite, started.elapsed().as_nanos() as u64);
        self.metrics.add(Counter::JournalGroups, groups.len() as u64);
        self.metrics.add(Counter::JournalEntries, groups.iter().map(|g| u64::from(g.entries)).sum());
        if !must_sync {
            groups.iter().flat_map(|g| &g.touched).for_each(|cell| cell.advance(last, self.durable.get()));
            self.unsynced_since.set(Some(since));
            self.unsynced.borrow_mut().extend(groups.into_iter().flat_map(|g| g.touched));
            return Ok(());
        }
        if way == Some(SyncWay::Through) {
            self.ring.written_through();
        } else {
            // Who waits for the device write only hears of it now.
            groups.iter().flat_map(|g| &g.touched).for_each(|cell| cell.advance(last, self.durable.get()));
            let sync_started = Instant::now();
            self.ring.sync().await?;
            self.metrics.record(Stage::Sync, sync_started.elapsed().as_nanos() as u64);
        }
        if let Some(way) = way {
            self.choice.borrow_mut().took(way, started.elapsed());
        }
        self.unsynced_since.set(None);
        self.durable.set(last);
        for cell in self.unsynced.take().iter().chain(groups.iter().flat_map(|g| &g.touched)) {
            cell.advance(last, last);
        }
        self.progress.notify();
        Ok(())
    }

    async fn sync_written(&self) -> io::Result<()> {
        let last = self.written.get();
        self.unsynced_since.set(None);
        self.ring.sync().await?;
        self.durable.set(last);
        for cell in self.unsynced.take() {
            cell.advance(last, last);
        }
        self.progress.notify();
        Ok(())
    }

    /// A group without entries that says what is durable; unsynced, it only narrows the doubt.
    async fn write_mark(&self) -> io::Result<()> {
        let buffer = AppendBuffer::new(BLOCK, GROUP_HEADER_LEN, &self.accounted);
        let sequence = {
            let mut state = self.state.borrow_mut();
            if state.open.is_some() || !state.closed.is_empty() {
                return Ok(());
            }
            state.next_sequence += 1;
            state.next_sequence - 1
        };
        let place = self.ring.place(BLOCK as u64, sequence).await;
        let memory = buffer.seal(|entries| self.front(sequence, 0, place.file_id, place.position, entries));
        // `written` stays: nobody waits for a mark, and it asks for no sync of its own.
        place.file.write(memory, place.position).await?;
        self.metrics.add(Counter::DurableMarks, 1);
        Ok(())
    }

    fn front(&self, sequence: u64, entries: u16, file: u64, position: u64, bytes: &[u8]) -> [u8; GROUP_HEADER_LEN] {
        let mut state = self.state.borrow_mut();
        let header = GroupHeader {
            generation: self.identity.generation,
            salt: self.identity.salt,
            file,
            position,
            sequence,
            durable_sequence: self.claimable(),
            length: (GROUP_HEADER_LEN + bytes.len()) as u32,
            shard: self.identity.shard,
            entries,
            previous_checksum: state.previous_checksum,
        };
        let (front, checksum) = group_front(&header, bytes);
        state.previous_checksum = checksum;
        state.claimed = header.durable_sequence;
        front
    }
}

/// What a group of `filled` bytes counts before it has its place: a block more, for the padding.
fn unplaced_bytes(filled: usize) -> u64 {
    (filled + BLOCK) as u64
}
