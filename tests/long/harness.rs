//! Runs rounds, counts, shows progress, keeps the result file.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

/// A check as it stands in the list.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    /// Rounds of the short form.
    pub short_rounds: u64,
    /// Makes it ready to run; state that outlives a round lives in what this returns.
    pub start: fn() -> Box<dyn Check>,
}

/// What a check does.
pub trait Check {
    /// One round. An error is a failed check: it says what was expected and what was there.
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String>;

    /// After the last round, if none failed: judges what several rounds have in common.
    fn end(&mut self, _round: &mut Round<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// What a round is given.
pub struct Round<'a> {
    /// From 0.
    pub number: u64,
    /// Differs from round to round; everything random in a round comes from it.
    pub seed: u64,
    /// Empty at the start of a run, removed at its end; on the disk of the build directory.
    pub scratch: &'a Path,
    /// Of the short form, which `cargo test` runs.
    pub is_short: bool,
    /// What `--partitions` says.
    pub partitions: Option<u32>,
    /// What `--gib` says.
    pub gib: Option<u64>,
    /// Targets that were missed.
    missed: &'a mut Vec<String>,
    /// Sums over the rounds, by name, for the result.
    counts: &'a mut BTreeMap<String, u64>,
}

impl Round<'_> {
    /// Adds to a named count of the result.
    pub fn count(&mut self, name: &str, add: u64) {
        *self.counts.entry(name.to_string()).or_default() += add;
    }

    /// Says whether a figure that depends on the machine is what was aimed at. A miss fails nothing, but the run says so at its end and in
    /// its exit code.
    pub fn target(&mut self, is_met: bool, what: &str) {
        eprintln!("{}: {what}", if is_met { "MET" } else { "MISS" });
        if !is_met {
            self.missed.push(format!("round {}: {what}", self.number));
        }
    }
}

/// The arguments behind `cargo long`.
#[derive(Parser)]
#[command(
    name = "cargo long",
    bin_name = "cargo long",
    about = "Runs the long form of a check",
    after_help = "Example: cargo long kill --seconds 3600 --resume"
)]
struct Arguments {
    /// Which check; without it, all are listed.
    name: Option<String>,
    /// Stop after this long.
    #[arg(long, default_value_t = 600, conflicts_with = "rounds")]
    seconds: u64,
    /// Stop after this many rounds in all, instead; a round is a fault of `cluster`, a trial of `failover`.
    #[arg(long, visible_aliases = ["faults", "trials"])]
    rounds: Option<u64>,
    /// Partitions, where a check is about many of them.
    #[arg(long)]
    partitions: Option<u32>,
    /// GiB of records, where a check is about many of them.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1024))]
    gib: Option<u64>,
    /// Start of everything random; default: a new one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Run this one round only: replays a failure.
    #[arg(long, conflicts_with_all = ["resume", "rounds"])]
    round: Option<u64>,
    /// Go on where an interrupted run of the same check stopped.
    #[arg(long, conflicts_with = "seed")]
    resume: bool,
}

/// When a run ends by itself.
#[derive(Clone, Copy)]
pub enum Until {
    /// So many rounds in all, earlier ones of a resumed run included.
    Rounds(u64),
    /// So long in this run.
    Elapsed(Duration),
}

/// A run and all that is kept of it.
pub struct Run {
    entry: Entry,
    seed: u64,
    next_round: u64,
    seconds_before: f64,
    counts: BTreeMap<String, u64>,
    failure: Option<String>,
    result_file: PathBuf,
    is_short: bool,
    partitions: Option<u32>,
    gib: Option<u64>,
    missed: Vec<String>,
}

/// A check that passed, but missed figures that were aimed at, ends with this exit code.
const MISSED: u8 = 3;

