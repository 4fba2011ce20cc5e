//! Whole sealed segments on their way to followers.
//!
//! ```text
//! task of the partition: "the next thing is this segment" ──> job: reads pieces ahead, checks them, pays for them, sends them one by one
//!                                                              └─ all are sent ──> task of the partition: SEGMENT
//! ```
//! A job runs beside the partition's task, in a task queue with few shares. Its pieces are frames of their own: messages of other partitions on the connection go between them, and wait for
//! [`PARTS_QUEUED`] bytes at most.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::limits::{BLOCK, SHIP_LEAST};
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::log::segment_check::{CheckedSegment, SegmentCheck};
use crate::metrics::Counter;
use crate::replication::codec::SegmentPart;
use crate::replication::{Leader, Message, NodeId, Shipped, ToShip};
use crate::shard::context::Context;
use crate::shard::net::Outgoing;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::pieces::Pieces;
use crate::shard::replication::outbox::Outbox;
use crate::shard::replication::replica::{Life, Machine, Replica};
use crate::shard::verifier;
use crate::types::Offset;

/// A job that failed is not begun again for so long.
const REST: Duration = Duration::from_secs(1);
/// What of a segment is in flight while its follower installs it: it is on disk there, so it takes no window but for this, bytes. So the next one comes meanwhile.
const IN_FLIGHT_BYTES: u32 = 1 << 20;

/// How a job ended.
type End = Result<CheckedSegment, String>;

/// A segment on its way to one follower; ends when dropped.
pub(super) struct Shipping {
    node: NodeId,
    wanted: ToShip,
    outbox: Rc<Outbox>,
    info: SegmentInfo,
    is_over: Rc<Cell<bool>>,
    end: Rc<RefCell<Option<End>>>,
}

impl Drop for Shipping {
    fn drop(&mut self) {
        self.is_over.set(true);
    }
}

/// What came of a look at what is next for a follower.
pub(super) enum Next {
    /// Batches, as always.
    Batches,
    /// A segment is on its way.
    Wait,
    /// One was sent: there may be more.
    Again,
}

impl Life {
    /// Jobs whose follower, connection or stream is not the one that they were begun for end.
    pub(super) fn end_stale_shipping(&mut self) {
        let leader = match &self.machine {
            Some(Machine::Leader(leader)) => leader,
            _ => return self.shipping.clear(),
        };
        let followers = &self.followers;
        self.shipping.retain(|job| {
            let is_there = followers.iter().any(|(node, outbox)| *node == job.node && Rc::ptr_eq(outbox, &job.outbox));
            let wanted = leader.next_to_ship(job.node);
            is_there && wanted.is_some_and(|wanted| (wanted.stream, wanted.from) == (job.wanted.stream, job.wanted.from))
        });
    }

    /// Ships what is next for a follower as a whole segment, where that is to be.
    pub(super) fn ship_segment(&mut self, node: NodeId, outbox: &Rc<Outbox>, wanted: &ToShip) -> Next {
        let Some(Machine::Leader(leader)) = &mut self.machine else { return Next::Wait };
        let Some(at) = self.shipping.iter().position(|job| job.node == node) else {
            let Some(info) = segment_to_ship(&self.replica.cell, leader, node, wanted.from) else { return Next::Batches };
            self.shipping.push(begin(&self.context, &self.replica, node, outbox, wanted, info));
            return Next::Wait;
        };
        let Some(end) = self.shipping[at].end.take() else { return Next::Wait };
        let job = self.shipping.swap_remove(at);
        match end {
            Ok(segment) => {
                let shipped = Shipped {
                    base_offset: job.wanted.from,
                    end_offset: segment.info.end_offset,
                    bytes: IN_FLIGHT_BYTES.min(u32::try_from(segment.info.batch_bytes()).unwrap_or(u32::MAX)),
                    hash_before: segment.hash_before,
                    hash_after: segment.info.running_hash,
                    opens_segment: true,
                };
                let now = self.context.replication.now();
                if let Some(mut message) = leader.handle_segment_shipped(node, wanted, &shipped, now) {
                    (message.rewrite_generation, message.adopted) = (job.info.rewrite_generation, job.info.adopted);
                    self.context.metrics.add(Counter::SegmentsShipped, 1);
                    outbox.push(self.id, Message::Segment(message), Vec::new());
                }
                Next::Again
            }
            Err(what) => {
                tracing::warn!(partition = %self.id, node, segment = job.info.base_offset, what, "a segment could not be shipped");
                Next::Again
            }
        }
    }
}

