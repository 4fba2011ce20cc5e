//! Neighbouring partitions together, topic by topic.

use std::collections::BTreeMap;

use super::{Plan, Subscriber, empty_plan, give, numbers};

pub(super) fn assign(members: &[&Subscriber], topics: &BTreeMap<String, u32>) -> Plan {
    let mut plan = empty_plan(members);
    for (topic, count) in topics {
        let subscribers: Vec<_> = members.iter().filter(|member| member.topics.contains(topic)).collect();
        if subscribers.is_empty() {
            continue;
        }
        let each = *count as usize / subscribers.len();
        let with_one_more = *count as usize % subscribers.len();
        let mut partitions = numbers(*count);
        for (at, member) in subscribers.iter().enumerate() {
            let share = each + usize::from(at < with_one_more);
            partitions.by_ref().take(share).for_each(|partition| give(&mut plan, member, topic, partition));
        }
    }
    plan
}
