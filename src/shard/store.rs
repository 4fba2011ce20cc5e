//! The partitions of one shard and the ways that a batch gets into them.
//!
//! ```text
//! small   socket buffer --copy--> journal group (= tail memory) --device--> journal, sync, acknowledge; later --copy--> segment
//! large   socket ----> aligned buffer --device--> segment, sync  |  reference and ragged ends in the journal, sync; then acknowledge
//! adopted socket ----> aligned pieces --device--> a file of its own, sync  |  one journal entry, sync; then acknowledge
//! ```
//!
//! Order of an append: machine (offsets, hash) -> journal entry -> tail memory -> tracked until durable. All of it happens
//! without a pause, so no two appends of a partition interleave; whatever needs to wait (a roll, blocks to allocate, room in memory)
//! is done before, in [`Store::make_room`], after which the batch is planned anew.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::batch::{self, BatchHeader, HEADER_LEN};
use crate::limits::{BLOCK, LARGE_APPEND};
use crate::log::files::is_no_space;
use crate::log::index::Index;
use crate::log::journal::{EntryHeader, EntryKind, LargeReference, SegmentOpen};
use crate::log::paths;
use crate::metrics::{Counter, Gauge, ShardMetrics};
use crate::partition::{Plan, Planned, Sealed};
use crate::request::{Code, Refusal};
use crate::shard::budget::Budget;
use crate::shard::buffer::{AppendBuffer, Piece};
use crate::shard::disk::Disk;
use crate::shard::event::Event;
use crate::shard::journal::{Journal, Urgency};
use crate::shard::partition_cell::{DirectWrite, PartitionCell, Tracked};
use crate::shard::pending::Completion;
use crate::shard::reader::Reader;
use crate::shard::replica::Origin;
use crate::shard::reserve::Reserve;
use crate::shard::ring::Ring;
use crate::shard::segment_files::SegmentFiles;
use crate::shard::shared_sync::SharedSync;
use crate::shard::tail::{Body, Chunk};
use crate::shard::write_behind;
use crate::types::{Offset, Timestamp, TopicId, TopicPartition};

/// The store of one shard.
pub struct Store {
    /// The data directory.
    pub disk: Rc<Disk>,
    /// The journal's files.
    pub ring: Rc<Ring>,
    /// The journal.
    pub journal: Rc<Journal>,
    /// Memory.
    pub budget: Budget,
    /// Counters.
    pub metrics: Arc<ShardMetrics>,
    /// Reads below the tail.
    pub reader: Reader,
    /// Partitions with bytes that are only in the journal, in the order in which they came.
    pub unflushed: RefCell<VecDeque<Rc<PartitionCell>>>,
    /// For each batch in memory, oldest first, its partition.
    pub tails: RefCell<VecDeque<Rc<PartitionCell>>>,
    /// Entries of it whose batches have left memory.
    stale: Cell<usize>,
    /// Directories of topics that this shard has made partitions in.
    topic_names: RefCell<HashMap<TopicId, Rc<TopicNames>>>,
    /// Notified when write-behind has something to do.
    pub write_behind: Event,
    /// Notified when memory became free.
    pub room: Event,
    /// Seconds since the start.
    pub seconds: Cell<u64>,
    /// Space for a full disk, and whether it is.
    pub reserve: Arc<Reserve>,
    adoptions: Cell<u64>,
    /// Bytes of received segments that a recovery would look through for producers, [`crate::limits::INSTALLED_PER_CHECKPOINT`].
    pub installed_bytes: Cell<u64>,
    cells: RefCell<HashMap<TopicPartition, Rc<PartitionCell>>>,
    failure: RefCell<Option<String>>,
    failed: Event,
}

/// Why a batch was not appended at once.
pub enum Blocked {
    /// [`Store::make_room`] first; the completion is given back.
    Room(Completion),
    /// It is decided: refused, or a duplicate that is answered in its time.
    Decided,
}

/// A large batch as it was received: the bytes up to the first block boundary of its segment, and the rest, aligned.
pub struct LargeBatch {
    /// Bytes before the boundary.
    pub head: Vec<u8>,
    /// The rest.
    pub body: Rc<AppendBuffer>,
    /// Bytes of the rest.
    pub body_len: usize,
}

