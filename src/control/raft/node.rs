//! A running node of the consensus: what its tasks share, and what each request from another node comes to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, ServerState, Snapshot};
use tokio::sync::watch;
use tokio::time::timeout;

use super::confirmations::Confirmations;
use super::leases::Leases;
use super::log_files::lock;
use super::log_store::LogStore;
use super::machine::Shown;
use super::members::{self, Change, Removal};
use super::peer::Dialer;
use super::settings::{Registry, Timing};
use super::wire::{Answer, Identity, MembershipRefusal, Request, SnapshotPiece};
use super::{ConsensusId, Member, Proposal, Raft, Types, codec, snapshot};
use crate::cluster::Command;
use crate::limits;
use crate::request::{Code, Refusal};

/// What this node may do, by the leader's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lease {
    /// Until when it may act as registered; `None`: it may not.
    pub until: Option<Instant>,
    /// The leader counts it as gone: it must register anew.
    pub fenced: bool,
}

impl Lease {
    /// Whether it holds.
    pub fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// A snapshot on its way in.
#[derive(Debug)]
struct Incoming {
    connection: u64,
    piece: SnapshotPiece,
    data: BytesMut,
}

/// What the tasks of a node share.
pub struct Node {
    /// Who it is.
    pub me: Identity,
    /// How others find it.
    pub member: Member,
    /// The times.
    pub timing: Timing,
    /// How many nodes are to vote.
    pub voters: usize,
    /// The library.
    pub raft: Raft,
    /// The log.
    pub log: LogStore,
    /// What the machine shows.
    pub shown: Arc<Shown>,
    /// Opens connections.
    pub dialer: Arc<Dialer>,
    /// The nodes in the catalogue.
    pub registry: Box<dyn Registry>,
    /// Who lives, while this node leads.
    pub leases: Mutex<Leases>,
    /// What this node may do.
    pub lease: watch::Sender<Lease>,
    /// Why it is no member yet.
    pub refused: watch::Sender<Option<MembershipRefusal>>,
    /// Wakes what is looked at again and again.
    pub look: tokio::sync::Notify,
    incoming: Mutex<Option<Incoming>>,
    /// When the last confirmed round began.
    confirmed: tokio::sync::Mutex<Option<Instant>>,
}

/// What [`Node::new`] puts together.
pub struct NodeParts {
    /// Who it is.
    pub me: Identity,
    /// How others find it.
    pub member: Member,
    /// The times.
    pub timing: Timing,
    /// How many nodes are to vote.
    pub voters: usize,
    /// The library.
    pub raft: Raft,
    /// The log.
    pub log: LogStore,
    /// What the machine shows.
    pub shown: Arc<Shown>,
    /// Opens connections.
    pub dialer: Arc<Dialer>,
    /// The nodes in the catalogue.
    pub registry: Box<dyn Registry>,
}

type Place = Option<(ConsensusId, Member)>;

impl Node {
    /// A node whose tasks are to be started.
    pub fn new(parts: NodeParts) -> Node {
        let NodeParts { me, member, timing, voters, raft, log, shown, dialer, registry } = parts;
        Node {
            me,
            member,
            timing,
            voters,
            raft,
            log,
            shown,
            dialer,
            registry,
            leases: Mutex::default(),
            lease: watch::Sender::default(),
            refused: watch::Sender::default(),
            look: tokio::sync::Notify::new(),
            incoming: Mutex::default(),
            confirmed: tokio::sync::Mutex::default(),
        }
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Place {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let id = metrics.current_leader?;
        metrics.membership_config.membership().get_node(&id).map(|member| (id, member.clone()))
    }

    /// The term in which this node leads, as far as it knows.
    pub fn leads_in(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        (metrics.state == ServerState::Leader && metrics.current_leader == Some(self.me.id)).then_some(metrics.current_term)
    }

    /// All members, and those who vote.
    pub fn members(&self) -> (BTreeMap<ConsensusId, Member>, BTreeSet<ConsensusId>) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        (membership.nodes().map(|(id, member)| (*id, member.clone())).collect(), membership.voter_ids().collect())
    }

    /// Why the library does not run any more.
    pub fn failure(&self) -> Option<Refusal> {
        let metrics = self.raft.metrics();
        let failed = metrics.borrow().running_state.clone().err()?;
        Some(Refusal::new(Code::Storage, format!("the consensus of this node has stopped ({failed}); restart the broker")))
    }

