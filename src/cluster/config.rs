//! The settings of a topic: Kafka's names and defaults, made valid by type.
//!
//! [`SETTINGS`] is the one list; reading, printing, help and refusals all come from it.

use crate::limits;
use crate::request::ConfigEntry;
use crate::types::Durability;

/// The setting that says what happens to old records.
pub const CLEANUP_POLICY: &str = "cleanup.policy";
/// The setting whose default is the broker's.
pub const DURABILITY: &str = "durability";

/// Which timestamp a record keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TimestampType {
    /// The producer's.
    #[default]
    CreateTime,
    /// The broker's at the append.
    LogAppendTime,
}

/// What happens to old records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CleanupPolicy {
    /// They go by age and size.
    #[default]
    Delete,
    /// Of each key the newest stays.
    Compact,
    /// Both.
    CompactDelete,
}

impl CleanupPolicy {
    /// Whether records are cleaned by key.
    pub fn compacts(self) -> bool {
        self != CleanupPolicy::Delete
    }

    /// Whether records go by age and size.
    pub fn deletes(self) -> bool {
        self != CleanupPolicy::Compact
    }
}

/// The settings of a topic, all in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicConfig {
    /// What happens to old records.
    pub cleanup_policy: CleanupPolicy,
    /// A tombstone stays at least so long after it was first cleaned, ms.
    pub delete_retention_ms: u64,
    /// A partition is cleaned when more of it is dirty, millionths.
    pub min_cleanable_dirty_millionths: u32,
    /// A segment with a newer record is not cleaned, ms.
    pub min_compaction_lag_ms: u64,
    /// Records older than this may go, ms; `None` keeps them for ever.
    pub retention_ms: Option<u64>,
    /// A partition longer than this loses its oldest segments, bytes; `None` has no bound.
    pub retention_bytes: Option<u64>,
    /// A segment that would grow past this is rolled, bytes.
    pub segment_bytes: u64,
    /// A segment older than this is rolled, ms.
    pub segment_ms: u64,
    /// Largest batch, bytes.
    pub max_message_bytes: u32,
    /// In-sync replicas that an `acks=all` append needs.
    pub min_insync_replicas: u16,
    /// When an append is acknowledged; `None` is the broker's default.
    pub durability: Option<Durability>,
    /// Which timestamp a record keeps.
    pub timestamp_type: TimestampType,
    /// Which of [`SETTINGS`] were set on the topic, by bit.
    set: u32,
}

/// One setting that a topic can have.
pub struct Setting {
    /// Kafka's name, where Kafka has it.
    pub name: &'static str,
    /// The default as it would be written.
    pub default: &'static str,
    /// One line for people.
    pub help: &'static str,
    read: fn(&mut TopicConfig, &str) -> Result<(), String>,
    print: fn(&TopicConfig, Durability) -> String,
}

