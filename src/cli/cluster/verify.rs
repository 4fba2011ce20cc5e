//! `corelane cluster verify`: the replicas of each partition, compared by the hashes of their segments.
//!
//! The hash at a segment's end stands for the heads of all batches before it, and each head has the checksum of its batch; a cleaning does not change it. So two
//! replicas that have the same hash at the same offset had the same records up to there. Only what all have committed is compared: beyond that, replicas may
//! differ for a while. The hashes are those that each replica knows: that its files are as they were written is found out by reading them, with `--read`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::checks::{self, Read};
use super::{Told, counted, line, status};
use crate::cli::broker::BrokerArgs;
use crate::cli::exit::{Exit, Failure};
use crate::client::Admin;
use crate::limits;
use crate::request::Code;
use crate::request::cluster::{PartitionState, ReplicaLog, SegmentHash, StatusQuestion};
use crate::types::{Offset, TopicId, TopicPartition};

/// Flags of `cluster verify`.
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// Only this topic
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Have every node read its sealed segments from the disk, too, and wait for what it finds
    #[arg(long)]
    read: bool,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// In what two replicas of a partition differ.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Difference {
    /// Their records up to an offset.
    Records { end_offset: Offset, hashes: [u64; 2] },
    /// One has a segment where the other one's are divided otherwise.
    Segments { base_offset: Offset, end_offset: Offset },
}

/// What was found of a partition.
#[derive(Default)]
struct Report {
    partitions: u32,
    replicas: u32,
    segments: u64,
    differences: Vec<(String, u32, [u32; 2], Difference)>,
    /// Replicas that could not be asked.
    unasked: Vec<(String, u32, u32, String)>,
    /// What the nodes found on their disks, if they were to read.
    read: Option<Read>,
}

/// Compares and prints; fails where replicas differ, or could not be asked.
pub async fn run(args: VerifyArgs) -> Result<Told, Failure> {
    let admin = args.broker.connect().await?.admin();
    let question = StatusQuestion { topic: args.topic.clone(), all_partitions: true, ..StatusQuestion::default() };
    let states = status::whole(&admin, question).await?.partitions;
    let topics = admin.metadata().await?.topics;
    let ids: BTreeMap<String, TopicId> = topics.into_iter().filter_map(|topic| Some((topic.name, topic.found.ok()?.id))).collect();
    let mut report = Report::default();
    for part in states.chunks(limits::REPLICA_LOGS) {
        compare_part(&admin, part, &ids, &mut report).await;
    }
    if args.read {
        report.read = Some(checks::read(&admin, &states, &ids).await);
    }
    let (damaged, lesser) = report.read.as_ref().map_or((0, 0), |read| (read.damaged.len(), read.unread.len() + read.mended.len()));
    let outcome = match (report.differences.len() + damaged, report.unasked.len() + lesser) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::told(Exit::Degraded)),
        _ => Err(Failure::told(Exit::Failed)),
    };
    Ok((if args.json { line(&to_json(&report)) } else { to_text(&report) }, outcome))
}

/// Asks each node for its replicas of these partitions, and compares them.
async fn compare_part(admin: &Admin, part: &[PartitionState], ids: &BTreeMap<String, TopicId>, report: &mut Report) {
    let mut by_node: BTreeMap<u32, Vec<(usize, TopicPartition)>> = BTreeMap::new();
    for (at, state) in part.iter().enumerate() {
        // A topic that was deleted meanwhile is nobody's.
        let Some(topic) = ids.get(&state.topic) else { continue };
        report.partitions += 1;
        for node in &state.replicas {
            by_node.entry(*node).or_default().push((at, TopicPartition { topic: *topic, partition: state.partition }));
        }
    }
    let mut logs: Vec<Vec<(u32, ReplicaLog)>> = part.iter().map(|_| Vec::new()).collect();
    for (node, asked) in by_node {
        for (at, outcome) in logs_of(admin, node, &asked).await {
            match outcome {
                Ok(log) => logs[at].push((node, log)),
                // A replica that is on its way may have nothing yet.
                Err(_) if part[at].target.is_some() && !part[at].isr.contains(&node) => {}
                Err(why) => report.unasked.push((part[at].topic.clone(), part[at].partition, node, why)),
            }
        }
    }
    for (state, logs) in part.iter().zip(&logs) {
        report.replicas += logs.len() as u32;
        let (segments, differences) = compare(logs, state.leader);
        report.segments += segments;
        report.differences.extend(differences.into_iter().map(|(nodes, what)| (state.topic.clone(), state.partition, nodes, what)));
    }
}