/// The segment that a follower gets as a file, where it goes on at `from`: one that was rewritten or adopted, for it can't be had otherwise; or a large one for a follower that is far behind.
fn segment_to_ship(cell: &PartitionCell, leader: &Leader, node: NodeId, from: Offset) -> Option<SegmentInfo> {
    let machine = cell.machine.borrow();
    let info = *machine.segment_of(from)?;
    if info.is_rewritten() {
        return Some(info);
    }
    if !info.sealed || info.base_offset != from {
        return None;
    }
    if info.adopted {
        // Before that its file has not got its name.
        return (cell.durable_end() >= info.end_offset).then_some(info);
    }
    let is_flushed = (info.base_offset, info.valid_end) <= machine.flushed();
    let is_far_behind = machine.segments().iter().any(|later| later.sealed && later.base_offset >= info.end_offset);
    // Who is in sync is not to stand still while a file comes in.
    let may_wait = !leader.record().in_sync(node);
    (is_flushed && is_far_behind && may_wait && info.batch_bytes() >= SHIP_LEAST).then_some(info)
}

fn begin(context: &Rc<Context>, replica: &Rc<Replica>, node: NodeId, outbox: &Rc<Outbox>, wanted: &ToShip, info: SegmentInfo) -> Shipping {
    let (is_over, end) = (Rc::new(Cell::new(false)), Rc::default());
    let shipping = Shipping { node, wanted: *wanted, outbox: outbox.clone(), info, is_over: Rc::clone(&is_over), end: Rc::clone(&end) };
    let job = Job { context: context.clone(), replica: replica.clone(), outbox: outbox.clone(), wanted: *wanted, info, is_over };
    let queue = context.replication.segment_queue();
    let task = async move {
        let ended = job.run().await;
        if ended.is_err() && !job.is_over.get() {
            glommio::timer::sleep(REST).await;
        }
        *end.borrow_mut() = Some(ended);
        job.replica.look_again();
    };
    glommio::spawn_local_into(task, queue).expect("the queue lives as long as the executor").detach();
    shipping
}

struct Job {
    context: Rc<Context>,
    replica: Rc<Replica>,
    outbox: Rc<Outbox>,
    wanted: ToShip,
    info: SegmentInfo,
    is_over: Rc<Cell<bool>>,
}

impl Job {
    async fn run(&self) -> End {
        let _turn = self.outbox.segment_turn().await;
        self.expect_wanted()?;
        let (cell, info) = (&self.replica.cell, &self.info);
        let (file, start) = self.context.store.segment_from(cell, info, self.wanted.from).await?;
        let total = info.valid_end - start;
        let mut check = SegmentCheck::new(self.wanted.from);
        let mut pieces = Pieces::of(file, start, info.valid_end, self.context.replication.segment_queue());
        let mut sent = 0;
        while let Some((bytes, range)) = pieces.next().await.map_err(|error| error.to_string())? {
            let len = range.len();
            check.take(&bytes[range.clone()]).map_err(|fault| self.damaged(&fault))?;
            if !info.adopted {
                // What was produced a moment ago is live traffic, however large it is.
                let wait = self.context.replication.pace().take(len);
                if !wait.is_zero() {
                    glommio::timer::sleep(wait).await;
                }
            }
            self.outbox.wait_for_part().await;
            self.expect_wanted()?;
            let part = SegmentPart { partition: cell.id, stream: self.wanted.stream, base_offset: self.wanted.from, position: sent, total };
            self.outbox.send_part(part, Outgoing::Disk(bytes, range));
            self.context.metrics.add(Counter::ReplicationBytesSent, len as u64);
            sent += len as u64;
        }
        let word = cell.machine.borrow().word(info, self.wanted.from);
        check.finish(&word).map_err(|fault| self.damaged(&fault))
    }

    fn damaged(&self, fault: &crate::log::segment_check::SegmentFault) -> String {
        if self.is_over.get() {
            return "it is not wanted any more".into();
        }
        verifier::note_damage(&self.context, &self.replica.cell, &self.info, self.info.valid_end, fault);
        fault.to_string()
    }

    fn expect_wanted(&self) -> Result<(), String> {
        let is_over = self.is_over.get() || self.outbox.is_closed() || self.replica.cell.gone().is_some();
        if is_over { Err("it is not wanted any more".into()) } else { Ok(()) }
    }
}

const _: () = assert!(FIRST_POSITION.is_multiple_of(BLOCK as u64), "a whole segment is sent in whole blocks");
