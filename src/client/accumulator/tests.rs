//! The accumulator against a broker that refuses, forgets to answer and breaks connections: nothing twice, nothing out of order.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::batch::decode;
use crate::client::delivery::DeliveryFuture;
use crate::request::{Appended, PartitionMetadata, ProduceResult, ReplicaLists};

const BROKER: u32 = 7;

fn settings() -> Settings {
    Settings {
        batch_size: 300,
        linger: 0,
        compression: Compression::None,
        buffer_memory: 1 << 20,
        max_in_flight: 5,
        max_request: 10_000,
        delivery_timeout: 1_000_000,
        is_idempotent: true,
        backoff: Backoff { first: Duration::from_micros(100), longest: Duration::from_micros(1000) },
        partitioning: Partitioning::default(),
    }
}

fn topic(partitions: usize, leader: u32) -> TopicPartitions {
    let partitions = vec![PartitionMetadata { leader: Some(leader), leader_epoch: 0 }; partitions];
    TopicPartitions { id: TopicId([1; 16]), partitions, replicas: ReplicaLists::default(), max_message_bytes: 1000 }
}

fn accumulator(settings: Settings, partitions: usize) -> Accumulator {
    let mut accumulator = Accumulator::new(settings);
    accumulator.update_topic("t", &topic(partitions, BROKER), 0);
    accumulator.set_identity(100, 0);
    accumulator
}

fn parts(partition: Option<u32>, value: &[u8]) -> Parts<'_> {
    Parts { partition, timestamp: 5, key: None, value: Some(value), headers: &[] }
}

fn add(accumulator: &mut Accumulator, partition: u32, value: &[u8], now: Micros) -> DeliveryFuture {
    let placed = accumulator.append(0, &parts(Some(partition), value), || now).unwrap();
    DeliveryFuture::new(placed.delivery, placed.index, 5)
}

fn poll(accumulator: &mut Accumulator, now: Micros) -> Option<Vec<(BatchKey, u32, Bytes)>> {
    poll_of(accumulator, BROKER, now)
}

fn poll_of(accumulator: &mut Accumulator, broker: u32, now: Micros) -> Option<Vec<(BatchKey, u32, Bytes)>> {
    let drafts = accumulator.poll_request(broker, now)?;
    let sent = drafts.into_iter().map(|draft| {
        let bytes = draft.body.bytes();
        accumulator.store_bytes(draft.key, bytes.clone());
        (draft.key, draft.place.partition, bytes)
    });
    Some(sent.collect())
}

fn keys(request: &[(BatchKey, u32, Bytes)]) -> Vec<BatchKey> {
    request.iter().map(|(key, ..)| *key).collect()
}

fn complete(settled: Settled) -> usize {
    let count = settled.done.len();
    settled.done.into_iter().for_each(|(delivery, outcome)| delivery.complete(outcome));
    count
}

fn result(outcome: Result<i64, Code>) -> ProduceResult {
    ProduceResult {
        partition: TopicPartition { topic: TopicId([1; 16]), partition: 0 },
        outcome: outcome
            .map(|base_offset| Appended { base_offset, log_append_time: -1, log_start: 0 })
            .map_err(|code| Refusal::new(code, "refused")),
    }
}

fn lost() -> ClientError {
    ClientError::Disconnected { address: "b".into(), cause: "gone".into() }
}

#[test]
fn a_record_leaves_at_once_and_the_next_fill_a_batch_meanwhile() {
    let mut a = accumulator(Settings { max_in_flight: 1, ..settings() }, 1);
    let first = a.append(0, &parts(None, b"one"), || 0).unwrap();
    assert!(first.is_ready);
    assert_eq!(a.ready_brokers(), [BROKER]);
    let request = poll(&mut a, 0).unwrap();
    for value in [b"two", b"six"] {
        assert!(!a.append(0, &parts(None, value), || 0).unwrap().is_ready, "the connection is busy");
    }
    assert!(poll(&mut a, 0).is_none() && a.ready_brokers().is_empty());
    assert_eq!(complete(a.handle_answer(BROKER, &keys(&request), Ok(vec![result(Ok(10))]), 1)), 1);
    let request = poll(&mut a, 1).unwrap();
    let header = BatchHeader::parse(&request[0].2).unwrap();
    assert_eq!((header.record_count, header.producer_id, header.base_sequence), (2, 100, 1));
    assert_eq!(complete(a.handle_answer(BROKER, &keys(&request), Ok(vec![result(Ok(11))]), 1)), 1);
    assert_eq!(a.buffered(), 0);
}

