//! One step: a broker on an empty directory, a topic, a client, and everything that can be read of them, as one JSON object.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use corelane::cli::bench::BenchError;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::{Value, json};

use crate::broker::Broker;
use crate::clients::{Client, Window};
use crate::install::Installed;
use crate::plan::{Case, ClientKind, Kind, Load, Step};
use crate::systems::System;

/// Every step has a topic of this name on a broker of its own.
const TOPIC: &str = "load";
/// How long a client or a broker may take for anything beside its window.
const PATIENCE: Duration = Duration::from_secs(120);
/// A consumer may take so long to catch up.
const CATCH_UP: Duration = Duration::from_secs(300);
/// Where a rising rate begins, records a second.
const FIRST_RATE: f64 = 4000.0;
/// Bytes of a record's key.
const KEY_BYTES: f64 = 8.0;
/// Of a topic on several nodes.
const MIN_IN_SYNC: &str = "2";
/// Kafka is told to look as often as Corelane does, and not to keep the files of what is deleted: by itself it looks every five minutes and keeps them
/// for another one, so that a run of this length would see no retention at all.
const KAFKA_RETENTION: [(&str, &str); 2] = [("log.retention.check.interval.ms", "1000"), ("log.segment.delete.delay.ms", "1000")];

/// What steps share.
pub struct Context {
    pub installed: Installed,
    /// Where brokers keep their data.
    pub scratch: PathBuf,
}

impl Context {
    /// Measures once. `rate` is that of a case at half load, records a second.
    pub fn measure(&self, step: &Step, rate: Option<f64>) -> Result<Value, BenchError> {
        let Step { case, system, .. } = step;
        let settings: &[_] = if matches!(case.kind, Kind::Retention(_)) { &KAFKA_RETENTION } else { &[] };
        let broker = Broker::start(*system, case.nodes, &self.installed, &self.scratch, settings)?;
        let disk_empty = broker.disk_bytes();
        let started = Instant::now();
        if system.speaks_kafka() {
            create_topic(&broker, case, *system)?;
        }
        let created = started.elapsed();
        let mut line = match case.kind {
            Kind::Produce if case.client == ClientKind::ProducerPerformance => self.producer_performance(case, &broker)?,
            Kind::Produce => self.produce(case, *system, &broker, rate)?,
            Kind::Retention(bytes) => self.retention(case, *system, &broker, bytes)?,
            Kind::Consume(bytes) => self.consumer_performance(case, *system, &broker, bytes)?,
            Kind::Behind { bytes, cold } => self.behind(case, *system, &broker, rate, bytes, cold)?,
        };
        let disk = broker.disk_bytes();
        line["step"] = json!(step.name());
        line["case"] = json!(case.name());
        line["system"] = json!(system.name());
        line["repeat"] = json!(step.repeat);
        line["durability"] = json!(system.durability(case.nodes));
        line["rate"] = json!(rate);
        line["start_up_ms"] = json!(broker.start_up.as_secs_f64() * 1e3);
        line["create_topic_ms"] = json!(created.as_secs_f64() * 1e3);
        line["disk_bytes"] = json!(disk);
        line["disk_bytes_empty"] = json!(disk_empty);
        line["broker"]["peak_rss_bytes"] = json!(broker.usage()?.peak_rss);
        if system.speaks_kafka() && matches!(case.kind, Kind::Produce) {
            self.hold_against_offsets(case, &broker, &mut line)?;
        }
        Ok(line)
    }

    fn produce(&self, case: &Case, system: System, broker: &Broker, rate: Option<f64>) -> Result<Value, BenchError> {
        let client = Client::start(self.load(case, system, broker, rate, 0), &self.scratch, "client")?;
        let length = Duration::from_secs_f64(case.warm_up + case.seconds);
        figures(case, &client.window(broker, length, PATIENCE)?)
    }

