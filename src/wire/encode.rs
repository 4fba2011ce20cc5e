//! From requests and responses to frames.
//!
//! An encoder keeps its buffer between headers, so that encoding what goes by for every batch (produce, fetch and their answers)
//! allocates nothing once it is warm; answers about topics may.

use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, Vector, WIPOffset};

use super::NO_LEADER;
use super::frame::{self, FrameError};
use super::generated as g;
use super::{cluster, groups};
use crate::limits;
use crate::request::{
    Acks, AlterTopic, Code, CreateTopic, DeleteRecords, DeleteRecordsResult, EpochEndResult, EpochQuestion, Fetch, FetchResult,
    FoundOffset, ListOffset, ListOffsetResult, Metadata, MetadataRequest, OffsetSpec, Produce, ProduceResult, Refusal, Request, Response,
    TopicDescription, TopicMetadata,
};
use crate::types::{Durability, TopicPartition};

type Builder = FlatBufferBuilder<'static>;
type Offset<T> = WIPOffset<T>;
type Tables<T> = Vector<'static, flatbuffers::ForwardsUOffset<T>>;

/// Reused memory for encoding requests.
#[derive(Default)]
pub struct RequestEncoder(Builder);

/// Reused memory for encoding responses.
#[derive(Default)]
pub struct ResponseEncoder(Builder);

impl RequestEncoder {
    /// An encoder without memory yet.
    pub fn new() -> RequestEncoder {
        RequestEncoder::default()
    }
}

impl ResponseEncoder {
    /// An encoder without memory yet.
    pub fn new() -> ResponseEncoder {
        ResponseEncoder::default()
    }
}

/// Appends prefix and header of a request to `out`; the `payload_len` bytes of payload are to be sent right after them.
///
/// # Errors
/// The request's header is longer than a broker reads, or the frame is; `out` is unchanged.
///
/// # Panics
/// When a produce request's ranges do not fit 32 bits or its `payload_len`.
pub fn encode_request(
    encoder: &mut RequestEncoder,
    correlation: u64,
    request: &Request,
    payload_len: usize,
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let b = &mut encoder.0;
    b.reset();
    let (body_type, body) = request_body(b, request, payload_len);
    let root = g::Request::create(b, &g::RequestArgs { correlation, body_type, body: Some(body) });
    b.finish_minimal(root);
    let header = b.finished_data();
    if header.len() > limits::MAX_FRAME_HEADER {
        return Err(FrameError::HeaderTooLong { len: header.len() as u32, max: limits::MAX_FRAME_HEADER });
    }
    if header.len() + payload_len > limits::MAX_FRAME {
        return Err(FrameError::TooLong { len: (header.len() + payload_len) as u32, max: limits::MAX_FRAME });
    }
    frame::write(header, payload_len, out);
    Ok(())
}

/// Appends prefix and header of a response to `out`; the `payload_len` bytes of payload (of a fetch) are to be sent right after them.
///
/// A response whose header is longer than a client reads becomes a refusal that says so.
///
/// # Panics
/// When `payload_len` is not the sum of a fetch response's bytes.
pub fn encode_response(encoder: &mut ResponseEncoder, correlation: u64, response: &Response, payload_len: usize, out: &mut Vec<u8>) {
    finish_response(&mut encoder.0, correlation, response, payload_len);
    let len = encoder.0.finished_data().len();
    if len > limits::MAX_RESPONSE_HEADER {
        let message =
            format!("the answer's header of {len} bytes is over the {} that a client reads: ask for less", limits::MAX_RESPONSE_HEADER);
        let refusal = Response::Refused(Refusal::new(Code::InvalidRequest, message));
        finish_response(&mut encoder.0, correlation, &refusal, 0);
        frame::write(encoder.0.finished_data(), 0, out);
        return;
    }
    frame::write(encoder.0.finished_data(), payload_len, out);
}

fn finish_response(b: &mut Builder, correlation: u64, response: &Response, payload_len: usize) {
    b.reset();
    let (body_type, body) = response_body(b, response, payload_len);
    let root = g::Response::create(b, &g::ResponseArgs { correlation, body_type, body: Some(body) });
    b.finish_minimal(root);
}

