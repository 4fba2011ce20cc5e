//! A client's connection: bytes to frames to requests, in order; answers go out through the connection's sender.
//!
//! An idle connection holds no buffer. Frames that fit the shared receive buffer are parsed in place, many per read, and a small batch is
//! copied once, from there into the journal group. A longer frame gets memory of its own, taken from the shard's share before a byte is read; a
//! single large batch is received straight into the aligned memory from which it will be written.
//!
//! Bad input: a frame that can't be one ends the connection; a header that does not verify is answered with a typed error
//! where its correlation id can be read. A frame that comes too slowly ends the connection (see [`crate::shard::housekeeping`]).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Instant;

use futures_util::io::ReadHalf;
use futures_util::{AsyncRead, AsyncReadExt};
use glommio::net::TcpStream;

use crate::batch;
use crate::checksum::Crc32c;
use crate::kafka;
use crate::limits::{self, ADOPT_APPEND, BLOCK, LARGE_APPEND, RECEIVE_BUFFER};
use crate::metrics::{Counter, Gauge, Stage};
use crate::request::{Acks, Produce, ProduceBatch, ProduceResult, Refusal, Request, Response};
use crate::shard::adoption;
use crate::shard::buffer::AppendBuffer;
use crate::shard::context::{ConnectionState, Context};
use crate::shard::net::{OpenRequest, Outgoing, Sender};
use crate::shard::partition_cell::PartitionCell;
use crate::shard::pending::{Answer, Completion, Patience, PendingProduce};
use crate::shard::produce::{self, append_large, batch_refusal, large_keys};
use crate::shard::service;
use crate::shard::store::{LargeBatch, head_len};
use crate::wire::handshake::{self, HelloReply};
use crate::wire::{self, FrameError, FramePrefix, MAGIC, PREFIX_LEN, ResponseEncoder, WireError};

/// Why a connection ends from this side.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the client closed it")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("{0}")]
    Kafka(#[from] kafka::FrameError),
    #[error("it did not begin with the protocol's magic")]
    NoMagic,
    #[error("refused: {0}")]
    Refused(String),
}

/// Serves a connection until it ends.
pub async fn serve(context: Rc<Context>, stream: TcpStream, number: u64) {
    let peer = stream.peer_addr().map_or_else(|_| "unknown".into(), |a| a.to_string());
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let sender = Sender::new(&stream, context.store.budget.answers().clone(), context.metrics.clone());
    let (read, write) = stream.split();
    let writer = glommio::spawn_local(sender.clone().run(write)).detach();
    let state =
        Rc::new(ConnectionState { sender: sender.clone(), deadline: Cell::new(context.store.seconds.get() + limits::HELLO_DEADLINE_S) });
    context.connections.borrow_mut().insert(number, state.clone());
    context.metrics.set(Gauge::Connections, context.connections.borrow().len() as u64);
    let mut connection = Connection {
        context: context.clone(),
        socket: read,
        peer: peer.clone(),
        sender: sender.clone(),
        state,
        buffer: Vec::new(),
        start: 0,
        end: 0,
        spare: Vec::new(),
        first_byte: None,
        last_read: Instant::now(),
    };
    let ended = match connection.is_native().await {
        Ok(true) => connection.run().await,
        Ok(false) => connection.run_kafka(peer.clone()).await,
        Err(end) => Err(end),
    };
    connection.release_buffer();
    match &ended {
        Err(End::Closed) | Ok(()) => {}
        Err(end @ (End::Frame(_) | End::Wire(_) | End::Kafka(_) | End::NoMagic)) => {
            context.metrics.add(Counter::FramesRefused, 1);
            tracing::warn!(peer, reason = %end, "connection closed");
        }
        Err(end) => tracing::debug!(peer, reason = %end, "connection closed"),
    }
    // What is answered already still goes out.
    context.answers.flush();
    sender.close();
    writer.await;
    context.connections.borrow_mut().remove(&number);
    context.metrics.set(Gauge::Connections, context.connections.borrow().len() as u64);
}

