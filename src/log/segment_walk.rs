//! Walking over a segment's batches in bounded memory.

use crate::batch::{BatchHeader, CRC_START, HEADER_LEN};
use crate::checksum::Crc32c;
use crate::limits::{BLOCK, SEGMENT_READ};
use crate::log::files::{BlockBuffer, FileError, ReadFiles};

/// A file that is read piece by piece.
pub(crate) struct Pieces<'a, F> {
    files: &'a mut F,
    path: &'a str,
    len: u64,
    buffer: BlockBuffer,
    start: u64,
    filled: usize,
    /// Bytes read from the file.
    pub(crate) read: u64,
}

/// What starts at a position of a segment.
pub(crate) enum Found {
    /// A batch that checks.
    Batch(Box<(BatchHeader, [u8; HEADER_LEN])>),
    /// A batch by its header, whose bytes don't check.
    Damaged(Box<(BatchHeader, [u8; HEADER_LEN])>, String),
    /// No batch.
    Nothing(String),
}

impl<'a, F: ReadFiles> Pieces<'a, F> {
    pub(crate) fn open(files: &'a mut F, path: &'a str) -> Result<Pieces<'a, F>, FileError> {
        let len = files.len(path)?;
        let size = SEGMENT_READ.min((len as usize).next_multiple_of(BLOCK)).max(BLOCK);
        Ok(Pieces { files, path, len, buffer: BlockBuffer::zeroed(size), start: 0, filled: 0, read: 0 })
    }

    /// Length of the file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The bytes at hand from `at` on; none at the end of the file.
    pub(crate) fn at(&mut self, at: u64) -> Result<&[u8], FileError> {
        let inside = at >= self.start && at < self.start + self.filled as u64;
        if !inside {
            self.start = at / BLOCK as u64 * BLOCK as u64;
            self.filled = if self.start < self.len { self.files.read(self.path, self.start, &mut self.buffer)? } else { 0 };
            self.read += self.filled as u64;
        }
        let from = ((at - self.start) as usize).min(self.filled);
        Ok(&self.buffer[from..self.filled])
    }

    /// Copies bytes; returns how many there were.
    pub(crate) fn copy(&mut self, at: u64, into: &mut [u8]) -> Result<usize, FileError> {
        let mut done = 0;
        self.each(at, into.len() as u64, |bytes| {
            into[done..done + bytes.len()].copy_from_slice(bytes);
            done += bytes.len();
        })?;
        Ok(done)
    }

    /// Gives out `len` bytes, or as many as there are.
    pub(crate) fn each(&mut self, at: u64, len: u64, mut take: impl FnMut(&[u8])) -> Result<(), FileError> {
        let mut position = at;
        while position < at + len {
            let bytes = self.at(position)?;
            if bytes.is_empty() {
                break;
            }
            let bytes = &bytes[..bytes.len().min((at + len - position) as usize)];
            position += bytes.len() as u64;
            take(bytes);
        }
        Ok(())
    }

    /// Position of the first byte other than zero in a range.
    pub(crate) fn first_nonzero(&mut self, from: u64, to: u64) -> Result<Option<u64>, FileError> {
        let (mut at, mut found) = (from, None);
        self.each(from, to.saturating_sub(from), |bytes| {
            found = found.or_else(|| bytes.iter().position(|byte| *byte != 0).map(|within| at + within as u64));
            at += bytes.len() as u64;
        })?;
        Ok(found)
    }

    /// The batch at a position of a log that ends at `end`.
    pub(crate) fn batch(&mut self, at: u64, end: u64) -> Result<Found, FileError> {
        let mut head = [0; HEADER_LEN];
        let available = self.copy(at, &mut head)?;
        let header = match BatchHeader::parse(&head[..available]) {
            Ok(header) => header,
            Err(error) => return Ok(Found::Nothing(error.to_string())),
        };
        let len = header.total_len() as u64;
        if len > end.saturating_sub(at) {
            return Ok(Found::Nothing(format!("a batch of {len} bytes where the log has {} left", end.saturating_sub(at))));
        }
        let mut crc = Crc32c::new();
        let covered = len - CRC_START as u64;
        let mut seen = 0;
        self.each(at + CRC_START as u64, covered, |bytes| {
            crc.update(bytes);
            seen += bytes.len() as u64;
        })?;
        let found = Box::new((header, head));
        if seen < covered {
            return Ok(Found::Damaged(found, format!("the file ends {} bytes before the batch does", covered - seen)));
        }
        let checked = header.check_crc(crc.finish()).and_then(|()| header.compression().map(drop));
        match checked {
            Ok(()) => Ok(Found::Batch(found)),
            Err(error) => Ok(Found::Damaged(found, error.to_string())),
        }
    }
}