fn request_body(b: &mut Builder, request: &Request, payload_len: usize) -> (g::RequestBody, WIPOffset<UnionWIPOffset>) {
    use g::RequestBody as Body;
    match request {
        Request::Produce(produce) => (Body::ProduceRequest, produce_request(b, produce, payload_len).as_union_value()),
        Request::Fetch(fetch) => (Body::FetchRequest, fetch_request(b, fetch).as_union_value()),
        Request::ListOffsets(questions) => (Body::ListOffsetsRequest, list_offsets_request(b, questions).as_union_value()),
        Request::Metadata(metadata) => (Body::MetadataRequest, metadata_request(b, metadata).as_union_value()),
        Request::CreateTopic(create) => (Body::CreateTopicRequest, create_topic_request(b, create).as_union_value()),
        Request::AlterTopic(alter) => (Body::AlterTopicRequest, alter_topic_request(b, alter).as_union_value()),
        Request::DeleteTopic(name) => {
            let name = Some(b.create_string(name));
            (Body::DeleteTopicRequest, g::DeleteTopicRequest::create(b, &g::DeleteTopicRequestArgs { name }).as_union_value())
        }
        Request::DescribeTopic(name) => {
            let name = Some(b.create_string(name));
            (Body::DescribeTopicRequest, g::DescribeTopicRequest::create(b, &g::DescribeTopicRequestArgs { name }).as_union_value())
        }
        Request::InitProducerId => {
            (Body::InitProducerIdRequest, g::InitProducerIdRequest::create(b, &g::InitProducerIdRequestArgs {}).as_union_value())
        }
        Request::FindCoordinator(names) => groups::find_coordinator_request(b, names),
        Request::Group(request) => groups::request_body(b, request),
        Request::EpochEnds(questions) => (Body::EpochEndsRequest, epoch_ends_request(b, questions).as_union_value()),
        Request::Cluster(request) => cluster::request_body(b, request),
        Request::DeleteRecords(partitions) => (Body::DeleteRecordsRequest, delete_records_request(b, partitions).as_union_value()),
    }
}

fn produce_request(b: &mut Builder, produce: &Produce, payload_len: usize) -> Offset<g::ProduceRequest<'static>> {
    let batches = produce.batches.iter().map(|batch| {
        assert!(batch.range.start <= batch.range.end && batch.range.end <= payload_len, "a batch is inside its payload");
        let (start, length) = (u32::try_from(batch.range.start), u32::try_from(batch.range.len()));
        let (topic, partition) = place(batch.partition);
        g::ProduceBatch::new(&topic, partition, start.expect("a payload within a frame"), length.expect("a payload within a frame"))
    });
    let batches = b.create_vector_from_iter(batches);
    let acks = match produce.acks {
        Acks::None => g::Acks::None,
        Acks::Leader => g::Acks::Leader,
        Acks::All => g::Acks::All,
    };
    let args = g::ProduceRequestArgs { acks, timeout_ms: produce.timeout_ms, batches: Some(batches), crc_trailer: produce.crc_trailer };
    g::ProduceRequest::create(b, &args)
}

fn fetch_request(b: &mut Builder, fetch: &Fetch) -> Offset<g::FetchRequest<'static>> {
    let partitions = fetch.partitions.iter().map(|p| {
        let (topic, partition) = place(p.partition);
        g::FetchPartition::new(&topic, partition, p.offset, p.max_bytes, p.leader_epoch.unwrap_or(-1))
    });
    let partitions = Some(b.create_vector_from_iter(partitions));
    let args = g::FetchRequestArgs { max_wait_ms: fetch.max_wait_ms, min_bytes: fetch.min_bytes, max_bytes: fetch.max_bytes, partitions };
    g::FetchRequest::create(b, &args)
}

fn list_offsets_request(b: &mut Builder, questions: &[ListOffset]) -> Offset<g::ListOffsetsRequest<'static>> {
    let questions = questions.iter().map(|q| {
        let (spec, timestamp) = match q.spec {
            OffsetSpec::Earliest => (g::OffsetSpec::Earliest, 0),
            OffsetSpec::Latest => (g::OffsetSpec::Latest, 0),
            OffsetSpec::At(timestamp) => (g::OffsetSpec::At, timestamp),
            OffsetSpec::MaxTimestamp => (g::OffsetSpec::MaxTimestamp, 0),
        };
        let (topic, partition) = place(q.partition);
        g::OffsetQuestion::new(&topic, partition, spec, timestamp)
    });
    let questions = Some(b.create_vector_from_iter(questions));
    g::ListOffsetsRequest::create(b, &g::ListOffsetsRequestArgs { questions })
}