    /// The command of a driver; `total` records instead of a window if not 0.
    fn load(&self, case: &Case, system: System, broker: &Broker, rate: Option<f64>, total: u64) -> Command {
        let mut command = match case.client {
            ClientKind::Librdkafka => {
                // Only its own words.
                let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "compare".into()));
                command.arg("librdkafka");
                command
            }
            _ => self.java("Load", case.producers),
        };
        let client = if system.speaks_kafka() { "kafka" } else { "nats" };
        let (rate, doubling) = match case.load {
            Load::Rising => (FIRST_RATE, case.warm_up),
            _ => (rate.unwrap_or(0.0), 0.0),
        };
        command.arg(format!("client={client}")).arg(format!("topic={TOPIC}")).arg(format!("bootstrap={}", broker.bootstrap));
        command.arg(format!("producers={}", case.producers)).arg(format!("partitions={}", case.partitions));
        command.arg(format!("record_bytes={}", case.record_bytes)).arg(format!("rate={rate}"));
        command.arg(format!("doubling={doubling}"));
        command.arg(format!("warm_up={}", case.warm_up)).arg(format!("seconds={}", case.seconds)).arg(format!("total={total}"));
        command
    }

    /// A client JVM whose heap holds the 32 MiB that each producer may queue four times, so that its collector does not run all the time.
    fn java(&self, class: &str, producers: u32) -> Command {
        let heap = 512 + 128 * producers;
        let mut command = Command::new("java");
        command.args(["-XX:+UseParallelGC", &format!("-Xms{heap}m"), &format!("-Xmx{heap}m"), &format!("-Xmn{}m", heap * 2 / 5), "-cp"]);
        command.arg(self.installed.class_path()).arg(class);
        command
    }

    /// Kafka's own load generator; its summary is its last line but those of the metrics that it was not asked for.
    fn producer_performance(&self, case: &Case, broker: &Broker) -> Result<Value, BenchError> {
        // As many records as most machines take some seconds for.
        let records = (case.seconds * 100e6 / f64::from(case.record_bytes)) as u64;
        let mut command = self.java("org.apache.kafka.tools.ProducerPerformance", 1);
        command.args(["--bootstrap-server", &broker.bootstrap, "--topic", TOPIC, "--throughput", "-1"]);
        command.args(["--num-records", &records.to_string(), "--record-size", &case.record_bytes.to_string()]);
        let (before, started) = (broker.usage()?, Instant::now());
        let client = Client::start(command, &self.scratch, "client")?;
        let mut summary = String::new();
        let mut used = client.usage()?;
        while let Some(line) = client.line(PATIENCE)? {
            used = client.usage().unwrap_or(used);
            summary = line;
        }
        client.finish()?;
        let (broker, seconds) = (broker.usage()?.since(before), started.elapsed().as_secs_f64());
        let unread = || BenchError::Host(format!("ProducerPerformance ended with {summary:?}"));
        let rate = number_before(&summary, " records/sec").ok_or_else(unread)?;
        Ok(json!({
            "records": records, "acknowledged": records, "errors": 0, "seconds": seconds, "records_per_second": rate,
            "bytes_per_second": rate * f64::from(case.record_bytes), "summary": summary,
            "broker": broker.to_json(), "client": used.to_json(), "broker_cpu_us_per_record": broker.cpu_seconds * 1e6 / records as f64,
        }))
    }

    /// Kafka's own reading tool; its last line has the figures that the one before names.
    fn consumer_performance(&self, case: &Case, system: System, broker: &Broker, bytes: u64) -> Result<Value, BenchError> {
        let total = bytes / (u64::from(case.record_bytes) + KEY_BYTES as u64);
        self.fill(case, system, broker, total)?;
        let mut command = self.java("org.apache.kafka.tools.ConsumerPerformance", 4);
        command.args(["--bootstrap-server", &broker.bootstrap, "--topic", TOPIC, "--group", "reading", "--timeout", "60000"]);
        command.args(["--messages", &total.to_string()]);
        let (before, started) = (broker.usage()?, Instant::now());
        let client = Client::start(command, &self.scratch, "consumer")?;
        let (mut names, mut figures) = (String::new(), String::new());
        let mut used = client.usage()?;
        while let Some(line) = client.line(PATIENCE)? {
            used = client.usage().unwrap_or(used);
            names = std::mem::replace(&mut figures, line);
        }
        client.finish()?;
        let (broker, seconds) = (broker.usage()?.since(before), started.elapsed().as_secs_f64());
        let figure = |name: &str| {
            let at = names.split(", ").position(|found| found == name)?;
            figures.split(", ").nth(at)?.parse::<f64>().ok()
        };
        let unread = || BenchError::Host(format!("ConsumerPerformance ended with {figures:?}"));
        // Without the time in which the group came about.
        let (records, rate) = figure("data.consumed.in.nMsg").zip(figure("fetch.nMsg.sec")).ok_or_else(unread)?;
        if records < total as f64 {
            return Err(BenchError::Host(format!("ConsumerPerformance read {records} of {total} records")));
        }
        Ok(json!({
            "records": records, "errors": 0, "seconds": seconds, "records_per_second": rate, "bytes_per_second": rate * f64::from(case.record_bytes),
            "summary": figures, "broker": broker.to_json(), "client": used.to_json(), "broker_cpu_us_per_record": broker.cpu_seconds * 1e6 / records,
        }))
    }

    /// Writes at least so many records.
    fn fill(&self, case: &Case, system: System, broker: &Broker, total: u64) -> Result<(), BenchError> {
        let by_java = Case { client: ClientKind::Java, ..case.clone() };
        let filling = Client::start(self.load(&by_java, system, broker, None, total), &self.scratch, "filling")?;
        filling.window(broker, CATCH_UP, PATIENCE)?;
        Ok(())
    }

    fn retention(&self, case: &Case, system: System, broker: &Broker, bytes: u64) -> Result<Value, BenchError> {
        let kept = bytes * u64::from(case.partitions);
        let total = 3 * kept / (u64::from(case.record_bytes) + KEY_BYTES as u64);
        let stopping = AtomicBool::new(false);
        thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut most = 0;
                while !stopping.load(Ordering::Relaxed) {
                    most = most.max(broker.disk_bytes());
                    thread::sleep(Duration::from_millis(200));
                }
                most
            });
            let measured = Client::start(self.load(case, system, broker, None, total), &self.scratch, "client")
                .and_then(|client| client.window(broker, CATCH_UP, PATIENCE))
                .and_then(|window| figures(case, &window));
            // What is past the retention then stays.
            thread::sleep(Duration::from_secs_f64(case.warm_up));
            stopping.store(true, Ordering::Relaxed);
            let most = watch.join().map_err(|_| BenchError::Host("the watching thread panicked".into()))?;
            let mut line = measured?;
            line["retention_bytes_in_all"] = json!(kept);
            line["disk_bytes_most"] = json!(most);
            Ok(line)
        })
    }

    fn behind(&self, case: &Case, system: System, broker: &Broker, rate: Option<f64>, bytes: u64, cold: bool) -> Result<Value, BenchError> {
        let total = bytes / (u64::from(case.record_bytes) + KEY_BYTES as u64);
        self.fill(case, system, broker, total)?;
        if cold {
            rustix::fs::sync();
            fs::write("/proc/sys/vm/drop_caches", "1").map_err(BenchError::io("dropping the page cache"))?;
        }
        let producing = Client::start(self.load(case, system, broker, rate, 0), &self.scratch, "client")?;
        producing.event("begin", PATIENCE)?;
        let mut command = self.java("CatchUp", 8);
        command.arg(format!("topic={TOPIC}")).arg(format!("bootstrap={}", broker.bootstrap)).arg(format!("partitions={}", case.partitions));
        let consuming = Client::start(command, &self.scratch, "consumer")?;
        let (produced, consumed) = thread::scope(|scope| {
            let length = Duration::from_secs_f64(case.seconds);
            let produced = scope.spawn(move || producing.window_begun(broker, length, PATIENCE));
            let consumed = consuming.window(broker, CATCH_UP, PATIENCE);
            (produced.join(), consumed)
        });
        let produced = produced.map_err(|_| BenchError::Host("a measuring thread panicked".into()))??;
        let consumed = consumed?;
        let mut line = figures(case, &produced)?;
        let (read, seconds) = (consumed.result["bytes"].as_f64(), consumed.result["seconds"].as_f64());
        line["catch_up_seconds"] = json!(seconds);
        line["catch_up_bytes_per_second"] = json!(read.zip(seconds).map(|(read, seconds)| read / seconds));
        line["consumer"] = consumed.client.to_json();
        Ok(line)
    }

    /// What the broker says that it has must cover what it has acknowledged; and its files are compared with that.
    fn hold_against_offsets(&self, case: &Case, broker: &Broker, line: &mut Value) -> Result<(), BenchError> {
        let mut config = ClientConfig::new();
        let consumer: BaseConsumer = config.set("bootstrap.servers", &broker.bootstrap).create().map_err(kafka("making a consumer"))?;
        if case.nodes > 1 {
            line["fewest_in_sync"] = json!(fewest_in_sync(&consumer)?);
        }
        let mut stored = 0;
        for partition in 0..case.partitions as i32 {
            let (low, high) = watermarks(&consumer, partition)?;
            stored += (high - low) as u64;
        }
        line["records_stored"] = json!(stored);
        let keys = if case.client == ClientKind::ProducerPerformance { 0.0 } else { KEY_BYTES };
        let bytes = stored as f64 * (f64::from(case.record_bytes) + keys);
        line["disk_bytes_per_byte"] = json!((line["disk_bytes"].as_f64().unwrap_or(0.0)) / bytes);
        match line["acknowledged"].as_u64() {
            Some(acknowledged) if acknowledged > stored => {
                Err(BenchError::Host(format!("{acknowledged} records were acknowledged and {stored} are there")))
            }
            _ => Ok(()),
        }
    }
}

