//! What an administrator is told, and how a rebalance goes on step by step.

use super::*;
use crate::cluster::CatalogueView;
use crate::cluster::rebalance::{plan_decommission, plan_rebalance};
use crate::cluster::rebalance_step::{NextStep, next_step};
use crate::cluster::survey::survey;
use crate::cluster::view::goal;
use crate::limits;
use crate::request::cluster::{ClusterStatus, ConsensusState, NodeCondition, StatusQuestion};

fn status(catalogue: &Catalogue, question: StatusQuestion) -> ClusterStatus {
    survey(catalogue.view(), 1, ConsensusState::default(), &question).unwrap()
}

fn unwell() -> StatusQuestion {
    StatusQuestion { most: u32::MAX, ..StatusQuestion::default() }
}

/// Three nodes, one partition each of three topics with three replicas, two and one.
fn three() -> Catalogue {
    let mut catalogue = cluster([1, 2, 3]);
    for (id, nodes) in [(1, &[1, 2, 3][..]), (2, &[2, 3]), (3, &[3])] {
        catalogue.apply(&create(id, 1, nodes.len() as u16, &[("min.insync.replicas", if id == 3 { "1" } else { "2" })])).unwrap();
        arrange_anywhere(&mut catalogue, at(id, 0), nodes);
    }
    catalogue
}

/// As [`arrange`], also where that ships replicas.
fn arrange_anywhere(catalogue: &mut Catalogue, partition: TopicPartition, nodes: &[NodeId]) {
    let _ = catalogue.apply(&Command::Reassign { partition, target: nodes.to_vec() });
    catch_up(catalogue);
    assert_eq!(record(catalogue, partition).leader, Some(nodes[0]));
}

/// Everyone that is there has everything.
fn catch_up(catalogue: &mut Catalogue) {
    let all: Vec<_> = catalogue.view().all_partitions().map(|(at, _)| at).collect();
    for at in all {
        let record = record(catalogue, at);
        let live = |node: &NodeId| catalogue.view().node(*node).is_some_and(|node| node.is_live());
        let join: Vec<_> = record.replicas.iter().map(|r| r.node).filter(|node| !record.in_sync(*node) && live(node)).collect();
        if !join.is_empty() && record.leader.is_some() {
            let command = proposal(catalogue, at, &[], &join);
            catalogue.apply(&command).unwrap();
        }
    }
    catalogue.apply(&Command::BalanceLeaders { most: u32::MAX }).unwrap();
}

#[test]
fn a_healthy_cluster_names_no_partition() {
    let catalogue = three();
    let status = status(&catalogue, unwell());
    assert!(status.partitions.is_empty() && status.left == 0, "{status:?}");
    assert_eq!((status.counts.topics, status.counts.partitions, status.counts.under_replicated), (3, 3, 0));
    let nodes: Vec<_> = status.nodes.iter().map(|n| (n.node, n.leads.iter().sum::<u32>(), n.replicas, n.behind)).collect();
    assert_eq!(nodes, [(1, 1, 1, 0), (2, 1, 2, 0), (3, 1, 3, 0)]);
    assert_eq!(status.nodes[0].rack.as_deref(), Some("rack-1"));
}

#[test]
fn a_node_that_is_away_shows_in_all_that_it_had() {
    let mut catalogue = three();
    let node_epoch = catalogue.view().node(3).unwrap().epoch;
    catalogue.apply(&Command::FenceNode { node: 3, node_epoch }).unwrap();
    let status = status(&catalogue, unwell());
    assert_eq!(status.nodes[2].condition, NodeCondition::Fenced);
    assert_eq!((status.nodes[2].replicas, status.nodes[2].behind, status.nodes[2].leads.iter().sum::<u32>()), (3, 3, 0));
    let named: Vec<_> = status.partitions.iter().map(|p| (p.topic.as_str(), p.leader, p.isr.clone())).collect();
    assert_eq!(named, [("t1", Some(1), vec![1, 2]), ("t2", Some(2), vec![2]), ("t3", None, vec![])]);
    let counts = status.counts;
    assert_eq!((counts.offline, counts.below_min_insync, counts.under_replicated), (1, 1, 3));
    let states = &status.partitions;
    assert!(states[2].is_offline() && !states[2].is_below_min_insync(), "what nobody leads is counted once");
    assert!(states[1].is_below_min_insync() && !states[0].is_below_min_insync());
}

#[test]
fn partitions_are_named_page_by_page() {
    let mut catalogue = cluster([1, 2, 3]);
    catalogue.apply(&create(1, 5, 1, &[])).unwrap();
    catalogue.apply(&create(2, 4, 1, &[])).unwrap();
    let page = |skip, most, topic: Option<&str>| {
        let question = StatusQuestion { topic: topic.map(String::from), all_partitions: true, skip, most };
        let status = status(&catalogue, question);
        (status.partitions.iter().map(|p| (p.topic.clone(), p.partition)).collect::<Vec<_>>(), status.left)
    };
    let name = |topic: &str, partition| (topic.to_owned(), partition);
    assert_eq!(page(0, 2, None), (vec![name("t1", 0), name("t1", 1)], 7));
    assert_eq!(page(4, 2, None), (vec![name("t1", 4), name("t2", 0)], 3));
    assert_eq!(page(8, 9, None), (vec![name("t2", 3)], 0));
    assert_eq!(page(9, 9, None), (vec![], 0));
    assert_eq!(page(1, 1, Some("t2")), (vec![name("t2", 1)], 2));
    assert_eq!(page(0, 0, None), (vec![], 9));
    let nobody = StatusQuestion { topic: Some("t9".into()), ..unwell() };
    assert_eq!(survey(catalogue.view(), 1, ConsensusState::default(), &nobody).unwrap_err().code, Code::UnknownTopicOrPartition);
}

