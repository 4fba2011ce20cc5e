//! The check `cluster_groups`: a consumer group of a cluster whose coordinator is killed, stopped, cut off and asked to stop, while members read and commit.
//!
//! What is judged:
//! - No position goes back behind one whose commit was answered, and none skips a record that nobody was given: where a member begins to read, it begins between the two.
//! - A member is given the records of a partition one after the other for as long as it has the partition.
//! - After each fault the group commits again. At the end it has read and committed all that there is, and every node tells the same of it.
//! - No error reaches the program but that a rebalance came before a commit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corelane::client::{
    AssignmentStrategy, Client, ClientError, ConsumedBatch, GroupConsumeError, GroupConsumer, NewTopic, OffsetReset, RebalanceListener,
};
use corelane::group::partition_of;
use corelane::request::OffsetSpec;
use corelane::request::group::State;
use corelane::types::{OFFSETS_TOPIC, Offset};

use super::clients::{self, Clients, Load, Shared};
use super::faults::{self, Kind, Means, Target};
use super::lives::{Life, Lives};
use super::network::Network;
use super::nodes::Nodes;
use super::run::HEALTH_PATIENCE;
use super::{view, wait_until};
use crate::crash::Numbers;
use crate::harness::{Entry, Round};

/// Rounds on one cluster.
const LIFE: u64 = 20;
const SHORT: u64 = 3;
const NODES: u32 = 3;
const TOPIC: &str = "grouped";
const PARTITIONS: u32 = 6;
const GROUP: &str = "readers";
const MEMBERS: u32 = 3;
/// The last one leaves the group after at least so long, up to four times that, and comes again: the coordinator is hit in rebalances too.
const STAY_MS: u64 = 1000;
const AWAY: Duration = Duration::from_millis(300);
const LOAD: Load = Load { every: Duration::from_millis(5), value_bytes: 300, large_one_in: 0 };
/// Between two commits of a member.
const COMMIT_EVERY: Duration = Duration::from_millis(30);
/// A member that is not heard is put out after this long.
const SESSION: Duration = Duration::from_secs(10);
/// Commits that must be answered after a fault, and for how long they are waited for.
const PROGRESS: u64 = 30;
const PROGRESS_PATIENCE: Duration = Duration::from_secs(180);

/// The check.
pub const ENTRY: Entry = Entry {
    name: "cluster_groups",
    about: "a group goes on and loses no position while its coordinator is killed, stopped and cut off",
    short_rounds: SHORT,
    start: || Box::new(Lives::<Cluster>(None)),
};

/// One cluster with a group.
struct Cluster {
    directory: PathBuf,
    producers: Option<Clients>,
    shared: Arc<Shared>,
    members: Vec<JoinHandle<()>>,
    progress: Arc<Progress>,
    nodes: Nodes,
    means: Means,
    begun: Instant,
    log: Vec<String>,
}

impl Life for Cluster {
    const ROUNDS: (u64, u64) = (SHORT, LIFE);

