//! What an application sees of a group.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::builder::RebalanceListener;
use super::membership::Step;
use super::task::{Polling, Shared};
use crate::client::consumer::{ConsumedBatch, Consumer, ConsumerRecord, SeekTo};
use crate::client::error::{ClientError, ConsumeError, GroupConsumeError};
use crate::request::consumer_protocol::TopicPartitions;
use crate::request::group::{CommitOffsets, CommitPartition};
use crate::types::Offset;

/// Reads as a member of a consumer group: the group's partitions are divided among its members, native and Kafka's alike.
///
/// A record counts as handled when the next one is asked for. With automatic commits (the default) its position is then committed from time to time, and when
/// partitions are given up; so after a crash some records come again, and none is left out.
///
/// Dropping it leaves the group without a commit; [`GroupConsumer::close`] commits first.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use corelane::client::{Client, OffsetReset};
/// let client = Client::connect("localhost:9092").await?;
/// let mut consumer = client.group_consumer("billing").subscribe(["orders"]).offset_reset(OffsetReset::Earliest).build()?;
/// for _ in 0..100 {
///     let record = consumer.next_record().await?;
///     println!("{} {} {:?}", record.partition, record.offset, record.value);
/// }
/// consumer.close().await?;
/// # Ok(()) }
/// ```
pub struct GroupConsumer {
    shared: Arc<Shared>,
    consumer: Consumer,
    auto_commit: Option<Duration>,
    commit_at: Instant,
    /// Positions of the last automatic commit: what did not move is not committed again.
    committed: HashMap<(Arc<str>, u32), Offset>,
    listener: Option<Box<dyn RebalanceListener>>,
    task: Option<JoinHandle<()>>,
    runtime: Handle,
}

/// What happens to a member.
pub(super) enum Event {
    Record(ConsumerRecord),
    /// To be answered by [`GroupConsumer::release`].
    Release {
        partitions: TopicPartitions,
        is_lost: bool,
    },
}

/// A position of a partition.
type Position = (Arc<str>, u32, Offset);

impl GroupConsumer {
    pub(super) fn start(
        shared: Arc<Shared>,
        consumer: Consumer,
        auto_commit: Option<Duration>,
        listener: Option<Box<dyn RebalanceListener>>,
        runtime: &Handle,
    ) -> GroupConsumer {
        let task = Some(runtime.spawn(shared.clone().run()));
        let commit_at = Instant::now() + auto_commit.unwrap_or_default();
        GroupConsumer { shared, consumer, auto_commit, commit_at, committed: HashMap::new(), listener, task, runtime: runtime.clone() }
    }

    /// The next record; waits for one, without end. May be dropped while it waits: nothing is lost.
    ///
    /// # Errors
    /// A partition can't be read on (the others go on); or the group does not take this member, and then every call fails.
    pub async fn next_record(&mut self) -> Result<ConsumerRecord, GroupConsumeError> {
        loop {
            match self.next_event(true).await? {
                Event::Record(record) => return Ok(record),
                Event::Release { partitions, is_lost } => self.give_up(partitions, is_lost).await,
            }
        }
    }

    /// The next batch, as [`GroupConsumer::next_record`]: all of its records count as handled when the next one is asked for.
    ///
    /// # Errors
    /// As [`GroupConsumer::next_record`].
    pub async fn next_batch(&mut self) -> Result<ConsumedBatch, GroupConsumeError> {
        let _polling = self.begin_poll();
        loop {
            if let Some((partitions, is_lost)) = self.follow()? {
                self.give_up(partitions, is_lost).await;
                continue;
            }
            self.commit_when_due();
            let shared = self.shared.clone();
            tokio::select! {
                biased;
                () = shared.to_application.notified() => {}
                batch = self.consumer.next_batch() => return Ok(batch.unwrap_or(Err(closed()))?),
                () = tokio::time::sleep_until(self.commit_at), if self.auto_commit.is_some() => {}
            }
        }
    }

    /// What happens next; without `reads` no record does.
    pub(super) async fn next_event(&mut self, reads: bool) -> Result<Event, GroupConsumeError> {
        let _polling = self.begin_poll();
        loop {
            if let Some((partitions, is_lost)) = self.follow()? {
                return Ok(Event::Release { partitions, is_lost });
            }
            self.commit_when_due();
            let shared = self.shared.clone();
            tokio::select! {
                biased;
                () = shared.to_application.notified() => {}
                record = self.consumer.next_record(), if reads => return Ok(Event::Record(record.unwrap_or(Err(closed()))?)),
                () = tokio::time::sleep_until(self.commit_at), if self.auto_commit.is_some() => {}
            }
        }
    }

    fn begin_poll(&self) -> Polling {
        self.shared.begin_poll()
    }

