//! Runs seeds and says what came of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::checker::report;
use crate::planted::{BUGS, Bug, Planted, UNSEEN};
use crate::stats::{NEEDED, Stats};
use crate::world::{Outcome, World};

/// Operations and faults of each seed, at least.
const LEAST_OPERATIONS: u64 = 1000;
const LEAST_FAULTS: u64 = 10;
/// From so many seeds on, everything that is counted must have happened.
const ALL_HAPPENS_IN: u64 = 100;

const USAGE: &str = "cargo sim -- [--seed S | --seeds N [--from S]] [--bug NAME]\n  --seed S     one seed, told in full\n  --seeds N    as many, from S (default 0) on\n  --bug NAME   with a rule switched off: ";

/// `cargo sim`.
pub fn command(arguments: &[String]) -> ExitCode {
    let (mut seed, mut seeds, mut from, mut bug) = (None, 2000, 0, None);
    let mut rest = arguments.iter().filter(|argument| *argument != "--");
    while let Some(argument) = rest.next() {
        let value = rest.next().cloned();
        let number = || value.as_ref().and_then(|value| value.parse().ok());
        let known = match argument.as_str() {
            "--seed" => number().map(|n| seed = Some(n)),
            "--seeds" => number().map(|n| seeds = n),
            "--from" => number().map(|n| from = n),
            "--bug" => BUGS.iter().chain(UNSEEN).find(|bug| value.as_deref() == Some(bug.name)).map(|found| bug = Some(found)),
            _ => None,
        };
        if known.is_none() {
            let names: Vec<_> = BUGS.iter().chain(UNSEEN).map(|bug| bug.name).collect();
            eprintln!("{USAGE}{}", names.join(", "));
            return ExitCode::from(2);
        }
    }
    let mut planted = Planted::default();
    if let Some(bug) = bug {
        (bug.planted)(&mut planted);
    }
    let result = match seed {
        Some(seed) => one(seed, planted, true).map(|_| ()),
        None if bug.is_some() => finds(bug.unwrap_or(&BUGS[0]), seeds),
        None => self::seeds(from, seeds, true),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run(seed: u64, planted: Planted) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| World::new(seed, planted).run())).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        format!("an assertion failed: {}", text.unwrap_or_default())
    })
}

/// What is wrong with an outcome.
fn wrong(outcome: &Outcome) -> Option<String> {
    if let Some(violation) = outcome.violations.first() {
        return Some(violation.clone());
    }
    (!outcome.findings.is_empty()).then(|| report(&outcome.history, &outcome.findings))
}

fn one(seed: u64, planted: Planted, tells: bool) -> Result<Outcome, String> {
    let replay = format!("replay with: cargo sim -- --seed {seed}");
    let outcome = run(seed, planted).map_err(|text| format!("seed {seed}: {text}\n{replay}"))?;
    if tells {
        println!("seed {seed}: trace {:016x}", outcome.trace);
        outcome.stats.each().iter().for_each(|(name, count)| println!("  {name}: {count}"));
    }
    match wrong(&outcome) {
        Some(text) => Err(format!("seed {seed}: {text}\n{replay}")),
        None => Ok(outcome),
    }
}

/// Many seeds, on as many threads as there are processors; the sum of what happened.
pub fn seeds(from: u64, count: u64, tells: bool) -> Result<(), String> {
    let started = Instant::now();
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let total = Mutex::new((Stats::default(), 0u64, u64::MAX, u64::MAX));
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        break;
                    }
                    match one(seed, Planted::default(), false) {
                        Ok(outcome) => {
                            let mut total = total.lock().unwrap_or_else(|e| e.into_inner());
                            total.0.add(&outcome.stats);
                            total.1 ^= crate::random::mix(outcome.trace ^ seed);
                            total.2 = total.2.min(outcome.stats.operations);
                            total.3 = total.3.min(outcome.stats.faults);
                        }
                        Err(text) => {
                            stop.store(true, Ordering::Relaxed);
                            let mut failed = failed.lock().unwrap_or_else(|e| e.into_inner());
                            if failed.as_ref().is_none_or(|(known, _)| seed < *known) {
                                *failed = Some((seed, text));
                            }
                        }
                    }
                }
            });
        }
    });
    if let Some((_, text)) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(text);
    }
    let (stats, trace, operations, faults) = total.into_inner().unwrap_or_else(|e| e.into_inner());
    if tells {
        println!("seeds {from} to {}: trace {trace:016x}, {:.1} s", from + count - 1, started.elapsed().as_secs_f64());
        println!("  least operations of a seed: {operations}, least faults: {faults}");
        stats.each().iter().for_each(|(name, count)| println!("  {name}: {count}"));
    }
    if operations < LEAST_OPERATIONS || faults < LEAST_FAULTS {
        return Err(format!("a seed had {operations} operations and {faults} faults: at least {LEAST_OPERATIONS} and {LEAST_FAULTS}"));
    }
    let missing: Vec<_> =
        stats.each().into_iter().filter(|(name, count)| *count == 0 && NEEDED.contains(name)).map(|(name, _)| name).collect();
    match missing.is_empty() || count < ALL_HAPPENS_IN {
        true => Ok(()),
        false => Err(format!("never in {count} seeds: {}", missing.join(", "))),
    }
}

/// A seed run twice.
pub fn same_trace(seed: u64) -> Result<(), String> {
    let (first, second) = (one(seed, Planted::default(), false)?, one(seed, Planted::default(), false)?);
    match first.trace == second.trace && first.history == second.history {
        true => Ok(()),
        false => Err(format!("seed {seed}: traces {:016x} and {:016x}", first.trace, second.trace)),
    }
}

/// A bug is found.
pub fn finds(bug: &Bug, seeds: u64) -> Result<(), String> {
    let mut planted = Planted::default();
    (bug.planted)(&mut planted);
    for seed in 0..seeds {
        let found = match run(seed, planted) {
            Ok(outcome) => wrong(&outcome),
            Err(text) => Some(text),
        };
        if let Some(text) = found {
            println!("{}: seed {seed}: {}", bug.name, text.lines().next().unwrap_or_default());
            return Ok(());
        }
    }
    Err(format!("{} was not found in {seeds} seeds", bug.name))
}
