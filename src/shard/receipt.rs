//! A segment that comes whole from the leader: received into a file of its own, checked, synced, and installed behind the log's end by one journal entry.
//!
//! ```text
//! parts --copied once, direct I/O--> adopt-N.tmp        checked as they come: CRCs, offsets, running hash; the index is built of them
//!     everything came, and it is the segment that the leader says: header, index into adopt-M.tmp; both synced, and their names
//!     what is before it in the log is flushed
//!     memory and one journal entry in one step: the segment is the log's last one
//!     the entry is durable: both files get their own names, durably; then the replica says that it has it
//! ```
//! A crash before the entry is durable leaves temporary files, which the next start removes; after it the next start finishes the renaming.
//! A stream that ends, or bytes that don't check, leave no trace.
//!
//! Nothing of it goes through memory tail or journal: a byte is written once. Writes are of the task queue that the caller gives: below live traffic.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use futures_util::future::try_join_all;
use glommio::io::DmaBuffer;
use glommio::{Task, TaskQueueHandle};

use crate::limits::{BLOCK, INSTALLED_PER_CHECKPOINT};
use crate::log::installation::{Installation, MAX_SEGMENT_EPOCHS};
use crate::log::journal::{EntryHeader, EntryKind};
use crate::log::paths;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::log::segment_check::{CheckedSegment, SegmentCheck, SegmentWord};
use crate::metrics::Counter;
use crate::partition::{Plan, ReplicaRefusal};
use crate::request::Code;
use crate::shard::disk::DataFile;
use crate::shard::journal::Urgency;
use crate::shard::partition_cell::{DirectWrite, PartitionCell, Tracked};
use crate::shard::replica::ReplicaError;
use crate::shard::ring::{filled, take_filled};
use crate::shard::store::{Store, now_ms};
use crate::shard::verifier::is_same;
use crate::shard::write_behind;
use crate::types::{LeaderEpoch, Offset};

/// Size of one write, bytes.
const PIECE: usize = 1 << 20;
/// Writes under way while the next is filled.
const IN_FLIGHT: usize = 3;
/// Bytes after which a sync is begun beside the writes, so that the last one has little to wait for.
const SYNC_EVERY: u64 = 16 << 20;

/// A segment on its way into a file.
pub struct Receipt {
    store: Rc<Store>,
    cell: Rc<PartitionCell>,
    queue: TaskQueueHandle,
    base_offset: Offset,
    /// Bytes of its batches.
    total: u64,
    received: u64,
    log_id: u64,
    index_id: u64,
    file: Rc<DataFile>,
    memory: DmaBuffer,
    filled: usize,
    /// Where `memory` goes.
    position: u64,
    writes: VecDeque<Task<io::Result<()>>>,
    syncing: Option<Task<io::Result<()>>>,
    unsynced: u64,
    check: SegmentCheck,
}

/// A segment that came whole and checks; its bytes are on the disk, its name is not the log's yet.
pub struct Received {
    store: Rc<Store>,
    cell: Rc<PartitionCell>,
    log_id: u64,
    index_id: u64,
    segment: CheckedSegment,
}

impl Receipt {
    /// A file for a segment that begins at an offset and has `total` bytes of batches, with blocks for all of them.
    ///
    /// # Errors
    /// When it can't be so long, the partition is gone, or the disk has no room.
    pub async fn begin(
        store: &Rc<Store>,
        cell: &Rc<PartitionCell>,
        queue: TaskQueueHandle,
        base_offset: Offset,
        total: u64,
    ) -> Result<Receipt, ReplicaError> {
        store.expect_replica(cell)?;
        if FIRST_POSITION.checked_add(total).is_none_or(|end| u32::try_from(end).is_err()) {
            let words = format!("a segment of {total} bytes: positions in it are of 32 bits");
            return Err(cell.refusal(Code::InvalidRequest, words).into());
        }
        let (log_id, index_id) = (store.next_adoption(), store.next_adoption());
        let path = paths::adopted(cell.id, log_id);
        let file = Rc::new(create(store, cell, &path).await?);
        if let Err(error) = file.allocate((FIRST_POSITION + total).next_multiple_of(BLOCK as u64)).await {
            let _ = store.disk.remove(&path).await;
            return Err(store.disk_refusal(cell, &error).into());
        }
        Ok(Receipt {
            store: store.clone(),
            cell: cell.clone(),
            queue,
            base_offset,
            total,
            received: 0,
            log_id,
            index_id,
            file,
            memory: glommio::allocate_dma_buffer_global(PIECE),
            filled: 0,
            position: FIRST_POSITION,
            writes: VecDeque::new(),
            syncing: None,
            unsynced: 0,
            check: SegmentCheck::new(base_offset),
        })
    }

