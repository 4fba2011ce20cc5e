//! The journal files as they were found: which groups of the last generation are in them, and which of those count.

use crate::limits::{BLOCK, MAX_JOURNAL};
use crate::log::damage::{Damage, DamageKind};
use crate::log::file_header::{self, GenerationRecord, HeaderError, JournalHeader};
use crate::log::files::{BlockBuffer, FileError, ReadFiles, list_sorted, read_blocks};
use crate::log::journal::{self, GroupError, GroupHeader};
use crate::log::paths;

/// A journal file, read whole.
#[derive(Debug)]
pub(crate) struct JournalFile {
    pub(crate) id: u64,
    pub(crate) path: String,
    pub(crate) bytes: BlockBuffer,
    /// Whether it can be used again: its header is right and it is as long as that says.
    pub(crate) header: Result<JournalHeader, HeaderError>,
}

impl JournalFile {
    /// A file whose making was interrupted: no group was ever written to it.
    pub(crate) fn is_unfinished(&self) -> bool {
        let blank = self.bytes.iter().take(BLOCK).all(|byte| *byte == 0);
        let len = self.bytes.len() as u64;
        let short = len < BLOCK as u64 || self.header.as_ref().is_ok_and(|header| len < header.size);
        (blank || short) && !self.holds_group()
    }

    /// Whether anything in it looks like a group, of whatever generation.
    pub(crate) fn holds_group(&self) -> bool {
        self.bytes.chunks(BLOCK).any(|block| journal::peek_group(block).is_some())
    }
}

/// A group that checks and is of the last generation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundGroup {
    /// Index of the file.
    pub(crate) file: usize,
    pub(crate) header: GroupHeader,
    pub(crate) checksum: u32,
}

/// A block that looks like the start of a group of the last generation and does not check.
#[derive(Clone, Debug)]
pub(crate) struct Suspect {
    pub(crate) file: usize,
    pub(crate) position: u64,
    pub(crate) header: GroupHeader,
    pub(crate) error: String,
}

/// What all journal files together hold.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) files: Vec<JournalFile>,
    /// By shard.
    pub(crate) groups: Vec<Vec<FoundGroup>>,
    pub(crate) suspects: Vec<Suspect>,
}

/// Reads every journal file. Names that are not journal files are returned.
pub(crate) fn read_all(files: &mut impl ReadFiles) -> Result<(Vec<JournalFile>, Vec<String>), FileError> {
    let (mut journals, mut unknown) = (Vec::new(), Vec::new());
    for entry in list_sorted(files, paths::JOURNAL_DIR)? {
        let path = format!("{}/{}", paths::JOURNAL_DIR, entry.name);
        let id = paths::parse_journal(&entry.name).filter(|_| !entry.is_dir);
        let Some(id) = id else {
            unknown.push(path);
            continue;
        };
        if files.len(&path)? > MAX_JOURNAL {
            unknown.push(path);
            continue;
        }
        let bytes = read_blocks(files, &path, 0, MAX_JOURNAL as usize)?;
        let header = file_header::decode(&bytes);
        journals.push(JournalFile { id, path, bytes, header });
    }
    Ok((journals, unknown))
}

/// Finds the groups of a generation.
pub(crate) fn scan(files: Vec<JournalFile>, record: &GenerationRecord) -> Scan {
    let mut scan = Scan { files, groups: vec![Vec::new(); record.shards as usize], suspects: Vec::new() };
    for file in 0..scan.files.len() {
        let mut at = BLOCK;
        while at < scan.files[file].bytes.len() {
            at += scan.scan_block(file, at, record);
        }
    }
    scan
}

impl Scan {
    /// Looks for a group at one place and returns how far the next place is.
    fn scan_block(&mut self, file: usize, at: usize, record: &GenerationRecord) -> usize {
        let JournalFile { id, bytes, .. } = &self.files[file];
        let bytes = &bytes[at..];
        let Some(header) = journal::read_group_header(bytes) else { return BLOCK };
        let alike = [
            journal::peek_group(bytes).is_some(),
            header.generation == record.generation,
            header.salt == record.salt,
            header.file == *id,
            header.position == at as u64,
        ];
        let alike = alike.into_iter().filter(|same| *same).count();
        // One field may be damaged, or two: what shares the rest with us was meant to be a group.
        if alike < 3 || (header.generation != record.generation && header.salt != record.salt) {
            return BLOCK;
        }
        let error = match journal::parse_group(bytes) {
            Ok((header, group)) if alike == 5 => match self.groups.get_mut(usize::from(header.shard)) {
                Some(groups) => {
                    groups.push(FoundGroup { file, header, checksum: journal::stored_checksum(group) });
                    return header.space();
                }
                None => format!("a group of shard {}, the generation has {}", header.shard, record.shards),
            },
            // It checks, and belongs to another place, file or generation: a copy in somebody's payload.
            Ok(_) => return BLOCK,
            Err(error) => error.to_string(),
        };
        self.suspects.push(Suspect { file, position: at as u64, header, error });
        BLOCK
    }

    /// The exact bytes of a group.
    pub(crate) fn group(&self, group: &FoundGroup) -> Result<&[u8], GroupError> {
        let at = group.header.position as usize;
        self.files[group.file].bytes.get(at..at + group.header.length as usize).ok_or(GroupError::Length { length: group.header.length })
    }
}

