//! The cases: each measures some figures and their references once.

use std::thread;
use std::time::{Duration, Instant};

use super::{Collected, Context};
use crate::cli::bench::consuming::{self, Start};
use crate::cli::bench::limits::network;
use crate::cli::bench::measured::{Measured, RunClock};
use crate::cli::bench::outcome::Used;
use crate::cli::bench::sizes::Sizes;
use crate::cli::bench::workload::{BrokerArgs, Target, WorkloadArgs};
use crate::cli::bench::{BenchError, producing, reference};
use crate::types::Durability;

/// A case and the figures that it measures.
#[derive(Clone, Copy)]
pub struct Case {
    /// For people.
    pub what: &'static str,
    /// By name.
    pub figures: &'static [&'static str],
    /// Measures once.
    pub run: fn(&Context, &mut Collected) -> Result<(), BenchError>,
}

/// All cases, in the order in which they are run.
pub const CASES: &[Case] = &[
    Case { what: "an empty broker, and a consumer that waits", figures: &["start_empty", "rss_idle", "cpu_tail_consumer"], run: idle },
    Case {
        what: "latency with one record in flight",
        figures: &["latency_durable_p50", "latency_durable_p99", "latency_memory_p50"],
        run: latency,
    },
    Case { what: "fifty connections with one record in flight each", figures: &["group_commit_rate"], run: group_commit },
    Case {
        what: "1 KiB records into 1 partition and into 1,000",
        figures: &["produce_1p_1k", "produce_1000p_1k", "rss_loaded"],
        run: throughput,
    },
    Case { what: "100-byte records", figures: &["produce_1p_100b"], run: small_records },
    Case { what: "1 MiB records", figures: &["write_amplification_1m"], run: large_records },
    Case { what: "reading from memory and from disk", figures: &["consume_tail", "consume_cold"], run: reading },
    Case { what: "restart after SIGKILL with 4 GiB", figures: &["restart_4gib"], run: restart },
    Case { what: "CPU per record with 1 and 2 shards", figures: &["cpu_per_record_shards"], run: cpu_per_record },
];

/// Memory budget of the brokers, bytes, and as a setting.
const MEMORY: (f64, &str) = ((1_u64 << 30) as f64, "1G");
const MIB: f64 = 1024.0 * 1024.0;
/// Batches of the throughput cases: the references write blocks of this size.
const LARGE_BATCH: usize = 1 << 20;
/// Bytes that surely are still in the broker's memory.
const IN_MEMORY: u64 = 64 << 20;

impl Context {
    fn broker(&self) -> BrokerArgs {
        BrokerArgs { dir: self.directory.clone(), memory: Some(MEMORY.1.into()), ..BrokerArgs::default() }
    }
}

/// One run of producers against a broker.
fn produced(context: &Context, target: &Target, workload: &WorkloadArgs) -> Result<Measured, BenchError> {
    let mut workload = workload.clone();
    workload.duration = context.seconds(workload.duration);
    workload.warm_up = context.seconds(workload.warm_up);
    let topic = target.create_topic_now(&workload)?;
    let clock = RunClock::start(workload.warm_up(), workload.duration());
    let measured = producing::produce(&target.address, &topic, &workload, clock)?;
    measured.check()?;
    Ok(measured)
}

fn one_in_flight(durability: Durability) -> WorkloadArgs {
    WorkloadArgs { record_size: Sizes::fixed(100), in_flight: Some(1), durability, warm_up: 0.5, duration: 3.0, ..WorkloadArgs::default() }
}

/// As fast as it goes, in large batches.
fn full_speed(record_bytes: usize, partitions: u32, duration: f64) -> WorkloadArgs {
    WorkloadArgs {
        record_size: Sizes::fixed(record_bytes),
        partitions,
        batch_size: LARGE_BATCH,
        warm_up: 1.0,
        duration,
        ..WorkloadArgs::default()
    }
}

