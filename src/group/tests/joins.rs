//! Joins, rebalances, time-outs, leaving.

use super::*;

#[test]
fn the_first_rebalance_waits_for_more_and_again_for_each_that_comes() {
    let mut bench = Bench::new();
    let first = bench.request("g");
    let first = bench.join(first);
    bench.advance(DELAY_MS - 1);
    let second = bench.request("g");
    let second = bench.join(second);
    bench.advance(DELAY_MS);
    assert_eq!(bench.answer(first), None, "a second member came: once more the delay");
    bench.advance(DELAY_MS);
    let (first, second) = (bench.joined(first), bench.joined(second));
    assert_eq!((first.generation, first.protocol.as_deref()), (1, Some("range")));
    assert_eq!(first.leader, second.leader);
    let leaders = [&first, &second].into_iter().filter(|j| j.leader == j.member_id).collect::<Vec<_>>();
    assert_eq!(leaders.len(), 1);
    assert_eq!(leaders[0].members.len(), 2, "the leader sees everybody");
    assert_eq!([&first, &second].iter().filter(|j| j.members.is_empty()).count(), 1);
}

#[test]
fn the_first_rebalance_waits_no_longer_than_the_rebalance_timeout() {
    let mut bench = Bench::new();
    let mut waiters = Vec::new();
    for _ in 0..20 {
        let request = bench.request("g");
        waiters.push(bench.join(request));
        bench.advance(DELAY_MS - 1_000);
    }
    assert!(bench.answer(waiters[0]).is_some(), "30 s are over");
}

#[test]
fn a_new_member_is_told_its_id_and_joins_with_it() {
    let mut bench = Bench::new();
    let request = JoinGroup { needs_member_id: true, ..bench.request("g") };
    let waiter = bench.join(request.clone());
    let Some(GroupAnswer::Join(Err(refused))) = bench.answer(waiter) else { panic!("refused") };
    assert_eq!(refused.error, GroupError::MemberIdRequired);
    assert_eq!(&*refused.member_id, "c-01010101-0101-4101-8101-010101010101", "the client's name and a UUID of version 4");
    let waiter = bench.join(JoinGroup { member_id: refused.member_id.to_string(), ..request });
    bench.advance(DELAY_MS);
    assert_eq!(bench.joined(waiter).member_id, refused.member_id);
}

#[test]
fn an_id_that_nobody_joins_with_is_taken_back_and_the_group_is_forgotten() {
    let mut bench = Bench::new();
    let request = JoinGroup { needs_member_id: true, ..bench.request("g") };
    let waiter = bench.join(request.clone());
    let Some(GroupAnswer::Join(Err(refused))) = bench.answer(waiter) else { panic!("refused") };
    assert_eq!(bench.coordinator.group_count(), 1);
    bench.advance(SESSION_MS as u64);
    assert_eq!(bench.coordinator.group_count(), 0);
    let late = bench.join(JoinGroup { member_id: refused.member_id.to_string(), ..request });
    assert_eq!(bench.join_error(late), GroupError::UnknownMemberId);
}

#[test]
fn ids_that_are_given_out_are_bounded() {
    let mut bench = Bench::with(Settings { max_pending_members: 1, ..Settings::default() });
    for expected in [GroupError::MemberIdRequired, GroupError::CoordinatorNotAvailable] {
        let request = JoinGroup { needs_member_id: true, ..bench.request("g") };
        let waiter = bench.join(request);
        assert_eq!(bench.join_error(waiter), expected);
    }
}

#[test]
fn a_rebalance_waits_for_ids_that_were_given_out() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 1);
    let request = JoinGroup { needs_member_id: true, ..bench.request("g") };
    let waiter = bench.join(request.clone());
    let Some(GroupAnswer::Join(Err(refused))) = bench.answer(waiter) else { panic!("refused") };
    assert_eq!(bench.state("g"), State::Stable, "an id alone changes nothing");
    let leader = bench.rejoin("g", &ids[0]);
    let leader = bench.join(leader);
    assert_eq!(bench.answer(leader), None, "one is still to come");
    let new = bench.join(JoinGroup { member_id: refused.member_id.to_string(), ..request });
    assert_eq!((bench.joined(leader).generation, bench.joined(new).generation), (2, 2));
}

