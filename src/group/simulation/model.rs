//! What must hold of everything that a coordinator says, judged from outside: by the log that is durable and by earlier answers.

use crate::request::group::OffsetCommit;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::group::consumer_protocol::Assignment;
use crate::group::records::{Change, GroupMetadata, LogRecord};
use crate::request::group::{CommitOffsets, FetchOffsets, FetchedTopic, GroupAnswer, GroupError, Heartbeat, SyncGroup, TopicOutcome};

use super::client::Request;
use super::world::RETENTION_MS;
use crate::types::Timestamp;

#[derive(Default, Debug)]
struct GroupModel {
    /// The newest generation in which somebody was given an assignment.
    generation: i32,
    /// Who has a partition in that generation, static members by their instance id.
    holders: BTreeMap<(String, i32), String>,
    /// The member id that an instance id stands for.
    instances: BTreeMap<String, String>,
    stored: Option<Arc<GroupMetadata>>,
    positions: BTreeMap<(String, i32), Arc<OffsetCommit>>,
}

#[derive(Default, Debug)]
pub struct Model {
    groups: BTreeMap<String, GroupModel>,
    /// Every offset that is durable in a commit; each is committed once.
    committed: BTreeSet<i64>,
    /// When somebody last asked for positions to be deleted: of a group, of a topic.
    deleted_groups: BTreeMap<String, Timestamp>,
    deleted_topics: BTreeMap<String, Timestamp>,
}

impl Model {
    /// Somebody asks for positions to be deleted.
    pub fn delete(&mut self, groups: &[String], topic: Option<&str>, now: Timestamp) {
        self.deleted_groups.extend(groups.iter().map(|group| (group.clone(), now)));
        self.deleted_topics.extend(topic.map(|topic| (topic.to_string(), now)));
    }

    /// Records are in the log for good.
    pub fn durable(&mut self, records: &[LogRecord], now: Timestamp) {
        for record in records {
            let change = Change::decode(&record.key, record.value.as_deref()).expect("a record of ours").expect("of a kind of ours");
            let group = self.groups.entry(change.group().to_string()).or_default();
            match change {
                Change::Group { metadata: None, .. } => {
                    // A group of this name begins anew.
                    let positions = std::mem::take(&mut group.positions);
                    *group = GroupModel { positions, ..GroupModel::default() };
                }
                Change::Group { metadata, .. } => group.stored = metadata,
                Change::Offset { topic, partition, commit: Some(commit), .. } => {
                    self.committed.insert(commit.offset);
                    group.positions.insert((topic.to_string(), partition), commit);
                }
                Change::Offset { group: id, topic, partition, commit: None } => {
                    if let Some(commit) = group.positions.remove(&(topic.to_string(), partition)) {
                        let is_old = now >= commit.expire_timestamp.unwrap_or(commit.commit_timestamp + RETENTION_MS);
                        let asked = self.deleted_groups.get(&*id).into_iter().chain(self.deleted_topics.get(&*topic)).max();
                        let is_deleted = asked.is_some_and(|asked| *asked >= commit.commit_timestamp);
                        assert!(is_old || is_deleted, "{topic}/{partition} of {id} goes, and nobody asked: {commit:?}");
                    }
                }
            }
        }
    }

    /// A new coordinator knows what the log knows.
    pub fn restarted(&mut self) {
        for group in self.groups.values_mut() {
            let members = group.stored.iter().flat_map(|stored| &stored.members);
            group.instances = members.filter_map(|m| Some((m.instance_id.as_ref()?.to_string(), m.member_id.to_string()))).collect();
        }
    }

    pub fn answered(&mut self, request: &Request, answer: &GroupAnswer) {
        match (request, answer) {
            (Request::Join(join), GroupAnswer::Join(Ok(joined))) => {
                let group = self.groups.entry(join.group.clone()).or_default();
                assert!(
                    joined.generation >= group.generation,
                    "a join of generation {} after one of {}",
                    joined.generation,
                    group.generation
                );
                if let Some(instance) = &join.instance_id {
                    group.instances.insert(instance.clone(), joined.member_id.to_string());
                }
            }
            (Request::Sync(sync), GroupAnswer::Sync(Ok(synced))) => self.synced(sync, &synced.assignment),
            (Request::Commit(commit), GroupAnswer::Commit(topics)) => self.committed(commit, topics),
            (Request::DeleteGroups(_), GroupAnswer::DeleteGroups(outcomes)) => {
                for (id, _) in outcomes.iter().filter(|(_, outcome)| outcome.is_ok()) {
                    let group = self.groups.entry(id.clone()).or_default();
                    assert!(group.stored.is_none() && group.positions.is_empty(), "{id} is told to be deleted and is in the log");
                }
            }
            (Request::DeleteOffsets(id, _), GroupAnswer::DeleteOffsets(Ok(topics))) => {
                let group = self.groups.entry(id.clone()).or_default();
                for (topic, partition) in well(topics) {
                    assert!(
                        !group.positions.contains_key(&(topic.clone(), partition)),
                        "{topic}/{partition} of {id} is told to be deleted and is in the log"
                    );
                }
            }
            _ => {}
        }
    }

