//! Where the catalogue is kept: behind a trait, so that consensus can take the place of a single node's file.
//!
//! [`SingleNodeLog`] owns `<data>/catalogue`. Commands that wait at the same time are applied to a copy of the state, appended, synced once on a blocking thread,
//! and only then become the state; so nobody sees what a crash could take back. When the file has grown to several times what its state needs, it is compacted: a file that
//! begins with a snapshot is written beside it, synced, renamed over it. Crash story: a cut while appending leaves a
//! torn record that was never acknowledged; the next open cuts it. A failed sync poisons the log, because nobody can know what is on
//! disk: everything is refused until a restart reads it again. A failed *write* (no space) is undone and refused, and a later
//! command may succeed.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Mutex, watch};

use crate::cluster::command::CommandError;
use crate::cluster::command_log::{self, LogError, Snapshot, TornTail};
use crate::cluster::{Applied, Catalogue, CatalogueView, Command, Committed, Registration};
use crate::limits;
use crate::request::cluster::{ConsensusMember, ConsensusState};
use crate::request::{Code, Refusal};

/// A step of what is done to the catalogue's file.
#[derive(Debug)]
pub enum FileStep<'a> {
    /// The file came into being.
    Create(&'a Path),
    /// A write begins; [`FileStep::WriteEnd`] follows.
    WriteStart {
        /// The file.
        path: &'a Path,
        /// Where in it, bytes.
        position: u64,
        /// What.
        bytes: &'a [u8],
    },
    /// The write is done.
    WriteEnd,
    /// The file is cut to so many bytes.
    SetLen(&'a Path, u64),
    /// A sync of the file begins; [`FileStep::SyncEnd`] follows.
    SyncStart(&'a Path),
    /// A sync of the directory begins; [`FileStep::SyncEnd`] follows.
    SyncDirStart(&'a Path),
    /// The sync is done.
    SyncEnd,
    /// The file gets another name.
    Rename(&'a Path, &'a Path),
    /// The file loses its name.
    Remove(&'a Path),
    /// A command is durable and about to be answered.
    Committed(&'a Applied),
}

/// What hears of steps.
type Hears = dyn Fn(FileStep<'_>) + Send + Sync;

/// Hears of each [`FileStep`] in order, or nobody does: the door of the disk trace.
#[derive(Clone, Default)]
pub struct Witness(Option<Arc<Hears>>);

impl Witness {
    /// One that hears.
    pub fn new(hears: impl Fn(FileStep<'_>) + Send + Sync + 'static) -> Witness {
        Witness(Some(Arc::new(hears)))
    }

    pub(super) fn tell(&self, step: FileStep<'_>) {
        if let Some(hears) = &self.0 {
            hears(step);
        }
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Witness({})", self.0.is_some())
    }
}

/// Keeps the catalogue and changes it in one order.
pub trait MetadataStore: Send + Sync + 'static {
    /// Makes a change durable and applies it. Not to be dropped before it is done.
    fn propose(&self, command: Command) -> impl Future<Output = Result<Committed, Refusal>> + Send {
        async { self.propose_all(vec![command]).await.pop().expect("one command has one outcome") }
    }

    /// As [`MetadataStore::propose`] for several changes in this order, each with its own outcome, made durable together.
    fn propose_all(&self, commands: Vec<Command>) -> impl Future<Output = Vec<Result<Committed, Refusal>>> + Send;

    /// How the consensus is behind it, as this node knows it.
    fn consensus(&self) -> ConsensusState;

    /// Whether this node leads the consensus.
    fn leads(&self) -> bool;

    /// Makes a node no member of the consensus any more; one that is none already is no fault.
    fn remove_member(&self, node: u32) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// The present state.
    fn view(&self) -> Arc<CatalogueView>;

    /// The state as it changes; a slow reader misses states in between, never the last.
    fn subscribe(&self) -> watch::Receiver<Arc<CatalogueView>>;
}

/// The catalogue of a node that is alone, over one file.
#[derive(Debug)]
pub struct SingleNodeLog {
    inner: Mutex<Inner>,
    view: watch::Sender<Arc<CatalogueView>>,
}

#[derive(Debug)]
struct Inner {
    catalogue: Catalogue,
    /// Gone after a failed sync.
    file: Option<LogFile>,
}

/// What opening found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The epoch of this start's registration.
    pub node_epoch: u64,
    /// A torn record that was cut.
    pub torn: Option<TornTail>,
}

/// Why there is no catalogue.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file can't be read or written.
    #[error("catalogue {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is damaged, or of another kind or version.
    #[error("catalogue {}: {source}", path.display())]
    Log {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: LogError,
    },
    /// It belongs to another cluster.
    #[error("catalogue {}: it belongs to cluster {actual}, not to {expected}", path.display())]
    Cluster {
        /// Which file.
        path: PathBuf,
        /// The UUID wanted.
        expected: uuid::Uuid,
        /// The UUID found.
        actual: uuid::Uuid,
    },
    /// A command was accepted once and is refused now.
    #[error("catalogue {}: record {sequence} can't be applied: {source}", path.display())]
    Replay {
        /// Which file.
        path: PathBuf,
        /// Which record.
        sequence: u64,
        /// Why.
        source: Refusal,
    },
    /// It can't be created over one that has commands.
    #[error("catalogue {}: it is there already, with {commands} commands", path.display())]
    Exists {
        /// Which file.
        path: PathBuf,
        /// How many commands it has.
        commands: usize,
    },
}

impl SingleNodeLog {
    /// Makes an empty catalogue durable, for a new store. One without commands (a creation that was cut short) is replaced.
    pub fn create(path: &Path, cluster: [u8; 16], witness: &Witness) -> Result<(), OpenError> {
        let failed = |source| OpenError::Io { path: path.into(), source };
        if path.try_exists().map_err(failed)? {
            let commands = decode(path, &read(path).map_err(failed)?)?.commands.len();
            if commands > 0 {
                return Err(OpenError::Exists { path: path.into(), commands });
            }
        }
        let write = || {
            let new = LogFile::make(path, &command_log::encode_header(cluster, &Snapshot::default()), witness)?;
            new.name(path)
        };
        write().map_err(failed)
    }

    /// Reads and replays the catalogue, cuts a torn tail, and makes this start durable as a [`Command::RegisterNode`]: the leader epoch of each partition rises. The
    /// first registration takes over the topics of a broker from before there were clusters. Blocks.
    pub fn open(path: &Path, registration: &Registration, witness: Witness) -> Result<(SingleNodeLog, Opened), OpenError> {
        let cluster = registration.cluster;
        let failed = |source| OpenError::Io { path: path.into(), source };
        let log = decode(path, &read(path).map_err(failed)?)?;
        if log.cluster != cluster {
            let (expected, actual) = (uuid::Uuid::from_bytes(cluster), uuid::Uuid::from_bytes(log.cluster));
            return Err(OpenError::Cluster { path: path.into(), expected, actual });
        }
        let replay_failed = |(sequence, source)| OpenError::Replay { path: path.into(), sequence, source };
        let mut catalogue = Catalogue::replay(&log).map_err(replay_failed)?;
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        let (end, sequence) = (log.end as u64, log.commands.len() as u64);
        let snapshot = log.snapshot_end as u64;
        let mut file = LogFile { file, path: path.into(), cluster, end, sequence, snapshot, is_synced: false, witness };
        if log.torn.is_some() {
            file.set_len(file.end).and_then(|()| file.sync()).map_err(failed)?;
        }
        let started = log.commands.len() as u64 + 1;
        let register = Command::RegisterNode(Box::new(registration.clone()));
        catalogue.apply(&register).map_err(|refusal| replay_failed((started, refusal)))?;
        file.append(&[register], catalogue.view()).map_err(|e| failed(io::Error::other(e)))?;
        let later = log.commands.iter().skip(log.snapshot.records as usize);
        if later.filter(|(_, command)| matches!(command, Command::RegisterNode(_))).count() >= limits::CATALOGUE_REGISTRATIONS {
            file.compact_if_it_can(catalogue.view()).map_err(|e| failed(io::Error::other(e)))?;
        }

        let opened = Opened { node_epoch: catalogue.view().node_epoch(), torn: log.torn };
        let view = watch::Sender::new(Arc::clone(catalogue.view()));
        Ok((SingleNodeLog { inner: Mutex::new(Inner { catalogue, file: Some(file) }), view }, opened))
    }
}

impl MetadataStore for SingleNodeLog {
    async fn propose_all(&self, commands: Vec<Command>) -> Vec<Result<Committed, Refusal>> {
        let mut inner = self.inner.lock().await;
        let mut next = inner.catalogue.clone();
        let (mut accepted, mut outcomes) = (Vec::new(), Vec::with_capacity(commands.len()));
        for command in commands {
            let applied = command.encode().map_err(|e| refusal(&e.into())).and_then(|_| next.apply(&command));
            outcomes.push(applied.map(|applied| {
                accepted.push(command);
                Committed { applied, view: Arc::clone(next.view()) }
            }));
        }
        if accepted.is_empty() {
            return outcomes;
        }
        // What was refused may have been so because of something that is not to be now.
        let all = outcomes.len();
        let refuse_all = |refusal: Refusal| vec![Err(refusal); all];
        // Taken while the thread works on it: should this future be dropped there, the log is poisoned rather than in doubt.
        let Some(mut file) = inner.file.take() else { return refuse_all(poisoned()) };
        let view = Arc::clone(next.view());
        let work = move || {
            let result = file.append(&accepted, &view);
            if result.is_ok() {
                outcomes.iter().flatten().for_each(|committed| file.witness.tell(FileStep::Committed(&committed.applied)));
            }
            (file, result, outcomes)
        };
        let Ok((file, result, outcomes)) = tokio::task::spawn_blocking(work).await else { return refuse_all(poisoned()) };
        match result {
            Err(error @ AppendError::Sync(_)) => {
                tracing::error!(%error, "the catalogue is poisoned: no topic can be changed until a restart");
                return refuse_all(refusal(&error));
            }
            Err(error) => {
                inner.file = Some(file);
                return refuse_all(refusal(&error));
            }
            Ok(()) => inner.file = Some(file),
        }
        inner.catalogue = next;
        self.view.send_replace(Arc::clone(inner.catalogue.view()));
        outcomes
    }

    fn consensus(&self) -> ConsensusState {
        let view = self.view();
        let members = view.nodes().map(|node| ConsensusMember { node: node.id(), address: String::new(), votes: true });
        let leader = view.nodes().next().map(|node| node.id());
        ConsensusState { leader, members: members.collect(), applied: Some(view.commands()), ..ConsensusState::default() }
    }

    fn leads(&self) -> bool {
        true
    }

    async fn remove_member(&self, node: u32) -> Result<(), Refusal> {
        Err(Refusal::new(Code::InvalidRequest, format!("node {node} can't be removed: this broker is alone")))
    }

    fn view(&self) -> Arc<CatalogueView> {
        Arc::clone(&self.view.borrow())
    }

    fn subscribe(&self) -> watch::Receiver<Arc<CatalogueView>> {
        self.view.subscribe()
    }
}

/// The file, open for appending. All of it blocks.
#[derive(Debug)]
struct LogFile {
    file: File,
    path: PathBuf,
    cluster: [u8; 16],
    /// Length of header and snapshot, bytes; after a compaction that failed, of the file then.
    snapshot: u64,
    /// End of the valid records, bytes.
    end: u64,
    /// Number of the last record.
    sequence: u64,
    /// Everything up to `end` is; after an open nobody knows.
    is_synced: bool,
    witness: Witness,
}

#[derive(Debug, thiserror::Error)]
enum AppendError {
    #[error(transparent)]
    Encode(#[from] CommandError),
    #[error("the catalogue is full: {actual} bytes of {most}", most = limits::MAX_CATALOGUE)]
    Full { actual: u64 },
    #[error("writing the catalogue: {0}")]
    Write(io::Error),
    #[error("syncing the catalogue: {0}")]
    Sync(io::Error),
}

impl LogFile {
    /// A new file beside the one at `path`, synced.
    fn make(path: &Path, bytes: &[u8], witness: &Witness) -> io::Result<LogFile> {
        let temporary = path.with_extension("tmp");
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        witness.tell(FileStep::Create(&temporary));
        let (cluster, witness) = ([0; 16], witness.clone());
        let mut new = LogFile { file, path: temporary, cluster, end: 0, sequence: 0, snapshot: 0, is_synced: false, witness };
        let mut written = || {
            new.set_len(0)?;
            new.write(bytes)?;
            new.sync()
        };
        if let Err(error) = written() {
            // It may be the disk that is full: what there is of it is not to be held.
            new.set_len(0)?;
            return Err(error);
        }
        Ok(new)
    }

    /// Gives the file its name, in the place of the one that has it, durably. After an error nobody knows which file has it.
    fn name(&self, path: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, path)?;
        self.witness.tell(FileStep::Rename(&self.path, path));
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        self.witness.tell(FileStep::SyncDirStart(directory));
        File::open(directory)?.sync_all()?;
        self.witness.tell(FileStep::SyncEnd);
        Ok(())
    }

    /// Puts a file in this one's place that begins with the state that all of it leads to.
    fn compact(&mut self, view: &CatalogueView) -> Result<(), AppendError> {
        let (bytes, records) = command_log::encode_compacted(self.cluster, view)?;
        let new = LogFile::make(&self.path, &bytes, &self.witness).map_err(AppendError::Write)?;
        new.name(&self.path).map_err(AppendError::Sync)?;
        let (path, end) = (std::mem::take(&mut self.path), bytes.len() as u64);
        tracing::info!(before = self.end, after = end, "the catalogue was compacted");
        // The snapshot's last record is a mark.
        let sequence = records + 1;
        *self = LogFile { path, cluster: self.cluster, end, sequence, snapshot: end, ..new };
        Ok(())
    }

    /// Appends commands, whose outcome is `view`, and compacts the file where it is time to.
    fn append(&mut self, commands: &[Command], view: &CatalogueView) -> Result<(), AppendError> {
        self.append_records(commands)?;
        if self.end < limits::CATALOGUE_COMPACT.max(4 * self.snapshot) {
            return Ok(());
        }
        self.compact_if_it_can(view)
    }

    /// Compacts the file; where that fails with the file as it was, it goes on as it is.
    fn compact_if_it_can(&mut self, view: &CatalogueView) -> Result<(), AppendError> {
        match self.compact(view) {
            Err(error @ AppendError::Sync(_)) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "the catalogue can't be compacted now; it goes on as it is");
                self.snapshot = self.end;
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Appends commands and syncs; then puts a mark behind them, unsynced, that tells rot of this record from a torn write. The mark is synced
    /// before anything is written behind it: lost in a crash that the next command survives, it would look like rot.
    fn append_records(&mut self, commands: &[Command]) -> Result<(), AppendError> {
        let mut record = Vec::new();
        let last = self.sequence + commands.len() as u64;
        for (sequence, command) in (self.sequence + 1..).zip(commands) {
            record.extend_from_slice(&command_log::encode_record(sequence, command)?);
        }
        let mark = command_log::encode_record(last + 1, &Command::DurableMark)?;
        let after = self.end + (record.len() + mark.len()) as u64;
        if after > limits::MAX_CATALOGUE as u64 {
            return Err(AppendError::Full { actual: after });
        }
        if !self.is_synced {
            self.sync().map_err(AppendError::Sync)?;
        }
        if let Err(error) = self.write(&record) {
            // What was written of it must not look like a record, and it must not stand before the next one.
            return match self.set_len(self.end) {
                Ok(()) => Err(AppendError::Write(error)),
                Err(_) => Err(AppendError::Sync(error)),
            };
        }
        self.sync().map_err(AppendError::Sync)?;
        self.end += record.len() as u64;
        self.sequence = last;
        // Without the mark the record is as durable, only its later rot less sure to be seen.
        self.is_synced = false;
        if self.write(&mark).is_ok() {
            self.end += mark.len() as u64;
            self.sequence += 1;
        } else {
            self.set_len(self.end).map_err(AppendError::Sync)?;
        }
        Ok(())
    }

    /// Writes behind the valid records.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.witness.tell(FileStep::WriteStart { path: &self.path, position: self.end, bytes });
        self.file.write_all_at(bytes, self.end)?;
        self.witness.tell(FileStep::WriteEnd);
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.is_synced = false;
        self.witness.tell(FileStep::SetLen(&self.path, len));
        self.file.set_len(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.witness.tell(FileStep::SyncStart(&self.path));
        // Of data and length, which is all that a reader needs.
        self.file.sync_data()?;
        self.is_synced = true;
        self.witness.tell(FileStep::SyncEnd);
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than can be, so that too long is told from just long enough.
    File::open(path)?.take(limits::MAX_CATALOGUE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn decode(path: &Path, bytes: &[u8]) -> Result<command_log::CommandLog, OpenError> {
    command_log::decode_log(bytes).map_err(|source| OpenError::Log { path: path.into(), source })
}

fn poisoned() -> Refusal {
    Refusal::new(Code::Storage, "the catalogue could not be synced; restart the broker")
}

fn refusal(error: &AppendError) -> Refusal {
    let code = match error {
        AppendError::Encode(_) => Code::InvalidRequest,
        AppendError::Full { .. } => Code::LimitReached,
        AppendError::Write(e) if e.kind() == io::ErrorKind::StorageFull => Code::DiskFull,
        AppendError::Write(_) | AppendError::Sync(_) => Code::Storage,
    };
    Refusal::new(code, error.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cluster::node::tests as node_tests;
    use crate::types::{TopicId, TopicPartition};

    const CLUSTER: [u8; 16] = [5; 16];

    fn create(id: u8, name: &str) -> Command {
        Command::CreateTopic { id: TopicId([id; 16]), name: name.into(), partitions: 2, replication_factor: 1, config: vec![] }
    }

    /// A node of a cluster, after a clean stop.
    pub fn registration(node: u32, cluster: [u8; 16]) -> Registration {
        Registration { cluster, ..node_tests::registration(node) }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn new_log() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalogue");
        SingleNodeLog::create(&path, CLUSTER, &Witness::default()).unwrap();
        (directory, path)
    }

    #[test]
    fn what_was_proposed_is_there_after_a_restart() {
        let (_directory, path) = new_log();
        let (log, opened) = SingleNodeLog::open(&path, &registration(0, CLUSTER), Witness::default()).unwrap();
        assert_eq!(opened, Opened { node_epoch: 1, torn: None });
        let seen = log.subscribe();
        block_on(async {
            log.propose(create(1, "a")).await.unwrap();
            log.propose(create(2, "b")).await.unwrap();
            assert_eq!(log.propose(create(3, "a")).await.unwrap_err().code, Code::TopicExists);
            let ids = log.propose(Command::AllocateProducerIds { count: 10 }).await.unwrap().applied;
            assert_eq!(ids, Applied::ProducerIds(0..10));
        });
        assert_eq!(seen.borrow().topics().len(), 2);
        let before = log.view();
        drop(log);
        let (log, opened) = SingleNodeLog::open(&path, &registration(0, CLUSTER), Witness::default()).unwrap();
        assert_eq!(opened, Opened { node_epoch: 2, torn: None });
        assert_eq!(log.view().changes_since(&before).altered.len(), 2, "other Arcs, the same topics");
        assert_eq!(log.view().topic("b").unwrap(), before.topic("b").unwrap());
        let ids = block_on(log.propose(Command::AllocateProducerIds { count: 10 })).unwrap().applied;
        assert_eq!(ids, Applied::ProducerIds(10..20));
    }

    /// A log of a broker from before there were clusters: its topics get their one replica, and their leader epochs go on from its starts.
    #[test]
    fn a_log_from_before_clusters_is_taken_over() {
        let (_directory, path) = new_log();
        let mut bytes = std::fs::read(&path).unwrap();
        let before =
            [Command::NodeStarted, create(1, "a"), Command::NodeStarted, Command::NodeStarted, create(2, "b"), Command::DurableMark];
        for (sequence, command) in (1..).zip(&before) {
            bytes.extend(command_log::encode_record(sequence, command).unwrap());
        }
        std::fs::write(&path, &bytes).unwrap();
        let partition = |topic| TopicPartition { topic: TopicId([topic; 16]), partition: 1 };
        for start in 0..3 {
            let (log, opened) = SingleNodeLog::open(&path, &registration(0, CLUSTER), Witness::default()).unwrap();
            let view = log.view();
            assert_eq!(opened, Opened { node_epoch: start + 1, torn: None });
            for topic in [1, 2] {
                let record = view.partition(&partition(topic)).unwrap();
                assert_eq!((record.leader, &record.isr[..], record.replicas.len()), (Some(0), &[0][..], 1));
                assert_eq!((record.leader_epoch, view.leader_epoch(&partition(topic))), (3 + start as i32, 3 + start as i32));
            }
            let name = format!("new-{start}");
            block_on(log.propose(create(start as u8 + 10, &name))).unwrap();
            assert_eq!(log.view().leader_epoch(&partition(start as u8 + 10)), 0);
        }
    }

    #[test]
    fn the_golden_files_open() {
        let cluster = *b"the-cluster-uuid";
        for (golden, node_epoch) in [
            (&include_bytes!("../cluster/fixtures/catalogue-1.bin")[..], 1),
            (&include_bytes!("../cluster/fixtures/catalogue-2.bin")[..], 1),
            (&include_bytes!("../cluster/fixtures/catalogue-3.bin")[..], 4),
            (&include_bytes!("../cluster/fixtures/catalogue-3-compacted.bin")[..], 4),
        ] {
            let (_directory, path) = new_log();
            std::fs::write(&path, golden).unwrap();
            for start in 0..2 {
                let (_, opened) = SingleNodeLog::open(&path, &registration(0, cluster), Witness::default()).unwrap();
                assert_eq!(opened, Opened { node_epoch: node_epoch + start, torn: None });
            }
        }
    }

    /// Each registration is applied to every partition at each start: there are not to be many of them.
    #[test]
    fn many_starts_are_compacted() {
        let (_directory, path) = new_log();
        for start in 0..2 * limits::CATALOGUE_REGISTRATIONS + 3 {
            let (log, opened) = SingleNodeLog::open(&path, &registration(0, CLUSTER), Witness::default()).unwrap();
            assert_eq!(opened, Opened { node_epoch: start as u64 + 1, torn: None });
            if start == 0 {
                block_on(log.propose(create(1, "a"))).unwrap();
            }
            assert_eq!(log.view().leader_epoch(&TopicPartition { topic: TopicId([1; 16]), partition: 0 }), start as i32);
        }
        let log = decode(&path, &std::fs::read(&path).unwrap()).unwrap();
        assert!(log.snapshot.is_some() && log.commands.len() < 3 * limits::CATALOGUE_REGISTRATIONS, "{}", log.commands.len());
    }

    #[test]
    fn a_torn_tail_is_cut_and_the_log_goes_on() {
        let (_directory, path) = new_log();
        let (log, _) = SingleNodeLog::open(&path, &registration(0, CLUSTER), Witness::default()).unwrap();
        block_on(log.propose(create(1, "a"))).unwrap();
        drop(log);
        let mut bytes = std::fs::read(&path).unwrap();
        let end = bytes.len();
        bytes.extend_from_slice(&[0x5a; 37]);
        std::fs::write(&path, &bytes).unwrap();
        let (log, opened) = SingleNodeLog::open(&path, &registration(0, CLUSTER), Witness::default()).unwrap();
        assert_eq!(opened.torn.unwrap().position, end);
        block_on(log.propose(create(2, "b"))).unwrap();
        drop(log);
        let (log, opened) = SingleNodeLog::open(&path, &registration(0, CLUSTER), Witness::default()).unwrap();
        assert_eq!((opened.torn, log.view().topics().len()), (None, 2));
    }

    #[test]
    fn a_flip_in_the_last_command_refuses_to_open() {
        let (_directory, path) = new_log();
        let (log, _) = SingleNodeLog::open(&path, &registration(0, CLUSTER), Witness::default()).unwrap();
        let before = std::fs::metadata(&path).unwrap().len() as usize;
        block_on(log.propose(create(1, "a"))).unwrap();
        drop(log);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[before + 40] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = SingleNodeLog::open(&path, &registration(0, CLUSTER), Witness::default()).unwrap_err();
        assert!(matches!(error, OpenError::Log { source: LogError::Corrupt { .. }, .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "a damaged file is left as it is");
    }

    #[test]
    fn other_clusters_files_and_second_creations_are_refused() {
        let (_directory, path) = new_log();
        assert!(matches!(SingleNodeLog::open(&path, &registration(0, [6; 16]), Witness::default()), Err(OpenError::Cluster { .. })));
        SingleNodeLog::create(&path, [6; 16], &Witness::default()).expect("it has no commands yet");
        SingleNodeLog::open(&path, &registration(0, [6; 16]), Witness::default()).unwrap();
        assert!(matches!(SingleNodeLog::create(&path, [6; 16], &Witness::default()), Err(OpenError::Exists { commands: 2, .. })));
        assert!(matches!(
            SingleNodeLog::open(&path.with_extension("none"), &registration(0, CLUSTER), Witness::default()),
            Err(OpenError::Io { .. })
        ));
    }

    /// A file that is open for reading only fails every write, as a full disk does; the log itself stays whole.
    #[test]
    fn a_failed_write_is_refused_and_a_failed_undo_poisons() {
        let (_directory, path) = new_log();
        let (log, _) = SingleNodeLog::open(&path, &registration(0, CLUSTER), Witness::default()).unwrap();
        block_on(async {
            let broken = File::open(&path).unwrap();
            let good = {
                let mut inner = log.inner.lock().await;
                std::mem::replace(&mut inner.file.as_mut().unwrap().file, broken)
            };
            assert_eq!(log.propose(create(1, "a")).await.unwrap_err().code, Code::Storage);
            assert!(log.view().topic("a").is_none(), "what is not durable is not seen");
            // Neither the write nor its undoing worked: in doubt, so nothing is taken any more.
            drop(good);
            assert_eq!(log.propose(create(2, "b")).await.unwrap_err().code, Code::Storage);
            assert!(log.inner.lock().await.file.is_none());
        });
    }
}
