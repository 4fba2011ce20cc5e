//! Produce requests that wait for their batches.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::limits;
use crate::request::{Acks, Appended, Code, Produce, ProduceResult, Refusal};
use crate::types::{LeaderEpoch, Offset, TopicPartition};

/// Who gets the results of a produce request.
pub trait Answer {
    /// All batches are decided.
    fn produced(&self, results: Vec<ProduceResult>);
}

/// What a produce request waits for, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Whose copies.
    pub acks: Acks,
    /// The wait for other replicas ends here.
    pub deadline: Instant,
    /// The batch was made for this leadership and is refused in any other; `None` for one that any leader may take.
    pub epoch: Option<LeaderEpoch>,
}

impl Patience {
    /// From now on; no time, or too long a one, is the longest ([`limits::MAX_PRODUCE_WAIT_MS`]).
    pub fn new(acks: Acks, timeout_ms: u32) -> Patience {
        let most = limits::MAX_PRODUCE_WAIT_MS;
        let wait = if timeout_ms == 0 { most } else { timeout_ms.min(most) };
        Patience { acks, deadline: Instant::now() + Duration::from_millis(u64::from(wait)), epoch: None }
    }

    /// The same for a batch that only the leader of that epoch may take.
    pub fn in_epoch(self, epoch: LeaderEpoch) -> Patience {
        Patience { epoch: Some(epoch), ..self }
    }
}

impl From<&Produce> for Patience {
    fn from(produce: &Produce) -> Patience {
        Patience::new(produce.acks, produce.timeout_ms)
    }
}

/// A produce request of which some batches are not decided.
pub struct PendingProduce {
    patience: Patience,
    open: Cell<usize>,
    results: RefCell<Vec<ProduceResult>>,
    answer: Box<dyn Answer>,
}

/// The right to decide one batch of a request. One that is dropped undecided decides as a failure: nobody waits for ever.
pub struct Completion {
    /// What it waits for. A retry that came to it waits as long as it does.
    pub patience: Patience,
    pending: Option<Rc<PendingProduce>>,
    index: usize,
    /// Retries of the same batch that arrived meanwhile, with the original's offset. A flat list: a client decides how many there are.
    also: Vec<(Completion, Offset)>,
}

impl PendingProduce {
    /// A request with a batch for each of `partitions`.
    pub fn new(partitions: impl Iterator<Item = TopicPartition>, patience: Patience, answer: Box<dyn Answer>) -> Rc<PendingProduce> {
        let results: Vec<_> =
            partitions.map(|partition| ProduceResult { partition, outcome: Err(Refusal::new(Code::Internal, "undecided")) }).collect();
        let pending = PendingProduce { patience, open: Cell::new(results.len()), results: RefCell::new(results), answer };
        if pending.open.get() == 0 {
            pending.answer.produced(Vec::new());
        }
        Rc::new(pending)
    }

    /// A request whose batches come one by one ([`PendingProduce::add`]); it is not answered before [`PendingProduce::seal`].
    pub fn growing(patience: Patience, answer: Box<dyn Answer>) -> Rc<PendingProduce> {
        Rc::new(PendingProduce { patience, open: Cell::new(1), results: RefCell::default(), answer })
    }

    /// The right to decide one batch more.
    pub fn add(self: &Rc<PendingProduce>, partition: TopicPartition) -> Completion {
        let index = self.results.borrow().len();
        self.results.borrow_mut().push(ProduceResult { partition, outcome: Err(Refusal::new(Code::Internal, "undecided")) });
        self.open.set(self.open.get() + 1);
        self.completion(index)
    }

    /// All batches have come.
    pub fn seal(&self) {
        self.one_less();
    }

    /// The right to decide batch `index`; to be taken once each.
    pub fn completion(self: &Rc<PendingProduce>, index: usize) -> Completion {
        Completion { patience: self.patience, pending: Some(self.clone()), index, also: Vec::new() }
    }

    fn decide(&self, index: usize, outcome: Result<Appended, Refusal>) {
        self.results.borrow_mut()[index].outcome = outcome;
        self.one_less();
    }

    fn one_less(&self) {
        self.open.set(self.open.get() - 1);
        if self.open.get() == 0 {
            self.answer.produced(self.results.take());
        }
    }
}

impl Completion {
    /// Decides the batch, and retries of it.
    pub fn complete(mut self, outcome: Result<Appended, Refusal>) {
        for (retry, base_offset) in self.also.drain(..) {
            retry.complete(outcome.clone().map(|a| Appended { base_offset, ..a }));
        }
        if let Some(pending) = self.pending.take() {
            pending.decide(self.index, outcome);
        }
    }

    /// This one, and with it a retry whose original starts at `base_offset`.
    pub fn and(mut self, mut retry: Completion, base_offset: Offset) -> Completion {
        let of_retry = std::mem::take(&mut retry.also);
        self.also.push((retry, base_offset));
        self.also.extend(of_retry);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TopicId;

    const COUNT: usize = 100_000;

    struct Counted(Rc<Cell<usize>>, Option<Offset>);

    impl Answer for Counted {
        fn produced(&self, results: Vec<ProduceResult>) {
            assert_eq!(results[0].outcome.as_ref().ok().map(|a| a.base_offset), self.1);
            self.0.set(self.0.get() + 1);
        }
    }

    /// One batch and retries of it, each in a request of its own.
    fn retried(answered: &Rc<Cell<usize>>, base_offset: Option<Offset>) -> Completion {
        let partition = TopicPartition { topic: TopicId([1; 16]), partition: 0 };
        let patience = Patience::new(Acks::All, 0);
        let one =
            || PendingProduce::new(std::iter::once(partition), patience, Box::new(Counted(answered.clone(), base_offset))).completion(0);
        (1..COUNT).fold(one(), |first, _| first.and(one(), 7))
    }

    #[test]
    fn any_number_of_retries_is_answered() {
        let answered = Rc::default();
        retried(&answered, Some(7)).complete(Ok(Appended { base_offset: 7, log_append_time: -1, log_start: 0 }));
        assert_eq!(answered.get(), COUNT);
    }

    #[test]
    fn any_number_of_retries_is_dropped_as_failures() {
        let answered = Rc::default();
        drop(retried(&answered, None));
        assert_eq!(answered.get(), COUNT);
    }
}
