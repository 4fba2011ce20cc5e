//! Single files, looked at without knowing anything else of the store.

use crate::batch::BatchHeader;
use crate::limits::{BLOCK, MAX_JOURNAL};
use crate::log::checkpoint::CheckpointBody;
use crate::log::damage::{Damage, DamageKind};
use crate::log::file_header::{self, CheckpointHeader, IndexHeader, JournalHeader, SegmentHeader};
use crate::log::files::{FileError, ReadFiles, read_blocks};
use crate::log::index::{INDEX_ENTRY_LEN, IndexEntry, entry_position};
use crate::log::journal::{self, Entries, EntryHeader, GroupHeader};
use crate::log::recovery::read_checkpoint;
use crate::log::segment::FIRST_POSITION;
use crate::log::segment_walk::{Found, Pieces};
use crate::types::Offset;

/// A batch in a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchLine {
    /// Where it starts in the file.
    pub position: u64,
    /// Its header.
    pub header: BatchHeader,
    /// What is wrong with it.
    pub error: Option<String>,
}

/// What a segment's file holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentSummary {
    /// Whose segment it is, if its header can be read.
    pub header: Option<SegmentHeader>,
    /// Batches that check.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Position after the last batch. Where the log really ends is what checkpoint and journal say.
    pub end: u64,
    /// Offset after the last batch.
    pub next_offset: Offset,
    /// Length of the file.
    pub len: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

/// Walks over a segment's batches. Behind bytes that are none it looks for the next batch that checks.
///
/// # Errors
/// When the file can't be read.
pub fn inspect_segment(files: &mut impl ReadFiles, path: &str, each: &mut dyn FnMut(&BatchLine)) -> Result<SegmentSummary, FileError> {
    let mut pieces = Pieces::open(files, path)?;
    let mut damage = Vec::new();
    let mut block = vec![0; BLOCK];
    let have = pieces.copy(0, &mut block)?;
    let header = match file_header::decode::<SegmentHeader>(&block[..have]) {
        Ok(header) => Some(header),
        Err(error) => {
            damage.push(Damage::new(path, 0, DamageKind::Header, error));
            None
        }
    };
    let len = pieces.len();
    let mut summary = SegmentSummary {
        header,
        batches: 0,
        records: 0,
        end: FIRST_POSITION,
        next_offset: header.map_or(0, |header| header.base_offset),
        len,
        damage,
    };
    let mut at = FIRST_POSITION;
    while at < len {
        let (line, total) = match pieces.batch(at, len)? {
            Found::Batch(found) => (BatchLine { position: at, header: found.0, error: None }, found.0.total_len() as u64),
            Found::Damaged(found, error) => {
                summary.damage.push(Damage::new(path, at, DamageKind::Batch, &error));
                (BatchLine { position: at, header: found.0, error: Some(error) }, found.0.total_len() as u64)
            }
            Found::Nothing(error) => {
                let Some(nonzero) = pieces.first_nonzero(at, len)? else { break };
                let next = next_batch(&mut pieces, nonzero + 1, summary.next_offset)?;
                let until = next.unwrap_or(len);
                let detail = format!("bytes {at}..{until} are no batch: {error}");
                summary.damage.push(Damage::new(path, at, DamageKind::Batch, detail));
                at = until;
                continue;
            }
        };
        if line.header.base_offset < summary.next_offset {
            let detail = format!("a batch of offset {}, expected at least {}", line.header.base_offset, summary.next_offset);
            summary.damage.push(Damage::new(path, at, DamageKind::Continuity, detail));
        }
        each(&line);
        summary.batches += u64::from(line.error.is_none());
        summary.records += if line.error.is_none() { u64::try_from(line.header.record_count).unwrap_or(0) } else { 0 };
        summary.next_offset = line.header.next_offset().max(summary.next_offset);
        at += total;
        summary.end = at;
    }
    Ok(summary)
}

