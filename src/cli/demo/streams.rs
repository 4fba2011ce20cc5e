//! Producers, live consumers, and the fresh consumer that checks.
//!
//! Producers share one thread and consumers another, each with a runtime of its own; the broker's crash reaches them as it reaches any
//! client, and nothing here helps them over it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::input::Input;
use super::ledger::{Ack, ID_HEADER, Ledger, RecordId, Verdict, content_hash};
use crate::cli::bench::histogram::Latencies;
use crate::cli::exit::{Exit, Failure};
use crate::client::{Client, ConsumedBatch, Consumer, DeliveryFuture, ProduceError, Producer, ProducerRecord, SeekTo};
use crate::request::OffsetSpec;
use crate::types::Offset;

/// Records that wait for their acknowledgement, bytes for each producer. More would only add to the latency.
const BUFFER_BYTES: usize = 2 << 20;
/// A producer sends no faster, so that ten seconds fit into memory and a small disk; `bench` shows the most.
const MOST_PER_SECOND: u64 = 200_000;
/// How many records are sent between two looks at the clock.
const PACE_STEP: u64 = 100;
/// How far a producer may be behind its pace and still catch up: what a crash costs is not made up for.
const MOST_BEHIND: Duration = Duration::from_millis(50);
/// How long the check waits for the next batch.
const CHECK_STALL: Duration = Duration::from_secs(20);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Every shard, with commas.
    pub addresses: String,
    /// The topic.
    pub topic: String,
    /// Its partitions.
    pub partitions: u32,
    /// Producers.
    pub producers: u8,
    /// Live consumers; each takes its share of the partitions.
    pub consumers: u32,
    /// The least number of records.
    pub records: u64,
    /// The least time of sending.
    pub time: Duration,
}

impl Plan {
    async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::builder(&self.addresses).client_id("demo").connect().await?)
    }

    /// All partitions from `numbers` on, read from the start.
    async fn consumer(&self, numbers: impl Iterator<Item = u32>) -> Result<Consumer, Failure> {
        let mut consumer = self.connect().await?.consumer().build()?;
        for partition in numbers {
            consumer.assign(&self.topic, partition, SeekTo::Earliest).await?;
        }
        Ok(consumer)
    }
}

/// What has happened so far. Counters for showing and for timing; the verdict does not rest on them.
#[derive(Debug, Default)]
pub struct Progress {
    /// Records given to producers.
    pub sent: AtomicU64,
    /// Records acknowledged.
    pub acked: AtomicU64,
    /// Bytes of their keys and values.
    pub acked_bytes: AtomicU64,
    /// Records given up.
    pub undelivered: AtomicU64,
    /// Records that the live consumers have read.
    pub consumed: AtomicU64,
    /// The broker is back; producers do not end before.
    pub is_recovered: AtomicBool,
}

impl Progress {
    /// Sent, but neither acknowledged nor given up.
    pub fn in_flight(&self) -> u64 {
        // What is settled is read first: it never exceeds what was sent by then.
        let settled = self.acked.load(Ordering::Acquire) + self.undelivered.load(Ordering::Acquire);
        self.sent.load(Ordering::Acquire) - settled
    }
}

/// What the producers came to.
#[derive(Debug)]
pub struct Produced {
    /// Their acknowledgements.
    pub ledger: Ledger,
    /// From sending to acknowledgement.
    pub latencies: Latencies,
    /// Of sending, until the last acknowledgement.
    pub seconds: f64,
    /// Why the first record that was given up was.
    pub first_failure: Option<String>,
}

