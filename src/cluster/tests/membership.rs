//! Nodes come, stop, fail and go.

use super::*;
use crate::cluster::{ChangedPartitions, Election, NodeState, Role};
use crate::limits;
use crate::types::Durability;

/// Three nodes, a topic that is `durable` and one that is not, all led by node 1.
fn three() -> Catalogue {
    let mut catalogue = cluster([1, 2, 3]);
    catalogue.apply(&create(1, 1, 3, &[("min.insync.replicas", "2")])).unwrap();
    catalogue.apply(&create(2, 1, 3, &[("durability", "memory")])).unwrap();
    arrange(&mut catalogue, at(1, 0), &[1, 2, 3]);
    arrange(&mut catalogue, at(2, 0), &[1, 2, 3]);
    catalogue
}

#[test]
fn each_refusal_has_its_code_and_changes_nothing() {
    let mut catalogue = three();
    fence(&mut catalogue, 3);
    let refusals = vec![
        (register_with(1, |r| r.incarnation = [77; 16]), Code::DuplicateBrokerRegistration),
        (register_with(4, |r| r.incarnation = registration(1).incarnation), Code::DuplicateBrokerRegistration),
        (register_with(4, |r| r.cluster = [1; 16]), Code::InconsistentClusterId),
        (register_with(1, |r| r.cluster = [1; 16]), Code::InconsistentClusterId),
        (register_with(4, |r| r.protocol = 0), Code::UnsupportedVersion),
        (register_with(4, |r| r.shards = 0), Code::InvalidRequest),
        (Command::FenceNode { node: 1, node_epoch: 9 }, Code::StaleBrokerEpoch),
        (Command::FenceNode { node: 3, node_epoch: 3 }, Code::StaleBrokerEpoch),
        (Command::FenceNode { node: 9, node_epoch: 1 }, Code::BrokerIdNotRegistered),
        (Command::DrainNode { node: 1, node_epoch: 0 }, Code::StaleBrokerEpoch),
        (Command::DrainNode { node: 3, node_epoch: 3 }, Code::StaleBrokerEpoch),
        (Command::DrainNode { node: 9, node_epoch: 1 }, Code::BrokerIdNotRegistered),
        (Command::RetireNode { node: 9, retiring: true }, Code::BrokerIdNotRegistered),
        (Command::RemoveNode { node: 9 }, Code::BrokerIdNotRegistered),
        (Command::RemoveNode { node: 1 }, Code::InvalidRequest),
        (Command::RemoveNode { node: 3 }, Code::InvalidRequest),
        (Command::NodeStarted, Code::InvalidRequest),
        (Command::SnapshotCluster { cluster: [9; 16], last_node_epoch: 1 }, Code::InvalidRequest),
        (Command::SnapshotNode(Box::new(node(&catalogue, 1).clone())), Code::InvalidRequest),
    ];
    check_refusals(&mut catalogue, refusals);
}

#[test]
fn a_refusal_names_both_clusters_and_both_lives() {
    let mut catalogue = three();
    let other = catalogue.apply(&register_with(4, |r| r.cluster = [1; 16])).unwrap_err().message;
    for id in [[1; 16], [9; 16]] {
        assert!(other.contains(&uuid::Uuid::from_bytes(id).to_string()), "{other}");
    }
    let other = catalogue.apply(&register_with(1, |r| r.incarnation = [77; 16])).unwrap_err().message;
    for id in [[77; 16], registration(1).incarnation] {
        assert!(other.contains(&uuid::Uuid::from_bytes(id).to_string()), "{other}");
    }
}