    /// Where the segment begins.
    pub fn base_offset(&self) -> Offset {
        self.base_offset
    }

    /// Bytes of batches that it has in all, and how many have come.
    pub fn progress(&self) -> (u64, u64) {
        (self.total, self.received)
    }

    /// The next bytes of batches.
    ///
    /// # Errors
    /// When they don't check, are more than were told, or can't be written. The receipt is to be abandoned then.
    pub async fn take(&mut self, mut bytes: &[u8]) -> Result<(), ReplicaError> {
        self.received += bytes.len() as u64;
        if self.received > self.total {
            let words = format!("{} bytes of a segment of {}", self.received, self.total);
            return Err(self.cell.refusal(Code::InvalidRequest, words).into());
        }
        self.check.take(bytes).map_err(ReplicaRefusal::from)?;
        while !bytes.is_empty() {
            let taken = bytes.len().min(PIECE - self.filled);
            self.memory.as_bytes_mut()[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == PIECE {
                self.write().await.map_err(|error| self.failed(&error))?;
            }
        }
        Ok(())
    }

    async fn write(&mut self) -> io::Result<()> {
        let memory = take_filled(&mut self.memory, std::mem::take(&mut self.filled), PIECE);
        let (file, position, len) = (self.file.clone(), self.position, memory.len() as u64);
        self.position += len;
        if self.writes.len() == IN_FLIGHT
            && let Some(first) = self.writes.pop_front()
        {
            first.await?;
        }
        let write = async move { file.write(memory, position).await };
        self.writes.push_back(glommio::spawn_local_into(write, self.queue)?);
        self.unsynced += len;
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            if let Some(before) = self.syncing.take() {
                before.await?;
            }
            let file = self.file.clone();
            self.syncing = Some(glommio::spawn_local_into(async move { file.sync().await }, self.queue)?);
        }
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> ReplicaError {
        self.cell.gone().unwrap_or_else(|| self.store.disk_refusal(&self.cell, error)).into()
    }

    /// Leaves no trace.
    pub async fn abandon(self) {
        for write in self.writes.into_iter().chain(self.syncing) {
            let _ = write.await;
        }
        forget(&self.store, &self.cell, &[self.log_id]).await;
    }

    /// Everything came: whether it is the segment of which `word` is said. It is on the disk then, with its index, and counts for nothing yet.
    ///
    /// # Errors
    /// When it is not, or the disk fails: there is no trace of it then.
    pub async fn finish(mut self, word: &SegmentWord) -> Result<Received, ReplicaError> {
        let settled = self.settle(word).await;
        match settled {
            Ok(segment) => {
                let Receipt { store, cell, log_id, index_id, .. } = self;
                Ok(Received { store, cell, log_id, index_id, segment })
            }
            Err(error) => {
                let (store, cell, index) = (self.store.clone(), self.cell.clone(), self.index_id);
                self.abandon().await;
                forget(&store, &cell, &[index]).await;
                Err(error)
            }
        }
    }

    async fn settle(&mut self, word: &SegmentWord) -> Result<CheckedSegment, ReplicaError> {
        if self.received != self.total {
            let words = format!("{} of {} bytes of a segment came", self.received, self.total);
            return Err(self.cell.refusal(Code::InvalidRequest, words).into());
        }
        if word.epochs.len() > MAX_SEGMENT_EPOCHS {
            let words = format!("a segment of {} epochs, expected at most {MAX_SEGMENT_EPOCHS}", word.epochs.len());
            return Err(self.cell.refusal(Code::InvalidRequest, words).into());
        }
        let check = std::mem::replace(&mut self.check, SegmentCheck::new(self.base_offset));
        let segment = check.finish(word).map_err(ReplicaRefusal::from)?;
        self.write_rest(&segment).await.map_err(|error| self.failed(&error))?;
        Ok(segment)
    }

    /// The last blocks, header and index; all of it durable, with the temporary names.
    async fn write_rest(&mut self, segment: &CheckedSegment) -> io::Result<()> {
        if self.filled > 0 {
            self.write().await?;
        }
        self.file.write(filled(&segment.info.header_block(self.cell.id)), 0).await?;
        try_join_all(self.writes.drain(..)).await?;
        if let Some(before) = self.syncing.take() {
            before.await?;
        }
        let disk = &self.store.disk;
        let index = disk.create(&paths::adopted(self.cell.id, self.index_id)).await?;
        index.write(filled(&segment.info.index_header_block(self.cell.id)), 0).await?;
        if let Some(blocks) = segment.index.blocks_from(0) {
            index.write(filled(&blocks.bytes), blocks.position).await?;
        }
        futures_util::try_join!(self.file.sync(), index.sync())?;
        index.close().await?;
        disk.sync_dir(&paths::partition_dir(self.cell.id)).await
    }
}

impl Received {
    /// What was received.
    pub fn segment(&self) -> &CheckedSegment {
        &self.segment
    }

