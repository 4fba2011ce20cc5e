//! A broker that librdkafka talks to: what a Kafka client writes is what it and the native client read.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use corelane::batch::{BatchIter, Compression};
use corelane::types::TopicPartition;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use support::{Broker, batch_of};

const PATIENCE: Duration = Duration::from_secs(60);

fn config(broker: &Broker) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.bootstrap());
    config
}

fn producer(broker: &Broker, settings: &[(&str, &str)]) -> FutureProducer {
    let mut config = config(broker);
    config.set("message.timeout.ms", "60000");
    for (name, value) in settings {
        config.set(*name, *value);
    }
    config.create().expect("a producer")
}

/// Consumers without a group name partitions and offsets themselves; librdkafka wants the name of one all the same.
fn consumer(broker: &Broker, settings: &[(&str, &str)]) -> BaseConsumer {
    let mut config = config(broker);
    config.set("group.id", "unused").set("enable.auto.commit", "false").set("enable.partition.eof", "false");
    for (name, value) in settings {
        config.set(*name, *value);
    }
    config.create().expect("a consumer")
}

fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// Partition and offset of a delivered record, or why it was not.
fn delivered(future: DeliveryFuture) -> Result<(i32, i64), KafkaError> {
    wait(future).expect("the producer lives").map(|d| (d.partition, d.offset)).map_err(|(error, _)| error)
}

/// Sends one value and waits for its place.
fn send(producer: &FutureProducer, topic: &str, partition: i32, value: &[u8]) -> Result<(i32, i64), KafkaError> {
    let record = FutureRecord::<(), _>::to(topic).partition(partition).payload(value);
    producer.send_result(record).map_err(|(error, _)| error).and_then(delivered)
}

/// What a record is, for comparison.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Seen {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
    timestamp: i64,
}

fn seen(message: &impl Message) -> Seen {
    let headers = message
        .headers()
        .map(|headers| headers.iter().map(|header| (header.key.to_string(), header.value.map(<[u8]>::to_vec))).collect::<Vec<_>>());
    Seen {
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
        timestamp: message.timestamp().to_millis().unwrap_or(-1),
    }
}

/// The first `count` records from the given offsets on, by partition and offset.
fn read(broker: &Broker, topic: &str, from: &[(i32, i64)], count: usize) -> BTreeMap<(i32, i64), Seen> {
    let consumer = consumer(broker, &[("fetch.message.max.bytes", "20000000"), ("receive.message.max.bytes", "100000000")]);
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in from {
        assignment.add_partition_offset(topic, *partition, Offset::Offset(*offset)).expect("an offset");
    }
    consumer.assign(&assignment).expect("assigned");
    let mut records = BTreeMap::new();
    let end = Instant::now() + PATIENCE;
    while records.len() < count {
        assert!(Instant::now() < end, "{} of {count} records of {topic}", records.len());
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(message)) => {
                let before = records.insert((message.partition(), message.offset()), seen(&message));
                assert!(before.is_none(), "an offset comes once");
            }
            Some(Err(error)) => panic!("{topic}: {error}"),
        }
    }
    records
}

fn create(broker: &Broker, name: &str, partitions: u32, config: &[(&str, &str)]) -> corelane::types::TopicId {
    let config: Vec<_> = config.iter().copied().chain([("retention.ms", "-1")]).collect();
    broker.connect().create(name, partitions, &config)
}

