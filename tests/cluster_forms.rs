//! How nodes become a cluster: founding, joining, going back, taking over a store of a node that was alone, and who is refused and what it is told.

mod support;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;
use support::{Broker, eventually};

/// Shards of each node.
const SHARDS: u16 = 2;

/// A directory that can do direct I/O: the system's scratch directory may be in memory.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// The first of so many neighbouring ports that are free, below those that the kernel gives out by itself.
fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 400) as u16 * 30;
    loop {
        let first = 16_000 + (start + NEXT.fetch_add(count, Relaxed)) % 15_000;
        let ports = first..first + count;
        if ports.map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).all(|bound| bound.is_ok()) {
            return first;
        }
    }
}

/// Where a node is.
struct Place {
    node: u32,
    data: PathBuf,
    clients: String,
    consensus: String,
}

impl Place {
    fn new(directory: &Path, node: u32) -> Place {
        let first = free_ports(2 * SHARDS + 1);
        let at = |port: u16| format!("127.0.0.1:{port}");
        Place { node, data: directory.join(format!("n{node}")), clients: at(first), consensus: at(first + SHARDS) }
    }

    fn flags(&self) -> Vec<String> {
        let node = self.node.to_string();
        let shards = SHARDS.to_string();
        let flags =
            ["--node-id", &node, "--shards", &shards, "--listen", &self.clients, "--cluster-listen", &self.consensus, "--memory", "128M"];
        flags.map(str::to_owned).to_vec()
    }

