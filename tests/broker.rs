//! The whole broker over real sockets and files: every way of an append, restarts, kills, other numbers of shards.

mod support;

use std::process::Command;
use std::time::Duration;

use corelane::request::{Code, Fetch, FetchPartition, ListOffset, OffsetSpec, Request, Response};
use corelane::types::TopicPartition;
use support::{Broker, Connection, batch_of};

fn value(partition: u32, n: usize, len: usize) -> Vec<u8> {
    let mut value = format!("{partition}/{n}/").into_bytes();
    value.resize(len.max(value.len()), b'a' + (n % 26) as u8);
    value
}

/// Sizes that take every way: small, straight to the segment, adopted.
const SIZES: [usize; 9] = [10, 100, 4096, 60_000, 127_000, 131_072, 300_000, 2_000_000, 19_000_000];

/// The timestamps of the tests are old.
const KEPT: (&str, &str) = ("retention.ms", "-1");

fn append_some(connection: &mut Connection, partition: TopicPartition, from: usize, count: usize) -> usize {
    for n in from..from + count {
        let len = SIZES[(n * 7 + partition.partition as usize) % SIZES.len()];
        let result = connection.produce(partition, &batch_of([value(partition.partition, n, len)]));
        let appended = result.outcome.unwrap_or_else(|e| panic!("record {n} of {len} bytes: {e}"));
        assert_eq!(appended.base_offset, n as i64);
    }
    from + count
}

fn check_all(connection: &mut Connection, partition: TopicPartition, count: usize) {
    let records = connection.read_all(partition, 0);
    assert_eq!(records.len(), count, "partition {partition}");
    for (n, (offset, bytes)) in records.iter().enumerate() {
        let len = SIZES[(n * 7 + partition.partition as usize) % SIZES.len()];
        assert_eq!(*offset, n as i64);
        assert!(*bytes == value(partition.partition, n, len), "record {n} of partition {}", partition.partition);
    }
}

#[test]
fn everything_acknowledged_survives_kills_stops_and_other_numbers_of_shards() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut counts = [0; 3];
    let mut topic = None;
    for (round, shards) in ["2", "1", "2", "1", "2"].into_iter().enumerate() {
        let broker = Broker::start(directory.path(), &["--shards", shards]);
        let mut connection = broker.connect();
        let id = *topic.get_or_insert_with(|| {
            connection.create("all-ways", 3, &[("max.message.bytes", "20000000"), ("segment.bytes", "1048576"), KEPT])
        });
        assert_eq!(connection.topic("all-ways"), Some(id));
        for (partition, count) in counts.iter_mut().enumerate() {
            let partition = TopicPartition { topic: id, partition: partition as u32 };
            // Batches of more than 8 MiB are taken by the shard that owns the partition only.
            let mut connection = broker.connect_owner(partition);
            check_all(&mut connection, partition, *count);
            *count = append_some(&mut connection, partition, *count, 12);
            check_all(&mut connection, partition, *count);
            assert_eq!(connection.offset(partition, OffsetSpec::Latest), *count as i64);
        }
        match round % 2 {
            0 => broker.kill(),
            _ => assert_eq!(broker.stop(), 0),
        }
    }
}

#[test]
fn a_batch_that_does_not_check_is_refused_and_touches_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(directory.path(), &["--shards", "1"]);
    let mut connection = broker.connect();
    let partition = TopicPartition { topic: connection.create("strict", 1, &[]), partition: 0 };
    for len in [100, 200_000] {
        let good = batch_of([value(0, 0, len)]);
        let mut bad = good.to_vec();
        *bad.last_mut().expect("bytes") ^= 1;
        let refusal = connection.produce(partition, &bad).outcome.expect_err("a bad CRC");
        assert_eq!(refusal.code, Code::CorruptBatch);
    }
    let refusal = connection.produce(partition, &batch_of([value(0, 0, 2_000_000)])).outcome.expect_err("too large");
    assert_eq!(refusal.code, Code::RecordTooLarge);
    assert_eq!(connection.offset(partition, OffsetSpec::Latest), 0);
    assert_eq!(connection.produce(partition, &batch_of([b"good"])).outcome.expect("good").base_offset, 0);
}

#[test]
fn a_fetch_waits_for_a_record() {
    let directory = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(directory.path(), &["--shards", "2"]);
    let mut producer = broker.connect();
    let partition = TopicPartition { topic: producer.create("awaited", 1, &[]), partition: 0 };
    let address = broker.addresses[1].clone();
    let consumer = std::thread::spawn(move || Connection::open(&address).fetch(partition, 0, 1 << 20, 30_000));
    std::thread::sleep(Duration::from_millis(200));
    producer.produce(partition, &batch_of([b"here"])).outcome.expect("appended");
    let (bytes, high_watermark) = consumer.join().expect("the consumer ends");
    assert!(!bytes.is_empty());
    assert_eq!(high_watermark, 1);
}

