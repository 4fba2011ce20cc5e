//! The leader of one partition, in one epoch.
//!
//! ```text
//! new -> the epoch is journaled -> OPEN to each follower -> EPOCHS, TRUNCATE -> appends are shipped, acknowledgements come
//!     -> the watermark reaches the epoch's start: from now on it moves, and producers are answered
//! ```
//!
//! The shell calls [`Leader::next_to_ship`] when something was appended, acknowledged or opened, reads what it says, and tells with [`Leader::handle_shipped`] what it read. So the machine holds
//! offsets and no bytes.
//!
//! The rules, and what goes wrong without them:
//! - *The watermark waits for each member of the ISR and for each replica that may have become one.* The answer to a proposal may be late: consensus has taken the joiner, the
//!   leader dies, the joiner leads, and what was acknowledged meanwhile without it is gone.
//! - *A shrink counts when it is committed.* The leader puts 3 out and acknowledges with 2 alone, the proposal is lost, the leader dies, 3 is elected.
//! - *A joiner is at or past the epoch's start.* A new leader hears of its predecessor's watermark late: a replica at 60 passes its 50, while 90 was acknowledged. The joiner is elected next.
//! - *The watermark moves only past the epoch's start*, so that it never goes back for a client: what the new leader knows first may be less than what the one before has shown.
//! - *An acknowledgement counts for the stream that it names only*: one from before a replica lost its disk says 100, and the replica has nothing.
//! - *Without a lease nothing is acknowledged*: another may lead.
//! - *An epoch is led once.* A leader that restarts may have lost records that its followers have; in the same epoch it would write others at the same offsets, and no
//!   epoch table would show the difference.

use std::collections::VecDeque;

use crate::replication::effect::{Effect, LogState, Millis};
use crate::replication::epochs::{EpochStart, EpochTable, NO_EPOCH};
use crate::replication::error::Refusal;
use crate::replication::message::{Ack, Append, Epochs, Message, Open, Refused, Segment, StreamId, Truncate};
use crate::replication::record::{IsrChange, Joiner, NodeId, PartitionRecord, RecordRefusal, Replica};
use crate::replication::rules::Rules;
use crate::types::{LeaderEpoch, Offset};

/// Bounds of a leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaderSettings {
    /// A member of the ISR that is behind and makes no progress for so long is put out. Kafka's `replica.lag.time.max.ms`.
    pub lag_time_ms: Millis,
    /// A follower from which nothing comes for so long while something is expected is opened anew; a proposal without an answer is made again.
    pub retry_ms: Millis,
    /// Bytes that are sent to one follower and not acknowledged, at most. One append may exceed it.
    pub window_bytes: u64,
}

impl Default for LeaderSettings {
    fn default() -> LeaderSettings {
        LeaderSettings { lag_time_ms: 10_000, retry_ms: 1_000, window_bytes: 4 << 20 }
    }
}

/// What a leader must know of the metadata, all of it from the same state of it: a change of `min.insync.replicas` that is seen later than the shrink after it would let the
/// watermark move while those that left may still be elected.
pub struct MetadataView<'a> {
    /// The partition's.
    pub record: &'a PartitionRecord,
    /// `min.insync.replicas` of the topic.
    pub min_insync: usize,
    /// Registration of each node that is live.
    pub node_epoch: &'a dyn Fn(NodeId) -> Option<u64>,
}

/// How far the stream to a follower has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// No connection.
    Closed,
    /// OPEN is sent.
    Opening,
    /// TRUNCATE is sent.
    Cutting,
    /// Appends flow.
    Shipping,
}

/// A follower as its leader knows it.
#[derive(Debug)]
struct FollowerState {
    replica: Replica,
    /// `None` while its node is away.
    node_epoch: Option<u64>,
    phase: Phase,
    session: u32,
    /// Next offset to ship.
    next: Offset,
    /// Sent and not acknowledged: (end offset, bytes).
    in_flight: VecDeque<(Offset, u32)>,
    in_flight_bytes: u64,
    /// `None` until the first acknowledgement of this life and registration.
    durable_end: Option<Offset>,
    watermark_sent: Offset,
    log_start_sent: Offset,
    /// When it last came closer to the log's end, or was there.
    progress_at: Millis,
    /// When something was last sent to it, or heard of it.
    exchanged_at: Millis,
}

