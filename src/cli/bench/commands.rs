//! `bench produce`: one workload, one result.

use super::measured::{Measured, RunClock};
use super::outcome::{Outcome, OutputArgs, Used};
use super::producing;
use super::reference::{self, Reference};
use super::workload::{BrokerArgs, Target, WorkloadArgs};
use super::{BenchError, runtime};
use crate::client::Client;

/// Arguments of `bench produce`.
#[derive(Clone, Debug, clap::Args)]
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

/// `bench produce`.
pub fn produce(arguments: &RunArgs) -> Result<(), BenchError> {
    arguments.workload.check()?;
    let target = Target::open(&arguments.broker)?;
    let topic = topic(&target, &arguments.workload)?;
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

fn topic(target: &Target, workload: &WorkloadArgs) -> Result<String, BenchError> {
    runtime()?.block_on(async {
        let client = Client::connect(&target.address).await?;
        target.create_topic(&client, workload).await
    })
}

fn latency_reference(produced: &Measured, arguments: &RunArgs) -> Result<Reference, BenchError> {
    let (floor, name) = reference::acknowledgement_floor(&arguments.broker.dir, arguments.workload.durability)?;
    Ok(Reference::new(produced.from_actual.quantile_us(0.5), floor, "us", name))
}
