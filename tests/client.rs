//! The client library against a real broker, which is started, killed and started again as a process of its own.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use corelane::batch::Compression;
use corelane::client::{
    Client, ClientError, Consumer, ConsumerRecord, NewTopic, OutOfRange, Partitioning, ProduceFailure, Producer, ProducerRecord, SeekTo,
    TopicChanges, partition_of_key,
};
use corelane::request::{Acks, Code, OffsetSpec};
use tokio::io::AsyncReadExt;

/// A broker in a directory of its own; killed when dropped.
struct Broker {
    data: tempfile::TempDir,
    process: Child,
    address: String,
}

impl Broker {
    fn start() -> Broker {
        // Not the system's scratch directory: that may be a tmpfs, which can't do direct I/O.
        let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (process, address) = spawn(&data, "127.0.0.1:0", 1);
        Broker { data, process, address }
    }

    /// On neighbouring ports, so that it finds them again.
    fn start_shards(shards: u16) -> Broker {
        let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (process, address) = spawn(&data, &free_ports(shards), shards);
        Broker { data, process, address }
    }

    /// SIGKILL, and again on the same data and address.
    fn restart(&mut self, shards: u16) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        (self.process, _) = spawn(&self.data, &self.address, shards);
    }

    /// SIGTERM, then `between`, and again on the same data and address.
    fn stop_and_start(&mut self, between: impl FnOnce(&Broker), shards: u16) {
        let asked = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap();
        assert!(asked.success() && self.process.wait().unwrap().success());
        between(self);
        (self.process, _) = spawn(&self.data, &self.address, shards);
    }

    /// To a stopped process the kernel takes as much as its socket buffers hold.
    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.process.id().to_string()]).status().unwrap().success());
    }

    async fn client(&self) -> Client {
        Client::builder(&self.address).retry_backoff(Duration::from_millis(5), Duration::from_millis(50)).connect().await.unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address whose port and the ones after it are free.
fn free_ports(count: u16) -> String {
    use std::net::TcpListener;
    let bind = |port: u16| TcpListener::bind(("127.0.0.1", port));
    (0..100)
        .find_map(|_| {
            let first = bind(0).ok()?;
            let port = first.local_addr().ok()?.port();
            let rest: Vec<_> = (1..count).map_while(|n| bind(port.checked_add(n)?).ok()).collect();
            (rest.len() + 1 == usize::from(count)).then(|| format!("127.0.0.1:{port}"))
        })
        .expect("free ports")
}

fn spawn(data: &tempfile::TempDir, listen: &str, shards: u16) -> (Child, String) {
    spawn_with(data, listen, shards, "256M")
}

fn spawn_with(data: &tempfile::TempDir, listen: &str, shards: u16, memory: &str) -> (Child, String) {
    // The kernel takes a killed process's io_uring apart, and with it the listener, a moment after the process is gone.
    for _ in 0..50 {
        if let Some(started) = try_spawn(data, listen, shards, memory) {
            return started;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("the broker does not start: {}", std::fs::read_to_string(data.path().join("log")).unwrap_or_default());
}

fn try_spawn(data: &tempfile::TempDir, listen: &str, shards: u16, memory: &str) -> Option<(Child, String)> {
    let mut process = Command::new(env!("CARGO_BIN_EXE_corelane"))
        .args([
            "serve",
            "--listen",
            listen,
            "--shards",
            &shards.to_string(),
            "--memory",
            memory,
            "--admin-listen",
            "none",
            "--json",
            "--data",
        ])
        .arg(data.path().join("data"))
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(data.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let Some(line) = lines.find_map(|line| line.ok().filter(|l| l.contains("\"ready\":true"))) else {
        process.wait().unwrap();
        return None;
    };
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = ready["shards"][0]["address"].as_str().unwrap().to_string();
    std::thread::spawn(move || lines.for_each(drop));
    Some((process, address))
}

async fn take(consumer: &mut Consumer, count: usize) -> Vec<ConsumerRecord> {
    let mut records = Vec::with_capacity(count);
    while records.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(30), consumer.next_record()).await;
        records.push(next.unwrap_or_else(|_| panic!("{} of {count} records came", records.len())).unwrap().unwrap());
    }
    records
}

async fn send_numbers(producer: &Producer, topic: &str, numbers: std::ops::Range<u64>) {
    let mut deliveries = vec![];
    for n in numbers {
        deliveries.push(producer.send_nowait(ProducerRecord::to(topic).value(&n.to_le_bytes())).await.unwrap());
    }
    for delivery in deliveries {
        delivery.await.unwrap();
    }
}

fn number(record: &ConsumerRecord) -> u64 {
    u64::from_le_bytes(record.value.as_ref().unwrap()[..].try_into().unwrap())
}

#[tokio::test]
async fn what_is_sent_is_read_with_key_headers_and_timestamp() {
    let broker = Broker::start();
    let client = broker.client().await;
    client.admin().create_topic(NewTopic::new("t").partitions(3)).await.unwrap();
    let producer = client.producer().build().unwrap();
    let headers = [("trace", Some(&b"abc"[..])), ("empty", None)];
    let record = ProducerRecord::to("t").key("foobar").value("value").headers(&headers).timestamp(1234);
    let at = producer.send(record).await.unwrap();
    assert_eq!((at.partition, at.offset, at.timestamp), (partition_of_key(b"foobar", 3), 0, 1234));
    let at = producer.send(ProducerRecord::to("t").partition(2).key("tombstone")).await.unwrap();
    assert_eq!(at.partition, 2);

    let mut consumer = client.consumer().build().unwrap();
    consumer.assign_topic("t", SeekTo::Earliest).await.unwrap();
    let mut records = take(&mut consumer, 2).await;
    records.sort_by_key(|r| r.timestamp);
    let [first, second] = &records[..] else { panic!("two") };
    assert_eq!((first.key.as_deref(), first.value.as_deref()), (Some(&b"foobar"[..]), Some(&b"value"[..])));
    let found: Vec<_> = first.headers().map(|h| (h.name_str().unwrap().to_string(), h.value.map(<[u8]>::to_vec))).collect();
    assert_eq!(found, [("trace".to_string(), Some(b"abc".to_vec())), ("empty".to_string(), None)]);
    assert_eq!((second.value.as_deref(), second.partition, second.headers.len()), (None, 2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_codec_and_partitioning_keeps_each_partitions_order() {
    let broker = Broker::start();
    let client = broker.client().await;
    for (compression, partitioning) in Compression::ALL.into_iter().zip([
        Partitioning::KeyHash,
        Partitioning::Sticky,
        Partitioning::RoundRobin,
        Partitioning::Sticky,
        Partitioning::KeyHash,
    ]) {
        let topic = format!("t-{compression}");
        client.admin().create_topic(NewTopic::new(&topic).partitions(4)).await.unwrap();
        let producer = client.producer().compression(compression).partitioning(partitioning).batch_size(4000).build().unwrap();
        send_numbers(&producer, &topic, 0..5000).await;
        let mut consumer = client.consumer().build().unwrap();
        consumer.assign_topic(&topic, SeekTo::Earliest).await.unwrap();
        let mut last = HashMap::new();
        let records = take(&mut consumer, 5000).await;
        for record in &records {
            let before = last.insert(record.partition, (record.offset, number(record)));
            let (offset, n) = before.map_or((-1, None), |(offset, n)| (offset, Some(n)));
            assert_eq!(record.offset, offset + 1);
            assert!(n.is_none_or(|n| n < number(record)), "{compression}: order within the partition");
        }
        assert_eq!(last.len(), 4, "{compression}: all partitions are used");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_costs_nothing_that_was_acknowledged() {
    let mut broker = Broker::start_shards(2);
    let client = broker.client().await;
    client.admin().create_topic(NewTopic::new("t").partitions(2)).await.unwrap();
    let producer = client.producer().batch_size(1000).build().unwrap();
    let sending = tokio::spawn({
        let producer = producer.clone();
        async move {
            for round in 0..60 {
                send_numbers(&producer, "t", round * 500..(round + 1) * 500).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    for shards in [1, 2, 2] {
        tokio::time::sleep(Duration::from_millis(400)).await;
        broker.restart(shards);
    }
    sending.await.unwrap();

    let mut consumer = client.consumer().build().unwrap();
    consumer.assign_topic("t", SeekTo::Earliest).await.unwrap();
    let records = take(&mut consumer, 30_000).await;
    let mut numbers: Vec<u64> = records.iter().map(number).collect();
    for partition in 0..2 {
        assert!(records.iter().filter(|r| r.partition == partition).map(number).is_sorted_by(|a, b| a < b), "order in {partition}");
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..30_000).collect::<Vec<_>>(), "nothing lost, nothing twice");
    let ends = [
        client.admin().offset("t", 0, OffsetSpec::Latest).await.unwrap().0,
        client.admin().offset("t", 1, OffsetSpec::Latest).await.unwrap().0,
    ];
    assert_eq!(ends[0] + ends[1], 30_000);
}

#[tokio::test]
async fn a_value_too_large_to_hold_goes_in_and_out_as_a_stream() {
    let broker = Broker::start();
    let client = broker.client().await;
    client.admin().create_topic(NewTopic::new("big").config("max.message.bytes", "67108864")).await.unwrap();
    let producer = client.producer().build().unwrap();
    let value: Vec<u8> = (0..6_000_000u32).map(|i| (i * 7 % 251) as u8).collect();
    producer.send(ProducerRecord::to("big").value("before")).await.unwrap();
    let at = producer.send_reader("big", Some(b"k"), value.len() as u64, &value[..]).await.unwrap();
    assert_eq!(at.offset, 1);

    let mut consumer = client.consumer().build().unwrap();
    let mut reader = consumer.value_reader("big", at.partition, 1).await.unwrap();
    assert_eq!((reader.len(), reader.key().map(|k| &k[..]), reader.timestamp()), (value.len() as u64, Some(&b"k"[..]), at.timestamp));
    let mut read = vec![];
    reader.read_to_end(&mut read).await.unwrap();
    assert!(read == value);
    let mut small = String::new();
    consumer.value_reader("big", at.partition, 0).await.unwrap().read_to_string(&mut small).await.unwrap();
    assert_eq!(small, "before");
    assert_eq!(consumer.value_reader("big", at.partition, 9).await.err().and_then(|e| e.code()), Some(Code::OffsetOutOfRange));

    // And as any other record.
    consumer.assign("big", at.partition, SeekTo::Offset(1)).await.unwrap();
    assert!(take(&mut consumer, 1).await[0].value.as_deref() == Some(&value[..]));

    // A reader that ends early, and a value that the topic does not take.
    let error = producer.send_reader("big", None, 1000, &value[..10]).await.unwrap_err();
    assert!(matches!(error.cause, ProduceFailure::Reader(_)), "{error}");
    let error = producer.send_reader("big", None, 100_000_000, tokio::io::repeat(0)).await.unwrap_err();
    assert!(error.to_string().contains("67108864"), "{error}");
    assert_eq!(client.admin().offset("big", at.partition, OffsetSpec::Latest).await.unwrap().0, 2, "neither left anything");
}

#[tokio::test]
async fn large_values_find_their_leaders_after_a_restart_and_in_a_topic_made_again() {
    let mut broker = Broker::start_shards(2);
    let (writing, reading) = (broker.client().await, broker.client().await);
    let topic = || NewTopic::new("big").partitions(4);
    writing.admin().create_topic(topic()).await.unwrap();
    let producer = writing.producer().build().unwrap();
    let consumer = reading.consumer().build().unwrap();
    let value = vec![7; 100_000];
    let send = || producer.send_reader("big", None, value.len() as u64, &value[..]);
    let read = async |partition, offset| {
        let mut got = vec![];
        consumer.value_reader("big", partition, offset).await.unwrap().read_to_end(&mut got).await.unwrap();
        assert!(got == value);
    };
    for _ in 0..4 {
        let at = send().await.unwrap();
        read(at.partition, at.offset).await;
    }
    // The leaders of half of them listen no more; nothing of the value is read before that is known.
    broker.restart(1);
    for partition in 0..4 {
        read(partition, 0).await;
        assert_eq!(send().await.unwrap().offset, 1);
    }
    let other = broker.client().await;
    other.admin().delete_topic("big").await.unwrap();
    other.admin().create_topic(topic()).await.unwrap();
    // The value may be gone when the broker refuses; the next one knows better.
    let at = match send().await {
        Ok(at) => at,
        Err(_) => send().await.unwrap(),
    };
    assert_eq!(at.offset, 0);
    read(at.partition, 0).await;
}

#[tokio::test]
async fn seeking_pausing_and_positions() {
    let broker = Broker::start();
    let client = broker.client().await;
    client.admin().create_topic(NewTopic::new("t").partitions(2)).await.unwrap();
    let producer = client.producer().build().unwrap();
    for n in 0..100u64 {
        let record = ProducerRecord::to("t").partition((n % 2) as u32).timestamp(1000 + n as i64);
        producer.send(record.value(&n.to_le_bytes())).await.unwrap();
    }
    let mut consumer = client.consumer().build().unwrap();
    consumer.assign("t", 0, SeekTo::Offset(10)).await.unwrap();
    assert_eq!(number(&take(&mut consumer, 1).await[0]), 20);
    assert_eq!(consumer.position("t", 0).unwrap(), 11);
    consumer.seek("t", 0, SeekTo::Timestamp(1041)).await.unwrap();
    assert_eq!(number(&take(&mut consumer, 1).await[0]), 42);
    consumer.seek("t", 0, SeekTo::Latest).await.unwrap();
    assert_eq!(consumer.position("t", 0).unwrap(), 50);

    consumer.assign("t", 1, SeekTo::Earliest).await.unwrap();
    consumer.seek("t", 0, SeekTo::Earliest).await.unwrap();
    take(&mut consumer, 3).await;
    consumer.pause("t", 1).unwrap();
    let rest: Vec<u32> = {
        let before = consumer.position("t", 0).unwrap();
        take(&mut consumer, (50 - before) as usize).await.iter().map(|r| r.partition).collect()
    };
    assert!(rest.iter().all(|p| *p == 0), "the other one is paused");
    let held = consumer.position("t", 1).unwrap();
    consumer.resume("t", 1).unwrap();
    let resumed = take(&mut consumer, (50 - held) as usize).await;
    assert_eq!(resumed[0].offset, held, "nothing was dropped by the pause");
    assert_eq!(consumer.positions().iter().map(|(_, _, offset)| *offset).collect::<Vec<_>>(), [50, 50]);
    assert_eq!(consumer.high_watermark("t", 1).unwrap(), Some(50));

    // Whole batches, after a part of one was taken record by record.
    send_numbers(&client.producer().partitioning(Partitioning::RoundRobin).build().unwrap(), "t", 0..10).await;
    let mut left = 9;
    take(&mut consumer, 1).await;
    while left > 0 {
        let batch = consumer.next_batch().await.unwrap().unwrap();
        left -= batch.records().filter(Result::is_ok).count();
    }

    // Out of range: told, or passed over.
    consumer.seek("t", 0, SeekTo::Offset(5000)).await.unwrap();
    let error = consumer.next_record().await.unwrap().unwrap_err();
    assert_eq!((error.topic.as_str(), error.partition, error.cause.code()), ("t", 0, Some(Code::OffsetOutOfRange)));
    let mut consumer = client.consumer().out_of_range(OutOfRange::Earliest).build().unwrap();
    consumer.assign("t", 0, SeekTo::Offset(5000)).await.unwrap();
    assert_eq!(take(&mut consumer, 1).await[0].offset, 0);
}

#[tokio::test]
async fn topics_are_administered_and_refusals_say_why() {
    let broker = Broker::start();
    let client = broker.client().await;
    let admin = client.admin();
    let made = admin.create_topic(NewTopic::new("a").partitions(2).config("retention.ms", "1000")).await.unwrap();
    assert_eq!((made.name.as_str(), made.partitions), ("a", 2));
    let code = |e: ClientError| e.code();
    assert_eq!(admin.create_topic(NewTopic::new("a")).await.map_err(code), Err(Some(Code::TopicExists)));
    assert_eq!(admin.create_topic(NewTopic::new("no/name")).await.map_err(code), Err(Some(Code::InvalidTopicName)));
    assert_eq!(admin.create_topic(NewTopic::new("b").config("no.such", "1")).await.map_err(code), Err(Some(Code::InvalidConfig)));
    admin.create_topic(NewTopic::new("checked").validate_only()).await.unwrap();
    assert_eq!(admin.list_topics().await.unwrap(), ["a"]);
    let changed = admin.alter_topic(TopicChanges::new("a").partitions(5).set("retention.ms", "2000")).await.unwrap();
    assert_eq!(changed.partitions, 5);
    let described = admin.describe_topic("a").await.unwrap();
    let setting = described.config.iter().find(|entry| entry.name == "retention.ms").unwrap();
    assert_eq!((setting.value.as_str(), setting.is_set), ("2000", true));
    admin.delete_topic("a").await.unwrap();
    assert_eq!(admin.delete_topic("a").await.map_err(code), Err(Some(Code::UnknownTopicOrPartition)));

    let producer = client.producer().build().unwrap();
    let error = producer.send(ProducerRecord::to("nowhere").value("x")).await.unwrap_err();
    assert_eq!(error.topic, "nowhere");
    assert!(matches!(&error.cause, ProduceFailure::Client(e) if e.code() == Some(Code::UnknownTopicOrPartition)), "{error}");
    admin.create_topic(NewTopic::new("c").config("max.message.bytes", "2000")).await.unwrap();
    let error = producer.send(ProducerRecord::to("c").partition(7).value("x")).await.unwrap_err();
    assert!(error.to_string().contains("c partition 7"), "{error}");
    admin.alter_topic(TopicChanges::new("c").partitions(8)).await.unwrap();
    assert_eq!(producer.send(ProducerRecord::to("c").partition(7).value("x")).await.unwrap().partition, 7);
    let error = producer.send(ProducerRecord::to("c").value(&[0; 3000])).await.unwrap_err();
    assert!(error.to_string().contains("2000"), "{error}");
    assert_eq!(producer.buffered(), 0);
}

#[tokio::test]
async fn without_acknowledgements_and_with_little_memory() {
    let broker = Broker::start();
    let client = broker.client().await;
    client.admin().create_topic(NewTopic::new("t").partitions(1)).await.unwrap();
    let careless = client.producer().acks(Acks::None).build().unwrap();
    assert_eq!(careless.send(ProducerRecord::to("t").value(&7u64.to_le_bytes())).await.unwrap().offset, -1);
    let small = client.producer().buffer_memory(2000).batch_size(500).linger(Duration::from_millis(1)).build().unwrap();
    send_numbers(&small, "t", 0..2000).await;
    small.flush().await;
    assert_eq!(small.buffered(), 0);
    let mut consumer = client.consumer().prefetch_memory(1000).max_bytes(1000, 1000).build().unwrap();
    consumer.assign("t", 0, SeekTo::Earliest).await.unwrap();
    assert_eq!(take(&mut consumer, 2001).await.len(), 2001);
}

#[tokio::test]
async fn without_acknowledgements_a_broker_that_reads_nothing_fills_the_buffer_and_no_more() {
    const MOST: usize = 60 << 20;
    let broker = Broker::start();
    let client = broker.client().await;
    client.admin().create_topic(NewTopic::new("t").partitions(1)).await.unwrap();
    let producer = client.producer().acks(Acks::None).buffer_memory(4 << 20).build().unwrap();
    let value = vec![7; 10_000];
    let record = || ProducerRecord::to("t").value(&value);
    producer.send(record()).await.unwrap();
    broker.signal("-STOP");
    let mut deliveries = vec![];
    let error = loop {
        match producer.try_send(record()) {
            Ok(delivery) => deliveries.push(delivery),
            Err(error) => break error,
        }
        assert!(deliveries.len() * value.len() < MOST, "all of it counts as delivered");
    };
    assert!(matches!(error.cause, ProduceFailure::BufferFull { .. }), "{error}");
    broker.signal("-CONT");
    producer.flush().await;
    let sent = deliveries.len() + 1;
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    let mut consumer = client.consumer().build().unwrap();
    consumer.assign("t", 0, SeekTo::Earliest).await.unwrap();
    assert_eq!(take(&mut consumer, sent).await.len(), sent);
}

#[tokio::test]
async fn a_topic_that_was_made_again_is_read_from_where_the_user_said() {
    let broker = Broker::start();
    let other = broker.client().await;
    // It asks the new topic only when there are records at the old topic's offset.
    let pause = Duration::from_secs(1);
    let client = Client::builder(&broker.address).retry_backoff(pause, pause).connect().await.unwrap();
    client.admin().create_topic(NewTopic::new("t").partitions(1)).await.unwrap();
    send_numbers(&client.producer().build().unwrap(), "t", 0..20).await;
    let mut strict = client.consumer().max_wait(Duration::from_millis(50)).build().unwrap();
    let mut lenient = client.consumer().max_wait(Duration::from_millis(50)).out_of_range(OutOfRange::Earliest).build().unwrap();
    for consumer in [&mut strict, &mut lenient] {
        consumer.assign("t", 0, SeekTo::Earliest).await.unwrap();
        assert_eq!(take(consumer, 20).await.len(), 20);
    }
    other.admin().delete_topic("t").await.unwrap();
    other.admin().create_topic(NewTopic::new("t").partitions(1)).await.unwrap();
    send_numbers(&other.producer().build().unwrap(), "t", 100..150).await;
    let numbers: Vec<u64> = take(&mut lenient, 50).await.iter().map(number).collect();
    assert_eq!(numbers, (100..150).collect::<Vec<_>>());
    let error = soon(strict.next_record()).await.unwrap().unwrap_err();
    assert_eq!((error.offset, error.cause.code()), (20, Some(Code::OffsetOutOfRange)), "{error}");
}

#[test]
fn the_blocking_facade_does_the_same() {
    use corelane::client::blocking::BlockingClient;
    let broker = Broker::start();
    let client = BlockingClient::connect(&broker.address).unwrap();
    client.admin().create_topic(NewTopic::new("t").partitions(1)).unwrap();
    let producer = client.producer(|settings| settings.linger(Duration::from_millis(1))).unwrap();
    let deliveries: Vec<_> = (0..1000u64).map(|n| producer.send_nowait(ProducerRecord::to("t").value(&n.to_le_bytes())).unwrap()).collect();
    producer.flush();
    let offsets: Vec<i64> = deliveries.into_iter().map(|delivery| producer.wait(delivery).unwrap().offset).collect();
    assert_eq!(offsets, (0..1000).collect::<Vec<_>>());
    let mut consumer = client.consumer(|settings| settings).unwrap();
    drop(client);
    consumer.assign_topic("t", SeekTo::Earliest).unwrap();
    let numbers: Vec<u64> = (&mut consumer).take(1000).map(|record| number(&record.unwrap())).collect();
    assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
    assert!(consumer.poll(Duration::from_millis(50)).is_none());
}

#[test]
fn the_blocking_facade_looks_after_groups_too() {
    use corelane::client::{ResetTo, blocking::BlockingClient};
    let broker = Broker::start();
    let client = BlockingClient::connect(&broker.address).unwrap();
    let admin = client.admin();
    admin.create_topic(NewTopic::new("t").partitions(1)).unwrap();
    client.producer(|settings| settings).unwrap().send(ProducerRecord::to("t").value("v")).unwrap();
    let plan = admin.plan_reset("g", &["t".to_owned()], ResetTo::Earliest).unwrap();
    admin.reset_group("g", &plan).unwrap();
    assert_eq!(admin.list_groups().unwrap().iter().map(|group| &*group.group).collect::<Vec<_>>(), ["g"]);
    assert!(admin.describe_group("g").unwrap().members.is_empty());
    let positions = admin.group_positions("g").unwrap();
    assert_eq!(positions.iter().map(|p| (p.offset, p.end, p.lag)).collect::<Vec<_>>(), [(Some(0), 1, 1)]);
    admin.delete_group("g").unwrap();
    assert_eq!(admin.list_groups().unwrap(), []);
    assert_eq!(admin.delete_records("t", 0, None).unwrap(), 1);
}

/// Where a partition's files are; the topic is the only one.
fn partition_files(broker: &Broker, partition: u32) -> Vec<std::path::PathBuf> {
    let topics: Vec<_> = std::fs::read_dir(broker.data.path().join("data/topics")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [topic] = &topics[..] else { panic!("{topics:?}") };
    let mut files: Vec<_> = std::fs::read_dir(topic.join(partition.to_string())).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// What a partition is asked for must be refused long before any time-out that is set to minutes.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("an answer in time")
}

/// A file of one partition is damaged while the broker is down: how, and whether the start sees it.
async fn damaged_partition(damage: impl Fn(&[std::path::PathBuf]), is_seen_at_start: bool) {
    let mut broker = Broker::start_shards(2);
    let client = broker.client().await;
    let new = NewTopic::new("t").partitions(3).config("segment.bytes", "1048576");
    client.admin().create_topic(new).await.unwrap();
    let producer = client.producer().build().unwrap();
    let value = [7; 10_000];
    for _ in 0..300 {
        for partition in 0..3 {
            drop(producer.send_nowait(ProducerRecord::to("t").partition(partition).value(&value)).await.unwrap());
        }
    }
    producer.flush().await;
    broker.stop_and_start(|broker| damage(&partition_files(broker, 1)), 1);

    let refused = |error: ProduceFailure| {
        assert!(matches!(&error, ProduceFailure::Client(e) if e.code() == Some(Code::Quarantined)), "{error}");
    };
    if is_seen_at_start {
        // The producer that was there before, and one that begins now.
        refused(soon(producer.send(ProducerRecord::to("t").partition(1).value("x"))).await.unwrap_err().cause);
        let error = soon(client.admin().offset("t", 1, OffsetSpec::Latest)).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::Quarantined), "{error}");
    }
    let mut consumer = client.consumer().build().unwrap();
    for partition in 0..3 {
        consumer.assign("t", partition, SeekTo::Offset(0)).await.unwrap();
    }
    let (mut read, mut failed) = ([0; 3], 0);
    while read[0] < 300 || read[2] < 300 || failed == 0 {
        match soon(consumer.next_record()).await.unwrap() {
            Ok(record) => {
                assert_eq!((record.offset, record.value.as_deref()), (read[record.partition as usize], Some(&value[..])));
                read[record.partition as usize] += 1;
            }
            Err(error) => {
                assert_eq!((error.partition, error.cause.code()), (1, Some(Code::Quarantined)), "{error}");
                failed += 1;
            }
        }
    }
    assert_eq!(failed, 1, "said once");
    assert!(read[1] < 300, "what is damaged is not served");
    let error = soon(consumer.seek("t", 1, SeekTo::Earliest)).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Quarantined), "{error}");
    let error = soon(consumer.value_reader("t", 1, 0)).await.err().unwrap();
    assert_eq!(error.code(), Some(Code::Quarantined), "{error}");
    refused(soon(producer.send(ProducerRecord::to("t").partition(1).value("x"))).await.unwrap_err().cause);
    let fresh = client.producer().build().unwrap();
    refused(soon(fresh.send(ProducerRecord::to("t").partition(1).value("x"))).await.unwrap_err().cause);
    refused(soon(fresh.send(ProducerRecord::to("t").partition(1).value(&[1; 600_000]))).await.unwrap_err().cause);
    for (producer, n) in [(&producer, 300), (&fresh, 301)] {
        for partition in [0, 2] {
            let at = soon(producer.send(ProducerRecord::to("t").partition(partition).value(&value))).await.unwrap();
            assert_eq!(at.offset, n);
        }
    }
    // It stays so over a restart, and a stop does not wait for it.
    broker.stop_and_start(|_| (), 2);
    let error = soon(fresh.send(ProducerRecord::to("t").partition(1).value("x"))).await;
    if is_seen_at_start {
        refused(error.unwrap_err().cause);
    }
    assert_eq!(soon(fresh.send(ProducerRecord::to("t").partition(0).value(&value))).await.unwrap().offset, 302);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_whose_closed_segment_is_damaged_is_refused_and_the_others_are_served() {
    let flip = |files: &[std::path::PathBuf]| {
        use std::os::unix::fs::FileExt;
        let segments: Vec<_> = files.iter().filter(|file| file.extension().is_some_and(|e| e == "log")).collect();
        assert!(segments.len() > 2, "{files:?}");
        let file = std::fs::OpenOptions::new().read(true).write(true).open(segments[0]).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 500_000).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 500_000).unwrap();
    };
    damaged_partition(flip, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_the_start_finds_damaged_is_refused_and_the_others_are_served() {
    let remove = |files: &[std::path::PathBuf]| {
        let segments: Vec<_> = files.iter().filter(|file| file.extension().is_some_and(|e| e == "log")).collect();
        std::fs::remove_file(segments[1]).unwrap();
    };
    damaged_partition(remove, true).await;
}

/// With the least memory the journal is small, and fills up faster than checkpoints give its files back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn little_memory_slows_producers_and_stops_none() {
    let mut broker = {
        let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (process, address) = spawn_with(&data, "127.0.0.1:0", 1, "32M");
        Broker { data, process, address }
    };
    let client = broker.client().await;
    client.admin().create_topic(NewTopic::new("t").partitions(200)).await.unwrap();
    let sending: Vec<_> = (0..4u32)
        .map(|n| {
            let client = broker.client();
            async move {
                let producer = client.await.producer().batch_size(16 * 1024).build().unwrap();
                let mut deliveries = Vec::new();
                for record in 0..8_000u32 {
                    let record = ProducerRecord::to("t").partition((record * 7 + n * 50) % 200).value(&[7; 8192]);
                    deliveries.push(producer.send_nowait(record).await.unwrap());
                }
                for delivery in deliveries {
                    delivery.await.unwrap();
                }
            }
        })
        .collect();
    tokio::time::timeout(Duration::from_secs(100), futures_util::future::join_all(sending)).await.expect("all are acknowledged in time");
    let asked = Command::new("kill").args(["-TERM", &broker.process.id().to_string()]).status().unwrap();
    assert!(asked.success() && broker.process.wait().unwrap().success(), "it drains");
}

#[tokio::test]
async fn no_broker_is_said_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = Client::connect(&address).await.err().unwrap();
    assert!(matches!(&error, ClientError::Connect { address: a, .. } if *a == address), "{error}");
    assert!(Client::connect(" , ").await.is_err());
}
