//! Where replicas of new partitions go.

use super::*;
use crate::cluster::placement::extremes;
use crate::cluster::{CatalogueView, Topic};

fn racked(nodes: &[(NodeId, Option<&str>, u32)]) -> Catalogue {
    let mut catalogue = Catalogue::new();
    for (node, rack, shards) in nodes {
        let change = |r: &mut Registration| {
            (r.rack, r.shards) = (rack.map(str::to_owned), *shards);
            r.clients.truncate(*shards as usize);
        };
        catalogue.apply(&register_with(*node, change)).unwrap();
    }
    catalogue
}

/// A topic whose id looks like one that was drawn.
fn create_drawn(number: u64, partitions: u32, replication_factor: u16) -> Command {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    id[8..].copy_from_slice(&number.wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(17).to_le_bytes());
    Command::CreateTopic { id: TopicId(id), name: format!("d{number}"), partitions, replication_factor, config: vec![] }
}

/// The most and the least of what nodes have: leaders of a node, leaders of a shard, replicas.
fn spread(view: &CatalogueView) -> [(u64, u64); 3] {
    let loads: Vec<_> = view.nodes().map(|node| view.load(node.id()).unwrap()).collect();
    [
        extremes(loads.iter().map(|load| load.all_leaders())),
        extremes(loads.iter().flat_map(|load| load.leaders.iter().copied())),
        extremes(loads.iter().map(|load| load.replicas)),
    ]
}

fn racks_of(view: &CatalogueView, topic: &Topic) -> Vec<usize> {
    let rack = |node: NodeId| view.node(node).unwrap().registration.rack.clone();
    let count = |record: &PartitionRecord| record.replicas.iter().map(|r| rack(r.node)).collect::<std::collections::BTreeSet<_>>().len();
    view.partitions_of_topic(&topic.id).map(|record| count(record)).collect()
}

#[test]
fn a_topic_is_even_over_nodes_and_shards() {
    for (nodes, shards, replicas) in [(3u32, 2u32, 3u16), (3, 2, 2), (4, 2, 3), (5, 4, 3), (6, 1, 2), (3, 3, 1)] {
        let mut catalogue = racked(&(0..nodes).map(|node| (node, None, shards)).collect::<Vec<_>>());
        for number in 0..6 {
            catalogue.apply(&create_drawn(number, nodes * shards, replicas)).unwrap();
            let [of_nodes, of_shards, of_replicas] = spread(catalogue.view());
            let name = format!("{nodes} nodes, {shards} shards, {replicas} replicas, topic {number}");
            assert_eq!(of_nodes.0, of_nodes.1, "{name}");
            assert!(of_replicas.0 - of_replicas.1 <= 1, "{name}: {of_replicas:?}");
            assert!(of_shards.0 - of_shards.1 <= 1 + number / 2, "{name}: {of_shards:?}");
        }
    }
}

#[test]
fn many_small_topics_are_even_over_nodes() {
    let mut catalogue = racked(&[(1, None, 2), (2, None, 2), (3, None, 2), (4, None, 2)]);
    for number in 0..101 {
        catalogue.apply(&create_drawn(number, 1, 3)).unwrap();
        let [of_nodes, _, of_replicas] = spread(catalogue.view());
        assert!(of_nodes.0 - of_nodes.1 <= 1 && of_replicas.0 - of_replicas.1 <= 2, "{number}: {of_nodes:?} {of_replicas:?}");
    }
}

#[test]
fn replicas_are_spread_over_racks() {
    let mut catalogue =
        racked(&[(1, Some("a"), 2), (2, Some("a"), 2), (3, Some("b"), 2), (4, Some("b"), 2), (5, Some("c"), 2), (6, Some("c"), 2)]);
    for (number, replicas, racks) in [(1, 3, 3), (2, 2, 2), (3, 5, 3)] {
        catalogue.apply(&create_drawn(number, 24, replicas)).unwrap();
        let view = catalogue.view();
        assert_eq!(racks_of(view, view.topic(&format!("d{number}")).unwrap()), [racks; 24]);
        let [of_nodes, _, of_replicas] = spread(view);
        assert!(of_nodes.0 - of_nodes.1 <= 1 && of_replicas.0 - of_replicas.1 <= 1, "{of_nodes:?} {of_replicas:?}");
    }
    // Racks of different size: the spread over racks comes first, within a rack it is even.
    let mut catalogue = racked(&[(1, Some("a"), 2), (2, Some("a"), 2), (3, Some("b"), 2)]);
    catalogue.apply(&create_drawn(1, 12, 2)).unwrap();
    assert_eq!(racks_of(catalogue.view(), catalogue.view().topic("d1").unwrap()), [2; 12]);
    let replicas = [1, 2, 3].map(|node| catalogue.view().load(node).unwrap().replicas);
    assert_eq!(replicas, [6, 6, 12]);
}

