//! `corelane cluster rebalance`, `add`, `decommission`, `remove`: one step after the other, until nothing is left to do.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::table::table;
use super::{counted, line, list};
use crate::cli::broker::BrokerArgs;
use crate::cli::exit::{Exit, Failure};
use crate::client::Admin;
use crate::request::cluster::{ClusterStatus, NodeCondition, NodeStatus, PlannedMove, Rebalance, RebalanceStep, StatusQuestion};

/// Pause between two steps.
const PAUSE: Duration = Duration::from_millis(500);

/// Flags of what moves replicas.
#[derive(clap::Args)]
pub struct Moving {
    /// Print the plan, move nothing
    #[arg(long)]
    dry_run: bool,
    /// Partitions whose replicas move at the same time
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    at_once: u32,
    /// Give up when nothing goes on for so long and it is known why, as when a node is away
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print one JSON object at the end
    #[arg(long)]
    pub json: bool,
}

/// Flags of `cluster rebalance`.
#[derive(clap::Args)]
pub struct RebalanceArgs {
    #[command(flatten)]
    pub moving: Moving,
}

/// Flags of `cluster add`.
#[derive(clap::Args)]
pub struct NodeArgs {
    /// The node's id
    node: u32,
    #[command(flatten)]
    pub moving: Moving,
}

/// Flags of `cluster decommission`.
#[derive(clap::Args)]
pub struct DecommissionArgs {
    /// The node's id
    node: u32,
    /// The node stays after all: it may get replicas again. Those that have moved stay where they are
    #[arg(long, conflicts_with = "dry_run")]
    cancel: bool,
    #[command(flatten)]
    pub moving: Moving,
}

