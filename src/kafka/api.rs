//! Which requests are served in which versions: the one list from which clients are told and requests are checked.
//!
//! Source: Kafka's message schemas, as `kafka-protocol` has them, and the protocol guide. What is advertised and what is served differ in one place: Produce 0
//! to 2 is advertised because librdkafka compresses nothing for a broker without Produce 0, and answered with UNSUPPORTED_VERSION.

use kafka_protocol::messages::ApiKey;

use super::shape::{self, Part};
use super::{DecodeError, FrameError, Reader};
use crate::limits;

/// A kind of request.
#[derive(Debug)]
pub struct Api {
    /// Which.
    pub key: ApiKey,
    /// Oldest and newest version that clients are told.
    pub advertised: (i16, i16),
    /// First version with compact lengths and tagged fields (KIP-482).
    pub flexible_from: i16,
    /// What a body looks like, but for those that are decoded here by hand.
    pub(super) shape: Option<&'static [Part]>,
}

const fn by_hand(key: ApiKey, advertised: (i16, i16), flexible_from: i16) -> Api {
    Api { key, advertised, flexible_from, shape: None }
}

const fn of_shape(key: ApiKey, advertised: (i16, i16), flexible_from: i16, shape: &'static [Part]) -> Api {
    Api { key, advertised, flexible_from, shape: Some(shape) }
}

/// Of an API without a flexible version.
const NEVER_FLEXIBLE: i16 = i16::MAX;

/// Everything that is served, by key.
///
/// Fetch ends at 12 and Metadata at 9: from the next version on topics are named by id.
pub const APIS: &[Api] = &[
    by_hand(ApiKey::Produce, (0, 11), 9),
    by_hand(ApiKey::Fetch, (4, 12), 12),
    of_shape(ApiKey::ListOffsets, (1, 7), 6, shape::LIST_OFFSETS),
    of_shape(ApiKey::Metadata, (0, 9), 9, shape::METADATA),
    of_shape(ApiKey::OffsetCommit, (2, 8), 8, shape::OFFSET_COMMIT),
    of_shape(ApiKey::OffsetFetch, (1, 8), 6, shape::OFFSET_FETCH),
    of_shape(ApiKey::FindCoordinator, (0, 4), 3, shape::FIND_COORDINATOR),
    of_shape(ApiKey::JoinGroup, (0, 9), 6, shape::JOIN_GROUP),
    of_shape(ApiKey::Heartbeat, (0, 4), 4, shape::HEARTBEAT),
    of_shape(ApiKey::LeaveGroup, (0, 5), 4, shape::LEAVE_GROUP),
    of_shape(ApiKey::SyncGroup, (0, 5), 4, shape::SYNC_GROUP),
    of_shape(ApiKey::DescribeGroups, (0, 5), 5, shape::DESCRIBE_GROUPS),
    of_shape(ApiKey::ListGroups, (0, 5), 3, shape::LIST_GROUPS),
    of_shape(ApiKey::ApiVersions, (0, 4), 3, shape::API_VERSIONS),
    of_shape(ApiKey::CreateTopics, (2, 6), 5, shape::CREATE_TOPICS),
    of_shape(ApiKey::DeleteTopics, (1, 5), 4, shape::DELETE_TOPICS),
    of_shape(ApiKey::DeleteRecords, (0, 2), 2, shape::DELETE_RECORDS),
    of_shape(ApiKey::InitProducerId, (0, 4), 2, shape::INIT_PRODUCER_ID),
    of_shape(ApiKey::OffsetForLeaderEpoch, (2, 4), 4, shape::OFFSET_FOR_LEADER_EPOCH),
    of_shape(ApiKey::DescribeConfigs, (1, 4), 4, shape::DESCRIBE_CONFIGS),
    of_shape(ApiKey::AlterConfigs, (0, 2), 2, shape::ALTER_CONFIGS),
    of_shape(ApiKey::DescribeLogDirs, (1, 4), 2, shape::DESCRIBE_LOG_DIRS),
    of_shape(ApiKey::CreatePartitions, (0, 3), 2, shape::CREATE_PARTITIONS),
    of_shape(ApiKey::DeleteGroups, (0, 2), 2, shape::DELETE_GROUPS),
    of_shape(ApiKey::ElectLeaders, (0, 2), 2, shape::ELECT_LEADERS),
    of_shape(ApiKey::IncrementalAlterConfigs, (0, 1), 1, shape::INCREMENTAL_ALTER_CONFIGS),
    of_shape(ApiKey::AlterPartitionReassignments, (0, 1), 0, shape::ALTER_PARTITION_REASSIGNMENTS),
    of_shape(ApiKey::ListPartitionReassignments, (0, 0), 0, shape::LIST_PARTITION_REASSIGNMENTS),
    of_shape(ApiKey::OffsetDelete, (0, 0), NEVER_FLEXIBLE, shape::OFFSET_DELETE),
    of_shape(ApiKey::DescribeCluster, (0, 1), 0, shape::DESCRIBE_CLUSTER),
];

