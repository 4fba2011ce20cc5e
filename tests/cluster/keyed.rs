//! Keyed load at a pace: producers whose latencies are taken, one reader, and what both saw judged in the end.
//!
//! A pace is closed (a number of records on their way, as fast as it goes: the maximum) or open (so many a second, whatever becomes of them). In
//! an open one a latency counts from when the record
//! was meant to be sent, so that whoever is held up is not left out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corelane::cli::bench::histogram::Latencies;
use corelane::cli::bench::pacer::{Pacer, Schedule};
use corelane::client::{Client, ConsumedBatch, DeliveryFuture, NewTopic, ProducerRecord, SeekTo};
use corelane::request::{Acks, OffsetSpec};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::clients::block_on_local;
use super::network::Network;
use super::nodes::Nodes;
use super::order::{Order, key_bytes};
use crate::crash::Numbers;

/// Bytes of a value.
pub const VALUE: usize = 1024;
/// Keys of each producer.
const KEYS: u64 = 500;
/// Producers, each a thread.
const PRODUCERS: u64 = 2;
/// Records on their way of each producer in a closed loop.
const IN_FLIGHT: usize = 1000;
/// Longest time for which a closed loop goes on before its maximum is taken.
const WARM_UP: Duration = Duration::from_secs(2);
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a reader may take to the end of the log.
const READ_PATIENCE: Duration = Duration::from_secs(180);

/// What all threads have in common.
pub struct Common {
    /// The topic.
    pub topic: String,
    network: Arc<Network>,
    bootstrap: String,
    /// How many partitions it has or had.
    partitions: Mutex<Vec<u32>>,
    /// How long new partitions may go unnoticed; `None`: the client's default.
    metadata_max_age: Option<Duration>,
    pace: Mutex<Pace>,
    /// Counts changes of the pace.
    paces: AtomicU64,
    latencies: Mutex<Latencies>,
    acknowledged: AtomicU64,
    /// By partition: when the first record was acknowledged.
    first_written: Mutex<HashMap<u32, Instant>>,
    complaint: Mutex<Option<String>>,
    ends: AtomicBool,
    /// By partition, once nobody writes any more: one past the last offset.
    last: Mutex<Option<Vec<i64>>>,
    order: Mutex<Order>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Pace {
    Closed,
    /// Records a second of each producer.
    Open(f64),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where load goes, and how.
pub struct Shape<'a> {
    /// A topic that is there.
    pub topic: &'a str,
    /// Its partitions.
    pub partitions: u32,
    /// Records a second in the beginning.
    pub per_second: f64,
    /// How long new partitions may go unnoticed; `None`: the client's default.
    pub metadata_max_age: Option<Duration>,
    /// Whether a reader reads and judges what is written from the beginning.
    pub is_read: bool,
}

/// Running load.
pub struct Keyed {
    /// What it has in common with others.
    pub common: Arc<Common>,
    producers: Vec<JoinHandle<HashMap<u64, u64>>>,
    reader: Option<JoinHandle<()>>,
}

impl Keyed {
    /// Starts it.
    pub fn start(network: Arc<Network>, bootstrap: String, shape: &Shape<'_>) -> Keyed {
        let common = Arc::new(Common {
            topic: shape.topic.into(),
            network,
            bootstrap,
            partitions: Mutex::new(vec![shape.partitions]),
            metadata_max_age: shape.metadata_max_age,
            pace: Mutex::new(Pace::Open(shape.per_second / PRODUCERS as f64)),
            paces: AtomicU64::new(0),
            latencies: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            first_written: Mutex::default(),
            complaint: Mutex::new(None),
            ends: AtomicBool::new(false),
            last: Mutex::new(None),
            order: Mutex::default(),
        });
        let producers = (0..PRODUCERS).map(|id| common.spawn(async move |common| produce(common, id).await)).collect();
        let reader = shape.is_read.then(|| common.spawn(async |common| read(common).await));
        Keyed { common, producers, reader }
    }

