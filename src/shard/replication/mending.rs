//! A damaged sealed segment comes again from the leader, and takes the place of the damaged file; nothing else of the replica is touched.
//!
//! ```text
//! follower: its copy is damaged ── SegmentWanted ──> leader: has the same segment? reads and checks it
//!           <── parts, into a file beside, checked by the follower's own hashes ──┘   (SegmentMissing: it has not, or it is damaged too)
//!           all came and checks: the file gets the segment's name
//! ```
//! The follower believes nobody: what comes counts only if it leads from the hash before the segment to the hash after it, as the follower's own log knows them. So the replica stays what it was, in
//! sync, and no file goes before there is a good one in its place. Two replicas that are damaged in different segments mend each other.
//!
//! A leader hands leadership over to another replica that is in sync, and is mended as a follower. The only replica stays as it is, and what is damaged of it is said.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::cluster::{Command, Election};
use crate::limits::{HAND_OVER_AGAIN_S, MEND_AGAIN_S};
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::log::segment_check::SegmentCheck;
use crate::metrics::Counter;
use crate::replication::NodeId;
use crate::replication::codec::{Frame, SegmentMissing, SegmentPart, SegmentWanted, WANTED_STREAM};
use crate::shard::context::Context;
use crate::shard::net::Outgoing;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::pieces::Pieces;
use crate::shard::receipt::Receipt;
use crate::shard::replica::ReplicaError;
use crate::shard::replication::outbox::Outbox;
use crate::shard::replication::replica::{Life, Machine, Replica};
use crate::shard::verifier;
use crate::types::Offset;

/// A leader that sends nothing of a segment for so long sends nothing any more: another attempt is made.
const SILENCE: Duration = Duration::from_secs(60);
/// Segments of one partition that are given to followers at once; who asks for more asks again later.
const GIVEN_AT_ONCE: usize = 4;

/// The pause between two attempts grows so often: from half a minute to an hour.
const MOST_DOUBLINGS: u32 = 7;

/// A segment that was asked for.
pub(super) struct Mending {
    info: SegmentInfo,
    on: Rc<Outbox>,
    /// What came of it.
    receipt: Option<Receipt>,
    heard_at: Instant,
}

/// Attempts to mend what is damaged of one partition.
#[derive(Default)]
pub(super) struct Mends {
    /// Not before then; `None`: nothing is damaged.
    next: Option<Instant>,
    /// The damaged segment whose turn it is, and the replica that leadership goes to, counted.
    turn: usize,
    /// Attempts in a row that brought nothing.
    attempts: u32,
    handed_over_at: Option<Instant>,
    /// It led at the last look.
    led: bool,
    /// Segments that are being given to followers.
    given: Rc<Cell<usize>>,
}

impl Life {
    /// When something is to be mended next.
    pub(super) fn next_mend(&self) -> Option<Instant> {
        self.mending.as_ref().map(|mending| mending.heard_at + SILENCE).or(self.mends.next)
    }

    /// Does what can be done about damaged segments at present.
    pub(super) async fn mend(&mut self) {
        let cell = self.replica.cell.clone();
        if cell.verification.borrow_mut().take_suspects() {
            self.context.verifier.read_suspects(cell.id);
        }
        if let Some(mending) = &self.mending {
            let follows = matches!(&self.machine, Some(Machine::Follower(follower)) if follower.is_aligned());
            if follows && !mending.on.is_closed() && mending.heard_at.elapsed() < SILENCE {
                return;
            }
            self.drop_mending().await;
        }
        // Of one that is gone, or set aside, all begins anew, or nothing does.
        if !cell.verification.borrow().is_damaged() || cell.gone().is_some() {
            (self.mends.next, self.mends.attempts) = (None, 0);
            return;
        }
        let led = matches!(self.machine, Some(Machine::Leader(_)));
        if std::mem::replace(&mut self.mends.led, led) != led {
            // What can be done is something else now.
            (self.mends.next, self.mends.attempts) = (None, 0);
        }
        if self.mends.next.is_some_and(|next| next > Instant::now()) {
            return;
        }
        // Where all replicas have the same damage, nothing is to be had, and that need not be said twice a minute for ever.
        let pause = Duration::from_secs(MEND_AGAIN_S) * (1 << self.mends.attempts.min(MOST_DOUBLINGS));
        self.mends.attempts += 1;
        self.mends.next = Some(Instant::now() + pause);
        let damaged: Vec<Offset> = cell.verification.borrow().damaged().map(|(base_offset, _)| base_offset).collect();
        match &self.machine {
            Some(Machine::Leader(_)) => self.hand_over(),
            Some(Machine::Follower(follower)) if follower.is_aligned() => self.want(damaged[self.mends.turn % damaged.len()]),
            // Its leader has to open the stream first.
            _ => {
                self.mends.attempts -= 1;
                self.mends.next = Some(Instant::now() + Duration::from_secs(1));
            }
        }
    }

