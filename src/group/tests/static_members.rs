//! Static members (KIP-345): they come back in their own place.

use super::*;
use crate::group::consumer_protocol::{Assignment, TopicPartitions};

fn static_request(bench: &mut Bench, instance: &str) -> JoinGroup {
    JoinGroup { instance_id: Some(instance.into()), ..bench.request("g") }
}

/// A stable group of static members `a` and `b`; ids by instance.
fn pair(bench: &mut Bench) -> BTreeMap<&'static str, String> {
    let requests = vec![static_request(bench, "a"), static_request(bench, "b")];
    let ids = bench.stable_of("g", requests);
    ["a", "b"].into_iter().map(|instance| (instance, ids.iter().find(|id| id.starts_with(instance)).unwrap().clone())).collect()
}

fn leader(bench: &Bench) -> String {
    bench.coordinator.group("g").unwrap().leader.as_deref().unwrap().to_string()
}

#[test]
fn a_return_to_a_stable_group_is_no_rebalance() {
    let mut bench = Bench::new();
    let ids = pair(&mut bench);
    let follower = ["a", "b"].into_iter().find(|i| ids[i] != leader(&bench)).unwrap();
    let request = static_request(&mut bench, follower);
    let waiter = bench.join(request);
    assert_eq!(bench.answer(waiter), None, "the new id has to be durable");
    bench.land();
    let joined = bench.joined(waiter);
    assert_eq!((joined.generation, bench.state("g")), (1, State::Stable));
    assert_ne!(*joined.member_id, *ids[follower]);
    let sync = bench.sync(sync_of("g", &joined.member_id, 1, Vec::new()));
    assert_eq!(bench.synced(sync), Ok(Bytes::from(ids[follower].clone())), "it has what it had");
    let fenced = Heartbeat { group: "g".into(), member: instance(&ids[follower], follower), generation: 1 };
    assert_eq!(bench.coordinator.handle_heartbeat(&fenced, bench.now), Err(GroupError::FencedInstanceId));
    let commit = bench.commit(&commit_of("g", instance(&ids[follower], follower), 1, 7));
    assert_eq!(bench.committed(commit), Err(GroupError::FencedInstanceId));
    let old_join = JoinGroup { member_id: ids[follower].clone(), ..static_request(&mut bench, follower) };
    let old_join = bench.join(old_join);
    assert_eq!(bench.join_error(old_join), GroupError::FencedInstanceId);
    let old_sync = SyncGroup { member: instance(&ids[follower], follower), ..sync_of("g", "", 1, Vec::new()) };
    let old_sync = bench.sync(old_sync);
    assert_eq!(bench.synced(old_sync), Err(GroupError::FencedInstanceId));
    let left = bench.leave("g", vec![instance(&ids[follower], follower)]);
    let Some(GroupAnswer::Leave(Ok(left))) = bench.answer(left) else { panic!("answered") };
    assert_eq!(left[0].outcome, Err(GroupError::FencedInstanceId));
}

#[test]
fn a_leader_that_returns_does_not_assign_anew() {
    for can_skip_assignment in [true, false] {
        let mut bench = Bench::new();
        pair(&mut bench);
        let old = leader(&bench);
        let request = JoinGroup { can_skip_assignment, ..static_request(&mut bench, &old[..1]) };
        let waiter = bench.join(request);
        bench.land();
        let joined = bench.joined(waiter);
        assert_eq!((joined.generation, joined.skip_assignment), (1, can_skip_assignment));
        if can_skip_assignment {
            assert_eq!((joined.members.len(), &joined.leader), (2, &joined.member_id), "it watches the topics of all");
        } else {
            assert_eq!((joined.members.len(), &*joined.leader), (0, &*old), "an old client believes that another one leads");
        }
    }
}

#[test]
fn a_return_that_the_log_does_not_take_is_taken_back() {
    let mut bench = Bench::new();
    let ids = pair(&mut bench);
    let request = static_request(&mut bench, "a");
    let waiter = bench.join(request);
    bench.fail(AppendFailure::Unavailable);
    assert_eq!(bench.join_error(waiter), GroupError::CoordinatorNotAvailable);
    let heartbeat = Heartbeat { group: "g".into(), member: instance(&ids["a"], "a"), generation: 1 };
    assert_eq!(bench.coordinator.handle_heartbeat(&heartbeat, bench.now), Ok(()), "the old id is in force");
    assert_eq!(bench.state("g"), State::Stable);
}

/// Two processes of one instance id that start at once: the later one has it, whatever becomes of the first one's record.
#[test]
fn of_two_returns_the_later_counts() {
    let mut bench = Bench::new();
    pair(&mut bench);
    let requests = [static_request(&mut bench, "a"), static_request(&mut bench, "a")];
    let [first, second] = requests.map(|request| bench.join(request));
    assert_eq!(bench.join_error(first), GroupError::FencedInstanceId);
    bench.land();
    assert_eq!(bench.joined(second).generation, 1);
}

