//! The check `catch_up`: a node that has lost everything gets it again, whole segments as files, as fast as the disk allows.
//!
//! A round fills a topic while one node is away, and another topic that is compacted; then the node comes back, empty. It must be in sync again,
//! by whole segments, and its segments must be the others', byte for byte. No rate is capped, and the rate is compared with the better of two
//! bare copies of the same files over the same path, before and after. Then the node is wiped again, with the default cap and under load: see
//! `live`.
//!
//! The long form has `--gib` GiB (2), in `--partitions` partitions (2) all led by one node. Above 8 GiB they have two replicas, on a disk that
//! may not hold three, and the load is retained for a while only. The short form has little, and no bound on time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corelane::client::{Client, NewTopic, ProducerRecord};
use corelane::request::Acks;
use corelane::types::TopicId;

use super::bare_copy::{self, mib_s};
use super::network::{Network, Node};
use super::nodes::Nodes;
use super::run::HEALTH_PATIENCE;
use super::{clients, live, replicas, view, wait_until};
use crate::broker::wait_quiet;
use crate::crash::Numbers;
use crate::harness::{Check, Entry, Round};

const NODES: u32 = 3;
/// Who leads what there is to catch up with.
const LEADER: Node = 1;
/// Who is wiped.
const WIPED: Node = 3;
const TOPIC: &str = "catch-up";
const COMPACTED: &str = "compacted";
/// Bytes of a record.
const VALUE: usize = 32 << 10;
/// Keys of the compacted topic: far fewer than it has records.
const KEYS: u64 = 40;
/// Catch-up is to reach so much of a bare copy, percent.
const LEAST_PERCENT: u64 = 60;
const GIB: u64 = 2;
const PARTITIONS: u32 = 2;
/// Above it there are two replicas.
const MOST_GIB_OF_THREE: u64 = 8;
/// What each partition under load keeps then, bytes.
const RETAINED: u64 = 256 << 20;
/// A machine may be so slow.
const LEAST_MIB_S: u64 = 10;

/// The check.
pub const ENTRY: Entry = Entry {
    name: "catch_up",
    about: "a wiped node gets whole segments as files: the rate, as a share of a bare copy, and what load feels of it (--gib, --partitions)",
    short_rounds: 1,
    start: || Box::new(CatchUp),
};

struct CatchUp;

/// How much there is to catch up with.
struct Amount {
    partitions: u32,
    /// Where all replicas are, the leader first.
    replicas: Vec<Node>,
    /// Of each partition.
    records: u64,
    compacted_records: u64,
    segment_bytes: u64,
    patience: Duration,
    /// How long the maximum of the load is measured, and latencies before.
    live: (Duration, Duration),
}

impl Amount {
    fn short() -> Amount {
        let live = (Duration::from_millis(500), Duration::from_millis(500));
        let (partitions, replicas, segment_bytes) = (1, vec![LEADER, 2, WIPED], 2 << 20);
        Amount { partitions, replicas, records: 400, compacted_records: 200, segment_bytes, patience: HEALTH_PATIENCE, live }
    }

    fn long(gib: u64, partitions: u32) -> Amount {
        Amount {
            partitions,
            replicas: if gib > MOST_GIB_OF_THREE { vec![LEADER, WIPED] } else { vec![LEADER, 2, WIPED] },
            records: (gib << 30) / VALUE as u64 / u64::from(partitions),
            compacted_records: 1000,
            segment_bytes: 128 << 20,
            patience: HEALTH_PATIENCE + Duration::from_secs((gib << 10) / LEAST_MIB_S),
            live: (Duration::from_secs(10), Duration::from_secs(20)),
        }
    }

    fn expect_healthy(&self, nodes: &Nodes) -> Result<(), String> {
        view::expect_healthy(&nodes.network, TOPIC, self.replicas.len())?;
        view::expect_healthy(&nodes.network, COMPACTED, NODES as usize).map(drop)
    }
}

impl Check for CatchUp {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        let amount = match round.is_short {
            true => Amount::short(),
            false => Amount::long(round.gib.unwrap_or(GIB), round.partitions.unwrap_or(PARTITIONS)),
        };
        let (network, reason) = Network::best(NODES, round.seed)?;
        if !round.is_short {
            let place = reason
                .map_or("a network namespace for each node".into(), |reason| format!("loopback, as there can be no namespaces: {reason}"));
            let (partitions, replicas) = (amount.partitions, &amount.replicas);
            eprintln!(
                "run {}: {partitions} partitions on nodes {replicas:?}, segments of {} MiB, {place}",
                round.number + 1,
                amount.segment_bytes >> 20
            );
        }
        let mut nodes = Nodes::new(network, round.scratch)?;
        nodes.set_arguments(&["--catch-up-rate", "0"]);
        nodes.form()?;
        run(round, &mut nodes, &amount).map_err(|what| format!("{what}\n{}", nodes.last_words()))
    }
}

