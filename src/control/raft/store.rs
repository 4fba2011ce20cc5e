//! The metadata of a cluster, as the rest of a node sees it: [`ClusterStore`], and the thread that it lives on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::sync::{mpsc, oneshot, watch};

use super::formation::{self, Origin};
use super::log_format::Owner;
use super::log_store::LogStore;
use super::machine::{Machine, OpenError, Outcomes};
use super::node::{Lease, Node, NodeParts};
use super::peer::{ConsensusCounters, Dialer, PeerError};
use super::proposer::{self, Job};
use super::settings::{ConsensusSettings, Registry, Timing};
use super::wire::{Answer, Identity, MembershipRefusal, Request};
use super::{ConsensusId, Member, Raft, consensus_id, duties, service};
use crate::cluster::{CatalogueView, Command, Committed};
use crate::control::metadata::{MetadataStore, Witness};
use crate::limits;
use crate::request::cluster::{ConsensusMember, ConsensusState};
use crate::request::{Code, Refusal};

/// Why there is no consensus.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings that can't be.
    #[error("{0}")]
    Settings(String),
    /// The files can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A thread or a socket can't be had.
    #[error("the thread of the consensus: {0}")]
    Thread(#[from] io::Error),
    /// The library does not start.
    #[error("the consensus does not start: {0}")]
    Library(String),
    /// The cluster does not let the node in.
    #[error("the cluster does not let this node in: {0}")]
    NotLetIn(MembershipRefusal),
    /// No leader was found, or it could not decide anything.
    #[error("the cluster is not there: {0}")]
    NotReady(Refusal),
    /// Nobody who was asked is a member of a cluster that has a leader.
    #[error("no cluster to join: {}", .0.iter().map(|(address, error)| format!("{address}: {error}")).collect::<Vec<_>>().join("; "))]
    NoCluster(Vec<(String, PeerError)>),
}

/// How a node of the consensus is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsensusStatus {
    /// This node's id in the consensus.
    pub id: ConsensusId,
    /// The node that leads, if it is known.
    pub leader: Option<u32>,
    /// Whether this node leads.
    pub leads: bool,
    /// Counts elections.
    pub term: u64,
    /// All members: id in the consensus, node, whether it votes.
    pub members: Vec<(ConsensusId, Member, bool)>,
    /// The last entry in this node's log.
    pub last_entry: Option<u64>,
    /// The last entry that is applied here.
    pub applied: Option<u64>,
    /// Why it has stopped.
    pub failure: Option<Refusal>,
}

/// The metadata of a cluster. Cheap to clone; usable from any thread and runtime.
#[derive(Clone)]
pub struct ClusterStore {
    jobs: mpsc::Sender<Job>,
    pub(super) node: Arc<Node>,
}

