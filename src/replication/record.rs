//! What consensus holds of one partition, and each way in which that may change.
//!
//! The rules and what each is for:
//! - **A member of the ISR has everything below the watermark**, because the watermark is at most the least durable end of the ISR. So each of them may lead.
//! - **Eligible leaders** are those that left the ISR while it was (or thereby became) smaller than `min.insync.replicas`: the watermark has not moved since, so they
//!   too have everything below it. They go in the very commit that lets the watermark move again, or one of them would come back without what was acknowledged meanwhile.
//! - **A replica that lost anything it had acknowledged** gets a new incarnation and leaves ISR and eligible leaders before it serves; an acknowledgement or a
//!   proposal that names the old incarnation is refused, or it would vouch for bytes that are gone.
//! - **Each election raises the leader epoch, each change the version**: a proposal made on older knowledge is refused whole.
//! - **An election outside of the eligible ones** loses data. It happens by an administrator's word only and leaves its epoch behind, so that followers may cut below their watermark once.

use crate::types::LeaderEpoch;

/// A node of the cluster: below 2^21, so that `node * 1024 + shard` is a Kafka broker id.
pub type NodeId = u32;

/// A replica and which life of its log is meant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Replica {
    /// Where it is.
    pub node: NodeId,
    /// The version of the record at which this life began: a replica that comes again, or that lost what it had acknowledged, never has an earlier one's.
    pub incarnation: u32,
}

/// A partition as all nodes know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionRecord {
    /// The replicas, the preferred leader first.
    pub replicas: Vec<Replica>,
    /// During a reassignment: the replicas as they are to be. They are all in `replicas` until then, beside those that go.
    pub target: Option<Vec<NodeId>>,
    /// In sync: each has everything below the watermark, and the watermark waits for each.
    pub isr: Vec<NodeId>,
    /// Not in sync, and with everything below the watermark all the same.
    pub eligible: Vec<NodeId>,
    /// Who leads; `None` while nobody may.
    pub leader: Option<NodeId>,
    /// Counts elections, from 0.
    pub leader_epoch: LeaderEpoch,
    /// Counts changes, from 0.
    pub version: u32,
    /// The last epoch that began with an election outside of the eligible ones.
    pub unclean_epoch: Option<LeaderEpoch>,
}

/// Who is to join the ISR, with all that the leader knew of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Joiner {
    /// Which replica, in which life.
    pub replica: Replica,
    /// The registration under which it acknowledged.
    pub node_epoch: u64,
}

/// A leader's proposal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IsrChange {
    /// Who proposes.
    pub leader: NodeId,
    /// In which epoch.
    pub leader_epoch: LeaderEpoch,
    /// On which version of the record.
    pub version: u32,
    /// Who is to leave.
    pub leave: Vec<NodeId>,
    /// Who is to join.
    pub join: Vec<Joiner>,
}

/// Why a change is refused; nothing has changed then.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordRefusal {
    /// Made on older knowledge.
    #[error("made on version {actual} of the record, which is at {expected}")]
    StaleVersion {
        /// The record's.
        expected: u32,
        /// The proposal's.
        actual: u32,
    },
    /// By one that does not lead (any more).
    #[error("node {node} does not lead in epoch {epoch}")]
    NotLeader {
        /// Who proposed.
        node: NodeId,
        /// In which epoch.
        epoch: LeaderEpoch,
    },
    /// Of a node that has no replica.
    #[error("node {0} has no replica")]
    NotReplica(NodeId),
    /// Of another life of a replica.
    #[error("the replica on node {node} has incarnation {expected}, not {actual}")]
    StaleIncarnation {
        /// Where.
        node: NodeId,
        /// The record's.
        expected: u32,
        /// The proposal's.
        actual: u32,
    },
    /// Of a node that is not registered, or registered anew since.
    #[error("node {0} is away, or was registered anew since")]
    StaleNode(NodeId),
    /// Makes no sense as it is.
    #[error("{0}")]
    Invalid(&'static str),
}

