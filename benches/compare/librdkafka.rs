//! The driver on librdkafka: the same as `java/Load.java`, with the same arguments and lines.
//!
//! librdkafka's own settings but for one: its queue may hold as many bytes as the Java client's, 32 MiB, instead of 1 GiB, since fifty
//! of them would not fit the machine. Partitions are chosen by the Java client's hash.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use corelane::cli::bench::histogram::Latencies;
use corelane::cli::bench::random::Random;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use serde_json::{Value, json};

/// How long records that were sent in the window may take after its end.
const DRAIN: Duration = Duration::from_secs(10);
/// A record that is late by less than this is sent with those before it: waking up for each would cost the brokers' cores.
const TICK: Duration = Duration::from_micros(250);
/// What a producer queues at most, KiB.
const QUEUE_KIB: u64 = 32 * 1024;
/// The warm-up may take so many times as long as it should.
const MOST_WARM_UPS: u64 = 3;
/// Threads that send at a fixed rate.
const MOST_PACERS: usize = 2;
/// How long a producer whose queue is full waits for room at a time.
const FULL: Duration = Duration::from_millis(1);

/// Moments as nanoseconds from the start.
#[derive(Clone, Copy)]
struct Run {
    start: Instant,
    begin: u64,
    end: u64,
}

impl Run {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

/// What has become of one producer's records.
struct Ledger {
    run: Run,
    acknowledged: AtomicU64,
    in_window: AtomicU64,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
    latencies: Mutex<Latencies>,
}

#[derive(Clone)]
struct Told(Arc<Ledger>);

impl ClientContext for Told {}

impl ProducerContext for Told {
    /// When the record was meant to be sent.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, intended: usize) {
        let ledger = &self.0;
        match result {
            Ok(_) => {
                ledger.acknowledged.fetch_add(1, Ordering::Relaxed);
                let intended = intended as u64;
                if (ledger.run.begin..ledger.run.end).contains(&intended) {
                    ledger.in_window.fetch_add(1, Ordering::Relaxed);
                    let latency = Duration::from_nanos(ledger.run.now() - intended);
                    ledger.latencies.lock().expect("no holder panics").record(latency);
                }
            }
            Err((error, _)) => {
                ledger.errors.fetch_add(1, Ordering::Relaxed);
                ledger.first_error.lock().expect("no holder panics").get_or_insert_with(|| error.to_string());
            }
        }
    }
}

