//! What the kernel says of a loaded broker, read from /proc and through `mincore`: pinned threads, io_uring, direct I/O, no page cache; and from
//! `/metrics`, that the native client's requests never cross between shards.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use corelane::client::blocking::BlockingClient;
use corelane::client::{NewTopic, ProducerRecord, SeekTo};
use support::Broker;

const SHARDS: usize = 2;
const PARTITIONS: u32 = 8;
/// Acknowledged before the first look, bytes: so much that one percent of it is more than the few pages of small files.
const LOADED: usize = 96 << 20;
const RECORD: usize = 4096;

/// A directory on the disk of the build: the system's scratch directory may be a tmpfs, which has no direct I/O.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn broker(data: &Path, flags: &[&str]) -> Broker {
    let shards = SHARDS.to_string();
    Broker::start(data, &[&["--shards", &shards, "--admin-listen", "127.0.0.1:0"], flags].concat())
}

/// Creates a topic and appends `bytes` to it, spread over its partitions; all of it is acknowledged.
fn load(client: &BlockingClient, topic: &str, bytes: usize) {
    let producer = client.producer(|p| p.linger(Duration::from_millis(1))).expect("a producer");
    let value = vec![b'v'; RECORD];
    let deliveries: Vec<_> = (0..bytes / RECORD)
        .map(|n| producer.send_nowait(ProducerRecord::to(topic).partition(n as u32 % PARTITIONS).value(&value)).expect("it is taken"))
        .collect();
    producer.flush();
    for delivery in deliveries {
        producer.wait(delivery).expect("it is acknowledged");
    }
}

fn read(client: &BlockingClient, topic: &str, records: usize) {
    let mut consumer = client.consumer(|c| c).expect("a consumer");
    consumer.assign_topic(topic, SeekTo::Earliest).expect("the topic is there");
    for n in 0..records {
        let record = consumer.poll(Duration::from_secs(60)).unwrap_or_else(|| panic!("{n} of {records} records")).expect("a record");
        assert_eq!(record.value.as_deref().map(<[u8]>::len), Some(RECORD));
    }
}

/// A field of a status file in /proc.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

/// The list that the kernel writes as `0-2,5`.
fn cpu_list(text: &str) -> Vec<usize> {
    let number = |text: &str| text.parse().unwrap_or_else(|e| panic!("{text:?}: {e}"));
    let range = |part: &str| match part.split_once('-') {
        Some((from, to)) => number(from)..=number(to),
        None => number(part)..=number(part),
    };
    text.split(',').flat_map(range).collect()
}

/// A thread of the broker: its name, the CPUs that it may run on and the CPU time that it has used, clock ticks.
#[derive(Debug)]
struct Thread {
    name: String,
    allowed: Vec<usize>,
    ticks: u64,
}

fn threads(pid: u32) -> Vec<Thread> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the broker runs");
    let look = |task: &Path| {
        let status = fs::read_to_string(task.join("status")).ok()?;
        let stat = fs::read_to_string(task.join("stat")).ok()?;
        // Behind the name, which is in parentheses: state is the first field, user and system time are the 12th and 13th.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
        Some(Thread { name: field(&status, "Name").to_owned(), allowed: cpu_list(field(&status, "Cpus_allowed_list")), ticks })
    };
    // One that ends meanwhile is left out.
    tasks.filter_map(|task| look(&task.ok()?.path())).collect()
}

/// By shard the thread that executes it: of those with its name the one that works. (The runtime gives the name to its helper for renames and
/// unlinks too, which waits nearly always.)
fn executors(threads: Vec<Thread>) -> BTreeMap<String, Thread> {
    let mut executors: BTreeMap<String, Thread> = BTreeMap::new();
    for thread in threads {
        let Some(number) = thread.name.strip_prefix("shard-") else { continue };
        let shard = number.split('-').next().unwrap_or(number).to_owned();
        let known = executors.remove(&shard);
        let busier = known.filter(|known| known.ticks >= thread.ticks).unwrap_or(thread);
        executors.insert(shard, busier);
    }
    executors
}

/// Whether the descriptor, a line of `fdinfo`, was opened with O_DIRECT.
fn is_direct(info: &str) -> bool {
    let flags = i32::from_str_radix(field(info, "flags"), 8).expect("octal flags");
    flags & libc::O_DIRECT != 0
}

