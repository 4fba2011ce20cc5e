//! Cutting a log back to where it agrees with a new leader's.
//!
//! ```text
//! appends in flight are durable, everything is flushed: what is cut is in segments, and so is what stays
//!     memory and one journal entry in one step: the log ends earlier; the entry has the surviving bytes of the cut block, and the new epoch
//!     the entry is durable: from here on every recovery has the cut log
//!     the index file is cut, later segments' files go, both durably; appends go on
//! ```
//! A crash before the entry is durable leaves the old log whole, for nothing of it was touched; after it, the cut one. In between there is nothing. The bytes behind the cut stay in the segment until
//! others take their place; the block that is cut is written anew only with the entry, or the next append's, which carries its bytes, in the journal. Index entries from behind the cut must
//! not count again when there are as many later ones, so the file is cut before anything of the partition is flushed again.
//!
//! The segment *before* the cut is open then, even where the cut is at its end: whether a segment begins at an offset is the leader's decision, and the new leader's may be another one.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::io::ReadResult;

use crate::batch::{BatchHeader, HEADER_LEN};
use crate::checksum::running_hash;
use crate::limits::BLOCK;
use crate::log::checkpoint::ProducerSnapshot;
use crate::log::index::{Index, IndexEntry};
use crate::log::journal::{EntryHeader, EntryKind};
use crate::log::lost_producers::LostProducers;
use crate::log::paths;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::partition::{Cut, Plan, ReplicaRefusal};
use crate::request::Code;
use crate::shard::disk::DataFile;
use crate::shard::journal::Urgency;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::replica::ReplicaError;
use crate::shard::segment_files::SegmentFiles;
use crate::shard::store::{Store, now_ms};
use crate::shard::trace::TraceEvent;
use crate::shard::write_behind;
use crate::types::{LeaderEpoch, Offset, Timestamp};

/// Appends in flight are looked at again after this long.
const RECHECK: Duration = Duration::from_millis(10);
/// Headers are read in pieces of this size, bytes.
const PIECE: usize = 64 * 1024;

/// A cut as it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Truncation {
    /// The log's end from then on: where a batch begins, or the log ends.
    pub offset: Offset,
    /// The epoch of the leader that says so.
    pub epoch: LeaderEpoch,
    /// Where that epoch begins, at or behind `offset`.
    pub epoch_start: Offset,
    /// An administrator has chosen a leader that lacks committed records: the cut may be below the watermark.
    pub unclean: bool,
}

/// What is read before the log is cut.
struct Prepared {
    cut: Cut,
    /// The cut block's bytes before the cut.
    surviving: Vec<u8>,
    /// Open files of the segment that stays last, and its index up to the cut.
    files: SegmentFiles,
    index: Index,
    producers: Vec<ProducerSnapshot>,
}

impl Store {
    /// Cuts the log, durably, and begins the epoch with the same journal entry. Where there is nothing to cut the epoch is begun all the same.
    ///
    /// # Errors
    /// When the log can't be cut there, or this node leads: nothing has changed then. When the disk fails.
    pub async fn truncate(self: &Rc<Store>, cell: &Rc<PartitionCell>, asked: Truncation) -> Result<(), ReplicaError> {
        cell.enter().await;
        let result = self.truncate_alone(cell, asked).await;
        cell.leave();
        result
    }

    /// Makes the segment before an open one without a record the open one again.
    pub(super) async fn reopen_segment(self: &Rc<Store>, cell: &Rc<PartitionCell>) -> Result<(), ReplicaError> {
        cell.enter().await;
        let (offset, (epoch, start)) = {
            let machine = cell.machine.borrow();
            (machine.ladder().appended(), machine.epoch_start())
        };
        let asked = Truncation { offset, epoch, epoch_start: start.max(offset), unclean: false };
        let result = self.truncate_alone(cell, asked).await;
        cell.leave();
        result
    }

    async fn truncate_alone(self: &Rc<Store>, cell: &Rc<PartitionCell>, asked: Truncation) -> Result<(), ReplicaError> {
        self.expect_replica(cell)?;
        if check(cell, asked)?.is_none() {
            return self.begin_epoch(cell, asked.epoch, asked.epoch_start).await;
        }
        self.wait_in_flight(cell).await?;
        cell.wait_outside().await;
        cell.enter_flush().await;
        let result = self.cut(cell, asked).await;
        cell.leave_flush();
        self.room.notify();
        result
    }

