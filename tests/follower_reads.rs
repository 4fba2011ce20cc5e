//! Consumers that read from a follower in their rack: what a follower answers and when, whom a leader names, and three brokers as processes.

mod crash;
#[path = "support/places.rs"]
mod places;
#[path = "support/kafka.rs"]
mod raw;
mod replicas;
mod support;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use corelane::batch::{BatchHeader, BatchIter};
use corelane::cluster::{Catalogue, Command, Election};
use corelane::group::Settings;
use corelane::limits::MAX_FETCH_WAIT_MS;
use corelane::request::{Acks, Code, Fetch, FetchPartition, ListOffset, OffsetSpec, ReadFrom};
use corelane::shard::context::Context;
use corelane::shard::fetch::fetch_mine;
use corelane::shard::replication::Lease;
use corelane::shard::role::Role;
use corelane::shard::{offsets, produce};
use corelane::types::Offset;
use kafka_protocol::messages::FetchRequest;
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::protocol::StrBytes;

use places::{Place, create, scratch};
use raw::KafkaConnection;
use replicas::node::{registration, shard};
use replicas::{PARTITION, Running, batch, run};
use support::eventually;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(3600);
/// As many records are in each batch.
const EACH: Offset = 3;

/// Node 0 of three, each in a rack of its own; its one shard has a replica of [`PARTITION`].
struct Node {
    running: Running,
    context: Rc<Context>,
    lease: Lease,
    catalogue: RefCell<Catalogue>,
}

impl Node {
    /// One that has no role, and no lease.
    async fn start(dir: &Path) -> Node {
        let running = Running::open(dir, None).await;
        let mut catalogue = Catalogue::new();
        for node in 0..3 {
            catalogue.apply(&Command::RegisterNode(Box::new(registration(node, Some(format!("rack-{node}")))))).unwrap();
        }
        let create = Command::CreateTopic { id: PARTITION.topic, name: "t".into(), partitions: 3, replication_factor: 3, config: vec![] };
        catalogue.apply(&create).unwrap();
        let lease = Lease::begin();
        let context = shard(&running, &catalogue, Settings::default(), &lease);
        Node { running, context, lease, catalogue: RefCell::new(catalogue) }
    }

    fn apply(&self, command: &Command) {
        self.catalogue.borrow_mut().apply(command).unwrap();
        *self.context.view.borrow_mut() = self.catalogue.borrow().view().clone();
    }

    /// The metadata says that `node` leads; the epoch. The log has not heard of it.
    fn elect(&self, node: u32) -> i32 {
        if self.context.view.borrow().partition(&PARTITION).unwrap().leader != Some(node) {
            self.apply(&Command::ElectLeader { partition: PARTITION, election: Election::HandOver(node) });
        }
        self.context.view.borrow().partition(&PARTITION).unwrap().leader_epoch
    }

    /// It follows node 1 and has its ten batches, of which it knows none to be committed.
    async fn follow(&self, leader: &Running) -> i32 {
        let epoch = self.elect(1);
        self.running.follow(epoch, 0).await;
        leader.lead(epoch).await;
        for seed in 0..10 {
            leader.produce(&batch(seed, EACH as usize, 100, None)).await;
        }
        leader.replicate(&self.running, 1 << 20).await;
        self.running.settle().await;
        assert_eq!((self.running.end(), self.running.watermark()), (10 * EACH, 0));
        epoch
    }

    /// The watermark in the answer, and the offset after the last record in it.
    async fn ask(&self, wanted: FetchPartition, from: ReadFrom, max_wait: Duration) -> Result<(Offset, Offset, Option<u32>), Code> {
        let max_wait_ms = max_wait.as_millis() as u32;
        let request = Fetch { max_wait_ms, min_bytes: 1, max_bytes: 1 << 20, partitions: vec![wanted], from };
        let mut answer = fetch_mine(&self.context, &request).await;
        let fetched = answer.results.remove(0).outcome.map_err(|refusal| refusal.code)?;
        let mut bytes = Vec::new();
        answer.pieces.iter().for_each(|piece| piece.copy_to(&mut bytes));
        assert_eq!(bytes.len(), fetched.bytes as usize);
        let end = BatchIter::new(&bytes).map(|found| found.unwrap().0.next_offset()).last();
        Ok((fetched.high_watermark, end.unwrap_or(wanted.offset), fetched.preferred))
    }

