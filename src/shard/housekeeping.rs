//! What a shard does once a second: slow peers and gauges, and beside it idle flushes, rolls by age and retention.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::limits;
use crate::metrics::{Counter, Gauge};
use crate::shard::context::Context;
use crate::shard::deletion;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::store::now_ms;
use crate::shard::write_behind;

/// Retention is looked at so often, s.
const RETENTION_EVERY_S: u64 = 5;

/// The task. Ends when `stopping` is set.
pub async fn run(context: Rc<Context>, stopping: Rc<Cell<bool>>) {
    while !stopping.get() {
        glommio::timer::sleep(Duration::from_secs(1)).await;
        let store = &context.store;
        store.seconds.set(store.seconds.get() + 1);
        sweep_connections(&context);
        keep_reserve(&context).await;
        gauges(&context);
    }
}

/// The task of what waits for the disk: flushes of idle partitions, rolls by age, deletions. Deadlines of others don't wait for it. Ends as [`run`] does.
pub async fn run_retention(context: Rc<Context>, stopping: Rc<Cell<bool>>) {
    let mut round = 0_u64;
    while !stopping.get() {
        glommio::timer::sleep(Duration::from_secs(1)).await;
        write_behind::flush_idle(&context.store).await;
        round += 1;
        if round.is_multiple_of(RETENTION_EVERY_S) {
            for cell in context.store.partitions() {
                retain(&context, &cell).await;
            }
        }
    }
}

/// Takes the reserve again and notices that there is room, where the disk was full. One shard does it for all.
async fn keep_reserve(context: &Context) {
    let (reserve, partitions) = (context.store.reserve.clone(), context.view.borrow().partitions());
    if context.mesh.shard() == 0 && !reserve.is_whole(partitions) {
        glommio::executor().spawn_blocking(move || reserve.restore(partitions)).await;
    }
}

/// Closes connections whose frame is overdue, and those whose peer takes nothing of what waits for it.
fn sweep_connections(context: &Context) {
    let now = context.store.seconds.get();
    let patience = match context.store.budget.is_tail_pressed() {
        true => limits::ANSWER_DEADLINE_PRESSED_S,
        false => limits::ANSWER_DEADLINE_S,
    };
    for state in context.connections.borrow().values() {
        if !state.sender.is_closed() && state.sender.stalled() >= Duration::from_secs(patience) {
            context.metrics.add(Counter::SlowPeersClosed, 1);
            tracing::warn!(bytes = state.sender.queued_bytes(), "a connection is closed: its peer does not take what it asked for");
            state.sender.close();
        }
        if state.deadline.get() != 0 && state.deadline.get() < now && !state.sender.is_closed() {
            context.metrics.add(Counter::FramesRefused, 1);
            tracing::warn!("a connection is closed: its frame did not come in time");
            state.sender.close();
        }
    }
}

/// Rolls by age and deletes by size and age.
pub async fn retain(context: &Rc<Context>, cell: &Rc<PartitionCell>) {
    let store = &context.store;
    let settings = cell.settings.get();
    if cell.gone().is_some() {
        return;
    }
    // Where a segment begins is the leader's to say.
    if cell.role().leads() && cell.machine.borrow().is_overdue(now_ms(), &settings) {
        cell.enter().await;
        if cell.not_served().is_none()
            && let Err(error) = store.roll(cell).await
        {
            tracing::warn!(partition = %cell.id, %error, "the segment can't be rolled");
        }
        cell.leave();
    }
    cell.machine.borrow_mut().expire_producers(now_ms(), limits::PRODUCER_EXPIRATION_MS);
    // Where the log begins is the leader's to say: a follower that let go of more could not follow, or lead, what the leader still shows.
    if !cell.role().leads() {
        return;
    }
    let Some(start) = cell.machine.borrow().retention(now_ms(), &settings) else { return };
    if let Err(refusal) = deletion::raise_log_start(context, cell, start).await
        && cell.gone().is_none()
    {
        tracing::warn!(partition = %cell.id, %refusal, "retention");
    }
}

fn gauges(context: &Context) {
    let (store, metrics) = (&context.store, &context.metrics);
    let unflushed = store.budget.unflushed() as u64;
    metrics.set(Gauge::DiskFull, u64::from(context.store.reserve.is_full()));
    metrics.set(Gauge::MemoryUnflushed, unflushed);
    metrics.set(Gauge::MemoryTail, (store.budget.accounted().get() as u64).saturating_sub(unflushed));
    metrics.set(Gauge::MemoryCache, store.reader.used() as u64);
    metrics.set(Gauge::MemorySend, store.budget.answers().get() as u64);
    let (used, capacity) = store.ring.occupancy_bytes();
    metrics.set(Gauge::JournalUsed, used);
    metrics.set(Gauge::JournalCapacity, capacity);
    let total = |counter: Counter, value: u64| metrics.add(counter, value.saturating_sub(metrics.counter(counter)));
    total(Counter::DeviceBytes, store.disk.written.get());
    total(Counter::Syncs, store.disk.syncs.get());
}
