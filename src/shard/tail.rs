//! The memory of one partition: batches that are not in a segment yet, and behind them, while there is room, batches that are.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::limits::BLOCK;
use crate::shard::buffer::{AppendBuffer, Piece};
use crate::types::Offset;

/// Batches that were left out behind which one that is held is looked for.
const LOOKED_AT: usize = 64;

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
    pub body: Option<Body>,
    /// Journal group that holds `front` and the ragged end of `body`.
    pub sequence: u64,
}

/// The part of a large batch whose whole blocks went straight to the segment.
pub enum Body {
    /// All of it.
    Held(Piece),
    /// The whole blocks were given up once they were durable, long before the rest needs to be flushed; this is the ragged end.
    LeftOut {
        /// Bytes of the whole blocks.
        direct_len: usize,
        /// What comes behind them.
        end: Piece,
    },
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Body::Held(piece) => piece.len(),
            Body::LeftOut { direct_len, end } => direct_len + end.len(),
        }
    }

    /// The bytes behind the last whole block.
    pub fn ragged_end(&self) -> Piece {
        match self {
            Body::Held(piece) => piece.part(piece.len() / BLOCK * BLOCK..piece.len()),
            Body::LeftOut { end, .. } => end.clone(),
        }
    }
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

    /// Whether its whole blocks are not in memory any more.
    fn is_left_out(&self) -> bool {
        matches!(self.body, Some(Body::LeftOut { .. }))
    }

    /// Bytes of the batch.
    pub fn batch_len(&self) -> usize {
        (self.end_position() - self.batch_position()) as usize
    }

    /// The batch, in one or two pieces.
    ///
    /// # Panics
    /// When its whole blocks are not in memory any more: [`Tail::from`] gives no such chunk.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let front = self.front.part(self.carried..self.front.len());
        let body = self.body.as_ref().map(|body| match body {
            Body::Held(piece) => piece.clone(),
            Body::LeftOut { .. } => panic!("a batch that was left out is read from its segment"),
        });
        [Some(front), body].into_iter().flatten().filter(|p| !p.is_empty())
    }

    /// Whole blocks that went straight to the segment: (from, to).
    pub fn direct(&self) -> Option<(u64, u64)> {
        self.body.as_ref()?;
        let from = self.position + self.front.len() as u64;
        Some((from, self.end_position() / BLOCK as u64 * BLOCK as u64))
    }

    /// The bytes of this chunk (carried ones too, but not those that were left out) that lie in [from, to) of the segment, with their position.
    pub fn range(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, Piece)> + '_ {
        let front_end = self.position + self.front.len() as u64;
        let body = self.body.as_ref().map(|body| match body {
            Body::Held(piece) => (front_end, piece),
            Body::LeftOut { direct_len, end } => (front_end + *direct_len as u64, end),
        });
        let parts = [Some((self.position, &self.front)), body];
        parts.into_iter().flatten().filter_map(move |(position, piece)| {
            let (start, end) = (from.max(position), to.min(position + piece.len() as u64));
            (start < end).then(|| (start, piece.part((start - position) as usize..(end - position) as usize)))
        })
    }
}

/// Chunks in order of offset.
///
/// A large batch that is durable can leave all but its ragged ends before it is flushed ([`Tail::leave_out_next`]): flushing costs syncs, and the more
/// batches of a partition are flushed at once, the fewer. Nobody reads such a batch from here, and it goes with the flush.
#[derive(Default)]
pub struct Tail {
    chunks: VecDeque<Chunk>,
    /// Bytes of batches held.
    bytes: usize,
    /// How many batches are held.
    held: usize,
    /// First offsets of large batches that are held, in order.
    large: VecDeque<Offset>,
}

