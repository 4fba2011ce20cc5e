//! The idempotent producers of a partition: which batch of whom comes next, and which one was here already.
//!
//! Kafka's rules, but for one: a producer that is not known may start at sequence 0 only, so that what the table can't place is refused and never
//! silently appended. A new epoch starts at 0; after the largest sequence comes 0.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::batch::{BatchHeader, sequence_after};
use crate::limits::PRODUCER_BATCHES;
use crate::log::checkpoint::{ProducerBatch, ProducerSnapshot};
use crate::types::{Offset, ProducerEpoch, ProducerId, Timestamp};

/// Where a batch stands in its producer's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sequence {
    /// It is the next one, or it has no producer: append it.
    New,
    /// It was appended before: answer with the original's offset, once that one is as durable as asked.
    Duplicate {
        /// Offset of the original's first record.
        base_offset: Offset,
        /// Offset of the original's last record.
        last_offset: Offset,
        /// The original's largest timestamp.
        timestamp: Timestamp,
    },
    /// It does not follow, and is not among the remembered ones.
    OutOfOrder {
        /// The sequence that comes next.
        expected: i32,
        /// The batch's first one.
        actual: i32,
    },
    /// The producer has a newer epoch.
    Fenced {
        /// The newest epoch.
        current: ProducerEpoch,
        /// The batch's.
        actual: ProducerEpoch,
    },
    /// Nothing is known of the producer, and the batch does not start at sequence 0.
    UnknownProducer {
        /// The batch's first sequence.
        actual: i32,
    },
}

/// Of a producer that is not in `by_turn` yet.
const NO_TURN: u64 = 0;

#[derive(Clone, Debug)]
struct Producer {
    epoch: ProducerEpoch,
    batches: VecDeque<ProducerBatch>,
    used_ms: Timestamp,
    turn: u64,
}

/// The producers of one partition, at most a given number of them.
#[derive(Clone, Debug)]
pub struct ProducerTable {
    producers: HashMap<ProducerId, Producer>,
    by_turn: BTreeMap<u64, ProducerId>,
    next_turn: u64,
    capacity: usize,
}

impl ProducerTable {
    /// An empty table that remembers at most `capacity` producers and forgets the least recently used one for the next.
    ///
    /// # Panics
    /// When `capacity` is 0.
    pub fn new(capacity: usize) -> ProducerTable {
        assert!(capacity > 0, "a table of no producers");
        ProducerTable { producers: HashMap::new(), by_turn: BTreeMap::new(), next_turn: NO_TURN + 1, capacity }
    }

    /// From a snapshot; every producer counts as used at `now_ms`.
    pub fn restore(capacity: usize, snapshot: &[ProducerSnapshot], now_ms: Timestamp) -> ProducerTable {
        let mut table = ProducerTable::new(capacity);
        for producer in snapshot {
            let batches = producer.batches.iter().copied().collect();
            table.producers.insert(producer.id, Producer { epoch: producer.epoch, batches, used_ms: now_ms, turn: NO_TURN });
            table.touch(producer.id, now_ms);
        }
        table
    }

    /// Everything known, least recently used first.
    pub fn snapshot(&self) -> Vec<ProducerSnapshot> {
        let one = |id: &ProducerId| {
            let producer = &self.producers[id];
            ProducerSnapshot { id: *id, epoch: producer.epoch, batches: producer.batches.iter().copied().collect() }
        };
        self.by_turn.values().map(one).collect()
    }

    /// Number of producers known.
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// Where a batch stands, changing nothing.
    pub fn check(&self, batch: &BatchHeader) -> Sequence {
        if !batch.has_producer() {
            return Sequence::New;
        }
        let actual = batch.base_sequence;
        let Some(producer) = self.producers.get(&batch.producer_id) else {
            return if actual == 0 { Sequence::New } else { Sequence::UnknownProducer { actual } };
        };
        if batch.producer_epoch < producer.epoch {
            return Sequence::Fenced { current: producer.epoch, actual: batch.producer_epoch };
        }
        if batch.producer_epoch > producer.epoch {
            return if actual == 0 { Sequence::New } else { Sequence::OutOfOrder { expected: 0, actual } };
        }
        let last_sequence = batch.last_sequence();
        let original = producer.batches.iter().rev().find(|b| b.first_sequence == actual && b.last_sequence == last_sequence);
        if let Some(original) = original {
            let last_offset = original.base_offset.saturating_add(i64::from(batch.last_offset_delta));
            return Sequence::Duplicate { base_offset: original.base_offset, last_offset, timestamp: original.timestamp };
        }
        match producer.expected() {
            expected if expected == actual => Sequence::New,
            expected => Sequence::OutOfOrder { expected, actual },
        }
    }

