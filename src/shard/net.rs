//! Sockets of a shard: listeners, and a connection's two halves.
//!
//! Reading is by readiness, straight into the caller's buffer. Writing takes slices of any owner and gives as many as
//! possible to one `sendmsg`; what the socket does not take waits in the connection's queue until it is writable.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::AsyncWriteExt;
use glommio::io::ReadResult;
use glommio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::{self, BLOCK};
use crate::metrics::{ShardMetrics, Stage};
use crate::shard::budget::Budget;
use crate::shard::buffer::Piece;
use crate::shard::disk::DataFile;
use crate::shard::event::Event;
use crate::shard::reader::Run;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// Bytes of a segment that is too large for memory that are in memory at once.
const SEGMENT_PIECE: usize = 1 << 20;
/// Most slices of one `sendmsg` (the kernel takes 1024).
const MAX_SLICES: usize = 256;

/// A bound, listening socket that has not been given to an executor yet.
///
/// No SO_REUSEPORT: a second broker on the same port is told that it is in use.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Gives a listening socket to this executor.
#[allow(unsafe_code)]
pub fn adopt_listener(listener: std::net::TcpListener) -> TcpListener {
    // SAFETY: `into_raw_fd` gives up ownership, so the descriptor has exactly one owner.
    unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) }
}

/// Bytes on their way to a peer, kept alive by their owner.
pub enum Outgoing {
    /// Frame prefixes and headers.
    Owned(Vec<u8>),
    /// Record batches from the tail.
    Tail(Piece),
    /// Record batches from disk: checked ones, and the range of them.
    Run(Rc<Run>, Range<usize>),
    /// A piece of a segment that is too large for memory: the result and the range of it.
    Disk(ReadResult, Range<usize>),
    /// From another shard.
    Shared(Bytes),
    /// A part of a segment that is too large for memory; the writer task reads and sends it piece by piece.
    Segment {
        /// The open segment.
        file: Rc<DataFile>,
        /// Where the next piece starts.
        position: u64,
        /// Bytes that are left.
        len: usize,
    },
}

impl Outgoing {
    fn bytes(&self) -> &[u8] {
        match self {
            Outgoing::Owned(bytes) => bytes,
            Outgoing::Tail(piece) => piece.bytes(),
            Outgoing::Run(run, range) => run.part(range),
            Outgoing::Disk(result, range) => &result[range.clone()],
            Outgoing::Shared(bytes) => bytes,
            Outgoing::Segment { .. } => &[],
        }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        match self {
            Outgoing::Segment { len, .. } => *len,
            other => other.bytes().len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of it that are in memory.
    pub fn in_memory(&self) -> usize {
        self.bytes().len()
    }

    /// Its first `at` bytes, and what is left if that is not all.
    pub fn split(self, at: usize) -> (Outgoing, Option<Outgoing>) {
        if at >= self.len() {
            return (self, None);
        }
        match self {
            Outgoing::Owned(mut bytes) => {
                let rest = bytes.split_off(at);
                (Outgoing::Owned(bytes), Some(Outgoing::Owned(rest)))
            }
            Outgoing::Tail(piece) => (Outgoing::Tail(piece.part(0..at)), Some(Outgoing::Tail(piece.part(at..piece.len())))),
            Outgoing::Run(run, range) => {
                let middle = range.start + at;
                (Outgoing::Run(run.clone(), range.start..middle), Some(Outgoing::Run(run, middle..range.end)))
            }
            Outgoing::Disk(data, range) => {
                let middle = range.start + at;
                (Outgoing::Disk(data.clone(), range.start..middle), Some(Outgoing::Disk(data, middle..range.end)))
            }
            Outgoing::Shared(bytes) => (Outgoing::Shared(bytes.slice(..at)), Some(Outgoing::Shared(bytes.slice(at..)))),
            Outgoing::Segment { file, position, len } => {
                let rest = Outgoing::Segment { file: file.clone(), position: position + at as u64, len: len - at };
                (Outgoing::Segment { file, position, len: at }, Some(rest))
            }
        }
    }

    /// Adds its bytes to `out`.
    pub fn copy_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.bytes());
    }
}

