//! The format of a file of the consensus log: `src/docs/on_disk.md`, "consensus". Pure.
//!
//! A header block, then records: one for each entry, and behind the last one a mark. Torn and corrupt are told apart. A crash can only harm what was being
//! written last; each record says how far the log was durable when it was made, so a record that does not check is *torn* only if nothing behind it
//! says that it was durable. The mark says so of everything before it, unsynced, so that even the last entry can't rot away unnoticed. The next entry
//! is written over it: a record costs one sync, not two.

use openraft::LogId;

use super::codec::{self, CodecError, Reader};
use super::{ConsensusId, Entry};
use crate::limits::{self, BLOCK};

/// Kinds of our files in the header block; 1 to 8 are those of the store.
pub const KIND_LOG: u16 = 9;
/// The file of the votes.
pub const KIND_VOTE: u16 = 10;
/// The file of the committed index.
pub const KIND_COMMITTED: u16 = 11;
/// A snapshot.
pub const KIND_SNAPSHOT: u16 = 12;

const VERSION: u16 = 1;
const MAGIC: &[u8; 8] = b"CORELANE";
/// Length, checksum, sequence, durable sequence.
const RECORD_HEADER: usize = 24;
const ENTRY: u8 = 0;
const MARK: u8 = 1;

/// Whose file it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// UUID of the cluster.
    pub cluster: [u8; 16],
    /// The node's id in the consensus: of this life.
    pub id: ConsensusId,
}

/// A file that is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// The header block is not there whole.
    #[error("it has {actual} bytes, its header alone has {BLOCK}")]
    TooShort {
        /// Its length, bytes.
        actual: usize,
    },
    /// Not one of ours.
    #[error("magic and kind are {magic:02x?} {kind}, expected {MAGIC:02x?} {expected}")]
    Kind {
        /// The first bytes.
        magic: [u8; 8],
        /// The kind field.
        kind: u16,
        /// What it should be.
        expected: u16,
    },
    /// Something in it does not check.
    #[error("its {what} is damaged: the checksum is {actual:08x}, its bytes give {expected:08x}")]
    Checksum {
        /// Which part.
        what: &'static str,
        /// The one computed.
        expected: u32,
        /// The one found.
        actual: u32,
    },
    /// A newer format.
    #[error("it has format {actual}, this version reads {VERSION}; start a newer one")]
    Version {
        /// Its format version.
        actual: u16,
    },
    /// Of another node or cluster, or of an earlier life of this node.
    #[error("it belongs to node {:016x} of cluster {}, not to {:016x} of {}", actual.id, uuid::Uuid::from_bytes(actual.cluster), expected.id, uuid::Uuid::from_bytes(expected.cluster))]
    Owner {
        /// Who opens it.
        expected: Owner,
        /// Whose it is.
        actual: Owner,
    },
    /// A record does not check although it was durable.
    #[error("entry {sequence} at byte {position} is missing or does not check, but record {later} says that it was durable")]
    Corrupt {
        /// Which entry.
        sequence: u64,
        /// Where it starts.
        position: usize,
        /// The record behind it.
        later: u64,
    },
    /// A file with a successor was synced before that came, and must be whole.
    #[error("entry {sequence} at byte {position} is missing or does not check, but a later file is there")]
    Cut {
        /// Which entry.
        sequence: u64,
        /// Where it starts.
        position: usize,
    },
    /// A record checks but can't be read.
    #[error("the {what} at byte {position}: {source}")]
    Content {
        /// What it is.
        what: &'static str,
        /// Where it starts.
        position: usize,
        /// Why.
        source: CodecError,
    },
}

/// The header of a file of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogHeader {
    /// Whose it is.
    pub owner: Owner,
    /// The entry before its first one; `None` if it begins with entry 0.
    pub previous: Option<LogId<ConsensusId>>,
    /// It begins anew behind a snapshot: earlier files count for nothing, whatever they end with.
    pub anew: bool,
}