type Outcome = (usize, Result<ReplicaLog, String>);

/// A node's logs of partitions. What has no room in one answer is asked for again, in fewer at a time.
async fn logs_of(admin: &Admin, node: u32, asked: &[(usize, TopicPartition)]) -> Vec<Outcome> {
    let (mut outcomes, mut waiting) = (Vec::new(), vec![asked.to_vec()]);
    while let Some(part) = waiting.pop() {
        let partitions: Vec<_> = part.iter().map(|(_, partition)| *partition).collect();
        let answers = match admin.replica_logs(node, &partitions).await {
            Ok(answers) if answers.len() == part.len() => answers,
            Ok(_) => {
                outcomes.extend(part.iter().map(|(at, _)| (*at, Err("another number of answers than questions".to_owned()))));
                continue;
            }
            Err(error) => {
                outcomes.extend(part.iter().map(|(at, _)| (*at, Err(error.to_string()))));
                continue;
            }
        };
        let mut again = Vec::new();
        for ((at, partition), answer) in part.iter().zip(answers) {
            match answer.outcome {
                Err(refusal) if refusal.code == Code::LimitReached && part.len() > 1 => again.push((*at, *partition)),
                outcome => outcomes.push((*at, outcome.map_err(|refusal| refusal.to_string()))),
            }
        }
        if !again.is_empty() {
            waiting.extend(again.chunks(again.len().div_ceil(2)).map(<[_]>::to_vec));
        }
    }
    outcomes
}

/// Compares replicas with the leader's, or with the first where there is none: how many segments were compared, and who differs from whom.
fn compare(logs: &[(u32, ReplicaLog)], leader: Option<u32>) -> (u64, Vec<([u32; 2], Difference)>) {
    let reference = logs.iter().find(|(node, _)| Some(*node) == leader).or(logs.first());
    let Some((first, reference)) = reference else { return (0, Vec::new()) };
    // What every replica knows to be committed, and still has.
    let end = logs.iter().map(|(_, log)| log.high_watermark).min().unwrap_or(0);
    let start = logs.iter().map(|(_, log)| log.log_start).max().unwrap_or(0);
    let (mut segments, mut found) = (0, Vec::new());
    for (node, log) in logs.iter().filter(|(node, _)| node != first) {
        let (compared, differences) = compare_two(reference, log, start, end);
        segments += compared;
        found.extend(differences.into_iter().map(|what| ([*first, *node], what)));
    }
    (segments, found)
}

fn compare_two(one: &ReplicaLog, other: &ReplicaLog, start: Offset, end: Offset) -> (u64, Vec<Difference>) {
    let ends = |log: &ReplicaLog| -> BTreeMap<Offset, SegmentHash> {
        let counts =
            |segment: &&SegmentHash| segment.base_offset < segment.end_offset && start < segment.end_offset && segment.end_offset <= end;
        log.segments.iter().filter(counts).map(|segment| (segment.end_offset, *segment)).collect()
    };
    let (mine, theirs) = (ends(one), ends(other));
    let mut differences = Vec::new();
    let mut compared = 0;
    for (end_offset, segment) in &mine {
        let Some(same) = theirs.get(end_offset) else { continue };
        compared += 1;
        if segment.running_hash != same.running_hash {
            // All that follow differ too: the first says where.
            differences.push(Difference::Records { end_offset: *end_offset, hashes: [segment.running_hash, same.running_hash] });
            break;
        }
    }
    let mut misplaced = BTreeSet::new();
    for (log, segments) in [(other, &mine), (one, &theirs)] {
        for segment in segments.values().filter(|segment| segment.sealed && segment.generation == 0) {
            // Each replica cleans by itself, so rewritten segments lie as they lie.
            let covering = log.segments.iter().filter(|s| s.base_offset < segment.end_offset && segment.base_offset < s.end_offset);
            let is_same =
                |s: &SegmentHash| s.base_offset == segment.base_offset && (s.end_offset == segment.end_offset || is_open_at(s, segment));
            if covering.clone().all(|s| s.generation == 0) && covering.clone().next().is_some() && !covering.clone().any(is_same) {
                misplaced.insert((segment.base_offset, segment.end_offset));
            }
        }
    }
    differences.extend(misplaced.into_iter().map(|(base_offset, end_offset)| Difference::Segments { base_offset, end_offset }));
    (compared, differences)
}

