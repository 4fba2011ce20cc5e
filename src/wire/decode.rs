//! From headers to requests and responses.
//!
//! A header that verifies can still contradict itself or its payload; every range, count and enum is checked here, so what
//! comes out can be used without another look.

use flatbuffers::{ForwardsUOffset, InvalidFlatbuffer, Vector};

use super::{NO_LEADER, cluster, generated as g, groups, verified};
use crate::request::{
    Acks, AlterTopic, Appended, Broker, Code, ConfigEntry, CreateTopic, DeleteRecords, DeleteRecordsResult, EpochEnd, EpochEndResult,
    EpochQuestion, Fetch, FetchPartition, FetchResult, Fetched, FoundOffset, ListOffset, ListOffsetResult, Metadata, MetadataRequest,
    OffsetSpec, PartitionMetadata, Produce, ProduceBatch, ProduceResult, ReadFrom, Refusal, ReplicaLists, Request, Response,
    TopicDescription, TopicMetadata, TopicPartitions,
};
use crate::types::{Durability, TopicId, TopicPartition};

/// Why a header is not a request or response.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// The header does not verify as its table.
    #[error("the header is no {table}: {cause}")]
    Header {
        /// The expected root table.
        table: &'static str,
        /// The correlation id, where at least that can be read.
        correlation: Option<u64>,
        /// What the verifier found.
        cause: String,
    },
    /// A body of a kind that this build does not know.
    #[error("a {table} of unknown kind {kind}")]
    UnknownKind {
        /// The root table.
        table: &'static str,
        /// The correlation id.
        correlation: u64,
        /// The union's tag.
        kind: u8,
    },
    /// The header contradicts itself or its payload.
    #[error("{what}")]
    Invalid {
        /// The correlation id.
        correlation: u64,
        /// What was expected and what came.
        what: String,
    },
}

impl WireError {
    pub(super) fn header(table: &'static str, correlation: Option<u64>, cause: &InvalidFlatbuffer) -> WireError {
        // The verifier's text has a trace over several lines; its first line says what is wrong.
        let cause = cause.to_string();
        WireError::Header { table, correlation, cause: cause.lines().next().unwrap_or_default().trim_end_matches(['.', '\n']).into() }
    }

    /// The request's correlation id, so that the error can be answered; `None` where not even that can be read.
    pub fn correlation(&self) -> Option<u64> {
        match self {
            WireError::Header { correlation, .. } => *correlation,
            WireError::UnknownKind { correlation, .. } | WireError::Invalid { correlation, .. } => Some(*correlation),
        }
    }

    /// The answer to the sender of such a request.
    pub fn refusal(&self) -> Refusal {
        let code = match self {
            WireError::UnknownKind { .. } => Code::UnsupportedVersion,
            WireError::Header { .. } | WireError::Invalid { .. } => Code::InvalidRequest,
        };
        Refusal::new(code, self.to_string())
    }
}

/// Reads a request's header; ranges are checked against `payload_len`, the bytes that follow it in the frame.
///
/// # Errors
/// See [`WireError`]; [`WireError::correlation`] says whom to answer.
pub fn decode_request(header: &[u8], payload_len: usize) -> Result<(u64, Request), WireError> {
    decode_request_reusing(header, payload_len, &mut Vec::new())
}

/// As [`decode_request`]; a produce request takes its list of batches from `spare`, so that a caller who puts the list back
/// there when the request is done allocates none.
///
/// # Errors
/// See [`WireError`].
pub fn decode_request_reusing(header: &[u8], payload_len: usize, spare: &mut Vec<ProduceBatch>) -> Result<(u64, Request), WireError> {
    let root = verified::<g::Request>(header).map_err(|cause| WireError::header("Request", envelope_correlation(header), &cause))?;
    let correlation = root.correlation();
    let request = request_of(&root, payload_len, spare).map_err(|what| match what {
        Fault::Kind(kind) => WireError::UnknownKind { table: "Request", correlation, kind },
        Fault::Invalid(what) => WireError::Invalid { correlation, what },
    })?;
    if payload_len > 0 && !matches!(request, Request::Produce(_)) {
        let what = format!("only a produce request has a payload: expected none, got {payload_len} bytes");
        return Err(WireError::Invalid { correlation, what });
    }
    Ok((correlation, request))
}

