//! What there is to clean in a partition, and in which groups.

use crate::log::index::fits_segment;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::types::{Offset, Timestamp};

/// How far a log may be cleaned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// The segment in which flushing is: it and later ones are not cleaned.
    pub flushed_segment: Offset,
    /// One past the last committed offset.
    pub committed: Offset,
    /// Segments with a newer record than this stay as they are (`min.compaction.lag.ms`).
    pub newest_timestamp: Timestamp,
}

/// What there is to clean.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// The segments that may be cleaned, from the log's first on.
    pub segments: Vec<SegmentInfo>,
    /// Bytes in them.
    pub bytes: u64,
    /// Bytes behind the cleaned part.
    pub dirty_bytes: u64,
    /// Where the dirty part begins.
    pub first_dirty: Offset,
}

impl Survey {
    /// Of a log's segments, by base offset. A record that is committed follows the last one, so that the log does not end with a gap.
    pub fn of<'a>(segments: impl IntoIterator<Item = &'a SegmentInfo>, bounds: &Bounds) -> Survey {
        let mut survey = Survey::default();
        let may = |segment: &&SegmentInfo| {
            segment.sealed
                && segment.base_offset < bounds.flushed_segment
                && segment.end_offset < bounds.committed
                && segment.max_timestamp <= bounds.newest_timestamp
        };
        for segment in segments.into_iter().take_while(may) {
            survey.bytes += segment.batch_bytes();
            // What lies behind a dirty one is dirty too: it was not held against it.
            if segment.cleaned && survey.dirty_bytes == 0 {
                survey.first_dirty = segment.end_offset;
            } else {
                survey.first_dirty = if survey.dirty_bytes == 0 { segment.base_offset } else { survey.first_dirty };
                survey.dirty_bytes += segment.batch_bytes();
            }
            survey.segments.push(*segment);
        }
        survey
    }

    /// Dirty bytes in all of them, in millionths.
    pub fn dirty_millionths(&self) -> u32 {
        let share = u128::from(self.dirty_bytes) * 1_000_000 / u128::from(self.bytes.max(1));
        share as u32
    }

    /// Whether a pass is due: more is dirty than `min.cleanable.dirty.ratio` says, in millionths.
    pub fn is_due(&self, ratio_millionths: u32) -> bool {
        self.dirty_bytes > 0 && self.dirty_millionths() > ratio_millionths
    }
}

/// Segments that become one, or one that can't be looked into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group(pub Vec<SegmentInfo>);

impl Group {
    /// The identity of the segment that they become: their first offset, a generation later than each of them.
    pub fn rewrite(&self) -> SegmentInfo {
        let generation = self.0.iter().map(|segment| segment.rewrite_generation).max().unwrap_or(0);
        let (first, last) = (self.0[0], self.0[self.0.len() - 1]);
        SegmentInfo { sealed: true, ..SegmentInfo::new(first.base_offset, generation + 1, last.running_hash) }
    }

    /// One past its last offset.
    pub fn end(&self) -> Offset {
        self.0[self.0.len() - 1].end_offset
    }

    /// Bytes of batches in it.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(SegmentInfo::batch_bytes).sum()
    }
}

/// The segments that begin below `end`, in groups that each fit a segment of `segment_bytes`. An adopted segment is alone.
pub fn groups(segments: &[SegmentInfo], end: Offset, segment_bytes: u64) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for segment in segments.iter().take_while(|segment| segment.base_offset < end) {
        let fits = |group: &&mut Group| {
            let first = group.0[0];
            !first.adopted
                && !segment.adopted
                && FIRST_POSITION + group.bytes() + segment.batch_bytes() <= segment_bytes
                && fits_segment(first.base_offset, segment.end_offset, segment_bytes)
        };
        match groups.last_mut().filter(fits) {
            Some(group) => group.0.push(*segment),
            None => groups.push(Group(vec![*segment])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(base: Offset, end: Offset, bytes: u64) -> SegmentInfo {
        let valid_end = FIRST_POSITION + bytes;
        SegmentInfo { end_offset: end, valid_end, max_timestamp: end, sealed: true, ..SegmentInfo::new(base, 0, end as u64) }
    }

    const ALL: Bounds = Bounds { flushed_segment: 30, committed: 31, newest_timestamp: i64::MAX };

    #[test]
    fn only_what_is_sealed_flushed_committed_and_old_enough_is_cleaned() {
        let segments = [sealed(0, 10, 100), sealed(10, 20, 50), sealed(20, 30, 50), SegmentInfo::new(30, 0, 30)];
        let bases = |bounds: Bounds| Survey::of(&segments, &bounds).segments.iter().map(|s| s.base_offset).collect::<Vec<_>>();
        assert_eq!(bases(ALL), [0, 10, 20]);
        assert_eq!(bases(Bounds { committed: 30, ..ALL }), [0, 10], "nothing is behind the last one");
        assert_eq!(bases(Bounds { flushed_segment: 10, ..ALL }), [0]);
        assert_eq!(bases(Bounds { newest_timestamp: 19, ..ALL }), [0]);
        assert_eq!(bases(Bounds { flushed_segment: 100, committed: 100, ..ALL }), [0, 10, 20], "the open one is never cleaned");
    }

    #[test]
    fn dirty_is_what_lies_behind_the_cleaned_part() {
        let clean = |segment| SegmentInfo { cleaned: true, ..segment };
        let survey = Survey::of(&[clean(sealed(0, 10, 100)), sealed(10, 20, 50), clean(sealed(20, 30, 50))], &ALL);
        assert_eq!((survey.bytes, survey.dirty_bytes, survey.first_dirty), (200, 100, 10));
        assert!(survey.is_due(499_999) && !survey.is_due(500_000));
        let survey = Survey::of(&[clean(sealed(0, 10, 100))], &ALL);
        assert_eq!((survey.dirty_bytes, survey.first_dirty), (0, 10));
        assert!(!survey.is_due(0) && !Survey::default().is_due(0));
    }

    #[test]
    fn groups_fit_a_segment() {
        let adopted = SegmentInfo { adopted: true, ..sealed(30, 31, 10) };
        let segments = [sealed(0, 10, 400), sealed(10, 20, 400), sealed(20, 30, 300), adopted, sealed(31, 40, 2000), sealed(40, 50, 1)];
        let shape = |end, bytes| groups(&segments, end, bytes).iter().map(|group| group.0.len()).collect::<Vec<_>>();
        assert_eq!(shape(50, FIRST_POSITION + 800), [2, 1, 1, 1, 1]);
        assert_eq!(shape(50, FIRST_POSITION + 799), [1, 2, 1, 1, 1]);
        assert_eq!(shape(45, FIRST_POSITION + 5000), [3, 1, 2], "the one that holds the end is in");
        assert_eq!(shape(31, FIRST_POSITION + 5000), [3, 1]);
        let far = [sealed(0, 10, 1), sealed(10, 1 << 33, 1)];
        assert_eq!(groups(&far, 1 << 33, 1 << 20).len(), 2, "an index has 32 bits for an offset");
        let group = Group(vec![sealed(0, 10, 1), SegmentInfo { rewrite_generation: 4, ..sealed(10, 20, 2) }]);
        let new = group.rewrite();
        assert_eq!((new.base_offset, new.rewrite_generation, new.running_hash, group.end()), (0, 5, 20, 20));
    }
}
