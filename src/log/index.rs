//! A segment's index: where about every 32 KiB a batch starts, and the running hash and largest timestamp before it.
//!
//! Derived data: it can be made again from the segment. An entry is 32 bytes, which divides a sector, so that appending to a half-filled block
//! can't harm an older entry. The segment's first batch always has one.

use crate::limits::{BLOCK, INDEX_INTERVAL};
use crate::log::fields::{i64_at, put, u32_at, u64_at};
use crate::log::segment::FIRST_POSITION;
use crate::types::{Offset, Timestamp};

/// Length of an entry, bytes.
pub const INDEX_ENTRY_LEN: usize = 32;

const MAGIC: [u8; 4] = *b"CLIX";

/// Where a batch starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexEntry {
    /// The batch's base offset.
    pub offset: Offset,
    /// Its position in the segment.
    pub position: u64,
    /// No batch of the segment before it has a larger timestamp (`i64::MIN` for the first one).
    pub max_timestamp: Timestamp,
    /// The running hash before it.
    pub running_hash: u64,
}

/// Why 32 bytes are not an index entry.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IndexError {
    /// Not 32 bytes.
    #[error("an index entry of {actual} bytes, expected {INDEX_ENTRY_LEN}")]
    Length {
        /// Bytes that there are.
        actual: usize,
    },
    /// The magic is not there.
    #[error("no index entry: the magic is {actual:02x?}")]
    NoMagic {
        /// Bytes 24 to 28.
        actual: [u8; 4],
    },
    /// It is not after the one before it.
    #[error("an index entry of offset {offset} at {position} follows one of offset {last_offset} at {last_position}")]
    Order {
        /// Its offset.
        offset: Offset,
        /// Its position.
        position: u64,
        /// The offset before it.
        last_offset: Offset,
        /// The position before it.
        last_position: u64,
    },
    /// The bytes don't check.
    #[error("the index entry's checksum is {actual:08x}, expected {expected:08x}")]
    Checksum {
        /// As stored.
        expected: u32,
        /// As computed.
        actual: u32,
    },
}

impl IndexEntry {
    /// As stored in the index of the segment with this base offset.
    ///
    /// # Panics
    /// When offset or position are out of a segment's range: see [`fits_segment`].
    pub fn encode(&self, segment: Offset) -> [u8; INDEX_ENTRY_LEN] {
        assert!(fits_segment(segment, self.offset, self.position), "{self:?} in segment {segment}");
        let mut bytes = [0; INDEX_ENTRY_LEN];
        put(&mut bytes, 0, &((self.offset - segment) as u32).to_le_bytes());
        put(&mut bytes, 4, &(self.position as u32).to_le_bytes());
        put(&mut bytes, 8, &self.max_timestamp.to_le_bytes());
        put(&mut bytes, 16, &self.running_hash.to_le_bytes());
        put(&mut bytes, 24, &MAGIC);
        let crc = entry_crc(&bytes, segment);
        put(&mut bytes, 28, &crc.to_le_bytes());
        bytes
    }

    /// Of the bytes in the index of the segment with this base offset.
    ///
    /// # Errors
    /// When they don't check.
    pub fn decode(bytes: &[u8], segment: Offset) -> Result<IndexEntry, IndexError> {
        if bytes.len() != INDEX_ENTRY_LEN {
            return Err(IndexError::Length { actual: bytes.len() });
        }
        if bytes[24..28] != MAGIC {
            return Err(IndexError::NoMagic { actual: u32_at(bytes, 24).to_le_bytes() });
        }
        let (expected, actual) = (u32_at(bytes, 28), entry_crc(bytes, segment));
        if expected != actual {
            return Err(IndexError::Checksum { expected, actual });
        }
        Ok(IndexEntry {
            offset: segment.saturating_add(i64::from(u32_at(bytes, 0))),
            position: u64::from(u32_at(bytes, 4)),
            max_timestamp: i64_at(bytes, 8),
            running_hash: u64_at(bytes, 16),
        })
    }
}

