//! Reads a log for a follower: whole batches up to the log's end, committed or not, from memory where they are there.
//!
//! A follower checks what it is sent by the running hash, which goes on from batch to batch. So a reader has a cursor that knows it where the reader stands; a new one finds it in the nearest index
//! entry. What is read comes in parts, each of one segment: a follower begins a segment where the leader did.
//!
//! What a cleaning has rewritten is not read here: a chain of its own leads through it. Such segments are shipped as files.

use std::rc::Rc;

use crate::batch::{BatchIter, HEADER_LEN};
use crate::checksum::running_hash;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::request::{Code, Refusal};
use crate::shard::disk::DataFile;
use crate::shard::net::Outgoing;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::store::Store;
use crate::shard::tail::Chunk;
use crate::shard::truncation::HeaderWalk;
use crate::shard::write_behind;
use crate::types::Offset;

/// Where a follower's reader stands: at the start of a batch, or at the log's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FollowerCursor {
    /// The next batch's offset.
    pub offset: Offset,
    /// Running hash before it.
    pub running_hash: u64,
}

/// Whole batches of one segment, one after the other.
pub struct FollowerPart {
    /// The segment, by base offset. Where that is `base_offset`, the first batch begins it.
    pub segment: Offset,
    /// Offset of the first batch.
    pub base_offset: Offset,
    /// The offset after the last one.
    pub end_offset: Offset,
    /// Running hash after the last one.
    pub running_hash: u64,
    /// It is one batch that has its segment for itself and may be larger than memory: it is received as it came, into a file of its own.
    pub is_adopted: bool,
    /// The batches' bytes.
    pub pieces: Vec<Outgoing>,
    /// How many they are.
    pub bytes: usize,
}

/// Why nothing can be read for a follower.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowerReadError {
    /// A cleaning has rewritten what comes next: the segment is to be shipped.
    #[error("segment {} was rewritten: it is shipped as a file", .0.base_offset)]
    Rewritten(SegmentInfo),
    /// No batch begins there.
    #[error("offset {offset} is within a batch, or outside of the log of {log_start} to {log_end}")]
    NoBatch {
        /// What was asked.
        offset: Offset,
        /// First readable offset.
        log_start: Offset,
        /// Where the log ends.
        log_end: Offset,
    },
    /// The partition or the disk can't, or this node does not lead.
    #[error("{0}")]
    Store(Refusal),
}

impl From<Refusal> for FollowerReadError {
    fn from(refusal: Refusal) -> FollowerReadError {
        FollowerReadError::Store(refusal)
    }
}

impl Store {
    /// A cursor at `offset`, where a batch begins or the log ends.
    ///
    /// # Errors
    /// When no batch begins there, it was rewritten, or it can't be read.
    pub async fn follower_cursor(self: &Rc<Store>, cell: &Rc<PartitionCell>, offset: Offset) -> Result<FollowerCursor, FollowerReadError> {
        let known = {
            let machine = cell.machine.borrow();
            if !(machine.first_offset()..=machine.ladder().appended()).contains(&offset) {
                return Err(no_batch(cell, offset));
            }
            let ends_there = machine.segments().iter().rev().find(|segment| segment.end_offset == offset && segment.base_offset < offset);
            match (ends_there, offset == machine.ladder().appended()) {
                (_, true) => Some(machine.running_hash()),
                (Some(segment), _) => Some(segment.running_hash),
                (None, _) => (offset == 0).then_some(0),
            }
        };
        if let Some(running_hash) = known {
            return Ok(FollowerCursor { offset, running_hash });
        }
        let segment = cell.machine.borrow().segment_of(offset).copied();
        let info = segment.ok_or_else(|| no_batch(cell, offset))?;
        expect_as_appended(&info)?;
        let entry = self.reader.entry_before(cell, &info, offset).await?;
        let start = entry.map(|entry| FollowerCursor { offset: entry.offset, running_hash: entry.running_hash }).or_else(|| {
            let running_hash = cell.machine.borrow().hash_before(info.base_offset)?;
            Some(FollowerCursor { offset: info.base_offset, running_hash })
        });
        let mut cursor = start.ok_or_else(|| no_batch(cell, offset))?;
        while cursor.offset < offset {
            let part = self.read_part(cell, cursor, Offset::MAX, 1).await?.ok_or_else(|| no_batch(cell, offset))?;
            cursor = FollowerCursor { offset: part.end_offset, running_hash: part.running_hash };
        }
        if cursor.offset == offset { Ok(cursor) } else { Err(no_batch(cell, offset)) }
    }

