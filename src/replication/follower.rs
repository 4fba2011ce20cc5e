//! A follower of one partition.
//!
//! ```text
//! (no stream) --OPEN--> opening: the epoch is journaled, what is in flight becomes durable --EPOCHS sent--> waiting
//!      waiting --TRUNCATE--> cutting, if there is anything to cut --> aligned --APPEND, SEGMENT--> aligned
//! ```
//! A new OPEN is taken in each state. A cut that has begun ends first.
//!
//! What it owns: which stream it follows, the promise, and what it may say of its log. What it never holds: bytes, time.

use crate::replication::effect::{Effect, LogState};
use crate::replication::epochs::{EpochStart, NO_EPOCH};
use crate::replication::error::Refusal;
use crate::replication::message::{Ack, Append, Epochs, Message, Open, Refused, Segment, StreamId, Truncate};
use crate::replication::record::NodeId;
use crate::replication::rules::Rules;
use crate::types::{LeaderEpoch, Offset};

/// Who this is: the node's registration, and the life of the replica as the metadata has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaIdentity {
    /// Registration of this node.
    pub node_epoch: u64,
    /// The replica's life.
    pub incarnation: u32,
}

/// How far a stream has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The epoch is being journaled, or appends of older epochs are in flight, or a cut goes on.
    Opening,
    /// EPOCHS are sent.
    Waiting,
    /// The log is being cut.
    Cutting,
    /// The log is the beginning of the leader's.
    Aligned,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    id: StreamId,
    leader: NodeId,
    phase: Phase,
    /// Everything up to the log's end is the leader's, up to this offset a gap was told already.
    gap_told: Option<Offset>,
    leader_watermark: Offset,
    leader_log_start: Offset,
    acknowledged: Offset,
}

/// A cut that is not durable yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cut {
    to: Offset,
    /// Nothing is left.
    restarts: bool,
}

/// The machine. One per followed partition; an idle one costs its memory only.
#[derive(Debug)]
pub struct Follower {
    identity: ReplicaIdentity,
    log: LogState,
    /// The epoch that was journaled; `log.promised` may be ahead of it while that goes on.
    journaled: LeaderEpoch,
    /// The cut that goes on.
    cutting: Option<Cut>,
    stream: Option<Stream>,
    unclean_epoch: Option<LeaderEpoch>,
    rules: Rules,
}

impl Follower {
    /// A replica that follows from now on. What its log has in flight is counted by [`Follower::handle_durable`] as it gets durable.
    pub fn new(identity: ReplicaIdentity, log: LogState) -> Follower {
        Follower::with_rules(identity, log, Rules::default())
    }

    /// For tests of the tests.
    #[doc(hidden)]
    pub fn with_rules(identity: ReplicaIdentity, log: LogState, rules: Rules) -> Follower {
        log.assert_order();
        let journaled = log.promised;
        Follower { identity, log, journaled, cutting: None, stream: None, unclean_epoch: None, rules }
    }

    /// The log as it is, for the next role. Not while a cut goes on ([`Follower::is_cutting`]).
    ///
    /// # Panics
    /// While a cut goes on.
    pub fn into_log(self) -> LogState {
        assert!(self.cutting.is_none(), "a cut ends before the role changes");
        LogState { promised: self.journaled, ..self.log }
    }

    /// The log as it is.
    pub fn log(&self) -> &LogState {
        &self.log
    }

    /// Whether a cut is not durable yet: the role must not change until it is.
    pub fn is_cutting(&self) -> bool {
        self.cutting.is_some()
    }

    /// Whether its log is the beginning of its leader's.
    pub fn is_aligned(&self) -> bool {
        self.stream.is_some_and(|stream| stream.phase == Phase::Aligned)
    }

    /// What it follows.
    pub fn stream(&self) -> Option<StreamId> {
        self.stream.map(|stream| stream.id)
    }