    async fn fetch(&self, offset: Offset, from: ReadFrom) -> Result<(Offset, Offset, Option<u32>), Code> {
        self.ask(wanted(offset, None), from, Duration::ZERO).await
    }
}

fn wanted(offset: Offset, leader_epoch: Option<i32>) -> FetchPartition {
    FetchPartition { partition: PARTITION, offset, max_bytes: 1 << 20, leader_epoch }
}

fn rack(name: &str) -> ReadFrom {
    ReadFrom::Rack(name.into())
}

#[test]
fn a_follower_answers_with_what_it_knows_to_be_committed() {
    run(async || {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let node = Rc::new(Node::start(dir.path()).await);
        let epoch = node.follow(&Running::open(other.path(), None).await).await;
        node.lease.extend(Instant::now() + PATIENCE);
        assert_eq!(node.fetch(0, ReadFrom::InSync).await, Ok((0, 0, None)), "nothing is committed");
        node.running.cell.set_watermark(4 * EACH);
        for from in [ReadFrom::InSync, rack("rack-0"), rack("rack-2")] {
            assert_eq!(node.fetch(0, from.clone()).await, Ok((12, 12, None)), "{from:?}");
            assert_eq!(node.fetch(12, from.clone()).await, Ok((12, 12, None)), "{from:?}: the end of what it knows");
            assert_eq!(node.fetch(15, from.clone()).await, Err(Code::OffsetNotAvailable), "{from:?}");
            assert_eq!(node.fetch(31, from.clone()).await, Err(Code::OffsetOutOfRange), "{from:?}");
        }
        assert_eq!(node.fetch(0, ReadFrom::Leader).await, Err(Code::NotLeader));
        let by_epoch = |epoch| node.ask(wanted(0, Some(epoch)), ReadFrom::InSync, Duration::ZERO);
        assert_eq!(by_epoch(epoch - 1).await, Err(Code::FencedLeaderEpoch));
        assert_eq!(by_epoch(epoch).await, Ok((12, 12, None)));
        assert_eq!(by_epoch(epoch + 1).await, Err(Code::UnknownLeaderEpoch));

        // A wait ends with the watermark, also for one who knows of more than this follower does.
        let begun = Instant::now();
        for (offset, watermark) in [(12, 15), (18, 21)] {
            let waiting = node.clone();
            let poll = glommio::spawn_local(async move { waiting.ask(wanted(offset, None), ReadFrom::InSync, PATIENCE).await });
            glommio::timer::sleep(Duration::from_millis(20)).await;
            node.running.cell.set_watermark(watermark);
            assert_eq!(poll.await, Ok((watermark, watermark, None)));
        }
        assert!(begun.elapsed() < Duration::from_millis(u64::from(MAX_FETCH_WAIT_MS)), "not by the end of the longest wait");
        // Beyond its own log nothing is committed here, whatever the leader says.
        node.running.cell.set_watermark(100);
        assert_eq!(node.fetch(21, ReadFrom::InSync).await, Ok((30, 30, None)));
    });
}

#[test]
fn who_does_not_follow_in_sync_answers_nobody() {
    run(async || {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let node = Node::start(dir.path()).await;
        node.follow(&Running::open(other.path(), None).await).await;
        node.running.cell.set_watermark(12);
        assert_eq!(node.fetch(0, ReadFrom::InSync).await, Err(Code::NotLeader), "without a lease it may be cut off");
        node.lease.extend(Instant::now() + PATIENCE);
        assert_eq!(node.fetch(0, ReadFrom::InSync).await, Ok((12, 12, None)));

        // Another one leads, and has not spoken to it.
        let epoch = node.elect(2);
        assert_eq!(node.fetch(0, ReadFrom::InSync).await, Err(Code::NotLeader));
        node.running.follow(epoch, 30).await;
        assert_eq!(node.fetch(0, ReadFrom::InSync).await, Ok((12, 12, None)));
        node.running.store.set_role(&node.running.cell, Role::Unassigned).unwrap();
        assert_eq!(node.fetch(0, ReadFrom::InSync).await, Err(Code::NotLeader));
        node.running.store.set_role(&node.running.cell, Role::Follower(epoch)).unwrap();

        let node_epoch = node.context.view.borrow().node(0).unwrap().epoch;
        node.apply(&Command::FenceNode { node: 0, node_epoch });
        assert_eq!(node.fetch(0, ReadFrom::InSync).await, Err(Code::NotLeader), "it is in no ISR");
    });
}

