//! A shard's life: its thread starts, opens its partitions, serves, drains, ends.

use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bridge::{ShardEnd, ShardEvent};
use crate::cluster::CatalogueView;
use crate::limits::{self, BLOCK, JOURNAL_FILE, MAX_GROUP, MAX_JOURNAL};
use crate::log::paths;
use crate::log::recovery::PartitionImage;
use crate::metrics::{Counter, Gauge, ShardMetrics};
use crate::shard::budget::Budget;
use crate::shard::checkpoint::{self, Checkpoints};
use crate::shard::connection;
use crate::shard::context::{Context, NodeIdentity};
use crate::shard::disk::Disk;
use crate::shard::journal::{Journal, JournalIdentity};
use crate::shard::mesh::Mesh;
use crate::shard::net::adopt_listener;
use crate::shard::replication::{self, Lease, Pace};
use crate::shard::reserve::Reserve;
use crate::shard::ring::{JournalFile, Ring};
use crate::shard::store::Store;
use crate::shard::trace::Trace;
use crate::shard::verifier::{self, DamagedPartitions};
use crate::shard::{cleaner, groups, housekeeping, service, topics, write_behind};
use crate::types::Durability;

/// Journal files of a shard's ring.
const RING_FILES: u64 = 4;
/// Smallest journal file that may be asked for, bytes: header block and a group.
const LEAST_JOURNAL_FILE: u64 = (BLOCK + 2 * MAX_GROUP) as u64;
/// Smallest journal file otherwise, bytes.
const MIN_JOURNAL_FILE: u64 = 4 << 20;
/// Another journal file is tried again after this long.
const RING_RETRY: Duration = Duration::from_secs(1);
/// A drain waits no longer for answers that are still going out.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// What a shard is given. Everything may cross threads.
pub struct ShardParts {
    /// Which shard.
    pub shard: u32,
    /// The data directory.
    pub data: PathBuf,
    /// Through the page cache.
    pub buffered: bool,
    /// A trace for tests of crashes.
    pub trace: Option<Arc<Trace>>,
    /// Memory, bytes.
    pub memory: u64,
    /// Size of its journal's files, bytes, and their number: [`ring_size`].
    pub ring: (u64, usize),
    /// The broker's default.
    pub durability: Durability,
    /// Whether metadata asked for a topic that does not exist may create it.
    pub auto_create_topics: bool,
    /// What consumer groups are held to.
    pub groups: crate::group::Settings,
    /// The generation in force.
    pub generation: u64,
    /// Its salt.
    pub salt: u64,
    /// Partitions of this shard.
    pub partitions: Vec<PartitionImage>,
    /// Journal files for this shard.
    pub journals: Vec<JournalFile>,
    /// First id of a new journal file, and the step to the next.
    pub journal_ids: (u64, u64),
    /// The node.
    pub identity: Arc<NodeIdentity>,
    /// The listening socket.
    pub listener: std::net::TcpListener,
    /// The socket for other nodes' shards, of a node that is in a cluster.
    pub replication: Option<std::net::TcpListener>,
    /// Until when this node may acknowledge; one for all shards.
    pub lease: Lease,
    /// How fast what followers catch up with leaves this node; one for all shards.
    pub pace: Pace,
    /// How fast the node reads sealed segments again in the background, if at all; one for all shards.
    pub verify_pace: Option<Pace>,
    /// Where all shards note which partitions have a damaged segment.
    pub damaged: DamagedPartitions,
    /// The other shards.
    pub mesh: Mesh,
    /// The control plane.
    pub control: ShardEnd,
    /// The catalogue that `partitions` match.
    pub view: Arc<CatalogueView>,
    /// Space for a full disk.
    pub reserve: Arc<Reserve>,
    /// Counters.
    pub metrics: Arc<ShardMetrics>,
    /// Told when the shard accepts, or that it can't.
    pub ready: async_channel::Sender<Result<u32, String>>,
}

