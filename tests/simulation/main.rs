//! The whole of replication on a simulated clock, network and disk: `cargo sim -- --seed S`, `cargo sim -- --seeds N [--from S]`.
//!
//! The nodes run the machines of `corelane::replication`, the very ones that the broker runs. What is simulated is all around them: the network delays, loses, doubles and reorders
//! messages, the disk forgets what was not synced, tears the last group, rots, fails and fills up, nodes crash, pause, are cut off (one way, both ways, from
//! everybody) and lose their disks. Consensus is a library and not simulated: it is one order of changes to the records ([`metadata`]).
//!
//! Clients produce and consume all the while; what they saw is judged by [`checker`]. Across replicas [`oracle`] holds what must hold at every moment: whoever is in sync or eligible has
//! everything that is committed, no answer outruns a disk, watermarks agree. When faults end, everything must come together again in time.
//!
//! A seed decides everything. The same seed gives the same trace, whose hash is printed. [`planted`] switches rules off one by one; each must be found missing.

#[allow(unused_imports, reason = "each test uses a part")]
mod checker;
mod clients;
mod disk;
mod faults;
mod metadata;
mod node;
mod oracle;
mod planted;
mod random;
mod run;
mod stats;
mod wire;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Failed, Trial};

/// Seeds of the short form.
const SHORT: u64 = 150;
/// A planted bug is found within so many seeds.
const BUG_SEEDS: u64 = 400;

fn main() -> ExitCode {
    // A machine's assertion in a run is that run's result, and told with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--sim") {
        return run::command(&arguments[1..]);
    }
    let mut trials = vec![
        Trial::test("seeds", || run::seeds(0, SHORT, false).map_err(Failed::from)),
        Trial::test("a_seed_gives_one_trace", || run::same_trace(7).map_err(Failed::from)),
    ];
    trials.extend(
        planted::BUGS.iter().map(|bug| Trial::test(format!("finds_{}", bug.name), || run::finds(bug, BUG_SEEDS).map_err(Failed::from))),
    );
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}