#[test]
fn a_fenced_node_leads_nothing_and_is_in_no_isr() {
    let mut catalogue = three();
    let node_epoch = epoch(&catalogue, 1);
    let applied = catalogue.apply(&Command::FenceNode { node: 1, node_epoch }).unwrap();
    assert_eq!(applied, Applied::NodeChanged { node: 1, changed: ChangedPartitions::These(vec![at(1, 0), at(2, 0)]) });
    for topic in [1, 2] {
        let record = record(&catalogue, at(topic, 0));
        assert_eq!((record.leader, sorted(&record.isr)), (Some(2), vec![2, 3]));
        assert_eq!(catalogue.view().role(1, &at(topic, 0)), Some(Role::Follower));
        assert_eq!(catalogue.view().role(2, &at(topic, 0)), Some(Role::Leader));
    }
    assert_eq!(catalogue.view().partitions_on(2).filter(|(_, role, _)| *role == Role::Leader).count(), 2);
    fence(&mut catalogue, 2);
    assert_eq!((record(&catalogue, at(1, 0)).leader, record(&catalogue, at(1, 0)).eligible), (Some(3), vec![2]));
    fence(&mut catalogue, 3);
    assert_eq!(record(&catalogue, at(1, 0)).leader, None);
    catalogue.apply(&register(1)).unwrap();
    assert_eq!(record(&catalogue, at(1, 0)).leader, None, "it lacks what the others acknowledged");
    catalogue.apply(&register(2)).unwrap();
    assert_eq!(record(&catalogue, at(1, 0)).leader, Some(2), "it has everything below the watermark");
}

/// Still thought live: fenced in the same command.
#[test]
fn a_node_that_is_registered_anew_has_lost_its_leaderships() {
    let mut catalogue = three();
    let before = record(&catalogue, at(1, 0));
    assert!(matches!(catalogue.apply(&register(1)).unwrap(), Applied::NodeRegistered { node: 1, node_epoch: 4, .. }));
    let after = record(&catalogue, at(1, 0));
    assert_eq!((after.leader, after.leader_epoch, sorted(&after.isr)), (Some(2), before.leader_epoch + 1, vec![2, 3]));
    assert_eq!(after.replica(1), before.replica(1), "it lost nothing");
    // What was sent under the old registration joins nobody.
    let mut stale = proposal(&catalogue, at(1, 0), &[], &[1]);
    if let Command::ChangeIsr { change, .. } = &mut stale {
        change.join[0].node_epoch = 1;
    }
    check_refusals(&mut catalogue, vec![(stale, Code::StaleBrokerEpoch)]);
    catalogue.apply(&proposal(&catalogue, at(1, 0), &[], &[1])).unwrap();
    assert_eq!(sorted(&record(&catalogue, at(1, 0)).isr), [1, 2, 3]);
}

#[test]
fn a_node_that_is_alone_leads_in_a_new_epoch_at_each_start() {
    let mut catalogue = cluster([0]);
    catalogue.apply(&create(1, 2, 1, &[])).unwrap();
    for start in 1..4 {
        catalogue.apply(&register(0)).unwrap();
        let record = record(&catalogue, at(1, 1));
        assert_eq!((record.leader, record.leader_epoch, &record.isr[..]), (Some(0), start, &[0][..]));
    }
}

#[test]
fn a_wiped_disk_is_another_life_of_each_replica() {
    let mut catalogue = three();
    fence(&mut catalogue, 1);
    let before = record(&catalogue, at(1, 0));
    catalogue.apply(&register_with(1, |r| r.incarnation = [77; 16])).unwrap();
    let after = record(&catalogue, at(1, 0));
    assert!(after.replica(1).unwrap().incarnation > before.replica(1).unwrap().incarnation);
    // The old life comes back (another disk, the same id): refused while the new one is there.
    check_refusals(&mut catalogue, vec![(register(1), Code::DuplicateBrokerRegistration)]);
    // Wiped as the last one that had everything: nobody leads, nothing is guessed.
    let mut catalogue = cluster([1]);
    catalogue.apply(&create(1, 1, 1, &[("durability", "memory")])).unwrap();
    fence(&mut catalogue, 1);
    catalogue.apply(&register_with(1, |r| r.incarnation = [77; 16])).unwrap();
    assert_eq!((record(&catalogue, at(1, 0)).leader, record(&catalogue, at(1, 0)).eligible), (None, vec![]));
}

