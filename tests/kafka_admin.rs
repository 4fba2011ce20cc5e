//! What Kafka's administrators are told of settings and leader epochs, and what nobody may do to the broker's own topics.

#[path = "support/kafka.rs"]
mod raw;
mod support;

use std::collections::BTreeMap;
use std::path::Path;

use corelane::cluster::{Command, command_log};
use corelane::request::{Acks, AlterTopic, Code, CreateTopic, DeleteRecords, OffsetSpec, Produce, ProduceBatch, Request, Response};
use corelane::types::{TopicId, TopicPartition};
use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::DescribeConfigsResourceResult;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
use kafka_protocol::messages::{incremental_alter_configs_request as incremental, *};
use kafka_protocol::protocol::StrBytes;
use raw::{KafkaConnection, fetch, produce, topic_name};
use support::{Broker, batch_of};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const POSITIONS: &str = "__consumer_offsets";

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.into())
}

/// The settings of a resource by name, or the code of its refusal.
fn describe(client: &mut KafkaConnection, kind: i8, name: &str) -> Result<BTreeMap<String, DescribeConfigsResourceResult>, i16> {
    let resource = DescribeConfigsResource::default().with_resource_type(kind).with_resource_name(text(name)).with_configuration_keys(None);
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
    let mut answer = client.ask(4, &request.with_include_synonyms(true).with_include_documentation(true));
    let result = answer.results.remove(0);
    assert_eq!((result.resource_type, result.resource_name.as_str()), (kind, name));
    match result.error_code {
        0 => Ok(result.configs.into_iter().map(|config| (config.name.to_string(), config)).collect()),
        code => Err(code),
    }
}

/// One operation on one setting: the code.
fn alter(client: &mut KafkaConnection, kind: i8, name: &str, changes: &[(&str, i8, Option<&str>)]) -> i16 {
    let config = |(name, operation, value): &(&str, i8, Option<&str>)| {
        incremental::AlterableConfig::default().with_name(text(name)).with_config_operation(*operation).with_value(value.map(text))
    };
    let resource = incremental::AlterConfigsResource::default().with_resource_type(kind).with_resource_name(text(name));
    let resource = resource.with_configs(changes.iter().map(config).collect());
    client.ask(1, &IncrementalAlterConfigsRequest::default().with_resources(vec![resource])).responses[0].error_code
}

#[test]
fn settings_say_where_they_come_from() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2", "--durability", "written"]);
    broker.connect().create("set", 1, &[("retention.ms", "-1")]);
    let mut client = KafkaConnection::open(&broker.addresses[1]);
    let synonyms = |config: &DescribeConfigsResourceResult| {
        let synonym =
            |s: &describe_configs_response::DescribeConfigsSynonym| (s.name.to_string(), s.value.clone().map(|v| v.to_string()), s.source);
        config.synonyms.iter().map(synonym).collect::<Vec<_>>()
    };
    let topic = describe(&mut client, TOPIC, "set").expect("described");
    let retention = &topic["retention.ms"];
    assert_eq!(
        (retention.value.as_deref(), retention.config_source, retention.read_only, retention.config_type),
        (Some("-1"), 1, false, 5)
    );
    let own = ("retention.ms".to_string(), Some("-1".to_string()), 1);
    assert_eq!(synonyms(retention), [own, ("log.retention.ms".into(), Some("604800000".into()), 5)]);
    assert!(retention.documentation.as_ref().is_some_and(|words| !words.is_empty()));
    let size = &topic["max.message.bytes"];
    assert_eq!((size.value.as_deref(), size.config_source, size.config_type), (Some("1048588"), 5, 3));
    assert_eq!(synonyms(size), [("message.max.bytes".into(), Some("1048588".into()), 5)]);
    let durability = &topic["durability"];
    assert_eq!((durability.value.as_deref(), durability.config_source), (Some("written"), 4));
    assert_eq!(topic["cleanup.policy"].config_type, 7);

    for id in ["0", "1"] {
        let settings = describe(&mut client, BROKER, id).expect("described");
        let value = |name: &str| settings[name].value.clone().expect("a value").to_string();
        assert_eq!((value("node.id"), value("broker.id"), value("message.max.bytes")), (id.into(), id.into(), "1048588".into()));
        let address = &broker.addresses[id.parse::<usize>().expect("a number")];
        assert_eq!((value("advertised.listeners"), value("durability")), (format!("PLAINTEXT://{address}"), "written".into()));
        assert_eq!((value("delete.topic.enable"), value("log.dirs")), ("true".into(), data.path().to_string_lossy().into_owned()));
        assert!(settings.values().all(|setting| setting.read_only && setting.synonyms.len() == 1 && setting.documentation.is_some()));
    }
    assert_eq!(describe(&mut client, BROKER, "").map(|settings| settings.len()), Ok(0));
    assert_eq!(describe(&mut client, BROKER, "2"), Err(42));
    assert_eq!(describe(&mut client, TOPIC, "never"), Err(3));
    assert_eq!(describe(&mut client, 8, "0"), Err(42));

    // Only what is asked for, and a resource once.
    let resource = || DescribeConfigsResource::default().with_resource_type(TOPIC).with_resource_name(text("set"));
    let named = resource().with_configuration_keys(Some(vec![text("segment.ms"), text("no.such")]));
    let answer = client.ask(1, &DescribeConfigsRequest::default().with_resources(vec![named, resource()]));
    let names: Vec<_> = answer.results[0].configs.iter().map(|config| config.name.to_string()).collect();
    assert_eq!((names, answer.results[1].error_code), (vec!["segment.ms".to_string()], 42));
}