fn entry_crc(bytes: &[u8], segment: Offset) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(&bytes[..28]);
    hasher.finalize()
}

/// Whether a batch that starts here can be in a segment with this base offset: both distances are 32 bits wide in the index.
pub fn fits_segment(segment: Offset, offset: Offset, position: u64) -> bool {
    offset.checked_sub(segment).is_some_and(|distance| u32::try_from(distance).is_ok()) && u32::try_from(position).is_ok()
}

/// Position in the index file of the entry with this number, bytes.
pub fn entry_position(entry: usize) -> u64 {
    (BLOCK + entry * INDEX_ENTRY_LEN) as u64
}

/// Whole blocks to write to an index file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexBlocks {
    /// Where in the file, a multiple of [`BLOCK`].
    pub position: u64,
    /// What, whole blocks; the last one zero-padded.
    pub bytes: Vec<u8>,
}

/// A segment's index in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Index {
    segment: Offset,
    entries: Vec<IndexEntry>,
}

impl Index {
    /// An empty index of the segment with this base offset.
    pub fn new(segment: Offset) -> Index {
        Index { segment, entries: Vec::new() }
    }

    /// Of the first `count` entries in a file's bytes after its header block. Stops at the first entry that does not check or does not
    /// come after its predecessor; the caller sees by [`len`](Index::len) that it did, and by the error why.
    pub fn load(segment: Offset, bytes: &[u8], count: u32) -> (Index, Option<IndexError>) {
        let mut index = Index::new(segment);
        for at in 0..count as usize {
            let bytes = bytes.get(at * INDEX_ENTRY_LEN..(at + 1) * INDEX_ENTRY_LEN).unwrap_or_default();
            match IndexEntry::decode(bytes, segment).and_then(|entry| index.follows(entry)) {
                Ok(entry) => index.entries.push(entry),
                Err(error) => return (index, Some(error)),
            }
        }
        (index, None)
    }

    fn follows(&self, entry: IndexEntry) -> Result<IndexEntry, IndexError> {
        match self.entries.last() {
            Some(last) if entry.offset <= last.offset || entry.position <= last.position => Err(IndexError::Order {
                offset: entry.offset,
                position: entry.position,
                last_offset: last.offset,
                last_position: last.position,
            }),
            _ => Ok(entry),
        }
    }

    /// Base offset of its segment.
    pub fn segment(&self) -> Offset {
        self.segment
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries, in order.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Whether a batch at this position should get an entry: the first one, and the first one [`INDEX_INTERVAL`] after the last entry.
    pub fn wants(&self, position: u64) -> bool {
        self.entries.last().is_none_or(|last| position >= last.position + INDEX_INTERVAL)
    }

    /// Adds an entry.
    ///
    /// # Panics
    /// When it is not after the last one.
    pub fn push(&mut self, entry: IndexEntry) {
        assert!(self.follows(entry).is_ok(), "index entry {entry:?} after {:?}", self.entries.last());
        self.entries.push(entry);
    }

    /// The last entry at or before an offset: a read of that offset starts there. `None`: start at [`FIRST_POSITION`].
    pub fn lookup(&self, offset: Offset) -> Option<IndexEntry> {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        self.entries[..after].last().copied()
    }

    /// The last entry before which no record has this timestamp or a later one: a search for it starts there. `None`: start at [`FIRST_POSITION`].
    pub fn lookup_time(&self, timestamp: Timestamp) -> Option<IndexEntry> {
        let after = self.entries.partition_point(|entry| entry.max_timestamp < timestamp);
        self.entries[..after].last().copied()
    }

    /// Drops the entries of batches at or after a position of the segment.
    pub fn truncate(&mut self, position: u64) {
        let keep = self.entries.partition_point(|entry| entry.position < position);
        self.entries.truncate(keep);
    }

    /// The blocks that hold the entries from number `from` on, with the older ones that share the first block. `None`: there are none.
    pub fn blocks_from(&self, from: usize) -> Option<IndexBlocks> {
        self.blocks(from, self.entries.len())
    }

    /// As [`blocks_from`](Index::blocks_from), up to but without entry number `to`.
    ///
    /// # Panics
    /// When there are fewer than `to` entries.
    pub fn blocks(&self, from: usize, to: usize) -> Option<IndexBlocks> {
        if from >= to {
            return None;
        }
        let per_block = BLOCK / INDEX_ENTRY_LEN;
        let first = from / per_block * per_block;
        let mut bytes = vec![0; ((to - first) * INDEX_ENTRY_LEN).next_multiple_of(BLOCK)];
        for (entry, place) in self.entries[first..to].iter().zip(bytes.chunks_exact_mut(INDEX_ENTRY_LEN)) {
            place.copy_from_slice(&entry.encode(self.segment));
        }
        Some(IndexBlocks { position: entry_position(first), bytes })
    }
}

const _: () = {
    assert!(512 % INDEX_ENTRY_LEN == 0, "an entry does not cross a sector");
    assert!(FIRST_POSITION == BLOCK as u64);
};

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: Offset = 1 << 33;

