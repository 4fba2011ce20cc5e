//! What client libraries hide of Kafka's protocol: the order of answers, what is answered to every version of everything that is advertised, and what
//! becomes of a client that does not keep to it.

#[path = "support/kafka.rs"]
mod raw;
mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use corelane::batch::{self, BatchBuilder, BatchIter, Compression};
use corelane::kafka::APIS;
use corelane::request::OffsetSpec;
use corelane::types::TopicPartition;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::Request;
use raw::{KafkaConnection, answer_of, fetch, produce, topic_name};
use support::{Broker, batch_of};

/// Complains where answers do not come in the order of their requests.
fn check_order(asked: &[i32], answered: &[i32]) -> Result<(), String> {
    match asked.iter().zip(answered).position(|(asked, answered)| asked != answered) {
        Some(at) => Err(format!("answer {at} is to request {}, not {}", answered[at], asked[at])),
        None if asked.len() != answered.len() => Err(format!("{} answers to {} requests", answered.len(), asked.len())),
        None => Ok(()),
    }
}

#[test]
fn swapped_answers_are_noticed() {
    assert_eq!(check_order(&[1, 2, 3], &[1, 2, 3]), Ok(()));
    assert!(check_order(&[1, 2, 3], &[1, 3, 2]).is_err() && check_order(&[1, 2], &[1]).is_err() && check_order(&[1], &[1, 2]).is_err());
}

fn metadata(topic: &str) -> MetadataRequest {
    let topic = metadata_request::MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(false)
}

#[test]
fn answers_wait_for_the_poll_before_them_and_appends_do_not() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    let id = broker.connect().create("ordered", 4, &[("retention.ms", "-1")]);
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    let begun = Instant::now();
    let mut asked = vec![client.send(12, &fetch("ordered", 0, 0, 1 << 20, 1500))];
    for number in 0..50 {
        let batch = batch_of([format!("{number}")]);
        asked.push(client.send(9, &produce("ordered", 1 + number % 3, [1, -1][number as usize % 2], &batch)));
        asked.push(client.send(9, &metadata("ordered")));
    }
    asked.push(client.send(11, &fetch("ordered", 1, 0, 1 << 20, 0)));

    // What was appended is there long before anything is answered, and nobody else waits for the poll.
    for partition in 1..4 {
        let place = TopicPartition { topic: id, partition };
        let expected: Vec<_> = (0..50).filter(|number| 1 + number % 3 == partition).map(|number| number.to_string().into_bytes()).collect();
        let mut native = broker.connect_owner(place);
        let mut seen = Vec::new();
        while seen.len() < expected.len() && begun.elapsed() < Duration::from_millis(1400) {
            seen = native.read_all(place, 0).into_iter().map(|(_, value)| value).collect();
        }
        assert_eq!(seen, expected, "appends are in the order of their requests");
    }
    assert!(begun.elapsed() < Duration::from_millis(1400));
    let answered: Vec<_> = asked.iter().map(|_| client.receive()).collect();
    assert!(begun.elapsed() >= Duration::from_millis(1500), "the poll waited");
    check_order(&asked, &answered.iter().map(|(correlation, _)| *correlation).collect::<Vec<_>>()).expect("in order");
    let (correlation, last) = answered.into_iter().last().expect("answers");
    let fetched = answer_of::<FetchRequest>(correlation, 11, last);
    let records = fetched.responses[0].partitions[0].records.clone().expect("records");
    assert_eq!(BatchIter::new(&records).count(), 17);
}

#[test]
fn a_broker_that_stops_answers_what_has_come() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    let id = broker.connect().create("stopping", 2, &[("retention.ms", "-1")]);
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    let asked = [
        client.send(12, &fetch("stopping", 0, 0, 1 << 20, 50_000)),
        client.send(9, &produce("stopping", 1, -1, &batch_of(["x"]))),
        client.send(9, &metadata("stopping")),
    ];
    let place = TopicPartition { topic: id, partition: 1 };
    support::eventually("it is appended", || broker.connect_owner(place).offset(place, OffsetSpec::Latest) == 1);
    let stopped = std::thread::spawn(move || broker.stop());
    let answered = asked.map(|_| client.receive().0);
    check_order(&asked, &answered).expect("what waited behind the fetch too");
    assert!(client.try_receive().is_none());
    assert_eq!(stopped.join().expect("it stops"), 0);
}

