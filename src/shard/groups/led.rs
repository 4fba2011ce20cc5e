//! One coordinator with its partition: requests go in, records go to the log, answers come out when the log has them.
//!
//! One task drives it ([`Led::drive`]): it waits until this shard leads the partition, loads it, appends in the order in which the machine asks, reports outcomes in that same order, and keeps
//! the machine's time. Requests touch the machine at once and leave the rest to that task.
//!
//! # Leaderships
//! A machine is that of one leadership: of an epoch of the partition. Each request and each append asks first whether that epoch goes on ([`Standing`]); the machine is thrown away when it does
//! not, and who waits is told to look for the coordinator again. What it had sent to the log may be committed by the next leader or not, so nobody is told either. An append that waited for room
//! meanwhile is refused by the log, though this node may lead again by then: the machine that made it knew nothing of what came between.
//!
//! A leader whose lease is over can't know whether it still leads: it answers nobody, and its members' sessions stand still until it knows. To load all anew for each hiccup would cost the members more.
//!
//! # When an append fails
//! What the log refused is not in it: the machine is told so. Where that is in doubt, the machine is thrown away and made again from the log: it must not answer by what
//! it believes. Outcomes of the life before are of no interest then.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::load;
use super::standing::{SessionClock, Standing};
use crate::batch::{BatchBuilder, Compression};
use crate::group::assignors::{self, Strategy};
use crate::group::records::LogRecord;
use crate::group::{AppendFailure, Coordinator, Effect, Now, Settings, Token, Waiter};
use crate::limits;
use crate::request::group::{GroupAnswer, GroupError, GroupRequest, ListedGroup, State, SyncGroup};
use crate::request::{Acks, Code, ProduceResult, Refusal};
use crate::shard::context::Context;
use crate::shard::event::{Event, wait_any};
use crate::shard::pending::{Answer, Patience, PendingProduce};
use crate::shard::produce;
use crate::shard::role::Role;
use crate::shard::store::now_ms;
use crate::types::{LeaderEpoch, Offset, TopicPartition};

/// A partition that can't be loaded is tried again after this long.
const RELOAD_PAUSE: Duration = Duration::from_secs(1);
/// The task looks at the machine so often although nothing is due.
const LONGEST_SLEEP_MS: u64 = 60_000;
/// A lease that is over is looked at again after this long.
const LEASE_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait of an append for the other replicas, ms. Members wait as long for a commit.
const COMMIT_PATIENCE_MS: u32 = 30_000;

/// The coordinator of a partition that this shard has; it serves while the shard leads the partition.
pub struct Led {
    /// Its partition of `__consumer_offsets`.
    pub partition: TopicPartition,
    settings: Settings,
    machine: RefCell<Coordinator>,
    /// The leadership that the machine is of; `None` while it is not loaded.
    serves: Cell<Option<LeaderEpoch>>,
    /// Which of its machines this is: each is made from the log.
    life: Cell<u64>,
    waiters: RefCell<HashMap<Waiter, async_channel::Sender<GroupAnswer>>>,
    next_waiter: Cell<u64>,
    /// Asked for and not handed to the log yet.
    appends: RefCell<VecDeque<(Token, Vec<LogRecord>)>>,
    /// Handed to the log, oldest first.
    in_flight: RefCell<VecDeque<Token>>,
    /// Decided out of order: a refusal comes before what is still being written.
    outcomes: RefCell<BTreeMap<Token, Result<Offset, AppendFailure>>>,
    /// Records that the log took since a snapshot was made.
    since_snapshot: Cell<usize>,
    in_doubt: Cell<bool>,
    stopped: Cell<bool>,
    /// Until when the task sleeps, ms of [`Led::now`].
    sleeps_until: Cell<u64>,
    wake: Event,
    clock: Cell<SessionClock>,
}

