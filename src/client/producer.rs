//! Sends records: the tokio shell around [`Accumulator`].
//!
//! A record is copied once, into its batch, by the thread that sends it; that thread also writes the request to the socket when one is ready
//! and the connection has room for it. Answers are handled in the connection's reading task. A small task per producer keeps the time.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::accumulator::{Accumulator, BatchKey, Draft, Parts, Placed, Settings, Settled};
use super::backoff::Backoff;
use super::brokers::{Brokers, Target, unexpected};
use super::connection::{Answer, Connection};
use super::delivery::{DeliveryFuture, RecordMetadata};
use super::error::{ClientError, ProduceError, ProduceFailure};
use super::large;
use super::partitioner::Partitioning;
use super::session::Micros;
use crate::batch::Compression;
use crate::limits;
use crate::request::{Acks, Code, Produce, ProduceBatch, ProduceResult, Request, Response};
use crate::types::Timestamp;

/// A record to be sent, borrowed: its bytes are copied into the batch.
#[derive(Clone, Copy, Debug)]
pub struct ProducerRecord<'a> {
    topic: &'a str,
    partition: Option<u32>,
    timestamp: Option<Timestamp>,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: &'a [(&'a str, Option<&'a [u8]>)],
}

impl<'a> ProducerRecord<'a> {
    /// A record for that topic, without key, value and headers.
    pub fn to(topic: &'a str) -> ProducerRecord<'a> {
        ProducerRecord { topic, partition: None, timestamp: None, key: None, value: None, headers: &[] }
    }

    /// Its key.
    pub fn key(mut self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> ProducerRecord<'a> {
        self.key = Some(key.as_ref());
        self
    }

    /// Its value; a record without one is a tombstone.
    pub fn value(mut self, value: &'a (impl AsRef<[u8]> + ?Sized)) -> ProducerRecord<'a> {
        self.value = Some(value.as_ref());
        self
    }

    /// Its headers: names and values, in order.
    pub fn headers(mut self, headers: &'a [(&'a str, Option<&'a [u8]>)]) -> ProducerRecord<'a> {
        self.headers = headers;
        self
    }

    /// Its partition; without one the producer's partitioning chooses.
    pub fn partition(mut self, partition: u32) -> ProducerRecord<'a> {
        self.partition = Some(partition);
        self
    }

    /// Its timestamp, ms since the Unix epoch; without one it is the time of sending.
    pub fn timestamp(mut self, timestamp: Timestamp) -> ProducerRecord<'a> {
        self.timestamp = Some(timestamp);
        self
    }
}

/// Settings of a producer; made by [`super::Client::producer`].
#[derive(Clone)]
pub struct ProducerBuilder {
    brokers: Arc<Brokers>,
    acks: Acks,
    idempotence: Option<bool>,
    linger: Duration,
    batch_size: usize,
    compression: Compression,
    buffer_memory: usize,
    max_in_flight: usize,
    max_request: usize,
    delivery_timeout: Duration,
    metadata_max_age: Duration,
    partitioning: Partitioning,
}

impl ProducerBuilder {
    pub(super) fn new(brokers: Arc<Brokers>) -> ProducerBuilder {
        ProducerBuilder {
            brokers,
            acks: Acks::All,
            idempotence: None,
            linger: Duration::ZERO,
            batch_size: 256 * 1024,
            compression: Compression::None,
            buffer_memory: 64 * 1024 * 1024,
            max_in_flight: limits::PRODUCER_BATCHES,
            max_request: 1024 * 1024,
            delivery_timeout: Duration::from_secs(120),
            metadata_max_age: Duration::from_secs(300),
            partitioning: Partitioning::default(),
        }
    }

    /// What to wait for (default: all in-sync replicas).
    pub fn acks(mut self, acks: Acks) -> Self {
        self.acks = acks;
        self
    }

    /// Whether retries can neither duplicate nor reorder (default: yes with [`Acks::All`], the only one that it works with).
    pub fn idempotence(mut self, on: bool) -> Self {
        self.idempotence = Some(on);
        self
    }

