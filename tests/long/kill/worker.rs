//! A producer process: sends by its plan until its input ends, outlives every crash of the broker, and keeps its own list of what it was told.
//!
//! The list is a file of fixed-size entries, in the order of acknowledgement within a place:
//! `sequence u64 | offset i64 | hash of the value u64 | place u32 | kind u32`, little-endian; kind 0: acknowledged, 1: given up, 2: all is settled.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use corelane::client::{Client, DeliveryFuture, Producer, ProducerRecord};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::ledger::{Ack, Id};
use super::records::{KINDS, Kind, PLACES, hash, place_name, value};
use crate::broker::last_words;
use crate::crash::Numbers;

/// The word that makes the program a worker.
pub const WORD: &str = "--kill-worker";
const ENTRY: usize = 32;
const ACKED: u32 = 0;
const GIVEN_UP: u32 = 1;
const SETTLED: u32 = 2;
/// Bytes that wait for delivery: more than one record of the largest size.
const BUFFER_BYTES: usize = 32 << 20;
/// The list is written at least so often.
const WRITE_EVERY: Duration = Duration::from_millis(5);
/// What a crash costs is not made up for.
const MOST_BEHIND: Duration = Duration::from_millis(50);
/// How long a worker may take to get rid of all it has.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);

/// A worker as the check sees it; killed when dropped.
pub struct Worker {
    number: u8,
    process: Child,
    input: Option<ChildStdin>,
    log: PathBuf,
    list: AckList,
}

/// A worker's list, read on and on.
pub struct AckList {
    number: u8,
    path: PathBuf,
    read_to: u64,
}

/// New entries of a list.
#[derive(Default)]
pub struct Noted {
    /// Acknowledgements.
    pub acks: Vec<Ack>,
    /// Records given up.
    pub given_up: u64,
    /// Nothing will follow.
    pub is_settled: bool,
}

impl Worker {
    /// Starts the producer with this number, which is its kind too.
    pub fn start(directory: &Path, number: u8, addresses: &str, seed: u64) -> Result<Worker, String> {
        let log = directory.join(format!("worker-{number}.log"));
        let path = directory.join(format!("worker-{number}.acks"));
        let mut process = Command::new(std::env::current_exe().map_err(|e| e.to_string())?)
            .args([WORD, addresses, &number.to_string(), &seed.to_string()])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(&log).map_err(|e| e.to_string())?)
            .spawn()
            .map_err(|e| format!("worker {number}: {e}"))?;
        let input = process.stdin.take();
        Ok(Worker { number, process, input, log, list: AckList::new(directory, number) })
    }

    /// What it was told since the last call.
    pub fn noted(&mut self) -> Result<Noted, String> {
        let noted = self.list.read_on()?;
        if noted.given_up > 0 {
            return Err(format!("producer {} gave {} records up: {}", self.number, noted.given_up, last_words(&self.log)));
        }
        if !noted.is_settled
            && let Some(status) = self.process.try_wait().map_err(|e| e.to_string())?
        {
            return Err(format!("producer {} ended by itself ({status}): {}", self.number, last_words(&self.log)));
        }
        Ok(noted)
    }

    /// Lets it send nothing more.
    pub fn end_input(&mut self) {
        self.input = None;
    }

    /// Waits until all that it sent is settled.
    pub fn finish(&mut self) -> Result<Vec<Ack>, String> {
        self.end_input();
        let begun = Instant::now();
        let mut acks = Vec::new();
        while begun.elapsed() < SETTLE_PATIENCE {
            let noted = self.noted()?;
            acks.extend(noted.acks);
            if noted.is_settled {
                return Ok(acks);
            }
            std::thread::sleep(WRITE_EVERY);
        }
        Err(format!(
            "producer {} has unsettled records {} s after its last: {}",
            self.number,
            SETTLE_PATIENCE.as_secs(),
            last_words(&self.log)
        ))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl AckList {
    /// The list of a producer, from its start.
    pub fn new(directory: &Path, number: u8) -> AckList {
        AckList { number, path: directory.join(format!("worker-{number}.acks")), read_to: 0 }
    }

    /// The entries since the last call.
    pub fn read_on(&mut self) -> Result<Noted, String> {
        use std::os::unix::fs::FileExt;
        let mut noted = Noted::default();
        let Ok(file) = File::open(&self.path) else { return Ok(noted) };
        let end = file.metadata().map_err(|e| e.to_string())?.len() / ENTRY as u64 * ENTRY as u64;
        let mut bytes = vec![0; (end - self.read_to) as usize];
        file.read_exact_at(&mut bytes, self.read_to).map_err(|e| format!("{}: {e}", self.path.display()))?;
        self.read_to = end;
        for entry in bytes.chunks_exact(ENTRY) {
            let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
            let (place, kind) = (word(24) as u32 as usize, (word(24) >> 32) as u32);
            let id = Id { producer: self.number, sequence: word(0) };
            match kind {
                ACKED => noted.acks.push(Ack { place, offset: word(8) as i64, id, hash: word(16) }),
                GIVEN_UP => noted.given_up += 1,
                _ => noted.is_settled = true,
            }
        }
        Ok(noted)
    }
}

fn entry(sequence: u64, offset: i64, hash: u64, place: usize, kind: u32) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[..8].copy_from_slice(&sequence.to_le_bytes());
    bytes[8..16].copy_from_slice(&offset.to_le_bytes());
    bytes[16..24].copy_from_slice(&hash.to_le_bytes());
    bytes[24..28].copy_from_slice(&(place as u32).to_le_bytes());
    bytes[28..].copy_from_slice(&kind.to_le_bytes());
    bytes
}

