//! Loading, restarts, snapshots, unloading.

use super::*;

#[test]
fn nothing_is_served_before_everything_is_loaded() {
    let mut bench = Bench::loading(Settings::default());
    let request = bench.request("g");
    let join = bench.join(request);
    assert_eq!(bench.join_error(join), GroupError::CoordinatorLoadInProgress);
    let sync = bench.sync(sync_of("g", "m", 1, Vec::new()));
    assert_eq!(bench.synced(sync), Err(GroupError::CoordinatorLoadInProgress));
    let commit = bench.commit(&simple("g", 1));
    assert_eq!(bench.committed(commit), Err(GroupError::CoordinatorLoadInProgress));
    assert_eq!(bench.heartbeat("g", "m", 1), Ok(()), "clients take it for fatal");
    assert!(bench.coordinator.describe("g").is_err() && bench.coordinator.list(&[]).is_err());
    let fetch = FetchOffsets { group: "g".into(), topics: None, require_stable: false };
    assert_eq!(bench.coordinator.fetch_offsets(&fetch), Err(GroupError::CoordinatorLoadInProgress));
    let delete = bench.delete_groups(&["g"]);
    assert_eq!(bench.answer(delete), Some(GroupAnswer::DeleteGroups(vec![("g".into(), Err(GroupError::CoordinatorLoadInProgress))])));
    let leave = bench.leave("g", vec![member("m")]);
    assert_eq!(bench.answer(leave), Some(GroupAnswer::Leave(Err(GroupError::CoordinatorLoadInProgress))));
}

#[test]
fn a_stable_group_goes_on_after_a_restart() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 2);
    bench.commit(&commit_of("g", member(&ids[0]), 1, 9));
    bench.land();
    bench.commit(&commit_of("g", member(&ids[0]), 1, 10));
    bench.restart(Settings::default());
    assert_eq!((bench.state("g"), bench.fetched("g", "t", 0)), (State::Stable, Some(9)));
    assert_eq!(bench.heartbeat("g", &ids[1], 1), Ok(()));
    let sync = bench.sync(sync_of("g", &ids[1], 1, Vec::new()));
    assert_eq!(bench.synced(sync), Ok(Bytes::from(ids[1].clone())));
    bench.advance(SESSION_MS as u64 - 1);
    assert_eq!(bench.heartbeat("g", &ids[1], 1), Ok(()));
    bench.advance(1);
    assert_eq!(bench.state("g"), State::PreparingRebalance, "the other one has not shown itself for a session");
}

/// A generation whose assignment did not become durable never was.
#[test]
fn a_rebalance_under_way_is_forgotten() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 1);
    let request = bench.rejoin("g", &ids[0]);
    let waiter = bench.join(request);
    assert_eq!(bench.joined(waiter).generation, 2);
    bench.sync(sync_of("g", &ids[0], 2, vec![(ids[0].clone(), Bytes::from_static(b"x"))]));
    bench.restart(Settings::default());
    assert_eq!(bench.heartbeat("g", &ids[0], 2), Err(GroupError::IllegalGeneration));
    assert_eq!(bench.heartbeat("g", &ids[0], 1), Ok(()));
}

#[test]
fn an_empty_group_and_simple_groups_come_back() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 1);
    bench.leave("g", vec![member(&ids[0])]);
    bench.commit(&simple("s", 1));
    bench.land();
    bench.restart(Settings::default());
    let listed: Vec<_> =
        bench.coordinator.list(&[]).unwrap().into_iter().map(|g| (g.group.to_string(), g.protocol_type.to_string())).collect();
    assert_eq!(listed, [("g".to_string(), "consumer".to_string()), ("s".to_string(), String::new())]);
    let request = bench.request("g");
    let waiter = bench.join(request);
    bench.advance(DELAY_MS);
    assert_eq!(bench.joined(waiter).generation, 3, "generations go on");
}

