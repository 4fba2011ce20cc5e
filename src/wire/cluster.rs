//! Requests of administrators of the cluster and their answers, both ways.

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, UnionWIPOffset, Vector, WIPOffset};

use super::decode::{Fault, Refusals, invalid, partition, refusal_of};
use super::encode::{refusal_offset, refused_items};
use super::generated as g;
use crate::request::cluster::{
    Candidate, CheckSegments, ClusterAnswer, ClusterCounts, ClusterRequest, ClusterStatus, ConsensusMember, ConsensusState, DamagedSegment,
    ElectLeader, HostPort, LogQuestion, NodeCondition, NodeStatus, PartitionState, PlannedMove, Reassign, Rebalance, RebalanceStep,
    ReplicaLog, ReplicaLogResult, SegmentChecks, SegmentChecksResult, SegmentHash, StatusQuestion,
};

type Builder = FlatBufferBuilder<'static>;
type Offset<T> = WIPOffset<T>;
type List<T> = WIPOffset<Vector<'static, ForwardsUOffset<T>>>;
type Body = WIPOffset<UnionWIPOffset>;
type Read<'b, T> = Vector<'b, ForwardsUOffset<T>>;

/// Copies the items of a list of tables, one after the other.
fn tables<T, M>(b: &mut Builder, items: &[T], made: impl Fn(&mut Builder, &T) -> Offset<M>) -> Option<List<M>> {
    let made: Vec<_> = items.iter().map(|item| made(b, item)).collect();
    Some(b.create_vector(&made))
}

pub(super) fn request_body(b: &mut Builder, request: &ClusterRequest) -> (g::RequestBody, Body) {
    use g::RequestBody as Kind;
    match request {
        ClusterRequest::Status(question) => {
            let topic = question.topic.as_ref().map(|name| b.create_string(name));
            let StatusQuestion { all_partitions, skip, most, .. } = *question;
            let args = g::ClusterStatusRequestArgs { topic, all_partitions, skip, most };
            (Kind::ClusterStatusRequest, g::ClusterStatusRequest::create(b, &args).as_union_value())
        }
        ClusterRequest::Reassign(reassign) => {
            let partitions = tables(b, &reassign.partitions, |b, (partition, nodes)| {
                let nodes = Some(b.create_vector(nodes));
                g::ReplicaSet::create(b, &g::ReplicaSetArgs { partition: *partition, nodes })
            });
            let topic = Some(b.create_string(&reassign.topic));
            (Kind::ReassignRequest, g::ReassignRequest::create(b, &g::ReassignRequestArgs { topic, partitions }).as_union_value())
        }
        ClusterRequest::Elect(elect) => {
            let (kind, node) = match elect.candidate {
                Candidate::Preferred => (g::ElectionKind::Preferred, None),
                Candidate::InSync(node) => (g::ElectionKind::HandOver, Some(node)),
                Candidate::Unclean(node) => (g::ElectionKind::Unclean, Some(node)),
            };
            let topic = Some(b.create_string(&elect.topic));
            let args = g::ElectLeaderRequestArgs { topic, partition: elect.partition, kind, node };
            (Kind::ElectLeaderRequest, g::ElectLeaderRequest::create(b, &args).as_union_value())
        }
        ClusterRequest::Rebalance(Rebalance { empty, most_moving, dry_run }) => {
            let args = g::RebalanceRequestArgs { empty: *empty, most_moving: *most_moving, dry_run: *dry_run };
            (Kind::RebalanceRequest, g::RebalanceRequest::create(b, &args).as_union_value())
        }
        ClusterRequest::Retire { node, retiring } => {
            let args = g::RetireNodeRequestArgs { node: *node, retiring: *retiring };
            (Kind::RetireNodeRequest, g::RetireNodeRequest::create(b, &args).as_union_value())
        }
        ClusterRequest::Remove { node } => {
            let request = g::RemoveNodeRequest::create(b, &g::RemoveNodeRequestArgs { node: *node });
            (Kind::RemoveNodeRequest, request.as_union_value())
        }
        ClusterRequest::Logs(questions) => {
            let ids = questions.iter().map(|q| g::PartitionId::new(&g::Uuid(q.partition.topic.0), q.partition.partition));
            let partitions = Some(b.create_vector_from_iter(ids));
            (Kind::ReplicaLogsRequest, g::ReplicaLogsRequest::create(b, &g::ReplicaLogsRequestArgs { partitions }).as_union_value())
        }
        ClusterRequest::Checks(asked) => {
            let ids = asked.partitions.iter().map(|id| g::PartitionId::new(&g::Uuid(id.topic.0), id.partition));
            let args = g::SegmentChecksRequestArgs { partitions: Some(b.create_vector_from_iter(ids)), read: asked.read };
            (Kind::SegmentChecksRequest, g::SegmentChecksRequest::create(b, &args).as_union_value())
        }
    }
}

