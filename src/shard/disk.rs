//! The only door of a running shard to the disk: aligned direct I/O through the ring, directory operations, counters,
//! and a trace of everything in the order in which it happened (for tests of crashes).
//!
//! Runtime pitfalls that live here: the first file that an executor opens on a device decides whether glommio polls
//! that device, and the probe misjudges new files ([`Disk::prepare`] makes it decide against polling); unaligned reads
//! over-report at the end of a file, so there are only aligned ones.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use glommio::io::{BufferedFile, Directory, DmaBuffer, DmaFile, OpenOptions, ReadResult};

use crate::limits::BLOCK;
use crate::shard::trace::{Trace, TraceEvent};

/// Access to the data directory.
pub struct Disk {
    root: PathBuf,
    buffered: bool,
    trace: Option<Arc<Trace>>,
    /// Bytes handed to the device.
    pub written: Cell<u64>,
    /// Syncs of files and directories.
    pub syncs: Cell<u64>,
    /// Bytes read from the device.
    pub read: Cell<u64>,
}

impl Disk {
    /// Access below `root`; `buffered` goes through the page cache where the file system has no direct I/O.
    pub fn new(root: PathBuf, buffered: bool, trace: Option<Arc<Trace>>) -> Rc<Disk> {
        // The runtime opens directories relative to no directory at all, which is refused unless the path is absolute.
        let root = std::path::absolute(&root).unwrap_or(root);
        Rc::new(Disk { root, buffered, trace, written: Cell::new(0), syncs: Cell::new(0), read: Cell::new(0) })
    }

    /// Switches device polling off for this executor; to be called before any other file is opened.
    ///
    /// A write-only file makes the probe fail, which means "not pollable". Without it, a device whose first file was new is polled,
    /// and then every read of real data fails with EOPNOTSUPP (measured on ext4 over virtio).
    pub async fn prepare(&self, name: &str) -> io::Result<()> {
        if self.buffered {
            return Ok(());
        }
        let path = self.root.join(name);
        let probe = DmaFile::create(&path).await?;
        self.note(|| TraceEvent::Create { path: name.into() });
        probe.close().await?;
        std::fs::remove_file(&path)?;
        self.note(|| TraceEvent::Unlink { path: name.into() });
        Ok(())
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The trace, if one is kept.
    pub fn trace(&self) -> Option<&Arc<Trace>> {
        self.trace.as_ref()
    }

    fn note(&self, event: impl FnOnce() -> TraceEvent) {
        if let Some(trace) = &self.trace {
            trace.record(&event());
        }
    }

    /// Creates a file for writing and reading; it must not exist.
    pub async fn create(self: &Rc<Disk>, path: &str) -> io::Result<DataFile> {
        let file = self.open_with(path, true).await?;
        self.note(|| TraceEvent::Create { path: path.into() });
        Ok(file)
    }

    /// Opens an existing file for writing and reading.
    pub async fn open(self: &Rc<Disk>, path: &str) -> io::Result<DataFile> {
        self.open_with(path, false).await
    }

    /// Opens an existing file so that a write is durable when it ends ([`DataFile::write_through`]). None where files go through the page cache.
    pub async fn open_through(self: &Rc<Disk>, path: &str) -> io::Result<Option<DataFile>> {
        match self.buffered {
            true => Ok(None),
            false => self.open_flagged(path, false, libc::O_DSYNC).await.map(Some),
        }
    }

    async fn open_with(self: &Rc<Disk>, path: &str, create_new: bool) -> io::Result<DataFile> {
        self.open_flagged(path, create_new, 0).await
    }

    async fn open_flagged(self: &Rc<Disk>, path: &str, create_new: bool, flags: libc::c_int) -> io::Result<DataFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(create_new).custom_flags(flags);
        let full = self.root.join(path);
        let file = match self.buffered {
            false => Handle::Direct(options.dma_open(&full).await?),
            true => Handle::Buffered(options.buffered_open(&full).await?),
        };
        hold(match &file {
            Handle::Direct(file) => file.as_raw_fd(),
            Handle::Buffered(file) => file.as_raw_fd(),
        })?;
        Ok(DataFile { file, path: path.into(), disk: self.clone() })
    }

