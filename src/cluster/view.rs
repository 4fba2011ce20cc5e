//! A snapshot of the metadata, as shards read it: topics, nodes, and the record of every partition.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::command::{Command, PartitionsSnapshot};
use super::command_log::Snapshot;
use super::config::TopicConfig;
use super::node::{Node, NodeState};
use super::partitions::Records;
use crate::limits;
use crate::replication::{NodeId, PartitionRecord};
use crate::request::TopicDescription;
use crate::types::{Durability, LeaderEpoch, ProducerId, TopicId, TopicPartition};

/// A topic as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topic {
    /// Identity.
    pub id: TopicId,
    /// Name.
    pub name: String,
    /// Number of partitions; only grows.
    pub partitions: u32,
    /// Replicas of each, in nodes. After a reassignment to another number: the least that a partition has or is to have.
    pub replication_factor: u16,
    /// Its settings.
    pub config: TopicConfig,
}

impl Topic {
    /// The durability in force, given the broker's default.
    pub fn durability(&self, broker: Durability) -> Durability {
        self.config.durability.unwrap_or(broker)
    }

    /// The topic as clients are told of it, given the broker's default durability.
    pub fn describe(&self, broker: Durability) -> TopicDescription {
        TopicDescription {
            name: self.name.clone(),
            id: self.id,
            partitions: self.partitions,
            replication_factor: self.replication_factor,
            durability: self.durability(broker),
            config: self.config.entries(broker),
        }
    }

    pub(super) fn min_insync(&self) -> usize {
        usize::from(self.config.min_insync_replicas)
    }
}

/// What a node is to a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It leads.
    Leader,
    /// It has a replica and does not lead.
    Follower,
}

/// What a node holds once all reassignments are over and all preferred leaders lead: what placement evens out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeLoad {
    /// Replicas.
    pub replicas: u64,
    /// Partitions whose preferred leader it is, by shard.
    pub leaders: Vec<u64>,
}

impl NodeLoad {
    /// Partitions whose preferred leader it is.
    pub fn all_leaders(&self) -> u64 {
        self.leaders.iter().sum()
    }
}

/// The replicas that a partition has, or is to have once a reassignment is over; the preferred leader first.
pub fn goal(record: &PartitionRecord) -> Vec<NodeId> {
    record.target.clone().unwrap_or_else(|| record.replicas.iter().map(|replica| replica.node).collect())
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Topics {
    partitions: u64,
    by_id: HashMap<TopicId, Arc<Topic>>,
    by_name: BTreeMap<String, Arc<Topic>>,
}

/// A snapshot of the catalogue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogueView {
    pub(super) commands: u64,
    /// Starts of the only node before nodes were registered, less one.
    pub(super) epoch: LeaderEpoch,
    pub(super) next_producer_id: ProducerId,
    pub(super) cluster: Option<[u8; 16]>,
    pub(super) node_epoch: u64,
    pub(super) nodes: Arc<BTreeMap<NodeId, Arc<Node>>>,
    topics: Arc<Topics>,
    pub(super) records: Records,
    /// Shards that do not follow from the topic's id.
    shards: Arc<BTreeMap<TopicPartition, BTreeMap<NodeId, u32>>>,
    loads: Arc<BTreeMap<NodeId, NodeLoad>>,
}

impl CatalogueView {
    pub(super) fn new() -> CatalogueView {
        CatalogueView {
            commands: 0,
            epoch: -1,
            next_producer_id: 0,
            cluster: None,
            node_epoch: 0,
            nodes: Arc::default(),
            topics: Arc::default(),
            records: Records::new(),
            shards: Arc::default(),
            loads: Arc::default(),
        }
    }

