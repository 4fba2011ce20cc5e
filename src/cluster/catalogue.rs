//! The state machine of the metadata: what each command does.
//!
//! A [`CatalogueView`] never changes; [`Catalogue::apply`] makes the next one. What does not change is shared between them. Here are topics and producer ids;
//! nodes are in `membership`, partitions in `leadership`.
//!
//! Before the first node is registered there are topics but no records of partitions: so it is in the log of a broker from before there were clusters. The first
//! registration takes them over ([`Command::RegisterNode`]).

use std::ops::Range;
use std::sync::Arc;

use super::command::Command;
use super::command_log::{CommandLog, Snapshot};
use super::config::TopicConfig;
use super::placement::Placer;
use super::view::{CatalogueView, Topic};
use crate::limits;
use crate::replication::{NodeId, PartitionRecord};
use crate::request::{Code, Refusal};
use crate::types::{LeaderEpoch, ProducerId, TopicId, TopicPartition};

/// A command that was made durable, and the state right after it.
#[derive(Clone, Debug)]
pub struct Committed {
    /// What it did.
    pub applied: Applied,
    /// The snapshot with it.
    pub view: Arc<CatalogueView>,
}

/// Partitions whose records a command changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangedPartitions {
    /// These.
    These(Vec<TopicPartition>),
    /// More than [`limits::MAX_NAMED_PARTITIONS`]: [`CatalogueView::partitions_changed_since`] has them.
    Many,
}

impl ChangedPartitions {
    pub(super) fn of(partitions: Vec<TopicPartition>) -> ChangedPartitions {
        match partitions.len() > limits::MAX_NAMED_PARTITIONS {
            true => ChangedPartitions::Many,
            false => ChangedPartitions::These(partitions),
        }
    }
}

/// What a command did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Applied {
    /// A topic is there now.
    TopicCreated(Arc<Topic>),
    /// A topic has gone; this is what it was.
    TopicDeleted(Arc<Topic>),
    /// A topic is now like this.
    TopicAltered(Arc<Topic>),
    /// The leader epoch of all partitions is now this.
    NodeStarted(LeaderEpoch),
    /// These ids are the proposer's.
    ProducerIds(Range<ProducerId>),
    /// A node is registered.
    NodeRegistered {
        /// Which.
        node: NodeId,
        /// The epoch of this registration.
        node_epoch: u64,
        /// Partitions that changed with it.
        changed: ChangedPartitions,
    },
    /// A node is something else now: fenced, draining, retiring, or gone.
    NodeChanged {
        /// Which.
        node: NodeId,
        /// Partitions that changed with it.
        changed: ChangedPartitions,
    },
    /// Partitions changed.
    PartitionsChanged(ChangedPartitions),
    /// Nothing changed.
    Nothing,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Catalogue {
    pub(super) view: Arc<CatalogueView>,
}

impl Default for Catalogue {
    fn default() -> Catalogue {
        Catalogue::new()
    }
}

impl Catalogue {
    /// An empty catalogue: no topics, no nodes.
    pub fn new() -> Catalogue {
        Catalogue { view: Arc::new(CatalogueView::new()) }
    }

    /// One that goes on from a snapshot, to see what a command would do.
    pub fn from_view(view: Arc<CatalogueView>) -> Catalogue {
        Catalogue { view }
    }

    /// The present snapshot.
    pub fn view(&self) -> &Arc<CatalogueView> {
        &self.view
    }

    /// The state that a log describes.
    ///
    /// # Errors
    /// The first record that can't be applied, by its number, and why: the log is not one that this state machine wrote.
    pub fn replay(log: &CommandLog) -> Result<Catalogue, (u64, Refusal)> {
        let mut catalogue = Catalogue::new();
        let (snapshot, later) = log.commands.split_at((log.snapshot.records as usize).min(log.commands.len()));
        for (sequence, command) in snapshot {
            catalogue.restore(command).map_err(|refusal| (*sequence, refusal))?;
        }
        if log.snapshot.is_some() {
            let view = Arc::make_mut(&mut catalogue.view);
            let Snapshot { commands, starts, next_producer_id, .. } = log.snapshot;
            (view.commands, view.next_producer_id) = (commands, next_producer_id);
            view.epoch = LeaderEpoch::try_from(starts).map_err(|_| (0, exhausted("leader epochs")))? - 1;
            catalogue.check_restored().map_err(|refusal| (log.snapshot.records, refusal))?;
        }
        for (sequence, command) in later {
            catalogue.apply(command).map_err(|refusal| (*sequence, refusal))?;
        }
        Ok(catalogue)
    }