fn delete_records_request(b: &mut Builder, partitions: &[DeleteRecords]) -> Offset<g::DeleteRecordsRequest<'static>> {
    let partitions = partitions.iter().map(|p| {
        let (topic, partition) = place(p.partition);
        g::RecordsToDelete::new(&topic, partition, p.before.unwrap_or(-1))
    });
    let partitions = Some(b.create_vector_from_iter(partitions));
    g::DeleteRecordsRequest::create(b, &g::DeleteRecordsRequestArgs { partitions })
}

fn epoch_ends_request(b: &mut Builder, questions: &[EpochQuestion]) -> Offset<g::EpochEndsRequest<'static>> {
    let questions = questions.iter().map(|q| {
        let (topic, partition) = place(q.partition);
        g::EpochQuestion::new(&topic, partition, q.current.unwrap_or(-1), q.epoch)
    });
    let questions = Some(b.create_vector_from_iter(questions));
    g::EpochEndsRequest::create(b, &g::EpochEndsRequestArgs { questions })
}

fn metadata_request(b: &mut Builder, metadata: &MetadataRequest) -> Offset<g::MetadataRequest<'static>> {
    let topics = metadata.topics.as_ref().map(|names| {
        let names: Vec<_> = names.iter().map(|name| b.create_string(name)).collect();
        b.create_vector(&names)
    });
    g::MetadataRequest::create(b, &g::MetadataRequestArgs { topics, create_missing: metadata.create_missing })
}

fn create_topic_request(b: &mut Builder, create: &CreateTopic) -> Offset<g::CreateTopicRequest<'static>> {
    let config = settings(b, create.config.iter().map(|(name, value)| (name.as_str(), Some(value.as_str()))));
    let name = Some(b.create_string(&create.name));
    let args = g::CreateTopicRequestArgs {
        name,
        partitions: create.partitions,
        replication_factor: create.replication_factor,
        config: Some(config),
        validate_only: create.validate_only,
    };
    g::CreateTopicRequest::create(b, &args)
}

fn alter_topic_request(b: &mut Builder, alter: &AlterTopic) -> Offset<g::AlterTopicRequest<'static>> {
    let config = settings(b, alter.config.iter().map(|(name, value)| (name.as_str(), value.as_deref())));
    let name = Some(b.create_string(&alter.name));
    g::AlterTopicRequest::create(b, &g::AlterTopicRequestArgs { name, partitions: alter.partitions, config: Some(config) })
}

fn settings<'a>(b: &mut Builder, settings: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Offset<Tables<g::Setting<'static>>> {
    let settings: Vec<_> = settings
        .map(|(name, value)| {
            let (name, value) = (Some(b.create_string(name)), value.map(|v| b.create_string(v)));
            g::Setting::create(b, &g::SettingArgs { name, value })
        })
        .collect();
    b.create_vector(&settings)
}

fn response_body(b: &mut Builder, response: &Response, payload_len: usize) -> (g::ResponseBody, WIPOffset<UnionWIPOffset>) {
    use g::ResponseBody as Body;
    let fetched = if let Response::Fetch(results) = response { fetched_bytes(results) } else { 0 };
    assert_eq!(payload_len, fetched, "the payload is what the results say");
    match response {
        Response::Produce(results) => (Body::ProduceResponse, produce_response(b, results).as_union_value()),
        Response::Fetch(results) => (Body::FetchResponse, fetch_response(b, results).as_union_value()),
        Response::ListOffsets(results) => (Body::ListOffsetsResponse, list_offsets_response(b, results).as_union_value()),
        Response::Metadata(metadata) => (Body::MetadataResponse, metadata_response(b, metadata).as_union_value()),
        Response::TopicCreated(topic) => {
            let topic = Some(topic_description(b, topic));
            (Body::CreateTopicResponse, g::CreateTopicResponse::create(b, &g::CreateTopicResponseArgs { topic }).as_union_value())
        }
        Response::Topic(topic) => {
            let topic = Some(topic_description(b, topic));
            (Body::DescribeTopicResponse, g::DescribeTopicResponse::create(b, &g::DescribeTopicResponseArgs { topic }).as_union_value())
        }
        Response::TopicAltered(topic) => {
            let topic = Some(topic_description(b, topic));
            (Body::AlterTopicResponse, g::AlterTopicResponse::create(b, &g::AlterTopicResponseArgs { topic }).as_union_value())
        }
        Response::TopicDeleted => {
            (Body::DeleteTopicResponse, g::DeleteTopicResponse::create(b, &g::DeleteTopicResponseArgs {}).as_union_value())
        }
        Response::ProducerId(producer_id, producer_epoch) => {
            let args = g::InitProducerIdResponseArgs { producer_id: *producer_id, producer_epoch: *producer_epoch };
            (Body::InitProducerIdResponse, g::InitProducerIdResponse::create(b, &args).as_union_value())
        }
        Response::Coordinators(found) => groups::coordinators_response(b, found),
        Response::Group(answer) => groups::response_body(b, answer),
        Response::EpochEnds(results) => (Body::EpochEndsResponse, epoch_ends_response(b, results).as_union_value()),
        Response::Cluster(answer) => cluster::response_body(b, answer),
        Response::RecordsDeleted(results) => (Body::DeleteRecordsResponse, delete_records_response(b, results).as_union_value()),
        Response::Refused(refusal) => (Body::Refusal, refusal_offset(b, refusal).as_union_value()),
    }
}

