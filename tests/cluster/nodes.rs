//! The processes of a cluster.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use corelane::client::{Client, NewTopic};
use corelane::types::TopicId;
use rustix::process::{Pid, Signal, kill_process};

use super::clients;
use super::network::{MOST_SHARDS, Network, Node};
use crate::broker::{files_below, last_words, wait_quiet};

/// A start may take this long until `ready`: it waits for the others where there is no quorum without them.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// How long a process may take to end when it is asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// Memory of a node: three are to fit beside whatever else runs.
const MEMORY: &str = "256M";

/// Nodes and where they keep their things.
pub struct Nodes {
    /// Where they are.
    pub network: Arc<Network>,
    directory: PathBuf,
    places: Vec<Place>,
    /// Shards of each.
    shards: u16,
    /// What each is started with besides.
    arguments: Vec<String>,
}

/// One node.
struct Place {
    data: PathBuf,
    log: PathBuf,
    process: Option<Running>,
    is_paused: bool,
}

struct Running {
    child: Child,
    /// Its first line of output.
    told: mpsc::Receiver<String>,
    is_ready: bool,
}

impl Nodes {
    /// Nodes that are not started yet, with their data below a directory.
    pub fn new(network: Network, directory: &Path) -> Result<Nodes, String> {
        let mut places = Vec::new();
        for node in network.nodes() {
            let data = directory.join(format!("node{node}"));
            places.push(Place { data, log: directory.join(format!("node{node}.log")), process: None, is_paused: false });
        }
        fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        Ok(Nodes { network: Arc::new(network), directory: directory.into(), places, shards: 1, arguments: Vec::new() })
    }

