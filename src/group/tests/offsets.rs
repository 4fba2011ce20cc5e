//! Positions: commits, fetches, deletion, expiry; deletion of groups.

use super::*;

#[test]
fn a_commit_is_answered_and_fetched_when_it_is_durable() {
    let mut bench = Bench::new();
    let waiter = bench.commit(&simple("g", 5));
    assert_eq!((bench.answer(waiter), bench.fetched("g", "t", 0)), (None, None));
    let stable = FetchOffsets { group: "g".into(), topics: None, require_stable: true };
    let fetched = bench.coordinator.fetch_offsets(&stable).unwrap();
    assert_eq!(fetched[0].partitions[0].outcome, Err(GroupError::UnstableOffsetCommit));
    bench.land();
    assert_eq!(bench.committed(waiter), Ok(()));
    let fetched = bench.coordinator.fetch_offsets(&stable).unwrap();
    let commit = fetched[0].partitions[0].outcome.clone().unwrap().unwrap();
    assert_eq!((commit.offset, commit.leader_epoch, &*commit.metadata, commit.commit_timestamp), (5, Some(3), "m", WALL));
    assert_eq!(bench.fetched("g", "t", 1), None);
    assert_eq!(bench.fetched("none", "t", 0), None);
}

#[test]
fn a_commit_that_the_log_does_not_take_changes_nothing() {
    let mut bench = Bench::new();
    bench.commit(&simple("g", 5));
    bench.land();
    for (failure, error) in [
        (AppendFailure::NotLeader, GroupError::NotCoordinator),
        (AppendFailure::Unavailable, GroupError::CoordinatorNotAvailable),
        (AppendFailure::TooLarge, GroupError::InvalidCommitOffsetSize),
    ] {
        let waiter = bench.commit(&simple("g", 9));
        bench.fail(failure);
        assert_eq!((bench.committed(waiter), bench.fetched("g", "t", 0)), (Err(error), Some(5)));
    }
    bench.commit(&simple("h", 1));
    bench.fail(AppendFailure::Unavailable);
    assert_eq!(bench.coordinator.group_count(), 1, "a group that never came to be is forgotten");
}

/// Group and topic are in each partition's record, in a request they are there once.
#[test]
fn a_commit_of_more_records_than_the_log_takes_is_refused_before_they_are_made() {
    let settings = Settings { max_group_record: 10_000, ..Settings::default() };
    let (mut bench, group, topic) = (Bench::with(settings), "g".repeat(500), "t".repeat(200));
    let of = |count: i32| {
        let one = |partition| CommitPartition { partition, offset: 1, leader_epoch: None, metadata: None };
        CommitOffsets { topics: vec![(topic.clone(), (0..count).map(one).collect())], ..simple(&group, 1) }
    };
    let waiter = bench.commit(&of(20));
    assert_eq!((bench.committed(waiter), bench.appends.len()), (Err(GroupError::InvalidCommitOffsetSize), 0));
    assert_eq!((bench.coordinator.group_count(), bench.coordinator.position_count()), (0, 0));
    let waiter = bench.commit(&of(13));
    bench.land();
    assert_eq!((bench.committed(waiter), bench.coordinator.position_count()), (Ok(()), 13));
}

#[test]
fn a_position_that_is_deleted_twice_in_a_request_has_one_tombstone() {
    let mut bench = Bench::new();
    bench.commit(&simple("g", 5));
    bench.land();
    let before = bench.log.len();
    let waiter = bench.delete_offsets("g", &[("t", &[0, 0, 7]), ("t", &[0])]);
    bench.land();
    assert_eq!(bench.log.len() - before, 1);
    let Some(GroupAnswer::DeleteOffsets(Ok(outcomes))) = bench.answer(waiter) else { panic!("an answer") };
    assert_eq!(outcomes.iter().map(|topic| topic.partitions.len()).collect::<Vec<_>>(), [3, 1], "each is answered");
}