/// A proposal without a known outcome.
#[derive(Debug)]
struct Pending {
    change: IsrChange,
    proposed_at: Millis,
}

/// What to ship next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ToShip {
    /// On which stream: [`Leader::handle_shipped`] wants it back, since it may have ended while the shell was reading.
    pub stream: StreamId,
    /// From here.
    pub from: Offset,
    /// At most to here: the log's end, or where the epoch of `from` ends. Not for a segment, which may hold several epochs.
    pub until: Offset,
    /// Bytes that fit the window; at least one batch is shipped whatever its size.
    pub bytes: u64,
}

/// What the shell has read for a [`ToShip`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shipped {
    /// First offset: that of the [`ToShip`].
    pub base_offset: Offset,
    /// One past the last offset.
    pub end_offset: Offset,
    /// Bytes of the batches.
    pub bytes: u32,
    /// Running hash before them.
    pub hash_before: u64,
    /// Running hash after them.
    pub hash_after: u64,
    /// The first batch opens a segment.
    pub opens_segment: bool,
}

/// The machine. One per led partition; an idle one costs its memory only.
#[derive(Debug)]
pub struct Leader {
    node: NodeId,
    epoch: LeaderEpoch,
    /// The log's end when the epoch began.
    start: Offset,
    epoch_journaled: bool,
    log: LogState,
    record: PartitionRecord,
    min_insync: usize,
    /// A later record names another leader or epoch.
    is_deposed: bool,
    followers: Vec<FollowerState>,
    /// Nodes with a connection, those without a replica too: one may get a replica later, and nobody would tell of its connection again.
    connected: Vec<NodeId>,
    pending: Option<Pending>,
    /// No proposal before this: the one before was refused.
    propose_after: Millis,
    lease_until: Millis,
    /// First offset that consumers may read, which may lie within the log's first batches.
    readable_from: Offset,
    settings: LeaderSettings,
    rules: Rules,
}

impl Leader {
    /// This node leads from now on. Its log may have appends in flight.
    ///
    /// # Errors
    /// When this replica has kept to the record's epoch before. The metadata has to give another epoch.
    ///
    /// # Panics
    /// When the record names another leader.
    pub fn new(
        node: NodeId,
        view: &MetadataView<'_>,
        log: LogState,
        settings: LeaderSettings,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) -> Result<Leader, Refusal> {
        Leader::with_rules(node, view, log, settings, Rules::default(), now, effects)
    }

    /// For tests of the tests.
    #[doc(hidden)]
    pub fn with_rules(
        node: NodeId,
        view: &MetadataView<'_>,
        log: LogState,
        settings: LeaderSettings,
        rules: Rules,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) -> Result<Leader, Refusal> {
        log.assert_order();
        assert_eq!(view.record.leader, Some(node), "the metadata names this node");
        let epoch = view.record.leader_epoch;
        if epoch <= log.promised && rules.epoch_led_once {
            return Err(Refusal::EpochUsed { epoch, promised: log.promised });
        }
        let mut leader = Leader {
            node,
            epoch,
            start: log.log_end,
            epoch_journaled: false,
            log: LogState { promised: epoch, ..log },
            record: view.record.clone(),
            min_insync: view.min_insync,
            is_deposed: false,
            followers: Vec::new(),
            connected: Vec::new(),
            pending: None,
            propose_after: 0,
            lease_until: 0,
            readable_from: 0,
            settings,
            rules,
        };
        leader.meet_followers(view, now, effects);
        effects.push(Effect::JournalEpoch { epoch, start: Some(leader.start) });
        Ok(leader)
    }

    /// The log as it is, for the next role.
    pub fn into_log(self) -> LogState {
        // An epoch that is being journaled is kept to from the next start on at the latest; until then this value is what is kept to.
        self.log
    }

    /// The log as it is.
    pub fn log(&self) -> &LogState {
        &self.log
    }