impl LogHeader {
    /// Index of the first entry.
    pub fn first(&self) -> u64 {
        self.previous.map_or(0, |id| id.index + 1)
    }
}

/// A file of the log, read.
#[derive(Clone, PartialEq, Debug)]
pub struct LogFile {
    /// Its header.
    pub header: LogHeader,
    /// Its entries, with where each begins.
    pub entries: Vec<(usize, Entry)>,
    /// Length of the valid part without the mark, bytes.
    pub end: usize,
    /// Bytes behind it that were never acknowledged, to be cut.
    pub torn: usize,
}

/// A header block of a kind, with `fields` from byte 16.
pub fn encode_block(kind: u16, fields: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(MAGIC);
    block[8..10].copy_from_slice(&kind.to_le_bytes());
    block[10..12].copy_from_slice(&VERSION.to_le_bytes());
    block[16..16 + fields.len()].copy_from_slice(fields);
    let crc = crc32fast::hash(&block);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
    block
}

/// The fields of a header block of this kind, from byte 16.
pub fn decode_block(kind: u16, bytes: &[u8]) -> Result<Reader<'_>, FormatError> {
    let block = bytes.get(..BLOCK).ok_or(FormatError::TooShort { actual: bytes.len() })?;
    let (magic, found) = (array(block, 0), u16::from_le_bytes(array(block, 8)));
    if &magic != MAGIC || found != kind {
        return Err(FormatError::Kind { magic, kind: found, expected: kind });
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..12]);
    hasher.update(&[0; 4]);
    hasher.update(&block[16..]);
    let (expected, actual) = (hasher.finalize(), u32::from_le_bytes(array(block, 12)));
    if expected != actual {
        return Err(FormatError::Checksum { what: "header", expected, actual });
    }
    match u16::from_le_bytes(array(block, 10)) {
        VERSION => Ok(Reader::new(&block[16..])),
        actual => Err(FormatError::Version { actual }),
    }
}

/// Appends an owner.
pub fn put_owner(out: &mut Vec<u8>, owner: &Owner) {
    out.extend_from_slice(&owner.cluster);
    out.extend_from_slice(&owner.id.to_le_bytes());
}

/// Reads an owner and holds it against the one that opens the file.
pub fn check_owner(reader: &mut Reader<'_>, expected: Owner) -> Result<(), FormatError> {
    let content = |source| FormatError::Content { what: "owner", position: 16, source };
    let actual = Owner { cluster: reader.uuid().map_err(content)?, id: reader.u64().map_err(content)? };
    if actual != expected {
        return Err(FormatError::Owner { expected, actual });
    }
    Ok(())
}

/// The header block of a file of the log.
pub fn encode_header(header: &LogHeader) -> [u8; BLOCK] {
    let mut fields = Vec::new();
    put_owner(&mut fields, &header.owner);
    fields.push(u8::from(header.anew));
    codec::put_some_log_id(&mut fields, header.previous.as_ref());
    encode_block(KIND_LOG, &fields)
}

/// Reads the header block of a file of the log.
pub fn decode_header(bytes: &[u8], owner: Owner) -> Result<LogHeader, FormatError> {
    let mut reader = decode_block(KIND_LOG, bytes)?;
    check_owner(&mut reader, owner)?;
    let mut read = || Ok((reader.bool()?, codec::read_some_log_id(&mut reader)?));
    let (anew, previous) = read().map_err(|source| FormatError::Content { what: "header", position: 40, source })?;
    Ok(LogHeader { owner, previous, anew })
}

/// Appends the record of an entry. `durable`: how many entries, from 0, were on disk when it was made.
pub fn put_entry_record(out: &mut Vec<u8>, entry: &Entry, durable: u64) {
    let mut body = vec![ENTRY];
    codec::put_entry(&mut body, entry);
    put_record(out, entry.log_id.index, durable, &body);
}