    /// How long a batch waits for more records (default: not at all; while requests are in flight batches fill anyway).
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Size at which a batch is closed, bytes before compression (default: 256 KiB, from where on a broker writes a batch once only).
    /// A larger record is a batch of its own. Batches fill while requests are in flight, so a slow producer's stay small.
    pub fn batch_size(mut self, bytes: usize) -> Self {
        self.batch_size = bytes;
        self
    }

    /// How batches are compressed (default: not).
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Bytes of records that may wait for delivery (default: 64 MiB); at the bound, sending waits. One record may exceed it.
    pub fn buffer_memory(mut self, bytes: usize) -> Self {
        self.buffer_memory = bytes;
        self
    }

    /// Requests in flight per connection (default: 16, as many batches as a broker remembers of a producer in one partition).
    pub fn max_in_flight(mut self, requests: usize) -> Self {
        self.max_in_flight = requests;
        self
    }

    /// Bytes of a request that carries batches of several partitions (default: 1 MiB).
    pub fn max_request(mut self, bytes: usize) -> Self {
        self.max_request = bytes;
        self
    }

    /// From sending to giving up, retries included (default: 120 s). A request on its way is waited for.
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = timeout;
        self
    }

    /// How long partitions that were added to a topic may go unnoticed (default: 5 minutes; at least a millisecond).
    pub fn metadata_max_age(mut self, age: Duration) -> Self {
        self.metadata_max_age = age.max(Duration::from_millis(1));
        self
    }

    /// How records are spread over partitions (default: by key hash).
    pub fn partitioning(mut self, partitioning: Partitioning) -> Self {
        self.partitioning = partitioning;
        self
    }

    /// The producer. To be called within a tokio runtime, whose tasks do the work.
    ///
    /// # Errors
    /// A setting can't be.
    pub fn build(self) -> Result<Producer, ClientError> {
        let is_idempotent = self.idempotence.unwrap_or(self.acks == Acks::All);
        if is_idempotent && self.acks != Acks::All {
            return Err(ClientError::Invalid("idempotence needs acks all".into()));
        }
        for (name, value) in [("batch_size", self.batch_size), ("max_in_flight", self.max_in_flight), ("buffer_memory", self.buffer_memory)]
        {
            if value == 0 {
                return Err(ClientError::Invalid(format!("{name} must be at least 1, not 0")));
            }
        }
        let runtime = Handle::try_current().map_err(|_| ClientError::Invalid("a producer is built within a tokio runtime".into()))?;
        let backoff: Backoff = self.brokers.settings.backoff;
        let settings = Settings {
            batch_size: self.batch_size,
            linger: self.linger.as_micros() as Micros,
            compression: self.compression,
            buffer_memory: self.buffer_memory,
            max_in_flight: self.max_in_flight,
            max_request: self.max_request,
            delivery_timeout: self.delivery_timeout.as_micros() as Micros,
            is_idempotent,
            backoff,
            partitioning: self.partitioning,
        };
        let core = Core {
            accumulator: Accumulator::new(settings),
            last_topic: 0,
            next_wake: 0,
            is_asking_identity: false,
            connecting: HashSet::new(),
            draining: HashSet::new(),
            refreshing: HashSet::new(),
        };
        let inner = Arc::new(Inner {
            brokers: self.brokers,
            acks: self.acks,
            runtime,
            core: Mutex::new(core),
            pumps: AtomicU32::new(0),
            next_reader: AtomicU32::new(0),
            room: Notify::new(),
            timer: Arc::new(Notify::new()),
        });
        inner.runtime.spawn(keep_metadata(Arc::downgrade(&inner), self.metadata_max_age));
        inner.runtime.spawn(keep_time(Arc::downgrade(&inner), inner.timer.clone()));
        Ok(Producer { inner })
    }
}

