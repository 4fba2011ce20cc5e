//! Produce, versions 0 to 11: decoded without touching a record, and its answer.
//!
//! Source: ProduceRequest.json and ProduceResponse.json of Kafka's schemas. Versions 0 to 2 are decoded as far as it takes to refuse them by name.

use std::ops::Range;

use super::writer::Writer;
use super::{DecodeError, Reader};
use crate::types::{Offset, Timestamp};

/// First version whose batches have format 2, the only one that is stored.
pub const FIRST_WITH_BATCHES: i16 = 3;
/// First version that may carry zstd (KIP-110).
pub const FIRST_WITH_ZSTD: i16 = 7;
/// First version with an error's words (KIP-467).
const FIRST_WITH_WORDS: i16 = 8;
/// Bytes of an empty batch list of a partition: its index and a length.
const SHORTEST_PARTITION: usize = 5;

/// Batches to append.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProduceRequest<'a> {
    /// Of a transactional producer.
    pub transactional_id: Option<&'a str>,
    /// 0 none, 1 the leader's, -1 all in-sync replicas'; anything as received.
    pub acks: i16,
    /// How long the broker may wait for replicas, ms; anything as received.
    pub timeout_ms: i32,
    /// By topic, in the order of the request.
    pub topics: Vec<ProduceTopic<'a>>,
}

/// Batches for one topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProduceTopic<'a> {
    /// Its name.
    pub name: &'a str,
    /// By partition.
    pub partitions: Vec<ProducePartition>,
}

/// What one partition is to append.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProducePartition {
    /// Which; anything as received.
    pub index: i32,
    /// Where the batch is in the frame; `None` is null.
    pub records: Option<Range<usize>>,
}

/// Reads a body whose frame is wholly there.
///
/// # Errors
/// It does not decode.
pub fn decode_produce<'a>(mut reader: Reader<'a>, version: i16) -> Result<ProduceRequest<'a>, DecodeError> {
    let r = &mut reader;
    let mut request = prelude(r, version)?;
    for _ in 0..r.count(3)? {
        let name = r.string()?;
        let count = r.count(SHORTEST_PARTITION)?;
        let mut partitions = Vec::with_capacity(count);
        for _ in 0..count {
            let index = r.i32()?;
            let records = r.bytes_range()?;
            if let Some(range) = &records {
                r.skip_bytes(range)?;
            }
            r.tags()?;
            partitions.push(ProducePartition { index, records });
        }
        r.tags()?;
        request.topics.push(ProduceTopic { name, partitions });
    }
    r.tags()?;
    Ok(request)
}

/// Reads the start of a body of which the rest has not come; `None` unless it is one batch for one partition. The batch may end behind what is at hand.
///
/// # Errors
/// It does not decode as far as it goes.
pub fn decode_produce_start<'a>(mut reader: Reader<'a>, version: i16) -> Result<Option<ProduceRequest<'a>>, DecodeError> {
    let r = &mut reader;
    let mut request = prelude(r, version)?;
    if !is_one(r.count(3))? {
        return Ok(None);
    }
    let name = r.string()?;
    if !is_one(r.count(SHORTEST_PARTITION))? {
        return Ok(None);
    }
    let index = r.i32()?;
    let records = r.bytes_range()?;
    request.topics.push(ProduceTopic { name, partitions: vec![ProducePartition { index, records }] });
    Ok(Some(request))
}

/// The next part of a body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProducePart {
    /// Batches for the topic of this name follow.
    Topic(String),
    /// A batch for a partition, whose bytes come next; `None` is null.
    Batch(i32, Option<usize>),
    /// There are no more.
    End,
}

/// Reads a body of which only a piece is at hand at a time, behind its start ([`decode_produce_head`]).
#[derive(Clone, Debug)]
pub struct ProduceParts {
    flexible: bool,
    elements: usize,
    /// Topics that are to come.
    topics: usize,
    /// Batches of the present topic that are to come.
    partitions: Option<usize>,
    /// The bytes of a batch have come.
    is_behind_batch: bool,
}

/// Reads what is before the topics, of a body that goes on for `beyond` bytes behind what is at hand: the request without them, how many bytes that took, and what
/// reads the rest.
///
/// # Errors
/// It does not decode as far as it goes.
pub fn decode_produce_head<'a>(
    mut reader: Reader<'a>,
    version: i16,
    flexible: bool,
    beyond: usize,
) -> Result<(ProduceRequest<'a>, usize, ProduceParts), DecodeError> {
    let request = prelude(&mut reader, version)?;
    let bytes = reader.take(reader.remaining())?;
    let before = reader.position() - bytes.len();
    let mut reader = Reader::partial(bytes, flexible, reader.elements(), beyond);
    let topics = reader.count(3)?;
    let parts = ProduceParts { flexible, elements: reader.elements(), topics, partitions: None, is_behind_batch: false };
    Ok((request, before + reader.position(), parts))
}

