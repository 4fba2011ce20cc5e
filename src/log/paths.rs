//! Where each file of the store is, relative to the data directory, and back from a name to what it is.

use crate::types::{Offset, TopicId, TopicPartition};

/// Directory of the journal files.
pub const JOURNAL_DIR: &str = "journal";
/// Directory of the checkpoints.
pub const CHECKPOINT_DIR: &str = "checkpoint";
/// Directory of the topics.
pub const TOPICS_DIR: &str = "topics";
/// Directory of what was not understood.
pub const QUARANTINE_DIR: &str = "quarantine";
/// The lock file.
pub const LOCK: &str = "lock";
/// Identity of the store.
pub const META: &str = "meta";
/// The generation record.
pub const GENERATION: &str = "generation";
/// The next generation record, before it replaces [`GENERATION`].
pub const GENERATION_TMP: &str = "generation.tmp";
/// The command log.
pub const CATALOGUE: &str = "catalogue";
/// A catalogue that is being made, before it becomes [`CATALOGUE`].
pub const CATALOGUE_TMP: &str = "catalogue.tmp";
/// Directory of the consensus: log, votes, snapshots.
pub const CONSENSUS_DIR: &str = "consensus";
/// Space for a full disk.
pub const RESERVE: &str = "reserve";

/// Every name that belongs into the data directory while no opening is under way.
pub(crate) const ROOT_NAMES: [&str; 11] =
    [LOCK, META, GENERATION, CATALOGUE, CONSENSUS_DIR, RESERVE, JOURNAL_DIR, CHECKPOINT_DIR, TOPICS_DIR, QUARANTINE_DIR, "lost+found"];

/// A file with which a starting process tries what the file system can do.
pub fn host_probe(process: u32) -> String {
    format!("probe-{process}.tmp")
}

/// A file with which a starting shard settles how its device is used.
pub fn shard_probe(shard: u32) -> String {
    format!("probe-shard-{shard}.tmp")
}

/// Whether a name in the data directory is a probe's: a killed start leaves it, and nothing is in it.
pub(crate) fn is_probe(name: &str) -> bool {
    let number = name.strip_prefix("probe-").and_then(|rest| rest.strip_suffix(".tmp"));
    number.is_some_and(|number| parse_decimal(number.strip_prefix("shard-").unwrap_or(number)).is_some())
}

/// One of the two checkpoint slots of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Slot {
    /// `-a`
    A,
    /// `-b`
    B,
}

impl Slot {
    /// Both, in order.
    pub const BOTH: [Slot; 2] = [Slot::A, Slot::B];

    /// The one that is written next.
    pub fn other(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }
}

/// A journal file.
pub fn journal(id: u64) -> String {
    format!("{JOURNAL_DIR}/{id:016x}.journal")
}

/// A checkpoint slot.
pub fn checkpoint(generation: u64, shard: u32, slot: Slot) -> String {
    let slot = if slot == Slot::A { 'a' } else { 'b' };
    format!("{CHECKPOINT_DIR}/{generation:016x}-{shard:04}-{slot}.checkpoint")
}

/// A topic's directory.
pub fn topic_dir(topic: TopicId) -> String {
    format!("{TOPICS_DIR}/{topic}")
}

/// A partition's directory.
pub fn partition_dir(partition: TopicPartition) -> String {
    format!("{TOPICS_DIR}/{}/{}", partition.topic, partition.partition)
}

/// A segment as it was appended.
pub fn segment(partition: TopicPartition, base_offset: Offset) -> String {
    segment_of(partition, base_offset, 0)
}

/// Its index.
pub fn index(partition: TopicPartition, base_offset: Offset) -> String {
    index_of(partition, base_offset, 0)
}

/// A segment of a rewrite generation; 0 is as it was appended. Each generation has a name of its own, so that old and new are there side by side.
pub fn segment_of(partition: TopicPartition, base_offset: Offset, generation: u32) -> String {
    format!("{}.log", stem(partition, base_offset, generation))
}

/// Its index.
pub fn index_of(partition: TopicPartition, base_offset: Offset, generation: u32) -> String {
    format!("{}.index", stem(partition, base_offset, generation))
}

fn stem(partition: TopicPartition, base_offset: Offset, generation: u32) -> String {
    let dir = partition_dir(partition);
    match generation {
        0 => format!("{dir}/{base_offset:020}"),
        _ => format!("{dir}/{base_offset:020}-{generation:08x}"),
    }
}

/// A batch on its way to being a segment.
pub fn adopted(partition: TopicPartition, id: u64) -> String {
    format!("{}/adopt-{id:016x}.tmp", partition_dir(partition))
}

/// The directory that holds a path; empty for the data directory itself.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// What a name in a partition's directory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PartitionFile {
    /// The segment with this base offset, of this rewrite generation.
    Segment(Offset, u32),
    /// The index of such a segment.
    Index(Offset, u32),
    /// A batch on its way to being a segment.
    Adopted(u64),
}

