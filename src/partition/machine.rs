//! The partition machine.

mod replica;

use std::collections::VecDeque;

use bytes::Bytes;

use crate::batch::{self, BatchHeader};
use crate::checksum::running_hash;
use crate::log::checkpoint::PartitionState;
use crate::log::cleaning::plan::{Bounds, Survey};
use crate::log::index::{Index, IndexEntry, fits_segment};
use crate::log::leader_epochs::{self, EpochStart};
use crate::log::producers::{ProducerTable, Sequence};
use crate::log::replacement::replaced;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::partition::{Ladder, Settings};
use crate::request::{Code, Refusal};
use crate::types::{LeaderEpoch, Offset, Timestamp, TopicPartition};

pub use replica::{Cut, ReplicaAppend, ReplicaRefusal};

/// Rules and memory of one partition.
pub struct Partition {
    id: TopicPartition,
    epoch: LeaderEpoch,
    /// (epoch, first offset in it), rising.
    epochs: Vec<EpochStart>,
    ladder: Ladder,
    log_start: Offset,
    running_hash: u64,
    max_timestamp: Timestamp,
    /// By base offset; only the last one may be unsealed.
    segments: VecDeque<SegmentInfo>,
    /// Index of the last segment.
    index: Index,
    /// When the unsealed segment got its first record, by the broker's clock.
    segment_started: Option<Timestamp>,
    flushed: Flushed,
    producers: ProducerTable,
    /// It was damaged when the store was opened: what is known of it is kept as it is, and nothing is served.
    quarantined: bool,
    groups: Option<Bytes>,
}

/// Everything below is in segments and synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Flushed {
    segment: Offset,
    position: u64,
}

/// Where an append goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// One past the last record.
    pub end_offset: Offset,
    /// Segment by base offset.
    pub segment: Offset,
    /// Position of the batch in it.
    pub position: u64,
    /// Bytes of the batch.
    pub len: usize,
}

/// What is to be done with a batch.
#[derive(Clone, PartialEq, Debug)]
pub enum Planned {
    /// Append it here.
    Append(Plan),
    /// A new segment first ([`Partition::open_segment`]), then plan again.
    Roll,
    /// It is here already: answer with the original's offset once that is committed.
    Duplicate {
        /// The original's offset.
        base_offset: Offset,
        /// To be committed before the answer.
        end_offset: Offset,
    },
    /// No.
    Refused(Refusal),
}

/// A segment that was closed by a roll, with its index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// As it will stay.
    pub segment: SegmentInfo,
    /// Its index.
    pub index: Index,
}

/// What a roll did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The segment before, if it was open.
    pub sealed: Option<Sealed>,
    /// Base offset of the new one.
    pub segment: Offset,
}

impl Partition {
    /// A partition as recovered (or new), led from now on in `epoch`. If its last segment is open, [`Partition::restore_index`] comes before the first append.
    pub fn open(state: PartitionState, epoch: LeaderEpoch, max_producers: usize, now: Timestamp) -> Partition {
        let log_end = state.log_end;
        let mut machine = Partition::open_replica(state, max_producers, now);
        machine.ladder = Ladder::at(log_end);
        leader_epochs::note(&mut machine.epochs, epoch, log_end);
        machine.epoch = epoch;
        machine
    }

    /// As [`Partition::open`] of a partition that has other replicas: who leads is not known yet, its epoch is the last one that it was told of, and only what it was told
    /// to be committed is.
    pub fn open_replica(state: PartitionState, max_producers: usize, now: Timestamp) -> Partition {
        // When the open segment got its first batch is not kept: its age counts from now.
        let segment_started = state.segments.last().filter(|s| !s.sealed && s.valid_end > FIRST_POSITION).map(|_| now);
        Partition {
            id: state.partition,
            epoch: state.epochs.last().map_or(-1, |(epoch, _)| *epoch),
            epochs: state.epochs,
            ladder: Ladder::replica(state.log_end, state.high_watermark),
            log_start: state.log_start,
            running_hash: state.running_hash,
            max_timestamp: state.max_timestamp,
            segments: state.segments.into(),
            index: Index::new(0),
            segment_started,
            flushed: Flushed { segment: state.flushed_segment, position: state.flushed_position },
            producers: ProducerTable::restore(max_producers, &state.producers, now),
            quarantined: state.quarantined,
            groups: state.groups,
        }
    }

