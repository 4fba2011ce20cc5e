//! A log in memory that is appended to, rolled and cleaned at random, held against a map from each key to its last value; and passes that break a rule, which that must show.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::plan::{Bounds, Survey, groups};
use super::{Kept, KeyMap, Noted, Pass, RewrittenSegment};
use crate::batch::{BatchBuilder, BatchHeader, BatchIter, Compression, HEADER_LEN, check_stored, decode, stamp};
use crate::checksum::running_hash;
use crate::log::replacement::replaced;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::types::{Offset, Timestamp};

const BLOCK_LIMIT: usize = 1 << 20;
const DELETE_RETENTION: i64 = 1000;

/// A rule that a pass breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// The offset that is noted of a key is the next record's.
    WrongSurvivor,
    /// Tombstones go as if their time were over.
    TombstonesEarly,
    /// What can't be looked into is forgotten, and tombstones behind it go.
    SeesThroughOpaque,
    /// The last batch of a segment may go.
    EndsWithAGap,
}

#[derive(Clone, Debug)]
enum Step {
    /// Records of these keys (values by number, `None` a tombstone), in one batch.
    Append(Vec<(u8, Option<u16>)>, u8),
    Roll,
    /// A pass with room for so many keys, so long after the one before.
    Clean(usize, i64),
}

/// A segment as its file would be.
#[derive(Clone)]
struct Stored {
    info: SegmentInfo,
    batches: Vec<u8>,
    /// Running hash before its first batch.
    start: u64,
}

struct Log {
    segments: Vec<Stored>,
    end: Offset,
    hash: u64,
    now: Timestamp,
    resume: Offset,
    /// Every record that ever was, by offset.
    ever: BTreeMap<Offset, (Vec<u8>, Option<Vec<u8>>)>,
    /// When it was appended.
    times: BTreeMap<Offset, Timestamp>,
    /// The last of each key: where, and what.
    last: BTreeMap<Vec<u8>, (Offset, Option<Vec<u8>>)>,
    broken: Broken,
    removed: u64,
}

impl Log {
    fn new(broken: Broken) -> Log {
        let open = Stored { info: SegmentInfo::new(0, 0, 0), batches: Vec::new(), start: 0 };
        Log {
            segments: vec![open],
            end: 0,
            hash: 0,
            now: 1_000_000,
            resume: 0,
            ever: BTreeMap::new(),
            times: BTreeMap::new(),
            last: BTreeMap::new(),
            broken,
            removed: 0,
        }
    }

    fn append(&mut self, records: &[(u8, Option<u16>)], codec: u8) {
        // The last code is a batch whose records are malformed.
        let compression = Compression::from_codec(codec % 5).unwrap();
        let mut builder = BatchBuilder::new(compression);
        for (key, value) in records {
            let (key, value) = (vec![*key; 1 + *key as usize % 3], value.map(|value| value.to_be_bytes().repeat(1 + value as usize % 9)));
            builder.append(self.now, Some(&key), value.as_deref(), &[("h", Some(b"x"))]).unwrap();
            let offset = self.end + builder.count() as i64 - 1;
            self.ever.insert(offset, (key.clone(), value.clone()));
            self.times.insert(offset, self.now);
            self.last.insert(key, (offset, value));
        }
        let mut batch = builder.build().to_vec();
        if codec == 5 {
            // Its CRC is right and its records are not.
            batch[HEADER_LEN] ^= 0x40;
            let crc = crate::checksum::crc32c(&batch[21..]);
            crate::batch::stamp_crc(&mut batch, crc);
        }
        stamp(&mut batch, self.end, 3);
        let header = check_stored(&batch).unwrap();
        let open = self.segments.last_mut().unwrap();
        self.hash = running_hash(self.hash, &batch[..HEADER_LEN]);
        open.info.valid_end += batch.len() as u64;
        open.info.end_offset = header.next_offset();
        open.info.max_timestamp = open.info.max_timestamp.max(header.max_timestamp);
        open.info.running_hash = self.hash;
        open.batches.extend_from_slice(&batch);
        self.end = header.next_offset();
    }

    fn roll(&mut self) {
        let open = self.segments.last_mut().unwrap();
        if open.info.valid_end == FIRST_POSITION {
            return;
        }
        open.info.sealed = true;
        self.segments.push(Stored { info: SegmentInfo::new(self.end, 0, self.hash), batches: Vec::new(), start: self.hash });
    }

    fn survey(&self) -> Survey {
        let open = self.segments.last().unwrap().info.base_offset;
        let bounds = Bounds { flushed_segment: open, committed: self.end, newest_timestamp: Timestamp::MAX };
        Survey::of(self.segments.iter().map(|stored| &stored.info), &bounds)
    }

    fn stored(&self, info: &SegmentInfo) -> Stored {
        self.segments.iter().find(|stored| stored.info.base_offset == info.base_offset).unwrap().clone()
    }

