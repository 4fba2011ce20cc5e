//! Brings this node's proposals into the log, wherever it is led.
//!
//! One proposal is under way at a time, under a number of its own. It is sent to whoever leads, again and again under the same number, until this node's own machine has
//! applied it: that gives its outcome. So an answer that is lost on the way costs a try, never a second application; and a proposal that was given up can't
//! be applied after the next one, because its number is then too small.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::machine::{Outcomes, unknown_outcome};
use super::node::{Node, no_quorum};
use super::peer::Client;
use super::wire::{Answer, Request};
use super::{ConsensusId, Proposal};
use crate::cluster::Command;
use crate::limits;
use crate::request::{Code, Refusal};

/// Commands that wait for their turn.
#[derive(Debug)]
pub struct Job {
    /// In this order; none: only that the view is brought up to now.
    pub commands: Vec<Command>,
    /// Where the outcomes go.
    pub reply: oneshot::Sender<Result<Outcomes, Refusal>>,
}

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Proposes for ever.
pub async fn run(node: Arc<Node>, mut jobs: mpsc::Receiver<Job>) {
    let mut proposer = Proposer { node, sequence: 0, client: None };
    while let Some(Job { commands, reply }) = jobs.recv().await {
        // A reply that nobody waits for was still proposed: its proposer may have gone after it had been taken.
        let _ = reply.send(proposer.propose_all(commands).await);
    }
}

struct Proposer {
    node: Arc<Node>,
    sequence: u64,
    client: Option<Client>,
}

/// What a try came to.
enum Attempt {
    /// A majority has it.
    Taken,
    /// It can't be taken, by anyone.
    Refused(Refusal),
    /// It may or may not be in the log.
    Again,
}

impl Proposer {
    async fn propose_all(&mut self, commands: Vec<Command>) -> Result<Outcomes, Refusal> {
        if commands.is_empty() {
            return self.propose(Vec::new()).await;
        }
        let mut outcomes: Vec<Option<Result<_, Refusal>>> = Vec::new();
        let mut groups: Vec<Vec<(usize, Bytes)>> = vec![Vec::new()];
        let mut length = 0;
        for (at, command) in commands.iter().enumerate() {
            let encoded = match command.encode() {
                Ok(encoded) => encoded,
                Err(error) => {
                    outcomes.push(Some(Err(Refusal::new(Code::InvalidRequest, error.to_string()))));
                    continue;
                }
            };
            outcomes.push(None);
            length += encoded.len() + 4;
            let last = groups.last().expect("there is one");
            if length > limits::MAX_CONSENSUS_ENTRY / 2 || last.len() >= limits::CATALOGUE_GROUP {
                groups.push(Vec::new());
                length = encoded.len() + 4;
            }
            groups.last_mut().expect("there is one").push((at, encoded.into()));
        }
        for group in groups.into_iter().filter(|group| !group.is_empty()) {
            let (places, encoded): (Vec<_>, Vec<_>) = group.into_iter().unzip();
            let group = self.propose(encoded).await.unwrap_or_else(|refusal| places.iter().map(|_| Err(refusal.clone())).collect());
            for (at, outcome) in places.into_iter().zip(group) {
                outcomes[at] = Some(outcome);
            }
        }
        Ok(outcomes.into_iter().map(|outcome| outcome.expect("each command was in a group")).collect())
    }

    async fn propose(&mut self, commands: Vec<Bytes>) -> Result<Outcomes, Refusal> {
        self.sequence += 1;
        let count = commands.len();
        let proposal = Proposal { proposer: self.node.shown.proposer, sequence: self.sequence, commands };
        let mut outcomes = self.node.shown.outcomes_of(self.sequence);
        let deadline = sleep_until(Instant::now() + self.node.timing.proposal);
        let drive = self.drive(proposal);
        let result = tokio::select! {
            biased;
            outcomes = &mut outcomes => return Ok(outcomes.unwrap_or_else(|_| unknown_outcome(count))),
            refusal = drive => Err(refusal),
            () = deadline => Err(no_quorum()),
        };
        self.node.shown.forget(self.sequence);
        result
    }

    /// Tries until it is in the log of a majority, and waits then; ends only if it can't be taken.
    async fn drive(&mut self, proposal: Proposal) -> Refusal {
        loop {
            if let Some(refusal) = self.node.failure() {
                return refusal;
            }
            match self.attempt(&proposal).await {
                Attempt::Taken => std::future::pending().await,
                Attempt::Refused(refusal) => return refusal,
                Attempt::Again => sleep(PAUSE).await,
            }
        }
    }

    async fn attempt(&mut self, proposal: &Proposal) -> Attempt {
        let Some((id, member)) = self.node.leader() else { return Attempt::Again };
        let answer = if id == self.node.me.id {
            tokio::time::timeout(self.node.attempt(), self.node.handle_proposal(proposal.clone())).await.ok()
        } else {
            self.forward(id, &member.address, proposal).await
        };
        match answer {
            Some(Answer::Done) => Attempt::Taken,
            Some(Answer::Refused(refusal)) if refusal.code == Code::InvalidRequest => Attempt::Refused(refusal),
            _ => Attempt::Again,
        }
    }

    async fn forward(&mut self, id: ConsensusId, address: &str, proposal: &Proposal) -> Option<Answer> {
        let (node, within) = (&self.node, self.node.attempt());
        let client = self.client.take().filter(|client| client.is_to(id, address));
        let client = self.client.insert(client.unwrap_or_else(|| Client::new(Arc::clone(&node.dialer), id, address.into())));
        match client.call(&Request::Propose(proposal.clone()), within).await {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!(%error, address, "a proposal did not reach the leader; it is sent again");
                None
            }
        }
    }
}
