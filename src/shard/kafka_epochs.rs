//! Kafka's OffsetForLeaderEpoch. See [`crate::shard::epochs`].

use kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_protocol::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use crate::kafka::{Answering, FrameError};
use crate::request::{Code, EpochEnd, EpochQuestion, Refusal};
use crate::shard::epochs;
use crate::shard::kafka_produce::{resolve, unknown};
use crate::shard::kafka_service::Asked;

/// Epoch and offset where there are none.
const UNDEFINED: i32 = -1;

/// OffsetForLeaderEpoch.
pub async fn offset_for_leader_epoch(asked: &Asked<'_>) -> Result<Vec<u8>, FrameError> {
    let request: OffsetForLeaderEpochRequest = asked.decode()?;
    let (mut questions, mut early) = (Vec::new(), Vec::new());
    for topic in &request.topics {
        for p in &topic.partitions {
            glommio::yield_if_needed().await;
            early.push(question(asked, &topic.topic.0, p).map(|question| questions.push(question)));
        }
    }
    let mut answers = epochs::epoch_ends(asked.context, &questions).await.into_iter();
    let mut outcomes = early.into_iter().map(|early| match early {
        Ok(()) => answers.next().map_or_else(|| Err(Refusal::new(Code::Internal, "no answer")), |answer| answer.outcome),
        Err(refusal) => Err(refusal),
    });
    let mut answer = OffsetForLeaderEpochResponse::default();
    for topic in request.topics {
        let ends = topic.partitions.iter().zip(&mut outcomes).map(|(p, outcome)| told(asked, p.partition, outcome)).collect();
        answer.topics.push(OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(ends));
    }
    asked.encode(&answer)
}

fn question(asked: &Asked<'_>, topic: &str, p: &OffsetForLeaderPartition) -> Result<EpochQuestion, Refusal> {
    let partition = resolve(asked.context, topic, p.partition).ok_or_else(|| unknown(p.partition))?;
    Ok(EpochQuestion { partition, current: (p.current_leader_epoch >= 0).then_some(p.current_leader_epoch), epoch: p.leader_epoch })
}

fn told(asked: &Asked<'_>, index: i32, outcome: Result<Option<EpochEnd>, Refusal>) -> EpochEndOffset {
    let end = EpochEndOffset::default().with_partition(index).with_leader_epoch(UNDEFINED).with_end_offset(UNDEFINED.into());
    match outcome {
        Ok(Some(found)) => end.with_leader_epoch(found.epoch).with_end_offset(found.end_offset),
        Ok(None) => end,
        Err(refusal) => end.with_error_code(asked.refuse(&refusal, Answering::Read)),
    }
}