/// Flags of `cluster remove`.
#[derive(clap::Args)]
pub struct RemoveArgs {
    /// The node's id
    node: u32,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Makes the cluster even.
pub async fn rebalance(args: RebalanceArgs) -> Result<String, Failure> {
    let admin = args.moving.broker.connect().await?.admin();
    let moves = run(&admin, None, &args.moving).await?;
    Ok(moves.told(&args.moving, "the cluster is even"))
}

/// Waits for a node, then makes the cluster even.
pub async fn add(args: NodeArgs) -> Result<String, Failure> {
    let admin = args.moving.broker.connect().await?.admin();
    let began = Instant::now();
    let node = loop {
        match node_status(&admin, args.node).await? {
            Some(node) if node.condition == NodeCondition::Live => break node,
            found if began.elapsed() >= Duration::from_secs(args.moving.patience) || args.moving.dry_run => {
                let why = if found.is_some() { "is registered, but away" } else { "is not registered" };
                let advice = "start it with `corelane serve --node-id N --cluster-listen ... --join ...` and ask again";
                return Err(Failure::new(Exit::Failed, format!("node {} {why}: {advice}", args.node)));
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    };
    if node.retiring && !args.moving.dry_run {
        admin.retire_node(args.node, false).await?;
    }
    let moves = run(&admin, None, &args.moving).await?;
    let node = node_status(&admin, args.node).await?;
    let (replicas, leads) = node.map_or((0, 0), |node| (node.replicas, node.leads.iter().sum()));
    let end = format!("node {} has {} and leads {}", args.node, counted(replicas, "replica"), counted(leads, "partition"));
    Ok(moves.told(&args.moving, &end))
}

/// Moves everything away from a node.
pub async fn decommission(args: DecommissionArgs) -> Result<String, Failure> {
    let admin = args.moving.broker.connect().await?.admin();
    if args.cancel {
        admin.retire_node(args.node, false).await?;
        return Ok(match args.moving.json {
            true => line(&json!({ "node": args.node, "retiring": false })),
            false => format!("node {} stays; `corelane cluster rebalance` gives it replicas again\n", args.node),
        });
    }
    let moves = run(&admin, Some(args.node), &args.moving).await?;
    let is_away = node_status(&admin, args.node).await?.is_none_or(|node| node.condition == NodeCondition::Fenced);
    let stop = if is_away { "" } else { " stop it, then" };
    let end = format!("node {} has no replicas:{stop} `corelane cluster remove {}` takes it out of the cluster", args.node, args.node);
    Ok(moves.told(&args.moving, &end))
}

/// Takes a node out of the cluster.
pub async fn remove(args: RemoveArgs) -> Result<String, Failure> {
    args.broker.connect().await?.admin().remove_node(args.node).await?;
    Ok(match args.json {
        true => line(&json!({ "removed": args.node })),
        false => format!("node {} is no member of the cluster any more\n", args.node),
    })
}

async fn node_status(admin: &Admin, node: u32) -> Result<Option<NodeStatus>, Failure> {
    let status: ClusterStatus = admin.cluster_status(StatusQuestion::default()).await?;
    Ok(status.nodes.into_iter().find(|found| found.node == node))
}

/// What was moved.
#[derive(Default)]
struct Moves {
    begun: Vec<PlannedMove>,
    planned: Vec<PlannedMove>,
    unnamed: u32,
}

/// Asks for steps until nothing is left.
async fn run(admin: &Admin, empty: Option<u32>, args: &Moving) -> Result<Moves, Failure> {
    let asked = Rebalance { empty, most_moving: args.at_once, dry_run: args.dry_run };
    let mut moves = Moves::default();
    let mut progress = Progress::new(Duration::from_secs(args.patience), Instant::now());
    let mut has_retired = false;
    loop {
        // Another step would make the node go again that was told to stay in the meantime.
        if let Some(node) = empty.filter(|_| !args.dry_run)
            && let Ok(Some(found)) = node_status(admin, node).await
        {
            if has_retired && !found.retiring {
                return Err(Failure::new(Exit::Failed, format!("node {node} stays: the decommission was cancelled")));
            }
            has_retired |= found.retiring;
        }
        let step = match admin.rebalance(asked).await {
            Ok(step) => step,
            // The cluster may be without a leader for a moment: what was begun goes on.
            Err(error) if error.is_retriable() && !progress.has_failed_long(Instant::now()) => {
                progress.say(&error.to_string());
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        progress.failing = None;
        if args.dry_run {
            return Ok(Moves { begun: Vec::new(), planned: step.planned, unnamed: step.unnamed });
        }
        moves.begun.extend(step.begun.iter().cloned());
        if step.is_done() {
            return Ok(moves);
        }
        progress.say(&describe(&step, moves.begun.len()));
        progress.note(&step, Instant::now())?;
        tokio::time::sleep(PAUSE).await;
    }
}

fn describe(step: &RebalanceStep, begun: usize) -> String {
    let mut text = format!("{} moving, {begun} begun, {} to come", step.moving, step.planned.len() + step.unnamed as usize);
    if step.moving == 0 && step.planned.is_empty() && step.led_elsewhere > 0 {
        text += &format!(", {} to be led by the preferred leader", step.led_elsewhere);
    }
    text
}

/// Whether it goes on, and what was said last.
struct Progress {
    patience: Duration,
    /// When the numbers changed last.
    since: Instant,
    /// When the first of the last failures in a row was.
    failing: Option<Instant>,
    last: Option<(u32, usize, u32)>,
    said: String,
}

impl Progress {
    fn new(patience: Duration, now: Instant) -> Progress {
        Progress { patience, since: now, failing: None, last: None, said: String::new() }
    }

    /// A line to standard error, where it is another one than the last.
    fn say(&mut self, text: &str) {
        if self.said != text {
            eprintln!("{text}");
            self.said = text.to_owned();
        }
    }

    /// The cluster can't be asked, and could not for so long.
    fn has_failed_long(&mut self, now: Instant) -> bool {
        now.duration_since(*self.failing.get_or_insert(now)) >= self.patience
    }

    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= self.patience
    }

    /// A large partition may take hours, so standing still is no reason to give up; standing still for a reason that is known is.
    fn note(&mut self, step: &RebalanceStep, now: Instant) -> Result<(), Failure> {
        let numbers = (step.moving, step.planned.len() + step.unnamed as usize, step.led_elsewhere);
        if !step.begun.is_empty() || self.last != Some(numbers) {
            (self.since, self.last) = (now, Some(numbers));
            return Ok(());
        }
        match obstacle(step).filter(|_| self.is_over(now)) {
            Some(why) => Err(Failure::new(Exit::Failed, format!("nothing goes on: {why}; the same command goes on later"))),
            None => Ok(()),
        }
    }
}

/// Why a step may be the last that can be done.
fn obstacle(step: &RebalanceStep) -> Option<String> {
    if let Some(refusal) = &step.refusal {
        return Some(format!("moves are refused: {refusal}"));
    }
    if step.without_leader > 0 {
        let advice = "nobody has the records to send; `corelane cluster status` shows which";
        return Some(format!("{} without a leader: {advice}", counted(step.without_leader, "moving partition")));
    }
    match step.waits_for[..] {
        [] => None,
        [node] => Some(format!("{} for node {node}, which is away", waiting(step))),
        _ => Some(format!("{} for nodes {}, which are away", waiting(step), list(&step.waits_for))),
    }
}

fn waiting(step: &RebalanceStep) -> String {
    let moves = step.moving.saturating_add(step.unnamed);
    if moves == 1 { "1 move waits".into() } else { format!("{moves} moves wait") }
}

impl Moves {
    fn told(&self, args: &Moving, end: &str) -> String {
        let all = if args.dry_run { &self.planned } else { &self.begun };
        if args.json {
            let moves: Vec<Value> = all.iter().map(move_json).collect();
            return line(&json!({ "dry_run": args.dry_run, "moves": moves, "unnamed": self.unnamed, "done": !args.dry_run }));
        }
        if !args.dry_run {
            return format!("{}, {} begun\n", end, counted(all.len() as u32, "move"));
        }
        let row = |of: &PlannedMove| [of.topic.clone(), of.partition.to_string(), list(&of.from), list(&of.to)];
        let mut text = table(["topic", "partition", "from", "to"], &all.iter().map(row).collect::<Vec<_>>());
        if self.unnamed > 0 {
            text += &format!("and {} more\n", counted(self.unnamed, "move"));
        }
        if all.is_empty() {
            text = "nothing to move\n".into();
        }
        text
    }
}

fn move_json(of: &PlannedMove) -> Value {
    json!({ "topic": of.topic, "partition": of.partition, "from": of.from, "to": of.to })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Code, Refusal};

    fn step(moving: u32) -> RebalanceStep {
        RebalanceStep { moving, ..RebalanceStep::default() }
    }

    #[test]
    fn it_gives_up_only_for_a_reason_and_after_a_while() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut progress = Progress::new(Duration::from_secs(60), begin);
        let slow = step(3);
        assert!((0..10_000).all(|second| progress.note(&slow, at(second)).is_ok()), "it may be large");
        for stuck in [
            RebalanceStep { waits_for: vec![4], ..step(2) },
            RebalanceStep { without_leader: 1, ..step(2) },
            RebalanceStep { refusal: Some(Refusal::new(Code::InvalidReplicaAssignment, "no")), ..step(2) },
        ] {
            let mut progress = Progress::new(Duration::from_secs(60), begin);
            assert!((0..60).all(|second| progress.note(&stuck, at(second)).is_ok()));
            assert!(progress.note(&stuck, at(60)).is_err());
            let fewer = RebalanceStep { moving: 1, ..stuck.clone() };
            assert!(progress.note(&fewer, at(61)).is_ok() && progress.note(&fewer, at(120)).is_ok(), "it goes on");
            assert!(progress.note(&fewer, at(121)).is_err());
        }
    }

    #[test]
    fn obstacles_are_named() {
        let waits = obstacle(&RebalanceStep { waits_for: vec![4, 5], ..step(2) }).unwrap();
        assert_eq!(waits, "2 moves wait for nodes 4,5, which are away");
        let one = obstacle(&RebalanceStep { waits_for: vec![4], ..step(1) }).unwrap();
        assert_eq!(one, "1 move waits for node 4, which is away");
        assert!(obstacle(&step(2)).is_none());
    }
}
