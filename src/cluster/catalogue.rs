//! The state machine of the metadata, and the snapshot of it that shards read.
//!
//! A [`CatalogueView`] never changes; [`Catalogue::apply`] makes the next one. While a snapshot is held elsewhere an apply
//! copies the maps (not the topics), so a start that replays a long log copies nothing.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::command::Command;
use super::command_log::{CommandLog, Snapshot};
use super::config::TopicConfig;
use crate::limits;
use crate::request::{Code, Refusal, TopicDescription};
use crate::types::{Durability, LeaderEpoch, ProducerId, TopicId};

/// A topic as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topic {
    /// Identity.
    pub id: TopicId,
    /// Name.
    pub name: String,
    /// Number of partitions; only grows.
    pub partitions: u32,
    /// Replicas of each, in nodes.
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
}

/// A snapshot of the catalogue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogueView {
    commands: u64,
    epoch: LeaderEpoch,
    next_producer_id: ProducerId,
    partitions: u64,
    by_id: HashMap<TopicId, Arc<Topic>>,
    by_name: BTreeMap<String, Arc<Topic>>,
}

impl CatalogueView {
    /// The topic of a name.
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.by_name.get(name)
    }

    /// The topic of an id.
    pub fn topic_by_id(&self, id: &TopicId) -> Option<&Arc<Topic>> {
        self.by_id.get(id)
    }

    /// All topics, by name.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Arc<Topic>> {
        self.by_name.values()
    }

    /// What a compacted log begins with: its header's part, and the commands that make the topics anew.
    pub fn snapshot(&self) -> (Snapshot, Vec<Command>) {
        let create = |topic: &Arc<Topic>| Command::CreateTopic {
            id: topic.id,
            name: topic.name.clone(),
            partitions: topic.partitions,
            replication_factor: topic.replication_factor,
            config: topic.config.set_pairs(),
        };
        let topics: Vec<_> = self.topics().map(create).collect();
        let snapshot = Snapshot {
            topics: topics.len() as u64,
            commands: self.commands,
            next_producer_id: self.next_producer_id,
            starts: (i64::from(self.epoch) + 1) as u32,
        };
        (snapshot, topics)
    }

    /// Number of partitions of all topics.
    pub fn partitions(&self) -> u64 {
        self.partitions
    }

    /// How many commands were applied, durable marks aside; a later snapshot has a larger number.
    pub fn commands(&self) -> u64 {
        self.commands
    }

    /// The leader epoch of every partition: how often the node was started, less one. -1 before the first start.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// A topic whose name differs from this one only in '.' and '_', so that their metrics would have one name.
    pub fn collision(&self, name: &str) -> Option<&Arc<Topic>> {
        if !name.contains(['.', '_']) {
            return None;
        }
        let plain = name.replace('.', "_");
        self.by_name.values().find(|t| t.name != name && t.name.replace('.', "_") == plain)
    }
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
    /// What happened to the topics since an earlier snapshot. A name that was deleted and created again is in both lists.
    pub fn changes_since(&self, earlier: &CatalogueView) -> Changes {
        let mut changes = Changes::default();
        for topic in self.by_name.values() {
            match earlier.by_id.get(&topic.id) {
                None => changes.created.push(Arc::clone(topic)),
                Some(before) if !Arc::ptr_eq(before, topic) => changes.altered.push(Arc::clone(topic)),
                Some(_) => {}
            }
        }
        let gone = |topic: &&Arc<Topic>| !self.by_id.contains_key(&topic.id);
        changes.deleted = earlier.by_name.values().filter(gone).cloned().collect();
        changes
    }
}

/// A command that was made durable, and the state right after it.
#[derive(Clone, Debug)]
pub struct Committed {
    /// What it did.
    pub applied: Applied,
    /// The snapshot with it.
    pub view: Arc<CatalogueView>,
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
    /// Nothing changed.
    Nothing,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Catalogue {
    nodes: u16,
    view: Arc<CatalogueView>,
}

impl Catalogue {
    /// An empty catalogue of a cluster of `nodes` nodes.
    pub fn new(nodes: u16) -> Catalogue {
        let view =
            CatalogueView { commands: 0, epoch: -1, next_producer_id: 0, partitions: 0, by_id: HashMap::new(), by_name: BTreeMap::new() };
        Catalogue { nodes, view: Arc::new(view) }
    }

