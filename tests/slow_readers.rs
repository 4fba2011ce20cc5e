//! Readers that ask for much and take little: what they cost is bounded, others go on, and who takes nothing is closed.

mod support;

use std::time::Duration;

use corelane::limits::{MAX_FETCH_BYTES, MAX_QUEUED_ANSWER};
use corelane::request::{Fetch, FetchPartition, OffsetSpec, ReadFrom, Request, Response};
use corelane::types::TopicPartition;
use support::{Broker, batch_of, eventually};

const FLAGS: [&str; 4] = ["--shards", "1", "--admin-listen", "127.0.0.1:0"];
const CONFIG: [(&str, &str); 2] = [("max.message.bytes", "8000000"), ("retention.ms", "-1")];
const BATCH: usize = 5_000_000;

fn much(partition: TopicPartition) -> Request {
    let wanted = FetchPartition { partition, offset: 0, max_bytes: MAX_FETCH_BYTES, leader_epoch: None };
    Request::Fetch(Fetch { max_wait_ms: 0, min_bytes: 1, max_bytes: MAX_FETCH_BYTES, partitions: vec![wanted], from: ReadFrom::Leader })
}

#[test]
fn fetches_of_one_connection_are_answered_as_their_answers_are_taken() {
    const FETCHES: usize = 40;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let broker = Broker::start(directory.path(), &FLAGS);
    let mut other = broker.connect();
    let partition = TopicPartition { topic: other.create("much", 1, &CONFIG), partition: 0 };
    for n in 0..6u8 {
        other.produce(partition, &batch_of([vec![n; BATCH]])).outcome.expect("appended");
    }
    let mut slow = broker.connect();
    for _ in 0..FETCHES {
        slow.send(&much(partition), &[]);
    }
    // All of them are here, and as much as may be waits; the gauge is set once a second.
    let most = (MAX_QUEUED_ANSWER + MAX_FETCH_BYTES as usize + BATCH) as u64;
    eventually("an answer waits", || broker.metric("memory_send_bytes") > 0);
    for _ in 0..30 {
        let waiting = broker.metric("memory_send_bytes");
        assert!(waiting <= most, "{waiting} bytes wait, at most {most} may");
        std::thread::sleep(Duration::from_millis(100));
    }
    other.produce(partition, &batch_of([vec![6; BATCH]])).outcome.expect("others go on");
    for _ in 0..FETCHES {
        let (_, response, payload) = slow.receive();
        let Response::Fetch(results) = response else { panic!("{response:?}") };
        let bytes = results[0].outcome.as_ref().expect("fetched").bytes as usize;
        assert!(bytes == payload.len() && bytes >= BATCH && bytes <= MAX_FETCH_BYTES as usize, "{bytes} of {}", payload.len());
    }
    assert_eq!(broker.stop(), 0);
}

#[test]
fn a_connection_whose_peer_takes_nothing_is_closed() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let broker = Broker::start(directory.path(), &FLAGS);
    let mut connection = broker.connect();
    let partition = TopicPartition { topic: connection.create("untaken", 1, &CONFIG), partition: 0 };
    for n in 0..4u8 {
        connection.produce(partition, &batch_of([vec![n; BATCH]])).outcome.expect("appended");
    }
    let mut idle = broker.connect();
    idle.send(&much(partition), &[]);
    eventually("it is closed", || broker.metric("slow_peers_closed_total") == 1);
    eventually("nothing waits any more", || broker.metric("memory_send_bytes") == 0);
    assert_eq!(connection.offset(partition, OffsetSpec::Latest), 4);
    assert_eq!(broker.stop(), 0);
}