    /// The metadata's news: this replica's life, and the last epoch that began unclean. Only the metadata's word lets a follower cut what was committed, never a leader's.
    pub fn handle_record(&mut self, identity: ReplicaIdentity, unclean_epoch: Option<LeaderEpoch>) {
        if identity != self.identity {
            self.identity = identity;
            self.stream = None;
        }
        self.unclean_epoch = unclean_epoch;
    }

    /// OPEN from `leader`.
    pub fn handle_open(&mut self, leader: NodeId, open: &Open, effects: &mut Vec<Effect>) {
        if let Some(refusal) = self.refuses(open.stream) {
            return self.refuse(leader, open.stream, refusal, effects);
        }
        if self.stream.is_some_and(|now| now.id.leader_epoch == open.stream.leader_epoch && now.id.session >= open.stream.session) {
            // Late or twice. The leader that got no answer opens another session.
            return;
        }
        self.stream = Some(Stream {
            id: open.stream,
            leader,
            phase: Phase::Opening,
            gap_told: None,
            leader_watermark: 0,
            leader_log_start: 0,
            acknowledged: 0,
        });
        if open.stream.leader_epoch > self.log.promised {
            self.log.promised = open.stream.leader_epoch;
            match self.rules.epoch_journaled_first {
                true => effects.push(Effect::JournalEpoch { epoch: open.stream.leader_epoch, start: None }),
                false => self.journaled = open.stream.leader_epoch,
            }
        }
        self.answer_open(effects);
    }

    /// The promise to keep to an epoch is on disk.
    pub fn handle_epoch_journaled(&mut self, epoch: LeaderEpoch, effects: &mut Vec<Effect>) {
        self.journaled = self.journaled.max(epoch);
        self.answer_open(effects);
    }

    /// Everything up to `end` is synced.
    pub fn handle_durable(&mut self, end: Offset, effects: &mut Vec<Effect>) {
        assert!(end <= self.log.log_end, "durable end {end} is past the log's end {}", self.log.log_end);
        // While a cut goes on: a sync that began before it may end after it was asked for, and says nothing of what is behind the cut.
        let end = end.min(self.cutting.map_or(Offset::MAX, |cut| cut.to));
        self.log.durable_end = self.log.durable_end.max(end);
        self.follow_watermark(effects);
        self.answer_open(effects);
        self.acknowledge(false, effects);
    }

    /// TRUNCATE from `leader`.
    pub fn handle_truncate(&mut self, leader: NodeId, cut: &Truncate, effects: &mut Vec<Effect>) {
        let Some(stream) = self.stream.as_mut().filter(|now| now.id == cut.stream && now.phase == Phase::Waiting) else {
            // Of another stream, or the same one twice: what came after the first must stay.
            return;
        };
        if cut.to < 0 || (!cut.restart && cut.to > self.log.log_end) {
            return self.refuse(leader, cut.stream, Refusal::Invalid("a cut ends within the log"), effects);
        }
        let cuts = cut.restart || cut.to < self.log.log_end;
        if !cuts {
            stream.phase = Phase::Aligned;
            return self.acknowledge(true, effects);
        }
        // The election that was unclean is news to this log as long as it has no record of its epoch: afterwards what is committed here is what was committed there.
        let unclean = self.unclean_epoch.is_some_and(|epoch| self.log.epochs.last() < epoch);
        if cut.to < self.log.watermark && !unclean && self.rules.no_cut_below_watermark {
            // A leader whose log is short of what was acknowledged: it lost its disk and nobody noticed, or the election should not have been. To cut here would
            // destroy the last good copy.
            let refusal = Refusal::BelowWatermark { to: cut.to, watermark: self.log.watermark };
            return self.refuse(leader, cut.stream, refusal, effects);
        }
        stream.phase = Phase::Cutting;
        let restarts = cut.restart || cut.to < self.log.log_start;
        self.cutting = Some(Cut { to: cut.to, restarts });
        effects.push(match restarts {
            true => Effect::Restart { at: cut.to, hash_before: cut.hash_before },
            false => Effect::Truncate { to: cut.to, unclean: cut.to < self.log.watermark },
        });
    }