/// The sending side of a connection; anyone on the shard may queue a response.
pub struct Sender {
    fd: RawFd,
    queue: RefCell<VecDeque<Outgoing>>,
    /// Bytes of the first queued item that are gone already.
    sent_of_first: Cell<usize>,
    queued_bytes: Cell<usize>,
    /// The writer task is at the first queued item and waits for socket or disk: nobody else sends meanwhile, or bytes would go twice or before their turn.
    is_writing: Cell<bool>,
    /// The writer task waits for this when there is nothing that it has to push.
    blocked: Event,
    drained: Event,
    over: Event,
    /// Requests of the connection that are not answered.
    open_requests: Cell<u32>,
    /// Bytes of answers that wait for those before them, and are not queued for that.
    held_back: Cell<usize>,
    /// A fetch of the connection is being answered: others wait, so that no more than one answer is built beyond what may be queued.
    is_answering: Cell<bool>,
    /// The shard's counter of bytes in memory that wait for their peers.
    answers: Rc<Cell<usize>>,
    /// Since when the peer takes too little, while anything waits.
    progress_at: Cell<Option<Instant>>,
    closed: Cell<bool>,
    /// It is among the connections that are flushed next.
    pub(super) listed: Cell<bool>,
    /// When the oldest queued byte came.
    waiting_since: Cell<Option<Instant>>,
    metrics: Arc<ShardMetrics>,
}

/// The right to answer a fetch; ends when dropped.
pub struct Turn(Rc<Sender>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.is_answering.set(false);
        self.0.drained.notify();
    }
}

/// A request that is not answered; ends when dropped.
pub struct OpenRequest(Rc<Sender>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let open = self.0.open_requests.get();
        self.0.open_requests.set(open - 1);
        if open == limits::MAX_IN_FLIGHT {
            self.0.drained.notify();
        }
    }
}

impl Sender {
    /// For the socket of `stream`; `close` before the stream is dropped. `answers` counts the bytes in memory that wait, of all connections.
    pub fn new(stream: &TcpStream, answers: Rc<Cell<usize>>, metrics: Arc<ShardMetrics>) -> Rc<Sender> {
        Rc::new(Sender {
            fd: stream.as_raw_fd(),
            queue: RefCell::default(),
            sent_of_first: Cell::new(0),
            queued_bytes: Cell::new(0),
            is_writing: Cell::new(false),
            blocked: Event::default(),
            drained: Event::default(),
            over: Event::default(),
            open_requests: Cell::new(0),
            held_back: Cell::new(0),
            is_answering: Cell::new(false),
            answers,
            progress_at: Cell::new(None),
            closed: Cell::new(false),
            listed: Cell::new(false),
            waiting_since: Cell::new(None),
            metrics,
        })
    }

    /// Adds bytes without sending them yet.
    pub fn queue(&self, item: Outgoing) {
        if self.closed.get() {
            return;
        }
        if self.waiting_since.get().is_none() {
            let now = Some(Instant::now());
            self.waiting_since.set(now);
            self.progress_at.set(now);
        }
        self.queued_bytes.set(self.queued_bytes.get() + item.len());
        self.answers.set(self.answers.get() + item.in_memory());
        self.queue.borrow_mut().push_back(item);
    }

    /// Counts a request until what is returned is dropped.
    pub fn begin_request(self: &Rc<Sender>) -> OpenRequest {
        self.open_requests.set(self.open_requests.get() + 1);
        OpenRequest(self.clone())
    }

    /// More, or fewer, bytes of answers wait for those before them.
    pub fn hold_back(&self, bytes: isize) {
        self.held_back.set(self.held_back.get().wrapping_add_signed(bytes));
        self.answers.set(self.answers.get().wrapping_add_signed(bytes));
    }

    /// Bytes of answers that wait for those before them.
    pub fn held_back(&self) -> usize {
        self.held_back.get()
    }

    /// Whether the peer is still to get anything: a request is not answered, or an answer not taken.
    pub fn owes(&self) -> bool {
        !self.closed.get() && (self.open_requests.get() > 0 || self.held_back.get() > 0 || self.queued_bytes.get() > 0)
    }

