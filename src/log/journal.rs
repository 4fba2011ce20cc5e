//! The journal's groups and entries.
//!
//! A group is what one write and one sync make durable: a header of 72 bytes and entries, on a block boundary. It is valid whole or not at
//! all. An entry is positional redo: which bytes belong where, and what is true of the partition after it; replaying it twice changes nothing.
//!
//! Not here: which group is torn and which is damaged ([`recovery`](crate::log::recovery)), and who writes groups (the shard).

use crate::batch::HEADER_LEN;
use crate::limits::{BLOCK, MAX_GROUP};
use crate::log::fields::{bytes_at, i32_at, i64_at, put, u16_at, u32_at, u64_at};
use crate::types::{LeaderEpoch, Offset, Timestamp, TopicId, TopicPartition};

/// Length of a group's header, bytes.
pub const GROUP_HEADER_LEN: usize = 72;
/// Length of an entry's header, bytes.
pub const ENTRY_HEADER_LEN: usize = 96;
/// Length of a large reference's payload before its carried, head and tail bytes.
pub const LARGE_REFERENCE_LEN: usize = 80;
/// Length of an adopt entry's payload.
pub const ADOPT_LEN: usize = 16 + HEADER_LEN;
/// Length of a segment open entry's payload.
pub const SEGMENT_OPEN_LEN: usize = 8;

const GROUP_MAGIC: [u8; 4] = *b"CLG1";
const CHECKSUM_AT: usize = 4;
const MUST_UNDERSTAND: u8 = 1;

/// What a group says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupHeader {
    /// Generation of the store.
    pub generation: u64,
    /// Salt of that generation.
    pub salt: u64,
    /// Journal file that it was written to.
    pub file: u64,
    /// Position in that file, bytes.
    pub position: u64,
    /// 1, 2, 3 ... per generation and shard.
    pub sequence: u64,
    /// Highest sequence known durable when it was built.
    pub durable_sequence: u64,
    /// Header and entries, bytes, without the padding to a block.
    pub length: u32,
    /// The shard that wrote it.
    pub shard: u16,
    /// Number of entries.
    pub entries: u16,
    /// Checksum of the previous group of this shard and generation; 0 for sequence 1.
    pub previous_checksum: u32,
}

impl GroupHeader {
    /// Bytes that the group takes in its file: its length rounded up to whole blocks.
    pub fn space(&self) -> usize {
        (self.length as usize).next_multiple_of(BLOCK)
    }
}

/// Why bytes at a block boundary are not a group.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GroupError {
    /// No group starts here.
    #[error("no group starts here: the magic is {actual:02x?}")]
    NoMagic {
        /// The first four bytes, fewer where there are fewer.
        actual: [u8; 4],
    },
    /// The length can't be one.
    #[error("a group of {length} bytes, expected {GROUP_HEADER_LEN} to {MAX_GROUP}")]
    Length {
        /// As stored.
        length: u32,
    },
    /// The group does not end in these bytes.
    #[error("a group of {expected} bytes, {actual} are there")]
    Cut {
        /// As stored.
        expected: usize,
        /// Bytes that there are.
        actual: usize,
    },
    /// The bytes don't check.
    #[error("the group's checksum is {actual:08x}, expected {expected:08x}")]
    Checksum {
        /// As stored.
        expected: u32,
        /// As computed.
        actual: u32,
    },
}

/// Writes the header in front of the entries that `group` holds from [`GROUP_HEADER_LEN`] on, and returns the group's checksum, which the next group names.
///
/// # Panics
/// When `group` is not exactly `header.length` bytes, or longer than [`MAX_GROUP`].
pub fn seal_group(group: &mut [u8], header: &GroupHeader) -> u32 {
    let (front, checksum) = group_front(header, &group[GROUP_HEADER_LEN..]);
    put(group, 0, &front);
    checksum
}

