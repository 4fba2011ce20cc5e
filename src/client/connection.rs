//! One connection to one shard: the tokio shell around [`Session`] and [`Receiver`].
//!
//! Whoever sends a request writes it to the socket at once, in the caller's thread, and a task takes over only when the socket is full: a lone
//! request costs no hand-over between tasks. A second task reads, and runs each request's completion. Batches are written from where
//! they are, by vectored writes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};

use super::error::ClientError;
use super::receive::Receiver;
use super::session::{Micros, Session};
use crate::limits;
use crate::request::{Request, Response};
use crate::wire::handshake::{Hello, HelloReply, VERSION_MAX, VERSION_MIN, decode_hello_reply, encode_hello};
use crate::wire::{self, MAGIC, RequestEncoder};

/// What a broker answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub response: Response,
    /// The batches of a fetch.
    pub payload: Bytes,
}

/// What is done with the answer, or with the failure that took its place. It runs in the reading task and must not wait.
pub(super) type Completion = Box<dyn FnOnce(Result<Answer, ClientError>) + Send>;

/// How connections are made and how long things may take.
#[derive(Clone, Debug)]
pub(super) struct ConnectionSettings {
    pub client_id: String,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
    pub max_frame: usize,
}

/// While more than this waits for the socket, bytes, requests without an answer wait at their sender: nothing else would bound them.
const UNANSWERED_QUEUE_MAX: usize = 4 << 20;

/// Microseconds since the client was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    pub fn now(&self) -> Micros {
        self.0.elapsed().as_micros() as Micros
    }

    pub fn instant(&self, at: Micros) -> Instant {
        self.0 + Duration::from_micros(at)
    }
}

/// A handshaken connection; clones share it, and it ends when the last one is dropped.
#[derive(Clone)]
pub(super) struct Connection(Arc<Handle>);

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close(&ClientError::Closed);
    }
}

struct Shared {
    address: String,
    reply: HelloReply,
    stream: TcpStream,
    clock: Clock,
    tick: Duration,
    /// How long an answer may take that is not held back.
    request_timeout: Micros,
    /// When bytes last came, or were taken by a socket that had been full.
    progress: AtomicU64,
    state: Mutex<State>,
    /// The socket is full, a request is in flight, or the connection is closed.
    wake_writer: Notify,
    wake_reader: Notify,
    /// There is room in the queue again, or the connection is closed.
    drained: Notify,
}

struct State {
    session: Session<Completion>,
    encoder: RequestEncoder,
    /// To be written, in order.
    out: VecDeque<Bytes>,
    /// Bytes of `out`.
    out_len: usize,
    /// The socket was full: the writing task goes on.
    is_writer_active: bool,
    closed: Option<ClientError>,
}

impl Connection {
    /// Connects and shakes hands.
    pub async fn open(address: &str, settings: &ConnectionSettings, clock: Clock) -> Result<Connection, ClientError> {
        let (stream, reply, receiver) = open_stream(address, settings).await?;
        let state = State {
            session: Session::new(),
            encoder: RequestEncoder::new(),
            out: VecDeque::new(),
            out_len: 0,
            is_writer_active: false,
            closed: None,
        };
        let shared = Arc::new(Shared {
            address: address.into(),
            reply,
            stream,
            clock,
            tick: (settings.request_timeout / 4).clamp(Duration::from_millis(5), Duration::from_secs(1)),
            request_timeout: settings.request_timeout.as_micros() as Micros,
            progress: AtomicU64::new(clock.now()),
            state: Mutex::new(state),
            wake_writer: Notify::new(),
            wake_reader: Notify::new(),
            drained: Notify::new(),
        });
        tokio::spawn(read(shared.clone(), receiver));
        tokio::spawn(write(shared.clone()));
        Ok(Connection(Arc::new(Handle(shared))))
    }

    pub fn is_closed(&self) -> bool {
        self.0.0.lock().closed.is_some()
    }

