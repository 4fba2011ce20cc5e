//! The epoch table of a log, and where two logs part.
//!
//! An epoch has one leader, and a leader writes an offset once. So where two logs both have records of an epoch, those records are the same ones, and so is all
//! that is before them. What may differ is how far the epoch goes in each, and what comes after.
//!
//! The table speaks of records, not of promises: an epoch in which nothing was written leaves no trace here. The epoch that a replica has promised to
//! keep to is kept beside it ([`LogState::promised`](crate::replication::LogState)). If one stood for the other, a follower that has promised epoch 5 at
//! its log end 80 and is then sent records of epoch 3 from 80 to 100 would later tell others that 3 ends at 80, and they would cut what was acknowledged.

use crate::types::{LeaderEpoch, Offset};

/// Before the first record of a log there is no epoch.
pub const NO_EPOCH: LeaderEpoch = -1;

/// Where an epoch begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: LeaderEpoch,
    /// Its first offset.
    pub start: Offset,
}

/// A table that does not rise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("epoch {epoch} at offset {start} does not come after epoch {last} at offset {last_start}")]
pub struct EpochDisorder {
    /// The entry that does not fit.
    pub epoch: LeaderEpoch,
    /// Its offset.
    pub start: Offset,
    /// The one before it.
    pub last: LeaderEpoch,
    /// That one's offset.
    pub last_start: Offset,
}

/// Which epochs the records of a log are of: epochs and starts both rise.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EpochTable {
    entries: Vec<EpochStart>,
}

