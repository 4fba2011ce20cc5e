//! The file of the catalogue: `src/docs/on_disk.md`, "catalogue".
//!
//! One header block, then records, each a command with its length, checksum and sequence number. Torn and corrupt are told
//! apart: a crash can only harm what was being written last, so a record that does not check and has a valid one after it is
//! corruption, and the file is refused. So that even the *last* command can't rot away unnoticed, the writer puts a
//! [`Command::DurableMark`] behind each synced command, itself unsynced: only that mark, which means nothing, is ever ambiguous.

use super::command::{Command, CommandError};
use super::view::CatalogueView;
use crate::limits::{self, BLOCK};
use crate::types::ProducerId;

/// Kind of the file in its header.
const KIND: u16 = 7;
/// Format version that is written. Version 1 has no snapshot: zeros in its place. The snapshot of version 2 has topics only.
const VERSION: u16 = 3;
const MAGIC: &[u8; 8] = b"CORELANE";
/// Length, checksum and sequence before the body.
const RECORD_HEADER: usize = 16;

/// What a compacted file stands for besides the commands that it begins with, in its header. All zeros: the file was never compacted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// The first so many records make the state anew: topics, nodes, partitions.
    pub records: u64,
    /// Commands that had been applied.
    pub commands: u64,
    /// The next producer id to give out.
    pub next_producer_id: ProducerId,
    /// How often the node had been started.
    pub starts: u32,
}

impl Snapshot {
    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        *self != Snapshot::default()
    }
}

/// A catalogue file, read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommandLog {
    /// UUID of the cluster that it belongs to.
    pub cluster: [u8; 16],
    /// What the records go on from.
    pub snapshot: Snapshot,
    /// Length of header and snapshot, bytes.
    pub snapshot_end: usize,
    /// The commands by sequence number, from 1 without a gap.
    pub commands: Vec<(u64, Command)>,
    /// Length of the valid part, bytes.
    pub end: usize,
    /// What comes after it and was never acknowledged, to be cut.
    pub torn: Option<TornTail>,
}

/// A last record that was not written whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TornTail {
    /// Where it starts in the file.
    pub position: usize,
    /// How many bytes are there.
    pub bytes: usize,
    /// The sequence number that it would have had.
    pub sequence: u64,
}

/// A file that is no catalogue of this version, or a damaged one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    /// Longer than a catalogue can be.
    #[error("the catalogue has {actual} bytes, at most {most} can be", most = limits::MAX_CATALOGUE)]
    TooLong {
        /// Its length, bytes.
        actual: usize,
    },
    /// The header block is not there whole.
    #[error("the catalogue has {actual} bytes, its header alone has {BLOCK}")]
    TooShort {
        /// Its length, bytes.
        actual: usize,
    },
    /// Not one of ours.
    #[error("this is not a catalogue: magic and kind are {magic:02x?} {kind}, expected {MAGIC:02x?} {KIND}")]
    NotACatalogue {
        /// The first bytes.
        magic: [u8; 8],
        /// The kind field.
        kind: u16,
    },
    /// A newer format.
    #[error("the catalogue has format {actual}, this version reads up to {VERSION}; start a newer one")]
    Version {
        /// Its format version.
        actual: u16,
    },
    /// The header does not check.
    #[error("the catalogue's header is damaged: its checksum is {actual:08x}, its bytes give {expected:08x}")]
    Header {
        /// The one computed.
        expected: u32,
        /// The one found.
        actual: u32,
    },
    /// A record does not check although later ones do.
    #[error("the catalogue is damaged: at byte {position} record {sequence} is missing or does not check, but record {later} is there")]
    Corrupt {
        /// Which record.
        sequence: u64,
        /// Where it starts.
        position: usize,
        /// The first valid one after it.
        later: u64,
    },
    /// The snapshot that it begins with is not whole.
    #[error("the catalogue is damaged: its snapshot has {records} records, and record {sequence} at byte {position} does not check")]
    Snapshot {
        /// Its records by the header.
        records: u64,
        /// The first record that is not there.
        sequence: u64,
        /// Where it should start.
        position: usize,
    },
    /// A record checks but can't be read.
    #[error("record {sequence} at byte {position} of the catalogue: {source}")]
    Command {
        /// Which record.
        sequence: u64,
        /// Where it starts.
        position: usize,
        /// Why.
        source: CommandError,
    },
}

/// A whole file that stands for a state, instead of for all that led to it, and how many records that takes. It ends with one more, a mark, and is to be synced whole
/// before it is used.
///
/// # Errors
/// When a topic or a node does not fit a record.
pub fn encode_compacted(cluster: [u8; 16], view: &CatalogueView) -> Result<(Vec<u8>, u64), CommandError> {
    let (snapshot, state) = view.snapshot();
    let mut bytes = encode_header(cluster, &snapshot).to_vec();
    for (sequence, command) in (1..).zip(state.iter().chain([&Command::DurableMark])) {
        bytes.extend_from_slice(&encode_record(sequence, command)?);
    }
    Ok((bytes, snapshot.records))
}