    /// Leaves no trace.
    pub async fn abandon(self) {
        forget(&self.store, &self.cell, &[self.log_id, self.index_id]).await;
    }

    /// Makes it the log's last segment, as a follower of `epoch`; durable when this returns. The log's end then.
    ///
    /// # Errors
    /// When it does not go on where the log ends: nothing has changed then, and there is no trace of it. When the disk fails.
    pub async fn install(self, epoch: LeaderEpoch) -> Result<Offset, ReplicaError> {
        let (store, cell) = (self.store.clone(), self.cell.clone());
        cell.enter().await;
        let prepared = self.prepare(epoch).await;
        if let Err(error) = prepared {
            cell.leave();
            self.abandon().await;
            return Err(error);
        }
        let end = self.segment.info.end_offset;
        let direct = Rc::new(DirectWrite::in_file_only());
        let sequence = self.enter_log(&direct);
        store.journal.begin_outside(sequence);
        let outside = cell.begin_outside();
        cell.leave_flush();
        cell.leave();
        store.room.notify();
        store.wait_durable_or_fail(&cell, sequence).await?;
        if let Err(error) = self.name().await {
            store.fail(format!("a segment that {} has received can't get its name: {error}", cell.id));
            return Err(cell.refusal(Code::Storage, error).into());
        }
        store.mark("installed");
        direct.written.set(true);
        direct.durable.set(true);
        store.journal.end_outside(sequence);
        cell.advance(store.journal.written(), store.journal.durable());
        drop(outside);
        store.wait_reached(&cell, end).await
    }

    /// Everything before it is flushed and durable; the caller has the cell's `busy`. With success it has the cell's flush too.
    async fn prepare(&self, epoch: LeaderEpoch) -> Result<(), ReplicaError> {
        let (store, cell) = (&self.store, &self.cell);
        let fits = || -> Result<(), ReplicaError> {
            store.expect_following(cell, epoch)?;
            Ok(cell.machine.borrow().check_install(&self.segment, epoch)?)
        };
        fits()?;
        store.wait_in_flight(cell).await?;
        cell.enter_flush().await;
        let flushed = write_behind::flush_segments(store, cell, true).await;
        let ready = match flushed {
            // Of a partition that is gone nothing is flushed any more: that shows here.
            Ok(()) => fits(),
            Err(error) => {
                store.fail(format!("write-behind of {}: {error}", cell.id));
                Err(cell.refusal(Code::Storage, error).into())
            }
        };
        if ready.is_err() {
            cell.leave_flush();
        }
        ready
    }