    /// Waits until the connection is over.
    pub async fn wait_over(&self) {
        loop {
            let ticket = self.over.ticket();
            if self.closed.get() {
                return;
            }
            self.over.wait(ticket).await;
        }
    }

    /// Bytes that wait.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes.get()
    }

    /// How long the peer has taken too little of what waits: less than [`limits::MIN_ANSWER_RATE`].
    pub fn stalled(&self) -> Duration {
        self.progress_at.get().map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// Notified when the connection is over.
    pub fn over(&self) -> &Event {
        &self.over
    }

    /// Waits until a fetch may be answered: no other is, and not too much is queued; nothing, where the answers of all connections fill their share.
    /// `None` if the connection is over.
    pub async fn turn(self: &Rc<Sender>, budget: &Budget) -> Option<Turn> {
        loop {
            let ticket = self.drained.ticket();
            if self.closed.get() {
                return None;
            }
            let most = if budget.answers_are_pressed() { 0 } else { limits::MAX_QUEUED_ANSWER };
            if self.queued_bytes.get() <= most && !self.is_answering.replace(true) {
                return Some(Turn(self.clone()));
            }
            self.drained.wait(ticket).await;
        }
    }

    /// Whether the connection is over.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Ends the connection: nothing more is sent, both directions are shut, the tasks of the connection end.
    #[allow(unsafe_code)]
    pub fn close(&self) {
        if self.closed.replace(true) {
            return;
        }
        for item in self.queue.take() {
            self.release(item);
        }
        self.queued_bytes.set(0);
        self.progress_at.set(None);
        // SAFETY: shutdown on a descriptor that is open: the owner of the stream calls `close` before it drops it.
        unsafe { libc::shutdown(self.fd, libc::SHUT_RDWR) };
        self.blocked.notify();
        self.drained.notify();
        self.over.notify();
    }

    /// Sends what the socket takes now. The rest is left to the writer task.
    pub fn flush(&self) {
        if self.closed.get() || self.queued_bytes.get() == 0 || self.is_writing.get() {
            return;
        }
        match self.send_queued() {
            Ok(true) => self.all_sent(),
            Ok(false) => self.blocked.notify(),
            Err(_) => self.close(),
        }
    }

    fn all_sent(&self) {
        self.progress_at.set(None);
        if let Some(since) = self.waiting_since.take() {
            self.metrics.record(Stage::Respond, since.elapsed().as_nanos() as u64);
        }
        self.drained.notify();
    }

    /// True when the queue is empty, false when the socket takes no more.
    #[allow(unsafe_code)]
    fn send_queued(&self) -> io::Result<bool> {
        loop {
            let mut slices = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_SLICES];
            let mut count = 0;
            let sent = {
                let queue = self.queue.borrow();
                let in_memory = queue.iter().take_while(|item| !matches!(item, Outgoing::Segment { .. }));
                for (i, item) in in_memory.take(MAX_SLICES).enumerate() {
                    let bytes = item.bytes();
                    let bytes = if i == 0 { &bytes[self.sent_of_first.get()..] } else { bytes };
                    slices[count] = libc::iovec { iov_base: bytes.as_ptr() as *mut libc::c_void, iov_len: bytes.len() };
                    count += 1;
                }
                if count == 0 {
                    return Ok(queue.is_empty());
                }
                // SAFETY: all-zero is a valid msghdr; the slices point into items that the borrowed queue keeps alive during the call.
                let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
                message.msg_iov = slices.as_mut_ptr();
                message.msg_iovlen = count;
                // SAFETY: as above; the descriptor is open until `close` was called, which was checked.
                unsafe { libc::sendmsg(self.fd, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) }
            };
            if sent < 0 {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(false),
                    io::ErrorKind::Interrupted => continue,
                    _ => return Err(error),
                }
            }
            self.forget(sent as usize);
        }
    }

    fn forget(&self, mut sent: usize) {
        let (before, taken) = (self.queued_bytes.get(), sent);
        self.queued_bytes.set(before - sent);
        let mut queue = self.queue.borrow_mut();
        while let Some(first) = queue.front() {
            let left = first.len() - self.sent_of_first.get();
            if sent < left {
                self.sent_of_first.set(self.sent_of_first.get() + sent);
                break;
            }
            sent -= left;
            self.sent_of_first.set(0);
            if let Some(gone) = queue.pop_front() {
                self.release(gone);
            }
        }
        if !queue.is_empty() {
            self.note_progress(taken);
        }
        drop(queue);
        if before > limits::MAX_QUEUED_ANSWER && self.queued_bytes.get() <= limits::MAX_QUEUED_ANSWER {
            self.drained.notify();
        }
    }

    /// The peer took `bytes`: the moment from which it is stalled moves on by the time that these may take, to now at most.
    fn note_progress(&self, bytes: usize) {
        let worth = Duration::from_secs_f64(bytes as f64 / limits::MIN_ANSWER_RATE as f64);
        let now = Instant::now();
        self.progress_at.set(Some(self.progress_at.get().map_or(now, |at| (at + worth).min(now))));
    }

    /// An item leaves the queue.
    fn release(&self, item: Outgoing) {
        self.answers.set(self.answers.get() - item.in_memory());
    }

    /// The writer task: pushes what `flush` could not send whenever the socket is writable again. Ends when the connection is closed.
    pub async fn run(self: Rc<Sender>, mut socket: impl futures_util::AsyncWrite + Unpin) {
        while !self.closed.get() {
            let ticket = self.blocked.ticket();
            match self.send_queued() {
                Err(_) => return self.close(),
                Ok(true) => {
                    self.all_sent();
                    self.blocked.wait(ticket).await;
                }
                Ok(false) if self.segment_is_next() => {
                    self.is_writing.set(true);
                    let read = self.read_segment_piece().await;
                    self.is_writing.set(false);
                    if read.is_err() {
                        return self.close();
                    }
                }
                Ok(false) => {
                    // A plain write of a small part waits for writability; the loop then goes on with many slices.
                    let part = {
                        let queue = self.queue.borrow();
                        let Some(first) = queue.front() else { continue };
                        let bytes = &first.bytes()[self.sent_of_first.get()..];
                        bytes[..bytes.len().min(4096)].to_vec()
                    };
                    self.is_writing.set(true);
                    let written = socket.write(&part).await;
                    self.is_writing.set(false);
                    match written {
                        Ok(sent) if !self.closed.get() => self.forget(sent),
                        _ => return self.close(),
                    }
                }
            }
        }
    }

    fn segment_is_next(&self) -> bool {
        matches!(self.queue.borrow().front(), Some(Outgoing::Segment { .. }))
    }

    /// Puts the next piece of the segment at the head of the queue into memory.
    async fn read_segment_piece(&self) -> io::Result<()> {
        let Some(Outgoing::Segment { file, position, len }) = self.queue.borrow_mut().pop_front() else { return Ok(()) };
        let start = position / BLOCK as u64 * BLOCK as u64;
        let skip = (position - start) as usize;
        // How long the read takes is not the peer's doing.
        self.progress_at.set(None);
        let read = file.read(start, (skip + len.min(SEGMENT_PIECE)).next_multiple_of(BLOCK)).await?;
        let taken = read.len().saturating_sub(skip).min(len);
        if taken == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} ends at {position}", file.path())));
        }
        let mut queue = self.queue.borrow_mut();
        if self.closed.get() {
            return Ok(());
        }
        if len > taken {
            queue.push_front(Outgoing::Segment { file, position: position + taken as u64, len: len - taken });
        }
        self.answers.set(self.answers.get() + taken);
        self.progress_at.set(Some(Instant::now()));
        queue.push_front(Outgoing::Disk(read, skip..skip + taken));
        Ok(())
    }

    /// Waits until at most `bytes` are queued and another request may be open, or the connection is over.
    pub async fn wait_below(&self, bytes: usize) {
        loop {
            let ticket = self.drained.ticket();
            let has_room = self.queued_bytes.get() <= bytes && self.open_requests.get() < limits::MAX_IN_FLIGHT;
            if self.closed.get() || has_room {
                return;
            }
            self.drained.wait(ticket).await;
        }
    }
}