    /// The snapshot of the consumer groups that this partition holds, as it goes into checkpoints.
    pub fn groups(&self) -> Option<&Bytes> {
        self.groups.as_ref()
    }

    /// Another snapshot from the next checkpoint on.
    pub fn set_groups(&mut self, groups: Option<Bytes>) {
        self.groups = groups;
    }

    /// Whether it was set aside when the store was opened; every checkpoint says so again, or the next start would serve a shorter log.
    pub fn is_quarantined(&self) -> bool {
        self.quarantined
    }

    /// Which partition.
    pub fn id(&self) -> TopicPartition {
        self.id
    }

    /// The present leader epoch.
    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Where an epoch ends, as Kafka's leader epoch cache answers: (the largest epoch up to `asked` that has records, one past its last). Of one whose records
    /// are all gone that is where the first one known begins; of one that is still to come, or never was, there is no answer.
    pub fn end_of_epoch(&self, asked: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        let (latest, _) = *self.epochs.last()?;
        if asked < 0 || asked > latest {
            return None;
        }
        let later = self.epochs.partition_point(|(epoch, _)| *epoch <= asked);
        let log_end = self.ladder.appended();
        let end = self.epochs.get(later).map_or(log_end, |(_, start)| (*start).min(log_end));
        let epoch = later.checked_sub(1).map_or(asked, |floor| self.epochs[floor].0);
        Some((epoch, end))
    }

    /// The leader epoch in which the record at `offset` was written, or would be; `None` of one before all that are known.
    pub fn epoch_of(&self, offset: Offset) -> Option<LeaderEpoch> {
        leader_epochs::around(&self.epochs, offset).0
    }

    /// How far the log has come.
    pub fn ladder(&self) -> &Ladder {
        &self.ladder
    }

    /// Moves the device's ends and the watermark.
    pub fn ladder_mut(&mut self) -> &mut Ladder {
        &mut self.ladder
    }

    /// First readable offset.
    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    /// First offset of the first batch that is there: at or before [`Partition::log_start`], which may hide the first records of a segment.
    pub fn first_offset(&self) -> Offset {
        self.segments.front().map_or(self.log_start, |first| first.base_offset)
    }

    /// Running hash at the log's end.
    pub fn running_hash(&self) -> u64 {
        self.running_hash
    }

    /// Largest timestamp so far; -1 on an empty log.
    pub fn max_timestamp(&self) -> Timestamp {
        self.max_timestamp
    }

    /// Segments by base offset.
    pub fn segments(&self) -> &VecDeque<SegmentInfo> {
        &self.segments
    }

    /// The segment that is appended to.
    pub fn active(&self) -> Option<&SegmentInfo> {
        self.segments.back().filter(|s| !s.sealed)
    }

    /// Index of the last segment.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// (Segment, position): everything before is in segments and synced.
    pub fn flushed(&self) -> (Offset, u64) {
        (self.flushed.segment, self.flushed.position)
    }

    /// Position at which the next batch would start; `None` without an open segment.
    pub fn next_position(&self) -> Option<u64> {
        self.active().map(|s| s.valid_end)
    }

    /// Decides what becomes of a checked batch of `len` bytes.
    pub fn plan(&self, header: &BatchHeader, len: usize, now: Timestamp, settings: &Settings) -> Planned {
        if len > settings.max_message_bytes {
            let message = format!("batch of {len} bytes; max.message.bytes of the topic is {}", settings.max_message_bytes);
            return Planned::Refused(Refusal::new(Code::RecordTooLarge, message));
        }
        match self.producers.check(header) {
            Sequence::New => {}
            Sequence::Duplicate { base_offset, last_offset, .. } => return Planned::Duplicate { base_offset, end_offset: last_offset + 1 },
            refused => return Planned::Refused(sequence_refusal(header, &refused)),
        }
        let base_offset = self.ladder.appended();
        let Some(end_offset) = base_offset.checked_add(i64::from(header.record_count)) else {
            return Planned::Refused(Refusal::new(Code::InvalidRecord, "the partition's offsets are used up"));
        };
        match self.active() {
            Some(active) if !self.must_roll(active, end_offset, len, now, settings) => {
                Planned::Append(Plan { base_offset, end_offset, segment: active.base_offset, position: active.valid_end, len })
            }
            _ => Planned::Roll,
        }
    }

