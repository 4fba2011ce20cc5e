//! Frames between nodes (`schemas/replication.fbs`): headers of the machines' messages, and the bytes of record batches as payload.
//!
//! ```text
//! leader's shard  --- MAGIC, Hello -->   follower's shard
//!                 <-- HelloReply ---
//!                 --- Messages (OPEN, TRUNCATE, APPEND of many partitions) + batches verbatim, SegmentPart, Beat -->
//!                 <-- Messages (EPOCHS, ACK, REFUSED), SegmentWanted, Beat ---
//!                 --- SegmentMissing, or SegmentPart of what was wanted -->
//! ```
//!
//! A header is read through the verifier only, with limits in proportion to its length; every count, range and table that comes out is checked. Payload bytes are not looked at here.

use flatbuffers::{FlatBufferBuilder, VerifierOptions, WIPOffset};

use crate::limits;
use crate::replication::epochs::{EpochStart, EpochTable};
use crate::replication::error::Refusal;
use crate::replication::generated::corelane::replication as fb;
use crate::replication::message::{Ack, Append, Epochs, Message, Open, Refused, Segment, StreamId, Truncate};
use crate::types::{LeaderEpoch, Offset, TopicId, TopicPartition};
use crate::wire::frame;

/// The first bytes of a connection for replication. A client that comes to the wrong port is told apart by them.
pub const MAGIC: [u8; 8] = *b"\xC0RESHIP\n";
/// Oldest version that this build speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest version that this build speaks.
pub const VERSION_MAX: u16 = 1;

/// What the connecting shard says first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest version that it speaks.
    pub version_min: u16,
    /// Newest version that it speaks.
    pub version_max: u16,
    /// Its cluster.
    pub cluster: [u8; 16],
    /// Its node.
    pub node: u32,
    /// The node's life.
    pub incarnation: [u8; 16],
    /// The node's registration.
    pub node_epoch: u64,
    /// Its shard.
    pub shard: u32,
    /// The node that is meant.
    pub to_node: u32,
    /// The shard that is meant.
    pub to_shard: u32,
    /// Software and version, for logs.
    pub software: String,
}

/// What the other one answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HelloReply {
    /// The version that both speak from here on.
    pub version: u16,
    /// The answering node.
    pub node: u32,
    /// Its registration.
    pub node_epoch: u64,
    /// How many shards it has.
    pub shards: u32,
    /// Software and version, for logs.
    pub software: String,
}

/// A message with its partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionMessage {
    /// Which partition.
    pub partition: TopicPartition,
    /// What is said.
    pub message: Message,
    /// Bytes of the frame's payload that belong to it; those of several messages stand in their order.
    pub payload_len: u32,
}

/// A part of a sealed segment's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentPart {
    /// Which partition.
    pub partition: TopicPartition,
    /// On which stream.
    pub stream: StreamId,
    /// Which segment.
    pub base_offset: Offset,
    /// Where in its valid bytes the payload begins.
    pub position: u64,
    /// How many valid bytes there are in all.
    pub total: u64,
}

/// A sealed segment that a follower wants from its leader, since its own copy is damaged: the very same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentWanted {
    /// Which partition.
    pub partition: TopicPartition,
    /// Its name.
    pub base_offset: Offset,
    /// One past its last offset.
    pub end_offset: Offset,
    /// Running hash after it.
    pub running_hash: u64,
    /// Counts its rewrites by a cleaner.
    pub rewrite_generation: u32,
    /// Bytes of its batches.
    pub total: u64,
}

/// That the leader has no such segment, or that it is damaged there too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentMissing {
    /// Which partition.
    pub partition: TopicPartition,
    /// Its name.
    pub base_offset: Offset,
}

/// The stream of the parts of a segment that was wanted: they belong to none, and sessions of streams count from 1.
pub const WANTED_STREAM: StreamId = StreamId { leader_epoch: 0, node_epoch: 0, incarnation: 0, session: 0 };

/// One frame's header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// First of the one who connects.
    Hello(Hello),
    /// First of the other one: yes, or why not (the connection is closed then).
    HelloReply(Result<HelloReply, String>),
    /// About partitions.
    Messages(Vec<PartitionMessage>),
    /// Part of a file.
    SegmentPart(SegmentPart),
    /// Still there.
    Beat,
    /// Of a follower: a segment is to come again.
    SegmentWanted(SegmentWanted),
    /// Of a leader: it can't be had here.
    SegmentMissing(SegmentMissing),
}

