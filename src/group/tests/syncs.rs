//! Syncs, assignments and their way through the log.

use super::*;

/// Two members of generation 1, neither of which has synced; the leader's id first.
fn joined_pair(bench: &mut Bench) -> Vec<String> {
    let requests = [bench.request("g"), bench.request("g")];
    let waiters = requests.map(|request| bench.join(request));
    bench.advance(3 * DELAY_MS);
    let joined: Vec<Joined> = waiters.into_iter().map(|waiter| bench.joined(waiter)).collect();
    let mut ids: Vec<String> = joined.iter().map(|j| j.member_id.to_string()).collect();
    ids.sort_by_key(|id| **id != *joined[0].leader);
    ids
}

fn given(ids: &[String]) -> Vec<(String, Bytes)> {
    ids.iter().map(|id| (id.clone(), Bytes::from(id.clone()))).collect()
}

#[test]
fn nobody_has_an_assignment_before_it_is_durable() {
    let mut bench = Bench::new();
    let ids = joined_pair(&mut bench);
    let follower = bench.sync(sync_of("g", &ids[1], 1, Vec::new()));
    let leader = bench.sync(sync_of("g", &ids[0], 1, given(&ids)));
    assert_eq!((bench.answer(leader), bench.answer(follower)), (None, None));
    assert_eq!(bench.state("g"), State::CompletingRebalance);
    bench.land();
    assert_eq!(bench.synced(leader), Ok(Bytes::from(ids[0].clone())));
    assert_eq!(bench.synced(follower), Ok(Bytes::from(ids[1].clone())));
    assert_eq!(bench.state("g"), State::Stable);
}

#[test]
fn a_member_that_the_leader_does_not_mention_has_nothing() {
    let mut bench = Bench::new();
    let ids = joined_pair(&mut bench);
    let follower = bench.sync(sync_of("g", &ids[1], 1, Vec::new()));
    bench.sync(sync_of("g", &ids[0], 1, given(&ids[..1])));
    bench.land();
    assert_eq!(bench.synced(follower), Ok(Bytes::new()));
}

#[test]
fn an_assignment_that_the_log_does_not_take_is_nobodys() {
    for (failure, error) in [
        (AppendFailure::NotLeader, GroupError::NotCoordinator),
        (AppendFailure::Unavailable, GroupError::CoordinatorNotAvailable),
        (AppendFailure::TooLarge, GroupError::UnknownServerError),
    ] {
        let mut bench = Bench::new();
        let ids = joined_pair(&mut bench);
        let follower = bench.sync(sync_of("g", &ids[1], 1, Vec::new()));
        let leader = bench.sync(sync_of("g", &ids[0], 1, given(&ids)));
        bench.fail(failure);
        assert_eq!((bench.synced(leader), bench.synced(follower)), (Err(error), Err(error)));
        assert_eq!(bench.state("g"), State::PreparingRebalance, "they join again");
    }
}

#[test]
fn an_assignment_past_the_bound_is_nobodys() {
    let mut bench = Bench::with(Settings { max_group_record: 500, ..Settings::default() });
    let ids = joined_pair(&mut bench);
    let leader = bench.sync(sync_of("g", &ids[0], 1, vec![(ids[1].clone(), Bytes::from(vec![0; 500]))]));
    assert_eq!(bench.synced(leader), Err(GroupError::UnknownServerError));
    assert!(bench.appends.is_empty());
    assert_eq!(bench.state("g"), State::PreparingRebalance);
}

/// A rebalance begins while the assignment is on its way: what becomes durable then belongs to a generation that is over.
#[test]
fn an_assignment_of_a_generation_that_is_over_is_nobodys() {
    let mut bench = Bench::new();
    let ids = joined_pair(&mut bench);
    let follower = bench.sync(sync_of("g", &ids[1], 1, Vec::new()));
    let leader = bench.sync(sync_of("g", &ids[0], 1, given(&ids)));
    let new = bench.request("g");
    let new = bench.join(new);
    let told = Err(GroupError::RebalanceInProgress);
    assert_eq!((bench.synced(leader), bench.synced(follower)), (told.clone(), told));
    let mut waiters = vec![new];
    for id in &ids {
        let request = bench.rejoin("g", id);
        waiters.push(bench.join(request));
    }
    let late = bench.sync(sync_of("g", &ids[1], 2, Vec::new()));
    bench.land();
    assert_eq!(bench.answer(late), None, "generation 2 has no assignment yet");
    assert_eq!(bench.state("g"), State::CompletingRebalance);
    let joined: Vec<Joined> = waiters.into_iter().map(|waiter| bench.joined(waiter)).collect();
    let mut ids: Vec<String> = joined.iter().map(|j| j.member_id.to_string()).collect();
    ids.sort();
    bench.sync(sync_of("g", &joined[0].leader, 2, given(&ids)));
    bench.land();
    assert!(bench.synced(late).is_ok());
}

