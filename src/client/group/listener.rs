//! A handler for each record of a group.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::future::{Future, IntoFuture};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::builder::GroupConsumerBuilder;
use super::consumer::{Event, GroupConsumer};
use super::dead_letter::{self, Cause};
use super::tracker::{Place, Ticket, Tracker};
use crate::client::backoff::Backoff;
use crate::client::error::{ClientError, GroupConsumeError};
use crate::client::{Client, ConsumerRecord, Producer};
use crate::limits;
use crate::request::consumer_protocol::TopicPartitions;

/// Calls a handler for every record of the topics, as a member of a group; made by [`Client::listen`].
///
/// - Records with the same key are handled one after the other, and so are those of a partition that have no key. Others are handled side by side, up to
///   [`Listener::concurrency`].
/// - A handler that fails (or panics) is called again after a pause that doubles, up to [`Listener::attempts`]; then the record goes to the topic
///   `<topic>.DLT`, with the headers of Spring's `DeadLetterPublishingRecoverer`, and counts as handled.
/// - A position is committed only when every record before it is handled. After a crash some records come again; none is left out.
///
/// ```no_run
/// # async fn example() -> Result<(), corelane::client::ClientError> {
/// # let client = corelane::client::Client::connect("localhost:9092").await?;
/// client
///     .listen(["reservation-topic"], "notification-service", |record| async move {
///         println!("Received: {:?}", record.value);
///         Ok::<(), String>(())
///     })
///     .await
/// # }
/// ```
#[must_use = "a listener does nothing until it is awaited"]
pub struct Listener<H> {
    client: Client,
    group: GroupConsumerBuilder,
    handler: H,
    concurrency: usize,
    attempts: u32,
    backoff: Backoff,
    commit_interval: Duration,
    has_dead_letters: bool,
}

impl<H> Listener<H> {
    pub(in crate::client) fn new(client: Client, group: GroupConsumerBuilder, handler: H) -> Listener<H> {
        Listener {
            client,
            group,
            handler,
            concurrency: 16,
            attempts: 10,
            backoff: Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(10) },
            commit_interval: Duration::from_secs(1),
            has_dead_letters: true,
        }
    }

    /// Records that are handled at once, at most (default: 16).
    pub fn concurrency(mut self, records: usize) -> Self {
        self.concurrency = records;
        self
    }

    /// Calls of the handler for one record, at most (default: 10, as Spring's default error handler; at least 1).
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// The pause before the second attempt, doubled each time, and the longest pause (default: 100 ms, 10 s).
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.backoff = Backoff { first, longest };
        self
    }

    /// How often positions are committed (default: 1 s).
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = interval.max(Duration::from_millis(1));
        self
    }

    /// A record that can't be handled is logged and passed over, instead of going to the dead-letter topic.
    pub fn without_dead_letters(mut self) -> Self {
        self.has_dead_letters = false;
        self
    }

    /// Changes the settings of the group's member: offset reset, session timeout, strategies and so on. Commits stay the listener's.
    pub fn member(mut self, change: impl FnOnce(GroupConsumerBuilder) -> GroupConsumerBuilder) -> Self {
        self.group = change(self.group);
        self
    }
}

impl<H, F, E> Listener<H>
where
    H: Fn(ConsumerRecord) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    /// Listens until the group does not take the member any more, or a partition can't be read on.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn run(self) -> Result<(), ClientError> {
        self.run_until(std::future::pending()).await
    }

    /// Listens until `stop` is ready. Then no record is begun any more; those that are being handled are waited for (pauses before another attempt are not), their
    /// positions are committed, and the group is left.
    ///
    /// # Errors
    /// As [`Listener::run`]; or the last commit failed.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), ClientError> {
        let name = self.group.group_id().to_string();
        let consumer = self.group.manual_commit().build()?;
        let producer = if self.has_dead_letters { Some(self.client.producer().build()?) } else { None };
        let work =
            Work { client: self.client, producer, group: name, handler: self.handler, attempts: self.attempts, backoff: self.backoff };
        let running = Running {
            work: Arc::new(work),
            consumer,
            tracker: Tracker::new(self.concurrency),
            tasks: JoinSet::new(),
            given_up: watch::channel(GivenUp::default()).0,
        };
        running.listen(self.commit_interval, stop).await
    }
}

