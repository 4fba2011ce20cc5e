//! The leader epochs of a partition: (epoch, first offset in it), rising in both.
//!
//! An entry may begin behind the log's end: a replica knows from its leader where the present epoch begins long before it has the records up to there, and that it knows the
//! epoch must survive a crash (it has promised to take nothing from an older leader). Records of older epochs that still come take their places in front of it.

use crate::types::{LeaderEpoch, Offset};

/// Where an epoch begins.
pub type EpochStart = (LeaderEpoch, Offset);

/// The start of an epoch of which only its number is known: the replica takes nothing from an older leader any more. The first batch of it says where it begins.
pub const UNKNOWN_START: Offset = Offset::MAX;

/// Records from `start` on are of `epoch`, up to where the next entry begins. An epoch that is known changes nothing, nor does one that could have no record. Earlier epochs
/// that begin at `start` or later have no record: they go without a trace. Whether anything changed.
pub fn note(epochs: &mut Vec<EpochStart>, epoch: LeaderEpoch, start: Offset) -> bool {
    let at = epochs.partition_point(|(known, _)| *known < epoch);
    if start < UNKNOWN_START && epochs.get(at) == Some(&(epoch, UNKNOWN_START)) {
        epochs.remove(at);
    }
    if epochs.get(at).is_some_and(|(known, begun)| *known == epoch || *begun <= start) {
        return false;
    }
    let kept = epochs[..at].partition_point(|(_, begun)| *begun < start);
    epochs.splice(kept..at, [(epoch, start)]);
    true
}

/// A later epoch begins, at `start` or where its leader will say, while the log ends at `log_end`. Earlier ones that begin there or later have no record here, and may never have had one: who
/// led without writing, or was told of an epoch before its records came, may get records of a still earlier one now. Those that are of them come with their records. Whether anything changed.
pub fn begin(epochs: &mut Vec<EpochStart>, epoch: LeaderEpoch, start: Offset, log_end: Offset) -> bool {
    if epochs.last().is_none_or(|(last, _)| *last < epoch) {
        epochs.retain(|(_, begun)| *begun < log_end);
    }
    note(epochs, epoch, start)
}

/// The log was cut at `end`: epochs that begin there or later have no record any more.
pub fn cut(epochs: &mut Vec<EpochStart>, end: Offset) {
    epochs.retain(|(_, start)| *start < end || *start == UNKNOWN_START);
}

/// Between which epochs that of a record at `offset` is: the one that the records around it are of at least, and, if a later one is known, that one and where it begins.
pub fn around(epochs: &[EpochStart], offset: Offset) -> (Option<LeaderEpoch>, Option<EpochStart>) {
    let later = epochs.partition_point(|(_, start)| *start <= offset);
    (later.checked_sub(1).map(|at| epochs[at].0), epochs.get(later).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_find_their_place() {
        let mut epochs = vec![(2, 0), (5, 100)];
        assert!(note(&mut epochs, 8, 300), "begins behind the log's end");
        assert!(note(&mut epochs, 6, 150), "records of an older epoch come later");
        assert_eq!(epochs, [(2, 0), (5, 100), (6, 150), (8, 300)]);
        for (epoch, start) in [(6, 170), (8, 310), (7, 300), (7, 400), (1, 0)] {
            assert!(!note(&mut epochs, epoch, start), "epoch {epoch} at {start}");
        }
        assert_eq!(around(&epochs, 99), (Some(2), Some((5, 100))));
        assert_eq!(around(&epochs, 150), (Some(6), Some((8, 300))));
        assert_eq!(around(&epochs, 300), (Some(8), None));
        assert_eq!(around(&[(3, 10)], 9), (None, Some((3, 10))));
        assert!(note(&mut epochs, 9, 150), "nobody had a record of 6 and 8");
        assert_eq!(epochs, [(2, 0), (5, 100), (9, 150)]);
        cut(&mut epochs, 100);
        assert_eq!(epochs, [(2, 0)]);
        assert!(note(&mut epochs, 11, UNKNOWN_START) && !note(&mut epochs, 11, UNKNOWN_START));
        assert!(note(&mut epochs, 9, 120), "records of an older epoch may still come");
        cut(&mut epochs, 110);
        assert_eq!(epochs, [(2, 0), (11, UNKNOWN_START)], "a promise has nothing to do with what is cut");
        assert!(note(&mut epochs, 11, 110));
        assert_eq!(epochs, [(2, 0), (11, 110)]);
    }

    #[test]
    fn an_epoch_without_records_goes_when_a_later_one_begins() {
        let mut epochs = vec![(3, 0), (11, 60)];
        assert!(begin(&mut epochs, 12, 100, 100), "led here, and nothing was written");
        assert!(begin(&mut epochs, 13, UNKNOWN_START, 100));
        assert_eq!(epochs, [(3, 0), (11, 60), (13, UNKNOWN_START)]);
        assert_eq!(around(&epochs, 100).0, Some(11), "records of 11 may go on");
        assert!(begin(&mut epochs, 14, 130, 100));
        assert_eq!(epochs, [(3, 0), (11, 60), (14, 130)], "a promise that a later one covers");
        assert!(!begin(&mut epochs, 14, 130, 100), "it is known");
        assert_eq!(epochs, [(3, 0), (11, 60), (14, 130)]);
    }
}
