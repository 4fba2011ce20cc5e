//! Where a node's metadata comes from: a file of its own, or the consensus of a cluster that it founds, joins or goes back to.
//!
//! | the data directory | without `--cluster-listen` | with it | with it and `--join` |
//! | --- | --- | --- | --- |
//! | is empty, or what a first start left that was cut short | alone | founds a cluster | joins one |
//! | has a catalogue of its own | alone | founds a cluster with the topics that are there | is refused |
//! | knows its cluster | is refused: others look for it | goes back to it | goes back to it |
//!
//! Crash story of a first start: identity, consensus (it counts once its file of votes is there), registration, store (it counts once it has a generation). Without votes,
//! catalogue and generation nothing was ever stored or promised, so the next start draws another identity: it is another node to whomever it may have spoken to. With
//! a generation, but neither votes nor catalogue, the consensus is lost, and the node says so.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::bridge::ControlEnd;
use crate::cluster::{CatalogueView, Command, Committed, Endpoint, NodeState, Registration};
use crate::control::metadata::{MetadataStore, SingleNodeLog, Witness};
use crate::control::raft::settings::Registry;
use crate::control::raft::store::{StartError, find_cluster};
use crate::control::raft::{ClusterStore, Consensus, ConsensusId, ConsensusSettings, Origin, Timing, consensus_id, votes};
use crate::limits;
use crate::log::paths;
use crate::request::cluster::ConsensusState;
use crate::request::{Code, Refusal};
use crate::server::settings::{ClusterSettings, ServeSettings};
use crate::server::start::ServeError;
use crate::shard::replication::Lease;

/// The metadata of this node.
#[derive(Debug)]
pub enum NodeStore {
    /// Of a node that is alone.
    Alone(SingleNodeLog),
    /// Of a cluster.
    Cluster(ClusterStore),
}

impl MetadataStore for NodeStore {
    async fn propose_all(&self, commands: Vec<Command>) -> Vec<Result<Committed, Refusal>> {
        match self {
            NodeStore::Alone(log) => log.propose_all(commands).await,
            NodeStore::Cluster(store) => store.propose_all(commands).await,
        }
    }

    fn consensus(&self) -> ConsensusState {
        match self {
            NodeStore::Alone(log) => log.consensus(),
            NodeStore::Cluster(store) => store.consensus(),
        }
    }

    fn leads(&self) -> bool {
        match self {
            NodeStore::Alone(log) => log.leads(),
            NodeStore::Cluster(store) => store.leads(),
        }
    }

    async fn remove_member(&self, node: u32) -> Result<(), Refusal> {
        match self {
            NodeStore::Alone(log) => log.remove_member(node).await,
            NodeStore::Cluster(store) => store.remove_member(node).await,
        }
    }

    fn view(&self) -> Arc<CatalogueView> {
        match self {
            NodeStore::Alone(log) => log.view(),
            NodeStore::Cluster(store) => store.view(),
        }
    }

    fn subscribe(&self) -> watch::Receiver<Arc<CatalogueView>> {
        match self {
            NodeStore::Alone(log) => log.subscribe(),
            NodeStore::Cluster(store) => store.subscribe(),
        }
    }
}

/// Who the consensus takes for live, and how it fences: by the catalogue.
struct ByCatalogue;

impl Registry for ByCatalogue {
    fn is_live(&self, view: &CatalogueView, node: u32, life: ConsensusId) -> bool {
        view.node(node).is_some_and(|node| node.is_live() && consensus_id(&node.registration.incarnation) == life)
    }

    fn fence(&self, view: &CatalogueView, node: u32) -> Option<Command> {
        let node = view.node(node).filter(|node| node.is_live())?;
        Some(Command::FenceNode { node: node.id(), node_epoch: node.epoch })
    }

    fn retires(&self, view: &CatalogueView, node: u32) -> bool {
        view.node(node).is_some_and(|node| node.retiring)
    }
}