impl Led {
    /// One that begins to load once this shard leads. Its task ends with [`Led::stop`].
    pub fn begin(context: &Rc<Context>, partition: TopicPartition, settings: Settings) -> Rc<Led> {
        let led = Rc::new(Led {
            partition,
            settings,
            machine: RefCell::new(Coordinator::new(settings)),
            serves: Cell::new(None),
            life: Cell::new(0),
            waiters: RefCell::default(),
            next_waiter: Cell::new(0),
            appends: RefCell::default(),
            in_flight: RefCell::default(),
            outcomes: RefCell::default(),
            since_snapshot: Cell::new(0),
            in_doubt: Cell::new(false),
            stopped: Cell::new(false),
            sleeps_until: Cell::new(0),
            wake: Event::default(),
            clock: Cell::new(SessionClock::start(Instant::now())),
        });
        glommio::spawn_local(led.clone().drive(context.clone())).detach();
        led
    }

    /// Makes a snapshot for the checkpoint that is taken last; then ends it.
    pub fn finish(&self, context: &Context) {
        if self.since_snapshot.get() > 0 && self.check(context).is_ok() {
            self.make_snapshot(context);
        }
        self.stop();
    }

    /// The metadata changed: it may be led by another now.
    pub fn look(&self) {
        self.wake.notify();
    }

    /// Whether requests can be answered now.
    fn check(&self, context: &Context) -> Result<(), GroupError> {
        let standing = Standing::of(context, &self.partition);
        self.let_time_go(standing);
        let is_gone = context.store.partition(&self.partition).is_none_or(|cell| cell.gone().is_some());
        match standing {
            Standing::Elsewhere => Err(GroupError::NotCoordinator),
            Standing::Doubtful(_) => Err(GroupError::CoordinatorNotAvailable),
            Standing::Leads(_) if is_gone => Err(GroupError::CoordinatorNotAvailable),
            Standing::Leads(epoch) if self.serves.get() == Some(epoch) && !self.in_doubt.get() => Ok(()),
            Standing::Coming | Standing::Leads(_) => Err(GroupError::CoordinatorLoadInProgress),
        }
    }

    /// Members' sessions stand still while nobody can be answered.
    fn let_time_go(&self, standing: Standing) {
        let mut clock = self.clock.get();
        clock.set_going(!matches!(standing, Standing::Doubtful(_)), Instant::now());
        self.clock.set(clock);
    }

    /// Ends it: whoever waits is told to look for the coordinator again.
    pub fn stop(&self) {
        self.stopped.set(true);
        self.unload();
        self.wake.notify();
    }

    /// Asks the machine; the answer comes when what it relies on is durable.
    pub async fn ask(self: &Rc<Led>, context: &Context, request: GroupRequest) -> GroupAnswer {
        match self.check(context) {
            Ok(()) => {}
            // As Kafka does: a member that is told otherwise may leave for this, and its session has not begun to count.
            Err(GroupError::CoordinatorLoadInProgress) if matches!(request, GroupRequest::Heartbeat(_)) => {
                return GroupAnswer::Heartbeat(Ok(()));
            }
            Err(error) => return super::refusal(&request)(error),
        }
        let now = self.now();
        let waiter = Waiter(self.next_waiter.get());
        self.next_waiter.set(waiter.0 + 1);
        let request = match request {
            GroupRequest::SyncAssignedByBroker(sync) => match self.assign(context, sync) {
                Ok(sync) => GroupRequest::Sync(sync),
                Err(error) => return GroupAnswer::Sync(Err(error)),
            },
            request => request,
        };
        let refused = super::refusal(&request);
        let (sender, answer) = async_channel::bounded(1);
        self.waiters.borrow_mut().insert(waiter, sender);
        let at_once = self.handle(waiter, request, now);
        self.pump();
        if let Some(answer) = at_once {
            self.waiters.borrow_mut().remove(&waiter);
            return answer;
        }
        // The machine answers each request once, or is unloaded and answers then.
        answer.recv().await.unwrap_or_else(|_| refused(GroupError::NotCoordinator))
    }

