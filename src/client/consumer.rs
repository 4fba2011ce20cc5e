//! Reads records: the tokio shell around [`Fetcher`].
//!
//! Requests are made ahead of the user, up to the prefetch memory, and the next one leaves as soon as an answer is there. Records are slices of
//! the buffer that the socket was read into; only compressed batches are copied, by decompressing them in the user's task.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::runtime::Handle;

use super::admin::list_offset;
use super::brokers::{Brokers, NO_LEADER, unexpected};
use super::connection::{Answer, Connection};
use super::error::{ClientError, ConsumeError};
use super::fetcher::{Arrived, Asked, Fetcher, Lead, Settings, TakenBatch};
use super::large::{self, ValueReader};
use crate::batch::{HeaderRef, Record, RecordHeaders, RecordRef, RecordSet, RecordsBytes, decode};
use crate::limits;
use crate::request::{Fetch, OffsetSpec, Request, Response, TopicPartitions};
use crate::types::{Offset, Timestamp, TopicPartition};

/// Where to read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekTo {
    /// The first record that is still there.
    Earliest,
    /// Only what comes from now on.
    Latest,
    /// This offset.
    Offset(Offset),
    /// The first record whose timestamp, ms since the Unix epoch, is at least this; where there is none, the end.
    Timestamp(Timestamp),
}

/// What to do where the wanted offset is not in the log (any more).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OutOfRange {
    /// Tell the user.
    #[default]
    Fail,
    /// Go on at the first record.
    Earliest,
    /// Go on at the end.
    Latest,
}

/// A record that was read. Key, value and headers are shares of the buffer that it came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumerRecord {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: Offset,
    /// Its timestamp, ms since the Unix epoch.
    pub timestamp: Timestamp,
    /// Its key, if it has one.
    pub key: Option<Bytes>,
    /// Its value; without one it is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers.
    pub headers: RecordHeaders,
}

impl ConsumerRecord {
    /// Its headers, one after the other.
    pub fn headers(&self) -> impl Iterator<Item = HeaderRef<'_>> {
        self.headers.iter()
    }
}

/// One batch that was read.
#[derive(Clone, Debug)]
pub struct ConsumedBatch {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: u32,
    from: Offset,
    set: RecordSet,
}

impl ConsumedBatch {
    /// The records, borrowed: the fastest way to read.
    ///
    /// # Errors
    /// (per record) A malformed record; nothing follows it.
    pub fn records(&self) -> impl Iterator<Item = Result<RecordRef<'_>, ConsumeError>> {
        let wanted = self.set.records().skip_while(|record| record.as_ref().is_ok_and(|r| r.offset < self.from));
        wanted.map(|record| {
            let offset = self.from;
            record.map_err(|e| ConsumeError { topic: self.topic.to_string(), partition: self.partition, offset, cause: e.into() })
        })
    }

    /// One past the last offset of the batch.
    pub fn next_offset(&self) -> Offset {
        self.set.header().next_offset()
    }
}

/// Settings of a consumer; made by [`super::Client::consumer`].
#[derive(Clone)]
pub struct ConsumerBuilder {
    brokers: Arc<Brokers>,
    settings: Settings,
    out_of_range: OutOfRange,
    metadata_max_age: Duration,
}

/// Default of [`ConsumerBuilder::metadata_max_age`] (Kafka's).
const METADATA_MAX_AGE: Duration = Duration::from_secs(300);

impl ConsumerBuilder {
    pub(super) fn new(brokers: Arc<Brokers>) -> ConsumerBuilder {
        let settings = Settings {
            max_wait_ms: 500,
            min_bytes: 1,
            max_bytes: 16 << 20,
            partition_max_bytes: 4 << 20,
            buffer_memory: 64 << 20,
            max_in_flight: 3,
            backoff: brokers.settings.backoff,
        };
        ConsumerBuilder { brokers, settings, out_of_range: OutOfRange::default(), metadata_max_age: METADATA_MAX_AGE }
    }

