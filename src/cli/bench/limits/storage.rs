//! Direct I/O from plain threads: sequential writes and reads of 1 MiB blocks, and single blocks with a sync each.
//!
//! `depth` threads take the next block of one file in turn, so that many requests are at the device at once and the file is still
//! written and read in order.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::network::joined;
use super::{Latencies, Throughput};
use crate::limits::BLOCK;
use crate::server::host::memory_file_system;

/// Bytes of one sequential write or read.
pub const SEQUENTIAL_BYTES: usize = 1024 * 1024;
/// Bytes of the file that single blocks are written to with a sync each; it wraps.
pub const SYNCED_FILE_BYTES: u64 = 32 * 1024 * 1024;
/// Requests at the device at once; the best of them is the limit.
pub const DEPTHS: [usize; 3] = [1, 4, 16];

/// What the blocks of a file were before they are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileState {
    /// Space reserved, never written: how the broker's segments grow.
    Allocated,
    /// Written and synced before: how the broker's journal is recycled.
    Written,
}

impl FileState {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            FileState::Allocated => "allocated, never written",
            FileState::Written => "written before",
        }
    }
}

/// A file that is gone when this is.
pub struct ScratchFile {
    path: PathBuf,
}

impl ScratchFile {
    /// A name in `directory` for this process and purpose; nothing is created yet.
    pub fn new(directory: &Path, purpose: &str) -> ScratchFile {
        ScratchFile { path: directory.join(format!(".corelane-limits-{}-{purpose}", std::process::id())) }
    }

    /// Reserves `bytes` of space without writing them.
    pub fn allocate(&self, bytes: u64) -> io::Result<()> {
        let file = File::create(&self.path)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
        file.sync_all()
    }

    fn open_direct(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT).open(&self.path)
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether files of this directory can be opened for direct I/O, and are on a device.
pub fn has_direct_io(directory: &Path) -> io::Result<bool> {
    if memory_file_system(directory).is_some() {
        return Ok(false);
    }
    let probe = ScratchFile::new(directory, "probe");
    match probe.open_direct() {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Writes the file from its start, at most `bytes` of it and for at most `duration`, in order, `depth` blocks at once.
///
/// No sync: it is what the device takes. Returns what was written.
pub fn sequential_write(file: &ScratchFile, bytes: u64, duration: Duration, depth: usize) -> io::Result<Throughput> {
    in_order(file, bytes, duration, depth, |file, buffer, position| file.write_all_at(buffer, position))
}

/// Reads the file from its start, as [`sequential_write`] writes it.
pub fn sequential_read(file: &ScratchFile, bytes: u64, duration: Duration, depth: usize) -> io::Result<Throughput> {
    in_order(file, bytes, duration, depth, |file, buffer, position| file.read_exact_at(buffer, position))
}

/// Each block once, in order.
fn in_order(
    scratch: &ScratchFile,
    bytes: u64,
    duration: Duration,
    depth: usize,
    transfer: impl Fn(&File, &mut [u8], u64) -> io::Result<()> + Sync,
) -> io::Result<Throughput> {
    let file = scratch.open_direct()?;
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    let worker = || {
        let mut memory = AlignedBuffer::new(SEQUENTIAL_BYTES);
        while started.elapsed() < duration {
            let position = next.fetch_add(1, Relaxed) * SEQUENTIAL_BYTES as u64;
            if position + SEQUENTIAL_BYTES as u64 > bytes {
                break;
            }
            transfer(&file, memory.bytes(), position)?;
            done.fetch_add(SEQUENTIAL_BYTES as u64, Relaxed);
        }
        io::Result::Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..depth).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(joined)
    })?;
    Ok(Throughput { bytes: done.into_inner(), seconds: started.elapsed().as_secs_f64() })
}

/// One block and a sync of it, one at a time, into a file that was written before.
pub fn write_and_sync(directory: &Path, duration: Duration) -> io::Result<Latencies> {
    let scratch = ScratchFile::new(directory, "sync");
    sequential_write(&scratch, SYNCED_FILE_BYTES, Duration::MAX, 1)?;
    let file = scratch.open_direct()?;
    file.sync_all()?;
    let mut memory = AlignedBuffer::new(BLOCK);
    let mut latencies = Latencies::new();
    let started = Instant::now();
    let mut position = 0;
    while started.elapsed() < duration {
        let begun = Instant::now();
        file.write_all_at(memory.bytes(), position)?;
        file.sync_data()?;
        latencies.record(begun.elapsed());
        position = (position + BLOCK as u64) % SYNCED_FILE_BYTES;
    }
    Ok(latencies)
}

/// Memory whose first byte is where direct I/O wants it, full of bytes that don't compress.
struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    fn new(len: usize) -> AlignedBuffer {
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        let memory: Vec<u8> = std::iter::repeat_with(|| {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (word >> 56) as u8
        })
        .take(len + BLOCK)
        .collect();
        let start = memory.as_ptr().align_offset(BLOCK);
        AlignedBuffer { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
