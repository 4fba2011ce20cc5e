//! A Produce request of Kafka's protocol that is too long to be held: its batches are received one after the other, each on its way before the next one comes.
//!
//! A batch goes the way that one alone in its request does: through memory of the share, straight into aligned memory, or into a file of its own. What does not decode ends
//! the connection as ever; the batches before it are appended by then, and their client does not know, as after any connection that ends.

use std::rc::Rc;

use crate::kafka::{self, DecodeError, FrameStart, ProducePart, ProduceParts};
use crate::limits::{ADOPT_APPEND, FRAME_DEADLINE_S, LARGE_APPEND, MIN_FRAME_RATE, RECEIVE_BUFFER};
use crate::shard::adoption;
use crate::shard::connection::{Connection, End};
use crate::shard::kafka_connection::ATTRIBUTES_END;
use crate::shard::kafka_exchange::Exchange;
use crate::shard::kafka_produce::{Streamed, malformed};
use crate::shard::pending::Completion;
use crate::shard::produce;
use crate::types::TopicPartition;

impl Connection {
    /// Receives a request batch by batch.
    pub(super) async fn streamed_kafka_produce(&mut self, exchange: &Rc<Exchange>, start: FrameStart) -> Result<(), End> {
        let mut left = start.total_len();
        let (streamed, mut parts) = self.streamed_head(exchange, start, &mut left).await?;
        loop {
            let allowed = FRAME_DEADLINE_S + left as u64 / MIN_FRAME_RATE;
            self.state.deadline.set(self.context.store.seconds.get() + allowed);
            match self.next_part(start, &mut parts, &mut left).await? {
                ProducePart::End => break,
                ProducePart::Topic(name) => streamed.topic(name),
                ProducePart::Batch(index, len) => {
                    let len = len.unwrap_or(0);
                    self.at_hand(ATTRIBUTES_END.min(len)).await?;
                    let first = &self.buffer[self.start..self.end];
                    match streamed.batch(index, &first[..first.len().min(len)]) {
                        None => self.skip(len).await?,
                        Some((id, done)) => self.streamed_batch(start, id, len, done).await?,
                    }
                    left -= len;
                }
            }
        }
        // Bytes behind a body are passed over.
        self.skip(left).await?;
        self.state.deadline.set(0);
        streamed.end();
        Ok(())
    }

    /// What is before the topics.
    async fn streamed_head(
        &mut self,
        exchange: &Rc<Exchange>,
        start: FrameStart,
        left: &mut usize,
    ) -> Result<(Streamed, ProduceParts), End> {
        loop {
            let bytes = &self.buffer[self.start..self.end];
            let beyond = left.saturating_sub(bytes.len());
            let flexible = start.api.is_flexible(start.version);
            let decoded = kafka::decode_head(start, bytes)
                .and_then(|(head, body)| Ok((head.correlation, kafka::decode_produce_head(body, start.version, flexible, beyond)?)));
            match decoded {
                Ok((correlation, (request, taken, parts))) => {
                    let streamed = Streamed::begin(exchange, start, correlation, &request);
                    self.start += taken;
                    *left -= taken;
                    return Ok((streamed, parts));
                }
                Err(DecodeError::Short { .. }) if bytes.len() < RECEIVE_BUFFER && beyond > 0 => self.fill().await?,
                Err(error) => return Err(malformed(start, error).into()),
            }
        }
    }

    async fn next_part(&mut self, start: FrameStart, parts: &mut ProduceParts, left: &mut usize) -> Result<ProducePart, End> {
        loop {
            let bytes = &self.buffer[self.start..self.end];
            let bytes = &bytes[..bytes.len().min(*left)];
            match parts.next(bytes, *left - bytes.len()) {
                Ok((part, taken)) => {
                    self.start += taken;
                    *left -= taken;
                    return Ok(part);
                }
                Err(DecodeError::Short { .. }) if bytes.len() < RECEIVE_BUFFER.min(*left) => self.fill().await?,
                Err(error) => return Err(malformed(start, error).into()),
            }
        }
    }

    /// Reads until `len` bytes are in the buffer.
    async fn at_hand(&mut self, len: usize) -> Result<(), End> {
        while self.end - self.start < len {
            self.fill().await?;
        }
        Ok(())
    }

    async fn streamed_batch(&mut self, start: FrameStart, id: TopicPartition, len: usize, done: Completion) -> Result<(), End> {
        let cell = self.context.store.partition(&id);
        let _lease = self.lease_kafka_frame(start, if len > ADOPT_APPEND { adoption::MEMORY } else { len }).await;
        match cell {
            Some(cell) if len > ADOPT_APPEND => self.adopted_produce(&cell, len, false, done).await,
            Some(cell) if len >= LARGE_APPEND => self.large_produce(&cell, len, done).await,
            None if len > ADOPT_APPEND => self.refuse_unread(self.context.unknown_or_elsewhere(&id), len, done).await,
            _ => {
                let mut bytes = vec![0; len];
                self.take(&mut bytes).await?;
                produce::append_anywhere(&self.context, id, bytes, done).await;
                Ok(())
            }
        }
    }
}
