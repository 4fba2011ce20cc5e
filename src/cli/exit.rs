//! How a command ends: one exit code and, unless all is well, one line that says why.

use std::io;
use std::process::ExitCode;

use crate::server::host::HostError;
use crate::server::settings::SettingsError;

/// The exit codes of every command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The check or the delivery failed.
    Failed = 1,
    /// Wrong usage or setting.
    Usage = 2,
    /// No broker can be reached.
    Unreachable = 3,
    /// The broker refused.
    Refused = 4,
    /// The host can't run it.
    Host = 5,
    /// The cluster does all that is asked of it, but something is missing.
    Degraded = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The code of the process.
    pub exit: Exit,
    /// One line for people; empty where what the command printed says it all.
    pub message: String,
}

impl Failure {
    /// A failure with its words.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into() }
    }

    /// One of which the command's output tells.
    pub fn told(exit: Exit) -> Failure {
        Failure::new(exit, "")
    }

    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Failure {
        Failure::usage(error.to_string())
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Failure {
        Failure::new(Exit::Host, error.to_string())
    }
}

/// Writing the output failed. Who reads it may have had enough (`| head`): that is no failure.
pub fn output_failed(error: &io::Error) -> Result<(), Failure> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(Failure::new(Exit::Failed, format!("the output can't be written: {error}"))),
    }
}
