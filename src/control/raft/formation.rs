//! How a node's consensus directory comes to be, and how it is opened. Blocks.
//!
//! A founder and a node that ran alone go the same way: a first snapshot (entry 0, which this node alone is a voter of) with the catalogue that there is, empty or not,
//! and an empty log behind it. A node that joins has neither: the leader sends all. The file of votes is made last; until it is there, everything is made anew.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use openraft::{CommittedLeaderId, Membership, StoredMembership};

use super::codec::snapshot_meta;
use super::directory::{Directory, StorageError};
use super::log_files::{self, LogFiles};
use super::log_format::Owner;
use super::machine::OpenError;
use super::snapshot::{self, Proposers, SnapshotFiles, Stored};
use super::votes::{self, VoteFiles};
use super::{LogId, Member};
use crate::control::metadata::Witness;
use crate::limits::{self, BLOCK};

/// What a node does whose consensus directory is not there yet. One that has it goes back to its cluster, whatever this says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// It is a cluster of one.
    Found {
        /// The file of the catalogue of a node that ran alone, if there is one.
        catalogue: Option<PathBuf>,
    },
    /// It asks to be let in.
    Join {
        /// Addresses of members.
        members: Vec<String>,
    },
    /// It was in a cluster before, so the directory must be there. Made anew, this life of the node could vote a second time.
    Return,
}

/// The files, open.
#[derive(Debug)]
pub struct Opened {
    /// The log.
    pub log: LogFiles,
    /// The votes.
    pub votes: VoteFiles,
    /// The snapshots.
    pub snapshots: SnapshotFiles,
    /// Bytes of the log that were never acknowledged and are cut.
    pub torn: usize,
    /// The directory was made just now.
    pub is_new: bool,
}

/// Opens the directory, or makes it.
pub fn open_or_form(path: &Path, owner: Owner, me: &Member, origin: &Origin, witness: Witness) -> Result<Opened, OpenError> {
    let directory = Directory::open(path, witness)?;
    let is_new = !directory.path(votes::VOTE).try_exists().map_err(|source| io_error(&directory, source))?;
    if is_new {
        form(&directory, owner, me, origin)?;
    }
    if let Origin::Found { catalogue: Some(file) } = origin {
        retire(file)?;
    }
    let votes = VoteFiles::open(&directory, owner)?;
    let snapshots = SnapshotFiles::new(directory.clone(), owner);
    let (log, torn) = LogFiles::open(directory.clone(), owner)?;
    check(&directory, &log, &votes, &snapshots)?;
    Ok(Opened { log, votes, snapshots, torn, is_new })
}

fn io_error(directory: &Directory, source: std::io::Error) -> StorageError {
    StorageError::Io { path: directory.path(""), source }
}

/// The catalogue of a node that ran alone has become the first snapshot. It goes, durably: should the consensus be lost one day, it must not be taken for the state of the cluster.
fn retire(catalogue: &Path) -> Result<(), StorageError> {
    let failed = |source| StorageError::Io { path: catalogue.into(), source };
    match std::fs::remove_file(catalogue) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        removed => removed.map_err(failed)?,
    }
    let above = catalogue.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(above).and_then(|above| above.sync_all()).map_err(failed)
}

fn form(directory: &Directory, owner: Owner, me: &Member, origin: &Origin) -> Result<(), OpenError> {
    if *origin == Origin::Return {
        let what = "the node's consensus files are lost; empty its whole data directory, and it comes back as a new node".into();
        return Err(StorageError::Inconsistent { path: directory.path(""), what }.into());
    }
    let names = directory.names()?;
    for (_, name) in log_files::log_names(&names) {
        let length = std::fs::metadata(directory.path(name)).map_err(|source| io_error(directory, source))?.len();
        if length > BLOCK as u64 {
            let what = format!("there is a log, but no {:?}: with the votes lost, this node could vote twice", votes::VOTE);
            return Err(StorageError::Inconsistent { path: directory.path(""), what }.into());
        }
    }
    let ours = |name: &&String| name.starts_with("log-") || name.starts_with("snapshot-") || *name == votes::COMMITTED;
    for name in names.iter().filter(ours) {
        directory.remove(name)?;
    }
    let mut previous = None;
    if let Origin::Found { catalogue } = origin {
        let catalogue = match catalogue {
            Some(file) => {
                let bytes = read(file)?;
                snapshot::catalogue_of_file(owner.cluster, &bytes)?
            }
            None => snapshot::empty_catalogue(),
        };
        let first: LogId = LogId::new(CommittedLeaderId::new(0, 0), 0);
        let membership = Membership::new(vec![[owner.id].into()], BTreeMap::from([(owner.id, me.clone())]));
        let data = snapshot::encode_data(owner.cluster, catalogue.view(), &Proposers::default())
            .map_err(|error| StorageError::Inconsistent { path: directory.path(""), what: error.to_string() })?;
        let meta = snapshot_meta(Some(first), StoredMembership::new(Some(first), membership));
        SnapshotFiles::new(directory.clone(), owner).save(&Stored { meta, data })?;
        previous = Some(first);
    }
    LogFiles::make(directory, owner, previous)?;
    VoteFiles::make(directory, owner)?;
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>, StorageError> {
    let mut bytes = Vec::new();
    // One byte more than can be, so that too long is told from just long enough.
    let read = File::open(file).and_then(|opened| opened.take(limits::MAX_CATALOGUE as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|source| StorageError::Io { path: file.into(), source })?;
    Ok(bytes)
}

/// The files must fit each other: each alone can check although one of them is missing, or is an older copy.
fn check(directory: &Directory, log: &LogFiles, votes: &VoteFiles, snapshots: &SnapshotFiles) -> Result<(), StorageError> {
    let memory = log.memory();
    let memory = log_files::lock(&memory);
    let snapshot = snapshots.load()?.and_then(|stored| stored.meta.last_log_id);
    let inconsistent = |what: String| Err(StorageError::Inconsistent { path: directory.path(""), what });
    if memory.previous > snapshot {
        return inconsistent(format!("the log begins behind entry {:?}, but the newest snapshot ends with {snapshot:?}", memory.previous));
    }
    let known = memory.last().max(snapshot);
    if votes.committed() > known {
        return inconsistent(format!("entry {:?} was committed here, but log and snapshot end with {known:?}", votes.committed()));
    }
    if let Some(last) = memory.last()
        && last.leader_id.term > votes.vote().leader_id.term
    {
        return inconsistent(format!("the log has entry {last}, but the last vote is {}", votes.vote()));
    }
    Ok(())
}