    /// Its epoch.
    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// The log's end when the epoch began.
    pub fn start(&self) -> Offset {
        self.start
    }

    /// The record that it goes by.
    pub fn record(&self) -> &PartitionRecord {
        &self.record
    }

    /// Whether what is below the watermark may be acknowledged now. Consumers may read below the watermark at any time.
    pub fn may_acknowledge(&self, now: Millis) -> bool {
        let leads = (now < self.lease_until || !self.rules.lease) && !self.is_deposed;
        leads && self.epoch_journaled && self.has_reached_start()
    }

    /// The end of what consumers see, for a client that asks; `None` (OFFSET_NOT_AVAILABLE) while the leader before may have shown more.
    pub fn latest(&self, now: Millis) -> Option<Offset> {
        self.may_acknowledge(now).then_some(self.log.watermark)
    }

    /// Whether produce with `acks=all` has enough replicas now. Kafka's NOT_ENOUGH_REPLICAS otherwise.
    pub fn has_enough_replicas(&self) -> bool {
        self.record.isr.len() >= self.min_insync
    }

    /// Followers that are not at the log's end: (node, durable end if known, in sync), for status.
    pub fn behind(&self) -> impl Iterator<Item = (NodeId, Option<Offset>, bool)> + '_ {
        let behind = self.followers.iter().filter(|f| f.durable_end != Some(self.log.log_end));
        behind.map(|f| (f.replica.node, f.durable_end, self.record.in_sync(f.replica.node)))
    }

    /// Followers whose streams flow and how far each is known to have the log, for readers that are to be sent to one.
    pub fn follower_ends(&self) -> impl Iterator<Item = (NodeId, Offset)> + '_ {
        let flowing = self.followers.iter().filter(|f| f.phase == Phase::Shipping);
        flowing.filter_map(|f| f.durable_end.map(|end| (f.replica.node, end)))
    }

    /// When [`Leader::poll`] has something to do, if nothing else happens; `None` of a partition whose followers are all at its end.
    pub fn next_timeout(&self) -> Option<Millis> {
        let proposal = match &self.pending {
            Some(pending) => Some(pending.proposed_at + self.settings.retry_ms),
            None => {
                let lagging = self.followers.iter().filter(|f| self.is_behind(f) && self.record.in_sync(f.replica.node));
                let leave = lagging.map(|f| f.progress_at + self.settings.lag_time_ms);
                leave.chain(self.may_join().next().map(|_| 0)).min().map(|at| at.max(self.propose_after))
            }
        };
        let waiting = self.followers.iter().filter(|f| self.expects(f)).map(|f| f.exchanged_at + self.settings.retry_ms);
        waiting.chain(proposal).min().filter(|_| self.epoch_journaled && !self.is_deposed)
    }

    /// The epoch's start is on disk: streams begin.
    pub fn handle_epoch_journaled(&mut self, epoch: LeaderEpoch, now: Millis, effects: &mut Vec<Effect>) {
        if epoch != self.epoch {
            // A promise of the role before.
            return;
        }
        self.epoch_journaled = true;
        for at in 0..self.followers.len() {
            self.open(at, now, effects);
        }
        self.advance(now, effects);
    }

    /// Records up to `end` were appended by this leader.
    pub fn handle_appended(&mut self, end: Offset, running_hash: u64, now: Millis) {
        assert!(end > self.log.log_end, "an append moves the end on: {} to {end}", self.log.log_end);
        for follower in &mut self.followers {
            if follower.durable_end == Some(self.log.log_end) {
                // It was at the end: from now on it is behind.
                follower.progress_at = now;
            }
        }
        self.log.epochs.begin(self.epoch, self.log.log_end);
        self.log.log_end = end;
        self.log.running_hash = Some(running_hash);
    }

    /// Everything up to `end` is synced here.
    pub fn handle_durable(&mut self, end: Offset, now: Millis, effects: &mut Vec<Effect>) {
        assert!(end <= self.log.log_end, "durable end {end} is past the log's end {}", self.log.log_end);
        self.log.durable_end = self.log.durable_end.max(end);
        self.advance(now, effects);
    }

    /// The log begins at `start` now, the first offset of a batch (what a deletion hides inside of one is the shell's matter). A follower that still needs what went is opened anew,
    /// and begins its log there.
    pub fn handle_log_start(&mut self, start: Offset, now: Millis, effects: &mut Vec<Effect>) {
        assert!(start <= self.log.watermark, "log start {start} is past the watermark {}", self.log.watermark);
        self.log.log_start = self.log.log_start.max(start);
        self.log.epochs.raise_log_start(start);
        for at in 0..self.followers.len() {
            self.reopen_below_start(at, now, effects);
        }
    }

    /// Consumers read from `start` on now: what was deleted before it is to be hidden by followers too.
    pub fn handle_readable_from(&mut self, start: Offset) {
        self.readable_from = self.readable_from.max(start.min(self.log.watermark));
    }

    /// What followers are told that the log begins with.
    fn told_start(&self) -> Offset {
        self.log.log_start.max(self.readable_from)
    }

    fn reopen_below_start(&mut self, at: usize, now: Millis, effects: &mut Vec<Effect>) {
        let follower = &self.followers[at];
        if matches!(follower.phase, Phase::Cutting | Phase::Shipping) && follower.next < self.log.log_start {
            self.open(at, now, effects);
        }
    }

    /// The lease of this node goes until `until`, counted from when the heartbeat was sent, never from when its answer came.
    pub fn handle_lease(&mut self, until: Millis, now: Millis, effects: &mut Vec<Effect>) {
        self.lease_until = until;
        self.advance(now, effects);
    }

    /// A state of the metadata. An earlier one than was seen before is passed over.
    pub fn handle_record(&mut self, view: &MetadataView<'_>, now: Millis, effects: &mut Vec<Effect>) {
        if view.record.version < self.record.version {
            return;
        }
        self.record = view.record.clone();
        self.min_insync = view.min_insync;
        if self.record.leader != Some(self.node) || self.record.leader_epoch != self.epoch {
            self.is_deposed = true;
            self.pending = None;
            return;
        }
        // A proposal is taken on the version that it was made on or never: a later version without it means that it can't come any more.
        if self.pending.as_ref().is_some_and(|pending| pending.change.version < self.record.version) {
            self.pending = None;
        }
        self.meet_followers(view, now, effects);
        self.advance(now, effects);
        self.propose(now, effects);
    }

    /// Consensus has refused the proposal that was made on `version` of the record.
    pub fn handle_proposal_refused(&mut self, version: u32, refusal: &RecordRefusal, now: Millis, effects: &mut Vec<Effect>) {
        if self.pending.as_ref().is_none_or(|pending| pending.change.version != version) {
            return;
        }
        if matches!(refusal, RecordRefusal::StaleVersion { .. } | RecordRefusal::NotLeader { .. }) {
            // That may be the second answer to a proposal whose first one was lost, and the first one was yes. The record that is on its way will tell.
            return;
        }
        self.pending = None;
        self.propose_after = now + self.settings.retry_ms;
        self.advance(now, effects);
    }

    /// The connection to a node is there, or gone with all that was in it. To be told of every node, whether it has a replica (yet) or not.
    pub fn handle_connection(&mut self, node: NodeId, connected: bool, now: Millis, effects: &mut Vec<Effect>) {
        self.connected.retain(|known| *known != node);
        if connected {
            self.connected.push(node);
        }
        let Some(at) = self.position(node) else { return };
        match connected {
            true => self.open(at, now, effects),
            false => self.followers[at].close(),
        }
    }

    /// EPOCHS from a follower: it learns how much of its log is this one's too.
    pub fn handle_epochs(&mut self, from: NodeId, epochs: &Epochs, now: Millis, effects: &mut Vec<Effect>) {
        let Some(at) = self.expected(from, epochs.stream, Phase::Opening) else { return };
        let log = &self.log;
        let (to, restart) = match log.epochs.common_end(log.log_end, &epochs.epochs, epochs.log_end) {
            _ if !self.rules.truncation_by_epoch => (epochs.watermark.min(log.log_end), false),
            Some(common) if common >= log.log_start => (common, false),
            // Both are empty, or nothing of the follower's is older than all that is here.
            None if log.log_start == 0 => (0, epochs.log_end > 0 && epochs.epochs.last() == NO_EPOCH),
            _ => (log.log_start, true),
        };
        let follower = &mut self.followers[at];
        follower.phase = Phase::Cutting;
        follower.next = to;
        follower.exchanged_at = now;
        let cut = Truncate { stream: epochs.stream, to, restart, hash_before: 0 };
        effects.push(Effect::Send { to: from, message: Message::Truncate(cut) });
    }

    /// ACK from a follower.
    pub fn handle_ack(&mut self, from: NodeId, ack: &Ack, now: Millis, effects: &mut Vec<Effect>) {
        let at = match self.rules.ack_names_stream {
            true => self.position(from).filter(|at| self.followers[*at].stream(self.epoch) == Some(ack.stream)),
            false => self.position(from),
        };
        let Some(at) = at.filter(|at| matches!(self.followers[*at].phase, Phase::Cutting | Phase::Shipping)) else { return };
        if ack.durable_end > ack.log_end || ack.log_end > self.log.log_end {
            // It speaks of records that it can't have. It is opened anew when it has been silent for long enough, which it is from now on.
            self.followers[at].phase = Phase::Opening;
            let refusal = Refusal::Invalid("a follower reports more than it was sent");
            return effects.push(Effect::Refuse { from, refusal });
        }
        let log_end = self.log.log_end;
        let follower = &mut self.followers[at];
        follower.phase = Phase::Shipping;
        follower.exchanged_at = now;
        if follower.durable_end.is_none_or(|known| ack.durable_end > known) {
            follower.durable_end = Some(ack.durable_end);
            follower.progress_at = now;
        }
        follower.acknowledged(ack.durable_end);
        if ack.rewind && ack.log_end < follower.next {
            follower.rewind(ack.log_end.max(follower.durable_end.unwrap_or(0)));
        }
        if ack.durable_end == log_end {
            follower.progress_at = now;
        }
        self.reopen_below_start(at, now, effects);
        self.advance(now, effects);
        self.propose(now, effects);
    }

    /// A follower has refused something.
    pub fn handle_refused(&mut self, from: NodeId, refused: &Refused, now: Millis, effects: &mut Vec<Effect>) {
        let Some(at) = self.position(from).filter(|at| self.followers[*at].stream(self.epoch) == Some(refused.stream)) else { return };
        // It is opened anew after a while: its node may not have heard what this one has of the metadata, or the other way round.
        self.followers[at].phase = Phase::Opening;
        self.followers[at].exchanged_at = now;
        effects.push(Effect::Refuse { from, refusal: refused.refusal.clone() });
        if matches!(refused.refusal, Refusal::Storage { .. }) {
            // It says itself that it does not come closer: producers don't wait for it until it has stood still for long enough.
            self.followers[at].progress_at = now.saturating_sub(self.settings.lag_time_ms);
            self.propose(now, effects);
        }
    }

    /// Any message of a follower.
    pub fn handle_message(&mut self, from: NodeId, message: &Message, now: Millis, effects: &mut Vec<Effect>) {
        match message {
            Message::Epochs(epochs) => self.handle_epochs(from, epochs, now, effects),
            Message::Ack(ack) => self.handle_ack(from, ack, now, effects),
            Message::Refused(refused) => self.handle_refused(from, refused, now, effects),
            // Of a leader before or after this one: the metadata decides, not the message.
            Message::Open(_) | Message::Truncate(_) | Message::Append(_) | Message::Segment(_) => {}
        }
    }

    /// Time has passed: proposals, streams that are silent, followers that stand still.
    pub fn poll(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.is_deposed {
            return;
        }
        for at in 0..self.followers.len() {
            let follower = &self.followers[at];
            if self.expects(follower) && now >= follower.exchanged_at + self.settings.retry_ms {
                self.open(at, now, effects);
            }
        }
        if let Some(pending) = self.pending.as_mut().filter(|pending| now >= pending.proposed_at + self.settings.retry_ms) {
            // The same one: it names its version, so it is taken once at most.
            pending.proposed_at = now;
            effects.push(Effect::ProposeIsr(pending.change.clone()));
        }
        self.propose(now, effects);
        self.advance(now, effects);
    }

    /// What to read for a follower; `None` while there is nothing, its window is full, or its stream is not open.
    pub fn next_to_ship(&self, node: NodeId) -> Option<ToShip> {
        let follower = &self.followers[self.position(node)?];
        let bytes = self.settings.window_bytes.saturating_sub(follower.in_flight_bytes);
        if follower.phase != Phase::Shipping || follower.next >= self.log.log_end || bytes == 0 || self.is_deposed {
            return None;
        }
        let until = self.log.epochs.next_start(follower.next).unwrap_or(self.log.log_end).min(self.log.log_end);
        Some(ToShip { stream: follower.stream(self.epoch)?, from: follower.next, until, bytes })
    }

    /// The shell has read `shipped` for `to_ship`: the APPEND to send with it. `None` if that is not wanted any more.
    pub fn handle_shipped(&mut self, node: NodeId, to_ship: &ToShip, shipped: &Shipped, now: Millis) -> Option<Append> {
        let epochs = &self.log.epochs;
        let (previous_epoch, epoch) = (epochs.epoch_at(shipped.base_offset - 1), epochs.epoch_at(shipped.base_offset));
        let (watermark, log_start) = (self.log.watermark, self.told_start());
        let at = self.position(node)?;
        let follower = &mut self.followers[at];
        if follower.stream(self.epoch) != Some(to_ship.stream) || follower.phase != Phase::Shipping || follower.next != shipped.base_offset
        {
            return None;
        }
        assert!(shipped.end_offset > shipped.base_offset && shipped.end_offset <= self.log.log_end, "what is shipped is in the log");
        follower.next = shipped.end_offset;
        if follower.in_flight.is_empty() {
            follower.exchanged_at = now;
        }
        follower.in_flight.push_back((shipped.end_offset, shipped.bytes));
        follower.in_flight_bytes += u64::from(shipped.bytes);
        follower.watermark_sent = watermark;
        follower.log_start_sent = log_start;
        Some(Append {
            stream: to_ship.stream,
            previous_epoch,
            epoch,
            base_offset: shipped.base_offset,
            end_offset: shipped.end_offset,
            watermark,
            log_start,
            hash_before: shipped.hash_before,
            hash_after: shipped.hash_after,
            opens_segment: shipped.opens_segment,
        })
    }

    /// The same of a whole sealed segment, which may hold several epochs: the SEGMENT to send when its bytes were. Of one that was rewritten or adopted the shell says so in it.
    pub fn handle_segment_shipped(&mut self, node: NodeId, to_ship: &ToShip, shipped: &Shipped, now: Millis) -> Option<Segment> {
        let inside = |entry: &&EpochStart| shipped.base_offset < entry.start && entry.start < shipped.end_offset;
        let later: Vec<EpochStart> = self.log.epochs.entries().iter().filter(inside).copied().collect();
        let at = self.position(node)?;
        let told = self.followers[at].log_start_sent;
        let append = self.handle_shipped(node, to_ship, shipped, now)?;
        // A SEGMENT does not say where the log begins: what comes next does.
        self.followers[at].log_start_sent = told;
        let first = EpochStart { epoch: append.epoch, start: append.base_offset };
        Some(Segment {
            stream: append.stream,
            previous_epoch: append.previous_epoch,
            epochs: std::iter::once(first).chain(later).collect(),
            base_offset: append.base_offset,
            end_offset: append.end_offset,
            watermark: append.watermark,
            hash_before: append.hash_before,
            hash_after: append.hash_after,
            rewrite_generation: 0,
            adopted: false,
        })
    }

    /// An APPEND without records, where a follower has everything and does not know the watermark yet. To be asked for when there was nothing to ship.
    pub fn next_watermark(&mut self, node: NodeId) -> Option<Append> {
        let (watermark, log_start) = (self.log.watermark, self.told_start());
        let (epoch, hash) = (self.log.epochs.last(), self.log.running_hash?);
        let at = self.position(node)?;
        let follower = &mut self.followers[at];
        let is_idle = follower.phase == Phase::Shipping && follower.next == self.log.log_end && follower.in_flight.is_empty();
        let is_news = follower.watermark_sent < watermark || follower.log_start_sent < log_start;
        if !is_idle || !is_news || self.is_deposed {
            return None;
        }
        (follower.watermark_sent, follower.log_start_sent) = (watermark, log_start);
        let stream = follower.stream(self.epoch)?;
        let (base_offset, end_offset) = (follower.next, follower.next);
        Some(Append {
            stream,
            previous_epoch: epoch,
            epoch,
            base_offset,
            end_offset,
            watermark,
            log_start,
            hash_before: hash,
            hash_after: hash,
            opens_segment: false,
        })
    }
}

