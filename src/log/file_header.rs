//! The first block of every file of the store: what kind of file this is, in which format version, and whose.
//!
//! Magic, kind, version and checksum lie in the same place in every version of every kind, so that a reader can tell "damaged" from
//! "newer than I am" and both from "not ours". The rest is the identity, one type per kind.

use std::fmt;

use crate::limits::BLOCK;
use crate::log::fields::{bytes_at, put, u16_at, u32_at, u64_at};
use crate::types::{Offset, TopicId, TopicPartition};

const MAGIC: [u8; 8] = *b"CORELANE";
const CRC_AT: usize = 12;

/// What a file of the store is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum FileKind {
    /// Identity of the store, two slots.
    Meta = 1,
    /// Which generation is in force.
    Generation = 2,
    /// A journal file.
    Journal = 3,
    /// A checkpoint slot.
    Checkpoint = 4,
    /// A segment of a partition's log.
    Segment = 5,
    /// A segment's index.
    Index = 6,
    /// The command log.
    Catalogue = 7,
    /// Space kept for a full disk.
    Reserve = 8,
}

impl FileKind {
    const ALL: [FileKind; 8] = [
        FileKind::Meta,
        FileKind::Generation,
        FileKind::Journal,
        FileKind::Checkpoint,
        FileKind::Segment,
        FileKind::Index,
        FileKind::Catalogue,
        FileKind::Reserve,
    ];

    /// The newest format version of this kind that this code reads, and the one that it writes.
    pub fn version(self) -> u16 {
        match self {
            // Since 2 its header may have a snapshot's numbers, since 3 a snapshot has more than topics.
            FileKind::Catalogue => 3,
            _ => 1,
        }
    }

    fn from_value(value: u16) -> Option<FileKind> {
        FileKind::ALL.into_iter().find(|kind| *kind as u16 == value)
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileKind::Meta => "meta",
            FileKind::Generation => "generation",
            FileKind::Journal => "journal",
            FileKind::Checkpoint => "checkpoint",
            FileKind::Segment => "segment",
            FileKind::Index => "index",
            FileKind::Catalogue => "catalogue",
            FileKind::Reserve => "reserve",
        })
    }
}

/// Why a header block is not the one that was expected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// Too short to hold a header.
    #[error("the header block is {actual} bytes long, expected {BLOCK}")]
    TooShort {
        /// Bytes that there are.
        actual: usize,
    },
    /// The magic is not there.
    #[error("not a file of this store: the magic is {actual:02x?}")]
    NotOurs {
        /// The first eight bytes.
        actual: [u8; 8],
    },
    /// The block does not check.
    #[error("the header's checksum is {actual:08x}, expected {expected:08x}")]
    Checksum {
        /// As stored.
        expected: u32,
        /// As computed.
        actual: u32,
    },
    /// A file of another kind.
    #[error("a file of kind {actual}, expected {expected}")]
    WrongKind {
        /// The kind asked for.
        expected: FileKind,
        /// The value found.
        actual: u16,
    },
    /// Written by a newer program.
    #[error("{kind} format version {found}, this program reads up to {supported}")]
    NewerVersion {
        /// Kind of the file.
        kind: FileKind,
        /// Version of the file.
        found: u16,
        /// Newest version that this code reads.
        supported: u16,
    },
    /// Another file's header.
    #[error("the header says {actual}, expected {expected}")]
    Identity {
        /// What was asked for.
        expected: String,
        /// What is there.
        actual: String,
    },
}

/// The typed identity of one kind of file.
pub trait Identity: Sized + PartialEq + fmt::Debug {
    /// Its kind.
    const KIND: FileKind;
    /// Writes the identity's fields into a header block.
    fn write_fields(&self, block: &mut [u8]);
    /// Reads the identity's fields from a header block of at least [`BLOCK`] bytes.
    fn read_fields(block: &[u8]) -> Self;
}

/// The header block of a file with this identity.
pub fn encode_header<I: Identity>(identity: &I) -> Vec<u8> {
    let mut block = encode_bare(I::KIND);
    identity.write_fields(&mut block);
    let crc = block_crc(&block);
    put(&mut block, CRC_AT, &crc.to_le_bytes());
    block
}