#[test]
fn commits_are_taken_by_state_and_generation_as_in_kafka() {
    let mut bench = Bench::new();
    let waiter = bench.commit(&commit_of("none", member("x"), 3, 1));
    assert_eq!(bench.committed(waiter), Err(GroupError::IllegalGeneration));
    let ids = bench.stable("g", 1);
    let outcome = |bench: &mut Bench, who: MemberRef, generation: i32| {
        let waiter = bench.commit(&commit_of("g", who, generation, 1));
        bench.land();
        bench.committed(waiter)
    };
    assert_eq!(outcome(&mut bench, member(&ids[0]), 1), Ok(()), "Stable");
    assert_eq!(outcome(&mut bench, member(&ids[0]), 0), Err(GroupError::IllegalGeneration));
    assert_eq!(outcome(&mut bench, member(&ids[0]), -1), Err(GroupError::IllegalGeneration));
    assert_eq!(outcome(&mut bench, member("x"), 1), Err(GroupError::UnknownMemberId));
    assert_eq!(outcome(&mut bench, MemberRef::default(), -1), Err(GroupError::UnknownMemberId), "a simple consumer beside members");
    let new = bench.request("g");
    let new = bench.join(new);
    assert_eq!(outcome(&mut bench, member(&ids[0]), 1), Ok(()), "PreparingRebalance: the last of the old generation");
    let request = bench.rejoin("g", &ids[0]);
    let rejoin = bench.join(request);
    let (new, rejoined) = (bench.joined(new), bench.joined(rejoin));
    assert_eq!(outcome(&mut bench, member(&ids[0]), 1), Err(GroupError::IllegalGeneration));
    assert_eq!(outcome(&mut bench, member(&ids[0]), 2), Err(GroupError::RebalanceInProgress), "CompletingRebalance");
    bench.sync_all("g", &[rejoined, new.clone()]);
    bench.leave("g", vec![member(&ids[0]), member(&new.member_id)]);
    assert_eq!(outcome(&mut bench, MemberRef::default(), -1), Ok(()), "Empty: an administrator may");
    assert_eq!(outcome(&mut bench, member(&ids[0]), 2), Err(GroupError::UnknownMemberId));
}

#[test]
fn a_commit_is_a_sign_of_life() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 1);
    for _ in 0..4 {
        bench.advance(SESSION_MS as u64 - 1);
        bench.commit(&commit_of("g", member(&ids[0]), 1, 1));
        bench.land();
    }
    assert_eq!(bench.state("g"), State::Stable);
}

#[test]
fn what_is_too_large_is_refused_for_its_partition_alone() {
    let mut bench = Bench::with(Settings { max_offsets: 2, ..Settings::default() });
    let of = |partition: i32, metadata: usize| CommitPartition {
        partition,
        offset: 1,
        leader_epoch: None,
        metadata: Some("ü".repeat(metadata)),
    };
    let commit =
        CommitOffsets { topics: vec![("t".into(), vec![of(0, 4096), of(1, 4097), of(2, 0), of(3, 0), of(0, 1)])], ..simple("g", 1) };
    let waiter = bench.commit(&commit);
    bench.land();
    let Some(GroupAnswer::Commit(topics)) = bench.answer(waiter) else { panic!("answered") };
    let outcomes: Vec<_> = topics[0].partitions.iter().map(|(_, outcome)| *outcome).collect();
    let expected = [Ok(()), Err(GroupError::OffsetMetadataTooLarge), Ok(()), Err(GroupError::PolicyViolation), Ok(())];
    assert_eq!(outcomes, expected, "counted in UTF-16 units; a position that is known may always move");
    assert_eq!(bench.coordinator.position_count(), 2);
    let nothing = CommitOffsets { topics: vec![("t".into(), vec![of(9, 0)])], ..simple("h", 1) };
    let waiter = bench.commit(&nothing);
    assert_eq!(bench.committed(waiter), Err(GroupError::PolicyViolation), "answered at once: nothing goes to the log");
    assert_eq!(bench.coordinator.group_count(), 1);
}

#[test]
fn positions_of_topics_that_members_read_are_not_deleted() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 1);
    let mut commit = commit_of("g", member(&ids[0]), 1, 4);
    commit.topics.push(("u".into(), commit.topics[0].1.clone()));
    bench.commit(&commit);
    bench.land();
    let waiter = bench.delete_offsets("g", &[("t", &[0]), ("u", &[0, 7])]);
    assert_eq!(bench.answer(waiter), None);
    bench.land();
    let Some(GroupAnswer::DeleteOffsets(Ok(topics))) = bench.answer(waiter) else { panic!("answered") };
    assert_eq!(topics[0].partitions, [(0, Err(GroupError::GroupSubscribedToTopic))]);
    assert_eq!(topics[1].partitions, [(0, Ok(())), (7, Ok(()))], "what is not there is gone too");
    assert_eq!((bench.fetched("g", "t", 0), bench.fetched("g", "u", 0)), (Some(4), None));
    let waiter = bench.delete_offsets("none", &[("t", &[0])]);
    assert_eq!(bench.answer(waiter), Some(GroupAnswer::DeleteOffsets(Err(GroupError::GroupIdNotFound))));
    let request = JoinGroup { protocol_type: "connect".into(), ..bench.request("k") };
    bench.join(request);
    let waiter = bench.delete_offsets("k", &[("t", &[0])]);
    assert_eq!(bench.answer(waiter), Some(GroupAnswer::DeleteOffsets(Err(GroupError::NonEmptyGroup))));
}

