//! Partitions in turn, across topics.

use std::collections::BTreeMap;

use super::{Plan, Subscriber, empty_plan, give, numbers};

pub(super) fn assign(members: &[&Subscriber], topics: &BTreeMap<String, u32>) -> Plan {
    let mut plan = empty_plan(members);
    let mut turn = 0;
    for (topic, count) in topics {
        if !members.iter().any(|member| member.topics.contains(topic)) {
            continue;
        }
        for partition in numbers(*count) {
            while !members[turn % members.len()].topics.contains(topic) {
                turn += 1;
            }
            give(&mut plan, members[turn % members.len()], topic, partition);
            turn += 1;
        }
    }
    plan
}