/// The record that says that all before `next` is durable.
pub fn mark_record(next: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_record(&mut out, next, next, &[MARK]);
    out
}

fn put_record(out: &mut Vec<u8>, sequence: u64, durable: u64, body: &[u8]) {
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&record_crc(sequence, durable, body).to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&durable.to_le_bytes());
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// Reads a whole file of the log. `is_last`: no other follows it, so that its end may be torn.
pub fn decode_log(bytes: &[u8], owner: Owner, is_last: bool) -> Result<LogFile, FormatError> {
    let header = decode_header(bytes, owner)?;
    let (mut entries, mut position) = (Vec::new(), BLOCK);
    loop {
        let sequence = header.first() + entries.len() as u64;
        let record = record_at(bytes, position).filter(|record| record.sequence == sequence);
        let Some(record) = record else {
            check_torn(bytes, position, sequence)?;
            let torn = bytes.len() - position;
            if !is_last && torn > 0 {
                return Err(FormatError::Cut { sequence, position });
            }
            return Ok(LogFile { header, entries, end: position, torn });
        };
        let content = |source| FormatError::Content { what: "record", position, source };
        let mut reader = Reader::new(record.body);
        match reader.u8().map_err(content)? {
            MARK => {
                // Nothing stands behind a mark. It is no loss: what counts comes before it.
                check_torn(bytes, record.end, sequence)?;
                return Ok(LogFile { header, entries, end: position, torn: bytes.len() - record.end });
            }
            ENTRY => {
                let entry = codec::read_entry(&mut reader).map_err(content)?;
                reader.end().map_err(content)?;
                if entry.log_id.index != sequence {
                    return Err(content(CodecError::Invalid("its entry has another index than the record")));
                }
                entries.push((position, entry));
            }
            _ => return Err(content(CodecError::Invalid("a record of a kind that this version does not know"))),
        }
        position = record.end;
    }
}

struct Record<'a> {
    sequence: u64,
    durable: u64,
    body: &'a [u8],
    end: usize,
}

/// The record that starts here, if it checks. Padding included: it is part of what was written.
fn record_at(bytes: &[u8], position: usize) -> Option<Record<'_>> {
    let header = bytes.get(position..position.checked_add(RECORD_HEADER)?)?;
    let length = u32::from_le_bytes(array(header, 0)) as usize;
    if length == 0 || length > limits::MAX_CONSENSUS_ENTRY {
        return None;
    }
    let body_end = position + RECORD_HEADER + length;
    let end = body_end.next_multiple_of(8);
    let body = bytes.get(position + RECORD_HEADER..body_end)?;
    let padding = bytes.get(body_end..end)?;
    let (sequence, durable) = (u64::from_le_bytes(array(header, 8)), u64::from_le_bytes(array(header, 16)));
    let checks = u32::from_le_bytes(array(header, 4)) == record_crc(sequence, durable, body) && padding.iter().all(|b| *b == 0);
    checks.then_some(Record { sequence, durable, body, end })
}

/// Looks behind a record that does not check for one that says that it was durable. Its length can't be believed, so every position is tried; numbers that can't be skip
/// the checksum.
fn check_torn(bytes: &[u8], position: usize, sequence: u64) -> Result<(), FormatError> {
    let most = sequence.saturating_add((bytes.len().saturating_sub(position) / RECORD_HEADER) as u64);
    for at in (position..bytes.len().saturating_sub(RECORD_HEADER - 1)).step_by(8) {
        let (number, durable) = (u64::from_le_bytes(array(bytes, at + 8)), u64::from_le_bytes(array(bytes, at + 16)));
        if (sequence..=most).contains(&number)
            && durable > sequence
            && let Some(later) = record_at(bytes, at)
        {
            return Err(FormatError::Corrupt { sequence, position, later: later.sequence.max(later.durable) });
        }
    }
    Ok(())
}

fn record_crc(sequence: u64, durable: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&durable.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the range has N bytes")
}
