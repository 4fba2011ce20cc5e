//! The task of a group consumer: asks the coordinator, heartbeats, looks for new topics and partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::builder::{OffsetReset, Subscribed};
use super::coordinator::Coordinator;
use super::membership::{Membership, Step, Then};
use crate::client::admin::list_offset;
use crate::client::consumer::SeekTo;
use crate::client::error::ClientError;
use crate::request::consumer_protocol::TopicPartitions as Partitions;
use crate::request::group::{GroupAnswer, GroupError, GroupRequest, JoinRefused, Joined, Synced};
use crate::request::{Code, Metadata, OffsetSpec, TopicPartitions};
use crate::types::Offset;

/// A subscribed topic that is not there is looked for again after this long: it may be about to be made.
const MISSING_TOPIC_AGE: Duration = Duration::from_secs(1);

/// Settings of the task, made valid.
pub(super) struct TaskSettings {
    pub subscribed: Subscribed,
    pub heartbeat_interval: Duration,
    /// How long a join may be held back.
    pub rebalance_patience: Duration,
    pub max_poll_interval: Duration,
    pub metadata_max_age: Duration,
    pub reset: OffsetReset,
}

/// What the task and the application share.
pub(super) struct Shared {
    pub coordinator: Coordinator,
    pub settings: TaskSettings,
    state: Mutex<State>,
    /// There is something to release, to take or to tell.
    pub to_application: Notify,
    /// There is something to ask.
    pub to_task: Notify,
    /// One commit at a time, so that an older one that is tried again never follows a newer one.
    pub commits: Arc<AsyncMutex<()>>,
    closing: watch::Sender<bool>,
}

pub(super) struct State {
    pub membership: Membership,
    /// Where to read what is to be taken, as found in a round of the membership.
    pub starts: Option<(u64, Vec<Start>)>,
    /// Ends it.
    pub failure: Option<ClientError>,
    /// The application is asking for a record.
    polls: u32,
    polled_at: Instant,
    /// Number of partitions of the subscribed topics, once they were looked up.
    known: Option<BTreeMap<String, usize>>,
}

/// Where a partition is read from.
pub(super) struct Start {
    pub topic: String,
    pub partition: u32,
    pub found: Arc<TopicPartitions>,
    /// Nothing is committed, and the application wants to be told.
    pub offset: Option<Offset>,
}

/// The application is asking for a record while this lives.
pub(super) struct Polling(Arc<Shared>);

impl Drop for Polling {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.polls -= 1;
        state.polled_at = Instant::now();
    }
}

enum Asked {
    Joined(Result<Result<Joined, JoinRefused>, ClientError>),
    Synced(Result<Result<Synced, GroupError>, ClientError>),
    Starts(Result<Vec<Start>, ClientError>),
}

type Asking<'a> = Pin<Box<dyn Future<Output = Asked> + Send + 'a>>;