    /// How long a broker waits for `min_bytes` before it answers (default: 500 ms).
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.settings.max_wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        self
    }

    /// A broker answers when it has this many bytes (default: 1, at once).
    pub fn min_bytes(mut self, bytes: u32) -> Self {
        self.settings.min_bytes = bytes;
        self
    }

    /// Roughly the most bytes of one answer, and of one partition in it (default: 16 MiB and 4 MiB); a larger batch comes anyway.
    pub fn max_bytes(mut self, answer: u32, partition: u32) -> Self {
        (self.settings.max_bytes, self.settings.partition_max_bytes) = (answer, partition);
        self
    }

    /// Bytes that may be fetched ahead (default: 64 MiB), in equal shares of the brokers that are read from. A batch that is larger than the room left for it
    /// comes anyway.
    pub fn prefetch_memory(mut self, bytes: usize) -> Self {
        self.settings.buffer_memory = bytes;
        self
    }

    /// What to do where the wanted offset is not in the log (default: fail).
    pub fn out_of_range(mut self, then: OutOfRange) -> Self {
        self.out_of_range = then;
        self
    }

    /// How long partitions that were added to a topic may go unnoticed, where the consumer was given the whole topic (default: 5 minutes; at least a
    /// millisecond). They are read from their first record.
    pub fn metadata_max_age(mut self, age: Duration) -> Self {
        self.metadata_max_age = age.max(Duration::from_millis(1));
        self
    }

    /// The consumer, without partitions yet. To be called within a tokio runtime, whose tasks do the work.
    ///
    /// # Errors
    /// A setting can't be.
    pub fn build(self) -> Result<Consumer, ClientError> {
        if self.settings.partition_max_bytes == 0 || self.settings.max_bytes == 0 {
            return Err(ClientError::Invalid("max_bytes must be at least 1, not 0".into()));
        }
        let runtime = Handle::try_current().map_err(|_| ClientError::Invalid("a consumer is built within a tokio runtime".into()))?;
        let core = Core {
            fetcher: Fetcher::new(self.settings.clone()),
            waker: None,
            connecting: HashSet::new(),
            refreshing: HashSet::new(),
            followed: HashMap::new(),
            is_closed: false,
        };
        let inner = Inner {
            brokers: self.brokers,
            runtime,
            max_wait: Duration::from_millis(self.settings.max_wait_ms.into()),
            out_of_range: self.out_of_range,
            metadata_max_age: self.metadata_max_age,
            core: Mutex::new(core),
        };
        Ok(Consumer { inner: Arc::new(inner), current: None })
    }
}

/// Reads partitions that it was told to read. It is a [`Stream`] of records; [`Consumer::next_batch`] is faster.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use corelane::client::{Client, SeekTo};
/// let mut consumer = Client::connect("localhost:9092").await?.consumer().build()?;
/// consumer.assign_topic("orders", SeekTo::Earliest).await?;
/// while let Some(record) = consumer.next_record().await {
///     let record = record?;
///     println!("{} {:?}", record.offset, record.value);
/// }
/// # Ok(()) }
/// ```
pub struct Consumer {
    inner: Arc<Inner>,
    /// The batch whose records are being handed out.
    current: Option<Current>,
}

struct Current {
    at: usize,
    /// Of the partition until this was taken.
    seeks: u64,
    topic: Arc<str>,
    partition: u32,
    /// Next record wanted.
    next: Offset,
    bytes: Bytes,
    records: RecordsBytes,
}

struct Inner {
    brokers: Arc<Brokers>,
    runtime: Handle,
    max_wait: Duration,
    out_of_range: OutOfRange,
    metadata_max_age: Duration,
    core: Mutex<Core>,
}

struct Core {
    fetcher: Fetcher,
    waker: Option<Waker>,
    connecting: HashSet<u32>,
    refreshing: HashSet<Arc<str>>,
    /// Topics that are read whole, with the number of partitions known.
    followed: HashMap<Arc<str>, u32>,
    is_closed: bool,
}

impl Consumer {
    /// Reads a partition from there on, besides those that are read already.
    ///
    /// # Errors
    /// No such topic or partition; no broker answers.
    pub async fn assign(&mut self, topic: &str, partition: u32, from: SeekTo) -> Result<(), ClientError> {
        let found = self.inner.brokers.topic(topic).await?;
        if partition as usize >= found.partitions.len() {
            self.inner.brokers.refresh_topic(topic).await?; // partitions may have been added
        }
        let found = self.inner.brokers.topic(topic).await?;
        Brokers::partition(&found, topic, partition)?;
        let offset = self.inner.resolve(topic, partition, from).await?;
        self.drop_current(topic, partition);
        if let Some(lead) = lead_of(&found, partition) {
            self.inner.lock().fetcher.assign(topic, partition, lead, offset);
        }
        self.inner.pump();
        Ok(())
    }