/// Of the partition that has the fewest replicas in sync: on so many, at least, is what was acknowledged last.
fn fewest_in_sync(consumer: &BaseConsumer) -> Result<usize, BenchError> {
    let metadata = consumer.fetch_metadata(Some(TOPIC), PATIENCE).map_err(kafka("asking for replicas in sync"))?;
    let in_sync = metadata.topics().iter().flat_map(|topic| topic.partitions()).map(|partition| partition.isr().len());
    in_sync.min().ok_or_else(|| BenchError::Host("the topic has no partitions any more".into()))
}

/// First and next offset of a partition. On a loaded machine a Kafka may have lost its own lease for a while.
fn watermarks(consumer: &BaseConsumer, partition: i32) -> Result<(i64, i64), BenchError> {
    let asked = Instant::now();
    loop {
        match consumer.fetch_watermarks(TOPIC, partition, PATIENCE) {
            Err(_) if asked.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(100)),
            answer => return answer.map_err(kafka("asking for offsets")),
        }
    }
}

/// The client's result beside what was used in the window.
fn figures(case: &Case, window: &Window) -> Result<Value, BenchError> {
    let mut line = window.result.clone();
    let errors = line["errors"].as_u64().unwrap_or(0);
    if errors > 0 {
        return Err(BenchError::Undelivered { failed: errors, first: line["first_error"].as_str().unwrap_or_default().into() });
    }
    let (records, seconds) = (line["records"].as_f64().unwrap_or(0.0), line["seconds"].as_f64().unwrap_or(0.0));
    // A machine that is busy with other things may have none in a short window; that no record came through at all is an error.
    if records == 0.0 && line["acknowledged"].as_u64().unwrap_or(0) == 0 {
        return Err(BenchError::Host("no record was acknowledged".into()));
    }
    let rate = if matches!(case.load, Load::Rising) { line["sustained"].as_f64().unwrap_or(0.0) } else { records / seconds };
    line["records_per_second"] = json!(rate);
    line["bytes_per_second"] = json!(rate * f64::from(case.record_bytes));
    line["broker"] = window.broker.to_json();
    line["client"] = window.client.to_json();
    line["broker_cpu_us_per_record"] = json!(window.broker.cpu_seconds * 1e6 / records);
    let cores = thread::available_parallelism().map_or(1, usize::from) as f64;
    line["broker_cpu_share"] = json!(window.broker.cpu_seconds / seconds / cores);
    line["client_cpu_share"] = json!(window.client.cpu_seconds / seconds / cores);
    line["other_cpu_share"] = json!((window.machine_cpu_seconds - window.broker.cpu_seconds - window.client.cpu_seconds) / seconds / cores);
    if let Some(object) = line.as_object_mut() {
        object.remove("event");
        object.remove("first_error");
    }
    Ok(line)
}

