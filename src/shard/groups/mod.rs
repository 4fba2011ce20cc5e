//! Consumer groups of this node: finds the shard that coordinates a group, and drives the coordinators of this shard.
//!
//! ```text
//! connection -> ask -> (mesh) -> Led: machine ([`crate::group::Coordinator`]) -- records --> append to its partition of `__consumer_offsets`
//!                                      ^                                                              |
//!                                      '---------------------- durable, in order ---------------------'
//! ```
//!
//! A group is coordinated where its partition of `__consumer_offsets` lives, so a coordinator's records never cross shards. Any shard takes a request for any
//! group and passes it on through the mesh; clients are told the right one ([`coordinators`]). Between nodes nothing is passed on: a group whose partition another node leads is refused
//! with NOT_COORDINATOR. Each shard has a `Led` for each replica of the topic that it has; those of partitions that are led elsewhere wait, with nothing loaded and nothing written.
//!
//! The topic is made with the first request that names a group. A position in a topic that does not exist is refused here, because only the catalogue knows;
//! positions of a deleted topic are deleted.

mod led;
mod load;
mod standing;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::cluster::{NodeState, Topic};
use crate::group::{Settings, partition_of};
use crate::limits;
use crate::metrics::Counter;
use crate::request::group::{
    CommitOffsets, CommitPartition, DescribedGroup, DescribedMember, FetchedOffset, FetchedTopic, GroupAnswer, GroupError, GroupRequest,
    JoinRefused, ListedGroup, State, TopicOutcome,
};
use crate::request::{Broker, Code, CreateTopic, Request, Response};
use crate::shard::budget::Building;
use crate::shard::context::Context;
use crate::shard::event::Event;
use crate::shard::service;
use crate::types::{OFFSETS_TOPIC, TopicPartition};

use led::Led;

/// Settings of the topic that groups are kept in: the last record of each key is kept, however old. A small segment is cleaned soon.
const OFFSETS_TOPIC_CONFIG: [(&str, &str); 2] = [("cleanup.policy", "compact"), ("segment.bytes", "104857600")];

/// Longest wait for a topic that was just made to be known here.
const CATALOGUE_PATIENCE: Duration = Duration::from_secs(1);

/// The coordinators of this shard.
pub struct Groups {
    settings: Settings,
    /// By partition of `__consumer_offsets`.
    led: RefCell<BTreeMap<u32, Rc<Led>>>,
    /// One partition is read at a time: memory for one.
    loading: RefCell<bool>,
    loaded: Event,
    /// Notified when the catalogue changed.
    followed: Event,
}

impl Groups {
    /// None yet.
    pub fn new(settings: Settings) -> Groups {
        Groups { settings, led: RefCell::default(), loading: RefCell::default(), loaded: Event::default(), followed: Event::default() }
    }

    /// Nothing is coordinated any more: whoever waits is told to look for another coordinator.
    pub fn stop(&self, context: &Context) {
        for led in std::mem::take(&mut *self.led.borrow_mut()).into_values() {
            led.finish(context);
        }
    }

    fn all(&self) -> Vec<Rc<Led>> {
        self.led.borrow().values().cloned().collect()
    }
}

/// Begins to coordinate what came to this shard, ends what went, and forgets positions in topics that are gone. To be called when the catalogue changed and is in force here.
pub fn follow_catalogue(context: &Rc<Context>, deleted: &[String]) {
    let groups = &context.groups;
    let topic = context.view.borrow().topic(OFFSETS_TOPIC).cloned();
    let mine: BTreeSet<TopicPartition> = topic
        .iter()
        .flat_map(|topic| partitions(topic))
        .filter(|id| context.is_mine(id) && context.store.partition(id).is_some())
        .collect();
    groups.led.borrow_mut().retain(|_, led| {
        let stays = mine.contains(&led.partition);
        if !stays {
            led.stop();
        }
        stays
    });
    for partition in mine {
        let mut led = groups.led.borrow_mut();
        if let std::collections::btree_map::Entry::Vacant(place) = led.entry(partition.partition) {
            place.insert(Led::begin(context, partition, groups.settings));
        }
    }
    for led in groups.all() {
        deleted.iter().for_each(|name| led.topic_deleted(name));
        led.look();
    }
    groups.followed.notify();
}