    /// One that goes on from a snapshot, to see what a command would do.
    pub fn from_view(nodes: u16, view: Arc<CatalogueView>) -> Catalogue {
        Catalogue { nodes, view }
    }

    /// The present snapshot.
    pub fn view(&self) -> &Arc<CatalogueView> {
        &self.view
    }

    /// The state that a log describes.
    ///
    /// # Errors
    /// The first record that can't be applied, by its number, and why: the log is not one that this state machine wrote.
    pub fn replay(nodes: u16, log: &CommandLog) -> Result<Catalogue, (u64, Refusal)> {
        let mut catalogue = Catalogue::new(nodes);
        let (topics, later) = log.commands.split_at((log.snapshot.topics as usize).min(log.commands.len()));
        let apply = |catalogue: &mut Catalogue, records: &[(u64, Command)]| {
            records.iter().try_for_each(|(sequence, command)| catalogue.apply(command).map(drop).map_err(|refusal| (*sequence, refusal)))
        };
        apply(&mut catalogue, topics)?;
        if log.snapshot.is_some() {
            let view = Arc::make_mut(&mut catalogue.view);
            let Snapshot { commands, starts, next_producer_id, .. } = log.snapshot;
            (view.commands, view.next_producer_id) = (commands, next_producer_id);
            view.epoch = LeaderEpoch::try_from(starts).map_err(|_| (0, exhausted("leader epochs")))? - 1;
        }
        apply(&mut catalogue, later)?;
        Ok(catalogue)
    }

    /// Applies a command; a refused one changes nothing.
    pub fn apply(&mut self, command: &Command) -> Result<Applied, Refusal> {
        let applied = match command {
            Command::CreateTopic { id, name, partitions, replication_factor, config } => {
                let topic = self.check_create(*id, name, *partitions, *replication_factor, config)?;
                let view = Arc::make_mut(&mut self.view);
                view.put(Arc::clone(&topic));
                Applied::TopicCreated(topic)
            }
            Command::DeleteTopic { id } => {
                let topic = Arc::clone(self.existing(id)?);
                Arc::make_mut(&mut self.view).remove(&topic);
                Applied::TopicDeleted(topic)
            }
            Command::AlterTopic { id, partitions, config } => {
                let topic = self.check_alter(id, *partitions, config)?;
                Arc::make_mut(&mut self.view).put(Arc::clone(&topic));
                Applied::TopicAltered(topic)
            }
            Command::NodeStarted => {
                let epoch = self.view.epoch.checked_add(1).ok_or_else(|| exhausted("leader epochs"))?;
                Arc::make_mut(&mut self.view).epoch = epoch;
                Applied::NodeStarted(epoch)
            }
            Command::AllocateProducerIds { count } => Applied::ProducerIds(self.allocate_producer_ids(*count)?),
            // Not a change: it does not count, so that a replay agrees with the run that wrote it.
            Command::DurableMark => return Ok(Applied::Nothing),
        };
        Arc::make_mut(&mut self.view).commands += 1;
        Ok(applied)
    }

    fn check_create(
        &self,
        id: TopicId,
        name: &str,
        partitions: u32,
        replication_factor: u16,
        config: &[(String, String)],
    ) -> Result<Arc<Topic>, Refusal> {
        check_name(name)?;
        if self.view.by_name.contains_key(name) {
            return Err(Refusal::new(Code::TopicExists, format!("topic {name} exists")));
        }
        if let Some(other) = self.view.by_id.get(&id) {
            return Err(Refusal::new(Code::InvalidRequest, format!("topic id {id} is that of topic {}", other.name)));
        }
        self.check_partitions(name, 1, partitions, 0)?;
        if !(1..=self.nodes).contains(&replication_factor) {
            let message = format!("replication factor {replication_factor} of topic {name}: the cluster has {} node(s)", self.nodes);
            return Err(Refusal::new(Code::InvalidReplicationFactor, message));
        }
        let pairs = config.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let config = TopicConfig::from_pairs(pairs).map_err(invalid_config)?;
        check_min_insync(&config, replication_factor)?;
        Ok(Arc::new(Topic { id, name: name.into(), partitions, replication_factor, config }))
    }

