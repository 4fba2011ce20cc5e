//! Wakes every executor now and then from outside, because the runtime may put one to sleep that has tasks to run.
//!
//! glommio 0.9 runs no task when its preemption timer has expired before the first one (on a CPU that others use too, a thread is
//! taken off it for longer than that), takes this for "nothing to run", and sleeps until a timer or a completion comes. Where every timer belongs to a task
//! that is to be run, none comes: a shard that was just started hung for ever that way, mostly before its first task had run at all (decision 0004).
//!
//! So the wake must need no task. A sleeping executor always reads from an eventfd, which other threads write to when they wake one of its tasks; a bare write
//! wakes it as well. The runtime does not name that descriptor: it is the one that is new after an executor was made.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

/// Between two wakes of an executor: the longest that such a sleep lasts, and next to nothing for an idle broker.
const EVERY: Duration = Duration::from_millis(100);

/// The eventfds of this process, to tell which one an executor brought. Another thread's that came at the same time is taken too: a wake too many harms nobody.
pub struct Known(BTreeSet<RawFd>);

/// What the executors are woken by. They are woken as long as this lives.
pub struct Kicks(Vec<OwnedFd>);

impl Known {
    /// Those that there are now.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn now() -> io::Result<Known> {
        let mut known = BTreeSet::new();
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let entry = entry?;
            // One that is closed meanwhile is none of ours.
            let is_eventfd = std::fs::read_link(entry.path()).is_ok_and(|what| what.as_os_str() == "anon_inode:[eventfd]");
            if is_eventfd && let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                known.insert(number);
            }
        }
        Ok(Known(known))
    }

    /// Descriptors of our own for those that came since.
    ///
    /// # Errors
    /// When there can be no more descriptors.
    #[allow(unsafe_code)]
    fn new_ones(&self) -> io::Result<Vec<OwnedFd>> {
        let new = Known::now()?.0.into_iter().filter(|number| !self.0.contains(number));
        // SAFETY: the descriptor is borrowed for one call, which refuses a number that is not open (any more).
        new.map(|number| rustix::io::dup(unsafe { BorrowedFd::borrow_raw(number) }).map_err(io::Error::from)).collect()
    }
}

/// Starts the thread that wakes the executors made since `before`; it ends with what this returns.
///
/// # Errors
/// When there can be no thread, or no descriptors for it.
pub fn start(before: &Known) -> io::Result<Arc<Kicks>> {
    let kicks = Arc::new(Kicks(before.new_ones()?));
    let weak: Weak<Kicks> = Arc::downgrade(&kicks);
    let run = move || {
        while let Some(kicks) = weak.upgrade() {
            for kick in &kicks.0 {
                // A failure costs this wake; the next one comes soon.
                let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
            }
            drop(kicks);
            thread::sleep(EVERY);
        }
    };
    thread::Builder::new().name("kick".into()).spawn(run)?;
    Ok(kicks)
}