#[test]
fn groups_are_deleted_when_they_are_empty() {
    let mut bench = Bench::new();
    bench.stable("full", 1);
    bench.commit(&simple("g", 5));
    bench.land();
    let in_flight = bench.commit(&simple("g", 6));
    let waiter = bench.delete_groups(&["full", "g", "none", "g"]);
    let refused = bench.request("g");
    let refused = bench.join(refused);
    assert_eq!(bench.join_error(refused), GroupError::CoordinatorNotAvailable, "a group that is going takes nobody");
    let commit = bench.commit(&simple("g", 7));
    assert_eq!(bench.committed(commit), Err(GroupError::CoordinatorNotAvailable));
    assert_eq!(bench.fetched("g", "t", 0), Some(5), "not gone before that is durable");
    bench.land();
    assert_eq!(bench.committed(in_flight), Ok(()));
    let Some(GroupAnswer::DeleteGroups(outcomes)) = bench.answer(waiter) else { panic!("answered") };
    let outcomes: Vec<_> = outcomes.iter().map(|(id, outcome)| (id.as_str(), *outcome)).collect();
    let not_found = Err(GroupError::GroupIdNotFound);
    assert_eq!(outcomes, [("full", Err(GroupError::NonEmptyGroup)), ("g", Ok(())), ("none", not_found), ("g", not_found)]);
    assert_eq!((bench.fetched("g", "t", 0), bench.coordinator.group_count()), (None, 1));
}

#[test]
fn a_deletion_that_the_log_does_not_take_is_taken_back() {
    let mut bench = Bench::new();
    bench.commit(&simple("g", 5));
    bench.land();
    let waiter = bench.delete_groups(&["g"]);
    bench.fail(AppendFailure::Unavailable);
    assert_eq!(bench.answer(waiter), Some(GroupAnswer::DeleteGroups(vec![("g".into(), Err(GroupError::CoordinatorNotAvailable))])));
    assert_eq!((bench.state("g"), bench.fetched("g", "t", 0)), (State::Empty, Some(5)));
    let commit = bench.commit(&simple("g", 6));
    bench.land();
    assert_eq!(bench.committed(commit), Ok(()));
}

/// More tombstones than an append holds, and one of the appends fails: what is left is what the log says, a simple group.
#[test]
fn a_deletion_in_parts_that_fails_in_part() {
    let mut bench = Bench::new();
    let count = crate::limits::PURGE_RECORDS as i32 + 5;
    let of = |partition: i32| CommitPartition { partition, offset: 1, leader_epoch: None, metadata: None };
    bench.commit(&CommitOffsets { topics: vec![("t".into(), (0..count).map(of).collect())], ..simple("g", 1) });
    bench.land();
    bench.delete_groups(&["g"]);
    assert_eq!(bench.appends.iter().map(|(_, records)| records.len()).collect::<Vec<_>>(), [500, 6]);
    let (token, _) = bench.appends.pop_front().unwrap();
    bench.coordinator.handle_appended(token, Err(AppendFailure::Unavailable), bench.now);
    bench.land();
    assert_eq!((bench.state("g"), bench.coordinator.position_count()), (State::Empty, 500));
    let before = bench.coordinator.snapshot();
    bench.restart(Settings::default());
    assert_eq!(bench.coordinator.position_count(), 500);
    assert_eq!(bench.coordinator.snapshot()[10..], before[10..]);
}

const RETENTION_MS: u64 = crate::limits::OFFSETS_RETENTION_MS as u64;
const CHECK_MS: u64 = crate::limits::OFFSETS_RETENTION_CHECK_MS;

#[test]
fn a_simple_consumers_positions_expire_by_their_commits() {
    let mut bench = Bench::new();
    bench.commit(&simple("g", 5));
    bench.land();
    bench.advance(RETENTION_MS / 2);
    let mut other = simple("g", 6);
    other.topics[0].0 = "u".into();
    bench.commit(&other);
    bench.land();
    bench.advance(RETENTION_MS / 2 + CHECK_MS);
    bench.land();
    assert_eq!((bench.fetched("g", "t", 0), bench.fetched("g", "u", 0)), (None, Some(6)));
    bench.advance(RETENTION_MS);
    assert_eq!(bench.state("g"), State::Dead, "with the last position the group goes");
    bench.land();
    assert_eq!(bench.coordinator.group_count(), 0);
    assert_eq!(bench.log.last().unwrap().value, None);
}

