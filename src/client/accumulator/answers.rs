//! What answers and the passing of time do to batches in flight and waiting: settled, sent again, or given up.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{Accumulator, Batch, BatchKey, Body};
use crate::client::delivery::{Delivery, Outcome};
use crate::client::error::{ClientError, ProduceFailure};
use crate::client::session::Micros;
use crate::request::{Code, ProduceResult};

/// While a leader is looked for, it is asked about at least so often, microseconds: an election is over in a moment, and nobody tells.
const LONGEST_SEARCH: Micros = 200_000;

/// What the shell has to do.
#[derive(Debug, Default)]
pub(in crate::client) struct Settled {
    /// Batches that are over, with their outcomes.
    pub done: Vec<(Arc<Delivery>, Outcome)>,
    /// Topics whose leaders may have moved.
    pub stale_topics: Vec<Arc<str>>,
}

/// What becomes of a batch that was not appended.
enum Verdict {
    Again,
    /// Again, with a new identity.
    Renew,
    GiveUp,
}

impl Accumulator {
    /// The broker's answer to a request, or the failure in its place.
    pub fn handle_answer(
        &mut self,
        broker: u32,
        batches: &[BatchKey],
        answer: Result<Vec<ProduceResult>, ClientError>,
        now: Micros,
    ) -> Settled {
        let mut settled = Settled::default();
        if let Some(broker) = self.brokers.get_mut(&broker) {
            broker.in_flight -= 1;
        }
        let answer = answer.and_then(|results| {
            let cause = || format!("{} results for {} batches", results.len(), batches.len());
            if results.len() == batches.len() {
                Ok(results)
            } else {
                Err(ClientError::Protocol { address: "the broker".into(), cause: cause() })
            }
        });
        match answer {
            Ok(results) => {
                for (key, result) in batches.iter().zip(results) {
                    match result.outcome {
                        Ok(appended) => {
                            let outcome = Outcome::Acked { base_offset: appended.base_offset, log_append_time: appended.log_append_time };
                            self.handle_acked(*key, outcome, &mut settled);
                        }
                        Err(refusal) => self.handle_failure(*key, &refusal.into(), now, &mut settled),
                    }
                }
            }
            // From the last to the first: each goes back in front of those that were sent after it.
            Err(error) => batches.iter().rev().for_each(|key| self.handle_failure(*key, &error, now, &mut settled)),
        }
        for key in batches {
            self.reset_if_empty(key.partition, now, &mut settled);
            self.queue_if_ready(key.partition, now);
        }
        settled
    }

    /// A request that gets no answer has been written.
    pub fn handle_unanswered(&mut self, broker: u32, batches: &[BatchKey], now: Micros) -> Settled {
        let mut settled = Settled::default();
        if let Some(broker) = self.brokers.get_mut(&broker) {
            broker.in_flight -= 1;
        }
        for key in batches {
            self.handle_acked(*key, Outcome::Acked { base_offset: -1, log_append_time: -1 }, &mut settled);
            self.queue_if_ready(key.partition, now);
        }
        settled
    }

    /// The broker can't be reached: what is for it waits.
    pub fn handle_unreachable(&mut self, broker: u32, error: &ClientError, now: Micros) -> Settled {
        let mut settled = Settled::default();
        let ready = self.brokers.get_mut(&broker).map(|b| std::mem::take(&mut b.ready)).unwrap_or_default();
        for at in ready {
            if self.partitions[at].leader != broker {
                continue;
            }
            self.partitions[at].is_queued = false;
            self.partitions[at].close();
            let Some(first) = self.partitions[at].waiting.front_mut() else { continue };
            first.attempts += 1;
            first.last_error = Some(error.clone());
            let attempts = first.attempts;
            self.pause(at, attempts, error, now);
            settled.stale_topics.push(self.topics[self.partitions[at].topic].name.clone());
        }
        settled
    }

    fn handle_acked(&mut self, key: BatchKey, outcome: Outcome, settled: &mut Settled) {
        let Some(mut batch) = self.take_from_flight(key) else { return };
        self.release(&mut batch);
        settled.done.push((batch.delivery, outcome));
    }

    fn take_from_flight(&mut self, key: BatchKey) -> Option<Batch> {
        let in_flight = &mut self.partitions[key.partition].in_flight;
        let at = in_flight.iter().position(|batch| batch.serial == key.serial)?;
        in_flight.remove(at)
    }

