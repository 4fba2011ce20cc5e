//! Aligned memory that is filled once, written by the device, and read by consumers: the one copy of a payload.
//!
//! A buffer is filled from the front. Bytes below `filled` never change again (the reserved front is
//! written by [`AppendBuffer::seal`] and never lent), so slices of them can be handed out and sent
//! while later bytes are still being added and while the device reads the buffer.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use glommio::io::DmaBuffer;

use crate::limits::BLOCK;

/// Memory for a journal group or for the whole blocks of a large append.
pub struct AppendBuffer {
    start: *mut u8,
    capacity: usize,
    filled: Cell<usize>,
    /// First bytes that are never handed out, because `seal` writes them last.
    reserved: usize,
    memory: RefCell<Memory>,
    accounted: Rc<Cell<usize>>,
}

enum Memory {
    Filling(DmaBuffer),
    Frozen {
        /// Only kept alive: it is read through `start`.
        _memory: Rc<DmaBuffer>,
    },
    Moving,
}

impl AppendBuffer {
    /// `capacity` bytes (rounded up to a block), of which the first `reserved` are for [`Self::seal`]. The capacity is added to `accounted` while the buffer lives.
    pub fn new(capacity: usize, reserved: usize, accounted: &Rc<Cell<usize>>) -> AppendBuffer {
        let capacity = capacity.max(1).next_multiple_of(BLOCK);
        assert!(reserved <= capacity, "reserved bytes fit");
        let mut memory = glommio::allocate_dma_buffer_global(capacity);
        let start = memory.as_mut_ptr();
        accounted.set(accounted.get() + capacity);
        let buffer = AppendBuffer {
            start,
            capacity,
            filled: Cell::new(0),
            reserved,
            memory: RefCell::new(Memory::Filling(memory)),
            accounted: accounted.clone(),
        };
        buffer.push_zeros(reserved);
        buffer
    }

    /// Bytes filled so far.
    pub fn filled(&self) -> usize {
        self.filled.get()
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.capacity - self.filled.get()
    }

    /// All bytes, used or not.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Adds a copy of `bytes`; the range is where they are.
    ///
    /// # Panics
    /// When they don't fit or the buffer is frozen.
    pub fn push(&self, bytes: &[u8]) -> Range<usize> {
        self.push_with(bytes.len(), |space| space.copy_from_slice(bytes))
    }

    /// Adds `len` zero bytes.
    pub fn push_zeros(&self, len: usize) -> Range<usize> {
        self.push_with(len, |space| space.fill(0))
    }

    /// Adds `len` bytes that `fill` writes; they arrive zeroed or with whatever the allocator left, so `fill` writes all of them.
    #[allow(unsafe_code)]
    pub fn push_with(&self, len: usize, fill: impl FnOnce(&mut [u8])) -> Range<usize> {
        assert!(len <= self.room(), "{len} bytes do not fit in {}", self.room());
        assert!(matches!(&*self.memory.borrow(), Memory::Filling(_)), "a frozen buffer is not filled");
        let from = self.filled.get();
        // SAFETY: [from, from + len) is inside the allocation, and no slice of it was handed out: `slice` stops at
        // `filled`, which moves only after `fill` returned. One thread: the type is not Send.
        let space = unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) };
        fill(space);
        self.filled.set(from + len);
        from..from + len
    }

    /// Overwrites the first bytes of a buffer that nobody else has.
    ///
    /// # Panics
    /// When they are not filled yet or are reserved.
    #[allow(unsafe_code)]
    pub fn patch_front(&mut self, bytes: &[u8]) {
        assert!(self.reserved == 0 && bytes.len() <= self.filled.get(), "filled bytes are patched");
        // SAFETY: inside the allocation; `&mut self` proves that no slice is lent out.
        unsafe { std::slice::from_raw_parts_mut(self.start, bytes.len()) }.copy_from_slice(bytes);
    }

    /// Unfilled memory of a buffer that nobody else has, to receive into; [`AppendBuffer::advance`] says how much came.
    pub fn space(&mut self) -> &mut [u8] {
        let from = self.filled.get();
        match self.memory.get_mut() {
            Memory::Filling(memory) => &mut memory.as_bytes_mut()[from..],
            _ => panic!("a frozen buffer is not filled"),
        }
    }

    /// `len` bytes of [`AppendBuffer::space`] are filled.
    pub fn advance(&mut self, len: usize) {
        assert!(len <= self.room(), "{len} bytes do not fit in {}", self.room());
        self.filled.set(self.filled.get() + len);
    }

    /// Filled bytes by range.
    ///
    /// # Panics
    /// When the range is not between the reserved front and `filled`.
    #[allow(unsafe_code)]
    pub fn slice(&self, range: Range<usize>) -> &[u8] {
        assert!(self.reserved <= range.start && range.start <= range.end && range.end <= self.filled.get(), "range is filled");
        // SAFETY: inside the allocation; bytes between `reserved` and `filled` are never written again.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// Writes the reserved front (`front` gets the bytes behind it and returns it), pads to a block and freezes the buffer.
    ///
    /// # Panics
    /// When `front` returns another length than was reserved, or the buffer is frozen already.
    #[allow(unsafe_code)]
    pub fn seal<const N: usize>(&self, front: impl FnOnce(&[u8]) -> [u8; N]) -> Rc<DmaBuffer> {
        assert!(N == self.reserved, "the whole front of {} bytes is written, not {N}", self.reserved);
        let used = self.filled.get();
        let bytes = front(self.slice(self.reserved..used));
        // SAFETY: inside the allocation; `slice` never lends the reserved front, and the device gets it only from here on.
        unsafe { std::slice::from_raw_parts_mut(self.start, N) }.copy_from_slice(&bytes);
        let padded = used.next_multiple_of(BLOCK);
        self.push_zeros(padded - used);
        self.freeze(padded)
    }

    /// Freezes the buffer; the device gets its first `len` bytes, a multiple of a block.
    pub fn freeze(&self, len: usize) -> Rc<DmaBuffer> {
        assert!(len.is_multiple_of(BLOCK) && len <= self.filled.get().next_multiple_of(BLOCK), "whole filled blocks");
        let mut memory = self.memory.borrow_mut();
        let Memory::Filling(mut buffer) = std::mem::replace(&mut *memory, Memory::Moving) else {
            panic!("a buffer is frozen once");
        };
        buffer.trim_to_size(len);
        let frozen = Rc::new(buffer);
        *memory = Memory::Frozen { _memory: frozen.clone() };
        frozen
    }
}