#[test]
fn a_groups_positions_expire_when_it_was_empty_long_enough() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 1);
    bench.commit(&commit_of("g", member(&ids[0]), 1, 4));
    bench.land();
    for _ in 0..RETENTION_MS / CHECK_MS + 2 {
        for _ in 0..CHECK_MS / 5_000 {
            bench.advance(5_000);
            bench.heartbeat("g", &ids[0], 1).unwrap();
        }
    }
    assert!(bench.appends.is_empty(), "members that read a topic keep its positions");
    bench.leave("g", vec![member(&ids[0])]);
    bench.land();
    bench.advance(RETENTION_MS - CHECK_MS);
    bench.land();
    assert_eq!(bench.fetched("g", "t", 0), Some(4), "its age counts from when the group became empty");
    bench.advance(2 * CHECK_MS);
    bench.land();
    assert_eq!((bench.fetched("g", "t", 0), bench.coordinator.group_count()), (None, 0));
}

#[test]
fn positions_of_topics_that_nobody_reads_any_more_expire() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 1);
    let mut commit = commit_of("g", member(&ids[0]), 1, 4);
    commit.topics[0].0 = "old".into();
    bench.commit(&commit);
    bench.land();
    for _ in 0..(RETENTION_MS + CHECK_MS) / 5_000 {
        bench.advance(5_000);
        bench.heartbeat("g", &ids[0], 1).unwrap();
    }
    bench.land();
    assert_eq!((bench.fetched("g", "old", 0), bench.state("g")), (None, State::Stable));
}

#[test]
fn a_commit_may_have_an_end_of_its_own() {
    let mut bench = Bench::new();
    bench.commit(&CommitOffsets { retention_ms: Some(1_000), ..simple("g", 5) });
    bench.land();
    bench.restart(Settings::default());
    bench.advance(CHECK_MS);
    bench.land();
    assert_eq!((bench.fetched("g", "t", 0), bench.coordinator.group_count()), (None, 0));
}

#[test]
fn positions_in_a_deleted_topic_go() {
    let mut bench = Bench::new();
    bench.commit(&simple("g", 5));
    bench.land();
    bench.commit(&simple("h", 6));
    assert_eq!(bench.coordinator.topics().len(), 1);
    bench.coordinator.handle_topic_deleted("t");
    bench.coordinator.handle_topic_deleted("other");
    bench.pump();
    bench.land();
    assert_eq!((bench.fetched("g", "t", 0), bench.fetched("h", "t", 0)), (None, None), "a commit that was on its way goes with them");
    assert_eq!(bench.coordinator.group_count(), 0);
}

/// An administrator sets the positions of a group that has been empty for long.
#[test]
fn a_position_committed_to_an_empty_group_ages_from_its_commit() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 1);
    bench.commit(&commit_of("g", member(&ids[0]), 1, 4));
    bench.leave("g", vec![member(&ids[0])]);
    bench.land();
    bench.advance(RETENTION_MS - CHECK_MS);
    bench.commit(&simple("g", 5));
    bench.land();
    bench.advance(RETENTION_MS - 2 * CHECK_MS);
    bench.land();
    assert_eq!(bench.fetched("g", "t", 0), Some(5));
    bench.advance(3 * CHECK_MS);
    bench.land();
    assert_eq!(bench.fetched("g", "t", 0), None);
}

/// A tombstone behind a commit would take the new position with the old one.
#[test]
fn an_old_position_that_is_being_committed_does_not_expire() {
    let mut bench = Bench::new();
    bench.commit(&simple("g", 5));
    bench.land();
    bench.advance(RETENTION_MS - CHECK_MS);
    bench.commit(&simple("g", 6));
    bench.advance(2 * CHECK_MS);
    bench.land();
    assert_eq!(bench.fetched("g", "t", 0), Some(6));
}

/// Thousands of groups are looked through in steps.
#[test]
fn the_search_for_old_positions_goes_on_where_it_stopped() {
    let mut bench = Bench::new();
    for at in 0..600 {
        bench.commit(&simple(&format!("g{at}"), 1));
    }
    bench.land();
    bench.advance(RETENTION_MS + CHECK_MS);
    bench.land();
    assert_eq!(bench.coordinator.group_count(), 0);
}