    /// Applies a command; a refused one changes nothing.
    pub fn apply(&mut self, command: &Command) -> Result<Applied, Refusal> {
        let applied = match command {
            Command::CreateTopic { id, name, partitions, replication_factor, config } => {
                self.create_topic(*id, name, *partitions, *replication_factor, config)?
            }
            Command::DeleteTopic { id } => {
                let topic = Arc::clone(self.existing(id)?);
                Arc::make_mut(&mut self.view).remove_topic(&topic);
                Applied::TopicDeleted(topic)
            }
            Command::AlterTopic { id, partitions, config } => self.alter_topic(id, *partitions, config)?,
            Command::NodeStarted if !self.view.nodes.is_empty() => {
                return Err(Refusal::new(Code::InvalidRequest, "a node of a cluster registers at its start"));
            }
            Command::NodeStarted => {
                let epoch = self.view.epoch.checked_add(1).ok_or_else(|| exhausted("leader epochs"))?;
                Arc::make_mut(&mut self.view).epoch = epoch;
                Applied::NodeStarted(epoch)
            }
            Command::AllocateProducerIds { count } => Applied::ProducerIds(self.allocate_producer_ids(*count)?),
            Command::RegisterNode(registration) => self.register_node(registration)?,
            Command::FenceNode { node, node_epoch } => self.fence_node(*node, *node_epoch)?,
            Command::DrainNode { node, node_epoch } => self.drain_node(*node, *node_epoch)?,
            Command::RetireNode { node, retiring } => self.retire_node(*node, *retiring)?,
            Command::RemoveNode { node } => self.remove_node(*node)?,
            Command::ChangeIsr { partition, change } => self.change_isr(partition, change)?,
            Command::ReplicaLost { partition, replica } => self.replica_lost(partition, *replica)?,
            Command::ElectLeader { partition, election } => self.elect_leader(partition, *election)?,
            Command::Reassign { partition, target } => self.reassign(partition, target)?,
            Command::BalanceLeaders { most } => self.balance_leaders(*most),
            Command::PlaceOnShard { partition, node, shard } => self.place_on_shard(partition, *node, *shard)?,
            Command::SnapshotCluster { .. } | Command::SnapshotNode(_) | Command::SnapshotPartitions(_) => {
                return Err(Refusal::new(Code::InvalidRequest, "it belongs to a snapshot"));
            }
            // Not a change: it does not count, so that a replay agrees with the run that wrote it.
            Command::DurableMark => return Ok(Applied::Nothing),
        };
        Arc::make_mut(&mut self.view).commands += 1;
        Ok(applied)
    }

    fn create_topic(
        &mut self,
        id: TopicId,
        name: &str,
        partitions: u32,
        replication_factor: u16,
        config: &[(String, String)],
    ) -> Result<Applied, Refusal> {
        let topic = self.check_topic(id, name, partitions, replication_factor, config)?;
        let nodes = self.view.nodes().filter(|node| !node.retiring).count();
        // Without a node it is the log of a broker from before there were clusters.
        if !(1..=nodes.max(usize::from(self.view.nodes.is_empty()))).contains(&usize::from(replication_factor)) {
            let message = format!("replication factor {replication_factor} of topic {name}: the cluster has {} node(s)", nodes.max(1));
            return Err(Refusal::new(Code::InvalidReplicationFactor, message));
        }
        let placed = self.place(&topic, 0)?;
        let view = Arc::make_mut(&mut self.view);
        view.put_topic(Arc::clone(&topic));
        placed.into_iter().for_each(|(partition, record)| view.put_record(&partition, record));
        Ok(Applied::TopicCreated(topic))
    }

    /// A new topic that may be, wherever its replicas may go.
    pub(super) fn check_topic(
        &self,
        id: TopicId,
        name: &str,
        partitions: u32,
        replication_factor: u16,
        config: &[(String, String)],
    ) -> Result<Arc<Topic>, Refusal> {
        check_name(name)?;
        if self.view.topic(name).is_some() {
            return Err(Refusal::new(Code::TopicExists, format!("topic {name} exists")));
        }
        if let Some(other) = self.view.topic_by_id(&id) {
            return Err(Refusal::new(Code::InvalidRequest, format!("topic id {id} is that of topic {}", other.name)));
        }
        self.check_partitions(name, 1, partitions, 0)?;
        if replication_factor == 0 || usize::from(replication_factor) > limits::MAX_REPLICAS {
            let message = format!("replication factor {replication_factor} of topic {name}: 1 to {} can be", limits::MAX_REPLICAS);
            return Err(Refusal::new(Code::InvalidReplicationFactor, message));
        }
        let pairs = config.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let config = TopicConfig::from_pairs(pairs).map_err(invalid_config)?;
        check_min_insync(&config, replication_factor)?;
        Ok(Arc::new(Topic { id, name: name.into(), partitions, replication_factor, config }))
    }

