//! Random commands against a plain model: what always holds of the state, and a count of what each replica has.
//!
//! The model knows nothing of epochs and eligible leaders. It only counts, for each life of each replica, up to where its log goes, and up to where the watermark has
//! moved; whoever is elected without the mark of an unclean election must have all of that.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;
use crate::cluster::restore::check_record;
use crate::cluster::view::goal;
use crate::cluster::{CatalogueView, Election, NodeState, command_log};

const NODES: u32 = 6;
const TOPICS: u8 = 3;

/// What is tried next; the rest is taken from the state, so that most of it can be done.
#[derive(Clone, Debug)]
enum Step {
    Register {
        node: NodeId,
        wiped: bool,
        clean: bool,
    },
    Fence(NodeId),
    Drain(NodeId),
    Retire(NodeId, bool),
    Remove(NodeId),
    Create {
        topic: u8,
        partitions: u32,
        replicas: u16,
        min_insync: u16,
        memory: bool,
    },
    Delete(u8),
    Alter {
        topic: u8,
        more: u32,
        min_insync: u16,
    },
    Isr {
        at: TopicPartition,
        leave: u32,
        join: u32,
    },
    Lost {
        at: TopicPartition,
        node: NodeId,
    },
    Elect {
        at: TopicPartition,
        election: Election,
    },
    Reassign {
        at: TopicPartition,
        target: Vec<NodeId>,
    },
    Balance(u32),
    Place {
        at: TopicPartition,
        node: NodeId,
        shard: Option<u32>,
    },
    /// The leader appends; those of the ISR that are in the mask are behind.
    Append {
        at: TopicPartition,
        behind: u32,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    let place = || (0..TOPICS, 0u32..3).prop_map(|(topic, partition)| at(topic, partition));
    let rare = || prop::bool::weighted(0.2);
    let election = prop_oneof![
        Just(Election::Preferred),
        node().prop_map(Election::HandOver),
        node().prop_map(Election::HandOver),
        node().prop_map(Election::Unclean),
    ];
    prop_oneof![
        12 => (node(), rare(), prop::bool::ANY).prop_map(|(node, wiped, clean)| Step::Register { node, wiped, clean }),
        6 => node().prop_map(Step::Fence),
        2 => node().prop_map(Step::Drain),
        1 => (node(), rare()).prop_map(|(node, retiring)| Step::Retire(node, retiring)),
        1 => node().prop_map(Step::Remove),
        4 => (0..TOPICS, 1u32..3, 1u16..5, 1u16..4, rare())
            .prop_map(|(topic, partitions, replicas, min_insync, memory)| Step::Create { topic, partitions, replicas, min_insync, memory }),
        1 => (0..TOPICS).prop_map(Step::Delete),
        3 => (0..TOPICS, 0u32..2, 1u16..4).prop_map(|(topic, more, min_insync)| Step::Alter { topic, more, min_insync }),
        12 => (place(), 0u32..64, 0u32..64).prop_map(|(at, leave, join)| Step::Isr { at, leave: leave & (leave >> 1), join }),
        2 => (place(), node()).prop_map(|(at, node)| Step::Lost { at, node }),
        8 => (place(), election).prop_map(|(at, election)| Step::Elect { at, election }),
        4 => (place(), vec(node(), 1..4)).prop_map(|(at, target)| Step::Reassign { at, target }),
        1 => (0u32..5).prop_map(Step::Balance),
        1 => (place(), node(), prop::option::of(0u32..2)).prop_map(|(at, node, shard)| Step::Place { at, node, shard }),
        20 => (place(), 0u32..64).prop_map(|(at, behind)| Step::Append { at, behind: behind & (behind >> 1) }),
    ]
}

/// What each life of a replica has, and where the watermark is.
#[derive(Default)]
struct Model {
    ends: BTreeMap<(TopicPartition, NodeId, u32), u64>,
    watermarks: BTreeMap<TopicPartition, u64>,
    /// Life of each node's disk.
    lives: BTreeMap<NodeId, u8>,
}

impl Model {
    fn end(&mut self, at: TopicPartition, record: &PartitionRecord, node: NodeId) -> &mut u64 {
        let incarnation = record.replica(node).expect("it has a replica").incarnation;
        self.ends.entry((at, node, incarnation)).or_default()
    }