/// The header's bytes in front of these entries, and the group's checksum: for a writer whose entries are lent out already.
///
/// # Panics
/// When header and entries are not `header.length` bytes, or longer than [`MAX_GROUP`].
pub fn group_front(header: &GroupHeader, entries: &[u8]) -> ([u8; GROUP_HEADER_LEN], u32) {
    assert_eq!(GROUP_HEADER_LEN + entries.len(), header.length as usize, "a group is sealed whole");
    assert!(header.length as usize <= MAX_GROUP, "a group of {} bytes", header.length);
    let mut front = [0; GROUP_HEADER_LEN];
    put(&mut front, 0, &GROUP_MAGIC);
    put(&mut front, 8, &header.generation.to_le_bytes());
    put(&mut front, 16, &header.salt.to_le_bytes());
    put(&mut front, 24, &header.file.to_le_bytes());
    put(&mut front, 32, &header.position.to_le_bytes());
    put(&mut front, 40, &header.sequence.to_le_bytes());
    put(&mut front, 48, &header.durable_sequence.to_le_bytes());
    put(&mut front, 56, &header.length.to_le_bytes());
    put(&mut front, 60, &header.shard.to_le_bytes());
    put(&mut front, 62, &header.entries.to_le_bytes());
    put(&mut front, 64, &header.previous_checksum.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&front);
    hasher.update(entries);
    let checksum = hasher.finalize();
    put(&mut front, CHECKSUM_AT, &checksum.to_le_bytes());
    (front, checksum)
}

/// The header of the group that would start here, unchecked but for its magic: for a reader that compares identities before it computes a checksum.
pub fn peek_group(bytes: &[u8]) -> Option<GroupHeader> {
    read_group_header(bytes).filter(|_| bytes[..4] == GROUP_MAGIC)
}

/// The fields of a group's header whatever the magic is, to tell a damaged group from bytes that never were one; `None` where there are too few bytes.
pub(crate) fn read_group_header(bytes: &[u8]) -> Option<GroupHeader> {
    (bytes.len() >= GROUP_HEADER_LEN).then(|| read_header(bytes))
}

/// The group that starts at the beginning of `bytes`: its header and exactly its bytes.
///
/// # Errors
/// When no group starts here, or it does not check.
pub fn parse_group(bytes: &[u8]) -> Result<(GroupHeader, &[u8]), GroupError> {
    let Some(header) = peek_group(bytes) else {
        let mut actual = [0; 4];
        let len = bytes.len().min(4);
        actual[..len].copy_from_slice(&bytes[..len]);
        return Err(GroupError::NoMagic { actual });
    };
    let length = header.length as usize;
    if !(GROUP_HEADER_LEN..=MAX_GROUP).contains(&length) {
        return Err(GroupError::Length { length: header.length });
    }
    let group = bytes.get(..length).ok_or(GroupError::Cut { expected: length, actual: bytes.len() })?;
    let (expected, actual) = (stored_checksum(group), group_checksum(group));
    if expected != actual {
        return Err(GroupError::Checksum { expected, actual });
    }
    Ok((header, group))
}

/// The checksum in a group's header.
///
/// # Panics
/// When `group` is shorter than a group's header.
pub fn stored_checksum(group: &[u8]) -> u32 {
    u32_at(group, CHECKSUM_AT)
}

fn read_header(bytes: &[u8]) -> GroupHeader {
    GroupHeader {
        generation: u64_at(bytes, 8),
        salt: u64_at(bytes, 16),
        file: u64_at(bytes, 24),
        position: u64_at(bytes, 32),
        sequence: u64_at(bytes, 40),
        durable_sequence: u64_at(bytes, 48),
        length: u32_at(bytes, 56),
        shard: u16_at(bytes, 60),
        entries: u16_at(bytes, 62),
        previous_checksum: u32_at(bytes, 64),
    }
}

fn group_checksum(group: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&group[..CHECKSUM_AT]);
    hasher.update(&[0; 4]);
    hasher.update(&group[CHECKSUM_AT + 4..]);
    hasher.finalize()
}

