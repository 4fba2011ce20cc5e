//! Golden record batches, byte for byte, and damaged ones with the error that each must give.
//!
//! `cargo test --test batch_fixtures -- --ignored write_missing_fixtures` writes the files of new entries and leaves existing ones alone.
//! Compressed fixtures also pin the compressor's output: when a codec's library is upgraded and `golden_batches_are_built_byte_for_byte`
//! fails for it, add its new output under a new name and keep the old file among those that must still be read.

mod batch_samples;

use batch_samples::{BASE_TIMESTAMP, LIMIT, Sample, load, read_back, samples, write_missing};
use bytes::Bytes;
use corelane::batch::{
    BatchBuilder, BatchError, BatchHeader, CRC_START, Compression, HEADER_LEN, RecordFault, StreamedBatch, check_ingress, check_stored,
    decode, stamp, stamp_crc, stamp_log_append_time,
};
use corelane::checksum::crc32c;

fn build(compression: Compression, samples: &[Sample], producer: Option<(i64, i16, i32)>) -> Vec<u8> {
    let mut builder = BatchBuilder::new(compression);
    for (i, s) in samples.iter().enumerate() {
        let delta = builder.append(s.timestamp, s.key.as_deref(), s.value.as_deref(), &s.header_pairs());
        assert_eq!(delta, Ok(i as u32));
    }
    if let Some((id, epoch, sequence)) = producer {
        builder.set_producer(id, epoch, sequence);
    }
    builder.build().to_vec()
}

fn one_record() -> Vec<Sample> {
    vec![Sample::new(BASE_TIMESTAMP, Some("key"), Some("value"), &[("h", Some("xy"))])]
}

/// Name, bytes as made now, records that they hold.
fn golden() -> Vec<(String, Vec<u8>, Vec<Sample>)> {
    let all = samples();
    let mut golden = vec![("one-record".to_owned(), build(Compression::None, &one_record(), None), one_record())];
    for codec in Compression::ALL {
        golden.push((format!("samples-{codec}"), build(codec, &all, None), all.clone()));
    }
    golden.push(("idempotent".into(), build(Compression::None, &all[..3], Some((4_000_000_007, 3, 2_147_483_646))), all[..3].to_vec()));

    let mut stamped = build(Compression::None, &all[..3], None);
    stamp(&mut stamped, 123_456_789_012, 7);
    golden.push(("stamped".into(), stamped.clone(), all[..3].to_vec()));

    let now = BASE_TIMESTAMP + 60_000;
    stamp_log_append_time(&mut stamped, now);
    let at_now = all[..3].iter().map(|s| Sample { timestamp: now, ..s.clone() }).collect();
    golden.push(("log-append-time".into(), stamped, at_now));

    golden.push(("snappy-java-framing".into(), in_java_framing(&build(Compression::Snappy, &all, None)), all));

    let streamed = StreamedBatch::new(BASE_TIMESTAMP, Some(b"key"), 5, &[("h", Some(b"xy"))], None).expect("a small batch");
    let mut crc = streamed.crc();
    crc.update(b"va").expect("as announced");
    crc.update(b"lue").expect("as announced");
    let mut whole = [&streamed.prefix[..], b"value", &streamed.suffix].concat();
    stamp_crc(&mut whole, crc.finish().expect("as announced"));
    golden.push(("streamed".into(), whole, one_record()));
    golden
}

