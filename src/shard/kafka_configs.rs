//! Kafka's requests for settings. Those of topics can be changed; those of the broker are what it was started with.
//!
//! A request names a resource once, as Kafka's asks of changes: what a second mention of it would say can be as long as you like without the request being so.

use std::collections::HashSet;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as IncrementalResponse;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
};
use kafka_protocol::protocol::StrBytes;

use crate::kafka::FrameError;
use crate::request::{AlterTopic, Code, Refusal};
use crate::shard::kafka_admin::{AdminRefusal, alter};
use crate::shard::kafka_config_entries::{self as entries, Entry};
use crate::shard::kafka_service::Asked;
use crate::shard::service;

/// Kinds of resources (ConfigResource.Type of Kafka's client).
const TOPIC: i8 = 2;
/// See [`TOPIC`].
const BROKER: i8 = 4;

/// Bytes of a setting in an answer beside its texts; at most.
const ENTRY: usize = 32;

/// The resources that a request has named so far.
#[derive(Default)]
struct Resources(HashSet<(i8, StrBytes)>);

impl Resources {
    /// The next one.
    ///
    /// # Errors
    /// It is one too many, or was named before.
    async fn next(&mut self, asked: &Asked<'_>, kind: i8, name: &StrBytes) -> Result<(), Refusal> {
        asked.next(self.0.len()).await?;
        match self.0.insert((kind, name.clone())) {
            true => Ok(()),
            false => Err(Refusal::new(Code::InvalidRequest, "a request names a resource once")),
        }
    }
}

fn no_settings(kind: i8) -> AdminRefusal {
    Refusal::new(Code::InvalidRequest, format!("resources of kind {kind} have no settings here")).into()
}

/// DescribeConfigs.
pub async fn describe_configs(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: DescribeConfigsRequest = asked.decode()?;
    let mut resources = Resources::default();
    let mut answer = DescribeConfigsResponse::default();
    for resource in &request.resources {
        let (kind, name) = (resource.resource_type, &resource.resource_name);
        let outcome = match resources.next(asked, kind, name).await {
            Ok(()) => described(asked, &request, kind, name, resource.configuration_keys.as_deref()),
            Err(refusal) => Err(refusal.into()),
        };
        let result = DescribeConfigsResult::default().with_resource_type(kind).with_resource_name(name.clone());
        answer.results.push(match outcome {
            Ok(configs) => result.with_configs(configs),
            Err(refusal) => {
                let (code, words) = refusal.told(asked);
                result.with_error_code(code).with_error_message(words)
            }
        });
    }
    asked.encode(&answer)
}

fn described(
    asked: &Asked<'_>,
    request: &DescribeConfigsRequest,
    kind: i8,
    name: &str,
    keys: Option<&[StrBytes]>,
) -> Result<Vec<DescribeConfigsResourceResult>, AdminRefusal> {
    let mut entries = match kind {
        TOPIC => {
            let view = asked.context.view.borrow();
            entries::of_topic(asked.context, view.topic(name).ok_or_else(|| service::unknown(name))?)
        }
        // What is set for all brokers while they run: nothing can be.
        BROKER if name.is_empty() => Vec::new(),
        BROKER => {
            let broker = asked.context.identity.brokers.iter().find(|broker| broker.id.to_string() == name);
            let broker = broker.ok_or_else(|| {
                Refusal::new(Code::InvalidRequest, format!("broker {name} is none of this node's: each node tells of its own"))
            })?;
            entries::of_broker(asked.context, broker)
        }
        other => return Err(no_settings(other)),
    };
    // No names are all of them, null or empty.
    if let Some(keys) = keys.filter(|keys| !keys.is_empty()) {
        entries.retain(|entry| keys.iter().any(|key| key.as_str() == entry.name));
    }
    let told: Vec<_> = entries.into_iter().map(|entry| told(asked, request, entry)).collect();
    match asked.take_room(told.iter().map(len).sum()) {
        true => Ok(told),
        false => Err(Refusal::new(Code::LimitReached, "no room for it in one answer: ask for fewer resources").into()),
    }
}

fn told(asked: &Asked<'_>, request: &DescribeConfigsRequest, entry: Entry) -> DescribeConfigsResourceResult {
    let mut result = DescribeConfigsResourceResult::default().with_name(entry.name.into()).with_value(Some(entry.value.into()));
    result.config_source = entry.source;
    result.read_only = entry.read_only;
    if request.include_synonyms {
        let synonym = |(name, value, source): (String, String, i8)| {
            DescribeConfigsSynonym::default().with_name(name.into()).with_value(Some(value.into())).with_source(source)
        };
        result.synonyms = entry.synonyms.into_iter().map(synonym).collect();
    }
    if asked.head.version >= 3 {
        result.config_type = entry.kind;
        if request.include_documentation {
            result.documentation = Some(StrBytes::from_static_str(entry.help));
        }
    }
    result
}

/// About as many bytes of the answer.
fn len(told: &DescribeConfigsResourceResult) -> usize {
    let text = |text: &Option<StrBytes>| text.as_ref().map_or(0, |text| text.len());
    let synonyms: usize = told.synonyms.iter().map(|synonym| ENTRY + synonym.name.len() + text(&synonym.value)).sum();
    ENTRY + told.name.len() + text(&told.value) + text(&told.documentation) + synonyms
}

