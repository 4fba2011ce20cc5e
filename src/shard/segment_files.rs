//! A segment's two files, open for writing: the log and its index.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use crate::limits::BLOCK;
use crate::log::files::is_no_space;
use crate::log::index::{INDEX_ENTRY_LEN, Index, entry_position};
use crate::log::paths;
use crate::log::segment::{FIRST_POSITION, SegmentInfo};
use crate::shard::disk::{DataFile, Disk};
use crate::shard::ring::filled;
use crate::shard::shared_sync::SharedSync;
use crate::types::TopicPartition;

/// First allocation of a segment, bytes; doubled up to [`MAX_ALLOCATION`] each time.
const MIN_ALLOCATION: u64 = 64 * 1024;
/// Largest step of allocation, bytes.
const MAX_ALLOCATION: u64 = 64 * 1024 * 1024;
/// Step of allocation of an index, bytes.
const INDEX_ALLOCATION: u64 = 64 * 1024;

/// Open files of one segment.
pub struct SegmentFiles {
    /// Batches.
    pub log: DataFile,
    /// Index entries.
    pub index: DataFile,
    allocated: Cell<u64>,
    index_allocated: Cell<u64>,
    index_written: Cell<usize>,
    /// Its names are durable.
    named: Cell<bool>,
    log_sync: SharedSync,
    partition: TopicPartition,
}

impl SegmentFiles {
    /// Creates both files with their headers and first blocks. Their names are durable after the first [`SegmentFiles::sync`].
    pub async fn create(disk: &Rc<Disk>, partition: TopicPartition, info: &SegmentInfo) -> io::Result<SegmentFiles> {
        let (log_path, index_path) = (info.path(partition), info.index_path(partition));
        // What an earlier attempt left (the disk was full, say) holds nothing that counts: no entry names this segment yet.
        disk.remove(&log_path).await?;
        disk.remove(&index_path).await?;
        let created = SegmentFiles::create_anew(disk, partition, info, (&log_path, &index_path)).await;
        if created.is_err() {
            // Blocks that they got before there were no more are not to be held.
            for path in [&log_path, &index_path] {
                let _ = disk.remove(path).await;
            }
        }
        created
    }

    async fn create_anew(
        disk: &Rc<Disk>,
        partition: TopicPartition,
        info: &SegmentInfo,
        (log_path, index_path): (&str, &str),
    ) -> io::Result<SegmentFiles> {
        let log = disk.create(log_path).await?;
        let index = disk.create(index_path).await?;
        let files = SegmentFiles {
            log,
            index,
            allocated: Cell::new(0),
            index_allocated: Cell::new(0),
            index_written: Cell::new(0),
            named: Cell::new(false),
            log_sync: SharedSync::default(),
            partition,
        };
        files.allocate(FIRST_POSITION + 1).await?;
        files.log.write(filled(&info.header_block(partition)), 0).await?;
        files.index.write(filled(&info.index_header_block(partition)), 0).await?;
        Ok(files)
    }

    /// Opens the files of a segment that goes on after a restart, and its index.
    pub async fn open(disk: &Rc<Disk>, partition: TopicPartition, info: &SegmentInfo) -> io::Result<(SegmentFiles, Index)> {
        let log = disk.open(&info.path(partition)).await?;
        let file = disk.open(&info.index_path(partition)).await?;
        let index = read_index(&file, info).await?;
        let files = SegmentFiles {
            allocated: Cell::new(log.len().await? / BLOCK as u64 * BLOCK as u64),
            index_allocated: Cell::new(file.len().await? / BLOCK as u64 * BLOCK as u64),
            index_written: Cell::new(index.len()),
            named: Cell::new(true),
            log_sync: SharedSync::default(),
            log,
            index: file,
            partition,
        };
        Ok((files, index))
    }

    /// Whether blocks exist for the log up to `end`, and for its index.
    pub fn has_room(&self, end: u64) -> bool {
        end <= self.allocated.get() && index_bytes(end) <= self.index_allocated.get()
    }

