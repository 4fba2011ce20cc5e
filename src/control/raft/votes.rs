//! The files `vote` and `committed`. All of it blocks.
//!
//! A vote is synced before the library hears of it, and then stands in both slots: one that was given and forgotten could be given twice. The committed index
//! is only a hint that lets a start show what was known to be committed before any leader is found; it may be lost, so it is never synced.

use super::codec::{self, Reader};
use super::directory::{Directory, Slots, StorageError};
use super::log_format::{self, FormatError, KIND_COMMITTED, KIND_VOTE, Owner};
use super::{LogId, Vote};
use crate::limits::BLOCK;

/// Name of the file of votes: with it, the directory counts.
pub const VOTE: &str = "vote";
/// Name of the file of the committed index.
pub const COMMITTED: &str = "committed";

/// Both files, open.
#[derive(Debug)]
pub struct VoteFiles {
    owner: Owner,
    votes: Slots,
    vote: Vote,
    vote_sequence: u64,
    committed: Slots,
    committed_id: Option<LogId>,
    committed_sequence: u64,
    poisoned: bool,
}

impl VoteFiles {
    /// Makes both files, that of the votes last.
    pub fn make(directory: &Directory, owner: Owner) -> Result<(), StorageError> {
        Slots::make(directory, COMMITTED, &encode_committed(owner, 0, None))?;
        Slots::make(directory, VOTE, &encode_vote(owner, 0, &Vote::default()))?;
        Ok(())
    }

    /// Reads both files.
    pub fn open(directory: &Directory, owner: Owner) -> Result<VoteFiles, StorageError> {
        let decode = |bytes: &[u8]| decode_slot(KIND_VOTE, owner, bytes, codec::read_vote);
        let (votes, (vote_sequence, vote)) = Slots::open(directory, VOTE, |slots| newest(slots.map(decode)))?;
        let decode = |bytes: &[u8]| decode_slot(KIND_COMMITTED, owner, bytes, codec::read_some_log_id);
        let hint = |slots: [&[u8]; 2]| match newest(slots.map(decode)) {
            // Of another node, or a newer format: not for us to overwrite.
            Err(error @ (FormatError::Owner { .. } | FormatError::Version { .. })) => Err(error),
            other => Ok(other.unwrap_or((1, (0, None)))),
        };
        let (committed, (committed_sequence, committed_id)) = Slots::open(directory, COMMITTED, hint)?;
        Ok(VoteFiles { owner, votes, vote, vote_sequence, committed, committed_id, committed_sequence, poisoned: false })
    }

    /// The last vote.
    pub fn vote(&self) -> Vote {
        self.vote
    }

    /// The last entry that was known to be committed, or an earlier one.
    pub fn committed(&self) -> Option<LogId> {
        self.committed_id
    }

    /// Makes a vote durable.
    pub fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        if self.poisoned {
            return Err(StorageError::Poisoned);
        }
        self.poisoned = true;
        self.vote_sequence += 1;
        self.votes.write_durably(&encode_vote(self.owner, self.vote_sequence, vote))?;
        self.vote = *vote;
        self.poisoned = false;
        Ok(())
    }

    /// Notes the last entry that is committed.
    pub fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.committed_sequence += 1;
        self.committed.write_unsynced(&encode_committed(self.owner, self.committed_sequence, committed))?;
        self.committed_id = committed;
        Ok(())
    }
}

fn encode_slot(kind: u16, owner: Owner, sequence: u64, put: impl FnOnce(&mut Vec<u8>)) -> [u8; BLOCK] {
    let mut fields = Vec::new();
    log_format::put_owner(&mut fields, &owner);
    fields.extend_from_slice(&sequence.to_le_bytes());
    put(&mut fields);
    log_format::encode_block(kind, &fields)
}

fn encode_vote(owner: Owner, sequence: u64, vote: &Vote) -> [u8; BLOCK] {
    encode_slot(KIND_VOTE, owner, sequence, |out| codec::put_vote(out, vote))
}

