//! What the tests of the formats share, and those of the bodies that `kafka-protocol` reads and writes.

use bytes::{BufMut, BytesMut};
use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
use kafka_protocol::messages::create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic};
use kafka_protocol::messages::create_topics_request::{CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::list_partition_reassignments_request::ListPartitionReassignmentsTopics;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
use kafka_protocol::messages::{incremental_alter_configs_request as incremental, *};
use kafka_protocol::protocol::StrBytes;

use super::*;

/// The frame of a request, as the codec writes it.
pub fn frame_of<T: Encodable + HeaderVersion>(key: i16, version: i16, correlation: i32, body: &T) -> Vec<u8> {
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    let client_id = Some(StrBytes::from_static_str("a client"));
    let head = RequestHeader::default().with_request_api_key(key).with_request_api_version(version);
    head.with_correlation_id(correlation).with_client_id(client_id).encode(&mut frame, T::header_version(version)).expect("it encodes");
    body.encode(&mut frame, version).expect("it encodes");
    let len = frame.len() as u32 - 4;
    put_length(&mut frame, len);
    frame.into()
}

/// Gives `read` the frame cut at each length, and with every byte changed in several ways; a fixed sequence.
pub fn flip_and_cut(frame: &[u8], mut read: impl FnMut(&[u8])) {
    for cut in 0..frame.len() {
        let mut bytes = frame[..cut].to_vec();
        read(&bytes);
        if cut >= 4 {
            put_length(&mut bytes, cut as u32 - 4);
            read(&bytes);
        }
    }
    for at in 0..frame.len() {
        for change in [0x01, 0x80, 0x7f, 0xff, 0x10] {
            let mut bytes = frame.to_vec();
            bytes[at] ^= change;
            read(&bytes);
        }
    }
    // Several bytes at once, by a fixed generator.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..2000 {
        let mut bytes = frame.to_vec();
        for _ in 0..4 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = (state >> 20) as u8;
        }
        read(&bytes);
    }
}

pub fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

pub fn topic(name: &'static str) -> TopicName {
    TopicName(text(name))
}

pub fn add<T: Encodable + HeaderVersion>(all: &mut Vec<(i16, i16, Vec<u8>)>, key: ApiKey, version: i16, body: T) {
    all.push((key as i16, version, frame_of(key as i16, version, 5, &body)));
}

