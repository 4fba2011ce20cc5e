//! Records on their way: batches per partition, what may be sent, what must be sent again. A pure state machine.
//!
//! ```text
//! append -> open batch -> (full, lingered, flushed or linger 0) -> poll_request -> in flight -> handle_answer -> settled
//!                                                    ^------- waiting (to be sent again) <--------'
//! ```
//!
//! Order within a partition: batches leave in the order they were filled. With an idempotent producer each carries a sequence number, given when it
//! first
//! leaves and kept when it leaves again; a broker takes them only in sequence and knows the last five, so up to five may be in flight and
//! a retry neither reorders nor duplicates, on the leader that comes next neither: it has the sequences with the records. Without idempotence a
//! retry can reorder what else is in flight (as in Kafka; `max_in_flight` 1 avoids it).
//!
//! When a batch with a number is given up, those after it no longer follow anything. The partition then waits until nothing is in flight, gives up
//! batches of which it is unknown
//! whether they were appended (a new number could duplicate them), and starts again with a new producer id from 0.
//!
//! Nothing here sends, waits or reads a clock: the shell (`producer`) passes the time and carries out what it is given.

mod answers;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::backoff::Backoff;
use super::brokers::NO_LEADER;
use super::delivery::{Delivery, Outcome};
use super::error::{ClientError, ProduceFailure};
use super::partitioner::{Partitioning, partition_of_key};
use super::session::Micros;
use crate::batch::{BatchBuilder, BatchError, BatchHeader, CRC_START, Compression, sequence_after, stamp_crc};
use crate::checksum::crc32c;
use crate::limits;
use crate::request::{Code, Refusal, TopicPartitions};
use crate::types::{ProducerEpoch, ProducerId, Timestamp, TopicId, TopicPartition};

pub(super) use answers::Settled;

/// Settings of a producer, made valid.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// A batch is closed when the next record would make it longer, bytes.
    pub batch_size: usize,
    pub linger: Micros,
    pub compression: Compression,
    pub buffer_memory: usize,
    /// Requests per connection.
    pub max_in_flight: usize,
    /// Roughly the longest request, bytes; a single batch may exceed it.
    pub max_request: usize,
    pub delivery_timeout: Micros,
    pub is_idempotent: bool,
    pub backoff: Backoff,
    pub partitioning: Partitioning,
}

/// The parts of a record, borrowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    pub partition: Option<u32>,
    pub timestamp: Timestamp,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

/// A record has found its place.
#[derive(Debug)]
pub(super) struct Placed {
    pub delivery: Arc<Delivery>,
    /// Its place in the batch.
    pub index: u32,
    /// A request may be ready now.
    pub is_ready: bool,
    /// An earlier timer is needed now.
    pub is_earlier: bool,
}

/// One batch of a request, by partition and serial number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BatchKey {
    pub partition: usize,
    pub serial: u64,
}

/// One batch to be sent.
#[derive(Debug)]
pub(super) struct Draft {
    pub key: BatchKey,
    pub place: TopicPartition,
    pub body: DraftBody,
}

/// What must be done to have the batch's bytes; the result goes back by [`Accumulator::store_bytes`], for retries.
#[derive(Debug)]
pub(super) enum DraftBody {
    Build(BatchBuilder),
    /// With another identity than it was built with.
    Stamp(Bytes, ProducerId, ProducerEpoch, i32),
    Ready(Bytes),
}

impl DraftBody {
    /// The batch's bytes: compression and checksum, to be done outside any lock.
    pub fn bytes(self) -> Bytes {
        match self {
            DraftBody::Build(builder) => builder.build(),
            DraftBody::Stamp(bytes, id, epoch, sequence) => restamp(&bytes, id, epoch, sequence),
            DraftBody::Ready(bytes) => bytes,
        }
    }
}