    fn begin(directory: PathBuf, random: &mut Numbers) -> Result<Cluster, String> {
        let _ = fs::remove_dir_all(&directory);
        let (network, reason) = Network::best(NODES, random.draw())?;
        // What is done to data is the check `cluster`'s.
        let mut kinds: Vec<_> = Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::Wipe | Kind::DiskFull)).collect();
        if let Some(reason) = reason {
            eprintln!("SKIPPED: faults of the network, as there can be no namespaces: {reason}");
            kinds.retain(|kind| !kind.is_of_network());
        }
        let mut nodes = Nodes::new(network, &directory)?;
        nodes.form()?;
        let new = NewTopic::new(TOPIC).partitions(PARTITIONS).replication_factor(NODES as u16).config("min.insync.replicas", "2");
        nodes.create_topic(new)?;
        let shared = Shared::new(nodes.network.clone(), nodes.bootstrap(), TOPIC, PARTITIONS);
        let producers = Some(Clients::start(shared.clone(), (1, 0, 0), LOAD, random.draw()));
        let progress = Arc::<Progress>::default();
        let members = (1..=MEMBERS).map(|id| start_member(id, &shared, &progress, random.draw())).collect();
        let means = Means { kinds, small_disk: None, partitions: PARTITIONS, nodes: NODES };
        let life = Cluster { directory, producers, shared, members, progress, nodes, means, begun: Instant::now(), log: Vec::new() };
        life.wait_progress().and_then(|()| life.wait_healthy()).map_err(|what| life.explain(&what))?;
        Ok(life)
    }

    fn hit(&mut self, round: &mut Round<'_>, random: &mut Numbers) -> Result<(), String> {
        let mut fault = faults::draw(random, &self.means).faults.remove(0);
        let of_groups = Target::LeaderOf(partition_of(GROUP, corelane::limits::OFFSETS_PARTITIONS));
        let topic = match random.below(4) {
            0 => TOPIC,
            _ => {
                fault.target = of_groups;
                OFFSETS_TOPIC
            }
        };
        self.note(format!("{fault:?}"));
        if let Some(begun) = fault.begin(&mut self.nodes, topic, None)? {
            self.note(format!("{begun}"));
            round.count(fault.kind.name(), 1);
            round.count("coordinator_hit", u64::from(fault.target == of_groups));
            std::thread::sleep(fault.hold);
            self.note(format!("ends: {begun}"));
            begun.end(&mut self.nodes, None)?;
        }
        for node in self.nodes.network.nodes() {
            self.nodes.wait_ready(node)?;
        }
        self.nodes.expect_running()?;
        self.wait_progress()?;
        if random.below(3) > 0 {
            self.wait_healthy()?;
        }
        Ok(())
    }

    fn judge(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        self.wait_healthy()?;
        if let Some(producers) = self.producers.take() {
            producers.finish()?;
        }
        self.shared.judge()?;
        self.progress.settles.store(true, Ordering::Relaxed);
        let ends = self.ends()?;
        wait_until("the group has committed all that there is", PROGRESS_PATIENCE, || {
            self.expect_no_complaint()?;
            let positions = self.progress.positions();
            let behind = ends.iter().find(|(partition, end)| positions.get(partition).is_none_or(|position| position.committed < **end));
            behind.map_or(Ok(()), |(partition, end)| Err(format!("partition {partition} ends at {end}: {:?}", positions.get(partition))))
        })?;
        for node in self.nodes.network.nodes() {
            wait_until("a node tells of the group", PROGRESS_PATIENCE, || self.expect_told(&self.nodes.network.clients(node), &ends))?;
        }
        self.progress.ends.store(true, Ordering::Relaxed);
        for member in self.members.drain(..) {
            member.join().map_err(|_| "a member has panicked")?;
        }
        self.expect_no_complaint()?;
        round.count("commits", self.progress.commits.load(Ordering::Relaxed));
        round.count("commits_refused_by_rebalances", self.progress.refused.load(Ordering::Relaxed));
        round.count("partitions_taken", self.progress.taken.load(Ordering::Relaxed));
        round.count("acknowledged", self.shared.acknowledged());
        round.count("lives", 1);
        Ok(())
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn explain(&self, what: &str) -> String {
        let last = &self.log[self.log.len().saturating_sub(12)..];
        format!("{what}\nfaults:\n{}\n{}", last.join("\n"), self.nodes.last_words())
    }
}

impl Cluster {
    /// All replicas of the topic and of the groups' own are in sync, of which there are as many.
    fn wait_healthy(&self) -> Result<(), String> {
        for topic in [TOPIC, OFFSETS_TOPIC] {
            let healthy = || view::expect_healthy(&self.nodes.network, topic, NODES as usize).map(drop);
            wait_until("all replicas are in sync", HEALTH_PATIENCE, healthy)?;
        }
        Ok(())
    }

    fn wait_progress(&self) -> Result<(), String> {
        let commits = || self.progress.commits.load(Ordering::Relaxed);
        let due = commits() + PROGRESS;
        let enough = || if commits() >= due { Ok(()) } else { Err(format!("{} of {due} commits", commits())) };
        let after = wait_until("the group commits", PROGRESS_PATIENCE, enough)?;
        eprintln!("{PROGRESS} commits in {:.1} s", after.as_secs_f64());
        self.expect_no_complaint()
    }

    fn note(&mut self, what: String) {
        let line = format!("{:8.3} s {what}", self.begun.elapsed().as_secs_f64());
        eprintln!("{line}");
        self.log.push(line);
    }

    fn expect_no_complaint(&self) -> Result<(), String> {
        let complaints = [self.progress.complaints(), self.shared.complaints()].concat();
        match complaints.first() {
            Some(first) => Err(format!("{} errors, the first: {first}", complaints.len())),
            None => Ok(()),
        }
    }

