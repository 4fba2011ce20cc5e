//! The journal entry with which a rewritten segment takes the place of those that it was made of, and what that does to a list of segments.
//!
//! The files of both have different names (the rewrite generation is in it), so nothing is overwritten: before the entry is durable the old ones are the log, after it the
//! new one is, and the others are litter.

use std::ops::Range;

use crate::log::fields::{i64_at, put, u32_at, u64_at};
use crate::log::journal::{EntryHeader, PayloadError, expect_len};
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::types::{Offset, Timestamp};

/// Length of a replace entry's payload.
pub const REPLACEMENT_LEN: usize = 40;

/// Payload of a replace entry: with the entry's segment and position, all that is known of the rewritten segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replacement {
    /// One past the last offset of the segments that it replaces, and its own end.
    pub end_offset: Offset,
    /// Largest timestamp in it.
    pub max_timestamp: Timestamp,
    /// The partition's running hash at its end: that of the last segment that it replaces.
    pub running_hash: u64,
    /// Its rewrite generation, at least 1.
    pub rewrite_generation: u32,
    /// Entries of its index.
    pub index_entries: u32,
    /// All of it is cleaned.
    pub cleaned: bool,
}

impl Replacement {
    /// Of a rewritten segment.
    pub fn of(info: &SegmentInfo) -> Replacement {
        Replacement {
            end_offset: info.end_offset,
            max_timestamp: info.max_timestamp,
            running_hash: info.running_hash,
            rewrite_generation: info.rewrite_generation,
            index_entries: info.index_entries,
            cleaned: info.cleaned,
        }
    }

    /// The segment that an entry with this payload brings.
    pub fn segment(&self, entry: &EntryHeader) -> SegmentInfo {
        SegmentInfo {
            end_offset: self.end_offset,
            valid_end: entry.position,
            max_timestamp: self.max_timestamp,
            index_entries: self.index_entries,
            sealed: true,
            cleaned: self.cleaned,
            ..SegmentInfo::new(entry.segment, self.rewrite_generation, self.running_hash)
        }
    }

    /// As stored.
    pub fn encode(&self) -> [u8; REPLACEMENT_LEN] {
        let mut payload = [0; REPLACEMENT_LEN];
        put(&mut payload, 0, &self.end_offset.to_le_bytes());
        put(&mut payload, 8, &self.max_timestamp.to_le_bytes());
        put(&mut payload, 16, &self.running_hash.to_le_bytes());
        put(&mut payload, 24, &self.rewrite_generation.to_le_bytes());
        put(&mut payload, 28, &self.index_entries.to_le_bytes());
        put(&mut payload, 32, &u32::from(self.cleaned).to_le_bytes());
        payload
    }

    /// Of an entry's payload.
    ///
    /// # Errors
    /// When the length is another one.
    pub fn decode(payload: &[u8]) -> Result<Replacement, PayloadError> {
        expect_len(payload, REPLACEMENT_LEN)?;
        Ok(Replacement {
            end_offset: i64_at(payload, 0),
            max_timestamp: i64_at(payload, 8),
            running_hash: u64_at(payload, 16),
            rewrite_generation: u32_at(payload, 24),
            index_entries: u32_at(payload, 28),
            cleaned: u32_at(payload, 32) & 1 != 0,
        })
    }
}

/// Which segments a rewritten one replaces: sealed ones, one after the other, from its base offset to its end, whose running hash at the end is its own. None where it
/// is among them already.
///
/// # Errors
/// What does not fit.
pub fn replaced<'a>(segments: impl Iterator<Item = &'a SegmentInfo> + Clone, new: &SegmentInfo) -> Result<Range<usize>, String> {
    let range = format!("{}..{}", new.base_offset, new.end_offset);
    let is_new =
        |s: &SegmentInfo| (s.base_offset, s.end_offset, s.rewrite_generation) == (new.base_offset, new.end_offset, new.rewrite_generation);
    if segments.clone().any(is_new) {
        return Ok(0..0);
    }
    let first = segments.clone().position(|segment| segment.base_offset == new.base_offset);
    let Some(first) = first else { return Err(format!("no segment begins where the rewritten one of {range} does")) };
    let Some(last) = segments.clone().position(|segment| segment.end_offset == new.end_offset).filter(|last| *last >= first) else {
        return Err(format!("no segment ends where the rewritten one of {range} does"));
    };
    let old = segments.skip(first).take(last + 1 - first);
    if !old.clone().all(|segment| segment.sealed && !segment.adopted && segment.rewrite_generation < new.rewrite_generation) {
        return Err(format!("a segment of {range} is open, adopted or not older than the rewritten one"));
    }
    match old.last() {
        Some(last) if last.running_hash != new.running_hash => {
            Err(format!("the rewritten segment of {range} ends with another running hash"))
        }
        _ if new.valid_end <= FIRST_POSITION => Err(format!("the rewritten segment of {range} is empty")),
        _ => Ok(first..last + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(base: Offset, end: Offset, generation: u32) -> SegmentInfo {
        let valid_end = FIRST_POSITION + 100;
        SegmentInfo { end_offset: end, valid_end, sealed: true, ..SegmentInfo::new(base, generation, end as u64) }
    }

    #[test]
    fn only_whole_sealed_segments_are_replaced() {
        let segments = [sealed(0, 10, 0), sealed(10, 20, 1), sealed(20, 30, 0), SegmentInfo::new(30, 0, 30)];
        let fits = |new: SegmentInfo| replaced(segments.iter(), &new);
        assert_eq!(fits(sealed(0, 10, 1)), Ok(0..1));
        assert_eq!(fits(sealed(0, 30, 2)), Ok(0..3));
        assert_eq!(fits(sealed(10, 20, 2)), Ok(1..2));
        assert_eq!(fits(sealed(10, 20, 1)), Ok(0..0), "it is there already");
        for (new, words) in [
            (sealed(0, 20, 1), "not older"),
            (sealed(5, 20, 2), "no segment begins"),
            (sealed(0, 15, 2), "no segment ends"),
            (sealed(20, 10, 2), "no segment ends"),
            (SegmentInfo { running_hash: 7, ..sealed(0, 20, 2) }, "another running hash"),
            (SegmentInfo { valid_end: FIRST_POSITION, ..sealed(0, 20, 2) }, "is empty"),
            (sealed(30, 30, 1), "no segment ends"),
        ] {
            assert!(fits(new).unwrap_err().contains(words), "{new:?}: {:?}", fits(new));
        }
        let open = [SegmentInfo { sealed: false, ..sealed(0, 10, 0) }];
        assert!(replaced(open.iter(), &sealed(0, 10, 1)).unwrap_err().contains("is open"));
        let adopted = [SegmentInfo { adopted: true, ..sealed(0, 10, 0) }];
        assert!(replaced(adopted.iter(), &sealed(0, 10, 1)).unwrap_err().contains("adopted"));
    }

    #[test]
    fn a_replacement_survives_its_encoding() {
        let info = SegmentInfo { cleaned: true, max_timestamp: 9, index_entries: 3, ..sealed(5, 50, 0xdead) };
        let payload = Replacement::of(&info).encode();
        assert_eq!(Replacement::decode(&payload), Ok(Replacement::of(&info)));
        assert!(Replacement::decode(&payload[1..]).is_err());
    }
}
