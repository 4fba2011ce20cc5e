//! The store's formats as they are on disk: one file per kind and version, which every later program must read, and which this one must still write
//! byte for byte. `CORELANE_WRITE_FIXTURES=1` writes those that are missing, never one that is there.

use std::fs;
use std::path::PathBuf;

use corelane::limits::BLOCK;
use corelane::log::checkpoint::{self, CheckpointBody, PartitionState, ProducerBatch, ProducerSnapshot};
use corelane::log::file_header::{
    self, CatalogueHeader, CheckpointHeader, GenerationRecord, Identity, IndexHeader, JournalHeader, MetaSlot, ReserveHeader, SegmentHeader,
};
use corelane::log::index::{INDEX_ENTRY_LEN, Index, IndexEntry};
use corelane::log::installation::Installation;
use corelane::log::journal::{
    Adopt, ENTRY_HEADER_LEN, Entries, EntryHeader, EntryKind, GROUP_HEADER_LEN, GroupHeader, LargeReference, SegmentOpen, entry_space,
    parse_group, seal_group,
};
use corelane::log::replacement::{REPLACEMENT_LEN, Replacement};
use corelane::log::segment::SegmentInfo;
use corelane::types::{TopicId, TopicPartition};

const CLUSTER: [u8; 16] = *b"cluster of tests";
const PARTITION: TopicPartition = TopicPartition { topic: TopicId(*b"a topic of tests"), partition: 3 };
const SEGMENT: SegmentHeader = SegmentHeader { partition: PARTITION, rewrite_generation: 2, base_offset: 1_000_000 };

