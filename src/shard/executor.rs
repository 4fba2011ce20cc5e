//! Pinned executors: one thread per shard, allowed on exactly one CPU.

use std::future::Future;
use std::io;
use std::time::Duration;

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};

/// How often a busy executor looks at its ring and timers. glommio's default of 100 ms made a 1 ms sleep beside a busy task take 200 ms (measured).
const PREEMPT: Duration = Duration::from_millis(1);
/// Registered I/O memory per executor, bytes; reads beyond it use the heap.
const IO_MEMORY: usize = 4 << 20;

/// CPUs that this process may use, ascending.
#[allow(unsafe_code)]
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero cpu_set_t is valid, and the kernel writes at most its size.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: pid 0 is this thread; pointer and size belong to `set`.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: CPU_ISSET reads bits inside the set for indices below CPU_SETSIZE.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect())
}

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
