//! Consumer groups by Kafka's protocol: librdkafka's members, and raw requests for what a client library hides.

#[path = "support/kafka.rs"]
mod raw;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use raw::{KafkaConnection, topic_name};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};
use support::{Broker, batch_of};

const PATIENCE: Duration = Duration::from_secs(60);
/// Groups of tests need not wait for more members.
const NO_DELAY: [&str; 2] = ["--group-initial-rebalance-delay-ms", "0"];

fn group(id: &str) -> GroupId {
    GroupId(StrBytes::from_string(id.into()))
}

fn name(text: &str) -> StrBytes {
    StrBytes::from_string(text.into())
}

/// A member as a client library would be one, on a connection of its own.
struct Member {
    connection: KafkaConnection,
    group: &'static str,
    id: StrBytes,
    generation: i32,
    is_leader: bool,
}

impl Member {
    /// A member of a group, at any shard.
    fn new(address: &str, group: &'static str) -> Member {
        Member { connection: KafkaConnection::open(address), group, id: name(""), generation: -1, is_leader: false }
    }

    fn join_request(&self) -> JoinGroupRequest {
        let protocol = JoinGroupRequestProtocol::default().with_name(name("range")).with_metadata(b"anything"[..].into());
        JoinGroupRequest::default()
            .with_group_id(group(self.group))
            .with_session_timeout_ms(10_000)
            .with_rebalance_timeout_ms(10_000)
            .with_member_id(self.id.clone())
            .with_protocol_type(name("consumer"))
            .with_protocols(vec![protocol])
    }

    /// Joins, with the id that is asked for first; the members that the leader is told.
    fn join(&mut self) -> Vec<StrBytes> {
        let first = self.connection.ask(5, &self.join_request());
        let joined = if first.error_code == 79 {
            self.id = first.member_id;
            self.connection.ask(5, &self.join_request())
        } else {
            first
        };
        assert_eq!(joined.error_code, 0);
        self.id = joined.member_id;
        self.generation = joined.generation_id;
        self.is_leader = joined.leader == self.id;
        joined.members.into_iter().map(|member| member.member_id).collect()
    }

    fn sync(&mut self, assignments: &[(StrBytes, &'static [u8])]) -> SyncGroupResponse {
        let given = assignments
            .iter()
            .map(|(id, bytes)| SyncGroupRequestAssignment::default().with_member_id(id.clone()).with_assignment((*bytes).into()));
        let request = SyncGroupRequest::default()
            .with_group_id(group(self.group))
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone())
            .with_assignments(given.collect());
        self.connection.ask(3, &request)
    }

    fn heartbeat(&mut self) -> i16 {
        let request = HeartbeatRequest::default()
            .with_group_id(group(self.group))
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone());
        self.connection.ask(3, &request).error_code
    }

    fn commit(&mut self, topic: &str, partition: i32, offset: i64) -> i16 {
        let generation = self.generation;
        commit(&mut self.connection, self.group, generation, &self.id, topic, partition, offset)
    }

    fn leave(&mut self) -> i16 {
        let identity = MemberIdentity::default().with_member_id(self.id.clone());
        let left = self.connection.ask(3, &LeaveGroupRequest::default().with_group_id(group(self.group)).with_members(vec![identity]));
        assert_eq!(left.error_code, 0);
        left.members[0].error_code
    }
}

fn commit(connection: &mut KafkaConnection, of: &str, generation: i32, member: &StrBytes, topic: &str, partition: i32, offset: i64) -> i16 {
    let partition = OffsetCommitRequestPartition::default().with_partition_index(partition).with_committed_offset(offset);
    let partition = partition.with_committed_metadata(Some(name("words")));
    let topic = OffsetCommitRequestTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(group(of))
        .with_generation_id_or_member_epoch(generation)
        .with_member_id(member.clone())
        .with_topics(vec![topic]);
    let answer = connection.ask(7, &request);
    answer.topics[0].partitions[0].error_code
}