#[test]
fn changes_of_settings_are_refused_as_kafka_refuses_them() {
    const SET: i8 = 0;
    const DELETE: i8 = 1;
    const APPEND: i8 = 2;
    const SUBTRACT: i8 = 3;
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    broker.connect().create("changed", 1, &[]);
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    for (kind, name, changes, code) in [
        (TOPIC, "changed", &[("retention.ms", SET, Some("77")), ("segment.ms", SET, Some("99"))][..], 0),
        (TOPIC, "changed", &[("segment.ms", DELETE, None)], 0),
        (TOPIC, "changed", &[("retention.ms", SET, None)], 42),
        (TOPIC, "changed", &[("retention.ms", 9, Some("1"))], 42),
        (TOPIC, "changed", &[("retention.ms", SET, Some("1")), ("retention.ms", SET, Some("2"))], 42),
        (TOPIC, "changed", &[("retention.ms", SET, Some("soon"))], 40),
        (TOPIC, "changed", &[("retention.ms", APPEND, Some("1"))], 40),
        (TOPIC, "changed", &[("no.such", SET, Some("1"))], 40),
        (TOPIC, "changed", &[("cleanup.policy", APPEND, Some("delete"))], 0),
        (TOPIC, "changed", &[("cleanup.policy", APPEND, Some("purge"))], 40),
        (TOPIC, "changed", &[("cleanup.policy", SUBTRACT, Some("delete"))], 40),
        (TOPIC, "never", &[("retention.ms", SET, Some("1"))], 3),
        (BROKER, "0", &[("num.partitions", SET, Some("3"))], 42),
        (8, "0", &[("root", SET, Some("DEBUG"))], 42),
    ] {
        assert_eq!(alter(&mut client, kind, name, changes), code, "{name} {changes:?}");
    }
    let settings = describe(&mut client, TOPIC, "changed").expect("described");
    let value = |name: &str| (settings[name].value.clone().expect("a value").to_string(), settings[name].config_source);
    assert_eq!((value("retention.ms"), value("segment.ms")), (("77".into(), 1), ("604800000".into(), 5)));
    assert_eq!(value("cleanup.policy"), ("delete".into(), 1));

    let config = |value: Option<&str>| AlterableConfig::default().with_name(text("segment.ms")).with_value(value.map(text));
    let resource =
        |config| AlterConfigsResource::default().with_resource_type(TOPIC).with_resource_name(text("changed")).with_configs(vec![config]);
    let mut alter = |resources| {
        let answer = client.ask(2, &AlterConfigsRequest::default().with_resources(resources));
        answer.responses.iter().map(|response| response.error_code).collect::<Vec<_>>()
    };
    assert_eq!(alter(vec![resource(config(None))]), [42]);
    assert_eq!(alter(vec![resource(config(Some("5"))), resource(config(Some("6")))]), [0, 42], "a resource once");
    let settings = describe(&mut client, TOPIC, "changed").expect("described");
    let value = |name: &str| (settings[name].value.clone().expect("a value").to_string(), settings[name].config_source);
    assert_eq!((value("retention.ms"), value("segment.ms")), (("604800000".into(), 5), ("5".into(), 1)), "all others are given back");
}

