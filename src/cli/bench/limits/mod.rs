//! `corelane bench limits`: what this machine can do without any broker, in the directory that the broker would use.
//!
//! One plain function a limit, so that a benchmark of the broker measures its reference in the same run.

pub mod network;
pub mod storage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::BenchError;
pub use super::histogram::Latencies;
use super::report::JsonArgs;
use storage::{DEPTHS, FileState, ScratchFile};

/// Arguments of `bench limits`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example: corelane bench limits --dir /var/lib/corelane --json")]
pub struct LimitsArgs {
    /// Directory for the scratch files: on the disk that the broker would use.
    #[arg(long, default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// Length of each single measurement.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Largest scratch file, bytes.
    #[arg(long, default_value_t = 4 << 30)]
    pub file_bytes: u64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: JsonArgs,
}

/// Bytes moved in a time.
#[derive(Clone, Copy, Debug)]
pub struct Throughput {
    /// Bytes.
    pub bytes: u64,
    /// Seconds.
    pub seconds: f64,
}

impl Throughput {
    /// Bytes a second.
    pub fn rate(self) -> f64 {
        if self.seconds > 0.0 { self.bytes as f64 / self.seconds } else { 0.0 }
    }
}

/// Throughputs at several depths.
#[derive(Clone, Debug)]
pub struct Depths(pub Vec<(usize, Throughput)>);

impl Depths {
    /// The fastest: (depth, throughput).
    pub fn best(&self) -> (usize, Throughput) {
        self.0.iter().copied().max_by(|a, b| a.1.rate().total_cmp(&b.1.rate())).unwrap_or((0, Throughput { bytes: 0, seconds: 0.0 }))
    }

    fn to_json(&self) -> Value {
        let (depth, best) = self.best();
        let all: Vec<Value> =
            self.0.iter().map(|(depth, t)| json!({"depth": depth, "bytes_per_second": t.rate(), "bytes": t.bytes})).collect();
        json!({"bytes_per_second": best.rate(), "depth": depth, "depths": all})
    }
}

/// All limits of one run.
#[derive(Clone)]
pub struct Limits {
    /// Round trips of a small message.
    pub ping_pong: Latencies,
    /// One TCP stream.
    pub one_way: Throughput,
    /// Sequential direct write into allocated space.
    pub write_allocated: Depths,
    /// Sequential direct write over written blocks.
    pub write_written: Depths,
    /// Sequential direct read.
    pub read: Depths,
    /// One block written and synced.
    pub write_sync: Latencies,
}

impl Limits {
    /// Measures all, `length` each, with `say` told what begins.
    pub fn measure(directory: &Path, length: Duration, file_bytes: u64, say: &mut dyn FnMut(&str)) -> Result<Limits, BenchError> {
        check_directory(directory)?;
        say("loopback ping-pong");
        let ping_pong = network::ping_pong(length).map_err(BenchError::io("loopback ping-pong"))?;
        say("loopback one-way");
        let one_way = network::one_way(length).map_err(BenchError::io("loopback one-way"))?;
        say("4 KiB direct write and fdatasync");
        let write_sync = storage::write_and_sync(directory, length).map_err(in_directory(directory))?;
        say("1 MiB direct writes and reads at depths 1, 4 and 16");
        let (write_allocated, write_written, read) = sequential(directory, length, file_bytes).map_err(in_directory(directory))?;
        Ok(Limits { ping_pong, one_way, write_allocated, write_written, read, write_sync })
    }

    /// Figures and the parameters that they were taken with.
    pub fn to_json(&self) -> Value {
        json!({
            "ping_pong": {"latency": self.ping_pong.to_json(), "message_bytes": network::PING_BYTES, "sockets": "std, blocking, nodelay, two pinned threads"},
            "one_way": {"bytes_per_second": self.one_way.rate(), "write_bytes": network::ONE_WAY_BYTES},
            "write_allocated": with_parameters(self.write_allocated.to_json(), FileState::Allocated),
            "write_written": with_parameters(self.write_written.to_json(), FileState::Written),
            "read": with_parameters(self.read.to_json(), FileState::Written),
            "write_sync": {
                "latency": self.write_sync.to_json(), "block_bytes": crate::limits::BLOCK, "file_bytes": storage::SYNCED_FILE_BYTES,
                "file_state": FileState::Written.name(), "sync": "fdatasync", "direct": true,
            },
        })
    }