/// A header that can't be used; the connection is closed, since what the other side means is not known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    /// It does not verify.
    #[error("the header of a replication frame does not verify: {0}")]
    Invalid(String),
    /// A kind of a newer version.
    #[error("{what} of kind {kind} is not known to this version")]
    UnknownKind {
        /// What has the kind.
        what: &'static str,
        /// Which.
        kind: u8,
    },
    /// It contradicts itself or its payload.
    #[error("{0}")]
    Contradiction(String),
}

impl Hello {
    /// The newest version that both sides speak.
    ///
    /// # Errors
    /// There is none: the words for the answer.
    pub fn choose_version(&self) -> Result<u16, String> {
        let (low, high) = (self.version_min.max(VERSION_MIN), self.version_max.min(VERSION_MAX));
        match low <= high {
            true => Ok(high),
            false => Err(format!(
                "versions {VERSION_MIN} to {VERSION_MAX} of the replication protocol are spoken here, the other side speaks {} to {}",
                self.version_min, self.version_max
            )),
        }
    }
}

/// Appends prefix and header of a frame; the payload is sent right after.
///
/// # Panics
/// When messages do not claim `payload_len` bytes, or the payload is past its bound: the caller cuts frames.
pub fn encode(frame: &Frame, payload_len: usize, builder: &mut FlatBufferBuilder<'_>, out: &mut Vec<u8>) {
    if let Frame::Messages(items) = frame {
        let claimed: usize = items.iter().map(|item| item.payload_len as usize).sum();
        assert_eq!(claimed, payload_len, "messages claim the whole payload");
    }
    builder.reset();
    let (body_type, body) = match frame {
        Frame::Hello(hello) => (fb::Body::Hello, build_hello(builder, hello)),
        Frame::HelloReply(reply) => (fb::Body::HelloReply, build_reply(builder, reply)),
        Frame::Messages(items) => (fb::Body::Messages, build_messages(builder, items)),
        Frame::SegmentPart(part) => (fb::Body::SegmentPart, build_part(builder, part)),
        Frame::Beat => (fb::Body::Beat, fb::Beat::create(builder, &fb::BeatArgs {}).as_union_value()),
        Frame::SegmentWanted(wanted) => (fb::Body::SegmentWanted, build_wanted(builder, wanted)),
        Frame::SegmentMissing(missing) => {
            let topic = fb::Uuid::new(&missing.partition.topic.0);
            let (partition, base_offset) = (missing.partition.partition, missing.base_offset);
            let args = fb::SegmentMissingArgs { topic: Some(&topic), partition, base_offset };
            (fb::Body::SegmentMissing, fb::SegmentMissing::create(builder, &args).as_union_value())
        }
    };
    let root = fb::Frame::create(builder, &fb::FrameArgs { body_type, body: Some(body) });
    builder.finish_minimal(root);
    frame::write(builder.finished_data(), payload_len, out);
}

type Union = WIPOffset<flatbuffers::UnionWIPOffset>;

fn build_hello(b: &mut FlatBufferBuilder<'_>, hello: &Hello) -> Union {
    let software = Some(b.create_string(&hello.software));
    let (cluster, incarnation) = (fb::Uuid::new(&hello.cluster), fb::Uuid::new(&hello.incarnation));
    let args = fb::HelloArgs {
        version_min: hello.version_min,
        version_max: hello.version_max,
        cluster: Some(&cluster),
        node: hello.node,
        incarnation: Some(&incarnation),
        node_epoch: hello.node_epoch,
        shard: hello.shard,
        to_node: hello.to_node,
        to_shard: hello.to_shard,
        software,
    };
    fb::Hello::create(b, &args).as_union_value()
}

fn build_reply(b: &mut FlatBufferBuilder<'_>, reply: &Result<HelloReply, String>) -> Union {
    let software = Some(b.create_string(reply.as_ref().map_or("", |reply| &reply.software)));
    let refusal = reply.as_ref().err().map(|words| b.create_string(words));
    let mut args = fb::HelloReplyArgs { software, refusal, ..Default::default() };
    if let Ok(reply) = reply {
        (args.version, args.node, args.node_epoch, args.shards) = (reply.version, reply.node, reply.node_epoch, reply.shards);
    }
    fb::HelloReply::create(b, &args).as_union_value()
}

