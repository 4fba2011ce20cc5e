//! `corelane inspect repair`: the one command that changes a store, and only when it is told to.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::exit::{Exit, Failure, output_failed};
use crate::cluster::{Catalogue, command_log};
use crate::log::recovery::repair::{RepairRequest, RepairedPartition, repair};
use crate::log::{identity, paths};
use crate::server::lock_data;
use crate::shard::blocking_files::BlockingFiles;
use crate::shard::store::now_ms;
use crate::types::TopicPartition;

/// Makes lost checkpoints again, or says what it would do; returns how many partitions are quarantined by it.
pub fn run(data: &Path, apply: bool, json: bool, out: &mut dyn Write) -> Result<usize, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(Exit::Failed, error.to_string());
    if !data.is_dir() {
        return Err(Failure::usage(format!("{} is not a directory", data.display())));
    }
    let _lock = lock_data(data).map_err(|e| Failure::new(Exit::Host, e.to_string()))?;
    let direct = BlockingFiles::is_direct(&data.join(paths::META));
    let mut files = if apply { BlockingFiles::new(data, direct) } else { BlockingFiles::read_only(data, direct) };
    let meta = identity::read(&mut files).map_err(|e| failed(&e))?.ok_or_else(|| failed(&"the store has no identity"))?;
    if data.join(paths::CONSENSUS_DIR).exists() {
        let advice = "its topics are in the consensus, which this command does not read. Other nodes have its partitions' records: empty the data directory and start \
                      it again, and it comes back as a new node";
        return Err(failed(&format!("{} is of a node of a cluster: {advice}", data.display())));
    }
    let path = data.join(paths::CATALOGUE);
    let bytes = std::fs::read(&path).map_err(|e| failed(&format!("{}: {e}", path.display())))?;
    let log = command_log::decode_log(&bytes).map_err(|e| failed(&e))?;
    let catalogue = Catalogue::replay(&log).map_err(|(record, refusal)| failed(&format!("record {record}: {refusal}")))?;
    let partitions: Vec<_> = catalogue
        .view()
        .topics()
        .flat_map(|topic| (0..topic.partitions).map(|partition| TopicPartition { topic: topic.id, partition }))
        .collect();
    let request = RepairRequest {
        cluster: meta.cluster,
        now_ms: now_ms(),
        catalogue: &partitions,
        owner: &|partition: TopicPartition, shards| partition.topic.shard_of(partition.partition, shards),
        apply,
    };
    let repaired = repair(&mut files, &request).map_err(|e| failed(&e))?;
    print(&repaired, apply, json, out).or_else(|e| output_failed(&e))?;
    Ok(repaired.iter().filter(|partition| partition.damage.is_some()).count())
}

fn print(repaired: &[RepairedPartition], apply: bool, json: bool, out: &mut dyn Write) -> std::io::Result<()> {
    for RepairedPartition { shard, partition, log_end, segments, damage } in repaired {
        match json {
            true => {
                let damage = damage.as_ref().map(ToString::to_string);
                let line = json!({
                    "shard": shard, "topic": partition.topic.to_string(), "partition": partition.partition,
                    "log_end": log_end, "segments": segments, "quarantined": damage, "written": apply,
                });
                writeln!(out, "{line}")?;
            }
            false => match damage {
                None => {
                    writeln!(out, "shard {shard}: {partition} has {segments} segment(s) up to offset {log_end}, and what the journal adds")?
                }
                Some(damage) => writeln!(out, "shard {shard}: {partition} is quarantined: {damage}")?,
            },
        }
    }
    if json {
        return Ok(());
    }
    match (repaired.is_empty(), apply) {
        (true, _) => writeln!(out, "every shard has a checkpoint that checks: there is nothing to repair"),
        (false, true) => writeln!(out, "the checkpoints are written; the next start replays the journal"),
        (false, false) => writeln!(out, "nothing was changed; --apply writes the checkpoints"),
    }
}