impl<H, F, E> IntoFuture for Listener<H>
where
    H: Fn(ConsumerRecord) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    type Output = Result<(), ClientError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// What is not tried again.
#[derive(Default)]
struct GivenUp {
    all: bool,
    places: BTreeSet<Place>,
}

impl GivenUp {
    fn has(&self, place: &Place) -> bool {
        self.all || self.places.contains(place)
    }
}

/// What a record's task needs.
struct Work<H> {
    client: Client,
    producer: Option<Producer>,
    group: String,
    handler: H,
    attempts: u32,
    backoff: Backoff,
}

struct Running<H> {
    work: Arc<Work<H>>,
    consumer: GroupConsumer,
    tracker: Tracker<ConsumerRecord>,
    tasks: JoinSet<(Ticket, bool)>,
    given_up: watch::Sender<GivenUp>,
}

impl<H, F, E> Running<H>
where
    H: Fn(ConsumerRecord) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    async fn listen(mut self, commit_interval: Duration, stop: impl Future<Output = ()>) -> Result<(), ClientError> {
        let mut stop = std::pin::pin!(stop);
        let mut commit_at = Instant::now() + commit_interval;
        let outcome = loop {
            self.begin_what_may();
            let has_room = self.tracker.waiting() < limits::LISTENER_WAITING;
            tokio::select! {
                biased;
                () = &mut stop => break Ok(()),
                Some(done) = self.tasks.join_next() => self.finish(done),
                () = sleep_until(commit_at) => {
                    self.commit().await;
                    commit_at = Instant::now() + commit_interval;
                }
                event = self.consumer.next_event(has_room) => match event {
                    Ok(Event::Record(record)) => {
                        let place = (record.topic.clone(), record.partition);
                        self.tracker.offer(place, record.key.clone(), record.offset, record);
                    }
                    Ok(Event::Release { partitions, is_lost }) => self.release(&partitions, is_lost).await,
                    Err(GroupConsumeError::Partition(error)) => break Err(error.cause),
                    Err(GroupConsumeError::Group(error)) => break Err(error),
                },
            }
        };
        self.given_up.send_modify(|given_up| given_up.all = true);
        self.tracker.drop_waiting(|_| true);
        while let Some(done) = self.tasks.join_next().await {
            self.finish(done);
        }
        let committed = self.try_commit(|_| true).await;
        let closed = self.consumer.close().await;
        outcome.and(committed).and(closed)
    }

    fn begin_what_may(&mut self) {
        while let Some((ticket, record)) = self.tracker.take() {
            let (work, given_up) = (self.work.clone(), self.given_up.subscribe());
            self.tasks.spawn(async move {
                let is_handled = work.handle(record, given_up).await;
                (ticket, is_handled)
            });
        }
    }

    fn finish(&mut self, done: Result<(Ticket, bool), tokio::task::JoinError>) {
        match done {
            Ok((ticket, is_handled)) => self.tracker.finish(&ticket, is_handled),
            // Panics of the handler are caught: this is the runtime's end.
            Err(error) => tracing::error!(%error, "a record's task is gone"),
        }
    }

    /// Gives partitions up: what is being handled is waited for, so that nobody else handles the next record of a key at the same time.
    async fn release(&mut self, partitions: &TopicPartitions, is_lost: bool) {
        let numbers = partitions.iter().flat_map(|(topic, numbers)| numbers.iter().map(move |number| (topic, number.unsigned_abs())));
        let places: BTreeSet<Place> = numbers.map(|(topic, number)| (Arc::from(topic.as_str()), number)).collect();
        self.given_up.send_modify(|given_up| given_up.places = places.clone());
        self.tracker.drop_waiting(|place| places.contains(place));
        while self.tracker.running(|place| places.contains(place)) > 0 {
            let Some(done) = self.tasks.join_next().await else { break };
            self.finish(done);
        }
        if !is_lost && let Err(error) = self.try_commit(|place| places.contains(place)).await {
            tracing::warn!(group = self.work.group, %error, "positions of partitions that are given up are not committed");
        }
        places.iter().for_each(|place| self.tracker.forget(place));
        self.given_up.send_modify(|given_up| given_up.places.clear());
        self.consumer.release(partitions, is_lost);
    }

    async fn commit(&mut self) {
        if let Err(error) = self.try_commit(|_| true).await {
            tracing::warn!(group = self.work.group, %error, "a commit failed");
        }
    }

    async fn try_commit(&mut self, of: impl Fn(&Place) -> bool) -> Result<(), ClientError> {
        let mut positions = self.tracker.committable();
        positions.retain(|(place, _)| of(place));
        if positions.is_empty() {
            return Ok(());
        }
        let offsets: Vec<(&str, u32, i64)> = positions.iter().map(|((topic, partition), offset)| (&**topic, *partition, *offset)).collect();
        self.consumer.commit_offsets(&offsets).await?;
        positions.iter().for_each(|(place, offset)| self.tracker.committed(place, *offset));
        Ok(())
    }
}