/// The request of an administrator of the cluster, if it is one.
pub(super) fn request_of(root: &g::Request<'_>) -> Result<Option<ClusterRequest>, Fault> {
    if let Some(status) = root.body_as_cluster_status_request() {
        return Ok(Some(ClusterRequest::Status(StatusQuestion {
            topic: status.topic().map(String::from),
            all_partitions: status.all_partitions(),
            skip: status.skip(),
            most: status.most(),
        })));
    }
    if let Some(reassign) = root.body_as_reassign_request() {
        let partitions = reassign.partitions().iter().map(|set| (set.partition(), set.nodes().iter().collect())).collect();
        return Ok(Some(ClusterRequest::Reassign(Reassign { topic: reassign.topic().into(), partitions })));
    }
    if let Some(elect) = root.body_as_elect_leader_request() {
        let candidate = match (elect.kind(), elect.node()) {
            (g::ElectionKind::Preferred, None) => Candidate::Preferred,
            (g::ElectionKind::HandOver, Some(node)) => Candidate::InSync(node),
            (g::ElectionKind::Unclean, Some(node)) => Candidate::Unclean(node),
            (kind, node) => {
                return invalid(format!("an election must be of kind 0 without a node, 1 or 2 with one, not {} with {node:?}", kind.0));
            }
        };
        return Ok(Some(ClusterRequest::Elect(ElectLeader { topic: elect.topic().into(), partition: elect.partition(), candidate })));
    }
    if let Some(rebalance) = root.body_as_rebalance_request() {
        let rebalance = Rebalance { empty: rebalance.empty(), most_moving: rebalance.most_moving(), dry_run: rebalance.dry_run() };
        return Ok(Some(ClusterRequest::Rebalance(rebalance)));
    }
    if let Some(retire) = root.body_as_retire_node_request() {
        return Ok(Some(ClusterRequest::Retire { node: retire.node(), retiring: retire.retiring() }));
    }
    if let Some(remove) = root.body_as_remove_node_request() {
        return Ok(Some(ClusterRequest::Remove { node: remove.node() }));
    }
    if let Some(logs) = root.body_as_replica_logs_request() {
        let questions = logs.partitions().iter().map(|id| LogQuestion { partition: partition(id.topic(), id.partition()) });
        return Ok(Some(ClusterRequest::Logs(questions.collect())));
    }
    if let Some(checks) = root.body_as_segment_checks_request() {
        let partitions = checks.partitions().iter().map(|id| partition(id.topic(), id.partition())).collect();
        return Ok(Some(ClusterRequest::Checks(CheckSegments { partitions, read: checks.read() })));
    }
    Ok(None)
}

