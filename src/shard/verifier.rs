//! Reads sealed segments again, in the background or because somebody asks, to see whether they are as they were written.
//!
//! ```text
//! look: which segments are due ──> one after the other, at the node's rate (--verify-rate) ──> header, CRC of each batch, running hash
//! `cluster verify --read`      ──> at once, as fast as it goes below live traffic         ──┘        │
//!                                                           damaged: said, counted, noted ──> the partition's task has it mended
//! ```
//! Reads go past the cache, in a task queue with few shares. A segment that is deleted or rewritten meanwhile is no damage. Where nothing is due nothing runs but the look, once a minute, which takes
//! a few nanoseconds for a partition without a sealed segment.
//!
//! Not here: when what is due ([`Verification`](crate::log::verification::Verification)), how it is mended ([`replication`](crate::shard::replication)).

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use glommio::{Latency, Shares, TaskQueueHandle};

use crate::limits::{BLOCK, VERIFY_BYTES_PER_S, VERIFY_LOOK_S};
use crate::log::damage::{Damage, DamageKind};
use crate::log::file_header::{self, SegmentHeader};
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::log::segment_check::SegmentCheck;
use crate::metrics::{Counter, Gauge};
use crate::shard::context::Context;
use crate::shard::event::Event;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::pieces::Pieces;
use crate::shard::replication::Pace;
use crate::types::TopicPartition;

/// Shares of the queue; the others have 1000.
const SHARES: usize = 100;

/// Partitions of a node that have a damaged segment, all shards together. Clones are the same one.
#[derive(Clone, Default, Debug)]
pub struct DamagedPartitions(Arc<Mutex<BTreeSet<TopicPartition>>>);

impl DamagedPartitions {
    fn tell(&self, partition: TopicPartition, is_damaged: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if is_damaged {
            all.insert(partition)
        } else {
            all.remove(&partition)
        };
    }

    fn has(&self, partition: &TopicPartition) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(partition)
    }

    /// All of them, in order.
    pub fn all(&self) -> Vec<TopicPartition> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// What a shard is told of verification.
#[derive(Default)]
pub struct Verifier {
    /// `None`: nothing is read in the background.
    pace: OnceCell<Option<Pace>>,
    damaged: OnceCell<DamagedPartitions>,
    /// Partitions of which somebody wants to know.
    asked: RefCell<VecDeque<TopicPartition>>,
    wake: Event,
}

impl Verifier {
    /// How fast the node reads in the background, if at all, and where it notes what it finds; the first word counts.
    pub fn set(&self, pace: Option<Pace>, damaged: DamagedPartitions) {
        let _ = (self.pace.set(pace), self.damaged.set(damaged));
    }

    fn pace(&self) -> Option<&Pace> {
        self.pace.get_or_init(|| Some(Pace::of(VERIFY_BYTES_PER_S))).as_ref()
    }

    /// Partitions of the node that have a damaged segment.
    pub fn damaged(&self) -> &DamagedPartitions {
        self.damaged.get_or_init(DamagedPartitions::default)
    }

    /// All sealed segments of a partition are to be read now.
    pub fn ask(&self, context: &Context, cell: &PartitionCell) {
        look_at(context, cell);
        cell.verification.borrow_mut().ask();
        self.asked.borrow_mut().push_back(cell.id);
        self.wake.notify();
    }

    /// Segments of a partition that could not be read are to be read whole now.
    pub fn read_suspects(&self, partition: TopicPartition) {
        self.asked.borrow_mut().push_back(partition);
        self.wake.notify();
    }

    /// What is known of a partition changed: the node and the partition's task hear of it.
    fn tell(&self, context: &Context, cell: &PartitionCell) {
        self.damaged().tell(cell.id, is_damaged(cell));
        context.replication.look_again(&cell.id);
    }
}

/// Starts the task. It ends when `stopping` is set, at the next piece.
pub fn spawn(context: &Rc<Context>, stopping: &Rc<Cell<bool>>) -> glommio::Task<()> {
    let queue = glommio::executor().create_task_queue(Shares::Static(SHARES), Latency::NotImportant, "verifier");
    let task = run(context.clone(), stopping.clone(), queue);
    glommio::spawn_local_into(task, queue).expect("the queue was made just now")
}

