//! The whole broker over real sockets and files: every way of an append, restarts, kills, other numbers of shards.

mod support;

use std::process::Command;
use std::time::Duration;

use corelane::batch::{BatchBuilder, Compression};
use corelane::request::{Code, Fetch, FetchPartition, ListOffset, OffsetSpec, ReadFrom, Request, Response};
use corelane::types::{TopicId, TopicPartition};
use support::{Broker, Connection, batch_of, eventually, produce_one};

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
            sender.send(
                &Request::Fetch(Fetch {
                    max_wait_ms: 0,
                    min_bytes: 1,
                    max_bytes: 16 << 20,
                    partitions: vec![wanted],
                    from: ReadFrom::Leader,
                }),
                &[],
            );
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
                assert_eq!(results[0].outcome.as_ref().expect("an offset").offset, 8);
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

/// Each way of an append is in every phase of it when the topic goes: rolls, first large appends of a segment, files that are being received or adopted.
#[test]
fn topics_are_deleted_while_batches_come_in_every_way() {
    const ROUNDS: u64 = 24;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let broker = Broker::start(directory.path(), &["--shards", "2"]);
    let mut connection = broker.connect();
    let kept = TopicPartition { topic: connection.create("kept", 1, &[KEPT]), partition: 0 };
    for round in 0..ROUNDS {
        let name = format!("doomed-{round}");
        let level = ["durable", "written", "memory"][round as usize % 3];
        let config = [("max.message.bytes", "20000000"), ("segment.bytes", "1048576"), ("durability", level), KEPT];
        let topic = connection.create(&name, 2, &config);
        let producers: Vec<_> = [60_000, 300_000, 300_000, 9_000_000]
            .into_iter()
            .flat_map(|len| [0, 1].map(|partition| (len, TopicPartition { topic, partition })))
            .map(|(len, partition)| {
                let mut connection = broker.connect_owner(partition);
                let batch = batch_of([value(partition.partition, 0, len)]);
                std::thread::spawn(move || {
                    loop {
                        if let Err(refusal) = connection.produce(partition, &batch).outcome {
                            return refusal.code;
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(round * 37 % 150));
        connection.delete(&name);
        for producer in producers {
            assert_eq!(producer.join().expect("an answer, to the last"), Code::UnknownTopicOrPartition);
        }
        connection.produce(kept, &batch_of([value(0, round as usize, 100)])).outcome.expect("the broker is up");
    }
    let topics = directory.path().join("topics");
    eventually("deleted topics leave nothing", || std::fs::read_dir(&topics).expect("a directory").count() == 1);
    eventually("deleted files are closed", || !broker.open_files().iter().any(|file| file.ends_with("(deleted)")));
    assert_eq!(connection.read_all(kept, 0).len() as u64, ROUNDS);
    assert_eq!(broker.stop(), 0);
    let broker = Broker::start(directory.path(), &["--shards", "2"]);
    assert_eq!(broker.connect().read_all(kept, 0).len() as u64, ROUNDS);
}

#[test]
fn a_deleted_topic_leaves_no_file_open() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let broker = Broker::start(directory.path(), &["--shards", "1"]);
    let mut connection = broker.connect();
    let topic = connection.create("read", 2, &[("max.message.bytes", "20000000"), ("segment.bytes", "1048576"), KEPT]);
    let partitions = [0, 1].map(|partition| TopicPartition { topic, partition });
    for partition in partitions {
        append_some(&mut connection, partition, 0, 18);
        check_all(&mut connection, partition, 18);
    }
    let id = topic.to_string();
    assert!(broker.open_files().iter().any(|file| file.contains(&id)), "segments are open while they are there");
    connection.delete("read");
    eventually("all files of the topic are closed", || !broker.open_files().iter().any(|file| file.contains(&id)));
    eventually("its directory goes", || !directory.path().join("topics").join(&id).exists());
}

#[test]
fn every_producer_that_was_known_before_a_kill_is_known_after_it() {
    const PRODUCERS: i64 = 6000;
    let batch = |producer: i64| {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.append(1_700_000_000_000, None, Some(&value(0, producer as usize, 10)), &[]).expect("it fits");
        builder.set_producer(producer, 0, 0);
        builder.build()
    };
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let broker = Broker::start(directory.path(), &["--shards", "1"]);
    let mut connection = broker.connect();
    let partition = TopicPartition { topic: connection.create("many", 1, &[KEPT]), partition: 0 };
    let mut sender = connection.sender();
    let sending = std::thread::spawn(move || {
        for producer in 0..PRODUCERS {
            let batch = batch(producer);
            sender.send(&produce_one(partition, &batch), &batch);
        }
    });
    for _ in 0..PRODUCERS {
        match connection.receive().1 {
            Response::Produce(results) => drop(results[0].outcome.as_ref().expect("appended")),
            other => panic!("{other:?}"),
        }
    }
    sending.join().expect("all is sent");
    broker.kill();
    let broker = Broker::start(directory.path(), &["--shards", "1"]);
    let mut connection = broker.connect();
    for producer in [0, PRODUCERS - 1] {
        assert_eq!(connection.produce(partition, &batch(producer)).outcome.expect("a duplicate").base_offset, producer);
    }
    assert_eq!(connection.offset(partition, OffsetSpec::Latest), PRODUCERS);
}

#[test]
fn a_partition_that_was_set_aside_is_still_so_after_clean_restarts() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let broker = Broker::start(directory.path(), &["--shards", "1"]);
    let mut connection = broker.connect();
    let partition = TopicPartition { topic: connection.create("damaged", 1, &[KEPT]), partition: 0 };
    for n in 0..3 {
        connection.produce(partition, &batch_of([value(0, n, 5_000)])).outcome.expect("appended");
    }
    assert_eq!(broker.stop(), 0);
    let broker = Broker::start(directory.path(), &["--shards", "1"]);
    broker.connect().produce(partition, &batch_of([value(0, 3, 10)])).outcome.expect("appended");
    broker.kill();
    // The journal has bytes for a segment of which some are flushed, and whose header is not one.
    let log = directory.path().join(format!("topics/{}/0/00000000000000000000.log", partition.topic));
    let mut bytes = std::fs::read(&log).expect("a segment");
    bytes[..4096].fill(0);
    std::fs::write(&log, &bytes).expect("written");
    for start in 0..4 {
        let broker = Broker::start(directory.path(), &["--shards", "1"]);
        let refused = broker.connect().produce(partition, &batch_of([value(0, 4, 10)])).outcome;
        assert_eq!(refused.expect_err("set aside").code, Code::Quarantined, "start {start}");
        assert_eq!(broker.stop(), 0);
        assert!(std::fs::read(&log).expect("the segment stays") == bytes);
    }
}

/// A ring of journal files as small as it may be: a few MB go round it.
const SMALL_RING: [&str; 4] = ["--shards", "1", "--journal-file", "1"];

/// Several laps of a small ring, from four connections with several requests in flight each; returns how many records each partition got.
fn fill_ring(broker: &Broker, topic: TopicId) -> usize {
    const EACH: usize = 80;
    std::thread::scope(|scope| {
        for partition in 0..4 {
            scope.spawn(move || {
                let (mut connection, partition) = (broker.connect(), TopicPartition { topic, partition });
                let batch = batch_of([value(partition.partition, 0, 60_000)]);
                for answers in 0..EACH + 8 {
                    if answers < EACH {
                        connection.send(&produce_one(partition, &batch), &batch);
                    }
                    if answers >= 8 {
                        let (_, response, _) = connection.receive();
                        let Response::Produce(results) = response else { panic!("{response:?}") };
                        results[0].outcome.as_ref().expect("appended");
                    }
                }
            });
        }
    });
    EACH
}

#[test]
fn a_slow_partition_does_not_keep_the_journal_from_being_used_again() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let broker = Broker::start(directory.path(), &SMALL_RING);
    let mut connection = broker.connect();
    let slow = connection.create("slow", 3, &[KEPT]);
    let fast = connection.create("fast", 4, &[KEPT]);
    let mut written = 0;
    let mut append = |connection: &mut Connection| {
        for partition in (0..3).map(|partition| TopicPartition { topic: slow, partition }) {
            connection.produce(partition, &batch_of([value(partition.partition, written, 50)])).outcome.expect("appended");
        }
        written += 1;
        written
    };
    append(&mut connection);
    assert_eq!(broker.stop(), 0);
    // From here on its last block is one that was flushed in part.
    let broker = Broker::start(directory.path(), &SMALL_RING);
    let mut connection = broker.connect();
    let done = std::sync::atomic::AtomicBool::new(false);
    let (count, records) = std::thread::scope(|scope| {
        let filling = scope.spawn(|| {
            let records = fill_ring(&broker, fast);
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            records
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) && !filling.is_finished() {
            append(&mut connection);
            std::thread::sleep(Duration::from_millis(5));
        }
        (append(&mut connection), filling.join().expect("filled"))
    });
    let check = |broker: &Broker| {
        let mut connection = broker.connect();
        for partition in 0..3 {
            let found = connection.read_all(TopicPartition { topic: slow, partition }, 0);
            assert_eq!(found.len(), count);
            assert!(found.iter().all(|(offset, bytes)| *bytes == value(partition, *offset as usize, 50)));
        }
        for partition in 0..4 {
            assert_eq!(connection.read_all(TopicPartition { topic: fast, partition }, 0).len(), records);
        }
    };
    check(&broker);
    broker.kill();
    let broker = Broker::start(directory.path(), &SMALL_RING);
    check(&broker);
    assert_eq!(broker.stop(), 0);
}

#[test]
fn a_partition_that_turns_out_damaged_does_not_keep_the_journal_from_being_used_again() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let broker = Broker::start(directory.path(), &SMALL_RING);
    let mut connection = broker.connect();
    let damaged = TopicPartition { topic: connection.create("damaged", 1, &[KEPT]), partition: 0 };
    let other = connection.create("other", 4, &[KEPT]);
    for n in 0..4 {
        connection.produce(damaged, &batch_of([value(0, n, 50_000)])).outcome.expect("appended");
    }
    assert_eq!(broker.stop(), 0);
    let log = directory.path().join(format!("topics/{}/0/00000000000000000000.log", damaged.topic));
    let mut bytes = std::fs::read(&log).expect("a segment");
    bytes[20_000] ^= 1;
    std::fs::write(&log, &bytes).expect("written");
    let broker = Broker::start(directory.path(), &SMALL_RING);
    let mut connection = broker.connect();
    for n in 4..6 {
        connection.produce(damaged, &batch_of([value(0, n, 10_000)])).outcome.expect("appended");
    }
    let wanted = FetchPartition { partition: damaged, offset: 0, max_bytes: 1 << 20, leader_epoch: None };
    let fetch = Fetch { max_wait_ms: 0, min_bytes: 1, max_bytes: 1 << 20, partitions: vec![wanted], from: ReadFrom::Leader };
    let (Response::Fetch(results), _) = connection.ask(&Request::Fetch(fetch), &[]) else { panic!("no answer to a fetch") };
    assert_eq!(results[0].outcome.as_ref().expect_err("damaged").code, Code::Quarantined);
    fill_ring(&broker, other);
    broker.kill();
    // What was acknowledged is still there.
    let broker = Broker::start(directory.path(), &SMALL_RING);
    assert_eq!(broker.connect().offset(damaged, OffsetSpec::Latest), 6);
    assert_eq!(broker.stop(), 0);
}

/// The shard that is asked sends it from the file.
#[test]
fn a_batch_too_large_for_memory_is_read_through_another_shard() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let broker = Broker::start(directory.path(), &["--shards", "2"]);
    let topic = broker.connect().create("large", 4, &[("max.message.bytes", "20000000"), KEPT]);
    let value_of = |partition: u32, n: usize| value(partition, n, if n == 1 { 11_000_000 } else { 1000 });
    for partition in (0..4).map(|partition| TopicPartition { topic, partition }) {
        let mut owner = broker.connect_owner(partition);
        for n in 0..3 {
            owner.produce(partition, &batch_of([value_of(partition.partition, n)])).outcome.expect("appended");
        }
    }
    for address in &broker.addresses {
        let mut connection = Connection::open(address);
        for partition in (0..4).map(|partition| TopicPartition { topic, partition }) {
            let read = connection.read_all(partition, 0);
            let wanted: Vec<_> = (0..3).map(|n| (n as i64, value_of(partition.partition, n))).collect();
            assert!(read == wanted, "{partition} through {address}: {} records", read.len());
        }
        // All at once: every answer has something, and in turn each partition's.
        let wanted = |partition| FetchPartition {
            partition: TopicPartition { topic, partition },
            offset: 1,
            max_bytes: 1 << 20,
            leader_epoch: None,
        };
        for front in 0..4 {
            let partitions = (0..4).map(|i| wanted((front + i) % 4)).collect();
            let fetch = Fetch { max_wait_ms: 1000, min_bytes: 1, max_bytes: 1 << 20, partitions, from: ReadFrom::Leader };
            let (Response::Fetch(results), payload) = connection.ask(&Request::Fetch(fetch), &[]) else { panic!("no answer to a fetch") };
            let bytes: usize = results.iter().map(|r| r.outcome.as_ref().expect("fetched").bytes as usize).sum();
            assert_eq!(bytes, payload.len());
            assert!(results[0].partition.partition == front && results[0].outcome.as_ref().expect("fetched").bytes > 11_000_000);
        }
    }
    assert_eq!(broker.stop(), 0);
}

/// The roll comes before anything has asked for the open segment's index.
#[test]
fn a_segment_that_is_rolled_by_age_after_a_restart_is_read_from_any_offset() {
    const BATCHES: usize = 200;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let flags = ["--shards", "1", "--admin-listen", "127.0.0.1:0"];
    let broker = Broker::start(directory.path(), &flags);
    let mut connection = broker.connect();
    let partition = TopicPartition { topic: connection.create("rolled", 1, &[KEPT, ("segment.ms", "1000")]), partition: 0 };
    for n in 0..BATCHES {
        connection.produce(partition, &batch_of([value(0, n, 100_000)])).outcome.expect("appended");
    }
    assert_eq!(broker.stop(), 0);
    let broker = Broker::start(directory.path(), &flags);
    eventually("the segment is rolled", || broker.metric("segments_rolled_total") > 0);
    let read = broker.connect().read_all(partition, BATCHES as i64 - 3);
    assert!(read.len() == 3 && (0..3).all(|i| read[i].1 == value(0, BATCHES - 3 + i, 100_000)));
    assert_eq!(broker.stop(), 0);
}

/// With little memory the whole blocks of large batches go before their flush, and come back with it for who reads them.
#[test]
fn large_batches_that_memory_left_out_are_read_while_appends_go_on_and_after_a_kill() {
    const BATCHES: usize = 60;
    // Every fifth is small, so that large ones are behind small ones too; the rest end in the middle of a block.
    let value_of = |partition: u32, n: usize| value(partition, n, if n % 5 == 4 { 900 } else { 500_000 + 977 * n });
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let broker = Broker::start(directory.path(), &["--shards", "1", "--memory", "32M", "--admin-listen", "127.0.0.1:0"]);
    let topic = broker.connect().create("left-out", 3, &[("segment.bytes", "8000000"), KEPT]);
    let partition = |partition| TopicPartition { topic, partition };
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut connection = broker.connect();
            for n in 0..BATCHES {
                for p in 0..3 {
                    connection.produce(partition(p), &batch_of([value_of(p, n)])).outcome.expect("appended");
                }
            }
        });
        // One partition is read from the front again and again while it grows.
        let mut reader = broker.connect();
        eventually("all is read", || {
            let read = reader.read_all(partition(0), 0);
            assert!(read.iter().enumerate().all(|(n, (offset, bytes))| *offset == n as i64 && *bytes == value_of(0, n)));
            read.len() == BATCHES
        });
    });
    assert!(broker.metric("batches_left_out_total") > 0, "memory left something out");
    broker.kill();
    let broker = Broker::start(directory.path(), &["--shards", "2", "--memory", "64M"]);
    for p in 0..3 {
        let read = broker.connect_owner(partition(p)).read_all(partition(p), 0);
        assert!(read.len() == BATCHES && read.iter().enumerate().all(|(n, (_, bytes))| *bytes == value_of(p, n)), "partition {p}");
    }
    assert_eq!(broker.stop(), 0);
}
