//! Which replica a consumer reads from: the leader, or an in-sync follower in the consumer's rack (KIP-392).
//!
//! A leader that is asked by a consumer of another rack names a follower in the place of records. A follower answers with what is committed, as far as it has heard of that: it may be behind,
//! and is never wrong. Its watermark came from a leader, which counts only what every member of the ISR has, and nothing below it is cut but by an election that the operator calls unclean.
//!
//! That it is in the ISR, and its lease goes on, is asked all the same: one that is cut off would be behind for as long as it is.
//!
//! A leader whose lease is over goes on to answer with what was committed, and sends away whoever has read all of it: another one may lead, and have more. Nor does it call an offset
//! out of range that is behind all it has.

use std::rc::Rc;

use crate::cluster::{CatalogueView, NodeState};
use crate::replication::NodeId;
use crate::request::{Code, ReadFrom, Refusal};
use crate::shard::context::Context;
use crate::shard::metadata::advertised;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::role::Role;
use crate::types::{Offset, TopicPartition};

/// Checks that this node may answer a fetch from `offset` on.
///
/// # Errors
/// The partition is gone; or this node neither leads it nor follows in sync, or only a leader may answer; or it can't know whether there is more.
pub fn check_readable(context: &Context, cell: &PartitionCell, from: &ReadFrom, offset: Offset) -> Result<(), Refusal> {
    let Some(refusal) = cell.not_served() else {
        let committed = cell.machine.borrow().ladder().committed();
        return doubt(context, cell).filter(|_| offset >= committed).map_or(Ok(()), Err);
    };
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

/// Whether this leader can't say that it still leads: it may be cut off, and what it knows left behind. One of a single replica can.
pub fn is_in_doubt(context: &Context, cell: &PartitionCell) -> bool {
    matches!(cell.role(), Role::Leader(_)) && !context.replication.holds_lease()
}

/// The refusal of a leader [in doubt](is_in_doubt).
pub fn doubt(context: &Context, cell: &PartitionCell) -> Option<Refusal> {
    is_in_doubt(context, cell).then(|| cell.refusal(Code::NotLeader, "this broker is cut off from the cluster: another one may lead it"))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::node::tests::registration;
    use crate::cluster::{Catalogue, Command};
    use crate::replication::IsrChange;
    use crate::types::TopicId;

    const PARTITION: TopicPartition = TopicPartition { topic: TopicId([8; 16]), partition: 0 };

    /// Six nodes, two in each of three racks, and a partition that they all have.
    fn catalogue() -> Catalogue {
        let mut catalogue = Catalogue::new();
        for node in 0..6 {
            catalogue.apply(&Command::RegisterNode(Box::new(registration(node)))).unwrap();
        }
        let topic = PARTITION.topic;
        catalogue
            .apply(&Command::CreateTopic { id: topic, name: "t".into(), partitions: 1, replication_factor: 6, config: vec![] })
            .unwrap();
        catalogue
    }

    fn rack(node: NodeId) -> String {
        format!("rack-{}", node % 3)
    }

    #[test]
    fn of_the_followers_in_the_rack_the_one_with_the_most_is_read() {
        let mut catalogue = catalogue();
        let leader = catalogue.view().partition(&PARTITION).unwrap().leader.unwrap();
        let [a, b] = [(leader + 1) % 3, (leader + 1) % 3 + 3];
        let others = |end_of_a, end_of_b| -> Vec<(NodeId, Offset)> {
            let end = |node| {
                if node == a {
                    end_of_a
                } else if node == b {
                    end_of_b
                } else {
                    100
                }
            };
            (0..6).filter(|node| *node != leader).map(|node| (node, end(node))).collect()
        };
        let ask = |catalogue: &Catalogue, rack: &str, offset, ends: &[(NodeId, Offset)]| {
            preferred(catalogue.view(), leader, &PARTITION, rack, offset, ends)
        };
        assert_eq!(ask(&catalogue, &rack(a), 50, &others(100, 100)), Some(a), "the same one each time");
        assert_eq!(ask(&catalogue, &rack(a), 50, &others(99, 100)), Some(b));
        assert_eq!(ask(&catalogue, &rack(a), 100, &others(99, 100)), Some(b), "the end of the log will do");
        assert_eq!(ask(&catalogue, &rack(a), 101, &others(99, 100)), None);
        assert_eq!(ask(&catalogue, &rack(a), 50, &[(leader, 100)]), None, "of no follower anything is known");
        assert_eq!(ask(&catalogue, &rack(leader), 50, &others(100, 100)), None, "the leader is in the rack, as another one is");
        assert_eq!(ask(&catalogue, "elsewhere", 50, &others(100, 100)), None);
        assert_eq!(
            preferred(catalogue.view(), a, &PARTITION, &rack(leader), 50, &others(100, 100)),
            None,
            "who does not lead sends nobody away"
        );

        let record = catalogue.view().partition(&PARTITION).unwrap().clone();
        let (leader_epoch, version) = (record.leader_epoch, record.version);
        let change = IsrChange { leader, leader_epoch, version, leave: vec![b], join: vec![] };
        catalogue.apply(&Command::ChangeIsr { partition: PARTITION, change }).unwrap();
        assert_eq!(ask(&catalogue, &rack(a), 50, &others(99, 100)), Some(a), "the other one is not in sync");
        let node_epoch = catalogue.view().node(a).unwrap().epoch;
        catalogue.apply(&Command::DrainNode { node: a, node_epoch }).unwrap();
        assert_eq!(ask(&catalogue, &rack(a), 50, &others(99, 100)), None, "it is about to stop");
    }
}
