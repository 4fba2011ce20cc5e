//! One replicated partition on its shard: a task that feeds its machine and carries out what the machine asks for.
//!
//! ```text
//! metadata, messages, connections ──> inbox ─┐
//! the device has more of the log ────────────┼─> machine (leader or follower) ──> effects: journal, append, cut, send, watermark, propose
//! an append, a lease, a timeout ─────────────┘            │
//!                                                         └─> what to ship ──> reads the log ──> the follower's outbox
//! ```
//! Everything of a partition happens in its task, one after the other, so the machine sees each thing after all that came before it. The task sleeps while nothing happens.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::batch::BatchHeader;
use crate::cluster::CatalogueView;
use crate::limits::LINK_WINDOW;
use crate::metrics::Counter;
use crate::partition::ReplicaAppend;
use crate::replication::codec::{SegmentPart, SegmentWanted};
use crate::replication::message::{Append, Refused};
use crate::replication::{Effect, EpochStart, Follower, Leader, Message, NodeId, RecordRefusal, Refusal};
use crate::shard::context::Context;
use crate::shard::event::{Event, wait_any};
use crate::shard::follower_read::FollowerCursor;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::receipt::Received;
use crate::shard::replica::ReplicaError;
use crate::shard::replication::behind::Behind;
use crate::shard::replication::effects::segment_of;
use crate::shard::replication::mending::{Mending, Mends};
use crate::shard::replication::outbox::Outbox;
use crate::shard::replication::receiving::Incoming;
use crate::shard::replication::shipping::Shipping;
use crate::types::{LeaderEpoch, Offset, TopicPartition};

/// A task that waits for nothing in particular looks again after so long.
const IDLE: Duration = Duration::from_secs(3600);
/// A damage of which consensus has not heard is told again after so long.
pub(super) const REPORT_AGAIN: Duration = Duration::from_secs(1);

/// What comes to a partition.
pub enum Input {
    /// The metadata changed.
    Metadata(Arc<CatalogueView>),
    /// From another node, with the message's bytes and where an answer goes.
    Message {
        /// Who sent it.
        from: NodeId,
        /// What.
        message: Message,
        /// The batches of an APPEND.
        payload: Bytes,
        /// The connection that it came on.
        on: Rc<Outbox>,
    },
    /// A part of a segment, from another node, and where an answer goes.
    Part {
        /// Who sent it.
        from: NodeId,
        /// Which.
        part: SegmentPart,
        /// Its bytes.
        payload: Bytes,
        /// The connection that it came on.
        on: Rc<Outbox>,
    },
    /// A connection on which parts of a segment came has ended.
    PartsEnded,
    /// A follower wants a sealed segment again.
    Wanted {
        /// Who.
        from: NodeId,
        /// Which.
        wanted: SegmentWanted,
        /// The connection that it is to come on.
        on: Rc<Outbox>,
    },
    /// The leader does not have a segment that was wanted.
    Missing {
        /// Who said so.
        from: NodeId,
        /// Which.
        base_offset: Offset,
        /// The connection that it came on.
        on: Rc<Outbox>,
    },
    /// A connection to a follower came about.
    Connected(NodeId, Rc<Outbox>),
    /// It has ended.
    Disconnected(NodeId, Rc<Outbox>),
    /// Consensus refused a proposal that was made on this version of the record.
    ProposalRefused(u32, RecordRefusal),
}

impl Input {
    /// Memory that it takes while nobody has looked at it, bytes: what other nodes send counts, whether it has batches or not.
    fn cost(&self) -> usize {
        let (payload, entries) = match self {
            Input::Message { payload, message: Message::Epochs(told), .. } => (payload.len(), told.epochs.entries().len()),
            Input::Message { payload, message: Message::Segment(told), .. } => (payload.len(), told.epochs.len()),
            Input::Message { payload, .. } | Input::Part { payload, .. } => (payload.len(), 0),
            Input::Wanted { .. } | Input::Missing { .. } => (0, 0),
            Input::Metadata(_) | Input::PartsEnded | Input::Connected(..) | Input::Disconnected(..) | Input::ProposalRefused(..) => {
                return 0;
            }
        };
        size_of::<Input>() + payload + entries * size_of::<EpochStart>()
    }
}

