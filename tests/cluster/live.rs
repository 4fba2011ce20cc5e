//! What load feels of a node that catches up under the default rate cap: the 99th percentile of latencies before the node is wiped, and while it
//! gets everything again.

use std::time::{Duration, Instant};

use corelane::client::NewTopic;

use super::keyed::{Keyed, Shape};
use super::network::Node;
use super::nodes::Nodes;
use super::run::HEALTH_PATIENCE;
use super::{view, wait_until};
use crate::harness::Round;

/// The topic with the load.
pub const TOPIC: &str = "live";
const PARTITIONS: u32 = 6;
/// Load, percent of the maximum.
const PERCENT: f64 = 30.0;
/// The percentile may rise by half.
const MOST_RATIO: f64 = 1.5;
/// Whoever was changed is let be for so long before something is measured.
const SETTLE: Duration = Duration::from_secs(3);
/// Latencies of less time than this say little.
const LEAST: Duration = Duration::from_secs(20);

/// Between the kill of a node and its start, and while it catches up.
pub struct Plan<'a> {
    /// Who is wiped.
    pub wiped: Node,
    /// How long the maximum is measured.
    pub maximum: Duration,
    /// How long latencies are taken before.
    pub before: Duration,
    /// How much each partition under load keeps, bytes, if not all.
    pub retained: Option<u64>,
    /// Whether everything else is in sync again.
    pub is_healthy: &'a dyn Fn(&Nodes) -> Result<(), String>,
    /// How long the node may take.
    pub patience: Duration,
}

/// Measures it on nodes that run and are in sync.
pub fn measure(round: &mut Round<'_>, nodes: &mut Nodes, plan: &Plan<'_>) -> Result<(), String> {
    let maximum = Keyed::maximum_of(nodes, PARTITIONS, plan.maximum)?;
    let rate = maximum * PERCENT / 100.0;
    let replicas = nodes.network.nodes().count();
    let mut new = NewTopic::new(TOPIC).partitions(PARTITIONS).replication_factor(replicas as u16);
    if let Some(bytes) = plan.retained {
        new = new.config("retention.bytes", bytes.to_string()).config("segment.bytes", (bytes / 4).to_string());
    }
    nodes.create_topic(new.config("min.insync.replicas", "2"))?;
    wait_until("the live topic is in sync", HEALTH_PATIENCE, || view::expect_healthy(&nodes.network, TOPIC, replicas).map(drop))?;
    let shape = Shape { topic: TOPIC, partitions: PARTITIONS, per_second: rate, metadata_max_age: None, is_read: false };
    let load = Keyed::start(nodes.network.clone(), nodes.bootstrap(), &shape);
    std::thread::sleep(SETTLE.min(plan.before));
    let before = load.latencies_within(plan.before);

    nodes.kill(plan.wiped)?;
    nodes.wipe(plan.wiped)?;
    wait_until("the node is in no ISR any more", HEALTH_PATIENCE, || {
        let survivor = nodes.network.nodes().find(|node| *node != plan.wiped).ok_or("no other node")?;
        let view = view::topic(&nodes.network, survivor, TOPIC)?;
        match view.iter().find(|(_, seen)| seen.in_sync.contains(&plan.wiped) || seen.leader.is_none()) {
            Some((partition, seen)) => Err(format!("partition {partition} is {seen:?}")),
            None => Ok(()),
        }
    })?;
    std::thread::sleep(SETTLE.min(plan.before));
    let without = load.latencies_within(plan.before / 2);
    nodes.start(plan.wiped)?;
    nodes.wait_ready(plan.wiped)?;
    load.take_latencies();
    let begun = Instant::now();
    wait_until("the wiped node is in sync again", plan.patience, || {
        (plan.is_healthy)(nodes)?;
        view::expect_healthy(&nodes.network, TOPIC, replicas).map(drop)
    })?;
    let (took, during) = (begun.elapsed(), load.take_latencies());
    // With what was written meanwhile.
    let bytes = nodes.counter(plan.wiped, "replication_bytes_received")?;
    let as_files = nodes.counter(plan.wiped, "segment_bytes_received")?;
    let after = load.latencies_within(plan.before / 2);
    load.finish()?;

    let p99 = [&before, &without, &during, &after].map(|latencies| latencies.quantile_us(0.99));
    let ratio = p99[2] / p99[0];
    eprintln!(
        "live load: {rate:.0} records/s of 1 KiB, {PERCENT} % of {maximum:.0}; {} MiB came in {:.1} s, {} MiB of them as files under the default cap{}",
        bytes >> 20,
        took.as_secs_f64(),
        as_files >> 20,
        if took < LEAST { ", which is short for a percentile" } else { "" }
    );
    let words = ["before", "with the node away", "while it catches up", "after"];
    for ((what, latencies), p99) in words.iter().zip([&before, &without, &during, &after]).zip(p99) {
        eprintln!("  {what}: p50 {:.0} us, p99 {p99:.0} us of {} records", latencies.quantile_us(0.5), latencies.count());
    }
    let name = |what: &str| format!("run{}_live_{what}", round.number + 1);
    let figures = [("max_per_s", maximum), ("p99_before_us", p99[0]), ("p99_during_us", p99[2]), ("p99_ratio_percent", ratio * 100.0)];
    for (name, figure) in figures.map(|(what, figure)| (name(what), figure)) {
        round.count(&name, figure as u64);
    }
    if !round.is_short {
        round.target(ratio <= MOST_RATIO, &format!("the live p99 is {ratio:.2} times that before, expected {MOST_RATIO} at most"));
    }
    Ok(())
}
