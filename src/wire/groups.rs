//! Requests to the coordinators of groups and their answers, both ways.
//!
//! What the connection knows by itself is not sent: a join has no client id, no host and no random bytes, and they come out empty. Errors are the
//! Kafka protocol's numbers; one that this build does not know becomes [`GroupError::UnknownServerError`], a failure that is not worth a retry.

use std::sync::Arc;

use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, UnionWIPOffset, Vector, WIPOffset};

use super::decode::{Fault, invalid};
use super::generated as g;
use crate::limits;
use crate::request::Broker;
use crate::request::group::{
    CommitOffsets, CommitPartition, DescribedGroup, DescribedMember, FetchOffsets, FetchedOffset, FetchedTopic, GroupAnswer, GroupError,
    GroupRequest, Heartbeat, JoinGroup, JoinRefused, Joined, LeaveGroup, Left, ListedGroup, MemberMetadata, MemberRef, OffsetCommit,
    Protocol, State, SyncGroup, Synced, TopicOutcome,
};

type Builder = FlatBufferBuilder<'static>;
type Offset<T> = WIPOffset<T>;
type List<T> = WIPOffset<Vector<'static, ForwardsUOffset<T>>>;
/// A body of any kind.
pub(super) type Body = WIPOffset<UnionWIPOffset>;

/// Copies the items of a list of tables, one after the other.
macro_rules! tables {
    ($b:expr, $items:expr, |$item:pat_param| $made:expr) => {{
        let made: Vec<_> = $items.iter().map(|$item| $made).collect();
        Some($b.create_vector(&made))
    }};
}

pub(super) fn request_body(b: &mut Builder, request: &GroupRequest) -> (g::RequestBody, Body) {
    use g::RequestBody as Kind;
    match request {
        GroupRequest::Join(join) => (Kind::JoinGroupRequest, join_request(b, join).as_union_value()),
        GroupRequest::Sync(sync) => (Kind::SyncGroupRequest, sync_request(b, sync, false).as_union_value()),
        GroupRequest::SyncAssignedByBroker(sync) => (Kind::SyncGroupRequest, sync_request(b, sync, true).as_union_value()),
        GroupRequest::Heartbeat(heartbeat) => {
            let (group, member) = (Some(b.create_string(&heartbeat.group)), Some(member(b, &heartbeat.member)));
            let args = g::HeartbeatRequestArgs { group, member, generation: heartbeat.generation };
            (Kind::HeartbeatRequest, g::HeartbeatRequest::create(b, &args).as_union_value())
        }
        GroupRequest::Leave(leave) => {
            let members = tables!(b, leave.members, |of| member(b, of));
            let group = Some(b.create_string(&leave.group));
            (Kind::LeaveGroupRequest, g::LeaveGroupRequest::create(b, &g::LeaveGroupRequestArgs { group, members }).as_union_value())
        }
        GroupRequest::Commit(commit) => (Kind::CommitOffsetsRequest, commit_request(b, commit).as_union_value()),
        GroupRequest::FetchOffsets(fetch) => {
            let topics = fetch.topics.as_ref().map(|topics| partitions_of_topics(b, topics));
            let group = Some(b.create_string(&fetch.group));
            let args = g::FetchOffsetsRequestArgs { group, topics, require_stable: fetch.require_stable };
            (Kind::FetchOffsetsRequest, g::FetchOffsetsRequest::create(b, &args).as_union_value())
        }
        GroupRequest::Describe(groups) => {
            let groups = names(b, groups);
            (Kind::DescribeGroupsRequest, g::DescribeGroupsRequest::create(b, &g::DescribeGroupsRequestArgs { groups }).as_union_value())
        }
        GroupRequest::List(states) => {
            let states = Some(b.create_vector_from_iter(states.iter().map(|of| state(*of))));
            (Kind::ListGroupsRequest, g::ListGroupsRequest::create(b, &g::ListGroupsRequestArgs { states }).as_union_value())
        }
        GroupRequest::Delete(groups) => {
            let groups = names(b, groups);
            (Kind::DeleteGroupsRequest, g::DeleteGroupsRequest::create(b, &g::DeleteGroupsRequestArgs { groups }).as_union_value())
        }
        GroupRequest::DeleteOffsets { group, topics } => {
            let topics = Some(partitions_of_topics(b, topics));
            let group = Some(b.create_string(group));
            (
                Kind::DeleteOffsetsRequest,
                g::DeleteOffsetsRequest::create(b, &g::DeleteOffsetsRequestArgs { group, topics }).as_union_value(),
            )
        }
    }
}

