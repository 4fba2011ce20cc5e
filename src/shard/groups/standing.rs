//! Whether this shard may answer for the groups of a partition now, and the clock by which it judges their members.

use std::time::{Duration, Instant};

use crate::shard::context::Context;
use crate::shard::role::Role;
use crate::types::{LeaderEpoch, TopicPartition};

/// What this shard is to a partition of `__consumer_offsets`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Another node leads it, or none that is known here.
    Elsewhere,
    /// This node is to lead it, and the log here does not know that yet.
    Coming,
    /// It leads in this epoch.
    Leads(LeaderEpoch),
    /// It led in this epoch when it was last told, and can't know whether it still does: its lease is over.
    Doubtful(LeaderEpoch),
}

impl Standing {
    /// As the metadata, the log and the lease say at this moment.
    pub fn of(context: &Context, partition: &TopicPartition) -> Standing {
        let (node, lease) = (context.identity.node, &context.replication);
        let record = context.view.borrow().partition(partition).cloned();
        if record.as_ref().is_some_and(|record| record.leader != Some(node)) {
            return Standing::Elsewhere;
        }
        let Some(cell) = context.store.partition(partition) else { return Standing::Elsewhere };
        let (role, epoch) = (cell.role(), cell.machine.borrow().epoch());
        if !role.leads() {
            return if record.is_some() { Standing::Coming } else { Standing::Elsewhere };
        }
        match role {
            _ if record.is_some_and(|record| record.leader_epoch != epoch) => Standing::Coming,
            Role::Leader(_) if lease.now() >= lease.lease_until() => Standing::Doubtful(epoch),
            _ => Standing::Leads(epoch),
        }
    }

    /// The epoch in which it leads, as far as it knows.
    pub fn epoch(self) -> Option<LeaderEpoch> {
        match self {
            Standing::Leads(epoch) | Standing::Doubtful(epoch) => Some(epoch),
            Standing::Elsewhere | Standing::Coming => None,
        }
    }
}

/// A clock that can be stopped: while a coordinator may not answer, its members' sessions must not run out for want of an answer.
#[derive(Clone, Copy, Debug)]
pub struct SessionClock {
    begun: Instant,
    /// How long it stood still before the present stop.
    stood: Duration,
    stopped_at: Option<Instant>,
}

impl SessionClock {
    /// One that goes from `now` on, where it shows 0.
    pub fn start(now: Instant) -> SessionClock {
        SessionClock { begun: now, stood: Duration::ZERO, stopped_at: None }
    }

    /// Lets it go or stand.
    pub fn set_going(&mut self, is_going: bool, now: Instant) {
        match (self.stopped_at, is_going) {
            (None, false) => self.stopped_at = Some(now),
            (Some(at), true) => {
                self.stood += now.saturating_duration_since(at);
                self.stopped_at = None;
            }
            _ => {}
        }
    }

    /// What it shows, ms.
    pub fn ms(&self, now: Instant) -> u64 {
        let until = self.stopped_at.unwrap_or(now);
        until.saturating_duration_since(self.begun).saturating_sub(self.stood).as_millis() as u64
    }

    /// When it will show `ms`, if it goes on.
    pub fn moment(&self, ms: u64) -> Instant {
        self.begun + self.stood + Duration::from_millis(ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_stood_goes_on_where_it_was() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut clock = SessionClock::start(at(0));
        assert_eq!((clock.ms(at(70)), clock.moment(100)), (70, at(100)));
        clock.set_going(false, at(80));
        clock.set_going(false, at(90));
        assert_eq!(clock.ms(at(5_000)), 80);
        clock.set_going(true, at(1_080));
        clock.set_going(true, at(1_090));
        assert_eq!((clock.ms(at(1_100)), clock.moment(100)), (100, at(1_100)));
    }
}