/// A batch with another producer.
fn restamp(bytes: &[u8], id: ProducerId, epoch: ProducerEpoch, sequence: i32) -> Bytes {
    let mut batch = BytesMut::from(bytes);
    let header = BatchHeader::parse(&batch).expect("a batch of our own");
    BatchHeader { producer_id: id, producer_epoch: epoch, base_sequence: sequence, ..header }.write(&mut batch);
    let crc = crc32c(&batch[CRC_START..]);
    stamp_crc(&mut batch, crc);
    batch.freeze()
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Accumulator {
    settings: Settings,
    topics: Vec<Topic>,
    topic_indices: HashMap<Arc<str>, usize>,
    partitions: Vec<Partition>,
    brokers: HashMap<u32, Broker>,
    /// For partitions that have none yet.
    identity: Option<(ProducerId, ProducerEpoch)>,
    buffered: usize,
    next_serial: u64,
    next_request: u64,
    /// Batches whose linger runs, in the order of their ends.
    lingering: VecDeque<(Micros, BatchKey)>,
    /// Partitions that wait before they try again.
    pausing: BinaryHeap<Reverse<(Micros, usize)>>,
    next_expiry_check: Micros,
    /// Room of buffers whose batches are settled; with what is buffered no more than the buffer memory.
    spare: Vec<BytesMut>,
    spare_bytes: usize,
}

#[derive(Debug)]
struct Topic {
    name: Arc<str>,
    id: TopicId,
    partitions: Vec<usize>,
    /// A batch is never longer, bytes.
    max_batch: usize,
    sticky: usize,
    next_in_turn: usize,
}

#[derive(Debug)]
struct Partition {
    topic: usize,
    number: u32,
    leader: u32,
    open: Option<Batch>,
    /// The open batch's linger is over.
    is_due: bool,
    /// Closed and not in flight, in order.
    waiting: VecDeque<Batch>,
    /// In the order they left.
    in_flight: VecDeque<Batch>,
    /// The broker that those in flight were sent to. Another one, which leads now, gets nothing before their fate is known: it would take what came
    /// later first.
    sent_to: u32,
    identity: Option<Identity>,
    not_before: Micros,
    /// In its broker's list of ready partitions.
    is_queued: bool,
    /// Waits until nothing is in flight, for a new identity.
    is_resetting: bool,
    last_request: u64,
    /// Batches that got a sequence so far.
    numbered: u64,
    /// Bytes of the last batch that left: the next one's first room.
    usual_len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Identity {
    id: ProducerId,
    epoch: ProducerEpoch,
    next_sequence: i32,
}

#[derive(Debug)]
struct Batch {
    serial: u64,
    delivery: Arc<Delivery>,
    body: Body,
    /// Bytes of buffer memory.
    accounted: usize,
    count: u32,
    created: Micros,
    attempts: u32,
    sequence: Option<i32>,
    /// Which one it is of those of its partition that got a sequence.
    number: u64,
    /// An attempt ended without an answer: it may be in the log.
    may_be_appended: bool,
    /// The broker could not place its sequence although all before it were settled; once, this may be an answer from before.
    is_out_of_order: bool,
    last_error: Option<ClientError>,
}

#[derive(Debug)]
enum Body {
    Open(BatchBuilder),
    /// The shell is at it.
    Taken,
    Built(Bytes),
    /// Built with an identity that is not the partition's any more.
    Stale(Bytes),
}

#[derive(Debug, Default)]
struct Broker {
    ready: VecDeque<usize>,
    in_flight: usize,
}

/// A record without headers is its key, its value, and less than this, bytes: five varints and a byte.
const MAX_RECORD_FIELDS: usize = 40;

impl Accumulator {
    pub fn new(settings: Settings) -> Accumulator {
        Accumulator {
            settings,
            topics: Vec::new(),
            topic_indices: HashMap::new(),
            partitions: Vec::new(),
            brokers: HashMap::new(),
            identity: None,
            buffered: 0,
            next_serial: 1,
            next_request: 1,
            lingering: VecDeque::new(),
            pausing: BinaryHeap::new(),
            next_expiry_check: 0,
            spare: Vec::new(),
            spare_bytes: 0,
        }
    }

    /// The topic's place, where its metadata is known. `hint` is where the caller found it last.
    pub fn topic(&self, name: &str, hint: usize) -> Option<usize> {
        if self.topics.get(hint).is_some_and(|topic| &*topic.name == name) {
            return Some(hint);
        }
        self.topic_indices.get(name).copied()
    }

    /// Takes new metadata of a topic; partitions whose leader is another one now are sent there.
    pub fn update_topic(&mut self, name: &str, found: &TopicPartitions, now: Micros) {
        let topic = self.topic_indices.get(name).copied().unwrap_or_else(|| {
            let name: Arc<str> = name.into();
            self.topic_indices.insert(name.clone(), self.topics.len());
            let fresh = Topic { name, id: found.id, partitions: Vec::new(), max_batch: 0, sticky: 0, next_in_turn: 0 };
            self.topics.push(fresh);
            self.topics.len() - 1
        });
        self.topics[topic].id = found.id;
        self.topics[topic].max_batch = found.max_message_bytes as usize;
        for (number, known) in found.partitions.iter().enumerate() {
            let leader = known.leader.unwrap_or(NO_LEADER);
            match self.topics[topic].partitions.get(number).copied() {
                None => {
                    self.topics[topic].partitions.push(self.partitions.len());
                    self.partitions.push(Partition::new(topic, number as u32, leader));
                }
                Some(at) if self.partitions[at].leader != leader => {
                    self.partitions[at].leader = leader;
                    self.partitions[at].is_queued = false;
                    // What it waited for has happened.
                    self.partitions[at].not_before = now;
                    self.queue_if_ready(at, now);
                }
                Some(_) => {}
            }
        }
    }

    /// The topics that records were sent to.
    pub fn topic_names(&self) -> Vec<String> {
        self.topics.iter().map(|topic| topic.name.to_string()).collect()
    }

    /// Adds a record to its partition's open batch. `now` is asked only for a new batch.
    ///
    /// # Errors
    /// [`ProduceFailure::BufferFull`] (the record fits later), a partition that is not there, a record that no batch can hold.
    pub fn append(&mut self, topic: usize, parts: &Parts<'_>, now: impl FnOnce() -> Micros) -> Result<Placed, ProduceFailure> {
        let (mut at, is_sticky) = self.place(topic, parts)?;
        let limit = self.settings.buffer_memory;
        if self.buffered >= limit {
            return Err(ProduceFailure::BufferFull { buffered: self.buffered, limit });
        }
        let mut is_ready = false;
        while self.close_if_full(at, topic, parts) {
            is_ready = true;
            if is_sticky {
                at = self.next_sticky(topic);
            }
        }
        let mut is_earlier = false;
        if self.partitions[at].open.is_none() {
            let now = now();
            let builder = self.new_builder(at, topic, parts)?;
            is_earlier = self.open_batch(at, builder, now);
            is_ready |= self.queue_if_ready(at, now);
        }
        let partition = &mut self.partitions[at];
        let batch = partition.open.as_mut().expect("opened above");
        let Body::Open(builder) = &mut batch.body else { unreachable!("an open batch is being built") };
        let index = match builder.append(parts.timestamp, parts.key, parts.value, parts.headers) {
            Ok(index) => index,
            Err(error) => {
                if batch.count == 0 {
                    partition.open = None;
                }
                return Err(ClientError::from(error).into());
            }
        };
        batch.count += 1;
        let len = builder.estimated_len();
        self.buffered += len - batch.accounted;
        batch.accounted = len;
        let is_ready = is_ready && self.brokers.get(&partition.leader).is_none_or(|b| b.in_flight < self.settings.max_in_flight);
        Ok(Placed { delivery: batch.delivery.clone(), index, is_ready, is_earlier })
    }

    /// Closes the open batch that this record would make too long, and puts it in line.
    fn close_if_full(&mut self, at: usize, topic: usize, parts: &Parts<'_>) -> bool {
        let max_batch = self.settings.batch_size.min(self.topics[topic].max_batch);
        let partition = &mut self.partitions[at];
        let Some(Batch { body: Body::Open(builder), .. }) = &partition.open else { return false };
        // Most records are far from the end: no need to know their exact length.
        let rough = builder.estimated_len() + parts.key.map_or(0, <[u8]>::len) + parts.value.map_or(0, <[u8]>::len) + MAX_RECORD_FIELDS;
        if parts.headers.is_empty() && rough <= max_batch {
            return false;
        }
        if builder.len_after(parts.timestamp, parts.key, parts.value, parts.headers) <= max_batch {
            return false;
        }
        partition.close();
        // A pause that is not over puts it in line when it ends.
        let not_before = partition.not_before;
        self.queue_if_ready(at, not_before);
        true
    }

    fn next_sticky(&mut self, topic: usize) -> usize {
        let topic = &mut self.topics[topic];
        topic.sticky = (topic.sticky + 1) % topic.partitions.len();
        topic.partitions[topic.sticky]
    }

    /// The partition's place: named, by key, in turn, or (and then true) the sticky one.
    fn place(&mut self, topic: usize, parts: &Parts<'_>) -> Result<(usize, bool), ProduceFailure> {
        let count = self.topics[topic].partitions.len();
        let name = &self.topics[topic].name;
        if count == 0 {
            return Err(ClientError::Invalid(format!("{name:?} has no partitions")).into());
        }
        let chosen = match (parts.partition, &self.settings.partitioning) {
            (Some(partition), _) => Some(partition),
            (None, Partitioning::KeyHash) => parts.key.map(|key| partition_of_key(key, count as u32)),
            (None, Partitioning::Sticky) => None,
            (None, Partitioning::RoundRobin) => {
                let topic = &mut self.topics[topic];
                topic.next_in_turn = (topic.next_in_turn + 1) % count;
                Some(topic.next_in_turn as u32)
            }
            (None, Partitioning::Custom(custom)) => custom.partition(name, parts.key, parts.value, count as u32),
        };
        let Some(chosen) = chosen else {
            let sticky = self.topics[topic].partitions[self.topics[topic].sticky];
            return Ok((if self.partitions[sticky].open.is_none() { self.next_sticky(topic) } else { sticky }, true));
        };
        let topic = &self.topics[topic];
        let Some(at) = topic.partitions.get(chosen as usize) else {
            let what = format!("{:?} has partitions 0 to {}, not {chosen}", topic.name, count - 1);
            return Err(ClientError::from(Refusal::new(Code::UnknownTopicOrPartition, what)).into());
        };
        Ok((*at, false))
    }

    /// Room for a batch that holds at least this record.
    fn new_builder(&mut self, at: usize, topic: usize, parts: &Parts<'_>) -> Result<BatchBuilder, ProduceFailure> {
        let usual = self.partitions[at].usual_len;
        let mut buffer = self.spare.pop().unwrap_or_default();
        self.spare_bytes -= buffer.capacity();
        buffer.clear();
        buffer.reserve(usual);
        let builder = BatchBuilder::with_buffer(self.settings.compression, buffer);
        let alone = builder.len_after(parts.timestamp, parts.key, parts.value, parts.headers);
        let max = self.topics[topic].max_batch;
        if alone > max {
            return Err(ClientError::from(BatchError::TooLarge { max, actual: alone }).into());
        }
        Ok(builder)
    }

    /// Whether its linger ends before all others'.
    fn open_batch(&mut self, at: usize, builder: BatchBuilder, now: Micros) -> bool {
        let serial = self.next_serial;
        self.next_serial += 1;
        let partition = &mut self.partitions[at];
        let delivery = Delivery::new(self.topics[partition.topic].name.clone(), partition.number);
        partition.open = Some(Batch::new(serial, delivery, builder, now));
        partition.is_due = self.settings.linger == 0;
        if self.settings.linger > 0 {
            self.lingering.push_back((now + self.settings.linger, BatchKey { partition: at, serial }));
        }
        self.settings.linger > 0 && self.lingering.len() == 1
    }

    /// Whether it was not in line before.
    fn queue_if_ready(&mut self, at: usize, now: Micros) -> bool {
        let partition = &mut self.partitions[at];
        if partition.is_queued || !partition.is_ready(now) {
            return false;
        }
        partition.is_queued = true;
        self.brokers.entry(partition.leader).or_default().ready.push_back(at);
        true
    }

    /// Brokers that a request may be ready for.
    pub fn ready_brokers(&self) -> Vec<u32> {
        let max = self.settings.max_in_flight;
        self.brokers.iter().filter(|(_, b)| !b.ready.is_empty() && b.in_flight < max).map(|(id, _)| *id).collect()
    }

    /// A partition is ready and there is no identity for it: the shell asks for one and gives it by [`Accumulator::set_identity`].
    pub fn needs_identity(&self) -> bool {
        self.settings.is_idempotent && self.identity.is_none()
    }

    /// The producer's identity, for partitions that have none.
    pub fn set_identity(&mut self, id: ProducerId, epoch: ProducerEpoch) {
        self.identity = Some((id, epoch));
    }

    /// The next request for a broker: at most one batch of each of its ready partitions. They count as in flight from here on.
    pub fn poll_request(&mut self, broker: u32, now: Micros) -> Option<Vec<Draft>> {
        if self.needs_identity() || self.brokers.get(&broker)?.in_flight >= self.settings.max_in_flight {
            return None;
        }
        let request = self.next_request;
        let mut drafts = Vec::new();
        let (mut bytes, mut again) = (0, Vec::new());
        while let Some(at) = self.brokers.get_mut(&broker)?.ready.pop_front() {
            let partition = &mut self.partitions[at];
            if partition.leader != broker {
                continue; // queued at its new leader
            }
            if partition.last_request == request {
                again.push(at);
                continue;
            }
            partition.is_queued = false;
            if !partition.is_ready(now) {
                continue;
            }
            let next = partition.next_len();
            if !drafts.is_empty() && bytes + next > self.settings.max_request {
                partition.is_queued = true;
                again.push(at);
                break;
            }
            bytes += next;
            partition.last_request = request;
            drafts.push(self.take(at));
            let partition = &mut self.partitions[at];
            if partition.is_ready(now) {
                partition.is_queued = true;
                again.push(at);
            }
        }
        let broker = self.brokers.get_mut(&broker)?;
        // What did not fit comes first next time.
        again.into_iter().rev().for_each(|at| broker.ready.push_front(at));
        if drafts.is_empty() {
            return None;
        }
        broker.in_flight += 1;
        self.next_request += 1;
        Some(drafts)
    }

    /// Moves the partition's next batch to those in flight.
    fn take(&mut self, at: usize) -> Draft {
        let global = self.identity;
        let is_idempotent = self.settings.is_idempotent;
        let partition = &mut self.partitions[at];
        if partition.waiting.is_empty() {
            partition.close();
        }
        let mut batch = partition.waiting.pop_front().expect("a ready partition has a batch");
        let mut fresh = None;
        if is_idempotent && batch.sequence.is_none() {
            let identity = partition.identity.get_or_insert_with(|| {
                let (id, epoch) = global.expect("asked for before");
                Identity { id, epoch, next_sequence: 0 }
            });
            let sequence = identity.next_sequence;
            identity.next_sequence = sequence_after(sequence, batch.count as i32);
            batch.sequence = Some(sequence);
            fresh = Some((identity.id, identity.epoch, sequence));
            batch.number = partition.numbered;
            partition.numbered += 1;
        }
        let body = match (std::mem::replace(&mut batch.body, Body::Taken), fresh) {
            (Body::Open(mut builder), Some((id, epoch, sequence))) => {
                builder.set_producer(id, epoch, sequence);
                DraftBody::Build(builder)
            }
            (Body::Open(builder), None) => DraftBody::Build(builder),
            (Body::Stale(bytes), Some((id, epoch, sequence))) => DraftBody::Stamp(bytes, id, epoch, sequence),
            (Body::Built(bytes) | Body::Stale(bytes), _) => {
                batch.body = Body::Built(bytes.clone());
                DraftBody::Ready(bytes)
            }
            (Body::Taken, _) => unreachable!("a batch that waits has a body"),
        };
        partition.usual_len = batch.accounted;
        partition.sent_to = partition.leader;
        let key = BatchKey { partition: at, serial: batch.serial };
        let place = TopicPartition { topic: self.topics[partition.topic].id, partition: partition.number };
        partition.in_flight.push_back(batch);
        Draft { key, place, body }
    }

    /// Keeps a batch's bytes for a retry.
    pub fn store_bytes(&mut self, key: BatchKey, bytes: Bytes) {
        if let Some(batch) = self.partitions[key.partition].in_flight.iter_mut().find(|b| b.serial == key.serial) {
            batch.body = Body::Built(bytes);
        }
    }

    /// Closes all open batches, so that they leave as soon as they may; returns every batch that is not settled.
    pub fn flush(&mut self, now: Micros) -> Vec<Arc<Delivery>> {
        for at in 0..self.partitions.len() {
            self.partitions[at].close();
            self.queue_if_ready(at, now);
        }
        self.partitions.iter().flat_map(|p| p.in_flight.iter().chain(&p.waiting)).map(|batch| batch.delivery.clone()).collect()
    }

    /// When [`Accumulator::handle_time`] is to be called next, at the latest.
    pub fn poll_timeout(&self) -> Option<Micros> {
        let lingering = self.lingering.front().map(|(end, _)| *end);
        let pausing = self.pausing.peek().map(|Reverse((end, _))| *end);
        let expiry = (self.buffered > 0).then_some(self.next_expiry_check);
        [lingering, pausing, expiry].into_iter().flatten().min()
    }

    /// Time has passed: lingers and pauses end, and what waits for too long is given up.
    pub fn handle_time(&mut self, now: Micros) -> Settled {
        while let Some((_, key)) = self.lingering.pop_front_if(|(end, _)| *end <= now) {
            let partition = &mut self.partitions[key.partition];
            if partition.open.as_ref().is_some_and(|batch| batch.serial == key.serial) {
                partition.is_due = true;
            }
            self.queue_if_ready(key.partition, now);
        }
        while self.pausing.peek().is_some_and(|Reverse((end, _))| *end <= now) {
            let Reverse((_, at)) = self.pausing.pop().expect("peeked");
            self.queue_if_ready(at, now);
        }
        let mut settled = Settled::default();
        if self.next_expiry_check <= now {
            self.next_expiry_check = now + (self.settings.delivery_timeout / 10).clamp(1_000, 1_000_000);
            self.expire(now, &mut settled);
        }
        settled
    }

    /// Bytes that wait for delivery.
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    /// Whether a record can be added now.
    pub fn has_room(&self) -> bool {
        self.buffered < self.settings.buffer_memory
    }

    /// The batch's memory is free again.
    fn release(&mut self, batch: &mut Batch) {
        self.buffered -= batch.accounted;
        if let Body::Built(bytes) = std::mem::replace(&mut batch.body, Body::Taken)
            && self.buffered + self.spare_bytes + bytes.len() <= self.settings.buffer_memory
            && let Ok(mut buffer) = bytes.try_into_mut()
        {
            buffer.clear();
            self.spare_bytes += buffer.capacity();
            self.spare.push(buffer);
        }
    }
}

impl Partition {
    fn new(topic: usize, number: u32, leader: u32) -> Partition {
        Partition {
            topic,
            number,
            leader,
            open: None,
            is_due: false,
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            sent_to: leader,
            identity: None,
            not_before: 0,
            is_queued: false,
            is_resetting: false,
            last_request: 0,
            numbered: 0,
            usual_len: 0,
        }
    }

    /// Whether a batch may leave now.
    fn is_ready(&self, now: Micros) -> bool {
        let has_batch = !self.waiting.is_empty() || (self.is_due && self.open.is_some());
        let has_room = self.in_flight.is_empty() || (self.sent_to == self.leader && self.in_flight.len() < limits::PRODUCER_BATCHES);
        has_batch && has_room && self.is_remembered() && now >= self.not_before && !self.is_resetting
    }

    /// Whether a broker that has taken all up to the batch that leaves next still remembers the oldest one that is not settled. Answers don't come in order, and once so many
    /// were taken behind it, nobody could tell any more whether that one was appended.
    fn is_remembered(&self) -> bool {
        let is_retry = self.waiting.front().is_some_and(|batch| batch.sequence.is_some());
        let open = self.in_flight.iter().filter(|batch| batch.sequence.is_some()).map(|batch| batch.number).min();
        is_retry || open.is_none_or(|oldest| self.numbered - oldest < limits::PRODUCER_BATCHES as u64)
    }

    /// Bytes of the batch that leaves next.
    fn next_len(&self) -> usize {
        self.waiting.front().or(self.open.as_ref()).map_or(0, |batch| batch.accounted)
    }

    /// The open batch takes no more records.
    fn close(&mut self) {
        if let Some(batch) = self.open.take() {
            self.waiting.push_back(batch);
        }
    }
}

impl Batch {
    fn new(serial: u64, delivery: Arc<Delivery>, builder: BatchBuilder, created: Micros) -> Batch {
        Batch {
            serial,
            delivery,
            body: Body::Open(builder),
            accounted: 0,
            count: 0,
            created,
            attempts: 0,
            sequence: None,
            number: 0,
            may_be_appended: false,
            is_out_of_order: false,
            last_error: None,
        }
    }

    fn failed(&self, cause: ProduceFailure) -> (Arc<Delivery>, Outcome) {
        (self.delivery.clone(), Outcome::Failed(cause))
    }
}