pub(super) fn find_coordinator_request(b: &mut Builder, groups: &[String]) -> (g::RequestBody, Body) {
    let groups = names(b, groups);
    let request = g::FindCoordinatorRequest::create(b, &g::FindCoordinatorRequestArgs { groups });
    (g::RequestBody::FindCoordinatorRequest, request.as_union_value())
}

fn join_request(b: &mut Builder, join: &JoinGroup) -> Offset<g::JoinGroupRequest<'static>> {
    let protocols = tables!(b, join.protocols, |protocol| {
        let (name, metadata) = (Some(b.create_string(&protocol.name)), Some(b.create_vector(&protocol.metadata)));
        g::GroupProtocol::create(b, &g::GroupProtocolArgs { name, metadata })
    });
    let named = MemberRef { member_id: join.member_id.clone(), instance_id: join.instance_id.clone() };
    let args = g::JoinGroupRequestArgs {
        group: Some(b.create_string(&join.group)),
        member: Some(member(b, &named)),
        session_timeout_ms: join.session_timeout_ms,
        rebalance_timeout_ms: join.rebalance_timeout_ms,
        protocol_type: Some(b.create_string(&join.protocol_type)),
        protocols,
        needs_member_id: join.needs_member_id,
        can_skip_assignment: join.can_skip_assignment,
    };
    g::JoinGroupRequest::create(b, &args)
}

fn sync_request(b: &mut Builder, sync: &SyncGroup, assigned_by_broker: bool) -> Offset<g::SyncGroupRequest<'static>> {
    let assignments = tables!(b, sync.assignments, |(id, assignment)| {
        let (member_id, assignment) = (Some(b.create_string(id)), Some(b.create_vector(assignment)));
        g::MemberAssignment::create(b, &g::MemberAssignmentArgs { member_id, assignment })
    });
    let args = g::SyncGroupRequestArgs {
        group: Some(b.create_string(&sync.group)),
        member: Some(member(b, &sync.member)),
        generation: sync.generation,
        protocol_type: sync.protocol_type.as_ref().map(|text| b.create_string(text)),
        protocol: sync.protocol.as_ref().map(|text| b.create_string(text)),
        assignments,
        assigned_by_broker,
    };
    g::SyncGroupRequest::create(b, &args)
}

fn commit_request(b: &mut Builder, commit: &CommitOffsets) -> Offset<g::CommitOffsetsRequest<'static>> {
    let topics = tables!(b, commit.topics, |(topic, partitions)| {
        let partitions = tables!(b, partitions, |of| {
            let metadata = of.metadata.as_ref().map(|text| b.create_string(text));
            let args = g::CommitPartitionArgs { partition: of.partition, offset: of.offset, leader_epoch: of.leader_epoch, metadata };
            g::CommitPartition::create(b, &args)
        });
        let topic = Some(b.create_string(topic));
        g::CommitTopic::create(b, &g::CommitTopicArgs { topic, partitions })
    });
    let (group, member) = (Some(b.create_string(&commit.group)), Some(member(b, &commit.member)));
    g::CommitOffsetsRequest::create(b, &g::CommitOffsetsRequestArgs { group, member, generation: commit.generation, topics })
}

fn member(b: &mut Builder, of: &MemberRef) -> Offset<g::GroupMember<'static>> {
    member_of(b, &of.member_id, of.instance_id.as_deref())
}

fn member_of(b: &mut Builder, member_id: &str, instance_id: Option<&str>) -> Offset<g::GroupMember<'static>> {
    let (member_id, instance_id) = (Some(b.create_string(member_id)), instance_id.map(|text| b.create_string(text)));
    g::GroupMember::create(b, &g::GroupMemberArgs { member_id, instance_id })
}

fn names(b: &mut Builder, names: &[String]) -> Option<List<&'static str>> {
    let names: Vec<_> = names.iter().map(|name| b.create_string(name)).collect();
    Some(b.create_vector(&names))
}

fn partitions_of_topics(b: &mut Builder, topics: &[(String, Vec<i32>)]) -> List<g::PartitionsOfTopic<'static>> {
    let topics: Vec<_> = topics
        .iter()
        .map(|(topic, partitions)| {
            let (topic, partitions) = (Some(b.create_string(topic)), Some(b.create_vector(partitions)));
            g::PartitionsOfTopic::create(b, &g::PartitionsOfTopicArgs { topic, partitions })
        })
        .collect();
    b.create_vector(&topics)
}

