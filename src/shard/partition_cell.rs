//! One partition as its shard holds it: the machine, its memory, its open files, and what waits for it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::limits::BLOCK;
use crate::log::index::Index;
use crate::log::segment::SegmentInfo;
use crate::log::verification::Verification;
use crate::metrics::TopicMetrics;
use crate::partition::{Partition, Sealed, Settings};
use crate::replication::NodeId;
use crate::request::{Acks, Appended, Code, Refusal};
use crate::shard::disk::Disk;
use crate::shard::event::Event;
use crate::shard::pending::Completion;
use crate::shard::role::{Awaiting, AwaitingQueue, Role};
use crate::shard::segment_files::SegmentFiles;
use crate::shard::tail::Tail;
use crate::shard::trace::TraceEvent;
use crate::types::{Durability, Offset, Timestamp, TopicPartition};

/// A partition on its shard.
pub struct PartitionCell {
    /// Which.
    pub id: TopicPartition,
    /// Its topic's name.
    topic: Rc<str>,
    /// Rules and offsets.
    pub machine: RefCell<Partition>,
    /// Batches in memory.
    pub tail: RefCell<Tail>,
    /// Settings in force.
    pub settings: Cell<Settings>,
    /// The topic's counters.
    pub metrics: Arc<TopicMetrics>,
    /// Notified when the watermark moves, the partition's role changes, or it goes.
    pub committed: Event,
    /// Notified when a batch was appended.
    pub appended: Event,
    /// As many replicas are in sync as the topic asks for: what is produced now can be committed.
    pub enough_replicas: Cell<bool>,
    /// Where consumers' view ends is known: the watermark has reached where the leader's epoch begins, and the lease goes on.
    pub latest_is_known: Cell<bool>,
    /// Of a leader: its followers, and up to where each is known to have the log on its disk.
    pub follower_ends: RefCell<Vec<(NodeId, Offset)>>,
    /// Notified when the device has more of the log ([`PartitionCell::level_end`], the durable end).
    pub reached: Event,
    role: Cell<Role>,
    /// The watermark that was told from outside.
    told_watermark: Cell<Offset>,
    /// Up to here the log has reached the topic's level on this node.
    level_end: Cell<Offset>,
    awaiting: RefCell<AwaitingQueue>,
    /// How often the log was cut: what was read before may be of another past.
    pub cuts: Cell<u32>,
    /// Last journal group that this partition is in.
    pub touched_in: Cell<u64>,
    /// Bytes of the unfinished block, where the journal does not hold them: the next append carries them.
    pub remainder: RefCell<Option<Vec<u8>>>,
    /// The journal knows the present leader epoch.
    pub epoch_journaled: Cell<bool>,
    /// Its directory is there.
    pub has_directory: Cell<bool>,
    /// A flush is under way.
    pub flushing: Cell<bool>,
    /// The partition waits for write-behind.
    pub queued_for_flush: Cell<bool>,
    /// Entries of it in [`crate::shard::store::Store::tails`] whose batches have left memory.
    pub stale: Cell<usize>,
    /// When the last append came, by the shard's seconds counter.
    pub last_append: Cell<u64>,
    /// Slow changes (rolls, allocation, truncation) exclude each other.
    pub busy: Cell<bool>,
    /// Notified when `busy`, `flushing` or the last of `outside` ends.
    pub idle: Event,
    /// Appends whose bytes are on their way into files of the partition without the journal.
    outside: Cell<usize>,
    /// Which sealed segments were read again, and what was found.
    pub verification: RefCell<Verification>,
    gone: RefCell<Option<Refusal>>,
    files: RefCell<BTreeMap<Offset, Rc<SegmentFiles>>>,
    sealed_indexes: RefCell<BTreeMap<Offset, Rc<Index>>>,
    in_flight: RefCell<InFlightQueue>,
    disk: Rc<Disk>,
}

/// Appends that are not durable yet, in order of offset.
#[derive(Default)]
struct InFlightQueue {
    appends: VecDeque<InFlight>,
    /// How many of the first are written.
    written: usize,
    /// How many of the first are answered; at least those that are durable.
    answered: usize,
}

