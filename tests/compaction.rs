//! Compacted topics of a whole broker: what is read back after cleanings, kills and restarts is the newest of every key, readers are not disturbed by a cleaning, and what can't be compacted is
//! refused.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use corelane::batch::{self, BatchBuilder, BatchIter, Compression};
use corelane::request::{Code, OffsetSpec};
use corelane::types::{Offset, TopicPartition};
use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use support::{Broker, Connection, eventually};

const LIMIT: usize = 1 << 24;

/// Key and value of a record.
type Pair = (Option<Vec<u8>>, Option<Vec<u8>>);

/// What was ever appended to a partition, by offset.
type Appended = BTreeMap<Offset, Pair>;

const SETTINGS: [(&str, &str); 4] =
    [("cleanup.policy", "compact"), ("segment.bytes", "1048576"), ("min.cleanable.dirty.ratio", "0.01"), ("max.message.bytes", "16777216")];

fn batch_of(codec: Compression, pairs: &[Pair], timestamp: i64) -> Bytes {
    let mut builder = BatchBuilder::new(codec);
    for (key, value) in pairs {
        builder.append(timestamp, key.as_deref(), value.as_deref(), &[]).expect("it fits");
    }
    builder.build()
}

/// Every record from `from` to the watermark, and the watermark.
fn read(connection: &mut Connection, partition: TopicPartition, from: Offset) -> (Appended, Offset) {
    let (mut records, mut offset) = (Appended::new(), from);
    loop {
        let (bytes, high_watermark) = connection.fetch(partition, offset, 1 << 20, 0);
        if bytes.is_empty() {
            assert_eq!(offset, high_watermark, "{partition}: nothing at {offset}, and the log goes on");
            return (records, high_watermark);
        }
        for batch in BatchIter::new(&bytes) {
            let (header, batch) = batch.expect("whole batches");
            assert!(header.next_offset() > offset, "a batch that ends with {} at {offset}", header.next_offset());
            for record in batch::decode(Bytes::copy_from_slice(batch), LIMIT).expect("a batch that decodes") {
                let record = record.expect("a record");
                let pair = (record.key.map(|key| key.to_vec()), record.value.map(|value| value.to_vec()));
                records.insert(record.offset, pair);
            }
            offset = header.next_offset();
        }
    }
}

fn newest(records: &Appended) -> BTreeMap<Vec<u8>, (Offset, Option<Vec<u8>>)> {
    records.iter().map(|(offset, (key, value))| (key.clone().expect("every record has a key"), (*offset, value.clone()))).collect()
}

fn verify(data: &Path) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_corelane")).args(["inspect", "verify", "--json", "--data"]).arg(data).output().expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

fn segment_bytes(data: &Path, partition: TopicPartition) -> u64 {
    let dir = data.join("topics").join(partition.topic.to_string()).join(partition.partition.to_string());
    let len = |entry: std::io::Result<std::fs::DirEntry>| entry.ok().and_then(|entry| entry.metadata().ok()).map_or(0, |m| m.len());
    std::fs::read_dir(dir).expect("a directory").map(len).sum()
}

/// Nothing is left to clean.
fn wait_until_clean(broker: &Broker) {
    eventually("nothing is left to clean", || {
        let before = broker.metric("cleaner_passes_total");
        std::thread::sleep(Duration::from_millis(2_500));
        broker.metric("cleaner_passes_total") == before
    });
}

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Appends some megabytes of a few keys, in every codec, some of them large enough to go straight to the segment.
fn append(connection: &mut Connection, partition: TopicPartition, numbers: &mut Numbers, appended: &mut Appended) {
    for round in 0..40 {
        let large = round % 13 == 5;
        let pairs: Vec<Pair> = (0..1 + numbers.below(12))
            .map(|_| {
                let key = format!("key {}", numbers.below(60)).into_bytes();
                let len = if large { 30_000 } else { 8_000 } + numbers.below(12_000);
                let value = (numbers.below(8) > 0).then(|| (0..len).map(|_| numbers.below(256) as u8).collect());
                (Some(key), value)
            })
            .collect();
        let batch = batch_of(Compression::ALL[numbers.below(5) as usize], &pairs, 1_700_000_000_000 + round as i64);
        let base = connection.produce(partition, &batch).outcome.expect("it is taken").base_offset;
        appended.extend((base..).zip(pairs));
    }
}

