//! The brokers that a client knows: their addresses, one connection to each, and which of them leads what.
//!
//! A connection is made when it is first needed and again after it is lost, by one task at a time; who else needs it waits for the same attempt.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;

use super::backoff::Backoff;
use super::connection::{Answer, Clock, Connection, ConnectionSettings};
use super::error::ClientError;
use crate::limits;
use crate::request::{Broker, Code, Metadata, MetadataRequest, PartitionMetadata, Refusal, Request, Response, TopicPartitions};

/// Settings of a client, made valid.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub bootstrap: Vec<String>,
    pub connection: ConnectionSettings,
    /// How long metadata, offset and admin requests are retried.
    pub retry_timeout: Duration,
    /// How long a topic that the brokers don't know is asked for again.
    pub unknown_topic_wait: Duration,
    pub backoff: Backoff,
}

/// In the place of a leader's advertised id while nobody leads. No broker has it, so what is for it waits for fresh metadata.
pub(super) const NO_LEADER: u32 = u32::MAX;

/// Whom a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// Any broker.
    Any,
    /// The one that takes topic changes.
    Controller,
    /// The shard with this advertised id.
    Broker(u32),
}

/// What all handles of a client share.
pub(super) struct Brokers {
    pub settings: Settings,
    pub clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Addresses by advertised id.
    known: HashMap<u32, String>,
    controller: Option<u32>,
    topics: HashMap<String, Arc<TopicPartitions>>,
    /// By address; the async lock is held while one is being made.
    connections: HashMap<String, Arc<AsyncMutex<()>>>,
    open: HashMap<String, Connection>,
}

