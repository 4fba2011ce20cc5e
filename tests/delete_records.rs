//! Records that were deleted stay so, whatever ends the broker, and take nothing else with them.

#[path = "support/kafka.rs"]
mod raw;
mod support;

use std::path::Path;

use corelane::request::{Code, DeleteRecords, OffsetSpec, Refusal, Request, Response};
use corelane::types::{Offset, TopicPartition};
use kafka_protocol::messages::DeleteRecordsRequest;
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use raw::{KafkaConnection, topic_name};
use support::{Broker, Connection, batch_of};

fn delete(connection: &mut Connection, asked: &[(TopicPartition, Option<Offset>)]) -> Vec<Result<Offset, Refusal>> {
    let asked = asked.iter().map(|(partition, before)| DeleteRecords { partition: *partition, before: *before }).collect();
    match connection.ask(&Request::DeleteRecords(asked), &[]).0 {
        Response::RecordsDeleted(results) => results.into_iter().map(|result| result.outcome).collect(),
        other => panic!("{other:?}"),
    }
}

fn value(offset: Offset) -> Vec<u8> {
    [offset.to_string().as_bytes(), &[b'.'; 700]].concat()
}

/// Appends records up to `end`, ten a batch.
fn fill(broker: &Broker, place: TopicPartition, end: Offset) {
    let mut native = broker.connect_owner(place);
    let mut offset = native.offset(place, OffsetSpec::Latest);
    while offset < end {
        let appended = native.produce(place, &batch_of((offset..offset + 10).map(value))).outcome.expect("appended");
        assert_eq!(appended.base_offset, offset);
        offset += 10;
    }
}

/// The partition's records are those of [`start`, `end`), each with its value.
fn check(broker: &Broker, place: TopicPartition, start: Offset, end: Offset) {
    let mut native = broker.connect_owner(place);
    assert_eq!((native.offset(place, OffsetSpec::Earliest), native.offset(place, OffsetSpec::Latest)), (start, end));
    assert_eq!(native.read_all(place, start), (start..end).map(|offset| (offset, value(offset))).collect::<Vec<_>>());
    if start > 0 {
        let refused = native.try_fetch(place, start - 1).expect_err("deleted");
        assert_eq!(refused.code, Code::OffsetOutOfRange);
    }
}

/// Base offsets of the partition's segment files.
fn segments(data: &Path, place: TopicPartition) -> Vec<Offset> {
    let directory = data.join("topics").join(place.topic.to_string()).join(place.partition.to_string());
    let names = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    let mut bases: Vec<_> = names.filter_map(|name| name.to_str()?.strip_suffix(".log")?.parse().ok()).collect();
    bases.sort_unstable();
    bases
}

