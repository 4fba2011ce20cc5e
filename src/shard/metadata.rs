//! What clients are told of brokers and topics: the advertised shards of all nodes that are there, and where each partition is led.
//!
//! A node tells what its own catalogue says, which may be a moment behind: a client that is led astray is refused there and asks again. What it
//! tells of itself
//! is what it was started with.

use std::collections::HashSet;
use std::ops::Range;
use std::rc::Rc;

use crate::cluster::{CatalogueView, Node, Topic};
use crate::limits;
use crate::replication::NodeId;
use crate::request::{
    Broker, Code, CreateTopic, Metadata, MetadataRequest, PartitionMetadata, Refusal, ReplicaLists, TopicMetadata, TopicPartitions,
};
use crate::shard::context::{Context, NodeIdentity};
use crate::shard::service;
use crate::types::{TopicPartition, is_internal_topic};

/// Bytes of a metadata answer for a topic and for a partition of it with one replica, with what the protocol adds; at most.
const METADATA_OF_TOPIC: usize = 256;
/// See [`METADATA_OF_TOPIC`].
const METADATA_OF_PARTITION: usize = 34;
/// Bytes of an advertised id in a list of replicas.
const METADATA_OF_REPLICA: usize = 4;

/// Describes brokers and topics, and makes those that are missing where that is asked for and allowed.
pub async fn metadata(context: &Rc<Context>, request: MetadataRequest) -> Metadata {
    let mut topics = Vec::new();
    let names = match request.topics {
        Some(names) => names,
        None => context.view.borrow().topics().map(|t| t.name.clone()).collect(),
    };
    let (mut seen, mut room, mut tries) = (HashSet::new(), limits::MAX_RESPONSE_HEADER, limits::MAX_CREATED_BY_NAME);
    for name in names {
        glommio::yield_if_needed().await;
        if !seen.insert(name.clone()) {
            continue;
        }
        let mut found = describe_partitions(context, &name);
        // The broker makes its own topics when it needs them, with settings of its own.
        let may_create = request.create_missing && context.auto_create_topics && !is_internal_topic(&name);
        if may_create && found.as_ref().is_err_and(|r| r.code == Code::UnknownTopicOrPartition) {
            let create =
                CreateTopic { name: name.clone(), partitions: None, replication_factor: None, config: Vec::new(), validate_only: false };
            found = match tries {
                0 => {
                    Err(Refusal::new(Code::LimitReached, "a request that names topics creates some of them only: ask again for the others"))
                }
                _ => match service::create_topic(context, create).await {
                    Err(refusal) if refusal.code != Code::TopicExists => Err(refusal),
                    _ => describe_partitions(context, &name),
                },
            };
            tries = tries.saturating_sub(1);
        }
        let of_partitions =
            |found: &TopicPartitions| found.partitions.len() * METADATA_OF_PARTITION + found.replicas.ids() * METADATA_OF_REPLICA;
        let size = METADATA_OF_TOPIC + name.len() + found.as_ref().map_or(0, of_partitions);
        match room.checked_sub(size) {
            Some(left) => room = left,
            None => {
                found = Err(Refusal::new(Code::LimitReached, format!("no room for topic {name:?} in one answer: ask for fewer topics")))
            }
        }
        topics.push(TopicMetadata { name, found });
    }
    let brokers = advertised(context, &context.view.borrow()).brokers();
    // Every node takes changes and passes them on to the leader of the consensus; this one is there for certain.
    let controller = context.identity.brokers.first().map_or(0, |b| b.id);
    Metadata { cluster: context.identity.cluster, brokers, controller, topics }
}

fn describe_partitions(context: &Context, name: &str) -> Result<TopicPartitions, Refusal> {
    let view = context.view.borrow();
    let topic = view.topic(name).ok_or_else(|| service::unknown(name))?;
    Ok(advertised(context, &view).topic(topic))
}

/// What this node advertises by a state of the catalogue.
pub fn advertised<'a>(context: &'a Context, view: &'a CatalogueView) -> Advertised<'a> {
    Advertised { identity: &context.identity, shards: context.mesh.shards(), view }
}

/// What a node advertises.
#[derive(Clone, Copy)]
pub struct Advertised<'a> {
    identity: &'a NodeIdentity,
    /// Of this node.
    shards: u32,
    view: &'a CatalogueView,
}

