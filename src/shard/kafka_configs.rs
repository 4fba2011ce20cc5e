//! Kafka's requests for settings. Those of topics can be changed; of those of the broker, the few that clients ask about can be read.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as IncrementalResponse;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
};
use kafka_protocol::protocol::StrBytes;

use crate::cluster::config::{SETTINGS, Setting};
use crate::kafka::FrameError;
use crate::limits;
use crate::request::{AlterTopic, Code, Refusal};
use crate::shard::kafka_admin::{AdminRefusal, alter};
use crate::shard::kafka_service::Asked;
use crate::shard::service;

/// Kinds of resources (ConfigResource.Type of Kafka's client).
const TOPIC: i8 = 2;
/// See [`TOPIC`].
const BROKER: i8 = 4;

/// Where a value comes from (DescribeConfigsResponse.ConfigSource of Kafka's client): set on the topic.
const FROM_TOPIC: i8 = 1;
/// See [`FROM_TOPIC`]: the broker's settings at its start.
const FROM_BROKER: i8 = 4;
/// See [`FROM_TOPIC`]: the default.
const FROM_DEFAULT: i8 = 5;

/// Where a topic's value comes from.
pub fn source(is_set: bool) -> i8 {
    if is_set { FROM_TOPIC } else { FROM_DEFAULT }
}

/// One setting as told.
struct Entry {
    name: String,
    value: String,
    source: i8,
    /// Only of topics.
    setting: Option<&'static Setting>,
}

/// DescribeConfigs.
pub async fn describe_configs(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: DescribeConfigsRequest = asked.decode()?;
    let mut answer = DescribeConfigsResponse::default();
    for (index, resource) in request.resources.iter().enumerate() {
        let name = resource.resource_name.clone();
        let result = DescribeConfigsResult::default().with_resource_type(resource.resource_type).with_resource_name(name);
        answer.results.push(match entries(asked, index, resource).await {
            Ok(entries) => result.with_configs(entries.into_iter().map(|entry| told(asked, &request, entry)).collect()),
            Err(refusal) => {
                let (code, words) = refusal.told(asked);
                result.with_error_code(code).with_error_message(words)
            }
        });
    }
    asked.encode(&answer)
}

async fn entries(asked: &Asked<'_>, index: usize, resource: &DescribeConfigsResource) -> Result<Vec<Entry>, AdminRefusal> {
    asked.next(index).await?;
    let name = resource.resource_name.as_str();
    let mut entries = match resource.resource_type {
        TOPIC => topic_entries(asked, name)?,
        BROKER => broker_entries(asked, name)?,
        other => return Err(Refusal::new(Code::InvalidRequest, format!("resources of kind {other} have no settings here")).into()),
    };
    // No names are all of them, null or empty.
    if let Some(keys) = resource.configuration_keys.as_ref().filter(|keys| !keys.is_empty()) {
        entries.retain(|entry| keys.iter().any(|key| key.as_str() == entry.name));
    }
    Ok(entries)
}

fn topic_entries(asked: &Asked<'_>, name: &str) -> Result<Vec<Entry>, Refusal> {
    let view = asked.context.view.borrow();
    let topic = view.topic(name).ok_or_else(|| service::unknown(name))?;
    let setting = |name: &str| SETTINGS.iter().find(|setting| setting.name == name);
    let described = topic.describe(asked.context.durability).config.into_iter();
    Ok(described.map(|e| Entry { setting: setting(&e.name), source: source(e.is_set), name: e.name, value: e.value }).collect())
}

/// The settings of a broker that its clients go by; "" asks for what is set for all brokers while they run, which nothing can be.
fn broker_entries(asked: &Asked<'_>, id: &str) -> Result<Vec<Entry>, AdminRefusal> {
    if id.is_empty() {
        return Ok(Vec::new());
    }
    if !asked.context.identity.brokers.iter().any(|broker| broker.id.to_string() == id) {
        return Err(Refusal::new(Code::InvalidRequest, format!("there is no broker {id}")).into());
    }
    let entry = |name: &str, value: String, source| Entry { name: name.into(), value, source, setting: None };
    Ok(vec![
        entry("auto.create.topics.enable", asked.context.auto_create_topics.to_string(), FROM_BROKER),
        entry("default.replication.factor", service::DEFAULT_REPLICATION_FACTOR.to_string(), FROM_DEFAULT),
        entry("message.max.bytes", limits::DEFAULT_MAX_MESSAGE_BYTES.to_string(), FROM_DEFAULT),
        entry("num.partitions", service::DEFAULT_PARTITIONS.to_string(), FROM_DEFAULT),
    ])
}

fn told(asked: &Asked<'_>, request: &DescribeConfigsRequest, entry: Entry) -> DescribeConfigsResourceResult {
    let Entry { name, value, source, setting } = entry;
    let (name, value) = (StrBytes::from(name), StrBytes::from(value));
    let mut result = DescribeConfigsResourceResult::default().with_name(name.clone()).with_value(Some(value.clone()));
    result.config_source = source;
    result.read_only = setting.is_none();
    if request.include_synonyms {
        let synonym = |value, source| DescribeConfigsSynonym::default().with_name(name.clone()).with_value(Some(value)).with_source(source);
        result.synonyms.push(synonym(value, source));
        if let Some(setting) = setting.filter(|setting| source == FROM_TOPIC && !setting.default.is_empty()) {
            result.synonyms.push(synonym(StrBytes::from_static_str(setting.default), FROM_DEFAULT));
        }
    }
    if asked.head.version >= 3 {
        result.config_type = kind(&name);
        if request.include_documentation {
            result.documentation = setting.map(|setting| StrBytes::from_static_str(setting.help));
        }
    }
    result
}

