//! Histories of a model cluster that makes no mistake, and the same with one.

use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::Config;

use crate::checker::{ClientId, Event, History, Kind, Operation, Partition, Phase, Value, check, report};
use crate::clients::Clients;

const PARTITIONS: u32 = 3;
const PRODUCERS: u64 = 4;
const CONSUMERS: u64 = 3;

/// A small generator of numbers that look random (splitmix64): everything in a history comes from its seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// A send on its way.
struct Sending {
    producer: Option<i64>,
    value: Value,
    /// Once it is in the log.
    offset: Option<i64>,
}

/// A cluster without mistakes: logs, what is on its way to them, and consumers.
struct Model {
    numbers: Numbers,
    clients: Clients,
    logs: Vec<Vec<Value>>,
    /// By partition, in the order of sending.
    sending: Vec<Vec<Sending>>,
    /// By consumer and partition; `None` until it is read from somewhere.
    positions: Vec<Vec<Option<i64>>>,
    next_value: Value,
}

impl Model {
    fn new(seed: u64) -> Model {
        Model {
            numbers: Numbers(seed),
            clients: Clients::default(),
            logs: vec![vec![]; PARTITIONS as usize],
            sending: (0..PARTITIONS).map(|_| vec![]).collect(),
            positions: vec![vec![Some(0); PARTITIONS as usize]; CONSUMERS as usize],
            next_value: 1000,
        }
    }

    /// A history of about this many events that ends with a final read of everything.
    fn history(seed: u64, events: usize) -> History {
        let mut model = Model::new(seed);
        while model.clients.0.events().len() < events {
            match model.numbers.below(16) {
                0..5 => model.send(),
                5..10 => model.append(),
                10..13 => model.answer(),
                13..15 => model.poll(),
                _ => model.reassign(),
            }
        }
        for partition in 0..PARTITIONS {
            while !model.sending[partition as usize].is_empty() {
                model.answer_one(partition, 0);
            }
            let records: Vec<(i64, Value)> = (0..).zip(model.logs[partition as usize].iter().copied()).collect();
            model.clients.final_read(partition, 0, records.len() as i64, &records);
        }
        model.clients.0
    }

    fn send(&mut self) {
        let partition = self.numbers.below(PARTITIONS as usize) as u32;
        // The last one is not idempotent.
        let producer = Some(self.numbers.below(PRODUCERS as usize) as i64).filter(|id| *id as u64 != PRODUCERS - 1);
        let value = self.next_value;
        self.next_value += 1;
        self.clients.send(producer, partition, value);
        self.sending[partition as usize].push(Sending { producer, value, offset: None });
    }

    /// One arrives: of an idempotent producer the first that it has on its way.
    fn append(&mut self) {
        let partition = self.numbers.below(PARTITIONS as usize);
        let waiting: Vec<usize> = (0..self.sending[partition].len()).filter(|at| self.sending[partition][*at].offset.is_none()).collect();
        if waiting.is_empty() {
            return;
        }
        let chosen = waiting[self.numbers.below(waiting.len())];
        let producer = self.sending[partition][chosen].producer;
        let first = |at: &usize| self.sending[partition][*at].producer == producer;
        let at = if producer.is_some() { waiting.iter().copied().find(first).unwrap_or(chosen) } else { chosen };
        let log = &mut self.logs[partition];
        self.sending[partition][at].offset = Some(log.len() as i64);
        log.push(self.sending[partition][at].value);
        if producer.is_none() && self.numbers.below(4) == 0 {
            log.push(self.sending[partition][at].value);
        }
    }

    fn answer(&mut self) {
        let partition = self.numbers.below(PARTITIONS as usize);
        if !self.sending[partition].is_empty() {
            let at = self.numbers.below(self.sending[partition].len());
            self.answer_one(partition as u32, at);
        }
    }

    /// Acknowledged or without an answer if it arrived, refused or without an answer (and never to arrive) if not.
    fn answer_one(&mut self, partition: Partition, at: usize) {
        let Sending { producer, value, offset } = self.sending[partition as usize].remove(at);
        match (offset, self.numbers.below(4)) {
            (Some(_), 0) | (None, 0..2) => self.clients.end(Phase::Info, producer, partition, value, None),
            (Some(offset), _) => self.clients.end(Phase::Ok, producer, partition, value, Some(offset)),
            (None, 2) => {}
            (None, _) => self.clients.end(Phase::Fail, producer, partition, value, None),
        }
    }

