//! The brokers that a client knows: their addresses, one connection to each, and which of them leads what.
//!
//! A connection is made when it is first needed and again after it is lost, by one task at a time; who else needs it waits for the same attempt.
//! Questions and retries are in
//! `asking`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;

use super::backoff::Backoff;
use super::connection::{Clock, Connection, ConnectionSettings};
use super::error::ClientError;
use crate::limits;
use crate::request::{Broker, Code, Metadata, PartitionMetadata, Refusal, Response, TopicPartitions};

/// Settings of a client, made valid.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub bootstrap: Vec<String>,
    pub connection: ConnectionSettings,
    /// How long metadata, offset and admin requests are retried.
    pub retry_timeout: Duration,
    /// How long a topic that the brokers don't know is asked for again.
    pub unknown_topic_wait: Duration,
    pub backoff: Backoff,
}

/// In the place of a leader's advertised id while nobody leads. No broker has it, so what is for it waits for fresh metadata.
pub(super) const NO_LEADER: u32 = u32::MAX;

/// Whom a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// Any broker.
    Any,
    /// The one that takes topic changes.
    Controller,
    /// The shard with this advertised id.
    Broker(u32),
}

/// What is known of a node without asking it; the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Standing {
    /// There is a connection.
    Open,
    /// There is an address.
    Known,
    /// An answer is overdue.
    Silent,
}

impl State {
    /// Of a topic that is not known there is nothing to doubt.
    fn doubt(&mut self, topic: &str) {
        if self.topics.contains_key(topic) {
            self.doubtful.insert(topic.into());
        }
    }
}

/// What all handles of a client share.
pub(super) struct Brokers {
    pub settings: Settings,
    pub clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Addresses by advertised id.
    known: HashMap<u32, String>,
    controller: Option<u32>,
    topics: HashMap<String, Arc<TopicPartitions>>,
    /// Of these, those about which the next one that needs them asks.
    doubtful: HashSet<String>,
    /// The node that is asked next what any may answer, or the first behind it.
    turn: Option<u32>,
    /// By address; the async lock is held while one is being made.
    connections: HashMap<String, Arc<AsyncMutex<()>>>,
    open: HashMap<String, Connection>,
}