/// The receiving side of a connection.
pub(super) struct Connection {
    pub(super) context: Rc<Context>,
    socket: ReadHalf<TcpStream>,
    /// The client's address.
    peer: String,
    pub(super) sender: Rc<Sender>,
    pub(super) state: Rc<ConnectionState>,
    /// Leased while bytes are in it; they are [start, end).
    pub(super) buffer: Vec<u8>,
    pub(super) start: usize,
    pub(super) end: usize,
    /// The list of the last produce request, for the next.
    spare: Vec<ProduceBatch>,
    /// When the first byte of the frame in hand was read.
    pub(super) first_byte: Option<Instant>,
    /// When the buffer got bytes last.
    pub(super) last_read: Instant,
}

impl Connection {
    /// Whether the client speaks the native protocol, told by its first byte: of a Kafka request that is the highest of a length, which is not negative.
    async fn is_native(&mut self) -> Result<bool, End> {
        while self.start == self.end {
            self.fill().await?;
        }
        Ok(self.buffer[self.start] == MAGIC[0])
    }

    async fn run(&mut self) -> Result<(), End> {
        self.handshake().await?;
        loop {
            if self.first_byte.is_none() && self.start < self.end {
                // It came with the last bytes of the frame before.
                self.first_byte = Some(self.last_read);
            }
            match wire::peek(&self.buffer[self.start..self.end], limits::MAX_FRAME)? {
                Some(prefix) if prefix.total_len() > RECEIVE_BUFFER => self.long_frame(prefix).await?,
                Some(prefix) if prefix.total_len() <= self.end - self.start => self.short_frame(prefix).await?,
                _ => {
                    self.fill().await?;
                    continue;
                }
            }
            self.first_byte = None;
            self.state.deadline.set(0);
            self.sender.wait_below(limits::MAX_QUEUED_ANSWER).await;
            if self.context.draining.get() {
                // What has come is still answered.
                self.sender.wait_over().await;
            }
            if self.sender.is_closed() {
                return Ok(());
            }
        }
    }

    async fn handshake(&mut self) -> Result<(), End> {
        while self.end - self.start < MAGIC.len() {
            let so_far = &self.buffer[self.start..self.end];
            if so_far != &MAGIC[..so_far.len()] {
                return Err(End::NoMagic);
            }
            self.fill().await?;
        }
        if self.buffer[self.start..self.start + MAGIC.len()] != MAGIC {
            return Err(End::NoMagic);
        }
        self.start += MAGIC.len();
        let prefix = loop {
            match wire::peek(&self.buffer[self.start..self.end], RECEIVE_BUFFER - PREFIX_LEN)? {
                Some(prefix) if prefix.total_len() <= self.end - self.start => break prefix,
                _ => self.fill().await?,
            }
        };
        let frame = &self.buffer[self.start..self.start + prefix.total_len()];
        prefix.check_header(&frame[prefix.header_range()])?;
        let hello = handshake::decode_hello(&frame[prefix.header_range()])?;
        self.start += prefix.total_len();
        self.first_byte = None;
        self.state.deadline.set(0);
        let reply = hello.choose_version().map(|version| HelloReply {
            version,
            cluster: self.context.identity.cluster,
            node: self.context.identity.node,
            shard: self.context.mesh.shard(),
            max_frame: limits::MAX_FRAME as u32,
            max_in_flight: limits::MAX_IN_FLIGHT,
            software: concat!("corelane ", env!("CARGO_PKG_VERSION")).into(),
        });
        let mut out = Vec::new();
        handshake::encode_hello_reply(&reply, &mut out);
        self.sender.queue(Outgoing::Owned(out));
        self.sender.flush();
        reply.map(drop).map_err(|refusal| End::Refused(refusal.message))
    }

