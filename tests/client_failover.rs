//! The native client in a cluster of several nodes: leaders move, nodes end, are silent or cut off, partitions are added. Nothing is lost, doubled
//! or out of order, and what is led elsewhere goes on.
//!
//! Where nothing but the right behaviour ends a wait, time-outs are so long that a test which needed one would not end.

#[path = "support/fake_cluster.rs"]
mod fake_cluster;

use std::time::Duration;

use corelane::client::{Client, ClientBuilder, Consumer, Partitioning, Producer, ProducerRecord, SeekTo};
use fake_cluster::{Cluster, Mode, TOPIC};

/// Longer than any test waits.
const NEVER: Duration = Duration::from_secs(3600);

/// What should come does so within this.
const LONG: Duration = Duration::from_secs(60);

fn client(addresses: &str) -> ClientBuilder {
    Client::builder(addresses).connect_timeout(NEVER).request_timeout(NEVER).retry_timeout(NEVER)
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it comes")
}

fn record(n: &[u8], partition: u32) -> ProducerRecord<'_> {
    ProducerRecord::to(TOPIC).value(n).partition(partition)
}

async fn send(producer: &Producer, partition: u32, numbers: std::ops::Range<u64>) {
    let mut deliveries = Vec::new();
    for n in numbers {
        deliveries.push(producer.send_nowait(record(&n.to_le_bytes(), partition)).await.unwrap());
    }
    for delivery in deliveries {
        within(delivery).await.unwrap();
    }
}

async fn read(consumer: &mut Consumer, count: usize) -> Vec<u64> {
    let mut values = Vec::new();
    while values.len() < count {
        let record = within(consumer.next_record()).await.unwrap().unwrap();
        values.push(u64::from_le_bytes(record.value.unwrap()[..].try_into().unwrap()));
    }
    values
}

#[tokio::test]
async fn a_leader_that_dies_is_followed_by_the_next() {
    let cluster = Cluster::start(3, 1).await;
    let client = client(&cluster.addresses(&[0, 1, 2])).connect().await.unwrap();
    let producer = client.producer().build().unwrap();
    let mut consumer = client.consumer().build().unwrap();
    consumer.assign(TOPIC, 0, SeekTo::Earliest).await.unwrap();
    send(&producer, 0, 0..50).await;
    assert_eq!(read(&mut consumer, 50).await, (0..50).collect::<Vec<_>>());
    // Batches are in the log, and nobody is told so.
    cluster.swallow_answers(2);
    let sending = {
        let producer = producer.clone();
        tokio::spawn(async move { send(&producer, 0, 50..300).await })
    };
    while cluster.end(0) < 60 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    cluster.set_mode(0, Mode::Gone);
    cluster.lead(0, None);
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.list(0, false);
    cluster.lead(0, Some(2));
    within(sending).await.unwrap();
    assert_eq!(read(&mut consumer, 250).await, (50..300).collect::<Vec<_>>());
    assert_eq!(cluster.end(0), 300, "nothing is there twice");
}

#[tokio::test]
async fn a_silent_node_holds_up_what_it_leads_and_nothing_else() {
    let cluster = Cluster::start(3, 2).await;
    let client = client(&cluster.addresses(&[0, 1])).connect().await.unwrap();
    let producer = client.producer().build().unwrap();
    let mut consumer = client.consumer().build().unwrap();
    consumer.assign_topic(TOPIC, SeekTo::Earliest).await.unwrap();
    send(&producer, 0, 0..1).await;
    assert_eq!(read(&mut consumer, 1).await, [0]);
    cluster.set_mode(0, Mode::Silent);
    let held_up = producer.send_nowait(record(&1u64.to_le_bytes(), 0)).await.unwrap();
    send(&producer, 1, 10..60).await;
    assert_eq!(read(&mut consumer, 50).await, (10..60).collect::<Vec<_>>());
    assert!(held_up.try_result().is_none());
    // The others say that it is away: nothing else would end the wait for its answers.
    cluster.list(0, false);
    cluster.lead(0, Some(2));
    within(held_up).await.unwrap();
    assert_eq!(read(&mut consumer, 1).await, [1]);
    // A client that starts now is told of the others by whoever speaks.
    let addresses = cluster.addresses(&[0, 1]);
    let late = within(self::client(&addresses).connect()).await.unwrap();
    assert_eq!(within(late.metadata()).await.unwrap().brokers.len(), 2);
}

