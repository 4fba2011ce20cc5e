//! What was acknowledged against what is read. Pure: whoever has the acknowledgements and the records of each place in the order of offsets
//! gets the same verdict.
//!
//! A *place* is a partition, counted over all topics. Each record says in its value who sent it, and as which of its records, so that
//! a record that is there twice is told from two that look alike, and the order of sending can be compared with the order of offsets.

use std::collections::BTreeMap;

/// Described faults; the rest are counted only.
const DESCRIBED: usize = 10;
/// No producer of a check sends more records than this.
const MOST_SEQUENCES: u64 = 1 << 30;
/// Bytes that a record may take besides its value, at most: a batch of its own.
const OVERHEAD: u64 = 100;

/// Which record it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Id {
    /// The producer, from 0.
    pub producer: u8,
    /// Its records count from 0 in the order of sending.
    pub sequence: u64,
}

/// What a producer was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack {
    /// Where.
    pub place: usize,
    /// At which offset.
    pub offset: i64,
    /// Which record.
    pub id: Id,
    /// Of its value.
    pub hash: u64,
}

/// What a consumer was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Where.
    pub place: usize,
    /// At which offset.
    pub offset: i64,
    /// Which record; `None` when the value names none.
    pub id: Option<Id>,
    /// Of its value.
    pub hash: u64,
    /// Of its value, bytes.
    pub len: u32,
}

/// What a comparison came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// Acknowledgements.
    pub acknowledged: u64,
    /// Records that were read.
    pub read: u64,
    /// Acknowledged records that retention deleted before they were read.
    pub expired: u64,
    /// Acknowledged, and not there; or deleted before its time.
    pub lost: u64,
    /// Acknowledged, and something else is there.
    pub changed: u64,
    /// A record once more, or an offset once more.
    pub duplicated: u64,
    /// Behind one that the same producer sent later to the same place.
    pub out_of_order: u64,
    /// Nobody sent it.
    pub foreign: u64,
    /// The first faults in words.
    pub words: Vec<String>,
}

impl Verdict {
    /// Whether the broker kept its promise.
    pub fn holds(&self) -> bool {
        (self.lost, self.changed, self.duplicated, self.out_of_order, self.foreign) == (0, 0, 0, 0, 0)
    }

    fn fault(&mut self, count: fn(&mut Verdict) -> &mut u64, words: impl FnOnce() -> String) {
        *count(self) += 1;
        if self.words.len() < DESCRIBED {
            self.words.push(words());
        }
    }
}

/// A comparison under way. Per place records come in the order of offsets, as they are read; acknowledgements come whenever they are known.
#[derive(Debug)]
pub struct Ledger {
    places: Vec<Place>,
    /// A bit for each record of each producer that was read.
    seen: Vec<Vec<u64>>,
    verdict: Verdict,
}

#[derive(Debug)]
struct Place {
    /// Offset of the first entry of `read`.
    base: i64,
    read: Vec<(Option<Id>, u64, u32)>,
    /// The highest sequence of each producer.
    last: Vec<Option<u64>>,
    /// Acknowledged, and not read yet.
    waiting: BTreeMap<i64, Ack>,
    /// Least bytes that retention leaves; `None` where nothing may go.
    kept_bytes: Option<u64>,
    /// The offset behind the last gap: everything below must have been deleted.
    gap_end: i64,
}

impl Place {
    fn next(&self) -> i64 {
        self.base + self.read.len() as i64
    }
}

impl Ledger {
    /// Nothing is read yet. `kept_bytes`: for each place the least that retention leaves, if there is a retention.
    pub fn new(producers: usize, kept_bytes: &[Option<u64>]) -> Ledger {
        let place = |kept: &Option<u64>| Place {
            base: 0,
            read: Vec::new(),
            last: vec![None; producers],
            waiting: BTreeMap::new(),
            kept_bytes: *kept,
            gap_end: 0,
        };
        Ledger { places: kept_bytes.iter().map(place).collect(), seen: vec![Vec::new(); producers], verdict: Verdict::default() }
    }

    /// Offset of the next record to be read.
    pub fn next(&self, place: usize) -> i64 {
        self.places[place].next()
    }