/// The thread with all tasks of the consensus; it ends when this is dropped or stopped, as if the node had been killed: nothing is lost by that.
#[derive(Debug)]
pub struct Consensus {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Consensus {
    /// Opens the files (blocks), and starts the thread with its tasks. The view is what the snapshot and the committed entries on this node's disk make; [`ClusterStore::ready`] brings it
    /// up to date with the cluster.
    pub fn start(
        settings: ConsensusSettings,
        registry: Box<dyn Registry>,
        witness: Witness,
    ) -> Result<(Consensus, ClusterStore), StartError> {
        let config = Arc::new(config(&settings)?);
        let id = consensus_id(&settings.incarnation);
        let member = Member { node: settings.node, address: settings.address.clone() };
        let owner = Owner { cluster: settings.cluster, id };
        let opened = formation::open_or_form(&settings.directory, owner, &member, &settings.origin, witness)?;
        if opened.torn > 0 {
            tracing::warn!(bytes = opened.torn, "the consensus log ended in an entry that was never acknowledged; it was cut");
        }
        let machine = Machine::open(settings.cluster, opened.snapshots, settings.proposer)?;
        let log = LogStore::new(opened.log, opened.votes);
        let space = Arc::clone(log.space());
        space.set_waiting(true);
        let listener = settings.listener;
        let told = match settings.origin {
            Origin::Join { members } => members,
            Origin::Found { .. } | Origin::Return => Vec::new(),
        };
        let (timing, voters) = (settings.timing, settings.voters);
        let me = Identity { cluster: settings.cluster, node: settings.node, id };
        let stop = watch::Sender::new(false);
        let mut stopped = stop.subscribe();
        let (started, starting) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("corelane-raft-io")
            .max_blocking_threads(limits::CONTROL_BLOCKING_THREADS)
            .build()?;
        let work = async move {
            let dialer = Arc::new(Dialer::new(me, Arc::new(ConsensusCounters::default()), timing.heartbeat));
            let shown = machine.shown();
            let raft = match Raft::new(id, config, Arc::clone(&dialer), log.clone(), machine).await {
                Ok(raft) => raft,
                Err(error) => {
                    let _ = started.send(Err(StartError::Library(error.to_string())));
                    return;
                }
            };
            let parts = NodeParts { me, member, timing, voters, raft, log, shown, dialer, registry };
            let node = Arc::new(Node::new(parts));
            let (jobs, queue) = mpsc::channel(limits::CONSENSUS_PROPOSALS);
            tokio::spawn(proposer::run(Arc::clone(&node), queue));
            tokio::spawn(duties::join(Arc::clone(&node), told));
            tokio::spawn(duties::say_alive(Arc::clone(&node)));
            tokio::spawn(duties::keep(Arc::clone(&node)));
            if let Some(listener) = listener {
                match listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener)) {
                    Ok(listener) => drop(tokio::spawn(service::serve(Arc::clone(&node), listener))),
                    Err(error) => {
                        let _ = started.send(Err(error.into()));
                        return;
                    }
                }
            }
            if node.members().1.iter().eq([&id]) {
                // Alone, nobody has to be waited for.
                let _ = node.raft.trigger().elect().await;
            }
            let _ = started.send(Ok(ClusterStore { jobs, node }));
            let _ = stopped.wait_for(|stopped| *stopped).await;
            // The thread ends with what waits.
            space.set_waiting(false);
        };
        let cpu = settings.cpu;
        let thread = thread::Builder::new().name("corelane-raft".into()).spawn(move || {
            if let Some(id) = cpu {
                // Without the pin it runs as well, only less apart.
                let _ = core_affinity::set_for_current(core_affinity::CoreId { id });
            }
            runtime.block_on(work);
        })?;
        let consensus = Consensus { stop, thread: Some(thread) };
        match starting.recv() {
            Ok(store) => Ok((consensus, store?)),
            Err(_) => Err(StartError::Library("its thread has ended".into())),
        }
    }

    /// Ends the thread and all that runs on it. Proposals in hand are lost to their proposers, not to the log.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the consensus had panicked");
        }
    }
}

impl Drop for Consensus {
    fn drop(&mut self) {
        self.end();
    }
}

/// Asks, for a node that has no cluster yet, members for the id of theirs; asks again until `within` is over, because they may still be starting.
///
/// # Errors
/// Nobody answers, or nobody who does is a member of a cluster.
pub async fn find_cluster(members: &[String], within: Duration) -> Result<[u8; 16], StartError> {
    let newcomer = Identity { cluster: [0; 16], node: 0, id: 0 };
    let dialer = Dialer::new(newcomer, Arc::default(), Timing::default().heartbeat);
    let deadline = Instant::now() + within;
    loop {
        let mut failures = Vec::new();
        for address in members {
            let greeting = tokio::time::timeout(dialer.pause * 8, dialer.connect(address, 0)).await;
            match greeting.unwrap_or(Err(PeerError::Timeout)) {
                Ok(connection) => return Ok(connection.peer.cluster),
                Err(error) => failures.push((address.clone(), error)),
            }
        }
        if Instant::now() >= deadline {
            return Err(StartError::NoCluster(failures));
        }
        tokio::time::sleep(dialer.pause).await;
    }
}

