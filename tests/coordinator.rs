//! The coordinator of a replicated partition of `__consumer_offsets`, on a real disk: the test is the metadata, the other replicas and the members.

mod crash;
mod replicas;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use corelane::cluster::{Catalogue, Command, Election};
use corelane::group::{Settings, partition_of};
use corelane::request::group::{
    CommitOffsets, CommitPartition, FetchOffsets, GroupAnswer, GroupError, GroupRequest, Heartbeat, JoinGroup, MemberRef, Protocol,
    SyncGroup,
};
use corelane::request::{Acks, Broker, Code};
use corelane::shard::budget::Building;
use corelane::shard::context::Context;
use corelane::shard::groups;
use corelane::shard::pending::{Patience, PendingProduce};
use corelane::shard::produce;
use corelane::shard::replication::Lease;
use corelane::shard::role::Role;
use corelane::shard::truncation::Truncation;
use corelane::types::{OFFSETS_TOPIC, Offset, TopicId};

use replicas::node::{registration, shard};
use replicas::{PARTITION, Produced, Running, run};

/// The topic that groups read.
const READ: &str = "orders";
const OFFSETS_PARTITIONS: u32 = 50;
/// A lease that is prolonged all the time goes so long each time.
const SLICE: Duration = Duration::from_secs(5);
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Node 0 of three: what its one shard has of the groups' topic is [`PARTITION`].
struct Node {
    running: Running,
    context: Rc<Context>,
    lease: Lease,
    catalogue: RefCell<Catalogue>,
    group: String,
}

impl Node {
    /// One that leads nothing yet.
    async fn start(dir: &Path) -> Node {
        let running = Running::open(dir, None).await;
        let mut catalogue = Catalogue::new();
        let mut apply = |command| catalogue.apply(&command).unwrap();
        for node in 0..3 {
            apply(Command::RegisterNode(Box::new(registration(node, None))));
        }
        let of_groups = vec![("cleanup.policy".into(), "compact".into()), ("min.insync.replicas".into(), "2".into())];
        for (id, name, partitions, config) in
            [(PARTITION.topic, OFFSETS_TOPIC, OFFSETS_PARTITIONS, of_groups), (TopicId([1; 16]), READ, 4, vec![])]
        {
            apply(Command::CreateTopic { id, name: name.into(), partitions, replication_factor: 3, config });
        }
        // Whoever it was that the placement chose.
        if catalogue.view().partition(&PARTITION).unwrap().leader == Some(0) {
            catalogue.apply(&Command::ElectLeader { partition: PARTITION, election: Election::HandOver(1) }).unwrap();
        }
        let settings = Settings { initial_rebalance_delay_ms: 0, min_session_timeout_ms: 1, ..Settings::default() };
        let lease = Lease::begin();
        lease.extend(Instant::now() + 60 * PATIENCE);
        let context = shard(&running, &catalogue, settings, &lease);
        groups::follow_catalogue(&context, &[]);
        let group = (0..).map(|n| format!("group-{n}")).find(|name| partition_of(name, OFFSETS_PARTITIONS) == PARTITION.partition).unwrap();
        Node { running, context, lease, catalogue: RefCell::new(catalogue), group }
    }

    /// Another node is made the leader; the metadata is in force here. The log has not heard of it yet.
    fn elect(&self, node: u32) -> i32 {
        let elect = Command::ElectLeader { partition: PARTITION, election: Election::HandOver(node) };
        if self.catalogue.borrow().view().partition(&PARTITION).unwrap().leader != Some(node) {
            self.catalogue.borrow_mut().apply(&elect).unwrap();
        }
        let view = self.catalogue.borrow().view().clone();
        *self.context.view.borrow_mut() = view.clone();
        groups::follow_catalogue(&self.context, &[]);
        view.partition(&PARTITION).unwrap().leader_epoch
    }

    /// It leads, from the log's end on; the epoch.
    async fn lead(&self) -> i32 {
        let epoch = self.elect(0);
        self.running.lead(epoch).await;
        epoch
    }

    /// Another node leads, with nothing that is not here.
    async fn follow(&self) {
        let epoch = self.elect(1);
        self.running.follow(epoch, self.end()).await;
    }

    fn end(&self) -> Offset {
        self.running.end()
    }

    /// The other replicas have all of the log.
    fn commit_all(&self) {
        self.running.cell.set_watermark(self.end());
    }

    async fn ask(&self, request: GroupRequest) -> GroupAnswer {
        let mut building = Building::new(&self.context.store.budget);
        groups::ask(&self.context, request, &mut building).await
    }