    /// The topic of a name.
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.by_name.get(name)
    }

    /// The topic of an id.
    pub fn topic_by_id(&self, id: &TopicId) -> Option<&Arc<Topic>> {
        self.topics.by_id.get(id)
    }

    /// All topics, by name.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Arc<Topic>> {
        self.topics.by_name.values()
    }

    /// Number of partitions of all topics.
    pub fn partitions(&self) -> u64 {
        self.topics.partitions
    }

    /// How many commands were applied, durable marks aside; a later snapshot has a larger number.
    pub fn commands(&self) -> u64 {
        self.commands
    }

    /// The version of this snapshot: [`CatalogueView::commands`] under the name that others go by.
    pub fn version(&self) -> u64 {
        self.commands
    }

    /// UUID of the cluster; `None` until a node is registered.
    pub fn cluster(&self) -> Option<[u8; 16]> {
        self.cluster
    }

    /// The last node epoch that was given out; 0 before the first.
    pub fn node_epoch(&self) -> u64 {
        self.node_epoch
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id)
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// The record of a partition; `None` where there is no such partition, or no node is registered yet.
    pub fn partition(&self, partition: &TopicPartition) -> Option<&Arc<PartitionRecord>> {
        self.records.get(partition)
    }

    /// The records of a topic, from partition 0.
    pub fn partitions_of_topic(&self, topic: &TopicId) -> impl DoubleEndedIterator<Item = &Arc<PartitionRecord>> {
        self.records.of(topic)
    }

    /// All records, by topic id and partition.
    pub fn all_partitions(&self) -> impl Iterator<Item = (TopicPartition, &Arc<PartitionRecord>)> {
        self.records.iter()
    }

    /// What a node is to a partition; `None` where it has no replica.
    pub fn role(&self, node: NodeId, partition: &TopicPartition) -> Option<Role> {
        self.records.get(partition).and_then(|record| role(node, record))
    }

    /// The partitions of which a node has a replica, and in which role, by topic id and partition. Looks at all.
    pub fn partitions_on(&self, node: NodeId) -> impl Iterator<Item = (TopicPartition, Role, &Arc<PartitionRecord>)> {
        self.records.iter().filter_map(move |(partition, record)| role(node, record).map(|role| (partition, role, record)))
    }

    /// Partitions whose records are new or different since an earlier snapshot, by topic id and partition. Costs what changed, not what there is; those of
    /// deleted topics are not among them.
    pub fn partitions_changed_since(&self, earlier: &CatalogueView) -> Vec<TopicPartition> {
        self.records.changed_since(&earlier.records)
    }

    /// The shard of a partition on a node: as it was placed, else as it follows from the topic's id. `None` of a node that is not registered.
    pub fn shard_on(&self, node: NodeId, partition: &TopicPartition) -> Option<u32> {
        let shards = self.nodes.get(&node)?.registration.shards;
        let placed = self.shards.get(partition).and_then(|nodes| nodes.get(&node)).copied();
        Some(placed.unwrap_or_else(|| partition.topic.shard_of(partition.partition, shards)))
    }

    /// The leader epoch of a partition: its record's, or that of the start where no node is registered yet.
    pub fn leader_epoch(&self, partition: &TopicPartition) -> LeaderEpoch {
        self.records.get(partition).map_or(self.epoch, |record| record.leader_epoch)
    }

    /// What a node holds, or is to hold.
    pub fn load(&self, node: NodeId) -> Option<&NodeLoad> {
        self.loads.get(&node)
    }

    /// A topic whose name differs from this one only in '.' and '_', so that their metrics would have one name.
    pub fn collision(&self, name: &str) -> Option<&Arc<Topic>> {
        if !name.contains(['.', '_']) {
            return None;
        }
        let plain = name.replace('.', "_");
        self.topics().find(|t| t.name != name && t.name.replace('.', "_") == plain)
    }

    /// What a compacted log begins with: its header's part, and the commands that make the state anew (in [`super::Catalogue::replay`] only: they are no history).
    pub fn snapshot(&self) -> (Snapshot, Vec<Command>) {
        let create = |topic: &Arc<Topic>| Command::CreateTopic {
            id: topic.id,
            name: topic.name.clone(),
            partitions: topic.partitions,
            replication_factor: topic.replication_factor,
            config: topic.config.set_pairs(),
        };
        let mut commands: Vec<_> = self.topics().map(create).collect();
        if let Some(cluster) = self.cluster {
            commands.push(Command::SnapshotCluster { cluster, last_node_epoch: self.node_epoch });
            commands.extend(self.nodes().map(|node| Command::SnapshotNode(Box::new(Node::clone(node)))));
            self.topics().for_each(|topic| self.snapshot_partitions(&topic.id, &mut commands));
        }
        let snapshot = Snapshot {
            records: commands.len() as u64,
            commands: self.commands,
            next_producer_id: self.next_producer_id,
            starts: (i64::from(self.epoch) + 1) as u32,
        };
        (snapshot, commands)
    }

    fn snapshot_partitions(&self, topic: &TopicId, commands: &mut Vec<Command>) {
        let mut open = PartitionsSnapshot { topic: *topic, first: 0, partitions: Vec::new() };
        let mut bytes = 0;
        for (partition, record) in (0..).zip(self.records.of(topic)) {
            let shards = self.shards.get(&TopicPartition { topic: *topic, partition });
            let shards: Vec<_> = shards.into_iter().flatten().map(|(node, shard)| (*node, *shard)).collect();
            // Numbers, and what tables and lists take around them.
            let numbers = 2 * record.replicas.len() + record.isr.len() + record.eligible.len() + 2 * shards.len();
            bytes += 4 * (numbers + record.target.as_ref().map_or(0, Vec::len)) + 100;
            open.partitions.push((PartitionRecord::clone(record), shards));
            if bytes >= limits::SNAPSHOT_RECORD {
                let next = PartitionsSnapshot { topic: *topic, first: partition + 1, partitions: Vec::new() };
                commands.push(Command::SnapshotPartitions(std::mem::replace(&mut open, next)));
                bytes = 0;
            }
        }
        if !open.partitions.is_empty() {
            commands.push(Command::SnapshotPartitions(open));
        }
    }
}

