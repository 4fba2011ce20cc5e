//! One sync for all who wait for the same thing.

use std::cell::Cell;
use std::future::Future;
use std::io;

use crate::shard::event::Event;

/// Callers at the same time share a sync: one that is under way may have begun before a caller's write ended, so that caller waits for the next.
#[derive(Default)]
pub struct SharedSync {
    /// How many were asked for.
    asked: Cell<u64>,
    /// Up to which one they are done.
    done: Cell<u64>,
    running: Cell<bool>,
    ended: Event,
}

/// Lets the others go on though the sync was given up in the middle.
struct Running<'a>(&'a SharedSync);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.set(false);
        self.0.ended.notify();
    }
}

impl SharedSync {
    /// Ends when a run of `sync` that began after this call has succeeded.
    ///
    /// # Errors
    /// Those of the caller's own run; who waited for a run that failed tries again itself.
    pub async fn wait<F: Future<Output = io::Result<()>>>(&self, sync: impl Fn() -> F) -> io::Result<()> {
        let wanted = self.asked.get() + 1;
        self.asked.set(wanted);
        loop {
            let ticket = self.ended.ticket();
            if self.done.get() >= wanted {
                return Ok(());
            }
            if self.running.replace(true) {
                self.ended.wait(ticket).await;
                continue;
            }
            let running = Running(self);
            let covers = self.asked.get();
            let result = sync().await;
            if result.is_ok() {
                self.done.set(covers);
            }
            drop(running);
            result?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use futures_util::future::join_all;

    use super::*;

    #[test]
    fn who_comes_during_a_sync_waits_for_the_next_and_a_failure_is_its_runners_alone() {
        glommio::LocalExecutor::default().run(async {
            let (shared, runs) = (Rc::new(SharedSync::default()), Rc::new(Cell::new(0)));
            let wait = |fails_in: Option<i32>| {
                let (shared, runs) = (shared.clone(), runs.clone());
                async move {
                    let sync = || async {
                        let run = runs.get() + 1;
                        runs.set(run);
                        glommio::yield_if_needed().await;
                        glommio::timer::sleep(std::time::Duration::from_millis(1)).await;
                        if Some(run) == fails_in { Err(io::Error::other("a failure")) } else { Ok(()) }
                    };
                    shared.wait(sync).await
                }
            };
            // The first begins at once; the nine that come meanwhile share the second run.
            assert!(join_all((0..10).map(|_| wait(None))).await.iter().all(Result::is_ok));
            assert_eq!(runs.get(), 2);
            // The third run fails: its runner is told, the others share the fourth.
            let results = join_all((0..10).map(|_| wait(Some(3)))).await;
            assert_eq!((results.iter().filter(|r| r.is_err()).count(), runs.get()), (1, 4));
        });
    }
}