#[test]
fn after_an_unclean_stop_only_synced_replicas_are_the_same() {
    let mut catalogue = three();
    let before = [1, 2].map(|topic| record(&catalogue, at(topic, 0)).replica(2).unwrap());
    catalogue.apply(&register_with(2, |r| r.clean_stop = false)).unwrap();
    let after = [1, 2].map(|topic| record(&catalogue, at(topic, 0)).replica(2).unwrap());
    assert_eq!((after[0], after[1] != before[1]), (before[0], true));
    // A node's default counts for topics without a durability of their own: that of the run that ended.
    let written = |r: &mut Registration| r.durability = Durability::Written;
    catalogue.apply(&register_with(2, written)).unwrap();
    let before = record(&catalogue, at(1, 0)).replica(2);
    assert_eq!(before, Some(after[0]), "a clean stop");
    catalogue.apply(&register_with(2, |r| r.clean_stop = false)).unwrap();
    assert_ne!(record(&catalogue, at(1, 0)).replica(2), before);
}

/// What was asked for with `memory`: after a crash of all, what the last one has is what there is.
#[test]
fn the_last_replica_below_durable_leads_after_an_unclean_stop_in_a_marked_epoch() {
    let mut catalogue = three();
    for node in [1, 2, 3] {
        fence(&mut catalogue, node);
    }
    let eligible = record(&catalogue, at(2, 0)).eligible;
    assert_eq!(eligible, [3]);
    catalogue.apply(&register_with(1, |r| r.clean_stop = false)).unwrap();
    assert_eq!(record(&catalogue, at(2, 0)).leader, None, "3 may have more");
    catalogue.apply(&register_with(3, |r| r.clean_stop = false)).unwrap();
    let record = record(&catalogue, at(2, 0));
    assert_eq!((record.leader, &record.isr[..], record.unclean_epoch), (Some(3), &[3][..], Some(record.leader_epoch)));
}

/// The last one with everything came back empty: who had left before waits for an administrator, since another may have more.
#[test]
fn a_replica_that_had_left_does_not_lead_after_an_unclean_stop() {
    let mut catalogue = three();
    for node in [2, 1] {
        fence(&mut catalogue, node);
    }
    assert_eq!(record(&catalogue, at(2, 0)).isr, [3]);
    fence(&mut catalogue, 3);
    catalogue.apply(&register_with(3, |r| r.incarnation = [77; 16])).unwrap();
    let lost = record(&catalogue, at(2, 0));
    assert_eq!((lost.leader, lost.isr.len(), lost.eligible.len()), (None, 0, 0));
    catalogue.apply(&register_with(2, |r| r.clean_stop = false)).unwrap();
    assert_eq!(record(&catalogue, at(2, 0)).leader, None);
    catalogue.apply(&Command::ElectLeader { partition: at(2, 0), election: Election::Unclean(2) }).unwrap();
    assert_eq!(record(&catalogue, at(2, 0)).leader, Some(2));
}

#[test]
fn a_draining_node_hands_over_what_it_can() {
    let mut catalogue = three();
    catalogue.apply(&create(3, 1, 1, &[])).unwrap();
    arrange_alone(&mut catalogue, at(3, 0), 1);
    let node_epoch = epoch(&catalogue, 1);
    catalogue.apply(&Command::DrainNode { node: 1, node_epoch }).unwrap();
    assert_eq!(node(&catalogue, 1).state, NodeState::Draining);
    let moved = record(&catalogue, at(1, 0));
    assert_eq!((moved.leader, moved.isr.len()), (Some(2), 3), "it stays in sync until it is gone");
    assert_eq!(record(&catalogue, at(3, 0)).leader, Some(1), "nobody else may lead this one");
    // It is not given leaderships back, and leads only as long as nobody else may.
    catalogue.apply(&Command::BalanceLeaders { most: 100 }).unwrap();
    assert_eq!(record(&catalogue, at(1, 0)).leader, Some(2));
    for node in [2, 3] {
        fence(&mut catalogue, node);
    }
    assert_eq!(record(&catalogue, at(1, 0)).leader, Some(1));
    catalogue.apply(&register(2)).unwrap();
    catalogue.apply(&proposal(&catalogue, at(1, 0), &[], &[2])).unwrap();
    assert_eq!(record(&catalogue, at(1, 0)).leader, Some(2));
    catalogue.apply(&register(1)).unwrap();
    assert_eq!(node(&catalogue, 1).state, NodeState::Live);
}

