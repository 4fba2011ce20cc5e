//! Processes that have ended are found at once, not after their lease.
//!
//! A process that ends, however it ends, has its sockets closed by its kernel: connections break, and its port refuses new ones. So the end of a node's connection is a reason to ask whether its
//! port still answers. A refusal says that nobody listens there; a host that is gone, or cut off, refuses nothing, and is waited for as long as leases go.
//!
//! Were a refusal ever wrong (a firewall that answers for a host), nothing would be lost: followers that have promised another leader's epoch acknowledge nothing to the one before, so it can
//! commit nothing alone that an elected one lacks. It would be a needless election.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::log_files::lock;
use super::node::Node;
use super::{ConsensusId, Member};

/// Refusals in a row that count.
const REFUSALS: u32 = 3;
/// Tries in all.
const TRIES: u32 = 12;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(40);
/// An answer may take so long; silence is none.
const PATIENCE: Duration = Duration::from_millis(250);
/// The voters that are left don't all ask for votes at the same moment: between one and the next.
const STAGGER: Duration = Duration::from_millis(150);

/// A connection of that node has ended. If the node has, too, the leader fences it, and if it was the leader another is elected.
pub async fn suspect(node: Arc<Node>, id: ConsensusId) {
    let concerns = node.leads_in().is_some() || node.leader().is_some_and(|(leader, _)| leader == id);
    let Some(member) = node.members().0.remove(&id).filter(|_| concerns && id != node.me.id) else { return };
    if !lock(&node.leases).begin_suspicion(id) {
        return;
    }
    let is_gone = is_gone(&member).await;
    lock(&node.leases).end_suspicion(id);
    if !is_gone {
        return;
    }
    tracing::warn!(node = member.node, address = member.address, "the process of a node has ended");
    lock(&node.leases).note_gone(id);
    node.look.notify_one();
    if node.leader().is_some_and(|(leader, _)| leader == id) {
        elect_another(&node, id).await;
    }
}

/// The sockets of a process that ends don't go in one moment: its port may take a connection after others have broken.
async fn is_gone(member: &Member) -> bool {
    let mut refusals = 0;
    for _ in 0..TRIES {
        match timeout(PATIENCE, TcpStream::connect(&member.address)).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => refusals += 1,
            Ok(Ok(_)) => refusals = 0,
            // Silence, or no way there: the lease decides.
            _ => return false,
        }
        if refusals == REFUSALS {
            return true;
        }
        sleep(PAUSE).await;
    }
    false
}

/// Voters hold back their votes for an election time after they heard a leader; then the first of those that are left asks, then the next.
async fn elect_another(node: &Node, gone: ConsensusId) {
    let (_, voters) = node.members();
    let Some(rank) = voters.iter().filter(|voter| **voter != gone).position(|voter| *voter == node.me.id) else { return };
    sleep(node.timing.election + STAGGER * rank as u32).await;
    for _ in 0..4 {
        if node.leader().is_some_and(|(leader, _)| leader != gone) {
            return;
        }
        let _ = node.raft.trigger().elect().await;
        sleep(STAGGER * voters.len() as u32).await;
    }
}
