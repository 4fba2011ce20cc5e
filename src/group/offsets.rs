//! OffsetCommit, OffsetFetch, deletion and expiry of committed positions, deletion of groups.
//!
//! A position that can be fetched is durable: commits are in force when the log has them, never before.

use crate::request::group::{
    CommitOffsets, CommitPartition, FetchOffsets, FetchedOffset, FetchedTopic, GroupError, OffsetCommit, State, TopicOutcome,
};
use std::collections::BTreeSet;
use std::sync::Arc;

use super::classic::ClassicGroup;
use super::message::Token;
use super::outbox::{Outbox, Purpose};
use super::positions::Position;
use super::records::Change;
use super::settings::{Now, Settings};
use super::timers::Timer;
use crate::limits;
use crate::types::Timestamp;

/// Bytes of a position's key and value without group, topic and metadata, at least.
const LEAST_OFFSET_RECORD: usize = 34;

impl ClassicGroup {
    /// Whether these positions may be committed now, after Kafka's `ClassicGroup.validateOffsetCommit`.
    pub fn check_commit(&self, commit: &CommitOffsets) -> Result<(), GroupError> {
        if self.state() == State::Dead {
            return Err(GroupError::CoordinatorNotAvailable);
        }
        if commit.generation < 0 && self.state() == State::Empty {
            // A simple consumer, or an administrator: nobody else is there.
            return Ok(());
        }
        let is_of_member = commit.generation >= 0 || !commit.member.member_id.is_empty() || commit.member.instance_id.is_some();
        if !is_of_member {
            return Err(GroupError::UnknownMemberId);
        }
        self.check_member(&commit.member)?;
        if commit.generation != self.generation {
            return Err(GroupError::IllegalGeneration);
        }
        if self.state() == State::CompletingRebalance {
            // A member of this generation that has no assignment of it yet: what it commits is of the one before.
            return Err(GroupError::RebalanceInProgress);
        }
        Ok(())
    }

    /// Sends the positions of a commit to the log; `room` is how many new ones the coordinator may take. The outcomes are good when the append is durable.
    pub fn commit(&mut self, commit: &CommitOffsets, room: usize, out: &mut Outbox, now: Now) -> (Vec<TopicOutcome>, Option<Token>) {
        if matches!(self.state(), State::Stable | State::PreparingRebalance) {
            self.renew_session(&commit.member.member_id, out, now);
        }
        if self.bytes_of(commit) > out.settings.max_group_record {
            // The log would refuse it. It is not made at all: group and topic are in the record of every partition, so it may be a hundred times as long as its request.
            return (refused(commit, GroupError::InvalidCommitOffsetSize), None);
        }
        let most = self.positions.len() + room;
        let expire_timestamp = commit.retention_ms.filter(|ms| *ms >= 0).map(|ms| now.wall.saturating_add(ms));
        let mut changes = Vec::new();
        let mut outcomes = Vec::new();
        for (name, partitions) in &commit.topics {
            let topic: Arc<str> = name.as_str().into();
            let mut partition_outcomes = Vec::new();
            for asked in partitions {
                let outcome = self.check_position(name, asked, most, &out.settings);
                if outcome.is_ok() {
                    self.positions.begin(&topic, asked.partition);
                    let commit = Some(Arc::new(committed(asked, now.wall, expire_timestamp)));
                    changes.push(Change::Offset { group: self.id.clone(), topic: topic.clone(), partition: asked.partition, commit });
                }
                partition_outcomes.push((asked.partition, outcome));
            }
            outcomes.push(TopicOutcome { topic: name.clone(), partitions: partition_outcomes });
        }
        let token = (!changes.is_empty()).then(|| out.append(changes, Purpose::Changes));
        (outcomes, token)
    }

    /// Of the keys and values of a commit's records.
    fn bytes_of(&self, commit: &CommitOffsets) -> usize {
        let of = |topic: &String, p: &CommitPartition| {
            LEAST_OFFSET_RECORD + self.id.len() + topic.len() + p.metadata.as_deref().map_or(0, str::len)
        };
        commit.topics.iter().flat_map(|(topic, partitions)| partitions.iter().map(move |p| of(topic, p))).sum()
    }

