//! The check `catch_up`: a node that has lost everything gets it again, whole segments as files, as fast as the disk allows.
//!
//! A round fills a topic while one node is away, and another topic that is compacted; then the node comes back, empty. It must be in sync again, by whole segments, and its segments
//! must be the others', byte for byte. The long form has 2 GiB and no rate cap, and compares the rate with a bare copy of the same files over the same path: direct reads, one TCP stream,
//! direct writes, one sync. The short form has no bound on time.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corelane::client::{Client, NewTopic, ProducerRecord};
use corelane::request::Acks;
use corelane::types::TopicId;

use super::network::{Network, Node};
use super::nodes::Nodes;
use super::run::HEALTH_PATIENCE;
use super::{clients, replicas, view, wait_until};
use crate::broker::wait_quiet;
use crate::crash::Numbers;
use crate::harness::{Check, Entry, Round};

const NODES: u32 = 3;
/// Who is wiped.
const WIPED: Node = 3;
const TOPIC: &str = "catch-up";
const COMPACTED: &str = "compacted";
/// Bytes of a record.
const VALUE: usize = 32 << 10;
/// Keys of the compacted topic: far fewer than it has records.
const KEYS: u64 = 40;
/// The long form is to reach so much of a bare copy, percent.
const LEAST_PERCENT: u64 = 60;

/// The check.
pub const ENTRY: Entry = Entry {
    name: "catch_up",
    about: "a wiped node gets whole segments as files: the rate, as a share of a bare copy",
    short_rounds: 1,
    start: || Box::new(CatchUp),
};

struct CatchUp;

/// How much there is to catch up with.
struct Amount {
    records: u64,
    compacted_records: u64,
    segment_bytes: &'static str,
    patience: Duration,
}

impl Check for CatchUp {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        let amount = match round.is_short {
            true => Amount { records: 400, compacted_records: 200, segment_bytes: "2097152", patience: HEALTH_PATIENCE },
            false => Amount {
                records: (2 << 30) / VALUE as u64,
                compacted_records: 1000,
                segment_bytes: "134217728",
                patience: Duration::from_secs(600),
            },
        };
        let (network, _) = Network::best(NODES, round.seed)?;
        let mut nodes = Nodes::new(network, round.scratch)?;
        if !round.is_short {
            nodes.add_arguments(&["--catch-up-rate", "0"]);
        }
        nodes.form()?;
        run(round, &mut nodes, &amount).map_err(|what| format!("{what}\n{}", nodes.last_words()))
    }
}