fn fetched_bytes(results: &[FetchResult]) -> usize {
    results.iter().filter_map(|r| r.outcome.as_ref().ok()).map(|fetched| fetched.bytes as usize).sum()
}

fn produce_response(b: &mut Builder, results: &[ProduceResult]) -> Offset<g::ProduceResponse<'static>> {
    let refusals = refused_items(b, results.iter().map(|r| r.outcome.as_ref().err()));
    let results = results.iter().map(|r| {
        let (topic, partition) = place(r.partition);
        match &r.outcome {
            Ok(a) => g::ProduceResult::new(&topic, partition, a.base_offset, a.log_append_time, a.log_start),
            Err(_) => g::ProduceResult::new(&topic, partition, -1, -1, -1),
        }
    });
    let results = Some(b.create_vector_from_iter(results));
    g::ProduceResponse::create(b, &g::ProduceResponseArgs { results, refusals })
}

fn fetch_response(b: &mut Builder, results: &[FetchResult]) -> Offset<g::FetchResponse<'static>> {
    let refusals = refused_items(b, results.iter().map(|r| r.outcome.as_ref().err()));
    let results = results.iter().map(|r| {
        let (topic, partition) = place(r.partition);
        match &r.outcome {
            Ok(f) => g::FetchResult::new(&topic, partition, f.high_watermark, f.log_start, f.bytes),
            Err(_) => g::FetchResult::new(&topic, partition, -1, -1, 0),
        }
    });
    let results = Some(b.create_vector_from_iter(results));
    g::FetchResponse::create(b, &g::FetchResponseArgs { results, refusals })
}

fn list_offsets_response(b: &mut Builder, results: &[ListOffsetResult]) -> Offset<g::ListOffsetsResponse<'static>> {
    let refusals = refused_items(b, results.iter().map(|r| r.outcome.as_ref().err()));
    let found = |r: &ListOffsetResult| *r.outcome.as_ref().unwrap_or(&FoundOffset::NONE);
    let answers = results.iter().map(|r| {
        let (topic, partition) = place(r.partition);
        g::OffsetAnswer::new(&topic, partition, found(r).offset, found(r).timestamp)
    });
    let answers = Some(b.create_vector_from_iter(answers));
    let leader_epochs = Some(b.create_vector_from_iter(results.iter().map(|r| found(r).leader_epoch.unwrap_or(-1))));
    g::ListOffsetsResponse::create(b, &g::ListOffsetsResponseArgs { answers, refusals, leader_epochs })
}

fn epoch_ends_response(b: &mut Builder, results: &[EpochEndResult]) -> Offset<g::EpochEndsResponse<'static>> {
    let refusals = refused_items(b, results.iter().map(|r| r.outcome.as_ref().err()));
    let ends = results.iter().map(|r| {
        let (topic, partition) = place(r.partition);
        let end = r.outcome.as_ref().ok().copied().flatten();
        g::EpochEnd::new(&topic, partition, end.map_or(-1, |end| end.epoch), end.map_or(-1, |end| end.end_offset))
    });
    let ends = Some(b.create_vector_from_iter(ends));
    g::EpochEndsResponse::create(b, &g::EpochEndsResponseArgs { ends, refusals })
}

