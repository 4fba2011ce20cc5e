//! A shard's checkpoint: everything that is known of its partitions after one group, so that the journal before it is not needed.

use bytes::Bytes;

use crate::limits::{BLOCK, PRODUCER_BATCHES};
use crate::log::fields::Reader;
use crate::log::file_header::{self, CheckpointHeader, HeaderError};
use crate::log::segment::SegmentInfo;
use crate::types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp, TopicId, TopicPartition};

const QUARANTINED: u32 = 1;
/// A snapshot of groups follows the producers.
const WITH_GROUPS: u32 = 2;
const SEALED: u32 = 1;
const ADOPTED: u32 = 2;
const CLEANED: u32 = 4;

/// The state of a shard after one group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckpointBody {
    /// The state is the one after this group.
    pub sequence: u64,
    /// First group that is still needed.
    pub replay_from: u64,
    /// Every partition of the shard.
    pub partitions: Vec<PartitionState>,
}

/// What is known of a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionState {
    /// Which.
    pub partition: TopicPartition,
    /// Its files don't check; nothing is served from it.
    pub quarantined: bool,
    /// First readable offset.
    pub log_start: Offset,
    /// One past the last offset.
    pub log_end: Offset,
    /// One past the last committed offset.
    pub high_watermark: Offset,
    /// Running hash at the log end.
    pub running_hash: u64,
    /// Largest timestamp of the log; `i64::MIN` while it never had a record.
    pub max_timestamp: Timestamp,
    /// Base offset of the segment that `flushed_position` is in.
    pub flushed_segment: Offset,
    /// Everything below it is in the segment and synced.
    pub flushed_position: u64,
    /// Leader epochs and where each began.
    pub epochs: Vec<(LeaderEpoch, Offset)>,
    /// In order of their base offsets; only the last one may be unsealed.
    pub segments: Vec<SegmentInfo>,
    /// Idempotent producers, least recently used first.
    pub producers: Vec<ProducerSnapshot>,
    /// Of a partition that holds consumer groups: what its coordinator is after some of its records (`group::Coordinator::snapshot`). Opaque here.
    pub groups: Option<Bytes>,
}

impl PartitionState {
    /// A partition without a record, and without a segment.
    pub fn new(partition: TopicPartition) -> PartitionState {
        PartitionState {
            partition,
            quarantined: false,
            log_start: 0,
            log_end: 0,
            high_watermark: 0,
            running_hash: 0,
            max_timestamp: Timestamp::MIN,
            flushed_segment: 0,
            flushed_position: 0,
            epochs: Vec::new(),
            segments: Vec::new(),
            producers: Vec::new(),
            groups: None,
        }
    }
}

/// What is known of an idempotent producer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProducerSnapshot {
    /// Its id.
    pub id: ProducerId,
    /// Its newest epoch.
    pub epoch: ProducerEpoch,
    /// Its last batches, oldest first: 1 to [`PRODUCER_BATCHES`].
    pub batches: Vec<ProducerBatch>,
}

/// A batch of an idempotent producer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerBatch {
    /// Sequence of its first record.
    pub first_sequence: i32,
    /// Sequence of its last record.
    pub last_sequence: i32,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Its largest timestamp.
    pub timestamp: Timestamp,
}

/// Why bytes are not a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The header block is not one.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The file ends before the body does.
    #[error("a body of {expected} bytes, {actual} are there")]
    Cut {
        /// As stored.
        expected: u64,
        /// Bytes that there are.
        actual: u64,
    },
    /// The body does not check.
    #[error("the body's checksum is {actual:08x}, expected {expected:08x}")]
    Checksum {
        /// As stored.
        expected: u32,
        /// As computed.
        actual: u32,
    },
    /// The body checks, and can't be read: written by a mistake of ours.
    #[error("the body can't be read at byte {at}: {what}")]
    Malformed {
        /// Position in the body.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// A checkpoint file: header block, body, padding to a block. `header`'s sequence, checksum and length are set from the body.
///
/// # Panics
/// When a producer has no batch or more than [`PRODUCER_BATCHES`].
pub fn encode(header: &CheckpointHeader, body: &CheckpointBody) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    write_body(&mut bytes, body);
    let header = CheckpointHeader {
        sequence: body.sequence,
        body_crc: crc32fast::hash(&bytes[BLOCK..]),
        body_len: (bytes.len() - BLOCK) as u64,
        ..*header
    };
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes[..BLOCK].copy_from_slice(&file_header::encode_header(&header));
    bytes
}