    /// Gives the request to the machine; the answer where that does not wait for the log or for other members.
    fn handle(&self, waiter: Waiter, request: GroupRequest, now: Now) -> Option<GroupAnswer> {
        let mut machine = self.machine.borrow_mut();
        match request {
            GroupRequest::Join(join) => machine.handle_join(waiter, join, now),
            GroupRequest::Sync(sync) | GroupRequest::SyncAssignedByBroker(sync) => machine.handle_sync(waiter, sync, now),
            GroupRequest::Leave(leave) => machine.handle_leave(waiter, &leave, now),
            GroupRequest::Commit(commit) => machine.handle_commit(waiter, &commit, now),
            GroupRequest::Delete(groups) => machine.handle_delete_groups(waiter, groups, now),
            GroupRequest::DeleteOffsets { group, topics } => machine.handle_delete_offsets(waiter, &group, &topics),
            GroupRequest::Heartbeat(heartbeat) => return Some(GroupAnswer::Heartbeat(machine.handle_heartbeat(&heartbeat, now))),
            GroupRequest::FetchOffsets(fetch) => return Some(GroupAnswer::FetchOffsets(machine.fetch_offsets(&fetch))),
            GroupRequest::List(states) => return Some(GroupAnswer::List(machine.list(&states))),
            GroupRequest::Describe(groups) => {
                let described = groups.into_iter().map(|group| {
                    let described = machine.describe(&group);
                    (group, described)
                });
                return Some(GroupAnswer::Describe(described.collect()));
            }
        }
        None
    }