/// Reads a response's header; `payload_len` is the number of bytes that follow it in the frame.
///
/// # Errors
/// See [`WireError`].
pub fn decode_response(header: &[u8], payload_len: usize) -> Result<(u64, Response), WireError> {
    let root = verified::<g::Response>(header).map_err(|cause| WireError::header("Response", envelope_correlation(header), &cause))?;
    let correlation = root.correlation();
    let response = response_of(&root, payload_len).map_err(|what| match what {
        Fault::Kind(kind) => WireError::UnknownKind { table: "Response", correlation, kind },
        Fault::Invalid(what) => WireError::Invalid { correlation, what },
    })?;
    if payload_len > 0 && !matches!(response, Response::Fetch(_)) {
        let what = format!("only a fetch response has a payload: expected none, got {payload_len} bytes");
        return Err(WireError::Invalid { correlation, what });
    }
    Ok((correlation, response))
}

/// The correlation id of a header whose rest can't be read.
fn envelope_correlation(header: &[u8]) -> Option<u64> {
    verified::<g::Envelope>(header).ok().map(|envelope| envelope.correlation())
}

/// What is wrong with a body.
pub(super) enum Fault {
    Kind(u8),
    Invalid(String),
}

pub(super) fn invalid<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Invalid(what.into()))
}

fn request_of(root: &g::Request<'_>, payload_len: usize, spare: &mut Vec<ProduceBatch>) -> Result<Request, Fault> {
    // Each `body_as` is `None` only where the tag says another kind: the verifier has seen that tag and body are there together.
    if let Some(produce) = root.body_as_produce_request() {
        return produce_of(&produce, payload_len, spare).map(Request::Produce);
    }
    if let Some(fetch) = root.body_as_fetch_request() {
        return fetch_of(&fetch).map(Request::Fetch);
    }
    if let Some(list) = root.body_as_list_offsets_request() {
        return list.questions().iter().map(question_of).collect::<Result<_, _>>().map(Request::ListOffsets);
    }
    if let Some(metadata) = root.body_as_metadata_request() {
        let topics = metadata.topics().map(|names| names.iter().map(String::from).collect());
        return Ok(Request::Metadata(MetadataRequest { topics, create_missing: metadata.create_missing() }));
    }
    if let Some(create) = root.body_as_create_topic_request() {
        return create_topic_of(&create).map(Request::CreateTopic);
    }
    if let Some(delete) = root.body_as_delete_topic_request() {
        return Ok(Request::DeleteTopic(delete.name().into()));
    }
    if let Some(describe) = root.body_as_describe_topic_request() {
        return Ok(Request::DescribeTopic(describe.name().into()));
    }
    if let Some(alter) = root.body_as_alter_topic_request() {
        let config = settings_of(alter.config()).map(|(name, value)| (name.into(), value.map(String::from))).collect();
        return Ok(Request::AlterTopic(AlterTopic { name: alter.name().into(), partitions: alter.partitions(), config }));
    }
    if root.body_as_init_producer_id_request().is_some() {
        return Ok(Request::InitProducerId);
    }
    if let Some(find) = root.body_as_find_coordinator_request() {
        return groups::group_names(find.groups()).map(Request::FindCoordinator);
    }
    if let Some(request) = groups::request_of(root)? {
        return Ok(Request::Group(request));
    }
    if let Some(ends) = root.body_as_epoch_ends_request() {
        return ends.questions().iter().map(epoch_question_of).collect::<Result<_, _>>().map(Request::EpochEnds);
    }
    if let Some(delete) = root.body_as_delete_records_request() {
        return delete.partitions().iter().map(records_to_delete_of).collect::<Result<_, _>>().map(Request::DeleteRecords);
    }
    if let Some(request) = cluster::request_of(root)? {
        return Ok(Request::Cluster(request));
    }
    Err(Fault::Kind(root.body_type().0))
}

fn produce_of(produce: &g::ProduceRequest<'_>, payload_len: usize, spare: &mut Vec<ProduceBatch>) -> Result<Produce, Fault> {
    let acks = match produce.acks() {
        g::Acks::None => Acks::None,
        g::Acks::Leader => Acks::Leader,
        g::Acks::All => Acks::All,
        other => return invalid(format!("acks must be 0 (none), 1 (leader) or 2 (all), not {}", other.0)),
    };
    let mut batches = std::mem::take(spare);
    batches.clear();
    match ranges_of(produce, payload_len, &mut batches) {
        Ok(()) => Ok(Produce { acks, timeout_ms: produce.timeout_ms(), batches, crc_trailer: produce.crc_trailer() }),
        Err(fault) => {
            *spare = batches;
            Err(fault)
        }
    }
}

