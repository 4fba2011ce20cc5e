//! How long an answer of Kafka's protocol may be: in proportion to its request and to what there is, whatever is asked how often.

#[path = "support/kafka.rs"]
mod raw;
mod support;

use std::collections::BTreeSet;
use std::io::Write;

use corelane::kafka::APIS;
use corelane::limits::MAX_KAFKA_DETAILS;
use kafka_protocol::messages::incremental_alter_configs_request as incremental;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Request, StrBytes};
use raw::{KafkaConnection, topic_name};
use support::Broker;

/// Bytes of an answer for each byte of its request, at most.
const EXPANSION: usize = 16;
/// Bytes of an answer to a request of next to nothing, at most, in a cluster of two brokers and one topic.
const SMALLEST: usize = 8 * 1024;
/// As many things are named in a request as fit 1 MiB, or as many as are taken.
const MANY: i32 = 20_000;

/// Complains of an answer that is too long.
fn check(api: i16, asked: usize, answered: usize) -> Result<(), String> {
    let most = EXPANSION * asked + SMALLEST + MAX_KAFKA_DETAILS;
    if answered <= most { Ok(()) } else { Err(format!("API {api}: {answered} bytes to a request of {asked}, at most {most}")) }
}

#[test]
fn an_answer_that_is_too_long_is_noticed() {
    assert!(check(32, 100_000, 25_000_000).is_err(), "one topic described ten thousand times");
    assert_eq!(check(32, 100_000, 1_000_000), Ok(()));
}

/// The requests with the longest answers, one or more of every API.
struct Asker {
    client: KafkaConnection,
    asked: BTreeSet<i16>,
}

impl Asker {
    fn ask<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let (correlation, frame) = self.client.frame(version, request);
        self.client.socket.write_all(&frame).expect("the broker reads");
        let (answered, rest) = self.client.receive();
        assert_eq!(answered, correlation);
        check(R::KEY, frame.len(), rest.len()).unwrap_or_else(|error| panic!("{error}"));
        self.asked.insert(R::KEY);
        raw::answer_of::<R>(answered, version, rest)
    }
}

fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}

fn records(asker: &mut Asker, name: &str) {
    let data = |index| produce_request::PartitionProduceData::default().with_index(index).with_records(None);
    let topic = produce_request::TopicProduceData::default().with_name(topic_name(name)).with_partition_data((0..MANY).map(data).collect());
    asker.ask(11, &ProduceRequest::default().with_acks(1).with_timeout_ms(1000).with_topic_data(vec![topic]));

    let wanted = |index: i32| fetch_request::FetchPartition::default().with_partition(index % 3).with_fetch_offset(i64::from(index % 2));
    let topic = fetch_request::FetchTopic::default().with_topic(topic_name(name)).with_partitions((0..MANY).map(wanted).collect());
    asker.ask(12, &FetchRequest::default().with_replica_id((-1).into()).with_max_bytes(1 << 20).with_topics(vec![topic]));

    let wanted = |index: i32| list_offsets_request::ListOffsetsPartition::default().with_partition_index(index % 3).with_timestamp(5);
    let topic =
        list_offsets_request::ListOffsetsTopic::default().with_name(topic_name(name)).with_partitions((0..MANY).map(wanted).collect());
    asker.ask(7, &ListOffsetsRequest::default().with_topics(vec![topic]));

    let wanted = |index: i32| delete_records_request::DeleteRecordsPartition::default().with_partition_index(index % 3).with_offset(99);
    let topic = delete_records_request::DeleteRecordsTopic::default().with_name(topic_name(name));
    let topics = vec![topic.with_partitions((0..MANY).map(wanted).collect())];
    asker.ask(2, &DeleteRecordsRequest::default().with_topics(topics).with_timeout_ms(1000));

    let wanted = |index: i32| offset_for_leader_epoch_request::OffsetForLeaderPartition::default().with_partition(index % 3);
    let topic = offset_for_leader_epoch_request::OffsetForLeaderTopic::default().with_topic(topic_name(name));
    asker.ask(4, &OffsetForLeaderEpochRequest::default().with_topics(vec![topic.with_partitions((0..MANY).map(wanted).collect())]));

    let topic = describe_log_dirs_request::DescribableLogDirTopic::default().with_topic(topic_name(name));
    let topics = vec![topic.with_partitions((0..MANY).map(|index| index % 3).collect())];
    asker.ask(4, &DescribeLogDirsRequest::default().with_topics(Some(topics)));
}