fn run(round: &mut Round<'_>, nodes: &mut Nodes, amount: &Amount) -> Result<(), String> {
    let topic = make_topics(nodes, amount)?;
    nodes.kill(WIPED)?;
    nodes.wipe(WIPED)?;
    let mut random = Numbers(round.seed);
    fill(nodes, TOPIC, amount.partitions, amount.records, None, random.draw())?;
    fill(nodes, COMPACTED, 1, amount.compacted_records, Some(KEYS), random.draw())?;
    // On the leader, who then has files for the one that is away, whatever else it has flushed.
    wait_until("the cleaner has rewritten something", HEALTH_PATIENCE, || {
        if nodes.counter(LEADER, "segments_rewritten")? > 0 { Ok(()) } else { Err("nothing yet".into()) }
    })?;
    let bare_before = bare_copy(nodes, topic, amount)?;
    let caught = catch_up(round, nodes, amount)?;
    let bare_after = bare_copy(nodes, topic, amount)?;
    let (rate, bare) = (mib_s(caught.bytes, caught.took), bare_before.max(bare_after));
    let percent = rate * 100 / bare.max(1);
    eprintln!(
        "catch-up: {} MiB in {:.2} s, {rate} MiB/s; bare copies {bare_before} and {bare_after} MiB/s",
        caught.bytes >> 20,
        caught.took.as_secs_f64()
    );
    let whole = caught.as_files * 100 / caught.bytes.max(1);
    eprintln!("  {} segments came as files, {whole} % of the bytes; the rest came as batches", caught.segments);
    let name = |what: &str| format!("run{}_{what}", round.number + 1);
    let figures = [("catch_up_mib_s", rate), ("bare_copy_mib_s", bare), ("percent_of_bare_copy", percent), ("percent_as_files", whole)];
    for (name, figure) in figures.map(|(what, figure)| (name(what), figure)) {
        round.count(&name, figure);
    }
    if !round.is_short {
        round.target(percent >= LEAST_PERCENT, &format!("catch-up runs at {percent} % of a bare copy, expected {LEAST_PERCENT} % or more"));
    }

    if !round.is_short {
        // From here on with the default cap.
        stop_all(nodes)?;
        nodes.set_arguments(&[]);
        nodes.network.nodes().try_for_each(|node| nodes.start(node))?;
        nodes.network.nodes().try_for_each(|node| nodes.wait_ready(node))?;
        wait_until("all replicas are in sync", HEALTH_PATIENCE, || amount.expect_healthy(nodes))?;
    }
    let is_healthy = |nodes: &Nodes| amount.expect_healthy(nodes);
    let (maximum, before) = amount.live;
    let retained = (amount.replicas.len() < NODES as usize).then_some(RETAINED);
    live::measure(
        round,
        nodes,
        &live::Plan { wiped: WIPED, maximum, before, retained, is_healthy: &is_healthy, patience: amount.patience },
    )?;

    nodes.expect_running()?;
    stop_all(nodes)?;
    let stores: Vec<_> = amount.replicas.iter().map(|node| (*node, nodes.data(*node))).collect();
    let compared = replicas::compare(&stores, topic, amount.partitions)?;
    round.count("compared_segments", compared.segments);
    Ok(())
}

