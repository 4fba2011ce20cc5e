//! Producers: closed loop with a fixed number in flight, open loop at a fixed rate, or as fast as it goes.
//!
//! Producers are spread over a few threads, each with a runtime of its own. Acknowledgements are taken partition by partition, in the
//! order in which they come, so no record waits for another partition's to be counted.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::thread;

use futures_util::future::try_join_all;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::BenchError;
use super::measured::{Measured, RunClock};
use super::pacer::{Pacer, Schedule};
use super::random::Random;
use super::workload::{Keys, WorkloadArgs};
use crate::client::{Client, DeliveryFuture, ProduceError, Producer, ProducerRecord, RecordMetadata};

/// Bytes of a value that carry its times; smaller values carry none.
pub const STAMP_BYTES: usize = 16;
/// Threads that carry the producers: more would only take turns on the broker's cores.
const MOST_THREADS: usize = 2;

/// Runs all producers of a workload to the end of the window and until everything sent is acknowledged or failed.
///
/// Blocks; to be called outside a runtime.
pub fn produce(address: &str, topic: &str, workload: &WorkloadArgs, clock: RunClock) -> Result<Measured, BenchError> {
    let threads = workload.producers.min(MOST_THREADS);
    let mut all = Measured::new(clock);
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|number| {
                scope.spawn(move || {
                    let runtime = super::runtime()?;
                    let mine = (number..workload.producers).step_by(threads);
                    let producers = mine.map(|index| run_producer(address, topic, workload, clock, index));
                    LocalSet::new().block_on(&runtime, try_join_all(producers))
                })
            })
            .collect();
        for thread in running {
            let measured = thread.join().map_err(|_| BenchError::Host("a producer's thread panicked".into()))??;
            measured.iter().for_each(|one| all.merge(one));
        }
        Ok(all)
    })
}

async fn run_producer(address: &str, topic: &str, workload: &WorkloadArgs, clock: RunClock, index: usize) -> Result<Measured, BenchError> {
    let producer = build_producer(address, workload).await?;
    let measured = Rc::new(RefCell::new(Measured::new(clock)));
    match (workload.in_flight, workload.rate) {
        (Some(in_flight), _) => {
            let lanes = (0..in_flight).map(|lane| {
                let number = index * in_flight + lane;
                one_in_flight(&producer, topic, workload, clock, number, &measured)
            });
            try_join_all(lanes).await?;
        }
        (None, rate) => {
            let records = Records::new(topic, workload, index);
            many_in_flight(&producer, records, clock, rate.map(|all| all / workload.producers as f64), &measured).await?;
        }
    }
    Ok(measured.replace(Measured::new(clock)))
}

/// Appends at least `bytes` of values as fast as it goes and waits until all are acknowledged; the number of records.
///
/// Blocks; to be called outside a runtime.
pub fn fill(address: &str, topic: &str, workload: &WorkloadArgs, bytes: u64) -> Result<u64, BenchError> {
    super::runtime()?.block_on(async {
        let producer = build_producer(address, workload).await?;
        let mut records = Records::new(topic, workload, 0);
        let mut waiting: VecDeque<DeliveryFuture> = VecDeque::new();
        let (mut sent, mut sent_bytes) = (0, 0);
        while sent_bytes < bytes {
            let (record, size) = records.next(0, 0);
            waiting.push_back(producer.send_nowait(record).await.map_err(undelivered)?);
            (sent, sent_bytes) = (sent + 1, sent_bytes + size.max(1) as u64);
            while let Some(outcome) = waiting.front().and_then(DeliveryFuture::try_result) {
                outcome.map_err(undelivered)?;
                waiting.pop_front();
            }
        }
        for delivery in waiting {
            delivery.await.map_err(undelivered)?;
        }
        Ok(sent)
    })
}

fn undelivered(error: ProduceError) -> BenchError {
    BenchError::Undelivered { failed: 1, first: error.to_string() }
}

async fn build_producer(address: &str, workload: &WorkloadArgs) -> Result<Producer, BenchError> {
    let producer = Client::connect(address)
        .await?
        .producer()
        .batch_size(workload.batch_size)
        .max_request(workload.batch_size.max(1024 * 1024))
        .linger(std::time::Duration::from_secs_f64(workload.linger_ms / 1000.0))
        .compression(workload.compression);
    Ok(producer.build()?)
}

/// Sends the next record when the last one is acknowledged, always to the same partition.
async fn one_in_flight(
    producer: &Producer,
    topic: &str,
    workload: &WorkloadArgs,
    clock: RunClock,
    number: usize,
    measured: &RefCell<Measured>,
) -> Result<(), BenchError> {
    let mut records = Records::new(topic, workload, number);
    records.partition = Some(number as u32 % workload.partitions);
    loop {
        let sent_at = clock.now();
        if sent_at >= clock.window_end {
            return Ok(());
        }
        let (record, bytes) = records.next(sent_at, sent_at);
        let outcome = producer.send(record).await;
        let pending = Pending { intended: sent_at, sent_at, bytes };
        settle(measured, pending, outcome, clock.now());
    }
}

