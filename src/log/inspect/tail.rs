//! What a partition is after the journal, computed without placing a byte: every batch in the journal is checked on the way.

use std::collections::BTreeMap;

use crate::batch::{BatchHeader, BatchIter, HEADER_LEN, check_stored};
use crate::checksum::running_hash;
use crate::log::checkpoint::PartitionState;
use crate::log::damage::{Damage, DamageKind};
use crate::log::files::{FileError, ReadFiles, len_if_exists};
use crate::log::installation::Installation;
use crate::log::journal::{Adopt, EntryHeader, EntryKind, LargeReference, SegmentOpen};
use crate::log::paths;
use crate::log::recovery::BatchCheck;
use crate::log::replacement::{Replacement, replaced};
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::log::segment_walk::{Found, Pieces};
use crate::types::Offset;

/// Where an entry was found.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) file: String,
    pub(super) offset: u64,
    /// The checkpoint has seen it.
    pub(super) seen: bool,
    /// It, and what it refers to, was known durable.
    pub(super) durable: bool,
}

/// A large batch whose middle is in the segment only.
struct Reference {
    segment: Offset,
    position: u64,
    reference: LargeReference,
    head: Vec<u8>,
    tail: Vec<u8>,
    durable: bool,
}

/// One partition on its way through the journal.
pub(super) struct Tail {
    pub(super) state: PartitionState,
    references: Vec<Reference>,
    /// Headers of batches in the journal whose bytes may not be in the segment yet, by segment and position.
    pub(super) headers: BTreeMap<(Offset, u64), [u8; HEADER_LEN]>,
    /// Segment, number in the temporary file's name, whether it was known durable.
    adopted: Vec<(Offset, u64, bool)>,
    /// Nothing after this is looked at: damage, or a batch that never got durable.
    stopped: bool,
    pub(super) damage: Vec<Damage>,
    pub(super) ambiguous: Vec<Damage>,
}

type Checked = Result<(), (DamageKind, String)>;

impl Tail {
    pub(super) fn new(state: PartitionState) -> Tail {
        Tail {
            state,
            references: Vec::new(),
            headers: BTreeMap::new(),
            adopted: Vec::new(),
            stopped: false,
            damage: Vec::new(),
            ambiguous: Vec::new(),
        }
    }