#[test]
fn a_return_during_a_rebalance_is_a_join_of_it() {
    let mut bench = Bench::new();
    let ids = pair(&mut bench);
    let old = leader(&bench);
    let request = JoinGroup { member_id: old.clone(), ..static_request(&mut bench, &old[..1]) };
    let rejoin = bench.join(request);
    assert_eq!(bench.state("g"), State::PreparingRebalance);
    let other = ["a", "b"].into_iter().find(|i| ids[i] != leader(&bench)).unwrap();
    let request = static_request(&mut bench, other);
    let returned = bench.join(request);
    let (rejoined, returned) = (bench.joined(rejoin), bench.joined(returned));
    assert_eq!((rejoined.generation, returned.generation), (2, 2));
    let again = static_request(&mut bench, other);
    let again = bench.join(again);
    assert_eq!(bench.state("g"), State::PreparingRebalance, "while the assignment is awaited it starts another one");
    assert_eq!(bench.answer(again), None);
}

#[test]
fn a_return_with_other_topics_or_another_protocol_is_a_rebalance() {
    for protocols in [vec![protocol("range", &["t", "u"])], vec![protocol("roundrobin", &["t"]), protocol("range", &["t"])]] {
        let mut bench = Bench::new();
        let mut requests = Vec::new();
        for instance in ["a", "b"] {
            let protocols = vec![protocol("range", &["t"]), protocol("roundrobin", &["t"])];
            requests.push(JoinGroup { protocols, ..static_request(&mut bench, instance) });
        }
        bench.stable_of("g", requests);
        let is_other_protocol = protocols.len() == 2;
        let request = JoinGroup { protocols, ..static_request(&mut bench, "a") };
        bench.join(request);
        if is_other_protocol {
            // One vote each: of equals the first by name stays.
            assert_eq!(bench.state("g"), State::Stable);
            let request = JoinGroup { protocols: vec![protocol("roundrobin", &["t"])], ..static_request(&mut bench, "a") };
            bench.join(request);
        }
        assert_eq!(bench.state("g"), State::PreparingRebalance);
    }
}

/// Between the two phases of a cooperative rebalance: the member that was to give something up restarts instead of joining again. Without a rebalance nobody would ever get it.
#[test]
fn a_return_in_place_of_a_member_that_was_to_give_up_partitions_is_a_rebalance() {
    let mut bench = Bench::new();
    let owned = TopicPartitions::from([("t".into(), [0, 1].into())]);
    let kept = Assignment { partitions: TopicPartitions::from([("t".into(), [0].into())]), user_data: None }.encode();
    let subscription = Subscription { topics: vec!["t".into()], owned, generation: Some(0), ..Subscription::default() };
    let protocols = vec![Protocol { name: "range".into(), metadata: subscription.encode() }];
    let request = JoinGroup { protocols, ..static_request(&mut bench, "a") };
    let waiter = bench.join(request);
    bench.advance(DELAY_MS);
    let id = bench.joined(waiter).member_id.to_string();
    bench.sync(sync_of("g", &id, 1, vec![(id.clone(), kept)]));
    bench.land();
    let request = static_request(&mut bench, "a");
    let waiter = bench.join(request);
    assert_eq!(bench.joined(waiter).generation, 2);
}

#[test]
fn a_static_member_keeps_its_place_while_its_session_lasts() {
    let mut bench = Bench::new();
    let mut requests = Vec::new();
    for instance in ["a", "b"] {
        // A session longer than the rebalance.
        requests.push(JoinGroup { session_timeout_ms: 4 * REBALANCE_MS, ..static_request(&mut bench, instance) });
    }
    let ids = bench.stable_of("g", requests);
    let request = JoinGroup { member_id: ids[0].clone(), instance_id: Some(ids[0][..1].into()), ..bench.request("g") };
    let waiter = bench.join(request);
    bench.advance(REBALANCE_MS as u64);
    let joined = bench.joined(waiter);
    assert_eq!(joined.members.len(), 2, "who does not join in time is not dropped if it is static");
}

/// None of them has come back: the group waits, until one does or their sessions end.
#[test]
fn a_rebalance_without_anybody_waits_for_a_static_member() {
    let mut bench = Bench::new();
    let mut requests = vec![bench.request("g")];
    requests.push(JoinGroup { session_timeout_ms: 4 * REBALANCE_MS, ..static_request(&mut bench, "a") });
    let ids = bench.stable_of("g", requests);
    let dynamic = ids.iter().find(|id| id.starts_with('c')).unwrap();
    bench.leave("g", vec![member(dynamic)]);
    bench.advance(REBALANCE_MS as u64 + 1);
    assert_eq!(bench.state("g"), State::PreparingRebalance);
    let request = static_request(&mut bench, "a");
    let waiter = bench.join(request);
    assert_eq!(bench.joined(waiter).generation, 2);
}