fn partitions(topic: &Topic) -> impl Iterator<Item = TopicPartition> + use<> {
    let id = topic.id;
    (0..topic.partitions).map(move |partition| TopicPartition { topic: id, partition })
}

/// The brokers to which requests of these groups go, in order: the shards that lead the groups' partitions.
pub async fn coordinators(context: &Rc<Context>, groups: &[String]) -> Vec<Result<Broker, GroupError>> {
    let topic = offsets_topic(context).await;
    let of = |group: &String| leader(context, &place(topic.as_ref().map_err(|error| *error)?, group));
    groups.iter().map(of).collect()
}

/// Where clients find the shard that leads a partition.
fn leader(context: &Context, partition: &TopicPartition) -> Result<Broker, GroupError> {
    let view = context.view.borrow();
    match view.partition(partition) {
        Some(record) if record.leader != Some(context.identity.node) => {
            let found = record.leader.and_then(|node| {
                let shard = view.shard_on(node, partition)?;
                let (id, endpoint) = view.node(node)?.client_endpoint(shard)?;
                Some(Broker { id, host: endpoint.host.clone(), port: endpoint.port })
            });
            found.ok_or(GroupError::CoordinatorNotAvailable)
        }
        // Cut off: another one may be the coordinator.
        Some(record) if record.replicas.len() > 1 && !context.replication.holds_lease() => Err(GroupError::CoordinatorNotAvailable),
        _ => {
            let brokers = &context.identity.brokers;
            // With fewer endpoints than shards the others are reached through the advertised ones.
            Ok(brokers[context.owner(partition) as usize % brokers.len()].clone())
        }
    }
}

/// Whether another node leads a partition, or none does.
fn is_elsewhere(context: &Context, partition: &TopicPartition) -> bool {
    context.view.borrow().partition(partition).is_some_and(|record| record.leader != Some(context.identity.node))
}

fn place(topic: &Topic, group: &str) -> TopicPartition {
    TopicPartition { topic: topic.id, partition: partition_of(group, topic.partitions) }
}

/// The topic of the groups; made if it is not there.
async fn offsets_topic(context: &Rc<Context>) -> Result<Arc<Topic>, GroupError> {
    let known = || context.view.borrow().topic(OFFSETS_TOPIC).cloned();
    if let Some(topic) = known() {
        return Ok(topic);
    }
    let nodes = context.view.borrow().nodes().filter(|node| node.state == NodeState::Live && !node.retiring).count();
    let create = new_offsets_topic(context.groups.settings.offsets_replication_factor, nodes);
    let followed = context.groups.followed.ticket();
    match service::create_topic(context, create).await {
        Err(refusal) if refusal.code != Code::TopicExists => {
            tracing::warn!(%refusal, "the topic of consumer groups can't be made");
            Err(GroupError::CoordinatorNotAvailable)
        }
        // Another shard made it at the same moment: this one hears of it at once.
        Err(_) if known().is_none() => {
            context.groups.followed.wait_until(followed, Instant::now() + CATALOGUE_PATIENCE).await;
            known().ok_or(GroupError::CoordinatorNotAvailable)
        }
        _ => known().ok_or(GroupError::CoordinatorNotAvailable),
    }
}

/// The topic as it is made in a cluster of so many nodes: that many replicas, or as many as there are nodes for.
///
/// Two of three replicas have a position before a member is told so: then one node may be lost, and groups go on while another one is away. Of two replicas each would stop the groups when it is away, so
/// one is enough there.
fn new_offsets_topic(replicas: u16, nodes: usize) -> CreateTopic {
    let replicas = replicas.min(nodes.clamp(1, limits::MAX_REPLICAS) as u16);
    let mut config: Vec<(String, String)> = OFFSETS_TOPIC_CONFIG.map(|(name, value)| (name.into(), value.into())).to_vec();
    config.extend(service::min_insync(replicas));
    CreateTopic {
        name: OFFSETS_TOPIC.into(),
        partitions: Some(limits::OFFSETS_PARTITIONS),
        replication_factor: Some(replicas),
        config,
        validate_only: false,
    }
}

