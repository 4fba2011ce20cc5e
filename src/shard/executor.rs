//! Pinned executors: one thread per shard, allowed on exactly one CPU.

use std::future::Future;
use std::io;
use std::time::Duration;

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};

/// How often a busy executor looks at its ring and timers. glommio's default of 100 ms made a 1 ms sleep beside a busy task take 200 ms (measured).
const PREEMPT: Duration = Duration::from_millis(1);
/// Registered I/O memory per executor, bytes; reads beyond it use the heap.
const IO_MEMORY: usize = 4 << 20;

/// Starts a thread pinned to `cpu` that runs what `start` returns. `spin` keeps it awake that long before it sleeps.
pub fn spawn<F, T>(
    name: &str,
    cpu: usize,
    spin: Option<Duration>,
    start: impl FnOnce() -> F + Send + 'static,
) -> io::Result<ExecutorJoinHandle<T>>
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let mut builder = LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(name)
        .preempt_timer(PREEMPT)
        .io_memory(IO_MEMORY)
        // Renames and unlinks run on this helper thread; off the shards' CPUs it delays nobody.
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1));
    if let Some(spin) = spin {
        builder = builder.spin_before_park(spin);
    }
    Ok(builder.spawn(start)?)
}
