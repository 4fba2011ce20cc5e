//! One partition's way from its checkpointed state to the end of the journal.
//!
//! Entries up to the checkpoint only place bytes. Entries after it are checked against the state (offsets, positions, running hash) and change it. The first one
//! that does not fit sets the partition aside: from there on nothing of it is touched.

mod cut;
mod install;

use std::collections::HashSet;

use self::cut::CutOff;
use super::batch_check::BatchCheck;
use super::index_tail::IndexTail;
use super::place::{Placement, block_start, check_header};
use super::{Checks, Fault, Source};
use crate::batch::{BatchHeader, BatchIter, HEADER_LEN};
use crate::checksum::running_hash;
use crate::limits::{BLOCK, MAX_PRODUCERS, SEGMENT_READ};
use crate::log::checkpoint::PartitionState;
use crate::log::damage::{Damage, DamageKind};
use crate::log::file_header::{self, SegmentHeader};
use crate::log::files::{BlockBuffer, StoreFiles, len_if_exists, list_sorted, read_blocks};
use crate::log::index::INDEX_ENTRY_LEN;
use crate::log::journal::{Adopt, EntryHeader, EntryKind, LargeEnds, LargeReference, SegmentOpen};
use crate::log::leader_epochs;
use crate::log::paths;
use crate::log::producers::ProducerTable;
use crate::log::replacement::{Replacement, replaced};
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::types::{Offset, Timestamp};

/// A batch in a segment that must prove itself before the replay ends.
#[derive(Debug)]
struct PendingReference {
    segment: Offset,
    position: u64,
    reference: LargeReference,
    head: Vec<u8>,
    tail: Vec<u8>,
    source: Source,
}

impl PendingReference {
    fn end(&self) -> u64 {
        self.position + u64::from(self.reference.batch_len)
    }
}

/// The replay of one partition.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) state: PartitionState,
    pub(super) placement: Placement,
    producers: ProducerTable,
    now_ms: Timestamp,
    pub(super) indexes: Vec<IndexTail>,
    references: Vec<PendingReference>,
    /// Running hash before the next entry, while the entries are those that the checkpoint has seen.
    seen_hash: Option<u64>,
    /// A segment was made from an adopted file: the directory needs a sync.
    pub(super) renamed: bool,
    /// Segments that the checkpoint has and that are not flushed whole.
    partial: Vec<Offset>,
    /// Index files that were written.
    pub(super) written: Vec<String>,
    /// The log ended at a batch that never got durable: what came after it counts for nothing.
    cut: bool,
    /// Groups were lost that may have held something of this partition.
    suspect: Option<Damage>,
    cut_off: CutOff,
}

impl Replay {
    pub(super) fn new(state: PartitionState, now_ms: Timestamp) -> Replay {
        let flushed = (state.flushed_segment, state.flushed_position);
        let partial = state.segments.iter().filter(|segment| (segment.base_offset, segment.valid_end) > flushed).map(|s| s.base_offset);
        Replay {
            partial: partial.collect(),
            placement: Placement::new(state.partition, flushed),
            producers: ProducerTable::restore(MAX_PRODUCERS, &state.producers, now_ms),
            state,
            now_ms,
            indexes: Vec::new(),
            references: Vec::new(),
            seen_hash: None,
            renamed: false,
            written: Vec::new(),
            cut: false,
            suspect: None,
            cut_off: CutOff::default(),
        }
    }

    /// Groups of the partition's shard are lost here.
    pub(super) fn suspect(&mut self, damage: &Damage) {
        self.suspect.get_or_insert_with(|| damage.clone());
    }

    fn segment(&self, base: Offset) -> Option<&SegmentInfo> {
        self.state.segments.iter().rev().find(|segment| segment.base_offset == base)
    }

    fn segment_header(&self, base: Offset) -> Option<SegmentHeader> {
        self.segment(base).map(|segment| segment.header(self.state.partition))
    }

    /// Applies an entry that the checkpoint has seen: it only places bytes. Bytes that have nothing to go on from are left out: a later truncation may have
    /// taken them away, and [`finish_seen`](Replay::finish_seen) finds what is really missing.
    pub(super) fn place_seen(
        &mut self,
        files: &mut impl StoreFiles,
        entry: &EntryHeader,
        payload: &[u8],
        source: &Source,
    ) -> Result<(), Fault> {
        match self.place_seen_bytes(files, entry, payload, source) {
            Err(Fault::Partition(damage)) if damage.kind == DamageKind::Continuity => Ok(()),
            result => result,
        }
    }

