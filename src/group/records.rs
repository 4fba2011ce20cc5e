//! The records of `__consumer_offsets`, in Kafka's own layout, so that Kafka's tools read them.
//!
//! | key | value | means |
//! | --- | --- | --- |
//! | offset commit, v0 or v1: group, topic, partition | v0 to v3, written as v3 (v1 where the commit has an end of its own) | where a group is in a partition |
//! | group metadata, v2: group | v0 to v3, written as v3 | a group at the beginning of a stable generation, or empty |
//!
//! Without a value (a tombstone) a record says that the thing is gone. Layouts are those of the schemas `OffsetCommitKey`, `OffsetCommitValue`,
//! `GroupMetadataKey` and `GroupMetadataValue` of Kafka's group coordinator. Keys of other versions are of groups that are not served here
//! (KIP-848, share groups): they are told apart from damage and skipped.
//!
//! Reading is strict: bytes after the last field, lengths that lead outside, text that is not UTF-8 and members without a protocol are errors.
//! Not here: flexible versions (v4), which Kafka can read and does not write.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::request::fields::{FieldError, Reader, Writer};
use crate::request::group::OffsetCommit;
use crate::types::Timestamp;

/// One record as it stands in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogRecord {
    /// What it is about; compaction keeps the last record of each key.
    pub key: Bytes,
    /// What is so; `None` is a tombstone.
    pub value: Option<Bytes>,
}

/// A record that is not one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// A field does not read.
    #[error("{record}: {error}")]
    Field {
        /// Which kind of record.
        record: &'static str,
        /// What is wrong.
        error: FieldError,
    },
    /// A version that is not served.
    #[error("{record}: version {version}, 0 to {newest} are served")]
    Version {
        /// Which kind of record.
        record: &'static str,
        /// As it stands there.
        version: i16,
        /// Newest that is read.
        newest: i16,
    },
    /// Fields that contradict each other.
    #[error("{record}: {what}")]
    Inconsistent {
        /// Which kind of record.
        record: &'static str,
        /// What can't be.
        what: &'static str,
    },
}

/// A group as it is stored: at the beginning of a stable generation, or empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupMetadata {
    /// `consumer` or whatever the members are; empty for a group that never had any.
    pub protocol_type: Arc<str>,
    /// Counts the rebalances.
    pub generation: i32,
    /// The protocol that was chosen; there is one if there are members.
    pub protocol: Option<Arc<str>>,
    /// Member id of the leader; there is one if there are members.
    pub leader: Option<Arc<str>>,
    /// When the group got into its state, by the broker's clock; `None` in records of old.
    pub state_timestamp: Option<Timestamp>,
    /// The members with their assignments.
    pub members: Vec<StoredMember>,
}

/// One member of a stored group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredMember {
    /// Given out by the coordinator.
    pub member_id: Arc<str>,
    /// Of a static member (KIP-345).
    pub instance_id: Option<Arc<str>>,
    /// The client's name for itself.
    pub client_id: Arc<str>,
    /// Where the client is.
    pub client_host: Arc<str>,
    /// How long a rebalance waits for it, ms.
    pub rebalance_timeout_ms: i32,
    /// It is dropped after so long without a sign of life, ms.
    pub session_timeout_ms: i32,
    /// Its metadata for the chosen protocol.
    pub subscription: Bytes,
    /// What the leader gave it.
    pub assignment: Bytes,
}

/// What a record says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A group, or that it is gone.
    Group {
        /// Which.
        group: Arc<str>,
        /// As it is now.
        metadata: Option<Arc<GroupMetadata>>,
    },
    /// A position, or that it is gone.
    Offset {
        /// Whose.
        group: Arc<str>,
        /// In which topic.
        topic: Arc<str>,
        /// In which partition.
        partition: i32,
        /// As it is now.
        commit: Option<Arc<OffsetCommit>>,
    },
}

const OFFSET_KEY: &str = "offset commit key";
const OFFSET_VALUE: &str = "offset commit value";
const GROUP_KEY: &str = "group metadata key";
const GROUP_VALUE: &str = "group metadata value";

/// Newest version of an offset key; the one of a group's key follows it, both are told apart by it.
const OFFSET_KEY_VERSION: i16 = 1;
const GROUP_KEY_VERSION: i16 = 2;
const VALUE_VERSION: i16 = 3;
/// The one version of an offset commit with an end of its own.
const EXPIRING_VERSION: i16 = 1;
/// A member has at least three strings, a number and two byte arrays, bytes.
const LEAST_MEMBER: usize = 3 * 2 + 4 + 2 * 4;