    /// Remembers a batch that was appended, with its offset in its header. A batch without a producer changes nothing.
    pub fn record(&mut self, batch: &BatchHeader, now_ms: Timestamp) {
        if !batch.has_producer() || batch.base_sequence < 0 {
            return;
        }
        let id = batch.producer_id;
        let producer = self.producers.entry(id).or_insert_with(|| Producer {
            epoch: batch.producer_epoch,
            batches: VecDeque::with_capacity(PRODUCER_BATCHES),
            used_ms: now_ms,
            turn: NO_TURN,
        });
        if producer.epoch != batch.producer_epoch {
            producer.epoch = batch.producer_epoch;
            producer.batches.clear();
        }
        if producer.batches.len() == PRODUCER_BATCHES {
            producer.batches.pop_front();
        }
        producer.batches.push_back(ProducerBatch {
            first_sequence: batch.base_sequence,
            last_sequence: batch.last_sequence(),
            base_offset: batch.base_offset,
            timestamp: batch.max_timestamp,
        });
        self.touch(id, now_ms);
        self.keep_bound();
    }

    /// Forgets producers that were last used before `before_ms`.
    pub fn expire(&mut self, before_ms: Timestamp) {
        while let Some((turn, id)) = self.by_turn.first_key_value().map(|(turn, id)| (*turn, *id)) {
            if self.producers[&id].used_ms >= before_ms {
                break;
            }
            self.by_turn.remove(&turn);
            self.producers.remove(&id);
        }
    }

    /// Forgets batches at or after `offset`, which the log no longer holds, and producers of whom no batch is left: those can't be placed any more
    /// and are refused until they start again.
    pub fn truncate_to(&mut self, offset: Offset) {
        let by_turn = &mut self.by_turn;
        self.producers.retain(|_, producer| {
            producer.batches.retain(|batch| batch.base_offset < offset);
            if producer.batches.is_empty() {
                by_turn.remove(&producer.turn);
            }
            !producer.batches.is_empty()
        });
    }

    /// Of whom [`ProducerTable::truncate_to`] would forget everything though an earlier batch may be in the log: those are looked for there. One that began behind the cut
    /// with its first sequence is not among them.
    pub fn lost_by(&self, offset: Offset) -> Vec<ProducerId> {
        let is_lost = |producer: &Producer| {
            let first = producer.batches.front();
            first.is_some_and(|first| first.base_offset >= offset && !(producer.epoch == 0 && first.first_sequence == 0))
        };
        let mut lost: Vec<ProducerId> = self.producers.iter().filter(|(_, producer)| is_lost(producer)).map(|(id, _)| *id).collect();
        lost.sort_unstable();
        lost
    }

    /// Takes in what was found in the log of producers that a truncation made forget. What is known of them since is newer and stays.
    pub fn restore_lost(&mut self, found: &[ProducerSnapshot], now_ms: Timestamp) {
        for ProducerSnapshot { id, epoch, batches } in found {
            match self.producers.get_mut(id) {
                Some(known) if known.epoch == *epoch => {
                    let first = known.batches.front().map_or(Offset::MAX, |first| first.base_offset);
                    for batch in batches.iter().rev().filter(|batch| batch.base_offset < first) {
                        if known.batches.len() < PRODUCER_BATCHES {
                            known.batches.push_front(*batch);
                        }
                    }
                }
                Some(_) => {}
                None if batches.is_empty() => {}
                None => {
                    let batches = batches.iter().copied().collect();
                    self.producers.insert(*id, Producer { epoch: *epoch, batches, used_ms: now_ms, turn: NO_TURN });
                    self.touch(*id, now_ms);
                    self.keep_bound();
                }
            }
        }
    }