/// Runs it with arguments of the form name=value.
pub fn run(words: impl Iterator<Item = String>) -> Result<(), String> {
    let arguments: BTreeMap<String, String> =
        words.filter_map(|word| word.split_once('=').map(|(name, value)| (name.into(), value.into()))).collect();
    let text = |name: &str| arguments.get(name).ok_or_else(|| format!("the argument {name}=... is missing"));
    let number = |name: &str| text(name)?.parse::<f64>().map_err(|error| format!("{name}: {error}"));
    let nanoseconds = |seconds: f64| (seconds * 1e9) as u64;
    let (warm_up, length) = (nanoseconds(number("warm_up")?), nanoseconds(number("seconds")?));
    let start = Instant::now();
    let (producers, rate) = (number("producers")? as usize, number("rate")?);
    // Only at a fixed rate is it known before when the window begins; only there latencies are taken.
    let run = match rate > 0.0 {
        true => Run { start, begin: warm_up, end: warm_up + length },
        false => Run { start, begin: u64::MAX, end: u64::MAX },
    };
    let (mut ledgers, mut all_producers) = (Vec::new(), Vec::new());
    for _ in 0..producers {
        let ledger = Arc::new(Ledger {
            run,
            acknowledged: AtomicU64::new(0),
            in_window: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            first_error: Mutex::new(None),
            latencies: Mutex::new(Latencies::new()),
        });
        ledgers.push(ledger.clone());
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", text("bootstrap")?)
            .set("partitioner", "murmur2_random")
            .set("queue.buffering.max.kbytes", QUEUE_KIB.to_string());
        let producer: ThreadedProducer<Told> = config.create_with_context(Told(ledger)).map_err(|error| error.to_string())?;
        all_producers.push(producer);
    }
    let sender = Arc::new(Sender {
        producers: all_producers,
        topic: text("topic")?.clone(),
        value: Random::new(1).bytes(number("record_bytes")? as usize),
        stopping: AtomicBool::new(false),
    });
    for index in 0..if rate > 0.0 { producers.min(MOST_PACERS) } else { producers } {
        let sender = sender.clone();
        thread::spawn(move || match rate > 0.0 {
            true => sender.at_rate(run, rate, index),
            false => sender.always(run, index),
        });
    }
    let sum = |figure: fn(&Ledger) -> &AtomicU64| ledgers.iter().map(|ledger| figure(ledger).load(Ordering::Relaxed)).sum::<u64>();
    let acknowledged = || sum(|ledger| &ledger.acknowledged);
    let sleep_until = |moment: u64| thread::sleep(Duration::from_nanos(moment.saturating_sub(run.now())));
    sleep_until(warm_up);
    let mut begin = warm_up;
    if rate == 0.0 {
        // Half of what the queues hold is to be acknowledged, unless that takes too long.
        let wanted = producers as u64 * QUEUE_KIB * 1024 / 2 / number("record_bytes")? as u64;
        while acknowledged() < wanted && run.now() < MOST_WARM_UPS * warm_up {
            thread::sleep(Duration::from_millis(5));
        }
        begin = run.now();
    }
    println!("{}", json!({"event": "begin"}));
    let (began_at, at_begin) = (run.now(), acknowledged());
    let (mut per_second, mut last) = (Vec::new(), at_begin);
    for second in 1..=length / 1_000_000_000 {
        sleep_until(begin + second * 1_000_000_000);
        let now = acknowledged();
        per_second.push(now - last);
        last = now;
    }
    sleep_until(begin + length);
    let (records, seconds) = (acknowledged() - at_begin, (run.now() - began_at) as f64 / 1e9);
    println!("{}", json!({"event": "end"}));
    let mut all = Latencies::new();
    let mut missing = 0;
    if rate > 0.0 {
        let due = (rate * number("seconds")?) as u64 - MOST_PACERS as u64;
        let settled = || sum(|ledger| &ledger.in_window);
        while settled() < due && run.now() < run.end + DRAIN.as_nanos() as u64 {
            thread::sleep(Duration::from_millis(5));
        }
        ledgers.iter().for_each(|ledger| all.merge(&ledger.latencies.lock().expect("no holder panics")));
        missing = due.saturating_sub(settled());
        // They have waited at least for so long.
        (0..missing).for_each(|_| all.record(Duration::from_nanos(run.now() - run.end)));
    }
    sender.stopping.store(true, Ordering::Relaxed);
    let first = ledgers.iter().find_map(|ledger| ledger.first_error.lock().expect("no holder panics").clone());
    let latency = if all.count() > 0 { all.to_json() } else { Value::Null };
    println!(
        "{}",
        json!({
            "event": "result", "seconds": seconds, "records": records, "missing": missing, "errors": sum(|ledger| &ledger.errors),
            "acknowledged": acknowledged(), "first_error": first.unwrap_or_default(), "per_second": per_second, "latency": latency,
        })
    );
    // What it has used is read from outside at the end of the window; until then the process is to be there.
    thread::sleep(Duration::from_millis(200));
    // What is still queued is not waited for: it belongs to no window.
    std::process::exit(0)
}

/// The producers and what they send.
struct Sender {
    producers: Vec<ThreadedProducer<Told>>,
    topic: String,
    value: Vec<u8>,
    stopping: AtomicBool,
}

impl Sender {
    fn always(&self, run: Run, index: usize) {
        let mut random = Random::new(index as u64);
        while !self.stopping() {
            self.send(index, &mut random, run.now());
        }
    }

    /// Every `pacers`-th record of the schedule from `first` on, its producers taking turns.
    fn at_rate(&self, run: Run, rate: f64, first: usize) {
        let mut random = Random::new(first as u64);
        let pacers = self.producers.len().min(MOST_PACERS);
        for n in (first as u64..).step_by(pacers) {
            let intended = (n as f64 * 1e9 / rate) as u64;
            if self.stopping() || intended >= run.end {
                return;
            }
            if intended > run.now() {
                thread::sleep(TICK.max(Duration::from_nanos(intended - run.now().min(intended))));
            }
            self.send(n as usize % self.producers.len(), &mut random, intended);
        }
    }

    /// Waits while the queue is full.
    fn send(&self, index: usize, random: &mut Random, intended: u64) {
        let key = random.next().to_le_bytes();
        let producer = &self.producers[index];
        let mut record = BaseRecord::with_opaque_to(&self.topic, intended as usize).key(&key).payload(&self.value);
        while let Err((error, again)) = producer.send(record) {
            if !matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) {
                let ledger = &producer.context().0;
                ledger.errors.fetch_add(1, Ordering::Relaxed);
                ledger.first_error.lock().expect("no holder panics").get_or_insert_with(|| error.to_string());
                return;
            }
            if self.stopping() {
                return;
            }
            thread::sleep(FULL);
            record = again;
        }
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
