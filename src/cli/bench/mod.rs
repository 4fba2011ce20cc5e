//! `corelane bench`: what the machine can do without a broker, and what the broker makes of it.
//!
//! Each figure stands beside its reference of the same run and directory, and beside the durability that was in force.

pub mod commands;
pub mod consuming;
pub mod histogram;
pub mod limits;
pub mod measured;
pub mod outcome;
pub mod pacer;
pub mod plot;
pub mod process;
pub mod producing;
pub mod random;
pub mod redis;
pub mod reference;
pub mod report;
pub mod sizes;
pub mod suite;
pub mod workload;

use crate::cli::child::ChildError;
use crate::cli::exit::{Exit, Failure};
use crate::client::ClientError;

/// `corelane bench ...`
#[derive(Clone, Debug, clap::Subcommand)]
pub enum BenchCommand {
    /// How fast records are acknowledged
    Produce(commands::RunArgs),
    /// How fast records are read, from memory or, with --cold, from disk
    Consume(commands::ConsumeArgs),
    /// How long a record takes from its intended sending to its acknowledgement and to its consumer
    Latency(commands::RunArgs),
    /// What this machine can do without a broker
    Limits(limits::LimitsArgs),
    /// The sixteen figures that the broker is held to, each beside its reference
    Suite(suite::SuiteArgs),
}

impl BenchCommand {
    /// Whether errors are to be JSON too.
    pub fn json(&self) -> bool {
        let output = match self {
            BenchCommand::Produce(args) | BenchCommand::Latency(args) => &args.output.json,
            BenchCommand::Consume(args) => &args.run.output.json,
            BenchCommand::Limits(args) => &args.output,
            BenchCommand::Suite(args) => &args.output,
        };
        !output.for_people()
    }

    /// Runs it.
    ///
    /// # Errors
    /// With the exit code of the process.
    pub fn run(self) -> Result<(), Failure> {
        match self {
            BenchCommand::Produce(args) => commands::produce(&args)?,
            BenchCommand::Consume(args) => commands::consume(&args)?,
            BenchCommand::Latency(args) => commands::latency(&args)?,
            BenchCommand::Limits(args) => limits::run(&args)?,
            BenchCommand::Suite(args) => suite::run(&args)?,
        }
        Ok(())
    }
}

/// Why a benchmark has no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The broker could not be reached, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The broker to be measured did not start.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// Some records were not delivered: the figures are no figures.
    #[error("{failed} records were not delivered; the first: {first}")]
    Undelivered {
        /// How many.
        failed: u64,
        /// Why the first one was not.
        first: String,
    },
    /// A setting that can't be.
    #[error("{0}")]
    Usage(String),
    /// The host can't run it.
    #[error("{0}")]
    Host(String),
    /// A file or socket failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the place.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl BenchError {
    /// Gives an I/O error the words that say what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> BenchError {
        move |source| BenchError::Io { what: what.into(), source }
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Failure {
        let exit = match &error {
            BenchError::Client(ClientError::Refused(_)) => Exit::Refused,
            BenchError::Client(_) => Exit::Unreachable,
            BenchError::Usage(_) => Exit::Usage,
            BenchError::Host(_) => Exit::Host,
            BenchError::Io { .. } | BenchError::Child(_) | BenchError::Undelivered { .. } => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}

/// A runtime of one thread for clients.
fn runtime() -> Result<tokio::runtime::Runtime, BenchError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BenchError::io("making a runtime"))
}