fn state(state: State) -> g::GroupState {
    match state {
        State::Empty => g::GroupState::Empty,
        State::PreparingRebalance => g::GroupState::PreparingRebalance,
        State::CompletingRebalance => g::GroupState::CompletingRebalance,
        State::Stable => g::GroupState::Stable,
        State::Dead => g::GroupState::Dead,
    }
}

pub(super) fn response_body(b: &mut Builder, answer: &GroupAnswer) -> (g::ResponseBody, Body) {
    use g::ResponseBody as Kind;
    match answer {
        GroupAnswer::Join(outcome) => (Kind::JoinGroupResponse, join_response(b, outcome).as_union_value()),
        GroupAnswer::Sync(outcome) => {
            let synced = outcome.as_ref().ok();
            let args = g::SyncGroupResponseArgs {
                error: error(outcome),
                protocol_type: synced.and_then(|s| s.protocol_type.as_ref()).map(|text| b.create_string(text)),
                protocol: synced.and_then(|s| s.protocol.as_ref()).map(|text| b.create_string(text)),
                assignment: Some(b.create_vector(synced.map_or(&[][..], |s| &s.assignment))),
            };
            (Kind::SyncGroupResponse, g::SyncGroupResponse::create(b, &args).as_union_value())
        }
        GroupAnswer::Heartbeat(outcome) => {
            let args = g::HeartbeatResponseArgs { error: error(outcome) };
            (Kind::HeartbeatResponse, g::HeartbeatResponse::create(b, &args).as_union_value())
        }
        GroupAnswer::Leave(outcome) => {
            let members = tables!(b, items(outcome), |left| {
                let member = Some(member(b, &left.member));
                g::LeftMember::create(b, &g::LeftMemberArgs { member, error: error(&left.outcome) })
            });
            let args = g::LeaveGroupResponseArgs { error: error(outcome), members };
            (Kind::LeaveGroupResponse, g::LeaveGroupResponse::create(b, &args).as_union_value())
        }
        GroupAnswer::Commit(topics) => {
            let topics = topic_outcomes(b, topics);
            (Kind::CommitOffsetsResponse, g::CommitOffsetsResponse::create(b, &g::CommitOffsetsResponseArgs { topics }).as_union_value())
        }
        GroupAnswer::FetchOffsets(outcome) => {
            let topics = tables!(b, items(outcome), |topic| fetched_topic(b, topic));
            let args = g::FetchOffsetsResponseArgs { error: error(outcome), topics };
            (Kind::FetchOffsetsResponse, g::FetchOffsetsResponse::create(b, &args).as_union_value())
        }
        GroupAnswer::Describe(groups) => {
            let groups = tables!(b, groups, |(group, outcome)| described_group(b, group, outcome));
            (Kind::DescribeGroupsResponse, g::DescribeGroupsResponse::create(b, &g::DescribeGroupsResponseArgs { groups }).as_union_value())
        }
        GroupAnswer::List(outcome) => {
            let groups = tables!(b, items(outcome), |listed| {
                let (group, protocol_type) = (Some(b.create_string(&listed.group)), Some(b.create_string(&listed.protocol_type)));
                g::ListedGroup::create(b, &g::ListedGroupArgs { group, protocol_type, state: state(listed.state) })
            });
            let args = g::ListGroupsResponseArgs { error: error(outcome), groups };
            (Kind::ListGroupsResponse, g::ListGroupsResponse::create(b, &args).as_union_value())
        }
        GroupAnswer::DeleteGroups(groups) => {
            let groups = tables!(b, groups, |(group, outcome)| {
                let group = Some(b.create_string(group));
                g::GroupOutcome::create(b, &g::GroupOutcomeArgs { group, error: error(outcome) })
            });
            (Kind::DeleteGroupsResponse, g::DeleteGroupsResponse::create(b, &g::DeleteGroupsResponseArgs { groups }).as_union_value())
        }
        GroupAnswer::DeleteOffsets(outcome) => {
            let topics = topic_outcomes(b, items(outcome));
            let args = g::DeleteOffsetsResponseArgs { error: error(outcome), topics };
            (Kind::DeleteOffsetsResponse, g::DeleteOffsetsResponse::create(b, &args).as_union_value())
        }
    }
}

