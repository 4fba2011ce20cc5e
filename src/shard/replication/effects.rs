//! Carries out what a machine asks for, and reads what is to be shipped.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::cluster::Command;
use crate::limits::MAX_LINK_PAYLOAD;
use crate::log::leader_epochs::UNKNOWN_START;
use crate::metrics::Counter;
use crate::partition::{ReplicaAppend, ReplicaRefusal};
use crate::replication::message::Truncate;
use crate::replication::{Effect, IsrChange, Message, NodeId, RecordRefusal, Shipped, ToShip};
use crate::request::Code;
use crate::shard::deletion::raise_log_start;
use crate::shard::follower_read::{FollowerPart, FollowerReadError};
use crate::shard::partition_cell::PartitionCell;
use crate::shard::replica::ReplicaError;
use crate::shard::replication::behind::Behind;
use crate::shard::replication::replica::{Input, Life, Machine};
use crate::shard::replication::shipping::Next;
use crate::shard::role::Role;
use crate::shard::truncation::Truncation;
use crate::types::Offset;

/// A read for a follower that failed is tried again after so long.
const READ_AGAIN: Duration = Duration::from_secs(1);

impl Life {
    /// Carries effects out, in their order; what they bring about may ask for more. `payload`: bytes of the message that is being handled.
    pub(super) async fn execute(&mut self, effects: &mut Vec<Effect>, payload: &Bytes) {
        while !effects.is_empty() {
            for effect in std::mem::take(effects) {
                self.carry_out(effect, payload, effects).await;
            }
        }
    }

    async fn carry_out(&mut self, effect: Effect, payload: &Bytes, more: &mut Vec<Effect>) {
        let (store, cell) = (self.context.store.clone(), self.replica.cell.clone());
        let now = self.context.replication.now();
        let epoch = cell.machine.borrow().epoch();
        match effect {
            Effect::Send { to, message: Message::Truncate(cut) } if cut.restart => {
                // Only this side can know it: the follower has nothing before.
                match store.follower_cursor(&cell, cut.to).await {
                    Ok(cursor) => self.send(to, Message::Truncate(Truncate { hash_before: cursor.running_hash, ..cut })),
                    // What is before it is not known, nor compared: it comes as a file.
                    Err(FollowerReadError::Rewritten(_)) => self.send(to, Message::Truncate(cut)),
                    Err(error) => tracing::warn!(partition = %self.id, offset = cut.to, %error, "no follower can begin there"),
                }
            }
            Effect::Send { to, message } => self.send(to, message),
            Effect::JournalEpoch { epoch, start } => {
                let begun = match cell.role() {
                    // Others are to follow in the epoch in which this node led alone.
                    Role::Alone => store.confirm_epoch(&cell).await,
                    _ => store.begin_epoch(&cell, epoch, start.unwrap_or(UNKNOWN_START)).await,
                };
                if let Err(error) = begun {
                    return self.give_up(&format!("epoch {epoch}: {error}"));
                }
                match &mut self.machine {
                    Some(Machine::Leader(leader)) => {
                        leader.handle_epoch_journaled(epoch, now, more);
                        cell.set_role(Role::Leader(epoch));
                    }
                    Some(Machine::Follower(follower)) => {
                        cell.set_role(Role::Follower(epoch));
                        follower.handle_epoch_journaled(epoch, more);
                    }
                    None => {}
                }
            }
            Effect::Append { base_offset, end_offset, opens_segment } => {
                if let Some(received) = self.received.take() {
                    return self.install(received).await;
                }
                let Some(Machine::Follower(follower)) = &self.machine else { return };
                let Some(headers) = self.checked.take() else {
                    return self.give_up(&format!("records {base_offset} to {end_offset} were not checked"));
                };
                let segment = segment_of(&cell, base_offset, opens_segment);
                let epoch = follower.stream().map_or(-1, |stream| stream.leader_epoch);
                let running_hash = follower.log().running_hash.unwrap_or_default();
                let append = ReplicaAppend { epoch, segment, running_hash, batches: payload };
                self.context.metrics.add(Counter::ReplicationBytesReceived, payload.len() as u64);
                let known = follower.log().watermark;
                if let Err(error) = store.place_replica(&cell, &append, &headers, known).await {
                    self.give_up(&format!("batches at offset {base_offset}: {error}"));
                }
            }
            Effect::Truncate { to, unclean } => {
                self.context.metrics.add(Counter::ReplicationTruncations, 1);
                match store.truncate(&cell, Truncation { offset: to, epoch, epoch_start: UNKNOWN_START, unclean }).await {
                    Ok(()) => self.truncated(to, more),
                    // What the cleaner has rewritten ends nowhere in the middle. The leader was elected by an administrator, and its log counts: all of it comes again.
                    Err(ReplicaError::Refused(refusal @ ReplicaRefusal::Rewritten { .. })) if unclean => {
                        tracing::warn!(partition = %self.id, to, %refusal, "the log is given up for that of the elected leader");
                        if let Err(error) = store.restart(&cell, 0, 0).await {
                            tracing::error!(partition = %self.id, %error, "it could not begin anew");
                        }
                        self.give_up(&format!("a cut at offset {to}: {refusal}"));
                    }
                    Err(error) => self.give_up(&format!("a cut at offset {to}: {error}")),
                }
            }
            Effect::Restart { at, hash_before } => match store.restart(&cell, at, hash_before).await {
                Ok(()) => self.truncated(at, more),
                Err(error) => self.give_up(&format!("a new beginning at offset {at}: {error}")),
            },
            Effect::LogStart { to } => {
                if let Err(refusal) = raise_log_start(&self.context, &cell, to).await {
                    tracing::warn!(partition = %self.id, to, %refusal, "the log's start stays");
                }
            }
            Effect::Watermark { to } => {
                cell.set_watermark(to);
            }
            Effect::ProposeIsr(change) => self.propose(change),
            Effect::Refuse { from, refusal } => {
                self.context.metrics.add(Counter::ReplicationRefused, 1);
                if self.refused.get(&from) != Some(&refusal) {
                    tracing::warn!(partition = %self.id, from, %refusal, "a message of replication was refused");
                    self.refused.insert(from, refusal);
                }
            }
        }
    }