impl Shared {
    pub fn new(coordinator: Coordinator, settings: TaskSettings, membership: Membership) -> Shared {
        let state = State { membership, starts: None, failure: None, polls: 0, polled_at: Instant::now(), known: None };
        Shared {
            coordinator,
            settings,
            state: Mutex::new(state),
            to_application: Notify::new(),
            to_task: Notify::new(),
            commits: Arc::default(),
            closing: watch::channel(false).0,
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin_poll(self: &Arc<Self>) -> Polling {
        let mut state = self.lock();
        state.polls += 1;
        if state.membership.step() == Step::Away {
            state.membership.come_back();
            self.to_task.notify_one();
        }
        Polling(self.clone())
    }

    /// The task leaves the group and ends.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Keeps the member in the group until [`Shared::close`].
    pub async fn run(self: Arc<Self>) {
        let mut closing = self.closing.subscribe();
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => {}
            () = self.keep_topics() => {}
            () = self.keep_member() => {}
        }
        self.leave().await;
    }

    async fn leave(&self) {
        let farewell = self.lock().membership.farewell();
        if let Some(farewell) = farewell
            && let Err(error) = self.coordinator.ask(GroupRequest::Leave(farewell), Duration::ZERO).await
        {
            tracing::debug!(group = self.coordinator.group, %error, "not known to have left the group");
        }
    }

    fn fail(&self, error: ClientError) {
        tracing::warn!(group = self.coordinator.group, %error, "no member of the group any more");
        self.lock().failure = Some(error);
        self.to_application.notify_one();
    }

    /// Follows the topics of the subscription.
    async fn keep_topics(&self) {
        let mut attempts = 0;
        loop {
            let names = match &self.settings.subscribed {
                Subscribed::Names(names) => Some(names.iter().cloned().collect::<Vec<_>>()),
                Subscribed::Pattern(_) => None,
            };
            let pause = match self.coordinator.brokers.refresh_once(names.as_deref()).await {
                Ok(metadata) => {
                    attempts = 0;
                    let is_missing = self.learn(&metadata);
                    if is_missing { MISSING_TOPIC_AGE.min(self.settings.metadata_max_age) } else { self.settings.metadata_max_age }
                }
                Err(error) => {
                    attempts += 1;
                    tracing::debug!(group = self.coordinator.group, %error, "topics can't be looked for now");
                    self.coordinator.brokers.settings.backoff.after(attempts)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether a topic that was named is missing.
    fn learn(&self, metadata: &Metadata) -> bool {
        let found = metadata.topics.iter().filter_map(|topic| Some((&topic.name, topic.found.as_ref().ok()?.partitions.len())));
        let (known, topics, is_missing) = match &self.settings.subscribed {
            Subscribed::Names(names) => {
                let known: BTreeMap<String, usize> = found.map(|(name, count)| (name.clone(), count)).collect();
                let is_missing = known.len() < names.len();
                (known, names.clone(), is_missing)
            }
            Subscribed::Pattern(pattern) => {
                let matching = found.filter(|(name, _)| !name.starts_with(INTERNAL) && pattern.is_match(name));
                let known: BTreeMap<String, usize> = matching.map(|(name, count)| (name.clone(), count)).collect();
                let topics: BTreeSet<String> = known.keys().cloned().collect();
                (known, topics, false)
            }
        };
        let mut state = self.lock();
        let has_changed = state.known.as_ref().is_some_and(|before| *before != known);
        let has_other_topics = state.membership.topics() != &topics;
        state.known = Some(known);
        state.membership.subscribe(topics);
        // Who leads the group has the partitions divided anew.
        if has_changed && !has_other_topics && state.membership.is_leader() {
            state.membership.rejoin();
        }
        drop(state);
        self.to_task.notify_one();
        self.to_application.notify_one();
        is_missing
    }

    async fn keep_member(self: &Arc<Self>) {
        let mut asking: Option<(u64, Asking<'_>)> = None;
        let (mut attempts, mut paused_until) = (0, None);
        let mut beat_at = Instant::now() + self.settings.heartbeat_interval;
        loop {
            let (step, round, is_ready) = {
                let state = self.lock();
                let has_starts = state.starts.as_ref().is_some_and(|(round, _)| *round == state.membership.round());
                (state.membership.step(), state.membership.round(), state.known.is_some() && !has_starts)
            };
            if let Step::Failed(error) = step {
                return self.fail(self.coordinator.refused(error));
            }
            asking = asking.filter(|(of, _)| *of == round);
            if asking.is_none() && is_ready && paused_until.is_none() {
                asking = self.work(step).map(|work| (round, work));
            }
            let silent_at = self.silent_at();
            let wake_at = [Some(beat_at), paused_until, silent_at].into_iter().flatten().min().unwrap_or(beat_at);
            let asked = tokio::select! {
                asked = next_of(&mut asking) => Some(asked),
                () = sleep_until(wake_at) => None,
                () = self.to_task.notified() => None,
            };
            if let Some(asked) = asked {
                asking = None;
                match self.take_answer(round, asked) {
                    Ok(Then::Proceed) => attempts = 0,
                    Ok(then) => {
                        if then == Then::FindCoordinator {
                            self.coordinator.forget();
                        }
                        attempts += 1;
                        paused_until = Some(Instant::now() + self.coordinator.brokers.settings.backoff.after(attempts));
                    }
                    Err(error) => return self.fail(error),
                }
                self.to_application.notify_one();
            }
            let now = Instant::now();
            if paused_until.is_some_and(|until| until <= now) {
                paused_until = None;
            }
            if silent_at.is_some_and(|at| at <= now) {
                self.go_away().await;
            }
            if beat_at <= now {
                beat_at = Instant::now()
                    + if self.beat().await {
                        self.settings.heartbeat_interval
                    } else {
                        self.coordinator.brokers.settings.backoff.longest.min(self.settings.heartbeat_interval)
                    };
            }
        }
    }

    /// When the application has been silent for too long, unless it is asking or the member is away already.
    fn silent_at(&self) -> Option<Instant> {
        let state = self.lock();
        let is_there = state.membership.heartbeat().is_some() && state.polls == 0;
        is_there.then(|| state.polled_at + self.settings.max_poll_interval)
    }

    async fn go_away(&self) {
        let seconds = self.settings.max_poll_interval.as_secs_f64();
        tracing::warn!(group = self.coordinator.group, "no record was asked for in {seconds} s: leaving the group until one is");
        self.leave().await;
        self.lock().membership.go_away();
        self.to_application.notify_one();
    }

    /// Says that it is there; whether the coordinator has heard it.
    async fn beat(&self) -> bool {
        let (heartbeat, identity) = {
            let state = self.lock();
            (state.membership.heartbeat(), state.membership.identity())
        };
        let Some(heartbeat) = heartbeat else { return true };
        match self.coordinator.ask(GroupRequest::Heartbeat(heartbeat), Duration::ZERO).await {
            Ok(GroupAnswer::Heartbeat(Ok(()))) => true,
            Ok(GroupAnswer::Heartbeat(Err(error))) => {
                tracing::debug!(group = self.coordinator.group, %error, "the answer to a heartbeat");
                let then = self.lock().membership.handle_refusal(&identity, error);
                if then == Then::FindCoordinator {
                    self.coordinator.forget();
                }
                self.to_application.notify_one();
                then == Then::Proceed
            }
            Ok(other) => {
                tracing::warn!(error = %self.coordinator.surprised(&other), "a heartbeat");
                false
            }
            Err(error) => {
                tracing::debug!(group = self.coordinator.group, %error, "a heartbeat was not answered");
                false
            }
        }
    }

    fn work(self: &Arc<Self>, step: Step) -> Option<Asking<'_>> {
        let patience = self.settings.rebalance_patience;
        match step {
            Step::Join(join) => Some(Box::pin(async move {
                Asked::Joined(match self.coordinator.ask(GroupRequest::Join(join), patience).await {
                    Ok(GroupAnswer::Join(answer)) => Ok(answer),
                    Ok(other) => Err(self.coordinator.surprised(&other)),
                    Err(error) => Err(error),
                })
            })),
            Step::Sync(sync) => Some(Box::pin(async move {
                Asked::Synced(match self.coordinator.ask(GroupRequest::SyncAssignedByBroker(sync), patience).await {
                    Ok(GroupAnswer::Sync(answer)) => Ok(answer),
                    Ok(other) => Err(self.coordinator.surprised(&other)),
                    Err(error) => Err(error),
                })
            })),
            Step::Take(partitions) => Some(Box::pin(async move { Asked::Starts(self.find_starts(partitions).await) })),
            Step::Release { .. } | Step::Rest | Step::Away | Step::Failed(_) => None,
        }
    }

    fn take_answer(&self, round: u64, asked: Asked) -> Result<Then, ClientError> {
        let mut state = self.lock();
        let failure = match asked {
            Asked::Joined(Ok(answer)) => return Ok(state.membership.handle_joined(round, answer)),
            Asked::Synced(Ok(answer)) => return Ok(state.membership.handle_synced(round, answer)),
            Asked::Starts(Ok(starts)) => {
                state.starts = Some((round, starts));
                return Ok(Then::Proceed);
            }
            Asked::Joined(Err(failure)) | Asked::Synced(Err(failure)) | Asked::Starts(Err(failure)) => failure,
        };
        // The generation may have gone while positions were read; the next heartbeat tells.
        let passes = failure.is_retriable() || matches!(failure, ClientError::Group { .. });
        tracing::debug!(group = self.coordinator.group, error = %failure, "no answer of the coordinator");
        if passes { Ok(Then::BackOff) } else { Err(failure) }
    }

    /// Committed positions, or what the offset reset says. Topics that are not there are left out: the group will be told when they are.
    async fn find_starts(&self, partitions: Partitions) -> Result<Vec<Start>, ClientError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let brokers = &self.coordinator.brokers;
        let asked = partitions.into_iter().map(|(topic, numbers)| (topic, numbers.into_iter().collect::<Vec<i32>>()));
        let mut starts = Vec::new();
        for topic in self.coordinator.fetch(Some(asked.collect())).await? {
            let found = match brokers.topic(&topic.topic).await {
                Err(error) if error.code() == Some(Code::UnknownTopicOrPartition) => continue,
                found => found?,
            };
            for fetched in topic.partitions {
                let Ok(partition) = u32::try_from(fetched.partition) else { continue };
                let committed = fetched.outcome.map_err(|error| self.coordinator.refused(error))?.map(|commit| commit.offset);
                let offset = match (committed, self.settings.reset.start()) {
                    (Some(offset), _) => Some(offset),
                    (None, None) => None,
                    (None, Some(place)) => {
                        let spec = if place == SeekTo::Earliest { OffsetSpec::Earliest } else { OffsetSpec::Latest };
                        match list_offset(brokers, &topic.topic, partition, spec).await {
                            Err(error) if error.code() == Some(Code::UnknownTopicOrPartition) => continue,
                            found => Some(found?.0),
                        }
                    }
                };
                starts.push(Start { topic: topic.topic.clone(), partition, found: found.clone(), offset });
            }
        }
        Ok(starts)
    }
}

/// Names that begin so are the broker's own.
const INTERNAL: &str = "__";

/// What is being asked, if something is; else never.
async fn next_of(asking: &mut Option<(u64, Asking<'_>)>) -> Asked {
    match asking {
        Some((_, asking)) => asking.await,
        None => std::future::pending().await,
    }
}
