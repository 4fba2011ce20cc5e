//! `corelane bench`: what the machine can do without a broker, and what the broker makes of it.
//!
//! Each figure stands beside its reference of the same run and directory, and beside the durability that was in force.

pub mod histogram;
pub mod limits;
pub mod pacer;
pub mod process;
pub mod random;
pub mod redis;
pub mod report;
pub mod sizes;

/// Why a benchmark has no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
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
            BenchError::Io { .. } => 1,
        }
    }
}
