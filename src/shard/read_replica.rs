//! Which replica a consumer reads from: the leader, or an in-sync follower in the consumer's rack (KIP-392).
//!
//! A leader that is asked by a consumer of another rack names a follower in the place of records. A follower answers with what is committed, as far as it has heard of that: it may be behind,
//! and is never wrong. Its watermark came from a leader, which counts only what every member of the ISR has, and nothing below it is cut but by an election that the operator calls unclean.
//!
//! That it is in the ISR, and its lease goes on, is asked all the same: one that is cut off would be behind for as long as it is.

use std::rc::Rc;

use crate::cluster::{CatalogueView, NodeState};
use crate::replication::NodeId;
use crate::request::{Code, ReadFrom, Refusal};
use crate::shard::context::Context;
use crate::shard::metadata::advertised;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::role::Role;
use crate::types::{Offset, TopicPartition};

/// Checks that this node may answer a fetch.
///
/// # Errors
/// The partition is gone; or this node neither leads it nor follows in sync, or only a leader may answer.
pub fn check_readable(context: &Context, cell: &PartitionCell, from: &ReadFrom) -> Result<(), Refusal> {
    let Some(refusal) = cell.not_served() else { return Ok(()) };
    let Role::Follower(epoch) = cell.role() else { return Err(refusal) };
    if cell.gone().is_some() || *from == ReadFrom::Leader {
        return Err(refusal);
    }
    let view = context.view.borrow();
    let follows = view.partition(&cell.id).is_some_and(|record| {
        let node = context.identity.node;
        record.in_sync(node) && record.leader_epoch == epoch && record.leader.is_some_and(|leader| leader != node)
    });
    match follows && context.replication.holds_lease() {
        true => Ok(()),
        false => Err(cell.refusal(Code::NotLeader, "this broker does not lead it, and is not in sync with the one that does")),
    }
}

/// The advertised shard that a consumer at `offset` is to ask in the place of this leader; `None` where it is to stay.
pub fn preferred_broker(context: &Context, cell: &Rc<PartitionCell>, offset: Offset, from: &ReadFrom) -> Option<u32> {
    let ReadFrom::Rack(rack) = from else { return None };
    if !cell.role().leads() {
        return None;
    }
    let view = context.view.borrow();
    let node = preferred(&view, context.identity.node, &cell.id, rack, offset, &cell.follower_ends.borrow())?;
    Some(advertised(context, &view).broker_of(node, &cell.id))
}

/// The follower that a consumer of a rack is to read from; `None` where that is the leader. As Kafka's `RackAwareReplicaSelector` has it: in sync, in the rack, and of several the one that has
/// the most. One that does not have `offset` yet, or is about to stop, is none. `ends`: how far the leader knows each follower to have the log.
fn preferred(
    view: &CatalogueView,
    leader: NodeId,
    partition: &TopicPartition,
    rack: &str,
    offset: Offset,
    ends: &[(NodeId, Offset)],
) -> Option<NodeId> {
    let is_in_rack = |node: NodeId| {
        let known = view.node(node).filter(|known| known.state == NodeState::Live);
        known.is_some_and(|known| known.registration.rack.as_deref() == Some(rack))
    };
    let record = view.partition(partition).filter(|record| record.leader == Some(leader))?;
    if view.node(leader).is_some_and(|known| known.registration.rack.as_deref() == Some(rack)) {
        return None;
    }
    let may_be_read = |(node, end): &&(NodeId, Offset)| *node != leader && record.in_sync(*node) && *end >= offset && is_in_rack(*node);
    // Of several that have as much the one with the smallest id: who asks again is sent to the same one.
    ends.iter().filter(may_be_read).max_by_key(|(node, end)| (*end, std::cmp::Reverse(*node))).map(|(node, _)| *node)
}