    fn measure_maximum(&self, within: Duration) -> f64 {
        self.common.set_pace(Pace::Closed);
        std::thread::sleep(WARM_UP.min(within));
        let (begun, before) = (Instant::now(), self.common.acknowledged());
        std::thread::sleep(within);
        (self.common.acknowledged() - before) as f64 / begun.elapsed().as_secs_f64()
    }

    /// So many records a second from now on.
    pub fn set_rate(&self, per_second: f64) {
        self.common.set_pace(Pace::Open(per_second / PRODUCERS as f64));
    }

    /// Latencies of what was acknowledged since this was called last.
    pub fn take_latencies(&self) -> Latencies {
        std::mem::take(&mut *lock(&self.common.latencies))
    }

    /// Latencies of what is acknowledged in that time.
    pub fn latencies_within(&self, time: Duration) -> Latencies {
        self.take_latencies();
        std::thread::sleep(time);
        self.take_latencies()
    }

    /// [`Common::expect_no_complaint`].
    pub fn expect_no_complaint(&self) -> Result<(), String> {
        self.common.expect_no_complaint()
    }

    /// Of a topic of its own, which is gone afterwards: records a second, as many as it gets acknowledged in that time with a closed loop.
    pub fn maximum_of(nodes: &Nodes, partitions: u32, within: Duration) -> Result<f64, String> {
        const TOPIC: &str = "maximum";
        let new = NewTopic::new(TOPIC).partitions(partitions).replication_factor(3).config("min.insync.replicas", "2");
        nodes.create_topic(new)?;
        let shape = Shape { topic: TOPIC, partitions, per_second: 1.0, metadata_max_age: None, is_read: false };
        let load = Keyed::start(nodes.network.clone(), nodes.bootstrap(), &shape);
        let maximum = load.measure_maximum(within);
        load.finish()?;
        nodes.run_command(&["topic", "delete", TOPIC])?;
        Ok(maximum)
    }

    fn settle(&mut self) -> Result<HashMap<u64, u64>, String> {
        self.common.ends.store(true, Ordering::Relaxed);
        let mut sent = HashMap::new();
        for producer in self.producers.drain(..) {
            sent.extend(producer.join().map_err(|_| "a producer has panicked")?);
        }
        self.expect_no_complaint()?;
        Ok(sent)
    }

    /// Ends it and judges. By key: how many records there are.
    pub fn finish(mut self) -> Result<HashMap<u64, u64>, String> {
        let sent = self.settle()?;
        self.common.fix_ends()?;
        if let Some(reader) = self.reader.take() {
            reader.join().map_err(|_| "the reader has panicked")?;
            self.expect_no_complaint()?;
            lock(&self.common.order).judge(&sent)?;
        }
        Ok(sent)
    }
}

impl Drop for Keyed {
    fn drop(&mut self) {
        self.common.ends.store(true, Ordering::Relaxed);
        lock(&self.common.last).get_or_insert_default();
    }
}

impl Common {
    /// Does something as a client, on a thread of its own; its error is the load's.
    pub fn spawn<T: Default + Send + 'static>(
        self: &Arc<Self>,
        work: impl AsyncFnOnce(Arc<Common>) -> Result<T, String> + Send + 'static,
    ) -> JoinHandle<T> {
        let common = self.clone();
        std::thread::spawn(move || {
            let outcome = common.network.enter_clients().and_then(|()| block_on_local(work(common.clone())));
            outcome.unwrap_or_else(|error| {
                eprintln!("keyed load: {error}");
                lock(&common.complaint).get_or_insert(error);
                T::default()
            })
        })
    }

    /// An error that reached a producer or a reader.
    pub fn expect_no_complaint(&self) -> Result<(), String> {
        lock(&self.complaint).clone().map_or(Ok(()), Err)
    }

