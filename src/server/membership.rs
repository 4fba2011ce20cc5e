//! Where a node's metadata comes from: a file of its own, or the consensus of a cluster that it founds, joins or goes back to.
//!
//! | the data directory | without `--cluster-listen` | with it |
//! | --- | --- | --- |
//! | is empty | a node that is alone | founds a cluster, or joins one that `--join` names |
//! | has a catalogue of its own | goes on alone | founds a cluster with the topics that are there |
//! | knows its cluster | is refused: others look for it | goes back to it, whatever `--join` says |

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::bridge::ControlEnd;
use crate::cluster::{CatalogueView, Command, Committed, Endpoint, NodeState, Registration};
use crate::control::metadata::{MetadataStore, SingleNodeLog, Witness};
use crate::control::raft::settings::Registry;
use crate::control::raft::store::{ConsensusStatus, StartError, ask_cluster};
use crate::control::raft::{ClusterStore, Consensus, ConsensusSettings, Origin, Timing};
use crate::limits;
use crate::log::file_header::MetaSlot;
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
    fn is_live(&self, view: &CatalogueView, node: u32) -> bool {
        view.node(node).is_some_and(|node| node.state != NodeState::Fenced)
    }

    fn fence(&self, view: &CatalogueView, node: u32) -> Option<Command> {
        let node = view.node(node).filter(|node| node.state != NodeState::Fenced)?;
        Some(Command::FenceNode { node: node.id(), node_epoch: node.epoch })
    }
}

/// The id of the cluster that a node without one is to join.
///
/// # Errors
/// Nobody that it was told of is a member of a cluster.
pub fn cluster_to_join(cluster: &ClusterSettings) -> Result<[u8; 16], ServeError> {
    ask_cluster(&cluster.join, Duration::from_millis(limits::JOIN_PATIENCE_MS)).map_err(failed)
}

/// Whether the data directory belongs to a node of a cluster.
pub fn knows_its_cluster(data: &Path) -> bool {
    data.join(paths::CONSENSUS_DIR).exists()
}