    /// Answers another node. `is_newcomer`: it is of no cluster yet; `connection` tells its connection from others.
    pub async fn handle_request(&self, request: Request, is_newcomer: bool, connection: u64) -> Answer {
        match request {
            Request::Leader => Answer::Leader(self.leader()),
            _ if is_newcomer => Answer::Refused(Refusal::new(Code::InvalidRequest, "a node without a cluster can only ask who leads")),
            Request::Vote(request) => match self.raft.vote(request).await {
                Ok(response) => Answer::Vote(response),
                Err(error) => refused(&error),
            },
            Request::Append(request) => match self.raft.append_entries(request).await {
                Ok(response) => Answer::Append(response),
                Err(error) => refused(&error),
            },
            Request::Snapshot(piece) => self.handle_piece(piece, connection).await,
            Request::Join { id, member } => self.handle_join(id, member).await,
            Request::Propose(proposal) => self.handle_proposal(proposal).await,
            Request::Heartbeat { id } => self.handle_heartbeat(id).await,
            Request::Remove { node } => self.handle_remove(node).await,
        }
    }

    /// Takes a proposal if this node leads; answers when it is in the log of a majority.
    pub async fn handle_proposal(&self, proposal: Proposal) -> Answer {
        if self.leads_in().is_none() {
            return Answer::NotLeader(self.leader());
        }
        // What gets into the log must be readable, or it stops every node.
        if let Some(error) = proposal.commands.iter().find_map(|command| Command::decode(command).err()) {
            return Answer::Refused(Refusal::new(Code::InvalidRequest, error.to_string()));
        }
        let mut bytes = Vec::new();
        codec::put_proposal(&mut bytes, &proposal);
        if bytes.len() + 64 > limits::MAX_CONSENSUS_ENTRY {
            let message = format!("a proposal of {} bytes; at most {} can be", bytes.len(), limits::MAX_CONSENSUS_ENTRY - 64);
            return Answer::Refused(Refusal::new(Code::InvalidRequest, message));
        }
        // Whoever asked has given up by then; the entry may be committed all the same.
        match timeout(self.timing.proposal, self.raft.client_write(proposal)).await {
            Ok(result) => done(result),
            Err(_) => Answer::Refused(no_quorum()),
        }
    }

    /// A process that greets lives. It is noted before anything that it asks for: one that has just come back would be registered, and fenced at once as one that has ended,
    /// before its first heartbeat.
    pub fn hear_greeting(&self, id: ConsensusId) {
        if self.members().0.contains_key(&id) {
            lock(&self.leases).hear_greeting(id, Instant::now());
        }
    }

    /// Notes that a node lives, and confirms it if this node is the leader at this moment and does not count it as gone.
    pub async fn handle_heartbeat(&self, id: ConsensusId) -> Answer {
        if self.leads_in().is_none() {
            return Answer::NotLeader(self.leader());
        }
        let Some(member) = self.members().0.remove(&id) else { return Answer::Fenced };
        let now = Instant::now();
        let is_renewal = {
            let mut leases = lock(&self.leases);
            leases.hear(id, now);
            leases.was_told(id)
        };
        // A renewal can wait: the lease counts from when the node has sent this, and has room for more than one heartbeat. So no round is begun for it. A node without a lease
        // acknowledges nothing: it is told as soon as can be.
        let leads = (is_renewal && self.led_at(now).await) || self.confirm_leadership().await;
        if !leads {
            return Answer::NotLeader(None);
        }
        // Only now: the round has brought the view up to all that earlier leaders have committed, fences included.
        let is_live = self.registry.is_live(&self.shown.view.borrow(), member.node, id);
        let mut leases = lock(&self.leases);
        let lives = is_live && !leases.is_being_fenced(member.node);
        leases.note_told(id, lives);
        if lives { Answer::Alive } else { Answer::Fenced }
    }

    /// Whether this node leads *now*: a majority says so after this was asked, and everything that was committed before is applied here. One round serves all that
    /// ask while the one before is under way.
    pub async fn confirm_leadership(&self) -> bool {
        if self.leads_in().is_none() {
            return false;
        }
        let asked = Instant::now();
        // Over the connections that there are; the library's own way opens new ones for each round.
        if self.raft.trigger().heartbeat().await.is_ok() && self.led_at(asked).await {
            return true;
        }
        let mut confirmed = self.confirmed.lock().await;
        if confirmed.is_some_and(|begun| begun >= asked) {
            return true;
        }
        let begun = Instant::now();
        let is_leader = matches!(timeout(self.timing.node_heartbeat(), self.raft.ensure_linearizable()).await, Ok(Ok(_)));
        if is_leader {
            *confirmed = Some(begun);
        }
        is_leader
    }

