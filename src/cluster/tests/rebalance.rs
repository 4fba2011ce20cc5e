//! Plans for a cluster that changes.

use proptest::prelude::*;

use super::*;
use crate::cluster::placement::extremes;
use crate::cluster::rebalance::{plan_decommission, plan_rebalance};
use crate::cluster::view::goal;
use crate::cluster::{CatalogueView, NodeLoad};

fn loads(view: &CatalogueView, without: Option<NodeId>) -> Vec<NodeLoad> {
    view.nodes().filter(|node| Some(node.id()) != without).map(|node| view.load(node.id()).unwrap().clone()).collect()
}

fn goals(view: &CatalogueView) -> Vec<Vec<NodeId>> {
    view.all_partitions().map(|(_, record)| goal(record)).collect()
}

/// How many replicas are on other nodes.
fn moved(before: &[Vec<NodeId>], after: &[Vec<NodeId>]) -> usize {
    before.iter().zip(after).map(|(before, after)| after.iter().filter(|node| !before.contains(node)).count()).sum()
}

fn apply_all(catalogue: &mut Catalogue, plan: &[Command]) {
    for command in plan {
        catalogue.apply(command).unwrap_or_else(|refusal| panic!("{command:?}: {refusal}"));
    }
}

/// Whoever is to join has shipped everything.
fn catch_up(catalogue: &mut Catalogue) {
    let all: Vec<_> = catalogue.view().all_partitions().map(|(at, _)| at).collect();
    for at in all {
        let record = record(catalogue, at);
        let join: Vec<_> = record.replicas.iter().map(|r| r.node).filter(|node| !record.in_sync(*node)).collect();
        if !join.is_empty() {
            let command = proposal(catalogue, at, &[], &join);
            catalogue.apply(&command).unwrap();
        }
    }
    catalogue.apply(&Command::BalanceLeaders { most: u32::MAX }).unwrap();
}

fn check_even(view: &CatalogueView, without: Option<NodeId>) {
    let loads = loads(view, without);
    let replicas = extremes(loads.iter().map(|load| load.replicas));
    let leaders = extremes(loads.iter().map(|load| load.all_leaders()));
    assert!(replicas.0 - replicas.1 <= 1 && leaders.0 - leaders.1 <= 1, "replicas {replicas:?}, leaders {leaders:?}");
    for shard in 0..2 {
        let shards = extremes(loads.iter().map(|load| load.leaders[shard]));
        assert!(shards.0 - shards.1 <= 1, "shard {shard}: {shards:?}");
    }
}

/// Three nodes with some topics.
fn three() -> Catalogue {
    let mut catalogue = cluster([1, 2, 3]);
    catalogue.apply(&create(1, 12, 3, &[])).unwrap();
    catalogue.apply(&create(2, 7, 2, &[])).unwrap();
    catalogue.apply(&create(3, 5, 1, &[])).unwrap();
    catalogue
}

fn without_racks(node: NodeId) -> Command {
    register_with(node, |r| r.rack = None)
}

#[test]
fn a_new_node_takes_its_part_with_as_few_moves_as_can_be() {
    let mut catalogue = three();
    catalogue.apply(&without_racks(4)).unwrap();
    let before = goals(catalogue.view());
    let plan = plan_rebalance(catalogue.view()).unwrap().commands;
    apply_all(&mut catalogue, &plan);
    check_even(catalogue.view(), None);
    let after = goals(catalogue.view());
    // 55 replicas on four nodes: the new one gets 13, and no replica goes between the others.
    assert_eq!((catalogue.view().load(4).unwrap().replicas, moved(&before, &after)), (13, 13));
    catch_up(&mut catalogue);
    assert!(catalogue.view().all_partitions().all(|(_, record)| record.target.is_none() && record.leader == Some(record.replicas[0].node)));
    assert_eq!(goals(catalogue.view()), after);
    assert_eq!(plan_rebalance(catalogue.view()).unwrap().commands, [], "an even cluster stays as it is");
}