/// What a data directory says of its node's past.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Past {
    /// It has none: the directory is empty, or a first start was cut short before it stored or promised anything.
    Unborn,
    /// It was alone.
    Alone,
    /// It is a node of a cluster.
    Member,
    /// It was one, and what it knew of the cluster is lost.
    Bereft,
}

impl Past {
    /// Of a data directory.
    pub fn of(data: &Path) -> Past {
        let there = |name: &str| data.join(name).exists();
        if there(&format!("{}/{}", paths::CONSENSUS_DIR, votes::VOTE)) {
            Past::Member
        } else if there(paths::CATALOGUE) {
            Past::Alone
        } else if there(paths::GENERATION) {
            Past::Bereft
        } else {
            Past::Unborn
        }
    }
}

fn written(endpoint: &Endpoint) -> String {
    let Endpoint { host, port } = endpoint;
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn failed(error: impl std::fmt::Display) -> ServeError {
    ServeError::Failed(error.to_string())
}

/// The id of the cluster that a node without one is to join.
///
/// # Errors
/// Nobody that it was told of is a member of a cluster.
pub async fn cluster_to_join(cluster: &ClusterSettings) -> Result<[u8; 16], ServeError> {
    find_cluster(&cluster.join, Duration::from_millis(limits::JOIN_PATIENCE_MS)).await.map_err(failed)
}

/// A node in its cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Membership {
    store: ClusterStore,
    registration: Arc<Registration>,
    /// It is about to stop, and is not registered again.
    leaving: Arc<AtomicBool>,
}

/// Starts the consensus of a node of this past. Blocks while files are read.
///
/// # Errors
/// Its files can't be used.
pub fn start_consensus(
    settings: &ServeSettings,
    cluster: &ClusterSettings,
    past: Past,
    registration: Registration,
    listener: TcpListener,
    witness: Witness,
) -> Result<(Consensus, Membership), ServeError> {
    let origin = match past {
        Past::Unborn if cluster.join.is_empty() => Origin::Found { catalogue: None },
        Past::Alone => Origin::Found { catalogue: Some(settings.data.join(paths::CATALOGUE)) },
        // A take-over that was cut short left its catalogue, which the votes have made void.
        Past::Member if settings.data.join(paths::CATALOGUE).exists() => {
            Origin::Found { catalogue: Some(settings.data.join(paths::CATALOGUE)) }
        }
        // One that was never let in asks whom it is told of; one that was asks those that it knows besides.
        Past::Unborn | Past::Member if !cluster.join.is_empty() => Origin::Join { members: cluster.join.clone() },
        Past::Unborn | Past::Member | Past::Bereft => Origin::Return,
    };
    let (snapshot_entries, keep_entries) = ConsensusSettings::ENTRIES;
    let address = registration.cluster_address.as_ref().map(written).unwrap_or_default();
    let consensus = ConsensusSettings {
        directory: settings.data.join(paths::CONSENSUS_DIR),
        cluster: registration.cluster,
        incarnation: registration.incarnation,
        node: registration.node,
        proposer: uuid::Uuid::new_v4().as_u64_pair().0,
        listener: Some(listener),
        address,
        origin,
        voters: cluster.voters,
        timing: Timing::new(cluster.heartbeat, cluster.election),
        snapshot_entries,
        keep_entries,
        cpu: settings.spare_cpus.first().copied(),
    };
    let (consensus, store) =
        Consensus::start(consensus, Box::new(ByCatalogue), witness).map_err(|error| ServeError::Store(error.to_string()))?;
    Ok((consensus, Membership { store, registration: Arc::new(registration), leaving: Arc::default() }))
}

/// Why a node is not in its cluster.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The cluster does not let it in.
    #[error("{0}")]
    NotLetIn(StartError),
    /// It can't go on, or its registration is refused.
    #[error("{0}")]
    Failed(String),
}

