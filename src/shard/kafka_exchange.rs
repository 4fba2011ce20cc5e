//! The requests and answers of one Kafka connection in their order, and what of them is held in memory.
//!
//! Which request is begun when is [`InOrder`]'s; this begins them, sends the answers, and counts. A request that waits for its turn is held as it came, not
//! decoded; an answer that waits counts in the shard's share for answers as one that waits in the socket's queue does. Past
//! [`limits::MAX_KAFKA_WAITING`] bytes of both together the connection is not read.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::select;

use crate::kafka::{FrameError, FrameStart, InOrder, Next, Place};
use crate::limits;
use crate::metrics::Counter;
use crate::shard::budget::Building;
use crate::shard::context::Context;
use crate::shard::event::Event;
use crate::shard::kafka_service;
use crate::shard::net::{OpenRequest, Outgoing, Sender};

/// What a Kafka connection owes its client.
pub struct Exchange {
    /// What every task knows.
    pub context: Rc<Context>,
    /// The sending side.
    pub sender: Rc<Sender>,
    /// The client's address.
    pub peer: String,
    order: RefCell<InOrder<Waiting, Vec<u8>>>,
    /// A request of which not all has come, and its answer if that is there already.
    receiving: Cell<Option<Place>>,
    early: RefCell<Vec<u8>>,
    /// Bytes of requests that wait.
    waiting: Cell<usize>,
    /// Notified when one of these falls.
    room: Event,
}

/// A request that waits for its turn.
pub struct Waiting {
    /// What it is.
    pub start: FrameStart,
    /// All of it.
    pub frame: Vec<u8>,
    open: OpenRequest,
}

impl Exchange {
    /// Of a new connection.
    pub fn new(context: &Rc<Context>, sender: &Rc<Sender>, peer: String) -> Rc<Exchange> {
        Rc::new(Exchange {
            context: context.clone(),
            sender: sender.clone(),
            peer,
            order: RefCell::default(),
            receiving: Cell::new(None),
            early: RefCell::default(),
            waiting: Cell::new(0),
            room: Event::default(),
        })
    }

    /// A request that is answered when all before it are.
    pub fn take(self: &Rc<Exchange>, start: FrameStart, frame: Vec<u8>) {
        self.waiting.set(self.waiting.get() + frame.len());
        self.order.borrow_mut().waiting(Waiting { start, frame, open: self.sender.begin_request() });
        self.advance();
    }

    /// A place for the answer to a request that is begun now.
    pub fn begin(&self) -> Place {
        self.order.borrow_mut().begun()
    }

    /// The request of a place is decided while it is being received: its answer waits for [`Exchange::received`]. librdkafka takes no answer to a request that
    /// it has not sent to the end.
    pub fn receiving(&self, place: Place) {
        self.receiving.set(Some(place));
    }

    /// It has come whole.
    pub fn received(self: &Rc<Exchange>) {
        let place = self.receiving.take();
        let frame = self.early.take();
        if let Some(place) = place.filter(|_| !frame.is_empty()) {
            self.answer(place, frame);
        }
    }

    /// The answer to a request that was begun, a whole frame.
    pub fn answer(self: &Rc<Exchange>, place: Place, frame: Vec<u8>) {
        if self.receiving.get() == Some(place) {
            self.early.replace(frame);
            return;
        }
        self.sender.hold_back(frame.len() as isize);
        self.order.borrow_mut().answered(place, frame);
        self.advance();
    }

    /// Ends the connection for what its client sent.
    pub fn refuse(&self, error: &FrameError) {
        self.context.metrics.add(Counter::FramesRefused, 1);
        tracing::warn!(peer = self.peer, reason = %error, "connection closed");
        // What is answered already still goes out.
        self.sender.flush();
        self.sender.close();
    }

    /// Ends the connection because a request without acknowledgement failed: as with Kafka, that is how its client hears of it.
    pub fn fail_silent(&self, why: &str) {
        tracing::debug!(peer = self.peer, reason = why, "connection closed: a request without acknowledgement failed");
        self.sender.close();
    }

    /// Sends and begins what is first.
    fn advance(self: &Rc<Exchange>) {
        let mut sent = false;
        loop {
            let next = self.order.borrow_mut().poll();
            match next {
                None => break,
                Some(Next::Send(frame)) => {
                    self.sender.hold_back(-(frame.len() as isize));
                    if !frame.is_empty() {
                        self.context.metrics.add(Counter::BytesSent, frame.len() as u64);
                        self.sender.queue(Outgoing::Owned(frame));
                        sent = true;
                    }
                }
                Some(Next::Begin(place, waiting)) => {
                    self.waiting.set(self.waiting.get() - waiting.frame.len());
                    self.spawn(place, waiting);
                }
            }
        }
        self.room.notify();
        if sent {
            self.context.answers.add(&self.sender);
        }
    }

    fn spawn(self: &Rc<Exchange>, place: Place, waiting: Waiting) {
        if self.sender.is_closed() {
            // Nobody hears of it: what was not begun is not done.
            return;
        }
        let exchange = self.clone();
        glommio::spawn_local(async move {
            let Waiting { start, frame, open } = waiting;
            // A fetch takes its turn itself, when there is something to answer. The others are answered when what is queued already has been taken.
            let _turn = match start.is_fetch() {
                true => None,
                false => match exchange.sender.turn(&exchange.context.store.budget).await {
                    Some(turn) => Some(turn),
                    None => return,
                },
            };
            // What is made of a long one is there until it is answered, a fetch's while it waits.
            let mut decoded = Building::new(&exchange.context.store.budget);
            if frame.len() > limits::RECEIVE_BUFFER {
                decoded.add(frame.len() * limits::KAFKA_DECODED);
            }
            match kafka_service::answer(&exchange, start, frame).await {
                Ok(frame) => exchange.answer(place, frame),
                Err(error) => exchange.refuse(&error),
            }
            drop((decoded, open));
        })
        .detach();
    }

    /// Queues the parts of an answer that is sent now, because its request is the first. The place is then answered with nothing.
    pub fn send_parts(&self, parts: Vec<Outgoing>) {
        let bytes: usize = parts.iter().map(Outgoing::len).sum();
        self.context.metrics.add(Counter::BytesSent, bytes as u64);
        parts.into_iter().for_each(|part| self.sender.queue(part));
        self.context.answers.add(&self.sender);
    }

    /// Waits until no more than `bytes` of requests and answers wait for others, or the connection is over.
    pub async fn wait_below(&self, bytes: usize) {
        loop {
            let (room, over) = (self.room.ticket(), self.sender.over().ticket());
            if self.sender.is_closed() || self.waiting.get() + self.sender.held_back() <= bytes {
                return;
            }
            select(pin!(self.room.wait(room)), pin!(self.sender.over().wait(over))).await;
        }
    }

    /// Waits until every request is answered, or the connection is over.
    pub async fn wait_idle(&self) {
        loop {
            let (room, over) = (self.room.ticket(), self.sender.over().ticket());
            if self.sender.is_closed() || self.order.borrow().is_empty() {
                return;
            }
            select(pin!(self.room.wait(room)), pin!(self.sender.over().wait(over))).await;
        }
    }

    /// Waits until the connection may be read again.
    pub async fn wait_for_room(&self) {
        self.wait_below(limits::MAX_KAFKA_WAITING).await;
        self.sender.wait_below(limits::MAX_QUEUED_ANSWER).await;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.sender.hold_back(-(self.sender.held_back() as isize));
    }
}
