//! What is on its way to another node: messages of many partitions, put together into frames.
//!
//! Whoever has something to say adds it; the outbox's own task runs after them and sends what has come together since as one frame. So a hundred partitions that moved at the
//! same moment cost one frame and one call. Batches are the pieces of the tail, or of what was read from disk: nothing is copied.
//!
//! A connection with nothing to say sends a beat twice in a while, and one that has heard nothing for a while is ended: a partition in which nothing happens costs nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use flatbuffers::FlatBufferBuilder;

use crate::limits::{LINK_BEAT_MS, LINK_DEAD_MS, LINK_SEGMENTS, LINK_WINDOW, MAX_LINK_MESSAGES, MAX_LINK_PAYLOAD, PARTS_QUEUED};
use crate::replication::Message;
use crate::replication::codec::{self, Frame, PartitionMessage, SegmentPart};
use crate::shard::event::Event;
use crate::shard::net::{Outgoing, Sender};
use crate::types::TopicPartition;

/// A message with the bytes that go with it.
struct Item {
    message: PartitionMessage,
    pieces: Vec<Outgoing>,
}

/// The sending side of a connection between two shards of two nodes.
pub struct Outbox {
    items: RefCell<VecDeque<Item>>,
    /// Bytes of the items' pieces.
    bytes: Cell<usize>,
    work: Event,
    /// Something was taken into a frame, or the connection is over.
    taken: Event,
    sender: Rc<Sender>,
    sent_at: Cell<Instant>,
    received_at: Cell<Instant>,
    /// This side does not read, since it has enough to do: that nothing is heard is its own doing.
    is_busy: Cell<bool>,
    /// Whole segments that are being sent.
    segments: Cell<usize>,
    fewer_segments: Event,
}

/// The right to send a whole segment; ends when dropped.
pub struct SegmentTurn(Rc<Outbox>);

impl Drop for SegmentTurn {
    fn drop(&mut self) {
        self.0.segments.set(self.0.segments.get() - 1);
        self.0.fewer_segments.notify();
    }
}

impl Outbox {
    /// Sends through `sender`, whose connection has just come about.
    pub fn new(sender: Rc<Sender>) -> Rc<Outbox> {
        let now = Instant::now();
        Rc::new(Outbox {
            items: RefCell::default(),
            bytes: Cell::new(0),
            work: Event::default(),
            taken: Event::default(),
            sender,
            sent_at: Cell::new(now),
            received_at: Cell::new(now),
            is_busy: Cell::new(false),
            segments: Cell::new(0),
            fewer_segments: Event::default(),
        })
    }

    /// Adds a message.
    pub fn push(&self, partition: TopicPartition, message: Message, pieces: Vec<Outgoing>) {
        if self.is_closed() {
            return;
        }
        let len: usize = pieces.iter().map(Outgoing::len).sum();
        let payload_len = u32::try_from(len).expect("a message's bytes are bounded");
        self.bytes.set(self.bytes.get() + len);
        self.items.borrow_mut().push_back(Item { message: PartitionMessage { partition, message, payload_len }, pieces });
        self.work.notify();
    }

    /// Whether more bytes may be added: what waits is bounded for all partitions of the connection together.
    pub fn has_room(&self) -> bool {
        self.bytes.get() + self.sender.queued_bytes() < LINK_WINDOW
    }

    /// Waits until there is room, or the connection is over.
    pub async fn wait_for_room(&self) {
        loop {
            let ticket = self.taken.ticket();
            if self.has_room() || self.is_closed() {
                return;
            }
            // Each of the two waits ends by another task of this executor, so neither may be asked for while there is nothing to wait for.
            match self.sender.queued_bytes() > LINK_WINDOW / 2 {
                true => self.sender.wait_below(LINK_WINDOW / 2).await,
                false => self.taken.wait(ticket).await,
            }
        }
    }

    /// Waits until few enough whole segments are being sent, or the connection is over.
    pub async fn segment_turn(self: &Rc<Outbox>) -> SegmentTurn {
        loop {
            let ticket = self.fewer_segments.ticket();
            if self.segments.get() < LINK_SEGMENTS || self.is_closed() {
                self.segments.set(self.segments.get() + 1);
                return SegmentTurn(self.clone());
            }
            self.fewer_segments.wait(ticket).await;
        }
    }

    /// Waits until so little is queued that a part of a segment may follow, or the connection is over.
    pub async fn wait_for_part(&self) {
        self.sender.wait_below(PARTS_QUEUED).await;
    }

    /// Sends a part of a segment, at once: what was added and not sent yet comes behind it, and waits for this part only.
    pub fn send_part(&self, part: SegmentPart, bytes: Outgoing) {
        if !self.is_closed() {
            self.send(&Frame::SegmentPart(part), vec![bytes], &mut FlatBufferBuilder::new());
            self.sender.flush();
        }
    }

    /// Sends a frame that has no bytes behind it, at once.
    pub fn send_bare(&self, frame: &Frame) {
        if !self.is_closed() {
            self.send(frame, Vec::new(), &mut FlatBufferBuilder::new());
            self.sender.flush();
        }
    }

    /// Reads no more of the connection until `room` is there.
    pub async fn read_on_after(&self, room: impl Future<Output = ()>) {
        self.is_busy.set(true);
        room.await;
        self.heard();
    }

    /// Something was received, or is about to be.
    pub fn heard(&self) {
        self.is_busy.set(false);
        self.received_at.set(Instant::now());
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.sender.close();
        self.work.notify();
        self.taken.notify();
        self.fewer_segments.notify();
    }

