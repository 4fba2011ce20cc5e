//! Values too large to hold: written from a reader, read as a reader. Each uses a connection of its own, so that nothing waits behind it.

use std::io::{self, Cursor};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::brokers::{Brokers, unexpected};
use super::connection::open_stream;
use super::delivery::RecordMetadata;
use super::error::{ClientError, ProduceFailure};
use super::partitioner::partition_of_key;
use super::receive::Receiver;
use crate::batch::{BatchError, BatchHeader, CRC_START, RecordHead, StreamedBatch, decode, split_batch};
use crate::checksum::Crc32c;
use crate::limits;
use crate::request::{Acks, Code, Fetch, FetchPartition, Produce, ProduceBatch, ReadFrom, Refusal, Request, Response};
use crate::types::{Offset, Timestamp, TopicPartition};
use crate::wire::{PREFIX_LEN, RequestEncoder, decode_response, encode_request, peek_response};

/// A value is copied from reader to socket in pieces of this size, bytes.
const PIECE: usize = 256 * 1024;

/// Where a value goes.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
    /// Counts the values; without a key they take turns.
    pub turn: u32,
}

/// See [`super::Producer::send_reader`].
pub(super) async fn send_reader(
    brokers: &Brokers,
    acks: Acks,
    place: Place<'_>,
    length: u64,
    timestamp: Timestamp,
    mut value: impl AsyncRead + Unpin,
) -> Result<RecordMetadata, ProduceFailure> {
    let mut is_begun = false;
    let first = send_once(brokers, acks, place, length, timestamp, &mut value, &mut is_begun).await;
    if let Err(ProduceFailure::Client(error)) = &first
        && renews_metadata(brokers, place.topic, error, !is_begun).await
    {
        return send_once(brokers, acks, place, length, timestamp, &mut value, &mut is_begun).await;
    }
    first
}

/// Where a failure may come from what is known of the topic, it is forgotten: the next call asks. With `may_repeat` that is done here; true where there is
/// an answer, and the same is worth another attempt.
async fn renews_metadata(brokers: &Brokers, topic: &str, error: &ClientError, may_repeat: bool) -> bool {
    if !error.is_about_leadership() {
        return false;
    }
    brokers.forget_topic(topic);
    // Who has waited for a whole time-out does not want to wait for another.
    may_repeat && !matches!(error, ClientError::TimedOut { .. }) && brokers.find_leaders(topic).await.is_ok()
}

/// One attempt; `is_begun` where it can't be made again, because something of the value was read or all that there is may be written.
async fn send_once(
    brokers: &Brokers,
    acks: Acks,
    Place { topic, key, turn }: Place<'_>,
    length: u64,
    timestamp: Timestamp,
    value: &mut (impl AsyncRead + Unpin),
    is_begun: &mut bool,
) -> Result<RecordMetadata, ProduceFailure> {
    let found = brokers.topic(topic).await?;
    let count = found.partitions.len() as u32;
    if count == 0 {
        return Err(ClientError::Invalid(format!("{topic:?} has no partitions")).into());
    }
    let partition = key.map_or(turn % count, |key| partition_of_key(key, count));
    let value_len = usize::try_from(length).unwrap_or(usize::MAX);
    let batch = StreamedBatch::new(timestamp, key, value_len, &[], None).map_err(ClientError::from)?;
    let max = found.max_message_bytes as usize;
    if batch.total_len > max {
        return Err(ClientError::from(BatchError::TooLarge { max, actual: batch.total_len }).into());
    }
    let leader = Brokers::leader(&found, topic, partition)?;
    let address = address_of(brokers, leader)?;
    let (mut stream, reply, receiver) = open_stream(&address, &brokers.settings.connection).await?;

    let place = TopicPartition { topic: found.id, partition };
    let batches = vec![ProduceBatch { partition: place, range: 0..batch.total_len }];
    let timeout = brokers.settings.connection.request_timeout;
    let request = Request::Produce(Produce { acks, timeout_ms: timeout.as_millis() as u32, batches, crc_trailer: true });
    let mut head = Vec::new();
    encode_request(&mut RequestEncoder::new(), 1, &request, batch.total_len + 4, &mut head)
        .map_err(|e| ClientError::Invalid(e.to_string()))?;
    if head.len() + batch.total_len > reply.max_frame as usize {
        let what = format!("a value of {length} bytes does not fit a frame of {address}, whose limit is {} bytes", reply.max_frame);
        return Err(ClientError::Invalid(what).into());
    }
    head.extend_from_slice(&batch.prefix);
    let sent = write_batch(&mut stream, &head, &batch, value, is_begun).await;
    if let Err(ProduceFailure::Reader(_)) = sent {
        return Err(ProduceFailure::Reader(sent.unwrap_err().to_string()));
    }
    if acks == Acks::None {
        sent?;
        return Ok(RecordMetadata { partition, offset: -1, timestamp });
    }
    // A broker that refuses may answer before it has read all, and close: its answer says more than the broken pipe.
    let lost = |cause: String| ClientError::Disconnected { address: address.clone(), cause };
    let answer = tokio::time::timeout(timeout, read_response(&mut stream, receiver)).await;
    let response = match (answer, sent) {
        (Ok(Ok(response)), _) => response,
        (_, Err(error)) => return Err(error),
        (Ok(Err(cause)), Ok(())) => return Err(lost(cause).into()),
        (Err(_), Ok(())) => return Err(ClientError::TimedOut { address, timeout_ms: timeout.as_millis() as u64 }.into()),
    };
    match response {
        Response::Produce(mut results) if results.len() == 1 => {
            let appended = results.remove(0).outcome.map_err(ClientError::from)?;
            let timestamp = if appended.log_append_time < 0 { timestamp } else { appended.log_append_time };
            Ok(RecordMetadata { partition, offset: appended.base_offset, timestamp })
        }
        other => Err(unexpected(&other).into()),
    }
}