/// An append that is not durable yet.
struct InFlight {
    base_offset: Offset,
    end_offset: Offset,
    count: u32,
    crc: u32,
    segment: Offset,
    position: u64,
    sequence: u64,
    log_append_time: Timestamp,
    direct: Option<Rc<DirectWrite>>,
    completion: Option<Completion>,
}

impl InFlight {
    fn is_written(&self, group: u64) -> bool {
        self.sequence <= group && self.direct.as_deref().is_none_or(|d| d.written.get())
    }

    /// Whether its bytes can be read, be they written or not.
    fn is_readable(&self) -> bool {
        self.direct.as_deref().is_none_or(|d| !d.in_file_only || d.written.get())
    }

    fn is_durable(&self, group: u64) -> bool {
        self.sequence <= group && self.direct.as_deref().is_none_or(|d| d.durable.get())
    }
}

/// How far the blocks that went straight to the segment are.
#[derive(Default)]
pub struct DirectWrite {
    /// The device write is done.
    pub written: Cell<bool>,
    /// And synced, with the file's name.
    pub durable: Cell<bool>,
    /// None of it is in memory: nobody can read it before it is written.
    in_file_only: bool,
}

impl DirectWrite {
    /// Of a batch that no memory holds (an adopted one).
    pub fn in_file_only() -> DirectWrite {
        DirectWrite { in_file_only: true, ..DirectWrite::default() }
    }
}

/// An append that writes to files of the partition by itself; ends when dropped.
pub struct Outside(Rc<PartitionCell>);

impl Drop for Outside {
    fn drop(&mut self) {
        self.0.outside.set(self.0.outside.get() - 1);
        if self.0.outside.get() == 0 {
            self.0.idle.notify();
        }
    }
}

/// What is appended, for [`PartitionCell::track`].
pub struct Tracked {
    /// First offset.
    pub base_offset: Offset,
    /// One past the last offset.
    pub end_offset: Offset,
    /// Records.
    pub count: u32,
    /// The batch's CRC-32C.
    pub crc: u32,
    /// Segment.
    pub segment: Offset,
    /// Position of the batch.
    pub position: u64,
    /// Journal group.
    pub sequence: u64,
    /// The broker's timestamp where it set one, else -1.
    pub log_append_time: Timestamp,
    /// Blocks that went straight to the segment.
    pub direct: Option<Rc<DirectWrite>>,
    /// Who waits.
    pub completion: Option<Completion>,
}

impl PartitionCell {
    /// A partition as recovered, of the topic of that name.
    pub fn new(
        topic: &str,
        machine: Partition,
        settings: Settings,
        remainder: Option<Vec<u8>>,
        metrics: Arc<TopicMetrics>,
        disk: Rc<Disk>,
    ) -> Rc<PartitionCell> {
        PartitionCell::in_role(topic, machine, settings, remainder, metrics, disk, Role::Alone)
    }

    /// As [`PartitionCell::new`] of a partition that is something else here than the only replica.
    pub fn in_role(
        topic: &str,
        machine: Partition,
        settings: Settings,
        remainder: Option<Vec<u8>>,
        metrics: Arc<TopicMetrics>,
        disk: Rc<Disk>,
        role: Role,
    ) -> Rc<PartitionCell> {
        Rc::new(PartitionCell {
            appended: Event::default(),
            enough_replicas: Cell::new(true),
            latest_is_known: Cell::new(role == Role::Alone),
            follower_ends: RefCell::default(),
            reached: Event::default(),
            role: Cell::new(role),
            told_watermark: Cell::new(machine.ladder().committed()),
            level_end: Cell::new(machine.ladder().durable()),
            awaiting: RefCell::default(),
            cuts: Cell::new(0),
            id: machine.id(),
            topic: topic.into(),
            machine: RefCell::new(machine),
            tail: RefCell::default(),
            settings: Cell::new(settings),
            metrics,
            committed: Event::default(),
            touched_in: Cell::new(0),
            remainder: RefCell::new(remainder.filter(|r| !r.is_empty())),
            epoch_journaled: Cell::new(false),
            has_directory: Cell::new(false),
            flushing: Cell::new(false),
            queued_for_flush: Cell::new(false),
            stale: Cell::new(0),
            last_append: Cell::new(0),
            busy: Cell::new(false),
            idle: Event::default(),
            outside: Cell::new(0),
            verification: RefCell::default(),
            gone: RefCell::new(None),
            files: RefCell::default(),
            sealed_indexes: RefCell::default(),
            in_flight: RefCell::default(),
            disk,
        })
    }