fn ranges_of(produce: &g::ProduceRequest<'_>, payload_len: usize, batches: &mut Vec<ProduceBatch>) -> Result<(), Fault> {
    let list = produce.batches();
    batches.reserve(list.len());
    let mut free_from = 0;
    for (index, batch) in list.iter().enumerate() {
        let (start, length) = (batch.start() as usize, batch.length() as usize);
        let end = start + length;
        if start < free_from || end > payload_len {
            return invalid(format!("batch {index} must be within bytes {free_from}..{payload_len} of the payload, not {start}..{end}"));
        }
        free_from = end;
        batches.push(ProduceBatch { partition: partition(batch.topic(), batch.partition()), range: start..end });
    }
    let trailer_fits = matches!(&batches[..], [only] if only.range.start == 0 && only.range.end + 4 == payload_len);
    if produce.crc_trailer() && !trailer_fits {
        return invalid(format!(
            "a payload with a trailing crc must be one batch and 4 bytes, not {} batches and {payload_len} bytes",
            batches.len()
        ));
    }
    Ok(())
}

fn fetch_of(fetch: &g::FetchRequest<'_>) -> Result<Fetch, Fault> {
    let list = fetch.partitions();
    let mut partitions = Vec::with_capacity(list.len());
    for p in list {
        let leader_epoch = match p.leader_epoch() {
            -1 => None,
            epoch if epoch >= 0 => Some(epoch),
            epoch => return invalid(format!("a leader epoch must be -1 (none) or more, not {epoch}")),
        };
        partitions.push(FetchPartition {
            partition: partition(p.topic(), p.partition()),
            offset: p.offset(),
            max_bytes: p.max_bytes(),
            leader_epoch,
        });
    }
    Ok(Fetch {
        max_wait_ms: fetch.max_wait_ms(),
        min_bytes: fetch.min_bytes(),
        max_bytes: fetch.max_bytes(),
        partitions,
        from: ReadFrom::Leader,
    })
}

fn question_of(question: &g::OffsetQuestion) -> Result<ListOffset, Fault> {
    let spec = match question.spec() {
        g::OffsetSpec::Earliest => OffsetSpec::Earliest,
        g::OffsetSpec::Latest => OffsetSpec::Latest,
        g::OffsetSpec::At => OffsetSpec::At(question.timestamp()),
        g::OffsetSpec::MaxTimestamp => OffsetSpec::MaxTimestamp,
        other => return invalid(format!("an offset must be asked for by 0 to 3, not {}", other.0)),
    };
    Ok(ListOffset { partition: partition(question.topic(), question.partition()), spec })
}

fn epoch_question_of(question: &g::EpochQuestion) -> Result<EpochQuestion, Fault> {
    let current = match question.current() {
        -1 => None,
        epoch if epoch >= 0 => Some(epoch),
        epoch => return invalid(format!("a leader epoch must be -1 (none) or more, not {epoch}")),
    };
    Ok(EpochQuestion { partition: partition(question.topic(), question.partition()), current, epoch: question.epoch() })
}

fn records_to_delete_of(records: &g::RecordsToDelete) -> Result<DeleteRecords, Fault> {
    let before = match records.before() {
        -1 => None,
        offset if offset >= 0 => Some(offset),
        offset => return invalid(format!("the first offset that stays must be -1 (the high watermark) or more, not {offset}")),
    };
    Ok(DeleteRecords { partition: partition(records.topic(), records.partition()), before })
}

fn create_topic_of(create: &g::CreateTopicRequest<'_>) -> Result<CreateTopic, Fault> {
    let mut config = Vec::new();
    for (name, value) in settings_of(create.config()) {
        let Some(value) = value else { return invalid(format!("the setting {name:?} of a new topic has no value")) };
        config.push((name.into(), value.into()));
    }
    Ok(CreateTopic {
        name: create.name().into(),
        partitions: create.partitions(),
        replication_factor: create.replication_factor(),
        config,
        validate_only: create.validate_only(),
    })
}

fn settings_of<'b>(list: Option<Vector<'b, ForwardsUOffset<g::Setting<'b>>>>) -> impl Iterator<Item = (&'b str, Option<&'b str>)> {
    list.into_iter().flatten().map(|setting| (setting.name(), setting.value()))
}