/// Position of a group in partition 0 of a topic, and its words.
fn position(connection: &mut KafkaConnection, of: &str, topic: &str) -> (i64, String) {
    let wanted = OffsetFetchRequestTopic::default().with_name(topic_name(topic)).with_partition_indexes(vec![0]);
    let answer = connection.ask(5, &OffsetFetchRequest::default().with_group_id(group(of)).with_topics(Some(vec![wanted])));
    assert_eq!(answer.error_code, 0);
    let partition = &answer.topics[0].partitions[0];
    assert_eq!(partition.error_code, 0);
    (partition.committed_offset, partition.metadata.clone().unwrap_or_default().to_string())
}

/// The same request until the coordinator has loaded.
fn loaded<T>(mut ask: impl FnMut() -> (i16, T)) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask() {
            (0, answer) => return answer,
            (14..=16, _) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            (code, _) => panic!("error {code}"),
        }
    }
}

#[test]
fn members_share_a_group_through_any_shard_and_find_it_again_after_a_kill() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "3", "--group-initial-rebalance-delay-ms", "300"]);
    broker.connect().create("orders", 2, &[("retention.ms", "-1")]);
    // Each at another shard: at most one of them is the coordinator's.
    let mut first = Member::new(&broker.addresses[0], "g");
    let mut second = Member::new(&broker.addresses[1], "g");
    let joined = std::thread::scope(|scope| {
        let other = scope.spawn(|| second.join());
        let mine = first.join();
        [mine, other.join().expect("joined")].concat()
    });
    assert_eq!(joined.len(), 2, "one leader is told of both");
    assert_eq!((first.generation, second.generation), (1, 1));
    let (leader, follower) = if first.is_leader { (&mut first, &mut second) } else { (&mut second, &mut first) };
    let synced = std::thread::scope(|scope| {
        let (leader_id, follower_id) = (leader.id.clone(), follower.id.clone());
        let other = scope.spawn(|| follower.sync(&[]));
        let mine = leader.sync(&[(leader_id, b"left"), (follower_id, b"right")]);
        [mine, other.join().expect("synced")]
    });
    assert_eq!(synced.map(|answer| (answer.error_code, answer.assignment.to_vec())), [(0, b"left".to_vec()), (0, b"right".to_vec())]);
    assert_eq!((leader.heartbeat(), follower.heartbeat()), (0, 0));
    assert_eq!(leader.commit("orders", 0, 17), 0);
    assert_eq!(leader.commit("orders", 7, 1), 3, "no such partition");
    assert_eq!(leader.commit("payments", 0, 1), 3, "no such topic");
    let mut other = KafkaConnection::open(&broker.addresses[2]);
    assert_eq!(position(&mut other, "g", "orders"), (17, "words".into()));

    let (leader_id, generation) = (leader.id.clone(), leader.generation);
    broker.kill();
    let broker = Broker::start(data.path(), &["--shards", "2", "--group-initial-rebalance-delay-ms", "300"]);
    let mut again = KafkaConnection::open(&broker.addresses[1]);
    let wanted = OffsetFetchRequestTopic::default().with_name(topic_name("orders")).with_partition_indexes(vec![0]);
    let fetch = OffsetFetchRequest::default().with_group_id(group("g")).with_topics(Some(vec![wanted]));
    loaded(|| (again.ask(5, &fetch).error_code, ()));
    assert_eq!(position(&mut again, "g", "orders"), (17, "words".into()));
    // The generation is the log's: its members go on.
    let mut member = Member { connection: again, group: "g", id: leader_id, generation, is_leader: true };
    assert_eq!(member.heartbeat(), 0);
    assert_eq!(member.commit("orders", 0, 18), 0);
    assert_eq!(broker.stop(), 0);
}

