//! A stretch of a segment's file, read piece by piece past the cache, some pieces ahead of the one that is used.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use glommio::TaskQueueHandle;
use glommio::io::ReadResult;

use crate::limits::BLOCK;
use crate::shard::disk::DataFile;

/// Size of a piece, bytes.
const PIECE: usize = 1 << 20;
/// Pieces that are read while another one is used.
const READ_AHEAD: usize = 3;

type Reading = glommio::Task<io::Result<ReadResult>>;

/// The pieces of a file from one position to another. Reads are of the task queue that the caller gives.
pub struct Pieces {
    file: Rc<DataFile>,
    queue: TaskQueueHandle,
    /// Of the next piece that is handed out.
    at: u64,
    /// Of the next piece that is read; whole pieces from the block of the first byte on.
    ahead: u64,
    end: u64,
    reading: VecDeque<Reading>,
}

impl Pieces {
    /// From `start` to `end`, bytes.
    pub fn of(file: Rc<DataFile>, start: u64, end: u64, queue: TaskQueueHandle) -> Pieces {
        Pieces { file, queue, at: start, ahead: start / BLOCK as u64 * BLOCK as u64, end, reading: VecDeque::new() }
    }

    /// Where the next piece begins, bytes.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next piece, and where in it the bytes are that belong to the stretch; none at the end.
    ///
    /// # Errors
    /// When it can't be read, or the file is shorter than it should be.
    pub async fn next(&mut self) -> io::Result<Option<(ReadResult, Range<usize>)>> {
        while self.reading.len() < READ_AHEAD && self.ahead < self.end {
            let (file, from) = (self.file.clone(), self.ahead);
            let len = (self.end - from).min(PIECE as u64).next_multiple_of(BLOCK as u64);
            self.ahead += PIECE as u64;
            self.reading.push_back(glommio::spawn_local_into(async move { file.read(from, len as usize).await }, self.queue)?);
        }
        let Some(reading) = self.reading.pop_front() else { return Ok(None) };
        let bytes = reading.await?;
        let block = self.at / BLOCK as u64 * BLOCK as u64;
        let (skip, len) = ((self.at - block) as usize, (self.end - self.at).min(block + PIECE as u64 - self.at) as usize);
        if bytes.len() < skip + len {
            let words = format!("{} ends at {}, expected {}", self.file.path(), block + bytes.len() as u64, self.end);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, words));
        }
        self.at += len as u64;
        Ok(Some((bytes, skip..skip + len)))
    }
}