fn written(endpoint: &Endpoint) -> String {
    let Endpoint { host, port } = endpoint;
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn failed(error: impl std::fmt::Display) -> ServeError {
    ServeError::Failed(error.to_string())
}

/// Starts the consensus, and waits until this node is a member, knows all that was decided, and is registered.
///
/// # Errors
/// Its files can't be used, the cluster does not let it in, or its registration is refused.
pub fn enter_cluster(
    settings: &ServeSettings,
    cluster: &ClusterSettings,
    meta: &MetaSlot,
    joins: bool,
    registration: &Registration,
    listener: TcpListener,
    witness: Witness,
) -> Result<(Consensus, ClusterStore), ServeError> {
    let directory = settings.data.join(paths::CONSENSUS_DIR);
    let catalogue = Some(settings.data.join(paths::CATALOGUE)).filter(|path| path.exists());
    let origin = match (joins, directory.exists()) {
        (true, _) => Origin::Join { members: cluster.join.clone() },
        (false, true) if catalogue.is_none() => Origin::Return,
        // Again, where an earlier start ended between the two.
        (false, _) => Origin::Found { catalogue },
    };
    let (snapshot_entries, keep_entries) = ConsensusSettings::ENTRIES;
    let address = registration.cluster_address.as_ref().map(written).unwrap_or_default();
    let consensus = ConsensusSettings {
        directory,
        cluster: meta.cluster,
        incarnation: meta.incarnation,
        node: meta.node_id,
        proposer: uuid::Uuid::new_v4().as_u64_pair().0,
        listener: Some(listener),
        address,
        origin,
        voters: 3,
        timing: Timing::default(),
        snapshot_entries,
        keep_entries,
        cpu: settings.spare_cpus.first().copied(),
    };
    let (consensus, store) = Consensus::start(consensus, Box::new(ByCatalogue), witness).map_err(failed)?;
    wait_for_cluster(&store)?;
    register(&store, registration)?;
    Ok((consensus, store))
}

/// Without a majority nothing can be decided, and this node may not act: it waits for the others however long they take.
fn wait_for_cluster(store: &ClusterStore) -> Result<(), ServeError> {
    loop {
        match store.ready_blocking(Duration::from_millis(limits::JOIN_PATIENCE_MS)) {
            Ok(()) => return Ok(()),
            Err(StartError::NotReady(refusal)) => {
                let ConsensusStatus { members, .. } = store.status();
                tracing::warn!(%refusal, members = members.len(), "waiting for the other nodes of the cluster");
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Registers this node, again and again while an earlier life of it is not fenced yet.
fn register(store: &ClusterStore, registration: &Registration) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    let deadline = Instant::now() + Duration::from_millis(limits::JOIN_PATIENCE_MS);
    loop {
        let command = Command::RegisterNode(Box::new(registration.clone()));
        match runtime.block_on(store.propose(command)) {
            Ok(_) => return Ok(()),
            Err(refusal) if Instant::now() < deadline && may_pass(refusal.code) => {
                tracing::info!(%refusal, "the registration of this node has to wait");
                std::thread::sleep(Duration::from_millis(limits::REGISTER_RETRY_MS));
            }
            Err(refusal) => return Err(ServeError::Failed(format!("this node can't be registered: {refusal}"))),
        }
    }
}

fn may_pass(code: Code) -> bool {
    matches!(code, Code::DuplicateBrokerRegistration | Code::Unavailable | Code::RequestTimedOut | Code::NotLeader)
}

/// Keeps the shards' lease in step with the consensus, and registers the node again when it was fenced: a pause may be longer than a lease.
pub async fn keep_lease(store: ClusterStore, lease: Lease, shards: ControlEnd, registration: Registration) {
    let mut word = store.lease();
    // Nothing that was acknowledged is lost by a pause.
    let registration = Registration { clean_stop: true, ..registration };
    loop {
        let now = *word.borrow_and_update();
        if let Some(until) = now.until {
            let had_ended = !lease.holds();
            lease.extend(until);
            if had_ended && lease.holds() {
                shards.tell_lease().await;
            }
        }
        // The word may be older than the registration.
        if now.fenced && store.view().node(registration.node).is_none_or(|node| !node.is_live()) {
            let outcome = store.propose(Command::RegisterNode(Box::new(registration.clone()))).await;
            match outcome {
                Ok(_) => tracing::warn!("this node was fenced, and is registered again"),
                Err(refusal) => tracing::warn!(%refusal, "this node is fenced, and can't be registered yet"),
            }
            tokio::time::sleep(Duration::from_millis(limits::REGISTER_RETRY_MS)).await;
            if word.has_changed().is_ok() {
                continue;
            }
        }
        if word.changed().await.is_err() {
            return;
        }
    }
}

/// Hands leadership over before this node stops: its partitions are led by others when this returns, as far as others can.
pub fn hand_over(store: &ClusterStore, node: u32) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
    let Some(node_epoch) = store.view().node(node).map(|node| node.epoch) else { return };
    let drain = async {
        store.propose(Command::DrainNode { node, node_epoch }).await?;
        let mut views = store.subscribe();
        let handed_over = |view: &Arc<CatalogueView>| !leads_for_others(view, node);
        let _ = views.wait_for(handed_over).await;
        Ok::<_, Refusal>(())
    };
    let patience = Duration::from_millis(limits::HAND_OVER_MS);
    match runtime.block_on(async { tokio::time::timeout(patience, drain).await }) {
        Ok(Ok(())) => tracing::info!("other nodes lead now"),
        Ok(Err(refusal)) => tracing::warn!(%refusal, "leadership can't be handed over"),
        Err(_) => tracing::warn!("leadership was not handed over in time"),
    }
}

/// Whether the node leads a partition that another member of its ISR could lead.
fn leads_for_others(view: &CatalogueView, node: u32) -> bool {
    let live = |other: &u32| *other != node && view.node(*other).is_some_and(|other| other.is_live());
    view.all_partitions().any(|(_, record)| record.leader == Some(node) && record.isr.iter().any(live))
}