/// What is in the log is what members get: the second assignment is not stored over the first.
#[test]
fn a_leader_that_syncs_twice_gets_what_is_being_stored() {
    let mut bench = Bench::new();
    let ids = joined_pair(&mut bench);
    let older = bench.sync(sync_of("g", &ids[0], 1, given(&ids)));
    let newer = bench.sync(sync_of("g", &ids[0], 1, vec![(ids[0].clone(), Bytes::from_static(b"other"))]));
    assert_eq!(bench.synced(older), Err(GroupError::RebalanceInProgress));
    assert_eq!(bench.appends.len(), 1);
    bench.land();
    assert_eq!(bench.synced(newer), Ok(Bytes::from(ids[0].clone())));
}

#[test]
fn of_two_syncs_of_a_member_the_older_is_answered() {
    let mut bench = Bench::new();
    let ids = joined_pair(&mut bench);
    let older = bench.sync(sync_of("g", &ids[1], 1, Vec::new()));
    let newer = bench.sync(sync_of("g", &ids[1], 1, Vec::new()));
    assert_eq!(bench.synced(older), Err(GroupError::RebalanceInProgress));
    assert_eq!(bench.answer(newer), None);
}

#[test]
fn syncs_of_others_are_refused() {
    let mut bench = Bench::new();
    let ids = joined_pair(&mut bench);
    let cases = [
        (sync_of("none", &ids[0], 1, Vec::new()), GroupError::UnknownMemberId),
        (sync_of("g", "nobody", 1, Vec::new()), GroupError::UnknownMemberId),
        (sync_of("g", &ids[0], 0, Vec::new()), GroupError::IllegalGeneration),
        (SyncGroup { protocol: Some("other".into()), ..sync_of("g", &ids[0], 1, Vec::new()) }, GroupError::InconsistentGroupProtocol),
        (SyncGroup { protocol_type: Some("other".into()), ..sync_of("g", &ids[0], 1, Vec::new()) }, GroupError::InconsistentGroupProtocol),
    ];
    for (sync, error) in cases {
        let waiter = bench.sync(sync);
        assert_eq!(bench.synced(waiter), Err(error));
    }
    let new = bench.request("g");
    bench.join(new);
    let waiter = bench.sync(sync_of("g", &ids[0], 1, Vec::new()));
    assert_eq!(bench.synced(waiter), Err(GroupError::RebalanceInProgress));
}

/// The leader never syncs: it is dropped, and with it the generation that waits for it.
#[test]
fn who_does_not_sync_in_time_is_dropped() {
    let mut bench = Bench::new();
    let ids = joined_pair(&mut bench);
    let follower = bench.sync(sync_of("g", &ids[1], 1, Vec::new()));
    for _ in 0..6 {
        bench.advance(REBALANCE_MS as u64 / 6);
        _ = bench.heartbeat("g", &ids[0], 1);
    }
    assert_eq!(bench.synced(follower), Err(GroupError::RebalanceInProgress));
    assert_eq!(bench.heartbeat("g", &ids[0], 1), Err(GroupError::UnknownMemberId));
    let request = bench.rejoin("g", &ids[1]);
    let waiter = bench.join(request);
    let joined = bench.joined(waiter);
    assert_eq!((joined.generation, joined.members.len()), (2, 1));
}

/// The same of a follower after the group has become stable.
#[test]
fn a_follower_that_does_not_fetch_its_assignment_is_dropped() {
    let mut bench = Bench::new();
    let ids = joined_pair(&mut bench);
    bench.sync(sync_of("g", &ids[0], 1, given(&ids)));
    bench.land();
    assert_eq!(bench.state("g"), State::Stable);
    for _ in 0..6 {
        bench.advance(REBALANCE_MS as u64 / 6);
        _ = bench.heartbeat("g", &ids[0], 1);
        _ = bench.heartbeat("g", &ids[1], 1);
    }
    assert_eq!(bench.state("g"), State::PreparingRebalance);
    assert_eq!(bench.heartbeat("g", &ids[1], 1), Err(GroupError::UnknownMemberId));
}

