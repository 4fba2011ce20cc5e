//! From settings to a running broker, and to its end.
//!
//! Order: host checks, lock, listeners, identity, catalogue (this start made durable; of a cluster, this waits for the others), recovery of the store (blocking, before any
//! executor), control plane, shards. `ready` is printed when every shard accepts. The end: leadership goes to other
//! nodes, shards drain and take a last checkpoint, then the store is marked clean.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use crate::bridge::bridge;
use crate::cluster::node::PROTOCOL;
use crate::cluster::{Endpoint, Registration};
use crate::control::metadata::{MetadataStore, SingleNodeLog, Witness};
use crate::control::raft::Consensus;
use crate::control::status::{NodeState, NodeStatus, ShardPlace};
use crate::control::termination::{Ended, Termination};
use crate::control::{ControlParts, ControlPlane};
use crate::log::file_header::MetaSlot;
use crate::log::files::{ReadFiles, StoreFiles};
use crate::log::paths;
use crate::log::recovery::{OpenRequest, RecoveredStore, open_store};
use crate::metrics::ShardMetrics;
use crate::request::Broker;
use crate::server::catalogue_trace::witness;
use crate::server::listeners::Listeners;
use crate::server::membership::{self, EnterError, NodeStore, Past};
use crate::server::settings::ServeSettings;
use crate::server::{host, identity};
use crate::shard::blocking_files::BlockingFiles;
use crate::shard::context::NodeIdentity;
use crate::shard::mesh::mesh;
use crate::shard::replication::{Lease, Pace};
use crate::shard::reserve::Reserve;
use crate::shard::ring::JournalFile;
use crate::shard::runtime::{self, ShardParts};
use crate::shard::store::now_ms;
use crate::shard::trace::{Trace, TraceEvent};
use crate::shard::verifier::DamagedPartitions;
use crate::shard::{executor, kick};
use crate::types::TopicPartition;

/// How `serve` is run, besides the broker's settings.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Print the line `ready` as JSON.
    pub json: bool,
    /// Record everything that is done to the disk here (for tests of crashes).
    pub disk_trace: Option<std::path::PathBuf>,
    /// Size of a journal file, bytes, instead of the one that follows from the memory: with small files a short trace has laps.
    pub journal_file: Option<u64>,
}

/// Why a broker does not serve, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The host can't run it.
    #[error("{0}")]
    Host(#[from] host::HostError),
    /// The store can't be opened.
    #[error("{0}")]
    Store(String),
    /// A port can't be had.
    #[error("can't listen on {address}: {error}{}{what}", if error.kind() == io::ErrorKind::AddrInUse { "; another program has the port: stop it or choose another with " } else { "; this is for " })]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The flag, and what the port is for where that is not plain.
        what: String,
        /// Why.
        error: io::Error,
    },
    /// A shard or a thread failed.
    #[error("{0}")]
    Failed(String),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When it can't start, or a shard failed.