    fn append(&mut self, view: &CatalogueView, at: TopicPartition, behind: u32) {
        let Some(record) = view.partition(&at) else { return };
        let Some(leader) = record.leader else { return };
        *self.end(at, record, leader) += 1;
        let end = *self.end(at, record, leader);
        for member in record.isr.iter().filter(|member| behind & (1 << **member) == 0) {
            *self.end(at, record, *member) = end;
        }
        let least = record.isr.iter().map(|member| *self.end(at, record, *member)).min().unwrap_or(0);
        if record.isr.len() >= min_insync(view, at) {
            let watermark = self.watermarks.entry(at).or_default();
            *watermark = least.max(*watermark);
        }
    }

    /// Elections: who leads now has everything below the watermark, and the others cut off what it does not have.
    fn follow(&mut self, before: &CatalogueView, after: &CatalogueView) -> Result<(), String> {
        self.watermarks.retain(|at, _| after.partition(at).is_some());
        self.ends.retain(|(at, ..), _| after.partition(at).is_some());
        for at in after.partitions_changed_since(before) {
            let record = after.partition(&at).expect("what changed is there");
            let Some(leader) = record.leader else { continue };
            if before.partition(&at).is_some_and(|before| before.leader_epoch == record.leader_epoch && before.leader.is_some()) {
                continue;
            }
            let end = *self.end(at, record, leader);
            let watermark = self.watermarks.entry(at).or_default();
            if record.unclean_epoch == Some(record.leader_epoch) {
                *watermark = end.min(*watermark);
            } else if end < *watermark {
                return Err(format!("{at}: node {leader} leads with {end} of {watermark} records: {record:?}"));
            }
            for replica in &record.replicas {
                let other = self.end(at, record, replica.node);
                *other = end.min(*other);
            }
        }
        Ok(())
    }

