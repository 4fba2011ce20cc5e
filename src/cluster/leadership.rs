//! The commands of single partitions: who is in sync, who leads, where the replicas are.

use std::sync::Arc;

use super::catalogue::{Applied, Catalogue, ChangedPartitions, check_min_insync};
use super::command::Election;
use super::membership::{Present, settle};
use super::view::{Topic, goal};
use crate::limits;
use crate::replication::{IsrChange, NodeId, PartitionRecord, RecordRefusal, Replica};
use crate::request::{Code, Refusal};
use crate::types::TopicPartition;

impl Catalogue {
    pub(super) fn change_isr(&mut self, partition: &TopicPartition, change: &IsrChange) -> Result<Applied, Refusal> {
        self.change(partition, |record, topic, nodes| {
            record.change_isr(change, topic.min_insync(), |node| nodes.epoch(node)).map_err(|refused| refusal(partition, &refused))
        })
    }

    pub(super) fn replica_lost(&mut self, partition: &TopicPartition, replica: Replica) -> Result<Applied, Refusal> {
        self.change(partition, |record, topic, nodes| {
            let node = replica.node;
            let present = record.replica(node).ok_or_else(|| refusal(partition, &RecordRefusal::NotReplica(node)))?;
            if present.incarnation != replica.incarnation {
                let stale = RecordRefusal::StaleIncarnation { node, expected: present.incarnation, actual: replica.incarnation };
                return Err(refusal(partition, &stale));
            }
            record.replica_lost(node, topic.min_insync(), |node| nodes.is_live(node));
            Ok(())
        })
    }

    pub(super) fn elect_leader(&mut self, partition: &TopicPartition, election: Election) -> Result<Applied, Refusal> {
        self.change(partition, |record, _, nodes| {
            let refused = |code, what: String| Err(Refusal::new(code, format!("partition {partition}: {what}")));
            let to = match election {
                Election::Preferred => record.replicas[0].node,
                Election::HandOver(node) | Election::Unclean(node) => node,
            };
            match election {
                _ if record.leader == Some(to) => refused(Code::ElectionNotNeeded, format!("node {to} leads")),
                Election::Unclean(_) => record.elect_unclean(to, |node| nodes.is_live(node)).map_err(|why| refusal(partition, &why)),
                Election::Preferred if !record.in_sync(to) || !nodes.is_staying(to) => {
                    refused(Code::PreferredLeaderNotAvailable, format!("node {to} is not in sync, or about to stop"))
                }
                _ if record.replica(to).is_none() => Err(refusal(partition, &RecordRefusal::NotReplica(to))),
                _ if !record.in_sync(to) || !nodes.is_staying(to) => {
                    refused(Code::EligibleLeadersNotAvailable, format!("node {to} is not in sync, or about to stop"))
                }
                _ => record.hand_over(to, |node| nodes.is_staying(node)).map_err(|why| refusal(partition, &why)),
            }
        })
    }

    pub(super) fn reassign(&mut self, partition: &TopicPartition, target: &[NodeId]) -> Result<Applied, Refusal> {
        let refused = |what: String| Err(Refusal::new(Code::InvalidReplicaAssignment, format!("partition {partition}: {what}")));
        let (topic, record) = self.partition(partition)?;
        if !(1..=limits::MAX_REPLICAS).contains(&target.len()) {
            return refused(format!("{} replicas, 1 to {} can be", target.len(), limits::MAX_REPLICAS));
        }
        if record.target.as_deref().unwrap_or(&goal(&record)) == target {
            // They are these, or are to be: the request may have come before, and its answer been lost.
            return Ok(Applied::PartitionsChanged(ChangedPartitions::These(Vec::new())));
        }
        for id in target {
            let node = self.registered(*id)?;
            if record.replica(*id).is_none() && (node.retiring || !node.is_live()) {
                return refused(format!("node {id} takes no new replica: it is {}", if node.retiring { "to go" } else { "fenced" }));
            }
        }
        let added = target.iter().filter(|node| record.replica(**node).is_none()).count();
        if record.replicas.len() + added > 2 * limits::MAX_REPLICAS {
            return refused("too many of its replicas come and go; wait until the present reassignment is over".into());
        }
        let replication_factor = self.least_replicas(&topic, partition, target.len() as u16);
        check_min_insync(&topic.config, replication_factor)?;
        let applied = self.change(partition, |record, _, _| {
            record.reassign(target).map_err(|why| Refusal::new(Code::InvalidReplicaAssignment, format!("partition {partition}: {why}")))
        })?;
        if topic.replication_factor != replication_factor {
            let topic = Topic { replication_factor, ..Topic::clone(&topic) };
            Arc::make_mut(&mut self.view).put_topic(Arc::new(topic));
        }
        Ok(applied)
    }

