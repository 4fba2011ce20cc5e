//! What a consumer reads next: positions, prefetch within a bound, what is paused. A pure state machine.
//!
//! Each partition has two offsets: the *position*, of the next record that the user gets, and the *fetch offset*, where the next request starts. Between
//! them lie fetched bytes, still as batches. A seek moves both and drops the bytes, a pause drops them too; answers to requests from before
//! it are told by the partition's `era` and dropped.
//!
//! At most a few requests are in flight per broker, none with a partition of another. A request is made only
//! while what is buffered and what is asked for stays within `buffer_memory`, and asks for no more than its share of it, so that there is room for a
//! request to every broker; brokers take turns. A batch that is larger comes anyway, or it could never be read.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::backoff::Backoff;
use super::error::{ClientError, ConsumeError};
use super::session::Micros;
use crate::batch::{BatchHeader, split_batch};
use crate::request::{Code, Fetch, FetchPartition, FetchResult, ReadFrom};
use crate::types::{Offset, TopicPartition};

/// While a leader is looked for, it is asked about at least so often, microseconds: an election is over in a moment, and nobody tells.
const LONGEST_SEARCH: Micros = 200_000;

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
        let is_behind = partition.fetch_offset > partition.position;
        partition.fetch_offset = partition.position;
        // A failure behind what is dropped, of which the user was not told, is found again. One at the position itself may not be: it stays.
        if is_behind && self.failed.iter().any(|(failed, _)| *failed == at) {
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
            if former.leader != lead.leader {
                // What it waited for has happened.
                partition.not_before = 0;
            }
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
        Some((Fetch { max_wait_ms, min_bytes, max_bytes: reserved as u32, partitions, from: ReadFrom::Leader }, asked))
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
            let pause = self.settings.backoff.after(partition.attempts).as_micros() as Micros;
            partition.not_before = now + if error.is_about_leadership() { pause.min(LONGEST_SEARCH) } else { pause };
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
