//! One step of a rebalance: which moves of the plan begin now, and what is left.
//!
//! The state is in the catalogue alone. A step plans anew, begins so many moves that no more than a bound are under way, and says what is left; whoever asks for
//! steps may be killed at any point, and another one goes on.

use std::collections::{BTreeMap, BTreeSet};

use super::command::Command;
use super::rebalance::{plan_decommission, plan_rebalance};
use super::survey::led_elsewhere;
use super::view::{CatalogueView, goal};
use crate::limits;
use crate::replication::NodeId;
use crate::request::Refusal;
use crate::request::cluster::{PlannedMove, RebalanceStep};
use crate::types::TopicPartition;

/// A step: what is to be proposed, in this order, and what is to be said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NextStep {
    /// Reassignments, each with where the replicas are or are on their way to.
    pub begin: Vec<(Command, PlannedMove)>,
    /// What is left besides: nothing has begun here.
    pub left: RebalanceStep,
}

/// The next step towards an even cluster, or towards one in which `empty` has no replicas. A partition counts as one that moves while its replicas are on their way.
///
/// # Errors
/// There is no such node, or replicas of a node that is to have none can't go anywhere.
pub fn next_step(view: &CatalogueView, empty: Option<NodeId>, most_moving: u32) -> Result<NextStep, Refusal> {
    let plan = match empty {
        Some(node) => plan_decommission(view, node)?,
        None => plan_rebalance(view)?,
    };
    let mut moving: BTreeSet<_> = view.all_partitions().filter(|(_, record)| record.target.is_some()).map(|(id, _)| id).collect();
    let mut left = RebalanceStep { unnamed: plan.put_off, ..left(view, &moving, plan.waits_for) };
    let (mut begin, mut goals) = (Vec::new(), BTreeMap::new());
    let mut rest = plan.commands.into_iter();
    for command in rest.by_ref() {
        let Command::Reassign { partition, target } = &command else { continue };
        let starts = !moving.contains(partition) && ships(view, partition, target);
        // In the order of the plan: a later move that overtook an earlier one would change the plan.
        if (starts && moving.len() >= most_moving as usize) || begin.len() >= limits::REBALANCE_STEP {
            name_rest(view, &goals, std::iter::once(command).chain(rest), &mut left);
            break;
        }
        if starts {
            moving.insert(*partition);
        }
        let planned = planned(view, partition, target, &goals);
        goals.insert(*partition, target.clone());
        begin.push((command, planned));
    }
    Ok(NextStep { begin, left })
}

/// Whether a replica is to be where none is yet.
fn ships(view: &CatalogueView, partition: &TopicPartition, target: &[NodeId]) -> bool {
    view.partition(partition).is_some_and(|record| target.iter().any(|node| record.replica(*node).is_none()))
}

fn left(view: &CatalogueView, moving: &BTreeSet<TopicPartition>, mut waits_for: BTreeSet<NodeId>) -> RebalanceStep {
    let mut left = RebalanceStep { moving: moving.len() as u32, led_elsewhere: led_elsewhere(view), ..RebalanceStep::default() };
    for record in moving.iter().filter_map(|id| view.partition(id)) {
        let away = |node: &&NodeId| !record.in_sync(**node) && view.node(**node).is_none_or(|node| !node.is_live());
        waits_for.extend(record.target.iter().flatten().filter(away));
        left.without_leader += u32::from(record.leader.is_none());
    }
    left.waits_for = waits_for.into_iter().collect();
    left
}

/// Names the moves that come later, each partition once with where it ends up.
fn name_rest(
    view: &CatalogueView,
    goals: &BTreeMap<TopicPartition, Vec<NodeId>>,
    rest: impl Iterator<Item = Command>,
    left: &mut RebalanceStep,
) {
    let (mut order, mut targets) = (Vec::new(), BTreeMap::new());
    for command in rest {
        let Command::Reassign { partition, target } = command else { continue };
        if targets.insert(partition, target).is_none() {
            order.push(partition);
        }
    }
    let moves =
        order.iter().map(|partition| planned(view, partition, &targets[partition], goals)).filter(|planned| planned.from != planned.to);
    for planned in moves {
        match left.planned.len() < limits::NAMED_MOVES {
            true => left.planned.push(planned),
            false => left.unnamed += 1,
        }
    }
}

fn planned(view: &CatalogueView, partition: &TopicPartition, to: &[NodeId], goals: &BTreeMap<TopicPartition, Vec<NodeId>>) -> PlannedMove {
    let present = || view.partition(partition).map(|record| goal(record)).unwrap_or_default();
    PlannedMove {
        topic: view.topic_by_id(&partition.topic).map(|topic| topic.name.clone()).unwrap_or_default(),
        partition: partition.partition,
        from: goals.get(partition).cloned().unwrap_or_else(present),
        to: to.to_vec(),
    }
}
