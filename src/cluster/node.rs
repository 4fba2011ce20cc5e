//! The nodes of a cluster: who each is, where it is, and whether it is there.
//!
//! A node is known by its id, and each life of its disk by an incarnation. Each registration gives it a *node epoch* from one counter of the whole cluster, so what
//! was sent under an earlier registration is told from what is sent under this one.

use crate::limits;
use crate::replication::NodeId;
use crate::request::{Code, Refusal};
use crate::types::Durability;

/// UUID of a life of a node: a wiped disk is another one.
pub type Incarnation = [u8; 16];

/// Oldest version of the protocol between nodes that this version works with.
pub const OLDEST_PROTOCOL: u16 = 1;
/// Version of the protocol between nodes that this version speaks.
pub const PROTOCOL: u16 = 1;

/// Where something listens.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Endpoint {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    /// An endpoint.
    pub fn new(host: impl Into<String>, port: u16) -> Endpoint {
        Endpoint { host: host.into(), port }
    }
}

/// What a node says of itself when it starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registration {
    /// Its id.
    pub node: NodeId,
    /// Which life of its disk.
    pub incarnation: Incarnation,
    /// UUID of the cluster that it belongs to.
    pub cluster: [u8; 16],
    /// Version of the protocol between nodes that it speaks.
    pub protocol: u16,
    /// Version of its software, for people.
    pub software: String,
    /// Where consensus listens; `None` of a node that is alone.
    pub cluster_address: Option<Endpoint>,
    /// Shard i takes replication at the host of `cluster_address`, on this port + i.
    pub replication_port: u16,
    /// Where clients find its advertised shards, from shard 0.
    pub clients: Vec<Endpoint>,
    /// Number of shards.
    pub shards: u32,
    /// Rack, or whatever fails as one.
    pub rack: Option<String>,
    /// Durability of topics that have none of their own.
    pub durability: Durability,
    /// The last run of this life ended with everything in its place (or there was none).
    pub clean_stop: bool,
}

impl Registration {
    /// Whether it makes sense by itself.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self) -> Result<(), Refusal> {
        let refused = |code, what: String| Err(Refusal::new(code, format!("node {}: {what}", self.node)));
        if self.protocol < OLDEST_PROTOCOL {
            let what = format!(
                "it speaks version {} of the protocol between nodes, the oldest that is served is {OLDEST_PROTOCOL}",
                self.protocol
            );
            return refused(Code::UnsupportedVersion, what);
        }
        if self.node > limits::MAX_NODE_ID {
            return refused(Code::InvalidRequest, format!("an id is at most {}", limits::MAX_NODE_ID));
        }
        if !(1..=limits::MAX_SHARDS).contains(&self.shards) || self.clients.len() > self.shards as usize {
            let most = limits::MAX_SHARDS;
            return refused(
                Code::InvalidRequest,
                format!("{} shards, {} of them advertised: 1 to {most} can be", self.shards, self.clients.len()),
            );
        }
        if self.cluster_address.is_some() && u32::from(self.replication_port) + self.shards - 1 > u32::from(u16::MAX) {
            return refused(Code::InvalidRequest, format!("no room for {} ports from {}", self.shards, self.replication_port));
        }
        let hosts = self.clients.iter().chain(&self.cluster_address).map(|endpoint| &endpoint.host);
        let texts = hosts.chain(&self.rack).chain([&self.software]);
        let (longest, sum) = texts.map(String::len).fold((0, 0), |(longest, sum), length| (length.max(longest), sum + length));
        if longest > limits::MAX_HOST_NAME || sum > limits::MAX_NODE_TEXT {
            return refused(Code::InvalidRequest, format!("a name of {longest} bytes, of {sum} bytes in all"));
        }
        Ok(())
    }
}

/// Whether a node is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeState {
    /// It is, and does everything.
    Live,
    /// It is, and about to stop: it leads only what nobody else may lead.
    Draining,
    /// It is not: it leads nothing and is in no ISR.
    Fenced,
}

/// A node as the cluster knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// What it said when it registered.
    pub registration: Registration,
    /// Which registration that was, of all there were in the cluster.
    pub epoch: u64,
    /// Whether it is there.
    pub state: NodeState,
    /// It is to hold no replicas: none is placed on it.
    pub retiring: bool,
}

impl Node {
    /// Its id.
    pub fn id(&self) -> NodeId {
        self.registration.node
    }

    /// Whether it may be in an ISR, and lead.
    pub fn is_live(&self) -> bool {
        self.state != NodeState::Fenced
    }

    /// Where its shard takes replication; `None` of a node that is alone or has no such shard.
    pub fn replication_endpoint(&self, shard: u32) -> Option<Endpoint> {
        let address = self.registration.cluster_address.as_ref().filter(|_| shard < self.registration.shards)?;
        Some(Endpoint { host: address.host.clone(), port: self.registration.replication_port + shard as u16 })
    }

    /// Where clients find a shard, and as which broker id: with fewer endpoints than shards, through one that is advertised.
    pub fn client_endpoint(&self, shard: u32) -> Option<(u32, &Endpoint)> {
        let clients = &self.registration.clients;
        let at = (shard as usize).checked_rem(clients.len())?;
        Some((self.id() * limits::MAX_SHARDS + at as u32, &clients[at]))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node of the tests' cluster, with two shards.
    pub(crate) fn registration(node: NodeId) -> Registration {
        Registration {
            node,
            incarnation: [(node as u8).wrapping_add(1); 16],
            cluster: [9; 16],
            protocol: PROTOCOL,
            software: "0.1.0".into(),
            cluster_address: Some(Endpoint::new(format!("node-{node}"), 9190)),
            replication_port: 9191,
            clients: vec![Endpoint::new("localhost", 9090), Endpoint::new("localhost", 9091)],
            shards: 2,
            rack: Some(format!("rack-{}", node % 3)),
            durability: Durability::Durable,
            clean_stop: true,
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        registration(1).check().unwrap();
        let refused = |change: fn(&mut Registration)| {
            let mut other = registration(1);
            change(&mut other);
            other.check().expect_err("refused").code
        };
        assert_eq!(refused(|r| r.protocol = 0), Code::UnsupportedVersion);
        assert_eq!(refused(|r| r.node = limits::MAX_NODE_ID + 1), Code::InvalidRequest);
        assert_eq!(refused(|r| r.shards = 0), Code::InvalidRequest);
        assert_eq!(refused(|r| r.shards = 1), Code::InvalidRequest, "more endpoints than shards");
        assert_eq!(refused(|r| r.shards = limits::MAX_SHARDS + 1), Code::InvalidRequest);
        assert_eq!(refused(|r| r.replication_port = u16::MAX), Code::InvalidRequest);
        assert_eq!(refused(|r| r.rack = Some("r".repeat(254))), Code::InvalidRequest);
    }

    #[test]
    fn shards_are_found() {
        let node = Node { registration: registration(3), epoch: 1, state: NodeState::Live, retiring: false };
        assert_eq!(node.replication_endpoint(1), Some(Endpoint::new("node-3", 9192)));
        assert_eq!(node.replication_endpoint(2), None);
        assert_eq!(node.client_endpoint(3), Some((3 * 1024 + 1, &Endpoint::new("localhost", 9091))));
    }
}