impl Membership {
    /// The metadata.
    pub fn store(&self) -> &ClusterStore {
        &self.store
    }

    fn node(&self) -> u32 {
        self.registration.node
    }

    /// Waits until this node is a member and knows all that was decided, then registers it. Without a majority nothing can be decided, and this node may not act: it waits
    /// for the others however long they take.
    ///
    /// # Errors
    /// The cluster does not let it in, or its registration is refused.
    pub async fn enter(&self) -> Result<(), EnterError> {
        loop {
            match self.store.ready(self.patience()).await {
                Ok(()) => break,
                Err(StartError::NotReady(refusal)) if refusal.code == Code::Unavailable => {
                    let members = self.store.consensus().members;
                    let known: Vec<_> = members.iter().map(|member| format!("{} at {}", member.node, member.address)).collect();
                    tracing::warn!(%refusal, members = known.join(", "), "waiting for the other nodes of the cluster");
                }
                Err(error @ StartError::NotLetIn(_)) => return Err(EnterError::NotLetIn(error)),
                Err(error) => return Err(EnterError::Failed(error.to_string())),
            }
        }
        self.register().await
    }

    /// An earlier life of this node may be in the way until its lease has ended, however long leases are.
    fn patience(&self) -> Duration {
        Duration::from_millis(limits::JOIN_PATIENCE_MS).max(2 * self.store.node_lease())
    }

    /// Registers this node, again and again while an earlier life of it is not fenced yet.
    async fn register(&self) -> Result<(), EnterError> {
        let deadline = Instant::now() + self.patience();
        loop {
            let Err(refusal) = self.propose_registration(self.registration.clean_stop).await else { return Ok(()) };
            // For a majority it waits as long as it takes.
            let passes =
                refusal.code == Code::Unavailable || (refusal.code == Code::DuplicateBrokerRegistration && Instant::now() < deadline);
            if !passes {
                return Err(EnterError::Failed(format!("this node can't be registered: {refusal}")));
            }
            tracing::info!(%refusal, "the registration of this node has to wait");
            tokio::time::sleep(Duration::from_millis(limits::REGISTER_RETRY_MS)).await;
        }
    }

    async fn propose_registration(&self, clean_stop: bool) -> Result<(), Refusal> {
        let registration = Registration { clean_stop, ..Registration::clone(&self.registration) };
        self.store.propose(Command::RegisterNode(Box::new(registration))).await.map(drop)
    }

    /// Keeps the shards' lease in step with the consensus, and registers the node again when it was fenced: a pause may be longer than a lease. `in_force`: the catalogue
    /// that all shards act by, in commands. Ends with a reason for which this node must not go on.
    pub async fn keep_lease(self, lease: Lease, shards: ControlEnd, mut in_force: watch::Receiver<u64>) -> String {
        let mut word = self.store.lease();
        loop {
            let now = *word.borrow_and_update();
            if let Some(until) = now.until {
                if lease.holds() {
                    lease.extend(until);
                } else if self.shards_follow(&mut in_force, until).await {
                    lease.extend(until);
                    shards.tell_lease().await;
                }
            }
            if now.fenced {
                lease.revoke();
            }
            if now.fenced
                && !self.leaving.load(Relaxed)
                && let Err(reason) = self.register_anew().await
            {
                return reason;
            }
            if word.changed().await.is_err() {
                return "the consensus has ended".into();
            }
        }
    }

    /// Whether all shards act by what was decided while this node had no lease, before the new one ends: what they led then others may lead now.
    async fn shards_follow(&self, in_force: &mut watch::Receiver<u64>, until: Instant) -> bool {
        let wanted = self.store.view().commands();
        let follow = in_force.wait_for(|commands| *commands >= wanted);
        matches!(tokio::time::timeout_at(until.into(), follow).await, Ok(Ok(_)))
    }