fn run(round: &mut Round<'_>, nodes: &mut Nodes, amount: &Amount) -> Result<(), String> {
    let new = NewTopic::new(TOPIC).partitions(1).replication_factor(NODES as u16).config("min.insync.replicas", "2");
    let topic = nodes.create_topic(new.config("segment.bytes", amount.segment_bytes))?;
    let new = NewTopic::new(COMPACTED).partitions(1).replication_factor(NODES as u16).config("min.insync.replicas", "2");
    let new = new.config("cleanup.policy", "compact").config("min.cleanable.dirty.ratio", "0.01");
    nodes.create_topic(new.config("segment.bytes", "1048576"))?;
    let healthy = |nodes: &Nodes| {
        view::expect_healthy(&nodes.network, TOPIC, NODES as usize)?;
        view::expect_healthy(&nodes.network, COMPACTED, NODES as usize).map(drop)
    };
    wait_until("all replicas are in sync", HEALTH_PATIENCE, || healthy(nodes))?;
    nodes.kill(WIPED)?;
    nodes.wipe(WIPED)?;
    let mut random = Numbers(round.seed);
    fill(nodes, TOPIC, amount.records, None, random.draw())?;
    fill(nodes, COMPACTED, amount.compacted_records, Some(KEYS), random.draw())?;
    wait_until("the cleaner has rewritten something", HEALTH_PATIENCE, || {
        let rewritten = [1, 2].iter().map(|node| metric(nodes, *node, "segments_rewritten")).sum::<Result<u64, String>>()?;
        if rewritten > 0 { Ok(()) } else { Err("nothing yet".into()) }
    })?;
    nodes.start(WIPED)?;
    nodes.wait_ready(WIPED)?;
    // Where the node has nothing yet, no time is counted.
    let received = || metric(nodes, WIPED, "replication_bytes_received");
    wait_until("something comes", HEALTH_PATIENCE, || if received()? > 0 { Ok(()) } else { Err("nothing yet".into()) })?;
    let (begun, before) = (Instant::now(), received()?);
    wait_until("the wiped node is in sync again", amount.patience, || healthy(nodes))?;
    let (took, bytes) = (begun.elapsed(), received()? - before);
    let installed = metric(nodes, WIPED, "segments_installed")?;
    round.count("segments_installed", installed);
    round.count("catch_up_mib", bytes >> 20);
    let refused = metric(nodes, WIPED, "replication_refused")?;
    // How many depends on what the leader has flushed: the rest comes as batches. What the cleaner has rewritten comes as a file always.
    if installed == 0 || refused > 0 {
        return Err(format!("{installed} segments were installed and {refused} messages refused, expected some and none"));
    }
    nodes.expect_running()?;
    for node in nodes.network.nodes() {
        nodes.stop(node)?;
        wait_quiet(nodes.data(node))?;
    }
    let stores: Vec<_> = nodes.network.nodes().map(|node| (node, nodes.data(node))).collect();
    let compared = replicas::compare(&stores, topic, 1)?;
    round.count("compared_segments", compared.segments);
    if !round.is_short {
        let rate = mib_s(bytes, took);
        let bare = bare_copy(&segments(nodes.data(1), topic)?, nodes.directory())?;
        let percent = rate * 100 / bare.max(1);
        eprintln!("catch-up: {} MiB in {:.2} s, {rate} MiB/s; a bare copy {bare} MiB/s: {percent} %", bytes >> 20, took.as_secs_f64());
        round.count("catch_up_mib_s", rate);
        round.count("bare_copy_mib_s", bare);
        round.count("percent_of_bare_copy", percent);
        if percent < LEAST_PERCENT {
            return Err(format!("catch-up runs at {percent} % of a bare copy, expected {LEAST_PERCENT} % or more"));
        }
    }
    Ok(())
}