impl PartitionRecord {
    /// A new partition: every replica is in sync with nothing. `live` says of a node whether it may lead; the first such replica does.
    ///
    /// # Panics
    /// Without replicas, or with one node twice.
    pub fn new(replicas: &[NodeId], live: impl Fn(NodeId) -> bool) -> PartitionRecord {
        assert!(!replicas.is_empty(), "a partition has replicas");
        assert!((1..replicas.len()).all(|at| !replicas[..at].contains(&replicas[at])), "a node has one replica");
        let leader = replicas.iter().copied().find(|node| live(*node));
        PartitionRecord {
            replicas: replicas.iter().map(|node| Replica { node: *node, incarnation: 0 }).collect(),
            target: None,
            isr: replicas.to_vec(),
            eligible: Vec::new(),
            leader,
            leader_epoch: 0,
            version: 0,
            unclean_epoch: None,
        }
    }

    /// The replica on a node.
    pub fn replica(&self, node: NodeId) -> Option<Replica> {
        self.replicas.iter().copied().find(|replica| replica.node == node)
    }

    /// Whether a node is in sync.
    pub fn in_sync(&self, node: NodeId) -> bool {
        self.isr.contains(&node)
    }

    /// Takes a leader's proposal. `node_epoch` gives the registration of a node that is live, `None` of any other.
    pub fn change_isr(
        &mut self,
        change: &IsrChange,
        min_insync: usize,
        node_epoch: impl Fn(NodeId) -> Option<u64>,
    ) -> Result<(), RecordRefusal> {
        if self.leader != Some(change.leader) || self.leader_epoch != change.leader_epoch {
            return Err(RecordRefusal::NotLeader { node: change.leader, epoch: change.leader_epoch });
        }
        if self.version != change.version {
            return Err(RecordRefusal::StaleVersion { expected: self.version, actual: change.version });
        }
        if change.leave.contains(&change.leader) {
            return Err(RecordRefusal::Invalid("a leader does not put itself out"));
        }
        if change.leave.is_empty() && change.join.is_empty() {
            return Err(RecordRefusal::Invalid("nobody leaves or joins"));
        }
        for joiner in &change.join {
            let node = joiner.replica.node;
            let replica = self.replica(node).ok_or(RecordRefusal::NotReplica(node))?;
            if replica.incarnation != joiner.replica.incarnation {
                return Err(RecordRefusal::StaleIncarnation { node, expected: replica.incarnation, actual: joiner.replica.incarnation });
            }
            if node_epoch(node) != Some(joiner.node_epoch) {
                return Err(RecordRefusal::StaleNode(node));
            }
            if change.leave.contains(&node) {
                return Err(RecordRefusal::Invalid("a node leaves and joins at once"));
            }
        }
        self.leave(&change.leave, min_insync);
        for joiner in &change.join {
            let node = joiner.replica.node;
            self.eligible.retain(|eligible| *eligible != node);
            if !self.isr.contains(&node) {
                self.isr.push(node);
            }
        }
        self.settle_eligible(min_insync);
        self.version += 1;
        Ok(())
    }

    /// A node is away: it leaves the ISR, and if it led, another one does if any may. True if anything changed.
    pub fn node_away(&mut self, node: NodeId, min_insync: usize, live: impl Fn(NodeId) -> bool) -> bool {
        let led = self.leader == Some(node);
        if !led && !self.isr.contains(&node) {
            return false;
        }
        self.leave(&[node], min_insync);
        self.settle_eligible(min_insync);
        if led {
            self.elect(min_insync, |candidate| candidate != node && live(candidate));
        }
        self.version += 1;
        true
    }

    /// A node is there (again): it leads if nobody does and it may. True if anything changed.
    pub fn node_back(&mut self, node: NodeId, min_insync: usize, live: impl Fn(NodeId) -> bool) -> bool {
        if self.leader.is_some() || !self.may_lead(node) {
            return false;
        }
        self.elect(min_insync, live);
        self.version += 1;
        true
    }