impl Store {
    /// A store without partitions.
    pub fn new(
        disk: Rc<Disk>,
        reserve: Arc<Reserve>,
        ring: Rc<Ring>,
        journal: Rc<Journal>,
        budget: Budget,
        metrics: Arc<ShardMetrics>,
    ) -> Rc<Store> {
        let reader = Reader::new(disk.clone(), budget.cache(), metrics.clone());
        Rc::new(Store {
            disk,
            ring,
            journal,
            budget,
            metrics,
            reader,
            unflushed: RefCell::default(),
            tails: RefCell::default(),
            topic_names: RefCell::default(),
            stale: Cell::new(0),
            write_behind: Event::default(),
            room: Event::default(),
            seconds: Cell::new(0),
            reserve,
            adoptions: Cell::new(0),
            installed_bytes: Cell::new(0),
            cells: RefCell::default(),
            failure: RefCell::default(),
            failed: Event::default(),
        })
    }

    /// The partition, if this shard has it.
    pub fn partition(&self, id: &TopicPartition) -> Option<Rc<PartitionCell>> {
        self.cells.borrow().get(id).cloned()
    }

    /// All partitions.
    pub fn partitions(&self) -> Vec<Rc<PartitionCell>> {
        self.cells.borrow().values().cloned().collect()
    }

    /// Takes a partition in.
    pub fn insert(&self, cell: Rc<PartitionCell>) {
        let before = self.cells.borrow_mut().insert(cell.id, cell);
        assert!(before.is_none(), "a partition is opened once");
        self.metrics.set(Gauge::Partitions, self.cells.borrow().len() as u64);
    }

    /// Lets a partition go.
    pub fn remove(&self, id: &TopicPartition) -> Option<Rc<PartitionCell>> {
        let cell = self.cells.borrow_mut().remove(id);
        self.metrics.set(Gauge::Partitions, self.cells.borrow().len() as u64);
        cell
    }

    /// The disk failed in a way that leaves acknowledged data in doubt: the process must go down into recovery.
    pub fn fail(&self, what: String) {
        tracing::error!(what, "the store failed; going down");
        self.failure.borrow_mut().get_or_insert(what);
        self.failed.notify();
    }

    /// Whether [`Store::fail`] was called.
    pub fn is_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// A failure that costs room, not data.
    pub fn note_disk_error(&self, error: &io::Error) {
        if !is_no_space(error) || self.reserve.note_full() {
            tracing::error!(%error, "another journal file can't be made");
        }
    }

    /// After a failure of something that must be done though the disk is full: true if that was for want of space, so that it is to be tried once more: the
    /// reserve is given up for it, and what another try for room had in its hands just then is back.
    pub async fn make_space(&self, error: &io::Error) -> bool {
        if !is_no_space(error) {
            return false;
        }
        let reserve = self.reserve.clone();
        glommio::executor().spawn_blocking(move || reserve.give_up()).await;
        true
    }

    /// Waits for [`Store::fail`].
    pub async fn failure(&self) -> String {
        loop {
            let ticket = self.failed.ticket();
            if let Some(what) = self.failure.borrow().clone() {
                return what;
            }
            self.failed.wait(ticket).await;
        }
    }

    /// Appends a checked batch of less than [`LARGE_APPEND`] bytes.
    pub fn append(&self, cell: &Rc<PartitionCell>, header: &BatchHeader, batch: &[u8], done: Completion) -> Result<(), Blocked> {
        let now = now_ms();
        let settings = cell.settings.get();
        if settings.log_append_time {
            let mut stamped = batch.to_vec();
            batch::stamp_log_append_time(&mut stamped, now.max(cell.machine.borrow().max_timestamp()));
            let header = BatchHeader::parse(&stamped).expect("a checked batch with another timestamp parses");
            return self.append_stamped(cell, &header, &stamped, now, done);
        }
        self.append_stamped(cell, header, batch, now, done)
    }