impl Change {
    /// The record of this change.
    pub fn encode(&self) -> LogRecord {
        match self {
            Change::Group { group, metadata } => {
                let mut key = Writer::versioned(GROUP_KEY_VERSION);
                key.string(group);
                LogRecord { key: key.finish(), value: metadata.as_ref().map(|metadata| metadata.encode()) }
            }
            Change::Offset { group, topic, partition, commit } => {
                let mut key = Writer::versioned(OFFSET_KEY_VERSION);
                key.string(group);
                key.string(topic);
                key.i32(*partition);
                LogRecord { key: key.finish(), value: commit.as_ref().map(|commit| commit.encode()) }
            }
        }
    }

    /// What a record says; `None` for a key of a kind that is not served here.
    ///
    /// # Errors
    /// [`RecordError`] for bytes that no record of this kind has.
    pub fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Option<Change>, RecordError> {
        let mut reader = Reader::new(key);
        let version = reader.i16("version").map_err(field(OFFSET_KEY))?;
        match version {
            0..=OFFSET_KEY_VERSION => {
                let (group, topic, partition) = offset_key(reader).map_err(field(OFFSET_KEY))?;
                let commit = value.map(OffsetCommit::decode).transpose()?.map(Arc::new);
                Ok(Some(Change::Offset { group, topic, partition, commit }))
            }
            GROUP_KEY_VERSION => {
                let group = group_key(reader).map_err(field(GROUP_KEY))?;
                let metadata = value.map(GroupMetadata::decode).transpose()?.map(Arc::new);
                Ok(Some(Change::Group { group, metadata }))
            }
            3.. => Ok(None),
            _ => Err(RecordError::Version { record: OFFSET_KEY, version, newest: GROUP_KEY_VERSION }),
        }
    }

    /// Whose change it is.
    pub fn group(&self) -> &Arc<str> {
        match self {
            Change::Group { group, .. } | Change::Offset { group, .. } => group,
        }
    }
}

impl OffsetCommit {
    /// As a record's value.
    pub fn encode(&self) -> Bytes {
        let version = if self.expire_timestamp.is_some() { EXPIRING_VERSION } else { VALUE_VERSION };
        let mut value = Writer::versioned(version);
        value.i64(self.offset);
        if version == VALUE_VERSION {
            value.i32(self.leader_epoch.unwrap_or(-1));
        }
        value.string(&self.metadata);
        value.i64(self.commit_timestamp);
        if let Some(end) = self.expire_timestamp {
            value.i64(end);
        }
        value.finish()
    }

    /// From a record's value.
    ///
    /// # Errors
    /// [`RecordError`] for bytes that are no such value.
    pub fn decode(value: &[u8]) -> Result<OffsetCommit, RecordError> {
        let mut reader = Reader::new(value);
        let version = value_version(&mut reader, OFFSET_VALUE)?;
        OffsetCommit::fields(reader, version).map_err(field(OFFSET_VALUE))
    }

    fn fields(mut reader: Reader<'_>, version: i16) -> Result<OffsetCommit, FieldError> {
        let offset = reader.i64("offset")?;
        let epoch = if version >= 3 { reader.i32("leader epoch")? } else { -1 };
        let metadata = reader.string("metadata")?.into();
        let commit_timestamp = reader.i64("commit timestamp")?;
        let end = if version == EXPIRING_VERSION { reader.i64("expire timestamp")? } else { -1 };
        reader.finish()?;
        let leader_epoch = (epoch >= 0).then_some(epoch);
        Ok(OffsetCommit { offset, leader_epoch, metadata, commit_timestamp, expire_timestamp: (end != -1).then_some(end) })
    }
}

impl GroupMetadata {
    /// As a record's value.
    pub fn encode(&self) -> Bytes {
        let mut value = Writer::versioned(VALUE_VERSION);
        value.string(&self.protocol_type);
        value.i32(self.generation);
        value.nullable_string(self.protocol.as_deref());
        value.nullable_string(self.leader.as_deref());
        value.i64(self.state_timestamp.unwrap_or(-1));
        value.count(self.members.len());
        for member in &self.members {
            value.string(&member.member_id);
            value.nullable_string(member.instance_id.as_deref());
            value.string(&member.client_id);
            value.string(&member.client_host);
            value.i32(member.rebalance_timeout_ms);
            value.i32(member.session_timeout_ms);
            value.bytes(&member.subscription);
            value.bytes(&member.assignment);
        }
        value.finish()
    }