/// Makes a topic in the catalogue of a stopped broker, as the broker itself does.
fn make_internal(data: &Path, id: TopicId, name: &str) {
    let path = data.join("catalogue");
    let bytes = std::fs::read(&path).expect("a catalogue");
    let log = command_log::decode_log(&bytes).expect("it checks");
    let next = log.commands.last().map_or(0, |(sequence, _)| *sequence) + 1;
    let create = Command::CreateTopic { id, name: name.into(), partitions: 2, replication_factor: 1, config: vec![] };
    let mut whole = bytes[..log.end].to_vec();
    whole.extend(command_log::encode_record(next, &create).expect("it fits"));
    whole.extend(command_log::encode_record(next + 1, &Command::DurableMark).expect("it fits"));
    std::fs::write(path, whole).expect("written");
}

#[test]
fn the_brokers_own_topics_are_its_own() {
    let data = tempfile::tempdir().expect("a directory");
    let flags = ["--shards", "2"];
    let broker = Broker::start(data.path(), &flags);
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    let metadata = |client: &mut KafkaConnection, name: &str| {
        let topic = MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let request = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(true);
        client.ask(9, &request).topics.remove(0)
    };
    let absent = metadata(&mut client, POSITIONS);
    assert_eq!((absent.error_code, absent.is_internal), (3, true), "naming it does not make it");
    let made = metadata(&mut client, "other");
    assert_eq!((made.error_code, made.is_internal), (0, false));
    let create = |name: &str| {
        let topic = CreatableTopic::default().with_name(topic_name(name)).with_num_partitions(1).with_replication_factor(1);
        CreateTopicsRequest::default().with_topics(vec![topic])
    };
    for name in [POSITIONS, "__transaction_state"] {
        for validate_only in [false, true] {
            let answer = client.ask(6, &create(name).with_validate_only(validate_only));
            assert_eq!(answer.topics[0].error_code, 17, "{name}");
            assert!(answer.topics[0].error_message.as_ref().is_some_and(|words| words.contains("the broker's own")));
        }
    }
    let refused = |broker: &Broker, request: Request| match broker.connect().ask(&request, &[]).0 {
        Response::Refused(refusal) => refusal.code,
        other => panic!("{other:?}"),
    };
    let native = CreateTopic { name: POSITIONS.into(), partitions: None, replication_factor: None, config: vec![], validate_only: false };
    assert_eq!(refused(&broker, Request::CreateTopic(native)), Code::InvalidTopicName);
    assert_eq!(broker.stop(), 0);

    let id = TopicId([9; 16]);
    make_internal(data.path(), id, POSITIONS);
    let broker = Broker::start(data.path(), &flags);
    let mut client = KafkaConnection::open(&broker.addresses[0]);
    let present = metadata(&mut client, POSITIONS);
    assert_eq!((present.error_code, present.is_internal, present.partitions.len()), (0, true, 2));
    let batches = [batch_of(["x"]), batch_of([vec![1; 300_000]]), batch_of([vec![1; 9_000_000]])];
    for (partition, batch) in (0..2).flat_map(|partition| batches.iter().map(move |batch| (partition, batch))) {
        let answer = client.ask(9, &produce(POSITIONS, partition, -1, batch));
        let outcome = &answer.responses[0].partition_responses[0];
        // One this large is refused before it is known whose it is.
        let expected = if batch.len() > 8 << 20 && partition == 0 { [17, 10, 6] } else { [17, 17, 17] };
        assert!(expected.contains(&outcome.error_code), "{} bytes: {}", batch.len(), outcome.error_code);
        let place = TopicPartition { topic: id, partition: partition as u32 };
        let sent = Produce {
            acks: Acks::All,
            timeout_ms: 1000,
            batches: vec![ProduceBatch { partition: place, range: 0..batch.len() }],
            crc_trailer: false,
        };
        match broker.connect_owner(place).ask(&Request::Produce(sent), batch).0 {
            Response::Produce(results) => assert_eq!(results[0].outcome.as_ref().map_err(|r| r.code), Err(Code::InvalidTopicName)),
            other => panic!("{other:?}"),
        }
        assert_eq!(broker.connect_owner(place).offset(place, OffsetSpec::Latest), 0, "nothing was appended");
    }
    assert_eq!(client.ask(12, &fetch(POSITIONS, 0, 0, 1 << 20, 0)).responses[0].partitions[0].error_code, 0, "it can be read");
    assert_eq!(client.ask(5, &DeleteTopicsRequest::default().with_topic_names(vec![topic_name(POSITIONS)])).responses[0].error_code, 17);
    assert_eq!(refused(&broker, Request::DeleteTopic(POSITIONS.into())), Code::InvalidTopicName);
    let place = TopicPartition { topic: id, partition: 0 };
    match broker.connect().ask(&Request::DeleteRecords(vec![DeleteRecords { partition: place, before: Some(0) }]), &[]).0 {
        Response::RecordsDeleted(results) => assert_eq!(results[0].outcome.as_ref().map_err(|r| r.code), Err(Code::InvalidTopicName)),
        other => panic!("{other:?}"),
    }
    let grow = create_partitions_request::CreatePartitionsTopic::default().with_name(topic_name(POSITIONS)).with_count(3);
    for validate_only in [false, true] {
        let request =
            CreatePartitionsRequest::default().with_topics(vec![grow.clone().with_assignments(None)]).with_validate_only(validate_only);
        assert_eq!(client.ask(3, &request).results[0].error_code, 17);
    }
    let grow = AlterTopic { name: POSITIONS.into(), partitions: Some(3), config: vec![] };
    assert_eq!(refused(&broker, Request::AlterTopic(grow)), Code::InvalidTopicName);
    assert_eq!(alter(&mut client, TOPIC, POSITIONS, &[("segment.bytes", 0, Some("2097152"))]), 0, "what loses nothing can be set");
    assert_eq!(alter(&mut client, TOPIC, POSITIONS, &[("cleanup.policy", 0, Some("delete"))]), 0, "as it is");
    assert_eq!(alter(&mut client, TOPIC, POSITIONS, &[("cleanup.policy", 1, None)]), 40);
    assert_eq!(alter(&mut client, TOPIC, POSITIONS, &[("cleanup.policy", 0, Some("compact"))]), 40);
    assert_eq!(describe(&mut client, TOPIC, POSITIONS).expect("described")["segment.bytes"].value.as_deref(), Some("2097152"));
    assert_eq!(metadata(&mut client, POSITIONS).partitions.len(), 2);
}