pub fn serve(settings: ServeSettings, options: &ServeOptions) -> Result<(), ServeError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| ServeError::Failed(format!("{what}: {error}"));
    host::keep_freed_memory();
    let mut termination = Termination::install().map_err(|e| failed("signals", &e))?;
    let host = host::check(&settings)?;
    tracing::debug!(descriptors = host.descriptors, "host checked");
    let lock = lock_data(&settings.data)?;
    let Listeners { clients: listeners, admin, consensus: port, replication } = Listeners::bind(&settings)?;
    let trace = match &options.disk_trace {
        Some(path) => Some(Arc::new(Trace::open(path).map_err(|e| failed("disk trace", &e))?)),
        None => None,
    };
    if let Some(trace) = &trace {
        trace.record(&TraceEvent::Mark { name: "start".into() });
    }
    let reserve = Arc::new(Reserve::open(&settings.data, settings.buffered_io).map_err(store_error)?);
    let mut files = BlockingFiles::traced(&settings.data, !settings.buffered_io, trace.clone());
    let past = Past::of(&settings.data);
    let Some(mut meta) = identity::open(&mut files, &settings, past, &mut termination)? else { return Ok(()) };
    drop_unfinished_catalogue(&mut files)?;
    let shards = settings.shards();
    let addresses: Vec<SocketAddr> =
        listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>().map_err(|e| failed("listeners", &e))?;
    let brokers = brokers(&settings, meta.node_id, &addresses);
    let registration = registration(&settings, &meta, past, &brokers);
    let hears = witness(trace.clone(), settings.data.clone());
    let (cluster, catalogue) = match (&settings.cluster, port) {
        (Some(cluster), Some(port)) => {
            let (consensus, membership) = membership::start_consensus(&settings, cluster, past, registration, port, hears)?;
            match termination.during(membership.enter()) {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(not_in_cluster(&mut files, &settings, past, consensus, error)),
                None => return Ok(()),
            }
            let store = NodeStore::Cluster(membership.store().clone());
            (Some((consensus, membership)), store)
        }
        _ => (None, NodeStore::Alone(open_catalogue(&settings.data, &registration, past, hears)?)),
    };
    let view = catalogue.view();
    let ring = runtime::ring_size(settings.memory_bytes / u64::from(settings.shards()), settings.shards(), options.journal_file);
    let recovered = recover(&mut files, &settings, ring, &meta, &view)?;
    meta = mark(&mut files, &meta, false)?;

    let identity = Arc::new(NodeIdentity { cluster: meta.cluster, node: meta.node_id, brokers });
    let metrics: Vec<_> = (0..shards).map(|s| Arc::new(ShardMetrics::new(s))).collect();
    let status = Arc::new(NodeStatus::new(meta.node_id));
    let (control_end, shard_ends) = bridge(shards as usize);
    let mut control = ControlPlane::start(ControlParts {
        store: catalogue,
        end: control_end,
        shards: metrics.clone(),
        status: status.clone(),
        admin,
        spare_cpus: settings.spare_cpus.clone(),
    })
    .map_err(|e| failed("control plane", &e))?;

    let (ready, started) = async_channel::unbounded();
    let (gone, ended) = async_channel::unbounded();
    let lease = Lease::begin();
    let pace = Pace::of(settings.catch_up_bytes_per_s);
    let verify_pace = Some(settings.verify_bytes_per_s).filter(|rate| *rate > 0).map(Pace::of);
    let damaged = DamagedPartitions::default();
    if let Some((_, membership)) = &cluster {
        let keeping = membership.clone().keep_lease(lease.clone(), control.end(), control.in_force());
        let gone: async_channel::Sender<Result<(), String>> = gone.clone();
        let work = async move {
            let reason = keeping.await;
            let _ = gone.send(Err(reason)).await;
        };
        control.run_beside("corelane-lease", work).map_err(|e| failed("the thread of the lease", &e))?;
    }
    let mut threads = Vec::new();
    let before = kick::Known::now().map_err(|e| failed("/proc", &e))?;
    let mut journals = share_of(&recovered, ring, shards);
    let places = mesh(shards);
    let RecoveredStore { generation, salt, shards: images, next_journal_id, .. } = recovered;
    let parts = settings.per_shard().zip(images).zip(listeners).zip(replication).zip(places).zip(shard_ends).zip(&metrics);
    for ((((((shard, partitions), listener), replication), mesh), control), metrics) in parts {
        let parts = ShardParts {
            shard: shard.shard,
            data: settings.data.clone(),
            buffered: shard.buffered_io,
            trace: trace.clone(),
            memory: shard.memory_bytes,
            ring,
            durability: shard.durability,
            auto_create_topics: shard.auto_create_topics,
            groups: shard.groups,
            generation,
            salt,
            partitions,
            journals: std::mem::take(&mut journals[shard.shard as usize]),
            journal_ids: (next_journal_id + u64::from(shard.shard), u64::from(shards)),
            identity: identity.clone(),
            listener,
            replication,
            lease: lease.clone(),
            pace: pace.clone(),
            verify_pace: verify_pace.clone(),
            damaged: damaged.clone(),
            mesh,
            control,
            view: view.clone(),
            reserve: reserve.clone(),
            metrics: metrics.clone(),
            ready: ready.clone(),
        };
        let gone = gone.clone();
        let spin = Some(shard.spin).filter(|s| !s.is_zero());
        let thread = executor::spawn(&format!("shard-{}", shard.shard), shard.cpu, spin, move || async move {
            let outcome = runtime::run(parts).await;
            let _ = gone.send(outcome).await;
        });
        threads.push(thread.map_err(|e| failed("executor", &e))?);
    }
    drop((ready, gone));
    let _kicks = kick::start(&before).map_err(|e| failed("the thread that wakes the shards", &e))?;
    for _ in 0..shards {
        match started.recv_blocking() {
            Ok(Ok(_)) => {}
            Ok(Err(text)) => return Err(ServeError::Failed(text)),
            Err(_) => return Err(ServeError::Failed("a shard ended before it was ready".into())),
        }
    }
    reserve.restore(view.partitions());
    let places: Vec<_> =
        settings.per_shard().zip(&addresses).map(|(s, address)| ShardPlace { shard: s.shard, address: *address, cpu: s.cpu }).collect();
    status.set_ready(places.clone());
    print_ready(options, &meta, &places, control.admin());

    match termination.wait(&ended) {
        Ended::Signal(name) => tracing::info!(name, "draining"),
        Ended::Told(Some(Err(text))) => {
            status.advance(NodeState::Failed);
            return Err(ServeError::Failed(text));
        }
        Ended::Told(_) => return Err(ServeError::Failed("a shard ended by itself".into())),
    }
    status.advance(NodeState::Draining);
    if let Some((_, membership)) = &cluster {
        termination.block_on(membership.leave());
    }
    control.drain();
    for _ in 0..shards {
        match ended.recv_blocking() {
            Ok(Ok(())) => {}
            Ok(Err(text)) => return Err(ServeError::Failed(text)),
            Err(_) => break,
        }
    }
    for thread in threads {
        thread.join().map_err(|e| failed("executor", &e))?;
    }
    control.stop();
    if let Some((consensus, _)) = cluster {
        consensus.stop();
    }
    mark(&mut files, &meta, true)?;
    drop(lock);
    Ok(())
}

