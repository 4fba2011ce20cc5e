//! Sealed segments as nodes have them on their disks: what they know to be damaged, and what they find when they read all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::counted;
use crate::client::Admin;
use crate::limits;
use crate::request::Code;
use crate::request::cluster::{CheckSegments, NodeCondition, NodeStatus, PartitionState};
use crate::types::{TopicId, TopicPartition};

/// A node that has much to read is asked so often how far it is.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// A status is not to wait longer for a node that is silent.
const PATIENCE: Duration = Duration::from_secs(2);

/// A replica with a segment that is not as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamagedReplica {
    /// Its topic's name.
    pub topic: String,
    /// Its number.
    pub partition: u32,
    /// Whose it is.
    pub node: u32,
    /// File, position and what is wrong; or why all of it is set aside.
    pub what: String,
}

/// What nodes found when they read their sealed segments.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Read {
    /// Segments that are as they were written, over all replicas.
    pub sound: u64,
    /// Those that are not.
    pub damaged: Vec<DamagedReplica>,
    /// Those that were not, and that another replica's took the place of meanwhile.
    pub mended: Vec<DamagedReplica>,
    /// Replicas that could not be read: topic, partition, node, reason.
    pub unread: Vec<(String, u32, u32, String)>,
}

/// What the nodes that are there know to be damaged. One that does not answer is left out: that it is away is said elsewhere.
pub async fn known(admin: &Admin, nodes: &[NodeStatus], names: &BTreeMap<TopicId, String>) -> Vec<DamagedReplica> {
    let live = nodes.iter().filter(|node| node.condition != NodeCondition::Fenced).map(|node| node.node);
    let ask = |node| async move { (node, tokio::time::timeout(PATIENCE, admin.segment_checks(node, CheckSegments::default())).await) };
    let mut found = Vec::new();
    for (node, answer) in futures_util::future::join_all(live.map(ask)).await {
        let Ok(Ok(results)) = answer else { continue };
        for result in results {
            // A topic that was deleted meanwhile is nobody's.
            let Some(topic) = names.get(&result.partition.topic) else { continue };
            let of = |what| DamagedReplica { topic: topic.clone(), partition: result.partition.partition, node, what };
            match result.outcome {
                Ok(checks) => found.extend(checks.damaged.into_iter().map(|segment| of(segment.what))),
                Err(refusal) if refusal.code == Code::Quarantined => found.push(of(refusal.message)),
                Err(_) => {}
            }
        }
    }
    found
}

/// Has every node read its sealed segments of these partitions, all nodes at once, and waits for what they find.
pub async fn read(admin: &Admin, states: &[PartitionState], ids: &BTreeMap<String, TopicId>) -> Read {
    let mut by_node: BTreeMap<u32, Vec<(TopicPartition, &PartitionState)>> = BTreeMap::new();
    for state in states {
        let Some(topic) = ids.get(&state.topic) else { continue };
        for node in &state.replicas {
            by_node.entry(*node).or_default().push((TopicPartition { topic: *topic, partition: state.partition }, state));
        }
    }
    let each = by_node.iter().map(|(node, asked)| read_on(admin, *node, asked));
    let mut all = Read::default();
    for read in futures_util::future::join_all(each).await {
        all.sound += read.sound;
        all.damaged.extend(read.damaged);
        all.mended.extend(read.mended);
        all.unread.extend(read.unread);
    }
    all
}