/// What an entry does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum EntryKind {
    /// Whole batches.
    Append = 1,
    /// Bytes of an unfinished block, copied forward; changes no state.
    Carry = 2,
    /// A segment exists from here on.
    SegmentOpen = 3,
    /// A segment is complete.
    SegmentSeal = 4,
    /// A file of one batch becomes a segment.
    Adopt = 5,
    /// The log ends earlier.
    Truncate = 6,
    /// A leader epoch starts.
    Epoch = 7,
    /// The first readable offset.
    LogStart = 8,
    /// What is below is in the segment and synced.
    FlushedTo = 9,
    /// A batch written straight to the segment.
    LargeReference = 10,
    /// The partition's files may go.
    PartitionDropped = 11,
    /// A checkpoint is durable.
    Checkpoint = 12,
    /// Only the group's durable sequence counts.
    DurableMark = 13,
    /// A rewritten segment takes the place of some sealed ones.
    Replace = 14,
    /// The log has no record any more, and goes on at another offset: a replica begins where its leader's log begins now.
    Restart = 15,
    /// A file that was received whole from the leader becomes a sealed segment.
    Install = 16,
}

impl EntryKind {
    /// All kinds.
    pub const ALL: [EntryKind; 16] = [
        EntryKind::Append,
        EntryKind::Carry,
        EntryKind::SegmentOpen,
        EntryKind::SegmentSeal,
        EntryKind::Adopt,
        EntryKind::Truncate,
        EntryKind::Epoch,
        EntryKind::LogStart,
        EntryKind::FlushedTo,
        EntryKind::LargeReference,
        EntryKind::PartitionDropped,
        EntryKind::Checkpoint,
        EntryKind::DurableMark,
        EntryKind::Replace,
        EntryKind::Restart,
        EntryKind::Install,
    ];

    fn from_value(value: u8) -> Option<EntryKind> {
        EntryKind::ALL.get(usize::from(value).checked_sub(1)?).copied()
    }
}

/// An entry's header. The fields after `position` are the partition's state after the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryHeader {
    /// What it does.
    pub kind: EntryKind,
    /// A reader that does not know the kind must not go on.
    pub must_understand: bool,
    /// Whose entry it is.
    pub topic_partition: TopicPartition,
    /// The leader epoch.
    pub leader_epoch: LeaderEpoch,
    /// Base offset of the segment.
    pub segment: Offset,
    /// Position in that segment's file, bytes.
    pub position: u64,
    /// First offset that it adds.
    pub base_offset: Offset,
    /// Log end after it.
    pub end_offset: Offset,
    /// High watermark known when it was built.
    pub high_watermark: Offset,
    /// Running hash after it.
    pub running_hash: u64,
    /// Largest timestamp of the log after it.
    pub max_timestamp: Timestamp,
    /// Length of the payload, bytes.
    pub payload_len: u32,
    /// How many of the first payload bytes were in the journal or segment before.
    pub carried: u32,
}

impl EntryHeader {
    /// Writes the header to the first [`ENTRY_HEADER_LEN`] bytes of `entry`.
    ///
    /// # Panics
    /// When `entry` is too short.
    pub fn write(&self, entry: &mut [u8]) {
        assert!(self.payload_len as usize <= MAX_GROUP, "an entry fits a group");
        put(entry, 0, &(ENTRY_HEADER_LEN as u32 + self.payload_len).to_le_bytes());
        put(entry, 4, &[self.kind as u8, if self.must_understand { MUST_UNDERSTAND } else { 0 }, 0, 0]);
        put(entry, 8, &self.topic_partition.topic.0);
        put(entry, 24, &self.topic_partition.partition.to_le_bytes());
        put(entry, 28, &self.leader_epoch.to_le_bytes());
        put(entry, 32, &self.segment.to_le_bytes());
        put(entry, 40, &self.position.to_le_bytes());
        put(entry, 48, &self.base_offset.to_le_bytes());
        put(entry, 56, &self.end_offset.to_le_bytes());
        put(entry, 64, &self.high_watermark.to_le_bytes());
        put(entry, 72, &self.running_hash.to_le_bytes());
        put(entry, 80, &self.max_timestamp.to_le_bytes());
        put(entry, 88, &self.carried.to_le_bytes());
        put(entry, 92, &[0; 4]);
    }

