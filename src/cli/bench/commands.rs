//! `bench produce`, `bench consume` and `bench latency`: one workload, one result.

use super::BenchError;
use super::consuming::{self, Start};
use super::measured::{Measured, RunClock};
use super::outcome::{Outcome, OutputArgs, Used};
use super::producing;
use super::reference::{self, Reference};
use super::workload::{BrokerArgs, Target, WorkloadArgs};

/// Arguments of `bench produce` and `bench latency`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example: corelane bench produce --producers 4 --partitions 8 --record-size 1024 --plot produce.svg")]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub workload: WorkloadArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub broker: BrokerArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,
}

/// Arguments of `bench consume`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example: corelane bench consume --cold --record-size 1024")]
pub struct ConsumeArgs {
    /// Bytes that are produced first, to be read then.
    #[arg(long, default_value_t = 2 << 30)]
    pub fill: u64,
    /// Kill and restart the started broker in between, so that it has nothing in memory.
    #[arg(long, conflicts_with = "broker")]
    pub cold: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub run: RunArgs,
}

/// `bench produce`.
pub fn produce(arguments: &RunArgs) -> Result<(), BenchError> {
    arguments.workload.check()?;
    let target = Target::open(&arguments.broker)?;
    let topic = target.create_topic_now(&arguments.workload)?;
    let clock = RunClock::start(arguments.workload.warm_up(), arguments.workload.duration());
    let used = Used::start(&target)?;
    let produced = producing::produce(&target.address, &topic, &arguments.workload, clock)?;
    let (broker, client) = used.end(&target)?;
    // The broker rests while the references are measured, and its files are gone.
    drop(target);
    let directory = &arguments.broker.dir;
    let mut references = Vec::new();
    if arguments.workload.in_flight == Some(1) || arguments.workload.rate.is_some() {
        references.push(latency_reference(&produced, arguments)?);
    }
    if arguments.workload.rate.is_none() {
        let limit = reference::sequential_write(directory)?;
        references.push(Reference::new(produced.byte_rate() / 1e6, limit / 1e6, "MB/s", "raw sequential direct write, best depth"));
    }
    Outcome { name: "produce", produced: Some(produced), consumed: None, broker, client, references }
        .finish(&arguments.workload, &arguments.output)
}

/// `bench latency`: producers and consumers at once, each record timed from its intended sending to its arrival.
pub fn latency(arguments: &RunArgs) -> Result<(), BenchError> {
    let mut workload = arguments.workload.clone();
    if workload.rate.is_none() && workload.in_flight.is_none() {
        workload.in_flight = Some(1);
    }
    workload.check()?;
    let target = Target::open(&arguments.broker)?;
    let topic = target.create_topic_now(&workload)?;
    let clock = RunClock::start(workload.warm_up(), workload.duration());
    let used = Used::start(&target)?;
    let (produced, consumed) = std::thread::scope(|scope| {
        let (address, topic, workload) = (&target.address, &topic, &workload);
        let consumers = scope.spawn(move || consuming::consume(address, topic, workload, clock, Start::Tail));
        let produced = producing::produce(address, topic, workload, clock);
        let consumed = consumers.join().unwrap_or_else(|_| Err(BenchError::Host("a consumer's thread panicked".into())));
        Ok::<_, BenchError>((produced?, consumed?))
    })?;
    let (broker, client) = used.end(&target)?;
    drop(target);
    let references = vec![latency_reference(&produced, arguments)?];
    Outcome { name: "latency", produced: Some(produced), consumed: Some(consumed), broker, client, references }
        .finish(&workload, &arguments.output)
}

/// `bench consume`: fills a topic, then reads it from its start as fast as it goes.
pub fn consume(arguments: &ConsumeArgs) -> Result<(), BenchError> {
    let RunArgs { workload, broker: broker_arguments, output } = &arguments.run;
    workload.check()?;
    let mut target = Target::open(broker_arguments)?;
    let topic = target.create_topic_now(workload)?;
    let filled = producing::fill(&target.address, &topic, workload, arguments.fill)?;
    if arguments.cold {
        target = target.kill_and_restart(broker_arguments)?;
    }
    let used = Used::start(&target)?;
    let clock = RunClock::start(std::time::Duration::ZERO, workload.duration());
    let consumed = consuming::consume(&target.address, &topic, workload, clock, Start::Earliest { records: filled })?;
    let (broker, client) = used.end(&target)?;
    drop(target);
    let rate = consumed.byte_rate() / 1e6;
    let references = vec![
        Reference::new(rate, reference::one_way()? / 1e6, "MB/s", "raw one-way TCP"),
        Reference::new(rate, reference::sequential_read(&broker_arguments.dir)? / 1e6, "MB/s", "raw sequential direct read, best depth"),
    ];
    Outcome { name: "consume", produced: None, consumed: Some(consumed), broker, client, references }.finish(workload, output)
}

fn latency_reference(produced: &Measured, arguments: &RunArgs) -> Result<Reference, BenchError> {
    let (floor, name) = reference::acknowledgement_floor(&arguments.broker.dir, arguments.workload.durability)?;
    Ok(Reference::new(produced.from_actual.quantile_us(0.5), floor, "us", name))
}