/// Sends records. Cheap to clone; clones share buffer, order and identity.
///
/// Records that are sent one after the other into one partition are appended in that order.
///
/// To be flushed before the last clone is dropped where a linger is set: what lingers then is not sent any more.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use corelane::client::{Client, ProducerRecord};
/// let producer = Client::connect("localhost:9092").await?.producer().build()?;
/// let at = producer.send(ProducerRecord::to("orders").key("42").value("paid")).await?;
/// println!("partition {} offset {}", at.partition, at.offset);
///
/// // Many in flight: this waits only where the buffer is full.
/// let mut deliveries = Vec::new();
/// for n in 0..1_000_000u64 {
///     deliveries.push(producer.send_nowait(ProducerRecord::to("orders").value(&n.to_le_bytes())).await?);
/// }
/// for delivery in deliveries {
///     delivery.await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Producer {
    inner: Arc<Inner>,
}

struct Inner {
    brokers: Arc<Brokers>,
    acks: Acks,
    runtime: Handle,
    core: Mutex<Core>,
    /// Calls of `pump` that are not answered yet; who raises it from 0 works for all.
    pumps: AtomicU32,
    /// Whose turn it is for values from readers.
    next_reader: AtomicU32,
    /// Buffer memory was freed.
    room: Notify,
    /// The timekeeper must look again.
    timer: Arc<Notify>,
}

struct Core {
    accumulator: Accumulator,
    /// Where the last record's topic was found.
    last_topic: usize,
    /// When the timekeeper wakes.
    next_wake: Micros,
    is_asking_identity: bool,
    connecting: HashSet<u32>,
    /// Brokers whose connection has more to write than it may, without acknowledgements.
    draining: HashSet<u32>,
    refreshing: HashSet<Arc<str>>,
}

impl Producer {
    /// Sends a record and waits until it is acknowledged.
    ///
    /// # Errors
    /// See [`ProduceFailure`].
    pub async fn send(&self, record: ProducerRecord<'_>) -> Result<RecordMetadata, ProduceError> {
        self.send_nowait(record).await?.await
    }

    /// Sends a record without waiting for its acknowledgement: that is what the returned future is for.
    ///
    /// Waits only for the topic's metadata and for buffer memory.
    ///
    /// # Errors
    /// The record can't be sent: no such topic or partition, or it is too large.
    pub async fn send_nowait(&self, record: ProducerRecord<'_>) -> Result<DeliveryFuture, ProduceError> {
        loop {
            match self.inner.append(&record) {
                Ok(delivery) => {
                    // Whoever sends without end lets the tasks run that take the answers.
                    tokio::task::coop::consume_budget().await;
                    return Ok(delivery);
                }
                Err(error) => self.make_way(&record, error).await?,
            }
        }
    }

    /// Waits for what stood in the way.
    async fn make_way(&self, record: &ProducerRecord<'_>, error: ProduceError) -> Result<(), ProduceError> {
        match error.cause {
            ProduceFailure::BufferFull { .. } => {
                let room = self.inner.room.notified();
                if !self.inner.lock().accumulator.has_room() {
                    room.await;
                }
                Ok(())
            }
            // Partitions may have been added since.
            ProduceFailure::Client(ref cause) if cause.code() == Some(Code::UnknownTopicOrPartition) => {
                let found = self.inner.brokers.refresh_topic(record.topic).await.map_err(|cause| record_error(record, cause.into()))?;
                if record.partition.is_none_or(|wanted| wanted as usize >= found.partitions.len()) {
                    return Err(error);
                }
                self.inner.lock().accumulator.update_topic(record.topic, &found, self.inner.brokers.clock.now());
                Ok(())
            }
            ProduceFailure::NoMetadata => self.inner.load_topic(record.topic).await.map_err(|cause| record_error(record, cause.into())),
            _ => Err(error),
        }
    }

    /// As [`Producer::send_nowait`], without waiting for anything; to be called from anywhere.
    ///
    /// # Errors
    /// Also [`ProduceFailure::BufferFull`] and [`ProduceFailure::NoMetadata`], which pass.
    pub fn try_send(&self, record: ProducerRecord<'_>) -> Result<DeliveryFuture, ProduceError> {
        self.inner.append(&record)
    }