async fn run(context: Rc<Context>, stopping: Rc<Cell<bool>>, queue: TaskQueueHandle) {
    let every = Duration::from_secs(VERIFY_LOOK_S);
    let mut next_look = Instant::now() + every;
    let mut due = VecDeque::new();
    while !stopping.get() {
        let verifier = &context.verifier;
        let ticket = verifier.wake.ticket();
        let asked = verifier.asked.borrow_mut().pop_front();
        if let Some(cell) = asked.and_then(|id| context.store.partition(&id)) {
            read_due(&context, &cell, queue, true).await;
        } else if let Some(cell) = due.pop_front().and_then(|id| context.store.partition(&id)) {
            if read_due(&context, &cell, queue, false).await {
                due.push_front(cell.id);
            }
        } else if asked.is_none() && due.is_empty() && !verifier.wake.wait_until(ticket, next_look).await {
            next_look = Instant::now() + every;
            look(&context, &mut due).await;
        }
    }
}

/// Which partitions have segments that are due.
async fn look(context: &Rc<Context>, due: &mut VecDeque<TopicPartition>) {
    for cell in context.store.partitions() {
        look_at(context, &cell);
        if is_damaged(&cell) || context.verifier.damaged().has(&cell.id) {
            context.verifier.tell(context, &cell);
        }
        let is_due = cell.verification.borrow().next(context.store.seconds.get(), false).is_some();
        if is_due && cell.gone().is_none() && context.verifier.pace().is_some() {
            due.push_back(cell.id);
        }
        glommio::yield_if_needed().await;
    }
    count_damaged(context);
    // Those that are gone are damaged no more.
    for id in context.verifier.damaged().all() {
        if context.is_mine(&id) && context.store.partition(&id).is_none() {
            context.verifier.damaged().tell(id, false);
        }
    }
}

/// Whether a segment of it is damaged, or all of it is set aside.
fn is_damaged(cell: &PartitionCell) -> bool {
    cell.is_damaged() || (cell.gone().is_none() && cell.verification.borrow().is_damaged())
}

fn look_at(context: &Context, cell: &PartitionCell) {
    let machine = cell.machine.borrow();
    let (flushed, durable_end) = (machine.flushed(), cell.durable_end());
    let is_on_disk = |info: &&SegmentInfo| match info.adopted {
        // Its file has its name by then.
        true => durable_end >= info.end_offset,
        false => (info.base_offset, info.valid_end) <= flushed,
    };
    let sealed = machine.segments().iter().filter(|info| info.sealed && info.end_offset > info.base_offset).filter(is_on_disk);
    cell.verification.borrow_mut().look(sealed, context.store.seconds.get());
}

/// Reads segments of a partition: all that are asked for, or the first that is due. Whether more may be.
async fn read_due(context: &Rc<Context>, cell: &Rc<PartitionCell>, queue: TaskQueueHandle, asked: bool) -> bool {
    loop {
        let now = context.store.seconds.get();
        let next = cell.verification.borrow().next(now, asked);
        let Some(base_offset) = next else { return false };
        let found = cell.machine.borrow().segments().iter().find(|info| info.base_offset == base_offset).copied();
        let found = found.filter(|_| cell.gone().is_none());
        let outcome = match &found {
            Some(info) => read(context, cell, info, queue, asked).await,
            None => Outcome::PassedOver,
        };
        match (outcome, found) {
            (Outcome::Read(damage), Some(info)) => note(context, cell, &info, damage),
            _ => cell.verification.borrow_mut().handle_passed_over(base_offset, now),
        }
        if !asked {
            return true;
        }
    }
}

enum Outcome {
    /// It was read, and that was wrong with it.
    Read(Option<Damage>),
    /// It is not the log's any more, or can't be opened for a reason that is none of its own.
    PassedOver,
}

fn note(context: &Rc<Context>, cell: &Rc<PartitionCell>, info: &SegmentInfo, damage: Option<Damage>) {
    context.metrics.add(Counter::SegmentsVerified, 1);
    context.metrics.add(Counter::VerifiedBytes, info.batch_bytes());
    let words = damage.as_ref().map(ToString::to_string);
    let is_news = cell.verification.borrow_mut().handle_read(info, damage, context.store.seconds.get());
    if !is_news {
        return;
    }
    match words {
        Some(damage) => tracing::error!(partition = %cell.id, segment = info.base_offset, damage, "a sealed segment is damaged"),
        None => tracing::info!(partition = %cell.id, segment = info.base_offset, "a segment that was damaged is sound again"),
    }
    context.verifier.tell(context, cell);
    count_damaged(context);
}

fn count_damaged(context: &Context) {
    let count = |cell: &Rc<PartitionCell>| cell.verification.borrow().damaged_count() as u64;
    context.metrics.set(Gauge::SegmentsDamaged, context.store.partitions().iter().map(count).sum());
}