#[test]
fn a_snapshot_with_the_records_behind_it_is_the_whole_log() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 2);
    bench.commit(&commit_of("g", member(&ids[0]), 1, 9));
    bench.commit(&simple("gone", 1));
    bench.land();
    let snapshot = bench.coordinator.snapshot();
    let at = bench.log.len();
    // What is on its way is not in it.
    bench.commit(&commit_of("g", member(&ids[0]), 1, 10));
    assert_eq!(bench.coordinator.snapshot(), snapshot);
    bench.delete_groups(&["gone"]);
    bench.land();
    let mut quick = Coordinator::new(Settings::default());
    assert_eq!(quick.restore(&snapshot), Ok(at as Offset));
    for (offset, record) in bench.log.iter().enumerate().skip(at) {
        quick.handle_record(offset as Offset, &record.key, record.value.as_deref()).unwrap();
    }
    assert_eq!(quick.snapshot(), bench.coordinator.snapshot());
    bench.restart(Settings::default());
    assert_eq!(quick.snapshot(), bench.coordinator.snapshot());
    quick.handle_loaded(bench.now);
    assert_eq!(quick.describe("g"), bench.coordinator.describe("g"));
}

#[test]
fn records_that_are_no_groups_are_told_apart() {
    let mut coordinator = Coordinator::new(Settings::default());
    // A key of KIP-848: not ours, no error.
    coordinator.handle_record(0, b"\x00\x03\x00\x01g", Some(b"\x00\x00")).unwrap();
    assert_eq!((coordinator.log_end(), coordinator.group_count()), (1, 0));
    coordinator.handle_record(1, b"\x00\x02\x00\x01g", Some(b"\x00")).unwrap_err();
    assert!(coordinator.restore_error(b"junk"));
}

impl Coordinator {
    fn restore_error(&self, bytes: &[u8]) -> bool {
        Coordinator::new(Settings::default()).restore(bytes).is_err()
    }
}

#[test]
fn an_unloaded_coordinator_has_answered_everybody() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 2);
    let join = bench.rejoin("g", &ids[0]);
    let join = bench.join(join);
    let requests = [bench.request("h"), bench.request("h")];
    let waiters = requests.map(|request| bench.join(request));
    bench.advance(2 * DELAY_MS);
    let joined = waiters.map(|waiter| bench.joined(waiter));
    let follower = joined.iter().find(|j| j.leader != j.member_id).unwrap();
    let sync = bench.sync(sync_of("h", &follower.member_id, 1, Vec::new()));
    let commit = bench.commit(&simple("s", 1));
    let delete = bench.delete_groups(&["s", "none"]);
    bench.coordinator.handle_unload();
    bench.pump();
    assert_eq!(bench.join_error(join), GroupError::NotCoordinator);
    assert_eq!(bench.synced(sync), Err(GroupError::NotCoordinator));
    assert_eq!(bench.committed(commit), Err(GroupError::NotCoordinator));
    let outcomes = vec![("s".into(), Err(GroupError::NotCoordinator)), ("none".into(), Err(GroupError::GroupIdNotFound))];
    assert_eq!(bench.answer(delete), Some(GroupAnswer::DeleteGroups(outcomes)));
    assert_eq!((bench.coordinator.waiters(), bench.coordinator.poll_timeout()), (Vec::new(), None));
    assert_eq!(bench.heartbeat("g", &ids[0], 1), Err(GroupError::NotCoordinator));
    // The log may still report.
    bench.land();
    let request = bench.request("g");
    let waiter = bench.join(request);
    assert_eq!(bench.join_error(waiter), GroupError::NotCoordinator);
}

/// A record that nobody has fetched yet is not appended for a coordinator that is no more: the next one would not know of it.
#[test]
fn an_unloaded_coordinator_appends_nothing() {
    let mut bench = Bench::new();
    let waiter = bench.waiter();
    bench.coordinator.handle_commit(waiter, &simple("g", 1), bench.now);
    bench.coordinator.handle_unload();
    bench.pump();
    assert!(bench.appends.is_empty());
    assert_eq!(bench.committed(waiter), Err(GroupError::NotCoordinator));
}

/// A wall clock that is set forward ends no session.
#[test]
fn sessions_run_by_the_steady_clock() {
    let mut bench = Bench::new();
    let ids = bench.stable("g", 1);
    bench.now.wall += 3_600_000;
    bench.advance(SESSION_MS as u64 - 1);
    assert_eq!(bench.heartbeat("g", &ids[0], 1), Ok(()));
}
