//! Snapshots of the state machine: `src/docs/on_disk.md`, "consensus". Encoding is pure, files block.
//!
//! What travels between nodes is the *data*: the proposers' last numbers and a compacted catalogue. In a file a header and the description stand before it. A
//! file is written beside, synced, renamed, and only then are older ones removed; so the newest one that has its name must check, or the disk has damaged it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use openraft::SnapshotMeta;

use super::codec::{self, CodecError, Reader};
use super::directory::{Directory, StorageError};
use super::log_format::{self, FormatError, KIND_SNAPSHOT, Owner};
use super::{ConsensusId, Member};
use crate::cluster::command::CommandError;
use crate::cluster::command_log::{self, LogError};
use crate::cluster::{Catalogue, CatalogueView};
use crate::limits::{self, BLOCK};
use crate::request::Refusal;

/// Most bytes of a description.
const MOST_META: usize = limits::MAX_CONSENSUS_ENTRY;

/// Who proposed what last.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Proposers {
    /// The last number of each, and the entry that had it.
    last: BTreeMap<u64, (u64, u64)>,
}

impl Proposers {
    /// Whether a proposal is new; it is remembered then. One that is not was applied, or came so late that its proposer has given it up. `index`: its entry.
    pub fn is_new(&mut self, proposer: u64, sequence: u64, index: u64) -> bool {
        if self.last.get(&proposer).is_some_and(|(last, _)| sequence <= *last) {
            return false;
        }
        if self.last.len() >= limits::MAX_PROPOSERS && !self.last.contains_key(&proposer) {
            let oldest = self.last.iter().min_by_key(|(_, (_, index))| *index).map(|(proposer, _)| *proposer);
            self.last.remove(&oldest.expect("it is full"));
        }
        self.last.insert(proposer, (sequence, index));
        true
    }

    /// The last number of a proposer.
    pub fn last_of(&self, proposer: u64) -> Option<u64> {
        self.last.get(&proposer).map(|(sequence, _)| *sequence)
    }
}

/// The data of a snapshot that is none.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The proposers can't be read.
    #[error("the proposers of a snapshot: {0}")]
    Proposers(CodecError),
    /// The catalogue can't be read.
    #[error("the catalogue of a snapshot: {0}")]
    Catalogue(#[from] LogError),
    /// It is of another cluster.
    #[error("the catalogue of a snapshot is that of cluster {0}")]
    Cluster(uuid::Uuid),
    /// It is not what a state machine wrote.
    #[error("record {0} of the catalogue of a snapshot can't be applied: {1}")]
    Replay(u64, Refusal),
}

/// The catalogue of a new cluster.
pub fn empty_catalogue() -> Catalogue {
    Catalogue::new()
}

/// The catalogue of a node that ran alone, from the bytes of its file.
pub fn catalogue_of_file(cluster: [u8; 16], bytes: &[u8]) -> Result<Catalogue, SnapshotError> {
    let log = command_log::decode_log(bytes)?;
    if log.cluster != cluster {
        return Err(SnapshotError::Cluster(uuid::Uuid::from_bytes(log.cluster)));
    }
    Catalogue::replay(&log).map_err(|(record, refusal)| SnapshotError::Replay(record, refusal))
}

/// The data of a state.
pub fn encode_data(cluster: [u8; 16], view: &Arc<CatalogueView>, proposers: &Proposers) -> Result<Bytes, CommandError> {
    let mut out = Vec::new();
    out.extend_from_slice(&(proposers.last.len() as u32).to_le_bytes());
    for (proposer, (sequence, index)) in &proposers.last {
        [proposer, sequence, index].into_iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
    }
    out.extend_from_slice(&command_log::encode_compacted(cluster, view)?.0);
    Ok(out.into())
}

