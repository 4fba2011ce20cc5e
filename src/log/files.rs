//! What the machines of this module need of a file system, and nothing that does it.
//!
//! Paths are relative to the data directory, with `/` between their parts. A sync makes durable only the file that it is called on; a new name counts only
//! after the sync of its directory too.

use std::io;

use crate::limits::BLOCK;

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path:?}: {source}")]
pub struct FileError {
    /// What was tried.
    pub operation: &'static str,
    /// On which file or directory.
    pub path: String,
    /// Why it failed.
    pub source: io::Error,
}

impl FileError {
    /// Whether there is no such file or directory.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Whether an operation failed for want of space. By the kind: the runtime wraps the system's errors, and their number is lost.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A name in a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DirEntry {
    /// Its last part.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Reading a store.
pub trait ReadFiles {
    /// The names in a directory, in no order. Not found: an error for which [`FileError::is_not_found`] holds.
    ///
    /// # Errors
    /// Those of the file system.
    fn list(&mut self, dir: &str) -> Result<Vec<DirEntry>, FileError>;

    /// Length of a file, bytes.
    ///
    /// # Errors
    /// Those of the file system.
    fn len(&mut self, path: &str) -> Result<u64, FileError>;

    /// Reads from a block boundary until `into`, of whole blocks, is full or the file ends; returns the bytes read.
    /// Fastest into a [`BlockBuffer`].
    ///
    /// # Errors
    /// Those of the file system.
    fn read(&mut self, path: &str, offset: u64, into: &mut [u8]) -> Result<usize, FileError>;
}

/// Reading and changing a store that nobody else uses.
pub trait StoreFiles: ReadFiles {
    /// Writes whole blocks on a block boundary, creating the file where it does not exist.
    ///
    /// # Errors
    /// Those of the file system.
    fn write(&mut self, path: &str, offset: u64, blocks: &[u8]) -> Result<(), FileError>;

    /// Cuts or extends a file.
    ///
    /// # Errors
    /// Those of the file system.
    fn set_len(&mut self, path: &str, len: u64) -> Result<(), FileError>;

    /// Makes the content and length of a file durable.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync(&mut self, path: &str) -> Result<(), FileError>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync_dir(&mut self, dir: &str) -> Result<(), FileError>;

    /// Gives a file or directory another name, replacing a file that has it.
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), FileError>;

    /// Removes a file's name.
    ///
    /// # Errors
    /// Those of the file system.
    fn unlink(&mut self, path: &str) -> Result<(), FileError>;

    /// Makes a directory; one that exists is fine.
    ///
    /// # Errors
    /// Those of the file system.
    fn create_dir(&mut self, dir: &str) -> Result<(), FileError>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove_dir(&mut self, dir: &str) -> Result<(), FileError>;

    /// As [`sync`](StoreFiles::sync) for many files; they may be done at the same time.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync_all(&mut self, paths: &[String]) -> Result<(), FileError> {
        paths.iter().try_for_each(|path| self.sync(path))
    }
}

/// Whether a path exists, and the length of the file.
pub(crate) fn len_if_exists(files: &mut impl ReadFiles, path: &str) -> Result<Option<u64>, FileError> {
    match files.len(path) {
        Ok(len) => Ok(Some(len)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names in a directory, sorted; none where there is no directory.
pub(crate) fn list_sorted(files: &mut impl ReadFiles, dir: &str) -> Result<Vec<DirEntry>, FileError> {
    match files.list(dir) {
        Ok(mut entries) => {
            entries.sort();
            Ok(entries)
        }
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Up to `len` bytes of a file from a block boundary on; fewer where it ends. The length is bounded by the file's own.
pub(crate) fn read_blocks(files: &mut impl ReadFiles, path: &str, offset: u64, len: usize) -> Result<BlockBuffer, FileError> {
    let available = files.len(path)?.saturating_sub(offset);
    let len = usize::try_from(available).unwrap_or(usize::MAX).min(len);
    let mut buffer = BlockBuffer::zeroed(len.next_multiple_of(BLOCK));
    let read = files.read(path, offset, &mut buffer)?;
    buffer.truncate(read.min(len));
    Ok(buffer)
}

/// Bytes that begin at an address divisible by [`BLOCK`], as direct I/O needs them.
#[derive(Debug)]
pub struct BlockBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl BlockBuffer {
    /// Zeros.
    pub fn zeroed(len: usize) -> BlockBuffer {
        let bytes = vec![0; len + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        assert!(start < BLOCK, "a byte can be aligned");
        BlockBuffer { bytes, start, len }
    }

    /// Drops the bytes from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl std::ops::Deref for BlockBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for BlockBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_space_is_known_by_number_and_when_wrapped() {
        for number in [libc::ENOSPC, libc::EDQUOT] {
            let error = io::Error::from_raw_os_error(number);
            assert!(is_no_space(&error) && is_no_space(&io::Error::new(error.kind(), "wrapped")));
        }
        assert!(!is_no_space(&io::Error::from_raw_os_error(libc::EIO)));
    }
}