/// One request of each kind and version that is decoded by the codec, with something in every field.
fn requests() -> Vec<(i16, i16, Vec<u8>)> {
    let mut all = Vec::new();
    super::group_tests::requests(&mut all);
    for version in 0..=4 {
        let mut body = ApiVersionsRequest::default();
        if version >= 3 {
            body = body.with_client_software_name(text("librdkafka")).with_client_software_version(text("2.12"));
        }
        add(&mut all, ApiKey::ApiVersions, version, body);
    }
    for version in 0..=9 {
        let topics = ["orders", "payments"].map(|name| MetadataRequestTopic::default().with_name(Some(topic(name))));
        let mut body = MetadataRequest::default().with_topics(Some(topics.to_vec()));
        body.include_topic_authorized_operations = version >= 8;
        body.allow_auto_topic_creation = version < 4 || version % 2 == 0;
        add(&mut all, ApiKey::Metadata, version, body);
        if version >= 1 {
            add(&mut all, ApiKey::Metadata, version, MetadataRequest::default().with_topics(None));
        }
    }
    for version in 1..=7 {
        let partition = |index| {
            let epoch = if version >= 4 { 3 } else { -1 };
            ListOffsetsPartition::default().with_partition_index(index).with_timestamp(-1).with_current_leader_epoch(epoch)
        };
        let of = ListOffsetsTopic::default().with_name(topic("orders")).with_partitions(vec![partition(0), partition(1)]);
        let mut body = ListOffsetsRequest::default().with_replica_id((-1).into()).with_topics(vec![of]);
        body.isolation_level = i8::from(version >= 2);
        add(&mut all, ApiKey::ListOffsets, version, body);
    }
    for version in 2..=6 {
        let assignment = CreatableReplicaAssignment::default().with_partition_index(0).with_broker_ids(vec![0.into(), 1.into()]);
        let config = CreatableTopicConfig::default().with_name(text("retention.ms")).with_value(Some(text("5")));
        let of = CreatableTopic::default().with_name(topic("orders")).with_num_partitions(3).with_replication_factor(1);
        let of = of.with_assignments(vec![assignment]).with_configs(vec![config.clone(), config.with_value(None)]);
        let body = CreateTopicsRequest::default().with_topics(vec![of]).with_timeout_ms(9).with_validate_only(true);
        add(&mut all, ApiKey::CreateTopics, version, body);
    }
    for version in 1..=5 {
        let body = DeleteTopicsRequest::default().with_topic_names(vec![topic("orders"), topic("x")]).with_timeout_ms(9);
        add(&mut all, ApiKey::DeleteTopics, version, body);
    }
    for version in 0..=2 {
        let partition = |index, offset| DeleteRecordsPartition::default().with_partition_index(index).with_offset(offset);
        let of = DeleteRecordsTopic::default().with_name(topic("orders")).with_partitions(vec![partition(0, -1), partition(3, 1 << 40)]);
        add(&mut all, ApiKey::DeleteRecords, version, DeleteRecordsRequest::default().with_topics(vec![of]).with_timeout_ms(9));
    }
    for version in 0..=4 {
        let mut body =
            InitProducerIdRequest::default().with_transactional_id(Some(TransactionalId(text("t")))).with_transaction_timeout_ms(9);
        if version >= 3 {
            body = body.with_producer_id(4.into()).with_producer_epoch(2);
        }
        add(&mut all, ApiKey::InitProducerId, version, body);
    }
    for version in 2..=4 {
        let partition = |index| OffsetForLeaderPartition::default().with_partition(index).with_current_leader_epoch(4).with_leader_epoch(3);
        let of = OffsetForLeaderTopic::default().with_topic(topic("orders")).with_partitions(vec![partition(0), partition(1)]);
        let mut body = OffsetForLeaderEpochRequest::default().with_topics(vec![of]);
        if version >= 3 {
            body = body.with_replica_id((-1).into());
        }
        add(&mut all, ApiKey::OffsetForLeaderEpoch, version, body);
    }
    for version in 1..=4 {
        let of = DescribeConfigsResource::default().with_resource_type(2).with_resource_name(text("orders"));
        let of = vec![of.clone().with_configuration_keys(Some(vec![text("a"), text("b")])), of.with_configuration_keys(None)];
        let mut body = DescribeConfigsRequest::default().with_resources(of).with_include_synonyms(true);
        body.include_documentation = version >= 3;
        add(&mut all, ApiKey::DescribeConfigs, version, body);
    }
    for version in 0..=2 {
        let config = AlterableConfig::default().with_name(text("retention.ms")).with_value(Some(text("5")));
        let of = AlterConfigsResource::default().with_resource_type(2).with_resource_name(text("orders")).with_configs(vec![config]);
        add(&mut all, ApiKey::AlterConfigs, version, AlterConfigsRequest::default().with_resources(vec![of]).with_validate_only(true));
    }
    for version in 0..=1 {
        let config = incremental::AlterableConfig::default().with_name(text("retention.ms")).with_config_operation(1).with_value(None);
        let of = incremental::AlterConfigsResource::default().with_resource_type(2).with_resource_name(text("orders"));
        let body = IncrementalAlterConfigsRequest::default().with_resources(vec![of.with_configs(vec![config])]);
        add(&mut all, ApiKey::IncrementalAlterConfigs, version, body);
    }
    for version in 0..=3 {
        let assignment = CreatePartitionsAssignment::default().with_broker_ids(vec![1.into()]);
        let of = CreatePartitionsTopic::default().with_name(topic("orders")).with_count(4);
        let of = vec![of.clone().with_assignments(Some(vec![assignment])), of.with_assignments(None)];
        let body = CreatePartitionsRequest::default().with_topics(of).with_timeout_ms(9).with_validate_only(true);
        add(&mut all, ApiKey::CreatePartitions, version, body);
    }
    for version in 1..=4 {
        let of = DescribableLogDirTopic::default().with_topic(topic("orders")).with_partitions(vec![0, 1]);
        add(&mut all, ApiKey::DescribeLogDirs, version, DescribeLogDirsRequest::default().with_topics(Some(vec![of])));
        add(&mut all, ApiKey::DescribeLogDirs, version, DescribeLogDirsRequest::default().with_topics(None));
    }
    for version in 0..=2 {
        let of = elect_leaders_request::TopicPartitions::default().with_topic(topic("orders")).with_partitions(vec![0, 1]);
        let body = ElectLeadersRequest::default().with_timeout_ms(9).with_election_type(i8::from(version >= 1));
        add(&mut all, ApiKey::ElectLeaders, version, body.clone().with_topic_partitions(Some(vec![of])));
        add(&mut all, ApiKey::ElectLeaders, version, body.with_topic_partitions(None));
    }
    for version in 0..=1 {
        let of = |replicas| ReassignablePartition::default().with_partition_index(3).with_replicas(replicas);
        let of = vec![of(Some(vec![1.into(), 2.into()])), of(None)];
        let of = vec![ReassignableTopic::default().with_name(topic("orders")).with_partitions(of)];
        let body = AlterPartitionReassignmentsRequest::default().with_topics(of).with_timeout_ms(9);
        add(&mut all, ApiKey::AlterPartitionReassignments, version, body.with_allow_replication_factor_change(version < 1));
    }
    let of = ListPartitionReassignmentsTopics::default().with_name(topic("orders")).with_partition_indexes(vec![0, 1]);
    for topics in [Some(vec![of]), None] {
        let body = ListPartitionReassignmentsRequest::default().with_timeout_ms(9).with_topics(topics);
        add(&mut all, ApiKey::ListPartitionReassignments, 0, body);
    }
    for version in 0..=1 {
        let mut body = DescribeClusterRequest::default().with_include_cluster_authorized_operations(true);
        if version >= 1 {
            body.endpoint_type = 1;
        }
        add(&mut all, ApiKey::DescribeCluster, version, body);
    }
    all
}

