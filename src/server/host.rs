//! Whether this host can run a broker: CPUs, io_uring, limits, the data directory and its file system.
//!
//! Every refusal is one line: what is wrong, and what to do. Nothing here is on the data path; all of it runs once, before the
//! shards start, and blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::settings::{ServeSettings, Size};
use crate::limits::{self, BLOCK};
use crate::log::paths;

/// Keeps freed memory in the process instead of giving it back to the kernel block by block: buffers of appends and reads come and go by the megabyte, and
/// fresh pages for each were a fifth of a loaded shard's time (measured). What is used is bounded by the shards' budgets.
#[allow(unsafe_code)]
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        const LARGEST_BLOCK: libc::c_int = 32 << 20;
        const MOST_UNUSED: libc::c_int = 512 << 20;
        const GROWTH: libc::c_int = 1 << 20;
        // SAFETY: the allocator's parameters are set before any thread is started.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_BLOCK);
            libc::mallopt(libc::M_TRIM_THRESHOLD, MOST_UNUSED);
            libc::mallopt(libc::M_TOP_PAD, GROWTH);
        }
    }
}

/// The CPUs that this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// Ids of the allowed CPUs, in order; at least one.
    pub ids: Vec<usize>,
    /// What a cgroup allows, in whole CPUs rounded up; `None` is no limit.
    pub quota: Option<usize>,
}

impl Cpus {
    /// From the scheduler's mask and the cgroup.
    pub fn read() -> Result<Cpus, HostError> {
        let mask = rustix::thread::sched_getaffinity(None).map_err(|e| HostError::Cpus(e.into()))?;
        let ids = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| mask.is_set(*cpu)).collect();
        Ok(Cpus { ids, quota: cgroup_quota(|path| std::fs::read_to_string(path).ok()) })
    }

    /// One shard for each usable CPU, less one for everything else where there are more than two.
    pub fn default_shards(&self) -> u32 {
        let usable = self.ids.len().min(self.quota.unwrap_or(usize::MAX)).max(1);
        let shards = if usable > 2 { usable - 1 } else { usable };
        (shards as u32).min(limits::MAX_SHARDS)
    }

    /// The CPU of each shard, and what is left over.
    pub fn assign(&self, shards: u32) -> (Vec<usize>, Vec<usize>) {
        let taken = self.ids.iter().copied().cycle().take(shards as usize).collect();
        (taken, self.ids.iter().copied().skip(shards as usize).collect())
    }
}

/// The smallest CPU quota on the way up from this process's cgroup, rounded up; versions 2 and 1.
fn cgroup_quota(read: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let groups = read("/proc/self/cgroup")?;
    let mut least: Option<usize> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let mut path = path.trim_end_matches('/');
        loop {
            let quota = if controllers.is_empty() {
                read(&format!("/sys/fs/cgroup{path}/cpu.max")).and_then(|text| parse_quota(text.split_whitespace()))
            } else if controllers.split(',').any(|c| c == "cpu") {
                let file = |name: &str| read(&format!("/sys/fs/cgroup/cpu{path}/cpu.{name}"));
                file("cfs_quota_us").zip(file("cfs_period_us")).and_then(|(q, p)| parse_quota([q.trim(), p.trim()].into_iter()))
            } else {
                None
            };
            least = [least, quota].into_iter().flatten().min();
            match path.rsplit_once('/') {
                Some((parent, _)) => path = parent,
                None => break,
            }
        }
    }
    least
}

/// "quota period", both in us; `max` and -1 are no limit.
fn parse_quota<'a>(mut fields: impl Iterator<Item = &'a str>) -> Option<usize> {
    let quota: u64 = fields.next()?.parse().ok()?;
    let period: u64 = fields.next()?.parse().ok().filter(|p| *p > 0)?;
    Some(quota.div_ceil(period).max(1) as usize)
}

/// What the host can't do.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The mask can't be read.
    #[error("the allowed CPUs can't be read: {0}")]
    Cpus(io::Error),
    /// io_uring is off.
    #[error("io_uring can't be used ({error}): {advice}")]
    IoUring {
        /// What the kernel said.
        error: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// Too little locked memory.
    #[error(
        "only {} of memory can be locked, io_uring needs {}: raise it with `ulimit -l`, LimitMEMLOCK= of the service or --ulimit memlock= of the container",
        Size(*actual), Size(limits::MIN_LOCKED_MEMORY)
    )]
    LockedMemory {
        /// The hard limit, bytes.
        actual: u64,
    },
    /// Too few descriptors.
    #[error(
        "only {actual} files and connections can be open, at least {} are needed: raise it with `ulimit -Hn`, LimitNOFILE= of the service or --ulimit nofile= of the container",
        limits::MIN_DESCRIPTORS
    )]
    Descriptors {
        /// The hard limit.
        actual: u64,
    },
    /// More memory than there is.
    #[error("--memory {} is more than the {} that this host or its cgroup has: lower it", Size(*wanted), Size(*actual))]
    Memory {
        /// The budget, bytes.
        wanted: u64,
        /// What there is, bytes.
        actual: u64,
    },
    /// The data directory can't be used.
    #[error("the data directory {} can't be {action}: {error}{advice}", path.display())]
    Data {
        /// Which directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        error: io::Error,
        /// What to do, where it is not plain.
        advice: &'static str,
    },
    /// No direct I/O there.
    #[error(
        "the file system of {} is {file_system}, which can't do direct I/O, so `durable` can't be promised: use a directory on ext4 or XFS (--data), or --buffered-io to go through the page cache",
        path.display()
    )]
    DirectIo {
        /// Which directory.
        path: PathBuf,
        /// What it is.
        file_system: &'static str,
    },
    /// No room for a new store.
    #[error("the file system of {} has {} free, a new store of {shards} shard(s) needs {}: free some, or use another (--data)", path.display(), Size(*actual), Size(*needed))]
    Space {
        /// Which directory.
        path: PathBuf,
        /// Free bytes.
        actual: u64,
        /// Needed bytes.
        needed: u64,
        /// For how many shards.
        shards: u32,
    },
}

