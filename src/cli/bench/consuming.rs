//! Consumers: at the tail while producers send, or over what is there from its start.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use futures_util::future::try_join_all;

use super::BenchError;
use super::measured::{Measured, RunClock};
use super::producing::STAMP_BYTES;
use super::workload::WorkloadArgs;
use crate::client::{Client, ConsumedBatch, Consumer, SeekTo};

/// Threads that carry the consumers.
const MOST_THREADS: usize = 2;
/// How often a consumer without records looks whether the run is over.
const LOOK: Duration = Duration::from_millis(20);

/// Where consumers begin and when they are done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// At the end; done when the window is. Records carry their times.
    Tail,
    /// At the start; done after this many records.
    Earliest {
        /// All records of the topic.
        records: u64,
    },
    /// At the start, and there again after this many records, until the window ends. For one consumer.
    Again {
        /// All records of the topic.
        records: u64,
    },
}

/// Runs all consumers of a workload, each on its share of the partitions.
///
/// Blocks; to be called outside a runtime.
pub fn consume(address: &str, topic: &str, workload: &WorkloadArgs, clock: RunClock, start: Start) -> Result<Measured, BenchError> {
    let consumers = workload.consumers.min(workload.partitions as usize);
    if matches!(start, Start::Again { .. }) && consumers != 1 {
        return Err(BenchError::Usage("reading again and again is for one consumer".into()));
    }
    let threads = consumers.min(MOST_THREADS);
    let arrived = AtomicU64::new(0);
    let mut all = Measured::new(clock);
    let last = thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|number| {
                let arrived = &arrived;
                scope.spawn(move || {
                    let mine = (number..consumers).step_by(threads);
                    let reading = mine.map(|index| {
                        let partitions = (index as u32..workload.partitions).step_by(consumers);
                        let run = Reading { topic, clock, start, arrived, measured: Measured::new(clock), last: 0 };
                        run.consumer(address, partitions.collect())
                    });
                    super::runtime()?.block_on(try_join_all(reading))
                })
            })
            .collect();
        let mut last = 0;
        for thread in running {
            let measured = thread.join().map_err(|_| BenchError::Host("a consumer's thread panicked".into()))??;
            for (one, at) in measured {
                all.merge(&one);
                last = last.max(at);
            }
        }
        Ok::<_, BenchError>(last)
    })?;
    if let Start::Earliest { records } = start {
        all.end_at(last);
        if all.records < records {
            all.failed(format!("{} of {records} records came before the time was over", all.records));
        }
    }
    Ok(all)
}

/// One consumer at work.
struct Reading<'a> {
    topic: &'a str,
    clock: RunClock,
    start: Start,
    /// Records that have come to all consumers.
    arrived: &'a AtomicU64,
    measured: Measured,
    /// When the last record came.
    last: u64,
}

impl Reading<'_> {
    async fn consumer(mut self, address: &str, partitions: Vec<u32>) -> Result<(Measured, u64), BenchError> {
        let mut consumer = Client::connect(address).await?.consumer();
        if matches!(self.start, Start::Again { .. }) {
            // What was asked for at the end holds its place among the requests in flight until it is answered: a seek back waited for that.
            consumer = consumer.max_wait(Duration::from_millis(1));
        }
        let mut consumer = consumer.build()?;
        for partition in &partitions {
            let from = if self.start == Start::Tail { SeekTo::Latest } else { SeekTo::Earliest };
            consumer.assign(self.topic, *partition, from).await?;
        }
        let mut pass = 0;
        while !self.is_done() {
            let Ok(next) = tokio::time::timeout(LOOK, consumer.next_batch()).await else { continue };
            match next {
                Some(Ok(batch)) => pass += self.take(&batch),
                Some(Err(cause)) => {
                    self.measured.failed(cause);
                    break;
                }
                None => break,
            }
            if matches!(self.start, Start::Again { records } if pass >= records) {
                pass = 0;
                self.rewind(&mut consumer, &partitions).await?;
            }
        }
        Ok((self.measured, self.last))
    }

    fn is_done(&self) -> bool {
        let all_there = matches!(self.start, Start::Earliest { records } if self.arrived.load(Relaxed) >= records);
        all_there || self.clock.now() >= self.clock.window_end
    }

    async fn rewind(&self, consumer: &mut Consumer, partitions: &[u32]) -> Result<(), BenchError> {
        for partition in partitions {
            consumer.seek(self.topic, *partition, SeekTo::Offset(0)).await?;
        }
        Ok(())
    }

    /// Counts a batch's records; each is looked at as a program would.
    fn take(&mut self, batch: &ConsumedBatch) -> u64 {
        let now = self.clock.now();
        let mut count = 0;
        for record in batch.records() {
            let record = match record {
                Ok(record) => record,
                Err(cause) => {
                    self.measured.failed(cause);
                    break;
                }
            };
            let value = record.value.unwrap_or_default();
            self.measured.arrived(now, value.len());
            if self.start == Start::Tail
                && let Some((intended, sent_at)) = stamps(value)
            {
                self.measured.took(intended, sent_at, now);
            }
            count += 1;
        }
        self.last = now;
        self.arrived.fetch_add(count, Relaxed);
        count
    }
}

/// The times that a producer of the same process wrote into the value.
fn stamps(value: &[u8]) -> Option<(u64, u64)> {
    let (intended, rest) = value.get(..STAMP_BYTES)?.split_first_chunk::<8>()?;
    let (sent_at, _) = rest.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*intended), u64::from_le_bytes(*sent_at)))
}
