//! Kafka's DeleteRecords. See [`crate::shard::deletion`] for what it does.

use kafka_protocol::messages::delete_records_request::DeleteRecordsPartition;
use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::{DeleteRecordsRequest, DeleteRecordsResponse};

use crate::kafka::{Answering, FrameError};
use crate::limits;
use crate::request::{Code, DeleteRecords, Refusal};
use crate::shard::deletion;
use crate::shard::kafka_produce::{resolve, unknown};
use crate::shard::kafka_service::Asked;
use crate::types::Offset;

/// What a client asks for that wants everything deleted that is committed (DeleteRecordsRequest of Kafka's client).
const HIGH_WATERMARK: i64 = -1;
/// The low watermark of a partition that is refused.
const NO_WATERMARK: i64 = -1;

/// DeleteRecords. `timeout_ms` is not looked at: there is no follower to wait for.
pub async fn delete_records(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: DeleteRecordsRequest = asked.decode()?;
    let (mut wanted, mut early) = (Vec::new(), Vec::new());
    for topic in &request.topics {
        for p in &topic.partitions {
            glommio::yield_if_needed().await;
            let checked = match early.len() < limits::MAX_KAFKA_CHANGES {
                true => check(asked, &topic.name.0, p),
                false => Err(asked.too_many()),
            };
            early.push(checked.map(|one| wanted.push(one)));
        }
    }
    let mut done = deletion::delete_records(asked.context, &wanted).await.into_iter();
    let mut outcomes = early.into_iter().map(|early| match early {
        Ok(()) => done.next().map_or_else(|| Err(Refusal::new(Code::Internal, "no outcome")), |result| result.outcome),
        Err(refusal) => Err(refusal),
    });
    let mut answer = DeleteRecordsResponse::default();
    for topic in request.topics {
        let results = topic.partitions.iter().zip(&mut outcomes).map(|(p, outcome)| told(asked, p.partition_index, outcome));
        let results = results.collect();
        answer.topics.push(DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(results));
    }
    asked.encode(&answer)
}

fn check(asked: &Asked<'_>, topic: &str, p: &DeleteRecordsPartition) -> Result<DeleteRecords, Refusal> {
    let partition = resolve(asked.context, topic, p.partition_index).ok_or_else(|| unknown(p.partition_index))?;
    let before = match p.offset {
        HIGH_WATERMARK => None,
        offset if offset >= 0 => Some(offset),
        other => return Err(Refusal::new(Code::OffsetOutOfRange, format!("{other} is no offset, nor -1"))),
    };
    Ok(DeleteRecords { partition, before })
}

fn told(asked: &Asked<'_>, index: i32, outcome: Result<Offset, Refusal>) -> DeleteRecordsPartitionResult {
    let result = DeleteRecordsPartitionResult::default().with_partition_index(index);
    match outcome {
        Ok(log_start) => result.with_low_watermark(log_start),
        Err(refusal) => result.with_low_watermark(NO_WATERMARK).with_error_code(asked.refuse(&refusal, Answering::Admin)),
    }
}