#[test]
fn linger_waits_for_its_time_or_a_full_batch_or_a_flush() {
    let mut a = accumulator(Settings { linger: 1000, ..settings() }, 3);
    let placed = a.append(0, &parts(Some(0), b"x"), || 50).unwrap();
    assert!(!placed.is_ready && placed.is_earlier);
    assert_eq!(a.poll_timeout(), Some(0), "the first check of delivery time-outs");
    complete(a.handle_time(50));
    assert_eq!(a.poll_timeout(), Some(1050));
    assert!(poll(&mut a, 1049).is_none());
    complete(a.handle_time(1050));
    assert_eq!(poll(&mut a, 1050).unwrap().len(), 1);

    drop(add(&mut a, 1, &[0; 200], 2000));
    assert!(poll(&mut a, 2000).is_none());
    drop(add(&mut a, 1, &[0; 200], 2000));
    assert_eq!(poll(&mut a, 2000).unwrap().len(), 1, "the full one");
    assert!(poll(&mut a, 2000).is_none());
    assert_eq!(a.flush(2000).len(), 3);
    assert_eq!(poll(&mut a, 2000).unwrap().len(), 1);
}

#[test]
fn one_request_carries_batches_of_many_partitions_up_to_its_bound() {
    let mut a = accumulator(Settings { max_request: 700, ..settings() }, 10);
    for partition in 0..10 {
        drop(add(&mut a, partition, &[0; 100], 0));
    }
    let mut seen = vec![];
    while let Some(request) = poll(&mut a, 0) {
        assert!(request.iter().map(|(.., bytes)| bytes.len()).sum::<usize>() <= 700);
        seen.extend(request.iter().map(|(_, partition, _)| *partition));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
}

#[test]
fn keyless_records_stick_until_the_batch_leaves_and_keys_do_not() {
    let mut a = accumulator(settings(), 4);
    let mut at = |key: Option<&[u8]>| {
        let parts = Parts { key, ..parts(None, b"v") };
        DeliveryFuture::new(a.append(0, &parts, || 0).unwrap().delivery, 0, 0).partition()
    };
    let first = at(None);
    assert_eq!([at(None), at(None)], [first, first]);
    assert_eq!(at(Some(b"foobar")), partition_of_key(b"foobar", 4));
    while poll(&mut a, 0).is_some() {}
    let mut at = |_| DeliveryFuture::new(a.append(0, &parts(None, b"v"), || 0).unwrap().delivery, 0, 0).partition();
    assert_ne!(at(()), first);
}

#[test]
fn a_full_buffer_refuses_until_something_is_settled() {
    let mut a = accumulator(Settings { buffer_memory: 500, ..settings() }, 1);
    let mut deliveries = vec![];
    let refused = loop {
        match a.append(0, &parts(None, &[0; 100]), || 0) {
            Ok(placed) => deliveries.push(placed),
            Err(e) => break e,
        }
    };
    assert!(matches!(refused, ProduceFailure::BufferFull { limit: 500, .. }) && !a.has_room());
    let request = poll(&mut a, 0).unwrap();
    complete(a.handle_answer(BROKER, &keys(&request), Ok(vec![result(Ok(0))]), 0));
    assert!(a.has_room());
}

#[test]
fn what_no_batch_can_hold_is_refused_by_name() {
    let mut a = accumulator(settings(), 2);
    let error = a.append(0, &parts(None, &[0; 2000]), || 0).unwrap_err();
    assert!(matches!(error, ProduceFailure::Client(ClientError::Batch(BatchError::TooLarge { max: 1000, .. }))), "{error}");
    let error = a.append(0, &parts(Some(2), b"x"), || 0).unwrap_err();
    assert!(error.to_string().contains("partitions 0 to 1, not 2"), "{error}");
    assert_eq!(a.buffered(), 0);
    // Larger than a batch is meant to be, but allowed: a batch of its own.
    drop(add(&mut a, 0, b"small", 0));
    drop(add(&mut a, 0, &[0; 800], 0));
    drop(add(&mut a, 0, b"small", 0));
    let counts: Vec<i32> = std::iter::from_fn(|| poll(&mut a, 0)).map(|r| BatchHeader::parse(&r[0].2).unwrap().record_count).collect();
    assert_eq!(counts, [1, 1, 1]);
}

#[test]
fn a_moved_leader_gets_what_waits() {
    let mut a = accumulator(settings(), 1);
    drop(add(&mut a, 0, b"x", 0));
    let request = poll(&mut a, 0).unwrap();
    let settled = a.handle_answer(BROKER, &keys(&request), Ok(vec![result(Err(Code::NotLeader))]), 0);
    assert_eq!(settled.stale_topics.len(), 1);
    assert!(settled.done.is_empty());
    a.update_topic("t", &topic(1, 9), 0);
    complete(a.handle_time(200));
    assert_eq!(a.ready_brokers(), [9]);
    let again = a.poll_request(9, 200).unwrap();
    assert!(matches!(&again[0].body, DraftBody::Ready(bytes) if *bytes == request[0].2), "the same bytes, the same sequence");
}

#[test]
fn a_new_leader_gets_nothing_while_the_former_may_take_what_came_before() {
    let mut a = accumulator(settings(), 2);
    drop((add(&mut a, 0, b"one", 0), add(&mut a, 1, b"other", 0)));
    let request = poll(&mut a, 0).unwrap();
    let (second, other) = (add(&mut a, 0, b"two", 0), add(&mut a, 1, b"another", 0));
    a.update_topic("t", &topic(2, 9), 0);
    assert!(a.poll_request(9, 0).is_none() && poll(&mut a, 0).is_none());
    let results = vec![result(Ok(0)), result(Err(Code::NotLeader))];
    complete(a.handle_answer(BROKER, &keys(&request), Ok(results), 0));
    let next = poll_of(&mut a, 9, 0).unwrap();
    assert_eq!(next.iter().map(|(_, partition, _)| *partition).collect::<Vec<_>>(), [0]);
    assert_eq!(BatchHeader::parse(&next[0].2).unwrap().base_sequence, 1);
    complete(a.handle_answer(9, &keys(&next), Ok(vec![result(Ok(1))]), 0));
    assert!(second.try_result().is_some() && other.try_result().is_none());
    complete(a.handle_time(1000));
    let next = poll_of(&mut a, 9, 1000).unwrap();
    assert_eq!(BatchHeader::parse(&next[0].2).unwrap().base_sequence, 0, "what was refused comes first");
}

#[test]
fn a_partition_without_a_leader_waits_and_others_do_not() {
    let mut a = accumulator(settings(), 2);
    let mut found = topic(2, BROKER);
    found.partitions[0].leader = None;
    a.update_topic("t", &found, 0);
    let (waits, goes) = (add(&mut a, 0, b"waits", 0), add(&mut a, 1, b"goes", 0));
    let request = poll(&mut a, 0).unwrap();
    complete(a.handle_answer(BROKER, &keys(&request), Ok(vec![result(Ok(0))]), 0));
    assert!(goes.try_result().is_some());
    let nobody = ClientError::from(Refusal::new(Code::NotLeader, "nobody leads it"));
    let settled = a.handle_unreachable(NO_LEADER, &nobody, 0);
    assert_eq!(settled.stale_topics.len(), 1);
    assert!(a.ready_brokers().is_empty(), "it waits before it asks again");
    a.update_topic("t", &topic(2, BROKER), 0);
    assert_eq!(poll(&mut a, 0).unwrap().len(), 1, "at once with a leader");
    assert!(waits.try_result().is_none());
}

#[test]
fn an_unreachable_broker_gives_up_only_when_the_time_is_over() {
    let mut a = accumulator(settings(), 1);
    let delivery = add(&mut a, 0, b"x", 0);
    let error = ClientError::Connect { address: "b:1".into(), cause: "refused".into() };
    let mut now = 0;
    while delivery.try_result().is_none() {
        complete(a.handle_unreachable(BROKER, &error, now));
        now = a.poll_timeout().unwrap().max(now + 1);
        complete(a.handle_time(now));
    }
    assert!(now >= 1_000_000);
    let failure = delivery.try_result().unwrap().unwrap_err();
    assert_eq!(failure.cause, ProduceFailure::Expired { timeout_ms: 1000, last: Some(error) });
    assert_eq!(a.buffered(), 0);
}

#[test]
fn after_a_record_is_given_up_the_rest_go_on_with_a_new_identity() {
    let mut a = accumulator(settings(), 1);
    let deliveries: Vec<_> = [b"one", b"two"].map(|value| (add(&mut a, 0, value, 0), poll(&mut a, 0).unwrap())).into_iter().collect();
    let third = add(&mut a, 0, b"three", 0);
    complete(a.handle_answer(BROKER, &keys(&deliveries[0].1), Ok(vec![result(Err(Code::InvalidRecord))]), 0));
    assert!(deliveries[0].0.try_result().unwrap().is_err());
    assert!(poll(&mut a, 0).is_none(), "the second is still on its way");
    complete(a.handle_answer(BROKER, &keys(&deliveries[1].1), Ok(vec![result(Err(Code::OutOfOrderSequence))]), 0));
    assert!(a.needs_identity() && poll(&mut a, 0).is_none());
    a.set_identity(101, 0);
    for (sequence, delivery) in [(0, &deliveries[1].0), (1, &third)] {
        let request = poll(&mut a, 0).unwrap();
        let header = BatchHeader::parse(&request[0].2).unwrap();
        assert_eq!((header.producer_id, header.base_sequence), (101, sequence));
        crate::batch::check_ingress(&request[0].2, 1000).unwrap();
        complete(a.handle_answer(BROKER, &keys(&request), Ok(vec![result(Ok(i64::from(sequence)))]), 0));
        assert!(delivery.try_result().unwrap().is_ok());
    }
}

/// The leader has moved: the first goes through the former leader, and is appended and acknowledged before the second one's refusal is heard.
#[test]
fn a_refusal_from_before_an_earlier_acknowledgement_costs_nothing() {
    let mut a = accumulator(settings(), 1);
    let [first, second] = [b"one", b"two"].map(|value| (add(&mut a, 0, value, 0), poll(&mut a, 0).unwrap()));
    complete(a.handle_answer(BROKER, &keys(&second.1), Err(lost()), 0));
    complete(a.handle_time(100_000));
    let again = poll(&mut a, 100_000).unwrap();
    complete(a.handle_answer(BROKER, &keys(&first.1), Ok(vec![result(Ok(0))]), 100_000));
    complete(a.handle_answer(BROKER, &keys(&again), Ok(vec![result(Err(Code::OutOfOrderSequence))]), 100_000));
    assert!(!a.needs_identity(), "the identity stays");
    let again = poll(&mut a, 200_000).unwrap();
    assert_eq!(BatchHeader::parse(&again[0].2).unwrap().base_sequence, 1);
    // Refused once more, with nothing before it: the broker does not know the producer.
    complete(a.handle_answer(BROKER, &keys(&again), Ok(vec![result(Err(Code::OutOfOrderSequence))]), 200_000));
    assert!(a.needs_identity());
    assert!(first.0.try_result().unwrap().is_ok());
    assert_eq!(second.0.try_result().unwrap().unwrap_err().cause, ProduceFailure::Unknown, "it may have been appended at first");
}

#[test]
fn what_may_be_in_the_log_is_not_sent_under_a_new_identity() {
    let mut a = accumulator(Settings { delivery_timeout: 5000, ..settings() }, 1);
    let old = add(&mut a, 0, b"old", 0);
    let old_request = poll(&mut a, 0).unwrap();
    let young = add(&mut a, 0, b"young", 4000);
    let young_request = poll(&mut a, 4000).unwrap();
    for request in [&young_request, &old_request] {
        complete(a.handle_answer(BROKER, &keys(request), Err(lost()), 4000));
    }
    complete(a.handle_time(6000));
    assert!(matches!(old.try_result().unwrap().unwrap_err().cause, ProduceFailure::Expired { .. }));
    assert_eq!(young.try_result().unwrap().unwrap_err().cause, ProduceFailure::Unknown);
}

/// A broker's side of one partition: its log and what it remembers of producers.
#[derive(Default)]
struct Log {
    records: Vec<u64>,
    producers: HashMap<i64, VecDeque<(i32, i32, i64)>>,
}

impl Log {
    /// Whether the very batch is in it.
    fn has(&self, batch: &Bytes) -> bool {
        let header = BatchHeader::parse(batch).unwrap();
        self.producers.get(&header.producer_id).is_some_and(|known| known.iter().any(|(first, ..)| *first == header.base_sequence))
    }

    fn append(&mut self, batch: &Bytes) -> Result<i64, Code> {
        let header = crate::batch::check_ingress(batch, 10_000).expect("a sound batch");
        if !header.has_producer() {
            return Ok(self.add(batch));
        }
        let known = self.producers.entry(header.producer_id).or_default();
        let (first, last) = (header.base_sequence, header.last_sequence());
        if let Some((_, _, base)) = known.iter().find(|(f, l, _)| (*f, *l) == (first, last)) {
            return Ok(*base);
        }
        if first != known.back().map_or(0, |(_, last, _)| last + 1) {
            return Err(Code::OutOfOrderSequence);
        }
        known.push_back((first, last, self.records.len() as i64));
        if known.len() > limits::PRODUCER_BATCHES {
            known.pop_front();
        }
        Ok(self.add(batch))
    }

    fn add(&mut self, batch: &Bytes) -> i64 {
        let base = self.records.len() as i64;
        let set = decode(batch.clone(), 10_000).unwrap();
        self.records.extend(set.records().map(|r| u64::from_le_bytes(r.unwrap().value.unwrap().try_into().unwrap())));
        base
    }
}

/// Answers don't come in order. One that is late must not be followed by so many batches that its broker remembers it no more.
#[test]
fn nothing_leaves_that_makes_the_broker_forget_one_that_is_open() {
    let mut a = accumulator(settings(), 1);
    let send = |a: &mut Accumulator| {
        let _record = add(a, 0, &[1; 250], 0);
        poll(a, 0).map(|request| keys(&request))
    };
    let late = send(&mut a).unwrap();
    for _ in 1..limits::PRODUCER_BATCHES {
        let next = send(&mut a).unwrap();
        complete(a.handle_answer(BROKER, &next, Ok(vec![result(Ok(0))]), 0));
    }
    assert_eq!(send(&mut a), None, "the broker would forget the first one");
    // Its connection breaks; it is sent again, and those that wait behind it leave once it is settled.
    complete(a.handle_answer(BROKER, &late, Err(lost()), 0));
    complete(a.handle_time(10_000));
    let again = keys(&poll(&mut a, 10_000).unwrap());
    assert_eq!(again, late);
    assert_eq!(poll(&mut a, 10_000), None);
    complete(a.handle_answer(BROKER, &again, Ok(vec![result(Ok(0))]), 10_000));
    assert!(poll(&mut a, 10_000).is_some());
}

type Request = Vec<(BatchKey, u32, Bytes)>;

/// A request on its way to a broker, or its answer on the way back.
struct Sent {
    broker: u32,
    request: Request,
    results: Option<Vec<ProduceResult>>,
}

/// Who leads after the first.
const SUCCESSOR: u32 = 8;

/// What the random run does to the accumulator next.
#[derive(Clone, Debug)]
enum Step {
    Append(u8, u8),
    Send,
    /// The oldest answer arrives, of the request that was the oldest if none is on its way yet.
    Serve,
    /// The broker of the oldest request takes it; its answer is on its way.
    Take,
    /// It refuses all of it.
    Refuse(usize),
    /// The broker of the oldest request takes so many of those that it was sent, and then the connection breaks without an answer.
    Break(usize),
    /// What comes next is of the other broker.
    Turn,
    /// The other broker leads, with all that was taken.
    Move,
    /// The client hears who leads.
    Learn,
    Wait(u16),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..3, 1u8..4).prop_map(|(p, n)| Step::Append(p, n)),
        6 => Just(Step::Send),
        5 => Just(Step::Serve),
        2 => Just(Step::Take),
        2 => Just(Step::Turn),
        1 => Just(Step::Move),
        2 => Just(Step::Learn),
        2 => (0usize..6).prop_map(Step::Refuse),
        1 => (0usize..6).prop_map(Step::Break),
        2 => (0u16..3000).prop_map(Step::Wait),
        1 => Just(Step::Flush),
    ]
}

