//! A batch that is too large for memory: received into a file of its own, checked, synced, and adopted as a segment by one journal entry.
//!
//! Offsets are assigned at the adoption, so other producers don't wait while the bytes come in. Until then the file has a temporary name that no
//! entry mentions: a batch with a bad CRC, or a client that goes away, leaves no trace. After the entry the broker-written bytes
//! (base offset, leader epoch) are patched into the first block, and the file is synced and renamed; the acknowledgement waits for both. A crash in
//! between is finished by recovery, which finds in the entry what to patch.

use std::io;
use std::rc::Rc;

use futures_util::future::try_join_all;
use glommio::io::DmaBuffer;

use crate::batch::{self, BatchError, BatchHeader, CRC_START, HEADER_LEN};
use crate::checksum::{Crc32c, crc32c, crc32c_combine};
use crate::limits::BLOCK;
use crate::log::files::is_no_space;
use crate::log::journal::{Adopt, EntryHeader, EntryKind};
use crate::log::paths;
use crate::log::segment::SegmentInfo;
use crate::metrics::Counter;
use crate::partition::{Plan, Planned, ReplicaRefusal};
use crate::request::{Code, Refusal};
use crate::shard::disk::DataFile;
use crate::shard::journal::Urgency;
use crate::shard::partition_cell::{DirectWrite, PartitionCell, Tracked};
use crate::shard::pending::Completion;
use crate::shard::produce::batch_refusal;
use crate::shard::replica::{Origin, ReplicaError};
use crate::shard::ring::{filled, take_filled};
use crate::shard::store::{Store, no_space, now_ms};
use crate::types::{LeaderEpoch, Offset};

/// Size of a piece of memory, bytes.
const PIECE: usize = 1 << 20;
/// Pieces that are being written while the next is received.
const IN_FLIGHT: usize = 2;

/// Memory of one batch on its way, bytes.
pub const MEMORY: usize = PIECE * (IN_FLIGHT + 1);

/// A batch on its way into a file.
pub struct Adoption {
    store: Rc<Store>,
    cell: Rc<PartitionCell>,
    id: u64,
    file: Rc<DataFile>,
    len: usize,
    received: usize,
    memory: DmaBuffer,
    filled: usize,
    /// Where `memory` goes.
    position: u64,
    /// The first block of the batch, for the patch.
    first: Vec<u8>,
    /// CRC-32C of the bytes behind the header.
    body_crc: Crc32c,
    writes: Vec<glommio::Task<io::Result<()>>>,
}

impl Adoption {
    /// A file for a batch of `len` bytes, with blocks for all of it.
    pub async fn begin(store: &Rc<Store>, cell: &Rc<PartitionCell>, len: usize) -> Result<Adoption, Refusal> {
        store.expect_space(cell)?;
        let id = store.next_adoption();
        let file = Rc::new(Adoption::create(store, cell, id).await?);
        if let Err(error) = file.allocate((BLOCK + len).next_multiple_of(BLOCK) as u64).await {
            let _ = store.disk.remove(&paths::adopted(cell.id, id)).await;
            return Err(Adoption::refusal(store, cell, &error));
        }
        Ok(Adoption {
            store: store.clone(),
            cell: cell.clone(),
            id,
            file,
            len,
            received: 0,
            memory: glommio::allocate_dma_buffer_global(PIECE),
            filled: 0,
            position: BLOCK as u64,
            first: Vec::with_capacity(BLOCK),
            body_crc: Crc32c::new(),
            writes: Vec::new(),
        })
    }

    /// The file. Not while the partition is being deleted: the deletion would not see a directory that is made behind it.
    async fn create(store: &Rc<Store>, cell: &Rc<PartitionCell>, id: u64) -> Result<DataFile, Refusal> {
        cell.enter().await;
        let create = async {
            store.make_directory(cell).await?;
            store.disk.create(&paths::adopted(cell.id, id)).await
        };
        let made = match cell.gone() {
            Some(refusal) => Err(refusal),
            None => create.await.map_err(|error| Adoption::refusal(store, cell, &error)),
        };
        cell.leave();
        made
    }

    /// That there is no room for something this large does not make the disk full for others.
    fn refusal(store: &Store, cell: &PartitionCell, error: &io::Error) -> Refusal {
        if is_no_space(error) { no_space(cell) } else { store.disk_refusal(cell, error) }
    }

    /// Memory for at most `left` more bytes of the batch.
    pub fn space(&mut self, left: usize) -> &mut [u8] {
        let from = self.filled;
        let to = (from + left).min(PIECE);
        &mut self.memory.as_bytes_mut()[from..to]
    }

    /// `received` bytes were put there.
    pub async fn advance(&mut self, received: usize) {
        let bytes = &self.memory.as_bytes()[self.filled..self.filled + received];
        let header_left = HEADER_LEN.saturating_sub(self.received).min(received);
        self.body_crc.update(&bytes[header_left..]);
        let first_left = (BLOCK - self.first.len()).min(received);
        self.first.extend_from_slice(&bytes[..first_left]);
        self.filled += received;
        self.received += received;
        if self.filled == PIECE || self.received == self.len {
            self.write().await;
        }
    }

