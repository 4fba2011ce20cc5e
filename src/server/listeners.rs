//! The ports of a node: clients', the administrator's, and those for other nodes. All of them are had before anything is written.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use crate::limits;
use crate::server::settings::ServeSettings;
use crate::server::start::ServeError;
use crate::shard::net::listen;

/// Listening sockets.
pub struct Listeners {
    /// Of each shard, for clients.
    pub clients: Vec<TcpListener>,
    /// The admin port.
    pub admin: Option<TcpListener>,
    /// For consensus, of a node in a cluster.
    pub consensus: Option<TcpListener>,
    /// Of each shard, for other nodes' shards.
    pub replication: Vec<Option<TcpListener>>,
}

impl Listeners {
    /// All of them.
    ///
    /// # Errors
    /// One can't be had: which, and what it is for.
    pub fn bind(settings: &ServeSettings) -> Result<Listeners, ServeError> {
        let mut clients = Vec::new();
        for shard in settings.per_shard() {
            clients.push(bind(shard.listen, "--listen".into())?);
        }
        let admin = match settings.admin_listen {
            Some(address) => {
                let what = "--admin-listen".into();
                Some(TcpListener::bind(address).map_err(|error| ServeError::Listen { address, what, error })?)
            }
            None => None,
        };
        let shards = settings.shards();
        let Some(cluster) = &settings.cluster else {
            return Ok(Listeners { clients, admin, consensus: None, replication: (0..shards).map(|_| None).collect() });
        };
        let first = cluster.listen.port();
        let what = |port| format!("--cluster-listen, which takes {first} to {} on this host: {port}", u32::from(first) + shards);
        let consensus = Some(bind(cluster.listen, what("this one is for consensus".into()))?);
        let mut replication = Vec::new();
        for shard in 0..shards {
            replication.push(Some(bind(cluster.replication(shard), what(format!("this one is for replication to shard {shard}")))?));
        }
        Ok(Listeners { clients, admin, consensus, replication })
    }
}

/// A broker that was killed may leave its listeners behind for a moment: the kernel takes an io_uring apart after its process is gone, and
/// an accept that waited in it holds the socket. Whoever starts the next broker at once is not to be told that the port is taken.
fn bind(address: SocketAddr, what: String) -> Result<TcpListener, ServeError> {
    let first = Instant::now();
    loop {
        match listen(address) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && first.elapsed() < Duration::from_millis(limits::LISTEN_PATIENCE_MS) =>
            {
                std::thread::sleep(Duration::from_millis(limits::LISTEN_RETRY_MS));
            }
            done => {
                tracing::debug!(%address, waited_ms = first.elapsed().as_millis() as u64, bound = done.is_ok(), "listening socket");
                return done.map_err(|error| ServeError::Listen { address, what, error });
            }
        }
    }
}