    fn read(entry: &[u8], kind: EntryKind) -> EntryHeader {
        EntryHeader {
            kind,
            must_understand: entry[5] & MUST_UNDERSTAND != 0,
            topic_partition: TopicPartition { topic: TopicId(bytes_at(entry, 8)), partition: u32_at(entry, 24) },
            leader_epoch: i32_at(entry, 28),
            segment: i64_at(entry, 32),
            position: u64_at(entry, 40),
            base_offset: i64_at(entry, 48),
            end_offset: i64_at(entry, 56),
            high_watermark: i64_at(entry, 64),
            running_hash: u64_at(entry, 72),
            max_timestamp: i64_at(entry, 80),
            payload_len: u32_at(entry, 0) - ENTRY_HEADER_LEN as u32,
            carried: u32_at(entry, 88),
        }
    }
}

/// Bytes that an entry with this payload takes in its group: header, payload and the padding to 8.
pub const fn entry_space(payload_len: usize) -> usize {
    (ENTRY_HEADER_LEN + payload_len).next_multiple_of(8)
}

/// Why an entry of a group that checks can't be read: written by another program, or by a mistake of ours.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EntryError {
    /// The entry does not fit its group.
    #[error("entry {index} at {at} has a length of {length}, {available} bytes are left in the group")]
    Length {
        /// Which entry of the group, from 0.
        index: u16,
        /// Where in the group.
        at: usize,
        /// As stored.
        length: u32,
        /// Bytes of the group from `at` on.
        available: usize,
    },
    /// A kind that must be understood and is not.
    #[error("entry {index} at {at} is of kind {kind}, which this program does not know and must")]
    UnknownKind {
        /// Which entry of the group, from 0.
        index: u16,
        /// Where in the group.
        at: usize,
        /// The kind.
        kind: u8,
    },
    /// The carried bytes exceed the payload.
    #[error("entry {index} at {at} carries {carried} bytes of a payload of {payload_len}")]
    Carried {
        /// Which entry of the group, from 0.
        index: u16,
        /// Where in the group.
        at: usize,
        /// As stored.
        carried: u32,
        /// Length of the payload.
        payload_len: u32,
    },
    /// Bytes after the last entry.
    #[error("{surplus} bytes after the group's {entries} entries")]
    Surplus {
        /// Bytes that no entry covers.
        surplus: usize,
        /// Entries as stored.
        entries: u16,
    },
}

/// The entries of one group, in order. Unknown kinds that need not be understood are left out. Ends after the first error.
#[derive(Debug)]
pub struct Entries<'a> {
    group: &'a [u8],
    at: usize,
    index: u16,
    entries: u16,
    failed: bool,
}

impl<'a> Entries<'a> {
    /// Of the exact bytes of a group, as [`parse_group`] returned them.
    ///
    /// # Panics
    /// When `group` is shorter than a group's header.
    pub fn new(group: &'a [u8]) -> Entries<'a> {
        Entries { group, at: GROUP_HEADER_LEN, index: 0, entries: u16_at(group, 62), failed: false }
    }

    fn next_entry(&mut self) -> Result<Option<(EntryHeader, &'a [u8])>, EntryError> {
        while self.index < self.entries {
            let (index, at) = (self.index, self.at);
            let rest = self.group.get(at..).unwrap_or_default();
            let length = if rest.len() >= ENTRY_HEADER_LEN { u32_at(rest, 0) } else { 0 };
            if (length as usize) < ENTRY_HEADER_LEN || length as usize > rest.len() {
                return Err(EntryError::Length { index, at, length, available: rest.len() });
            }
            self.index += 1;
            self.at = at + (length as usize).next_multiple_of(8);
            let Some(kind) = EntryKind::from_value(rest[4]) else {
                if rest[5] & MUST_UNDERSTAND != 0 {
                    return Err(EntryError::UnknownKind { index, at, kind: rest[4] });
                }
                continue;
            };
            let header = EntryHeader::read(rest, kind);
            if header.carried > header.payload_len {
                return Err(EntryError::Carried { index, at, carried: header.carried, payload_len: header.payload_len });
            }
            return Ok(Some((header, &rest[ENTRY_HEADER_LEN..length as usize])));
        }
        match self.group.len().saturating_sub(self.at) {
            0 => Ok(None),
            surplus => Err(EntryError::Surplus { surplus, entries: self.entries }),
        }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(EntryHeader, &'a [u8]), EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_entry();
        self.failed = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

/// Why an entry's payload is not what its kind says.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PayloadError {
    /// Too short or too long.
    #[error("a payload of {actual} bytes, expected {expected}")]
    Length {
        /// Bytes that the fields say.
        expected: usize,
        /// Bytes that there are.
        actual: usize,
    },
    /// The middle of a large batch is not whole blocks on a block boundary.
    #[error(
        "a batch of {batch_len} bytes at {position} with a head of {head_len} and a tail of {tail_len} bytes leaves no whole blocks between"
    )]
    Alignment {
        /// Position of the batch in the segment.
        position: u64,
        /// Length of the batch.
        batch_len: u32,
        /// Bytes before the middle.
        head_len: u32,
        /// Bytes after the middle.
        tail_len: u32,
    },
}

/// Payload of a segment open entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentOpen {
    /// Rewrite generation of the segment.
    pub rewrite_generation: u32,
}