fn build_messages(b: &mut FlatBufferBuilder<'_>, items: &[PartitionMessage]) -> Union {
    let built: Vec<_> = items
        .iter()
        .map(|item| {
            let (body_type, body) = build_message(b, &item.message);
            let (topic, stream) = (fb::Uuid::new(&item.partition.topic.0), stream_struct(&item.message.stream()));
            let args = fb::PartitionMessageArgs {
                topic: Some(&topic),
                partition: item.partition.partition,
                stream: Some(&stream),
                body_type,
                body: Some(body),
                payload_len: item.payload_len,
            };
            fb::PartitionMessage::create(b, &args)
        })
        .collect();
    let items = Some(b.create_vector(&built));
    fb::Messages::create(b, &fb::MessagesArgs { items }).as_union_value()
}

fn build_message(b: &mut FlatBufferBuilder<'_>, message: &Message) -> (fb::MessageBody, Union) {
    match message {
        Message::Open(_) => (fb::MessageBody::Open, fb::Open::create(b, &fb::OpenArgs {}).as_union_value()),
        Message::Epochs(m) => {
            let epochs = Some(build_epochs(b, m.epochs.entries()));
            let args = fb::EpochsArgs { log_end: m.log_end, watermark: m.watermark, epochs };
            (fb::MessageBody::Epochs, fb::Epochs::create(b, &args).as_union_value())
        }
        Message::Truncate(m) => {
            let args = fb::TruncateArgs { to: m.to, restart: m.restart, hash_before: m.hash_before };
            (fb::MessageBody::Truncate, fb::Truncate::create(b, &args).as_union_value())
        }
        Message::Append(m) => {
            let args = fb::AppendArgs {
                previous_epoch: m.previous_epoch,
                epoch: m.epoch,
                base_offset: m.base_offset,
                end_offset: m.end_offset,
                watermark: m.watermark,
                log_start: m.log_start,
                hash_before: m.hash_before,
                hash_after: m.hash_after,
                opens_segment: m.opens_segment,
            };
            (fb::MessageBody::Append, fb::Append::create(b, &args).as_union_value())
        }
        Message::Segment(m) => {
            let epochs = Some(build_epochs(b, &m.epochs));
            let args = fb::SegmentArgs {
                previous_epoch: m.previous_epoch,
                base_offset: m.base_offset,
                end_offset: m.end_offset,
                watermark: m.watermark,
                hash_before: m.hash_before,
                hash_after: m.hash_after,
                epochs,
                rewrite_generation: m.rewrite_generation,
                adopted: m.adopted,
            };
            (fb::MessageBody::Segment, fb::Segment::create(b, &args).as_union_value())
        }
        Message::Ack(m) => {
            let args = fb::AckArgs { durable_end: m.durable_end, log_end: m.log_end, rewind: m.rewind };
            (fb::MessageBody::Ack, fb::Ack::create(b, &args).as_union_value())
        }
        Message::Refused(m) => {
            let (kind, expected, actual, offset) = figures(&m.refusal);
            let args = fb::RefusedArgs { kind, expected, actual, offset };
            (fb::MessageBody::Refused, fb::Refused::create(b, &args).as_union_value())
        }
    }
}

type BuiltEpochs<'b> = WIPOffset<flatbuffers::Vector<'b, fb::EpochStart>>;

fn build_epochs<'b>(b: &mut FlatBufferBuilder<'b>, epochs: &[EpochStart]) -> BuiltEpochs<'b> {
    let epochs: Vec<_> = epochs.iter().map(|entry| fb::EpochStart::new(entry.start, entry.epoch)).collect();
    b.create_vector(&epochs)
}

fn build_part(b: &mut FlatBufferBuilder<'_>, part: &SegmentPart) -> Union {
    let (topic, stream) = (fb::Uuid::new(&part.partition.topic.0), stream_struct(&part.stream));
    let args = fb::SegmentPartArgs {
        topic: Some(&topic),
        partition: part.partition.partition,
        stream: Some(&stream),
        base_offset: part.base_offset,
        position: part.position,
        total: part.total,
    };
    fb::SegmentPart::create(b, &args).as_union_value()
}