/// What it is at present.
pub(super) enum Machine {
    Leader(Leader),
    Follower(Follower),
}

/// A replicated partition.
pub struct Replica {
    /// The partition as the store has it.
    pub cell: Rc<PartitionCell>,
    inbox: RefCell<VecDeque<Input>>,
    wake: Event,
    is_over: Cell<bool>,
    waiting: Rc<Waiting>,
    /// Connections whose room is waited for, each by one task.
    full: RefCell<Vec<Rc<Outbox>>>,
}

/// Bytes of messages that replicas of a shard have not looked at yet: connections are not read while they are too many.
#[derive(Default)]
pub struct Waiting {
    bytes: Cell<usize>,
    fewer: Event,
}

impl Waiting {
    fn add(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    fn sub(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() - bytes);
        self.fewer.notify();
    }

    /// Waits until they are few enough.
    pub async fn room(&self) {
        loop {
            let ticket = self.fewer.ticket();
            if self.bytes.get() <= LINK_WINDOW {
                return;
            }
            self.fewer.wait(ticket).await;
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        while self.next_input().is_some() {}
    }
}

impl Replica {
    /// One that has not heard of the metadata yet; its task is [`Replica::run`].
    pub fn new(cell: Rc<PartitionCell>, waiting: Rc<Waiting>) -> Rc<Replica> {
        Rc::new(Replica {
            cell,
            inbox: RefCell::default(),
            wake: Event::default(),
            is_over: Cell::new(false),
            waiting,
            full: RefCell::default(),
        })
    }

    /// Something for it.
    pub fn tell(&self, input: Input) {
        self.waiting.add(input.cost());
        self.inbox.borrow_mut().push_back(input);
        self.wake.notify();
    }

    /// Something changed that it looks at.
    pub fn look_again(&self) {
        self.wake.notify();
    }

    /// The partition is no replica any more, or the shard ends.
    pub fn end(&self) {
        self.is_over.set(true);
        self.wake.notify();
    }

    /// The task.
    pub async fn run(self: Rc<Replica>, context: Rc<Context>) {
        let mut life = Life {
            replica: self.clone(),
            id: self.cell.id,
            context,
            machine: None,
            followers: Vec::new(),
            leaders: Vec::new(),
            checked: None,
            cursors: Vec::new(),
            proposing: Rc::default(),
            behind: Vec::new(),
            read_again: None,
            shipping: Vec::new(),
            incoming: None,
            received: None,
            lost: None,
            unled: None,
            trouble: String::new(),
            refused: BTreeMap::new(),
            mending: None,
            mends: Mends::default(),
        };
        while !self.is_over.get() {
            let tickets = [&self.wake, &self.cell.reached, &self.cell.appended].map(|event| (event, event.ticket()));
            life.work().await;
            let deadline = life.next_timeout();
            if !self.inbox.borrow().is_empty() {
                continue;
            }
            wait_any(&tickets, deadline).await;
        }
        life.drop_incoming().await;
        life.drop_mending().await;
    }

    /// Looks again once a full connection has room.
    pub(super) fn come_back(self: &Rc<Replica>, outbox: &Rc<Outbox>) {
        if self.full.borrow().iter().any(|other| Rc::ptr_eq(other, outbox)) {
            return;
        }
        self.full.borrow_mut().push(outbox.clone());
        let (replica, outbox) = (self.clone(), outbox.clone());
        glommio::spawn_local(async move {
            outbox.wait_for_room().await;
            replica.full.borrow_mut().retain(|other| !Rc::ptr_eq(other, &outbox));
            replica.wake.notify();
        })
        .detach();
    }

