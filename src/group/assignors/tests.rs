//! Properties of the assignors over many random groups, and some groups by hand.

use super::*;
use crate::group::random::Random;

const SEEDS: u64 = 2000;

fn member(id: &str, topics: &[&str], owned: &[(&str, &[i32])]) -> Subscriber {
    Subscriber {
        member_id: id.into(),
        instance_id: None,
        topics: topics.iter().map(|t| t.to_string()).collect(),
        owned: owned.iter().map(|(topic, p)| (topic.to_string(), p.iter().copied().collect())).collect(),
        generation: 1,
    }
}

fn topics(list: &[(&str, u32)]) -> BTreeMap<String, u32> {
    list.iter().map(|(topic, count)| (topic.to_string(), *count)).collect()
}

fn random_group(random: &mut Random, is_equal: bool) -> (Vec<Subscriber>, BTreeMap<String, u32>) {
    let names: Vec<String> = (0..1 + random.below(5)).map(|at| format!("t{at}")).collect();
    let topics: BTreeMap<String, u32> = names.iter().map(|name| (name.clone(), random.below(12) as u32)).collect();
    let mut members: Vec<Subscriber> = Vec::new();
    for at in 0..1 + random.below(8) {
        let wanted = names.iter().filter(|_| is_equal || random.below(2) == 0).cloned().collect();
        let instance_id = (random.below(3) == 0).then(|| Arc::from(format!("i{at}")));
        members.push(Subscriber {
            member_id: format!("m{}-{at}", random.below(1000)).into(),
            instance_id,
            topics: wanted,
            owned: TopicPartitions::new(),
            generation: -1,
        });
    }
    (members, topics)
}

/// Lets members hold what a plan gave them.
fn hold(members: &mut [Subscriber], plan: &Plan, generation: i32) {
    for member in members {
        member.owned = plan[&member.member_id].clone();
        member.generation = generation;
    }
}

/// A client of the cooperative protocol joins again until nobody has to give anything up.
fn settle(members: &mut [Subscriber], topics: &BTreeMap<String, u32>, seed: u64) -> Plan {
    for generation in 1..=4 {
        let plan = assign(Strategy::CooperativeSticky, members, topics);
        no_move_within_one_rebalance(members, &plan, seed);
        let has_given_up = members.iter().any(|m| places(&m.owned).any(|place| !has(&plan[&m.member_id], &place)));
        hold(members, &plan, generation + 100);
        if !has_given_up {
            return plan;
        }
    }
    panic!("seed {seed}: the group does not settle");
}

fn places(partitions: &TopicPartitions) -> impl Iterator<Item = (String, i32)> {
    partitions.iter().flat_map(|(topic, p)| p.iter().map(|p| (topic.clone(), *p)))
}

fn has(partitions: &TopicPartitions, (topic, partition): &(String, i32)) -> bool {
    partitions.get(topic).is_some_and(|p| p.contains(partition))
}

fn load(plan: &Plan, member: &Subscriber) -> usize {
    plan[&member.member_id].values().map(BTreeSet::len).sum()
}

fn no_move_within_one_rebalance(members: &[Subscriber], plan: &Plan, seed: u64) {
    for member in members {
        for place in places(&plan[&member.member_id]) {
            let other = members.iter().find(|m| m.member_id != member.member_id && has(&m.owned, &place));
            assert!(other.is_none(), "seed {seed}: {place:?} goes to {} while {other:?} holds it", member.member_id);
        }
    }
}

fn each_partition_once(members: &[Subscriber], topics: &BTreeMap<String, u32>, plan: &Plan, seed: u64) {
    let mut given = BTreeSet::new();
    for member in members {
        for place in places(&plan[&member.member_id]) {
            assert!(member.topics.contains(&place.0), "seed {seed}: {} did not ask for {place:?}", member.member_id);
            assert!(given.insert(place.clone()), "seed {seed}: {place:?} twice");
        }
    }
    let wanted = |topic: &String| members.iter().any(|m| m.topics.contains(topic));
    let all: usize = topics.iter().filter(|(topic, _)| wanted(topic)).map(|(_, count)| *count as usize).sum();
    assert_eq!(given.len(), all, "seed {seed}: every partition has a member");
}

fn within_one(members: &[Subscriber], plan: &Plan, seed: u64) {
    let loads: Vec<usize> = members.iter().map(|m| load(plan, m)).collect();
    assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "seed {seed}: loads {loads:?}");
}