fn topics(asker: &mut Asker, name: impl Fn(i32) -> String) {
    let topic = |n| metadata_request::MetadataRequestTopic::default().with_name(Some(topic_name(&name(n))));
    asker.ask(9, &MetadataRequest::default().with_topics(Some((0..MANY).map(topic).collect())).with_allow_auto_topic_creation(false));

    for setting in ["retention.ms", "?"] {
        let config = create_topics_request::CreatableTopicConfig::default().with_name(text(setting)).with_value(Some(text("1")));
        let topic = |n| {
            let topic = create_topics_request::CreatableTopic::default().with_name(topic_name(&name(n))).with_num_partitions(1);
            topic.with_replication_factor(1).with_configs(vec![config.clone()])
        };
        asker.ask(6, &CreateTopicsRequest::default().with_topics((0..MANY).map(topic).collect()).with_validate_only(true));
    }
    asker.ask(5, &DeleteTopicsRequest::default().with_topic_names((0..MANY).map(|n| topic_name(&format!("no{}", name(n)))).collect()));
    let topic = |n| create_partitions_request::CreatePartitionsTopic::default().with_name(topic_name(&name(n))).with_count(1);
    asker.ask(3, &CreatePartitionsRequest::default().with_topics((0..MANY).map(topic).collect()));
}

fn settings(asker: &mut Asker, name: impl Fn(i32) -> String) -> DescribeConfigsResponse {
    let config = alter_configs_request::AlterableConfig::default().with_name(text("?")).with_value(Some(text("1")));
    let resource = |n| {
        let resource = alter_configs_request::AlterConfigsResource::default().with_resource_type(2).with_resource_name(text(name(n)));
        resource.with_configs(vec![config.clone()])
    };
    asker.ask(2, &AlterConfigsRequest::default().with_resources((0..MANY).map(resource).collect()));
    let config = incremental::AlterableConfig::default().with_name(text("?")).with_value(Some(text("1")));
    let resource = |n| {
        let resource = incremental::AlterConfigsResource::default().with_resource_type(2).with_resource_name(text(name(n)));
        resource.with_configs(vec![config.clone()])
    };
    asker.ask(1, &IncrementalAlterConfigsRequest::default().with_resources((0..MANY).map(resource).collect()));

    let resource = |n| describe_configs_request::DescribeConfigsResource::default().with_resource_type(2).with_resource_name(text(name(n)));
    let request = DescribeConfigsRequest::default().with_resources((0..MANY).map(resource).collect());
    asker.ask(4, &request.with_include_synonyms(true).with_include_documentation(true))
}

fn group() -> GroupId {
    GroupId(text("g"))
}