    fn next_input(&self) -> Option<Input> {
        let input = self.inbox.borrow_mut().pop_front();
        self.waiting.sub(input.as_ref().map_or(0, Input::cost));
        input
    }
}

/// What the task owns.
pub(super) struct Life {
    pub(super) replica: Rc<Replica>,
    pub(super) id: TopicPartition,
    pub(super) context: Rc<Context>,
    pub(super) machine: Option<Machine>,
    /// Connections to followers.
    pub(super) followers: Vec<(NodeId, Rc<Outbox>)>,
    /// Where the log is read for each follower.
    pub(super) cursors: Vec<(NodeId, FollowerCursor)>,
    /// The version on which a change of the ISR was proposed that has no answer yet.
    pub(super) proposing: Rc<Cell<Option<u32>>>,
    /// How far behind each follower is, and when what it was sent last is paid for.
    pub(super) behind: Vec<(NodeId, Behind, Instant)>,
    /// When a read for a follower that failed is to be tried again.
    pub(super) read_again: Option<Instant>,
    /// Whole segments on their way to followers.
    pub(super) shipping: Vec<Shipping>,
    /// The whole segment that comes in from the leader.
    pub(super) incoming: Option<Incoming>,
    /// One that came whole, and that the machine is about to take.
    pub(super) received: Option<Received>,
    /// The headers of the batches of an APPEND that was checked, and that the machine is about to take.
    pub(super) checked: Option<Vec<BatchHeader>>,
    /// Connections on which leaders speak: one that is deposed may still do so, and gets its answer on its own.
    pub(super) leaders: Vec<(NodeId, Rc<Outbox>)>,
    /// The life of this replica in which it was damaged, as consensus was last told, and when.
    pub(super) lost: Option<(u32, Instant)>,
    /// The epoch in which this replica is to lead and can't: it has been in it in an earlier run, and waits for the next one.
    pub(super) unled: Option<LeaderEpoch>,
    /// Why it began anew the last time. On a full disk that is tried every second, and said once.
    pub(super) trouble: String,
    /// What was refused last between this replica and each other: the same is said once, however often it is tried again.
    pub(super) refused: BTreeMap<NodeId, Refusal>,
    /// A damaged segment that comes again from the leader.
    pub(super) mending: Option<Mending>,
    /// When the next attempt is to mend one.
    pub(super) mends: Mends,
}

impl Life {
    async fn work(&mut self) {
        let mut effects = Vec::new();
        self.see_damage().await;
        self.see_log(&mut effects);
        self.execute(&mut effects, &Bytes::new()).await;
        while let Some(input) = self.replica.next_input() {
            let payload = self.handle(input, &mut effects).await;
            self.execute(&mut effects, &payload).await;
            self.see_log(&mut effects);
            self.execute(&mut effects, &Bytes::new()).await;
        }
        if let Some(Machine::Leader(leader)) = &mut self.machine {
            leader.poll(self.context.replication.now(), &mut effects);
        }
        self.execute(&mut effects, &Bytes::new()).await;
        if let Some(Machine::Leader(leader)) = &self.machine {
            self.replica.cell.latest_is_known.set(leader.may_acknowledge(self.context.replication.now()));
            let mut ends = self.replica.cell.follower_ends.borrow_mut();
            ends.clear();
            ends.extend(leader.follower_ends());
        }
        self.replica.cell.expire(Instant::now());
        self.drop_stale_incoming().await;
        self.mend().await;
        self.end_stale_shipping();
        self.ship().await;
    }

    fn next_timeout(&self) -> Instant {
        match &self.machine {
            Some(Machine::Leader(leader)) => leader.next_timeout().map(|at| self.context.replication.moment(at)),
            _ => None,
        }
        .into_iter()
        .chain(self.replica.cell.expires_at())
        .chain(self.lost.map(|(_, told_at)| told_at + REPORT_AGAIN))
        .chain(self.next_mend())
        .chain(self.next_paid())
        .chain(self.read_again.filter(|at| *at > Instant::now()))
        .min()
        .unwrap_or_else(|| Instant::now() + IDLE)
    }

    /// What the log has come to since the machine looked.
    fn see_log(&mut self, effects: &mut Vec<Effect>) {
        let now = self.context.replication.now();
        let (end, hash, level_end) = {
            let machine = self.replica.cell.machine.borrow();
            (machine.ladder().appended(), machine.running_hash(), self.replica.cell.level_end())
        };
        match &mut self.machine {
            Some(Machine::Leader(leader)) => {
                if end > leader.log().log_end {
                    leader.handle_appended(end, hash, now);
                }
                leader.handle_lease(self.context.replication.lease_until(), now, effects);
                leader.handle_durable(level_end.min(end), now, effects);
                let first = self.replica.cell.machine.borrow().first_offset().min(leader.log().watermark);
                leader.handle_readable_from(self.replica.cell.machine.borrow().log_start());
                if first > leader.log().log_start {
                    leader.handle_log_start(first, now, effects);
                }
            }
            Some(Machine::Follower(follower)) => follower.handle_durable(level_end.min(follower.log().log_end), effects),
            None => {}
        }
    }