#[test]
fn without_acknowledgement_nothing_is_answered_and_a_failure_closes_the_connection() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    let id = broker.connect().create("silent", 2, &[("retention.ms", "-1")]);
    for version in [3, 9, 11] {
        let mut client = KafkaConnection::open(&broker.addresses[0]);
        for number in 0..20 {
            client.send(version, &produce("silent", number % 2, 0, &batch_of([format!("{version} {number}")])));
        }
        let last = client.send(9, &metadata("silent"));
        assert_eq!(client.receive_as::<MetadataRequest>(9).0, last, "the next answer is to the next request");
    }
    for partition in 0..2 {
        let place = TopicPartition { topic: id, partition };
        support::eventually("all is appended", || broker.connect_owner(place).read_all(place, 0).len() == 30);
    }
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    client.send(9, &produce("never", 0, 0, &batch_of(["x"])));
    assert!(client.try_receive().is_none(), "its client looks for metadata anew");
}

#[test]
fn every_version_of_everything_advertised_is_answered() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    broker.connect().create("asked", 2, &[("retention.ms", "-1")]);
    let mut client = KafkaConnection::open(&broker.addresses[1]);
    for version in 0..=4 {
        let answer = client.ask(version, &ApiVersionsRequest::default());
        let listed: Vec<_> = answer.api_keys.iter().map(|api| (api.api_key, (api.min_version, api.max_version))).collect();
        let served: Vec<_> = APIS.iter().map(|api| (api.key as i16, api.advertised)).collect();
        assert_eq!((answer.error_code, listed), (0, served));
    }
    fn ask_all<R: Request + Default>(client: &mut KafkaConnection, asked: &mut Vec<i16>) {
        let api = APIS.iter().find(|api| api.key as i16 == R::KEY).expect("it is served");
        for version in api.advertised.0..=api.advertised.1 {
            client.ask(version, &R::default());
        }
        asked.push(R::KEY);
    }
    let mut asked = vec![ProduceRequest::KEY, ApiVersionsRequest::KEY];
    ask_all::<FetchRequest>(&mut client, &mut asked);
    ask_all::<ListOffsetsRequest>(&mut client, &mut asked);
    ask_all::<MetadataRequest>(&mut client, &mut asked);
    ask_all::<CreateTopicsRequest>(&mut client, &mut asked);
    ask_all::<DeleteTopicsRequest>(&mut client, &mut asked);
    ask_all::<DeleteRecordsRequest>(&mut client, &mut asked);
    ask_all::<InitProducerIdRequest>(&mut client, &mut asked);
    ask_all::<OffsetForLeaderEpochRequest>(&mut client, &mut asked);
    ask_all::<DescribeConfigsRequest>(&mut client, &mut asked);
    ask_all::<AlterConfigsRequest>(&mut client, &mut asked);
    ask_all::<DescribeLogDirsRequest>(&mut client, &mut asked);
    ask_all::<CreatePartitionsRequest>(&mut client, &mut asked);
    ask_all::<IncrementalAlterConfigsRequest>(&mut client, &mut asked);
    ask_all::<ElectLeadersRequest>(&mut client, &mut asked);
    ask_all::<AlterPartitionReassignmentsRequest>(&mut client, &mut asked);
    ask_all::<ListPartitionReassignmentsRequest>(&mut client, &mut asked);
    ask_all::<DescribeClusterRequest>(&mut client, &mut asked);
    ask_all::<FindCoordinatorRequest>(&mut client, &mut asked);
    ask_all::<JoinGroupRequest>(&mut client, &mut asked);
    ask_all::<SyncGroupRequest>(&mut client, &mut asked);
    ask_all::<HeartbeatRequest>(&mut client, &mut asked);
    ask_all::<LeaveGroupRequest>(&mut client, &mut asked);
    ask_all::<OffsetCommitRequest>(&mut client, &mut asked);
    ask_all::<OffsetFetchRequest>(&mut client, &mut asked);
    ask_all::<OffsetDeleteRequest>(&mut client, &mut asked);
    ask_all::<DescribeGroupsRequest>(&mut client, &mut asked);
    ask_all::<ListGroupsRequest>(&mut client, &mut asked);
    ask_all::<DeleteGroupsRequest>(&mut client, &mut asked);
    asked.sort_unstable();
    assert_eq!(asked, APIS.iter().map(|api| api.key as i16).collect::<Vec<_>>());

    for version in 3..=11 {
        let answer = client.ask(version, &produce("asked", 1, -1, &batch_of([format!("{version}")])));
        let partition = &answer.responses[0].partition_responses[0];
        assert_eq!((partition.index, partition.error_code, partition.base_offset), (1, 0, i64::from(version) - 3));
    }
    for version in 4..=12 {
        let mut request = fetch("asked", 1, 2, 1 << 20, 0);
        request.isolation_level = 1;
        let answer = client.ask(version, &request);
        let partition = &answer.responses[0].partitions[0];
        assert_eq!((answer.error_code, answer.session_id, answer.throttle_time_ms), (0, 0, 0));
        assert_eq!((partition.high_watermark, partition.last_stable_offset), (9, 9));
        assert!(partition.aborted_transactions.as_ref().is_none_or(|aborted| aborted.is_empty()));
        let records = partition.records.clone().expect("records");
        let offsets: Vec<_> = BatchIter::new(&records).map(|b| b.expect("a batch").0.base_offset).collect();
        assert_eq!(offsets, [2, 3, 4, 5, 6, 7, 8]);
    }
    let producer = client.ask(4, &InitProducerIdRequest::default().with_transactional_id(Some(TransactionalId("t".into()))));
    assert_eq!((producer.error_code, producer.producer_id.0), (35, -1));
    let metadata = client.ask(0, &MetadataRequest::default().with_topics(Some(vec![])));
    assert_eq!(metadata.topics.len(), 2, "in version 0 no names are all topics, that of the groups too");
    let metadata = client.ask(1, &MetadataRequest::default().with_topics(Some(vec![])));
    assert_eq!(metadata.topics.len(), 0, "from version 1 on they are none");
    let cluster = client.ask(0, &DescribeClusterRequest::default());
    assert!(cluster.brokers.iter().any(|broker| broker.broker_id == cluster.controller_id) && cluster.brokers.len() == 2);
}

