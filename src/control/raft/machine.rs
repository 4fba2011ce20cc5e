//! The state machine on every node: the catalogue, fed with committed entries in their order.
//!
//! A proposal that was applied before is skipped ([`Proposers`]). The outcomes of this node's own proposals go to who waits for them; the view is published first,
//! so nobody acts on an outcome that others here don't see. An entry that can't be read stops the node: a state machine that leaves out a command is
//! another state machine.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership,
};
use tokio::sync::{oneshot, watch};

use bytes::Bytes;

use super::codec::snapshot_meta;
use super::log_files::lock;
use super::snapshot::{self, Proposers, SnapshotFiles, Stored};
use super::{ConsensusId, Entry, LogId, Member, Proposal, Types};
use crate::cluster::{Catalogue, CatalogueView, Command, Committed};
use crate::request::{Code, Refusal};

type Result<T> = std::result::Result<T, StorageError<ConsensusId>>;
/// What became of the commands of a proposal.
pub type Outcomes = Vec<std::result::Result<Committed, Refusal>>;

/// What the machine shows to the rest of the node.
#[derive(Debug)]
pub struct Shown {
    /// Under which number this node proposes.
    pub proposer: u64,
    /// The catalogue.
    pub view: watch::Sender<Arc<CatalogueView>>,
    /// Who waits for which of this node's proposals.
    waiting: Mutex<HashMap<u64, oneshot::Sender<Outcomes>>>,
    /// Proposals that were in the log a second time and were skipped.
    pub repeated: AtomicU64,
}

impl Shown {
    /// At the start.
    pub fn new(proposer: u64, view: Arc<CatalogueView>) -> Shown {
        Shown { proposer, view: watch::Sender::new(view), waiting: Mutex::default(), repeated: AtomicU64::new(0) }
    }

    /// The outcomes of one of this node's proposals, once it is applied here.
    pub fn outcomes_of(&self, sequence: u64) -> oneshot::Receiver<Outcomes> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(sequence, sender);
        receiver
    }

    /// Nobody waits for it any more.
    pub fn forget(&self, sequence: u64) {
        lock(&self.waiting).remove(&sequence);
    }

    fn answer(&self, sequence: u64, outcomes: Outcomes) {
        if let Some(waiting) = lock(&self.waiting).remove(&sequence) {
            let _ = waiting.send(outcomes);
        }
    }

    /// A snapshot has taken the place of entries: what they did to this node's proposals is not in it, only that they were applied.
    fn answer_unknown(&self, upto: u64) {
        lock(&self.waiting).retain(|sequence, _| *sequence > upto);
    }
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    cluster: [u8; 16],
    shown: Arc<Shown>,
    files: SnapshotFiles,
    catalogue: Catalogue,
    proposers: Proposers,
    applied: Option<LogId>,
    membership: StoredMembership<ConsensusId, Member>,
}

impl Machine {
    /// The state of the newest snapshot, or an empty one. Blocks.
    pub fn open(cluster: [u8; 16], files: SnapshotFiles, proposer: u64) -> std::result::Result<Machine, OpenError> {
        let (mut catalogue, mut proposers) = (snapshot::empty_catalogue(), Proposers::default());
        let (mut applied, mut membership) = (None, StoredMembership::default());
        if let Some(stored) = files.load()? {
            (catalogue, proposers) = snapshot::decode_data(cluster, &stored.data)?;
            (applied, membership) = (stored.meta.last_log_id, stored.meta.last_membership);
        }
        let shown = Arc::new(Shown::new(proposer, Arc::clone(catalogue.view())));
        Ok(Machine { cluster, shown, files, catalogue, proposers, applied, membership })
    }

    /// What it shows.
    pub fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown)
    }

    /// The last entry that is in the state.
    pub fn applied(&self) -> Option<LogId> {
        self.applied
    }

    // The error is the library's.
    #[allow(clippy::result_large_err)]
    fn apply_proposal(&mut self, log_id: &LogId, proposal: &Proposal) -> Result<Option<Outcomes>> {
        if !self.proposers.is_new(proposal.proposer, proposal.sequence, log_id.index) {
            self.shown.repeated.fetch_add(1, Relaxed);
            tracing::debug!(index = log_id.index, sequence = proposal.sequence, "a proposal came twice; it is applied once");
            return Ok(None);
        }
        let failed = |error: &crate::cluster::command::CommandError| StorageIOError::apply(*log_id, AnyError::new(error));
        let mut outcomes = Vec::with_capacity(proposal.commands.len());
        for bytes in &proposal.commands {
            let command = Command::decode(bytes).map_err(|error| failed(&error))?;
            let applied = self.catalogue.apply(&command);
            outcomes.push(applied.map(|applied| Committed { applied, view: Arc::clone(self.catalogue.view()) }));
        }
        Ok(Some(outcomes))
    }

    fn publish(&self) {
        let view = self.catalogue.view();
        self.shown.view.send_if_modified(|shown| {
            let changed = !Arc::ptr_eq(shown, view);
            *shown = Arc::clone(view);
            changed
        });
    }
}

