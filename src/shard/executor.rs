//! Pinned executors: one thread per shard, allowed on exactly one CPU.

use std::future::Future;
use std::io;
use std::time::Duration;

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};
use rustix::io_uring::{IoringRegisterOp, io_uring_params, io_uring_register, io_uring_setup};

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
    Ok(builder.spawn(move || {
        if let Err(error) = keep_workers_on(cpu) {
            tracing::debug!(%error, cpu, "the kernel's I/O workers stay unbound");
        }
        start()
    })?)
}

/// Lets the kernel's worker threads of this thread's rings (they run its syncs) run on `cpu` only: a wake-up on the same core costs a
/// fraction of one across cores, and the other shards' cores stay theirs.
#[allow(unsafe_code)]
fn keep_workers_on(cpu: usize) -> io::Result<()> {
    let mut params = io_uring_params::default();
    // SAFETY: valid zero parameters ask for nothing special; the ring is closed when the descriptor is dropped.
    let ring = unsafe { io_uring_setup(1, &mut params) }?;
    let mut cpus = [0_u64; rustix::thread::CpuSet::MAX_CPU / 64];
    let Some(word) = cpus.get_mut(cpu / 64) else { return Ok(()) };
    *word = 1 << (cpu % 64);
    // SAFETY: the mask is read during the call, for as many bytes as are told. What is set is the calling thread's, whatever ring it comes through.
    unsafe { io_uring_register(&ring, IoringRegisterOp::RegisterIowqAff, cpus.as_ptr().cast(), size_of_val(&cpus) as u32) }?;
    Ok(())
}
