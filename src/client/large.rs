//! Values too large to hold: written from a reader, read as a reader. Each uses a connection of its own, so that nothing waits behind it.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::brokers::{Brokers, unexpected};
use super::connection::open_stream;
use super::delivery::RecordMetadata;
use super::error::{ClientError, ProduceFailure};
use super::partitioner::partition_of_key;
use super::receive::Receiver;
use crate::batch::{BatchError, StreamedBatch};
use crate::request::{Acks, Produce, ProduceBatch, Request, Response};
use crate::types::{Timestamp, TopicPartition};
use crate::wire::{RequestEncoder, decode_response, encode_request};

/// A value is copied from reader to socket in pieces of this size, bytes.
const PIECE: usize = 256 * 1024;

/// See [`super::Producer::send_reader`].
pub(super) async fn send_reader(
    brokers: &Brokers,
    acks: Acks,
    topic: &str,
    key: Option<&[u8]>,
    length: u64,
    timestamp: Timestamp,
    mut value: impl AsyncRead + Unpin,
) -> Result<RecordMetadata, ProduceFailure> {
    let found = brokers.topic(topic).await?;
    let count = found.partitions.len() as u32;
    if count == 0 {
        return Err(ClientError::Invalid(format!("{topic:?} has no partitions")).into());
    }
    let partition = key.map_or(0, |key| partition_of_key(key, count));
    let value_len = usize::try_from(length).unwrap_or(usize::MAX);
    let batch = StreamedBatch::new(timestamp, key, value_len, &[], None).map_err(ClientError::from)?;
    let max = found.max_message_bytes as usize;
    if batch.total_len > max {
        return Err(ClientError::from(BatchError::TooLarge { max, actual: batch.total_len }).into());
    }
    let leader = Brokers::partition(&found, topic, partition)?.leader;
    let address = brokers.address(leader).ok_or_else(|| ClientError::Invalid(format!("no broker with the id {leader} is known")))?;
    let (mut stream, _, receiver) = open_stream(&address, &brokers.settings.connection).await?;

    let place = TopicPartition { topic: found.id, partition };
    let batches = vec![ProduceBatch { partition: place, range: 0..batch.total_len }];
    let timeout = brokers.settings.connection.request_timeout;
    let request = Request::Produce(Produce { acks, timeout_ms: timeout.as_millis() as u32, batches, crc_trailer: true });
    let mut head = Vec::new();
    encode_request(&mut RequestEncoder::new(), 1, &request, batch.total_len + 4, &mut head)
        .map_err(|e| ClientError::Invalid(e.to_string()))?;
    head.extend_from_slice(&batch.prefix);
    let sent = write_batch(&mut stream, &head, &batch, &mut value).await;
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

/// Writes header, value and checksum, piece by piece.
async fn write_batch(
    stream: &mut TcpStream,
    head: &[u8],
    batch: &StreamedBatch,
    value: &mut (impl AsyncRead + Unpin),
) -> Result<(), ProduceFailure> {
    let broken = |e: std::io::Error| ProduceFailure::from(ClientError::Disconnected { address: "the leader".into(), cause: e.to_string() });
    let unreadable = |e: &dyn ToString| ProduceFailure::Reader(e.to_string());
    stream.write_all(head).await.map_err(broken)?;
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