#[test]
fn an_administrator_removes_static_members_by_instance() {
    let mut bench = Bench::new();
    pair(&mut bench);
    let waiter = bench.leave("g", vec![instance("", "a"), instance("", "zz"), member("")]);
    let Some(GroupAnswer::Leave(Ok(left))) = bench.answer(waiter) else { panic!("answered") };
    let outcomes: Vec<_> = left.iter().map(|l| l.outcome).collect();
    assert_eq!(outcomes, [Ok(()), Err(GroupError::UnknownMemberId), Err(GroupError::UnknownMemberId)]);
    assert_eq!(left[0].member, instance("", "a"), "as asked");
    assert_eq!(bench.coordinator.group("g").unwrap().members().len(), 1);
}

#[test]
fn an_id_that_was_given_out_is_of_no_static_member() {
    let mut bench = Bench::new();
    let request = JoinGroup { needs_member_id: true, ..bench.request("g") };
    let waiter = bench.join(request);
    let Some(GroupAnswer::Join(Err(refused))) = bench.answer(waiter) else { panic!("refused") };
    let request = JoinGroup { member_id: refused.member_id.to_string(), ..static_request(&mut bench, "a") };
    let waiter = bench.join(request);
    assert_eq!(bench.join_error(waiter), GroupError::InvalidRequest);
    let unknown = JoinGroup { member_id: "x".into(), ..static_request(&mut bench, "b") };
    let unknown = bench.join(unknown);
    assert_eq!(bench.join_error(unknown), GroupError::UnknownMemberId);
}

#[test]
fn a_return_to_a_full_group_is_for_its_own_place() {
    let mut bench = Bench::with(Settings { max_members: 2, ..Settings::default() });
    pair(&mut bench);
    let third = static_request(&mut bench, "c");
    let third = bench.join(third);
    assert_eq!(bench.join_error(third), GroupError::GroupMaxSizeReached);
    let request = static_request(&mut bench, "a");
    let waiter = bench.join(request);
    bench.land();
    assert_eq!(bench.joined(waiter).generation, 1);
}

/// The log takes longer than a session: the member that returned is watched all the same.
#[test]
fn the_session_of_a_member_that_returned_goes_on() {
    let mut bench = Bench::new();
    let requests = vec![static_request(&mut bench, "a")];
    bench.stable_of("g", requests);
    let request = static_request(&mut bench, "a");
    let waiter = bench.join(request);
    bench.advance(2 * SESSION_MS as u64);
    bench.land();
    assert_eq!(bench.joined(waiter).generation, 1);
    bench.advance(SESSION_MS as u64);
    assert_eq!(bench.state("g"), State::Empty);
}

/// A client says that a rebalance waits 0 ms for it, and it is the only one left: the group is looked at again and again, and time goes on all the same.
#[test]
fn a_wait_of_nothing_ends() {
    let mut bench = Bench::new();
    let mut requests = vec![bench.request("g")];
    requests.push(JoinGroup { rebalance_timeout_ms: 0, ..static_request(&mut bench, "a") });
    let ids = bench.stable_of("g", requests);
    let dynamic = ids.iter().find(|id| id.starts_with('c')).unwrap();
    bench.leave("g", vec![member(dynamic)]);
    bench.advance(SESSION_MS as u64 / 2);
    assert_eq!(bench.state("g"), State::PreparingRebalance);
    bench.advance(SESSION_MS as u64);
    assert_eq!(bench.state("g"), State::Empty);
}

/// The record of the first return fails, that of a second one, which was made with the first in force, does not: here is what the log has.
#[test]
fn a_return_that_fails_behind_another_one_is_not_taken_back() {
    let mut bench = Bench::new();
    let ids = pair(&mut bench);
    let requests = [static_request(&mut bench, "a"), static_request(&mut bench, "b")];
    let [first, second] = requests.map(|request| bench.join(request));
    let (token, _) = bench.appends.pop_front().unwrap();
    bench.coordinator.handle_appended(token, Err(AppendFailure::Unavailable), bench.now);
    bench.pump();
    assert_eq!(bench.join_error(first), GroupError::CoordinatorNotAvailable);
    bench.land();
    let second = bench.joined(second);
    let members = |bench: &Bench| bench.coordinator.describe("g").unwrap().members;
    let before = members(&bench);
    assert!(before.iter().all(|m| *m.member_id != *ids["a"] && *m.member_id != *ids["b"]));
    assert!(before.iter().any(|m| m.member_id == second.member_id));
    bench.restart(Settings::default());
    assert_eq!(members(&bench), before);
}