    /// The advertised id of the shard at the other end.
    pub fn broker_id(&self) -> u32 {
        let reply = &self.0.0.reply;
        reply.node.wrapping_mul(limits::MAX_SHARDS).wrapping_add(reply.shard)
    }

    /// Whether an answer should have come by now, and nothing has for a while: the other side may be away.
    pub fn is_overdue(&self) -> bool {
        let shared = &self.0.0;
        let (now, progress) = (shared.clock.now(), shared.progress.load(Ordering::Relaxed));
        shared.lock().session.is_overdue(now, progress, shared.request_timeout)
    }

    /// Ends the connection: everyone who waits on it hears that it was lost.
    pub fn give_up(&self, cause: &str) {
        let shared = &self.0.0;
        shared.close(&shared.lost(&cause));
    }

    pub fn address(&self) -> &str {
        &self.0.0.address
    }

    /// Sends a request with its payload; `completion` gets the answer, which must come within `timeout` or as long as bytes move on the connection. Requests
    /// leave in the order of the calls.
    pub fn send(&self, request: &Request, payload: &[Bytes], timeout: Duration, completion: Completion) {
        let shared = &self.0.0;
        let refused = {
            let mut state = shared.lock();
            match &state.closed {
                Some(error) => Some((completion, error.clone())),
                None => shared.enqueue(&mut state, request, payload, timeout, completion),
            }
        };
        if let Some((completion, error)) = refused {
            completion(Err(error));
        }
        shared.fail_if_broken();
    }

    /// Whether a request that gets no answer should wait for [`Connection::drained`].
    pub fn is_congested(&self) -> bool {
        let state = self.0.0.lock();
        state.closed.is_none() && state.out_len > UNANSWERED_QUEUE_MAX
    }

    /// Waits until the connection is not congested, or is closed.
    pub async fn drained(&self) {
        loop {
            let drained = self.0.0.drained.notified();
            if !self.is_congested() {
                return;
            }
            drained.await;
        }
    }

    /// Sends a request that gets no answer.
    pub fn send_unanswered(&self, request: &Request, payload: &[Bytes]) -> Result<(), ClientError> {
        let shared = &self.0.0;
        let mut state = shared.lock();
        if let Some(error) = &state.closed {
            return Err(error.clone());
        }
        let correlation = state.session.begin_unanswered();
        shared.encode(&mut state, correlation, request, payload)?;
        shared.write_now(&mut state);
        drop(state);
        shared.fail_if_broken();
        Ok(())
    }

    /// Sends a request without payload and waits for the answer.
    pub async fn request(&self, request: &Request, timeout: Duration) -> Result<Answer, ClientError> {
        let (sender, receiver) = oneshot::channel();
        let completion = Box::new(move |answer| drop(sender.send(answer)));
        self.send(request, &[], timeout, completion);
        let answer = receiver.await.unwrap_or(Err(ClientError::Closed))?;
        match answer.response {
            Response::Refused(refusal) => Err(refusal.into()),
            _ => Ok(answer),
        }
    }
}

/// A stream that has shaken hands; the receiver is empty unless the broker sends unasked.
pub(super) async fn open_stream(address: &str, settings: &ConnectionSettings) -> Result<(TcpStream, HelloReply, Receiver), ClientError> {
    let connect = |cause: String| ClientError::Connect { address: address.into(), cause };
    match tokio::time::timeout(settings.connect_timeout, shake_hands(address, settings)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(cause)) => Err(connect(cause)),
        Err(_) => Err(connect(format!("no answer within {} ms", settings.connect_timeout.as_millis()))),
    }
}

