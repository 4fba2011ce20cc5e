//! The store's side of replication: what a replica takes from its leader, and what it says of itself. Which of it is to be done when is decided elsewhere.
//!
//! ```text
//! begin_epoch ------ "epoch E begins at O" is durable ----> set_role(Leader(E) or Follower(E))
//! truncate --------- the log ends earlier, and E is known: one journal entry; see `truncation`
//! append_replica --- batches as the leader stored them, through the same journal, memory and write-behind as any other ----> the end that this replica reports
//! read_for_follower  batches from the log, committed or not, with what a follower checks them by; see `follower_read`
//! ```
//!
//! What comes is checked whole before anything is changed ([`Partition::check_replica`](crate::partition::Partition::check_replica)): CRC, offsets, epochs, the segment, and the running hash, which covers everything
//! before it too. So a replica either has the leader's bytes up to its end, or it says at which offset it does not.
//!
//! One task at a time appends to a partition; a second one finds that its batches don't follow and is refused.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::batch::{BatchHeader, HEADER_LEN};
use crate::limits::{BLOCK, LARGE_APPEND};
use crate::log::journal::EntryKind;
use crate::partition::{Planned, ReplicaAppend, ReplicaRefusal};
use crate::request::{Code, Refusal};
use crate::shard::event::wait_any;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::pending::Completion;
use crate::shard::role::Role;
use crate::shard::store::{Store, now_ms};
use crate::types::{LeaderEpoch, Offset};

/// Who waits for an end looks at least so often whether it can still come.
const RECHECK: Duration = Duration::from_secs(1);

/// Why a replica did not do what it was told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaError {
    /// It does not fit the log.
    #[error(transparent)]
    Refused(#[from] ReplicaRefusal),
    /// The partition or the disk can't.
    #[error("{0}")]
    Store(Refusal),
}

impl From<Refusal> for ReplicaError {
    fn from(refusal: Refusal) -> ReplicaError {
        ReplicaError::Store(refusal)
    }
}

/// Who a batch comes from.
pub enum Origin {
    /// A client, or the broker itself; this one is answered.
    Client(Completion),
    /// The partition's leader: the batch is stored as it is.
    Leader,
}

impl Origin {
    /// Who waits for it.
    pub fn completion(self) -> Option<Completion> {
        match self {
            Origin::Client(done) => Some(done),
            Origin::Leader => None,
        }
    }

    /// The epoch that the batch is of.
    pub fn epoch(&self, cell: &PartitionCell, header: &BatchHeader) -> LeaderEpoch {
        match self {
            Origin::Client(_) => cell.machine.borrow().epoch(),
            Origin::Leader => header.leader_epoch,
        }
    }
}

impl Store {
    /// "`epoch` begins at `start`" is durable when this returns: of a leader that is about to begin its own (`start` is the log's end), or of a follower, which takes nothing from an older leader from
    /// then on. A follower's log may be shorter than `start`; where it is longer, it is to be cut first ([`Store::truncate`]). Not while this node leads: it would stamp batches with an epoch that nobody has given it.
    ///
    /// # Errors
    /// When the epoch is older than the present one or would begin within the log, or the partition is gone.
    pub async fn begin_epoch(&self, cell: &Rc<PartitionCell>, epoch: LeaderEpoch, start: Offset) -> Result<(), ReplicaError> {
        self.expect_replica(cell)?;
        cell.machine.borrow_mut().begin_epoch(epoch, start)?;
        let sequence = self.journal_epoch_start(cell);
        self.wait_durable_or_fail(cell, sequence).await
    }

    /// The present epoch, in which this node leads already, is durable when this returns.
    ///
    /// # Errors
    /// When the broker goes down.
    pub async fn confirm_epoch(&self, cell: &Rc<PartitionCell>) -> Result<(), ReplicaError> {
        let sequence = self.journal_epoch_start(cell);
        self.wait_durable_or_fail(cell, sequence).await
    }

    fn journal_epoch_start(&self, cell: &Rc<PartitionCell>) -> u64 {
        cell.epoch_journaled.set(true);
        let (_, start) = cell.machine.borrow().epoch_start();
        self.add_state_entry(cell, EntryKind::Epoch, 0, 0, start)
    }