    /// A node is there under a new registration: what it led and vouched for under the earlier one has ended, and it may lead if nobody else does. One change, and
    /// at most one election; a leader that stays leads in a new epoch. `live` holds for the node. True if anything changed.
    pub fn node_registered(&mut self, node: NodeId, min_insync: usize, live: impl Fn(NodeId) -> bool) -> bool {
        let (led, was_in_sync) = (self.leader == Some(node), self.isr.contains(&node));
        let may_begin = self.leader.is_none() && self.may_lead(node);
        if !led && !was_in_sync && !may_begin {
            return false;
        }
        self.leave(&[node], min_insync);
        self.settle_eligible(min_insync);
        if led || may_begin {
            self.elect(min_insync, live);
        }
        self.version += 1;
        true
    }

    /// The replica on `node` has lost something that it had acknowledged, or all of it: it has a new incarnation, and is neither in sync nor eligible.
    /// True if the node has a replica.
    pub fn replica_lost(&mut self, node: NodeId, min_insync: usize, live: impl Fn(NodeId) -> bool) -> bool {
        let Some(replica) = self.replicas.iter_mut().find(|replica| replica.node == node) else { return false };
        replica.incarnation = self.version + 1;
        self.isr.retain(|member| *member != node);
        self.eligible.retain(|eligible| *eligible != node);
        if self.leader == Some(node) {
            self.elect(min_insync, |candidate| candidate != node && live(candidate));
        }
        self.version += 1;
        true
    }

    /// `min.insync.replicas` is another one now. True if anything changed.
    pub fn min_insync_changed(&mut self, min_insync: usize) -> bool {
        let before = self.eligible.len();
        self.settle_eligible(min_insync);
        let changed = self.eligible.len() != before;
        self.version += u32::from(changed);
        changed
    }

    /// Leadership goes to a live member of the ISR.
    pub fn hand_over(&mut self, to: NodeId, live: impl Fn(NodeId) -> bool) -> Result<(), RecordRefusal> {
        if !self.isr.contains(&to) || !live(to) {
            return Err(RecordRefusal::Invalid("leadership goes to a live member of the ISR only"));
        }
        if self.leader == Some(to) {
            return Err(RecordRefusal::Invalid("it leads already"));
        }
        self.lead(to);
        self.version += 1;
        Ok(())
    }

    /// By an administrator's word: a replica leads that may lack what was acknowledged. Refused while one is there that lacks nothing.
    pub fn elect_unclean(&mut self, node: NodeId, live: impl Fn(NodeId) -> bool) -> Result<(), RecordRefusal> {
        if self.leader.is_some() {
            return Err(RecordRefusal::Invalid("it has a leader"));
        }
        if self.replica(node).is_none() {
            return Err(RecordRefusal::NotReplica(node));
        }
        if !live(node) {
            return Err(RecordRefusal::StaleNode(node));
        }
        if self.isr.iter().chain(&self.eligible).any(|candidate| live(*candidate)) {
            return Err(RecordRefusal::Invalid("one that has everything is there and may lead"));
        }
        self.lead(node);
        self.isr = vec![node];
        self.eligible.clear();
        self.unclean_epoch = Some(self.leader_epoch);
        self.version += 1;
        Ok(())
    }

    /// Begins a reassignment to `target`, whose first node is to lead. Replicas that are new join it with nothing; those that go stay until it ends.
    pub fn reassign(&mut self, target: &[NodeId]) -> Result<(), RecordRefusal> {
        if target.is_empty() || (1..target.len()).any(|at| target[..at].contains(&target[at])) {
            return Err(RecordRefusal::Invalid("replicas are at least one node, each once"));
        }
        for node in target {
            if self.replica(*node).is_none() {
                self.replicas.push(Replica { node: *node, incarnation: self.version + 1 });
            }
        }
        self.target = Some(target.to_vec());
        self.version += 1;
        Ok(())
    }