#[test]
fn a_client_that_was_away_is_told_where_an_epoch_ended() {
    let data = tempfile::tempdir().expect("a directory");
    let flags = ["--shards", "2"];
    let mut broker = Broker::start(data.path(), &flags);
    let id = broker.connect().create("led", 2, &[("retention.ms", "-1")]);
    let places = [0, 1].map(|partition| TopicPartition { topic: id, partition });
    // Epochs 0, 1, 3 and 4 get records; 2 does not. Ends by SIGKILL and by SIGTERM in turn.
    for (epoch, count) in [(0, 10), (1, 5), (2, 0), (3, 7), (4, 1)] {
        for (at, place) in places.iter().enumerate() {
            let mut native = broker.connect_owner(*place);
            for _ in 0..count * (at + 1) {
                native.produce(*place, &batch_of(["x"])).outcome.expect("appended");
            }
        }
        if epoch % 2 == 0 {
            broker.kill();
        } else {
            assert_eq!(broker.stop(), 0);
        }
        broker = Broker::start(data.path(), &flags);
    }

    let mut client = KafkaConnection::open(&broker.addresses[0]);
    let mut ask = |version: i16, current: i32, epoch: i32, partition: i32| {
        let asked =
            OffsetForLeaderPartition::default().with_partition(partition).with_current_leader_epoch(current).with_leader_epoch(epoch);
        let topic = OffsetForLeaderTopic::default().with_topic(topic_name("led")).with_partitions(vec![asked]);
        let end =
            client.ask(version, &OffsetForLeaderEpochRequest::default().with_topics(vec![topic])).topics.remove(0).partitions.remove(0);
        assert_eq!(end.partition, partition);
        (end.error_code, end.leader_epoch, end.end_offset)
    };
    for version in 2..=4 {
        for (epoch, expected) in
            [(0, (0, 10)), (1, (1, 15)), (2, (1, 15)), (3, (3, 22)), (4, (4, 23)), (5, (5, 23)), (6, (-1, -1)), (-1, (-1, -1))]
        {
            let (found, end) = expected;
            assert_eq!(ask(version, -1, epoch, 0), (0, found, end), "epoch {epoch}");
            assert_eq!(ask(version, 5, epoch, 1), (0, found, if end < 0 { end } else { 2 * end }), "epoch {epoch}");
        }
        assert_eq!(ask(version, 4, 0, 0), (74, -1, -1), "fenced");
        assert_eq!(ask(version, 6, 0, 1), (75, -1, -1), "not known yet");
        assert_eq!(ask(version, -1, 0, 2), (3, -1, -1));
    }

    // Offsets come with the epoch of their record, from version 4 on.
    let partition = |timestamp| ListOffsetsPartition::default().with_partition_index(1).with_timestamp(timestamp);
    let topic = ListOffsetsTopic::default().with_name(topic_name("led"));
    let topic = topic.with_partitions(vec![partition(-2), partition(-1), partition(0), partition(i64::MAX), partition(-3)]);
    for version in [3, 4, 7] {
        let answer = client.ask(version, &ListOffsetsRequest::default().with_topics(vec![topic.clone()]));
        let found: Vec<_> = answer.topics[0].partitions.iter().map(|p| (p.offset, p.leader_epoch)).collect();
        let epoch = |epoch| if version >= 4 { epoch } else { -1 };
        assert_eq!(found, [(0, epoch(0)), (46, epoch(5)), (0, epoch(0)), (-1, -1), (0, epoch(0))], "version {version}");
    }
}

