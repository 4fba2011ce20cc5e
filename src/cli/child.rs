//! A broker as a child process: this same program's `serve`, on free ports and a directory of its own.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::logging;

/// Each shard takes a free port.
const ANY_PORTS: &str = "127.0.0.1:0";
/// How long a broker may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a broker may take to stop when it is asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The program can't be started or talked to.
    #[error("the broker process: {0}")]
    Io(#[from] io::Error),
    /// It ended before it was ready; its own words are on standard error.
    #[error("the broker ended before it was ready ({0})")]
    Ended(String),
    /// It said something else than that it is ready.
    #[error("the broker did not say that it is ready but {0:?}")]
    NotReady(String),
}

/// What the broker is started with.
#[derive(Clone, Debug)]
pub struct ServeSettings {
    /// Its data directory.
    pub data: PathBuf,
    /// More arguments of `serve`.
    pub arguments: Vec<String>,
}

/// A running broker; killed when dropped.
#[derive(Debug)]
pub struct ChildBroker {
    process: Child,
    /// Address of each shard, the first one for bootstrapping.
    pub addresses: Vec<String>,
    /// From the start of the process to `ready`.
    pub start_up: Duration,
}

impl ChildBroker {
    /// Starts one on any free ports and waits until every shard accepts.
    pub fn start(settings: &ServeSettings) -> Result<ChildBroker, ChildError> {
        ChildBroker::start_at(ANY_PORTS, settings)
    }

    /// Starts one whose first shard listens on `listen` (HOST:PORT) and waits until every shard accepts.
    pub fn start_at(listen: &str, settings: &ServeSettings) -> Result<ChildBroker, ChildError> {
        ChildBroker::start_program(&std::env::current_exe()?, listen, settings)
    }

    fn start_program(program: &Path, listen: &str, settings: &ServeSettings) -> Result<ChildBroker, ChildError> {
        let started = Instant::now();
        let mut command = Command::new(program);
        command
            .args(["serve", "--json", "--listen", listen, "--admin-listen", "none", "--data"])
            .arg(&settings.data)
            .args(&settings.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if std::env::var_os(logging::VARIABLE).is_none() {
            // Its everyday words would stand between ours.
            command.env(logging::VARIABLE, "warn");
        }
        let mut process = command.spawn()?;
        let output = process.stdout.take().ok_or_else(|| io::Error::other("no standard output"))?;
        let line = first_line(output)?;
        let start_up = started.elapsed();
        // From here on a failure must not leave the process behind.
        let mut broker = ChildBroker { process, addresses: Vec::new(), start_up };
        let Some(line) = line else {
            return Err(ChildError::Ended(broker.process.wait()?.to_string()));
        };
        broker.addresses = ready_addresses(&line).ok_or(ChildError::NotReady(line))?;
        Ok(broker)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(mut self) -> io::Result<()> {
        self.process.kill()?;
        self.process.wait().map(|_| ())
    }

    /// SIGTERM, and waits until the broker has drained; false when it failed or had to be killed.
    pub fn stop(mut self) -> io::Result<bool> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let asked = Instant::now();
        while asked.elapsed() < STOP_TIMEOUT {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status.success());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(false)
    }
}

impl Drop for ChildBroker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The first line within [`READY_TIMEOUT`]; what follows is read and dropped, so that the broker never waits for a reader.
fn first_line(output: impl io::Read + Send + 'static) -> io::Result<Option<String>> {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = String::new();
        let read = output.read_line(&mut line);
        let _ = tell.send(read.map(|bytes| (bytes > 0).then_some(line)));
        let _ = io::copy(&mut output, &mut io::sink());
    });
    told.recv_timeout(READY_TIMEOUT).unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "not ready in time")))
}

/// The shards' addresses of a ready line.
fn ready_addresses(line: &str) -> Option<Vec<String>> {
    let said: Value = serde_json::from_str(line).ok()?;
    let shards = said["shards"].as_array().filter(|_| said["ready"] == true)?;
    let addresses: Vec<String> = shards.iter().filter_map(|shard| shard["address"].as_str().map(String::from)).collect();
    (!addresses.is_empty()).then_some(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_line_names_the_shards() {
        let line = r#"{"ready":true,"node":1,"pid":7,"shards":[{"shard":0,"address":"127.0.0.1:1","cpu":0},{"shard":1,"address":"127.0.0.1:2","cpu":1}],"admin":null}"#;
        assert_eq!(ready_addresses(line).unwrap(), ["127.0.0.1:1", "127.0.0.1:2"]);
        assert!(ready_addresses(r#"{"ready":false,"shards":[{"address":"x"}]}"#).is_none());
        assert!(ready_addresses("listening").is_none());
    }

    #[test]
    fn a_program_that_is_no_broker_is_told_apart() {
        let settings = ServeSettings { data: "/nonexistent".into(), arguments: Vec::new() };
        let ended = ChildBroker::start_program(Path::new("/bin/false"), ANY_PORTS, &settings).unwrap_err();
        assert!(matches!(ended, ChildError::Ended(_)), "{ended}");
        let other = ChildBroker::start_program(Path::new("/bin/echo"), ANY_PORTS, &settings).unwrap_err();
        assert!(matches!(other, ChildError::NotReady(_)), "{other}");
    }
}