pub(super) fn store_error(error: impl std::fmt::Display) -> ServeError {
    ServeError::Store(error.to_string())
}

/// One broker at a time has the directory; the lock goes with the file that is returned.
///
/// # Errors
/// Another one has it, or the file can't be opened.
pub fn lock_data(data: &Path) -> Result<std::fs::File, ServeError> {
    let path = data.join(paths::LOCK);
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| ServeError::Store(format!("{}: {e}", path.display())))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServeError::Store(format!(
            "the data directory {} is in use by another broker: stop it, or choose another with --data",
            data.display()
        ))),
        Err(error) => Err(ServeError::Store(format!("{}: {error}", path.display()))),
    }
}

/// A node that was not let in is no member of anything: what its first start made is taken away, so that the next one may try with other settings.
fn not_in_cluster(files: &mut BlockingFiles, settings: &ServeSettings, past: Past, consensus: Consensus, error: EnterError) -> ServeError {
    consensus.stop();
    if past == Past::Unborn && matches!(error, EnterError::NotLetIn(_)) {
        let removed = std::fs::remove_dir_all(settings.data.join(paths::CONSENSUS_DIR)).map_err(|e| e.to_string());
        if let Err(error) = removed.and_then(|()| files.unlink(paths::META).map_err(|e| e.to_string())) {
            tracing::warn!(error, "what this start has made stays; empty the data directory before the next one");
        }
    }
    ServeError::Failed(error.to_string())
}

fn mark(files: &mut BlockingFiles, meta: &MetaSlot, clean_shutdown: bool) -> Result<MetaSlot, ServeError> {
    crate::log::identity::write(files, Some(meta), &MetaSlot { clean_shutdown, ..*meta }).map_err(store_error)
}

/// A compaction of the catalogue that was cut short before its rename counts for nothing.
fn drop_unfinished_catalogue(files: &mut BlockingFiles) -> Result<(), ServeError> {
    match files.len(paths::CATALOGUE_TMP) {
        Ok(_) => files.unlink(paths::CATALOGUE_TMP).map_err(store_error),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(store_error(error)),
    }
}

/// What this node says of itself.
fn registration(settings: &ServeSettings, meta: &MetaSlot, past: Past, brokers: &[Broker]) -> Registration {
    Registration {
        node: meta.node_id,
        incarnation: meta.incarnation,
        cluster: meta.cluster,
        protocol: PROTOCOL,
        software: env!("CARGO_PKG_VERSION").into(),
        cluster_address: settings.cluster.as_ref().map(|cluster| Endpoint::new(&cluster.advertised_host, cluster.listen.port())),
        replication_port: settings.cluster.as_ref().map_or(0, |cluster| cluster.listen.port() + 1),
        clients: brokers.iter().map(|broker| Endpoint::new(&broker.host, broker.port)).collect(),
        shards: settings.shards(),
        rack: settings.rack.clone(),
        durability: settings.durability,
        clean_stop: meta.clean_shutdown || past == Past::Unborn,
    }
}