    /// Each node is started with these arguments besides, from its next start on.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|argument| argument.to_string()).collect();
    }

    /// Each node is started with so many shards.
    pub fn set_shards(&mut self, shards: u16) {
        assert!(shards <= MOST_SHARDS, "there are ports for {MOST_SHARDS} shards");
        self.shards = shards;
    }

    /// Another directory for a node's data, such as one on a disk of its own.
    pub fn set_data(&mut self, node: Node, data: PathBuf) {
        self.place_mut(node).data = data;
    }

    /// Forms a cluster: the first node, then the others at once.
    pub fn form(&mut self) -> Result<(), String> {
        self.form_of(*self.network.nodes().end())
    }

    /// Forms a cluster of the first nodes; the others may join later.
    pub fn form_of(&mut self, nodes: u32) -> Result<(), String> {
        self.spawn(1, &[])?;
        self.wait_ready(1)?;
        let others: Vec<Node> = self.network.nodes().take(nodes as usize).skip(1).collect();
        for node in &others {
            self.spawn(*node, &[1])?;
        }
        others.iter().try_for_each(|node| self.wait_ready(*node))
    }

    /// Where everything is kept.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The data of a node.
    pub fn data(&self, node: Node) -> &Path {
        &self.place(node).data
    }

    /// Addresses for a client.
    pub fn bootstrap(&self) -> String {
        self.network.nodes().map(|node| self.network.clients(node)).collect::<Vec<_>>().join(",")
    }

    /// Starts a process that knows all others, as an operator's unit file has it.
    pub fn start(&mut self, node: Node) -> Result<(), String> {
        let others: Vec<Node> = self.network.nodes().filter(|other| *other != node).collect();
        self.spawn(node, &others)
    }

    fn spawn(&mut self, node: Node, join: &[Node]) -> Result<(), String> {
        let place = self.place(node);
        if place.process.is_some() {
            return Err(format!("node {node} runs already"));
        }
        let log = OpenOptions::new().create(true).append(true).open(&place.log).map_err(|e| format!("{}: {e}", place.log.display()))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
        command
            .args(["serve", "--json", "--memory", MEMORY, "--shards", &self.shards.to_string(), "--node-id", &node.to_string()])
            .args(["--listen", &self.network.clients(node), "--admin-listen", &self.network.admin(node)])
            .args(["--cluster-listen", &self.network.consensus(node)])
            .args(join.iter().flat_map(|other| ["--join".to_string(), self.network.consensus(*other)]))
            .args(if self.network.is_exposed() { &["--insecure"][..] } else { &[] })
            .args(&self.arguments)
            .arg("--data")
            .arg(&place.data)
            .env("CORELANE_LOG", std::env::var("CORELANE_LOG").unwrap_or_else(|_| "info".into()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = self.network.spawn(node, &mut command)?;
        let output = child.stdout.take().expect("piped");
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = String::new();
            let _ = output.read_line(&mut line);
            let _ = tell.send(line);
            let _ = std::io::copy(&mut output, &mut std::io::sink());
        });
        self.place_mut(node).process = Some(Running { child, told, is_ready: false });
        Ok(())
    }

    /// Waits until a started node says that it is ready.
    pub fn wait_ready(&mut self, node: Node) -> Result<(), String> {
        let place = self.place_mut(node);
        let running = place.process.as_mut().ok_or("it does not run")?;
        if running.is_ready {
            return Ok(());
        }
        match running.told.recv_timeout(READY_PATIENCE) {
            Ok(line) if line.contains("\"ready\":true") => {
                running.is_ready = true;
                Ok(())
            }
            Ok(line) => Err(self.words(node, &format!("ended at its start and said {line:?}"))),
            Err(_) => Err(self.words(node, &format!("is not ready after {} s", READY_PATIENCE.as_secs()))),
        }
    }

    /// Whether its process is there and not stopped.
    pub fn is_up(&self, node: Node) -> bool {
        self.place(node).process.is_some() && !self.place(node).is_paused
    }

    /// SIGKILL.
    pub fn kill(&mut self, node: Node) -> Result<(), String> {
        let place = self.place_mut(node);
        place.is_paused = false;
        let Some(mut running) = place.process.take() else { return Ok(()) };
        running.child.kill().and_then(|()| running.child.wait()).map(|_| ()).map_err(|e| format!("node {node}: {e}"))
    }

    /// SIGSTOP.
    pub fn pause(&mut self, node: Node) -> Result<(), String> {
        self.signal(node, Signal::STOP)?;
        self.place_mut(node).is_paused = true;
        Ok(())
    }

    /// SIGCONT.
    pub fn resume(&mut self, node: Node) -> Result<(), String> {
        self.signal(node, Signal::CONT)?;
        self.place_mut(node).is_paused = false;
        Ok(())
    }

    fn signal(&self, node: Node, signal: Signal) -> Result<(), String> {
        let running = self.place(node).process.as_ref().ok_or_else(|| format!("node {node} does not run"))?;
        kill_process(Pid::from_child(&running.child), signal).map_err(|e| format!("node {node}: {e}"))
    }

    /// SIGTERM.
    pub fn ask_to_stop(&self, node: Node) -> Result<(), String> {
        self.signal(node, Signal::TERM)
    }

    /// Makes a topic.
    pub fn create_topic(&self, new: NewTopic) -> Result<TopicId, String> {
        let create = async |client: Client| client.admin().create_topic(new).await.map_err(|e| e.to_string());
        let made = clients::as_client(&self.network, &self.bootstrap(), create);
        made.map(|topic| topic.id).map_err(|e| format!("{e}\n{}", self.last_words()))
    }

    /// A process that runs one of this program's commands against the cluster.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
        command.args(arguments).args(["--broker", &self.bootstrap()]).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// What a command prints. Its exit code and words where it fails.
    pub fn run_command(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.command(arguments);
        let output = self.network.as_client(|| command.stdout(Stdio::piped()).stderr(Stdio::piped()).output())?;
        let output = output.map_err(|e| e.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(format!("{arguments:?} ended with {}: {}{}", output.status, text(&output.stdout), text(&output.stderr))),
        }
    }

    /// The sum of a counter over the shards of a node.
    pub fn counter(&self, node: Node, name: &str) -> Result<u64, String> {
        let address: SocketAddr = self.network.admin(node).parse().map_err(|_| "no address")?;
        let ask = || -> std::io::Result<String> {
            let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            socket.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = self.network.as_client(ask)?.map_err(|e| format!("the metrics of node {node} at {address}: {e}"))?;
        let start = format!("corelane_{name}");
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with(&start)).filter_map(|line| line.rsplit(' ').next()).collect();
        if lines.is_empty() {
            return Err(format!("node {node} has no counter {name}"));
        }
        lines.iter().map(|value| value.parse::<f64>().map(|value| value as u64).map_err(|e| format!("{name}: {e}"))).sum()
    }

    /// SIGTERM: it must hand over, drain and end with code 0. How long that took.
    pub fn stop(&mut self, node: Node) -> Result<Duration, String> {
        self.ask_to_stop(node)?;
        self.wait_stopped(node)
    }

    /// Waits for the end of one that was asked to stop.
    pub fn wait_stopped(&mut self, node: Node) -> Result<Duration, String> {
        let asked = Instant::now();
        while asked.elapsed() < STOP_PATIENCE {
            let running = self.place_mut(node).process.as_mut().ok_or_else(|| format!("node {node} does not run"))?;
            match running.child.try_wait().map_err(|e| format!("node {node}: {e}"))? {
                Some(status) => {
                    self.place_mut(node).process = None;
                    let words = || self.words(node, &format!("ended with {status} when asked to"));
                    return if status.success() { Ok(asked.elapsed()) } else { Err(words()) };
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        Err(self.words(node, &format!("does not end within {} s when asked to", STOP_PATIENCE.as_secs())))
    }

    /// Takes away everything that a node, which does not run, has on its disk.
    pub fn wipe(&mut self, node: Node) -> Result<(), String> {
        let place = self.place(node);
        assert!(place.process.is_none(), "only what does not run is wiped");
        wait_quiet(&place.data)?;
        let failed = |e: std::io::Error| format!("{}: {e}", place.data.display());
        fs::remove_dir_all(&place.data).map_err(failed)
    }

    /// An error for each node that has ended by itself.
    pub fn expect_running(&mut self) -> Result<(), String> {
        for node in self.network.nodes() {
            let Some(running) = self.place_mut(node).process.as_mut() else { continue };
            if let Some(status) = running.child.try_wait().map_err(|e| format!("node {node}: {e}"))? {
                return Err(self.words(node, &format!("ended by itself ({status})")));
            }
        }
        Ok(())
    }

    /// The process of a node.
    pub fn pid(&self, node: Node) -> Option<u32> {
        self.place(node).process.as_ref().map(|running| running.child.id())
    }

    /// What a node did, and the end of its log.
    fn words(&self, node: Node, what: &str) -> String {
        let log = &self.place(node).log;
        format!("node {node} {what}; {} ends with:\n{}", log.display(), last_words(log))
    }

    /// The ends of all logs, for a failure that is nobody's in particular.
    pub fn last_words(&self) -> String {
        let each = |(node, place): (usize, &Place)| format!("-- node {} ends with:\n{}\n", node + 1, last_words(&place.log));
        self.places.iter().enumerate().map(each).collect()
    }

    fn place(&self, node: Node) -> &Place {
        &self.places[node as usize - 1]
    }

    fn place_mut(&mut self, node: Node) -> &mut Place {
        &mut self.places[node as usize - 1]
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in self.network.nodes() {
            let _ = self.kill(node);
        }
    }
}

/// Copies all files below a directory.
pub fn copy_files(from: &Path, to: &Path) -> Result<(), String> {
    for path in files_below(from)? {
        let target = to.join(path.strip_prefix(from).expect("below it"));
        let above = target.parent().expect("a file's directory");
        let copied = fs::create_dir_all(above).and_then(|()| fs::copy(&path, &target));
        copied.map_err(|e| format!("{} to {}: {e}", path.display(), target.display()))?;
    }
    Ok(())
}
