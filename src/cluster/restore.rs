//! From the commands of a snapshot to the state that they stand for.
//!
//! They are no history: nothing is placed or elected, each says how something stood. Bytes that check were written by this state machine, but perhaps by a version
//! with a fault, so what could break a later command is looked at here.

use std::sync::Arc;

use super::catalogue::Catalogue;
use super::command::{Command, PartitionsSnapshot};
use crate::limits;
use crate::replication::PartitionRecord;
use crate::request::{Code, Refusal};
use crate::types::TopicPartition;

impl Catalogue {
    /// Takes one command of a snapshot.
    pub(super) fn restore(&mut self, command: &Command) -> Result<(), Refusal> {
        match command {
            Command::CreateTopic { id, name, partitions, replication_factor, config } => {
                let topic = self.check_topic(*id, name, *partitions, *replication_factor, config)?;
                Arc::make_mut(&mut self.view).put_topic(topic);
            }
            Command::SnapshotCluster { cluster, last_node_epoch } => {
                let view = Arc::make_mut(&mut self.view);
                (view.cluster, view.node_epoch) = (Some(*cluster), *last_node_epoch);
            }
            Command::SnapshotNode(node) => {
                node.registration.check()?;
                if node.epoch > self.view.node_epoch
                    || self.view.node(node.id()).is_some()
                    || self.view.cluster != Some(node.registration.cluster)
                {
                    return Err(wrong(format!("node {} of epoch {} can't be in it", node.id(), node.epoch)));
                }
                Arc::make_mut(&mut self.view).put_node((**node).clone());
            }
            Command::SnapshotPartitions(snapshot) => self.restore_partitions(snapshot)?,
            other => return Err(wrong(format!("{other:?} does not belong to a snapshot"))),
        }
        Ok(())
    }

    /// Once all of it is there.
    pub(super) fn check_restored(&self) -> Result<(), Refusal> {
        let expected = |partitions: u32| if self.view.nodes.is_empty() { 0 } else { partitions as usize };
        match self.view.topics().find(|topic| self.view.records.len(&topic.id) != expected(topic.partitions)) {
            Some(topic) => Err(wrong(format!("it has {} records of topic {}", self.view.records.len(&topic.id), topic.name))),
            None => Ok(()),
        }
    }

    fn restore_partitions(&mut self, snapshot: &PartitionsSnapshot) -> Result<(), Refusal> {
        let topic = Arc::clone(self.existing(&snapshot.topic)?);
        let view = Arc::make_mut(&mut self.view);
        for (partition, (record, shards)) in (u64::from(snapshot.first)..).zip(&snapshot.partitions) {
            if partition != view.records.len(&topic.id) as u64 || partition >= u64::from(topic.partitions) {
                return Err(wrong(format!("partition {partition} of topic {} is not the next one", topic.name)));
            }
            let partition = TopicPartition { topic: topic.id, partition: partition as u32 };
            check_record(record).map_err(|what| wrong(format!("partition {partition}: {what}")))?;
            if let Some(stranger) = record.replicas.iter().find(|replica| view.node(replica.node).is_none()) {
                return Err(wrong(format!("partition {partition} has a replica on node {}, which is not registered", stranger.node)));
            }
            view.put_record(&partition, record.clone());
            for (node, shard) in shards {
                let has_shard = view.node(*node).is_some_and(|node| *shard < node.registration.shards);
                if !has_shard || record.replica(*node).is_none() {
                    return Err(wrong(format!("partition {partition} is on shard {shard} of node {node}")));
                }
                view.place_on_shard(&partition, *node, Some(*shard));
            }
        }
        Ok(())
    }
}

/// What always holds of a record.
pub(super) fn check_record(record: &PartitionRecord) -> Result<(), &'static str> {
    let is_replica = |node: &u32| record.replica(*node).is_some();
    let nodes: Vec<_> = record.replicas.iter().map(|replica| replica.node).collect();
    let is_set = |nodes: &[u32]| (1..nodes.len()).all(|at| !nodes[..at].contains(&nodes[at]));
    if nodes.is_empty() || nodes.len() > 2 * limits::MAX_REPLICAS || !is_set(&nodes) {
        return Err("its replicas are no set, or too many");
    }
    if !is_set(&record.isr) || !is_set(&record.eligible) || !record.isr.iter().chain(&record.eligible).all(is_replica) {
        return Err("who is in sync or eligible is no set of replicas");
    }
    if record.isr.iter().any(|member| record.eligible.contains(member)) {
        return Err("one is in sync and eligible");
    }
    if record.leader.is_some_and(|leader| !record.isr.contains(&leader)) {
        return Err("its leader is not in sync");
    }
    if record.target.as_ref().is_some_and(|target| target.is_empty() || !is_set(target) || !target.iter().all(is_replica)) {
        return Err("its target is no set of replicas");
    }
    let newest = record.replicas.iter().map(|replica| replica.incarnation).max();
    if record.leader_epoch < 0 || newest > Some(record.version) || record.unclean_epoch.is_some_and(|epoch| epoch > record.leader_epoch) {
        return Err("its epoch, its version or an incarnation can't be");
    }
    Ok(())
}

fn wrong(what: String) -> Refusal {
    Refusal::new(Code::Internal, format!("the snapshot contradicts itself: {what}"))
}
