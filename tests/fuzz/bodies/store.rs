//! Any bytes as files of a store: nothing panics, nothing is allocated on the word of an unchecked length, and what can be read is the same when it is
//! written again.
//!
//! The bodies of fuzz targets, and of short random tests.

use std::collections::BTreeMap;
use std::io;

use corelane::limits::BLOCK;
use corelane::log::checkpoint;
use corelane::log::file_header::{self, CheckpointHeader, GenerationRecord, IndexHeader, MetaSlot, SegmentHeader};
use corelane::log::files::{DirEntry, FileError, ReadFiles, StoreFiles};
use corelane::log::index::{Index, IndexEntry};
use corelane::log::inspect::{inspect_checkpoint, inspect_index, inspect_journal, inspect_segment, verify};
use corelane::log::journal::{
    Adopt, Entries, EntryKind, GROUP_HEADER_LEN, GroupHeader, LargeReference, SegmentOpen, parse_group, seal_group,
};
use corelane::log::paths;
use corelane::log::recovery::{OpenRequest, open_store};
use corelane::types::{TopicId, TopicPartition};

const CLUSTER: [u8; 16] = [1; 16];
const PARTITION: TopicPartition = TopicPartition { topic: TopicId([2; 16]), partition: 0 };
const SALT: u64 = 77;

/// Bytes as a journal group: as they are, and sealed, so that the entries are reached.
pub fn journal(data: &[u8]) {
    read_group(data);
    if let Some(group) = sealed(data, 4096) {
        read_group(&group);
    }
    let mut files = Files::default();
    files.0.insert("file".into(), data.to_vec());
    let _ = inspect_journal(&mut files, "file", &mut |_| ());
}

fn read_group(bytes: &[u8]) {
    let Ok((header, group)) = parse_group(bytes) else { return };
    assert_eq!(header.length as usize, group.len());
    for entry in Entries::new(group) {
        let Ok((header, payload)) = entry else { return };
        assert_eq!(header.payload_len as usize, payload.len());
        match header.kind {
            EntryKind::SegmentOpen => drop(SegmentOpen::decode(payload).map(|open| assert_eq!(open.encode()[..4], payload[..4]))),
            EntryKind::Adopt => drop(Adopt::decode(payload).map(|adopt| assert_eq!(adopt.encode()[..], *payload))),
            EntryKind::LargeReference => drop(LargeReference::decode(&header, payload)),
            _ => {}
        }
    }
}

/// The bytes as the entries of a group at a position, if they fit.
fn sealed(entries: &[u8], position: u64) -> Option<Vec<u8>> {
    let mut group = vec![0; GROUP_HEADER_LEN];
    group.extend(entries.iter().take(64 * 1024));
    let header = GroupHeader {
        generation: 1,
        salt: SALT,
        file: 1,
        position,
        sequence: 1,
        durable_sequence: 0,
        length: group.len() as u32,
        shard: 0,
        entries: entries.first().map_or(0, |first| u16::from(*first % 8)),
        previous_checksum: 0,
    };
    seal_group(&mut group, &header);
    Some(group)
}

/// Bytes as a checkpoint: as they are, and as a body that checks.
pub fn checkpoint(data: &[u8]) {
    for bytes in [data.to_vec(), with_header(data)] {
        if let Ok((header, body)) = checkpoint::decode(&bytes) {
            let (again, same) = checkpoint::decode(&checkpoint::encode(&header, &body)).expect("what was written can be read");
            assert_eq!((again.sequence, same), (header.sequence, body));
        }
        let mut files = Files::default();
        files.0.insert("file".into(), bytes);
        let _ = inspect_checkpoint(&mut files, "file");
    }
}

fn with_header(body: &[u8]) -> Vec<u8> {
    let sequence = body.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    let header = CheckpointHeader {
        cluster: CLUSTER,
        generation: 1,
        sequence,
        shard: 0,
        body_crc: crc32fast::hash(body),
        body_len: body.len() as u64,
    };
    let mut file = file_header::encode_header(&header);
    file.extend(body);
    file
}

/// Bytes as segment and index behind right headers, looked at alone.
pub fn segment(data: &[u8]) {
    let header = SegmentHeader { partition: PARTITION, rewrite_generation: 0, base_offset: 0 };
    let mut files = Files::default();
    files.0.insert("log".into(), [file_header::encode_header(&header), data.to_vec()].concat());
    files.0.insert("index".into(), [file_header::encode_header(&IndexHeader(header)), data.to_vec()].concat());
    inspect_segment(&mut files, "log", &mut |_| ()).expect("a file in memory can be read");
    inspect_index(&mut files, "index", 0).expect("a file in memory can be read");
    let (index, _) = Index::load(0, data, u32::try_from(data.len() / 32).unwrap_or(0));
    for entry in index.entries() {
        assert_eq!(IndexEntry::decode(&entry.encode(0), 0).as_ref(), Ok(entry));
    }
}