pub(super) fn coordinators_response(b: &mut Builder, found: &[Result<Broker, GroupError>]) -> (g::ResponseBody, Body) {
    let coordinators = tables!(b, found, |outcome| {
        let broker = outcome.as_ref().ok().map(|broker| {
            let host = Some(b.create_string(&broker.host));
            g::Broker::create(b, &g::BrokerArgs { id: broker.id, host, port: broker.port })
        });
        g::Coordinator::create(b, &g::CoordinatorArgs { error: error(outcome), broker })
    });
    let response = g::FindCoordinatorResponse::create(b, &g::FindCoordinatorResponseArgs { coordinators });
    (g::ResponseBody::FindCoordinatorResponse, response.as_union_value())
}

fn error<T>(outcome: &Result<T, GroupError>) -> i16 {
    outcome.as_ref().err().map_or(0, |error| error.code())
}

fn items<T>(outcome: &Result<Vec<T>, GroupError>) -> &[T] {
    outcome.as_ref().map_or(&[], |items| items)
}

fn join_response(b: &mut Builder, outcome: &Result<Joined, JoinRefused>) -> Offset<g::JoinGroupResponse<'static>> {
    let args = match outcome {
        Ok(joined) => {
            let members = tables!(b, joined.members, |of| {
                let member = Some(member_of(b, &of.member_id, of.instance_id.as_deref()));
                let metadata = Some(b.create_vector(&of.metadata));
                g::MemberMetadata::create(b, &g::MemberMetadataArgs { member, metadata })
            });
            g::JoinGroupResponseArgs {
                error: 0,
                member_id: Some(b.create_string(&joined.member_id)),
                generation: joined.generation,
                protocol_type: joined.protocol_type.as_ref().map(|text| b.create_string(text)),
                protocol: joined.protocol.as_ref().map(|text| b.create_string(text)),
                leader: Some(b.create_string(&joined.leader)),
                skip_assignment: joined.skip_assignment,
                members,
            }
        }
        Err(refused) => g::JoinGroupResponseArgs {
            error: refused.error.code(),
            member_id: Some(b.create_string(&refused.member_id)),
            leader: Some(b.create_string("")),
            ..Default::default()
        },
    };
    g::JoinGroupResponse::create(b, &args)
}

fn topic_outcomes(b: &mut Builder, topics: &[TopicOutcome]) -> Option<List<g::TopicOutcome<'static>>> {
    tables!(b, topics, |of| {
        let outcomes = of.partitions.iter().map(|(partition, outcome)| g::PartitionOutcome::new(*partition, error(outcome)));
        let (partitions, topic) = (Some(b.create_vector_from_iter(outcomes)), Some(b.create_string(&of.topic)));
        g::TopicOutcome::create(b, &g::TopicOutcomeArgs { topic, partitions })
    })
}

fn fetched_topic(b: &mut Builder, topic: &FetchedTopic) -> Offset<g::FetchedTopic<'static>> {
    let partitions = tables!(b, topic.partitions, |fetched| {
        let committed = fetched.outcome.as_ref().ok().and_then(|found| found.as_deref()).map(|commit| {
            let metadata = Some(b.create_string(&commit.metadata));
            let args = g::CommittedOffsetArgs {
                offset: commit.offset,
                leader_epoch: commit.leader_epoch,
                metadata,
                commit_timestamp: commit.commit_timestamp,
                expire_timestamp: commit.expire_timestamp,
            };
            g::CommittedOffset::create(b, &args)
        });
        g::FetchedOffset::create(b, &g::FetchedOffsetArgs { partition: fetched.partition, error: error(&fetched.outcome), committed })
    });
    let topic = Some(b.create_string(&topic.topic));
    g::FetchedTopic::create(b, &g::FetchedTopicArgs { topic, partitions })
}

