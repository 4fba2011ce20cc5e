//! Kafka's requests about the positions of consumer groups: commits, look-ups, deletions.

use std::collections::{BTreeMap, HashSet};

use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse, OffsetFetchRequest, OffsetFetchResponse,
    TopicName,
};
use kafka_protocol::protocol::StrBytes;

use crate::kafka::FrameError;
use crate::limits;
use crate::request::group::{
    CommitOffsets, CommitPartition, FetchOffsets, FetchedOffset, FetchedTopic, GroupAnswer, GroupError, GroupRequest, TopicOutcome,
};
use crate::shard::kafka_groups::{member, text};
use crate::shard::kafka_service::Asked;

/// Versions of OffsetCommit in which a client says how long positions are kept.
const WITH_RETENTION: std::ops::RangeInclusive<i16> = 2..=4;
/// First version of OffsetFetch that asks for several groups.
const FETCH_OF_GROUPS: i16 = 8;

/// OffsetCommit.
pub async fn offset_commit(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: OffsetCommitRequest = asked.decode()?;
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.into_iter().map(|p| CommitPartition {
            partition: p.partition_index,
            offset: p.committed_offset,
            leader_epoch: (p.committed_leader_epoch >= 0).then_some(p.committed_leader_epoch),
            metadata: p.committed_metadata.map(|words| words.to_string()),
        });
        (topic.name.0.to_string(), partitions.collect())
    });
    let commit = CommitOffsets {
        group: request.group_id.0.to_string(),
        member: member(&request.member_id, request.group_instance_id),
        generation: request.generation_id_or_member_epoch,
        retention_ms: Some(request.retention_time_ms).filter(|ms| WITH_RETENTION.contains(&asked.head.version) && *ms >= 0),
        topics: topics.collect(),
    };
    let outcomes = match asked.ask_group(GroupRequest::Commit(commit)).await {
        GroupAnswer::Commit(outcomes) => outcomes,
        _ => Vec::new(),
    };
    let topics = outcomes.into_iter().map(|TopicOutcome { topic, partitions }| {
        let partitions = partitions.into_iter().map(|(index, outcome)| {
            OffsetCommitResponsePartition::default().with_partition_index(index).with_error_code(asked.group_code(outcome))
        });
        OffsetCommitResponseTopic::default().with_name(TopicName(topic.into())).with_partitions(partitions.collect())
    });
    asked.encode(&OffsetCommitResponse::default().with_topics(topics.collect()))
}

/// OffsetFetch.
pub async fn offset_fetch(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: OffsetFetchRequest = asked.decode()?;
    let version = asked.head.version;
    let answer = OffsetFetchResponse::default();
    if version < FETCH_OF_GROUPS {
        let topics = request.topics.map(|topics| once(topics.into_iter().map(|t| (t.name.0.to_string(), t.partition_indexes))));
        let fetch = FetchOffsets { group: request.group_id.0.to_string(), topics, require_stable: request.require_stable };
        let wanted = fetch.topics.clone();
        return asked.encode(&match fetch_offsets(asked, fetch).await {
            Ok(topics) => answer.with_topics(topics.into_iter().map(|topic| one_topic(asked, topic)).collect()),
            // Version 1 has no error of the whole: each partition has it.
            Err(error) if version < 2 => {
                let code = asked.refuse_group(error);
                let failed = |index| nothing(index).with_error_code(code);
                let topics = wanted.into_iter().flatten().map(|(name, indexes)| {
                    OffsetFetchResponseTopic::default()
                        .with_name(TopicName(name.into()))
                        .with_partitions(indexes.into_iter().map(failed).collect())
                });
                answer.with_topics(topics.collect())
            }
            Err(error) => answer.with_error_code(asked.refuse_group(error)),
        });
    }
    let mut groups = Vec::with_capacity(request.groups.len());
    let mut named = HashSet::new();
    for (index, group) in request.groups.into_iter().enumerate() {
        let result = OffsetFetchResponseGroup::default().with_group_id(group.group_id.clone());
        if index >= limits::MAX_KAFKA_CHANGES {
            groups.push(result.with_error_code(asked.refuse_group(GroupError::PolicyViolation)));
            continue;
        }
        if !named.insert(group.group_id.clone()) {
            groups.push(result.with_error_code(asked.refuse_group(GroupError::InvalidRequest)));
            continue;
        }
        let topics = group.topics.map(|topics| once(topics.into_iter().map(|t| (t.name.0.to_string(), t.partition_indexes))));
        let fetch = FetchOffsets { group: group.group_id.0.to_string(), topics, require_stable: request.require_stable };
        groups.push(match fetch_offsets(asked, fetch).await {
            Ok(topics) => result.with_topics(topics.into_iter().map(|topic| topic_of_group(asked, topic)).collect()),
            Err(error) => result.with_error_code(asked.refuse_group(error)),
        });
    }
    asked.encode(&answer.with_groups(groups))
}

