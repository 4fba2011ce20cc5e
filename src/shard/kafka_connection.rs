//! A connection that speaks Kafka's protocol: bytes to frames to requests, in order. See [`crate::kafka`] for the bytes and
//! [`crate::shard::kafka_exchange`] for the order of answers.
//!
//! As on a native connection, a frame that fits the shared receive buffer is read in place, and a longer one gets memory from the shard's share before it is
//! read. A long Produce request with one batch for a partition of this shard is received the native way, straight into aligned memory or a file of its own;
//! one with several batches, or for other shards, is received whole, and its batches are copied from there, or batch by batch where it is too long for that
//! ([`crate::shard::kafka_batches`]).
//!
//! What is not served ends the connection with a logged reason, but for ApiVersions, whose answer says what is.

use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use crate::kafka::{self, DecodeError, FrameStart, ProduceRequest};
use crate::limits::{self, ADOPT_APPEND, LARGE_APPEND, RECEIVE_BUFFER};
use crate::shard::adoption;
use crate::shard::connection::{Connection, End, ReceiveLease};
use crate::shard::kafka_exchange::Exchange;
use crate::shard::kafka_produce::{self, Begun};
use crate::shard::pending::PendingProduce;

/// Bytes of a batch that say how it is compressed.
pub(super) const ATTRIBUTES_END: usize = 23;

impl Connection {
    /// Serves requests until the connection ends.
    pub(super) async fn run_kafka(&mut self, peer: String) -> Result<(), End> {
        let exchange = Exchange::new(&self.context, &self.sender, peer);
        loop {
            if self.first_byte.is_none() && self.start < self.end {
                // It came with the last bytes of the frame before.
                self.first_byte = Some(self.last_read);
            }
            match kafka::peek(&self.buffer[self.start..self.end])? {
                Some(start) if start.total_len() > RECEIVE_BUFFER => self.long_kafka_frame(&exchange, start).await?,
                Some(start) if start.total_len() <= self.end - self.start => self.short_kafka_frame(&exchange, start).await?,
                _ => {
                    self.fill().await?;
                    continue;
                }
            }
            self.first_byte = None;
            self.state.deadline.set(0);
            exchange.wait_for_room().await;
            if self.context.draining.get() {
                // What has come is still answered.
                self.sender.wait_over().await;
            }
            if self.sender.is_closed() {
                return Ok(());
            }
        }
    }

    /// A frame that is wholly in the buffer.
    async fn short_kafka_frame(&mut self, exchange: &Rc<Exchange>, start: FrameStart) -> Result<(), End> {
        self.frame_received(self.last_read);
        let frame = &self.buffer[self.start..self.start + start.total_len()];
        match start.is_produce() {
            true => kafka_produce::produce(exchange, start, frame).await?,
            false => exchange.take(start, frame.to_vec()),
        }
        self.start += start.total_len();
        Ok(())
    }

    /// A frame that gets memory of its own.
    async fn long_kafka_frame(&mut self, exchange: &Rc<Exchange>, start: FrameStart) -> Result<(), End> {
        if !start.is_produce() {
            // What waits for its turn is held here no longer than it takes to be read.
            self.state.deadline.set(0);
            exchange.wait_idle().await;
            let frame = self.receive_kafka_frame(start, start.total_len()).await?.0;
            exchange.take(start, frame);
            return Ok(());
        }
        if let Some(lone) = self.lone_batch(exchange, start).await? {
            let answered = lone.begun.place;
            answered.into_iter().for_each(|place| exchange.receiving(place));
            self.receive_lone_batch(start, lone).await?;
            exchange.received();
            return Ok(());
        }
        if start.total_len() > limits::MAX_KAFKA_PRODUCE {
            return self.streamed_kafka_produce(exchange, start).await;
        }
        let (frame, _lease) = self.receive_kafka_frame(start, start.total_len()).await?;
        Ok(kafka_produce::produce(exchange, start, &frame).await?)
    }

    /// All of a frame, into memory of the share.
    async fn receive_kafka_frame(&mut self, start: FrameStart, memory: usize) -> Result<(Vec<u8>, ReceiveLease), End> {
        let lease = self.lease_kafka_frame(start, memory).await;
        let mut frame = vec![0; start.total_len()];
        self.take(&mut frame).await?;
        self.frame_received(Instant::now());
        Ok((frame, lease))
    }

