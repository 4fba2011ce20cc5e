//! `corelane cluster status`: one line that says whether all is well, the nodes, and the partitions that are not well.

use serde_json::{Value, json};

use super::checks::{self, DamagedReplica};
use super::table::table;
use super::{Told, counted, line, list};
use crate::cli::broker::BrokerArgs;
use crate::cli::exit::{Exit, Failure};
use crate::client::Admin;
use crate::limits;
use crate::request::cluster::{ClusterStatus, NodeCondition, NodeStatus, PartitionState, StatusQuestion};

/// Flags of `cluster status`.
#[derive(clap::Args)]
pub struct StatusArgs {
    /// Only partitions of this topic
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Show the partitions, too, with which nothing is wrong
    #[arg(long)]
    all: bool,
    /// Show at most so many partitions
    #[arg(long, value_name = "N", default_value_t = 50)]
    most: u32,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print one JSON object, with all partitions that are asked for
    #[arg(long)]
    pub json: bool,
}

/// How well a cluster is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Health {
    /// Nothing is wrong.
    Healthy,
    /// Everything can be done, but the next failure may change that.
    Degraded,
    /// Something can't be done.
    Unavailable,
}

impl Health {
    fn name(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Degraded => "degraded",
            Health::Unavailable => "unavailable",
        }
    }
}

/// Asks and prints; fails where not all is well.
pub async fn run(args: StatusArgs) -> Result<Told, Failure> {
    let admin = args.broker.connect().await?.admin();
    let question = StatusQuestion { topic: args.topic.clone(), all_partitions: args.all, skip: 0, most: args.most };
    let status = match args.json {
        true => whole(&admin, question).await?,
        false => admin.cluster_status(question).await?,
    };
    let (mut health, mut problems) = judge(&status);
    // A status is told whether the damage is known or not.
    let topics = admin.metadata().await.map_or_else(|_| Vec::new(), |metadata| metadata.topics);
    let names = topics.into_iter().filter_map(|topic| Some((topic.found.ok()?.id, topic.name))).collect();
    let damaged = checks::known(&admin, &status.nodes, &names).await;
    if let Some(words) = judge_damage(&damaged) {
        health = health.max(Health::Degraded);
        problems.push(words);
    }
    let text = match args.json {
        true => {
            let mut value = to_json(&status, health, &problems);
            value["damaged"] = checks::to_json(&damaged);
            line(&value)
        }
        false => to_text(&status, health, &problems) + &checks::to_text(&damaged),
    };
    let outcome = match health {
        Health::Healthy => Ok(()),
        Health::Degraded => Err(Failure::told(Exit::Degraded)),
        Health::Unavailable => Err(Failure::told(Exit::Failed)),
    };
    Ok((text, outcome))
}

/// A status with all partitions that are asked for, page by page.
pub async fn whole(admin: &Admin, question: StatusQuestion) -> Result<ClusterStatus, Failure> {
    let mut whole = admin.cluster_status(StatusQuestion { most: limits::STATUS_PARTITIONS, ..question.clone() }).await?;
    while whole.left > 0 {
        let skip = question.skip + whole.partitions.len() as u32;
        let page = admin.cluster_status(StatusQuestion { skip, most: limits::STATUS_PARTITIONS, ..question.clone() }).await?;
        let named = page.partitions.len();
        whole.partitions.extend(page.partitions);
        whole.left = if named == 0 { 0 } else { page.left };
    }
    Ok(whole)
}

