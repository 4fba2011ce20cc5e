//! Brings the partitions of a shard in line with the catalogue.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use crate::cluster::{CatalogueView, Topic};
use crate::limits;
use crate::log::checkpoint::PartitionState;
use crate::log::journal::EntryKind;
use crate::log::paths;
use crate::metrics::Gauge;
use crate::partition::Partition;
use crate::replication::{NodeId, PartitionRecord};
use crate::request::Code;
use crate::shard::context::Context;
use crate::shard::groups;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::replication;
use crate::shard::role::Role;
use crate::shard::store::now_ms;
use crate::types::{TopicId, TopicPartition};

/// Acts by a new catalogue: opens, changes and drops partitions of this shard.
pub async fn apply(context: &Rc<Context>, view: Arc<CatalogueView>) {
    let changes = view.changes_since(&context.view.borrow());
    for topic in &changes.deleted {
        drop_topic(context, topic).await;
    }
    let before = context.view.borrow().clone();
    let records = view.partitions_changed_since(&before);
    for topic in changes.created.iter().chain(&changes.altered) {
        open_topic(context, topic, &view);
    }
    for id in &records {
        let Some(topic) = view.topic_by_id(&id.topic) else { continue };
        follow_record(context, topic, id, &view);
        let has_gone = view.partition(id).is_some_and(|record| record.replica(context.identity.node).is_none());
        if let Some(cell) = context.store.partition(id).filter(|_| has_gone) {
            context.store.forget_partition(id);
            drop_replicas(context, vec![cell], "other nodes have its replicas now");
        }
    }
    *context.view.borrow_mut() = view.clone();
    let altered =
        changes.altered.iter().flat_map(|topic| (0..topic.partitions).map(|partition| TopicPartition { topic: topic.id, partition }));
    let concerned = records.into_iter().chain(altered).collect::<BTreeSet<_>>();
    replication::follow_metadata(context, &view, &before, concerned);
    let deleted: Vec<String> = changes.deleted.iter().map(|topic| topic.name.clone()).collect();
    groups::follow_catalogue(context, &deleted);
}

/// Opens the partitions of a topic that this shard owns and does not have, and gives all of them the topic's settings.
pub fn open_topic(context: &Rc<Context>, topic: &Topic, view: &CatalogueView) {
    for partition in 0..topic.partitions {
        let id = TopicPartition { topic: topic.id, partition };
        if context.owner_by(view, &id) != context.mesh.shard() {
            continue;
        }
        match context.store.partition(&id) {
            Some(cell) => cell.settings.set(context.settings(topic)),
            None => follow_record(context, topic, &id, view),
        }
    }
}

/// Opens a partition of this shard of which this node has become a replica. Without a record of it the node is alone.
fn follow_record(context: &Rc<Context>, topic: &Topic, id: &TopicPartition, view: &CatalogueView) {
    let is_mine = context.owner_by(view, id) == context.mesh.shard();
    if !is_mine || context.store.partition(id).is_some() || context.replication.dropping.borrow().contains(id) {
        return;
    }
    let node = context.identity.node;
    match view.partition(id) {
        None => open(context, topic, PartitionState::new(*id), None, view.leader_epoch(id)),
        Some(record) if record.replica(node).is_none() => {}
        Some(record) if is_alone(record, node) => open(context, topic, PartitionState::new(*id), None, record.leader_epoch),
        Some(_) => open_replica(context, topic, PartitionState::new(*id), None),
    }
}

/// Whether a node has the only replica, and leads.
pub fn is_alone(record: &PartitionRecord, node: NodeId) -> bool {
    record.leader == Some(node) && record.target.is_none() && record.replicas.len() == 1
}

/// Opens a partition as recovered, of which this node has a replica.
pub fn open_recovered(context: &Rc<Context>, topic: &Topic, state: PartitionState, remainder: Vec<u8>, view: &CatalogueView) {
    let id = state.partition;
    match view.partition(&id) {
        Some(record) if !is_alone(record, context.identity.node) => open_replica(context, topic, state, Some(remainder)),
        _ => open(context, topic, state, Some(remainder), view.leader_epoch(&id)),
    }
}

/// Takes on the roles that the metadata gives, once the tasks of the shard run.
pub fn begin(context: &Rc<Context>) {
    let view = context.view.borrow().clone();
    let partitions = context.store.partitions().iter().map(|cell| cell.id).collect();
    replication::follow_metadata(context, &view, &view, partitions);
}

