//! The journal's files: fixed size, zero-written before first use, used in turn.
//!
//! A file that is full is *used* until no checkpoint slot needs any of its groups; then it is *ready* again. A file is
//! prepared ahead of need, so the commit task does not wait for a new one while the ring keeps up.
//!
//! Files come back by a checkpoint, and a checkpoint needs the journal to go on: what it adds itself, and every group that was begun before it. So
//! appends are refused a place in memory ([`Ring::has_room`]) while there is still room in the files for all of these: back pressure is there, not in
//! [`Ring::place`], where it would keep away the checkpoint that ends it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use futures_util::future::try_join_all;

use crate::limits::{BLOCK, MAX_GROUP};
use crate::log::file_header::{JournalHeader, encode_header};
use crate::log::files::is_no_space;
use crate::log::paths;
use crate::shard::disk::{DataFile, Disk};
use crate::shard::event::Event;

/// Zeros are written in pieces of this size, bytes.
const ZERO_WRITE: usize = 1 << 20;

/// A journal file that the store has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalFile {
    /// Unique in the store, never reused.
    pub id: u64,
    /// Bytes.
    pub size: u64,
}

/// The files of one shard's journal.
pub struct Ring {
    disk: Rc<Disk>,
    cluster: [u8; 16],
    file_size: u64,
    max_files: usize,
    next_id: Cell<u64>,
    id_step: u64,
    state: RefCell<State>,
    /// A file became ready, or one is wanted.
    changed: Event,
    /// A group waits for a place.
    blocked: Cell<bool>,
    /// A file is full, or appends wait for room.
    full: Event,
    /// Appends wait for room: the next group that finds its place wakes them.
    asked: Cell<bool>,
    stopping: Cell<bool>,
}

#[derive(Default)]
struct State {
    used: VecDeque<Rc<RingFile>>,
    current: Option<(Rc<RingFile>, u64)>,
    ready: VecDeque<Rc<RingFile>>,
    /// Files that have their blocks and are not zero-written yet, so that no space can be missing when they are needed.
    blank: VecDeque<(u64, DataFile)>,
    dirty: Vec<Rc<RingFile>>,
}

/// One open file of the ring.
pub struct RingFile {
    file: DataFile,
    /// The same file, opened so that a write is durable when it ends.
    through: Option<DataFile>,
    id: u64,
    last_sequence: Cell<u64>,
}

/// Where a group goes.
pub struct Place {
    /// The file.
    pub file: Rc<RingFile>,
    /// Its id.
    pub file_id: u64,
    /// Position in it.
    pub position: u64,
    /// Everything placed before is durable: this group alone decides what is next.
    pub is_alone: bool,
}

impl RingFile {
    /// Writes a sealed group.
    pub async fn write(&self, memory: Rc<glommio::io::DmaBuffer>, position: u64) -> io::Result<()> {
        self.file.write(memory, position).await
    }

    /// Whether [`RingFile::write_through`] can be.
    pub fn can_write_through(&self) -> bool {
        self.through.is_some()
    }

    /// Writes a sealed group; it is durable then.
    pub async fn write_through(&self, memory: Rc<glommio::io::DmaBuffer>, position: u64) -> io::Result<()> {
        self.through.as_ref().expect("asked before").write_through(memory, position).await
    }
}

