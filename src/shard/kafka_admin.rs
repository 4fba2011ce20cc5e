//! Kafka's requests of administrators: topics, partitions, settings, the cluster.
//!
//! A request that changes several things changes them one after the other; each has an outcome of its own. `timeout_ms` is not looked at: a change is in
//! force on every shard when it is answered, and takes no longer than its write and its sync.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest,
    DeleteTopicsResponse, DescribeClusterRequest, DescribeClusterResponse,
};
use kafka_protocol::protocol::StrBytes;

use crate::cluster::Command;
use crate::kafka::{self, Answering, FrameError};
use crate::request::{AlterTopic, Code, ConfigEntry, CreateTopic, MetadataRequest, Refusal, Request, Response, TopicDescription};
use crate::shard::context::Context;
use crate::shard::kafka_config_entries::{FROM_TOPIC, default_source};
use crate::shard::kafka_service::Asked;
use crate::shard::metadata;
use crate::shard::service;

pub use crate::shard::kafka_configs::{alter_configs, describe_configs, incremental_alter_configs};

/// A refusal with a code that only Kafka's clients know, or one of the broker's.
pub enum AdminRefusal {
    /// The broker's.
    Ours(Refusal),
    /// Kafka's.
    Kafka(ResponseError, String),
}

impl From<Refusal> for AdminRefusal {
    fn from(refusal: Refusal) -> AdminRefusal {
        AdminRefusal::Ours(refusal)
    }
}

impl AdminRefusal {
    /// Its code and words for the client; counted.
    pub fn told(self, asked: &Asked<'_>) -> (i16, Option<StrBytes>) {
        match self {
            AdminRefusal::Ours(refusal) => (asked.refuse(&refusal, Answering::Admin), asked.words(refusal.message)),
            AdminRefusal::Kafka(error, words) => {
                asked.context.metrics.count_error(error.code());
                (error.code(), asked.words(words))
            }
        }
    }
}

/// A refusal of which replica goes where: the broker decides that.
fn assigned(what: &str) -> AdminRefusal {
    AdminRefusal::Kafka(
        ResponseError::InvalidReplicaAssignment,
        format!("{what}: which shard has which partition is not for clients to say"),
    )
}

/// CreateTopics.
pub async fn create_topics(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: CreateTopicsRequest = asked.decode()?;
    let mut answer = CreateTopicsResponse::default();
    for (index, topic) in request.topics.into_iter().enumerate() {
        let result = CreatableTopicResult::default().with_name(topic.name.clone());
        answer.topics.push(match create_topic(asked, index, topic, request.validate_only).await {
            // From version 5 on the answer says what was made (KIP-525).
            Ok(made) if asked.head.version >= 5 => result
                .with_num_partitions(made.partitions as i32)
                .with_replication_factor(made.replication_factor as i16)
                .with_configs(Some(made_configs(asked, made.config))),
            Ok(_) => result,
            Err(refusal) => {
                let (code, words) = refusal.told(asked);
                result.with_error_code(code).with_error_message(words)
            }
        });
    }
    asked.encode(&answer)
}

/// The settings of a topic that was made; none, where the answer has no room for more.
fn made_configs(asked: &Asked<'_>, config: Vec<ConfigEntry>) -> Vec<CreatableTopicConfigs> {
    let bytes = config.iter().map(|entry| 16 + entry.name.len() + entry.value.len()).sum();
    if !asked.take_room(bytes) {
        return Vec::new();
    }
    config.into_iter().map(made_config).collect()
}

fn made_config(entry: ConfigEntry) -> CreatableTopicConfigs {
    let source = if entry.is_set { FROM_TOPIC } else { default_source(&entry.name) };
    CreatableTopicConfigs::default().with_name(entry.name.into()).with_value(Some(entry.value.into())).with_config_source(source)
}

async fn create_topic(
    asked: &Asked<'_>,
    index: usize,
    topic: CreatableTopic,
    validate_only: bool,
) -> Result<TopicDescription, AdminRefusal> {
    asked.next(index).await?;
    let name = topic.name.0.to_string();
    if !topic.assignments.is_empty() {
        return Err(assigned(&format!("topic {name}")));
    }
    let config = topic.configs.into_iter().map(|config| match config.value {
        Some(value) => Ok((config.name.to_string(), value.to_string())),
        None => Err(Refusal::new(Code::InvalidConfig, format!("setting {} of topic {name} has no value", config.name))),
    });
    let request = CreateTopic {
        partitions: default_or(topic.num_partitions, |n| {
            Refusal::new(Code::InvalidPartitions, format!("topic {name} can't have {n} partitions"))
        })?,
        replication_factor: default_or(topic.replication_factor, |n| {
            Refusal::new(Code::InvalidReplicationFactor, format!("replication factor {n} of topic {name}"))
        })?,
        config: config.collect::<Result<_, _>>()?,
        validate_only,
        name,
    };
    match service::answer(asked.context, Request::CreateTopic(request)).await? {
        Response::TopicCreated(made) => Ok(made),
        other => Err(unexpected(&other)),
    }
}