impl<H, F, E> Work<H>
where
    H: Fn(ConsumerRecord) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    /// Whether the record is done with: handled, or put away.
    async fn handle(&self, record: ConsumerRecord, mut given_up: watch::Receiver<GivenUp>) -> bool {
        let place = (record.topic.clone(), record.partition);
        let mut cause = None;
        for attempt in 1..=self.attempts {
            match self.call(&record).await {
                Ok(()) => return true,
                Err(failure) => {
                    let (topic, partition, offset) = (&record.topic, record.partition, record.offset);
                    tracing::debug!(%topic, partition, offset, attempt, error = failure.message, "the handler failed");
                    cause = Some(failure);
                }
            }
            if attempt < self.attempts && !pause(self.backoff.after(attempt), &place, &mut given_up).await {
                return false;
            }
        }
        let Some(cause) = cause else { return true };
        let Some(producer) = &self.producer else {
            let (topic, partition, offset) = (&record.topic, record.partition, record.offset);
            tracing::error!(%topic, partition, offset, error = cause.message, "a record can't be handled and is passed over");
            return true;
        };
        let mut attempts = 0;
        while let Err(error) = dead_letter::publish(&self.client, producer, &self.group, &record, &cause).await {
            tracing::warn!(%error, "a record that can't be handled can't be put away now");
            attempts += 1;
            if !pause(self.backoff.after(attempts), &place, &mut given_up).await {
                return false;
            }
        }
        true
    }

    async fn call(&self, record: &ConsumerRecord) -> Result<(), Cause> {
        let called = AssertUnwindSafe(async { (self.handler)(record.clone()).await }).catch_unwind().await;
        match called {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Cause { message: error.to_string(), kind: std::any::type_name::<E>() }),
            Err(panic) => {
                let words = panic.downcast_ref::<&str>().map(|text| text.to_string()).or_else(|| panic.downcast_ref::<String>().cloned());
                Err(Cause { message: format!("the handler panicked: {}", words.unwrap_or_default()), kind: "panic" })
            }
        }
    }
}

/// Waits; false if the record's partition is given up instead.
async fn pause(duration: Duration, place: &Place, given_up: &mut watch::Receiver<GivenUp>) -> bool {
    tokio::select! {
        biased;
        _ = given_up.wait_for(|given_up| given_up.has(place)) => false,
        () = tokio::time::sleep(duration) => true,
    }
}