#[test]
fn leaders_that_could_be_at_home_are_counted() {
    let mut catalogue = three();
    let node_epoch = catalogue.view().node(1).unwrap().epoch;
    catalogue.apply(&Command::FenceNode { node: 1, node_epoch }).unwrap();
    assert_eq!(status(&catalogue, unwell()).counts.led_elsewhere, 0, "it is away");
    catalogue.apply(&register(1)).unwrap();
    assert_eq!(status(&catalogue, unwell()).counts.led_elsewhere, 0, "it is not in sync");
    let join = proposal(&catalogue, at(1, 0), &[], &[1]);
    catalogue.apply(&join).unwrap();
    assert_eq!(status(&catalogue, unwell()).counts.led_elsewhere, 1);
    catalogue.apply(&Command::BalanceLeaders { most: 1 }).unwrap();
    assert_eq!(status(&catalogue, unwell()).counts.led_elsewhere, 0);
}

fn apply(catalogue: &mut Catalogue, step: &NextStep) -> usize {
    for (command, _) in &step.begin {
        catalogue.apply(command).unwrap_or_else(|refusal| panic!("{command:?}: {refusal}"));
    }
    step.begin.len()
}

fn moving(view: &CatalogueView) -> usize {
    view.all_partitions().filter(|(_, record)| record.target.is_some()).count()
}

/// Steps until nothing is left; each time it is asked, everyone has caught up. How many replicas are where none was.
fn run_to_the_end(catalogue: &mut Catalogue, empty: Option<NodeId>, most: u32) -> usize {
    let places = |view: &CatalogueView| view.all_partitions().map(|(_, record)| goal(record)).collect::<Vec<_>>();
    let before = places(catalogue.view());
    for _ in 0..1_000 {
        let step = next_step(catalogue.view(), empty, most).unwrap();
        apply(catalogue, &step);
        assert!(moving(catalogue.view()) <= most as usize, "more moved than was allowed");
        if step.begin.is_empty() && step.left.is_done() {
            let after = places(catalogue.view());
            return before.iter().zip(&after).map(|(old, new)| new.iter().filter(|node| !old.contains(node)).count()).sum();
        }
        catch_up(catalogue);
    }
    panic!("no end");
}

#[test]
fn steps_come_to_where_the_plan_comes() {
    for most in [1, 3, 1_000] {
        let mut catalogue = cluster([1, 2, 3]);
        catalogue.apply(&create(1, 12, 3, &[])).unwrap();
        catalogue.apply(&create(2, 7, 2, &[])).unwrap();
        catalogue.apply(&register_with(4, |r| r.rack = None)).unwrap();
        assert_eq!(run_to_the_end(&mut catalogue, None, most), 12, "no replica moves twice, and none that need not");
        assert!(plan_rebalance(catalogue.view()).unwrap().commands.is_empty());
        run_to_the_end(&mut catalogue, Some(2), most);
        assert!(plan_decommission(catalogue.view(), 2).unwrap().commands.is_empty());
        assert_eq!(catalogue.view().load(2).unwrap().replicas, 0);
    }
}

#[test]
fn a_step_keeps_to_its_bound_and_names_the_rest() {
    let mut catalogue = cluster([1]);
    catalogue.apply(&create(1, 20, 1, &[])).unwrap();
    catalogue.apply(&register(2)).unwrap();
    let first = next_step(catalogue.view(), None, 3).unwrap();
    assert_eq!((first.begin.len(), first.left.planned.len(), first.left.moving), (3, 7, 0));
    assert_eq!((&first.begin[0].1.from[..], &first.begin[0].1.to[..]), (&[1][..], &[2][..]));
    apply(&mut catalogue, &first);
    let second = next_step(catalogue.view(), None, 3).unwrap();
    assert_eq!((second.begin.len(), second.left.planned.len(), second.left.moving), (0, 7, 3), "there is no room");
    assert!(next_step(catalogue.view(), None, 0).unwrap().begin.is_empty());
    let all = next_step(catalogue.view(), None, u32::MAX).unwrap();
    assert_eq!((all.begin.len(), all.left.planned.len()), (7, 0));
    assert!(all.begin.len() <= limits::REBALANCE_STEP);
}

#[test]
fn whom_a_move_waits_for_is_said() {
    let mut catalogue = three();
    let reassign = Command::Reassign { partition: at(3, 0), target: vec![1] };
    catalogue.apply(&reassign).unwrap();
    for node in [1, 3] {
        let node_epoch = catalogue.view().node(node).unwrap().epoch;
        catalogue.apply(&Command::FenceNode { node, node_epoch }).unwrap();
    }
    let left = next_step(catalogue.view(), None, 10).unwrap().left;
    assert_eq!((left.moving, left.waits_for, left.without_leader), (1, vec![1], 1));
    assert_eq!(next_step(catalogue.view(), Some(9), 10).unwrap_err().code, Code::BrokerIdNotRegistered);
}