impl Ring {
    /// A ring of at most `max_files` files of `file_size` bytes; `files` are taken over, new ones get `first_id`, `first_id + id_step`, ...
    pub async fn open(
        disk: Rc<Disk>,
        cluster: [u8; 16],
        file_size: u64,
        max_files: usize,
        files: &[JournalFile],
        (first_id, id_step): (u64, u64),
    ) -> io::Result<Rc<Ring>> {
        assert!(max_files >= 2, "a ring has at least two files");
        let mut state = State::default();
        for known in files {
            let file = disk.open(&paths::journal(known.id)).await?;
            let through = disk.open_through(&paths::journal(known.id)).await?;
            state.ready.push_back(Rc::new(RingFile { file, through, id: known.id, last_sequence: Cell::new(0) }));
        }
        let ring = Ring {
            disk,
            cluster,
            file_size,
            max_files,
            next_id: Cell::new(first_id),
            id_step,
            state: RefCell::new(state),
            changed: Event::default(),
            blocked: Cell::new(false),
            full: Event::default(),
            asked: Cell::new(false),
            stopping: Cell::new(false),
        };
        if ring.state.borrow().ready.is_empty() {
            let file = ring.create_file().await?;
            ring.state.borrow_mut().ready.push_back(file);
        }
        // Before anything else takes the space: the reserve, or records.
        while ring.missing() > 0 {
            match ring.create_blank().await {
                Ok(blank) => ring.state.borrow_mut().blank.push_back(blank),
                // A full disk can be read all the same; the files are made when there is room.
                Err(error) if is_no_space(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Rc::new(ring))
    }

    /// A place for `len` bytes of the group `sequence`. Where there is none, which [`Ring::has_room`] keeps from happening for appends, it gets a file more
    /// than there usually are: whatever gives files back needs the journal to go on.
    pub async fn place(&self, len: u64, sequence: u64) -> Place {
        loop {
            if let Some(place) = self.try_place(len, sequence) {
                self.blocked.set(false);
                return place;
            }
            if !self.blocked.replace(true) {
                self.changed.notify();
            }
            let ticket = self.changed.ticket();
            if self.state.borrow().ready.is_empty() {
                self.changed.wait(ticket).await;
            }
        }
    }

    /// Whether a group waits for a place.
    pub fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    /// As [`Ring::place`], if there is one now.
    pub fn try_place(&self, len: u64, sequence: u64) -> Option<Place> {
        let mut state = self.state.borrow_mut();
        if state.current.as_ref().is_some_and(|(_, position)| position + len > self.file_size) {
            let (full, _) = state.current.take().expect("checked");
            state.used.push_back(full);
            self.changed.notify();
            self.full.notify();
        }
        if state.current.is_none() {
            let next = state.ready.pop_front()?;
            state.current = Some((next, BLOCK as u64));
            self.changed.notify();
        }
        let is_alone = state.dirty.is_empty();
        let (file, position) = state.current.as_mut().expect("set above");
        let place = Place { file: file.clone(), file_id: file.id, position: *position, is_alone };
        *position += len;
        place.file.last_sequence.set(sequence);
        if !state.dirty.iter().any(|f| f.id == place.file_id) {
            let file = place.file.clone();
            state.dirty.push(file);
        }
        if self.asked.replace(false) {
            self.changed.notify();
        }
        Some(place)
    }

    /// The only group that was not durable was written through.
    pub fn written_through(&self) {
        self.state.borrow_mut().dirty.clear();
    }

    /// Makes every group written so far durable, in whichever file it is.
    pub async fn sync(&self) -> io::Result<()> {
        let dirty = std::mem::take(&mut self.state.borrow_mut().dirty);
        if let [file] = &dirty[..] {
            return file.file.sync().await;
        }
        try_join_all(dirty.iter().map(|f| f.file.sync())).await.map(drop)
    }

    /// Groups before `sequence` are needed by no checkpoint slot any more.
    pub fn release_before(&self, sequence: u64) {
        let mut state = self.state.borrow_mut();
        let mut released = false;
        while state.used.front().is_some_and(|f| f.last_sequence.get() < sequence) {
            let file = state.used.pop_front().expect("checked");
            state.ready.push_back(file);
            released = true;
        }
        drop(state);
        if released {
            self.changed.notify();
        }
    }

    /// Bytes of files that hold groups still needed, and of all files that there may be.
    pub fn occupancy_bytes(&self) -> (u64, u64) {
        let state = self.state.borrow();
        let used = state.used.len() + usize::from(state.current.is_some());
        (used as u64 * self.file_size, self.max_files as u64 * self.file_size)
    }

    /// Whether appends may come in, with `unplaced` bytes of groups on their way: the reserve of a quarter of a file is left for what comes without asking.
    pub fn has_room(&self, unplaced: u64) -> bool {
        self.free_bytes() >= unplaced + self.file_size / 4
    }

    /// Whether a checkpoint may copy unfinished blocks forward: half of the reserve stays for what else it adds.
    pub fn has_carry_room(&self, unplaced: u64) -> bool {
        self.free_bytes() >= unplaced + self.file_size / 8
    }

    fn free_bytes(&self) -> u64 {
        let state = self.state.borrow();
        free_bytes(self.file_size, state.current.as_ref().map(|(_, position)| *position), state.ready.len())
    }

    /// Whether the oldest full file holds nothing that a checkpoint whose first needed group is `needed` needs.
    pub fn would_release(&self, needed: u64) -> bool {
        self.state.borrow().used.front().is_some_and(|f| f.last_sequence.get() < needed)
    }

    /// Appends wait for room: [`Ring::changed`] is notified whenever there may be.
    pub fn ask_for_room(&self) {
        self.asked.set(true);
        self.full.notify();
    }

    /// The last sequence in a file that is full.
    pub fn newest_used_sequence(&self) -> Option<u64> {
        self.state.borrow().used.back().map(|f| f.last_sequence.get())
    }

    /// Notified when a file is full or becomes ready.
    pub fn changed(&self) -> &Event {
        &self.changed
    }

    /// Notified when a file is full, or appends wait for room.
    pub fn full(&self) -> &Event {
        &self.full
    }

    /// The task that keeps one file ready ahead of need, and has the blocks of every other one that the ring may come to need. Ends on [`Ring::stop`].
    ///
    /// # Errors
    /// When a file can't be made; it may be called again, and the ring works on with the files that there are.
    pub async fn run(self: Rc<Ring>) -> io::Result<()> {
        while !self.stopping.get() {
            let ticket = self.changed.ticket();
            let wanted = {
                let state = self.state.borrow();
                let all = state.ready.len() + state.used.len() + usize::from(state.current.is_some());
                state.ready.is_empty() && (all < self.max_files || (self.blocked.get() && state.current.is_none()))
            };
            if wanted {
                let file = self.create_file().await?;
                self.state.borrow_mut().ready.push_back(file);
                self.changed.notify();
            } else if self.missing() > 0 {
                let blank = self.create_blank().await?;
                self.state.borrow_mut().blank.push_back(blank);
            } else {
                self.changed.wait(ticket).await;
            }
        }
        Ok(())
    }

    /// Ends [`Ring::run`].
    pub fn stop(&self) {
        self.stopping.set(true);
        self.changed.notify();
    }

    /// Files that the ring may come to need and that have no blocks yet.
    fn missing(&self) -> usize {
        let state = self.state.borrow();
        let all = state.ready.len() + state.used.len() + usize::from(state.current.is_some()) + state.blank.len();
        self.max_files.saturating_sub(all)
    }

    async fn create_blank(&self) -> io::Result<(u64, DataFile)> {
        let id = self.next_id.get();
        self.next_id.set(id + self.id_step);
        let path = paths::journal(id);
        let made = async {
            let file = self.disk.create(&path).await?;
            // It stays empty, so that an opening has nothing to read.
            file.reserve(self.file_size).await?;
            Ok((id, file))
        };
        let made = made.await;
        if made.is_err() {
            // What it got before there was no more space is not to be held.
            let _ = self.disk.remove(&path).await;
        }
        made
    }

    async fn create_file(&self) -> io::Result<Rc<RingFile>> {
        let blank = self.state.borrow_mut().blank.pop_front();
        let (id, file) = match blank {
            Some(blank) => blank,
            None => self.create_blank().await?,
        };
        match self.fill(id, &file).await {
            Ok(through) => Ok(Rc::new(RingFile { file, through, id, last_sequence: Cell::new(0) })),
            Err(error) => {
                // It has its blocks: the next attempt takes it.
                self.state.borrow_mut().blank.push_front((id, file));
                Err(error)
            }
        }
    }

    /// Makes a blank file one of the ring; returns it as it is opened for writing through.
    async fn fill(&self, id: u64, file: &DataFile) -> io::Result<Option<DataFile>> {
        file.allocate(self.file_size).await?;
        let zeros = zeroed(ZERO_WRITE.min(self.file_size as usize));
        let mut position = 0;
        while position < self.file_size {
            let len = (self.file_size - position).min(zeros.len() as u64);
            let piece = if len == zeros.len() as u64 { zeros.clone() } else { zeroed(len as usize) };
            file.write(piece, position).await?;
            position += len;
        }
        let header = encode_header(&JournalHeader { cluster: self.cluster, file: id, size: self.file_size });
        file.write(filled(&header), 0).await?;
        file.sync().await?;
        self.disk.sync_dir("journal").await?;
        self.disk.open_through(&paths::journal(id)).await
    }
}

/// Bytes of groups that surely find a place: in the current file, which is filled up to `current`, and in `ready` empty ones. A group that does not fit
/// the rest of a file leaves it unused, so each file counts for a largest group less.
fn free_bytes(file_size: u64, current: Option<u64>, ready: usize) -> u64 {
    let usable = |from: u64| file_size.saturating_sub(from + MAX_GROUP as u64);
    current.map_or(0, usable) + ready as u64 * usable(BLOCK as u64)
}

/// Aligned zeros.
pub fn zeroed(len: usize) -> Rc<glommio::io::DmaBuffer> {
    let mut buffer = glommio::allocate_dma_buffer_global(len);
    buffer.as_bytes_mut().fill(0);
    Rc::new(buffer)
}

/// An aligned copy of `bytes`, zero-padded to a block.
pub fn filled(bytes: &[u8]) -> Rc<glommio::io::DmaBuffer> {
    let mut buffer = glommio::allocate_dma_buffer_global(bytes.len().next_multiple_of(BLOCK));
    buffer.as_bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    buffer.as_bytes_mut()[bytes.len()..].fill(0);
    Rc::new(buffer)
}

/// Takes memory of which the first `len` bytes are filled, for a write of whole blocks; memory of `size` bytes is in its place then.
pub fn take_filled(memory: &mut glommio::io::DmaBuffer, len: usize, size: usize) -> Rc<glommio::io::DmaBuffer> {
    let padded = len.next_multiple_of(BLOCK);
    let mut taken = std::mem::replace(memory, glommio::allocate_dma_buffer_global(size));
    taken.as_bytes_mut()[len..padded].fill(0);
    taken.trim_to_size(padded);
    Rc::new(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether groups of these lengths find their places without another file.
    fn all_fit(file_size: u64, current: Option<u64>, ready: usize, groups: &[u64]) -> bool {
        let (mut current, mut ready) = (current, ready);
        groups.iter().all(|len| {
            if current.is_none_or(|position| position + len > file_size) {
                if ready == 0 {
                    return false;
                }
                ready -= 1;
                current = Some(BLOCK as u64);
            }
            current = current.map(|position| position + len);
            true
        })
    }

    #[test]
    fn what_is_free_is_enough_for_groups_of_any_lengths() {
        let (block, largest) = (BLOCK as u64, MAX_GROUP as u64);
        let mut random = 1_u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        for file_size in [2 * largest + block, 4 << 20, 32 << 20] {
            for round in 0..2000 {
                let current = (round % 3 > 0).then(|| (1 + below(file_size / block)) * block);
                let ready = below(4) as usize;
                let free = free_bytes(file_size, current, ready);
                let longest = if round % 2 == 0 { largest / block } else { 3 };
                let (mut groups, mut total) = (Vec::new(), 0);
                loop {
                    let len = (1 + below(longest)) * block;
                    if total + len > free {
                        break;
                    }
                    groups.push(len);
                    total += len;
                }
                assert!(all_fit(file_size, current, ready, &groups), "{file_size} {current:?} {ready} {groups:?}");
            }
        }
    }

    #[test]
    fn unused_ends_of_files_count() {
        // Three groups of 400 KiB do not fit two files of 768 KiB, though their bytes do: nothing may promise that.
        let (file_size, group) = (768 << 10, 400 << 10);
        assert!(!all_fit(file_size, None, 2, &[group; 3]) && 3 * group < 2 * (file_size - BLOCK as u64));
        assert!(free_bytes(file_size, None, 2) < 3 * group);
    }
}