fn build_wanted(b: &mut FlatBufferBuilder<'_>, wanted: &SegmentWanted) -> Union {
    let topic = fb::Uuid::new(&wanted.partition.topic.0);
    let args = fb::SegmentWantedArgs {
        topic: Some(&topic),
        partition: wanted.partition.partition,
        base_offset: wanted.base_offset,
        end_offset: wanted.end_offset,
        running_hash: wanted.running_hash,
        rewrite_generation: wanted.rewrite_generation,
        total: wanted.total,
    };
    fb::SegmentWanted::create(b, &args).as_union_value()
}

fn stream_struct(id: &StreamId) -> fb::Stream {
    fb::Stream::new(id.node_epoch, id.leader_epoch, id.incarnation, id.session)
}

/// Reads a header; `payload_len` bytes follow it.
///
/// # Errors
/// See [`CodecError`].
pub fn decode(header: &[u8], payload_len: usize) -> Result<Frame, CodecError> {
    let options = VerifierOptions {
        max_depth: limits::MAX_HEADER_DEPTH,
        max_tables: header.len() / 4,
        max_apparent_size: header.len() * limits::HEADER_EXPANSION,
        ignore_missing_null_terminator: false,
    };
    let frame = fb::root_as_frame_with_opts(&options, header)
        .map_err(|error| CodecError::Invalid(error.to_string().lines().next().unwrap_or_default().into()))?;
    let kind = frame.body_type();
    let unknown = || CodecError::UnknownKind { what: "a replication frame", kind: kind.0 };
    let frame = match kind {
        fb::Body::Hello => Frame::Hello(read_hello(&frame.body_as_hello().ok_or_else(unknown)?)),
        fb::Body::HelloReply => Frame::HelloReply(read_reply(&frame.body_as_hello_reply().ok_or_else(unknown)?)),
        fb::Body::Messages => {
            let items = frame.body_as_messages().ok_or_else(unknown)?.items();
            Frame::Messages(items.iter().map(|item| read_item(&item)).collect::<Result<_, _>>()?)
        }
        fb::Body::SegmentPart => Frame::SegmentPart(read_part(&frame.body_as_segment_part().ok_or_else(unknown)?, payload_len)?),
        fb::Body::Beat => Frame::Beat,
        fb::Body::SegmentWanted => {
            let wanted = frame.body_as_segment_wanted().ok_or_else(unknown)?;
            Frame::SegmentWanted(SegmentWanted {
                partition: partition(wanted.topic(), wanted.partition()),
                base_offset: wanted.base_offset(),
                end_offset: wanted.end_offset(),
                running_hash: wanted.running_hash(),
                rewrite_generation: wanted.rewrite_generation(),
                total: wanted.total(),
            })
        }
        fb::Body::SegmentMissing => {
            let missing = frame.body_as_segment_missing().ok_or_else(unknown)?;
            let partition = partition(missing.topic(), missing.partition());
            Frame::SegmentMissing(SegmentMissing { partition, base_offset: missing.base_offset() })
        }
        _ => return Err(unknown()),
    };
    let claimed = match &frame {
        Frame::Messages(items) => items.iter().map(|item| u64::from(item.payload_len)).sum(),
        Frame::SegmentPart(_) => payload_len as u64,
        _ => 0,
    };
    match claimed == payload_len as u64 {
        true => Ok(frame),
        false => Err(CodecError::Contradiction(format!("messages claim {claimed} bytes of a payload of {payload_len}"))),
    }
}

fn read_hello(hello: &fb::Hello<'_>) -> Hello {
    Hello {
        version_min: hello.version_min(),
        version_max: hello.version_max(),
        cluster: hello.cluster().bytes().into(),
        node: hello.node(),
        incarnation: hello.incarnation().bytes().into(),
        node_epoch: hello.node_epoch(),
        shard: hello.shard(),
        to_node: hello.to_node(),
        to_shard: hello.to_shard(),
        software: hello.software().into(),
    }
}

fn read_reply(reply: &fb::HelloReply<'_>) -> Result<HelloReply, String> {
    match reply.refusal() {
        Some(words) => Err(words.into()),
        None => Ok(HelloReply {
            version: reply.version(),
            node: reply.node(),
            node_epoch: reply.node_epoch(),
            shards: reply.shards(),
            software: reply.software().into(),
        }),
    }
}

