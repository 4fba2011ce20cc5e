//! Topics: refusals, snapshots, and a plain model.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::cluster::catalogue::check_name;
use crate::cluster::{Applied, Catalogue, Changes, Command, Topic, command_log};
use crate::limits;
use crate::request::{Code, Refusal};
use crate::types::{TopicId, TopicPartition};

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
    let mut catalogue = Catalogue::new();
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
    let mut catalogue = Catalogue::new();
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
    let mut catalogue = Catalogue::new();
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
    let mut catalogue = Catalogue::new();
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
    let mut catalogue = Catalogue::new();
    let any = TopicPartition { topic: TopicId([1; 16]), partition: 0 };
    assert_eq!(catalogue.view().leader_epoch(&any), -1);
    assert_eq!(catalogue.apply(&Command::NodeStarted).unwrap(), Applied::NodeStarted(0));
    assert_eq!(catalogue.apply(&Command::AllocateProducerIds { count: 1000 }).unwrap(), Applied::ProducerIds(0..1000));
    assert_eq!(catalogue.apply(&Command::NodeStarted).unwrap(), Applied::NodeStarted(1));
    assert_eq!(catalogue.apply(&Command::AllocateProducerIds { count: 5 }).unwrap(), Applied::ProducerIds(1000..1005));
}

#[test]
fn names_that_collide_in_metrics_are_found() {
    let mut catalogue = Catalogue::new();
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
        let (mut catalogue, mut twin) = (Catalogue::new(), Catalogue::new());
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
        let bytes = command_log::encode_compacted([9; 16], catalogue.view()).unwrap().0;
        let log = command_log::decode_log(&bytes).unwrap();
        prop_assert_eq!(log.torn, None);
        let mut again = Catalogue::replay(&log).unwrap();
        prop_assert_eq!(again.view(), catalogue.view());
        for command in &commands {
            prop_assert_eq!(again.apply(command).is_ok(), catalogue.apply(command).is_ok());
        }
        prop_assert_eq!(again.view(), catalogue.view());
    }
}