/// Our times as the library's. It holds back votes for the longest election time after a leader was heard, and waits for a time of its own after that, drawn once at its start.
/// So the least time is the longest of the library's, and its own draw comes on top: 1.3 to 2 times `election` until the first vote.
fn config(settings: &ConsensusSettings) -> Result<Config, StartError> {
    let Timing { heartbeat, election, node_lease, proposal } = settings.timing;
    let wrong = |what: String| Err(StartError::Settings(what));
    if !matches!(settings.voters, 3 | 5) {
        return wrong(format!("3 or 5 nodes vote, not {}", settings.voters));
    }
    if election < heartbeat * 2 || node_lease < election * 2 || proposal < election || heartbeat.is_zero() {
        return wrong(format!(
            "times that don't fit each other: {:?}; 2 heartbeats <= election, 2 elections <= node lease",
            settings.timing
        ));
    }
    if settings.node > limits::MAX_NODE_ID || settings.address.len() > limits::MAX_NODE_ADDRESS {
        return wrong(format!("node {} at {:?}: an id is at most {}", settings.node, settings.address, limits::MAX_NODE_ID));
    }
    let most = election.as_millis() as u64;
    // The library looks at its clock every one and a half of its intervals, and sends then.
    let interval = (heartbeat.as_millis() as u64 * 2 / 3).max(1);
    let config = Config {
        cluster_name: uuid::Uuid::from_bytes(settings.cluster).to_string(),
        heartbeat_interval: interval,
        election_timeout_min: (most * 3 / 10).max(interval + 1),
        election_timeout_max: most,
        install_snapshot_timeout: limits::CONSENSUS_FRAME_S * 1_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(settings.snapshot_entries),
        max_in_snapshot_log_to_keep: settings.keep_entries,
        replication_lag_threshold: settings.snapshot_entries * 4,
        ..Config::default()
    };
    config.validate().map_err(|error| StartError::Settings(error.to_string()))
}

impl ClusterStore {
    /// Waits until this node is a member and its view has all that was committed before this was called.
    pub async fn ready(&self, within: Duration) -> Result<(), StartError> {
        let deadline = Instant::now() + within;
        loop {
            let outcome = self.barrier().await;
            let is_member = self.node.members().0.contains_key(&self.node.me.id);
            match outcome {
                Ok(()) if is_member => return Ok(()),
                Err(refusal) if refusal.code != Code::Unavailable => return Err(StartError::NotReady(refusal)),
                outcome if Instant::now() >= deadline => {
                    let refusal = outcome.err().unwrap_or_else(|| Refusal::new(Code::Unavailable, "this node is no member"));
                    let not_let_in = self.node.refused.borrow().clone();
                    return Err(not_let_in.map_or(StartError::NotReady(refusal), StartError::NotLetIn));
                }
                _ => {}
            }
        }
    }

    /// As [`ClusterStore::ready`], for a thread without a runtime.
    pub fn ready_blocking(&self, within: Duration) -> Result<(), StartError> {
        tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(self.ready(within))
    }

    /// Brings the view up to all that was committed before this was called.
    pub async fn barrier(&self) -> Result<(), Refusal> {
        self.submit(Vec::new()).await.map(drop)
    }

    /// This node's lease, as it changes. A node without one must not acknowledge anything as a leader of partitions.
    pub fn lease(&self) -> watch::Receiver<Lease> {
        self.node.lease.subscribe()
    }

    /// How long a node that was heard is not given up.
    pub fn node_lease(&self) -> Duration {
        self.node.timing.node_lease
    }

    /// Makes a node no member any more.
    pub async fn remove(&self, node: u32) -> Result<(), RemoveError> {
        let Some((id, leader)) = self.node.leader() else { return Err(RemoveError::Refused(super::node::no_quorum())) };
        let request = Request::Remove { node };
        let answer = if id == self.node.me.id {
            self.node.handle_request(request, false, 0).await
        } else {
            self.node.dialer.ask(&leader.address, &request, self.node.timing.proposal).await?
        };
        match answer {
            Answer::Done => Ok(()),
            Answer::Membership(refusal) => Err(RemoveError::Membership(refusal)),
            Answer::Refused(refusal) => Err(RemoveError::Refused(refusal)),
            _ => Err(RemoveError::Refused(Refusal::new(Code::NotLeader, "the node that was asked does not lead any more"))),
        }
    }

