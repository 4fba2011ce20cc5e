//! One number bounds a shard's memory; this divides it.

use std::cell::Cell;
use std::rc::Rc;

use crate::limits::{CLEANER_MEMORY_PART, MAX_CLEANER_MEMORY, RECEIVE_BUFFER};

/// Shares of a shard's memory.
pub struct Budget {
    /// Bytes that are only in the journal and in memory.
    unflushed: Cell<usize>,
    unflushed_share: usize,
    /// Capacity of all append buffers alive: unflushed bytes, and flushed ones kept for readers at the tail.
    accounted: Rc<Cell<usize>>,
    tail_share: usize,
    cache_share: usize,
    cleaner_share: usize,
    receive_share: usize,
    receiving: Cell<usize>,
    /// Bytes in memory of answers: those that are being put together, and those that wait for their peers to take them.
    answers: Rc<Cell<usize>>,
    answer_share: usize,
}

/// Smallest memory of a shard, bytes.
pub const MIN_SHARD_MEMORY: usize = 32 << 20;

impl Budget {
    /// Divides `memory` bytes: an eighth for bytes that are not in segments yet, a quarter for these and the tail together, three eighths for the read cache,
    /// an eighth for requests being received, an eighth for answers that wait for their peers, a thirty-second for the cleaner's map of keys; the rest is for everything small.
    pub fn new(memory: usize) -> Budget {
        let memory = memory.max(MIN_SHARD_MEMORY);
        Budget {
            unflushed: Cell::new(0),
            unflushed_share: memory / 8,
            accounted: Rc::default(),
            tail_share: memory / 4,
            cache_share: memory / 8 * 3,
            cleaner_share: (memory / CLEANER_MEMORY_PART).min(MAX_CLEANER_MEMORY),
            receive_share: memory / 8,
            receiving: Cell::new(0),
            answers: Rc::default(),
            answer_share: memory / 8,
        }
    }

    /// Size of the journal that goes with it, bytes: at most twice the unflushed share, and `most`.
    pub fn journal_size(&self, most: u64) -> u64 {
        (2 * self.unflushed_share as u64).min(most)
    }

    /// Counter for the capacity of append buffers.
    pub fn accounted(&self) -> &Rc<Cell<usize>> {
        &self.accounted
    }

    /// Bytes for the read cache.
    pub fn cache(&self) -> usize {
        self.cache_share
    }

    /// Bytes for the map of keys of a cleaning, while there is one.
    pub fn cleaner(&self) -> usize {
        self.cleaner_share
    }

    /// Bytes not in segments.
    pub fn unflushed(&self) -> usize {
        self.unflushed.get()
    }

    /// An append came.
    pub fn add_unflushed(&self, bytes: usize) {
        self.unflushed.set(self.unflushed.get() + bytes);
    }

    /// A flush was made durable.
    pub fn sub_unflushed(&self, bytes: usize) {
        self.unflushed.set(self.unflushed.get().saturating_sub(bytes));
    }

    /// Whether another append may come in. What is being received has its own share: a batch that was received already does not wait for itself.
    pub fn has_room(&self) -> bool {
        let tail = self.accounted.get().saturating_sub(self.receiving.get());
        self.unflushed.get() < self.unflushed_share && tail < self.tail_share
    }

    /// Whether write-behind should work: from half of the unflushed share on, or where eviction alone can't keep the tail at its half. A tail full
    /// of flushed batches asks for nothing: flushes would go on all the time, each of a few blocks.
    pub fn wants_flush(&self) -> bool {
        self.unflushed.get() > self.unflushed_share / 2 || self.is_tail_pressed()
    }

    /// Whether flushed batches should leave the tail memory.
    pub fn wants_eviction(&self) -> bool {
        self.accounted.get() > self.tail_share / 2
    }

    /// Takes memory for a request of `bytes`; false if there is none. A request larger than the share gets it when nothing else is being received.
    pub fn begin_receive(&self, bytes: usize) -> bool {
        let now = self.receiving.get();
        if now > 0 && now + bytes > self.receive_share {
            return false;
        }
        self.receiving.set(now + bytes);
        true
    }

    /// Gives it back.
    pub fn end_receive(&self, bytes: usize) {
        self.receiving.set(self.receiving.get() - bytes);
    }

    /// Counter for the bytes of answers.
    pub fn answers(&self) -> &Rc<Cell<usize>> {
        &self.answers
    }