/// A snappy batch with its one raw block wrapped as the Java library does.
fn in_java_framing(batch: &[u8]) -> Vec<u8> {
    let (head, block) = batch.split_at(HEADER_LEN);
    let len = (block.len() as u32).to_be_bytes();
    let framed = [head, b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01", &len, block].concat();
    with_true_length_and_crc(framed)
}

fn with_true_crc(mut batch: Vec<u8>) -> Vec<u8> {
    let crc = crc32c(&batch[CRC_START..]);
    stamp_crc(&mut batch, crc);
    batch
}

fn with_true_length_and_crc(mut batch: Vec<u8>) -> Vec<u8> {
    let length = batch.len() as i32 - 12;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    with_true_crc(batch)
}

/// Field by field, computed from the format's description by other means than the code under test.
#[test]
fn one_record_is_as_the_format_says() {
    #[rustfmt::skip]
    let expected: &[u8] = &[
        0, 0, 0, 0, 0, 0, 0, 0,                         // base offset
        0, 0, 0, 0x45,                                  // length after this field
        0xff, 0xff, 0xff, 0xff,                         // leader epoch -1
        2,                                              // magic
        0xbf, 0x4f, 0xa5, 0x81,                         // CRC-32C
        0, 0,                                           // attributes
        0, 0, 0, 0,                                     // last offset delta
        0, 0, 0x01, 0x8b, 0xcf, 0xe5, 0x68, 0,          // base timestamp 1,700,000,000,000
        0, 0, 0x01, 0x8b, 0xcf, 0xe5, 0x68, 0,          // max timestamp
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // producer id -1
        0xff, 0xff,                                     // producer epoch -1
        0xff, 0xff, 0xff, 0xff,                         // base sequence -1
        0, 0, 0, 1,                                     // record count
        38,                                             // record length 19
        0,                                              // attributes
        0,                                              // timestamp delta
        0,                                              // offset delta
        6, b'k', b'e', b'y',
        10, b'v', b'a', b'l', b'u', b'e',
        2,                                              // one header
        2, b'h',
        4, b'x', b'y',
    ];
    assert_eq!(build(Compression::None, &one_record(), None), expected);
}

#[test]
fn golden_batches_are_built_byte_for_byte() {
    for (name, made, _) in golden() {
        assert!(made == load(&name), "{name}: the bytes made now differ from the golden ones");
    }
}

#[test]
fn golden_batches_are_read() {
    for (name, _, records) in golden() {
        let bytes = load(&name);
        assert_eq!(check_stored(&bytes).map(|h| h.total_len()), Ok(bytes.len()), "{name}");
        assert_eq!(read_back(&bytes), records, "{name}");
    }
}

#[test]
fn golden_headers_say_what_was_set() {
    let header = |name: &str| BatchHeader::parse(&load(name)).expect("a golden header");
    for codec in Compression::ALL {
        assert_eq!(header(&format!("samples-{codec}")).compression(), Ok(codec));
    }
    let idempotent = header("idempotent");
    assert_eq!((idempotent.producer_id, idempotent.producer_epoch, idempotent.base_sequence), (4_000_000_007, 3, 2_147_483_646));
    assert_eq!(idempotent.last_sequence(), 0, "2,147,483,646, 2,147,483,647, 0");
    let stamped = header("stamped");
    assert_eq!((stamped.base_offset, stamped.last_offset(), stamped.leader_epoch), (123_456_789_012, 123_456_789_014, 7));
    let log_append_time = header("log-append-time");
    assert!(log_append_time.log_append_time());
    assert_eq!(log_append_time.max_timestamp, BASE_TIMESTAMP + 60_000);
}

/// A damaged batch and what each validation must say of it; `None` is that it passes.
struct Damaged {
    name: &'static str,
    bytes: Vec<u8>,
    ingress: Option<BatchError>,
    stored: Option<BatchError>,
    /// What reading the records gives, for those that pass as stored.
    records: Option<BatchError>,
}

fn put(mut batch: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    batch
}

fn computed(batch: &[u8]) -> u32 {
    crc32c(&batch[CRC_START..])
}

/// Damage that shows in the bytes' extent or before the CRC is computed.
fn damaged_extents(base: &[u8]) -> Vec<Damaged> {
    let len = base.len();
    let both =
        |name, bytes: Vec<u8>, error: BatchError| Damaged { name, bytes, ingress: Some(error.clone()), stored: Some(error), records: None };
    let mut flipped_body = base.to_vec();
    flipped_body[len - 3] ^= 0x10;
    let flipped_crc = BatchError::Crc { stored: computed(base), computed: computed(&flipped_body) };
    vec![
        both("nothing", vec![], BatchError::Truncated { needed: 61, available: 0 }),
        both("cut-in-header", base[..60].to_vec(), BatchError::Truncated { needed: 61, available: 60 }),
        both("cut-in-records", base[..len - 1].to_vec(), BatchError::Truncated { needed: len, available: len - 1 }),
        Damaged {
            name: "more-than-one",
            bytes: [base, &[0]].concat(),
            ingress: Some(BatchError::NotOneBatch { batch: len, available: len + 1 }),
            stored: None,
            records: None,
        },
        both("length-48", put(base.to_vec(), 8, &48i32.to_be_bytes()), BatchError::Length { actual: 48, min: 49 }),
        both("length-negative", put(base.to_vec(), 8, &(-1i32).to_be_bytes()), BatchError::Length { actual: -1, min: 49 }),
        Damaged {
            name: "length-huge",
            bytes: put(base.to_vec(), 8, &i32::MAX.to_be_bytes()),
            ingress: Some(BatchError::TooLarge { max: LIMIT, actual: i32::MAX as usize + 12 }),
            stored: Some(BatchError::Truncated { needed: i32::MAX as usize + 12, available: len }),
            records: None,
        },
        both("magic-1", put(base.to_vec(), 16, &[1]), BatchError::Magic { expected: 2, actual: 1 }),
        both("body-bit", flipped_body, flipped_crc),
        both("crc-field", put(base.to_vec(), 17, &[0, 0, 0, 0]), BatchError::Crc { stored: 0, computed: computed(base) }),
    ]
}

/// Batches with a right CRC whose header says what it must not.
fn refused_headers(base: &[u8]) -> Vec<Damaged> {
    let ingress = |name, at, field: &[u8], error| Damaged {
        name,
        bytes: with_true_crc(put(base.to_vec(), at, field)),
        ingress: Some(error),
        stored: None,
        records: None,
    };
    let both = |name, at, field: &[u8], error: BatchError| Damaged { stored: Some(error.clone()), ..ingress(name, at, field, error) };
    let producer = |id: i64, epoch: i16, sequence: i32| [&id.to_be_bytes()[..], &epoch.to_be_bytes(), &sequence.to_be_bytes()].concat();
    vec![
        both("codec-5", 21, &[0, 5], BatchError::Codec { actual: 5 }),
        ingress("control", 21, &[0, 0x20], BatchError::Control),
        ingress("transactional", 21, &[0, 0x10], BatchError::Transactional),
        ingress("client-log-append-time", 21, &[0, 0x08], BatchError::Attributes { attributes: 0x08, refused: 0x08 }),
        ingress("delete-horizon", 21, &[0, 0x40], BatchError::Attributes { attributes: 0x40, refused: 0x40 }),
        ingress("reserved-attribute", 21, &[0x01, 0], BatchError::Attributes { attributes: 0x100, refused: 0x100 }),
        both("delta-negative", 23, &(-1i32).to_be_bytes(), BatchError::LastOffsetDelta { actual: -1 }),
        both(
            "offset-overflow",
            0,
            &(i64::MAX - 1).to_be_bytes(),
            BatchError::OffsetRange { base_offset: i64::MAX - 1, last_offset_delta: 1 },
        ),
        Damaged {
            name: "offset-negative",
            bytes: put(base.to_vec(), 0, &(-1i64).to_be_bytes()),
            ingress: None,
            stored: Some(BatchError::OffsetRange { base_offset: -1, last_offset_delta: 1 }),
            records: None,
        },
        Damaged {
            records: Some(BatchError::RecordsLeftOver { bytes: 13, count: 1 }),
            ..ingress("count-too-small", 57, &1i32.to_be_bytes(), BatchError::Count { count: 1, last_offset_delta: 1 })
        },
        both("count-too-large", 57, &3i32.to_be_bytes(), BatchError::Count { count: 3, last_offset_delta: 1 }),
        Damaged {
            records: Some(BatchError::RecordsLeftOver { bytes: 28, count: 0 }),
            ..ingress("count-zero", 57, &0i32.to_be_bytes(), BatchError::Count { count: 0, last_offset_delta: 1 })
        },
        both("count-smallest", 57, &i32::MIN.to_be_bytes(), BatchError::Count { count: i32::MIN, last_offset_delta: 1 }),
        ingress("producer-no-epoch", 43, &producer(5, -1, 0), BatchError::Producer { id: 5, epoch: -1, base_sequence: 0 }),
        ingress("producer-no-sequence", 43, &producer(5, 0, -1), BatchError::Producer { id: 5, epoch: 0, base_sequence: -1 }),
        ingress("producer-negative", 43, &producer(-2, 0, 0), BatchError::Producer { id: -2, epoch: 0, base_sequence: 0 }),
    ]
}

/// Batches that pass both validations, which don't look into the records, and whose records are malformed.
fn malformed_records(base: &[u8]) -> Vec<Damaged> {
    let damaged =
        |name, bytes, error| Damaged { name, bytes: with_true_length_and_crc(bytes), ingress: None, stored: None, records: Some(error) };
    let at = |name, position: usize, field: &[u8], index, fault| {
        let record = if index == 0 { 0 } else { SECOND };
        damaged(name, put(base.to_vec(), HEADER_LEN + position, field), BatchError::Record { index, position: record, fault })
    };
    // The first record's bytes: 0 length, 1 attributes, 2 timestamp delta, 3 offset delta, 4 key length, 5..8 key, 8 value length,
    // 9..14 value, 14 header count.
    const SECOND: usize = 15;
    // Length 15, attributes, timestamp delta i64::MAX, offset delta 0, no key, no value, no headers.
    let far_record = [30, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0, 1, 1, 0];
    let far_timestamp = [&base[..HEADER_LEN], &far_record, &base[HEADER_LEN + SECOND..]].concat();
    vec![
        at("record-length-beyond", 0, &[0x7e], 0, RecordFault::Truncated { needed: 63, available: 27 }),
        at("record-length-negative", 0, &[1], 0, RecordFault::Length { field: "record", actual: -1 }),
        at("record-length-short", 0, &[26], 0, RecordFault::Truncated { needed: 1, available: 0 }),
        at("record-length-long", 0, &[30], 0, RecordFault::LeftOver { bytes: 1 }),
        at("offset-delta-beyond", SECOND + 3, &[4], 1, RecordFault::OffsetDelta { min: 1, last: 1, actual: 2 }),
        at("offset-delta-twice", SECOND + 3, &[0], 1, RecordFault::OffsetDelta { min: 1, last: 1, actual: 0 }),
        at("offset-delta-negative", 3, &[1], 0, RecordFault::OffsetDelta { min: 0, last: 1, actual: -1 }),
        at("key-length-minus-2", 4, &[3], 0, RecordFault::Length { field: "key", actual: -2 }),
        at("key-length-beyond", 4, &[0x7e], 0, RecordFault::Truncated { needed: 63, available: 10 }),
        at("value-length-minus-2", 8, &[3], 0, RecordFault::Length { field: "value", actual: -2 }),
        at("header-count-negative", 14, &[1], 0, RecordFault::Length { field: "header count", actual: -1 }),
        at("header-count-beyond", 14, &[0x7e], 0, RecordFault::Truncated { needed: 1, available: 0 }),
        at("varint-too-long", 4, &[0x80, 0x80, 0x80, 0x80, 0x80], 0, RecordFault::Varint),
        damaged(
            "timestamp-beyond",
            far_timestamp,
            BatchError::Record { index: 0, position: 0, fault: RecordFault::Timestamp { base: BASE_TIMESTAMP, delta: i64::MAX } },
        ),
        damaged("bytes-after-the-last", [base, &[0, 0]].concat(), BatchError::RecordsLeftOver { bytes: 2, count: 2 }),
        damaged(
            "last-record-missing",
            base[..HEADER_LEN + SECOND].to_vec(),
            BatchError::Record { index: 1, position: SECOND, fault: RecordFault::Truncated { needed: 1, available: 0 } },
        ),
    ]
}

fn damaged() -> Vec<Damaged> {
    let two = [Sample::new(BASE_TIMESTAMP, Some("key"), Some("value"), &[]), Sample::new(BASE_TIMESTAMP, None, Some("123456"), &[])];
    let base = build(Compression::None, &two, None);
    assert_eq!(base.len(), HEADER_LEN + 28);
    let mut all = damaged_extents(&base);
    all.extend(refused_headers(&base));
    all.extend(malformed_records(&base));
    all
}

#[test]
fn damaged_batches_give_their_errors() {
    for case in damaged() {
        let name = case.name;
        let bytes = load(&format!("damaged/{name}"));
        assert!(case.bytes == bytes, "{name}: the bytes made now differ from the golden ones");
        assert_eq!(check_ingress(&bytes, LIMIT).err(), case.ingress, "{name} at ingress");
        assert_eq!(check_stored(&bytes).err(), case.stored, "{name} as stored");
        let first = decode(bytes, LIMIT).and_then(|set| set.into_iter().find_map(Result::err).map_or(Ok(()), Err));
        assert_eq!(first.err(), case.stored.or(case.records), "{name} when read");
    }
}

/// A compressed block that is cut, or unpacks to more than the reader allows, in every codec.
#[test]
fn compressed_blocks_that_do_not_unpack() {
    for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let whole = load(&format!("samples-{codec}"));
        let cut = with_true_length_and_crc(whole[..whole.len() - 20].to_vec());
        assert!(check_ingress(&cut, LIMIT).is_ok(), "the broker does not look into the block");
        let error = decode(Bytes::from(cut), LIMIT).err();
        assert!(matches!(&error, Some(BatchError::Decompress { codec: c, .. }) if *c == codec), "{codec}: {error:?}");
        assert_eq!(decode(whole, 1000).err(), Some(BatchError::DecompressedTooLarge { codec, limit: 1000 }));
    }
}

#[test]
fn a_batch_over_the_limit_is_refused() {
    let batch = load("one-record");
    assert_eq!(check_ingress(&batch, 81).map(|h| h.record_count), Ok(1));
    assert_eq!(check_ingress(&batch, 80), Err(BatchError::TooLarge { max: 80, actual: 81 }));
}

/// No bit of a batch can change unnoticed but those that the CRC leaves out and the broker writes: base offset and leader epoch.
#[test]
fn every_flipped_bit_is_noticed() {
    let whole = load("samples-none");
    let whole = &whole[..];
    let mut unnoticed = vec![];
    for at in 0..whole.len() {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1 << (at % 8);
        if check_ingress(&bytes, LIMIT).is_ok() {
            unnoticed.push(at);
        }
    }
    assert_eq!(unnoticed, (0..8).chain(12..16).collect::<Vec<_>>());
}

#[test]
#[ignore = "writes files"]
fn write_missing_fixtures() {
    for (name, bytes, _) in golden() {
        write_missing(&name, &bytes);
    }
    for case in damaged() {
        write_missing(&format!("damaged/{}", case.name), &case.bytes);
    }
}