/// A segment was found damaged by somebody who read it for another reason: `detail` says how.
pub fn note_damage(context: &Rc<Context>, cell: &Rc<PartitionCell>, info: &SegmentInfo, position: u64, detail: impl std::fmt::Display) {
    // What was deleted or replaced while it was read is no damage.
    if cell.gone().is_some() || !cell.machine.borrow().segments().iter().any(|other| is_same(other, info)) {
        return;
    }
    look_at(context, cell);
    note(context, cell, info, Some(Damage::new(info.path(cell.id), position, DamageKind::Batch, detail)));
}

/// A segment was written anew, and checked.
pub fn note_sound(context: &Rc<Context>, cell: &Rc<PartitionCell>, info: &SegmentInfo) {
    note(context, cell, info, None);
}

async fn read(context: &Rc<Context>, cell: &Rc<PartitionCell>, info: &SegmentInfo, queue: TaskQueueHandle, asked: bool) -> Outcome {
    let read = read_whole(context, cell, info, queue, asked).await;
    // What was deleted or replaced while it was read is no damage.
    let is_there = cell.gone().is_none() && cell.machine.borrow().segments().iter().any(|other| is_same(other, info));
    match read {
        _ if !is_there => Outcome::PassedOver,
        Ok(()) => Outcome::Read(None),
        Err(Fault::Damaged(damage)) => Outcome::Read(Some(damage)),
        Err(Fault::Unopened(error)) => {
            tracing::warn!(partition = %cell.id, segment = info.base_offset, %error, "a segment can't be opened to be verified");
            Outcome::PassedOver
        }
    }
}

/// Whether it is the same file with the same batches.
pub(super) fn is_same(one: &SegmentInfo, other: &SegmentInfo) -> bool {
    let identity = |info: &SegmentInfo| (info.base_offset, info.rewrite_generation, info.valid_end, info.running_hash, info.sealed);
    identity(one) == identity(other)
}

enum Fault {
    Damaged(Damage),
    Unopened(io::Error),
}

async fn read_whole(
    context: &Rc<Context>,
    cell: &Rc<PartitionCell>,
    info: &SegmentInfo,
    queue: TaskQueueHandle,
    asked: bool,
) -> Result<(), Fault> {
    let path = info.path(cell.id);
    let damaged = |position: u64, kind, detail: String| Fault::Damaged(Damage::new(path.clone(), position, kind, detail));
    let file = match context.store.disk.open(&path).await {
        Ok(file) => Rc::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged(0, DamageKind::Missing, "the file is gone".into())),
        Err(error) => return Err(Fault::Unopened(error)),
    };
    let header = file.read(0, BLOCK).await.map_err(|error| damaged(0, DamageKind::Header, error.to_string()))?;
    match file_header::decode::<SegmentHeader>(&header) {
        Ok(found) if found == info.header(cell.id) => {}
        Ok(found) => return Err(damaged(0, DamageKind::Header, format!("it is {found:?}, expected {:?}", info.header(cell.id)))),
        Err(error) => return Err(damaged(0, DamageKind::Header, error.to_string())),
    }
    let mut check = SegmentCheck::new(info.base_offset);
    let mut pieces = Pieces::of(file, FIRST_POSITION, info.valid_end, queue);
    loop {
        let at = pieces.position();
        let piece = pieces.next().await.map_err(|error| damaged(at, DamageKind::Batch, error.to_string()))?;
        let Some((bytes, range)) = piece else { break };
        context.metrics.add(Counter::DiskReadBytes, bytes.len() as u64);
        let len = range.len();
        check.take(&bytes[range]).map_err(|fault| damaged(check_position(&fault, at), DamageKind::Batch, fault.to_string()))?;
        drop(bytes);
        wait(context, len, asked).await;
        glommio::yield_if_needed().await;
    }
    let word = cell.machine.borrow().word(info, info.base_offset);
    check.finish(&word).map(drop).map_err(|fault| damaged(info.valid_end, DamageKind::RunningHash, fault.to_string()))
}

/// Where the batch begins that does not check, or the piece in which something is wrong.
fn check_position(fault: &crate::log::segment_check::SegmentFault, piece: u64) -> u64 {
    match fault {
        crate::log::segment_check::SegmentFault::Batch { position, .. } => *position,
        _ => piece,
    }
}

/// Keeps the rate in the background. Who asks does not wait for a segment that is read slowly: it goes on as fast as it can then.
async fn wait(context: &Rc<Context>, bytes: usize, asked: bool) {
    let verifier = &context.verifier;
    let Some(pace) = verifier.pace().filter(|_| !asked) else { return };
    let ticket = verifier.wake.ticket();
    let wait = pace.take(bytes);
    if !wait.is_zero() && verifier.asked.borrow().is_empty() {
        verifier.wake.wait_until(ticket, Instant::now() + wait).await;
    }
}