fn no_single_move_helps(members: &[Subscriber], plan: &Plan, seed: u64) {
    for from in members {
        for (topic, _) in places(&plan[&from.member_id]) {
            let least = members.iter().filter(|m| m.topics.contains(&topic)).map(|m| load(plan, m)).min().unwrap();
            assert!(load(plan, from) <= least + 1, "seed {seed}: {} has {} of {topic}, another {least}", from.member_id, load(plan, from));
        }
    }
}

#[test]
fn every_partition_has_one_member_and_loads_are_even() {
    for seed in 0..SEEDS {
        let mut random = Random::new(seed);
        let is_equal = seed % 2 == 0;
        let (mut members, topics) = random_group(&mut random, is_equal);
        for strategy in [Strategy::Range, Strategy::RoundRobin] {
            each_partition_once(&members, &topics, &assign(strategy, &members, &topics), seed);
        }
        if is_equal {
            within_one(&members, &assign(Strategy::RoundRobin, &members, &topics), seed);
        }
        let plan = settle(&mut members, &topics, seed);
        each_partition_once(&members, &topics, &plan, seed);
        no_single_move_helps(&members, &plan, seed);
        if is_equal {
            within_one(&members, &plan, seed);
        }
    }
}

#[test]
fn the_order_of_members_does_not_matter() {
    for seed in 0..SEEDS {
        let mut random = Random::new(seed);
        let (mut members, topics) = random_group(&mut random, false);
        let first = assign(Strategy::CooperativeSticky, &members, &topics);
        hold(&mut members, &first, 1);
        let mut shuffled = members.clone();
        for at in (1..shuffled.len()).rev() {
            shuffled.swap(at, random.below(at + 1));
        }
        for strategy in Strategy::ALL {
            assert_eq!(assign(strategy, &members, &topics), assign(strategy, &shuffled, &topics), "seed {seed}");
        }
    }
}

/// A balanced group stays as it is, and a member that comes or goes moves no more than its share.
#[test]
fn what_can_stay_stays() {
    for seed in 0..SEEDS {
        let mut random = Random::new(seed);
        let (mut members, topics) = random_group(&mut random, true);
        let before = settle(&mut members, &topics, seed);
        assert_eq!(assign(Strategy::CooperativeSticky, &members, &topics), before, "seed {seed}: nothing has changed");
        let gone = (members.len() > 1).then(|| members.swap_remove(random.below(members.len())));
        let after = settle(&mut members, &topics, seed);
        if gone.is_some() {
            for member in &members {
                let lost = places(&before[&member.member_id]).find(|place| !has(&after[&member.member_id], place));
                assert_eq!(lost, None, "seed {seed}: {} lost a partition for a member that left", member.member_id);
            }
        }
        let all: usize = topics.values().map(|count| *count as usize).sum();
        let wanted = members[0].topics.clone();
        members.push(Subscriber {
            member_id: "new".into(),
            instance_id: None,
            topics: wanted,
            owned: TopicPartitions::new(),
            generation: -1,
        });
        let with_new = settle(&mut members, &topics, seed);
        let moved = members.iter().filter(|m| &*m.member_id != "new").flat_map(|m| {
            let now = &with_new[&m.member_id];
            places(&after[&m.member_id]).filter(|place| !has(now, place)).collect::<Vec<_>>()
        });
        assert!(moved.count() <= all.div_ceil(members.len()), "seed {seed}: more than the new member's share moved");
        within_one(&members, &with_new, seed);
    }
}

/// Claims that can't all be true, of generations long gone: nobody gets what another one claims, and it ends.
#[test]
fn wild_claims_are_sorted_out() {
    for seed in 0..SEEDS {
        let mut random = Random::new(seed);
        let (mut members, topics) = random_group(&mut random, seed % 2 == 0);
        for member in &mut members {
            member.generation = random.below(4) as i32 - 1;
            for (topic, count) in &topics {
                let claimed: BTreeSet<i32> = (0..*count as i32 + 2).filter(|_| random.below(3) == 0).collect();
                member.owned.insert(topic.clone(), claimed);
            }
        }
        let plan = settle(&mut members, &topics, seed);
        each_partition_once(&members, &topics, &plan, seed);
        no_single_move_helps(&members, &plan, seed);
    }
}

#[test]
fn range_gives_neighbours() {
    let members = [member("b", &["t", "u"], &[]), member("a", &["t", "u"], &[])];
    let plan = assign(Strategy::Range, &members, &topics(&[("t", 3), ("u", 2), ("other", 9)]));
    assert_eq!(plan["a"], TopicPartitions::from([("t".into(), [0, 1].into()), ("u".into(), [0].into())]));
    assert_eq!(plan["b"], TopicPartitions::from([("t".into(), [2].into()), ("u".into(), [1].into())]));
}

