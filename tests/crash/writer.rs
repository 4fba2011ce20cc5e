//! A broker of one thread and one call at a time: it writes journals, segments and checkpoints by the store's rules, or breaks one of them.

use std::collections::BTreeMap;

use corelane::batch::{self, BatchBuilder, BatchHeader, Compression, HEADER_LEN};
use corelane::checksum::running_hash;
use corelane::limits::BLOCK;
use corelane::log::checkpoint::{self, CheckpointBody, PartitionState};
use corelane::log::file_header::{CheckpointHeader, JournalHeader, encode_header};
use corelane::log::files::StoreFiles;
use corelane::log::index::{Index, IndexEntry};
use corelane::log::journal::{
    Adopt, ENTRY_HEADER_LEN, EntryHeader, EntryKind, GROUP_HEADER_LEN, GroupHeader, LargeReference, SegmentOpen, entry_space, seal_group,
};
use corelane::log::paths::{self, Slot};
use corelane::log::producers::ProducerTable;
use corelane::log::recovery::RecoveredStore;
use corelane::log::segment::{FIRST_POSITION, SegmentInfo};
use corelane::shard::trace::TraceEvent;
use corelane::types::{Offset, TopicPartition};

use super::check::CLUSTER;
use super::disk::Image;

/// Size of a journal file in these tests, bytes.
pub const JOURNAL_FILE: u64 = 128 * 1024;

/// A rule that the writer breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The journal is not synced.
    SkipSync,
    /// Acknowledged when written, before the sync.
    AcknowledgeEarly,
    /// After a padded flush the next entry does not carry the block's earlier bytes, and write-behind writes the block anew.
    OverwriteTailBlock,
    /// Journal files are used again while a checkpoint needs them.
    ReuseJournalEarly,
    /// Segments are not synced before the journal forgets their bytes.
    SkipSegmentSync,
    /// A large batch is acknowledged when the journal has its reference, before its segment is synced.
    SkipLargeSync,
    /// The directory of a new segment is not synced.
    SkipNameSync,
}

struct Tail {
    segment: Offset,
    /// On a block boundary.
    start: u64,
    bytes: Vec<u8>,
    /// Where in the segment entries end, and in which group they are.
    chunks: Vec<(u64, u64)>,
    /// The unfinished block is in the segment only: the next entry carries it.
    carry: bool,
}

/// One partition.
pub struct Partition {
    pub state: PartitionState,
    tails: Vec<Tail>,
    indexes: Vec<(Index, usize)>,
    producers: ProducerTable,
    named: Vec<Offset>,
    /// Running hashes by log end.
    hashes: BTreeMap<Offset, u64>,
}

/// One shard.
pub struct Shard {
    pub number: u32,
    generation: u64,
    salt: u64,
    group: Vec<u8>,
    entries: u16,
    next_sequence: u64,
    durable: u64,
    previous_checksum: u32,
    /// Files in use, oldest first, with the last sequence in each; the last one is being written.
    files: Vec<(u64, u64)>,
    position: u64,
    ready: Vec<u64>,
    next_file: u64,
    slot: Slot,
    needed: (u64, u64),
    pub partitions: Vec<Partition>,
    /// Size of its journal files, bytes.
    pub journal_file: u64,
    /// Bytes that a new segment has blocks for.
    pub allocation: u64,
    unacknowledged: Vec<TraceEvent>,
    epoch: i32,
    next_adopt: u64,
    bug: Option<Bug>,
}

impl Shard {
    /// All shards of a recovered store.
    pub fn all(store: RecoveredStore, bug: Option<Bug>) -> Vec<Shard> {
        let shards = store.shards.len() as u64;
        let mut journals: Vec<Vec<u64>> = vec![Vec::new(); shards as usize];
        for (at, journal) in store.journals.iter().enumerate() {
            journals[at % shards as usize].push(journal.id);
        }
        (0..)
            .zip(store.shards.into_iter().zip(journals))
            .map(|(number, (images, ready))| Shard {
                number,
                generation: store.generation,
                salt: store.salt,
                group: vec![0; GROUP_HEADER_LEN],
                entries: 0,
                next_sequence: 1,
                durable: 0,
                previous_checksum: 0,
                files: Vec::new(),
                position: BLOCK as u64,
                ready,
                next_file: store.next_journal_id + u64::from(number) * 1000,
                slot: Slot::B,
                needed: (1, 1),
                partitions: images.into_iter().map(|image| Partition::new(image.state, image.remainder)).collect(),
                journal_file: JOURNAL_FILE,
                allocation: 65536,
                unacknowledged: Vec::new(),
                epoch: store.generation as i32,
                next_adopt: 1,
                bug,
            })
            .collect()
    }

