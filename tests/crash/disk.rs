//! A disk in memory, and what a crash may leave of it.
//!
//! Rules: a write, a length and an allocation are durable when a sync of *that file* began after they ended and has ended itself; a name is when a sync of
//! *its directory* has. Until then each may be there or not, in any combination, and a write may be there in part (units of 512 B or 4 KiB).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;

use corelane::limits::BLOCK;
use corelane::log::files::{DirEntry, FileError, ReadFiles, StoreFiles};
use corelane::shard::trace::TraceEvent;

use super::Numbers;

const UNIT: u64 = BLOCK as u64;

#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    hash: u64,
}

/// A file's bytes. Blocks of zeros are not stored; copies share their blocks.
#[derive(Clone, Debug, Default)]
pub struct FileData {
    len: u64,
    blocks: BTreeMap<u64, Arc<Block>>,
    /// Over all blocks and their places, kept up to date by each change.
    hash: u64,
}

impl FileData {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Puts bytes at a position, making the file longer where they end behind it.
    pub fn write(&mut self, mut at: u64, mut bytes: &[u8]) {
        self.len = self.len.max(at + bytes.len() as u64);
        while !bytes.is_empty() {
            let (block, within) = (at / UNIT, (at % UNIT) as usize);
            let take = (BLOCK - within).min(bytes.len());
            let mut content = match self.blocks.get(&block) {
                Some(old) if take < BLOCK => old.bytes.clone(),
                _ => vec![0; BLOCK],
            };
            content[within..within + take].copy_from_slice(&bytes[..take]);
            self.put(block, content);
            (at, bytes) = (at + take as u64, &bytes[take..]);
        }
    }

    fn put(&mut self, block: u64, bytes: Vec<u8>) {
        if bytes.iter().all(|byte| *byte == 0) {
            return self.drop_block(block);
        }
        let hash = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &bytes);
        self.hash ^= placed(block, hash);
        if let Some(old) = self.blocks.insert(block, Arc::new(Block { hash, bytes })) {
            self.hash ^= placed(block, old.hash);
        }
    }

    fn drop_block(&mut self, block: u64) {
        if let Some(old) = self.blocks.remove(&block) {
            self.hash ^= placed(block, old.hash);
        }
    }

    /// The same for equal files.
    pub fn fingerprint(&self) -> u64 {
        placed(self.len, self.hash)
    }

    /// Reads until `into` is full or the file ends.
    pub fn read(&self, at: u64, into: &mut [u8]) -> usize {
        let len = into.len().min(self.len.saturating_sub(at) as usize);
        let mut done = 0;
        while done < len {
            let position = at + done as u64;
            let within = (position % UNIT) as usize;
            let take = (BLOCK - within).min(len - done);
            match self.blocks.get(&(position / UNIT)) {
                Some(block) => into[done..done + take].copy_from_slice(&block.bytes[within..within + take]),
                None => into[done..done + take].fill(0),
            }
            done += take;
        }
        len
    }

    /// Cuts or extends the file.
    pub fn set_len(&mut self, len: u64) {
        let behind: Vec<u64> = self.blocks.range(len.div_ceil(UNIT)..).map(|(block, _)| *block).collect();
        behind.into_iter().for_each(|block| self.drop_block(block));
        let within = (len % UNIT) as usize;
        if len < self.len
            && within > 0
            && let Some(block) = self.blocks.get(&(len / UNIT))
        {
            let mut bytes = block.bytes.clone();
            bytes[within..].fill(0);
            self.put(len / UNIT, bytes);
        }
        self.len = len;
    }

    /// The positions of bytes other than zero, by block.
    pub fn written_blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.keys().map(|block| block * UNIT)
    }
}

/// A hash that depends on content and place alike.
fn placed(place: u64, hash: u64) -> u64 {
    Numbers(hash ^ place.wrapping_mul(0xd6e8_feb8_6659_fd93)).draw()
}

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Node {
    Dir,
    File(u64),
}

#[derive(Clone, Debug)]
enum NameOp {
    Link { path: String, node: Node },
    Unlink { path: String },
    Rename { from: String, to: String },
}