/// Where a shard listens. A leader that is not known is one of another time.
fn address_of(brokers: &Brokers, leader: u32) -> Result<String, ClientError> {
    let unknown = || Refusal::new(Code::NotLeader, format!("no broker with the advertised id {leader} is known"));
    brokers.address(leader).ok_or_else(|| unknown().into())
}

/// Writes header, value and checksum, piece by piece.
async fn write_batch(
    stream: &mut TcpStream,
    head: &[u8],
    batch: &StreamedBatch,
    value: &mut (impl AsyncRead + Unpin),
    is_begun: &mut bool,
) -> Result<(), ProduceFailure> {
    let broken = |e: std::io::Error| ProduceFailure::from(ClientError::Disconnected { address: "the leader".into(), cause: e.to_string() });
    let unreadable = |e: &dyn ToString| ProduceFailure::Reader(e.to_string());
    stream.write_all(head).await.map_err(broken)?;
    *is_begun = true;
    let mut crc = batch.crc();
    let mut piece = BytesMut::with_capacity(PIECE);
    while crc.remaining() > 0 {
        piece.clear();
        let count = (&mut *value).take(crc.remaining().min(PIECE) as u64).read_buf(&mut piece).await.map_err(|e| unreadable(&e))?;
        if count == 0 {
            let missing = crc.remaining();
            return Err(unreadable(&format!("it ended {missing} bytes before the {} that were announced", batch.value_len)));
        }
        crc.update(&piece).map_err(|e| unreadable(&e))?;
        stream.write_all(&piece).await.map_err(broken)?;
    }
    let mut last = batch.suffix.to_vec();
    last.extend_from_slice(&crc.finish().map_err(|e| unreadable(&e))?.to_be_bytes());
    stream.write_all(&last).await.map_err(broken)
}

/// The next response on a connection that carries nothing else.
async fn read_response(stream: &mut TcpStream, mut receiver: Receiver) -> Result<Response, String> {
    loop {
        if let Some(frame) = receiver.next_frame().map_err(|e| e.to_string())? {
            return decode_response(&frame.header, frame.payload.len()).map(|(_, response)| response).map_err(|e| e.to_string());
        }
        if stream.read_buf(receiver.room()).await.map_err(|e| e.to_string())? == 0 {
            return Err("the broker closed the connection".into());
        }
    }
}

/// The value of one record, read as it comes from the socket.
///
/// The end of the value is reported only when the rest of its batch has come and the batch's checksum is right: an error there means that what was read is
/// not what was sent.
pub struct ValueReader {
    key: Option<Bytes>,
    timestamp: Timestamp,
    length: u64,
    source: Source,
}

