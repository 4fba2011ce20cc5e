//! Replicas of a topic's partitions go to the nodes that an administrator names: `corelane topic alter --replicas`.

use std::time::{Duration, Instant};

use super::status::whole;
use super::{counted, list};
use crate::cli::exit::{Exit, Failure};
use crate::client::Admin;
use crate::request::cluster::{ClusterStatus, NodeCondition, NodeStatus, PartitionState, Reassign, StatusQuestion};

/// It is given up after so long without progress where it is known that nothing can go on.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Reads "3=1,2,4": partition 3 on nodes 1 (which is to lead), 2 and 4.
///
/// # Errors
/// It is something else.
pub fn replicas(text: &str) -> Result<(u32, Vec<u32>), String> {
    let parsed = text.split_once('=').and_then(|(partition, nodes)| {
        let nodes: Result<Vec<u32>, _> = nodes.split(',').map(|node| node.trim().parse()).collect();
        Some((partition.trim().parse().ok()?, nodes.ok()?))
    });
    parsed.ok_or_else(|| format!("PARTITION=NODE,NODE,... is expected, as 3=1,2,4: {text:?} is something else"))
}

/// Begins the moves.
///
/// # Errors
/// One is refused; the others have begun.
pub async fn begin(admin: &Admin, topic: &str, wanted: &[(u32, Vec<u32>)]) -> Result<(), Failure> {
    let present = status(admin, topic).await?.partitions;
    // Those that are there, or on their way, are no mistake: the command may have been interrupted.
    let is_there =
        |(partition, nodes): &&(u32, Vec<u32>)| present.iter().any(|state| state.partition == *partition && goal(state) == nodes);
    let partitions: Vec<_> = wanted.iter().filter(|one| !is_there(one)).cloned().collect();
    if partitions.is_empty() {
        return Ok(());
    }
    let outcomes = admin.reassign(Reassign { topic: topic.into(), partitions }).await?;
    let refused: Vec<String> = outcomes.into_iter().filter_map(|(_, outcome)| outcome.err().map(|refusal| refusal.to_string())).collect();
    match refused.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(Exit::Refused, refused.join("; "))),
    }
}

/// Waits until they have ended. It goes on without this.
///
/// # Errors
/// The cluster can't be asked, or nodes that are waited for are away.
pub async fn finish(admin: &Admin, topic: &str, wanted: &[(u32, Vec<u32>)]) -> Result<(), Failure> {
    let (mut said, mut since) = (String::new(), Instant::now());
    loop {
        let status = status(admin, topic).await?;
        let moving: Vec<_> = status.partitions.iter().filter(|state| is_moving(state, wanted)).collect();
        if moving.is_empty() {
            return others_wish(&status.partitions, wanted).map_or(Ok(()), |why| Err(Failure::new(Exit::Failed, why)));
        }
        let text = describe(&moving);
        if text != said {
            eprintln!("{text}");
            (said, since) = (text, Instant::now());
        }
        if since.elapsed() >= PATIENCE && moving.iter().all(|state| is_stuck(state, &status.nodes)) {
            return Err(Failure::new(
                Exit::Failed,
                format!("nothing goes on, as nodes are away: {said}; the moves go on once they are back"),
            ));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn status(admin: &Admin, topic: &str) -> Result<ClusterStatus, Failure> {
    let question = StatusQuestion { topic: Some(topic.into()), all_partitions: true, ..StatusQuestion::default() };
    whole(admin, question).await
}

/// Where a partition's replicas are, or are to be.
fn goal(state: &PartitionState) -> &Vec<u32> {
    state.target.as_ref().unwrap_or(&state.replicas)
}

/// What has become of a partition whose replicas are, or are to be, others than were wanted: another command has come in between.
fn others_wish(states: &[PartitionState], wanted: &[(u32, Vec<u32>)]) -> Option<String> {
    let found = wanted.iter().find_map(|(partition, nodes)| {
        let state = states.iter().find(|state| state.partition == *partition)?;
        (goal(state) != nodes).then(|| (partition, list(nodes), list(goal(state))))
    });
    found.map(|(partition, ours, theirs)| {
        format!("partition {partition} was to be on nodes {ours}; another command, a rebalance perhaps, has moved it to {theirs} since")
    })
}

/// Whether a move can't go on: nobody leads the partition, or a replica that is to come is on a node that is away.
fn is_stuck(state: &PartitionState, nodes: &[NodeStatus]) -> bool {
    let is_away = |id: &u32| nodes.iter().any(|node| node.node == *id && node.condition == NodeCondition::Fenced);
    state.leader.is_none() || state.target.iter().flatten().any(|id| !state.isr.contains(id) && is_away(id))
}

/// Whether what was wanted is still on its way. What somebody else wanted since is not waited for.
fn is_moving(state: &PartitionState, wanted: &[(u32, Vec<u32>)]) -> bool {
    let nodes = wanted.iter().find(|(partition, _)| *partition == state.partition).map(|(_, nodes)| nodes);
    nodes.is_some() && state.target.as_ref() == nodes
}

fn describe(moving: &[&PartitionState]) -> String {
    let waits = |state: &&PartitionState| {
        let missing: Vec<u32> = state.target.iter().flatten().copied().filter(|node| !state.isr.contains(node)).collect();
        format!("{} waits for node {}", state.partition, list(&missing))
    };
    let named: Vec<String> = moving.iter().take(5).map(waits).collect();
    let more = if moving.len() > named.len() { ", ..." } else { "" };
    format!("{}: partition {}{more}", counted(moving.len() as u32, "move"), named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!(replicas("3=1,2,4"), Ok((3, vec![1, 2, 4])));
        assert_eq!(replicas("0=7"), Ok((0, vec![7])));
        for wrong in ["", "3", "3=", "=1", "a=1", "3=1,,2", "3=1,x", "-1=2", "3=1;2"] {
            assert!(replicas(wrong).is_err(), "{wrong:?}");
        }
    }

    /// From nodes 1 and 2 to 2 and 4, which is not in sync yet.
    fn moving() -> PartitionState {
        PartitionState {
            topic: "t".into(),
            partition: 3,
            leader: Some(1),
            leader_epoch: 0,
            replicas: vec![1, 2, 4],
            isr: vec![1, 2],
            eligible: vec![],
            target: Some(vec![2, 4]),
            min_insync: 1,
        }
    }

    #[test]
    fn who_is_waited_for_is_said() {
        let state = moving();
        assert!(is_moving(&state, &[(3, vec![2, 4])]));
        assert!(!is_moving(&state, &[(3, vec![4, 2])]) && !is_moving(&state, &[(2, vec![2, 4])]));
        assert_eq!(describe(&[&state]), "1 move: partition 3 waits for node 4");
    }

    #[test]
    fn a_move_is_stuck_where_nobody_can_ship_or_take() {
        let away = |id| {
            let mut node = crate::cli::cluster::status::tests::healthy().nodes.remove(0);
            (node.node, node.condition) = (id, NodeCondition::Fenced);
            node
        };
        let state = moving();
        assert!(!is_stuck(&state, &[]) && !is_stuck(&state, &[away(1)]), "who is to go is not waited for");
        assert!(is_stuck(&state, &[away(4)]) && is_stuck(&PartitionState { leader: None, ..state }, &[]));
    }
}