#[test]
fn a_leader_names_the_follower_of_the_readers_rack() {
    run(async || {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(dir.path()).await;
        node.lease.extend(Instant::now() + PATIENCE);
        let epoch = node.elect(0);
        node.running.lead(epoch).await;
        node.running.produce(&batch(1, EACH as usize, 100, None)).await;
        node.running.settle().await;
        node.running.cell.set_watermark(EACH);
        node.running.cell.follower_ends.replace(vec![(1, 3), (2, 0)]);
        for from in [ReadFrom::Leader, ReadFrom::InSync, rack("rack-0"), rack("rack-9")] {
            assert_eq!(node.fetch(0, from.clone()).await, Ok((3, 3, None)), "{from:?}");
        }
        assert_eq!(node.fetch(0, rack("rack-1")).await, Ok((3, 0, Some(1024))), "no records");
        assert_eq!(node.ask(wanted(3, None), rack("rack-1"), PATIENCE).await, Ok((3, 3, Some(1024))), "at once");
        assert_eq!(node.fetch(0, rack("rack-2")).await, Ok((3, 0, Some(2048))));
        assert_eq!(node.fetch(3, rack("rack-2")).await, Ok((3, 3, None)), "it does not have that yet");
        assert_eq!(node.fetch(4, rack("rack-1")).await, Err(Code::OffsetOutOfRange));
    });
}

/// It may be cut off, with another one leading and its followers gone over to that one.
#[test]
fn a_leader_without_a_lease_says_only_what_stays_true() {
    run(async || {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(dir.path()).await;
        let epoch = node.elect(0);
        node.running.lead(epoch).await;
        for seed in 0..2 {
            node.running.produce(&batch(seed, EACH as usize, 100, None)).await;
        }
        node.running.settle().await;
        let cell = &node.running.cell;
        cell.set_watermark(EACH);
        cell.enough_replicas.set(true);
        let refused = |acks| produce::early_refusal(&node.context, cell, 100, acks).map(|refusal| refusal.code);
        let largest = BatchHeader::parse(&batch(1, EACH as usize, 100, None)).unwrap().max_timestamp;
        let at = async |timestamp| {
            let asked = ListOffset { partition: PARTITION, spec: OffsetSpec::At(timestamp) };
            offsets::list_offsets(&node.context, &[asked]).await.remove(0).outcome.map(|found| found.offset).map_err(|refusal| refusal.code)
        };
        for from in [ReadFrom::Leader, ReadFrom::InSync, rack("rack-1")] {
            assert_eq!(node.fetch(0, from.clone()).await, Ok((3, 3, None)), "{from:?}: what is committed stays so");
            assert_eq!(node.ask(wanted(3, None), from.clone(), PATIENCE).await, Err(Code::NotLeader), "{from:?}: at once");
            assert_eq!(node.fetch(60, from.clone()).await, Err(Code::NotLeader), "{from:?}: another one may have that");
        }
        assert_eq!(at(0).await, Ok(0));
        assert_eq!(at(largest + 1).await, Err(Code::OffsetNotAvailable), "not that there is none");
        for acks in [Acks::None, Acks::Leader, Acks::All] {
            assert_eq!(refused(acks), Some(Code::NotLeader), "{acks:?}");
        }

        node.lease.extend(Instant::now() + PATIENCE);
        assert_eq!(node.fetch(3, ReadFrom::Leader).await, Ok((3, 3, None)));
        assert_eq!(node.fetch(60, ReadFrom::Leader).await, Err(Code::OffsetOutOfRange));
        assert_eq!(refused(Acks::Leader), None);
        assert_eq!(at(largest + 1).await, Err(Code::OffsetNotAvailable), "it has just begun: some of its log may be acknowledged");
        cell.latest_is_known.set(true);
        assert_eq!(at(largest + 1).await, Ok(-1));
    });
}

