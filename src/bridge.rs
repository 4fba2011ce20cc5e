//! The only door between the planes: bounded queues between the shards (glommio) and the control plane (tokio).
//!
//! ```text
//! shard i --ControlRequest--> control     proposals, each with a queue of one for its reply
//! shard i --MembershipRequest-> control   who decides about the metadata; apart, so that a slow answer holds up no proposal
//! shard i <---ShardEvent----- control     the catalogue whenever it changes; drain
//! ```
//!
//! Invariants: every queue has a bound; a full one makes its sender wait, it never grows. A shard sees catalogues in order, maybe
//! not every one. A proposer is answered only when every shard has the change in force, so what it does next finds the topic on
//! any shard. Record data never passes here.
//!
//! Whoever reads a shard's events must be another task than those that propose, or they would wait for each other.

use std::ops::Range;
use std::sync::Arc;

use async_channel::{Receiver, Sender, bounded};

use crate::cluster::{Applied, CatalogueView, Command, Committed};
use crate::limits;
use crate::request::cluster::ConsensusState;
use crate::request::{Code, Refusal};
use crate::types::ProducerId;

/// What a shard asks of the control plane.
#[derive(Debug)]
pub struct ControlRequest {
    /// The change that it proposes.
    pub command: Command,
    /// Where the outcome goes; a proposer that has gone is no fault.
    pub reply: Sender<Result<Committed, Refusal>>,
}

/// What a shard asks about the members of the consensus.
#[derive(Debug)]
pub enum MembershipRequest {
    /// How it is.
    Status {
        /// Where the answer goes.
        reply: Sender<ConsensusState>,
    },
    /// A node is to be no member any more.
    Remove {
        /// Which.
        node: u32,
        /// Where the outcome goes.
        reply: Sender<Result<(), Refusal>>,
    },
}

/// What the control plane tells a shard.
#[derive(Debug)]
pub enum ShardEvent {
    /// The catalogue changed.
    Catalogue {
        /// As it is now.
        view: Arc<CatalogueView>,
        /// To be dropped once the shard acts by it: its partitions are open.
        in_force: InForce,
    },
    /// This node may act again, after a while in which it might not: leaders look again at what they may acknowledge.
    Lease,
    /// Finish what is in hand, take no more, make a checkpoint, end.
    Drain,
}

/// Held by a shard until a change is in force on it.
#[derive(Debug)]
pub struct InForce(
    // Never sent on: the control plane waits for the last sender to go.
    #[allow(dead_code)] Sender<()>,
);

/// A shard's end.
#[derive(Clone, Debug)]
pub struct ShardEnd {
    requests: Sender<ControlRequest>,
    membership: Sender<MembershipRequest>,
    events: Receiver<ShardEvent>,
}

/// The control plane's end.
#[derive(Clone, Debug)]
pub struct ControlEnd {
    requests: Receiver<ControlRequest>,
    membership: Receiver<MembershipRequest>,
    events: Vec<Sender<ShardEvent>>,
}

/// The bridge of a node: the control plane's end, and one for each shard.
pub fn bridge(shards: usize) -> (ControlEnd, Vec<ShardEnd>) {
    let (request_sender, requests) = bounded(limits::CONTROL_REQUESTS);
    let (membership_sender, membership) = bounded(limits::CONTROL_REQUESTS);
    let (events, ends) = (0..shards)
        .map(|_| {
            let (sender, events) = bounded(limits::SHARD_EVENTS);
            (sender, ShardEnd { requests: request_sender.clone(), membership: membership_sender.clone(), events })
        })
        .unzip();
    (ControlEnd { requests, membership, events }, ends)
}

impl ShardEnd {
    /// Proposes a change; done when it is durable and in force on every shard.
    pub async fn propose(&self, command: Command) -> Result<Committed, Refusal> {
        let (reply, outcome) = bounded(1);
        self.requests.send(ControlRequest { command, reply }).await.map_err(|_| stopping())?;
        outcome.recv().await.map_err(|_| stopping())?
    }

    /// A block of producer ids that nobody else has or will have.
    pub async fn allocate_producer_ids(&self) -> Result<Range<ProducerId>, Refusal> {
        let command = Command::AllocateProducerIds { count: limits::PRODUCER_ID_BLOCK };
        match self.propose(command).await?.applied {
            Applied::ProducerIds(range) => Ok(range),
            other => Err(Refusal::new(Code::Internal, format!("producer ids were asked for, but {other:?} happened"))),
        }
    }

    /// How the consensus is.
    pub async fn consensus(&self) -> Result<ConsensusState, Refusal> {
        let (reply, answer) = bounded(1);
        self.membership.send(MembershipRequest::Status { reply }).await.map_err(|_| stopping())?;
        answer.recv().await.map_err(|_| stopping())
    }

    /// Makes a node no member of the consensus any more; one that is none already is no fault.
    pub async fn remove_member(&self, node: u32) -> Result<(), Refusal> {
        let (reply, outcome) = bounded(1);
        self.membership.send(MembershipRequest::Remove { node, reply }).await.map_err(|_| stopping())?;
        outcome.recv().await.map_err(|_| stopping())?
    }

    /// The next event; [`ShardEvent::Drain`] for ever once the control plane is gone.
    pub async fn next_event(&self) -> ShardEvent {
        self.events.recv().await.unwrap_or(ShardEvent::Drain)
    }
}

impl ControlEnd {
    /// The next request; `None` once every shard is gone.
    pub async fn next_request(&self) -> Option<ControlRequest> {
        self.requests.recv().await.ok()
    }

    /// The next request, if one waits already.
    pub fn waiting_request(&self) -> Option<ControlRequest> {
        self.requests.try_recv().ok()
    }

    /// The next request about members; `None` once every shard is gone.
    pub async fn next_membership_request(&self) -> Option<MembershipRequest> {
        self.membership.recv().await.ok()
    }

    /// Tells every shard of a catalogue, and waits until it is in force on all (one that has gone doesn't count).
    pub async fn publish(&self, view: &Arc<CatalogueView>) {
        let (guard, done) = bounded(1);
        for shard in &self.events {
            let event = ShardEvent::Catalogue { view: Arc::clone(view), in_force: InForce(guard.clone()) };
            let _ = shard.send(event).await;
        }
        drop(guard);
        let _ = done.recv().await;
    }

    /// Tells every shard that this node may act again.
    pub async fn tell_lease(&self) {
        for shard in &self.events {
            let _ = shard.send(ShardEvent::Lease).await;
        }
    }

    /// Tells every shard to drain. Blocks while a queue is full: not for a reactor.
    pub fn drain_blocking(&self) {
        for shard in &self.events {
            let _ = shard.send_blocking(ShardEvent::Drain);
        }
    }
}

fn stopping() -> Refusal {
    Refusal::new(Code::Unavailable, "the broker is stopping")
}