/// Positions with as many words as are taken, and all that can be asked of their group.
fn groups(asker: &mut Asker) {
    let words = "w".repeat(4000);
    let position = |index| {
        let position = offset_commit_request::OffsetCommitRequestPartition::default().with_partition_index(index % 2);
        position.with_committed_offset(0).with_committed_metadata(Some(text(words.clone())))
    };
    let topic =
        |partitions| offset_commit_request::OffsetCommitRequestTopic::default().with_name(topic_name("real")).with_partitions(partitions);
    let commit = |partitions| {
        let commit = OffsetCommitRequest::default().with_group_id(group()).with_generation_id_or_member_epoch(-1);
        commit.with_topics(vec![topic(partitions)])
    };
    support::eventually("the positions are stored", || {
        let answer = asker.ask(8, &commit(vec![position(0), position(1)]));
        answer.topics[0].partitions.iter().all(|partition| partition.error_code == 0)
    });
    let unknown =
        |index| offset_commit_request::OffsetCommitRequestPartition::default().with_partition_index(index).with_committed_metadata(None);
    asker.ask(8, &commit((0..MANY).map(unknown).collect()));

    let topic = offset_fetch_request::OffsetFetchRequestTopic::default().with_name(topic_name("real"));
    let topics = vec![topic.with_partition_indexes((0..MANY).map(|index| index % 3).collect()); 2];
    let answer = asker.ask(7, &OffsetFetchRequest::default().with_group_id(group()).with_topics(Some(topics)));
    assert_eq!((answer.topics[0].partitions.len(), answer.topics[1].partitions.len()), (3, 0));
    let one = offset_fetch_request::OffsetFetchRequestGroup::default().with_group_id(group()).with_topics(None);
    let answer = asker.ask(8, &OffsetFetchRequest::default().with_groups(vec![one; MANY as usize]));
    assert_eq!((answer.groups[0].topics[0].partitions.len(), answer.groups[1].error_code), (2, 42));
    let partition = |index| offset_delete_request::OffsetDeleteRequestPartition::default().with_partition_index(index % 3);
    let topic = offset_delete_request::OffsetDeleteRequestTopic::default().with_name(topic_name("real"));
    let topics = vec![topic.with_partitions((0..MANY).map(partition).collect())];
    asker.ask(0, &OffsetDeleteRequest::default().with_group_id(group()).with_topics(topics));

    let keys = (0..MANY).map(|n| text(format!("k{n}"))).collect();
    asker.ask(4, &FindCoordinatorRequest::default().with_coordinator_keys(keys));
    let protocol = join_group_request::JoinGroupRequestProtocol::default().with_name(text("range"));
    let join = JoinGroupRequest::default()
        .with_group_id(GroupId(text("joined")))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000);
    asker.ask(9, &join.with_protocol_type(text("consumer")).with_protocols(vec![protocol; 60]));
    asker.ask(5, &SyncGroupRequest::default().with_group_id(group()));
    asker.ask(4, &HeartbeatRequest::default().with_group_id(group()));
    let member = leave_group_request::MemberIdentity::default().with_member_id(text("m"));
    asker.ask(5, &LeaveGroupRequest::default().with_group_id(group()).with_members(vec![member; MANY as usize]));
    asker.ask(5, &DescribeGroupsRequest::default().with_groups(vec![group(); MANY as usize]));
    asker.ask(5, &ListGroupsRequest::default());
    asker.ask(2, &DeleteGroupsRequest::default().with_groups_names(vec![group(); MANY as usize]));
}

fn placement(asker: &mut Asker, name: &str) {
    use {alter_partition_reassignments_request as alter, elect_leaders_request as elect, list_partition_reassignments_request as list};
    let topic = elect::TopicPartitions::default().with_topic(topic_name(name)).with_partitions((0..MANY).collect());
    asker.ask(2, &ElectLeadersRequest::default().with_timeout_ms(1000).with_topic_partitions(Some(vec![topic])));
    let moved = |index| alter::ReassignablePartition::default().with_partition_index(index).with_replicas(Some(vec![7.into()]));
    let topic = alter::ReassignableTopic::default().with_name(topic_name(name)).with_partitions((0..MANY).map(moved).collect());
    asker.ask(1, &AlterPartitionReassignmentsRequest::default().with_timeout_ms(1000).with_topics(vec![topic]));
    let topic = list::ListPartitionReassignmentsTopics::default().with_name(topic_name(name)).with_partition_indexes((0..MANY).collect());
    asker.ask(0, &ListPartitionReassignmentsRequest::default().with_timeout_ms(1000).with_topics(Some(vec![topic])));
}