fn read_item(item: &fb::PartitionMessage<'_>) -> Result<PartitionMessage, CodecError> {
    let kind = item.body_type();
    let unknown = || CodecError::UnknownKind { what: "a replication message", kind: kind.0 };
    let stream = read_stream(item.stream());
    let message = match kind {
        fb::MessageBody::Open => Message::Open(Open { stream }),
        fb::MessageBody::Epochs => {
            let body = item.body_as_epochs().ok_or_else(unknown)?;
            let epochs = EpochTable::from_entries(read_epochs(body.epochs())).map_err(|e| CodecError::Contradiction(e.to_string()))?;
            Message::Epochs(Epochs { stream, log_end: body.log_end(), epochs, watermark: body.watermark() })
        }
        fb::MessageBody::Truncate => {
            let body = item.body_as_truncate().ok_or_else(unknown)?;
            Message::Truncate(Truncate { stream, to: body.to(), restart: body.restart(), hash_before: body.hash_before() })
        }
        fb::MessageBody::Append => {
            let body = item.body_as_append().ok_or_else(unknown)?;
            Message::Append(Append {
                stream,
                previous_epoch: body.previous_epoch(),
                epoch: body.epoch(),
                base_offset: body.base_offset(),
                end_offset: body.end_offset(),
                watermark: body.watermark(),
                log_start: body.log_start(),
                hash_before: body.hash_before(),
                hash_after: body.hash_after(),
                opens_segment: body.opens_segment(),
            })
        }
        fb::MessageBody::Segment => {
            let body = item.body_as_segment().ok_or_else(unknown)?;
            Message::Segment(Segment {
                stream,
                previous_epoch: body.previous_epoch(),
                epochs: read_epochs(body.epochs()),
                base_offset: body.base_offset(),
                end_offset: body.end_offset(),
                watermark: body.watermark(),
                hash_before: body.hash_before(),
                hash_after: body.hash_after(),
                rewrite_generation: body.rewrite_generation(),
                adopted: body.adopted(),
            })
        }
        fb::MessageBody::Ack => {
            let body = item.body_as_ack().ok_or_else(unknown)?;
            Message::Ack(Ack { stream, durable_end: body.durable_end(), log_end: body.log_end(), rewind: body.rewind() })
        }
        fb::MessageBody::Refused => {
            let body = item.body_as_refused().ok_or_else(unknown)?;
            Message::Refused(Refused { stream, refusal: refusal(body.kind(), body.expected(), body.actual(), body.offset()) })
        }
        _ => return Err(unknown()),
    };
    let has_payload = matches!(&message, Message::Append(append) if append.end_offset > append.base_offset);
    if has_payload != (item.payload_len() > 0) {
        return Err(CodecError::Contradiction(format!("{} bytes of payload for {message:?}", item.payload_len())));
    }
    Ok(PartitionMessage { partition: partition(item.topic(), item.partition()), message, payload_len: item.payload_len() })
}

fn read_part(part: &fb::SegmentPart<'_>, payload_len: usize) -> Result<SegmentPart, CodecError> {
    let (position, total) = (part.position(), part.total());
    if payload_len == 0 || position.checked_add(payload_len as u64).is_none_or(|end| end > total) {
        return Err(CodecError::Contradiction(format!("{payload_len} bytes at {position} of a segment of {total}")));
    }
    let (partition, stream) = (partition(part.topic(), part.partition()), read_stream(part.stream()));
    Ok(SegmentPart { partition, stream, base_offset: part.base_offset(), position, total })
}

fn partition(topic: &fb::Uuid, partition: u32) -> TopicPartition {
    TopicPartition { topic: TopicId(topic.bytes().into()), partition }
}

fn read_stream(stream: &fb::Stream) -> StreamId {
    StreamId {
        leader_epoch: stream.leader_epoch(),
        node_epoch: stream.node_epoch(),
        incarnation: stream.incarnation(),
        session: stream.session(),
    }
}

fn read_epochs(epochs: Option<flatbuffers::Vector<'_, fb::EpochStart>>) -> Vec<EpochStart> {
    epochs.into_iter().flatten().map(|entry| EpochStart { epoch: entry.epoch(), start: entry.start() }).collect()
}