    fn place_seen_bytes(&mut self, files: &mut impl StoreFiles, entry: &EntryHeader, payload: &[u8], source: &Source) -> Result<(), Fault> {
        let before = self.seen_hash.replace(entry.running_hash);
        if entry.kind == EntryKind::Truncate {
            self.forget_seen(entry.segment, entry.position);
        }
        if matches!(entry.kind, EntryKind::Restart | EntryKind::PartitionDropped) {
            self.forget_seen(Offset::MIN, 0);
        }
        let Some(header) = self.segment_header(entry.segment) else { return Ok(()) };
        match entry.kind {
            EntryKind::Append => {
                self.index_seen(files, entry, &payload[entry.carried as usize..], before)?;
                self.placement.place(files, &header, entry.position, payload)
            }
            EntryKind::Carry => self.placement.place(files, &header, entry.position, payload),
            EntryKind::Truncate => self.placement.place(files, &header, block_start(entry.position), payload),
            EntryKind::LargeReference => {
                let (reference, ends) = LargeReference::decode(entry, payload).map_err(Fault::entry)?;
                self.index_seen(files, entry, &reference.header, before)?;
                self.place_reference(files, entry, &reference, &ends)?;
                self.expect_reference(entry, reference, &ends, source);
                Ok(())
            }
            EntryKind::Install => self.install_seen(files, entry, payload),
            EntryKind::Adopt => {
                let adopt = Adopt::decode(payload).map_err(Fault::entry)?;
                self.index_seen(files, &EntryHeader { position: FIRST_POSITION, ..*entry }, &adopt.header, before)?;
                let found = self.ensure_adopted(files, &header, &adopt);
                Ok(self.placement.defer(entry.segment, found)?)
            }
            _ => Ok(()),
        }
    }

    /// After the last entry that the checkpoint has seen: every byte of the log must be in the segments or placed.
    pub(super) fn finish_seen(&mut self) -> Result<(), Fault> {
        for segment in self.state.segments.iter().filter(|segment| !segment.adopted) {
            let base = segment.base_offset;
            self.placement.trim(base, segment.valid_end);
            let covered = self.placement.covered(base);
            if !self.placement.is_flushed(base, segment.valid_end) && covered < segment.valid_end {
                let detail = format!("bytes {covered}..{} are neither flushed nor in the journal", segment.valid_end);
                return Err(Fault::at(&paths::segment(self.state.partition, base), covered, DamageKind::Continuity, detail));
            }
        }
        Ok(())
    }

    /// Applies an entry after the checkpoint.
    pub(super) fn apply(&mut self, files: &mut impl StoreFiles, entry: &EntryHeader, payload: &[u8], source: &Source) -> Result<(), Fault> {
        if self.cut && !self.counts_after_cut(entry) {
            return Ok(());
        }
        self.clear_suspicion(entry)?;
        match entry.kind {
            EntryKind::Append => self.append(files, entry, payload),
            EntryKind::Carry => {
                let Some(header) = self.segment_header(entry.segment) else {
                    return Err(self.misfit(entry, "segment", "one of the partition's", entry.segment));
                };
                self.placement.place(files, &header, entry.position, payload)
            }
            EntryKind::SegmentOpen => self.open_segment(entry, payload),
            EntryKind::SegmentSeal => self.seal_segment(entry),
            EntryKind::Adopt => self.adopt(files, entry, payload, source),
            EntryKind::Truncate => self.truncate(files, entry, payload),
            EntryKind::Restart => {
                self.restart(entry);
                Ok(())
            }
            EntryKind::Epoch => {
                // It may begin behind the log's end: a replica is told of it before it has the records in front of it.
                leader_epochs::begin(&mut self.state.epochs, entry.leader_epoch, entry.base_offset, self.state.log_end);
                Ok(())
            }
            EntryKind::LogStart => {
                self.start_log(entry.base_offset.min(self.state.log_end));
                Ok(())
            }
            EntryKind::FlushedTo => {
                if self.segment(entry.segment).is_some_and(|segment| entry.position <= segment.valid_end) {
                    self.placement.flushed_to(entry.segment, entry.position);
                }
                Ok(())
            }
            EntryKind::LargeReference => self.append_reference(files, entry, payload, source),
            EntryKind::Replace => self.replace(files, entry, payload),
            EntryKind::Install => self.install(files, entry, payload),
            EntryKind::PartitionDropped => {
                // The catalogue has it again: this node has become its replica anew.
                self.drop_all();
                Ok(())
            }
            EntryKind::Checkpoint | EntryKind::DurableMark => Ok(()),
        }?;
        self.state.high_watermark = self.state.high_watermark.max(entry.high_watermark).min(self.state.log_end);
        Ok(())
    }