    /// Ends a reassignment whose target is all in sync, or is the present replicas in another order, which waits for nobody: those that go are out. True if it was time for that.
    pub fn finish_reassignment(&mut self, min_insync: usize, live: impl Fn(NodeId) -> bool) -> bool {
        let Some(target) = &self.target else { return false };
        let is_order = target.len() == self.replicas.len() && target.iter().all(|node| self.replica(*node).is_some());
        if !is_order && !target.iter().all(|node| self.isr.contains(node)) {
            return false;
        }
        let target = self.target.take().unwrap_or_default();
        self.replicas = target.iter().filter_map(|node| self.replica(*node)).collect();
        self.isr.retain(|member| target.contains(member));
        self.eligible.retain(|eligible| target.contains(eligible));
        self.settle_eligible(min_insync);
        if self.leader.is_some_and(|leader| !target.contains(&leader)) {
            self.elect(min_insync, live);
        }
        self.version += 1;
        true
    }

    /// Whether anybody but `node` has everything that was acknowledged: is in sync, or eligible.
    pub fn others_may_lead(&self, node: NodeId) -> bool {
        self.isr.iter().chain(&self.eligible).any(|candidate| *candidate != node)
    }

    /// Whether a replica has everything that was acknowledged: is in sync, or eligible.
    pub fn may_lead(&self, node: NodeId) -> bool {
        self.isr.contains(&node) || self.eligible.contains(&node)
    }

    /// In the order of preference: a live member of the ISR, else a live eligible one, else nobody. If `min.insync.replicas` was lowered while nobody led, the one that
    /// begins alone moves the watermark, and others that stayed eligible would be elected later without what it acknowledged: so they go with the election.
    fn elect(&mut self, min_insync: usize, live: impl Fn(NodeId) -> bool) {
        let mut nodes = self.replicas.iter().map(|replica| replica.node).filter(|node| live(*node));
        let found = nodes.clone().find(|node| self.isr.contains(node)).or_else(|| nodes.find(|node| self.eligible.contains(node)));
        match found {
            Some(node) => {
                self.lead(node);
                self.settle_eligible(min_insync);
            }
            None => {
                self.leader = None;
                self.leader_epoch += 1;
            }
        }
    }

    fn lead(&mut self, node: NodeId) {
        self.leader = Some(node);
        self.leader_epoch += 1;
        self.eligible.retain(|eligible| *eligible != node);
        if !self.isr.contains(&node) {
            self.isr.push(node);
        }
    }

    /// Those that leave while the ISR is or becomes too small for the watermark to move keep all that is below it.
    fn leave(&mut self, nodes: &[NodeId], min_insync: usize) {
        let left: Vec<NodeId> = self.isr.iter().copied().filter(|member| nodes.contains(member)).collect();
        self.isr.retain(|member| !nodes.contains(member));
        if self.isr.len() < min_insync {
            self.eligible.extend(left.into_iter().filter(|node| !self.eligible.contains(node)).collect::<Vec<_>>());
        }
    }

