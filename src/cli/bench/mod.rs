//! `corelane bench`: what the machine can do without a broker, and what the broker makes of it.
//!
//! Each figure stands beside its reference of the same run and directory, and beside the durability that was in force.

pub mod commands;
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
pub mod workload;

use crate::cli::child::ChildError;
use crate::client::ClientError;

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

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            BenchError::Usage(_) => 2,
            BenchError::Host(_) => 5,
            BenchError::Client(ClientError::Refused(_)) => 4,
            BenchError::Client(_) => 3,
            BenchError::Io { .. } | BenchError::Child(_) | BenchError::Undelivered { .. } => 1,
        }
    }
}

/// A runtime of one thread for clients.
fn runtime() -> Result<tokio::runtime::Runtime, BenchError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BenchError::io("making a runtime"))
}
