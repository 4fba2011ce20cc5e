//! Whole frames: every request and response comes back as it went, and no bytes make a decoder panic or allocate without bound.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::request::*;
use crate::types::{Durability, TopicId, TopicPartition};

fn name() -> impl Strategy<Value = String> {
    "[a-zäß./-]{0,12}"
}

fn place() -> impl Strategy<Value = TopicPartition> {
    (any::<[u8; 16]>(), any::<u32>()).prop_map(|(topic, partition)| TopicPartition { topic: TopicId(topic), partition })
}

fn refusal() -> impl Strategy<Value = Refusal> {
    (select(Code::ALL), name()).prop_map(|(code, message)| Refusal { code, message })
}

/// A produce request with the length of its payload.
fn produce() -> impl Strategy<Value = (Request, usize)> {
    let acks = select(vec![Acks::None, Acks::Leader, Acks::All]);
    (acks, any::<u32>(), vec((place(), 0usize..50, 0usize..5000), 0..5), any::<bool>()).prop_map(|(acks, timeout_ms, list, trailer)| {
        let mut end = 0;
        let mut batches = vec![];
        for (partition, gap, len) in list {
            let start = if trailer { 0 } else { end + gap };
            end = start + len;
            batches.push(ProduceBatch { partition, range: start..end });
        }
        let crc_trailer = trailer && batches.len() == 1;
        if trailer && !crc_trailer {
            batches.truncate(0);
        }
        let payload_len = end + if crc_trailer { 4 } else { 0 };
        (Request::Produce(Produce { acks, timeout_ms, batches, crc_trailer }), payload_len)
    })
}

fn fetch() -> impl Strategy<Value = Request> {
    let partition = (place(), any::<i64>(), any::<u32>(), proptest::option::of(0..i32::MAX))
        .prop_map(|(partition, offset, max_bytes, leader_epoch)| FetchPartition { partition, offset, max_bytes, leader_epoch });
    (any::<[u32; 3]>(), vec(partition, 0..5)).prop_map(|([max_wait_ms, min_bytes, max_bytes], partitions)| {
        Request::Fetch(Fetch { max_wait_ms, min_bytes, max_bytes, partitions, from: ReadFrom::Leader })
    })
}

fn request() -> impl Strategy<Value = (Request, usize)> {
    let spec = prop_oneof![
        Just(OffsetSpec::Earliest),
        Just(OffsetSpec::Latest),
        Just(OffsetSpec::MaxTimestamp),
        any::<i64>().prop_map(OffsetSpec::At)
    ];
    let question = (place(), spec).prop_map(|(partition, spec)| ListOffset { partition, spec });
    let create = (name(), any::<Option<u32>>(), any::<Option<u16>>(), vec((name(), name()), 0..4), any::<bool>()).prop_map(
        |(name, partitions, replication_factor, config, validate_only)| {
            Request::CreateTopic(CreateTopic { name, partitions, replication_factor, config, validate_only })
        },
    );
    let alter = (name(), any::<Option<u32>>(), vec((name(), proptest::option::of(name())), 0..4))
        .prop_map(|(name, partitions, config)| Request::AlterTopic(AlterTopic { name, partitions, config }));
    let metadata = (proptest::option::of(vec(name(), 0..4)), any::<bool>())
        .prop_map(|(topics, create_missing)| Request::Metadata(MetadataRequest { topics, create_missing }));
    let delete = (place(), proptest::option::of(0..i64::MAX)).prop_map(|(partition, before)| DeleteRecords { partition, before });
    let epoch = (place(), proptest::option::of(0..i32::MAX), any::<i32>());
    let epoch = epoch.prop_map(|(partition, current, epoch)| EpochQuestion { partition, current, epoch });
    prop_oneof![
        produce(),
        fetch().prop_map(|r| (r, 0)),
        vec(question, 0..5).prop_map(|q| (Request::ListOffsets(q), 0)),
        metadata.prop_map(|r| (r, 0)),
        create.prop_map(|r| (r, 0)),
        alter.prop_map(|r| (r, 0)),
        name().prop_map(|n| (Request::DeleteTopic(n), 0)),
        name().prop_map(|n| (Request::DescribeTopic(n), 0)),
        Just((Request::InitProducerId, 0)),
        vec(name(), 0..4).prop_map(|names| (Request::FindCoordinator(names), 0)),
        group_values::request().prop_map(|r| (Request::Group(r), 0)),
        vec(delete, 0..5).prop_map(|d| (Request::DeleteRecords(d), 0)),
        vec(epoch, 0..5).prop_map(|e| (Request::EpochEnds(e), 0)),
        cluster_values::request().prop_map(|r| (Request::Cluster(r), 0)),
    ]
}