struct Run {
    accumulator: Accumulator,
    logs: Vec<Log>,
    leader: u32,
    on_the_way: VecDeque<Sent>,
    deliveries: Vec<(u64, DeliveryFuture)>,
    now: Micros,
    next_record: u64,
    next_identity: i64,
}

impl Run {
    fn take(&mut self, step: &Step) {
        match *step {
            Step::Append(partition, count) => {
                for _ in 0..count {
                    let value = self.next_record.to_le_bytes();
                    self.deliveries.push((self.next_record, add(&mut self.accumulator, u32::from(partition), &value, self.now)));
                    self.next_record += 1;
                }
            }
            Step::Send => {
                if self.accumulator.needs_identity() {
                    self.accumulator.set_identity(self.next_identity, 0);
                    self.next_identity += 1;
                }
                for broker in [BROKER, SUCCESSOR] {
                    if let Some(request) = poll_of(&mut self.accumulator, broker, self.now) {
                        self.on_the_way.push_back(Sent { broker, request, results: None });
                    }
                }
            }
            Step::Serve => self.serve(None),
            Step::Refuse(which) => {
                let codes = [
                    Code::NotLeader,
                    Code::DiskFull,
                    Code::InvalidRecord,
                    Code::Unavailable,
                    Code::UnknownProducerId,
                    Code::RequestTimedOut,
                ];
                self.serve(Some(codes[which]));
            }
            Step::Take => {
                if let Some(at) = self.on_the_way.iter().position(|sent| sent.results.is_none()) {
                    self.on_the_way[at].results = Some(self.results(at, None));
                }
            }
            Step::Break(taken) => {
                let Some(broker) = self.on_the_way.front().map(|sent| sent.broker) else { return };
                let (broken, others): (Vec<_>, Vec<_>) = self.on_the_way.drain(..).partition(|sent| sent.broker == broker);
                self.on_the_way = others.into();
                if broker == self.leader {
                    for (_, partition, bytes) in
                        broken.iter().filter(|sent| sent.results.is_none()).take(taken).flat_map(|sent| &sent.request)
                    {
                        let _ = self.logs[*partition as usize].append(bytes);
                    }
                }
                for sent in broken {
                    complete(self.accumulator.handle_answer(broker, &keys(&sent.request), Err(lost()), self.now));
                }
            }
            Step::Turn => {
                let first = self.on_the_way.front().map(|sent| sent.broker);
                let is_other = |sent: &Sent| Some(sent.broker) != first;
                let (others, rest): (Vec<_>, Vec<_>) = self.on_the_way.drain(..).partition(is_other);
                self.on_the_way = others.into_iter().chain(rest).collect();
            }
            Step::Move => self.leader = BROKER + SUCCESSOR - self.leader,
            Step::Learn => self.accumulator.update_topic("t", &topic(3, self.leader), self.now),
            Step::Wait(time) => {
                self.now += Micros::from(time);
                complete(self.accumulator.handle_time(self.now));
            }
            Step::Flush => drop(self.accumulator.flush(self.now)),
        }
    }