    /// Forgets the whole log, durably: it goes on at `at` with `running_hash`, where the leader's begins. What is in segments goes.
    ///
    /// # Errors
    /// When this node leads, the partition is gone, or the disk fails.
    pub async fn restart(self: &Rc<Store>, cell: &Rc<PartitionCell>, at: Offset, running_hash: u64) -> Result<(), ReplicaError> {
        cell.enter().await;
        let result = self.restart_alone(cell, at, running_hash).await;
        cell.leave();
        result
    }

    /// Of a damaged log, too: nothing of it is used.
    fn expect_restartable(&self, cell: &PartitionCell) -> Result<(), ReplicaError> {
        if cell.is_damaged() && !cell.role().leads() { Ok(()) } else { self.expect_replica(cell) }
    }

    async fn restart_alone(self: &Rc<Store>, cell: &Rc<PartitionCell>, at: Offset, running_hash: u64) -> Result<(), ReplicaError> {
        self.expect_restartable(cell)?;
        self.wait_in_flight(cell).await?;
        cell.wait_outside().await;
        cell.enter_flush().await;
        let result = self.begin_anew(cell, at, running_hash).await;
        cell.leave_flush();
        self.room.notify();
        result
    }

    async fn begin_anew(&self, cell: &Rc<PartitionCell>, at: Offset, running_hash: u64) -> Result<(), ReplicaError> {
        self.expect_restartable(cell)?;
        // Files that were lost track of may be a reason for damage, so nothing is left of what is there, whether it is known or not.
        let was_damaged = cell.is_damaged();
        // From here to the entry there is no pause: a checkpoint has both or neither.
        self.budget.sub_unflushed(cell.unflushed_bytes());
        let gone = cell.machine.borrow_mut().restart(at, running_hash);
        let plan = Plan { base_offset: at, end_offset: at, segment: at, position: 0, len: 0 };
        let sequence = self.journal.add(&self.entry(cell, EntryKind::Restart, &plan), Urgency::Sync, None, |_| ()).sequence;
        self.forget_entries(cell, cell.tail.borrow_mut().truncate(Offset::MIN));
        *cell.remainder.borrow_mut() = None;
        gone.iter().for_each(|segment| cell.drop_files(segment.base_offset));
        cell.restart(at);
        self.reader.forget_cut(cell.id, Offset::MIN, Offset::MIN);
        self.mark("restart");
        self.wait_durable_or_fail(cell, sequence).await?;
        cell.committed.notify();
        let removed = match was_damaged {
            true => self.remove_all_files(cell).await,
            false => self.remove_cut(cell, &gone).await,
        };
        if let Err(error) = removed {
            self.fail(format!("segments of {}, which begins anew, can't be removed: {error}", cell.id));
            return Err(cell.refusal(Code::Storage, error).into());
        }
        Ok(())
    }

    async fn remove_all_files(&self, cell: &PartitionCell) -> io::Result<()> {
        let directory = paths::partition_dir(cell.id);
        for name in self.disk.list(&directory).await? {
            self.disk.remove(&format!("{directory}/{name}")).await?;
        }
        self.disk.sync_dir(&directory).await
    }

    pub(super) async fn wait_in_flight(&self, cell: &PartitionCell) -> Result<(), ReplicaError> {
        loop {
            let ticket = cell.reached.ticket();
            let Some(oldest) = cell.oldest_in_flight() else { return Ok(()) };
            self.expect_running(cell)?;
            self.wait_durable_or_fail(cell, oldest).await?;
            if cell.oldest_in_flight() == Some(oldest) {
                // Its large batch is on its way to the segment.
                cell.reached.wait_until(ticket, Instant::now() + RECHECK).await;
            }
        }
    }