    fn append_stamped(
        &self,
        cell: &Rc<PartitionCell>,
        header: &BatchHeader,
        batch: &[u8],
        now: Timestamp,
        done: Completion,
    ) -> Result<(), Blocked> {
        debug_assert!(batch.len() < LARGE_APPEND);
        let (plan, done) = self.plan(cell, header, batch.len(), now, done)?;
        let mut stored = [0; HEADER_LEN];
        stored.copy_from_slice(&batch[..HEADER_LEN]);
        batch::stamp(&mut stored, plan.base_offset, cell.machine.borrow().epoch());
        self.place(cell, header, batch, (&plan, &stored), now, Origin::Client(done));
        Ok(())
    }

    /// Puts a small batch that has its place into log, journal and memory; `stored` are its first 61 bytes as they are stored.
    pub(super) fn place(
        &self,
        cell: &Rc<PartitionCell>,
        header: &BatchHeader,
        batch: &[u8],
        (plan, stored): (&Plan, &[u8; HEADER_LEN]),
        now: Timestamp,
        origin: Origin,
    ) {
        let high_watermark = self.enter_log(cell, plan, stored, header, (now, &origin));
        let remainder = cell.remainder.borrow_mut().take().unwrap_or_default();
        let carried = remainder.len();
        let entry = EntryHeader {
            position: plan.position - carried as u64,
            payload_len: (carried + batch.len()) as u32,
            carried: carried as u32,
            high_watermark,
            leader_epoch: origin.epoch(cell, header),
            ..self.entry(cell, EntryKind::Append, plan)
        };
        let urgency = Urgency::of(cell.settings.get().durability);
        let placed = self.journal.add(&entry, urgency, Some(cell), |space| {
            let (front, rest) = space.split_at_mut(carried);
            front.copy_from_slice(&remainder);
            let (head, body) = rest.split_at_mut(HEADER_LEN);
            head.copy_from_slice(stored);
            body.copy_from_slice(&batch[HEADER_LEN..]);
        });
        let chunk = Chunk {
            base_offset: plan.base_offset,
            end_offset: plan.end_offset,
            segment: plan.segment,
            position: entry.position,
            carried,
            front: placed.payload,
            body: None,
            sequence: placed.sequence,
        };
        self.remember(cell, header, plan, chunk, None, origin);
    }

    /// Appends a checked batch of [`LARGE_APPEND`] bytes or more: whole blocks go straight to the segment, the journal gets a
    /// reference and the ragged ends. `batch.head` must end at a block boundary of the segment for the plan that is made now; where another append came
    /// first, the bytes are moved.
    pub fn append_large(
        self: &Rc<Store>,
        cell: &Rc<PartitionCell>,
        header: &BatchHeader,
        batch: LargeBatch,
        done: Completion,
    ) -> Result<(), (Blocked, LargeBatch)> {
        let len = batch.head.len() + batch.body_len;
        let now = now_ms();
        let (plan, done) = match self.plan(cell, header, len, now, done) {
            Ok(planned) => planned,
            Err(blocked) => return Err((blocked, batch)),
        };
        let batch = self.realign(batch, plan.position);
        let mut stored = [0; HEADER_LEN];
        let from_head = batch.head.len().min(HEADER_LEN);
        stored[..from_head].copy_from_slice(&batch.head[..from_head]);
        stored[from_head..].copy_from_slice(batch.body.slice(0..HEADER_LEN - from_head));
        let epoch = cell.machine.borrow().epoch();
        let mut header = *header;
        if cell.settings.get().log_append_time {
            // The CRC covers the timestamp: it is computed anew over head and body.
            header = self.stamp_large(&mut stored, &batch, now.max(cell.machine.borrow().max_timestamp()));
        }
        batch::stamp(&mut stored, plan.base_offset, epoch);
        self.place_large(cell, &header, batch, (&plan, &stored), now, Origin::Client(done));
        Ok(())
    }