    /// A client of the cluster.
    pub async fn connect(&self) -> Result<Client, String> {
        Client::connect(&self.bootstrap).await.map_err(|e| e.to_string())
    }

    fn set_pace(&self, pace: Pace) {
        *lock(&self.pace) = pace;
        self.paces.fetch_add(1, Ordering::Release);
    }

    /// From now on records may be in as many partitions, too.
    pub fn add_partitions(&self, partitions: u32) {
        lock(&self.partitions).push(partitions);
    }

    /// Records that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// By partition: when the first of its records was acknowledged.
    pub fn first_written(&self) -> HashMap<u32, Instant> {
        lock(&self.first_written).clone()
    }

    /// Once nobody writes any more: where each partition ends.
    pub fn last(&self) -> Option<Vec<i64>> {
        lock(&self.last).clone()
    }

    /// Finds out where the partitions end, which readers then come to.
    fn fix_ends(self: &Arc<Self>) -> Result<(), String> {
        let most = lock(&self.partitions).iter().max().copied().unwrap_or(0);
        let ends = self.network.as_client(|| {
            block_on_local(async {
                let client = self.connect().await?;
                let mut ends = Vec::new();
                for partition in 0..most {
                    let found = client.admin().offset(&self.topic, partition, OffsetSpec::Latest).await;
                    ends.push(found.map_err(|e| e.to_string())?.0);
                }
                Ok(ends)
            })
        })?;
        *lock(&self.last) = Some(ends?);
        Ok(())
    }

    /// Notes the records of a batch.
    pub fn take(&self, batch: &ConsumedBatch, order: &mut Order) -> Result<(), String> {
        let partitions = lock(&self.partitions).clone();
        for record in batch.records() {
            let record = record.map_err(|e| e.to_string())?;
            let value = record.value.unwrap_or_default();
            let (key, number) = decode(value)
                .ok_or_else(|| format!("partition {} has a value of {} bytes that nobody has sent", batch.partition, value.len()))?;
            if record.key != Some(&key_bytes(key)) {
                return Err(format!("record {number} of key {key} has the key {:?}", record.key));
            }
            order.read(batch.partition, key, number, &partitions);
        }
        Ok(())
    }

    fn settled(&self, since: Instant) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        lock(&self.latencies).record(since.elapsed());
    }
}

/// A record on its way.
type Sent = (DeliveryFuture, Instant, Option<OwnedSemaphorePermit>);

/// What became of the records of one partition, in the order in which they were sent.
async fn settle_in_order(common: Arc<Common>, partition: u32, mut sent: UnboundedReceiver<Sent>) -> Result<(), String> {
    let mut is_first = true;
    while let Some((delivery, since, permit)) = sent.recv().await {
        delivery.await.map_err(|e| e.to_string())?;
        if std::mem::take(&mut is_first) {
            lock(&common.first_written).entry(partition).or_insert_with(Instant::now);
        }
        common.settled(since);
        drop(permit);
    }
    Ok(())
}