    /// After a cut the log itself only goes on with a truncation to what is left.
    fn counts_after_cut(&mut self, entry: &EntryHeader) -> bool {
        let shortens = entry.kind == EntryKind::Truncate && entry.end_offset <= self.state.log_end;
        let truncates = shortens || matches!(entry.kind, EntryKind::Restart | EntryKind::PartitionDropped);
        self.cut = !truncates;
        truncates || matches!(entry.kind, EntryKind::Epoch | EntryKind::LogStart | EntryKind::Replace)
    }

    /// An entry that goes on from exactly the state before the lost groups proves that they held nothing of this partition.
    fn clear_suspicion(&mut self, entry: &EntryHeader) -> Result<(), Fault> {
        let Some(damage) = &self.suspect else { return Ok(()) };
        let adds = matches!(entry.kind, EntryKind::Append | EntryKind::LargeReference | EntryKind::Adopt | EntryKind::Install);
        let goes_on = match entry.kind {
            EntryKind::Truncate => false,
            // It does not go on from anything.
            EntryKind::Restart | EntryKind::PartitionDropped => true,
            // Their own checks follow, the running hash included.
            _ if adds => entry.base_offset == self.state.log_end,
            _ => entry.end_offset == self.state.log_end && entry.running_hash == self.state.running_hash,
        };
        if !goes_on {
            return Err(Fault::Partition(damage.clone()));
        }
        self.suspect = None;
        Ok(())
    }

    fn misfit(&self, entry: &EntryHeader, what: &str, expected: impl std::fmt::Display, actual: impl std::fmt::Display) -> Fault {
        let detail = format!("{:?} of {}: {what} {actual}, expected {expected}", entry.kind, self.state.partition);
        Fault::partition(DamageKind::Continuity, detail)
    }

    /// The segment that the log ends in, if the entry goes on exactly there.
    fn open_end(&self, entry: &EntryHeader) -> Result<SegmentInfo, Fault> {
        let Some(last) = self.state.segments.last().filter(|last| !last.sealed) else {
            return Err(self.misfit(entry, "segment", "no open one", entry.segment));
        };
        if last.base_offset != entry.segment {
            return Err(self.misfit(entry, "segment", last.base_offset, entry.segment));
        }
        let batches_at = entry.position.saturating_add(u64::from(entry.carried));
        if batches_at != last.valid_end {
            return Err(self.misfit(entry, "position", last.valid_end, batches_at));
        }
        if entry.base_offset != self.state.log_end {
            return Err(self.misfit(entry, "base offset", self.state.log_end, entry.base_offset));
        }
        Ok(*last)
    }

    fn append(&mut self, files: &mut impl StoreFiles, entry: &EntryHeader, payload: &[u8]) -> Result<(), Fault> {
        let mut segment = self.open_end(entry)?;
        let header = segment.header(self.state.partition);
        let first = (self.state.running_hash, entry.base_offset);
        let (mut hash, mut next) = first;
        for batch in BatchIter::new(&payload[entry.carried as usize..]) {
            let (batch, bytes) = batch.map_err(|error| Fault::partition(DamageKind::Batch, error))?;
            if batch.base_offset < next {
                return Err(self.misfit(entry, "batch offset", next, batch.base_offset));
            }
            self.index_batch(files, &segment, segment.valid_end, &batch, hash)?;
            self.producers.record(&batch, self.now_ms);
            hash = running_hash(hash, &bytes[..HEADER_LEN]);
            next = batch.next_offset();
            segment.valid_end += bytes.len() as u64;
            segment.max_timestamp = segment.max_timestamp.max(batch.max_timestamp);
        }
        if (hash, next) != (entry.running_hash, entry.end_offset) {
            let hash_matches = hash == entry.running_hash;
            let detail = format!("end offset {next}, expected {}; running hash matches: {hash_matches}", entry.end_offset);
            return Err(Fault::partition(DamageKind::RunningHash, detail));
        }
        self.placement.place(files, &header, entry.position, payload)?;
        segment.end_offset = next;
        segment.running_hash = hash;
        self.advance(segment, entry);
        Ok(())
    }