#[test]
fn no_answer_is_much_longer_than_its_request() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    broker.connect().create("real", 2, &[]);
    let mut asker = Asker { client: KafkaConnection::open(&broker.addresses[0]), asked: BTreeSet::new() };
    asker.ask(4, &ApiVersionsRequest::default());
    asker.ask(4, &InitProducerIdRequest::default());
    asker.ask(1, &DescribeClusterRequest::default());
    for name in ["real".to_string(), "none".to_string(), "n".repeat(30_000)] {
        records(&mut asker, &name);
        placement(&mut asker, &name);
    }
    let one = |_| "real".to_string();
    topics(&mut asker, one);
    topics(&mut asker, |n| format!("t{n}"));
    settings(&mut asker, |n| format!("t{n}"));
    let described = settings(&mut asker, one);
    groups(&mut asker);
    assert_eq!((described.results.len(), described.results[0].error_code, described.results[1].error_code), (MANY as usize, 0, 42));
    assert!(described.results[0].configs.len() > 5);
    let all: BTreeSet<i16> = APIS.iter().map(|api| api.key as i16).collect();
    assert_eq!(asker.asked, all, "each API is asked for its longest answer");
    assert_eq!(broker.stop(), 0);
}

/// Groups that together are several times what a shard may hold of answers.
#[test]
fn many_large_groups_are_described_a_few_at_a_time() {
    /// Bytes of a member's metadata, and of its assignment.
    const LARGE: usize = 450 * 1024;
    const GROUPS: usize = 12;
    /// A shard of 32 MiB holds an eighth of it in answers.
    const SHARE: usize = 4 << 20;
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "1", "--memory", "32M", "--group-initial-rebalance-delay-ms", "0"]);
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    let names: Vec<GroupId> = (0..GROUPS).map(|n| GroupId(text(format!("large{n:02}")))).collect();
    for name in &names {
        let protocol =
            join_group_request::JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(vec![1; LARGE].into());
        let join = JoinGroupRequest::default().with_group_id(name.clone()).with_protocol_type(text("other"));
        let join = join.with_session_timeout_ms(60_000).with_rebalance_timeout_ms(60_000).with_protocols(vec![protocol]);
        let mut joined = JoinGroupResponse::default();
        support::eventually("a member joins", || {
            joined = client.ask(3, &join);
            joined.error_code == 0
        });
        let assignment = sync_group_request::SyncGroupRequestAssignment::default().with_member_id(joined.member_id.clone());
        let assignment = assignment.with_assignment(vec![2; LARGE].into());
        let sync = SyncGroupRequest::default().with_group_id(name.clone()).with_generation_id(joined.generation_id);
        let synced = client.ask(3, &sync.with_member_id(joined.member_id).with_assignments(vec![assignment]));
        assert_eq!((synced.error_code, synced.assignment.len()), (0, LARGE));
    }
    let (mut asked, mut rounds) = (names, 0);
    while !asked.is_empty() {
        client.send(5, &DescribeGroupsRequest::default().with_groups(asked.clone()));
        let (correlation, rest) = client.receive();
        assert!(rest.len() < SHARE + 2 * LARGE, "an answer of {} bytes", rest.len());
        let described = raw::answer_of::<DescribeGroupsRequest>(correlation, 5, rest).groups;
        assert_eq!(described.len(), asked.len(), "each group is answered");
        let is_whole = |of: &describe_groups_response::DescribedGroup| of.error_code == 0 && of.members[0].member_assignment.len() == LARGE;
        assert!(described.iter().any(is_whole), "some are described each time");
        asked = described
            .into_iter()
            .filter(|of| !is_whole(of))
            .map(|of| (of.error_code, of.group_id))
            .map(|(error, id)| {
                assert_eq!(error, 14, "who asks again gets the others");
                id
            })
            .collect();
        rounds += 1;
    }
    assert!(rounds > 1);
    assert_eq!(broker.stop(), 0);
}
