//! Requests of administrators of the cluster: how it is, where replicas are to be, who is to lead, which nodes it has.
//!
//! Any shard of any node takes them: what is known is in the catalogue that every node has, what is to change is proposed. So an answer may be as old as this node's
//! knowledge, and a proposal is judged by the state that it meets. What looks at every partition is computed on another thread, not on the reactor.

use std::rc::Rc;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};

use crate::cluster::rebalance_step::{NextStep, next_step};
use crate::cluster::survey::survey;
use crate::cluster::{Applied, CatalogueView, ChangedPartitions, Command, Committed, Election};
use crate::limits;
use crate::replication::NodeId;
use crate::request::cluster::{
    Candidate, ClusterAnswer, ClusterRequest, ElectLeader, LogQuestion, Reassign, Rebalance, RebalanceStep, ReplicaLog, ReplicaLogResult,
    SegmentHash, StatusQuestion,
};
use crate::request::{Code, Refusal, Request, Response};
use crate::shard::context::Context;
use crate::shard::segment_checks;
use crate::shard::service::unknown;
use crate::shard::spread::{Question, spread};
use crate::types::{Offset, TopicPartition};

/// Proposals of one request that are under way at once; they keep their order.
const AT_ONCE: usize = 64;

/// Answers an administrator.
///
/// # Errors
/// The whole request is refused.
pub async fn answer(context: &Rc<Context>, request: ClusterRequest) -> Result<ClusterAnswer, Refusal> {
    match request {
        ClusterRequest::Status(question) => status(context, question).await,
        ClusterRequest::Reassign(asked) => reassign(context, asked).await,
        ClusterRequest::Elect(asked) => elect(context, asked).await,
        ClusterRequest::Rebalance(asked) => Ok(ClusterAnswer::Rebalanced(rebalance(context, asked).await?)),
        ClusterRequest::Retire { node, retiring } => {
            if retiring {
                refuse_only_voter(context, node).await?;
            }
            context.control.propose(Command::RetireNode { node, retiring }).await?;
            Ok(ClusterAnswer::Retired)
        }
        ClusterRequest::Remove { node } => remove(context, node).await,
        ClusterRequest::Logs(questions) => Ok(ClusterAnswer::Logs(logs(context, questions).await?)),
        ClusterRequest::Checks(asked) => Ok(ClusterAnswer::Checks(segment_checks::checks(context, asked).await?)),
    }
}

fn view(context: &Context) -> Arc<CatalogueView> {
    context.view.borrow().clone()
}

/// Computes on a thread that is no reactor.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    glommio::executor().spawn_blocking(work).await
}

async fn status(context: &Context, question: StatusQuestion) -> Result<ClusterAnswer, Refusal> {
    let consensus = context.control.consensus().await?;
    let (view, node) = (view(context), context.identity.node);
    let status = aside(move || survey(&view, node, consensus, &question)).await?;
    Ok(ClusterAnswer::Status(Box::new(status)))
}

async fn reassign(context: &Context, asked: Reassign) -> Result<ClusterAnswer, Refusal> {
    let topic = view(context).topic(&asked.topic).map(|topic| topic.id).ok_or_else(|| unknown(&asked.topic))?;
    let propose = |(partition, target)| async move {
        let id = TopicPartition { topic, partition };
        let outcome = context.control.propose(Command::Reassign { partition: id, target }).await;
        (partition, outcome.map(drop).map_err(|refusal| named(context, id, refusal)))
    };
    Ok(ClusterAnswer::Reassigned(stream::iter(asked.partitions).map(propose).buffered(AT_ONCE).collect().await))
}

async fn elect(context: &Context, asked: ElectLeader) -> Result<ClusterAnswer, Refusal> {
    let topic = view(context).topic(&asked.topic).map(|topic| topic.id).ok_or_else(|| unknown(&asked.topic))?;
    let partition = TopicPartition { topic, partition: asked.partition };
    let election = match asked.candidate {
        Candidate::Preferred => Election::Preferred,
        Candidate::InSync(node) => Election::HandOver(node),
        Candidate::Unclean(node) => Election::Unclean(node),
    };
    let elect = Command::ElectLeader { partition, election };
    let committed = context.control.propose(elect).await.map_err(|refusal| named(context, partition, refusal))?;
    let elected = committed.view.partition(&partition).and_then(|record| Some((record.leader?, record.leader_epoch)));
    let (leader, leader_epoch) = elected.ok_or_else(|| Refusal::new(Code::Internal, format!("nobody leads partition {partition}")))?;
    if matches!(asked.candidate, Candidate::Unclean(_)) {
        tracing::warn!(topic = asked.topic, partition = asked.partition, node = leader, leader_epoch, "a leader that may lack records");
    }
    Ok(ClusterAnswer::Elected { leader, leader_epoch })
}