#[test]
fn the_newest_of_every_key_is_read_whatever_happens() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data = directory.path();
    let mut numbers = Numbers(7);
    let appended = [Arc::new(Mutex::new(Appended::new())), Arc::new(Mutex::new(Appended::new()))];
    let mut topic = None;
    for life in 0..4 {
        let broker = Broker::start(data, &["--shards", "1", "--memory", "32M", "--admin-listen", "127.0.0.1:0"]);
        let mut connection = broker.connect();
        let topic = *topic.get_or_insert_with(|| connection.create("compacted", 2, &SETTINGS));
        let part = |partition: usize| TopicPartition { topic, partition: partition as u32 };
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..2)
            .map(|partition| {
                let (stop, appended, mut connection) = (stop.clone(), appended[partition].clone(), broker.connect());
                let id = part(partition);
                std::thread::spawn(move || {
                    let mut rounds = 0;
                    while !stop.load(Ordering::Relaxed) {
                        // What is acknowledged by now is in what is read from now on, but for what is superseded.
                        let known = newest(&appended.lock().unwrap());
                        let (records, _) = read(&mut connection, id, 0);
                        let found = newest(&records);
                        for (key, (offset, _)) in known {
                            assert!(found.get(&key).is_some_and(|(read, _)| *read >= offset), "{key:?} was at {offset}");
                        }
                        let appended = appended.lock().unwrap();
                        let wrong = records.iter().find(|(offset, pair)| appended.get(offset).is_some_and(|known| known != *pair));
                        assert!(wrong.is_none(), "the record at {} is another one", wrong.unwrap().0);
                        rounds += 1;
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    rounds
                })
            })
            .collect();
        let (passes, freed) = (broker.metric("cleaner_passes_total"), broker.metric("cleaner_bytes_freed_total"));
        for _ in 0..3 {
            for (partition, all) in appended.iter().enumerate() {
                let mut now = Appended::new();
                append(&mut connection, part(partition), &mut numbers, &mut now);
                all.lock().unwrap().extend(now);
            }
        }
        eventually("the cleaner passes", || broker.metric("cleaner_passes_total") >= passes + 2);
        eventually("the cleaner frees space", || broker.metric("cleaner_bytes_freed_total") > freed);
        wait_until_clean(&broker);
        stop.store(true, Ordering::Relaxed);
        let rounds: u32 = readers.into_iter().map(|reader| reader.join().expect("a reader finds what it should")).sum();
        assert!(rounds > 0, "somebody read");
        for (partition, all) in appended.iter().enumerate() {
            let all = all.lock().unwrap();
            let (records, _) = read(&mut connection, part(partition), 0);
            assert_eq!(newest(&records), newest(&all));
            assert!(records.len() < all.len() / 2, "{} of {} records are left", records.len(), all.len());
        }
        match life % 2 {
            0 => broker.kill(),
            _ => assert_eq!(broker.stop(), 0),
        }
        verify(data);
        let bytes: u64 = (0..2).map(|partition| segment_bytes(data, part(partition))).sum();
        println!("life {life}: {rounds} reads, {bytes} bytes of segments");
    }
    let topic = topic.unwrap();
    let broker = Broker::start(data, &["--shards", "2", "--admin-listen", "127.0.0.1:0"]);
    wait_until_clean(&broker);
    for (partition, all) in appended.iter().enumerate() {
        let id = TopicPartition { topic, partition: partition as u32 };
        let all = all.lock().unwrap();
        let mut connection = broker.connect_owner(id);
        let (records, end) = read(&mut connection, id, 0);
        assert_eq!((newest(&records), end), (newest(&all), all.len() as i64));
        // A read from any offset begins with the next record that is left.
        for from in (0..end).step_by(37) {
            let (bytes, _) = connection.fetch(id, from, 1, 0);
            let batch = BatchIter::new(&bytes).next().expect("a batch").expect("whole").1;
            let header = batch::check_stored(batch).expect("it checks");
            let wanted = records.range(from..).next().map(|(offset, _)| *offset);
            assert!(
                header.next_offset() > from && wanted.is_none_or(|wanted| header.base_offset <= wanted),
                "{from}: {header:?}, {wanted:?}"
            );
        }
        // The newest timestamp is that of a record that is there.
        let at = connection.offset(id, OffsetSpec::MaxTimestamp);
        assert!(records.contains_key(&at) || at == -1, "{at}");
        for time in [0, 1_700_000_000_000, 1_700_000_000_020] {
            let at = connection.offset(id, OffsetSpec::At(time));
            assert!(records.contains_key(&at), "{time}: {at}");
        }
    }
}