#[test]
fn session_timeouts_have_bounds() {
    let mut bench = Bench::new();
    for session_timeout_ms in [5_999, 1_800_001, -1] {
        let request = JoinGroup { session_timeout_ms, ..bench.request("g") };
        let waiter = bench.join(request);
        assert_eq!(bench.join_error(waiter), GroupError::InvalidSessionTimeout);
    }
    assert_eq!(bench.coordinator.group_count(), 0);
}

#[test]
fn requests_past_their_bounds_are_refused_by_kind() {
    let mut bench = Bench::with(Settings { max_groups: 1, max_group_metadata: 100, ..Settings::default() });
    let base = bench.request("g");
    let long = "x".repeat(crate::limits::MAX_GROUP_STRING + 1);
    let metadata = |len: usize| vec![Protocol { name: "range".into(), metadata: Bytes::from(vec![0; len]) }];
    let many = (0..=crate::limits::MAX_MEMBER_PROTOCOLS).map(|at| protocol(&at.to_string(), &[])).collect();
    let cases = [
        (JoinGroup { group: String::new(), ..base.clone() }, GroupError::InvalidGroupId),
        (JoinGroup { group: "x".repeat(crate::limits::MAX_GROUP_ID + 1), ..base.clone() }, GroupError::InvalidGroupId),
        (JoinGroup { client_id: long, ..base.clone() }, GroupError::InvalidRequest),
        (JoinGroup { protocols: many, ..base.clone() }, GroupError::InvalidRequest),
        (JoinGroup { protocols: metadata(crate::limits::MAX_MEMBER_METADATA + 1), ..base.clone() }, GroupError::MessageTooLarge),
        (JoinGroup { protocols: metadata(101), ..base.clone() }, GroupError::MessageTooLarge),
        (JoinGroup { protocols: [metadata(1), metadata(1)].concat(), ..base.clone() }, GroupError::InconsistentGroupProtocol),
        (JoinGroup { protocols: Vec::new(), ..base.clone() }, GroupError::InconsistentGroupProtocol),
        (JoinGroup { protocol_type: String::new(), ..base.clone() }, GroupError::InconsistentGroupProtocol),
        (JoinGroup { member_id: "nobody".into(), ..base.clone() }, GroupError::UnknownMemberId),
    ];
    for (request, error) in cases {
        let waiter = bench.join(request);
        assert_eq!(bench.join_error(waiter), error);
    }
    assert_eq!(bench.coordinator.group_count(), 0, "a refusal leaves nothing behind");
    bench.join(base);
    let other = bench.request("h");
    let other = bench.join(other);
    assert_eq!(bench.join_error(other), GroupError::PolicyViolation);
}

#[test]
fn the_protocol_is_voted_for_among_those_of_all() {
    let mut bench = Bench::new();
    let lists: [&[&str]; 3] = [&["a", "b", "c"], &["b", "a"], &["b", "x", "a"]];
    let mut requests = Vec::new();
    for list in lists {
        let protocols = list.iter().map(|name| protocol(name, &["t"])).collect();
        requests.push(JoinGroup { protocols, ..bench.request("g") });
    }
    let waiters: Vec<Waiter> = requests.into_iter().map(|r| bench.join(r)).collect();
    let stranger = JoinGroup { protocols: vec![protocol("c", &["t"])], ..bench.request("g") };
    let stranger = bench.join(stranger);
    assert_eq!(bench.join_error(stranger), GroupError::InconsistentGroupProtocol);
    let other_type = JoinGroup { protocol_type: "connect".into(), ..bench.request("g") };
    let other_type = bench.join(other_type);
    assert_eq!(bench.join_error(other_type), GroupError::InconsistentGroupProtocol);
    bench.advance(2 * DELAY_MS);
    assert_eq!(bench.joined(waiters[0]).protocol.as_deref(), Some("b"), "two of three like b best");
}

#[test]
fn a_group_has_so_many_members_and_no_more() {
    let mut bench = Bench::with(Settings { max_members: 2, ..Settings::default() });
    let ids = bench.stable("g", 2);
    let third = bench.request("g");
    let third = bench.join(third);
    assert_eq!(bench.join_error(third), GroupError::GroupMaxSizeReached);
    assert_eq!(bench.state("g"), State::Stable);
    let known = bench.rejoin("g", &ids[0]);
    bench.join(known);
    assert_eq!(bench.state("g"), State::PreparingRebalance, "a member may always join again");
}

