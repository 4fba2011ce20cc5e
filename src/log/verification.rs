//! Which sealed segments of a log were read again since they were written, and what was found.
//!
//! What is written stays as it was only as long as the disk keeps it; a disk that does not says so when it is read. So every sealed segment is read again from time to time, before somebody
//! needs it, and while other replicas have the same bytes. This is what is remembered of that, in memory: after a restart all of it is read anew, over time.
//!
//! Not here: reading ([`SegmentCheck`](crate::log::segment_check::SegmentCheck) judges what was read), and what becomes of a damaged segment (the shard).

use std::collections::BTreeMap;

use crate::limits::{VERIFY_AGAIN_S, VERIFY_FIRST_S};
use crate::log::damage::Damage;
use crate::log::segment::SegmentInfo;
use crate::types::Offset;

/// Of one segment.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Known {
    /// Another one is another file.
    generation: u32,
    /// When it is to be read, s of the caller's clock.
    due: u64,
    /// Somebody waits for it to be read.
    is_asked: bool,
    /// It was read in this run.
    is_read: bool,
    /// Somebody read it in vain, and it has not been found damaged.
    is_suspect: bool,
    damage: Option<Damage>,
}

impl Known {
    fn new(generation: u32, due: u64) -> Known {
        Known { generation, due, is_asked: false, is_read: false, is_suspect: false, damage: None }
    }
}

/// What is known of the sealed segments of one log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verification {
    known: BTreeMap<Offset, Known>,
    /// What was found damaged since somebody asked last, whether it has been mended meanwhile or not.
    found: BTreeMap<Offset, Damage>,
    has_looked: bool,
    has_suspects: bool,
    /// How many are damaged: asked for with every message of a partition.
    damaged: usize,
}

/// How many sealed segments are in which state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// Somebody waits for them to be read.
    pub waiting: u32,
    /// They were read in this run, and are what they should be.
    pub sound: u32,
}

