//! The faster of two ways to make a lone journal group durable, found out while serving: a write and a sync after it, or one write of a file
//! that was opened with O_DSYNC. Which one wins depends on the device (write cache, FUA) and on the machine (what it costs to wake a thread).

use std::time::Duration;

/// A way to make a group durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncWay {
    /// A write, then a sync.
    Separate,
    /// One write that is durable when it ends.
    Through,
}

/// One in so many groups goes the other way, so that a change of the device's manners is noticed.
const PROBE_EVERY: u32 = 64;
/// Groups that go each way in turn at first.
const FIRST_PROBES: u32 = 16;
/// Weight of the newest duration is one in so many.
const WEIGHT: f64 = 8.0;

/// Smoothed durations of both ways. No clock of its own.
#[derive(Default)]
pub struct SyncChoice {
    groups: u32,
    /// Seconds: separate, through.
    smoothed: [Option<f64>; 2],
}

impl SyncChoice {
    /// The way of the next group.
    pub fn choose(&mut self) -> SyncWay {
        self.groups = self.groups.wrapping_add(1);
        let faster = match self.smoothed {
            [Some(separate), Some(through)] if through < separate => SyncWay::Through,
            _ => SyncWay::Separate,
        };
        match (self.groups <= FIRST_PROBES && self.groups.is_multiple_of(2)) || self.groups.is_multiple_of(PROBE_EVERY) {
            true => faster.other(),
            false => faster,
        }
    }

    /// A group took so long from its submission until it was durable. A single slow one counts for little.
    pub fn took(&mut self, way: SyncWay, duration: Duration) {
        let known = &mut self.smoothed[way as usize];
        let seconds = duration.as_secs_f64();
        *known = Some(known.map_or(seconds, |old| old + (seconds.min(old * 4.0) - old) / WEIGHT));
    }
}

impl SyncWay {
    fn other(self) -> SyncWay {
        match self {
            SyncWay::Separate => SyncWay::Through,
            SyncWay::Through => SyncWay::Separate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share_through(separate_us: u64, through_us: u64) -> f64 {
        let mut choice = SyncChoice::default();
        let mut through = 0;
        for _ in 0..1000 {
            let way = choice.choose();
            let us = if way == SyncWay::Through { through_us } else { separate_us };
            through += u32::from(way == SyncWay::Through);
            choice.took(way, Duration::from_micros(us));
        }
        f64::from(through) / 1000.0
    }

    #[test]
    fn the_faster_way_is_taken_and_the_other_is_tried_now_and_then() {
        let mostly = share_through(200, 150);
        let seldom = share_through(150, 200);
        assert!(mostly > 0.95 && mostly < 1.0, "{mostly}");
        assert!(seldom < 0.05 && seldom > 0.0, "{seldom}");
    }

    #[test]
    fn one_stall_does_not_turn_it() {
        let mut choice = SyncChoice::default();
        for _ in 0..200 {
            let way = choice.choose();
            choice.took(way, Duration::from_micros(if way == SyncWay::Through { 100 } else { 200 }));
        }
        choice.took(SyncWay::Through, Duration::from_millis(50));
        choice.groups = 1;
        choice.groups += FIRST_PROBES;
        assert_eq!(choice.choose(), SyncWay::Through);
    }
}
