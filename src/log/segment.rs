//! Segments: one header block, then the partition's batches without a gap from [`FIRST_POSITION`] on.
//!
//! Where a segment ends is what checkpoint and journal say, never what the file's length or a scan says.

use crate::limits::BLOCK;
use crate::log::file_header::{self, IndexHeader, SegmentHeader};
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
    /// Counts its rewrites.
    pub rewrite_generation: u32,
    /// Entries of its index file that count.
    pub index_entries: u32,
    /// No more batches come.
    pub sealed: bool,
    /// One batch that came in a file of its own.
    pub adopted: bool,
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
        }
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
