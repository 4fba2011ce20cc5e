//! Consensus, as the nodes see it: one order of changes, made when the request arrives, heard of later.
//!
//! A node is live while its lease runs. One that was away is registered anew, under another node epoch, so that nothing that was refused on account of it
//! can be taken later. A registration from another disk than before means that each replica of the node is lost.

use std::collections::BTreeMap;
use std::rc::Rc;

use corelane::replication::{IsrChange, Millis, NodeId, PartitionRecord, RecordRefusal};

use crate::disk::PartitionId;
use crate::planted::Planted;

/// A lease, from the heartbeat's arrival here, from its departure for the node.
pub const LEASE_MS: Millis = 1500;

#[derive(Clone, Debug)]
pub struct PartitionMeta {
    pub record: PartitionRecord,
    pub min_insync: usize,
}

/// A state, as nodes get it.
#[derive(Debug)]
pub struct Snapshot {
    pub index: u64,
    pub partitions: BTreeMap<PartitionId, PartitionMeta>,
    /// Live nodes.
    pub node_epochs: BTreeMap<NodeId, u64>,
}

#[derive(Default)]
struct NodeMeta {
    node_epoch: Option<u64>,
    expires: Millis,
    last_registration: u64,
    disk: Option<u64>,
}

/// A change of a record.
#[derive(Clone, Debug)]
pub struct Change {
    pub partition: PartitionId,
    pub before: PartitionRecord,
    pub after: PartitionRecord,
    pub is_reassigned: bool,
}

pub struct Metadata {
    pub partitions: BTreeMap<PartitionId, PartitionMeta>,
    nodes: BTreeMap<NodeId, NodeMeta>,
    index: u64,
    /// Since somebody looked.
    pub changes: Vec<Change>,
    has_news: bool,
    planted: Planted,
}

impl Metadata {
    pub fn new(planted: Planted) -> Metadata {
        let (partitions, nodes) = (BTreeMap::new(), BTreeMap::new());
        Metadata { partitions, nodes, index: 0, changes: Vec::new(), has_news: false, planted }
    }

    pub fn create(&mut self, partition: PartitionId, replicas: &[NodeId], min_insync: usize) {
        let record = PartitionRecord::new(replicas, |_| false);
        self.partitions.insert(partition, PartitionMeta { record, min_insync });
    }

