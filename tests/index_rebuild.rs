//! A start makes a damaged or missing index again from its segment, byte for byte as it was.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use corelane::request::{AlterTopic, OffsetSpec, Request};
use corelane::types::TopicPartition;
use support::{Broker, batch_of};

const BLOCK: usize = 4096;
const ENTRY: usize = 32;

fn start(data: &Path) -> Broker {
    Broker::start(data, &["--shards", "1"])
}

/// Exit code and number of findings of `inspect verify`.
fn verify(data: &Path) -> (i32, usize) {
    let done =
        Command::new(env!("CARGO_BIN_EXE_corelane")).args(["inspect", "verify", "--json", "--data"]).arg(data).output().expect("it runs");
    // What is damaged is an error besides, on a line of its own.
    let first = done.stdout.split(|byte| *byte == b'\n').next().expect("a line");
    let report: serde_json::Value = serde_json::from_slice(first).expect("JSON");
    (done.status.code().expect("no signal"), report["damage"].as_array().expect("a list").len())
}

fn partition_dir(data: &Path, partition: TopicPartition) -> PathBuf {
    data.join("topics").join(partition.topic.to_string()).join(partition.partition.to_string())
}

/// Every index of a partition by name, without the zeros at its end.
fn indexes(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(directory).expect("the partition's directory").map(|entry| entry.expect("a name").path());
    files
        .filter(|path| path.extension().is_some_and(|kind| kind == "index"))
        .map(|path| {
            let bytes = fs::read(&path).expect("an index");
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            (path.file_name().expect("a name").to_string_lossy().into_owned(), bytes[..end].to_vec())
        })
        .collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("an index");
    bytes[at] ^= 0x10;
    fs::write(path, bytes).expect("written");
}

/// Appends small and large batches with timestamps that go back and forth.
fn fill(broker: &Broker, partition: TopicPartition, batches: std::ops::Range<usize>) {
    let mut connection = broker.connect();
    for n in batches {
        let len = if n % 7 == 3 { 200_000 } else { 9_000 };
        let appended = connection.produce(partition, &batch_of([vec![b'a' + (n % 26) as u8; len]])).outcome.expect("appended");
        assert_eq!(appended.base_offset, n as i64);
    }
}

#[test]
fn damaged_and_missing_indexes_are_made_again() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let data = directory.path();
    let broker = start(data);
    let partition = TopicPartition {
        topic: broker.connect().create("indexed", 1, &[("segment.bytes", "1048576"), ("retention.ms", "-1")]),
        partition: 0,
    };
    fill(&broker, partition, 0..200);
    assert_eq!(broker.stop(), 0);
    assert_eq!(verify(data), (0, 0));
    let home = partition_dir(data, partition);
    let whole = indexes(&home);
    let names: Vec<_> = whole.keys().map(|name| home.join(name)).collect();
    assert!(names.len() >= 6, "{} segments", names.len());

    let active = names.len() - 1;
    fs::remove_file(&names[0]).expect("there");
    flip(&names[1], BLOCK + 3 * ENTRY + 5);
    flip(&names[2], 20);
    flip(&names[3], BLOCK);
    fs::write(&names[4], []).expect("written");
    fs::remove_file(&names[active]).expect("there");
    let (code, found) = verify(data);
    assert!(code == 1 && found >= 6, "{found} findings with exit code {code}");

    let broker = start(data);
    assert_eq!(broker.connect().read_all(partition, 0).len(), 200);
    broker.kill();
    assert_eq!(verify(data), (0, 0), "made again");
    let again = indexes(&home);
    for (name, bytes) in &whole {
        assert!(again[name] == *bytes, "{name} is not as it was: {} and {} bytes", again[name].len(), bytes.len());
    }

    // And it goes on from there.
    let broker = start(data);
    fill(&broker, partition, 200..260);
    assert_eq!(broker.connect().read_all(partition, 100).len(), 160);
    assert_eq!(broker.stop(), 0);
    assert_eq!(verify(data), (0, 0));
}

/// Retention has removed the segment before: the running hash at the start is computed back from the end.
#[test]
fn the_first_index_of_a_log_that_was_cut_below_is_made_again() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let data = directory.path();
    let broker = start(data);
    let config = [("segment.bytes", "1048576"), ("retention.ms", "-1")];
    let partition = TopicPartition { topic: broker.connect().create("short", 1, &config), partition: 0 };
    fill(&broker, partition, 0..200);
    // Only now, so that one look removes all that goes: a later life would remove what a look in the middle had left.
    let config = vec![("retention.bytes".into(), Some("3000000".into()))];
    broker.connect().ask(&Request::AlterTopic(AlterTopic { name: "short".into(), partitions: None, config }), &[]);
    let begun = std::time::Instant::now();
    while broker.connect().offset(partition, OffsetSpec::Earliest) == 0 {
        assert!(begun.elapsed().as_secs() < 60, "retention removes nothing");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(broker.stop(), 0);
    let home = partition_dir(data, partition);
    let whole = indexes(&home);
    assert!(!whole.keys().any(|name| name.starts_with("00000000000000000000.")), "the first segment is gone");
    let (first, bytes) = whole.first_key_value().expect("there are some");
    fs::remove_file(home.join(first)).expect("there");
    let broker = start(data);
    let earliest = broker.connect().offset(partition, OffsetSpec::Earliest);
    assert_eq!(broker.connect().read_all(partition, earliest).len() as i64, 200 - earliest);
    assert_eq!(broker.stop(), 0);
    assert_eq!(verify(data), (0, 0));
    assert!(indexes(&home)[first] == *bytes, "it is not as it was");
}
