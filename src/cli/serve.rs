//! `corelane serve`: the broker.

use std::path::PathBuf;

use clap::Args;

use super::exit::{Exit, Failure};
use crate::server::host::Cpus;
use crate::server::settings::RawSettings;
use crate::server::{self, ServeError, ServeOptions};

/// Flags of `serve`.
#[derive(Args)]
#[command(after_help = "Example: corelane serve --data /var/lib/corelane --listen 127.0.0.1:9092 --memory 2G")]
pub struct ServeArgs {
    #[command(flatten)]
    settings: RawSettings,
    /// A TOML file with the same settings (keys as the flags, without dashes in front); flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the line that says that every shard accepts as JSON
    #[arg(long)]
    pub json: bool,
    /// Record every disk operation and acknowledgement here, for tests of crashes
    #[arg(long, value_name = "FILE", hide = true)]
    disk_trace: Option<PathBuf>,
    /// Size of a journal file in bytes, for the same tests
    #[arg(long, value_name = "BYTES", hide = true)]
    journal_file: Option<u64>,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: ServeArgs) -> Result<(), Failure> {
    let raw = match &args.config {
        Some(path) => args.settings.or(RawSettings::read(path)?),
        None => args.settings,
    };
    let settings = raw.validate(&Cpus::read()?)?;
    let options = ServeOptions { json: args.json, disk_trace: args.disk_trace, journal_file: args.journal_file };
    server::serve(settings, &options).map_err(Failure::from)
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Failure {
        let exit = match &error {
            ServeError::Host(_) | ServeError::Listen { .. } | ServeError::Store(_) => Exit::Host,
            ServeError::Failed(_) => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}