    /// What its users call it.
    pub fn name(&self) -> String {
        format!("partition {} of topic {}", self.id.partition, self.topic)
    }

    /// A refusal that says of which partition it is.
    pub fn refusal(&self, code: Code, what: impl std::fmt::Display) -> Refusal {
        Refusal::new(code, format!("{}: {what}", self.name()))
    }

    /// Refuses everything from now on: the topic was deleted, or the partition is quarantined.
    pub fn close(&self, refusal: Refusal) {
        *self.gone.borrow_mut() = Some(refusal.clone());
        // The appends stay in flight: what is not durable yet must not be flushed.
        self.refuse_waiting(&refusal);
        self.committed.notify();
        self.reached.notify();
    }

    fn refuse_waiting(&self, refusal: &Refusal) {
        let mut waiting: Vec<_> = self.awaiting.borrow_mut().take_all().into_iter().map(|awaiting| awaiting.completion).collect();
        waiting.extend(self.in_flight.borrow_mut().appends.iter_mut().filter_map(|append| append.completion.take()));
        waiting.into_iter().for_each(|completion| completion.complete(Err(refusal.clone())));
    }

    /// What this node is to the partition.
    pub fn role(&self) -> Role {
        self.role.get()
    }

    /// Changes what this node is to the partition. Who waits for an append that it took as the leader, and no longer answers for, hears just that: whether the batch stays in the
    /// log is the next leader's to say, so no code that denies it would be true.
    pub fn set_role(&self, role: Role) {
        self.role.set(role);
        self.told_watermark.set(self.machine.borrow().ladder().committed());
        if !role.leads() {
            let words = "another broker leads it now; whether the batch is kept is not known here";
            self.refuse_waiting(&self.refusal(Code::RequestTimedOut, words));
        }
        self.commit_told();
        self.committed.notify();
    }

    fn not_leader(&self) -> Refusal {
        self.refusal(Code::NotLeader, "this broker does not lead it")
    }

    /// Why no client is served, if so: it is gone, or another node leads.
    pub fn not_served(&self) -> Option<Refusal> {
        self.gone().or_else(|| (!self.role.get().leads()).then(|| self.not_leader()))
    }

    /// The watermark as the leader has computed it, or as it told a follower. Steps back are ignored, and what is not at the topic's level here is not committed here yet. True if it moved.
    pub fn set_watermark(&self, high_watermark: Offset) -> bool {
        self.told_watermark.set(self.told_watermark.get().max(high_watermark));
        let news = self.commit_told();
        if news {
            self.committed.notify();
        }
        news
    }

    /// Up to here the log has reached the topic's level on this node: what a leader counts of itself, and what a follower reports.
    pub fn level_end(&self) -> Offset {
        let machine = self.machine.borrow();
        let ladder = machine.ladder();
        // What was reached at a lower level counts no more once the topic's is a higher one.
        let bound = match self.settings.get().durability {
            Durability::Durable => ladder.durable(),
            Durability::Written => ladder.written(),
            Durability::Memory => ladder.appended(),
        };
        bound.min(self.level_end.get())
    }

    /// Up to here the log is durable on this node.
    pub fn durable_end(&self) -> Offset {
        self.machine.borrow().ladder().durable()
    }

