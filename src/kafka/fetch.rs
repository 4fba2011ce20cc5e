//! Fetch, versions 4 to 12: decoded into plain values, and its answer round record batches that lie where they are.
//!
//! Source: FetchRequest.json and FetchResponse.json of Kafka's schemas. There are no fetch sessions (KIP-227): every answer says session 0, upon which
//! clients name all their partitions in every request.

use super::writer::{Writer, put_length};
use super::{DecodeError, Reader};
use crate::types::{LeaderEpoch, Offset};

/// What is to be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchRequest<'a> {
    /// Longest wait for `min_bytes`, ms; anything as received, as the others.
    pub max_wait_ms: i32,
    /// Answer at once when this many bytes are there.
    pub min_bytes: i32,
    /// Roughly the most bytes in the answer.
    pub max_bytes: i32,
    /// A session that the client believes in; 0 is none.
    pub session_id: i32,
    /// By topic, in order of preference.
    pub topics: Vec<FetchTopic<'a>>,
    /// The client's rack; empty of one that has none, `None` before version 11, in which followers are read for the first time.
    pub rack: Option<&'a str>,
}

/// What is to be read of one topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchTopic<'a> {
    /// Its name.
    pub name: &'a str,
    /// By partition.
    pub partitions: Vec<FetchPartition>,
}

/// What is to be read of one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchPartition {
    /// Which; anything as received, as the others.
    pub index: i32,
    /// The leader epoch that the client knows; -1 is none.
    pub leader_epoch: LeaderEpoch,
    /// First offset wanted.
    pub offset: Offset,
    /// Roughly the most bytes of it.
    pub max_bytes: i32,
}

/// Reads a body.
///
/// # Errors
/// It does not decode.
pub fn decode_fetch<'a>(mut reader: Reader<'a>, version: i16) -> Result<FetchRequest<'a>, DecodeError> {
    let r = &mut reader;
    let _replica = r.i32()?;
    let (max_wait_ms, min_bytes, max_bytes) = (r.i32()?, r.i32()?, r.i32()?);
    // Without transactions both levels read the same.
    let _isolation = r.i8()?;
    let mut session_id = 0;
    if version >= 7 {
        session_id = r.i32()?;
        let _session_epoch = r.i32()?;
    }
    let mut topics = Vec::new();
    for _ in 0..r.count(3)? {
        let name = r.string()?;
        let count = r.count(16)?;
        let mut partitions = Vec::with_capacity(count);
        for _ in 0..count {
            partitions.push(partition(r, version)?);
        }
        r.tags()?;
        topics.push(FetchTopic { name, partitions });
    }
    if version >= 7 {
        // Of a session, of which there are none.
        for _ in 0..r.count(3)? {
            r.string()?;
            let count = r.count(4)?;
            r.take(4 * count)?;
            r.tags()?;
        }
    }
    let rack = if version >= 11 { Some(r.string()?) } else { None };
    r.tags()?;
    Ok(FetchRequest { max_wait_ms, min_bytes, max_bytes, session_id, topics, rack })
}

fn partition(r: &mut Reader<'_>, version: i16) -> Result<FetchPartition, DecodeError> {
    let index = r.i32()?;
    let leader_epoch = if version >= 9 { r.i32()? } else { -1 };
    let offset = r.i64()?;
    if version >= 12 {
        let _last_fetched_epoch = r.i32()?;
    }
    if version >= 5 {
        let _log_start = r.i64()?;
    }
    let max_bytes = r.i32()?;
    r.tags()?;
    Ok(FetchPartition { index, leader_epoch, offset, max_bytes })
}

/// What was read of one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchedPartition {
    /// Which, as asked.
    pub index: i32,
    /// Kafka's error code, 0 for none.
    pub error: i16,
    /// One past the last committed offset, -1 where there is an error. Without transactions it is the last stable offset too.
    pub high_watermark: Offset,
    /// First readable offset, -1 where there is an error.
    pub log_start: Offset,
    /// Bytes of batches that go with it.
    pub bytes: usize,
    /// The broker that is to be read from now on, in the place of batches; said from version 11 on.
    pub preferred: Option<u32>,
}

/// An answer in the making: what is written here and the batches, which are somewhere else, take turns.
#[derive(Debug)]
pub struct FetchAnswerWriter {
    w: Writer,
    version: i16,
    /// Bytes that were given out, and batches beside them.
    given: usize,
    /// The start of the frame, once it was given out: its length comes last.
    start: Option<usize>,
}