/// The changes of one resource: a value, or back to the default.
type Changes = Vec<(String, Option<String>)>;

/// AlterConfigs: what is not named is given back to its default.
pub async fn alter_configs(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: AlterConfigsRequest = asked.decode()?;
    let mut resources = Resources::default();
    let mut answer = AlterConfigsResponse::default();
    for resource in request.resources {
        let (kind, name) = (resource.resource_type, resource.resource_name);
        let named = resource.configs.iter().map(|config| Ok((config.name.to_string(), Some(given(&config.name, config.value.as_ref())?))));
        let changes = named.collect::<Result<_, Refusal>>().map(|named| all_others_unset(asked, &name, named));
        let (code, words) = change(asked, &mut resources, kind, &name, changes, request.validate_only).await;
        let result = AlterConfigsResourceResponse::default().with_resource_type(kind).with_resource_name(name);
        answer.responses.push(result.with_error_code(code).with_error_message(words));
    }
    asked.encode(&answer)
}

/// IncrementalAlterConfigs: only what is named changes (KIP-339).
pub async fn incremental_alter_configs(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    const SET: i8 = 0;
    const DELETE: i8 = 1;
    const APPEND: i8 = 2;
    const SUBTRACT: i8 = 3;
    let request: IncrementalAlterConfigsRequest = asked.decode()?;
    let mut resources = Resources::default();
    let mut answer = IncrementalAlterConfigsResponse::default();
    for resource in request.resources {
        let (kind, topic) = (resource.resource_type, resource.resource_name);
        let changes = resource.configs.iter().map(|config| {
            let (name, value) = (config.name.as_str(), || given(&config.name, config.value.as_ref()));
            let changed = match config.config_operation {
                SET => Some(value()?),
                DELETE => None,
                operation @ (APPEND | SUBTRACT) => Some(changed_list(asked, &topic, name, &value()?, operation == APPEND)?),
                other => return Err(Refusal::new(Code::InvalidRequest, format!("there is no operation {other} on a setting"))),
            };
            Ok((name.to_owned(), changed))
        });
        let (code, words) = change(asked, &mut resources, kind, &topic, changes.collect(), request.validate_only).await;
        let result = IncrementalResponse::default().with_resource_type(kind).with_resource_name(topic);
        answer.responses.push(result.with_error_code(code).with_error_message(words));
    }
    asked.encode(&answer)
}

/// A value that has to be there.
fn given(name: &str, value: Option<&StrBytes>) -> Result<String, Refusal> {
    value.map(|value| value.to_string()).ok_or_else(|| Refusal::new(Code::InvalidRequest, format!("setting {name} has no value")))
}

fn all_others_unset(asked: &Asked<'_>, topic: &str, named: Changes) -> Changes {
    let view = asked.context.view.borrow();
    let set = view.topic(topic).map(|topic| topic.config.set_pairs()).unwrap_or_default();
    let others = set.into_iter().map(|(name, _)| name).filter(|name| !named.iter().any(|(n, _)| n == name)).map(|name| (name, None));
    let others: Vec<_> = others.collect();
    others.into_iter().chain(named).collect()
}

/// A list with elements added or taken away.
fn changed_list(asked: &Asked<'_>, topic: &str, name: &str, elements: &str, add: bool) -> Result<String, Refusal> {
    if !entries::is_list(name) {
        return Err(Refusal::new(Code::InvalidConfig, format!("setting {name} is no list to add to or to take from")));
    }
    let view = asked.context.view.borrow();
    let present = view.topic(topic).and_then(|topic| topic.config.value(name, asked.context.durability)).unwrap_or_default();
    let split = |list: &'_ str| list.split(',').map(|element| element.trim().to_owned()).filter(|e| !e.is_empty()).collect::<Vec<_>>();
    let (mut list, elements) = (split(&present), split(elements));
    list.retain(|element| !elements.contains(element));
    if add {
        list.extend(elements);
    }
    Ok(list.join(","))
}

/// Changes a resource, or sees whether it could be changed so: code and words for the client.
async fn change(
    asked: &Asked<'_>,
    resources: &mut Resources,
    kind: i8,
    name: &StrBytes,
    changes: Result<Changes, Refusal>,
    validate_only: bool,
) -> (i16, Option<StrBytes>) {
    let outcome = async {
        resources.next(asked, kind, name).await?;
        match kind {
            TOPIC => {
                let config = changes?;
                let mut names = HashSet::new();
                if let Some((twice, _)) = config.iter().find(|(name, _)| !names.insert(name)) {
                    return Err(Refusal::new(Code::InvalidRequest, format!("setting {twice} comes twice")).into());
                }
                alter(asked, AlterTopic { name: name.to_string(), partitions: None, config }, validate_only).await
            }
            BROKER => {
                let words = "the broker's settings are those it was started with".to_string();
                Err(AdminRefusal::Kafka(ResponseError::InvalidRequest, words))
            }
            other => Err(no_settings(other)),
        }
    };
    outcome.await.err().map_or((0, None), |refusal| refusal.told(asked))
}
