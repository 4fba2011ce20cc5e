//! Crash enumeration over what a *running broker* did to its disk.
//!
//! The broker records every write, sync, name, acknowledgement and change of a topic (`--disk-trace`); clients make it do everything that touches a
//! disk once (`lived/life.rs`). Then the disk is crashed after every event of the trace, in several ways each, and what is left is recovered and
//! compared with what had been acknowledged by then. And broken brokers are seen to be caught: their traces are made from the whole one's.

use corelane::shard::trace::TraceEvent;

use crate::harness::{Check, Entry, Round};
use crate::lived::broker::{self, Plan};
use crate::lived::life::{self, Life, STEPS};
use crate::lived::planted::{self, BROKEN_BROKERS, BROKEN_RECOVERIES};

/// As registered: each round another life of a broker, with other crashes.
pub const ENTRY: Entry =
    Entry { name: "crash", about: "crashes of a running broker's disk after every event", short_rounds: 1, start: || Box::new(Crashes) };

/// Different images that a round must have, at least.
const IMAGES: u64 = 10_000;
/// Random crashes after each event: of the short form, and of the long one.
const WAYS: (u64, u64) = (12, 24);
/// Of so many images one is verified before and after its recovery, and recovered twice.
const WHOLE_ONE_IN: (u64, u64) = (24, 8);

struct Crashes;

impl Check for Crashes {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        let life = life::lived(round.scratch, round.seed);
        let (ways, whole_one_in) = if round.is_short { (WAYS.0, WHOLE_ONE_IN.0) } else { (WAYS.1, WHOLE_ONE_IN.1) };
        let plan = Plan { ways, seed: round.seed, events: 0..life.events.len(), whole_one_in };
        let counts = broker::enumerate(&life, &plan, broker::check)
            .map_err(|loser| format!("crash after event {}, {:?}: {}", loser.events, loser.loss, loser.what))?;
        round.count("events", life.events.len() as u64);
        round.count("acknowledgements", life.events.iter().filter(|event| matches!(event, TraceEvent::Acknowledge { .. })).count() as u64);
        round.count("images", counts.images);
        round.count("recoveries", counts.recoveries);
        counts.by_kind.iter().for_each(|(kind, images)| round.count(&format!("images after: {kind}"), *images));
        counts.by_step.iter().for_each(|(step, images)| round.count(&format!("images in: {step}"), *images));
        expect(counts.images >= IMAGES, || format!("{} different images, {IMAGES} are wanted", counts.images))?;
        for step in STEPS {
            expect(counts.by_step.contains_key(step), || format!("no crash in step {step:?}"))?;
        }
        for kind in broker::KINDS {
            expect(counts.by_kind.contains_key(kind), || format!("no crash after an event of kind {kind:?}"))?;
        }
        for mark in
            ["lap", "roll", "checkpoint", "adopt", "topic deleted", "segment deleted", "left out", "clean", "replaced segments removed"]
        {
            let done = life.events.iter().any(|event| matches!(event, TraceEvent::Mark { name } if name == mark));
            expect(done, || format!("the broker did no {mark}"))?;
        }
        if round.number == 0 {
            every_bug_is_caught(&life, round)?;
        }
        Ok(())
    }
}

fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Each breaks one rule in the trace of the same life, or in the recovery; the enumeration that has just passed must fail.
fn every_bug_is_caught(life: &Life, round: &mut Round<'_>) -> Result<(), String> {
    let seed = round.seed;
    let mut seen = |bug: String, outcome: Result<broker::Counts, Box<crate::crash::check::Loser>>| match outcome {
        Ok(counts) => Err(format!("not seen in {} images: {bug}", counts.images)),
        Err(loser) => {
            println!("{bug}: after event {}, {:?}: {}", loser.events, loser.loss, loser.what);
            round.count("planted bugs caught", 1);
            Ok(())
        }
    };
    for bug in BROKEN_BROKERS {
        let (events, from) = planted::broken(life, bug);
        let broken = Life { events, steps: Vec::new(), compacted: life.compacted.clone() };
        let plan = Plan { ways: 6, seed, events: from..broken.events.len(), whole_one_in: u64::MAX };
        seen(format!("{bug:?}"), broker::enumerate(&broken, &plan, broker::check))?;
    }
    for bug in BROKEN_RECOVERIES {
        let plan = Plan { ways: 1, seed, events: planted::concerned(life, bug)..life.events.len(), whole_one_in: u64::MAX };
        let misled = |mut image, told: &broker::Told, shards, whole| {
            planted::misread(&mut image, bug);
            broker::check(image, told, shards, whole)
        };
        seen(format!("{bug:?}"), broker::enumerate(life, &plan, misled))?;
    }
    Ok(())
}