    /// From a record's value.
    ///
    /// # Errors
    /// [`RecordError`] for bytes that are no such value.
    pub fn decode(value: &[u8]) -> Result<GroupMetadata, RecordError> {
        let mut reader = Reader::new(value);
        let version = value_version(&mut reader, GROUP_VALUE)?;
        let metadata = GroupMetadata::fields(reader, version).map_err(field(GROUP_VALUE))?;
        metadata.check().map_err(|what| RecordError::Inconsistent { record: GROUP_VALUE, what })?;
        Ok(metadata)
    }

    fn fields(mut reader: Reader<'_>, version: i16) -> Result<GroupMetadata, FieldError> {
        let protocol_type = reader.string("protocol type")?.into();
        let generation = reader.i32("generation")?;
        let protocol = reader.nullable_string("protocol")?.map(Arc::from);
        let leader = reader.nullable_string("leader")?.map(Arc::from);
        let timestamp = if version >= 2 { reader.i64("state timestamp")? } else { -1 };
        let count = reader.count(LEAST_MEMBER, "members")?;
        let members = (0..count).map(|_| StoredMember::fields(&mut reader, version)).collect::<Result<_, _>>()?;
        reader.finish()?;
        let state_timestamp = (timestamp != -1).then_some(timestamp);
        Ok(GroupMetadata { protocol_type, generation, protocol, leader, state_timestamp, members })
    }

    /// What a coordinator builds on when it takes over a group with members.
    fn check(&self) -> Result<(), &'static str> {
        if self.members.is_empty() {
            return Ok(());
        }
        if self.protocol_type.is_empty() || self.protocol.is_none() {
            return Err("members without a protocol");
        }
        let ids: BTreeSet<&str> = self.members.iter().map(|member| &*member.member_id).collect();
        let instances: Vec<&str> = self.members.iter().filter_map(|member| member.instance_id.as_deref()).collect();
        if ids.len() < self.members.len() || instances.iter().collect::<BTreeSet<_>>().len() < instances.len() {
            return Err("two members with one id");
        }
        match &self.leader {
            Some(leader) if ids.contains(&**leader) => Ok(()),
            _ => Err("a leader that is no member"),
        }
    }
}

impl StoredMember {
    fn fields(reader: &mut Reader<'_>, version: i16) -> Result<StoredMember, FieldError> {
        let member_id = reader.string("member id")?.into();
        let instance_id = if version >= 3 { reader.nullable_string("group instance id")?.map(Arc::from) } else { None };
        let client_id = reader.string("client id")?.into();
        let client_host = reader.string("client host")?.into();
        let rebalance_timeout_ms = if version >= 1 { reader.i32("rebalance timeout")? } else { -1 };
        let session_timeout_ms = reader.i32("session timeout")?;
        let subscription = reader.bytes("subscription")?;
        let assignment = reader.bytes("assignment")?;
        // Version 0 had one timeout for both.
        let rebalance_timeout_ms = if rebalance_timeout_ms == -1 { session_timeout_ms } else { rebalance_timeout_ms };
        Ok(StoredMember {
            member_id,
            instance_id,
            client_id,
            client_host,
            rebalance_timeout_ms,
            session_timeout_ms,
            subscription,
            assignment,
        })
    }
}

fn offset_key(mut reader: Reader<'_>) -> Result<(Arc<str>, Arc<str>, i32), FieldError> {
    let fields = (reader.string("group")?.into(), reader.string("topic")?.into(), reader.i32("partition")?);
    reader.finish()?;
    Ok(fields)
}

fn group_key(mut reader: Reader<'_>) -> Result<Arc<str>, FieldError> {
    let group = reader.string("group")?.into();
    reader.finish()?;
    Ok(group)
}

fn value_version(reader: &mut Reader<'_>, record: &'static str) -> Result<i16, RecordError> {
    let version = reader.i16("version").map_err(field(record))?;
    if !(0..=VALUE_VERSION).contains(&version) {
        return Err(RecordError::Version { record, version, newest: VALUE_VERSION });
    }
    Ok(version)
}