impl SegmentOpen {
    /// As stored.
    pub fn encode(&self) -> [u8; SEGMENT_OPEN_LEN] {
        let mut payload = [0; SEGMENT_OPEN_LEN];
        put(&mut payload, 0, &self.rewrite_generation.to_le_bytes());
        payload
    }

    /// Of an entry's payload.
    ///
    /// # Errors
    /// When the length is another one.
    pub fn decode(payload: &[u8]) -> Result<SegmentOpen, PayloadError> {
        expect_len(payload, SEGMENT_OPEN_LEN)?;
        Ok(SegmentOpen { rewrite_generation: u32_at(payload, 0) })
    }
}

/// Payload of an adopt entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Adopt {
    /// In the temporary file's name.
    pub id: u64,
    /// Length of that file: header block, batch, padding to a block.
    pub file_len: u64,
    /// The batch's header as stored.
    pub header: [u8; HEADER_LEN],
}

impl Adopt {
    /// As stored.
    pub fn encode(&self) -> [u8; ADOPT_LEN] {
        let mut payload = [0; ADOPT_LEN];
        put(&mut payload, 0, &self.id.to_le_bytes());
        put(&mut payload, 8, &self.file_len.to_le_bytes());
        put(&mut payload, 16, &self.header);
        payload
    }

    /// Of an entry's payload.
    ///
    /// # Errors
    /// When the length is another one.
    pub fn decode(payload: &[u8]) -> Result<Adopt, PayloadError> {
        expect_len(payload, ADOPT_LEN)?;
        Ok(Adopt { id: u64_at(payload, 0), file_len: u64_at(payload, 8), header: bytes_at(payload, 16) })
    }
}

/// The fixed part of a large reference's payload. The carried bytes, the head and the tail follow it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LargeReference {
    /// Length of the whole batch, bytes.
    pub batch_len: u32,
    /// Bytes from the batch's start to the first block boundary.
    pub head_len: u32,
    /// Bytes from the last block boundary to the batch's end.
    pub tail_len: u32,
    /// The batch's header as stored.
    pub header: [u8; HEADER_LEN],
}

/// The bytes that a large reference brings along.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LargeEnds<'a> {
    /// The cut block's earlier bytes, then the batch's first ones: up to a block boundary.
    pub carried_and_head: &'a [u8],
    /// The batch's last bytes, from a block boundary on.
    pub tail: &'a [u8],
}

impl LargeReference {
    /// As stored, without the bytes that follow.
    pub fn encode(&self) -> [u8; LARGE_REFERENCE_LEN] {
        let mut payload = [0; LARGE_REFERENCE_LEN];
        put(&mut payload, 0, &self.batch_len.to_le_bytes());
        put(&mut payload, 4, &self.head_len.to_le_bytes());
        put(&mut payload, 8, &self.tail_len.to_le_bytes());
        put(&mut payload, 16, &self.header);
        payload
    }