/// Why the machine has no state.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The files can't be read.
    #[error(transparent)]
    Storage(#[from] super::directory::StorageError),
    /// The snapshot checks but makes no state.
    #[error(transparent)]
    Snapshot(#[from] snapshot::SnapshotError),
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership<ConsensusId, Member>)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (mut responses, mut own) = (Vec::new(), Vec::new());
        for entry in entries {
            assert!(Some(entry.log_id) > self.applied, "entries are applied in order");
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                }
                EntryPayload::Normal(proposal) => {
                    let outcomes = self.apply_proposal(&entry.log_id, proposal)?;
                    if let (Some(outcomes), true) = (outcomes, proposal.proposer == self.shown.proposer) {
                        own.push((proposal.sequence, outcomes));
                    }
                }
            }
            self.applied = Some(entry.log_id);
            responses.push(());
        }
        self.publish();
        own.into_iter().for_each(|(sequence, outcomes)| self.shown.answer(sequence, outcomes));
        Ok(responses)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            cluster: self.cluster,
            files: self.files.clone(),
            view: Arc::clone(self.catalogue.view()),
            proposers: self.proposers.clone(),
            meta: snapshot_meta(self.applied, self.membership.clone()),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Bytes>> {
        Ok(Box::default())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta<ConsensusId, Member>, snapshot: Box<Bytes>) -> Result<()> {
        let (cluster, files, stored) = (self.cluster, self.files.clone(), Stored { meta: meta.clone(), data: *snapshot });
        let work = move || -> std::result::Result<_, OpenError> {
            // Read before it is written: what makes no state must not be what the next start finds.
            let state = snapshot::decode_data(cluster, &stored.data)?;
            files.save(&stored)?;
            Ok(state)
        };
        let failed = |error: AnyError| StorageIOError::write_snapshot(Some(meta.signature()), error);
        let state = tokio::task::spawn_blocking(work).await.map_err(|error| failed(AnyError::new(&error)))?;
        (self.catalogue, self.proposers) = state.map_err(|error| failed(AnyError::new(&error)))?;
        (self.applied, self.membership) = (meta.last_log_id, meta.last_membership.clone());
        self.publish();
        if let Some(last) = self.proposers.last_of(self.shown.proposer) {
            self.shown.answer_unknown(last);
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>> {
        let files = self.files.clone();
        let failed = |error: AnyError| StorageIOError::read_snapshot(None, error);
        let stored = tokio::task::spawn_blocking(move || files.load()).await.map_err(|error| failed(AnyError::new(&error)))?;
        let stored = stored.map_err(|error| failed(AnyError::new(&error)))?;
        Ok(stored.map(|stored| Snapshot { meta: stored.meta, snapshot: Box::new(stored.data) }))
    }
}

/// Makes a snapshot of the state as it was when it was asked for, while the machine goes on.
#[derive(Debug)]
pub struct Builder {
    cluster: [u8; 16],
    files: SnapshotFiles,
    view: Arc<CatalogueView>,
    proposers: Proposers,
    meta: SnapshotMeta<ConsensusId, Member>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>> {
        let (cluster, files, view, proposers) = (self.cluster, self.files.clone(), Arc::clone(&self.view), self.proposers.clone());
        let meta = self.meta.clone();
        let failed = |error: AnyError| StorageIOError::write_snapshot(Some(self.meta.signature()), error);
        let work = move || -> std::result::Result<Stored, AnyError> {
            let data = snapshot::encode_data(cluster, &view, &proposers).map_err(|error| AnyError::new(&error))?;
            let stored = Stored { meta, data };
            files.save(&stored).map_err(|error| AnyError::new(&error))?;
            Ok(stored)
        };
        let stored = tokio::task::spawn_blocking(work).await.map_err(|error| failed(AnyError::new(&error)))?.map_err(failed)?;
        Ok(Snapshot { meta: stored.meta, snapshot: Box::new(stored.data) })
    }
}

/// The answer to somebody whose proposal was applied, when nobody here knows what it did.
pub fn unknown_outcome(commands: usize) -> Outcomes {
    let refusal = Refusal::new(Code::Unavailable, "the change was taken while this node was behind; look before it is tried again");
    (0..commands).map(|_| Err(refusal.clone())).collect()
}