pub(super) fn response_body(b: &mut Builder, answer: &ClusterAnswer) -> (g::ResponseBody, Body) {
    use g::ResponseBody as Kind;
    match answer {
        ClusterAnswer::Status(status) => (Kind::ClusterStatusResponse, status_response(b, status).as_union_value()),
        ClusterAnswer::Reassigned(outcomes) => {
            let refusals = refused_items(b, outcomes.iter().map(|(_, outcome)| outcome.as_ref().err()));
            let partitions = Some(b.create_vector_from_iter(outcomes.iter().map(|(partition, _)| *partition)));
            let args = g::ReassignResponseArgs { partitions, refusals };
            (Kind::ReassignResponse, g::ReassignResponse::create(b, &args).as_union_value())
        }
        ClusterAnswer::Elected { leader, leader_epoch } => {
            let args = g::ElectLeaderResponseArgs { leader: *leader, leader_epoch: *leader_epoch };
            (Kind::ElectLeaderResponse, g::ElectLeaderResponse::create(b, &args).as_union_value())
        }
        ClusterAnswer::Rebalanced(step) => (Kind::RebalanceResponse, step_response(b, step).as_union_value()),
        ClusterAnswer::Retired => {
            (Kind::RetireNodeResponse, g::RetireNodeResponse::create(b, &g::RetireNodeResponseArgs {}).as_union_value())
        }
        ClusterAnswer::Removed => {
            (Kind::RemoveNodeResponse, g::RemoveNodeResponse::create(b, &g::RemoveNodeResponseArgs {}).as_union_value())
        }
        ClusterAnswer::Logs(results) => (Kind::ReplicaLogsResponse, logs_response(b, results).as_union_value()),
        ClusterAnswer::Checks(results) => (Kind::SegmentChecksResponse, checks_response(b, results).as_union_value()),
    }
}

fn status_response(b: &mut Builder, status: &ClusterStatus) -> Offset<g::ClusterStatusResponse<'static>> {
    let nodes = tables(b, &status.nodes, node_status);
    let partitions = tables(b, &status.partitions, partition_state);
    let consensus = Some(consensus_state(b, &status.consensus));
    let of = &status.counts;
    let counts =
        g::ClusterCounts::new(of.topics, of.partitions, of.offline, of.below_min_insync, of.under_replicated, of.moving, of.led_elsewhere);
    let cluster = g::Uuid(status.cluster);
    let args = g::ClusterStatusResponseArgs {
        cluster: Some(&cluster),
        node: status.node,
        version: status.version,
        consensus,
        nodes,
        counts: Some(&counts),
        partitions,
        left: status.left,
    };
    g::ClusterStatusResponse::create(b, &args)
}

fn node_status(b: &mut Builder, node: &NodeStatus) -> Offset<g::NodeStatus<'static>> {
    let state = match node.condition {
        NodeCondition::Live => g::NodeState::Live,
        NodeCondition::Draining => g::NodeState::Draining,
        NodeCondition::Fenced => g::NodeState::Fenced,
    };
    let incarnation = g::Uuid(node.incarnation);
    let args = g::NodeStatusArgs {
        node: node.node,
        state,
        retiring: node.retiring,
        node_epoch: node.node_epoch,
        incarnation: Some(&incarnation),
        shards: node.shards,
        rack: node.rack.as_ref().map(|rack| b.create_string(rack)),
        software: Some(b.create_string(&node.software)),
        cluster_address: node.cluster_address.as_ref().map(|address| endpoint(b, address)),
        clients: tables(b, &node.clients, endpoint),
        leads: Some(b.create_vector(&node.leads)),
        preferred: node.preferred,
        replicas: node.replicas,
        behind: node.behind,
    };
    g::NodeStatus::create(b, &args)
}

fn endpoint(b: &mut Builder, address: &HostPort) -> Offset<g::Endpoint<'static>> {
    let host = Some(b.create_string(&address.host));
    g::Endpoint::create(b, &g::EndpointArgs { host, port: address.port })
}

fn consensus_state(b: &mut Builder, state: &ConsensusState) -> Offset<g::ConsensusState<'static>> {
    let members = tables(b, &state.members, |b, member| {
        let address = Some(b.create_string(&member.address));
        g::ConsensusMember::create(b, &g::ConsensusMemberArgs { node: member.node, address, votes: member.votes })
    });
    let failure = state.failure.as_ref().map(|words| b.create_string(words));
    let args = g::ConsensusStateArgs { leader: state.leader, term: state.term, applied: state.applied, members, failure };
    g::ConsensusState::create(b, &args)
}