/// Followers.
impl Leader {
    fn position(&self, node: NodeId) -> Option<usize> {
        self.followers.iter().position(|follower| follower.replica.node == node)
    }

    fn expected(&self, node: NodeId, stream: StreamId, phase: Phase) -> Option<usize> {
        self.position(node).filter(|at| self.followers[*at].stream(self.epoch) == Some(stream) && self.followers[*at].phase == phase)
    }

    fn is_behind(&self, follower: &FollowerState) -> bool {
        follower.durable_end != Some(self.log.log_end)
    }

    /// Whether an answer of it is due.
    fn expects(&self, follower: &FollowerState) -> bool {
        let waits = match follower.phase {
            Phase::Closed => false,
            Phase::Opening | Phase::Cutting => true,
            Phase::Shipping => !follower.in_flight.is_empty(),
        };
        waits && self.epoch_journaled
    }

    fn open(&mut self, at: usize, now: Millis, effects: &mut Vec<Effect>) {
        if !self.epoch_journaled || self.is_deposed || !self.connected.contains(&self.followers[at].replica.node) {
            return;
        }
        let follower = &mut self.followers[at];
        follower.close();
        if follower.node_epoch.is_none() {
            return;
        }
        follower.session += 1;
        follower.phase = Phase::Opening;
        follower.exchanged_at = now;
        let Some(stream) = follower.stream(self.epoch) else { return };
        effects.push(Effect::Send { to: follower.replica.node, message: Message::Open(Open { stream }) });
    }