/// Codes of a reassignment of partition 0 of topic "moved".
fn reassign(client: &mut KafkaConnection, version: i16, topic: &str, replicas: Option<Vec<i32>>) -> i16 {
    use kafka_protocol::messages::alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
    let replicas = replicas.map(|ids| ids.into_iter().map(BrokerId).collect());
    let of = ReassignablePartition::default().with_partition_index(0).with_replicas(replicas);
    let of = ReassignableTopic::default().with_name(topic_name(topic)).with_partitions(vec![of]);
    let request = AlterPartitionReassignmentsRequest::default().with_topics(vec![of]);
    let answer = client.ask(version, &request.with_allow_replication_factor_change(version < 1));
    assert_eq!(answer.error_code, 0);
    answer.responses[0].partitions[0].error_code
}

#[test]
fn replicas_stay_and_leaders_lead_where_there_is_one_node() {
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(data.path(), &["--shards", "2"]);
    broker.connect().create("moved", 2, &[]);
    let mut client = KafkaConnection::open(&broker.addresses[1]);
    let cluster = client.ask(0, &DescribeClusterRequest::default());
    let ids: Vec<i32> = cluster.brokers.iter().map(|broker| broker.broker_id.0).collect();
    for id in &ids {
        assert_eq!(reassign(&mut client, 0, "moved", Some(vec![*id])), 0, "each broker of a node stands for it, and there it is");
    }
    let (no_move, no_factor, no_node, no_topic, no_need) = (85, 38, 102, 3, 84);
    assert_eq!(reassign(&mut client, 0, "moved", None), no_move);
    assert_eq!(reassign(&mut client, 1, "moved", Some(ids.clone())), no_factor);
    assert_eq!(reassign(&mut client, 0, "moved", Some(ids.clone())), 39, "one node twice");
    assert_eq!(reassign(&mut client, 0, "moved", Some(vec![77 * 1024])), no_node);
    assert_eq!(reassign(&mut client, 0, "moved", Some(vec![-1])), 39);
    assert_eq!(reassign(&mut client, 0, "nothing", Some(ids)), no_topic);
    let listed = client.ask(0, &ListPartitionReassignmentsRequest::default().with_topics(None));
    assert_eq!((listed.error_code, listed.topics.len()), (0, 0));

    for (election, name, code) in [(0, "moved", no_need), (1, "moved", no_need), (0, "nothing", no_topic)] {
        let of = elect_leaders_request::TopicPartitions::default().with_topic(topic_name(name)).with_partitions(vec![0]);
        let answer = client.ask(2, &ElectLeadersRequest::default().with_election_type(election).with_topic_partitions(Some(vec![of])));
        assert_eq!(answer.replica_election_results[0].partition_result[0].error_code, code, "{name}, kind {election}");
    }
    let all = client.ask(2, &ElectLeadersRequest::default().with_topic_partitions(None));
    assert_eq!((all.error_code, all.replica_election_results.len()), (0, 0), "nobody needs an election");
}
