//! The answer to Metadata, versions 0 to 9: written straight from what the shards know, for it can be of a million partitions.
//!
//! Source: MetadataResponse.json of Kafka's schemas.

use kafka_protocol::ResponseError;

use super::writer::Writer;
use super::{Answering, kafka_code};
use crate::request::{Metadata, ReplicaLists, Replicas};
use crate::types::is_internal_topic;

/// "Not asked for": which operations the client may do.
const NO_OPERATIONS: i32 = i32::MIN;
/// Nobody leads.
const NO_LEADER: i32 = -1;

/// The frame of an answer.
pub fn encode_metadata(correlation: i32, version: i16, flexible: bool, metadata: &Metadata) -> Vec<u8> {
    let found = metadata.topics.iter().filter_map(|topic| topic.found.as_ref().ok());
    let partitions: usize = found.map(|found| 40 * found.partitions.len() + 4 * found.replicas.ids()).sum();
    let mut w = Writer::answer(correlation, flexible, 64 * metadata.brokers.len() + 48 * metadata.topics.len() + partitions);
    if version >= 3 {
        // Nobody is throttled.
        w.i32(0);
    }
    w.count(metadata.brokers.len());
    for broker in &metadata.brokers {
        w.i32(broker.id as i32);
        w.string(&broker.host);
        w.i32(i32::from(broker.port));
        if version >= 1 {
            w.nullable_string(None);
        }
        w.tags();
    }
    if version >= 2 {
        w.string(&cluster_id(&metadata.cluster));
    }
    if version >= 1 {
        w.i32(metadata.controller as i32);
    }
    w.count(metadata.topics.len());
    for topic in &metadata.topics {
        w.i16(topic.found.as_ref().err().map_or(0, |refusal| kafka_code(refusal.code, Answering::Metadata)));
        w.string(&topic.name);
        if version >= 1 {
            w.bool(is_internal_topic(&topic.name));
        }
        let none = ReplicaLists::default();
        let (partitions, replicas) = topic.found.as_ref().map_or((&[][..], &none), |found| (&found.partitions, &found.replicas));
        w.count(partitions.len());
        for (index, partition) in partitions.iter().enumerate() {
            w.i16(if partition.leader.is_some() { 0 } else { ResponseError::LeaderNotAvailable.code() });
            w.i32(index as i32);
            w.i32(partition.leader.map_or(NO_LEADER, |id| id as i32));
            if version >= 7 {
                w.i32(partition.leader_epoch);
            }
            let only = partition.leader.as_slice();
            let replicas = replicas.get(index).unwrap_or(Replicas { all: only, in_sync: only, offline: &[] });
            let lists = [replicas.all, replicas.in_sync, replicas.offline];
            for ids in &lists[..if version >= 5 { 3 } else { 2 }] {
                w.count(ids.len());
                ids.iter().for_each(|id| w.i32(*id as i32));
            }
            w.tags();
        }
        if version >= 8 {
            w.i32(NO_OPERATIONS);
        }
        w.tags();
    }
    if version >= 8 {
        w.i32(NO_OPERATIONS);
    }
    w.tags();
    w.finish()
}

/// The cluster's id as Kafka clients are told it.
pub fn cluster_id(cluster: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes(*cluster).to_string()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kafka_protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic};
    use kafka_protocol::messages::{BrokerId, MetadataResponse, ResponseHeader, TopicName};
    use kafka_protocol::protocol::{Decodable, HeaderVersion, StrBytes};

    use super::*;
    use crate::request::{Broker, Code, PartitionMetadata, Refusal, TopicMetadata, TopicPartitions};
    use crate::types::TopicId;

    #[test]
    fn answers_of_every_version_are_read_by_the_codec() {
        let broker = |id| Broker { id, host: "a.host".into(), port: 9092 + id as u16 };
        let partition = |leader| PartitionMetadata { leader, leader_epoch: 3 };
        let partitions = |leaders: [Option<u32>; 2], replicas| {
            let (id, partitions) = (TopicId([2; 16]), leaders.map(partition).to_vec());
            TopicPartitions { id, partitions, replicas, max_message_bytes: 1000 }
        };
        let mut replicas = ReplicaLists::default();
        replicas.push([1, 0].into_iter(), [0].into_iter(), [1].into_iter());
        replicas.push([1].into_iter(), [1].into_iter(), [1].into_iter());
        let metadata = Metadata {
            cluster: [7; 16],
            brokers: vec![broker(0), broker(1)],
            controller: 0,
            topics: vec![
                TopicMetadata { name: "orders".into(), found: Ok(partitions([Some(0), Some(1)], ReplicaLists::default())) },
                TopicMetadata { name: "payments".into(), found: Ok(partitions([Some(0), None], replicas)) },
                TopicMetadata { name: "gone".into(), found: Err(Refusal::new(Code::UnknownTopicOrPartition, "")) },
                TopicMetadata { name: "__consumer_offsets".into(), found: Err(Refusal::new(Code::UnknownTopicOrPartition, "")) },
            ],
        };
        for version in 0..=9 {
            let flexible = MetadataResponse::header_version(version) == 1;
            let mut bytes = Bytes::from(encode_metadata(9, version, flexible, &metadata)).slice(4..);
            assert_eq!(ResponseHeader::decode(&mut bytes, i16::from(flexible)).unwrap().correlation_id, 9);
            let answer = MetadataResponse::decode(&mut bytes, version).unwrap();
            assert!(bytes.is_empty());
            let broker = |id: i32| {
                let host = StrBytes::from_static_str("a.host");
                MetadataResponseBroker::default().with_node_id(id.into()).with_host(host).with_port(9092 + id)
            };
            let partition = |index: i32| {
                MetadataResponsePartition::default()
                    .with_partition_index(index)
                    .with_leader_id(index.into())
                    .with_leader_epoch(if version >= 7 { 3 } else { -1 })
                    .with_replica_nodes(vec![index.into()])
                    .with_isr_nodes(vec![index.into()])
            };
            let replicated = |error, index: i32, leader: i32, lists: [Vec<i32>; 3]| {
                let [all, in_sync, offline] = lists.map(|ids| ids.into_iter().map(BrokerId).collect::<Vec<_>>());
                partition(index)
                    .with_error_code(error)
                    .with_leader_id(leader.into())
                    .with_replica_nodes(all)
                    .with_isr_nodes(in_sync)
                    .with_offline_replicas(if version >= 5 { offline } else { vec![] })
            };
            let topic = |name| MetadataResponseTopic::default().with_name(Some(TopicName(StrBytes::from_static_str(name))));
            let expected = MetadataResponse::default()
                .with_brokers(vec![broker(0), broker(1)])
                .with_cluster_id((version >= 2).then(|| cluster_id(&[7; 16]).into()))
                .with_controller_id(if version >= 1 { 0.into() } else { (-1).into() })
                .with_topics(vec![
                    topic("orders").with_partitions(vec![partition(0), partition(1)]),
                    topic("payments").with_partitions(vec![
                        replicated(0, 0, 0, [vec![1, 0], vec![0], vec![1]]),
                        replicated(5, 1, -1, [vec![1], vec![1], vec![1]]),
                    ]),
                    topic("gone").with_error_code(3),
                    topic("__consumer_offsets").with_error_code(3).with_is_internal(version >= 1),
                ]);
            assert_eq!(answer, expected, "version {version}");
        }
    }
}