    fn settle_eligible(&mut self, min_insync: usize) {
        if self.isr.len() >= min_insync {
            self.eligible.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: fn(NodeId) -> bool = |_| true;

    fn record() -> PartitionRecord {
        PartitionRecord::new(&[1, 2, 3], ALL)
    }

    fn join(record: &PartitionRecord, node: NodeId) -> IsrChange {
        IsrChange {
            leader: record.leader.unwrap(),
            leader_epoch: record.leader_epoch,
            version: record.version,
            leave: vec![],
            join: vec![Joiner { replica: record.replica(node).unwrap(), node_epoch: 7 }],
        }
    }

    #[test]
    fn those_that_leave_a_small_isr_may_still_lead() {
        let mut record = record();
        assert!(record.node_away(1, 2, ALL));
        assert_eq!((record.leader, record.leader_epoch, &record.isr[..], &record.eligible[..]), (Some(2), 1, &[2, 3][..], &[][..]));
        assert!(record.node_away(2, 2, |node| node == 3));
        assert_eq!((record.leader, &record.isr[..], &record.eligible[..]), (Some(3), &[3][..], &[2][..]));
        assert!(record.node_away(3, 2, |_| false));
        assert_eq!((record.leader, record.leader_epoch, record.isr.len(), &record.eligible[..]), (None, 3, 0, &[2, 3][..]));
        assert!(!record.node_back(1, 2, |node| node == 1), "it left while the watermark could move");
        assert!(record.node_back(2, 2, |node| node == 2));
        assert_eq!((record.leader, &record.isr[..], &record.eligible[..]), (Some(2), &[2][..], &[3][..]));
        record.change_isr(&join(&record, 1), 2, |_| Some(7)).unwrap();
        assert_eq!((&record.isr[..], &record.eligible[..]), (&[2, 1][..], &[][..]), "the watermark may move again");
    }

    #[test]
    fn proposals_on_old_knowledge_are_refused_and_change_nothing() {
        let mut record = record();
        record.node_away(3, 2, ALL);
        let before = record.clone();
        let good = join(&record, 3);
        let changed = |change: fn(&mut IsrChange)| {
            let mut other = good.clone();
            change(&mut other);
            other
        };
        for bad in [
            changed(|c| c.version -= 1),
            changed(|c| c.leader = 2),
            changed(|c| c.leader_epoch += 1),
            changed(|c| c.join[0].node_epoch = 6),
            changed(|c| c.join[0].replica.incarnation = 9),
            changed(|c| c.join[0].replica.node = 4),
            changed(|c| c.leave = vec![1]),
            changed(|c| c.leave = vec![3]),
            changed(|c| c.join.clear()),
        ] {
            assert!(record.change_isr(&bad, 2, |_| Some(7)).is_err(), "{bad:?}");
            assert_eq!(record, before);
        }
        record.change_isr(&good, 2, |_| Some(7)).unwrap();
        assert_eq!(record.isr, [1, 2, 3]);
    }

    #[test]
    fn a_replica_that_lost_something_is_another_one() {
        let mut record = record();
        record.node_away(2, 3, ALL);
        assert_eq!(record.eligible, [2]);
        let old = join(&record, 2);
        assert!(record.replica_lost(2, 3, ALL));
        assert!(record.eligible.is_empty() && record.replica(2).unwrap().incarnation == 2);
        let stale = IsrChange { version: record.version, ..old };
        assert!(matches!(record.change_isr(&stale, 3, |_| Some(7)), Err(RecordRefusal::StaleIncarnation { .. })));
        assert!(record.replica_lost(1, 3, ALL) && record.leader == Some(3));
    }

    #[test]
    fn who_is_damaged_and_alone_in_sync_gives_way_to_one_that_is_eligible() {
        let mut record = record();
        record.node_away(2, 2, ALL);
        record.node_away(3, 2, ALL);
        assert_eq!((&record.isr[..], &record.eligible[..]), (&[1][..], &[3][..]), "node 2 left while there were enough");
        assert!(record.others_may_lead(1));
        assert!(record.replica_lost(1, 2, ALL) && record.leader == Some(3));
        assert!(!record.others_may_lead(3), "what it has is all that there is");
    }

    #[test]
    fn an_unclean_election_is_the_last_resort_and_leaves_its_mark() {
        let mut record = record();
        record.node_away(1, 1, ALL);
        record.node_away(2, 1, ALL);
        assert_eq!((record.leader, &record.isr[..]), (Some(3), &[3][..]));
        record.node_away(3, 1, |node| node == 2);
        assert_eq!((record.leader, &record.eligible[..]), (None, &[3][..]));
        assert!(record.elect_unclean(2, ALL).is_err(), "3 is there");
        assert!(record.elect_unclean(2, |node| node == 1).is_err(), "2 is away");
        record.elect_unclean(2, |node| node == 2).unwrap();
        assert_eq!((record.leader, &record.isr[..], record.unclean_epoch), (Some(2), &[2][..], Some(record.leader_epoch)));
    }

    #[test]
    fn a_node_that_is_registered_anew_vouches_for_nothing() {
        let mut alone = PartitionRecord::new(&[1], ALL);
        assert!(alone.node_registered(1, 1, ALL));
        assert_eq!((alone.leader, alone.leader_epoch, &alone.isr[..], &alone.eligible[..]), (Some(1), 1, &[1][..], &[][..]));
        let mut record = record();
        assert!(record.node_registered(1, 2, ALL));
        assert_eq!((record.leader, record.leader_epoch, &record.isr[..], record.version), (Some(2), 1, &[2, 3][..], 1));
        assert!(!record.node_registered(1, 2, ALL), "it had left before");
        assert!(record.node_registered(3, 2, ALL));
        assert_eq!((record.leader, record.leader_epoch, &record.isr[..], &record.eligible[..]), (Some(2), 1, &[2][..], &[3][..]));
        assert!(record.node_away(2, 2, |_| false) && record.leader.is_none());
        assert!(record.node_registered(3, 2, |node| node == 3));
        assert_eq!((record.leader, &record.isr[..], &record.eligible[..]), (Some(3), &[3][..], &[2][..]));
    }

    /// Lowered to one while nobody led: 2 would be elected later, and lack what 1 had acknowledged alone.
    #[test]
    fn who_begins_to_lead_alone_leaves_nobody_eligible() {
        let mut record = PartitionRecord::new(&[1, 2], ALL);
        record.node_away(1, 2, ALL);
        record.node_away(2, 2, |_| false);
        assert!(!record.min_insync_changed(1) && record.eligible == [1, 2]);
        let mut back = record.clone();
        assert!(back.node_back(1, 1, |node| node == 1));
        assert!(record.node_registered(1, 1, |node| node == 1));
        for record in [back, record] {
            assert_eq!((record.leader, &record.isr[..], &record.eligible[..]), (Some(1), &[1][..], &[][..]));
        }
    }

    #[test]
    fn a_reassignment_ends_when_its_target_is_in_sync() {
        let mut record = record();
        record.reassign(&[4, 2]).unwrap();
        assert!(!record.finish_reassignment(1, ALL));
        record.change_isr(&join(&record, 4), 1, |_| Some(7)).unwrap();
        assert!(record.finish_reassignment(1, ALL));
        assert_eq!((record.leader, &record.isr[..], record.replicas.len(), record.target.clone()), (Some(4), &[2, 4][..], 2, None));
        assert!(record.reassign(&[]).is_err() && record.reassign(&[2, 2]).is_err());
    }

    #[test]
    fn another_order_of_the_same_replicas_waits_for_nobody() {
        let mut record = record();
        record.node_away(3, 2, |node| node != 3);
        assert_eq!(record.isr, [1, 2]);
        record.reassign(&[2, 3, 1]).unwrap();
        assert!(record.finish_reassignment(2, ALL));
        let order: Vec<NodeId> = record.replicas.iter().map(|replica| replica.node).collect();
        assert_eq!((order, &record.isr[..], record.leader, &record.target), (vec![2, 3, 1], &[1, 2][..], Some(1), &None));
        record.reassign(&[2, 3, 4]).unwrap();
        assert!(!record.finish_reassignment(2, ALL), "a new one is waited for, and with it the one that is away");
    }

    #[test]
    fn the_eligible_go_when_fewer_replicas_are_asked_for() {
        let mut record = record();
        record.node_away(3, 3, ALL);
        assert_eq!(record.eligible, [3]);
        assert!(!record.min_insync_changed(3) && record.min_insync_changed(2));
        assert!(record.eligible.is_empty());
    }
}