/// Every setting of a topic, by name.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: CLEANUP_POLICY,
        default: "delete",
        help: "what happens to old records: delete (by age and size), compact (the newest of each key stays), or compact,delete",
        read: |c, v| {
            let mut words: Vec<_> = v.split(',').map(str::trim).collect();
            words.sort_unstable();
            c.cleanup_policy = match words[..] {
                ["delete"] => CleanupPolicy::Delete,
                ["compact"] => CleanupPolicy::Compact,
                ["compact", "delete"] => CleanupPolicy::CompactDelete,
                _ => return Err("delete, compact or compact,delete".into()),
            };
            Ok(())
        },
        print: |c, _| match c.cleanup_policy {
            CleanupPolicy::Delete => "delete".into(),
            CleanupPolicy::Compact => "compact".into(),
            CleanupPolicy::CompactDelete => "compact,delete".into(),
        },
    },
    Setting {
        name: "compression.type",
        default: "producer",
        help: "batches are kept as the producer sent them",
        read: |_, v| if v == "producer" { Ok(()) } else { Err("producer (the broker does not re-compress)".into()) },
        print: |_, _| "producer".into(),
    },
    Setting {
        name: "delete.retention.ms",
        default: "86400000",
        help: "how long a tombstone stays after it was first cleaned, ms",
        read: |c, v| integer(v, 0, i64::MAX as u64).map(|n| c.delete_retention_ms = n),
        print: |c, _| c.delete_retention_ms.to_string(),
    },
    Setting {
        name: DURABILITY,
        default: "",
        help: "when an append is acknowledged: durable, written or memory; the broker's default unless set",
        read: |c, v| v.parse().map(|d| c.durability = Some(d)).map_err(|_| "durable, written or memory".into()),
        print: |c, broker| c.durability.unwrap_or(broker).to_string(),
    },
    Setting {
        name: "max.message.bytes",
        default: "1048588",
        help: "largest batch, bytes, up to 1073741824",
        read: |c, v| {
            integer(v, limits::MIN_MAX_MESSAGE_BYTES as u64, limits::MAX_MESSAGE_BYTES as u64).map(|n| c.max_message_bytes = n as u32)
        },
        print: |c, _| c.max_message_bytes.to_string(),
    },
    Setting {
        name: "message.timestamp.type",
        default: "CreateTime",
        help: "CreateTime keeps the producer's timestamps, LogAppendTime sets the broker's",
        read: |c, v| {
            c.timestamp_type = match v {
                "CreateTime" => TimestampType::CreateTime,
                "LogAppendTime" => TimestampType::LogAppendTime,
                _ => return Err("CreateTime or LogAppendTime".into()),
            };
            Ok(())
        },
        print: |c, _| match c.timestamp_type {
            TimestampType::CreateTime => "CreateTime".into(),
            TimestampType::LogAppendTime => "LogAppendTime".into(),
        },
    },
    Setting {
        name: "min.cleanable.dirty.ratio",
        default: "0.5",
        help: "a compacted partition is cleaned when more of it than this is dirty, 0 to 1",
        read: |c, v| ratio(v).map(|n| c.min_cleanable_dirty_millionths = n),
        print: |c, _| print_ratio(c.min_cleanable_dirty_millionths),
    },
    Setting {
        name: "min.compaction.lag.ms",
        default: "0",
        help: "age that a record has at least before it is cleaned, ms",
        read: |c, v| integer(v, 0, i64::MAX as u64).map(|n| c.min_compaction_lag_ms = n),
        print: |c, _| c.min_compaction_lag_ms.to_string(),
    },
    Setting {
        name: "min.insync.replicas",
        default: "1",
        help: "in-sync replicas that an acks=all append needs, at most the replication factor",
        read: |c, v| integer(v, 1, i16::MAX as u64).map(|n| c.min_insync_replicas = n as u16),
        print: |c, _| c.min_insync_replicas.to_string(),
    },
    Setting {
        name: "retention.bytes",
        default: "-1",
        help: "longest log of one partition, bytes; -1 has no bound",
        read: |c, v| integer_or_none(v, 0).map(|n| c.retention_bytes = n),
        print: |c, _| or_minus_one(c.retention_bytes),
    },
    Setting {
        name: "retention.ms",
        default: "604800000",
        help: "age at which records may go, ms; -1 keeps them for ever",
        read: |c, v| integer_or_none(v, 0).map(|n| c.retention_ms = n),
        print: |c, _| or_minus_one(c.retention_ms),
    },
    Setting {
        name: "segment.bytes",
        default: "1073741824",
        help: "length at which a segment is rolled, bytes, 1048576 to 2147483647",
        read: |c, v| integer(v, limits::MIN_SEGMENT_BYTES, limits::MAX_SEGMENT_BYTES).map(|n| c.segment_bytes = n),
        print: |c, _| c.segment_bytes.to_string(),
    },
    Setting {
        name: "segment.ms",
        default: "604800000",
        help: "age at which a segment is rolled, ms",
        read: |c, v| integer(v, 1, i64::MAX as u64).map(|n| c.segment_ms = n),
        print: |c, _| c.segment_ms.to_string(),
    },
];

const _: () = assert!(SETTINGS.len() <= 32, "the mask of set settings has 32 bits");

/// A setting that does not exist or a value that can't be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such name.
    #[error("unknown topic setting {0:?}; the known ones are {known}", known = known_names())]
    Unknown(String),
    /// The value does not fit.
    #[error("{name} must be {expected}, not {actual:?}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What it takes.
        expected: String,
        /// What came.
        actual: String,
    },
}

