//! Topics and offsets.

use std::sync::Arc;

use super::brokers::{Brokers, Target, unexpected};
use super::error::ClientError;
use crate::request::{AlterTopic, CreateTopic, DeleteRecords, ListOffset, Metadata, OffsetSpec, Request, Response, TopicDescription};
use crate::types::{Offset, Timestamp, TopicPartition};

/// Administers a cluster; made by [`super::Client::admin`].
///
/// ```no_run
/// # async fn example() -> Result<(), corelane::client::ClientError> {
/// use corelane::client::{Client, NewTopic};
/// let admin = Client::connect("localhost:9092").await?.admin();
/// let topic = admin.create_topic(NewTopic::new("orders").partitions(12).config("retention.ms", "86400000")).await?;
/// println!("{} has {} partitions", topic.name, topic.partitions);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Admin {
    brokers: Arc<Brokers>,
}

/// A topic to be created; what is not set is the broker's default.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewTopic(CreateTopic);

impl NewTopic {
    /// A topic of that name.
    pub fn new(name: impl Into<String>) -> NewTopic {
        let name = name.into();
        NewTopic(CreateTopic { name, partitions: None, replication_factor: None, config: Vec::new(), validate_only: false })
    }

    /// Number of partitions.
    pub fn partitions(mut self, partitions: u32) -> NewTopic {
        self.0.partitions = Some(partitions);
        self
    }

    /// Replicas of each partition, counted in nodes.
    pub fn replication_factor(mut self, replicas: u16) -> NewTopic {
        self.0.replication_factor = Some(replicas);
        self
    }

    /// One setting, by Kafka's name.
    pub fn config(mut self, name: impl Into<String>, value: impl Into<String>) -> NewTopic {
        self.0.config.push((name.into(), value.into()));
        self
    }

    /// Only checks whether it could be created.
    pub fn validate_only(mut self) -> NewTopic {
        self.0.validate_only = true;
        self
    }
}

/// Changes to a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicChanges(AlterTopic);

impl TopicChanges {
    /// No changes yet to the topic of that name.
    pub fn new(name: impl Into<String>) -> TopicChanges {
        TopicChanges(AlterTopic { name: name.into(), partitions: None, config: Vec::new() })
    }

    /// The new number of partitions, at least the present one.
    pub fn partitions(mut self, partitions: u32) -> TopicChanges {
        self.0.partitions = Some(partitions);
        self
    }

    /// Sets a setting.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> TopicChanges {
        self.0.config.push((name.into(), Some(value.into())));
        self
    }

    /// Gives a setting back to its default.
    pub fn reset(mut self, name: impl Into<String>) -> TopicChanges {
        self.0.config.push((name.into(), None));
        self
    }
}

impl Admin {
    pub(super) fn new(brokers: Arc<Brokers>) -> Admin {
        Admin { brokers }
    }

    pub(super) fn brokers(&self) -> &Arc<Brokers> {
        &self.brokers
    }

    /// Creates a topic.
    ///
    /// A retry after a lost connection may find the topic that the first attempt made; that is reported as `TopicExists`.
    ///
    /// # Errors
    /// Refused: `TopicExists`, `InvalidTopicName`, `InvalidPartitions`, `InvalidReplicationFactor`, `InvalidConfig`; or no broker answers.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<TopicDescription, ClientError> {
        match self.brokers.request(Target::Controller, &Request::CreateTopic(topic.0)).await? {
            Response::TopicCreated(description) => Ok(description),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes a topic and its records.
    ///
    /// # Errors
    /// Refused: `UnknownTopicOrPartition`; or no broker answers.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        match self.on_topic(Target::Controller, Request::DeleteTopic(name.into())).await? {
            Response::TopicDeleted => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// A topic's settings as in force.
    ///
    /// # Errors
    /// Refused: `UnknownTopicOrPartition`; or no broker answers.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, ClientError> {
        match self.on_topic(Target::Any, Request::DescribeTopic(name.into())).await? {
            Response::Topic(description) => Ok(description),
            other => Err(unexpected(&other)),
        }
    }

    /// Changes a topic's settings or adds partitions.
    ///
    /// # Errors
    /// Refused: `UnknownTopicOrPartition`, `InvalidPartitions`, `InvalidConfig`; or no broker answers.
    pub async fn alter_topic(&self, changes: TopicChanges) -> Result<TopicDescription, ClientError> {
        match self.on_topic(Target::Controller, Request::AlterTopic(changes.0)).await? {
            Response::TopicAltered(description) => Ok(description),
            other => Err(unexpected(&other)),
        }
    }