    async fn cut(self: &Rc<Store>, cell: &Rc<PartitionCell>, asked: Truncation) -> Result<(), ReplicaError> {
        if let Err(error) = write_behind::flush_segments(self, cell, true).await {
            self.fail(format!("write-behind of {}: {error}", cell.id));
            return Err(cell.refusal(Code::Storage, error).into());
        }
        // A deletion may have come while others had the flush.
        self.expect_replica(cell)?;
        let Some(kept) = check(cell, asked)? else { return self.begin_epoch(cell, asked.epoch, asked.epoch_start).await };
        let prepared = self.prepare_cut(cell, &kept, asked.offset).await?;
        self.note_cut(cell, asked.offset, false);
        // From here to the entry there is no pause: a checkpoint has both or neither.
        let gone = {
            let mut machine = cell.machine.borrow_mut();
            let gone = machine.truncate(&prepared.cut, asked.unclean, &prepared.producers, now_ms());
            machine.begin_epoch(asked.epoch, asked.epoch_start).expect("the epoch was checked");
            gone
        };
        cell.epoch_journaled.set(true);
        let sequence = self.journal_cut(cell, &prepared);
        self.forget_entries(cell, cell.tail.borrow_mut().truncate(asked.offset));
        *cell.remainder.borrow_mut() = Some(prepared.surviving).filter(|bytes| !bytes.is_empty());
        gone.iter().chain([&kept]).for_each(|segment| cell.drop_files(segment.base_offset));
        cell.cut_back(asked.offset);
        self.reader.forget_cut(cell.id, kept.base_offset, asked.offset);
        self.mark("truncate");
        self.wait_durable_or_fail(cell, sequence).await?;
        self.note_cut(cell, asked.offset, true);
        if let Err(error) = prepared.files.cut_index(&prepared.index).await {
            // The next start cuts it.
            self.fail(format!("the index of {} can't be cut: {error}", cell.id));
            return Err(cell.refusal(Code::Storage, error).into());
        }
        cell.machine.borrow_mut().restore_index(prepared.index);
        cell.keep_files(kept.base_offset, Rc::new(prepared.files));
        cell.committed.notify();
        if let Err(error) = self.remove_cut(cell, &gone).await {
            self.fail(format!("segments that were cut off of {} can't be removed: {error}", cell.id));
            return Err(cell.refusal(Code::Storage, error).into());
        }
        Ok(())
    }

    fn note_cut(&self, cell: &PartitionCell, offset: Offset, is_done: bool) {
        if let Some(trace) = self.disk.trace() {
            trace.record(&TraceEvent::Cut { partition: cell.id, offset, is_done });
        }
    }

    fn journal_cut(&self, cell: &Rc<PartitionCell>, prepared: &Prepared) -> u64 {
        let (cut, surviving) = (&prepared.cut, &prepared.surviving);
        let (_, epoch_start) = cell.machine.borrow().epoch_start();
        let plan =
            Plan { base_offset: epoch_start, end_offset: cut.offset, segment: cut.segment, position: cut.position, len: surviving.len() };
        let entry = EntryHeader { payload_len: surviving.len() as u32, ..self.entry(cell, EntryKind::Truncate, &plan) };
        self.journal.add(&entry, Urgency::Sync, None, |space| space.copy_from_slice(surviving)).sequence
    }

    /// Removes the files of segments that are not the log's any more, durably: once the log has passed their offsets again, one that comes back would look like a segment that was lost track of.
    async fn remove_cut(&self, cell: &PartitionCell, gone: &[SegmentInfo]) -> io::Result<()> {
        for segment in gone {
            for path in [segment.path(cell.id), segment.index_path(cell.id)] {
                self.disk.remove(&path).await?;
            }
            self.mark("cut segment removed");
        }
        if gone.is_empty() { Ok(()) } else { self.disk.sync_dir(&paths::partition_dir(cell.id)).await }
    }

    /// Reads what the cut needs: where exactly it is, and what producers had before it.
    async fn prepare_cut(&self, cell: &Rc<PartitionCell>, kept: &SegmentInfo, offset: Offset) -> Result<Prepared, ReplicaError> {
        let failed = |error: io::Error| ReplicaError::from(self.disk_refusal(cell, &error));
        let (files, mut index) = SegmentFiles::open(&self.disk, cell.id, kept).await.map_err(failed)?;
        let mut headers = HeaderWalk::new(&files.log);
        let cut = find_cut(cell, kept, &index, offset, &mut headers).await?;
        index.truncate(cut.position);
        let block = cut.position / BLOCK as u64 * BLOCK as u64;
        let len = (cut.position - block) as usize;
        let surviving = match len {
            0 => Vec::new(),
            _ => {
                let bytes = files.log.read(block, BLOCK).await.map_err(failed)?;
                bytes.get(..len).map(<[u8]>::to_vec).ok_or_else(|| failed(short(kept, block)))?
            }
        };
        let producers = self.find_producers(cell, offset).await.map_err(failed)?;
        Ok(Prepared { cut, surviving, files, index, producers })
    }

    /// What the log has, before `offset`, of producers that the cut makes the table forget.
    async fn find_producers(&self, cell: &PartitionCell, offset: Offset) -> io::Result<Vec<ProducerSnapshot>> {
        let mut search = LostProducers::new(cell.machine.borrow().lost_producers(offset), offset);
        let segments: Vec<SegmentInfo> = cell.machine.borrow().segments().iter().rev().copied().collect();
        for segment in segments {
            if !search.wants(&segment) {
                continue;
            }
            let file = self.disk.open(&segment.path(cell.id)).await?;
            let mut headers = HeaderWalk::new(&file);
            let mut at = FIRST_POSITION;
            while at < segment.valid_end {
                let Some((header, _)) = headers.at(at).await? else { break };
                search.handle_batch(&header);
                at += header.total_len() as u64;
            }
            search.end_segment();
            file.close().await?;
        }
        Ok(search.found())
    }
}