/// The header block of a file.
pub fn encode_header(cluster: [u8; 16], snapshot: &Snapshot) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(MAGIC);
    block[8..10].copy_from_slice(&KIND.to_le_bytes());
    block[10..12].copy_from_slice(&VERSION.to_le_bytes());
    block[16..32].copy_from_slice(&cluster);
    block[32..40].copy_from_slice(&snapshot.records.to_le_bytes());
    block[40..48].copy_from_slice(&snapshot.commands.to_le_bytes());
    block[48..56].copy_from_slice(&snapshot.next_producer_id.to_le_bytes());
    block[56..60].copy_from_slice(&snapshot.starts.to_le_bytes());
    let crc = crc32fast::hash(&block);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
    block
}

/// One record, padded. The sequence number is one more than that of the record before.
pub fn encode_record(sequence: u64, command: &Command) -> Result<Vec<u8>, CommandError> {
    let body = command.encode()?;
    let mut record = Vec::with_capacity((RECORD_HEADER + body.len()).next_multiple_of(8));
    record.extend_from_slice(&(body.len() as u32).to_le_bytes());
    record.extend_from_slice(&record_crc(sequence, &body).to_le_bytes());
    record.extend_from_slice(&sequence.to_le_bytes());
    record.extend_from_slice(&body);
    record.resize(record.len().next_multiple_of(8), 0);
    Ok(record)
}

/// Reads a whole file.
pub fn decode_log(bytes: &[u8]) -> Result<CommandLog, LogError> {
    if bytes.len() > limits::MAX_CATALOGUE {
        return Err(LogError::TooLong { actual: bytes.len() });
    }
    let (cluster, snapshot) = decode_header(bytes)?;
    let (mut commands, mut position, mut snapshot_end) = (Vec::new(), BLOCK, BLOCK);
    while position < bytes.len() {
        let sequence = commands.len() as u64 + 1;
        let Some(record) = record_at(bytes, position).filter(|r| r.sequence == sequence) else {
            let torn = check_torn(bytes, position, sequence)?;
            if sequence <= snapshot.records {
                // A snapshot is synced before it gets its name.
                return Err(LogError::Snapshot { records: snapshot.records, sequence, position });
            }
            return Ok(CommandLog { cluster, snapshot, snapshot_end, commands, end: position, torn: Some(torn) });
        };
        let command = Command::decode(record.body).map_err(|source| LogError::Command { sequence, position, source })?;
        commands.push((sequence, command));
        position = record.end;
        if sequence == snapshot.records {
            snapshot_end = position;
        }
    }
    match commands.len() as u64 {
        found if found < snapshot.records => Err(LogError::Snapshot { records: snapshot.records, sequence: found + 1, position }),
        _ => Ok(CommandLog { cluster, snapshot, snapshot_end, commands, end: position, torn: None }),
    }
}

fn decode_header(bytes: &[u8]) -> Result<([u8; 16], Snapshot), LogError> {
    let block = bytes.get(..BLOCK).ok_or(LogError::TooShort { actual: bytes.len() })?;
    let (magic, kind) = (array(block, 0), u16::from_le_bytes(array(block, 8)));
    if &magic != MAGIC || kind != KIND {
        return Err(LogError::NotACatalogue { magic, kind });
    }
    let mut plain = block.to_vec();
    plain[12..16].fill(0);
    let (expected, actual) = (crc32fast::hash(&plain), u32::from_le_bytes(array(block, 12)));
    if expected != actual {
        return Err(LogError::Header { expected, actual });
    }
    match u16::from_le_bytes(array(block, 10)) {
        1..=VERSION => {
            let snapshot = Snapshot {
                records: u64::from_le_bytes(array(block, 32)),
                commands: u64::from_le_bytes(array(block, 40)),
                next_producer_id: i64::from_le_bytes(array(block, 48)),
                starts: u32::from_le_bytes(array(block, 56)),
            };
            Ok((array(block, 16), snapshot))
        }
        newer => Err(LogError::Version { actual: newer }),
    }
}

struct Record<'a> {
    sequence: u64,
    body: &'a [u8],
    end: usize,
}

