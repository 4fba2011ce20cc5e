//! What a consumer reads next: positions, prefetch within a bound, what is paused. A pure state machine.
//!
//! Each partition has two offsets: the *position*, of the next record that the user gets, and the *fetch offset*, where the next request starts. Between
//! them lie fetched bytes, still as batches. A seek moves both and drops the bytes, a pause drops them too; answers to requests from before
//! it are told by the partition's `era` and dropped.
//!
//! At most a few requests are in flight per broker, none with a partition of another. A request is made only
//! while what is buffered and what is asked for stays within `buffer_memory`, and asks for no more than its share of it, so that there is room for a
//! request to every broker; brokers take turns. A batch that is larger comes anyway, or it could never be read.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::backoff::Backoff;
use super::error::{ClientError, ConsumeError};
use super::session::Micros;
use crate::batch::{BatchHeader, split_batch};
use crate::request::{Code, Fetch, FetchPartition, FetchResult};
use crate::types::{Offset, TopicPartition};

/// Settings of a consumer, made valid.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub max_wait_ms: u32,
    pub min_bytes: u32,
    /// Of one request.
    pub max_bytes: u32,
    pub partition_max_bytes: u32,
    /// Bytes fetched and not yet taken, and asked for.
    pub buffer_memory: usize,
    /// Requests per broker.
    pub max_in_flight: usize,
    pub backoff: Backoff,
}

/// One partition of a request, as it was when asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asked {
    at: usize,
    era: u64,
    offset: Offset,
    /// Bytes that the request may bring, in its first partition.
    reserved: usize,
}

/// What the shell has to do after an answer.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    /// Topics whose leaders may have moved.
    pub stale_topics: Vec<Arc<str>>,
    /// Look again at this time.
    pub retry_at: Option<Micros>,
    /// The log starts after, or ends before, what these want.
    pub out_of_range: Vec<usize>,
}

/// One batch for the user.
#[derive(Debug)]
pub(super) struct TakenBatch {
    pub at: usize,
    /// Seeks of the partition until then.
    pub seeks: u64,
    pub bytes: Bytes,
    /// Records before it are not wanted.
    pub from: Offset,
}

/// Where a partition is led.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lead {
    pub place: TopicPartition,
    pub leader: u32,
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Fetcher {
    settings: Settings,
    partitions: Vec<Partition>,
    indices: HashMap<(Arc<str>, u32), usize>,
    /// Partitions with fetched batches, in the order in which they take turns.
    ready: VecDeque<usize>,
    buffered: usize,
    reserved: usize,
    in_flight: HashMap<u32, usize>,
    /// Rises with each request.
    turns: u64,
    /// Whom the last request was to.
    last_broker: u32,
    /// A request was not made for lack of memory: it needs room for so many bytes.
    starved_of: Option<usize>,
    failed: VecDeque<(usize, ClientError)>,
}

#[derive(Debug)]
struct Partition {
    topic: Arc<str>,
    number: u32,
    lead: Lead,
    position: Offset,
    fetch_offset: Offset,
    /// Rises with each seek and each pause, and when the topic is another one.
    era: u64,
    /// Rises with each seek.
    seeks: u64,
    is_assigned: bool,
    is_paused: bool,
    is_fetching: bool,
    /// In `ready`.
    is_queued: bool,
    /// Stopped by an error, until a seek.
    is_failed: bool,
    chunks: VecDeque<Bytes>,
    not_before: Micros,
    attempts: u32,
    /// The turn in which it was the first of a request.
    front_at: u64,
    high_watermark: Option<Offset>,
}

impl Fetcher {
    pub fn new(settings: Settings) -> Fetcher {
        Fetcher {
            settings,
            partitions: Vec::new(),
            indices: HashMap::new(),
            ready: VecDeque::new(),
            buffered: 0,
            reserved: 0,
            in_flight: HashMap::new(),
            turns: 0,
            last_broker: u32::MAX,
            starved_of: None,
            failed: VecDeque::new(),
        }
    }

    /// Reads the partition from `offset` on; also where it was assigned before.
    pub fn assign(&mut self, topic: &str, number: u32, lead: Lead, offset: Offset) {
        let key = (Arc::from(topic), number);
        let at = self.indices.get(&key).copied().unwrap_or_else(|| {
            self.partitions.push(Partition::new(key.0.clone(), number, lead));
            self.indices.insert(key, self.partitions.len() - 1);
            self.partitions.len() - 1
        });
        self.partitions[at].is_assigned = true;
        self.partitions[at].lead = lead;
        self.seek_to(at, offset);
    }

    /// Reads it no more.
    pub fn unassign(&mut self, topic: &str, number: u32) -> bool {
        let Some(at) = self.find(topic, number) else { return false };
        self.seek_to(at, 0);
        self.partitions[at].is_assigned = false;
        self.partitions[at].is_paused = false;
        true
    }

