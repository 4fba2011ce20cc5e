//! Connections to other nodes, from the side that opens them; also the library's network.
//!
//! A connection that fails in the middle of a request is closed, never used again: its late answer would be taken for that of the next request. Every request here may be
//! sent twice without harm, so one that fails on a connection that had idled is tried again at once on a new one. A refused handshake is logged once
//! for each address, until one succeeds.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use openraft::error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{OptionalSend, RaftNetwork, RaftNetworkFactory, Snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::confirmations::Confirmations;
use super::log_files::lock;
use super::wire::{self, Answer, FRAME_HEADER, FrameError, HandshakeRefusal, Hello, Identity, PROTOCOL, Request, SnapshotPiece};
use super::{ConsensusId, Member, Types, Vote};
use crate::limits;
use crate::request::Refusal;

/// What was sent and received on the consensus port and from it.
#[derive(Debug, Default)]
pub struct ConsensusCounters {
    /// Frames that this node sent, questions and answers.
    pub frames_sent: AtomicU64,
    /// Their length, bytes.
    pub bytes_sent: AtomicU64,
    /// Handshakes that this node refused or that were refused to it.
    pub handshakes_refused: AtomicU64,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No connection, or it broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// The other side does not talk to this node.
    #[error("refused: {0}")]
    Refused(HandshakeRefusal),
    /// The other side says what this one does not understand.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The answer is to another question.
    #[error("an answer that does not belong to its request")]
    Unexpected,
    /// The other side can't do it.
    #[error("{0}")]
    Declined(Refusal),
}

impl PeerError {
    /// Of an answer that is not what was asked for.
    fn of(answer: Answer) -> PeerError {
        match answer {
            Answer::Refused(refusal) => PeerError::Declined(refusal),
            _ => PeerError::Unexpected,
        }
    }
}

impl From<super::codec::CodecError> for PeerError {
    fn from(error: super::codec::CodecError) -> PeerError {
        PeerError::Frame(error.into())
    }
}

/// Reads a payload of at most `most` bytes. Waits without end for its first byte, then no longer than [`limits::CONSENSUS_FRAME_S`] for the rest. Memory is taken as bytes
/// come, not as they are announced.
pub async fn read_payload(stream: &mut TcpStream, most: usize) -> Result<Vec<u8>, PeerError> {
    let mut header = [0; FRAME_HEADER];
    stream.read_exact(&mut header[..1]).await?;
    let rest = async {
        stream.read_exact(&mut header[1..]).await?;
        let (length, crc) = wire::read_frame_header(header, most)?;
        let mut payload = Vec::new();
        let mut limited = stream.take(length as u64);
        while payload.len() < length {
            if limited.read_buf(&mut payload).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        wire::check_payload(&payload, crc)?;
        Ok(payload)
    };
    timeout(Duration::from_secs(limits::CONSENSUS_FRAME_S), rest).await.unwrap_or(Err(PeerError::Timeout))
}

/// Sends a payload.
pub async fn write_payload(stream: &mut TcpStream, payload: &[u8], counters: &ConsensusCounters) -> Result<(), PeerError> {
    let frame = wire::frame(payload);
    let write = timeout(Duration::from_secs(limits::CONSENSUS_FRAME_S), stream.write_all(&frame));
    write.await.map_err(|_| PeerError::Timeout)??;
    counters.frames_sent.fetch_add(1, Relaxed);
    counters.bytes_sent.fetch_add(frame.len() as u64, Relaxed);
    Ok(())
}

/// Opens connections.
#[derive(Debug)]
pub struct Dialer {
    /// Who connects.
    pub me: Identity,
    /// Counts.
    pub counters: Arc<ConsensusCounters>,
    /// How long to wait for one that does not answer; also the pause between two tries of the library.
    pub pause: Duration,
    /// Who has acknowledged this node as the leader, as it comes.
    pub confirmations: watch::Sender<Confirmations>,
    refusals: Mutex<HashMap<String, HandshakeRefusal>>,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Who is at the other end.
    pub peer: Identity,
}

impl Dialer {
    /// For this node.
    pub fn new(me: Identity, counters: Arc<ConsensusCounters>, pause: Duration) -> Dialer {
        Dialer { me, counters, pause, confirmations: watch::Sender::default(), refusals: Mutex::default() }
    }

    /// Connects and shakes hands. `to`: whom it means; 0 takes any node.
    pub async fn connect(&self, address: &str, to: ConsensusId) -> Result<Connection, PeerError> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let hello = Hello { protocol: PROTOCOL, from: self.me, to };
        write_payload(&mut stream, &hello.encode(), &self.counters).await?;
        let welcome = timeout(Duration::from_secs(limits::CONSENSUS_FRAME_S), read_payload(&mut stream, limits::MAX_CONSENSUS_HELLO));
        match wire::decode_welcome(&welcome.await.map_err(|_| PeerError::Timeout)??)? {
            Ok(peer) => {
                lock(&self.refusals).remove(address);
                Ok(Connection { stream, peer })
            }
            Err(refusal) => {
                self.counters.handshakes_refused.fetch_add(1, Relaxed);
                if lock(&self.refusals).insert(address.into(), refusal.clone()).as_ref() != Some(&refusal) {
                    tracing::warn!(address, %refusal, "the node there does not talk to this one");
                }
                Err(PeerError::Refused(refusal))
            }
        }
    }

    /// One request to whoever is there, on a connection of its own.
    pub async fn ask(&self, address: &str, request: &Request, within: Duration) -> Result<Answer, PeerError> {
        let talk = async { self.connect(address, 0).await?.call(request, &self.counters).await };
        timeout(within, talk).await.unwrap_or(Err(PeerError::Timeout))
    }
}

