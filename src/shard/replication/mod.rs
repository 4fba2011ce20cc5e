//! Replication as a shard does it: connections to the shards of other nodes, and a task for each replicated partition.
//!
//! ```text
//! this shard leads:   replica task ──> link to (node, shard) ──> their replica task appends, acknowledges
//! it follows:         replica task <── accepted connection  <── their replica task ships
//! ```
//! A link carries all partitions that this shard leads and that shard of the other node follows. Who leads what is told by the metadata ([`follow_metadata`]).
//!
//! Not here: the rules ([`crate::replication`]), the log ([`crate::shard::replica`]).

mod accepting;
mod behind;
mod connection;
mod effects;
mod link;
mod mending;
mod metadata;
mod outbox;
mod pace;
mod receiving;
mod replica;
mod shipping;

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use glommio::{Latency, Shares, TaskQueueHandle};

use crate::cluster::CatalogueView;
use crate::replication::{Millis, NodeId};
use crate::shard::context::Context;
use crate::shard::role::Role;
use crate::shard::topics::is_alone;
use crate::types::TopicPartition;

use link::Link;
use replica::{Input, Replica, Waiting};

pub use accepting::accept;
pub use pace::Pace;

/// Shares of the queue for whole segments; the others have 1000.
const SEGMENT_SHARES: usize = 200;

/// Until when this node may acknowledge, told by the control plane: milliseconds since [`Lease::begin`]. One for all shards.
#[derive(Clone, Debug)]
pub struct Lease {
    begun: Instant,
    until: Arc<AtomicU64>,
}

impl Default for Lease {
    fn default() -> Lease {
        Lease::begin()
    }
}

impl Lease {
    /// None yet; the clock of all leases of this process begins.
    pub fn begin() -> Lease {
        Lease { begun: Instant::now(), until: Arc::default() }
    }

    /// It goes until `moment`.
    pub fn extend(&self, moment: Instant) {
        let until = moment.saturating_duration_since(self.begun).as_millis() as u64;
        self.until.fetch_max(until, Ordering::Relaxed);
    }

    /// It has ended: this node was fenced. The next one begins as the first did, once all shards act by what was decided since.
    pub fn revoke(&self) {
        self.until.store(0, Ordering::Relaxed);
    }

    /// Whether it goes on.
    pub fn holds(&self) -> bool {
        self.now() < self.until.load(Ordering::Relaxed)
    }

    fn now(&self) -> Millis {
        self.begun.elapsed().as_millis() as u64
    }
}

/// A shard and its connections.
#[derive(Default)]
pub struct Replication {
    lease: Lease,
    replicas: RefCell<HashMap<TopicPartition, Rc<Replica>>>,
    links: RefCell<HashMap<(NodeId, u32), Rc<Link>>>,
    waiting: Rc<Waiting>,
    /// How fast what followers catch up with leaves this node.
    pace: OnceCell<Pace>,
    segment_queue: OnceCell<TaskQueueHandle>,
    /// Partitions whose files are being removed: a replica of the same partition begins after that.
    pub dropping: RefCell<HashSet<TopicPartition>>,
}

impl Replication {
    /// Of a node with that lease.
    pub fn new(lease: Lease) -> Replication {
        Replication { lease, ..Replication::default() }
    }

    /// Whole segments leave as fast as `pace` says, which all shards of the node share; the first word counts.
    pub fn set_pace(&self, pace: Pace) {
        let _ = self.pace.set(pace);
    }

    fn pace(&self) -> &Pace {
        self.pace.get_or_init(Pace::default)
    }

    /// The task queue in which whole segments are read and written: below all live traffic.
    fn segment_queue(&self) -> TaskQueueHandle {
        let create = || glommio::executor().create_task_queue(Shares::Static(SEGMENT_SHARES), Latency::NotImportant, "segments");
        *self.segment_queue.get_or_init(create)
    }

    /// The machines' clock.
    pub fn now(&self) -> Millis {
        self.lease.now()
    }

    /// Until when this node may acknowledge.
    pub fn lease_until(&self) -> Millis {
        self.lease.until.load(Ordering::Relaxed)
    }

    /// Whether this node may take itself for a member of the cluster that is there.
    pub fn holds_lease(&self) -> bool {
        self.lease.holds()
    }

    /// A moment of the machines' clock.
    pub fn moment(&self, at: Millis) -> Instant {
        self.lease.begun + Duration::from_millis(at)
    }