    /// The command of a step; a joiner has caught up by then.
    fn command(&mut self, view: &CatalogueView, step: &Step) -> Option<Command> {
        let epoch = |node: NodeId| view.node(node).map_or(0, |node| node.epoch);
        Some(match step {
            Step::Register { node, wiped, clean } => {
                let life = self.lives.entry(*node).or_default();
                // A wiped disk, and now and then one that is refused because the old life is there.
                *life += u8::from(*wiped);
                let incarnation = [*node as u8 * 40 + *life; 16];
                register_with(*node, |r| (r.incarnation, r.clean_stop) = (incarnation, *clean))
            }
            Step::Fence(node) => Command::FenceNode { node: *node, node_epoch: epoch(*node) },
            Step::Drain(node) => Command::DrainNode { node: *node, node_epoch: epoch(*node) },
            Step::Retire(node, retiring) => Command::RetireNode { node: *node, retiring: *retiring },
            Step::Remove(node) => Command::RemoveNode { node: *node },
            Step::Create { topic, partitions, replicas, min_insync, memory } => {
                let (min_insync, durability) = (min_insync.to_string(), if *memory { "memory" } else { "durable" });
                create(*topic, *partitions, *replicas, &[("min.insync.replicas", &min_insync), ("durability", durability)])
            }
            Step::Delete(id) => Command::DeleteTopic { id: topic(*id) },
            Step::Alter { topic: id, more, min_insync } => {
                let present = view.topic_by_id(&topic(*id))?.partitions;
                let config = vec![("min.insync.replicas".to_owned(), Some(min_insync.to_string()))];
                Command::AlterTopic { id: topic(*id), partitions: Some(present + more), config }
            }
            Step::Isr { at, leave, join } => {
                let record = view.partition(at)?;
                let leader = record.leader?;
                let in_mask = |mask: &u32, node: &NodeId| mask & (1 << *node) != 0;
                let leave: Vec<_> = record.isr.iter().copied().filter(|node| *node != leader && in_mask(leave, node)).collect();
                let mut joining = Vec::new();
                for replica in record.replicas.iter().filter(|replica| !record.in_sync(replica.node) && in_mask(join, &replica.node)) {
                    let end = *self.end(*at, record, leader);
                    // One that is away has not.
                    if view.node(replica.node).is_some_and(|node| node.is_live()) {
                        *self.end(*at, record, replica.node) = end;
                    }
                    joining.push(Joiner { replica: *replica, node_epoch: epoch(replica.node) });
                }
                let (leader_epoch, version) = (record.leader_epoch, record.version);
                Command::ChangeIsr { partition: *at, change: IsrChange { leader, leader_epoch, version, leave, join: joining } }
            }
            Step::Lost { at, node } => Command::ReplicaLost { partition: *at, replica: view.partition(at)?.replica(*node)? },
            Step::Elect { at, election } => {
                // Of the replicas, the so-manieth.
                let replicas = &view.partition(at)?.replicas;
                let replica = |number: NodeId| replicas[number as usize % replicas.len()].node;
                let election = match election {
                    Election::Preferred => Election::Preferred,
                    Election::HandOver(number) => Election::HandOver(replica(*number)),
                    Election::Unclean(number) => Election::Unclean(replica(*number)),
                };
                Command::ElectLeader { partition: *at, election }
            }
            Step::Reassign { at, target } => Command::Reassign { partition: *at, target: target.clone() },
            Step::Balance(most) => Command::BalanceLeaders { most: *most },
            Step::Place { at, node, shard } => Command::PlaceOnShard { partition: *at, node: *node, shard: *shard },
            Step::Append { at, behind } => {
                self.append(view, *at, *behind);
                return None;
            }
        })
    }
}

fn min_insync(view: &CatalogueView, at: TopicPartition) -> usize {
    view.topic_by_id(&at.topic).map_or(1, |topic| topic.min_insync())
}

/// What always holds, and what only rises from one state to the next.
fn check(before: &CatalogueView, after: &CatalogueView) -> Result<(), String> {
    if after.node_epoch() < before.node_epoch() || after.nodes().any(|node| node.epoch > after.node_epoch()) {
        return Err("a node epoch that was not given out".into());
    }
    for topic in after.topics().filter(|_| after.nodes().len() > 0) {
        let records: Vec<_> = after.partitions_of_topic(&topic.id).collect();
        let least = records.iter().map(|record| goal(record).len()).min();
        if records.len() != topic.partitions as usize || least != Some(usize::from(topic.replication_factor)) {
            return Err(format!("{topic:?} has {} records with {least:?} replicas", records.len()));
        }
    }
    for (at, record) in after.all_partitions() {
        check_partition(after, at, record).map_err(|what| format!("{at}: {what}: {record:?}"))?;
        let Some(old) = before.partition(&at) else { continue };
        let rises = record.version > old.version && record.leader_epoch >= old.leader_epoch;
        if record != old && !rises || record.leader != old.leader && record.leader_epoch == old.leader_epoch {
            return Err(format!("{at}: versions and epochs only rise: {record:?} after {old:?}"));
        }
    }
    for node in after.nodes() {
        if after.load(node.id()) != Some(&after.count_load(node.id(), node.registration.shards)) {
            return Err(format!("the load of node {} is not {:?}", node.id(), after.load(node.id())));
        }
    }
    Ok(())
}

fn check_partition(view: &CatalogueView, at: TopicPartition, record: &PartitionRecord) -> Result<(), &'static str> {
    check_record(record)?;
    let state = |node: &NodeId| view.node(*node).map(|node| node.state);
    let live = |node: &NodeId| matches!(state(node), Some(NodeState::Live | NodeState::Draining));
    if !record.isr.iter().all(live) {
        return Err("one is in sync that is not there");
    }
    if record.isr.len() >= min_insync(view, at) && !record.eligible.is_empty() {
        return Err("the watermark may move without those that are eligible");
    }
    if record.leader.is_none() && record.isr.iter().chain(&record.eligible).any(live) {
        return Err("nobody leads, though one may");
    }
    let drains = record.leader.as_ref().and_then(state) == Some(NodeState::Draining);
    if drains && record.isr.iter().any(|node| state(node) == Some(NodeState::Live)) {
        return Err("a draining node leads what another may lead");
    }
    match &record.target {
        Some(target) if target.iter().all(|node| record.in_sync(*node)) => Err("a reassignment that is complete goes on"),
        _ => Ok(()),
    }
}