    /// The place of an assigned partition.
    pub fn find(&self, topic: &str, number: u32) -> Option<usize> {
        // A consumer has few topics; the key of the map would have to be allocated.
        let assigned = |p: &Partition| p.is_assigned && p.number == number && &*p.topic == topic;
        self.partitions.iter().position(assigned)
    }

    /// Topic and number of a partition.
    pub fn name(&self, at: usize) -> (Arc<str>, u32) {
        (self.partitions[at].topic.clone(), self.partitions[at].number)
    }

    /// All assigned partitions.
    pub fn assigned(&self) -> impl Iterator<Item = usize> {
        (0..self.partitions.len()).filter(|at| self.partitions[*at].is_assigned)
    }

    /// Goes on at `offset`.
    pub fn seek_to(&mut self, at: usize, offset: Offset) {
        self.drop_fetched(at);
        let partition = &mut self.partitions[at];
        partition.seeks += 1;
        partition.is_failed = false;
        partition.position = offset;
        partition.fetch_offset = offset;
        partition.not_before = 0;
        self.failed.retain(|(failed, _)| *failed != at);
    }

    /// Gives a batch back that was not used up: `offset` is the next record wanted. After a seek, as told by `seeks`, it is not wanted any more.
    pub fn give_back(&mut self, at: usize, seeks: u64, bytes: Bytes, offset: Offset) {
        if self.partitions[at].seeks != seeks {
            return;
        }
        self.buffered += bytes.len();
        self.partitions[at].chunks.push_front(bytes);
        self.partitions[at].position = offset;
        self.queue(at);
    }

    /// Fetches no more of it, and drops what is fetched: it would take the memory of those that are read, for as long as nobody resumes.
    pub fn pause(&mut self, at: usize) {
        self.drop_fetched(at);
        let partition = &mut self.partitions[at];
        partition.is_paused = true;
        partition.fetch_offset = partition.position;
        // A failure that the user was not told of lies behind what is dropped: it is found again.
        if self.failed.iter().any(|(failed, _)| *failed == at) {
            self.failed.retain(|(failed, _)| *failed != at);
            self.partitions[at].is_failed = false;
        }
    }

    /// Forgets what is fetched and what is asked for.
    fn drop_fetched(&mut self, at: usize) {
        let partition = &mut self.partitions[at];
        self.buffered -= partition.chunks.drain(..).map(|chunk| chunk.len()).sum::<usize>();
        partition.era += 1;
        partition.is_fetching = false;
    }

    /// Goes on, from the position on.
    pub fn resume(&mut self, at: usize) {
        self.partitions[at].is_paused = false;
    }

    /// The next record that the user gets.
    pub fn position(&self, at: usize) -> Offset {
        self.partitions[at].position
    }

    /// One past the last committed offset, as of the last answer.
    pub fn high_watermark(&self, at: usize) -> Option<Offset> {
        self.partitions[at].high_watermark
    }

    /// Takes new leaders of a topic. Where the topic is another one, deleted and made again under the same name, an offset of the old one says
    /// nothing: it is out of range, or the records before it would be passed over.
    pub fn update_leaders(&mut self, topic: &str, lead: impl Fn(u32) -> Option<Lead>) -> Arrived {
        let mut arrived = Arrived::default();
        for at in 0..self.partitions.len() {
            let partition = &mut self.partitions[at];
            let Some(lead) = (*partition.topic == *topic).then(|| lead(partition.number)).flatten() else { continue };
            let former = std::mem::replace(&mut partition.lead, lead);
            if former.place.topic == lead.place.topic || !partition.is_assigned || partition.is_failed {
                continue;
            }
            tracing::warn!(%topic, partition = partition.number, position = partition.position, "the topic was deleted and made again");
            if partition.position == 0 {
                self.seek_to(at, 0);
            } else {
                // Answers to requests from before are not of this topic.
                partition.era += 1;
                partition.is_fetching = false;
                arrived.out_of_range.push(at);
            }
        }
        arrived
    }

    /// Leaders that a request may be made to, in turn: where memory is short it is not always the same that have it.
    pub fn wanted_brokers(&self, now: Micros) -> Vec<u32> {
        let mut brokers = self.leaders(|p| p.is_wanted(now));
        let behind_last = brokers.partition_point(|broker| *broker <= self.last_broker);
        if behind_last < brokers.len() {
            brokers.rotate_left(behind_last);
        }
        brokers
    }

    /// The leaders of such partitions, in order.
    fn leaders(&self, of: impl Fn(&Partition) -> bool) -> Vec<u32> {
        let mut leaders: Vec<u32> = self.partitions.iter().filter(|p| of(p)).map(|p| p.lead.leader).collect();
        leaders.sort_unstable();
        leaders.dedup();
        leaders
    }