    /// Groups in one of these states; none of a partition that is led elsewhere.
    pub fn list(&self, context: &Context, states: &[State]) -> Result<Vec<ListedGroup>, GroupError> {
        match self.check(context) {
            Ok(()) => self.machine.borrow().list(states),
            Err(GroupError::NotCoordinator) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Positions in a topic that is no more go.
    pub fn topic_deleted(&self, name: &str) {
        self.machine.borrow_mut().handle_topic_deleted(name);
        self.pump();
    }

    /// What a native leader gives out, made in its place: by the protocol that was chosen and the topics as this shard knows them.
    fn assign(&self, context: &Context, sync: SyncGroup) -> Result<SyncGroup, GroupError> {
        let Some((protocol, members)) = self.machine.borrow().to_assign(&sync) else { return Ok(sync) };
        let strategy: Strategy = protocol.parse().map_err(|error| {
            tracing::warn!(group = sync.group, %error, "the broker can't assign for this group");
            GroupError::InconsistentGroupProtocol
        })?;
        let unreadable = |error: assignors::UnreadableSubscription| {
            tracing::warn!(group = sync.group, %error, "the broker can't assign for this group");
            GroupError::InconsistentGroupProtocol
        };
        let names = assignors::topics_of(&members).map_err(unreadable)?;
        let view = context.view.borrow();
        let topics = names.into_iter().filter_map(|name| {
            let partitions = view.topic(&name)?.partitions;
            Some((name, partitions))
        });
        let assignments = assignors::lead(strategy, &members, &topics.collect()).map_err(unreadable)?;
        Ok(SyncGroup { assignments, ..sync })
    }

    fn now(&self) -> Now {
        Now { steady_ms: self.clock.get().ms(Instant::now()), wall: now_ms() }
    }

    /// Does what the machine wants, as far as that is done at once; the task does the rest.
    fn pump(&self) {
        let mut has_appends = false;
        loop {
            let effect = self.machine.borrow_mut().poll_effect();
            match effect {
                None => break,
                Some(Effect::Append { token, records }) => {
                    self.appends.borrow_mut().push_back((token, records));
                    has_appends = true;
                }
                Some(Effect::Answer { waiter, answer }) => {
                    if let Some(sender) = self.waiters.borrow_mut().remove(&waiter) {
                        // Whoever asked may have gone.
                        let _ = sender.try_send(answer);
                    }
                }
            }
        }
        if has_appends || self.machine.borrow().poll_timeout().is_some_and(|due| due < self.sleeps_until.get()) {
            self.wake.notify();
        }
    }

    fn unload(&self) {
        self.serves.set(None);
        self.since_snapshot.set(0);
        self.machine.borrow_mut().handle_unload();
        self.appends.borrow_mut().clear();
        self.in_flight.borrow_mut().clear();
        self.outcomes.borrow_mut().clear();
        self.life.set(self.life.get() + 1);
        self.pump();
        self.waiters.borrow_mut().clear();
    }

    /// The task.
    async fn drive(self: Rc<Led>, context: Rc<Context>) {
        while let Some(epoch) = self.wait_to_lead(&context).await {
            let loaded = load::load(&context, self.partition, self.settings, epoch).await;
            let still_leads = || Standing::of(&context, &self.partition).epoch() == Some(epoch);
            match loaded {
                _ if self.stopped.get() => return,
                Ok(machine) if still_leads() => {
                    self.machine.replace(machine);
                    self.begin_service(&context);
                    self.serves.set(Some(epoch));
                    self.serve(&context, epoch).await;
                }
                Err(reason) if still_leads() => {
                    tracing::error!(partition = %self.partition, epoch, %reason, "the groups of this partition can't be loaded");
                }
                // Another leads it by now.
                Ok(_) | Err(_) => {}
            }
            if self.stopped.get() {
                return;
            }
            self.unload();
            self.in_doubt.set(false);
            if still_leads() {
                let pause = self.wake.ticket();
                self.wake.wait_until(pause, Instant::now() + RELOAD_PAUSE).await;
            }
        }
    }

    /// Until this shard leads; the epoch then. `None` when it is stopped.
    async fn wait_to_lead(&self, context: &Context) -> Option<LeaderEpoch> {
        while !self.stopped.get() {
            let wake = self.wake.ticket();
            let Some(cell) = context.store.partition(&self.partition) else {
                // It was dropped, and so will this be.
                self.wake.wait(wake).await;
                continue;
            };
            let tickets = [(&self.wake, wake), (&cell.committed, cell.committed.ticket())];
            if let Some(epoch) = Standing::of(context, &self.partition).epoch() {
                return Some(epoch);
            }
            wait_any(&tickets, Instant::now() + Duration::from_millis(LONGEST_SLEEP_MS)).await;
        }
        None
    }

    fn begin_service(&self, context: &Context) {
        let mut machine = self.machine.borrow_mut();
        machine.handle_loaded(self.now());
        let view = context.view.borrow();
        // A crash may have come between the deletion of a topic and that of the positions in it.
        for topic in machine.topics().into_iter().filter(|topic| view.topic(topic).is_none()) {
            machine.handle_topic_deleted(&topic);
        }
    }

    /// Until it is stopped, the leadership is over or the log is in doubt.
    async fn serve(self: &Rc<Led>, context: &Rc<Context>, epoch: LeaderEpoch) {
        let Some(cell) = context.store.partition(&self.partition) else { return };
        while !self.stopped.get() && !self.in_doubt.get() {
            let tickets = [&self.wake, &cell.committed].map(|event| (event, event.ticket()));
            let standing = Standing::of(context, &self.partition);
            if standing.epoch() != Some(epoch) {
                return;
            }
            self.let_time_go(standing);
            self.settle();
            self.keep_snapshot(context);
            let now = self.now();
            let has_lease = standing == Standing::Leads(epoch);
            if has_lease && self.machine.borrow().poll_timeout().is_some_and(|due| due <= now.steady_ms) {
                self.machine.borrow_mut().handle_time(now);
            }
            self.pump();
            let next = self.appends.borrow_mut().pop_front();
            if let Some((token, records)) = next {
                self.append(context, epoch, token, &records).await;
                continue;
            }
            let due = self.machine.borrow().poll_timeout().unwrap_or(u64::MAX).min(now.steady_ms + LONGEST_SLEEP_MS);
            self.sleeps_until.set(due);
            let deadline = if has_lease { self.clock.get().moment(due) } else { Instant::now() + LEASE_PAUSE };
            wait_any(&tickets, deadline).await;
            self.sleeps_until.set(0);
        }
    }

    /// Makes a snapshot where enough was recorded since the last one to be worth the work.
    fn keep_snapshot(&self, context: &Context) {
        let (groups, positions) = (self.machine.borrow().group_count(), self.machine.borrow().position_count());
        if self.since_snapshot.get() >= limits::GROUP_SNAPSHOT_RECORDS.max(groups + positions) {
            self.make_snapshot(context);
        }
    }

    /// What is in it is durable: a checkpoint that has it relies on nothing that may be lost.
    fn make_snapshot(&self, context: &Context) {
        let Some(cell) = context.store.partition(&self.partition) else { return };
        let snapshot = self.machine.borrow().snapshot();
        self.since_snapshot.set(0);
        let kept = (snapshot.len() <= limits::MAX_GROUP_SNAPSHOT).then(|| Bytes::from(snapshot));
        cell.machine.borrow_mut().set_groups(kept);
    }

    /// Reports what is decided, oldest first.
    fn settle(&self) {
        loop {
            let Some(token) = self.in_flight.borrow().front().copied() else { return };
            let Some(outcome) = self.outcomes.borrow_mut().remove(&token) else { return };
            self.in_flight.borrow_mut().pop_front();
            let before = self.machine.borrow().log_end();
            self.machine.borrow_mut().handle_appended(token, outcome, self.now());
            let records = self.machine.borrow().log_end() - before;
            self.since_snapshot.set(self.since_snapshot.get() + records as usize);
            self.pump();
        }
    }

    async fn append(self: &Rc<Led>, context: &Rc<Context>, epoch: LeaderEpoch, token: Token, records: &[LogRecord]) {
        let life = self.life.get();
        self.in_flight.borrow_mut().push_back(token);
        let Some(cell) = context.store.partition(&self.partition) else {
            return self.decided(life, token, Err(AppendFailure::NotLeader));
        };
        if matches!(cell.role(), Role::Leader(_)) && !cell.enough_replicas.get() {
            // It would wait in the log for a commit that may never come.
            return self.decided(life, token, Err(AppendFailure::Unavailable));
        }
        let mut batch = BatchBuilder::new(Compression::None);
        let now = now_ms();
        for record in records {
            if batch.append(now, Some(&record.key), record.value.as_deref(), &[]).is_err() {
                return self.decided(life, token, Err(AppendFailure::TooLarge));
            }
        }
        let answer = Box::new(Appended { led: self.clone(), life, token, records: records.len() });
        let pending =
            PendingProduce::new(std::iter::once(self.partition), Patience::new(Acks::All, COMMIT_PATIENCE_MS).in_epoch(epoch), answer);
        produce::append(context, &self.partition, &batch.build(), pending.completion(0)).await;
    }

    fn decided(&self, life: u64, token: Token, outcome: Result<Offset, AppendFailure>) {
        if life == self.life.get() {
            self.outcomes.borrow_mut().insert(token, outcome);
            self.wake.notify();
        }
    }

    fn doubt(&self, life: u64, refusal: &Refusal) {
        if life == self.life.get() && !self.stopped.get() {
            tracing::warn!(partition = %self.partition, %refusal, "whether the groups' log took a record is not known: it is read again");
            self.in_doubt.set(true);
            self.wake.notify();
        }
    }
}

/// Hears what became of an append.
struct Appended {
    led: Rc<Led>,
    life: u64,
    token: Token,
    records: usize,
}

impl Answer for Appended {
    fn produced(&self, results: Vec<ProduceResult>) {
        // One batch has one result.
        for ProduceResult { outcome, .. } in results {
            let outcome = match outcome {
                Ok(appended) => Ok(appended.base_offset + self.records as Offset),
                Err(refusal) => match failure(&refusal) {
                    Some(failure) => Err(failure),
                    None => return self.led.doubt(self.life, &refusal),
                },
            };
            self.led.decided(self.life, self.token, outcome);
        }
    }
}

/// What the machine is told where the log did not take a record for sure; else nothing.
fn failure(refusal: &Refusal) -> Option<AppendFailure> {
    match refusal.code {
        Code::RecordTooLarge => Some(AppendFailure::TooLarge),
        Code::DiskFull | Code::LimitReached | Code::NotEnoughReplicas => Some(AppendFailure::Unavailable),
        Code::UnknownTopicOrPartition | Code::NotLeader => Some(AppendFailure::NotLeader),
        _ => None,
    }
}
