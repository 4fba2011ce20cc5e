//! The partition as a follower has it: what a leader sends is checked against the log and taken as it is, and the log is cut back where a new leader's is another one.
//!
//! A leader has given offsets and stamped epochs, and it decides where segments begin; so a follower's segments are the leader's, byte for byte. Everything is checked before
//! anything is changed: a refusal leaves the log as it was.

use super::{Flushed, Partition, Plan, Planned, Sealed};
use crate::batch::{self, BatchError, BatchHeader, BatchIter};
use crate::checksum::running_hash;
use crate::log::checkpoint::ProducerSnapshot;
use crate::log::index::{Index, fits_segment};
use crate::log::leader_epochs;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::log::segment_check::{CheckedSegment, SegmentFault, SegmentWord};
use crate::partition::ladder::Ladder;
use crate::types::{LeaderEpoch, Offset, Timestamp};

/// What a leader sends of one segment.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaAppend<'a> {
    /// The epoch in which the leader leads now.
    pub epoch: LeaderEpoch,
    /// The segment that the batches are in, by base offset. Where that is the first batch's offset, the leader opened a segment there.
    pub segment: Offset,
    /// The leader's running hash after the last batch.
    pub running_hash: u64,
    /// Whole batches as they are stored, one after the other.
    pub batches: &'a [u8],
}

/// Why a replica does not take what a leader sends, or does not do what it says. Nothing has changed then.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplicaRefusal {
    /// By a leader of another epoch than the one that the replica knows to be the present one.
    #[error("from a leader of epoch {actual}, the present one is {expected}")]
    Epoch {
        /// The replica's.
        expected: LeaderEpoch,
        /// The leader's.
        actual: LeaderEpoch,
    },
    /// A batch does not check.
    #[error("at offset {offset}: {error}")]
    Batch {
        /// Where it should go.
        offset: Offset,
        /// What is wrong with it.
        error: BatchError,
    },
    /// A segment that was received whole does not check.
    #[error(transparent)]
    Shipped(#[from] SegmentFault),
    /// A batch does not follow.
    #[error("a batch of offset {actual} where the log goes on at {expected}")]
    Offset {
        /// The end of what is before it.
        expected: Offset,
        /// Its own.
        actual: Offset,
    },
    /// A batch is of an epoch that can't be here.
    #[error("a batch of leader epoch {actual} at offset {offset}: there it is {least} to {most}")]
    BatchEpoch {
        /// Where.
        offset: Offset,
        /// That of what is before it.
        least: LeaderEpoch,
        /// The last one that can be.
        most: LeaderEpoch,
        /// Its own.
        actual: LeaderEpoch,
    },
    /// What comes before is not what the leader has there.
    #[error("running hash {actual:016x} at offset {offset}, the leader's is {expected:016x}: the logs differ before that")]
    RunningHash {
        /// Where.
        offset: Offset,
        /// The leader's.
        expected: u64,
        /// The replica's.
        actual: u64,
    },
    /// The batches are in another segment than the one that is appended to.
    #[error("batches of segment {actual}; the open one is {expected:?}, and the log ends at {log_end}")]
    Segment {
        /// The open one.
        expected: Option<Offset>,
        /// The leader's.
        actual: Offset,
        /// Where the log ends.
        log_end: Offset,
    },
    /// The epoch begins before the log's end: the log must be cut first.
    #[error("epoch {epoch} begins at {start}, the log ends at {log_end}")]
    EpochStart {
        /// Which.
        epoch: LeaderEpoch,
        /// Where it begins.
        start: Offset,
        /// Where the log ends.
        log_end: Offset,
    },
    /// A cut of what is committed.
    #[error("a cut at {offset}: everything below {high_watermark} is committed")]
    BelowWatermark {
        /// Where.
        offset: Offset,
        /// The watermark.
        high_watermark: Offset,
    },
    /// A cut outside of the log.
    #[error("a cut at {offset} of a log of {log_start} to {log_end}")]
    OutsideLog {
        /// Where.
        offset: Offset,
        /// First readable offset.
        log_start: Offset,
        /// Where the log ends.
        log_end: Offset,
    },
    /// A cut within a batch.
    #[error("a cut at {offset}, within a batch of {batch_start} to {batch_end}")]
    WithinBatch {
        /// Where.
        offset: Offset,
        /// First offset of the batch.
        batch_start: Offset,
        /// One past its last offset.
        batch_end: Offset,
    },
    /// A cut of a segment that a cleaning has rewritten.
    #[error("a cut at {offset} of segment {segment}, which was rewritten: all of it is committed")]
    Rewritten {
        /// Where.
        offset: Offset,
        /// Which segment.
        segment: Offset,
    },
}