fn latency(context: &Context, collected: &mut Collected) -> Result<(), BenchError> {
    let length = Duration::from_secs_f64(context.seconds(1.0));
    let round_trip = network::ping_pong(length).map_err(BenchError::io("loopback ping-pong"))?.quantile_us(0.5);
    let synced = reference::write_and_sync(&context.directory)?.quantile_us(0.5);
    let target = Target::open(&context.broker())?;
    let durable = produced(context, &target, &one_in_flight(Durability::Durable))?.from_actual;
    let memory = produced(context, &target, &one_in_flight(Durability::Memory))?.from_actual;
    drop(target);
    let redis = match &context.redis {
        None => None,
        Some(redis) => {
            let (warm_up, duration) = (Duration::from_secs_f64(context.seconds(0.5)), Duration::from_secs_f64(context.seconds(3.0)));
            Some(redis.add(1, &[7; 100], warm_up, duration).map_err(BenchError::io("Redis"))?.0)
        }
    };
    let spinning = Target::open(&BrokerArgs { spin: Some(200), ..context.broker() })?;
    let spun = produced(context, &spinning, &one_in_flight(Durability::Durable))?.from_actual;
    drop(spinning);
    let p50 = durable.quantile_us(0.5);
    collected.add("latency_durable_p50", p50, Some(round_trip + synced));
    collected.add_second("latency_durable_p50", p50, redis.as_ref().map(|latencies| latencies.quantile_us(0.5)));
    collected.note("latency_durable_p50", "p50 with --spin 200, us", spun.quantile_us(0.5));
    collected.add("latency_durable_p99", durable.quantile_us(0.99), redis.as_ref().map(|latencies| latencies.quantile_us(0.99)));
    collected.add("latency_memory_p50", memory.quantile_us(0.5), Some(round_trip));
    Ok(())
}

fn group_commit(context: &Context, collected: &mut Collected) -> Result<(), BenchError> {
    let workload =
        WorkloadArgs { producers: 50, partitions: 50, in_flight: Some(1), warm_up: 0.5, duration: 4.0, ..WorkloadArgs::default() };
    let target = Target::open(&context.broker())?;
    let rate = produced(context, &target, &workload)?.record_rate();
    drop(target);
    let redis = match &context.redis {
        None => None,
        Some(redis) => {
            let (warm_up, duration) = (Duration::from_secs_f64(context.seconds(0.5)), Duration::from_secs_f64(context.seconds(4.0)));
            let (latencies, seconds) = redis.add(50, &[7; 1024], warm_up, duration).map_err(BenchError::io("Redis"))?;
            Some(latencies.count() as f64 / seconds)
        }
    };
    collected.add("group_commit_rate", rate, redis);
    Ok(())
}

fn throughput(context: &Context, collected: &mut Collected) -> Result<(), BenchError> {
    let limit = reference::sequential_write(&context.directory)?;
    let target = Target::open(&context.broker())?;
    let used = Used::start(&target)?;
    let one = produced(context, &target, &full_speed(1024, 1, 12.0))?;
    collected.add("produce_1p_1k", one.byte_rate() / 1e6, Some(limit / 1e6));
    note_amplification(collected, "1 KiB records", &target, used, &one)?;
    drop(target);
    let target = Target::open(&context.broker())?;
    let thousand = produced(context, &target, &full_speed(1024, 1000, 12.0))?;
    collected.add("produce_1000p_1k", thousand.byte_rate() / 1e6, Some(one.byte_rate() / 1e6));
    if let Some(usage) = target.usage()? {
        collected.add("rss_loaded", usage.peak_rss as f64 / MIB, Some(MEMORY.0 / MIB));
    }
    Ok(())
}

fn small_records(context: &Context, collected: &mut Collected) -> Result<(), BenchError> {
    let target = Target::open(&context.broker())?;
    let used = Used::start(&target)?;
    let measured = produced(context, &target, &full_speed(100, 1, 8.0))?;
    collected.add("produce_1p_100b", measured.record_rate(), Some(2.5e6));
    note_amplification(collected, "100-byte records", &target, used, &measured)
}

fn large_records(context: &Context, collected: &mut Collected) -> Result<(), BenchError> {
    let target = Target::open(&context.broker())?;
    let used = Used::start(&target)?;
    let measured = produced(context, &target, &full_speed(LARGE_BATCH, 1, 4.0))?;
    let amplification = amplification(&target, used, &measured)?;
    collected.add("write_amplification_1m", amplification, Some(1.0));
    Ok(())
}

fn note_amplification(collected: &mut Collected, what: &str, target: &Target, used: Used, measured: &Measured) -> Result<(), BenchError> {
    let amplification = amplification(target, used, measured)?;
    collected.note("write_amplification_1m", format!("bytes/byte, {what}"), amplification);
    Ok(())
}

/// Bytes that the broker made the device write, over the bytes of the values that it acknowledged, once it is at rest.
fn amplification(target: &Target, used: Used, measured: &Measured) -> Result<f64, BenchError> {
    let mut written = 0;
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        thread::sleep(Duration::from_millis(300));
        let now = used.broker_so_far(target)?.device_written;
        if now == written || Instant::now() > deadline {
            return Ok(now as f64 / measured.bytes_in_all.max(1) as f64);
        }
        written = now;
    }
}