/// The segment that the log ends in once it is cut; none where nothing is to be cut.
fn check(cell: &PartitionCell, asked: Truncation) -> Result<Option<SegmentInfo>, ReplicaRefusal> {
    let Truncation { offset, epoch, epoch_start, unclean } = asked;
    let machine = cell.machine.borrow();
    if epoch < machine.epoch() {
        return Err(ReplicaRefusal::Epoch { expected: machine.epoch(), actual: epoch });
    }
    if epoch_start < offset {
        return Err(ReplicaRefusal::EpochStart { epoch, start: epoch_start, log_end: offset });
    }
    machine.cut_segment(offset, unclean)
}

fn short(segment: &SegmentInfo, position: u64) -> io::Error {
    let what = format!("segment {} holds no batch at {position}, its valid end is {}", segment.base_offset, segment.valid_end);
    io::Error::new(io::ErrorKind::UnexpectedEof, what)
}

/// Where in a segment, all of which is on disk, the cut is, and what is true there.
async fn find_cut(
    cell: &PartitionCell,
    kept: &SegmentInfo,
    index: &Index,
    offset: Offset,
    headers: &mut HeaderWalk<'_>,
) -> Result<Cut, ReplicaError> {
    let segment = kept.base_offset;
    if offset >= kept.end_offset {
        let SegmentInfo { valid_end: position, running_hash, max_timestamp: segment_max_timestamp, .. } = *kept;
        return Ok(Cut { offset: kept.end_offset, segment, position, running_hash, segment_max_timestamp });
    }
    let damaged = |what: String| ReplicaError::Store(cell.refusal(Code::Storage, format!("segment {segment}: {what}")));
    let hash_before = cell.machine.borrow().hash_before(segment);
    let first = hash_before.map(|running_hash| IndexEntry {
        offset: segment,
        position: FIRST_POSITION,
        max_timestamp: Timestamp::MIN,
        running_hash,
    });
    let start = index.lookup(offset).or(first).ok_or_else(|| damaged("its running hash is not known".into()))?;
    let mut cut = Cut {
        offset: start.offset,
        segment,
        position: start.position,
        running_hash: start.running_hash,
        segment_max_timestamp: start.max_timestamp,
    };
    while cut.offset < offset {
        let found = headers.at(cut.position).await.map_err(|error| damaged(error.to_string()))?;
        let Some((header, stored)) = found.filter(|(header, _)| header.base_offset == cut.offset && cut.position < kept.valid_end) else {
            return Err(damaged(format!("no batch of offset {} at {}", cut.offset, cut.position)));
        };
        let (batch_start, batch_end) = (header.base_offset, header.next_offset());
        if batch_end > offset {
            return Err(ReplicaRefusal::WithinBatch { offset, batch_start, batch_end }.into());
        }
        cut.offset = batch_end;
        cut.position += header.total_len() as u64;
        cut.running_hash = running_hash(cut.running_hash, &stored);
        cut.segment_max_timestamp = cut.segment_max_timestamp.max(header.max_timestamp);
    }
    Ok(cut)
}

/// Reads batches' headers one after the other.
pub(super) struct HeaderWalk<'a> {
    file: &'a DataFile,
    piece: Option<(u64, ReadResult)>,
}

impl<'a> HeaderWalk<'a> {
    pub(super) fn new(file: &'a DataFile) -> HeaderWalk<'a> {
        HeaderWalk { file, piece: None }
    }

    /// The header at a position, as a value and as it is stored; none where none can be.
    pub(super) async fn at(&mut self, position: u64) -> io::Result<Option<(BatchHeader, [u8; HEADER_LEN])>> {
        let is_inside =
            |(start, bytes): &(u64, ReadResult)| *start <= position && position + HEADER_LEN as u64 <= start + bytes.len() as u64;
        if !self.piece.as_ref().is_some_and(is_inside) {
            let start = position / BLOCK as u64 * BLOCK as u64;
            self.piece = Some((start, self.file.read(start, PIECE).await?));
        }
        let (start, bytes) = self.piece.as_ref().expect("read above");
        let head = bytes.get((position - start) as usize..).and_then(|rest| rest.first_chunk::<HEADER_LEN>());
        Ok(head.and_then(|head| BatchHeader::parse(head).ok().map(|header| (header, *head))))
    }
}