    async fn write(&mut self) {
        let memory = take_filled(&mut self.memory, std::mem::take(&mut self.filled), PIECE);
        let (file, position) = (self.file.clone(), self.position);
        self.position += memory.len() as u64;
        if self.writes.len() == IN_FLIGHT {
            // A failure shows again at the end: the sync reports it, or the next write does.
            if let Err(error) = self.writes.remove(0).await {
                self.store.fail(format!("adopted append to {}: {error}", self.cell.id));
            }
        }
        self.writes.push(glommio::spawn_local(async move { file.write(memory, position).await }));
    }

    /// Leaves no trace.
    pub async fn abandon(self) {
        for write in self.writes {
            let _ = write.await;
        }
        if let Err(error) = self.store.disk.remove(&paths::adopted(self.cell.id, self.id)).await {
            tracing::warn!(%error, "the file of an abandoned batch stays until the next start");
        }
    }

    /// Everything was received: the bytes are synced, and the name.
    async fn sync(&mut self) -> Result<(), Refusal> {
        let writes = std::mem::take(&mut self.writes);
        let synced = async {
            try_join_all(writes).await?;
            self.file.sync().await?;
            // The name too: from the moment at which the journal's entry counts, the file must be there.
            self.store.disk.sync_dir(&paths::partition_dir(self.cell.id)).await
        };
        // A deletion while the bytes came in has taken file and directory.
        synced.await.map_err(|error| self.cell.gone().unwrap_or_else(|| self.store.disk_refusal(&self.cell, &error)))
    }

    /// The CRC of what was received.
    fn computed_crc(&self) -> u32 {
        crc32c_combine(crc32c(&self.first[CRC_START..HEADER_LEN]), self.body_crc.finish(), (self.len - HEADER_LEN) as u64)
    }

    /// Checks the batch, syncs it and adopts it. `crc` is the one that came behind the batch, if it did.
    pub async fn finish(mut self, crc: Option<u32>, done: Completion) {
        if let Err(refusal) = self.sync().await {
            self.abandon().await;
            return done.complete(Err(refusal));
        }
        if let Some(crc) = crc {
            batch::stamp_crc(&mut self.first, crc);
        }
        let computed = self.computed_crc();
        match batch::check_ingress_computed(&self.first, self.len, self.cell.settings.get().max_message_bytes, computed) {
            Ok(header) => self.adopt(header, done).await,
            Err(error) => {
                done.complete(Err(batch_refusal(&self.cell, &error)));
                self.abandon().await;
            }
        }
    }