    fn entry(&self, at: usize, kind: EntryKind, segment: Offset, position: u64, base_offset: Offset) -> EntryHeader {
        let state = &self.partitions[at].state;
        EntryHeader {
            kind,
            must_understand: true,
            topic_partition: state.partition,
            leader_epoch: self.epoch,
            segment,
            position,
            base_offset,
            end_offset: state.log_end,
            high_watermark: state.high_watermark,
            running_hash: state.running_hash,
            max_timestamp: state.max_timestamp,
            payload_len: 0,
            carried: 0,
        }
    }

    fn add(&mut self, header: EntryHeader, payload: &[u8]) -> u64 {
        let header = EntryHeader { payload_len: payload.len() as u32, ..header };
        let at = self.group.len();
        self.group.resize(at + entry_space(payload.len()), 0);
        header.write(&mut self.group[at..]);
        self.group[at + ENTRY_HEADER_LEN..][..payload.len()].copy_from_slice(payload);
        self.entries += 1;
        self.next_sequence
    }

    /// Writes and syncs what was added, and acknowledges it.
    pub fn commit(&mut self, files: &mut Image) {
        self.write_group(files);
        let path = paths::journal(self.files.last().expect("a group was written").0);
        if self.bug == Some(Bug::AcknowledgeEarly) {
            self.acknowledge(files);
        }
        if self.bug != Some(Bug::SkipSync) {
            files.sync(&path).unwrap();
        }
        self.durable = self.next_sequence - 1;
        self.acknowledge(files);
    }

    /// A group without entries, not synced.
    pub fn mark(&mut self, files: &mut Image) {
        assert_eq!(self.entries, 0, "a mark is for an idle shard");
        self.write_group(files);
    }

    fn acknowledge(&mut self, files: &mut Image) {
        self.unacknowledged.drain(..).for_each(|event| files.record(event));
        for partition in &mut self.partitions {
            partition.state.high_watermark = partition.state.log_end;
        }
    }

    fn write_group(&mut self, files: &mut Image) {
        let space = (self.group.len().next_multiple_of(BLOCK)) as u64;
        let full = self.files.is_empty() || self.position + space > self.journal_file;
        if full {
            let next = self.next_journal(files);
            // A mark in the old file may be unsynced: nothing after it is durable before it is.
            if let Some((old, _)) = self.files.last() {
                let old = paths::journal(*old);
                files.sync(&old).unwrap();
            }
            self.files.push((next, 0));
            self.position = BLOCK as u64;
        }
        let (file, last) = self.files.last_mut().expect("there is one");
        *last = self.next_sequence;
        let header = GroupHeader {
            generation: self.generation,
            salt: self.salt,
            file: *file,
            position: self.position,
            sequence: self.next_sequence,
            durable_sequence: self.durable,
            length: self.group.len() as u32,
            shard: self.number as u16,
            entries: self.entries,
            previous_checksum: self.previous_checksum,
        };
        let path = paths::journal(*file);
        self.previous_checksum = seal_group(&mut self.group, &header);
        self.group.resize(space as usize, 0);
        files.write(&path, self.position, &self.group).unwrap();
        self.position += space;
        self.next_sequence += 1;
        self.group = vec![0; GROUP_HEADER_LEN];
        self.entries = 0;
    }

    fn next_journal(&mut self, files: &mut Image) -> u64 {
        if let Some(ready) = self.ready.pop() {
            return ready;
        }
        let (id, path) = (self.next_file, paths::journal(self.next_file));
        self.next_file += 1;
        let size = self.journal_file;
        files.allocate(&path, size).unwrap();
        files.write(&path, 0, &vec![0; size as usize]).unwrap();
        files.write(&path, 0, &encode_header(&JournalHeader { cluster: CLUSTER, file: id, size })).unwrap();
        files.sync(&path).unwrap();
        files.sync_dir(paths::JOURNAL_DIR).unwrap();
        id
    }