    /// The least and the most that a request reserves, bytes. Each broker that is read from may have all its requests, as long as they are
    /// worth a round trip, and in any case one.
    fn shares(&self) -> (usize, usize) {
        let brokers = self.leaders(Partition::is_read).len().max(1);
        let of_broker = self.settings.buffer_memory / brokers;
        let least = of_broker.min(self.settings.partition_max_bytes as usize).max(1);
        (least, (of_broker / self.settings.max_in_flight.max(1)).max(least))
    }

    fn used(&self) -> usize {
        self.buffered + self.reserved
    }

    fn has_room(&self, least: usize) -> bool {
        self.used() == 0 || self.settings.buffer_memory.saturating_sub(self.used()) >= least
    }

    /// The next request to a broker, with all its partitions that want one.
    pub fn poll_request(&mut self, broker: u32, now: Micros) -> Option<(Fetch, Vec<Asked>)> {
        if self.in_flight.get(&broker).is_some_and(|count| *count >= self.settings.max_in_flight) {
            return None;
        }
        let is_wanted = |at: &usize| self.partitions[*at].lead.leader == broker && self.partitions[*at].is_wanted(now);
        let mut wanted: Vec<usize> = (0..self.partitions.len()).filter(is_wanted).collect();
        // Each partition is at the front in its turn: what is too large for the room behind others comes only there. Whose turn it is, each says for itself:
        // requests of other brokers, or with other partitions of this one, go on in between.
        let front = (0..wanted.len()).min_by_key(|i| self.partitions[wanted[*i]].front_at)?;
        let (least, most) = self.shares();
        if !self.has_room(least) {
            self.starved_of = Some(least);
            return None;
        }
        wanted.rotate_left(front);
        self.turns += 1;
        self.last_broker = broker;
        self.partitions[wanted[0]].front_at = self.turns;
        let (mut partitions, mut asked) = (Vec::new(), Vec::new());
        for at in wanted {
            let partition = &mut self.partitions[at];
            partition.is_fetching = true;
            asked.push(Asked { at, era: partition.era, offset: partition.fetch_offset, reserved: 0 });
            let offset = partition.fetch_offset;
            let max_bytes = self.settings.partition_max_bytes;
            partitions.push(FetchPartition { partition: partition.lead.place, offset, max_bytes, leader_epoch: None });
        }
        // The broker keeps the whole answer to this, but for one batch.
        let room = self.settings.buffer_memory.saturating_sub(self.used()).max(least);
        let of_partitions = asked.len().saturating_mul(self.settings.partition_max_bytes as usize);
        let reserved = room.min(most).min(self.settings.max_bytes as usize).min(of_partitions);
        asked.first_mut()?.reserved = reserved;
        self.reserved += reserved;
        *self.in_flight.entry(broker).or_default() += 1;
        let Settings { max_wait_ms, min_bytes, .. } = self.settings;
        Some((Fetch { max_wait_ms, min_bytes, max_bytes: reserved as u32, partitions }, asked))
    }

    /// The answer to a request, or the failure in its place.
    pub fn handle_answer(
        &mut self,
        broker: u32,
        asked: &[Asked],
        answer: Result<(Vec<FetchResult>, Bytes), ClientError>,
        now: Micros,
    ) -> Arrived {
        let mut arrived = Arrived::default();
        if let Some(count) = self.in_flight.get_mut(&broker) {
            *count -= 1;
        }
        self.reserved -= asked.iter().map(|asked| asked.reserved).sum::<usize>();
        let asked: Vec<Asked> = asked.iter().filter(|asked| self.partitions[asked.at].era == asked.era).copied().collect();
        asked.iter().for_each(|asked| self.partitions[asked.at].is_fetching = false);
        match answer {
            Ok((results, mut payload)) => {
                for result in results {
                    let bytes = result.outcome.as_ref().map_or(0, |fetched| fetched.bytes as usize);
                    let chunk = payload.split_to(bytes);
                    let Some(asked) = asked.iter().find(|a| self.partitions[a.at].lead.place == result.partition) else { continue };
                    match result.outcome {
                        Ok(fetched) => {
                            self.partitions[asked.at].high_watermark = Some(fetched.high_watermark);
                            self.partitions[asked.at].attempts = 0;
                            self.take_chunk(asked, chunk);
                        }
                        Err(refusal) => self.handle_failure(asked.at, refusal.into(), now, &mut arrived),
                    }
                }
            }
            Err(error) => asked.iter().for_each(|asked| self.handle_failure(asked.at, error.clone(), now, &mut arrived)),
        }
        arrived
    }