/// A sync that waits is a sign of life, however long the log takes.
#[test]
fn the_session_of_a_member_that_waits_does_not_end() {
    let mut bench = Bench::new();
    let ids = joined_pair(&mut bench);
    let follower = bench.sync(sync_of("g", &ids[1], 1, Vec::new()));
    let leader = bench.sync(sync_of("g", &ids[0], 1, given(&ids)));
    bench.advance(3 * SESSION_MS as u64);
    bench.land();
    assert!(bench.synced(leader).is_ok() && bench.synced(follower).is_ok());
    bench.advance(SESSION_MS as u64 - 1);
    assert_eq!(bench.state("g"), State::Stable);
    bench.advance(1);
    assert_ne!(bench.state("g"), State::Stable, "from the answer on it counts again");
}

/// The cooperative protocol on the classic one: two rebalances, the second started by the member that gave something up.
#[test]
fn a_cooperative_rebalance_takes_two_generations() {
    use crate::group::assignors::{Strategy, lead};
    use crate::group::consumer_protocol::{Assignment, TopicPartitions};
    let mut bench = Bench::new();
    let topics = BTreeMap::from([("t".to_string(), 2)]);
    let with = |owned: TopicPartitions, generation: i32| {
        let subscription = Subscription { topics: vec!["t".into()], owned, generation: Some(generation), ..Subscription::default() };
        vec![Protocol { name: "cooperative-sticky".into(), metadata: subscription.encode() }]
    };
    let both = TopicPartitions::from([("t".into(), [0, 1].into())]);
    let first = JoinGroup { protocols: with(TopicPartitions::new(), -1), ..bench.request("g") };
    let first = bench.join(first);
    bench.advance(DELAY_MS);
    let first = bench.joined(first);
    let assignments = lead(Strategy::CooperativeSticky, &first.members, &topics).unwrap();
    let sync = bench.sync(sync_of("g", &first.member_id, 1, assignments));
    bench.land();
    assert_eq!(Assignment::decode(&bench.synced(sync).unwrap()).unwrap().partitions, both);

    let second = JoinGroup { protocols: with(TopicPartitions::new(), -1), ..bench.request("g") };
    let second = bench.join(second);
    let again = JoinGroup { protocols: with(both, 1), ..bench.rejoin("g", &first.member_id) };
    let again = bench.join(again);
    let (second, again) = (bench.joined(second), bench.joined(again));
    assert_eq!(again.leader, first.member_id);
    let assignments = lead(Strategy::CooperativeSticky, &again.members, &topics).unwrap();
    let new_sync = bench.sync(sync_of("g", &second.member_id, 2, Vec::new()));
    let old_sync = bench.sync(sync_of("g", &first.member_id, 2, assignments));
    bench.land();
    let kept = Assignment::decode(&bench.synced(old_sync).unwrap()).unwrap().partitions;
    assert_eq!(kept.values().map(|p| p.len()).sum::<usize>(), 1);
    assert!(Assignment::decode(&bench.synced(new_sync).unwrap()).unwrap().partitions.is_empty(), "not before the other gave it up");

    let again = JoinGroup { protocols: with(kept.clone(), 2), ..bench.rejoin("g", &first.member_id) };
    let again = bench.join(again);
    assert_eq!(bench.heartbeat("g", &second.member_id, 2), Err(GroupError::RebalanceInProgress));
    let other = JoinGroup { protocols: with(TopicPartitions::new(), 2), ..bench.rejoin("g", &second.member_id) };
    let other = bench.join(other);
    let (again, _) = (bench.joined(again), bench.joined(other));
    let assignments = lead(Strategy::CooperativeSticky, &again.members, &topics).unwrap();
    let new_sync = bench.sync(sync_of("g", &second.member_id, 3, Vec::new()));
    let old_sync = bench.sync(sync_of("g", &first.member_id, 3, assignments));
    bench.land();
    assert_eq!(Assignment::decode(&bench.synced(old_sync).unwrap()).unwrap().partitions, kept);
    let got = Assignment::decode(&bench.synced(new_sync).unwrap()).unwrap().partitions;
    assert_eq!(got.values().map(|p| p.len()).sum::<usize>(), 1);
    assert_ne!(got, kept);
}
