//! Requests but produce: each is answered by a task of its own, so a fetch that waits holds up nothing.

use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};

use crate::cluster::config::CLEANUP_POLICY;
use crate::cluster::{Applied, Catalogue, CatalogueView, Command, Committed};
use crate::metrics::{Counter, RequestKind};
use crate::request::{AlterTopic, Code, CreateTopic, Refusal, Request, Response};
use crate::shard::budget::Building;
use crate::shard::cluster_admin;
use crate::shard::connection::respond;
use crate::shard::context::Context;
use crate::shard::deletion::delete_records;
use crate::shard::epochs::epoch_ends;
use crate::shard::fetch::{fetch, fetch_mine};
use crate::shard::groups;
use crate::shard::mesh::{MeshReply, MeshRequest, SegmentPart};
use crate::shard::metadata::metadata;
use crate::shard::net::{Outgoing, Sender};
use crate::shard::offsets::list_offsets;
use crate::shard::pending::Answer;
use crate::shard::produce;
use crate::types::{TopicId, is_internal_topic};

/// Partitions of a topic that is created without a number.
pub const DEFAULT_PARTITIONS: u32 = 1;
/// Most replicas of a topic that is created without a number: with three, one node may be lost while another one is away.
const DEFAULT_REPLICATION_FACTOR: u16 = 3;

/// Replicas of a topic that is created without a number: three, or as many as there are nodes for.
pub fn default_replication_factor(view: &CatalogueView) -> u16 {
    let nodes = view.nodes().filter(|node| !node.retiring).count();
    (nodes.max(1) as u16).min(DEFAULT_REPLICATION_FACTOR)
}
const MIN_INSYNC_REPLICAS: &str = "min.insync.replicas";

/// Answers a request; never a produce.
pub fn handle(context: &Rc<Context>, sender: &Rc<Sender>, peer: &str, correlation: u64, request: Request) {
    context.metrics.count_request(kind(&request));
    let request = match request {
        Request::Group(request) => Request::Group(groups::from_client(request, peer)),
        request => request,
    };
    let (context, sender, open) = (context.clone(), sender.clone(), sender.begin_request());
    glommio::spawn_local(async move {
        let _open = open;
        if let Request::Fetch(request) = &request {
            let Some((answer, _turn)) = fetch(&context, &sender, request).await else { return };
            for refusal in answer.results.iter().filter_map(|r| r.outcome.as_ref().err()) {
                context.metrics.count_error(refusal.code.value());
            }
            return respond(&context, &sender, correlation, &Response::Fetch(answer.results), answer.pieces);
        }
        let mut building = Building::new(&context.store.budget);
        let answered = match request {
            Request::Group(request) => Ok(Response::Group(groups::ask(&context, request, &mut building).await)),
            request => answer(&context, request).await,
        };
        let response = answered.unwrap_or_else(|refusal| {
            context.metrics.count_error(refusal.code.value());
            Response::Refused(refusal)
        });
        respond(&context, &sender, correlation, &response, Vec::new());
    })
    .detach();
}

fn kind(request: &Request) -> RequestKind {
    match request {
        Request::Metadata(_) => RequestKind::Metadata,
        Request::CreateTopic(_) => RequestKind::CreateTopic,
        Request::DeleteTopic(_) => RequestKind::DeleteTopic,
        Request::DescribeTopic(_) => RequestKind::DescribeTopic,
        Request::AlterTopic(_) => RequestKind::AlterTopic,
        Request::Produce(_) => RequestKind::Produce,
        Request::Fetch(_) => RequestKind::Fetch,
        Request::ListOffsets(_) => RequestKind::ListOffsets,
        Request::InitProducerId => RequestKind::InitProducerId,
        Request::Group(_) | Request::FindCoordinator(_) => RequestKind::Group,
        Request::DeleteRecords(_) => RequestKind::DeleteRecords,
        Request::EpochEnds(_) => RequestKind::EpochEnds,
        Request::Cluster(_) => RequestKind::Cluster,
    }
}

/// Answers a request but produce, fetch and those to the coordinators of groups.
///
/// # Errors
/// The whole request is refused.
pub async fn answer(context: &Rc<Context>, request: Request) -> Result<Response, Refusal> {
    match request {
        Request::Metadata(request) => Ok(Response::Metadata(metadata(context, request).await)),
        Request::CreateTopic(request) => {
            refuse_internal(&request.name)?;
            create_topic(context, request).await
        }
        Request::DeleteTopic(name) => {
            refuse_internal(&name)?;
            delete_topic(context, &name).await
        }
        Request::DescribeTopic(name) => describe_topic(context, &name),
        Request::AlterTopic(request) => alter_topic(context, request).await,
        Request::ListOffsets(questions) => Ok(Response::ListOffsets(list_offsets(context, &questions).await)),
        Request::InitProducerId => Ok(Response::ProducerId(context.next_producer_id().await?, 0)),
        Request::FindCoordinator(groups) => Ok(Response::Coordinators(groups::coordinators(context, &groups).await)),
        Request::EpochEnds(questions) => Ok(Response::EpochEnds(epoch_ends(context, &questions).await)),
        Request::Cluster(request) => Ok(Response::Cluster(cluster_admin::answer(context, request).await?)),
        Request::DeleteRecords(asked) => Ok(Response::RecordsDeleted(delete_records(context, &asked).await)),
        Request::Group(_) | Request::Produce(_) | Request::Fetch(_) => Err(Refusal::new(Code::Internal, "answered elsewhere")),
    }
}