/// What was found and set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// How many descriptors may be open now.
    pub descriptors: u64,
}

/// Checks everything that can be known before the store is opened; raises the soft limits to the hard ones.
pub fn check(settings: &ServeSettings) -> Result<Host, HostError> {
    let descriptors = raise(Resource::Nofile);
    if descriptors < limits::MIN_DESCRIPTORS {
        return Err(HostError::Descriptors { actual: descriptors });
    }
    let locked = raise(Resource::Memlock);
    if locked < limits::MIN_LOCKED_MEMORY {
        return Err(HostError::LockedMemory { actual: locked });
    }
    check_io_uring()?;
    check_memory(settings.memory_bytes)?;
    check_data(settings)?;
    Ok(Host { descriptors })
}

/// The soft limit after it was raised to the hard one as far as the kernel allows.
fn raise(resource: Resource) -> u64 {
    let Rlimit { current, maximum } = getrlimit(resource);
    let raised = setrlimit(resource, Rlimit { current: maximum, maximum }).is_ok();
    if raised { maximum } else { current }.unwrap_or(u64::MAX)
}

fn check_io_uring() -> Result<(), HostError> {
    let mut params = rustix::io_uring::io_uring_params::default();
    // SAFETY: the ring is set up and closed again; nothing is mapped from it or submitted to it, so no memory is shared.
    #[allow(unsafe_code)]
    let ring = unsafe { rustix::io_uring::io_uring_setup(8, &mut params) };
    let advice = match ring {
        Ok(_) => return Ok(()),
        Err(Errno::NOSYS) => "use Linux 5.8 or later, or a seccomp profile that allows it",
        Err(Errno::PERM | Errno::ACCESS) => {
            "set sysctl kernel.io_uring_disabled=0, or run the container with a seccomp profile that allows io_uring (--security-opt seccomp=unconfined)"
        }
        Err(Errno::NOMEM) => "raise the locked-memory limit (`ulimit -l`)",
        Err(_) => "see the kernel's message",
    };
    Err(HostError::IoUring { error: ring.expect_err("matched above").into(), advice })
}

fn check_memory(wanted: u64) -> Result<(), HostError> {
    let actual = total_memory(|path| std::fs::read_to_string(path).ok());
    match actual {
        Some(actual) if wanted > actual => Err(HostError::Memory { wanted, actual }),
        _ => Ok(()),
    }
}

/// The machine's memory or the cgroup's limit, whichever is less, bytes.
fn total_memory(read: impl Fn(&str) -> Option<String>) -> Option<u64> {
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
    });
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let group = group.iter().find_map(|path| read(path)?.trim().parse::<u64>().ok());
    [machine, group].into_iter().flatten().min()
}

fn check_data(settings: &ServeSettings) -> Result<(), HostError> {
    let path = &settings.data;
    let failed = |action, error: io::Error| {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => "; change its owner, or use another (--data)",
            io::ErrorKind::ReadOnlyFilesystem => "; use another (--data)",
            io::ErrorKind::StorageFull => "; free some space",
            _ => "",
        };
        HostError::Data { path: path.clone(), action, error, advice }
    };
    std::fs::create_dir_all(path).map_err(|e| failed("created", e))?;
    let probe = Probe::create(path).map_err(|e| failed("written to", e))?;
    if !settings.buffered_io {
        check_direct_io(path, &probe)?;
    }
    drop(probe);
    // A store that is there opens with any space left: it can still be read, and made smaller.
    let is_new = std::fs::read_dir(path).map_err(|e| failed("read", e))?.next().is_none();
    if is_new { check_space(path, settings.shards()).map_err(|e| e.unwrap_or_else(|e| failed("examined", e))) } else { Ok(()) }
}

fn check_space(path: &Path, shards: u32) -> Result<(), Result<HostError, io::Error>> {
    let space = rustix::fs::statvfs(path).map_err(|e| Err(e.into()))?;
    let (actual, needed) =
        (space.f_bavail.saturating_mul(space.f_frsize), limits::MIN_FREE_SPACE + u64::from(shards) * limits::MIN_FREE_SPACE_PER_SHARD);
    if actual < needed { Err(Ok(HostError::Space { path: path.into(), actual, needed, shards })) } else { Ok(()) }
}

