//! `corelane demo`: real files through a broker that is killed on the way, and then the question whether it kept its word.
//!
//! The broker is a child process, so that SIGKILL is what it would be in real life. What it acknowledged is noted here (`ledger`), outside
//! of it, and compared at the end with what a fresh client reads. SIGKILL leaves the kernel's page cache alone: that acknowledged data
//! is on the disk, and not only there, is shown by the tests of crashes and not by this.

mod alerts;
mod error_rate;
mod events;
mod input;
mod ledger;
mod report;
mod scratch;
mod streams;
mod view;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::child::{ChildBroker, ChildError, ServeSettings};
use super::exit::{Exit, Failure, output_failed};
use crate::client::{Client, NewTopic};
use crate::server::host::Cpus;
use input::Input;
use report::{Report, Shape, Source};
use scratch::Scratch;
use streams::{Plan, Produced, Progress};
use view::View;

/// Flags of `demo`.
#[derive(clap::Args)]
#[command(after_help = "Example: corelane demo --input /var/log/dpkg.log")]
pub struct DemoArgs {
    /// Files or directories whose lines are streamed; may be given several times [default: the logs in /var/log, else the files here]
    #[arg(long, value_name = "PATH")]
    input: Vec<PathBuf>,
    /// What is played
    #[arg(long, value_enum, default_value = "logs")]
    scenario: Scenario,
    /// Stream at least this many records; the lines are repeated
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    records: u64,
    /// Stream for at least this long
    #[arg(long, value_name = "S", default_value_t = 10)]
    seconds: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Of the notification service: the broker
    #[arg(long, hide = true, default_value = "")]
    broker: String,
}

/// What is played.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Scenario {
    /// Lines of log files, and a crash of the broker in the middle.
    Logs,
    /// Error rates of services, watched while their events stream; an alert within a second of a rate getting too high.
    Alerts,
    /// Two services that exchange events, with retries and a dead-letter topic; one of them is killed on the way.
    Events,
    /// The second service of `events`: started by it.
    #[value(hide = true)]
    NotificationService,
}

const TOPIC: &str = "logs";
const PARTITIONS: u32 = 6;
const PRODUCERS: u8 = 3;
const CONSUMERS: u32 = 3;
/// More would only take the CPUs of producers and consumers.
const MOST_SHARDS: u32 = 4;
/// Memory of the broker.
const MEMORY: &str = "512M";
/// Between two looks at how things are.
const TICK: Duration = Duration::from_millis(100);
/// How long the kill waits for a moment with records in flight.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// How long live consumers may take to read what is there.
const CATCH_UP: Duration = Duration::from_secs(10);
/// How often other ports are tried where somebody took those that were free a moment ago.
const START_ATTEMPTS: u32 = 3;

/// Plays it; fails unless nothing is lost, duplicated or out of order.
pub fn run(args: &DemoArgs) -> Result<(), Failure> {
    match args.scenario {
        Scenario::Logs => run_logs(args),
        Scenario::Alerts => {
            let outcome = run_scenario(args, async |stage, view| alerts::play(stage, view).await)?;
            told(args, &outcome, outcome.to_json(), outcome.holds().then_some(()).ok_or_else(|| outcome.complaint()))
        }
        Scenario::Events => {
            let outcome = run_scenario(args, async |stage, view| events::play(stage, view).await)?;
            told(args, &outcome, outcome.to_json(), outcome.holds().then_some(()).ok_or_else(|| outcome.complaint()))
        }
        Scenario::NotificationService => super::block_on(events::serve(&args.broker)),
    }
}

/// Runs a scenario with a broker of its own.
fn run_scenario<T>(args: &DemoArgs, play: impl AsyncFnOnce(&Stage, &View) -> Result<T, Failure>) -> Result<T, Failure> {
    super::block_on(async {
        let shards = Cpus::read()?.default_shards().min(MOST_SHARDS);
        let (stage, view) = (Stage::open(shards)?, View::new(args.json));
        view.say(&format!("broker: {shards} shard(s) at {}, data in {}", stage.addresses(), stage.settings.data.display()));
        let outcome = tokio::select! {
            outcome = play(&stage, &view) => outcome,
            what = interrupted() => Err(Failure::new(Exit::Failed, format!("{what}: the broker is stopped and its data removed"))),
        };
        view.close();
        outcome
    })
}

