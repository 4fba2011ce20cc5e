//! What a cluster says of itself, over Kafka's metadata request: it names leaders, replicas and who is in sync.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use corelane::request::cluster::StatusQuestion;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{MetadataRequest, MetadataResponse, RequestHeader, ResponseHeader, TopicName};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};

use super::clients;
use super::network::{Network, Node};

/// A node that does not answer within this is as good as none; it may be stopped.
const PATIENCE: Duration = Duration::from_secs(3);
/// The newest that the broker speaks.
const VERSION: i16 = 9;
/// Brokers are named by node and shard.
const IDS_EACH: i32 = 1024;

/// A partition as one node sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionView {
    /// Who leads.
    pub leader: Option<Node>,
    /// Where it is.
    pub replicas: Vec<Node>,
    /// Who of them is in sync.
    pub in_sync: Vec<Node>,
}

/// The partitions of a topic as one node sees them.
pub type TopicView = BTreeMap<u32, PartitionView>;

/// A topic as that node sees it.
pub fn topic(network: &Network, node: Node, name: &str) -> Result<TopicView, String> {
    let asked = MetadataRequestTopic::default().with_name(Some(TopicName(StrBytes::from_string(name.into()))));
    let request = MetadataRequest::default().with_topics(Some(vec![asked])).with_allow_auto_topic_creation(false);
    let answer = ask(network, node, &request)?;
    let topic = answer.topics.first().ok_or("no topic in the answer")?;
    if topic.error_code != 0 {
        return Err(format!("node {node} answers for {name} with error {}", topic.error_code));
    }
    let node_of = |id: i32| (id / IDS_EACH) as Node;
    let partitions = topic.partitions.iter().map(|partition| {
        let view = PartitionView {
            leader: (partition.leader_id.0 >= 0).then(|| node_of(partition.leader_id.0)),
            replicas: partition.replica_nodes.iter().map(|id| node_of(id.0)).collect(),
            in_sync: partition.isr_nodes.iter().map(|id| node_of(id.0)).collect(),
        };
        (partition.partition_index as u32, view)
    });
    Ok(partitions.collect())
}

/// Whether all replicas of a topic are in sync and a replica leads each partition, and every node sees the same.
pub fn expect_healthy(network: &Network, name: &str, replicas: usize) -> Result<TopicView, String> {
    let mut views = Vec::new();
    for node in network.nodes() {
        let view = topic(network, node, name)?;
        for (partition, seen) in &view {
            let leads = seen.leader.is_some_and(|leader| seen.in_sync.contains(&leader));
            if !leads || seen.in_sync.len() != replicas || seen.replicas.len() != replicas {
                return Err(format!("node {node} sees {name}/{partition} as {seen:?}"));
            }
        }
        views.push(view);
    }
    let first = views.remove(0);
    match views.iter().find(|view| **view != first) {
        Some(other) => Err(format!("nodes see {first:?} and {other:?}")),
        None => Ok(first),
    }
}

/// Whether all nodes vote in the consensus: until then a node that loses its disk may take the metadata with it.
pub fn expect_voters(network: &Network, bootstrap: &str) -> Result<(), String> {
    let question = StatusQuestion { topic: None, all_partitions: false, skip: 0, most: 1 };
    let status =
        clients::as_client(network, bootstrap, async |client| client.admin().cluster_status(question).await.map_err(|e| e.to_string()))?;
    let voters = status.consensus.members.iter().filter(|member| member.votes).count();
    let members = status.consensus.members.len();
    if (voters, members) == (network.nodes().count(), network.nodes().count()) {
        Ok(())
    } else {
        Err(format!("{voters} of {members} members vote"))
    }
}

fn ask(network: &Network, node: Node, request: &MetadataRequest) -> Result<MetadataResponse, String> {
    let address: SocketAddr = network.clients(node).parse().map_err(|_| "no address")?;
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(&frame(request))?;
        let mut len = [0; 4];
        socket.read_exact(&mut len)?;
        let mut answer = vec![0; u32::from_be_bytes(len) as usize];
        socket.read_exact(&mut answer)?;
        Ok(answer)
    };
    let answer = network.as_client(exchange)?.map_err(|e| format!("node {node} at {address}: {e}"))?;
    let mut answer = Bytes::from(answer);
    let bad = |e: &dyn std::fmt::Display| format!("node {node} answers with what does not decode: {e}");
    ResponseHeader::decode(&mut answer, MetadataResponse::header_version(VERSION)).map_err(|e| bad(&e))?;
    MetadataResponse::decode(&mut answer, VERSION).map_err(|e| bad(&e))
}

fn frame(request: &MetadataRequest) -> BytesMut {
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    let head = RequestHeader::default().with_request_api_key(MetadataRequest::KEY).with_request_api_version(VERSION);
    let head = head.with_correlation_id(1).with_client_id(Some(StrBytes::from_static_str("cluster-test")));
    head.encode(&mut frame, MetadataRequest::header_version(VERSION)).expect("it encodes");
    request.encode(&mut frame, VERSION).expect("it encodes");
    let len = frame.len() as u32 - 4;
    frame[..4].copy_from_slice(&len.to_be_bytes());
    frame
}
