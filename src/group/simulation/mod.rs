//! A simulation of groups: clients that behave as real ones, a network that loses and delays, a log that fails, a coordinator that restarts.
//!
//! What must hold is in `model` (judged by durable records and earlier answers) and `world` (every request is answered once; groups come to rest;
//! nothing is left in the end). `planted` has bugs that it must find. A seed that fails prints itself; `CORELANE_GROUP_SEED=n` runs one.

mod client;
mod model;
mod planted;
mod world;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::request::group::GroupError;
use planted::Bug;
use world::{Seen, World};

/// Seeds of every test run, and of the long one.
const SEEDS: u64 = 400;
const LONG_SEEDS: u64 = 20_000;
/// Answers that a run has to have seen: the simulation goes where it should.
const EXPECTED: &[(&str, Option<GroupError>)] = &[
    ("join", None),
    ("join", Some(GroupError::MemberIdRequired)),
    ("join", Some(GroupError::UnknownMemberId)),
    ("join", Some(GroupError::GroupMaxSizeReached)),
    ("join", Some(GroupError::RebalanceInProgress)),
    ("join", Some(GroupError::FencedInstanceId)),
    ("join", Some(GroupError::NotCoordinator)),
    ("join that skips", None),
    ("sync", None),
    ("sync", Some(GroupError::RebalanceInProgress)),
    ("sync", Some(GroupError::UnknownMemberId)),
    ("sync", Some(GroupError::IllegalGeneration)),
    ("sync", Some(GroupError::FencedInstanceId)),
    ("sync", Some(GroupError::CoordinatorNotAvailable)),
    ("heartbeat", Some(GroupError::RebalanceInProgress)),
    ("heartbeat", Some(GroupError::IllegalGeneration)),
    ("heartbeat", Some(GroupError::UnknownMemberId)),
    ("heartbeat", Some(GroupError::FencedInstanceId)),
    ("leave", None),
    ("leave", Some(GroupError::UnknownMemberId)),
    ("commit", None),
    ("commit", Some(GroupError::IllegalGeneration)),
    ("commit", Some(GroupError::UnknownMemberId)),
    ("commit", Some(GroupError::FencedInstanceId)),
    ("commit", Some(GroupError::CoordinatorNotAvailable)),
    ("delete group", None),
    ("delete group", Some(GroupError::NonEmptyGroup)),
    ("delete offset", None),
    ("delete offset", Some(GroupError::GroupSubscribedToTopic)),
];
/// A planted bug is found within so many.
const PLANTED_SEEDS: u64 = 200;

fn run(seed: u64, bug: Option<Bug>) -> World {
    let mut world = World::new(seed, bug);
    world.run();
    world
}

fn run_all(seeds: std::ops::Range<u64>) {
    let (mut stable, mut seen) = (0, Seen::new());
    for seed in seeds.clone() {
        match catch_unwind(AssertUnwindSafe(|| run(seed, None))) {
            Ok(world) => {
                stable += world.stable_checks;
                seen.extend(world.seen);
            }
            Err(panic) => {
                panic!("seed {seed}: {}; again with CORELANE_GROUP_SEED={seed} cargo test group::simulation::one_seed", words(&*panic))
            }
        }
    }
    // A simulation in which nothing comes to be would find nothing.
    assert!(stable > (seeds.end - seeds.start) / 2, "{stable} stable groups were seen");
    for answer in EXPECTED {
        assert!(seen.contains(answer), "{answer:?} was never seen");
    }
}

#[test]
fn groups_keep_their_promises() {
    run_all(0..SEEDS);
}

#[test]
#[ignore = "minutes; run before a change of the machine goes in"]
fn groups_keep_their_promises_for_long() {
    run_all(0..LONG_SEEDS);
}

#[test]
fn one_seed() {
    if let Some(seed) = option_env!("CORELANE_GROUP_SEED") {
        run(seed.parse().expect("a number"), None);
    }
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> String {
    panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default()
}

/// The first seed that finds it, and with which words.
fn find(bug: Bug) -> (u64, String) {
    for seed in 0..PLANTED_SEEDS {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed, Some(bug)))) {
            return (seed, words(&*panic));
        }
    }
    panic!("{bug:?} was not found in {PLANTED_SEEDS} seeds");
}

#[track_caller]
fn found(bug: Bug, words: &[&str]) {
    let (seed, said) = find(bug);
    assert!(words.iter().any(|words| said.contains(words)), "{bug:?} was found by seed {seed} with other words: {said}");
}

#[test]
fn an_answer_before_its_record_is_found() {
    found(Bug::AnswersBeforeDurable, &["durable"]);
    found(Bug::FailedAppendCountsAsDurable, &["durable", "is in the log"]);
}

#[test]
fn a_generation_that_stays_is_found() {
    found(Bug::GenerationStays, &["in generation 1"]);
}

#[test]
fn a_fenced_member_that_lives_is_found() {
    found(Bug::FencedMemberLives, &["lives while"]);
}

#[test]
fn a_pending_member_that_stays_is_found() {
    found(Bug::PendingMemberStays, &["waits for nobody", "groups are left", "without members"]);
}

#[test]
fn a_commit_of_an_old_generation_is_found() {
    found(Bug::OldGenerationCommits, &["a commit of generation"]);
}

#[test]
fn two_members_of_one_partition_are_found() {
    found(Bug::TwoMembersOnePartition, &["in generation"]);
}

#[test]
fn a_lost_answer_is_found() {
    found(Bug::AnswerIsLost, &["have no answer"]);
}

#[test]
fn a_fetch_ahead_of_the_log_is_found() {
    found(Bug::FetchIsAheadOfTheLog, &[" of g", " of h", " of simple"]);
}

#[test]
fn a_replay_without_tombstones_is_found() {
    found(Bug::TombstonesAreNotReplayed, &["not the whole log", "all positions", "is in the log"]);
}

#[test]
fn sessions_that_never_end_are_found() {
    found(Bug::SessionsNeverEnd, &["without members", "has the members that live", "PreparingRebalance", "groups are left"]);
}

#[test]
fn a_snapshot_with_a_wrong_offset_is_found() {
    found(Bug::SnapshotIsAheadOfItsOffset, &["not the whole log"]);
}