/// Sends at the scheduled times, or without end; takes acknowledgements as they come.
async fn many_in_flight(
    producer: &Producer,
    mut records: Records<'_>,
    clock: RunClock,
    rate: Option<f64>,
    measured: &Rc<RefCell<Measured>>,
) -> Result<(), BenchError> {
    let pacer = Pacer::new().map_err(BenchError::io("making a timer"))?;
    let schedule = rate.map(|rate| Schedule::new(clock.instant(0), rate));
    let mut lanes = Lanes::default();
    for n in 0.. {
        let mut now = clock.now();
        let intended = match &schedule {
            None => now,
            Some(schedule) => {
                let moment = schedule.intended(n);
                let intended = moment.duration_since(clock.instant(0)).as_nanos() as u64;
                if intended > now && intended < clock.window_end {
                    pacer.until(moment).await.map_err(BenchError::io("waiting for a timer"))?;
                    now = clock.now();
                }
                intended
            }
        };
        if intended >= clock.window_end {
            break;
        }
        let (record, bytes) = records.next(intended, now);
        let pending = Pending { intended, sent_at: now, bytes };
        match producer.send_nowait(record).await {
            Ok(delivery) => lanes.of(delivery.partition(), measured, clock).push(delivery, pending),
            Err(refusal) => settle(measured, pending, Err(refusal), clock.now()),
        }
    }
    lanes.finish().await
}

/// A record on its way.
struct Pending {
    intended: u64,
    sent_at: u64,
    bytes: usize,
}

fn settle(measured: &RefCell<Measured>, pending: Pending, outcome: Result<RecordMetadata, ProduceError>, now: u64) {
    let mut measured = measured.borrow_mut();
    match outcome {
        Ok(_) => {
            measured.arrived(now, pending.bytes);
            measured.took(pending.intended, pending.sent_at, now);
        }
        Err(cause) => measured.failed(cause),
    }
}

/// One lane a partition: there acknowledgements come in the order of sending.
#[derive(Default)]
struct Lanes {
    lanes: Vec<Option<(Rc<Lane>, JoinHandle<()>)>>,
}

#[derive(Default)]
struct Lane {
    waiting: RefCell<VecDeque<(DeliveryFuture, Pending)>>,
    filled: Notify,
    closed: Cell<bool>,
}

impl Lanes {
    fn of(&mut self, partition: u32, measured: &Rc<RefCell<Measured>>, clock: RunClock) -> &Lane {
        let at = partition as usize;
        if self.lanes.len() <= at {
            self.lanes.resize_with(at + 1, || None);
        }
        let (lane, _) = self.lanes[at].get_or_insert_with(|| {
            let lane = Rc::new(Lane::default());
            (lane.clone(), spawn_local(collect(lane, measured.clone(), clock)))
        });
        lane
    }

    async fn finish(self) -> Result<(), BenchError> {
        for (lane, collector) in self.lanes.into_iter().flatten() {
            lane.closed.set(true);
            lane.filled.notify_one();
            collector.await.map_err(|_| BenchError::Host("a collecting task panicked".into()))?;
        }
        Ok(())
    }
}

impl Lane {
    fn push(&self, delivery: DeliveryFuture, pending: Pending) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push_back((delivery, pending));
        if waiting.len() == 1 {
            self.filled.notify_one();
        }
    }
}

/// Waits for the oldest record, then takes all that its batch and others have settled in the meantime.
async fn collect(lane: Rc<Lane>, measured: Rc<RefCell<Measured>>, clock: RunClock) {
    loop {
        let oldest = lane.waiting.borrow_mut().pop_front();
        let Some((mut delivery, pending)) = oldest else {
            if lane.closed.get() {
                return;
            }
            lane.filled.notified().await;
            continue;
        };
        let outcome = (&mut delivery).await;
        let now = clock.now();
        settle(&measured, pending, outcome, now);
        let mut waiting = lane.waiting.borrow_mut();
        while let Some(outcome) = waiting.front().and_then(|(delivery, _)| delivery.try_result()) {
            if let Some((_, pending)) = waiting.pop_front() {
                settle(&measured, pending, outcome, now);
            }
        }
    }
}

/// Makes records: random bytes, the times in front where there is room for them.
struct Records<'a> {
    topic: &'a str,
    workload: &'a WorkloadArgs,
    random: Random,
    payload: Vec<u8>,
    key: [u8; 8],
    partition: Option<u32>,
}

/// Bytes of the pool in which records begin at random places, so that neighbours differ.
const POOL_BYTES: usize = 256 * 1024;

impl<'a> Records<'a> {
    fn new(topic: &'a str, workload: &'a WorkloadArgs, seed: usize) -> Records<'a> {
        let mut random = Random::new(seed as u64);
        let payload = random.bytes(POOL_BYTES + workload.record_size.largest());
        Records { topic, workload, random, payload, key: [0; 8], partition: None }
    }

    /// The record and the bytes of its value.
    fn next(&mut self, intended: u64, sent_at: u64) -> (ProducerRecord<'_>, usize) {
        let random = self.random.next();
        let size = self.workload.record_size.pick(random);
        let start = (random >> 40) as usize % POOL_BYTES;
        let value = &mut self.payload[start..start + size];
        if size >= STAMP_BYTES {
            value[..8].copy_from_slice(&intended.to_le_bytes());
            value[8..STAMP_BYTES].copy_from_slice(&sent_at.to_le_bytes());
        }
        let mut record = ProducerRecord::to(self.topic).value(value);
        if self.workload.key == Keys::Random {
            self.key = random.to_le_bytes();
            record = record.key(&self.key);
        }
        if let Some(partition) = self.partition {
            record = record.partition(partition);
        }
        (record, size)
    }
}