impl NameOp {
    /// The directory whose sync makes it durable.
    fn dir(&self) -> &str {
        match self {
            NameOp::Link { path, .. } | NameOp::Unlink { path } | NameOp::Rename { to: path, .. } => parent(path),
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, Node>) {
        match self {
            NameOp::Link { path, node } => {
                names.insert(path.clone(), *node);
            }
            NameOp::Unlink { path } => {
                names.remove(path);
            }
            NameOp::Rename { from, to } => {
                let below = format!("{from}/");
                let moved: Vec<String> = names.keys().filter(|name| *name == from || name.starts_with(&below)).cloned().collect();
                for name in moved {
                    if let Some(node) = names.remove(&name) {
                        names.insert(format!("{to}{}", &name[from.len()..]), node);
                    }
                }
            }
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[derive(Clone, Debug)]
enum DataOp {
    Write { at: u64, bytes: Arc<Vec<u8>> },
    Grow(u64),
    SetLen(u64),
}

#[derive(Clone, Debug)]
struct PendingData {
    /// Of the event.
    number: u64,
    write: Option<u64>,
    ended: bool,
    op: DataOp,
}

#[derive(Clone, Debug)]
struct PendingName {
    number: u64,
    op: NameOp,
}

/// A sync that began and what it covers.
#[derive(Clone, Debug)]
enum Sync {
    File { inode: u64, covers: Vec<u64> },
    Dir { covers: Vec<u64> },
}

/// What a disk is known to hold, and what it may or may not hold besides.
#[derive(Clone, Debug, Default)]
pub struct CrashDisk {
    names: BTreeMap<String, Node>,
    durable_names: BTreeMap<String, Node>,
    durable: HashMap<u64, Arc<FileData>>,
    pending: BTreeMap<u64, Vec<PendingData>>,
    pending_names: Vec<PendingName>,
    syncs: HashMap<u64, Sync>,
    next_inode: u64,
    events: u64,
}

/// How a crash treats what is not durable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Loss {
    /// All of it is there: the process died, the machine did not.
    Nothing,
    /// None of it is there.
    Everything,
    /// Each is there or not.
    Some(u64),
    /// Each is there or not, writes also in part, in units of so many bytes.
    Torn(u64, usize),
}

impl CrashDisk {
    /// A disk that holds an image, all of it durable.
    pub fn of(image: &Image) -> CrashDisk {
        let mut disk = CrashDisk::default();
        for (path, entry) in &image.names {
            let node = match entry {
                Entry::Dir => Node::Dir,
                Entry::File(data) => {
                    disk.next_inode += 1;
                    disk.durable.insert(disk.next_inode, data.clone());
                    Node::File(disk.next_inode)
                }
            };
            disk.names.insert(path.clone(), node);
        }
        disk.durable_names = disk.names.clone();
        disk
    }

    /// Takes the next event of a trace. Returns whether what a crash may leave has changed.
    pub fn apply(&mut self, event: &TraceEvent) -> bool {
        self.events += 1;
        match event {
            TraceEvent::Create { path } => self.create(path),
            TraceEvent::CreateDir { path } => self.link(path, Node::Dir),
            TraceEvent::WriteStart { id, path, position, bytes } => {
                self.create(path);
                let op = DataOp::Write { at: *position, bytes: Arc::new(bytes.clone()) };
                self.push(path, op, Some(*id));
            }
            TraceEvent::WriteEnd { id } => {
                for pending in self.pending.values_mut().flatten().filter(|pending| pending.write == Some(*id)) {
                    pending.ended = true;
                }
                return false;
            }
            TraceEvent::Allocate { path, size } => {
                self.create(path);
                self.push(path, DataOp::Grow(*size), None);
            }
            TraceEvent::SetLen { path, size } => self.push(path, DataOp::SetLen(*size), None),
            TraceEvent::SyncStart { id, path } => {
                let Some(Node::File(inode)) = self.names.get(path).copied() else { return false };
                let pending = self.pending.get(&inode).map(Vec::as_slice).unwrap_or_default();
                let covers = pending.iter().filter(|pending| pending.ended).map(|pending| pending.number).collect();
                self.syncs.insert(*id, Sync::File { inode, covers });
                return false;
            }
            TraceEvent::SyncDirStart { id, path } => {
                let covers = self.pending_names.iter().filter(|pending| pending.op.dir() == path).map(|pending| pending.number).collect();
                self.syncs.insert(*id, Sync::Dir { covers });
                return false;
            }
            TraceEvent::SyncEnd { id } => return self.end_sync(*id),
            TraceEvent::Rename { from, to } => self.name(NameOp::Rename { from: from.clone(), to: to.clone() }),
            TraceEvent::Unlink { path } => self.name(NameOp::Unlink { path: path.clone() }),
            TraceEvent::Mark { name } if name == "start" => {
                // The broker before it was killed: what it had under way has ended one way or the other, before this one reads.
                self.pending.values_mut().flatten().for_each(|pending| pending.ended = true);
                return false;
            }
            TraceEvent::Acknowledge { .. } | TraceEvent::Topic { .. } | TraceEvent::Cut { .. } | TraceEvent::Mark { .. } => return false,
        }
        true
    }

    fn create(&mut self, path: &str) {
        if !self.names.contains_key(path) {
            self.next_inode += 1;
            let node = Node::File(self.next_inode);
            self.link(path, node);
        }
    }

    fn link(&mut self, path: &str, node: Node) {
        if !self.names.contains_key(path) {
            self.name(NameOp::Link { path: path.into(), node });
        }
    }

    fn name(&mut self, op: NameOp) {
        op.apply(&mut self.names);
        self.pending_names.push(PendingName { number: self.events, op });
    }

    fn push(&mut self, path: &str, op: DataOp, write: Option<u64>) {
        if let Some(Node::File(inode)) = self.names.get(path) {
            self.pending.entry(*inode).or_default().push(PendingData { number: self.events, ended: write.is_none(), write, op });
        }
    }

    fn end_sync(&mut self, id: u64) -> bool {
        match self.syncs.remove(&id) {
            Some(Sync::File { inode, covers }) => {
                let data = Arc::make_mut(self.durable.entry(inode).or_default());
                let pending = self.pending.entry(inode).or_default();
                let before = pending.len();
                for done in pending.iter().filter(|pending| covers.contains(&pending.number)) {
                    apply_data(data, &done.op);
                }
                pending.retain(|pending| !covers.contains(&pending.number));
                pending.len() < before
            }
            Some(Sync::Dir { covers }) => {
                let before = self.pending_names.len();
                for done in self.pending_names.iter().filter(|pending| covers.contains(&pending.number)) {
                    done.op.apply(&mut self.durable_names);
                }
                self.pending_names.retain(|pending| !covers.contains(&pending.number));
                self.pending_names.len() < before
            }
            None => false,
        }
    }

    /// Whether there is anything that a crash may or may not leave.
    pub fn is_settled(&self) -> bool {
        self.pending_names.is_empty() && self.pending.values().all(Vec::is_empty)
    }

    /// What a crash now may leave.
    pub fn crash(&self, loss: Loss) -> Image {
        let mut chance = Chance::new(loss);
        let mut names = self.durable_names.clone();
        for pending in &self.pending_names {
            if chance.keeps() {
                pending.op.apply(&mut names);
            }
        }
        let dirs: HashSet<&str> = names.iter().filter(|(_, node)| **node == Node::Dir).map(|(path, _)| path.as_str()).collect();
        let reachable = |path: &str| {
            let mut dir = parent(path);
            while !dir.is_empty() {
                if !dirs.contains(dir) {
                    return false;
                }
                dir = parent(dir);
            }
            true
        };
        let mut image = Image::default();
        for (path, node) in names.iter().filter(|(path, _)| reachable(path)) {
            let entry = match node {
                Node::Dir => Entry::Dir,
                Node::File(inode) => Entry::File(self.content(*inode, &mut chance)),
            };
            image.names.insert(path.clone(), entry);
        }
        image
    }

    fn content(&self, inode: u64, chance: &mut Chance) -> Arc<FileData> {
        let mut shared = self.durable.get(&inode).cloned().unwrap_or_default();
        let pending = self.pending.get(&inode).map(Vec::as_slice).unwrap_or_default();
        if pending.is_empty() || chance.loss == Loss::Everything {
            return shared;
        }
        let data = Arc::make_mut(&mut shared);
        for pending in pending {
            match (&pending.op, chance.torn_unit()) {
                (DataOp::Write { at, bytes }, Some(unit)) => {
                    for (part, piece) in bytes.chunks(unit).enumerate() {
                        if chance.keeps() {
                            data.write(at + (part * unit) as u64, piece);
                        }
                    }
                }
                (op, _) if chance.keeps() => apply_data(data, op),
                _ => {}
            }
        }
        shared
    }
}

fn apply_data(data: &mut FileData, op: &DataOp) {
    match op {
        DataOp::Write { at, bytes } => data.write(*at, bytes),
        DataOp::Grow(size) => data.set_len(data.len().max(*size)),
        DataOp::SetLen(size) => data.set_len(*size),
    }
}

struct Chance {
    loss: Loss,
    numbers: Numbers,
    /// Of 256.
    likely: u64,
}

impl Chance {
    fn new(loss: Loss) -> Chance {
        let mut numbers = Numbers(match loss {
            Loss::Some(seed) | Loss::Torn(seed, _) => seed,
            _ => 0,
        });
        let likely = [16, 64, 128, 192, 240][numbers.below(5) as usize];
        Chance { loss, numbers, likely }
    }

    fn keeps(&mut self) -> bool {
        match self.loss {
            Loss::Nothing => true,
            Loss::Everything => false,
            Loss::Some(_) | Loss::Torn(..) => self.numbers.below(256) < self.likely,
        }
    }

    /// Half of the writes are torn, where any is.
    fn torn_unit(&mut self) -> Option<usize> {
        match self.loss {
            Loss::Torn(_, unit) if self.numbers.below(2) == 0 => Some(unit),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
enum Entry {
    Dir,
    File(Arc<FileData>),
}

/// A directory tree in memory: what is there after a crash. As a [`StoreFiles`] it records what is done to it.
#[derive(Clone, Debug, Default)]
pub struct Image {
    names: BTreeMap<String, Entry>,
    /// What was done, if it is to be recorded.
    pub events: Option<Vec<TraceEvent>>,
    next_id: u64,
}

impl Image {
    /// An empty directory whose changes are recorded.
    pub fn recording() -> Image {
        Image { events: Some(Vec::new()), ..Image::default() }
    }

    /// The same for equal trees.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (path, entry) in &self.names {
            path.hash(&mut hasher);
            if let Entry::File(data) = entry {
                data.fingerprint().hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// All files, by path.
    pub fn files(&self) -> impl Iterator<Item = (&str, &FileData)> {
        self.names.iter().filter_map(|(path, entry)| match entry {
            Entry::File(data) => Some((path.as_str(), &**data)),
            Entry::Dir => None,
        })
    }

    /// A file's bytes, to damage them.
    pub fn file_mut(&mut self, path: &str) -> &mut FileData {
        match self.names.get_mut(path) {
            Some(Entry::File(data)) => Arc::make_mut(data),
            other => panic!("{path}: {other:?}"),
        }
    }

    /// Puts a file there without recording it, with the directories above it.
    pub fn put(&mut self, path: &str, bytes: &[u8]) {
        let mut dir = parent(path);
        while !dir.is_empty() {
            self.names.insert(dir.into(), Entry::Dir);
            dir = parent(dir);
        }
        let mut data = FileData::default();
        data.write(0, bytes);
        self.names.insert(path.into(), Entry::File(Arc::new(data)));
    }

    /// A file.
    pub fn data(&self, path: &str) -> Option<&FileData> {
        match self.names.get(path) {
            Some(Entry::File(data)) => Some(data),
            _ => None,
        }
    }

    /// A whole file.
    pub fn bytes(&self, path: &str) -> Vec<u8> {
        match self.names.get(path) {
            Some(Entry::File(data)) => {
                let mut bytes = vec![0; data.len as usize];
                data.read(0, &mut bytes);
                bytes
            }
            other => panic!("{path}: {other:?}"),
        }
    }

    /// Records that something was done.
    pub fn record(&mut self, event: TraceEvent) {
        if let Some(events) = &mut self.events {
            events.push(event);
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn file(&mut self, operation: &'static str, path: &str) -> Result<&mut FileData, FileError> {
        match self.names.get_mut(path) {
            Some(Entry::File(data)) => Ok(Arc::make_mut(data)),
            _ => Err(not_found(operation, path)),
        }
    }

    fn expect_parent(&self, operation: &'static str, path: &str) -> Result<(), FileError> {
        let dir = parent(path);
        if dir.is_empty() || matches!(self.names.get(dir), Some(Entry::Dir)) { Ok(()) } else { Err(not_found(operation, path)) }
    }

    fn create(&mut self, path: &str) -> Result<(), FileError> {
        self.expect_parent("create", path)?;
        if !self.names.contains_key(path) {
            self.names.insert(path.into(), Entry::File(Arc::default()));
            self.record(TraceEvent::Create { path: path.into() });
        }
        Ok(())
    }

    /// Extends a file as an allocation does.
    pub fn allocate(&mut self, path: &str, size: u64) -> Result<(), FileError> {
        self.create(path)?;
        let data = self.file("allocate", path)?;
        let len = data.len.max(size);
        data.set_len(len);
        self.record(TraceEvent::Allocate { path: path.into(), size });
        Ok(())
    }
}

fn not_found(operation: &'static str, path: &str) -> FileError {
    FileError { operation, path: path.into(), source: io::ErrorKind::NotFound.into() }
}

impl ReadFiles for Image {
    fn list(&mut self, dir: &str) -> Result<Vec<DirEntry>, FileError> {
        if !dir.is_empty() && !matches!(self.names.get(dir), Some(Entry::Dir)) {
            return Err(not_found("list", dir));
        }
        let below = self.names.iter().filter(|(path, _)| parent(path) == dir);
        Ok(below
            .map(|(path, entry)| DirEntry {
                name: path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name).to_string(),
                is_dir: matches!(entry, Entry::Dir),
            })
            .collect())
    }

    fn len(&mut self, path: &str) -> Result<u64, FileError> {
        match self.names.get(path) {
            Some(Entry::File(data)) => Ok(data.len),
            Some(Entry::Dir) => Ok(0),
            None => Err(not_found("stat", path)),
        }
    }

    fn read(&mut self, path: &str, offset: u64, into: &mut [u8]) -> Result<usize, FileError> {
        assert!(offset.is_multiple_of(UNIT) && into.len().is_multiple_of(BLOCK), "{path}: read of {} bytes at {offset}", into.len());
        self.data(path).map(|data| data.read(offset, into)).ok_or_else(|| not_found("read", path))
    }
}

impl StoreFiles for Image {
    fn write(&mut self, path: &str, offset: u64, blocks: &[u8]) -> Result<(), FileError> {
        assert!(offset.is_multiple_of(UNIT) && blocks.len().is_multiple_of(BLOCK), "{path}: write of {} bytes at {offset}", blocks.len());
        self.create(path)?;
        self.file("write", path)?.write(offset, blocks);
        if self.events.is_some() {
            let id = self.id();
            self.record(TraceEvent::WriteStart { id, path: path.into(), position: offset, bytes: blocks.to_vec() });
            self.record(TraceEvent::WriteEnd { id });
        }
        Ok(())
    }

    fn set_len(&mut self, path: &str, len: u64) -> Result<(), FileError> {
        let data = self.file("truncate", path)?;
        if data.len != len {
            data.set_len(len);
            self.record(TraceEvent::SetLen { path: path.into(), size: len });
        }
        Ok(())
    }

    fn sync(&mut self, path: &str) -> Result<(), FileError> {
        self.file("sync", path)?;
        let id = self.id();
        self.record(TraceEvent::SyncStart { id, path: path.into() });
        self.record(TraceEvent::SyncEnd { id });
        Ok(())
    }

    fn sync_dir(&mut self, dir: &str) -> Result<(), FileError> {
        self.list(dir)?;
        let id = self.id();
        self.record(TraceEvent::SyncDirStart { id, path: dir.into() });
        self.record(TraceEvent::SyncEnd { id });
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), FileError> {
        self.expect_parent("rename", to)?;
        if !self.names.contains_key(from) {
            return Err(not_found("rename", from));
        }
        let below = format!("{from}/");
        let moved: Vec<String> = self.names.keys().filter(|name| *name == from || name.starts_with(&below)).cloned().collect();
        for name in moved {
            if let Some(entry) = self.names.remove(&name) {
                self.names.insert(format!("{to}{}", &name[from.len()..]), entry);
            }
        }
        self.record(TraceEvent::Rename { from: from.into(), to: to.into() });
        Ok(())
    }

    fn unlink(&mut self, path: &str) -> Result<(), FileError> {
        self.file("unlink", path)?;
        self.names.remove(path);
        self.record(TraceEvent::Unlink { path: path.into() });
        Ok(())
    }

    fn create_dir(&mut self, dir: &str) -> Result<(), FileError> {
        self.expect_parent("create", dir)?;
        if !self.names.contains_key(dir) {
            self.names.insert(dir.into(), Entry::Dir);
            self.record(TraceEvent::CreateDir { path: dir.into() });
        }
        Ok(())
    }

    fn remove_dir(&mut self, dir: &str) -> Result<(), FileError> {
        if !self.list(dir)?.is_empty() {
            return Err(FileError { operation: "remove", path: dir.into(), source: io::ErrorKind::DirectoryNotEmpty.into() });
        }
        self.names.remove(dir);
        self.record(TraceEvent::Unlink { path: dir.into() });
        Ok(())
    }
}
