//! All groups of a partition as bytes, so that a coordinator loads without reading its log from the beginning.
//!
//! A snapshot is the partition as compaction would leave it: the last record of every key up to an offset, in the layout of the records themselves
//! (`records`), so it has no format of its own for groups that could come to differ. Loading it and the records from that offset on is the same as
//! loading every record.
//!
//! ```text
//! version u16 | log end i64 | count u32 | count times: key length u32, key, value length u32, value        little-endian
//! ```
//!
//! A checksum is the container's (a checkpoint has one over its whole body). Reading is strict all the same: any bytes give a snapshot or an error.

use super::records::{Change, RecordError};
use crate::types::Offset;

const VERSION: u16 = 1;
/// Two lengths, bytes.
const LEAST_RECORD: usize = 8;

/// Bytes that are no snapshot.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// They end too early or go on too long.
    #[error("a snapshot of groups of the wrong length: {0}")]
    Length(&'static str),
    /// A version that is not known.
    #[error("snapshot version {0}, {VERSION} is known")]
    Version(u16),
    /// An offset that is none.
    #[error("log end {0}")]
    LogEnd(Offset),
    /// A record in it does not read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A record that no snapshot has: a kind that is not served, or a key that came before.
    #[error("a record that no snapshot has: {0}")]
    Unexpected(&'static str),
}

/// What a snapshot says.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub log_end: Offset,
    pub changes: Vec<Change>,
}

/// # Panics
/// When a change is a tombstone: what is gone is not in a snapshot.
pub(super) fn encode(log_end: Offset, changes: impl Iterator<Item = Change>) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&log_end.to_le_bytes());
    let count_at = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    let mut count = 0_u32;
    for change in changes {
        let record = change.encode();
        let value = record.value.expect("a snapshot has no tombstones");
        for part in [&record.key, &value] {
            let len = u32::try_from(part.len()).expect("a record is shorter than 4 GiB");
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(part);
        }
        count += 1;
    }
    bytes[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
    bytes
}

/// # Errors
/// [`SnapshotError`] when these bytes are no snapshot.
pub(super) fn decode(bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
    let mut rest = bytes;
    let version = u16::from_le_bytes(take(&mut rest, "version")?);
    if version != VERSION {
        return Err(SnapshotError::Version(version));
    }
    let log_end = Offset::from_le_bytes(take(&mut rest, "log end")?);
    if log_end < 0 {
        return Err(SnapshotError::LogEnd(log_end));
    }
    let count = u32::from_le_bytes(take(&mut rest, "count")?) as usize;
    if count.saturating_mul(LEAST_RECORD) > rest.len() {
        return Err(SnapshotError::Length("count"));
    }
    let mut keys = std::collections::BTreeSet::new();
    let mut changes = Vec::with_capacity(count);
    for _ in 0..count {
        let key = part(&mut rest, "key")?;
        let value = part(&mut rest, "value")?;
        changes.push(Change::decode(key, Some(value))?.ok_or(SnapshotError::Unexpected("a kind that is not served"))?);
        if !keys.insert(key) {
            return Err(SnapshotError::Unexpected("a key that came before"));
        }
    }
    if !rest.is_empty() {
        return Err(SnapshotError::Length("bytes after the last record"));
    }
    Ok(Snapshot { log_end, changes })
}

fn take<const N: usize>(rest: &mut &[u8], field: &'static str) -> Result<[u8; N], SnapshotError> {
    let (taken, after) = rest.split_first_chunk::<N>().ok_or(SnapshotError::Length(field))?;
    *rest = after;
    Ok(*taken)
}

fn part<'a>(rest: &mut &'a [u8], field: &'static str) -> Result<&'a [u8], SnapshotError> {
    let len = u32::from_le_bytes(take(rest, field)?) as usize;
    let (taken, after) = rest.split_at_checked(len).ok_or(SnapshotError::Length(field))?;
    *rest = after;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::group::records::GroupMetadata;
    use crate::request::group::OffsetCommit;

    fn changes() -> [Change; 2] {
        let commit = OffsetCommit { offset: 1, leader_epoch: None, metadata: "".into(), commit_timestamp: 2, expire_timestamp: None };
        let metadata = GroupMetadata {
            protocol_type: "consumer".into(),
            generation: 2,
            protocol: None,
            leader: None,
            state_timestamp: None,
            members: Vec::new(),
        };
        [
            Change::Group { group: "g".into(), metadata: Some(Arc::new(metadata)) },
            Change::Offset { group: "g".into(), topic: "t".into(), partition: 0, commit: Some(Arc::new(commit)) },
        ]
    }

    #[test]
    fn a_snapshot_comes_back() {
        let read = decode(&encode(7, changes().into_iter())).unwrap();
        assert_eq!((read.log_end, read.changes), (7, changes().to_vec()));
        // Version 1, by hand: without groups.
        assert_eq!(encode(3, std::iter::empty()), b"\x01\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00");
    }

    #[test]
    fn every_cut_is_an_error_and_nothing_panics() {
        let mut bytes = encode(7, changes().into_iter());
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "{cut} bytes");
        }
        for at in 0..bytes.len() {
            let was = bytes[at];
            for byte in 0..=u8::MAX {
                bytes[at] = byte;
                let _ = decode(&bytes);
            }
            bytes[at] = was;
        }
        assert_eq!(decode(&[&bytes[..], b"\0"].concat()).unwrap_err(), SnapshotError::Length("bytes after the last record"));
        assert_eq!(decode(b"\x02\x00").unwrap_err(), SnapshotError::Version(2));
    }

    #[test]
    fn a_key_is_there_once() {
        let [group, _] = changes();
        let twice = encode(7, [group.clone(), group].into_iter());
        assert_eq!(decode(&twice).unwrap_err(), SnapshotError::Unexpected("a key that came before"));
    }
}