    /// Length of the whole payload with this many carried bytes.
    pub fn payload_len(&self, carried: u32) -> usize {
        LARGE_REFERENCE_LEN + carried as usize + self.head_len as usize + self.tail_len as usize
    }

    /// Of an entry and its payload.
    ///
    /// # Errors
    /// When the lengths don't add up, or what is between head and tail is not whole blocks on a block boundary.
    pub fn decode<'a>(entry: &EntryHeader, payload: &'a [u8]) -> Result<(LargeReference, LargeEnds<'a>), PayloadError> {
        if payload.len() < LARGE_REFERENCE_LEN {
            return Err(PayloadError::Length { expected: LARGE_REFERENCE_LEN, actual: payload.len() });
        }
        let reference = LargeReference {
            batch_len: u32_at(payload, 0),
            head_len: u32_at(payload, 4),
            tail_len: u32_at(payload, 8),
            header: bytes_at(payload, 16),
        };
        expect_len(payload, reference.payload_len(entry.carried))?;
        let LargeReference { batch_len, head_len, tail_len, .. } = reference;
        let position = entry.position.saturating_add(u64::from(entry.carried));
        let middle = i64::from(batch_len) - i64::from(head_len) - i64::from(tail_len);
        let middle_at = position.saturating_add(u64::from(head_len));
        if middle < 0 || !(middle as usize).is_multiple_of(BLOCK) || !middle_at.is_multiple_of(BLOCK as u64) {
            return Err(PayloadError::Alignment { position, batch_len, head_len, tail_len });
        }
        let (carried_and_head, tail) = payload[LARGE_REFERENCE_LEN..].split_at((entry.carried + head_len) as usize);
        Ok((reference, LargeEnds { carried_and_head, tail }))
    }
}