    /// Waits for a heartbeat of the library, sent after `moment` and acknowledged by a majority, and until all that was in the log then is applied: everything that this or
    /// an earlier leader had committed. `false`: none within two heartbeats, which proves nothing, or this node leads no more, which ends the wait at once: one that has just come
    /// back takes itself for the leader that it was.
    async fn led_at(&self, moment: Instant) -> bool {
        let (Some(term), last) = (self.leads_in(), self.raft.metrics().borrow().last_log_index) else { return false };
        let led = async {
            let mut confirmations = self.dialer.confirmations.subscribe();
            let is_confirmed = |confirmations: &Confirmations| {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow();
                confirmations.led_since(term, self.me.id, metrics.membership_config.membership().get_joint_config(), moment)
            };
            let _ = confirmations.wait_for(is_confirmed).await;
            let mut metrics = self.raft.metrics();
            let _ = metrics.wait_for(|metrics| metrics.last_applied.map(|id| id.index) >= last || metrics.current_term != term).await;
        };
        let mut leaders = self.raft.server_metrics();
        let deposed = leaders.wait_for(|metrics| metrics.current_leader != Some(self.me.id) || metrics.vote.leader_id().term != term);
        tokio::select! {
            outcome = timeout(self.timing.heartbeat * 2, led) => outcome.is_ok() && self.leads_in() == Some(term),
            _ = deposed => false,
        }
    }

    /// Lets a node in, as one that does not vote yet.
    pub async fn handle_join(&self, id: ConsensusId, member: Member) -> Answer {
        if self.leads_in().is_none() || !self.confirm_leadership().await {
            return Answer::NotLeader(self.leader().filter(|(leader, _)| *leader != self.me.id));
        }
        let (members, _) = self.members();
        let change = match members.get(&id) {
            Some(known) if *known == member => return Answer::Done,
            Some(_) => ChangeMembers::SetNodes([(id, member)].into()),
            None => {
                if let Some(refusal) = self.refuse_join(&members, &member) {
                    return Answer::Membership(refusal);
                }
                tracing::info!(node = member.node, address = member.address, "a node joins");
                ChangeMembers::AddNodes([(id, member)].into())
            }
        };
        match timeout(self.timing.proposal, self.raft.change_membership(change, true)).await {
            Ok(result) => {
                lock(&self.leases).hear(id, Instant::now());
                done(result)
            }
            Err(_) => Answer::Refused(no_quorum()),
        }
    }

    fn refuse_join(&self, members: &BTreeMap<ConsensusId, Member>, newcomer: &Member) -> Option<MembershipRefusal> {
        let (leases, now) = (lock(&self.leases), Instant::now());
        let lives = |id: &ConsensusId| *id == self.me.id || !leases.is_silent(*id, now, self.timing.node_lease);
        for (_, member) in members.iter().filter(|(id, _)| lives(id)) {
            if member.node == newcomer.node {
                return Some(MembershipRefusal::NodeInUse { node: member.node, address: member.address.clone() });
            }
            if member.address == newcomer.address {
                return Some(MembershipRefusal::AddressInUse { address: member.address.clone(), node: member.node });
            }
        }
        (members.len() >= limits::MAX_NODES).then_some(MembershipRefusal::Full(members.len() as u32))
    }

    async fn handle_remove(&self, node: u32) -> Answer {
        if self.leads_in().is_none() || !self.confirm_leadership().await {
            return Answer::NotLeader(self.leader().filter(|(leader, _)| *leader != self.me.id));
        }
        if self.registry.fence(&self.shown.view.borrow(), node).is_some() {
            // It has come back and registered since it was taken out of the catalogue; as no member it would be told that it lives by nobody, and fenced by nobody.
            return Answer::Refused(Refusal::new(Code::InvalidRequest, format!("node {node} can't be removed while it runs")));
        }
        let (members, voters) = self.members();
        match members::removal(&members, &voters, node) {
            Removal::LastVoter => Answer::Membership(MembershipRefusal::LastVoter(node)),
            Removal::NotThere => Answer::Membership(MembershipRefusal::Unknown(node)),
            Removal::Change(change) => match timeout(self.timing.proposal, self.change_members(change)).await {
                Ok(answer) => answer,
                Err(_) => Answer::Refused(no_quorum()),
            },
        }
    }