fn field(record: &'static str) -> impl Fn(FieldError) -> RecordError {
    move |error| RecordError::Field { record, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit() -> OffsetCommit {
        OffsetCommit { offset: 258, leader_epoch: Some(7), metadata: "m".into(), commit_timestamp: 3, expire_timestamp: None }
    }

    fn member() -> StoredMember {
        StoredMember {
            member_id: "c-1".into(),
            instance_id: Some("i".into()),
            client_id: "c".into(),
            client_host: "/h".into(),
            rebalance_timeout_ms: 300,
            session_timeout_ms: 45,
            subscription: Bytes::from_static(&[1, 2]),
            assignment: Bytes::from_static(&[9]),
        }
    }

    fn metadata() -> GroupMetadata {
        GroupMetadata {
            protocol_type: "consumer".into(),
            generation: 5,
            protocol: Some("range".into()),
            leader: Some("c-1".into()),
            state_timestamp: Some(6),
            members: vec![member()],
        }
    }

    fn offset_change(commit: Option<OffsetCommit>) -> Change {
        Change::Offset { group: "g".into(), topic: "tt".into(), partition: 4, commit: commit.map(Arc::new) }
    }

    fn group_change(metadata: Option<GroupMetadata>) -> Change {
        Change::Group { group: "g".into(), metadata: metadata.map(Arc::new) }
    }

    /// Laid out by hand after OffsetCommitKey.json and OffsetCommitValue.json.
    #[test]
    fn offset_commit_has_kafkas_bytes() {
        let record = offset_change(Some(commit())).encode();
        assert_eq!(&record.key[..], b"\x00\x01\x00\x01g\x00\x02tt\x00\x00\x00\x04");
        let value = b"\x00\x03\x00\x00\x00\x00\x00\x00\x01\x02\x00\x00\x00\x07\x00\x01m\x00\x00\x00\x00\x00\x00\x00\x03";
        assert_eq!(record.value.as_deref(), Some(&value[..]));
        let ends = OffsetCommit { expire_timestamp: Some(16), leader_epoch: None, ..commit() };
        let value = b"\x00\x01\x00\x00\x00\x00\x00\x00\x01\x02\x00\x01m\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x10";
        assert_eq!(&ends.encode()[..], value);
    }

    /// Laid out by hand after GroupMetadataKey.json and GroupMetadataValue.json.
    #[test]
    fn group_metadata_has_kafkas_bytes() {
        let record = group_change(Some(metadata())).encode();
        assert_eq!(&record.key[..], b"\x00\x02\x00\x01g");
        let expected: [&[u8]; 12] = [
            b"\x00\x03\x00\x08consumer\x00\x00\x00\x05",
            b"\x00\x05range",
            b"\x00\x03c-1",
            b"\x00\x00\x00\x00\x00\x00\x00\x06",
            b"\x00\x00\x00\x01",
            b"\x00\x03c-1",
            b"\x00\x01i",
            b"\x00\x01c",
            b"\x00\x02/h",
            b"\x00\x00\x01\x2c\x00\x00\x00\x2d",
            b"\x00\x00\x00\x02\x01\x02",
            b"\x00\x00\x00\x01\x09",
        ];
        assert_eq!(record.value.as_deref(), Some(&expected.concat()[..]));
        let empty = GroupMetadata {
            protocol_type: "".into(),
            generation: 0,
            protocol: None,
            leader: None,
            state_timestamp: None,
            members: Vec::new(),
        };
        let value = b"\x00\x03\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00";
        assert_eq!(&empty.encode()[..], value);
    }

    #[test]
    fn records_round_trip_and_tombstones_are_without_value() {
        let expiring = OffsetCommit { expire_timestamp: Some(16), leader_epoch: None, ..commit() };
        let all = [
            offset_change(Some(commit())),
            offset_change(Some(expiring)),
            offset_change(None),
            group_change(Some(metadata())),
            group_change(None),
        ];
        for change in all {
            let record = change.encode();
            assert_eq!(Change::decode(&record.key, record.value.as_deref()), Ok(Some(change)));
        }
    }

    #[test]
    fn older_versions_are_read() {
        let key_v0 = b"\x00\x00\x00\x01g\x00\x02tt\x00\x00\x00\x04";
        assert_eq!(Change::decode(key_v0, None), Ok(Some(offset_change(None))));
        for version in [0, 2] {
            let value =
                [b"\x00".as_slice(), &[version], b"\x00\x00\x00\x00\x00\x00\x01\x02\x00\x01m\x00\x00\x00\x00\x00\x00\x00\x03"].concat();
            assert_eq!(OffsetCommit::decode(&value), Ok(OffsetCommit { leader_epoch: None, ..commit() }), "v{version}");
        }
        let head = b"\x00\x08consumer\x00\x00\x00\x05\x00\x05range\x00\x03c-1";
        let tail = b"\x00\x00\x00\x2d\x00\x00\x00\x02\x01\x02\x00\x00\x00\x01\x09";
        let v0 = [b"\x00\x00".as_slice(), head, b"\x00\x00\x00\x01\x00\x03c-1\x00\x01c\x00\x02/h", tail].concat();
        let old = GroupMetadata {
            state_timestamp: None,
            members: vec![StoredMember { instance_id: None, rebalance_timeout_ms: 45, ..member() }],
            ..metadata()
        };
        assert_eq!(GroupMetadata::decode(&v0), Ok(old.clone()));
        let v1 = [b"\x00\x01".as_slice(), head, b"\x00\x00\x00\x01\x00\x03c-1\x00\x01c\x00\x02/h\x00\x00\x01\x2c", tail].concat();
        let members = vec![StoredMember { instance_id: None, ..member() }];
        assert_eq!(GroupMetadata::decode(&v1), Ok(GroupMetadata { members: members.clone(), ..old }));
        let v2 =
            [b"\x00\x02".as_slice(), head, &6_i64.to_be_bytes(), b"\x00\x00\x00\x01\x00\x03c-1\x00\x01c\x00\x02/h\x00\x00\x01\x2c", tail]
                .concat();
        assert_eq!(GroupMetadata::decode(&v2), Ok(GroupMetadata { members, ..metadata() }));
    }

    #[test]
    fn foreign_keys_are_skipped_and_foreign_values_refused() {
        assert_eq!(Change::decode(b"\x00\x03\x00\x01g", Some(b"?")), Ok(None));
        let negative = Change::decode(b"\xff\xff", None);
        assert_eq!(negative, Err(RecordError::Version { record: OFFSET_KEY, version: -1, newest: 2 }));
        let flexible = OffsetCommit::decode(b"\x00\x04");
        assert_eq!(flexible, Err(RecordError::Version { record: OFFSET_VALUE, version: 4, newest: 3 }));
    }

    #[test]
    fn every_cut_and_every_byte_too_many_is_an_error() {
        for change in [offset_change(Some(commit())), group_change(Some(metadata()))] {
            let LogRecord { key, value } = change.encode();
            let value = value.expect("has one");
            for cut in 0..value.len() {
                assert!(Change::decode(&key, Some(&value[..cut])).is_err(), "{cut} bytes of a value");
            }
            for cut in 0..key.len() {
                assert!(Change::decode(&key[..cut], Some(&value)).is_err(), "{cut} bytes of a key");
            }
            assert!(Change::decode(&key, Some(&[&value[..], b"\0"].concat())).is_err());
            assert!(Change::decode(&[&key[..], b"\0"].concat(), Some(&value)).is_err());
        }
    }

    /// Every byte replaced by every value: nothing panics, and what reads writes itself again or is an older version.
    #[test]
    fn no_byte_makes_the_reader_panic() {
        for change in [offset_change(Some(commit())), group_change(Some(metadata()))] {
            let LogRecord { key, value } = change.encode();
            let mut value = value.expect("has one").to_vec();
            for at in 0..value.len() {
                let was = value[at];
                for byte in 0..=u8::MAX {
                    value[at] = byte;
                    if let Ok(Some(read)) = Change::decode(&key, Some(&value)) {
                        let again = read.encode();
                        assert_eq!(Change::decode(&again.key, again.value.as_deref()), Ok(Some(read)));
                    }
                }
                value[at] = was;
            }
        }
    }

    #[test]
    fn groups_that_contradict_themselves_are_refused() {
        let no_protocol = GroupMetadata { protocol: None, ..metadata() };
        let twice = GroupMetadata { members: vec![member(), member()], ..metadata() };
        let no_leader = GroupMetadata { leader: Some("x".into()), ..metadata() };
        for (metadata, what) in
            [(no_protocol, "members without a protocol"), (twice, "two members with one id"), (no_leader, "a leader that is no member")]
        {
            assert_eq!(GroupMetadata::decode(&metadata.encode()), Err(RecordError::Inconsistent { record: GROUP_VALUE, what }));
        }
    }
}