impl Api {
    /// The entry of a key.
    pub fn of(key: i16) -> Option<&'static Api> {
        APIS.iter().find(|api| api.key as i16 == key)
    }

    /// Whether clients are told that this version is served.
    pub fn has(&self, version: i16) -> bool {
        (self.advertised.0..=self.advertised.1).contains(&version)
    }

    /// Whether a version has compact lengths and tagged fields.
    pub fn is_flexible(&self, version: i16) -> bool {
        version >= self.flexible_from
    }
}

/// The start of a request: enough to know how long it is and what to do with it.
#[derive(Clone, Copy, Debug)]
pub struct FrameStart {
    /// What is asked.
    pub api: &'static Api,
    /// In which version; one that is not served is that of ApiVersions, whose answer says which are.
    pub version: i16,
    len: usize,
}

/// Bytes of a frame that tell its kind: length, API key, version.
pub const START_LEN: usize = 8;
/// Shortest frame, its length field not counted: key, version, correlation id, client id.
const SHORTEST: usize = 10;

impl FrameStart {
    /// Bytes of the whole frame, its length field included.
    pub fn total_len(&self) -> usize {
        4 + self.len
    }

    /// Whether it carries records.
    pub fn is_produce(&self) -> bool {
        matches!(self.api.key, ApiKey::Produce)
    }

    /// Whether it asks for records.
    pub fn is_fetch(&self) -> bool {
        matches!(self.api.key, ApiKey::Fetch)
    }

    /// Whether its version is one that clients are told.
    pub fn is_served(&self) -> bool {
        self.api.has(self.version)
    }
}

/// What the request that `bytes` start with is; `None` where more bytes are needed to tell. Nothing is allocated for its length before that is checked.
///
/// # Errors
/// The connection can't go on: it is no request that is served, or it is too long.
pub fn peek(bytes: &[u8]) -> Result<Option<FrameStart>, FrameError> {
    let mut reader = Reader::new(bytes, false);
    let Ok(len) = reader.i32() else { return Ok(None) };
    let whole = usize::try_from(len).ok().filter(|len| (SHORTEST..=limits::MAX_FRAME).contains(len));
    let whole = whole.ok_or(FrameError::Length { len, most: limits::MAX_FRAME })?;
    let (Ok(key), Ok(version)) = (reader.i16(), reader.i16()) else { return Ok(None) };
    let api = Api::of(key).ok_or(FrameError::UnknownApi { key, version })?;
    let start = FrameStart { api, version, len: whole };
    if !start.is_served() && !matches!(api.key, ApiKey::ApiVersions) {
        return Err(FrameError::Version { key, version, least: api.advertised.0, most: api.advertised.1 });
    }
    if !start.is_produce() && whole > limits::MAX_KAFKA_REQUEST {
        return Err(FrameError::Length { len, most: limits::MAX_KAFKA_REQUEST });
    }
    Ok(Some(start))
}