/// Creates a topic; it is in force on every shard then.
pub async fn create_topic(context: &Rc<Context>, request: CreateTopic) -> Result<Response, Refusal> {
    let (replication_factor, config) = replication(&context.view.borrow(), request.replication_factor, request.config);
    let command = Command::CreateTopic {
        id: TopicId(*uuid::Uuid::new_v4().as_bytes()),
        name: request.name.clone(),
        partitions: request.partitions.unwrap_or(DEFAULT_PARTITIONS),
        replication_factor,
        config,
    };
    if request.validate_only {
        return match validate(context, &command)? {
            Applied::TopicCreated(topic) => Ok(Response::TopicCreated(topic.describe(context.durability))),
            other => Err(Refusal::new(Code::Internal, format!("a creation did {other:?}"))),
        };
    }
    if context.store.reserve.is_full() {
        return Err(Refusal::new(
            Code::DiskFull,
            format!("no space for topic {:?}: free space, shorten the retention or delete a topic", request.name),
        ));
    }
    let committed = context.control.propose(command).await?;
    let topic = committed.view.topic(&request.name).ok_or_else(|| unknown(&request.name))?;
    Ok(Response::TopicCreated(topic.describe(context.durability)))
}

/// How many replicas a topic gets, and with which settings. Who leaves the number to the broker gets three where there are nodes for them, and what is acknowledged to `acks=all` is then on
/// two of them at least, unless the request says otherwise.
fn replication(view: &CatalogueView, asked: Option<u16>, mut config: Vec<(String, String)>) -> (u16, Vec<(String, String)>) {
    let replicas = asked.unwrap_or_else(|| default_replication_factor(view));
    if asked.is_none() && !config.iter().any(|(name, _)| name == MIN_INSYNC_REPLICAS) {
        config.extend(min_insync(replicas));
    }
    (replicas, config)
}

/// The setting for so many replicas with which one node may be lost while another one is away. Of two, each would stop writes when it is away, so one is enough there.
pub fn min_insync(replicas: u16) -> Option<(String, String)> {
    (replicas >= 3).then(|| (MIN_INSYNC_REPLICAS.into(), "2".into()))
}

/// What a command would do, were it proposed now.
///
/// # Errors
/// It would be refused.
pub fn validate(context: &Context, command: &Command) -> Result<Applied, Refusal> {
    Catalogue::from_view(context.view.borrow().clone()).apply(command)
}

async fn delete_topic(context: &Rc<Context>, name: &str) -> Result<Response, Refusal> {
    let id = context.view.borrow().topic(name).map(|t| t.id).ok_or_else(|| unknown(name))?;
    propose_without_space(context, Command::DeleteTopic { id }).await?;
    Ok(Response::TopicDeleted)
}

/// Proposes what makes room, or may: where the catalogue finds no space for it, the reserve is given up.
async fn propose_without_space(context: &Rc<Context>, command: Command) -> Result<Committed, Refusal> {
    match context.control.propose(command.clone()).await {
        Err(refusal) if refusal.code == Code::DiskFull => {
            let reserve = context.store.reserve.clone();
            match glommio::executor().spawn_blocking(move || reserve.give_up()).await {
                true => context.control.propose(command).await,
                false => Err(refusal),
            }
        }
        done => done,
    }
}

fn describe_topic(context: &Context, name: &str) -> Result<Response, Refusal> {
    let view = context.view.borrow();
    let topic = view.topic(name).ok_or_else(|| unknown(name))?;
    Ok(Response::Topic(topic.describe(context.durability)))
}

/// Refuses what clients may not do to the broker's own topics.
fn refuse_internal(name: &str) -> Result<(), Refusal> {
    match is_internal_topic(name) {
        true => Err(Refusal::new(Code::InvalidTopicName, format!("topic {name} is the broker's own"))),
        false => Ok(()),
    }
}