async fn produce(common: Arc<Common>, id: u64) -> Result<HashMap<u64, u64>, String> {
    let client = common.connect().await?;
    let mut settings = client.producer().acks(Acks::All).idempotence(true).delivery_timeout(DELIVERY_TIMEOUT);
    if let Some(age) = common.metadata_max_age {
        settings = settings.metadata_max_age(age);
    }
    let producer = settings.build().map_err(|e| e.to_string())?;
    let pacer = Pacer::new().map_err(|e| e.to_string())?;
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut lanes: HashMap<u32, UnboundedSender<Sent>> = HashMap::new();
    let mut tasks = tokio::task::JoinSet::new();
    let mut numbers: HashMap<u64, u64> = HashMap::new();
    let mut value = Vec::with_capacity(VALUE);
    let (mut paces, mut schedule, mut at) = (u64::MAX, None, 0);
    for n in 0_u64.. {
        if common.ends.load(Ordering::Relaxed) {
            break;
        }
        let changes = common.paces.load(Ordering::Acquire);
        if paces != changes {
            (paces, at) = (changes, 0);
            schedule = match *lock(&common.pace) {
                Pace::Open(per_second) => Some(Schedule::new(Instant::now(), per_second)),
                Pace::Closed => None,
            };
        }
        let (since, permit) = match &schedule {
            Some(schedule) => {
                let due = schedule.intended(at);
                pacer.until(due).await.map_err(|e| e.to_string())?;
                (due, None)
            }
            None => {
                let permit = in_flight.clone().acquire_owned().await.map_err(|e| e.to_string())?;
                (Instant::now(), Some(permit))
            }
        };
        at += 1;
        let key = id + n % KEYS * PRODUCERS;
        let number = numbers.entry(key).or_default();
        *number += 1;
        encode(key, *number, &mut value);
        let name = key_bytes(key);
        let record = ProducerRecord::to(&common.topic).key(&name).value(&value);
        let delivery = producer.send_nowait(record).await.map_err(|e| e.to_string())?;
        let partition = delivery.partition();
        let lane = lanes.entry(partition).or_insert_with(|| {
            let (lane, sent) = unbounded_channel();
            tasks.spawn_local(settle_in_order(common.clone(), partition, sent));
            lane
        });
        // It is closed after an error only, which its task tells.
        if lane.send((delivery, since, permit)).is_err() {
            break;
        }
    }
    producer.flush().await;
    lanes.clear();
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|e| e.to_string())??;
    }
    Ok(numbers)
}

async fn read(common: Arc<Common>) -> Result<(), String> {
    let client = common.connect().await?;
    let mut settings = client.consumer().max_wait(Duration::from_millis(500));
    if let Some(age) = common.metadata_max_age {
        settings = settings.metadata_max_age(age);
    }
    let mut consumer = settings.build().map_err(|e| e.to_string())?;
    consumer.assign_topic(&common.topic, SeekTo::Offset(0)).await.map_err(|e| e.to_string())?;
    let mut positions: HashMap<u32, i64> = HashMap::new();
    let mut ends_since = None;
    loop {
        if let Some(ends) = common.last() {
            let position = |partition: usize| positions.get(&(partition as u32)).copied().unwrap_or(0);
            let Some(behind) = (0..ends.len()).find(|partition| position(*partition) < ends[*partition]) else { return Ok(()) };
            if ends_since.get_or_insert_with(Instant::now).elapsed() > READ_PATIENCE {
                return Err(format!("the reader is at {} of partition {behind}, which ends at {}", position(behind), ends[behind]));
            }
        }
        let Ok(next) = tokio::time::timeout(Duration::from_millis(200), consumer.next_batch()).await else { continue };
        let batch = next.ok_or("there is nothing to read any more")?.map_err(|e| e.to_string())?;
        common.take(&batch, &mut lock(&common.order))?;
        positions.insert(batch.partition, batch.next_offset());
    }
}

/// A value: its key, its number, and bytes that follow from them.
fn encode(key: u64, number: u64, value: &mut Vec<u8>) {
    value.clear();
    value.extend_from_slice(&key.to_le_bytes());
    value.extend_from_slice(&number.to_le_bytes());
    let mut filler = Numbers(key ^ number.rotate_left(32));
    while value.len() < VALUE {
        value.extend_from_slice(&filler.draw().to_le_bytes());
    }
}

/// Key and number of a value, all of whose bytes must be its own.
fn decode(value: &[u8]) -> Option<(u64, u64)> {
    let (key, number) = (value.first_chunk()?, value.get(8..)?.first_chunk()?);
    let (key, number) = (u64::from_le_bytes(*key), u64::from_le_bytes(*number));
    let mut expected = Vec::with_capacity(VALUE);
    encode(key, number, &mut expected);
    (expected == value).then_some((key, number))
}
