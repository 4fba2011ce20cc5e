//! The receiving side of a connection between two shards of two nodes, and the handshake of both sides.
//!
//! A frame's payload is received into memory of its own, from which each message gets its slice: one copy from the socket, as for any batch.

use std::io;

use bytes::Bytes;
use flatbuffers::FlatBufferBuilder;
use futures_util::io::{BufReader, ReadHalf};
use futures_util::{AsyncReadExt, AsyncWriteExt};
use glommio::net::TcpStream;

use crate::limits::{MAX_LINK_FRAME, MAX_LINK_HELLO, RECEIVE_BUFFER};
use crate::replication::codec::{self, CodecError, Frame, Hello, HelloReply, MAGIC};
use crate::wire::{FrameError, PREFIX_LEN, peek};

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub enum LinkEnd {
    /// The socket.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Lengths or checksum.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A header.
    #[error("{0}")]
    Codec(#[from] CodecError),
    /// It did not begin as it should.
    #[error("expected {expected}, got something else")]
    Unexpected {
        /// What.
        expected: &'static str,
    },
    /// The other side does not want to.
    #[error("refused: {0}")]
    Refused(String),
}

/// Reads frames.
pub struct Receiver {
    socket: BufReader<ReadHalf<TcpStream>>,
}

impl Receiver {
    /// From the read half of a connection.
    pub fn new(socket: ReadHalf<TcpStream>) -> Receiver {
        Receiver { socket: BufReader::with_capacity(RECEIVE_BUFFER, socket) }
    }

    /// The next frame and its payload.
    pub async fn next(&mut self) -> Result<(Frame, Bytes), LinkEnd> {
        self.next_within(MAX_LINK_FRAME).await
    }

    async fn next_within(&mut self, most: usize) -> Result<(Frame, Bytes), LinkEnd> {
        let mut prefix = [0; PREFIX_LEN];
        self.socket.read_exact(&mut prefix).await?;
        let lengths = peek(&prefix, most)?.ok_or(LinkEnd::Unexpected { expected: "a frame" })?;
        let mut header = vec![0; lengths.header_len()];
        self.socket.read_exact(&mut header).await?;
        lengths.check_header(&header)?;
        let frame = codec::decode(&header, lengths.payload_len())?;
        let mut payload = vec![0; lengths.payload_len()];
        self.socket.read_exact(&mut payload).await?;
        Ok((frame, payload.into()))
    }

    async fn expect_magic(&mut self) -> Result<(), LinkEnd> {
        let mut magic = [0; MAGIC.len()];
        self.socket.read_exact(&mut magic).await?;
        if magic == MAGIC { Ok(()) } else { Err(LinkEnd::Unexpected { expected: "the magic of a replication connection" }) }
    }
}

/// The connecting side of the handshake.
pub async fn introduce(stream: &mut TcpStream, hello: &Hello) -> Result<(), LinkEnd> {
    let mut out = MAGIC.to_vec();
    codec::encode(&Frame::Hello(hello.clone()), 0, &mut FlatBufferBuilder::new(), &mut out);
    Ok(stream.write_all(&out).await?)
}

/// Its answer.
pub async fn await_reply(receiver: &mut Receiver) -> Result<HelloReply, LinkEnd> {
    match receiver.next_within(MAX_LINK_HELLO).await?.0 {
        Frame::HelloReply(reply) => reply.map_err(LinkEnd::Refused),
        _ => Err(LinkEnd::Unexpected { expected: "an answer to the hello" }),
    }
}

/// The accepting side: what the other one says first.
pub async fn await_hello(receiver: &mut Receiver) -> Result<Hello, LinkEnd> {
    receiver.expect_magic().await?;
    match receiver.next_within(MAX_LINK_HELLO).await?.0 {
        Frame::Hello(hello) => Ok(hello),
        _ => Err(LinkEnd::Unexpected { expected: "a hello" }),
    }
}

/// The bytes of the answer.
pub fn reply_bytes(reply: Result<HelloReply, String>) -> Vec<u8> {
    let mut out = Vec::new();
    codec::encode(&Frame::HelloReply(reply), 0, &mut FlatBufferBuilder::new(), &mut out);
    out
}

/// Each message's bytes of a frame's payload, in order.
pub fn slices<'a>(items: Vec<codec::PartitionMessage>, payload: &'a Bytes) -> impl Iterator<Item = (codec::PartitionMessage, Bytes)> + 'a {
    let mut at = 0;
    items.into_iter().map(move |item| {
        let end = at + item.payload_len as usize;
        let bytes = payload.slice(at..end);
        at = end;
        (item, bytes)
    })
}
