//! Waiting for the order to stop.

use std::io;

use async_channel::Receiver;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT, caught from the moment this exists.
#[derive(Debug)]
pub struct Termination {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
}

/// Why the wait is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended<T> {
    /// A signal came: its name.
    Signal(&'static str),
    /// Something was said, or (`None`) everybody who could has gone.
    Told(Option<T>),
}

impl Termination {
    /// Catches the signals; before the first work that a kill must not cut short.
    pub fn install() -> io::Result<Termination> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (terminate, interrupt) = {
            let _inside = runtime.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        Ok(Termination { runtime, terminate, interrupt })
    }

    /// Blocks until a signal comes or `other` has something to say (a shard that failed).
    pub fn wait<T>(&mut self, other: &Receiver<T>) -> Ended<T> {
        let Termination { runtime, terminate, interrupt } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => Ended::Signal("SIGTERM"),
                _ = interrupt.recv() => Ended::Signal("SIGINT"),
                told = other.recv() => Ended::Told(told.ok()),
            }
        })
    }

    /// Blocks until `work` is done, or (`None`) until a signal comes: what takes as long as other nodes want must not keep this one from stopping.
    pub fn during<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let Termination { runtime, terminate, interrupt } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => None,
                _ = interrupt.recv() => None,
                done = work => Some(done),
            }
        })
    }

    /// Blocks until `work` is done, whatever signals come.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}