#[test]
fn refusals_have_kafkas_codes() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &[&["--shards", "2"][..], &NO_DELAY].concat());
    broker.connect().create("orders", 1, &[("retention.ms", "-1")]);
    let mut member = Member::new(&broker.addresses[0], "g");
    let members = member.join();
    assert_eq!(members, [member.id.clone()]);
    assert_eq!(member.sync(&[(member.id.clone(), b"all")]).error_code, 0);

    assert_eq!(member.commit("orders", 0, 3), 0);
    let (generation, id) = (member.generation, member.id.clone());
    let connection = &mut member.connection;
    assert_eq!(commit(connection, "g", generation + 1, &id, "orders", 0, 4), 22, "illegal generation");
    assert_eq!(commit(connection, "g", generation, &name("nobody"), "orders", 0, 4), 25, "unknown member");
    assert_eq!(commit(connection, "other", generation, &id, "orders", 0, 4), 22, "no such group");
    assert_eq!(position(connection, "g", "orders").0, 3, "what is refused changes nothing");
    member.generation += 1;
    assert_eq!(member.heartbeat(), 22);
    member.generation -= 1;
    member.id = name("nobody");
    assert_eq!(member.heartbeat(), 25);
    assert_eq!(member.leave(), 25);
    member.id = id;
    // Joins of another kind, with impossible time-outs, of nameless groups.
    let refused = |connection: &mut KafkaConnection, request: JoinGroupRequest| connection.ask(5, &request).error_code;
    let join = member.join_request().with_member_id(name(""));
    let connection = &mut member.connection;
    assert_eq!(refused(connection, join.clone().with_session_timeout_ms(10)), 26);
    assert_eq!(refused(connection, join.clone().with_group_id(group(""))), 24);
    assert_eq!(refused(connection, join.clone().with_protocol_type(name("connect"))), 23);
    assert_eq!(refused(connection, join.clone().with_member_id(name("made-up"))), 25);
    // Deletion: of a group with members, of one that is not there, of an empty one with its positions.
    let delete = |connection: &mut KafkaConnection, id: &str| {
        let answer = connection.ask(2, &DeleteGroupsRequest::default().with_groups_names(vec![group(id)]));
        answer.results[0].error_code
    };
    assert_eq!(delete(connection, "g"), 68);
    assert_eq!(delete(connection, "none"), 69);
    assert_eq!(member.leave(), 0);
    assert_eq!(delete(&mut member.connection, "g"), 0);
    assert_eq!(position(&mut member.connection, "g", "orders").0, -1);
    assert_eq!(broker.stop(), 0);
}

#[test]
fn groups_are_found_listed_and_described_once() {
    let data = tempfile::tempdir().expect("a directory");
    // Three shards behind two addresses.
    let flags = [&["--shards", "3", "--advertised-endpoints", "2"][..], &NO_DELAY].concat();
    let broker = Broker::start(data.path(), &flags);
    broker.connect().create("orders", 1, &[("retention.ms", "-1")]);
    let names = ["a", "b", "c", "d", "e"];
    let mut connections: Vec<_> = broker.addresses.iter().take(2).map(|address| KafkaConnection::open(address)).collect();
    for of in names {
        assert_eq!(commit(&mut connections[0], of, -1, &name(""), "orders", 0, 5), 0, "a simple consumer's");
    }
    let keys: Vec<_> = names.iter().map(|of| name(of)).collect();
    let found = connections[0].ask(4, &FindCoordinatorRequest::default().with_coordinator_keys(keys.clone()));
    assert_eq!(
        found.coordinators.iter().map(|c| (c.error_code, c.key.clone())).collect::<Vec<_>>(),
        keys.iter().map(|k| (0, k.clone())).collect::<Vec<_>>()
    );
    let found_one = connections[1].ask(2, &FindCoordinatorRequest::default().with_key(name("c")));
    assert_eq!((found_one.error_code, found_one.node_id), (0, found.coordinators[2].node_id));
    let transactional = connections[1].ask(2, &FindCoordinatorRequest::default().with_key(name("c")).with_key_type(1));
    assert_ne!(transactional.error_code, 0, "transactions are not served");

    let mut listed = Vec::new();
    for connection in &mut connections {
        let answer = connection.ask(5, &ListGroupsRequest::default());
        assert_eq!(answer.error_code, 0);
        listed.extend(answer.groups.into_iter().map(|g| (g.group_id.0.to_string(), g.group_state.to_string(), g.group_type.to_string())));
    }
    listed.sort();
    assert_eq!(listed, names.map(|of| (of.to_string(), "Empty".to_string(), "classic".to_string())));
    let stable = connections[0].ask(4, &ListGroupsRequest::default().with_states_filter(vec![name("stable")]));
    assert_eq!((stable.error_code, stable.groups.len()), (0, 0));

    let mut member = Member::new(&broker.addresses[1], "a");
    member.join();
    member.sync(&[(member.id.clone(), b"all")]);
    let described = connections[0].ask(5, &DescribeGroupsRequest::default().with_groups(vec![group("a"), group("none")]));
    let shown: BTreeMap<_, _> =
        described.groups.iter().map(|g| (g.group_id.0.to_string(), (g.error_code, g.group_state.to_string(), g.members.len()))).collect();
    assert_eq!(shown, BTreeMap::from([("a".into(), (0, "Stable".into(), 1)), ("none".into(), (0, "Dead".into(), 0))]));
    let shown = &described.groups.iter().find(|g| g.group_id == group("a")).expect("described").members[0];
    assert_eq!((shown.client_id.as_str(), shown.client_host.as_str()), ("raw", "/127.0.0.1"));
    assert_eq!((&shown.member_assignment[..], &shown.member_metadata[..]), (&b"all"[..], &b"anything"[..]));
    assert_eq!(broker.stop(), 0);
}