/// Size of a shard's journal files, bytes, and their number; `shards` share [`MAX_JOURNAL`]. `file`: files of that size instead, as few as there may be.
pub fn ring_size(memory: u64, shards: u32, file: Option<u64>) -> (u64, usize) {
    if let Some(size) = file {
        let size = size.clamp(LEAST_JOURNAL_FILE, JOURNAL_FILE).next_multiple_of(BLOCK as u64);
        return (size, RING_FILES as usize);
    }
    let most = MAX_JOURNAL / u64::from(shards);
    let all = Budget::new(memory as usize).journal_size(most);
    let file = (all / RING_FILES).clamp(MIN_JOURNAL_FILE, JOURNAL_FILE) >> 20 << 20;
    (file, (all / file).max(RING_FILES) as usize)
}

/// Runs a shard to its end. An error means that acknowledged data may be in doubt here: the process goes down and recovers.
pub async fn run(parts: ShardParts) -> Result<(), String> {
    let ready = parts.ready.clone();
    let shard = parts.shard;
    match open(parts).await {
        Ok(opened) => {
            let _ = ready.send(Ok(shard)).await;
            serve(opened).await
        }
        Err(error) => {
            let text = format!("shard {shard}: {error}");
            let _ = ready.send(Err(text.clone())).await;
            Err(text)
        }
    }
}

struct Opened {
    context: Rc<Context>,
    checkpoints: Rc<Checkpoints>,
    listener: glommio::net::TcpListener,
    replication: Option<glommio::net::TcpListener>,
}

async fn open(parts: ShardParts) -> io::Result<Opened> {
    let disk = Disk::new(parts.data, parts.buffered, parts.trace);
    disk.prepare(&paths::shard_probe(parts.shard)).await?;
    let budget = Budget::new(parts.memory as usize);
    parts.metrics.set(Gauge::MemoryBudget, parts.memory);
    let (file_size, files) = parts.ring;
    let usable: Vec<_> = parts.journals.into_iter().filter(|j| j.size == file_size).take(files).collect();
    let ring = Ring::open(disk.clone(), parts.identity.cluster, file_size, files, &usable, parts.journal_ids).await?;
    let identity = JournalIdentity { generation: parts.generation, salt: parts.salt, shard: parts.shard as u16 };
    let journal = Journal::new(identity, ring.clone(), budget.accounted().clone(), parts.metrics.clone());
    let store = Store::new(disk, parts.reserve, ring, journal, budget, parts.metrics.clone());
    let checkpoints = Rc::new(Checkpoints::new(parts.identity.cluster, parts.generation, parts.shard));
    let (durability, auto_create_topics) = (parts.durability, parts.auto_create_topics);
    let context = Context::new(
        parts.identity,
        store,
        parts.mesh,
        parts.control,
        parts.view.clone(),
        durability,
        auto_create_topics,
        parts.groups,
        parts.lease,
        parts.metrics,
    );
    context.replication.set_pace(parts.pace);
    context.verifier.set(parts.verify_pace, parts.damaged);
    for image in parts.partitions {
        let topic = parts.view.topic_by_id(&image.state.partition.topic).expect("recovery keeps partitions of the catalogue only").clone();
        topics::open_recovered(&context, &topic, image.state, image.remainder, &parts.view);
    }
    Ok(Opened { context, checkpoints, listener: adopt_listener(parts.listener), replication: parts.replication.map(adopt_listener) })
}