    /// As [`Store::place`] of a large batch, whose head ends at a block boundary of the segment.
    pub(super) fn place_large(
        self: &Rc<Store>,
        cell: &Rc<PartitionCell>,
        header: &BatchHeader,
        batch: LargeBatch,
        (plan, stored): (&Plan, &[u8; HEADER_LEN]),
        now: Timestamp,
        origin: Origin,
    ) {
        let batch = self.with_stored_header(batch, stored);
        let high_watermark = self.enter_log(cell, plan, stored, header, (now, &origin));
        let remainder = cell.remainder.borrow_mut().take().unwrap_or_default();
        let carried = remainder.len();
        let direct_len = batch.body_len / BLOCK * BLOCK;
        let tail_len = batch.body_len - direct_len;
        let reference =
            LargeReference { batch_len: plan.len as u32, head_len: batch.head.len() as u32, tail_len: tail_len as u32, header: *stored };
        let entry = EntryHeader {
            position: plan.position - carried as u64,
            payload_len: reference.payload_len(carried as u32) as u32,
            carried: carried as u32,
            high_watermark,
            leader_epoch: origin.epoch(cell, header),
            ..self.entry(cell, EntryKind::LargeReference, plan)
        };
        let fixed = reference.encode();
        let front_len = carried + batch.head.len();
        let placed = self.journal.add(&entry, Urgency::Sync, Some(cell), |space| {
            let (reference, rest) = space.split_at_mut(fixed.len());
            reference.copy_from_slice(&fixed);
            let (old, rest) = rest.split_at_mut(carried);
            old.copy_from_slice(&remainder);
            let (head, tail) = rest.split_at_mut(batch.head.len());
            head.copy_from_slice(&batch.head);
            tail.copy_from_slice(batch.body.slice(direct_len..batch.body_len));
        });
        let chunk = Chunk {
            base_offset: plan.base_offset,
            end_offset: plan.end_offset,
            segment: plan.segment,
            position: entry.position,
            carried,
            front: placed.payload.part(fixed.len()..fixed.len() + front_len),
            body: Some(Body::Held(Piece::new(batch.body.clone(), 0..batch.body_len))),
            sequence: placed.sequence,
        };
        let direct = Rc::new(DirectWrite::default());
        self.remember(cell, header, plan, chunk, Some(direct.clone()), origin);
        self.metrics.add(Counter::LargeAppends, 1);
        self.journal.begin_outside(placed.sequence);
        self.write_direct(cell, plan, &batch, direct_len, (direct, placed.sequence));
    }

    fn write_direct(
        self: &Rc<Store>,
        cell: &Rc<PartitionCell>,
        plan: &Plan,
        batch: &LargeBatch,
        direct_len: usize,
        (direct, sequence): (Rc<DirectWrite>, u64),
    ) {
        let memory = batch.body.freeze(direct_len);
        let position = plan.position + batch.head.len() as u64;
        let files = cell.files_of(plan.segment).expect("a plan's segment is open");
        let (store, cell) = (self.clone(), cell.clone());
        let outside = cell.begin_outside();
        glommio::spawn_local(async move {
            let _outside = outside;
            let written = match direct_len {
                0 => Ok(()),
                _ => files.log.write(memory, position).await,
            };
            if let Err(error) = written {
                return store.fail(format!("large append to {}: {error}", cell.id));
            }
            store.metrics.add(Counter::SegmentBytes, direct_len as u64);
            direct.written.set(true);
            cell.advance(store.journal.written(), store.journal.durable());
            if let Err(error) = files.sync_log_shared().await {
                return store.fail(format!("sync of a large append to {}: {error}", cell.id));
            }
            direct.durable.set(true);
            store.journal.end_outside(sequence);
            cell.advance(store.journal.written(), store.journal.durable());
        })
        .detach();
    }

