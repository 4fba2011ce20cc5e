//! Checks a whole segment while its bytes come in, piece by piece, and learns of it what its file's readers need: its index, where epochs begin, its producers.
//!
//! The leader checks what it sends, and the follower what it receives, by the same code: a damaged file is found before it is believed, on whichever side it is.
//!
//! The running hash is computed from 0 and related to the segment's end when that is known ([`SegmentCheck::finish`]): so a segment that a
//! cleaning has rewritten, through which a chain of its own leads, is checked like any other.

use crate::batch::{BatchError, BatchHeader, CRC_START, HEADER_LEN, check_stored_fields};
use crate::checksum::{Crc32c, RunningHashFrom, running_hash, running_hash_start};
use crate::limits::MAX_PRODUCERS;
use crate::log::checkpoint::ProducerSnapshot;
use crate::log::index::{Index, IndexEntry, fits_segment};
use crate::log::leader_epochs::EpochStart;
use crate::log::producers::ProducerTable;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::types::{Offset, Timestamp};

/// Why bytes are not the segment that they should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SegmentFault {
    /// A batch does not check.
    #[error("the batch at {position}, where offset {offset} is due: {error}")]
    Batch {
        /// The least offset that it may have.
        offset: Offset,
        /// Where it begins in the file.
        position: u64,
        /// What is wrong with it.
        error: BatchError,
    },
    /// A batch does not follow.
    #[error("a batch of offset {actual} where {expected} or a later one is due")]
    Offset {
        /// The end of what is before it.
        expected: Offset,
        /// Its own.
        actual: Offset,
    },
    /// Offsets are missing in a segment that no cleaning has rewritten.
    #[error("no batch of offset {missing}, and the segment was not rewritten")]
    Gap {
        /// The first one that is missing.
        missing: Offset,
    },
    /// A place that no index can tell.
    #[error("a batch of offset {offset} at {position} is out of reach of a segment's index")]
    OutOfReach {
        /// Its offset.
        offset: Offset,
        /// Its position.
        position: u64,
    },
    /// The bytes end elsewhere than the segment does.
    #[error("the segment ends at offset {actual}, expected {expected}; {cut} bytes are left of a batch")]
    End {
        /// As it was told.
        expected: Offset,
        /// After the last whole batch.
        actual: Offset,
        /// Bytes of a batch that has more.
        cut: usize,
    },
    /// It was told to be one batch in a file of its own.
    #[error("an adopted segment of {batches} batches")]
    Adopted {
        /// How many there are.
        batches: u64,
    },
    /// The chain through it does not begin where it should.
    #[error("running hash {actual:016x} before offset {offset}, expected {expected:016x}")]
    RunningHash {
        /// Its base offset.
        offset: Offset,
        /// As it was told.
        expected: u64,
        /// What leads to the hash at its end.
        actual: u64,
    },
    /// A batch is of another epoch than it was told.
    #[error("a batch of epoch {actual} at offset {offset}, expected {expected:?}")]
    Epoch {
        /// Where.
        offset: Offset,
        /// As it was told.
        expected: Option<i32>,
        /// The batch's.
        actual: i32,
    },
}

/// What is said of a segment by who has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentWord {
    /// One past its last offset.
    pub end_offset: Offset,
    /// Its rewrite generation; 0 is as it was appended.
    pub rewrite_generation: u32,
    /// It is one batch that came in a file of its own.
    pub adopted: bool,
    /// The running hash with which the chain through it begins: of one that was not rewritten that of the log before it. `None`: not known.
    pub hash_before: Option<u64>,
    /// The partition's running hash at its end.
    pub hash_after: u64,
    /// Where epochs begin in it, the first one at its base offset.
    pub epochs: Vec<EpochStart>,
}

/// A segment that checks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckedSegment {
    /// As it is to be known: sealed.
    pub info: SegmentInfo,
    /// Its index.
    pub index: Index,
    /// The running hash with which the chain through it begins.
    pub hash_before: u64,
    /// Where epochs begin in it, the first one at its base offset.
    pub epochs: Vec<EpochStart>,
    /// The last batches of its producers, least recently used first.
    pub producers: Vec<ProducerSnapshot>,
    /// Its batches.
    pub batches: u64,
}

/// A batch whose end has not come yet.
#[derive(Debug)]
struct Body {
    header: BatchHeader,
    left: usize,
    crc: Crc32c,
}

/// The check of one segment; its bytes are those behind the header block.
#[derive(Debug)]
pub struct SegmentCheck {
    base_offset: Offset,
    /// One past the last offset so far.
    next: Offset,
    /// The first offset that no batch covers.
    missing: Option<Offset>,
    /// Where the next byte is in the file.
    position: u64,
    /// The header that is coming in.
    head: [u8; HEADER_LEN],
    head_len: usize,
    body: Option<Body>,
    /// From 0.
    hash: u64,
    batches: u64,
    max_timestamp: Timestamp,
    /// Their hashes are from 0, and the number of batches before each.
    entries: Vec<(IndexEntry, u64)>,
    wants: Index,
    /// Each epoch with the first batch of it.
    epochs: Vec<EpochStart>,
    producers: ProducerTable,
}