/// Each partition once: what would be said of it again can be long without the request being so.
fn once(topics: impl Iterator<Item = (String, Vec<i32>)>) -> Vec<(String, Vec<i32>)> {
    let mut named: BTreeMap<String, HashSet<i32>> = BTreeMap::new();
    let of_topic = |(name, mut indexes): (String, Vec<i32>)| {
        let known = named.entry(name.clone()).or_default();
        indexes.retain(|index| known.insert(*index));
        (name, indexes)
    };
    topics.map(of_topic).collect()
}

async fn fetch_offsets(asked: &Asked<'_>, fetch: FetchOffsets) -> Result<Vec<FetchedTopic>, GroupError> {
    match asked.ask_group(GroupRequest::FetchOffsets(fetch)).await {
        GroupAnswer::FetchOffsets(fetched) => fetched,
        _ => Err(GroupError::UnknownServerError),
    }
}

/// No position: an offset of -1, and empty words.
fn nothing(index: i32) -> OffsetFetchResponsePartition {
    OffsetFetchResponsePartition::default().with_partition_index(index).with_committed_offset(-1).with_metadata(Some(StrBytes::default()))
}

fn partition(asked: &Asked<'_>, fetched: FetchedOffset) -> OffsetFetchResponsePartition {
    let answer = nothing(fetched.partition);
    match fetched.outcome {
        Ok(None) => answer,
        Ok(Some(commit)) => {
            let answer = answer.with_committed_offset(commit.offset).with_metadata(Some(text(&commit.metadata)));
            match asked.head.version >= 5 {
                true => answer.with_committed_leader_epoch(commit.leader_epoch.unwrap_or(-1)),
                false => answer,
            }
        }
        Err(error) => answer.with_error_code(asked.refuse_group(error)),
    }
}

fn one_topic(asked: &Asked<'_>, topic: FetchedTopic) -> OffsetFetchResponseTopic {
    let partitions = topic.partitions.into_iter().map(|fetched| partition(asked, fetched));
    OffsetFetchResponseTopic::default().with_name(TopicName(topic.topic.into())).with_partitions(partitions.collect())
}

fn topic_of_group(asked: &Asked<'_>, topic: FetchedTopic) -> OffsetFetchResponseTopics {
    let partitions = topic.partitions.into_iter().map(|fetched| {
        let one = partition(asked, fetched);
        OffsetFetchResponsePartitions::default()
            .with_partition_index(one.partition_index)
            .with_committed_offset(one.committed_offset)
            .with_committed_leader_epoch(one.committed_leader_epoch)
            .with_metadata(one.metadata)
            .with_error_code(one.error_code)
    });
    OffsetFetchResponseTopics::default().with_name(TopicName(topic.topic.into())).with_partitions(partitions.collect())
}

/// OffsetDelete.
pub async fn offset_delete(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: OffsetDeleteRequest = asked.decode()?;
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|p| p.partition_index);
        (topic.name.0.to_string(), partitions.collect())
    });
    let delete = GroupRequest::DeleteOffsets { group: request.group_id.0.to_string(), topics: topics.collect() };
    let outcome = match asked.ask_group(delete).await {
        GroupAnswer::DeleteOffsets(outcome) => outcome,
        _ => Err(GroupError::UnknownServerError),
    };
    asked.encode(&match outcome {
        Err(error) => OffsetDeleteResponse::default().with_error_code(asked.refuse_group(error)),
        Ok(outcomes) => {
            let topics = outcomes.into_iter().map(|TopicOutcome { topic, partitions }| {
                let partitions = partitions.into_iter().map(|(index, outcome)| {
                    OffsetDeleteResponsePartition::default().with_partition_index(index).with_error_code(asked.group_code(outcome))
                });
                OffsetDeleteResponseTopic::default().with_name(TopicName(topic.into())).with_partitions(partitions.collect())
            });
            OffsetDeleteResponse::default().with_topics(topics.collect())
        }
    })
}
