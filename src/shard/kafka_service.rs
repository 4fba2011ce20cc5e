//! Requests of Kafka's protocol but Produce: each becomes the protocol-neutral request that the native protocol makes, and its answer Kafka's.
//!
//! Topics go by name here: a name is that of the topic which this shard's view of the catalogue has at the moment.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, InitProducerIdRequest, InitProducerIdResponse, ListOffsetsRequest, ListOffsetsResponse,
    MetadataRequest as KafkaMetadataRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};

use crate::kafka::{self, Answering, FrameError, FrameStart, Reader, RequestHead, kafka_code};
use crate::limits;
use crate::metrics::RequestKind;
use crate::request::group::{GroupAnswer, GroupError, GroupRequest};
use crate::request::{Code, FoundOffset, ListOffset, MetadataRequest, OffsetSpec, Refusal, Request, Response};
use crate::shard::budget::Building;
use crate::shard::context::Context;
use crate::shard::groups;
use crate::shard::kafka_admin;
use crate::shard::kafka_delete_records;
use crate::shard::kafka_epochs;
use crate::shard::kafka_exchange::Exchange;
use crate::shard::kafka_fetch;
use crate::shard::kafka_group_admin;
use crate::shard::kafka_groups;
use crate::shard::kafka_log_dirs;
use crate::shard::kafka_offsets;
use crate::shard::kafka_placement;
use crate::shard::kafka_produce::{malformed, resolve, unknown};
use crate::shard::metadata;
use crate::shard::service;
use crate::types::TopicPartition;

/// A request in hand.
pub struct Asked<'a> {
    /// What every task knows.
    pub context: &'a Rc<Context>,
    /// The start of its frame.
    pub start: FrameStart,
    /// Its header.
    pub head: RequestHead<'a>,
    body: Reader<'a>,
    peer: &'a str,
    /// Bytes of words and settings that its answer may still hold.
    room: Cell<usize>,
    /// What of groups is in its answer.
    building: RefCell<Building>,
}

impl Asked<'_> {
    /// Its body.
    pub fn decode<T: Decodable>(&self) -> Result<T, FrameError> {
        kafka::decode(&self.head, self.body.clone()).map_err(|error| malformed(self.start, error))
    }

    /// The frame of its answer.
    pub fn encode<T: Encodable + HeaderVersion>(&self, answer: &T) -> Result<Vec<u8>, FrameError> {
        let unanswerable = FrameError::Unanswerable { key: self.head.api.key as i16, version: self.head.version };
        kafka::encode(self.head.correlation, self.head.version, answer).ok_or(unanswerable)
    }

    /// Whether its version has compact lengths.
    pub fn is_flexible(&self) -> bool {
        self.head.api.is_flexible(self.head.version)
    }

    /// To be called before each of the things that a request changes or describes: lets other tasks run.
    ///
    /// # Errors
    /// It is one too many.
    pub async fn next(&self, index: usize) -> Result<(), Refusal> {
        glommio::yield_if_needed().await;
        match index < limits::MAX_KAFKA_CHANGES {
            true => Ok(()),
            false => Err(self.too_many()),
        }
    }

    /// Asks the coordinator of a group.
    pub async fn ask_group(&self, request: GroupRequest) -> GroupAnswer {
        // A request asks one thing after the other, so nobody else has it meanwhile.
        let mut building = self.building.replace(Building::new(&self.context.store.budget));
        let answer = groups::ask(self.context, groups::from_client(request, self.peer), &mut building).await;
        self.building.replace(building);
        answer
    }

    /// Counts a refusal of a group's coordinator; its code.
    pub fn refuse_group(&self, error: GroupError) -> i16 {
        self.context.metrics.count_error(error.code());
        error.code()
    }

    /// The code of an outcome; a refusal is counted.
    pub fn group_code(&self, outcome: Result<(), GroupError>) -> i16 {
        outcome.map_or_else(|error| self.refuse_group(error), |()| 0)
    }

    /// Takes room of the answer for what is not in proportion to the request; false where there is none left.
    pub fn take_room(&self, bytes: usize) -> bool {
        let left = self.room.get().checked_sub(bytes);
        self.room.set(left.unwrap_or(0));
        left.is_some()
    }

    /// A refusal's words, while there is room for any: the code says the rest.
    pub fn words(&self, words: String) -> Option<StrBytes> {
        self.take_room(words.len()).then(|| words.into())
    }

    /// The refusal of what is behind the last that a request may change or describe.
    pub fn too_many(&self) -> Refusal {
        Refusal::new(Code::LimitReached, format!("a request has at most {} of these", limits::MAX_KAFKA_CHANGES))
    }

    /// Counts a refusal; its Kafka code.
    pub fn refuse(&self, refusal: &Refusal, to: Answering) -> i16 {
        self.context.metrics.count_error(refusal.code.value());
        kafka_code(refusal.code, to)
    }
}