fn reading(context: &Context, collected: &mut Collected) -> Result<(), BenchError> {
    let workload = full_speed(1024, 1, 5.0);
    let target = Target::open(&context.broker())?;
    let topic = target.create_topic_now(&workload)?;
    let records = producing::fill(&target.address, &topic, &workload, IN_MEMORY)?;
    let clock = RunClock::start(Duration::from_secs_f64(context.seconds(0.5)), Duration::from_secs_f64(context.seconds(4.0)));
    let tail = consuming::consume(&target.address, &topic, &workload, clock, Start::Again { records })?;
    tail.check()?;
    drop(target);
    collected.add("consume_tail", tail.byte_rate() / 1e6, Some(reference::one_way()? / 1e6));

    let limit = reference::sequential_read(&context.directory)?;
    let target = Target::open(&context.broker())?;
    let topic = target.create_topic_now(&workload)?;
    let records = producing::fill(&target.address, &topic, &workload, (4.0 * context.scale.min(1.0) * (1_u64 << 30) as f64) as u64)?;
    let target = target.kill_and_restart(&context.broker())?;
    let clock = RunClock::start(Duration::ZERO, Duration::from_secs(60));
    let cold = consuming::consume(&target.address, &topic, &workload, clock, Start::Earliest { records })?;
    cold.check()?;
    collected.add("consume_cold", cold.byte_rate() / 1e6, Some(limit / 1e6));
    Ok(())
}

fn idle(context: &Context, collected: &mut Collected) -> Result<(), BenchError> {
    let target = Target::open(&BrokerArgs { shards: Some(2), ..context.broker() })?;
    if let Some(start_up) = target.start_up() {
        collected.add("start_empty", start_up.as_secs_f64() * 1e3, Some(200.0));
    }
    thread::sleep(Duration::from_millis(500));
    if let Some(usage) = target.usage()? {
        collected.add("rss_idle", usage.rss as f64 / MIB, Some(48.0));
    }
    let workload = WorkloadArgs::default();
    let topic = target.create_topic_now(&workload)?;
    let clock = RunClock::start(Duration::from_millis(500), Duration::from_secs_f64(context.seconds(4.0)));
    let share = thread::scope(|scope| {
        let waiting = scope.spawn(|| consuming::consume(&target.address, &topic, &workload, clock, Start::Tail));
        thread::sleep(Duration::from_nanos(clock.window_start));
        let used = Used::start(&target)?;
        let begun = Instant::now();
        thread::sleep(Duration::from_secs_f64(clock.seconds() * 0.9));
        let share = used.broker_so_far(&target)?.cpu_seconds / begun.elapsed().as_secs_f64();
        waiting.join().unwrap_or_else(|_| Err(BenchError::Host("a consumer's thread panicked".into())))?;
        Ok::<_, BenchError>(share)
    })?;
    collected.add("cpu_tail_consumer", share * 100.0, Some(1.0));
    Ok(())
}

fn restart(context: &Context, collected: &mut Collected) -> Result<(), BenchError> {
    let workload = full_speed(1024, 100, 1.0);
    let target = Target::open(&context.broker())?;
    let topic = target.create_topic_now(&workload)?;
    producing::fill(&target.address, &topic, &workload, (4.0 * context.scale.min(1.0) * (1_u64 << 30) as f64) as u64)?;
    let target = target.kill_and_restart(&context.broker())?;
    if let Some(start_up) = target.start_up() {
        collected.add("restart_4gib", start_up.as_secs_f64() * 1e3, Some(1500.0));
    }
    Ok(())
}

/// The same fixed rate and batches for both, so that only the number of shards differs: batches are full before they have lingered. Closed by a short linger they
/// come in one request for each connection, and two shards would get twice the requests.
fn cpu_per_record(context: &Context, collected: &mut Collected) -> Result<(), BenchError> {
    let workload = WorkloadArgs {
        partitions: 8,
        producers: 2,
        rate: Some(50_000.0),
        linger_ms: 100.0,
        warm_up: 0.5,
        duration: 4.0,
        ..WorkloadArgs::default()
    };
    let per_record_us = |shards: u32| -> Result<f64, BenchError> {
        let target = Target::open(&BrokerArgs { shards: Some(shards), ..context.broker() })?;
        let used = Used::start(&target)?;
        let measured = produced(context, &target, &workload)?;
        let records = measured.bytes_in_all as f64 / 1024.0;
        Ok(used.broker_so_far(&target)?.cpu_seconds * 1e6 / records)
    };
    let one = per_record_us(1)?;
    let two = per_record_us(2)?;
    collected.add("cpu_per_record_shards", two, Some(one));
    Ok(())
}