    /// Reads all partitions of the topic: those that it has now, and from their first record those that it is given later, which are noticed within
    /// [`ConsumerBuilder::metadata_max_age`].
    ///
    /// # Errors
    /// No such topic; no broker answers.
    pub async fn assign_topic(&mut self, topic: &str, from: SeekTo) -> Result<(), ClientError> {
        let count = self.inner.brokers.refresh_topic(topic).await?.partitions.len() as u32;
        for partition in 0..count {
            self.assign(topic, partition, from).await?;
        }
        let is_first = {
            let mut core = self.inner.lock();
            let is_first = core.followed.is_empty();
            core.followed.insert(topic.into(), count);
            is_first
        };
        if is_first {
            self.inner.runtime.spawn(follow(Arc::downgrade(&self.inner)));
        }
        Ok(())
    }

    /// Reads a partition of a topic that is known from there on, without asking anybody. Without an offset it fails until a seek.
    pub(super) fn place(&mut self, topic: &str, partition: u32, found: &TopicPartitions, offset: Option<Offset>) {
        let Some(lead) = lead_of(found, partition) else { return };
        self.drop_current(topic, partition);
        {
            let mut core = self.inner.lock();
            core.fetcher.assign(topic, partition, lead, offset.unwrap_or(0));
            if let (None, Some(at)) = (offset, core.fetcher.find(topic, partition)) {
                let what = "the group has committed no offset";
                core.fetcher.fail(at, crate::request::Refusal::new(crate::request::Code::OffsetOutOfRange, what).into());
            }
        }
        self.inner.pump();
    }

    /// Reads the partition no more.
    ///
    /// # Errors
    /// It is not assigned.
    pub fn unassign(&mut self, topic: &str, partition: u32) -> Result<(), ClientError> {
        self.drop_current(topic, partition);
        if !self.inner.lock().fetcher.unassign(topic, partition) {
            return Err(not_assigned(topic, partition));
        }
        self.inner.pump(); // what it held is room for others
        Ok(())
    }

    /// Goes on somewhere else in the partition; also ends its failure.
    ///
    /// # Errors
    /// It is not assigned; no broker answers.
    pub async fn seek(&mut self, topic: &str, partition: u32, to: SeekTo) -> Result<(), ClientError> {
        let at = self.find(topic, partition)?;
        let offset = self.inner.resolve(topic, partition, to).await?;
        self.drop_current(topic, partition);
        self.inner.lock().fetcher.seek_to(at, offset);
        self.inner.pump();
        Ok(())
    }

    /// Holds the partition's records back until [`Consumer::resume`]. What was fetched ahead is dropped, and fetched again then.
    ///
    /// # Errors
    /// It is not assigned.
    pub fn pause(&mut self, topic: &str, partition: u32) -> Result<(), ClientError> {
        let at = self.find(topic, partition)?;
        {
            let mut core = self.inner.lock();
            if let Some(current) = self.current.take_if(|current| current.at == at) {
                core.fetcher.give_back(at, current.seeks, current.bytes, current.next);
            }
            core.fetcher.pause(at);
        }
        self.inner.pump(); // what it held is room for others
        Ok(())
    }

    /// Goes on with a paused partition.
    ///
    /// # Errors
    /// It is not assigned.
    pub fn resume(&mut self, topic: &str, partition: u32) -> Result<(), ClientError> {
        let at = self.find(topic, partition)?;
        self.inner.lock().fetcher.resume(at);
        self.inner.pump();
        Ok(())
    }

    /// The offset of the next record that the user gets.
    ///
    /// # Errors
    /// It is not assigned.
    pub fn position(&self, topic: &str, partition: u32) -> Result<Offset, ClientError> {
        self.find(topic, partition).map(|at| self.position_at(at))
    }