    /// Sends one record whose value is read from `value`, without holding it: exactly `length` bytes, up to 1 GiB where the topic allows it.
    ///
    /// The record goes by the hash of its key, or else to each partition in turn. It is a batch of its own on a connection of its own, uncompressed. A reader can't be read twice, so nothing
    /// is tried again once reading has begun; and there is no order between this record and others in flight.
    ///
    /// # Errors
    /// As [`Producer::send`]; [`ProduceFailure::Reader`] when the reader fails or has another number of bytes.
    pub async fn send_reader(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        length: u64,
        value: impl AsyncRead + Unpin,
    ) -> Result<RecordMetadata, ProduceError> {
        let record = ProducerRecord { key, ..ProducerRecord::to(topic) };
        let turn = self.inner.next_reader.fetch_add(1, Ordering::Relaxed);
        large::send_reader(&self.inner.brokers, self.inner.acks, large::Place { topic, key, turn }, length, timestamp_now(), value)
            .await
            .map_err(|cause| record_error(&record, cause))
    }

    /// Sends everything that is buffered now and waits until it is acknowledged or given up; what became of each record is told to its sender.
    pub async fn flush(&self) {
        let now = self.inner.brokers.clock.now();
        let unsettled = self.inner.lock().accumulator.flush(now);
        self.inner.pump();
        for batch in unsettled {
            let _ = DeliveryFuture::new(batch, 0, 0).await;
        }
    }

    /// Bytes of records that wait for delivery.
    pub fn buffered(&self) -> usize {
        self.inner.lock().accumulator.buffered()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(self: &Arc<Self>, record: &ProducerRecord<'_>) -> Result<DeliveryFuture, ProduceError> {
        let timestamp = record.timestamp.unwrap_or_else(timestamp_now);
        let parts = Parts { partition: record.partition, timestamp, key: record.key, value: record.value, headers: record.headers };
        let Placed { delivery, index, is_ready, is_earlier } = {
            let mut core = self.lock();
            let Some(topic) = core.accumulator.topic(record.topic, core.last_topic) else {
                return Err(record_error(record, ProduceFailure::NoMetadata));
            };
            core.last_topic = topic;
            core.accumulator.append(topic, &parts, || self.brokers.clock.now()).map_err(|cause| record_error(record, cause))?
        };
        if is_ready {
            self.pump();
        }
        if is_earlier {
            self.timer.notify_one();
        }
        Ok(DeliveryFuture::new(delivery, index, timestamp))
    }

    async fn load_topic(self: &Arc<Self>, name: &str) -> Result<(), ClientError> {
        let found = self.brokers.topic(name).await?;
        self.lock().accumulator.update_topic(name, &found, self.brokers.clock.now());
        Ok(())
    }

    /// Sends every request that is ready. Requests of one connection leave in the order in which they were made: one thread at a time
    /// is in here, and the others' calls make it look again.
    fn pump(self: &Arc<Self>) {
        if self.pumps.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        loop {
            let seen = self.pumps.load(Ordering::Acquire);
            self.pump_once();
            if self.pumps.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return;
            }
        }
    }

    fn pump_once(self: &Arc<Self>) {
        let ready = {
            let mut core = self.lock();
            let ready = core.accumulator.ready_brokers();
            if !ready.is_empty() && core.accumulator.needs_identity() {
                if !std::mem::replace(&mut core.is_asking_identity, true) {
                    self.runtime.spawn(self.clone().ask_identity());
                }
                return;
            }
            ready
        };
        for broker in ready {
            let Some(connection) = self.brokers.open_connection(broker) else {
                self.connect(broker);
                continue;
            };
            loop {
                // What is written counts as delivered and frees its memory: only a socket that takes it slows the sender down.
                if self.acks == Acks::None && connection.is_congested() {
                    self.pump_when_drained(broker, connection);
                    break;
                }
                let drafts = self.lock().accumulator.poll_request(broker, self.brokers.clock.now());
                let Some(drafts) = drafts else { break };
                self.send_request(broker, &connection, drafts);
            }
        }
    }