    /// The log now ends with this segment.
    fn advance(&mut self, segment: SegmentInfo, entry: &EntryHeader) {
        leader_epochs::note(&mut self.state.epochs, entry.leader_epoch, entry.base_offset);
        self.state.log_end = segment.end_offset;
        self.state.running_hash = segment.running_hash;
        self.state.max_timestamp = self.state.max_timestamp.max(segment.max_timestamp);
        if let Some(last) = self.state.segments.last_mut() {
            *last = segment;
        }
    }

    fn open_segment(&mut self, entry: &EntryHeader, payload: &[u8]) -> Result<(), Fault> {
        let open = SegmentOpen::decode(payload).map_err(Fault::entry)?;
        self.expect_new_segment(entry)?;
        self.state.segments.push(SegmentInfo::new(entry.segment, open.rewrite_generation, self.state.running_hash));
        Ok(())
    }

    /// An empty segment gives way to one of the same name.
    fn expect_new_segment(&mut self, entry: &EntryHeader) -> Result<(), Fault> {
        if let Some(empty) = self.state.segments.pop_if(|last| last.end_offset == last.base_offset && last.base_offset == entry.segment) {
            self.indexes.retain(|index| index.segment() != empty.base_offset);
        }
        if let Some(open) = self.state.segments.last().filter(|last| !last.sealed) {
            return Err(self.misfit(entry, "a new segment while one is open", open.base_offset, entry.segment));
        }
        if entry.segment != self.state.log_end || self.segment(entry.segment).is_some() {
            return Err(self.misfit(entry, "segment", self.state.log_end, entry.segment));
        }
        Ok(())
    }

    /// A rewritten segment, which was synced before its entry was written, is the log's from here on; the files of those before it may be gone.
    fn replace(&mut self, files: &mut impl StoreFiles, entry: &EntryHeader, payload: &[u8]) -> Result<(), Fault> {
        let new = Replacement::decode(payload).map_err(Fault::entry)?.segment(entry);
        let range = replaced(self.state.segments.iter(), &new).map_err(|what| Fault::partition(DamageKind::Continuity, what))?;
        let Some(last) = self.state.segments[range.clone()].last() else { return Ok(()) };
        if !self.placement.is_flushed(last.base_offset, last.valid_end) {
            return Err(self.misfit(entry, "a rewritten segment that ends at", "one that was flushed", new.end_offset));
        }
        let is_gone = |base: Offset| (new.base_offset..new.end_offset).contains(&base);
        self.placement.forget_range(new.base_offset, new.end_offset);
        self.indexes.retain(|index| !is_gone(index.segment()));
        self.references.retain(|reference| !is_gone(reference.segment));
        self.partial.retain(|base| !is_gone(*base));
        self.state.segments.splice(range, [new]);
        let found = check_header(files, &new.path(self.state.partition), &new.header(self.state.partition));
        Ok(self.placement.defer(new.base_offset, found)?)
    }

    fn seal_segment(&mut self, entry: &EntryHeader) -> Result<(), Fault> {
        let last = self.state.segments.last().filter(|last| !last.sealed && last.base_offset == entry.segment);
        if last.is_none_or(|last| last.valid_end != entry.position) {
            let end = self.state.segments.last().map_or(0, |last| last.valid_end);
            return Err(self.misfit(entry, "end of segment", end, entry.position));
        }
        if let Some(segment) = self.state.segments.last_mut() {
            segment.sealed = true;
        }
        Ok(())
    }

