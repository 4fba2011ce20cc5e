//! A broker as one process or as a cluster of several: started on an empty directory, asked until it answers, ended in every outcome.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use corelane::cli::bench::BenchError;
use corelane::cli::bench::process::Usage;

use crate::install::Installed;
use crate::systems::System;

/// How long a broker may take until it answers.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is asked meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(1);
/// Ports in a row that must be free: each of Corelane's shards takes one.
const PORTS: u16 = 16;
/// Of a node in a cluster: clients, consensus, and one for replication, as its only shard has it.
const PORTS_EACH: u16 = 5;
/// Where ports are looked for: below those that kernels give to outgoing connections, or one node's connection takes the port on which another is
/// to listen.
const PORT_RANGE: Range<u16> = 16_000..32_000;
/// A node of Corelane where there are several: they share the cores on which a node alone would have two shards.
const CORELANE_NODE: [&str; 4] = ["--shards", "1", "--memory", "256M"];
/// Cluster id of every Kafka here.
const CLUSTER: &str = "4L6g3nShT-eMCtK--X86sw";
/// What Kafka's own start script gives the JVM when nothing is set.
const KAFKA_JVM: [&str; 7] = [
    "-Xmx1G",
    "-Xms1G",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
];

/// A broker that runs on a directory of its own, on one node or on several; killed, and the directory removed, when dropped.
pub struct Broker {
    nodes: Vec<Child>,
    /// Where clients begin.
    pub bootstrap: String,
    /// From the start of the first process to the answer of the last one.
    pub start_up: Duration,
    data: PathBuf,
    /// Each node's words, in the order of `nodes`.
    logs: Vec<PathBuf>,
}

impl Broker {
    /// Starts a system of so many nodes below `scratch`. `settings` are lines for Kafka's properties files.
    pub fn start(
        system: System,
        nodes: u16,
        installed: &Installed,
        scratch: &Path,
        settings: &[(&str, &str)],
    ) -> Result<Broker, BenchError> {
        let data = scratch.join("broker");
        remove(&data)?;
        fs::create_dir_all(&data).map_err(BenchError::io(format!("creating {}", data.display())))?;
        let places = Places { first: free_ports()?, nodes };
        let commands: Result<Vec<Command>, BenchError> =
            (1..=nodes).map(|node| command(system, node, &places, installed, &data, settings)).collect();
        let commands = commands?;
        let addresses: Vec<String> = (1..=nodes).map(|node| format!("127.0.0.1:{}", places.clients(node))).collect();
        // From here on whatever was started is killed when this goes.
        let mut broker = Broker { nodes: Vec::new(), bootstrap: addresses.join(","), start_up: Duration::ZERO, data, logs: Vec::new() };
        let started = Instant::now();
        for (node, command) in (1..).zip(commands) {
            broker.spawn(system, command, scratch.join(format!("broker-{node}.log")))?;
            // Corelane's first node is the cluster that the others join; Kafka's voters need each other.
            if node == 1 && nodes > 1 && system == System::Corelane {
                broker.wait(system, node, places.clients(node), 1, started)?;
            }
        }
        for node in 1..=nodes {
            broker.wait(system, node, places.clients(node), nodes, started)?;
        }
        broker.start_up = started.elapsed();
        Ok(broker)
    }

    fn spawn(&mut self, system: System, mut command: Command, log: PathBuf) -> Result<(), BenchError> {
        let file = File::create(&log).map_err(BenchError::io(format!("creating {}", log.display())))?;
        let both = file.try_clone().map_err(BenchError::io("the broker's log"))?;
        command.stdin(Stdio::null()).stdout(file).stderr(both);
        ends_with_this_process(&mut command);
        self.nodes.push(command.spawn().map_err(BenchError::io(format!("starting {}", system.name())))?);
        self.logs.push(log);
        Ok(())
    }

    /// Until a node answers clients and knows of so many nodes, while none of those that were started ends.
    fn wait(&mut self, system: System, node: u16, port: u16, known: u16, started: Instant) -> Result<(), BenchError> {
        loop {
            let answered = if system.speaks_kafka() { answers_kafka(port, known) } else { answers_nats(port) };
            let Err(reason) = answered else { return Ok(()) };
            let mut failed = (started.elapsed() > READY_TIMEOUT).then(|| (node, reason.to_string()));
            for (node, process) in (1..).zip(&mut self.nodes) {
                if let Some(status) = process.try_wait().map_err(BenchError::io("the broker"))? {
                    failed = Some((node, format!("it ended with {status}")));
                }
            }
            if let Some((node, reason)) = failed {
                let words = fs::read_to_string(&self.logs[usize::from(node - 1)]).unwrap_or_default();
                return Err(BenchError::Host(format!("{}, node {node}, did not become ready: {reason}: {}", system.name(), tail(&words))));
            }
            std::thread::sleep(ASK_AGAIN);
        }
    }