    fn must_roll(&self, active: &SegmentInfo, end_offset: Offset, len: usize, now: Timestamp, settings: &Settings) -> bool {
        let empty = active.valid_end == FIRST_POSITION;
        // Index entries hold offset and position in 32 bits.
        let too_far = !fits_segment(active.base_offset, end_offset, active.valid_end + len as u64);
        let too_large = active.valid_end + len as u64 > settings.segment_bytes.max(FIRST_POSITION);
        let too_old = self.segment_started.is_some_and(|started| now.saturating_sub(started) >= settings.segment_ms);
        !empty && (too_far || too_large || too_old)
    }

    /// Takes a planned batch into the log. `stored` are its first 61 bytes as they will be on disk.
    pub fn append(&mut self, plan: &Plan, stored: &[u8; batch::HEADER_LEN], header: &BatchHeader, now: Timestamp) {
        assert_eq!(plan.base_offset, self.ladder.appended(), "a plan is carried out before the next one is made");
        let active = self.segments.back_mut().expect("a plan names the open segment");
        assert!(!active.sealed && active.valid_end == plan.position, "the plan's position is the segment's end");
        if self.index.wants(plan.position) {
            self.index.push(IndexEntry {
                offset: plan.base_offset,
                position: plan.position,
                max_timestamp: active.max_timestamp,
                running_hash: self.running_hash,
            });
        }
        self.running_hash = running_hash(self.running_hash, stored);
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
        active.valid_end += plan.len as u64;
        active.end_offset = plan.end_offset;
        active.max_timestamp = active.max_timestamp.max(header.max_timestamp);
        active.running_hash = self.running_hash;
        active.index_entries = self.index.len() as u32;
        self.segment_started.get_or_insert(now);
        self.ladder.append_to(plan.end_offset);
        self.producers.record(&BatchHeader { base_offset: plan.base_offset, ..*header }, now);
    }

    /// The segment that [`Partition::open_segment`] would open.
    pub fn next_segment(&self) -> SegmentInfo {
        SegmentInfo::new(self.ladder.appended(), 0, self.running_hash)
    }

    /// Gives a partition that was just opened the index of its open segment, read from disk.
    pub fn restore_index(&mut self, index: Index) {
        let active = self.segments.back_mut().filter(|s| !s.sealed).expect("only an open segment is appended to");
        assert_eq!(index.segment(), active.base_offset, "the index is the open segment's");
        active.index_entries = index.len() as u32;
        self.index = index;
    }

    /// Seals the open segment and opens one at the log's end.
    pub fn open_segment(&mut self) -> Opened {
        let base_offset = self.ladder.appended();
        let sealed = self.seal();
        self.segments.push_back(SegmentInfo::new(base_offset, 0, self.running_hash));
        self.index = Index::new(base_offset);
        self.segment_started = None;
        if sealed.is_none() && self.fully_flushed_before(base_offset) {
            self.flushed = Flushed { segment: base_offset, position: FIRST_POSITION };
        }
        Opened { sealed, segment: base_offset }
    }

    /// Takes a file that holds one whole batch as the sealed last segment. The open one is sealed first.
    pub fn adopt(&mut self, plan: &Plan, stored: &[u8; batch::HEADER_LEN], header: &BatchHeader, now: Timestamp) -> Option<Sealed> {
        let opened = self.open_segment();
        assert_eq!((plan.segment, plan.position), (opened.segment, FIRST_POSITION), "an adopted batch is alone in its segment");
        self.append(plan, stored, header, now);
        let segment = self.segments.back_mut().expect("opened above");
        segment.sealed = true;
        segment.adopted = true;
        opened.sealed
    }

    /// The plan of a batch that becomes a segment of its own.
    pub fn plan_adoption(&self, header: &BatchHeader, len: usize, now: Timestamp, settings: &Settings) -> Planned {
        match self.plan(header, len, now, settings) {
            Planned::Append(_) | Planned::Roll => {
                let base_offset = self.ladder.appended();
                let end_offset = base_offset + i64::from(header.record_count);
                Planned::Append(Plan { base_offset, end_offset, segment: base_offset, position: FIRST_POSITION, len })
            }
            other => other,
        }
    }