    /// The least number of replicas of a topic's partitions, once this one has `replicas`.
    fn least_replicas(&self, topic: &Topic, partition: &TopicPartition, replicas: u16) -> u16 {
        let present = topic.replication_factor;
        if replicas <= present {
            return replicas;
        }
        let others = (0..).zip(self.view.partitions_of_topic(&topic.id)).filter(|(at, _)| *at != partition.partition);
        let mut least = replicas;
        for (_, record) in others {
            least = least.min(goal(record).len() as u16);
            // Most often the first one tells: it was the same number for all before.
            if least <= present {
                return present;
            }
        }
        least
    }

    /// Leadership goes to preferred leaders that are in sync and stay, of at most so many partitions.
    pub(super) fn balance_leaders(&mut self, most: u32) -> Applied {
        let mut left = most;
        let changed = self.update(
            |record| record.leader != Some(record.replicas[0].node),
            None,
            |record, _, nodes| {
                let preferred = record.replicas[0].node;
                let moves = left > 0 && record.hand_over(preferred, |node| nodes.is_staying(node)).is_ok();
                left -= u32::from(moves);
                moves
            },
        );
        Applied::PartitionsChanged(ChangedPartitions::of(changed))
    }

    pub(super) fn place_on_shard(&mut self, partition: &TopicPartition, node: NodeId, shard: Option<u32>) -> Result<Applied, Refusal> {
        let (_, record) = self.partition(partition)?;
        let shards = self.registered(node)?.registration.shards;
        if record.replica(node).is_none() {
            return Err(refusal(partition, &RecordRefusal::NotReplica(node)));
        }
        if let Some(shard) = shard.filter(|shard| *shard >= shards) {
            let message = format!("partition {partition}: node {node} has {shards} shards, no shard {shard}");
            return Err(Refusal::new(Code::InvalidReplicaAssignment, message));
        }
        Arc::make_mut(&mut self.view).place_on_shard(partition, node, shard);
        Ok(Applied::PartitionsChanged(ChangedPartitions::These(vec![*partition])))
    }

    fn partition(&self, partition: &TopicPartition) -> Result<(Arc<Topic>, Arc<PartitionRecord>), Refusal> {
        let topic = self.existing(&partition.topic)?;
        let unknown = || Refusal::new(Code::UnknownTopicOrPartition, format!("there is no partition {partition}"));
        Ok((Arc::clone(topic), Arc::clone(self.view.partition(partition).ok_or_else(unknown)?)))
    }

    /// Changes one record, and does what follows.
    fn change(
        &mut self,
        partition: &TopicPartition,
        change: impl FnOnce(&mut PartitionRecord, &Topic, &Present<'_>) -> Result<(), Refusal>,
    ) -> Result<Applied, Refusal> {
        let (topic, record) = self.partition(partition)?;
        let mut record = PartitionRecord::clone(&record);
        let nodes = self.view.present();
        change(&mut record, &topic, &nodes)?;
        settle(&mut record, topic.min_insync(), &nodes);
        Arc::make_mut(&mut self.view).put_record(partition, record);
        Ok(Applied::PartitionsChanged(ChangedPartitions::These(vec![*partition])))
    }
}

fn refusal(partition: &TopicPartition, why: &RecordRefusal) -> Refusal {
    let code = match why {
        RecordRefusal::StaleVersion { .. } => Code::InvalidUpdateVersion,
        RecordRefusal::NotLeader { .. } => Code::NotLeader,
        RecordRefusal::NotReplica(_) => Code::InvalidReplicaAssignment,
        RecordRefusal::StaleIncarnation { .. } => Code::IneligibleReplica,
        RecordRefusal::StaleNode(_) => Code::StaleBrokerEpoch,
        RecordRefusal::Invalid(_) => Code::InvalidRequest,
    };
    Refusal::new(code, format!("partition {partition}: {why}"))
}
