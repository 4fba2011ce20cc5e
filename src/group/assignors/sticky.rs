//! As few moves as balance allows, and never from one member to another within one rebalance.
//!
//! ```text
//! claims -> owners (the newest claim; of equal ones none) -> balanced targets -> what somebody else still claims is withheld
//! ```
//!
//! A partition that is withheld is in nobody's assignment: its owner gives it up when it sees that, joins again, and then it is free for its target.
//! Withheld is everything that *any* other member claims, an outdated claim included: that member may not know yet that it lost the partition.

use std::collections::{BTreeMap, BTreeSet};

use super::{Plan, Subscriber, empty_plan, give, numbers};

/// A partition.
type Place<'a> = (&'a str, i32);

struct Balance<'a> {
    members: &'a [&'a Subscriber],
    /// Members of each topic, as places in `members`.
    subscribers: BTreeMap<&'a str, Vec<usize>>,
    owner: BTreeMap<Place<'a>, Option<usize>>,
    load: Vec<usize>,
}

pub(super) fn assign(members: &[&Subscriber], topics: &BTreeMap<String, u32>) -> Plan {
    let mut balance = Balance::new(members, topics);
    let claims = claims(members, &balance.owner);
    balance.take_claims(&claims);
    balance.level();
    let mut plan = empty_plan(members);
    for (place, target) in &balance.owner {
        let Some(target) = *target else { continue };
        let is_free = claims.get(place).is_none_or(|claims| claims.iter().all(|(_, member)| *member == target));
        if is_free {
            give(&mut plan, members[target], place.0, place.1);
        }
    }
    plan
}

/// Who says that it holds a partition, and since which generation; only of partitions that are to be assigned.
fn claims<'a>(members: &[&'a Subscriber], places: &BTreeMap<Place<'a>, Option<usize>>) -> BTreeMap<Place<'a>, Vec<(i32, usize)>> {
    let mut claims: BTreeMap<Place<'a>, Vec<(i32, usize)>> = BTreeMap::new();
    for (at, member) in members.iter().enumerate() {
        for (topic, partitions) in &member.owned {
            for partition in partitions.iter().filter(|p| places.contains_key(&(topic.as_str(), **p))) {
                claims.entry((topic, *partition)).or_default().push((member.generation, at));
            }
        }
    }
    claims
}

impl<'a> Balance<'a> {
    fn new(members: &'a [&'a Subscriber], topics: &'a BTreeMap<String, u32>) -> Balance<'a> {
        let mut subscribers: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, member) in members.iter().enumerate() {
            for topic in member.topics.iter().filter(|topic| topics.contains_key(*topic)) {
                subscribers.entry(topic).or_default().push(at);
            }
        }
        let wanted = topics.iter().filter(|(topic, _)| subscribers.contains_key(topic.as_str()));
        let owner = wanted.flat_map(|(topic, count)| numbers(*count).map(move |p| ((topic.as_str(), p), None))).collect();
        Balance { members, subscribers, owner, load: vec![0; members.len()] }
    }

    /// Lets each partition stay with the member of its newest claim, if that still wants it. Two claims of one generation can't both be true: neither counts.
    fn take_claims(&mut self, claims: &BTreeMap<Place<'a>, Vec<(i32, usize)>>) {
        for (place, claims) in claims {
            let newest = claims.iter().map(|(generation, _)| *generation).max();
            let mut owners = claims.iter().filter(|(generation, _)| Some(*generation) == newest);
            if let (Some((_, at)), None) = (owners.next(), owners.next())
                && self.members[*at].topics.contains(place.0)
            {
                self.owner.insert(*place, Some(*at));
                self.load[*at] += 1;
            }
        }
    }

    fn level(&mut self) {
        if self.subscribers.values().all(|at| at.len() == self.members.len()) {
            self.trim_to_quota();
        }
        self.place_unowned();
        self.move_while_it_helps();
    }

    /// Of equal subscriptions: who has more than its share gives up the rest. As many may keep one more as there are partitions over, those first that have it.
    fn trim_to_quota(&mut self) {
        let share = self.owner.len() / self.members.len().max(1);
        let mut with_one_more = self.owner.len() % self.members.len().max(1);
        let mut by_member: BTreeMap<usize, Vec<Place<'a>>> = BTreeMap::new();
        for (place, owner) in &self.owner {
            if let Some(at) = owner {
                by_member.entry(*at).or_default().push(*place);
            }
        }
        for (at, mut places) in by_member {
            let mut quota = share;
            if places.len() > share && with_one_more > 0 {
                with_one_more -= 1;
                quota += 1;
            }
            for place in places.split_off(quota.min(places.len())) {
                self.owner.insert(place, None);
                self.load[at] -= 1;
            }
        }
    }

    /// Gives what nobody has to the least loaded, partitions with few subscribers first: they have the least choice.
    fn place_unowned(&mut self) {
        let mut unowned: Vec<Place<'a>> = self.owner.iter().filter(|(_, owner)| owner.is_none()).map(|(place, _)| *place).collect();
        unowned.sort_by_key(|place| self.subscribers[place.0].len());
        // Loads of each set of subscribers in order; sets are few, and most groups have one.
        let mut queues: BTreeMap<&Vec<usize>, BTreeSet<(usize, usize)>> = BTreeMap::new();
        let subscribers = &self.subscribers;
        for at in subscribers.values() {
            queues.entry(at).or_insert_with(|| at.iter().map(|at| (self.load[*at], *at)).collect());
        }
        for place in unowned {
            let (load, at) = *queues[&subscribers[place.0]].first().expect("a topic here has a subscriber");
            self.owner.insert(place, Some(at));
            self.load[at] = load + 1;
            for queue in queues.values_mut() {
                if queue.remove(&(load, at)) {
                    queue.insert((load + 1, at));
                }
            }
        }
    }

    /// Moves partitions one by one from a member to another one that has at least two fewer, until no such move is left. The sum of the squares of the loads falls with each.
    fn move_while_it_helps(&mut self) {
        let places: Vec<Place<'a>> = self.owner.keys().copied().collect();
        loop {
            let mut has_moved = false;
            let lowest: BTreeMap<&str, usize> =
                self.subscribers.iter().map(|(topic, at)| (*topic, at.iter().map(|at| self.load[*at]).min().unwrap_or(0))).collect();
            for place in &places {
                let Some(from) = self.owner[place] else { continue };
                // As of the beginning of this round; what a move has changed since is for the next one.
                if self.load[from] < lowest[place.0] + 2 {
                    continue;
                }
                let to = self.subscribers[place.0].iter().copied().min_by_key(|at| (self.load[*at], *at)).expect("it has an owner");
                if self.load[from] >= self.load[to] + 2 {
                    self.owner.insert(*place, Some(to));
                    self.load[from] -= 1;
                    self.load[to] += 1;
                    has_moved = true;
                }
            }
            if !has_moved {
                return;
            }
        }
    }
}