#[test]
fn every_codec_goes_round_and_the_native_client_reads_the_same() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = format!("codec-{codec}");
        let id = create(&broker, &topic, 4, &[]);
        let producer = producer(&broker, &[("compression.codec", codec), ("linger.ms", "50")]);
        let mut sent = BTreeMap::new();
        let mut waiting = Vec::new();
        for number in 0..1000_i64 {
            let (key, value) = (format!("key {}", number % 7), format!("value {number} {}", "x".repeat(200)));
            let headers = OwnedHeaders::new()
                .insert(Header { key: "number", value: Some(&number.to_string()) })
                .insert(Header { key: "nothing", value: None::<&[u8]> });
            let record = FutureRecord::to(&topic).partition((number % 4) as i32).timestamp(1_700_000_000_000 + number);
            let record = match number % 10 {
                0 => record.key(&key),
                1 => record.payload(&value),
                _ => record.key(&key).payload(&value).headers(headers.clone()),
            };
            let expected = Seen {
                key: (number % 10 != 1).then(|| key.clone().into_bytes()),
                value: (number % 10 != 0).then(|| value.clone().into_bytes()),
                headers: match number % 10 {
                    0 | 1 => Vec::new(),
                    _ => vec![("number".into(), Some(number.to_string().into_bytes())), ("nothing".into(), None)],
                },
                timestamp: 1_700_000_000_000 + number,
            };
            waiting.push((expected, producer.send_result(record).expect("room in the queue")));
        }
        for (expected, delivery) in waiting {
            sent.insert(delivered(delivery).expect("delivered"), expected);
        }
        assert_eq!(sent.len(), 1000);
        let from: Vec<_> = (0..4).map(|partition| (partition, 0)).collect();
        assert_eq!(read(&broker, &topic, &from, 1000), sent, "{codec}");
        for partition in 0..4 {
            let place = TopicPartition { topic: id, partition };
            let mut native = broker.connect_owner(place);
            let values: Vec<_> = native.read_all(place, 0);
            let expected = sent.iter().filter(|((p, _), _)| *p as u32 == partition);
            let expected: Vec<_> = expected.map(|((_, offset), seen)| (*offset, seen.value.clone().unwrap_or_default())).collect();
            assert_eq!(values, expected);
            let (bytes, _) = native.fetch(place, 0, 1 << 20, 0);
            let stored = BatchIter::new(&bytes).map(|b| b.expect("a batch").0.compression().expect("a codec")).collect::<Vec<_>>();
            let expected = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
            let expected = expected.into_iter().find(|c| c.name() == codec).expect("a codec");
            // librdkafka sends lz4 only to a broker that has FindCoordinator.
            assert!(codec == "lz4" || stored.iter().all(|c| *c == expected), "{codec}: {stored:?}");
        }
    }
}

#[test]
fn what_the_native_client_writes_a_kafka_client_reads_also_from_the_middle() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    let id = create(&broker, "native", 2, &[]);
    for partition in 0..2 {
        let place = TopicPartition { topic: id, partition };
        let mut native = broker.connect_owner(place);
        for batch in 0..10 {
            let batch = batch_of((0..100).map(|record| format!("{partition} {batch} {record}")));
            native.produce(place, &batch).outcome.expect("appended");
        }
    }
    let records = read(&broker, "native", &[(0, 0), (1, 550)], 1450);
    assert!(records.contains_key(&(0, 0)) && !records.contains_key(&(1, 549)));
    for ((partition, offset), seen) in records {
        let value = format!("{partition} {} {}", offset / 100, offset % 100);
        assert_eq!(seen.value, Some(value.into_bytes()));
    }
}

#[test]
fn an_idempotent_producer_keeps_its_order() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    create(&broker, "once", 2, &[]);
    let producer = producer(&broker, &[("enable.idempotence", "true"), ("linger.ms", "1"), ("batch.num.messages", "20")]);
    let waiting: Vec<_> = (0..4000)
        .map(|number| {
            let value = number.to_string();
            (number, producer.send_result(FutureRecord::<(), _>::to("once").partition(number % 2).payload(&value)).expect("room"))
        })
        .collect();
    for (number, delivery) in waiting {
        assert_eq!(delivered(delivery), Ok((number % 2, i64::from(number / 2))));
    }
    let records = read(&broker, "once", &[(0, 0), (1, 0)], 4000);
    for ((partition, offset), seen) in records {
        assert_eq!(seen.value, Some((2 * offset + i64::from(partition)).to_string().into_bytes()));
    }
}

