//! The values of consensus as bytes, on disk and between nodes alike. Pure.
//!
//! Little-endian, lengths before what they count. Whatever comes from outside is read with bounds: what is announced is never allocated before it is there,
//! and a membership that makes no sense is refused here, because the library would take it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::{CommittedLeaderId, EntryPayload, LogId, Membership, SnapshotMeta, StoredMembership, Vote};

use super::{ConsensusId, Entry, Member, Proposal};
use crate::limits;

/// Bytes that are not such a value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    /// They end too early.
    #[error("ends after {have} bytes where {need} are needed")]
    Short {
        /// Bytes that were asked for.
        need: usize,
        /// Bytes that are left.
        have: usize,
    },
    /// There is more than the value.
    #[error("{0} bytes too many")]
    Surplus(usize),
    /// A value that can't be.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Takes values off the front.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Over these bytes.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// So many bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        if count > self.rest.len() {
            return Err(CodecError::Short { need: count, have: self.rest.len() });
        }
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A UUID.
    pub fn uuid(&mut self) -> Result<[u8; 16], CodecError> {
        self.array()
    }

    /// A byte that is 0 or 1.
    pub fn bool(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Invalid("a truth value is neither 0 nor 1")),
        }
    }

    /// Bytes behind their length.
    pub fn bytes(&mut self, most: usize) -> Result<&'a [u8], CodecError> {
        let length = self.u32()? as usize;
        if length > most {
            return Err(CodecError::Invalid("longer than it can be"));
        }
        self.take(length)
    }

    /// A text behind its length.
    pub fn text(&mut self, most: usize) -> Result<String, CodecError> {
        let bytes = self.bytes(most)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| CodecError::Invalid("a text is not UTF-8"))
    }

    /// All that is left.
    pub fn remaining(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Asserts of the sender that nothing is left.
    pub fn end(self) -> Result<(), CodecError> {
        match self.rest.len() {
            0 => Ok(()),
            surplus => Err(CodecError::Surplus(surplus)),
        }
    }
}

/// Appends bytes behind their length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a vote.
pub fn put_vote(out: &mut Vec<u8>, vote: &Vote<ConsensusId>) {
    out.extend_from_slice(&vote.leader_id.term.to_le_bytes());
    out.extend_from_slice(&vote.leader_id.node_id.to_le_bytes());
    out.push(u8::from(vote.committed));
}

/// Reads a vote.
pub fn read_vote(reader: &mut Reader<'_>) -> Result<Vote<ConsensusId>, CodecError> {
    let (term, node) = (reader.u64()?, reader.u64()?);
    Ok(if reader.bool()? { Vote::new_committed(term, node) } else { Vote::new(term, node) })
}

/// Appends the id of an entry.
pub fn put_log_id(out: &mut Vec<u8>, id: &LogId<ConsensusId>) {
    out.extend_from_slice(&id.leader_id.term.to_le_bytes());
    out.extend_from_slice(&id.leader_id.node_id.to_le_bytes());
    out.extend_from_slice(&id.index.to_le_bytes());
}

/// Reads the id of an entry.
pub fn read_log_id(reader: &mut Reader<'_>) -> Result<LogId<ConsensusId>, CodecError> {
    let leader = CommittedLeaderId::new(reader.u64()?, reader.u64()?);
    let index = reader.u64()?;
    // Room for one more everywhere: the library counts on it.
    if index >= u64::MAX / 2 {
        return Err(CodecError::Invalid("an index is out of range"));
    }
    Ok(LogId::new(leader, index))
}

