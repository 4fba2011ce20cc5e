//! A state of the small cluster: the record that consensus holds, three nodes, and what clients were told.

use std::hash::{Hash, Hasher};

use corelane::replication::PartitionRecord;

/// Replicas.
pub const NODES: usize = 3;
/// Records that are ever appended.
pub const RECORDS: usize = 4;
/// `min.insync.replicas`.
pub const MIN_INSYNC: usize = 2;

/// A set of nodes, one bit each.
pub type Set = u8;

/// A log: the epoch of each record. One leader appends in an epoch, and a leader that crashes leads in another one, so an offset and an epoch name a
/// record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Log {
    epochs: [i8; RECORDS],
    len: u8,
}

impl Log {
    /// Records in it.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// The epoch of each record.
    pub fn records(&self) -> &[i8] {
        &self.epochs[..self.len()]
    }

    /// One more record.
    pub fn push(&mut self, epoch: i8) {
        self.epochs[self.len()] = epoch;
        self.len += 1;
    }

    /// Keeps the first `len` records.
    pub fn cut(&mut self, len: usize) {
        self.len = self.len.min(len as u8);
    }

    /// How many records two logs have in common from the start. What exchanging epoch tables comes to, since records of one epoch are alike up to the
    /// shorter end.
    pub fn common(&self, other: &Log) -> usize {
        self.records().iter().zip(other.records()).take_while(|(a, b)| a == b).count()
    }
}

/// What a leader knows of a follower.
#[derive(Clone, Copy, Debug, Default)]
pub struct Acked {
    /// Its durable end.
    pub end: u8,
    /// In which life of its replica it said so.
    pub incarnation: u32,
    /// Under which registration of its node.
    pub node_epoch: u64,
}

/// What a leader has in memory.
#[derive(Clone, Debug)]
pub struct Lead {
    /// Its log's end when it began.
    pub start: u8,
    /// The ISR as it knows it.
    pub isr: Set,
    /// The version of the record that it knows.
    pub version: u32,
    /// The registrations that it knows.
    pub node_epochs: [u64; NODES],
    /// Whom it proposed to take in, and does not know yet what became of it.
    pub joining: Set,
    /// By node.
    pub acked: [Acked; NODES],
}

/// A node. What is not in `lead` is on its disk, but for the records past `durable`.
#[derive(Clone, Debug)]
pub struct Node {
    /// It runs.
    pub up: bool,
    /// Its disk was wiped, and nobody was told yet.
    pub wiped: bool,
    /// Its records.
    pub log: Log,
    /// Records that are synced.
    pub durable: u8,
    /// The watermark as far as it knows.
    pub watermark: u8,
    /// The highest epoch that it saw; -1 is none.
    pub epoch: i8,
    /// The life of its replica, as it was told.
    pub incarnation: u32,
    /// If it believes that it leads, in `epoch`.
    pub lead: Option<Lead>,
}

/// A record that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The record.
    pub record: i8,
    /// The epoch whose leader did so.
    pub by: i8,
}

/// The cluster.
#[derive(Clone, Debug)]
pub struct State {
    /// What consensus holds.
    pub record: PartitionRecord,
    /// Who is registered and not known to be away.
    pub live: [bool; NODES],
    /// Counts registrations.
    pub node_epochs: [u64; NODES],
    /// By id.
    pub nodes: [Node; NODES],
    /// By offset: what clients were told.
    pub acknowledged: Vec<Acknowledged>,
    /// Records that may still be appended.
    pub appends_left: u8,
    /// Crashes that may still happen.
    pub crashes_left: u8,
    /// A second record was acknowledged at an offset.
    pub two_at_an_offset: bool,
    /// A follower cut below its watermark.
    pub cut_below_watermark: bool,
}

/// Every order of the nodes.
const ORDERS: [[usize; NODES]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

impl State {
    /// The life of a node's replica, as consensus holds it.
    pub fn incarnation(&self, node: usize) -> u32 {
        self.record.replica(node as u32).map_or(0, |replica| replica.incarnation)
    }

    /// What of a state matters for what can come. Versions, incarnations and registrations only count up and are only compared with the present ones,
    /// so "is it the present one" is all of them that matters; without that there would be no end of states. The nodes are alike, so states that
    /// differ by their order only are one.
    fn key(&self) -> [u64; NODES + 1] {
        ORDERS.iter().map(|order| self.key_in(order)).min().unwrap_or_default()
    }

    fn key_in(&self, order: &[usize; NODES]) -> [u64; NODES + 1] {
        let place = |node: u32| order.iter().position(|other| *other == node as usize).unwrap_or(NODES);
        let mut key = [0; NODES + 1];
        for (word, node) in key[1..].iter_mut().zip(order) {
            *word = self.node_key(*node, order);
        }
        let mut pack = Pack::default();
        for set in [&self.record.isr, &self.record.eligible] {
            pack.add(set.iter().fold(0, |set, node| set | 1 << place(*node)), 3);
        }
        pack.add(self.record.leader.map_or(3, |leader| place(leader) as u64), 2);
        pack.add(self.record.leader_epoch as u64, 3);
        order.iter().for_each(|node| pack.flag(self.live[*node]));
        pack.add(self.acknowledged.len() as u64, 3);
        for acknowledged in &self.acknowledged {
            pack.add(acknowledged.record as u64, 3);
            pack.add(acknowledged.by as u64, 3);
        }
        pack.add(u64::from(self.appends_left), 3);
        pack.add(u64::from(self.crashes_left), 3);
        pack.flag(self.two_at_an_offset);
        pack.flag(self.cut_below_watermark);
        key[0] = pack.word;
        key
    }

    fn node_key(&self, at: usize, order: &[usize; NODES]) -> u64 {
        let node = &self.nodes[at];
        let mut pack = Pack::default();
        pack.flag(node.up);
        pack.flag(node.wiped);
        pack.add(node.log.len() as u64, 3);
        node.log.records().iter().for_each(|epoch| pack.add(*epoch as u64, 3));
        pack.add(u64::from(node.durable), 3);
        pack.add(u64::from(node.watermark), 3);
        pack.add((node.epoch + 1) as u64, 3);
        pack.flag(node.incarnation == self.incarnation(at));
        pack.flag(node.lead.is_some());
        let Some(lead) = &node.lead else { return pack.word };
        let ordered = |set: Set| (0..NODES).fold(0, |all, place| all | (u64::from(set >> order[place]) & 1) << place);
        // Once the watermark is past the start, the watermark alone bounds what may join.
        pack.add(if node.watermark >= lead.start { 0 } else { u64::from(lead.start) }, 3);
        pack.add(ordered(lead.isr), 3);
        pack.add(ordered(lead.joining), 3);
        pack.flag(lead.version == self.record.version);
        for other in order.iter().copied().filter(|other| *other != at) {
            let acked = lead.acked[other];
            pack.flag(lead.node_epochs[other] == self.node_epochs[other]);
            pack.add(u64::from(acked.end), 3);
            pack.flag(acked.incarnation == self.incarnation(other));
            pack.flag(acked.node_epoch == self.node_epochs[other]);
        }
        pack.word
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        self.key() == other.key()
    }
}

/// Numbers of a few bits in one word.
#[derive(Default)]
struct Pack {
    word: u64,
    used: u32,
}

impl Pack {
    fn add(&mut self, value: u64, bits: u32) {
        assert!(value < 1 << bits && self.used + bits <= u64::BITS, "{value} does not fit");
        self.word |= value << self.used;
        self.used += bits;
    }

    fn flag(&mut self, flag: bool) {
        self.add(u64::from(flag), 1);
    }
}
