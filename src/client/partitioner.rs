//! Which partition a record goes to. Pure.

use std::fmt;
use std::sync::Arc;

/// A partitioner of your own.
pub trait Partitioner: Send + Sync {
    /// The partition for a record of `topic`, below `partitions`; `None` leaves it to the producer, which sends
    /// such records to one partition until its batch is full and then to the next.
    fn partition(&self, topic: &str, key: Option<&[u8]>, value: Option<&[u8]>, partitions: u32) -> Option<u32>;
}

/// How records that do not name their partition are spread.
#[derive(Clone, Default)]
pub enum Partitioning {
    /// By the murmur2 hash of the key, as Kafka's Java client does, so that both put a key into the same partition;
    /// records without a key as [`Partitioning::Sticky`].
    #[default]
    KeyHash,
    /// To one partition until its batch is sent, then to the next: full batches, and all partitions get the same share.
    Sticky,
    /// To each partition in turn.
    RoundRobin,
    /// As that says.
    Custom(Arc<dyn Partitioner>),
}

impl fmt::Debug for Partitioning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Partitioning::KeyHash => "KeyHash",
            Partitioning::Sticky => "Sticky",
            Partitioning::RoundRobin => "RoundRobin",
            Partitioning::Custom(_) => "Custom",
        })
    }
}

/// The partition of a key, as Kafka's Java client chooses it.
///
/// # Panics
/// When `partitions` is 0.
pub fn partition_of_key(key: &[u8], partitions: u32) -> u32 {
    assert!(partitions > 0, "a topic has partitions");
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// MurmurHash2 with Kafka's seed.
pub fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that Kafka's own tests expect of its Java implementation.
    #[test]
    fn hashes_are_kafkas() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn a_partition_is_always_one_of_them() {
        for n in [1, 2, 7, 100_000] {
            for key in ["", "a", "bb", "ccc", "foobar"] {
                assert!(partition_of_key(key.as_bytes(), n) < n);
            }
        }
        // The hash of "foobar" is negative: the sign bit is dropped, not the value negated.
        assert_eq!(partition_of_key(b"foobar", 10), ((-790_332_482i64 & 0x7fff_ffff) % 10) as u32);
    }
}