    /// Makes blocks for the log up to `end` and more, and for its index.
    pub async fn allocate(&self, end: u64) -> io::Result<()> {
        if end > self.allocated.get() {
            let step = self.allocated.get().clamp(MIN_ALLOCATION, MAX_ALLOCATION);
            let (size, least) = (end.next_multiple_of(step), end.next_multiple_of(MIN_ALLOCATION));
            let got = match allocate_or_undo(&self.log, self.allocated.get(), size).await {
                Err(error) if is_no_space(&error) && least < size => {
                    allocate_or_undo(&self.log, self.allocated.get(), least).await.map(|()| least)
                }
                done => done.map(|()| size),
            };
            self.allocated.set(got?);
        }
        if index_bytes(end) > self.index_allocated.get() {
            let size = index_bytes(end).next_multiple_of(INDEX_ALLOCATION);
            allocate_or_undo(&self.index, self.index_allocated.get(), size).await?;
            self.index_allocated.set(size);
        }
        Ok(())
    }

    /// Writes the index entries of batches before `position` that are not in the file yet.
    pub async fn write_index(&self, index: &Index, position: u64) -> io::Result<()> {
        let to = index.entries().partition_point(|e| e.position < position);
        let Some(blocks) = index.blocks(self.index_written.get(), to) else { return Ok(()) };
        self.index.write(filled(&blocks.bytes), blocks.position).await?;
        self.index_written.set(to);
        Ok(())
    }

    /// Makes the index file end with `index`, durably: the log was cut, and entries of another past must not count again when later ones do.
    pub async fn cut_index(&self, index: &Index) -> io::Result<()> {
        if let Some(blocks) = index.blocks_from(index.len().saturating_sub(1)) {
            self.index.write(filled(&blocks.bytes), blocks.position).await?;
        }
        let end = entry_position(index.len()).next_multiple_of(BLOCK as u64);
        self.index.set_len(end).await?;
        self.index.sync().await?;
        self.index_written.set(index.len());
        self.index_allocated.set(end);
        Ok(())
    }

    /// Makes log, index and, the first time, their names durable.
    pub async fn sync(&self) -> io::Result<()> {
        futures_util::try_join!(self.sync_log_shared(), self.index.sync()).map(drop)
    }

    /// Makes what was written to the log before this call durable, and the names. Callers at the same time share a sync.
    pub async fn sync_log_shared(&self) -> io::Result<()> {
        let sync = || async {
            self.log.sync().await?;
            self.name().await
        };
        self.log_sync.wait(sync).await
    }

    async fn name(&self) -> io::Result<()> {
        if !self.named.get() {
            self.log.disk().sync_dir(&paths::partition_dir(self.partition)).await?;
            self.named.set(true);
        }
        Ok(())
    }
}

/// Allocates up to `size`. The file system may have extended the file some way before it found no more space: that is given back.
async fn allocate_or_undo(file: &DataFile, allocated: u64, size: u64) -> io::Result<()> {
    let done = file.allocate(size).await;
    if done.as_ref().is_err_and(is_no_space) {
        file.set_len(allocated).await?;
    }
    done
}

/// The index as it is in its file. Entries that don't check end it there: what is missing is made again as the segment grows, and found by a longer scan until then.
pub async fn read_index(file: &DataFile, info: &SegmentInfo) -> io::Result<Index> {
    let len = info.index_entries as usize * INDEX_ENTRY_LEN;
    let bytes = file.read(BLOCK as u64, len.next_multiple_of(BLOCK).max(BLOCK)).await?;
    let (index, error) = Index::load(info.base_offset, &bytes, info.index_entries);
    if let Some(error) = error {
        tracing::warn!(file = file.path(), %error, "index entry does not check; reads scan past it");
    }
    Ok(index)
}

/// Size of an index that covers a log of `end` bytes: one entry per 32 KiB and one for the first batch, and slack of a block.
fn index_bytes(end: u64) -> u64 {
    (BLOCK as u64 * 2 + (end / crate::limits::INDEX_INTERVAL + 1) * INDEX_ENTRY_LEN as u64).next_multiple_of(BLOCK as u64)
}