fn write_body(out: &mut Vec<u8>, body: &CheckpointBody) {
    out.extend(body.sequence.to_le_bytes());
    out.extend(body.replay_from.to_le_bytes());
    out.extend((body.partitions.len() as u32).to_le_bytes());
    for partition in &body.partitions {
        write_partition(out, partition);
    }
}

fn write_partition(out: &mut Vec<u8>, state: &PartitionState) {
    out.extend(state.partition.topic.0);
    out.extend(state.partition.partition.to_le_bytes());
    let flags = if state.quarantined { QUARANTINED } else { 0 } | if state.groups.is_some() { WITH_GROUPS } else { 0 };
    out.extend(flags.to_le_bytes());
    out.extend(state.log_start.to_le_bytes());
    out.extend(state.log_end.to_le_bytes());
    out.extend(state.high_watermark.to_le_bytes());
    out.extend(state.running_hash.to_le_bytes());
    out.extend(state.max_timestamp.to_le_bytes());
    out.extend(state.flushed_segment.to_le_bytes());
    out.extend(state.flushed_position.to_le_bytes());
    out.extend((state.epochs.len() as u32).to_le_bytes());
    for (epoch, start) in &state.epochs {
        out.extend(epoch.to_le_bytes());
        out.extend(start.to_le_bytes());
    }
    out.extend((state.segments.len() as u32).to_le_bytes());
    for segment in &state.segments {
        out.extend(segment.base_offset.to_le_bytes());
        out.extend(segment.end_offset.to_le_bytes());
        out.extend(segment.valid_end.to_le_bytes());
        out.extend(segment.max_timestamp.to_le_bytes());
        out.extend(segment.running_hash.to_le_bytes());
        out.extend(segment.rewrite_generation.to_le_bytes());
        out.extend(segment.index_entries.to_le_bytes());
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        let flags = flag(segment.sealed, SEALED) | flag(segment.adopted, ADOPTED) | flag(segment.cleaned, CLEANED);
        out.extend(flags.to_le_bytes());
    }
    out.extend((state.producers.len() as u32).to_le_bytes());
    for producer in &state.producers {
        assert!((1..=PRODUCER_BATCHES).contains(&producer.batches.len()), "{producer:?}");
        out.extend(producer.id.to_le_bytes());
        out.extend(producer.epoch.to_le_bytes());
        out.extend((producer.batches.len() as u16).to_le_bytes());
        for batch in &producer.batches {
            out.extend(batch.first_sequence.to_le_bytes());
            out.extend(batch.last_sequence.to_le_bytes());
            out.extend(batch.base_offset.to_le_bytes());
            out.extend(batch.timestamp.to_le_bytes());
        }
    }
    if let Some(groups) = &state.groups {
        out.extend((groups.len() as u32).to_le_bytes());
        out.extend(&groups[..]);
    }
}

/// Reads a checkpoint file.
///
/// # Errors
/// When it does not check, or says something impossible. Nothing is allocated beyond a small multiple of the bytes that are there.
pub fn decode(bytes: &[u8]) -> Result<(CheckpointHeader, CheckpointBody), CheckpointError> {
    let header: CheckpointHeader = file_header::decode(bytes)?;
    let rest = &bytes[BLOCK..];
    let body = usize::try_from(header.body_len)
        .ok()
        .and_then(|len| rest.get(..len))
        .ok_or(CheckpointError::Cut { expected: header.body_len, actual: rest.len() as u64 })?;
    let actual = crc32fast::hash(body);
    if actual != header.body_crc {
        return Err(CheckpointError::Checksum { expected: header.body_crc, actual });
    }
    let mut reader = Reader::new(body);
    let malformed = |reader: &Reader<'_>, what| CheckpointError::Malformed { at: body.len() - reader.remaining(), what };
    let decoded = read_body(&mut reader).map_err(|what| malformed(&reader, what))?;
    if reader.remaining() > 0 {
        return Err(malformed(&reader, "bytes after the last partition"));
    }
    if decoded.sequence != header.sequence {
        return Err(malformed(&Reader::new(body), "the sequence is not the header's"));
    }
    Ok((header, decoded))
}