fn outcome<T: std::fmt::Debug + Clone>(done: impl Strategy<Value = T>) -> impl Strategy<Value = Result<T, Refusal>> {
    prop_oneof![2 => done.prop_map(Ok), 1 => refusal().prop_map(Err)]
}

fn description() -> impl Strategy<Value = TopicDescription> {
    let durability = select(vec![Durability::Memory, Durability::Written, Durability::Durable]);
    let entry = (name(), name(), any::<bool>()).prop_map(|(name, value, is_set)| ConfigEntry { name, value, is_set });
    (name(), any::<[u8; 16]>(), any::<u32>(), any::<u16>(), durability, vec(entry, 0..4)).prop_map(
        |(name, id, partitions, replication_factor, durability, config)| TopicDescription {
            name,
            id: TopicId(id),
            partitions,
            replication_factor,
            durability,
            config,
        },
    )
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let broker = (any::<u32>(), name(), any::<u16>()).prop_map(|(id, host, port)| Broker { id, host, port });
    let leader =
        (proptest::option::of(0..u32::MAX), any::<i32>()).prop_map(|(leader, leader_epoch)| PartitionMetadata { leader, leader_epoch });
    let found = (any::<[u8; 16]>(), vec(leader, 0..6), any::<u32>()).prop_map(|(id, partitions, max_message_bytes)| TopicPartitions {
        id: TopicId(id),
        partitions,
        replicas: ReplicaLists::default(),
        max_message_bytes,
    });
    let topic = (name(), outcome(found)).prop_map(|(name, found)| TopicMetadata { name, found });
    (any::<[u8; 16]>(), vec(broker, 0..4), any::<u32>(), vec(topic, 0..4)).prop_map(|(cluster, brokers, controller, topics)| Metadata {
        cluster,
        brokers,
        controller,
        topics,
    })
}

fn response() -> impl Strategy<Value = (Response, usize)> {
    let appended =
        any::<[i64; 3]>().prop_map(|[base_offset, log_append_time, log_start]| Appended { base_offset, log_append_time, log_start });
    let produced = (place(), outcome(appended)).prop_map(|(partition, outcome)| ProduceResult { partition, outcome });
    let fetched = (any::<[i64; 2]>(), 0u32..9000).prop_map(|([high_watermark, log_start], bytes)| Fetched {
        high_watermark,
        log_start,
        bytes,
        preferred: None,
    });
    let fetched = (place(), outcome(fetched)).prop_map(|(partition, outcome)| FetchResult { partition, outcome });
    let found = (any::<[i64; 2]>(), proptest::option::of(0..i32::MAX)).prop_map(|([offset, timestamp], leader_epoch)| FoundOffset {
        offset,
        timestamp,
        leader_epoch,
    });
    let answered = (place(), outcome(found)).prop_map(|(partition, outcome)| ListOffsetResult { partition, outcome });
    let end = proptest::option::of((0..i32::MAX, any::<i64>()).prop_map(|(epoch, end_offset)| EpochEnd { epoch, end_offset }));
    let ended = (place(), outcome(end)).prop_map(|(partition, outcome)| EpochEndResult { partition, outcome });
    let deleted = (place(), outcome(any::<i64>())).prop_map(|(partition, outcome)| DeleteRecordsResult { partition, outcome });
    prop_oneof![
        vec(produced, 0..5).prop_map(|r| (Response::Produce(r), 0)),
        vec(fetched, 0..5).prop_map(|r| {
            let sum = r.iter().filter_map(|r| r.outcome.as_ref().ok()).map(|f| f.bytes as usize).sum();
            (Response::Fetch(r), sum)
        }),
        vec(answered, 0..5).prop_map(|r| (Response::ListOffsets(r), 0)),
        metadata().prop_map(|m| (Response::Metadata(m), 0)),
        description().prop_map(|t| (Response::TopicCreated(t), 0)),
        description().prop_map(|t| (Response::Topic(t), 0)),
        description().prop_map(|t| (Response::TopicAltered(t), 0)),
        Just((Response::TopicDeleted, 0)),
        any::<(i64, i16)>().prop_map(|(id, epoch)| (Response::ProducerId(id, epoch), 0)),
        vec(deleted, 0..5).prop_map(|r| (Response::RecordsDeleted(r), 0)),
        vec(ended, 0..5).prop_map(|r| (Response::EpochEnds(r), 0)),
        refusal().prop_map(|r| (Response::Refused(r), 0)),
        group_values::coordinators().prop_map(|c| (Response::Coordinators(c), 0)),
        group_values::answer().prop_map(|a| (Response::Group(a), 0)),
        cluster_values::answer().prop_map(|a| (Response::Cluster(a), 0)),
    ]
}