impl FetchAnswerWriter {
    /// The start of an answer with so many topics. `error` refuses the whole request.
    pub fn new(correlation: i32, version: i16, flexible: bool, error: i16, topics: usize) -> FetchAnswerWriter {
        let mut w = Writer::answer(correlation, flexible, 128);
        // Nobody is throttled.
        w.i32(0);
        if version >= 7 {
            w.i16(error);
            w.i32(0);
        }
        w.count(topics);
        FetchAnswerWriter { w, version, given: 0, start: None }
    }

    /// The next topic, with so many partitions.
    pub fn begin_topic(&mut self, name: &str, partitions: usize) {
        self.w.string(name);
        self.w.count(partitions);
    }

    /// Its next partition; the batches' bytes come next, see [`FetchAnswerWriter::give_out`], then [`FetchAnswerWriter::end_partition`].
    pub fn begin_partition(&mut self, partition: &FetchedPartition) {
        let w = &mut self.w;
        w.i32(partition.index);
        w.i16(partition.error);
        w.i64(partition.high_watermark);
        w.i64(partition.high_watermark);
        if self.version >= 5 {
            w.i64(partition.log_start);
        }
        // No transaction was aborted.
        w.count(0);
        if self.version >= 11 {
            w.i32(partition.preferred.map_or(-1, |broker| broker as i32));
        }
        w.bytes_len(partition.bytes);
    }

    /// What was written since the last time, to be sent before `bytes` of batches.
    pub fn give_out(&mut self, bytes: usize) -> Vec<u8> {
        let part = self.w.split();
        self.start.get_or_insert(part.len());
        self.given += part.len() + bytes;
        part
    }

    /// The end of a partition.
    pub fn end_partition(&mut self) {
        self.w.tags();
    }

    /// The end of a topic.
    pub fn end_topic(&mut self) {
        self.w.tags();
    }

