//! The coordinator as the simulation sees it, and bugs that are put between the two on purpose: the simulation has to find each.

use std::collections::BTreeMap;

use crate::group::records::LogRecord;
use crate::group::{AppendFailure, Coordinator, Effect, Now, Settings, Token, Waiter};
use crate::request::group::{CommitOffsets, FetchOffsets, FetchedTopic, GroupAnswer, GroupError, Heartbeat, JoinGroup, SyncGroup};
use crate::types::Offset;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    AnswersBeforeDurable,
    FailedAppendCountsAsDurable,
    GenerationStays,
    FencedMemberLives,
    PendingMemberStays,
    OldGenerationCommits,
    TwoMembersOnePartition,
    AnswerIsLost,
    FetchIsAheadOfTheLog,
    TombstonesAreNotReplayed,
    SessionsNeverEnd,
    SnapshotIsAheadOfItsOffset,
}

pub struct Server {
    pub coordinator: Coordinator,
    pub bug: Option<Bug>,
    /// Of [`Bug::FetchIsAheadOfTheLog`]: offsets as asked for.
    asked: BTreeMap<(String, String, i32), Offset>,
    answers: u64,
}

impl Server {
    pub fn new(settings: Settings, bug: Option<Bug>) -> Server {
        let mut coordinator = Coordinator::new(settings);
        if bug == Some(Bug::GenerationStays) {
            coordinator.freeze_generations();
        }
        Server { coordinator, bug, asked: BTreeMap::new(), answers: 0 }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Reads the log, perhaps behind a snapshot.
    pub fn load(&mut self, log: &[LogRecord], snapshot: Option<&[u8]>) {
        let from = snapshot.map_or(0, |bytes| self.coordinator.restore(bytes).expect("a snapshot of ours"));
        for (offset, record) in log.iter().enumerate().skip(from as usize) {
            if self.has(Bug::TombstonesAreNotReplayed) && record.value.is_none() {
                continue;
            }
            self.coordinator.handle_record(offset as Offset, &record.key, record.value.as_deref()).expect("a record of ours");
        }
    }

    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = self.coordinator.snapshot();
        if self.has(Bug::SnapshotIsAheadOfItsOffset) {
            // It says that it holds one record more than it does.
            bytes[2..10].copy_from_slice(&(self.coordinator.log_end() + 1).to_le_bytes());
        }
        bytes
    }

    pub fn join(&mut self, waiter: Waiter, join: JoinGroup, now: Now) {
        self.coordinator.handle_join(waiter, join, now);
        if self.has(Bug::PendingMemberStays) {
            self.coordinator.forget_pending_timers();
        }
    }

    pub fn sync(&mut self, waiter: Waiter, mut sync: SyncGroup, now: Now) {
        if self.has(Bug::TwoMembersOnePartition) && sync.assignments.len() > 1 {
            sync.assignments[1].1 = sync.assignments[0].1.clone();
        }
        self.coordinator.handle_sync(waiter, sync, now);
    }

    pub fn heartbeat(&mut self, heartbeat: &Heartbeat, now: Now) -> Result<(), GroupError> {
        let outcome = self.coordinator.handle_heartbeat(heartbeat, now);
        if self.has(Bug::FencedMemberLives) && outcome == Err(GroupError::FencedInstanceId) { Ok(()) } else { outcome }
    }

    pub fn commit(&mut self, waiter: Waiter, commit: &CommitOffsets, now: Now) {
        let mut commit = commit.clone();
        if self.has(Bug::OldGenerationCommits)
            && commit.generation >= 0
            && let Some(group) = self.coordinator.group(&commit.group)
        {
            commit.generation = group.generation;
        }
        for (topic, partitions) in &commit.topics {
            for asked in partitions {
                self.asked.insert((commit.group.clone(), topic.clone(), asked.partition), asked.offset);
            }
        }
        self.coordinator.handle_commit(waiter, &commit, now);
    }

    pub fn fetch(&self, fetch: &FetchOffsets) -> Result<Vec<FetchedTopic>, GroupError> {
        let mut topics = self.coordinator.fetch_offsets(fetch)?;
        if self.has(Bug::FetchIsAheadOfTheLog) {
            for topic in &mut topics {
                for fetched in &mut topic.partitions {
                    if let Ok(Some(commit)) = &mut fetched.outcome
                        && let Some(offset) = self.asked.get(&(fetch.group.clone(), topic.topic.clone(), fetched.partition))
                    {
                        let commit = std::sync::Arc::make_mut(commit);
                        commit.offset = *offset;
                    }
                }
            }
        }
        Ok(topics)
    }

    pub fn appended(&mut self, token: Token, outcome: Result<Offset, AppendFailure>, now: Now) {
        match outcome {
            _ if self.has(Bug::AnswersBeforeDurable) => {}
            Err(_) if self.has(Bug::FailedAppendCountsAsDurable) => {
                let end = self.coordinator.log_end() + 1;
                self.coordinator.handle_appended(token, Ok(end), now);
            }
            Ok(end) if self.has(Bug::FailedAppendCountsAsDurable) => {
                let end = end.max(self.coordinator.log_end() + 1);
                self.coordinator.handle_appended(token, Ok(end), now);
            }
            outcome => self.coordinator.handle_appended(token, outcome, now),
        }
    }

    pub fn time(&mut self, now: Now) {
        if !self.has(Bug::SessionsNeverEnd) {
            self.coordinator.handle_time(now);
        }
    }

    pub fn poll_timeout(&self) -> Option<u64> {
        if self.has(Bug::SessionsNeverEnd) { None } else { self.coordinator.poll_timeout() }
    }

    pub fn poll_effect(&mut self, now: Now) -> Option<Effect> {
        let effect = self.coordinator.poll_effect()?;
        match &effect {
            Effect::Append { token, records } if self.has(Bug::AnswersBeforeDurable) => {
                let end = self.coordinator.log_end() + records.len() as Offset;
                self.coordinator.handle_appended(*token, Ok(end), now);
            }
            Effect::Answer { answer: GroupAnswer::Sync(_), .. } if self.has(Bug::AnswerIsLost) => {
                self.answers += 1;
                if self.answers.is_multiple_of(7) {
                    return self.poll_effect(now);
                }
            }
            _ => {}
        }
        Some(effect)
    }
}