impl ProduceParts {
    /// The part that `bytes` begin with, and how many of them it takes; `beyond` bytes of the request come behind them.
    ///
    /// # Errors
    /// It does not decode; [`DecodeError::Short`] may be for want of bytes at hand, and nothing has changed then.
    pub fn next(&mut self, bytes: &[u8], beyond: usize) -> Result<(ProducePart, usize), DecodeError> {
        let mut next = self.clone();
        let mut reader = Reader::partial(bytes, self.flexible, self.elements, beyond);
        let part = next.part(&mut reader)?;
        if let ProducePart::Batch(_, Some(len)) = part
            && len > reader.remaining() + beyond
        {
            return Err(DecodeError::Length { len: len as i64 });
        }
        next.elements = reader.elements();
        *self = next;
        Ok((part, reader.position()))
    }

    fn part(&mut self, r: &mut Reader<'_>) -> Result<ProducePart, DecodeError> {
        if std::mem::take(&mut self.is_behind_batch) {
            r.tags()?;
        }
        match self.partitions {
            Some(0) => {
                self.partitions = None;
                r.tags()?;
            }
            Some(left) => {
                self.partitions = Some(left - 1);
                self.is_behind_batch = true;
                let index = r.i32()?;
                return Ok(ProducePart::Batch(index, r.bytes_range()?.map(|range| range.len())));
            }
            None => {}
        }
        let Some(left) = self.topics.checked_sub(1) else {
            r.tags()?;
            return Ok(ProducePart::End);
        };
        self.topics = left;
        let name = r.string()?.to_owned();
        self.partitions = Some(r.count(SHORTEST_PARTITION)?);
        Ok(ProducePart::Topic(name))
    }
}

/// Whether an array has one element; of one that is longer than what is at hand that is known too.
fn is_one(count: Result<usize, DecodeError>) -> Result<bool, DecodeError> {
    match count {
        Err(DecodeError::Count { count, .. }) if count > 1 => Ok(false),
        count => Ok(count? == 1),
    }
}

fn prelude<'a>(r: &mut Reader<'a>, version: i16) -> Result<ProduceRequest<'a>, DecodeError> {
    let transactional_id = if version >= FIRST_WITH_BATCHES { r.nullable_string()? } else { None };
    Ok(ProduceRequest { transactional_id, acks: r.i16()?, timeout_ms: r.i32()?, topics: Vec::new() })
}

/// What became of one partition's batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Produced<'a> {
    /// Which partition, as asked.
    pub index: i32,
    /// Kafka's error code, 0 for none.
    pub error: i16,
    /// Offset of the first record, -1 where there is an error.
    pub base_offset: Offset,
    /// The broker's timestamp where it set one, else -1.
    pub log_append_time: Timestamp,
    /// First readable offset, -1 where there is an error.
    pub log_start: Offset,
    /// Words of the error.
    pub message: Option<&'a str>,
}

impl<'a> Produced<'a> {
    /// A refusal.
    pub fn refused(index: i32, error: i16, message: Option<&'a str>) -> Produced<'a> {
        Produced { index, error, base_offset: -1, log_append_time: -1, log_start: -1, message }
    }
}

/// The frame of an answer: for each topic of the request its partitions' outcomes.
pub fn encode_produced<'a, T, P>(correlation: i32, version: i16, flexible: bool, topics: T) -> Vec<u8>
where
    T: ExactSizeIterator<Item = (&'a str, P)>,
    P: ExactSizeIterator<Item = Produced<'a>>,
{
    let mut w = Writer::answer(correlation, flexible, 96 * topics.len());
    w.count(topics.len());
    for (name, partitions) in topics {
        w.string(name);
        w.count(partitions.len());
        for outcome in partitions {
            w.i32(outcome.index);
            w.i16(outcome.error);
            w.i64(outcome.base_offset);
            if version >= 2 {
                w.i64(outcome.log_append_time);
            }
            if version >= 5 {
                w.i64(outcome.log_start);
            }
            if version >= FIRST_WITH_WORDS {
                // No record is refused by itself.
                w.count(0);
                w.nullable_string(outcome.message);
            }
            w.tags();
        }
        w.tags();
    }
    if version >= 1 {
        // Nobody is throttled.
        w.i32(0);
    }
    w.tags();
    w.finish()
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
    use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
    use kafka_protocol::messages::{self, ResponseHeader, TopicName};
    use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};

    use super::*;
    use crate::kafka::tests::{flip_and_cut, frame_of};
    use crate::kafka::{decode_head, peek};

    fn request() -> messages::ProduceRequest {
        let data = |index, bytes: Option<&'static [u8]>| {
            PartitionProduceData::default().with_index(index).with_records(bytes.map(Bytes::from_static))
        };
        let topic =
            |name, data| TopicProduceData::default().with_name(TopicName(StrBytes::from_static_str(name))).with_partition_data(data);
        messages::ProduceRequest::default().with_acks(-1).with_timeout_ms(1500).with_topic_data(vec![
            topic("orders", vec![data(0, Some(b"first batch")), data(7, Some(&[5; 300])), data(8, None)]),
            topic("", vec![]),
            topic("payments", vec![data(-1, Some(b""))]),
        ])
    }

