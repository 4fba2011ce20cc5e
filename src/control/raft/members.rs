//! Who votes: the next change of the membership. Pure.
//!
//! The first three (or five) nodes become voters; of two lives of a node the one that lives takes the place of the other. The number of voters grows from one odd number
//! to the next, because an even one bears no more failures and needs more nodes for each decision; where a node went for which there is no other, it shrinks to the odd number below.
//! A node that is to go gives its vote to one that stays, while it is there. One change at a time, each on what the one before made.

use std::collections::{BTreeMap, BTreeSet};

use super::{ConsensusId, Member};

/// A change of the membership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// These vote from now on; who voted and is not among them is no member any more.
    Voters(BTreeSet<ConsensusId>),
    /// These vote from now on; who voted and is not among them stays, without a vote.
    Shift(BTreeSet<ConsensusId>),
    /// These are no members any more; none of them votes.
    Drop(BTreeSet<ConsensusId>),
}

/// What the leader knows of the members.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// The leader itself.
    pub me: ConsensusId,
    /// Members that live and have nearly all of the log.
    pub ready: BTreeSet<ConsensusId>,
    /// Members whose nodes are to go.
    pub retiring: BTreeSet<ConsensusId>,
}

/// The next change, if there is one. `wanted`: how many are to vote.
pub fn next_change(
    members: &BTreeMap<ConsensusId, Member>,
    voters: &BTreeSet<ConsensusId>,
    known: &Known,
    wanted: usize,
) -> Option<Change> {
    let Known { me, ready, retiring } = known;
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
        .filter(|(id, member)| !voters.contains(id) && ready.contains(id) && !retiring.contains(id) && !voting_nodes.contains(&member.node))
        .map(|(id, member)| (member.node, *id))
        .collect();
    candidates.sort_unstable();
    // The leader stays: once it has stopped another one leads.
    if let (Some(goes), Some((_, comes))) = (voters.iter().find(|id| retiring.contains(id) && *id != me), candidates.first()) {
        return Some(Change::Shift(voters.iter().copied().filter(|id| id != goes).chain([*comes]).collect()));
    }
    if voters.len().is_multiple_of(2) && candidates.is_empty() {
        let node = |id: &ConsensusId| members.get(id).map(|member| member.node);
        let rank = |id: &&ConsensusId| (retiring.contains(id), !ready.contains(id), node(id));
        let goes = voters.iter().filter(|id| *id != me).max_by_key(rank)?;
        return Some(Change::Shift(voters.iter().copied().filter(|id| id != goes).collect()));
    }
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
        let known = Known { me: voting[0], ready: set(ready), retiring: BTreeSet::new() };
        next_change(&members(list), &set(voting), &known, wanted)
    }

    #[test]
    fn where_nobody_takes_the_place_of_one_that_went_the_number_of_voters_is_odd_again() {
        let set = |ids: &[ConsensusId]| ids.iter().copied().collect::<BTreeSet<_>>();
        let shift = |ids: &[ConsensusId]| Some(Change::Shift(set(ids)));
        let two = [(90, 1), (80, 2)];
        assert_eq!(next(&two, &[90, 80], &[90, 80], 3), shift(&[90]), "of two none may stop; of one the other may");
        assert_eq!(next(&two, &[80, 90], &[90, 80], 3), shift(&[80]), "the leader stays");
        assert_eq!(next(&two, &[90], &[90, 80], 3), None, "and back again");
        let four = [(90, 1), (80, 2), (70, 3), (60, 4)];
        assert_eq!(next(&four, &[90, 80, 70, 60], &[90, 80, 60], 5), shift(&[90, 80, 60]), "one that is away");
    }

    #[test]
    fn one_that_is_to_go_gives_its_vote_to_one_that_stays() {
        let set = |ids: &[ConsensusId]| ids.iter().copied().collect::<BTreeSet<_>>();
        let shift = |ids: &[ConsensusId]| Some(Change::Shift(set(ids)));
        let five = members(&[(90, 1), (80, 2), (70, 3), (60, 4), (50, 5)]);
        let next = |me, voting: &[ConsensusId], ready: &[ConsensusId], retiring: &[ConsensusId]| {
            next_change(&five, &set(voting), &Known { me, ready: set(ready), retiring: set(retiring) }, 3)
        };
        let all = [90, 80, 70, 60, 50];
        assert_eq!(next(70, &[90, 80, 70], &all, &[90, 80]), shift(&[90, 70, 60]));
        assert_eq!(next(70, &[90, 70, 60], &all, &[90, 80]), shift(&[70, 60, 50]), "not to the other one that is to go");
        assert_eq!(next(70, &[70, 60, 50], &all, &[90, 80]), None);
        assert_eq!(next(70, &[90, 80, 70], &[90, 80, 70, 50], &[80]), shift(&[90, 70, 50]), "who is behind gets none");
        assert_eq!(next(80, &[90, 80, 70], &all, &[80]), None, "the leader itself has it until it stops");
        assert_eq!(next(90, &[90, 80, 70], &[90, 80, 70], &[80, 70]), None, "to nobody");
        assert_eq!(next(90, &[90], &all, &[80, 70]), Some(Change::Voters(set(&[90, 60, 50]))));
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