    /// The broker can't be reached: its partitions wait.
    pub fn handle_unreachable(&mut self, broker: u32, error: &ClientError, now: Micros) -> Arrived {
        let mut arrived = Arrived::default();
        for at in 0..self.partitions.len() {
            if self.partitions[at].lead.leader == broker && self.partitions[at].is_wanted(now) {
                self.handle_failure(at, error.clone(), now, &mut arrived);
            }
        }
        arrived
    }

    /// Keeps fetched batches; the fetch offset moves past the last whole one.
    fn take_chunk(&mut self, asked: &Asked, mut chunk: Bytes) {
        let mut next = asked.offset;
        let mut rest = &chunk[..];
        let mut whole = 0;
        while !rest.is_empty() {
            let header = match BatchHeader::parse(rest) {
                Ok(header) if header.total_len() <= rest.len() => header,
                Ok(_) => break,
                Err(error) => {
                    // What is before it can be read; the next request finds it again, at its start.
                    if whole == 0 {
                        self.fail(asked.at, error.into());
                    }
                    break;
                }
            };
            whole += header.total_len();
            next = next.max(header.next_offset());
            rest = &rest[header.total_len()..];
        }
        chunk.truncate(whole);
        self.partitions[asked.at].fetch_offset = next;
        if whole > 0 {
            self.buffered += whole;
            self.partitions[asked.at].chunks.push_back(chunk);
            self.queue(asked.at);
        }
    }

    fn handle_failure(&mut self, at: usize, error: ClientError, now: Micros, arrived: &mut Arrived) {
        if error.code() == Some(Code::OffsetOutOfRange) {
            arrived.out_of_range.push(at);
        } else if error.is_retriable() {
            let partition = &mut self.partitions[at];
            partition.attempts += 1;
            if is_worth_a_warning(partition.attempts) {
                let Partition { topic, number, attempts, .. } = partition;
                tracing::warn!(%topic, partition = number, %error, attempts, "a partition can't be fetched; trying on");
            }
            partition.not_before = now + self.settings.backoff.after(partition.attempts).as_micros() as Micros;
            arrived.retry_at = Some(arrived.retry_at.map_or(partition.not_before, |at| at.max(partition.not_before)));
            if error.is_about_leadership() && !arrived.stale_topics.contains(&partition.topic) {
                arrived.stale_topics.push(partition.topic.clone());
            }
        } else {
            self.fail(at, error);
        }
    }

    /// Stops a partition; the user is told once, after what is already there.
    pub fn fail(&mut self, at: usize, error: ClientError) {
        self.partitions[at].is_failed = true;
        self.failed.push_back((at, error));
    }

    /// Stops a partition whose failure the user is told by the caller; it stays where it was.
    pub fn stop(&mut self, at: usize, offset: Offset) {
        self.seek_to(at, offset);
        self.partitions[at].is_failed = true;
    }

    /// Fetches no more of it until [`Fetcher::end_reset`], which wants the number that this returns, or a seek.
    pub fn begin_reset(&mut self, at: usize) -> u64 {
        self.partitions[at].is_failed = true;
        self.partitions[at].seeks
    }

    /// Goes on where the log has what is wanted instead, unless the user has said meanwhile where to go on.
    pub fn end_reset(&mut self, at: usize, seeks: u64, offset: Result<Offset, ClientError>) {
        if self.partitions[at].seeks != seeks {
            return;
        }
        match offset {
            Ok(offset) => self.seek_to(at, offset),
            Err(error) => self.fail(at, error),
        }
    }

    /// The next batch for the user, partitions taking turns, or the failure of one.
    pub fn take_batch(&mut self) -> Option<Result<TakenBatch, ConsumeError>> {
        while let Some(at) = self.ready.pop_front() {
            let partition = &mut self.partitions[at];
            partition.is_queued = false;
            let Some(chunk) = partition.chunks.front_mut() else { continue };
            let batch = match split_batch(chunk) {
                Ok(Some(batch)) => batch,
                // `take_chunk` has walked it.
                Ok(None) | Err(_) => unreachable!("a chunk is whole batches"),
            };
            if chunk.is_empty() {
                partition.chunks.pop_front();
            }
            self.buffered -= batch.len();
            let from = partition.position;
            let next = BatchHeader::parse(&batch).map_or(from, |header| header.next_offset());
            partition.position = from.max(next);
            self.queue(at);
            if next <= from {
                continue; // all of it before a seek into a later batch
            }
            return Some(Ok(TakenBatch { at, seeks: self.partitions[at].seeks, bytes: batch, from }));
        }
        let (at, cause) = self.failed.pop_front()?;
        let (topic, partition) = self.name(at);
        Some(Err(ConsumeError { topic: topic.to_string(), partition, offset: self.partitions[at].position, cause }))
    }

