//! The native client: producer, consumer, admin.
//!
//! A client connects to every shard that it needs, each at its own address, and sends a partition's requests to the shard that leads it; so
//! nothing is forwarded between cores. Where leaders move or connections break, it learns the new leaders and tries again what may be tried again.
//!
//! | file | what | kind |
//! | --- | --- | --- |
//! | `session` | correlation ids, requests in flight, time-outs of one connection | pure |
//! | `receive` | bytes to frames | pure |
//! | `connection` | one TCP connection | tokio |
//! | `brokers` | connections and leaders of a cluster | tokio |
//! | `asking` | questions, retries, nodes that are silent | tokio |
//! | `accumulator/` | batches per partition, sequences, retries | pure |
//! | `producer`, `delivery` | sending | tokio |
//! | `fetcher/` | positions, prefetch, what to fetch next | pure |
//! | `consumer` | reading | tokio |
//! | `group/` | consumer groups | pure and tokio |
//! | `large` | values too large to hold, both ways | tokio |
//! | `admin` | topics and offsets | tokio |
//! | `cluster` | operating a cluster | tokio |
//! | `blocking` | the same for programs without async | std |
//!
//! Nothing here depends on the broker's code.

mod accumulator;
mod admin;
mod asking;
mod backoff;
pub mod blocking;
mod brokers;
mod cluster;
mod connection;
mod consumer;
mod delivery;
mod error;
mod fetcher;
mod group;
mod large;
mod partitioner;
mod producer;
mod receive;
mod session;

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use admin::{Admin, NewTopic, TopicChanges};
pub use consumer::{ConsumedBatch, Consumer, ConsumerBuilder, ConsumerRecord, OutOfRange, SeekTo};
pub use delivery::{DeliveryFuture, RecordMetadata};
pub use error::{ClientError, ConsumeError, GroupConsumeError, ProduceError, ProduceFailure};
pub use group::{
    AssignmentStrategy, GroupConsumer, GroupConsumerBuilder, GroupPosition, Listener, OffsetReset, PlannedReset, RebalanceListener,
    ResetTo, assigned,
};
pub use large::ValueReader;
pub use partitioner::{Partitioner, Partitioning, murmur2, partition_of_key};
pub use producer::{Producer, ProducerBuilder, ProducerRecord};

use backoff::Backoff;
use brokers::{Brokers, Settings};
use connection::ConnectionSettings;

use crate::limits;
use crate::request::Metadata;

/// A client of one cluster. Cheap to clone; clones and what is made of them share connections.
///
/// ```no_run
/// # async fn example() -> Result<(), corelane::client::ClientError> {
/// let client = corelane::client::Client::connect("localhost:9092,other:9092").await?;
/// for topic in client.admin().list_topics().await? {
///     println!("{topic}");
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    brokers: Arc<Brokers>,
}

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    addresses: Vec<String>,
    client_id: String,
    connect_timeout: Duration,
    request_timeout: Duration,
    retry_timeout: Duration,
    unknown_topic_wait: Duration,
    retry_backoff: Duration,
    retry_backoff_max: Duration,
    max_frame: usize,
}

impl Client {
    /// Connects to the cluster of which these are brokers: `host:port`, several with commas.
    ///
    /// # Errors
    /// None of them answers as a broker; the failure of the last one.
    pub async fn connect(addresses: &str) -> Result<Client, ClientError> {
        Client::builder(addresses).connect().await
    }

    /// As [`Client::connect`], with settings of your own.
    pub fn builder(addresses: &str) -> ClientBuilder {
        ClientBuilder {
            addresses: addresses.split(',').map(str::trim).filter(|a| !a.is_empty()).map(String::from).collect(),
            client_id: String::new(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            retry_timeout: Duration::from_secs(30),
            unknown_topic_wait: Duration::from_millis(500),
            retry_backoff: Duration::from_millis(20),
            retry_backoff_max: Duration::from_secs(1),
            max_frame: limits::MAX_FRAME,
        }
    }

    /// Settings of a producer.
    pub fn producer(&self) -> ProducerBuilder {
        ProducerBuilder::new(self.brokers.clone())
    }

    /// Settings of a consumer.
    pub fn consumer(&self) -> ConsumerBuilder {
        ConsumerBuilder::new(self.brokers.clone())
    }

    /// Settings of a member of that consumer group, which begins to read where the group has committed.
    pub fn group_consumer(&self, group: impl Into<String>) -> GroupConsumerBuilder {
        GroupConsumerBuilder::new(self.brokers.clone(), group.into())
    }

    /// Handles every record of the topics as a member of that group: see [`Listener`].
    pub fn listen<T, H, F, E>(&self, topics: impl IntoIterator<Item = T>, group: impl Into<String>, handler: H) -> Listener<H>
    where
        T: Into<String>,
        H: Fn(ConsumerRecord) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        Listener::new(self.clone(), self.group_consumer(group).subscribe(topics), handler)
    }

    /// Topics and offsets.
    pub fn admin(&self) -> Admin {
        Admin::new(self.brokers.clone())
    }

    /// Brokers and all topics.
    ///
    /// # Errors
    /// No broker answers.
    pub async fn metadata(&self) -> Result<Metadata, ClientError> {
        self.admin().metadata().await
    }
}

impl ClientBuilder {
    /// The name under which the broker logs and counts this client.
    pub fn client_id(mut self, name: impl Into<String>) -> Self {
        self.client_id = name.into();
        self
    }

    /// How long a connection may take to be made (default: 10 s).
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a broker may take to answer (default: 30 s). A connection on which it takes longer is given up.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How long metadata, offsets and topic changes are tried again (default: 30 s).
    pub fn retry_timeout(mut self, timeout: Duration) -> Self {
        self.retry_timeout = timeout;
        self
    }

    /// How long a topic that no broker knows is asked for again, as it may just have been created (default: 0.5 s).
    pub fn unknown_topic_wait(mut self, wait: Duration) -> Self {
        self.unknown_topic_wait = wait;
        self
    }

    /// The pause before the second attempt, doubled each time, and the longest pause (default: 20 ms, 1 s).
    pub fn retry_backoff(mut self, first: Duration, longest: Duration) -> Self {
        (self.retry_backoff, self.retry_backoff_max) = (first, longest);
        self
    }

    /// The longest frame that is taken, bytes (default: 1 GiB and its wrapping): bounds what a broker can make the client allocate.
    pub fn max_frame(mut self, bytes: usize) -> Self {
        self.max_frame = bytes;
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect(self) -> Result<Client, ClientError> {
        if self.addresses.is_empty() {
            return Err(ClientError::Invalid("no address of a broker was given".into()));
        }
        let settings = Settings {
            bootstrap: self.addresses,
            connection: ConnectionSettings {
                client_id: self.client_id,
                connect_timeout: self.connect_timeout,
                request_timeout: self.request_timeout,
                max_frame: self.max_frame,
            },
            retry_timeout: self.retry_timeout,
            unknown_topic_wait: self.unknown_topic_wait,
            backoff: Backoff { first: self.retry_backoff, longest: self.retry_backoff_max },
        };
        let client = Client { brokers: Arc::new(Brokers::new(settings)) };
        // Once, without retries: who starts a client wants to know whether there is a broker.
        client.brokers.refresh_once(Some(&[])).await?;
        tokio::spawn(asking::watch(Arc::downgrade(&client.brokers)));
        Ok(client)
    }
}
