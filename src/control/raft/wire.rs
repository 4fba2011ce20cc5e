//! What nodes say to each other on the consensus port: frames, the handshake, requests and answers. Pure.
//!
//! ```text
//! u32 length of the rest | u32 crc of the payload | payload
//! ```
//!
//! One request is under way on a connection at a time, so frames have no numbers; whoever gives up waiting closes the connection. The first frame of each side is
//! the handshake: it says which cluster, which life of which node, and which life of which node is meant. Length is checked before anything is
//! read, and whatever the library would take on trust (that entries follow each other) is checked before it gets it.

use bytes::Bytes;
use openraft::SnapshotMeta;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};

use super::codec::{self, CodecError, Reader};
use super::{ConsensusId, LogId, Member, Proposal, Types, Vote};
use crate::limits;
use crate::request::{Code, Refusal};

/// Version of what is said; another one is refused.
pub const PROTOCOL: u16 = 1;
const MAGIC: &[u8; 8] = b"CLCONSEN";
/// Length and checksum.
pub const FRAME_HEADER: usize = 8;
/// Entries of one message at most; the bytes have their own bound.
const MAX_ENTRIES: usize = 100_000;
/// Longest word of a refusal, bytes.
const MAX_WORDS: usize = 4096;

/// Bytes that are no frame.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Too long.
    #[error("a frame of {actual} bytes, at most {most} can be")]
    TooLong {
        /// Announced, bytes.
        actual: usize,
        /// Bound, bytes.
        most: usize,
    },
    /// Harmed on the way.
    #[error("a frame does not check: its checksum is {actual:08x}, its bytes give {expected:08x}")]
    Checksum {
        /// Computed.
        expected: u32,
        /// Found.
        actual: u32,
    },
    /// Whole, but it makes no sense.
    #[error("a message: {0}")]
    Content(#[from] CodecError),
}

/// A frame around a payload.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() <= limits::MAX_CONSENSUS_FRAME, "what is sent is bounded where it is made");
    let mut out = Vec::with_capacity(FRAME_HEADER + payload.len());
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    out.extend_from_slice(payload);
    out
}

/// Length of the payload and its checksum.
pub fn read_frame_header(header: [u8; FRAME_HEADER], most: usize) -> Result<(usize, u32), FrameError> {
    let [a, b, c, d, e, f, g, h] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > most {
        return Err(FrameError::TooLong { actual: length, most });
    }
    Ok((length, u32::from_le_bytes([e, f, g, h])))
}

/// Holds a payload against its checksum.
pub fn check_payload(payload: &[u8], actual: u32) -> Result<(), FrameError> {
    let expected = crc32fast::hash(payload);
    if expected != actual {
        return Err(FrameError::Checksum { expected, actual });
    }
    Ok(())
}

/// Who a node is, in the cluster and in the consensus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster; all zero of a node that has none yet.
    pub cluster: [u8; 16],
    /// Its id in the cluster.
    pub node: u32,
    /// Its id in the consensus; 0 of one that has none yet.
    pub id: ConsensusId,
}

/// The first words of who connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Version of what it says.
    pub protocol: u16,
    /// Who it is.
    pub from: Identity,
    /// Whom it means; 0 takes any node.
    pub to: ConsensusId,
}

/// Why nothing is said after the first words.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandshakeRefusal {
    /// Another version.
    #[error("it speaks version {expected} of the protocol between nodes, this node {actual}")]
    Protocol {
        /// The answering node's.
        expected: u16,
        /// The other one's.
        actual: u16,
    },
    /// Another cluster.
    #[error("it belongs to cluster {}, this node to {}", uuid::Uuid::from_bytes(*expected), uuid::Uuid::from_bytes(*actual))]
    Cluster {
        /// The answering node's.
        expected: [u8; 16],
        /// The other one's.
        actual: [u8; 16],
    },
    /// Another node, or another life of it, is meant.
    #[error("node {node} has incarnation {expected:016x} now, not {actual:016x}")]
    Incarnation {
        /// The answering node.
        node: u32,
        /// Its id in the consensus.
        expected: ConsensusId,
        /// The one that was meant.
        actual: ConsensusId,
    },
    /// It has the very identity of the one that answers.
    #[error("it has the identity of this node, {0:016x}: a data directory runs twice, or a copy of it")]
    Twin(ConsensusId),
}