/// The bound was lowered while the group was elsewhere: it is loaded, rebalances, and who joins last goes (KIP-389).
#[test]
fn a_loaded_group_that_is_too_large_loses_the_last_that_joins() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 3);
    bench.restart(Settings { max_members: 2, ..Settings::default() });
    assert_eq!(bench.state("g"), State::PreparingRebalance);
    let mut waiters = Vec::new();
    for id in &ids {
        let request = bench.rejoin("g", id);
        waiters.push(bench.join(request));
    }
    assert_eq!(bench.join_error(waiters[2]), GroupError::GroupMaxSizeReached);
    assert_eq!((bench.joined(waiters[0]).generation, bench.joined(waiters[1]).generation), (2, 2), "the others wait for nobody");
}

#[test]
fn a_join_starts_a_rebalance_of_which_heartbeats_tell() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 2);
    let new = bench.request("g");
    let new = bench.join(new);
    assert_eq!(bench.heartbeat("g", &ids[0], 1), Err(GroupError::RebalanceInProgress));
    let mut waiters = vec![new];
    for id in &ids {
        let request = bench.rejoin("g", id);
        waiters.push(bench.join(request));
    }
    let joined: Vec<Joined> = waiters.into_iter().map(|waiter| bench.joined(waiter)).collect();
    assert!(joined.iter().all(|j| j.generation == 2 && *j.leader == *ids[0]), "the leader stays, and all joined at once");
    bench.sync_all("g", &joined);
    assert_eq!(bench.heartbeat("g", &ids[0], 1), Err(GroupError::IllegalGeneration));
    assert_eq!(bench.heartbeat("g", &ids[0], 2), Ok(()));
    assert_eq!(bench.heartbeat("g", "nobody", 2), Err(GroupError::UnknownMemberId));
    assert_eq!(bench.heartbeat("none", &ids[0], 2), Err(GroupError::UnknownMemberId));
    assert_eq!(bench.heartbeat("", &ids[0], 2), Err(GroupError::InvalidGroupId));
}

#[test]
fn who_does_not_join_in_time_is_dropped_and_a_leader_is_replaced() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 3);
    let mut waiters = Vec::new();
    for id in &ids[1..] {
        // Only another subscription starts a rebalance for a follower.
        let request = JoinGroup { protocols: vec![protocol("range", &["t", "u"])], ..bench.rejoin("g", id) };
        waiters.push(bench.join(request));
    }
    for _ in 0..4 {
        bench.advance(REBALANCE_MS as u64 / 4 - 1_000);
        bench.heartbeat("g", &ids[0], 1).unwrap_err();
    }
    bench.advance(5_000);
    let joined: Vec<Joined> = waiters.into_iter().map(|waiter| bench.joined(waiter)).collect();
    assert!(joined.iter().all(|j| j.generation == 2 && *j.leader != *ids[0]), "alive, but too late");
    assert_eq!(joined.iter().map(|j| j.members.len()).max(), Some(2));
    assert_eq!(bench.heartbeat("g", &ids[0], 1), Err(GroupError::UnknownMemberId));
}

#[test]
fn who_shows_no_sign_of_life_is_dropped() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 2);
    for _ in 0..3 {
        bench.advance(SESSION_MS as u64 / 2);
        _ = bench.heartbeat("g", &ids[0], 1);
    }
    assert_eq!(bench.state("g"), State::PreparingRebalance);
    let leader = bench.rejoin("g", &ids[0]);
    let leader = bench.join(leader);
    assert_eq!(bench.joined(leader).members.len(), 1);
}

#[test]
fn the_last_member_leaves_an_empty_group_that_is_stored() {
    let mut bench = Bench::new();
    bench.stable("g", 1);
    bench.advance(SESSION_MS as u64);
    assert_eq!(bench.state("g"), State::Empty);
    bench.land();
    let stored = records::Change::decode(&bench.log.last().unwrap().key, bench.log.last().unwrap().value.as_deref());
    let Ok(Some(records::Change::Group { metadata: Some(metadata), .. })) = stored else { panic!("{stored:?}") };
    assert_eq!((metadata.generation, metadata.members.len(), metadata.protocol.clone()), (2, 0, None));
}