async fn read_on(admin: &Admin, node: u32, asked: &[(TopicPartition, &PartitionState)]) -> Read {
    let mut read = Read::default();
    for part in asked.chunks(limits::REPLICA_LOGS) {
        let mut left: Vec<_> = part.to_vec();
        let mut begin = true;
        while !left.is_empty() {
            let partitions = left.iter().map(|(partition, _)| *partition).collect();
            let answer = admin.segment_checks(node, CheckSegments { partitions, read: begin }).await;
            begin = false;
            let results = match answer {
                Ok(results) if results.len() == left.len() => results,
                Ok(_) => return unread(read, node, &left, "another number of answers than questions"),
                Err(error) => return unread(read, node, &left, &error.to_string()),
            };
            let mut waiting = Vec::new();
            for ((partition, state), result) in left.into_iter().zip(results) {
                match result.outcome {
                    Ok(checks) if checks.waiting > 0 => waiting.push((partition, state)),
                    Ok(checks) => {
                        read.sound += u64::from(checks.sound);
                        read.damaged.extend(checks.damaged.into_iter().map(|segment| damaged(state, node, segment.what)));
                        read.mended.extend(checks.mended.into_iter().map(|segment| damaged(state, node, segment.what)));
                    }
                    Err(refusal) if refusal.code == Code::Quarantined => read.damaged.push(damaged(state, node, refusal.message)),
                    // A replica that is on its way may have nothing yet.
                    Err(_) if state.target.is_some() && !state.isr.contains(&node) => {}
                    Err(refusal) => read.unread.push((state.topic.clone(), state.partition, node, refusal.to_string())),
                }
            }
            left = waiting;
            if !left.is_empty() {
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
    read
}

fn damaged(state: &PartitionState, node: u32, what: String) -> DamagedReplica {
    DamagedReplica { topic: state.topic.clone(), partition: state.partition, node, what }
}

fn unread(mut read: Read, node: u32, left: &[(TopicPartition, &PartitionState)], why: &str) -> Read {
    read.unread.extend(left.iter().map(|(_, state)| (state.topic.clone(), state.partition, node, why.to_owned())));
    read
}

/// A line for each.
pub fn to_text(damaged: &[DamagedReplica]) -> String {
    let line = |of: &DamagedReplica| format!("DAMAGED partition {} of {} on node {}: {}\n", of.partition, of.topic, of.node, of.what);
    damaged.iter().map(line).collect()
}

/// All of them as JSON.
pub fn to_json(damaged: &[DamagedReplica]) -> Value {
    let one = |of: &DamagedReplica| json!({ "topic": of.topic, "partition": of.partition, "node": of.node, "what": of.what });
    damaged.iter().map(one).collect()
}

impl Read {
    /// What was read, in words.
    pub fn to_text(&self) -> String {
        let mut text = to_text(&self.damaged);
        for of in &self.mended {
            text += &format!("was damaged, and is mended: partition {} of {} on node {}: {}\n", of.partition, of.topic, of.node, of.what);
        }
        for (topic, partition, node, why) in &self.unread {
            text += &format!("not read: partition {partition} of {topic} on node {node}: {why}\n");
        }
        let sound = counted(self.sound.min(u64::from(u32::MAX)) as u32, "sealed segment");
        let mended = if self.mended.is_empty() { String::new() } else { format!(", {} mended", self.mended.len()) };
        text + &format!("{sound} read and sound, {} damaged{mended}\n", self.damaged.len())
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        let unread = |(topic, partition, node, why): &(String, u32, u32, String)| json!({ "topic": topic, "partition": partition, "node": node, "why": why });
        json!({
            "sound": self.sound,
            "damaged": to_json(&self.damaged),
            "mended": to_json(&self.mended),
            "not_read": self.unread.iter().map(unread).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_told_with_the_damage_first() {
        let mut read = Read { sound: 1, ..Read::default() };
        assert_eq!(read.to_text(), "1 sealed segment read and sound, 0 damaged\n");
        read.damaged.push(DamagedReplica { topic: "t".into(), partition: 3, node: 2, what: "a/0.log at 4096: batch: no".into() });
        read.unread.push(("t".into(), 1, 3, "away".into()));
        let expected = "DAMAGED partition 3 of t on node 2: a/0.log at 4096: batch: no\nnot read: partition 1 of t on node 3: away\n\
                        1 sealed segment read and sound, 1 damaged\n";
        assert_eq!(read.to_text(), expected);
        assert_eq!(read.to_json()["damaged"][0]["node"], 2);
        read.mended.append(&mut read.damaged);
        let text = read.to_text();
        assert!(text.starts_with("was damaged, and is mended: partition 3 of t on node 2: a/0.log"), "{text}");
        assert!(text.ends_with("1 sealed segment read and sound, 0 damaged, 1 mended\n"), "{text}");
        assert_eq!(read.to_json()["not_read"][0]["why"], "away");
    }
}
