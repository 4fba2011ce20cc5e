//! `corelane cluster elect`: who is to lead a partition.

use serde_json::json;

use super::line;
use super::table::table;
use crate::cli::broker::BrokerArgs;
use crate::cli::exit::{Exit, Failure};
use crate::client::Admin;
use crate::request::cluster::{Candidate, ElectLeader, NodeCondition, ReplicaLog, StatusQuestion};
use crate::types::TopicPartition;

/// Flags of `cluster elect`.
#[derive(clap::Args)]
pub struct ElectArgs {
    /// The topic
    topic: String,
    /// The partition
    partition: u32,
    /// Take a replica that may lack records that were acknowledged: they are lost then. Only where nobody leads, and nobody is there who has everything
    #[arg(long)]
    unclean: bool,
    /// This node [default: the preferred leader; with --unclean the one that has most]
    #[arg(long, value_name = "NODE")]
    node: Option<u32>,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Has somebody elected.
pub async fn run(args: ElectArgs) -> Result<String, Failure> {
    let admin = args.broker.connect().await?.admin();
    let candidate = match (args.unclean, args.node) {
        (true, Some(node)) => Candidate::Unclean(node),
        (true, None) => Candidate::Unclean(most_complete(&admin, &args.topic, args.partition).await?),
        (false, Some(node)) => Candidate::InSync(node),
        (false, None) => Candidate::Preferred,
    };
    let elect = ElectLeader { topic: args.topic.clone(), partition: args.partition, candidate };
    let (leader, leader_epoch) = admin.elect_leader(elect).await?;
    Ok(match args.json {
        true => line(
            &json!({ "topic": args.topic, "partition": args.partition, "leader": leader, "leader_epoch": leader_epoch, "unclean": args.unclean }),
        ),
        false => format!("node {leader} leads partition {} of {} in epoch {leader_epoch}\n", args.partition, args.topic),
    })
}

/// The replica whose log goes furthest, of those that are there. What each has is shown: it is what is left of the partition.
async fn most_complete(admin: &Admin, topic: &str, partition: u32) -> Result<u32, Failure> {
    let question = StatusQuestion { topic: Some(topic.into()), all_partitions: true, skip: partition, most: 1 };
    let status = admin.cluster_status(question).await?;
    let state = status.partitions.into_iter().find(|state| state.partition == partition);
    let state = state.ok_or_else(|| Failure::new(Exit::Refused, format!("topic {topic} has no partition {partition}")))?;
    if let Some(leader) = state.leader {
        return Err(Failure::new(Exit::Refused, format!("node {leader} leads partition {partition} of {topic}: nobody has to be elected")));
    }
    let found = admin.metadata().await?.topics.into_iter().find(|found| found.name == topic).and_then(|found| found.found.ok());
    let found = found.ok_or_else(|| Failure::new(Exit::Refused, format!("there is no topic {topic:?}")))?;
    let is_there = |node: &u32| status.nodes.iter().any(|found| found.node == *node && found.condition != NodeCondition::Fenced);
    let mut logs = Vec::new();
    let mut rows = Vec::new();
    for node in state.replicas {
        let log = match is_there(&node) {
            false => Err("away".to_owned()),
            true => {
                let asked = admin.replica_logs(node, &[TopicPartition { topic: found.id, partition }]).await;
                let answer = asked.map_err(|error| error.to_string()).map(|mut logs| logs.pop().map(|result| result.outcome));
                answer.and_then(|log| log.ok_or("no answer".to_owned())).and_then(|log| log.map_err(|refusal| refusal.to_string()))
            }
        };
        rows.push(match &log {
            Ok(log) => [node.to_string(), log.log_end.to_string(), log.last_epoch.unwrap_or(-1).to_string(), String::new()],
            Err(why) => [node.to_string(), "-".into(), "-".into(), why.clone()],
        });
        logs.extend(log.ok().map(|log| (node, log)));
    }
    eprint!("{}", table(["node", "log end", "last epoch", ""], &rows));
    best(&logs).ok_or_else(|| Failure::new(Exit::Failed, format!("no replica of partition {partition} of {topic} can be asked")))
}

/// Records of a later epoch came after all of an earlier one; the first replica among equals.
fn best(logs: &[(u32, ReplicaLog)]) -> Option<u32> {
    let most = logs.iter().map(|(_, log)| (log.last_epoch, log.log_end)).max()?;
    logs.iter().find(|(_, log)| (log.last_epoch, log.log_end) == most).map(|(node, _)| *node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_epoch_counts_more_than_the_longer_log() {
        let log =
            |last_epoch, log_end| ReplicaLog { log_start: 0, log_end, high_watermark: 0, leader_epoch: 9, last_epoch, segments: vec![] };
        assert_eq!(best(&[(1, log(Some(3), 50)), (2, log(Some(4), 40)), (3, log(Some(4), 40))]), Some(2));
        assert_eq!(best(&[(1, log(None, 0)), (2, log(Some(0), 1))]), Some(2));
        assert_eq!(best(&[]), None);
    }
}