/// A follower's open segment ends where it has come to, maybe within the one that its leader has sealed.
fn is_open_at(open: &SegmentHash, sealed: &SegmentHash) -> bool {
    !open.sealed && open.end_offset <= sealed.end_offset
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Difference::Records { end_offset, hashes: [one, other] } => {
                write!(f, "the records before offset {end_offset} differ: hash {one:016x} and {other:016x}")
            }
            Difference::Segments { base_offset, end_offset } => write!(f, "only one has a segment of {base_offset} to {end_offset}"),
        }
    }
}

fn to_text(report: &Report) -> String {
    let mut text = String::new();
    for (topic, partition, [one, other], what) in &report.differences {
        text += &format!("DIFFERENT partition {partition} of {topic}, nodes {one} and {other}: {what}\n");
    }
    for (topic, partition, node, why) in &report.unasked {
        text += &format!("not compared: partition {partition} of {topic} on node {node}: {why}\n");
    }
    text += &format!(
        "{}, {} asked, {} compared: {}\n",
        counted(report.partitions, "partition"),
        counted(report.replicas, "replica"),
        counted(report.segments.min(u64::from(u32::MAX)) as u32, "segment"),
        match report.differences.len() {
            0 => "no difference".to_owned(),
            many => counted(many as u32, "difference"),
        }
    );
    text + &report.read.as_ref().map_or(String::new(), Read::to_text)
}

