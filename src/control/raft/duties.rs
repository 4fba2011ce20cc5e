//! What a node does by itself: it asks to be let in, says that it lives; and as leader it fences those that don't, changes who votes, and bounds the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::gone;
use super::log_files::lock;
use super::members::{self, Change, Known};
use super::node::{Lease, Node};
use super::peer::Client;
use super::wire::{Answer, Request};
use super::{ConsensusId, Member, Proposal};
use crate::limits;

/// A learner with so few entries less than the leader is caught up.
const NEARLY: u64 = 100;

/// Asks to be let in until this node is a member, with the address that it has now.
pub async fn join(node: Arc<Node>, told: Vec<String>) {
    let pause = node.timing.heartbeat;
    loop {
        let (members, _) = node.members();
        if members.get(&node.me.id) == Some(&node.member) {
            node.refused.send_replace(None);
            return;
        }
        let known = members.into_iter().filter(|(id, _)| *id != node.me.id).map(|(_, member)| member.address);
        let mut addresses: Vec<String> = told.iter().cloned().chain(known).filter(|address| *address != node.member.address).collect();
        addresses.dedup();
        if node.leads_in().is_some() {
            // It has come back at another address.
            let _ = node.handle_join(node.me.id, node.member.clone()).await;
        }
        for address in addresses {
            if ask_to_join(&node, &address).await {
                break;
            }
        }
        sleep(pause).await;
    }
}

async fn ask_to_join(node: &Node, address: &str) -> bool {
    let within = node.attempt();
    let leader = match node.dialer.ask(address, &Request::Leader, within).await {
        Ok(Answer::Leader(Some((_, leader)))) => leader.address,
        _ => return false,
    };
    let request = Request::Join { id: node.me.id, member: node.member.clone() };
    match node.dialer.ask(&leader, &request, node.timing.proposal).await {
        Ok(Answer::Done) => true,
        Ok(Answer::Membership(refusal)) => {
            node.refused.send_if_modified(|last| {
                let is_news = last.as_ref() != Some(&refusal);
                if is_news {
                    tracing::warn!(address = leader, %refusal, "the cluster does not let this node in; it asks again");
                }
                *last = Some(refusal);
                is_news
            });
            true
        }
        _ => false,
    }
}

/// Says that this node lives, and keeps its lease.
pub async fn say_alive(node: Arc<Node>) {
    let every = node.timing.node_heartbeat();
    // Without a lease, or without an answer: one that registers a moment later is not to wait long for its lease.
    let soon = node.timing.heartbeat / 8;
    let mut client: Option<Client> = None;
    let mut leaders = node.raft.server_metrics();
    loop {
        let sent = Instant::now();
        // Who can't hear what is decided, because its log takes nothing, must not go on as if nothing had been.
        let is_deaf = node.log.space().is_missing() || node.failure().is_some();
        let asked = leaders.borrow_and_update().current_leader;
        let answer = match node.leader().filter(|_| !is_deaf) {
            None => None,
            Some((id, _)) if id == node.me.id => Some(node.handle_heartbeat(id).await),
            Some((id, member)) => {
                let kept = client.take().filter(|client| client.is_to(id, &member.address));
                let client = client.insert(kept.unwrap_or_else(|| Client::new(Arc::clone(&node.dialer), id, member.address.clone())));
                client.call(&Request::Heartbeat { id: node.me.id }, every).await.ok()
            }
        };
        let pause = match answer {
            Some(Answer::Alive) => {
                node.lease.send_replace(Lease { until: Some(sent + node.timing.own_lease()), fenced: false });
                every.saturating_sub(sent.elapsed())
            }
            Some(Answer::Fenced) => {
                node.lease.send_replace(Lease { until: None, fenced: true });
                soon
            }
            // The lease that there is goes on to its end.
            _ => soon,
        };
        // Another leader is told at once, one that came while the last was asked too: it may have begun to count.
        let changed = async { leaders.wait_for(|metrics| metrics.current_leader != asked).await.map(drop) };
        let _ = timeout(pause.max(Duration::from_millis(1)), changed).await;
    }
}