    /// Reads more into the buffer. With nothing in it, the buffer is given back while there is nothing to read.
    pub(super) async fn fill(&mut self) -> Result<(), End> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.start < self.end && self.state.deadline.get() == 0 {
            // The beginning of a frame came with the end of the one before.
            self.state.deadline.set(self.context.store.seconds.get() + limits::FRAME_DEADLINE_S);
        }
        let received = poll_fn(|task| {
            if self.buffer.is_empty() {
                self.buffer = self.context.lease_buffer();
            }
            let space = &mut self.buffer[self.end..];
            let polled = Pin::new(&mut self.socket).poll_read(task, space);
            if polled.is_pending() && self.end == 0 {
                self.context.return_buffer(std::mem::take(&mut self.buffer));
            }
            polled
        })
        .await?;
        if received == 0 {
            return Err(End::Closed);
        }
        self.context.metrics.add(Counter::BytesReceived, received as u64);
        self.last_read = Instant::now();
        self.first_byte.get_or_insert(self.last_read);
        if self.state.deadline.get() == 0 {
            self.state.deadline.set(self.context.store.seconds.get() + limits::FRAME_DEADLINE_S);
        }
        self.end += received;
        Ok(())
    }

    /// The frame in hand is here whole: it came in time, and how long it waits for room is not the client's doing. Notes how long it took from its first byte.
    pub(super) fn frame_received(&mut self, at: Instant) {
        self.state.deadline.set(0);
        if let Some(first) = self.first_byte.take() {
            self.context.metrics.record(Stage::Receive, at.saturating_duration_since(first).as_nanos() as u64);
        }
    }

    fn release_buffer(&mut self) {
        if !self.buffer.is_empty() {
            self.context.return_buffer(std::mem::take(&mut self.buffer));
        }
    }

    /// A frame that is wholly in the buffer.
    async fn short_frame(&mut self, prefix: FramePrefix) -> Result<(), End> {
        self.frame_received(self.last_read);
        let frame = self.start..self.start + prefix.total_len();
        let header = &self.buffer[frame.start..][prefix.header_range()];
        prefix.check_header(header)?;
        let decoded = wire::decode_request_reusing(header, prefix.payload_len(), &mut self.spare);
        let payload = frame.start + prefix.payload_range().start..frame.end;
        match decoded {
            Ok((correlation, Request::Produce(produce))) => {
                self.context.metrics.count_request(crate::metrics::RequestKind::Produce);
                let answer = self.answer(correlation, produce.acks);
                if produce.crc_trailer {
                    let mut patched = self.buffer[payload].to_vec();
                    let produce = patch_crc(produce, &mut patched);
                    produce::produce(&self.context, &produce, &patched, answer).await;
                } else {
                    produce::produce(&self.context, &produce, &self.buffer[payload], answer).await;
                    self.spare = produce.batches;
                }
            }
            Ok((correlation, request)) => service::handle(&self.context, &self.sender, &self.peer, correlation, request),
            Err(error) => self.refuse(&error)?,
        }
        self.start = frame.end;
        Ok(())
    }

    /// A frame that gets memory of its own.
    async fn long_frame(&mut self, prefix: FramePrefix) -> Result<(), End> {
        let allowed = limits::FRAME_DEADLINE_S + prefix.total_len() as u64 / limits::MIN_FRAME_RATE;
        let payload = if prefix.payload_len() > ADOPT_APPEND { adoption::MEMORY } else { prefix.payload_len() };
        let in_memory = prefix.header_len() + payload;
        // What came of it so far came in time; the rest is not read before there is room for it.
        self.state.deadline.set(0);
        let _lease = ReceiveLease::take(&self.context, in_memory).await;
        self.state.deadline.set(self.context.store.seconds.get() + allowed);
        self.start += PREFIX_LEN.min(self.end - self.start);
        let mut header = vec![0; prefix.header_len()];
        self.take(&mut header).await?;
        prefix.check_header(&header)?;
        match wire::decode_request(&header, prefix.payload_len()) {
            Ok((correlation, Request::Produce(produce))) => {
                self.state.deadline.set(0);
                self.context.store.wait_for_memory().await;
                self.state.deadline.set(self.context.store.seconds.get() + allowed);
                self.long_produce(correlation, produce, prefix.payload_len()).await
            }
            Ok((_, _)) | Err(_) if prefix.payload_len() > ADOPT_APPEND => {
                // Only a produce request carries that much; what can't be read would have to be received in full to find the next frame.
                Err(End::Refused("a long frame that is no produce request".into()))
            }
            Ok((correlation, request)) => {
                self.skip(prefix.payload_len()).await?;
                service::handle(&self.context, &self.sender, &self.peer, correlation, request);
                Ok(())
            }
            Err(error) => {
                self.skip(prefix.payload_len()).await?;
                self.refuse(&error)
            }
        }
    }

    async fn long_produce(&mut self, correlation: u64, produce: Produce, payload_len: usize) -> Result<(), End> {
        self.context.metrics.count_request(crate::metrics::RequestKind::Produce);
        let answer = self.answer(correlation, produce.acks);
        let patience = Patience::from(&produce);
        if let [only] = &produce.batches[..] {
            let trailer = if produce.crc_trailer { 4 } else { 0 };
            let whole = only.range == (0..payload_len - trailer);
            let here = self.context.store.partition(&only.partition).filter(|_| whole);
            match here {
                Some(cell) if only.range.len() > ADOPT_APPEND => {
                    let done = PendingProduce::new(std::iter::once(cell.id), patience, answer).completion(0);
                    return self.adopted_produce(&cell, only.range.len(), produce.crc_trailer, done).await;
                }
                Some(cell) if only.range.len() >= LARGE_APPEND && !produce.crc_trailer => {
                    let done = PendingProduce::new(std::iter::once(cell.id), patience, answer).completion(0);
                    return self.large_produce(&cell, only.range.len(), done).await;
                }
                _ => {}
            }
        }
        if payload_len > ADOPT_APPEND {
            // Too much to hold, and not one batch for a partition here: the client is to send it to the owner.
            self.skip(payload_len).await?;
            let refusal = produce.batches.first().map(|b| self.context.unknown_or_elsewhere(&b.partition));
            let pending = PendingProduce::new(produce.batches.iter().map(|b| b.partition), patience, answer);
            for index in 0..produce.batches.len() {
                pending.completion(index).complete(Err(refusal.clone().expect("there is a batch")));
            }
            return Ok(());
        }
        let mut payload = vec![0; payload_len];
        self.take(&mut payload).await?;
        self.frame_received(Instant::now());
        let produce = if produce.crc_trailer { patch_crc(produce, &mut payload) } else { produce };
        produce::produce(&self.context, &produce, &payload, answer).await;
        Ok(())
    }

    /// One large batch for a partition of this shard, straight into aligned memory. The CRC is computed while the bytes are in the cache.
    pub(super) async fn large_produce(&mut self, cell: &Rc<PartitionCell>, len: usize, done: Completion) -> Result<(), End> {
        if let Some(refusal) = produce::early_refusal(&self.context, cell, len, done.patience.acks) {
            return self.refuse_unread(refusal, len, done).await;
        }
        let position = cell.machine.borrow().next_position().unwrap_or(BLOCK as u64);
        let mut head = vec![0; head_len(position)];
        self.take(&mut head).await?;
        let mut body = AppendBuffer::new(len - head.len(), 0, self.context.store.budget.accounted());
        let body_len = len - head.len();
        let mut crc = Crc32c::new();
        let mut seen = head.len();
        crc.update(&head[head.len().min(batch::CRC_START)..]);
        while body.filled() < body_len {
            let from = body.filled();
            let received = self.take_some(&mut body.space()[..body_len - from]).await?;
            body.advance(received);
            let skip = batch::CRC_START.saturating_sub(seen).min(received);
            crc.update(&body.slice(from..from + received)[skip..]);
            seen += received;
        }
        self.frame_received(Instant::now());
        let mut first = head.clone();
        first.extend_from_slice(body.slice(0..batch::HEADER_LEN.saturating_sub(head.len())));
        match batch::check_ingress_computed(&first, len, cell.settings.get().max_message_bytes, crc.finish()) {
            Err(error) => done.complete(Err(batch_refusal(cell, &error))),
            Ok(header) => match large_keys(cell, &header, &head, body.slice(0..body_len)) {
                Ok(()) => {
                    let batch = LargeBatch { head, body: Rc::new(body), body_len };
                    append_large(&self.context, cell, &header, batch, done).await;
                }
                Err(refusal) => done.complete(Err(refusal)),
            },
        }
        Ok(())
    }

    /// One batch that is too large for memory: into a file of its own.
    pub(super) async fn adopted_produce(
        &mut self,
        cell: &Rc<PartitionCell>,
        len: usize,
        crc_trailer: bool,
        done: Completion,
    ) -> Result<(), End> {
        let trailer = if crc_trailer { 4 } else { 0 };
        if let Some(refusal) = produce::early_refusal(&self.context, cell, len, done.patience.acks) {
            return self.refuse_unread(refusal, len + trailer, done).await;
        }
        let mut adoption = match adoption::Adoption::begin(&self.context.store, cell, len).await {
            Ok(adoption) => adoption,
            Err(refusal) => {
                self.skip(len + trailer).await?;
                done.complete(Err(refusal));
                return Ok(());
            }
        };
        let mut left = len;
        while left > 0 {
            let space = adoption.space(left);
            match self.take_some(space).await {
                Ok(received) => {
                    left -= received;
                    adoption.advance(received).await;
                }
                Err(end) => {
                    adoption.abandon().await;
                    return Err(end);
                }
            }
        }
        let mut crc = [0; 4];
        if let Err(end) = self.take(&mut crc[..trailer]).await {
            adoption.abandon().await;
            return Err(end);
        }
        self.frame_received(Instant::now());
        adoption.finish(crc_trailer.then(|| u32::from_be_bytes(crc)), done).await;
        Ok(())
    }

    /// Answers at once; the batch is read past, nothing of it is kept.
    pub(super) async fn refuse_unread(&mut self, refusal: Refusal, len: usize, done: Completion) -> Result<(), End> {
        done.complete(Err(refusal));
        self.skip(len).await
    }

    /// Fills `space` from the buffer, then from the socket.
    pub(super) async fn take(&mut self, space: &mut [u8]) -> Result<(), End> {
        let mut filled = 0;
        while filled < space.len() {
            filled += self.take_some(&mut space[filled..]).await?;
        }
        Ok(())
    }

    /// Some bytes from the buffer, else from the socket: at most a receive buffer's worth, which is what the kernel copies fastest.
    async fn take_some(&mut self, space: &mut [u8]) -> Result<usize, End> {
        let buffered = (self.end - self.start).min(space.len());
        if buffered > 0 {
            space[..buffered].copy_from_slice(&self.buffer[self.start..self.start + buffered]);
            self.start += buffered;
            return Ok(buffered);
        }
        let most = space.len().min(RECEIVE_BUFFER);
        match self.socket.read(&mut space[..most]).await? {
            0 if most > 0 => Err(End::Closed),
            received => {
                self.context.metrics.add(Counter::BytesReceived, received as u64);
                Ok(received)
            }
        }
    }

    pub(super) async fn skip(&mut self, len: usize) -> Result<(), End> {
        let mut left = len;
        let mut scratch = self.context.lease_buffer();
        while left > 0 {
            let most = left.min(scratch.len());
            match self.take_some(&mut scratch[..most]).await {
                Ok(received) => left -= received,
                Err(end) => {
                    self.context.return_buffer(scratch);
                    return Err(end);
                }
            }
        }
        self.context.return_buffer(scratch);
        Ok(())
    }

    fn answer(&self, correlation: u64, acks: Acks) -> Box<dyn Answer> {
        Box::new(ProduceAnswer {
            context: self.context.clone(),
            sender: self.sender.clone(),
            correlation,
            silent: acks == Acks::None,
            _open: self.sender.begin_request(),
        })
    }

    /// Answers a request that can't be read, if it can be told which it is.
    fn refuse(&self, error: &WireError) -> Result<(), End> {
        let Some(correlation) = error.correlation() else { return Err(End::Wire(error.clone())) };
        let refusal = error.refusal();
        self.context.metrics.count_error(refusal.code.value());
        respond(&self.context, &self.sender, correlation, &Response::Refused(refusal), Vec::new());
        Ok(())
    }
}