    /// A cut or a new beginning at `to` is durable; `running_hash` is that of what is left (`None` of a log that begins anew past 0).
    pub fn handle_truncated(&mut self, to: Offset, running_hash: Option<u64>, effects: &mut Vec<Effect>) {
        let cut = self.cutting.take().filter(|cut| cut.to == to).expect("a cut that was asked for");
        self.log.log_end = to;
        self.log.durable_end = to;
        self.log.running_hash = running_hash;
        match cut.restarts {
            true => {
                self.log.log_start = to;
                self.log.watermark = to;
                self.log.epochs = Default::default();
            }
            false => {
                self.log.watermark = self.log.watermark.min(to);
                self.log.epochs.truncate(to);
            }
        }
        if let Some(stream) = self.stream.as_mut().filter(|stream| stream.phase == Phase::Cutting) {
            stream.phase = Phase::Aligned;
            self.acknowledge(true, effects);
        }
        self.answer_open(effects);
    }

    /// APPEND from `leader`. An [`Effect::Append`] takes its bytes into the log; without one they are dropped.
    pub fn handle_append(&mut self, leader: NodeId, append: &Append, effects: &mut Vec<Effect>) {
        if !self.is_of_stream(append.stream) {
            return;
        }
        let empty = append.base_offset == append.end_offset;
        let first = EpochStart { epoch: append.epoch, start: append.base_offset };
        let fitting = Fitting {
            base_offset: append.base_offset,
            end_offset: append.end_offset,
            previous_epoch: append.previous_epoch,
            epochs: if empty { &[] } else { std::slice::from_ref(&first) },
            hash_before: Some(append.hash_before),
            hash_after: append.hash_after,
        };
        self.take(leader, append.stream, &fitting, append.opens_segment, effects);
        self.hear_watermark(append.watermark, append.log_start, effects);
    }

    /// SEGMENT from `leader`, all of it received and checked. An [`Effect::Append`] takes it into the log.
    pub fn handle_segment(&mut self, leader: NodeId, segment: &Segment, effects: &mut Vec<Effect>) {
        if !self.is_of_stream(segment.stream) {
            return;
        }
        let fitting = Fitting {
            base_offset: segment.base_offset,
            end_offset: segment.end_offset,
            previous_epoch: segment.previous_epoch,
            epochs: &segment.epochs,
            hash_before: (segment.rewrite_generation == 0).then_some(segment.hash_before),
            hash_after: segment.hash_after,
        };
        self.take(leader, segment.stream, &fitting, true, effects);
        self.hear_watermark(segment.watermark, 0, effects);
    }

    /// SEGMENT from `leader` whose bytes are not here: the leader is to send them again.
    pub fn handle_segment_lost(&mut self, segment: &Segment, effects: &mut Vec<Effect>) {
        if self.is_of_stream(segment.stream) {
            self.acknowledge_with(true, effects);
        }
    }

    /// Any message of a leader.
    pub fn handle_message(&mut self, leader: NodeId, message: &Message, effects: &mut Vec<Effect>) {
        match message {
            Message::Open(open) => self.handle_open(leader, open, effects),
            Message::Truncate(cut) => self.handle_truncate(leader, cut, effects),
            Message::Append(append) => self.handle_append(leader, append, effects),
            Message::Segment(segment) => self.handle_segment(leader, segment, effects),
            // Answers of a follower: meant for the role that this replica had before.
            Message::Epochs(_) | Message::Ack(_) | Message::Refused(_) => {}
        }
    }