    /// What its nodes have used so far, together; the peak is the sum of each one's own.
    pub fn usage(&self) -> Result<Usage, BenchError> {
        let mut sum = Usage::default();
        for (number, node) in (1..).zip(&self.nodes) {
            // Of one that has ended there is nothing to read.
            let used = Usage::of(node.id()).map_err(BenchError::io(format!("reading what the broker's node {number} has used")))?;
            sum.cpu_seconds += used.cpu_seconds;
            sum.peak_rss += used.peak_rss;
            sum.rss += used.rss;
            sum.device_written += used.device_written;
        }
        Ok(sum)
    }

    /// Bytes of the blocks that its files have.
    pub fn disk_bytes(&self) -> u64 {
        allocated(&self.data)
    }
}

/// The data goes before the next one starts, written or not: what one broker left in the page cache is not the next one's burden.
impl Drop for Broker {
    fn drop(&mut self) {
        // All of them first: those that are left would begin to stand in for the others.
        self.nodes.iter_mut().for_each(|node| drop(node.kill()));
        self.nodes.iter_mut().for_each(|node| drop(node.wait()));
        let _ = fs::remove_dir_all(&self.data);
        rustix::fs::sync();
    }
}

/// Where nodes listen.
struct Places {
    first: u16,
    nodes: u16,
}

impl Places {
    /// For clients.
    fn clients(&self, node: u16) -> u16 {
        self.first + (node - 1) * PORTS_EACH
    }

    /// For other nodes.
    fn consensus(&self, node: u16) -> u16 {
        self.clients(node) + 1
    }
}

/// The command that starts a node, from 1. Kafka's directory is formatted by then.
fn command(
    system: System,
    node: u16,
    places: &Places,
    installed: &Installed,
    data: &Path,
    settings: &[(&str, &str)],
) -> Result<Command, BenchError> {
    let port = places.clients(node);
    let only = |command| match places.nodes {
        1 => Ok(command),
        nodes => Err(BenchError::Usage(format!("{} is compared on one node, not on {nodes}", system.name()))),
    };
    match system {
        System::Kafka | System::KafkaFlushed => kafka(installed, data, node, places, settings),
        System::Corelane if places.nodes > 1 => Ok(corelane_node(data, node, places)),
        System::Corelane | System::CorelaneMemory => only(corelane(&data.join("store"), port, &[])),
        System::CorelaneSmall => only(corelane(&data.join("store"), port, &["--memory", "256M"])),
        System::Nats | System::NatsSynced => only(nats(installed, data, port, system == System::NatsSynced)?),
    }
}

fn kafka(installed: &Installed, data: &Path, node: u16, places: &Places, settings: &[(&str, &str)]) -> Result<Command, BenchError> {
    let (port, controller) = (places.clients(node), places.consensus(node));
    let voters: Vec<String> = (1..=places.nodes).map(|node| format!("{node}@127.0.0.1:{}", places.consensus(node))).collect();
    let mut lines = vec![
        "process.roles=broker,controller".into(),
        format!("node.id={node}"),
        format!("controller.quorum.voters={}", voters.join(",")),
        format!("listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"),
        format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port}"),
        "controller.listener.names=CONTROLLER".into(),
        format!("log.dirs={}", data.join(format!("logs-{node}")).display()),
    ];
    if places.nodes < 3 {
        // As in the file that comes with it: one node can't hold three replicas.
        lines.extend(["offsets.topic.replication.factor=1".into(), "transaction.state.log.replication.factor=1".into()]);
        lines.push("transaction.state.log.min.isr=1".into());
    }
    lines.extend(settings.iter().map(|(name, value)| format!("{name}={value}")));
    let properties = data.join(format!("server-{node}.properties"));
    fs::write(&properties, lines.join("\n")).map_err(BenchError::io("writing Kafka's settings"))?;
    let format = Command::new("java")
        .args(["-XX:TieredStopAtLevel=1", "-cp"])
        .arg(installed.class_path())
        .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c"])
        .arg(&properties)
        .output();
    let format = format.map_err(BenchError::io("formatting Kafka's directory"))?;
    if !format.status.success() {
        return Err(BenchError::Host(format!("formatting Kafka's directory: {}", tail(&String::from_utf8_lossy(&format.stderr)))));
    }
    let mut command = Command::new("java");
    command.args(KAFKA_JVM).arg("-cp").arg(installed.class_path()).arg("kafka.Kafka").arg(&properties);
    Ok(command)
}