    fn adopt(&mut self, files: &mut impl StoreFiles, entry: &EntryHeader, payload: &[u8], source: &Source) -> Result<(), Fault> {
        let adopt = Adopt::decode(payload).map_err(Fault::entry)?;
        self.expect_new_segment(entry)?;
        let batch = BatchHeader::parse(&adopt.header).map_err(|error| Fault::partition(DamageKind::Batch, error))?;
        if batch.base_offset != self.state.log_end || batch.next_offset() != entry.end_offset {
            return Err(self.misfit(entry, "batch offset", self.state.log_end, batch.base_offset));
        }
        let hash = running_hash(self.state.running_hash, &adopt.header);
        if hash != entry.running_hash {
            return Err(Fault::partition(DamageKind::RunningHash, "the adopted batch's running hash is not the entry's"));
        }
        let opened = SegmentInfo::new(entry.segment, 0, self.state.running_hash);
        match self.ensure_adopted(files, &opened.header(self.state.partition), &adopt) {
            // Nothing says that the file was finished before the end: nobody was told that it is.
            Err(Fault::Partition(_)) if !source.proven_durable => {
                self.cut = true;
                return Ok(());
            }
            found => self.placement.defer(entry.segment, found)?,
        }
        self.index_batch(files, &opened, FIRST_POSITION, &batch, self.state.running_hash)?;
        self.producers.record(&batch, self.now_ms);
        self.state.segments.push(opened);
        let segment = SegmentInfo {
            end_offset: batch.next_offset(),
            valid_end: FIRST_POSITION + batch.total_len() as u64,
            max_timestamp: batch.max_timestamp,
            running_hash: hash,
            sealed: true,
            adopted: true,
            ..opened
        };
        self.advance(segment, entry);
        Ok(())
    }

    /// Finishes an adoption that was interrupted (the broker's bytes, the name), and checks that the file is the one.
    fn ensure_adopted(&mut self, files: &mut impl StoreFiles, segment: &SegmentHeader, adopt: &Adopt) -> Result<(), Fault> {
        let path = paths::segment(self.state.partition, segment.base_offset);
        let temporary = paths::adopted(self.state.partition, adopt.id);
        if len_if_exists(files, &temporary)?.is_some() {
            let mut front = file_header::encode_header(segment);
            front.extend_from_slice(&read_blocks(files, &temporary, FIRST_POSITION, BLOCK)?);
            front.resize(2 * BLOCK, 0);
            front[BLOCK..BLOCK + HEADER_LEN].copy_from_slice(&adopt.header);
            files.write(&temporary, 0, &front)?;
            files.sync(&temporary)?;
            files.rename(&temporary, &path)?;
        }
        self.renamed = true;
        check_header(files, &path, segment)?;
        let batch = read_blocks(files, &path, FIRST_POSITION, BLOCK)?;
        let len = files.len(&path)?;
        if batch.get(..HEADER_LEN) != Some(&adopt.header[..]) || len < adopt.file_len {
            let detail = format!("not the adopted batch, or {len} bytes of {}", adopt.file_len);
            return Err(Fault::at(&path, FIRST_POSITION, DamageKind::Batch, detail));
        }
        Ok(())
    }

    fn start_log(&mut self, start: Offset) {
        self.state.log_start = self.state.log_start.max(start);
        let start = self.state.log_start;
        self.state.segments.retain(|segment| !segment.sealed || segment.end_offset > start);
        let first = self.state.segments.first().map_or(self.state.log_end, |segment| segment.base_offset);
        self.indexes.retain(|index| index.segment() >= first);
        self.references.retain(|reference| reference.segment >= first);
        self.placement.forget_below(first);
    }

    fn append_reference(&mut self, files: &mut impl StoreFiles, entry: &EntryHeader, payload: &[u8], source: &Source) -> Result<(), Fault> {
        let (reference, ends) = LargeReference::decode(entry, payload).map_err(Fault::entry)?;
        let mut segment = self.open_end(entry)?;
        let batch = BatchHeader::parse(&reference.header).map_err(|error| Fault::partition(DamageKind::Batch, error))?;
        let hash = running_hash(self.state.running_hash, &reference.header);
        if batch.base_offset < entry.base_offset || batch.next_offset() != entry.end_offset || hash != entry.running_hash {
            return Err(self.misfit(entry, "batch of offsets or hash", entry.base_offset, batch.base_offset));
        }
        if !source.proven_durable {
            // Nothing says that the segment was synced before the end: if the batch is not whole, nobody was told that it is.
            let pending = self.pending(entry, reference, &ends, source);
            if self.prove(files, &pending)?.is_err() {
                self.cut = true;
                return Ok(());
            }
        } else {
            self.expect_reference(entry, reference, &ends, source);
        }
        self.index_batch(files, &segment, segment.valid_end, &batch, self.state.running_hash)?;
        self.producers.record(&batch, self.now_ms);
        self.place_reference(files, entry, &reference, &ends)?;
        segment.valid_end += u64::from(reference.batch_len);
        segment.end_offset = batch.next_offset();
        segment.max_timestamp = segment.max_timestamp.max(batch.max_timestamp);
        segment.running_hash = hash;
        self.advance(segment, entry);
        Ok(())
    }

