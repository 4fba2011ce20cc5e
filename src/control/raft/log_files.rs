//! The log on disk: files of entries, appended, cut at the end, dropped at the front. All of it blocks.
//!
//! ```text
//! log-00000000000000000001  log-00000000000000000412  log-00000000000000000791
//! [header|1 .. 411]         [header|412 .. 790]       [header|791 .. 803|mark]   <- appended to
//! ```
//!
//! Entries that are still in the files are in memory too, so that reading never waits for the disk; snapshots bound both.
//! Crash story: an append that was cut leaves a torn record behind the last durable one; a new file is there whole or not at all; files are removed one by one, each
//! durably, from the end that goes, so no crash leaves a gap. A file that begins *anew* (behind a snapshot that came from the leader) makes the
//! earlier ones void, whatever is left of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use super::directory::{Directory, OpenFile, Space, StorageError};
use super::log_format::{self, LogHeader, Owner};
use super::{Entry, LogId};
use crate::limits::{self, BLOCK};

/// Longest file: one that is longer than [`limits::CONSENSUS_SEGMENT`] gets a successor, and one append may carry as much as the library gives it.
const MOST: u64 = limits::CONSENSUS_SEGMENT + 64 * 1024 * 1024;

/// The entries in memory.
#[derive(Debug, Default)]
pub struct MemoryLog {
    /// The entry before the first one.
    pub previous: Option<LogId>,
    /// From there on, without a gap, each with its length in the file, bytes.
    pub entries: VecDeque<(Entry, u64)>,
    /// Their length in the files, bytes.
    pub bytes: u64,
    /// How often entries that were there gave way to others, or to none.
    pub cuts: u64,
}

impl MemoryLog {
    /// Index of the first entry, or of the one that comes next.
    pub fn first(&self) -> u64 {
        self.previous.map_or(0, |id| id.index + 1)
    }

    /// Index of the entry that comes next.
    pub fn next(&self) -> u64 {
        self.first() + self.entries.len() as u64
    }

    /// The last entry there ever was, dropped ones included.
    pub fn last(&self) -> Option<LogId> {
        self.entries.back().map(|(entry, _)| entry.log_id).or(self.previous)
    }

    fn get(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.first())?;
        self.entries.get(usize::try_from(at).ok()?).map(|(entry, _)| entry)
    }

    /// The entries from `start` up to but without `end`, as far as they are there, and of more than one at most `bytes` bytes.
    pub fn range(&self, start: u64, end: u64, bytes: u64) -> Vec<Entry> {
        let (start, end) = (start.max(self.first()), end.min(self.next()));
        let (mut found, mut sum) = (Vec::new(), 0);
        for index in start..end {
            let (entry, length) = &self.entries[(index - self.first()) as usize];
            sum += length;
            if !found.is_empty() && sum > bytes {
                break;
            }
            found.push(entry.clone());
        }
        found
    }

    fn push(&mut self, entry: Entry, length: u64) {
        assert_eq!(entry.log_id.index, self.next(), "the log has no gap");
        assert!(Some(entry.log_id) > self.last(), "the ids of the log rise");
        self.bytes += length;
        self.entries.push_back((entry, length));
    }

    fn cut(&mut self, index: u64) {
        self.cuts += u64::from(self.next() > index);
        while self.next() > index.max(self.first()) {
            let (_, length) = self.entries.pop_back().expect("next is behind first");
            self.bytes -= length;
        }
    }

    fn drop_to(&mut self, upto: LogId) {
        while self.first() <= upto.index
            && let Some((_, length)) = self.entries.pop_front()
        {
            self.bytes -= length;
            self.previous = Some(LogId { index: self.first(), ..upto });
        }
        self.previous = Some(upto);
    }
}

#[derive(Debug)]
struct Segment {
    name: String,
    first: u64,
    /// Where each of its entries begins, bytes.
    positions: Vec<u64>,
    /// Where the next one will, bytes.
    end: u64,
}

/// The files, and the entries in memory.
#[derive(Debug)]
pub struct LogFiles {
    directory: Directory,
    owner: Owner,
    segments: VecDeque<Segment>,
    /// The last segment's.
    file: OpenFile,
    memory: Arc<Mutex<MemoryLog>>,
    segment_bytes: u64,
    poisoned: bool,
}

fn name(first: u64) -> String {
    format!("log-{first:020}")
}

/// The files of the log among these names, with the index that each begins with.
pub fn log_names(names: &[String]) -> Vec<(u64, &String)> {
    let first = |name: &String| name.strip_prefix("log-").filter(|digits| digits.len() == 20).and_then(|digits| digits.parse().ok());
    names.iter().filter_map(|name| first(name).map(|first| (first, name))).collect()
}

