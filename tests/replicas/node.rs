//! One node of a cluster without the others: its shard, which the metadata in the test's hand tells what to do.

use std::rc::Rc;
use std::sync::Arc;

use corelane::bridge::bridge;
use corelane::cluster::{Catalogue, Endpoint, Registration};
use corelane::group::Settings;
use corelane::metrics::ShardMetrics;
use corelane::request::Broker;
use corelane::shard::context::{Context, NodeIdentity};
use corelane::shard::mesh::mesh;
use corelane::shard::replication::Lease;
use corelane::types::Durability;

use super::{CLUSTER, Running};

/// A node with one shard, as it registers.
pub fn registration(node: u32, rack: Option<String>) -> Registration {
    Registration {
        node,
        incarnation: [node as u8 + 1; 16],
        cluster: CLUSTER,
        protocol: corelane::cluster::node::PROTOCOL,
        software: "test".into(),
        cluster_address: Some(Endpoint::new(format!("node-{node}"), 9190)),
        replication_port: 9191,
        clients: vec![Endpoint::new(format!("client-{node}"), 9092)],
        shards: 1,
        rack,
        durability: Durability::Durable,
        clean_stop: true,
    }
}

/// The shard of node 0.
pub fn shard(running: &Running, catalogue: &Catalogue, settings: Settings, lease: &Lease) -> Rc<Context> {
    let brokers = vec![Broker { id: 0, host: "client-0".into(), port: 9092 }];
    let (_, mut ends) = bridge(1);
    Context::new(
        Arc::new(NodeIdentity { cluster: CLUSTER, node: 0, brokers }),
        running.store.clone(),
        mesh(1).remove(0),
        ends.remove(0),
        catalogue.view().clone(),
        Durability::Durable,
        false,
        settings,
        lease.clone(),
        Arc::new(ShardMetrics::new(0)),
    )
}