#[test]
fn a_new_member_whose_join_takes_too_long_is_dropped() {
    let settings = Settings { new_member_timeout_ms: 20_000, ..Settings::default() };
    let mut bench = Bench::with(settings);
    let ids = bench.stable("g", 1);
    let new = bench.request("g");
    let new = bench.join(new);
    for _ in 0..7 {
        bench.advance(3_000);
        bench.heartbeat("g", &ids[0], 1).unwrap_err();
    }
    assert_eq!(bench.join_error(new), GroupError::UnknownMemberId);
    let leader = bench.rejoin("g", &ids[0]);
    let leader = bench.join(leader);
    assert_eq!(bench.joined(leader).members.len(), 1);
}

#[test]
fn of_two_joins_of_a_member_the_older_is_answered() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 2);
    let request = bench.rejoin("g", &ids[0]);
    let older = bench.join(request.clone());
    let newer = bench.join(request);
    assert_eq!(bench.join_error(older), GroupError::RebalanceInProgress);
    assert_eq!(bench.answer(newer), None);
}

#[test]
fn a_follower_that_joins_again_unchanged_keeps_the_generation() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 2);
    let follower = bench.rejoin("g", &ids[1]);
    let follower = bench.join(follower);
    assert_eq!(bench.joined(follower).generation, 1);
    assert_eq!(bench.state("g"), State::Stable);
    let waiter = bench.sync(sync_of("g", &ids[1], 1, Vec::new()));
    assert_eq!(bench.synced(waiter), Ok(Bytes::from(ids[1].clone())));
    let leader = bench.rejoin("g", &ids[0]);
    bench.join(leader);
    assert_eq!(bench.state("g"), State::PreparingRebalance, "a leader that joins again wants to assign anew");
}

#[test]
fn a_join_while_the_assignment_is_awaited() {
    let mut bench = Bench::new();
    let first = bench.request("g");
    let first = bench.join(first);
    bench.advance(DELAY_MS);
    let id = bench.joined(first).member_id.to_string();
    let again = bench.rejoin("g", &id);
    let again = bench.join(again);
    let again = bench.joined(again);
    assert_eq!((again.generation, again.members.len()), (1, 1), "it missed its answer: the same once more");
    let changed = JoinGroup { protocols: vec![protocol("range", &["u"])], ..bench.rejoin("g", &id) };
    let changed = bench.join(changed);
    assert_eq!(bench.joined(changed).generation, 2, "another subscription: another generation");
    let new = bench.request("g");
    bench.join(new);
    assert_eq!(bench.state("g"), State::PreparingRebalance);
}

#[test]
fn members_leave_several_at_once_each_with_its_outcome() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 3);
    let waiter = bench.leave("g", vec![member(&ids[0]), member("nobody"), member(&ids[1])]);
    let Some(GroupAnswer::Leave(Ok(left))) = bench.answer(waiter) else { panic!("left") };
    let outcomes: Vec<_> = left.iter().map(|l| l.outcome).collect();
    assert_eq!(outcomes, [Ok(()), Err(GroupError::UnknownMemberId), Ok(())]);
    assert_eq!(bench.state("g"), State::PreparingRebalance);
    let last = bench.leave("g", vec![member(&ids[2])]);
    assert_eq!(bench.answer(last), None, "that nobody is left has to be durable");
    bench.land();
    assert!(matches!(bench.answer(last), Some(GroupAnswer::Leave(Ok(_)))));
    assert_eq!(bench.state("g"), State::Empty);
    let none = bench.leave("none", vec![member("x")]);
    let Some(GroupAnswer::Leave(Ok(left))) = bench.answer(none) else { panic!("answered") };
    assert_eq!(left[0].outcome, Err(GroupError::UnknownMemberId));
}

#[test]
fn a_leave_that_the_log_does_not_take_is_told_so() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 1);
    let waiter = bench.leave("g", vec![member(&ids[0])]);
    bench.fail(AppendFailure::NotLeader);
    assert_eq!(bench.answer(waiter), Some(GroupAnswer::Leave(Err(GroupError::NotCoordinator))));
    assert_eq!(bench.state("g"), State::Empty);
}