/// Opens a partition, new or as recovered.
pub fn open(context: &Rc<Context>, topic: &Topic, state: PartitionState, remainder: Option<Vec<u8>>, epoch: i32) {
    let machine = Partition::open(state, epoch, limits::MAX_PRODUCERS, now_ms());
    insert(context, topic, machine, remainder, Role::Alone);
}

/// Opens a partition that has other replicas, new or as recovered. What this node is to it is not known yet.
pub fn open_replica(context: &Rc<Context>, topic: &Topic, state: PartitionState, remainder: Option<Vec<u8>>) {
    let machine = Partition::open_replica(state, limits::MAX_PRODUCERS, now_ms());
    insert(context, topic, machine, remainder, Role::Unassigned);
}

fn insert(context: &Rc<Context>, topic: &Topic, machine: Partition, remainder: Option<Vec<u8>>, role: Role) {
    let quarantined = machine.is_quarantined();
    let (settings, metrics, disk) = (context.settings(topic), context.metrics.topic(&topic.name), context.store.disk.clone());
    let cell = PartitionCell::in_role(&topic.name, machine, settings, remainder, metrics, disk, role);
    if quarantined {
        context.metrics.raise(Gauge::PartitionsQuarantined, 1);
        let words = "it was damaged; see the log of the start and `corelane inspect verify`";
        cell.close(cell.refusal(Code::Quarantined, words));
    }
    context.store.insert(cell);
}

/// Drops the partitions of a deleted topic.
async fn drop_topic(context: &Rc<Context>, topic: &Topic) {
    context.metrics.forget_topic(&topic.name);
    let partitions = (0..topic.partitions).map(|partition| TopicPartition { topic: topic.id, partition });
    let gone: Vec<_> = partitions.filter_map(|id| context.store.partition(&id)).collect();
    context.store.forget_topic(topic.id);
    drop_replicas(context, gone, "it was deleted");
}

/// Drops partitions, all of one topic: first nobody is served, then the journal knows, then the files go.
fn drop_replicas(context: &Rc<Context>, gone: Vec<Rc<PartitionCell>>, why: &str) {
    let Some(topic) = gone.first().map(|cell| cell.id.topic) else { return };
    for cell in &gone {
        context.replication.forget(&cell.id);
        context.store.remove(&cell.id);
        context.replication.dropping.borrow_mut().insert(cell.id);
        cell.close(cell.refusal(Code::UnknownTopicOrPartition, why));
        context.store.add_state_entry(cell, EntryKind::PartitionDropped, 0, 0, cell.machine.borrow().ladder().appended());
    }
    let context = context.clone();
    let dropped: Vec<_> = gone.iter().map(|cell| cell.id).collect();
    // The catalogue's change is durable already: a crash in the middle is finished by the next start.
    glommio::spawn_local(async move {
        for cell in gone {
            if let Err(error) = remove_files(&context, &cell).await {
                tracing::warn!(partition = %cell.id, %error, "files of a deleted partition stay until the next start");
            }
        }
        remove_topic_directory(&context, topic).await;
        context.store.mark("topic deleted");
        // Meanwhile this node may have become a replica again.
        let view = context.view.borrow().clone();
        for id in dropped {
            context.replication.dropping.borrow_mut().remove(&id);
            if let Some(topic) = view.topic_by_id(&id.topic) {
                follow_record(&context, topic, &id, &view);
                replication::follow_metadata(&context, &view, &view, BTreeSet::from([id]));
            }
        }
    })
    .detach();
}

/// Lets go of a closed partition: whatever writes to its files ends first, and no new append finds it open.
async fn remove_files(context: &Context, cell: &Rc<PartitionCell>) -> std::io::Result<()> {
    cell.enter().await;
    cell.enter_flush().await;
    cell.wait_outside().await;
    context.store.budget.sub_unflushed(cell.forget_all());
    let removed = remove_directory(context, cell).await;
    // Only now, so that no read that was under way keeps a file.
    context.store.reader.forget_below(cell.id, i64::MAX);
    cell.leave_flush();
    cell.leave();
    context.store.room.notify();
    removed
}

async fn remove_directory(context: &Context, cell: &PartitionCell) -> std::io::Result<()> {
    let directory = paths::partition_dir(cell.id);
    let disk = &context.store.disk;
    for name in disk.list(&directory).await? {
        disk.remove(&format!("{directory}/{name}")).await?;
    }
    disk.remove_dir(&directory).await
}

async fn remove_topic_directory(context: &Context, topic: TopicId) {
    // Other shards remove their partitions; the last one finds it empty.
    if context.store.disk.remove_dir(&paths::topic_dir(topic)).await.is_ok() {
        let _ = context.store.disk.sync_dir(paths::TOPICS_DIR).await;
    }
}
