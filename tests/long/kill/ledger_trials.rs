//! What the ledger must catch, planted one by one.

use libtest_mimic::{Failed, Trial};

use super::ledger::{Ack, Id, Ledger, Seen, Verdict};

/// Acknowledgements in the order of giving, records in the order of reading, where the logs begin.
type Log = (Vec<Ack>, Vec<Seen>, [i64; 2]);

/// Two producers, two places, 40 records each in turn, all acknowledged; place 1 has a retention that leaves 1000 bytes.
fn good() -> Log {
    let (mut acks, mut read) = (Vec::new(), Vec::new());
    let mut ends = [0; 2];
    for sequence in 0..40u64 {
        for producer in 0..2u8 {
            let place = (sequence % 2) as usize;
            let (id, offset, hash) = (Id { producer, sequence }, ends[place], sequence * 31 + u64::from(producer));
            ends[place] += 1;
            acks.push(Ack { place, offset, id, hash });
            read.push(Seen { place, offset, id: Some(id), hash, len: 10 });
        }
    }
    (acks, read, [0; 2])
}

/// The verdict, without words; the first `early` acknowledgements are known before the reading.
fn judge(log: &Log, early: usize) -> Verdict {
    let (acks, read, starts) = log;
    let mut ledger = Ledger::new(2, &[None, Some(1000)]);
    let (early, late) = acks.split_at(early.min(acks.len()));
    early.iter().for_each(|ack| ledger.acknowledge(*ack));
    read.iter().for_each(|seen| ledger.observe(*seen));
    late.iter().for_each(|ack| ledger.acknowledge(*ack));
    (0..2).for_each(|place| ledger.reached_end(place, starts[place]));
    Verdict { words: Vec::new(), ..ledger.verdict().clone() }
}

const GOOD: Verdict =
    Verdict { acknowledged: 80, read: 80, expired: 0, lost: 0, changed: 0, duplicated: 0, out_of_order: 0, foreign: 0, words: Vec::new() };

/// The same verdict whenever the acknowledgements become known.
fn expect(what: &str, plant: impl FnOnce(&mut Log), expected: Verdict) -> Result<(), Failed> {
    let mut log = good();
    plant(&mut log);
    for early in [0, 40, 80] {
        let found = judge(&log, early);
        if found != expected {
            return Err(Failed::from(format!("{what}, {early} known before: expected {expected:?}, found {found:?}")));
        }
    }
    Ok(())
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("ledger_catches_a_planted_loss", loss),
        Trial::test("ledger_catches_a_planted_duplicate", duplicate),
        Trial::test("ledger_catches_a_planted_swap", swap),
        Trial::test("ledger_catches_a_planted_change", change),
        Trial::test("ledger_allows_what_may_be", allowed),
        Trial::test("ledger_catches_a_deletion_before_its_time", deletion),
    ]
}

fn loss() -> Result<(), Failed> {
    let last = |log: &mut Log| log.1.truncate(79);
    expect("the last record is gone", last, Verdict { read: 79, lost: 1, ..GOOD })?;
    // A log that was cut and written on: the record behind the cut has the offset of the one that is gone.
    let cut = |log: &mut Log| {
        log.1.retain(|seen| (seen.place, seen.offset) != (0, 38));
        log.1.iter_mut().filter(|seen| seen.place == 0 && seen.offset > 38).for_each(|seen| seen.offset -= 1);
    };
    expect("a record is cut out", cut, Verdict { read: 79, lost: 1, changed: 1, ..GOOD })?;
    let (acks, mut read, starts) = good();
    read.retain(|seen| (seen.place, seen.offset) != (0, 13));
    let hole = judge(&(acks, read, starts), 80);
    // The offset that is missing, and the acknowledgement of it.
    if hole.lost == 2 { Ok(()) } else { Err(Failed::from(format!("a hole: {hole:?}"))) }
}

fn duplicate() -> Result<(), Failed> {
    let again = |log: &mut Log| {
        let twice = Seen { offset: 40, ..log.1[20] };
        log.1.push(twice);
    };
    expect("a retry was appended again", again, Verdict { read: 81, duplicated: 1, ..GOOD })?;
    expect("one offset comes twice", |log| log.1.push(log.1[79]), Verdict { read: 81, duplicated: 1, ..GOOD })?;
    let elsewhere = |log: &mut Log| {
        let twice = Seen { offset: 40, place: 1, ..log.1[0] };
        log.1.push(twice);
    };
    expect("the same record in another place", elsewhere, Verdict { read: 81, duplicated: 1, ..GOOD })
}

fn swap() -> Result<(), Failed> {
    // Two records of one producer and place, acknowledged as they are: nothing is lost, but it is not the order of sending.
    let swapped = |log: &mut Log| {
        let (a, b) = (8, 12);
        let (first, second) = (log.1[a], log.1[b]);
        (log.1[a].id, log.1[a].hash, log.1[b].id, log.1[b].hash) = (second.id, second.hash, first.id, first.hash);
        (log.0[a].offset, log.0[b].offset) = (log.0[b].offset, log.0[a].offset);
    };
    expect("two records swapped", swapped, Verdict { out_of_order: 1, ..GOOD })
}

fn change() -> Result<(), Failed> {
    expect("another payload", |log| log.1[7].hash ^= 1, Verdict { changed: 1, ..GOOD })?;
    let unknown = |log: &mut Log| log.1.push(Seen { place: 0, offset: 40, id: None, hash: 0, len: 3 });
    expect("a record that nobody sent", unknown, Verdict { read: 81, foreign: 1, ..GOOD })?;
    let stranger = Some(Id { producer: 2, sequence: 0 });
    let no_producer = |log: &mut Log| log.1.push(Seen { place: 0, offset: 40, id: stranger, hash: 0, len: 3 });
    expect("a producer that there is not", no_producer, Verdict { read: 81, foreign: 1, ..GOOD })
}

fn allowed() -> Result<(), Failed> {
    expect("all is well", |_| (), GOOD)?;
    let unacknowledged = |log: &mut Log| log.0.retain(|ack| (ack.place, ack.offset) != (0, 33));
    expect("there, but not acknowledged", unacknowledged, Verdict { acknowledged: 79, ..GOOD })
}

fn deletion() -> Result<(), Failed> {
    // Place 1 keeps 1000 bytes: ten records and what a record may take besides its value.
    let expired = |first: i64, start: i64| {
        move |log: &mut Log| {
            log.1.retain(|seen| seen.place == 0 || seen.offset >= first);
            log.2[1] = start;
        }
    };
    let held = Verdict { read: 50, expired: 30, ..GOOD };
    expect("deleted in time", expired(30, 30), held.clone())?;
    expect("deleted before its time", expired(32, 32), Verdict { read: 48, expired: 32, lost: 1, ..GOOD })?;
    expect("not given out, but not deleted either", expired(30, 20), Verdict { lost: 1, ..held })?;
    expect("a log start where nothing may go", |log| log.2[0] = 5, Verdict { lost: 1, ..GOOD })
}