async fn serve(opened: Opened) -> Result<(), String> {
    let Opened { context, checkpoints, listener, replication } = opened;
    let store = context.store.clone();
    let stopping = Rc::new(Cell::new(false));
    let journal = spawn_journal(&context);
    groups::follow_catalogue(&context, &[]);
    topics::begin(&context);
    let mut tasks = vec![
        glommio::spawn_local(write_behind::run(store.clone())),
        glommio::spawn_local(checkpoint::run(store.clone(), checkpoints.clone(), stopping.clone())),
        glommio::spawn_local(housekeeping::run(context.clone(), stopping.clone())),
        glommio::spawn_local(housekeeping::run_retention(context.clone(), stopping.clone())),
        cleaner::spawn(&context, &stopping),
        verifier::spawn(&context, &stopping),
        glommio::spawn_local(service::serve_mesh(context.clone())),
        glommio::spawn_local(context.answers.clone().run()),
        glommio::spawn_local(accept(context.clone(), listener)),
        glommio::spawn_local(watch_stalls(context.clone())),
    ];
    tasks.extend(replication.map(|listener| glommio::spawn_local(replication::accept(context.clone(), listener))));
    tasks.push(glommio::spawn_local({
        let store = store.clone();
        async move {
            let mut has_made_space = false;
            while let Err(error) = store.ring.clone().run().await {
                // Without another file the ring goes on with those it has, until there is room again.
                store.note_disk_error(&error);
                has_made_space = !has_made_space && store.ring.is_blocked() && store.make_space(&error).await;
                if has_made_space {
                    continue;
                }
                glommio::timer::sleep(RING_RETRY).await;
            }
        }
    }));
    let outcome = {
        let events = act_on_events(&context);
        let failure = store.failure();
        futures_util::pin_mut!(events, failure);
        match futures_util::future::select(events, failure).await {
            futures_util::future::Either::Left(((), _)) => Ok(()),
            futures_util::future::Either::Right((what, _)) => Err(what),
        }
    };
    let outcome = match outcome {
        Ok(()) => drain(&context, &checkpoints, &stopping).await,
        failed => failed,
    };
    context.replication.stop();
    store.journal.stop();
    store.ring.stop();
    for task in tasks {
        task.cancel().await;
    }
    if outcome.is_ok() {
        journal.await;
    } else {
        journal.cancel().await;
    }
    outcome
}

fn spawn_journal(context: &Rc<Context>) -> glommio::Task<()> {
    let store = context.store.clone();
    glommio::spawn_local(async move {
        if let Err(error) = store.journal.clone().run().await {
            store.fail(format!("journal: {error}"));
        }
    })
}

/// Acts by what the control plane says, until it says to drain.
async fn act_on_events(context: &Rc<Context>) {
    loop {
        match context.control.next_event().await {
            ShardEvent::Catalogue { view, in_force } => {
                topics::apply(context, view).await;
                drop(in_force);
            }
            ShardEvent::Lease => context.replication.wake_all(),
            ShardEvent::Drain => return,
        }
    }
}

async fn accept(context: Rc<Context>, listener: glommio::net::TcpListener) {
    let mut number = 0;
    loop {
        match listener.accept().await {
            Ok(_) if context.connections.borrow().len() >= limits::MAX_CONNECTIONS => {
                context.metrics.add(Counter::ConnectionsRefused, 1);
            }
            Ok(stream) => {
                number += 1;
                context.metrics.add(Counter::ConnectionsAccepted, 1);
                glommio::spawn_local(connection::serve(context.clone(), stream, number)).detach();
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                glommio::timer::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Counts how often and how long tasks kept the executor from its timers.
async fn watch_stalls(context: Rc<Context>) {
    const TICK: Duration = Duration::from_millis(250);
    const LIMIT: Duration = Duration::from_millis(10);
    loop {
        let begun = Instant::now();
        glommio::timer::sleep(TICK).await;
        let late = begun.elapsed().saturating_sub(TICK);
        if late > LIMIT {
            context.metrics.add(Counter::Stalls, 1);
            context.metrics.add(Counter::StallNs, late.as_nanos() as u64);
        }
    }
}

/// Finishes what is in hand, flushes everything and takes a last checkpoint.
async fn drain(context: &Rc<Context>, checkpoints: &Checkpoints, stopping: &Cell<bool>) -> Result<(), String> {
    let store = &context.store;
    context.draining.set(true);
    stopping.set(true);
    for cell in store.partitions() {
        cell.committed.notify();
    }
    wait_for_all(store).await;
    context.groups.stop(context);
    let deadline = Instant::now() + DRAIN_TIME;
    while Instant::now() < deadline && context.connections.borrow().values().any(|c| c.sender.owes()) {
        context.answers.flush();
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
    let open: Vec<_> = context.connections.borrow().values().cloned().collect();
    open.iter().for_each(|c| c.sender.close());
    for cells in store.partitions().chunks(write_behind::FLUSHES) {
        write_behind::flush_all(store, cells.to_vec(), true).await;
    }
    checkpoints.take(store).await.map_err(|e| format!("last checkpoint: {e}"))?;
    wait_for_all(store).await;
    Ok(())
}

/// Until all that was added to the journal is durable.
async fn wait_for_all(store: &Store) {
    let newest = store.journal.cut();
    store.journal.wait_durable(newest).await;
}