    fn start(&self, join: &[&Place]) -> Broker {
        Broker::start(&self.data, &self.with(join).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Its flags, and the members that it is told of.
    fn with(&self, join: &[&Place]) -> Vec<String> {
        let mut flags = self.flags();
        flags.extend(join.iter().flat_map(|member| ["--join".to_owned(), member.consensus.clone()]));
        flags
    }

    /// Starts it, which is to fail; what it says.
    fn refused(&self, flags: &[String]) -> String {
        let ended = command(&["serve", "--admin-listen", "none", "--data"]).arg(&self.data).args(flags).output().expect("it runs");
        assert!(!ended.status.success(), "it was to be refused: {ended:?}");
        String::from_utf8_lossy(&ended.stderr).into_owned()
    }

    /// Starts it, and does not wait.
    fn spawn(&self, join: &[&Place]) -> Child {
        let mut serve = command(&["serve", "--json", "--admin-listen", "none", "--data"]);
        serve.arg(&self.data).args(self.with(join)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs")
    }

    fn ask(&self, words: &[&str]) -> Output {
        command(words).args(["--broker", &self.clients]).output().expect("it runs")
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&self.ask(&["cluster", "status", "--all", "--json"]).stdout).unwrap_or_default()
    }

    fn wait_healthy(&self, nodes: usize) {
        let mut last = Value::Null;
        eventually(&format!("{nodes} nodes are healthy"), || {
            last = self.status();
            last["health"] == "healthy" && last["nodes"].as_array().is_some_and(|all| all.len() == nodes)
        });
    }

    fn produce(&self, topic: &str, records: std::ops::Range<u32>) {
        let mut produce = command(&["produce", topic, "--broker", &self.clients]).stdin(Stdio::piped()).spawn().expect("it runs");
        let mut input = produce.stdin.take().expect("piped");
        for record in records {
            writeln!(input, "{record}").expect("it reads");
        }
        drop(input);
        let said = produce.wait_with_output().expect("our child");
        assert!(said.status.success(), "{topic}: {}", String::from_utf8_lossy(&said.stderr));
    }

    /// All records of a topic, sorted.
    fn consume(&self, topic: &str) -> Vec<u32> {
        let read = self.ask(&["consume", topic, "--exit-at-end"]);
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        let mut records: Vec<u32> = String::from_utf8_lossy(&read.stdout).lines().map(|line| line.parse().expect("a number")).collect();
        records.sort_unstable();
        records
    }
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
    command.args(words).env("CORELANE_LOG", "warn,openraft=off").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn cluster_of(status: &Value) -> String {
    status["cluster"].as_str().unwrap_or_else(|| panic!("no cluster in {status}")).to_owned()
}

fn create(at: &Place, topic: &str, partitions: u32, replicas: u32) {
    let (partitions, replicas) = (partitions.to_string(), replicas.to_string());
    let made = at.ask(&["topic", "create", topic, "--partitions", &partitions, "--replication-factor", &replicas]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn three_processes_are_one_broker_and_come_back_as_one() {
    let directory = scratch();
    let places: Vec<Place> = (1..=3).map(|node| Place::new(directory.path(), node)).collect();
    let mut running = vec![places[0].start(&[])];
    running.extend(places[1..].iter().map(|place| place.start(&[&places[0]])));
    create(&places[0], "t", 4, 3);
    places[2].wait_healthy(3);
    let status = places[1].status();
    for partition in status["partitions"].as_array().expect("a list") {
        assert_eq!(partition["isr"].as_array().map(Vec::len), Some(3), "{status}");
    }
    places[0].produce("t", 0..300);

    // One stops; the others go on without it, and it goes back without being told where to.
    assert_eq!(running.remove(0).stop(), 0);
    places[1].produce("t", 300..600);
    running.insert(0, places[0].start(&[]));
    places[0].wait_healthy(3);

    // All are killed at once, and none can go on alone: they wait for each other.
    running.drain(..).for_each(Broker::kill);
    let mut others: Vec<Child> = places[1..].iter().map(|place| place.spawn(&[])).collect();
    running.push(places[0].start(&[]));
    places[0].wait_healthy(3);
    assert_eq!(places[0].consume("t"), (0..600).collect::<Vec<_>>());
    for other in &mut others {
        other.kill().expect("our child");
        other.wait().expect("our child");
    }
}

#[test]
fn a_node_without_its_cluster_can_be_stopped() {
    let directory = scratch();
    let places: Vec<Place> = (1..=3).map(|node| Place::new(directory.path(), node)).collect();
    let running = [places[0].start(&[]), places[1].start(&[&places[0]]), places[2].start(&[&places[0]])];
    // All three vote, so that one alone is no majority.
    eventually("three vote", || {
        let members = places[0].status()["consensus"]["members"].as_array().cloned().unwrap_or_default();
        members.iter().filter(|member| member["votes"] == true).count() == 3
    });
    running.into_iter().for_each(Broker::kill);
    let mut alone = places[0].spawn(&[]);
    eventually("it listens", || std::net::TcpStream::connect(&places[0].consensus).is_ok());
    std::thread::sleep(Duration::from_millis(300));
    assert!(alone.try_wait().expect("our child").is_none(), "it waits for the others");
    assert!(Command::new("kill").args(["-TERM", &alone.id().to_string()]).status().expect("kill runs").success());
    let mut ended = None;
    eventually("it ends", || {
        ended = alone.try_wait().expect("our child");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
}

#[test]
fn a_store_of_a_node_that_was_alone_becomes_a_cluster_with_its_topics() {
    let directory = scratch();
    let (first, second) = (Place::new(directory.path(), 0), Place::new(directory.path(), 7));
    let alone = Broker::start(&first.data, &["--shards", "2", "--listen", &first.clients]);
    create(&first, "old", 3, 1);
    first.produce("old", 0..200);
    let cluster = cluster_of(&first.status());
    assert_eq!(alone.stop(), 0);

    // Its topics can't come into a cluster that is there.
    let other = Place::new(directory.path(), 9);
    let founder = other.start(&[]);
    let said = first.refused(&first.with(&[&other]));
    let theirs = cluster_of(&other.status());
    assert!(said.contains(&cluster) && said.contains(&theirs), "{said}");
    founder.kill();
    let numbered = Place { node: 4, data: first.data.clone(), clients: first.clients.clone(), consensus: first.consensus.clone() };
    let said = numbered.refused(&numbered.flags());
    assert!(said.contains("node 0") && said.contains("node 4"), "{said}");

    let taken_over = first.start(&[]);
    first.wait_healthy(1);
    assert_eq!(cluster_of(&first.status()), cluster, "the cluster keeps its id");
    assert!(!first.data.join("catalogue").exists(), "the consensus has it now");
    assert_eq!(first.consume("old"), (0..200).collect::<Vec<_>>());
    let joined = second.start(&[&first]);
    second.wait_healthy(2);
    let moved = first.ask(&["topic", "alter", "old", "--replicas", "0=7,0"]);
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    eventually("the new node has a replica that is in sync", || {
        let status = first.status();
        status["partitions"].as_array().is_some_and(|all| all.iter().any(|p| p["isr"].as_array().is_some_and(|isr| isr.len() == 2)))
    });
    assert_eq!(joined.stop(), 0);
    assert_eq!(taken_over.stop(), 0);

    // Its place is in the cluster now, whatever the flags say.
    let said = first.refused(&["--shards".into(), "2".into(), "--listen".into(), first.clients.clone()]);
    assert!(said.contains("--cluster-listen"), "{said}");
    let inspected = command(&["inspect", "verify", "--data"]).arg(&first.data).output().expect("it runs");
    let said = String::from_utf8_lossy(&inspected.stdout);
    assert!(inspected.status.success() && said.contains("consensus"), "{said}");
    let repaired = command(&["inspect", "repair", "--data"]).arg(&first.data).output().expect("it runs");
    let said = String::from_utf8_lossy(&repaired.stderr);
    assert!(!repaired.status.success() && said.contains("node of a cluster"), "{said}");
    std::fs::remove_dir_all(first.data.join("consensus")).expect("it was there");
    let said = first.refused(&first.flags());
    assert!(said.contains("consensus files are lost"), "{said}");
}

#[test]
fn who_is_refused_is_told_why_and_may_try_again() {
    let directory = scratch();
    let (first, second) = (Place::new(directory.path(), 1), Place::new(directory.path(), 2));
    let running = first.start(&[]);

    let said = second.refused(&[
        "--cluster-listen".into(),
        second.consensus.clone(),
        "--join".into(),
        first.consensus.clone(),
        "--listen".into(),
        second.clients.clone(),
    ]);
    assert!(said.contains("--node-id"), "{said}");

    // An id that is in use: nothing stays of the attempt.
    let twin = Place { node: 1, data: second.data.clone(), clients: second.clients.clone(), consensus: second.consensus.clone() };
    let said = twin.refused(&twin.with(&[&first]));
    assert!(said.contains('1') && said.contains(&first.consensus), "{said}");
    assert!(!second.data.join("consensus").exists() && !second.data.join("meta").exists());

    // Ports of another node on this host.
    let (host, port) = first.consensus.rsplit_once(':').expect("a port");
    let port: u16 = port.parse().expect("a number");
    let overlapping =
        Place { node: 2, data: second.data.clone(), clients: second.clients.clone(), consensus: format!("{host}:{}", port + 1) };
    let said = overlapping.refused(&overlapping.with(&[&first]));
    assert!(said.contains(&format!("{} to {}", port + 1, port + 1 + SHARDS)) && said.contains("--cluster-listen"), "{said}");

    // A first start that was cut short left an identity and nothing else.
    let joined = second.start(&[&first]);
    second.wait_healthy(2);
    assert_eq!(joined.stop(), 0);
    running.kill();
}

#[test]
fn a_first_start_that_was_cut_short_begins_again() {
    let directory = scratch();
    let (first, second) = (Place::new(directory.path(), 1), Place::new(directory.path(), 2));
    // An identity and nothing else, of a cluster that nobody knows.
    assert_eq!(Broker::start(&second.data, &["--shards", "1"]).stop(), 0);
    for entry in std::fs::read_dir(&second.data).expect("it is there").map(|entry| entry.expect("an entry")) {
        match entry.file_name() == "meta" {
            true => {}
            false if entry.path().is_dir() => std::fs::remove_dir_all(entry.path()).expect("a directory"),
            false => std::fs::remove_file(entry.path()).expect("a file"),
        }
    }
    let running = [first.start(&[]), second.start(&[&first])];
    second.wait_healthy(2);
    assert_eq!(cluster_of(&first.status()), cluster_of(&second.status()));
    running.into_iter().for_each(|node| assert_eq!(node.stop(), 0));
}