    /// Gives the partition its role. The epoch of a leader or follower was begun before ([`Store::begin_epoch`], [`Store::truncate`]).
    ///
    /// # Errors
    /// When another epoch is the present one.
    pub fn set_role(&self, cell: &PartitionCell, role: Role) -> Result<(), ReplicaError> {
        let expected = cell.machine.borrow().epoch();
        match role {
            Role::Leader(actual) | Role::Follower(actual) if actual != expected || !cell.epoch_journaled.get() => {
                Err(ReplicaRefusal::Epoch { expected, actual }.into())
            }
            _ => {
                cell.set_role(role);
                Ok(())
            }
        }
    }

    /// Appends what a leader sends, and returns the end that this replica has reached (at the topic's level; of a durable topic it is synced) once that covers all of it. `high_watermark` is the leader's.
    ///
    /// # Errors
    /// When it does not fit: then nothing has changed. When the disk is full or the partition goes: then the log may have some of it.
    pub async fn append_replica(
        self: &Rc<Store>,
        cell: &Rc<PartitionCell>,
        append: &ReplicaAppend<'_>,
        high_watermark: Offset,
    ) -> Result<Offset, ReplicaError> {
        let headers = self.check_replica(cell, append).await?;
        let end = self.place_replica(cell, append, &headers, high_watermark).await?;
        self.wait_reached(cell, end).await
    }

    /// Checks all that a leader sends against the log as it is; the headers of its batches. Nothing has changed when this returns, but that a segment which was opened here without a record has given way
    /// where the leader goes on in the one before it.
    ///
    /// # Errors
    /// The first thing that does not fit, or the disk fails.
    pub async fn check_replica(
        self: &Rc<Store>,
        cell: &Rc<PartitionCell>,
        append: &ReplicaAppend<'_>,
    ) -> Result<Vec<BatchHeader>, ReplicaError> {
        self.expect_following(cell, append.epoch)?;
        let checked = cell.machine.borrow().check_replica(append);
        if matches!(checked, Err(ReplicaRefusal::Segment { .. })) && self.gives_way(cell, append.segment) {
            self.reopen_segment(cell).await?;
            return Ok(cell.machine.borrow().check_replica(append)?);
        }
        Ok(checked?)
    }

    /// Appends what [`Store::check_replica`] has let pass, with the headers that it gave, and returns the log's end once everything has its place: the next append may come while the device is at work on
    /// this one. [`Store::wait_reached`] waits for that.
    ///
    /// # Errors
    /// As [`Store::append_replica`].
    pub async fn place_replica(
        self: &Rc<Store>,
        cell: &Rc<PartitionCell>,
        append: &ReplicaAppend<'_>,
        headers: &[BatchHeader],
        high_watermark: Offset,
    ) -> Result<Offset, ReplicaError> {
        let mut rest = append.batches;
        for header in headers {
            let (batch, behind) = rest.split_at(header.total_len());
            rest = behind;
            while !self.try_place(cell, append, header, batch)? {
                self.wait_for_memory().await;
                cell.enter().await;
                let prepared = self.prepare_replica(cell, append, header).await;
                cell.leave();
                prepared?;
            }
        }
        cell.set_watermark(high_watermark);
        Ok(cell.machine.borrow().ladder().appended())
    }

    /// Waits until this replica has reached `end`; the end that it has reached.
    ///
    /// # Errors
    /// When that can't come any more: the partition is gone or was cut, or the broker goes down.
    pub async fn wait_reached(&self, cell: &Rc<PartitionCell>, end: Offset) -> Result<Offset, ReplicaError> {
        loop {
            let tickets = [(&cell.reached, cell.reached.ticket()), (&cell.committed, cell.committed.ticket())];
            if cell.level_end() >= end {
                return Ok(cell.level_end());
            }
            if let Some(refusal) = cell.gone() {
                return Err(refusal.into());
            }
            let log_end = cell.machine.borrow().ladder().appended();
            if log_end < end {
                return Err(ReplicaRefusal::Offset { expected: log_end, actual: end }.into());
            }
            self.expect_running(cell)?;
            wait_any(&tickets, Instant::now() + RECHECK).await;
        }
    }

    pub(super) fn expect_running(&self, cell: &PartitionCell) -> Result<(), ReplicaError> {
        match self.is_failed() {
            true => Err(cell.refusal(Code::Storage, "the broker is going down").into()),
            false => Ok(()),
        }
    }

