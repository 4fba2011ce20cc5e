//! How a cluster is, from its metadata alone: who leads what, who is behind, what is wrong.

use std::collections::BTreeMap;

use super::node::{Endpoint, Node, NodeState};
use super::view::{CatalogueView, Topic};
use crate::limits;
use crate::replication::{NodeId, PartitionRecord};
use crate::request::cluster::{
    ClusterCounts, ClusterStatus, ConsensusState, HostPort, NodeCondition, NodeStatus, PartitionState, StatusQuestion,
};
use crate::request::{Code, Refusal};
use crate::types::TopicPartition;

/// The status as node `node` tells it.
///
/// # Errors
/// The question is about a topic that is not there.
pub fn survey(view: &CatalogueView, node: NodeId, consensus: ConsensusState, question: &StatusQuestion) -> Result<ClusterStatus, Refusal> {
    if let Some(name) = question.topic.as_ref().filter(|name| view.topic(name).is_none()) {
        return Err(Refusal::new(Code::UnknownTopicOrPartition, format!("there is no topic {name:?}")));
    }
    let mut nodes: BTreeMap<NodeId, NodeStatus> = view.nodes().map(|node| (node.id(), node_status(view, node))).collect();
    let mut counts = ClusterCounts { topics: view.topics().len() as u32, ..ClusterCounts::default() };
    let most = question.most.min(limits::STATUS_PARTITIONS) as usize;
    let (mut skip, mut partitions, mut left) = (question.skip, Vec::new(), 0);
    for topic in view.topics() {
        let is_asked = question.topic.as_ref().is_none_or(|name| *name == topic.name);
        for (partition, record) in (0..).zip(view.partitions_of_topic(&topic.id)) {
            let id = TopicPartition { topic: topic.id, partition };
            let state = partition_state(topic, partition, record);
            count(&mut counts, view, record, &state);
            count_on_nodes(&mut nodes, view, &id, record);
            let is_named = is_asked && (question.all_partitions || is_unwell(&state));
            match (is_named, skip, partitions.len() < most) {
                (false, ..) => {}
                (true, 1.., _) => skip -= 1,
                (true, 0, true) => partitions.push(state),
                (true, 0, false) => left += 1,
            }
        }
    }
    Ok(ClusterStatus {
        cluster: view.cluster().unwrap_or_default(),
        node,
        version: view.version(),
        consensus,
        nodes: nodes.into_values().collect(),
        counts,
        partitions,
        left,
    })
}

/// Whether the preferred leader could lead a partition that another one leads.
pub fn is_led_elsewhere(view: &CatalogueView, record: &PartitionRecord) -> bool {
    let preferred = record.replicas[0].node;
    record.leader.is_some_and(|leader| leader != preferred)
        && record.in_sync(preferred)
        && view.node(preferred).is_some_and(|node| node.state == NodeState::Live)
}

/// Partitions that the preferred leader could lead and does not.
pub fn led_elsewhere(view: &CatalogueView) -> u32 {
    view.all_partitions().filter(|(_, record)| is_led_elsewhere(view, record)).count() as u32
}

fn is_unwell(state: &PartitionState) -> bool {
    state.is_offline() || state.is_below_min_insync() || state.is_under_replicated() || state.target.is_some()
}

fn partition_state(topic: &Topic, partition: u32, record: &PartitionRecord) -> PartitionState {
    PartitionState {
        topic: topic.name.clone(),
        partition,
        leader: record.leader,
        leader_epoch: record.leader_epoch,
        replicas: record.replicas.iter().map(|replica| replica.node).collect(),
        isr: record.isr.clone(),
        eligible: record.eligible.clone(),
        target: record.target.clone(),
        min_insync: topic.config.min_insync_replicas,
    }
}

fn count(counts: &mut ClusterCounts, view: &CatalogueView, record: &PartitionRecord, state: &PartitionState) {
    counts.partitions += 1;
    counts.offline += u32::from(state.is_offline());
    counts.below_min_insync += u32::from(state.is_below_min_insync());
    counts.under_replicated += u32::from(state.is_under_replicated());
    counts.moving += u32::from(state.target.is_some());
    counts.led_elsewhere += u32::from(is_led_elsewhere(view, record));
}

fn count_on_nodes(nodes: &mut BTreeMap<NodeId, NodeStatus>, view: &CatalogueView, id: &TopicPartition, record: &PartitionRecord) {
    for replica in &record.replicas {
        if let Some(node) = nodes.get_mut(&replica.node) {
            node.replicas += 1;
            node.behind += u32::from(!record.in_sync(replica.node));
        }
    }
    let shard = record.leader.and_then(|leader| view.shard_on(leader, id).map(|shard| (leader, shard as usize)));
    if let Some((leader, shard)) = shard
        && let Some(node) = nodes.get_mut(&leader)
    {
        node.leads[shard] += 1;
    }
}

fn node_status(view: &CatalogueView, node: &Node) -> NodeStatus {
    let registration = &node.registration;
    let condition = match node.state {
        NodeState::Live => NodeCondition::Live,
        NodeState::Draining => NodeCondition::Draining,
        NodeState::Fenced => NodeCondition::Fenced,
    };
    NodeStatus {
        node: node.id(),
        condition,
        retiring: node.retiring,
        node_epoch: node.epoch,
        incarnation: registration.incarnation,
        shards: registration.shards,
        rack: registration.rack.clone(),
        software: registration.software.clone(),
        cluster_address: registration.cluster_address.as_ref().map(host_port),
        clients: registration.clients.iter().map(host_port).collect(),
        leads: vec![0; registration.shards as usize],
        preferred: view.load(node.id()).map_or(0, |load| load.all_leaders() as u32),
        replicas: 0,
        behind: 0,
    }
}

fn host_port(endpoint: &Endpoint) -> HostPort {
    HostPort { host: endpoint.host.clone(), port: endpoint.port }
}
