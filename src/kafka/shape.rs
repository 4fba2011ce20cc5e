//! What bodies look like, as far as it takes to walk through them.
//!
//! The codec of `kafka-protocol` allocates what an array's count says before it reads the first element. [`check`] walks a body first: each count is
//! then known to be followed by as many elements, and all together are bounded ([`Reader`]). What passes may still be refused by the codec; what it allocates
//! is in proportion to what came.

use super::{DecodeError, Reader};

/// A field in the versions that have it.
#[derive(Debug)]
pub struct Part {
    since: i16,
    until: i16,
    field: Field,
}

/// A kind of field.
#[derive(Debug)]
enum Field {
    /// So many bytes.
    Fixed(usize),
    /// A string, null or not.
    Text,
    /// Bytes, null or not.
    Blob,
    /// An array of strings.
    Texts,
    /// An array of 32-bit integers.
    Integers,
    /// An array of structures, null or not.
    Structures(&'static [Part]),
}

use Field::*;

const fn always(field: Field) -> Part {
    since(0, field)
}

const fn since(version: i16, field: Field) -> Part {
    Part { since: version, until: i16::MAX, field }
}

const fn between(first: i16, last: i16, field: Field) -> Part {
    Part { since: first, until: last, field }
}

/// Software name and version.
pub const API_VERSIONS: &[Part] = &[since(3, Text), since(3, Text)];

/// Topics, automatic creation, authorized operations of cluster and topics (of the cluster, versions 8 to 10).
pub const METADATA: &[Part] = &[always(Structures(&[always(Text)])), since(4, Fixed(1)), since(8, Fixed(1)), since(8, Fixed(1))];

/// Replica, isolation level, topics.
pub const LIST_OFFSETS: &[Part] = &[
    always(Fixed(4)),
    since(2, Fixed(1)),
    always(Structures(&[always(Text), always(Structures(&[always(Fixed(4)), since(4, Fixed(4)), always(Fixed(8))]))])),
];

/// Topics, time-out, only to be validated.
pub const CREATE_TOPICS: &[Part] = &[
    always(Structures(&[
        always(Text),
        always(Fixed(4)),
        always(Fixed(2)),
        always(Structures(&[always(Fixed(4)), always(Integers)])),
        always(Structures(&[always(Text), always(Text)])),
    ])),
    always(Fixed(4)),
    always(Fixed(1)),
];

/// Names, time-out.
pub const DELETE_TOPICS: &[Part] = &[always(Texts), always(Fixed(4))];

/// Topics with partitions and the first offset that stays of each, time-out.
pub const DELETE_RECORDS: &[Part] =
    &[always(Structures(&[always(Text), always(Structures(&[always(Fixed(4)), always(Fixed(8))]))])), always(Fixed(4))];

/// Transactional id, its time-out, the producer's id and epoch so far.
pub const INIT_PRODUCER_ID: &[Part] = &[always(Text), always(Fixed(4)), since(3, Fixed(8)), since(3, Fixed(2))];

/// Replica, topics with partitions and of each the present epoch and the one asked for.
pub const OFFSET_FOR_LEADER_EPOCH: &[Part] = &[
    since(3, Fixed(4)),
    always(Structures(&[always(Text), always(Structures(&[always(Fixed(4)), since(2, Fixed(4)), always(Fixed(4))]))])),
];

/// Resources, with synonyms, with documentation.
pub const DESCRIBE_CONFIGS: &[Part] =
    &[always(Structures(&[always(Fixed(1)), always(Text), always(Texts)])), always(Fixed(1)), since(3, Fixed(1))];

/// Resources, only to be validated.
pub const ALTER_CONFIGS: &[Part] =
    &[always(Structures(&[always(Fixed(1)), always(Text), always(Structures(&[always(Text), always(Text)]))])), always(Fixed(1))];

/// As [`ALTER_CONFIGS`], with an operation for each setting.
pub const INCREMENTAL_ALTER_CONFIGS: &[Part] = &[
    always(Structures(&[always(Fixed(1)), always(Text), always(Structures(&[always(Text), always(Fixed(1)), always(Text)]))])),
    always(Fixed(1)),
];

/// Topics with the partitions wanted.
pub const DESCRIBE_LOG_DIRS: &[Part] = &[always(Structures(&[always(Text), always(Integers)]))];

/// Topics, time-out, only to be validated.
pub const CREATE_PARTITIONS: &[Part] =
    &[always(Structures(&[always(Text), always(Fixed(4)), always(Structures(&[always(Integers)]))])), always(Fixed(4)), always(Fixed(1))];

/// Kind, topics with partitions, time-out.
pub const ELECT_LEADERS: &[Part] = &[since(1, Fixed(1)), always(Structures(&[always(Text), always(Integers)])), always(Fixed(4))];

/// Time-out, whether the number of replicas may change, topics with partitions and their brokers.
pub const ALTER_PARTITION_REASSIGNMENTS: &[Part] =
    &[always(Fixed(4)), since(1, Fixed(1)), always(Structures(&[always(Text), always(Structures(&[always(Fixed(4)), always(Integers)]))]))];

/// Time-out, topics with partitions.
pub const LIST_PARTITION_REASSIGNMENTS: &[Part] = &[always(Fixed(4)), always(Structures(&[always(Text), always(Integers)]))];

/// Authorized operations, brokers or controllers.
pub const DESCRIBE_CLUSTER: &[Part] = &[always(Fixed(1)), since(1, Fixed(1))];

/// Group, generation, member, its instance, how long positions are kept, topics.
pub const OFFSET_COMMIT: &[Part] = &[
    always(Text),
    always(Fixed(4)),
    always(Text),
    since(7, Text),
    between(2, 4, Fixed(8)),
    always(Structures(&[always(Text), always(Structures(&[always(Fixed(4)), always(Fixed(8)), since(6, Fixed(4)), always(Text)]))])),
];

/// Group and topics, from version 8 on groups with topics; only stable ones.
pub const OFFSET_FETCH: &[Part] = &[
    between(0, 7, Text),
    between(0, 7, Structures(&[always(Text), always(Integers)])),
    since(8, Structures(&[always(Text), always(Structures(&[always(Text), always(Integers)]))])),
    since(7, Fixed(1)),
];

/// Key, its kind; from version 4 on keys.
pub const FIND_COORDINATOR: &[Part] = &[between(0, 3, Text), since(1, Fixed(1)), since(4, Texts)];

/// Group, session and rebalance time-outs, member, its instance, protocol type, protocols, reason.
pub const JOIN_GROUP: &[Part] = &[
    always(Text),
    always(Fixed(4)),
    since(1, Fixed(4)),
    always(Text),
    since(5, Text),
    always(Text),
    always(Structures(&[always(Text), always(Blob)])),
    since(8, Text),
];

/// Group, generation, member, its instance.
pub const HEARTBEAT: &[Part] = &[always(Text), always(Fixed(4)), always(Text), since(3, Text)];

/// Group, member; from version 3 on members.
pub const LEAVE_GROUP: &[Part] = &[always(Text), between(0, 2, Text), since(3, Structures(&[always(Text), always(Text), since(5, Text)]))];

/// Group, generation, member, its instance, protocol type and name, assignments.
pub const SYNC_GROUP: &[Part] = &[
    always(Text),
    always(Fixed(4)),
    always(Text),
    since(3, Text),
    since(5, Text),
    since(5, Text),
    always(Structures(&[always(Text), always(Blob)])),
];

/// Groups, authorized operations.
pub const DESCRIBE_GROUPS: &[Part] = &[always(Texts), since(3, Fixed(1))];

/// States, types.
pub const LIST_GROUPS: &[Part] = &[since(4, Texts), since(5, Texts)];

/// Groups.
pub const DELETE_GROUPS: &[Part] = &[always(Texts)];

/// Group, topics.
pub const OFFSET_DELETE: &[Part] = &[always(Text), always(Structures(&[always(Text), always(Structures(&[always(Fixed(4))]))]))];

/// Walks through a body.
///
/// # Errors
/// It is not of the shape.
pub fn check(mut reader: Reader<'_>, shape: &[Part], version: i16) -> Result<(), DecodeError> {
    structure(&mut reader, shape, version)
}

fn structure(reader: &mut Reader<'_>, shape: &[Part], version: i16) -> Result<(), DecodeError> {
    for part in shape.iter().filter(|part| (part.since..=part.until).contains(&version)) {
        match &part.field {
            Fixed(len) => drop(reader.take(*len)?),
            Text => drop(reader.nullable_string()?),
            Blob => {
                if let Some(range) = reader.bytes_range()? {
                    reader.skip_bytes(&range)?;
                }
            }
            Texts => {
                for _ in 0..reader.nullable_count(1)?.unwrap_or(0) {
                    reader.nullable_string()?;
                }
            }
            Integers => {
                let count = reader.nullable_count(4)?.unwrap_or(0);
                reader.take(4 * count)?;
            }
            Structures(of) => {
                for _ in 0..reader.nullable_count(1)?.unwrap_or(0) {
                    structure(reader, of, version)?;
                }
            }
        }
    }
    reader.tags()
}