/// A refusal of the catalogue, which knows topics by their ids, for people who know their names.
fn named(context: &Context, id: TopicPartition, refusal: Refusal) -> Refusal {
    let message = refusal.message.replace(&format!("partition {id}"), &context.name_of(&id));
    Refusal { message, ..refusal }
}

/// Without it nothing could be decided once it stops.
async fn refuse_only_voter(context: &Context, node: NodeId) -> Result<(), Refusal> {
    let members = context.control.consensus().await?.members;
    let mut voters = members.iter().filter(|member| member.votes);
    match (voters.next(), voters.next()) {
        (Some(only), None) if only.node == node => Err(Refusal::new(
            Code::InvalidRequest,
            format!("node {node} can't go: it alone decides about the metadata. From three nodes on, three do: add nodes first"),
        )),
        _ => Ok(()),
    }
}

async fn rebalance(context: &Rc<Context>, asked: Rebalance) -> Result<RebalanceStep, Refusal> {
    let most_moving = asked.most_moving.clamp(1, limits::REBALANCE_STEP as u32);
    let known = view(context);
    let plan = |view: Arc<CatalogueView>| aside(move || next_step(&view, asked.empty, most_moving));
    let mut step = plan(known.clone()).await?;
    if asked.dry_run {
        return Ok(told(step, Vec::new(), None));
    }
    if let Some(node) = asked.empty
        && known.node(node).is_some_and(|node| !node.retiring)
    {
        // Only now: a node that can't be emptied stays as it is.
        refuse_only_voter(context, node).await?;
        let committed = context.control.propose(Command::RetireNode { node, retiring: true }).await?;
        step = plan(committed.view).await?;
    }
    let propose = |(command, planned)| async move { (planned, context.control.propose(command).await) };
    let outcomes: Vec<_> = stream::iter(std::mem::take(&mut step.begin)).map(propose).buffered(AT_ONCE).collect().await;
    let (mut begun, mut refusal) = (Vec::new(), None);
    let mut latest: Option<Committed> = None;
    for (planned, outcome) in outcomes {
        match outcome {
            Ok(committed) => {
                begun.push(planned);
                latest = Some(committed);
            }
            Err(refused) => refusal = refusal.or(Some(refused)),
        }
    }
    if begun.is_empty() && step.left.planned.is_empty() && step.left.led_elsewhere > 0 && refusal.is_none() {
        let committed = context.control.propose(Command::BalanceLeaders { most: limits::BALANCED_LEADERS }).await?;
        let moved = match &committed.applied {
            Applied::PartitionsChanged(ChangedPartitions::These(moved)) => moved.len() as u32,
            _ => limits::BALANCED_LEADERS,
        };
        tracing::info!(partitions = moved, "leaders go to where they belong");
    } else if let Some(committed) = latest {
        // What is under way, the moves that have begun just now included.
        step.left.moving = aside(move || moving(&committed.view)).await;
    }
    Ok(told(step, begun, refusal))
}

fn moving(view: &CatalogueView) -> u32 {
    view.all_partitions().filter(|(_, record)| record.target.is_some()).count() as u32
}

/// What is said of a step. What would begin is, where nothing does, planned.
fn told(step: NextStep, begun: Vec<crate::request::cluster::PlannedMove>, refusal: Option<Refusal>) -> RebalanceStep {
    let NextStep { begin, left } = step;
    let planned = begin.into_iter().map(|(_, planned)| planned).chain(left.planned).collect();
    RebalanceStep { begun, planned, refusal, ..left }
}

