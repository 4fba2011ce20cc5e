//! Stores of stopped nodes: replicas of a partition are the same, byte for byte.

use std::fs;
use std::path::Path;

use corelane::log::checkpoint::PartitionState;
use corelane::log::identity;
use corelane::log::recovery::{OpenRequest, open_store};
use corelane::shard::blocking_files::BlockingFiles;
use corelane::types::{TopicId, TopicPartition};

use super::network::Node;

/// What was compared.
#[derive(Clone, Copy, Default, Debug)]
pub struct Compared {
    /// Segments, counted once.
    pub segments: u64,
    /// Bytes of one replica.
    pub bytes: u64,
}

/// A node's store, opened as a start opens it.
struct Stored<'a> {
    node: Node,
    data: &'a Path,
    states: Vec<PartitionState>,
}

fn open(node: Node, data: &Path, topic: TopicId, partitions: u32) -> Result<Stored<'_>, String> {
    let mut files = BlockingFiles::new(data, BlockingFiles::is_direct(data));
    let failed = |e: &dyn std::fmt::Display| format!("the store of node {node}, {}: {e}", data.display());
    let meta = identity::read(&mut files).map_err(|e| failed(&e))?.ok_or_else(|| failed(&"no identity"))?;
    let catalogue: Vec<_> = (0..partitions).map(|partition| TopicPartition { topic, partition }).collect();
    let request = OpenRequest { cluster: meta.cluster, shards: 1, salt: 77, now_ms: 0, catalogue: &catalogue, owner: &|_| 0 };
    let store = open_store(&mut files, &request).map_err(|e| failed(&e))?;
    // Partitions of other topics are named to nobody here, and what is left of them is none of this.
    if let Some(damage) = store.report.damage.first() {
        return Err(failed(&format!("{damage:?}")));
    }
    let states = store.shards.into_iter().flatten().map(|image| image.state).filter(|state| state.partition.topic == topic);
    Ok(Stored { node, data, states: states.collect() })
}

/// Compares all replicas of a topic that all nodes have. They are stopped, and all replicas were in sync before.
pub fn compare(stores: &[(Node, &Path)], topic: TopicId, partitions: u32) -> Result<Compared, String> {
    let stores = stores.iter().map(|(node, data)| open(*node, data, topic, partitions)).collect::<Result<Vec<_>, _>>()?;
    let mut compared = Compared::default();
    let (first, others) = stores.split_first().ok_or("no store")?;
    for partition in (0..partitions).map(|partition| TopicPartition { topic, partition }) {
        for other in others {
            expect_same(first, other, partition)?;
        }
        let state = first.state(partition)?;
        compared.segments += state.segments.len() as u64;
        compared.bytes += state.segments.iter().map(|segment| segment.valid_end).sum::<u64>();
    }
    Ok(compared)
}

impl Stored<'_> {
    fn state(&self, partition: TopicPartition) -> Result<&PartitionState, String> {
        let state = self.states.iter().find(|state| state.partition == partition);
        state.ok_or_else(|| format!("node {} has no {partition}", self.node))
    }
}

fn expect_same(one: &Stored<'_>, other: &Stored<'_>, partition: TopicPartition) -> Result<(), String> {
    let (ours, theirs) = (one.state(partition)?, other.state(partition)?);
    let outline = |state: &PartitionState| {
        let segments: Vec<_> = state.segments.iter().map(|s| (s.base_offset, s.end_offset, s.valid_end, s.running_hash)).collect();
        (state.log_start, state.log_end, state.running_hash, segments)
    };
    let (our_outline, their_outline) = (outline(ours), outline(theirs));
    let differ = |what: String| format!("{partition} differs between nodes {} and {}: {what}", one.node, other.node);
    if our_outline != their_outline {
        return Err(differ(format!("(start, end, hash, segments) are {our_outline:?} and {their_outline:?}")));
    }
    for (our, their) in ours.segments.iter().zip(&theirs.segments) {
        let read = |stored: &Stored<'_>, path: String| -> Result<Vec<u8>, String> {
            let mut bytes = fs::read(stored.data.join(&path)).map_err(|e| format!("{path}: {e}"))?;
            bytes.truncate(our.valid_end as usize);
            Ok(bytes)
        };
        let (left, right) = (read(one, our.path(partition))?, read(other, their.path(partition))?);
        if left != right {
            let at = left.iter().zip(&right).position(|(a, b)| a != b).unwrap_or(left.len().min(right.len()));
            return Err(differ(format!("segment {} at byte {at} of {}", our.base_offset, our.valid_end)));
        }
    }
    Ok(())
}