/// Sends until the plan is fulfilled, and waits for every acknowledgement.
///
/// # Errors
/// The topic can't be written to.
pub async fn produce(plan: &Plan, input: &Input, progress: &'static Progress) -> Result<Produced, Failure> {
    let started = Instant::now();
    let streams = try_join_all((0..plan.producers).map(|number| run_producer(plan, input, progress, number, started))).await?;
    let seconds = started.elapsed().as_secs_f64();
    let mut ledger = Ledger::new(plan.partitions, streams.iter().map(|stream| stream.sent).collect());
    let (mut latencies, mut first_failure) = (Latencies::new(), None);
    for (number, stream) in streams.into_iter().enumerate() {
        for (partition, lane) in stream.lanes.into_iter().enumerate() {
            latencies.merge(&lane.latencies);
            first_failure = first_failure.or(lane.failure.map(|e| e.to_string()));
            ledger.set_lane(number as u8, partition as u32, lane.acks);
        }
    }
    Ok(Produced { ledger, latencies, seconds, first_failure })
}

/// What one producer sent.
struct Stream {
    sent: u64,
    /// By partition.
    lanes: Vec<Lane>,
}

/// What became of one producer's records in one partition.
#[derive(Default)]
struct Lane {
    acks: Vec<Ack>,
    latencies: Latencies,
    failure: Option<ProduceError>,
}

/// A record on its way.
struct Pending {
    delivery: DeliveryFuture,
    sequence: u64,
    hash: u64,
    bytes: u64,
    sent_at: Instant,
}

async fn run_producer(plan: &Plan, input: &Input, progress: &'static Progress, number: u8, started: Instant) -> Result<Stream, Failure> {
    let producer = plan.connect().await?.producer().buffer_memory(BUFFER_BYTES).build()?;
    // Unbounded, as the producer's buffer bounds what can be on its way.
    let (notes, collectors): (Vec<_>, Vec<JoinHandle<Lane>>) = (0..plan.partitions)
        .map(|_| {
            let (note, noted) = mpsc::unbounded_channel();
            (note, tokio::spawn(collect(noted, progress)))
        })
        .unzip();
    let mut pace = Pace { begin: Instant::now(), steps: 0 };
    let mut sequence = 0;
    loop {
        if sequence % PACE_STEP == 0 {
            let is_enough = progress.sent.load(Ordering::Relaxed) >= plan.records && started.elapsed() >= plan.time;
            if is_enough && progress.is_recovered.load(Ordering::Relaxed) {
                break;
            }
            pace.step().await;
        }
        // Each producer takes every third line, say.
        let (key, value) = input.record(sequence * u64::from(plan.producers) + u64::from(number));
        let pending = send(&producer, plan, RecordId { producer: number, sequence }, key, value).await?;
        progress.sent.fetch_add(1, Ordering::Release);
        let note = &notes[pending.delivery.partition() as usize];
        note.send(pending).map_err(|_| ended("a task that takes acknowledgements"))?;
        sequence += 1;
    }
    drop(notes);
    producer.flush().await;
    let mut lanes = Vec::new();
    for collector in collectors {
        lanes.push(collector.await.map_err(|_| ended("a task that takes acknowledgements"))?);
    }
    Ok(Stream { sent: sequence, lanes })
}

async fn send(producer: &Producer, plan: &Plan, id: RecordId, key: &[u8], value: &[u8]) -> Result<Pending, Failure> {
    let sent_at = Instant::now();
    let bytes = id.encode();
    let headers = [(ID_HEADER, Some(&bytes[..]))];
    let delivery = producer.send_nowait(ProducerRecord::to(&plan.topic).key(key).value(value).headers(&headers)).await?;
    let hash = content_hash(Some(key), Some(value));
    Ok(Pending { delivery, sequence: id.sequence, hash, bytes: (key.len() + value.len()) as u64, sent_at })
}

/// Holds a producer to [`MOST_PER_SECOND`].
struct Pace {
    begin: Instant,
    steps: u32,
}

impl Pace {
    async fn step(&mut self) {
        const STEP: Duration = Duration::from_nanos(1_000_000_000 / MOST_PER_SECOND * PACE_STEP);
        let due = self.begin + STEP * self.steps;
        self.steps += 1;
        let now = Instant::now();
        if now < due {
            tokio::time::sleep_until(due.into()).await;
        } else if now - due > MOST_BEHIND {
            *self = Pace { begin: now, steps: 1 };
        }
    }
}