    /// Asks without waiting.
    fn send(&self, request: GroupRequest) -> Sent {
        let (sent, context) = (Sent::default(), self.context.clone());
        let answer = sent.0.clone();
        glommio::spawn_local(async move {
            let mut building = Building::new(&context.store.budget);
            let answered = groups::ask(&context, request, &mut building).await;
            *answer.borrow_mut() = Some(answered);
        })
        .detach();
        sent
    }

    fn commit(&self, offset: Offset) -> GroupRequest {
        let position = CommitPartition { partition: 1, offset, leader_epoch: None, metadata: None };
        GroupRequest::Commit(CommitOffsets {
            group: self.group.clone(),
            member: MemberRef::default(),
            generation: -1,
            retention_ms: None,
            topics: vec![(READ.into(), vec![position])],
        })
    }

    fn join(&self, member_id: &str) -> GroupRequest {
        GroupRequest::Join(JoinGroup {
            group: self.group.clone(),
            member_id: member_id.into(),
            instance_id: None,
            client_id: "test".into(),
            client_host: String::new(),
            session_timeout_ms: 1_000_000,
            rebalance_timeout_ms: 1_000_000,
            protocol_type: "consumer".into(),
            protocols: vec![Protocol { name: "range".into(), metadata: vec![].into() }],
            needs_member_id: false,
            can_skip_assignment: true,
            entropy: *uuid::Uuid::new_v4().as_bytes(),
        })
    }

    /// A member of a stable generation: its id and the generation's number.
    async fn stable_member(&self) -> (String, i32) {
        let GroupAnswer::Join(Ok(joined)) = self.ask(self.join("")).await else { panic!("it is not taken") };
        let member_id = joined.member_id.to_string();
        let sync = self.send(GroupRequest::Sync(SyncGroup {
            group: self.group.clone(),
            member: MemberRef { member_id: member_id.clone(), instance_id: None },
            generation: joined.generation,
            protocol_type: None,
            protocol: None,
            assignments: vec![(member_id.clone(), vec![7].into())],
        }));
        let before = self.end();
        wait_until("the generation is in the log", || self.end() > before || sync.is_answered()).await;
        self.commit_all();
        let GroupAnswer::Sync(Ok(synced)) = sync.answer().await else { panic!("it is not synced") };
        assert_eq!(&synced.assignment[..], [7]);
        (member_id, joined.generation)
    }

    async fn heartbeat(&self, member: &(String, i32)) -> Result<(), GroupError> {
        let heartbeat = Heartbeat {
            group: self.group.clone(),
            member: MemberRef { member_id: member.0.clone(), instance_id: None },
            generation: member.1,
        };
        let GroupAnswer::Heartbeat(outcome) = self.ask(GroupRequest::Heartbeat(heartbeat)).await else { panic!("another answer") };
        outcome
    }