    /// Where the partitions end.
    fn ends(&self) -> Result<BTreeMap<u32, Offset>, String> {
        self.shared.run(async |shared| {
            let client = shared.connect("ends").await?;
            let mut ends = BTreeMap::new();
            for partition in 0..PARTITIONS {
                let end = client.admin().offset(TOPIC, partition, OffsetSpec::Latest).await.map_err(|e| e.to_string())?;
                ends.insert(partition, end.0);
            }
            Ok(ends)
        })
    }

    /// What an administrator hears who asks at one node.
    fn expect_told(&self, address: &str, ends: &BTreeMap<u32, Offset>) -> Result<(), String> {
        let told = async |client: Client| {
            let admin = client.admin();
            let groups = admin.list_groups().await.map_err(|e| e.to_string())?;
            let described = admin.describe_group(GROUP).await.map_err(|e| e.to_string())?;
            let positions = admin.group_positions(GROUP).await.map_err(|e| e.to_string())?;
            Ok((groups, described, positions))
        };
        let (groups, described, positions) = clients::as_client(&self.nodes.network, address, told)?;
        let names: Vec<_> = groups.iter().map(|group| &*group.group).collect();
        let offsets: BTreeMap<u32, Offset> = positions.iter().filter_map(|p| Some((p.partition, p.offset?))).collect();
        match (&names[..], described.state, described.members.len() as u32) {
            ([GROUP], State::Stable, MEMBERS) if offsets == *ends => Ok(()),
            told => Err(format!("at {address}: {told:?}, {offsets:?} instead of {ends:?}")),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.progress.ends.store(true, Ordering::Relaxed);
    }
}

/// How far the group is in a partition.
#[derive(Clone, Copy, Default, Debug)]
struct Position {
    /// The highest one whose commit was answered.
    committed: Offset,
    /// Behind the last record that any member was given.
    given: Offset,
}

/// What the members have in common.
#[derive(Default)]
struct Progress {
    positions: Mutex<BTreeMap<u32, Position>>,
    complaints: Mutex<Vec<String>>,
    /// Answered.
    commits: AtomicU64,
    /// Refused, as the group had gone on.
    refused: AtomicU64,
    /// Partitions that members were given.
    taken: AtomicU64,
    /// Nobody leaves any more.
    settles: AtomicBool,
    ends: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress {
    fn complain(&self, text: String) {
        eprintln!("a member: {text}");
        lock(&self.complaints).push(text);
    }

    fn complaints(&self) -> Vec<String> {
        lock(&self.complaints).clone()
    }

    fn positions(&self) -> BTreeMap<u32, Position> {
        lock(&self.positions).clone()
    }

    /// A member is given records `first..next`; `expected` is what comes next for it, where it has read of the partition before.
    fn give(&self, partition: u32, first: Offset, next: Offset, expected: Option<Offset>) -> Result<(), String> {
        let mut positions = lock(&self.positions);
        let position = positions.entry(partition).or_default();
        let outcome = match expected {
            Some(expected) if first != expected => Err(format!("partition {partition}: offset {first} comes, {expected} is next")),
            None if first < position.committed => {
                Err(format!("partition {partition}: a member begins at offset {first}, and {} was committed", position.committed))
            }
            None if first > position.given => {
                Err(format!("partition {partition}: a member begins at offset {first}, and nobody was given {}", position.given))
            }
            _ => Ok(()),
        };
        position.given = position.given.max(next);
        outcome
    }

    fn committed(&self, offsets: &[(u32, Offset)]) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        let mut positions = lock(&self.positions);
        for (partition, offset) in offsets {
            let position = positions.entry(*partition).or_default();
            position.committed = position.committed.max(*offset);
        }
    }
}

/// The partitions that a member has, each with the offset that comes next where it has read there.
#[derive(Clone)]
struct Held(Arc<Mutex<BTreeMap<u32, Option<Offset>>>>, Arc<Progress>);

impl RebalanceListener for Held {
    fn assigned(&mut self, partitions: &[(String, Vec<u32>)]) {
        for partition in partitions.iter().flat_map(|(_, partitions)| partitions) {
            lock(&self.0).insert(*partition, None);
            self.1.taken.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn revoked(&mut self, partitions: &[(String, Vec<u32>)]) {
        for partition in partitions.iter().flat_map(|(_, partitions)| partitions) {
            lock(&self.0).remove(partition);
        }
    }
}

fn start_member(id: u32, shared: &Arc<Shared>, progress: &Arc<Progress>, seed: u64) -> JoinHandle<()> {
    let (shared, progress) = (shared.clone(), progress.clone());
    std::thread::spawn(move || {
        let outcome = shared.run({
            let progress = progress.clone();
            async move |shared| member(id, shared, progress, Numbers(seed)).await
        });
        if let Err(text) = outcome {
            progress.complain(format!("member {id} ends: {text}"));
        }
    })
}

async fn member(id: u32, shared: &Shared, progress: Arc<Progress>, mut random: Numbers) -> Result<(), String> {
    let client = shared.connect(&format!("member-{id}")).await?;
    while !progress.ends.load(Ordering::Relaxed) {
        let leaves_after = (id == MEMBERS).then(|| Duration::from_millis(STAY_MS + random.below(3 * STAY_MS)));
        stay(&client, &progress, leaves_after).await?;
        tokio::time::sleep(AWAY).await;
    }
    Ok(())
}

/// A member from when it joins to when it leaves.
async fn stay(client: &Client, progress: &Arc<Progress>, leaves_after: Option<Duration>) -> Result<(), String> {
    let joined = Instant::now();
    let leaves = || leaves_after.is_some_and(|after| joined.elapsed() >= after) && !progress.settles.load(Ordering::Relaxed);
    let held = Held(Arc::default(), progress.clone());
    let settings = client.group_consumer(GROUP).subscribe([TOPIC]).offset_reset(OffsetReset::Earliest).manual_commit();
    let settings = settings.session_timeout(SESSION).heartbeat_interval(Duration::from_millis(500));
    let settings = settings.strategies([AssignmentStrategy::CooperativeSticky]).on_rebalance(held.clone());
    let mut consumer = settings.build().map_err(|e| e.to_string())?;
    let mut commit_at = Instant::now();
    while !progress.ends.load(Ordering::Relaxed) && !leaves() {
        match tokio::time::timeout(Duration::from_millis(100), consumer.next_batch()).await {
            Ok(Ok(batch)) => take(&batch, &held)?,
            // It is taken out of the group, or the client gives up: either is what must not be.
            Ok(Err(GroupConsumeError::Group(error))) => return Err(error.to_string()),
            Ok(Err(GroupConsumeError::Partition(error))) => return Err(error.to_string()),
            Err(_) => {}
        }
        if commit_at.elapsed() >= COMMIT_EVERY {
            commit(&mut consumer, progress).await?;
            commit_at = Instant::now();
        }
    }
    consumer.leave().await;
    Ok(())
}

fn take(batch: &ConsumedBatch, held: &Held) -> Result<(), String> {
    let mut partitions = lock(&held.0);
    let Some(expected) = partitions.get_mut(&batch.partition) else {
        return Err(format!("records of partition {}, which it does not have", batch.partition));
    };
    let Some(first) = batch.records().next() else { return Ok(()) };
    let first = first.map_err(|e| e.to_string())?.offset;
    let next = batch.next_offset();
    held.1.give(batch.partition, first, next, expected.replace(next))
}

async fn commit(consumer: &mut GroupConsumer, progress: &Progress) -> Result<(), String> {
    let offsets: Vec<(u32, Offset)> = consumer.positions().into_iter().map(|(_, partition, offset)| (partition, offset)).collect();
    if offsets.is_empty() {
        return Ok(());
    }
    match consumer.commit().await {
        Ok(()) => progress.committed(&offsets),
        // The group has gone on: another one reads from the last commit on.
        Err(ClientError::Group { .. }) => drop(progress.refused.fetch_add(1, Ordering::Relaxed)),
        Err(error) => return Err(format!("a commit: {error}")),
    }
    Ok(())
}

/// Positions that go back, skip or do not follow are found.
pub fn finds_planted_mistakes() -> Result<(), String> {
    let progress = Progress::default();
    progress.give(0, 0, 10, None)?;
    progress.committed(&[(0, 8)]);
    progress.give(0, 10, 12, Some(10))?;
    progress.give(0, 8, 9, None)?;
    progress.give(0, 12, 20, None)?;
    for (what, planted) in [
        ("a position that went back", progress.give(0, 7, 8, None)),
        ("a record that nobody was given", progress.give(0, 21, 22, None)),
        ("a hole", progress.give(0, 23, 24, Some(22))),
        ("the same again", progress.give(0, 21, 22, Some(22))),
    ] {
        if planted.is_ok() {
            return Err(format!("{what} is not found"));
        }
    }
    Ok(())
}