/// Bytes as the entries of the only group, as the checkpoint, and as the segment of a store that is opened: whatever they say, the store opens, or refuses, and
/// opens the same way again.
pub fn recovery(data: &[u8]) {
    let (checkpoint, rest) = data.split_at(data.len() / 3);
    let (segment, group) = rest.split_at(rest.len() / 2);
    let mut files = Files::default();
    let meta = MetaSlot { oldest_reader: 1, node_id: 1, cluster: CLUSTER, incarnation: [3; 16], sequence: 1, clean_shutdown: false };
    files.0.insert(paths::META.into(), file_header::encode_header(&meta));
    let record = GenerationRecord { cluster: CLUSTER, generation: 1, salt: SALT, shards: 1 };
    files.0.insert(paths::GENERATION.into(), file_header::encode_header(&record));
    let body = if checkpoint.first().is_some_and(|first| first % 2 == 0) { Vec::new() } else { checkpoint.to_vec() };
    let body = if body.is_empty() { [0, 1, 0].iter().flat_map(|n: &u64| n.to_le_bytes()).take(20).collect() } else { body };
    files.0.insert(paths::checkpoint(1, 0, paths::Slot::A), padded(with_header(&body)));
    let mut journal = vec![0; BLOCK];
    journal.extend(sealed(group, BLOCK as u64).unwrap_or_default());
    files.0.insert(paths::journal(1), padded(journal));
    let header = SegmentHeader { partition: PARTITION, rewrite_generation: 0, base_offset: 0 };
    files.0.insert(paths::segment(PARTITION, 0), padded([file_header::encode_header(&header), segment.to_vec()].concat()));
    let _ = verify(&mut files, &mut |_| ());
    for _ in 0..2 {
        let owner = |_: TopicPartition| 0;
        let request = OpenRequest { cluster: CLUSTER, shards: 1, salt: SALT, now_ms: 0, catalogue: &[PARTITION], owner: &owner };
        if open_store(&mut files, &request).is_err() {
            return;
        }
    }
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// A store in memory: files only, directories are what their names say.
#[derive(Default)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    fn get(&mut self, path: &str) -> Result<&mut Vec<u8>, FileError> {
        let missing = || FileError { operation: "open", path: path.into(), source: io::ErrorKind::NotFound.into() };
        self.0.get_mut(path).ok_or_else(missing)
    }
}

impl ReadFiles for Files {
    fn list(&mut self, dir: &str) -> Result<Vec<DirEntry>, FileError> {
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let mut found: BTreeMap<String, bool> = BTreeMap::new();
        for rest in self.0.keys().filter_map(|path| path.strip_prefix(&prefix)) {
            match rest.split_once('/') {
                Some((name, _)) => found.insert(name.into(), true),
                None => found.insert(rest.into(), false),
            };
        }
        Ok(found.into_iter().map(|(name, is_dir)| DirEntry { name, is_dir }).collect())
    }

    fn len(&mut self, path: &str) -> Result<u64, FileError> {
        self.get(path).map(|bytes| bytes.len() as u64)
    }

    fn read(&mut self, path: &str, offset: u64, into: &mut [u8]) -> Result<usize, FileError> {
        let bytes = self.get(path)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let len = into.len().min(bytes.len() - from);
        into[..len].copy_from_slice(&bytes[from..from + len]);
        Ok(len)
    }
}

impl StoreFiles for Files {
    fn write(&mut self, path: &str, offset: u64, blocks: &[u8]) -> Result<(), FileError> {
        let full = || FileError { operation: "write", path: path.into(), source: io::ErrorKind::FileTooLarge.into() };
        let end = usize::try_from(offset)
            .ok()
            .and_then(|offset| offset.checked_add(blocks.len()))
            .filter(|end| *end < 1 << 26)
            .ok_or_else(full)?;
        let bytes = self.0.entry(path.into()).or_default();
        bytes.resize(bytes.len().max(end), 0);
        bytes[end - blocks.len()..end].copy_from_slice(blocks);
        Ok(())
    }

    fn set_len(&mut self, path: &str, len: u64) -> Result<(), FileError> {
        self.get(path).map(|bytes| bytes.resize(len as usize, 0))
    }

    fn sync(&mut self, path: &str) -> Result<(), FileError> {
        self.get(path).map(drop)
    }

    fn sync_dir(&mut self, _dir: &str) -> Result<(), FileError> {
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), FileError> {
        let below = format!("{from}/");
        let moved: Vec<String> = self.0.keys().filter(|path| *path == from || path.starts_with(&below)).cloned().collect();
        for path in moved {
            if let Some(bytes) = self.0.remove(&path) {
                self.0.insert(format!("{to}{}", &path[from.len()..]), bytes);
            }
        }
        Ok(())
    }

    fn unlink(&mut self, path: &str) -> Result<(), FileError> {
        self.get(path)?;
        self.0.remove(path);
        Ok(())
    }

    fn create_dir(&mut self, _dir: &str) -> Result<(), FileError> {
        Ok(())
    }

    fn remove_dir(&mut self, _dir: &str) -> Result<(), FileError> {
        Ok(())
    }
}