    fn truncated(&mut self, to: i64, more: &mut Vec<Effect>) {
        let hash = self.replica.cell.machine.borrow().running_hash();
        if let Some(Machine::Follower(follower)) = &mut self.machine {
            follower.handle_truncated(to, Some(hash), more);
        }
    }

    /// Something that the store should have done failed: what the machine knows of the log does not hold any more. It begins anew from what is there with the next
    /// state of the metadata, and its leader opens another stream.
    pub(super) fn give_up(&mut self, what: &str) {
        if self.trouble != what {
            tracing::error!(partition = %self.id, what, "replication of a partition begins anew");
            self.trouble = what.into();
        }
        if let Some(Machine::Follower(follower)) = &self.machine
            && let Some((leader, refusal)) = follower.storage_refusal()
        {
            self.send(leader, refusal);
        }
        self.machine = None;
        self.replica.cell.set_role(Role::Unassigned);
        self.replica.tell(Input::Metadata(self.context.view.borrow().clone()));
    }

    fn send(&self, to: NodeId, message: Message) {
        let leads = matches!(self.machine, Some(Machine::Leader(_)));
        let known = if leads { &self.followers } else { &self.leaders };
        if let Some((_, outbox)) = known.iter().find(|(node, _)| *node == to) {
            outbox.push(self.id, message, Vec::new());
        }
    }

    /// Proposes a change. While an answer to the same one is waited for, it is not proposed again: without a majority they would heap up.
    fn propose(&self, change: IsrChange) {
        let (context, replica, partition, version) = (self.context.clone(), self.replica.clone(), self.id, change.version);
        if self.proposing.replace(Some(version)) == Some(version) {
            return;
        }
        let proposing = self.proposing.clone();
        glommio::spawn_local(async move {
            let outcome = context.control.propose(Command::ChangeIsr { partition, change }).await;
            if proposing.get() == Some(version) {
                proposing.set(None);
            }
            if let Err(refusal) = outcome {
                tracing::debug!(%partition, %refusal, "a change of the ISR was refused");
                if is_decided(refusal.code) {
                    replica.tell(Input::ProposalRefused(version, RecordRefusal::Invalid("consensus refused it")));
                }
            }
        })
        .detach();
    }

    /// Ships to each follower what it lacks, as far as its window and its connection have room.
    pub(super) async fn ship(&mut self) {
        for (node, outbox) in self.followers.clone() {
            loop {
                let Some(Machine::Leader(leader)) = &mut self.machine else { return };
                if !outbox.has_room() {
                    self.replica.come_back(&outbox);
                    break;
                }
                let Some(wanted) = leader.next_to_ship(node) else {
                    if let Some(append) = leader.next_watermark(node) {
                        outbox.push(self.id, Message::Append(append), Vec::new());
                    }
                    break;
                };
                match self.ship_segment(node, &outbox, &wanted) {
                    Next::Batches => {}
                    Next::Wait => break,
                    Next::Again => continue,
                }
                if !self.is_paid(node) {
                    break;
                }
                let Some((hash_before, part)) = self.read(node, &wanted).await else { break };
                let shipped = Shipped {
                    base_offset: wanted.from,
                    end_offset: part.end_offset,
                    bytes: part.bytes as u32,
                    hash_before,
                    hash_after: part.running_hash,
                    opens_segment: part.segment == part.base_offset,
                };
                let Some(Machine::Leader(leader)) = &mut self.machine else { return };
                if let Some(append) = leader.handle_shipped(node, &wanted, &shipped, self.context.replication.now()) {
                    self.context.metrics.add(Counter::ReplicationBytesSent, part.bytes as u64);
                    self.pay(node, (wanted.from, part.end_offset), part.bytes);
                    outbox.push(self.id, Message::Append(append), part.pieces);
                }
            }
        }
    }