    fn seal(&mut self) -> Option<Sealed> {
        let index = std::mem::replace(&mut self.index, Index::new(self.ladder.appended()));
        let active = self.segments.back_mut().filter(|s| !s.sealed)?;
        if active.end_offset == active.base_offset {
            // Nothing was appended: the next segment takes its place, so that no two have one base offset.
            self.segments.pop_back();
            return None;
        }
        active.sealed = true;
        Some(Sealed { segment: *active, index })
    }

    fn fully_flushed_before(&self, base_offset: Offset) -> bool {
        match self.segments.iter().rev().find(|s| s.base_offset < base_offset) {
            None => true,
            Some(last) => last.sealed && self.flushed.segment == last.base_offset && self.flushed.position >= last.valid_end,
        }
    }

    /// The next unflushed (segment, from, to): `to` is the segment's end; `None` when all is flushed.
    pub fn unflushed(&self) -> Option<(SegmentInfo, u64)> {
        let at = self.segments.iter().position(|s| s.base_offset >= self.flushed.segment)?;
        self.segments.range(at..).find_map(|s| {
            let from = if s.base_offset == self.flushed.segment { self.flushed.position.max(FIRST_POSITION) } else { FIRST_POSITION };
            (from < s.valid_end).then_some((*s, from))
        })
    }

    /// Everything up to `position` of `segment` is in segments and synced.
    pub fn flushed_to(&mut self, segment: Offset, position: u64) {
        let target = Flushed { segment, position };
        assert!((segment, position) >= (self.flushed.segment, self.flushed.position), "flushing goes on: {:?} to {target:?}", self.flushed);
        self.flushed = target;
    }

    /// The new log start that retention asks for, if any: whole sealed segments only, never past the watermark.
    pub fn retention(&self, now: Timestamp, settings: &Settings) -> Option<Offset> {
        let mut total: u64 = self.segments.iter().map(|s| s.valid_end - FIRST_POSITION).sum();
        let mut start = None;
        for segment in self.segments.iter().take_while(|s| s.sealed && s.end_offset <= self.ladder.committed()) {
            let too_much = settings.retention_bytes.is_some_and(|most| total > most);
            let too_old = settings.retention_ms.is_some_and(|ms| segment.max_timestamp < now.saturating_sub(ms));
            if !too_much && !too_old {
                break;
            }
            total -= segment.valid_end - FIRST_POSITION;
            start = Some(segment.end_offset);
        }
        start.filter(|s| *s > self.log_start)
    }

    /// Whether the open segment is due for a roll: by its age, or because all of it is too old to be kept and only sealed segments go.
    pub fn is_overdue(&self, now: Timestamp, settings: &Settings) -> bool {
        let Some(active) = self.active().filter(|s| s.valid_end > FIRST_POSITION) else { return false };
        let is_aged = self.segment_started.is_some_and(|started| now.saturating_sub(started) >= settings.segment_ms);
        let is_expired = settings.retention_ms.is_some_and(|ms| active.max_timestamp < now.saturating_sub(ms));
        is_aged || is_expired
    }

    /// Raises the log start; segments wholly below it are taken out and returned.
    ///
    /// # Errors
    /// When `start` is not between the present one and the watermark.
    pub fn raise_log_start(&mut self, start: Offset) -> Result<Vec<SegmentInfo>, Refusal> {
        if start < self.log_start || start > self.ladder.committed() {
            let message = format!("log start {start} is not between {} and the high watermark {}", self.log_start, self.ladder.committed());
            return Err(Refusal::new(Code::OffsetOutOfRange, message));
        }
        self.log_start = start;
        let mut gone = Vec::new();
        while self.segments.front().is_some_and(|s| s.sealed && s.end_offset <= start) {
            gone.extend(self.segments.pop_front());
        }
        if let Some(first) = self.segments.front()
            && self.flushed.segment < first.base_offset
        {
            self.flushed = Flushed { segment: first.base_offset, position: FIRST_POSITION };
        }
        Ok(gone)
    }

