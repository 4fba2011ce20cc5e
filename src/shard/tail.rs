//! The memory of one partition: batches that are not in a segment yet, and behind them, while there is room, batches that are.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::limits::BLOCK;
use crate::shard::buffer::{AppendBuffer, Piece};
use crate::types::Offset;

/// One appended batch in memory.
pub struct Chunk {
    /// First offset.
    pub base_offset: Offset,
    /// One past its last offset.
    pub end_offset: Offset,
    /// Segment by base offset.
    pub segment: Offset,
    /// Position in the segment of the first byte of `front`.
    pub position: u64,
    /// How many bytes of `front` belong to earlier batches (the cut block that it carries).
    pub carried: usize,
    /// From the journal group: carried bytes, then the batch, or as much of it as comes before the first block boundary if it is large.
    pub front: Piece,
    /// The rest of a large batch, from a block boundary.
    pub body: Option<Piece>,
    /// Journal group that holds `front` and the ragged end of `body`.
    pub sequence: u64,
}

impl Chunk {
    /// Position of the batch's first byte.
    pub fn batch_position(&self) -> u64 {
        self.position + self.carried as u64
    }

    /// Position after the batch's last byte.
    pub fn end_position(&self) -> u64 {
        self.position + self.front.len() as u64 + self.body.as_ref().map_or(0, |b| b.len() as u64)
    }

    /// Bytes of the batch.
    pub fn batch_len(&self) -> usize {
        (self.end_position() - self.batch_position()) as usize
    }

    /// The batch, in one or two pieces.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let front = self.front.part(self.carried..self.front.len());
        [Some(front), self.body.clone()].into_iter().flatten().filter(|p| !p.is_empty())
    }

    /// Whole blocks that went straight to the segment: (from, to).
    pub fn direct(&self) -> Option<(u64, u64)> {
        self.body.as_ref()?;
        let from = self.position + self.front.len() as u64;
        Some((from, self.end_position() / BLOCK as u64 * BLOCK as u64))
    }

    /// The bytes of this chunk (carried ones too) that lie in [from, to) of the segment, with their position.
    pub fn range(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, Piece)> + '_ {
        let front_end = self.position + self.front.len() as u64;
        let parts = [Some((self.position, &self.front)), self.body.as_ref().map(|b| (front_end, b))];
        parts.into_iter().flatten().filter_map(move |(position, piece)| {
            let (start, end) = (from.max(position), to.min(position + piece.len() as u64));
            (start < end).then(|| (start, piece.part((start - position) as usize..(end - position) as usize)))
        })
    }
}

/// Chunks in order of offset.
#[derive(Default)]
pub struct Tail {
    chunks: VecDeque<Chunk>,
    /// Bytes of batches held.
    bytes: usize,
}

impl Tail {
    /// Adds the newest batch.
    pub fn push(&mut self, chunk: Chunk) {
        self.bytes += chunk.batch_len();
        self.chunks.push_back(chunk);
    }

    /// Bytes of batches held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The chunks from the first one on that ends behind (segment, position).
    pub fn reaching_past(&self, segment: Offset, position: u64) -> impl Iterator<Item = &Chunk> {
        self.chunks.range(self.first_past((segment, position))..)
    }

    /// As [`Tail::reaching_past`], for giving those that were copied forward their new group.
    pub fn reaching_past_mut(&mut self, segment: Offset, position: u64) -> impl Iterator<Item = &mut Chunk> {
        let first = self.first_past((segment, position));
        self.chunks.range_mut(first..)
    }

    fn first_past(&self, position: (Offset, u64)) -> usize {
        self.chunks.partition_point(|c| (c.segment, c.end_position()) <= position)
    }

    /// The first offset held.
    pub fn first_offset(&self) -> Option<Offset> {
        self.chunks.front().map(|c| c.base_offset)
    }

    /// The chunks from the one that holds `offset` on, as far as they follow each other (an adopted batch between them is only on disk);
    /// `None` if it is not held.
    pub fn from(&self, offset: Offset) -> Option<impl Iterator<Item = &Chunk>> {
        let at = self.chunks.partition_point(|c| c.end_offset <= offset);
        let mut next = self.chunks.get(at)?.base_offset;
        let held = next <= offset;
        held.then(|| self.chunks.range(at..).take_while(move |c| std::mem::replace(&mut next, c.end_offset) == c.base_offset))
    }

    /// The oldest chunk, if it is wholly below (segment, position) and may be let go.
    pub fn pop_flushed(&mut self, flushed: (Offset, u64)) -> Option<Chunk> {
        let first = self.chunks.front()?;
        let below = first.segment < flushed.0 || (first.segment == flushed.0 && first.end_position() <= flushed.1);
        if !below {
            return None;
        }
        let chunk = self.chunks.pop_front()?;
        self.bytes -= chunk.batch_len();
        Some(chunk)
    }

    /// Gives the oldest chunk memory of its own, if it shares a larger buffer and is a small one; false if there is no chunk.
    pub fn copy_out_first(&mut self, accounted: &Rc<Cell<usize>>) -> bool {
        let Some(first) = self.chunks.front_mut() else { return false };
        if first.body.is_none() && first.front.pinned() > first.front.len().next_multiple_of(BLOCK) {
            let copy = Rc::new(AppendBuffer::new(first.front.len(), 0, accounted));
            let range = copy.push(first.front.bytes());
            first.front = Piece::new(copy, range);
        }
        true
    }

    /// Group of the oldest byte that is not flushed.
    pub fn oldest_unflushed(&self, flushed: (Offset, u64)) -> Option<u64> {
        self.reaching_past(flushed.0, flushed.1).map(|c| c.sequence).min()
    }

    /// Bytes of batches at or after (segment, position), but for blocks that went straight to the segment.
    pub fn unflushed_bytes(&self, flushed: (Offset, u64)) -> usize {
        let bytes = |c: &Chunk| {
            let from = if c.segment == flushed.0 { c.batch_position().max(flushed.1) } else { c.batch_position() };
            let direct = c.direct().map_or(0, |(start, end)| end.saturating_sub(start.max(from)));
            (c.end_position() - from - direct) as usize
        };
        self.reaching_past(flushed.0, flushed.1).map(bytes).sum()
    }

    /// Lets everything go that ends at or below `offset` (it was deleted); how many batches that were.
    pub fn forget_below(&mut self, offset: Offset) -> usize {
        let before = self.chunks.len();
        while self.chunks.front().is_some_and(|c| c.end_offset <= offset) {
            let gone = self.chunks.pop_front().expect("checked");
            self.bytes -= gone.batch_len();
        }
        before - self.chunks.len()
    }

    /// Lets everything go that ends above `offset` (the log was cut there).
    pub fn truncate(&mut self, offset: Offset) {
        while self.chunks.back().is_some_and(|c| c.end_offset > offset) {
            let gone = self.chunks.pop_back().expect("checked");
            self.bytes -= gone.batch_len();
        }
    }
}