fn partition_state(b: &mut Builder, state: &PartitionState) -> Offset<g::PartitionState<'static>> {
    let args = g::PartitionStateArgs {
        topic: Some(b.create_string(&state.topic)),
        partition: state.partition,
        leader: state.leader,
        leader_epoch: state.leader_epoch,
        replicas: Some(b.create_vector(&state.replicas)),
        isr: Some(b.create_vector(&state.isr)),
        eligible: (!state.eligible.is_empty()).then(|| b.create_vector(&state.eligible)),
        target: state.target.as_ref().map(|target| b.create_vector(target)),
        min_insync: state.min_insync,
    };
    g::PartitionState::create(b, &args)
}

fn step_response(b: &mut Builder, step: &RebalanceStep) -> Offset<g::RebalanceResponse<'static>> {
    let args = g::RebalanceResponseArgs {
        begun: tables(b, &step.begun, planned_move),
        planned: tables(b, &step.planned, planned_move),
        unnamed: step.unnamed,
        moving: step.moving,
        waits_for: Some(b.create_vector(&step.waits_for)),
        without_leader: step.without_leader,
        led_elsewhere: step.led_elsewhere,
        refusal: step.refusal.as_ref().map(|refusal| refusal_offset(b, refusal)),
    };
    g::RebalanceResponse::create(b, &args)
}

fn planned_move(b: &mut Builder, of: &PlannedMove) -> Offset<g::PlannedMove<'static>> {
    let args = g::PlannedMoveArgs {
        topic: Some(b.create_string(&of.topic)),
        partition: of.partition,
        from: Some(b.create_vector(&of.from)),
        to: Some(b.create_vector(&of.to)),
    };
    g::PlannedMove::create(b, &args)
}

fn logs_response(b: &mut Builder, results: &[ReplicaLogResult]) -> Offset<g::ReplicaLogsResponse<'static>> {
    let refusals = refused_items(b, results.iter().map(|result| result.outcome.as_ref().err()));
    let logs = tables(b, results, |b, result| {
        let log = result.outcome.as_ref().ok();
        let hash = |s: &SegmentHash| g::SegmentHash::new(s.base_offset, s.end_offset, s.running_hash, s.bytes, s.generation, s.sealed);
        let segments = b.create_vector_from_iter(log.map_or(&[][..], |log| &log.segments).iter().map(hash));
        let args = g::ReplicaLogArgs {
            log_start: log.map_or(-1, |log| log.log_start),
            log_end: log.map_or(-1, |log| log.log_end),
            high_watermark: log.map_or(-1, |log| log.high_watermark),
            leader_epoch: log.map_or(-1, |log| log.leader_epoch),
            last_epoch: log.and_then(|log| log.last_epoch).unwrap_or(-1),
            segments: Some(segments),
        };
        g::ReplicaLog::create(b, &args)
    });
    let ids = results.iter().map(|result| g::PartitionId::new(&g::Uuid(result.partition.topic.0), result.partition.partition));
    let partitions = Some(b.create_vector_from_iter(ids));
    g::ReplicaLogsResponse::create(b, &g::ReplicaLogsResponseArgs { partitions, logs, refusals })
}

fn checks_response(b: &mut Builder, results: &[SegmentChecksResult]) -> Offset<g::SegmentChecksResponse<'static>> {
    let refusals = refused_items(b, results.iter().map(|result| result.outcome.as_ref().err()));
    let checks = tables(b, results, |b, result| {
        let found = result.outcome.as_ref().ok();
        let segment = |b: &mut Builder, segment: &DamagedSegment| {
            let what = Some(b.create_string(&segment.what));
            g::DamagedSegment::create(b, &g::DamagedSegmentArgs { base_offset: segment.base_offset, what })
        };
        let damaged = tables(b, found.map_or(&[][..], |found| &found.damaged), segment);
        let mended = tables(b, found.map_or(&[][..], |found| &found.mended), segment);
        let (waiting, sound) = found.map_or((0, 0), |found| (found.waiting, found.sound));
        g::SegmentChecks::create(b, &g::SegmentChecksArgs { waiting, sound, damaged, mended })
    });
    let ids = results.iter().map(|result| g::PartitionId::new(&g::Uuid(result.partition.topic.0), result.partition.partition));
    let partitions = Some(b.create_vector_from_iter(ids));
    g::SegmentChecksResponse::create(b, &g::SegmentChecksResponseArgs { partitions, checks, refusals })
}

