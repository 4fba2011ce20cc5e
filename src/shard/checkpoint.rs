//! Makes the shard's state durable, and so lets old journal files be used again.
//!
//! A checkpoint is the state after one group *S*: the open group is closed at that moment, so nothing later can be in *S*. It is written only
//! when *S* is durable and everything that *S* refers to outside of the journal (large and adopted appends) is on disk too. Two slots are written in
//! turn; the journal is kept back to the older one, so damage to the newer slot costs nothing.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::limits::{BLOCK, INSTALLED_PER_CHECKPOINT};
use crate::log::checkpoint::{self, CheckpointBody};
use crate::log::file_header::CheckpointHeader;
use crate::log::journal::EntryKind;
use crate::log::paths::{self, Slot};
use crate::metrics::{Counter, Gauge};
use crate::shard::event::Event;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::ring::filled;
use crate::shard::store::Store;
use crate::shard::write_behind::{self, FLUSHES};

/// Pause before partitions are looked at again whose large appends are under way.
const RECHECK: Duration = Duration::from_millis(1);

/// Writes the checkpoints of one shard.
pub struct Checkpoints {
    cluster: [u8; 16],
    generation: u64,
    shard: u32,
    /// The slot that is written next; the other one holds the newest checkpoint.
    next: Cell<Slot>,
    /// For the slot written last and the one before: first group still needed.
    needed: Cell<(u64, u64)>,
    /// The second slot's file is there.
    created: Cell<bool>,
    /// Its name is durable.
    named: Cell<bool>,
    /// One is being taken: two at a time would write the same slot.
    is_taking: Cell<bool>,
    taken: Event,
}

impl Checkpoints {
    /// For a shard whose first checkpoint (slot a, sequence 0) was written when the store was opened.
    pub fn new(cluster: [u8; 16], generation: u64, shard: u32) -> Checkpoints {
        Checkpoints {
            cluster,
            generation,
            shard,
            next: Cell::new(Slot::B),
            needed: Cell::new((1, 1)),
            created: Cell::new(false),
            named: Cell::new(false),
            is_taking: Cell::new(false),
            taken: Event::default(),
        }
    }

    /// Takes a checkpoint of the store as it is now, after the one that is being taken, if there is one: a drain may come in the middle of it.
    pub async fn take(&self, store: &Rc<Store>) -> io::Result<()> {
        loop {
            let ticket = self.taken.ticket();
            if !self.is_taking.replace(true) {
                break;
            }
            self.taken.wait(ticket).await;
        }
        let result = self.take_alone(store).await;
        self.is_taking.set(false);
        self.taken.notify();
        result
    }

    /// Whether journal files are kept for the older slot alone: one more checkpoint lets them go.
    fn another_releases(&self, store: &Store) -> bool {
        store.ring.would_release(self.needed.get().0)
    }

    async fn take_alone(&self, store: &Rc<Store>) -> io::Result<()> {
        let sequence = store.journal.cut();
        let cells = store.partitions();
        let body = CheckpointBody {
            sequence,
            replay_from: cells.iter().filter_map(|c| c.oldest_unflushed()).min().unwrap_or(sequence + 1).min(sequence + 1),
            partitions: cells.iter().map(|c| c.machine.borrow().state()).collect(),
        };
        store.journal.wait_durable(sequence).await;
        wait_for_appends(store, &cells, sequence).await;
        let header = CheckpointHeader {
            cluster: self.cluster,
            generation: self.generation,
            sequence: body.sequence,
            shard: self.shard,
            body_crc: 0,
            body_len: 0,
        };
        let bytes = checkpoint::encode(&header, &body);
        if let Err(error) = self.write(store, &bytes).await {
            if !store.make_space(&error).await {
                return Err(error);
            }
            self.write(store, &bytes).await?;
        }
        let (newest, _) = self.needed.get();
        self.needed.set((body.replay_from, newest));
        store.ring.release_before(body.replay_from.min(newest));
        store.metrics.add(Counter::Checkpoints, 1);
        store.mark("checkpoint");
        if let Some(cell) = cells.first() {
            store.add_state_entry(cell, EntryKind::Checkpoint, 0, 0, body.sequence as i64);
        }
        Ok(())
    }

