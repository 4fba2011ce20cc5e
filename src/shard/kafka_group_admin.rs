//! Kafka's requests of administrators about consumer groups: describe, list, delete.

use std::collections::BTreeSet;

use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse, GroupId, ListGroupsRequest,
    ListGroupsResponse,
};
use kafka_protocol::protocol::StrBytes;

use crate::kafka::FrameError;
use crate::limits;
use crate::request::group::{self, GroupAnswer, GroupRequest, State};
use crate::shard::groups;
use crate::shard::kafka_groups::text;
use crate::shard::kafka_service::Asked;

/// The type of all groups here (KIP-848 has another).
const GROUP_TYPE: &str = "classic";
/// What a client is told that did not ask which operations it may do.
const NOT_ASKED: i32 = i32::MIN;

/// DescribeGroups. A group that is named twice is described once.
pub async fn describe_groups(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: DescribeGroupsRequest = asked.decode()?;
    let names: BTreeSet<String> = request.groups.iter().map(|group| group.0.to_string()).take(limits::MAX_KAFKA_CHANGES).collect();
    let described = match asked.ask_group(GroupRequest::Describe(names.into_iter().collect())).await {
        GroupAnswer::Describe(described) => described,
        _ => Vec::new(),
    };
    let groups = described.into_iter().map(|(name, outcome)| {
        let group = DescribedGroup::default().with_group_id(GroupId(name.into())).with_authorized_operations(NOT_ASKED);
        match outcome {
            Ok(described) => describe(asked, group, described),
            Err(error) => group.with_error_code(asked.refuse_group(error)),
        }
    });
    asked.encode(&DescribeGroupsResponse::default().with_groups(groups.collect()))
}

fn describe(asked: &Asked<'_>, group: DescribedGroup, described: group::DescribedGroup) -> DescribedGroup {
    let members = described.members.into_iter().map(|member| {
        DescribedGroupMember::default()
            .with_member_id(text(&member.member_id))
            .with_group_instance_id(member.instance_id.filter(|_| asked.head.version >= 4).map(|id| text(&id)))
            .with_client_id(text(&member.client_id))
            .with_client_host(text(&member.client_host))
            .with_member_metadata(member.metadata)
            .with_member_assignment(member.assignment)
    });
    group
        .with_group_state(StrBytes::from_static_str(described.state.name()))
        .with_protocol_type(text(&described.protocol_type))
        .with_protocol_data(text(&described.protocol))
        .with_members(members.collect())
}

/// ListGroups: those of this advertised broker. A client asks each and puts the lists together, so each shard has to be told of by exactly one.
pub async fn list_groups(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: ListGroupsRequest = asked.decode()?;
    let context = asked.context;
    let answer = ListGroupsResponse::default();
    let is_wanted = request.types_filter.is_empty() || request.types_filter.iter().any(|name| name.eq_ignore_ascii_case(GROUP_TYPE));
    let states: Vec<State> = request.states_filter.iter().filter_map(|name| State::from_name(name)).collect();
    // Names that no state has filter everything out.
    if !is_wanted || (states.is_empty() && !request.states_filter.is_empty()) {
        return asked.encode(&answer);
    }
    let advertised = context.identity.brokers.len() as u32;
    let mine = context.mesh.shard() % advertised;
    let listed = groups::list(context, &states, |shard| shard % advertised == mine).await;
    asked.encode(&match listed {
        Err(error) => answer.with_error_code(asked.refuse_group(error)),
        Ok(groups) => {
            let version = asked.head.version;
            let groups = groups.into_iter().map(|group| {
                let listed =
                    ListedGroup::default().with_group_id(GroupId(text(&group.group))).with_protocol_type(text(&group.protocol_type));
                let listed = if version >= 4 { listed.with_group_state(StrBytes::from_static_str(group.state.name())) } else { listed };
                if version >= 5 { listed.with_group_type(StrBytes::from_static_str(GROUP_TYPE)) } else { listed }
            });
            answer.with_groups(groups.collect())
        }
    })
}

/// DeleteGroups.
pub async fn delete_groups(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: DeleteGroupsRequest = asked.decode()?;
    let names: Vec<String> = request.groups_names.iter().map(|group| group.0.to_string()).take(limits::MAX_KAFKA_CHANGES).collect();
    let deleted = match asked.ask_group(GroupRequest::Delete(names)).await {
        GroupAnswer::DeleteGroups(deleted) => deleted,
        _ => Vec::new(),
    };
    let results = deleted.into_iter().map(|(name, outcome)| {
        DeletableGroupResult::default().with_group_id(GroupId(name.into())).with_error_code(asked.group_code(outcome))
    });
    asked.encode(&DeleteGroupsResponse::default().with_results(results.collect()))
}
