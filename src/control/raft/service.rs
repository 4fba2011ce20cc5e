//! The consensus port: takes connections of other nodes and answers them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use socket2::TcpKeepalive;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::gone;
use super::node::Node;
use super::peer::{PeerError, read_payload, write_payload};
use super::wire::{self, Hello, Request};
use crate::limits;

/// Takes connections for ever, at most [`limits::CONSENSUS_CONNECTIONS`] at a time.
pub async fn serve(node: Arc<Node>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(limits::CONSENSUS_CONNECTIONS));
    let mut connection = 0;
    loop {
        let permit = Arc::clone(&room).acquire_owned().await.expect("it is never closed");
        match listener.accept().await {
            Ok((stream, from)) => {
                connection += 1;
                let node = Arc::clone(&node);
                tokio::spawn(async move {
                    if let Err(error) = answer(&node, stream, connection).await {
                        tracing::debug!(%from, %error, "a connection of a node ends");
                    }
                    node.forget_connection(connection);
                    drop(permit);
                });
            }
            Err(error) => {
                // No descriptors, say: it passes, or somebody sees it here.
                tracing::warn!(%error, "the consensus port can't take a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(node: &Arc<Node>, mut stream: TcpStream, connection: u64) -> Result<(), PeerError> {
    stream.set_nodelay(true)?;
    let keepalive = Duration::from_secs(limits::CONSENSUS_KEEPALIVE_S);
    socket2::SockRef::from(&stream)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive).with_interval(keepalive).with_retries(3))?;
    let counters = &node.dialer.counters;
    let hello = timeout(Duration::from_secs(limits::HELLO_DEADLINE_S), read_payload(&mut stream, limits::MAX_CONSENSUS_HELLO));
    let hello = Hello::decode(&hello.await.map_err(|_| PeerError::Timeout)??)?;
    if let Err(refusal) = hello.check(&node.me) {
        // Logged by whoever tried: it tries again and again.
        counters.handshakes_refused.fetch_add(1, Relaxed);
        write_payload(&mut stream, &wire::encode_welcome(&Err(refusal.clone())), counters).await?;
        return Err(PeerError::Refused(refusal));
    }
    write_payload(&mut stream, &wire::encode_welcome(&Ok(node.me)), counters).await?;
    let is_newcomer = hello.from.cluster == [0; 16];
    if !is_newcomer {
        node.hear_greeting(hello.from.id);
    }
    let outcome = answer_all(node, &mut stream, is_newcomer, connection).await;
    if !is_newcomer {
        tokio::spawn(gone::suspect(Arc::clone(node), hello.from.id));
    }
    outcome
}

async fn answer_all(node: &Node, stream: &mut TcpStream, is_newcomer: bool, connection: u64) -> Result<(), PeerError> {
    let counters = &node.dialer.counters;
    let (patience, most) = match is_newcomer {
        true => (Duration::from_secs(limits::NEWCOMER_IDLE_S), limits::MAX_NEWCOMER_FRAME),
        false => (Duration::MAX, limits::MAX_CONSENSUS_FRAME),
    };
    loop {
        let payload = match timeout(patience, read_payload(stream, most)).await.unwrap_or(Err(PeerError::Timeout)) {
            Err(PeerError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            payload => payload?,
        };
        let request = Request::decode(&payload)?;
        drop(payload);
        let answer = node.handle_request(request, is_newcomer, connection).await;
        write_payload(stream, &answer.encode(), counters).await?;
    }
}