/// Memory for a request, given back when dropped.
pub(super) struct ReceiveLease {
    context: Rc<Context>,
    bytes: usize,
}

impl ReceiveLease {
    pub(super) async fn take(context: &Rc<Context>, bytes: usize) -> ReceiveLease {
        loop {
            let ticket = context.receive_room.ticket();
            if context.store.budget.begin_receive(bytes) {
                context.metrics.raise(Gauge::MemoryReceive, bytes as u64);
                return ReceiveLease { context: context.clone(), bytes };
            }
            context.receive_room.wait(ticket).await;
        }
    }
}

impl Drop for ReceiveLease {
    fn drop(&mut self) {
        self.context.store.budget.end_receive(self.bytes);
        self.context.metrics.lower(Gauge::MemoryReceive, self.bytes as u64);
        self.context.receive_room.notify();
    }
}

/// The CRC that came behind a streamed batch, written to its place; the request without it.
fn patch_crc(produce: Produce, payload: &mut [u8]) -> Produce {
    let at = payload.len().saturating_sub(4);
    let (batches, trailer) = payload.split_at_mut(at);
    if let Some(first) = produce.batches.first()
        && first.range.len() >= batch::HEADER_LEN
        && let Ok(crc) = <[u8; 4]>::try_from(&*trailer)
    {
        batch::stamp_crc(&mut batches[first.range.clone()], u32::from_be_bytes(crc));
    }
    Produce { crc_trailer: false, ..produce }
}