/// A connection that is busy with large answers, from memory and from an adopted segment, while other requests on it are answered at once.
#[test]
fn answers_come_whole_however_slowly_they_are_taken() {
    const FETCHES: u32 = 24;
    const SMALL: u32 = 150;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let broker = Broker::start(directory.path(), &["--shards", "1"]);
    let mut connection = broker.connect();
    let topic = connection.create("mixed", 2, &[("max.message.bytes", "20000000"), KEPT]);
    let [adopted, tail] = [0, 1].map(|partition| TopicPartition { topic, partition });
    connection.produce(adopted, &batch_of([value(0, 0, 9_500_000)])).outcome.expect("appended");
    for n in 0..8 {
        connection.produce(tail, &batch_of([value(1, n, 900_000)])).outcome.expect("appended");
    }
    let expected = [adopted, tail].map(|partition| connection.fetch(partition, 0, 16 << 20, 0).0);
    assert!(expected[0].len() > 9_500_000 && expected[1].len() > 7_200_000);

    let mut sender = connection.sender();
    let sending = std::thread::spawn(move || {
        for n in 0..FETCHES {
            let partition = TopicPartition { topic, partition: n % 2 };
            let wanted = FetchPartition { partition, offset: 0, max_bytes: 16 << 20, leader_epoch: None };
            sender.send(&Request::Fetch(Fetch { max_wait_ms: 0, min_bytes: 1, max_bytes: 16 << 20, partitions: vec![wanted] }), &[]);
            for _ in 0..SMALL {
                sender.send(&Request::ListOffsets(vec![ListOffset { partition: tail, spec: OffsetSpec::Latest }]), &[]);
                std::thread::sleep(Duration::from_micros(30));
            }
        }
    });
    let (mut fetched, mut listed) = (0, 0);
    while fetched < FETCHES || listed < FETCHES * SMALL {
        match connection.receive() {
            (_, Response::Fetch(results), payload) => {
                assert!(payload == expected[results[0].partition.partition as usize], "fetch {fetched}");
                fetched += 1;
            }
            (_, Response::ListOffsets(results), _) => {
                assert_eq!(results[0].outcome.as_ref().expect("an offset").0, 8);
                listed += 1;
            }
            (_, other, _) => panic!("{other:?}"),
        }
    }
    sending.join().expect("all is sent");
}

#[test]
fn a_data_directory_may_be_named_from_where_the_broker_is_started() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    for _ in 0..2 {
        let broker = Broker::start_in(directory.path(), "./data".as_ref(), &["--shards", "2"]);
        assert_eq!(broker.stop(), 0);
    }
    assert!(directory.path().join("data/meta").exists());
}

#[test]
fn what_a_killed_start_leaves_is_no_damage_and_goes() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    Broker::start(directory.path(), &["--shards", "1"]).kill();
    let probes = ["probe-24925.tmp", "probe-shard-1.tmp"].map(|name| directory.path().join(name));
    probes.iter().for_each(|probe| std::fs::write(probe, [0; 4096]).expect("a file"));
    std::fs::write(directory.path().join("probe-of-somebody.tmp"), []).expect("a file");
    let verified = Command::new(env!("CARGO_BIN_EXE_corelane"))
        .args(["inspect", "verify", "--json", "--data"])
        .arg(directory.path())
        .output()
        .expect("the command runs");
    let report: serde_json::Value =
        serde_json::Deserializer::from_slice(&verified.stdout).into_iter().next().expect("a report").expect("JSON");
    let damaged: Vec<_> = report["damage"].as_array().expect("a list").iter().map(|damage| damage["file"].as_str()).collect();
    assert_eq!(damaged, [Some("probe-of-somebody.tmp")]);
    Broker::start(directory.path(), &["--shards", "1"]).kill();
    assert!(probes.iter().all(|probe| !probe.exists()));
    let aside: Vec<_> = std::fs::read_dir(directory.path().join("quarantine")).expect("a directory").collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
}

#[test]
fn a_damaged_index_costs_a_longer_scan_and_no_record() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let broker = Broker::start(directory.path(), &["--shards", "1"]);
    let mut connection = broker.connect();
    let partition = TopicPartition { topic: connection.create("indexed", 1, &[("segment.bytes", "1048576"), KEPT]), partition: 0 };
    for n in 0..60 {
        connection.produce(partition, &batch_of([value(0, n, 50_000)])).outcome.expect("appended");
    }
    assert_eq!(broker.stop(), 0);
    let index = directory.path().join(format!("topics/{}/0/00000000000000000000.index", partition.topic));
    let mut bytes = std::fs::read(&index).expect("an index");
    bytes[4096..].fill(0);
    std::fs::write(&index, bytes).expect("written");
    let broker = Broker::start(directory.path(), &["--shards", "1"]);
    let mut connection = broker.connect();
    for from in [0, 15, 30] {
        let records = connection.read_all(partition, from);
        assert_eq!(records.len() as i64, 60 - from);
        assert!(records.iter().all(|(offset, bytes)| *bytes == value(0, *offset as usize, 50_000)));
    }
}