    /// All assigned partitions with their positions.
    pub fn positions(&self) -> Vec<(Arc<str>, u32, Offset)> {
        let core = self.inner.lock();
        let assigned: Vec<usize> = core.fetcher.assigned().collect();
        let names: Vec<_> = assigned.iter().map(|at| core.fetcher.name(*at)).collect();
        drop(core);
        assigned.into_iter().zip(names).map(|(at, (topic, partition))| (topic, partition, self.position_at(at))).collect()
    }

    fn position_at(&self, at: usize) -> Offset {
        match &self.current {
            Some(current) if current.at == at => current.next,
            _ => self.inner.lock().fetcher.position(at),
        }
    }

    /// One past the last committed offset, as of the last answer; `None` before the first one.
    ///
    /// # Errors
    /// It is not assigned.
    pub fn high_watermark(&self, topic: &str, partition: u32) -> Result<Option<Offset>, ClientError> {
        self.find(topic, partition).map(|at| self.inner.lock().fetcher.high_watermark(at))
    }

    /// Bytes fetched ahead.
    pub fn buffered(&self) -> usize {
        self.inner.lock().fetcher.buffered()
    }

    /// The next record; waits for one, without end.
    ///
    /// # Errors
    /// (as an item) A partition can't be read on; the others go on.
    pub async fn next_record(&mut self) -> Option<Result<ConsumerRecord, ConsumeError>> {
        std::future::poll_fn(|context| self.poll_record(context)).await
    }

    /// The next batch. What is left of one whose records were being taken one by one comes first.
    ///
    /// # Errors
    /// (as an item) A partition can't be read on; the others go on.
    pub async fn next_batch(&mut self) -> Option<Result<ConsumedBatch, ConsumeError>> {
        if let Some(current) = self.current.take() {
            self.inner.lock().fetcher.give_back(current.at, current.seeks, current.bytes, current.next);
        }
        std::future::poll_fn(|context| self.poll_batch(context).map(|batch| Some(batch.map(|(_, batch)| batch)))).await
    }

    /// Reads one value without holding it: that of the record at `offset`, as it comes from the socket.
    ///
    /// On a connection of its own, independent of what is assigned. A value of a compressed batch, or of one with more records, is held.
    ///
    /// # Errors
    /// No such record; no broker answers.
    pub async fn value_reader(&self, topic: &str, partition: u32, offset: Offset) -> Result<ValueReader, ClientError> {
        large::open_value(&self.inner.brokers, topic, partition, offset).await
    }

    fn find(&self, topic: &str, partition: u32) -> Result<usize, ClientError> {
        self.inner.lock().fetcher.find(topic, partition).ok_or_else(|| not_assigned(topic, partition))
    }

    fn drop_current(&mut self, topic: &str, partition: u32) {
        self.current.take_if(|current| &*current.topic == topic && current.partition == partition);
    }

    fn poll_record(&mut self, context: &Context<'_>) -> Poll<Option<Result<ConsumerRecord, ConsumeError>>> {
        loop {
            if let Some(current) = &mut self.current {
                match current.records.next() {
                    Some(Ok(record)) if record.offset < current.next => continue,
                    Some(Ok(record)) => {
                        current.next = record.offset + 1;
                        return Poll::Ready(Some(Ok(current.name(record))));
                    }
                    Some(Err(error)) => {
                        let at = current.at;
                        let (topic, partition, offset) = (current.topic.to_string(), current.partition, current.next);
                        self.current = None;
                        self.inner.lock().fetcher.stop(at, offset);
                        return Poll::Ready(Some(Err(ConsumeError { topic, partition, offset, cause: error.into() })));
                    }
                    None => self.current = None,
                }
            }
            let (TakenBatch { at, seeks, bytes, .. }, batch) = match self.poll_batch(context) {
                Poll::Ready(Ok(batch)) => batch,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => return Poll::Pending,
            };
            let ConsumedBatch { topic, partition, from, set } = batch;
            self.current = Some(Current { at, seeks, topic, partition, next: from, bytes, records: set.into_iter() });
        }
    }

