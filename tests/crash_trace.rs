//! Crash enumeration over what a *running broker* did to its disk.
//!
//! The broker records every write, sync, name and acknowledgement (`--disk-trace`); clients make it do everything that touches a disk once: journal laps,
//! rolls, checkpoints, large and adopted appends, a kill, a restart with another number of shards. Then the disk is crashed after every
//! event of the trace, in several ways each, and what is left is recovered and compared with what had been acknowledged by then.

mod crash;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use corelane::log::paths;
use corelane::shard::trace::TraceEvent;
use corelane::types::{TopicId, TopicPartition};

use crash::Numbers;
use crash::check;
use crash::disk::Image;

const PARTITIONS: u32 = 3;

struct Broker {
    process: Child,
    address: String,
}

impl Broker {
    fn start(data: &Path, trace: &Path, shards: u32) -> Broker {
        let mut process = Command::new(env!("CARGO_BIN_EXE_corelane"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "none", "--memory", "64M", "--json"])
            .args(["--shards", &shards.to_string()])
            .arg("--data")
            .arg(data)
            .arg("--disk-trace")
            .arg(trace)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the broker starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("its output is piped")).read_line(&mut line).expect("it says that it is ready");
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        let address = ready["shards"][0]["address"].as_str().expect("the address of shard 0").to_owned();
        Broker { process, address }
    }

    fn run(&self, arguments: &[&str], input: &[u8]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"))
            .args(arguments)
            .args(["--broker", &self.address])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the command starts");
        command.stdin.take().expect("its input is piped").write_all(input).expect("it takes its input");
        let status = command.wait().expect("it ends");
        assert!(status.success(), "{arguments:?}: {status}");
    }

    fn produce(&self, topic: &str, records: usize, len: usize, seed: u64) {
        let mut numbers = Numbers(seed);
        let mut input = Vec::with_capacity(records * (len + 1));
        for _ in 0..records {
            input.extend((0..len).map(|_| b'a' + (numbers.below(26) as u8)));
            input.push(b'\n');
        }
        self.run(&["produce", topic], &input);
    }

    fn kill(mut self) {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it ends");
    }

    fn stop(mut self) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill runs").success());
        assert!(self.process.wait().expect("it ends").success(), "the broker stops in order");
    }
}

/// Makes a broker do everything once; returns its trace.
fn lived() -> Vec<TraceEvent> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-trace-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a scratch directory");
    let (data, trace) = (dir.join("data"), dir.join("trace"));

    let broker = Broker::start(&data, &trace, 1);
    let partitions = PARTITIONS.to_string();
    let settings = ["--config", "segment.bytes=1048576", "--config", "max.message.bytes=33554432"];
    broker.run(&[&["topic", "create", "traced", "--partitions", &partitions], &settings[..]].concat(), b"");
    for round in 0..6 {
        broker.produce("traced", 20 + round, 100, round as u64);
    }
    broker.produce("traced", 2_000, 1_000, 100);
    // More than a journal file of appends that go through the journal.
    for round in 0..60 {
        broker.produce("traced", 1, 100_000, 300 + round);
    }
    broker.produce("traced", 3, 300_000, 101);
    broker.produce("traced", 40, 50_000, 102);
    broker.produce("traced", 1, 9_000_000, 103);
    broker.produce("traced", 300, 200, 104);
    broker.kill();

    let broker = Broker::start(&data, &trace, 2);
    broker.produce("traced", 500, 300, 200);
    broker.produce("traced", 200, 40_000, 201);
    broker.produce("traced", 50, 100, 202);
    broker.stop();
    let events = crash::trace::parse(&fs::read(&trace).expect("there is a trace"));
    if let Some(to) = std::env::var_os("KEEP_TRACE") {
        fs::copy(&trace, to).expect("the trace can be kept");
    }
    fs::remove_dir_all(&dir).expect("the scratch directory goes");
    events
}

fn topic_of(events: &[TraceEvent]) -> TopicId {
    let topic = events.iter().find_map(|event| match event {
        TraceEvent::CreateDir { path } => path.strip_prefix(paths::TOPICS_DIR)?.strip_prefix('/').and_then(paths::parse_topic_dir),
        _ => None,
    });
    topic.expect("a topic's directory is made")
}

#[test]
fn what_a_running_broker_acknowledged_survives_any_crash() {
    let wanted: u64 = std::env::var("IMAGES").map_or(1_000, |images| images.parse().unwrap());
    // TRACE replays a trace that an earlier run kept with KEEP_TRACE.
    let events = match std::env::var_os("TRACE") {
        Some(trace) => crash::trace::parse(&fs::read(trace).expect("the trace can be read")),
        None => lived(),
    };
    let topic = topic_of(&events);
    let catalogue: Vec<_> = (0..PARTITIONS).map(|partition| TopicPartition { topic, partition }).collect();
    // Some images only, where there are many: which ones differs with the seed.
    let seed: u64 = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    let one_in = (events.len() as u64 * 4 / wanted).max(1);
    let mut recovered = 0;
    let counts = check::enumerate(&Image::default(), &events, (6, one_in), seed, |image, acknowledged, at| {
        recovered += 1;
        let shards = 1 + (at % 3) as u32;
        // The whole check, verify and a second recovery included, for some.
        if recovered % 8 == 0 {
            check::recover_and_compare(image, &catalogue, shards, acknowledged)
        } else {
            check::recover_once(image, &catalogue, shards, acknowledged)
        }
    });
    let counts = counts.unwrap_or_else(|loser| panic!("seed {seed}: {loser:?}"));
    let acknowledged = events.iter().filter(|event| matches!(event, TraceEvent::Acknowledge { .. })).count();
    println!("{} events, {acknowledged} acknowledgements, {} images: {:?}", events.len(), counts.images, counts.by_event);
    for mark in ["lap", "roll", "checkpoint", "adopt"] {
        let done = events.iter().any(|event| matches!(event, TraceEvent::Mark { name } if name == mark));
        assert!(done, "the broker did no {mark}");
    }
}