fn run(steps: &[Step]) -> Result<(Catalogue, Vec<Command>, usize), String> {
    let (mut catalogue, mut model) = (Catalogue::new(), Model::default());
    let (mut applied, mut elections) = (Vec::new(), 0);
    for step in steps {
        let before = catalogue.view().clone();
        let Some(command) = model.command(&before, step) else { continue };
        match catalogue.apply(&command) {
            Ok(_) => applied.push(command),
            Err(refusal) if *catalogue.view() != before => return Err(format!("{refusal} changed something: {command:?}")),
            Err(_) => continue,
        }
        let after = catalogue.view();
        check(&before, after).and_then(|()| model.follow(&before, after)).map_err(|what| format!("{what} by {applied:?}"))?;
        let leads = |view: &CatalogueView, at| view.partition(&at).and_then(|record| record.leader);
        elections += after.partitions_changed_since(&before).into_iter().filter(|at| leads(after, *at) != leads(&before, *at)).count();
    }
    Ok((catalogue, applied, elections))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nobody_leads_without_what_is_below_the_watermark(steps in vec(any_step(), 0..120)) {
        let (mut catalogue, applied, _) = run(&steps).map_err(TestCaseError::fail)?;
        // The same commands, as bytes, lead to the same state; so does a snapshot, which goes on alike.
        let mut twin = Catalogue::new();
        for command in &applied {
            twin.apply(&Command::decode(&command.encode().unwrap()).unwrap()).unwrap();
        }
        prop_assert_eq!(twin.view(), catalogue.view());
        let (bytes, records) = command_log::encode_compacted([9; 16], catalogue.view()).unwrap();
        let log = command_log::decode_log(&bytes).unwrap();
        prop_assert_eq!(log.commands.len() as u64, records + 1);
        let mut restored = Catalogue::replay(&log).unwrap();
        prop_assert_eq!(restored.view(), catalogue.view());
        for command in &applied {
            prop_assert_eq!(restored.apply(command).is_ok(), catalogue.apply(command).is_ok());
        }
        prop_assert_eq!(restored.view(), catalogue.view());
    }
}

/// The random steps do what they are for.
#[test]
fn random_steps_do_elect_and_join() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut kinds, mut all_elections, mut unclean, mut finished) = (BTreeMap::new(), 0, 0, 0);
    for _ in 0..200 {
        let steps = vec(any_step(), 120).new_tree(&mut runner).unwrap().current();
        let (catalogue, applied, elections) = run(&steps).unwrap();
        all_elections += elections;
        for command in &applied {
            let name = format!("{command:?}");
            *kinds.entry(name.split([' ', '(']).next().unwrap_or_default().to_owned()).or_insert(0) += 1;
        }
        unclean += catalogue.view().all_partitions().filter(|(_, record)| record.unclean_epoch.is_some()).count();
        finished += catalogue.view().all_partitions().filter(|(_, record)| record.replicas.iter().any(|r| r.incarnation > 0)).count();
    }
    for kind in ["RegisterNode", "FenceNode", "DrainNode", "RetireNode", "CreateTopic", "AlterTopic", "ChangeIsr"] {
        assert!(kinds.get(kind).is_some_and(|count| *count > 100), "{kind}: {kinds:?}");
    }
    for kind in ["DeleteTopic", "RemoveNode", "ReplicaLost", "ElectLeader", "Reassign", "BalanceLeaders", "PlaceOnShard"] {
        assert!(kinds.get(kind).is_some_and(|count| *count > 20), "{kind}: {kinds:?}");
    }
    assert!(all_elections > 1000 && unclean > 10 && finished > 10, "{all_elections} elections, {unclean} unclean, {finished} came again");
}

