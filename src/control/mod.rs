//! The control plane: two ordinary threads, each with a tokio runtime of its own, away from the shards' CPUs where there are more.
//!
//! `metadata` takes the shards' proposals in one order, makes them durable and tells every shard; `http` serves the admin port. They
//! are apart because a scrape must not delay a proposal. Neither touches record data. `raft` is the catalogue of a cluster, with a thread of its own for elections and heartbeats.
//! Not here: the state machine (`cluster`), the queues (`bridge`).

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::watch;

use crate::bridge::{ControlEnd, MembershipRequest};
use crate::cluster::{Applied, Committed};
use crate::limits;
use crate::metrics::ShardMetrics;

mod balance;
pub mod exposition;
pub mod http;
pub mod metadata;
#[cfg(test)]
mod metadata_crash;
pub mod raft;
pub mod status;
pub mod termination;

use metadata::MetadataStore;
use status::NodeStatus;

/// What the control plane is made of.
pub struct ControlParts<S> {
    /// The catalogue, open.
    pub store: S,
    /// Its end of the bridge.
    pub end: ControlEnd,
    /// What the shards count.
    pub shards: Vec<Arc<ShardMetrics>>,
    /// What is said of the node.
    pub status: Arc<NodeStatus>,
    /// The admin port, bound; `None` serves none.
    pub admin: Option<TcpListener>,
    /// CPUs that no shard has; empty leaves the threads to the scheduler.
    pub spare_cpus: Vec<usize>,
}

/// The running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    end: ControlEnd,
    /// The catalogue that every shard acts by, in commands.
    in_force: watch::Receiver<u64>,
    admin: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl ControlPlane {
    /// Starts both threads.
    pub fn start<S: MetadataStore>(parts: ControlParts<S>) -> io::Result<ControlPlane> {
        let ControlParts { store, end, shards, status, admin, spare_cpus } = parts;
        let stop = watch::Sender::new(false);
        let store = Arc::new(store);
        let asked = Arc::clone(&store);
        let observed = http::Observed { shards, status, view: store.subscribe(), consensus: Arc::new(move || asked.consensus()) };
        let (told, in_force) = watch::channel(0);
        let mut plane = ControlPlane { end: end.clone(), in_force, admin: None, stop, threads: Vec::new() };
        plane.run("corelane-meta", spare_cpus.first().copied(), serve_metadata(store, end, told))?;
        if let Some(listener) = admin {
            plane.admin = Some(listener.local_addr()?);
            listener.set_nonblocking(true)?;
            plane.run("corelane-http", spare_cpus.last().copied(), http::serve(listener, observed))?;
        }
        Ok(plane)
    }

    /// The end of the bridge, for who tells the shards something besides.
    pub fn end(&self) -> ControlEnd {
        self.end.clone()
    }

    /// A thread for `work`, until it ends or the plane is stopped.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn run_beside(&mut self, name: &str, work: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        self.run(name, None, work)
    }

    /// The catalogue that every shard acts by, in commands; 0 before the first.
    pub fn in_force(&self) -> watch::Receiver<u64> {
        self.in_force.clone()
    }

    /// Where the admin port is.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Tells every shard to finish and end. Blocks at most for room in their queues.
    pub fn drain(&self) {
        self.end.drain_blocking();
    }

    /// Ends both threads, once the shards have ended: a proposal in hand is lost to its proposer, not to the log.
    pub fn stop(self) {
        self.stop.send_replace(true);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the control plane had panicked");
            }
        }
    }

    /// A thread with a runtime, at `work` until it ends or the plane is stopped.
    fn run(&mut self, name: &str, cpu: Option<usize>, work: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let mut stop = self.stop.subscribe();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name(format!("{name}-io"))
            .max_blocking_threads(limits::CONTROL_BLOCKING_THREADS)
            .build()?;
        let body = move || {
            if let Some(id) = cpu {
                // Without the pin it runs as well, only less apart.
                let _ = core_affinity::set_for_current(core_affinity::CoreId { id });
            }
            runtime.block_on(async {
                tokio::select! {
                    () = work => {}
                    _ = stop.wait_for(|stopped| *stopped) => {}
                }
            });
        };
        self.threads.push(thread::Builder::new().name(name.into()).spawn(body)?);
        Ok(())
    }
}