/// The next position at which a batch starts that checks and does not go back in offsets.
fn next_batch<F: ReadFiles>(pieces: &mut Pieces<'_, F>, from: u64, next_offset: Offset) -> Result<Option<u64>, FileError> {
    let len = pieces.len();
    for at in from..len {
        // The magic is the cheapest thing to ask for.
        if pieces.at(at + 16)?.first() != Some(&2) {
            continue;
        }
        if let Found::Batch(found) = pieces.batch(at, len)?
            && found.0.base_offset >= next_offset
        {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// What an index file holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexSummary {
    /// Whose index it is, if its header can be read.
    pub header: Option<SegmentHeader>,
    /// Entries that check, up to the first blank one.
    pub entries: Vec<IndexEntry>,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

/// Reads an index up to its first blank entry. `base_offset`: the one in its name, for when the header can't be read.
///
/// # Errors
/// When the file can't be read.
pub fn inspect_index(files: &mut impl ReadFiles, path: &str, base_offset: Offset) -> Result<IndexSummary, FileError> {
    let len = files.len(path)?;
    // A segment's positions have 32 bits: no index is longer than one with an entry for each 61 bytes, and this is far below it.
    let bytes = read_blocks(files, path, 0, len.min(1 << 30) as usize)?;
    let mut damage = Vec::new();
    let header = match file_header::decode::<IndexHeader>(&bytes) {
        Ok(header) => Some(header.0),
        Err(error) => {
            damage.push(Damage::new(path, 0, DamageKind::Header, error));
            None
        }
    };
    let base = header.map_or(base_offset, |header| header.base_offset);
    let mut entries: Vec<IndexEntry> = Vec::new();
    for (number, bytes) in bytes.get(BLOCK..).unwrap_or_default().chunks(INDEX_ENTRY_LEN).enumerate() {
        if bytes.iter().all(|byte| *byte == 0) {
            break;
        }
        let at = entry_position(number);
        match IndexEntry::decode(bytes, base) {
            Ok(entry) => {
                if entries.last().is_some_and(|last| entry.offset <= last.offset || entry.position <= last.position) {
                    damage.push(Damage::new(path, at, DamageKind::Index, format!("{entry:?} is not after the one before it")));
                }
                entries.push(entry);
            }
            Err(error) => damage.push(Damage::new(path, at, DamageKind::Index, error)),
        }
    }
    Ok(IndexSummary { header, entries, damage })
}

/// A group in a journal file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupLine {
    /// Its header.
    pub header: GroupHeader,
    /// Its entries.
    pub entries: Vec<EntryLine>,
}

/// An entry of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryLine {
    /// Its header.
    pub header: EntryHeader,
}

/// What a journal file holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalSummary {
    /// Its identity, if its header can be read.
    pub header: Option<JournalHeader>,
    /// Groups that check, of whatever generation.
    pub groups: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

/// Lists the groups in a journal file, of all generations and laps.
///
/// # Errors
/// When the file can't be read.
pub fn inspect_journal(files: &mut impl ReadFiles, path: &str, each: &mut dyn FnMut(&GroupLine)) -> Result<JournalSummary, FileError> {
    let bytes = read_blocks(files, path, 0, MAX_JOURNAL as usize)?;
    let mut summary = JournalSummary { header: None, groups: 0, damage: Vec::new() };
    match file_header::decode::<JournalHeader>(&bytes) {
        Ok(header) => summary.header = Some(header),
        Err(error) => summary.damage.push(Damage::new(path, 0, DamageKind::Header, error)),
    }
    let mut at = BLOCK;
    while at < bytes.len() {
        at += match journal::parse_group(&bytes[at..]) {
            Ok((header, _)) if header.position != at as u64 => BLOCK,
            Ok((header, group)) => {
                each(&group_line(header, group, path, at as u64, &mut summary.damage));
                summary.groups += 1;
                header.space()
            }
            Err(error) => {
                if journal::peek_group(&bytes[at..]).is_some_and(|header| header.position == at as u64) {
                    summary.damage.push(Damage::new(path, at as u64, DamageKind::Group, format!("torn or damaged: {error}")));
                }
                BLOCK
            }
        };
    }
    Ok(summary)
}

fn group_line(header: GroupHeader, group: &[u8], path: &str, at: u64, damage: &mut Vec<Damage>) -> GroupLine {
    let mut entries = Vec::new();
    for entry in Entries::new(group) {
        match entry {
            Ok((header, _)) => entries.push(EntryLine { header }),
            Err(error) => damage.push(Damage::new(path, at, DamageKind::Entry, error)),
        }
    }
    GroupLine { header, entries }
}

/// A checkpoint, or what is wrong with it.
///
/// # Errors
/// When the file can't be read.
pub fn inspect_checkpoint(files: &mut impl ReadFiles, path: &str) -> Result<Result<(CheckpointHeader, CheckpointBody), Damage>, FileError> {
    Ok(read_checkpoint(files, path)?.map_err(|error| Damage::new(path, 0, DamageKind::Checkpoint, error)))
}
