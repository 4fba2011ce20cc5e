//! The fetcher alone: the test is the brokers and the user.

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
                Ok(Fetched { high_watermark: 100, log_start: 0, bytes: bytes.len() as u32, preferred: None })
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
