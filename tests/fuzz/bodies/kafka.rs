//! Any bytes as requests of Kafka's protocol: nothing panics, and what is read of records lies within the request.
//!
//! The body of a fuzz target, and of a short random test.

use corelane::kafka::{self, APIS, DecodeError, Reader, RequestHead};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::Decodable;

/// Reads `data` as a frame, and as the body of a request that its first two bytes pick, so that what lies behind the header is reached.
pub fn run(data: &[u8]) {
    frame(data);
    if let [api, version, body @ ..] = data {
        let api = &APIS[usize::from(*api) % APIS.len()];
        let (least, most) = api.advertised;
        let version = least + i16::from(*version) % (most - least + 1);
        let mut whole = Vec::new();
        whole.extend_from_slice(&(body.len() as u32 + 11).to_be_bytes());
        whole.extend_from_slice(&(api.key as i16).to_be_bytes());
        whole.extend_from_slice(&version.to_be_bytes());
        // Correlation id, no client id, no tagged fields where the version has them.
        whole.extend_from_slice(&[0, 0, 0, 1, 0xff, 0xff]);
        whole.extend_from_slice(&[0][..usize::from(api.is_flexible(version))]);
        whole.extend_from_slice(body);
        frame(&whole);
    }
}

fn frame(bytes: &[u8]) {
    let Ok(Some(start)) = kafka::peek(bytes) else { return };
    let Ok((head, body)) = kafka::decode_head(start, bytes) else { return };
    if !start.is_served() {
        return;
    }
    match head.api.key {
        ApiKey::Produce => produce(bytes, body, head.version),
        ApiKey::Fetch => drop(kafka::decode_fetch(body, head.version)),
        ApiKey::ListOffsets => drop(decode::<ListOffsetsRequest>(&head, body)),
        ApiKey::Metadata => drop(decode::<MetadataRequest>(&head, body)),
        ApiKey::ApiVersions => drop(decode::<ApiVersionsRequest>(&head, body)),
        ApiKey::CreateTopics => drop(decode::<CreateTopicsRequest>(&head, body)),
        ApiKey::DeleteTopics => drop(decode::<DeleteTopicsRequest>(&head, body)),
        ApiKey::DeleteRecords => drop(decode::<DeleteRecordsRequest>(&head, body)),
        ApiKey::InitProducerId => drop(decode::<InitProducerIdRequest>(&head, body)),
        ApiKey::OffsetForLeaderEpoch => drop(decode::<OffsetForLeaderEpochRequest>(&head, body)),
        ApiKey::DescribeConfigs => drop(decode::<DescribeConfigsRequest>(&head, body)),
        ApiKey::AlterConfigs => drop(decode::<AlterConfigsRequest>(&head, body)),
        ApiKey::DescribeLogDirs => drop(decode::<DescribeLogDirsRequest>(&head, body)),
        ApiKey::CreatePartitions => drop(decode::<CreatePartitionsRequest>(&head, body)),
        ApiKey::IncrementalAlterConfigs => drop(decode::<IncrementalAlterConfigsRequest>(&head, body)),
        ApiKey::ElectLeaders => drop(decode::<ElectLeadersRequest>(&head, body)),
        ApiKey::AlterPartitionReassignments => drop(decode::<AlterPartitionReassignmentsRequest>(&head, body)),
        ApiKey::ListPartitionReassignments => drop(decode::<ListPartitionReassignmentsRequest>(&head, body)),
        ApiKey::DescribeCluster => drop(decode::<DescribeClusterRequest>(&head, body)),
        ApiKey::FindCoordinator => drop(decode::<FindCoordinatorRequest>(&head, body)),
        ApiKey::JoinGroup => drop(decode::<JoinGroupRequest>(&head, body)),
        ApiKey::SyncGroup => drop(decode::<SyncGroupRequest>(&head, body)),
        ApiKey::Heartbeat => drop(decode::<HeartbeatRequest>(&head, body)),
        ApiKey::LeaveGroup => drop(decode::<LeaveGroupRequest>(&head, body)),
        ApiKey::OffsetCommit => drop(decode::<OffsetCommitRequest>(&head, body)),
        ApiKey::OffsetFetch => drop(decode::<OffsetFetchRequest>(&head, body)),
        ApiKey::OffsetDelete => drop(decode::<OffsetDeleteRequest>(&head, body)),
        ApiKey::DescribeGroups => drop(decode::<DescribeGroupsRequest>(&head, body)),
        ApiKey::ListGroups => drop(decode::<ListGroupsRequest>(&head, body)),
        ApiKey::DeleteGroups => drop(decode::<DeleteGroupsRequest>(&head, body)),
        other => panic!("{other:?} is served and not read here"),
    }
}

fn decode<T: Decodable>(head: &RequestHead<'_>, body: Reader<'_>) -> Result<T, DecodeError> {
    kafka::decode(head, body)
}

fn produce(bytes: &[u8], body: Reader<'_>, version: i16) {
    let whole = kafka::decode_produce(body.clone(), version);
    let start = kafka::decode_produce_start(body, version);
    let Ok(whole) = whole else { return };
    let ranges: Vec<_> = whole.topics.iter().flat_map(|topic| &topic.partitions).filter_map(|p| p.records.clone()).collect();
    assert!(ranges.is_sorted_by(|a, b| a.end <= b.start) && ranges.iter().all(|range| range.end <= bytes.len()));
    if let Ok(Some(start)) = start {
        assert_eq!(start, whole, "the start of a request with one batch says what all of it says");
    }
}