    /// The last part, and the frame's length; it belongs into the first four bytes of the first part ([`put_length`]), which is this one where nothing was
    /// given out before.
    pub fn finish(mut self) -> (Vec<u8>, u32) {
        self.w.tags();
        let mut last = self.w.split();
        let len = (self.given + last.len() - 4) as u32;
        if self.start.is_none() {
            put_length(&mut last, len);
        }
        (last, len)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kafka_protocol::messages::fetch_request::{FetchPartition as CodecPartition, FetchTopic as CodecTopic, ForgottenTopic};
    use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
    use kafka_protocol::messages::{self, ResponseHeader, TopicName};
    use kafka_protocol::protocol::{Decodable, HeaderVersion, StrBytes};

    use super::*;
    use crate::kafka::tests::{flip_and_cut, frame_of};
    use crate::kafka::{decode_head, peek};

    fn name(text: &'static str) -> TopicName {
        TopicName(StrBytes::from_static_str(text))
    }

    fn request(version: i16) -> messages::FetchRequest {
        let partition = |index| {
            let mut partition = CodecPartition::default().with_partition(index).with_fetch_offset(1 << 40).with_partition_max_bytes(9000);
            if version >= 9 {
                partition.current_leader_epoch = 6;
            }
            if version >= 12 {
                partition.last_fetched_epoch = 5;
            }
            partition
        };
        let topics = vec![
            CodecTopic::default().with_topic(name("orders")).with_partitions(vec![partition(0), partition(3)]),
            CodecTopic::default().with_topic(name("empty")),
        ];
        let mut request = messages::FetchRequest::default()
            .with_replica_id((-1).into())
            .with_max_wait_ms(500)
            .with_min_bytes(1)
            .with_max_bytes(1 << 20)
            .with_isolation_level(1)
            .with_topics(topics);
        if version >= 7 {
            request.session_id = 8;
            request.session_epoch = 2;
            request.forgotten_topics_data = vec![ForgottenTopic::default().with_topic(name("gone")).with_partitions(vec![1, 2])];
        }
        if version >= 11 {
            request.rack_id = StrBytes::from_static_str("a rack");
        }
        request
    }

    #[test]
    fn requests_of_every_version_are_read_as_the_codec_writes_them() {
        for version in 4..=12 {
            let frame = frame_of(1, version, 3, &request(version));
            let start = peek(&frame).unwrap().unwrap();
            let (head, body) = decode_head(start, &frame).unwrap();
            assert_eq!((head.correlation, head.client_id), (3, Some("a client")));
            let read = decode_fetch(body, version).unwrap();
            let leader_epoch = if version >= 9 { 6 } else { -1 };
            let partition = |index| FetchPartition { index, leader_epoch, offset: 1 << 40, max_bytes: 9000 };
            let topics = vec![
                FetchTopic { name: "orders", partitions: vec![partition(0), partition(3)] },
                FetchTopic { name: "empty", partitions: vec![] },
            ];
            let session_id = if version >= 7 { 8 } else { 0 };
            let rack = (version >= 11).then_some("a rack");
            assert_eq!(read, FetchRequest { max_wait_ms: 500, min_bytes: 1, max_bytes: 1 << 20, session_id, topics, rack });
        }
    }

    #[test]
    fn answers_of_every_version_are_read_by_the_codec() {
        for version in 4..=12 {
            let flexible = messages::FetchResponse::header_version(version) == 1;
            let mut writer = FetchAnswerWriter::new(4, version, flexible, 0, 2);
            let mut parts = Vec::new();
            writer.begin_topic("orders", 3);
            writer.begin_partition(&FetchedPartition { index: 0, error: 0, high_watermark: 90, log_start: 10, bytes: 6, preferred: None });
            parts.push(writer.give_out(6));
            parts.push(b"batch!".to_vec());
            writer.end_partition();
            writer.begin_partition(&FetchedPartition { index: 3, error: 1, high_watermark: -1, log_start: -1, bytes: 0, preferred: None });
            writer.end_partition();
            writer.begin_partition(&FetchedPartition {
                index: 4,
                error: 0,
                high_watermark: 7,
                log_start: 0,
                bytes: 0,
                preferred: Some(2049),
            });
            writer.end_partition();
            writer.end_topic();
            writer.begin_topic("empty", 0);
            writer.end_topic();
            let (last, len) = writer.finish();
            put_length(&mut parts[0], len);
            parts.push(last);

            let mut bytes = Bytes::from(parts.concat());
            assert_eq!(bytes::Buf::get_i32(&mut bytes) as usize, bytes.len());
            assert_eq!(ResponseHeader::decode(&mut bytes, i16::from(flexible)).unwrap().correlation_id, 4);
            let answer = messages::FetchResponse::decode(&mut bytes, version).unwrap();
            assert!(bytes.is_empty());
            let data = |index, high_watermark, log_start, records: &'static [u8]| {
                let mut data = PartitionData::default()
                    .with_partition_index(index)
                    .with_high_watermark(high_watermark)
                    .with_last_stable_offset(high_watermark)
                    .with_aborted_transactions(Some(vec![]))
                    .with_records(Some(Bytes::from_static(records)));
                if version >= 5 {
                    data.log_start_offset = log_start;
                }
                data
            };
            let elsewhere = data(4, 7, 0, b"").with_preferred_read_replica(if version >= 11 { 2049 } else { -1 }.into());
            let orders = vec![data(0, 90, 10, b"batch!"), data(3, -1, -1, b"").with_error_code(1), elsewhere];
            let topic = |text, data| FetchableTopicResponse::default().with_topic(name(text)).with_partitions(data);
            let expected = messages::FetchResponse::default().with_responses(vec![topic("orders", orders), topic("empty", vec![])]);
            assert_eq!(answer, expected, "version {version}");
        }
    }

    #[test]
    fn an_answer_without_batches_is_one_part() {
        let (frame, len) = FetchAnswerWriter::new(4, 12, true, 70, 0).finish();
        assert_eq!(len as usize, frame.len() - 4);
        let mut bytes = Bytes::from(frame).slice(4..);
        ResponseHeader::decode(&mut bytes, 1).unwrap();
        assert_eq!(messages::FetchResponse::decode(&mut bytes, 12).unwrap().error_code, 70);
    }

    #[test]
    fn hostile_requests_do_not_panic() {
        for version in [4, 7, 11, 12] {
            flip_and_cut(&frame_of(1, version, 1, &request(version)), |bytes| {
                let Ok(Some(start)) = peek(bytes) else { return };
                let Ok((_, body)) = decode_head(start, bytes) else { return };
                let _ = decode_fetch(body, start.version);
            });
        }
    }
}