fn encode_bare(kind: FileKind) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    put(&mut block, 0, &MAGIC);
    put(&mut block, 8, &(kind as u16).to_le_bytes());
    put(&mut block, 10, &kind.version().to_le_bytes());
    block
}

/// Reads a header block of the kind that `I` is the identity of.
///
/// # Errors
/// When it is not ours, does not check, is of another kind or of a newer version.
pub fn decode<I: Identity>(block: &[u8]) -> Result<I, HeaderError> {
    let (kind, version) = decode_kind(block)?;
    if kind != I::KIND as u16 {
        return Err(HeaderError::WrongKind { expected: I::KIND, actual: kind });
    }
    if version > I::KIND.version() {
        return Err(HeaderError::NewerVersion { kind: I::KIND, found: version, supported: I::KIND.version() });
    }
    Ok(I::read_fields(block))
}

/// Reads a header block which must have exactly this identity.
///
/// # Errors
/// As [`decode`], and when the identity is another one.
pub fn decode_expecting<I: Identity>(block: &[u8], expected: &I) -> Result<(), HeaderError> {
    let actual: I = decode(block)?;
    if actual == *expected {
        Ok(())
    } else {
        Err(HeaderError::Identity { expected: format!("{expected:?}"), actual: format!("{actual:?}") })
    }
}

/// The kind of a header block that checks, for those who don't know what they look at. `None`: a kind that this code does not know.
///
/// # Errors
/// When it is not ours or does not check.
pub fn probe(block: &[u8]) -> Result<Option<FileKind>, HeaderError> {
    Ok(FileKind::from_value(decode_kind(block)?.0))
}

/// Kind and version of a block that is ours and checks. The checksum comes before the version: a flipped bit is damage, not the future.
fn decode_kind(block: &[u8]) -> Result<(u16, u16), HeaderError> {
    if block.len() < BLOCK {
        return Err(HeaderError::TooShort { actual: block.len() });
    }
    let block = &block[..BLOCK];
    let magic: [u8; 8] = bytes_at(block, 0);
    if magic != MAGIC {
        return Err(HeaderError::NotOurs { actual: magic });
    }
    let (expected, actual) = (u32_at(block, CRC_AT), block_crc(block));
    if expected != actual {
        return Err(HeaderError::Checksum { expected, actual });
    }
    Ok((u16_at(block, 8), u16_at(block, 10)))
}

fn block_crc(block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..CRC_AT]);
    hasher.update(&[0; 4]);
    hasher.update(&block[CRC_AT + 4..BLOCK]);
    hasher.finalize()
}

/// Identity of the store and of this node's life in it: one of the two slots of `meta`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetaSlot {
    /// Oldest format version whose readers may open this store.
    pub oldest_reader: u16,
    /// The node.
    pub node_id: u32,
    /// The cluster's UUID.
    pub cluster: [u8; 16],
    /// UUID of this node's life; a wiped disk is another one.
    pub incarnation: [u8; 16],
    /// The valid slot with the larger one counts.
    pub sequence: u64,
    /// Whether the last run ended with everything in its place.
    pub clean_shutdown: bool,
}

impl Identity for MetaSlot {
    const KIND: FileKind = FileKind::Meta;

    fn write_fields(&self, block: &mut [u8]) {
        put(block, 16, &self.oldest_reader.to_le_bytes());
        put(block, 20, &self.node_id.to_le_bytes());
        put(block, 24, &self.cluster);
        put(block, 40, &self.incarnation);
        put(block, 56, &self.sequence.to_le_bytes());
        block[64] = u8::from(self.clean_shutdown);
    }

    fn read_fields(block: &[u8]) -> MetaSlot {
        MetaSlot {
            oldest_reader: u16_at(block, 16),
            node_id: u32_at(block, 20),
            cluster: bytes_at(block, 24),
            incarnation: bytes_at(block, 40),
            sequence: u64_at(block, 56),
            clean_shutdown: block[64] != 0,
        }
    }
}