#[test]
fn a_thousand_records_are_one_batch() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "1"]);
    let id = create(&broker, "batched", 1, &[]);
    let producer = producer(&broker, &[("linger.ms", "2000"), ("batch.num.messages", "1000"), ("batch.size", "1000000")]);
    let waiting: Vec<_> = (0..1000)
        .map(|n| producer.send_result(FutureRecord::<(), _>::to("batched").payload(&format!("{n:0100}"))).expect("room"))
        .collect();
    for delivery in waiting {
        delivered(delivery).expect("delivered");
    }
    let (bytes, _) = broker.connect().fetch(TopicPartition { topic: id, partition: 0 }, 0, 1 << 20, 0);
    let counts: Vec<_> = BatchIter::new(&bytes).map(|b| b.expect("a batch").0.record_count).collect();
    assert_eq!(counts.iter().sum::<i32>(), 1000);
    assert!(counts.contains(&1000), "{counts:?}");
}

#[test]
fn offsets_are_found_by_time_and_at_the_ends() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    create(&broker, "timed", 2, &[]);
    let producer = producer(&broker, &[("batch.num.messages", "10")]);
    let waiting: Vec<_> = (0..100_i64)
        .map(|n| producer.send_result(FutureRecord::<(), _>::to("timed").partition(1).timestamp(1000 + 10 * n).payload("x")).expect("room"))
        .collect();
    for delivery in waiting {
        delivered(delivery).expect("delivered");
    }
    let consumer = consumer(&broker, &[]);
    assert_eq!(consumer.fetch_watermarks("timed", 0, PATIENCE), Ok((0, 0)));
    assert_eq!(consumer.fetch_watermarks("timed", 1, PATIENCE), Ok((0, 100)));
    let offset_at = |timestamp| {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_offset("timed", 1, Offset::Offset(timestamp)).expect("a timestamp");
        let found = consumer.offsets_for_times(asked, PATIENCE).expect("an answer");
        found.find_partition("timed", 1).expect("the partition").offset()
    };
    assert_eq!(offset_at(0), Offset::Offset(0));
    assert_eq!(offset_at(1500), Offset::Offset(50));
    assert_eq!(offset_at(1501), Offset::Offset(51));
    assert_eq!(offset_at(5000), Offset::End);
}