    /// The next batches, of at most `max_bytes`, but at least one if there is one; the cursor is behind them then. Empty at the log's end.
    ///
    /// # Errors
    /// When this node does not lead, what comes was rewritten, or it can't be read.
    pub async fn read_for_follower(
        self: &Rc<Store>,
        cell: &Rc<PartitionCell>,
        cursor: &mut FollowerCursor,
        max_bytes: usize,
    ) -> Result<Vec<FollowerPart>, FollowerReadError> {
        let (mut parts, mut taken, mut at) = (Vec::new(), 0, *cursor);
        while taken < max_bytes {
            let part = match self.read_part(cell, at, Offset::MAX, max_bytes - taken).await {
                Ok(Some(part)) if taken == 0 || taken + part.bytes <= max_bytes => part,
                Ok(_) => break,
                // What is there already is good; the next read hears of it.
                Err(_) if taken > 0 => break,
                Err(error) => return Err(error),
            };
            taken += part.bytes;
            at = FollowerCursor { offset: part.end_offset, running_hash: part.running_hash };
            parts.push(part);
        }
        *cursor = at;
        Ok(parts)
    }

    /// The next batches of one segment, of at most `max_bytes` but at least one, none of which ends after `until`; the cursor is behind them then. `None` where there is none.
    ///
    /// # Errors
    /// As [`Store::read_for_follower`].
    pub async fn read_part_until(
        self: &Rc<Store>,
        cell: &Rc<PartitionCell>,
        cursor: &mut FollowerCursor,
        until: Offset,
        max_bytes: usize,
    ) -> Result<Option<FollowerPart>, FollowerReadError> {
        let part = self.read_part(cell, *cursor, until, max_bytes).await?;
        if let Some(part) = &part {
            *cursor = FollowerCursor { offset: part.end_offset, running_hash: part.running_hash };
        }
        Ok(part)
    }

    /// The file of a whole sealed segment, and where in it the batches from `from` on begin: those before it the follower has.
    ///
    /// # Errors
    /// When it can't be read, or `from` is within a batch.
    pub async fn segment_from(&self, cell: &Rc<PartitionCell>, info: &SegmentInfo, from: Offset) -> Result<(Rc<DataFile>, u64), String> {
        let file = Rc::new(self.disk.open(&info.path(cell.id)).await.map_err(|error| error.to_string())?);
        if from <= info.base_offset {
            return Ok((file, FIRST_POSITION));
        }
        let entry = self.reader.entry_before(cell, info, from).await.map_err(|refusal| refusal.to_string())?;
        let mut at = entry.map_or(FIRST_POSITION, |entry| entry.position);
        {
            let mut headers = HeaderWalk::new(&file);
            while at < info.valid_end {
                let found = headers.at(at).await.map_err(|error| error.to_string())?;
                let (header, _) = found.ok_or_else(|| format!("segment {} holds no batch at {at}", info.base_offset))?;
                if header.base_offset >= from {
                    break;
                }
                if header.next_offset() > from {
                    return Err(format!("offset {from} is within the batch at {at} of segment {}", info.base_offset));
                }
                at += header.total_len() as u64;
            }
        }
        Ok((file, at))
    }