fn corelane(store: &Path, port: u16, settings: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
    command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--admin-listen", "none", "--data"]).arg(store).args(settings);
    command.env("CORELANE_LOG", "warn");
    command
}

/// The first one forms the cluster.
fn corelane_node(data: &Path, node: u16, places: &Places) -> Command {
    let mut command = corelane(&data.join(format!("store-{node}")), places.clients(node), &CORELANE_NODE);
    command.args(["--node-id", &node.to_string(), "--cluster-listen", &format!("127.0.0.1:{}", places.consensus(node))]);
    if node > 1 {
        command.args(["--join", &format!("127.0.0.1:{}", places.consensus(1))]);
    }
    command
}

fn nats(installed: &Installed, data: &Path, port: u16, synced: bool) -> Result<Command, BenchError> {
    let server = installed.nats.as_ref().ok_or_else(|| BenchError::Usage("nats-server was not installed".into()))?;
    let interval = if synced { "sync_interval: always" } else { "" };
    let settings = format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: \"{}\"\n{interval}\n}}\n", data.display());
    let file = data.join("nats.conf");
    fs::write(&file, settings).map_err(BenchError::io("writing the settings of NATS"))?;
    let mut command = Command::new(server);
    command.arg("-c").arg(file);
    Ok(command)
}

/// The first of [`PORTS`] free ones in a row. Each process of this benchmark begins to look elsewhere, as two may run at the same time.
fn free_ports() -> Result<u16, BenchError> {
    let rows = (PORT_RANGE.end - PORT_RANGE.start) / PORTS;
    let begin = (std::process::id() % u32::from(rows)) as u16;
    let mut firsts = (0..rows).map(|row| PORT_RANGE.start + (begin + row) % rows * PORTS);
    let is_free = |first: &u16| (*first..first + PORTS).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
    firsts.find(is_free).ok_or_else(|| BenchError::Host(format!("no {PORTS} free ports in a row in {PORT_RANGE:?}")))
}

/// ApiVersions, then Metadata without topics: an answer that names so many brokers.
fn answers_kafka(port: u16, brokers: u16) -> io::Result<()> {
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(READY_TIMEOUT))?;
    let mut ask = |api: i16, version: i16, body: &[u8]| -> io::Result<Vec<u8>> {
        let mut frame = Vec::new();
        frame.extend_from_slice(&(10 + body.len() as i32).to_be_bytes());
        frame.extend_from_slice(&api.to_be_bytes());
        frame.extend_from_slice(&version.to_be_bytes());
        frame.extend_from_slice(&7_i32.to_be_bytes());
        // No client id.
        frame.extend_from_slice(&(-1_i16).to_be_bytes());
        frame.extend_from_slice(body);
        socket.write_all(&frame)?;
        let mut length = [0; 4];
        socket.read_exact(&mut length)?;
        let mut answer = vec![0; u32::from_be_bytes(length).min(1 << 20) as usize];
        socket.read_exact(&mut answer)?;
        Ok(answer)
    };
    const API_VERSIONS: i16 = 18;
    const METADATA: i16 = 3;
    ask(API_VERSIONS, 0, &[])?;
    let answer = ask(METADATA, 1, &0_i32.to_be_bytes())?;
    // Behind the correlation id.
    let known = answer.get(4..8).and_then(|count| count.try_into().ok()).map_or(0, i32::from_be_bytes);
    match known >= i32::from(brokers) {
        true => Ok(()),
        false => Err(io::Error::other(format!("it knows {known} of {brokers} brokers"))),
    }
}

/// NATS speaks first, and says whether JetStream is on.
fn answers_nats(port: u16) -> io::Result<()> {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(READY_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line)?;
    match line.starts_with("INFO ") && line.contains("\"jetstream\":true") {
        true => Ok(()),
        false => Err(io::Error::other("JetStream is not on yet")),
    }
}

fn remove(directory: &Path) -> Result<(), BenchError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
    .map_err(BenchError::io(format!("removing {}", directory.display())))
}

fn allocated(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    // Files come and go meanwhile.
    let sizes = entries.flatten().filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() { allocated(&entry.path()) } else { metadata.blocks() * 512 })
    });
    sizes.sum()
}

/// The kernel kills it when this process is killed: no broker stays behind.
#[allow(unsafe_code)]
pub fn ends_with_this_process(command: &mut Command) {
    use rustix::process::{Signal, set_parent_process_death_signal};
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only one system call is made, nothing is allocated.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
}

/// The last lines, for an error.
pub fn tail(words: &str) -> String {
    let lines: Vec<&str> = words.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}