fn request_frame(correlation: u64, request: &Request, payload_len: usize) -> Vec<u8> {
    let mut out = vec![];
    encode_request(&mut RequestEncoder::new(), correlation, request, payload_len, &mut out).unwrap();
    out
}

fn response_frame(correlation: u64, response: &Response, payload_len: usize) -> Vec<u8> {
    let mut out = vec![];
    encode_response(&mut ResponseEncoder::new(), correlation, response, payload_len, &mut out);
    out
}

/// The header of a frame, after all checks that a reader makes.
fn header(frame: &[u8], payload_len: usize) -> &[u8] {
    let prefix = peek(frame, limits::MAX_FRAME).unwrap().unwrap();
    assert_eq!(prefix.payload_len(), payload_len);
    assert_eq!(prefix.header_range().end, frame.len());
    let header = &frame[prefix.header_range()];
    prefix.check_header(header).unwrap();
    header
}

fn small_produce(ranges: &[(usize, usize)], crc_trailer: bool) -> Request {
    let partition = TopicPartition { topic: TopicId([1; 16]), partition: 3 };
    let batches = ranges.iter().map(|(start, end)| ProduceBatch { partition, range: *start..*end }).collect();
    Request::Produce(Produce { acks: Acks::All, timeout_ms: 1000, batches, crc_trailer })
}

proptest! {
    #[test]
    fn requests_round_trip((request, payload_len) in request(), correlation: u64) {
        let frame = request_frame(correlation, &request, payload_len);
        prop_assert_eq!(decode_request(header(&frame, payload_len), payload_len), Ok((correlation, request)));
    }

    #[test]
    fn responses_round_trip((response, payload_len) in response(), correlation: u64) {
        let frame = response_frame(correlation, &response, payload_len);
        prop_assert_eq!(decode_response(header(&frame, payload_len), payload_len), Ok((correlation, response)));
    }

    #[test]
    fn damaged_headers_never_panic((request, len) in request(), (response, response_len) in response(), flips in vec((any::<u16>(), any::<u8>()), 1..6), cut: u16) {
        for (frame, len) in [(request_frame(1, &request, len), len), (response_frame(1, &response, response_len), response_len)] {
            let mut header = frame[PREFIX_LEN..].to_vec();
            for (at, flip) in &flips {
                let at = *at as usize % header.len();
                header[at] ^= flip;
            }
            for header in [&header[..], &header[..cut as usize % header.len()]] {
                let decoded = decode_request(header, len);
                if let Ok((_, Request::Produce(produce))) = &decoded {
                    prop_assert!(produce.batches.iter().all(|b| b.range.start <= b.range.end && b.range.end <= len));
                    prop_assert!(produce.batches.windows(2).all(|w| w[0].range.end <= w[1].range.start));
                }
                let _ = decode_response(header, len);
                let _ = handshake::decode_hello(header);
                let _ = handshake::decode_hello_reply(header);
            }
        }
    }

    #[test]
    fn garbage_never_panics(bytes in vec(any::<u8>(), 0..200), len in 0usize..100) {
        let _ = decode_request(&bytes, len);
        let _ = decode_response(&bytes, len);
        let _ = handshake::decode_hello(&bytes);
        let _ = handshake::decode_hello_reply(&bytes);
    }
}