/// Answers a request that is the first of its connection: the frame to send, or an empty one where it was sent already.
pub async fn answer(exchange: &Rc<Exchange>, start: FrameStart, frame: Vec<u8>) -> Result<Vec<u8>, FrameError> {
    let (head, body) = kafka::decode_head(start, &frame).map_err(|error| malformed(start, error))?;
    exchange.context.metrics.count_request(kind(head.api.key));
    if let ApiKey::Fetch = head.api.key {
        let request = kafka_fetch::plan(&exchange.context, start, &head, body)?;
        drop(frame);
        request.answer(exchange).await;
        return Ok(Vec::new());
    }
    let (context, peer, room) = (&exchange.context, exchange.peer.as_str(), Cell::new(limits::MAX_KAFKA_DETAILS));
    let building = RefCell::new(Building::new(&context.store.budget));
    let asked = Asked { context, start, head, body, peer, room, building };
    match head.api.key {
        ApiKey::ApiVersions => api_versions(&asked),
        ApiKey::Metadata => metadata(&asked).await,
        ApiKey::ListOffsets => list_offsets(&asked).await,
        ApiKey::DeleteRecords => kafka_delete_records::delete_records(&asked).await,
        ApiKey::InitProducerId => init_producer_id(&asked).await,
        ApiKey::FindCoordinator => kafka_groups::find_coordinator(&asked).await,
        ApiKey::JoinGroup => kafka_groups::join_group(&asked).await,
        ApiKey::SyncGroup => kafka_groups::sync_group(&asked).await,
        ApiKey::Heartbeat => kafka_groups::heartbeat(&asked).await,
        ApiKey::LeaveGroup => kafka_groups::leave_group(&asked).await,
        ApiKey::OffsetCommit => kafka_offsets::offset_commit(&asked).await,
        ApiKey::OffsetFetch => kafka_offsets::offset_fetch(&asked).await,
        ApiKey::OffsetDelete => kafka_offsets::offset_delete(&asked).await,
        ApiKey::DescribeGroups => kafka_group_admin::describe_groups(&asked).await,
        ApiKey::ListGroups => kafka_group_admin::list_groups(&asked).await,
        ApiKey::DeleteGroups => kafka_group_admin::delete_groups(&asked).await,
        ApiKey::OffsetForLeaderEpoch => kafka_epochs::offset_for_leader_epoch(&asked).await,
        ApiKey::CreateTopics => kafka_admin::create_topics(&asked).await,
        ApiKey::DeleteTopics => kafka_admin::delete_topics(&asked).await,
        ApiKey::CreatePartitions => kafka_admin::create_partitions(&asked).await,
        ApiKey::DescribeConfigs => kafka_admin::describe_configs(&asked).await,
        ApiKey::AlterConfigs => kafka_admin::alter_configs(&asked).await,
        ApiKey::IncrementalAlterConfigs => kafka_admin::incremental_alter_configs(&asked).await,
        ApiKey::ElectLeaders => kafka_placement::elect_leaders(&asked).await,
        ApiKey::AlterPartitionReassignments => kafka_placement::alter_reassignments(&asked).await,
        ApiKey::ListPartitionReassignments => kafka_placement::list_reassignments(&asked).await,
        ApiKey::DescribeLogDirs => kafka_log_dirs::describe_log_dirs(&asked),
        ApiKey::DescribeCluster => kafka_admin::describe_cluster(&asked).await,
        // Whoever adds an API to the list adds it here: the test that asks every one of it for an answer says so.
        _ => Err(FrameError::UnknownApi { key: head.api.key as i16, version: head.version }),
    }
}