/// What is to be said of damaged replicas.
fn judge_damage(damaged: &[DamagedReplica]) -> Option<String> {
    let mut nodes: Vec<u32> = damaged.iter().map(|of| of.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let on = if nodes.len() == 1 { "on node" } else { "on nodes" };
    (!damaged.is_empty()).then(|| format!("{} {on} {}", counted(damaged.len() as u32, "damaged segment"), list(&nodes)))
}

/// How well the cluster is and what is wrong, the worst first.
pub fn judge(status: &ClusterStatus) -> (Health, Vec<String>) {
    let mut problems: Vec<(Health, String)> = Vec::new();
    let mut found = |health, what: String| problems.push((health, what));
    let (counts, consensus) = (&status.counts, &status.consensus);
    if let Some(failure) = &consensus.failure {
        found(Health::Unavailable, format!("the metadata can't be changed by node {}: {failure}", status.node));
    }
    if consensus.leader.is_none() {
        found(Health::Unavailable, "nobody leads the consensus: topics, leaders and nodes stay as they are".into());
    }
    if counts.offline > 0 {
        found(Health::Unavailable, format!("{} without a leader", counted(counts.offline, "partition")));
    }
    if counts.below_min_insync > 0 {
        let words = format!("{} with fewer in sync than min.insync.replicas", counted(counts.below_min_insync, "partition"));
        found(Health::Unavailable, words);
    }
    if counts.under_replicated > 0 {
        found(Health::Degraded, format!("{} with fewer in sync than there are to be", counted(counts.under_replicated, "partition")));
    }
    for (condition, words) in [(NodeCondition::Fenced, "away"), (NodeCondition::Draining, "about to stop")] {
        let nodes: Vec<u32> = status.nodes.iter().filter(|node| node.condition == condition).map(|node| node.node).collect();
        match nodes[..] {
            [] => {}
            [node] => found(Health::Degraded, format!("node {node} is {words}")),
            _ => found(Health::Degraded, format!("nodes {} are {words}", list(&nodes))),
        }
    }
    let (members, voters) = (consensus.members.len(), consensus.members.iter().filter(|member| member.votes).count());
    // Then the loss of one that votes takes nothing.
    if members >= limits::CONSENSUS_VOTERS && voters < limits::CONSENSUS_VOTERS {
        // Those that were let in vote a moment later. Until then the loss of one node may be that of the metadata.
        found(Health::Degraded, format!("{voters} of {members} nodes vote"));
    }
    for node in &status.nodes {
        if !consensus.members.iter().any(|member| member.node == node.node) {
            found(Health::Degraded, format!("node {} is no member of the consensus", node.node));
        }
    }
    for member in &consensus.members {
        if !status.nodes.iter().any(|node| node.node == member.node) {
            found(Health::Degraded, format!("node {} is a member of the consensus and not registered", member.node));
        }
    }
    problems.sort_by_key(|(health, _)| std::cmp::Reverse(*health));
    let health = problems.first().map_or(Health::Healthy, |(health, _)| *health);
    (health, problems.into_iter().map(|(_, what)| what).collect())
}

fn to_text(status: &ClusterStatus, health: Health, problems: &[String]) -> String {
    let mut text = match problems.is_empty() {
        true => format!("{}\n", health.name()),
        false => format!("{}: {}\n", health.name(), problems.join("; ")),
    };
    let counts = &status.counts;
    text += &format!(
        "cluster {}: {}, {}, {}",
        uuid::Uuid::from_bytes(status.cluster),
        counted(status.nodes.len() as u32, "node"),
        counted(counts.topics, "topic"),
        counted(counts.partitions, "partition")
    );
    if counts.moving > 0 {
        text += &format!(", {} moving", counts.moving);
    }
    if counts.led_elsewhere > 0 {
        text += &format!(", {} not led by the preferred leader", counts.led_elsewhere);
    }
    let consensus = &status.consensus;
    let voters: Vec<u32> = consensus.members.iter().filter(|member| member.votes).map(|member| member.node).collect();
    let leader = consensus.leader.map_or("nobody leads".into(), |leader| format!("node {leader} leads"));
    text += &format!("; consensus: {leader}, {} votes; told by node {}\n\n", list(&voters), status.node);
    text += &table(
        ["node", "state", "rack", "leads", "replicas", "behind", "consensus", "epoch", "software", "clients", "address"],
        &status.nodes.iter().map(|node| node_row(status, node)).collect::<Vec<_>>(),
    );
    if !status.partitions.is_empty() {
        text += "\n";
        text += &table(
            ["topic", "partition", "leader", "epoch", "in sync", "behind", "eligible", "moves to", "what"],
            &status.partitions.iter().map(partition_row).collect::<Vec<_>>(),
        );
    }
    if status.left > 0 {
        text += &format!("and {} more: --most shows more, --topic fewer, --json all\n", counted(status.left, "partition"));
    }
    text
}

fn node_row(status: &ClusterStatus, node: &NodeStatus) -> [String; 11] {
    let state = match node.condition {
        NodeCondition::Live => "live",
        NodeCondition::Draining => "stopping",
        NodeCondition::Fenced => "away",
    };
    let consensus = match status.consensus.members.iter().find(|member| member.node == node.node) {
        _ if status.consensus.leader == Some(node.node) => "leads",
        Some(member) if member.votes => "votes",
        Some(_) => "follows",
        None => "-",
    };
    // By shard, where that says more.
    let leads = match &node.leads[..] {
        [one] => one.to_string(),
        shards => {
            let each: Vec<String> = shards.iter().map(u32::to_string).collect();
            format!("{} ({})", shards.iter().sum::<u32>(), each.join("+"))
        }
    };
    [
        node.node.to_string(),
        format!("{state}{}", if node.retiring { ", to go" } else { "" }),
        node.rack.clone().unwrap_or_else(|| "-".into()),
        leads,
        node.replicas.to_string(),
        node.behind.to_string(),
        consensus.into(),
        node.node_epoch.to_string(),
        node.software.clone(),
        node.clients.first().map_or("-".into(), ToString::to_string),
        node.cluster_address.as_ref().map_or("-".into(), ToString::to_string),
    ]
}

fn partition_row(state: &PartitionState) -> [String; 9] {
    let behind: Vec<u32> = state.replicas.iter().copied().filter(|node| !state.isr.contains(node)).collect();
    [
        state.topic.clone(),
        state.partition.to_string(),
        state.leader.map_or("nobody".into(), |leader| leader.to_string()),
        state.leader_epoch.to_string(),
        list(&state.isr),
        list(&behind),
        list(&state.eligible),
        state.target.as_deref().map_or("-".into(), list),
        conditions(state).join(", "),
    ]
}

/// What is to be said of a partition.
fn conditions(state: &PartitionState) -> Vec<&'static str> {
    let all = [
        (state.is_offline(), "no leader"),
        (state.is_below_min_insync(), "below min.insync.replicas"),
        (state.is_under_replicated(), "under-replicated"),
        (state.target.is_some(), "moving"),
    ];
    all.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect()
}