    fn check_alter(&self, id: &TopicId, partitions: Option<u32>, config: &[(String, Option<String>)]) -> Result<Arc<Topic>, Refusal> {
        let topic = self.existing(id)?;
        if let Some(partitions) = partitions {
            self.check_partitions(&topic.name, topic.partitions, partitions, topic.partitions)?;
        }
        let changes = config.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        let config = topic.config.with(changes).map_err(invalid_config)?;
        check_min_insync(&config, topic.replication_factor)?;
        let partitions = partitions.unwrap_or(topic.partitions);
        Ok(Arc::new(Topic { partitions, config, ..Topic::clone(topic) }))
    }

    fn check_partitions(&self, name: &str, least: u32, wanted: u32, present: u32) -> Result<(), Refusal> {
        if !(least..=limits::MAX_PARTITIONS).contains(&wanted) {
            let message = format!("topic {name} can have {least} to {} partitions, not {wanted}", limits::MAX_PARTITIONS);
            return Err(Refusal::new(Code::InvalidPartitions, message));
        }
        let total = self.view.partitions + u64::from(wanted - present);
        if total > limits::MAX_ALL_PARTITIONS {
            let message = format!("all topics together can have {} partitions, not {total}", limits::MAX_ALL_PARTITIONS);
            return Err(Refusal::new(Code::LimitReached, message));
        }
        Ok(())
    }