    /// Takes batches that were sent to a follower out of the rate, if they are catch-up: its next ones wait until they are paid for.
    fn pay(&mut self, node: NodeId, (from, to): (Offset, Offset), bytes: usize) {
        let Some(Machine::Leader(leader)) = &self.machine else { return };
        let (log_end, is_in_sync) = (leader.log().log_end, leader.record().in_sync(node));
        let at = self.behind.iter().position(|(other, ..)| *other == node).unwrap_or_else(|| {
            self.behind.push((node, Behind::default(), Instant::now()));
            self.behind.len() - 1
        });
        let (_, behind, paid_at) = &mut self.behind[at];
        if behind.pays(from, to, log_end, is_in_sync) {
            *paid_at = Instant::now() + self.context.replication.pace().take(bytes);
        }
    }

    /// Whether a follower may be sent batches: who is in sync waits for nothing.
    fn is_paid(&self, node: NodeId) -> bool {
        let is_in_sync = matches!(&self.machine, Some(Machine::Leader(leader)) if leader.record().in_sync(node));
        let now = Instant::now();
        is_in_sync || self.behind.iter().all(|(other, _, paid_at)| *other != node || *paid_at <= now)
    }

    /// When the first of those who wait for that may be sent more.
    pub(super) fn next_paid(&self) -> Option<Instant> {
        let now = Instant::now();
        self.behind.iter().map(|(.., paid_at)| *paid_at).filter(|paid_at| *paid_at > now).min()
    }

    /// Reads what a follower lacks: batches of one segment and one epoch, and the running hash before them.
    async fn read(&mut self, node: NodeId, wanted: &ToShip) -> Option<(u64, FollowerPart)> {
        let (store, cell) = (self.context.store.clone(), self.replica.cell.clone());
        let known = self.cursors.iter().find(|(other, cursor)| *other == node && cursor.offset == wanted.from).map(|(_, cursor)| *cursor);
        let read = async {
            let mut cursor = match known {
                Some(cursor) => cursor,
                None => store.follower_cursor(&cell, wanted.from).await?,
            };
            let before = cursor.running_hash;
            // What is sent at once is of one epoch: the next one begins a message of its own.
            let most = wanted.bytes.min(MAX_LINK_PAYLOAD as u64) as usize;
            let part = store.read_part_until(&cell, &mut cursor, wanted.until, most).await?;
            Ok::<_, FollowerReadError>(part.map(|part| (cursor, before, part)))
        };
        match read.await {
            Ok(Some((cursor, before, part))) => {
                self.cursors.retain(|(other, _)| *other != node);
                self.cursors.push((node, cursor));
                Some((before, part))
            }
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(partition = %self.id, from = wanted.from, %error, "the log can't be read for a follower");
                // The cleaner may have replaced the segment, or something was short for a moment; nothing else wakes a partition that nobody writes to.
                self.read_again = Some(Instant::now() + READ_AGAIN);
                None
            }
        }
    }
}

/// Whether a change of the ISR that got this answer is one that consensus has refused, and can't take any more. All others may have been taken, or be taken yet: that nobody answered in time,
/// that the record has a later version, which may have come by this very change, or that another one leads. The machine hears of none of these: the record tells it.
fn is_decided(code: Code) -> bool {
    matches!(code, Code::InvalidRequest | Code::InvalidReplicaAssignment | Code::IneligibleReplica | Code::StaleBrokerEpoch)
}

/// The segment that batches of a leader belong to: one that begins with them, or the last one that has records here. One that was opened here without a record is none
/// that the leader knows of.
pub(super) fn segment_of(cell: &Rc<PartitionCell>, base_offset: Offset, opens_segment: bool) -> Offset {
    let machine = cell.machine.borrow();
    let last = machine.segments().iter().rev().find(|segment| segment.base_offset < base_offset);
    last.filter(|_| !opens_segment).map_or(base_offset, |segment| segment.base_offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_decision_is_no_refusal() {
        for code in [Code::Unavailable, Code::Storage, Code::Internal, Code::NotLeader, Code::InvalidUpdateVersion, Code::RequestTimedOut] {
            assert!(!is_decided(code), "{code:?}: a joiner bounds the watermark until the outcome is known");
        }
        assert!(is_decided(Code::IneligibleReplica));
    }
}