impl Drop for AppendBuffer {
    fn drop(&mut self) {
        self.accounted.set(self.accounted.get() - self.capacity);
    }
}

/// A range of an [`AppendBuffer`] that keeps it alive.
#[derive(Clone)]
pub struct Piece {
    buffer: Rc<AppendBuffer>,
    range: Range<usize>,
}

impl Piece {
    /// The bytes of `range` in `buffer`.
    pub fn new(buffer: Rc<AppendBuffer>, range: Range<usize>) -> Piece {
        assert!(range.end <= buffer.filled(), "a piece is of filled bytes");
        Piece { buffer, range }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.slice(self.range.clone())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Whether both are parts of one buffer.
    pub fn shares_buffer_with(&self, other: &Piece) -> bool {
        Rc::ptr_eq(&self.buffer, &other.buffer)
    }

    /// Bytes of memory that it keeps alive.
    pub fn pinned(&self) -> usize {
        self.buffer.capacity()
    }

    /// A part of it, by a range relative to its start.
    pub fn part(&self, range: Range<usize>) -> Piece {
        assert!(range.end <= self.len(), "a part is inside");
        Piece { buffer: self.buffer.clone(), range: self.range.start + range.start..self.range.start + range.end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_bytes_stay_while_more_come() {
        let accounted = Rc::new(Cell::new(0));
        let buffer = Rc::new(AppendBuffer::new(5000, 16, &accounted));
        assert_eq!(accounted.get(), 8192);
        let first = Piece::new(buffer.clone(), buffer.push(b"first"));
        let second = Piece::new(buffer.clone(), buffer.push(b"second"));
        assert_eq!((first.bytes(), second.bytes()), (&b"first"[..], &b"second"[..]));
        let frozen = buffer.seal(|rest| {
            assert_eq!(rest, b"firstsecond");
            *b"HEADHEADHEADHEAD"
        });
        assert_eq!(frozen.len(), 4096);
        assert_eq!(&frozen.as_bytes()[..4], b"HEAD");
        assert_eq!(&frozen.as_bytes()[16..27], b"firstsecond");
        assert!(frozen.as_bytes()[27..].iter().all(|b| *b == 0));
        assert_eq!(second.part(1..3).bytes(), b"ec");
        drop((first, second, buffer, frozen));
        assert_eq!(accounted.get(), 0);
    }

    #[test]
    #[should_panic(expected = "range is filled")]
    fn the_reserved_front_is_not_lent() {
        let buffer = AppendBuffer::new(100, 16, &Rc::default());
        buffer.slice(0..8);
    }
}
