//! Requests of consumer groups in every version, with something in every field, for the tests of the codec.

use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic};
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::*;

use super::tests::{add, text, topic};

fn group() -> GroupId {
    GroupId(text("a group"))
}

pub fn requests(all: &mut Vec<(i16, i16, Vec<u8>)>) {
    members(all);
    offsets(all);
    administrators(all);
}

fn members(all: &mut Vec<(i16, i16, Vec<u8>)>) {
    for version in 0..=4 {
        let mut body = FindCoordinatorRequest::default();
        match version < 4 {
            true => body.key = text("a group"),
            false => body.coordinator_keys = vec![text("a group"), text("another")],
        }
        body.key_type = i8::from(version >= 1);
        add(all, ApiKey::FindCoordinator, version, body);
    }
    let instance = |since, version: i16| (version >= since).then(|| text("instance"));
    for version in 0..=9 {
        let protocol = JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(b"subscription"[..].into());
        let mut body = JoinGroupRequest::default()
            .with_group_id(group())
            .with_session_timeout_ms(10_000)
            .with_member_id(text("member"))
            .with_group_instance_id(instance(5, version))
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol.clone(), protocol])
            .with_reason((version >= 8).then(|| text("because")));
        if version >= 1 {
            body.rebalance_timeout_ms = 60_000;
        }
        add(all, ApiKey::JoinGroup, version, body);
    }
    for version in 0..=5 {
        let assignment = SyncGroupRequestAssignment::default().with_member_id(text("member")).with_assignment(b"partitions"[..].into());
        let body = SyncGroupRequest::default()
            .with_group_id(group())
            .with_generation_id(4)
            .with_member_id(text("member"))
            .with_group_instance_id(instance(3, version))
            .with_protocol_type((version >= 5).then(|| text("consumer")))
            .with_protocol_name((version >= 5).then(|| text("range")))
            .with_assignments(vec![assignment]);
        add(all, ApiKey::SyncGroup, version, body);
    }
    for version in 0..=4 {
        let body = HeartbeatRequest::default().with_group_id(group()).with_generation_id(4).with_member_id(text("member"));
        add(all, ApiKey::Heartbeat, version, body.with_group_instance_id(instance(3, version)));
    }
    for version in 0..=5 {
        let mut body = LeaveGroupRequest::default().with_group_id(group());
        match version < 3 {
            true => body.member_id = text("member"),
            false => {
                let member = MemberIdentity::default().with_member_id(text("member")).with_group_instance_id(instance(3, version));
                body.members = vec![member.with_reason((version >= 5).then(|| text("because")))];
            }
        }
        add(all, ApiKey::LeaveGroup, version, body);
    }
}

fn offsets(all: &mut Vec<(i16, i16, Vec<u8>)>) {
    for version in 2..=8 {
        let partition = OffsetCommitRequestPartition::default().with_partition_index(1).with_committed_offset(7);
        let epoch = if version >= 6 { 3 } else { -1 };
        let partition = partition.with_committed_leader_epoch(epoch).with_committed_metadata(Some(text("words")));
        let partitions = vec![partition.clone(), partition.with_committed_metadata(None)];
        let of = OffsetCommitRequestTopic::default().with_name(topic("orders")).with_partitions(partitions);
        let mut body = OffsetCommitRequest::default()
            .with_group_id(group())
            .with_generation_id_or_member_epoch(4)
            .with_member_id(text("member"))
            .with_group_instance_id((version >= 7).then(|| text("instance")))
            .with_topics(vec![of]);
        if version <= 4 {
            body.retention_time_ms = 9;
        }
        add(all, ApiKey::OffsetCommit, version, body);
    }
    for version in 1..=8 {
        let mut body = OffsetFetchRequest::default();
        body.require_stable = version >= 7;
        if version < 8 {
            let of = OffsetFetchRequestTopic::default().with_name(topic("orders")).with_partition_indexes(vec![0, 1]);
            let body = body.with_group_id(group());
            add(all, ApiKey::OffsetFetch, version, body.clone().with_topics(Some(vec![of])));
            if version >= 2 {
                add(all, ApiKey::OffsetFetch, version, body.with_topics(None));
            }
            continue;
        }
        let of = OffsetFetchRequestTopics::default().with_name(topic("orders")).with_partition_indexes(vec![0, 1]);
        let one = OffsetFetchRequestGroup::default().with_group_id(group());
        let groups = vec![one.clone().with_topics(Some(vec![of])), one.with_topics(None)];
        add(all, ApiKey::OffsetFetch, version, body.with_groups(groups));
    }
    let partition = OffsetDeleteRequestPartition::default().with_partition_index(2);
    let of = OffsetDeleteRequestTopic::default().with_name(topic("orders")).with_partitions(vec![partition]);
    add(all, ApiKey::OffsetDelete, 0, OffsetDeleteRequest::default().with_group_id(group()).with_topics(vec![of]));
}

fn administrators(all: &mut Vec<(i16, i16, Vec<u8>)>) {
    for version in 0..=5 {
        let mut body = DescribeGroupsRequest::default().with_groups(vec![group(), group()]);
        body.include_authorized_operations = version >= 3;
        add(all, ApiKey::DescribeGroups, version, body);
    }
    for version in 0..=5 {
        let mut body = ListGroupsRequest::default();
        if version >= 4 {
            body.states_filter = vec![text("Stable")];
        }
        if version >= 5 {
            body.types_filter = vec![text("classic")];
        }
        add(all, ApiKey::ListGroups, version, body);
    }
    for version in 0..=2 {
        add(all, ApiKey::DeleteGroups, version, DeleteGroupsRequest::default().with_groups_names(vec![group(), group()]));
    }
}