fn create_topic(broker: &Broker, case: &Case, system: System) -> Result<(), BenchError> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &broker.bootstrap);
    let admin: AdminClient<DefaultClientContext> = config.create().map_err(kafka("making an admin client"))?;
    let retention: Vec<(&str, String)> = match case.kind {
        Kind::Retention(bytes) => vec![("retention.bytes", bytes.to_string()), ("segment.bytes", (bytes / 4).max(1 << 20).to_string())],
        _ => Vec::new(),
    };
    let mut topic = NewTopic::new(TOPIC, case.partitions as i32, TopicReplication::Fixed(i32::from(case.nodes)));
    if case.nodes > 1 {
        topic = topic.set("min.insync.replicas", MIN_IN_SYNC);
    }
    for (name, value) in system.topic_settings() {
        topic = topic.set(name, value);
    }
    for (name, value) in &retention {
        topic = topic.set(name, value);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BenchError::io("making a runtime"))?;
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
    let created = runtime.block_on(admin.create_topics([&topic], &options)).map_err(kafka("creating the topic"))?;
    for result in created {
        result.map_err(|(name, code)| BenchError::Host(format!("creating the topic {name}: {code}")))?;
    }
    // It is there once every partition has a leader, with all replicas in sync.
    let asked = Instant::now();
    while asked.elapsed() < PATIENCE {
        let metadata = admin.inner().fetch_metadata(Some(TOPIC), PATIENCE).map_err(kafka("asking for the topic"))?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let whole = partitions.filter(|partition| partition.leader() >= 0 && partition.isr().len() == usize::from(case.nodes)).count();
        if whole == case.partitions as usize {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err(BenchError::Host(format!("{} partitions had not all leaders and replicas in time", case.partitions)))
}

fn kafka(what: &'static str) -> impl Fn(rdkafka::error::KafkaError) -> BenchError {
    move |error| BenchError::Host(format!("{what}: {error}"))
}

/// The number that stands before `unit`.
fn number_before(line: &str, unit: &str) -> Option<f64> {
    let (before, _) = line.split_once(unit)?;
    before.split_whitespace().last()?.parse().ok()
}

/// Whether a case needs the rate of another one.
pub fn half_of(case: &Case) -> Option<&str> {
    match &case.load {
        Load::HalfOf(of) => Some(of),
        Load::Full | Load::Rising => None,
    }
}

/// A directory for brokers, empty.
pub fn scratch(directory: &Path) -> Result<PathBuf, BenchError> {
    fs::create_dir_all(directory).map_err(BenchError::io(format!("creating {}", directory.display())))?;
    corelane::cli::bench::limits::check_directory(directory)?;
    Ok(directory.into())
}