/// What each descriptor of a process leads to, and whether it is for direct I/O.
fn descriptors(pid: u32) -> Vec<(PathBuf, bool)> {
    let list = fs::read_dir(format!("/proc/{pid}/fd")).expect("the broker runs");
    let look = |number: &std::ffi::OsStr| {
        let target = fs::read_link(Path::new(&format!("/proc/{pid}/fd")).join(number)).ok()?;
        let info = fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(number)).ok()?;
        Some((target, is_direct(&info)))
    };
    // One that is closed meanwhile is left out.
    list.filter_map(|entry| look(&entry.ok()?.file_name())).collect()
}

/// Bytes of a file that are in the page cache.
#[allow(unsafe_code, reason = "std and rustix have no safe mapping, and nothing else tells what is cached")]
fn cached_bytes(path: &Path) -> u64 {
    const PAGE: usize = 4096;
    let Ok(file) = fs::File::open(path) else { return 0 };
    let len = file.metadata().expect("it is open").len() as usize;
    if len == 0 {
        return 0;
    }
    let mut pages = vec![0u8; len.div_ceil(PAGE)];
    // SAFETY: the mapping is new, shared and read-only, never dereferenced, `len` bytes long as mincore is told, and unmapped here; `pages` has a
    // byte for each of its pages. A page size above 4 KiB only leaves the end of `pages` unused.
    let result = unsafe {
        let mapping = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(mapping, libc::MAP_FAILED, "{}: {}", path.display(), std::io::Error::last_os_error());
        let result = libc::mincore(mapping, len, pages.as_mut_ptr());
        libc::munmap(mapping, len);
        result
    };
    assert_eq!(result, 0, "{}: {}", path.display(), std::io::Error::last_os_error());
    pages.iter().filter(|page| **page & 1 == 1).count() as u64 * PAGE as u64
}

/// Files below a directory, their lengths and what of them is cached.
fn files(dir: &Path) -> Vec<(PathBuf, u64, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("a name").path();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => found.extend(files(&path)),
            Ok(metadata) => found.push((path.clone(), metadata.len(), cached_bytes(&path))),
            // Retention and rolls may take one away meanwhile.
            Err(_) => {}
        }
    }
    found
}

/// Requests that went through the mesh, counted at both of its ends.
fn mesh(broker: &Broker) -> (u64, u64) {
    (broker.metric("mesh_sent_total"), broker.metric("mesh_served_total"))
}

#[test]
fn a_loaded_broker_is_pinned_direct_and_uncached() {
    let directory = directory();
    let data = directory.path().canonicalize().expect("it exists");
    let broker = broker(&data, &[]);
    let client = BlockingClient::connect(&broker.bootstrap()).expect("a client");
    let topic = NewTopic::new("seen").partitions(PARTITIONS).config("segment.bytes", "4194304");
    client.admin().create_topic(topic).expect("a topic");
    load(&client, "seen", LOADED);

    // Reads of what is no longer in memory, and then appends that go on while the kernel is asked.
    read(&client, "seen", LOADED / RECORD);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let rounds = (0..64).take_while(|_| !over.load(Ordering::Relaxed));
            rounds.for_each(|_| load(&client, "seen", 4 << 20));
        });
        look(&broker, &data);
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(mesh(&broker), (0, 0), "the native client goes to the shard that owns the partition");
    assert_eq!(broker.stop(), 0);
}