/// Appends the id of an entry, or that there is none.
pub fn put_some_log_id(out: &mut Vec<u8>, id: Option<&LogId<ConsensusId>>) {
    out.push(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

/// Reads the id of an entry, or that there is none.
pub fn read_some_log_id(reader: &mut Reader<'_>) -> Result<Option<LogId<ConsensusId>>, CodecError> {
    Ok(if reader.bool()? { Some(read_log_id(reader)?) } else { None })
}

/// Appends a member.
pub fn put_member(out: &mut Vec<u8>, member: &Member) {
    out.extend_from_slice(&member.node.to_le_bytes());
    put_bytes(out, member.address.as_bytes());
}

/// Reads a member.
pub fn read_member(reader: &mut Reader<'_>) -> Result<Member, CodecError> {
    let (node, address) = (reader.u32()?, reader.text(limits::MAX_NODE_ADDRESS)?);
    if node > limits::MAX_NODE_ID {
        return Err(CodecError::Invalid("a node id is out of range"));
    }
    Ok(Member { node, address })
}

fn put_membership(out: &mut Vec<u8>, membership: &Membership<ConsensusId, Member>) {
    let configs = membership.get_joint_config();
    out.push(configs.len() as u8);
    for config in configs {
        out.extend_from_slice(&(config.len() as u16).to_le_bytes());
        config.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
    }
    out.extend_from_slice(&(membership.nodes().count() as u16).to_le_bytes());
    for (id, member) in membership.nodes() {
        out.extend_from_slice(&id.to_le_bytes());
        put_member(out, member);
    }
}

fn read_membership(reader: &mut Reader<'_>) -> Result<Membership<ConsensusId, Member>, CodecError> {
    let mut configs = Vec::new();
    for _ in 0..reader.u8()? {
        let mut config = BTreeSet::new();
        for _ in 0..reader.u16()? {
            config.insert(reader.u64()?);
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..reader.u16()? {
        nodes.insert(reader.u64()?, read_member(reader)?);
    }
    if configs.len() > 2 || configs.iter().any(BTreeSet::is_empty) || nodes.len() > limits::MAX_NODES {
        return Err(CodecError::Invalid("a membership has at most two sets of voters, none empty"));
    }
    if nodes.contains_key(&0) || configs.iter().flatten().any(|id| !nodes.contains_key(id)) {
        return Err(CodecError::Invalid("a voter is no member, or a member has id 0"));
    }
    Ok(Membership::new(configs, nodes))
}

/// Appends a proposal.
pub fn put_proposal(out: &mut Vec<u8>, proposal: &Proposal) {
    out.extend_from_slice(&proposal.proposer.to_le_bytes());
    out.extend_from_slice(&proposal.sequence.to_le_bytes());
    out.extend_from_slice(&(proposal.commands.len() as u16).to_le_bytes());
    proposal.commands.iter().for_each(|command| put_bytes(out, command));
}

/// Reads a proposal; its commands are not looked into.
pub fn read_proposal(reader: &mut Reader<'_>) -> Result<Proposal, CodecError> {
    let (proposer, sequence, count) = (reader.u64()?, reader.u64()?, usize::from(reader.u16()?));
    if count > limits::CATALOGUE_GROUP {
        return Err(CodecError::Invalid("a proposal has more commands than it can"));
    }
    let mut commands = Vec::with_capacity(count);
    for _ in 0..count {
        commands.push(Bytes::copy_from_slice(reader.bytes(limits::MAX_COMMAND)?));
    }
    Ok(Proposal { proposer, sequence, commands })
}

/// Appends an entry.
pub fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    put_log_id(out, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => out.push(0),
        EntryPayload::Normal(proposal) => {
            out.push(1);
            put_proposal(out, proposal);
        }
        EntryPayload::Membership(membership) => {
            out.push(2);
            put_membership(out, membership);
        }
    }
}

/// Reads an entry.
pub fn read_entry(reader: &mut Reader<'_>) -> Result<Entry, CodecError> {
    let log_id = read_log_id(reader)?;
    let payload = match reader.u8()? {
        0 => EntryPayload::Blank,
        1 => EntryPayload::Normal(read_proposal(reader)?),
        2 => EntryPayload::Membership(read_membership(reader)?),
        _ => return Err(CodecError::Invalid("an entry of a kind that this version does not know")),
    };
    Ok(Entry { log_id, payload })
}

/// Appends what a snapshot stands for.
pub fn put_snapshot_meta(out: &mut Vec<u8>, meta: &SnapshotMeta<ConsensusId, Member>) {
    put_some_log_id(out, meta.last_log_id.as_ref());
    put_some_log_id(out, meta.last_membership.log_id().as_ref());
    put_membership(out, meta.last_membership.membership());
}

/// Reads what a snapshot stands for. Its name follows from that.
pub fn read_snapshot_meta(reader: &mut Reader<'_>) -> Result<SnapshotMeta<ConsensusId, Member>, CodecError> {
    let (last, at) = (read_some_log_id(reader)?, read_some_log_id(reader)?);
    Ok(snapshot_meta(last, StoredMembership::new(at, read_membership(reader)?)))
}

/// The description of the snapshot up to an entry. A state machine is a function of the log, so the last entry names the snapshot.
pub fn snapshot_meta(
    last: Option<LogId<ConsensusId>>,
    membership: StoredMembership<ConsensusId, Member>,
) -> SnapshotMeta<ConsensusId, Member> {
    let snapshot_id = match &last {
        Some(id) => format!("{}-{}-{}", id.leader_id.term, id.leader_id.node_id, id.index),
        None => "empty".into(),
    };
    SnapshotMeta { last_log_id: last, last_membership: membership, snapshot_id }
}
