//! Kafka's DescribeLogDirs: how long partitions are.
//!
//! A client asks every advertised broker and adds up; so each shard tells of its own partitions only. Those of a shard that is not advertised are told by
//! nobody.

use std::collections::{BTreeMap, HashSet};

use kafka_protocol::messages::describe_log_dirs_response::{DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic};
use kafka_protocol::messages::{DescribeLogDirsRequest, DescribeLogDirsResponse, TopicName};

use crate::kafka::FrameError;
use crate::log::segment::FIRST_POSITION;
use crate::shard::kafka_service::Asked;

/// DescribeLogDirs. Lengths are of the batches, whether they are in the segments already or in the journal still.
pub fn describe_log_dirs(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: DescribeLogDirsRequest = asked.decode()?;
    let context = asked.context;
    let mut topics = BTreeMap::<String, Vec<DescribeLogDirsPartition>>::new();
    let wanted = request.topics.as_ref().map(|topics| {
        topics.iter().flat_map(|topic| topic.partitions.iter().map(|index| (topic.topic.0.as_str(), *index))).collect::<HashSet<_>>()
    });
    let view = context.view.borrow();
    for cell in context.store.partitions() {
        let (Some(topic), index) = (view.topic_by_id(&cell.id.topic), cell.id.partition as i32) else { continue };
        let is_asked = wanted.as_ref().is_none_or(|wanted| wanted.contains(&(topic.name.as_str(), index)));
        if is_asked {
            let bytes: u64 = cell.machine.borrow().segments().iter().map(|segment| segment.valid_end - FIRST_POSITION).sum();
            let partition = DescribeLogDirsPartition::default().with_partition_index(index).with_partition_size(bytes as i64);
            topics.entry(topic.name.clone()).or_default().push(partition);
        }
    }
    let topics = topics.into_iter().map(|(name, mut partitions)| {
        partitions.sort_by_key(|partition| partition.partition_index);
        DescribeLogDirsTopic::default().with_name(TopicName(name.into())).with_partitions(partitions)
    });
    let directory = context.store.disk.root().to_string_lossy().into_owned();
    let result = DescribeLogDirsResult::default().with_log_dir(directory.into()).with_topics(topics.collect());
    asked.encode(&DescribeLogDirsResponse::default().with_results(vec![result]))
}