    fn clean(&mut self, keys: usize, later: i64) {
        self.now += later;
        let survey = self.survey();
        let Some(last) = survey.segments.last() else { return };
        let retention = if self.broken == Broken::TombstonesEarly { 0 } else { DELETE_RETENTION };
        let map = KeyMap::new((keys * 4).div_ceil(3).max(4) * 24, [9; 16]);
        let mut pass = Pass::new(map, self.now, retention, BLOCK_LIMIT);
        let from = survey.first_dirty.max(self.resume);
        let mut end = last.end_offset;
        'noting: for info in survey.segments.iter().filter(|info| info.end_offset > from) {
            for (header, batch) in BatchIter::new(&self.stored(info).batches).map(Result::unwrap).filter(|(h, _)| h.base_offset >= from) {
                let mut batch = batch.to_vec();
                if self.broken == Broken::WrongSurvivor {
                    stamp(&mut batch, header.base_offset + 1, 3);
                }
                if pass.note(&batch) == Noted::Full {
                    end = header.base_offset;
                    break 'noting;
                }
            }
        }
        assert!(end > from || survey.dirty_bytes == 0 || from >= last.end_offset, "a pass comes on: {from} to {end}");
        pass.end_at(end);
        for group in groups(&survey.segments, end, FIRST_POSITION + 2000) {
            let mut output = RewrittenSegment::new(group.rewrite());
            let mut bytes = Vec::new();
            for info in &group.0 {
                for (header, batch) in BatchIter::new(&self.stored(info).batches).map(Result::unwrap) {
                    let must_stay = header.next_offset() == group.end() && self.broken != Broken::EndsWithAGap;
                    let mark = pass.mark();
                    let kept = pass.keep(batch, must_stay);
                    if let Some(kept) = kept.bytes() {
                        output.push(kept).unwrap();
                    }
                    if self.broken == Broken::SeesThroughOpaque && matches!(kept, Kept::Whole(_)) {
                        pass.back_to(mark);
                    }
                    if let Some((_, blocks)) = output.take_blocks(1) {
                        bytes.extend(blocks);
                    }
                }
            }
            if output.position() == FIRST_POSITION {
                continue;
            }
            let finished = output.finish();
            bytes.extend(&finished.rest.1);
            bytes.truncate((finished.info.valid_end - FIRST_POSITION) as usize);
            let info = SegmentInfo { cleaned: group.end() <= end, end_offset: group.end(), ..finished.info };
            let start = finished.index.entries()[0].running_hash;
            let range = replaced(self.segments.iter().map(|stored| &stored.info), &info).unwrap();
            self.segments.splice(range, [Stored { info, batches: bytes, start }]);
        }
        self.resume = end;
        self.removed += pass.counts().superseded + pass.counts().tombstones;
    }

    /// Holds the log against what was appended.
    fn check(&self) -> Result<(), String> {
        let (mut next, mut read, mut batches) = (0, BTreeMap::new(), Vec::new());
        for stored in &self.segments {
            let info = &stored.info;
            if info.base_offset != next {
                return Err(format!("a segment at {}, expected {next}", info.base_offset));
            }
            let mut hash = stored.start;
            for batch in BatchIter::new(&stored.batches) {
                let (header, batch) = batch.map_err(|error| error.to_string())?;
                check_stored(batch).map_err(|error| error.to_string())?;
                if header.base_offset < next {
                    return Err(format!("a batch of {} behind {next}", header.base_offset));
                }
                next = header.next_offset();
                hash = running_hash(hash, &batch[..HEADER_LEN]);
                batches.push((header, batch.to_vec()));
            }
            if hash != info.running_hash || stored.batches.len() as u64 != info.batch_bytes() {
                return Err(format!("segment {}: another hash or length at its end", info.base_offset));
            }
            if next != info.end_offset {
                return Err(format!("segment {} ends with {next}, not with {}", info.base_offset, info.end_offset));
            }
        }
        if next != self.end {
            return Err(format!("the log ends with {next}, not with {}", self.end));
        }
        for (header, batch) in batches {
            let Ok(records) = decode(Bytes::from(batch), BLOCK_LIMIT).unwrap().into_iter().collect::<Result<Vec<_>, _>>() else {
                // Malformed: whatever it holds counts as read.
                let range = header.base_offset..header.next_offset();
                self.ever.range(range).for_each(|(offset, (key, value))| drop(read.insert(key.clone(), (*offset, value.clone()))));
                continue;
            };
            for record in records {
                let (key, value) = (record.key.unwrap().to_vec(), record.value.map(|value| value.to_vec()));
                if self.ever.get(&record.offset) != Some(&(key.clone(), value.clone())) {
                    return Err(format!("the record at {} is another one", record.offset));
                }
                read.insert(key, (record.offset, value));
            }
        }
        for (key, (offset, value)) in &self.last {
            match read.get(key) {
                Some((found, _)) if found == offset => {}
                // A tombstone may go once its time is over, and with it everything that it deletes.
                None if value.is_none() && self.cleaned_long_ago(*offset) => {}
                found => return Err(format!("key {key:?} was last at {offset} ({value:?}), found is {found:?}")),
            }
        }
        Ok(())
    }

    /// Whether a tombstone may have been cleaned so long ago that it may go: no clock of a pass was ever set back, so its time is over only if so much has passed since it was appended.
    fn cleaned_long_ago(&self, offset: Offset) -> bool {
        self.now - self.times[&offset] >= DELETE_RETENTION
    }

    fn run(steps: &[Step], broken: Broken) -> (Log, Result<(), String>) {
        let mut log = Log::new(broken);
        for step in steps {
            match step {
                Step::Append(records, codec) => log.append(records, *codec),
                Step::Roll => log.roll(),
                Step::Clean(keys, later) => log.clean(*keys, *later),
            }
            if let Err(what) = log.check() {
                return (log, Err(format!("after {step:?}: {what}")));
            }
        }
        (log, Ok(()))
    }
}

