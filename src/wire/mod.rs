//! The native protocol: frames with a FlatBuffers header in front of raw record batches.
//!
//! A connection starts with [`frame::MAGIC`], which can't be the start of a Kafka request, then one frame each way with the
//! handshake's tables ([`handshake`]), then frames with requests and responses:
//!
//! ```text
//! u32 frame length | u32 header length | u32 crc32 of the header | header | payload        little-endian; the first counts what follows it
//! ```
//!
//! The header is a table of `schemas/`; it points into the payload by ranges, so batches pass from socket to log and back
//! without being parsed or copied here. Everything is a function of bytes: no socket, no clock.
//!
//! Bytes from outside never panic and never cause an allocation of more than a small multiple of what has been received:
//! lengths are checked before a buffer is made ([`frame::peek`]), and a header is read only through the verifier, with limits on depth, number
//! of tables and on parts that are referred to many times (`verified`). Reading without it is denied by lint.
//!
//! Not here: record batches (`batch`), and what a request means.

mod cluster;
pub mod decode;
pub mod encode;
pub mod frame;
mod generated;
mod groups;
pub mod handshake;

pub use decode::{WireError, decode_request, decode_request_reusing, decode_response};
pub use encode::{RequestEncoder, ResponseEncoder, encode_request, encode_response};
pub use frame::{FrameError, FramePrefix, MAGIC, PREFIX_LEN, peek, peek_response};

use crate::limits;

/// The advertised id that stands for "nobody leads": no broker has it, ids are below 2^31.
const NO_LEADER: u32 = u32::MAX;

/// The header's root table, verified.
///
/// The limits are in proportion to the header: a legitimate header refers to a part twice at most where tables share a vtable, so
/// one whose parts add up to more than [`limits::HEADER_EXPANSION`] times its length is an attack.
fn verified<'b, T>(header: &'b [u8]) -> Result<T::Inner, flatbuffers::InvalidFlatbuffer>
where
    T: flatbuffers::Follow<'b> + flatbuffers::Verifiable + 'b,
{
    let options = flatbuffers::VerifierOptions {
        max_depth: limits::MAX_HEADER_DEPTH,
        max_tables: header.len() / 4,
        max_apparent_size: header.len() * limits::HEADER_EXPANSION,
        ignore_missing_null_terminator: false,
    };
    flatbuffers::root_with_opts::<T>(&options, header)
}

#[cfg(test)]
mod cluster_values;
#[cfg(test)]
mod group_values;
#[cfg(test)]
mod tests;