    /// Takes the replicas of the record. One in another life, or registered anew, is another one: nothing that was known of it holds.
    fn meet_followers(&mut self, view: &MetadataView<'_>, now: Millis, effects: &mut Vec<Effect>) {
        let mut before = std::mem::take(&mut self.followers);
        let replicas: Vec<Replica> = self.record.replicas.iter().copied().filter(|replica| replica.node != self.node).collect();
        for replica in &replicas {
            let node_epoch = (view.node_epoch)(replica.node);
            let known = before.iter().position(|f| f.replica.node == replica.node).map(|at| before.swap_remove(at));
            match known {
                Some(same) if same.replica == *replica && same.node_epoch == node_epoch => self.followers.push(same),
                other => {
                    let session = other.map_or(0, |f| f.session);
                    self.followers.push(FollowerState {
                        replica: *replica,
                        node_epoch,
                        phase: Phase::Closed,
                        session,
                        next: 0,
                        in_flight: VecDeque::new(),
                        in_flight_bytes: 0,
                        durable_end: None,
                        watermark_sent: 0,
                        log_start_sent: 0,
                        progress_at: now,
                        exchanged_at: now,
                    });
                    self.open(self.followers.len() - 1, now, effects);
                }
            }
        }
    }
}

/// The watermark and the ISR.
impl Leader {
    fn has_reached_start(&self) -> bool {
        self.log.watermark >= self.start || !self.rules.watermark_from_epoch_start
    }

