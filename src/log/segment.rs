//! Segments: one header block, then the partition's batches without a gap from [`FIRST_POSITION`] on. Between their offsets there are gaps where a cleaning
//! has rewritten the segment; its last batch reaches to the segment's end all the same.
//!
//! Where a segment ends is what checkpoint and journal say, never what the file's length or a scan says.

use crate::limits::BLOCK;
use crate::log::file_header::{self, IndexHeader, SegmentHeader};
use crate::log::paths;
use crate::types::{Offset, Timestamp, TopicPartition};

/// Position of a segment's first batch, bytes.
pub const FIRST_POSITION: u64 = BLOCK as u64;

/// What is known of a segment without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentInfo {
    /// Its name.
    pub base_offset: Offset,
    /// One past its last offset; the base offset while it is empty.
    pub end_offset: Offset,
    /// Position after its last batch, bytes.
    pub valid_end: u64,
    /// Largest timestamp in it; `i64::MIN` while it is empty.
    pub max_timestamp: Timestamp,
    /// The partition's running hash at its end.
    pub running_hash: u64,
    /// Counts its rewrites; 0 is as it was appended.
    pub rewrite_generation: u32,
    /// Entries of its index file that count.
    pub index_entries: u32,
    /// No more batches come.
    pub sealed: bool,
    /// One batch that came in a file of its own.
    pub adopted: bool,
    /// The cleaner has looked at all of its keys: it, and everything before it, holds no record that a later one of it supersedes.
    pub cleaned: bool,
}

impl SegmentInfo {
    /// A new segment of a partition whose running hash is `running_hash`.
    pub fn new(base_offset: Offset, rewrite_generation: u32, running_hash: u64) -> SegmentInfo {
        SegmentInfo {
            base_offset,
            end_offset: base_offset,
            valid_end: FIRST_POSITION,
            max_timestamp: Timestamp::MIN,
            running_hash,
            rewrite_generation,
            index_entries: 0,
            sealed: false,
            adopted: false,
            cleaned: false,
        }
    }

    /// Its file.
    pub fn path(&self, partition: TopicPartition) -> String {
        paths::segment_of(partition, self.base_offset, self.rewrite_generation)
    }

    /// Its index.
    pub fn index_path(&self, partition: TopicPartition) -> String {
        paths::index_of(partition, self.base_offset, self.rewrite_generation)
    }

    /// Whether offsets may be missing in it.
    pub fn is_rewritten(&self) -> bool {
        self.rewrite_generation > 0
    }

    /// Bytes of its batches.
    pub fn batch_bytes(&self) -> u64 {
        self.valid_end.saturating_sub(FIRST_POSITION)
    }

    /// Whether a file of this base offset and rewrite generation, which is no segment of the log, is what a cleaning left behind: segments that it replaced, or one that it had not finished.
    pub fn supersedes(&self, base_offset: Offset, generation: u32) -> bool {
        let is_inside = self.base_offset < base_offset && base_offset < self.end_offset;
        (self.base_offset == base_offset && self.rewrite_generation != generation) || (is_inside && self.is_rewritten())
    }

    /// The identity that its file must have.
    pub fn header(&self, partition: TopicPartition) -> SegmentHeader {
        SegmentHeader { partition, rewrite_generation: self.rewrite_generation, base_offset: self.base_offset }
    }

    /// The header block of its file.
    pub fn header_block(&self, partition: TopicPartition) -> Vec<u8> {
        file_header::encode_header(&self.header(partition))
    }

    /// The header block of its index.
    pub fn index_header_block(&self, partition: TopicPartition) -> Vec<u8> {
        file_header::encode_header(&IndexHeader(self.header(partition)))
    }
}
