//! The vocabulary that every layer shares: identities, offsets, durability.

use std::fmt;
use std::str::FromStr;

/// The internal topic that consumer groups are kept in.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// Position of a record in its partition, from 0. Signed because Kafka's wire format is.
pub type Offset = i64;
/// Milliseconds since the Unix epoch.
pub type Timestamp = i64;
/// Counts the leaderships of a partition, from 0; rises at every start of a single node.
pub type LeaderEpoch = i32;
/// Identity of an idempotent producer; -1 is none.
pub type ProducerId = i64;
/// Counts the lives of one producer id; -1 is none.
pub type ProducerEpoch = i16;

/// Identity of a topic: a UUID, so that a deleted and re-created name is another topic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub [u8; 16]);

impl TopicId {
    /// The shard that owns a partition of this topic, of `shards` shards.
    ///
    /// Neighbouring partitions land on neighbouring shards.
    ///
    /// # Panics
    /// When `shards` is 0.
    pub fn shard_of(&self, partition: u32, shards: u32) -> u32 {
        assert!(shards > 0, "a node has at least one shard");
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        (u64::from_le_bytes(first).wrapping_add(u64::from(partition)) % u64::from(shards)) as u32
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).fmt(f)
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TopicId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<TopicId, uuid::Error> {
        Ok(TopicId(*uuid::Uuid::parse_str(text)?.as_bytes()))
    }
}

/// Topics that only the broker writes, by Kafka's names: positions of consumer groups, and what transactions will need. Clients may read and describe them.
pub const INTERNAL_TOPICS: &[&str] = &[OFFSETS_TOPIC, "__transaction_state"];

/// Whether a name is that of an internal topic.
pub fn is_internal_topic(name: &str) -> bool {
    INTERNAL_TOPICS.contains(&name)
}

/// One partition of one topic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicId,
    /// The partition, from 0.
    pub partition: u32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// What must have happened to a record before it is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Durability {
    /// In the broker's memory; lost with the process.
    Memory,
    /// Handed to the device, not flushed; may be lost with the power.
    Written,
    /// Synced to the device.
    #[default]
    Durable,
}

impl Durability {
    /// The name as in settings: `memory`, `written` or `durable`.
    pub fn name(self) -> &'static str {
        match self {
            Durability::Memory => "memory",
            Durability::Written => "written",
            Durability::Durable => "durable",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A durability name that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("durability must be durable, written or memory, not {0:?}")]
pub struct UnknownDurability(pub String);

impl FromStr for Durability {
    type Err = UnknownDurability;
    fn from_str(text: &str) -> Result<Durability, UnknownDurability> {
        [Durability::Memory, Durability::Written, Durability::Durable]
            .into_iter()
            .find(|d| d.name() == text)
            .ok_or_else(|| UnknownDurability(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_partitions_are_on_neighbouring_shards() {
        let topic = TopicId([7; 16]);
        let first = topic.shard_of(0, 4);
        assert_eq!(topic.shard_of(1, 4), (first + 1) % 4);
        assert_eq!(topic.shard_of(4, 4), first);
    }

    #[test]
    fn durability_names_round_trip() {
        for d in [Durability::Memory, Durability::Written, Durability::Durable] {
            assert_eq!(d.name().parse::<Durability>().unwrap(), d);
        }
        assert!("fsync".parse::<Durability>().is_err());
    }
}