/// The record that starts here, if it checks. Padding included: it is part of what was written.
fn record_at(bytes: &[u8], position: usize) -> Option<Record<'_>> {
    let header = bytes.get(position..position + RECORD_HEADER)?;
    let length = u32::from_le_bytes(array(header, 0)) as usize;
    if length > limits::MAX_COMMAND {
        return None;
    }
    let body_end = position + RECORD_HEADER + length;
    let end = body_end.next_multiple_of(8);
    let body = bytes.get(position + RECORD_HEADER..body_end)?;
    let padding = bytes.get(body_end..end)?;
    let sequence = u64::from_le_bytes(array(header, 8));
    let checks = u32::from_le_bytes(array(header, 4)) == record_crc(sequence, body) && padding.iter().all(|b| *b == 0);
    (checks && sequence > 0).then_some(Record { sequence, body, end })
}

/// The tail from a record that does not check, unless there is a valid one after it.
///
/// Its length can't be believed, so every position is tried. Sequence numbers that can't be skip the checksum. The first position
/// may hold a valid record with a wrong number: a gap.
fn check_torn(bytes: &[u8], position: usize, sequence: u64) -> Result<TornTail, LogError> {
    let rest = bytes.len() - position;
    let possible = sequence..=sequence + (rest / RECORD_HEADER) as u64;
    for at in (position..bytes.len().saturating_sub(RECORD_HEADER - 1)).step_by(8) {
        if possible.contains(&u64::from_le_bytes(array(bytes, at + 8)))
            && let Some(later) = record_at(bytes, at)
        {
            return Err(LogError::Corrupt { sequence, position, later: later.sequence });
        }
    }
    Ok(TornTail { position, bytes: rest, sequence })
}

fn record_crc(sequence: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the range has N bytes")
}

#[cfg(test)]
mod tests {
    use super::super::Catalogue;
    use super::super::command::tests::{one_of_each, one_of_each_before_clusters};
    use super::*;
    use crate::types::TopicId;

    const CLUSTER: [u8; 16] = *b"the-cluster-uuid";

    /// A file with these commands, and where each record ends.
    fn file(commands: &[Command]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = encode_header(CLUSTER, &Snapshot::default()).to_vec();
        let mut ends = Vec::new();
        for (index, command) in commands.iter().enumerate() {
            bytes.extend(encode_record(index as u64 + 1, command).unwrap());
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn logs_round_trip() {
        let commands = one_of_each();
        let (bytes, _) = file(&commands);
        let log = decode_log(&bytes).unwrap();
        assert_eq!((log.cluster, log.end, log.torn), (CLUSTER, bytes.len(), None));
        let expected: Vec<_> = (1..).zip(commands).collect();
        assert_eq!(log.commands, expected);
    }

    /// The compacted file that one of each command leads to.
    fn compacted() -> Vec<u8> {
        let catalogue = Catalogue::replay(&decode_log(&file(&one_of_each()).0).unwrap()).unwrap();
        encode_compacted(CLUSTER, catalogue.view()).unwrap().0
    }

    #[test]
    fn the_golden_files_are_read_and_the_newest_is_written_alike() {
        let read = |golden: &[u8]| {
            let log = decode_log(golden).unwrap();
            assert!(!log.snapshot.is_some());
            log.commands.into_iter().map(|(_, command)| command).collect::<Vec<_>>()
        };
        for golden in [&include_bytes!("fixtures/catalogue-1.bin")[..], &include_bytes!("fixtures/catalogue-2.bin")[..]] {
            assert_eq!(read(golden), one_of_each_before_clusters(), "every format must be readable for ever");
        }
        let golden = &include_bytes!("fixtures/catalogue-3.bin")[..];
        assert_eq!(read(golden), one_of_each(), "every format must be readable for ever");
        assert!(file(&one_of_each()).0 == golden, "the encoding changed: a new format version, or a change of the fixture with a reason");
        let golden = &include_bytes!("fixtures/catalogue-3-compacted.bin")[..];
        assert!(
            compacted() == golden,
            "the encoding of a snapshot changed: a new format version, or a change of the fixture with a reason"
        );
        let mut catalogue = Catalogue::new();
        one_of_each().iter().for_each(|command| drop(catalogue.apply(command).unwrap()));
        assert_eq!(Catalogue::replay(&decode_log(golden).unwrap()).unwrap().view(), catalogue.view());
    }

    #[test]
    #[ignore = "rewrites the fixtures; only for a change of the format that has a reason"]
    fn write_the_golden_files() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cluster/fixtures/catalogue-3");
        std::fs::write(format!("{path}.bin"), file(&one_of_each()).0).unwrap();
        std::fs::write(format!("{path}-compacted.bin"), compacted()).unwrap();
    }

    #[test]
    fn a_compacted_file_is_whole_or_damaged() {
        let (bytes, _) = file(&one_of_each());
        let mut catalogue = Catalogue::replay(&decode_log(&bytes).unwrap()).unwrap();
        for n in 0..3u8 {
            let command = Command::CreateTopic {
                id: TopicId([n + 100; 16]),
                name: format!("topic-{n}"),
                partitions: 3,
                replication_factor: 1,
                config: vec![("retention.ms".into(), "-1".into()), ("durability".into(), "memory".into())],
            };
            catalogue.apply(&command).unwrap();
        }
        let compacted = encode_compacted(CLUSTER, catalogue.view()).unwrap().0;
        let log = decode_log(&compacted).unwrap();
        assert!(log.snapshot.is_some() && log.snapshot_end < log.end && log.end == compacted.len());
        assert_eq!(Catalogue::replay(&log).unwrap().view(), catalogue.view());
        for cut in BLOCK..log.snapshot_end {
            let error = decode_log(&compacted[..cut]).expect_err("a part of a snapshot is none");
            assert!(matches!(error, LogError::Snapshot { .. }), "cut at {cut}: {error}");
        }
        for at in 0..log.snapshot_end {
            let mut flipped = compacted.clone();
            flipped[at] ^= 1 << (at % 8);
            decode_log(&flipped).expect_err(&format!("a flip in byte {at} goes unnoticed"));
        }
    }

    #[test]
    fn every_cut_keeps_what_is_whole() {
        let (bytes, ends) = file(&one_of_each());
        for length in BLOCK..bytes.len() {
            let log = decode_log(&bytes[..length]).unwrap();
            let whole = ends.iter().filter(|end| **end <= length).count();
            assert_eq!(log.commands.len(), whole, "cut at {length}");
            assert_eq!(log.torn.is_some(), length != log.end, "cut at {length}");
        }
        assert_eq!(decode_log(&bytes[..100]), Err(LogError::TooShort { actual: 100 }));
    }

    #[test]
    fn a_tail_of_zeros_or_noise_is_torn() {
        let (bytes, _) = file(&one_of_each());
        for filler in [0u8, 0xff, 0x41] {
            let mut longer = bytes.clone();
            longer.resize(bytes.len() + 5000, filler);
            let log = decode_log(&longer).unwrap();
            let torn = TornTail { position: bytes.len(), bytes: 5000, sequence: one_of_each().len() as u64 + 1 };
            assert_eq!((log.end, log.torn), (bytes.len(), Some(torn)));
        }
    }

    /// Every flip is named, but one in the last record, which is the mark and means nothing.
    #[test]
    fn every_flip_before_the_mark_is_corruption() {
        let (bytes, ends) = file(&one_of_each());
        let mark = ends[ends.len() - 2];
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            let log = decode_log(&flipped);
            if at < mark {
                log.expect_err(&format!("a flip in byte {at} goes unnoticed"));
            } else {
                let log = log.unwrap();
                assert_eq!((log.end, log.commands.len()), (mark, ends.len() - 1));
                assert!(log.torn.is_some());
            }
        }
    }