fn described_group(b: &mut Builder, group: &str, outcome: &Result<DescribedGroup, GroupError>) -> Offset<g::DescribedGroup<'static>> {
    let found = outcome.as_ref().ok();
    let members = tables!(b, found.map_or(&[][..], |found| &found.members), |of| {
        let args = g::DescribedMemberArgs {
            member: Some(member_of(b, &of.member_id, of.instance_id.as_deref())),
            client_id: Some(b.create_string(&of.client_id)),
            client_host: Some(b.create_string(&of.client_host)),
            metadata: Some(b.create_vector(&of.metadata)),
            assignment: Some(b.create_vector(&of.assignment)),
        };
        g::DescribedMember::create(b, &args)
    });
    let args = g::DescribedGroupArgs {
        group: Some(b.create_string(group)),
        error: error(outcome),
        state: state(found.map_or(State::Dead, |found| found.state)),
        protocol_type: Some(b.create_string(found.map_or("", |found| &found.protocol_type))),
        protocol: Some(b.create_string(found.map_or("", |found| &found.protocol))),
        members,
    };
    g::DescribedGroup::create(b, &args)
}

/// `None` where the body is no request to a coordinator.
pub(super) fn request_of(root: &g::Request<'_>) -> Result<Option<GroupRequest>, Fault> {
    let request = if let Some(join) = root.body_as_join_group_request() {
        GroupRequest::Join(join_of(&join))
    } else if let Some(sync) = root.body_as_sync_group_request() {
        sync_of(&sync)?
    } else if let Some(heartbeat) = root.body_as_heartbeat_request() {
        GroupRequest::Heartbeat(Heartbeat {
            group: heartbeat.group().into(),
            member: member_ref(&heartbeat.member()),
            generation: heartbeat.generation(),
        })
    } else if let Some(leave) = root.body_as_leave_group_request() {
        GroupRequest::Leave(LeaveGroup { group: leave.group().into(), members: leave.members().iter().map(|m| member_ref(&m)).collect() })
    } else if let Some(commit) = root.body_as_commit_offsets_request() {
        GroupRequest::Commit(commit_of(&commit)?)
    } else if let Some(fetch) = root.body_as_fetch_offsets_request() {
        let topics = fetch.topics().map(topics_of);
        GroupRequest::FetchOffsets(FetchOffsets { group: fetch.group().into(), topics, require_stable: fetch.require_stable() })
    } else if let Some(describe) = root.body_as_describe_groups_request() {
        GroupRequest::Describe(group_names(describe.groups())?)
    } else if let Some(list) = root.body_as_list_groups_request() {
        GroupRequest::List(states_of(&list)?)
    } else if let Some(delete) = root.body_as_delete_groups_request() {
        GroupRequest::Delete(group_names(delete.groups())?)
    } else if let Some(delete) = root.body_as_delete_offsets_request() {
        GroupRequest::DeleteOffsets { group: delete.group().into(), topics: topics_of(delete.topics()) }
    } else {
        return Ok(None);
    };
    Ok(Some(request))
}

pub(super) fn group_names(list: Vector<'_, ForwardsUOffset<&str>>) -> Result<Vec<String>, Fault> {
    if list.len() > limits::MAX_GROUPS_OF_REQUEST {
        return invalid(format!("a request names at most {} groups, not {}", limits::MAX_GROUPS_OF_REQUEST, list.len()));
    }
    Ok(list.iter().map(String::from).collect())
}

fn join_of(join: &g::JoinGroupRequest<'_>) -> JoinGroup {
    let MemberRef { member_id, instance_id } = member_ref(&join.member());
    let protocol = |p: g::GroupProtocol<'_>| Protocol { name: p.name().into(), metadata: Bytes::copy_from_slice(p.metadata().bytes()) };
    JoinGroup {
        group: join.group().into(),
        member_id,
        instance_id,
        client_id: String::new(),
        client_host: String::new(),
        session_timeout_ms: join.session_timeout_ms(),
        rebalance_timeout_ms: join.rebalance_timeout_ms(),
        protocol_type: join.protocol_type().into(),
        protocols: join.protocols().iter().map(protocol).collect(),
        needs_member_id: join.needs_member_id(),
        can_skip_assignment: join.can_skip_assignment(),
        entropy: [0; 16],
    }
}

fn sync_of(sync: &g::SyncGroupRequest<'_>) -> Result<GroupRequest, Fault> {
    let assignment = |a: g::MemberAssignment<'_>| (a.member_id().into(), Bytes::copy_from_slice(a.assignment().bytes()));
    let request = SyncGroup {
        group: sync.group().into(),
        member: member_ref(&sync.member()),
        generation: sync.generation(),
        protocol_type: sync.protocol_type().map(String::from),
        protocol: sync.protocol().map(String::from),
        assignments: sync.assignments().into_iter().flatten().map(assignment).collect(),
    };
    match (sync.assigned_by_broker(), request.assignments.len()) {
        (false, _) => Ok(GroupRequest::Sync(request)),
        (true, 0) => Ok(GroupRequest::SyncAssignedByBroker(request)),
        (true, given) => invalid(format!("the broker is to assign: expected no assignments, got {given}")),
    }
}