    /// Decides what becomes of a batch; only a plan that can be carried out at once is returned.
    fn plan(
        &self,
        cell: &PartitionCell,
        header: &BatchHeader,
        len: usize,
        now: Timestamp,
        done: Completion,
    ) -> Result<(Plan, Completion), Blocked> {
        if let Some(refusal) = cell.not_served() {
            done.complete(Err(refusal));
            return Err(Blocked::Decided);
        }
        let present = cell.machine.borrow().epoch();
        if let Some(epoch) = done.patience.epoch.filter(|epoch| *epoch != present) {
            // It waited for room while the leadership changed.
            done.complete(Err(cell.refusal(Code::NotLeader, format!("the batch is of epoch {epoch}, the present one is {present}"))));
            return Err(Blocked::Decided);
        }
        if cell.busy.get() {
            return Err(Blocked::Room(done));
        }
        let planned = cell.machine.borrow().plan(header, len, now, &cell.settings.get());
        match planned {
            Planned::Append(plan) => match cell.active_files() {
                Some(files) if files.has_room(plan.position + len as u64) && self.has_room() => Ok((plan, done)),
                _ => Err(Blocked::Room(done)),
            },
            Planned::Roll => Err(Blocked::Room(done)),
            Planned::Duplicate { base_offset, end_offset } => {
                self.metrics.add(Counter::DuplicateBatches, 1);
                cell.track_duplicate(base_offset, end_offset, done);
                Err(Blocked::Decided)
            }
            Planned::Refused(refusal) => {
                done.complete(Err(cell.refusal(refusal.code, refusal.message)));
                Err(Blocked::Decided)
            }
        }
    }

    /// Journals the leader epoch before its first record, then takes the batch into the machine; returns the watermark for the entry.
    fn enter_log(
        &self,
        cell: &Rc<PartitionCell>,
        plan: &Plan,
        stored: &[u8; HEADER_LEN],
        header: &BatchHeader,
        (now, origin): (Timestamp, &Origin),
    ) -> Offset {
        match origin {
            Origin::Client(_) => self.journal_epoch(cell, plan),
            // Its own entry says its epoch.
            Origin::Leader => cell.machine.borrow_mut().note_batch_epoch(header),
        }
        let mut machine = cell.machine.borrow_mut();
        machine.append(plan, stored, header, now);
        machine.ladder().committed()
    }

    /// The leader epoch is journaled before the first record in it.
    pub(super) fn journal_epoch(&self, cell: &Rc<PartitionCell>, plan: &Plan) {
        if !cell.epoch_journaled.replace(true) {
            self.add_state_entry(cell, EntryKind::Epoch, plan.segment, plan.position, plan.base_offset);
        }
    }

    /// Journals the seal of a segment and keeps its index until it is flushed.
    pub(super) fn sealed(&self, cell: &Rc<PartitionCell>, sealed: Sealed) {
        let info = sealed.segment;
        let plan =
            Plan { base_offset: info.end_offset, end_offset: info.end_offset, segment: info.base_offset, position: info.valid_end, len: 0 };
        // The state that a seal describes is the segment's: an adoption that follows has moved the partition's on already.
        let entry = EntryHeader {
            running_hash: info.running_hash,
            max_timestamp: info.max_timestamp,
            ..self.entry(cell, EntryKind::SegmentSeal, &plan)
        };
        self.journal.add(&entry, Urgency::Lazy, None, |_| ());
        // A segment that was never appended to since the start is flushed, and its index was not read: whoever asks for it reads it from its file.
        if !sealed.index.is_empty() {
            cell.keep_sealed(sealed);
        }
        self.metrics.add(Counter::SegmentsRolled, 1);
        self.mark("roll");
        self.write_behind.notify();
    }

    /// A number for the temporary file of an adopted batch, never given before.
    pub(super) fn next_adoption(&self) -> u64 {
        let next = self.adoptions.get();
        self.adoptions.set(next + 1);
        (self.journal.generation() << 32) | next
    }

    /// An entry header that describes the partition as it is.
    pub(super) fn entry(&self, cell: &PartitionCell, kind: EntryKind, plan: &Plan) -> EntryHeader {
        let machine = cell.machine.borrow();
        EntryHeader {
            kind,
            must_understand: true,
            topic_partition: cell.id,
            leader_epoch: machine.epoch(),
            segment: plan.segment,
            position: plan.position,
            base_offset: plan.base_offset,
            end_offset: plan.end_offset,
            high_watermark: machine.ladder().committed(),
            running_hash: machine.running_hash(),
            max_timestamp: machine.max_timestamp(),
            payload_len: 0,
            carried: 0,
        }
    }