/// Which generation of journals and checkpoints is in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GenerationRecord {
    /// The cluster's UUID.
    pub cluster: [u8; 16],
    /// Counts the openings of the store, from 1.
    pub generation: u64,
    /// Random; in every group of this generation.
    pub salt: u64,
    /// Shards that the generation has checkpoints and journals of.
    pub shards: u32,
}

impl Identity for GenerationRecord {
    const KIND: FileKind = FileKind::Generation;

    fn write_fields(&self, block: &mut [u8]) {
        put(block, 16, &self.cluster);
        put(block, 32, &self.generation.to_le_bytes());
        put(block, 40, &self.salt.to_le_bytes());
        put(block, 48, &self.shards.to_le_bytes());
    }

    fn read_fields(block: &[u8]) -> GenerationRecord {
        GenerationRecord { cluster: bytes_at(block, 16), generation: u64_at(block, 32), salt: u64_at(block, 40), shards: u32_at(block, 48) }
    }
}

/// Identity of a journal file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalHeader {
    /// The cluster's UUID.
    pub cluster: [u8; 16],
    /// Unique in the store, never used again.
    pub file: u64,
    /// Size of the file, bytes, this block included.
    pub size: u64,
}

impl Identity for JournalHeader {
    const KIND: FileKind = FileKind::Journal;

    fn write_fields(&self, block: &mut [u8]) {
        put(block, 16, &self.cluster);
        put(block, 32, &self.file.to_le_bytes());
        put(block, 40, &self.size.to_le_bytes());
    }

    fn read_fields(block: &[u8]) -> JournalHeader {
        JournalHeader { cluster: bytes_at(block, 16), file: u64_at(block, 32), size: u64_at(block, 40) }
    }
}

/// Identity of a checkpoint slot, and the checksum of its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckpointHeader {
    /// The cluster's UUID.
    pub cluster: [u8; 16],
    /// The generation that it belongs to.
    pub generation: u64,
    /// The state is the one after this group.
    pub sequence: u64,
    /// The shard.
    pub shard: u32,
    /// crc of the body, which follows the block.
    pub body_crc: u32,
    /// Length of the body without padding, bytes.
    pub body_len: u64,
}

impl Identity for CheckpointHeader {
    const KIND: FileKind = FileKind::Checkpoint;

    fn write_fields(&self, block: &mut [u8]) {
        put(block, 16, &self.cluster);
        put(block, 32, &self.generation.to_le_bytes());
        put(block, 40, &self.sequence.to_le_bytes());
        put(block, 48, &self.shard.to_le_bytes());
        put(block, 52, &self.body_crc.to_le_bytes());
        put(block, 56, &self.body_len.to_le_bytes());
    }

    fn read_fields(block: &[u8]) -> CheckpointHeader {
        CheckpointHeader {
            cluster: bytes_at(block, 16),
            generation: u64_at(block, 32),
            sequence: u64_at(block, 40),
            shard: u32_at(block, 48),
            body_crc: u32_at(block, 52),
            body_len: u64_at(block, 56),
        }
    }
}

/// Identity of a segment: the same on every node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Whose log it is a part of.
    pub partition: TopicPartition,
    /// Counts the rewrites (compaction) of this segment.
    pub rewrite_generation: u32,
    /// Its first offset, or a smaller one where that is compacted away.
    pub base_offset: Offset,
}

impl Identity for SegmentHeader {
    const KIND: FileKind = FileKind::Segment;

    fn write_fields(&self, block: &mut [u8]) {
        put(block, 16, &self.partition.topic.0);
        put(block, 32, &self.partition.partition.to_le_bytes());
        put(block, 36, &self.rewrite_generation.to_le_bytes());
        put(block, 40, &self.base_offset.to_le_bytes());
    }

    fn read_fields(block: &[u8]) -> SegmentHeader {
        SegmentHeader {
            partition: TopicPartition { topic: TopicId(bytes_at(block, 16)), partition: u32_at(block, 32) },
            rewrite_generation: u32_at(block, 36),
            base_offset: u64_at(block, 40) as i64,
        }
    }
}