fn encode_committed(owner: Owner, sequence: u64, committed: Option<LogId>) -> [u8; BLOCK] {
    encode_slot(KIND_COMMITTED, owner, sequence, |out| codec::put_some_log_id(out, committed.as_ref()))
}

fn decode_slot<T>(
    kind: u16,
    owner: Owner,
    bytes: &[u8],
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, codec::CodecError>,
) -> Result<(u64, T), FormatError> {
    let mut reader = log_format::decode_block(kind, bytes)?;
    log_format::check_owner(&mut reader, owner)?;
    let content = |source| FormatError::Content { what: "slot", position: 40, source };
    let sequence = reader.u64().map_err(content)?;
    Ok((sequence, read(&mut reader).map_err(content)?))
}

/// The slot with the larger number of those that check. One that does not is a write that was cut, or rot: the other one has the same then, or what counted before
/// a vote that nobody was told of.
fn newest<T>(slots: [Result<(u64, T), FormatError>; 2]) -> Result<(usize, (u64, T)), FormatError> {
    match slots {
        [Ok(first), Ok(second)] if first.0 > second.0 => Ok((0, first)),
        [_, Ok(second)] => Ok((1, second)),
        [Ok(first), Err(_)] => Ok((0, first)),
        [Err(error), Err(_)] => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::LogId;
    use super::*;
    use crate::control::metadata::Witness;
    use openraft::CommittedLeaderId;

    const OWNER: Owner = Owner { cluster: [3; 16], id: 77 };

    fn made() -> (tempfile::TempDir, Directory) {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::open(&scratch.path().join("consensus"), Witness::default()).unwrap();
        VoteFiles::make(&directory, OWNER).unwrap();
        (scratch, directory)
    }

    #[test]
    fn votes_are_kept_and_rot_of_one_slot_loses_none() {
        let (_scratch, directory) = made();
        let mut files = VoteFiles::open(&directory, OWNER).unwrap();
        assert_eq!((files.vote(), files.committed()), (Vote::default(), None));
        let committed = LogId::new(CommittedLeaderId::new(3, 9), 12);
        for term in 1..6 {
            files.save_vote(&Vote::new(term, 9)).unwrap();
            files.save_committed(Some(LogId { index: term, ..committed })).unwrap();
            for slot in 0..2 {
                let path = directory.path(VOTE);
                let good = std::fs::read(&path).unwrap();
                let mut rotten = good.clone();
                rotten[slot * BLOCK + 50] ^= 1;
                std::fs::write(&path, rotten).unwrap();
                let again = VoteFiles::open(&directory, OWNER).unwrap();
                assert_eq!(again.vote(), Vote::new(term, 9), "slot {slot}");
                assert_eq!(again.committed().unwrap().index, term);
                std::fs::write(&path, good).unwrap();
            }
        }
    }

    #[test]
    fn lost_votes_and_those_of_others_are_refused_but_a_lost_hint_is_none() {
        let (_scratch, directory) = made();
        assert!(matches!(
            VoteFiles::open(&directory, Owner { id: 78, ..OWNER }),
            Err(StorageError::Format { source: FormatError::Owner { .. }, .. })
        ));
        std::fs::write(directory.path(COMMITTED), b"nothing").unwrap();
        assert_eq!(VoteFiles::open(&directory, OWNER).unwrap().committed(), None);
        std::fs::write(directory.path(VOTE), vec![0; 2 * BLOCK]).unwrap();
        assert!(matches!(VoteFiles::open(&directory, OWNER), Err(StorageError::Format { source: FormatError::Kind { .. }, .. })));
    }

    #[test]
    fn the_golden_slots_are_read_and_written_alike() {
        let id = LogId::new(CommittedLeaderId::new(4, 77), 1000);
        let slots = [encode_vote(OWNER, 5, &Vote::new_committed(4, 77)), encode_committed(OWNER, 9, Some(id))];
        super::super::golden::same("slots-1.bin", &slots.concat());
    }
}