    /// Creates a directory; its parent is to be synced by the caller.
    pub async fn create_dir(&self, path: &str) -> io::Result<()> {
        match Directory::create(self.root.join(path)).await {
            Ok(directory) => directory.close().await?,
            Err(error) => {
                let error = io::Error::from(error);
                if error.kind() != io::ErrorKind::AlreadyExists {
                    return Err(error);
                }
            }
        }
        self.note(|| TraceEvent::CreateDir { path: path.into() });
        Ok(())
    }

    /// Makes the names in a directory durable.
    pub async fn sync_dir(&self, path: &str) -> io::Result<()> {
        let id = self.trace.as_ref().map_or(0, |t| t.next_id());
        self.note(|| TraceEvent::SyncDirStart { id, path: path.into() });
        let directory = Directory::open(self.root.join(path)).await?;
        directory.sync().await?;
        directory.close().await?;
        self.syncs.set(self.syncs.get() + 1);
        self.note(|| TraceEvent::SyncEnd { id });
        Ok(())
    }

    /// Renames a file within the data directory.
    pub async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (source, target) = (self.root.join(from), self.root.join(to));
        glommio::executor().spawn_blocking(move || std::fs::rename(source, target)).await?;
        self.note(|| TraceEvent::Rename { from: from.into(), to: to.into() });
        Ok(())
    }

    /// Removes a file; one that is gone is no error.
    pub async fn remove(&self, path: &str) -> io::Result<()> {
        let full = self.root.join(path);
        let removed = glommio::executor().spawn_blocking(move || std::fs::remove_file(full)).await;
        ignore_missing(removed)?;
        self.note(|| TraceEvent::Unlink { path: path.into() });
        Ok(())
    }

    /// Removes an empty directory; one that is gone is no error.
    pub async fn remove_dir(&self, path: &str) -> io::Result<()> {
        let full = self.root.join(path);
        let removed = glommio::executor().spawn_blocking(move || std::fs::remove_dir(full)).await;
        ignore_missing(removed)?;
        self.note(|| TraceEvent::Unlink { path: path.into() });
        Ok(())
    }

    /// Names in a directory; none if it does not exist.
    pub async fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let full = self.root.join(path);
        glommio::executor()
            .spawn_blocking(move || match std::fs::read_dir(full) {
                Ok(entries) => entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
                Err(e) => Err(e),
            })
            .await
    }
}