/// Identity of an index: that of its segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexHeader(pub SegmentHeader);

impl Identity for IndexHeader {
    const KIND: FileKind = FileKind::Index;

    fn write_fields(&self, block: &mut [u8]) {
        self.0.write_fields(block);
    }

    fn read_fields(block: &[u8]) -> IndexHeader {
        IndexHeader(SegmentHeader::read_fields(block))
    }
}

/// Identity of the command log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CatalogueHeader {
    /// The cluster's UUID.
    pub cluster: [u8; 16],
}

impl Identity for CatalogueHeader {
    const KIND: FileKind = FileKind::Catalogue;

    fn write_fields(&self, block: &mut [u8]) {
        put(block, 16, &self.cluster);
    }

    fn read_fields(block: &[u8]) -> CatalogueHeader {
        CatalogueHeader { cluster: bytes_at(block, 16) }
    }
}

/// Identity of the reserve file: none but its kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReserveHeader;

impl Identity for ReserveHeader {
    const KIND: FileKind = FileKind::Reserve;

    fn write_fields(&self, _block: &mut [u8]) {}

    fn read_fields(_block: &[u8]) -> ReserveHeader {
        ReserveHeader
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: SegmentHeader =
        SegmentHeader { partition: TopicPartition { topic: TopicId([9; 16]), partition: 3 }, rewrite_generation: 1, base_offset: 1 << 40 };

    fn round_trip<I: Identity + Copy>(identity: I) {
        let block = encode_header(&identity);
        assert_eq!(block.len(), BLOCK);
        assert_eq!(decode::<I>(&block).unwrap(), identity);
        assert_eq!(probe(&block).unwrap(), Some(I::KIND));
        decode_expecting(&block, &identity).unwrap();
    }

    #[test]
    fn every_kind_round_trips() {
        round_trip(MetaSlot {
            oldest_reader: 1,
            node_id: 7,
            cluster: [1; 16],
            incarnation: [2; 16],
            sequence: u64::MAX,
            clean_shutdown: true,
        });
        round_trip(GenerationRecord { cluster: [1; 16], generation: 5, salt: 6, shards: 1024 });
        round_trip(JournalHeader { cluster: [1; 16], file: 8, size: 1 << 25 });
        round_trip(CheckpointHeader { cluster: [1; 16], generation: 2, sequence: 3, shard: 4, body_crc: 5, body_len: 6 });
        round_trip(SEGMENT);
        round_trip(IndexHeader(SEGMENT));
        round_trip(CatalogueHeader { cluster: [1; 16] });
        round_trip(ReserveHeader);
    }

    #[test]
    fn every_bit_of_the_block_counts() {
        let block = encode_header(&SEGMENT);
        for at in 0..BLOCK {
            let mut damaged = block.clone();
            damaged[at] ^= 0x10;
            assert!(decode::<SegmentHeader>(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn each_refusal_names_what_is_wrong() {
        let block = encode_header(&SEGMENT);
        assert!(matches!(decode::<IndexHeader>(&block), Err(HeaderError::WrongKind { expected: FileKind::Index, actual: 5 })));
        assert!(matches!(decode::<SegmentHeader>(&block[1..]), Err(HeaderError::TooShort { actual: 4095 })));
        assert!(matches!(decode::<SegmentHeader>(&[0; BLOCK]), Err(HeaderError::NotOurs { .. })));
        let other = SegmentHeader { base_offset: 0, ..SEGMENT };
        assert!(matches!(decode_expecting(&block, &other), Err(HeaderError::Identity { .. })));

        let mut newer = block.clone();
        put(&mut newer, 10, &2u16.to_le_bytes());
        assert!(matches!(decode::<SegmentHeader>(&newer), Err(HeaderError::Checksum { .. })), "a flipped bit is damage");
        let crc = block_crc(&newer);
        put(&mut newer, CRC_AT, &crc.to_le_bytes());
        assert!(matches!(decode::<SegmentHeader>(&newer), Err(HeaderError::NewerVersion { found: 2, supported: 1, .. })));
    }
}