enum Source {
    /// The batch had more in it, or was compressed.
    Held(Cursor<Bytes>),
    Socket(Box<Streamed>),
}

struct Streamed {
    stream: TcpStream,
    header: BatchHeader,
    crc: Crc32c,
    /// Bytes that came with what was needed to find the value.
    early: Bytes,
    /// Bytes of the value, and of the batch behind it, to come.
    value_left: usize,
    rest_left: usize,
    is_checked: bool,
}

impl ValueReader {
    /// Bytes of the value.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether the value has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The record's key.
    pub fn key(&self) -> Option<&Bytes> {
        self.key.as_ref()
    }

    /// The record's timestamp.
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }
}

impl AsyncRead for ValueReader {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().source {
            Source::Held(cursor) => Pin::new(cursor).poll_read(context, out),
            Source::Socket(streamed) => streamed.poll_read(context, out),
        }
    }
}

impl Streamed {
    fn poll_read(&mut self, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if self.value_left > 0 {
            let count = ready!(self.poll_some(context, out, self.value_left))?;
            self.value_left -= count;
            return Poll::Ready(Ok(()));
        }
        while self.rest_left > 0 {
            let mut room = [0; 512];
            let mut room = ReadBuf::new(&mut room);
            self.rest_left -= ready!(self.poll_some(context, &mut room, self.rest_left))?;
        }
        if !self.is_checked {
            self.header.check_crc(self.crc.finish()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            self.is_checked = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Moves at most `most` bytes, early ones first, through the checksum.
    fn poll_some(&mut self, context: &mut Context<'_>, out: &mut ReadBuf<'_>, most: usize) -> Poll<io::Result<usize>> {
        let most = most.min(out.remaining());
        if !self.early.is_empty() {
            let piece = self.early.split_to(most.min(self.early.len()));
            self.crc.update(&piece);
            out.put_slice(&piece);
            return Poll::Ready(Ok(piece.len()));
        }
        let mut limited = ReadBuf::new(out.initialize_unfilled_to(most));
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut limited))?;
        let count = limited.filled().len();
        self.crc.update(limited.filled());
        out.advance(count);
        if count == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the broker closed the connection within a value")));
        }
        Poll::Ready(Ok(count))
    }
}

/// See [`super::Consumer::value_reader`].
pub(super) async fn open_value(brokers: &Brokers, topic: &str, partition: u32, offset: Offset) -> Result<ValueReader, ClientError> {
    match open_once(brokers, topic, partition, offset).await {
        Err(error) if renews_metadata(brokers, topic, &error, true).await => open_once(brokers, topic, partition, offset).await,
        done => done,
    }
}

/// One attempt.
async fn open_once(brokers: &Brokers, topic: &str, partition: u32, offset: Offset) -> Result<ValueReader, ClientError> {
    let found = brokers.topic(topic).await?;
    let leader = Brokers::leader(&found, topic, partition)?;
    let address = address_of(brokers, leader)?;
    let (mut stream, _, mut receiver) = open_stream(&address, &brokers.settings.connection).await?;
    let place = TopicPartition { topic: found.id, partition };
    let wanted = FetchPartition { partition: place, offset, max_bytes: 1, leader_epoch: None };
    let request = Request::Fetch(Fetch { max_wait_ms: 0, min_bytes: 1, max_bytes: 1, partitions: vec![wanted], from: ReadFrom::Leader });
    let mut head = Vec::new();
    encode_request(&mut RequestEncoder::new(), 1, &request, 0, &mut head).map_err(|e| ClientError::Invalid(e.to_string()))?;
    let answer = async {
        stream.write_all(&head).await.map_err(|e| e.to_string())?;
        let mut got = std::mem::take(receiver.room());
        let payload_len = read_fetch_header(&mut stream, &mut got, brokers.settings.connection.max_frame).await?;
        Ok::<_, String>((got, payload_len))
    };
    let timeout = brokers.settings.connection.request_timeout;
    let (got, payload_len) = match tokio::time::timeout(timeout, answer).await {
        Ok(Ok((got, Ok(payload_len)))) => (got, payload_len),
        Ok(Ok((_, Err(refused)))) => return Err(refused),
        Ok(Err(cause)) => return Err(ClientError::Disconnected { address, cause }),
        Err(_) => return Err(ClientError::TimedOut { address, timeout_ms: timeout.as_millis() as u64 }),
    };
    if payload_len == 0 {
        return Err(no_record(topic, partition, offset));
    }
    reader_of(stream, got, payload_len, offset).await?.ok_or_else(|| no_record(topic, partition, offset))
}