#[test]
fn what_can_not_be_compacted_is_refused() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let broker = Broker::start(directory.path(), &["--shards", "1"]);
    let mut connection = broker.connect();
    let compacted = TopicPartition { topic: connection.create("compacted", 1, &SETTINGS), partition: 0 };
    let plain = TopicPartition { topic: connection.create("plain", 1, &[("max.message.bytes", "16777216")]), partition: 0 };
    let key = || Some(b"key".to_vec());
    let noise = |len: usize| Some((0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<u8>>());
    for codec in Compression::ALL {
        for len in [10, 200_000] {
            let keyless = batch_of(codec, &[(key(), noise(len)), (None, noise(len))], 5);
            let refusal = connection.produce(compacted, &keyless).outcome.expect_err("it has a record without a key");
            assert_eq!(refusal.code, Code::InvalidRecord, "{codec:?}, {len}: {refusal}");
            assert!(refusal.message.contains("record 1 has no key"), "{refusal}");
            connection.produce(plain, &keyless).outcome.expect("where nothing is compacted, keys don't matter");
            let keyed = batch_of(codec, &[(key(), noise(len)), (Some(Vec::new()), None)], 5);
            connection.produce(compacted, &keyed).outcome.expect("an empty key is a key");
        }
    }
    let large = batch_of(Compression::None, &[(key(), noise(9_000_000))], 5);
    let refusal = connection.produce(compacted, &large).outcome.expect_err("it is too large to look into");
    assert_eq!(refusal.code, Code::RecordTooLarge, "{refusal}");
    connection.produce(plain, &large).outcome.expect("it is taken elsewhere");
    let bomb = batch_of(Compression::Zstd, &[(key(), Some(vec![0; 9_000_000]))], 5);
    assert!(bomb.len() < 100_000);
    let refusal = connection.produce(compacted, &bomb).outcome.expect_err("it is too large when decompressed");
    assert_eq!(refusal.code, Code::RecordTooLarge, "{refusal}");
    assert_eq!(connection.offset(compacted, OffsetSpec::Latest), 20, "what is refused leaves nothing");
}

/// Of a segment whose records are all superseded a batch without records is left: clients pass over it, and over the offsets that are gone.
#[test]
fn clients_pass_over_what_is_gone() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let broker = Broker::start(directory.path(), &["--shards", "1", "--admin-listen", "127.0.0.1:0"]);
    let mut connection = broker.connect();
    let id = TopicPartition { topic: connection.create("compacted", 1, &SETTINGS), partition: 0 };
    let pair = |key: &str, len: usize| (Some(key.as_bytes().to_vec()), Some(vec![b'v'; len]));
    connection.produce(id, &batch_of(Compression::None, &[pair("first", 5), pair("often", 6)], 5)).outcome.unwrap();
    for round in 0..60 {
        connection.produce(id, &batch_of(Compression::None, &[pair("often", 90_000)], 10 + round)).outcome.unwrap();
    }
    connection.produce(id, &batch_of(Compression::None, &[pair("last", 7)], 100)).outcome.unwrap();
    eventually("the cleaner passes", || broker.metric("cleaner_passes_total") > 0);
    wait_until_clean(&broker);

    let (records, end) = read(&mut connection, id, 0);
    assert!(records.len() < 20 && end == 63, "{} records are left of {end}", records.len());
    let (bytes, _) = connection.fetch(id, 0, 1 << 20, 0);
    assert!(BatchIter::new(&bytes).any(|batch| batch.expect("whole").0.record_count == 0), "there is a batch without records");

    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap())
        .set("group.id", "unused")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .create()
        .expect("a consumer");
    for from in [0, 1, 30, 62] {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset("compacted", 0, rdkafka::Offset::Offset(from)).expect("an offset");
        consumer.assign(&assignment).expect("an assignment");
        let (mut seen, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(60));
        loop {
            assert!(Instant::now() < deadline, "librdkafka came from {from} to {seen:?} and no further");
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => seen.push(message.offset()),
                Some(Err(KafkaError::PartitionEOF(0))) => break,
                Some(Err(error)) => panic!("{error}"),
                None => {}
            }
        }
        assert_eq!(seen, records.range(from..).map(|(offset, _)| *offset).collect::<Vec<_>>(), "librdkafka from {from}");
    }
    for from in ["0", "1", "30", "62"] {
        let args = ["consume", "compacted", "--from", from, "--exit-at-end", "--format", "%o\\n", "--broker", &broker.bootstrap()];
        let output = Command::new(env!("CARGO_BIN_EXE_corelane")).args(args).output().expect("it runs");
        let seen: Vec<i64> = String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().expect("an offset")).collect();
        let from: i64 = from.parse().unwrap();
        assert_eq!(seen, records.range(from..).map(|(offset, _)| *offset).collect::<Vec<_>>(), "the native client from {from}: {output:?}");
    }
}
