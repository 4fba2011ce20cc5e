//! Who votes: the next change of the membership. Pure.
//!
//! The first three (or five) nodes become voters; of two lives of a node the one that lives takes the place of the other. The number of voters grows from one odd number
//! to the next, because an even one bears no more failures and needs more nodes for each decision. One change at a time, each on what the one before made.

use std::collections::{BTreeMap, BTreeSet};

use super::{ConsensusId, Member};

/// A change of the membership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// These vote from now on; who voted and is not among them is no member any more.
    Voters(BTreeSet<ConsensusId>),
    /// These are no members any more; none of them votes.
    Drop(BTreeSet<ConsensusId>),
}

/// The next change, if there is one. `ready`: members that live and have nearly all of the log; `wanted`: how many are to vote.
pub fn next_change(
    members: &BTreeMap<ConsensusId, Member>,
    voters: &BTreeSet<ConsensusId>,
    ready: &BTreeSet<ConsensusId>,
    wanted: usize,
) -> Option<Change> {
    let later_life = |id: &ConsensusId| {
        let node = members.get(id)?.node;
        members.iter().find(|(other, member)| *other != id && member.node == node && ready.contains(other)).map(|(other, _)| *other)
    };
    for voter in voters.iter().filter(|voter| !ready.contains(voter)) {
        if let Some(later) = later_life(voter) {
            let mut next = voters.clone();
            next.remove(voter);
            next.insert(later);
            return Some(Change::Voters(next));
        }
    }
    let gone: BTreeSet<_> =
        members.keys().copied().filter(|id| !voters.contains(id) && !ready.contains(id) && later_life(id).is_some()).collect();
    if !gone.is_empty() {
        return Some(Change::Drop(gone));
    }
    let voting_nodes: BTreeSet<u32> = voters.iter().filter_map(|id| members.get(id)).map(|member| member.node).collect();
    let mut candidates: Vec<_> = members
        .iter()
        .filter(|(id, member)| !voters.contains(id) && ready.contains(id) && !voting_nodes.contains(&member.node))
        .map(|(id, member)| (member.node, *id))
        .collect();
    candidates.sort_unstable();
    let more = if voters.len().is_multiple_of(2) { 1 } else { 2 };
    if voters.len() + more > wanted || candidates.len() < more {
        return None;
    }
    Some(Change::Voters(voters.iter().copied().chain(candidates[..more].iter().map(|(_, id)| *id)).collect()))
}

/// What it takes that a node is no member any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Removal {
    /// This change.
    Change(Change),
    /// It is none already.
    NotThere,
    /// It can't go: it alone votes.
    LastVoter,
}

/// How a node goes, with all its lives.
pub fn removal(members: &BTreeMap<ConsensusId, Member>, voters: &BTreeSet<ConsensusId>, node: u32) -> Removal {
    let lives: BTreeSet<_> = members.iter().filter(|(_, member)| member.node == node).map(|(id, _)| *id).collect();
    let left: BTreeSet<_> = voters.difference(&lives).copied().collect();
    if lives.is_empty() {
        Removal::NotThere
    } else if left.is_empty() {
        Removal::LastVoter
    } else if left.len() < voters.len() {
        Removal::Change(Change::Voters(left))
    } else {
        Removal::Change(Change::Drop(lives))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(list: &[(ConsensusId, u32)]) -> BTreeMap<ConsensusId, Member> {
        list.iter().map(|(id, node)| (*id, Member { node: *node, address: format!("h:{id}") })).collect()
    }

    fn voters(ids: &[ConsensusId]) -> Option<Change> {
        Some(Change::Voters(ids.iter().copied().collect()))
    }

    fn next(list: &[(ConsensusId, u32)], voting: &[ConsensusId], ready: &[ConsensusId], wanted: usize) -> Option<Change> {
        let set = |ids: &[ConsensusId]| ids.iter().copied().collect();
        next_change(&members(list), &set(voting), &set(ready), wanted)
    }

    #[test]
    fn voters_grow_by_odd_numbers_in_the_order_of_nodes() {
        let five = [(90, 1), (80, 2), (70, 3), (60, 4), (50, 5)];
        assert_eq!(next(&five[..1], &[90], &[90], 3), None);
        assert_eq!(next(&five[..2], &[90], &[90, 80], 3), None, "two voters bear no failure");
        assert_eq!(next(&five, &[90], &[90, 80, 70, 60, 50], 3), voters(&[90, 80, 70]));
        assert_eq!(next(&five, &[90], &[90, 80, 60], 3), voters(&[90, 80, 60]), "one that is behind waits");
        assert_eq!(next(&five, &[90, 80, 70], &[90, 80, 70, 60, 50], 3), None);
        assert_eq!(next(&five, &[90, 80, 70], &[90, 80, 70, 60, 50], 5), voters(&[90, 80, 70, 60, 50]));
        assert_eq!(next(&five, &[90, 80], &[90, 80, 50], 3), voters(&[90, 80, 50]), "after a removal");
    }

    #[test]
    fn a_later_life_takes_the_place_of_an_earlier_one() {
        let wiped = [(90, 1), (80, 2), (70, 3), (71, 3)];
        assert_eq!(next(&wiped, &[90, 80, 70], &[90, 80], 3), None, "it is not caught up yet");
        assert_eq!(next(&wiped, &[90, 80, 70], &[90, 80, 71], 3), voters(&[90, 80, 71]));
        assert_eq!(next(&wiped, &[90, 80, 70], &[90, 80, 70, 71], 3), None, "both live: that is no later life");
        let learner = [(90, 1), (60, 4), (61, 4)];
        assert_eq!(next(&learner, &[90], &[90, 61], 3), Some(Change::Drop([60].into())));
    }

    #[test]
    fn a_node_goes_with_all_its_lives_but_never_the_last_voter() {
        let four = members(&[(90, 1), (80, 2), (70, 3), (60, 4), (61, 4)]);
        let voting = [90, 80, 70].into();
        assert_eq!(removal(&four, &voting, 3), Removal::Change(Change::Voters([90, 80].into())));
        assert_eq!(removal(&four, &voting, 4), Removal::Change(Change::Drop([60, 61].into())));
        assert_eq!(removal(&four, &voting, 9), Removal::NotThere);
        assert_eq!(removal(&four, &[90].into(), 1), Removal::LastVoter);
    }
}