/// A request as it came from the client at `peer` (host and port), with what only the broker can say of a member that joins.
pub fn from_client(request: GroupRequest, peer: &str) -> GroupRequest {
    match request {
        GroupRequest::Join(mut join) => {
            // As Kafka writes it.
            let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host).trim_matches(['[', ']']);
            join.client_host = format!("/{host}");
            join.entropy = *uuid::Uuid::new_v4().as_bytes();
            GroupRequest::Join(join)
        }
        request => request,
    }
}

/// Asks the coordinator of a group, here or on another shard. Requests about several groups are asked of the coordinators of each.
///
/// What an answer holds that its request does not is counted in `building`, and left out where the shard has no room for it: the client is told to ask again, as of a
/// coordinator that is loading. Clients that describe many groups ask again for those that were left out only.
pub async fn ask(context: &Rc<Context>, request: GroupRequest, building: &mut Building) -> GroupAnswer {
    match request {
        GroupRequest::List(states) => GroupAnswer::List(list(context, &states, |_| true).await),
        GroupRequest::Describe(groups) => {
            let mut described = Vec::with_capacity(groups.len());
            for group in groups {
                let outcome = match pass_on(context, &group, GroupRequest::Describe(vec![group.clone()])).await {
                    Ok(GroupAnswer::Describe(mut one)) if one.len() == 1 => one.remove(0).1,
                    answer => Err(error_of(answer)),
                };
                let mut fits = |of: &DescribedGroup| building.take(&context.store.budget, described_bytes(of));
                let outcome = outcome.and_then(|of| if fits(&of) { Ok(of) } else { Err(GroupError::CoordinatorLoadInProgress) });
                described.push((group, outcome));
            }
            GroupAnswer::Describe(described)
        }
        GroupRequest::Delete(groups) => {
            let mut deleted = Vec::with_capacity(groups.len());
            for group in groups {
                match pass_on(context, &group, GroupRequest::Delete(vec![group.clone()])).await {
                    Ok(GroupAnswer::DeleteGroups(one)) => deleted.extend(one),
                    answer => deleted.push((group, Err(error_of(answer)))),
                }
            }
            GroupAnswer::DeleteGroups(deleted)
        }
        GroupRequest::FetchOffsets(fetch) => match ask_one(context, fetch.group.clone(), GroupRequest::FetchOffsets(fetch)).await {
            GroupAnswer::FetchOffsets(Ok(topics)) if !building.take(&context.store.budget, fetched_bytes(&topics)) => {
                GroupAnswer::FetchOffsets(Err(GroupError::CoordinatorLoadInProgress))
            }
            answer => answer,
        },
        GroupRequest::Commit(commit) => commit_known(context, commit).await,
        request => ask_one(context, group_of(&request).to_owned(), request).await,
    }
}

/// Bytes of a described group in an answer, about.
fn described_bytes(of: &DescribedGroup) -> usize {
    const OF_MEMBER: usize = 64;
    let bytes = |m: &DescribedMember| {
        let strings = m.member_id.len() + m.instance_id.as_deref().map_or(0, str::len) + m.client_id.len() + m.client_host.len();
        OF_MEMBER + strings + m.metadata.len() + m.assignment.len()
    };
    OF_MEMBER + of.group.len() + of.protocol_type.len() + of.protocol.len() + of.members.iter().map(bytes).sum::<usize>()
}

/// Bytes of positions in an answer, about.
fn fetched_bytes(topics: &[FetchedTopic]) -> usize {
    const OF_POSITION: usize = 32;
    let words = |p: &FetchedOffset| p.outcome.as_ref().ok().and_then(Option::as_ref).map_or(0, |commit| commit.metadata.len());
    let bytes = |t: &FetchedTopic| t.topic.len() + t.partitions.iter().map(|p| OF_POSITION + words(p)).sum::<usize>();
    topics.iter().map(bytes).sum()
}

fn error_of(answer: Result<GroupAnswer, GroupError>) -> GroupError {
    answer.err().unwrap_or(GroupError::UnknownServerError)
}

