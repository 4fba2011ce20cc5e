//! `<data>/consensus`: files that are there whole or not at all, and small ones of two slots. All of it blocks.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::log_format::FormatError;
use crate::control::metadata::{FileStep, Witness};
use crate::limits::BLOCK;
use crate::log::files::is_no_space;

/// What is being made; a start removes it.
const UNFINISHED: &str = ".tmp";

/// Why the consensus can't be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A file can't be read or written.
    #[error("consensus file {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is damaged, or of another kind, version or node.
    #[error("consensus file {}: {source}", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// Why.
        source: FormatError,
    },
    /// The files don't fit each other.
    #[error("consensus directory {}: {what}", path.display())]
    Inconsistent {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// An earlier write or sync failed, so nobody knows what is on disk.
    #[error("the consensus files could not be written or synced; restart the broker")]
    Poisoned,
}

/// Room on the disk. The library takes a failed write for the end of the node, and a full disk is none: a write that finds no space waits for it. What waits is heard by nobody,
/// so others elect another leader, and the node's lease runs out; where there is room again it goes on as after a pause.
#[derive(Debug, Default)]
pub struct Space {
    is_waited_for: AtomicBool,
    /// How many wait: a snapshot may, while the log goes on in the blocks that it has.
    waiting: AtomicUsize,
}

impl Space {
    /// From now on what finds no space waits (a start that finds none fails), or no longer.
    pub fn set_waiting(&self, waits: bool) {
        self.is_waited_for.store(waits, Ordering::Relaxed);
    }

    /// Whether something waits.
    pub fn is_missing(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn wait_for<T>(&self, path: &Path, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut waits = false;
        loop {
            let outcome = work();
            if !outcome.as_ref().is_err_and(is_no_space) || !self.is_waited_for.load(Ordering::Relaxed) {
                if waits {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    tracing::warn!(path = %path.display(), "the wait for space is over");
                }
                return outcome;
            }
            if !waits {
                waits = true;
                self.waiting.fetch_add(1, Ordering::Relaxed);
                tracing::error!(path = %path.display(), "no space for the consensus: this node waits for some, and is counted as away");
            }
            std::thread::sleep(SPACE_PAUSE);
        }
    }
}

/// From one look for space to the next.
const SPACE_PAUSE: Duration = Duration::from_millis(100);
/// How much is kept for a file that grows, bytes: so what is decided while the disk is full can be kept.
const ROOM: u64 = 1 << 20;

/// The directory, with what hears of each step.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    witness: Witness,
    space: Arc<Space>,
}

/// An open file and its path.
#[derive(Debug)]
pub struct OpenFile {
    file: File,
    path: PathBuf,
    witness: Witness,
    space: Arc<Space>,
    /// Up to where it has blocks, bytes.
    kept: u64,
}

impl Directory {
    /// Opens it; makes it if it is not there, and removes what an earlier run left half made.
    pub fn open(path: &Path, witness: Witness) -> Result<Directory, StorageError> {
        let directory = Directory { path: path.into(), witness, space: Arc::default() };
        let failed = |source| StorageError::Io { path: path.into(), source };
        if !path.try_exists().map_err(failed)? {
            std::fs::create_dir_all(path).map_err(failed)?;
            let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(above).and_then(|above| above.sync_all()).map_err(failed)?;
        }
        for name in directory.names()? {
            if name.ends_with(UNFINISHED) {
                directory.remove(&name)?;
            }
        }
        Ok(directory)
    }

    /// Room for what is written in it.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// Where a file of this name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What is in it, sorted.
    pub fn names(&self) -> Result<Vec<String>, StorageError> {
        let read = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&self.path)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        };
        read().map_err(|source| StorageError::Io { path: self.path.clone(), source })
    }

    /// The whole of a file.
    pub fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, StorageError> {
        let path = self.path(name);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
        match read {
            Err(source) => Err(StorageError::Io { path, source }),
            Ok(length) if length as u64 > most => {
                Err(StorageError::Inconsistent { path, what: format!("it has more than {most} bytes, which is more than it can have") })
            }
            Ok(_) => Ok(bytes),
        }
    }

    /// Makes a file that is there whole with these bytes, durably, or not at all; one of this name is replaced. Open for writing.
    pub fn make(&self, name: &str, bytes: &[u8]) -> Result<OpenFile, StorageError> {
        let (temporary, path) = (self.path(&format!("{name}{UNFINISHED}")), self.path(name));
        let failed = |source| StorageError::Io { path: path.clone(), source };
        let create = || OpenOptions::new().write(true).create(true).truncate(true).open(&temporary);
        let file = self.space.wait_for(&temporary, create).map_err(failed)?;
        self.witness.tell(FileStep::Create(&temporary));
        let mut new = OpenFile { file, path: temporary, witness: self.witness.clone(), space: self.space.clone(), kept: 0 };
        new.write(0, bytes)?;
        new.sync()?;
        self.space.wait_for(&path, || std::fs::rename(&new.path, &path)).map_err(failed)?;
        self.witness.tell(FileStep::Rename(&new.path, &path));
        new.path = path;
        self.sync()?;
        Ok(new)
    }

    /// Opens a file for writing.
    pub fn open_file(&self, name: &str) -> Result<OpenFile, StorageError> {
        let path = self.path(name);
        match OpenOptions::new().write(true).open(&path) {
            Ok(file) => Ok(OpenFile { file, path, witness: self.witness.clone(), space: self.space.clone(), kept: 0 }),
            Err(source) => Err(StorageError::Io { path, source }),
        }
    }

    /// Removes a file durably: one that comes back after a crash may no longer fit the others.
    pub fn remove(&self, name: &str) -> Result<(), StorageError> {
        let path = self.path(name);
        std::fs::remove_file(&path).map_err(|source| StorageError::Io { path: path.clone(), source })?;
        self.witness.tell(FileStep::Remove(&path));
        self.sync()
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.witness.tell(FileStep::SyncDirStart(&self.path));
        File::open(&self.path).and_then(|d| d.sync_all()).map_err(|source| StorageError::Io { path: self.path.clone(), source })?;
        self.witness.tell(FileStep::SyncEnd);
        Ok(())
    }
}