    /// The leader's word that this node is fenced may be older than its last registration, so it is looked at first.
    async fn register_anew(&self) -> Result<(), String> {
        let outcome = match self.store.barrier().await {
            Err(refusal) => Err(refusal),
            Ok(()) => {
                let view = self.store.view();
                match view.node(self.node()) {
                    None => return Err(format!("node {} was removed from the cluster", self.node())),
                    Some(node) if node.registration.incarnation != self.registration.incarnation => {
                        let address = node.registration.cluster_address.as_ref().map(written).unwrap_or_default();
                        return Err(format!("another node has come as node {} while this one was silent, at {address}", self.node()));
                    }
                    Some(node) if node.is_live() => return Ok(()),
                    // Nothing that was acknowledged is lost by a pause.
                    Some(_) => self.propose_registration(true).await,
                }
            }
        };
        match outcome {
            Ok(()) => tracing::warn!("this node was silent for too long and was fenced; it is registered again"),
            Err(refusal) => {
                tracing::warn!(%refusal, "this node is fenced, and can't be registered yet");
                tokio::time::sleep(Duration::from_millis(limits::REGISTER_RETRY_MS)).await;
            }
        }
        Ok(())
    }

    /// Nodes that were let in a moment ago become voters a moment later. A founder that stops in between would take the only vote with it.
    async fn others_vote(&self) {
        loop {
            let members = self.store.consensus().members;
            let (nodes, voters) = (members.len(), members.iter().filter(|member| member.votes).count());
            if nodes < limits::CONSENSUS_VOTERS || voters >= limits::CONSENSUS_VOTERS {
                return;
            }
            tokio::time::sleep(Duration::from_millis(limits::LISTEN_RETRY_MS * 10)).await;
        }
    }

    /// Hands leadership over before this node stops, then leaves every ISR: when this returns others lead its partitions, as far as they can, and wait for nothing of it.
    /// Gives up after [`limits::HAND_OVER_MS`].
    pub async fn leave(&self) {
        self.leaving.store(true, Relaxed);
        let (node, view) = (self.node(), self.store.view());
        let others = view.nodes().filter(|other| other.id() != node && other.is_live()).count();
        let Some(node_epoch) = view.node(node).map(|node| node.epoch).filter(|_| others > 0) else { return };
        if tokio::time::timeout(Duration::from_millis(limits::VOTERS_PATIENCE_MS), self.others_vote()).await.is_err() {
            tracing::warn!("there are three nodes, and fewer vote: without this one nothing may be decided");
        }
        let leave = async {
            self.store.propose(Command::DrainNode { node, node_epoch }).await?;
            let mut views = self.store.subscribe();
            let _ = views.wait_for(|view| !leads_for_others(view, node)).await;
            tracing::info!("other nodes lead now");
            self.store.propose(Command::FenceNode { node, node_epoch }).await?;
            // Committed is not yet known to be committed: should this node lead the consensus, others learn that with its next messages, or by an election a second later. Until they
            // do, the new leaders wait for a member of their ISRs that has gone.
            self.store.barrier().await?;
            tokio::time::sleep(Duration::from_millis(limits::LEAVE_SETTLE_MS)).await;
            Ok::<_, Refusal>(())
        };
        match tokio::time::timeout(Duration::from_millis(limits::HAND_OVER_MS), leave).await {
            Ok(Ok(_)) => {}
            Ok(Err(refusal)) => tracing::warn!(%refusal, "leadership can't be handed over"),
            Err(_) => tracing::warn!("leadership was not handed over in time"),
        }
    }
}

/// Whether the node leads a partition that another member of its ISR could lead: one that is there and does not stop itself.
fn leads_for_others(view: &CatalogueView, node: u32) -> bool {
    let stays = |other: &u32| *other != node && view.node(*other).is_some_and(|other| other.state == NodeState::Live);
    view.all_partitions().any(|(_, record)| record.leader == Some(node) && record.isr.iter().any(stays))
}
