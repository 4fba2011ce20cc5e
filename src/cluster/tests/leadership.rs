//! The commands of single partitions.

use super::*;
use crate::cluster::{ChangedPartitions, Election};
use crate::limits;
use crate::replication::Replica;

/// Four nodes, the last one empty; one partition on [1, 2, 3].
fn four() -> Catalogue {
    let mut catalogue = cluster([1, 2, 3]);
    catalogue.apply(&create(1, 2, 3, &[("min.insync.replicas", "2")])).unwrap();
    catalogue.apply(&register(4)).unwrap();
    arrange(&mut catalogue, at(1, 0), &[1, 2, 3]);
    catalogue
}

fn elect(partition: TopicPartition, election: Election) -> Command {
    Command::ElectLeader { partition, election }
}

fn reassign(partition: TopicPartition, target: &[NodeId]) -> Command {
    Command::Reassign { partition, target: target.to_vec() }
}

#[test]
fn each_refusal_has_its_code_and_changes_nothing() {
    let mut catalogue = four();
    catalogue.apply(&register(5)).unwrap();
    fence(&mut catalogue, 5);
    catalogue.apply(&register(6)).unwrap();
    catalogue.apply(&Command::RetireNode { node: 6, retiring: true }).unwrap();
    fence(&mut catalogue, 3);
    let p = at(1, 0);
    let good = proposal(&catalogue, p, &[2], &[]);
    let changed = |change: fn(&mut IsrChange)| {
        let mut other = good.clone();
        if let Command::ChangeIsr { change: proposal, .. } = &mut other {
            change(proposal);
        }
        other
    };
    let lost = |node, incarnation| Command::ReplicaLost { partition: p, replica: Replica { node, incarnation } };
    let place = |node, shard| Command::PlaceOnShard { partition: p, node, shard };
    let many: Vec<NodeId> = (0..=limits::MAX_REPLICAS as NodeId).collect();
    let mut refusals = vec![
        (changed(|c| c.version += 1), Code::InvalidUpdateVersion),
        (changed(|c| c.leader = 2), Code::NotLeader),
        (changed(|c| c.leader_epoch += 1), Code::NotLeader),
        (changed(|c| c.leave = vec![1]), Code::InvalidRequest),
        (proposal(&catalogue, p, &[], &[3]), Code::StaleBrokerEpoch),
        (lost(9, 0), Code::InvalidReplicaAssignment),
        (lost(1, 77), Code::IneligibleReplica),
        (elect(p, Election::Preferred), Code::ElectionNotNeeded),
        (elect(p, Election::HandOver(1)), Code::ElectionNotNeeded),
        (elect(p, Election::HandOver(3)), Code::EligibleLeadersNotAvailable),
        (elect(p, Election::HandOver(4)), Code::InvalidReplicaAssignment),
        (elect(p, Election::Unclean(2)), Code::InvalidRequest),
        (elect(at(1, 9), Election::Preferred), Code::UnknownTopicOrPartition),
        (elect(at(9, 0), Election::Preferred), Code::UnknownTopicOrPartition),
        (reassign(p, &[]), Code::InvalidReplicaAssignment),
        (reassign(p, &[1, 1]), Code::InvalidReplicaAssignment),
        (reassign(p, &[1]), Code::InvalidConfig),
        (reassign(p, &[1, 9]), Code::BrokerIdNotRegistered),
        (reassign(p, &[1, 5]), Code::InvalidReplicaAssignment),
        (reassign(p, &[1, 6]), Code::InvalidReplicaAssignment),
        (reassign(p, &many), Code::InvalidReplicaAssignment),
        (reassign(at(9, 0), &[1, 2]), Code::UnknownTopicOrPartition),
        (place(4, Some(0)), Code::InvalidReplicaAssignment),
        (place(1, Some(2)), Code::InvalidReplicaAssignment),
        (place(9, Some(0)), Code::BrokerIdNotRegistered),
    ];
    refusals.push((
        Command::AlterTopic { id: topic(1), partitions: None, config: vec![("min.insync.replicas".into(), Some("4".into()))] },
        Code::InvalidConfig,
    ));
    check_refusals(&mut catalogue, refusals);
    // A request whose answer was lost comes again.
    let before = record(&catalogue, p);
    catalogue.apply(&reassign(p, &[1, 2, 3])).unwrap();
    assert_eq!(record(&catalogue, p), before);
    catalogue.apply(&good).unwrap();
    check_refusals(&mut catalogue, vec![(good, Code::InvalidUpdateVersion)]);
}