    fn synced(&mut self, sync: &SyncGroup, assignment: &[u8]) {
        let group = self.groups.entry(sync.group.clone()).or_default();
        let stored = group.stored.as_ref().expect("an assignment is durable before it is given");
        assert_eq!(stored.generation, sync.generation, "the generation of an assignment is durable before it is given");
        let member = stored
            .members
            .iter()
            .find(|m| *m.member_id == *sync.member.member_id)
            .expect("a member that is given an assignment is in the log");
        assert_eq!(member.assignment, assignment, "what a member is given is what is in the log");
        assert!(sync.generation >= group.generation, "generation {} is given after {}", sync.generation, group.generation);
        if sync.generation > group.generation {
            group.generation = sync.generation;
            group.holders.clear();
        }
        let holder = sync.member.instance_id.clone().unwrap_or_else(|| sync.member.member_id.clone());
        for (topic, partitions) in Assignment::decode(assignment).expect("a leader's").partitions {
            for partition in partitions {
                let before = group.holders.insert((topic.clone(), partition), holder.clone());
                assert!(
                    before.as_ref().is_none_or(|b| *b == holder),
                    "{topic}/{partition} in generation {}: {before:?} and {holder}",
                    sync.generation
                );
            }
        }
    }

    fn committed(&mut self, commit: &CommitOffsets, topics: &[TopicOutcome]) {
        for ((_, asked), outcome) in commit.topics.iter().zip(topics) {
            for (asked, (_, outcome)) in asked.iter().zip(&outcome.partitions) {
                assert!(
                    outcome.is_err() || self.committed.contains(&asked.offset),
                    "offset {} is acknowledged and not durable",
                    asked.offset
                );
            }
        }
    }

    pub fn heartbeat(&self, heartbeat: &Heartbeat, outcome: Result<(), GroupError>) {
        if outcome.is_ok()
            && let Some(group) = self.groups.get(&heartbeat.group)
        {
            assert!(
                heartbeat.generation >= group.generation,
                "generation {} lives while {} has assignments",
                heartbeat.generation,
                group.generation
            );
            self.not_fenced(&heartbeat.group, &heartbeat.member);
        }
    }

    /// A commit was sent to the log.
    pub fn accepted(&self, commit: &CommitOffsets) {
        let Some(group) = self.groups.get(&commit.group).filter(|_| commit.generation >= 0) else { return };
        assert!(
            commit.generation >= group.generation,
            "a commit of generation {} while {} has assignments",
            commit.generation,
            group.generation
        );
        self.not_fenced(&commit.group, &commit.member);
    }

    fn not_fenced(&self, group: &str, member: &crate::request::group::MemberRef) {
        let Some(instance) = &member.instance_id else { return };
        let newest = self.groups[group].instances.get(instance);
        assert!(newest.is_none_or(|newest| *newest == member.member_id), "{} lives while {instance} is {newest:?}", member.member_id);
    }

    /// A fetched position is the last one that is durable.
    pub fn fetched(&self, fetch: &FetchOffsets, topics: &[FetchedTopic]) {
        let group = self.groups.get(&fetch.group);
        for topic in topics {
            for fetched in &topic.partitions {
                let durable = group.and_then(|g| g.positions.get(&(topic.topic.clone(), fetched.partition)));
                match &fetched.outcome {
                    Ok(position) => assert_eq!(position.as_ref(), durable, "{}/{} of {}", topic.topic, fetched.partition, fetch.group),
                    Err(error) => assert!(fetch.require_stable && *error == GroupError::UnstableOffsetCommit, "{error:?}"),
                }
            }
        }
        if fetch.topics.is_none() && !fetch.require_stable {
            let count: usize = topics.iter().map(|t| t.partitions.len()).sum();
            assert_eq!(count, group.map_or(0, |g| g.positions.len()), "all positions of {}", fetch.group);
        }
    }

    /// Everything in the log is forgotten in the end.
    pub fn is_empty(&self) -> bool {
        self.groups.values().all(|group| group.stored.is_none() && group.positions.is_empty())
    }
}

fn well(topics: &[TopicOutcome]) -> impl Iterator<Item = (&String, i32)> {
    topics.iter().flat_map(|t| t.partitions.iter().filter(|(_, outcome)| outcome.is_ok()).map(move |(p, _)| (&t.topic, *p)))
}