    /// Brokers and all topics.
    ///
    /// # Errors
    /// No broker answers.
    pub async fn metadata(&self) -> Result<Metadata, ClientError> {
        self.brokers.retrying(|| self.brokers.refresh_once(None)).await
    }

    /// Names of all topics, in order.
    ///
    /// # Errors
    /// No broker answers.
    pub async fn list_topics(&self) -> Result<Vec<String>, ClientError> {
        let mut names: Vec<String> = self.metadata().await?.topics.into_iter().map(|topic| topic.name).collect();
        names.sort();
        Ok(names)
    }

    /// An offset of a partition with its timestamp (-1 where none applies); offset -1 where no record has such a timestamp.
    ///
    /// # Errors
    /// Refused: `UnknownTopicOrPartition`; or the leader does not answer.
    pub async fn offset(&self, topic: &str, partition: u32, spec: OffsetSpec) -> Result<(Offset, Timestamp), ClientError> {
        list_offset(&self.brokers, topic, partition, spec).await
    }

    /// Deletes the records of a partition before `before`, or all that are there (`None`); returns the first readable offset from now on.
    ///
    /// # Errors
    /// Refused: `UnknownTopicOrPartition`, `OffsetOutOfRange` beyond the end, `PolicyViolation` where the topic only compacts; or the leader does not
    /// answer.
    pub async fn delete_records(&self, topic: &str, partition: u32, before: Option<Offset>) -> Result<Offset, ClientError> {
        let ask = |partition| Request::DeleteRecords(vec![DeleteRecords { partition, before }]);
        let answer = ask_leader(&self.brokers, topic, partition, ask, |response| match response {
            Response::RecordsDeleted(mut results) if results.len() == 1 => results.remove(0).outcome.map_err(ClientError::from),
            other => Err(unexpected(&other)),
        });
        answer.await
    }

    /// A topic that is really not there is not asked for until the time-out: only for as long as a new one may take to be known.
    async fn on_topic(&self, target: Target, request: Request) -> Result<Response, ClientError> {
        let name = match &request {
            Request::DeleteTopic(name) | Request::DescribeTopic(name) => name,
            Request::AlterTopic(alter) => &alter.name,
            _ => return self.brokers.request(target, &request).await,
        };
        self.brokers.refresh_topic(name).await?;
        self.brokers.request(target, &request).await
    }
}

/// Asks a partition's leader for an offset, following the leader where it moves.
pub(super) async fn list_offset(
    brokers: &Brokers,
    topic: &str,
    partition: u32,
    spec: OffsetSpec,
) -> Result<(Offset, Timestamp), ClientError> {
    let ask = |partition| Request::ListOffsets(vec![ListOffset { partition, spec }]);
    let answer = ask_leader(brokers, topic, partition, ask, |response| match response {
        Response::ListOffsets(mut results) if results.len() == 1 => {
            results.remove(0).outcome.map(|found| (found.offset, found.timestamp)).map_err(ClientError::from)
        }
        other => Err(unexpected(&other)),
    });
    answer.await
}

/// Asks a partition's leader, following it where it moves.
async fn ask_leader<T>(
    brokers: &Brokers,
    topic: &str,
    partition: u32,
    ask: impl Fn(TopicPartition) -> Request,
    read: impl Fn(Response) -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let attempt = || async {
        let found = brokers.topic(topic).await?;
        let leader = Brokers::leader(&found, topic, partition)?;
        let request = ask(TopicPartition { topic: found.id, partition });
        let asked = brokers.request_once(Target::Broker(leader), &request).await.and_then(|answer| read(answer.response));
        if asked.as_ref().is_err_and(ClientError::is_about_leadership) {
            let _ = brokers.find_leaders(topic).await;
        }
        asked
    };
    // An unknown partition is asked for once more, with fresh metadata, not until the time-out.
    match attempt().await {
        Err(error) if error.code() == Some(crate::request::Code::UnknownTopicOrPartition) => {
            brokers.refresh_topic(topic).await?;
            attempt().await
        }
        Err(error) if error.is_retriable() => brokers.retrying(attempt).await,
        done => done,
    }
}
