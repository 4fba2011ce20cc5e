//! Producers and consumers, each a thread with a client of its own, that write down what they do and what they are told.
//!
//! A producer is idempotent, waits for all replicas and has many records on their way. The broker's failures are the client library's to deal with: an error that reaches
//! the program is a complaint, and the run fails by it.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corelane::client::{
    Client, ConsumedBatch, OffsetReset, ProduceError, ProduceFailure, Producer, ProducerRecord, RebalanceListener, RecordMetadata, SeekTo,
};
use corelane::request::{Acks, Code, OffsetSpec};
use corelane::types::Offset;

use super::network::Network;
use crate::checker::{self, ClientId, Event, History, Operation, Phase, Record, Value};
use crate::crash::Numbers;

/// Longer than any fault, with what a slow machine makes of it.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(180);
/// A client gives a broker up that does not answer for this long: one that is stopped, or cut off.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a consumer may take to the end of the log once nobody writes.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(120);
/// Complaints that are shown as they come.
const SHOWN: usize = 3;
/// Records of a producer that are not acknowledged yet.
const MOST_WAITING: usize = 500;

/// What clients have in common.
pub struct Shared {
    /// The topic.
    pub topic: String,
    /// Its partitions.
    pub partitions: u32,
    network: Arc<Network>,
    bootstrap: String,
    begun: Instant,
    history: Mutex<History>,
    complaints: Mutex<Vec<String>>,
    next_value: AtomicU64,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    read: AtomicU64,
    /// Producers send nothing more.
    ends: AtomicBool,
    /// What there is in the end, once it is known for good: consumers end there.
    last: Mutex<Option<Last>>,
    /// What the members of the group have read.
    group_read: Mutex<HashSet<Value>>,
    gaps: Vec<Mutex<Gap>>,
}

/// What a final read has found.
#[derive(Clone, Default)]
struct Last {
    /// By partition: one past its last offset.
    ends: BTreeMap<u32, Offset>,
    /// All values.
    values: HashSet<Value>,
}

/// Between acknowledgements of one partition.
#[derive(Clone, Copy, Debug)]
struct Gap {
    /// The last acknowledgement.
    last: Instant,
    /// The first one behind the last gap of half a second or more.
    steady: Instant,
    longest: Duration,
}

/// Whoever is without an acknowledgement for this long waits for something.
const STEADY: Duration = Duration::from_millis(500);

impl Gap {
    fn begin(now: Instant) -> Gap {
        Gap { last: now, steady: now, longest: Duration::ZERO }
    }

    fn acknowledged(&mut self) {
        let gap = self.last.elapsed();
        self.longest = self.longest.max(gap);
        self.last = Instant::now();
        if gap >= STEADY {
            self.steady = self.last;
        }
    }
}

/// How a producer sends.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Between two records.
    pub every: Duration,
    /// Longest of ordinary values, bytes.
    pub value_bytes: u64,
    /// One value in so many is of [`LARGE`] bytes; 0: none.
    pub large_one_in: u64,
}

/// A value that does not go by the journal.
const LARGE: usize = 600_000;

impl Shared {
    /// Clients of a topic that is there.
    pub fn new(network: Arc<Network>, bootstrap: String, topic: &str, partitions: u32) -> Arc<Shared> {
        let begun = Instant::now();
        Arc::new(Shared {
            topic: topic.into(),
            partitions,
            network,
            bootstrap,
            begun,
            history: Mutex::default(),
            complaints: Mutex::default(),
            next_value: AtomicU64::new(1),
            acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            read: AtomicU64::new(0),
            ends: AtomicBool::new(false),
            last: Mutex::new(None),
            group_read: Mutex::default(),
            gaps: (0..partitions).map(|_| Mutex::new(Gap::begin(begun))).collect(),
        })
    }