/// Takes a shared lock that lives as long as the open file, requests in flight included: the next start waits for it.
#[allow(unsafe_code)]
fn hold(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: flock only takes a descriptor, which the caller's file keeps open during the call.
    match unsafe { libc::flock(descriptor, libc::LOCK_SH | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

enum Handle {
    Direct(DmaFile),
    Buffered(BufferedFile),
}

/// An open file.
pub struct DataFile {
    file: Handle,
    path: Rc<str>,
    disk: Rc<Disk>,
}

impl DataFile {
    /// Its path below the data directory.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The disk it is on.
    pub fn disk(&self) -> &Rc<Disk> {
        &self.disk
    }

    /// Writes the whole buffer at a block boundary. A short write is an error.
    pub async fn write(&self, buffer: Rc<DmaBuffer>, position: u64) -> io::Result<()> {
        let len = buffer.len();
        assert!(position.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK), "aligned write of {len} at {position}");
        let id = self.disk.trace.as_ref().map_or(0, |t| t.next_id());
        self.disk.note(|| TraceEvent::WriteStart { id, path: self.path.to_string(), position, bytes: buffer.as_bytes().to_vec() });
        let written = match &self.file {
            Handle::Direct(file) => file.write_rc_at(buffer, position).await?,
            Handle::Buffered(file) => file.write_at(buffer.as_bytes().to_vec(), position).await?,
        };
        if written != len {
            return Err(io::Error::new(io::ErrorKind::WriteZero, format!("wrote {written} of {len} bytes to {} at {position}", self.path)));
        }
        self.disk.written.set(self.disk.written.get() + len as u64);
        self.disk.note(|| TraceEvent::WriteEnd { id });
        Ok(())
    }

    /// As [`DataFile::write`] of a file from [`Disk::open_through`]: what was written is durable then, and nothing else.
    pub async fn write_through(&self, buffer: Rc<DmaBuffer>, position: u64) -> io::Result<()> {
        self.write(buffer, position).await?;
        // In the trace it is a write and a sync; nothing else of the file can be unsynced here.
        let id = self.disk.trace.as_ref().map_or(0, |t| t.next_id());
        self.disk.note(|| TraceEvent::SyncStart { id, path: self.path.to_string() });
        self.disk.syncs.set(self.disk.syncs.get() + 1);
        self.disk.note(|| TraceEvent::SyncEnd { id });
        Ok(())
    }

    /// Reads `len` bytes at a block boundary; fewer at the end of the file.
    pub async fn read(&self, position: u64, len: usize) -> io::Result<ReadResult> {
        assert!(position.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK), "aligned read of {len} at {position}");
        let result = match &self.file {
            Handle::Direct(file) => file.read_at_aligned(position, len).await?,
            Handle::Buffered(file) => file.read_at(position, len).await?,
        };
        self.disk.read.set(self.disk.read.get() + result.len() as u64);
        Ok(result)
    }

    /// Makes this file's data durable, and its size. Not its name.
    pub async fn sync(&self) -> io::Result<()> {
        let id = self.disk.trace.as_ref().map_or(0, |t| t.next_id());
        self.disk.note(|| TraceEvent::SyncStart { id, path: self.path.to_string() });
        match &self.file {
            Handle::Direct(file) => file.fdatasync().await?,
            Handle::Buffered(file) => file.fdatasync().await?,
        }
        self.disk.syncs.set(self.disk.syncs.get() + 1);
        self.disk.note(|| TraceEvent::SyncEnd { id });
        Ok(())
    }

    /// Makes blocks exist for the first `size` bytes and the file at least that long.
    pub async fn allocate(&self, size: u64) -> io::Result<()> {
        match &self.file {
            Handle::Direct(file) => file.pre_allocate(size, false).await?,
            Handle::Buffered(file) => file.pre_allocate(size, false).await?,
        }
        self.disk.note(|| TraceEvent::Allocate { path: self.path.to_string(), size });
        Ok(())
    }

    /// Makes blocks exist for the first `size` bytes; the file stays as long as it is.
    pub async fn reserve(&self, size: u64) -> io::Result<()> {
        match &self.file {
            Handle::Direct(file) => file.pre_allocate(size, true).await?,
            Handle::Buffered(file) => file.pre_allocate(size, true).await?,
        }
        Ok(())
    }

    /// Cuts or extends the file to `size` bytes.
    pub async fn set_len(&self, size: u64) -> io::Result<()> {
        match &self.file {
            Handle::Direct(file) => file.truncate(size).await?,
            Handle::Buffered(file) => file.truncate(size).await?,
        }
        self.disk.note(|| TraceEvent::SetLen { path: self.path.to_string(), size });
        Ok(())
    }

    /// Bytes of the file.
    pub async fn len(&self) -> io::Result<u64> {
        match &self.file {
            Handle::Direct(file) => Ok(file.file_size().await?),
            Handle::Buffered(file) => Ok(file.file_size().await?),
        }
    }

    /// Closes the file without blocking the executor.
    pub async fn close(self) -> io::Result<()> {
        match self.file {
            Handle::Direct(file) => Ok(file.close().await?),
            Handle::Buffered(file) => Ok(file.close().await?),
        }
    }
}