    fn entry(n: u64) -> IndexEntry {
        IndexEntry {
            offset: SEGMENT + 10 * n as i64,
            position: FIRST_POSITION + n * INDEX_INTERVAL,
            max_timestamp: if n == 0 { i64::MIN } else { 100 * n as i64 },
            running_hash: n ^ 0x5555,
        }
    }

    fn index(len: u64) -> Index {
        let mut index = Index::new(SEGMENT);
        (0..len).for_each(|n| index.push(entry(n)));
        index
    }

    #[test]
    fn an_entry_round_trips_and_every_bit_counts() {
        let bytes = entry(3).encode(SEGMENT);
        assert_eq!(IndexEntry::decode(&bytes, SEGMENT).unwrap(), entry(3));
        assert!(IndexEntry::decode(&bytes, SEGMENT + 1).is_err(), "an entry of another segment");
        for at in 0..INDEX_ENTRY_LEN {
            let mut damaged = bytes;
            damaged[at] ^= 4;
            assert!(IndexEntry::decode(&damaged, SEGMENT).is_err(), "byte {at}");
        }
    }

    #[test]
    fn lookups_start_at_or_before() {
        let index = index(5);
        assert_eq!(index.lookup(SEGMENT - 1), None);
        assert_eq!(index.lookup(SEGMENT), Some(entry(0)));
        assert_eq!(index.lookup(SEGMENT + 19), Some(entry(1)));
        assert_eq!(index.lookup(i64::MAX), Some(entry(4)));
        assert_eq!(index.lookup_time(i64::MIN), None);
        assert_eq!(index.lookup_time(100), Some(entry(0)), "a record of time 100 is before entry 1");
        assert_eq!(index.lookup_time(101), Some(entry(1)));
        assert_eq!(index.lookup_time(i64::MAX), Some(entry(4)));
    }

    #[test]
    fn blocks_hold_the_older_entries_that_share_them() {
        let index = index(300);
        let all = index.blocks_from(0).unwrap();
        assert_eq!((all.position, all.bytes.len()), (4096, 3 * BLOCK));
        let some = index.blocks_from(130).unwrap();
        assert_eq!(some.position, 4096 + 4096);
        assert_eq!(some.bytes, all.bytes[4096..]);
        assert_eq!(index.blocks_from(300), None);
        assert_eq!(Index::load(SEGMENT, &all.bytes, 300), (index.clone(), None));
        let (short, error) = Index::load(SEGMENT, &all.bytes, 301);
        assert_eq!((short.len(), error.is_some()), (300, true));
    }

    #[test]
    fn truncating_drops_what_is_at_or_after() {
        let mut index = index(5);
        index.truncate(entry(3).position);
        assert_eq!(index.entries().last(), Some(&entry(2)));
        assert!(!index.wants(entry(3).position - 1) && index.wants(entry(3).position));
        index.truncate(0);
        assert!(index.is_empty() && index.wants(FIRST_POSITION));
    }
}
