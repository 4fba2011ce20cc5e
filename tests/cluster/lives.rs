//! Clusters that live for several rounds of a check: one is formed, hit again and again, judged, and another takes its place.

use std::fs;
use std::path::{Path, PathBuf};

use crate::crash::Numbers;
use crate::harness::{Check, Round};

/// A cluster with clients, from its formation to its judgement.
pub trait Life: Sized {
    /// Rounds of one in the short form, and in the long one.
    const ROUNDS: (u64, u64);

    /// Forms one in an empty directory.
    fn begin(directory: PathBuf, random: &mut Numbers) -> Result<Self, String>;

    /// One round.
    fn hit(&mut self, round: &mut Round<'_>, random: &mut Numbers) -> Result<(), String>;

    /// All settles and is judged.
    fn judge(&mut self, round: &mut Round<'_>) -> Result<(), String>;

    /// Where its files are.
    fn directory(&self) -> &Path;

    /// A failure with all that helps to find its cause.
    fn explain(&self, what: &str) -> String;
}

/// The check: one life after the other.
pub struct Lives<L>(pub Option<L>);

impl<L: Life> Check for Lives<L> {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        let mut random = Numbers(round.seed);
        let (short, long) = L::ROUNDS;
        let length = if round.is_short { short } else { long };
        let mut life = match self.0.take().filter(|_| !round.number.is_multiple_of(length)) {
            Some(life) => life,
            None => L::begin(round.scratch.with_extension("life"), &mut random)?,
        };
        life.hit(round, &mut random).map_err(|what| life.explain(&what))?;
        if round.number % length == length - 1 {
            return end(life, round);
        }
        self.0 = Some(life);
        Ok(())
    }

    fn end(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        self.0.take().map_or(Ok(()), |life| end(life, round))
    }
}

fn end<L: Life>(mut life: L, round: &mut Round<'_>) -> Result<(), String> {
    life.judge(round).map_err(|what| life.explain(&what))?;
    let directory = life.directory().to_path_buf();
    drop(life);
    fs::remove_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))
}