    fn poll(&mut self) {
        let consumer = self.numbers.below(CONSUMERS as usize);
        let mut records = Vec::new();
        for partition in 0..PARTITIONS as usize {
            let log = &self.logs[partition];
            let from = self.positions[consumer][partition].unwrap_or_else(|| self.numbers.below(log.len() + 1) as i64);
            let to = (from + self.numbers.below(8) as i64).min(log.len() as i64);
            records.extend((from..to).map(|offset| (partition as u32, offset, log[offset as usize])));
            if to > from {
                self.positions[consumer][partition] = Some(to);
            }
        }
        self.clients.poll(100 + consumer as ClientId, &records);
    }

    fn reassign(&mut self) {
        let consumer = self.numbers.below(CONSUMERS as usize);
        let client = 100 + consumer as ClientId;
        if self.numbers.below(2) == 0 {
            self.positions[consumer].fill(None);
            return self.clients.subscribe(client);
        }
        for partition in 0..PARTITIONS as usize {
            let from = self.numbers.below(self.logs[partition].len() + 1) as i64;
            self.positions[consumer][partition] = (self.numbers.below(3) > 0).then_some(from);
        }
        let positions: Vec<(Partition, Option<i64>)> = (0..).zip(self.positions[consumer].iter().copied()).collect();
        self.clients.assign(client, &positions);
    }
}

/// One mistake.
#[derive(Clone, Copy, Debug)]
enum Mistake {
    /// A record is gone from the final read; those after it are where they were.
    Missing,
    /// A record is gone from the final read; those after it moved up.
    Cut,
    /// The final read lacks the last record.
    ShortEnd,
    /// An idempotent producer's record is there once more at the end.
    Twice,
    /// A value that nobody sent.
    Foreign,
    /// Two records of a poll in one partition changed places.
    Swapped,
    /// A record in the middle of a poll was left out.
    Skipped,
    /// A poll came twice.
    PolledTwice,
    /// An acknowledgement names another offset.
    OtherOffset,
    /// A value that was read had been refused.
    Refused,
    /// Two records changed their places in the final read.
    Exchanged,
}

const MISTAKES: [Mistake; 11] = [
    Mistake::Missing,
    Mistake::Cut,
    Mistake::ShortEnd,
    Mistake::Twice,
    Mistake::Foreign,
    Mistake::Swapped,
    Mistake::Skipped,
    Mistake::PolledTwice,
    Mistake::OtherOffset,
    Mistake::Refused,
    Mistake::Exchanged,
];

/// Makes the mistake somewhere. `None` if there is no place for it. Gives the kinds of which one must be found.
fn make(mistake: Mistake, history: &mut History, numbers: &mut Numbers) -> Option<&'static [Kind]> {
    let acknowledged: Vec<Value> = history
        .events()
        .iter()
        .filter_map(|event| match event.operation {
            Operation::Send { value, producer: Some(_), .. } if event.phase == Phase::Ok => Some(value),
            _ => None,
        })
        .collect();
    // Events that have what the mistake needs, each with a place in it.
    let places: Vec<(usize, usize)> = history
        .events()
        .iter()
        .enumerate()
        .flat_map(|(at, event)| candidates(mistake, event, &acknowledged).into_iter().map(move |place| (at, place)))
        .collect();
    if places.is_empty() {
        return None;
    }
    let (at, place) = places[numbers.below(places.len())];
    let event = &mut history.events_mut()[at];
    match (mistake, &mut event.operation) {
        (Mistake::Missing, Operation::FinalRead { records, .. }) => {
            records.remove(place);
            Some(&[Kind::Hole])
        }
        (Mistake::Cut, Operation::FinalRead { records, end, .. }) => {
            records.remove(place);
            records[place..].iter_mut().for_each(|(offset, _)| *offset -= 1);
            *end -= 1;
            Some(&[Kind::LostWrite, Kind::Unseen])
        }
        (Mistake::ShortEnd, Operation::FinalRead { records, end, .. }) => {
            records.pop();
            *end -= 1;
            Some(&[Kind::LostWrite, Kind::Unseen])
        }
        (Mistake::Twice, Operation::FinalRead { records, end, .. }) => {
            records.push((*end, records[place].1));
            *end += 1;
            Some(&[Kind::Duplicate])
        }
        (Mistake::Foreign, Operation::FinalRead { records, .. }) => {
            records[place].1 = 1;
            Some(&[Kind::UnsentValue])
        }
        (Mistake::Exchanged, Operation::FinalRead { records, .. }) => {
            let (a, b) = (records[place].1, records[place + 1].1);
            (records[place].1, records[place + 1].1) = (b, a);
            Some(&[Kind::Duplicate])
        }
        (Mistake::Swapped, Operation::Poll { records }) => {
            records.swap(place, place + 1);
            Some(&[Kind::NonmonotonicPoll])
        }
        (Mistake::Skipped, Operation::Poll { records }) => {
            records.remove(place + 1);
            Some(&[Kind::SkippedPoll])
        }
        (Mistake::PolledTwice, _) => {
            let copy = event.clone();
            history.events_mut().insert(at, copy);
            Some(&[Kind::NonmonotonicPoll])
        }
        (Mistake::OtherOffset, Operation::Send { offset: Some(offset), .. }) => {
            *offset += [-1, 1, 7][numbers.below(3)];
            Some(&[Kind::Duplicate])
        }
        (Mistake::Refused, Operation::Send { offset, .. }) => {
            *offset = None;
            event.phase = Phase::Fail;
            Some(&[Kind::AbortedRead])
        }
        _ => None,
    }
}

