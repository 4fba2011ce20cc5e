//! Waits for a moment more exactly than a millisecond: tokio's own timers round up to whole ones.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};
use tokio::io::unix::AsyncFd;

/// A timer of the kernel that a task waits for.
pub struct Pacer {
    timer: AsyncFd<OwnedFd>,
}

impl Pacer {
    /// Needs a tokio runtime with I/O.
    pub fn new() -> io::Result<Pacer> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // SAFETY: the descriptor is owned by what registers it, so it stays open and the same for as long.
        #[allow(unsafe_code)]
        let timer = unsafe { AsyncFd::register(timer)? };
        Ok(Pacer { timer })
    }

    /// Returns at `moment`, or at once when it is over.
    pub async fn until(&self, moment: Instant) -> io::Result<()> {
        let wait = moment.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once(wait))?;
        loop {
            let mut ready = self.timer.readable().await?;
            let mut expirations = [0; 8];
            match ready.try_io(|timer| Ok(rustix::io::read(timer, &mut expirations)?)) {
                Ok(read) => return read.map(|_| ()),
                Err(_would_block) => continue,
            }
        }
    }
}

fn once(wait: Duration) -> Itimerspec {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) } }
}

/// When each record of a fixed rate is meant to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start: Instant,
    per_second: f64,
}

impl Schedule {
    /// `per_second` records a second from `start` on.
    pub fn new(start: Instant, per_second: f64) -> Schedule {
        Schedule { start, per_second }
    }

    /// The moment of the n-th record, from 0. It does not depend on when earlier ones were sent.
    pub fn intended(&self, n: u64) -> Instant {
        self.start + Duration::from_secs_f64(n as f64 / self.per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_returns_early() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let pacer = Pacer::new().unwrap();
            for wait_us in [0, 50, 300, 2000] {
                let moment = Instant::now() + Duration::from_micros(wait_us);
                pacer.until(moment).await.unwrap();
                assert!(Instant::now() >= moment);
            }
        });
    }

    #[test]
    fn a_schedule_does_not_drift() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 3.0);
        assert_eq!(schedule.intended(0), start);
        assert_eq!(schedule.intended(3_000_000), start + Duration::from_secs(1_000_000));
    }
}
