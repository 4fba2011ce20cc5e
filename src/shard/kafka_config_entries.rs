//! Settings of topics and brokers as Kafka's clients are told of them: names, values, where each comes from, and what it would be otherwise.
//!
//! A setting of a topic has a synonym among the broker's: what a topic has that does not set it. Of those of the broker only ones are listed that are in force under
//! Kafka's name.

use crate::cluster::config::{SETTINGS, Setting};
use crate::cluster::{Topic, config};
use crate::request::Broker;
use crate::shard::context::Context;
use crate::shard::service;

/// Where a value comes from (DescribeConfigsResponse.ConfigSource of Kafka's client): set on the topic.
pub const FROM_TOPIC: i8 = 1;
/// See [`FROM_TOPIC`]: the broker's settings at its start.
pub const FROM_BROKER: i8 = 4;
/// See [`FROM_TOPIC`]: the default.
pub const FROM_DEFAULT: i8 = 5;

/// Types of values (DescribeConfigsResponse.ConfigType of Kafka's client).
const BOOLEAN: i8 = 1;
/// See [`BOOLEAN`].
const STRING: i8 = 2;
/// See [`BOOLEAN`].
const INT: i8 = 3;
/// See [`BOOLEAN`].
const LONG: i8 = 5;
/// See [`BOOLEAN`].
const DOUBLE: i8 = 6;
/// See [`BOOLEAN`].
const LIST: i8 = 7;

/// What the broker calls what a topic has by default: the topic's setting, the broker's.
const BROKER_NAMES: &[(&str, &str)] = &[
    ("cleanup.policy", "log.cleanup.policy"),
    ("compression.type", "compression.type"),
    ("delete.retention.ms", "log.cleaner.delete.retention.ms"),
    ("durability", "durability"),
    ("max.message.bytes", "message.max.bytes"),
    ("message.timestamp.type", "log.message.timestamp.type"),
    ("min.cleanable.dirty.ratio", "log.cleaner.min.cleanable.ratio"),
    ("min.compaction.lag.ms", "log.cleaner.min.compaction.lag.ms"),
    ("min.insync.replicas", "min.insync.replicas"),
    ("retention.bytes", "log.retention.bytes"),
    ("retention.ms", "log.retention.ms"),
    ("segment.bytes", "log.segment.bytes"),
    ("segment.ms", "log.roll.ms"),
];

/// One setting as told.
pub struct Entry {
    /// Kafka's name.
    pub name: String,
    /// The value in force.
    pub value: String,
    /// Where it comes from.
    pub source: i8,
    /// No request changes it.
    pub read_only: bool,
    /// The type of its values.
    pub kind: i8,
    /// One line for people.
    pub help: &'static str,
    /// (name, value, source): what is in force, then what would be without it.
    pub synonyms: Vec<(String, String, i8)>,
}

/// Whether a setting is a list that can be added to and taken from.
pub fn is_list(name: &str) -> bool {
    kind_of(name) == LIST
}

/// Where an unset value comes from.
pub fn default_source(name: &str) -> i8 {
    if name == config::DURABILITY { FROM_BROKER } else { FROM_DEFAULT }
}

fn kind_of(topic_setting: &str) -> i8 {
    match topic_setting {
        "max.message.bytes" | "min.insync.replicas" | "segment.bytes" => INT,
        "delete.retention.ms" | "min.compaction.lag.ms" | "retention.bytes" | "retention.ms" | "segment.ms" => LONG,
        "min.cleanable.dirty.ratio" => DOUBLE,
        "cleanup.policy" => LIST,
        _ => STRING,
    }
}

/// What a topic has that does not set a setting: the broker's name of it, the value, where it comes from.
fn by_default(context: &Context, setting: &Setting) -> Option<(String, String, i8)> {
    let (_, name) = BROKER_NAMES.iter().find(|(topic_setting, _)| *topic_setting == setting.name)?;
    let source = default_source(setting.name);
    let value = if source == FROM_BROKER { context.durability.to_string() } else { setting.default.into() };
    Some(((*name).into(), value, source))
}

/// The settings of a topic.
pub fn of_topic(context: &Context, topic: &Topic) -> Vec<Entry> {
    let entry = |told: crate::request::ConfigEntry| {
        let setting = SETTINGS.iter().find(|setting| setting.name == told.name)?;
        let source = if told.is_set { FROM_TOPIC } else { default_source(setting.name) };
        let own = told.is_set.then(|| (told.name.clone(), told.value.clone(), FROM_TOPIC));
        Some(Entry {
            source,
            read_only: false,
            kind: kind_of(setting.name),
            help: setting.help,
            synonyms: own.into_iter().chain(by_default(context, setting)).collect(),
            name: told.name,
            value: told.value,
        })
    };
    topic.describe(context.durability).config.into_iter().filter_map(entry).collect()
}

/// The settings of a broker, by name.
pub fn of_broker(context: &Context, broker: &Broker) -> Vec<Entry> {
    let entry = |name: &str, value: String, source, kind, help| Entry {
        synonyms: vec![(name.into(), value.clone(), source)],
        name: name.into(),
        value,
        source,
        read_only: true,
        kind,
        help,
    };
    let (id, directory) = (broker.id.to_string(), context.store.disk.root().to_string_lossy().into_owned());
    let mut entries = vec![
        entry("advertised.listeners", format!("PLAINTEXT://{}:{}", broker.host, broker.port), FROM_BROKER, LIST, "where clients reach it"),
        entry(
            "auto.create.topics.enable",
            context.auto_create_topics.to_string(),
            FROM_BROKER,
            BOOLEAN,
            "a topic that is asked for and does not exist is made",
        ),
        entry("broker.id", id.clone(), FROM_BROKER, INT, "node id * 1024 + shard"),
        entry(
            "default.replication.factor",
            service::default_replication_factor(&context.view.borrow()).to_string(),
            FROM_DEFAULT,
            INT,
            "replicas of a topic that is made without a number: 3, or as many as there are nodes",
        ),
        entry("delete.topic.enable", true.to_string(), FROM_DEFAULT, BOOLEAN, "topics can be deleted"),
        entry("log.dirs", directory, FROM_BROKER, LIST, "where the records are"),
        entry("node.id", id, FROM_BROKER, INT, "node id * 1024 + shard"),
        entry(
            "num.partitions",
            service::DEFAULT_PARTITIONS.to_string(),
            FROM_DEFAULT,
            INT,
            "partitions of a topic that is made without a number",
        ),
    ];
    entries.extend(SETTINGS.iter().filter_map(|setting| {
        let (name, value, source) = by_default(context, setting)?;
        Some(entry(&name, value, source, kind_of(setting.name), setting.help))
    }));
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_a_topic_has_its_name_at_the_broker() {
        let names: Vec<_> = BROKER_NAMES.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, SETTINGS.iter().map(|setting| setting.name).collect::<Vec<_>>());
    }
}