impl Hello {
    /// Judges the first words.
    pub fn check(&self, me: &Identity) -> Result<(), HandshakeRefusal> {
        if self.protocol != PROTOCOL {
            return Err(HandshakeRefusal::Protocol { expected: PROTOCOL, actual: self.protocol });
        }
        if self.from.cluster != [0; 16] && self.from.cluster != me.cluster {
            return Err(HandshakeRefusal::Cluster { expected: me.cluster, actual: self.from.cluster });
        }
        if self.to != 0 && self.to != me.id {
            return Err(HandshakeRefusal::Incarnation { node: me.node, expected: me.id, actual: self.to });
        }
        if self.from.id != 0 && self.from.id == me.id {
            return Err(HandshakeRefusal::Twin(me.id));
        }
        Ok(())
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.protocol.to_le_bytes());
        put_identity(&mut out, &self.from);
        out.extend_from_slice(&self.to.to_le_bytes());
        out
    }

    /// Reads it. Of another version, what comes behind the version is not looked at.
    pub fn decode(payload: &[u8]) -> Result<Hello, CodecError> {
        let mut reader = Reader::new(payload);
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(CodecError::Invalid("not a node of a cluster"));
        }
        let protocol = reader.u16()?;
        if protocol != PROTOCOL {
            return Ok(Hello { protocol, from: Identity { cluster: [0; 16], node: 0, id: 0 }, to: 0 });
        }
        let hello = Hello { protocol, from: read_identity(&mut reader)?, to: reader.u64()? };
        reader.end()?;
        Ok(hello)
    }
}

/// The answer to the first words.
pub fn encode_welcome(answer: &Result<Identity, HandshakeRefusal>) -> Vec<u8> {
    let mut out = Vec::new();
    match answer {
        Ok(identity) => {
            out.push(0);
            put_identity(&mut out, identity);
        }
        Err(HandshakeRefusal::Protocol { expected, actual }) => {
            out.push(1);
            out.extend_from_slice(&expected.to_le_bytes());
            out.extend_from_slice(&actual.to_le_bytes());
        }
        Err(HandshakeRefusal::Cluster { expected, actual }) => {
            out.push(2);
            out.extend_from_slice(expected);
            out.extend_from_slice(actual);
        }
        Err(HandshakeRefusal::Incarnation { node, expected, actual }) => {
            out.push(3);
            out.extend_from_slice(&node.to_le_bytes());
            out.extend_from_slice(&expected.to_le_bytes());
            out.extend_from_slice(&actual.to_le_bytes());
        }
        Err(HandshakeRefusal::Twin(id)) => {
            out.push(4);
            out.extend_from_slice(&id.to_le_bytes());
        }
    }
    out
}

/// Reads the answer to the first words.
pub fn decode_welcome(payload: &[u8]) -> Result<Result<Identity, HandshakeRefusal>, CodecError> {
    let mut reader = Reader::new(payload);
    let answer = match reader.u8()? {
        0 => Ok(read_identity(&mut reader)?),
        1 => Err(HandshakeRefusal::Protocol { expected: reader.u16()?, actual: reader.u16()? }),
        2 => Err(HandshakeRefusal::Cluster { expected: reader.uuid()?, actual: reader.uuid()? }),
        3 => Err(HandshakeRefusal::Incarnation { node: reader.u32()?, expected: reader.u64()?, actual: reader.u64()? }),
        4 => Err(HandshakeRefusal::Twin(reader.u64()?)),
        _ => return Err(CodecError::Invalid("a refusal of a kind that this version does not know")),
    };
    reader.end()?;
    Ok(answer)
}

fn put_identity(out: &mut Vec<u8>, identity: &Identity) {
    out.extend_from_slice(&identity.cluster);
    out.extend_from_slice(&identity.node.to_le_bytes());
    out.extend_from_slice(&identity.id.to_le_bytes());
}

fn read_identity(reader: &mut Reader<'_>) -> Result<Identity, CodecError> {
    Ok(Identity { cluster: reader.uuid()?, node: reader.u32()?, id: reader.u64()? })
}