    /// Adds an entry without payload that describes the partition as it is; returns its group.
    pub fn add_state_entry(&self, cell: &Rc<PartitionCell>, kind: EntryKind, segment: Offset, position: u64, base_offset: Offset) -> u64 {
        let end_offset = cell.machine.borrow().ladder().appended();
        let plan = Plan { base_offset, end_offset, segment, position, len: 0 };
        self.journal.add(&self.entry(cell, kind, &plan), Urgency::Lazy, None, |_| ()).sequence
    }

    fn remember(
        &self,
        cell: &Rc<PartitionCell>,
        header: &BatchHeader,
        plan: &Plan,
        chunk: Chunk,
        direct: Option<Rc<DirectWrite>>,
        origin: Origin,
    ) {
        let sequence = chunk.sequence;
        let unflushed = match &chunk.body {
            None => chunk.front.len() - chunk.carried,
            Some(body) => chunk.front.len() - chunk.carried + body.ragged_end().len(),
        };
        self.budget.add_unflushed(unflushed);
        cell.tail.borrow_mut().push(chunk);
        self.tails.borrow_mut().push_back(cell.clone());
        cell.last_append.set(self.seconds.get());
        cell.metrics.count_in(u64::from(header.record_count as u32), plan.len as u64);
        self.metrics.add(Counter::RecordsIn, u64::from(header.record_count as u32));
        self.metrics.add(Counter::RecordBytesIn, plan.len as u64);
        self.metrics.add(Counter::BatchesIn, 1);
        cell.track(Tracked {
            base_offset: plan.base_offset,
            end_offset: plan.end_offset,
            count: header.record_count as u32,
            crc: header.crc,
            segment: plan.segment,
            position: plan.position,
            sequence,
            log_append_time: header.append_time(),
            direct,
            completion: origin.completion(),
        });
        if !cell.queued_for_flush.replace(true) {
            self.unflushed.borrow_mut().push_back(cell.clone());
        }
        write_behind::make_way(self);
        if self.budget.wants_flush() {
            self.write_behind.notify();
        }
    }

    /// `count` batches of the partition have left memory otherwise than by eviction, the oldest: their entries in [`Store::tails`] go too, all at once
    /// when they are half of it.
    pub fn forget_entries(&self, cell: &PartitionCell, count: usize) {
        cell.stale.set(cell.stale.get() + count);
        self.stale.set(self.stale.get() + count);
        let mut tails = self.tails.borrow_mut();
        if self.stale.get() * 2 > tails.len() {
            tails.retain(|entry| {
                let stale = entry.stale.get();
                entry.stale.set(stale.saturating_sub(1));
                stale == 0
            });
            self.stale.set(0);
        }
    }

    /// An entry went whose batch had left memory before.
    pub fn entry_gone(&self, cell: &PartitionCell) {
        cell.stale.set(cell.stale.get().saturating_sub(1));
        self.stale.set(self.stale.get().saturating_sub(1));
    }

    /// Moves the bytes so that `head` ends at a block boundary for a batch at `position`.
    pub(super) fn realign(&self, batch: LargeBatch, position: u64) -> LargeBatch {
        let head_len = head_len(position);
        if batch.head.len() == head_len {
            return batch;
        }
        let mut all = batch.head;
        all.extend_from_slice(batch.body.slice(0..batch.body_len));
        self.large_batch(&all, position)
    }

    /// A large batch from contiguous bytes, for a batch that will start at `position`.
    pub fn large_batch(&self, bytes: &[u8], position: u64) -> LargeBatch {
        let (head, rest) = bytes.split_at(head_len(position));
        let body = Rc::new(AppendBuffer::new(rest.len(), 0, self.budget.accounted()));
        body.push(rest);
        LargeBatch { head: head.to_vec(), body, body_len: rest.len() }
    }

    fn stamp_large(&self, stored: &mut [u8; HEADER_LEN], batch: &LargeBatch, now: Timestamp) -> BatchHeader {
        let mut all = batch.head.clone();
        all.extend_from_slice(batch.body.slice(0..batch.body_len));
        batch::stamp_log_append_time(&mut all, now);
        stored.copy_from_slice(&all[..HEADER_LEN]);
        BatchHeader::parse(stored).expect("a checked batch with another timestamp parses")
    }