fn response_of(root: &g::Response<'_>, payload_len: usize) -> Result<Response, Fault> {
    if let Some(produce) = root.body_as_produce_response() {
        return produce_results_of(&produce).map(Response::Produce);
    }
    if let Some(fetch) = root.body_as_fetch_response() {
        return fetch_results_of(&fetch, payload_len).map(Response::Fetch);
    }
    if let Some(list) = root.body_as_list_offsets_response() {
        return offset_results_of(&list).map(Response::ListOffsets);
    }
    if let Some(metadata) = root.body_as_metadata_response() {
        return Ok(Response::Metadata(metadata_of(&metadata)));
    }
    if let Some(created) = root.body_as_create_topic_response() {
        return description_of(&created.topic()).map(Response::TopicCreated);
    }
    if let Some(described) = root.body_as_describe_topic_response() {
        return description_of(&described.topic()).map(Response::Topic);
    }
    if let Some(altered) = root.body_as_alter_topic_response() {
        return description_of(&altered.topic()).map(Response::TopicAltered);
    }
    if root.body_as_delete_topic_response().is_some() {
        return Ok(Response::TopicDeleted);
    }
    if let Some(producer) = root.body_as_init_producer_id_response() {
        return Ok(Response::ProducerId(producer.producer_id(), producer.producer_epoch()));
    }
    if let Some(ends) = root.body_as_epoch_ends_response() {
        return epoch_ends_of(&ends).map(Response::EpochEnds);
    }
    if let Some(deleted) = root.body_as_delete_records_response() {
        return delete_records_results_of(&deleted).map(Response::RecordsDeleted);
    }
    if let Some(refusal) = root.body_as_refusal() {
        return Ok(Response::Refused(refusal_of(refusal)));
    }
    if let Some(found) = root.body_as_find_coordinator_response() {
        return groups::coordinators_of(&found).map(Response::Coordinators);
    }
    if let Some(answer) = groups::answer_of(root)? {
        return Ok(Response::Group(answer));
    }
    if let Some(answer) = cluster::answer_of(root)? {
        return Ok(Response::Cluster(answer));
    }
    Err(Fault::Kind(root.body_type().0))
}

fn produce_results_of(produce: &g::ProduceResponse<'_>) -> Result<Vec<ProduceResult>, Fault> {
    let list = produce.results();
    let mut refusals = Refusals::of(produce.refusals(), list.len())?;
    let result = |(index, r): (usize, &g::ProduceResult)| {
        let appended = Appended { base_offset: r.base_offset(), log_append_time: r.log_append_time(), log_start: r.log_start() };
        ProduceResult { partition: partition(r.topic(), r.partition()), outcome: refusals.outcome(index, appended) }
    };
    Ok(list.iter().enumerate().map(result).collect())
}

fn fetch_results_of(fetch: &g::FetchResponse<'_>, payload_len: usize) -> Result<Vec<FetchResult>, Fault> {
    let list = fetch.results();
    let mut refusals = Refusals::of(fetch.refusals(), list.len())?;
    let mut sum = 0;
    let mut results = Vec::with_capacity(list.len());
    for (index, r) in list.iter().enumerate() {
        let outcome = refusals
            .outcome(index, Fetched { high_watermark: r.high_watermark(), log_start: r.log_start(), bytes: r.bytes(), preferred: None });
        sum += outcome.as_ref().map_or(0, |fetched| fetched.bytes as usize);
        results.push(FetchResult { partition: partition(r.topic(), r.partition()), outcome });
    }
    if sum != payload_len {
        return invalid(format!("the results divide {sum} bytes, the payload has {payload_len}"));
    }
    Ok(results)
}

fn offset_results_of(list: &g::ListOffsetsResponse<'_>) -> Result<Vec<ListOffsetResult>, Fault> {
    let answers = list.answers();
    let epochs = list.leader_epochs();
    if let Some(epochs) = epochs.filter(|epochs| epochs.len() != answers.len()) {
        return invalid(format!("{} answers have {} leader epochs", answers.len(), epochs.len()));
    }
    let mut refusals = Refusals::of(list.refusals(), answers.len())?;
    let result = |(index, a): (usize, &g::OffsetAnswer)| {
        let leader_epoch = epochs.map(|epochs| epochs.get(index)).filter(|epoch| *epoch >= 0);
        let found = FoundOffset { offset: a.offset(), timestamp: a.timestamp(), leader_epoch };
        ListOffsetResult { partition: partition(a.topic(), a.partition()), outcome: refusals.outcome(index, found) }
    };
    Ok(answers.iter().enumerate().map(result).collect())
}

fn epoch_ends_of(list: &g::EpochEndsResponse<'_>) -> Result<Vec<EpochEndResult>, Fault> {
    let ends = list.ends();
    let mut refusals = Refusals::of(list.refusals(), ends.len())?;
    let result = |(index, e): (usize, &g::EpochEnd)| {
        let end = (e.epoch() >= 0).then(|| EpochEnd { epoch: e.epoch(), end_offset: e.end_offset() });
        EpochEndResult { partition: partition(e.topic(), e.partition()), outcome: refusals.outcome(index, end) }
    };
    Ok(ends.iter().enumerate().map(result).collect())
}