    #[test]
    fn requests_of_every_version_are_read_as_the_codec_writes_them() {
        for version in 3..=11 {
            let frame = frame_of(0, version, 77, &request());
            let start = peek(&frame).unwrap().unwrap();
            assert_eq!((start.total_len(), start.version), (frame.len(), version));
            let (head, body) = decode_head(start, &frame).unwrap();
            assert_eq!((head.correlation, head.client_id), (77, Some("a client")));
            let read = decode_produce(body.clone(), version).unwrap();
            assert_eq!((read.transactional_id, read.acks, read.timeout_ms), (None, -1, 1500));
            let bytes = |p: &ProducePartition| (p.index, p.records.clone().map(|range| frame[range].to_vec()));
            let topics: Vec<_> = read.topics.iter().map(|t| (t.name, t.partitions.iter().map(bytes).collect::<Vec<_>>())).collect();
            let orders = vec![(0, Some(b"first batch".to_vec())), (7, Some(vec![5; 300])), (8, None)];
            assert_eq!(topics, [("orders", orders), ("", vec![]), ("payments", vec![(-1, Some(vec![]))])]);
            assert_eq!(decode_produce_start(body, version), Ok(None), "more than one batch");
        }
    }

    #[test]
    fn a_lone_batch_is_found_before_it_has_come() {
        let mut lone = request();
        lone.topic_data.truncate(1);
        lone.topic_data[0].partition_data.truncate(2);
        lone.topic_data[0].partition_data.remove(0);
        for version in 3..=11 {
            let frame = frame_of(0, version, 1, &lone);
            let start = peek(&frame).unwrap().unwrap();
            let whole = decode_produce(decode_head(start, &frame).unwrap().1, version).unwrap();
            let range = whole.topics[0].partitions[0].records.clone().unwrap();
            assert_eq!(range.len(), 300);
            let cut = &frame[..range.start + 10];
            assert_eq!(decode_produce_start(decode_head(start, cut).unwrap().1, version), Ok(Some(whole)));
        }
    }

    /// Reads a frame in pieces of at most `most` bytes at hand: topics and batches with their bytes.
    fn read_in_parts(frame: &[u8], version: i16, most: usize) -> Result<Vec<(ProducePart, Vec<u8>)>, DecodeError> {
        let start = peek(frame).unwrap().unwrap();
        let flexible = start.api.is_flexible(version);
        let hand = |at: usize, len: usize| &frame[at..frame.len().min(at + len)];
        let (head, body) = decode_head(start, hand(0, most))?;
        assert_eq!(head.version, version);
        let beyond = frame.len() - most.min(frame.len());
        let (_, mut at, mut parts) = decode_produce_head(body, version, flexible, beyond)?;
        let mut read = Vec::new();
        loop {
            // Not more at hand than it takes.
            let (part, taken) = (0..=most)
                .find_map(|len| match parts.next(hand(at, len), frame.len() - at - len.min(frame.len() - at)) {
                    Err(DecodeError::Short { .. }) if at + len < frame.len() => None,
                    other => Some(other),
                })
                .expect("it fits")?;
            at += taken;
            let len = if let ProducePart::Batch(_, Some(len)) = part { len } else { 0 };
            read.push((part.clone(), frame[at..at + len].to_vec()));
            at += len;
            if part == ProducePart::End {
                return Ok(read);
            }
        }
    }