#[test]
fn topics_are_made_changed_and_deleted() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    let admin: AdminClient<DefaultClientContext> = config(&broker).create().expect("an admin client");
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    let new = |name, partitions, replication| NewTopic::new(name, partitions, TopicReplication::Fixed(replication));

    let made = wait(admin.create_topics(&[new("made", 3, 1).set("retention.ms", "12345"), new("default", 2, -1)], &options));
    assert_eq!(made.expect("an answer"), [Ok("made".into()), Ok("default".into())]);
    let refused = wait(admin.create_topics(
        &[
            new("made", 3, 1),
            new("no such name!", 1, 1),
            new("twice", 1, 2),
            new("odd", 1, 1).set("retention.hours", "1"),
            new("none", 0, 1),
        ],
        &options,
    ));
    let codes: Vec<_> = refused.expect("an answer").into_iter().map(|r| r.expect_err("refused").1).collect();
    use RDKafkaErrorCode::{
        InvalidConfig, InvalidPartitions, InvalidReplicationFactor, InvalidTopic, TopicAlreadyExists, UnknownTopicOrPartition,
    };
    assert_eq!(codes, [TopicAlreadyExists, InvalidTopic, InvalidReplicationFactor, InvalidConfig, InvalidPartitions]);
    wait(admin.create_topics(&[new("only checked", 1, 1)], &AdminOptions::new().request_timeout(Some(PATIENCE)).validate_only(true)))
        .expect("an answer")[0]
        .clone()
        .expect_err("its name");

    let consumer = consumer(&broker, &[]);
    let metadata = consumer.fetch_metadata(None, PATIENCE).expect("metadata");
    let mut topics: BTreeMap<_, _> = metadata.topics().iter().map(|t| (t.name().to_string(), t.partitions().len())).collect();
    // A consumer asks for its group's coordinator by itself, and the first who asks makes the topic.
    topics.remove("__consumer_offsets");
    assert_eq!(topics, BTreeMap::from([("default".into(), 2), ("made".into(), 3)]));
    assert_eq!(metadata.brokers().iter().map(|b| b.id()).collect::<Vec<_>>(), [0, 1]);
    let leaders: Vec<_> = metadata.topics().iter().flat_map(|t| t.partitions()).map(|p| p.leader()).collect();
    assert!(leaders.contains(&0) && leaders.contains(&1), "{leaders:?}");

    let grown =
        wait(admin.create_partitions(&[NewPartitions::new("made", 5), NewPartitions::new("default", 2)], &options)).expect("an answer");
    assert_eq!(grown, [Ok("made".into()), Err(("default".into(), InvalidPartitions))]);
    let metadata = consumer.fetch_metadata(Some("made"), PATIENCE).expect("metadata");
    assert_eq!(metadata.topics()[0].partitions().len(), 5);

    let value = |name: &str| {
        let described = wait(admin.describe_configs(&[ResourceSpecifier::Topic("made")], &options)).expect("an answer");
        let described = described.into_iter().next().expect("one").expect("described");
        described.get(name).expect("the setting").value.clone().expect("a value")
    };
    assert_eq!((value("retention.ms"), value("max.message.bytes")), ("12345".into(), "1048588".into()));
    let change = AlterConfig::new(ResourceSpecifier::Topic("made")).set("max.message.bytes", "2000000");
    wait(admin.alter_configs(&[change], &options)).expect("an answer").remove(0).expect("changed");
    assert_eq!((value("retention.ms"), value("max.message.bytes")), ("604800000".into(), "2000000".into()));
    let brokers = wait(admin.describe_configs(&[ResourceSpecifier::Broker(0)], &options)).expect("an answer");
    assert_eq!(brokers[0].as_ref().expect("described").get("num.partitions").expect("it").value.as_deref(), Some("1"));

    let producer = producer(&broker, &[]);
    for number in 0..6 {
        assert_eq!(send(&producer, "made", 4, b"x"), Ok((4, number)));
    }
    let delete = |partition, before| {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_offset("made", partition, before).expect("an offset");
        let answered = wait(admin.delete_records(&asked, &options)).expect("an answer");
        let of = answered.find_partition("made", partition).expect("the partition");
        of.error().map(|()| of.offset()).map_err(|error| error.rdkafka_error_code().expect("a code"))
    };
    assert_eq!(delete(4, Offset::Offset(2)), Ok(Offset::Offset(2)));
    assert_eq!(delete(4, Offset::Offset(7)), Err(RDKafkaErrorCode::OffsetOutOfRange));
    assert_eq!(consumer.fetch_watermarks("made", 4, PATIENCE), Ok((2, 6)));
    assert_eq!(delete(4, Offset::End), Ok(Offset::Offset(6)));
    assert_eq!(consumer.fetch_watermarks("made", 4, PATIENCE), Ok((6, 6)));

    let gone = wait(admin.delete_topics(&["made", "never"], &options)).expect("an answer");
    assert_eq!(gone, [Ok("made".into()), Err(("never".into(), UnknownTopicOrPartition))]);
    assert!(broker.connect().topic("made").is_none());
}

#[test]
fn a_topic_that_does_not_exist_is_made_where_that_is_allowed() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &[]);
    assert_eq!(send(&producer(&broker, &[]), "new", 0, b"first"), Ok((0, 0)));
    drop(broker);

    let broker = Broker::start(data.path(), &["--auto-create-topics", "false"]);
    let producer = producer(&broker, &[("message.timeout.ms", "5000"), ("topic.metadata.propagation.max.ms", "1000")]);
    let error = send(&producer, "newer", 0, b"first").expect_err("no such topic");
    let code = error.rdkafka_error_code();
    assert!(matches!(code, Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition)), "{error}");
    assert!(broker.connect().topic("newer").is_none() && broker.connect().topic("new").is_some());

    let consumer = consumer(&broker, &[("topic.metadata.propagation.max.ms", "1000")]);
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset("newer", 0, Offset::Beginning).expect("an offset");
    consumer.assign(&assignment).expect("assigned");
    let end = Instant::now() + PATIENCE;
    let error = loop {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Err(error)) => break error,
            other => assert!(other.is_none() && Instant::now() < end),
        }
    };
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::UnknownTopicOrPartition), "{error}");
}