impl Default for TopicConfig {
    fn default() -> TopicConfig {
        const WEEK_MS: u64 = 7 * 24 * 3600 * 1000;
        TopicConfig {
            cleanup_policy: CleanupPolicy::Delete,
            delete_retention_ms: limits::DEFAULT_DELETE_RETENTION_MS,
            min_cleanable_dirty_millionths: limits::DEFAULT_DIRTY_RATIO_MILLIONTHS,
            min_compaction_lag_ms: 0,
            retention_ms: Some(WEEK_MS),
            retention_bytes: None,
            segment_bytes: limits::DEFAULT_SEGMENT_BYTES,
            segment_ms: WEEK_MS,
            max_message_bytes: limits::DEFAULT_MAX_MESSAGE_BYTES as u32,
            min_insync_replicas: 1,
            durability: None,
            timestamp_type: TimestampType::CreateTime,
            set: 0,
        }
    }
}

impl TopicConfig {
    /// The settings that follow from (name, value) pairs; the last of a name counts.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<TopicConfig, ConfigError> {
        TopicConfig::default().with(pairs.into_iter().map(|(name, value)| (name, Some(value))))
    }

    /// These settings with changes: a value sets, `None` gives back the default.
    pub fn with<'a>(&self, changes: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> Result<TopicConfig, ConfigError> {
        let mut next = self.clone();
        for (name, value) in changes {
            let index = SETTINGS.iter().position(|s| s.name == name).ok_or_else(|| ConfigError::Unknown(shorten(name)))?;
            match value {
                Some(value) => next.put(index, value)?,
                None => next.put_default(index),
            }
        }
        Ok(next)
    }

    /// All settings as in force, by name.
    pub fn entries(&self, broker_durability: Durability) -> Vec<ConfigEntry> {
        let entry = |(index, setting): (usize, &Setting)| ConfigEntry {
            name: setting.name.into(),
            value: (setting.print)(self, broker_durability),
            is_set: self.set & (1 << index) != 0,
        };
        SETTINGS.iter().enumerate().map(entry).collect()
    }

    /// The value in force of a setting; `None` where there is no such setting.
    pub fn value(&self, name: &str, broker_durability: Durability) -> Option<String> {
        SETTINGS.iter().find(|setting| setting.name == name).map(|setting| (setting.print)(self, broker_durability))
    }

    /// The settings that somebody set, as (name, value): [`TopicConfig::from_pairs`] makes the same of them.
    pub fn set_pairs(&self) -> Vec<(String, String)> {
        let is_set = |(index, _): &(usize, &Setting)| self.set & (1 << index) != 0;
        // Of a durability that is set the broker's does not matter.
        let pair = |(_, setting): (usize, &Setting)| (setting.name.to_string(), (setting.print)(self, Durability::Durable));
        SETTINGS.iter().enumerate().filter(is_set).map(pair).collect()
    }

    fn put(&mut self, index: usize, value: &str) -> Result<(), ConfigError> {
        let setting = &SETTINGS[index];
        let refused = |expected| ConfigError::Value { name: setting.name, expected, actual: shorten(value) };
        (setting.read)(self, value.trim()).map_err(refused)?;
        self.set |= 1 << index;
        Ok(())
    }

    fn put_default(&mut self, index: usize) {
        let setting = &SETTINGS[index];
        if setting.name == DURABILITY {
            self.durability = None;
        } else {
            (setting.read)(self, setting.default).expect("a default is a valid value");
        }
        self.set &= !(1 << index);
    }
}

fn known_names() -> String {
    SETTINGS.iter().map(|s| s.name).collect::<Vec<_>>().join(", ")
}

/// A refusal repeats what came, but not a megabyte of it.
fn shorten(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into(),
    }
}

fn integer(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let parsed = text.parse::<u64>().ok().filter(|n| (least..=most).contains(n));
    parsed.ok_or_else(|| format!("an integer from {least} to {most}"))
}

/// A number from 0 to 1 in millionths.
fn ratio(text: &str) -> Result<u32, String> {
    let parsed = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    parsed.map(|ratio| (ratio * 1_000_000.0).round() as u32).ok_or_else(|| "a number from 0 to 1".into())
}

/// With at least one digit behind the point, as Kafka writes it.
fn print_ratio(millionths: u32) -> String {
    let text = format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000);
    let digits = text.trim_end_matches('0');
    if digits.ends_with('.') { format!("{digits}0") } else { digits.into() }
}