/// A piece of a snapshot.
#[derive(Clone, PartialEq, Debug)]
pub struct SnapshotPiece {
    /// The leader's vote.
    pub vote: Vote,
    /// What the snapshot stands for.
    pub meta: SnapshotMeta<ConsensusId, Member>,
    /// Length of the whole, bytes.
    pub total: u64,
    /// Where the piece begins, bytes.
    pub offset: u64,
    /// The piece.
    pub data: Bytes,
}

/// What a node asks of another.
#[derive(Clone, Debug)]
pub enum Request {
    /// The library's.
    Vote(VoteRequest<ConsensusId>),
    /// The library's.
    Append(AppendEntriesRequest<Types>),
    /// A piece of a snapshot; the last one is answered when it is installed.
    Snapshot(SnapshotPiece),
    /// Who leads?
    Leader,
    /// This node wants to be a member.
    Join {
        /// Its id in the consensus.
        id: ConsensusId,
        /// Where it is.
        member: Member,
    },
    /// Commands for the leader.
    Propose(Proposal),
    /// This node lives.
    Heartbeat {
        /// Its id in the consensus.
        id: ConsensusId,
    },
    /// A node is to be no member any more.
    Remove {
        /// Which.
        node: u32,
    },
}

/// Why a node is not let in, or not put out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MembershipRefusal {
    /// Its id is that of a node that lives.
    #[error("node id {node} is in use by the node at {address}")]
    NodeInUse {
        /// Which id.
        node: u32,
        /// Where its owner is.
        address: String,
    },
    /// Its address is that of a node that lives.
    #[error("the address {address} is that of node {node}")]
    AddressInUse {
        /// Which.
        address: String,
        /// Whose.
        node: u32,
    },
    /// There are as many nodes as can be.
    #[error("the cluster has {0} nodes, which is as many as can be")]
    Full(u32),
    /// There is no such node.
    #[error("there is no node {0}")]
    Unknown(u32),
    /// It is the only one that has a vote.
    #[error("node {0} is the only voter")]
    LastVoter(u32),
}

/// What it gets.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// The library's.
    Vote(VoteResponse<ConsensusId>),
    /// The library's.
    Append(AppendEntriesResponse<ConsensusId>),
    /// The snapshot is installed, or there is this higher vote.
    Snapshot(Vote),
    /// The piece is there; the next one.
    More,
    /// Who leads, as far as is known.
    Leader(Option<(ConsensusId, Member)>),
    /// Done: joined, removed, or the proposal is in the log of a majority.
    Done,
    /// The leader has noted it, and was the leader when it did.
    Alive,
    /// The leader counts this node as gone; it must register anew.
    Fenced,
    /// Another node is to be asked, where one is known.
    NotLeader(Option<(ConsensusId, Member)>),
    /// Not let in, or not put out.
    Membership(MembershipRefusal),
    /// Refused.
    Refused(Refusal),
}