/// The answer to an administrator of the cluster, if it is one.
pub(super) fn answer_of(root: &g::Response<'_>) -> Result<Option<ClusterAnswer>, Fault> {
    if let Some(status) = root.body_as_cluster_status_response() {
        return status_of(&status).map(|status| Some(ClusterAnswer::Status(Box::new(status))));
    }
    if let Some(reassigned) = root.body_as_reassign_response() {
        let partitions = reassigned.partitions();
        let mut refusals = Refusals::of(reassigned.refusals(), partitions.len())?;
        let outcome = |(at, partition)| (partition, refusals.outcome(at, ()));
        return Ok(Some(ClusterAnswer::Reassigned(partitions.iter().enumerate().map(outcome).collect())));
    }
    if let Some(elected) = root.body_as_elect_leader_response() {
        return Ok(Some(ClusterAnswer::Elected { leader: elected.leader(), leader_epoch: elected.leader_epoch() }));
    }
    if let Some(step) = root.body_as_rebalance_response() {
        return Ok(Some(ClusterAnswer::Rebalanced(step_of(&step))));
    }
    if root.body_as_retire_node_response().is_some() {
        return Ok(Some(ClusterAnswer::Retired));
    }
    if root.body_as_remove_node_response().is_some() {
        return Ok(Some(ClusterAnswer::Removed));
    }
    if let Some(logs) = root.body_as_replica_logs_response() {
        return logs_of(&logs).map(|logs| Some(ClusterAnswer::Logs(logs)));
    }
    if let Some(checks) = root.body_as_segment_checks_response() {
        return checks_of(&checks).map(|checks| Some(ClusterAnswer::Checks(checks)));
    }
    Ok(None)
}

fn status_of(status: &g::ClusterStatusResponse<'_>) -> Result<ClusterStatus, Fault> {
    let of = status.counts();
    let counts = ClusterCounts {
        topics: of.topics(),
        partitions: of.partitions(),
        offline: of.offline(),
        below_min_insync: of.below_min_insync(),
        under_replicated: of.under_replicated(),
        moving: of.moving(),
        led_elsewhere: of.led_elsewhere(),
    };
    Ok(ClusterStatus {
        cluster: status.cluster().0,
        node: status.node(),
        version: status.version(),
        consensus: consensus_of(&status.consensus()),
        nodes: status.nodes().iter().map(node_of).collect::<Result<_, _>>()?,
        counts,
        partitions: status.partitions().iter().map(partition_state_of).collect(),
        left: status.left(),
    })
}

fn node_of(node: g::NodeStatus<'_>) -> Result<NodeStatus, Fault> {
    let condition = match node.state() {
        g::NodeState::Live => NodeCondition::Live,
        g::NodeState::Draining => NodeCondition::Draining,
        g::NodeState::Fenced => NodeCondition::Fenced,
        other => return invalid(format!("the state of a node must be 0 to 2, not {}", other.0)),
    };
    Ok(NodeStatus {
        node: node.node(),
        condition,
        retiring: node.retiring(),
        node_epoch: node.node_epoch(),
        incarnation: node.incarnation().0,
        shards: node.shards(),
        rack: node.rack().map(String::from),
        software: node.software().into(),
        cluster_address: node.cluster_address().map(endpoint_of),
        clients: node.clients().iter().map(endpoint_of).collect(),
        leads: node.leads().iter().collect(),
        preferred: node.preferred(),
        replicas: node.replicas(),
        behind: node.behind(),
    })
}

fn endpoint_of(address: g::Endpoint<'_>) -> HostPort {
    HostPort { host: address.host().into(), port: address.port() }
}

fn consensus_of(state: &g::ConsensusState<'_>) -> ConsensusState {
    let member =
        |member: g::ConsensusMember<'_>| ConsensusMember { node: member.node(), address: member.address().into(), votes: member.votes() };
    ConsensusState {
        leader: state.leader(),
        term: state.term(),
        applied: state.applied(),
        members: state.members().iter().map(member).collect(),
        failure: state.failure().map(String::from),
    }
}