    /// The least durable end of all that are or may be in sync.
    fn least_durable_end(&self) -> Option<Offset> {
        let pending = self.pending.as_ref().map(|pending| &pending.change);
        let joins = |node| pending.is_some_and(|change| change.join.iter().any(|joiner| joiner.replica.node == node));
        let leaves = |node| pending.is_some_and(|change| change.leave.contains(&node)) && !self.rules.shrink_waits_for_commit;
        let counts = |node| (self.record.in_sync(node) && !leaves(node)) || (joins(node) && self.rules.joiner_bounds_watermark);
        let own = if self.rules.leader_durable { self.log.durable_end } else { self.log.log_end };
        self.followers.iter().filter(|f| counts(f.replica.node)).try_fold(own, |least, f| f.durable_end.map(|end| least.min(end)))
    }

    fn advance(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let leads = (now < self.lease_until || !self.rules.lease) && !self.is_deposed && self.epoch_journaled;
        let is_enough = self.has_enough_replicas() || !self.rules.min_insync_for_watermark;
        if !leads || !is_enough {
            return;
        }
        let Some(to) = self.least_durable_end() else { return };
        if to > self.log.watermark && (to >= self.start || !self.rules.watermark_from_epoch_start) {
            self.log.watermark = to;
            effects.push(Effect::Watermark { to });
        }
    }