fn step() -> impl Strategy<Value = Step> {
    let records = vec((0..12u8, prop_oneof![3 => (0..500u16).prop_map(Some), 1 => Just(None)]), 1..6);
    prop_oneof![
        5 => (records, prop_oneof![20 => 0..5u8, 1 => Just(5)]).prop_map(|(records, codec)| Step::Append(records, codec)),
        2 => Just(Step::Roll),
        1 => (1..20usize, 0..DELETE_RETENTION).prop_map(|(keys, later)| Step::Clean(keys, later)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_last_value_of_every_key_is_read_whatever_is_cleaned(steps in vec(step(), 1..120)) {
        let (_, outcome) = Log::run(&steps, Broken::Nothing);
        prop_assert!(outcome.is_ok(), "{outcome:?}");
    }
}

/// Sequences of steps from a fixed start.
fn sequences() -> impl Iterator<Item = Vec<Step>> {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    std::iter::repeat_with(move || vec(step(), 60..120).new_tree(&mut runner).unwrap().current()).take(300)
}

#[test]
fn passes_remove_what_is_superseded_and_tombstones_after_their_time() {
    let removed: u64 = sequences().map(|steps| Log::run(&steps, Broken::Nothing).0.removed).sum();
    assert!(removed > 10_000, "{removed} records were removed");
}

#[test]
fn each_broken_rule_shows() {
    for broken in [Broken::WrongSurvivor, Broken::TombstonesEarly, Broken::SeesThroughOpaque, Broken::EndsWithAGap] {
        let caught = sequences().find_map(|steps| Log::run(&steps, broken).1.err());
        assert!(caught.is_some(), "{broken:?} is not seen");
    }
}

#[test]
fn a_long_segment_is_cleaned_in_passes_of_a_small_map() {
    let mut log = Log::new(Broken::Nothing);
    for round in 0..2 {
        for key in 0..40 {
            log.append(&[(key, Some(round))], 0);
        }
    }
    log.roll();
    log.append(&[(99, Some(1))], 0);
    let mut passes = 0;
    while log.survey().dirty_bytes > 0 {
        log.clean(6, 0);
        log.check().unwrap();
        passes += 1;
    }
    assert_eq!((log.removed, passes), (40, 14), "80 records in passes of 6");
}

#[test]
fn a_tombstone_goes_a_time_after_it_was_first_cleaned() {
    let mut log = Log::new(Broken::Nothing);
    let count = |log: &Log| log.segments.iter().flat_map(|s| BatchIter::new(&s.batches)).map(|b| b.unwrap().0.record_count).sum::<i32>();
    let dirty = |log: &mut Log, key| {
        log.append(&[(key, Some(1))], 0);
        log.roll();
        log.append(&[(key, Some(2))], 0);
    };
    log.append(&[(1, Some(7)), (2, Some(8)), (1, None)], 3);
    dirty(&mut log, 5);
    log.clean(100, 0);
    assert_eq!(count(&log), 4, "the value went, its tombstone stays");
    let batch = BatchHeader::parse(&log.segments[0].batches).unwrap();
    assert_eq!(batch.delete_horizon(), Some(log.now + DELETE_RETENTION));
    dirty(&mut log, 6);
    log.clean(100, DELETE_RETENTION - 1);
    assert!(log.segments[0].batches.windows(HEADER_LEN).next().is_some() && count(&log) == 5);
    dirty(&mut log, 7);
    log.clean(100, 1);
    log.check().unwrap();
    let header = BatchHeader::parse(&log.segments[0].batches).unwrap();
    assert_eq!((header.base_offset, header.record_count, header.next_offset()), (0, 1, 3), "the tombstone went");
}