    /// Takes what is to be taken; what is to be given up is the caller's.
    fn follow(&mut self) -> Result<Option<(TopicPartitions, bool)>, ClientError> {
        loop {
            let mut state = self.shared.lock();
            match state.membership.step() {
                Step::Release { partitions, is_lost } => return Ok(Some((partitions, is_lost))),
                Step::Take(partitions) => {
                    let round = state.membership.round();
                    let Some((_, starts)) = state.starts.take_if(|(of, _)| *of == round) else { return Ok(None) };
                    for start in starts {
                        self.consumer.place(&start.topic, start.partition, &start.found, start.offset);
                        self.committed.remove(&(start.topic.as_str().into(), start.partition));
                    }
                    state.membership.taken();
                    drop(state);
                    self.shared.to_task.notify_one();
                    tell(&mut self.listener, &partitions, |listener, partitions| listener.assigned(partitions));
                }
                _ => return state.failure.clone().map_or(Ok(None), Err),
            }
        }
    }

    async fn give_up(&mut self, partitions: TopicPartitions, is_lost: bool) {
        if !is_lost && self.auto_commit.is_some() {
            let positions = self.positions_of(&partitions);
            if let Err(error) = self.store(positions).await {
                tracing::warn!(group = self.shared.coordinator.group, %error, "positions of partitions that are given up are not committed");
            }
        }
        self.release(&partitions, is_lost);
    }

    /// Reads these no more.
    pub(super) fn release(&mut self, partitions: &TopicPartitions, is_lost: bool) {
        tell(
            &mut self.listener,
            partitions,
            |listener, partitions| if is_lost { listener.lost(partitions) } else { listener.revoked(partitions) },
        );
        for (topic, partition) in flat(partitions) {
            // One whose topic was deleted is not read.
            let _ = self.consumer.unassign(topic, partition);
        }
        self.shared.lock().membership.released(partitions);
        self.shared.to_task.notify_one();
    }

    fn positions_of(&self, partitions: &TopicPartitions) -> Vec<Position> {
        let is_of =
            |topic: &str, partition: u32| partitions.get(topic).is_some_and(|p| i32::try_from(partition).is_ok_and(|n| p.contains(&n)));
        self.consumer.positions().into_iter().filter(|(topic, partition, _)| is_of(topic, *partition)).collect()
    }

    /// Commits what was read before, in the background; an older commit that is on its way comes first.
    fn commit_when_due(&mut self) {
        let Some(interval) = self.auto_commit.filter(|_| self.commit_at <= Instant::now()) else { return };
        self.commit_at = Instant::now() + interval;
        let mut positions = self.consumer.positions();
        positions.retain(|(topic, partition, offset)| self.committed.get(&(topic.clone(), *partition)) != Some(offset));
        let Ok(turn) = self.shared.commits.clone().try_lock_owned() else { return };
        if positions.is_empty() {
            return;
        }
        self.committed.extend(positions.iter().map(|(topic, partition, offset)| ((topic.clone(), *partition), *offset)));
        let shared = self.shared.clone();
        self.runtime.spawn(async move {
            let _turn = turn;
            if let Err(error) = store(&shared, positions).await {
                tracing::warn!(group = shared.coordinator.group, %error, "an automatic commit failed");
            }
        });
    }

    async fn store(&mut self, positions: Vec<Position>) -> Result<(), ClientError> {
        let _turn = self.shared.commits.lock().await;
        store(&self.shared, positions).await
    }

    /// Commits the positions of all assigned partitions: everything that was handed out.
    ///
    /// # Errors
    /// The group has gone on without this member, or rebalances: what was read since the last commit may be read by another one. Or the coordinator does
    /// not answer within the client's retry timeout.
    pub async fn commit(&mut self) -> Result<(), ClientError> {
        self.store(self.consumer.positions()).await
    }

    /// Commits these: topic, partition, and the offset of the next record to be read.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit`]; a partition that is not assigned.
    pub async fn commit_offsets(&mut self, offsets: &[(&str, u32, Offset)]) -> Result<(), ClientError> {
        for (topic, partition, _) in offsets {
            self.consumer.position(topic, *partition)?;
        }
        self.store(offsets.iter().map(|(topic, partition, offset)| ((*topic).into(), *partition, *offset)).collect()).await
    }

    /// Committed positions of all assigned partitions; `None` where nothing is committed.
    ///
    /// # Errors
    /// The coordinator does not answer.
    pub async fn committed(&mut self) -> Result<Vec<(String, u32, Option<Offset>)>, ClientError> {
        let asked = self.shared.lock().membership.owned().clone();
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let asked = asked.into_iter().map(|(topic, partitions)| (topic, partitions.into_iter().collect())).collect();
        let mut committed = Vec::new();
        for topic in self.shared.coordinator.fetch(Some(asked)).await? {
            for fetched in topic.partitions {
                let offset = fetched.outcome.map_err(|error| self.shared.coordinator.refused(error))?.map(|commit| commit.offset);
                committed.push((topic.topic.clone(), fetched.partition.unsigned_abs(), offset));
            }
        }
        Ok(committed)
    }

    /// What is assigned to this member, by topic.
    pub fn assignment(&self) -> Vec<(String, Vec<u32>)> {
        listed(self.shared.lock().membership.owned())
    }