impl Request {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Request::Vote(request) => {
                out.push(1);
                codec::put_vote(&mut out, &request.vote);
                codec::put_some_log_id(&mut out, request.last_log_id.as_ref());
            }
            Request::Append(request) => {
                out.push(2);
                codec::put_vote(&mut out, &request.vote);
                codec::put_some_log_id(&mut out, request.prev_log_id.as_ref());
                codec::put_some_log_id(&mut out, request.leader_commit.as_ref());
                out.extend_from_slice(&(request.entries.len() as u32).to_le_bytes());
                request.entries.iter().for_each(|entry| codec::put_entry(&mut out, entry));
            }
            Request::Snapshot(piece) => {
                out.push(3);
                codec::put_vote(&mut out, &piece.vote);
                codec::put_snapshot_meta(&mut out, &piece.meta);
                out.extend_from_slice(&piece.total.to_le_bytes());
                out.extend_from_slice(&piece.offset.to_le_bytes());
                codec::put_bytes(&mut out, &piece.data);
            }
            Request::Leader => out.push(4),
            Request::Join { id, member } => {
                out.push(5);
                out.extend_from_slice(&id.to_le_bytes());
                codec::put_member(&mut out, member);
            }
            Request::Propose(proposal) => {
                out.push(6);
                codec::put_proposal(&mut out, proposal);
            }
            Request::Heartbeat { id } => {
                out.push(7);
                out.extend_from_slice(&id.to_le_bytes());
            }
            Request::Remove { node } => {
                out.push(8);
                out.extend_from_slice(&node.to_le_bytes());
            }
        }
        out
    }

    /// Reads it, and checks what its receiver takes on trust.
    pub fn decode(payload: &[u8]) -> Result<Request, CodecError> {
        let mut reader = Reader::new(payload);
        let request = match reader.u8()? {
            1 => Request::Vote(VoteRequest { vote: codec::read_vote(&mut reader)?, last_log_id: codec::read_some_log_id(&mut reader)? }),
            2 => Request::Append(read_append(&mut reader)?),
            3 => Request::Snapshot(read_piece(&mut reader)?),
            4 => Request::Leader,
            5 => {
                let id = reader.u64()?;
                if id == 0 {
                    return Err(CodecError::Invalid("a member has no id 0"));
                }
                Request::Join { id, member: codec::read_member(&mut reader)? }
            }
            6 => Request::Propose(codec::read_proposal(&mut reader)?),
            7 => Request::Heartbeat { id: reader.u64()? },
            8 => Request::Remove { node: reader.u32()? },
            _ => return Err(CodecError::Invalid("a request of a kind that this version does not know")),
        };
        reader.end()?;
        Ok(request)
    }
}

