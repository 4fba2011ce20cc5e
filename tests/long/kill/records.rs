//! The records of the check, and the topics that they go to: all of it follows from a seed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use corelane::batch::Compression;

use super::ledger::Id;
use crate::crash::Numbers;

/// Bytes at the front of a value: producer and sequence.
const ID_BYTES: usize = 9;

/// A topic of the check.
pub struct TopicPlan {
    /// Its name.
    pub name: &'static str,
    /// Its partitions.
    pub partitions: u32,
    /// Its settings.
    pub config: &'static [(&'static str, &'static str)],
    /// Least bytes that its retention leaves in a partition, if it has one: `retention.bytes` without one segment.
    pub kept_bytes: Option<u64>,
}

/// Every topic; together 24 partitions.
pub const TOPICS: &[TopicPlan] = &[
    TopicPlan { name: "plain", partitions: 8, config: &[("max.message.bytes", "1100000")], kept_bytes: None },
    TopicPlan {
        name: "rolling",
        partitions: 8,
        config: &[("max.message.bytes", "1100000"), ("segment.bytes", "1500000"), ("retention.bytes", "6000000")],
        kept_bytes: Some(4_500_000),
    },
    TopicPlan {
        name: "stamped",
        partitions: 4,
        config: &[("max.message.bytes", "1100000"), ("message.timestamp.type", "LogAppendTime")],
        kept_bytes: None,
    },
    TopicPlan {
        name: "large",
        partitions: 4,
        config: &[("max.message.bytes", "20000000"), ("segment.bytes", "12000000")],
        kept_bytes: None,
    },
];

/// First place of the topic that takes more than a mebibyte.
const LARGE: usize = 20;
/// All places.
pub const PLACES: usize = 24;

/// Topic and partition of a place.
pub fn place_name(place: usize) -> (&'static str, u32) {
    let mut left = place as u32;
    for topic in TOPICS {
        if left < topic.partitions {
            return (topic.name, left);
        }
        left -= topic.partitions;
    }
    panic!("there is no place {place}")
}

/// The place of a partition.
pub fn place_of(name: &str, partition: u32) -> Option<usize> {
    let at = TOPICS.iter().position(|topic| topic.name == name)?;
    Some(TOPICS[..at].iter().map(|topic| topic.partitions).sum::<u32>() as usize + partition as usize)
}

/// What one producer sends and how.
pub struct Kind {
    /// Records a second.
    pub rate: u64,
    /// How batches are compressed.
    pub compression: Compression,
    /// Size at which a batch is closed, bytes.
    pub batch_size: usize,
    /// How long a batch waits for more.
    pub linger: Duration,
    /// Sizes of values, bytes: out of 100 records, how many are from least to most.
    sizes: &'static [(u64, u64, u64)],
    /// Of so many records that go to the topic for large ones, one has more than 8 MiB; 0: none.
    one_huge_in: u64,
}

/// The producers, each a process.
pub const KINDS: &[Kind] = &[
    Kind {
        rate: 9_000,
        compression: Compression::None,
        batch_size: 256 * 1024,
        linger: Duration::ZERO,
        sizes: &[(100, 10, 200)],
        one_huge_in: 0,
    },
    Kind {
        rate: 2_500,
        compression: Compression::None,
        batch_size: 32 * 1024,
        linger: Duration::from_millis(2),
        sizes: &[(75, 10, 1_000), (21, 1_000, 16_000), (4, 16_000, 140_000)],
        one_huge_in: 0,
    },
    Kind {
        rate: 5_000,
        compression: Compression::Lz4,
        batch_size: 8 * 1024,
        linger: Duration::from_millis(1),
        sizes: &[(100, 10, 500)],
        one_huge_in: 0,
    },
    Kind {
        rate: 40,
        compression: Compression::None,
        batch_size: 256 * 1024,
        linger: Duration::ZERO,
        sizes: &[(50, 10, 130_000), (40, 130_000, 600_000), (10, 600_000, 1_048_576)],
        one_huge_in: 8,
    },
];

impl Kind {
    /// Where the next record goes, and its size, bytes.
    pub fn draw(&self, random: &mut Numbers) -> (usize, usize) {
        let place = random.below(PLACES as u64) as usize;
        if place >= LARGE && self.one_huge_in > 0 && random.below(self.one_huge_in) == 0 {
            return (place, (8 << 20) + random.below(3 << 20) as usize);
        }
        let mut percent = random.below(100);
        for (share, least, most) in self.sizes {
            if percent < *share {
                return (place, (least + random.below(most - least + 1)) as usize);
            }
            percent -= share;
        }
        unreachable!("the shares are 100 together")
    }
}

/// A value that names its record; the rest follows from the id, half of it easy to compress.
pub fn value(id: Id, len: usize, out: &mut Vec<u8>) {
    out.clear();
    out.push(id.producer);
    out.extend_from_slice(&id.sequence.to_le_bytes());
    let mut random = Numbers(id.sequence << 8 | u64::from(id.producer));
    while out.len() < len {
        let word = random.draw();
        let word = if word & 0x800 == 0 { u64::from(word as u8) } else { word };
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.truncate(len.max(ID_BYTES));
}

/// Which record a value says that it is.
pub fn id_of(value: &[u8]) -> Option<Id> {
    let (producer, rest) = value.split_first()?;
    Some(Id { producer: *producer, sequence: u64::from_le_bytes(rest.first_chunk().copied()?) })
}

/// Of a value; another function than any checksum of the log.
pub fn hash(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