    /// The log was cut at `end`: ends that were told or reached before don't hold any more.
    pub fn cut_back(&self, end: Offset) {
        self.cuts.set(self.cuts.get() + 1);
        self.level_end.set(self.level_end.get().min(end));
        self.told_watermark.set(self.told_watermark.get().min(end));
    }

    /// Whether it was damaged: what is here is not to be trusted.
    pub fn is_damaged(&self) -> bool {
        self.gone.borrow().as_ref().is_some_and(|refusal| refusal.code == Code::Quarantined)
    }

    /// The log has no record any more and goes on at `at`. Damage went with the records.
    pub fn restart(&self, at: Offset) {
        self.gone.borrow_mut().take_if(|refusal| refusal.code == Code::Quarantined);
        self.cuts.set(self.cuts.get() + 1);
        self.level_end.set(at);
        self.told_watermark.set(at);
    }

    /// Commits what was told to be, as far as this node has it, and answers who waited for that.
    fn commit_told(&self) -> bool {
        let level = self.settings.get().durability;
        let bound = self.level_end();
        let to = if self.role.get() == Role::Alone { bound } else { bound.min(self.told_watermark.get()) };
        let news = self.machine.borrow_mut().ladder_mut().commit_to(to, level).expect("the level was reached");
        let committed = self.machine.borrow().ladder().committed();
        let ready: Vec<_> = self.awaiting.borrow_mut().take_committed(committed).collect();
        for Awaiting { base_offset, count, crc, log_append_time, completion, .. } in ready {
            if let Some(crc) = crc {
                self.trace_acknowledged(base_offset, count, crc);
            }
            completion.complete(Ok(self.acknowledgement(base_offset, log_append_time)));
        }
        news
    }

    /// When [`PartitionCell::expire`] has something to do, if nothing is committed before.
    pub fn expires_at(&self) -> Option<Instant> {
        // They come in the order of their waits, but for clients whose patience differs: those hear a little late.
        self.awaiting.borrow().first().map(|awaiting| awaiting.completion.patience.deadline)
    }

    /// Answers those whose wait for other replicas is over. Their batches stay in the log, and may be committed yet.
    pub fn expire(&self, now: Instant) {
        if self.expires_at().is_none_or(|at| at > now) {
            return;
        }
        let over = self.awaiting.borrow_mut().take_expired(now);
        for awaiting in over {
            let words = "not enough replicas have the batch yet; it may be committed later";
            awaiting.completion.complete(Err(self.refusal(Code::RequestTimedOut, words)));
        }
    }

    fn trace_acknowledged(&self, base_offset: Offset, count: u32, crc: u32) {
        // A whole segment is no batch.
        if let Some(trace) = self.disk.trace().filter(|_| count > 0) {
            trace.record(&TraceEvent::Acknowledge { partition: self.id, base_offset, count, crc });
        }
    }

    /// Why nothing is served, if so.
    pub fn gone(&self) -> Option<Refusal> {
        self.gone.borrow().clone()
    }

    /// Whether its topic was deleted.
    pub fn is_deleted(&self) -> bool {
        self.gone.borrow().as_ref().is_some_and(|refusal| refusal.code == Code::UnknownTopicOrPartition)
    }

    /// Whether what is in memory goes to the segments: not of a deleted partition, nor of one that was set aside at the start, which nothing touches. One
    /// that turned out damaged later goes on: its bytes were acknowledged, and they would keep the journal from being used again.
    pub fn is_flushed(&self) -> bool {
        !self.is_deleted() && !self.machine.borrow().is_quarantined()
    }

    /// Open files of the segment that is appended to.
    pub fn active_files(&self) -> Option<Rc<SegmentFiles>> {
        let machine = self.machine.borrow();
        let active = machine.active()?;
        self.files.borrow().get(&active.base_offset).cloned()
    }

    /// Open files of a segment that is not wholly flushed.
    pub fn files_of(&self, segment: Offset) -> Option<Rc<SegmentFiles>> {
        self.files.borrow().get(&segment).cloned()
    }

    /// Remembers open files.
    pub fn keep_files(&self, segment: Offset, files: Rc<SegmentFiles>) {
        self.files.borrow_mut().insert(segment, files);
    }

