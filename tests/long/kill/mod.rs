//! A broker is killed again and again while processes of their own produce, and everything that they were told must be there afterwards.
//!
//! A round is one kill (now and then a SIGTERM). Rounds form *lives* of [`LIFE`]: one store, one set of producers that outlive the kills. In each round
//!
//! 1. at least [`ACKS_BEFORE_KILL`] records are acknowledged since the broker became ready, and a random moment passes;
//! 2. the broker is killed, and `inspect verify` must find the store clean;
//! 3. now and then a start is killed too, wherever it is;
//! 4. the broker starts with another number of shards;
//! 5. what was acknowledged so far is compared with the records behind those that were read in the round before.
//!
//! At the end of a life the producers settle all that they have, and a fresh reading from the first offset is compared with all acknowledgements.
//! A replayed round begins a life of its own: the moments of a kill can't be replayed anyway.

mod ledger;
mod ledger_trials;
mod planted;
mod reader;
mod records;
pub mod worker;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corelane::client::{Client, NewTopic};
use libtest_mimic::Trial;

use crate::broker::{Broker, Serve, free_ports, verify, wait_quiet};
use crate::crash::Numbers;
use crate::harness::{Check, Entry, Round};
use ledger::Ledger;
use records::{KINDS, TOPICS};
use worker::{AckList, Worker};

/// Rounds on one store.
const LIFE: u64 = 20;
/// Least acknowledgements between two kills.
const ACKS_BEFORE_KILL: u64 = 10_000;
/// They must be there after this long; the disk may be a slow one.
const ACKS_PATIENCE: Duration = Duration::from_secs(120);
/// One round in so many lasts until the broker has looked at its retention, which it does every five seconds.
const ONE_LONG_IN: u64 = 6;
/// How long such a round's broker runs at least.
const LONG: Duration = Duration::from_millis(6_500);
/// Most shards.
const SHARDS: u32 = 3;

/// The check.
pub const ENTRY: Entry = Entry {
    name: "kill",
    about: "SIGKILL at random moments: nothing acknowledged is lost, duplicated or out of order",
    short_rounds: LIFE,
    start: || Box::new(Kill { life: None }),
};

/// What of the check is tested by itself.
pub fn trials() -> Vec<Trial> {
    let mut trials = ledger_trials::trials();
    trials.push(Trial::test("kill_catches_planted_damage", planted::damage_is_caught));
    trials
}

struct Kill {
    life: Option<Life>,
}

impl Check for Kill {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        let mut random = Numbers(round.seed);
        let mut life = match self.life.take().filter(|_| !round.number.is_multiple_of(LIFE)) {
            Some(life) => life,
            None => Life::begin(round.scratch.with_extension("life"), &mut random)?,
        };
        life.crash(round, &mut random)?;
        if round.number % LIFE == LIFE - 1 {
            life.end(round)
        } else {
            self.life = Some(life);
            Ok(())
        }
    }
}

/// One store and its producers.
struct Life {
    directory: PathBuf,
    serve: Serve,
    broker: Broker,
    workers: Vec<Worker>,
    ledger: Ledger,
    /// Acknowledgements since the broker became ready.
    acks: u64,
    ready_at: Instant,
}

/// For each place the least that its retention leaves.
fn kept_bytes() -> Vec<Option<u64>> {
    TOPICS.iter().flat_map(|topic| (0..topic.partitions).map(|_| topic.kept_bytes)).collect()
}

fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(work)
}

async fn create_topics(addresses: &str) -> Result<(), String> {
    let client = Client::connect(addresses).await.map_err(|e| e.to_string())?;
    for topic in TOPICS {
        let new =
            topic.config.iter().fold(NewTopic::new(topic.name).partitions(topic.partitions), |new, (key, value)| new.config(*key, *value));
        client.admin().create_topic(new).await.map_err(|e| e.to_string())?;
    }
    Ok(())
}

impl Life {
    fn begin(directory: PathBuf, random: &mut Numbers) -> Result<Life, String> {
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        let listen = free_ports(SHARDS, random.draw())?;
        let serve = Serve { data: directory.join("data"), log: directory.join("broker.log"), listen, shards: 2 };
        let broker = serve.start()?;
        block_on(create_topics(&serve.listen))?;
        let addresses = bootstrap(&serve.listen);
        let start = |number| Worker::start(&directory, number as u8, &addresses, random.draw());
        let workers = (0..KINDS.len()).map(start).collect::<Result<_, _>>()?;
        let ledger = Ledger::new(KINDS.len(), &kept_bytes());
        Ok(Life { directory, serve, broker, workers, ledger, acks: 0, ready_at: Instant::now() })
    }