fn to_json(report: &Report) -> Value {
    let difference = |(topic, partition, nodes, what): &(String, u32, [u32; 2], Difference)| json!({ "topic": topic, "partition": partition, "nodes": nodes, "what": what.to_string() });
    let unasked = |(topic, partition, node, why): &(String, u32, u32, String)| json!({ "topic": topic, "partition": partition, "node": node, "why": why });
    json!({
        "partitions": report.partitions,
        "replicas": report.replicas,
        "segments": report.segments,
        "differences": report.differences.iter().map(difference).collect::<Vec<_>>(),
        "read": report.read.as_ref().map(Read::to_json),
        "not_compared": report.unasked.iter().map(unasked).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments by (base, end, hash, generation), the last one open.
    fn log(high_watermark: Offset, segments: &[(Offset, Offset, u64, u32)]) -> ReplicaLog {
        let last = segments.len() - 1;
        let segment = |(at, (base_offset, end_offset, running_hash, generation)): (usize, &(Offset, Offset, u64, u32))| SegmentHash {
            base_offset: *base_offset,
            end_offset: *end_offset,
            running_hash: *running_hash,
            bytes: 1,
            generation: *generation,
            sealed: at < last,
        };
        let segments: Vec<_> = segments.iter().enumerate().map(segment).collect();
        ReplicaLog {
            log_start: segments[0].base_offset,
            log_end: segments[last].end_offset,
            high_watermark,
            leader_epoch: 1,
            last_epoch: Some(1),
            segments,
        }
    }

    fn found(one: ReplicaLog, other: ReplicaLog) -> (u64, Vec<Difference>) {
        let (segments, found) = compare(&[(1, one), (2, other)], Some(1));
        (segments, found.into_iter().map(|(_, what)| what).collect())
    }

    #[test]
    fn equal_replicas_are_equal_wherever_each_has_come_to() {
        let leader = || log(25, &[(0, 10, 1, 0), (10, 20, 2, 0), (20, 30, 3, 0)]);
        assert_eq!(found(leader(), leader()), (2, vec![]));
        let behind = log(15, &[(0, 10, 1, 0), (10, 17, 77, 0)]);
        assert_eq!(found(leader(), behind), (1, vec![]), "beyond the watermark nothing is compared");
        let not_rolled = log(20, &[(0, 10, 1, 0), (10, 20, 2, 0)]);
        assert_eq!(found(leader(), not_rolled), (2, vec![]));
        let began_later = log(25, &[(10, 20, 2, 0), (20, 30, 3, 0)]);
        assert_eq!(found(leader(), began_later), (1, vec![]));
        let cleaned = log(25, &[(0, 20, 2, 1), (20, 30, 3, 0)]);
        assert_eq!(found(leader(), cleaned), (1, vec![]), "each cleans by itself");
        assert_eq!(compare(&[(1, leader())], Some(1)), (0, vec![]));
        assert_eq!(compare(&[], None), (0, vec![]));
    }

    #[test]
    fn other_records_are_found_and_where_they_begin() {
        let leader = log(25, &[(0, 10, 1, 0), (10, 20, 2, 0), (20, 30, 3, 0)]);
        let other = log(25, &[(0, 10, 1, 0), (10, 20, 9, 0), (20, 30, 3, 0)]);
        assert_eq!(found(leader.clone(), other), (2, vec![Difference::Records { end_offset: 20, hashes: [2, 9] }]));
        let from_the_start = log(25, &[(0, 10, 8, 0), (10, 20, 9, 0), (20, 30, 3, 0)]);
        assert_eq!(found(leader, from_the_start).1, [Difference::Records { end_offset: 10, hashes: [1, 8] }]);
    }

    #[test]
    fn other_borders_are_found() {
        let leader = log(30, &[(0, 10, 1, 0), (10, 20, 2, 0), (20, 30, 3, 0)]);
        let other = log(30, &[(0, 12, 5, 0), (12, 20, 2, 0), (20, 30, 3, 0)]);
        let expected =
            [(0, 10), (0, 12), (10, 20), (12, 20)].map(|(base_offset, end_offset)| Difference::Segments { base_offset, end_offset });
        assert_eq!(found(leader, other), (2, expected.to_vec()));
    }

    #[test]
    fn all_are_compared_with_the_leaders() {
        let good = || log(25, &[(0, 10, 1, 0), (10, 20, 2, 0), (20, 30, 3, 0)]);
        let bad = log(25, &[(0, 10, 7, 0), (10, 20, 8, 0), (20, 30, 9, 0)]);
        let (segments, found) = compare(&[(1, bad), (2, good()), (3, good())], Some(2));
        assert_eq!(segments, 3);
        assert_eq!(found, [([2, 1], Difference::Records { end_offset: 10, hashes: [1, 7] })]);
    }

    #[test]
    fn what_was_found_is_told() {
        let mut report = Report { partitions: 3, replicas: 8, segments: 40, ..Report::default() };
        assert_eq!(to_text(&report), "3 partitions, 8 replicas asked, 40 segments compared: no difference\n");
        report.differences.push(("t".into(), 2, [1, 3], Difference::Records { end_offset: 20, hashes: [2, 9] }));
        report.unasked.push(("t".into(), 0, 2, "away".into()));
        let text = to_text(&report);
        let first =
            "DIFFERENT partition 2 of t, nodes 1 and 3: the records before offset 20 differ: hash 0000000000000002 and 0000000000000009\n";
        assert!(text.starts_with(first) && text.contains("not compared: partition 0 of t on node 2: away\n"), "{text}");
        assert_eq!(to_json(&report)["differences"][0]["nodes"], json!([1, 3]));
    }
}