/// Where in an event the mistake can be made so that it is one.
fn candidates(mistake: Mistake, event: &Event, acknowledged: &[Value]) -> Vec<usize> {
    match (mistake, &event.operation) {
        (Mistake::Missing | Mistake::Foreign, Operation::FinalRead { records, .. }) => (0..records.len()).collect(),
        (Mistake::Cut | Mistake::Twice, Operation::FinalRead { records, .. }) => {
            (0..records.len()).filter(|at| acknowledged.contains(&records[*at].1)).collect()
        }
        (Mistake::Exchanged, Operation::FinalRead { records, .. }) => {
            (1..records.len()).map(|at| at - 1).filter(|at| acknowledged.contains(&records[*at].1)).collect()
        }
        (Mistake::ShortEnd, Operation::FinalRead { records, .. }) => {
            records.last().filter(|(_, value)| acknowledged.contains(value)).map(|_| records.len() - 1).into_iter().collect()
        }
        (Mistake::Swapped, Operation::Poll { records }) => {
            (1..records.len()).filter(|at| records[at - 1].partition == records[*at].partition).map(|at| at - 1).collect()
        }
        (Mistake::Skipped, Operation::Poll { records }) => {
            (2..records.len()).filter(|at| records[at - 2].partition == records[*at].partition).map(|at| at - 2).collect()
        }
        (Mistake::PolledTwice, Operation::Poll { records }) if !records.is_empty() => vec![0],
        (Mistake::OtherOffset | Mistake::Refused, Operation::Send { producer: Some(_), .. }) if event.phase == Phase::Ok => vec![0],
        _ => vec![],
    }
}

proptest! {
    #![proptest_config(Config { cases: 200, ..Config::default() })]

    #[test]
    fn random_clean_histories_pass(seed: u64, events in 10usize..600) {
        let history = Model::history(seed, events);
        let found = check(&history);
        prop_assert!(found.is_empty(), "{}", report(&history, &found));
    }

    #[test]
    fn one_random_mistake_is_found(seed: u64, events in 100usize..600, mistake in prop::sample::select(&MISTAKES[..])) {
        let clean = Model::history(seed, events);
        let mut bad = clean.clone();
        let Some(kinds) = make(mistake, &mut bad, &mut Numbers(!seed)) else { return Ok(()) };
        let found = check(&bad);
        prop_assert!(found.iter().any(|finding| kinds.contains(&finding.kind)), "{mistake:?}\n{}", report(&bad, &found));
    }
}

#[test]
fn every_mistake_finds_a_place() {
    for mistake in MISTAKES {
        let made = (0..20).filter(|seed| make(mistake, &mut Model::history(*seed, 600), &mut Numbers(*seed)).is_some()).count();
        assert!(made >= 10, "{mistake:?}: {made} of 20");
    }
}

#[test]
fn many_events_take_little_time() {
    // A million in release; this is also run unoptimised.
    let events = if cfg!(debug_assertions) { 50_000 } else { 1_000_000 };
    let history = Model::history(1, events);
    let begin = Instant::now();
    assert!(check(&history).is_empty());
    let took = begin.elapsed();
    println!("{} events judged in {took:?}", history.events().len());
    assert!(took.as_secs() < 30, "{took:?}");
    let mut text = Vec::new();
    history.write(&mut text).unwrap();
    assert_eq!(History::read(&text[..]).unwrap(), history);
}