#[test]
fn a_preferred_leader_that_is_not_in_sync_does_not_lead() {
    let mut catalogue = four();
    let p = at(1, 0);
    fence(&mut catalogue, 1);
    check_refusals(&mut catalogue, vec![(elect(p, Election::Preferred), Code::PreferredLeaderNotAvailable)]);
    catalogue.apply(&register(1)).unwrap();
    check_refusals(&mut catalogue, vec![(elect(p, Election::Preferred), Code::PreferredLeaderNotAvailable)]);
    catalogue.apply(&proposal(&catalogue, p, &[], &[1])).unwrap();
    let before = record(&catalogue, p).leader_epoch;
    let applied = catalogue.apply(&elect(p, Election::Preferred)).unwrap();
    assert_eq!(applied, Applied::PartitionsChanged(ChangedPartitions::These(vec![p])));
    assert_eq!((record(&catalogue, p).leader, record(&catalogue, p).leader_epoch), (Some(1), before + 1));
}

#[test]
fn leaders_are_balanced_so_many_at_a_time() {
    let mut catalogue = cluster([1, 2, 3]);
    catalogue.apply(&create(1, 9, 3, &[])).unwrap();
    let preferred = |catalogue: &Catalogue| {
        (0..9).filter(|p| record(catalogue, at(1, *p)).leader == Some(record(catalogue, at(1, *p)).replicas[0].node)).count()
    };
    fence(&mut catalogue, 1);
    catalogue.apply(&register(1)).unwrap();
    for p in 0..9 {
        catalogue.apply(&proposal(&catalogue, at(1, p), &[], &[1])).unwrap();
    }
    assert_eq!(preferred(&catalogue), 6);
    for expected in [8, 9, 9] {
        catalogue.apply(&Command::BalanceLeaders { most: 2 }).unwrap();
        assert_eq!(preferred(&catalogue), expected);
    }
}

#[test]
fn an_unclean_election_takes_an_administrators_word() {
    let mut catalogue = four();
    let p = at(1, 0);
    for node in [3, 2, 1] {
        fence(&mut catalogue, node);
    }
    assert_eq!(record(&catalogue, p).leader, None);
    check_refusals(&mut catalogue, vec![(elect(p, Election::Unclean(3)), Code::StaleBrokerEpoch)]);
    catalogue.apply(&register(3)).unwrap();
    assert_eq!(record(&catalogue, p).leader, None);
    catalogue.apply(&elect(p, Election::Unclean(3))).unwrap();
    let record = record(&catalogue, p);
    assert_eq!((record.leader, record.unclean_epoch), (Some(3), Some(record.leader_epoch)));
}

#[test]
fn a_lost_replica_leaves_at_once_and_once() {
    let mut catalogue = four();
    let p = at(1, 0);
    let replica = record(&catalogue, p).replica(1).unwrap();
    catalogue.apply(&Command::ReplicaLost { partition: p, replica }).unwrap();
    let after = record(&catalogue, p);
    assert_eq!((after.leader, sorted(&after.isr), after.eligible.len()), (Some(2), vec![2, 3], 0));
    check_refusals(&mut catalogue, vec![(Command::ReplicaLost { partition: p, replica }, Code::IneligibleReplica)]);
}