    fn push(&self, client: ClientId, phase: Phase, operation: Operation) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.push(Event { time_us: self.begun.elapsed().as_micros() as u64, client, phase, operation });
    }

    fn complain(&self, text: String) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.len() < SHOWN {
            eprintln!("a client: {text}");
        }
        complaints.push(text);
    }

    /// Records that are acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Records that were refused because a disk is full.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Records that consumers have read.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Errors that reached the program.
    pub fn complaints(&self) -> Vec<String> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What happened so far.
    pub fn history(&self) -> History {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The longest time without an acknowledgement of that partition begins anew.
    pub fn reset_gap(&self, partition: u32) {
        *self.gap(partition) = Gap::begin(Instant::now());
    }

    /// The longest time without an acknowledgement of that partition, the present one included.
    pub fn longest_gap(&self, partition: u32) -> Duration {
        let gap = self.gap(partition);
        gap.longest.max(gap.last.elapsed())
    }

    /// For how long records of that partition have been acknowledged without a gap of half a second.
    pub fn steady_for(&self, partition: u32) -> Duration {
        let gap = self.gap(partition);
        if gap.last.elapsed() >= STEADY { Duration::ZERO } else { gap.last.saturating_duration_since(gap.steady) }
    }

    fn gap(&self, partition: u32) -> std::sync::MutexGuard<'_, Gap> {
        self.gaps[partition as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Last>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ended(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// A client.
    pub async fn connect(&self, name: &str) -> Result<Client, String> {
        let builder = Client::builder(&self.bootstrap).client_id(name).request_timeout(REQUEST_TIMEOUT);
        builder.connect_timeout(REQUEST_TIMEOUT).connect().await.map_err(|e| e.to_string())
    }

    /// What the clients saw, judged.
    pub fn judge(&self) -> Result<(), String> {
        let history = self.history();
        let findings = checker::check(&history);
        if findings.is_empty() { Ok(()) } else { Err(checker::report(&history, &findings)) }
    }

    /// Does something as a client of the cluster, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl AsyncFnOnce(&Shared) -> Result<T, String> + Send) -> Result<T, String> {
        self.network.as_client(|| block_on(work(self)))?
    }
}

/// Does something as a client of a cluster that has no topic of ours yet.
pub fn as_client<T: Send>(
    network: &Network,
    bootstrap: &str,
    work: impl AsyncFnOnce(Client) -> Result<T, String> + Send,
) -> Result<T, String> {
    network.as_client(|| {
        block_on(async {
            let client = Client::connect(bootstrap).await.map_err(|e| e.to_string())?;
            work(client).await
        })
    })?
}

fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(work)
}

/// The same where tasks stay on this thread.
pub fn block_on_local<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    block_on(tokio::task::LocalSet::new().run_until(work))
}

/// Running clients.
pub struct Clients {
    /// What they have in common.
    pub shared: Arc<Shared>,
    producers: Vec<JoinHandle<()>>,
    consumers: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts producers, consumers that read everything, and members of one group.
    pub fn start(shared: Arc<Shared>, (producers, consumers, members): (u32, u32, u32), load: Load, seed: u64) -> Clients {
        let spawn = |id: ClientId, work: Box<dyn FnOnce(Arc<Shared>) -> Result<(), String> + Send>| {
            let shared = shared.clone();
            std::thread::spawn(move || {
                let outcome = shared.network.enter_clients().and_then(|()| work(shared.clone()));
                if let Err(text) = outcome {
                    shared.complain(format!("client {id} ends: {text}"));
                }
            })
        };
        let producers = (1..=producers)
            .map(|id| spawn(id, Box::new(move |shared| block_on(produce(shared, id, load, Numbers(seed ^ u64::from(id)))))))
            .collect();
        let readers = (101..=100 + consumers).map(|id| spawn(id, Box::new(move |shared| block_on(consume(shared, id)))));
        let members = (201..=200 + members).map(|id| spawn(id, Box::new(move |shared| block_on(consume_in_group(shared, id)))));
        let consumers = readers.chain(members).collect();
        Clients { shared, producers, consumers }
    }

    /// Lets producers settle what they have, reads every partition to its end, and lets consumers come to it too.
    pub fn finish(mut self) -> Result<(), String> {
        self.shared.ends.store(true, Ordering::Relaxed);
        for producer in self.producers.drain(..) {
            producer.join().map_err(|_| "a producer has panicked")?;
        }
        let last = self.shared.run(async |shared| read_all(shared).await)?;
        *self.shared.last() = Some(last);
        for consumer in self.consumers.drain(..) {
            consumer.join().map_err(|_| "a consumer has panicked")?;
        }
        Ok(())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        *self.shared.last() = Some(Last::default());
    }
}

fn send(id: ClientId, partition: u32, value: Value, offset: Option<Offset>) -> Operation {
    Operation::Send { producer: Some(i64::from(id)), partition, value, offset }
}