/// The words behind `--long` to an exit code: 0 passed, 1 failed, 2 wrong usage, 3 passed and missed a target.
pub fn run_long(checks: &[Entry], mut arguments: Vec<String>) -> ExitCode {
    // Behind cargo's words nobody needs it, and many write it.
    arguments.retain(|argument| argument != "--");
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(refusal) => {
            let code = if refusal.use_stderr() { 2 } else { 0 };
            print!("{refusal}");
            list(checks);
            return ExitCode::from(code);
        }
    };
    let Some(name) = &arguments.name else {
        list(checks);
        return ExitCode::SUCCESS;
    };
    let Some(entry) = checks.iter().find(|entry| entry.name == name) else {
        eprintln!("no check is named {name:?}");
        list(checks);
        return ExitCode::from(2);
    };
    let run = if arguments.resume {
        Run::resume(*entry, &directory())
    } else {
        Ok(Run::new(*entry, arguments.seed.unwrap_or_else(new_seed), &directory()))
    };
    let mut run = match run {
        Ok(run) => run,
        Err(reason) => {
            eprintln!("{name} can't be resumed: {reason}");
            return ExitCode::from(2);
        }
    };
    (run.partitions, run.gib) = (arguments.partitions, arguments.gib);
    let until = match (arguments.round, arguments.rounds) {
        (Some(round), _) => {
            run.next_round = round;
            Until::Rounds(round + 1)
        }
        (None, Some(rounds)) => Until::Rounds(rounds),
        (None, None) => Until::Elapsed(Duration::from_secs(arguments.seconds)),
    };
    eprintln!("{name}, seed {}, from round {}", run.seed, run.next_round);
    let passed = run.go(until, &mut show_progress());
    println!("{}", run.result());
    run.missed.iter().for_each(|what| println!("MISSED: {what}"));
    match passed {
        true if run.missed.is_empty() => ExitCode::SUCCESS,
        true => ExitCode::from(MISSED),
        false => ExitCode::from(1),
    }
}

/// The short forms as tests: a fixed seed, so that what fails fails again.
pub fn short_forms(checks: &[Entry]) -> Vec<Trial> {
    checks.iter().map(|entry| short_form(*entry)).collect()
}

fn short_form(entry: Entry) -> Trial {
    Trial::test(entry.name, move || {
        let directory = directory().join("short");
        let mut run = Run::new(entry, 1, &directory);
        run.is_short = true;
        run.go(Until::Rounds(entry.short_rounds), &mut |_| ());
        match run.failure {
            None => Ok(()),
            Some(failure) => Err(Failed::from(failure)),
        }
    })
}

impl Run {
    /// A run from round 0.
    pub fn new(entry: Entry, seed: u64, directory: &Path) -> Run {
        let result_file = directory.join(format!("{}.json", entry.name));
        let (counts, missed) = (BTreeMap::new(), Vec::new());
        let (next_round, seconds_before, failure) = (0, 0.0, None);
        Run { entry, seed, next_round, seconds_before, counts, failure, result_file, is_short: false, partitions: None, gib: None, missed }
    }

    /// A run that goes on behind the last whole round of the result file.
    pub fn resume(entry: Entry, directory: &Path) -> Result<Run, String> {
        let mut run = Run::new(entry, 0, directory);
        let text = fs::read_to_string(&run.result_file).map_err(|e| format!("{}: {e}", run.result_file.display()))?;
        let kept: Value = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", run.result_file.display()))?;
        let number = |key: &str| kept[key].as_u64().ok_or_else(|| format!("{}: no {key}", run.result_file.display()));
        (run.seed, run.next_round) = (number("seed")?, number("rounds")?);
        run.seconds_before = kept["seconds"].as_f64().unwrap_or_default();
        for (name, count) in kept["counts"].as_object().into_iter().flatten() {
            run.counts.insert(name.clone(), count.as_u64().unwrap_or_default());
        }
        run.missed = kept["missed"].as_array().into_iter().flatten().filter_map(|what| Some(what.as_str()?.to_string())).collect();
        Ok(run)
    }