    /// Nothing more is known of the partition from here on.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn take(&mut self, entry: &EntryHeader, payload: &[u8], place: &Place) {
        if self.stopped {
            return;
        }
        self.note_headers(entry, payload);
        let checked = if place.seen { self.seen(entry, payload) } else { self.follow(entry, payload, place) };
        if let Err((kind, detail)) = checked {
            let detail = format!("{:?} of {}: {detail}", entry.kind, self.state.partition);
            self.damage.push(Damage::new(&*place.file, place.offset, kind, detail));
            self.stopped |= !place.seen;
        }
    }

    /// Notes where which batch begins, as far as the segment may not have it.
    fn note_headers(&mut self, entry: &EntryHeader, payload: &[u8]) {
        let mut position = entry.position.saturating_add(u64::from(entry.carried));
        let flushed = (self.state.flushed_segment, self.state.flushed_position);
        match entry.kind {
            EntryKind::Append if (entry.segment, entry.position.saturating_add(payload.len() as u64)) > flushed => {
                for (_, batch) in BatchIter::new(&payload[entry.carried as usize..]).flatten() {
                    if let Some(header) = batch.first_chunk() {
                        self.headers.insert((entry.segment, position), *header);
                    }
                    position += batch.len() as u64;
                }
            }
            EntryKind::LargeReference => {
                if let Ok((reference, _)) = LargeReference::decode(entry, payload) {
                    self.headers.insert((entry.segment, position), reference.header);
                }
            }
            EntryKind::Restart | EntryKind::PartitionDropped => self.headers.clear(),
            EntryKind::Truncate => self.headers.retain(|at, _| *at < (entry.segment, entry.position)),
            _ => {}
        }
    }

    /// An entry that the checkpoint has seen: its bytes are checked, the state has it.
    fn seen(&mut self, entry: &EntryHeader, payload: &[u8]) -> Checked {
        match entry.kind {
            EntryKind::Append => check_batches(&payload[entry.carried as usize..], |_, _| Ok(())),
            EntryKind::LargeReference => self.refer(entry, payload, true).map(drop),
            EntryKind::Restart | EntryKind::PartitionDropped => {
                self.references.clear();
                Ok(())
            }
            EntryKind::Truncate => {
                self.references.retain(|reference| (reference.segment, reference.position) < (entry.segment, entry.position));
                Ok(())
            }
            EntryKind::Adopt => {
                let adopt = Adopt::decode(payload).map_err(|error| (DamageKind::Entry, error.to_string()))?;
                self.adopted.push((entry.segment, adopt.id, true));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn follow(&mut self, entry: &EntryHeader, payload: &[u8], place: &Place) -> Checked {
        match entry.kind {
            EntryKind::Append => {
                let (mut hash, mut next, mut bytes) = (self.state.running_hash, self.state.log_end, 0);
                check_batches(&payload[entry.carried as usize..], |header, batch| {
                    if header.base_offset < next {
                        return Err((DamageKind::Continuity, format!("batch offset {}, expected {next}", header.base_offset)));
                    }
                    hash = running_hash(hash, &batch[..HEADER_LEN]);
                    next = header.next_offset();
                    bytes += batch.len() as u64;
                    Ok(())
                })?;
                self.advance(entry, hash, next, bytes)
            }
            EntryKind::LargeReference => {
                let reference = self.refer(entry, payload, place.durable)?;
                let hash = running_hash(self.state.running_hash, &reference.header);
                let header = parse(&reference.header)?;
                self.advance(entry, hash, header.next_offset(), u64::from(reference.batch_len))
            }
            EntryKind::Adopt => {
                let adopt = Adopt::decode(payload).map_err(|error| (DamageKind::Entry, error.to_string()))?;
                let header = parse(&adopt.header)?;
                self.adopted.push((entry.segment, adopt.id, place.durable));
                self.drop_empty(entry.segment);
                let hash = running_hash(self.state.running_hash, &adopt.header);
                self.state.segments.push(SegmentInfo { adopted: true, ..SegmentInfo::new(entry.segment, 0, self.state.running_hash) });
                self.advance(entry, hash, header.next_offset(), header.total_len() as u64)?;
                self.seal();
                Ok(())
            }
            EntryKind::Install => self.install(entry, payload),
            EntryKind::SegmentOpen => {
                let open = SegmentOpen::decode(payload).map_err(|error| (DamageKind::Entry, error.to_string()))?;
                self.drop_empty(entry.segment);
                self.state.segments.push(SegmentInfo::new(entry.segment, open.rewrite_generation, self.state.running_hash));
                Ok(())
            }
            EntryKind::SegmentSeal => {
                self.seal();
                Ok(())
            }
            EntryKind::Truncate => {
                self.truncate(entry);
                Ok(())
            }
            EntryKind::Restart => {
                self.references.clear();
                self.state.segments.clear();
                let at = entry.end_offset;
                (self.state.log_start, self.state.log_end) = (at, at);
                (self.state.flushed_segment, self.state.flushed_position) = (at, 0);
                self.state.running_hash = entry.running_hash;
                Ok(())
            }
            EntryKind::LogStart => {
                self.state.log_start = self.state.log_start.max(entry.base_offset);
                let start = self.state.log_start;
                self.state.segments.retain(|segment| !segment.sealed || segment.end_offset > start);
                Ok(())
            }
            EntryKind::FlushedTo => {
                let flushed = (self.state.flushed_segment, self.state.flushed_position).max((entry.segment, entry.position));
                (self.state.flushed_segment, self.state.flushed_position) = flushed;
                Ok(())
            }
            EntryKind::PartitionDropped => {
                self.references.clear();
                self.state = PartitionState::new(self.state.partition);
                Ok(())
            }
            EntryKind::Replace => {
                let new = Replacement::decode(payload).map_err(|error| (DamageKind::Entry, error.to_string()))?.segment(entry);
                let range = replaced(self.state.segments.iter(), &new).map_err(|what| (DamageKind::Continuity, what))?;
                self.references.retain(|reference| !(new.base_offset..new.end_offset).contains(&reference.segment));
                self.headers.retain(|(segment, _), _| !(new.base_offset..new.end_offset).contains(segment));
                if !range.is_empty() {
                    self.state.segments.splice(range, [new]);
                }
                Ok(())
            }
            EntryKind::Carry | EntryKind::Epoch | EntryKind::Checkpoint | EntryKind::DurableMark => Ok(()),
        }
    }

    fn install(&mut self, entry: &EntryHeader, payload: &[u8]) -> Checked {
        let installation = Installation::decode(payload).map_err(|error| (DamageKind::Entry, error.to_string()))?;
        let new = installation.segment(entry);
        self.drop_empty(new.base_offset);
        if new.base_offset != self.state.log_end || new.end_offset != entry.end_offset {
            let detail = format!("offsets {}..{}, the log ends at {}", new.base_offset, new.end_offset, self.state.log_end);
            return Err((DamageKind::Continuity, detail));
        }
        if !new.is_rewritten() && installation.hash_before != self.state.running_hash {
            let detail = format!("running hash {:016x}, expected {:016x}", self.state.running_hash, installation.hash_before);
            return Err((DamageKind::RunningHash, detail));
        }
        self.state.segments.push(new);
        (self.state.log_end, self.state.running_hash) = (new.end_offset, new.running_hash);
        (self.state.flushed_segment, self.state.flushed_position) = (new.base_offset, new.valid_end);
        Ok(())
    }

    fn advance(&mut self, entry: &EntryHeader, hash: u64, next: Offset, bytes: u64) -> Checked {
        if entry.base_offset != self.state.log_end || next != entry.end_offset {
            let detail = format!("offsets {}..{next}, expected {}..{}", entry.base_offset, self.state.log_end, entry.end_offset);
            return Err((DamageKind::Continuity, detail));
        }
        if hash != entry.running_hash {
            return Err((DamageKind::RunningHash, format!("running hash {hash:016x}, expected {:016x}", entry.running_hash)));
        }
        let Some(last) = self.state.segments.last_mut().filter(|last| last.base_offset == entry.segment) else {
            return Err((DamageKind::Continuity, format!("segment {} is not the open one", entry.segment)));
        };
        last.valid_end += bytes;
        last.end_offset = next;
        last.running_hash = hash;
        (self.state.log_end, self.state.running_hash) = (next, hash);
        Ok(())
    }

    /// An empty segment gives way to one of the same name.
    fn drop_empty(&mut self, base: Offset) {
        self.state.segments.pop_if(|last| last.base_offset == base && last.end_offset == base);
    }

    fn seal(&mut self) {
        if let Some(last) = self.state.segments.last_mut() {
            last.sealed = true;
        }
    }

    fn truncate(&mut self, entry: &EntryHeader) {
        self.references.retain(|reference| (reference.segment, reference.position) < (entry.segment, entry.position));
        self.adopted.retain(|(segment, ..)| *segment < entry.segment);
        self.state.segments.retain(|segment| segment.base_offset <= entry.segment);
        if let Some(last) = self.state.segments.last_mut() {
            *last = SegmentInfo {
                end_offset: entry.end_offset,
                valid_end: entry.position,
                running_hash: entry.running_hash,
                sealed: false,
                adopted: false,
                ..*last
            };
        }
        let block = entry.position / crate::limits::BLOCK as u64 * crate::limits::BLOCK as u64;
        let flushed = (self.state.flushed_segment, self.state.flushed_position).min((entry.segment, block));
        (self.state.flushed_segment, self.state.flushed_position) = flushed;
        (self.state.log_end, self.state.running_hash) = (entry.end_offset, entry.running_hash);
    }

    fn refer(&mut self, entry: &EntryHeader, payload: &[u8], durable: bool) -> Result<LargeReference, (DamageKind, String)> {
        let (reference, ends) = LargeReference::decode(entry, payload).map_err(|error| (DamageKind::Entry, error.to_string()))?;
        self.references.push(Reference {
            segment: entry.segment,
            position: entry.position + u64::from(entry.carried),
            reference,
            head: ends.carried_and_head[entry.carried as usize..].to_vec(),
            tail: ends.tail.to_vec(),
            durable,
        });
        Ok(reference)
    }

    /// Reads what the journal refers to and is not known to be flushed. Returns the bytes read.
    pub(super) fn read_references(&mut self, files: &mut impl ReadFiles) -> Result<u64, FileError> {
        let mut read = 0;
        let flushed = (self.state.flushed_segment, self.state.flushed_position);
        for Reference { segment, position, reference, head, tail, durable } in std::mem::take(&mut self.references) {
            let end = position + u64::from(reference.batch_len);
            let known = self.state.segments.iter().any(|info| info.base_offset == segment && info.valid_end >= end);
            if (segment, end) <= flushed || !known {
                continue;
            }
            let path = paths::segment(self.state.partition, segment);
            let mut check = BatchCheck::new();
            check.update(&head);
            if len_if_exists(files, &path)?.is_some() {
                let mut pieces = Pieces::open(files, &path)?;
                let middle = u64::from(reference.batch_len) - (head.len() + tail.len()) as u64;
                pieces.each(position + head.len() as u64, middle, |bytes| check.update(bytes))?;
                read += pieces.read;
            }
            check.update(&tail);
            if let Err(detail) = check.finish(&reference) {
                let list = if durable { &mut self.damage } else { &mut self.ambiguous };
                list.push(Damage::new(path, position, DamageKind::Batch, detail));
            }
        }
        for (segment, id, durable) in std::mem::take(&mut self.adopted) {
            let Some(info) = self.state.segments.iter().find(|info| info.base_offset == segment && info.adopted) else { continue };
            if (segment, info.valid_end) <= flushed {
                continue;
            }
            // As recovery does: a temporary file takes the name, whatever has it.
            let temporary = paths::adopted(self.state.partition, id);
            let path = match len_if_exists(files, &temporary)? {
                Some(_) => temporary,
                None => paths::segment(self.state.partition, segment),
            };
            let mut wrong = None;
            if len_if_exists(files, &path)?.is_some() {
                let mut pieces = Pieces::open(files, &path)?;
                match pieces.batch(FIRST_POSITION, info.valid_end)? {
                    Found::Batch(found) if found.0.base_offset == segment => {}
                    Found::Batch(found) => wrong = Some(format!("a batch of offset {}, expected {segment}", found.0.base_offset)),
                    Found::Damaged(_, detail) | Found::Nothing(detail) => wrong = Some(detail),
                }
                read += pieces.read;
            } else {
                wrong = Some("an adopted batch is not there".into());
            }
            if let Some(detail) = wrong {
                let list = if durable { &mut self.damage } else { &mut self.ambiguous };
                list.push(Damage::new(path, FIRST_POSITION, DamageKind::Batch, detail));
            }
        }
        Ok(read)
    }
}

fn parse(header: &[u8]) -> Result<BatchHeader, (DamageKind, String)> {
    BatchHeader::parse(header).map_err(|error| (DamageKind::Batch, error.to_string()))
}

fn check_batches(bytes: &[u8], mut each: impl FnMut(&BatchHeader, &[u8]) -> Checked) -> Checked {
    for batch in BatchIter::new(bytes) {
        let checked = batch.and_then(|(header, bytes)| check_stored(bytes).map(|_| (header, bytes)));
        let (header, bytes) = checked.map_err(|error| (DamageKind::Batch, error.to_string()))?;
        each(&header, bytes)?;
    }
    Ok(())
}