/// What a broker answers about partition 0.
fn fetch(broker: &str, version: i16, offset: Offset, rack: &str, max_wait_ms: i32) -> PartitionData {
    let mut request: FetchRequest = raw::fetch("t", 0, offset, 1 << 20, max_wait_ms);
    if version >= 11 {
        request.rack_id = StrBytes::from_string(rack.into());
    }
    KafkaConnection::open(broker).ask(version, &request).responses.remove(0).partitions.remove(0)
}

/// The offset after the last record of an answer.
fn end_of(answer: &PartitionData, offset: Offset) -> Offset {
    let records = answer.records.clone().unwrap_or_default();
    BatchIter::new(&records).map(|found| found.expect("batches").0.next_offset()).last().unwrap_or(offset)
}

#[test]
fn a_consumer_reads_in_its_rack_and_from_the_leader_when_nobody_is_there_any_more() {
    let directory = scratch();
    let places: Vec<Place> = (1..=3).map(|node| Place::new(directory.path(), node)).collect();
    let start = |place: &Place, join: &[&Place]| {
        let mut flags = place.with(join);
        flags.extend(["--rack".into(), format!("rack-{}", place.node)]);
        support::Broker::start(&place.data, &flags.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let mut running = vec![Some(start(&places[0], &[]))];
    running.extend(places[1..].iter().map(|place| Some(start(place, &[&places[0]]))));
    create(&places[0], "t", 1, 3);
    places[2].wait_healthy(3);
    places[0].produce("t", 0..300);

    let leader = places[0].status()["partitions"][0]["leader"].as_u64().expect("it is led") as u32;
    let near = places.iter().find(|place| place.node != leader).expect("three nodes");
    let far = &places[leader as usize - 1];
    let rack = format!("rack-{}", near.node);
    let first = fetch(&far.clients, 11, 0, &rack, 0);
    assert_eq!((first.error_code, first.preferred_read_replica.0 as u32 / 1024, end_of(&first, 0)), (0, near.node, 0), "{first:?}");
    for (version, rack) in [(10, ""), (11, ""), (11, "rack-9"), (12, &*format!("rack-{leader}"))] {
        let answer = fetch(&far.clients, version, 0, rack, 0);
        assert_eq!((answer.error_code, answer.preferred_read_replica.0), (0, -1), "{version} {rack:?}");
        assert!(end_of(&answer, 0) > 0, "{version} {rack:?}");
    }

    // All that was acknowledged comes from the follower, sooner or later.
    let mut offset = 0;
    eventually("all is read in the rack", || {
        let answer = fetch(&near.clients, 12, offset, &rack, 500);
        assert!([0, Code::OffsetNotAvailable.value()].contains(&answer.error_code), "{answer:?}");
        offset = end_of(&answer, offset);
        offset == 300
    });
    assert_eq!(fetch(&near.clients, 10, 0, "", 0).error_code, Code::NotLeader.value(), "a version that knows no followers");
    assert_eq!(fetch(&near.clients, 11, 1000, &rack, 0).error_code, Code::OffsetOutOfRange.value());
    let waiting = std::thread::spawn({
        let (broker, rack) = (near.clients.clone(), rack.clone());
        move || fetch(&broker, 11, 300, &rack, 30_000)
    });
    places[0].produce("t", 300..301);
    assert_eq!(end_of(&waiting.join().expect("an answer"), 300), 301, "it heard of the watermark");

    // The follower is killed: the leader does not name it for long.
    running[near.node as usize - 1].take().expect("it runs").kill();
    eventually("the leader answers by itself", || {
        let answer = fetch(&far.clients, 12, 0, &rack, 0);
        assert_eq!(answer.error_code, 0, "{answer:?}");
        answer.preferred_read_replica.0 == -1 && end_of(&answer, 0) > 0
    });
}