impl LogFiles {
    /// Makes an empty log that goes on behind `previous`. Files of a log that are there are void from then on and removed.
    pub fn make(directory: &Directory, owner: Owner, previous: Option<LogId>) -> Result<(), StorageError> {
        make_segment(directory, LogHeader { owner, previous, anew: true }).map(drop)
    }

    /// Reads all files, removes void ones and cuts a torn tail. Gives the log and how many bytes were cut.
    pub fn open(directory: Directory, owner: Owner) -> Result<(LogFiles, usize), StorageError> {
        let names = directory.names()?;
        let logs = log_names(&names);
        let mut files = Vec::new();
        let (mut obsolete, mut torn) = (Vec::new(), 0);
        // From the end, because one that begins anew makes those before it void.
        for (at, (first, name)) in logs.iter().enumerate().rev() {
            let format = |source| StorageError::Format { path: directory.path(name), source };
            let bytes = directory.read(name, MOST)?;
            let log = log_format::decode_log(&bytes, owner, at + 1 == logs.len()).map_err(format)?;
            if log.header.first() != *first {
                let what = format!("it begins with entry {}, not {first}", log.header.first());
                return Err(StorageError::Inconsistent { path: directory.path(name), what });
            }
            torn += log.torn;
            let anew = log.header.anew;
            files.push(((*name).clone(), log));
            if anew {
                obsolete = logs[..at].iter().map(|(_, name)| (*name).clone()).collect();
                break;
            }
        }
        files.reverse();
        let inconsistent = |what: &str| StorageError::Inconsistent { path: directory.path(""), what: what.into() };
        let Some((last_name, last)) = files.last() else { return Err(inconsistent("there is no log")) };
        let mut file = directory.open_file(last_name)?;
        if last.torn > 0 {
            file.set_len(last.end as u64)?;
        }
        // What is on disk is the truth from here on; of what the last life did not sync nobody knows.
        file.sync()?;
        let (mut memory, mut segments) = (MemoryLog::default(), VecDeque::new());
        for (at, (name, log)) in files.into_iter().enumerate() {
            if at == 0 {
                memory.previous = log.header.previous;
            } else if memory.last() != log.header.previous {
                return Err(inconsistent(&format!("{name} does not go on where the file before it ends")));
            }
            let mut segment = Segment { first: log.header.first(), name, positions: Vec::new(), end: log.end as u64 };
            let ends: Vec<u64> = log.entries.iter().skip(1).map(|(at, _)| *at as u64).chain([segment.end]).collect();
            for ((position, entry), end) in log.entries.into_iter().zip(ends) {
                if Some(entry.log_id) <= memory.last() {
                    return Err(inconsistent(&format!("entry {} in {} is older than the one before it", entry.log_id, segment.name)));
                }
                segment.positions.push(position as u64);
                memory.push(entry, end - position as u64);
            }
            segments.push_back(segment);
        }
        let (memory, segment_bytes) = (Arc::new(Mutex::new(memory)), limits::CONSENSUS_SEGMENT);
        let log = LogFiles { directory, owner, segments, file, memory, segment_bytes, poisoned: false };
        for name in obsolete {
            log.directory.remove(&name)?;
        }
        Ok((log, torn))
    }

    /// Room on the disk for what is written here.
    pub fn space(&self) -> Arc<Space> {
        self.directory.space().clone()
    }

    /// The entries in memory, for readers.
    pub fn memory(&self) -> Arc<Mutex<MemoryLog>> {
        Arc::clone(&self.memory)
    }

    /// Appends entries durably.
    pub fn append(&mut self, entries: Vec<Entry>) -> Result<(), StorageError> {
        self.guarded(|log| log.append_entries(entries))
    }

    /// Removes the entries from `index` on durably.
    pub fn truncate(&mut self, index: u64) -> Result<(), StorageError> {
        self.guarded(|log| log.truncate_from(index))
    }