    fn place_reference(
        &mut self,
        files: &mut impl StoreFiles,
        entry: &EntryHeader,
        reference: &LargeReference,
        ends: &LargeEnds<'_>,
    ) -> Result<(), Fault> {
        let Some(header) = self.segment_header(entry.segment) else { return Ok(()) };
        let batch_at = entry.position + u64::from(entry.carried);
        let tail_at = batch_at + u64::from(reference.batch_len - reference.tail_len);
        if self.placement.is_flushed(entry.segment, tail_at + u64::from(reference.tail_len)) {
            return Ok(());
        }
        self.placement.place(files, &header, entry.position, ends.carried_and_head)?;
        self.placement.prove(entry.segment, tail_at);
        self.placement.place(files, &header, tail_at, ends.tail)
    }

    fn pending(&self, entry: &EntryHeader, reference: LargeReference, ends: &LargeEnds<'_>, source: &Source) -> PendingReference {
        PendingReference {
            segment: entry.segment,
            position: entry.position + u64::from(entry.carried),
            reference,
            head: ends.carried_and_head[entry.carried as usize..].to_vec(),
            tail: ends.tail.to_vec(),
            source: source.clone(),
        }
    }

    fn expect_reference(&mut self, entry: &EntryHeader, reference: LargeReference, ends: &LargeEnds<'_>, source: &Source) {
        let pending = self.pending(entry, reference, ends, source);
        if !self.placement.is_flushed(pending.segment, pending.end()) {
            self.references.push(pending);
        }
    }

    /// Whether the batch is whole, by its CRC. The inner error says what is wrong.
    fn prove(&self, files: &mut impl StoreFiles, pending: &PendingReference) -> Result<Result<(), String>, Fault> {
        let PendingReference { segment, position, reference, head, tail, .. } = pending;
        let path = paths::segment(self.state.partition, *segment);
        let mut check = BatchCheck::new();
        check.update(head);
        let mut at = position + head.len() as u64;
        let end = at + u64::from(reference.batch_len) - (head.len() + tail.len()) as u64;
        let mut buffer = BlockBuffer::zeroed(SEGMENT_READ.min((end - at) as usize));
        while at < end {
            let wanted = buffer.len().min((end - at) as usize);
            let read = match files.read(&path, at, &mut buffer[..wanted]) {
                Err(error) if error.is_not_found() => 0,
                read => read?,
            };
            if read < wanted {
                return Ok(Err(format!("segment {segment} ends at {}", at + read as u64)));
            }
            check.update(&buffer[..wanted]);
            at += wanted as u64;
        }
        check.update(tail);
        Ok(check.finish(reference))
    }

    fn index_seen(&mut self, files: &mut impl StoreFiles, entry: &EntryHeader, batches: &[u8], before: Option<u64>) -> Result<(), Fault> {
        let Some(segment) = self.segment(entry.segment).copied() else { return Ok(()) };
        let mut position = entry.position + u64::from(entry.carried);
        let at_start = position == FIRST_POSITION;
        let Some(mut hash) = before.or_else(|| at_start.then(|| self.hash_before(&segment)).flatten()) else { return Ok(()) };
        // The exact maximum before a batch is not known here, its bound is.
        let mut bound = SegmentInfo { max_timestamp: if at_start { Timestamp::MIN } else { segment.max_timestamp }, ..segment };
        let mut rest = batches;
        while let Ok(batch) = BatchHeader::parse(rest) {
            self.index_batch(files, &bound, position, &batch, hash)?;
            hash = running_hash(hash, &rest[..HEADER_LEN]);
            position += batch.total_len() as u64;
            bound.max_timestamp = segment.max_timestamp;
            rest = rest.get(batch.total_len()..).unwrap_or_default();
        }
        Ok(())
    }

