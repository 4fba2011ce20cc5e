//! What this node knows of its sealed segments, for administrators: which were read again, and which are damaged.

use std::rc::Rc;

use crate::limits;
use crate::request::cluster::{CheckSegments, ClusterAnswer, ClusterRequest, DamagedSegment, SegmentChecks, SegmentChecksResult};
use crate::request::{Code, Refusal, Request, Response};
use crate::shard::cluster_admin::no_replica;
use crate::shard::context::Context;
use crate::shard::spread::{Question, spread};
use crate::types::{Offset, TopicPartition};

/// Damaged segments of one replica that are named.
const NAMED: usize = 100;

/// Of one partition.
#[derive(Clone, Copy)]
struct CheckQuestion {
    partition: TopicPartition,
    read: bool,
}

impl Question for CheckQuestion {
    type Answer = SegmentChecksResult;

    fn partition(&self) -> TopicPartition {
        self.partition
    }

    fn refused(&self, refusal: Refusal) -> SegmentChecksResult {
        SegmentChecksResult { partition: self.partition, outcome: Err(refusal) }
    }

    fn request(questions: Vec<CheckQuestion>) -> Request {
        let read = questions.iter().any(|question| question.read);
        let partitions = questions.iter().map(|question| question.partition).collect();
        Request::Cluster(ClusterRequest::Checks(CheckSegments { partitions, read }))
    }

    fn answers(response: Response) -> Option<Vec<SegmentChecksResult>> {
        if let Response::Cluster(ClusterAnswer::Checks(answers)) = response { Some(answers) } else { None }
    }
}

/// How the sealed segments of partitions are on this node's disk, and has them read if that is wanted.
///
/// # Errors
/// More partitions are asked about than one request may.
pub async fn checks(context: &Rc<Context>, asked: CheckSegments) -> Result<Vec<SegmentChecksResult>, Refusal> {
    let CheckSegments { mut partitions, read } = asked;
    if partitions.len() > limits::REPLICA_LOGS {
        let words = format!("one request asks about at most {} partitions, not {}", limits::REPLICA_LOGS, partitions.len());
        return Err(Refusal::new(Code::InvalidRequest, words));
    }
    if partitions.is_empty() {
        partitions = context.verifier.damaged().all();
        partitions.truncate(limits::REPLICA_LOGS);
    }
    let questions: Vec<_> = partitions.into_iter().map(|partition| CheckQuestion { partition, read }).collect();
    Ok(spread(context, &questions, async |part| part.iter().map(|question| check_here(context, question)).collect()).await)
}

fn check_here(context: &Context, question: &CheckQuestion) -> SegmentChecksResult {
    SegmentChecksResult { partition: question.partition, outcome: known(context, question) }
}

fn known(context: &Context, question: &CheckQuestion) -> Result<SegmentChecks, Refusal> {
    let cell = context.store.partition(&question.partition).ok_or_else(|| no_replica(context, question.partition))?;
    if let Some(refusal) = cell.gone() {
        return Err(refusal);
    }
    if question.read {
        context.verifier.ask(context, &cell);
    }
    let verification = cell.verification.borrow();
    let counts = verification.count();
    let named = |(base_offset, damage): (Offset, &crate::log::damage::Damage)| DamagedSegment { base_offset, what: damage.to_string() };
    let damaged = verification.damaged().take(NAMED).map(named).collect();
    let mended = verification.mended().take(NAMED).map(named).collect();
    Ok(SegmentChecks { waiting: counts.waiting, sound: counts.sound, damaged, mended })
}