/// (kind, expected, actual, offset) of a refusal.
fn figures(refusal: &Refusal) -> (u8, i64, i64, i64) {
    match *refusal {
        Refusal::StaleEpoch { promised, actual } => (1, promised.into(), actual.into(), 0),
        Refusal::StaleNodeEpoch { expected, actual } => (2, expected as i64, actual as i64, 0),
        Refusal::StaleIncarnation { expected, actual } => (3, expected.into(), actual.into(), 0),
        Refusal::PreviousEpoch { offset, expected, actual } => (4, expected.into(), actual.into(), offset),
        Refusal::RunningHash { offset, expected, actual } => (5, expected as i64, actual as i64, offset),
        Refusal::BelowWatermark { to, watermark } => (6, watermark, to, 0),
        Refusal::EpochUsed { epoch, promised } => (7, promised.into(), epoch.into(), 0),
        Refusal::Storage { end } => (8, 0, 0, end),
        Refusal::Invalid(_) => (0, 0, 0, 0),
    }
}

/// A refusal that was told; one of a kind that is not known says at least that it is one.
fn refusal(kind: u8, expected: i64, actual: i64, offset: i64) -> Refusal {
    let epoch = |value: i64| value.clamp(i64::from(LeaderEpoch::MIN), i64::from(LeaderEpoch::MAX)) as LeaderEpoch;
    match kind {
        1 => Refusal::StaleEpoch { promised: epoch(expected), actual: epoch(actual) },
        2 => Refusal::StaleNodeEpoch { expected: expected as u64, actual: actual as u64 },
        3 => Refusal::StaleIncarnation { expected: expected as u32, actual: actual as u32 },
        4 => Refusal::PreviousEpoch { offset, expected: epoch(expected), actual: epoch(actual) },
        5 => Refusal::RunningHash { offset, expected: expected as u64, actual: actual as u64 },
        6 => Refusal::BelowWatermark { to: actual, watermark: expected },
        7 => Refusal::EpochUsed { epoch: epoch(actual), promised: epoch(expected) },
        8 => Refusal::Storage { end: offset },
        _ => Refusal::Invalid("the other side found a contradiction in what it was sent"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTITION: TopicPartition = TopicPartition { topic: TopicId([7; 16]), partition: 3 };
    const STREAM: StreamId = StreamId { leader_epoch: 5, node_epoch: 1 << 40, incarnation: 9, session: 2 };

    fn epochs() -> Vec<EpochStart> {
        vec![EpochStart { epoch: 1, start: 0 }, EpochStart { epoch: 4, start: 77 }]
    }

    fn messages() -> Vec<Message> {
        let table = EpochTable::from_entries(epochs()).unwrap();
        let mut messages = vec![
            Message::Open(Open { stream: STREAM }),
            Message::Epochs(Epochs { stream: STREAM, log_end: 90, epochs: table, watermark: 80 }),
            Message::Truncate(Truncate { stream: STREAM, to: 77, restart: true, hash_before: 0x5eed }),
            Message::Append(append(77, 90)),
            Message::Append(append(90, 90)),
            Message::Segment(Segment {
                stream: STREAM,
                previous_epoch: -1,
                epochs: epochs(),
                base_offset: 0,
                end_offset: 90,
                watermark: 3,
                hash_before: 0,
                hash_after: u64::MAX,
                rewrite_generation: 3,
                adopted: true,
            }),
            Message::Ack(Ack { stream: STREAM, durable_end: 4, log_end: 5, rewind: true }),
        ];
        let refusals = [
            Refusal::StaleEpoch { promised: 7, actual: 5 },
            Refusal::StaleNodeEpoch { expected: u64::MAX, actual: 1 },
            Refusal::StaleIncarnation { expected: 2, actual: u32::MAX },
            Refusal::PreviousEpoch { offset: 3, expected: 1, actual: -1 },
            Refusal::RunningHash { offset: 3, expected: u64::MAX, actual: 1 },
            Refusal::BelowWatermark { to: 3, watermark: 4 },
            Refusal::EpochUsed { epoch: 3, promised: 4 },
            Refusal::Storage { end: 77 },
        ];
        messages.extend(refusals.map(|refusal| Message::Refused(Refused { stream: STREAM, refusal })));
        messages
    }

    fn append(base_offset: Offset, end_offset: Offset) -> Append {
        Append {
            stream: STREAM,
            previous_epoch: 4,
            epoch: 5,
            base_offset,
            end_offset,
            watermark: 12,
            log_start: 1,
            hash_before: 1,
            hash_after: u64::MAX,
            opens_segment: true,
        }
    }

    fn items() -> Vec<PartitionMessage> {
        let len = |message: &Message| matches!(message, Message::Append(append) if append.end_offset > append.base_offset);
        messages()
            .into_iter()
            .map(|message| PartitionMessage { partition: PARTITION, payload_len: if len(&message) { 100 } else { 0 }, message })
            .collect()
    }

    fn frames() -> Vec<(Frame, usize)> {
        let hello = Hello {
            version_min: 1,
            version_max: 2,
            cluster: [1; 16],
            node: 2,
            incarnation: [3; 16],
            node_epoch: 4,
            shard: 5,
            to_node: 6,
            to_shard: 7,
            software: "corelane".into(),
        };
        let wanted = SegmentWanted {
            partition: PARTITION,
            base_offset: 1,
            end_offset: 9,
            running_hash: u64::MAX,
            rewrite_generation: 2,
            total: 1 << 40,
        };
        let reply = HelloReply { version: 1, node: 6, node_epoch: 9, shards: 2, software: "corelane".into() };
        let part = SegmentPart { partition: PARTITION, stream: STREAM, base_offset: 4, position: 10, total: 60 };
        vec![
            (Frame::Hello(hello), 0),
            (Frame::HelloReply(Ok(reply)), 0),
            (Frame::HelloReply(Err("no".into())), 0),
            (Frame::Messages(items()), 100),
            (Frame::SegmentPart(part), 50),
            (Frame::Beat, 0),
            (Frame::SegmentWanted(wanted), 0),
            (Frame::SegmentMissing(SegmentMissing { partition: PARTITION, base_offset: -1 }), 0),
        ]
    }

    fn header(frame: &Frame, payload_len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        encode(frame, payload_len, &mut FlatBufferBuilder::new(), &mut out);
        let prefix = frame::peek(&out, 1 << 20).unwrap().unwrap();
        assert_eq!(prefix.payload_len(), payload_len);
        prefix.check_header(&out[prefix.header_range()]).unwrap();
        out[prefix.header_range()].to_vec()
    }

    #[test]
    fn every_frame_round_trips() {
        for (frame, payload_len) in frames() {
            assert_eq!(decode(&header(&frame, payload_len), payload_len).unwrap(), frame);
        }
    }

    #[test]
    fn every_cut_and_every_flip_gives_an_error_or_a_frame_but_no_panic() {
        for (frame, payload_len) in frames() {
            let header = header(&frame, payload_len);
            (0..header.len()).for_each(|len| drop(decode(&header[..len], payload_len)));
            for bit in 0..header.len() * 8 {
                let mut flipped = header.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let _ = decode(&flipped, payload_len);
            }
        }
        assert!(decode(&[], 0).is_err() && decode(&[0xff; 64], 0).is_err());
    }

    #[test]
    fn payloads_that_are_not_claimed_are_refused() {
        let contradicts = |frame: &Frame, written: usize, found: usize| {
            matches!(decode(&header(frame, written), found), Err(CodecError::Contradiction(_)))
        };
        assert!(contradicts(&Frame::Messages(items()), 100, 99) && contradicts(&Frame::Beat, 0, 1));
        let part = SegmentPart { partition: PARTITION, stream: STREAM, base_offset: 4, position: 10, total: 60 };
        assert!(contradicts(&Frame::SegmentPart(part), 50, 51) && contradicts(&Frame::SegmentPart(part), 50, 0));
        let endless = SegmentPart { position: u64::MAX, ..part };
        assert!(contradicts(&Frame::SegmentPart(endless), 50, 50));
        let bare = PartitionMessage { partition: PARTITION, message: Message::Append(append(1, 2)), payload_len: 0 };
        assert!(contradicts(&Frame::Messages(vec![bare]), 0, 0));
    }

    #[test]
    fn no_common_version_names_both_ranges() {
        let Frame::Hello(hello) = frames().remove(0).0 else { unreachable!() };
        assert_eq!(hello.choose_version(), Ok(1));
        let words = Hello { version_min: 2, version_max: 9, ..hello }.choose_version().unwrap_err();
        assert!(words.contains("1 to 1") && words.contains("2 to 9"), "{words}");
    }
}