    fn handle_failure(&mut self, key: BatchKey, error: &ClientError, now: Micros, settled: &mut Settled) {
        let Some(mut batch) = self.take_from_flight(key) else { return };
        let has_earlier = self.has_earlier(key);
        // A refusal says nothing of an earlier attempt: the broker may have lost its memory of the producer in between.
        batch.may_be_appended |= !is_surely_not_appended(error);
        batch.last_error = Some(error.clone());
        if error.is_about_leadership() {
            settled.stale_topics.push(self.topics[self.partitions[key.partition].topic].name.clone());
        }
        match verdict(error, batch.sequence.is_some()) {
            // One before it is still open: that one's failure is the cause, and this one follows it again.
            Verdict::Renew if has_earlier => self.put_back(key.partition, batch),
            // It was refused before an earlier one was appended, perhaps, which came by another connection, from a former leader, and is
            // acknowledged by now.
            Verdict::Renew if !std::mem::replace(&mut batch.is_out_of_order, true) => self.put_back(key.partition, batch),
            Verdict::Again => {
                batch.attempts += 1;
                self.pause(key.partition, batch.attempts, error, now);
                self.put_back(key.partition, batch);
            }
            Verdict::Renew => {
                tracing::warn!(%error, topic = %self.topics[self.partitions[key.partition].topic].name, "the broker does not know this producer's sequence: starting a new one");
                batch.attempts += 1;
                self.pause(key.partition, batch.attempts, error, now);
                self.put_back(key.partition, batch);
                self.partitions[key.partition].is_resetting = true;
            }
            Verdict::GiveUp => self.give_up(key.partition, batch, error.clone().into(), settled),
        }
    }

    /// Whether a batch that was filled before is not settled.
    fn has_earlier(&self, key: BatchKey) -> bool {
        let partition = &self.partitions[key.partition];
        partition.is_resetting || partition.in_flight.iter().chain(&partition.waiting).any(|batch| batch.serial < key.serial)
    }

    /// Back among those that wait, in the order of filling.
    fn put_back(&mut self, at: usize, batch: Batch) {
        let waiting = &mut self.partitions[at].waiting;
        let place = waiting.partition_point(|other| other.serial < batch.serial);
        waiting.insert(place, batch);
    }

    fn give_up(&mut self, at: usize, mut batch: Batch, cause: ProduceFailure, settled: &mut Settled) {
        if batch.sequence.is_some() {
            self.partitions[at].is_resetting = true;
        }
        self.release(&mut batch);
        settled.done.push(batch.failed(cause));
    }

    fn pause(&mut self, at: usize, attempts: u32, error: &ClientError, now: Micros) {
        let pause = self.settings.backoff.after(attempts).as_micros() as Micros;
        let end = now + if error.is_about_leadership() { pause.min(LONGEST_SEARCH) } else { pause };
        self.partitions[at].not_before = end;
        self.pausing.push(Reverse((end, at)));
    }

    /// Gives up what has waited for longer than the delivery timeout. What is in flight is waited for: its request has a time-out of its own.
    pub(super) fn expire(&mut self, now: Micros, settled: &mut Settled) {
        let timeout = self.settings.delivery_timeout;
        for at in 0..self.partitions.len() {
            if self.partitions[at].open.as_ref().is_some_and(|batch| batch.created + timeout <= now) {
                self.partitions[at].close();
            }
            while self.partitions[at].waiting.front().is_some_and(|batch| batch.created + timeout <= now) {
                let mut batch = self.partitions[at].waiting.pop_front().expect("looked at");
                let cause = ProduceFailure::Expired { timeout_ms: timeout / 1000, last: batch.last_error.take() };
                self.give_up(at, batch, cause, settled);
            }
            self.reset_if_empty(at, now, settled);
        }
    }

    /// Starts a partition's sequence again, once nothing of the old one is on its way.
    fn reset_if_empty(&mut self, at: usize, now: Micros, settled: &mut Settled) {
        if !self.partitions[at].is_resetting || !self.partitions[at].in_flight.is_empty() {
            return;
        }
        for mut batch in std::mem::take(&mut self.partitions[at].waiting) {
            if batch.sequence.is_some() && batch.may_be_appended {
                self.release(&mut batch);
                settled.done.push(batch.failed(ProduceFailure::Unknown));
                continue;
            }
            batch.sequence = None;
            batch.body = match batch.body {
                Body::Built(bytes) => Body::Stale(bytes),
                other => other,
            };
            self.partitions[at].waiting.push_back(batch);
        }
        self.partitions[at].is_resetting = false;
        self.partitions[at].identity = None;
        self.identity = None;
        self.queue_if_ready(at, now);
    }
}

fn verdict(error: &ClientError, has_sequence: bool) -> Verdict {
    match error.code() {
        Some(Code::OutOfOrderSequence | Code::UnknownProducerId | Code::InvalidProducerEpoch) if has_sequence => Verdict::Renew,
        _ if error.is_retriable() => Verdict::Again,
        _ => Verdict::GiveUp,
    }
}

/// Whether a failure says that this attempt did not put the batch into the log. A lost connection or a time-out does not say so, nor does a failure
/// of the broker's own.
fn is_surely_not_appended(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(refusal) => {
            !matches!(refusal.code, Code::RequestTimedOut | Code::Storage | Code::Internal | Code::Unavailable | Code::NotEnoughReplicas)
        }
        ClientError::Connect { .. } | ClientError::Invalid(_) => true,
        _ => false,
    }
}