/// The header of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// What is asked.
    pub api: &'static Api,
    /// In which version.
    pub version: i16,
    /// Repeated in the answer.
    pub correlation: i32,
    /// The name that the client has for itself.
    pub client_id: Option<&'a str>,
}

/// Reads the header of the frame that `bytes` start with; the reader is at the body then. Versions 1 and 2 of the header; which it is follows from the API's
/// version.
///
/// # Errors
/// It does not decode.
pub fn decode_head(start: FrameStart, bytes: &[u8]) -> Result<(RequestHead<'_>, Reader<'_>), DecodeError> {
    let FrameStart { api, version, .. } = start;
    let mut reader = Reader::new(bytes, false);
    reader.take(START_LEN)?;
    let correlation = reader.i32()?;
    // The header of an ApiVersions request that is too new is not known; the answer needs no more of it.
    if !start.is_served() {
        return Ok((RequestHead { api, version, correlation, client_id: None }, reader));
    }
    let mut reader = reader.flexible(api.is_flexible(version));
    let client_id = reader.classic_nullable_string()?;
    reader.tags()?;
    Ok((RequestHead { api, version, correlation, client_id }, reader))
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::*;
    use kafka_protocol::protocol::{Message, VersionRange};

    use super::*;

    #[test]
    fn the_list_is_in_the_order_of_the_keys_and_within_the_codec() {
        assert!(APIS.is_sorted_by_key(|api| api.key as i16));
        for api in APIS {
            let VersionRange { min, max } = api.key.valid_versions();
            assert!(api.advertised.1 <= max, "{:?}", api.key);
            // Of Produce, versions before 3 are refused before anything is decoded.
            assert!(matches!(api.key, ApiKey::Produce) || api.advertised.0 >= min, "{:?}", api.key);
            for version in min.max(api.advertised.0)..=api.advertised.1 {
                assert_eq!(api.is_flexible(version), api.key.request_header_version(version) == 2, "{:?} {version}", api.key);
            }
        }
        assert_eq!(ProduceRequest::VERSIONS.min, 3);
    }

    fn frame(len: i32, key: i16, version: i16) -> Vec<u8> {
        [&len.to_be_bytes()[..], &key.to_be_bytes(), &version.to_be_bytes()].concat()
    }

    #[test]
    fn what_is_not_served_is_refused_by_its_first_bytes() {
        assert!(matches!(peek(&frame(100, 3, 9)), Ok(Some(start)) if start.total_len() == 104 && start.is_served()));
        assert!(matches!(peek(&frame(100, 3, 9)[..7]), Ok(None)));
        assert!(matches!(peek(&frame(100, 3, 10)), Err(FrameError::Version { key: 3, version: 10, .. })));
        assert!(matches!(peek(&frame(100, 18, 99)), Ok(Some(start)) if !start.is_served()));
        assert!(matches!(peek(&frame(100, 999, 0)), Err(FrameError::UnknownApi { key: 999, .. })));
        assert!(matches!(peek(&frame(9, 3, 9)), Err(FrameError::Length { len: 9, .. })));
        assert!(matches!(peek(&frame(-1, 3, 9)), Err(FrameError::Length { .. })));
        assert!(matches!(peek(&frame(limits::MAX_KAFKA_REQUEST as i32 + 1, 3, 9)), Err(FrameError::Length { .. })));
        assert!(matches!(peek(&frame(limits::MAX_KAFKA_REQUEST as i32 + 1, 0, 9)), Ok(Some(_))), "records may be long");
        assert!(peek(b"GET / HTTP/1.1\r\n").is_err() && peek(b"\x16\x03\x01\x02\x00\x01\x00\x01").is_err());
    }

    #[test]
    fn the_native_protocols_magic_is_no_request() {
        assert!(matches!(peek(&crate::wire::MAGIC), Err(FrameError::Length { .. })));
    }
}