    fn poll_batch(&mut self, context: &Context<'_>) -> Poll<Result<(TakenBatch, ConsumedBatch), ConsumeError>> {
        loop {
            let (taken, is_relieved) = {
                let mut core = self.inner.lock();
                let taken = core.fetcher.take_batch();
                if taken.is_none() {
                    core.waker = Some(context.waker().clone());
                }
                (taken, core.fetcher.poll_relieved())
            };
            if is_relieved {
                self.inner.pump();
            }
            let taken = match taken {
                None => return Poll::Pending,
                Some(Ok(taken)) => taken,
                Some(Err(error)) => return Poll::Ready(Err(error)),
            };
            let TakenBatch { at, from, .. } = taken;
            let (topic, partition) = self.inner.lock().fetcher.name(at);
            match decode(taken.bytes.clone(), limits::MAX_MESSAGE_BYTES) {
                Ok(set) if set.header().is_control() => {}
                Ok(set) => return Poll::Ready(Ok((taken, ConsumedBatch { topic, partition, from, set }))),
                Err(error) => {
                    self.inner.lock().fetcher.stop(at, from);
                    return Poll::Ready(Err(ConsumeError { topic: topic.to_string(), partition, offset: from, cause: error.into() }));
                }
            }
        }
    }
}

impl Current {
    fn name(&self, record: Record) -> ConsumerRecord {
        let Record { offset, timestamp, key, value, headers } = record;
        ConsumerRecord { topic: self.topic.clone(), partition: self.partition, offset, timestamp, key, value, headers }
    }
}

impl Stream for Consumer {
    type Item = Result<ConsumerRecord, ConsumeError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_record(context)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // Requests in flight end by themselves; no new ones follow.
        self.inner.lock().is_closed = true;
    }
}

/// Looks for new partitions of the topics that are read whole, until the consumer is gone.
async fn follow(consumer: Weak<Inner>) {
    while let Some(age) = consumer.upgrade().filter(|inner| !inner.lock().is_closed).map(|inner| inner.metadata_max_age) {
        tokio::time::sleep(age).await;
        let Some(inner) = consumer.upgrade() else { return };
        let followed: Vec<_> = inner.lock().followed.iter().map(|(topic, known)| (topic.clone(), *known)).collect();
        for (topic, known) in followed {
            if let Err(error) = inner.take_new_partitions(&topic, known).await {
                tracing::debug!(%topic, %error, "new partitions can't be looked for now");
            }
        }
    }
}

fn not_assigned(topic: &str, partition: u32) -> ClientError {
    ClientError::Invalid(format!("partition {partition} of {topic:?} is not assigned to this consumer"))
}