#[test]
fn a_version_that_is_not_known_is_told_which_are_and_what_is_not_served_closes() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &[]);
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    let (correlation, mut frame) = client.frame(4, &ApiVersionsRequest::default());
    frame[6..8].copy_from_slice(&99_i16.to_be_bytes());
    client.socket.write_all(&frame).expect("sent");
    let (answered, rest) = client.receive();
    let answer = answer_of::<ApiVersionsRequest>(answered, 0, rest);
    assert_eq!((answered, answer.error_code, answer.api_keys.len()), (correlation, 35, 1));
    assert_eq!(client.ask(3, &ApiVersionsRequest::default()).error_code, 0, "the connection goes on");

    for (key, version) in [(3_i16, 10_i16), (24, 0), (999, 0), (-1, 0), (1, 3)] {
        let (_, mut frame) = client.frame(0, &MetadataRequest::default().with_topics(Some(vec![])));
        frame[4..6].copy_from_slice(&key.to_be_bytes());
        frame[6..8].copy_from_slice(&version.to_be_bytes());
        let mut other = KafkaConnection::open(&broker.addresses[0]);
        other.socket.write_all(&frame).expect("sent");
        assert!(other.try_receive().is_none(), "API {key}, version {version}");
    }
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 2, 0, 1, 0, 1], &[0, 0, 0, 0, 0, 0, 0, 0], &[0xff; 16], b"\xC0RELANe\n"] {
        let mut other = KafkaConnection::open(&broker.addresses[0]);
        other.socket.write_all(bytes).expect("sent");
        assert!(other.try_receive().is_none(), "{bytes:?}");
    }
}