pub(crate) fn expect_len(payload: &[u8], expected: usize) -> Result<(), PayloadError> {
    if payload.len() == expected { Ok(()) } else { Err(PayloadError::Length { expected, actual: payload.len() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: EntryKind, payload_len: usize) -> EntryHeader {
        EntryHeader {
            kind,
            must_understand: true,
            topic_partition: TopicPartition { topic: TopicId([3; 16]), partition: 5 },
            leader_epoch: 2,
            segment: 100,
            position: 4096,
            base_offset: 100,
            end_offset: 110,
            high_watermark: 90,
            running_hash: 0xdead_beef_0bad_cafe,
            max_timestamp: -5,
            payload_len: payload_len as u32,
            carried: 0,
        }
    }

    fn group(entries: &[(EntryHeader, &[u8])]) -> (GroupHeader, Vec<u8>) {
        let mut bytes = vec![0; GROUP_HEADER_LEN];
        for (header, payload) in entries {
            let at = bytes.len();
            bytes.resize(at + entry_space(payload.len()), 0);
            header.write(&mut bytes[at..]);
            put(&mut bytes, at + ENTRY_HEADER_LEN, payload);
        }
        let header = GroupHeader {
            generation: 1,
            salt: 2,
            file: 3,
            position: 8192,
            sequence: 4,
            durable_sequence: 3,
            length: bytes.len() as u32,
            shard: 6,
            entries: entries.len() as u16,
            previous_checksum: 7,
        };
        seal_group(&mut bytes, &header);
        (header, bytes)
    }

    #[test]
    fn a_group_round_trips_with_every_kind_of_entry() {
        let entries: Vec<_> = EntryKind::ALL.iter().map(|kind| (entry(*kind, 9), &b"123456789"[..])).collect();
        let (header, mut bytes) = group(&entries);
        let length = bytes.len();
        bytes.resize(header.space(), 0);
        let (parsed, exact) = parse_group(&bytes).unwrap();
        assert_eq!(parsed, header);
        assert_eq!(exact.len(), length);
        let read: Vec<_> = Entries::new(exact).collect::<Result<_, _>>().unwrap();
        assert_eq!(read, entries);
    }

    #[test]
    fn every_bit_of_a_group_counts() {
        let (_, bytes) = group(&[(entry(EntryKind::Append, 20), &[1; 20])]);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert!(parse_group(&damaged).is_err(), "byte {at}");
        }
        assert!(parse_group(&[]).is_err());
        assert!(matches!(parse_group(&bytes[..bytes.len() - 1]), Err(GroupError::Cut { .. })));
    }

    fn resealed(mut bytes: Vec<u8>, change: impl Fn(&mut [u8])) -> Vec<u8> {
        change(&mut bytes[GROUP_HEADER_LEN..]);
        let header = read_header(&bytes);
        seal_group(&mut bytes, &header);
        bytes
    }

    #[test]
    fn a_group_that_checks_can_still_be_refused() {
        let (_, bytes) = group(&[(entry(EntryKind::Append, 8), &[1; 8]), (entry(EntryKind::Carry, 8), &[1; 8])]);
        let first_error = |bytes: &[u8]| Entries::new(bytes).find_map(Result::err);
        assert_eq!(first_error(&bytes), None);

        let long = resealed(bytes.clone(), |entries| put(entries, 0, &u32::MAX.to_le_bytes()));
        assert!(matches!(first_error(&long), Some(EntryError::Length { index: 0, .. })));
        let short = resealed(bytes.clone(), |entries| put(entries, 0, &95u32.to_le_bytes()));
        assert!(matches!(first_error(&short), Some(EntryError::Length { index: 0, .. })));
        let unknown = resealed(bytes.clone(), |entries| entries[4] = 200);
        assert!(matches!(first_error(&unknown), Some(EntryError::UnknownKind { kind: 200, .. })));
        let carried = resealed(bytes.clone(), |entries| put(entries, 88, &9u32.to_le_bytes()));
        assert!(matches!(first_error(&carried), Some(EntryError::Carried { carried: 9, payload_len: 8, .. })));
        let mut surplus = bytes.clone();
        surplus[62] = 1;
        assert!(matches!(first_error(&surplus), Some(EntryError::Surplus { .. })));

        let optional = resealed(bytes, |entries| put(entries, 4, &[200, 0]));
        let kinds: Vec<_> = Entries::new(&optional).map(|entry| entry.unwrap().0.kind).collect();
        assert_eq!(kinds, [EntryKind::Carry], "an unknown kind that need not be understood is skipped");
    }

    #[test]
    fn payloads_round_trip_and_refuse_other_lengths() {
        let open = SegmentOpen { rewrite_generation: 4 };
        assert_eq!(SegmentOpen::decode(&open.encode()).unwrap(), open);
        assert!(SegmentOpen::decode(&[0; 7]).is_err());
        let adopt = Adopt { id: 1, file_len: 1 << 30, header: [8; HEADER_LEN] };
        assert_eq!(Adopt::decode(&adopt.encode()).unwrap(), adopt);
        assert!(Adopt::decode(&[0; 78]).is_err());
    }

    #[test]
    fn a_large_reference_leaves_whole_blocks() {
        let reference = LargeReference { batch_len: 3996 + 8192 + 50, head_len: 3996, tail_len: 50, header: [8; HEADER_LEN] };
        let mut payload = reference.encode().to_vec();
        payload.resize(reference.payload_len(100), 7);
        let header = EntryHeader { carried: 100, ..entry(EntryKind::LargeReference, payload.len()) };
        let (read, ends) = LargeReference::decode(&header, &payload).unwrap();
        assert_eq!(read, reference);
        assert_eq!((ends.carried_and_head.len(), ends.tail.len()), (4096, 50));

        let shifted = EntryHeader { position: 4097, ..header };
        assert!(matches!(LargeReference::decode(&shifted, &payload), Err(PayloadError::Alignment { .. })));
        assert!(matches!(LargeReference::decode(&header, &payload[1..]), Err(PayloadError::Length { .. })));
        assert!(matches!(LargeReference::decode(&header, &[0; 10]), Err(PayloadError::Length { .. })));
    }
}
