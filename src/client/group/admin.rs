//! Groups as an administrator sees them: who is in them, how far they are, and setting them to other offsets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::coordinator::Coordinator;
use crate::client::admin::Admin;
use crate::client::brokers::{Target, unexpected};
use crate::client::error::ClientError;
use crate::request::consumer_protocol::PROTOCOL_TYPE;
use crate::request::group::{
    CommitOffsets, CommitPartition, DescribedGroup, GroupAnswer, GroupError, GroupRequest, ListedGroup, MemberRef, State,
};
use crate::request::{Code, OffsetSpec, Request, Response};
use crate::types::{Offset, Timestamp};

/// Where a group is in one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupPosition {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The next offset to read, as committed; `None` for a partition that a member was given and has not committed yet.
    pub offset: Option<Offset>,
    /// One past the partition's last committed offset.
    pub end: Offset,
    /// Offsets that are not read yet, without a position all that are there; 0 where the position is behind the end.
    pub lag: Offset,
}

/// Where a group is to be set to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResetTo {
    /// The first record that is still there.
    Earliest,
    /// The end.
    Latest,
    /// This offset, or the nearest that the partition has.
    Offset(Offset),
    /// So many offsets on from where the group is, or back if negative; within what the partition has.
    Shift(Offset),
    /// The first record whose timestamp, ms since the Unix epoch, is at least this; the end where there is none.
    Time(Timestamp),
}

/// One partition of a reset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlannedReset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Where the group is; `None` if it is nowhere.
    pub before: Option<Offset>,
    /// Where it is to be.
    pub after: Offset,
}

impl Admin {
    fn coordinator(&self, group: &str) -> Coordinator {
        Coordinator::new(self.brokers().clone(), group.into())
    }

    /// All groups, by id.
    ///
    /// # Errors
    /// Not all coordinators answer.
    pub async fn list_groups(&self) -> Result<Vec<ListedGroup>, ClientError> {
        // Each node knows those that it coordinates. One whose coordinator moves meanwhile is told of by two of them.
        let attempt = || async {
            let brokers = self.brokers();
            brokers.refresh_once(Some(&[])).await?;
            let mut groups = BTreeMap::new();
            for broker in brokers.one_of_each_node() {
                let request = Request::Group(GroupRequest::List(Vec::new()));
                let listed = match brokers.request_once(Target::Broker(broker), &request).await?.response {
                    Response::Group(GroupAnswer::List(listed)) => listed.map_err(|error| self.coordinator("").refused(error))?,
                    other => return Err(unexpected(&other)),
                };
                groups.extend(listed.into_iter().map(|group| (group.group.clone(), group)));
            }
            Ok(groups.into_values().collect())
        };
        self.brokers().retrying(attempt).await
    }

    /// A group with its members; one that is not there is [`State::Dead`].
    ///
    /// # Errors
    /// Its coordinator does not answer.
    pub async fn describe_group(&self, group: &str) -> Result<DescribedGroup, ClientError> {
        let coordinator = &self.coordinator(group);
        let read = |answer| match answer {
            GroupAnswer::Describe(mut described) if described.len() == 1 => {
                described.remove(0).1.map_err(|error| coordinator.refused(error))
            }
            other => Err(coordinator.surprised(&other)),
        };
        coordinator.settle(GroupRequest::Describe(vec![group.into()]), read).await
    }