/// Reads a frame as a shard would; true if it has the shape and the codec takes it.
fn read(bytes: &[u8]) -> bool {
    let Ok(Some(start)) = peek(bytes) else { return false };
    let Ok((head, body)) = decode_head(start, bytes) else { return false };
    if !start.is_served() {
        return false;
    }
    match head.api.key {
        ApiKey::ListOffsets => decode::<ListOffsetsRequest>(&head, body).is_ok(),
        ApiKey::Metadata => decode::<MetadataRequest>(&head, body).is_ok(),
        ApiKey::ApiVersions => decode::<ApiVersionsRequest>(&head, body).is_ok(),
        ApiKey::CreateTopics => decode::<CreateTopicsRequest>(&head, body).is_ok(),
        ApiKey::DeleteTopics => decode::<DeleteTopicsRequest>(&head, body).is_ok(),
        ApiKey::DeleteRecords => decode::<DeleteRecordsRequest>(&head, body).is_ok(),
        ApiKey::InitProducerId => decode::<InitProducerIdRequest>(&head, body).is_ok(),
        ApiKey::OffsetForLeaderEpoch => decode::<OffsetForLeaderEpochRequest>(&head, body).is_ok(),
        ApiKey::DescribeConfigs => decode::<DescribeConfigsRequest>(&head, body).is_ok(),
        ApiKey::AlterConfigs => decode::<AlterConfigsRequest>(&head, body).is_ok(),
        ApiKey::DescribeLogDirs => decode::<DescribeLogDirsRequest>(&head, body).is_ok(),
        ApiKey::CreatePartitions => decode::<CreatePartitionsRequest>(&head, body).is_ok(),
        ApiKey::IncrementalAlterConfigs => decode::<IncrementalAlterConfigsRequest>(&head, body).is_ok(),
        ApiKey::ElectLeaders => decode::<ElectLeadersRequest>(&head, body).is_ok(),
        ApiKey::AlterPartitionReassignments => decode::<AlterPartitionReassignmentsRequest>(&head, body).is_ok(),
        ApiKey::ListPartitionReassignments => decode::<ListPartitionReassignmentsRequest>(&head, body).is_ok(),
        ApiKey::DescribeCluster => decode::<DescribeClusterRequest>(&head, body).is_ok(),
        ApiKey::FindCoordinator => decode::<FindCoordinatorRequest>(&head, body).is_ok(),
        ApiKey::JoinGroup => decode::<JoinGroupRequest>(&head, body).is_ok(),
        ApiKey::SyncGroup => decode::<SyncGroupRequest>(&head, body).is_ok(),
        ApiKey::Heartbeat => decode::<HeartbeatRequest>(&head, body).is_ok(),
        ApiKey::LeaveGroup => decode::<LeaveGroupRequest>(&head, body).is_ok(),
        ApiKey::OffsetCommit => decode::<OffsetCommitRequest>(&head, body).is_ok(),
        ApiKey::OffsetFetch => decode::<OffsetFetchRequest>(&head, body).is_ok(),
        ApiKey::OffsetDelete => decode::<OffsetDeleteRequest>(&head, body).is_ok(),
        ApiKey::DescribeGroups => decode::<DescribeGroupsRequest>(&head, body).is_ok(),
        ApiKey::ListGroups => decode::<ListGroupsRequest>(&head, body).is_ok(),
        ApiKey::DeleteGroups => decode::<DeleteGroupsRequest>(&head, body).is_ok(),
        _ => false,
    }
}

