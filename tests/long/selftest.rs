//! The harness itself: a planted failure is reported with the words that replay it, and a resumed run goes on where it stopped.

use libtest_mimic::{Failed, Trial};

use crate::harness::{Check, Entry, Round, Run, Until};

/// Fails in its fourth round, or when a round gets a used scratch directory or a used seed.
#[derive(Default)]
struct FailsInRoundThree {
    seeds: Vec<u64>,
}

impl Check for FailsInRoundThree {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        round.count("visited", 1);
        let left = round.scratch.join("left");
        if left.exists() || self.seeds.contains(&round.seed) {
            return Err(format!("round {} is not independent of those before it", round.number));
        }
        std::fs::write(&left, "by an earlier round").map_err(|e| e.to_string())?;
        self.seeds.push(round.seed);
        if round.number == 3 { Err("expected 1, found 2".into()) } else { Ok(()) }
    }
}

const PLANTED: Entry = Entry { name: "planted", about: "fails in round 3", short_rounds: 5, start: || Box::<FailsInRoundThree>::default() };

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("harness_reports_a_planted_failure", reports_a_planted_failure),
        Trial::test("harness_says_what_was_missed", says_what_was_missed),
        Trial::test("harness_runs_a_check_once_at_a_time", runs_a_check_once_at_a_time),
        Trial::test("harness_resumes_behind_the_last_round", resumes_behind_the_last_round),
    ]
}

fn reports_a_planted_failure() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let mut run = Run::new(PLANTED, 7, directory.path());
    expect(!run.go(Until::Rounds(5), &mut |_| ()), "the planted failure is seen")?;
    let result = run.result();
    expect(result["rounds"] == 3, "three rounds passed before it")?;
    expect(result["counts"]["visited"] == 3, "a failed round does not count")?;
    let words = result["failure"].as_str().unwrap_or_default();
    expect(words.contains("cargo long planted --seed 7 --round 3"), "it says how to replay")
}

/// Reaches a target in its second round only.
struct Misses;

impl Check for Misses {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        round.target(round.number == 1, "planted");
        Ok(())
    }
}

/// A miss fails nothing and is kept, also over a resumption.
fn says_what_was_missed() -> Result<(), Failed> {
    const MISSES: Entry = Entry { name: "misses", about: "misses a target", short_rounds: 1, start: || Box::new(Misses) };
    let directory = tempfile::tempdir()?;
    let mut run = Run::new(MISSES, 7, directory.path());
    expect(run.go(Until::Rounds(1), &mut |_| ()), "a missed target fails nothing")?;
    expect(run.result()["missed"][0] == "round 0: planted", "it is told")?;
    let mut resumed = Run::resume(MISSES, directory.path())?;
    expect(resumed.go(Until::Rounds(2), &mut |_| ()), "it goes on")?;
    expect(
        resumed.result()["missed"].as_array().map(Vec::len) == Some(1),
        "the second round misses nothing, and the first one's miss is still told",
    )
}

/// In its round there is another run of it, which must be refused and remove nothing.
struct Twice;

const TWICE: Entry = Entry { name: "twice", about: "runs itself again", short_rounds: 1, start: || Box::new(Twice) };

impl Check for Twice {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        let directory = round.scratch.parent().ok_or("no directory")?;
        let mut second = Run::new(TWICE, 8, directory);
        if second.go(Until::Rounds(1), &mut |_| ()) || !round.scratch.exists() {
            return Err("a second run was let in".into());
        }
        let result = second.result();
        let words = result["failure"].as_str().unwrap_or_default();
        if words.contains("another run of the check twice") { Ok(()) } else { Err(format!("refused for: {words}")) }
    }
}

fn runs_a_check_once_at_a_time() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let mut first = Run::new(TWICE, 7, directory.path());
    expect(first.go(Until::Rounds(1), &mut |_| ()), "the second run is refused, the first goes on")?;
    expect(Run::new(TWICE, 9, directory.path()).go(Until::Rounds(1), &mut |_| ()), "the lock ends with the run")
}

fn resumes_behind_the_last_round() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    expect(Run::resume(PLANTED, directory.path()).is_err(), "nothing to resume is an error")?;
    expect(Run::new(PLANTED, 7, directory.path()).go(Until::Rounds(2), &mut |_| ()), "two rounds pass")?;
    let mut resumed = Run::resume(PLANTED, directory.path())?;
    expect(resumed.go(Until::Rounds(3), &mut |_| ()), "the third passes too")?;
    let result = resumed.result();
    expect(result["counts"]["visited"] == 3 && result["seed"] == 7, "counts and seed went on")
}

fn expect(holds: bool, what: &str) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed::from(format!("not so: {what}"))) }
}