    /// Removes the entries up to `upto`, of which a snapshot has what they did. What has not gone from disk yet comes back at the next start, which does no harm.
    pub fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        self.guarded(|log| log.purge_to(upto))
    }

    fn guarded(&mut self, work: impl FnOnce(&mut LogFiles) -> Result<(), StorageError>) -> Result<(), StorageError> {
        if self.poisoned {
            return Err(StorageError::Poisoned);
        }
        // Should the work panic, nobody knows what is on disk either.
        self.poisoned = true;
        work(self)?;
        self.poisoned = false;
        Ok(())
    }

    fn append_entries(&mut self, entries: Vec<Entry>) -> Result<(), StorageError> {
        if self.last_segment().end > self.segment_bytes {
            self.roll()?;
        }
        let durable = lock(&self.memory).next();
        let (mut bytes, mut lengths) = (Vec::new(), Vec::new());
        for entry in &entries {
            let begin = bytes.len();
            log_format::put_entry_record(&mut bytes, entry, durable);
            lengths.push((bytes.len() - begin) as u64);
        }
        let end = self.last_segment().end;
        self.file.keep_room(end + bytes.len() as u64);
        self.file.write(end, &bytes)?;
        self.file.sync()?;
        let mut memory = lock(&self.memory);
        for (entry, length) in entries.into_iter().zip(lengths) {
            let segment = self.segments.back_mut().expect("there is a file");
            segment.positions.push(segment.end);
            segment.end += length;
            memory.push(entry, length);
        }
        let next = memory.next();
        drop(memory);
        let end = self.last_segment().end;
        // Over which the next entry is written.
        self.file.write(end, &log_format::mark_record(next))
    }

    fn roll(&mut self) -> Result<(), StorageError> {
        let previous = lock(&self.memory).last();
        // The mark goes: what stands behind a whole file's entries would be a torn tail of a file that has a successor.
        let end = self.last_segment().end;
        self.file.set_len(end)?;
        self.file.sync()?;
        self.begin(LogHeader { owner: self.owner, previous, anew: false })
    }

    fn begin(&mut self, header: LogHeader) -> Result<(), StorageError> {
        let (segment, file) = make_segment(&self.directory, header)?;
        self.file = file;
        // The same name again: an empty file that was cut to nothing.
        self.segments.retain(|other| other.name != segment.name);
        self.segments.push_back(segment);
        Ok(())
    }

    fn truncate_from(&mut self, index: u64) -> Result<(), StorageError> {
        {
            let memory = lock(&self.memory);
            assert!(index >= memory.first(), "what a snapshot stands for is not cut");
            if index >= memory.next() {
                return Ok(());
            }
        }
        while self.segments.len() > 1 && self.last_segment().first >= index {
            let segment = self.segments.pop_back().expect("there are two");
            self.directory.remove(&segment.name)?;
        }
        let segment = self.segments.back_mut().expect("one is left");
        self.file = self.directory.open_file(&segment.name)?;
        let at = (index - segment.first) as usize;
        if let Some(position) = segment.positions.get(at).copied() {
            segment.positions.truncate(at);
            segment.end = position;
        }
        self.file.set_len(segment.end)?;
        self.file.sync()?;
        lock(&self.memory).cut(index);
        Ok(())
    }

    fn purge_to(&mut self, upto: LogId) -> Result<(), StorageError> {
        let (known, previous) = {
            let memory = lock(&self.memory);
            (memory.get(upto.index).map(|entry| entry.log_id), memory.previous)
        };
        if Some(upto) <= previous {
            return Ok(());
        }
        if known != Some(upto) {
            // A snapshot from the leader is ahead of all that is here, or what is here was never committed.
            self.begin(LogHeader { owner: self.owner, previous: Some(upto), anew: true })?;
            while self.segments.len() > 1 {
                let segment = self.segments.pop_front().expect("there are two");
                self.directory.remove(&segment.name)?;
            }
            let mut memory = lock(&self.memory);
            *memory = MemoryLog { previous: Some(upto), cuts: memory.cuts + 1, ..MemoryLog::default() };
            return Ok(());
        }
        while self.segments.len() > 1 && self.segments[1].first <= upto.index + 1 {
            let segment = self.segments.pop_front().expect("there are two");
            self.directory.remove(&segment.name)?;
        }
        lock(&self.memory).drop_to(upto);
        Ok(())
    }

    fn last_segment(&self) -> &Segment {
        self.segments.back().expect("there is a file")
    }
}

fn make_segment(directory: &Directory, header: LogHeader) -> Result<(Segment, OpenFile), StorageError> {
    let name = name(header.first());
    let file = directory.make(&name, &log_format::encode_header(&header))?;
    Ok((Segment { name, first: header.first(), positions: Vec::new(), end: BLOCK as u64 }, file))
}

/// The lock of something that no panic leaves half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
impl LogFiles {
    /// Short files, so that a short life has several.
    pub(super) fn set_segment_bytes(&mut self, bytes: u64) {
        self.segment_bytes = bytes;
    }

    /// Every write to it fails.
    pub(super) fn break_file(&mut self) {
        self.file.open_for_reading();
    }
}
