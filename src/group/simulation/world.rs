//! Time, network, log and everything that goes wrong with them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::client::{Client, Phase, REBALANCE_MS, Reply, Request, SESSION_MS};
use super::model::Model;
use super::planted::{Bug, Server};
use crate::group::assignors::Strategy;
use crate::group::random::Random;
use crate::group::records::LogRecord;
use crate::group::{AppendFailure, Effect, Now, Settings, Token, Waiter};
use crate::request::group::{CommitOffsets, CommitPartition, FetchOffsets, GroupAnswer, GroupError, LeaveGroup, MemberRef, State};
use crate::types::Offset;

const TICK_MS: u64 = 100;
/// Longest time in which a group whose members stay comes to rest, ms: a pause, a new member's time and some rebalances.
const SETTLE_MS: u64 = 90_000;
pub const RETENTION_MS: i64 = 30_000;
const RETENTION_CHECK_MS: u64 = 5_000;
const MAX_PAUSE_MS: u64 = 15_000;
const WALL: i64 = 1_700_000_000_000;

#[derive(Debug)]
enum Packet {
    Request { client: usize, number: u64, request: Request },
    Reply { client: usize, number: u64, reply: Reply },
}

#[derive(Debug)]
struct Append {
    token: Token,
    records: Vec<LogRecord>,
    at: u64,
    failure: Option<AppendFailure>,
}

/// A request that the coordinator has and has not answered.
#[derive(Debug)]
struct Asked {
    client: usize,
    number: u64,
    request: Request,
}

/// Requests of nobody in particular.
const ADMIN: usize = usize::MAX;

pub struct World {
    random: Random,
    now: u64,
    settings: Settings,
    server: Server,
    loaded_at: Option<u64>,
    log: Vec<LogRecord>,
    appends: VecDeque<Append>,
    snapshot: Option<Vec<u8>>,
    network: BTreeMap<(u64, u64), Packet>,
    sent: u64,
    clients: Vec<Client>,
    asked: BTreeMap<Waiter, Asked>,
    waiters: u64,
    model: Model,
    offset: i64,
    topics: BTreeMap<String, u32>,
    strategies: Vec<Strategy>,
    /// While things go wrong.
    is_rough: bool,
    log_fails_until: u64,
    pub stable_checks: u64,
    pub seen: Seen,
}