#[test]
fn refusals_have_kafkas_codes() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    broker.connect().create("refusing", 2, &[("retention.ms", "-1")]);
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    let good = batch_of(["x"]);
    let mut code = |version, request: &ProduceRequest| {
        let answer = client.ask(version, request);
        let partition = answer.responses[0].partition_responses[0].clone();
        assert!(version < 8 || partition.error_message.is_some() == (partition.error_code != 0));
        (partition.error_code, partition.base_offset)
    };
    assert_eq!(code(9, &produce("never", 0, 1, &good)), (3, -1));
    assert_eq!(code(9, &produce("refusing", 2, 1, &good)), (3, -1));
    assert_eq!(code(9, &produce("refusing", -1, 1, &good)), (3, -1));
    assert_eq!(code(9, &produce("refusing", 0, 2, &good)), (21, -1));
    assert_eq!(code(9, &produce("refusing", 0, 1, &good).with_transactional_id(Some(TransactionalId("t".into())))), (35, -1));
    let changed = |at: usize, value: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = value;
        let crc = corelane::checksum::crc32c(&bytes[batch::CRC_START..]);
        batch::stamp_crc(&mut bytes, crc);
        Bytes::from(bytes)
    };
    assert_eq!(code(9, &produce("refusing", 0, 1, &changed(16, 1))), (87, -1), "an older format");
    assert_eq!(code(9, &produce("refusing", 0, 1, &changed(22, 0x20))), (87, -1), "a control batch");
    assert_eq!(code(9, &produce("refusing", 0, 1, &changed(22, 0x10))), (87, -1), "a transactional batch");
    assert_eq!(code(9, &produce("refusing", 0, 1, &changed(22, 7))), (76, -1), "no codec");
    assert_eq!(code(9, &produce("refusing", 0, 1, &changed(26, 3))), (87, -1), "a count that is not that of the offsets");
    assert_eq!(code(9, &produce("refusing", 0, 1, &[good.clone(), good.clone()].concat().into())), (2, -1), "two batches");
    let mut torn = good.to_vec();
    torn[30] ^= 1;
    assert_eq!(code(9, &produce("refusing", 0, 1, &torn.into())), (2, -1), "a byte that changed");
    assert_eq!(code(9, &produce("refusing", 0, 1, &Bytes::new())), (2, -1));
    let mut zstd = BatchBuilder::new(Compression::Zstd);
    zstd.append(1, None, Some(&[0; 1000]), &[]).expect("it fits");
    let zstd = zstd.build();
    assert_eq!(code(6, &produce("refusing", 0, 1, &zstd)), (76, -1), "zstd before version 7");
    assert_eq!(code(7, &produce("refusing", 0, 1, &zstd)), (0, 0));

    // Versions without record batches, by hand: the codec can't write them.
    for version in 0..=2_i16 {
        let mut body = Vec::new();
        body.extend_from_slice(&[0, 1, 0, 0, 0, 9, 0, 0, 0, 1, 0, 8]);
        body.extend_from_slice(b"refusing");
        body.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3]);
        let head = [&[0, 0][..], &version.to_be_bytes(), &[0, 0, 0, 77, 0xff, 0xff]].concat();
        client.socket.write_all(&(head.len() as u32 + body.len() as u32).to_be_bytes()).expect("sent");
        client.socket.write_all(&[head, body].concat()).expect("sent");
        let (correlation, rest) = client.receive();
        let refused = b"\0\0\0\x01\0\x08refusing\0\0\0\x01\0\0\0\0\0\x23\xff\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!((correlation, &rest[..refused.len()]), (77, &refused[..]), "UNSUPPORTED_VERSION for the partition");
    }

    let answer = client.ask(12, &fetch("never", 0, 0, 1 << 20, 60_000));
    assert_eq!(answer.responses[0].partitions[0].error_code, 3, "and at once");
    let answer = client.ask(12, &fetch("refusing", 0, 99, 1 << 20, 60_000));
    assert_eq!(answer.responses[0].partitions[0].error_code, 1);
    let mut stale = fetch("refusing", 0, 0, 1 << 20, 0);
    stale.topics[0].partitions[0].current_leader_epoch = 1000;
    assert_eq!(client.ask(12, &stale).responses[0].partitions[0].error_code, 75);
    assert_eq!(client.ask(12, &fetch("refusing", 0, 0, 1 << 20, 0).with_session_id(5).with_session_epoch(1)).error_code, 70);
}