    /// Bytes that may come into an answer that holds `held`: each may hold a little whatever there is, so that a reader that takes what it is sent goes on,
    /// slowly.
    pub fn answer_room(&self, held: usize) -> usize {
        self.answer_share.saturating_sub(self.answers.get()).max(RECEIVE_BUFFER.saturating_sub(held))
    }

    /// Whether answers fill their share: a connection then gets one when it has taken the one before.
    pub fn answers_are_pressed(&self) -> bool {
        self.answers.get() >= self.answer_share
    }

    /// Whether what waits for slow peers is in the way of appends.
    pub fn is_tail_pressed(&self) -> bool {
        self.accounted.get() > self.tail_share / 4 * 3
    }

    /// Bytes of requests being received.
    pub fn receiving(&self) -> usize {
        self.receiving.get()
    }
}

/// Bytes of an answer that is being put together, counted until this is dropped.
pub struct Building {
    answers: Rc<Cell<usize>>,
    bytes: usize,
}

impl Building {
    /// An empty answer.
    pub fn new(budget: &Budget) -> Building {
        Building { answers: budget.answers.clone(), bytes: 0 }
    }

    /// Counts `bytes` more if there is room for them; what comes first into an answer has it as long as others do not fill the share.
    pub fn take(&mut self, budget: &Budget, bytes: usize) -> bool {
        let is_lone = self.bytes == 0 && !budget.answers_are_pressed();
        let fits = is_lone || bytes <= budget.answer_room(self.bytes);
        if fits {
            self.add(bytes);
        }
        fits
    }

    /// `bytes` more are in it.
    pub fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.answers.set(self.answers.get() + bytes);
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        self.answers.set(self.answers.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_end_at_their_bounds() {
        let budget = Budget::new(64 << 20);
        assert!(budget.has_room() && !budget.wants_flush());
        budget.add_unflushed(5 << 20);
        assert!(budget.has_room() && budget.wants_flush());
        budget.add_unflushed(3 << 20);
        assert!(!budget.has_room());
        budget.sub_unflushed(8 << 20);
        assert!(budget.has_room());
        budget.accounted().set(9 << 20);
        assert!(budget.wants_eviction() && !budget.wants_flush(), "flushed batches fill the tail");
        budget.accounted().set(13 << 20);
        assert!(budget.wants_flush(), "eviction does not get it down");
        assert!(budget.begin_receive(100 << 20), "one request may be larger than the share");
        assert!(!budget.begin_receive(1));
        budget.end_receive(100 << 20);
        assert!(budget.begin_receive(1));
        assert_eq!(budget.answer_room(0), 8 << 20);
        budget.end_receive(1);
        budget.accounted().set(17 << 20);
        assert!(!budget.has_room());
        assert!(budget.begin_receive(2 << 20) && budget.has_room(), "a received batch does not wait for itself");
        budget.answers().set(9 << 20);
        assert!(
            budget.answer_room(0) == RECEIVE_BUFFER
                && budget.answer_room(RECEIVE_BUFFER - 1) == 1
                && budget.answer_room(1 << 20) == 0
                && budget.answers_are_pressed()
        );
    }

    #[test]
    fn answers_that_are_put_together_at_once_share_the_room() {
        let budget = Budget::new(64 << 20);
        let (mut first, mut second) = (Building::new(&budget), Building::new(&budget));
        first.add(3 << 20);
        first.add(1 << 20);
        assert_eq!(budget.answer_room(0), 4 << 20);
        second.add(4 << 20);
        assert!(budget.answers_are_pressed());
        drop(first);
        assert_eq!(budget.answer_room(0), 4 << 20);
        drop(second);
        assert_eq!(budget.answers().get(), 0);
    }

    #[test]
    fn what_comes_first_into_an_answer_has_room_unless_others_fill_the_share() {
        let budget = Budget::new(64 << 20);
        let (mut first, mut second) = (Building::new(&budget), Building::new(&budget));
        assert!(first.take(&budget, 20 << 20), "longer than the share, and alone");
        assert!(!first.take(&budget, 1) && !second.take(&budget, 1 << 20));
        assert!(second.take(&budget, 1000), "a little is always answered");
        drop(first);
        assert!(second.take(&budget, 7 << 20) && !second.take(&budget, 2 << 20));
    }
}
