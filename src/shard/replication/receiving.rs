//! Whole segments that come from the leader: their parts go into a file, and the machine sees the segment once all of it is there and checks.

use std::rc::Rc;

use bytes::Bytes;

use crate::log::segment_check::{SegmentFault, SegmentWord};
use crate::metrics::Counter;
use crate::partition::ReplicaRefusal;
use crate::replication::codec::{SegmentPart, WANTED_STREAM};
use crate::replication::message::{Refused, Segment, StreamId};
use crate::replication::{Effect, Message, NodeId, Refusal};
use crate::shard::receipt::{Receipt, Received};
use crate::shard::replica::ReplicaError;
use crate::shard::replication::outbox::Outbox;
use crate::shard::replication::replica::{Life, Machine};
use crate::types::Offset;

/// A segment that comes in.
pub(super) struct Incoming {
    stream: StreamId,
    on: Rc<Outbox>,
    receipt: Receipt,
}

impl Life {
    /// A part. One that does not go on where the one before it ended is left out, and with it the segment.
    pub(super) async fn take_part(&mut self, from: NodeId, part: &SegmentPart, payload: &Bytes, on: &Rc<Outbox>) {
        if part.stream == WANTED_STREAM {
            return self.take_wanted_part(part, payload, on).await;
        }
        let Some(Machine::Follower(follower)) = &self.machine else { return };
        if !follower.is_aligned() || follower.stream() != Some(part.stream) {
            return;
        }
        let begins = part.position == 0 && part.base_offset == follower.log().log_end;
        if begins {
            self.drop_incoming().await;
            let (store, queue) = (&self.context.store, self.context.replication.segment_queue());
            match Receipt::begin(store, &self.replica.cell, queue, part.base_offset, part.total).await {
                Ok(receipt) => self.incoming = Some(Incoming { stream: part.stream, on: on.clone(), receipt }),
                Err(error) => return self.give_up(&format!("a segment at offset {}: {error}", part.base_offset)),
            }
        }
        let Some(incoming) = &mut self.incoming else { return };
        let (total, received) = incoming.receipt.progress();
        let goes_on = (incoming.stream, incoming.receipt.base_offset()) == (part.stream, part.base_offset);
        if !goes_on || (total, received) != (part.total, part.position) {
            return self.drop_incoming().await;
        }
        self.context.metrics.add(Counter::ReplicationBytesReceived, payload.len() as u64);
        self.context.metrics.add(Counter::SegmentBytesReceived, payload.len() as u64);
        if let Err(error) = incoming.receipt.take(payload).await {
            self.drop_incoming().await;
            self.refuse_segment(from, part.stream, part.base_offset, &error, on);
        }
    }

    /// All parts of a segment were sent: the machine hears of it if they are here and are what the leader says.
    pub(super) async fn take_segment(&mut self, from: NodeId, segment: &Segment, on: &Rc<Outbox>, effects: &mut Vec<Effect>) {
        let is_it = |incoming: &Incoming| (incoming.stream, incoming.receipt.base_offset()) == (segment.stream, segment.base_offset);
        let Some(Machine::Follower(follower)) = &mut self.machine else { return self.drop_incoming().await };
        let incoming = self.incoming.take();
        let receipt = match incoming {
            Some(incoming) if is_it(&incoming) => incoming.receipt,
            other => {
                follower.handle_segment_lost(segment, effects);
                if let Some(other) = other {
                    other.receipt.abandon().await;
                }
                return;
            }
        };
        let received = match receipt.finish(&word_of(segment)).await {
            Ok(received) => received,
            Err(error) => return self.refuse_segment(from, segment.stream, segment.end_offset, &error, on),
        };
        follower.handle_segment(from, segment, effects);
        let is_taken = effects.iter().any(|effect| matches!(effect, Effect::Append { .. }));
        match is_taken {
            true => self.received = Some(received),
            false => received.abandon().await,
        }
    }

    /// Installs the segment that the machine takes.
    pub(super) async fn install(&mut self, received: Received) {
        let Some(Machine::Follower(follower)) = &self.machine else { return received.abandon().await };
        let epoch = follower.stream().map_or(-1, |stream| stream.leader_epoch);
        let base_offset = received.segment().info.base_offset;
        if let Err(error) = received.install(epoch).await {
            self.give_up(&format!("a segment at offset {base_offset}: {error}"));
        }
    }

    /// A segment whose stream is over, or whose connection is, leaves no trace.
    pub(super) async fn drop_stale_incoming(&mut self) {
        let Some(incoming) = &self.incoming else { return };
        let stream = match &self.machine {
            Some(Machine::Follower(follower)) => follower.stream(),
            _ => None,
        };
        if stream != Some(incoming.stream) || incoming.on.is_closed() {
            self.drop_incoming().await;
        }
    }

    pub(super) async fn drop_incoming(&mut self) {
        if let Some(incoming) = self.incoming.take() {
            incoming.receipt.abandon().await;
        }
    }

    /// Bytes that are not what they should be are refused; where the store could not, the partition begins anew.
    fn refuse_segment(&mut self, from: NodeId, stream: StreamId, offset: Offset, error: &ReplicaError, on: &Outbox) {
        let ReplicaError::Refused(what) = error else { return self.give_up(&format!("a segment for offset {offset}: {error}")) };
        tracing::warn!(partition = %self.id, from, offset, %what, "a segment of the leader is refused");
        self.context.metrics.add(Counter::ReplicationRefused, 1);
        let (expected, actual) = match what {
            ReplicaRefusal::Shipped(SegmentFault::RunningHash { expected, actual, .. }) => (*expected, *actual),
            _ => (0, 0),
        };
        on.push(self.id, Message::Refused(Refused { stream, refusal: Refusal::RunningHash { offset, expected, actual } }), Vec::new());
    }
}

fn word_of(segment: &Segment) -> SegmentWord {
    SegmentWord {
        end_offset: segment.end_offset,
        rewrite_generation: segment.rewrite_generation,
        adopted: segment.adopted,
        hash_before: Some(segment.hash_before),
        hash_after: segment.hash_after,
        epochs: segment.epochs.iter().map(|begin| (begin.epoch, begin.start)).collect(),
    }
}