    /// Batches of one segment from one place: memory, or one read.
    async fn read_part(
        self: &Rc<Store>,
        cell: &Rc<PartitionCell>,
        at: FollowerCursor,
        until: Offset,
        room: usize,
    ) -> Result<Option<FollowerPart>, FollowerReadError> {
        if let Some(refusal) = cell.not_served() {
            return Err(refusal.into());
        }
        let Some(info) = cell.machine.borrow().segment_of(at.offset).copied() else { return Ok(None) };
        expect_as_appended(&info)?;
        if info.adopted {
            return self.read_adopted(cell, &info, at).await;
        }
        if let Some(part) = read_tail(cell, &info, at, until, room) {
            return part.map(Some);
        }
        write_behind::bring_in(self, cell, at.offset).await?;
        let run = self.reader.run(cell, at.offset).await?;
        self.reader.read_ahead(self, cell, &run);
        let range = run.from(at.offset, room, info.end_offset.min(until));
        let (mut end, mut hash) = (at.offset, at.running_hash);
        for batch in BatchIter::new(run.part(&range)) {
            let (header, bytes) = batch.map_err(|error| cell.refusal(Code::Storage, error))?;
            if header.base_offset != end {
                return Err(no_batch(cell, at.offset));
            }
            hash = running_hash(hash, bytes.first_chunk::<HEADER_LEN>().expect("a run holds checked batches"));
            end = header.next_offset();
        }
        let bytes = range.len();
        Ok((bytes > 0).then(|| FollowerPart {
            segment: info.base_offset,
            base_offset: at.offset,
            end_offset: end,
            running_hash: hash,
            is_adopted: false,
            pieces: vec![Outgoing::Run(run, range)],
            bytes,
        }))
    }

    async fn read_adopted(
        &self,
        cell: &Rc<PartitionCell>,
        info: &SegmentInfo,
        at: FollowerCursor,
    ) -> Result<Option<FollowerPart>, FollowerReadError> {
        if at.offset != info.base_offset {
            return Err(no_batch(cell, at.offset));
        }
        if cell.durable_end() < info.end_offset {
            // Its file has not got its name yet.
            return Ok(None);
        }
        let (file, bytes) = self.reader.whole_segment(cell, info).await?;
        Ok(Some(FollowerPart {
            segment: info.base_offset,
            base_offset: info.base_offset,
            end_offset: info.end_offset,
            running_hash: info.running_hash,
            is_adopted: true,
            pieces: vec![Outgoing::Segment { file, position: FIRST_POSITION, len: bytes }],
            bytes,
        }))
    }
}

fn expect_as_appended(info: &SegmentInfo) -> Result<(), FollowerReadError> {
    if info.is_rewritten() { Err(FollowerReadError::Rewritten(*info)) } else { Ok(()) }
}

fn no_batch(cell: &PartitionCell, offset: Offset) -> FollowerReadError {
    let machine = cell.machine.borrow();
    FollowerReadError::NoBatch { offset, log_start: machine.log_start(), log_end: machine.ladder().appended() }
}

/// Batches of a segment from memory, at least one; none if the next one is not there.
fn read_tail(
    cell: &PartitionCell,
    info: &SegmentInfo,
    at: FollowerCursor,
    until: Offset,
    room: usize,
) -> Option<Result<FollowerPart, FollowerReadError>> {
    let tail = cell.tail.borrow();
    let mut part = FollowerPart {
        segment: info.base_offset,
        base_offset: at.offset,
        end_offset: at.offset,
        running_hash: at.running_hash,
        is_adopted: false,
        pieces: Vec::new(),
        bytes: 0,
    };
    for chunk in tail.from(at.offset)?.take_while(|chunk| chunk.segment == info.base_offset && chunk.end_offset <= until) {
        if chunk.base_offset != part.end_offset {
            return Some(Err(no_batch(cell, at.offset)));
        }
        if part.bytes > 0 && part.bytes + chunk.batch_len() > room {
            break;
        }
        part.running_hash = running_hash(part.running_hash, &head_of(chunk));
        part.end_offset = chunk.end_offset;
        part.bytes += chunk.batch_len();
        part.pieces.extend(chunk.pieces().map(Outgoing::Tail));
    }
    (part.bytes > 0).then_some(Ok(part))
}

/// The first 61 bytes of a batch in memory: of a large one they may be in two pieces.
fn head_of(chunk: &Chunk) -> [u8; HEADER_LEN] {
    let mut head = [0; HEADER_LEN];
    let mut filled = 0;
    for piece in chunk.pieces() {
        let len = piece.len().min(HEADER_LEN - filled);
        head[filled..filled + len].copy_from_slice(&piece.bytes()[..len]);
        filled += len;
    }
    assert_eq!(filled, HEADER_LEN, "a batch has a header");
    head
}