fn open_catalogue(data: &Path, registration: &Registration, past: Past, witness: Witness) -> Result<SingleNodeLog, ServeError> {
    let path = data.join(paths::CATALOGUE);
    if past == Past::Unborn {
        SingleNodeLog::create(&path, registration.cluster, &witness).map_err(store_error)?;
    }
    let (log, opened) = SingleNodeLog::open(&path, registration, witness).map_err(store_error)?;
    if let Some(torn) = opened.torn {
        tracing::warn!(?torn, "the catalogue ended in a record that was never acknowledged; it was cut");
    }
    Ok(log)
}

fn recover(
    files: &mut BlockingFiles,
    settings: &ServeSettings,
    ring: (u64, usize),
    meta: &MetaSlot,
    view: &crate::cluster::CatalogueView,
) -> Result<RecoveredStore, ServeError> {
    let shards = settings.shards();
    let node = meta.node_id;
    // Those without a record are of a store from before there were clusters.
    let is_here = |id: &TopicPartition| view.partition(id).is_none_or(|record| record.replica(node).is_some());
    let all = view.topics().flat_map(|t| (0..t.partitions).map(|partition| TopicPartition { topic: t.id, partition }));
    let catalogue: Vec<_> = all.filter(is_here).collect();
    let begun = std::time::Instant::now();
    let request = OpenRequest {
        cluster: meta.cluster,
        shards,
        salt: uuid::Uuid::new_v4().as_u64_pair().0 | 1,
        now_ms: now_ms(),
        catalogue: &catalogue,
        owner: &|p: TopicPartition| view.shard_on(node, &p).unwrap_or_else(|| p.topic.shard_of(p.partition, shards)),
    };
    let recovered = open_store(files, &request).map_err(store_error)?;
    let report = &recovered.report;
    tracing::info!(
        generation = recovered.generation,
        groups = report.groups,
        bytes = report.bytes,
        partitions = report.partitions,
        elapsed_ms = begun.elapsed().as_millis() as u64,
        clean = meta.clean_shutdown,
        "store opened"
    );
    for torn in &report.torn {
        tracing::info!(?torn, "the last journal group was torn: it was never acknowledged");
    }
    for damage in report.torn_checkpoints.iter().chain(&report.damage) {
        tracing::error!(file = damage.file, offset = damage.offset, kind = ?damage.kind, detail = damage.detail, "damage");
    }
    drop_surplus_journals(files, &recovered, ring, shards)?;
    Ok(recovered)
}

/// Journal files that the new number of shards does not use are removed.
fn drop_surplus_journals(files: &mut BlockingFiles, recovered: &RecoveredStore, ring: (u64, usize), shards: u32) -> Result<(), ServeError> {
    let used: Vec<_> = share_of(recovered, ring, shards).into_iter().flatten().collect();
    let mut removed = false;
    for journal in recovered.journals.iter().filter(|j| !used.iter().any(|u| u.id == j.id)) {
        files.unlink(&journal.path).map_err(store_error)?;
        removed = true;
    }
    if removed {
        files.sync_dir(paths::JOURNAL_DIR).map_err(store_error)?;
    }
    Ok(())
}

fn brokers(settings: &ServeSettings, node: u32, addresses: &[SocketAddr]) -> Vec<Broker> {
    (0..settings.advertised_endpoints)
        .zip(addresses)
        .map(|(shard, address)| {
            let (host, port) = settings.advertised(shard, address.port());
            Broker { id: node * crate::limits::MAX_SHARDS + shard, host: host.into(), port }
        })
        .collect()
}

fn print_ready(options: &ServeOptions, meta: &MetaSlot, places: &[ShardPlace], admin: Option<SocketAddr>) {
    let line = if options.json {
        let shards: Vec<_> =
            places.iter().map(|p| serde_json::json!({ "shard": p.shard, "address": p.address.to_string(), "cpu": p.cpu })).collect();
        serde_json::json!({
            "ready": true,
            "node": meta.node_id,
            "pid": std::process::id(),
            "shards": shards,
            "admin": admin.map(|a| a.to_string()),
        })
        .to_string()
    } else {
        "ready".into()
    };
    let mut out = io::stdout().lock();
    // Nobody may be reading; the broker serves all the same.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn share_of(recovered: &RecoveredStore, (size, files): (u64, usize), shards: u32) -> Vec<Vec<JournalFile>> {
    let mut shares = vec![Vec::new(); shards as usize];
    let fitting = recovered.journals.iter().filter(|j| j.size == size);
    for (at, journal) in fitting.take(files * shards as usize).enumerate() {
        shares[at % shards as usize].push(JournalFile { id: journal.id, size: journal.size });
    }
    shares
}
