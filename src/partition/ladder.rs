//! How far the log has come, as one value whose order is asserted wherever it changes.

use crate::types::{Durability, Offset};

/// Log ends by what is known of their records: `committed <= durable <= written <= appended`, but for levels below `durable`, whose
/// committed end may run ahead of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ladder {
    appended: Offset,
    written: Offset,
    durable: Offset,
    committed: Offset,
}

/// A step that would break the order.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step} end {to} is not between {from} and {bound}")]
pub struct LadderError {
    /// Which end.
    pub step: &'static str,
    /// Where it is.
    pub from: Offset,
    /// Where it was to go.
    pub to: Offset,
    /// What it must not pass.
    pub bound: Offset,
}

impl Ladder {
    /// A log that is wholly on disk up to `end`.
    pub fn at(end: Offset) -> Ladder {
        Ladder { appended: end, written: end, durable: end, committed: end }
    }

    /// As [`Ladder::at`] of a replica: only up to `committed` its records are known to be on enough others.
    pub fn replica(end: Offset, committed: Offset) -> Ladder {
        Ladder { committed: committed.min(end), ..Ladder::at(end) }
    }

    /// One past the last record that has an offset.
    pub fn appended(&self) -> Offset {
        self.appended
    }

    /// One past the last record whose device write is done.
    pub fn written(&self) -> Offset {
        self.written
    }

    /// One past the last record that is synced.
    pub fn durable(&self) -> Offset {
        self.durable
    }

    /// The high watermark: one past the last record that consumers see.
    pub fn committed(&self) -> Offset {
        self.committed
    }

    /// Records up to `end` have offsets.
    pub fn append_to(&mut self, end: Offset) {
        assert!(end > self.appended, "an append moves the end on: {} to {end}", self.appended);
        self.appended = end;
    }

    /// The device has taken everything up to `end`, and with `durable` it is synced. Steps back are ignored: completions may overlap.
    pub fn reach(&mut self, end: Offset, durable: bool) -> Result<(), LadderError> {
        if end > self.appended {
            return Err(LadderError { step: "written", from: self.written, to: end, bound: self.appended });
        }
        self.written = self.written.max(end);
        if durable {
            self.durable = self.durable.max(end);
        }
        Ok(())
    }

    /// Everything up to `end` may be seen by consumers, at the topic's `level`. True if that is news.
    pub fn commit_to(&mut self, end: Offset, level: Durability) -> Result<bool, LadderError> {
        let bound = match level {
            Durability::Durable => self.durable,
            Durability::Written => self.written,
            Durability::Memory => self.appended,
        };
        if end > bound {
            return Err(LadderError { step: "committed", from: self.committed, to: end, bound });
        }
        let news = end > self.committed;
        self.committed = self.committed.max(end);
        Ok(news)
    }

    /// The log is cut back to `end`, which is not below what was committed, unless the cut is `unclean`: an administrator has chosen a leader that lacks records.
    pub fn truncate(&mut self, end: Offset, unclean: bool) -> Result<(), LadderError> {
        if (end < self.committed && !unclean) || end > self.appended {
            return Err(LadderError { step: "truncated", from: self.committed, to: end, bound: self.appended });
        }
        let Ladder { written, durable, committed, .. } = *self;
        *self = Ladder { appended: end, written: written.min(end), durable: durable.min(end), committed: committed.min(end) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_holds() {
        let mut ladder = Ladder::at(5);
        ladder.append_to(10);
        assert!(ladder.commit_to(10, Durability::Durable).is_err());
        ladder.reach(8, false).unwrap();
        assert!(ladder.commit_to(8, Durability::Durable).is_err());
        assert_eq!(ladder.commit_to(8, Durability::Written), Ok(true));
        assert!(ladder.reach(11, true).is_err());
        ladder.reach(10, true).unwrap();
        assert_eq!(ladder.commit_to(10, Durability::Durable), Ok(true));
        assert_eq!(ladder.commit_to(9, Durability::Durable), Ok(false));
        assert_eq!((ladder.appended(), ladder.written(), ladder.durable(), ladder.committed()), (10, 10, 10, 10));
    }

    #[test]
    fn no_cut_below_the_watermark() {
        let mut ladder = Ladder::at(5);
        ladder.append_to(10);
        ladder.reach(7, true).unwrap();
        assert!(ladder.truncate(4, false).is_err() && ladder.truncate(11, true).is_err());
        ladder.truncate(6, false).unwrap();
        assert_eq!((ladder.appended(), ladder.durable(), ladder.committed()), (6, 6, 5));
        ladder.truncate(4, true).unwrap();
        assert_eq!(ladder, Ladder::at(4));
        assert_eq!(Ladder::replica(9, 7).committed(), 7);
    }
}
