//! Kafka's protocol: bytes to values and back.
//!
//! ```text
//! i32 length | i16 API key | i16 version | i32 correlation id | client id | body          request; big-endian
//! i32 length | i32 correlation id | body                                                  answer
//! ```
//! From a version on that is the API's own, lengths are varints and structures end with tagged fields (KIP-482); the headers follow, but for the answer to
//! ApiVersions, which comes before anything is agreed.
//!
//! - [`APIS`] is the one list of what is served. [`peek`] refuses what is not by the first 8 bytes of a frame, before anything is allocated for it.
//! - Produce, Fetch and the answer to Metadata are read and written here, so that record batches stay where they are and no partition costs an
//!   allocation. Everything else is `kafka-protocol`'s, behind a walk through the bytes ([`decode`]) that bounds what it allocates.
//! - Which error a client is told: [`kafka_code`]. In which order answers leave: [`InOrder`].
//!
//! Bytes behind a body are passed over, as Kafka's broker does: librdkafka leaves three there when it asks for all topics.
//!
//! Everything is pure and takes any bytes: hostile ones give a [`FrameError`] or [`DecodeError`], never a panic.
//!
//! Not here: transactions, groups of KIP-848, fetch sessions, topics by id, SASL.

mod api;
mod error;
mod fetch;
mod metadata;
mod order;
mod produce;
mod reader;
mod shape;
mod writer;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiVersionsResponse, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};

pub use api::{APIS, Api, FrameStart, RequestHead, START_LEN, decode_head, peek};
pub use error::{Answering, DecodeError, FrameError, kafka_code};
pub use fetch::{FetchAnswerWriter, FetchPartition, FetchRequest, FetchTopic, FetchedPartition, decode_fetch};
pub use metadata::{cluster_id, encode_metadata};
pub use order::{InOrder, Next, Place};
pub use produce::{
    FIRST_WITH_BATCHES, FIRST_WITH_ZSTD, ProducePart, ProducePartition, ProduceParts, ProduceRequest, ProduceTopic, Produced,
    decode_produce, decode_produce_head, decode_produce_start, encode_produced,
};
pub use reader::Reader;
pub use writer::put_length;

/// Reads a body that is not decoded by hand, after a walk through it (see `shape`).
///
/// # Errors
/// It does not decode.
pub fn decode<T: Decodable>(head: &RequestHead<'_>, mut body: Reader<'_>) -> Result<T, DecodeError> {
    if let Some(shape) = head.api.shape {
        shape::check(body.clone(), shape, head.version)?;
    }
    let mut bytes = Bytes::copy_from_slice(body.take(body.remaining())?);
    T::decode(&mut bytes, head.version).map_err(|_| DecodeError::Value)
}

/// The frame of an answer that is not written by hand; `None` where a value does not fit the version, which is a mistake of ours.
pub fn encode<T: Encodable + HeaderVersion>(correlation: i32, version: i16, answer: &T) -> Option<Vec<u8>> {
    let mut frame = BytesMut::with_capacity(256);
    frame.put_i32(0);
    ResponseHeader::default().with_correlation_id(correlation).encode(&mut frame, T::header_version(version)).ok()?;
    answer.encode(&mut frame, version).ok()?;
    let len = u32::try_from(frame.len() - 4).ok()?;
    put_length(&mut frame, len);
    Some(frame.into())
}

/// The frame of the answer to ApiVersions. A version that is not served is answered in version 0, with the versions of ApiVersions alone (KIP-511).
pub fn encode_api_versions(correlation: i32, version: i16, is_served: bool) -> Option<Vec<u8>> {
    use kafka_protocol::messages::ApiKey;
    use kafka_protocol::messages::api_versions_response::ApiVersion;
    let list = APIS.iter().filter(|api| is_served || matches!(api.key, ApiKey::ApiVersions)).map(|api| {
        let (least, most) = api.advertised;
        ApiVersion::default().with_api_key(api.key as i16).with_min_version(least).with_max_version(most)
    });
    let error = if is_served { 0 } else { kafka_protocol::ResponseError::UnsupportedVersion.code() };
    let answer = ApiVersionsResponse::default().with_error_code(error).with_api_keys(list.collect());
    encode(correlation, if is_served { version } else { 0 }, &answer)
}

#[cfg(test)]
mod group_tests;
#[cfg(test)]
mod tests;
