//! Both checkpoints of a shard lost: a start is refused and changes nothing; a slot put back opens the store; `inspect repair` makes one from segments and journal.
#![cfg(feature = "cli")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use corelane::types::TopicPartition;
use support::{Broker, batch_of};

const PARTITIONS: u32 = 5;
/// Every way of an append; small ones most, so that the journal has laps.
const SIZES: [usize; 8] = [100, 60_000, 90_000, 200_000, 90_000, 60_000, 9_000_000, 1000];
const FLAGS: [&str; 2] = ["--shards", "2"];

fn value(partition: u32, n: usize) -> Vec<u8> {
    let mut value = format!("{partition}/{n}/").into_bytes();
    value.resize(SIZES[(n + partition as usize) % SIZES.len()], b'a' + (n % 26) as u8);
    value
}

/// Appends records `from` to `to` to each partition.
fn append(broker: &Broker, partitions: &[TopicPartition], from: usize, to: usize) {
    for partition in partitions {
        let mut connection = broker.connect_owner(*partition);
        for n in from..to {
            let appended = connection.produce(*partition, &batch_of([value(partition.partition, n)])).outcome.expect("appended");
            assert_eq!(appended.base_offset, n as i64);
        }
    }
}

fn check(broker: &Broker, partition: TopicPartition, count: usize) {
    let records = broker.connect_owner(partition).read_all(partition, 0);
    assert_eq!(records.len(), count, "{partition}");
    for (n, (offset, bytes)) in records.iter().enumerate() {
        assert!(*offset == n as i64 && *bytes == value(partition.partition, n), "record {n} of {partition}");
    }
}

fn corelane(arguments: &[&str], data: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_corelane"))
        .args(arguments)
        .arg("--data")
        .arg(data)
        .env("CORELANE_LOG", "error")
        .output()
        .expect("it runs")
}

/// A start that must be refused; what it says.
fn refused(data: &Path) -> String {
    let done = corelane(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "none", "--memory", "256M", "--shards", "2"], data);
    assert_eq!(done.status.code(), Some(5), "{done:?}");
    String::from_utf8_lossy(&done.stderr).into_owned()
}

fn slots(data: &Path) -> Vec<PathBuf> {
    let mut slots: Vec<_> = fs::read_dir(data.join("checkpoint")).expect("there").map(|entry| entry.expect("a name").path()).collect();
    slots.sort();
    slots
}

fn damage_slots(data: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let kept: Vec<_> = slots(data).into_iter().map(|path| (path.clone(), fs::read(&path).expect("readable"))).collect();
    for (path, bytes) in &kept {
        let mut damaged = bytes.clone();
        damaged[70] ^= 1;
        fs::write(path, damaged).expect("written");
    }
    kept
}

struct Store {
    _directory: tempfile::TempDir,
    data: PathBuf,
    partitions: Vec<TopicPartition>,
    count: usize,
}

/// A store with some laps of its journal, killed with the end of its log in the journal only, or stopped.
fn store(kill: bool) -> Store {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let data = directory.path().join("data");
    let broker = Broker::start(&data, &FLAGS);
    let config = [("max.message.bytes", "20000000"), ("segment.bytes", "8388608"), ("retention.ms", "-1")];
    let topic = broker.connect().create("repaired", PARTITIONS, &config);
    let partitions: Vec<_> = (0..PARTITIONS).map(|partition| TopicPartition { topic, partition }).collect();
    append(&broker, &partitions, 0, 40);
    assert_eq!(broker.stop(), 0);
    let broker = Broker::start(&data, &FLAGS);
    let mut count = 40;
    // Two slots of each shard: the second is written when the journal's first file is full.
    while slots(&data).len() < 4 || count < 160 {
        append(&broker, &partitions, count, count + 20);
        count += 20;
        assert!(count < 1000, "no second checkpoint");
    }
    append(&broker, &partitions, count, count + 3);
    match kill {
        true => broker.kill(),
        false => assert_eq!(broker.stop(), 0),
    }
    Store { _directory: directory, data, partitions, count: count + 3 }
}

#[test]
fn a_store_without_checkpoints_is_refused_and_repaired() {
    for kill in [true, false] {
        let Store { data, partitions, count, .. } = &store(kill);
        let kept = damage_slots(data);
        let said = refused(data);
        assert!(said.contains("-0000-a.checkpoint") && said.contains("-0000-b.checkpoint"), "{said}");
        assert!(said.contains("inspect repair"), "{said}");

        // Nothing is changed by the refusal: what is put back opens it.
        if !kill {
            let damaged = fs::read(&kept[0].0).expect("readable");
            kept.iter().for_each(|(path, bytes)| fs::write(path, bytes).expect("written"));
            let broker = Broker::start(data, &FLAGS);
            partitions.iter().for_each(|partition| check(&broker, *partition, *count));
            broker.kill();
            assert_ne!(damaged, kept[0].1);
            damage_slots(data);
        }

        let before: Vec<_> = slots(data).iter().map(|path| fs::read(path).expect("readable")).collect();
        let told = corelane(&["inspect", "repair", "--json"], data);
        assert_eq!(told.status.code(), Some(0), "{told:?}");
        assert_eq!(String::from_utf8_lossy(&told.stdout).lines().count(), PARTITIONS as usize, "{told:?}");
        let after: Vec<_> = slots(data).iter().map(|path| fs::read(path).expect("readable")).collect();
        assert!(before == after, "without --apply nothing is written");
        refused(data);

        let done = corelane(&["inspect", "repair", "--apply"], data);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let broker = Broker::start(data, &FLAGS);
        partitions.iter().for_each(|partition| check(&broker, *partition, *count));
        append(&broker, partitions, *count, count + 5);
        assert_eq!(broker.stop(), 0);
        let verified = corelane(&["inspect", "verify", "--json"], data);
        assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
        let broker = Broker::start(data, &FLAGS);
        partitions.iter().for_each(|partition| check(&broker, *partition, count + 5));
    }
}

/// A partition whose segments are damaged too is set aside; the others are whole.
#[test]
fn what_does_not_fit_together_is_quarantined() {
    let Store { data, partitions, count, .. } = &store(true);
    damage_slots(data);
    let bad = partitions[1];
    let segment = data.join(format!("topics/{}/{}/{:020}.log", bad.topic, bad.partition, 0));
    let mut bytes = fs::read(&segment).expect("a segment");
    bytes[4096 + 150] ^= 4;
    fs::write(&segment, bytes).expect("written");
    let done = corelane(&["inspect", "repair", "--apply"], data);
    let said = String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert_eq!(said.lines().filter(|line| line.contains("quarantined")).count(), 1, "{said}");
    let broker = Broker::start(data, &FLAGS);
    for partition in partitions.iter().filter(|partition| **partition != bad) {
        check(&broker, *partition, *count);
    }
    let refusal = broker.connect_owner(bad).produce(bad, &batch_of([b"more"])).outcome.expect_err("it is set aside");
    assert_eq!(refusal.code, corelane::request::Code::Quarantined);
}