#[test]
fn positions_in_a_deleted_topic_go_with_it() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    let mut admin = broker.connect();
    admin.create("orders", 1, &[("retention.ms", "-1")]);
    let mut connection = KafkaConnection::open(&broker.addresses[0]);
    assert_eq!(commit(&mut connection, "g", -1, &name(""), "orders", 0, 5), 0);
    admin.delete("orders");
    admin.create("orders", 1, &[("retention.ms", "-1")]);
    support::eventually("the position goes", || position(&mut connection, "g", "orders").0 == -1);
    assert_eq!(broker.stop(), 0);
}

/// After a clean stop a coordinator is loaded from the checkpoint alone; after a kill, from the last snapshot on.
#[test]
fn what_the_checkpoint_has_is_not_read_again() {
    const LOADED: &str = "group_records_loaded_total";
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2", "--admin-listen", "127.0.0.1:0"]);
    broker.connect().create("orders", 1, &[("retention.ms", "-1")]);
    let mut connection = KafkaConnection::open(&broker.addresses[0]);
    let last = corelane::limits::GROUP_SNAPSHOT_RECORDS as i64 + 100;
    for offset in 1..=last {
        assert_eq!(commit(&mut connection, "g", -1, &name(""), "orders", 0, offset), 0);
    }
    assert_eq!(broker.stop(), 0);
    let found = |broker: &Broker, offset: i64| {
        let mut connection = KafkaConnection::open(&broker.addresses[0]);
        let wanted = OffsetFetchRequestTopic::default().with_name(topic_name("orders")).with_partition_indexes(vec![0]);
        let fetch = OffsetFetchRequest::default().with_group_id(group("g")).with_topics(Some(vec![wanted]));
        loaded(|| (connection.ask(5, &fetch).error_code, ()));
        assert_eq!(position(&mut connection, "g", "orders").0, offset);
        connection
    };
    let broker = Broker::start(data.path(), &["--shards", "1", "--admin-listen", "127.0.0.1:0"]);
    let mut connection = found(&broker, last);
    assert_eq!(broker.metric(LOADED), 0);
    for offset in 1..=5 {
        assert_eq!(commit(&mut connection, "g", -1, &name(""), "orders", 0, offset), 0);
    }
    broker.kill();
    let broker = Broker::start(data.path(), &["--shards", "2", "--admin-listen", "127.0.0.1:0"]);
    found(&broker, 5);
    assert_eq!(broker.metric(LOADED), 5);
    assert_eq!(broker.stop(), 0);
}