    fn existing(&self, id: &TopicId) -> Result<&Arc<Topic>, Refusal> {
        let unknown = || Refusal::new(Code::UnknownTopicOrPartition, format!("there is no topic with id {id}"));
        self.view.by_id.get(id).ok_or_else(unknown)
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

impl CatalogueView {
    fn put(&mut self, topic: Arc<Topic>) {
        let before = self.by_id.insert(topic.id, Arc::clone(&topic));
        self.partitions += u64::from(topic.partitions);
        self.partitions -= before.map_or(0, |t| u64::from(t.partitions));
        self.by_name.insert(topic.name.clone(), topic);
        assert_eq!(self.by_id.len(), self.by_name.len(), "a name has one id");
    }

    fn remove(&mut self, topic: &Topic) {
        self.by_id.remove(&topic.id);
        self.by_name.remove(&topic.name);
        self.partitions -= u64::from(topic.partitions);
        assert_eq!(self.by_id.len(), self.by_name.len(), "a name has one id");
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

fn check_min_insync(config: &TopicConfig, replication_factor: u16) -> Result<(), Refusal> {
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

fn exhausted(what: &str) -> Refusal {
    Refusal::new(Code::LimitReached, format!("the {what} are used up"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn create(id: u8, name: &str, partitions: u32) -> Command {
        Command::CreateTopic { id: TopicId([id; 16]), name: name.into(), partitions, replication_factor: 1, config: vec![] }
    }

    fn code(result: Result<Applied, Refusal>) -> Code {
        result.expect_err("refused").code
    }

    #[test]
    fn names_follow_kafkas_rules() {
        for good in ["a", "A.b_c-9", "...", &"x".repeat(249)] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", "a b", "a/b", "ä", "a\0", &"x".repeat(250)] {
            assert_eq!(check_name(bad).unwrap_err().code, Code::InvalidTopicName, "{bad:?}");
        }
    }

    #[test]
    fn each_refusal_has_its_code_and_changes_nothing() {
        let mut catalogue = Catalogue::new(1);
        catalogue.apply(&create(1, "a", 3)).unwrap();
        let before = catalogue.view().clone();
        let id = TopicId([1; 16]);
        let with_config = |name: &str, value: &str| Command::CreateTopic {
            id: TopicId([2; 16]),
            name: "b".into(),
            partitions: 1,
            replication_factor: 1,
            config: vec![(name.into(), value.into())],
        };
        let two_replicas =
            Command::CreateTopic { id: TopicId([2; 16]), name: "b".into(), partitions: 1, replication_factor: 2, config: vec![] };
        let alter = |partitions| Command::AlterTopic { id, partitions: Some(partitions), config: vec![] };
        for (command, expected) in [
            (create(2, "a", 1), Code::TopicExists),
            (create(1, "b", 1), Code::InvalidRequest),
            (create(2, "b!", 1), Code::InvalidTopicName),
            (create(2, "b", 0), Code::InvalidPartitions),
            (create(2, "b", limits::MAX_PARTITIONS + 1), Code::InvalidPartitions),
            (two_replicas, Code::InvalidReplicationFactor),
            (with_config("nonsense", "1"), Code::InvalidConfig),
            (with_config("min.insync.replicas", "2"), Code::InvalidConfig),
            (Command::DeleteTopic { id: TopicId([9; 16]) }, Code::UnknownTopicOrPartition),
            (alter(2), Code::InvalidPartitions),
            (Command::AllocateProducerIds { count: 0 }, Code::InvalidRequest),
            (Command::AllocateProducerIds { count: 1001 }, Code::InvalidRequest),
        ] {
            assert_eq!(code(catalogue.apply(&command)), expected, "{command:?}");
            assert_eq!(catalogue.view(), &before);
        }
    }

    #[test]
    fn all_topics_together_have_a_bound() {
        let mut catalogue = Catalogue::new(1);
        let full = (limits::MAX_ALL_PARTITIONS / u64::from(limits::MAX_PARTITIONS)) as u8;
        for n in 0..full {
            catalogue.apply(&create(n, &format!("t{n}"), limits::MAX_PARTITIONS)).unwrap();
        }
        assert_eq!(code(catalogue.apply(&create(full, "one-more", 1))), Code::LimitReached);
        catalogue.apply(&Command::DeleteTopic { id: TopicId([0; 16]) }).unwrap();
        catalogue.apply(&create(full, "one-more", 1)).unwrap();
    }

    #[test]
    fn a_name_that_comes_again_is_another_topic() {
        let mut catalogue = Catalogue::new(1);
        catalogue.apply(&create(1, "a", 1)).unwrap();
        let held = catalogue.view().clone();
        catalogue.apply(&Command::DeleteTopic { id: TopicId([1; 16]) }).unwrap();
        catalogue.apply(&create(2, "a", 2)).unwrap();
        assert_eq!(held.topic("a").unwrap().id, TopicId([1; 16]), "a snapshot stays as it was");
        assert_eq!(catalogue.view().topic("a").unwrap().id, TopicId([2; 16]));
        assert!(catalogue.view().topic_by_id(&TopicId([1; 16])).is_none());
    }

    #[test]
    fn snapshots_tell_what_changed() {
        let mut catalogue = Catalogue::new(1);
        for (id, name) in [(1, "a"), (2, "b"), (3, "c")] {
            catalogue.apply(&create(id, name, 1)).unwrap();
        }
        let before = catalogue.view().clone();
        assert_eq!(before.changes_since(&before), Changes::default());
        catalogue.apply(&Command::DeleteTopic { id: TopicId([1; 16]) }).unwrap();
        catalogue.apply(&create(4, "a", 1)).unwrap();
        catalogue.apply(&Command::AlterTopic { id: TopicId([2; 16]), partitions: Some(5), config: vec![] }).unwrap();
        let changes = catalogue.view().changes_since(&before);
        let ids = |topics: &[Arc<Topic>]| topics.iter().map(|t| t.id.0[0]).collect::<Vec<_>>();
        assert_eq!((ids(&changes.created), ids(&changes.altered), ids(&changes.deleted)), (vec![4], vec![2], vec![1]));
        assert_eq!(changes.altered[0].partitions, 5);
    }

    #[test]
    fn starts_raise_the_epoch_and_ids_are_never_given_twice() {
        let mut catalogue = Catalogue::new(1);
        assert_eq!(catalogue.view().leader_epoch(), -1);
        assert_eq!(catalogue.apply(&Command::NodeStarted).unwrap(), Applied::NodeStarted(0));
        assert_eq!(catalogue.apply(&Command::AllocateProducerIds { count: 1000 }).unwrap(), Applied::ProducerIds(0..1000));
        assert_eq!(catalogue.apply(&Command::NodeStarted).unwrap(), Applied::NodeStarted(1));
        assert_eq!(catalogue.apply(&Command::AllocateProducerIds { count: 5 }).unwrap(), Applied::ProducerIds(1000..1005));
    }

    #[test]
    fn names_that_collide_in_metrics_are_found() {
        let mut catalogue = Catalogue::new(1);
        catalogue.apply(&create(1, "a.b", 1)).unwrap();
        assert_eq!(catalogue.view().collision("a_b").unwrap().name, "a.b");
        assert!(catalogue.view().collision("a.b").is_none(), "itself is no collision");
        assert!(catalogue.view().collision("ab").is_none());
    }

    fn any_command() -> impl Strategy<Value = Command> {
        let id = || (0u8..5).prop_map(|n| TopicId([n; 16]));
        let setting = prop_oneof![Just("retention.ms"), Just("segment.bytes"), Just("nonsense")].prop_map(str::to_owned);
        let value = prop_oneof![Just("1048576"), Just("-1")].prop_map(str::to_owned);
        prop_oneof![
            4 => (id(), 0u8..4, 0u32..5).prop_map(|(id, name, partitions)| {
                Command::CreateTopic { id, name: format!("t{name}"), partitions, replication_factor: 1, config: vec![] }
            }),
            2 => id().prop_map(|id| Command::DeleteTopic { id }),
            3 => (id(), proptest::option::of(0u32..9), proptest::collection::vec((setting, proptest::option::of(value)), 0..2))
                .prop_map(|(id, partitions, config)| Command::AlterTopic { id, partitions, config }),
            1 => Just(Command::NodeStarted),
            1 => (0u32..3).prop_map(|count| Command::AllocateProducerIds { count }),
            1 => Just(Command::DurableMark),
        ]
    }

    proptest! {
        /// Against the plainest model there is: a map of what was accepted, rebuilt by hand.
        #[test]
        fn agrees_with_a_plain_map(commands in proptest::collection::vec(any_command(), 0..60)) {
            let (mut catalogue, mut twin) = (Catalogue::new(1), Catalogue::new(1));
            let mut model: BTreeMap<TopicId, (String, u32)> = BTreeMap::new();
            for command in &commands {
                let result = catalogue.apply(command);
                // A model of the rules in the other direction: what must have been accepted, what not.
                match command {
                    Command::CreateTopic { id, name, partitions, .. } => {
                        let free = !model.contains_key(id) && !model.values().any(|(n, _)| n == name) && *partitions > 0;
                        prop_assert_eq!(result.is_ok(), free);
                        if free { model.insert(*id, (name.clone(), *partitions)); }
                    }
                    Command::DeleteTopic { id } => prop_assert_eq!(result.is_ok(), model.remove(id).is_some()),
                    Command::AlterTopic { id, partitions, .. } if result.is_ok() => {
                        let topic = model.get_mut(id).expect("only what exists is altered");
                        if let Some(n) = partitions { prop_assert!(*n >= topic.1); topic.1 = *n; }
                    }
                    _ => {}
                }
                let _ = twin.apply(&Command::decode(&command.encode().unwrap()).unwrap());
            }
            let seen: BTreeMap<_, _> = catalogue.view().topics().map(|t| (t.id, (t.name.clone(), t.partitions))).collect();
            prop_assert_eq!(&seen, &model);
            prop_assert_eq!(catalogue.view().partitions(), model.values().map(|(_, n)| u64::from(*n)).sum::<u64>());
            prop_assert_eq!(catalogue.view(), twin.view());
            // A snapshot is read back as the same state, and goes on like it.
            let bytes = super::super::command_log::encode_compacted([9; 16], catalogue.view()).unwrap();
            let log = super::super::command_log::decode_log(&bytes).unwrap();
            prop_assert_eq!(log.torn, None);
            let mut again = Catalogue::replay(1, &log).unwrap();
            prop_assert_eq!(again.view(), catalogue.view());
            for command in &commands {
                prop_assert_eq!(again.apply(command).is_ok(), catalogue.apply(command).is_ok());
            }
            prop_assert_eq!(again.view(), catalogue.view());
        }
    }
}