    async fn handle(&mut self, input: Input, effects: &mut Vec<Effect>) -> Bytes {
        let now = self.context.replication.now();
        match input {
            Input::Metadata(view) => self.follow_metadata(&view, effects),
            Input::Connected(node, outbox) => {
                self.followers.retain(|(other, _)| *other != node);
                self.followers.push((node, outbox));
                if let Some(Machine::Leader(leader)) = &mut self.machine {
                    leader.handle_connection(node, true, now, effects);
                }
            }
            Input::Disconnected(node, outbox) => {
                // The end of one that another has followed is no news, however late it comes.
                let before = self.followers.len();
                self.followers.retain(|(other, known)| *other != node || !Rc::ptr_eq(known, &outbox));
                if let Some(Machine::Leader(leader)) = self.machine.as_mut().filter(|_| self.followers.len() < before) {
                    leader.handle_connection(node, false, now, effects);
                }
            }
            Input::ProposalRefused(version, refusal) => {
                if let Some(Machine::Leader(leader)) = &mut self.machine {
                    leader.handle_proposal_refused(version, &refusal, now, effects);
                }
            }
            Input::Part { from, part, payload, on } => self.take_part(from, &part, &payload, &on).await,
            // Whether it was the connection of the present stream is looked at anyway.
            Input::PartsEnded => {}
            Input::Wanted { from, wanted, on } => self.give_segment(from, &wanted, &on),
            Input::Missing { from, base_offset, on } => self.segment_missing(from, base_offset, &on).await,
            Input::Message { from, message: Message::Segment(segment), on, .. } => self.take_segment(from, &segment, &on, effects).await,
            Input::Message { from, message, payload, on } => {
                if !self.is_sound(from, &message, &payload, &on).await {
                    return Bytes::new();
                }
                match &mut self.machine {
                    Some(Machine::Leader(leader)) => leader.handle_message(from, &message, now, effects),
                    Some(Machine::Follower(follower)) => {
                        self.leaders.retain(|(node, outbox)| *node != from && !outbox.is_closed());
                        self.leaders.push((from, on));
                        follower.handle_message(from, &message, effects);
                    }
                    // The leader knows of the record already, this node does not yet: it opens the stream again in a while.
                    None => {}
                }
                return payload;
            }
        }
        Bytes::new()
    }

    /// Whether the batches of an APPEND that goes on where the log ends are what their leader says. The machine is told of sound ones only.
    async fn is_sound(&mut self, from: NodeId, message: &Message, payload: &Bytes, on: &Outbox) -> bool {
        self.checked = None;
        let (Message::Append(append), Some(Machine::Follower(follower))) = (message, &self.machine) else { return true };
        let goes_on = follower.is_aligned() && follower.stream() == Some(append.stream) && append.base_offset == follower.log().log_end;
        if payload.is_empty() || !goes_on {
            return true;
        }
        let (store, cell) = (self.context.store.clone(), self.replica.cell.clone());
        match store.check_replica(&cell, &replica_append(&cell, append, payload)).await {
            Ok(headers) => self.checked = Some(headers),
            Err(ReplicaError::Store(refusal)) => {
                self.give_up(&format!("batches at offset {}: {refusal}", append.base_offset));
                return false;
            }
            Err(ReplicaError::Refused(error)) => {
                tracing::warn!(partition = %self.id, from, %error, "batches of the leader are refused");
                self.context.metrics.add(Counter::ReplicationRefused, 1);
                let refusal = Refusal::RunningHash { offset: append.end_offset, expected: append.hash_after, actual: 0 };
                on.push(self.id, Message::Refused(Refused { stream: append.stream, refusal }), Vec::new());
                return false;
            }
        }
        true
    }
}

/// An APPEND as the store takes it.
fn replica_append<'a>(cell: &Rc<PartitionCell>, append: &Append, batches: &'a Bytes) -> ReplicaAppend<'a> {
    let segment = segment_of(cell, append.base_offset, append.opens_segment);
    ReplicaAppend { epoch: append.stream.leader_epoch, segment, running_hash: append.hash_after, batches }
}