async fn ask_one(context: &Rc<Context>, group: String, request: GroupRequest) -> GroupAnswer {
    let refusal = refusal(&request);
    match pass_on(context, &group, request).await {
        Ok(answer) => answer,
        Err(error) => refusal(error),
    }
}

/// The group that a request is about; of several, none.
fn group_of(request: &GroupRequest) -> &str {
    match request {
        GroupRequest::Join(join) => &join.group,
        GroupRequest::Sync(sync) | GroupRequest::SyncAssignedByBroker(sync) => &sync.group,
        GroupRequest::Heartbeat(heartbeat) => &heartbeat.group,
        GroupRequest::Leave(leave) => &leave.group,
        GroupRequest::Commit(commit) => &commit.group,
        GroupRequest::FetchOffsets(fetch) => &fetch.group,
        GroupRequest::DeleteOffsets { group, .. } => group,
        GroupRequest::Describe(_) | GroupRequest::List(_) | GroupRequest::Delete(_) => "",
    }
}

/// How a request is refused as a whole.
fn refusal(request: &GroupRequest) -> Box<dyn FnOnce(GroupError) -> GroupAnswer> {
    match request {
        GroupRequest::Join(join) => {
            let member_id = join.member_id.as_str().into();
            Box::new(|error| GroupAnswer::Join(Err(JoinRefused { error, member_id })))
        }
        GroupRequest::Sync(_) | GroupRequest::SyncAssignedByBroker(_) => Box::new(|error| GroupAnswer::Sync(Err(error))),
        GroupRequest::Heartbeat(_) => Box::new(|error| GroupAnswer::Heartbeat(Err(error))),
        GroupRequest::Leave(_) => Box::new(|error| GroupAnswer::Leave(Err(error))),
        GroupRequest::Commit(commit) => {
            let topics: Vec<_> = commit.topics.iter().map(|(name, parts)| (name.clone(), numbers(parts))).collect();
            Box::new(move |error| {
                GroupAnswer::Commit(topics.into_iter().map(|(name, numbers)| all_refused(name, numbers, error)).collect())
            })
        }
        GroupRequest::FetchOffsets(_) => Box::new(|error| GroupAnswer::FetchOffsets(Err(error))),
        GroupRequest::Describe(groups) => {
            let groups = groups.clone();
            Box::new(move |error| GroupAnswer::Describe(groups.into_iter().map(|group| (group, Err(error))).collect()))
        }
        GroupRequest::List(_) => Box::new(|error| GroupAnswer::List(Err(error))),
        GroupRequest::Delete(groups) => {
            let groups = groups.clone();
            Box::new(move |error| GroupAnswer::DeleteGroups(groups.into_iter().map(|group| (group, Err(error))).collect()))
        }
        GroupRequest::DeleteOffsets { .. } => Box::new(|error| GroupAnswer::DeleteOffsets(Err(error))),
    }
}

fn numbers(partitions: &[CommitPartition]) -> Vec<i32> {
    partitions.iter().map(|p| p.partition).collect()
}

fn all_refused(topic: String, partitions: Vec<i32>, error: GroupError) -> TopicOutcome {
    TopicOutcome { topic, partitions: partitions.into_iter().map(|partition| (partition, Err(error))).collect() }
}

