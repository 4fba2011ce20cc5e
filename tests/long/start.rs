//! An empty broker starts, every time: guards against a shard whose executor sleeps before it has opened its files (decision 0004).

use crate::broker::{Serve, verify, wait_quiet};
use crate::harness::{Check, Entry, Round};

/// The check.
pub const ENTRY: Entry = Entry {
    name: "start",
    about: "an empty broker starts within 30 s with 1 to 4 shards, after a stop and after a kill",
    short_rounds: 15,
    start: || Box::new(Start),
};

struct Start;

impl Check for Start {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        let data = round.scratch.join("data");
        let log = round.scratch.join("log");
        // Twice on the same store: made by one start, opened by the next, mostly with another number of shards.
        for turn in 0..2 {
            let shards = 1 + ((round.number + turn * (round.seed % 4)) % 4) as u32;
            let mut broker = Serve { data: data.clone(), log: log.clone(), listen: "127.0.0.1:0".into(), shards }.start()?;
            round.count("starts", 1);
            round.count("ready_ms", broker.ready_after.as_millis() as u64);
            if (round.number + turn).is_multiple_of(2) {
                broker.stop()?;
                round.count("stopped", 1);
            } else {
                broker.kill()?;
                round.count("killed", 1);
            }
            wait_quiet(&data)?;
            verify(&data)?;
        }
        Ok(())
    }
}
