//! Space kept back for a full disk, and whether the disk is full: one for all shards of a broker.
//!
//! When no blocks are left, whatever would need new ones for records is refused, typed. What makes room again must not be: checkpoints (the journal comes back),
//! deletions and alterations of topics (the catalogue grows by a record), the files of an adopted batch that is journaled already. These give the
//! reserve up where they find no space. The disk counts as full until there is room for the reserve and for [`PROBE`] bytes more, which is tried every
//! second: so a broker recovers by itself, and producers don't eat what was freed for the reserve.
//!
//! Not here: blocks of journal files ([`ring`](super::ring) has them before they are needed) and of segments ([`segment_files`](super::segment_files)).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::limits::{BLOCK, RESERVE, RESERVE_PER_PARTITION};
use crate::log::file_header::{ReserveHeader, encode_header};
use crate::log::files::is_no_space;
use crate::log::paths;

/// Room that there must be besides the reserve before the disk counts as not full any more, bytes: more than any append that is no file of its own.
pub const PROBE: u64 = 16 << 20;

/// The reserve of a broker's data directory.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    base: u64,
    full: AtomicBool,
    /// Its size on disk, bytes; 0 while it is given up. Held while the file is changed.
    held: Mutex<u64>,
}

impl Reserve {
    /// Of a data directory whose lock is held. What a run before this one kept back is free from here on: an opening may need it.
    ///
    /// # Errors
    /// When the old file can't be removed.
    pub fn open(data: &Path, buffered: bool) -> io::Result<Reserve> {
        let path = data.join(paths::RESERVE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // What needs no direct I/O may be a file system in memory, which is small and dear.
        let base = if buffered { BLOCK as u64 } else { RESERVE };
        Ok(Reserve { path, base, full: AtomicBool::new(false), held: Mutex::new(0) })
    }

    /// Whether new blocks for records are refused.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// An allocation found no space; true if that is news.
    pub fn note_full(&self) -> bool {
        !self.full.swap(true, Ordering::Relaxed)
    }

    /// Frees the space, for something that must not fail; true if there was any. The disk counts as full then. Blocks.
    pub fn give_up(&self) -> bool {
        let mut held = self.held.lock().expect("nobody panics with it");
        self.note_full();
        if *held == 0 {
            return false;
        }
        tracing::warn!(bytes = *held, "the disk is full: the reserve is given up");
        *held = 0;
        fs::remove_file(&self.path).is_ok()
    }

    /// Whether [`Reserve::restore`] has nothing to do. Does not block.
    pub fn is_whole(&self, partitions: u64) -> bool {
        let wanted = self.base + partitions * RESERVE_PER_PARTITION;
        // Held by another thread: it is at work on it.
        !self.is_full() && self.held.try_lock().is_ok_and(|held| *held >= wanted)
    }

    /// Takes the reserve for so many partitions, if it is not taken, and finds out whether the disk is still full; true if it is not. Blocks.
    pub fn restore(&self, partitions: u64) -> bool {
        let mut held = self.held.lock().expect("nobody panics with it");
        let wanted = self.base + partitions * RESERVE_PER_PARTITION;
        if *held >= wanted && !self.is_full() {
            return true;
        }
        match self.take(*held, wanted) {
            Ok(()) => {
                *held = wanted;
                if self.full.swap(false, Ordering::Relaxed) {
                    tracing::info!("the disk has room again");
                }
                true
            }
            Err(error) if is_no_space(&error) && *held > 0 && !self.is_full() => {
                // It only could not grow with the number of partitions.
                true
            }
            Err(error) => {
                if self.note_full() {
                    tracing::error!(%error, "no room for the reserve: the disk counts as full, produce is refused");
                }
                false
            }
        }
    }

    /// Makes the file `wanted` bytes long, if there is room for it and for the probe; else it stays `held` bytes long.
    fn take(&self, held: u64, wanted: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
        let taken = self.fill(&file, wanted);
        if taken.is_err() {
            // What a failed allocation got of it goes back.
            match held {
                0 => fs::remove_file(&self.path)?,
                _ => file.set_len(held)?,
            }
        }
        taken
    }

    fn fill(&self, file: &File, wanted: u64) -> io::Result<()> {
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, wanted + PROBE)?;
        file.set_len(wanted)?;
        file.write_all_at(&encode_header(&ReserveHeader), 0)?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_given_up_and_taken_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(paths::RESERVE);
        fs::write(&path, b"of an earlier run").unwrap();
        let reserve = Reserve::open(directory.path(), true).unwrap();
        assert!(!path.exists() && !reserve.is_full());
        assert!(reserve.restore(3));
        let wanted = BLOCK as u64 + 3 * RESERVE_PER_PARTITION;
        assert_eq!(fs::metadata(&path).unwrap().len(), wanted);
        assert_eq!(fs::read(&path).unwrap()[..BLOCK], encode_header(&ReserveHeader)[..]);
        assert!(reserve.give_up() && reserve.is_full() && !path.exists());
        assert!(!reserve.give_up(), "there is nothing left of it");
        assert!(reserve.restore(4) && !reserve.is_full());
        assert_eq!(fs::metadata(&path).unwrap().len(), wanted + RESERVE_PER_PARTITION);
        assert!(reserve.note_full() && !reserve.note_full());
        assert!(reserve.restore(4) && !reserve.is_full(), "there is room");
    }

    /// A size that no disk has: the file stays as it is.
    #[test]
    fn what_can_not_be_had_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(paths::RESERVE);
        let reserve = Reserve::open(directory.path(), true).unwrap();
        let too_many = (1 << 46) / RESERVE_PER_PARTITION;
        assert!(!reserve.restore(too_many) && reserve.is_full() && !path.exists());
        assert!(reserve.restore(0) && !reserve.is_full());
        reserve.restore(too_many);
        assert_eq!(fs::metadata(&path).unwrap().len(), BLOCK as u64);
    }
}