fn consumer(broker: &Broker, of: &str, settings: &[(&str, &str)]) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.bootstrap()).set("group.id", of).set("auto.offset.reset", "earliest");
    config.set("session.timeout.ms", "6000").set("heartbeat.interval.ms", "200").set("enable.auto.commit", "false");
    for (key, value) in settings {
        config.set(*key, *value);
    }
    config.create().expect("a consumer")
}

/// Polls consumers in turn until `done` says so of the values so far; every value comes once.
fn poll_until(consumers: &[&BaseConsumer], seen: &mut BTreeSet<Vec<u8>>, done: impl Fn(&BTreeSet<Vec<u8>>) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done(seen) {
        assert!(Instant::now() < end, "{} values", seen.len());
        for consumer in consumers {
            if let Some(message) = consumer.poll(Duration::from_millis(20)) {
                let message = message.expect("a record");
                assert!(seen.insert(message.payload().expect("a value").to_vec()), "a record comes once");
            }
        }
    }
}

/// By every assignor of librdkafka: a member alone has all partitions, two share them, one that leaves gives them back, and after a kill of the broker a
/// group goes on from what it committed.
#[test]
fn librdkafkas_members_share_partitions_and_go_on_after_a_kill() {
    let data = tempfile::tempdir().expect("a directory");
    let flags = [&["--shards", "2"][..], &NO_DELAY].concat();
    let mut broker = Broker::start(data.path(), &flags);
    for strategy in ["range", "roundrobin", "cooperative-sticky"] {
        let topic = format!("shared-{strategy}");
        let id = broker.connect().create(&topic, 4, &[("retention.ms", "-1")]);
        let produce = |broker: &Broker, from: usize| {
            for n in from..from + 40 {
                let partition = corelane::types::TopicPartition { topic: id, partition: n as u32 % 4 };
                broker.connect_owner(partition).produce(partition, &batch_of([format!("{n}")])).outcome.expect("appended");
            }
        };
        produce(&broker, 0);
        let settings = [("partition.assignment.strategy", strategy)];
        let first = consumer(&broker, strategy, &settings);
        first.subscribe(&[&topic]).expect("subscribed");
        let mut seen = BTreeSet::new();
        poll_until(&[&first], &mut seen, |seen| seen.len() == 40);
        first.commit_consumer_state(CommitMode::Sync).expect("committed");

        let second = consumer(&broker, strategy, &settings);
        second.subscribe(&[&topic]).expect("subscribed");
        let assigned = |consumer: &BaseConsumer| consumer.assignment().expect("an assignment").count();
        let end = Instant::now() + PATIENCE;
        while (assigned(&first), assigned(&second)) != (2, 2) {
            assert!(Instant::now() < end, "{strategy}: {} and {}", assigned(&first), assigned(&second));
            for consumer in [&first, &second] {
                assert!(consumer.poll(Duration::from_millis(20)).is_none(), "nothing new");
            }
        }
        produce(&broker, 40);
        poll_until(&[&first, &second], &mut seen, |seen| seen.len() == 80);
        first.commit_consumer_state(CommitMode::Sync).expect("committed");
        second.commit_consumer_state(CommitMode::Sync).expect("committed");
        drop(second);
        let end = Instant::now() + PATIENCE;
        while assigned(&first) != 4 {
            assert!(Instant::now() < end, "{strategy}: {} partitions", assigned(&first));
            assert!(first.poll(Duration::from_millis(20)).is_none(), "nothing new");
        }
        drop(first);

        broker.kill();
        broker = Broker::start(data.path(), &flags);
        produce(&broker, 80);
        let again = consumer(&broker, strategy, &settings);
        again.subscribe(&[&topic]).expect("subscribed");
        poll_until(&[&again], &mut seen, |seen| seen.len() == 120);
        let mut partitions = TopicPartitionList::new();
        (0..4).for_each(|partition| _ = partitions.add_partition(&topic, partition));
        let committed = again.committed_offsets(partitions, PATIENCE).expect("positions");
        assert!(committed.elements().iter().all(|p| p.offset() == Offset::Offset(20)), "{committed:?}");
    }
    assert_eq!(broker.stop(), 0);
}