#[test]
fn ranges_that_lie_are_refused_with_the_correlation_id() {
    for (ranges, crc_trailer, encoded_len, claimed_len) in [
        (vec![(0, 100)], false, 100, 99),            // past the end
        (vec![(0, 100)], false, 100, 0),             // no payload at all
        (vec![(0, 60), (50, 100)], false, 100, 100), // overlap
        (vec![(50, 100), (0, 50)], false, 100, 100), // not in order
        (vec![(0, 100)], true, 100, 100),            // no room for the crc
        (vec![(0, 100)], true, 105, 105),            // more than the crc
        (vec![(1, 100)], true, 104, 104),            // not from the start
        (vec![(0, 50), (50, 100)], true, 104, 104),  // crc of which batch?
        (vec![], true, 4, 4),                        // crc of nothing
    ] {
        let frame = request_frame(77, &small_produce(&ranges, crc_trailer), encoded_len);
        let error = decode_request(&frame[PREFIX_LEN..], claimed_len).unwrap_err();
        assert!(matches!(error, WireError::Invalid { .. }), "{ranges:?}: {error}");
        assert_eq!((error.correlation(), error.refusal().code), (Some(77), Code::InvalidRequest));
    }
    let frame = request_frame(77, &small_produce(&[(0, 100)], true), 104);
    assert!(decode_request(&frame[PREFIX_LEN..], 104).is_ok());
}

#[test]
fn ranges_past_32_bits_do_not_wrap() {
    let mut b = flatbuffers::FlatBufferBuilder::new();
    let batch = generated::ProduceBatch::new(&generated::Uuid([0; 16]), 0, u32::MAX, u32::MAX);
    let batches = Some(b.create_vector(&[batch]));
    let body = generated::ProduceRequest::create(&mut b, &generated::ProduceRequestArgs { batches, ..Default::default() });
    let frame = finish_request(&mut b, generated::RequestBody::ProduceRequest, Some(body.as_union_value()));
    assert!(decode_request(&frame, u32::MAX as usize).is_err());
}

fn finish_request(
    b: &mut flatbuffers::FlatBufferBuilder<'_>,
    body_type: generated::RequestBody,
    body: Option<flatbuffers::WIPOffset<flatbuffers::UnionWIPOffset>>,
) -> Vec<u8> {
    let root = generated::Request::create(b, &generated::RequestArgs { correlation: 5, body_type, body });
    b.finish_minimal(root);
    b.finished_data().to_vec()
}

#[test]
fn an_unknown_request_is_answered_as_unsupported() {
    let mut b = flatbuffers::FlatBufferBuilder::new();
    let body = generated::InitProducerIdRequest::create(&mut b, &generated::InitProducerIdRequestArgs {});
    let header = finish_request(&mut b, generated::RequestBody(200), Some(body.as_union_value()));
    let error = decode_request(&header, 0).unwrap_err();
    assert_eq!(error, WireError::UnknownKind { table: "Request", correlation: 5, kind: 200 });
    assert_eq!(error.refusal().code, Code::UnsupportedVersion);
}

#[test]
fn a_body_that_does_not_verify_still_gives_its_correlation_id() {
    let mut b = flatbuffers::FlatBufferBuilder::new();
    // A produce request without its list, which is required.
    let body = generated::InitProducerIdRequest::create(&mut b, &generated::InitProducerIdRequestArgs {});
    let header = finish_request(&mut b, generated::RequestBody::ProduceRequest, Some(body.as_union_value()));
    let error = decode_request(&header, 0).unwrap_err();
    assert!(matches!(error, WireError::Header { correlation: Some(5), .. }), "{error}");
    assert_eq!(error.refusal().code, Code::InvalidRequest);

    // No body at all.
    let mut b = flatbuffers::FlatBufferBuilder::new();
    let header = finish_request(&mut b, generated::RequestBody::NONE, None);
    assert_eq!(decode_request(&header, 0).unwrap_err().correlation(), Some(5));
}

#[test]
fn unknown_enums_and_misplaced_payloads_are_refused() {
    let mut b = flatbuffers::FlatBufferBuilder::new();
    let batches = Some(b.create_vector::<generated::ProduceBatch>(&[]));
    let args = generated::ProduceRequestArgs { acks: generated::Acks(9), batches, ..Default::default() };
    let body = generated::ProduceRequest::create(&mut b, &args);
    let header = finish_request(&mut b, generated::RequestBody::ProduceRequest, Some(body.as_union_value()));
    assert!(decode_request(&header, 0).unwrap_err().to_string().contains('9'));

    let frame = request_frame(1, &Request::InitProducerId, 0);
    assert!(decode_request(&frame[PREFIX_LEN..], 1).unwrap_err().to_string().contains("payload"));
    let frame = response_frame(1, &Response::TopicDeleted, 0);
    assert!(decode_response(&frame[PREFIX_LEN..], 1).unwrap_err().to_string().contains("payload"));
    let fetched = Fetched { high_watermark: 1, log_start: 0, bytes: 10, preferred: None };
    let results = vec![FetchResult { partition: TopicPartition { topic: TopicId([0; 16]), partition: 0 }, outcome: Ok(fetched) }];
    let frame = response_frame(1, &Response::Fetch(results), 10);
    assert!(decode_response(&frame[PREFIX_LEN..], 9).unwrap_err().to_string().contains("divide 10"));
}