/// Records that don't compress, in one partition; with one of so many keys each, if so.
fn fill(nodes: &Nodes, topic: &str, records: u64, keys: Option<u64>, seed: u64) -> Result<(), String> {
    let work = async |client: Client| {
        let producer = client.producer().acks(Acks::All).idempotence(true).build().map_err(|e| e.to_string())?;
        let mut random = Numbers(seed);
        let mut value = vec![0; VALUE];
        let mut waiting = std::collections::VecDeque::new();
        for n in 0..records {
            value.chunks_mut(8).for_each(|piece| piece.copy_from_slice(&random.draw().to_le_bytes()[..piece.len()]));
            let key = keys.map(|keys| format!("key {}", n % keys));
            let record = ProducerRecord::to(topic).partition(0).value(&value);
            let record = match &key {
                Some(key) => record.key(key.as_bytes()),
                None => record,
            };
            waiting.push_back(producer.send_nowait(record).await.map_err(|e| e.to_string())?);
            if waiting.len() > 500
                && let Some(first) = waiting.pop_front()
            {
                first.await.map_err(|e| e.to_string())?;
            }
        }
        producer.flush().await;
        for delivery in waiting {
            delivery.await.map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    clients::as_client(&nodes.network, &nodes.bootstrap(), work)
}

/// The sum of a counter over the shards of a node.
fn metric(nodes: &Nodes, node: Node, name: &str) -> Result<u64, String> {
    let address: SocketAddr = nodes.network.admin(node).parse().map_err(|_| "no address")?;
    let ask = || -> std::io::Result<String> {
        let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = nodes.network.as_client(ask)?.map_err(|e| format!("the metrics of node {node} at {address}: {e}"))?;
    let start = format!("corelane_{name}");
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with(&start)).filter_map(|line| line.rsplit(' ').next()).collect();
    if lines.is_empty() {
        return Err(format!("node {node} has no counter {name}"));
    }
    lines.iter().map(|value| value.parse::<f64>().map(|value| value as u64).map_err(|e| format!("{name}: {e}"))).sum()
}

fn mib_s(bytes: u64, took: Duration) -> u64 {
    (bytes as f64 / took.as_secs_f64() / (1 << 20) as f64) as u64
}

/// The segments of a topic's first partition.
fn segments(data: &Path, topic: TopicId) -> Result<Vec<PathBuf>, String> {
    let directory = data.join(format!("topics/{topic}/0"));
    let entries = fs::read_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    found.sort();
    Ok(found)
}

/// MiB per second of a copy of files: direct reads, one TCP stream, direct writes into new files, each synced.
fn bare_copy(files: &[PathBuf], directory: &Path) -> Result<u64, String> {
    const PIECE: usize = 1 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    let total: u64 = files
        .iter()
        .map(|path| fs::metadata(path).map(|found| found.len() / 4096 * 4096))
        .sum::<Result<u64, _>>()
        .map_err(|e| e.to_string())?;
    let begun = Instant::now();
    let receiver = {
        let (targets, lens): (Vec<PathBuf>, Vec<u64>) = files
            .iter()
            .enumerate()
            .map(|(at, path)| (directory.join(format!("bare-{at}")), fs::metadata(path).map_or(0, |found| found.len() / 4096 * 4096)))
            .unzip();
        std::thread::spawn(move || -> std::io::Result<()> {
            let (mut socket, _) = listener.accept()?;
            let mut memory = Aligned::new(PIECE);
            for (target, len) in targets.iter().zip(lens) {
                let file = direct(OpenOptions::new().write(true).create(true).truncate(true), target)?;
                allocate(&file, len)?;
                let mut at = 0;
                while at < len {
                    let bytes = memory.bytes((len - at).min(PIECE as u64) as usize);
                    socket.read_exact(bytes)?;
                    file.write_all_at(bytes, at)?;
                    at += bytes.len() as u64;
                }
                file.sync_data()?;
            }
            targets.iter().try_for_each(fs::remove_file)
        })
    };
    let send = || -> std::io::Result<()> {
        let mut socket = TcpStream::connect(address)?;
        let mut memory = Aligned::new(PIECE);
        for path in files {
            let file = direct(OpenOptions::new().read(true), path)?;
            let len = file.metadata()?.len() / 4096 * 4096;
            let mut at = 0;
            while at < len {
                let bytes = memory.bytes((len - at).min(PIECE as u64) as usize);
                file.read_exact_at(bytes, at)?;
                socket.write_all(bytes)?;
                at += bytes.len() as u64;
            }
        }
        Ok(())
    };
    send().map_err(|e| format!("the bare copy: {e}"))?;
    receiver.join().map_err(|_| "the bare copy has panicked")?.map_err(|e| format!("the bare copy: {e}"))?;
    Ok(mib_s(total, begun.elapsed()))
}

fn direct(options: &mut OpenOptions, path: &Path) -> std::io::Result<File> {
    options.custom_flags(libc::O_DIRECT).open(path)
}

fn allocate(file: &File, len: u64) -> std::io::Result<()> {
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len)
        .map_err(|e| std::io::Error::other(format!("{}: {e}", file.as_raw_fd())))
}

/// Memory on a block boundary.
struct Aligned {
    memory: Vec<u8>,
    from: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let memory = vec![0; len + 4096];
        let from = memory.as_ptr().align_offset(4096);
        Aligned { memory, from }
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.from..self.from + len]
    }
}