    fn serve(&mut self, refusal: Option<Code>) {
        if self.on_the_way.is_empty() {
            return;
        }
        let results = match self.on_the_way[0].results.take() {
            Some(results) => results,
            None => self.results(0, refusal),
        };
        let Some(sent) = self.on_the_way.pop_front() else { return };
        complete(self.accumulator.handle_answer(sent.broker, &keys(&sent.request), Ok(results), self.now));
    }

    /// What its broker makes of a request.
    fn results(&mut self, at: usize, refusal: Option<Code>) -> Vec<ProduceResult> {
        let leads = self.on_the_way[at].broker == self.leader;
        let answer = |(_, partition, bytes): &(BatchKey, u32, Bytes)| {
            let log = &mut self.logs[*partition as usize];
            result(match refusal {
                _ if !leads => Err(Code::NotLeader),
                // Too late, but appended.
                Some(Code::RequestTimedOut) => log.append(bytes).and(Err(Code::RequestTimedOut)),
                // A broker that has taken a batch does not find it invalid later.
                Some(Code::InvalidRecord) if log.has(bytes) => log.append(bytes),
                Some(code) => Err(code),
                None => log.append(bytes),
            })
        };
        self.on_the_way[at].request.iter().map(answer).collect()
    }

    /// Takes the steps, then whatever ends it, and checks logs and answers.
    fn of(steps: &[Step], settings: Settings) -> Result<(), String> {
        let mut run = Run {
            accumulator: accumulator(Settings { delivery_timeout: 20_000, ..settings }, 3),
            logs: (0..3).map(|_| Log::default()).collect(),
            leader: BROKER,
            on_the_way: VecDeque::new(),
            deliveries: vec![],
            now: 1,
            next_record: 0,
            next_identity: 1000,
        };
        steps.iter().for_each(|step| run.take(step));
        run.finish();
        run.check()
    }