/// Takes the acknowledgements of one partition, in the order of sending.
async fn collect(mut noted: mpsc::UnboundedReceiver<Pending>, progress: &'static Progress) -> Lane {
    let mut lane = Lane::default();
    while let Some(Pending { delivery, sequence, hash, bytes, sent_at }) = noted.recv().await {
        match delivery.await {
            Ok(at) => {
                lane.acks.push(Ack { sequence, offset: at.offset, hash });
                lane.latencies.record(sent_at.elapsed());
                progress.acked_bytes.fetch_add(bytes, Ordering::Relaxed);
                progress.acked.fetch_add(1, Ordering::Release);
            }
            Err(error) => {
                lane.failure.get_or_insert(error);
                progress.undelivered.fetch_add(1, Ordering::Release);
            }
        }
    }
    lane
}

/// Reads along until `stop` says so.
///
/// # Errors
/// A partition can't be read on.
pub async fn consume(plan: &Plan, progress: &Progress, stop: watch::Receiver<bool>) -> Result<(), Failure> {
    try_join_all((0..plan.consumers).map(|number| run_consumer(plan, progress, number, stop.clone()))).await.map(|_| ())
}

async fn run_consumer(plan: &Plan, progress: &Progress, number: u32, mut stop: watch::Receiver<bool>) -> Result<(), Failure> {
    let mut consumer = plan.consumer((number..plan.partitions).step_by(plan.consumers as usize)).await?;
    loop {
        let batch = tokio::select! {
            biased;
            _ = stop.changed() => return Ok(()),
            batch = consumer.next_batch() => next(batch)?,
        };
        let mut count = 0;
        for record in batch.records() {
            record.map_err(unreadable)?;
            count += 1;
        }
        progress.consumed.fetch_add(count, Ordering::Relaxed);
    }
}

/// Reads everything with a fresh client and compares.
///
/// # Errors
/// It can't be read to the end.
pub async fn check(plan: &Plan, ledger: &Ledger) -> Result<Verdict, Failure> {
    let admin = plan.connect().await?.admin();
    let mut unread: Vec<Offset> = Vec::new();
    for partition in 0..plan.partitions {
        unread.push(admin.offset(&plan.topic, partition, OffsetSpec::Latest).await?.0);
    }
    let mut open = unread.iter().filter(|end| **end > 0).count();
    let mut consumer = plan.consumer(0..plan.partitions).await?;
    let mut check = ledger.check();
    while open > 0 {
        let batch = tokio::time::timeout(CHECK_STALL, consumer.next_batch()).await.map_err(|_| stalled(plan, &consumer))?;
        let batch = next(batch)?;
        for record in batch.records() {
            let record = record.map_err(unreadable)?;
            let id = record.headers.last(ID_HEADER).flatten().and_then(RecordId::decode);
            check.observe(batch.partition, record.offset, id, content_hash(record.key, record.value));
        }
        let end = &mut unread[batch.partition as usize];
        if *end > 0 && batch.next_offset() >= *end {
            *end = 0;
            open -= 1;
        }
        // Reading takes all that there is at once; who wants to interrupt it is let in here.
        tokio::task::yield_now().await;
    }
    Ok(check.finish())
}

fn next(batch: Option<Result<ConsumedBatch, crate::client::ConsumeError>>) -> Result<ConsumedBatch, Failure> {
    batch.ok_or_else(|| ended("a consumer"))?.map_err(unreadable)
}

fn unreadable(error: crate::client::ConsumeError) -> Failure {
    Failure::new(Exit::Failed, error.to_string())
}

fn ended(what: &str) -> Failure {
    Failure::new(Exit::Failed, format!("{what} ended early"))
}

fn stalled(plan: &Plan, consumer: &Consumer) -> Failure {
    let places: Vec<String> = consumer.positions().iter().map(|(_, partition, offset)| format!("{partition} at {offset}")).collect();
    let what = format!("no records came for {} s; partitions of {}: {}", CHECK_STALL.as_secs(), plan.topic, places.join(", "));
    Failure::new(Exit::Failed, what)
}