/// Each rule of the checker finds the fault that it is for.
#[test]
fn planted_faults_are_found() {
    let mut catalogue = cluster([0, 1, 2]);
    catalogue.apply(&create(1, 1, 3, &[("min.insync.replicas", "2")])).unwrap();
    arrange(&mut catalogue, at(1, 0), &[0, 1, 2]);
    fence(&mut catalogue, 2);
    let good = catalogue.view().clone();
    check(&good, &good).unwrap();
    let planted = |change: &dyn Fn(&mut CatalogueView, &mut PartitionRecord)| {
        let mut view = CatalogueView::clone(&good);
        let mut record = record(&catalogue, at(1, 0));
        record.version += 1;
        change(&mut view, &mut record);
        view.put_record(&at(1, 0), record);
        check(&good, &view).expect_err("it is found")
    };
    let found = |change: &dyn Fn(&mut CatalogueView, &mut PartitionRecord), what: &str| {
        let said = planted(change);
        assert!(said.contains(what), "{said:?} is not {what:?}");
    };
    found(&|_, r| r.isr.push(2), "in sync that is not there");
    found(&|_, r| r.eligible.push(2), "without those that are eligible");
    found(&|_, r| r.isr.push(9), "no set of replicas");
    found(&|_, r| r.leader = Some(2), "its leader is not in sync");
    found(&|_, r| (r.leader, r.leader_epoch) = (None, r.leader_epoch + 1), "though one may");
    found(&|_, r| r.leader = Some(1), "only rise");
    found(&|_, r| (r.version, r.unclean_epoch) = (r.version - 1, Some(0)), "only rise");
    found(&|_, r| (r.leader, r.leader_epoch) = (Some(1), r.leader_epoch - 1), "epoch");
    found(&|_, r| r.target = Some(vec![1, 0]), "replicas");
    found(&|_, r| r.target = Some(vec![1, 0, 1]), "no set of replicas");
    found(&|view, _| view.node_epoch = 1, "node epoch");
    found(&|view, _| view.set_node_state(0, NodeState::Draining), "draining node leads");
    found(&|view, _| view.set_node_state(1, NodeState::Fenced), "in sync that is not there");
    let said = planted(&|_, r| (r.replicas.truncate(2), r.target = Some(vec![0, 1, 0])).1);
    assert!(!said.is_empty());
}

/// An eligible one that should have gone leads later: what the others acknowledged without it is missing.
#[test]
fn an_election_that_loses_something_is_found() {
    let mut catalogue = cluster([0, 1]);
    catalogue.apply(&create(1, 1, 2, &[])).unwrap();
    arrange(&mut catalogue, at(1, 0), &[0, 1]);
    let mut model = Model::default();
    model.append(catalogue.view(), at(1, 0), 0);
    fence(&mut catalogue, 1);
    model.append(catalogue.view(), at(1, 0), 0);
    let before = catalogue.view().clone();
    let elected = |change: fn(&mut PartitionRecord)| {
        let mut view = CatalogueView::clone(&before);
        let mut record = record(&catalogue, at(1, 0));
        record.eligible.push(1);
        record.node_away(0, 1, |node| node == 1);
        change(&mut record);
        view.put_record(&at(1, 0), record);
        view
    };
    let said = model.follow(&before, &elected(|_| ())).unwrap_err();
    assert!(said.contains("with 1 of 2 records"), "{said}");
    model.follow(&before, &elected(|record| record.unclean_epoch = Some(record.leader_epoch))).unwrap();
}