    fn check(&self) -> Result<(), String> {
        if let Some(log) = self.logs.iter().find(|log| !log.records.is_sorted_by(|a, b| a < b)) {
            return Err(format!("twice or out of order: {:?}", log.records));
        }
        for (record, delivery) in &self.deliveries {
            let log = &self.logs[delivery.partition() as usize].records;
            match delivery.try_result().expect("settled") {
                Ok(at) if log.get(at.offset as usize) == Some(record) => {}
                Ok(at) => return Err(format!("{record} was acknowledged at {} and is not there", at.offset)),
                Err(error) => {
                    let is_known = matches!(&error.cause, ProduceFailure::Client(ClientError::Refused(r)) if r.code == Code::InvalidRecord);
                    if is_known && log.contains(record) {
                        return Err(format!("{record} was refused and is there"));
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self) {
        for _ in 0..2000 {
            self.take(&Step::Wait(500));
            self.take(&Step::Learn);
            self.take(&Step::Send);
            self.take(&Step::Serve);
            if self.accumulator.buffered() == 0 && self.on_the_way.is_empty() {
                return;
            }
        }
        panic!("something is stuck: {:?}", self.accumulator);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn nothing_twice_nothing_out_of_order_and_acknowledged_means_there(steps in proptest::collection::vec(step(), 1..120)) {
        prop_assert_eq!(Run::of(&steps, settings()), Ok(()));
    }
}

/// The check finds what it is for: without sequence numbers a lost answer is a duplicate, and a refusal in a full pipeline a wrong order.
#[test]
fn the_check_catches_a_producer_without_sequences() {
    let careless = || Settings { is_idempotent: false, ..settings() };
    let duplicate = [Step::Append(0, 1), Step::Send, Step::Break(1), Step::Wait(200)];
    let reordered = [Step::Append(0, 1), Step::Send, Step::Append(0, 1), Step::Send, Step::Refuse(1)];
    for steps in [&duplicate[..], &reordered[..]] {
        assert_eq!(Run::of(steps, settings()), Ok(()));
        assert!(Run::of(steps, careless()).unwrap_err().contains("twice or out of order"));
    }
}