/// Cut after each step, with what was begun under way or over: the next plan goes on to the same end.
#[test]
fn a_plan_that_was_cut_goes_on_to_the_same_end() {
    let mut whole = three();
    whole.apply(&without_racks(4)).unwrap();
    let plan = plan_rebalance(whole.view()).unwrap().commands;
    let start = whole.clone();
    apply_all(&mut whole, &plan);
    for cut in 0..plan.len() {
        for over in [false, true] {
            let mut half = start.clone();
            apply_all(&mut half, &plan[..cut]);
            if over {
                catch_up(&mut half);
            }
            let rest = plan_rebalance(half.view()).unwrap().commands;
            assert!(rest.len() <= plan.len() - cut, "cut at {cut}: {} steps are left of {}", rest.len(), plan.len());
            apply_all(&mut half, &rest);
            assert_eq!(goals(half.view()), goals(whole.view()), "cut at {cut}");
        }
    }
}

#[test]
fn a_node_that_goes_holds_nothing_in_the_end() {
    let mut catalogue = three();
    catalogue.apply(&without_racks(4)).unwrap();
    let plan = plan_rebalance(catalogue.view()).unwrap().commands;
    apply_all(&mut catalogue, &plan);
    catch_up(&mut catalogue);
    check_refusals(&mut catalogue, vec![(Command::RemoveNode { node: 2 }, Code::InvalidRequest)]);
    let before = goals(catalogue.view());
    catalogue.apply(&Command::RetireNode { node: 2, retiring: true }).unwrap();
    let plan = plan_decommission(catalogue.view(), 2).unwrap().commands;
    let held = catalogue.view().load(2).unwrap().replicas;
    apply_all(&mut catalogue, &plan[..plan.len() / 2]);
    catch_up(&mut catalogue);
    // Interrupted: the plan is made again.
    let rest = plan_decommission(catalogue.view(), 2).unwrap().commands;
    apply_all(&mut catalogue, &rest);
    catch_up(&mut catalogue);
    assert_eq!((catalogue.view().partitions_on(2).count(), moved(&before, &goals(catalogue.view()))), (0, held as usize));
    check_even(catalogue.view(), Some(2));
    assert_eq!(plan_decommission(catalogue.view(), 2).unwrap().commands, []);
    catalogue.apply(&Command::RemoveNode { node: 2 }).unwrap();
}

#[test]
fn a_node_that_can_not_go_says_why() {
    let catalogue = three();
    let refusal = plan_decommission(catalogue.view(), 1).unwrap_err();
    assert!(refusal.code == Code::InvalidReplicationFactor && refusal.message.contains("has 3 replicas"), "{refusal}");
    assert_eq!(plan_decommission(catalogue.view(), 9).unwrap_err().code, Code::BrokerIdNotRegistered);
}

#[test]
fn a_replica_that_can_go_only_to_a_node_that_is_away_waits_for_it() {
    let mut catalogue = cluster(1..=4);
    catalogue.apply(&create(1, 8, 3, &[])).unwrap();
    catch_up(&mut catalogue);
    let has = |catalogue: &Catalogue, nodes: &[NodeId]| {
        let all = |record: &PartitionRecord| nodes.iter().all(|node| record.replica(*node).is_some());
        catalogue.view().all_partitions().filter(|(_, record)| all(record.as_ref())).count()
    };
    let away = (1..4).find(|away| has(&catalogue, &[4, *away]) < has(&catalogue, &[4])).expect("one is not beside node 4 somewhere");
    let waits = has(&catalogue, &[4]) - has(&catalogue, &[4, away]);
    fence(&mut catalogue, away);
    let plan = plan_decommission(catalogue.view(), 4).unwrap();
    assert!(plan.put_off as usize == waits && plan.waits_for == [away].into(), "{plan:?}");
    let step = crate::cluster::rebalance_step::next_step(catalogue.view(), Some(4), 100).unwrap();
    assert!(step.left.unnamed == plan.put_off && step.left.waits_for == [away] && !step.left.is_done());
    catalogue.apply(&register(away)).unwrap();
    assert_eq!(plan_decommission(catalogue.view(), 4).unwrap().put_off, 0);
}