    fn alter_topic(&mut self, id: &TopicId, partitions: Option<u32>, config: &[(String, Option<String>)]) -> Result<Applied, Refusal> {
        let before = Arc::clone(self.existing(id)?);
        if let Some(partitions) = partitions {
            self.check_partitions(&before.name, before.partitions, partitions, before.partitions)?;
        }
        let changes = config.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        let config = before.config.with(changes).map_err(invalid_config)?;
        check_min_insync(&config, before.replication_factor)?;
        let partitions = partitions.unwrap_or(before.partitions);
        let topic = Arc::new(Topic { partitions, config, ..Topic::clone(&before) });
        let placed = self.place(&topic, before.partitions)?;
        let view = Arc::make_mut(&mut self.view);
        view.put_topic(Arc::clone(&topic));
        placed.into_iter().for_each(|(partition, record)| view.put_record(&partition, record));
        if topic.min_insync() != before.min_insync() {
            self.update(|_| true, Some(id), |record, topic, _| record.min_insync_changed(topic.min_insync()));
        }
        Ok(Applied::TopicAltered(topic))
    }

    /// The records of a topic's partitions from `first` on; none before the first node is registered.
    fn place(&self, topic: &Topic, first: u32) -> Result<Vec<(TopicPartition, PartitionRecord)>, Refusal> {
        if self.view.nodes.is_empty() || first == topic.partitions {
            return Ok(Vec::new());
        }
        let mut placer = Placer::new(&self.view, topic.id);
        let live = |node: NodeId| self.view.node(node).is_some_and(|node| node.is_live());
        let Some(places) = placer.place(topic.id, first..topic.partitions, usize::from(topic.replication_factor)) else {
            let message = format!("{} replicas of topic {}: there are not so many nodes for them", topic.replication_factor, topic.name);
            return Err(Refusal::new(Code::InvalidReplicationFactor, message));
        };
        let mut placed = Vec::with_capacity(places.len());
        for (partition, nodes) in (first..).zip(places) {
            let partition = TopicPartition { topic: topic.id, partition };
            let mut record = PartitionRecord::new(&nodes, live);
            // In the ISR is only who is there: the watermark waits for each.
            for node in nodes.iter().filter(|node| !live(**node)) {
                record.node_away(*node, topic.min_insync(), live);
            }
            record.min_insync_changed(topic.min_insync());
            placed.push((partition, record));
        }
        Ok(placed)
    }

    fn check_partitions(&self, name: &str, least: u32, wanted: u32, present: u32) -> Result<(), Refusal> {
        if !(least..=limits::MAX_PARTITIONS).contains(&wanted) {
            let message = format!("topic {name} can have {least} to {} partitions, not {wanted}", limits::MAX_PARTITIONS);
            return Err(Refusal::new(Code::InvalidPartitions, message));
        }
        let total = self.view.partitions() + u64::from(wanted - present);
        if total > limits::MAX_ALL_PARTITIONS {
            let message = format!("all topics together can have {} partitions, not {total}", limits::MAX_ALL_PARTITIONS);
            return Err(Refusal::new(Code::LimitReached, message));
        }
        Ok(())
    }

    pub(super) fn existing(&self, id: &TopicId) -> Result<&Arc<Topic>, Refusal> {
        let unknown = || Refusal::new(Code::UnknownTopicOrPartition, format!("there is no topic with id {id}"));
        self.view.topic_by_id(id).ok_or_else(unknown)
    }

    fn allocate_producer_ids(&mut self, count: u32) -> Result<Range<ProducerId>, Refusal> {
        if !(1..=limits::PRODUCER_ID_BLOCK).contains(&count) {
            let message = format!("a block has 1 to {} producer ids, not {count}", limits::PRODUCER_ID_BLOCK);
            return Err(Refusal::new(Code::InvalidRequest, message));
        }
        let first = self.view.next_producer_id;
        let end = first.checked_add(i64::from(count)).ok_or_else(|| exhausted("producer ids"))?;
        Arc::make_mut(&mut self.view).next_producer_id = end;
        Ok(first..end)
    }
}

/// Whether a topic may have this name: Kafka's rules.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let refused = |why: String| Err(Refusal::new(Code::InvalidTopicName, why));
    if name.is_empty() || name.len() > limits::MAX_TOPIC_NAME {
        return refused(format!("a topic name has 1 to {} characters, this one {}", limits::MAX_TOPIC_NAME, name.len()));
    }
    if name == "." || name == ".." {
        return refused(format!("a topic can't be named {name:?}"));
    }
    match name.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-')) {
        Some(wrong) => refused(format!("topic name {name:?} has {wrong:?}; allowed are a-z, A-Z, 0-9, '.', '_' and '-'")),
        None => Ok(()),
    }
}

pub(super) fn check_min_insync(config: &TopicConfig, replication_factor: u16) -> Result<(), Refusal> {
    let wanted = config.min_insync_replicas;
    if wanted > replication_factor {
        let message = format!("min.insync.replicas must be at most the replication factor, {replication_factor}, not {wanted}");
        return Err(Refusal::new(Code::InvalidConfig, message));
    }
    Ok(())
}

fn invalid_config(error: super::config::ConfigError) -> Refusal {
    Refusal::new(Code::InvalidConfig, error.to_string())
}

pub(super) fn exhausted(what: &str) -> Refusal {
    Refusal::new(Code::LimitReached, format!("the {what} are used up"))
}