    /// Whether the connection is over.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// The task that sends; ends with the connection.
    pub async fn run(self: Rc<Outbox>) {
        let mut builder = FlatBufferBuilder::new();
        while !self.is_closed() {
            let ticket = self.work.ticket();
            while let Some((items, pieces)) = self.next_frame() {
                self.send(&Frame::Messages(items), pieces, &mut builder);
            }
            self.sender.flush();
            // However much there is to say: a peer may take it all into its sockets and never look at it.
            let dead_at = (!self.is_busy.get()).then(|| self.received_at.get() + Duration::from_millis(LINK_DEAD_MS));
            if dead_at.is_some_and(|dead_at| dead_at <= Instant::now()) {
                self.close();
                break;
            }
            let beat_at = self.sent_at.get() + Duration::from_millis(LINK_BEAT_MS);
            if self.work.wait_until(ticket, dead_at.map_or(beat_at, |dead_at| dead_at.min(beat_at))).await {
                continue;
            }
            if self.sent_at.get() + Duration::from_millis(LINK_BEAT_MS) <= Instant::now() {
                self.send(&Frame::Beat, Vec::new(), &mut builder);
            }
        }
        self.items.borrow_mut().clear();
    }

    fn send(&self, frame: &Frame, pieces: Vec<Outgoing>, builder: &mut FlatBufferBuilder<'_>) {
        let mut head = Vec::new();
        codec::encode(frame, pieces.iter().map(Outgoing::len).sum(), builder, &mut head);
        self.sender.queue(Outgoing::Owned(head));
        pieces.into_iter().for_each(|piece| self.sender.queue(piece));
        self.sent_at.set(Instant::now());
    }

    /// The next messages that fit one frame: at least one, whatever its size.
    fn next_frame(&self) -> Option<(Vec<PartitionMessage>, Vec<Outgoing>)> {
        let mut items = self.items.borrow_mut();
        let (mut messages, mut pieces, mut len) = (Vec::new(), Vec::new(), 0);
        while let Some(next) = items.front() {
            let with_next = len + next.message.payload_len as usize;
            if !messages.is_empty() && (with_next > MAX_LINK_PAYLOAD || messages.len() == MAX_LINK_MESSAGES) {
                break;
            }
            let item = items.pop_front()?;
            len = with_next;
            messages.push(item.message);
            pieces.extend(item.pieces);
        }
        self.bytes.set(self.bytes.get() - len);
        self.taken.notify();
        (!messages.is_empty()).then_some((messages, pieces))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use glommio::LocalExecutor;
    use glommio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::metrics::ShardMetrics;
    use crate::replication::message::{Ack, StreamId};
    use crate::types::TopicId;

    const PARTITION: TopicPartition = TopicPartition { topic: TopicId([7; 16]), partition: 0 };

    /// An outbox whose connection sends nothing, and the other end of it.
    async fn outbox() -> (Rc<Outbox>, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let other = listener.accept().await.unwrap();
        (Outbox::new(Sender::new(&stream, Rc::default(), Arc::new(ShardMetrics::new(0)))), stream, other)
    }

    fn message() -> Message {
        let stream = StreamId { leader_epoch: 1, node_epoch: 1, incarnation: 1, session: 1 };
        Message::Ack(Ack { stream, durable_end: 0, log_end: 0, rewind: false })
    }

    #[test]
    fn who_waits_for_room_lets_others_make_it() {
        LocalExecutor::default().run(async {
            let (outbox, _stream, _other) = outbox().await;
            // Half of it is in the sender's queue, where that is little enough, and half waits to be put into frames.
            outbox.sender.queue(Outgoing::Owned(vec![0; LINK_WINDOW / 2]));
            outbox.push(PARTITION, message(), vec![Outgoing::Owned(vec![0; LINK_WINDOW / 2])]);
            assert!(!outbox.has_room());
            let (waiting, has_ended) = (outbox.clone(), Rc::new(Cell::new(false)));
            let ended = has_ended.clone();
            let task = glommio::spawn_local(async move {
                waiting.wait_for_room().await;
                ended.set(true);
            });
            // A wait that never yields would not let this go on.
            for _ in 0..10 {
                glommio::executor().yield_task_queue_now().await;
            }
            assert!(!has_ended.get(), "there is no room yet");
            let (messages, pieces) = outbox.next_frame().unwrap();
            assert_eq!((messages.len(), pieces.len()), (1, 1));
            task.await;
            assert!(outbox.has_room());
        });
    }

    #[test]
    fn silence_ends_a_connection_however_much_there_is_to_say() {
        LocalExecutor::default().run(async {
            let (outbox, _stream, _other) = outbox().await;
            let long_ago = Instant::now().checked_sub(Duration::from_millis(LINK_DEAD_MS)).unwrap();
            outbox.received_at.set(long_ago);
            outbox.is_busy.set(true);
            let task = glommio::spawn_local(outbox.clone().run());
            for _ in 0..10 {
                outbox.push(PARTITION, message(), Vec::new());
                glommio::executor().yield_task_queue_now().await;
            }
            assert!(!outbox.is_closed(), "it does not listen itself");
            outbox.is_busy.set(false);
            for _ in 0..10 {
                outbox.push(PARTITION, message(), Vec::new());
                glommio::executor().yield_task_queue_now().await;
            }
            assert!(outbox.is_closed(), "something was said each time, and nothing heard");
            task.await;
        });
    }
}