    /// One round.
    fn crash(&mut self, round: &mut Round<'_>, random: &mut Numbers) -> Result<(), String> {
        self.wait_for_acks()?;
        if random.below(ONE_LONG_IN) == 0 {
            std::thread::sleep(LONG.saturating_sub(self.ready_at.elapsed()));
        }
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        self.note_acks()?;
        round.count("acks_between", self.acks);
        if random.below(6) == 0 {
            self.broker.stop()?;
            round.count("stops", 1);
        } else {
            self.broker.kill()?;
            round.count("kills", 1);
        }
        self.verify(round, "after the kill")?;
        if random.below(4) == 0 {
            self.serve.shards = 1 + random.below(SHARDS.into()) as u32;
            self.serve.start_and_kill(Duration::from_micros(random.below(150_000)))?;
            round.count("kills_of_a_start", 1);
            self.verify(round, "after a killed start")?;
        }
        self.serve.shards = 1 + (self.serve.shards + random.below(u64::from(SHARDS) - 1) as u32) % SHARDS;
        self.broker = self.serve.start()?;
        self.ready_at = Instant::now();
        round.count("ready_ms", self.broker.ready_after.as_millis() as u64);
        self.note_acks()?;
        self.acks = 0;
        let before = self.ledger.verdict().read;
        block_on(reader::read_to_ends(&bootstrap(&self.serve.listen), &mut self.ledger))?;
        round.count("records_read", self.ledger.verdict().read - before);
        self.judge(&self.ledger)
    }

    /// All is settled, once more killed, and read from the first offset.
    fn end(mut self, round: &mut Round<'_>) -> Result<(), String> {
        for worker in &mut self.workers {
            worker.end_input();
        }
        for worker in &mut self.workers {
            worker.finish()?;
        }
        self.broker.kill()?;
        self.verify(round, "at the end")?;
        self.broker = self.serve.start()?;
        let mut whole = Ledger::new(KINDS.len(), &kept_bytes());
        for number in 0..KINDS.len() {
            let noted = AckList::new(&self.directory, number as u8).read_on()?;
            noted.acks.into_iter().for_each(|ack| whole.acknowledge(ack));
        }
        block_on(reader::read_to_ends(&bootstrap(&self.serve.listen), &mut whole))?;
        round.count("acknowledged", whole.verdict().acknowledged);
        round.count("reread", whole.verdict().read);
        round.count("expired", whole.verdict().expired);
        self.judge(&whole)?;
        self.broker.stop()?;
        self.verify(round, "after the last stop")?;
        round.count("lives", 1);
        let directory = self.directory.clone();
        drop(self);
        fs::remove_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))
    }

    fn judge(&self, ledger: &Ledger) -> Result<(), String> {
        let verdict = ledger.verdict();
        if verdict.holds() { Ok(()) } else { Err(format!("{verdict:#?}\nthe store is kept in {}", self.directory.display())) }
    }

    fn verify(&self, round: &mut Round<'_>, when: &str) -> Result<(), String> {
        wait_quiet(&self.serve.data)?;
        let (bytes, ambiguous) =
            verify(&self.serve.data).map_err(|e| format!("{when}: {e}\nthe store is kept in {}", self.directory.display()))?;
        round.count("verified_mib", bytes >> 20);
        round.count("verified_times", 1);
        round.count("ambiguous", ambiguous);
        Ok(())
    }

    fn wait_for_acks(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while self.acks < ACKS_BEFORE_KILL {
            self.note_acks()?;
            self.broker.expect_running()?;
            if begun.elapsed() > ACKS_PATIENCE {
                return Err(format!("{} acknowledgements in {} s", self.acks, ACKS_PATIENCE.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn note_acks(&mut self) -> Result<(), String> {
        for worker in &mut self.workers {
            let noted = worker.noted()?;
            self.acks += noted.acks.len() as u64;
            noted.acks.into_iter().for_each(|ack| self.ledger.acknowledge(ack));
        }
        Ok(())
    }
}

/// Every address that a shard may have.
fn bootstrap(listen: &str) -> String {
    let (host, port) = listen.rsplit_once(':').expect("host and port");
    let first: u32 = port.parse().expect("a port");
    (first..first + SHARDS).map(|port| format!("{host}:{port}")).collect::<Vec<_>>().join(",")
}

/// Copies a directory of files and directories.
fn copy_all(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() { copy_all(&entry.path(), &target)? } else { fs::copy(entry.path(), target).map(drop)? }
    }
    Ok(())
}