/// The state of the data.
pub fn decode_data(cluster: [u8; 16], data: &[u8]) -> Result<(Catalogue, Proposers), SnapshotError> {
    let mut reader = Reader::new(data);
    let mut read = || {
        let mut last = BTreeMap::new();
        let count = reader.u32()? as usize;
        if count > limits::MAX_PROPOSERS {
            return Err(CodecError::Invalid("more proposers than there can be"));
        }
        for _ in 0..count {
            last.insert(reader.u64()?, (reader.u64()?, reader.u64()?));
        }
        Ok(Proposers { last })
    };
    let proposers = read().map_err(SnapshotError::Proposers)?;
    Ok((catalogue_of_file(cluster, reader.remaining())?, proposers))
}

/// A snapshot with its description.
#[derive(Clone, PartialEq, Debug)]
pub struct Stored {
    /// What it stands for.
    pub meta: SnapshotMeta<ConsensusId, Member>,
    /// The state.
    pub data: Bytes,
}

/// A whole file.
pub fn encode_file(owner: Owner, snapshot: &Stored) -> Vec<u8> {
    let mut meta = Vec::new();
    codec::put_snapshot_meta(&mut meta, &snapshot.meta);
    let mut body = Vec::with_capacity(4 + meta.len() + snapshot.data.len());
    codec::put_bytes(&mut body, &meta);
    body.extend_from_slice(&snapshot.data);
    let mut fields = Vec::new();
    log_format::put_owner(&mut fields, &owner);
    fields.extend_from_slice(&(body.len() as u64).to_le_bytes());
    fields.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    let mut file = log_format::encode_block(KIND_SNAPSHOT, &fields).to_vec();
    file.append(&mut body);
    file
}

/// Reads a whole file; the data is only held against its checksum.
pub fn decode_file(owner: Owner, bytes: &[u8]) -> Result<Stored, FormatError> {
    let mut header = log_format::decode_block(KIND_SNAPSHOT, bytes)?;
    log_format::check_owner(&mut header, owner)?;
    let content = |what| move |source| FormatError::Content { what, position: 40, source };
    let length = header.u64().map_err(content("header"))?;
    let (body, actual) = (&bytes[BLOCK..], header.u32().map_err(content("header"))?);
    if length != body.len() as u64 {
        return Err(FormatError::TooShort { actual: bytes.len() });
    }
    let expected = crc32fast::hash(body);
    if expected != actual {
        return Err(FormatError::Checksum { what: "content", expected, actual });
    }
    let mut reader = Reader::new(body);
    let mut description = Reader::new(reader.bytes(MOST_META).map_err(content("description"))?);
    let meta = codec::read_snapshot_meta(&mut description).map_err(content("description"))?;
    description.end().map_err(content("description"))?;
    Ok(Stored { meta, data: Bytes::copy_from_slice(reader.remaining()) })
}

/// The files of the snapshots.
#[derive(Clone, Debug)]
pub struct SnapshotFiles {
    directory: Directory,
    owner: Owner,
}

fn index_of(name: &str) -> Option<u64> {
    name.strip_prefix("snapshot-").filter(|digits| digits.len() == 20)?.parse().ok()
}

impl SnapshotFiles {
    /// Those of a directory.
    pub fn new(directory: Directory, owner: Owner) -> SnapshotFiles {
        SnapshotFiles { directory, owner }
    }

    /// Keeps a snapshot durably, then removes older ones.
    pub fn save(&self, snapshot: &Stored) -> Result<(), StorageError> {
        let index = snapshot.meta.last_log_id.map_or(0, |id| id.index);
        self.directory.make(&format!("snapshot-{index:020}"), &encode_file(self.owner, snapshot))?;
        for name in self.directory.names()? {
            if index_of(&name).is_some_and(|other| other < index) {
                self.directory.remove(&name)?;
            }
        }
        Ok(())
    }

    /// The newest one.
    pub fn load(&self) -> Result<Option<Stored>, StorageError> {
        let names = self.directory.names()?;
        let Some(name) = names.iter().filter(|name| index_of(name).is_some()).max() else { return Ok(None) };
        let bytes = self.directory.read(name, (limits::MAX_CONSENSUS_SNAPSHOT + MOST_META + 2 * BLOCK) as u64)?;
        let stored = decode_file(self.owner, &bytes);
        stored.map(Some).map_err(|source| StorageError::Format { path: self.directory.path(name), source })
    }
}
