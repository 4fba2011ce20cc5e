//! Kafka's record batch, version 2 (magic 2): one layout for wire, disk and replica.
//!
//! The client encodes a batch once ([`BatchBuilder`]). The broker checks it ([`check_ingress`]), writes its base offset and leader
//! epoch ([`stamp`]), and the same bytes go to disk, to followers and to consumers ([`decode`]), compressed or not.
//!
//! | offset | size | field | in the CRC | the broker writes |
//! | --- | --- | --- | --- | --- |
//! | 0 | 8 | base offset | no | always |
//! | 8 | 4 | batch length: bytes after this field | no | no |
//! | 12 | 4 | partition leader epoch | no | always |
//! | 16 | 1 | magic = 2 | no | no |
//! | 17 | 4 | CRC-32C of bytes 21 to the end | - | when a byte from 21 on changes |
//! | 21 | 2 | attributes: bits 0-2 codec, 3 LogAppendTime, 4 transactional, 5 control, 6 delete horizon | yes | LogAppendTime, and in a cleaning the horizon |
//! | 23 | 4 | last offset delta | yes | no |
//! | 27 | 8 | base timestamp | yes | no |
//! | 35 | 8 | max timestamp | yes | LogAppendTime only |
//! | 43 | 8 | producer id, -1 is none | yes | no |
//! | 51 | 2 | producer epoch | yes | no |
//! | 53 | 4 | base sequence | yes | no |
//! | 57 | 4 | record count | yes | no |
//! | 61 | .. | records, one block, compressed as a whole | yes | no |
//!
//! A record: length (varint: the bytes after it), attributes (1 byte, 0), timestamp delta (varlong), offset delta (varint), key length
//! (varint, -1 is no key), key, value length (varint, -1 is no value), value, header count (varint), headers. A header: name
//! length (varint), name (UTF-8), value length (varint, -1 is no value), value. Integers are big-endian, varints zig-zag.
//!
//! There are two validations. *Ingress* is what a client may send: one whole batch without gaps, with nothing that only the broker may set.
//! *Stored* is what the log may hold: compaction leaves gaps, and later there are control batches.
//!
//! A cleaning leaves records out of stored batches ([`keep_records`]).
//!
//! Everything here is pure and takes bytes from anywhere: malformed bytes give a [`BatchError`], never a panic, and nothing is allocated on
//! the word of an unchecked length. The offsets that a partition assigns, and what a producer's sequence must be, are not here.

mod builder;
mod check;
mod compression;
mod error;
mod header;
mod record;
mod record_set;
mod rewrite;
mod stamp;
mod streamed;
pub mod varint;

pub use builder::BatchBuilder;
pub(crate) use check::check_stored_fields;
pub use check::{BatchIter, check_ingress, check_ingress_computed, check_ingress_head, check_stored, check_stored_slices, split_batch};
pub use compression::{Compression, UnknownCompression};
pub use error::{BatchError, BatchErrorKind, RecordFault};
pub use header::{
    BATCH_MAGIC, BatchHeader, CRC_START, HEADER_LEN, LENGTH_PREFIX, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, sequence_after,
};
pub use record::{HeaderRef, Headers, RecordRef, Records};
pub use record_set::{Record, RecordHeaders, RecordSet, RecordsBytes, decode};
pub use rewrite::{check_keys, emptied, keep_records};
pub use stamp::{stamp, stamp_crc, stamp_log_append_time, stamp_log_append_time_head};
pub use streamed::{RecordHead, StreamedBatch, StreamedCrc};