#[test]
fn a_client_that_takes_nothing_costs_a_bounded_amount_and_nobody_else() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "1", "--admin-listen", "127.0.0.1:0"]);
    let id = broker.connect().create("read", 1, &[("retention.ms", "-1")]);
    let place = TopicPartition { topic: id, partition: 0 };
    let mut native = broker.connect();
    for _ in 0..64 {
        native.produce(place, &batch_of([vec![7; 500_000]])).outcome.expect("appended");
    }
    let mut lazy = KafkaConnection::open(&broker.addresses[0]);
    lazy.socket.set_nonblocking(true).expect("a socket option");
    let mut asked = Vec::new();
    for _ in 0..200 {
        let (correlation, frame) = lazy.frame(11, &fetch("read", 0, 0, 4 << 20, 0));
        if lazy.socket.write(&frame).is_ok_and(|sent| sent == frame.len()) {
            asked.push(correlation);
        }
    }
    lazy.socket.set_nonblocking(false).expect("a socket option");
    let begun = Instant::now();
    let mut other = KafkaConnection::open(&broker.addresses[0]);
    for _ in 0..20 {
        assert_eq!(other.ask(9, &produce("read", 0, -1, &batch_of(["small"]))).responses[0].partition_responses[0].error_code, 0);
        assert!(
            other.ask(11, &fetch("read", 0, 0, 1 << 20, 0)).responses[0].partitions[0].records.as_ref().is_some_and(|r| r.len() > 400_000)
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    std::thread::sleep(Duration::from_millis(1500));
    let held = broker.metric("memory_send_bytes");
    assert!(held <= 24 << 20, "{held} bytes wait for the one that takes nothing");
    assert!(asked.len() > 100);
    let answered: Vec<_> = asked.iter().map(|_| lazy.receive().0).collect();
    check_order(&asked, &answered).expect("in order, when it takes them at last");
}

#[test]
fn many_requests_at_once_are_answered_in_order() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    broker.connect().create("many", 4, &[("retention.ms", "-1")]);
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    let mut sender = client.sender();
    let mut frames = Vec::new();
    let mut asked = Vec::new();
    for number in 0..3000 {
        let (correlation, frame) = match number % 4 {
            0 => sender.frame(9, &metadata("many")),
            1 => sender.frame(11, &fetch("many", number % 3, 0, 100, 0)),
            _ => sender.frame(9, &produce("many", number % 4, -1, &batch_of([format!("{number}")]))),
        };
        asked.push(correlation);
        frames.extend_from_slice(&frame);
    }
    let writer = std::thread::spawn(move || sender.socket.write_all(&frames).expect("the broker reads"));
    let answered: Vec<_> = asked.iter().map(|_| client.receive().0).collect();
    writer.join().expect("sent");
    check_order(&asked, &answered).expect("in order");
}

#[test]
fn bytes_at_random_do_no_harm() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "1"]);
    broker.connect().create("fuzzed", 1, &[("retention.ms", "-1")]);
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300 {
        let mut client = KafkaConnection::open(&broker.addresses[0]);
        let (_, mut frame) = match round % 4 {
            0 => client.frame(9, &produce("fuzzed", 0, -1, &batch_of(["x"]))),
            1 => client.frame(12, &fetch("fuzzed", 0, 0, 1 << 20, 0)),
            2 => client.frame(9, &metadata("fuzzed")),
            _ => client.frame(5, &CreateTopicsRequest::default().with_validate_only(true)),
        };
        for _ in 0..=random() % 4 {
            let at = 4 + random() as usize % (frame.len() - 4);
            frame[at] = random() as u8;
        }
        let _ = client.socket.write_all(&frame);
        // Either an answer or a closed connection; a request for no acknowledgement may get neither.
        client.socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket option");
        let _ = client.socket.read(&mut [0; 4096]);
    }
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    let answer = client.ask(9, &produce("fuzzed", 0, -1, &batch_of(["x"])));
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 0, "the broker lives");
}