    /// Takes in what a segment that comes behind everything known has of its producers: as if each of its batches had been recorded.
    pub fn extend(&mut self, later: &[ProducerSnapshot], now_ms: Timestamp) {
        for ProducerSnapshot { id, epoch, batches } in later {
            let producer = self.producers.entry(*id).or_insert_with(|| Producer {
                epoch: *epoch,
                batches: VecDeque::with_capacity(PRODUCER_BATCHES),
                used_ms: now_ms,
                turn: NO_TURN,
            });
            if producer.epoch != *epoch {
                producer.epoch = *epoch;
                producer.batches.clear();
            }
            producer.batches.extend(batches);
            let surplus = producer.batches.len().saturating_sub(PRODUCER_BATCHES);
            producer.batches.drain(..surplus);
            self.touch(*id, now_ms);
            self.keep_bound();
        }
    }

    fn touch(&mut self, id: ProducerId, now_ms: Timestamp) {
        let turn = self.next_turn;
        self.next_turn += 1;
        if let Some(producer) = self.producers.get_mut(&id) {
            self.by_turn.remove(&producer.turn);
            producer.turn = turn;
            producer.used_ms = now_ms;
            self.by_turn.insert(turn, id);
        }
    }

    fn keep_bound(&mut self) {
        while self.producers.len() > self.capacity {
            let Some((_, id)) = self.by_turn.pop_first() else { return };
            self.producers.remove(&id);
        }
    }
}

