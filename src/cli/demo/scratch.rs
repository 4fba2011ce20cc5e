//! A place for the demo's broker: a directory on a real disk, and ports that stay the same over its restart.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use crate::cli::exit::{Exit, Failure};

/// File systems in memory, by `f_type`: what is synced there is not on a disk.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
/// Free space that a place must have, bytes: the records of a full run and the broker's reserve.
const NEEDED_SPACE: u64 = 4 << 30;

/// A directory that is gone when this is.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Whether it is on a disk.
    pub is_on_disk: bool,
}

impl Scratch {
    /// Below the first of the system's directory for temporary files, the current directory and `/var/tmp` that is on a disk with room;
    /// where none is, below the first that can be written to.
    ///
    /// # Errors
    /// None can be written to.
    pub fn create() -> Result<Scratch, Failure> {
        let mut places = vec![std::env::temp_dir(), PathBuf::from("."), PathBuf::from("/var/tmp")];
        places.sort_by_key(|place| !is_suitable(place));
        let mut failures = Vec::new();
        for place in places {
            let path = std::path::absolute(place.join(format!("corelane-demo-{}", std::process::id()))).unwrap_or_else(|_| place.clone());
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Scratch { is_on_disk: !is_in_memory(&path), path }),
                Err(error) => failures.push(format!("{}: {error}", path.display())),
            }
        }
        Err(Failure::new(Exit::Host, format!("no directory for the broker's data can be made: {}", failures.join("; "))))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn is_suitable(place: &Path) -> bool {
    let has_space = rustix::fs::statvfs(place).is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) >= NEEDED_SPACE);
    has_space && !is_in_memory(place)
}

fn is_in_memory(place: &Path) -> bool {
    rustix::fs::statfs(place).is_ok_and(|s| IN_MEMORY.contains(&(s.f_type as u64)))
}

/// Below the ports that Linux gives to outgoing connections: a client that connects while the broker is down could otherwise be given
/// just this port, and the broker would not get it back.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// The first of `count` ports in a row on which nobody listens, as HOST:PORT.
///
/// # Errors
/// There are none.
pub fn free_ports(count: u32) -> Result<String, Failure> {
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    let room = PORTS.end - PORTS.start;
    // Two demos at once begin at different places.
    let begin = (std::process::id() % u32::from(room)) as u16;
    let bases = (0..room).step_by(usize::from(count.max(1))).map(|step| PORTS.start + (begin + step) % room);
    let is_free = |base: &u16| {
        let last = base.checked_add(count).filter(|last| *last <= PORTS.end);
        last.is_some_and(|last| (*base..last).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()))
    };
    let base = bases.into_iter().find(is_free);
    base.map(|port| format!("127.0.0.1:{port}"))
        .ok_or_else(|| Failure::new(Exit::Host, format!("no {count} free ports in a row between {} and {}", PORTS.start, PORTS.end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_ports_are_not_free() {
        let first = free_ports(2).unwrap();
        let _taken = TcpListener::bind(&first).unwrap();
        assert_ne!(free_ports(2).unwrap(), first);
    }
}