#[test]
fn a_member_that_leaves_while_it_waits_is_answered() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 2);
    let join = bench.rejoin("g", &ids[0]);
    let join = bench.join(join);
    bench.leave("g", vec![member(&ids[0])]);
    assert_eq!(bench.join_error(join), GroupError::UnknownMemberId);
    let join = bench.rejoin("g", &ids[1]);
    let join = bench.join(join);
    let joined = bench.joined(join);
    let new = bench.request("g");
    let new = bench.join(new);
    let again = bench.rejoin("g", &ids[1]);
    let again = bench.join(again);
    let (new, again) = (bench.joined(new), bench.joined(again));
    assert_eq!((joined.generation + 1, &new.leader), (again.generation, &again.leader));
    let follower = if new.leader == new.member_id { &again } else { &new };
    let sync = bench.sync(sync_of("g", &follower.member_id, again.generation, Vec::new()));
    bench.leave("g", vec![member(&follower.member_id)]);
    assert_eq!(bench.synced(sync), Err(GroupError::UnknownMemberId));
}

/// The leader leaves after the joins: its successor leads the next generation, and nobody waits for the old one's assignment.
#[test]
fn a_leader_that_leaves_in_mid_rebalance() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 3);
    let mut waiters = Vec::new();
    for id in &ids {
        let request = bench.rejoin("g", id);
        waiters.push(bench.join(request));
    }
    let joined: Vec<Joined> = waiters.into_iter().map(|waiter| bench.joined(waiter)).collect();
    let sync = bench.sync(sync_of("g", &ids[1], joined[0].generation, Vec::new()));
    bench.leave("g", vec![member(&ids[0])]);
    assert_eq!(bench.synced(sync), Err(GroupError::RebalanceInProgress));
    let mut waiters = Vec::new();
    for id in &ids[1..] {
        let request = bench.rejoin("g", id);
        waiters.push(bench.join(request));
    }
    let joined: Vec<Joined> = waiters.into_iter().map(|waiter| bench.joined(waiter)).collect();
    assert!(joined.iter().all(|j| j.generation == 3 && *j.leader != *ids[0]));
    bench.sync_all("g", &joined);
}

#[test]
fn the_rebalance_timeout_of_old_clients_is_their_session_timeout() {
    let mut bench = Bench::new();
    let mut requests = Vec::new();
    for _ in 0..2 {
        requests.push(JoinGroup { rebalance_timeout_ms: -1, ..bench.request("g") });
    }
    let ids = bench.stable_of("g", requests);
    let leader = JoinGroup { rebalance_timeout_ms: -1, ..bench.rejoin("g", &ids[0]) };
    let leader = bench.join(leader);
    bench.heartbeat("g", &ids[1], 1).unwrap_err();
    bench.advance(SESSION_MS as u64);
    assert_eq!(bench.joined(leader).members.len(), 1);
}

#[test]
fn groups_are_listed_by_state_and_described() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 2);
    let new = bench.request("h");
    bench.join(new);
    let named = |states: &[State], bench: &Bench| -> Vec<String> {
        bench.coordinator.list(states).unwrap().into_iter().map(|g| g.group.to_string()).collect()
    };
    assert_eq!(named(&[], &bench), ["g", "h"]);
    assert_eq!(named(&[State::Stable], &bench), ["g"]);
    assert_eq!(named(&[State::from_name("preparingREBALANCE").unwrap()], &bench), ["h"]);
    let described = bench.coordinator.describe("g").unwrap();
    assert_eq!((&*described.protocol_type, &*described.protocol, described.members.len()), ("consumer", "range", 2));
    let first = described.members.iter().find(|m| *m.member_id == *ids[0]).unwrap();
    assert_eq!((&first.assignment[..], &first.metadata), (ids[0].as_bytes(), &protocol("range", &["t"]).metadata));
    let described = bench.coordinator.describe("h").unwrap();
    assert!(described.protocol.is_empty() && described.members[0].metadata.is_empty(), "what is not settled is not shown");
    assert_eq!(bench.coordinator.describe("none").unwrap().state, State::Dead);
}