    /// Those that may join now.
    fn may_join(&self) -> impl Iterator<Item = Joiner> + '_ {
        let least = match (self.rules.join_from_watermark, self.rules.join_from_epoch_start) {
            (true, true) => self.log.watermark.max(self.start),
            (true, false) => self.log.watermark,
            (false, true) => self.start,
            (false, false) => 0,
        };
        let outside = self.followers.iter().filter(|f| !self.record.in_sync(f.replica.node) && f.phase == Phase::Shipping);
        outside
            .filter(move |f| f.durable_end.is_some_and(|end| end >= least))
            .filter_map(|f| Some(Joiner { replica: f.replica, node_epoch: f.node_epoch? }))
    }

    fn stands_still(&self, follower: &FollowerState, now: Millis) -> bool {
        let in_sync = self.record.in_sync(follower.replica.node);
        in_sync && self.is_behind(follower) && now >= follower.progress_at + self.settings.lag_time_ms
    }

    fn propose(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.pending.is_some() || now < self.propose_after || self.is_deposed || !self.epoch_journaled {
            return;
        }
        let leave: Vec<NodeId> = self.followers.iter().filter(|f| self.stands_still(f, now)).map(|f| f.replica.node).collect();
        let join: Vec<Joiner> = self.may_join().collect();
        if leave.is_empty() && join.is_empty() {
            return;
        }
        let change = IsrChange { leader: self.node, leader_epoch: self.epoch, version: self.record.version, leave, join };
        self.pending = Some(Pending { change: change.clone(), proposed_at: now });
        effects.push(Effect::ProposeIsr(change));
        // Without the rule that a shrink waits, it counts from here on.
        self.advance(now, effects);
    }
}