    /// The running hash at a segment's start, where the segment before it is still known. That of a rewritten one is only in its index.
    fn hash_before(&self, segment: &SegmentInfo) -> Option<u64> {
        if segment.is_rewritten() {
            return None;
        }
        match self.state.segments.iter().rev().find(|other| other.base_offset < segment.base_offset) {
            Some(previous) => Some(previous.running_hash),
            None => (segment.base_offset == 0).then_some(0),
        }
    }

    /// Notes a batch in the index of its segment, unless the index has it or needs none here.
    fn index_batch(
        &mut self,
        files: &mut impl StoreFiles,
        segment: &SegmentInfo,
        position: u64,
        batch: &BatchHeader,
        hash: u64,
    ) -> Result<(), Fault> {
        let indexed = (self.state.flushed_segment, self.state.flushed_position);
        if (segment.base_offset, position) < indexed {
            return Ok(());
        }
        let at = self.index_of(files, segment)?;
        self.indexes[at].offer(batch.base_offset, position, segment.max_timestamp, hash);
        Ok(())
    }

    fn index_of(&mut self, files: &mut impl StoreFiles, segment: &SegmentInfo) -> Result<usize, Fault> {
        if let Some(at) = self.indexes.iter().position(|index| index.segment() == segment.base_offset) {
            return Ok(at);
        }
        let flushed = (self.state.flushed_segment, self.state.flushed_position);
        let before = self.hash_before(segment);
        let mut tail = IndexTail::load(files, self.state.partition, segment, flushed, before)?;
        // The first batch's entry follows from the state alone, and its journal entry may be gone: that of an adopted batch, or of one whose bytes were carried
        // forward. Without it, whatever is before the next entry could not be found.
        if let Some(hash) = before {
            tail.offer(segment.base_offset, FIRST_POSITION, Timestamp::MIN, hash);
        }
        self.indexes.push(tail);
        Ok(self.indexes.len() - 1)
    }

    /// Proves what is still to be proven, and writes everything that the journal brought.
    pub(super) fn finish(&mut self, files: &mut impl StoreFiles, checks: &mut Checks) -> Result<(), Fault> {
        if let Some(damage) = self.suspect.take() {
            return Err(Fault::Partition(damage));
        }
        // A batch that is known durable is looked at so that damage shows early, of each partition the newest first, as far as it goes; who reads it looks again. Of
        // the others the file must be there and long enough: a lost one would be made anew.
        for pending in std::mem::take(&mut self.references).into_iter().rev() {
            if self.placement.is_flushed(pending.segment, pending.end()) {
                continue;
            }
            let path = paths::segment(self.state.partition, pending.segment);
            let proven = match checks.batch_bytes.checked_sub(pending.reference.batch_len as usize) {
                Some(left) => {
                    checks.batch_bytes = left;
                    self.prove(files, &pending)?
                }
                None => {
                    let len = len_if_exists(files, &path)?.unwrap_or(0);
                    let end = pending.end() - u64::from(pending.reference.tail_len);
                    if len < end { Err(format!("segment {} ends at {len}, not at {end} or later", pending.segment)) } else { Ok(()) }
                }
            };
            if let Err(detail) = proven {
                let detail = format!("{detail}; group at {} of {} knows the batch durable", pending.source.offset, pending.source.file);
                return Err(Fault::at(&path, pending.position, DamageKind::Batch, detail));
            }
        }
        for segment in &self.state.segments {
            if !self.placement.is_flushed(segment.base_offset, segment.valid_end.max(FIRST_POSITION + 1)) && !segment.adopted {
                self.placement.make_ready(files, &segment.header(self.state.partition))?;
            }
        }
        self.placement.finish(files)?;
        if let Some(damage) = self.state.segments.iter().find_map(|segment| self.placement.broken(segment.base_offset)) {
            return Err(Fault::Partition(damage.clone()));
        }
        self.count_partial_indexes(files)?;
        self.check_flushed_indexes(files, &mut checks.index_bytes)?;
        for index in &mut self.indexes {
            if let Some(segment) = self.state.segments.iter_mut().find(|segment| segment.base_offset == index.segment()) {
                segment.index_entries = index.write(files, &segment.header(self.state.partition))?;
                self.written.push(index.path().to_string());
            }
        }
        self.complete_files(files)?;
        self.remove_cut_off(files)?;
        self.find_lost_producers(files)?;
        self.state.producers = self.producers.snapshot();
        Ok(())
    }