/// What is to be looked at again and again.
pub async fn keep(node: Arc<Node>) {
    let mut ticks = interval(node.timing.heartbeat / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sequence = 0;
    let (mut fence, mut change): (Option<Task>, Option<Task>) = (None, None);
    let (mut has_failed, mut snapshot_asked) = (false, Instant::now());
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = node.look.notified() => {}
        }
        if let Some(refusal) = node.failure().filter(|_| !has_failed) {
            has_failed = true;
            tracing::error!(%refusal, "no topic can be changed here");
        }
        let term = node.leads_in();
        let led_in = lock(&node.leases).term();
        lock(&node.leases).set_leadership(term, Instant::now());
        if term != led_in {
            // What an earlier leadership began may wait for ever: of an entry that a snapshot stands for the library does not answer.
            [fence.take(), change.take()].into_iter().flatten().for_each(|task| task.abort());
            // Who ended while nobody led, or was not seen to, is not waited for.
            for id in term.map(|_| node.members().0).unwrap_or_default().into_keys() {
                tokio::spawn(gone::suspect(Arc::clone(&node), id));
            }
        }
        if node.log.bytes() > limits::CONSENSUS_SNAPSHOT_BYTES && snapshot_asked.elapsed() > node.timing.node_lease {
            snapshot_asked = Instant::now();
            let _ = node.raft.trigger().snapshot().await;
        }
        let Some(term) = term else { continue };
        if fence.as_ref().is_none_or(Task::is_finished) && !silent(&node).is_empty() {
            sequence += 1;
            fence = Some(tokio::spawn(fence_silent(Arc::clone(&node), term, sequence)));
        }
        if change.as_ref().is_none_or(Task::is_finished)
            && let Some(next) = next_change(&node)
        {
            let node = Arc::clone(&node);
            change = Some(tokio::spawn(async move {
                if let Answer::Refused(refusal) = node.change_members(next).await {
                    tracing::warn!(%refusal, "the membership is not changed");
                }
            }));
        }
    }
}

type Task = tokio::task::JoinHandle<()>;

/// Nodes of which no life was heard for longer than its lease, and that the catalogue takes for live.
fn silent(node: &Node) -> Vec<u32> {
    let (members, _) = node.members();
    let (leases, now) = (lock(&node.leases), Instant::now());
    let is_silent = |id: &ConsensusId| *id != node.me.id && leases.is_silent(*id, now, node.timing.node_lease);
    let view = node.shown.view.borrow();
    let mut nodes: Vec<u32> = members.values().map(|member| member.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.retain(|which| {
        // Of the life that is registered: a later one may be heard already, and waits for just this.
        let registered = |(id, member): &(&ConsensusId, &Member)| member.node == *which && node.registry.is_live(&view, *which, **id);
        let no_life = members.iter().filter(registered).all(|(id, _)| is_silent(id));
        no_life && !leases.is_being_fenced(*which) && node.registry.fence(&view, *which).is_some()
    });
    nodes
}

/// Fences those that are silent. Straight into this node's own log: forwarded to another leader, which hears those nodes well, it would do harm.
async fn fence_silent(node: Arc<Node>, term: u64, sequence: u64) {
    // One that was cut off hears nobody, and is no leader any more.
    if !node.confirm_leadership().await {
        return;
    }
    let (mut fenced, mut commands) = (Vec::new(), Vec::new());
    for which in silent(&node) {
        let command = node.registry.fence(&node.shown.view.borrow(), which);
        if let Some(Ok(bytes)) = command.map(|command| command.encode()).filter(|_| commands.len() < limits::CATALOGUE_GROUP) {
            commands.push(bytes.into());
            fenced.push(which);
        }
    }
    {
        // Heard in the meantime: it may have been told so, and is left alone. Nothing is awaited from here to the mark, so no heartbeat comes between.
        let still = silent(&node);
        if fenced.iter().any(|which| !still.contains(which)) || fenced.is_empty() {
            return;
        }
        let mut leases = lock(&node.leases);
        if leases.term() != Some(term) {
            return;
        }
        fenced.iter().for_each(|which| leases.begin_fence(*which));
    }
    tracing::warn!(nodes = ?fenced, "nodes are silent; they are fenced");
    let proposal = Proposal { proposer: node.shown.proposer.wrapping_add(1), sequence, commands };
    // Not given up: until it is decided, these nodes are told nothing.
    let outcome = node.raft.client_write(proposal).await;
    if let Err(error) = outcome {
        tracing::warn!(%error, "nodes could not be fenced");
    }
    let mut leases = lock(&node.leases);
    fenced.iter().for_each(|which| leases.end_fence(*which, term));
}

fn next_change(node: &Node) -> Option<Change> {
    let (all, voters) = node.members();
    let metrics = node.raft.metrics();
    let metrics = metrics.borrow();
    if let [_, .., goal] = &metrics.membership_config.membership().get_joint_config()[..] {
        // Whoever began that is gone, and the library does not finish it by itself: until then each decision needs both majorities.
        // Whoever loses its vote stays a member, which can be mended: one that was to go is asked to once more, one that was to stay would not come back by itself.
        return Some(Change::Shift(goal.clone()));
    }
    let (leases, now) = (lock(&node.leases), Instant::now());
    let matched = |id: &ConsensusId| metrics.replication.as_ref()?.get(id).copied().flatten().map(|last| last.index);
    let is_ready = |id: &ConsensusId| {
        *id == node.me.id
            || (leases.lives(*id, now, node.timing.node_lease)
                && matched(id).is_some_and(|index| index + NEARLY >= metrics.last_log_index.unwrap_or(0)))
    };
    let view = node.shown.view.borrow();
    let retiring = all.iter().filter(|(_, member)| node.registry.retires(&view, member.node)).map(|(id, _)| *id).collect();
    let known = Known { me: node.me.id, ready: all.keys().copied().filter(is_ready).collect(), retiring };
    members::next_change(&all, &voters, &known, node.voters)
}
