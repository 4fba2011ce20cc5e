//! The small model of replication, checked exhaustively: three replicas, the record that consensus holds of their partition (the broker's own
//! [`corelane::replication::PartitionRecord`]), and every order in which appends, syncs, messages, changes of the ISR, elections, crashes and wiped
//! disks can come.
//!
//! What always holds: an acknowledged record is in every later leader's log at its offset, one offset is acknowledged to one record, logs are equal
//! below their watermarks, nobody cuts below its watermark, a leader that tells its watermark is not behind what was acknowledged before, an epoch
//! has one leader. Each rule is then switched off, and the checker finds the run that breaks one of these; `--nocapture` prints it.
//!
//! Five million states altogether in less than a minute on two cores, and a few more minutes' worth by `--ignored`. No run has all of it (three
//! epochs, four records, a crash, a wiped disk, every single step) in the time there is. Each of these is complete within its bounds, and each has
//! what the others leave out. States that differ by the names of nodes, or by what can't matter any more, are one (`state`, `cluster`).
//! Known: breadth first and depth first do not count the same (379,694 and 379,939 states for `CRASH`), so the key of a state takes some for
//! one that do not behave alike, and a run is complete but for about a thousandth.
//!
//! - `rules`: the rules, and what a run must have met.
//! - `state`: a state, and what of it counts.
//! - `cluster`: the steps and the properties.
//!
//! Not here: time and leases (a leader may be taken for dead at any moment), unclean elections, reassignment, and a change of `min.insync.replicas`.

#[path = "model/cluster.rs"]
mod cluster;
#[path = "model/rules.rs"]
mod rules;
#[path = "model/state.rs"]
mod state;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use cluster::{Bounds, Cluster, Step};
use rules::{Meetings, Met, Rule};

/// A few steps deep, and what most rules need to show what they are for.
const CRASH: Bounds = Bounds { last_epoch: 2, records: 1, crashes: 1, wipes: true, coarse: false };
/// Without crashes, so that logs may part.
const PARTING: Bounds = Bounds { last_epoch: 2, records: 2, crashes: 0, wipes: false, coarse: false };
/// One election is enough.
const SHORT: Bounds = Bounds { last_epoch: 1, ..CRASH };
/// Nothing is ever wiped.
const UNWIPED: Bounds = Bounds { wipes: false, ..CRASH };

/// Complete runs, one at a time: they take every core.
static RUNNING: Mutex<()> = Mutex::new(());

/// What a run came to.
struct Outcome {
    met: Arc<Meetings>,
    /// The properties that do not hold, each with the shortest way there.
    broken: Vec<(&'static str, Vec<Step>)>,
}

fn run(off: &'static [Rule], bounds: Bounds) -> Outcome {
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let begin = Instant::now();
    let model = Cluster { off, bounds, met: Arc::new(Meetings::default()) };
    let met = model.met.clone();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = model.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("without {off:?}, {bounds:?}: {states} states, {depth} steps deep, {:.1?}", begin.elapsed());
    let found = checker.discoveries().into_iter().filter(|(name, _)| Met::ALL.iter().all(|(_, met)| met != name));
    let broken: Vec<(&'static str, Vec<Step>)> = found.map(|(name, path)| (name, path.into_actions())).collect();
    for (name, steps) in &broken {
        println!("  not true that {name}:");
        steps.iter().for_each(|step| println!("    {step:?}"));
    }
    Outcome { met, broken }
}

/// With every rule in force nothing breaks.
fn holds(all: &[Bounds]) -> Vec<Arc<Meetings>> {
    let outcomes = all.iter().map(|bounds| run(&[], *bounds));
    let met = outcomes.map(|outcome| {
        assert!(outcome.broken.is_empty(), "{:?}", outcome.broken);
        outcome.met
    });
    met.collect()
}

#[test]
#[cfg_attr(debug_assertions, ignore = "millions of states: only optimised")]
fn replication_loses_nothing() {
    let met = holds(&[CRASH, PARTING, Bounds { last_epoch: 2, records: 4, crashes: 0, wipes: false, coarse: true }]);
    for (one, name) in Met::ALL {
        let count: u64 = met.iter().map(|met| met.count(one)).sum();
        println!("{name}: {count}");
        assert!(count > 0, "never: {name}");
    }
}

/// The same further out. Takes minutes.
#[test]
#[ignore = "minutes"]
fn replication_loses_nothing_further_out() {
    holds(&[
        Bounds { last_epoch: 1, records: 4, crashes: 0, wipes: false, coarse: false },
        Bounds { last_epoch: 2, records: 2, crashes: 1, wipes: true, coarse: true },
        Bounds { last_epoch: 2, records: 1, crashes: 2, wipes: true, coarse: false },
        Bounds { last_epoch: 2, records: 2, crashes: 1, wipes: true, coarse: false },
        Bounds { last_epoch: 2, records: 3, crashes: 1, wipes: true, coarse: true },
    ]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "millions of states: only optimised")]
fn without_a_rule_something_is_lost() {
    let rules: [(&'static [Rule], Bounds); 14] = [
        (&[Rule::JoinerBoundsWatermark], CRASH),
        (&[Rule::JoinerHasEpochStart], CRASH),
        (&[Rule::JoinerHasWatermark], CRASH),
        (&[Rule::EligibleEmptied], CRASH),
        (&[Rule::JoinNamesIncarnation, Rule::JoinNamesNodeEpoch], SHORT),
        (&[Rule::LossDeclared], CRASH),
        (&[Rule::EpochPersisted, Rule::StreamNamesNodeEpoch], UNWIPED),
        (&[Rule::StreamNamesNodeEpoch], CRASH),
        (&[Rule::OldEpochRefused], PARTING),
        (&[Rule::CutToCommonEpoch], CRASH),
        (&[Rule::Cut], PARTING),
        (&[Rule::AckedWhenDurable], CRASH),
        (&[Rule::MinInsync], CRASH),
        (&[Rule::ShrinkWhenCommitted], CRASH),
    ];
    for (off, bounds) in rules {
        assert!(!run(off, bounds).broken.is_empty(), "without {off:?} nothing breaks");
    }
}

/// Rules that another one stands behind: one of the two is enough within these bounds. Each is there for the case that the other one has a mistake.
#[test]
#[cfg_attr(debug_assertions, ignore = "millions of states: only optimised")]
fn some_rules_stand_behind_each_other() {
    let rules: [(&'static [Rule], Bounds); 4] = [
        // A life that ended had another registration.
        (&[Rule::JoinNamesIncarnation], SHORT),
        // A life that goes on has its log.
        (&[Rule::JoinNamesNodeEpoch], SHORT),
        // A leader that knows of the restart knows of the elections before it.
        (&[Rule::EpochPersisted], UNWIPED),
        // A node that keeps its disk keeps its epoch.
        (&[Rule::StreamNamesNodeEpoch], UNWIPED),
    ];
    for (off, bounds) in rules {
        assert!(run(off, bounds).broken.is_empty(), "without {off:?} something breaks");
    }
}
