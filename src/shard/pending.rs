//! Produce requests that wait for their batches.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::request::{Appended, Code, ProduceResult, Refusal};
use crate::types::{Offset, TopicPartition};

/// Who gets the results of a produce request.
pub trait Answer {
    /// All batches are decided.
    fn produced(&self, results: Vec<ProduceResult>);
}

/// A produce request of which some batches are not decided.
pub struct PendingProduce {
    open: Cell<usize>,
    results: RefCell<Vec<ProduceResult>>,
    answer: Box<dyn Answer>,
}

/// The right to decide one batch of a request. One that is dropped undecided decides as a failure: nobody waits for ever.
pub struct Completion {
    pending: Option<Rc<PendingProduce>>,
    index: usize,
    /// A retry of the same batch that arrived meanwhile, with the original's offset.
    also: Option<Box<(Completion, Offset)>>,
}

impl PendingProduce {
    /// A request with a batch for each of `partitions`.
    pub fn new(partitions: impl Iterator<Item = TopicPartition>, answer: Box<dyn Answer>) -> Rc<PendingProduce> {
        let results: Vec<_> =
            partitions.map(|partition| ProduceResult { partition, outcome: Err(Refusal::new(Code::Internal, "undecided")) }).collect();
        let pending = PendingProduce { open: Cell::new(results.len()), results: RefCell::new(results), answer };
        if pending.open.get() == 0 {
            pending.answer.produced(Vec::new());
        }
        Rc::new(pending)
    }

    /// The right to decide batch `index`; to be taken once each.
    pub fn completion(self: &Rc<PendingProduce>, index: usize) -> Completion {
        Completion { pending: Some(self.clone()), index, also: None }
    }

    fn decide(&self, index: usize, outcome: Result<Appended, Refusal>) {
        self.results.borrow_mut()[index].outcome = outcome;
        self.open.set(self.open.get() - 1);
        if self.open.get() == 0 {
            self.answer.produced(self.results.take());
        }
    }
}

impl Completion {
    /// Decides the batch, and retries of it.
    pub fn complete(mut self, outcome: Result<Appended, Refusal>) {
        if let Some(also) = self.also.take() {
            let (other, base_offset) = *also;
            other.complete(outcome.clone().map(|a| Appended { base_offset, ..a }));
        }
        if let Some(pending) = self.pending.take() {
            pending.decide(self.index, outcome);
        }
    }

    /// This one, and with it a retry whose original starts at `base_offset`.
    pub fn and(mut self, retry: Completion, base_offset: Offset) -> Completion {
        let mut retry = retry;
        if let Some(earlier) = self.also.take() {
            retry.also = Some(earlier);
        }
        self.also = Some(Box::new((retry, base_offset)));
        self
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(pending) = self.pending.take() {
            pending.decide(
                self.index,
                Err(Refusal::new(Code::Unavailable, "the broker is going down; whether the batch is kept is not known")),
            );
        }
    }
}
