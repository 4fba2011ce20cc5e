//! The broker as a child process of a check, with deadlines on everything that it is waited for.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process};

/// A start may take this long until `ready`, a stop until the process is gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// The kernel may be at a killed process's last writes for this long.
const QUIET_PATIENCE: Duration = Duration::from_secs(20);

/// How a broker is started.
#[derive(Clone, Debug)]
pub struct Serve {
    /// Its data directory.
    pub data: PathBuf,
    /// Where its words go; added to.
    pub log: PathBuf,
    /// Address of the first shard.
    pub listen: String,
    /// Its shards.
    pub shards: u32,
}

/// A running broker; killed when dropped.
#[derive(Debug)]
pub struct Broker {
    process: Child,
    log: PathBuf,
    /// From the start of the process to `ready`.
    pub ready_after: Duration,
}

impl Serve {
    fn spawn(&self) -> Result<Child, String> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log).map_err(|e| format!("{}: {e}", self.log.display()))?;
        Command::new(env!("CARGO_BIN_EXE_corelane"))
            .args(["serve", "--json", "--admin-listen", "none", "--memory", "256M", "--listen", &self.listen])
            .args(["--shards", &self.shards.to_string(), "--data"])
            .arg(&self.data)
            .env("CORELANE_LOG", std::env::var("CORELANE_LOG").unwrap_or_else(|_| "warn".into()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("the broker's program: {e}"))
    }

    /// Starts a broker and waits until every shard accepts.
    pub fn start(&self) -> Result<Broker, String> {
        let started = Instant::now();
        let mut process = self.spawn()?;
        let output = process.stdout.take().expect("piped");
        let mut broker = Broker { process, log: self.log.clone(), ready_after: Duration::ZERO };
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = String::new();
            let _ = output.read_line(&mut line);
            let _ = tell.send(line);
            let _ = std::io::copy(&mut output, &mut std::io::sink());
        });
        let line = told.recv_timeout(PATIENCE).map_err(|_| broker.words("is not ready", PATIENCE))?;
        broker.ready_after = started.elapsed();
        if !line.contains("\"ready\":true") {
            let status = broker.process.wait().map_err(|e| e.to_string())?;
            return Err(broker.words(&format!("ended at its start ({status}) and said {line:?}"), started.elapsed()));
        }
        Ok(broker)
    }

    /// Starts a broker and kills it after `delay`, wherever it is then.
    pub fn start_and_kill(&self, delay: Duration) -> Result<(), String> {
        let mut process = self.spawn()?;
        std::thread::sleep(delay);
        process.kill().and_then(|()| process.wait()).map(|_| ()).map_err(|e| e.to_string())
    }
}

impl Broker {
    /// SIGKILL.
    pub fn kill(&mut self) -> Result<(), String> {
        self.expect_running()?;
        self.process.kill().and_then(|()| self.process.wait()).map(|_| ()).map_err(|e| e.to_string())
    }

    /// SIGTERM: it must drain and end with code 0.
    pub fn stop(&mut self) -> Result<(), String> {
        self.expect_running()?;
        kill_process(Pid::from_child(&self.process), Signal::TERM).map_err(|e| e.to_string())?;
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE {
            match self.process.try_wait().map_err(|e| e.to_string())? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.words(&format!("ended with {status} when asked to"), asked.elapsed())),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        Err(self.words("does not end when asked to", PATIENCE))
    }

    /// An error when it has ended by itself.
    pub fn expect_running(&mut self) -> Result<(), String> {
        match self.process.try_wait().map_err(|e| e.to_string())? {
            Some(status) => Err(self.words(&format!("ended by itself ({status})"), Duration::ZERO)),
            None => Ok(()),
        }
    }

    fn words(&self, what: &str, after: Duration) -> String {
        format!("the broker {what} after {:.1} s; {} ends with:\n{}", after.as_secs_f64(), self.log.display(), last_words(&self.log))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The end of a log.
pub fn last_words(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// An address whose port and the next ones are free now. Below the range from which connections take their own ports: a client that tries again and again
/// while the broker is down would come to have the broker's port itself.
pub fn free_ports(count: u32, seed: u64) -> Result<String, String> {
    for attempt in 0..200 {
        let first = 12_000 + ((seed.wrapping_add(u64::from(std::process::id())) ^ (attempt * 7919)) % 18_000) as u16;
        let bound: Vec<_> = (0..count as u16).map_while(|n| TcpListener::bind(("127.0.0.1", first + n)).ok()).collect();
        if bound.len() == count as usize {
            return Ok(format!("127.0.0.1:{first}"));
        }
    }
    Err("no free ports".into())
}

/// Waits until no write of a killed broker is on its way: each open data file has a lock until the kernel is done with it (decision 0004).
pub fn wait_quiet(data: &Path) -> Result<(), String> {
    let deadline = Instant::now() + QUIET_PATIENCE;
    for path in files_below(data)? {
        let Ok(file) = File::open(&path) else { continue };
        while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() > deadline {
                return Err(format!("{} is still locked {} s after the kill", path.display(), QUIET_PATIENCE.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Every file below a directory.
pub fn files_below(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() { files.extend(files_below(&path)?) } else { files.push(path) }
    }
    Ok(files)
}

/// What `corelane inspect verify` read of a stopped store, bytes, and how many things it calls ambiguous. An error when it is not clean.
pub fn verify(data: &Path) -> Result<(u64, u64), String> {
    let mut process = Command::new(env!("CARGO_BIN_EXE_corelane"))
        .args(["inspect", "verify", "--json", "--data"])
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut said = String::new();
    process.stdout.take().expect("piped").read_to_string(&mut said).map_err(|e| e.to_string())?;
    let status = process.wait().map_err(|e| e.to_string())?;
    let report: serde_json::Value = serde_json::Deserializer::from_str(&said)
        .into_iter()
        .next()
        .and_then(Result::ok)
        .ok_or_else(|| format!("verify ended with {status} and said {said:?}"))?;
    let damage = report["damage"].as_array().ok_or_else(|| format!("verify ended with {status} and said {said:?}"))?;
    if !damage.is_empty() || !status.success() {
        return Err(format!("verify ended with {status} and {} damaged: {:#}", damage.len(), report["damage"]));
    }
    Ok((report["bytes"].as_u64().unwrap_or_default(), report["ambiguous"].as_array().map_or(0, |list| list.len() as u64)))
}