impl Connection {
    /// One request and its answer.
    pub async fn call(&mut self, request: &Request, counters: &ConsensusCounters) -> Result<Answer, PeerError> {
        write_payload(&mut self.stream, &request.encode(), counters).await?;
        Ok(Answer::decode(&read_payload(&mut self.stream, limits::MAX_CONSENSUS_FRAME).await?)?)
    }
}

/// A node that is asked again and again, over a connection that is opened when it is needed.
#[derive(Debug)]
pub struct Client {
    dialer: Arc<Dialer>,
    id: ConsensusId,
    address: String,
    connection: Option<Connection>,
}

impl Client {
    /// To this life of a node.
    pub fn new(dialer: Arc<Dialer>, id: ConsensusId, address: String) -> Client {
        Client { dialer, id, address, connection: None }
    }

    /// Whether it is to this life of a node at this address.
    pub fn is_to(&self, id: ConsensusId, address: &str) -> bool {
        (self.id, self.address.as_str()) == (id, address)
    }

    /// One request and its answer, within a time. Should this future be dropped, the connection goes with it.
    pub async fn call(&mut self, request: &Request, within: Duration) -> Result<Answer, PeerError> {
        let had_one = self.connection.take();
        let talk = async {
            if let Some(mut connection) = had_one
                && let Ok(answer) = connection.call(request, &self.dialer.counters).await
            {
                return Ok((connection, answer));
            }
            let mut connection = self.dialer.connect(&self.address, self.id).await?;
            let answer = connection.call(request, &self.dialer.counters).await?;
            Ok((connection, answer))
        };
        let (connection, answer) = timeout(within, talk).await.unwrap_or(Err(PeerError::Timeout))?;
        self.connection = Some(connection);
        Ok(answer)
    }
}

type RpcError = RPCError<ConsensusId, Member, RaftError<ConsensusId>>;

/// Always what the library waits after before it tries again: whatever is wrong with a node that answers at once, it must not be asked without a pause.
fn rpc_error(error: PeerError) -> RpcError {
    RPCError::Unreachable(Unreachable::new(&error))
}

impl RaftNetworkFactory<Types> for Arc<Dialer> {
    type Network = Client;

    async fn new_client(&mut self, target: ConsensusId, node: &Member) -> Client {
        Client::new(Arc::clone(self), target, node.address.clone())
    }
}

impl RaftNetwork<Types> for Client {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<ConsensusId>, RpcError> {
        let (term, sent) = (rpc.vote.leader_id().term, Instant::now());
        match self.call(&Request::Append(rpc), option.hard_ttl()).await.map_err(rpc_error)? {
            Answer::Append(response) => {
                if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                    self.dialer.confirmations.send_modify(|confirmations| confirmations.note(term, self.id, sent));
                }
                Ok(response)
            }
            other => Err(rpc_error(PeerError::of(other))),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<ConsensusId>, option: RPCOption) -> Result<VoteResponse<ConsensusId>, RpcError> {
        match self.call(&Request::Vote(rpc), option.hard_ttl()).await.map_err(rpc_error)? {
            Answer::Vote(response) => Ok(response),
            other => Err(rpc_error(PeerError::of(other))),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<ConsensusId>, StreamingError<Types, Fatal<ConsensusId>>> {
        let send = async {
            let (data, meta) = (*snapshot.snapshot, snapshot.meta);
            let mut offset = 0;
            loop {
                let end = data.len().min(offset + limits::CONSENSUS_CHUNK);
                let piece = SnapshotPiece {
                    vote,
                    meta: meta.clone(),
                    total: data.len() as u64,
                    offset: offset as u64,
                    data: data.slice(offset..end),
                };
                match self.call(&Request::Snapshot(piece), option.hard_ttl()).await? {
                    Answer::More if end < data.len() => offset = end,
                    Answer::Snapshot(higher) => return Ok(SnapshotResponse::new(higher)),
                    other => return Err(PeerError::of(other)),
                }
            }
        };
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = send => sent.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error))),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.dialer.pause))
    }
}
