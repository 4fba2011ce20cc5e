//! Brings leaders home: where the preferred leader of a partition is there and in sync again, it leads again. Done by the node that leads the consensus.
//!
//! A node that comes back does so in pieces, partition by partition, and one that comes and goes would take its leaders back and forth; so nothing is moved until
//! the number that could be moved has been there for a while, and then everything that can be moves at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::cluster::survey::led_elsewhere;
use crate::cluster::{CatalogueView, Command};
use crate::control::metadata::MetadataStore;
use crate::limits;

/// When leaders are moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Balance {
    /// Looks in a row that found leaders elsewhere.
    looks: u32,
}

impl Balance {
    /// A look at the cluster by a node that leads the consensus or does not; what is to be proposed.
    fn handle_look(&mut self, leads: bool, elsewhere: u32) -> Option<Command> {
        if !leads || elsewhere == 0 {
            self.looks = 0;
            return None;
        }
        self.looks += 1;
        if self.looks < limits::BALANCE_LOOKS {
            return None;
        }
        self.looks = 0;
        Some(Command::BalanceLeaders { most: limits::BALANCED_LEADERS })
    }
}

/// Looks again and again, for ever.
pub(super) async fn keep<S: MetadataStore>(store: Arc<S>) {
    let mut ticks = interval(Duration::from_millis(limits::BALANCE_LOOK_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut balance, mut last) = (Balance::default(), None);
    loop {
        ticks.tick().await;
        let view = store.view();
        // Counting looks at every partition, which is for nothing where nothing has changed.
        let elsewhere = match &last {
            Some((version, elsewhere)) if *version == view.version() => *elsewhere,
            _ => led_elsewhere(&view),
        };
        last = Some((view.version(), elsewhere));
        if let Some(command) = balance.handle_look(leads(&*store, &view), elsewhere) {
            tracing::info!(partitions = elsewhere, "leaders go back to where they belong");
            if let Err(refusal) = store.propose(command).await {
                tracing::warn!(%refusal, "leaders could not be moved; it is tried again");
            }
        }
    }
}

/// Whether this node leads the consensus. A cluster of one has no leaders elsewhere, so who it is does not matter there.
fn leads<S: MetadataStore>(store: &S, view: &CatalogueView) -> bool {
    view.nodes().len() > 1 && store.leads()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaders_move_once_they_could_for_a_while() {
        let mut balance = Balance::default();
        let mut looks = |leads, elsewhere| balance.handle_look(leads, elsewhere).is_some();
        assert!((0..limits::BALANCE_LOOKS - 1).all(|_| !looks(true, 3)));
        assert!(looks(true, 1), "that they are fewer is no reason to wait longer");
        assert!(!looks(true, 1), "the count begins anew");
        for (leads, elsewhere) in [(true, 0), (false, 5)] {
            assert!((1..limits::BALANCE_LOOKS - 1).all(|_| !looks(true, 5)));
            assert!(!looks(leads, elsewhere) && !looks(true, 5), "it was interrupted");
            assert!(!looks(leads, elsewhere));
        }
    }
}
