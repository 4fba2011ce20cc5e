//! A disk that is full while the broker runs: produce is refused with its own error, what was acknowledged is read, what makes room works, and when there is
//! room again produce works without a restart. On a small file system of its own; where none can be mounted (no root) the test says so and passes.

#[path = "support/small_disk.rs"]
mod small_disk;
mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use corelane::request::{AlterTopic, Code, CreateTopic, Refusal, Request, Response};
use corelane::types::TopicPartition;
use small_disk::SmallDisk;
use support::{Broker, Connection, batch_of};

/// Size of the file system, bytes.
const DISK: u64 = 512 << 20;
const PARTITIONS: u32 = 4;
/// Every way of an append: by the journal, straight to the segment, a file of its own.
const SIZES: [usize; 3] = [60_000, 1_000_000, 9_500_000];
const PATIENCE: Duration = Duration::from_secs(90);

/// A producer that knows what was acknowledged.
struct Ledger {
    partitions: Vec<TopicPartition>,
    /// By partition: the length of each acknowledged record.
    acknowledged: Vec<Vec<usize>>,
}

fn value(partition: u32, n: usize, len: usize) -> Vec<u8> {
    let mut value = format!("{partition}/{n}/").into_bytes();
    value.resize(len, b'a' + (n % 26) as u8);
    value
}

impl Ledger {
    fn append(&mut self, broker: &Broker, at: usize, len: usize) -> Result<(), Refusal> {
        let partition = self.partitions[at];
        let n = self.acknowledged[at].len();
        let batch = batch_of([value(partition.partition, n, len)]);
        let appended = broker.connect_owner(partition).produce(partition, &batch).outcome?;
        assert_eq!(appended.base_offset, n as i64, "what was refused has no place in the log");
        self.acknowledged[at].push(len);
        Ok(())
    }

    /// Appends until every partition refuses every size.
    fn fill(&mut self, broker: &Broker) -> usize {
        let (mut appended, mut refused) = (0, [[false; SIZES.len()]; PARTITIONS as usize]);
        while refused.iter().flatten().any(|refused| !refused) {
            for (at, refused) in refused.iter_mut().enumerate() {
                for (refused, len) in refused.iter_mut().zip(SIZES) {
                    match self.append(broker, at, len) {
                        Ok(()) => appended += 1,
                        Err(refusal) => {
                            assert_eq!(refusal.code, Code::DiskFull, "{refusal}");
                            *refused = true;
                        }
                    }
                }
            }
            assert!(appended < 100_000, "the disk does not get full");
        }
        appended
    }

    /// Appends one batch of every size to every partition, waiting until there is room.
    fn append_when_there_is_room(&mut self, broker: &Broker) {
        let begun = Instant::now();
        for at in 0..self.partitions.len() {
            for len in SIZES {
                while let Err(refusal) = self.append(broker, at, len) {
                    assert_eq!(refusal.code, Code::DiskFull, "{refusal}");
                    assert!(begun.elapsed() < PATIENCE, "there is room, and produce is still refused: {refusal}");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn check(&self, broker: &Broker) {
        for (partition, lens) in self.partitions.iter().zip(&self.acknowledged) {
            let records = broker.connect_owner(*partition).read_all(*partition, 0);
            assert_eq!(records.len(), lens.len(), "{partition}");
            for ((n, (offset, bytes)), len) in records.iter().enumerate().zip(lens) {
                assert!(*offset == n as i64 && *bytes == value(partition.partition, n, *len), "record {n} of {partition}");
            }
        }
    }
}

fn ask(broker: &Broker, request: Request) -> Result<Response, Refusal> {
    match broker.connect().ask(&request, &[]).0 {
        Response::Refused(refusal) => Err(refusal),
        response => Ok(response),
    }
}

fn create(broker: &Broker, name: &str) -> Result<Response, Refusal> {
    let (name, partitions) = (name.into(), Some(1));
    ask(broker, Request::CreateTopic(CreateTopic { name, partitions, replication_factor: None, config: vec![], validate_only: false }))
}

fn assert_clean(data: &Path) {
    let done =
        Command::new(env!("CARGO_BIN_EXE_corelane")).args(["inspect", "verify", "--json", "--data"]).arg(data).output().expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

fn start(disk: &SmallDisk) -> Broker {
    Broker::start(&disk.data(), &["--shards", "2"])
}

#[test]
fn a_full_disk_refuses_produce_loses_nothing_and_recovers() {
    let disk = match SmallDisk::mount(DISK) {
        Ok(disk) => disk,
        Err(why) => return eprintln!("SKIPPED: no file system can be mounted here: {why}"),
    };
    let broker = start(&disk);
    let mut connection = broker.connect();
    // The records of these tests are years old.
    let config = [("max.message.bytes", "20000000"), ("segment.bytes", "8388608"), ("retention.ms", "-1")];
    let topic = connection.create("filling", PARTITIONS, &config);
    let victim = connection.create("victim", 1, &config);
    let partitions = (0..PARTITIONS).map(|partition| TopicPartition { topic, partition }).collect();
    let mut ledger = Ledger { partitions, acknowledged: vec![Vec::new(); PARTITIONS as usize] };
    let mut connection: Connection = broker.connect_owner(TopicPartition { topic: victim, partition: 0 });
    for n in 0..8 {
        let partition = TopicPartition { topic: victim, partition: 0 };
        connection.produce(partition, &batch_of([value(0, n, SIZES[2])])).outcome.expect("there is room");
    }

    disk.ballast("ballast", 48 << 20);
    let appended = ledger.fill(&broker);
    assert!(appended > 30, "only {appended} appends went in before the disk was full");
    ledger.check(&broker);
    assert_eq!(create(&broker, "one-more").expect_err("no space").code, Code::DiskFull);

    // To the last block: what makes room has the reserve.
    disk.fill("filler");
    for n in 0..200 {
        let config = vec![("retention.bytes".into(), Some(format!("{}", 1_000_000_000_000u64 + n)))];
        ask(&broker, Request::AlterTopic(AlterTopic { name: "filling".into(), partitions: None, config })).expect("there is the reserve");
    }
    ask(&broker, Request::DeleteTopic("victim".into())).expect("there is the reserve");
    ledger.check(&broker);
    disk.free("filler");
    ledger.append_when_there_is_room(&broker);
    create(&broker, "one-more").expect("there is room");

    // Full again, to the last block, and killed.
    ledger.fill(&broker);
    disk.fill("filler");
    broker.kill();
    assert_clean(&disk.data());
    let broker = start(&disk);
    ledger.check(&broker);
    for at in 0..ledger.partitions.len() {
        // What is allocated may take it; nothing but a full disk is a reason to refuse.
        if let Err(refusal) = ledger.append(&broker, at, SIZES[1]) {
            assert_eq!(refusal.code, Code::DiskFull, "{refusal}");
        }
    }
    assert_eq!(broker.stop(), 0, "a clean end needs no space");
    assert_clean(&disk.data());
    let broker = start(&disk);
    ledger.check(&broker);
    disk.free("filler");
    disk.free("ballast");
    ledger.append_when_there_is_room(&broker);
    ledger.check(&broker);
    broker.kill();
    assert_clean(&disk.data());
}