/// A node goes: first from the catalogue, which sees that nothing is on it, then from the consensus. Interrupted in between it is asked again, and goes on.
async fn remove(context: &Context, node: NodeId) -> Result<ClusterAnswer, Refusal> {
    let consensus = context.control.consensus().await?;
    let is_member = consensus.members.iter().any(|member| member.node == node);
    match view(context).node(node) {
        Some(present) if present.is_live() => {
            // It would register again at once.
            let words = format!("node {node} can't be removed while it runs: decommission it, stop it, and ask again once it is fenced");
            return Err(Refusal::new(Code::InvalidRequest, words));
        }
        Some(_) => {
            refuse_only_voter(context, node).await?;
            context.control.propose(Command::RemoveNode { node }).await?;
        }
        None if is_member => {}
        None => return Err(Refusal::new(Code::BrokerIdNotRegistered, format!("node {node} is not registered"))),
    }
    if is_member {
        context.control.remove_member(node).await?;
    }
    tracing::info!(node, "the node is no member of the cluster any more");
    Ok(ClusterAnswer::Removed)
}

impl Question for LogQuestion {
    type Answer = ReplicaLogResult;

    fn partition(&self) -> TopicPartition {
        self.partition
    }

    fn refused(&self, refusal: Refusal) -> ReplicaLogResult {
        ReplicaLogResult { partition: self.partition, outcome: Err(refusal) }
    }

    fn request(questions: Vec<LogQuestion>) -> Request {
        Request::Cluster(ClusterRequest::Logs(questions))
    }

    fn answers(response: Response) -> Option<Vec<ReplicaLogResult>> {
        if let Response::Cluster(ClusterAnswer::Logs(answers)) = response { Some(answers) } else { None }
    }
}

/// What this node has of partitions, whatever its role in each.
async fn logs(context: &Rc<Context>, questions: Vec<LogQuestion>) -> Result<Vec<ReplicaLogResult>, Refusal> {
    if questions.len() > limits::REPLICA_LOGS {
        let words = format!("one request asks for at most {} logs, not {}", limits::REPLICA_LOGS, questions.len());
        return Err(Refusal::new(Code::InvalidRequest, words));
    }
    let mut answers = spread(context, &questions, async |part| part.iter().map(|question| log_here(context, question)).collect()).await;
    let mut room = limits::REPLICA_LOG_SEGMENTS;
    for answer in &mut answers {
        match answer.outcome.as_ref().map_or(Some(room), |log| room.checked_sub(log.segments.len())) {
            Some(left) => room = left,
            None => answer.outcome = Err(Refusal::new(Code::LimitReached, "no room for it in one answer: ask for fewer partitions")),
        }
    }
    Ok(answers)
}

fn log_here(context: &Context, question: &LogQuestion) -> ReplicaLogResult {
    ReplicaLogResult { partition: question.partition, outcome: log(context, question.partition) }
}

fn log(context: &Context, id: TopicPartition) -> Result<ReplicaLog, Refusal> {
    let cell = context.store.partition(&id).ok_or_else(|| no_replica(context, id))?;
    // A follower's is as good as a leader's.
    if let Some(refusal) = cell.gone() {
        return Err(refusal);
    }
    let machine = cell.machine.borrow();
    let segment = |s: &crate::log::segment::SegmentInfo| SegmentHash {
        base_offset: s.base_offset,
        end_offset: s.end_offset,
        running_hash: s.running_hash,
        bytes: s.batch_bytes(),
        generation: s.rewrite_generation,
        sealed: s.sealed,
    };
    let log_end: Offset = machine.ladder().appended();
    let has_records = |start: Offset| start < log_end;
    Ok(ReplicaLog {
        log_start: machine.log_start(),
        log_end,
        high_watermark: machine.ladder().committed(),
        leader_epoch: machine.epoch(),
        last_epoch: machine.epochs().iter().rev().find(|(_, start)| has_records(*start)).map(|(epoch, _)| *epoch),
        segments: machine.segments().iter().map(segment).collect(),
    })
}

pub(super) fn no_replica(context: &Context, id: TopicPartition) -> Refusal {
    match view(context).partition(&id) {
        Some(_) => Refusal::new(
            Code::UnknownTopicOrPartition,
            format!("node {} has no replica of {}", context.identity.node, context.name_of(&id)),
        ),
        None => context.unknown(&id),
    }
}