impl SegmentCheck {
    /// Of a segment that begins at an offset.
    pub fn new(base_offset: Offset) -> SegmentCheck {
        SegmentCheck {
            base_offset,
            next: base_offset,
            missing: None,
            position: FIRST_POSITION,
            head: [0; HEADER_LEN],
            head_len: 0,
            body: None,
            hash: 0,
            batches: 0,
            max_timestamp: Timestamp::MIN,
            entries: Vec::new(),
            wants: Index::new(base_offset),
            epochs: Vec::new(),
            producers: ProducerTable::new(MAX_PRODUCERS),
        }
    }

    /// Where the next byte is in the file.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes.
    ///
    /// # Errors
    /// The first thing that is wrong. Nothing more is to be taken then.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), SegmentFault> {
        while !bytes.is_empty() {
            let taken = match &mut self.body {
                None => {
                    let taken = bytes.len().min(HEADER_LEN - self.head_len);
                    self.head[self.head_len..self.head_len + taken].copy_from_slice(&bytes[..taken]);
                    self.head_len += taken;
                    taken
                }
                Some(body) => {
                    let taken = bytes.len().min(body.left);
                    body.crc.update(&bytes[..taken]);
                    body.left -= taken;
                    taken
                }
            };
            self.position += taken as u64;
            bytes = &bytes[taken..];
            if self.body.is_none() && self.head_len == HEADER_LEN {
                self.begin_batch()?;
            }
            if self.body.as_ref().is_some_and(|body| body.left == 0) {
                self.end_batch()?;
            }
        }
        Ok(())
    }

    fn begin_batch(&mut self) -> Result<(), SegmentFault> {
        let position = self.position - HEADER_LEN as u64;
        let failed = |error| SegmentFault::Batch { offset: self.next, position, error };
        let header = BatchHeader::parse(&self.head).map_err(failed)?;
        if header.base_offset < self.next {
            return Err(SegmentFault::Offset { expected: self.next, actual: header.base_offset });
        }
        // What comes is not to make an offset overflow.
        if header.next_offset() <= header.base_offset
            || !fits_segment(self.base_offset, header.next_offset(), position + header.total_len() as u64)
        {
            return Err(SegmentFault::OutOfReach { offset: header.base_offset, position });
        }
        let mut crc = Crc32c::new();
        crc.update(&self.head[CRC_START..]);
        self.body = Some(Body { header, left: header.total_len() - HEADER_LEN, crc });
        Ok(())
    }

    fn end_batch(&mut self) -> Result<(), SegmentFault> {
        let Some(Body { header, crc, .. }) = self.body.take() else { return Ok(()) };
        let position = self.position - header.total_len() as u64;
        let checked = header.check_crc(crc.finish()).and_then(|()| check_stored_fields(&header));
        checked.map_err(|error| SegmentFault::Batch { offset: self.next, position, error })?;
        if header.base_offset > self.next {
            self.missing.get_or_insert(self.next);
        }
        if self.wants.wants(position) {
            let entry = IndexEntry { offset: header.base_offset, position, max_timestamp: self.max_timestamp, running_hash: self.hash };
            self.wants.push(entry);
            self.entries.push((entry, self.batches));
        }
        if self.epochs.last().is_none_or(|(epoch, _)| *epoch != header.leader_epoch) {
            self.epochs.push((header.leader_epoch, header.base_offset));
        }
        self.hash = running_hash(self.hash, &self.head);
        self.batches += 1;
        self.head_len = 0;
        self.next = header.next_offset();
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
        // When it was used is said where the segment is taken into a log.
        self.producers.record(&header, 0);
        Ok(())
    }

    /// All bytes have come: whether they are the segment of which that is said.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn finish(self, word: &SegmentWord) -> Result<CheckedSegment, SegmentFault> {
        if self.next != word.end_offset || self.head_len > 0 || self.batches == 0 {
            return Err(SegmentFault::End { expected: word.end_offset, actual: self.next, cut: self.head_len });
        }
        if let Some(missing) = self.missing.filter(|_| word.rewrite_generation == 0) {
            return Err(SegmentFault::Gap { missing });
        }
        if word.adopted && self.batches != 1 {
            return Err(SegmentFault::Adopted { batches: self.batches });
        }
        self.check_epochs(word)?;
        let actual = running_hash_start(word.hash_after, self.hash, self.batches);
        if let Some(expected) = word.hash_before.filter(|expected| *expected != actual) {
            return Err(SegmentFault::RunningHash { offset: self.base_offset, expected, actual });
        }
        let (mut from, mut index) = (RunningHashFrom::new(actual), Index::new(self.base_offset));
        for (entry, before) in &self.entries {
            index.push(IndexEntry { running_hash: from.after(*before, entry.running_hash), ..*entry });
        }
        let info = SegmentInfo {
            end_offset: self.next,
            valid_end: self.position,
            max_timestamp: self.max_timestamp,
            index_entries: index.len() as u32,
            sealed: true,
            adopted: word.adopted,
            ..SegmentInfo::new(self.base_offset, word.rewrite_generation, word.hash_after)
        };
        let producers = self.producers.snapshot();
        Ok(CheckedSegment { info, index, hash_before: actual, epochs: word.epochs.clone(), producers, batches: self.batches })
    }

    /// Each batch is of the epoch that is told to be there, and of one that was not rewritten each epoch has a batch where it is told to begin.
    fn check_epochs(&self, word: &SegmentWord) -> Result<(), SegmentFault> {
        for (epoch, offset) in &self.epochs {
            let at = word.epochs.partition_point(|(_, start)| start <= offset);
            let expected = at.checked_sub(1).map(|at| word.epochs[at].0);
            if expected != Some(*epoch) {
                return Err(SegmentFault::Epoch { offset: *offset, expected, actual: *epoch });
            }
        }
        if word.rewrite_generation > 0 {
            return Ok(());
        }
        let differs = word.epochs.iter().find(|told| !self.epochs.contains(told));
        match differs {
            Some((epoch, offset)) => {
                let at = self.epochs.partition_point(|(_, start)| start <= offset);
                let actual = at.checked_sub(1).map_or(-1, |at| self.epochs[at].0);
                Err(SegmentFault::Epoch { offset: *offset, expected: Some(*epoch), actual })
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{self, BatchBuilder, Compression};

    const BASE: Offset = 1000;

    /// A segment of a few batches of two epochs, and what is said of it.
    fn segment() -> (Vec<u8>, SegmentWord) {
        let (mut bytes, mut offset, mut hash) = (Vec::new(), BASE, 0x5eed);
        for n in 0..4_u8 {
            let mut builder = BatchBuilder::new(Compression::None);
            for record in 0..=n {
                builder.append(i64::from(n), None, Some(&[n; 20][..10 + usize::from(record)]), &[]).unwrap();
            }
            builder.set_producer(7, 0, (offset - BASE) as i32);
            let mut batch = builder.build().to_vec();
            batch::stamp(&mut batch, offset, if n < 2 { 3 } else { 5 });
            hash = running_hash(hash, &batch[..HEADER_LEN]);
            offset += i64::from(n) + 1;
            bytes.extend_from_slice(&batch);
        }
        let epochs = vec![(3, BASE), (5, BASE + 3)];
        let word =
            SegmentWord { end_offset: offset, rewrite_generation: 0, adopted: false, hash_before: Some(0x5eed), hash_after: hash, epochs };
        (bytes, word)
    }

    fn check(bytes: &[u8], piece: usize, word: &SegmentWord) -> Result<CheckedSegment, SegmentFault> {
        let mut check = SegmentCheck::new(BASE);
        bytes.chunks(piece).try_for_each(|piece| check.take(piece))?;
        check.finish(word)
    }

    #[test]
    fn pieces_of_any_size_give_the_same() {
        let (bytes, word) = segment();
        let whole = check(&bytes, usize::MAX, &word).unwrap();
        assert_eq!((whole.info.end_offset, whole.info.valid_end, whole.batches), (BASE + 10, FIRST_POSITION + bytes.len() as u64, 4));
        assert_eq!((whole.info.max_timestamp, whole.hash_before, whole.index.len()), (3, 0x5eed, 1));
        assert_eq!(whole.producers[0].batches.len(), 4);
        for piece in 1..200 {
            assert_eq!(check(&bytes, piece, &word).as_ref(), Ok(&whole), "pieces of {piece} bytes");
        }
    }

    #[test]
    fn every_flip_and_every_cut_is_found() {
        let (bytes, word) = segment();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(check(&damaged, 50, &word).is_err(), "bit {bit} of byte {at}");
            }
            assert!(check(&bytes[..at], 50, &word).is_err(), "cut at {at}");
        }
        let twice = [&bytes[..], &bytes[..]].concat();
        assert!(matches!(check(&twice, 50, &word), Err(SegmentFault::Offset { .. })));
    }

    #[test]
    fn offsets_are_missing_in_rewritten_ones_only() {
        let (bytes, word) = segment();
        let first = BatchHeader::parse(&bytes).unwrap().total_len();
        let second = first + BatchHeader::parse(&bytes[first..]).unwrap().total_len();
        let left = [&bytes[..first], &bytes[second..]].concat();
        assert_eq!(check(&left, 50, &word).unwrap_err(), SegmentFault::Gap { missing: BASE + 1 });
        // Through what is left a chain of its own leads to the same hash.
        let rewritten = SegmentWord { rewrite_generation: 1, hash_before: None, ..word };
        let found = check(&left, 50, &rewritten).unwrap();
        assert_eq!((found.info.end_offset, found.info.running_hash), (BASE + 10, rewritten.hash_after));
        let told = SegmentWord { hash_before: Some(found.hash_before), ..rewritten.clone() };
        assert_eq!(check(&left, 50, &told).unwrap(), found);
        let told = SegmentWord { hash_before: Some(found.hash_before ^ 1), ..rewritten };
        assert!(matches!(check(&left, 50, &told), Err(SegmentFault::RunningHash { .. })));
    }
}