    async fn write(&self, store: &Store, bytes: &[u8]) -> io::Result<()> {
        let slot = self.next.get();
        let path = paths::checkpoint(self.generation, self.shard, slot);
        let file = if slot == Slot::A || self.created.get() {
            store.disk.open(&path).await?
        } else {
            let file = store.disk.create(&path).await?;
            // From here on it is there, whatever fails below: the next attempt opens it.
            self.created.set(true);
            file
        };
        file.allocate((bytes.len() as u64).next_multiple_of(BLOCK as u64)).await?;
        file.write(filled(bytes), 0).await?;
        file.sync().await?;
        if slot == Slot::B && !self.named.get() {
            store.disk.sync_dir(paths::CHECKPOINT_DIR).await?;
            self.named.set(true);
        }
        file.close().await?;
        self.next.set(slot.other());
        Ok(())
    }
}

/// Waits until no append of a group up to `sequence` is in flight.
async fn wait_for_appends(store: &Store, cells: &[Rc<PartitionCell>], sequence: u64) {
    for cell in cells {
        loop {
            let ticket = store.journal.progress().ticket();
            if cell.oldest_in_flight().is_none_or(|oldest| oldest > sequence) {
                break;
            }
            let soon = std::time::Instant::now() + RECHECK;
            store.journal.progress().wait_until(ticket, soon).await;
        }
    }
}

/// The task that keeps journal files coming back: whenever a file is full, what it alone holds is flushed or copied forward, and a checkpoint is taken.
pub async fn run(store: Rc<Store>, checkpoints: Rc<Checkpoints>, stopping: Rc<Cell<bool>>) {
    let mut reclaimed = 0;
    while !stopping.get() {
        let ticket = store.ring.full().ticket();
        let is_due = |newest: &u64| *newest > reclaimed || (!store.journal.has_room() && checkpoints.another_releases(&store));
        if store.installed_bytes.get() >= INSTALLED_PER_CHECKPOINT {
            store.installed_bytes.set(0);
            if let Err(error) = checkpoints.take(&store).await {
                tracing::error!(%error, "no checkpoint could be written");
            }
            continue;
        }
        let Some(target) = store.ring.newest_used_sequence().filter(is_due) else {
            store.ring.full().wait(ticket).await;
            continue;
        };
        reclaim(&store, target).await;
        if let Err(error) = checkpoints.take(&store).await {
            // The journal stays as it is; the next file that fills up tries again.
            tracing::error!(%error, "no checkpoint could be written");
            glommio::timer::sleep(Duration::from_millis(100)).await;
            continue;
        }
        reclaimed = target;
        let (used, capacity) = store.ring.occupancy_bytes();
        store.metrics.set(Gauge::JournalUsed, used);
        store.metrics.set(Gauge::JournalCapacity, capacity);
        store.mark("lap");
    }
}

/// Makes groups up to `target` unneeded for the bytes of any partition.
async fn reclaim(store: &Rc<Store>, target: u64) {
    store.journal.wait_durable(target).await;
    let behind = |cell: &Rc<PartitionCell>| cell.is_flushed() && cell.oldest_unflushed().is_some_and(|oldest| oldest <= target);
    let mut cells: Vec<_> = store.partitions().into_iter().filter(behind).collect();
    for some in cells.chunks(FLUSHES) {
        write_behind::flush_all(store, some.to_vec(), false).await;
    }
    cells.retain(behind);
    // What is left are unfinished blocks: of a busy partition they are copied forward, a quiet one is flushed whole.
    let now = store.seconds.get();
    let quiet: Vec<_> = cells.iter().filter(|c| now.saturating_sub(c.last_append.get()) >= 2).cloned().collect();
    for some in quiet.chunks(FLUSHES) {
        write_behind::flush_all(store, some.to_vec(), true).await;
    }
    cells.retain(behind);
    while !cells.is_empty() {
        for cell in cells.iter().take_while(|_| store.journal.has_carry_room()) {
            cell.enter_flush().await;
            if behind(cell) {
                write_behind::carry(store, cell);
            }
            cell.leave_flush();
        }
        cells.retain(behind);
        if cells.is_empty() {
            return;
        }
        // Appends in flight have finished these blocks, or there is no room for copies: once durable, they can be flushed.
        store.journal.wait_durable(store.journal.cut()).await;
        let padded = !store.journal.has_carry_room();
        for some in cells.chunks(FLUSHES) {
            write_behind::flush_all(store, some.to_vec(), padded).await;
        }
        cells.retain(behind);
        glommio::timer::sleep(RECHECK).await;
    }
}
