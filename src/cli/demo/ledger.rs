//! What was acknowledged, kept outside the broker, and the comparison with what is read afterwards. Pure.
//!
//! Each record carries an id of its own in a header: which producer sent it, and as which of its records. So a record that is there
//! twice is told from two records with the same content, and the order of sending can be compared with the order of offsets.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::types::Offset;

/// Name of the header with the id.
pub const ID_HEADER: &str = "id";
/// Bytes of an id.
const ID_BYTES: usize = 9;

/// Which record it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordId {
    /// The producer, counted from 0.
    pub producer: u8,
    /// Its records are counted from 0 in the order of sending.
    pub sequence: u64,
}

impl RecordId {
    /// As the header's value.
    pub fn encode(self) -> [u8; ID_BYTES] {
        let mut bytes = [0; ID_BYTES];
        bytes[0] = self.producer;
        bytes[1..].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    /// From a header's value; `None` when it is none of ours.
    pub fn decode(bytes: &[u8]) -> Option<RecordId> {
        let (producer, sequence) = bytes.split_first()?;
        Some(RecordId { producer: *producer, sequence: u64::from_le_bytes(sequence.try_into().ok()?) })
    }
}

/// Of key and value; another function than the checksums of the log, which the broker computes itself.
pub fn content_hash(key: Option<&[u8]>, value: Option<&[u8]>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    hasher.finish()
}

/// One acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack {
    /// Which of its producer's records.
    pub sequence: u64,
    /// Where the broker said that it is.
    pub offset: Offset,
    /// Of what was sent.
    pub hash: u64,
}

/// All acknowledgements.
#[derive(Debug)]
pub struct Ledger {
    partitions: u32,
    /// How many records each producer sent: no other sequences exist.
    sent: Vec<u64>,
    /// By producer and partition, in the order of sending.
    lanes: Vec<Vec<Ack>>,
}

impl Ledger {
    /// Without acknowledgements yet; `sent` is the number of records of each producer.
    pub fn new(partitions: u32, sent: Vec<u64>) -> Ledger {
        let lanes = vec![Vec::new(); sent.len() * partitions as usize];
        Ledger { partitions, sent, lanes }
    }

    /// The acknowledgements of one producer's records in one partition, in the order of sending.
    ///
    /// # Panics
    /// There is no such producer or partition, or the order is another: both would be the demo's own mistake.
    pub fn set_lane(&mut self, producer: u8, partition: u32, acks: Vec<Ack>) {
        assert!(acks.is_sorted_by_key(|ack| ack.sequence), "acknowledgements are noted in the order of sending");
        let lane = self.lane(producer, partition).expect("a lane of this demo");
        self.lanes[lane] = acks;
    }

    fn lane(&self, producer: u8, partition: u32) -> Option<usize> {
        let is_ours = usize::from(producer) < self.sent.len() && partition < self.partitions;
        is_ours.then(|| usize::from(producer) * self.partitions as usize + partition as usize)
    }

    /// How many acknowledgements there are.
    pub fn acknowledged(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.len() as u64).sum()
    }

    /// Begins a comparison.
    pub fn check(&self) -> Check<'_> {
        Check {
            ledger: self,
            seen: self.sent.iter().map(|count| vec![0; count.div_ceil(64) as usize]).collect(),
            lanes: vec![LaneCheck::default(); self.lanes.len()],
            last_offsets: vec![-1; self.partitions as usize],
            confirmed: 0,
            verdict: Verdict { acknowledged: self.acknowledged(), ..Verdict::default() },
        }
    }
}

/// What a comparison came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// Acknowledged records.
    pub acknowledged: u64,
    /// Records that were read.
    pub read: u64,
    /// Acknowledged, but not at that offset, or with another content.
    pub lost: u64,
    /// The same record once more.
    pub duplicated: u64,
    /// Records behind one that their producer sent later into the same partition.
    pub out_of_order: u64,
    /// Records that nobody sent.
    pub foreign: u64,
}

impl Verdict {
    /// Whether the broker kept its promise.
    pub fn holds(&self) -> bool {
        (self.lost, self.duplicated, self.out_of_order, self.foreign) == (0, 0, 0, 0)
    }
}