    pub fn is_live(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|meta| meta.node_epoch.is_some())
    }

    /// The disk under which a node was registered last.
    pub fn disk_of(&self, node: NodeId) -> Option<u64> {
        self.nodes.get(&node)?.disk
    }

    pub fn snapshot(&self) -> Rc<Snapshot> {
        let node_epochs = self.nodes.iter().filter_map(|(node, meta)| Some((*node, meta.node_epoch?))).collect();
        Rc::new(Snapshot { index: self.index, partitions: self.partitions.clone(), node_epochs })
    }

    /// Whether there is news to tell since this was last asked.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    fn news(&mut self) {
        self.index += 1;
        self.has_news = true;
    }

    fn live(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, meta)| meta.node_epoch.is_some()).map(|(node, _)| *node).collect()
    }

    fn change<T>(
        &mut self,
        partition: PartitionId,
        change: impl FnOnce(&mut PartitionRecord, usize, &dyn Fn(NodeId) -> bool) -> T,
    ) -> Option<T> {
        let live = self.live();
        let meta = self.partitions.get_mut(&partition)?;
        let before = meta.record.clone();
        let result = change(&mut meta.record, meta.min_insync, &|node| live.contains(&node));
        if meta.record != before {
            if self.planted.keeps_eligible {
                let gone: Vec<NodeId> =
                    before.eligible.iter().copied().filter(|n| !meta.record.eligible.contains(n) && !meta.record.in_sync(*n)).collect();
                meta.record.eligible.extend(gone);
            }
            let is_reassigned = before.target.is_some() && meta.record.target.is_none();
            self.changes.push(Change { partition, before, after: meta.record.clone(), is_reassigned });
            self.news();
        }
        Some(result)
    }

    /// A node is there with this disk. `registration` rises with each try. Its node epoch, unless a later registration is known.
    pub fn register(&mut self, node: NodeId, registration: u64, disk: u64, now: Millis) -> Option<u64> {
        let ids: Vec<PartitionId> = self.partitions.keys().copied().collect();
        let meta = self.nodes.entry(node).or_default();
        if registration < meta.last_registration {
            return None;
        }
        if registration == meta.last_registration && meta.node_epoch.is_some() {
            return meta.node_epoch;
        }
        meta.last_registration = registration;
        meta.node_epoch = None;
        let is_wiped = meta.disk.is_some_and(|known| known != disk) && !self.planted.hides_losses;
        meta.disk = Some(disk);
        for id in &ids {
            if is_wiped {
                self.change(*id, |record, min_insync, live| record.replica_lost(node, min_insync, live));
            }
            if self.partitions[id].record.leader == Some(node) && !self.planted.epoch_goes_on {
                // It restarted before anybody saw that it was away: it may lead again, in another epoch.
                self.change(*id, |record, min_insync, live| record.node_away(node, min_insync, live));
            }
        }
        self.news();
        let node_epoch = self.index;
        let meta = self.nodes.entry(node).or_default();
        meta.node_epoch = Some(node_epoch);
        meta.expires = now + LEASE_MS;
        for id in &ids {
            self.change(*id, |record, min_insync, live| record.node_back(node, min_insync, live));
        }
        Some(node_epoch)
    }

    /// False if the node has to register anew.
    pub fn heartbeat(&mut self, node: NodeId, node_epoch: u64, now: Millis) -> bool {
        match self.nodes.get_mut(&node).filter(|meta| meta.node_epoch == Some(node_epoch)) {
            Some(meta) => meta.expires = meta.expires.max(now + LEASE_MS),
            None => return false,
        }
        true
    }

    pub fn propose(&mut self, partition: PartitionId, proposal: &IsrChange) -> Result<(), RecordRefusal> {
        let epochs: BTreeMap<NodeId, u64> = self.nodes.iter().filter_map(|(node, meta)| Some((*node, meta.node_epoch?))).collect();
        self.change(partition, |record, min_insync, _| record.change_isr(proposal, min_insync, |node| epochs.get(&node).copied()))
            .unwrap_or(Err(RecordRefusal::Invalid("no such partition")))
    }

    /// The replica in this life has lost something.
    pub fn lost(&mut self, partition: PartitionId, node: NodeId, incarnation: u32) {
        self.change(partition, |record, min_insync, live| {
            if record.replica(node).is_some_and(|replica| replica.incarnation == incarnation) {
                record.replica_lost(node, min_insync, live);
            }
        });
    }

    pub fn hand_over(&mut self, partition: PartitionId, to: NodeId) {
        self.change(partition, |record, _, live| record.hand_over(to, live).ok());
    }

    pub fn reassign(&mut self, partition: PartitionId, target: &[NodeId]) {
        self.change(partition, |record, _, _| record.reassign(target).ok());
    }

    pub fn elect_unclean(&mut self, partition: PartitionId, node: NodeId) -> bool {
        self.change(partition, |record, _, live| record.elect_unclean(node, live).is_ok()).unwrap_or(false)
    }

    pub fn set_min_insync(&mut self, partition: PartitionId, min_insync: usize) {
        if let Some(meta) = self.partitions.get_mut(&partition) {
            meta.min_insync = min_insync;
        }
        self.news();
        self.change(partition, |record, min_insync, _| record.min_insync_changed(min_insync));
    }

    /// Leases end, reassignments end.
    pub fn tick(&mut self, now: Millis) {
        let away: Vec<NodeId> =
            self.nodes.iter().filter(|(_, meta)| meta.node_epoch.is_some() && meta.expires <= now).map(|(node, _)| *node).collect();
        let ids: Vec<PartitionId> = self.partitions.keys().copied().collect();
        for node in away {
            self.nodes.entry(node).or_default().node_epoch = None;
            self.news();
            for id in &ids {
                self.change(*id, |record, min_insync, live| record.node_away(node, min_insync, live));
            }
        }
        for id in ids {
            self.change(id, |record, min_insync, live| record.finish_reassignment(min_insync, live));
        }
    }
}
