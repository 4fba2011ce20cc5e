//! Produce requests of Kafka's protocol that are too long to be held.

#[path = "support/kafka.rs"]
mod raw;
mod support;

use std::io::Write;

use bytes::Bytes;
use corelane::types::{TopicId, TopicPartition};
use kafka_protocol::messages::ProduceRequest;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use raw::{KafkaConnection, topic_name};
use support::{Broker, batch_of};

/// A value of that many bytes that no other size begins with.
fn value(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at % 251 + size % 7) as u8).collect()
}

/// A batch of a value for each partition.
fn topic(name: &str, batches: &[(i32, Option<Bytes>)]) -> TopicProduceData {
    let data = |(index, batch): &(i32, Option<Bytes>)| PartitionProduceData::default().with_index(*index).with_records(batch.clone());
    TopicProduceData::default().with_name(topic_name(name)).with_partition_data(batches.iter().map(data).collect())
}

fn request(acks: i16, topics: Vec<TopicProduceData>) -> ProduceRequest {
    ProduceRequest::default().with_acks(acks).with_timeout_ms(10_000).with_topic_data(topics)
}

fn sizes(broker: &Broker, id: TopicId, partition: u32) -> Vec<usize> {
    let place = TopicPartition { topic: id, partition };
    let records = broker.connect_owner(place).read_all(place, 0);
    records.into_iter().map(|(_, read)| if read == value(read.len()) { read.len() } else { 0 }).collect()
}

#[test]
fn many_batches_that_are_long_together_are_received_one_by_one() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    let config = [("retention.ms", "-1"), ("max.message.bytes", "20000000")];
    let large = broker.connect().create("large", 4, &config);
    let small = broker.connect().create("small", 2, &[("retention.ms", "-1")]);
    let batch = |size: usize| Some(batch_of([value(size)]));
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    // A batch of more than 8 MiB goes to the shard that has its partition.
    let own = (0..4).find(|partition| large.shard_of(*partition, 2) == 0).expect("neighbours are on both shards") as i32;
    for (round, version) in [3, 9, 11].into_iter().enumerate() {
        let mut torn = batch_of([value(100_000)]).to_vec();
        torn[50_000] ^= 1;
        let of_large: Vec<_> = [10, 70_000, 200_000, 5_000_000].iter().flat_map(|size| (0..4).map(|p| (p, batch(*size)))).collect();
        let topics = vec![
            topic("small", &[(0, batch(1000)), (2, batch(300_000)), (1, batch(1_100_000)), (1, None), (0, Some(torn.into()))]),
            topic("large", &[of_large, vec![(own, batch(9_000_000)), (own, batch(11))]].concat()),
            topic("never", &[(0, batch(500_000))]),
            topic("large", &[(own, batch(12))]),
        ];
        let answer = client.ask(version, &request(-1, topics));
        let codes = |topic: usize| answer.responses[topic].partition_responses.iter().map(|p| p.error_code).collect::<Vec<_>>();
        assert_eq!(codes(0), [0, 3, 10, 2, 2], "version {version}");
        assert_eq!((codes(1), codes(2), codes(3)), (vec![0; 18], vec![3], vec![0]), "version {version}");
        let offsets: Vec<_> = answer.responses[1].partition_responses[16..].iter().map(|p| p.base_offset).collect();
        let first = 7 * round as i64;
        assert_eq!(offsets, [first + 4, first + 5], "in the order of the request");
    }
    for partition in 0..4 {
        let mut expected = vec![10, 70_000, 200_000, 5_000_000];
        if partition == own as u32 {
            expected.extend([9_000_000, 11, 12]);
        }
        assert_eq!(sizes(&broker, large, partition), expected.repeat(3), "partition {partition}");
    }
    assert_eq!(sizes(&broker, small, 0), [1000; 3]);

    // What comes behind it on the connection is answered behind it, and what waits for no acknowledgement is appended all the same.
    let long = || vec![topic("large", &[(0, batch(5_000_000)), (1, batch(5_000_000)), (2, batch(20))])];
    client.send(9, &request(0, long()));
    let asked = [client.send(9, &request(1, long())), client.send(9, &request(1, vec![topic("large", &[(0, batch(30))])]))];
    assert_eq!(asked.map(|_| client.receive_as::<ProduceRequest>(9).0), asked);
    support::eventually("all is appended", || sizes(&broker, large, 2).ends_with(&[20, 20]));

    // Where it does not go on as it began the connection ends; what was before that is there.
    for (at, change) in [("middle", 0), ("count", 0xff)] {
        let mut other = KafkaConnection::open(&broker.addresses[0]);
        let before = sizes(&broker, small, 1).len();
        let (_, mut frame) = other.frame(
            9,
            &request(
                1,
                vec![
                    topic("small", &[(1, batch(40))]),
                    topic("large", &long()[0].partition_data.iter().map(|p| (p.index, p.records.clone())).collect::<Vec<_>>()),
                ],
            ),
        );
        match at {
            "middle" => frame.truncate(6_000_000),
            _ => {
                // The number of partitions of the second topic, one byte behind its name.
                let name = frame.windows(6).position(|bytes| bytes == b"\x06large").expect("the name");
                frame[name + 6] = change;
            }
        }
        other.socket.write_all(&frame).unwrap_or(());
        let _ = other.socket.shutdown(std::net::Shutdown::Write);
        assert!(other.try_receive().is_none(), "{at}");
        support::eventually("the first batch is appended", || sizes(&broker, small, 1).len() == before + 1);
    }
    assert_eq!(broker.stop(), 0);
}

#[test]
fn a_batch_that_only_its_shard_can_take_is_refused_for_good_where_nobody_can_send_it_there() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2", "--advertised-endpoints", "1"]);
    let id = broker.connect().create("large", 2, &[("retention.ms", "-1"), ("max.message.bytes", "20000000")]);
    let own = (0..2).find(|partition| id.shard_of(*partition, 2) == 0).expect("neighbours are on both shards") as i32;
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    for (partition, code) in [(own, 0), (1 - own, 10)] {
        let answer = client.ask(9, &request(-1, vec![topic("large", &[(partition, Some(batch_of([value(9_000_000)])))])]));
        assert_eq!(answer.responses[0].partition_responses[0].error_code, code);
    }
    let answer = client.ask(9, &request(-1, vec![topic("large", &[(1 - own, Some(batch_of([value(8_000_000)])))])]));
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 0, "what fits memory is passed on");
}