impl OpenFile {
    /// Writes at a position; not durable before [`OpenFile::sync`].
    pub fn write(&mut self, position: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.witness.tell(FileStep::WriteStart { path: &self.path, position, bytes });
        // Nothing of it counts before it is synced, so it may be written again from its beginning.
        self.space.wait_for(&self.path, || self.file.write_all_at(bytes, position)).map_err(|source| self.failed(source))?;
        self.witness.tell(FileStep::WriteEnd);
        Ok(())
    }

    /// Gets blocks for what comes behind `end`, if the file system can and has some; without them a write finds out.
    pub fn keep_room(&mut self, end: u64) {
        if self.kept < end + ROOM / 2 {
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            if rustix::fs::fallocate(&self.file, flags, 0, end + ROOM).is_ok() {
                self.kept = end + ROOM;
            }
        }
    }

    /// Cuts the file.
    pub fn set_len(&mut self, length: u64) -> Result<(), StorageError> {
        self.witness.tell(FileStep::SetLen(&self.path, length));
        self.kept = self.kept.min(length);
        self.file.set_len(length).map_err(|source| self.failed(source))
    }

    /// Makes content and length durable.
    pub fn sync(&mut self) -> Result<(), StorageError> {
        self.witness.tell(FileStep::SyncStart(&self.path));
        self.file.sync_data().map_err(|source| self.failed(source))?;
        self.witness.tell(FileStep::SyncEnd);
        Ok(())
    }

    fn failed(&self, source: io::Error) -> StorageError {
        StorageError::Io { path: self.path.clone(), source }
    }
}

#[cfg(test)]
impl OpenFile {
    /// Every write fails from now on.
    pub(super) fn open_for_reading(&mut self) {
        self.file = File::open(&self.path).unwrap();
    }
}

/// A file of two slots of one block each, written in turn. The one that was synced last is never the one that is written, so one of them is whole at any moment.
#[derive(Debug)]
pub struct Slots {
    file: OpenFile,
    /// Which slot the last synced one is in.
    last: u64,
}

impl Slots {
    /// Makes the file with the same content in both slots.
    pub fn make(directory: &Directory, name: &str, block: &[u8; BLOCK]) -> Result<Slots, StorageError> {
        let file = directory.make(name, &[block.as_slice(), block.as_slice()].concat())?;
        Ok(Slots { file, last: 1 })
    }

    /// Opens the file; the slots' content is given to `newest`, which says which of them counts.
    pub fn open<T>(
        directory: &Directory,
        name: &str,
        newest: impl FnOnce([&[u8]; 2]) -> Result<(usize, T), FormatError>,
    ) -> Result<(Slots, T), StorageError> {
        let bytes = directory.read(name, 2 * BLOCK as u64)?;
        let (first, second) = bytes.split_at(bytes.len().min(BLOCK));
        let (last, value) = newest([first, second]).map_err(|source| StorageError::Format { path: directory.path(name), source })?;
        Ok((Slots { file: directory.open_file(name)?, last: last as u64 }, value))
    }

    /// Writes the next block durably, then the other slot with the same, unsynced: rot of one of them loses nothing then.
    pub fn write_durably(&mut self, block: &[u8; BLOCK]) -> Result<(), StorageError> {
        let (next, other) = (1 - self.last, self.last);
        self.file.write(next * BLOCK as u64, block)?;
        self.file.sync()?;
        self.last = next;
        self.file.write(other * BLOCK as u64, block)
    }

    /// Writes the next block and leaves it to the system when it gets to disk: for what may be lost.
    pub fn write_unsynced(&mut self, block: &[u8; BLOCK]) -> Result<(), StorageError> {
        self.last = 1 - self.last;
        self.file.write(self.last * BLOCK as u64, block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_space_waits_only_while_that_is_wanted() {
        let space = Space::default();
        let full = || -> io::Result<()> { Err(io::ErrorKind::StorageFull.into()) };
        assert!(space.wait_for(Path::new("f"), full).is_err(), "a start does not wait");
        space.set_waiting(true);
        let mut tries = 0;
        let outcome = space.wait_for(Path::new("f"), || {
            tries += 1;
            // Another file, of which the blocks are there, changes nothing for the one that waits.
            space.wait_for(Path::new("other"), || Ok(()))?;
            assert_eq!(space.is_missing(), tries > 1);
            if tries < 3 { full() } else { Ok(()) }
        });
        assert!(outcome.is_ok() && tries == 3 && !space.is_missing());
        let outcome = space.wait_for(Path::new("f"), || -> io::Result<()> { Err(io::ErrorKind::PermissionDenied.into()) });
        assert!(outcome.is_err(), "what is no want of space fails at once");
        let outcome = space.wait_for(Path::new("f"), || {
            space.set_waiting(!space.is_missing());
            full()
        });
        assert!(outcome.is_err() && !space.is_missing(), "a node that stops waits no longer");
    }
}