    /// Changes the membership; the library takes one change at a time.
    pub async fn change_members(&self, change: Change) -> Answer {
        tracing::info!(?change, "the membership changes");
        let (change, stays) = match change {
            Change::Voters(voters) => (ChangeMembers::ReplaceAllVoters(voters), false),
            Change::Shift(voters) => (ChangeMembers::ReplaceAllVoters(voters), true),
            Change::Drop(members) => (ChangeMembers::RemoveNodes(members), false),
        };
        done(self.raft.change_membership(change, stays).await)
    }

    async fn handle_piece(&self, piece: SnapshotPiece, connection: u64) -> Answer {
        let whole = match self.gather(piece, connection) {
            Ok(Some(whole)) => whole,
            Ok(None) => return Answer::More,
            Err(refusal) => return Answer::Refused(refusal),
        };
        let Incoming { piece: SnapshotPiece { vote, meta, .. }, data, .. } = whole;
        let (data, cluster) = (data.freeze(), self.me.cluster);
        let check = { Bytes::clone(&data) };
        // Before the library gets it: what makes no state would stop this node.
        let checked = tokio::task::spawn_blocking(move || snapshot::decode_data(cluster, &check).map(drop)).await;
        match checked {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Answer::Refused(Refusal::new(Code::InvalidRequest, error.to_string())),
            Err(error) => return Answer::Refused(Refusal::new(Code::Internal, error.to_string())),
        }
        match self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot: Box::new(data) }).await {
            Ok(response) => Answer::Snapshot(response.vote),
            Err(error) => Answer::Refused(Refusal::new(Code::Storage, error.to_string())),
        }
    }

    /// Puts a piece to those before it. One snapshot at a time is on its way in, whatever the others begin.
    fn gather(&self, piece: SnapshotPiece, connection: u64) -> Result<Option<Incoming>, Refusal> {
        let mut incoming = lock(&self.incoming);
        if piece.offset == 0 {
            *incoming = Some(Incoming { connection, data: BytesMut::new(), piece: SnapshotPiece { data: Bytes::new(), ..piece.clone() } });
        }
        let refused = |message: String| Err(Refusal::new(Code::InvalidRequest, message));
        let Some(whole) = incoming.as_mut().filter(|whole| whole.connection == connection) else {
            return refused("a piece of a snapshot whose beginning is not there".into());
        };
        let first = &whole.piece;
        if (&first.meta, first.total, whole.data.len() as u64) != (&piece.meta, piece.total, piece.offset) {
            return refused(format!("a piece at {} of a snapshot of which {} bytes are there", piece.offset, whole.data.len()));
        }
        whole.data.extend_from_slice(&piece.data);
        whole.piece.vote = piece.vote;
        Ok(if whole.data.len() as u64 == piece.total { incoming.take() } else { None })
    }

    /// What a connection has left half done goes with it.
    pub fn forget_connection(&self, connection: u64) {
        let mut incoming = lock(&self.incoming);
        if incoming.as_ref().is_some_and(|whole| whole.connection == connection) {
            *incoming = None;
        }
    }

    /// How long one try to reach the leader may take.
    pub fn attempt(&self) -> Duration {
        self.timing.election * 2
    }
}

/// There was no majority in time.
pub fn no_quorum() -> Refusal {
    Refusal::new(Code::Unavailable, "no majority of the voters took the change in time; whether it will be applied is not known")
}

fn refused(error: &impl std::fmt::Display) -> Answer {
    Answer::Refused(Refusal::new(Code::Storage, error.to_string()))
}

type Written<R> = Result<R, RaftError<ConsensusId, ClientWriteError<ConsensusId, Member>>>;

fn done(result: Written<openraft::raft::ClientWriteResponse<Types>>) -> Answer {
    match result {
        Ok(_) => Answer::Done,
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
            Answer::NotLeader(forward.leader_id.zip(forward.leader_node))
        }
        // Another change is under way: to be tried again.
        Err(RaftError::APIError(error)) => Answer::Refused(Refusal::new(Code::Unavailable, error.to_string())),
        Err(RaftError::Fatal(error)) => refused(&error),
    }
}