/// The process: addresses, number, seed, file of the list.
pub fn run(arguments: &[String]) -> ExitCode {
    let [addresses, number, seed, list] = arguments else {
        eprintln!("a worker is started by the check only");
        return ExitCode::from(2);
    };
    let (Ok(number), Ok(seed), Ok(list)) = (number.parse::<u8>(), seed.parse::<u64>(), File::create(list)) else {
        eprintln!("a worker is started by the check only");
        return ExitCode::from(2);
    };
    // What the client has to say of retries belongs to a failure's story.
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr).with_ansi(false).init();
    let is_over = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let is_over = is_over.clone();
        move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            is_over.store(true, Ordering::Relaxed);
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(produce(addresses, number, seed, list, &is_over)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(words) => {
            eprintln!("{words}");
            ExitCode::from(1)
        }
    }
}

/// A record on its way.
struct Pending {
    delivery: DeliveryFuture,
    sequence: u64,
    hash: u64,
}

async fn produce(addresses: &str, number: u8, seed: u64, list: File, is_over: &AtomicBool) -> Result<(), String> {
    let kind = &KINDS[usize::from(number)];
    let client = Client::builder(addresses)
        .client_id(format!("producer-{number}"))
        .retry_backoff(Duration::from_millis(5), Duration::from_millis(50))
        .connect()
        .await
        .map_err(|e| e.to_string())?;
    let producer = client
        .producer()
        .compression(kind.compression)
        .batch_size(kind.batch_size)
        .linger(kind.linger)
        .buffer_memory(BUFFER_BYTES)
        .build()
        .map_err(|e| e.to_string())?;
    let (tell, told) = unbounded_channel();
    let writer = tokio::spawn(write_list(list, told));
    // One collector for each place: its acknowledgements come in the order of sending.
    let (pending, collectors): (Vec<_>, Vec<_>) = (0..PLACES)
        .map(|place| {
            let (pending, awaited) = unbounded_channel();
            (pending, tokio::spawn(collect(place, awaited, tell.clone())))
        })
        .unzip();
    send_until(is_over, &producer, number, kind, seed, &pending).await?;
    drop(pending);
    producer.flush().await;
    for collector in collectors {
        collector.await.map_err(|e| e.to_string())?;
    }
    let _ = tell.send(entry(0, 0, 0, 0, SETTLED));
    drop(tell);
    writer.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

async fn send_until(
    is_over: &AtomicBool,
    producer: &Producer,
    number: u8,
    kind: &Kind,
    seed: u64,
    pending: &[UnboundedSender<Pending>],
) -> Result<(), String> {
    let mut random = Numbers(seed ^ u64::from(number) << 56);
    let mut bytes = Vec::new();
    let (mut begin, mut steps) = (Instant::now(), 0u64);
    // A few records at a time, as a clock ticks no finer.
    let step = (kind.rate / 500).max(1);
    for sequence in 0.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        if sequence % step == 0 {
            let due = begin + Duration::from_secs_f64((steps * step) as f64 / kind.rate as f64);
            steps += 1;
            let now = Instant::now();
            if now < due {
                tokio::time::sleep_until(due.into()).await;
            } else if now - due > MOST_BEHIND {
                (begin, steps) = (now, 1);
            }
        }
        let (place, len) = kind.draw(&mut random);
        value(Id { producer: number, sequence }, len, &mut bytes);
        let (topic, partition) = place_name(place);
        // A topic's metadata is asked for once; while the broker is away, that alone may fail.
        let delivery = producer
            .send_nowait(ProducerRecord::to(topic).partition(partition).value(&bytes))
            .await
            .map_err(|e| format!("record {sequence} can't be sent: {e}"))?;
        pending[place].send(Pending { delivery, sequence, hash: hash(&bytes) }).map_err(|_| "a collector is gone".to_string())?;
    }
    Ok(())
}

async fn collect(place: usize, mut awaited: UnboundedReceiver<Pending>, tell: UnboundedSender<[u8; ENTRY]>) {
    while let Some(Pending { delivery, sequence, hash }) = awaited.recv().await {
        let noted = match delivery.await {
            Ok(at) => entry(sequence, at.offset, hash, place, ACKED),
            Err(error) => {
                eprintln!("record {sequence}: {error}");
                entry(sequence, -1, hash, place, GIVEN_UP)
            }
        };
        let _ = tell.send(noted);
    }
}

async fn write_list(mut list: File, mut told: UnboundedReceiver<[u8; ENTRY]>) -> std::io::Result<()> {
    let mut entries = Vec::new();
    while told.recv_many(&mut entries, 10_000).await > 0 {
        list.write_all(&entries.concat())?;
        entries.clear();
        tokio::time::sleep(WRITE_EVERY).await;
    }
    Ok(())
}