fn lead_of(topic: &TopicPartitions, partition: u32) -> Option<Lead> {
    let leader = topic.partitions.get(partition as usize)?.leader.unwrap_or(NO_LEADER);
    Some(Lead { place: TopicPartition { topic: topic.id, partition }, leader })
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn resolve(&self, topic: &str, partition: u32, to: SeekTo) -> Result<Offset, ClientError> {
        let spec = match to {
            SeekTo::Offset(offset) => return Ok(offset),
            SeekTo::Earliest => OffsetSpec::Earliest,
            SeekTo::Latest => OffsetSpec::Latest,
            SeekTo::Timestamp(timestamp) => OffsetSpec::At(timestamp),
        };
        let (offset, _) = list_offset(&self.brokers, topic, partition, spec).await?;
        if offset >= 0 {
            return Ok(offset);
        }
        let (end, _) = list_offset(&self.brokers, topic, partition, OffsetSpec::Latest).await?;
        // Asked once more: a record that was appended in between is the one that is looked for, and before the end.
        let (offset, _) = list_offset(&self.brokers, topic, partition, spec).await?;
        Ok(if offset >= 0 { offset } else { end })
    }

    /// Assigns the partitions of a topic from number `known` on.
    async fn take_new_partitions(self: &Arc<Self>, topic: &Arc<str>, known: u32) -> Result<(), ClientError> {
        let found = self.brokers.refresh_topic(topic).await?;
        for partition in known..found.partitions.len() as u32 {
            let offset = self.resolve(topic, partition, SeekTo::Earliest).await?;
            let mut core = self.lock();
            core.followed.insert(topic.clone(), partition + 1);
            // The user may have assigned it meanwhile.
            if let Some(lead) = lead_of(&found, partition).filter(|_| core.fetcher.find(topic, partition).is_none()) {
                core.fetcher.assign(topic, partition, lead, offset);
            }
        }
        self.pump();
        Ok(())
    }

    /// Makes every request that can be made.
    fn pump(self: &Arc<Self>) {
        let now = self.brokers.clock.now();
        let wanted = {
            let core = self.lock();
            if core.is_closed {
                return;
            }
            core.fetcher.wanted_brokers(now)
        };
        for broker in wanted {
            let Some(connection) = self.brokers.open_connection(broker) else {
                self.connect(broker);
                continue;
            };
            while let Some((fetch, asked)) = { self.lock().fetcher.poll_request(broker, now) } {
                self.send(broker, &connection, fetch, asked);
            }
        }
    }

    fn send(self: &Arc<Self>, broker: u32, connection: &Connection, fetch: Fetch, asked: Vec<Asked>) {
        let timeout = self.max_wait + self.brokers.settings.connection.request_timeout;
        let inner = self.clone();
        let completion = Box::new(move |answer| inner.handle_answer(broker, &asked, answer));
        connection.send(&Request::Fetch(fetch), &[], timeout, completion);
    }

    fn handle_answer(self: &Arc<Self>, broker: u32, asked: &[Asked], answer: Result<Answer, ClientError>) {
        let answer = answer.and_then(|answer| match answer.response {
            Response::Fetch(results) => Ok((results, answer.payload)),
            other => Err(unexpected(&other)),
        });
        let arrived = self.lock().fetcher.handle_answer(broker, asked, answer, self.brokers.clock.now());
        self.go_on(arrived);
    }

    fn go_on(self: &Arc<Self>, arrived: Arrived) {
        for topic in arrived.stale_topics {
            self.refresh(topic);
        }
        for at in arrived.out_of_range {
            self.reset(at);
        }
        if let Some(at) = arrived.retry_at {
            let inner = self.clone();
            self.runtime.spawn(async move {
                tokio::time::sleep_until(inner.brokers.clock.instant(at).into()).await;
                inner.pump();
            });
        }
        // The next requests leave before the user's task wakes.
        self.pump();
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The wanted offset is not in the log: the user has said what to do then.
    fn reset(self: &Arc<Self>, at: usize) {
        let to = match self.out_of_range {
            OutOfRange::Earliest => SeekTo::Earliest,
            OutOfRange::Latest => SeekTo::Latest,
            OutOfRange::Fail => {
                let mut core = self.lock();
                let what = format!("offset {} is not in the log", core.fetcher.position(at));
                let refusal = crate::request::Refusal::new(crate::request::Code::OffsetOutOfRange, what);
                return core.fetcher.fail(at, refusal.into());
            }
        };
        let (seeks, (topic, partition)) = {
            let mut core = self.lock();
            (core.fetcher.begin_reset(at), core.fetcher.name(at))
        };
        let inner = self.clone();
        self.runtime.spawn(async move {
            let resolved = inner.resolve(&topic, partition, to).await;
            inner.lock().fetcher.end_reset(at, seeks, resolved);
            inner.go_on(Arrived::default());
        });
    }

    fn connect(self: &Arc<Self>, broker: u32) {
        if !self.lock().connecting.insert(broker) {
            return;
        }
        let inner = self.clone();
        self.runtime.spawn(async move {
            let connected = inner.brokers.connect(broker).await;
            let arrived = {
                let mut core = inner.lock();
                core.connecting.remove(&broker);
                match connected {
                    Ok(_) => Arrived::default(),
                    Err(error) => core.fetcher.handle_unreachable(broker, &error, inner.brokers.clock.now()),
                }
            };
            inner.go_on(arrived);
        });
    }

    fn refresh(self: &Arc<Self>, topic: Arc<str>) {
        if !self.lock().refreshing.insert(topic.clone()) {
            return;
        }
        let inner = self.clone();
        self.runtime.spawn(async move {
            let found = inner.brokers.find_leaders(&topic).await;
            let mut core = inner.lock();
            core.refreshing.remove(&topic);
            let arrived = match found {
                Ok(found) => core.fetcher.update_leaders(&topic, |partition| lead_of(&found, partition)),
                Err(error) => {
                    tracing::debug!(%topic, %error, "no fresh metadata");
                    Arrived::default()
                }
            };
            drop(core);
            inner.go_on(arrived);
        });
    }
}