#[test]
fn a_reassignment_ends_with_the_join_that_completes_it() {
    let mut catalogue = four();
    let p = at(1, 0);
    catalogue.apply(&Command::PlaceOnShard { partition: p, node: 1, shard: Some(0) }).unwrap();
    catalogue.apply(&reassign(p, &[4, 2])).unwrap();
    let under_way = record(&catalogue, p);
    assert_eq!((under_way.replicas.len(), under_way.target.as_deref(), under_way.leader), (4, Some(&[4, 2][..]), Some(1)));
    assert_eq!(catalogue.view().topic("t1").unwrap().replication_factor, 2, "the least of its partitions");
    catalogue.apply(&proposal(&catalogue, p, &[], &[4])).unwrap();
    let done = record(&catalogue, p);
    assert_eq!((done.leader, &done.isr[..], done.replicas.len(), done.target), (Some(4), &[2, 4][..], 2, None));
    // Who has gone comes back as another replica, on the shard that follows from the id.
    catalogue.apply(&Command::Reassign { partition: p, target: vec![4, 2, 1] }).unwrap();
    let again = record(&catalogue, p).replica(1).unwrap();
    assert!(again.incarnation > under_way.replica(1).unwrap().incarnation);
    assert_eq!(catalogue.view().shard_on(1, &p), Some(topic(1).shard_of(0, 2)));
    assert_eq!(catalogue.view().topic("t1").unwrap().replication_factor, 3);
    // Taken back before it joined.
    catalogue.apply(&reassign(p, &[4, 2])).unwrap();
    let back = record(&catalogue, p);
    assert_eq!((back.replicas.len(), back.target), (2, None));
}

#[test]
fn a_topic_of_a_node_that_was_alone_gets_replicas() {
    let mut catalogue = cluster([1]);
    catalogue.apply(&create(1, 3, 1, &[])).unwrap();
    catalogue.apply(&register(2)).unwrap();
    let factor = |catalogue: &Catalogue| catalogue.view().topic("t1").unwrap().replication_factor;
    for p in 0..3 {
        assert_eq!(factor(&catalogue), 1, "the least of its partitions");
        catalogue.apply(&reassign(at(1, p), &[1, 2])).unwrap();
        catalogue.apply(&proposal(&catalogue, at(1, p), &[], &[2])).unwrap();
        assert_eq!(record(&catalogue, at(1, p)).isr, [1, 2]);
    }
    assert_eq!(factor(&catalogue), 2);
    let alter = Command::AlterTopic { id: topic(1), partitions: Some(4), config: vec![("min.insync.replicas".into(), Some("2".into()))] };
    catalogue.apply(&alter).unwrap();
    assert_eq!(record(&catalogue, at(1, 3)).replicas.len(), 2);
}

/// With one, the watermark would move while an eligible one does not have what comes.
#[test]
fn fewer_in_sync_replicas_asked_for_leave_nobody_eligible() {
    let mut catalogue = four();
    let p = at(1, 0);
    for node in [3, 2] {
        fence(&mut catalogue, node);
    }
    assert_eq!((record(&catalogue, p).isr, record(&catalogue, p).eligible), (vec![1], vec![2]));
    let lower = Command::AlterTopic { id: topic(1), partitions: None, config: vec![("min.insync.replicas".into(), Some("1".into()))] };
    let mut early = catalogue.clone();
    early.apply(&lower).unwrap();
    assert!(record(&early, p).eligible.is_empty());
    // Lowered while nobody leads, it counts as soon as somebody does.
    fence(&mut catalogue, 1);
    catalogue.apply(&lower).unwrap();
    assert_eq!(record(&catalogue, p).eligible, [2, 1]);
    catalogue.apply(&register(1)).unwrap();
    assert_eq!((record(&catalogue, p).leader, record(&catalogue, p).eligible), (Some(1), vec![]));
}

#[test]
fn a_partition_can_be_placed_on_another_shard() {
    let mut catalogue = four();
    // Shard 0 by its id.
    let p = at(1, 1);
    arrange(&mut catalogue, p, &[1, 2, 3]);
    let own = topic(1).shard_of(1, 2);
    assert_eq!((catalogue.view().shard_on(1, &p), catalogue.view().shard_on(9, &p)), (Some(own), None));
    let before = catalogue.view().load(1).unwrap().clone();
    catalogue.apply(&Command::PlaceOnShard { partition: p, node: 1, shard: Some(1 - own) }).unwrap();
    assert_eq!((catalogue.view().shard_on(1, &p), catalogue.view().shard_on(2, &p)), (Some(1 - own), Some(own)));
    assert_ne!(catalogue.view().load(1).unwrap().leaders, before.leaders);
    // A node that comes back with fewer shards has no such shard any more.
    fence(&mut catalogue, 1);
    let smaller = |r: &mut Registration| {
        r.shards = 1;
        r.clients.truncate(1);
    };
    catalogue.apply(&register_with(1, smaller)).unwrap();
    catalogue.apply(&register(1)).unwrap();
    assert_eq!(catalogue.view().shard_on(1, &p), Some(own));
}