/// What a file name in a partition's directory is; `None`: not one of ours.
pub fn parse_partition_file(name: &str) -> Option<PartitionFile> {
    if let Some(id) = name.strip_prefix("adopt-").and_then(|rest| rest.strip_suffix(".tmp")) {
        return parse_hex(id).map(PartitionFile::Adopted);
    }
    let (stem, kind) = name.split_once('.')?;
    let (base, generation) = match stem.split_once('-') {
        None => (stem, 0),
        Some((base, generation)) => (base, parse_generation(generation)?),
    };
    let base = parse_offset(base)?;
    match kind {
        "log" => Some(PartitionFile::Segment(base, generation)),
        "index" => Some(PartitionFile::Index(base, generation)),
        _ => None,
    }
}

/// A segment's rewrite generation in its name; 0 is not written.
fn parse_generation(digits: &str) -> Option<u32> {
    let ours = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if ours { u32::from_str_radix(digits, 16).ok().filter(|generation| *generation > 0) } else { None }
}

/// The id in a journal file's name.
pub fn parse_journal(name: &str) -> Option<u64> {
    parse_hex(name.strip_suffix(".journal")?)
}

/// Generation, shard and slot in a checkpoint's name.
pub fn parse_checkpoint(name: &str) -> Option<(u64, u32, Slot)> {
    let mut parts = name.strip_suffix(".checkpoint")?.split('-');
    let generation = parse_hex(parts.next()?)?;
    let shard = parts.next().filter(|digits| digits.len() == 4).and_then(parse_decimal)?;
    let slot = match parts.next()? {
        "a" => Slot::A,
        "b" => Slot::B,
        _ => return None,
    };
    parts.next().is_none().then_some((generation, shard as u32, slot))
}

/// The topic that a directory below `topics` is named after, in exactly our spelling.
pub fn parse_topic_dir(name: &str) -> Option<TopicId> {
    name.parse::<TopicId>().ok().filter(|topic| topic.to_string() == name)
}

/// The partition that a directory below a topic's is named after, in exactly our spelling.
pub fn parse_partition_dir(name: &str) -> Option<u32> {
    parse_decimal(name).and_then(|partition| u32::try_from(partition).ok()).filter(|partition| partition.to_string() == name)
}

fn parse_hex(digits: &str) -> Option<u64> {
    let ours = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if ours { u64::from_str_radix(digits, 16).ok() } else { None }
}

fn parse_offset(digits: &str) -> Option<Offset> {
    if digits.len() == 20 { parse_decimal(digits).and_then(|value| Offset::try_from(value).ok()) } else { None }
}

fn parse_decimal(digits: &str) -> Option<u64> {
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTITION: TopicPartition = TopicPartition { topic: TopicId([0xab; 16]), partition: 12 };

    fn name(path: &str) -> &str {
        path.rsplit_once('/').unwrap().1
    }

    #[test]
    fn names_round_trip() {
        assert_eq!(parse_journal(name(&journal(u64::MAX))), Some(u64::MAX));
        assert_eq!(parse_checkpoint(name(&checkpoint(1, 1023, Slot::B))), Some((1, 1023, Slot::B)));
        assert_eq!(parse_partition_file(name(&segment(PARTITION, i64::MAX))), Some(PartitionFile::Segment(i64::MAX, 0)));
        assert_eq!(parse_partition_file(name(&index(PARTITION, 0))), Some(PartitionFile::Index(0, 0)));
        for generation in [0, 1, 0xabc, u32::MAX] {
            let (log, index) = (segment_of(PARTITION, 7, generation), index_of(PARTITION, 7, generation));
            assert_eq!(parse_partition_file(name(&log)), Some(PartitionFile::Segment(7, generation)));
            assert_eq!(parse_partition_file(name(&index)), Some(PartitionFile::Index(7, generation)));
        }
        assert_eq!(parse_partition_file(name(&adopted(PARTITION, 7))), Some(PartitionFile::Adopted(7)));
        assert_eq!(parse_topic_dir(name(&topic_dir(PARTITION.topic))), Some(PARTITION.topic));
        assert_eq!(parse_partition_dir(name(&partition_dir(PARTITION))), Some(12));
        assert_eq!(parent(&journal(1)), "journal");
        assert_eq!(parent(META), "");
        assert!(is_probe(&host_probe(24_925)) && is_probe(&shard_probe(0)));
    }

    #[test]
    fn only_our_own_spelling_is_ours() {
        for odd in [
            "1.log",
            "+0000000000000000001.log",
            "00000000000000000001.log.bak",
            "99999999999999999999.log",
            "00000000000000000001-00000000.log",
            "00000000000000000001-1.log",
            "00000000000000000001-0000000G.log",
            "00000000000000000001-00000001-00000001.log",
            "adopt-1.tmp",
            ".log",
        ] {
            assert_eq!(parse_partition_file(odd), None, "{odd}");
        }
        for odd in ["probe-.tmp", "probe-x.tmp", "probe-1", "probe-shard-.tmp", META] {
            assert!(!is_probe(odd), "{odd}");
        }
        assert_eq!(parse_journal("000000000000000G.journal"), None);
        assert_eq!(parse_checkpoint("0000000000000001-0001-c.checkpoint"), None);
        assert_eq!(parse_checkpoint("0000000000000001-1-a.checkpoint"), None);
        assert_eq!(parse_partition_dir("01"), None);
        assert_eq!(parse_topic_dir("ABABABAB-abab-abab-abab-abababababab"), None);
    }
}
