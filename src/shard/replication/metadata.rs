//! What the metadata makes of a replica: leader, follower, or nothing yet.

use crate::cluster::CatalogueView;
use crate::replication::{Effect, EpochStart, EpochTable, Follower, Leader, LeaderSettings, LogState, MetadataView, ReplicaIdentity};
use crate::shard::replication::replica::{Life, Machine};
use crate::shard::role::Role;

impl Life {
    /// Takes on the role that the metadata gives, or tells the present machine what is new.
    pub(super) fn follow_metadata(&mut self, view: &CatalogueView, effects: &mut Vec<Effect>) {
        let node = self.context.identity.node;
        let (Some(record), Some(topic), Some(this)) = (view.partition(&self.id), view.topic_by_id(&self.id.topic), view.node(node)) else {
            return;
        };
        let Some(replica) = record.replica(node) else { return };
        let now = self.context.replication.now();
        let node_epoch = |node| view.node(node).filter(|node| node.is_live()).map(|node| node.epoch);
        let min_insync = usize::from(topic.config.min_insync_replicas);
        let metadata = MetadataView { record, min_insync, node_epoch: &node_epoch };
        let identity = ReplicaIdentity { node_epoch: this.epoch, incarnation: replica.incarnation };
        let leads = record.leader == Some(node);
        self.replica.cell.enough_replicas.set(record.isr.len() >= min_insync);
        match &mut self.machine {
            Some(Machine::Leader(leader)) if leads && leader.epoch() == record.leader_epoch => {
                leader.handle_record(&metadata, now, effects);
                return;
            }
            Some(Machine::Follower(follower)) if !leads => {
                follower.handle_record(identity, record.unclean_epoch);
                return;
            }
            _ => {}
        }
        let was_alone = self.replica.cell.role() == Role::Alone;
        let mut log = match self.machine.take() {
            Some(Machine::Leader(leader)) => leader.into_log(),
            Some(Machine::Follower(follower)) => follower.into_log(),
            None => self.log_state(),
        };
        self.cursors.clear();
        self.replica.cell.latest_is_known.set(false);
        if was_alone && leads && log.promised == record.leader_epoch {
            // It leads already, in this run, and others are to follow now: the same leadership goes on.
            log.promised -= 1;
        } else {
            // What was promised was journaled in this run or found when the store was opened. Who leads next says so by opening a stream.
            self.replica.cell.set_role(if log.promised < 0 || leads { Role::Unassigned } else { Role::Follower(log.promised) });
        }
        if !leads {
            let mut follower = Follower::new(identity, log);
            follower.handle_record(identity, record.unclean_epoch);
            self.machine = Some(Machine::Follower(follower));
            return;
        }
        match Leader::new(node, &metadata, log.clone(), LeaderSettings::default(), now, effects) {
            Ok(mut leader) => {
                for (follower, _) in &self.followers {
                    leader.handle_connection(*follower, true, now, effects);
                }
                self.machine = Some(Machine::Leader(leader));
            }
            Err(refusal) => {
                // It waits as a follower of nobody for an epoch in which it has not been.
                tracing::warn!(partition = %self.id, %refusal, "this node can't lead in this epoch");
                self.machine = Some(Machine::Follower(Follower::new(identity, log)));
            }
        }
    }

    /// The log as the store has it.
    fn log_state(&self) -> LogState {
        let machine = self.replica.cell.machine.borrow();
        let ladder = machine.ladder();
        let entries = machine.epochs().iter().filter(|(_, start)| *start < ladder.appended());
        let entries = entries.map(|(epoch, start)| EpochStart { epoch: *epoch, start: *start }).collect();
        LogState {
            log_start: machine.first_offset(),
            log_end: ladder.appended(),
            durable_end: self.replica.cell.level_end().min(ladder.appended()),
            watermark: ladder.committed(),
            epochs: EpochTable::from_entries(entries).expect("the store's epochs rise"),
            promised: machine.epoch(),
            running_hash: Some(machine.running_hash()),
        }
    }
}