    /// Asks the leader for a segment.
    fn want(&mut self, base_offset: Offset) {
        self.mends.turn += 1;
        let cell = &self.replica.cell;
        let found = cell.machine.borrow().segments().iter().find(|info| info.base_offset == base_offset).copied();
        // The leader that is followed is the last one that spoke.
        let (Some(info), Some((node, on))) = (found, self.leaders.last().filter(|(_, on)| !on.is_closed())) else { return };
        let wanted = SegmentWanted {
            partition: self.id,
            base_offset,
            end_offset: info.end_offset,
            running_hash: info.running_hash,
            rewrite_generation: info.rewrite_generation,
            total: info.batch_bytes(),
        };
        tracing::warn!(partition = %self.id, segment = base_offset, node, "a damaged segment is asked for again");
        on.send_bare(&Frame::SegmentWanted(wanted));
        self.mending = Some(Mending { info, on: on.clone(), receipt: None, heard_at: Instant::now() });
    }

    /// Gives leadership to another replica in sync, if there is one.
    fn hand_over(&mut self) {
        let again = Duration::from_secs(HAND_OVER_AGAIN_S);
        if self.mends.handed_over_at.is_some_and(|at| at.elapsed() < again) {
            return;
        }
        let (node, view) = (self.context.identity.node, self.context.view.borrow().clone());
        let Some(record) = view.partition(&self.id) else { return };
        let may_lead = |other: &NodeId| *other != node && view.node(*other).is_some_and(|other| other.is_live());
        let others: Vec<NodeId> = record.isr.iter().copied().filter(may_lead).collect();
        if others.is_empty() {
            tracing::error!(partition = %self.id, "a segment is damaged and no other replica is in sync: it stays as it is");
            return;
        }
        let to = others[self.mends.turn % others.len()];
        self.mends.turn += 1;
        self.mends.handed_over_at = Some(Instant::now());
        let (context, partition) = (self.context.clone(), self.id);
        glommio::spawn_local(async move {
            let elect = Command::ElectLeader { partition, election: Election::HandOver(to) };
            match context.control.propose(elect).await {
                Ok(_) => tracing::warn!(%partition, to, "leadership is handed over: a segment is damaged here"),
                Err(refusal) => tracing::warn!(%partition, to, %refusal, "a segment is damaged here, and leadership can't be handed over"),
            }
        })
        .detach();
    }

    /// A part of a segment that was asked for.
    pub(super) async fn take_wanted_part(&mut self, part: &SegmentPart, payload: &Bytes, on: &Rc<Outbox>) {
        let is_it = |mending: &&mut Mending| mending.info.base_offset == part.base_offset && Rc::ptr_eq(&mending.on, on);
        let Some(mending) = self.mending.as_mut().filter(is_it) else { return };
        mending.heard_at = Instant::now();
        self.context.metrics.add(Counter::ReplicationBytesReceived, payload.len() as u64);
        let taken = take(&self.context, &self.replica.cell, mending, part, payload).await;
        match taken {
            Ok(false) => {}
            Ok(true) => self.finish_mending().await,
            Err(error) => {
                tracing::warn!(partition = %self.id, segment = part.base_offset, %error, "a segment that was asked for can't be used");
                self.context.metrics.add(Counter::ReplicationRefused, 1);
                self.drop_mending().await;
            }
        }
    }

    /// All of it is here: if it is the segment, it takes the place of the damaged one.
    async fn finish_mending(&mut self) {
        let Some(Mending { info, receipt: Some(receipt), .. }) = self.mending.take() else { return };
        let cell = self.replica.cell.clone();
        let word = cell.machine.borrow().word(&info, info.base_offset);
        let replaced = match receipt.finish(&word).await {
            Ok(received) => received.replace(&info).await,
            Err(error) => Err(error),
        };
        match replaced {
            Ok(()) => {
                self.context.metrics.add(Counter::SegmentsMended, 1);
                tracing::warn!(partition = %self.id, segment = info.base_offset, "a damaged segment was replaced by the leader's");
                verifier::note_sound(&self.context, &cell, &info);
                // The next one, if there is one.
                self.mends.attempts = 0;
                self.mends.next = cell.verification.borrow().is_damaged().then(Instant::now);
                self.replica.look_again();
            }
            Err(error) => {
                tracing::warn!(partition = %self.id, segment = info.base_offset, %error, "a damaged segment could not be replaced")
            }
        }
    }

    /// The leader does not have a segment that was asked for.
    pub(super) async fn segment_missing(&mut self, from: NodeId, base_offset: Offset, on: &Rc<Outbox>) {
        let is_it = |mending: &Mending| mending.info.base_offset == base_offset && Rc::ptr_eq(&mending.on, on);
        if self.mending.as_ref().is_some_and(is_it) {
            tracing::error!(partition = %self.id, segment = base_offset, node = from, "a damaged segment can't be had from the leader: it stays");
            self.drop_mending().await;
        }
    }

