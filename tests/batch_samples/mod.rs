//! The records that the batch fixtures hold, and how a fixture is read.
#![allow(dead_code, reason = "each test that includes this uses a part of it")]

use std::path::PathBuf;

use bytes::Bytes;
use corelane::batch::{Record, RecordRef, decode};

/// More than any fixture unpacks to, bytes.
pub const LIMIT: usize = 1 << 20;
/// Timestamp of the first record.
pub const BASE_TIMESTAMP: i64 = 1_700_000_000_000;

/// A record as it is given to a producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Sample {
    pub fn new(timestamp: i64, key: Option<&str>, value: Option<&str>, headers: &[(&str, Option<&str>)]) -> Sample {
        let bytes = |text: &str| text.as_bytes().to_vec();
        Sample {
            timestamp,
            key: key.map(bytes),
            value: value.map(bytes),
            headers: headers.iter().map(|(name, value)| ((*name).into(), value.map(bytes))).collect(),
        }
    }

    pub fn header_pairs(&self) -> Vec<(&str, Option<&[u8]>)> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect()
    }
}

/// Every shape of record: with and without key, value and headers, empty ones, time going back, lengths of one, two and three varint bytes.
pub fn samples() -> Vec<Sample> {
    let long = "the quick brown fox jumps over the lazy dog, ".repeat(400);
    vec![
        Sample::new(BASE_TIMESTAMP, Some("key"), Some("value"), &[]),
        Sample::new(BASE_TIMESTAMP + 1, None, Some("no key"), &[]),
        Sample::new(BASE_TIMESTAMP + 2, Some("tombstone"), None, &[]),
        Sample::new(BASE_TIMESTAMP + 1_000_000, None, None, &[]),
        Sample::new(BASE_TIMESTAMP - 5000, Some(""), Some(""), &[]),
        Sample::new(BASE_TIMESTAMP + 3, Some("h"), Some("one header"), &[("trace", Some("abc"))]),
        Sample::new(
            BASE_TIMESTAMP + 4,
            None,
            Some("more headers"),
            &[("a", None), ("b", Some("")), ("a", Some("again")), ("größe", Some("groß"))],
        ),
        Sample::new(BASE_TIMESTAMP + 5, Some(&"k".repeat(70)), Some(&long), &[]),
        Sample::new(BASE_TIMESTAMP + 6, Some("last"), Some(&"0123456789".repeat(100)), &[]),
    ]
}

/// A fixture's place.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/batch").join(format!("{name}.batch"))
}

/// A fixture's bytes.
pub fn load(name: &str) -> Bytes {
    let path = path(name);
    Bytes::from(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// Writes a fixture that does not exist yet. One that does is never written again: it is what older versions wrote.
pub fn write_missing(name: &str, bytes: &[u8]) {
    if !path(name).exists() {
        std::fs::write(path(name), bytes).expect("fixtures are writable");
    }
}

pub fn of_owned(record: &Record) -> Sample {
    let headers = record.headers.iter().map(|h| (h.name_str().expect("UTF-8").to_owned(), h.value.map(<[u8]>::to_vec))).collect();
    let bytes = |b: &Bytes| b.to_vec();
    Sample { timestamp: record.timestamp, key: record.key.as_ref().map(bytes), value: record.value.as_ref().map(bytes), headers }
}

pub fn of_borrowed(record: &RecordRef<'_>) -> Sample {
    let headers = record.headers.iter().map(|h| (h.name_str().expect("UTF-8").to_owned(), h.value.map(<[u8]>::to_vec))).collect();
    Sample { timestamp: record.timestamp, key: record.key.map(<[u8]>::to_vec), value: record.value.map(<[u8]>::to_vec), headers }
}

/// The records of a batch, read both ways, which must agree; their offsets rise by one from the batch's.
pub fn read_back(batch: &Bytes) -> Vec<Sample> {
    let set = decode(batch.clone(), LIMIT).expect("an intact batch");
    let borrowed: Vec<Sample> = set.records().map(|r| of_borrowed(&r.expect("an intact record"))).collect();
    let base = set.header().base_offset;
    let owned: Vec<Record> = set.into_iter().map(|r| r.expect("an intact record")).collect();
    for (i, record) in owned.iter().enumerate() {
        assert_eq!(record.offset, base + i as i64);
    }
    assert_eq!(owned.iter().map(of_owned).collect::<Vec<_>>(), borrowed);
    borrowed
}