fn read_append(reader: &mut Reader<'_>) -> Result<AppendEntriesRequest<Types>, CodecError> {
    let vote = codec::read_vote(reader)?;
    let (prev_log_id, leader_commit) = (codec::read_some_log_id(reader)?, codec::read_some_log_id(reader)?);
    if !vote.committed {
        return Err(CodecError::Invalid("entries of one that was not elected"));
    }
    let count = reader.u32()? as usize;
    if count > MAX_ENTRIES {
        return Err(CodecError::Invalid("more entries than one message has"));
    }
    let (mut entries, mut last) = (Vec::new(), prev_log_id);
    for _ in 0..count {
        let entry = codec::read_entry(reader)?;
        let next = last.map_or(0, |id: LogId| id.index + 1);
        if entry.log_id.index != next || Some(entry.log_id) <= last || entry.log_id.leader_id.term > vote.leader_id.term {
            return Err(CodecError::Invalid("entries that do not follow each other"));
        }
        last = Some(entry.log_id);
        entries.push(entry);
    }
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

fn read_piece(reader: &mut Reader<'_>) -> Result<SnapshotPiece, CodecError> {
    let (vote, meta) = (codec::read_vote(reader)?, codec::read_snapshot_meta(reader)?);
    let (total, offset) = (reader.u64()?, reader.u64()?);
    let data = Bytes::copy_from_slice(reader.bytes(limits::CONSENSUS_CHUNK)?);
    if !vote.committed || meta.last_log_id.is_none() {
        return Err(CodecError::Invalid("a snapshot of one that was not elected, or of nothing"));
    }
    if total > limits::MAX_CONSENSUS_SNAPSHOT as u64 || offset.checked_add(data.len() as u64).is_none_or(|end| end > total) {
        return Err(CodecError::Invalid("a snapshot is longer than it can be, or its piece does not lie in it"));
    }
    Ok(SnapshotPiece { vote, meta, total, offset, data })
}

fn put_place(out: &mut Vec<u8>, place: Option<&(ConsensusId, Member)>) {
    out.push(u8::from(place.is_some()));
    if let Some((id, member)) = place {
        out.extend_from_slice(&id.to_le_bytes());
        codec::put_member(out, member);
    }
}

fn read_place(reader: &mut Reader<'_>) -> Result<Option<(ConsensusId, Member)>, CodecError> {
    Ok(if reader.bool()? { Some((reader.u64()?, codec::read_member(reader)?)) } else { None })
}

fn words(text: &str) -> &[u8] {
    let end = (0..=text.len().min(MAX_WORDS)).rev().find(|end| text.is_char_boundary(*end));
    &text.as_bytes()[..end.unwrap_or(0)]
}

impl Answer {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Answer::Vote(response) => {
                out.push(1);
                codec::put_vote(&mut out, &response.vote);
                out.push(u8::from(response.vote_granted));
                codec::put_some_log_id(&mut out, response.last_log_id.as_ref());
            }
            Answer::Append(response) => {
                out.push(2);
                match response {
                    AppendEntriesResponse::Success => out.push(0),
                    AppendEntriesResponse::PartialSuccess(upto) => {
                        out.push(1);
                        codec::put_some_log_id(&mut out, upto.as_ref());
                    }
                    AppendEntriesResponse::Conflict => out.push(2),
                    AppendEntriesResponse::HigherVote(vote) => {
                        out.push(3);
                        codec::put_vote(&mut out, vote);
                    }
                }
            }
            Answer::Snapshot(vote) => {
                out.push(3);
                codec::put_vote(&mut out, vote);
            }
            Answer::More => out.push(4),
            Answer::Leader(place) => {
                out.push(5);
                put_place(&mut out, place.as_ref());
            }
            Answer::Done => out.push(6),
            Answer::Alive => out.push(7),
            Answer::Fenced => out.push(8),
            Answer::NotLeader(place) => {
                out.push(9);
                put_place(&mut out, place.as_ref());
            }
            Answer::Membership(refusal) => {
                let (kind, node, address) = match refusal {
                    MembershipRefusal::NodeInUse { node, address } => (0, *node, address.as_str()),
                    MembershipRefusal::AddressInUse { address, node } => (1, *node, address.as_str()),
                    MembershipRefusal::Full(nodes) => (2, *nodes, ""),
                    MembershipRefusal::Unknown(node) => (3, *node, ""),
                    MembershipRefusal::LastVoter(node) => (4, *node, ""),
                };
                out.extend_from_slice(&[10, kind]);
                out.extend_from_slice(&node.to_le_bytes());
                codec::put_bytes(&mut out, address.as_bytes());
            }
            Answer::Refused(refusal) => {
                out.push(11);
                out.extend_from_slice(&refusal.code.value().to_le_bytes());
                codec::put_bytes(&mut out, words(&refusal.message));
            }
        }
        out
    }

    /// Reads it.
    pub fn decode(payload: &[u8]) -> Result<Answer, CodecError> {
        let mut reader = Reader::new(payload);
        let answer = match reader.u8()? {
            1 => Answer::Vote(VoteResponse {
                vote: codec::read_vote(&mut reader)?,
                vote_granted: reader.bool()?,
                last_log_id: codec::read_some_log_id(&mut reader)?,
            }),
            2 => Answer::Append(match reader.u8()? {
                0 => AppendEntriesResponse::Success,
                1 => AppendEntriesResponse::PartialSuccess(codec::read_some_log_id(&mut reader)?),
                2 => AppendEntriesResponse::Conflict,
                3 => AppendEntriesResponse::HigherVote(codec::read_vote(&mut reader)?),
                _ => return Err(CodecError::Invalid("an outcome of a kind that this version does not know")),
            }),
            3 => Answer::Snapshot(codec::read_vote(&mut reader)?),
            4 => Answer::More,
            5 => Answer::Leader(read_place(&mut reader)?),
            6 => Answer::Done,
            7 => Answer::Alive,
            8 => Answer::Fenced,
            9 => Answer::NotLeader(read_place(&mut reader)?),
            10 => {
                let (kind, node, address) = (reader.u8()?, reader.u32()?, reader.text(limits::MAX_NODE_ADDRESS)?);
                Answer::Membership(match kind {
                    0 => MembershipRefusal::NodeInUse { node, address },
                    1 => MembershipRefusal::AddressInUse { address, node },
                    2 => MembershipRefusal::Full(node),
                    3 => MembershipRefusal::Unknown(node),
                    4 => MembershipRefusal::LastVoter(node),
                    _ => return Err(CodecError::Invalid("a refusal of a kind that this version does not know")),
                })
            }
            11 => {
                let code = i16::from_le_bytes(reader.u16()?.to_le_bytes());
                let code = Code::from_value(code).unwrap_or(Code::Internal);
                Answer::Refused(Refusal::new(code, reader.text(MAX_WORDS)?))
            }
            _ => return Err(CodecError::Invalid("an answer of a kind that this version does not know")),
        };
        reader.end()?;
        Ok(answer)
    }
}