    pub(super) async fn drop_mending(&mut self) {
        if let Some(Mending { receipt: Some(receipt), .. }) = self.mending.take() {
            receipt.abandon().await;
        }
    }

    /// Gives a follower the segment that it wants, if it is here.
    pub(super) fn give_segment(&self, from: NodeId, wanted: &SegmentWanted, on: &Rc<Outbox>) {
        let cell = &self.replica.cell;
        let is_it = |info: &&SegmentInfo| {
            let own = (info.base_offset, info.end_offset, info.running_hash, info.rewrite_generation, info.batch_bytes());
            own == (wanted.base_offset, wanted.end_offset, wanted.running_hash, wanted.rewrite_generation, wanted.total)
        };
        let found = cell.machine.borrow().segments().iter().find(|info| info.sealed && is_it(info)).copied();
        let found = found.filter(|_| cell.gone().is_none());
        let Some(info) = found else {
            tracing::warn!(partition = %self.id, segment = wanted.base_offset, node = from, "a follower wants a segment that is not here as it has it");
            return on.send_bare(&Frame::SegmentMissing(SegmentMissing { partition: self.id, base_offset: wanted.base_offset }));
        };
        if self.mends.given.get() >= GIVEN_AT_ONCE {
            return;
        }
        let given = self.mends.given.clone();
        given.set(given.get() + 1);
        let (context, replica, on, queue) =
            (self.context.clone(), self.replica.clone(), on.clone(), self.context.replication.segment_queue());
        let task = async move {
            if let Err(error) = give(&context, &replica, &info, &on).await {
                tracing::warn!(partition = %replica.cell.id, segment = info.base_offset, error, "a follower does not get a segment that it wants");
                on.send_bare(&Frame::SegmentMissing(SegmentMissing { partition: replica.cell.id, base_offset: info.base_offset }));
            }
            given.set(given.get() - 1);
        };
        glommio::spawn_local_into(task, queue).expect("the queue lives as long as the executor").detach();
    }
}

/// Takes a part in; true once it was the last one.
async fn take(
    context: &Rc<Context>,
    cell: &Rc<PartitionCell>,
    mending: &mut Mending,
    part: &SegmentPart,
    payload: &Bytes,
) -> Result<bool, ReplicaError> {
    let total = mending.info.batch_bytes();
    if mending.receipt.is_none() && part.position == 0 && part.total == total {
        let queue = context.replication.segment_queue();
        mending.receipt = Some(Receipt::begin(&context.store, cell, queue, part.base_offset, total).await?);
    }
    let received = mending.receipt.as_ref().map(Receipt::progress);
    let Some(receipt) = mending.receipt.as_mut().filter(|_| received == Some((part.total, part.position))) else {
        let words =
            format!("a part at {} of {}, expected one at {} of {total}", part.position, part.total, received.map_or(0, |(_, at)| at));
        return Err(cell.refusal(crate::request::Code::InvalidRequest, words).into());
    };
    receipt.take(payload).await?;
    let (total, received) = receipt.progress();
    Ok(received == total)
}

/// Reads a segment for a follower and sends it, as a whole segment is shipped: below live traffic, at the node's rate.
async fn give(context: &Rc<Context>, replica: &Rc<Replica>, info: &SegmentInfo, on: &Rc<Outbox>) -> Result<(), String> {
    let _turn = on.segment_turn().await;
    let (cell, total) = (&replica.cell, info.batch_bytes());
    let damaged = |position: u64, what: String| {
        verifier::note_damage(context, cell, info, position, &what);
        what
    };
    let (file, start) = context.store.segment_from(cell, info, info.base_offset).await?;
    let mut check = SegmentCheck::new(info.base_offset);
    let mut pieces = Pieces::of(file, start, info.valid_end, context.replication.segment_queue());
    loop {
        let position = pieces.position();
        let piece = pieces.next().await.map_err(|error| damaged(position, error.to_string()))?;
        let Some((bytes, range)) = piece else { break };
        check.take(&bytes[range.clone()]).map_err(|fault| damaged(position, fault.to_string()))?;
        let wait = context.replication.pace().take(range.len());
        if !wait.is_zero() {
            glommio::timer::sleep(wait).await;
        }
        on.wait_for_part().await;
        if on.is_closed() || cell.gone().is_some() {
            return Err("it is not wanted any more".into());
        }
        let (base_offset, position) = (info.base_offset, position - FIRST_POSITION);
        let part = SegmentPart { partition: cell.id, stream: WANTED_STREAM, base_offset, position, total };
        context.metrics.add(Counter::ReplicationBytesSent, range.len() as u64);
        on.send_part(part, Outgoing::Disk(bytes, range));
    }
    let word = cell.machine.borrow().word(info, info.base_offset);
    check.finish(&word).map(drop).map_err(|fault| damaged(info.valid_end, fault.to_string()))
}