fn role(node: NodeId, record: &PartitionRecord) -> Option<Role> {
    record.replica(node).map(|_| if record.leader == Some(node) { Role::Leader } else { Role::Follower })
}

/// What is different in a later snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Topics that are new, by name.
    pub created: Vec<Arc<Topic>>,
    /// Topics as they are now, whose settings or partitions changed.
    pub altered: Vec<Arc<Topic>>,
    /// Topics that have gone, as they were.
    pub deleted: Vec<Arc<Topic>>,
}

impl CatalogueView {
    /// What happened to the topics since an earlier snapshot. A name that was deleted and created again is in both lists. What happened to the records of
    /// partitions is [`CatalogueView::partitions_changed_since`].
    pub fn changes_since(&self, earlier: &CatalogueView) -> Changes {
        let mut changes = Changes::default();
        if Arc::ptr_eq(&self.topics, &earlier.topics) {
            return changes;
        }
        for topic in self.topics() {
            match earlier.topic_by_id(&topic.id) {
                None => changes.created.push(Arc::clone(topic)),
                Some(before) if !Arc::ptr_eq(before, topic) => changes.altered.push(Arc::clone(topic)),
                Some(_) => {}
            }
        }
        changes.deleted = earlier.topics().filter(|topic| self.topic_by_id(&topic.id).is_none()).cloned().collect();
        changes
    }
}

/// What the state machine changes.
impl CatalogueView {
    pub(super) fn put_topic(&mut self, topic: Arc<Topic>) {
        let topics = Arc::make_mut(&mut self.topics);
        let before = topics.by_id.insert(topic.id, Arc::clone(&topic));
        topics.partitions += u64::from(topic.partitions);
        topics.partitions -= before.map_or(0, |t| u64::from(t.partitions));
        topics.by_name.insert(topic.name.clone(), topic);
        assert_eq!(topics.by_id.len(), topics.by_name.len(), "a name has one id");
    }

    /// Drops a topic with all that is known of its partitions.
    pub(super) fn remove_topic(&mut self, topic: &Topic) {
        for partition in (0..topic.partitions).map(|partition| TopicPartition { topic: topic.id, partition }) {
            if let Some(record) = self.records.get(&partition).cloned() {
                self.count(&partition, &record, u64::wrapping_sub);
                if self.shards.contains_key(&partition) {
                    Arc::make_mut(&mut self.shards).remove(&partition);
                }
            }
        }
        self.records.remove(&topic.id);
        let topics = Arc::make_mut(&mut self.topics);
        topics.by_id.remove(&topic.id);
        topics.by_name.remove(&topic.name);
        topics.partitions -= u64::from(topic.partitions);
        assert_eq!(topics.by_id.len(), topics.by_name.len(), "a name has one id");
    }