#[tokio::test]
async fn a_node_that_is_cut_off_is_not_believed() {
    let cluster = Cluster::start(3, 1).await;
    let client = client(&cluster.addresses(&[0])).connect().await.unwrap();
    let producer = client.producer().build().unwrap();
    let mut consumer = client.consumer().build().unwrap();
    consumer.assign(TOPIC, 0, SeekTo::Earliest).await.unwrap();
    send(&producer, 0, 0..10).await;
    // It goes on saying that it leads, and takes nothing any more.
    cluster.freeze(0);
    cluster.lead(0, Some(1));
    send(&producer, 0, 10..20).await;
    assert_eq!(read(&mut consumer, 20).await, (0..20).collect::<Vec<_>>());
    // And it is asked again, as one of three, without harm.
    for n in 20..40 {
        cluster.lead(0, Some(n as usize % 2 + 1));
        send(&producer, 0, n..n + 1).await;
    }
    assert_eq!(read(&mut consumer, 20).await, (20..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_node_that_comes_back_is_used_again() {
    let cluster = Cluster::start(2, 1).await;
    let client = client(&cluster.addresses(&[0, 1])).connect().await.unwrap();
    let producer = client.producer().build().unwrap();
    let mut consumer = client.consumer().build().unwrap();
    consumer.assign(TOPIC, 0, SeekTo::Earliest).await.unwrap();
    for round in 0..6 {
        let (leads, rests) = (round % 2, (round + 1) % 2);
        cluster.set_mode(leads, Mode::Serves);
        cluster.lead(0, Some(leads));
        cluster.set_mode(rests, Mode::Gone);
        let first = 10 * round as u64;
        send(&producer, 0, first..first + 10).await;
        assert_eq!(read(&mut consumer, 10).await, (first..first + 10).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn new_partitions_are_noticed() {
    let cluster = Cluster::start(2, 1).await;
    let client = client(&cluster.addresses(&[0])).connect().await.unwrap();
    let age = Duration::from_millis(20);
    let producer = client.producer().partitioning(Partitioning::RoundRobin).metadata_max_age(age).build().unwrap();
    let mut consumer = client.consumer().metadata_max_age(age).build().unwrap();
    consumer.assign_topic(TOPIC, SeekTo::Earliest).await.unwrap();
    within(producer.send(ProducerRecord::to(TOPIC).value(&0u64.to_le_bytes()))).await.unwrap();
    cluster.add_partition(1);
    let mut sent = 1;
    within(async {
        while producer.send(ProducerRecord::to(TOPIC).value(&[0; 8])).await.unwrap().partition == 0 {
            sent += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(read(&mut consumer, sent + 1).await.len(), sent + 1);
}

/// With an end to patience, records of a partition that nobody leads are given up, and their failure says why.
#[tokio::test]
async fn a_partition_without_a_leader_ends_with_the_delivery_timeout() {
    let cluster = Cluster::start(1, 2).await;
    let client = client(&cluster.addresses(&[0])).connect().await.unwrap();
    let producer = client.producer().delivery_timeout(Duration::from_millis(400)).build().unwrap();
    send(&producer, 1, 0..1).await;
    cluster.lead(0, None);
    let failure = within(producer.send(record(&[0; 8], 0))).await.unwrap_err();
    assert!(failure.to_string().contains("not acknowledged within 400 ms"), "{failure}");
    send(&producer, 1, 1..2).await;
}
