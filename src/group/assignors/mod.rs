//! Who reads what: range, round-robin and cooperative-sticky, as pure functions.
//!
//! Consumers of the native client let the broker lead: it reads the members' subscriptions (those of Kafka clients too), assigns by these functions
//! and gives out blobs that both kinds of client read. A client that leads by itself can use them as well.
//!
//! | assignor | each partition | balance | what stays |
//! | --- | --- | --- | --- |
//! | [`Strategy::Range`] | to one subscriber | within one in each topic | nothing is looked at |
//! | [`Strategy::RoundRobin`] | to one subscriber | within one, of equal subscriptions | nothing is looked at |
//! | [`Strategy::CooperativeSticky`] | to one subscriber, or to none while its owner still has it | within one, of equal subscriptions; else no single move betters it | all that balance allows |
//!
//! The order of members in a call does not matter: static members come first by instance id, then the others by member id (as in Kafka, so that
//! a restart with another member id changes nothing).

mod range;
mod round_robin;
mod sticky;
#[cfg(test)]
mod tests;

use crate::request::group::MemberMetadata;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use super::consumer_protocol::{Assignment, Subscription, TopicPartitions};
use crate::request::fields::FieldError;

/// An assignor by its name in the group protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Strategy {
    /// `range`: neighbouring partitions of each topic together, so that topics of equal size are read alike.
    Range,
    /// `roundrobin`: partitions in turn.
    RoundRobin,
    /// `cooperative-sticky`: as few moves as balance allows, and in two rebalances, so that reading goes on (KIP-429).
    CooperativeSticky,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Strategy; 3] = [Strategy::Range, Strategy::RoundRobin, Strategy::CooperativeSticky];

    /// Kafka's name.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Range => "range",
            Strategy::RoundRobin => "roundrobin",
            Strategy::CooperativeSticky => "cooperative-sticky",
        }
    }
}

/// A name that no assignor has.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("assignors are range, roundrobin and cooperative-sticky, not {0:?}")]
pub struct UnknownStrategy(pub String);

impl FromStr for Strategy {
    type Err = UnknownStrategy;
    fn from_str(name: &str) -> Result<Strategy, UnknownStrategy> {
        Strategy::ALL.into_iter().find(|strategy| strategy.name() == name).ok_or_else(|| UnknownStrategy(name.into()))
    }
}

/// A member as an assignor sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subscriber {
    /// Which.
    pub member_id: Arc<str>,
    /// Of a static member.
    pub instance_id: Option<Arc<str>>,
    /// What it wants.
    pub topics: BTreeSet<String>,
    /// What it holds.
    pub owned: TopicPartitions,
    /// In which generation it got that; -1 where it does not say.
    pub generation: i32,
}

/// Partitions of each member; every member is in it.
pub type Plan = BTreeMap<Arc<str>, TopicPartitions>;

/// Divides the partitions of the topics (name to number of partitions) among the members that subscribe to them. Topics that are not among `topics` are left out.
pub fn assign(strategy: Strategy, members: &[Subscriber], topics: &BTreeMap<String, u32>) -> Plan {
    let members = in_order(members);
    match strategy {
        Strategy::Range => range::assign(&members, topics),
        Strategy::RoundRobin => round_robin::assign(&members, topics),
        Strategy::CooperativeSticky => sticky::assign(&members, topics),
    }
}

/// A member whose subscription does not read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the subscription of member {member_id}: {error}")]
pub struct UnreadableSubscription {
    /// Whose.
    pub member_id: Arc<str>,
    /// What is wrong with it.
    pub error: FieldError,
}

/// What a leader gives out: from the members as its join was answered to the assignments of its sync.
///
/// # Errors
/// [`UnreadableSubscription`] when a member is no consumer that can be read: nothing is assigned then, as its partitions would be given away.
pub fn lead(
    strategy: Strategy,
    members: &[MemberMetadata],
    topics: &BTreeMap<String, u32>,
) -> Result<Vec<(String, Bytes)>, UnreadableSubscription> {
    let members = members.iter().map(Subscriber::read).collect::<Result<Vec<_>, _>>()?;
    let blob = |partitions| Assignment { partitions, user_data: None }.encode();
    Ok(assign(strategy, &members, topics).into_iter().map(|(id, partitions)| (id.to_string(), blob(partitions))).collect())
}

/// Topics that the members want: those whose partitions a leader has to know.
///
/// # Errors
/// [`UnreadableSubscription`] when a member is no consumer that can be read.
pub fn topics_of(members: &[MemberMetadata]) -> Result<BTreeSet<String>, UnreadableSubscription> {
    let mut topics = BTreeSet::new();
    for member in members {
        topics.extend(Subscriber::read(member)?.topics);
    }
    Ok(topics)
}

impl Subscriber {
    /// From a member's metadata.
    ///
    /// # Errors
    /// [`UnreadableSubscription`] for bytes that are no subscription.
    pub fn read(member: &MemberMetadata) -> Result<Subscriber, UnreadableSubscription> {
        let read = Subscription::decode(&member.metadata);
        let subscription = read.map_err(|error| UnreadableSubscription { member_id: member.member_id.clone(), error })?;
        Ok(Subscriber {
            member_id: member.member_id.clone(),
            instance_id: member.instance_id.clone(),
            topics: subscription.topics.into_iter().collect(),
            owned: subscription.owned,
            generation: subscription.generation.unwrap_or(-1),
        })
    }
}

/// Static members by instance id, then the others by member id.
fn in_order(members: &[Subscriber]) -> Vec<&Subscriber> {
    let mut ordered: Vec<&Subscriber> = members.iter().collect();
    ordered.sort_by_key(|member| (member.instance_id.is_none(), member.instance_id.clone(), member.member_id.clone()));
    ordered
}

/// A plan of nothing.
fn empty_plan(members: &[&Subscriber]) -> Plan {
    members.iter().map(|member| (member.member_id.clone(), TopicPartitions::new())).collect()
}

fn give(plan: &mut Plan, member: &Subscriber, topic: &str, partition: i32) {
    let topics = plan.get_mut(&member.member_id).expect("every member is in the plan");
    match topics.get_mut(topic) {
        Some(partitions) => _ = partitions.insert(partition),
        None => _ = topics.insert(topic.into(), BTreeSet::from([partition])),
    }
}

/// Numbers of a topic's partitions: Kafka's are 31 bits.
fn numbers(count: u32) -> std::ops::Range<i32> {
    0..i32::try_from(count).unwrap_or(i32::MAX)
}