    /// The replica of a partition.
    fn replica(&self, id: &TopicPartition) -> Option<Rc<Replica>> {
        self.replicas.borrow().get(id).cloned()
    }

    /// The partition is no replica any more.
    pub fn forget(&self, id: &TopicPartition) {
        if let Some(replica) = self.replicas.borrow_mut().remove(id) {
            replica.end();
        }
    }

    /// The partition's replica, if there is one, looks again at what it may do.
    pub fn look_again(&self, id: &TopicPartition) {
        if let Some(replica) = self.replica(id) {
            replica.look_again();
        }
    }

    /// Every replica looks again at what it may do.
    pub fn wake_all(&self) {
        self.replicas.borrow().values().for_each(|replica| replica.look_again());
    }

    /// The shard ends: every task of it does.
    pub fn stop(&self) {
        self.replicas.borrow_mut().drain().for_each(|(_, replica)| replica.end());
        self.links.borrow_mut().drain().for_each(|(_, link)| link.end());
    }
}

/// Acts by a state of the metadata: replicas of this shard hear of it, and links go to where followers are. `changed`: partitions whose records or topics are not those of `before`.
pub fn follow_metadata(context: &Rc<Context>, view: &Arc<CatalogueView>, before: &CatalogueView, mut changed: BTreeSet<TopicPartition>) {
    let node = context.identity.node;
    let nodes = changed_nodes(view, before);
    if !nodes.is_empty() {
        // A node that was registered anew is another one to those that ship to it, whether it is in their records' ISR or not.
        let known = context.replication.replicas.borrow();
        let concerned = |id: &&TopicPartition| {
            view.partition(id).is_some_and(|record| record.replicas.iter().any(|replica| nodes.contains(&replica.node)))
        };
        changed.extend(known.keys().filter(concerned));
    }
    for id in changed.iter().filter(|id| view.shard_on(node, id) == Some(context.mesh.shard())) {
        let Some(cell) = context.store.partition(id) else { continue };
        let known = context.replication.replica(id);
        if known.is_none() && cell.role() == Role::Alone && view.partition(id).is_none_or(|record| is_alone(record, node)) {
            continue;
        }
        let replica = known.unwrap_or_else(|| {
            let replica = Replica::new(cell, context.replication.waiting.clone());
            context.replication.replicas.borrow_mut().insert(*id, replica.clone());
            glommio::spawn_local(replica.clone().run(context.clone())).detach();
            replica
        });
        replica.tell(Input::Metadata(view.clone()));
    }
    follow_links(context, view);
}

/// Nodes that are registered anew, fenced, back or gone since `before`.
fn changed_nodes(view: &CatalogueView, before: &CatalogueView) -> Vec<NodeId> {
    let differs = |id: &NodeId| match (view.node(*id), before.node(*id)) {
        (Some(now), Some(then)) => !Arc::ptr_eq(now, then),
        (now, then) => now.is_some() != then.is_some(),
    };
    let all = view.nodes().chain(before.nodes()).map(|node| node.registration.node);
    all.filter(differs).collect::<BTreeSet<_>>().into_iter().collect()
}

/// A link for each shard of another node that follows a partition led here.
fn follow_links(context: &Rc<Context>, view: &Arc<CatalogueView>) {
    let node = context.identity.node;
    let mut wanted: HashMap<(NodeId, u32), HashSet<TopicPartition>> = HashMap::new();
    for id in context.replication.replicas.borrow().keys() {
        let Some(record) = view.partition(id).filter(|record| record.leader == Some(node)) else { continue };
        for other in record.replicas.iter().map(|replica| replica.node).filter(|other| *other != node) {
            let is_live = view.node(other).is_some_and(|node| node.is_live());
            if let Some(shard) = view.shard_on(other, id).filter(|_| is_live) {
                wanted.entry((other, shard)).or_default().insert(*id);
            }
        }
    }
    let mut links = context.replication.links.borrow_mut();
    links.retain(|to, link| {
        let stays = wanted.contains_key(to) && view.node(to.0).is_some_and(|node| node.epoch == link.node_epoch);
        if !stays {
            link.end();
        }
        stays
    });
    for (to, partitions) in wanted {
        let Some(other) = view.node(to.0) else { continue };
        let Some(endpoint) = other.replication_endpoint(to.1) else { continue };
        let link = links.entry(to).or_insert_with(|| {
            let link = Link::new(to, other.epoch, endpoint);
            glommio::spawn_local(link.clone().run(context.clone())).detach();
            link
        });
        link.set_partitions(context, partitions);
    }
}