    fn pump_when_drained(self: &Arc<Self>, broker: u32, connection: Connection) {
        if !self.lock().draining.insert(broker) {
            return;
        }
        // Where nobody reads at the other end, this lasts: it does not keep a producer alive that is gone.
        let inner = Arc::downgrade(self);
        self.runtime.spawn(async move {
            connection.drained().await;
            drop(connection);
            let Some(inner) = inner.upgrade() else { return };
            inner.lock().draining.remove(&broker);
            inner.pump();
        });
    }

    fn send_request(self: &Arc<Self>, broker: u32, connection: &Connection, drafts: Vec<Draft>) {
        let mut keys = Vec::with_capacity(drafts.len());
        let mut batches = Vec::with_capacity(drafts.len());
        let mut payload: Vec<Bytes> = Vec::with_capacity(drafts.len());
        let mut start = 0;
        for draft in drafts {
            let bytes = draft.body.bytes();
            batches.push(ProduceBatch { partition: draft.place, range: start..start + bytes.len() });
            start += bytes.len();
            keys.push(draft.key);
            payload.push(bytes);
        }
        if self.acks != Acks::None {
            let mut core = self.lock();
            keys.iter().zip(&payload).for_each(|(key, bytes)| core.accumulator.store_bytes(*key, bytes.clone()));
        }
        let timeout = self.brokers.settings.connection.request_timeout;
        let request = Request::Produce(Produce { acks: self.acks, timeout_ms: timeout.as_millis() as u32, batches, crc_trailer: false });
        if self.acks == Acks::None {
            let sent = connection.send_unanswered(&request, &payload);
            let now = self.brokers.clock.now();
            let settled = match sent {
                Ok(()) => self.lock().accumulator.handle_unanswered(broker, &keys, now),
                Err(error) => self.lock().accumulator.handle_answer(broker, &keys, Err(error), now),
            };
            return self.settle(settled);
        }
        let inner = self.clone();
        connection.send(&request, &payload, timeout, Box::new(move |answer| inner.handle_answer(broker, &keys, answer)));
    }

    fn handle_answer(self: &Arc<Self>, broker: u32, keys: &[BatchKey], answer: Result<Answer, ClientError>) {
        let results: Result<Vec<ProduceResult>, ClientError> = answer.and_then(|answer| match answer.response {
            Response::Produce(results) => Ok(results),
            other => Err(unexpected(&other)),
        });
        let settled = self.lock().accumulator.handle_answer(broker, keys, results, self.brokers.clock.now());
        self.settle(settled);
    }

    /// Tells the senders, and goes on with what has become possible.
    fn settle(self: &Arc<Self>, settled: Settled) {
        let has_freed = !settled.done.is_empty();
        for (delivery, outcome) in settled.done {
            delivery.complete(outcome);
        }
        if has_freed {
            self.room.notify_waiters();
        }
        for topic in settled.stale_topics {
            self.refresh(topic);
        }
        let is_earlier = {
            let core = self.lock();
            core.accumulator.poll_timeout().is_some_and(|at| at < core.next_wake)
        };
        if is_earlier {
            self.timer.notify_one();
        }
        self.pump();
    }

    fn connect(self: &Arc<Self>, broker: u32) {
        if !self.lock().connecting.insert(broker) {
            return;
        }
        let inner = self.clone();
        self.runtime.spawn(async move {
            let connected = inner.brokers.connect(broker).await;
            let settled = {
                let mut core = inner.lock();
                core.connecting.remove(&broker);
                match connected {
                    Ok(_) => Settled::default(),
                    Err(error) => core.accumulator.handle_unreachable(broker, &error, inner.brokers.clock.now()),
                }
            };
            inner.settle(settled);
        });
    }