    /// Waits for a group whose entry nobody else waits for.
    pub(super) async fn wait_durable_or_fail(&self, cell: &PartitionCell, sequence: u64) -> Result<(), ReplicaError> {
        let durable = self.journal.wait_durable(sequence);
        let failed = self.failure();
        futures_util::pin_mut!(durable, failed);
        match futures_util::future::select(durable, failed).await {
            futures_util::future::Either::Left(((), _)) => Ok(()),
            futures_util::future::Either::Right(_) => Err(cell.refusal(Code::Storage, "the broker is going down").into()),
        }
    }

    /// Refuses what only a replica does that does not lead.
    pub(super) fn expect_replica(&self, cell: &PartitionCell) -> Result<(), ReplicaError> {
        if let Some(refusal) = cell.gone() {
            return Err(refusal.into());
        }
        match cell.role().leads() {
            true => Err(cell.refusal(Code::InvalidRequest, "this broker leads it: it takes no other leader's word").into()),
            false => Ok(()),
        }
    }

    /// Refuses what comes from another leader than the one that the partition follows.
    pub(super) fn expect_following(&self, cell: &PartitionCell, epoch: LeaderEpoch) -> Result<(), ReplicaError> {
        self.expect_replica(cell)?;
        match cell.role() {
            Role::Follower(expected) if expected == epoch => Ok(()),
            _ => Err(ReplicaRefusal::Epoch { expected: cell.machine.borrow().epoch(), actual: epoch }.into()),
        }
    }

    /// Whether the open segment has no record, and the one before it is `segment`.
    fn gives_way(&self, cell: &PartitionCell, segment: Offset) -> bool {
        let machine = cell.machine.borrow();
        let is_empty = machine.active().is_some_and(|active| active.base_offset == active.end_offset);
        is_empty && machine.segments().iter().rev().nth(1).is_some_and(|before| before.base_offset == segment && !before.is_rewritten())
    }

    /// Places one checked batch if that can be done at once.
    fn try_place(
        self: &Rc<Store>,
        cell: &Rc<PartitionCell>,
        append: &ReplicaAppend<'_>,
        header: &BatchHeader,
        batch: &[u8],
    ) -> Result<bool, ReplicaError> {
        // All of this may have changed while there was no room.
        self.expect_following(cell, append.epoch)?;
        let log_end = cell.machine.borrow().ladder().appended();
        if header.base_offset != log_end {
            return Err(ReplicaRefusal::Offset { expected: log_end, actual: header.base_offset }.into());
        }
        let planned = cell.machine.borrow().plan_replica(header, append.segment)?;
        let Planned::Append(plan) = planned else { return Ok(false) };
        let has_blocks = cell.active_files().is_some_and(|files| files.has_room(plan.position + plan.len as u64));
        if cell.busy.get() || !has_blocks || !self.has_room() {
            return Ok(false);
        }
        let mut stored = [0; HEADER_LEN];
        stored.copy_from_slice(&batch[..HEADER_LEN]);
        match batch.len() < LARGE_APPEND {
            true => self.place(cell, header, batch, (&plan, &stored), now_ms(), Origin::Leader),
            false => {
                let large = self.large_batch(batch, plan.position);
                self.place_large(cell, header, large, (&plan, &stored), now_ms(), Origin::Leader);
            }
        }
        Ok(true)
    }

    /// Opens, rolls or allocates what the batch needs. A full disk is tried all the same: what the leader has acknowledged is to get here if it can.
    async fn prepare_replica(
        self: &Rc<Store>,
        cell: &Rc<PartitionCell>,
        append: &ReplicaAppend<'_>,
        header: &BatchHeader,
    ) -> Result<(), ReplicaError> {
        self.expect_following(cell, append.epoch)?;
        self.open_active(cell).await.map_err(|error| self.disk_refusal(cell, &error))?;
        let planned = cell.machine.borrow().plan_replica(header, append.segment)?;
        let position = match planned {
            Planned::Append(plan) => plan.position,
            _ => {
                self.roll(cell).await.map_err(|error| self.disk_refusal(cell, &error))?;
                // Closed meanwhile: then nothing was opened.
                self.expect_following(cell, append.epoch)?;
                BLOCK as u64
            }
        };
        let end = position + header.total_len() as u64;
        let files = cell.active_files().expect("opened above");
        if !files.has_room(end) {
            files.allocate(end).await.map_err(|error| self.disk_refusal(cell, &error))?;
        }
        Ok(())
    }
}