#[test]
fn requests_of_every_version_pass_the_walk_and_the_codec() {
    let requests = requests();
    for (key, version, frame) in &requests {
        assert!(read(frame), "API {key}, version {version}");
        let mut longer = frame.clone();
        longer.push(0);
        let len = longer.len() as u32 - 4;
        put_length(&mut longer, len);
        assert!(read(&longer), "API {key}, version {version}, with a byte more");
    }
    // Those that are decoded by hand have tests of their own, in `produce` and `fetch`.
    let by_hand: Vec<_> = APIS.iter().filter(|api| api.shape.is_none()).map(|api| (api.key as i16, api.advertised)).collect();
    assert_eq!(by_hand, [(0, (0, 11)), (1, (4, 12))]);
    for api in APIS.iter().filter(|api| api.shape.is_some()) {
        for version in api.advertised.0..=api.advertised.1 {
            assert!(requests.iter().any(|(key, v, _)| (*key, *v) == (api.key as i16, version)), "{:?} {version}", api.key);
        }
    }
}

#[test]
fn hostile_requests_do_not_panic() {
    for (_, _, frame) in requests() {
        flip_and_cut(&frame, |bytes| {
            read(bytes);
        });
    }
}

#[test]
fn a_count_that_nothing_follows_is_refused_before_the_codec_allocates_for_it() {
    for version in [0, 9] {
        let body = MetadataRequest::default().with_topics(Some(vec![]));
        let mut frame = frame_of(3, version, 1, &body);
        match version {
            0 => {
                let at = frame.len() - 4;
                frame[at..].copy_from_slice(&i32::MAX.to_be_bytes());
            }
            _ => {
                // Compact: a varint of 5 bytes in the place of one of one.
                let at = frame.len() - 4;
                frame.splice(at..at + 1, [0xff, 0xff, 0xff, 0xff, 0x0f]);
                let len = frame.len() as u32 - 4;
                put_length(&mut frame, len);
            }
        }
        let (head, body) = decode_head(peek(&frame).unwrap().unwrap(), &frame).unwrap();
        assert!(matches!(decode::<MetadataRequest>(&head, body), Err(DecodeError::Count { .. })), "version {version}");
    }
}

#[test]
fn api_versions_tells_the_list_and_an_unknown_version_gets_its_own_line_in_version_0() {
    for version in 0..=4 {
        let frame = encode_api_versions(7, version, true).unwrap();
        let mut bytes = Bytes::from(frame).slice(4..);
        assert_eq!(ResponseHeader::decode(&mut bytes, 0).unwrap().correlation_id, 7);
        let answer = ApiVersionsResponse::decode(&mut bytes, version).unwrap();
        let told: Vec<_> = answer.api_keys.iter().map(|api| (api.api_key, (api.min_version, api.max_version))).collect();
        let listed: Vec<_> = APIS.iter().map(|api| (api.key as i16, api.advertised)).collect();
        assert_eq!((answer.error_code, told), (0, listed));
    }
    let mut bytes = Bytes::from(encode_api_versions(7, 99, false).unwrap()).slice(8..);
    let answer = ApiVersionsResponse::decode(&mut bytes, 0).unwrap();
    assert_eq!((answer.error_code, answer.api_keys.len(), answer.api_keys[0].api_key), (35, 1, 18));
}