/// The type of a setting's values (ConfigDef.Type of Kafka's client, by DescribeConfigsResponse.ConfigType).
fn kind(name: &str) -> i8 {
    const BOOLEAN: i8 = 1;
    const STRING: i8 = 2;
    const INT: i8 = 3;
    const LONG: i8 = 5;
    const DOUBLE: i8 = 6;
    const LIST: i8 = 7;
    match name {
        "auto.create.topics.enable" => BOOLEAN,
        "max.message.bytes"
        | "message.max.bytes"
        | "min.insync.replicas"
        | "num.partitions"
        | "segment.bytes"
        | "default.replication.factor" => INT,
        "delete.retention.ms" | "min.compaction.lag.ms" | "retention.bytes" | "retention.ms" | "segment.ms" => LONG,
        "min.cleanable.dirty.ratio" => DOUBLE,
        "cleanup.policy" => LIST,
        _ => STRING,
    }
}

/// AlterConfigs: what is not named is given back to its default.
pub async fn alter_configs(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: AlterConfigsRequest = asked.decode()?;
    let mut answer = AlterConfigsResponse::default();
    for (index, resource) in request.resources.into_iter().enumerate() {
        let name = resource.resource_name.as_str();
        let named = resource.configs.iter().map(|config| Ok((config.name.to_string(), Some(given(&config.name, config.value.as_ref())?))));
        let outcome = match named.collect::<Result<Vec<_>, Refusal>>() {
            Ok(named) => {
                change(asked, index, resource.resource_type, name, all_others_unset(asked, name, named), request.validate_only).await
            }
            Err(refusal) => Err(refusal.into()),
        };
        let (code, words) = outcome.err().map_or((0, None), |refusal| refusal.told(asked));
        let result = AlterConfigsResourceResponse::default().with_resource_type(resource.resource_type);
        answer.responses.push(result.with_resource_name(resource.resource_name).with_error_code(code).with_error_message(words));
    }
    asked.encode(&answer)
}

/// A value that has to be there.
fn given(name: &str, value: Option<&StrBytes>) -> Result<String, Refusal> {
    value.map(|value| value.to_string()).ok_or_else(|| Refusal::new(Code::InvalidConfig, format!("setting {name} has no value")))
}

fn all_others_unset(asked: &Asked<'_>, topic: &str, named: Vec<(String, Option<String>)>) -> Vec<(String, Option<String>)> {
    let view = asked.context.view.borrow();
    let set = view.topic(topic).map(|topic| topic.config.set_pairs()).unwrap_or_default();
    let others = set.into_iter().map(|(name, _)| name).filter(|name| !named.iter().any(|(n, _)| n == name)).map(|name| (name, None));
    let others: Vec<_> = others.collect();
    others.into_iter().chain(named).collect()
}

async fn change(
    asked: &Asked<'_>,
    index: usize,
    kind: i8,
    name: &str,
    config: Vec<(String, Option<String>)>,
    validate_only: bool,
) -> Result<(), AdminRefusal> {
    asked.next(index).await?;
    match kind {
        TOPIC => alter(asked, AlterTopic { name: name.into(), partitions: None, config }, validate_only).await,
        BROKER => {
            let words = "the broker's settings are those it was started with".to_string();
            Err(AdminRefusal::Kafka(ResponseError::InvalidRequest, words))
        }
        other => Err(Refusal::new(Code::InvalidRequest, format!("resources of kind {other} have no settings here")).into()),
    }
}

/// IncrementalAlterConfigs: only what is named changes (KIP-339).
pub async fn incremental_alter_configs(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    const SET: i8 = 0;
    const DELETE: i8 = 1;
    let request: IncrementalAlterConfigsRequest = asked.decode()?;
    let mut answer = IncrementalAlterConfigsResponse::default();
    for (index, resource) in request.resources.into_iter().enumerate() {
        let changes = resource.configs.iter().map(|config| match config.config_operation {
            SET => Ok((config.name.to_string(), Some(given(&config.name, config.value.as_ref())?))),
            DELETE => Ok((config.name.to_string(), None)),
            _ => Err(Refusal::new(Code::InvalidConfig, format!("setting {} is no list to add to or to take from", config.name))),
        });
        let outcome = match changes.collect::<Result<Vec<_>, Refusal>>() {
            Ok(changes) => {
                change(asked, index, resource.resource_type, resource.resource_name.as_str(), changes, request.validate_only).await
            }
            Err(refusal) => Err(refusal.into()),
        };
        let (code, words) = outcome.err().map_or((0, None), |refusal| refusal.told(asked));
        let result = IncrementalResponse::default().with_resource_type(resource.resource_type);
        answer.responses.push(result.with_resource_name(resource.resource_name).with_error_code(code).with_error_message(words));
    }
    asked.encode(&answer)
}
