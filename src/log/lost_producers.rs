//! Finds again what a truncation made the producer table forget.
//!
//! The table has the last few batches of each producer. Where all of them were cut off, those before them are in the log still: without them the producer's next batch could not be
//! placed, and would be refused although nothing is wrong with it. They are looked for from the cut backwards, segment by segment.

use std::collections::BTreeSet;

use crate::batch::BatchHeader;
use crate::limits::{MAX_PRODUCERS, PRODUCER_SEARCH_BYTES};
use crate::log::checkpoint::ProducerSnapshot;
use crate::log::producers::ProducerTable;
use crate::log::segment::SegmentInfo;
use crate::types::{Offset, ProducerId};

/// A search for the last batches of some producers before a cut.
#[derive(Debug)]
pub struct LostProducers {
    wanted: BTreeSet<ProducerId>,
    cut: Offset,
    /// Of the segment that is being looked through.
    table: ProducerTable,
    found: Vec<ProducerSnapshot>,
    /// Bytes that may still be looked through.
    left: u64,
}

impl LostProducers {
    /// For these producers, before `cut`.
    pub fn new(lost: impl IntoIterator<Item = ProducerId>, cut: Offset) -> LostProducers {
        let table = ProducerTable::new(MAX_PRODUCERS);
        LostProducers { wanted: lost.into_iter().collect(), cut, table, found: Vec::new(), left: PRODUCER_SEARCH_BYTES }
    }

    /// Whether this segment is still to be looked through, the segments given from the newest to the oldest. The last one may be longer than what is left of the bound.
    pub fn wants(&mut self, segment: &SegmentInfo) -> bool {
        // What is adopted is one batch: its header says all, and its length is not read.
        let bytes = if segment.adopted { 0 } else { segment.batch_bytes() };
        let wants = !self.wanted.is_empty() && self.left > 0 && segment.base_offset < self.cut;
        self.left = self.left.saturating_sub(if wants { bytes } else { 0 });
        wants
    }

    /// The next batch of the segment.
    pub fn handle_batch(&mut self, header: &BatchHeader) {
        if header.next_offset() <= self.cut && self.wanted.contains(&header.producer_id) {
            self.table.record(header, 0);
        }
    }

    /// All of the segment was looked through.
    pub fn end_segment(&mut self) {
        let table = std::mem::replace(&mut self.table, ProducerTable::new(MAX_PRODUCERS));
        for producer in table.snapshot() {
            self.wanted.remove(&producer.id);
            self.found.push(producer);
        }
    }

    /// What was found. Of a producer that is not among it nothing is known: it is refused until it starts again.
    pub fn found(self) -> Vec<ProducerSnapshot> {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PRODUCER_BATCHES;
    use crate::log::producers::{self, Sequence};

    fn batch(producer_id: ProducerId, base_sequence: i32, base_offset: Offset) -> BatchHeader {
        producers::tests::batch(producer_id, 0, base_sequence, 1, base_offset)
    }

    fn segment(base: Offset, end: Offset) -> SegmentInfo {
        SegmentInfo { end_offset: end, valid_end: 4096 + 1000, sealed: true, ..SegmentInfo::new(base, 0, 0) }
    }

    #[test]
    fn the_last_batches_before_the_cut_are_found() {
        // As many batches of producer 1 as the table knows are cut off at 20. Producer 2 began behind the cut, producer 3 has one left.
        let mut table = ProducerTable::new(10);
        for n in 0..2 + PRODUCER_BATCHES as i32 {
            table.record(&batch(1, n, if n < 2 { i64::from(n) } else { 20 + i64::from(n) }), 0);
        }
        table.record(&batch(2, 0, 60), 0);
        table.record(&batch(3, 4, 5), 0);
        table.record(&batch(3, 5, 61), 0);
        assert_eq!(table.lost_by(20), [1]);
        let mut search = LostProducers::new(table.lost_by(20), 20);
        assert!(!search.wants(&segment(20, 50)), "behind the cut");
        assert!(search.wants(&segment(10, 20)));
        search.handle_batch(&batch(3, 4, 12));
        search.end_segment();
        assert!(search.wants(&segment(0, 10)));
        (0..2).for_each(|n| search.handle_batch(&batch(1, n, i64::from(n))));
        search.end_segment();
        assert!(!search.wants(&segment(0, 10)), "all are found");
        table.truncate_to(20);
        table.restore_lost(&search.found(), 7);
        assert_eq!(table.check(&batch(1, 2, 20)), Sequence::New);
        assert!(matches!(table.check(&batch(1, 1, 20)), Sequence::Duplicate { base_offset: 1, .. }));
        assert_eq!(table.check(&batch(3, 5, 20)), Sequence::New);
        assert_eq!(table.check(&batch(2, 0, 20)), Sequence::New);
    }
}