    /// In one step with the machine's change: a checkpoint has both or neither.
    fn enter_log(&self, direct: &Rc<DirectWrite>) -> u64 {
        let (store, cell, info) = (&self.store, &self.cell, &self.segment.info);
        let open = cell.machine.borrow().active().map(|active| active.base_offset);
        let sealed = cell.machine.borrow_mut().install(&self.segment, now_ms());
        if let Some(sealed) = sealed {
            store.sealed(cell, sealed);
        }
        // It is flushed, or it had no record and is none any more.
        open.into_iter().for_each(|base| cell.drop_files(base));
        *cell.remainder.borrow_mut() = None;
        let payload = Installation::of(&self.segment, self.log_id, self.index_id).encode();
        let plan = Plan {
            base_offset: info.base_offset,
            end_offset: info.end_offset,
            segment: info.base_offset,
            position: info.valid_end,
            len: info.batch_bytes() as usize,
        };
        let leader_epoch = self.segment.epochs.last().map_or(-1, |(epoch, _)| *epoch);
        let entry = EntryHeader { payload_len: payload.len() as u32, leader_epoch, ..store.entry(cell, EntryKind::Install, &plan) };
        store.mark("install");
        let sequence = store.journal.add(&entry, Urgency::Sync, Some(cell), |space| space.copy_from_slice(&payload)).sequence;
        cell.track(Tracked {
            base_offset: info.base_offset,
            end_offset: info.end_offset,
            count: 0,
            crc: 0,
            segment: info.base_offset,
            position: FIRST_POSITION,
            sequence,
            log_append_time: -1,
            direct: Some(direct.clone()),
            completion: None,
        });
        if !self.segment.producers.is_empty() {
            store.installed_bytes.set(store.installed_bytes.get() + info.batch_bytes());
            if store.installed_bytes.get() >= INSTALLED_PER_CHECKPOINT {
                store.ring.full().notify();
            }
        }
        store.metrics.add(Counter::SegmentsInstalled, 1);
        store.metrics.add(Counter::SegmentBytes, info.batch_bytes());
        sequence
    }

    /// Puts it in the place of the log's own copy of the same segment, which is damaged: the very same batches, so nothing that is known of the log changes, and no entry says so. Durable when
    /// this returns; a crash leaves one copy or the other.
    ///
    /// # Errors
    /// When the log does not have that segment any more, or the disk fails: there is no trace of it then.
    pub async fn replace(self, info: &SegmentInfo) -> Result<(), ReplicaError> {
        let (store, cell) = (self.store.clone(), self.cell.clone());
        cell.enter().await;
        cell.enter_flush().await;
        let is_there = cell.machine.borrow().segments().iter().any(|own| is_same(own, info) && is_same(own, &self.segment.info));
        let replaced = match store.expect_replica(&cell) {
            Ok(()) if is_there => self.take_name(info).await.map_err(|error| store.disk_refusal(&cell, &error).into()),
            Ok(()) => Err(cell.refusal(Code::InvalidRequest, format!("segment {} is not the log's any more", info.base_offset)).into()),
            Err(error) => Err(error),
        };
        // What was read of the damaged file, and the file itself, are not to be used again.
        store.reader.forget_replaced(&cell, std::slice::from_ref(info));
        cell.leave_flush();
        cell.leave();
        // The index is as good as it was: it is made of what the batches say, and those are the same.
        let left: &[u64] = if replaced.is_ok() { &[self.index_id] } else { &[self.log_id, self.index_id] };
        forget(&store, &cell, left).await;
        if replaced.is_ok() {
            store.metrics.add(Counter::SegmentBytes, info.batch_bytes());
        }
        replaced
    }

    async fn take_name(&self, info: &SegmentInfo) -> io::Result<()> {
        let (disk, id) = (&self.store.disk, self.cell.id);
        disk.rename(&paths::adopted(id, self.log_id), &info.path(id)).await?;
        self.store.mark("segment mended");
        disk.sync_dir(&paths::partition_dir(id)).await
    }

    async fn name(&self) -> io::Result<()> {
        let (disk, id, info) = (&self.store.disk, self.cell.id, &self.segment.info);
        disk.rename(&paths::adopted(id, self.index_id), &info.index_path(id)).await?;
        disk.rename(&paths::adopted(id, self.log_id), &info.path(id)).await?;
        disk.sync_dir(&paths::partition_dir(id)).await
    }
}

/// The file. Not while the partition is being deleted: the deletion would not see a directory that is made behind it.
async fn create(store: &Rc<Store>, cell: &Rc<PartitionCell>, path: &str) -> Result<DataFile, ReplicaError> {
    cell.enter().await;
    let create = async {
        store.make_directory(cell).await?;
        store.disk.create(path).await
    };
    let made = match cell.gone() {
        Some(refusal) => Err(refusal.into()),
        None => create.await.map_err(|error| store.disk_refusal(cell, &error).into()),
    };
    cell.leave();
    made
}

async fn forget(store: &Rc<Store>, cell: &PartitionCell, ids: &[u64]) {
    for id in ids {
        if let Err(error) = store.disk.remove(&paths::adopted(cell.id, *id)).await {
            tracing::warn!(partition = %cell.id, %error, "the file of a segment that was not received whole stays until the next start");
        }
    }
}
