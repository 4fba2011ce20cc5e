//! What is compared: how each broker is started on an empty directory, when it is ready, and what its acknowledgement means.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use corelane::cli::bench::BenchError;
use corelane::cli::bench::process::Usage;

use crate::install::Installed;

/// How long a broker may take until it answers.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is asked meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(1);
/// Ports in a row that must be free: each of Corelane's shards takes one.
const PORTS: u16 = 16;
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

/// A broker with the settings that make its durability.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum System {
    Kafka,
    KafkaFlushed,
    Corelane,
    CorelaneSmall,
    CorelaneMemory,
    Nats,
    NatsSynced,
}

impl System {
    pub const ALL: [System; 7] = [
        System::Kafka,
        System::KafkaFlushed,
        System::Corelane,
        System::CorelaneSmall,
        System::CorelaneMemory,
        System::Nats,
        System::NatsSynced,
    ];

    /// In step names and results.
    pub fn name(self) -> &'static str {
        match self {
            System::Kafka => "kafka",
            System::KafkaFlushed => "kafka-flushed",
            System::Corelane => "corelane",
            System::CorelaneSmall => "corelane-small",
            System::CorelaneMemory => "corelane-memory",
            System::Nats => "nats",
            System::NatsSynced => "nats-synced",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            System::Kafka => "Kafka",
            System::KafkaFlushed => "Kafka, `flush.messages=1`",
            System::Corelane => "Corelane",
            System::CorelaneSmall => "Corelane, `--memory 256M`",
            System::CorelaneMemory => "Corelane, `memory`",
            System::Nats => "NATS JetStream",
            System::NatsSynced => "NATS JetStream, `sync_interval: always`",
        }
    }

    /// What is true of a record when it is acknowledged.
    pub fn durability(self) -> &'static str {
        match self {
            System::Kafka => "in the page cache, never synced",
            System::KafkaFlushed | System::NatsSynced | System::Corelane | System::CorelaneSmall => "synced",
            System::CorelaneMemory => "in memory (the client's ceiling)",
            System::Nats => "in the page cache, synced every 2 min",
        }
    }

    /// Whether Kafka's clients can talk to it.
    pub fn speaks_kafka(self) -> bool {
        !matches!(self, System::Nats | System::NatsSynced)
    }

    /// Settings of its topics.
    pub fn topic_settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            System::KafkaFlushed => &[("flush.messages", "1")],
            System::CorelaneMemory => &[("durability", "memory")],
            _ => &[],
        }
    }
}

/// A broker that runs on a directory of its own; killed, and the directory removed, when dropped.
pub struct Broker {
    process: Child,
    /// Where clients begin.
    pub bootstrap: String,
    /// From the start of the process to its first answer.
    pub start_up: Duration,
    data: PathBuf,
}

impl Broker {
    /// Starts a system below `scratch`. `settings` are lines for Kafka's properties file.
    pub fn start(system: System, installed: &Installed, scratch: &Path, settings: &[(&str, &str)]) -> Result<Broker, BenchError> {
        let data = scratch.join("broker");
        remove(&data)?;
        fs::create_dir_all(&data).map_err(BenchError::io(format!("creating {}", data.display())))?;
        let port = free_ports()?;
        let mut command = match system {
            System::Kafka | System::KafkaFlushed => kafka(installed, &data, port, settings)?,
            System::Corelane | System::CorelaneMemory => corelane(&data, port, &[]),
            System::CorelaneSmall => corelane(&data, port, &["--memory", "256M"]),
            System::Nats | System::NatsSynced => nats(installed, &data, port, system == System::NatsSynced)?,
        };
        let log = File::create(scratch.join("broker.log")).map_err(BenchError::io("creating the broker's log"))?;
        let both = log.try_clone().map_err(BenchError::io("the broker's log"))?;
        command.stdin(Stdio::null()).stdout(log).stderr(both);
        ends_with_this_process(&mut command);
        let started = Instant::now();
        let process = command.spawn().map_err(BenchError::io(format!("starting {}", system.name())))?;
        let mut broker = Broker { process, bootstrap: format!("127.0.0.1:{port}"), start_up: Duration::ZERO, data };
        loop {
            let answered = if system.speaks_kafka() { answers_kafka(port) } else { answers_nats(port) };
            if answered.is_ok() {
                broker.start_up = started.elapsed();
                return Ok(broker);
            }
            let ended = broker.process.try_wait().map_err(BenchError::io("the broker"))?;
            if ended.is_some() || started.elapsed() > READY_TIMEOUT {
                let words = fs::read_to_string(scratch.join("broker.log")).unwrap_or_default();
                return Err(BenchError::Host(format!("{} did not become ready: {}", system.name(), tail(&words))));
            }
            std::thread::sleep(ASK_AGAIN);
        }
    }

    /// What it has used so far.
    pub fn usage(&self) -> Result<Usage, BenchError> {
        Usage::of(self.process.id()).map_err(BenchError::io("reading what the broker has used"))
    }

    /// Bytes of the blocks that its files have.
    pub fn disk_bytes(&self) -> u64 {
        allocated(&self.data)
    }
}

/// The data goes before the next one starts, written or not: what one broker left in the page cache is not the next one's burden.
impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.data);
        rustix::fs::sync();
    }
}

fn kafka(installed: &Installed, data: &Path, port: u16, settings: &[(&str, &str)]) -> Result<Command, BenchError> {
    let controller = port + 1;
    let mut lines = vec![
        "process.roles=broker,controller".into(),
        "node.id=1".into(),
        format!("controller.quorum.voters=1@127.0.0.1:{controller}"),
        format!("listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"),
        format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port}"),
        "controller.listener.names=CONTROLLER".into(),
        format!("log.dirs={}", data.join("logs").display()),
        // As in the file that comes with it: one node can't hold three replicas.
        "offsets.topic.replication.factor=1".into(),
        "transaction.state.log.replication.factor=1".into(),
        "transaction.state.log.min.isr=1".into(),
    ];
    lines.extend(settings.iter().map(|(name, value)| format!("{name}={value}")));
    let properties = data.join("server.properties");
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

fn corelane(data: &Path, port: u16, settings: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
    command
        .args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--admin-listen", "none", "--data"])
        .arg(data.join("store"))
        .args(settings);
    command.env("CORELANE_LOG", "warn");
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

/// The first of [`PORTS`] free ones in a row.
fn free_ports() -> Result<u16, BenchError> {
    let listen = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    for _ in 0..100 {
        let first = listen(0).and_then(|listener| listener.local_addr()).map_err(BenchError::io("looking for a free port"))?.port();
        if first < u16::MAX - PORTS && (first + 1..first + PORTS).all(|port| listen(port).is_ok()) {
            return Ok(first);
        }
    }
    Err(BenchError::Host(format!("no {PORTS} free ports in a row")))
}

/// ApiVersions, then Metadata without topics: an answer that names a broker.
fn answers_kafka(port: u16) -> io::Result<()> {
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
    match answer.get(4..8) {
        Some(brokers) if brokers != [0; 4] => Ok(()),
        _ => Err(io::Error::other("it knows no broker yet")),
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