impl Advertised<'_> {
    /// The advertised shards of all nodes that are there, by node and shard.
    pub fn brokers(&self) -> Vec<Broker> {
        let others = |nodes: Range<NodeId>| {
            let live = self.view.nodes().filter(move |node| nodes.contains(&node.id()) && node.is_live());
            live.flat_map(|node| (0..node.registration.clients.len() as u32).filter_map(|shard| node.client_endpoint(shard)))
                .map(|(id, endpoint)| Broker { id, host: endpoint.host.clone(), port: endpoint.port })
        };
        let this = self.identity;
        others(0..this.node).chain(this.brokers.iter().cloned()).chain(others(this.node + 1..NodeId::MAX)).collect()
    }

    /// The advertised shard through which a node's replica of a partition is reached: its own, or with fewer endpoints than shards one that is
    /// advertised.
    pub fn broker_of(&self, node: NodeId, partition: &TopicPartition) -> u32 {
        if node == self.identity.node {
            let brokers = &self.identity.brokers;
            return brokers[partition.topic.shard_of(partition.partition, self.shards) as usize % brokers.len()].id;
        }
        let place = |known: &'_ Node| Some(known.client_endpoint(self.view.shard_on(node, partition)?)?.0);
        self.view.node(node).and_then(|known| place(known)).unwrap_or(node * limits::MAX_SHARDS)
    }

    /// The node that leads a partition; `None` while nobody may. Without a record of the partition this node is alone.
    pub fn leader_of(&self, partition: &TopicPartition) -> Option<NodeId> {
        self.view.partition(partition).map_or(Some(self.identity.node), |record| record.leader)
    }

    /// The advertised shard to which requests for a partition go.
    pub fn leading_broker(&self, partition: &TopicPartition) -> Option<Broker> {
        let node = self.leader_of(partition)?;
        let id = self.broker_of(node, partition);
        if node == self.identity.node {
            return self.identity.brokers.iter().find(|broker| broker.id == id).cloned();
        }
        let (_, endpoint) = self.view.node(node)?.client_endpoint(id % limits::MAX_SHARDS)?;
        Some(Broker { id, host: endpoint.host.clone(), port: endpoint.port })
    }

    /// Where the partitions of a topic are.
    pub fn topic(&self, topic: &Topic) -> TopicPartitions {
        let partition = |partition| {
            let id = TopicPartition { topic: topic.id, partition };
            let leader = self.leader_of(&id).map(|node| self.broker_of(node, &id));
            PartitionMetadata { leader, leader_epoch: self.view.leader_epoch(&id) }
        };
        let partitions = (0..topic.partitions).map(partition).collect();
        let replicas = if self.view.nodes().len() > 1 { self.replicas(topic) } else { ReplicaLists::default() };
        TopicPartitions { id: topic.id, partitions, replicas, max_message_bytes: topic.config.max_message_bytes }
    }

    fn replicas(&self, topic: &Topic) -> ReplicaLists {
        let mut lists = ReplicaLists::default();
        for (partition, record) in (0..).zip(self.view.partitions_of_topic(&topic.id)) {
            let id = TopicPartition { topic: topic.id, partition };
            let broker = |node: NodeId| self.broker_of(node, &id);
            let all = record.replicas.iter().map(|replica| replica.node);
            let is_away = |node: &NodeId| self.view.node(*node).is_none_or(|known| !known.is_live());
            lists.push(all.clone().map(broker), record.isr.iter().copied().map(broker), all.filter(is_away).map(broker));
        }
        lists
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::node::tests::registration;
    use crate::cluster::{Catalogue, Command, Endpoint, Registration};
    use crate::types::TopicId;

    const TOPIC: TopicId = TopicId([8; 16]);

    fn catalogue(nodes: impl IntoIterator<Item = Registration>, replication_factor: u16) -> Catalogue {
        let mut catalogue = Catalogue::new();
        for node in nodes {
            catalogue.apply(&Command::RegisterNode(Box::new(node))).unwrap();
        }
        let create = Command::CreateTopic { id: TOPIC, name: "t".into(), partitions: 6, replication_factor, config: vec![] };
        catalogue.apply(&create).unwrap();
        catalogue
    }

    fn broker(id: u32, port: u16) -> Broker {
        Broker { id, host: "localhost".into(), port }
    }

    /// Node 1, with three shards of which two are advertised.
    fn identity() -> NodeIdentity {
        NodeIdentity { cluster: [9; 16], node: 1, brokers: vec![broker(1024, 7000), broker(1025, 7001)] }
    }

    fn described(identity: &NodeIdentity, catalogue: &Catalogue) -> TopicPartitions {
        let view = catalogue.view();
        Advertised { identity, shards: 3, view }.topic(view.topic("t").unwrap())
    }

    #[test]
    fn every_partition_is_where_its_leader_is() {
        let mut catalogue = catalogue([0, 1, 2].map(registration), 3);
        let identity = identity();
        let view = catalogue.view().clone();
        let advertised = Advertised { identity: &identity, shards: 3, view: &view };
        let ids: Vec<u32> = advertised.brokers().iter().map(|broker| broker.id).collect();
        assert_eq!(ids, [0, 1, 1024, 1025, 2048, 2049]);
        assert_eq!(advertised.brokers()[2], broker(1024, 7000), "of this node as it was started, not as it had registered");
        for (found, at) in described(&identity, &catalogue).partitions.iter().zip(0..) {
            let id = TopicPartition { topic: TOPIC, partition: at };
            let node = view.partition(&id).unwrap().leader.unwrap();
            let shard = if node == 1 { TOPIC.shard_of(at, 3) % 2 } else { view.shard_on(node, &id).unwrap() };
            assert_eq!(found.leader, Some(node * 1024 + shard));
            assert_eq!(advertised.leading_broker(&id).map(|broker| broker.id), found.leader);
        }
        let epoch = catalogue.view().node(2).unwrap().epoch;
        catalogue.apply(&Command::FenceNode { node: 2, node_epoch: epoch }).unwrap();
        let after = described(&identity, &catalogue);
        assert!(after.partitions.iter().all(|p| p.leader.is_some_and(|id| id < 2048) && p.leader_epoch >= 0));
        for partition in 0..6 {
            let replicas = after.replicas.get(partition).unwrap();
            assert_eq!((replicas.all.len(), replicas.in_sync.len(), replicas.offline.len()), (3, 2, 1));
            assert_eq!(replicas.offline[0] / 1024, 2);
        }
        let view = catalogue.view();
        let brokers = Advertised { identity: &identity, shards: 3, view }.brokers();
        assert!(brokers.iter().all(|broker| broker.id < 2048), "a fenced node is not told of");
    }

    #[test]
    fn nobody_leads_what_nobody_may_lead() {
        let mut catalogue = catalogue([0, 1].map(registration), 1);
        let away = catalogue.view().node(0).unwrap().epoch;
        catalogue.apply(&Command::FenceNode { node: 0, node_epoch: away }).unwrap();
        let (identity, view) = (identity(), catalogue.view());
        let found = described(&identity, &catalogue);
        let (led, unled): (Vec<_>, Vec<_>) = (0..6).partition(|at| found.partitions[*at].leader.is_some());
        assert!(!led.is_empty() && !unled.is_empty());
        assert!(unled.iter().all(|at| found.replicas.get(*at).unwrap().offline.len() == 1));
        let unled = TopicPartition { topic: TOPIC, partition: unled[0] as u32 };
        assert_eq!(Advertised { identity: &identity, shards: 3, view }.leading_broker(&unled), None);
    }

    #[test]
    fn a_node_that_is_alone_tells_of_itself_only() {
        let register = Registration { clients: vec![Endpoint::new("elsewhere", 1)], ..registration(1) };
        let (identity, catalogue) = (identity(), catalogue([register], 1));
        let found = described(&identity, &catalogue);
        let expected: Vec<_> = (0..6).map(|p| Some(1024 + TOPIC.shard_of(p, 3) % 2)).collect();
        assert_eq!(found.partitions.iter().map(|p| p.leader).collect::<Vec<_>>(), expected);
        assert_eq!(found.replicas, ReplicaLists::default());
        let advertised = Advertised { identity: &identity, shards: 3, view: catalogue.view() };
        assert_eq!(advertised.brokers(), identity.brokers);
    }
}