    /// Lets the files of a segment go that is sealed and flushed, or cut off.
    pub fn drop_files(&self, segment: Offset) {
        self.files.borrow_mut().remove(&segment);
        self.sealed_indexes.borrow_mut().remove(&segment);
    }

    /// Keeps the index of a segment that was sealed but is not flushed.
    pub fn keep_sealed(&self, sealed: Sealed) {
        self.sealed_indexes.borrow_mut().insert(sealed.segment.base_offset, Rc::new(sealed.index));
    }

    /// The index of a sealed segment that is still in memory.
    pub fn sealed_index(&self, segment: Offset) -> Option<Rc<Index>> {
        self.sealed_indexes.borrow().get(&segment).cloned()
    }

    /// Writes index entries before `position` of a segment to its file.
    pub async fn write_index(&self, files: &SegmentFiles, info: &SegmentInfo, position: u64) -> io::Result<()> {
        if let Some(index) = self.sealed_index(info.base_offset) {
            return files.write_index(&index, position).await;
        }
        // The entries before `position` don't change while they are written; a clone of the few new ones would be cheaper, an index is small.
        let index = self.machine.borrow().index().clone();
        match index.segment() == info.base_offset {
            true => files.write_index(&index, position).await,
            false => Ok(()),
        }
    }

    /// Follows an append until it is durable and its completion is answered.
    pub fn track(&self, append: Tracked) {
        let Tracked { base_offset, end_offset, count, crc, segment, position, sequence, log_append_time, direct, completion } = append;
        self.in_flight.borrow_mut().appends.push_back(InFlight {
            base_offset,
            end_offset,
            count,
            crc,
            segment,
            position,
            sequence,
            log_append_time,
            direct,
            completion,
        });
        self.appended.notify();
        if self.settings.get().durability == Durability::Memory {
            self.advance(0, 0);
        }
    }

    /// Answers `completion` with an earlier append's offset once everything up to `end_offset` is committed.
    pub fn track_duplicate(&self, base_offset: Offset, end_offset: Offset, completion: Completion) {
        if self.role.get() != Role::Alone {
            let reached = match completion.patience.acks {
                Acks::All => self.machine.borrow().ladder().committed(),
                Acks::Leader | Acks::None => self.level_end(),
            };
            if end_offset <= reached {
                return completion.complete(Ok(self.acknowledgement(base_offset, -1)));
            }
            // The original may be of another leader, or of an earlier run: what is committed says all.
            return self.awaiting.borrow_mut().push(Awaiting {
                base_offset,
                end_offset,
                count: 0,
                crc: None,
                log_append_time: -1,
                completion,
            });
        }
        let mut in_flight = self.in_flight.borrow_mut();
        let at = in_flight.appends.partition_point(|f| f.end_offset < end_offset);
        match in_flight.appends.get_mut(at).and_then(|f| f.completion.take().map(|first| (f, first))) {
            Some((original, first)) => original.completion = Some(first.and(completion, base_offset)),
            None => {
                drop(in_flight);
                completion.complete(Ok(self.acknowledgement(base_offset, -1)));
            }
        }
    }

    fn acknowledgement(&self, base_offset: Offset, log_append_time: Timestamp) -> Appended {
        Appended { base_offset, log_append_time, log_start: self.machine.borrow().log_start() }
    }