/// Commits positions in partitions that exist; the others are refused one by one.
async fn commit_known(context: &Rc<Context>, commit: CommitOffsets) -> GroupAnswer {
    let asked: Vec<_> = commit.topics.iter().map(|(name, parts)| (name.clone(), numbers(parts))).collect();
    let mut known = commit;
    {
        let view = context.view.borrow();
        for (name, partitions) in &mut known.topics {
            let count = view.topic(name).map_or(0, |topic| topic.partitions);
            partitions.retain(|p| u32::try_from(p.partition).is_ok_and(|number| number < count));
        }
    }
    known.topics.retain(|(_, partitions)| !partitions.is_empty());
    if known.topics.is_empty() {
        let unknown = |(name, numbers)| all_refused(name, numbers, GroupError::UnknownTopicOrPartition);
        return GroupAnswer::Commit(asked.into_iter().map(unknown).collect());
    }
    let GroupAnswer::Commit(outcomes) = ask_one(context, known.group.clone(), GroupRequest::Commit(known)).await else {
        return refuse_commit(asked, GroupError::UnknownServerError);
    };
    let outcomes: BTreeMap<(String, i32), Result<(), GroupError>> = outcomes
        .into_iter()
        .flat_map(|TopicOutcome { topic, partitions }| {
            partitions.into_iter().map(move |(number, outcome)| ((topic.clone(), number), outcome))
        })
        .collect();
    let outcome =
        |topic: &String, number: i32| outcomes.get(&(topic.clone(), number)).copied().unwrap_or(Err(GroupError::UnknownTopicOrPartition));
    let of_topic = |(topic, numbers): (String, Vec<i32>)| {
        let partitions = numbers.into_iter().map(|number| (number, outcome(&topic, number))).collect();
        TopicOutcome { topic, partitions }
    };
    GroupAnswer::Commit(asked.into_iter().map(of_topic).collect())
}

fn refuse_commit(asked: Vec<(String, Vec<i32>)>, error: GroupError) -> GroupAnswer {
    GroupAnswer::Commit(asked.into_iter().map(|(name, numbers)| all_refused(name, numbers, error)).collect())
}

/// Hands a request about one group to its coordinator.
async fn pass_on(context: &Rc<Context>, group: &str, request: GroupRequest) -> Result<GroupAnswer, GroupError> {
    let topic = offsets_topic(context).await?;
    let partition = place(&topic, group);
    if is_elsewhere(context, &partition) {
        return Err(GroupError::NotCoordinator);
    }
    match context.owner(&partition) {
        shard if shard == context.mesh.shard() => Ok(here(context, request).await),
        shard => pass_to(context, shard, request).await,
    }
}

async fn pass_to(context: &Rc<Context>, shard: u32, request: GroupRequest) -> Result<GroupAnswer, GroupError> {
    context.metrics.add(Counter::MeshSent, 1);
    let reply = context.mesh.send(shard, Request::Group(request), Bytes::new()).await;
    match reply.recv().await.map(|reply| reply.response) {
        Ok(Response::Group(answer)) => Ok(answer),
        // That shard is going down.
        _ => Err(GroupError::CoordinatorNotAvailable),
    }
}

/// Answers a request to a coordinator of this shard. A list is that of all coordinators of this shard.
pub async fn here(context: &Rc<Context>, request: GroupRequest) -> GroupAnswer {
    if let GroupRequest::List(states) = &request {
        return GroupAnswer::List(list_here(context, states));
    }
    let group = match &request {
        GroupRequest::Describe(groups) | GroupRequest::Delete(groups) => groups.first().cloned().unwrap_or_default(),
        request => group_of(request).to_owned(),
    };
    let number = context.view.borrow().topic(OFFSETS_TOPIC).map(|topic| place(topic, &group).partition);
    let led = number.and_then(|number| context.groups.led.borrow().get(&number).cloned());
    match led {
        Some(led) => led.ask(context, request).await,
        // It moved, or the shard is stopping.
        None => refusal(&request)(GroupError::NotCoordinator),
    }
}

fn list_here(context: &Context, states: &[State]) -> Result<Vec<ListedGroup>, GroupError> {
    let mut groups = Vec::new();
    for led in context.groups.all() {
        groups.extend(led.list(context, states)?);
    }
    Ok(groups)
}

/// The groups that are coordinated on the shards that `wanted` takes.
///
/// # Errors
/// Not all of them can be asked now.
pub async fn list(context: &Rc<Context>, states: &[State], wanted: impl Fn(u32) -> bool) -> Result<Vec<ListedGroup>, GroupError> {
    let mut groups = Vec::new();
    for shard in (0..context.mesh.shards()).filter(|shard| wanted(*shard)) {
        groups.extend(match shard == context.mesh.shard() {
            true => list_here(context, states)?,
            false => match pass_to(context, shard, GroupRequest::List(states.to_vec())).await? {
                GroupAnswer::List(listed) => listed?,
                _ => return Err(GroupError::UnknownServerError),
            },
        });
    }
    Ok(groups)
}