    /// Makes a batch of `count` records of `len` bytes; `producer` is (id, epoch, sequence).
    pub fn batch(count: usize, len: usize, timestamp: i64, fill: u8, producer: Option<(i64, i16, i32)>) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Compression::None);
        for record in 0..count {
            builder.append(timestamp + record as i64, Some(b"key"), Some(&vec![fill; len]), &[]).unwrap();
        }
        if let Some((id, epoch, sequence)) = producer {
            builder.set_producer(id, epoch, sequence);
        }
        builder.build().to_vec()
    }

    /// Opens a segment at the log's end, sealing the open one.
    pub fn roll(&mut self, files: &mut Image, at: usize) {
        let state = &self.partitions[at].state;
        let base = state.log_end;
        let info = SegmentInfo::new(base, 0, state.running_hash);
        let partition = state.partition;
        if state.segments.is_empty() {
            for dir in [paths::topic_dir(partition.topic), paths::partition_dir(partition)] {
                files.create_dir(&dir).unwrap();
            }
            files.sync_dir(paths::TOPICS_DIR).unwrap();
            files.sync_dir(&paths::topic_dir(partition.topic)).unwrap();
        }
        self.seal(at);
        files.allocate(&paths::segment(partition, base), self.allocation).unwrap();
        files.write(&paths::segment(partition, base), 0, &info.header_block(partition)).unwrap();
        files.write(&paths::index(partition, base), 0, &info.index_header_block(partition)).unwrap();
        let header = self.entry(at, EntryKind::SegmentOpen, base, FIRST_POSITION, base);
        self.add(header, &SegmentOpen { rewrite_generation: 0 }.encode());
        let part = &mut self.partitions[at];
        if part.state.segments.is_empty() {
            (part.state.flushed_segment, part.state.flushed_position) = (base, FIRST_POSITION);
        }
        part.state.segments.push(info);
        part.tails.push(Tail { segment: base, start: FIRST_POSITION, bytes: Vec::new(), chunks: Vec::new(), carry: false });
        part.indexes.push((Index::new(base), 0));
    }

    fn seal(&mut self, at: usize) {
        // An empty segment gives way to one of the same name.
        let part = &mut self.partitions[at];
        if let Some(empty) = part.state.segments.pop_if(|last| !last.sealed && last.base_offset == last.end_offset) {
            part.tails.retain(|tail| tail.segment != empty.base_offset);
            part.indexes.retain(|(index, _)| index.segment() != empty.base_offset);
            part.named.retain(|base| *base != empty.base_offset);
        }
        let Some(last) = self.partitions[at].state.segments.last().copied().filter(|last| !last.sealed) else { return };
        let header = self.entry(at, EntryKind::SegmentSeal, last.base_offset, last.valid_end, last.end_offset);
        self.add(header, &[]);
        self.partitions[at].state.segments.last_mut().expect("there is one").sealed = true;
    }

    /// Adds a batch to the open group.
    pub fn append(&mut self, files: &mut Image, at: usize, mut batch: Vec<u8>) {
        if self.partitions[at].state.segments.last().is_none_or(|last| last.sealed) {
            self.roll(files, at);
        }
        self.enter_epoch(at);
        let (base, position) = self.partitions[at].enter(&mut batch, self.epoch);
        let tail = self.partitions[at].tails.last_mut().expect("the open segment's");
        let carried = if tail.carry { (position % BLOCK as u64) as usize } else { 0 };
        let carry = tail.bytes[tail.bytes.len() - carried..].to_vec();
        let overwrite = self.bug == Some(Bug::OverwriteTailBlock);
        let carry = if overwrite { Vec::new() } else { carry };
        tail.bytes.extend(&batch);
        tail.carry = false;
        let segment = tail.segment;
        let header =
            EntryHeader { carried: carry.len() as u32, ..self.entry(at, EntryKind::Append, segment, position - carry.len() as u64, base) };
        let sequence = self.add(header, &[carry, batch.clone()].concat());
        self.placed(at, sequence, position + batch.len() as u64, &batch);
    }

    fn placed(&mut self, at: usize, sequence: u64, end: u64, batch: &[u8]) {
        let part = &mut self.partitions[at];
        let header = BatchHeader::parse(batch).unwrap();
        part.tails.last_mut().expect("the open segment's").chunks.push((end, sequence));
        self.unacknowledged.push(TraceEvent::Acknowledge {
            partition: part.state.partition,
            base_offset: header.base_offset,
            count: header.record_count as u32,
            crc: header.crc,
        });
    }

    fn enter_epoch(&mut self, at: usize) {
        let state = &mut self.partitions[at].state;
        if state.epochs.last().is_none_or(|(epoch, _)| *epoch < self.epoch) {
            let (epoch, start) = (self.epoch, state.log_end);
            state.epochs.retain(|(_, begun)| *begun < start);
            state.epochs.push((epoch, start));
            let header = self.entry(at, EntryKind::Epoch, 0, 0, start);
            self.add(header, &[]);
        }
    }

    /// Writes a batch's whole blocks straight to the segment and refers to them; commits.
    pub fn append_large(&mut self, files: &mut Image, at: usize, batch: Vec<u8>) {
        self.write_large(files, at, batch);
        self.acknowledge(files);
    }

    /// As [`Shard::append_large`], telling nobody: it may be cut again.
    pub fn append_large_silently(&mut self, files: &mut Image, at: usize, batch: Vec<u8>) {
        self.write_large(files, at, batch);
        self.unacknowledged.clear();
    }

    fn write_large(&mut self, files: &mut Image, at: usize, mut batch: Vec<u8>) {
        if self.partitions[at].state.segments.last().is_none_or(|last| last.sealed) {
            self.roll(files, at);
        }
        self.enter_epoch(at);
        let (base, position) = self.partitions[at].enter(&mut batch, self.epoch);
        let partition = self.partitions[at].state.partition;
        let tail = self.partitions[at].tails.last_mut().expect("the open segment's");
        let carried = if tail.carry { (position % BLOCK as u64) as usize } else { 0 };
        let carry = tail.bytes[tail.bytes.len() - carried..].to_vec();
        tail.bytes.extend(&batch);
        tail.carry = false;
        let segment = tail.segment;
        let head_len = (position.next_multiple_of(BLOCK as u64) - position) as usize;
        let tail_len = (batch.len() - head_len) % BLOCK;
        let mut stored = [0; HEADER_LEN];
        stored.copy_from_slice(&batch[..HEADER_LEN]);
        let reference =
            LargeReference { batch_len: batch.len() as u32, head_len: head_len as u32, tail_len: tail_len as u32, header: stored };
        let payload = [&reference.encode()[..], &carry, &batch[..head_len], &batch[batch.len() - tail_len..]].concat();
        let header =
            EntryHeader { carried: carried as u32, ..self.entry(at, EntryKind::LargeReference, segment, position - carried as u64, base) };
        let sequence = self.add(header, &payload);
        self.placed(at, sequence, position + batch.len() as u64, &batch);
        let path = paths::segment(partition, segment);
        files.write(&path, position + head_len as u64, &batch[head_len..batch.len() - tail_len]).unwrap();
        self.write_group(files);
        let journal = paths::journal(self.files.last().expect("a group was written").0);
        files.sync(&journal).unwrap();
        if self.bug != Some(Bug::SkipLargeSync) {
            files.sync(&path).unwrap();
            self.name(files, at, segment);
        }
        self.durable = self.next_sequence - 1;
    }

    /// Receives a batch into a file of its own and makes it a segment; commits.
    pub fn adopt(&mut self, files: &mut Image, at: usize, mut batch: Vec<u8>) {
        self.seal(at);
        self.enter_epoch(at);
        let part = &mut self.partitions[at];
        let partition = part.state.partition;
        let base = part.state.log_end;
        let opened = SegmentInfo::new(base, 0, part.state.running_hash);
        part.state.segments.push(opened);
        part.indexes.push((Index::new(base), 0));
        part.enter(&mut batch, self.epoch);
        let last = part.state.segments.last_mut().expect("pushed");
        (last.sealed, last.adopted) = (true, true);
        let id = self.next_adopt;
        self.next_adopt += 1;
        let mut stored = [0; HEADER_LEN];
        stored.copy_from_slice(&batch[..HEADER_LEN]);
        let mut file = opened.header_block(partition);
        file.extend(&batch);
        file.resize(file.len().next_multiple_of(BLOCK), 0);
        for dir in [paths::topic_dir(partition.topic), paths::partition_dir(partition)] {
            files.create_dir(&dir).unwrap();
        }
        files.sync_dir(paths::TOPICS_DIR).unwrap();
        files.sync_dir(&paths::topic_dir(partition.topic)).unwrap();
        files.write(&paths::adopted(partition, id), 0, &file).unwrap();
        files.sync(&paths::adopted(partition, id)).unwrap();
        files.sync_dir(&paths::partition_dir(partition)).unwrap();
        let header = self.entry(at, EntryKind::Adopt, base, FIRST_POSITION, base);
        let payload = Adopt { id, file_len: file.len() as u64, header: stored }.encode();
        let sequence = self.add(header, &payload);
        let end = FIRST_POSITION + batch.len() as u64;
        let tail = Tail { segment: base, start: FIRST_POSITION, bytes: batch.clone(), chunks: Vec::new(), carry: false };
        self.partitions[at].tails.push(tail);
        self.placed(at, sequence, end, &batch);
        self.commit(files);
        files.rename(&paths::adopted(partition, id), &paths::segment(partition, base)).unwrap();
        files.write(&paths::index(partition, base), 0, &opened.index_header_block(partition)).unwrap();
    }

    fn name(&mut self, files: &mut Image, at: usize, segment: Offset) {
        let part = &mut self.partitions[at];
        if !part.named.contains(&segment) && self.bug != Some(Bug::SkipNameSync) {
            files.sync_dir(&paths::partition_dir(part.state.partition)).unwrap();
            part.named.push(segment);
        }
    }

    /// Writes what is durable to the segments; `padded` includes unfinished blocks.
    pub fn flush(&mut self, files: &mut Image, at: usize, padded: bool) {
        assert_eq!(self.entries, 0, "only what is durable is flushed");
        while let Some((segment, position)) = self.flush_first(files, at, padded) {
            let part = &mut self.partitions[at];
            (part.state.flushed_segment, part.state.flushed_position) = (segment, position);
            let log_end = part.state.log_end;
            let header = self.entry(at, EntryKind::FlushedTo, segment, position, log_end);
            self.add(header, &[]);
        }
        if self.entries > 0 {
            self.commit(files);
        }
    }

    fn flush_first(&mut self, files: &mut Image, at: usize, padded: bool) -> Option<(Offset, u64)> {
        let part = &mut self.partitions[at];
        let partition = part.state.partition;
        let flushed = (part.state.flushed_segment, part.state.flushed_position);
        let tail = part.tails.first_mut()?;
        let info = *part.state.segments.iter().find(|segment| segment.base_offset == tail.segment)?;
        let end = tail.start + tail.bytes.len() as u64;
        let target = if padded || info.sealed { end } else { end / BLOCK as u64 * BLOCK as u64 };
        let done = (tail.segment, target) <= flushed;
        if done && info.sealed {
            part.tails.remove(0);
            return self.flush_first(files, at, padded);
        }
        if done || target == tail.start {
            return None;
        }
        if !info.adopted {
            let mut blocks = tail.bytes[..(target - tail.start) as usize].to_vec();
            blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
            files.write(&paths::segment(partition, tail.segment), tail.start, &blocks).unwrap();
        }
        let keep = target / BLOCK as u64 * BLOCK as u64;
        tail.bytes.drain(..(keep - tail.start) as usize);
        tail.start = keep;
        tail.chunks.retain(|(end, _)| *end > target);
        tail.carry = target > keep;
        let segment = tail.segment;
        if let Some((index, written)) = part.indexes.iter_mut().find(|(index, _)| index.segment() == segment) {
            let to = index.entries().partition_point(|entry| entry.position < target);
            if let Some(blocks) = index.blocks(*written, to) {
                files.write(&paths::index(partition, segment), blocks.position, &blocks.bytes).unwrap();
                *written = to;
            }
        }
        if self.bug != Some(Bug::SkipSegmentSync) {
            files.sync(&paths::segment(partition, segment)).unwrap();
            files.sync(&paths::index(partition, segment)).unwrap();
        }
        self.name(files, at, segment);
        Some((segment, target))
    }

    /// Copies the unfinished block of a partition forward; commits.
    pub fn carry(&mut self, files: &mut Image, at: usize) {
        let part = &self.partitions[at];
        let Some(tail) = part.tails.last().filter(|tail| !tail.chunks.is_empty() && tail.bytes.len() < BLOCK) else { return };
        let bytes = tail.bytes.clone();
        let (segment, start) = (tail.segment, tail.start);
        let header = EntryHeader { carried: bytes.len() as u32, ..self.entry(at, EntryKind::Carry, segment, start, part.state.log_end) };
        let sequence = self.add(header, &bytes);
        let tail = self.partitions[at].tails.last_mut().expect("looked at above");
        tail.chunks = vec![(start + bytes.len() as u64, sequence)];
        self.commit(files);
    }

    /// As [`Shard::commit`], telling nobody: what was appended may be cut again.
    pub fn commit_silently(&mut self, files: &mut Image) {
        let watermarks: Vec<Offset> = self.partitions.iter().map(|part| part.state.high_watermark).collect();
        self.unacknowledged.clear();
        self.commit(files);
        for (part, watermark) in self.partitions.iter_mut().zip(watermarks) {
            part.state.high_watermark = watermark;
        }
    }

    /// Cuts the log in its open segment, at an offset at which a batch starts or the log ends; commits.
    pub fn truncate(&mut self, files: &mut Image, at: usize, offset: Offset) {
        self.flush(files, at, true);
        let part = &mut self.partitions[at];
        let partition = part.state.partition;
        let info = *part.state.segments.last().expect("there is one");
        let bytes = files.bytes(&paths::segment(partition, info.base_offset));
        let (mut position, mut end) = (FIRST_POSITION, info.base_offset);
        while end < offset {
            let header = BatchHeader::parse(&bytes[position as usize..]).unwrap();
            position += header.total_len() as u64;
            end = header.next_offset();
        }
        assert_eq!(end, offset, "a batch starts there");
        let hash = part.hashes[&offset];
        let block = position / BLOCK as u64 * BLOCK as u64;
        let kept = bytes[block as usize..position as usize].to_vec();
        let last = part.state.segments.last_mut().expect("there is one");
        *last = SegmentInfo { end_offset: end, valid_end: position, running_hash: hash, ..info };
        (part.state.log_end, part.state.running_hash) = (end, hash);
        part.state.high_watermark = part.state.high_watermark.min(end);
        (part.state.flushed_segment, part.state.flushed_position) = (info.base_offset, block);
        part.state.epochs.retain(|(_, start)| *start < end);
        part.producers.truncate_to(end);
        if part.indexes.iter().all(|(index, _)| index.segment() != info.base_offset) {
            let bytes = files.bytes(&paths::index(partition, info.base_offset));
            let (index, error) = Index::load(info.base_offset, &bytes[BLOCK..], info.index_entries);
            assert_eq!(error, None, "the index of a segment that a recovery left");
            let written = index.len();
            part.indexes.push((index, written));
        }
        if let Some((index, written)) = part.indexes.iter_mut().find(|(index, _)| index.segment() == info.base_offset) {
            index.truncate(position);
            *written = (*written).min(index.len());
            part.state.segments.last_mut().expect("there is one").index_entries = index.len() as u32;
            // What is behind the cut must not count again when later entries do.
            let path = paths::index(partition, info.base_offset);
            if let Some(blocks) = index.blocks(0, index.len()) {
                files.write(&path, blocks.position, &blocks.bytes).unwrap();
            }
            let end = corelane::log::index::entry_position(index.len()).next_multiple_of(BLOCK as u64);
            files.set_len(&path, end).unwrap();
            files.sync(&path).unwrap();
        }
        let header = self.entry(at, EntryKind::Truncate, info.base_offset, position, end);
        let sequence = self.add(header, &kept);
        let tail = Tail { segment: info.base_offset, start: block, bytes: kept, chunks: vec![(position, sequence)], carry: false };
        *self.partitions[at].tails.last_mut().expect("the open segment's") = tail;
        self.commit_silently(files);
    }

    /// Moves the log start; commits, then removes the files.
    pub fn log_start(&mut self, files: &mut Image, at: usize, start: Offset) {
        self.flush(files, at, false);
        let header = self.entry(at, EntryKind::LogStart, 0, 0, start);
        self.add(header, &[]);
        self.commit(files);
        let part = &mut self.partitions[at];
        part.state.log_start = part.state.log_start.max(start);
        let gone: Vec<Offset> = part.state.segments.iter().filter(|s| s.sealed && s.end_offset <= start).map(|s| s.base_offset).collect();
        part.state.segments.retain(|segment| !gone.contains(&segment.base_offset));
        part.tails.retain(|tail| !gone.contains(&tail.segment));
        for base in gone {
            files.unlink(&paths::segment(part.state.partition, base)).unwrap();
            files.unlink(&paths::index(part.state.partition, base)).unwrap();
        }
    }

    /// Writes a checkpoint and lets journal files go that no slot needs.
    pub fn checkpoint(&mut self, files: &mut Image) {
        assert_eq!(self.entries, 0, "a checkpoint is of what is durable");
        let sequence = self.durable;
        let replay_from = self.partitions.iter().filter_map(Partition::oldest_group).min().unwrap_or(sequence + 1);
        let partitions = self.partitions.iter().map(Partition::snapshot).collect();
        let header =
            CheckpointHeader { cluster: CLUSTER, generation: self.generation, sequence, shard: self.number, body_crc: 0, body_len: 0 };
        let bytes = checkpoint::encode(&header, &CheckpointBody { sequence, replay_from, partitions });
        let path = paths::checkpoint(self.generation, self.number, self.slot);
        files.write(&path, 0, &bytes).unwrap();
        files.sync(&path).unwrap();
        files.sync_dir(paths::CHECKPOINT_DIR).unwrap();
        self.slot = self.slot.other();
        self.needed = (replay_from, self.needed.0);
        let mut keep = self.needed.0.min(self.needed.1);
        if self.bug == Some(Bug::ReuseJournalEarly) {
            keep = sequence;
        }
        while self.files.len() > 1 && self.files[0].1 < keep {
            self.ready.push(self.files.remove(0).0);
        }
        if let Some(state) = self.partitions.first().map(|part| part.state.partition) {
            let at = self.partitions.iter().position(|part| part.state.partition == state).expect("just found");
            let header = self.entry(at, EntryKind::Checkpoint, 0, 0, sequence as i64);
            self.add(header, &[]);
            self.commit(files);
        }
    }

    /// Position of a partition in this shard.
    pub fn find(&self, partition: TopicPartition) -> Option<usize> {
        self.partitions.iter().position(|part| part.state.partition == partition)
    }
}

