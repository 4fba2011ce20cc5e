//! Kafka's requests of administrators of a cluster: where replicas are to be, and who is to lead.
//!
//! Brokers are shards here and replicas are on nodes: any broker of a node stands for it, and where its shard does not follow from the partition the answer names the one
//! that has it. `timeout_ms` is not looked at: a reassignment is only begun, and an election is a change of the metadata.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_partition_reassignments_request::ReassignablePartition;
use kafka_protocol::messages::alter_partition_reassignments_response::{ReassignablePartitionResponse, ReassignableTopicResponse};
use kafka_protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use kafka_protocol::messages::list_partition_reassignments_response::{OngoingPartitionReassignment, OngoingTopicReassignment};
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, BrokerId, ElectLeadersRequest, ElectLeadersResponse,
    ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse, TopicName,
};

use crate::cluster::survey::is_led_elsewhere;
use crate::cluster::view::goal;
use crate::cluster::{CatalogueView, Command, Election};
use crate::kafka::FrameError;
use crate::limits;
use crate::replication::{NodeId, PartitionRecord};
use crate::request::{Code, Refusal};
use crate::shard::kafka_admin::AdminRefusal;
use crate::shard::kafka_service::Asked;
use crate::shard::metadata::advertised;
use crate::shard::service::unknown;
use crate::types::TopicPartition;

/// Bytes of a reassignment in an answer, its brokers aside; at most.
const REASSIGNMENT: usize = 16;
/// An election of a replica that may lack something.
const UNCLEAN: i8 = 1;

/// AlterPartitionReassignments.
pub async fn alter_reassignments(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: AlterPartitionReassignmentsRequest = asked.decode()?;
    let mut answer = AlterPartitionReassignmentsResponse::default();
    if asked.head.version >= 1 {
        answer.allow_replication_factor_change = request.allow_replication_factor_change;
    }
    let mut index = 0;
    for topic in request.topics {
        let mut partitions = Vec::new();
        for partition in topic.partitions {
            let result = ReassignablePartitionResponse::default().with_partition_index(partition.partition_index);
            let outcome = alter(asked, index, &topic.name, partition, request.allow_replication_factor_change).await;
            index += 1;
            partitions.push(match outcome {
                Ok(()) => result,
                Err(refusal) => {
                    let (code, words) = refusal.told(asked);
                    result.with_error_code(code).with_error_message(words)
                }
            });
        }
        answer.responses.push(ReassignableTopicResponse::default().with_name(topic.name).with_partitions(partitions));
    }
    asked.encode(&answer)
}

async fn alter(
    asked: &Asked<'_>,
    index: usize,
    topic: &TopicName,
    wanted: ReassignablePartition,
    may_change_number: bool,
) -> Result<(), AdminRefusal> {
    asked.next(index).await?;
    let (id, record) = found(&view(asked), topic, wanted.partition_index)?;
    let Some(brokers) = wanted.replicas else {
        return Err(match record.target {
            None => AdminRefusal::Kafka(ResponseError::NoReassignmentInProgress, format!("no replica of partition {id} moves")),
            // Which replicas there were is not kept: some of them may have gone.
            Some(_) => Refusal::new(Code::InvalidReplicaAssignment, "a move is not taken back: say where the replicas are to be").into(),
        });
    };
    let target = brokers.into_iter().map(node_of).collect::<Result<Vec<_>, _>>()?;
    let present = goal(&record);
    if !may_change_number && target.len() != present.len() {
        let words = format!("partition {id} has {} replicas, not {}", present.len(), target.len());
        return Err(Refusal::new(Code::InvalidReplicationFactor, words).into());
    }
    if target == present {
        return Ok(());
    }
    asked.context.control.propose(Command::Reassign { partition: id, target }).await?;
    Ok(())
}

fn view(asked: &Asked<'_>) -> Arc<CatalogueView> {
    asked.context.view.borrow().clone()
}

fn node_of(broker: BrokerId) -> Result<NodeId, Refusal> {
    let unknown = |_| Refusal::new(Code::InvalidReplicaAssignment, format!("{} is no broker", broker.0));
    u32::try_from(broker.0).map(|id| id / limits::MAX_SHARDS).map_err(unknown)
}

fn found(view: &CatalogueView, topic: &TopicName, partition: i32) -> Result<(TopicPartition, Arc<PartitionRecord>), Refusal> {
    let topic = view.topic(&topic.0).ok_or_else(|| unknown(&topic.0))?;
    let id = u32::try_from(partition).ok().map(|partition| TopicPartition { topic: topic.id, partition });
    let record = id.and_then(|id| Some((id, view.partition(&id)?.clone())));
    record.ok_or_else(|| {
        let words = format!("topic {} has partitions 0 to {}, not {partition}", topic.name, topic.partitions - 1);
        Refusal::new(Code::UnknownTopicOrPartition, words)
    })
}