/// Groups that must have been there and are not.
#[derive(Clone, Debug)]
pub(crate) struct Lost {
    /// The last one's sequence.
    pub(crate) last: u64,
    /// Number of groups of the chain before it.
    pub(crate) before: usize,
    /// Where and what.
    pub(crate) damage: Damage,
}

/// A group at the end of a shard's journal that was not written whole, or was and is damaged: nothing says that it was ever acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TornGroup {
    /// The shard that wrote it.
    pub shard: u32,
    /// Its sequence.
    pub sequence: u64,
    /// Where it is or should be.
    pub file: String,
    /// Where in that file, bytes.
    pub offset: u64,
    /// What is wrong with it.
    pub detail: String,
}

/// The groups of one shard that count, in order.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub(crate) groups: Vec<FoundGroup>,
    pub(crate) lost: Vec<Lost>,
    pub(crate) torn: Option<TornGroup>,
    /// Everything up to this sequence is known durable.
    pub(crate) durable: u64,
}

/// Follows sequence and previous checksum from `replay_from`; `checkpoint` is proven durable by the checkpoint.
pub(crate) fn chain(scan: &Scan, shard: u32, replay_from: u64, checkpoint: u64) -> Chain {
    let mut found: Vec<FoundGroup> = scan.groups[shard as usize].clone();
    found.sort_by_key(|group| group.header.sequence);
    let mut previous = found.iter().find(|group| group.header.sequence + 1 == replay_from).copied();
    found.retain(|group| group.header.sequence >= replay_from);

    let mut chain = Chain { durable: checkpoint, ..Chain::default() };
    let mut next = replay_from;
    for (at, group) in found.iter().enumerate() {
        let GroupHeader { sequence, previous_checksum, .. } = group.header;
        if sequence < next {
            continue;
        }
        let follows = previous.is_none_or(|previous| previous.checksum == previous_checksum);
        let linked = sequence > next || follows;
        if !linked && found.get(at + 1).is_some_and(|other| other.header.sequence == sequence) {
            continue;
        }
        if sequence > next || !linked {
            // Group `next` is gone: was it ever acknowledged?
            let proof = found[at..].iter().map(|later| later.header.durable_sequence).fold(checkpoint, u64::max);
            if proof < next {
                chain.torn = Some(torn(scan, shard, next, previous, group));
                return chain;
            }
            let last = if linked { sequence - 1 } else { sequence };
            chain.lost.push(lost(scan, shard, next, last, chain.groups.len(), previous));
        }
        next = sequence + 1;
        if linked {
            chain.durable = chain.durable.max(group.header.durable_sequence);
            chain.groups.push(*group);
        }
        previous = linked.then_some(*group);
    }
    if next <= checkpoint {
        chain.lost.push(lost(scan, shard, next, checkpoint, chain.groups.len(), previous));
    }
    if let Some(suspect) = suspect_after(scan, shard, next, previous) {
        chain.torn = Some(TornGroup {
            shard,
            sequence: next,
            file: scan.files[suspect.file].path.clone(),
            offset: suspect.position,
            detail: suspect.error.clone(),
        });
    }
    chain
}

/// What may be left of group `next`: it names the group before it, or a sequence that was never reached.
fn suspect_after(scan: &Scan, shard: u32, next: u64, previous: Option<FoundGroup>) -> Option<&Suspect> {
    scan.suspects.iter().find(|suspect| {
        let names_previous = previous.is_some_and(|previous| suspect.header.previous_checksum == previous.checksum);
        names_previous || (u32::from(suspect.header.shard) == shard && suspect.header.sequence >= next)
    })
}

/// Where a group that follows `previous` would be.
fn expected_place(scan: &Scan, previous: Option<FoundGroup>) -> (String, u64) {
    match previous {
        Some(previous) => (scan.files[previous.file].path.clone(), previous.header.position + previous.header.space() as u64),
        None => (paths::JOURNAL_DIR.into(), 0),
    }
}

fn torn(scan: &Scan, shard: u32, sequence: u64, previous: Option<FoundGroup>, later: &FoundGroup) -> TornGroup {
    let ((file, offset), mut detail) = match suspect_after(scan, shard, sequence, previous) {
        Some(suspect) => ((scan.files[suspect.file].path.clone(), suspect.position), suspect.error.clone()),
        None => (expected_place(scan, previous), format!("group {sequence} is not there")),
    };
    let header = later.header;
    detail += &format!("; group {} is there and knows groups up to {} durable", header.sequence, header.durable_sequence);
    TornGroup { shard, sequence, file, offset, detail }
}

fn lost(scan: &Scan, shard: u32, first: u64, last: u64, before: usize, previous: Option<FoundGroup>) -> Lost {
    let suspect = scan.suspects.iter().find(|suspect| {
        let names_previous = previous.is_some_and(|previous| suspect.header.previous_checksum == previous.checksum);
        names_previous || (u32::from(suspect.header.shard) == shard && (first..=last).contains(&suspect.header.sequence))
    });
    let (file, offset, why) = match suspect {
        Some(suspect) => (scan.files[suspect.file].path.clone(), suspect.position, suspect.error.clone()),
        None => {
            let (file, offset) = expected_place(scan, previous);
            (file, offset, "not found".into())
        }
    };
    let detail = format!("shard {shard}: durable groups {first} to {last} are lost: {why}");
    Lost { last, before, damage: Damage::new(file, offset, DamageKind::Group, detail) }
}