#[test]
fn a_code_of_a_newer_broker_is_not_retried() {
    let mut b = flatbuffers::FlatBufferBuilder::new();
    let message = Some(b.create_string("too many moons"));
    let body = generated::Refusal::create(&mut b, &generated::RefusalArgs { code: 31000, message });
    let args = generated::ResponseArgs { correlation: 1, body_type: generated::ResponseBody::Refusal, body: Some(body.as_union_value()) };
    let root = generated::Response::create(&mut b, &args);
    b.finish_minimal(root);
    let Ok((1, Response::Refused(refusal))) = decode_response(b.finished_data(), 0) else { panic!("a refusal") };
    assert!(!refusal.code.is_retriable() && refusal.message.contains("too many moons") && refusal.message.contains("31000"));
}

/// The attack that the limits of `verified` are for: a list whose thousands of items are all the same long string, so that
/// a small header becomes gigabytes once decoded.
#[test]
fn a_string_that_is_shared_a_thousand_times_is_refused() {
    let mut b = flatbuffers::FlatBufferBuilder::new();
    let long = b.create_string(&"x".repeat(500_000));
    let names = vec![long; 10_000];
    let topics = Some(b.create_vector(&names));
    let body = generated::MetadataRequest::create(&mut b, &generated::MetadataRequestArgs { topics, create_missing: false });
    let header = finish_request(&mut b, generated::RequestBody::MetadataRequest, Some(body.as_union_value()));
    assert!(header.len() < limits::MAX_FRAME_HEADER);
    let error = decode_request(&header, 0).unwrap_err();
    assert!(matches!(error, WireError::Header { correlation: Some(5), .. }), "{error}");
}

#[test]
fn a_large_honest_response_is_within_the_limits() {
    let found = |leaders| {
        Ok(TopicPartitions {
            id: TopicId([3; 16]),
            partitions: vec![PartitionMetadata { leader: Some(1), leader_epoch: 2 }; leaders],
            replicas: ReplicaLists::default(),
            max_message_bytes: 100,
        })
    };
    let mut topics: Vec<_> = (0..20_000).map(|i| TopicMetadata { name: format!("t{i}"), found: found(1) }).collect();
    topics.push(TopicMetadata { name: "wide".into(), found: found(limits::MAX_PARTITIONS as usize) });
    let metadata = Response::Metadata(Metadata { cluster: [0; 16], brokers: vec![], controller: 0, topics });
    let frame = response_frame(9, &metadata, 0);
    assert!(peek(&frame, limits::MAX_FRAME).is_err(), "longer than a request's header may be");
    let prefix = peek_response(&frame, limits::MAX_FRAME).unwrap().unwrap();
    // Not assert_eq: it would print it all.
    assert!(decode_response(&frame[prefix.header_range()], 0) == Ok((9, metadata)));
}

#[test]
fn a_request_that_no_broker_reads_is_not_sent() {
    let names = (0..100_000).map(|i| format!("topic-{i}")).collect();
    let request = Request::Metadata(MetadataRequest { topics: Some(names), create_missing: false });
    let mut out = vec![1, 2];
    let error = encode_request(&mut RequestEncoder::new(), 1, &request, 0, &mut out).unwrap_err();
    assert!(matches!(error, FrameError::HeaderTooLong { .. }));
    assert_eq!(out, [1, 2]);
}

#[test]
fn a_spare_list_is_used_and_given_back_when_refused() {
    let mut spare = Vec::with_capacity(64);
    let frame = request_frame(1, &small_produce(&[(0, 10)], false), 10);
    assert!(decode_request_reusing(&frame[PREFIX_LEN..], 9, &mut spare).is_err());
    assert_eq!(spare.capacity(), 64);
    let (_, Request::Produce(produce)) = decode_request_reusing(&frame[PREFIX_LEN..], 10, &mut spare).unwrap() else { panic!("produce") };
    assert_eq!(produce.batches.capacity(), 64);
}
