//! Nodes come, stop, fail and go, and the partitions of each with them: elections happen in the command that is their cause.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::catalogue::{Applied, Catalogue, ChangedPartitions, exhausted};
use super::node::{Node, NodeState, Registration};
use super::view::{CatalogueView, Topic};
use crate::limits;
use crate::replication::{NodeId, PartitionRecord};
use crate::request::{Code, Refusal};
use crate::types::{Durability, TopicId, TopicPartition};

/// The nodes as an election sees them.
pub(super) struct Present<'a>(&'a BTreeMap<NodeId, Arc<Node>>);

impl Present<'_> {
    /// Whether a node may be in an ISR.
    pub(super) fn is_live(&self, node: NodeId) -> bool {
        self.0.get(&node).is_some_and(|node| node.is_live())
    }

    /// Whether leadership may be moved to it.
    pub(super) fn is_staying(&self, node: NodeId) -> bool {
        self.0.get(&node).is_some_and(|node| node.state == NodeState::Live)
    }

    /// The registration of a node that is live.
    pub(super) fn epoch(&self, node: NodeId) -> Option<u64> {
        self.0.get(&node).filter(|node| node.is_live()).map(|node| node.epoch)
    }
}

impl CatalogueView {
    pub(super) fn present(&self) -> Present<'_> {
        Present(&self.nodes)
    }
}

impl Catalogue {
    pub(super) fn register_node(&mut self, registration: &Registration) -> Result<Applied, Refusal> {
        registration.check()?;
        let before = self.check_identity(registration)?;
        let node_epoch = self.view.node_epoch.checked_add(1).ok_or_else(|| exhausted("node epochs"))?;
        let id = registration.node;
        let is_first = self.view.nodes.is_empty();
        let first_epoch = self.view.epoch.checked_add(1).ok_or_else(|| exhausted("leader epochs"))?;

        let view = Arc::make_mut(&mut self.view);
        view.cluster = Some(registration.cluster);
        view.node_epoch = node_epoch;
        let retiring = before.as_ref().is_some_and(|before| before.retiring);
        view.put_node(Node { registration: registration.clone(), epoch: node_epoch, state: NodeState::Live, retiring });
        let changed = match before {
            None if is_first => self.take_over(id, first_epoch),
            None => Vec::new(),
            Some(before) if before.registration.incarnation != registration.incarnation => self.update(
                |record| record.replica(id).is_some(),
                None,
                |record, topic, nodes| record.replica_lost(id, topic.min_insync(), |node| nodes.is_live(node)),
            ),
            Some(before) => {
                // What a run acknowledged it acknowledged at the durability that was in force then.
                let (durability, clean) = (before.registration.durability, registration.clean_stop);
                self.update(
                    |record| record.replica(id).is_some(),
                    None,
                    |record, topic, nodes| match clean || topic.durability(durability) == Durability::Durable {
                        true => record.node_registered(id, topic.min_insync(), |node| nodes.is_live(node)),
                        false => stopped_uncleanly(record, id, topic.min_insync(), nodes),
                    },
                )
            }
        };
        Ok(Applied::NodeRegistered { node: id, node_epoch, changed: ChangedPartitions::of(changed) })
    }

    /// The node as it was registered, if the one that registers may be it.
    fn check_identity(&self, registration: &Registration) -> Result<Option<Node>, Refusal> {
        let uuid = |bytes: &[u8; 16]| uuid::Uuid::from_bytes(*bytes);
        let id = registration.node;
        if let Some(cluster) = self.view.cluster.filter(|cluster| *cluster != registration.cluster) {
            let message = format!("node {id} is of cluster {}, this is cluster {}", uuid(&registration.cluster), uuid(&cluster));
            return Err(Refusal::new(Code::InconsistentClusterId, message));
        }
        let same_life = |node: &&Arc<Node>| node.registration.incarnation == registration.incarnation && node.id() != id;
        if let Some(twin) = self.view.nodes().find(same_life) {
            let message = format!("node {id} has incarnation {}, which is node {}'s", uuid(&registration.incarnation), twin.id());
            return Err(Refusal::new(Code::DuplicateBrokerRegistration, message));
        }
        let Some(node) = self.view.node(id) else {
            if self.view.nodes.len() >= limits::MAX_NODES {
                return Err(Refusal::new(Code::LimitReached, format!("a cluster has at most {} nodes", limits::MAX_NODES)));
            }
            return Ok(None);
        };
        if node.registration.incarnation != registration.incarnation && node.is_live() {
            let (present, new) = (uuid(&node.registration.incarnation), uuid(&registration.incarnation));
            let message = format!("the id {id} is in use by incarnation {present}, which is not fenced; incarnation {new} can't have it");
            return Err(Refusal::new(Code::DuplicateBrokerRegistration, message));
        }
        Ok(Some(Node::clone(node)))
    }

    /// The topics of a node that was alone become those of a cluster of one. Their leader epochs go on from the number of its starts.
    fn take_over(&mut self, node: NodeId, epoch: i32) -> Vec<TopicPartition> {
        let view = Arc::make_mut(&mut self.view);
        let topics: Vec<_> = view.topics().cloned().collect();
        let mut changed = Vec::new();
        for topic in topics {
            for partition in (0..topic.partitions).map(|partition| TopicPartition { topic: topic.id, partition }) {
                view.put_record(&partition, PartitionRecord { leader_epoch: epoch, ..PartitionRecord::new(&[node], |_| true) });
                changed.push(partition);
            }
        }
        changed
    }