    /// The position, where one is committed.
    async fn position(&self) -> Result<Option<Offset>, GroupError> {
        let topics = Some(vec![(READ.to_string(), vec![1])]);
        let fetch = FetchOffsets { group: self.group.clone(), topics, require_stable: false };
        match self.ask(GroupRequest::FetchOffsets(fetch)).await {
            GroupAnswer::FetchOffsets(fetched) => {
                fetched.map(|mut topics| topics.remove(0).partitions.remove(0).outcome.unwrap().map(|commit| commit.offset))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Until groups are served.
    async fn served(&self) {
        let begun = Instant::now();
        while let Err(error) = self.position().await {
            assert_eq!(error, GroupError::CoordinatorLoadInProgress);
            assert!(begun.elapsed() < PATIENCE, "it never serves");
            glommio::timer::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Commits a position and has the others take it.
    async fn commit_well(&self, offset: Offset) {
        let before = self.end();
        let sent = self.send(self.commit(offset));
        wait_until("the commit is in the log", || self.end() > before || sent.is_answered()).await;
        self.commit_all();
        assert_eq!(sent.committed().await, Ok(()));
    }
}

/// A request that is on its way.
#[derive(Default)]
struct Sent(Rc<RefCell<Option<GroupAnswer>>>);

impl Sent {
    fn is_answered(&self) -> bool {
        self.0.borrow().is_some()
    }

    async fn answer(&self) -> GroupAnswer {
        wait_until("the answer", || self.is_answered()).await;
        self.0.borrow_mut().take().unwrap()
    }

    async fn committed(&self) -> Result<(), GroupError> {
        let GroupAnswer::Commit(mut topics) = self.answer().await else { panic!("another answer") };
        topics.remove(0).partitions.remove(0).1
    }
}

async fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
}

/// As long as whatever is wrong would take to show, mostly.
async fn a_while() {
    glommio::timer::sleep(Duration::from_millis(50)).await;
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_commit_is_answered_when_the_other_replicas_have_it() {
    run(async || {
        let dir = scratch();
        let node = Node::start(dir.path()).await;
        node.lead().await;
        node.served().await;
        let sent = node.send(node.commit(70));
        wait_until("the commit is in the log", || node.end() == 1).await;
        node.running.settle().await;
        a_while().await;
        assert!(!sent.is_answered() && node.position().await == Ok(None), "it is here alone");
        node.commit_all();
        assert_eq!((sent.committed().await, node.position().await), (Ok(()), Ok(Some(70))));
    });
}

/// What the leader before appended may be committed or not; nobody knows before the watermark has reached the epoch's start.
#[test]
fn a_new_leader_serves_once_its_epochs_start_is_committed() {
    run(async || {
        let dir = scratch();
        let node = Node::start(dir.path()).await;
        node.lead().await;
        node.served().await;
        node.commit_well(70).await;
        let sent = node.send(node.commit(71));
        wait_until("the commit is in the log", || node.end() == 2).await;
        node.running.settle().await;
        node.follow().await;
        assert_eq!(sent.committed().await, Err(GroupError::NotCoordinator), "it may be committed or not");
        node.lead().await;
        a_while().await;
        assert_eq!(node.position().await, Err(GroupError::CoordinatorLoadInProgress));
        assert_eq!(node.send(node.commit(72)).committed().await, Err(GroupError::CoordinatorLoadInProgress));
        assert_eq!(node.end(), 2);
        node.commit_all();
        node.served().await;
        assert_eq!(node.position().await, Ok(Some(71)));
        node.commit_well(72).await;
        assert_eq!(node.position().await, Ok(Some(72)));
    });
}

#[test]
fn who_leads_no_more_lets_all_go_and_writes_nothing() {
    run(async || {
        let dir = scratch();
        let node = Node::start(dir.path()).await;
        node.lead().await;
        node.served().await;
        node.commit_well(70).await;
        node.stable_member().await;
        let end = node.end();
        // It waits for the member of before, who is to join again.
        let join = node.send(node.join(""));
        a_while().await;
        assert!(!join.is_answered());
        node.elect(1);
        assert_eq!(node.position().await, Err(GroupError::NotCoordinator), "the log has not heard of it, and still nobody is answered");
        assert!(matches!(join.answer().await, GroupAnswer::Join(Err(refused)) if refused.error == GroupError::NotCoordinator));
        node.follow().await;
        assert_eq!(node.send(node.commit(71)).committed().await, Err(GroupError::NotCoordinator));
        let GroupAnswer::Describe(described) = node.ask(GroupRequest::Describe(vec![node.group.clone()])).await else { panic!() };
        assert_eq!(described, [(node.group.clone(), Err(GroupError::NotCoordinator))]);
        let GroupAnswer::List(listed) = node.ask(GroupRequest::List(vec![])).await else { panic!() };
        assert_eq!(listed, Ok(vec![]));
        let found = groups::coordinators(&node.context, std::slice::from_ref(&node.group)).await;
        assert_eq!(found, [Ok(Broker { id: 1024, host: "client-1".into(), port: 9092 })]);
        a_while().await;
        node.context.groups.stop(&node.context);
        assert_eq!((node.end(), node.running.cell.machine.borrow().groups()), (end, None));
    });
}

#[test]
fn nobody_leads_and_clients_are_told_to_ask_again() {
    run(async || {
        let dir = scratch();
        let node = Node::start(dir.path()).await;
        for other in 0..3 {
            let epoch = node.context.view.borrow().node(other).unwrap().epoch;
            node.catalogue.borrow_mut().apply(&Command::FenceNode { node: other, node_epoch: epoch }).unwrap();
        }
        *node.context.view.borrow_mut() = node.catalogue.borrow().view().clone();
        groups::follow_catalogue(&node.context, &[]);
        let found = groups::coordinators(&node.context, std::slice::from_ref(&node.group)).await;
        assert_eq!(found, [Err(GroupError::CoordinatorNotAvailable)]);
        assert_eq!(node.position().await, Err(GroupError::NotCoordinator));
    });
}

/// It can't know whether another leads by now. Nothing is loaded anew when it does know, and the member that was there is there.
#[test]
fn a_leader_without_a_lease_answers_nobody_until_it_has_one() {
    run(async || {
        let dir = scratch();
        let node = Node::start(dir.path()).await;
        // The first lease is over before anything is asked.
        let short = Lease::begin();
        let settings = Settings { initial_rebalance_delay_ms: 0, ..Settings::default() };
        let context = shard(&node.running, &node.catalogue.borrow(), settings, &short);
        node.context.groups.stop(&node.context);
        let node = Node { context, lease: short, ..node };
        node.lead().await;
        a_while().await;
        assert_eq!(node.position().await, Err(GroupError::CoordinatorNotAvailable));
        let keep = Rc::new(std::cell::Cell::new(true));
        node.lease.extend(Instant::now() + SLICE);
        glommio::spawn_local({
            let (keep, lease) = (keep.clone(), node.lease.clone());
            async move {
                while keep.get() {
                    lease.extend(Instant::now() + SLICE);
                    glommio::timer::sleep(Duration::from_millis(20)).await;
                }
            }
        })
        .detach();
        node.served().await;
        node.commit_well(70).await;
        let member = node.stable_member().await;
        let join = node.send(node.join(""));
        keep.set(false);
        let begun = Instant::now();
        while node.position().await != Err(GroupError::CoordinatorNotAvailable) {
            assert!(begun.elapsed() < PATIENCE, "the lease never ends");
            glommio::timer::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(node.heartbeat(&member).await, Err(GroupError::CoordinatorNotAvailable));
        assert_eq!(node.send(node.commit(71)).committed().await, Err(GroupError::CoordinatorNotAvailable));
        node.lease.extend(Instant::now() + 60 * PATIENCE);
        assert_eq!(node.position().await, Ok(Some(70)));
        assert_eq!(node.heartbeat(&member).await, Err(GroupError::RebalanceInProgress), "the other one waits for it to join");
        assert!(!join.is_answered());
    });
}

#[test]
fn too_few_replicas_refuse_a_commit_at_once() {
    run(async || {
        let dir = scratch();
        let node = Node::start(dir.path()).await;
        node.lead().await;
        node.served().await;
        node.running.cell.enough_replicas.set(false);
        assert_eq!(node.send(node.commit(70)).committed().await, Err(GroupError::CoordinatorNotAvailable));
        assert_eq!((node.end(), node.position().await), (0, Ok(None)));
        node.running.cell.enough_replicas.set(true);
        node.commit_well(71).await;
    });
}

/// An append that waits for room goes on when there is some. If leadership went and came back meanwhile, it is one of another time.
#[test]
fn an_append_of_an_earlier_leadership_is_refused() {
    run(async || {
        let dir = scratch();
        let node = Node::start(dir.path()).await;
        let first = node.lead().await;
        node.served().await;
        node.commit_well(70).await;
        node.running.cell.enter().await;
        let sent = node.send(node.commit(71));
        a_while().await;
        assert_eq!(node.end(), 1, "a slow change keeps it waiting");
        node.follow().await;
        let second = node.lead().await;
        assert!(second > first && node.running.cell.role() == Role::Leader(second));
        node.running.cell.leave();
        assert_eq!(sent.committed().await, Err(GroupError::NotCoordinator));
        a_while().await;
        assert_eq!(node.end(), 1);
        node.commit_all();
        node.served().await;
        assert_eq!(node.position().await, Ok(Some(70)));

        let produced = Produced::default();
        let patience = Patience::new(Acks::All, 0).in_epoch(first);
        let pending = PendingProduce::new(std::iter::once(PARTITION), patience, Box::new(produced.clone()));
        produce::append(&node.context, &PARTITION, &replicas::batch(1, 1, 10, None), pending.completion(0)).await;
        assert_eq!(produced.now().unwrap().unwrap_err().code, Code::NotLeader);
    });
}

/// Other records take the offsets of those that were cut: a snapshot that holds the old ones must not be taken for theirs.
#[test]
fn a_cut_below_the_watermark_drops_the_snapshot() {
    run(async || {
        let mut dir = scratch();
        let node = Node::start(dir.path()).await;
        node.lead().await;
        node.served().await;
        for offset in 0..4 {
            node.commit_well(offset).await;
        }
        node.context.groups.stop(&node.context);
        assert!(node.running.cell.machine.borrow().groups().is_some(), "a leader that stops keeps what it has");
        node.running.checkpoint().await;
        let epoch = node.elect(1);
        node.running.store.set_role(&node.running.cell, Role::Unassigned).unwrap();
        let asked = Truncation { offset: 4, epoch, epoch_start: 4, unclean: false };
        node.running.store.truncate(&node.running.cell, asked).await.unwrap();
        assert!(node.running.cell.machine.borrow().groups().is_some(), "nothing of it was cut");
        let asked = Truncation { offset: 2, epoch: epoch + 1, epoch_start: 2, unclean: true };
        node.running.store.truncate(&node.running.cell, asked).await.unwrap();
        assert_eq!(node.running.cell.machine.borrow().groups(), None);
        let running = node.running.restart(&mut dir, None).await;
        assert_eq!((running.end(), running.cell.machine.borrow().groups()), (2, None));
    });
}