    /// Groups up to `written` are written and up to `durable` synced: moves the ends on, answers who waited, wakes readers.
    ///
    /// Each append is looked at once per step that it takes, however many are in flight.
    pub fn advance(&self, written: u64, durable: u64) {
        let level = self.settings.get().durability;
        let is_alone = self.role.get() == Role::Alone;
        let mut answered = Vec::new();
        let (mut news, mut has_reached) = (false, false);
        {
            let mut machine = self.machine.borrow_mut();
            let mut in_flight = self.in_flight.borrow_mut();
            let InFlightQueue { appends, written: all_written, answered: all_answered } = &mut *in_flight;
            let mut all_durable = 0;
            while let Some(next) = appends.get(*all_written).filter(|a| a.is_written(written)) {
                *all_written += 1;
                machine.ladder_mut().reach(next.end_offset, false).expect("in flight is below the appended end");
            }
            while all_durable < *all_written && appends[all_durable].is_durable(durable) {
                let end_offset = appends[all_durable].end_offset;
                machine.ladder_mut().reach(end_offset, true).expect("in flight is below the appended end");
                all_durable += 1;
            }
            let reached = match level {
                Durability::Durable => all_durable,
                Durability::Written => *all_written,
                // Everything is in memory but adopted batches: those count, and what is behind them, once their files are there.
                Durability::Memory => *all_answered + appends.range(*all_answered..).take_while(|a| a.is_readable()).count(),
            };
            for append in appends.range_mut((*all_answered).min(reached)..reached) {
                self.level_end.set(append.end_offset.max(self.level_end.get()));
                has_reached = true;
                let InFlight { base_offset, end_offset, count, crc, log_append_time, .. } = *append;
                if !is_alone {
                    match append.completion.take() {
                        // It asks for the leader's copy only; should another lead next, the batch may go.
                        Some(completion) if completion.patience.acks != Acks::All => {
                            answered.push((completion, base_offset, log_append_time));
                            self.trace_acknowledged(base_offset, count, crc);
                        }
                        Some(completion) => {
                            let awaiting = Awaiting { base_offset, end_offset, count, crc: Some(crc), log_append_time, completion };
                            self.awaiting.borrow_mut().push(awaiting);
                        }
                        // The leader is told that it is here.
                        None if !self.role.get().leads() => self.trace_acknowledged(base_offset, count, crc),
                        None => {}
                    }
                    continue;
                }
                news |= machine.ladder_mut().commit_to(end_offset, level).expect("the level was reached");
                let Some(completion) = append.completion.take() else { continue };
                answered.push((completion, base_offset, log_append_time));
                self.trace_acknowledged(base_offset, count, crc);
            }
            has_reached |= all_durable > 0;
            *all_answered = reached.max(*all_answered);
            appends.drain(..all_durable);
            *all_written -= all_durable;
            *all_answered -= all_durable;
        }
        for (completion, base_offset, log_append_time) in answered {
            completion.complete(Ok(self.acknowledgement(base_offset, log_append_time)));
        }
        if has_reached {
            news |= !is_alone && self.commit_told();
            self.reached.notify();
        }
        if news {
            self.committed.notify();
        }
    }

    /// Position up to which `segment` is durable in the journal (or on its own): write-behind stays below.
    pub fn durable_position(&self, segment: &SegmentInfo) -> u64 {
        match self.in_flight.borrow().appends.front() {
            Some(first) if first.segment == segment.base_offset => first.position,
            Some(first) if first.segment < segment.base_offset => BLOCK as u64,
            _ => segment.valid_end,
        }
    }

    /// Group of the oldest append in flight.
    pub fn oldest_in_flight(&self) -> Option<u64> {
        self.in_flight.borrow().appends.front().map(|f| f.sequence)
    }

    /// Group of the oldest byte that is only in the journal.
    pub fn oldest_unflushed(&self) -> Option<u64> {
        self.tail.borrow().oldest_unflushed(self.machine.borrow().flushed())
    }

    /// Bytes of the batch of `offset`, if it can be read from nowhere before it is flushed.
    pub fn left_out(&self, offset: Offset) -> Option<usize> {
        self.tail.borrow().left_out(offset, self.machine.borrow().flushed())
    }

    /// Bytes in memory that are in no segment.
    pub fn unflushed_bytes(&self) -> usize {
        let flushed = self.machine.borrow().flushed();
        self.tail.borrow().unflushed_bytes(flushed)
    }

    /// Lets batches below `offset` go from memory (they were deleted).
    pub fn forget_below(&self, offset: Offset) -> usize {
        self.tail.borrow_mut().forget_below(offset)
    }