fn to_json(status: &ClusterStatus, health: Health, problems: &[String]) -> Value {
    let counts = &status.counts;
    let member = |member: &crate::request::cluster::ConsensusMember| json!({ "node": member.node, "address": member.address, "votes": member.votes });
    json!({
        "health": health.name(),
        "problems": problems,
        "cluster": uuid::Uuid::from_bytes(status.cluster).to_string(),
        "told_by": status.node,
        "version": status.version,
        "consensus": {
            "leader": status.consensus.leader,
            "term": status.consensus.term,
            "applied": status.consensus.applied,
            "members": status.consensus.members.iter().map(member).collect::<Vec<_>>(),
            "failure": status.consensus.failure,
        },
        "counts": {
            "topics": counts.topics,
            "partitions": counts.partitions,
            "offline": counts.offline,
            "below_min_insync": counts.below_min_insync,
            "under_replicated": counts.under_replicated,
            "moving": counts.moving,
            "led_elsewhere": counts.led_elsewhere,
        },
        "nodes": status.nodes.iter().map(node_json).collect::<Vec<_>>(),
        "partitions": status.partitions.iter().map(partition_json).collect::<Vec<_>>(),
    })
}

fn node_json(node: &NodeStatus) -> Value {
    let state = match node.condition {
        NodeCondition::Live => "live",
        NodeCondition::Draining => "draining",
        NodeCondition::Fenced => "fenced",
    };
    json!({
        "node": node.node,
        "state": state,
        "retiring": node.retiring,
        "node_epoch": node.node_epoch,
        "incarnation": uuid::Uuid::from_bytes(node.incarnation).to_string(),
        "shards": node.shards,
        "rack": node.rack,
        "software": node.software,
        "cluster_address": node.cluster_address.as_ref().map(ToString::to_string),
        "clients": node.clients.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "leads": node.leads.iter().sum::<u32>(),
        "leads_by_shard": node.leads,
        "preferred": node.preferred,
        "replicas": node.replicas,
        "behind": node.behind,
    })
}