    /// Puts a partition's record; replicas that go take their places on shards with them.
    pub(super) fn put_record(&mut self, partition: &TopicPartition, record: PartitionRecord) {
        if let Some(before) = self.records.get(partition).cloned() {
            self.count(partition, &before, u64::wrapping_sub);
        }
        let is_placed = self.shards.get(partition).is_some_and(|nodes| nodes.keys().any(|node| record.replica(*node).is_none()));
        if is_placed {
            self.change_places(partition, |nodes| nodes.retain(|node, _| record.replica(*node).is_some()));
        }
        self.count(partition, &record, u64::wrapping_add);
        self.records.put(partition, record);
    }

    /// Puts a node. Its load is counted anew where it has another number of shards; places on shards that it does not have any more are given up.
    pub(super) fn put_node(&mut self, node: Node) {
        let (id, shards) = (node.id(), node.registration.shards);
        let same_shards = self.nodes.get(&id).is_some_and(|before| before.registration.shards == shards);
        Arc::make_mut(&mut self.nodes).insert(id, Arc::new(node));
        if same_shards {
            return;
        }
        let surplus = |(partition, nodes): (&TopicPartition, &BTreeMap<NodeId, u32>)| {
            nodes.get(&id).filter(|shard| **shard >= shards).map(|_| *partition)
        };
        for partition in self.shards.iter().filter_map(surplus).collect::<Vec<_>>() {
            self.change_places(&partition, |nodes| nodes.retain(|node, _| *node != id));
        }
        let load = self.count_load(id, shards);
        Arc::make_mut(&mut self.loads).insert(id, load);
    }

    pub(super) fn set_node_state(&mut self, node: NodeId, state: NodeState) {
        let node = Arc::make_mut(&mut self.nodes).get_mut(&node).expect("only a registered node changes");
        Arc::make_mut(node).state = state;
    }

    pub(super) fn remove_node(&mut self, node: NodeId) {
        Arc::make_mut(&mut self.nodes).remove(&node);
        Arc::make_mut(&mut self.loads).remove(&node);
    }

    /// Places a partition on a shard of a node, or lets that follow from the topic's id again.
    pub(super) fn place_on_shard(&mut self, partition: &TopicPartition, node: NodeId, shard: Option<u32>) {
        let record = self.records.get(partition).cloned().expect("only what exists is placed");
        self.count(partition, &record, u64::wrapping_sub);
        self.change_places(partition, |nodes| {
            nodes.remove(&node);
            nodes.extend(shard.map(|shard| (node, shard)));
        });
        self.count(partition, &record, u64::wrapping_add);
    }

    fn change_places(&mut self, partition: &TopicPartition, change: impl FnOnce(&mut BTreeMap<NodeId, u32>)) {
        let shards = Arc::make_mut(&mut self.shards);
        change(shards.entry(*partition).or_default());
        if shards.get(partition).is_some_and(BTreeMap::is_empty) {
            shards.remove(partition);
        }
    }

    /// Adds a record to the loads, or takes it away.
    fn count(&mut self, partition: &TopicPartition, record: &PartitionRecord, add: fn(u64, u64) -> u64) {
        let goal = goal(record);
        let leader = goal.first().and_then(|leader| self.shard_on(*leader, partition).map(|shard| (*leader, shard)));
        let loads = Arc::make_mut(&mut self.loads);
        for node in &goal {
            if let Some(load) = loads.get_mut(node) {
                load.replicas = add(load.replicas, 1);
            }
        }
        if let Some((leader, shard)) = leader
            && let Some(load) = loads.get_mut(&leader)
        {
            let of_shard = &mut load.leaders[shard as usize];
            *of_shard = add(*of_shard, 1);
        }
    }

    /// A node's load, counted from the records.
    pub(super) fn count_load(&self, node: NodeId, shards: u32) -> NodeLoad {
        let mut load = NodeLoad { replicas: 0, leaders: vec![0; shards as usize] };
        for (partition, record) in self.records.iter() {
            let goal = goal(record);
            load.replicas += u64::from(goal.contains(&node));
            if goal.first() == Some(&node)
                && let Some(shard) = self.shard_on(node, &partition)
            {
                load.leaders[shard as usize] += 1;
            }
        }
        load
    }
}