impl Partition {
    fn new(state: PartitionState, remainder: Vec<u8>) -> Partition {
        let producers = ProducerTable::restore(100, &state.producers, 0);
        let named = state.segments.iter().map(|segment| segment.base_offset).collect();
        let open = state.segments.last().filter(|last| !last.sealed).copied();
        let tails = open.iter().map(|last| Tail {
            segment: last.base_offset,
            start: last.valid_end / BLOCK as u64 * BLOCK as u64,
            carry: !remainder.is_empty(),
            bytes: remainder.clone(),
            chunks: Vec::new(),
        });
        let tails = tails.collect();
        // An index that has entries is not read: what is appended gets none, and is found from the last one on.
        let indexes =
            open.iter().filter(|last| last.end_offset == last.base_offset).map(|last| (Index::new(last.base_offset), 0)).collect();
        let hashes = BTreeMap::from([(state.log_end, state.running_hash)]);
        Partition { tails, indexes, producers, named, hashes, state }
    }

    /// Gives a batch its place at the log's end. Returns its offset and position.
    fn enter(&mut self, batch: &mut [u8], epoch: i32) -> (Offset, u64) {
        let state = &mut self.state;
        batch::stamp(batch, state.log_end, epoch);
        let header = BatchHeader::parse(batch).unwrap();
        let last = state.segments.last_mut().expect("a segment is open");
        let position = last.valid_end;
        if let Some((index, _)) = self.indexes.iter_mut().find(|(index, _)| index.segment() == last.base_offset)
            && index.wants(position)
        {
            let before = last.max_timestamp;
            index.push(IndexEntry { offset: header.base_offset, position, max_timestamp: before, running_hash: state.running_hash });
            last.index_entries = index.len() as u32;
        }
        state.running_hash = running_hash(state.running_hash, &batch[..HEADER_LEN]);
        state.log_end = header.next_offset();
        state.max_timestamp = state.max_timestamp.max(header.max_timestamp);
        last.valid_end += batch.len() as u64;
        last.end_offset = state.log_end;
        last.max_timestamp = last.max_timestamp.max(header.max_timestamp);
        last.running_hash = state.running_hash;
        self.producers.record(&header, 0);
        self.hashes.insert(state.log_end, state.running_hash);
        (header.base_offset, position)
    }

    fn oldest_group(&self) -> Option<u64> {
        let flushed = (self.state.flushed_segment, self.state.flushed_position);
        let chunks = self.tails.iter().flat_map(|tail| tail.chunks.iter().map(move |(end, sequence)| ((tail.segment, *end), *sequence)));
        chunks.filter(|(end, _)| *end > flushed).map(|(_, sequence)| sequence).min()
    }

    fn snapshot(&self) -> PartitionState {
        PartitionState { producers: self.producers.snapshot(), ..self.state.clone() }
    }
}