#[test]
fn racks_stay_spread() {
    let mut catalogue = cluster([]);
    for (node, rack) in [(1, "a"), (2, "b"), (3, "c"), (4, "a")] {
        catalogue.apply(&register_with(node, |r| r.rack = Some(rack.into()))).unwrap();
        if node == 3 {
            catalogue.apply(&create(1, 24, 2, &[])).unwrap();
        }
    }
    let plan = plan_rebalance(catalogue.view()).unwrap().commands;
    apply_all(&mut catalogue, &plan);
    let is_spread = |goal: &Vec<NodeId>| (goal[0] % 3) != (goal[1] % 3);
    assert!(goals(catalogue.view()).iter().all(is_spread), "nodes 1 and 4 are one rack");
    check_even(catalogue.view(), None);
    // Node 4 goes: its replicas go where the racks stay spread.
    let plan = plan_decommission(catalogue.view(), 4).unwrap().commands;
    apply_all(&mut catalogue, &plan);
    assert!(goals(catalogue.view()).iter().all(is_spread));
}

#[test]
fn a_node_that_is_not_there_gets_nothing() {
    let mut catalogue = three();
    catalogue.apply(&without_racks(4)).unwrap();
    fence(&mut catalogue, 4);
    let plan = plan_rebalance(catalogue.view()).unwrap().commands;
    assert!(plan.iter().all(|command| matches!(command, Command::Reassign { target, .. } if !target.contains(&4))));
}

/// A cluster with nodes that came one by one, and topics in between.
fn grown(steps: &[(bool, u32, u16)]) -> Catalogue {
    let mut catalogue = Catalogue::new();
    catalogue.apply(&without_racks(0)).unwrap();
    for (number, (is_node, partitions, replicas)) in (1u8..).zip(steps) {
        let nodes = catalogue.view().nodes().len() as u32;
        let command = match is_node {
            true => without_racks(nodes),
            false => create(number.wrapping_mul(37), *partitions, (*replicas).min(nodes as u16), &[]),
        };
        catalogue.apply(&command).unwrap();
    }
    catalogue
}

proptest! {
    #[test]
    fn any_cluster_becomes_even(steps in proptest::collection::vec((prop::bool::weighted(0.4), 1u32..20, 1u16..4), 1..14)) {
        let mut catalogue = grown(&steps);
        let before = goals(catalogue.view());
        let held: Vec<_> = loads(catalogue.view(), None).iter().map(|load| load.replicas).collect();
        let plan = plan_rebalance(catalogue.view()).unwrap().commands;
        apply_all(&mut catalogue, &plan);
        let now = loads(catalogue.view(), None);
        let (most, least) = extremes(now.iter().map(|load| load.replicas));
        prop_assert!(most - least <= 1, "{held:?} became {most} to {least}");
        let taken: u64 = now.iter().zip(&held).map(|(load, held)| load.replicas.saturating_sub(*held)).sum();
        prop_assert_eq!(moved(&before, &goals(catalogue.view())) as u64, taken, "nothing moves that need not");
        prop_assert_eq!(plan_rebalance(catalogue.view()).unwrap().commands, vec![]);
        catch_up(&mut catalogue);
        prop_assert_eq!(plan_rebalance(catalogue.view()).unwrap().commands, vec![]);
    }
}

/// A plan for 100,000 partitions is made while somebody waits for it.
#[test]
fn large_plans_take_no_long_time() {
    let mut catalogue = Catalogue::new();
    (0..6).for_each(|node| drop(catalogue.apply(&without_racks(node)).unwrap()));
    for number in 0..10 {
        catalogue.apply(&create(number * 23, 1_000, 3, &[])).unwrap();
    }
    catalogue.apply(&without_racks(6)).unwrap();
    let plan = plan_rebalance(catalogue.view()).unwrap().commands;
    apply_all(&mut catalogue, &plan);
    check_even(catalogue.view(), None);
    assert!(plan.len() < 2 * 30_000 / 7, "{} steps", plan.len());
}
