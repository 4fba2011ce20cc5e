//! Asks brokers: one of them, or whoever answers; again where that may help.
//!
//! A node that is away says nothing, and its silence looks like a slow answer. So a question that any broker may answer goes to a second one after
//! a moment; and where an answer of a
//! certain broker is overdue, another one is asked whether that node is still there. If not, its connection ends, and what waited on it is tried
//! with whoever leads now.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::brokers::{Brokers, Target, node_of, unexpected};
use super::connection::{Answer, Connection};
use super::error::ClientError;
use crate::request::{Code, Metadata, MetadataRequest, Refusal, Request, Response, TopicPartitions};

/// A question that any broker may answer goes to another one besides after so long.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often connections are looked at on which nothing comes.
const WATCH: Duration = Duration::from_millis(500);

impl Brokers {
    /// One attempt; of what any broker may answer, one with each until one does.
    pub async fn request_once(&self, target: Target, request: &Request) -> Result<Answer, ClientError> {
        let connection = match (target, self.controller()) {
            (Target::Broker(id), _) | (Target::Controller, Some(id)) => self.connect(id).await?,
            (Target::Any, _) | (Target::Controller, None) => return self.ask_any(request).await,
        };
        connection.request(request, self.settings.connection.request_timeout).await
    }

    async fn ask_any(&self, request: &Request) -> Result<Answer, ClientError> {
        let mut candidates = self.candidates().into_iter();
        let mut asked = FuturesUnordered::new();
        let mut failure = ClientError::Invalid("no address of a broker was given".into());
        loop {
            match candidates.next() {
                Some(address) => asked.push(self.ask_at(address, request)),
                None if asked.is_empty() => return Err(failure),
                None => {}
            }
            let next = tokio::select! {
                answer = asked.next() => answer,
                () = tokio::time::sleep(PATIENCE), if candidates.len() > 0 => None,
            };
            match next {
                Some(Ok((connection, answer))) => {
                    self.note_answered(&connection);
                    return Ok(answer);
                }
                Some(Err(error)) if !error.is_retriable() && error.code().is_some() => return Err(error),
                Some(Err(error)) => failure = error,
                None => {}
            }
        }
    }

    async fn ask_at(&self, address: String, request: &Request) -> Result<(Connection, Answer), ClientError> {
        let connection = self.connect_to(&address).await?;
        let answer = connection.request(request, self.settings.connection.request_timeout).await?;
        Ok((connection, answer))
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
                self.look_elsewhere();
                let _ = self.refresh_once(Some(&[])).await;
            }
        }
    }

    /// Asks for brokers and topics (`None`: all topics) and remembers the answer.
    pub async fn refresh_once(&self, topics: Option<&[String]>) -> Result<Metadata, ClientError> {
        let request = Request::Metadata(MetadataRequest { topics: topics.map(<[String]>::to_vec), create_missing: false });
        let answer = self.ask_any(&request).await?;
        let Response::Metadata(mut metadata) = answer.response else { return Err(unexpected(&answer.response)) };
        self.learn(&mut metadata);
        Ok(metadata)
    }

    /// Partitions and leaders of a topic, from memory where they are there.
    pub async fn topic(&self, name: &str) -> Result<Arc<TopicPartitions>, ClientError> {
        match self.cached_topic(name) {
            Some(found) => Ok(found),
            None => self.refresh_topic(name).await,
        }
    }

    /// As [`Brokers::refresh_topic`] where what is known has led astray: another node is asked than the one that said it.
    pub async fn find_leaders(&self, name: &str) -> Result<Arc<TopicPartitions>, ClientError> {
        self.look_elsewhere();
        self.refresh_topic(name).await
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
            // A node may be behind the one that made the topic.
            self.look_elsewhere();
        }
    }

    /// Ends once the other brokers say that this one is not there any more, or elsewhere.
    pub(super) async fn until_away(&self, id: u32, address: &str) {
        loop {
            tokio::time::sleep(2 * PATIENCE).await;
            let _ = self.refresh_once(Some(&[])).await;
            if self.address(id).as_deref() != Some(address) {
                return;
            }
        }
    }

    /// Asks about the nodes of connections on which an answer is overdue, and ends those of nodes that are not there any more.
    async fn look_after_silent(&self) {
        let silent = self.silent();
        if silent.is_empty() || self.refresh_once(Some(&[])).await.is_err() {
            return;
        }
        for connection in silent.iter().filter(|connection| connection.is_overdue() && !self.knows_node(node_of(connection.broker_id()))) {
            tracing::debug!(address = connection.address(), "the other brokers say that it is not there any more");
            connection.give_up("it is silent, and the other brokers say that it is not there any more");
        }
    }
}

/// Looks after connections on which nothing comes, as long as there is a client.
pub(super) async fn watch(brokers: Weak<Brokers>) {
    loop {
        tokio::time::sleep(WATCH).await;
        let Some(brokers) = brokers.upgrade() else { return };
        // Who asks holds the client only for so long.
        let _ = tokio::time::timeout(4 * WATCH, brokers.look_after_silent()).await;
    }
}