fn delete_records_response(b: &mut Builder, results: &[DeleteRecordsResult]) -> Offset<g::DeleteRecordsResponse<'static>> {
    let refusals = refused_items(b, results.iter().map(|r| r.outcome.as_ref().err()));
    let starts = results.iter().map(|r| {
        let (topic, partition) = place(r.partition);
        g::LogStart::new(&topic, partition, *r.outcome.as_ref().unwrap_or(&-1))
    });
    let starts = Some(b.create_vector_from_iter(starts));
    g::DeleteRecordsResponse::create(b, &g::DeleteRecordsResponseArgs { starts, refusals })
}

/// The refusals of a list with their places; none at all (and nothing allocated) where nothing was refused.
pub(super) fn refused_items<'a>(
    b: &mut Builder,
    items: impl Iterator<Item = Option<&'a Refusal>>,
) -> Option<Offset<Tables<g::RefusedItem<'static>>>> {
    let mut refused = Vec::new();
    for (index, refusal) in items.enumerate() {
        if let Some(refusal) = refusal {
            let refusal = Some(refusal_offset(b, refusal));
            refused.push(g::RefusedItem::create(b, &g::RefusedItemArgs { index: index as u32, refusal }));
        }
    }
    if refused.is_empty() { None } else { Some(b.create_vector(&refused)) }
}

pub(super) fn refusal_offset(b: &mut Builder, refusal: &Refusal) -> Offset<g::Refusal<'static>> {
    let message = Some(b.create_string(&refusal.message));
    g::Refusal::create(b, &g::RefusalArgs { code: refusal.code.value(), message })
}

fn metadata_response(b: &mut Builder, metadata: &Metadata) -> Offset<g::MetadataResponse<'static>> {
    let brokers: Vec<_> = metadata
        .brokers
        .iter()
        .map(|broker| {
            let host = Some(b.create_string(&broker.host));
            g::Broker::create(b, &g::BrokerArgs { id: broker.id, host, port: broker.port })
        })
        .collect();
    let brokers = Some(b.create_vector(&brokers));
    let topics: Vec<_> = metadata.topics.iter().map(|topic| topic_metadata(b, topic)).collect();
    let topics = Some(b.create_vector(&topics));
    let cluster = g::Uuid(metadata.cluster);
    g::MetadataResponse::create(b, &g::MetadataResponseArgs { cluster: Some(&cluster), brokers, controller: metadata.controller, topics })
}

fn topic_metadata(b: &mut Builder, topic: &TopicMetadata) -> Offset<g::TopicMetadata<'static>> {
    let name = Some(b.create_string(&topic.name));
    match &topic.found {
        Ok(found) => {
            let leaders = found.partitions.iter().map(|p| g::PartitionLeader::new(p.leader.unwrap_or(NO_LEADER), p.leader_epoch));
            let partitions = Some(b.create_vector_from_iter(leaders));
            let id = g::Uuid(found.id.0);
            let args = g::TopicMetadataArgs { name, id: Some(&id), partitions, max_message_bytes: found.max_message_bytes, refusal: None };
            g::TopicMetadata::create(b, &args)
        }
        Err(refusal) => {
            let refusal = Some(refusal_offset(b, refusal));
            g::TopicMetadata::create(b, &g::TopicMetadataArgs { name, refusal, ..Default::default() })
        }
    }
}

fn topic_description(b: &mut Builder, topic: &TopicDescription) -> Offset<g::TopicDescription<'static>> {
    let config: Vec<_> = topic
        .config
        .iter()
        .map(|entry| {
            let (name, value) = (Some(b.create_string(&entry.name)), Some(b.create_string(&entry.value)));
            g::ConfigEntry::create(b, &g::ConfigEntryArgs { name, value, is_set: entry.is_set })
        })
        .collect();
    let config = Some(b.create_vector(&config));
    let name = Some(b.create_string(&topic.name));
    let id = g::Uuid(topic.id.0);
    let durability = match topic.durability {
        Durability::Memory => g::Durability::Memory,
        Durability::Written => g::Durability::Written,
        Durability::Durable => g::Durability::Durable,
    };
    let args = g::TopicDescriptionArgs {
        name,
        id: Some(&id),
        partitions: topic.partitions,
        replication_factor: topic.replication_factor,
        durability,
        config,
    };
    g::TopicDescription::create(b, &args)
}

fn place(partition: TopicPartition) -> (g::Uuid, u32) {
    (g::Uuid(partition.topic.0), partition.partition)
}
