//! A client process that says when its window begins and ends, and what came of it; what it and the broker used between is read from outside.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use corelane::cli::bench::BenchError;
use corelane::cli::bench::process::Usage;
use serde_json::Value;

use crate::broker::{Broker, ends_with_this_process, tail};

/// A client process; killed when dropped.
pub struct Client {
    process: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

/// What came of a window.
pub struct Window {
    /// The client's own words.
    pub result: Value,
    /// Of the broker, between begin and end.
    pub broker: Usage,
    /// Of the client, between begin and end.
    pub client: Usage,
    /// Of everything on this machine, between begin and end.
    pub machine_cpu_seconds: f64,
}

impl Client {
    /// Starts one; what it says on standard error goes to a file `name`.log in `scratch`.
    pub fn start(mut command: Command, scratch: &Path, name: &str) -> Result<Client, BenchError> {
        let log = scratch.join(format!("{name}.log"));
        let errors = File::create(&log).map_err(BenchError::io(format!("creating {}", log.display())))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        ends_with_this_process(&mut command);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut process = command.spawn().map_err(BenchError::io(format!("starting {program}")))?;
        let output = process.stdout.take();
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in output.into_iter().flat_map(|output| BufReader::new(output).lines()).map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Client { process, lines, log })
    }

    /// What it has used so far.
    pub fn usage(&self) -> Result<Usage, BenchError> {
        Usage::of(self.process.id()).map_err(BenchError::io("reading what the client has used"))
    }

    /// The next line; `None` once it has ended.
    pub fn line(&self, within: Duration) -> Result<Option<String>, BenchError> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        match self.lines.recv_timeout(within) {
            Ok(line) => Ok(Some(line)),
            Err(Disconnected) => Ok(None),
            Err(Timeout) => Err(BenchError::Host(format!("the client said nothing for {} s: {}", within.as_secs(), self.words()))),
        }
    }

    /// The next event, which must be this one.
    pub fn event(&self, name: &str, within: Duration) -> Result<Value, BenchError> {
        let line = self.line(within)?.unwrap_or_default();
        let said: Value = serde_json::from_str(&line).unwrap_or_default();
        match said["event"] == name {
            true => Ok(said),
            false => Err(BenchError::Host(format!("the client said {line:?} where {name} was expected: {}", self.words()))),
        }
    }

    /// Follows a window from its begin to the result.
    pub fn window(&self, broker: &Broker, length: Duration, patience: Duration) -> Result<Window, BenchError> {
        self.event("begin", patience)?;
        self.window_begun(broker, length, patience)
    }

    /// The same after `begin` was heard.
    pub fn window_begun(&self, broker: &Broker, length: Duration, patience: Duration) -> Result<Window, BenchError> {
        let before = (broker.usage()?, self.usage()?, machine_cpu_seconds()?);
        self.event("end", length + patience)?;
        let after = (broker.usage()?, self.usage()?, machine_cpu_seconds()?);
        let result = self.event("result", patience)?;
        let (broker, client) = (after.0.since(before.0), after.1.since(before.1));
        Ok(Window { result, broker, client, machine_cpu_seconds: after.2 - before.2 })
    }

    /// Waits until it has ended by itself, which it must do without an error.
    pub fn finish(mut self) -> Result<(), BenchError> {
        let status = self.process.wait().map_err(BenchError::io("waiting for the client"))?;
        match status.success() {
            true => Ok(()),
            false => Err(BenchError::Host(format!("the client ended with {status}: {}", self.words()))),
        }
    }

    fn words(&self) -> String {
        tail(&fs::read_to_string(&self.log).unwrap_or_default())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// CPU time of everything that ran on this machine so far.
fn machine_cpu_seconds() -> Result<f64, BenchError> {
    let stat = fs::read_to_string("/proc/stat").map_err(BenchError::io("reading /proc/stat"))?;
    let ticks: Vec<u64> = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    // user, nice, system, (idle, iowait,) irq, softirq; what follows is counted there too or was not ours to use.
    let busy: u64 = ticks.iter().enumerate().filter(|(place, _)| matches!(place, 0..=2 | 5..=6)).map(|(_, ticks)| ticks).sum();
    Ok(busy as f64 / rustix::param::clock_ticks_per_second() as f64)
}