/// Which answers there were: what was asked, and the error.
pub type Seen = BTreeSet<(&'static str, Option<GroupError>)>;

fn note(answer: &GroupAnswer, seen: &mut Seen) {
    match answer {
        GroupAnswer::Join(Ok(joined)) if joined.skip_assignment => _ = seen.insert(("join that skips", None)),
        GroupAnswer::Join(outcome) => _ = seen.insert(("join", outcome.as_ref().err().map(|refused| refused.error))),
        GroupAnswer::Sync(outcome) => _ = seen.insert(("sync", outcome.as_ref().err().copied())),
        GroupAnswer::Leave(Ok(left)) => seen.extend(left.iter().map(|left| ("leave", left.outcome.err()))),
        GroupAnswer::Leave(Err(error)) => _ = seen.insert(("leave", Some(*error))),
        GroupAnswer::Commit(topics) => seen.extend(topics.iter().flat_map(|t| &t.partitions).map(|(_, outcome)| ("commit", outcome.err()))),
        GroupAnswer::DeleteGroups(outcomes) => seen.extend(outcomes.iter().map(|(_, outcome)| ("delete group", outcome.err()))),
        GroupAnswer::DeleteOffsets(Ok(topics)) => {
            seen.extend(topics.iter().flat_map(|t| &t.partitions).map(|(_, outcome)| ("delete offset", outcome.err())));
        }
        GroupAnswer::DeleteOffsets(Err(error)) => _ = seen.insert(("delete offset", Some(*error))),
        other => panic!("{other:?} waits for nothing"),
    }
}

impl World {
    pub fn new(seed: u64, bug: Option<Bug>) -> World {
        let mut random = Random::new(seed);
        let settings = Settings {
            initial_rebalance_delay_ms: [0, 500, 3_000][random.below(3)],
            new_member_timeout_ms: 12_000,
            max_members: [2, 4, 100][random.below(3)],
            offsets_retention_ms: RETENTION_MS,
            retention_check_ms: RETENTION_CHECK_MS,
            ..Settings::default()
        };
        let strategies = match random.below(4) {
            0 => vec![Strategy::Range],
            1 => vec![Strategy::RoundRobin, Strategy::Range],
            _ => vec![Strategy::CooperativeSticky],
        };
        let topics = [("t", 4), ("u", 3)].into_iter().map(|(topic, count)| (topic.to_string(), count)).collect();
        World {
            random,
            now: 1_000,
            settings,
            server: Server::new(settings, bug),
            loaded_at: Some(1_000),
            log: Vec::new(),
            appends: VecDeque::new(),
            snapshot: None,
            network: BTreeMap::new(),
            sent: 0,
            clients: Vec::new(),
            asked: BTreeMap::new(),
            waiters: 0,
            model: Model::default(),
            offset: 0,
            topics,
            strategies,
            is_rough: true,
            log_fails_until: 0,
            stable_checks: 0,
            seen: Seen::new(),
        }
    }

    /// A rough time, a quiet one in which every group has to come to rest, and an end of which nothing may be left.
    pub fn run(&mut self) {
        let rough_ms = self.random.between(20_000, 80_000);
        self.run_until(self.now + rough_ms);
        self.is_rough = false;
        self.run_until(self.now + SETTLE_MS);
        self.check_rest();
        for at in 0..self.clients.len() {
            if self.clients[at].is_alive() {
                if self.random.is(50) { self.clients[at].crash() } else { self.send_leave(at) }
            }
        }
        self.run_until(self.now + SETTLE_MS + RETENTION_MS as u64 + 3 * RETENTION_CHECK_MS);
        self.check_end();
    }

    fn clock(&self) -> Now {
        Now { steady_ms: self.now, wall: WALL + self.now as i64 }
    }

    fn run_until(&mut self, end: u64) {
        let mut next_tick = self.now;
        let mut next_trouble = self.now;
        while self.now < end {
            let waits = [
                self.network.keys().next().map(|(at, _)| *at),
                self.appends.front().map(|a| a.at),
                self.loaded_at,
                self.server.poll_timeout(),
            ];
            let next = waits.into_iter().flatten().chain([next_tick, next_trouble]).min().expect("ticks go on");
            self.now = next.max(self.now);
            if self.loaded_at.is_some_and(|at| at <= self.now) {
                self.loaded_at = None;
                self.server.coordinator.handle_loaded(self.clock());
            }
            self.server.time(self.clock());
            self.carry_out();
            self.land_appends();
            self.deliver();
            if next_tick <= self.now {
                next_tick = self.now + TICK_MS;
                self.tick();
            }
            if next_trouble <= self.now {
                next_trouble = self.now + self.random.between(100, 2_500);
                if self.is_rough {
                    self.trouble();
                }
            }
        }
    }

    fn tick(&mut self) {
        for at in 0..self.clients.len() {
            for (number, request) in self.clients[at].tick(self.now, &mut self.offset, &mut self.random) {
                self.send(at, number, request);
            }
        }
    }

    fn send(&mut self, client: usize, number: u64, request: Request) {
        if self.is_rough && self.random.is(2) {
            return;
        }
        let at = self.now + self.delay();
        self.post(at, Packet::Request { client, number, request });
    }

    fn reply(&mut self, client: usize, number: u64, reply: Reply) {
        if client == ADMIN || (self.is_rough && self.random.is(2)) {
            return;
        }
        let at = self.now + self.delay();
        self.post(at, Packet::Reply { client, number, reply });
    }

    fn post(&mut self, at: u64, packet: Packet) {
        self.sent += 1;
        self.network.insert((at, self.sent), packet);
    }

    fn delay(&mut self) -> u64 {
        if self.is_rough && self.random.is(3) { self.random.between(300, 5_000) } else { self.random.between(1, 40) }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.network.first_entry().filter(|entry| entry.key().0 <= self.now) {
            match entry.remove() {
                Packet::Request { client, number, request } => self.serve(client, number, request),
                Packet::Reply { client, number, reply } => {
                    if let Some((number, request)) = self.clients[client].receive(number, reply, self.now) {
                        self.send(client, number, request);
                    }
                }
            }
        }
    }

    fn serve(&mut self, client: usize, number: u64, request: Request) {
        let now = self.clock();
        self.waiters += 1;
        let waiter = Waiter(self.waiters);
        if !matches!(request, Request::Heartbeat(_) | Request::Fetch(_)) {
            self.asked.insert(waiter, Asked { client, number, request: request.clone() });
        }
        let is_loading = self.loaded_at.is_some();
        match request {
            Request::Join(join) => self.server.join(waiter, join, now),
            Request::Sync(sync) => self.server.sync(waiter, sync, now),
            Request::Leave(leave) => self.server.coordinator.handle_leave(waiter, &leave, now),
            Request::DeleteGroups(groups) => {
                self.model.delete(&groups, None, now.wall);
                self.server.coordinator.handle_delete_groups(waiter, groups, now);
            }
            Request::DeleteOffsets(group, topics) => {
                self.model.delete(std::slice::from_ref(&group), None, now.wall);
                self.server.coordinator.handle_delete_offsets(waiter, &group, &topics);
            }
            Request::Commit(commit) => {
                let before = self.appends.len();
                self.server.commit(waiter, &commit, now);
                self.carry_out();
                if self.appends.len() > before {
                    self.model.accepted(&commit);
                }
            }
            Request::Heartbeat(heartbeat) => {
                let outcome = self.server.heartbeat(&heartbeat, now);
                self.seen.insert(("heartbeat", outcome.err()));
                if !is_loading {
                    self.model.heartbeat(&heartbeat, outcome);
                }
                self.reply(client, number, Reply::Heartbeat(outcome));
            }
            Request::Fetch(fetch) => {
                if let Ok(topics) = self.server.fetch(&fetch) {
                    self.model.fetched(&fetch, &topics);
                }
            }
        }
        self.carry_out();
    }

    /// Does what the coordinator wants done, and looks at it.
    fn carry_out(&mut self) {
        let now = self.clock();
        while let Some(effect) = self.server.poll_effect(now) {
            match effect {
                Effect::Append { token, records } => {
                    let pause = if self.random.is(5) { self.random.between(100, 2_000) } else { self.random.between(0, 30) };
                    let at = self.appends.back().map_or(0, |last| last.at).max(self.now + pause);
                    let fails = self.is_rough && (self.now < self.log_fails_until || self.random.is(2));
                    let kinds = [AppendFailure::NotLeader, AppendFailure::Unavailable, AppendFailure::TooLarge];
                    let failure = fails.then(|| kinds[self.random.below(3)]);
                    self.appends.push_back(Append { token, records, at, failure });
                }
                Effect::Answer { waiter, answer } => {
                    let asked = self.asked.remove(&waiter).expect("an answer to a request that has none yet");
                    self.model.answered(&asked.request, &answer);
                    note(&answer, &mut self.seen);
                    self.reply(asked.client, asked.number, Reply::Answer(answer));
                }
            }
        }
        self.server.coordinator.check();
        let parked = self.server.coordinator.waiters();
        assert!(parked.iter().eq(self.asked.keys()), "requests {:?} have no answer, {parked:?} are known", self.asked.keys());
    }

    fn land_appends(&mut self) {
        while let Some(append) = self.appends.pop_front_if(|append| append.at <= self.now) {
            let outcome = match append.failure {
                Some(failure) => Err(failure),
                None => {
                    self.model.durable(&append.records, WALL + self.now as i64);
                    self.log.extend(append.records);
                    Ok(self.log.len() as Offset)
                }
            };
            self.server.appended(append.token, outcome, self.clock());
            self.carry_out();
        }
    }

    fn trouble(&mut self) {
        let group = ["g", "h"][self.random.below(2)];
        let alive: Vec<usize> = (0..self.clients.len()).filter(|at| self.clients[*at].is_alive()).collect();
        let somebody = (!alive.is_empty()).then(|| alive[self.random.below(alive.len().max(1))]);
        match (self.random.below(100), somebody) {
            (0..30, _) if alive.len() < 8 => self.start_client(group),
            (30..38, Some(at)) => self.clients[at].crash(),
            (38..45, Some(at)) => {
                let until = self.now + self.random.between(2_000, MAX_PAUSE_MS);
                self.clients[at].pause(until);
            }
            (45..52, Some(at)) => self.send_leave(at),
            (52..60, Some(at)) => self.clients[at].wants_rejoin = true,
            (60..65, _) => {
                let instance_id = Some(format!("{group}-{}", self.random.below(3)));
                let members = vec![MemberRef { member_id: String::new(), instance_id }];
                self.send(ADMIN, 0, Request::Leave(LeaveGroup { group: group.into(), members }));
            }
            (65..68, _) => self.send(ADMIN, 0, Request::DeleteGroups(vec![group.into(), "simple".into(), group.into(), "none".into()])),
            (68..71, _) => {
                let group = [group, "simple"][self.random.below(2)].to_string();
                self.send(ADMIN, 0, Request::DeleteOffsets(group, vec![("t".into(), vec![0, 1, 9]), ("v".into(), vec![0])]));
            }
            (71..76, _) => self.simple_commit(group),
            (76..80, _) => {
                let fetch = FetchOffsets { group: [group, "simple"][self.random.below(2)].into(), topics: None, require_stable: false };
                self.send(ADMIN, 0, Request::Fetch(fetch));
            }
            (80..83, _) => self.snapshot = Some(self.server.snapshot()).filter(|_| self.loaded_at.is_none()).or(self.snapshot.take()),
            (83..88, _) => self.restart(),
            (88..91, _) => self.log_fails_until = self.now + self.random.between(200, 3_000),
            (91..93, _) if self.loaded_at.is_none() => {
                let topic = ["t", "v"][self.random.below(2)];
                self.model.delete(&[], Some(topic), WALL + self.now as i64);
                self.server.coordinator.handle_topic_deleted(topic);
                self.carry_out();
            }
            _ => {}
        }
    }

    fn start_client(&mut self, group: &str) {
        let name = format!("c{}", self.clients.len());
        let instance_id = self.random.is(40).then(|| format!("{group}-{}", self.random.below(3)));
        let mut strategies = self.strategies.clone();
        if strategies.contains(&Strategy::Range) && self.random.is(30) {
            strategies = vec![Strategy::Range];
        }
        let mut client = Client::new(group, name, instance_id, strategies, &self.topics);
        client.is_old = self.random.is(20);
        self.clients.push(client);
    }

    fn send_leave(&mut self, at: usize) {
        let request = self.clients[at].leave();
        self.send(at, 0, request);
    }

    /// Of a consumer without members, in a group of its own or, as an administrator may, in one that perhaps has some.
    fn simple_commit(&mut self, group: &str) {
        let group = if self.random.is(60) { "simple" } else { group };
        self.offset += 1;
        let partition = CommitPartition { partition: self.random.below(3) as i32, offset: self.offset, leader_epoch: None, metadata: None };
        let topics = vec![(["t", "v"][self.random.below(2)].to_string(), vec![partition])];
        let retention_ms = self.random.is(20).then_some(5_000);
        let commit = CommitOffsets { group: group.into(), member: MemberRef::default(), generation: -1, retention_ms, topics };
        self.send(ADMIN, 0, Request::Commit(commit));
    }

    /// The coordinator ends, by a crash or in order; the next one knows what the log has. Of the appends on their way some have reached it.
    fn restart(&mut self) {
        if self.random.is(30) {
            self.server.coordinator.handle_unload();
            self.carry_out();
            assert!(self.asked.is_empty(), "an unloaded coordinator has answered everybody");
        }
        let kept = self.random.below(self.appends.len() + 1);
        for append in self.appends.drain(..).take(kept).filter(|append| append.failure.is_none()) {
            self.model.durable(&append.records, WALL + self.now as i64);
            self.log.extend(append.records);
        }
        self.model.restarted();
        for (_, asked) in std::mem::take(&mut self.asked) {
            self.reply(asked.client, asked.number, Reply::Lost);
        }
        for (key, packet) in std::mem::take(&mut self.network) {
            match packet {
                Packet::Request { client, number, .. } => self.reply(client, number, Reply::Lost),
                reply if self.random.is(50) => _ = self.network.insert(key, reply),
                Packet::Reply { client, number, .. } => self.reply(client, number, Reply::Lost),
            }
        }
        let bug = self.server.bug;
        let mut whole = Server::new(self.settings, bug);
        whole.load(&self.log, None);
        if let Some(snapshot) = &self.snapshot {
            let mut quick = Server::new(self.settings, bug);
            quick.load(&self.log, Some(snapshot));
            let is_same = quick.coordinator.snapshot() == whole.coordinator.snapshot();
            assert!(is_same, "a snapshot and the records behind it are not the whole log");
            whole = quick;
        }
        self.server = whole;
        self.loaded_at = Some(self.now + self.random.between(0, 500));
    }

    /// Nobody has come or gone for a while: groups are stable, and every partition is read.
    fn check_rest(&mut self) {
        for group in ["g", "h"] {
            let alive: Vec<&Client> = self.clients.iter().filter(|c| c.is_alive() && c.group == group).collect();
            let known = self.server.coordinator.group(group);
            if alive.is_empty() {
                assert!(known.is_none_or(|g| g.state() == State::Empty), "{group} without members is {:?}", known.map(|g| g.state()));
                continue;
            }
            self.stable_checks += 1;
            let known = known.expect("a group with members");
            assert_eq!(known.state(), State::Stable, "{group}: {known:?}");
            assert_eq!(known.members().len(), alive.len(), "{group} has the members that live");
            assert!(known.pending_joins.is_empty() && known.pending_syncs.is_empty(), "{group} waits for nobody");
            let mut read = Vec::new();
            for client in alive {
                assert_eq!(client.phase, Phase::Active, "{}", client.name);
                assert_eq!(client.generation, known.generation, "{}", client.name);
                assert!(known.has_member(&client.member_id), "{}", client.name);
                read.extend(client.owned.iter().flat_map(|(topic, partitions)| partitions.iter().map(move |p| (topic.clone(), *p))));
            }
            read.sort();
            let all: Vec<(String, i32)> =
                self.topics.iter().flat_map(|(topic, count)| (0..*count as i32).map(move |p| (topic.clone(), p))).collect();
            assert_eq!(read, all, "{group}: every partition is read by one member");
        }
    }

    /// Everybody is gone and everything is too old: nothing is left.
    fn check_end(&self) {
        let coordinator = &self.server.coordinator;
        assert_eq!(coordinator.group_count(), 0, "groups are left: {:?}", coordinator.list(&[]));
        assert_eq!((coordinator.position_count(), coordinator.appends_in_flight()), (0, 0));
        assert_eq!(coordinator.timer_count(), 1, "only the search for old positions goes on");
        assert!(self.asked.is_empty() && self.model.is_empty());
    }
}

const _: () = assert!(SETTLE_MS > MAX_PAUSE_MS + SESSION_MS as u64 + 4 * REBALANCE_MS as u64);
