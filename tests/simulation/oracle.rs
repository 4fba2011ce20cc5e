//! What must hold across replicas, whatever clients see.

use std::collections::{BTreeMap, BTreeSet};

use corelane::replication::{NodeId, PartitionRecord};
use corelane::types::{LeaderEpoch, Offset};

use crate::disk::{DiskLog, Log, PartitionId};

/// What was committed, and what was wrong.
#[derive(Default)]
pub struct Oracle {
    /// Epoch and value by offset, as the first leader that committed it had them.
    committed: BTreeMap<PartitionId, Vec<(LeaderEpoch, u64)>>,
    /// Partitions in which an administrator allowed a loss.
    pub unclean: BTreeSet<PartitionId>,
    pub violations: Vec<String>,
}

/// A look at so many committed records before the end is enough between elections.
const LOOK_BACK: usize = 8;

impl Oracle {
    pub fn violate(&mut self, text: String) {
        self.violations.push(text);
    }

    pub fn committed_end(&self, partition: PartitionId) -> Offset {
        self.committed.get(&partition).map_or(0, |records| records.len() as Offset)
    }

    /// A watermark moves. A leader's makes records committed; each replica's is below that, over the same records.
    pub fn watermark(&mut self, partition: PartitionId, node: NodeId, leads: bool, from: Offset, to: Offset, log: &Log) {
        let committed = self.committed.entry(partition).or_default();
        for offset in from.max(log.first())..to {
            let Some(record) = log.record(offset) else {
                return self.violations.push(format!("partition {partition}: node {node} has watermark {to} and no record {offset}"));
            };
            match committed.get(offset as usize) {
                Some(known) if *known != record => {
                    let text = format!("partition {partition}: record {offset} was committed as {known:?}, node {node} commits {record:?}");
                    return self.violations.push(text);
                }
                Some(_) => {}
                None if leads && committed.len() == offset as usize => committed.push(record),
                None => {
                    return self
                        .violations
                        .push(format!("partition {partition}: node {node} has watermark {to}, committed is {}", committed.len()));
                }
            }
        }
    }

    /// A new leader or member of the ISR has on its disk all that is committed.
    pub fn holds_everything(&mut self, partition: PartitionId, node: NodeId, disk: &DiskLog, whole: bool, why: &str) {
        let Some(committed) = self.committed.get(&partition) else { return };
        let log = &disk.log;
        if (log.end() as usize) < committed.len() {
            let text =
                format!("partition {partition}: node {node}, {why}, ends at {}, {} records are committed", log.end(), committed.len());
            return self.violations.push(text);
        }
        let from = if whole { 0 } else { committed.len().saturating_sub(LOOK_BACK) };
        let first = from.max(log.first() as usize);
        for (offset, expected) in committed.iter().enumerate().skip(first) {
            let found = log.record(offset as Offset);
            if found != Some(*expected) {
                let text = format!("partition {partition}: node {node}, {why}, has {found:?} at {offset}, {expected:?} is committed");
                return self.violations.push(text);
            }
        }
    }

    /// An election by an administrator's word: what the new leader does not have is lost.
    pub fn elected_unclean(&mut self, partition: PartitionId, log: &Log) {
        self.unclean.insert(partition);
        let committed = self.committed.entry(partition).or_default();
        let kept = (log.first() as usize..committed.len()).find(|at| log.record(*at as Offset) != Some(committed[*at]));
        committed.truncate(kept.unwrap_or(committed.len()));
    }

    /// At the end, when all replicas are there and caught up: the same bytes in the same segments.
    pub fn converged(&mut self, partition: PartitionId, record: &PartitionRecord, logs: &[(NodeId, &Log)]) {
        let Some((first, log)) = logs.first().copied() else { return };
        for (node, other) in &logs[1..] {
            let from = log.first().max(other.first());
            let same = log.batches.iter().filter(|b| b.base >= from).eq(other.batches.iter().filter(|b| b.base >= from));
            if !same || log.end() != other.end() {
                self.violations.push(format!("partition {partition}: nodes {first} and {node} differ at the end ({record:?})"));
            }
        }
    }
}
