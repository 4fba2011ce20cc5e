//! Settings of a group consumer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;
use tokio::runtime::Handle;

use super::consumer::GroupConsumer;
use super::coordinator::Coordinator;
use super::membership::{Membership, Profile};
use super::task::{Shared, TaskSettings};
use crate::client::brokers::Brokers;
use crate::client::consumer::{ConsumerBuilder, OutOfRange, SeekTo};
use crate::client::error::ClientError;
use crate::limits;

/// How a group divides partitions among its members. The broker does it, where a native client leads the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AssignmentStrategy {
    /// Neighbouring partitions of each topic together.
    Range,
    /// Partitions in turn.
    RoundRobin,
    /// As few moves as balance allows; members read on during a rebalance (KIP-429).
    CooperativeSticky,
}

impl AssignmentStrategy {
    /// Kafka's name.
    pub fn name(self) -> &'static str {
        match self {
            AssignmentStrategy::Range => "range",
            AssignmentStrategy::RoundRobin => "roundrobin",
            AssignmentStrategy::CooperativeSticky => "cooperative-sticky",
        }
    }
}

/// Where a partition is read from in which the group has no committed offset, or one that is not in the log (any more).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OffsetReset {
    /// From its first record.
    Earliest,
    /// Only what comes from now on (Kafka's default).
    #[default]
    Latest,
    /// The application is told.
    Fail,
}

impl OffsetReset {
    fn out_of_range(self) -> OutOfRange {
        match self {
            OffsetReset::Earliest => OutOfRange::Earliest,
            OffsetReset::Latest => OutOfRange::Latest,
            OffsetReset::Fail => OutOfRange::Fail,
        }
    }

    pub(super) fn start(self) -> Option<SeekTo> {
        match self {
            OffsetReset::Earliest => Some(SeekTo::Earliest),
            OffsetReset::Latest => Some(SeekTo::Latest),
            OffsetReset::Fail => None,
        }
    }
}

/// Is told of partitions that come and go, while the application waits for the next record. Each method gets topics with their partitions, and must not wait.
pub trait RebalanceListener: Send {
    /// These are read from now on.
    fn assigned(&mut self, _partitions: &[(String, Vec<u32>)]) {}
    /// These are given up. With automatic commits, what was read of them is committed.
    fn revoked(&mut self, _partitions: &[(String, Vec<u32>)]) {}
    /// These were given to others already: the member was taken for dead, and what it read last is read again by somebody.
    fn lost(&mut self, partitions: &[(String, Vec<u32>)]) {
        self.revoked(partitions);
    }
}

/// What is subscribed to.
#[derive(Clone, Debug)]
pub(super) enum Subscribed {
    Names(BTreeSet<String>),
    Pattern(Regex),
}

/// Settings of a [`GroupConsumer`]; made by [`crate::client::Client::group_consumer`]. Defaults are those of Kafka's clients.
pub struct GroupConsumerBuilder {
    brokers: Arc<Brokers>,
    group: String,
    subscribed: Result<Subscribed, String>,
    strategies: Vec<AssignmentStrategy>,
    instance_id: Option<String>,
    session_timeout: Duration,
    heartbeat_interval: Duration,
    rebalance_timeout: Option<Duration>,
    max_poll_interval: Duration,
    auto_commit: Option<Duration>,
    reset: OffsetReset,
    metadata_max_age: Duration,
    listener: Option<Box<dyn RebalanceListener>>,
    reading: ConsumerBuilder,
}

impl GroupConsumerBuilder {
    pub(in crate::client) fn new(brokers: Arc<Brokers>, group: String) -> GroupConsumerBuilder {
        GroupConsumerBuilder {
            reading: ConsumerBuilder::new(brokers.clone()),
            brokers,
            group,
            subscribed: Ok(Subscribed::Names(BTreeSet::new())),
            strategies: vec![AssignmentStrategy::Range, AssignmentStrategy::CooperativeSticky],
            instance_id: None,
            session_timeout: Duration::from_secs(45),
            heartbeat_interval: Duration::from_secs(3),
            rebalance_timeout: None,
            max_poll_interval: Duration::from_secs(300),
            auto_commit: Some(Duration::from_secs(5)),
            reset: OffsetReset::default(),
            metadata_max_age: Duration::from_secs(300),
            listener: None,
        }
    }

    pub(super) fn group_id(&self) -> &str {
        &self.group
    }