    /// All assigned partitions with the offset of the next record that the application gets.
    pub fn positions(&self) -> Vec<(Arc<str>, u32, Offset)> {
        self.consumer.positions()
    }

    /// The offset of the next record that the application gets.
    ///
    /// # Errors
    /// It is not assigned.
    pub fn position(&self, topic: &str, partition: u32) -> Result<Offset, ClientError> {
        self.consumer.position(topic, partition)
    }

    /// Goes on somewhere else in the partition; also ends its failure.
    ///
    /// # Errors
    /// It is not assigned; no broker answers.
    pub async fn seek(&mut self, topic: &str, partition: u32, to: SeekTo) -> Result<(), ClientError> {
        self.consumer.seek(topic, partition, to).await
    }

    /// Holds the partition's records back until [`GroupConsumer::resume`], or until it is assigned again.
    ///
    /// # Errors
    /// It is not assigned.
    pub fn pause(&mut self, topic: &str, partition: u32) -> Result<(), ClientError> {
        self.consumer.pause(topic, partition)
    }

    /// Goes on with a paused partition.
    ///
    /// # Errors
    /// It is not assigned.
    pub fn resume(&mut self, topic: &str, partition: u32) -> Result<(), ClientError> {
        self.consumer.resume(topic, partition)
    }

    /// One past the last committed offset of the log, as of the last answer; `None` before the first one.
    ///
    /// # Errors
    /// It is not assigned.
    pub fn high_watermark(&self, topic: &str, partition: u32) -> Result<Option<Offset>, ClientError> {
        self.consumer.high_watermark(topic, partition)
    }

    /// Bytes fetched ahead.
    pub fn buffered(&self) -> usize {
        self.consumer.buffered()
    }

    /// Commits, where commits are automatic, and leaves the group: the others get its partitions at once. A static member only goes: its partitions wait for it
    /// until its session is over.
    ///
    /// # Errors
    /// The commit failed; the group is left all the same.
    pub async fn close(mut self) -> Result<(), ClientError> {
        let commits = self.auto_commit.is_some() && !self.shared.lock().membership.owned().is_empty();
        let committed = if commits { self.commit().await } else { Ok(()) };
        self.leave().await;
        committed
    }

    /// Leaves the group without a commit, and waits until that is done.
    pub async fn leave(mut self) {
        let owned = self.shared.lock().membership.owned().clone();
        tell(&mut self.listener, &owned, |listener, partitions| listener.revoked(partitions));
        self.shared.close();
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.shared.close();
    }
}

async fn store(shared: &Shared, positions: Vec<Position>) -> Result<(), ClientError> {
    if positions.is_empty() {
        return Ok(());
    }
    let identity = shared.lock().membership.identity();
    let mut topics: BTreeMap<String, Vec<CommitPartition>> = BTreeMap::new();
    for (topic, partition, offset) in positions {
        let partition = i32::try_from(partition).unwrap_or(i32::MAX);
        topics.entry(topic.to_string()).or_default().push(CommitPartition { partition, offset, leader_epoch: None, metadata: None });
    }
    let (member, generation) = identity.clone();
    let group = shared.coordinator.group.clone();
    let commit = CommitOffsets { group, member, generation, retention_ms: None, topics: topics.into_iter().collect() };
    let stored = shared.coordinator.commit(commit).await;
    if let Err(ClientError::Group { error, .. }) = &stored
        && is_about_membership(*error)
    {
        shared.lock().membership.handle_refusal(&identity, *error);
        shared.to_task.notify_one();
        shared.to_application.notify_one();
    }
    stored
}

fn is_about_membership(error: crate::request::group::GroupError) -> bool {
    use crate::request::group::GroupError::{FencedInstanceId, IllegalGeneration, RebalanceInProgress, UnknownMemberId};
    matches!(error, FencedInstanceId | IllegalGeneration | RebalanceInProgress | UnknownMemberId)
}

fn closed() -> ConsumeError {
    ConsumeError { topic: String::new(), partition: 0, offset: -1, cause: ClientError::Closed }
}

fn flat(partitions: &TopicPartitions) -> impl Iterator<Item = (&str, u32)> {
    partitions.iter().flat_map(|(topic, numbers)| numbers.iter().map(move |number| (topic.as_str(), number.unsigned_abs())))
}

fn listed(partitions: &TopicPartitions) -> Vec<(String, Vec<u32>)> {
    partitions.iter().map(|(topic, numbers)| (topic.clone(), numbers.iter().map(|number| number.unsigned_abs()).collect())).collect()
}

fn tell(
    listener: &mut Option<Box<dyn RebalanceListener>>,
    partitions: &TopicPartitions,
    what: impl FnOnce(&mut dyn RebalanceListener, &[(String, Vec<u32>)]),
) {
    if let Some(listener) = listener
        && !partitions.is_empty()
    {
        what(listener.as_mut(), &listed(partitions));
    }
}