#[test]
fn a_producer_is_told_the_time_that_the_broker_gave_its_records() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "1"]);
    let config = [("message.timestamp.type", "LogAppendTime"), ("max.message.bytes", "20000000")];
    let id = broker.connect().create("stamped", 1, &config);
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    for size in [10, 200_000, 9_000_000] {
        let before = now();
        let answer = client.ask(9, &produce("stamped", 0, -1, &batch_of([vec![1; size]])));
        let partition = answer.responses[0].partition_responses[0].clone();
        assert_eq!(partition.error_code, 0);
        assert!((before..=now()).contains(&partition.log_append_time_ms), "{size} bytes: {}", partition.log_append_time_ms);
        let (bytes, _) = broker.connect().fetch(TopicPartition { topic: id, partition: 0 }, partition.base_offset, 1, 0);
        let header = BatchIter::new(&bytes).next().expect("a batch").expect("whole").0;
        assert_eq!((header.log_append_time(), header.max_timestamp), (true, partition.log_append_time_ms));
    }
}

#[test]
fn every_broker_tells_the_length_of_its_own_partitions() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    broker.connect().create("long", 3, &[("retention.ms", "-1")]);
    let batch = batch_of([vec![3; 1000]]);
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    for partition in [1, 1, 2] {
        client.ask(9, &produce("long", partition, -1, &batch));
    }
    for (version, request) in [
        (1, DescribeLogDirsRequest::default().with_topics(None)),
        (4, {
            let of =
                describe_log_dirs_request::DescribableLogDirTopic::default().with_topic(topic_name("long")).with_partitions(vec![0, 1, 2]);
            DescribeLogDirsRequest::default().with_topics(Some(vec![of]))
        }),
    ] {
        let mut told = Vec::new();
        for address in &broker.addresses {
            let answer = KafkaConnection::open(address).ask(version, &request);
            let topics = answer.results[0].topics.iter().filter(|topic| topic.name == topic_name("long"));
            told.extend(topics.flat_map(|topic| &topic.partitions).map(|p| (p.partition_index, p.partition_size)));
        }
        told.sort_unstable();
        let len = batch.len() as i64;
        assert_eq!(told, [(0, 0), (1, 2 * len), (2, len)], "version {version}");
    }
}

/// A name that no topic can have, for thousands of partitions: what is said of each of them does not repeat it.
#[test]
fn an_answer_is_not_much_longer_than_its_request() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "1"]);
    broker.connect().create("real", 1, &[]);
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    for (name, partitions) in [("n".repeat(30_000), 6_000), ("real".to_owned(), 6_000)] {
        let data = |index| produce_request::PartitionProduceData::default().with_index(index).with_records(None);
        let topic = produce_request::TopicProduceData::default().with_name(topic_name(&name));
        let topic = topic.with_partition_data((1..=partitions).map(data).collect());
        let asked = ProduceRequest::default().with_acks(1).with_timeout_ms(1000).with_topic_data(vec![topic]);
        for version in [8, 11] {
            let (correlation, frame) = client.frame(version, &asked);
            client.socket.write_all(&frame).expect("the broker reads");
            let (answered, rest) = client.receive();
            assert_eq!(answered, correlation);
            assert!(rest.len() < 1_000_000, "{} bytes to a request of {}", rest.len(), frame.len());
            let answer = answer_of::<ProduceRequest>(answered, version, rest);
            let codes = answer.responses[0].partition_responses.iter().map(|partition| partition.error_code);
            assert!(codes.clone().count() == partitions as usize && codes.clone().all(|code| code == 3));
        }
    }
    // A string is never longer than the classic encoding allows, nor where the newer one could say so.
    let (_, mut frame) = client.frame(9, &metadata(&"n".repeat(30_000)));
    let at = frame.windows(3).position(|bytes| bytes == b"nnn").expect("the name");
    let longer = [&frame[..at - 3], &[0xc1, 0xb8, 0x02], &"n".repeat(40_000).into_bytes(), &frame[at + 30_000..]].concat();
    frame.clear();
    frame.extend_from_slice(&longer);
    let len = frame.len() as u32 - 4;
    frame[..4].copy_from_slice(&len.to_be_bytes());
    client.socket.write_all(&frame).expect("the broker reads");
    assert!(client.try_receive().is_none(), "it ends the connection");
    assert_eq!(broker.stop(), 0);
}