/// Refuses changes of the broker's own topics that would lose what is in them: another number of partitions, by which keys are looked up, and another way to
/// delete records.
///
/// # Errors
/// It is one.
pub fn check_internal(context: &Context, request: &AlterTopic) -> Result<(), Refusal> {
    let view = context.view.borrow();
    let Some(topic) = view.topic(&request.name).filter(|topic| is_internal_topic(&topic.name)) else { return Ok(()) };
    if request.partitions.is_some_and(|partitions| partitions != topic.partitions) {
        return refuse_internal(&topic.name);
    }
    let present = topic.config.value(CLEANUP_POLICY, context.durability);
    match request.config.iter().find(|(name, value)| name == CLEANUP_POLICY && *value != present) {
        Some(_) => Err(Refusal::new(Code::InvalidConfig, format!("{CLEANUP_POLICY} of the broker's own topic {} stays", topic.name))),
        None => Ok(()),
    }
}

async fn alter_topic(context: &Rc<Context>, request: AlterTopic) -> Result<Response, Refusal> {
    check_internal(context, &request)?;
    let id = context.view.borrow().topic(&request.name).map(|t| t.id).ok_or_else(|| unknown(&request.name))?;
    let command = Command::AlterTopic { id, partitions: request.partitions, config: request.config };
    let committed = propose_without_space(context, command).await?;
    debug_assert!(matches!(committed.applied, Applied::TopicAltered(_)), "an alteration alters");
    let topic = committed.view.topic(&request.name).ok_or_else(|| unknown(&request.name))?;
    Ok(Response::TopicAltered(topic.describe(context.durability)))
}

/// The refusal of a name that no topic has.
pub fn unknown(name: &str) -> Refusal {
    Refusal::new(Code::UnknownTopicOrPartition, format!("there is no topic {name:?}"))
}

/// The task that serves the other shards' requests, in the order in which they come.
pub async fn serve_mesh(context: Rc<Context>) {
    while let Some(MeshRequest { request, payload, is_probe, reply }) = context.mesh.receive().await {
        context.metrics.add(Counter::MeshServed, 1);
        match request {
            Request::Produce(produce) => {
                let answer = Box::new(MeshAnswer(reply));
                produce::produce(&context, &produce, &payload, answer).await;
            }
            request => {
                let context = context.clone();
                glommio::spawn_local(async move {
                    // An asker that has its answer from elsewhere has gone.
                    let (answer, gone) = (pin!(serve_one(&context, request, is_probe)), pin!(reply.closed()));
                    if let Either::Left((answer, _)) = select(answer, gone).await {
                        let _ = reply.send(answer).await;
                    }
                })
                .detach();
            }
        }
    }
}

async fn serve_one(context: &Rc<Context>, request: Request, is_probe: bool) -> MeshReply {
    if let Request::Fetch(request) = &request {
        let answer = fetch_mine(context, request).await;
        if is_probe {
            return MeshReply::new(Response::Fetch(answer.results));
        }
        let mut segment = None;
        let mut payload = Vec::with_capacity(answer.pieces.iter().map(Outgoing::in_memory).sum());
        for piece in &answer.pieces {
            match piece {
                Outgoing::Segment { file, position, len } => {
                    segment = Some(SegmentPart { path: file.path().into(), position: *position, len: *len })
                }
                piece => piece.copy_to(&mut payload),
            }
        }
        return MeshReply { response: Response::Fetch(answer.results), segment, payload: payload.into() };
    }
    if let Request::Group(request) = request {
        return MeshReply::new(Response::Group(groups::here(context, request).await));
    }
    MeshReply::new(answer(context, request).await.unwrap_or_else(Response::Refused))
}

struct MeshAnswer(async_channel::Sender<MeshReply>);

impl Answer for MeshAnswer {
    fn produced(&self, results: Vec<crate::request::ProduceResult>) {
        // The queue has room for the one answer; an asker that has gone does not care.
        let _ = self.0.try_send(MeshReply::new(Response::Produce(results)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::node::tests::registration;

    #[test]
    fn a_topic_without_a_number_of_replicas_bears_the_loss_of_a_node_where_there_are_three() {
        let mut catalogue = Catalogue::new();
        let of = |catalogue: &Catalogue, asked, config: &[(&str, &str)]| {
            let config = config.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            let (replicas, config) = replication(catalogue.view(), asked, config);
            (replicas, config.into_iter().map(|(_, value)| value).collect::<Vec<_>>().join(","))
        };
        assert_eq!(of(&catalogue, None, &[]), (1, String::new()), "before a node is registered");
        for (node, replicas) in [(0, 1), (1, 2), (2, 3), (3, 3)] {
            catalogue.apply(&Command::RegisterNode(Box::new(registration(node)))).unwrap();
            assert_eq!(of(&catalogue, None, &[]), (replicas, if replicas == 3 { "2".into() } else { String::new() }));
        }
        assert_eq!(of(&catalogue, None, &[(MIN_INSYNC_REPLICAS, "3")]), (3, "3".into()));
        assert_eq!(of(&catalogue, Some(3), &[]), (3, String::new()), "who says a number says all");
    }
}