    /// Whether there is room again for a request that waits for it; the shell then makes requests.
    pub fn poll_relieved(&mut self) -> bool {
        let is_relieved = self.starved_of.is_some_and(|least| self.has_room(least));
        if is_relieved {
            self.starved_of = None;
        }
        is_relieved
    }

    fn queue(&mut self, at: usize) {
        let partition = &mut self.partitions[at];
        if !partition.is_queued && !partition.chunks.is_empty() {
            partition.is_queued = true;
            self.ready.push_back(at);
        }
    }

    /// Bytes fetched and not yet taken.
    pub fn buffered(&self) -> usize {
        self.buffered
    }
}

impl Partition {
    fn new(topic: Arc<str>, number: u32, lead: Lead) -> Partition {
        Partition {
            topic,
            number,
            lead,
            position: 0,
            fetch_offset: 0,
            era: 0,
            seeks: 0,
            is_assigned: false,
            is_paused: false,
            is_fetching: false,
            is_queued: false,
            is_failed: false,
            chunks: VecDeque::new(),
            not_before: 0,
            attempts: 0,
            front_at: 0,
            high_watermark: None,
        }
    }

    /// Whether it is fetched, now or in its turn.
    fn is_read(&self) -> bool {
        self.is_assigned && !self.is_paused && !self.is_failed
    }

    fn is_wanted(&self, now: Micros) -> bool {
        self.is_read() && !self.is_fetching && now >= self.not_before
    }
}