    /// How this node is.
    pub fn status(&self) -> ConsensusStatus {
        let (members, voters) = self.node.members();
        let metrics = self.node.raft.metrics();
        let metrics = metrics.borrow();
        ConsensusStatus {
            id: self.node.me.id,
            leader: metrics.current_leader.and_then(|id| members.get(&id)).map(|member| member.node),
            leads: metrics.state == ServerState::Leader,
            term: metrics.current_term,
            members: members.into_iter().map(|(id, member)| (id, member, voters.contains(&id))).collect(),
            last_entry: metrics.last_log_index,
            applied: metrics.last_applied.map(|id| id.index),
            failure: metrics.running_state.as_ref().err().map(|error| Refusal::new(Code::Storage, error.to_string())),
        }
    }

    /// What went over the consensus port.
    pub fn counters(&self) -> &ConsensusCounters {
        &self.node.dialer.counters
    }

    /// Proposals that were in the log a second time, and were skipped here.
    pub fn repeated(&self) -> u64 {
        self.node.shown.repeated.load(Relaxed)
    }

    async fn submit(&self, commands: Vec<Command>) -> Result<Outcomes, Refusal> {
        let stopping = || Refusal::new(Code::Unavailable, "the broker is stopping");
        let (reply, outcome) = oneshot::channel();
        self.jobs.send(Job { commands, reply }).await.map_err(|_| stopping())?;
        outcome.await.map_err(|_| stopping())?
    }
}

/// Why a node was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It can't be.
    #[error(transparent)]
    Membership(#[from] MembershipRefusal),
    /// No decision.
    #[error("{0}")]
    Refused(Refusal),
    /// The leader can't be asked.
    #[error("the leader: {0}")]
    Peer(#[from] PeerError),
}

impl std::fmt::Debug for ClusterStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterStore").field("me", &self.node.me).finish_non_exhaustive()
    }
}

impl MetadataStore for ClusterStore {
    async fn propose_all(&self, commands: Vec<Command>) -> Vec<Result<Committed, Refusal>> {
        let count = commands.len();
        if count == 0 {
            return Vec::new();
        }
        self.submit(commands).await.unwrap_or_else(|refusal| vec![Err(refusal); count])
    }

    fn consensus(&self) -> ConsensusState {
        let status = self.status();
        let member =
            |(_, member, votes): (ConsensusId, Member, bool)| ConsensusMember { node: member.node, address: member.address, votes };
        let mut members: Vec<_> = status.members.into_iter().map(member).collect();
        members.sort_by_key(|member| member.node);
        let failure = status.failure.map(|refusal| refusal.message);
        ConsensusState { leader: status.leader, term: status.term, applied: status.applied, members, failure }
    }

    fn leads(&self) -> bool {
        self.status().leads
    }

    async fn remove_member(&self, node: u32) -> Result<(), Refusal> {
        match self.remove(node).await {
            Ok(()) | Err(RemoveError::Membership(MembershipRefusal::Unknown(_))) => Ok(()),
            Err(RemoveError::Membership(refusal)) => Err(Refusal::new(Code::InvalidRequest, refusal.to_string())),
            Err(RemoveError::Refused(refusal)) => Err(refusal),
            Err(error @ RemoveError::Peer(_)) => Err(Refusal::new(Code::Unavailable, error.to_string())),
        }
    }

    fn view(&self) -> Arc<CatalogueView> {
        Arc::clone(&self.node.shown.view.borrow())
    }

    fn subscribe(&self) -> watch::Receiver<Arc<CatalogueView>> {
        self.node.shown.view.subscribe()
    }
}