    fn check_position(&self, topic: &str, asked: &CommitPartition, most: usize, settings: &Settings) -> Result<(), GroupError> {
        if topic.len() > limits::MAX_TOPIC_NAME {
            return Err(GroupError::InvalidRequest);
        }
        let metadata = asked.metadata.as_deref().unwrap_or_default();
        // In UTF-16 units, as Kafka counts; in bytes no more than a string of a record.
        if metadata.encode_utf16().count() > settings.max_offset_metadata || metadata.len() > limits::STRING_MAX {
            return Err(GroupError::OffsetMetadataTooLarge);
        }
        if self.positions.len() >= most && self.positions.get(topic, asked.partition).is_none() {
            return Err(GroupError::PolicyViolation);
        }
        Ok(())
    }

    /// Durable positions.
    pub fn fetch(&self, fetch: &FetchOffsets) -> Vec<FetchedTopic> {
        let of = |partition: i32, position: Option<&Position>| {
            let is_unstable = fetch.require_stable && position.is_some_and(|p| p.in_flight > 0);
            let durable = position.and_then(|p| p.durable.clone());
            FetchedOffset { partition, outcome: if is_unstable { Err(GroupError::UnstableOffsetCommit) } else { Ok(durable) } }
        };
        match &fetch.topics {
            Some(topics) => {
                let fetched = |topic: &String, partitions: &[i32]| FetchedTopic {
                    topic: topic.clone(),
                    partitions: partitions.iter().map(|p| of(*p, self.positions.get(topic, *p))).collect(),
                };
                topics.iter().map(|(topic, partitions)| fetched(topic, partitions)).collect()
            }
            None => {
                let is_known = |fetched: &FetchedOffset| fetched.outcome != Ok(None);
                let topics = self.positions.topics().map(|(topic, partitions)| FetchedTopic {
                    topic: topic.to_string(),
                    partitions: partitions.iter().map(|(p, position)| of(*p, Some(position))).filter(is_known).collect(),
                });
                topics.filter(|fetched| !fetched.partitions.is_empty()).collect()
            }
        }
    }

    /// Whether positions may be deleted by request.
    pub fn check_delete_offsets(&self) -> Result<(), GroupError> {
        match self.state() {
            State::Dead => Err(GroupError::GroupIdNotFound),
            State::Empty => Ok(()),
            // What members read can only be known of consumers.
            _ if self.is_of_consumers() => Ok(()),
            _ => Err(GroupError::NonEmptyGroup),
        }
    }

    /// Deletes positions of topics that no member reads.
    pub fn delete_offsets(&mut self, topics: &[(String, Vec<i32>)], out: &mut Outbox) -> (Vec<TopicOutcome>, Option<Token>) {
        // One that is named again needs no second tombstone.
        let mut gone = BTreeSet::new();
        let mut outcomes = Vec::new();
        for (name, partitions) in topics {
            let outcome = if self.subscribes_to(name) { Err(GroupError::GroupSubscribedToTopic) } else { Ok(()) };
            if outcome.is_ok() {
                let topic: Arc<str> = name.as_str().into();
                let known = partitions.iter().filter(|p| self.positions.get(name, **p).is_some());
                gone.extend(known.map(|p| (topic.clone(), *p)));
            }
            outcomes.push(TopicOutcome { topic: name.clone(), partitions: partitions.iter().map(|p| (*p, outcome)).collect() });
        }
        (outcomes, self.bury(&Vec::from_iter(gone), out))
    }

    /// Sends tombstones of positions, in appends that the log can take; gives the last one's token.
    fn bury(&mut self, gone: &[(Arc<str>, i32)], out: &mut Outbox) -> Option<Token> {
        let mut last = None;
        for chunk in gone.chunks(limits::PURGE_RECORDS) {
            let changes = self.tombstones(chunk);
            last = Some(out.append(changes, Purpose::Changes));
        }
        last
    }

    fn tombstones(&mut self, gone: &[(Arc<str>, i32)]) -> Vec<Change> {
        let mut changes = Vec::with_capacity(gone.len() + 1);
        for (topic, partition) in gone {
            self.positions.begin(topic, *partition);
            changes.push(Change::Offset { group: self.id.clone(), topic: topic.clone(), partition: *partition, commit: None });
        }
        changes
    }

