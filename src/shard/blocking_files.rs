//! The file system below recovery and inspection: blocking, whole-store, direct I/O. Used before the executors start, and by `inspect`.
//!
//! Not here: what a running shard reads and writes ([`disk`](super::disk)).

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::limits::BLOCK;
use crate::log::files::{BlockBuffer, DirEntry, FileError, ReadFiles, StoreFiles};
use crate::shard::trace::{Trace, TraceEvent};

/// Files that are kept open between two operations.
const OPEN_FILES: usize = 64;
/// Longest wait for requests that a killed broker left in flight.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
/// Files that are synced at the same time.
const SYNC_THREADS: usize = 16;

/// A store's directory.
pub struct BlockingFiles {
    root: PathBuf,
    direct: bool,
    writable: bool,
    open: HashMap<String, File>,
    trace: Option<Arc<Trace>>,
}

impl BlockingFiles {
    /// For recovery. `direct`: without the page cache; false only where the file system has no direct I/O.
    pub fn new(root: impl Into<PathBuf>, direct: bool) -> BlockingFiles {
        BlockingFiles { root: root.into(), direct, writable: true, open: HashMap::new(), trace: None }
    }

    /// For inspection: opens nothing for writing.
    pub fn read_only(root: impl Into<PathBuf>, direct: bool) -> BlockingFiles {
        BlockingFiles { writable: false, ..BlockingFiles::new(root, direct) }
    }

    /// As [`BlockingFiles::new`], recording what is done.
    pub fn traced(root: impl Into<PathBuf>, direct: bool, trace: Option<Arc<Trace>>) -> BlockingFiles {
        BlockingFiles { trace, ..BlockingFiles::new(root, direct) }
    }

    /// Whether a file can be read without the page cache.
    pub fn is_direct(file: &Path) -> bool {
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(file).is_ok()
    }

    fn record(&self, event: impl FnOnce() -> TraceEvent) {
        if let Some(trace) = &self.trace {
            trace.record(&event());
        }
    }

    /// Records start and end of a sync around it.
    fn recorded<T>(&self, start: impl FnOnce(u64) -> TraceEvent, sync: impl FnOnce() -> T) -> T {
        let Some(trace) = &self.trace else { return sync() };
        let id = trace.next_id();
        trace.record(&start(id));
        let done = sync();
        trace.record(&TraceEvent::SyncEnd { id });
        done
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn open(&mut self, path: &str, create: bool) -> io::Result<&File> {
        if !self.open.contains_key(path) {
            if self.open.len() >= OPEN_FILES {
                self.open.clear();
            }
            let file = self.open_new(&self.path(path), create)?;
            self.open.insert(path.to_string(), file);
        }
        Ok(&self.open[path])
    }

    fn open_new(&self, path: &Path, create: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(self.writable).create(create && self.writable);
        if self.direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let file = options.open(path)?;
        if self.writable {
            wait_until_released(&file)?;
        }
        Ok(file)
    }

    /// A name changed: what is open under it is not it any more.
    fn forget(&mut self, path: &str) {
        let below = format!("{path}/");
        self.open.retain(|open, _| open != path && !open.starts_with(&below));
    }
}

/// Waits until no request of a broker that was killed is in flight on the file: each holds the description that the broker locked (`Disk` does), and the kernel
/// may take an io_uring apart a moment after its process is gone. A write that lands after recovery read the file would undo what recovery decided.
fn wait_until_released(file: &File) -> io::Result<()> {
    let first = Instant::now();
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(rustix::fs::flock(file, FlockOperation::Unlock)?),
            Err(Errno::WOULDBLOCK) if first.elapsed() < RELEASE_PATIENCE => thread::sleep(Duration::from_millis(1)),
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "requests of another broker are in flight on it"));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn error<T>(operation: &'static str, path: &str, result: io::Result<T>) -> Result<T, FileError> {
    result.map_err(|source| FileError { operation, path: path.into(), source })
}

fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().align_offset(BLOCK) == 0 && bytes.len().is_multiple_of(BLOCK)
}

impl ReadFiles for BlockingFiles {
    fn list(&mut self, dir: &str) -> Result<Vec<DirEntry>, FileError> {
        let list = |path: PathBuf| -> io::Result<Vec<DirEntry>> {
            fs::read_dir(path)?
                .map(|entry| {
                    let entry = entry?;
                    Ok(DirEntry { name: entry.file_name().to_string_lossy().into_owned(), is_dir: entry.file_type()?.is_dir() })
                })
                .collect()
        };
        error("list", dir, list(self.path(dir)))
    }