struct ProduceAnswer {
    context: Rc<Context>,
    sender: Rc<Sender>,
    correlation: u64,
    silent: bool,
    _open: OpenRequest,
}

impl Answer for ProduceAnswer {
    fn produced(&self, results: Vec<ProduceResult>) {
        for refusal in results.iter().filter_map(|r| r.outcome.as_ref().err()) {
            self.context.metrics.count_error(refusal.code.value());
        }
        if !self.silent {
            respond(&self.context, &self.sender, self.correlation, &Response::Produce(results), Vec::new());
        }
    }
}

thread_local! {
    static ENCODER: RefCell<ResponseEncoder> = RefCell::new(ResponseEncoder::new());
}

/// Queues an answer and the batches that go with it.
pub fn respond(context: &Context, sender: &Rc<Sender>, correlation: u64, response: &Response, pieces: Vec<Outgoing>) {
    let payload_len = pieces.iter().map(Outgoing::len).sum();
    let mut out = Vec::with_capacity(128);
    ENCODER.with_borrow_mut(|encoder| wire::encode_response(encoder, correlation, response, payload_len, &mut out));
    context.metrics.add(Counter::BytesSent, (out.len() + payload_len) as u64);
    sender.queue(Outgoing::Owned(out));
    pieces.into_iter().for_each(|piece| sender.queue(piece));
    context.answers.add(sender);
}