    /// Runs rounds until the end or the first failure; true when none failed.
    pub fn go(&mut self, until: Until, progress: &mut dyn FnMut(&str)) -> bool {
        let started = Instant::now();
        let seconds_before = self.seconds_before;
        let _lock = match self.lock() {
            Ok(lock) => lock,
            Err(reason) => {
                self.failure = Some(reason);
                return false;
            }
        };
        let scratch = self.result_file.with_extension("scratch");
        let mut check = (self.entry.start)();
        loop {
            let ended = match until {
                Until::Rounds(rounds) => self.next_round >= rounds,
                Until::Elapsed(limit) => started.elapsed() >= limit,
            };
            if ended || self.failure.is_some() {
                break;
            }
            let outcome = self.round(&scratch, |round| check.round(round));
            self.seconds_before = seconds_before + started.elapsed().as_secs_f64();
            match outcome {
                Ok(()) => self.next_round += 1,
                Err(words) => self.failure = Some(self.replay_words(&words)),
            }
            if let Err(refusal) = self.keep() {
                self.failure.get_or_insert(format!("{}: {refusal}", self.result_file.display()));
            }
            progress(&format!("{} round {} {:.0} s {:?}", self.entry.name, self.next_round, self.seconds_before, self.counts));
        }
        if self.failure.is_none() {
            if let Err(words) = self.round(&scratch, |round| check.end(round)) {
                self.failure = Some(self.replay_words(&words));
            }
            if let Err(refusal) = self.keep() {
                self.failure.get_or_insert(format!("{}: {refusal}", self.result_file.display()));
            }
        }
        // A failed round leaves its files to be looked at.
        if self.failure.is_none() {
            let _ = fs::remove_dir_all(&scratch);
        }
        self.failure.is_none()
    }

    /// Two runs of one check in one directory would remove each other's files. The lock ends with the process, however that ends.
    fn lock(&self) -> Result<fs::File, String> {
        let path = self.result_file.with_extension("lock");
        let say = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
        fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(|e| say(&e))?;
        let file = fs::File::create(&path).map_err(|e| say(&e))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                Err(say(&format_args!("another run of the check {} uses this directory", self.entry.name)))
            }
            Err(fs::TryLockError::Error(error)) => Err(say(&error)),
        }
    }

    fn round(&mut self, scratch: &Path, work: impl FnOnce(&mut Round<'_>) -> Result<(), String>) -> Result<(), String> {
        let _ = fs::remove_dir_all(scratch);
        fs::create_dir_all(scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
        let seed = mix(self.seed, self.next_round);
        // Counts of a failed round don't count: it is run again on --resume.
        let (mut counts, mut missed) = (self.counts.clone(), self.missed.clone());
        let (number, is_short, partitions, gib) = (self.next_round, self.is_short, self.partitions, self.gib);
        work(&mut Round { number, seed, scratch, is_short, partitions, gib, missed: &mut missed, counts: &mut counts })?;
        (self.counts, self.missed) = (counts, missed);
        Ok(())
    }

    fn replay_words(&self, words: &str) -> String {
        format!("{words}\nreplay: cargo long {} --seed {} --round {}", self.entry.name, self.seed, self.next_round)
    }

    /// What is kept and printed.
    pub fn result(&self) -> Value {
        json!({
            "check": self.entry.name, "seed": self.seed, "rounds": self.next_round, "seconds": self.seconds_before,
            "counts": self.counts, "missed": self.missed, "failure": self.failure,
        })
    }

    fn keep(&self) -> io::Result<()> {
        let temporary = self.result_file.with_extension("json.tmp");
        fs::write(&temporary, format!("{:#}\n", self.result()))?;
        fs::rename(&temporary, &self.result_file)
    }
}

/// One line rewritten on a terminal, one every ten seconds in a log.
fn show_progress() -> impl FnMut(&str) {
    let terminal = io::stderr().is_terminal();
    let mut last = Instant::now();
    move |line| {
        if terminal {
            eprint!("\r\x1b[2K{line}");
        } else if last.elapsed() >= Duration::from_secs(10) {
            last = Instant::now();
            eprintln!("{line}");
        }
    }
}

fn list(checks: &[Entry]) {
    println!("Checks:");
    for entry in checks {
        println!("  {:12} {}", entry.name, entry.about);
    }
}

/// Where results are kept: `long/` in the build directory.
fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("long")
}

fn new_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}

/// A seed of its own for each round (SplitMix64's finisher).
fn mix(seed: u64, round: u64) -> u64 {
    let mut z = seed.wrapping_add(round.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
