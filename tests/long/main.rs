//! Long checks: `cargo long NAME [--seconds N | --rounds N] [--gib N] [--seed S] [--round R] [--resume]`.
//!
//! A check is a sequence of *rounds*, each made from (seed, round number) alone, so that any round can be replayed. Plain
//! `cargo test` runs the short form of each: a fixed number of rounds. A check registers itself in [`CHECKS`] and lives in a
//! file of its own beside this one.
//!
//! After each round the result is written to `target/long/NAME.json` (whole, by rename), so that an interrupted run loses
//! one round at most and `--resume` goes on behind it.

mod broker;
#[allow(unused_imports, reason = "the judge's own tests use all of it")]
#[path = "../simulation/checker/mod.rs"]
mod checker;
#[path = "../cluster/mod.rs"]
mod cluster;
#[path = "../crash/mod.rs"]
mod crash;
mod crash_everywhere;
mod flips;
mod harness;
mod kill;
#[path = "../lived/mod.rs"]
mod lived;
mod selftest;
#[path = "../support/small_disk.rs"]
mod small_disk;
mod start;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use harness::Entry;

/// Every check, in the order of `--help`.
const CHECKS: &[Entry] = &[
    kill::ENTRY,
    start::ENTRY,
    crash_everywhere::ENTRY,
    flips::ENTRY,
    cluster::run::ENTRY,
    cluster::failover::ENTRY,
    cluster::groups::ENTRY,
    cluster::growth::ENTRY,
    cluster::idle::ENTRY,
    cluster::catch_up::ENTRY,
];

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == kill::worker::WORD) {
        return kill::worker::run(&arguments[2..]);
    }
    if arguments.get(1).is_some_and(|first| first == cluster::bare_copy::WORD) {
        return cluster::bare_copy::run(&arguments[2..]);
    }
    if arguments.get(1).is_some_and(|first| first == "--long") {
        arguments.remove(1);
        return harness::run_long(CHECKS, arguments);
    }
    let mut trials = harness::short_forms(CHECKS);
    trials.extend(selftest::trials());
    trials.extend(kill::trials());
    trials.extend(cluster::selftest::trials());
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}