    /// The batch with its first 61 bytes as they are stored: in the head, and in the body where the batch starts less than 61 bytes before a boundary.
    fn with_stored_header(&self, mut batch: LargeBatch, stored: &[u8; HEADER_LEN]) -> LargeBatch {
        let in_head = batch.head.len().min(HEADER_LEN);
        batch.head[..in_head].copy_from_slice(&stored[..in_head]);
        if in_head < HEADER_LEN {
            let body = Rc::get_mut(&mut batch.body).expect("the body of a batch that is not appended yet has one owner");
            body.patch_front(&stored[in_head..]);
        }
        batch
    }

    /// Does what an append of `len` bytes waits for: a place in memory, an open segment, a roll, allocated blocks.
    ///
    /// # Errors
    /// When the partition is gone or the disk is full.
    pub async fn make_room(self: &Rc<Store>, cell: &Rc<PartitionCell>, header: &BatchHeader, len: usize) -> Result<(), Refusal> {
        self.wait_for_memory().await;
        cell.enter().await;
        let result = self.prepare_segment(cell, header, len).await;
        cell.leave();
        result
    }

    /// Whether an append may come in: there is room in memory, and in the journal.
    pub(super) fn has_room(&self) -> bool {
        self.budget.has_room() && self.journal.has_room()
    }

    /// Waits while the shard's share of unflushed bytes is used up, in memory or in the journal.
    pub async fn wait_for_memory(&self) {
        loop {
            let (memory, journal) = (self.room.ticket(), self.ring.changed().ticket());
            if !self.budget.has_room() {
                self.write_behind.notify();
                self.room.wait(memory).await;
            } else if !self.journal.has_room() {
                self.ring.ask_for_room();
                self.ring.changed().wait(journal).await;
            } else {
                return;
            }
        }
    }

    async fn prepare_segment(self: &Rc<Store>, cell: &Rc<PartitionCell>, header: &BatchHeader, len: usize) -> Result<(), Refusal> {
        if let Some(refusal) = cell.not_served() {
            return Err(refusal);
        }
        self.open_active(cell).await.map_err(|e| self.disk_refusal(cell, &e))?;
        let planned = cell.machine.borrow().plan(header, len, now_ms(), &cell.settings.get());
        let position = match planned {
            Planned::Append(plan) => plan.position,
            Planned::Roll => {
                self.expect_space(cell)?;
                self.roll(cell).await.map_err(|e| self.disk_refusal(cell, &e))?;
                // Closed meanwhile: then nothing was opened.
                if let Some(refusal) = cell.gone() {
                    return Err(refusal);
                }
                BLOCK as u64
            }
            Planned::Duplicate { .. } | Planned::Refused(_) => return Ok(()),
        };
        let files = cell.active_files().expect("opened above");
        let end = position + len as u64;
        if !files.has_room(end) {
            self.expect_space(cell)?;
            files.allocate(end).await.map_err(|e| self.disk_refusal(cell, &e))?;
        }
        Ok(())
    }

    /// Refuses new blocks for records while the disk is full: what is freed then is for the reserve first.
    pub(super) fn expect_space(&self, cell: &PartitionCell) -> Result<(), Refusal> {
        if self.reserve.is_full() { Err(no_space(cell)) } else { Ok(()) }
    }

    /// Opens the files of the segment that a restart left open.
    pub(super) async fn open_active(&self, cell: &Rc<PartitionCell>) -> io::Result<()> {
        let Some(info) = cell.machine.borrow().active().copied() else { return Ok(()) };
        if cell.files_of(info.base_offset).is_some() {
            return Ok(());
        }
        let (files, index): (SegmentFiles, Index) = SegmentFiles::open(&self.disk, cell.id, &info).await?;
        cell.machine.borrow_mut().restore_index(index);
        cell.keep_files(info.base_offset, Rc::new(files));
        Ok(())
    }