#[test]
fn what_is_deleted_stays_deleted_and_nothing_else_goes() {
    let data = tempfile::tempdir().expect("a directory");
    let flags = ["--shards", "2"];
    let broker = Broker::start(data.path(), &flags);
    let id = broker.connect().create("shrinking", 2, &[("retention.ms", "-1"), ("segment.bytes", "1048576")]);
    let [first, second] = [0, 1].map(|partition| TopicPartition { topic: id, partition });
    fill(&broker, first, 4000);
    fill(&broker, second, 100);
    assert_eq!(segments(data.path(), first).len(), 3);

    // In the middle of segments that are in memory, one of them of another shard: the rest must be flushed and read as before.
    let mut native = broker.connect();
    assert_eq!(delete(&mut native, &[(first, Some(25)), (second, Some(55))]), [Ok(25), Ok(55)]);
    assert_eq!(delete(&mut native, &[(first, Some(3)), (second, Some(55))]), [Ok(25), Ok(55)], "deleted already");
    let beyond = delete(&mut native, &[(first, Some(4001)), (second, Some(i64::MAX))]);
    assert!(beyond.iter().all(|outcome| outcome.as_ref().is_err_and(|refusal| refusal.code == Code::OffsetOutOfRange)), "{beyond:?}");
    let unknown = delete(&mut native, &[(TopicPartition { partition: 2, ..first }, None), (first, Some(26))]);
    assert_eq!((unknown[0].as_ref().map_err(|refusal| refusal.code), &unknown[1]), (Err(Code::UnknownTopicOrPartition), &Ok(26)));
    check(&broker, first, 26, 4000);
    check(&broker, second, 55, 100);
    broker.kill();

    let broker = Broker::start(data.path(), &flags);
    check(&broker, first, 26, 4000);
    check(&broker, second, 55, 100);
    fill(&broker, second, 200);
    assert_eq!(delete(&mut broker.connect(), &[(second, Some(155)), (first, Some(3333))]), [Ok(155), Ok(3333)]);
    support::eventually("whole segments go", || segments(data.path(), first).len() == 1);
    assert_eq!(broker.stop(), 0, "all of it is flushed");

    let broker = Broker::start(data.path(), &flags);
    check(&broker, first, 3333, 4000);
    check(&broker, second, 155, 200);
    // All of it: the open segment's file goes too.
    assert_eq!(delete(&mut broker.connect(), &[(first, None), (second, None)]), [Ok(4000), Ok(200)]);
    support::eventually("every file goes", || segments(data.path(), first) == [4000] && segments(data.path(), second) == [200]);
    broker.kill();
    let broker = Broker::start(data.path(), &flags);
    check(&broker, first, 4000, 4000);
    fill(&broker, second, 250);
    check(&broker, second, 200, 250);
    assert_eq!(broker.stop(), 0);
    let broker = Broker::start(data.path(), &flags);
    check(&broker, first, 4000, 4000);
    check(&broker, second, 200, 250);
}

#[test]
fn kafkas_request_has_kafkas_answers() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    let id = broker.connect().create("shrinking", 3, &[("retention.ms", "-1")]);
    let places = [0, 1, 2].map(|partition| TopicPartition { topic: id, partition });
    places.iter().for_each(|place| fill(&broker, *place, 30));
    let mut client = KafkaConnection::open(&broker.addresses[1]);
    for (version, before) in [(0, 3), (1, 13), (2, 23)] {
        let partition = |index, offset| DeleteRecordsPartition::default().with_partition_index(index).with_offset(offset);
        let asked = vec![partition(0, before), partition(1, -1), partition(2, 31), partition(2, -2), partition(3, 0), partition(2, 1)];
        let topic = |name| DeleteRecordsTopic::default().with_name(topic_name(name));
        let topics = vec![topic("shrinking").with_partitions(asked), topic("never").with_partitions(vec![partition(0, 0)])];
        let answer = client.ask(version, &DeleteRecordsRequest::default().with_topics(topics).with_timeout_ms(1000));
        let told = answer.topics[0].partitions.iter().map(|p| (p.partition_index, p.low_watermark, p.error_code)).collect::<Vec<_>>();
        assert_eq!(told, [(0, before, 0), (1, 30, 0), (2, -1, 1), (2, -1, 1), (3, -1, 3), (2, 1, 0)], "version {version}");
        assert_eq!(answer.topics[1].partitions[0].error_code, 3);
    }
    check(&broker, places[0], 23, 30);
    check(&broker, places[1], 30, 30);
    check(&broker, places[2], 1, 30);

    // Where records go by their keys only, nobody deletes the first ones.
    for (name, policy, code) in [("keyed", "compact", 44), ("both", "compact,delete", 0)] {
        broker.connect().create(name, 1, &[("cleanup.policy", policy)]);
        let first = DeleteRecordsPartition::default().with_partition_index(0).with_offset(-1);
        let topic = DeleteRecordsTopic::default().with_name(topic_name(name)).with_partitions(vec![first]);
        let answer = client.ask(2, &DeleteRecordsRequest::default().with_topics(vec![topic]));
        assert_eq!(answer.topics[0].partitions[0].error_code, code, "{policy}");
    }
}