impl Verification {
    /// The sealed segments that are on the disk, at a moment. Those that were there at the first look may be old, and are due at once; later ones were written just now, and are due in a while.
    pub fn look<'a>(&mut self, sealed: impl Iterator<Item = &'a SegmentInfo>, now_s: u64) {
        let due = if self.has_looked { now_s + VERIFY_FIRST_S } else { now_s };
        self.has_looked = true;
        let mut before = std::mem::take(&mut self.known);
        for info in sealed {
            let same = before.remove(&info.base_offset).filter(|known| known.generation == info.rewrite_generation);
            self.known.insert(info.base_offset, same.unwrap_or_else(|| Known::new(info.rewrite_generation, due)));
        }
        self.count_damaged();
    }

    /// All that is known is to be read now, at somebody's wish.
    pub fn ask(&mut self) {
        self.known.values_mut().for_each(|known| known.is_asked = true);
        self.found.clear();
    }

    /// A read of a segment failed: all of it is to be read, now. False where that was done already, and all of it was sound: what is wrong is something else then.
    pub fn suspect(&mut self, info: &SegmentInfo) -> bool {
        let new = || Known::new(info.rewrite_generation, 0);
        let known = self.known.entry(info.base_offset).or_insert_with(new);
        if known.generation != info.rewrite_generation {
            *known = new();
        }
        if known.is_suspect && !known.is_asked {
            return false;
        }
        if known.damage.is_none() {
            (known.is_suspect, known.is_asked, self.has_suspects) = (true, true, true);
        }
        self.count_damaged();
        true
    }

    /// Whether there are suspects that nobody has been told of; asked once, they are told.
    pub fn take_suspects(&mut self) -> bool {
        std::mem::take(&mut self.has_suspects)
    }

    /// The segment that is to be read first, if one is due: asked for or not as `asked` says. A damaged one is not read again unless asked for.
    pub fn next(&self, now_s: u64, asked: bool) -> Option<Offset> {
        let is_due = |known: &Known| match asked {
            true => known.is_asked,
            false => known.damage.is_none() && known.due <= now_s,
        };
        self.known.iter().find(|(_, known)| is_due(known)).map(|(base_offset, _)| *base_offset)
    }

    /// A segment was read, and what was wrong with it. True if that is news: it was not known to be so before.
    pub fn handle_read(&mut self, info: &SegmentInfo, damage: Option<Damage>, now_s: u64) -> bool {
        let Some(known) = self.known.get_mut(&info.base_offset).filter(|known| known.generation == info.rewrite_generation) else {
            return false;
        };
        let is_news = known.damage.is_some() != damage.is_some();
        // What was damaged, or is, explains why it could not be read.
        known.is_suspect &= !is_news;
        if let Some(damage) = &damage {
            self.found.insert(info.base_offset, damage.clone());
        }
        (known.is_asked, known.is_read, known.due, known.damage) = (false, true, now_s + VERIFY_AGAIN_S, damage);
        self.count_damaged();
        is_news
    }

    fn count_damaged(&mut self) {
        self.damaged = self.damaged().count();
    }

    /// It can't be read now (it is not the log's any more, or the log is gone): nobody is to wait for it.
    pub fn handle_passed_over(&mut self, base_offset: Offset, now_s: u64) {
        if let Some(known) = self.known.get_mut(&base_offset) {
            (known.is_asked, known.due) = (false, now_s + VERIFY_FIRST_S);
        }
    }

    /// Damaged segments, in order.
    pub fn damaged(&self) -> impl Iterator<Item = (Offset, &Damage)> {
        self.known.iter().filter_map(|(base_offset, known)| Some((*base_offset, known.damage.as_ref()?)))
    }

    /// Those that were found damaged since somebody asked last and are sound again, with what was wrong, in order.
    pub fn mended(&self) -> impl Iterator<Item = (Offset, &Damage)> {
        let is_sound = |base_offset: &Offset| self.known.get(base_offset).is_some_and(|known| known.damage.is_none());
        self.found.iter().filter(move |(base_offset, _)| is_sound(base_offset)).map(|(base_offset, damage)| (*base_offset, damage))
    }

    /// How many there are.
    pub fn damaged_count(&self) -> usize {
        self.damaged
    }

    /// Whether there is one.
    pub fn is_damaged(&self) -> bool {
        self.damaged > 0
    }

    /// How many are in which state.
    pub fn count(&self) -> Verified {
        let count = |is: fn(&Known) -> bool| self.known.values().filter(|known| is(known)).count() as u32;
        Verified { waiting: count(|k| k.is_asked), sound: count(|k| k.is_read && k.damage.is_none()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::damage::DamageKind;

    fn segments(bases: &[(Offset, u32)]) -> Vec<SegmentInfo> {
        bases.iter().map(|(base, generation)| SegmentInfo { sealed: true, ..SegmentInfo::new(*base, *generation, 0) }).collect()
    }

    fn damage() -> Option<Damage> {
        Some(Damage::new("f", 1, DamageKind::Batch, "wrong"))
    }

    #[test]
    fn what_was_there_is_read_first_and_again_after_its_time() {
        let mut verification = Verification::default();
        let two = segments(&[(0, 0), (10, 0)]);
        verification.look(two.iter(), 100);
        assert_eq!(verification.next(100, true), None, "nobody has asked");
        assert_eq!(verification.next(100, false), Some(0));
        assert!(!verification.handle_read(&two[0], None, 100), "that it is sound is no news");
        assert_eq!(verification.next(100, false), Some(10));
        verification.handle_read(&two[1], None, 100);
        assert_eq!(verification.next(100 + VERIFY_AGAIN_S - 1, false), None);
        assert_eq!(verification.next(100 + VERIFY_AGAIN_S, false), Some(0));
        let three = segments(&[(0, 0), (10, 0), (20, 0)]);
        verification.look(three.iter(), 200);
        assert_eq!(verification.next(200, false), None, "it was written just now");
        assert_eq!(verification.next(200 + VERIFY_FIRST_S, false), Some(20));
        assert_eq!(verification.count(), Verified { waiting: 0, sound: 2 });
    }

    #[test]
    fn damage_is_told_once_and_ends_when_it_is_read_sound() {
        let mut verification = Verification::default();
        let two = segments(&[(0, 0), (10, 0)]);
        verification.look(two.iter(), 0);
        assert!(verification.handle_read(&two[0], damage(), 0));
        assert_eq!(verification.damaged().map(|(base, _)| base).collect::<Vec<_>>(), [0]);
        verification.handle_read(&two[1], None, 0);
        assert_eq!(verification.next(VERIFY_AGAIN_S * 9, false), Some(10), "what is known to be damaged is not read for nothing");
        verification.ask();
        assert_eq!((verification.next(0, true), verification.count().waiting), (Some(0), 2));
        assert!(!verification.handle_read(&two[0], damage(), 1), "it is known");
        assert!(verification.is_damaged());
        assert!(verification.handle_read(&two[0], None, 2));
        assert!(!verification.is_damaged());
        assert_eq!(verification.mended().map(|(base, _)| base).collect::<Vec<_>>(), [0], "who asked hears what was found");
        verification.ask();
        assert_eq!(verification.mended().count(), 0);
    }

    #[test]
    fn what_could_not_be_read_is_read_whole_once() {
        let mut verification = Verification::default();
        let one = segments(&[(0, 0)]);
        assert!(verification.suspect(&one[0]), "whether anybody has looked or not");
        assert!(verification.take_suspects() && !verification.take_suspects());
        assert_eq!(verification.next(0, true), Some(0));
        assert!(verification.suspect(&one[0]), "it is about to be read");
        verification.handle_read(&one[0], damage(), 0);
        verification.take_suspects();
        assert!(verification.suspect(&one[0]) && !verification.take_suspects(), "it is known, and is mended");
        verification.handle_read(&one[0], None, 0);
        assert!(verification.suspect(&one[0]), "it was mended: that is another file");
        verification.handle_read(&one[0], None, 0);
        assert!(!verification.suspect(&one[0]), "it was read and is sound: what is wrong is something else");
        let rewritten = segments(&[(0, 1)]);
        assert!(verification.suspect(&rewritten[0]));
    }

    #[test]
    fn what_was_found_of_a_file_is_not_said_of_another_one() {
        let mut verification = Verification::default();
        let one = segments(&[(0, 0)]);
        verification.look(one.iter(), 0);
        verification.handle_read(&one[0], damage(), 0);
        let rewritten = segments(&[(0, 1)]);
        verification.look(rewritten.iter(), 1);
        assert!(!verification.is_damaged(), "it was replaced");
        assert!(!verification.handle_read(&one[0], damage(), 1), "too late");
        assert!(!verification.is_damaged());
        verification.ask();
        verification.handle_passed_over(0, 1);
        assert_eq!(verification.count(), Verified::default());
        verification.look([].into_iter(), 2);
        assert_eq!((verification.next(u64::MAX, false), verification.next(0, true)), (None, None));
    }
}