fn delete_records_results_of(deleted: &g::DeleteRecordsResponse<'_>) -> Result<Vec<DeleteRecordsResult>, Fault> {
    let starts = deleted.starts();
    let mut refusals = Refusals::of(deleted.refusals(), starts.len())?;
    let result = |(index, s): (usize, &g::LogStart)| DeleteRecordsResult {
        partition: partition(s.topic(), s.partition()),
        outcome: refusals.outcome(index, s.log_start()),
    };
    Ok(starts.iter().enumerate().map(result).collect())
}

/// The refusals of a list's items, taken in the order of their indices.
pub(super) struct Refusals {
    rest: std::iter::Peekable<std::vec::IntoIter<(usize, Refusal)>>,
}

impl Refusals {
    pub(super) fn of<'b>(list: Option<Vector<'b, ForwardsUOffset<g::RefusedItem<'b>>>>, items: usize) -> Result<Refusals, Fault> {
        let mut found: Vec<(usize, Refusal)> = Vec::new();
        for refused in list.into_iter().flatten() {
            let index = refused.index() as usize;
            let least = found.last().map_or(0, |(last, _)| last + 1);
            if index < least || index >= items {
                return invalid(format!("the index of a refused item must be within {least}..{items}, not {index}"));
            }
            found.push((index, refusal_of(refused.refusal())));
        }
        Ok(Refusals { rest: found.into_iter().peekable() })
    }

    /// What became of the item: its refusal where there is one. To be called with rising indices.
    pub(super) fn outcome<T>(&mut self, index: usize, done: T) -> Result<T, Refusal> {
        match self.rest.next_if(|(refused, _)| *refused == index) {
            Some((_, refusal)) => Err(refusal),
            None => Ok(done),
        }
    }
}

/// A code of a newer broker is taken as a failure that is not worth a retry.
pub(super) fn refusal_of(refusal: g::Refusal<'_>) -> Refusal {
    match Code::from_value(refusal.code()) {
        Some(code) => Refusal::new(code, refusal.message()),
        None => Refusal::new(Code::Internal, format!("{} (unknown code {})", refusal.message(), refusal.code())),
    }
}

fn metadata_of(metadata: &g::MetadataResponse<'_>) -> Metadata {
    let brokers = metadata.brokers().iter().map(|b| Broker { id: b.id(), host: b.host().into(), port: b.port() }).collect();
    let topics = metadata.topics().iter().map(|t| topic_of(&t)).collect();
    Metadata { cluster: metadata.cluster().0, brokers, controller: metadata.controller(), topics }
}

fn topic_of(topic: &g::TopicMetadata<'_>) -> TopicMetadata {
    let found = match (topic.refusal(), topic.id()) {
        (Some(refusal), _) => Err(refusal_of(refusal)),
        (None, None) => Err(Refusal::new(Code::Internal, "the broker gave neither an id of the topic nor a reason")),
        (None, Some(id)) => {
            let leader = |p: &g::PartitionLeader| PartitionMetadata {
                leader: Some(p.leader()).filter(|id| *id != NO_LEADER),
                leader_epoch: p.leader_epoch(),
            };
            let partitions = topic.partitions().into_iter().flatten().map(leader).collect();
            let (id, replicas) = (TopicId(id.0), ReplicaLists::default());
            Ok(TopicPartitions { id, partitions, replicas, max_message_bytes: topic.max_message_bytes() })
        }
    };
    TopicMetadata { name: topic.name().into(), found }
}

fn description_of(topic: &g::TopicDescription<'_>) -> Result<TopicDescription, Fault> {
    let durability = match topic.durability() {
        g::Durability::Memory => Durability::Memory,
        g::Durability::Written => Durability::Written,
        g::Durability::Durable => Durability::Durable,
        other => return invalid(format!("a durability must be 0 to 2, not {}", other.0)),
    };
    let entry = |e: g::ConfigEntry<'_>| ConfigEntry { name: e.name().into(), value: e.value().into(), is_set: e.is_set() };
    Ok(TopicDescription {
        name: topic.name().into(),
        id: TopicId(topic.id().0),
        partitions: topic.partitions(),
        replication_factor: topic.replication_factor(),
        durability,
        config: topic.config().iter().map(entry).collect(),
    })
}

pub(super) fn partition(topic: &g::Uuid, partition: u32) -> TopicPartition {
    TopicPartition { topic: TopicId(topic.0), partition }
}