/// Takes proposals in their order, those that wait at the same time together; their proposers are answered as the shards put them in force.
async fn serve_metadata<S: MetadataStore>(store: Arc<S>, end: ControlEnd, in_force: watch::Sender<u64>) {
    let publisher = tokio::spawn(publish(store.subscribe(), end.clone(), in_force.clone()));
    let others = [tokio::spawn(serve_membership(Arc::clone(&store), end.clone())), tokio::spawn(balance::keep(Arc::clone(&store)))];
    while let Some(first) = end.next_request().await {
        let more = std::iter::from_fn(|| end.waiting_request()).take(limits::CATALOGUE_GROUP - 1);
        let (commands, replies): (Vec<_>, Vec<_>) = [first].into_iter().chain(more).map(|request| (request.command, request.reply)).unzip();
        for (outcome, reply) in store.propose_all(commands).await.into_iter().zip(replies) {
            match outcome {
                Ok(committed) => {
                    tokio::spawn(reply_in_force(committed, reply, in_force.subscribe()));
                }
                Err(refusal) => {
                    tracing::debug!(%refusal, "a proposal was refused");
                    let _ = reply.send(Err(refusal)).await;
                }
            }
        }
    }
    publisher.abort();
    others.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Answers what is asked about the members of the consensus, one question after the other.
async fn serve_membership<S: MetadataStore>(store: Arc<S>, end: ControlEnd) {
    while let Some(request) = end.next_membership_request().await {
        // An asker that has gone is no fault.
        match request {
            MembershipRequest::Status { reply } => drop(reply.send(store.consensus()).await),
            MembershipRequest::Remove { node, reply } => drop(reply.send(store.remove_member(node).await).await),
        }
    }
}

/// Every change goes to every shard, in order. The present state goes first: other nodes may have changed it since the shards' partitions were looked up in it.
async fn publish(mut views: watch::Receiver<Arc<crate::cluster::CatalogueView>>, end: ControlEnd, in_force: watch::Sender<u64>) {
    views.mark_changed();
    while views.changed().await.is_ok() {
        let view = Arc::clone(&views.borrow_and_update());
        end.publish(&view).await;
        in_force.send_replace(view.commands());
    }
}

type Reply = async_channel::Sender<Result<Committed, crate::request::Refusal>>;

async fn reply_in_force(committed: Committed, reply: Reply, mut in_force: watch::Receiver<u64>) {
    let changes_topics = matches!(committed.applied, Applied::TopicCreated(_) | Applied::TopicAltered(_) | Applied::TopicDeleted(_));
    if changes_topics {
        let wanted = committed.view.commands();
        let wait = in_force.wait_for(|commands| *commands >= wanted);
        if tokio::time::timeout(Duration::from_millis(limits::IN_FORCE_MS), wait).await.is_err() {
            tracing::warn!(commands = wanted, "a shard is slow to follow the catalogue; its change is durable all the same");
        }
    }
    let _ = reply.send(Ok(committed)).await;
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::metadata::tests::registration;
    use super::metadata::{SingleNodeLog, Witness};
    use super::status::NodeState;
    use super::*;
    use crate::bridge::{ShardEnd, ShardEvent, bridge};
    use crate::cluster::Command;
    use crate::request::Code;
    use crate::types::TopicId;

    struct Node {
        _directory: tempfile::TempDir,
        plane: ControlPlane,
        shards: Vec<ShardEnd>,
        status: Arc<NodeStatus>,
    }

    fn start(shards: usize) -> Node {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalogue");
        SingleNodeLog::create(&path, [1; 16], &Witness::default()).unwrap();
        let (store, _) = SingleNodeLog::open(&path, &registration(0, [1; 16]), Witness::default()).unwrap();
        let (end, ends) = bridge(shards);
        let status = Arc::new(NodeStatus::new(1));
        let metrics = (0..shards as u32).map(|n| Arc::new(ShardMetrics::new(n))).collect();
        let admin = Some(TcpListener::bind("127.0.0.1:0").unwrap());
        let parts = ControlParts { store, end, shards: metrics, status: Arc::clone(&status), admin, spare_cpus: vec![] };
        Node { _directory: directory, plane: ControlPlane::start(parts).unwrap(), shards: ends, status }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn create(id: u8, name: &str) -> Command {
        Command::CreateTopic { id: TopicId([id; 16]), name: name.into(), partitions: 1, replication_factor: 1, config: vec![] }
    }

    /// A stand-in for a shard: follows the catalogue until it is told to drain, and says what it saw.
    fn follow(end: ShardEnd, acted: Arc<AtomicBool>) -> JoinHandle<Vec<usize>> {
        thread::spawn(move || {
            let mut seen = Vec::new();
            block_on(async {
                while let ShardEvent::Catalogue { view, in_force } = end.next_event().await {
                    seen.push(view.topics().len());
                    acted.store(true, SeqCst);
                    drop(in_force);
                }
            });
            seen
        })
    }

    #[test]
    fn a_proposer_is_answered_after_every_shard_acted() {
        let node = start(2);
        let acted: Vec<_> = (0..2).map(|_| Arc::new(AtomicBool::new(false))).collect();
        let threads: Vec<_> = node.shards.iter().zip(&acted).map(|(s, a)| follow(s.clone(), Arc::clone(a))).collect();
        let committed = block_on(node.shards[0].propose(create(1, "a"))).unwrap();
        assert!(acted.iter().all(|a| a.load(SeqCst)), "the answer outran a shard");
        assert!(committed.view.topic("a").is_some());
        assert_eq!(block_on(node.shards[1].propose(create(2, "a"))).unwrap_err().code, Code::TopicExists);
        assert_eq!(block_on(node.shards[1].allocate_producer_ids()).unwrap(), 0..1000);
        assert_eq!(block_on(node.shards[0].allocate_producer_ids()).unwrap(), 1000..2000);
        node.plane.drain();
        for thread in threads {
            let seen = thread.join().unwrap();
            assert!(seen.is_sorted() && seen.last() == Some(&1), "{seen:?}");
        }
        node.plane.stop();
        assert_eq!(block_on(node.shards[0].propose(create(3, "b"))).unwrap_err().code, Code::Unavailable);
    }

    fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    #[test]
    fn the_admin_port_tells_of_the_node() {
        let node = start(1);
        let admin = node.plane.admin().unwrap();
        assert_eq!(http_get(admin, "/healthz"), (200, "starting\n".into()));
        assert_eq!(http_get(admin, "/readyz"), (503, "starting\n".into()));
        node.status.set_ready(vec![]);
        assert_eq!(http_get(admin, "/readyz"), (200, "ready\n".into()));
        let (status, metrics) = http_get(admin, "/metrics");
        assert!(status == 200 && metrics.contains("corelane_ready 1\n"), "{metrics}");
        let (status, stat) = http_get(admin, "/stat");
        let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
        assert_eq!((status, &stat["shards"][0]["shard"]), (200, &0.into()));
        assert_eq!(http_get(admin, "/nothing").0, 404);
        node.status.advance(NodeState::Failed);
        node.status.advance(NodeState::Draining);
        assert_eq!(http_get(admin, "/healthz"), (503, "failed\n".into()), "a failure is not covered up");
        node.plane.stop();
        assert!(TcpStream::connect(admin).is_err());
    }
}