impl EpochTable {
    /// A table from outside.
    ///
    /// # Errors
    /// When epochs or starts do not rise.
    pub fn from_entries(entries: Vec<EpochStart>) -> Result<EpochTable, EpochDisorder> {
        for pair in entries.windows(2) {
            if pair[1].epoch <= pair[0].epoch || pair[1].start <= pair[0].start {
                let (last, next) = (pair[0], pair[1]);
                return Err(EpochDisorder { epoch: next.epoch, start: next.start, last: last.epoch, last_start: last.start });
            }
        }
        Ok(EpochTable { entries })
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> &[EpochStart] {
        &self.entries
    }

    /// The epoch of the last entry, or [`NO_EPOCH`].
    pub fn last(&self) -> LeaderEpoch {
        self.entries.last().map_or(NO_EPOCH, |entry| entry.epoch)
    }

    /// The epoch of the record at `offset`, or [`NO_EPOCH`] of one before all entries.
    pub fn epoch_at(&self, offset: Offset) -> LeaderEpoch {
        let later = self.entries.partition_point(|entry| entry.start <= offset);
        later.checked_sub(1).map_or(NO_EPOCH, |at| self.entries[at].epoch)
    }

    /// Where the epoch of the record at `offset` ends: at the next entry, or never so far.
    pub fn next_start(&self, offset: Offset) -> Option<Offset> {
        let later = self.entries.partition_point(|entry| entry.start <= offset);
        self.entries.get(later).map(|entry| entry.start)
    }

    /// Records of `epoch` begin at `start`, which is the log's end. Entries that got no record give way.
    ///
    /// # Panics
    /// When `epoch` is below the last one that has records.
    pub fn begin(&mut self, epoch: LeaderEpoch, start: Offset) {
        self.truncate(start);
        match self.entries.last() {
            Some(last) if last.epoch == epoch => {}
            Some(last) => {
                assert!(epoch > last.epoch, "epochs rise: {} then {epoch}", last.epoch);
                self.entries.push(EpochStart { epoch, start });
            }
            None => self.entries.push(EpochStart { epoch, start }),
        }
    }

    /// The log ends at `end`: what begins there or later has no record.
    pub fn truncate(&mut self, end: Offset) {
        self.entries.retain(|entry| entry.start < end);
    }

    /// The log begins at `start`: epochs that ended before are forgotten.
    pub fn raise_log_start(&mut self, start: Offset) {
        let later = self.entries.partition_point(|entry| entry.start <= start);
        self.entries.drain(..later.saturating_sub(1));
    }

    /// Up to where this log, which ends at `end`, and another one are the same for certain: the least end of the last epoch that both have records of. `None` when they have none in common.
    pub fn common_end(&self, end: Offset, other: &EpochTable, other_end: Offset) -> Option<Offset> {
        let mine = self.spans(end);
        let theirs = other.spans(other_end);
        mine.rev().find_map(|(epoch, end)| {
            let (_, other_end) = theirs.clone().rev().find(|(other, _)| *other == epoch)?;
            Some(end.min(other_end))
        })
    }

    /// (Epoch, end) of each epoch that has records.
    fn spans(&self, log_end: Offset) -> impl DoubleEndedIterator<Item = (LeaderEpoch, Offset)> + Clone {
        self.entries.iter().enumerate().filter_map(move |(at, entry)| {
            let end = self.entries.get(at + 1).map_or(log_end, |next| next.start.min(log_end));
            (entry.start < end).then_some((entry.epoch, end))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(LeaderEpoch, Offset)]) -> EpochTable {
        EpochTable::from_entries(entries.iter().map(|(epoch, start)| EpochStart { epoch: *epoch, start: *start }).collect()).unwrap()
    }

    #[test]
    fn logs_are_the_same_up_to_the_last_epoch_that_both_have() {
        let leader = table(&[(0, 0), (2, 100), (5, 150)]);
        for (follower, end, expected) in [
            (table(&[(0, 0)]), 80, Some(80)),
            (table(&[(0, 0)]), 120, Some(100)),
            (table(&[(0, 0), (1, 90)]), 130, Some(90)),
            (table(&[(0, 0), (2, 100)]), 140, Some(140)),
            (table(&[(0, 0), (2, 100), (4, 145)]), 170, Some(145)),
            (table(&[(0, 0), (2, 100), (5, 150)]), 170, Some(170)),
            (table(&[(0, 0), (2, 100), (5, 150)]), 150, Some(150)),
            (table(&[(1, 0)]), 20, None),
            (table(&[]), 0, None),
        ] {
            assert_eq!(leader.common_end(200, &follower, end), expected, "{follower:?} to {end}");
            assert_eq!(follower.common_end(end, &leader, 200), expected, "the other way round");
        }
        let fresh = table(&[(0, 0), (6, 100)]);
        assert_eq!(fresh.common_end(100, &table(&[(0, 0), (6, 100)]), 150), Some(100), "of 6 this one has nothing yet");
    }

    #[test]
    fn an_epoch_without_records_leaves_no_trace() {
        let mut epochs = EpochTable::default();
        epochs.begin(1, 0);
        epochs.begin(3, 0);
        epochs.begin(4, 10);
        epochs.begin(4, 20);
        assert_eq!(epochs, table(&[(3, 0), (4, 10)]));
        assert_eq!([-1, 0, 9, 10, 50].map(|at| epochs.epoch_at(at)), [NO_EPOCH, 3, 3, 4, 4]);
        assert_eq!((epochs.next_start(3), epochs.next_start(10)), (Some(10), None));
        epochs.truncate(10);
        assert_eq!(epochs.last(), 3);
        let mut epochs = table(&[(0, 0), (2, 100), (5, 150)]);
        epochs.raise_log_start(149);
        assert_eq!(epochs, table(&[(2, 100), (5, 150)]));
        epochs.raise_log_start(150);
        assert_eq!(epochs, table(&[(5, 150)]));
    }

    #[test]
    fn a_table_that_does_not_rise_is_refused() {
        for bad in [[(1, 0), (1, 5)], [(2, 0), (1, 5)], [(1, 5), (2, 5)], [(1, 5), (2, 4)]] {
            let entries = bad.iter().map(|(epoch, start)| EpochStart { epoch: *epoch, start: *start }).collect();
            assert!(EpochTable::from_entries(entries).is_err(), "{bad:?}");
        }
    }
}