fn no_record(topic: &str, partition: u32, offset: Offset) -> ClientError {
    Refusal::new(Code::OffsetOutOfRange, format!("{topic:?} partition {partition} has no record at offset {offset}")).into()
}

/// Reads until the response's header is there; leaves what follows it in `got`. The payload's length, or why there is none.
async fn read_fetch_header(stream: &mut TcpStream, got: &mut BytesMut, max_frame: usize) -> Result<Result<usize, ClientError>, String> {
    let prefix = loop {
        if let Some(prefix) = peek_response(got, max_frame).map_err(|e| e.to_string())?
            && got.len() >= prefix.header_range().end
        {
            break prefix;
        }
        if stream.read_buf(got).await.map_err(|e| e.to_string())? == 0 {
            return Err("the broker closed the connection".into());
        }
    };
    let front = got.split_to(prefix.header_range().end);
    prefix.check_header(&front[PREFIX_LEN..]).map_err(|e| e.to_string())?;
    let (_, response) = decode_response(&front[PREFIX_LEN..], prefix.payload_len()).map_err(|e| e.to_string())?;
    Ok(match response {
        Response::Fetch(mut results) if results.len() == 1 => match results.remove(0).outcome {
            Ok(_) => Ok(prefix.payload_len()),
            Err(refusal) => Err(refusal.into()),
        },
        other => Err(unexpected(&other)),
    })
}

/// A reader of the record at `offset` in the batches that follow.
async fn reader_of(
    mut stream: TcpStream,
    mut got: BytesMut,
    payload_len: usize,
    offset: Offset,
) -> Result<Option<ValueReader>, ClientError> {
    let lost = |e: io::Error| ClientError::Disconnected { address: "the leader".into(), cause: e.to_string() };
    let head = loop {
        match RecordHead::parse(&got) {
            Ok(Some(head)) => break Some(head),
            Ok(None) if got.len() < payload_len => {}
            Ok(None) | Err(BatchError::Compressed { .. }) => break None,
            Err(error) => return Err(error.into()),
        }
        if stream.read_buf(&mut got).await.map_err(lost)? == 0 {
            return Err(lost(io::ErrorKind::UnexpectedEof.into()));
        }
    };
    if let Some(head) = head
        && head.offset == offset
        && head.header.total_len() == payload_len
        && let Some(value) = &head.value
        && head.header.record_count == 1
    {
        let mut crc = Crc32c::new();
        let front = got.split_to(value.start).freeze();
        crc.update(&front[CRC_START..]);
        let (value_left, rest_left) = (value.len(), payload_len - value.end);
        let key = head.key.map(|range| front.slice(range));
        let streamed = Streamed { stream, header: head.header, crc, early: got.freeze(), value_left, rest_left, is_checked: false };
        let source = Source::Socket(Box::new(streamed));
        return Ok(Some(ValueReader { key, timestamp: head.timestamp, length: value_left as u64, source }));
    }
    if payload_len > limits::MAX_MESSAGE_BYTES {
        return Err(BatchError::TooLarge { max: limits::MAX_MESSAGE_BYTES, actual: payload_len }.into());
    }
    while got.len() < payload_len {
        if stream.read_buf(&mut got).await.map_err(lost)? == 0 {
            return Err(lost(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    held_value(got.freeze(), offset)
}

/// The value among batches that are all there.
fn held_value(mut batches: Bytes, offset: Offset) -> Result<Option<ValueReader>, ClientError> {
    while let Some(batch) = split_batch(&mut batches)? {
        for record in decode(batch, limits::MAX_MESSAGE_BYTES)? {
            let record = record?;
            if record.offset == offset {
                let value = record.value.unwrap_or_default();
                let length = value.len() as u64;
                let source = Source::Held(Cursor::new(value));
                return Ok(Some(ValueReader { key: record.key, timestamp: record.timestamp, length, source }));
            }
        }
    }
    Ok(None)
}