    fn refuses(&self, stream: StreamId) -> Option<Refusal> {
        if stream.node_epoch != self.identity.node_epoch && self.rules.node_epoch {
            // A cut that a leader decided before this node restarted may arrive after it: the session that would tell it from a new one went with the restart.
            return Some(Refusal::StaleNodeEpoch { expected: self.identity.node_epoch, actual: stream.node_epoch });
        }
        if stream.incarnation != self.identity.incarnation {
            return Some(Refusal::StaleIncarnation { expected: self.identity.incarnation, actual: stream.incarnation });
        }
        if stream.leader_epoch < self.log.promised && self.rules.fencing {
            // This replica may have been counted by a later leader: what it acknowledged there must not be cut by one that was put out.
            return Some(Refusal::StaleEpoch { promised: self.log.promised, actual: stream.leader_epoch });
        }
        None
    }

    /// What the leader is told when the store could not do what the machine asked of it: the shell begins anew then, with another machine, from what is on disk.
    pub fn storage_refusal(&self) -> Option<(NodeId, Message)> {
        let stream = self.stream?;
        let refusal = Refusal::Storage { end: self.log.log_end };
        Some((stream.leader, Message::Refused(Refused { stream: stream.id, refusal })))
    }

    fn refuse(&mut self, to: NodeId, stream: StreamId, refusal: Refusal, effects: &mut Vec<Effect>) {
        if self.stream.is_some_and(|now| now.id == stream) {
            self.stream = None;
        }
        effects.push(Effect::Refuse { from: to, refusal: refusal.clone() });
        effects.push(Effect::Send { to, message: Message::Refused(Refused { stream, refusal }) });
    }

    /// EPOCHS go out when the promise is on disk and nothing is in flight.
    fn answer_open(&mut self, effects: &mut Vec<Effect>) {
        let Some(stream) = self.stream.as_mut().filter(|stream| stream.phase == Phase::Opening) else { return };
        // A crash would forget the epoch: the replica would then follow the leader before, which may still think that it leads, and let it overwrite what it
        // acknowledged to the new one.
        let is_journaled = self.journaled >= stream.id.leader_epoch;
        // Groups in flight may still fail or be lost; a log end that counts them would be taken for durable by the new leader.
        let is_drained = self.log.durable_end == self.log.log_end || !self.rules.drains_before_report;
        if !is_journaled || !is_drained || self.cutting.is_some() {
            return;
        }
        stream.phase = Phase::Waiting;
        let epochs =
            Epochs { stream: stream.id, log_end: self.log.log_end, epochs: self.log.epochs.clone(), watermark: self.log.watermark };
        effects.push(Effect::Send { to: stream.leader, message: Message::Epochs(epochs) });
    }

    fn is_of_stream(&self, stream: StreamId) -> bool {
        self.stream.is_some_and(|now| now.id == stream && now.phase == Phase::Aligned)
    }

    fn take(&mut self, leader: NodeId, id: StreamId, new: &Fitting<'_>, opens_segment: bool, effects: &mut Vec<Effect>) {
        let end = self.log.log_end;
        if new.end_offset < new.base_offset || new.base_offset < 0 {
            return self.refuse(leader, id, Refusal::Invalid("records end before they begin"), effects);
        }
        if new.base_offset > end {
            // One message is missing. It is told once, or each one behind the gap would make the leader send everything again.
            let Some(stream) = self.stream.as_mut() else { return };
            if stream.gap_told != Some(end) {
                stream.gap_told = Some(end);
                self.acknowledge_with(true, effects);
            }
            return;
        }
        if new.end_offset <= end {
            // Sent twice, or none: the leader may have missed the acknowledgement.
            if new.end_offset > new.base_offset {
                self.acknowledge_with(false, effects);
            }
            return;
        }
        if new.base_offset < end {
            return self.acknowledge_with(true, effects);
        }
        if let Err(refusal) = self.check(id, new) {
            return self.refuse(leader, id, refusal, effects);
        }
        for begin in new.epochs {
            self.log.epochs.begin(begin.epoch, begin.start);
        }
        self.log.log_end = new.end_offset;
        self.log.running_hash = Some(new.hash_after);
        effects.push(Effect::Append { base_offset: new.base_offset, end_offset: new.end_offset, opens_segment });
        if !self.rules.reports_durable {
            self.acknowledge_with(false, effects);
        }
    }

