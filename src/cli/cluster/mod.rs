//! `corelane cluster`: how the cluster is, and what changes its nodes and where replicas are.
//!
//! What takes long keeps nothing here: the command asks the cluster for one step after the other and shows what is left. So it can be killed at any point; typed
//! again, it goes on.

mod checks;
mod elect;
mod moves;
pub mod reassign;
mod status;
mod table;
mod verify;

use std::io::{self, Write};

use serde_json::Value;

use super::exit::{Failure, output_failed};

/// What to do with the cluster.
#[derive(clap::Subcommand)]
pub enum ClusterCommand {
    /// Show who leads what, who is behind, and what is wrong
    #[command(after_help = "Example: corelane cluster status --topic orders --all")]
    Status(status::StatusArgs),
    /// Compare the sealed segments of all replicas by their hashes
    #[command(after_help = "Example: corelane cluster verify --topic orders --read")]
    Verify(verify::VerifyArgs),
    /// Move replicas and leaders until all nodes have alike
    #[command(after_help = "Example: corelane cluster rebalance --dry-run")]
    Rebalance(moves::RebalanceArgs),
    /// Wait for a node that was started with `serve --join`, and move replicas and leaders onto it
    #[command(after_help = "Example: corelane cluster add 4")]
    Add(moves::NodeArgs),
    /// Take out of the cluster a node that was decommissioned and has stopped
    #[command(after_help = "Example: corelane cluster remove 2")]
    Remove(moves::RemoveArgs),
    /// Move all replicas away from a node, which need not be there
    #[command(after_help = "Example: corelane cluster decommission 2")]
    Decommission(moves::DecommissionArgs),
    /// Make the preferred leader of a partition lead, or another one
    #[command(after_help = "Example: corelane cluster elect --unclean orders 3")]
    Elect(elect::ElectArgs),
}

impl ClusterCommand {
    /// Whether JSON is wanted.
    pub fn json(&self) -> bool {
        match self {
            ClusterCommand::Status(args) => args.json,
            ClusterCommand::Verify(args) => args.json,
            ClusterCommand::Rebalance(args) => args.moving.json,
            ClusterCommand::Add(args) => args.moving.json,
            ClusterCommand::Remove(args) => args.json,
            ClusterCommand::Decommission(args) => args.moving.json,
            ClusterCommand::Elect(args) => args.json,
        }
    }

    /// Does it, and prints what came of it.
    pub fn run(self) -> Result<(), Failure> {
        let (text, outcome) = super::block_on(async {
            match self {
                ClusterCommand::Status(args) => status::run(args).await,
                ClusterCommand::Verify(args) => verify::run(args).await,
                ClusterCommand::Rebalance(args) => moves::rebalance(args).await.map(done),
                ClusterCommand::Add(args) => moves::add(args).await.map(done),
                ClusterCommand::Remove(args) => moves::remove(args).await.map(done),
                ClusterCommand::Decommission(args) => moves::decommission(args).await.map(done),
                ClusterCommand::Elect(args) => elect::run(args).await.map(done),
            }
        })?;
        io::stdout().write_all(text.as_bytes()).or_else(|e| output_failed(&e))?;
        outcome
    }
}

/// What is printed, and how the command ends all the same.
type Told = (String, Result<(), Failure>);

fn done(text: String) -> Told {
    (text, Ok(()))
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// "1, 2, 3", and "-" for nobody.
fn list(nodes: &[u32]) -> String {
    match nodes.is_empty() {
        true => "-".into(),
        false => nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
    }
}

/// "1 partition", "2 partitions".
fn counted(number: u32, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