impl Brokers {
    pub fn new(settings: Settings) -> Brokers {
        Brokers { settings, clock: Clock::start(), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to a shard, if it is open.
    pub fn open_connection(&self, id: u32) -> Option<Connection> {
        let state = self.lock();
        let address = state.known.get(&id)?;
        state.open.get(address).filter(|c| !c.is_closed()).cloned()
    }

    /// The connection to a shard, made where there is none.
    pub async fn connect(&self, id: u32) -> Result<Connection, ClientError> {
        let Some(address) = self.address(id) else {
            let what = match id {
                NO_LEADER => "nobody leads it at present".into(),
                id => format!("no broker with the advertised id {id} is known"),
            };
            return Err(Refusal::new(Code::NotLeader, what).into());
        };
        // An address that swallows everything takes the whole connect timeout; that its node has gone is known earlier.
        tokio::select! {
            made = self.connect_to(&address) => made,
            () = self.until_away(id, &address) => {
                Err(ClientError::Connect { address, cause: "the other brokers say that it is not there any more".into() })
            }
        }
    }

    /// Where a shard listens, as far as is known.
    pub fn address(&self, id: u32) -> Option<String> {
        self.lock().known.get(&id).cloned()
    }

    /// A broker with its address as another answer than metadata has it.
    pub fn learn_broker(&self, broker: &Broker) {
        self.lock().known.insert(broker.id, join_address(&broker.host, broker.port));
    }

    /// One broker of each node that is known.
    pub fn one_of_each_node(&self) -> Vec<u32> {
        let ids: BTreeSet<u32> = self.lock().known.keys().copied().collect();
        let mut nodes = BTreeSet::new();
        ids.into_iter().filter(|id| nodes.insert(id / limits::MAX_SHARDS)).collect()
    }

    pub(super) async fn connect_to(&self, address: &str) -> Result<Connection, ClientError> {
        let making = self.lock().connections.entry(address.into()).or_default().clone();
        let _one_at_a_time = making.lock().await;
        if let Some(open) = self.lock().open.get(address).filter(|c| !c.is_closed()) {
            return Ok(open.clone());
        }
        let connection = Connection::open(address, &self.settings.connection, self.clock).await?;
        self.lock().open.insert(address.into(), connection.clone());
        Ok(connection)
    }

    /// Where to ask what any broker may answer: an address for each node, an open connection's where there is one, beginning with the node whose
    /// turn it is; nodes that are silent come
    /// last, and behind them what the user named.
    pub(super) fn candidates(&self) -> Vec<String> {
        let mut state = self.lock();
        state.open.retain(|_, connection| !connection.is_closed());
        let open = state.open.iter().map(|(address, connection)| {
            let standing = if connection.is_overdue() { Standing::Silent } else { Standing::Open };
            (node_of(connection.broker_id()), standing, address.clone())
        });
        let known = state.known.iter().map(|(id, address)| (node_of(*id), Standing::Known, address.clone()));
        let mut addresses = in_turn(open.chain(known), state.turn);
        for address in &self.settings.bootstrap {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    /// A node has answered: the next question goes there too.
    pub(super) fn note_answered(&self, connection: &Connection) {
        self.lock().turn = Some(node_of(connection.broker_id()));
    }

    /// What the last node said was of no use: it may be cut off from the others. The next question goes to another one, where there is one.
    pub fn look_elsewhere(&self) {
        let mut state = self.lock();
        state.turn = state.turn.map(|node| node + 1);
    }

    /// Open connections on which an answer is overdue.
    pub(super) fn silent(&self) -> Vec<Connection> {
        self.lock().open.values().filter(|connection| connection.is_overdue()).cloned().collect()
    }

    /// Whether a broker of that node is known to be there.
    pub(super) fn knows_node(&self, node: u32) -> bool {
        self.lock().known.keys().any(|id| node_of(*id) == node)
    }

    /// The broker that takes topic changes, as far as is known.
    pub(super) fn controller(&self) -> Option<u32> {
        self.lock().controller
    }

    /// Remembers what a broker said. What is older than what is known already is left out of it: a node that is cut off from the others goes on
    /// telling what it knew last.
    pub(super) fn learn(&self, metadata: &mut Metadata) {
        let mut state = self.lock();
        let mut is_behind = false;
        for topic in &mut metadata.topics {
            match &mut topic.found {
                Ok(found) => {
                    if let Some(known) = state.topics.get(&topic.name) {
                        is_behind |= keep_newer(found, known);
                    }
                    state.topics.insert(topic.name.clone(), Arc::new(found.clone()));
                    state.doubtful.remove(&topic.name);
                }
                Err(_) => state.doubt(&topic.name),
            }
        }
        let brokers = metadata.brokers.iter().map(|b| (b.id, join_address(&b.host, b.port)));
        match is_behind {
            true => brokers.for_each(|(id, address)| {
                state.known.entry(id).or_insert(address);
            }),
            false => {
                state.known = brokers.collect();
                state.controller = Some(metadata.controller);
            }
        }
        // A broker that is known under the address that the user gave keeps its one connection.
        let renamed: Vec<(String, Connection)> =
            state.open.values().filter_map(|c| Some((state.known.get(&c.broker_id())?.clone(), c.clone()))).collect();
        for (address, connection) in renamed {
            if address != connection.address() && !state.open.contains_key(&address) && same_port(&address, connection.address()) {
                state.open.remove(connection.address());
                state.open.insert(address, connection);
            }
        }
    }

    /// What is known of a topic, without asking.
    pub fn cached_topic(&self, name: &str) -> Option<Arc<TopicPartitions>> {
        let state = self.lock();
        state.topics.get(name).filter(|_| !state.doubtful.contains(name)).cloned()
    }

    /// What is known of a topic may be wrong: who needs it next asks. Its leaders' epochs stay: they tell the answer of a node that is cut off.
    pub fn forget_topic(&self, name: &str) {
        self.lock().doubt(name);
    }

    /// The leader of a partition.
    ///
    /// # Errors
    /// The topic has no such partition, or nobody leads it.
    pub fn leader(topic: &TopicPartitions, name: &str, partition: u32) -> Result<u32, ClientError> {
        let what = || format!("nobody leads partition {partition} of {name:?} at present");
        Brokers::partition(topic, name, partition)?.leader.ok_or_else(|| Refusal::new(Code::NotLeader, what()).into())
    }

    /// Where a partition is led.
    ///
    /// # Errors
    /// The topic has no such partition.
    pub fn partition(topic: &TopicPartitions, name: &str, partition: u32) -> Result<PartitionMetadata, ClientError> {
        topic.partitions.get(partition as usize).copied().ok_or_else(|| {
            let what = format!("{name:?} has partitions 0 to {}, not {partition}", topic.partitions.len().saturating_sub(1));
            Refusal::new(Code::UnknownTopicOrPartition, what).into()
        })
    }
}

/// One address for each node of these places, the best, in the order in which they are to be asked: nodes without a silent connection first, of
/// them those that are connected, or from the one on
/// whose turn it is.
fn in_turn(places: impl Iterator<Item = (u32, Standing, String)>, turn: Option<u32>) -> Vec<String> {
    let mut nodes: BTreeMap<u32, Vec<(Standing, String)>> = BTreeMap::new();
    places.for_each(|(node, standing, address)| nodes.entry(node).or_default().push((standing, address)));
    let mut order: Vec<_> = nodes
        .into_iter()
        .map(|(node, mut places)| {
            places.sort_unstable();
            let is_silent = places.iter().any(|(standing, _)| *standing == Standing::Silent);
            let (standing, address) = places.swap_remove(0);
            let is_before = turn.is_some_and(|turn| node < turn);
            let unconnected = turn.is_none() && standing != Standing::Open;
            ((is_silent, is_before, unconnected, node), address)
        })
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, address)| address).collect()
}

/// The node of a broker.
pub(super) fn node_of(id: u32) -> u32 {
    id / limits::MAX_SHARDS
}

/// Puts in what is known from a later leader epoch; whether there was any.
fn keep_newer(found: &mut TopicPartitions, known: &TopicPartitions) -> bool {
    if found.id != known.id {
        return false;
    }
    let mut is_behind = false;
    for (told, known) in found.partitions.iter_mut().zip(&known.partitions) {
        if told.leader_epoch < known.leader_epoch {
            *told = *known;
            is_behind = true;
        }
    }
    // Partitions are added, never taken away.
    let added = known.partitions.get(found.partitions.len()..).unwrap_or_default();
    found.partitions.extend_from_slice(added);
    is_behind || !added.is_empty()
}

/// The answer is to another question.
pub(super) fn unexpected(response: &Response) -> ClientError {
    if let Response::Refused(refusal) = response {
        return refusal.clone().into();
    }
    let kind = format!("{response:?}");
    let kind = kind.split(['(', ' ']).next().unwrap_or_default().to_string();
    ClientError::Protocol { address: "the broker".into(), cause: format!("an answer to another question: {kind}") }
}

/// `host:port`, with brackets around an IPv6 address.
fn join_address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Only then can two addresses be the same listener under two names of its host.
fn same_port(a: &str, b: &str) -> bool {
    a.rsplit(':').next() == b.rsplit(':').next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ReplicaLists;
    use crate::types::TopicId;

    #[test]
    fn addresses_are_written_as_tokio_reads_them() {
        assert_eq!(join_address("::1", 9092), "[::1]:9092");
        assert_eq!(join_address("host", 9092), "host:9092");
        assert!(same_port("localhost:9092", "127.0.0.1:9092") && !same_port("a:1", "a:2"));
    }

    #[test]
    fn every_node_is_asked_in_its_turn_and_a_silent_one_last() {
        use Standing::*;
        let place = |node, standing, address: &str| (node, standing, address.to_string());
        let places = || {
            [place(0, Known, "a0"), place(2, Known, "c0"), place(2, Open, "c1"), place(1, Known, "b0"), place(1, Silent, "b1")].into_iter()
        };
        assert_eq!(in_turn(places(), None), ["c1", "a0", "b0"], "who is connected comes first");
        assert_eq!(in_turn(places(), Some(0)), ["a0", "c1", "b0"]);
        assert_eq!(in_turn(places(), Some(1)), ["c1", "a0", "b0"]);
        assert_eq!(in_turn(places(), Some(3)), ["a0", "c1", "b0"], "around");
        assert!(in_turn([].into_iter(), Some(1)).is_empty());
    }

    #[test]
    fn what_is_known_from_a_later_epoch_stays() {
        let topic = |id, leaders: &[(Option<u32>, i32)]| TopicPartitions {
            id: TopicId([id; 16]),
            partitions: leaders
                .iter()
                .map(|(leader, leader_epoch)| PartitionMetadata { leader: *leader, leader_epoch: *leader_epoch })
                .collect(),
            replicas: ReplicaLists::default(),
            max_message_bytes: 100,
        };
        let known = topic(1, &[(Some(0), 3), (None, 7), (Some(2), 1)]);
        let mut behind = topic(1, &[(Some(1), 4), (Some(5), 6)]);
        assert!(keep_newer(&mut behind, &known));
        assert_eq!(behind, topic(1, &[(Some(1), 4), (None, 7), (Some(2), 1)]));
        let mut newer = topic(1, &[(Some(0), 3), (Some(9), 8), (Some(2), 1), (Some(4), 0)]);
        assert!(!keep_newer(&mut newer, &known));
        let mut another = topic(2, &[(Some(0), 0)]);
        assert!(!keep_newer(&mut another, &known), "deleted and made again");
        assert_eq!(another, topic(2, &[(Some(0), 0)]));
    }
}