    /// Waits for memory; what came so far came in time, the rest has its time from here.
    pub(super) async fn lease_kafka_frame(&mut self, start: FrameStart, memory: usize) -> ReceiveLease {
        self.state.deadline.set(0);
        let lease = ReceiveLease::take(&self.context, memory).await;
        if start.is_produce() {
            self.context.store.wait_for_memory().await;
        }
        let allowed = limits::FRAME_DEADLINE_S + start.total_len() as u64 / limits::MIN_FRAME_RATE;
        self.state.deadline.set(self.context.store.seconds.get() + allowed);
        lease
    }

    /// The one batch of a Produce request, if it has one only and that is received the native way; nothing of the frame is taken yet.
    async fn lone_batch(&mut self, exchange: &Rc<Exchange>, start: FrameStart) -> Result<Option<LoneBatch>, End> {
        loop {
            let at_hand = &self.buffer[self.start..self.end];
            let (head, body) = match kafka::decode_head(start, at_hand) {
                Ok(read) => read,
                Err(DecodeError::Short { .. }) if at_hand.len() < RECEIVE_BUFFER => {
                    self.fill().await?;
                    continue;
                }
                Err(error) => return Err(kafka_produce::malformed(start, error).into()),
            };
            let request = match kafka::decode_produce_start(body, start.version) {
                Ok(Some(request)) => request,
                Ok(None) => return Ok(None),
                Err(DecodeError::Short { .. } | DecodeError::Count { .. }) if at_hand.len() < RECEIVE_BUFFER => {
                    self.fill().await?;
                    continue;
                }
                Err(error) => return Err(kafka_produce::malformed(start, error).into()),
            };
            let Some(records) = records_of(&request) else { return Ok(None) };
            if records.end > start.total_len() {
                let error =
                    DecodeError::Short { needed: records.len(), available: start.total_len() - records.start.min(start.total_len()) };
                return Err(kafka_produce::malformed(start, error).into());
            }
            if records.len() < LARGE_APPEND || start.total_len() - records.end > RECEIVE_BUFFER {
                return Ok(None);
            }
            if at_hand.len() < records.start + ATTRIBUTES_END && at_hand.len() < RECEIVE_BUFFER {
                self.fill().await?;
                continue;
            }
            let planned = kafka_produce::plan(&self.context, start, head.correlation, &request, at_hand);
            return Ok(Some(LoneBatch { records, begun: planned.begin(exchange) }));
        }
    }

    /// Receives a batch that was found to be the only one, and what is behind it.
    async fn receive_lone_batch(&mut self, start: FrameStart, lone: LoneBatch) -> Result<(), End> {
        let LoneBatch { records, begun: Begun { produce, answer, .. } } = lone;
        let len = records.len();
        let cell = produce.batches.first().and_then(|batch| self.context.store.partition(&batch.partition));
        let memory = match &cell {
            Some(_) if len > ADOPT_APPEND => adoption::MEMORY,
            Some(_) => start.total_len(),
            None if len > ADOPT_APPEND => 0,
            None => start.total_len(),
        };
        let lease = self.lease_kafka_frame(start, memory).await;
        self.start += records.start;
        match cell {
            Some(cell) => {
                let done = PendingProduce::new(std::iter::once(cell.id), (&produce).into(), answer).completion(0);
                match len > ADOPT_APPEND {
                    true => self.adopted_produce(&cell, len, false, done).await?,
                    false => self.large_produce(&cell, len, done).await?,
                }
            }
            None if produce.batches.is_empty() || len > ADOPT_APPEND => {
                // Refused, or too much to hold for another shard: its client is to send it there.
                self.skip(len).await?;
                let pending = PendingProduce::new(produce.batches.iter().map(|batch| batch.partition), (&produce).into(), answer);
                for (index, batch) in produce.batches.iter().enumerate() {
                    pending.completion(index).complete(Err(self.context.unknown_or_elsewhere(&batch.partition)));
                }
            }
            None => {
                let mut payload = vec![0; len];
                self.take(&mut payload).await?;
                self.frame_received(Instant::now());
                let mut produce = produce;
                produce.batches.iter_mut().for_each(|batch| batch.range = 0..len);
                crate::shard::produce::produce(&self.context, &produce, &payload, answer).await;
            }
        }
        drop(lease);
        // Tagged fields: nothing that changes what was asked. They are to come as promptly as the batch was.
        self.state.deadline.set(self.context.store.seconds.get() + limits::FRAME_DEADLINE_S);
        self.skip(start.total_len() - records.end).await?;
        self.state.deadline.set(0);
        Ok(())
    }
}

/// A Produce request of one batch, begun before the batch came.
struct LoneBatch {
    /// Where the batch is in the frame.
    records: Range<usize>,
    begun: Begun,
}

fn records_of(request: &ProduceRequest<'_>) -> Option<Range<usize>> {
    request.topics.first()?.partitions.first()?.records.clone()
}