async fn shake_hands(address: &str, settings: &ConnectionSettings) -> Result<(TcpStream, HelloReply, Receiver), String> {
    let text = |e: io::Error| e.to_string();
    let mut stream = TcpStream::connect(address).await.map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    let hello = Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        client_id: settings.client_id.clone(),
        software: concat!("corelane ", env!("CARGO_PKG_VERSION")).into(),
    };
    let mut first = MAGIC.to_vec();
    encode_hello(&hello, &mut first);
    stream.write_all(&first).await.map_err(text)?;
    let mut receiver = Receiver::new(settings.max_frame);
    loop {
        if let Some(frame) = receiver.next_frame().map_err(|e| format!("not a broker's native protocol: {e}"))? {
            let reply = decode_hello_reply(&frame.header).map_err(|e| e.to_string())?.map_err(|refusal| refusal.to_string())?;
            return Ok((stream, reply, receiver));
        }
        stream.readable().await.map_err(text)?;
        match stream.try_read_buf(receiver.room()) {
            Ok(0) => return Err("the other side closed the connection instead of an answer to the handshake".into()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.to_string()),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A completion that panics does so outside the lock; the state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the request in line; gives the completion back where it can't even be encoded.
    fn enqueue(
        &self,
        state: &mut State,
        request: &Request,
        payload: &[Bytes],
        timeout: Duration,
        completion: Completion,
    ) -> Option<(Completion, ClientError)> {
        let was_idle = state.session.waiting() == 0;
        let correlation = state.session.begin(self.clock.now(), timeout.as_micros() as Micros, completion);
        if let Err(error) = self.encode(state, correlation, request, payload) {
            return state.session.cancel_last().map(|completion| (completion, error));
        }
        self.write_now(state);
        if was_idle {
            self.wake_writer.notify_one(); // it watches the deadline
        }
        None
    }

    fn encode(&self, state: &mut State, correlation: u64, request: &Request, payload: &[Bytes]) -> Result<(), ClientError> {
        let payload_len = payload.iter().map(Bytes::len).sum();
        let mut head = Vec::new();
        wire::encode_request(&mut state.encoder, correlation, request, payload_len, &mut head)
            .map_err(|e| ClientError::Invalid(e.to_string()))?;
        if head.len() + payload_len > self.reply.max_frame as usize {
            let what = format!("a frame of {} bytes is over the broker's {}", head.len() + payload_len, self.reply.max_frame);
            return Err(ClientError::Invalid(what));
        }
        state.out_len += head.len() + payload_len;
        state.out.push_back(Bytes::from(head));
        state.out.extend(payload.iter().filter(|part| !part.is_empty()).cloned());
        Ok(())
    }

    /// Writes what the socket takes; the writing task gets the rest.
    fn write_now(&self, state: &mut State) {
        if state.is_writer_active {
            return;
        }
        match self.write_some(state) {
            Ok(()) if state.out.is_empty() => {}
            Ok(()) => {
                state.is_writer_active = true;
                self.wake_writer.notify_one();
            }
            // Whoever waits is told when the lock is free (`fail_if_broken`).
            Err(e) => state.closed = Some(self.lost(&e)),
        }
    }

    /// Writes until the queue is empty or the socket full.
    fn write_some(&self, state: &mut State) -> io::Result<()> {
        const SLICES: usize = 64;
        while !state.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = state.out.len().min(SLICES);
            for (slice, bytes) in slices.iter_mut().zip(&state.out) {
                *slice = IoSlice::new(bytes);
            }
            match self.stream.try_write_vectored(&slices[..count]) {
                Ok(mut written) => {
                    state.out_len -= written;
                    while let Some(first) = state.out.front_mut() {
                        if written < first.len() {
                            first.advance(written);
                            break;
                        }
                        written -= first.len();
                        state.out.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Bytes have moved. What a socket that was not full takes says nothing: it is the system that took it, not the other side.
    fn note_progress(&self) {
        self.progress.store(self.clock.now(), Ordering::Relaxed);
    }

    fn lost(&self, cause: &dyn ToString) -> ClientError {
        ClientError::Disconnected { address: self.address.clone(), cause: cause.to_string() }
    }

    /// Tells everyone who waits on a connection that a write has found to be broken.
    fn fail_if_broken(&self) {
        let error = self.lock().closed.clone();
        if let Some(error) = error {
            self.close(&error);
        }
    }

    /// Ends the connection: everyone who waits gets `error`, or what ended it earlier.
    fn close(&self, error: &ClientError) {
        let (waiting, error) = {
            let mut state = self.lock();
            let error = state.closed.get_or_insert_with(|| error.clone()).clone();
            state.out.clear();
            state.out_len = 0;
            (state.session.take_all(), error)
        };
        for completion in waiting {
            completion(Err(error.clone()));
        }
        self.wake_writer.notify_one();
        self.wake_reader.notify_one();
        self.drained.notify_waiters();
    }

    fn handle_frame(&self, header: &[u8], payload: Bytes) -> Result<(), ClientError> {
        let breach = |cause: &dyn ToString| ClientError::Protocol { address: self.address.clone(), cause: cause.to_string() };
        let (correlation, response) = wire::decode_response(header, payload.len()).map_err(|e| breach(&e))?;
        let completion = self.lock().session.handle_answer(correlation).map_err(|e| breach(&e))?;
        completion(Ok(Answer { response, payload }));
        Ok(())
    }
}

/// Reads until the connection ends.
async fn read(shared: Arc<Shared>, mut receiver: Receiver) {
    let error = loop {
        match read_some(&shared, &mut receiver) {
            Ok(()) => {}
            Err(error) => break error,
        }
        if shared.lock().closed.is_some() {
            return;
        }
        tokio::select! {
            ready = shared.stream.readable() => if let Err(e) = ready { break shared.lost(&e) },
            () = shared.wake_reader.notified() => {}
        }
    };
    tracing::debug!(address = shared.address, %error, "connection ended");
    shared.close(&error);
}

/// Reads what is there, up to a bound, so that other tasks of the thread get their turn.
fn read_some(shared: &Shared, receiver: &mut Receiver) -> Result<(), ClientError> {
    const TURN: usize = 4 << 20;
    let breach = |e: wire::FrameError| ClientError::Protocol { address: shared.address.clone(), cause: e.to_string() };
    let mut taken = 0;
    loop {
        // First what is there already: the handshake may have read further than its answer.
        while let Some(frame) = receiver.next_frame().map_err(breach)? {
            shared.handle_frame(&frame.header, frame.payload)?;
        }
        if taken >= TURN {
            return Ok(());
        }
        match shared.stream.try_read_buf(receiver.room()) {
            Ok(0) => return Err(shared.lost(&"the broker closed it")),
            Ok(count) => {
                taken += count;
                shared.note_progress();
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(shared.lost(&e)),
        }
    }
}

/// Writes what the senders could not, and watches the deadlines.
async fn write(shared: Arc<Shared>) {
    loop {
        let (is_full, is_waiting) = {
            let state = shared.lock();
            if state.closed.is_some() {
                return;
            }
            (state.is_writer_active, state.session.waiting() > 0)
        };
        tokio::select! {
            ready = shared.stream.writable(), if is_full => {
                let mut state = shared.lock();
                let before = state.out_len;
                let written = ready.and_then(|()| shared.write_some(&mut state));
                if state.out_len < before {
                    shared.note_progress();
                }
                if state.out_len <= UNANSWERED_QUEUE_MAX {
                    shared.drained.notify_waiters();
                }
                state.is_writer_active = !state.out.is_empty();
                drop(state);
                if let Err(e) = written {
                    shared.close(&shared.lost(&e));
                }
            }
            () = tokio::time::sleep(shared.tick), if is_waiting => {
                let expired = shared.lock().session.poll_expired(shared.clock.now(), shared.progress.load(Ordering::Relaxed));
                if let Some(timeout) = expired {
                    shared.close(&ClientError::TimedOut { address: shared.address.clone(), timeout_ms: timeout / 1000 });
                }
            }
            () = shared.wake_writer.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::net::TcpListener;

    use super::*;
    use crate::request::{Code, Refusal};
    use crate::wire::handshake::{decode_hello, encode_hello_reply};
    use crate::wire::{PREFIX_LEN, ResponseEncoder, encode_response, peek};

    fn settings() -> ConnectionSettings {
        ConnectionSettings {
            client_id: "test".into(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_millis(200),
            max_frame: 1 << 20,
        }
    }

    /// A broker that shakes hands and then does as told with each connection.
    async fn broker<F>(then: impl Fn(TcpStream) -> F + Send + 'static) -> String
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut magic = [0; MAGIC.len()];
                tokio::io::AsyncReadExt::read_exact(&mut stream, &mut magic).await.unwrap();
                assert_eq!(magic, MAGIC);
                assert_eq!(decode_hello(&header(&mut stream).await).unwrap().client_id, "test");
                let reply = HelloReply {
                    version: 1,
                    cluster: [0; 16],
                    node: 2,
                    shard: 3,
                    max_frame: 1000,
                    max_in_flight: 10,
                    software: String::new(),
                };
                let mut out = vec![];
                encode_hello_reply(&Ok(reply), &mut out);
                stream.write_all(&out).await.unwrap();
                tokio::spawn(then(stream));
            }
        });
        address
    }

    /// The header of the next frame, without a payload.
    async fn header(stream: &mut TcpStream) -> Vec<u8> {
        let mut prefix = [0; PREFIX_LEN];
        tokio::io::AsyncReadExt::read_exact(stream, &mut prefix).await.unwrap();
        let mut header = vec![0; peek(&prefix, 1 << 20).unwrap().unwrap().header_len()];
        tokio::io::AsyncReadExt::read_exact(stream, &mut header).await.unwrap();
        header
    }

    async fn ask(connection: &Connection) -> Result<Answer, ClientError> {
        connection.request(&Request::InitProducerId, Duration::from_millis(200)).await
    }

    #[tokio::test]
    async fn answers_in_any_order_and_refusals() {
        let address = broker(|mut stream| async move {
            let mut correlations = vec![];
            for _ in 0..3 {
                correlations.push(wire::decode_request(&header(&mut stream).await, 0).unwrap().0);
            }
            let mut out = vec![];
            for (n, correlation) in correlations.iter().enumerate().rev() {
                let refused = Response::Refused(Refusal::new(Code::Unavailable, "later"));
                let response = if n == 1 { refused } else { Response::ProducerId(n as i64, 0) };
                encode_response(&mut ResponseEncoder::new(), *correlation, &response, 0, &mut out);
            }
            stream.write_all(&out).await.unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let connection = Connection::open(&address, &settings(), Clock::start()).await.unwrap();
        assert_eq!(connection.broker_id(), 2 * 1024 + 3);
        let answers = tokio::join!(ask(&connection), ask(&connection), ask(&connection));
        assert_eq!(answers.0.unwrap().response, Response::ProducerId(0, 0));
        assert_eq!(answers.1.unwrap_err().code(), Some(Code::Unavailable));
        assert_eq!(answers.2.unwrap().response, Response::ProducerId(2, 0));
        assert!(!connection.is_closed());
    }

    #[tokio::test]
    async fn silence_ends_the_connection_and_all_that_waits() {
        let address = broker(|stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await;
        let connection = Connection::open(&address, &settings(), Clock::start()).await.unwrap();
        let (first, second) = tokio::join!(ask(&connection), ask(&connection));
        for error in [first.unwrap_err(), second.unwrap_err(), ask(&connection).await.unwrap_err()] {
            assert!(matches!(error, ClientError::TimedOut { timeout_ms: 200, .. }), "{error}");
        }
        assert!(connection.is_closed());
    }

    #[tokio::test]
    async fn an_answer_that_is_on_its_way_may_take_longer_than_the_timeout() {
        let address = broker(|mut stream| async move {
            let mut out = vec![];
            for _ in 0..2 {
                let correlation = wire::decode_request(&header(&mut stream).await, 0).unwrap().0;
                let refused = Response::Refused(Refusal::new(Code::Unavailable, "x".repeat(500)));
                encode_response(&mut ResponseEncoder::new(), correlation, &refused, 0, &mut out);
            }
            for piece in out.chunks(out.len().div_ceil(10)) {
                tokio::time::sleep(Duration::from_millis(60)).await;
                stream.write_all(piece).await.unwrap();
            }
            std::future::pending::<()>().await;
        })
        .await;
        let connection = Connection::open(&address, &settings(), Clock::start()).await.unwrap();
        let (large, behind_it) = tokio::join!(ask(&connection), ask(&connection));
        assert_eq!([large, behind_it].map(|answer| answer.unwrap_err().code()), [Some(Code::Unavailable); 2]);
        assert!(!connection.is_closed());
    }

    #[tokio::test]
    async fn garbage_a_stranger_or_a_closed_socket_is_told_as_such() {
        let garbage = broker(|mut stream| async move { stream.write_all(&[0xff; 100]).await.unwrap() }).await;
        let stranger = broker(|mut stream| async move {
            header(&mut stream).await;
            let mut out = vec![];
            encode_response(&mut ResponseEncoder::new(), 999, &Response::TopicDeleted, 0, &mut out);
            stream.write_all(&out).await.unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let closed = broker(|mut stream| async move { drop(header(&mut stream).await) }).await;
        for (address, is_breach) in [(garbage, true), (stranger, true), (closed, false)] {
            let connection = Connection::open(&address, &settings(), Clock::start()).await.unwrap();
            let error = ask(&connection).await.unwrap_err();
            assert_eq!(matches!(error, ClientError::Protocol { .. }), is_breach, "{error}");
            assert_eq!(matches!(error, ClientError::Disconnected { .. }), !is_breach, "{error}");
        }
    }

    #[tokio::test]
    async fn what_is_no_broker_is_found_out_in_the_handshake() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            }
        });
        let error = Connection::open(&address, &settings(), Clock::start()).await.err().unwrap();
        assert!(matches!(&error, ClientError::Connect { cause, .. } if cause.contains("native protocol")), "{error}");
    }

    #[tokio::test]
    async fn requests_without_an_answer_wait_while_the_socket_is_full() {
        let reads = Arc::new(Notify::new());
        let told = reads.clone();
        let address = broker(move |mut stream| {
            let told = told.clone();
            async move {
                told.notified().await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
        })
        .await;
        let connection = Connection::open(&address, &settings(), Clock::start()).await.unwrap();
        let mut sent = 0;
        while !connection.is_congested() {
            connection.send_unanswered(&Request::DeleteTopic("x".repeat(900)), &[]).unwrap();
            sent += 1;
            assert!(sent < 100_000, "the broker reads nothing");
        }
        let drained = tokio::time::timeout(Duration::from_millis(50), connection.drained()).await;
        assert!(drained.is_err() && connection.is_congested());
        reads.notify_one();
        tokio::time::timeout(Duration::from_secs(10), connection.drained()).await.unwrap();
        assert!(!connection.is_congested() && !connection.is_closed());
    }

    #[tokio::test]
    async fn a_frame_that_the_broker_does_not_take_is_not_sent() {
        let address = broker(|stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await;
        let connection = Connection::open(&address, &settings(), Clock::start()).await.unwrap();
        let error = connection.request(&Request::DeleteTopic("x".repeat(2000)), Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(&error, ClientError::Invalid(what) if what.contains("1000")), "{error}");
        assert!(!connection.is_closed());
    }
}