impl Tail {
    /// Adds the newest batch.
    pub fn push(&mut self, chunk: Chunk) {
        self.bytes += chunk.batch_len();
        self.held += 1;
        if chunk.body.is_some() {
            self.large.push_back(chunk.base_offset);
        }
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

    /// The first offset of which something is here; every offset that is not flushed is.
    pub fn first_offset(&self) -> Option<Offset> {
        self.chunks.front().map(|c| c.base_offset)
    }

    /// Whether a whole batch is held.
    pub fn holds_any(&self) -> bool {
        self.held > 0
    }

    /// Bytes of the batch of `offset`, if it was left out and is not wholly below `flushed`: it can be read from nowhere before it is.
    pub fn left_out(&self, offset: Offset, flushed: (Offset, u64)) -> Option<usize> {
        let at = self.chunks.partition_point(|c| c.end_offset <= offset);
        let batch = self.chunks.get(at).filter(|c| c.is_left_out() && c.base_offset <= offset)?;
        ((batch.segment, batch.end_position()) > flushed).then(|| batch.batch_len())
    }

    /// The chunks from the one that holds `offset` on, as far as they follow each other (an adopted batch between them is only on disk);
    /// `None` if it is not held.
    pub fn from(&self, offset: Offset) -> Option<impl Iterator<Item = &Chunk>> {
        let at = self.chunks.partition_point(|c| c.end_offset <= offset);
        let first = self.chunks.get(at)?;
        let mut next = first.base_offset;
        let held = next <= offset && !first.is_left_out();
        let follows = move |c: &&Chunk| !c.is_left_out() && std::mem::replace(&mut next, c.end_offset) == c.base_offset;
        held.then(|| self.chunks.range(at..).take_while(follows))
    }

    /// Lets the oldest batch go that is held, if everything up to its end is below `flushed`; whether it went.
    pub fn evict_flushed(&mut self, flushed: (Offset, u64)) -> bool {
        self.drop_left_out(flushed);
        self.is_first_flushed(flushed) && self.pop_first()
    }

    /// Lets the oldest batches go that were left out and are wholly below `flushed`.
    pub fn drop_left_out(&mut self, flushed: (Offset, u64)) {
        while self.is_first_flushed(flushed) && self.chunks[0].is_left_out() {
            self.pop_first();
        }
    }

    fn is_first_flushed(&self, flushed: (Offset, u64)) -> bool {
        self.chunks.front().is_some_and(|first| (first.segment, first.end_position()) <= flushed)
    }

    /// Lets the oldest batch go; whether there was one that was held.
    fn pop_first(&mut self) -> bool {
        let Some(gone) = self.chunks.pop_front().filter(|c| !c.is_left_out()) else { return false };
        self.bytes -= gone.batch_len();
        self.held -= 1;
        if gone.body.is_some() {
            self.large.pop_front();
        }
        true
    }

    /// Leaves out the oldest large batch that is held, if it ends at or below `durable`: its ragged ends get memory of their own. Whether that was done.
    pub fn leave_out_next(&mut self, durable: Offset, accounted: &Rc<Cell<usize>>) -> bool {
        let Some(offset) = self.large.front() else { return false };
        let at = self.chunks.partition_point(|c| c.base_offset < *offset);
        let next = &mut self.chunks[at];
        let Some(body @ Body::Held(_)) = next.body.as_ref().filter(|_| next.end_offset <= durable) else { return false };
        let end = body.ragged_end();
        let direct_len = body.len() - end.len();
        let copy = Rc::new(AppendBuffer::new(next.front.len() + end.len(), 0, accounted));
        let (front, end) = (copy.push(next.front.bytes()), copy.push(end.bytes()));
        self.bytes -= next.batch_len();
        next.front = Piece::new(copy.clone(), front);
        next.body = Some(Body::LeftOut { direct_len, end: Piece::new(copy, end) });
        self.held -= 1;
        self.large.pop_front();
        true
    }

    /// Gives the oldest chunk memory of its own, if it shares a larger buffer and is a small one; false if no batch is held.
    pub fn copy_out_first(&mut self, accounted: &Rc<Cell<usize>>) -> bool {
        if self.held == 0 {
            return false;
        }
        let Some(first) = self.chunks.iter_mut().take(LOOKED_AT).find(|c| !c.is_left_out()) else { return true };
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

    /// Lets everything go that ends at or below `offset` (it was deleted); how many batches that were held went.
    pub fn forget_below(&mut self, offset: Offset) -> usize {
        let before = self.held;
        while self.chunks.front().is_some_and(|c| c.end_offset <= offset) {
            self.pop_first();
        }
        before - self.held
    }

    /// Lets everything go that ends above `offset` (the log was cut there); how many batches that were held went.
    pub fn truncate(&mut self, offset: Offset) -> usize {
        let before = self.held;
        while let Some(gone) = self.chunks.pop_back_if(|c| c.end_offset > offset) {
            if !gone.is_left_out() {
                self.bytes -= gone.batch_len();
                self.held -= 1;
                self.large.pop_back_if(|first| *first == gone.base_offset);
            }
        }
        before - self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tail of large batches of 100 records: each 3 blocks and ragged ends, back to back from position 4096.
    fn tail(batches: i64, accounted: &Rc<Cell<usize>>) -> Tail {
        let mut tail = Tail::default();
        let mut position = BLOCK as u64;
        for i in 0..batches {
            // The front ends at a block boundary, 1000 bytes of the batch (or nothing) before it.
            let front_len = (position.next_multiple_of(BLOCK as u64) - position) as usize;
            let memory = Rc::new(AppendBuffer::new(64 * BLOCK, 0, accounted));
            let front = memory.push_with(front_len, |space| space.fill(i as u8 + 1));
            let body = memory.push_with(3 * BLOCK + 3096, |space| space.fill(i as u8 + 101));
            let chunk = Chunk {
                base_offset: i * 100,
                end_offset: (i + 1) * 100,
                segment: 0,
                position,
                carried: 0,
                front: Piece::new(memory.clone(), front),
                body: Some(Body::Held(Piece::new(memory, body))),
                sequence: i as u64 + 1,
            };
            position = chunk.end_position();
            tail.push(chunk);
        }
        tail
    }

    #[test]
    fn what_is_left_out_keeps_its_ragged_ends_until_it_is_flushed() {
        let accounted = Rc::default();
        let mut tail = tail(3, &accounted);
        let all = tail.bytes();
        let unflushed = tail.unflushed_bytes((0, BLOCK as u64));
        assert!(!tail.leave_out_next(99, &accounted), "it is not durable");
        assert!(tail.leave_out_next(200, &accounted) && tail.leave_out_next(200, &accounted) && !tail.leave_out_next(200, &accounted));
        assert_eq!(accounted.get(), (1 + 1 + 64) * BLOCK);
        assert_eq!(tail.unflushed_bytes((0, BLOCK as u64)), unflushed, "as much is to be flushed as before");
        assert_eq!(tail.first_offset(), Some(0));
        let start = (0, BLOCK as u64);
        assert_eq!([0, 199, 200].map(|offset| tail.left_out(offset, start)), [Some(15_384), Some(16_384), None]);
        assert_eq!(tail.left_out(0, (0, 5 * BLOCK as u64)), None, "it is flushed");
        assert!(tail.from(0).is_none() && tail.from(150).is_none());
        assert_eq!(tail.from(200).map(Iterator::count), Some(1));
        // The block that the first two batches share.
        let shared: Vec<_> = tail.chunks.iter().flat_map(|c| c.range(4 * BLOCK as u64, 5 * BLOCK as u64)).collect();
        let seen: Vec<_> = shared.iter().map(|(position, piece)| (*position - 4 * BLOCK as u64, piece.len(), piece.bytes()[0])).collect();
        assert_eq!(seen, [(0, 3096, 101), (3096, 1000, 2)]);
        // Flushed in the middle of the second one: the first one goes.
        assert!(!tail.evict_flushed((0, 6 * BLOCK as u64)));
        assert_eq!((tail.first_offset(), tail.chunks.len()), (Some(100), 2));
        assert!(tail.evict_flushed((0, u64::MAX)), "the third one");
        assert_eq!((tail.first_offset(), tail.bytes()), (None, 0));
        drop((tail, shared));
        assert!(all > 0 && accounted.get() == 0);
    }

    #[test]
    fn a_small_batch_in_front_keeps_no_large_one_in_memory() {
        let accounted = Rc::default();
        let mut tail = tail(2, &accounted);
        let memory = Rc::new(AppendBuffer::new(100, 0, &accounted));
        let range = memory.push(&[7; 100]);
        let small = |base_offset| Chunk {
            base_offset,
            end_offset: base_offset + 1,
            segment: 0,
            position: 1 << 20,
            carried: 0,
            front: Piece::new(memory.clone(), range.clone()),
            body: None,
            sequence: 9,
        };
        let large = tail.chunks.pop_back().expect("two");
        tail.held -= 1;
        tail.large.pop_back();
        tail.push(small(100));
        tail.push(Chunk { base_offset: 101, end_offset: 201, ..large });
        assert!(tail.leave_out_next(201, &accounted) && tail.leave_out_next(201, &accounted) && !tail.leave_out_next(201, &accounted));
        let readable = |tail: &Tail, offset| tail.from(offset).map_or(0, Iterator::count);
        assert_eq!((readable(&tail, 0), readable(&tail, 100), readable(&tail, 101)), (0, 1, 0), "only the small one");
        assert!(tail.holds_any());
        assert!(tail.evict_flushed((1, 0)) && !tail.holds_any(), "the large one in front goes with it");
        tail.drop_left_out((1, 0));
        assert_eq!(tail.first_offset(), None);
    }

    #[test]
    fn deletion_and_truncation_count_what_was_held_only() {
        let accounted = Rc::default();
        let mut first = tail(4, &accounted);
        assert!(first.leave_out_next(400, &accounted) && first.leave_out_next(400, &accounted));
        assert_eq!(first.forget_below(300), 1, "two of the three were left out");
        assert!(first.holds_any() && first.left_out(300, (0, 0)).is_none());
        assert_eq!(first.forget_below(400), 1);
        assert_eq!((first.holds_any(), first.bytes()), (false, 0));
        let mut second = tail(4, &accounted);
        assert!(second.leave_out_next(400, &accounted) && second.leave_out_next(400, &accounted));
        second.truncate(100);
        assert_eq!((second.holds_any(), second.left_out(50, (0, 0)).is_some(), second.bytes()), (false, true, 0));
        assert_eq!(second.forget_below(100), 0);
    }
}
