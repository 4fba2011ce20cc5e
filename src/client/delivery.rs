//! What became of a batch, shared by all its records: one allocation and one completion for thousands of futures.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use super::error::{ProduceError, ProduceFailure};
use crate::types::{Offset, Timestamp};

/// Where a record is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordMetadata {
    /// Its partition.
    pub partition: u32,
    /// Its offset; -1 where acknowledgements are off.
    pub offset: Offset,
    /// Its timestamp: the record's, or the broker's where the topic uses LogAppendTime.
    pub timestamp: Timestamp,
}

/// A batch's fate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Acked { base_offset: Offset, log_append_time: Timestamp },
    Failed(ProduceFailure),
}

/// A batch as its records' futures see it.
#[derive(Debug)]
pub(super) struct Delivery {
    topic: Arc<str>,
    partition: u32,
    outcome: OnceLock<Outcome>,
    /// Each future has a place of its own from its first poll on.
    waiting: Mutex<Vec<Option<Waker>>>,
}

impl Delivery {
    pub fn new(topic: Arc<str>, partition: u32) -> Arc<Delivery> {
        Arc::new(Delivery { topic, partition, outcome: OnceLock::new(), waiting: Mutex::default() })
    }

    /// Settles the batch and wakes whoever waits. The first outcome counts.
    pub fn complete(&self, outcome: Outcome) {
        let _ = self.outcome.set(outcome);
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().flatten().for_each(Waker::wake);
    }

    /// Registers the waker unless the batch is settled.
    fn poll(&self, place: &mut Option<u32>, context: &Context<'_>) -> Poll<&Outcome> {
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome);
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Settled between the look and the lock: `complete` has taken the list, or will with this lock.
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome);
        }
        match place.and_then(|at| waiting.get_mut(at as usize)) {
            Some(slot) => *slot = Some(context.waker().clone()),
            None => {
                *place = Some(waiting.len() as u32);
                waiting.push(Some(context.waker().clone()));
            }
        }
        Poll::Pending
    }

    fn result(&self, outcome: &Outcome, index: u32, timestamp: Timestamp) -> Result<RecordMetadata, ProduceError> {
        match outcome {
            Outcome::Acked { base_offset, log_append_time } => Ok(RecordMetadata {
                partition: self.partition,
                offset: if *base_offset < 0 { -1 } else { base_offset + Offset::from(index) },
                timestamp: if *log_append_time < 0 { timestamp } else { *log_append_time },
            }),
            Outcome::Failed(cause) => {
                Err(ProduceError { topic: self.topic.to_string(), partition: Some(self.partition), cause: cause.clone() })
            }
        }
    }
}

/// Resolves when the record is acknowledged or given up. Dropping it does not take the record back.
#[must_use = "a record that is not waited for may be lost unnoticed"]
#[derive(Debug)]
pub struct DeliveryFuture {
    batch: Arc<Delivery>,
    index: u32,
    place: Option<u32>,
    timestamp: Timestamp,
}

impl DeliveryFuture {
    pub(super) fn new(batch: Arc<Delivery>, index: u32, timestamp: Timestamp) -> DeliveryFuture {
        DeliveryFuture { batch, index, place: None, timestamp }
    }

    /// The result, if it is there.
    pub fn try_result(&self) -> Option<Result<RecordMetadata, ProduceError>> {
        self.batch.outcome.get().map(|outcome| self.batch.result(outcome, self.index, self.timestamp))
    }

    /// The partition that the record goes to.
    pub fn partition(&self) -> u32 {
        self.batch.partition
    }
}

impl Future for DeliveryFuture {
    type Output = Result<RecordMetadata, ProduceError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match this.batch.poll(&mut this.place, context) {
            Poll::Ready(outcome) => Poll::Ready(this.batch.result(outcome, this.index, this.timestamp)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for DeliveryFuture {
    fn drop(&mut self) {
        // A waker may own the task that waits, and the batch may live long.
        if let Some(at) = self.place
            && let Some(slot) = self.batch.waiting.lock().unwrap_or_else(PoisonError::into_inner).get_mut(at as usize)
        {
            *slot = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    struct Count(Mutex<u32>);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            *self.0.lock().unwrap() += 1;
        }
    }

    #[test]
    fn all_records_of_a_batch_are_told_once() {
        let batch = Delivery::new("t".into(), 3);
        let count = Arc::new(Count(Mutex::new(0)));
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        let mut futures: Vec<_> = (0..5).map(|i| DeliveryFuture::new(batch.clone(), i, 100)).collect();
        for future in &mut futures {
            assert!(Pin::new(&mut *future).poll(&mut context).is_pending());
            assert!(Pin::new(future).poll(&mut context).is_pending(), "polled again, one place");
        }
        drop(futures.pop());
        batch.complete(Outcome::Acked { base_offset: 40, log_append_time: -1 });
        batch.complete(Outcome::Acked { base_offset: 0, log_append_time: -1 });
        assert_eq!(*count.0.lock().unwrap(), 4);
        for (i, future) in futures.iter_mut().enumerate() {
            let expected = RecordMetadata { partition: 3, offset: 40 + i as i64, timestamp: 100 };
            assert_eq!(future.try_result(), Some(Ok(expected)));
            assert_eq!(Pin::new(future).poll(&mut context), Poll::Ready(Ok(expected)));
        }
    }

    #[test]
    fn a_failure_names_topic_and_partition() {
        let batch = Delivery::new("orders".into(), 3);
        let future = DeliveryFuture::new(batch.clone(), 0, 0);
        batch.complete(Outcome::Failed(ProduceFailure::Unknown));
        let error = future.try_result().unwrap().unwrap_err();
        assert_eq!((error.topic.as_str(), error.partition), ("orders", Some(3)));
        assert!(error.to_string().starts_with("a record for orders partition 3"), "{error}");
    }
}