fn partition_state_of(state: g::PartitionState<'_>) -> PartitionState {
    PartitionState {
        topic: state.topic().into(),
        partition: state.partition(),
        leader: state.leader(),
        leader_epoch: state.leader_epoch(),
        replicas: state.replicas().iter().collect(),
        isr: state.isr().iter().collect(),
        eligible: state.eligible().into_iter().flatten().collect(),
        target: state.target().map(|target| target.iter().collect()),
        min_insync: state.min_insync(),
    }
}

fn step_of(step: &g::RebalanceResponse<'_>) -> RebalanceStep {
    RebalanceStep {
        begun: moves_of(step.begun()),
        planned: moves_of(step.planned()),
        unnamed: step.unnamed(),
        moving: step.moving(),
        waits_for: step.waits_for().iter().collect(),
        without_leader: step.without_leader(),
        led_elsewhere: step.led_elsewhere(),
        refusal: step.refusal().map(refusal_of),
    }
}

fn moves_of(moves: Read<'_, g::PlannedMove<'_>>) -> Vec<PlannedMove> {
    let planned = |of: g::PlannedMove<'_>| PlannedMove {
        topic: of.topic().into(),
        partition: of.partition(),
        from: of.from().iter().collect(),
        to: of.to().iter().collect(),
    };
    moves.iter().map(planned).collect()
}

fn logs_of(answer: &g::ReplicaLogsResponse<'_>) -> Result<Vec<ReplicaLogResult>, Fault> {
    let (ids, logs) = (answer.partitions(), answer.logs());
    if ids.len() != logs.len() {
        return invalid(format!("{} partitions have {} logs", ids.len(), logs.len()));
    }
    let mut refusals = Refusals::of(answer.refusals(), logs.len())?;
    let result = |(index, (id, log)): (usize, (&g::PartitionId, g::ReplicaLog<'_>))| ReplicaLogResult {
        partition: partition(id.topic(), id.partition()),
        outcome: refusals.outcome(index, log_of(&log)),
    };
    Ok(ids.iter().zip(logs.iter()).enumerate().map(result).collect())
}

fn log_of(log: &g::ReplicaLog<'_>) -> ReplicaLog {
    let hash = |s: &g::SegmentHash| SegmentHash {
        base_offset: s.base_offset(),
        end_offset: s.end_offset(),
        running_hash: s.running_hash(),
        bytes: s.bytes(),
        generation: s.generation(),
        sealed: s.sealed(),
    };
    ReplicaLog {
        log_start: log.log_start(),
        log_end: log.log_end(),
        high_watermark: log.high_watermark(),
        leader_epoch: log.leader_epoch(),
        last_epoch: Some(log.last_epoch()).filter(|epoch| *epoch >= 0),
        segments: log.segments().iter().map(hash).collect(),
    }
}

fn checks_of(answer: &g::SegmentChecksResponse<'_>) -> Result<Vec<SegmentChecksResult>, Fault> {
    let (ids, checks) = (answer.partitions(), answer.checks());
    if ids.len() != checks.len() {
        return invalid(format!("{} partitions have {} lists of checks", ids.len(), checks.len()));
    }
    let mut refusals = Refusals::of(answer.refusals(), checks.len())?;
    let segment = |s: g::DamagedSegment<'_>| DamagedSegment { base_offset: s.base_offset(), what: s.what().into() };
    let result = |(index, (id, found)): (usize, (&g::PartitionId, g::SegmentChecks<'_>))| {
        let (damaged, mended) = (found.damaged().iter().map(segment).collect(), found.mended().iter().map(segment).collect());
        let found = SegmentChecks { waiting: found.waiting(), sound: found.sound(), damaged, mended };
        SegmentChecksResult { partition: partition(id.topic(), id.partition()), outcome: refusals.outcome(index, found) }
    };
    Ok(ids.iter().zip(checks.iter()).enumerate().map(result).collect())
}