/// The file of a fixture, made where it is missing and asked for.
fn fixture(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store").join(name);
    if !path.exists() && std::env::var_os("CORELANE_WRITE_FIXTURES").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn header<I: Identity + Copy>(name: &str, identity: I) {
    let written = file_header::encode_header(&identity);
    let golden = fixture(name, &written);
    assert_eq!(file_header::decode::<I>(&golden).unwrap(), identity, "{name} is read as it was meant");
    assert!(golden == written, "{name} is written as it was");
    for at in 0..golden.len() {
        let mut damaged = golden.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(file_header::decode::<I>(&damaged).is_err(), "{name}: a flipped bit at {at}");
    }
}

#[test]
fn header_blocks_of_version_1() {
    let meta =
        MetaSlot { oldest_reader: 1, node_id: 7, cluster: CLUSTER, incarnation: *b"an incarnation!!", sequence: 9, clean_shutdown: true };
    header("v1/meta", meta);
    header("v1/generation", GenerationRecord { cluster: CLUSTER, generation: 5, salt: 0x1122_3344_5566_7788, shards: 4 });
    header("v1/journal", JournalHeader { cluster: CLUSTER, file: 12, size: 1 << 25 });
    header("v1/segment", SEGMENT);
    header("v1/index", IndexHeader(SEGMENT));
    header("v3/catalogue", CatalogueHeader { cluster: CLUSTER });
    for earlier in ["v1/catalogue", "v2/catalogue"] {
        let header = file_header::decode::<CatalogueHeader>(&fixture(earlier, &[])).unwrap();
        assert_eq!(header, CatalogueHeader { cluster: CLUSTER }, "{earlier} is read for ever");
    }
    header("v1/reserve", ReserveHeader);
}

fn entries() -> Vec<(EntryHeader, Vec<u8>)> {
    let payload = |kind| match kind {
        EntryKind::Append => b"carried bytes and whole batches".to_vec(),
        EntryKind::Carry | EntryKind::Truncate => b"bytes of a block".to_vec(),
        EntryKind::SegmentOpen => SegmentOpen { rewrite_generation: 2 }.encode().to_vec(),
        EntryKind::Adopt => Adopt { id: 4, file_len: 1 << 24, header: [0xad; 61] }.encode().to_vec(),
        EntryKind::LargeReference => {
            let reference = LargeReference { batch_len: 3000 + 8192 + 7, head_len: 3000, tail_len: 7, header: [0x1a; 61] };
            let mut payload = reference.encode().to_vec();
            payload.resize(reference.payload_len(1096), 0x33);
            payload
        }
        _ => Vec::new(),
    };
    let entry = |(number, kind): (usize, EntryKind)| {
        let payload = payload(kind);
        let number = number as i64;
        let header = EntryHeader {
            kind,
            must_understand: kind != EntryKind::DurableMark,
            topic_partition: PARTITION,
            leader_epoch: 6,
            segment: 1_000_000,
            position: 8192,
            base_offset: 1_000_100 + number,
            end_offset: 1_000_101 + number,
            high_watermark: 1_000_090,
            running_hash: 0xfeed_face_0000_0000 + number as u64,
            max_timestamp: 1_700_000_000_000 + number,
            payload_len: payload.len() as u32,
            carried: match kind {
                EntryKind::Append => 13,
                EntryKind::Carry => payload.len() as u32,
                EntryKind::LargeReference => 1096,
                _ => 0,
            },
        };
        (header, payload)
    };
    EntryKind::ALL
        .into_iter()
        .filter(|kind| !matches!(kind, EntryKind::Replace | EntryKind::Restart | EntryKind::Install))
        .enumerate()
        .map(entry)
        .collect()
}

/// Came after the group of all kinds was kept.
#[test]
fn a_replace_entry_of_version_1() {
    let info = SegmentInfo {
        end_offset: 1_000_200,
        valid_end: 8192,
        max_timestamp: 1_700_000_000_000,
        index_entries: 7,
        sealed: true,
        cleaned: true,
        ..SegmentInfo::new(SEGMENT.base_offset, 2, 0xabcd)
    };
    let (append, _) = entries()[0];
    let header = EntryHeader { kind: EntryKind::Replace, payload_len: REPLACEMENT_LEN as u32, carried: 0, ..append };
    let mut entry = vec![0; ENTRY_HEADER_LEN];
    header.write(&mut entry);
    entry.extend(Replacement::of(&info).encode());
    let golden = fixture("v1/replace-entry", &entry);
    assert!(golden == entry, "the entry is written as it was");
    assert_eq!(Replacement::decode(&golden[ENTRY_HEADER_LEN..]).unwrap().segment(&header), info);
}

/// Came later still.
#[test]
fn an_install_entry_of_version_1() {
    let info = SegmentInfo {
        end_offset: 1_000_200,
        valid_end: 8192,
        max_timestamp: 1_700_000_000_000,
        index_entries: 7,
        sealed: true,
        adopted: true,
        ..SegmentInfo::new(SEGMENT.base_offset, 2, 0xabcd)
    };
    let installation = Installation {
        replacement: Replacement::of(&info),
        adopted: true,
        has_producers: true,
        hash_before: 0x1234,
        log_id: 5,
        index_id: 6,
        epochs: vec![(3, SEGMENT.base_offset), (4, SEGMENT.base_offset + 20)],
    };
    let payload = installation.encode();
    let (append, _) = entries()[0];
    let header = EntryHeader { kind: EntryKind::Install, payload_len: payload.len() as u32, carried: 0, ..append };
    let mut entry = vec![0; ENTRY_HEADER_LEN];
    header.write(&mut entry);
    entry.extend(payload);
    let golden = fixture("v1/install-entry", &entry);
    assert!(golden == entry, "the entry is written as it was");
    let read = Installation::decode(&golden[ENTRY_HEADER_LEN..]).unwrap();
    assert_eq!((read.segment(&header), read), (info, installation));
}

#[test]
fn a_journal_group_of_version_1_with_every_kind_of_entry() {
    let entries = entries();
    let mut group = vec![0; GROUP_HEADER_LEN];
    for (header, payload) in &entries {
        let at = group.len();
        group.resize(at + entry_space(payload.len()), 0);
        header.write(&mut group[at..]);
        group[at + ENTRY_HEADER_LEN..][..payload.len()].copy_from_slice(payload);
    }
    let header = GroupHeader {
        generation: 5,
        salt: 0x1122_3344_5566_7788,
        file: 12,
        position: 4096,
        sequence: 77,
        durable_sequence: 76,
        length: group.len() as u32,
        shard: 2,
        entries: entries.len() as u16,
        previous_checksum: 0x0bad_f00d,
    };
    seal_group(&mut group, &header);
    let golden = fixture("v1/group", &group);
    let (read, exact) = parse_group(&golden).unwrap();
    assert_eq!(read, header);
    let read: Vec<_> = Entries::new(exact).map(|entry| entry.map(|(header, payload)| (header, payload.to_vec())).unwrap()).collect();
    assert_eq!(read, entries);
    assert!(golden == group, "the group is written as it was");
    for at in 0..golden.len() {
        let mut damaged = golden.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(parse_group(&damaged).is_err(), "a flipped bit at {at}");
    }
}

#[test]
fn index_entries_of_version_1() {
    let mut index = Index::new(SEGMENT.base_offset);
    for number in 0..130 {
        index.push(IndexEntry {
            offset: 1_000_000 + 50 * number,
            position: 4096 + 40_000 * number as u64,
            max_timestamp: if number == 0 { i64::MIN } else { 1_700_000_000_000 + number },
            running_hash: 0xabcd_0000 + number as u64,
        });
    }
    let written = index.blocks_from(0).unwrap().bytes;
    let golden = fixture("v1/index-entries", &written);
    assert_eq!(Index::load(SEGMENT.base_offset, &golden, 130), (index, None));
    assert!(golden == written, "the entries are written as they were");
    for at in 0..130 * INDEX_ENTRY_LEN {
        let mut damaged = golden.clone();
        damaged[at] ^= 1 << (at % 8);
        let (index, error) = Index::load(SEGMENT.base_offset, &damaged, 130);
        assert!(error.is_some() && index.len() == at / INDEX_ENTRY_LEN, "a flipped bit at {at}");
    }
}

#[test]
fn a_checkpoint_of_version_1() {
    let batch = |n: i32| ProducerBatch { first_sequence: 10 * n, last_sequence: 10 * n + 9, base_offset: 100 + i64::from(n), timestamp: 5 };
    let sealed = SegmentInfo {
        end_offset: 1_000_000,
        valid_end: 123_456,
        max_timestamp: 1_700_000_000_000,
        index_entries: 3,
        sealed: true,
        adopted: true,
        ..SegmentInfo::new(900_000, 0, 0x55)
    };
    let state = PartitionState {
        log_start: 900_000,
        log_end: 1_000_200,
        high_watermark: 1_000_150,
        running_hash: 0x0123_4567_89ab_cdef,
        max_timestamp: 1_700_000_000_000,
        flushed_segment: 1_000_000,
        flushed_position: 8192,
        epochs: vec![(0, 0), (6, 950_000)],
        segments: vec![sealed, SegmentInfo::new(1_000_000, 2, 0x66)],
        producers: vec![ProducerSnapshot { id: 42, epoch: 1, batches: (0..5).map(batch).collect() }],
        ..PartitionState::new(PARTITION)
    };
    let other = PartitionState { quarantined: true, ..PartitionState::new(TopicPartition { partition: 4, ..PARTITION }) };
    let body = CheckpointBody { sequence: 70, replay_from: 60, partitions: vec![state, other] };
    let header = CheckpointHeader { cluster: CLUSTER, generation: 5, sequence: 70, shard: 2, body_crc: 0, body_len: 0 };
    let written = checkpoint::encode(&header, &body);
    let golden = fixture("v1/checkpoint", &written);
    let (read_header, read) = checkpoint::decode(&golden).unwrap();
    assert_eq!(read, body);
    assert!(golden == written, "the checkpoint is written as it was");
    for at in 0..BLOCK + read_header.body_len as usize {
        let mut damaged = golden.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(checkpoint::decode(&damaged).is_err(), "a flipped bit at {at}");
    }
}