impl FollowerState {
    /// The stream as it is now.
    fn stream(&self, leader_epoch: LeaderEpoch) -> Option<StreamId> {
        let incarnation = self.replica.incarnation;
        (self.phase != Phase::Closed).then_some(StreamId { leader_epoch, node_epoch: self.node_epoch?, incarnation, session: self.session })
    }

    fn close(&mut self) {
        self.phase = Phase::Closed;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.watermark_sent = 0;
        self.log_start_sent = 0;
    }

    fn acknowledged(&mut self, durable_end: Offset) {
        while let Some((_, bytes)) = self.in_flight.front().copied().filter(|(end, _)| *end <= durable_end) {
            self.in_flight.pop_front();
            self.in_flight_bytes -= u64::from(bytes);
        }
    }

    /// Ships again from `log_end`; what the follower has in flight below it stays.
    fn rewind(&mut self, log_end: Offset) {
        self.next = log_end;
        while let Some((_, bytes)) = self.in_flight.back().copied().filter(|(end, _)| *end > log_end) {
            self.in_flight.pop_back();
            self.in_flight_bytes -= u64::from(bytes);
        }
    }
}

/// The table that a leader's EPOCHS are compared with, for status and tests.
impl Leader {
    /// Which epochs its records are of.
    pub fn epochs(&self) -> &EpochTable {
        &self.log.epochs
    }
}
