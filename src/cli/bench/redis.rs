//! Redis streams as the peer: a server of its own with an append-only file that is synced before each answer.
//!
//! The client is a plain blocking socket, one XADD in flight a connection: nothing between the question and the answer.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::histogram::Latencies;

/// How long the server may take until it answers.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// A running redis-server; killed when dropped.
pub struct Redis {
    process: Child,
    port: u16,
}

impl Redis {
    /// Starts one on a free port with `appendonly yes` and `appendfsync always`; `None` where no redis-server is installed.
    pub fn start(directory: &Path) -> io::Result<Option<Redis>> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let spawned = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "yes", "--appendfsync", "always"])
            .arg("--dir")
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = match spawned {
            Ok(process) => process,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(other) => return Err(other),
        };
        let redis = Redis { process, port };
        let started = Instant::now();
        while redis.connect().and_then(|mut connection| connection.ping()).is_err() {
            if started.elapsed() > READY_TIMEOUT {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "redis-server does not answer"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Some(redis))
    }

    /// Each of `connections` adds entries to a stream of its own, one in flight; latencies of all, and how long it took.
    pub fn add(&self, connections: usize, payload: &[u8], warm_up: Duration, duration: Duration) -> io::Result<(Latencies, f64)> {
        let mut open = (0..connections).map(|_| self.connect()).collect::<io::Result<Vec<_>>>()?;
        let started = Instant::now();
        let mut all = Latencies::new();
        thread::scope(|scope| {
            let threads: Vec<_> = open
                .iter_mut()
                .enumerate()
                .map(|(number, connection)| {
                    scope.spawn(move || connection.add_until(number, payload, started + warm_up, started + warm_up + duration))
                })
                .collect();
            for thread in threads {
                all.merge(&thread.join().unwrap_or_else(|_| Err(io::Error::other("a measuring thread panicked")))?);
            }
            io::Result::Ok(())
        })?;
        Ok((all, duration.as_secs_f64()))
    }

    fn connect(&self) -> io::Result<Connection> {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        socket.set_nodelay(true)?;
        Ok(Connection { answers: BufReader::new(socket.try_clone()?), questions: socket, line: Vec::new() })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Connection {
    questions: TcpStream,
    answers: BufReader<TcpStream>,
    line: Vec<u8>,
}

impl Connection {
    fn ping(&mut self) -> io::Result<()> {
        self.questions.write_all(&command(&[b"PING"]))?;
        self.expect(b"+PONG")
    }

    fn add_until(&mut self, number: usize, payload: &[u8], from: Instant, until: Instant) -> io::Result<Latencies> {
        let question = command(&[b"XADD", format!("stream-{number}").as_bytes(), b"*", b"v", payload]);
        let mut latencies = Latencies::new();
        loop {
            let asked = Instant::now();
            if asked >= until {
                return Ok(latencies);
            }
            self.questions.write_all(&question)?;
            // The id of the entry: `$` and its length, then the id itself.
            self.expect(b"$")?;
            self.expect(b"")?;
            if asked >= from {
                latencies.record(asked.elapsed());
            }
        }
    }

    fn expect(&mut self, start: &[u8]) -> io::Result<()> {
        self.line.clear();
        self.answers.read_until(b'\n', &mut self.line)?;
        match self.line.starts_with(start) && self.line.ends_with(b"\n") {
            true => Ok(()),
            false => Err(io::Error::other(format!("redis-server answered {:?}", String::from_utf8_lossy(&self.line)))),
        }
    }
}

/// A command as an array of strings.
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_strings() {
        assert_eq!(command(&[b"PING", b"xy"]), b"*2\r\n$4\r\nPING\r\n$2\r\nxy\r\n");
    }

    #[test]
    fn entries_are_added_where_redis_is_installed() {
        let directory = tempfile::tempdir().unwrap();
        let Some(redis) = Redis::start(directory.path()).unwrap() else {
            eprintln!("no redis-server here");
            return;
        };
        let (latencies, _) = redis.add(2, &[7; 100], Duration::ZERO, Duration::from_millis(100)).unwrap();
        assert!(latencies.count() > 0);
        drop(redis);
        let log = walk_bytes(directory.path());
        assert!(log > latencies.count() * 100, "{log} bytes for {} entries", latencies.count());
    }

    fn walk_bytes(directory: &Path) -> u64 {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| if entry.path().is_dir() { walk_bytes(&entry.path()) } else { entry.metadata().unwrap().len() }).sum()
    }
}