const SHORT: &str = "the body ends here";

fn read_body(reader: &mut Reader<'_>) -> Result<CheckpointBody, &'static str> {
    let sequence = reader.u64().ok_or(SHORT)?;
    let replay_from = reader.u64().ok_or(SHORT)?;
    let partitions = read_list(reader, 92, read_partition)?;
    Ok(CheckpointBody { sequence, replay_from, partitions })
}

/// A u32 count and that many items of at least `least` bytes each: a count that the remaining bytes can't hold is refused before anything is allocated for it.
fn read_list<T>(
    reader: &mut Reader<'_>,
    least: usize,
    item: impl Fn(&mut Reader<'_>) -> Result<T, &'static str>,
) -> Result<Vec<T>, &'static str> {
    let count = reader.u32().ok_or(SHORT)? as usize;
    if count > reader.remaining() / least {
        return Err("a count larger than the bytes that are left");
    }
    (0..count).map(|_| item(reader)).collect()
}

fn read_partition(reader: &mut Reader<'_>) -> Result<PartitionState, &'static str> {
    let topic = TopicId(reader.take().ok_or(SHORT)?);
    let partition = TopicPartition { topic, partition: reader.u32().ok_or(SHORT)? };
    let flags = reader.u32().ok_or(SHORT)?;
    if flags & !(QUARANTINED | WITH_GROUPS) != 0 {
        return Err("a partition with what this version does not know");
    }
    let mut state = PartitionState {
        partition,
        quarantined: flags & QUARANTINED != 0,
        log_start: reader.i64().ok_or(SHORT)?,
        log_end: reader.i64().ok_or(SHORT)?,
        high_watermark: reader.i64().ok_or(SHORT)?,
        running_hash: reader.u64().ok_or(SHORT)?,
        max_timestamp: reader.i64().ok_or(SHORT)?,
        flushed_segment: reader.i64().ok_or(SHORT)?,
        flushed_position: reader.u64().ok_or(SHORT)?,
        epochs: read_list(reader, 12, |r| r.i32().zip(r.i64()).ok_or(SHORT))?,
        segments: read_list(reader, 52, |r| read_segment(r).ok_or(SHORT))?,
        producers: read_list(reader, 36, read_producer)?,
        groups: None,
    };
    if flags & WITH_GROUPS != 0 {
        let len = reader.u32().ok_or(SHORT)? as usize;
        state.groups = Some(Bytes::copy_from_slice(reader.bytes(len).ok_or(SHORT)?));
    }
    Ok(state)
}

fn read_segment(reader: &mut Reader<'_>) -> Option<SegmentInfo> {
    let mut segment = SegmentInfo {
        base_offset: reader.i64()?,
        end_offset: reader.i64()?,
        valid_end: reader.u64()?,
        max_timestamp: reader.i64()?,
        running_hash: reader.u64()?,
        rewrite_generation: reader.u32()?,
        index_entries: reader.u32()?,
        sealed: false,
        adopted: false,
        cleaned: false,
    };
    let flags = reader.u32()?;
    segment.sealed = flags & SEALED != 0;
    segment.adopted = flags & ADOPTED != 0;
    segment.cleaned = flags & CLEANED != 0;
    Some(segment)
}

fn read_producer(reader: &mut Reader<'_>) -> Result<ProducerSnapshot, &'static str> {
    let id = reader.i64().ok_or(SHORT)?;
    let epoch = reader.i16().ok_or(SHORT)?;
    let count = usize::from(reader.u16().ok_or(SHORT)?);
    if !(1..=PRODUCER_BATCHES).contains(&count) {
        return Err("a producer with no batches or too many");
    }
    let batches = (0..count).map(|_| read_batch(reader).ok_or(SHORT)).collect::<Result<_, _>>()?;
    Ok(ProducerSnapshot { id, epoch, batches })
}

fn read_batch(reader: &mut Reader<'_>) -> Option<ProducerBatch> {
    Some(ProducerBatch {
        first_sequence: reader.i32()?,
        last_sequence: reader.i32()?,
        base_offset: reader.i64()?,
        timestamp: reader.i64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: CheckpointHeader = CheckpointHeader { cluster: [1; 16], generation: 2, sequence: 0, shard: 3, body_crc: 0, body_len: 0 };

    fn partition(n: u32) -> PartitionState {
        let batch = ProducerBatch { first_sequence: 0, last_sequence: 4, base_offset: 5, timestamp: 6 };
        PartitionState {
            quarantined: n % 2 == 1,
            log_start: 10,
            log_end: 200,
            high_watermark: 150,
            running_hash: 77,
            max_timestamp: 88,
            flushed_segment: 100,
            flushed_position: 8192,
            epochs: vec![(0, 0), (3, 120)],
            segments: vec![
                SegmentInfo { sealed: true, adopted: true, cleaned: n.is_multiple_of(2), index_entries: 4, ..SegmentInfo::new(10, 1, 5) },
                SegmentInfo::new(100, 0, 6),
            ],
            producers: vec![ProducerSnapshot { id: 9, epoch: 1, batches: vec![batch; PRODUCER_BATCHES] }],
            groups: (n == 1).then(|| Bytes::from_static(b"groups of some kind")),
            ..PartitionState::new(TopicPartition { topic: TopicId([4; 16]), partition: n })
        }
    }

    fn body() -> CheckpointBody {
        CheckpointBody { sequence: 40, replay_from: 30, partitions: (0..3).map(partition).collect() }
    }

    #[test]
    fn round_trips_in_whole_blocks() {
        let bytes = encode(&HEADER, &body());
        assert!(bytes.len().is_multiple_of(BLOCK));
        let (header, read) = decode(&bytes).unwrap();
        assert_eq!(read, body());
        assert_eq!((header.sequence, header.shard, header.generation), (40, 3, 2));
        let empty = encode(&HEADER, &CheckpointBody::default());
        assert_eq!(decode(&empty).unwrap().1, CheckpointBody::default());
    }

    #[test]
    fn every_bit_but_the_padding_counts() {
        let bytes = encode(&HEADER, &body());
        let end = BLOCK + decode(&bytes).unwrap().0.body_len as usize;
        for at in 0..end {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_err(), "byte {at}");
        }
        assert!(matches!(decode(&bytes[..BLOCK]), Err(CheckpointError::Cut { .. })));
    }

    /// A body that checks and lies: each truncation and each count that is too large is an error, not a panic and not an allocation.
    #[test]
    fn a_lying_body_is_refused() {
        let bytes = encode(&HEADER, &body());
        let full = decode(&bytes).unwrap().0.body_len as usize;
        let sealed = |body: &[u8]| {
            let header = CheckpointHeader { body_crc: crc32fast::hash(body), body_len: body.len() as u64, sequence: 40, ..HEADER };
            let mut file = file_header::encode_header(&header);
            file.extend(body);
            file
        };
        for len in 0..full {
            assert!(matches!(decode(&sealed(&bytes[BLOCK..BLOCK + len])), Err(CheckpointError::Malformed { .. })), "length {len}");
        }
        for at in (16..full).step_by(4) {
            let mut lying = bytes[BLOCK..BLOCK + full].to_vec();
            lying[at..at + 4.min(full - at)].fill(0xff);
            let _ = decode(&sealed(&lying));
        }
        let mut surplus = bytes[BLOCK..BLOCK + full].to_vec();
        surplus.push(0);
        assert!(matches!(decode(&sealed(&surplus)), Err(CheckpointError::Malformed { .. })));
    }
}
