//! Kafka's requests of a consumer group's members: who coordinates the group, joins, syncs, heartbeats, leaves.
//!
//! A member is known by the id that the coordinator gave it, not by its connection: one that is cut off keeps its place until its session ends.

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{
    FindCoordinatorRequest, FindCoordinatorResponse, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse,
    LeaveGroupRequest, LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;

use crate::kafka::FrameError;
use crate::limits;
use crate::request::Broker;
use crate::request::group::{
    GroupAnswer, GroupError, GroupRequest, Heartbeat, JoinGroup, JoinRefused, Joined, LeaveGroup, MemberRef, Protocol, SyncGroup,
};
use crate::shard::groups;
use crate::shard::kafka_service::Asked;

/// The kind of key that is a consumer group's id; others are of transactions and share groups.
const GROUP_KEY: i8 = 0;
/// First version of JoinGroup whose new members are told their id first (KIP-394).
const JOIN_WITH_ID: i16 = 4;
/// First version of JoinGroup whose answer may tell a leader to keep the assignment (KIP-814).
const JOIN_SKIPS: i16 = 9;

/// FindCoordinator.
pub async fn find_coordinator(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: FindCoordinatorRequest = asked.decode()?;
    let version = asked.head.version;
    let is_batched = version >= 4;
    let mut keys = if is_batched { request.coordinator_keys } else { vec![request.key] };
    keys.truncate(limits::MAX_KAFKA_CHANGES);
    let names: Vec<String> = keys.iter().map(StrBytes::to_string).collect();
    let found: Vec<Result<Broker, (i16, &str)>> = if request.key_type == GROUP_KEY {
        let found = groups::coordinators(asked.context, &names).await;
        found.into_iter().map(|found| found.map_err(|error| (asked.refuse_group(error), "the coordinator is not available"))).collect()
    } else {
        let error = ResponseError::InvalidRequest.code();
        names.iter().map(|_| Err((error, "only consumer groups have coordinators here: transactions are not served"))).collect()
    };
    let mut coordinators = keys.into_iter().zip(found).map(|(key, found)| match found {
        Ok(broker) => Coordinator::default()
            .with_key(key)
            .with_node_id((broker.id as i32).into())
            .with_host(broker.host.into())
            .with_port(i32::from(broker.port)),
        Err((error, words)) => Coordinator::default()
            .with_key(key)
            .with_node_id((-1).into())
            .with_port(-1)
            .with_error_code(error)
            .with_error_message(Some(StrBytes::from_static_str(words))),
    });
    let answer = FindCoordinatorResponse::default();
    if is_batched {
        return asked.encode(&answer.with_coordinators(coordinators.collect()));
    }
    let one = coordinators.next().unwrap_or_default();
    let answer = answer.with_error_code(one.error_code).with_node_id(one.node_id).with_host(one.host).with_port(one.port);
    asked.encode(&if version >= 1 { answer.with_error_message(one.error_message) } else { answer })
}

/// JoinGroup.
pub async fn join_group(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: JoinGroupRequest = asked.decode()?;
    let version = asked.head.version;
    let join = JoinGroup {
        group: request.group_id.0.to_string(),
        member_id: request.member_id.to_string(),
        instance_id: request.group_instance_id.map(|id| id.to_string()),
        client_id: asked.head.client_id.unwrap_or_default().to_owned(),
        client_host: String::new(),
        session_timeout_ms: request.session_timeout_ms,
        rebalance_timeout_ms: if version == 0 { -1 } else { request.rebalance_timeout_ms },
        protocol_type: request.protocol_type.to_string(),
        protocols: request.protocols.into_iter().map(|p| Protocol { name: p.name.as_str().into(), metadata: p.metadata }).collect(),
        needs_member_id: version >= JOIN_WITH_ID,
        can_skip_assignment: version >= JOIN_SKIPS,
        entropy: [0; 16],
    };
    let joined = match asked.ask_group(GroupRequest::Join(join)).await {
        GroupAnswer::Join(joined) => joined,
        _ => Err(JoinRefused { error: GroupError::UnknownServerError, member_id: "".into() }),
    };
    asked.encode(&match joined {
        Ok(joined) => join_answer(version, joined),
        Err(JoinRefused { error, member_id }) => JoinGroupResponse::default()
            .with_error_code(asked.refuse_group(error))
            .with_generation_id(-1)
            .with_protocol_name((version < 7).then(StrBytes::default))
            .with_member_id(text(&member_id)),
    })
}

fn join_answer(version: i16, joined: Joined) -> JoinGroupResponse {
    let members = joined.members.into_iter().map(|member| {
        JoinGroupResponseMember::default()
            .with_member_id(text(&member.member_id))
            .with_group_instance_id(member.instance_id.filter(|_| version >= 5).map(|id| text(&id)))
            .with_metadata(member.metadata)
    });
    JoinGroupResponse::default()
        .with_generation_id(joined.generation)
        .with_protocol_type(joined.protocol_type.filter(|_| version >= 7).map(|name| text(&name)))
        .with_protocol_name(Some(joined.protocol.map(|name| text(&name)).unwrap_or_default()))
        .with_leader(text(&joined.leader))
        .with_member_id(text(&joined.member_id))
        .with_skip_assignment(joined.skip_assignment && version >= JOIN_SKIPS)
        .with_members(members.collect())
}

/// SyncGroup.
pub async fn sync_group(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: SyncGroupRequest = asked.decode()?;
    let version = asked.head.version;
    let sync = SyncGroup {
        group: request.group_id.0.to_string(),
        member: member(&request.member_id, request.group_instance_id),
        generation: request.generation_id,
        protocol_type: request.protocol_type.map(|name| name.to_string()),
        protocol: request.protocol_name.map(|name| name.to_string()),
        assignments: request.assignments.into_iter().map(|a| (a.member_id.to_string(), a.assignment)).collect(),
    };
    let synced = match asked.ask_group(GroupRequest::Sync(sync)).await {
        GroupAnswer::Sync(synced) => synced,
        _ => Err(GroupError::UnknownServerError),
    };
    asked.encode(&match synced {
        Ok(synced) => SyncGroupResponse::default()
            .with_protocol_type(synced.protocol_type.filter(|_| version >= 5).map(|name| text(&name)))
            .with_protocol_name(synced.protocol.filter(|_| version >= 5).map(|name| text(&name)))
            .with_assignment(synced.assignment),
        Err(error) => SyncGroupResponse::default().with_error_code(asked.refuse_group(error)).with_assignment(Bytes::new()),
    })
}

/// Heartbeat.
pub async fn heartbeat(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: HeartbeatRequest = asked.decode()?;
    let heartbeat = Heartbeat {
        group: request.group_id.0.to_string(),
        member: member(&request.member_id, request.group_instance_id),
        generation: request.generation_id,
    };
    let outcome = match asked.ask_group(GroupRequest::Heartbeat(heartbeat)).await {
        GroupAnswer::Heartbeat(outcome) => outcome,
        _ => Err(GroupError::UnknownServerError),
    };
    asked.encode(&HeartbeatResponse::default().with_error_code(asked.group_code(outcome)))
}

/// LeaveGroup. Before version 3 one member leaves, and its outcome is the answer's.
pub async fn leave_group(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: LeaveGroupRequest = asked.decode()?;
    let is_batched = asked.head.version >= 3;
    let members = match is_batched {
        true => request.members.into_iter().map(|m| member(&m.member_id, m.group_instance_id)).collect(),
        false => vec![member(&request.member_id, None)],
    };
    let leave = LeaveGroup { group: request.group_id.0.to_string(), members };
    let left = match asked.ask_group(GroupRequest::Leave(leave)).await {
        GroupAnswer::Leave(left) => left,
        _ => Err(GroupError::UnknownServerError),
    };
    let answer = LeaveGroupResponse::default();
    asked.encode(&match left {
        Err(error) => answer.with_error_code(asked.refuse_group(error)),
        Ok(left) if is_batched => {
            let members = left.into_iter().map(|left| {
                MemberResponse::default()
                    .with_member_id(left.member.member_id.into())
                    .with_group_instance_id(left.member.instance_id.map(StrBytes::from))
                    .with_error_code(asked.group_code(left.outcome))
            });
            answer.with_members(members.collect())
        }
        Ok(left) => answer.with_error_code(left.first().map_or(0, |left| asked.group_code(left.outcome))),
    })
}

/// A member as it names itself.
pub fn member(id: &StrBytes, instance_id: Option<StrBytes>) -> MemberRef {
    MemberRef { member_id: id.to_string(), instance_id: instance_id.map(|id| id.to_string()) }
}

/// A string of an answer.
pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}