/// What passes by itself after a moment is not worth a line in the log; what lasts is worth few. `attempts` counts failures in a row.
fn is_worth_a_warning(attempts: u32) -> bool {
    const FIRST: u32 = 5;
    attempts.is_multiple_of(FIRST) && (attempts / FIRST).is_power_of_two()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::batch::{BatchBuilder, Compression, decode, stamp};
    use crate::request::{Fetched, Refusal};
    use crate::types::TopicId;

    const BROKER: u32 = 1;

    fn fetcher(partitions: u32, buffer_memory: usize) -> Fetcher {
        let mut fetcher = Fetcher::new(Settings {
            max_wait_ms: 500,
            min_bytes: 1,
            max_bytes: 10_000,
            partition_max_bytes: 1000,
            buffer_memory,
            max_in_flight: 2,
            backoff: Backoff { first: Duration::from_micros(100), longest: Duration::from_micros(100) },
        });
        for number in 0..partitions {
            fetcher.assign("t", number, lead(number), 0);
        }
        fetcher
    }

    fn lead(partition: u32) -> Lead {
        Lead { place: TopicPartition { topic: TopicId([1; 16]), partition }, leader: BROKER }
    }

    /// A batch with so many records from `base` on.
    fn batch(base: Offset, count: u32) -> Bytes {
        let mut builder = BatchBuilder::new(Compression::None);
        for _ in 0..count {
            builder.append(0, None, Some(b"value"), &[]).unwrap();
        }
        let mut bytes = builder.build().to_vec();
        stamp(&mut bytes, base, 0);
        bytes.into()
    }

    fn answer(parts: &[(u32, Result<Bytes, Code>)]) -> Result<(Vec<FetchResult>, Bytes), ClientError> {
        let mut payload = vec![];
        let result = |(partition, outcome): &(u32, Result<Bytes, Code>)| FetchResult {
            partition: lead(*partition).place,
            outcome: match outcome {
                Ok(bytes) => {
                    payload.extend_from_slice(bytes);
                    Ok(Fetched { high_watermark: 100, log_start: 0, bytes: bytes.len() as u32 })
                }
                Err(code) => Err(Refusal::new(*code, "refused")),
            },
        };
        let results = parts.iter().map(result).collect();
        Ok((results, payload.into()))
    }

    fn offsets(taken: &TakenBatch) -> Vec<Offset> {
        let set = decode(taken.bytes.clone(), 10_000).unwrap();
        set.records().map(|r| r.unwrap().offset).filter(|offset| *offset >= taken.from).collect()
    }

    #[test]
    fn each_partition_is_at_the_front_in_its_turn() {
        let mut f = fetcher(3, 10_000);
        for front in [0, 1, 2, 0] {
            let (request, asked) = f.poll_request(BROKER, 0).unwrap();
            let order: Vec<_> = request.partitions.iter().map(|p| p.partition.partition).collect();
            assert_eq!(order, [front, (front + 1) % 3, (front + 2) % 3]);
            f.handle_answer(BROKER, &asked, answer(&[]), 0);
        }
    }

    #[test]
    fn requests_with_other_partitions_do_not_take_the_turn() {
        let mut f = fetcher(4, 100_000);
        (2..4).for_each(|at| f.pause(at));
        let mut first = f.poll_request(BROKER, 0).unwrap();
        (2..4).for_each(|at| f.resume(at));
        let mut second = f.poll_request(BROKER, 0).unwrap();
        let mut fronts = vec![];
        for _ in 0..3 {
            fronts.push((first.1[0].at, second.1[0].at));
            f.handle_answer(BROKER, &first.1, answer(&[]), 0);
            first = f.poll_request(BROKER, 0).unwrap();
            f.handle_answer(BROKER, &second.1, answer(&[]), 0);
            second = f.poll_request(BROKER, 0).unwrap();
        }
        assert_eq!(fronts, [(0, 2), (1, 3), (0, 2)]);
    }

    #[test]
    fn records_come_in_order_from_the_wanted_offset_on() {
        let mut f = fetcher(1, 10_000);
        f.seek_to(0, 7);
        let (fetch, asked) = f.poll_request(BROKER, 0).unwrap();
        assert_eq!(fetch.partitions[0].offset, 7);
        assert!(f.poll_request(BROKER, 0).is_none(), "it is being fetched");
        let two = [batch(5, 5), batch(10, 2)].concat();
        f.handle_answer(BROKER, &asked, answer(&[(0, Ok(two.into()))]), 0);
        assert_eq!(f.poll_request(BROKER, 0).unwrap().0.partitions[0].offset, 12, "prefetch goes on");
        assert_eq!(f.position(0), 7);
        assert_eq!(offsets(&f.take_batch().unwrap().unwrap()), [7, 8, 9]);
        assert_eq!(f.position(0), 10);
        assert_eq!(offsets(&f.take_batch().unwrap().unwrap()), [10, 11]);
        assert!(f.take_batch().is_none());
        assert_eq!((f.position(0), f.buffered(), f.high_watermark(0)), (12, 0, Some(100)));
    }

    #[test]
    fn an_answer_from_before_a_seek_is_dropped() {
        let mut f = fetcher(1, 10_000);
        let (_, asked) = f.poll_request(BROKER, 0).unwrap();
        f.seek_to(0, 50);
        let (fetch, new) = f.poll_request(BROKER, 0).unwrap();
        assert_eq!(fetch.partitions[0].offset, 50);
        f.handle_answer(BROKER, &asked, answer(&[(0, Ok(batch(0, 3)))]), 0);
        assert!(f.take_batch().is_none());
        assert!(f.poll_request(BROKER, 0).is_none(), "the new request is still in flight");
        f.handle_answer(BROKER, &new, answer(&[(0, Ok(batch(50, 1)))]), 0);
        assert_eq!(offsets(&f.take_batch().unwrap().unwrap()), [50]);
        assert_eq!(f.reserved, 0);
    }

    #[test]
    fn partitions_take_turns_and_paused_ones_wait() {
        let mut f = fetcher(3, 100_000);
        let (_, asked) = f.poll_request(BROKER, 0).unwrap();
        let both = |p: u32| (p, Ok(Bytes::from([batch(0, 1), batch(1, 1)].concat())));
        f.handle_answer(BROKER, &asked, answer(&[both(0), both(1), both(2)]), 0);
        f.pause(1);
        let order: Vec<usize> = std::iter::from_fn(|| f.take_batch()).map(|taken| taken.unwrap().at).collect();
        assert_eq!(order, [0, 2, 0, 2]);
        assert_eq!(f.poll_request(BROKER, 0).unwrap().1.len(), 2, "the paused one is not fetched");
        f.resume(1);
        let (fetch, asked) = f.poll_request(BROKER, 0).unwrap();
        assert_eq!((asked.len(), fetch.partitions[0].offset), (1, 0), "and is fetched again afterwards");
        f.handle_answer(BROKER, &asked, answer(&[both(1)]), 0);
        assert_eq!(f.take_batch().unwrap().unwrap().at, 1);
    }

    #[test]
    fn a_paused_partition_takes_no_memory_from_others() {
        let mut f = fetcher(2, 2000);
        f.pause(1);
        let (_, asked) = f.poll_request(BROKER, 0).unwrap();
        let full = [batch(0, 50), batch(50, 50), batch(100, 50)].concat();
        assert!(full.len() > 1000);
        f.handle_answer(BROKER, &asked, answer(&[(0, Ok(full.into()))]), 0);
        let half = f.take_batch().unwrap().unwrap();
        // Some of the first batch is used up.
        f.give_back(0, half.seeks, half.bytes, 20);
        f.pause(0);
        assert_eq!((f.buffered(), f.position(0)), (0, 20));
        assert!(f.take_batch().is_none());
        f.resume(1);
        assert_eq!(f.poll_request(BROKER, 0).unwrap().1.iter().map(|a| a.at).collect::<Vec<_>>(), [1]);
        f.resume(0);
        let (fetch, asked) = f.poll_request(BROKER, 0).unwrap();
        assert_eq!(fetch.partitions[0].offset, 20);
        f.handle_answer(BROKER, &asked, answer(&[(0, Ok(batch(0, 22)))]), 0);
        assert_eq!(offsets(&f.take_batch().unwrap().unwrap()), [20, 21]);
    }

    #[test]
    fn an_answer_from_before_a_pause_is_dropped() {
        let mut f = fetcher(1, 100_000);
        let (_, asked) = f.poll_request(BROKER, 0).unwrap();
        f.handle_answer(BROKER, &asked, answer(&[(0, Ok(batch(0, 3)))]), 0);
        let (fetch, late) = f.poll_request(BROKER, 0).unwrap();
        assert_eq!(fetch.partitions[0].offset, 3);
        f.pause(0);
        f.resume(0);
        let (fetch, asked) = f.poll_request(BROKER, 0).unwrap();
        assert_eq!(fetch.partitions[0].offset, 0);
        f.handle_answer(BROKER, &late, answer(&[(0, Ok(batch(3, 3)))]), 0);
        f.handle_answer(BROKER, &asked, answer(&[(0, Ok(batch(0, 3)))]), 0);
        assert_eq!(offsets(&f.take_batch().unwrap().unwrap()), [0, 1, 2]);
        assert!(f.take_batch().is_none());
    }

    #[test]
    fn memory_bounds_what_is_asked_for() {
        let mut f = fetcher(5, 4000);
        let (fetch, asked) = f.poll_request(BROKER, 0).unwrap();
        assert_eq!((asked.len(), fetch.max_bytes), (5, 2000), "all partitions, but no more bytes than one of two requests may have");
        let big = batch(0, 50);
        assert!(big.len() > 500 && big.len() < 1000);
        let parts = [0, 1, 2, 3, 4].map(|p| (p, Ok([&big[..], &big[..]].concat().into())));
        f.handle_answer(BROKER, &asked, answer(&parts), 0);
        assert_eq!((f.buffered(), f.reserved), (10 * big.len(), 0));
        assert!(f.poll_request(BROKER, 0).is_none());
        while f.buffered() > 3000 {
            assert!(!f.poll_relieved());
            f.take_batch();
        }
        assert!(f.poll_relieved() && !f.poll_relieved());
        assert_eq!(f.poll_request(BROKER, 0).unwrap().1.len(), 5);
    }

    /// What the shell does: every request that can be made.
    fn pump(f: &mut Fetcher, in_flight: &mut VecDeque<(u32, Fetch, Vec<Asked>)>) {
        for broker in f.wanted_brokers(0) {
            while let Some((fetch, asked)) = f.poll_request(broker, 0) {
                in_flight.push_back((broker, fetch, asked));
            }
        }
    }

    #[test]
    fn with_little_memory_no_broker_is_left_out() {
        const BROKERS: u32 = 6;
        const PARTITIONS: u32 = 4;
        for (memory, at_once) in [(16_000, 6), (3_000, 6), (4, 1)] {
            let mut f = fetcher(0, memory);
            f.settings.max_bytes = 4000;
            for number in 0..BROKERS * PARTITIONS {
                f.assign("t", number, Lead { leader: number % BROKERS, ..lead(number) }, 0);
            }
            let mut in_flight = VecDeque::new();
            pump(&mut f, &mut in_flight);
            assert!(in_flight.len() >= at_once, "{} requests with {memory} bytes", in_flight.len());
            assert!(in_flight.iter().map(|(_, fetch, _)| fetch.max_bytes as usize).sum::<usize>() <= memory);
            // All answers are full, and the user takes all that is there before the next one comes.
            let mut served = [0; BROKERS as usize];
            for _ in 0..20 * BROKERS {
                let (broker, fetch, asked) = in_flight.pop_front().unwrap();
                let first = &fetch.partitions[0];
                let mut full = vec![];
                while full.is_empty() || full.len() + batch(0, 10).len() <= fetch.max_bytes as usize {
                    full.extend_from_slice(&batch(first.offset + 10 * (full.len() / batch(0, 10).len()) as Offset, 10));
                }
                served[broker as usize] += 1;
                f.handle_answer(broker, &asked, answer(&[(first.partition.partition, Ok(full.into()))]), 0);
                pump(&mut f, &mut in_flight);
                while f.take_batch().is_some() {
                    if f.poll_relieved() {
                        pump(&mut f, &mut in_flight);
                    }
                }
            }
            assert!(served.iter().all(|count| (18..=22).contains(count)), "{served:?} with {memory} bytes");
        }
    }

    #[test]
    fn one_batch_larger_than_all_memory_can_be_read() {
        let mut f = fetcher(1, 10);
        let (_, asked) = f.poll_request(BROKER, 0).unwrap();
        f.handle_answer(BROKER, &asked, answer(&[(0, Ok(batch(0, 500)))]), 0);
        assert!(f.take_batch().is_some());
        assert!(f.poll_request(BROKER, 0).is_some());
    }

    #[test]
    fn what_passes_is_asked_again_and_what_does_not_is_told_once() {
        let mut f = fetcher(3, 10_000);
        let (_, asked) = f.poll_request(BROKER, 0).unwrap();
        let refused = [(0, Err(Code::NotLeader)), (1, Err(Code::Quarantined)), (2, Err(Code::OffsetOutOfRange))];
        let arrived = f.handle_answer(BROKER, &asked, answer(&refused), 0);
        assert_eq!((arrived.stale_topics.len(), arrived.retry_at, arrived.out_of_range), (1, Some(100), vec![2]));
        f.seek_to(2, 5);
        assert_eq!(f.poll_request(BROKER, 99).unwrap().1.iter().map(|a| a.at).collect::<Vec<_>>(), [2]);
        assert_eq!(f.poll_request(BROKER, 100).unwrap().1.iter().map(|a| a.at).collect::<Vec<_>>(), [0]);
        let error = f.take_batch().unwrap().unwrap_err();
        assert_eq!((error.topic.as_str(), error.partition, error.cause.code()), ("t", 1, Some(Code::Quarantined)));
        assert!(f.take_batch().is_none());
    }

    #[test]
    fn an_offset_of_a_deleted_topic_is_out_of_range_in_its_successor() {
        let mut f = fetcher(2, 10_000);
        f.seek_to(1, 7);
        let (_, late) = f.poll_request(BROKER, 0).unwrap();
        let again = |partition| Some(Lead { place: TopicPartition { topic: TopicId([2; 16]), partition }, leader: BROKER });
        assert!(f.update_leaders("t", |partition| Some(lead(partition))).out_of_range.is_empty(), "the same topic");
        assert_eq!(f.update_leaders("t", again).out_of_range, [1], "the other one is read from its start on");
        let seeks = f.begin_reset(1);
        let (fetch, asked) = f.poll_request(BROKER, 0).unwrap();
        assert_eq!((asked.len(), fetch.partitions[0].partition, fetch.partitions[0].offset), (1, again(0).unwrap().place, 0));
        f.handle_answer(BROKER, &late, answer(&[(0, Ok(batch(0, 1))), (1, Err(Code::OffsetOutOfRange))]), 0);
        assert!(f.take_batch().is_none());
        f.end_reset(1, seeks, Ok(3));
        assert_eq!(f.poll_request(BROKER, 0).unwrap().0.partitions[0].offset, 3);
    }

    #[test]
    fn a_seek_stands_against_a_reset_and_what_is_given_back() {
        let mut f = fetcher(1, 10_000);
        let (_, asked) = f.poll_request(BROKER, 0).unwrap();
        f.handle_answer(BROKER, &asked, answer(&[(0, Ok(batch(0, 5)))]), 0);
        let half = f.take_batch().unwrap().unwrap();
        let seeks = f.begin_reset(0);
        f.pause(0);
        f.seek_to(0, 50);
        f.end_reset(0, seeks, Ok(0));
        f.give_back(0, half.seeks, half.bytes, 3);
        assert_eq!((f.position(0), f.buffered()), (50, 0));
        // A pause is none.
        let seeks = f.begin_reset(0);
        f.pause(0);
        f.end_reset(0, seeks, Ok(9));
        f.resume(0);
        assert_eq!(f.poll_request(BROKER, 0).unwrap().0.partitions[0].offset, 9);
    }

    #[test]
    fn what_lasts_is_logged_now_and_then() {
        assert_eq!((0..100).filter(|attempts| is_worth_a_warning(*attempts)).collect::<Vec<_>>(), [5, 10, 20, 40, 80]);
    }

    #[test]
    fn a_malformed_batch_stops_its_partition_after_what_is_before_it() {
        let mut f = fetcher(1, 10_000);
        let (_, asked) = f.poll_request(BROKER, 0).unwrap();
        let mut bytes = [batch(0, 2), batch(2, 1)].concat();
        let at = batch(0, 2).len() + 16;
        bytes[at] = 9; // the magic
        f.handle_answer(BROKER, &asked, answer(&[(0, Ok(bytes.clone().into()))]), 0);
        assert_eq!(offsets(&f.take_batch().unwrap().unwrap()), [0, 1]);
        let (fetch, asked) = f.poll_request(BROKER, 0).unwrap();
        assert_eq!(fetch.partitions[0].offset, 2);
        f.handle_answer(BROKER, &asked, answer(&[(0, Ok(bytes.split_off(at - 16).into()))]), 0);
        let error = f.take_batch().unwrap().unwrap_err();
        assert!(matches!(error.cause, ClientError::Batch(_)) && error.offset == 2, "{error}");
        assert!(f.poll_request(BROKER, 0).is_none());
    }
}