/// -1 is the broker's default.
fn default_or<N: Copy + Into<i64>, U: TryFrom<i64>>(number: N, refuse: impl Fn(i64) -> Refusal) -> Result<Option<U>, Refusal> {
    match number.into() {
        -1 => Ok(None),
        number => U::try_from(number).map(Some).map_err(|_| refuse(number)),
    }
}

fn unexpected(response: &Response) -> AdminRefusal {
    Refusal::new(Code::Internal, format!("{response:?} is no answer to this")).into()
}

/// DeleteTopics.
pub async fn delete_topics(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: DeleteTopicsRequest = asked.decode()?;
    let mut answer = DeleteTopicsResponse::default();
    for (index, name) in request.topic_names.into_iter().enumerate() {
        let outcome = match asked.next(index).await {
            Ok(()) => service::answer(asked.context, Request::DeleteTopic(name.0.to_string())).await,
            Err(refusal) => Err(refusal),
        };
        let result = DeletableTopicResult::default().with_name(Some(name));
        answer.responses.push(match outcome {
            Ok(_) => result,
            Err(refusal) => {
                let (code, words) = AdminRefusal::from(refusal).told(asked);
                let result = result.with_error_code(code);
                if asked.head.version >= 5 { result.with_error_message(words) } else { result }
            }
        });
    }
    asked.encode(&answer)
}

/// CreatePartitions.
pub async fn create_partitions(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: CreatePartitionsRequest = asked.decode()?;
    let mut answer = CreatePartitionsResponse::default();
    for (index, topic) in request.topics.into_iter().enumerate() {
        let outcome = match topic.assignments {
            Some(_) => Err(assigned(&format!("topic {}", topic.name.0))),
            None => grow(asked, index, topic.name.0.to_string(), topic.count, request.validate_only).await,
        };
        let result = CreatePartitionsTopicResult::default().with_name(topic.name);
        answer.results.push(match outcome {
            Ok(()) => result,
            Err(refusal) => {
                let (code, words) = refusal.told(asked);
                result.with_error_code(code).with_error_message(words)
            }
        });
    }
    asked.encode(&answer)
}

async fn grow(asked: &Asked<'_>, index: usize, name: String, count: i32, validate_only: bool) -> Result<(), AdminRefusal> {
    asked.next(index).await?;
    let present = asked.context.view.borrow().topic(&name).map(|topic| topic.partitions);
    let partitions = u32::try_from(count).ok();
    if let (Some(present), Some(wanted)) = (present, partitions)
        && wanted <= present
    {
        return Err(
            Refusal::new(Code::InvalidPartitions, format!("topic {name} has {present} partitions already, {wanted} are no more")).into()
        );
    }
    let partitions =
        partitions.ok_or_else(|| Refusal::new(Code::InvalidPartitions, format!("topic {name} can't have {count} partitions")))?;
    alter(asked, AlterTopic { name, partitions: Some(partitions), config: Vec::new() }, validate_only).await
}

/// Changes a topic, or sees whether it could be changed so.
pub async fn alter(asked: &Asked<'_>, request: AlterTopic, validate_only: bool) -> Result<(), AdminRefusal> {
    if validate_only {
        return Ok(check_alter(asked.context, request)?);
    }
    service::answer(asked.context, Request::AlterTopic(request)).await?;
    Ok(())
}

fn check_alter(context: &Context, request: AlterTopic) -> Result<(), Refusal> {
    service::check_internal(context, &request)?;
    let id = context.view.borrow().topic(&request.name).map(|topic| topic.id).ok_or_else(|| service::unknown(&request.name))?;
    service::validate(context, &Command::AlterTopic { id, partitions: request.partitions, config: request.config }).map(drop)
}

/// DescribeCluster.
pub async fn describe_cluster(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    /// Brokers, not controllers (KIP-919): the controllers have no addresses of their own.
    const BROKERS: i8 = 1;
    let request: DescribeClusterRequest = asked.decode()?;
    let metadata = metadata::metadata(asked.context, MetadataRequest { topics: Some(Vec::new()), create_missing: false }).await;
    let answer = DescribeClusterResponse::default().with_cluster_id(kafka::cluster_id(&metadata.cluster).into());
    if request.endpoint_type != BROKERS {
        let words = "the brokers are the controllers".to_string();
        let (code, words) = AdminRefusal::Kafka(ResponseError::MismatchedEndpointType, words).told(asked);
        return asked.encode(&answer.with_error_code(code).with_error_message(words).with_endpoint_type(request.endpoint_type));
    }
    let brokers = metadata.brokers.into_iter().map(|broker| {
        let id = (broker.id as i32).into();
        DescribeClusterBroker::default().with_broker_id(id).with_host(broker.host.into()).with_port(i32::from(broker.port))
    });
    let controller = (metadata.controller as i32).into();
    asked.encode(&answer.with_controller_id(controller).with_brokers(brokers.collect()))
}