/// A comparison under way. Takes what is read, each partition from its first offset on.
#[derive(Debug)]
pub struct Check<'a> {
    ledger: &'a Ledger,
    /// A bit for each record of each producer.
    seen: Vec<Vec<u64>>,
    lanes: Vec<LaneCheck>,
    last_offsets: Vec<Offset>,
    confirmed: u64,
    verdict: Verdict,
}

#[derive(Clone, Debug, Default)]
struct LaneCheck {
    /// The highest sequence so far.
    last: Option<u64>,
    /// Where the next acknowledgement is looked for first.
    at: usize,
}

impl Check<'_> {
    /// A record that was read.
    pub fn observe(&mut self, partition: u32, offset: Offset, id: Option<RecordId>, hash: u64) {
        self.verdict.read += 1;
        let known = id.and_then(|id| Some((id, self.ledger.lane(id.producer, partition)?)));
        let Some((id, lane)) = known.filter(|(id, _)| id.sequence < self.ledger.sent[usize::from(id.producer)]) else {
            self.verdict.foreign += 1;
            return;
        };
        let last_offset = &mut self.last_offsets[partition as usize];
        if offset <= *last_offset {
            // The same place is read twice: whatever is there has been judged.
            self.verdict.duplicated += 1;
            return;
        }
        *last_offset = offset;
        self.confirm(lane, offset, id.sequence, hash);

        let (word, bit) = ((id.sequence / 64) as usize, 1 << (id.sequence % 64));
        let seen = &mut self.seen[usize::from(id.producer)][word];
        if *seen & bit != 0 {
            self.verdict.duplicated += 1;
            return;
        }
        *seen |= bit;
        let last = &mut self.lanes[lane].last;
        if last.is_some_and(|last| id.sequence < last) {
            self.verdict.out_of_order += 1;
        } else {
            *last = Some(id.sequence);
        }
    }

    /// Ticks the acknowledgement off that says just this.
    fn confirm(&mut self, lane: usize, offset: Offset, sequence: u64, hash: u64) {
        let acks = &self.ledger.lanes[lane];
        let at = &mut self.lanes[lane].at;
        if acks.get(*at).is_none_or(|ack| ack.sequence != sequence) {
            match acks.binary_search_by_key(&sequence, |ack| ack.sequence) {
                Ok(found) => *at = found,
                // There, but never acknowledged: allowed.
                Err(_) => return,
            }
        }
        if acks[*at] == (Ack { sequence, offset, hash }) {
            self.confirmed += 1;
        }
        *at += 1;
    }

    /// Everything was read.
    pub fn finish(self) -> Verdict {
        Verdict { lost: self.verdict.acknowledged - self.confirmed, ..self.verdict }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = (u32, Offset, Option<RecordId>, u64);

    /// Two producers, two partitions, 40 records each in turn; what a good broker would give back.
    fn good() -> (Ledger, Vec<Read>) {
        let mut ledger = Ledger::new(2, vec![40, 40]);
        let mut lanes = vec![Vec::new(); 4];
        let mut reads = Vec::new();
        let mut ends = [0; 2];
        for sequence in 0..40u64 {
            for producer in 0..2u8 {
                let partition = (sequence % 2) as u32;
                let offset = ends[partition as usize];
                ends[partition as usize] += 1;
                let hash = content_hash(Some(&[producer]), Some(&sequence.to_le_bytes()));
                lanes[usize::from(producer) * 2 + partition as usize].push(Ack { sequence, offset, hash });
                reads.push((partition, offset, Some(RecordId { producer, sequence }), hash));
            }
        }
        for (lane, acks) in lanes.into_iter().enumerate() {
            ledger.set_lane((lane / 2) as u8, (lane % 2) as u32, acks);
        }
        (ledger, reads)
    }

    fn verdict(change: impl FnOnce(&mut Vec<Read>)) -> Verdict {
        let (ledger, mut reads) = good();
        change(&mut reads);
        let mut check = ledger.check();
        for (partition, offset, id, hash) in reads {
            check.observe(partition, offset, id, hash);
        }
        check.finish()
    }

    const GOOD: Verdict = Verdict { acknowledged: 80, read: 80, lost: 0, duplicated: 0, out_of_order: 0, foreign: 0 };

    #[test]
    fn a_good_log_holds() {
        assert_eq!(verdict(|_| {}), GOOD);
        assert!(GOOD.holds());
    }

    #[test]
    fn a_planted_loss_is_caught() {
        assert_eq!(verdict(|reads| reads.retain(|read| (read.0, read.1) != (1, 13))), Verdict { read: 79, lost: 1, ..GOOD });
        assert_eq!(verdict(|reads| reads.truncate(50)), Verdict { read: 50, lost: 30, ..GOOD });
        assert_eq!(verdict(|reads| reads[7].3 ^= 1), Verdict { lost: 1, ..GOOD }, "another content");
        // Everything behind a hole has other offsets than were acknowledged.
        let moved = verdict(|reads| reads.iter_mut().filter(|read| read.0 == 1 && read.1 >= 30).for_each(|read| read.1 += 1));
        assert_eq!(moved, Verdict { lost: 10, ..GOOD });
    }

    #[test]
    fn a_planted_duplicate_is_caught() {
        let appended_again = |reads: &mut Vec<Read>| {
            let (partition, _, id, hash) = reads[20];
            reads.push((partition, 40, id, hash));
        };
        assert_eq!(verdict(appended_again), Verdict { read: 81, duplicated: 1, ..GOOD });
        assert_eq!(verdict(|reads| reads.push(reads[79])), Verdict { read: 81, duplicated: 1, ..GOOD }, "one place twice");
        let in_another_partition = |reads: &mut Vec<Read>| reads.push((1, 40, reads[0].2, reads[0].3));
        assert_eq!(verdict(in_another_partition), Verdict { read: 81, duplicated: 1, ..GOOD });
    }

    #[test]
    fn a_planted_swap_is_caught() {
        // Two records of one producer and partition, acknowledged as they are: no loss, but not the order of sending.
        let (mut ledger, mut reads) = good();
        let mut acks = ledger.lanes[0].clone();
        (acks[3].offset, acks[4].offset) = (acks[4].offset, acks[3].offset);
        let [third, fourth] =
            [3, 4].map(|n| reads.iter().position(|read| read.2 == Some(RecordId { producer: 0, sequence: 2 * n })).unwrap());
        (reads[third].2, reads[fourth].2) = (reads[fourth].2, reads[third].2);
        (reads[third].3, reads[fourth].3) = (reads[fourth].3, reads[third].3);
        ledger.set_lane(0, 0, acks);
        let mut check = ledger.check();
        reads.iter().for_each(|(partition, offset, id, hash)| check.observe(*partition, *offset, *id, *hash));
        assert_eq!(check.finish(), Verdict { out_of_order: 1, ..GOOD });
    }

    #[test]
    fn records_that_nobody_sent_are_caught_and_unacknowledged_ones_are_allowed() {
        let foreign = |id| verdict(|reads| reads.push((0, 40, id, 0)));
        for id in [None, Some(RecordId { producer: 2, sequence: 0 }), Some(RecordId { producer: 0, sequence: u64::MAX })] {
            assert_eq!(foreign(id), Verdict { read: 81, foreign: 1, ..GOOD });
        }
        let (mut ledger, reads) = good();
        let mut acks = ledger.lanes[3].clone();
        acks.remove(5);
        ledger.set_lane(1, 1, acks);
        let mut check = ledger.check();
        reads.iter().for_each(|(partition, offset, id, hash)| check.observe(*partition, *offset, *id, *hash));
        assert_eq!(check.finish(), Verdict { acknowledged: 79, ..GOOD });
    }

    #[test]
    fn ids_come_back_and_others_are_told_apart() {
        let id = RecordId { producer: 2, sequence: 0x0102_0304_0506_0708 };
        assert_eq!(RecordId::decode(&id.encode()), Some(id));
        assert_eq!(RecordId::decode(&[1; 8]), None);
        assert_eq!(RecordId::decode(&[]), None);
        assert_ne!(content_hash(None, Some(b"ab")), content_hash(Some(b"a"), Some(b"b")));
    }
}