fn kind(key: ApiKey) -> RequestKind {
    match key {
        ApiKey::Fetch => RequestKind::Fetch,
        ApiKey::Metadata => RequestKind::Metadata,
        ApiKey::ListOffsets => RequestKind::ListOffsets,
        ApiKey::DeleteRecords => RequestKind::DeleteRecords,
        ApiKey::InitProducerId => RequestKind::InitProducerId,
        ApiKey::OffsetForLeaderEpoch => RequestKind::EpochEnds,
        ApiKey::CreateTopics => RequestKind::CreateTopic,
        ApiKey::DeleteTopics => RequestKind::DeleteTopic,
        ApiKey::DescribeConfigs => RequestKind::DescribeTopic,
        ApiKey::AlterConfigs | ApiKey::IncrementalAlterConfigs | ApiKey::CreatePartitions => RequestKind::AlterTopic,
        ApiKey::FindCoordinator
        | ApiKey::JoinGroup
        | ApiKey::SyncGroup
        | ApiKey::Heartbeat
        | ApiKey::LeaveGroup
        | ApiKey::OffsetCommit
        | ApiKey::OffsetFetch
        | ApiKey::OffsetDelete
        | ApiKey::DescribeGroups
        | ApiKey::ListGroups
        | ApiKey::DeleteGroups => RequestKind::Group,
        _ => RequestKind::Other,
    }
}

fn api_versions(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let head = &asked.head;
    if asked.start.is_served() {
        let client: ApiVersionsRequest = asked.decode()?;
        let (software, version) = (client.client_software_name.as_str(), client.client_software_version.as_str());
        tracing::debug!(client_id = head.client_id, software, version, "a Kafka client");
    }
    let frame = kafka::encode_api_versions(head.correlation, head.version, asked.start.is_served());
    frame.ok_or(FrameError::Unanswerable { key: head.api.key as i16, version: head.version })
}

async fn metadata(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let (version, request) = (asked.head.version, asked.decode::<KafkaMetadataRequest>()?);
    let names = request.topics.map(|topics| {
        let name = |topic: kafka_protocol::messages::metadata_request::MetadataRequestTopic| topic.name.map(|name| name.0.to_string());
        topics.into_iter().filter_map(name).collect::<Vec<_>>()
    });
    // Version 0 has no null: no names are all topics.
    let topics = names.filter(|names| version > 0 || !names.is_empty());
    let request = MetadataRequest { topics, create_missing: request.allow_auto_topic_creation };
    let metadata = metadata::metadata(asked.context, request).await;
    Ok(kafka::encode_metadata(asked.head.correlation, version, asked.is_flexible(), &metadata))
}

async fn init_producer_id(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: InitProducerIdRequest = asked.decode()?;
    let outcome = match request.transactional_id {
        // A new identity each time: one that the client had before is given up with its sequences.
        None => service::answer(asked.context, Request::InitProducerId).await,
        Some(_) => Err(Refusal::new(Code::UnsupportedVersion, "transactions are not served")),
    };
    let answer = InitProducerIdResponse::default();
    asked.encode(&match outcome {
        Ok(Response::ProducerId(id, epoch)) => answer.with_producer_id(id.into()).with_producer_epoch(epoch),
        Ok(_) => answer.with_error_code(Code::Internal.value()).with_producer_id((-1).into()).with_producer_epoch(-1),
        Err(refusal) => {
            answer.with_error_code(asked.refuse(&refusal, Answering::Admin)).with_producer_id((-1).into()).with_producer_epoch(-1)
        }
    })
}

