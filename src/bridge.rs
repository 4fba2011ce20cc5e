//! The only door between the planes: bounded queues between the shards (glommio) and the control plane (tokio).
//!
//! ```text
//! shard i --ControlRequest--> control     proposals, each with a queue of one for its reply
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
    events: Receiver<ShardEvent>,
}

/// The control plane's end.
#[derive(Clone, Debug)]
pub struct ControlEnd {
    requests: Receiver<ControlRequest>,
    events: Vec<Sender<ShardEvent>>,
}

/// The bridge of a node: the control plane's end, and one for each shard.
pub fn bridge(shards: usize) -> (ControlEnd, Vec<ShardEnd>) {
    let (request_sender, requests) = bounded(limits::CONTROL_REQUESTS);
    let (events, ends) = (0..shards)
        .map(|_| {
            let (sender, events) = bounded(limits::SHARD_EVENTS);
            (sender, ShardEnd { requests: request_sender.clone(), events })
        })
        .unzip();
    (ControlEnd { requests, events }, ends)
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