fn commit_of(commit: &g::CommitOffsetsRequest<'_>) -> Result<CommitOffsets, Fault> {
    let mut topics = Vec::with_capacity(commit.topics().len());
    for topic in commit.topics() {
        let mut partitions = Vec::with_capacity(topic.partitions().len());
        for of in topic.partitions() {
            if let Some(epoch @ ..0) = of.leader_epoch() {
                return invalid(format!("a leader epoch must be 0 or more, or absent, not {epoch}"));
            }
            partitions.push(CommitPartition {
                partition: of.partition(),
                offset: of.offset(),
                leader_epoch: of.leader_epoch(),
                metadata: of.metadata().map(String::from),
            });
        }
        topics.push((topic.topic().into(), partitions));
    }
    Ok(CommitOffsets {
        group: commit.group().into(),
        member: member_ref(&commit.member()),
        generation: commit.generation(),
        retention_ms: None,
        topics,
    })
}

fn states_of(list: &g::ListGroupsRequest<'_>) -> Result<Vec<State>, Fault> {
    let known = |state| state_of(state).ok_or_else(|| Fault::Invalid(format!("a state of a group must be 0 to 4, not {}", state.0)));
    list.states().iter().map(known).collect()
}

fn state_of(state: g::GroupState) -> Option<State> {
    match state {
        g::GroupState::Empty => Some(State::Empty),
        g::GroupState::PreparingRebalance => Some(State::PreparingRebalance),
        g::GroupState::CompletingRebalance => Some(State::CompletingRebalance),
        g::GroupState::Stable => Some(State::Stable),
        g::GroupState::Dead => Some(State::Dead),
        _ => None,
    }
}

fn topics_of(list: Vector<'_, ForwardsUOffset<g::PartitionsOfTopic<'_>>>) -> Vec<(String, Vec<i32>)> {
    list.iter().map(|of| (of.topic().into(), of.partitions().iter().collect())).collect()
}

fn member_ref(member: &g::GroupMember<'_>) -> MemberRef {
    MemberRef { member_id: member.member_id().into(), instance_id: member.instance_id().map(String::from) }
}

/// `None` where the body is no answer of a coordinator.
pub(super) fn answer_of(root: &g::Response<'_>) -> Result<Option<GroupAnswer>, Fault> {
    let answer = if let Some(join) = root.body_as_join_group_response() {
        GroupAnswer::Join(joined_of(&join))
    } else if let Some(sync) = root.body_as_sync_group_response() {
        GroupAnswer::Sync(outcome(sync.error(), || Synced {
            protocol_type: sync.protocol_type().map(Arc::from),
            protocol: sync.protocol().map(Arc::from),
            assignment: Bytes::copy_from_slice(sync.assignment().bytes()),
        }))
    } else if let Some(heartbeat) = root.body_as_heartbeat_response() {
        GroupAnswer::Heartbeat(outcome(heartbeat.error(), || ()))
    } else if let Some(leave) = root.body_as_leave_group_response() {
        let left = |of: g::LeftMember<'_>| Left { member: member_ref(&of.member()), outcome: outcome(of.error(), || ()) };
        GroupAnswer::Leave(outcome(leave.error(), || leave.members().iter().map(left).collect()))
    } else if let Some(commit) = root.body_as_commit_offsets_response() {
        GroupAnswer::Commit(topic_outcomes_of(commit.topics()))
    } else if let Some(fetch) = root.body_as_fetch_offsets_response() {
        GroupAnswer::FetchOffsets(outcome(fetch.error(), || fetch.topics().iter().map(|topic| fetched_topic_of(&topic)).collect()))
    } else if let Some(describe) = root.body_as_describe_groups_response() {
        GroupAnswer::Describe(describe.groups().iter().map(|group| described_group_of(&group)).collect())
    } else if let Some(list) = root.body_as_list_groups_response() {
        let listed = |of: g::ListedGroup<'_>| ListedGroup {
            group: of.group().into(),
            protocol_type: of.protocol_type().into(),
            state: state_of(of.state()).unwrap_or(State::Dead),
        };
        GroupAnswer::List(outcome(list.error(), || list.groups().iter().map(listed).collect()))
    } else if let Some(delete) = root.body_as_delete_groups_response() {
        let deleted = |of: g::GroupOutcome<'_>| (of.group().into(), outcome(of.error(), || ()));
        GroupAnswer::DeleteGroups(delete.groups().iter().map(deleted).collect())
    } else if let Some(delete) = root.body_as_delete_offsets_response() {
        GroupAnswer::DeleteOffsets(outcome(delete.error(), || topic_outcomes_of(delete.topics())))
    } else {
        return Ok(None);
    };
    Ok(Some(answer))
}