fn look(broker: &Broker, data: &Path) {
    let threads = threads(broker.pid());
    let pinned = threads.iter().filter(|thread| thread.name.starts_with("shard-") && thread.allowed.len() == 1).count();
    assert_eq!(pinned, SHARDS, "one pinned thread per shard: {threads:?}");
    let executors = executors(threads);
    assert_eq!(executors.len(), SHARDS, "each shard has an executor: {executors:?}");
    let mut cpus = Vec::new();
    for (shard, executor) in &executors {
        assert!(executor.ticks > 0, "the executor of shard {shard} works: {executor:?}");
        assert_eq!(executor.allowed.len(), 1, "the executor of shard {shard} is allowed on exactly one CPU: {executor:?}");
        cpus.push(executor.allowed[0]);
    }
    let ours = cpu_list(field(&fs::read_to_string("/proc/self/status").expect("ours"), "Cpus_allowed_list")).len();
    cpus.sort_unstable();
    cpus.dedup();
    if ours >= SHARDS {
        assert_eq!(cpus.len(), SHARDS, "each shard has a CPU of its own: {executors:?}");
    } else {
        println!("this host allows {ours} CPU: the shards share it");
    }

    let descriptors = descriptors(broker.pid());
    let rings = descriptors.iter().filter(|(target, _)| target.as_os_str() == "anon_inode:[io_uring]").count();
    assert!(rings >= SHARDS, "{rings} io_uring descriptors of {SHARDS} shards");
    for kind in ["journal", "log", "index"] {
        let is_kind = |path: &Path| path.starts_with(data) && path.extension().is_some_and(|extension| extension == kind);
        let open: Vec<_> = descriptors.iter().filter(|(path, _)| is_kind(path)).collect();
        assert!(!open.is_empty(), "no .{kind} file is open: {descriptors:?}");
        let buffered = open.iter().find(|(_, direct)| !direct);
        assert!(buffered.is_none(), "{} of {} .{kind} files are for direct I/O, not {buffered:?}", open.len() - 1, open.len());
    }

    let files = files(data);
    let (len, cached) = files.iter().fold((0, 0), |(len, cached), (_, l, c)| (len + l, cached + c));
    println!("{} files, {len} bytes, {cached} of them in the page cache", files.len());
    // Of what was acknowledged, not of the files' lengths: some of those bytes are allocated ahead, and can't be cached.
    let most = LOADED.min(len as usize) as u64 / 100;
    let culprits: Vec<_> = files.iter().filter(|(_, _, cached)| *cached > 0).collect();
    assert!(cached < most, "{cached} of {len} bytes are in the page cache: {culprits:?}");
}

#[test]
fn one_advertised_endpoint_makes_the_mesh_carry_requests() {
    let directory = directory();
    let broker = broker(directory.path(), &["--advertised-endpoints", "1"]);
    let client = BlockingClient::connect(&broker.addresses[0]).expect("a client");
    client.admin().create_topic(NewTopic::new("meshed").partitions(PARTITIONS)).expect("a topic");
    load(&client, "meshed", 1 << 20);
    read(&client, "meshed", (1 << 20) / RECORD);
    let (sent, served) = mesh(&broker);
    assert!(sent > 0 && served > 0, "shard 0 hands on what is not its own: {sent} sent, {served} served");
    assert_eq!(broker.stop(), 0);
}

/// A reader that finds everything in order would pass on any broker: each is shown the opposite.
#[test]
fn the_readers_see_what_they_must_not_find() {
    assert_eq!(cpu_list("0-2,5"), [0, 1, 2, 5]);
    assert!(is_direct("pos:\t0\nflags:\t0140002\nmnt_id:\t1"));
    assert!(!is_direct("pos:\t0\nflags:\t0100002\nmnt_id:\t1"));
    let directory = directory();
    let path = directory.path().join("buffered");
    fs::write(&path, vec![1; 1 << 20]).expect("a file");
    assert!(cached_bytes(&path) >= 1 << 19, "what was just written through the page cache is in it");
    let file = fs::File::open(&path).expect("a file");
    let found = descriptors(std::process::id()).into_iter().find(|(target, _)| *target == path.canonicalize().expect("it exists"));
    assert_eq!(found.map(|(_, direct)| direct), Some(false), "an ordinary descriptor is told from a direct one");
    drop(file);
    let thread = |name: &str, allowed: &[usize], ticks| Thread { name: name.into(), allowed: allowed.into(), ticks };
    let found = executors(vec![thread("shard-0-1", &[0], 5), thread("shard-0-1", &[0, 1], 900), thread("corelane", &[1], 7)]);
    assert_eq!(found["0"].allowed, [0, 1], "an executor that is not pinned is found, not its pinned helper");
    assert!(
        threads(std::process::id()).iter().any(|thread| thread.ticks > 0 || !thread.allowed.is_empty()),
        "a test's own threads are seen"
    );
}