fn integer_or_none(text: &str, least: u64) -> Result<Option<u64>, String> {
    if text == "-1" {
        return Ok(None);
    }
    integer(text, least, i64::MAX as u64).map(Some).map_err(|expected| format!("-1 or {expected}"))
}

fn or_minus_one(value: Option<u64>) -> String {
    value.map_or("-1".into(), |n| n.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_of_the_list_are_the_defaults_of_the_type() {
        let mut config = TopicConfig::default();
        for index in 0..SETTINGS.len() {
            config.put_default(index);
        }
        assert_eq!(config, TopicConfig::default());
        for (entry, setting) in config.entries(Durability::Written).iter().zip(SETTINGS) {
            let expected = if setting.name == "durability" { "written" } else { setting.default };
            assert_eq!((entry.value.as_str(), entry.is_set), (expected, false), "{}", setting.name);
        }
    }

    #[test]
    fn settings_are_listed_by_name() {
        assert!(SETTINGS.is_sorted_by_key(|s| s.name));
    }

    #[test]
    fn set_and_give_back() {
        let config = TopicConfig::from_pairs([("retention.ms", "-1"), ("durability", "memory"), ("segment.bytes", "1048576")]).unwrap();
        assert_eq!((config.retention_ms, config.durability, config.segment_bytes), (None, Some(Durability::Memory), 1 << 20));
        let set: Vec<_> = config.entries(Durability::Durable).into_iter().filter(|e| e.is_set).map(|e| e.name).collect();
        assert_eq!(set, ["durability", "retention.ms", "segment.bytes"]);
        let back = config.with([("retention.ms", None), ("durability", None), ("segment.bytes", None)]).unwrap();
        assert_eq!(back, TopicConfig::default());
    }

    #[test]
    fn policies_and_ratios_are_printed_as_they_are_read() {
        for (name, value, printed) in [
            ("cleanup.policy", "compact", "compact"),
            ("cleanup.policy", "delete, compact", "compact,delete"),
            ("min.cleanable.dirty.ratio", "0", "0.0"),
            ("min.cleanable.dirty.ratio", "1", "1.0"),
            ("min.cleanable.dirty.ratio", "0.25", "0.25"),
            ("min.cleanable.dirty.ratio", "0.000001", "0.000001"),
        ] {
            let config = TopicConfig::from_pairs([(name, value)]).unwrap();
            assert_eq!(config.set_pairs(), [(name.to_string(), printed.to_string())]);
            let pairs = config.set_pairs();
            assert_eq!(TopicConfig::from_pairs(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str()))).unwrap(), config);
        }
    }

    #[test]
    fn impossible_values_name_what_is_expected() {
        for (name, value, expected) in [
            ("segment.bytes", "1048575", "segment.bytes must be an integer from 1048576 to 2147483647, not \"1048575\""),
            ("retention.bytes", "-2", "retention.bytes must be -1 or an integer from 0 to 9223372036854775807, not \"-2\""),
            ("cleanup.policy", "compact,compact", "cleanup.policy must be delete, compact or compact,delete, not \"compact,compact\""),
            ("min.cleanable.dirty.ratio", "1.1", "min.cleanable.dirty.ratio must be a number from 0 to 1, not \"1.1\""),
            ("min.cleanable.dirty.ratio", "NaN", "min.cleanable.dirty.ratio must be a number from 0 to 1, not \"NaN\""),
            ("max.message.bytes", "1073741825", "max.message.bytes must be an integer from 61 to 1073741824, not \"1073741825\""),
            ("durability", "fsync", "durability must be durable, written or memory, not \"fsync\""),
            ("compression.type", "zstd", "compression.type must be producer (the broker does not re-compress), not \"zstd\""),
            ("min.insync.replicas", "0", "min.insync.replicas must be an integer from 1 to 32767, not \"0\""),
        ] {
            assert_eq!(TopicConfig::from_pairs([(name, value)]).unwrap_err().to_string(), expected);
        }
        let unknown = TopicConfig::from_pairs([("retention.hours", "1")]).unwrap_err().to_string();
        assert!(unknown.starts_with("unknown topic setting \"retention.hours\"; the known ones are cleanup.policy, "), "{unknown}");
    }
}