    /// Positions of a group, and partitions that its members were given and have no position in, with the ends of the partitions; by topic and partition.
    ///
    /// # Errors
    /// Its coordinator or the leader of a partition does not answer.
    pub async fn group_positions(&self, group: &str) -> Result<Vec<GroupPosition>, ClientError> {
        let mut offsets = self.assigned_to(group).await?;
        offsets.extend(self.committed(group).await?.into_iter().map(|(topic, partition, offset)| ((topic, partition), Some(offset))));
        let mut positions = Vec::with_capacity(offsets.len());
        for ((topic, partition), offset) in offsets {
            match self.position(topic, partition, offset).await {
                Ok(position) => positions.push(position),
                // Deleted meanwhile, and so is the position.
                Err(error) if error.code() == Some(Code::UnknownTopicOrPartition) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(positions)
    }

    async fn position(&self, topic: String, partition: u32, offset: Option<Offset>) -> Result<GroupPosition, ClientError> {
        let end = self.offset(&topic, partition, OffsetSpec::Latest).await?.0;
        let next = match offset {
            Some(offset) => offset,
            None => self.offset(&topic, partition, OffsetSpec::Earliest).await?.0,
        };
        Ok(GroupPosition { topic, partition, offset, end, lag: (end - next).max(0) })
    }

    /// Partitions that members have.
    async fn assigned_to(&self, group: &str) -> Result<BTreeMap<(String, u32), Option<Offset>>, ClientError> {
        let described = self.describe_group(group).await?;
        let mut partitions = BTreeMap::new();
        if *described.protocol_type != *PROTOCOL_TYPE {
            return Ok(partitions);
        }
        for (topic, numbers) in described.members.iter().filter_map(|member| assigned(&member.assignment)).flatten() {
            let numbers = numbers.into_iter().filter_map(|number| u32::try_from(number).ok());
            partitions.extend(numbers.map(|number| ((topic.to_string(), number), None)));
        }
        Ok(partitions)
    }

    async fn committed(&self, group: &str) -> Result<Vec<(String, u32, Offset)>, ClientError> {
        let fetched = self.coordinator(group).fetch(None).await?;
        let mut committed = Vec::new();
        for topic in fetched {
            for partition in topic.partitions {
                if let (Ok(Some(commit)), Ok(number)) = (partition.outcome, u32::try_from(partition.partition)) {
                    committed.push((topic.topic.clone(), number, commit.offset));
                }
            }
        }
        committed.sort();
        Ok(committed)
    }

    /// What a reset of a group would do, in these topics or, where none is named, in those that it has positions in. Nothing is changed.
    ///
    /// # Errors
    /// The group has members, a topic does not exist, or a broker does not answer.
    pub async fn plan_reset(&self, group: &str, topics: &[String], to: ResetTo) -> Result<Vec<PlannedReset>, ClientError> {
        let state = self.describe_group(group).await?.state;
        if !matches!(state, State::Empty | State::Dead) {
            return Err(self.coordinator(group).refused(GroupError::NonEmptyGroup));
        }
        let before: BTreeMap<(String, u32), Offset> = self.committed(group).await?.into_iter().map(|(t, p, o)| ((t, p), o)).collect();
        let mut wanted: BTreeSet<(String, u32)> = BTreeSet::new();
        if topics.is_empty() {
            wanted.extend(before.keys().cloned());
        }
        for topic in topics {
            let partitions = self.describe_topic(topic).await?.partitions;
            wanted.extend((0..partitions).map(|partition| (topic.clone(), partition)));
        }
        let mut plan = Vec::with_capacity(wanted.len());
        for (topic, partition) in wanted {
            let before = before.get(&(topic.clone(), partition)).copied();
            let after = self.resolve(&topic, partition, before, to).await?;
            plan.push(PlannedReset { topic, partition, before, after });
        }
        Ok(plan)
    }

    async fn resolve(&self, topic: &str, partition: u32, before: Option<Offset>, to: ResetTo) -> Result<Offset, ClientError> {
        let earliest = self.offset(topic, partition, OffsetSpec::Earliest).await?.0;
        let latest = self.offset(topic, partition, OffsetSpec::Latest).await?.0;
        Ok(match to {
            ResetTo::Earliest => earliest,
            ResetTo::Latest => latest,
            ResetTo::Offset(offset) => offset.clamp(earliest, latest),
            ResetTo::Shift(by) => before.unwrap_or(earliest).saturating_add(by).clamp(earliest, latest),
            ResetTo::Time(timestamp) => match self.offset(topic, partition, OffsetSpec::At(timestamp)).await?.0 {
                -1 => latest,
                offset => offset,
            },
        })
    }

    /// Sets a group without members to the offsets of a plan.
    ///
    /// # Errors
    /// The group has got members meanwhile, or its coordinator does not answer.
    pub async fn reset_group(&self, group: &str, plan: &[PlannedReset]) -> Result<(), ClientError> {
        let mut topics: BTreeMap<String, Vec<CommitPartition>> = BTreeMap::new();
        for reset in plan {
            let partition = i32::try_from(reset.partition).unwrap_or(i32::MAX);
            let commit = CommitPartition { partition, offset: reset.after, leader_epoch: None, metadata: None };
            topics.entry(reset.topic.clone()).or_default().push(commit);
        }
        let commit = CommitOffsets {
            group: group.into(),
            member: MemberRef::default(),
            generation: -1,
            retention_ms: None,
            topics: topics.into_iter().collect(),
        };
        self.coordinator(group).commit(commit).await
    }

    /// Deletes a group without members, with its positions.
    ///
    /// # Errors
    /// There is no such group, it has members, or its coordinator does not answer.
    pub async fn delete_group(&self, group: &str) -> Result<(), ClientError> {
        let coordinator = &self.coordinator(group);
        let read = |answer| match answer {
            GroupAnswer::DeleteGroups(mut deleted) if deleted.len() == 1 => deleted.remove(0).1.map_err(|error| coordinator.refused(error)),
            other => Err(coordinator.surprised(&other)),
        };
        coordinator.settle(GroupRequest::Delete(vec![group.into()]), read).await
    }
}

/// Partitions that a member was given, by topic; `None` where they can't be read, as of a group of other than consumers.
pub fn assigned(assignment: &[u8]) -> Option<BTreeMap<Arc<str>, Vec<i32>>> {
    if assignment.is_empty() {
        return Some(BTreeMap::new());
    }
    let read = crate::request::consumer_protocol::Assignment::decode(assignment).ok()?;
    Some(read.partitions.into_iter().map(|(topic, partitions)| (topic.as_str().into(), partitions.into_iter().collect())).collect())
}