    #[test]
    fn parts_are_what_the_whole_is() {
        for version in 3..=11 {
            let frame = frame_of(0, version, 77, &request());
            let read = read_in_parts(&frame, version, 100).unwrap();
            let topic = |name: &str| (ProducePart::Topic(name.into()), vec![]);
            let batch = |index, bytes: &[u8]| (ProducePart::Batch(index, Some(bytes.len())), bytes.to_vec());
            let expected = [
                topic("orders"),
                batch(0, b"first batch"),
                batch(7, &[5; 300]),
                (ProducePart::Batch(8, None), vec![]),
                topic(""),
                topic("payments"),
                batch(-1, b""),
                (ProducePart::End, vec![]),
            ];
            assert_eq!(read, expected, "version {version}");
            flip_and_cut(&frame, |bytes| {
                let Ok(Some(start)) = peek(bytes) else { return };
                if start.is_produce() && start.version >= 3 && start.total_len() <= bytes.len() && decode_head(start, bytes).is_ok() {
                    let whole = decode_produce(decode_head(start, bytes).unwrap().1, start.version).is_ok();
                    assert!(!whole || read_in_parts(bytes, start.version, bytes.len()).is_ok(), "what is read whole is read in parts");
                }
            });
        }
    }

    #[test]
    fn versions_without_batches_are_read_as_far_as_it_takes_to_refuse_them() {
        let mut body = Vec::new();
        body.extend_from_slice(&1i16.to_be_bytes());
        body.extend_from_slice(&9i32.to_be_bytes());
        body.extend_from_slice(&1i32.to_be_bytes());
        body.extend_from_slice(&[0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 2, 1, 2]);
        let read = decode_produce(Reader::new(&body, false), 2).unwrap();
        let partition = ProducePartition { index: 4, records: Some(body.len() - 2..body.len()) };
        assert_eq!(read.topics, [ProduceTopic { name: "t", partitions: vec![partition] }]);
    }

    #[test]
    fn answers_of_every_version_are_read_by_the_codec() {
        let kept = Produced { index: 0, error: 0, base_offset: 12, log_append_time: 34, log_start: 5, message: None };
        let refused = Produced::refused(7, 2, Some("a batch that does not check"));
        for version in 3..=11 {
            let topics = [("orders", vec![kept, refused]), ("payments", vec![])];
            let flexible = messages::ProduceResponse::header_version(version) == 1;
            let frame = encode_produced(-5, version, flexible, topics.iter().map(|(name, p)| (*name, p.iter().copied())));
            let mut bytes = Bytes::from(frame);
            assert_eq!(bytes::Buf::get_i32(&mut bytes) as usize, bytes.len());
            let header = ResponseHeader::decode(&mut bytes, i16::from(flexible)).unwrap();
            assert_eq!(header.correlation_id, -5);
            let answer = messages::ProduceResponse::decode(&mut bytes, version).unwrap();
            assert!(bytes.is_empty());
            let mut first = PartitionProduceResponse::default().with_index(0).with_base_offset(12).with_log_append_time_ms(34);
            let mut second = PartitionProduceResponse::default().with_index(7).with_error_code(2).with_base_offset(-1);
            if version >= 5 {
                first.log_start_offset = 5;
            }
            if version >= 8 {
                second.error_message = Some(StrBytes::from_static_str("a batch that does not check"));
            }
            let topic =
                |name, p| TopicProduceResponse::default().with_name(TopicName(StrBytes::from_static_str(name))).with_partition_responses(p);
            let expected =
                messages::ProduceResponse::default().with_responses(vec![topic("orders", vec![first, second]), topic("payments", vec![])]);
            assert_eq!(answer, expected);
            let mut again = BytesMut::new();
            expected.encode(&mut again, version).unwrap();
        }
    }

    #[test]
    fn hostile_requests_do_not_panic() {
        for version in [3, 9, 11] {
            let frame = frame_of(0, version, 1, &request());
            flip_and_cut(&frame, |bytes| {
                let Ok(Some(start)) = peek(bytes) else { return };
                let Ok((_, body)) = decode_head(start, bytes) else { return };
                if let Ok(read) = decode_produce(body.clone(), start.version) {
                    let ranges = read.topics.iter().flat_map(|t| &t.partitions).filter_map(|p| p.records.as_ref());
                    assert!(ranges.clone().is_sorted_by(|a, b| a.end <= b.start) && ranges.clone().all(|range| range.end <= bytes.len()));
                }
                let _ = decode_produce_start(body, start.version);
            });
        }
    }
}
