//! The library's log and votes over our files: each write is done and synced on a blocking thread before the library hears of it.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError};

use super::directory::{self, Space};
use super::log_files::{LogFiles, MemoryLog, lock};
use super::votes::VoteFiles;
use super::{ConsensusId, Entry, LogId, Types, Vote};
use crate::limits;

type Result<T> = std::result::Result<T, StorageError<ConsensusId>>;

/// The log and the votes.
#[derive(Clone, Debug)]
pub struct LogStore {
    log: Arc<Mutex<LogFiles>>,
    votes: Arc<Mutex<VoteFiles>>,
    memory: Arc<Mutex<MemoryLog>>,
    space: Arc<Space>,
}

impl LogStore {
    /// Over open files.
    pub fn new(log: LogFiles, votes: VoteFiles) -> LogStore {
        let (memory, space) = (log.memory(), log.space());
        LogStore { log: Arc::new(Mutex::new(log)), votes: Arc::new(Mutex::new(votes)), memory, space }
    }

    /// Room on the disk.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// How long the entries that no snapshot has made superfluous are, bytes.
    pub fn bytes(&self) -> u64 {
        lock(&self.memory).bytes
    }
}

/// Does it on a blocking thread. A lock that is held there is free again for the next call: the library makes one at a time.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, directory::StorageError> + Send + 'static,
) -> std::result::Result<T, AnyError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            tracing::error!(%error, "the consensus of this node stops");
            Err(AnyError::new(&error))
        }
        Err(error) => Err(AnyError::new(&error)),
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

/// Before a stream that gets no entries hears so: the library asks again at once.
const STALE_PAUSE: Duration = Duration::from_millis(100);

/// Reads entries, from memory, for one stream to a follower.
///
/// A leader never cuts its log, so a stream that lives through a cut is that of a leadership that has ended. The library (0.9.25) leaves such streams running until this node leads
/// again, and one that was waiting to repeat something then reads what the next leader has put in place of its entries, or nothing. What it sends as following on the entry before
/// would not: a follower that has not heard of the next leader would take it for the log of this one. And a read that fails stops the consensus of this node for good. So it gets
/// no entries any more, which the library sends as a heartbeat; that is refused as soon as the follower knows better.
#[derive(Clone, Debug)]
pub struct LogReader {
    memory: Arc<Mutex<MemoryLog>>,
    cuts: u64,
}

impl LogReader {
    fn new(memory: &Arc<Mutex<MemoryLog>>) -> LogReader {
        LogReader { memory: Arc::clone(memory), cuts: lock(memory).cuts }
    }
}

impl RaftLogReader<Types> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(&mut self, range: RB) -> Result<Vec<Entry>> {
        let (start, end) = bounds(&range);
        Ok(lock(&self.memory).range(start, end, u64::MAX))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>> {
        let found = {
            let memory = lock(&self.memory);
            let is_whole = memory.cuts == self.cuts && start >= memory.first();
            is_whole.then(|| memory.range(start, end, limits::CONSENSUS_APPEND as u64))
        };
        let Some(entries) = found else {
            tokio::time::sleep(STALE_PAUSE).await;
            return Ok(Vec::new());
        };
        if entries.is_empty() {
            return Err(StorageIOError::read_log_at_index(start, AnyError::error("it is not there")).into());
        }
        Ok(entries)
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(&mut self, range: RB) -> Result<Vec<Entry>> {
        LogReader::new(&self.memory).try_get_log_entries(range).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>> {
        let memory = lock(&self.memory);
        Ok(LogState { last_purged_log_id: memory.previous, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader::new(&self.memory)
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<()> {
        let (votes, vote) = (Arc::clone(&self.votes), *vote);
        blocking(move || lock(&votes).save_vote(&vote)).await.map_err(|error| StorageIOError::write_vote(error).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>> {
        let vote = lock(&self.votes).vote();
        Ok(Some(vote).filter(|vote| *vote != Vote::default()))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<()> {
        let votes = Arc::clone(&self.votes);
        blocking(move || lock(&votes).save_committed(committed)).await.map_err(|error| StorageIOError::write(error).into())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>> {
        Ok(lock(&self.votes).committed())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (log, entries) = (Arc::clone(&self.log), entries.into_iter().collect::<Vec<_>>());
        let done = blocking(move || lock(&log).append(entries)).await;
        done.map_err(StorageIOError::write_logs)?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<()> {
        let log = Arc::clone(&self.log);
        blocking(move || lock(&log).truncate(log_id.index)).await.map_err(|error| StorageIOError::write_logs(error).into())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<()> {
        let log = Arc::clone(&self.log);
        blocking(move || lock(&log).purge(log_id)).await.map_err(|error| StorageIOError::write_logs(error).into())
    }
}