    /// Of segments that were not flushed whole the checkpoint may count index entries that were never written.
    fn count_partial_indexes(&mut self, files: &mut impl StoreFiles) -> Result<(), Fault> {
        for base in std::mem::take(&mut self.partial) {
            if let Some(segment) = self.segment(base).filter(|segment| segment.end_offset > segment.base_offset).copied() {
                self.index_of(files, &segment)?;
            }
        }
        Ok(())
    }

    /// Indexes of segments that the journal did not touch: one that is damaged or gone is made again. The newest are read, as far as `left` goes; of
    /// the others only the names are looked at.
    fn check_flushed_indexes(&mut self, files: &mut impl StoreFiles, left: &mut usize) -> Result<(), Fault> {
        let partition = self.state.partition;
        let flushed = (self.state.flushed_segment, self.state.flushed_position);
        let names: HashSet<String> = list_sorted(files, &paths::partition_dir(partition))?.into_iter().map(|entry| entry.name).collect();
        for segment in self.state.segments.clone().iter().rev() {
            let base = segment.base_offset;
            if (base, FIRST_POSITION) >= flushed || self.indexes.iter().any(|index| index.segment() == base) {
                continue;
            }
            let path = segment.index_path(partition);
            let is_there = path.rsplit_once('/').is_some_and(|(_, name)| names.contains(name));
            let cost = (BLOCK + segment.index_entries as usize * INDEX_ENTRY_LEN).next_multiple_of(BLOCK);
            if is_there && cost > *left {
                continue;
            }
            *left = left.saturating_sub(cost);
            let tail = IndexTail::load(files, partition, segment, flushed, self.hash_before(segment))?;
            if tail.damage.is_some() {
                self.indexes.push(tail);
            }
        }
        Ok(())
    }

    /// Every segment must have its file; an index that is not there begins anew.
    fn complete_files(&mut self, files: &mut impl StoreFiles) -> Result<(), Fault> {
        let partition = self.state.partition;
        if self.state.segments.is_empty() {
            return Ok(());
        }
        let names: HashSet<String> = list_sorted(files, &paths::partition_dir(partition))?.into_iter().map(|entry| entry.name).collect();
        let is_there = |path: &str| path.rsplit_once('/').is_some_and(|(_, name)| names.contains(name));
        for segment in &mut self.state.segments {
            let path = segment.path(partition);
            if !is_there(&path) {
                return Err(Fault::at(&path, 0, DamageKind::Missing, "the segment is not there"));
            }
            let path = segment.index_path(partition);
            if !is_there(&path) {
                files.write(&path, 0, &segment.index_header_block(partition))?;
                segment.index_entries = 0;
                self.written.push(path);
            }
        }
        Ok(())
    }

    /// The bytes of the log's unfinished block, from its boundary.
    pub(super) fn remainder(&self, files: &mut impl StoreFiles) -> Result<Vec<u8>, Fault> {
        let Some(open) = self.state.segments.last().filter(|last| !last.sealed) else { return Ok(Vec::new()) };
        let len = (open.valid_end - block_start(open.valid_end)) as usize;
        if len == 0 {
            return Ok(Vec::new());
        }
        if let Some(bytes) = self.placement.remainder(open.base_offset, open.valid_end) {
            return Ok(bytes.to_vec());
        }
        let path = open.path(self.state.partition);
        let at = block_start(open.valid_end);
        let block = match read_blocks(files, &path, at, BLOCK) {
            Ok(block) => block,
            Err(error) if error.is_not_found() => return Err(Fault::at(&path, 0, DamageKind::Missing, "the segment is not there")),
            Err(error) => return Err(error.into()),
        };
        match block.get(..len) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(Fault::at(&path, at, DamageKind::Continuity, format!("the file ends before the log does, at {}", open.valid_end))),
        }
    }
}