    pub(super) fn fence_node(&mut self, node: NodeId, node_epoch: u64) -> Result<Applied, Refusal> {
        self.check_registration(node, node_epoch)?;
        Arc::make_mut(&mut self.view).set_node_state(node, NodeState::Fenced);
        let changed = self.update(
            |record| record.in_sync(node),
            None,
            |record, topic, nodes| record.node_away(node, topic.min_insync(), |node| nodes.is_live(node)),
        );
        Ok(Applied::NodeChanged { node, changed: ChangedPartitions::of(changed) })
    }

    pub(super) fn drain_node(&mut self, node: NodeId, node_epoch: u64) -> Result<Applied, Refusal> {
        self.check_registration(node, node_epoch)?;
        Arc::make_mut(&mut self.view).set_node_state(node, NodeState::Draining);
        // Whoever can take over does so in `settle`.
        let changed = self.update(|record| record.leader == Some(node), None, |_, _, _| false);
        Ok(Applied::NodeChanged { node, changed: ChangedPartitions::of(changed) })
    }

    pub(super) fn retire_node(&mut self, node: NodeId, retiring: bool) -> Result<Applied, Refusal> {
        let before = self.registered(node)?;
        if before.retiring != retiring {
            let changed = Node { retiring, ..Node::clone(before) };
            Arc::make_mut(&mut self.view).put_node(changed);
        }
        Ok(Applied::NodeChanged { node, changed: ChangedPartitions::These(Vec::new()) })
    }

    pub(super) fn remove_node(&mut self, node: NodeId) -> Result<Applied, Refusal> {
        let present = self.registered(node)?;
        let refused = |what: String| Err(Refusal::new(Code::InvalidRequest, format!("node {node} can't be removed: {what}")));
        if present.is_live() && !present.retiring {
            return refused("it is there, and is not being decommissioned".into());
        }
        if self.view.nodes.len() == 1 {
            return refused("it is the only one".into());
        }
        let replicas = self.view.partitions_on(node).count();
        if replicas > 0 {
            return refused(format!("it has replicas of {replicas} partitions"));
        }
        Arc::make_mut(&mut self.view).remove_node(node);
        Ok(Applied::NodeChanged { node, changed: ChangedPartitions::These(Vec::new()) })
    }

    pub(super) fn registered(&self, node: NodeId) -> Result<&Arc<Node>, Refusal> {
        self.view.node(node).ok_or_else(|| Refusal::new(Code::BrokerIdNotRegistered, format!("node {node} is not registered")))
    }

    /// Whether a node is there under this registration.
    fn check_registration(&self, node: NodeId, node_epoch: u64) -> Result<(), Refusal> {
        let present = self.registered(node)?;
        if present.epoch != node_epoch || !present.is_live() {
            let message = format!("node {node} is in epoch {} and {:?}, not there in epoch {node_epoch}", present.epoch, present.state);
            return Err(Refusal::new(Code::StaleBrokerEpoch, message));
        }
        Ok(())
    }

    /// Changes the records that are involved, of all topics or of one, and does what follows from each change. Returns those that are different now.
    pub(super) fn update(
        &mut self,
        involved: impl Fn(&PartitionRecord) -> bool,
        only: Option<&TopicId>,
        mut change: impl FnMut(&mut PartitionRecord, &Topic, &Present<'_>) -> bool,
    ) -> Vec<TopicPartition> {
        let mut changes = Vec::new();
        let nodes = self.view.present();
        for topic in self.view.topics().filter(|topic| only.is_none_or(|only| topic.id == *only)) {
            for (partition, record) in (0..).zip(self.view.partitions_of_topic(&topic.id)).filter(|(_, record)| involved(record)) {
                let mut record = PartitionRecord::clone(record);
                if change(&mut record, topic, &nodes) | settle(&mut record, topic.min_insync(), &nodes) {
                    changes.push((TopicPartition { topic: topic.id, partition }, record));
                }
            }
        }
        let view = Arc::make_mut(&mut self.view);
        changes
            .into_iter()
            .map(|(partition, record)| {
                view.put_record(&partition, record);
                partition
            })
            .collect()
    }
}

/// What follows from any change: a reassignment that is complete ends, nobody is eligible who must not be, and a node that is about to stop leads only what nobody
/// else may lead. True if anything changed.
pub(super) fn settle(record: &mut PartitionRecord, min_insync: usize, nodes: &Present<'_>) -> bool {
    let mut changed = record.min_insync_changed(min_insync);
    changed |= record.finish_reassignment(min_insync, |node| nodes.is_live(node));
    if let Some(leader) = record.leader
        && nodes.is_live(leader)
        && !nodes.is_staying(leader)
    {
        let candidates = record.replicas.iter().map(|replica| replica.node);
        let found = candidates.filter(|node| record.in_sync(*node)).find(|node| nodes.is_staying(*node));
        changed |= found.is_some_and(|to| record.hand_over(to, |node| nodes.is_staying(node)).is_ok());
    }
    changed
}

/// A replica of a topic below `durable` is there again after an unclean stop: what it acknowledged last may be gone. Where it was the last one that had everything,
/// it is what there is: the durability that was asked for says that this may happen, so it leads, and its epoch is marked.
fn stopped_uncleanly(record: &mut PartitionRecord, node: NodeId, min_insync: usize, nodes: &Present<'_>) -> bool {
    let had_all = record.may_lead(node);
    let changed = record.replica_lost(node, min_insync, |node| nodes.is_live(node));
    // One that had left the ISR before waits, as the others do, for an administrator: another may have more.
    if had_all && record.leader.is_none() && record.isr.is_empty() && record.eligible.is_empty() {
        record.elect_unclean(node, |node| nodes.is_live(node)).expect("nobody leads, and nobody else may");
    }
    changed
}
