//! What is wrong with bytes, and which of Kafka's error codes a refusal becomes.

use kafka_protocol::ResponseError;

use crate::request::Code;

/// Why bytes are no request that is served. The connection ends: where the next request starts, or what its client would make of an answer, is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The length can't be that of a request.
    #[error("a request of {len} bytes: it has 10 to {most}")]
    Length {
        /// As received.
        len: i32,
        /// Longest of its kind.
        most: usize,
    },
    /// The API is not served.
    #[error("API {key} (version {version}) is not served")]
    UnknownApi {
        /// Its key.
        key: i16,
        /// The version asked.
        version: i16,
    },
    /// The version is not served.
    #[error("version {version} of API {key} is not served: {least} to {most} are")]
    Version {
        /// The API's key.
        key: i16,
        /// The version asked.
        version: i16,
        /// Oldest that is served.
        least: i16,
        /// Newest that is served.
        most: i16,
    },
    /// The answer has a value that the version has no place for: a mistake of the broker's.
    #[error("version {version} of API {key} can't say the answer")]
    Unanswerable {
        /// The API's key.
        key: i16,
        /// The version.
        version: i16,
    },
    /// The body does not decode.
    #[error("API {key}, version {version}: {error}")]
    Body {
        /// The API's key.
        key: i16,
        /// The version.
        version: i16,
        /// Why.
        error: DecodeError,
    },
}

/// Why a header or a body does not decode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// It ends too early.
    #[error("{needed} bytes are needed, {available} are left")]
    Short {
        /// Bytes that should come.
        needed: usize,
        /// Bytes that are left.
        available: usize,
    },
    /// A length below -1, or of a string that is longer than any may be.
    #[error("a length of {len}")]
    Length {
        /// As received.
        len: i64,
    },
    /// More elements than can be there or are taken.
    #[error("an array of {count} elements: at most {most} can be there")]
    Count {
        /// As received.
        count: usize,
        /// As many can be there.
        most: usize,
    },
    /// A varint of more than 32 bits.
    #[error("a varint of more than 32 bits")]
    Varint,
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    Text,
    /// Null where something must be.
    #[error("null where that can't be")]
    Null,
    /// The codec refuses what has the right shape.
    #[error("a value that can't be")]
    Value,
}

/// To what a code is an answer: what a client does with one differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answering {
    /// An append.
    Produce,
    /// A read, or a look-up of an offset.
    Read,
    /// Metadata of a topic.
    Metadata,
    /// A change or a description of topics.
    Admin,
}

/// Kafka's code of a refusal. Where Kafka has the code it is the same; the others become what makes clients do what is right:
///
/// | ours | becomes | because |
/// | --- | --- | --- |
/// | disk full | KAFKA_STORAGE_ERROR | retriable for Java and librdkafka, with a look for another leader; a producer goes on when there is room |
/// | quarantined | KAFKA_STORAGE_ERROR | what Kafka answers for a failed log directory: clients keep their place and ask again, and pass over nothing. CORRUPT_MESSAGE would make Java's consumer fail |
/// | unavailable, append | REQUEST_TIMED_OUT | whether the batch is kept is not known, and of the retriable codes only this one tells librdkafka so |
/// | unavailable, read or metadata | NOT_LEADER_OR_FOLLOWER, LEADER_NOT_AVAILABLE | retriable; Java's consumer takes no other code that fits |
/// | unavailable, admin | COORDINATOR_NOT_AVAILABLE | retriable for Java's admin client |
/// | bound reached, admin | POLICY_VIOLATION | final, and with its words shown: to try again changes nothing |
/// | bound reached, else | KAFKA_STORAGE_ERROR, LEADER_NOT_AVAILABLE | retriable |
///
/// Of a read, what Java's consumer does not expect makes it fail as on a bug of its own: such codes become UNKNOWN_SERVER_ERROR, upon which it tries again.
pub fn kafka_code(code: Code, to: Answering) -> i16 {
    use Answering::*;
    let error = match (code, to) {
        (Code::DiskFull | Code::Quarantined, _) | (Code::LimitReached, Produce | Read) => ResponseError::KafkaStorageError,
        (Code::Unavailable, Produce) => ResponseError::RequestTimedOut,
        (Code::Unavailable, Read) => ResponseError::NotLeaderOrFollower,
        (Code::Unavailable, Admin) => ResponseError::CoordinatorNotAvailable,
        (Code::Unavailable | Code::LimitReached, Metadata) => ResponseError::LeaderNotAvailable,
        (Code::LimitReached, Admin) => ResponseError::PolicyViolation,
        (code, Read) if !is_expected_of_a_read(code) => ResponseError::UnknownServerError,
        (code, _) => return code.value(),
    };
    error.code()
}

fn is_expected_of_a_read(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        OffsetOutOfRange
            | CorruptBatch
            | UnknownTopicOrPartition
            | NotLeader
            | NotAuthorized
            | Storage
            | FencedLeaderEpoch
            | UnknownLeaderEpoch
            | OffsetNotAvailable
            | Internal
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_becomes_one_that_kafka_has() {
        for code in Code::ALL {
            for to in [Answering::Produce, Answering::Read, Answering::Metadata, Answering::Admin] {
                let value = kafka_code(*code, to);
                assert_eq!(
                    ResponseError::try_from_code(value).map(|error| (error.code(), matches!(error, ResponseError::Unknown(_)))),
                    Some((value, false)),
                    "{code:?} {to:?}"
                );
                let own = ResponseError::try_from_code(value).is_some_and(|error| error.is_retriable());
                // What may succeed later stays so for the client.
                let retriable = code.is_retriable() && !(*code == Code::LimitReached && to == Answering::Admin);
                assert!(own || !retriable || to == Answering::Read, "{code:?} {to:?}");
            }
        }
    }
}