impl Producer {
    fn expected(&self) -> i32 {
        self.batches.back().map_or(0, |last| sequence_after(last.last_sequence, 1))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The header of a batch of `count` records.
    pub(crate) fn batch(id: ProducerId, epoch: ProducerEpoch, first: i32, count: i32, base_offset: Offset) -> BatchHeader {
        BatchHeader {
            base_offset,
            batch_length: 49,
            leader_epoch: 0,
            magic: 2,
            crc: 0,
            attributes: 0,
            last_offset_delta: count - 1,
            base_timestamp: 5,
            max_timestamp: 5,
            producer_id: id,
            producer_epoch: epoch,
            base_sequence: first,
            record_count: count,
        }
    }

    fn table_after(batches: &[BatchHeader]) -> ProducerTable {
        let mut table = ProducerTable::new(10);
        for b in batches {
            assert_eq!(table.check(b), Sequence::New, "{b:?}");
            table.record(b, 0);
        }
        table
    }

    #[test]
    fn batches_follow_each_other() {
        let table = table_after(&[batch(1, 0, 0, 3, 10), batch(2, 0, 0, 1, 13), batch(1, 0, 3, 2, 14)]);
        assert_eq!(table.check(&batch(1, 0, 5, 1, 0)), Sequence::New);
        assert_eq!(table.check(&batch(1, 0, 6, 1, 0)), Sequence::OutOfOrder { expected: 5, actual: 6 });
        let original = Sequence::Duplicate { base_offset: 10, last_offset: 12, timestamp: 5 };
        assert_eq!(table.check(&batch(1, 0, 0, 3, 0)), original);
        assert_eq!(table.check(&batch(1, 0, 0, 2, 0)), Sequence::OutOfOrder { expected: 5, actual: 0 }, "a part of the original");
        assert_eq!(table.check(&batch(-1, -1, -1, 1, 0)), Sequence::New, "no producer, no order");
    }

    #[test]
    fn a_later_segments_batches_count_as_if_each_had_been_recorded() {
        let earlier: Vec<_> = (0..4).map(|n| batch(1, 0, n, 1, i64::from(n))).chain([batch(2, 0, 0, 1, 4), batch(3, 0, 0, 1, 5)]).collect();
        let many = PRODUCER_BATCHES as i32 - 1;
        let later: Vec<_> =
            (0..many).map(|n| batch(1, 0, 4 + n, 1, 10 + i64::from(n))).chain([batch(2, 1, 0, 1, 90), batch(4, 0, 0, 1, 91)]).collect();
        let (mut extended, mut recorded, mut of_later) = (table_after(&earlier), table_after(&earlier), ProducerTable::new(10));
        for batch in &later {
            recorded.record(batch, 7);
            of_later.record(batch, 0);
        }
        extended.extend(&of_later.snapshot(), 7);
        assert_eq!(extended.snapshot(), recorded.snapshot());
        let mut small = ProducerTable::new(2);
        small.extend(&of_later.snapshot(), 7);
        assert_eq!(small.len(), 2, "the bound holds");
    }

    #[test]
    fn the_last_batches_are_remembered_and_older_ones_refused() {
        const { assert!(PRODUCER_BATCHES >= 5, "Kafka's guarantee") };
        let count = PRODUCER_BATCHES as i32 + 1;
        let batches: Vec<_> = (0..count).map(|n| batch(1, 0, n, 1, i64::from(n))).collect();
        let table = table_after(&batches);
        assert_eq!(table.check(&batches[0]), Sequence::OutOfOrder { expected: count, actual: 0 });
        for (n, b) in batches.iter().enumerate().skip(1) {
            assert_eq!(table.check(b), Sequence::Duplicate { base_offset: n as i64, last_offset: n as i64, timestamp: 5 });
        }
    }

    #[test]
    fn epochs_fence_and_start_at_zero() {
        let mut table = table_after(&[batch(1, 3, 0, 1, 0)]);
        assert_eq!(table.check(&batch(1, 2, 1, 1, 1)), Sequence::Fenced { current: 3, actual: 2 });
        assert_eq!(table.check(&batch(1, 4, 1, 1, 1)), Sequence::OutOfOrder { expected: 0, actual: 1 });
        assert_eq!(table.check(&batch(1, 4, 0, 1, 1)), Sequence::New);
        table.record(&batch(1, 4, 0, 1, 1), 0);
        assert_eq!(table.check(&batch(1, 4, 1, 1, 2)), Sequence::New);
        assert_eq!(table.check(&batch(1, 3, 1, 1, 2)), Sequence::Fenced { current: 4, actual: 3 });
    }

    #[test]
    fn sequences_wrap() {
        let mut table = table_after(&[batch(1, 0, 0, 1, 0)]);
        table.record(&batch(1, 0, i32::MAX - 1, 3, 1), 0);
        assert_eq!(table.check(&batch(1, 0, 1, 1, 4)), Sequence::New);
        assert!(matches!(table.check(&batch(1, 0, i32::MAX - 1, 3, 0)), Sequence::Duplicate { base_offset: 1, last_offset: 3, .. }));
    }

    #[test]
    fn an_unknown_producer_starts_at_zero_only() {
        let table = ProducerTable::new(1);
        assert_eq!(table.check(&batch(1, 7, 0, 1, 0)), Sequence::New);
        assert_eq!(table.check(&batch(1, 7, 4, 1, 0)), Sequence::UnknownProducer { actual: 4 });
    }

    #[test]
    fn the_least_recently_used_is_forgotten() {
        let mut table = ProducerTable::new(2);
        table.record(&batch(1, 0, 0, 1, 0), 10);
        table.record(&batch(2, 0, 0, 1, 1), 20);
        table.record(&batch(1, 0, 1, 1, 2), 30);
        table.record(&batch(3, 0, 0, 1, 3), 40);
        assert_eq!(table.len(), 2);
        assert_eq!(table.check(&batch(2, 0, 1, 1, 4)), Sequence::UnknownProducer { actual: 1 });
        assert_eq!(table.check(&batch(1, 0, 2, 1, 4)), Sequence::New);
        table.expire(31);
        assert_eq!(table.snapshot().iter().map(|p| p.id).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_snapshot_restores_all_of_it() {
        let table = table_after(&[batch(5, 0, 0, 3, 10), batch(2, 1, 0, 1, 13), batch(5, 0, 3, 2, 14)]);
        let restored = ProducerTable::restore(10, &table.snapshot(), 99);
        assert_eq!(restored.snapshot(), table.snapshot());
        assert_eq!(restored.check(&batch(5, 0, 5, 1, 0)), Sequence::New);
    }

    #[test]
    fn a_truncation_takes_batches_back() {
        let mut table = table_after(&[batch(1, 0, 0, 3, 10), batch(2, 0, 0, 1, 13), batch(1, 0, 3, 2, 14)]);
        table.truncate_to(13);
        assert_eq!(table.check(&batch(1, 0, 3, 2, 14)), Sequence::New, "it can come again");
        assert_eq!(table.check(&batch(2, 0, 1, 1, 14)), Sequence::UnknownProducer { actual: 1 });
        assert_eq!(table.snapshot().len(), 1);
    }
}