/// ListPartitionReassignments.
pub async fn list_reassignments(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: ListPartitionReassignmentsRequest = asked.decode()?;
    let view = view(asked);
    let mut moving: Vec<(String, TopicPartition, Arc<PartitionRecord>)> = Vec::new();
    match request.topics {
        None => {
            for topic in view.topics() {
                glommio::yield_if_needed().await;
                for (partition, record) in (0..).zip(view.partitions_of_topic(&topic.id)) {
                    if record.target.is_some() {
                        moving.push((topic.name.clone(), TopicPartition { topic: topic.id, partition }, record.clone()));
                    }
                }
            }
        }
        Some(topics) => {
            for topic in topics {
                glommio::yield_if_needed().await;
                let wanted = topic.partition_indexes.iter().filter_map(|partition| found(&view, &topic.name, *partition).ok());
                moving.extend(
                    wanted.filter(|(_, record)| record.target.is_some()).map(|(id, record)| (topic.name.0.to_string(), id, record)),
                );
            }
        }
    }
    let mut answer = ListPartitionReassignmentsResponse::default();
    let mut by_topic: BTreeMap<String, Vec<OngoingPartitionReassignment>> = BTreeMap::new();
    for (topic, id, record) in moving {
        if !asked.take_room(REASSIGNMENT + topic.len() + 8 * record.replicas.len()) {
            let (code, words) = AdminRefusal::from(asked.too_many()).told(asked);
            answer = answer.with_error_code(code).with_error_message(words);
            break;
        }
        let of_topic = by_topic.entry(topic).or_default();
        of_topic.push(ongoing(asked, &view, &id, &record));
    }
    let topic =
        |(name, partitions): (String, _)| OngoingTopicReassignment::default().with_name(TopicName(name.into())).with_partitions(partitions);
    answer.topics = by_topic.into_iter().map(topic).collect();
    asked.encode(&answer)
}

/// A move as Kafka tells it. Those that are to come are the ones that are not in sync yet; a replica that was there before and is behind looks the same.
fn ongoing(asked: &Asked<'_>, view: &CatalogueView, id: &TopicPartition, record: &PartitionRecord) -> OngoingPartitionReassignment {
    let known = advertised(asked.context, view);
    let broker = |node: NodeId| BrokerId(known.broker_of(node, id) as i32);
    let target = record.target.as_deref().unwrap_or_default();
    let nodes = || record.replicas.iter().map(|replica| replica.node);
    OngoingPartitionReassignment::default()
        .with_partition_index(id.partition as i32)
        .with_replicas(nodes().map(broker).collect())
        .with_adding_replicas(target.iter().copied().filter(|node| !record.in_sync(*node)).map(broker).collect())
        .with_removing_replicas(nodes().filter(|node| !target.contains(node)).map(broker).collect())
}

/// ElectLeaders.
pub async fn elect_leaders(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: ElectLeadersRequest = asked.decode()?;
    let unclean = request.election_type == UNCLEAN;
    let mut answer = ElectLeadersResponse::default();
    let wanted: Vec<(TopicName, Vec<i32>)> = match request.topic_partitions {
        Some(topics) => topics.into_iter().map(|topic| (topic.topic, topic.partitions)).collect(),
        None => needing(&view(asked), unclean),
    };
    let mut index = 0;
    for (topic, partitions) in wanted {
        let mut results = Vec::new();
        for partition in partitions {
            let result = PartitionResult::default().with_partition_id(partition);
            let outcome = elect(asked, index, &topic, partition, unclean).await;
            index += 1;
            results.push(match outcome {
                Ok(()) => result,
                Err(refusal) => {
                    let (code, words) = AdminRefusal::from(refusal).told(asked);
                    result.with_error_code(code).with_error_message(words)
                }
            });
        }
        answer.replica_election_results.push(ReplicaElectionResult::default().with_topic(topic).with_partition_result(results));
    }
    asked.encode(&answer)
}

/// The partitions for which an election of this kind does something, as many as one request may change.
fn needing(view: &CatalogueView, unclean: bool) -> Vec<(TopicName, Vec<i32>)> {
    let needs = |record: &PartitionRecord| if unclean { record.leader.is_none() } else { is_led_elsewhere(view, record) };
    let mut left = limits::MAX_KAFKA_CHANGES;
    let mut found = Vec::new();
    for topic in view.topics() {
        let partitions = (0..).zip(view.partitions_of_topic(&topic.id)).filter(|(_, record)| needs(record)).map(|(partition, _)| partition);
        let partitions: Vec<i32> = partitions.take(left).collect();
        left -= partitions.len();
        if !partitions.is_empty() {
            found.push((TopicName(topic.name.clone().into()), partitions));
        }
    }
    found
}

async fn elect(asked: &Asked<'_>, index: usize, topic: &TopicName, partition: i32, unclean: bool) -> Result<(), Refusal> {
    asked.next(index).await?;
    let view = view(asked);
    let (id, record) = found(&view, topic, partition)?;
    let election = match unclean {
        false => Election::Preferred,
        true if record.leader.is_some() => {
            return Err(Refusal::new(Code::ElectionNotNeeded, format!("partition {partition} of topic {} has a leader", topic.0)));
        }
        // As Kafka does: the first that is there. `corelane cluster elect` looks for the one that has most.
        true => {
            let mut nodes = record.replicas.iter().map(|replica| replica.node);
            let found = nodes.find(|node| view.node(*node).is_some_and(|node| node.is_live()));
            let words = || format!("no replica of partition {partition} of topic {} is there", topic.0);
            Election::Unclean(found.ok_or_else(|| Refusal::new(Code::EligibleLeadersNotAvailable, words()))?)
        }
    };
    asked.context.control.propose(Command::ElectLeader { partition: id, election }).await?;
    Ok(())
}