/// A file to try things on, gone when dropped.
struct Probe(PathBuf);

impl Probe {
    fn create(directory: &Path) -> io::Result<Probe> {
        let path = directory.join(paths::host_probe(std::process::id()));
        File::create(&path)?;
        Ok(Probe(path))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The name of a file system that keeps its files in memory. These say yes to O_DIRECT (tmpfs since Linux 6.6), so they are known by their type.
pub fn memory_file_system(path: &Path) -> Option<&'static str> {
    const IN_MEMORY: [(u64, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];
    let kind = rustix::fs::statfs(path).map(|s| s.f_type as u64).unwrap_or(0);
    IN_MEMORY.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name)
}

fn check_direct_io(path: &Path, probe: &Probe) -> Result<(), HostError> {
    let refused = |file_system| Err(HostError::DirectIo { path: path.into(), file_system });
    if let Some(name) = memory_file_system(path) {
        return refused(name);
    }
    let written = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&probe.0).and_then(|file| {
        let buffer = vec![0; 2 * BLOCK];
        let start = buffer.as_ptr().align_offset(BLOCK);
        file.write_all_at(&buffer[start..start + BLOCK], 0)
    });
    match written {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => refused("one without O_DIRECT"),
        // No space, say: not about direct I/O, and the store knows how to live with it.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::RawSettings;
    use super::*;

    fn settings(data: &Path) -> ServeSettings {
        let raw = RawSettings { data: Some(data.into()), shards: Some(1), ..RawSettings::default() };
        raw.validate(&Cpus::read().unwrap()).unwrap()
    }

    #[test]
    fn shards_leave_a_cpu_where_there_are_more_than_two() {
        for (allowed, quota, shards) in
            [(1, None, 1), (2, None, 2), (3, None, 2), (8, None, 7), (8, Some(2), 2), (8, Some(3), 2), (8, Some(1), 1)]
        {
            let cpus = Cpus { ids: (10..10 + allowed).collect(), quota };
            assert_eq!(cpus.default_shards(), shards, "{cpus:?}");
        }
        let cpus = Cpus { ids: vec![2, 3, 9], quota: None };
        assert_eq!(cpus.assign(2), (vec![2, 3], vec![9]));
        assert_eq!(cpus.assign(5), (vec![2, 3, 9, 2, 3], vec![]));
    }

    #[test]
    fn quotas_of_both_cgroup_versions_are_rounded_up() {
        let files =
            |list: &'static [(&str, &str)]| move |path: &str| list.iter().find(|(p, _)| *p == path).map(|(_, text)| text.to_string());
        let nested = files(&[
            ("/proc/self/cgroup", "0::/a/b\n"),
            ("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/a/cpu.max", "250000 100000\n"),
        ]);
        assert_eq!(cgroup_quota(nested), Some(3));
        let first = files(&[
            ("/proc/self/cgroup", "3:memory:/x\n2:cpu,cpuacct:/x\n"),
            ("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "50000\n"),
            ("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(cgroup_quota(first), Some(1));
        assert_eq!(cgroup_quota(files(&[("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/cpu.max", "max 100000")])), None);
        assert_eq!(cgroup_quota(|_| None), None);
    }

    #[test]
    fn memory_is_what_machine_and_cgroup_both_allow() {
        let read = |path: &str| match path {
            "/proc/meminfo" => Some("MemTotal:       2048 kB\nMemFree: 1 kB\n".to_owned()),
            "/sys/fs/cgroup/memory.max" => Some("1048576\n".to_owned()),
            _ => None,
        };
        assert_eq!(total_memory(read), Some(1 << 20));
        assert_eq!(total_memory(|p| read(p).filter(|_| p == "/proc/meminfo")), Some(2 << 20));
        assert!(matches!(check_memory(u64::MAX), Err(HostError::Memory { .. })));
    }

    #[test]
    fn the_data_directory_is_made_and_left_clean() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("a/b");
        check_data(&settings(&data)).unwrap();
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
        let file = directory.path().join("file");
        File::create(&file).unwrap();
        let error = check_data(&settings(&file)).unwrap_err().to_string();
        assert!(error.starts_with("the data directory ") && error.contains(" can't be created: "), "{error}");
    }

    #[test]
    fn memory_file_systems_are_told_and_have_a_way_out() {
        let Ok(directory) = tempfile::tempdir_in("/dev/shm") else { return };
        let kind = rustix::fs::statfs(directory.path()).unwrap().f_type as u64;
        if kind != 0x0102_1994 {
            return;
        }
        let mut settings = settings(&directory.path().join("data"));
        let error = check_data(&settings).unwrap_err().to_string();
        assert!(error.contains("tmpfs") && error.contains("--buffered-io"), "{error}");
        settings.buffered_io = true;
        match check_data(&settings) {
            Ok(()) | Err(HostError::Space { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn this_host_has_io_uring_or_says_what_to_do() {
        if let Err(error) = check_io_uring() {
            assert!(error.to_string().starts_with("io_uring can't be used"), "{error}");
        }
    }
}