    #[test]
    fn a_gap_in_the_sequence_is_corruption() {
        let (mut bytes, _) = file(&[Command::NodeStarted]);
        bytes.extend(encode_record(3, &Command::NodeStarted).unwrap());
        assert!(matches!(decode_log(&bytes), Err(LogError::Corrupt { sequence: 2, later: 3, .. })));
    }

    #[test]
    fn another_kind_or_version_is_named() {
        let with = |at: usize, value: u16| {
            let mut block = encode_header(CLUSTER, &Snapshot::default());
            block[at..at + 2].copy_from_slice(&value.to_le_bytes());
            block[12..16].fill(0);
            let crc = crc32fast::hash(&block);
            block[12..16].copy_from_slice(&crc.to_le_bytes());
            decode_log(&block)
        };
        assert!(matches!(with(8, 5), Err(LogError::NotACatalogue { kind: 5, .. })));
        assert_eq!(with(10, 4), Err(LogError::Version { actual: 4 }));
        assert_eq!(with(10, 0), Err(LogError::Version { actual: 0 }));
    }

    #[test]
    fn a_valid_record_of_an_unknown_kind_refuses_the_log() {
        let (mut bytes, _) = file(&[Command::NodeStarted]);
        let start = BLOCK + RECORD_HEADER;
        let length = u32::from_le_bytes(array(&bytes, BLOCK)) as usize;
        // The kind is the only byte whose value is that of NodeStarted and whose change gives an unknown kind.
        let hit = (start..start + length).any(|at| {
            if bytes[at] != 4 {
                return false;
            }
            let mut newer = bytes.clone();
            newer[at] = 99;
            let crc = record_crc(1, &newer[start..start + length]);
            newer[BLOCK + 4..BLOCK + 8].copy_from_slice(&crc.to_le_bytes());
            matches!(decode_log(&newer), Err(LogError::Command { sequence: 1, source: CommandError::UnknownKind(99), .. }))
        });
        assert!(hit);
        bytes.truncate(BLOCK);
        assert!(decode_log(&bytes).unwrap().commands.is_empty());
    }
}