    /// As [`Adoption::finish`] of a batch that the leader of `epoch` sends: it is stored as it is, if it fits the log and leads to the leader's `running_hash`. Returns the log's end; the batch
    /// is durable.
    ///
    /// # Errors
    /// When it does not fit: there is no trace of it then. When the disk fails.
    pub async fn finish_replica(mut self, epoch: LeaderEpoch, running_hash: u64) -> Result<Offset, ReplicaError> {
        let (store, cell) = (self.store.clone(), self.cell.clone());
        let whole = self.received == self.len && self.len >= HEADER_LEN;
        let synced = match whole {
            true => self.sync().await.map_err(ReplicaError::Store),
            false => Err(ReplicaError::Store(cell.refusal(Code::InvalidRequest, format!("{} of {} bytes came", self.received, self.len)))),
        };
        cell.enter().await;
        let checked = synced.and_then(|()| self.check_replica(epoch, running_hash));
        let (header, plan, stored) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                cell.leave();
                self.abandon().await;
                return Err(error);
            }
        };
        self.take(&header, &plan, stored, Origin::Leader).await;
        store.wait_reached(&cell, plan.end_offset).await
    }

    fn check_replica(&self, epoch: LeaderEpoch, running_hash: u64) -> Result<(BatchHeader, Plan, [u8; HEADER_LEN]), ReplicaError> {
        self.store.expect_following(&self.cell, epoch)?;
        let mut stored = [0; HEADER_LEN];
        stored.copy_from_slice(&self.first[..HEADER_LEN]);
        let (header, plan) = self.cell.machine.borrow().check_replica_head(&stored, epoch, running_hash)?;
        let whole = match header.total_len() == self.len {
            true => header.check_crc(self.computed_crc()),
            false => Err(BatchError::NotOneBatch { batch: header.total_len(), available: self.len }),
        };
        whole.map_err(|error| ReplicaRefusal::Batch { offset: plan.base_offset, error })?;
        Ok((header, plan, stored))
    }

    async fn adopt(mut self, mut header: BatchHeader, done: Completion) {
        let cell = self.cell.clone();
        cell.enter().await;
        let now = now_ms();
        let settings = cell.settings.get();
        let planned = cell.machine.borrow().plan_adoption(&header, self.len, now, &settings);
        let plan = match cell.not_served().map_or(planned, Planned::Refused) {
            Planned::Append(plan) => plan,
            Planned::Duplicate { base_offset, end_offset } => {
                cell.leave();
                cell.track_duplicate(base_offset, end_offset, done);
                return self.abandon().await;
            }
            Planned::Refused(refusal) => {
                cell.leave();
                done.complete(Err(refusal));
                return self.abandon().await;
            }
            Planned::Roll => unreachable!("an adoption brings its own segment"),
        };
        if settings.log_append_time {
            let stamp = now.max(cell.machine.borrow().max_timestamp());
            batch::stamp_log_append_time_head(&mut self.first, stamp).expect("a checked head");
            let crc = crc32c_combine(crc32c(&self.first[CRC_START..HEADER_LEN]), self.body_crc.finish(), (self.len - HEADER_LEN) as u64);
            batch::stamp_crc(&mut self.first, crc);
            header = BatchHeader::parse(&self.first).expect("a checked head with another timestamp");
        }
        batch::stamp(&mut self.first, plan.base_offset, cell.machine.borrow().epoch());
        let mut stored = [0; HEADER_LEN];
        stored.copy_from_slice(&self.first[..HEADER_LEN]);
        self.take(&header, &plan, stored, Origin::Client(done)).await;
    }

    /// Takes the file into the log as a segment; the caller has the cell's `busy`, which ends here.
    async fn take(self, header: &BatchHeader, plan: &Plan, stored: [u8; HEADER_LEN], origin: Origin) {
        let (store, cell) = (self.store.clone(), self.cell.clone());
        let direct = Rc::new(DirectWrite::in_file_only());
        let adopted = Adopt { id: self.id, file_len: self.position, header: stored };
        let sequence = store.adopt(&cell, plan, header, adopted, &origin);
        cell.track(Tracked {
            base_offset: plan.base_offset,
            end_offset: plan.end_offset,
            count: header.record_count as u32,
            crc: header.crc,
            segment: plan.segment,
            position: plan.position,
            sequence,
            log_append_time: header.append_time(),
            direct: Some(direct.clone()),
            completion: origin.completion(),
        });
        store.journal.begin_outside(sequence);
        let _outside = cell.begin_outside();
        let info = *cell.machine.borrow().segments().back().expect("adopted just now");
        let index = cell.machine.borrow().index().clone();
        cell.leave();
        store.metrics.add(Counter::AdoptedAppends, 1);
        store.metrics.add(Counter::SegmentBytes, self.position);
        let mut settled = self.settle(&info, &index).await;
        if let Err(error) = &settled
            && store.make_space(error).await
        {
            // The batch is journaled: its index and its name must come to be.
            settled = self.settle(&info, &index).await;
        }
        if let Err(error) = settled {
            return store.fail(format!("adoption into {}: {error}", cell.id));
        }
        direct.written.set(true);
        direct.durable.set(true);
        store.journal.end_outside(sequence);
        cell.advance(store.journal.written(), store.journal.durable());
        store.write_behind.notify();
    }

    /// Gives the file its header, its broker-written bytes, its index and its name, all durable.
    async fn settle(&self, info: &SegmentInfo, index: &crate::log::index::Index) -> io::Result<()> {
        let disk = &self.store.disk;
        let mut front = info.header_block(self.cell.id);
        front.extend_from_slice(&self.first);
        self.file.write(filled(&front), 0).await?;
        let index_path = paths::index(self.cell.id, info.base_offset);
        disk.remove(&index_path).await?;
        let index_file = disk.create(&index_path).await?;
        index_file.write(filled(&info.index_header_block(self.cell.id)), 0).await?;
        if let Some(blocks) = index.blocks_from(0) {
            index_file.write(filled(&blocks.bytes), blocks.position).await?;
        }
        futures_util::try_join!(self.file.sync(), index_file.sync())?;
        index_file.close().await?;
        disk.rename(&paths::adopted(self.cell.id, self.id), &paths::segment(self.cell.id, info.base_offset)).await?;
        disk.sync_dir(&paths::partition_dir(self.cell.id)).await
    }
}

impl Store {
    /// Takes an adopted file into the log: seals the open segment, journals, moves the log's end.
    fn adopt(&self, cell: &Rc<PartitionCell>, plan: &Plan, header: &BatchHeader, adopt: Adopt, origin: &Origin) -> u64 {
        match origin {
            Origin::Client(_) => self.journal_epoch(cell, plan),
            // Its own entry says its epoch.
            Origin::Leader => cell.machine.borrow_mut().note_batch_epoch(header),
        }
        let sealed = cell.machine.borrow_mut().adopt(plan, &adopt.header, header, now_ms());
        // An open segment without records is replaced by the adopted one.
        cell.drop_files(plan.segment);
        if let Some(sealed) = sealed {
            self.sealed(cell, sealed);
        }
        *cell.remainder.borrow_mut() = None;
        let payload = adopt.encode();
        let leader_epoch = origin.epoch(cell, header);
        let entry = EntryHeader { payload_len: payload.len() as u32, leader_epoch, ..self.entry(cell, EntryKind::Adopt, plan) };
        self.mark("adopt");
        self.journal.add(&entry, Urgency::Sync, Some(cell), |space| space.copy_from_slice(&payload)).sequence
    }
}