    /// What of the log may be cleaned, and how much of it is dirty.
    pub fn survey(&self, now: Timestamp, settings: &Settings) -> Survey {
        let bounds = Bounds {
            flushed_segment: self.flushed.segment,
            committed: self.ladder.committed(),
            newest_timestamp: if settings.compaction_lag_ms > 0 { now.saturating_sub(settings.compaction_lag_ms) } else { Timestamp::MAX },
        };
        Survey::of(&self.segments, &bounds)
    }

    /// Whether the cleaner has rewritten anything at or behind `offset`: tombstones may be missing there.
    pub fn is_rewritten_from(&self, offset: Offset) -> bool {
        self.segments.iter().any(|segment| segment.is_rewritten() && segment.end_offset > offset)
    }

    /// Puts a rewritten segment, which is on disk, in the place of those that it was made of; they are returned.
    ///
    /// # Errors
    /// When they are not those of the log (any more).
    pub fn replace_segments(&mut self, new: SegmentInfo) -> Result<Vec<SegmentInfo>, String> {
        let range = replaced(self.segments.iter(), &new)?;
        assert!(self.segments.range(range.clone()).all(|s| s.base_offset < self.flushed.segment), "only what is flushed is cleaned");
        let at = range.start;
        let gone: Vec<_> = self.segments.drain(range).collect();
        if !gone.is_empty() {
            self.segments.insert(at, new);
        }
        Ok(gone)
    }

    /// A pass has looked at all of a segment and found nothing to leave out.
    pub fn mark_cleaned(&mut self, segment: &SegmentInfo) {
        let same = |s: &&mut SegmentInfo| (s.base_offset, s.rewrite_generation) == (segment.base_offset, segment.rewrite_generation);
        if let Some(found) = self.segments.iter_mut().find(same) {
            found.cleaned = true;
        }
    }

    /// Forgets producers that have been silent too long.
    pub fn expire_producers(&mut self, now: Timestamp, after_ms: i64) {
        self.producers.expire(now.saturating_sub(after_ms));
    }

    /// The segment that holds `offset`.
    pub fn segment_of(&self, offset: Offset) -> Option<&SegmentInfo> {
        let at = self.segments.partition_point(|s| s.base_offset <= offset).checked_sub(1)?;
        self.segments.get(at).filter(|s| offset < s.end_offset)
    }

    /// What a checkpoint keeps.
    pub fn state(&self) -> PartitionState {
        PartitionState {
            partition: self.id,
            quarantined: self.quarantined,
            log_start: self.log_start,
            log_end: self.ladder.appended(),
            high_watermark: self.ladder.committed(),
            running_hash: self.running_hash,
            max_timestamp: self.max_timestamp,
            flushed_segment: self.flushed.segment,
            flushed_position: self.flushed.position,
            epochs: self.epochs.clone(),
            segments: self.segments.iter().copied().collect(),
            producers: self.producers.snapshot(),
            groups: self.groups.clone(),
        }
    }
}

