//! What a consumer of a whole topic notices later, what the broker counts of it, and what is refused before it is received.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use corelane::client::{Client, NewTopic, ProducerRecord, SeekTo, TopicChanges};
use corelane::request::{Code, Response};
use corelane::types::TopicPartition;
use corelane::wire::{self, RequestEncoder};
use support::{Broker, batch_of, produce_one};

const PATIENCE: Duration = Duration::from_secs(60);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("in time") })
}

/// `GET /stat` of the admin port.
fn stat(address: &str) -> serde_json::Value {
    let mut stream = TcpStream::connect(address).expect("the admin port");
    write!(stream, "GET /stat HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    serde_json::from_str(answer.split_once("\r\n\r\n").expect("a body").1).expect("JSON")
}

#[test]
fn partitions_that_are_added_are_read_and_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(directory.path(), &["--shards", "2", "--admin-listen", "127.0.0.1:0"]);
    block_on(async {
        let client = Client::connect(&broker.bootstrap()).await.expect("it listens");
        client.admin().create_topic(NewTopic::new("growing").partitions(1)).await.expect("created");
        let mut consumer = client.consumer().metadata_max_age(Duration::from_millis(50)).build().expect("built");
        consumer.assign_topic("growing", SeekTo::Latest).await.expect("assigned");
        client.admin().alter_topic(TopicChanges::new("growing").partitions(4)).await.expect("altered");
        // Somebody else produces, before this consumer knows of the partition or after.
        let producer = Client::connect(&broker.bootstrap()).await.expect("it listens").producer().build().expect("built");
        for partition in 0..4 {
            for n in 0..10u32 {
                let value = n.to_le_bytes();
                producer.send(ProducerRecord::to("growing").partition(partition).value(&value)).await.expect("sent");
            }
        }
        let mut read = [0; 4];
        while read.iter().sum::<u32>() < 40 {
            let record = consumer.next_record().await.expect("it goes on").expect("a record");
            let count = &mut read[record.partition as usize];
            assert_eq!(record.value.as_deref(), Some(&count.to_le_bytes()[..]), "in order, from the first");
            *count += 1;
        }
        assert_eq!(read, [10; 4]);
    });
    let stat = stat(broker.admin.as_deref().expect("asked for"));
    let sum =
        |name: &str| stat["shards"].as_array().expect("shards").iter().map(|s| s["counters"][name].as_u64().expect("a count")).sum::<u64>();
    assert_eq!((sum("records_in"), sum("records_out")), (40, 40), "{stat}");
    let frames = stat["shards"].as_array().expect("shards").iter().map(|s| s["stages"]["receive"]["count"].as_u64().expect("a count"));
    assert!(frames.sum::<u64>() > 40, "{stat}");
}

/// The refusal comes while most of the batch has not been sent; the connection goes on behind it.
#[test]
fn a_batch_over_the_limit_is_refused_by_its_length() {
    let directory = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(directory.path(), &["--shards", "1"]);
    let mut connection = broker.connect();
    let partition = TopicPartition { topic: connection.create("short", 1, &[]), partition: 0 };
    for len in [4_000_000, 10_000_000] {
        let batch = batch_of([vec![7; len]]);
        let mut out = Vec::new();
        wire::encode_request(&mut RequestEncoder::new(), 77, &produce_one(partition, &batch), batch.len(), &mut out).expect("it fits");
        connection.socket.write_all(&out).expect("the broker reads");
        connection.socket.write_all(&batch[..100]).expect("the broker reads");
        match connection.receive() {
            (77, Response::Produce(results), _) => {
                assert_eq!(results[0].outcome.as_ref().expect_err("too large").code, Code::RecordTooLarge)
            }
            other => panic!("{other:?}"),
        }
        connection.socket.write_all(&batch[100..]).expect("the broker reads on");
    }
    assert_eq!(connection.produce(partition, &batch_of([b"short"])).outcome.expect("it fits").base_offset, 0);
}