    /// An acknowledgement.
    pub fn acknowledge(&mut self, ack: Ack) {
        self.verdict.acknowledged += 1;
        let place = &mut self.places[ack.place];
        if ack.offset >= place.next() {
            if let Some(other) = place.waiting.insert(ack.offset, ack) {
                self.verdict.fault(|v| &mut v.duplicated, || format!("one offset was given to two records: {other:?} and {ack:?}"));
            }
            return;
        }
        match place.read.get(usize::try_from(ack.offset - place.base).unwrap_or(usize::MAX)) {
            Some((id, hash, _)) => compare(&mut self.verdict, &ack, *id, *hash),
            None if ack.offset >= 0 && place.kept_bytes.is_some() => self.verdict.expired += 1,
            None => self.verdict.fault(|v| &mut v.lost, || format!("not there: {ack:?}")),
        }
    }

    /// A record that was read.
    pub fn observe(&mut self, seen: Seen) {
        self.verdict.read += 1;
        let next = self.places[seen.place].next();
        if seen.offset < next {
            return self.verdict.fault(|v| &mut v.duplicated, || format!("offset {} came again: {seen:?}", seen.offset));
        }
        if seen.offset > next {
            self.skip(seen.place, seen.offset);
        }
        let place = &mut self.places[seen.place];
        place.read.push((seen.id, seen.hash, seen.len));
        if let Some(ack) = place.waiting.remove(&seen.offset) {
            compare(&mut self.verdict, &ack, seen.id, seen.hash);
        }
        self.check_order(seen);
    }

    /// Offsets up to `to` were passed over.
    fn skip(&mut self, number: usize, to: i64) {
        let place = &mut self.places[number];
        let from = place.next();
        let behind = place.waiting.split_off(&to);
        let passed = std::mem::replace(&mut place.waiting, behind);
        place.read.clear();
        place.base = to;
        if place.kept_bytes.is_some() {
            place.gap_end = to;
            self.verdict.expired += passed.len() as u64;
            return;
        }
        self.verdict.fault(|v| &mut v.lost, || format!("place {number}: the offset behind {} is {to}", from - 1));
        for ack in passed.values() {
            self.verdict.fault(|v| &mut v.lost, || format!("not there: {ack:?}"));
        }
    }

    fn check_order(&mut self, seen: Seen) {
        let known = seen.id.filter(|id| usize::from(id.producer) < self.seen.len() && id.sequence < MOST_SEQUENCES);
        let Some(id) = known else {
            return self.verdict.fault(|v| &mut v.foreign, || format!("nobody sent {seen:?}"));
        };
        let bits = &mut self.seen[usize::from(id.producer)];
        let (word, bit) = ((id.sequence / 64) as usize, 1 << (id.sequence % 64));
        if bits.len() <= word {
            bits.resize(word + 1, 0);
        }
        if bits[word] & bit != 0 {
            return self.verdict.fault(|v| &mut v.duplicated, || format!("a record is there again: {seen:?}"));
        }
        bits[word] |= bit;
        let last = &mut self.places[seen.place].last[usize::from(id.producer)];
        if last.is_some_and(|last| id.sequence < last) {
            return self.verdict.fault(|v| &mut v.out_of_order, || format!("behind sequence {last:?} came {seen:?}"));
        }
        *last = Some(id.sequence);
    }

    /// The place was read to its end, and its log begins at `start` now. To be called when every acknowledgement so far is known here and was given before
    /// the end was asked for.
    pub fn reached_end(&mut self, number: usize, start: i64) {
        let place = &mut self.places[number];
        for ack in std::mem::take(&mut place.waiting).values() {
            self.verdict.fault(|v| &mut v.lost, || format!("not there: {ack:?}"));
        }
        let gap_end = place.gap_end;
        if gap_end > start {
            let words = || format!("place {number}: nothing below {gap_end} was given out, yet the log begins at {start}");
            return self.verdict.fault(|v| &mut v.lost, words);
        }
        if start == 0 {
            return;
        }
        let Some(least) = place.kept_bytes else {
            let words = || format!("place {number}: the log begins at {start}, and nothing may be deleted");
            return self.verdict.fault(|v| &mut v.lost, words);
        };
        let left = place.read.iter().skip(usize::try_from(start - place.base).unwrap_or(0));
        let bytes: u64 = left.map(|(_, _, len)| u64::from(*len) + OVERHEAD).sum();
        if bytes < least {
            let words = || format!("place {number}: the log begins at {start}, which leaves at most {bytes} bytes of at least {least}");
            self.verdict.fault(|v| &mut v.lost, words);
        }
    }

    /// So far.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }
}

fn compare(verdict: &mut Verdict, ack: &Ack, id: Option<Id>, hash: u64) {
    if id != Some(ack.id) || hash != ack.hash {
        verdict.fault(|v| &mut v.changed, || format!("acknowledged {ack:?}, and there is {id:?} with hash {hash:x}"));
    }
}