/// The topic that there is to catch up with, and one that is compacted.
fn make_topics(nodes: &Nodes, amount: &Amount) -> Result<TopicId, String> {
    // With two replicas one of them is wiped, and the other one goes on alone.
    let least = (amount.replicas.len() - 1).to_string();
    let new = NewTopic::new(TOPIC).partitions(amount.partitions).replication_factor(amount.replicas.len() as u16);
    let new = new.config("min.insync.replicas", least).config("segment.bytes", amount.segment_bytes.to_string());
    let topic = nodes.create_topic(new)?;
    let new = NewTopic::new(COMPACTED).partitions(1).replication_factor(NODES as u16).config("min.insync.replicas", "2");
    let new = new.config("cleanup.policy", "compact").config("min.cleanable.dirty.ratio", "0.01");
    nodes.create_topic(new.config("segment.bytes", "1048576"))?;
    let place = |replicas: &[Node]| replicas.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let places: Vec<String> = (0..amount.partitions).map(|partition| format!("{partition}={}", place(&amount.replicas))).collect();
    let flags = places.iter().flat_map(|place| ["--replicas", place]);
    nodes.run_command(&["topic", "alter", TOPIC].into_iter().chain(flags).collect::<Vec<_>>())?;
    nodes.run_command(&["topic", "alter", COMPACTED, "--replicas", &format!("0={}", place(&[LEADER, 2, WIPED]))])?;
    wait_until("all replicas are in sync where they belong", HEALTH_PATIENCE, || {
        amount.expect_healthy(nodes)?;
        let views = [TOPIC, COMPACTED].map(|name| view::topic(&nodes.network, LEADER, name));
        match views.into_iter().collect::<Result<Vec<_>, _>>()?.iter().flatten().find(|(_, seen)| seen.leader != Some(LEADER)) {
            Some((partition, seen)) => Err(format!("partition {partition} is {seen:?}")),
            None => Ok(()),
        }
    })?;
    Ok(topic)
}

/// What a node has got.
struct Caught {
    bytes: u64,
    /// Of these, what came as parts of whole segments.
    as_files: u64,
    segments: u64,
    took: Duration,
}

/// Starts the node that has nothing, until it has everything.
fn catch_up(round: &mut Round<'_>, nodes: &mut Nodes, amount: &Amount) -> Result<Caught, String> {
    nodes.start(WIPED)?;
    nodes.wait_ready(WIPED)?;
    // Where the node has nothing yet, no time is counted.
    let received = || nodes.counter(WIPED, "replication_bytes_received");
    wait_until("something comes", HEALTH_PATIENCE, || if received()? > 0 { Ok(()) } else { Err("nothing yet".into()) })?;
    let as_files = || nodes.counter(WIPED, "segment_bytes_received");
    let (begun, before, as_files_before) = (Instant::now(), received()?, as_files()?);
    wait_until("the wiped node is in sync again", amount.patience, || amount.expect_healthy(nodes))?;
    let (took, bytes) = (begun.elapsed(), received()? - before);
    let as_files = as_files()? - as_files_before;
    let segments = nodes.counter(WIPED, "segments_installed")?;
    round.count("segments_installed", segments);
    let refused = nodes.counter(WIPED, "replication_refused")?;
    // How many depends on what the leader has flushed: the rest comes as batches. What the cleaner has rewritten comes as a file always.
    if segments == 0 || refused > 0 {
        return Err(format!("{segments} segments were installed and {refused} messages refused, expected some and none"));
    }
    nodes.expect_running()?;
    Ok(Caught { bytes, as_files, segments, took })
}

fn stop_all(nodes: &mut Nodes) -> Result<(), String> {
    for node in nodes.network.nodes() {
        nodes.stop(node)?;
        wait_quiet(nodes.data(node))?;
    }
    Ok(())
}

/// MiB per second of a bare copy of all that there is to catch up with.
fn bare_copy(nodes: &Nodes, topic: TopicId, amount: &Amount) -> Result<u64, String> {
    let mut files = Vec::new();
    for partition in 0..amount.partitions {
        files.extend(segments(nodes.data(LEADER), topic, partition)?);
    }
    bare_copy::copy(&nodes.network, (LEADER, WIPED), &files, nodes.directory()).map(|copied| copied.mib_s())
}

/// The segments of a partition.
fn segments(data: &Path, topic: TopicId, partition: u32) -> Result<Vec<PathBuf>, String> {
    let directory = data.join(format!("topics/{topic}/{partition}"));
    let entries = fs::read_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    found.sort();
    Ok(found)
}

/// Records that don't compress, so many in each partition; with one of so many keys each, if so.
fn fill(nodes: &Nodes, topic: &str, partitions: u32, records: u64, keys: Option<u64>, seed: u64) -> Result<(), String> {
    let work = async |client: Client| {
        let producer = client.producer().acks(Acks::All).idempotence(true).build().map_err(|e| e.to_string())?;
        let mut random = Numbers(seed);
        let mut value = vec![0; VALUE];
        let mut waiting = std::collections::VecDeque::new();
        for n in 0..records * u64::from(partitions) {
            value.chunks_mut(8).for_each(|piece| piece.copy_from_slice(&random.draw().to_le_bytes()[..piece.len()]));
            let key = keys.map(|keys| format!("key {}", n % keys));
            let record = ProducerRecord::to(topic).partition((n % u64::from(partitions)) as u32).value(&value);
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