    fn check(&self, id: StreamId, new: &Fitting<'_>) -> Result<(), Refusal> {
        let last = self.log.epochs.last();
        // A log that begins anew has no record to compare with.
        if last != NO_EPOCH && last != new.previous_epoch && self.rules.previous_epoch {
            return Err(Refusal::PreviousEpoch { offset: new.base_offset, expected: last, actual: new.previous_epoch });
        }
        if let (Some(expected), Some(actual)) = (self.log.running_hash, new.hash_before)
            && expected != actual
            && self.rules.running_hash
        {
            return Err(Refusal::RunningHash { offset: new.base_offset, expected, actual });
        }
        let Some(first) = new.epochs.first() else { return Err(Refusal::Invalid("records of no epoch")) };
        if first.start != new.base_offset || first.epoch < last {
            return Err(Refusal::Invalid("the first record's epoch is below the last one's"));
        }
        let rises = new.epochs.windows(2).all(|pair| pair[0].epoch < pair[1].epoch && pair[0].start < pair[1].start);
        let latest = new.epochs.last().copied().unwrap_or(*first);
        if !rises || latest.start >= new.end_offset || latest.epoch > id.leader_epoch {
            return Err(Refusal::Invalid("epochs of records rise and are at most the leader's"));
        }
        Ok(())
    }

    fn hear_watermark(&mut self, watermark: Offset, log_start: Offset, effects: &mut Vec<Effect>) {
        let Some(stream) = self.stream.as_mut() else { return };
        stream.leader_watermark = stream.leader_watermark.max(watermark);
        stream.leader_log_start = stream.leader_log_start.max(log_start);
        self.follow_watermark(effects);
    }

    /// The watermark here is the leader's, as far as records here are durable: it is what this replica vouches for when it leads.
    fn follow_watermark(&mut self, effects: &mut Vec<Effect>) {
        let Some(stream) = self.stream.filter(|stream| stream.phase == Phase::Aligned) else { return };
        let to = stream.leader_watermark.min(self.log.durable_end);
        if to > self.log.watermark {
            self.log.watermark = to;
            effects.push(Effect::Watermark { to });
        }
        let start = stream.leader_log_start.min(self.log.watermark);
        if start > self.log.log_start {
            self.log.log_start = start;
            self.log.epochs.raise_log_start(start);
            effects.push(Effect::LogStart { to: start });
        }
    }

    /// An acknowledgement where it is news, or where the leader waits for one.
    fn acknowledge(&mut self, always: bool, effects: &mut Vec<Effect>) {
        let durable_end = self.log.durable_end;
        if self.stream.is_some_and(|stream| stream.phase == Phase::Aligned && (always || durable_end > stream.acknowledged)) {
            self.acknowledge_with(false, effects);
        }
    }

    fn acknowledge_with(&mut self, rewind: bool, effects: &mut Vec<Effect>) {
        let Some(stream) = self.stream.as_mut() else { return };
        let durable_end = if self.rules.reports_durable { self.log.durable_end } else { self.log.log_end };
        stream.acknowledged = durable_end;
        let ack = Ack { stream: stream.id, durable_end, log_end: self.log.log_end, rewind };
        effects.push(Effect::Send { to: stream.leader, message: Message::Ack(ack) });
    }
}

/// What APPEND and SEGMENT have in common.
struct Fitting<'a> {
    base_offset: Offset,
    end_offset: Offset,
    previous_epoch: LeaderEpoch,
    epochs: &'a [EpochStart],
    /// `None`: it says nothing of what is before.
    hash_before: Option<u64>,
    hash_after: u64,
}