async fn produce(shared: Arc<Shared>, id: ClientId, load: Load, mut random: Numbers) -> Result<(), String> {
    let client = shared.connect(&format!("producer-{id}")).await?;
    let producer: Producer = client
        .producer()
        .acks(Acks::All)
        .idempotence(true)
        .linger(Duration::from_millis(2))
        .delivery_timeout(DELIVERY_TIMEOUT)
        .build()
        .map_err(|e| e.to_string())?;
    let waiting = Arc::new(tokio::sync::Semaphore::new(MOST_WAITING));
    let mut tasks = tokio::task::JoinSet::new();
    let mut tick = tokio::time::interval(load.every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !shared.is_ended() {
        tick.tick().await;
        let permit = waiting.clone().acquire_owned().await.map_err(|e| e.to_string())?;
        let value = shared.next_value.fetch_add(1, Ordering::Relaxed);
        let partition = random.below(u64::from(shared.partitions)) as u32;
        let is_large = load.large_one_in > 0 && random.below(load.large_one_in) == 0;
        let bytes = encode(value, if is_large { LARGE } else { 8 + random.below(load.value_bytes) as usize });
        shared.push(id, Phase::Invoke, send(id, partition, value, None));
        let record = ProducerRecord::to(&shared.topic).partition(partition).value(&bytes);
        let sent = producer.send_nowait(record).await;
        let shared = shared.clone();
        tasks.spawn(async move {
            let outcome = match sent {
                Ok(delivery) => delivery.await,
                Err(error) => Err(error),
            };
            shared.settle(id, partition, value, outcome);
            drop(permit);
        });
        while tasks.try_join_next().is_some() {}
    }
    producer.flush().await;
    while tasks.join_next().await.is_some() {}
    Ok(())
}

impl Shared {
    fn settle(&self, id: ClientId, partition: u32, value: Value, outcome: Result<RecordMetadata, ProduceError>) {
        match outcome {
            Ok(metadata) => {
                self.push(id, Phase::Ok, send(id, partition, value, Some(metadata.offset)));
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
                self.gap(partition).acknowledged();
            }
            Err(ProduceError { cause: ProduceFailure::Client(error), .. }) if error.code() == Some(Code::DiskFull) => {
                self.push(id, Phase::Fail, send(id, partition, value, None));
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
            // It may be there all the same.
            Err(error) => {
                self.push(id, Phase::Info, send(id, partition, value, None));
                self.complain(format!("producer {id}, value {value}: {error}"));
            }
        }
    }
}

async fn consume(shared: Arc<Shared>, id: ClientId) -> Result<(), String> {
    let client = shared.connect(&format!("consumer-{id}")).await?;
    let mut consumer = client.consumer().max_wait(Duration::from_millis(500)).build().map_err(|e| e.to_string())?;
    for partition in 0..shared.partitions {
        consumer.assign(&shared.topic, partition, SeekTo::Offset(0)).await.map_err(|e| e.to_string())?;
    }
    let positions = (0..shared.partitions).map(|partition| (partition, Some(0))).collect();
    shared.push(id, Phase::Ok, Operation::Assign { positions });
    let mut position = vec![0; shared.partitions as usize];
    let mut ends_since = None;
    loop {
        if let Some(last) = &*shared.last() {
            let behind = last.ends.iter().find(|(partition, end)| position[**partition as usize] < **end);
            let Some((partition, end)) = behind else { return Ok(()) };
            if ends_since.get_or_insert_with(Instant::now).elapsed() > CATCH_UP_PATIENCE {
                return Err(format!("it is at {} of partition {partition}, which ends at {end}", position[*partition as usize]));
            }
        }
        let Ok(next) = tokio::time::timeout(Duration::from_millis(200), consumer.next_batch()).await else { continue };
        match next {
            Some(Ok(batch)) => {
                let records = records_of(&batch)?;
                shared.read.fetch_add(records.len() as u64, Ordering::Relaxed);
                position[batch.partition as usize] = batch.next_offset();
                shared.push(id, Phase::Ok, Operation::Poll { records });
            }
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("there is nothing to read any more".into()),
        }
    }
}

fn records_of(batch: &ConsumedBatch) -> Result<Vec<Record>, String> {
    let record = |record: Result<corelane::batch::RecordRef<'_>, _>| {
        let record = record.map_err(|e: corelane::client::ConsumeError| e.to_string())?;
        Ok(Record { partition: batch.partition, offset: record.offset, value: decode(record.value.unwrap_or_default())? })
    };
    batch.records().map(record).collect()
}

/// A member of a group: whatever it is given, from where the group has committed. What the group has read all together must be everything.
async fn consume_in_group(shared: Arc<Shared>, id: ClientId) -> Result<(), String> {
    let client = shared.connect(&format!("member-{id}")).await?;
    let member = client.group_consumer("faulty").subscribe([shared.topic.clone()]).offset_reset(OffsetReset::Earliest);
    let member = member.session_timeout(SESSION).auto_commit(Duration::from_millis(500));
    let member = member.on_rebalance(Rebalanced { shared: shared.clone(), id });
    let mut member = member.reading(|consumer| consumer.max_wait(Duration::from_millis(500))).build().map_err(|e| e.to_string())?;
    let mut ends_since = None;
    loop {
        let left = shared.last().as_ref().map(|last| {
            let read = shared.group_read.lock().unwrap_or_else(PoisonError::into_inner);
            last.values.iter().filter(|value| !read.contains(*value)).count()
        });
        match left {
            Some(0) => return member.close().await.map_err(|e| e.to_string()),
            Some(left) if ends_since.get_or_insert_with(Instant::now).elapsed() > CATCH_UP_PATIENCE => {
                return Err(format!("{left} records were read by no member of its group; it has {:?}", member.assignment()));
            }
            _ => {}
        }
        let until = tokio::time::Instant::now() + Duration::from_millis(500);
        while let Ok(next) = tokio::time::timeout_at(until, member.next_batch()).await {
            let batch = next.map_err(|e| e.to_string())?;
            let records = records_of(&batch)?;
            shared.group_read.lock().unwrap_or_else(PoisonError::into_inner).extend(records.iter().map(|record| record.value));
            shared.push(id, Phase::Ok, Operation::Poll { records });
        }
    }
}

/// Whoever is silent for this long is no member any more: as long as a client needs to notice that its coordinator has gone, and to find the next one.
const SESSION: Duration = Duration::from_secs(20);

/// Writes down that a member reads from somewhere else from now on.
struct Rebalanced {
    shared: Arc<Shared>,
    id: ClientId,
}

impl RebalanceListener for Rebalanced {
    fn assigned(&mut self, _partitions: &[(String, Vec<u32>)]) {
        self.shared.push(self.id, Phase::Ok, Operation::Subscribe);
    }

    fn revoked(&mut self, _partitions: &[(String, Vec<u32>)]) {
        self.shared.push(self.id, Phase::Ok, Operation::Subscribe);
    }
}

/// Reads everything there is.
async fn read_all(shared: &Shared) -> Result<Last, String> {
    let client = shared.connect("reader").await?;
    let mut last = Last::default();
    for partition in 0..shared.partitions {
        let offset = async |spec| client.admin().offset(&shared.topic, partition, spec).await.map_err(|e| e.to_string());
        let (start, end) = (offset(OffsetSpec::Earliest).await?.0, offset(OffsetSpec::Latest).await?.0);
        if start != 0 {
            // Retention is off: what the judge sees from there on would be only the rest.
            return Err(format!("partition {partition} begins at {start}, and nothing was to be deleted"));
        }
        let mut consumer = client.consumer().build().map_err(|e| e.to_string())?;
        consumer.assign(&shared.topic, partition, SeekTo::Offset(start)).await.map_err(|e| e.to_string())?;
        let (mut records, mut next) = (Vec::new(), start);
        while next < end {
            let read = tokio::time::timeout(CATCH_UP_PATIENCE, consumer.next_batch()).await;
            let batch = read.map_err(|_| format!("partition {partition} can't be read at {next}, and ends at {end}"))?;
            let batch = batch.ok_or("there is nothing to read any more")?.map_err(|e| e.to_string())?;
            records.extend(records_of(&batch)?.into_iter().map(|record| (record.offset, record.value)));
            next = batch.next_offset();
        }
        last.values.extend(records.iter().map(|(_, value)| *value));
        last.ends.insert(partition, end);
        shared.push(999, Phase::Ok, Operation::FinalRead { partition, start, end, records });
    }
    Ok(last)
}

/// A value of that length which is told from all others by its first bytes; the rest follows from them.
fn encode(value: Value, len: usize) -> Vec<u8> {
    let mut bytes = value.to_le_bytes().to_vec();
    let mut filler = Numbers(value);
    while bytes.len() < len {
        bytes.extend_from_slice(&filler.draw().to_le_bytes());
    }
    bytes.truncate(len.max(8));
    bytes
}

/// The value of a record, all of whose bytes must be its own.
fn decode(bytes: &[u8]) -> Result<Value, String> {
    let value = bytes.first_chunk().map(|first| u64::from_le_bytes(*first)).ok_or_else(|| format!("a value of {} bytes", bytes.len()))?;
    if encode(value, bytes.len()) == bytes { Ok(value) } else { Err(format!("value {value} has other bytes than were sent")) }
}
