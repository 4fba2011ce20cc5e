//! The answer to Metadata, versions 0 to 9: written straight from what the shards know, for it can be of a million partitions.
//!
//! Source: MetadataResponse.json of Kafka's schemas.

use super::writer::Writer;
use super::{Answering, kafka_code};
use crate::request::Metadata;
use crate::types::is_internal_topic;

/// "Not asked for": which operations the client may do.
const NO_OPERATIONS: i32 = i32::MIN;

/// The frame of an answer.
pub fn encode_metadata(correlation: i32, version: i16, flexible: bool, metadata: &Metadata) -> Vec<u8> {
    let partitions: usize = metadata.topics.iter().filter_map(|topic| topic.found.as_ref().ok()).map(|found| found.partitions.len()).sum();
    let mut w = Writer::answer(correlation, flexible, 64 * metadata.brokers.len() + 48 * metadata.topics.len() + 40 * partitions);
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
        let partitions = topic.found.as_ref().map_or(&[][..], |found| &found.partitions);
        w.count(partitions.len());
        for (index, partition) in partitions.iter().enumerate() {
            w.i16(0);
            w.i32(index as i32);
            w.i32(partition.leader as i32);
            if version >= 7 {
                w.i32(partition.leader_epoch);
            }
            // The leader is the only replica so far, and in sync.
            for _replicas_then_in_sync in 0..2 {
                w.count(1);
                w.i32(partition.leader as i32);
            }
            if version >= 5 {
                w.count(0);
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
    use kafka_protocol::messages::{MetadataResponse, ResponseHeader, TopicName};
    use kafka_protocol::protocol::{Decodable, HeaderVersion, StrBytes};

    use super::*;
    use crate::request::{Broker, Code, PartitionMetadata, Refusal, TopicMetadata, TopicPartitions};
    use crate::types::TopicId;

    #[test]
    fn answers_of_every_version_are_read_by_the_codec() {
        let broker = |id| Broker { id, host: "a.host".into(), port: 9092 + id as u16 };
        let partition = |leader| PartitionMetadata { leader, leader_epoch: 3 };
        let found = TopicPartitions { id: TopicId([2; 16]), partitions: vec![partition(0), partition(1)], max_message_bytes: 1000 };
        let metadata = Metadata {
            cluster: [7; 16],
            brokers: vec![broker(0), broker(1)],
            controller: 0,
            topics: vec![
                TopicMetadata { name: "orders".into(), found: Ok(found) },
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
            let topic = |name| MetadataResponseTopic::default().with_name(Some(TopicName(StrBytes::from_static_str(name))));
            let expected = MetadataResponse::default()
                .with_brokers(vec![broker(0), broker(1)])
                .with_cluster_id((version >= 2).then(|| cluster_id(&[7; 16]).into()))
                .with_controller_id(if version >= 1 { 0.into() } else { (-1).into() })
                .with_topics(vec![
                    topic("orders").with_partitions(vec![partition(0), partition(1)]),
                    topic("gone").with_error_code(3),
                    topic("__consumer_offsets").with_error_code(3).with_is_internal(version >= 1),
                ]);
            assert_eq!(answer, expected, "version {version}");
        }
    }
}