#[test]
fn new_partitions_go_on_where_the_topic_is() {
    let mut catalogue = racked(&[(1, None, 2), (2, None, 2), (3, None, 2)]);
    catalogue.apply(&create_drawn(1, 3, 2)).unwrap();
    let id = catalogue.view().topic("d1").unwrap().id;
    let before: Vec<_> = catalogue.view().partitions_of_topic(&id).cloned().collect();
    catalogue.apply(&Command::AlterTopic { id, partitions: Some(12), config: vec![] }).unwrap();
    let after: Vec<_> = catalogue.view().partitions_of_topic(&id).cloned().collect();
    assert_eq!((after.len(), &after[..3]), (12, &before[..]));
    let [of_nodes, of_shards, of_replicas] = spread(catalogue.view());
    assert_eq!((of_nodes, of_replicas), ((4, 4), (8, 8)));
    assert!(of_shards.0 - of_shards.1 <= 1, "{of_shards:?}");
}

#[test]
fn new_partitions_even_out_a_topic_that_is_on_few_nodes() {
    let mut catalogue = racked(&[(1, None, 2), (2, None, 2)]);
    catalogue.apply(&create_drawn(1, 4, 2)).unwrap();
    catalogue.apply(&without_rack(3)).unwrap();
    catalogue.apply(&without_rack(4)).unwrap();
    let id = catalogue.view().topic("d1").unwrap().id;
    catalogue.apply(&Command::AlterTopic { id, partitions: Some(12), config: vec![] }).unwrap();
    let [of_nodes, of_shards, of_replicas] = spread(catalogue.view());
    assert_eq!((of_nodes, of_replicas), ((3, 3), (6, 6)));
    assert!(of_shards.0 - of_shards.1 <= 1, "{of_shards:?}");
}

fn without_rack(node: NodeId) -> Command {
    register_with(node, |r| r.rack = None)
}

/// It would get all of a new topic's leaders otherwise.
#[test]
fn a_new_node_gets_its_part_of_a_topic_and_no_more() {
    let mut catalogue = racked(&[(1, None, 2), (2, None, 2), (3, None, 2)]);
    catalogue.apply(&create_drawn(1, 30, 3)).unwrap();
    catalogue.apply(&register(4)).unwrap();
    catalogue.apply(&create_drawn(2, 8, 3)).unwrap();
    assert_eq!(catalogue.view().load(4).unwrap().all_leaders(), 2);
}

#[test]
fn nodes_that_are_not_there_come_last_and_are_not_in_sync() {
    let mut catalogue = racked(&[(1, None, 2), (2, None, 2), (3, None, 2), (4, None, 2)]);
    fence(&mut catalogue, 2);
    let node_epoch = epoch(&catalogue, 3);
    catalogue.apply(&Command::DrainNode { node: 3, node_epoch }).unwrap();
    catalogue.apply(&create(1, 6, 3, &[])).unwrap();
    for p in 0..6 {
        let record = record(&catalogue, at(1, p));
        assert!(record.replica(2).is_none() && matches!(record.leader, Some(1 | 4)), "{record:?}");
    }
    catalogue.apply(&create(2, 2, 4, &[("min.insync.replicas", "4")])).unwrap();
    for p in 0..2 {
        let record = record(&catalogue, at(2, p));
        assert!(!record.in_sync(2) && record.eligible == [2] && record.isr.len() == 3, "{record:?}");
    }
    check_refusals(&mut catalogue, vec![(create(3, 1, 5, &[]), Code::InvalidReplicationFactor)]);
}

#[test]
fn larger_nodes_lead_more() {
    let mut catalogue = racked(&[(1, None, 1), (2, None, 2)]);
    catalogue.apply(&create_drawn(1, 12, 2)).unwrap();
    assert_eq!([1, 2].map(|node| catalogue.view().load(node).unwrap().all_leaders()), [4, 8]);
}