    /// Asks where the topic's leaders are now.
    fn refresh(self: &Arc<Self>, topic: Arc<str>) {
        if !self.lock().refreshing.insert(topic.clone()) {
            return;
        }
        let inner = self.clone();
        self.runtime.spawn(async move {
            let found = inner.brokers.find_leaders(&topic).await;
            let mut core = inner.lock();
            core.refreshing.remove(&topic);
            match found {
                Ok(found) => core.accumulator.update_topic(&topic, &found, inner.brokers.clock.now()),
                Err(error) => tracing::debug!(%topic, %error, "no fresh metadata"),
            }
            drop(core);
            inner.pump();
        });
    }

    /// Asks for the partitions of all topics, which may have become more.
    async fn refresh_all(self: &Arc<Self>) -> Result<(), ClientError> {
        let names = self.lock().accumulator.topic_names();
        if names.is_empty() {
            return Ok(());
        }
        let metadata = self.brokers.refresh_once(Some(&names)).await?;
        let mut core = self.lock();
        for topic in &metadata.topics {
            if let Ok(found) = &topic.found {
                core.accumulator.update_topic(&topic.name, found, self.brokers.clock.now());
            }
        }
        drop(core);
        self.pump();
        Ok(())
    }

    async fn ask_identity(self: Arc<Self>) {
        loop {
            match self.brokers.request(Target::Any, &Request::InitProducerId).await {
                Ok(Response::ProducerId(id, epoch)) => {
                    let mut core = self.lock();
                    core.accumulator.set_identity(id, epoch);
                    core.is_asking_identity = false;
                    break;
                }
                Ok(other) => tracing::warn!(error = %unexpected(&other), "no producer id"),
                Err(error) => tracing::warn!(%error, "no producer id"),
            }
            let is_idle = {
                let mut core = self.lock();
                core.is_asking_identity = core.accumulator.buffered() > 0;
                !core.is_asking_identity
            };
            if is_idle {
                return; // all given up; the next record asks again
            }
            tokio::time::sleep(self.brokers.settings.backoff.longest).await;
        }
        self.pump();
    }
}

/// Looks for new partitions, as long as there is a producer.
async fn keep_metadata(inner: Weak<Inner>, age: Duration) {
    loop {
        tokio::time::sleep(age).await;
        let Some(inner) = inner.upgrade() else { return };
        if let Err(error) = inner.refresh_all().await {
            tracing::debug!(%error, "new partitions can't be looked for now");
        }
    }
}

/// Ends lingers, pauses and delivery time-outs, as long as there is a producer.
async fn keep_time(inner: Weak<Inner>, timer: Arc<Notify>) {
    const LONGEST: Duration = Duration::from_secs(1);
    loop {
        let wake_at = {
            let Some(inner) = inner.upgrade() else { return };
            let now = inner.brokers.clock.now();
            let settled = inner.lock().accumulator.handle_time(now);
            inner.settle(settled);
            let mut core = inner.lock();
            let latest = now + LONGEST.as_micros() as Micros;
            core.next_wake = core.accumulator.poll_timeout().map_or(latest, |at| at.min(latest));
            inner.brokers.clock.instant(core.next_wake)
        };
        tokio::select! {
            () = tokio::time::sleep_until(wake_at.into()) => {}
            () = timer.notified() => {}
        }
    }
}

fn record_error(record: &ProducerRecord<'_>, cause: ProduceFailure) -> ProduceError {
    ProduceError { topic: record.topic.into(), partition: record.partition, cause }
}

/// Milliseconds since the Unix epoch. The coarse clock is a few milliseconds behind at most and costs a fifth of the fine one, which was a tenth of
/// a busy sender's time (measured with 100-byte records).
#[cfg(target_os = "linux")]
pub(super) fn timestamp_now() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// Milliseconds since the Unix epoch.
#[cfg(not(target_os = "linux"))]
pub(super) fn timestamp_now() -> Timestamp {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as Timestamp)
}