    /// A table for people.
    pub fn to_text(&self) -> String {
        let megabytes = |depths: &Depths| {
            let (depth, best) = depths.best();
            format!("{:.0} MB/s at depth {depth}", best.rate() / 1e6)
        };
        [
            format!("loopback ping-pong, {} bytes          {}", network::PING_BYTES, self.ping_pong),
            format!("loopback one-way, 64 KiB writes       {:.0} MB/s", self.one_way.rate() / 1e6),
            format!("direct write + fdatasync, 4 KiB       {}", self.write_sync),
            format!("direct write, 1 MiB, allocated file   {}", megabytes(&self.write_allocated)),
            format!("direct write, 1 MiB, written file     {}", megabytes(&self.write_written)),
            format!("direct read, 1 MiB                    {}", megabytes(&self.read)),
        ]
        .join("\n")
    }
}

/// The command.
pub fn run(arguments: &LimitsArgs) -> Result<(), BenchError> {
    if !(arguments.seconds > 0.0 && arguments.seconds <= 3600.0) {
        return Err(BenchError::Usage(format!("--seconds must be above 0 and at most 3600, not {}", arguments.seconds)));
    }
    if arguments.file_bytes < storage::SEQUENTIAL_BYTES as u64 {
        return Err(BenchError::Usage(format!(
            "--file-bytes must be at least {}, not {}",
            storage::SEQUENTIAL_BYTES,
            arguments.file_bytes
        )));
    }
    let length = Duration::from_secs_f64(arguments.seconds);
    let limits =
        Limits::measure(&arguments.dir, length, arguments.file_bytes, &mut |what| arguments.output.progress(&format!("measuring {what}")))?;
    if arguments.output.for_people() {
        println!("{}", limits.to_text());
    }
    let mut result = limits.to_json();
    result["directory"] = json!(arguments.dir.display().to_string());
    result["seconds_each"] = json!(arguments.seconds);
    arguments.output.write(&result)
}

/// Refuses a directory where nothing of this can be measured, and says why.
pub fn check_directory(directory: &Path) -> Result<(), BenchError> {
    match storage::has_direct_io(directory) {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(BenchError::Host(format!("{} is in memory or has no direct I/O: choose a directory on a disk", directory.display())))
        }
        Err(source) => Err(BenchError::Io { what: format!("opening a scratch file in {}", directory.display()), source }),
    }
}

/// Writes allocated space, writes it again, reads it: one file a depth, never larger than `file_bytes`.
fn sequential(directory: &Path, length: Duration, file_bytes: u64) -> std::io::Result<(Depths, Depths, Depths)> {
    let (mut allocated, mut written, mut read) = (Vec::new(), Vec::new(), Vec::new());
    for depth in DEPTHS {
        let file = ScratchFile::new(directory, "sequential");
        file.allocate(file_bytes)?;
        let first = storage::sequential_write(&file, file_bytes, length, depth)?;
        allocated.push((depth, first));
        // Only what was written is there to be read: the rest of the file has no blocks on the device.
        read.push((depth, storage::sequential_read(&file, first.bytes, length, depth)?));
        written.push((depth, storage::sequential_write(&file, first.bytes, length, depth)?));
    }
    Ok((Depths(allocated), Depths(written), Depths(read)))
}

fn with_parameters(mut figures: Value, state: FileState) -> Value {
    figures["block_bytes"] = json!(storage::SEQUENTIAL_BYTES);
    figures["file_state"] = json!(state.name());
    figures["direct"] = json!(true);
    figures
}

fn in_directory(directory: &Path) -> impl FnOnce(std::io::Error) -> BenchError {
    BenchError::io(format!("a scratch file in {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything is measured and counted; what the figures are is the machine's business.
    #[test]
    fn every_limit_is_measured() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        if !storage::has_direct_io(directory.path()).unwrap() {
            eprintln!("no direct I/O here");
            return;
        }
        let limits = Limits::measure(directory.path(), Duration::from_millis(20), 8 << 20, &mut |_| ()).unwrap();
        assert!(limits.ping_pong.count() > 0 && limits.write_sync.count() > 0);
        assert!(limits.one_way.bytes > 0);
        for depths in [&limits.write_allocated, &limits.write_written, &limits.read] {
            assert_eq!(depths.0.iter().map(|(depth, _)| *depth).collect::<Vec<_>>(), DEPTHS);
            assert!(depths.best().1.rate() > 0.0);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "scratch files are removed");
    }

    #[test]
    fn a_directory_in_memory_is_refused() {
        if Path::new("/dev/shm").is_dir() {
            assert!(matches!(check_directory(Path::new("/dev/shm")), Err(BenchError::Host(_))));
        }
    }

    #[test]
    fn a_missing_directory_is_named() {
        let refusal = check_directory(Path::new("/nonexistent/directory")).unwrap_err();
        assert!(refusal.to_string().contains("/nonexistent/directory"), "{refusal}");
    }
}
