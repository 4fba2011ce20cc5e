//! What the metadata makes of a replica: leader, follower, or nothing yet.

use std::time::Instant;

use crate::cluster::{CatalogueView, Command};
use crate::metrics::{Counter, Gauge};
use crate::replication::{Effect, EpochStart, EpochTable, Follower, Leader, LeaderSettings, LogState, MetadataView, ReplicaIdentity};
use crate::shard::replication::replica::{Input, Life, Machine, REPORT_AGAIN};
use crate::shard::role::Role;

impl Life {
    /// Takes on the role that the metadata gives, or tells the present machine what is new.
    pub(super) fn follow_metadata(&mut self, view: &CatalogueView, effects: &mut Vec<Effect>) {
        let node = self.context.identity.node;
        let (Some(record), Some(topic), Some(this)) = (view.partition(&self.id), view.topic_by_id(&self.id.topic), view.node(node)) else {
            return;
        };
        let Some(replica) = record.replica(node) else { return };
        if self.replica.cell.is_damaged() {
            return;
        }
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
        self.behind.clear();
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
                if self.unled.replace(record.leader_epoch) != Some(record.leader_epoch) {
                    tracing::warn!(partition = %self.id, %refusal, "this node can't lead in this epoch");
                }
                self.machine = Some(Machine::Follower(Follower::new(identity, log)));
            }
        }
    }

    /// A damaged replica is another one from now on: first consensus knows that it lost something, then it begins anew, and gets everything from its leader again. The only
    /// replica that may have all records stays as it is, and is served by nobody.
    pub(super) async fn see_damage(&mut self) {
        let cell = self.replica.cell.clone();
        if !cell.is_damaged() {
            self.lost = None;
            return;
        }
        self.machine = None;
        cell.set_role(Role::Unassigned);
        let (node, view) = (self.context.identity.node, self.context.view.borrow().clone());
        let Some(record) = view.partition(&self.id) else { return };
        let Some(replica) = record.replica(node) else { return };
        match self.lost {
            Some((incarnation, _)) if incarnation != replica.incarnation => self.begin_anew().await,
            Some((_, told_at)) if told_at.elapsed() < REPORT_AGAIN => {}
            // What it still has may be all that there is: somebody has to look at it.
            _ if !record.others_may_lead(node) => self.lost = None,
            _ => {
                self.lost = Some((replica.incarnation, Instant::now()));
                let (context, partition) = (self.context.clone(), self.id);
                glommio::spawn_local(async move {
                    let told = context.control.propose(Command::ReplicaLost { partition, replica }).await;
                    tracing::warn!(%partition, heard = told.is_ok(), "this replica is damaged: it leaves the ISR");
                })
                .detach();
            }
        }
    }

    async fn begin_anew(&mut self) {
        match self.context.store.restart(&self.replica.cell, 0, 0).await {
            Ok(()) => {
                self.lost = None;
                self.context.metrics.lower(Gauge::PartitionsQuarantined, 1);
                self.context.metrics.add(Counter::ReplicasRestored, 1);
                tracing::warn!(partition = %self.id, "a damaged replica is empty now and gets its records from the leader again");
                self.replica.tell(Input::Metadata(self.context.view.borrow().clone()));
            }
            Err(error) => {
                // It is tried again, not reported again: that would make yet another replica of it.
                tracing::error!(partition = %self.id, %error, "a damaged replica can't begin anew");
                glommio::timer::sleep(REPORT_AGAIN).await;
            }
        }
    }

    /// The log as the store has it.
    fn log_state(&self) -> LogState {
        let machine = self.replica.cell.machine.borrow();
        let ladder = machine.ladder();
        let durable_end = self.replica.cell.level_end().min(ladder.appended());
        let entries = machine.epochs().iter().filter(|(_, start)| *start < ladder.appended());
        let entries = entries.map(|(epoch, start)| EpochStart { epoch: *epoch, start: *start }).collect();
        LogState {
            log_start: machine.first_offset(),
            log_end: ladder.appended(),
            durable_end,
            // What was committed at a lower level of durability than the topic has now may not have reached that yet.
            watermark: ladder.committed().min(durable_end),
            epochs: EpochTable::from_entries(entries).expect("the store's epochs rise"),
            promised: machine.epoch(),
            running_hash: Some(machine.running_hash()),
        }
    }
}