/// The only replica, on this node: it joins first where it is elsewhere.
fn arrange_alone(catalogue: &mut Catalogue, partition: TopicPartition, node: NodeId) {
    if record(catalogue, partition).leader == Some(node) {
        return;
    }
    catalogue.apply(&Command::Reassign { partition, target: vec![node] }).unwrap();
    catalogue.apply(&proposal(catalogue, partition, &[], &[node])).unwrap();
    let record = record(catalogue, partition);
    assert_eq!((record.leader, record.replicas.len(), record.target), (Some(node), 1, None));
}

#[test]
fn a_node_without_replicas_can_be_removed() {
    let mut catalogue = three();
    catalogue.apply(&register(4)).unwrap();
    check_refusals(&mut catalogue, vec![(Command::RemoveNode { node: 4 }, Code::InvalidRequest)]);
    catalogue.apply(&Command::RetireNode { node: 4, retiring: true }).unwrap();
    catalogue.apply(&register(4)).unwrap();
    assert!(node(&catalogue, 4).retiring, "a restart does not change that");
    check_refusals(&mut catalogue, vec![(create(7, 1, 4, &[]), Code::InvalidReplicationFactor)]);
    catalogue.apply(&Command::RemoveNode { node: 4 }).unwrap();
    assert!(catalogue.view().node(4).is_none() && catalogue.view().load(4).is_none());
    catalogue.apply(&Command::RetireNode { node: 3, retiring: true }).unwrap();
    check_refusals(&mut catalogue, vec![(Command::RemoveNode { node: 3 }, Code::InvalidRequest)]);
    let mut alone = cluster([5]);
    alone.apply(&Command::RetireNode { node: 5, retiring: true }).unwrap();
    check_refusals(&mut alone, vec![(Command::RemoveNode { node: 5 }, Code::InvalidRequest)]);
}

#[test]
fn a_cluster_has_a_bound() {
    let mut catalogue = cluster([]);
    let numbered = |node: NodeId| {
        register_with(node, |r| {
            r.incarnation = [0; 16];
            r.incarnation[..4].copy_from_slice(&node.to_le_bytes());
        })
    };
    for node in 0..limits::MAX_NODES as NodeId {
        catalogue.apply(&numbered(node)).unwrap();
    }
    check_refusals(&mut catalogue, vec![(numbered(limits::MAX_NODES as NodeId), Code::LimitReached)]);
}

#[test]
fn of_many_changes_only_the_number_is_told() {
    let mut catalogue = cluster([1, 2]);
    catalogue.apply(&create(1, limits::MAX_NAMED_PARTITIONS as u32 + 1, 2, &[])).unwrap();
    let before = catalogue.view().clone();
    let applied = catalogue.apply(&Command::FenceNode { node: 2, node_epoch: 2 }).unwrap();
    assert_eq!(applied, Applied::NodeChanged { node: 2, changed: ChangedPartitions::Many });
    assert_eq!(catalogue.view().partitions_changed_since(&before).len(), limits::MAX_NAMED_PARTITIONS + 1);
    assert!(catalogue.view().changes_since(&before).altered.is_empty(), "the topic is the same");
}