    /// Seals the open segment, if there is one with records, and opens the next. The caller has the cell's `busy`.
    pub async fn roll(&self, cell: &Rc<PartitionCell>) -> io::Result<()> {
        let base_offset = cell.machine.borrow().ladder().appended();
        let info = cell.machine.borrow().next_segment();
        self.make_directory(cell).await?;
        let files = Rc::new(SegmentFiles::create(&self.disk, cell.id, &info).await?);
        if cell.gone().is_some() {
            return Ok(());
        }
        assert_eq!(base_offset, cell.machine.borrow().ladder().appended(), "no append during a roll");
        let opened = cell.machine.borrow_mut().open_segment();
        if let Some(sealed) = opened.sealed {
            self.sealed(cell, sealed);
        }
        // The unfinished block of the sealed segment is padded there; the new one starts at a boundary.
        *cell.remainder.borrow_mut() = None;
        cell.keep_files(opened.segment, files);
        let payload = SegmentOpen { rewrite_generation: info.rewrite_generation }.encode();
        let plan = Plan { base_offset, end_offset: base_offset, segment: opened.segment, position: BLOCK as u64, len: 0 };
        let entry = EntryHeader { payload_len: payload.len() as u32, ..self.entry(cell, EntryKind::SegmentOpen, &plan) };
        self.journal.add(&entry, Urgency::Lazy, None, |space| space.copy_from_slice(&payload));
        Ok(())
    }

    /// Makes the partition's directory, durable in its parents, if it may not be there.
    pub(super) async fn make_directory(&self, cell: &PartitionCell) -> io::Result<()> {
        if !cell.machine.borrow().segments().is_empty() || cell.has_directory.get() {
            return Ok(());
        }
        let topic_dir = paths::topic_dir(cell.id.topic);
        let names = self.topic_names.borrow_mut().entry(cell.id.topic).or_default().clone();
        self.disk.create_dir(&topic_dir).await?;
        self.disk.create_dir(&paths::partition_dir(cell.id)).await?;
        if !names.is_durable.get() {
            self.disk.sync_dir(paths::TOPICS_DIR).await?;
            names.is_durable.set(true);
        }
        // Partitions of a new topic get their first records at about the same time.
        names.partitions.wait(|| self.disk.sync_dir(&topic_dir)).await?;
        cell.has_directory.set(true);
        Ok(())
    }

    /// Turns a failure to make room into a refusal; a full disk is remembered so that it shows.
    pub fn disk_refusal(&self, cell: &PartitionCell, error: &io::Error) -> Refusal {
        if is_no_space(error) {
            if self.reserve.note_full() {
                tracing::error!(partition = %cell.id, "the disk is full: produce is refused, reads go on");
            }
            return no_space(cell);
        }
        tracing::error!(partition = %cell.id, %error, "the segment can't be prepared");
        cell.refusal(Code::Storage, error)
    }

    /// The topic was deleted.
    pub fn forget_topic(&self, topic: TopicId) {
        self.unflushed.borrow_mut().retain(|cell| cell.id.topic != topic);
        self.tails.borrow_mut().retain(|cell| cell.id.topic != topic);
        self.topic_names.borrow_mut().remove(&topic);
    }

    /// Forgets what it has of a partition that is not this node's any more.
    pub fn forget_partition(&self, id: &TopicPartition) {
        self.unflushed.borrow_mut().retain(|cell| cell.id != *id);
        self.tails.borrow_mut().retain(|cell| cell.id != *id);
    }

    /// Names something that the store did, in the trace.
    pub fn mark(&self, name: &str) {
        if let Some(trace) = self.disk.trace() {
            trace.record(&crate::shard::trace::TraceEvent::Mark { name: name.into() });
        }
    }
}

/// How far the names of a topic's directories are durable.
#[derive(Default)]
struct TopicNames {
    /// The topic's own.
    is_durable: Cell<bool>,
    /// Its partitions'.
    partitions: SharedSync,
}

/// The refusal where the disk has no room for records of a partition.
pub fn no_space(cell: &PartitionCell) -> Refusal {
    cell.refusal(Code::DiskFull, "no space for it: free space, shorten the retention or delete a topic")
}

/// Bytes from `position` to the next block boundary.
pub fn head_len(position: u64) -> usize {
    (position.next_multiple_of(BLOCK as u64) - position) as usize
}

/// Now, ms since the epoch.
pub fn now_ms() -> Timestamp {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as Timestamp)
}