    fn len(&mut self, path: &str) -> Result<u64, FileError> {
        error("stat", path, fs::metadata(self.path(path)).map(|metadata| metadata.len()))
    }

    fn read(&mut self, path: &str, offset: u64, into: &mut [u8]) -> Result<usize, FileError> {
        let direct = self.direct;
        let file = error("open", path, self.open(path, false))?;
        if !direct || is_aligned(into) {
            return error("read", path, read_full(file, offset, into));
        }
        let mut aligned = BlockBuffer::zeroed(into.len().next_multiple_of(BLOCK));
        let read = error("read", path, read_full(file, offset, &mut aligned))?.min(into.len());
        into[..read].copy_from_slice(&aligned[..read]);
        Ok(read)
    }
}

/// Reads until `into` is full or the file ends.
fn read_full(file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < into.len() {
        match file.read_at(&mut into[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        // The end of a file that is no whole number of blocks long: direct I/O can't go on from here, and there is nothing left.
        if !read.is_multiple_of(BLOCK) {
            break;
        }
    }
    Ok(read)
}

impl StoreFiles for BlockingFiles {
    fn write(&mut self, path: &str, offset: u64, blocks: &[u8]) -> Result<(), FileError> {
        assert!(offset.is_multiple_of(BLOCK as u64) && blocks.len().is_multiple_of(BLOCK), "{path}: {} bytes at {offset}", blocks.len());
        let direct = self.direct;
        let id = self.trace.as_ref().map_or(0, |trace| trace.next_id());
        self.record(|| TraceEvent::WriteStart { id, path: path.into(), position: offset, bytes: blocks.to_vec() });
        let file = error("open", path, self.open(path, true))?;
        if !direct || is_aligned(blocks) {
            error("write", path, file.write_all_at(blocks, offset))?;
        } else {
            let mut aligned = BlockBuffer::zeroed(blocks.len());
            aligned.copy_from_slice(blocks);
            error("write", path, file.write_all_at(&aligned, offset))?;
        }
        self.record(|| TraceEvent::WriteEnd { id });
        Ok(())
    }

    fn set_len(&mut self, path: &str, len: u64) -> Result<(), FileError> {
        self.record(|| TraceEvent::SetLen { path: path.into(), size: len });
        error("truncate", path, self.open(path, true).and_then(|file| file.set_len(len)))
    }

    fn sync(&mut self, path: &str) -> Result<(), FileError> {
        let file = error("open", path, self.open(path, false).and_then(File::try_clone))?;
        let start = |id| TraceEvent::SyncStart { id, path: path.into() };
        error("sync", path, self.recorded(start, || file.sync_all()))
    }

    fn sync_dir(&mut self, dir: &str) -> Result<(), FileError> {
        let start = |id| TraceEvent::SyncDirStart { id, path: dir.into() };
        error("sync", dir, self.recorded(start, || File::open(self.path(dir)).and_then(|dir| dir.sync_all())))
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), FileError> {
        self.forget(from);
        self.forget(to);
        self.record(|| TraceEvent::Rename { from: from.into(), to: to.into() });
        error("rename", from, fs::rename(self.path(from), self.path(to)))
    }

    fn unlink(&mut self, path: &str) -> Result<(), FileError> {
        self.forget(path);
        self.record(|| TraceEvent::Unlink { path: path.into() });
        error("unlink", path, fs::remove_file(self.path(path)))
    }

    fn create_dir(&mut self, dir: &str) -> Result<(), FileError> {
        match fs::create_dir(self.path(dir)) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => {
                self.record(|| TraceEvent::CreateDir { path: dir.into() });
                error("create", dir, result)
            }
        }
    }

    fn remove_dir(&mut self, dir: &str) -> Result<(), FileError> {
        self.forget(dir);
        self.record(|| TraceEvent::Unlink { path: dir.into() });
        error("remove", dir, fs::remove_dir(self.path(dir)))
    }

    /// A sync is mostly waiting for the device, and many at once wait together.
    fn sync_all(&mut self, paths: &[String]) -> Result<(), FileError> {
        let this = &*self;
        let sync = |paths: &[String]| -> Result<(), FileError> {
            paths.iter().try_for_each(|path| {
                let file = error("open", path, this.open_new(&this.path(path), false))?;
                let start = |id| TraceEvent::SyncStart { id, path: path.clone() };
                error("sync", path, this.recorded(start, || file.sync_all()))
            })
        };
        let share = paths.len().div_ceil(SYNC_THREADS).max(1);
        thread::scope(|scope| {
            let threads: Vec<_> = paths.chunks(share).map(|paths| scope.spawn(move || sync(paths))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("a sync does not panic"))
        })
    }
}