#[test]
fn round_robin_goes_on_across_topics() {
    let members = [member("a", &["t", "u"], &[]), member("b", &["t", "u"], &[])];
    let plan = assign(Strategy::RoundRobin, &members, &topics(&[("t", 3), ("u", 3)]));
    assert_eq!(plan["a"], TopicPartitions::from([("t".into(), [0, 2].into()), ("u".into(), [1].into())]));
    assert_eq!(plan["b"], TopicPartitions::from([("t".into(), [1].into()), ("u".into(), [0, 2].into())]));
}

#[test]
fn cooperative_moves_take_two_rebalances() {
    let topics = topics(&[("t", 4)]);
    let mut members = [member("a", &["t"], &[("t", &[0, 1, 2, 3])]), member("b", &["t"], &[])];
    let first = assign(Strategy::CooperativeSticky, &members, &topics);
    assert_eq!(first["a"], TopicPartitions::from([("t".into(), [0, 1].into())]));
    assert!(first["b"].is_empty(), "a has not given anything up yet");
    hold(&mut members, &first, 2);
    let second = assign(Strategy::CooperativeSticky, &members, &topics);
    assert_eq!(second["a"], first["a"]);
    assert_eq!(second["b"], TopicPartitions::from([("t".into(), [2, 3].into())]));
}

#[test]
fn the_newer_claim_counts_and_the_older_one_holds_back() {
    let topics = topics(&[("t", 1)]);
    let mut old = member("a", &["t"], &[("t", &[0])]);
    let mut new = member("b", &["t"], &[("t", &[0])]);
    (old.generation, new.generation) = (1, 2);
    let first = assign(Strategy::CooperativeSticky, &[old.clone(), new.clone()], &topics);
    assert!(first.values().all(TopicPartitions::is_empty), "a has to learn that it lost the partition");
    old.owned.clear();
    let second = assign(Strategy::CooperativeSticky, &[old, new], &topics);
    assert_eq!(second["b"], TopicPartitions::from([("t".into(), [0].into())]));
}

/// A leader reads a Kafka client's version 0 as well as ours.
#[test]
fn a_leader_assigns_to_members_of_both_kinds() {
    let old_kafka = Bytes::from_static(b"\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff");
    let ours = Subscription { topics: vec!["t".into()], ..Subscription::default() }.encode();
    let of = |id: &str, metadata| MemberMetadata { member_id: id.into(), instance_id: None, metadata };
    let members = [of("kafka", old_kafka), of("native", ours)];
    assert_eq!(topics_of(&members).unwrap(), BTreeSet::from(["t".to_string()]));
    let given = lead(Strategy::Range, &members, &topics(&[("t", 2)])).unwrap();
    let read: Vec<_> = given.iter().map(|(id, blob)| (id.as_str(), Assignment::decode(blob).unwrap().partitions)).collect();
    let one = |partition: i32| TopicPartitions::from([("t".into(), [partition].into())]);
    assert_eq!(read, [("kafka", one(0)), ("native", one(1))]);
    let broken = lead(Strategy::Range, &[of("x", Bytes::from_static(b"\x00"))], &topics(&[])).unwrap_err();
    assert_eq!(&*broken.member_id, "x");
}

#[test]
fn names_are_kafkas() {
    for strategy in Strategy::ALL {
        assert_eq!(strategy.name().parse(), Ok(strategy));
    }
    assert!("sticky".parse::<Strategy>().is_err());
}

/// A thousand members and ten thousand partitions of unequal subscriptions are a matter of a moment.
#[test]
fn a_large_group_is_assigned_in_bounded_work() {
    let names: Vec<String> = (0..20).map(|at| format!("t{at}")).collect();
    let topics: BTreeMap<String, u32> = names.iter().map(|name| (name.clone(), 200)).collect();
    let wants = |at: usize| names.iter().enumerate().filter(|(n, _)| !(at + n).is_multiple_of(3)).map(|(_, name)| name.clone()).collect();
    let of = |at: usize| Subscriber {
        member_id: format!("m{at}").into(),
        instance_id: None,
        topics: wants(at),
        owned: TopicPartitions::new(),
        generation: -1,
    };
    let mut members: Vec<Subscriber> = (0..300).map(of).collect();
    let plan = settle(&mut members, &topics, 0);
    each_partition_once(&members, &topics, &plan, 0);
    no_single_move_helps(&members, &plan, 0);
}