impl Brokers {
    pub fn new(settings: Settings) -> Brokers {
        Brokers { settings, clock: Clock::start(), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to a shard, if it is open.
    pub fn open_connection(&self, id: u32) -> Option<Connection> {
        let state = self.lock();
        let address = state.known.get(&id)?;
        state.open.get(address).filter(|c| !c.is_closed()).cloned()
    }

    /// The connection to a shard, made where there is none.
    pub async fn connect(&self, id: u32) -> Result<Connection, ClientError> {
        let Some(address) = self.address(id) else {
            let what = match id {
                NO_LEADER => "nobody leads it at present".into(),
                id => format!("no broker with the advertised id {id} is known"),
            };
            return Err(Refusal::new(Code::NotLeader, what).into());
        };
        self.connect_to(&address).await
    }

    /// Where a shard listens, as far as is known.
    pub fn address(&self, id: u32) -> Option<String> {
        self.lock().known.get(&id).cloned()
    }

    /// A broker with its address as another answer than metadata has it.
    pub fn learn_broker(&self, broker: &Broker) {
        self.lock().known.insert(broker.id, join_address(&broker.host, broker.port));
    }

    /// One broker of each node that is known.
    pub fn one_of_each_node(&self) -> Vec<u32> {
        let ids: BTreeSet<u32> = self.lock().known.keys().copied().collect();
        let mut nodes = BTreeSet::new();
        ids.into_iter().filter(|id| nodes.insert(id / limits::MAX_SHARDS)).collect()
    }

    async fn connect_to(&self, address: &str) -> Result<Connection, ClientError> {
        let making = self.lock().connections.entry(address.into()).or_default().clone();
        let _one_at_a_time = making.lock().await;
        if let Some(open) = self.lock().open.get(address).filter(|c| !c.is_closed()) {
            return Ok(open.clone());
        }
        let connection = Connection::open(address, &self.settings.connection, self.clock).await?;
        self.lock().open.insert(address.into(), connection.clone());
        Ok(connection)
    }

    /// An open connection to any broker, else one to the first that answers: known ones, then those the user named.
    async fn connect_any(&self) -> Result<Connection, ClientError> {
        let addresses = {
            let mut state = self.lock();
            state.open.retain(|_, connection| !connection.is_closed());
            if let Some(open) = state.open.values().next() {
                return Ok(open.clone());
            }
            let mut addresses: Vec<String> = state.known.values().cloned().collect();
            addresses.extend(self.settings.bootstrap.iter().cloned());
            addresses
        };
        let mut failure = ClientError::Invalid("no address of a broker was given".into());
        for address in &addresses {
            match self.connect_to(address).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// One attempt.
    pub async fn request_once(&self, target: Target, request: &Request) -> Result<Answer, ClientError> {
        let controller = self.lock().controller;
        let connection = match (target, controller) {
            (Target::Broker(id), _) => self.connect(id).await?,
            (Target::Controller, Some(id)) => self.connect(id).await?,
            (Target::Any | Target::Controller, _) => self.connect_any().await?,
        };
        connection.request(request, self.settings.connection.request_timeout).await
    }

    /// Attempts until an answer that is worth no retry, or until the retry timeout.
    pub async fn request(&self, target: Target, request: &Request) -> Result<Response, ClientError> {
        self.retrying(|| async { self.request_once(target, request).await.map(|answer| answer.response) }).await
    }

    /// Repeats `attempt` with back-off while its failure may pass, until the retry timeout.
    pub async fn retrying<T, F: Future<Output = Result<T, ClientError>>>(&self, attempt: impl Fn() -> F) -> Result<T, ClientError> {
        let deadline = tokio::time::Instant::now() + self.settings.retry_timeout;
        let mut attempts = 0;
        loop {
            let error = match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            attempts += 1;
            let pause = self.settings.backoff.after(attempts);
            if !error.is_retriable() || tokio::time::Instant::now() + pause > deadline {
                return Err(error);
            }
            tracing::debug!(%error, attempts, "retrying");
            tokio::time::sleep(pause).await;
            if error.is_about_leadership() {
                // The controller or leader may be another one now; a failure here shows in the next attempt.
                let _ = self.refresh_once(Some(&[])).await;
            }
        }
    }

    /// Asks for brokers and topics (`None`: all topics) and remembers the answer.
    pub async fn refresh_once(&self, topics: Option<&[String]>) -> Result<Metadata, ClientError> {
        let request = Request::Metadata(MetadataRequest { topics: topics.map(<[String]>::to_vec), create_missing: false });
        let answer = self.request_once(Target::Any, &request).await?;
        let Response::Metadata(metadata) = answer.response else { return Err(unexpected(&answer.response)) };
        self.learn(&metadata);
        Ok(metadata)
    }

    fn learn(&self, metadata: &Metadata) {
        let mut state = self.lock();
        state.known = metadata.brokers.iter().map(|b| (b.id, join_address(&b.host, b.port))).collect();
        state.controller = Some(metadata.controller);
        for topic in &metadata.topics {
            match &topic.found {
                Ok(found) => drop(state.topics.insert(topic.name.clone(), Arc::new(found.clone()))),
                Err(_) => drop(state.topics.remove(&topic.name)),
            }
        }
        // A broker that is known under the address that the user gave keeps its one connection.
        let renamed: Vec<(String, Connection)> =
            state.open.values().filter_map(|c| Some((state.known.get(&c.broker_id())?.clone(), c.clone()))).collect();
        for (address, connection) in renamed {
            if address != connection.address() && !state.open.contains_key(&address) && same_port(&address, connection.address()) {
                state.open.remove(connection.address());
                state.open.insert(address, connection);
            }
        }
    }

    /// What is known of a topic, without asking.
    pub fn cached_topic(&self, name: &str) -> Option<Arc<TopicPartitions>> {
        self.lock().topics.get(name).cloned()
    }

    /// What is known of a topic may be wrong: who needs it next asks.
    pub fn forget_topic(&self, name: &str) {
        self.lock().topics.remove(name);
    }

    /// Partitions and leaders of a topic, from memory where they are there.
    pub async fn topic(&self, name: &str) -> Result<Arc<TopicPartitions>, ClientError> {
        match self.cached_topic(name) {
            Some(found) => Ok(found),
            None => self.refresh_topic(name).await,
        }
    }

    /// Asks for partitions and leaders of a topic, with retries; a topic that does not exist is asked for again only for a short while.
    pub async fn refresh_topic(&self, name: &str) -> Result<Arc<TopicPartitions>, ClientError> {
        let names = [name.to_string()];
        let started = tokio::time::Instant::now();
        let mut attempts = 0;
        loop {
            let metadata = self.retrying(|| self.refresh_once(Some(&names))).await?;
            let refusal = match metadata.topics.into_iter().find(|t| t.name == name).map(|t| t.found) {
                Some(Ok(found)) => return Ok(Arc::new(found)),
                Some(Err(refusal)) => refusal,
                None => Refusal::new(Code::UnknownTopicOrPartition, format!("the broker says nothing of the topic {name:?}")),
            };
            attempts += 1;
            if !refusal.code.is_retriable() || started.elapsed() >= self.settings.unknown_topic_wait {
                return Err(refusal.into());
            }
            tokio::time::sleep(self.settings.backoff.after(attempts)).await;
        }
    }

    /// The leader of a partition.
    ///
    /// # Errors
    /// The topic has no such partition, or nobody leads it.
    pub fn leader(topic: &TopicPartitions, name: &str, partition: u32) -> Result<u32, ClientError> {
        let what = || format!("nobody leads partition {partition} of {name:?} at present");
        Brokers::partition(topic, name, partition)?.leader.ok_or_else(|| Refusal::new(Code::NotLeader, what()).into())
    }

    /// Where a partition is led.
    ///
    /// # Errors
    /// The topic has no such partition.
    pub fn partition(topic: &TopicPartitions, name: &str, partition: u32) -> Result<PartitionMetadata, ClientError> {
        topic.partitions.get(partition as usize).copied().ok_or_else(|| {
            let what = format!("{name:?} has partitions 0 to {}, not {partition}", topic.partitions.len().saturating_sub(1));
            Refusal::new(Code::UnknownTopicOrPartition, what).into()
        })
    }
}

/// The answer is to another question.
pub(super) fn unexpected(response: &Response) -> ClientError {
    if let Response::Refused(refusal) = response {
        return refusal.clone().into();
    }
    let kind = format!("{response:?}");
    let kind = kind.split(['(', ' ']).next().unwrap_or_default().to_string();
    ClientError::Protocol { address: "the broker".into(), cause: format!("an answer to another question: {kind}") }
}

/// `host:port`, with brackets around an IPv6 address.
fn join_address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Only then can two addresses be the same listener under two names of its host.
fn same_port(a: &str, b: &str) -> bool {
    a.rsplit(':').next() == b.rsplit(':').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_tokio_reads_them() {
        assert_eq!(join_address("::1", 9092), "[::1]:9092");
        assert_eq!(join_address("host", 9092), "host:9092");
        assert!(same_port("localhost:9092", "127.0.0.1:9092") && !same_port("a:1", "a:2"));
    }
}