pub(super) fn coordinators_of(found: &g::FindCoordinatorResponse<'_>) -> Result<Vec<Result<Broker, GroupError>>, Fault> {
    let one = |of: g::Coordinator<'_>| match (of.error(), of.broker()) {
        (0, Some(broker)) => Ok(Ok(Broker { id: broker.id(), host: broker.host().into(), port: broker.port() })),
        (0, None) => invalid("neither a coordinator nor an error"),
        (code, _) => Ok(Err(error_of(code))),
    };
    found.coordinators().iter().map(one).collect()
}

fn outcome<T>(code: i16, done: impl FnOnce() -> T) -> Result<T, GroupError> {
    if code == 0 { Ok(done()) } else { Err(error_of(code)) }
}

/// An error of a newer broker is taken as a failure that is not worth a retry.
fn error_of(code: i16) -> GroupError {
    GroupError::from_code(code).unwrap_or(GroupError::UnknownServerError)
}

fn joined_of(join: &g::JoinGroupResponse<'_>) -> Result<Joined, JoinRefused> {
    if join.error() != 0 {
        return Err(JoinRefused { error: error_of(join.error()), member_id: join.member_id().into() });
    }
    let member = |of: g::MemberMetadata<'_>| MemberMetadata {
        member_id: of.member().member_id().into(),
        instance_id: of.member().instance_id().map(Arc::from),
        metadata: Bytes::copy_from_slice(of.metadata().bytes()),
    };
    Ok(Joined {
        generation: join.generation(),
        protocol_type: join.protocol_type().map(Arc::from),
        protocol: join.protocol().map(Arc::from),
        leader: join.leader().into(),
        member_id: join.member_id().into(),
        skip_assignment: join.skip_assignment(),
        members: join.members().into_iter().flatten().map(member).collect(),
    })
}

fn topic_outcomes_of(topics: Vector<'_, ForwardsUOffset<g::TopicOutcome<'_>>>) -> Vec<TopicOutcome> {
    let one = |of: &g::PartitionOutcome| (of.partition(), outcome(of.error(), || ()));
    topics.iter().map(|of| TopicOutcome { topic: of.topic().into(), partitions: of.partitions().iter().map(one).collect() }).collect()
}

fn fetched_topic_of(topic: &g::FetchedTopic<'_>) -> FetchedTopic {
    let commit = |of: g::CommittedOffset<'_>| OffsetCommit {
        offset: of.offset(),
        leader_epoch: of.leader_epoch(),
        metadata: of.metadata().into(),
        commit_timestamp: of.commit_timestamp(),
        expire_timestamp: of.expire_timestamp(),
    };
    let fetched = |of: g::FetchedOffset<'_>| FetchedOffset {
        partition: of.partition(),
        outcome: outcome(of.error(), || of.committed().map(commit).map(Arc::new)),
    };
    FetchedTopic { topic: topic.topic().into(), partitions: topic.partitions().iter().map(fetched).collect() }
}

fn described_group_of(group: &g::DescribedGroup<'_>) -> (String, Result<DescribedGroup, GroupError>) {
    let member = |of: g::DescribedMember<'_>| DescribedMember {
        member_id: of.member().member_id().into(),
        instance_id: of.member().instance_id().map(Arc::from),
        client_id: of.client_id().into(),
        client_host: of.client_host().into(),
        metadata: Bytes::copy_from_slice(of.metadata().bytes()),
        assignment: Bytes::copy_from_slice(of.assignment().bytes()),
    };
    let found = || DescribedGroup {
        group: group.group().into(),
        state: state_of(group.state()).unwrap_or(State::Dead),
        protocol_type: group.protocol_type().into(),
        protocol: group.protocol().into(),
        members: group.members().iter().map(member).collect(),
    };
    (group.group().into(), outcome(group.error(), found))
}
