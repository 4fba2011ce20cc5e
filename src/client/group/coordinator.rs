//! Asks the coordinator of one group: finds it, and finds it again where it moved.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::client::brokers::{Brokers, Target, unexpected};
use crate::client::error::ClientError;
use crate::request::group::{CommitOffsets, FetchOffsets, FetchedTopic, GroupAnswer, GroupError, GroupRequest, TopicOutcome};
use crate::request::{Request, Response};

/// The way to the coordinator of one group.
pub(super) struct Coordinator {
    pub brokers: Arc<Brokers>,
    pub group: String,
    /// Advertised id of the one that was found.
    found: Mutex<Option<u32>>,
}

impl Coordinator {
    pub fn new(brokers: Arc<Brokers>, group: String) -> Coordinator {
        Coordinator { brokers, group, found: Mutex::default() }
    }

    /// It may be another one now, which whoever named it may not know: another node is asked.
    pub fn forget(&self) {
        self.brokers.look_elsewhere();
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn known(&self) -> Option<u32> {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn find(&self) -> Result<u32, ClientError> {
        if let Some(id) = self.known() {
            return Ok(id);
        }
        let request = Request::FindCoordinator(vec![self.group.clone()]);
        let broker = match self.brokers.request_once(Target::Any, &request).await?.response {
            Response::Coordinators(mut found) if found.len() == 1 => found.remove(0).map_err(|error| self.refused(error))?,
            other => return Err(unexpected(&other)),
        };
        if self.brokers.address(broker.id).is_none() {
            self.brokers.refresh_once(Some(&[])).await?;
        }
        // Whoever answered may not have heard of it yet, and it may have come back at another address.
        self.brokers.learn_broker(&broker);
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(broker.id);
        Ok(broker.id)
    }

    pub fn refused(&self, error: GroupError) -> ClientError {
        ClientError::Group { group: self.group.clone(), error }
    }

    /// One attempt, whose answer may be held back for `patience` beyond the request timeout. A coordinator that does not answer is looked for again next time.
    pub async fn ask(&self, request: GroupRequest, patience: Duration) -> Result<GroupAnswer, ClientError> {
        let asked = async {
            let connection = self.brokers.connect(self.find().await?).await?;
            connection.request(&Request::Group(request), self.brokers.settings.connection.request_timeout + patience).await
        };
        match asked.await.map(|answer| answer.response) {
            Ok(Response::Group(answer)) => Ok(answer),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => {
                self.forget();
                Err(error)
            }
        }
    }

    /// Attempts until the coordinator has said yes or no for good, or until the retry timeout.
    pub async fn settle<T>(&self, request: GroupRequest, read: impl Fn(GroupAnswer) -> Result<T, ClientError>) -> Result<T, ClientError> {
        let attempt = || async {
            let answer = read(self.ask(request.clone(), Duration::ZERO).await?);
            if let Err(ClientError::Group { error: GroupError::NotCoordinator | GroupError::CoordinatorNotAvailable, .. }) = &answer {
                self.forget();
            }
            answer
        };
        self.brokers.retrying(attempt).await
    }

    /// Stores positions: all of them or an error.
    pub async fn commit(&self, commit: CommitOffsets) -> Result<(), ClientError> {
        let read = |answer| match answer {
            GroupAnswer::Commit(topics) => first_refusal(&topics).map_or(Ok(()), |error| Err(self.refused(error))),
            other => Err(self.surprised(&other)),
        };
        self.settle(GroupRequest::Commit(commit), read).await
    }

    /// Reads positions; waits for those whose commit is on its way.
    pub async fn fetch(&self, topics: Option<Vec<(String, Vec<i32>)>>) -> Result<Vec<FetchedTopic>, ClientError> {
        let request = FetchOffsets { group: self.group.clone(), topics, require_stable: true };
        let read = |answer| match answer {
            GroupAnswer::FetchOffsets(Ok(topics)) => {
                let refusal = topics.iter().flat_map(|topic| &topic.partitions).find_map(|p| p.outcome.as_ref().err().copied());
                refusal.map_or(Ok(topics), |error| Err(self.refused(error)))
            }
            GroupAnswer::FetchOffsets(Err(error)) => Err(self.refused(error)),
            other => Err(self.surprised(&other)),
        };
        self.settle(GroupRequest::FetchOffsets(request), read).await
    }

    pub fn surprised(&self, answer: &GroupAnswer) -> ClientError {
        unexpected(&Response::Group(answer.clone()))
    }
}

/// A failure that the whole commit shares counts before one of a single partition.
fn first_refusal(topics: &[TopicOutcome]) -> Option<GroupError> {
    topics.iter().flat_map(|topic| &topic.partitions).find_map(|(_, outcome)| outcome.err())
}