#[test]
fn values_of_every_size_go_their_way() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    create(&broker, "large", 2, &[("max.message.bytes", "12000000")]);
    create(&broker, "small", 1, &[]);
    let large = producer(&broker, &[("message.max.bytes", "20000000")]);
    let refused = send(&large, "small", 0, &vec![7; 2_000_000]).expect_err("too large");
    assert_eq!(refused.rdkafka_error_code(), Some(RDKafkaErrorCode::MessageSizeTooLarge));
    assert_eq!(send(&large, "small", 0, &vec![7; 1_000_000]), Ok((0, 0)), "the connection goes on");

    // Through the receive buffer, received whole, straight into aligned memory, into a file of its own.
    let sizes = [10, 65_000, 66_000, 127_000, 140_000, 1_000_000, 8_300_000, 8_500_000, 11_900_000];
    let value = |size: usize| (0..size).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>();
    for (offset, size) in sizes.into_iter().enumerate() {
        for partition in 0..2 {
            assert_eq!(send(&large, "large", partition, &value(size)), Ok((partition, offset as i64)), "{size} bytes");
        }
    }
    let refused = send(&large, "large", 0, &value(12_100_000)).expect_err("too large");
    assert_eq!(refused.rdkafka_error_code(), Some(RDKafkaErrorCode::MessageSizeTooLarge));
    for ((_, offset), seen) in read(&broker, "large", &[(0, 0), (1, 0)], 2 * sizes.len()) {
        assert!(seen.value == Some(value(sizes[offset as usize])), "{} bytes", sizes[offset as usize]);
    }
}

#[test]
fn behind_one_address_every_partition_is_reached() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "3", "--advertised-endpoints", "1"]);
    create(&broker, "forwarded", 6, &[("max.message.bytes", "3000000")]);
    let producer = producer(&broker, &[("enable.idempotence", "true"), ("message.max.bytes", "3000000")]);
    let mut sent = BTreeMap::new();
    for number in 0..600 {
        let value = vec![number as u8; if number % 100 == 99 { 1_500_000 } else { 100 }];
        let place = producer.send_result(FutureRecord::<(), _>::to("forwarded").partition(number % 6).payload(&value)).expect("room");
        sent.insert((number % 6, i64::from(number / 6)), (value, place));
    }
    producer.flush(PATIENCE).expect("flushed");
    let mut expected = BTreeMap::new();
    for (place, (value, delivery)) in sent {
        assert_eq!(delivered(delivery), Ok(place));
        expected.insert(place, value);
    }
    let from: Vec<_> = (0..6).map(|partition| (partition, 0)).collect();
    let read = read(&broker, "forwarded", &from, 600);
    assert!(read.iter().map(|(place, seen)| (place, seen.value.as_ref().expect("a value"))).eq(expected.iter()));
    assert_eq!(consumer(&broker, &[]).fetch_metadata(None, PATIENCE).expect("metadata").brokers().len(), 1);
}

#[test]
fn a_consumer_at_the_end_gets_what_comes() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    let id = create(&broker, "tail", 1, &[]);
    let place = TopicPartition { topic: id, partition: 0 };
    let consumer = consumer(&broker, &[("enable.partition.eof", "true"), ("fetch.wait.max.ms", "1000")]);
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset("tail", 0, Offset::Beginning).expect("an offset");
    consumer.assign(&assignment).expect("assigned");
    match consumer.poll(PATIENCE) {
        Some(Err(KafkaError::PartitionEOF(0))) => {}
        other => panic!("{:?}", other.map(|polled| polled.map(|message| message.offset()))),
    }
    let mut native = broker.connect_owner(place);
    for number in 0..20 {
        let value = format!("value {number}");
        native.produce(place, &batch_of([&value])).outcome.expect("appended");
        let appended = Instant::now();
        let message = loop {
            match consumer.poll(PATIENCE) {
                Some(Ok(message)) => break message,
                Some(Err(KafkaError::PartitionEOF(0))) => {}
                other => panic!("{:?}", other.map(|polled| polled.map(|message| message.offset()))),
            }
        };
        assert_eq!((message.offset(), message.payload()), (number, Some(value.as_bytes())));
        assert!(appended.elapsed() < Duration::from_millis(900), "it waited for the end of a poll: {:?}", appended.elapsed());
    }
}