async fn list_offsets(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: ListOffsetsRequest = asked.decode()?;
    let questions: Vec<_> = request
        .topics
        .iter()
        .flat_map(|topic| topic.partitions.iter().filter_map(|p| question(asked.context, &topic.name.0, p).ok()))
        .collect();
    let results = match service::answer(asked.context, Request::ListOffsets(questions)).await {
        Ok(Response::ListOffsets(results)) => results,
        _ => Vec::new(),
    };
    let mut results = results.into_iter();
    let mut answer = ListOffsetsResponse::default();
    for topic in &request.topics {
        let partitions = topic.partitions.iter().map(|p| {
            let outcome = match question(asked.context, &topic.name.0, p) {
                // The topic was made or deleted meanwhile: then there may be no result, or that of another.
                Ok(question) => match results.as_slice().first().filter(|result| result.partition == question.partition) {
                    Some(_) => results.next().map_or_else(|| Err(unknown(p.partition_index)), |result| result.outcome),
                    None => Err(unknown(p.partition_index)),
                },
                Err(refusal) => Err(refusal),
            };
            offset_answer(asked, p.partition_index, outcome)
        });
        answer.topics.push(ListOffsetsTopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions.collect()));
    }
    asked.encode(&answer)
}

fn offset_answer(asked: &Asked<'_>, index: i32, outcome: Result<FoundOffset, Refusal>) -> ListOffsetsPartitionResponse {
    /// First version with the leader epoch of the offset (KIP-320).
    const FIRST_WITH_EPOCH: i16 = 4;
    let answer = ListOffsetsPartitionResponse::default().with_partition_index(index);
    match outcome {
        Ok(found) => {
            let epoch = found.leader_epoch.filter(|_| asked.head.version >= FIRST_WITH_EPOCH);
            answer.with_offset(found.offset).with_timestamp(found.timestamp).with_leader_epoch(epoch.unwrap_or(-1))
        }
        Err(refusal) => answer.with_error_code(asked.refuse(&refusal, Answering::Read)),
    }
}

/// What a partition of a ListOffsets request asks: timestamps below 0 are names of offsets.
fn question(context: &Context, topic: &str, asked: &ListOffsetsPartition) -> Result<ListOffset, Refusal> {
    let partition: TopicPartition = resolve(context, topic, asked.partition_index).ok_or_else(|| unknown(asked.partition_index))?;
    check_epoch(context, &partition, asked.current_leader_epoch)?;
    let spec = match asked.timestamp {
        -1 => OffsetSpec::Latest,
        -2 => OffsetSpec::Earliest,
        -3 => OffsetSpec::MaxTimestamp,
        timestamp if timestamp >= 0 => OffsetSpec::At(timestamp),
        other => return Err(Refusal::new(Code::InvalidRequest, format!("{other} is no timestamp, nor -1, -2 or -3"))),
    };
    Ok(ListOffset { partition, spec })
}

/// Refuses a client whose leader epoch is not the present one; -1 is not checked.
fn check_epoch(context: &Context, partition: &TopicPartition, epoch: i32) -> Result<(), Refusal> {
    let current = context.view.borrow().leader_epoch(partition);
    let code = match epoch {
        -1 => return Ok(()),
        epoch if epoch < current => Code::FencedLeaderEpoch,
        epoch if epoch > current => Code::UnknownLeaderEpoch,
        _ => return Ok(()),
    };
    Err(Refusal::new(code, format!("leader epoch {epoch}, the current one is {current}")))
}