fn partition_json(state: &PartitionState) -> Value {
    json!({
        "topic": state.topic,
        "partition": state.partition,
        "leader": state.leader,
        "leader_epoch": state.leader_epoch,
        "replicas": state.replicas,
        "isr": state.isr,
        "eligible": state.eligible,
        "target": state.target,
        "min_insync_replicas": state.min_insync,
        "conditions": conditions(state),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::request::cluster::{ClusterCounts, ConsensusMember, ConsensusState, HostPort};

    fn node(node: u32) -> NodeStatus {
        NodeStatus {
            node,
            condition: NodeCondition::Live,
            retiring: false,
            node_epoch: 10 + u64::from(node),
            incarnation: [node as u8; 16],
            shards: 2,
            rack: (node != 3).then(|| format!("r{node}")),
            software: "0.1.0".into(),
            cluster_address: Some(HostPort { host: "::1".into(), port: 9100 }),
            clients: vec![HostPort { host: "localhost".into(), port: 9092 }],
            leads: vec![2, 1],
            preferred: 3,
            replicas: 9,
            behind: 0,
        }
    }

    /// Three nodes, all well.
    pub(in super::super) fn healthy() -> ClusterStatus {
        let member = |node| ConsensusMember { node, address: format!("h:{node}"), votes: true };
        ClusterStatus {
            cluster: [7; 16],
            node: 1,
            version: 99,
            consensus: ConsensusState {
                leader: Some(2),
                term: 4,
                applied: Some(120),
                members: vec![member(1), member(2), member(3)],
                failure: None,
            },
            nodes: vec![node(1), node(2), node(3)],
            counts: ClusterCounts { topics: 2, partitions: 9, ..ClusterCounts::default() },
            partitions: Vec::new(),
            left: 0,
        }
    }

    fn broken() -> ClusterStatus {
        let mut status = healthy();
        status.nodes[2] = NodeStatus { condition: NodeCondition::Fenced, retiring: true, leads: vec![0, 0], behind: 9, ..node(3) };
        status.counts = ClusterCounts { offline: 1, under_replicated: 9, moving: 1, led_elsewhere: 2, ..status.counts };
        let state = PartitionState {
            topic: "orders".into(),
            partition: 3,
            leader: None,
            leader_epoch: 8,
            replicas: vec![3, 1],
            isr: vec![],
            eligible: vec![3],
            target: Some(vec![1]),
            min_insync: 1,
        };
        status.partitions = vec![state];
        status.left = 8;
        status
    }

    #[test]
    fn all_is_well() {
        let status = healthy();
        let (health, problems) = judge(&status);
        assert_eq!(health, Health::Healthy);
        let expected = "\
healthy
cluster 07070707-0707-0707-0707-070707070707: 3 nodes, 2 topics, 9 partitions; consensus: node 2 leads, 1,2,3 votes; told by node 1

node  state  rack  leads    replicas  behind  consensus  epoch  software  clients         address
1     live   r1    3 (2+1)  9         0       votes      11     0.1.0     localhost:9092  [::1]:9100
2     live   r2    3 (2+1)  9         0       leads      12     0.1.0     localhost:9092  [::1]:9100
3     live   -     3 (2+1)  9         0       votes      13     0.1.0     localhost:9092  [::1]:9100
";
        assert_eq!(to_text(&status, health, &problems), expected);
    }

    #[test]
    fn damaged_replicas_are_a_problem() {
        let of = |node| DamagedReplica { topic: "t".into(), partition: 1, node, what: "no".into() };
        assert_eq!(judge_damage(&[]), None);
        assert_eq!(judge_damage(&[of(2)]).as_deref(), Some("1 damaged segment on node 2"));
        assert_eq!(judge_damage(&[of(3), of(1), of(3)]).as_deref(), Some("3 damaged segments on nodes 1,3"));
    }

    #[test]
    fn what_is_wrong_comes_first_and_worst_first() {
        let status = broken();
        let (health, problems) = judge(&status);
        let text = to_text(&status, health, &problems);
        let expected = "\
unavailable: 1 partition without a leader; 9 partitions with fewer in sync than there are to be; node 3 is away
cluster 07070707-0707-0707-0707-070707070707: 3 nodes, 2 topics, 9 partitions, 1 moving, 2 not led by the preferred leader; consensus: node 2 leads, 1,2,3 votes; told by node 1

node  state        rack  leads    replicas  behind  consensus  epoch  software  clients         address
1     live         r1    3 (2+1)  9         0       votes      11     0.1.0     localhost:9092  [::1]:9100
2     live         r2    3 (2+1)  9         0       leads      12     0.1.0     localhost:9092  [::1]:9100
3     away, to go  -     0 (0+0)  9         9       votes      13     0.1.0     localhost:9092  [::1]:9100

topic   partition  leader  epoch  in sync  behind  eligible  moves to  what
orders  3          nobody  8      -        3,1     3         1         no leader, under-replicated, moving
and 8 partitions more: --most shows more, --topic fewer, --json all
";
        assert_eq!(text, expected);
        let value = to_json(&status, health, &problems);
        assert_eq!((&value["health"], &value["nodes"][2]["state"]), (&"unavailable".into(), &"fenced".into()));
        assert_eq!((&value["partitions"][0]["leader"], &value["partitions"][0]["target"]), (&Value::Null, &json!([1])));
    }

    #[test]
    fn every_kind_of_trouble_has_its_grade() {
        let judged = |change: fn(&mut ClusterStatus)| {
            let mut status = healthy();
            change(&mut status);
            judge(&status)
        };
        for change in [
            (|s| s.consensus.leader = None) as fn(&mut ClusterStatus),
            |s| s.consensus.failure = Some("no".into()),
            |s| s.counts.offline = 1,
            |s| s.counts.below_min_insync = 1,
        ] {
            assert_eq!(judged(change).0, Health::Unavailable, "{:?}", judged(change).1);
        }
        for change in [
            (|s| s.counts.under_replicated = 1) as fn(&mut ClusterStatus),
            |s| s.nodes[0].condition = NodeCondition::Draining,
            |s| s.nodes[0].condition = NodeCondition::Fenced,
            |s| drop(s.nodes.pop()),
            |s| drop(s.consensus.members.pop()),
            |s| s.consensus.members[2].votes = false,
        ] {
            assert_eq!(judged(change).0, Health::Degraded, "{:?}", judged(change).1);
        }
        let moves = judged(|s| (s.counts.moving, s.counts.led_elsewhere, s.nodes[0].retiring) = (1, 1, true));
        assert_eq!(moves, (Health::Healthy, vec![]), "what an administrator wanted is nothing wrong");
        let two = judged(|s| s.nodes[1..].iter_mut().for_each(|n| n.condition = NodeCondition::Fenced));
        assert_eq!(two.1, ["nodes 2,3 are away"]);
    }
}
