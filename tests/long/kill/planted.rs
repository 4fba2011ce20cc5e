//! The whole check against a disk that does not keep its word: what it must see, done to the files of a stopped broker.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use super::ledger::{Ack, Ledger};
use super::records::KINDS;
use super::worker::Worker;
use super::{bootstrap, copy_all, create_topics, kept_bytes, reader};
use crate::broker::{Serve, files_below, free_ports, verify, wait_quiet};

/// Records of each producer.
const RECORDS: usize = 2_000;

pub fn damage_is_caught() -> Result<(), Failed> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let data = directory.path().join("data");
    let listen = free_ports(super::SHARDS, 1)?;
    let serve = Serve { data: data.clone(), log: directory.path().join("broker.log"), listen, shards: 2 };
    let mut broker = serve.start()?;
    super::block_on(create_topics(&serve.listen))?;
    let mut acks = produce(directory.path(), &serve, 0)?;
    broker.stop()?;
    damaged_files_are_seen(&data)?;
    let earlier = directory.path().join("earlier");
    copy_all(&data, &earlier)?;

    // A disk that loses its last writes, whole: the broker can't know, the check must.
    let mut broker = serve.start()?;
    let first = acks.len();
    acks.extend(produce(directory.path(), &serve, 2)?);
    broker.kill()?;
    wait_quiet(&data)?;
    expect(lost(&serve, &acks)? == 0, "nothing is lost as long as nobody touches the files")?;
    fs::remove_dir_all(&data)?;
    fs::rename(&earlier, &data)?;
    let missing = lost(&serve, &acks)?;
    expect(missing == (acks.len() - first) as u64, &format!("{missing} lost of {} that the disk forgot", acks.len() - first))
}

/// Sends so many records at least, and waits for all acknowledgements.
fn produce(directory: &Path, serve: &Serve, number: u8) -> Result<Vec<Ack>, String> {
    let mut worker = Worker::start(directory, number, &bootstrap(&serve.listen), 7)?;
    let begun = Instant::now();
    let mut acks = Vec::new();
    while acks.len() < RECORDS && begun.elapsed() < Duration::from_secs(60) {
        acks.extend(worker.noted()?.acks);
        std::thread::sleep(Duration::from_millis(5));
    }
    acks.extend(worker.finish()?);
    if acks.len() < RECORDS { Err(format!("{} records acknowledged in 60 s", acks.len())) } else { Ok(acks) }
}

/// How many acknowledged records a fresh broker does not have; it is killed afterwards.
fn lost(serve: &Serve, acks: &[Ack]) -> Result<u64, String> {
    let mut broker = serve.start()?;
    let mut ledger = Ledger::new(KINDS.len(), &kept_bytes());
    acks.iter().for_each(|ack| ledger.acknowledge(*ack));
    super::block_on(reader::read_to_ends(&bootstrap(&serve.listen), &mut ledger))?;
    broker.kill()?;
    wait_quiet(&serve.data)?;
    Ok(ledger.verdict().lost)
}

/// A flipped bit in a segment, and a segment that is cut: `verify` is not clean, and is again when the file is as it was.
fn damaged_files_are_seen(data: &Path) -> Result<(), Failed> {
    verify(data)?;
    let segments = files_below(data)?.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    let path = segments.max_by_key(|path| fs::metadata(path).map_or(0, |m| m.len())).ok_or("no segment")?;
    let whole = fs::read(&path)?;
    let file = OpenOptions::new().write(true).open(&path)?;
    file.write_all_at(&[whole[4196] ^ 4], 4196)?;
    expect(verify(data).is_err(), "a flipped bit is seen")?;
    file.write_all_at(&whole[4196..4197], 4196)?;
    verify(data)?;
    file.set_len(4096)?;
    expect(verify(data).is_err(), "a cut segment is seen")?;
    file.write_all_at(&whole, 0)?;
    file.sync_all()?;
    verify(data)?;
    Ok(())
}

fn expect(holds: bool, what: &str) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed::from(format!("not so: {what}"))) }
}