    /// Excludes other slow changes until [`PartitionCell::leave`].
    pub async fn enter(&self) {
        loop {
            let ticket = self.idle.ticket();
            if !self.busy.replace(true) {
                return;
            }
            self.idle.wait(ticket).await;
        }
    }

    /// Ends a slow change.
    pub fn leave(&self) {
        self.busy.set(false);
        self.idle.notify();
    }

    /// Waits until no flush is under way, and begins one.
    pub async fn enter_flush(&self) {
        loop {
            let ticket = self.idle.ticket();
            if !self.flushing.replace(true) {
                return;
            }
            self.idle.wait(ticket).await;
        }
    }

    /// The files stay until what is returned is dropped: an append writes to them outside of any flush.
    pub fn begin_outside(self: &Rc<PartitionCell>) -> Outside {
        self.outside.set(self.outside.get() + 1);
        Outside(self.clone())
    }

    /// Waits until no append writes to the files outside of a flush. New ones must be excluded by the caller.
    pub async fn wait_outside(&self) {
        loop {
            let ticket = self.idle.ticket();
            if self.outside.get() == 0 {
                return;
            }
            self.idle.wait(ticket).await;
        }
    }

    /// Closes all files and forgets all bytes in memory: the partition is gone. Returns how many of the bytes were in no segment.
    pub fn forget_all(&self) -> usize {
        self.files.borrow_mut().clear();
        self.sealed_indexes.borrow_mut().clear();
        let unflushed = self.unflushed_bytes();
        self.tail.borrow_mut().truncate(i64::MIN);
        unflushed
    }

    /// Ends a flush.
    pub fn leave_flush(&self) {
        self.flushing.set(false);
        self.idle.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::HEADER_LEN;
    use crate::log::checkpoint::PartitionState;
    use crate::log::producers::tests::batch;
    use crate::log::segment::FIRST_POSITION;
    use crate::partition::Plan;
    use crate::types::TopicId;

    /// Adopts a batch at `base_offset`, in the machine and in flight.
    fn adopt(cell: &PartitionCell, base_offset: Offset, direct: &Rc<DirectWrite>) {
        let plan = Plan { base_offset, end_offset: base_offset + 1, segment: base_offset, position: FIRST_POSITION, len: 100 };
        cell.machine.borrow_mut().adopt(&plan, &[0; HEADER_LEN], &batch(-1, -1, -1, 1, base_offset), 0);
        cell.track(Tracked {
            base_offset,
            end_offset: base_offset + 1,
            count: 1,
            crc: 0,
            segment: base_offset,
            position: FIRST_POSITION,
            sequence: 1,
            log_append_time: -1,
            direct: Some(direct.clone()),
            completion: None,
        });
    }

    #[test]
    fn at_level_memory_an_adopted_batch_is_seen_when_its_file_is_there() {
        let id = TopicPartition { topic: TopicId([1; 16]), partition: 0 };
        let machine = Partition::open(PartitionState::new(id), 0, 10, 0);
        let settings = Settings { durability: Durability::Memory, ..Settings::default() };
        let cell = PartitionCell::new("adopting", machine, settings, None, Arc::default(), Disk::new("unused".into(), true, None));
        let committed = || cell.machine.borrow().ladder().committed();
        let (first, second, large) = (Rc::new(DirectWrite::in_file_only()), Rc::new(DirectWrite::in_file_only()), Rc::default());
        adopt(&cell, 0, &first);
        adopt(&cell, 1, &second);
        adopt(&cell, 2, &large);
        assert_eq!(committed(), 0);
        second.written.set(true);
        cell.advance(0, 0);
        assert_eq!(committed(), 0, "the one before it is not there");
        first.written.set(true);
        cell.advance(0, 0);
        assert_eq!(committed(), 3, "what is in memory waits for no file of its own");
        [first, second, large].iter().for_each(|d| d.durable.set(true));
        cell.advance(1, 1);
        assert_eq!((committed(), cell.oldest_in_flight()), (3, Some(1)), "the last one is not written");
    }
}