fn sequence_refusal(header: &BatchHeader, sequence: &Sequence) -> Refusal {
    let producer = header.producer_id;
    match sequence {
        Sequence::OutOfOrder { expected, actual } => {
            Refusal::new(Code::OutOfOrderSequence, format!("producer {producer}: expected sequence {expected}, got {actual}"))
        }
        Sequence::Fenced { current, actual } => {
            Refusal::new(Code::InvalidProducerEpoch, format!("producer {producer}: epoch {actual}, the current one is {current}"))
        }
        Sequence::UnknownProducer { actual } => {
            Refusal::new(Code::UnknownProducerId, format!("producer {producer} is not known: expected sequence 0, got {actual}"))
        }
        Sequence::New | Sequence::Duplicate { .. } => unreachable!("not refused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TopicId;

    #[test]
    fn a_partition_that_was_set_aside_stays_so_in_every_later_checkpoint() {
        let id = TopicPartition { topic: TopicId([7; 16]), partition: 3 };
        for quarantined in [true, false] {
            let mut state = PartitionState { quarantined, ..PartitionState::new(id) };
            for epoch in 1..4 {
                let machine = Partition::open(state, epoch, 10, 0);
                assert_eq!(machine.is_quarantined(), quarantined);
                state = machine.state();
                assert_eq!(state.quarantined, quarantined);
            }
        }
    }

    #[test]
    fn a_rewritten_segment_takes_the_place_of_those_it_was_made_of() {
        let id = TopicPartition { topic: TopicId([7; 16]), partition: 3 };
        let sealed = |base, end, generation| {
            let info = SegmentInfo::new(base, generation, end as u64);
            SegmentInfo { end_offset: end, valid_end: FIRST_POSITION + 100, sealed: true, ..info }
        };
        let segments = vec![sealed(0, 10, 0), sealed(10, 20, 0), sealed(20, 30, 0), SegmentInfo::new(30, 0, 30)];
        let state =
            PartitionState { segments, log_end: 30, flushed_segment: 30, flushed_position: FIRST_POSITION, ..PartitionState::new(id) };
        let mut machine = Partition::open(state, 1, 10, 0);
        assert!(!machine.is_rewritten_from(0));
        let gone = machine.replace_segments(sealed(0, 20, 1)).unwrap();
        assert_eq!(gone.iter().map(|segment| segment.base_offset).collect::<Vec<_>>(), [0, 10]);
        assert_eq!(machine.segments().iter().map(|s| (s.base_offset, s.end_offset)).collect::<Vec<_>>(), [(0, 20), (20, 30), (30, 30)]);
        assert!(machine.replace_segments(sealed(10, 20, 2)).is_err(), "they were replaced meanwhile");
        assert!(machine.is_rewritten_from(19) && !machine.is_rewritten_from(20));
        assert_eq!(machine.segment_of(15).map(|segment| segment.rewrite_generation), Some(1));
    }

    #[test]
    fn epochs_end_where_the_next_with_records_begins() {
        let id = TopicPartition { topic: TopicId([7; 16]), partition: 3 };
        let state = PartitionState { epochs: vec![(2, 0), (5, 100), (6, 250)], log_end: 300, ..PartitionState::new(id) };
        let machine = Partition::open(state, 8, 10, 0);
        for (asked, expected) in [
            (-1, None),
            (0, Some((0, 0))),
            (2, Some((2, 100))),
            (4, Some((2, 100))),
            (5, Some((5, 250))),
            (7, Some((6, 300))),
            (8, Some((8, 300))),
            (9, None),
        ] {
            assert_eq!(machine.end_of_epoch(asked), expected, "epoch {asked}");
        }
        for (offset, expected) in [(0, 2), (99, 2), (100, 5), (249, 5), (250, 6), (299, 6), (300, 8)] {
            assert_eq!(machine.epoch_of(offset), Some(expected), "offset {offset}");
        }
        // Starts without records leave one entry.
        let mut state = machine.state();
        for epoch in 9..20 {
            state = Partition::open(state, epoch, 10, 0).state();
        }
        assert_eq!(state.epochs, [(2, 0), (5, 100), (6, 250), (19, 300)]);
    }

    #[test]
    fn an_open_segment_comes_to_its_roll_after_a_restart_too() {
        const NOW: Timestamp = 1_000_000;
        let id = TopicPartition { topic: TopicId([7; 16]), partition: 3 };
        let kept = Settings { segment_ms: 1000, retention_ms: None, ..Settings::default() };
        let expiring = Settings { retention_ms: Some(500), ..kept };
        // Valid end, largest timestamp, settings, and when it is overdue.
        for (valid_end, max_timestamp, settings, overdue_at) in [
            (FIRST_POSITION + 100, NOW - 900, kept, Some(NOW + 1000)),
            (FIRST_POSITION + 100, NOW - 300, expiring, Some(NOW + 201)),
            (FIRST_POSITION + 100, NOW + 5000, expiring, Some(NOW + 1000)),
            (FIRST_POSITION, -1, expiring, None),
        ] {
            let segment = SegmentInfo { valid_end, max_timestamp, ..SegmentInfo::new(0, 0, 0) };
            let machine = Partition::open(PartitionState { segments: vec![segment], ..PartitionState::new(id) }, 1, 10, NOW);
            match overdue_at {
                Some(at) => assert!(machine.is_overdue(at, &settings) && !machine.is_overdue(at - 1, &settings), "{segment:?}"),
                None => assert!(!machine.is_overdue(NOW + 10_000, &settings), "an empty segment has no age"),
            }
        }
    }
}
