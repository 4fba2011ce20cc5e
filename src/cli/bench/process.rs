//! What a process has used, read from /proc: CPU, memory, bytes at the device.

use std::fs;
use std::io;

use serde_json::{Value, json};

/// Use of a process up to a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time of all its threads, seconds.
    pub cpu_seconds: f64,
    /// Largest resident memory so far, bytes.
    pub peak_rss: u64,
    /// Resident memory now, bytes.
    pub rss: u64,
    /// Bytes that it made the device write; 0 where the kernel does not count them.
    pub device_written: u64,
}

impl Usage {
    /// Of a process that runs.
    pub fn of(pid: u32) -> io::Result<Usage> {
        Ok(Usage {
            cpu_seconds: cpu_seconds(pid)?,
            peak_rss: status_kilobytes(pid, "VmHWM:")? * 1024,
            rss: status_kilobytes(pid, "VmRSS:")? * 1024,
            device_written: fs::read_to_string(format!("/proc/{pid}/io")).ok().and_then(|io| field(&io, "write_bytes:")).unwrap_or(0),
        })
    }

    /// Of this process.
    pub fn own() -> io::Result<Usage> {
        Usage::of(std::process::id())
    }

    /// What was used since `earlier`; memory as it is now.
    pub fn since(self, earlier: Usage) -> Usage {
        Usage {
            cpu_seconds: self.cpu_seconds - earlier.cpu_seconds,
            device_written: self.device_written.saturating_sub(earlier.device_written),
            ..self
        }
    }

    /// The fields with their units.
    pub fn to_json(self) -> Value {
        json!({
            "cpu_seconds": self.cpu_seconds, "peak_rss_bytes": self.peak_rss, "rss_bytes": self.rss,
            "device_written_bytes": self.device_written,
        })
    }
}

/// To the nanosecond where the scheduler's own figures are readable (living threads only), else in clock ticks.
fn cpu_seconds(pid: u32) -> io::Result<f64> {
    let ticks = tick_seconds(pid)?;
    let scheduled = living_threads_seconds(pid).unwrap_or(0.0);
    // Threads that have ended count in the ticks only, so the larger one is nearer to the truth.
    Ok(ticks.max(scheduled))
}

fn tick_seconds(pid: u32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let malformed = || io::Error::other(format!("/proc/{pid}/stat is malformed"));
    // The name, in parentheses, may hold spaces; user and system time are the 12th and 13th fields behind it.
    let (_, fields) = stat.rsplit_once(')').ok_or_else(malformed)?;
    let mut times = fields.split_whitespace().skip(11).map(|time| time.parse::<u64>().map_err(|_| malformed()));
    let user = times.next().ok_or_else(malformed)??;
    let system = times.next().ok_or_else(malformed)??;
    Ok((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn living_threads_seconds(pid: u32) -> io::Result<f64> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while its directory is read.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanoseconds as f64 / 1e9)
}

fn status_kilobytes(pid: u32, name: &str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    field(&status, name).ok_or_else(|| io::Error::other(format!("/proc/{pid}/status has no {name}")))
}

/// The number behind `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_use_rises() {
        let before = Usage::own().unwrap();
        assert!(before.rss > 0);
        let mut sum = 0_u64;
        let mut used = before;
        while used.cpu_seconds - before.cpu_seconds < 0.02 {
            sum = (0..1_000_000).fold(sum, |a, b| a.rotate_left(7) ^ b);
            used = Usage::own().unwrap();
        }
        assert!(used.since(before).cpu_seconds > 0.0, "{sum}");
        // The kernel gives both one after the other, and other threads go on meanwhile: of one moment the peak may be the smaller one.
        assert!(used.peak_rss >= before.rss);
    }

    #[test]
    fn fields_are_found_by_name() {
        assert_eq!(field("rchar: 5\nwrite_bytes: 4096\n", "write_bytes:"), Some(4096));
        assert_eq!(field("rchar: 5\n", "write_bytes:"), None);
    }
}