fn told(args: &DemoArgs, outcome: &impl std::fmt::Display, json: serde_json::Value, holds: Result<(), String>) -> Result<(), Failure> {
    let words = if args.json { format!("{json}\n") } else { outcome.to_string() };
    io::stdout().write_all(words.as_bytes()).or_else(|e| output_failed(&e))?;
    holds.map_err(|complaint| Failure::new(Exit::Failed, complaint))
}

fn run_logs(args: &DemoArgs) -> Result<(), Failure> {
    let input = Input::read(&args.input)?;
    let report = super::block_on(async {
        tokio::select! {
            report = play(args, input) => report,
            what = interrupted() => Err(Failure::new(Exit::Failed, format!("{what}: the broker is stopped and its data removed"))),
        }
    })?;
    let words = if args.json { format!("{}\n", report.to_json()) } else { report.to_string() };
    io::stdout().write_all(words.as_bytes()).or_else(|e| output_failed(&e))?;
    if report.holds() { Ok(()) } else { Err(Failure::new(Exit::Failed, report.complaint())) }
}

/// Waits for SIGINT or SIGTERM.
async fn interrupted() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => tokio::select! {
            _ = interrupt.recv() => "interrupted",
            _ = terminate.recv() => "terminated",
        },
        // Then they end the process as they would any other.
        _ => std::future::pending().await,
    }
}

/// The broker, and what it takes to start it again in the same place. The order of fields matters: the process ends before its data goes.
struct Stage {
    broker: Option<ChildBroker>,
    listen: String,
    settings: ServeSettings,
    scratch: Scratch,
}

impl Stage {
    fn open(shards: u32) -> Result<Stage, Failure> {
        let scratch = Scratch::create()?;
        let mut arguments = vec!["--shards".to_string(), shards.to_string(), "--memory".into(), MEMORY.into()];
        if !scratch.is_on_disk {
            arguments.push("--buffered-io".into());
        }
        let settings = ServeSettings { data: scratch.path().join("data"), arguments };
        let mut stage = Stage { broker: None, listen: String::new(), settings, scratch };
        for attempt in 1.. {
            stage.listen = scratch::free_ports(shards)?;
            match stage.start() {
                Err(_) if attempt < START_ATTEMPTS => {}
                started => return started.map(|()| stage),
            }
        }
        unreachable!("the last attempt returns")
    }

    fn start(&mut self) -> Result<(), Failure> {
        self.broker = Some(ChildBroker::start_at(&self.listen, &self.settings)?);
        Ok(())
    }

    fn addresses(&self) -> String {
        self.broker.as_ref().map(|broker| broker.addresses.join(",")).unwrap_or_default()
    }

    fn kill(&mut self) -> Result<(), Failure> {
        let killed = self.broker.take().map_or(Ok(()), ChildBroker::kill);
        killed.map_err(|e| Failure::new(Exit::Failed, format!("the broker can't be killed: {e}")))
    }

    fn start_up(&self) -> Duration {
        self.broker.as_ref().map(|broker| broker.start_up).unwrap_or_default()
    }

    fn durability(&self) -> &'static str {
        if self.scratch.is_on_disk {
            "durable: every acknowledged record had been synced to the disk"
        } else {
            "durable as far as it goes: there is no disk here, only a file system in memory"
        }
    }
}

impl From<ChildError> for Failure {
    fn from(error: ChildError) -> Failure {
        Failure::new(Exit::Host, error.to_string())
    }
}