    /// The topics to read. One that does not exist yet is read when it does.
    pub fn subscribe<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.subscribed = Ok(Subscribed::Names(topics.into_iter().map(Into::into).collect()));
        self
    }

    /// All topics whose whole names match, of a regular expression in the syntax of the `regex` crate. Internal topics (`__…`) never do. New topics are noticed
    /// within [`GroupConsumerBuilder::metadata_max_age`].
    pub fn subscribe_pattern(mut self, pattern: &str) -> Self {
        let whole = Regex::new(&format!("^(?:{pattern})$"));
        self.subscribed = whole.map(Subscribed::Pattern).map_err(|error| format!("the pattern {pattern:?}: {error}"));
        self
    }

    /// How partitions may be divided, in order of preference (default: range, cooperative-sticky). The group takes one that all members offer. Only where all that
    /// are named here are cooperative are partitions read on during a rebalance.
    pub fn strategies(mut self, strategies: impl IntoIterator<Item = AssignmentStrategy>) -> Self {
        self.strategies = strategies.into_iter().collect();
        self
    }

    /// Makes the member a static one (KIP-345): under this name it finds its partitions again when it is back within the session timeout, without a rebalance.
    pub fn instance_id(mut self, name: impl Into<String>) -> Self {
        self.instance_id = Some(name.into());
        self
    }

    /// Without a heartbeat for so long the member is taken for dead (default: 45 s; the broker has bounds of its own).
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }

    /// How often it says that it is there (default: 3 s).
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = interval;
        self
    }

    /// How long a rebalance waits for this member (default: as [`GroupConsumerBuilder::max_poll_interval`]).
    pub fn rebalance_timeout(mut self, timeout: Duration) -> Self {
        self.rebalance_timeout = Some(timeout);
        self
    }

    /// A member whose application has not asked for a record for so long leaves, and joins again when it does (default: 5 minutes).
    pub fn max_poll_interval(mut self, interval: Duration) -> Self {
        self.max_poll_interval = interval;
        self
    }

    /// How often positions are committed, and that they are when partitions are given up and at [`GroupConsumer::close`] (default: 5 s). The position committed is
    /// that of the records handed out before the one that is asked for.
    pub fn auto_commit(mut self, interval: Duration) -> Self {
        self.auto_commit = Some(interval);
        self
    }

    /// Only [`GroupConsumer::commit`] and [`GroupConsumer::commit_offsets`] commit.
    pub fn manual_commit(mut self) -> Self {
        self.auto_commit = None;
        self
    }

    /// Where to start without a committed offset (default: latest).
    pub fn offset_reset(mut self, reset: OffsetReset) -> Self {
        self.reset = reset;
        self
    }

    /// How long new topics of a pattern, and new partitions, may go unnoticed (default: 5 minutes).
    pub fn metadata_max_age(mut self, age: Duration) -> Self {
        self.metadata_max_age = age;
        self
    }

    /// Who is told of rebalances.
    pub fn on_rebalance(mut self, listener: impl RebalanceListener + 'static) -> Self {
        self.listener = Some(Box::new(listener));
        self
    }

    /// Changes the settings of reading: waits, sizes, memory. Its offset reset is [`GroupConsumerBuilder::offset_reset`].
    pub fn reading(mut self, change: impl FnOnce(ConsumerBuilder) -> ConsumerBuilder) -> Self {
        self.reading = change(self.reading);
        self
    }

    /// The consumer, which joins in the background. To be called within a tokio runtime, whose tasks do the work.
    ///
    /// # Errors
    /// A setting can't be. That the group does not take the member, or no broker answers, is told by [`GroupConsumer::next_record`].
    pub fn build(self) -> Result<GroupConsumer, ClientError> {
        let subscribed = self.subscribed.map_err(ClientError::Invalid)?;
        if self.group.is_empty() || self.group.len() > limits::MAX_GROUP_ID {
            return Err(ClientError::Invalid(format!("a group id has 1 to {} bytes, not {}", limits::MAX_GROUP_ID, self.group.len())));
        }
        if matches!(&subscribed, Subscribed::Names(names) if names.is_empty()) {
            return Err(ClientError::Invalid(format!("group {:?} is not subscribed to any topic", self.group)));
        }
        if self.strategies.is_empty() {
            return Err(ClientError::Invalid("a member needs at least one assignment strategy".into()));
        }
        if self.heartbeat_interval.is_zero() || self.heartbeat_interval >= self.session_timeout {
            let (beat, session) = (self.heartbeat_interval.as_millis(), self.session_timeout.as_millis());
            return Err(ClientError::Invalid(format!(
                "the heartbeat interval, {beat} ms, must be more than 0 and less than the session timeout, {session} ms"
            )));
        }
        let runtime = Handle::try_current().map_err(|_| ClientError::Invalid("a consumer is built within a tokio runtime".into()))?;
        let consumer = self.reading.out_of_range(self.reset.out_of_range()).build()?;
        let client_id = &self.brokers.settings.connection.client_id;
        let profile = Profile {
            group: self.group.clone(),
            client_id: if client_id.is_empty() { DEFAULT_CLIENT_ID.into() } else { client_id.clone() },
            instance_id: self.instance_id,
            session_timeout_ms: millis(self.session_timeout),
            rebalance_timeout_ms: millis(self.rebalance_timeout.unwrap_or(self.max_poll_interval)),
            strategies: self.strategies,
        };
        let settings = TaskSettings {
            subscribed,
            heartbeat_interval: self.heartbeat_interval,
            rebalance_patience: self.rebalance_timeout.unwrap_or(self.max_poll_interval),
            max_poll_interval: self.max_poll_interval,
            metadata_max_age: self.metadata_max_age.max(Duration::from_millis(1)),
            reset: self.reset,
        };
        let coordinator = Coordinator::new(self.brokers, self.group);
        let shared = Arc::new(Shared::new(coordinator, settings, Membership::new(profile, BTreeSet::new())));
        Ok(GroupConsumer::start(shared, consumer, self.auto_commit, self.listener, &runtime))
    }
}

/// Member ids begin with it where the client has no name.
const DEFAULT_CLIENT_ID: &str = "corelane";

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
