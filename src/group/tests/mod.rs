//! Each rule of the coordinator by itself. The rules together are the simulation's.

mod joins;
mod loading;
mod offsets;
mod static_members;
mod syncs;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::consumer_protocol::Subscription;
use super::records::LogRecord;
use super::*;
use crate::request::group::*;
use crate::types::Offset;

const SESSION_MS: i32 = 10_000;
const REBALANCE_MS: i32 = 30_000;
const DELAY_MS: u64 = 3_000;
const WALL: i64 = 1_000_000_000;

/// A coordinator, its log, and the answers so far.
struct Bench {
    coordinator: Coordinator,
    now: Now,
    waiters: u64,
    entropy: u8,
    answers: BTreeMap<Waiter, GroupAnswer>,
    appends: VecDeque<(Token, Vec<LogRecord>)>,
    log: Vec<LogRecord>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Settings::default())
    }

    fn with(settings: Settings) -> Bench {
        let mut bench = Bench::loading(settings);
        bench.coordinator.handle_loaded(bench.now);
        bench
    }

    fn loading(settings: Settings) -> Bench {
        Bench {
            coordinator: Coordinator::new(settings),
            now: Now { steady_ms: 5, wall: WALL },
            waiters: 0,
            entropy: 0,
            answers: BTreeMap::new(),
            appends: VecDeque::new(),
            log: Vec::new(),
        }
    }

    /// The next coordinator, which knows what the log knows.
    fn restart(&mut self, settings: Settings) {
        self.coordinator = Coordinator::new(settings);
        self.appends.clear();
        for (offset, record) in self.log.iter().enumerate() {
            self.coordinator.handle_record(offset as Offset, &record.key, record.value.as_deref()).unwrap();
        }
        self.coordinator.handle_loaded(self.now);
        self.pump();
    }

    fn waiter(&mut self) -> Waiter {
        self.waiters += 1;
        Waiter(self.waiters)
    }

    fn pump(&mut self) {
        while let Some(effect) = self.coordinator.poll_effect() {
            match effect {
                Effect::Append { token, records } => self.appends.push_back((token, records)),
                Effect::Answer { waiter, answer } => {
                    assert!(self.answers.insert(waiter, answer).is_none(), "one answer for {waiter:?}");
                }
            }
        }
        self.coordinator.check();
    }

    /// Every append becomes durable.
    fn land(&mut self) {
        while let Some((token, records)) = self.appends.pop_front() {
            self.log.extend(records);
            self.coordinator.handle_appended(token, Ok(self.log.len() as Offset), self.now);
            self.pump();
        }
    }

    /// Every append fails.
    fn fail(&mut self, failure: AppendFailure) {
        while let Some((token, _)) = self.appends.pop_front() {
            self.coordinator.handle_appended(token, Err(failure), self.now);
            self.pump();
        }
    }

    /// Lets time pass, stopping wherever something is due.
    fn advance(&mut self, ms: u64) {
        let end = self.now.steady_ms + ms;
        while let Some(at) = self.coordinator.poll_timeout().filter(|at| *at <= end) {
            self.step_to(at.max(self.now.steady_ms));
        }
        self.step_to(end);
    }

    fn step_to(&mut self, at: u64) {
        self.now.wall += (at - self.now.steady_ms) as i64;
        self.now.steady_ms = at;
        self.coordinator.handle_time(self.now);
        self.pump();
    }

    /// The request of a new dynamic member, which is not told its id first.
    fn request(&mut self, group: &str) -> JoinGroup {
        self.entropy += 1;
        JoinGroup {
            group: group.into(),
            member_id: String::new(),
            instance_id: None,
            client_id: "c".into(),
            client_host: "/h".into(),
            session_timeout_ms: SESSION_MS,
            rebalance_timeout_ms: REBALANCE_MS,
            protocol_type: "consumer".into(),
            protocols: vec![protocol("range", &["t"])],
            needs_member_id: false,
            can_skip_assignment: false,
            entropy: [self.entropy; 16],
        }
    }

    fn rejoin(&mut self, group: &str, member_id: &str) -> JoinGroup {
        JoinGroup { member_id: member_id.into(), ..self.request(group) }
    }

    fn join(&mut self, join: JoinGroup) -> Waiter {
        let waiter = self.waiter();
        self.coordinator.handle_join(waiter, join, self.now);
        self.pump();
        waiter
    }

    fn sync(&mut self, sync: SyncGroup) -> Waiter {
        let waiter = self.waiter();
        self.coordinator.handle_sync(waiter, sync, self.now);
        self.pump();
        waiter
    }

    fn heartbeat(&mut self, group: &str, member_id: &str, generation: i32) -> Result<(), GroupError> {
        let outcome =
            self.coordinator.handle_heartbeat(&Heartbeat { group: group.into(), member: member(member_id), generation }, self.now);
        self.pump();
        outcome
    }

    fn leave(&mut self, group: &str, members: Vec<MemberRef>) -> Waiter {
        let waiter = self.waiter();
        self.coordinator.handle_leave(waiter, &LeaveGroup { group: group.into(), members }, self.now);
        self.pump();
        waiter
    }

    fn commit(&mut self, commit: &CommitOffsets) -> Waiter {
        let waiter = self.waiter();
        self.coordinator.handle_commit(waiter, commit, self.now);
        self.pump();
        waiter
    }

    fn delete_groups(&mut self, groups: &[&str]) -> Waiter {
        let waiter = self.waiter();
        self.coordinator.handle_delete_groups(waiter, groups.iter().map(|g| g.to_string()).collect(), self.now);
        self.pump();
        waiter
    }

    fn delete_offsets(&mut self, group: &str, topics: &[(&str, &[i32])]) -> Waiter {
        let waiter = self.waiter();
        let topics: Vec<_> = topics.iter().map(|(topic, p)| (topic.to_string(), p.to_vec())).collect();
        self.coordinator.handle_delete_offsets(waiter, group, &topics);
        self.pump();
        waiter
    }

    fn answer(&mut self, waiter: Waiter) -> Option<GroupAnswer> {
        self.answers.remove(&waiter)
    }

    #[track_caller]
    fn joined(&mut self, waiter: Waiter) -> Joined {
        match self.answer(waiter) {
            Some(GroupAnswer::Join(Ok(joined))) => joined,
            other => panic!("not joined: {other:?}"),
        }
    }

    #[track_caller]
    fn join_error(&mut self, waiter: Waiter) -> GroupError {
        match self.answer(waiter) {
            Some(GroupAnswer::Join(Err(refused))) => refused.error,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[track_caller]
    fn synced(&mut self, waiter: Waiter) -> Result<Bytes, GroupError> {
        match self.answer(waiter) {
            Some(GroupAnswer::Sync(outcome)) => outcome.map(|synced| synced.assignment),
            other => panic!("no answer to a sync: {other:?}"),
        }
    }

    #[track_caller]
    fn committed(&mut self, waiter: Waiter) -> Result<(), GroupError> {
        match self.answer(waiter) {
            Some(GroupAnswer::Commit(topics)) => topics[0].partitions[0].1,
            other => panic!("no answer to a commit: {other:?}"),
        }
    }

    fn state(&self, group: &str) -> State {
        self.coordinator.describe(group).unwrap().state
    }

    fn fetched(&self, group: &str, topic: &str, partition: i32) -> Option<Offset> {
        let fetch = FetchOffsets { group: group.into(), topics: Some(vec![(topic.into(), vec![partition])]), require_stable: false };
        let topics = self.coordinator.fetch_offsets(&fetch).unwrap();
        topics[0].partitions[0].outcome.as_ref().unwrap().as_ref().map(|commit| commit.offset)
    }

    /// A stable group of so many new members; their ids, the leader's first.
    fn stable(&mut self, group: &str, count: usize) -> Vec<String> {
        let requests: Vec<JoinGroup> = (0..count).map(|_| self.request(group)).collect();
        self.stable_of(group, requests)
    }

    fn stable_of(&mut self, group: &str, requests: Vec<JoinGroup>) -> Vec<String> {
        let waiters: Vec<Waiter> = requests.into_iter().map(|request| self.join(request)).collect();
        self.advance(4 * DELAY_MS);
        let joined: Vec<Joined> = waiters.into_iter().map(|waiter| self.joined(waiter)).collect();
        self.sync_all(group, &joined)
    }

    /// All of a generation sync, the leader last; each is given its own id.
    fn sync_all(&mut self, group: &str, joined: &[Joined]) -> Vec<String> {
        let mut ids: Vec<String> = joined.iter().map(|j| j.member_id.to_string()).collect();
        ids.sort_by_key(|id| **id != *joined[0].leader);
        let mut waiters = Vec::new();
        for id in ids.iter().rev() {
            let assignments = if *id == ids[0] { ids.iter().map(|id| (id.clone(), Bytes::from(id.clone()))).collect() } else { Vec::new() };
            waiters.push((id.clone(), self.sync(sync_of(group, id, joined[0].generation, assignments))));
        }
        self.land();
        for (id, waiter) in waiters {
            assert_eq!(self.synced(waiter), Ok(Bytes::from(id)));
        }
        assert_eq!(self.state(group), State::Stable);
        ids
    }
}

fn member(id: &str) -> MemberRef {
    MemberRef { member_id: id.into(), instance_id: None }
}

fn instance(id: &str, instance: &str) -> MemberRef {
    MemberRef { member_id: id.into(), instance_id: Some(instance.into()) }
}

fn protocol(name: &str, topics: &[&str]) -> Protocol {
    let subscription = Subscription { topics: topics.iter().map(|t| t.to_string()).collect(), ..Subscription::default() };
    Protocol { name: name.into(), metadata: subscription.encode() }
}

fn sync_of(group: &str, member_id: &str, generation: i32, assignments: Vec<(String, Bytes)>) -> SyncGroup {
    SyncGroup { group: group.into(), member: member(member_id), generation, protocol_type: None, protocol: None, assignments }
}

fn commit_of(group: &str, who: MemberRef, generation: i32, offset: Offset) -> CommitOffsets {
    let partition = CommitPartition { partition: 0, offset, leader_epoch: Some(3), metadata: Some("m".into()) };
    CommitOffsets { group: group.into(), member: who, generation, retention_ms: None, topics: vec![("t".into(), vec![partition])] }
}

fn simple(group: &str, offset: Offset) -> CommitOffsets {
    commit_of(group, MemberRef::default(), -1, offset)
}