    /// A topic is gone, and the group's positions in it with it.
    pub fn purge_topic(&mut self, topic: &Arc<str>, out: &mut Outbox) {
        let gone: Vec<_> = self.positions.iter().filter(|(name, ..)| *name == topic).map(|(name, p, _)| (name.clone(), p)).collect();
        self.bury(&gone, out);
    }

    /// Whether the group may be deleted.
    pub fn check_delete(&self) -> Result<(), GroupError> {
        match self.state() {
            State::Empty => Ok(()),
            State::Dead => Err(GroupError::GroupIdNotFound),
            _ => Err(GroupError::NonEmptyGroup),
        }
    }

    /// Deletes an empty group with its positions: it serves nobody from here on, and is gone when the append with the token is durable.
    pub fn delete(&mut self, out: &mut Outbox, now: Now) -> Token {
        self.enter(State::Dead, now);
        for id in std::mem::take(&mut self.pending_joins) {
            out.timers.cancel(&Timer::Session(self.id.clone(), id));
        }
        let gone: Vec<_> = self.positions.iter().map(|(topic, partition, _)| (topic.clone(), partition)).collect();
        // The group's own tombstone is the last: a start that has read a part of this finds the group.
        let (whole, rest) = gone.split_at(gone.len() - gone.len() % limits::PURGE_RECORDS);
        self.bury(whole, out);
        let mut changes = self.tombstones(rest);
        self.records_in_flight += 1;
        changes.push(Change::Group { group: self.id.clone(), metadata: None });
        out.append(changes, Purpose::Removal { group: self.id.clone() })
    }

    /// Deletes positions that are too old, and the group if nothing is left of it.
    pub fn expire(&mut self, out: &mut Outbox, now: Now) {
        let is_at_rest = self.records_in_flight == 0 && self.pending_joins.is_empty();
        if self.state() == State::Dead || (self.state() == State::Empty && !is_at_rest) {
            return;
        }
        let Some(base) = self.retention_base() else { return };
        let retention_ms = out.settings.offsets_retention_ms;
        let is_expired = |topic: &str, position: &Position| {
            let Some(commit) = position.durable.as_ref().filter(|_| position.in_flight == 0) else { return false };
            let is_old = match commit.expire_timestamp {
                Some(end) => now.wall >= end,
                None => now.wall.saturating_sub(commit.commit_timestamp.max(base.unwrap_or(i64::MIN))) >= retention_ms,
            };
            is_old && !self.subscribes_to(topic)
        };
        let gone: Vec<_> = self
            .positions
            .iter()
            .filter(|(topic, _, position)| is_expired(topic, position))
            .map(|(topic, p, _)| (topic.clone(), p))
            .collect();
        if gone.len() == self.positions.len() && self.state() == State::Empty {
            self.delete(out, now);
        } else {
            self.bury(&gone, out);
        }
    }

    /// Whether positions expire now, and from when on they age: from when the group became empty, or from their commits where that is later or
    /// (`Some(None)`) nothing else counts (KIP-211).
    fn retention_base(&self) -> Option<Option<Timestamp>> {
        match self.state() {
            // A simple consumer's group has no members to ask; each commit is a sign of life.
            _ if self.protocol_type.is_none() => Some(None),
            State::Empty => Some(self.state_since()),
            State::Stable if self.is_of_consumers() && self.subscribed.is_some() => Some(None),
            _ => None,
        }
    }
}

/// Every partition of a commit with one error.
pub(super) fn refused(commit: &CommitOffsets, error: GroupError) -> Vec<TopicOutcome> {
    let of_topic = |(topic, partitions): &(String, Vec<CommitPartition>)| TopicOutcome {
        topic: topic.clone(),
        partitions: partitions.iter().map(|p| (p.partition, Err(error))).collect(),
    };
    commit.topics.iter().map(of_topic).collect()
}

fn committed(asked: &CommitPartition, now: Timestamp, expire_timestamp: Option<Timestamp>) -> OffsetCommit {
    OffsetCommit {
        offset: asked.offset,
        leader_epoch: asked.leader_epoch.filter(|epoch| *epoch >= 0),
        metadata: asked.metadata.as_deref().unwrap_or_default().into(),
        commit_timestamp: now,
        expire_timestamp,
    }
}