async fn play(args: &DemoArgs, input: Input) -> Result<Report, Failure> {
    let mut view = View::new(args.json);
    let shards = Cpus::read()?.default_shards().min(MOST_SHARDS);
    let mut stage = Stage::open(shards)?;
    view.say(&format!("broker: {shards} shard(s) at {}, data in {}", stage.addresses(), stage.settings.data.display()));
    view.say(&format!("input: {} lines of {} files, {} keys", input.len(), input.files, input.keys()));
    let plan = Plan {
        addresses: stage.addresses(),
        topic: TOPIC.into(),
        partitions: PARTITIONS,
        producers: PRODUCERS,
        consumers: CONSUMERS,
        records: args.records,
        time: Duration::from_secs(args.seconds),
    };
    Client::connect(&plan.addresses).await?.admin().create_topic(NewTopic::new(TOPIC).partitions(PARTITIONS)).await?;

    // Both live as long as the process, which does nothing else; so threads that an error leaves behind still find them.
    let (progress, input): (&'static Progress, &'static Input) = (Box::leak(Box::default()), Box::leak(Box::new(input)));
    let (stop, stopped) = watch::channel(false);
    let reading = plan.clone();
    let mut consumers = Some(spawn("consumers", move || super::block_on(streams::consume(&reading, progress, stopped)))?);
    let writing = plan.clone();
    let producers = spawn("producers", move || super::block_on(streams::produce(&writing, input, progress)))?;

    let mut in_flight_at_kill = None;
    let started = Instant::now();
    while !producers.is_finished() {
        tokio::time::sleep(TICK).await;
        view.show(progress);
        if consumers.as_ref().is_some_and(JoinHandle::is_finished) {
            join(consumers.take())?;
        }
        let is_half = progress.acked.load(Ordering::Relaxed) >= plan.records / 2 && started.elapsed() >= plan.time / 2;
        if is_half && in_flight_at_kill.is_none() {
            in_flight_at_kill = Some(crash(&mut stage, progress, &view).await?);
        }
    }
    let produced = join(Some(producers))?.ok_or_else(|| gone("producers"))?;
    catch_up(&mut view, progress, produced.ledger.acknowledged()).await?;
    let _ = stop.send(true);
    join(consumers.take())?;

    view.say("comparing the acknowledgements with what a fresh consumer reads");
    let check_started = Instant::now();
    let verdict = streams::check(&plan, &produced.ledger).await?;
    let check_seconds = check_started.elapsed().as_secs_f64();
    view.close();
    let Produced { latencies, seconds, first_failure, .. } = produced;
    Ok(Report {
        verdict,
        undelivered: progress.undelivered.load(Ordering::Relaxed),
        first_failure,
        recovered_ms: stage.start_up().as_secs_f64() * 1000.0,
        in_flight_at_kill: in_flight_at_kill.unwrap_or_default(),
        bytes: progress.acked_bytes.load(Ordering::Relaxed),
        seconds,
        consumed: progress.consumed.load(Ordering::Relaxed),
        check_seconds,
        latencies,
        input: Source {
            places: input.places.iter().map(|place| place.display().to_string()).collect(),
            files: input.files,
            lines: input.len(),
            keys: input.keys(),
            repeats: progress.sent.load(Ordering::Relaxed) as f64 / input.len() as f64,
        },
        shape: Shape { producers: PRODUCERS, consumers: CONSUMERS, partitions: PARTITIONS, shards },
        durability: stage.durability(),
    })
}

/// SIGKILL while records are in flight, and the broker once more, with the same ports and data. Returns how many were in flight.
async fn crash(stage: &mut Stage, progress: &Progress, view: &View) -> Result<u64, Failure> {
    let waited = Instant::now();
    while progress.in_flight() == 0 && waited.elapsed() < KILL_WAIT {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let in_flight = progress.in_flight();
    stage.kill()?;
    view.say(&format!("SIGKILL to the broker with {in_flight} records in flight; starting it again"));
    stage.start()?;
    progress.is_recovered.store(true, Ordering::Relaxed);
    view.say(&format!("the broker is ready again after {:.0} ms", stage.start_up().as_secs_f64() * 1000.0));
    Ok(in_flight)
}

/// Waits until the live consumers have read all that was acknowledged.
async fn catch_up(view: &mut View, progress: &Progress, acknowledged: u64) -> Result<(), Failure> {
    let waited = Instant::now();
    while progress.consumed.load(Ordering::Relaxed) < acknowledged {
        if waited.elapsed() > CATCH_UP {
            let consumed = progress.consumed.load(Ordering::Relaxed);
            let what = format!("the live consumers have read {consumed} of {acknowledged} records and did not go on for {CATCH_UP:?}");
            return Err(Failure::new(Exit::Failed, what));
        }
        tokio::time::sleep(TICK).await;
        view.show(progress);
    }
    Ok(())
}

type Running<T> = JoinHandle<Result<T, Failure>>;

fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<Running<T>, Failure> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(work);
    spawned.map_err(|e| Failure::new(Exit::Host, format!("no thread for {name} can be started: {e}")))
}

/// What a thread came to; `None` if it was asked before.
fn join<T>(running: Option<Running<T>>) -> Result<Option<T>, Failure> {
    let Some(running) = running else { return Ok(None) };
    running.join().map_err(|_| gone("a thread"))?.map(Some)
}

fn gone(what: &str) -> Failure {
    Failure::new(Exit::Failed, format!("{what} ended without a result"))
}