/// Where and how a log is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// The log's end from then on.
    pub offset: Offset,
    /// The segment that it ends in, by base offset: it is open then.
    pub segment: Offset,
    /// Position in that segment, bytes.
    pub position: u64,
    /// Running hash there.
    pub running_hash: u64,
    /// Largest timestamp of what is left of the segment; `i64::MIN` if nothing is.
    pub segment_max_timestamp: Timestamp,
}

impl Partition {
    /// Checks what a leader sends; the headers of its batches.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check_replica(&self, append: &ReplicaAppend<'_>) -> Result<Vec<BatchHeader>, ReplicaRefusal> {
        self.expect_epoch(append.epoch)?;
        let mut headers = Vec::new();
        let (mut next, mut hash) = (self.ladder.appended(), self.running_hash);
        let mut least = leader_epochs::around(&self.epochs, next).0.unwrap_or(0);
        self.expect_segment(append.segment)?;
        for found in BatchIter::new(append.batches) {
            let stored = found.and_then(|(_, bytes)| batch::check_stored(bytes).map(|header| (header, bytes)));
            let (header, bytes) = stored.map_err(|error| ReplicaRefusal::Batch { offset: next, error })?;
            if header.base_offset != next {
                return Err(ReplicaRefusal::Offset { expected: next, actual: header.base_offset });
            }
            least = self.expect_batch_epoch(&header, least, append.epoch)?;
            hash = self.hash_after(hash, bytes, &header)?;
            next = header.next_offset();
            headers.push(header);
        }
        match hash == append.running_hash {
            true => Ok(headers),
            false => Err(ReplicaRefusal::RunningHash { offset: next, expected: append.running_hash, actual: hash }),
        }
    }

    /// As [`Partition::check_replica`] of one batch whose bytes were checked while they came in, by its first 61 bytes; it is alone in its segment.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check_replica_head(
        &self,
        stored: &[u8; batch::HEADER_LEN],
        epoch: LeaderEpoch,
        leader_hash: u64,
    ) -> Result<(BatchHeader, Plan), ReplicaRefusal> {
        self.expect_epoch(epoch)?;
        let base_offset = self.ladder.appended();
        let header = BatchHeader::parse(stored).map_err(|error| ReplicaRefusal::Batch { offset: base_offset, error })?;
        if header.base_offset != base_offset {
            return Err(ReplicaRefusal::Offset { expected: base_offset, actual: header.base_offset });
        }
        let least = leader_epochs::around(&self.epochs, base_offset).0.unwrap_or(0);
        self.expect_batch_epoch(&header, least, epoch)?;
        let hash = running_hash(self.running_hash, stored);
        if hash != leader_hash {
            return Err(ReplicaRefusal::RunningHash { offset: header.next_offset(), expected: leader_hash, actual: hash });
        }
        let (end_offset, len) = (header.next_offset(), header.total_len());
        Ok((header, Plan { base_offset, end_offset, segment: base_offset, position: FIRST_POSITION, len }))
    }

    fn expect_epoch(&self, actual: LeaderEpoch) -> Result<(), ReplicaRefusal> {
        if actual == self.epoch { Ok(()) } else { Err(ReplicaRefusal::Epoch { expected: self.epoch, actual }) }
    }

    fn expect_segment(&self, segment: Offset) -> Result<(), ReplicaRefusal> {
        let (expected, log_end) = (self.active().map(|active| active.base_offset), self.ladder.appended());
        match segment == log_end || expected == Some(segment) {
            true => Ok(()),
            false => Err(ReplicaRefusal::Segment { expected, actual: segment, log_end }),
        }
    }

    /// The epoch of a batch that is at least `least`, if it can be where the batch is.
    fn expect_batch_epoch(&self, header: &BatchHeader, least: LeaderEpoch, present: LeaderEpoch) -> Result<LeaderEpoch, ReplicaRefusal> {
        let (at_least, later) = leader_epochs::around(&self.epochs, header.base_offset);
        let (least, actual) = (least.max(at_least.unwrap_or(0)), header.leader_epoch);
        let most = match later {
            // One that reaches into a later epoch is of none.
            Some((_, start)) if header.next_offset() > start => least - 1,
            Some((epoch, start)) if start < leader_epochs::UNKNOWN_START => present.min(epoch - 1),
            Some(_) | None => present,
        };
        match (least..=most).contains(&actual) {
            true => Ok(actual),
            false => Err(ReplicaRefusal::BatchEpoch { offset: header.base_offset, least, most, actual }),
        }
    }

    fn hash_after(&self, before: u64, bytes: &[u8], header: &BatchHeader) -> Result<u64, ReplicaRefusal> {
        let cut = BatchError::Truncated { needed: batch::HEADER_LEN, available: bytes.len() };
        let head = bytes.first_chunk::<{ batch::HEADER_LEN }>().ok_or(ReplicaRefusal::Batch { offset: header.base_offset, error: cut })?;
        Ok(running_hash(before, head))
    }

    /// Where a batch goes that [`Partition::check_replica`] has let pass, as one of `segment`; [`Planned::Roll`] where the leader opened that segment for it.
    ///
    /// # Errors
    /// When the segment is another one than the leader's, or has no place for it.
    pub fn plan_replica(&self, header: &BatchHeader, segment: Offset) -> Result<Planned, ReplicaRefusal> {
        self.expect_segment(segment)?;
        let (base_offset, end_offset, len) = (self.ladder.appended(), header.next_offset(), header.total_len());
        match self.active().filter(|active| active.base_offset == segment) {
            None => Ok(Planned::Roll),
            Some(active) if fits_segment(segment, end_offset, active.valid_end + len as u64) => {
                Ok(Planned::Append(Plan { base_offset, end_offset, segment, position: active.valid_end, len }))
            }
            Some(_) => Err(ReplicaRefusal::Segment { expected: None, actual: segment, log_end: base_offset }),
        }
    }

    /// Whether a segment that was received whole and checks goes on where the log ends, by a leader of `epoch`. Through one that was rewritten a chain of its own leads, so its running hash says nothing of
    /// what is before it.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check_install(&self, segment: &CheckedSegment, epoch: LeaderEpoch) -> Result<(), ReplicaRefusal> {
        self.expect_epoch(epoch)?;
        let (log_end, info) = (self.ladder.appended(), &segment.info);
        if info.base_offset != log_end {
            return Err(ReplicaRefusal::Offset { expected: log_end, actual: info.base_offset });
        }
        if !info.is_rewritten() && segment.hash_before != self.running_hash {
            return Err(ReplicaRefusal::RunningHash { offset: log_end, expected: segment.hash_before, actual: self.running_hash });
        }
        let mut least = leader_epochs::around(&self.epochs, log_end).0.unwrap_or(0);
        let mut after = log_end - 1;
        for (actual, offset) in &segment.epochs {
            let (actual, offset) = (*actual, *offset);
            if !(least..=epoch).contains(&actual) || offset <= after || offset >= info.end_offset {
                return Err(ReplicaRefusal::BatchEpoch { offset, least, most: epoch, actual });
            }
            (least, after) = (actual + 1, offset);
        }
        // Of an epoch of which it is known where it begins: it must begin there in the segment too.
        let known = self.epochs.iter().filter(|(_, start)| (log_end..info.end_offset).contains(start));
        for (actual, offset) in known {
            if !segment.epochs.iter().any(|(epoch, start)| epoch > actual || (epoch, start) == (actual, offset)) {
                return Err(ReplicaRefusal::BatchEpoch { offset: *offset, least: *actual, most: epoch, actual: least - 1 });
            }
        }
        Ok(())
    }

    /// Takes a segment that was received whole, and that [`Partition::check_install`] has let pass, as the sealed last one; everything before it is flushed. The open one is sealed first.
    ///
    /// # Panics
    /// When something is not flushed.
    pub fn install(&mut self, segment: &CheckedSegment, now: Timestamp) -> Option<Sealed> {
        assert!(self.unflushed().is_none(), "a segment is installed behind what is flushed");
        let info = segment.info;
        let sealed = self.seal();
        for (epoch, start) in &segment.epochs {
            leader_epochs::note(&mut self.epochs, *epoch, *start);
        }
        self.segments.push_back(info);
        self.index = segment.index.clone();
        self.segment_started = None;
        self.running_hash = info.running_hash;
        self.max_timestamp = self.max_timestamp.max(info.max_timestamp);
        self.ladder.append_to(info.end_offset);
        self.flushed = Flushed { segment: info.base_offset, position: info.valid_end };
        self.producers.extend(&segment.producers, now);
        sealed
    }

    /// Notes the epoch of a batch that is about to be taken as a leader sent it.
    pub fn note_batch_epoch(&mut self, header: &BatchHeader) {
        leader_epochs::note(&mut self.epochs, header.leader_epoch, header.base_offset);
    }

    /// From now on `epoch` is the present one; its records begin at `start`, at or behind the log's end.
    ///
    /// # Errors
    /// When it is older than the present one, or would begin within the log: its leader has not said yet where the logs part.
    pub fn begin_epoch(&mut self, epoch: LeaderEpoch, start: Offset) -> Result<(), ReplicaRefusal> {
        if epoch < self.epoch {
            return Err(ReplicaRefusal::Epoch { expected: self.epoch, actual: epoch });
        }
        let is_known = self.epochs.last().is_some_and(|(last, _)| *last == epoch);
        let log_end = self.ladder.appended();
        if start < log_end && !is_known {
            return Err(ReplicaRefusal::EpochStart { epoch, start, log_end });
        }
        self.epoch = epoch;
        leader_epochs::begin(&mut self.epochs, epoch, start, log_end);
        Ok(())
    }

    /// The present epoch and where it begins, for the journal.
    pub fn epoch_start(&self) -> (LeaderEpoch, Offset) {
        let last = self.epochs.last().filter(|(epoch, _)| *epoch == self.epoch);
        last.copied().unwrap_or((self.epoch, self.ladder.appended()))
    }

    /// The epochs, for who compares them with another replica's: (epoch, first offset in it), rising.
    pub fn epochs(&self) -> &[(LeaderEpoch, Offset)] {
        &self.epochs
    }

    /// The segment that a log cut at `offset` ends in: the one before that offset, so that whether a segment begins at it stays the leader's decision. `None`: there is nothing to cut.
    ///
    /// # Errors
    /// When the log can't be cut there.
    pub fn cut_segment(&self, offset: Offset, unclean: bool) -> Result<Option<SegmentInfo>, ReplicaRefusal> {
        let (log_start, log_end, high_watermark) = (self.log_start, self.ladder.appended(), self.ladder.committed());
        if offset < log_start || offset > log_end {
            return Err(ReplicaRefusal::OutsideLog { offset, log_start, log_end });
        }
        if offset < high_watermark && !unclean {
            return Err(ReplicaRefusal::BelowWatermark { offset, high_watermark });
        }
        let is_empty = |segment: &SegmentInfo| segment.base_offset == segment.end_offset;
        if offset == log_end && !self.active().is_some_and(is_empty) {
            return Ok(None);
        }
        let before = self.segments.iter().rev().find(|segment| segment.base_offset < offset);
        let kept = match before {
            Some(before) if !before.is_rewritten() => Some(before),
            Some(before) if before.end_offset > offset => {
                return Err(ReplicaRefusal::Rewritten { offset, segment: before.base_offset });
            }
            _ => self.segments.iter().find(|segment| segment.base_offset >= offset),
        };
        // An open segment without a record that has none before it stays as it is.
        let is_cut = |kept: &&SegmentInfo| offset != log_end || kept.sealed;
        match kept.filter(is_cut) {
            // Nor does one go on at its beginning: it would be an open segment that was rewritten.
            Some(kept) if kept.is_rewritten() => Err(ReplicaRefusal::Rewritten { offset, segment: kept.base_offset }),
            kept => Ok(kept.copied()),
        }
    }

    /// The running hash before the first batch of a segment, where it is known without its index.
    pub fn hash_before(&self, segment: Offset) -> Option<u64> {
        let before = self.segments.iter().rev().find(|other| other.base_offset < segment);
        before.map(|before| before.running_hash).or((segment == 0).then_some(0))
    }

    /// Forgets all records: the log goes on at `at`, where the leader's begins, with the running hash that the leader has there. Returns the segments that go.
    pub fn restart(&mut self, at: Offset, running_hash: u64) -> Vec<SegmentInfo> {
        self.ladder = Ladder::at(at);
        self.quarantined = false;
        self.log_start = at;
        self.running_hash = running_hash;
        self.max_timestamp = -1;
        self.index = Index::new(at);
        self.segment_started = None;
        self.flushed = Flushed { segment: at, position: 0 };
        self.producers.truncate_to(Offset::MIN);
        self.groups = None;
        leader_epochs::cut(&mut self.epochs, Offset::MIN);
        self.segments.drain(..).collect()
    }

    /// What is said of a segment, or of what is left of it from the batch at `from` on, to who gets it whole.
    pub fn word(&self, info: &SegmentInfo, from: Offset) -> SegmentWord {
        let inside = self.epochs.iter().filter(|(_, start)| from < *start && *start < info.end_offset);
        let first = self.epoch_of(from).map(|epoch| (epoch, from));
        SegmentWord {
            end_offset: info.end_offset,
            rewrite_generation: info.rewrite_generation,
            adopted: info.adopted,
            // A chain of its own leads through one that was rewritten.
            hash_before: if info.is_rewritten() { None } else { self.hash_before(from) },
            hash_after: info.running_hash,
            epochs: first.into_iter().chain(inside.copied()).collect(),
        }
    }

    /// Producers of whom a cut at `offset` leaves nothing in the table, though there may be something in the log before it.
    pub fn lost_producers(&self, offset: Offset) -> Vec<crate::types::ProducerId> {
        self.producers.lost_by(offset)
    }

    /// Cuts the log, all of which is flushed; `found` is what the log has of [`Partition::lost_producers`]. From now on `epoch` is the present one, and begins at `epoch_start`, at or behind the
    /// cut. Returns the segments that go. [`Partition::restore_index`] comes before the next append.
    ///
    /// # Panics
    /// When the cut is none that [`Partition::cut_segment`] allows.
    pub fn truncate(&mut self, cut: &Cut, unclean: bool, found: &[ProducerSnapshot], now: Timestamp) -> Vec<SegmentInfo> {
        assert!((cut.segment, cut.position) <= (self.flushed.segment, self.flushed.position), "what is cut is flushed");
        if cut.offset < self.ladder.committed() {
            // What was committed goes: the snapshot may hold it, and other records take its offsets.
            self.groups = None;
        }
        self.ladder.truncate(cut.offset, unclean).expect("a cut that was allowed");
        let mut gone = Vec::new();
        while let Some(last) = self.segments.pop_back_if(|last| last.base_offset > cut.segment) {
            gone.push(last);
        }
        let kept = self.segments.back_mut().expect("the log ends in a segment of its own");
        assert!(kept.base_offset == cut.segment && cut.position <= kept.valid_end, "the cut is within the segment");
        *kept = SegmentInfo {
            end_offset: cut.offset,
            valid_end: cut.position,
            max_timestamp: cut.segment_max_timestamp,
            running_hash: cut.running_hash,
            sealed: false,
            adopted: false,
            cleaned: false,
            ..*kept
        };
        self.index = Index::new(cut.segment);
        self.segment_started = (cut.position > FIRST_POSITION).then_some(now);
        self.flushed = Flushed { segment: cut.segment, position: cut.position };
        self.running_hash = cut.running_hash;
        self.max_timestamp = self.segments.iter().map(|segment| segment.max_timestamp).max().unwrap_or(-1).max(-1);
        self.producers.truncate_to(cut.offset);
        self.producers.restore_lost(found, now);
        leader_epochs::cut(&mut self.epochs, cut.offset);
        gone
    }
}
