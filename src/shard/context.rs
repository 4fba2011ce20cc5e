//! What every task of a shard knows.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use crate::bridge::ShardEnd;
use crate::cluster::config::TimestampType;
use crate::cluster::{CatalogueView, Topic};
use crate::limits;
use crate::metrics::{Gauge, ShardMetrics};
use crate::partition::Settings;
use crate::request::{Broker, Code, Refusal};
use crate::shard::event::Event;
use crate::shard::groups::Groups;
use crate::shard::mesh::Mesh;
use crate::shard::metadata;
use crate::shard::net::Sender;
use crate::shard::replication::{Lease, Replication};
use crate::shard::store::Store;
use crate::shard::verifier::Verifier;
use crate::types::{Durability, ProducerId, TopicPartition, is_internal_topic};

/// Identity of a node.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The node.
    pub node: u32,
    /// What clients are told of each advertised shard of this node.
    pub brokers: Vec<Broker>,
}

/// What every task of a shard knows.
pub struct Context {
    /// The node.
    pub identity: Arc<NodeIdentity>,
    /// The partitions.
    pub store: Rc<Store>,
    /// The other shards.
    pub mesh: Mesh,
    /// The control plane.
    pub control: ShardEnd,
    /// The topics as this shard acts by them.
    pub view: RefCell<Arc<CatalogueView>>,
    /// The broker's default.
    pub durability: Durability,
    /// Whether metadata asked for a topic that does not exist may create it.
    pub auto_create_topics: bool,
    /// The coordinators of consumer groups.
    pub groups: Groups,
    /// The other nodes.
    pub replication: Replication,
    /// Sealed segments that are to be read again.
    pub verifier: Verifier,
    /// Counters.
    pub metrics: Arc<ShardMetrics>,
    /// Answers that are queued and not sent.
    pub answers: Rc<Answers>,
    /// Receive buffers that nobody uses.
    pub spare_buffers: RefCell<Vec<Vec<u8>>>,
    /// Open connections by number.
    pub connections: RefCell<HashMap<u64, Rc<ConnectionState>>>,
    /// Notified when memory for receiving is given back.
    pub receive_room: Event,
    /// No new requests are taken.
    pub draining: Cell<bool>,
    producer_ids: RefCell<Range<ProducerId>>,
}

/// What the sweeper looks at.
pub struct ConnectionState {
    /// The sending side.
    pub sender: Rc<Sender>,
    /// The second by which the frame in hand (or the hello) is to be complete; 0 for none.
    pub deadline: Cell<u64>,
}

/// Connections with answers that wait to be sent; many answers of one moment leave in one call.
#[derive(Default)]
pub struct Answers {
    waiting: RefCell<Vec<Rc<Sender>>>,
    some: Event,
}

impl Answers {
    /// The sender has something queued.
    pub fn add(&self, sender: &Rc<Sender>) {
        if !sender.listed.replace(true) {
            self.waiting.borrow_mut().push(sender.clone());
            if self.waiting.borrow().len() == 1 {
                self.some.notify();
            }
        }
    }

    /// Sends all that wait.
    pub fn flush(&self) {
        for sender in self.waiting.take() {
            sender.listed.set(false);
            sender.flush();
        }
    }

    /// The task that sends what was queued since it last ran.
    pub async fn run(self: Rc<Answers>) {
        loop {
            let ticket = self.some.ticket();
            self.flush();
            self.some.wait(ticket).await;
        }
    }
}

impl Context {
    /// The context of a shard.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        identity: Arc<NodeIdentity>,
        store: Rc<Store>,
        mesh: Mesh,
        control: ShardEnd,
        view: Arc<CatalogueView>,
        durability: Durability,
        auto_create_topics: bool,
        groups: crate::group::Settings,
        lease: Lease,
        metrics: Arc<ShardMetrics>,
    ) -> Rc<Context> {
        Rc::new(Context {
            identity,
            store,
            mesh,
            control,
            view: RefCell::new(view),
            durability,
            auto_create_topics,
            groups: Groups::new(groups),
            replication: Replication::new(lease),
            verifier: Verifier::default(),
            metrics,
            answers: Rc::default(),
            spare_buffers: RefCell::default(),
            connections: RefCell::default(),
            receive_room: Event::default(),
            draining: Cell::new(false),
            producer_ids: RefCell::new(0..0),
        })
    }

    /// The shard that owns a partition on this node, or would.
    pub fn owner(&self, partition: &TopicPartition) -> u32 {
        self.owner_by(&self.view.borrow(), partition)
    }

    /// As [`Context::owner`], by another state of the metadata.
    pub fn owner_by(&self, view: &CatalogueView, partition: &TopicPartition) -> u32 {
        // Without a registration, in a store from before there were clusters, nothing is placed.
        let placed = view.shard_on(self.identity.node, partition);
        placed.unwrap_or_else(|| partition.topic.shard_of(partition.partition, self.mesh.shards()))
    }

    /// Whether this shard owns it.
    pub fn is_mine(&self, partition: &TopicPartition) -> bool {
        self.owner(partition) == self.mesh.shard()
    }

    /// A receive buffer.
    pub fn lease_buffer(&self) -> Vec<u8> {
        self.spare_buffers.borrow_mut().pop().unwrap_or_else(|| {
            self.metrics.raise(Gauge::MemoryReceive, limits::RECEIVE_BUFFER as u64);
            vec![0; limits::RECEIVE_BUFFER]
        })
    }

    /// Gives it back; a few are kept.
    pub fn return_buffer(&self, buffer: Vec<u8>) {
        let mut spare = self.spare_buffers.borrow_mut();
        if spare.len() < 64 {
            spare.push(buffer);
        } else {
            self.metrics.lower(Gauge::MemoryReceive, limits::RECEIVE_BUFFER as u64);
        }
    }

    /// A producer id that nobody else has.
    ///
    /// # Errors
    /// When the control plane can't give out more.
    pub async fn next_producer_id(&self) -> Result<ProducerId, Refusal> {
        loop {
            if let Some(id) = self.producer_ids.borrow_mut().next() {
                return Ok(id);
            }
            let block = self.control.allocate_producer_ids().await?;
            // Another task may have fetched a block meanwhile: the rest of the smaller numbers is given up.
            *self.producer_ids.borrow_mut() = block;
        }
    }

    /// Settings of a topic's partitions.
    pub fn settings(&self, topic: &Topic) -> Settings {
        let config = &topic.config;
        Settings {
            max_message_bytes: config.max_message_bytes as usize,
            segment_bytes: config.segment_bytes,
            segment_ms: config.segment_ms.min(i64::MAX as u64) as i64,
            retention_bytes: config.retention_bytes.filter(|_| config.cleanup_policy.deletes()),
            retention_ms: config.retention_ms.filter(|_| config.cleanup_policy.deletes()).map(|ms| ms.min(i64::MAX as u64) as i64),
            compacted: config.cleanup_policy.compacts(),
            dirty_millionths: config.min_cleanable_dirty_millionths,
            delete_retention_ms: config.delete_retention_ms.min(i64::MAX as u64) as i64,
            compaction_lag_ms: config.min_compaction_lag_ms.min(i64::MAX as u64) as i64,
            log_append_time: config.timestamp_type == TimestampType::LogAppendTime,
            durability: topic.durability(self.durability),
            internal: is_internal_topic(&topic.name),
        }
    }

    /// A partition as its users know it: the topic's name and the number, or the id where the topic has gone.
    pub fn name_of(&self, id: &TopicPartition) -> String {
        match self.view.borrow().topic_by_id(&id.topic) {
            Some(topic) => format!("partition {} of topic {}", id.partition, topic.name),
            None => format!("partition {id}"),
        }
    }

    /// The refusal for a batch that only the owner of its partition can take.
    pub fn unknown_or_elsewhere(&self, id: &TopicPartition) -> Refusal {
        match self.view.borrow().topic_by_id(&id.topic) {
            Some(topic) if id.partition >= topic.partitions => self.unknown(id),
            None => self.unknown(id),
            Some(_) if !self.leads(id) => self.led_elsewhere(id),
            Some(_) if self.owner(id) as usize >= self.identity.brokers.len() => Refusal::new(
                Code::RecordTooLarge,
                format!(
                    "a batch of more than {} bytes goes to the shard that owns {}, which clients are not told of",
                    limits::ADOPT_APPEND,
                    self.name_of(id)
                ),
            ),
            Some(_) if !self.is_mine(id) => Refusal::new(
                Code::NotLeader,
                format!("a batch this large goes to the shard that owns {}, which is {}", self.name_of(id), self.owner(id)),
            ),
            Some(_) => Refusal::new(
                Code::InvalidRequest,
                format!("a batch of more than {} bytes comes alone in its request", limits::ADOPT_APPEND),
            ),
        }
    }

    /// The refusal for a partition that is not here: there is none, or other nodes have it.
    pub fn unknown(&self, id: &TopicPartition) -> Refusal {
        let text = match self.view.borrow().topic_by_id(&id.topic) {
            Some(topic) if id.partition < topic.partitions => return self.led_elsewhere(id),
            Some(topic) => format!("topic {} has partitions 0 to {}, not {}", topic.name, topic.partitions - 1, id.partition),
            None => format!("no topic has the id {}", id.topic),
        };
        Refusal::new(Code::UnknownTopicOrPartition, text)
    }

    /// Whether this node leads a partition, by what it knows of the metadata.
    fn leads(&self, id: &TopicPartition) -> bool {
        metadata::advertised(self, &self.view.borrow()).leader_of(id) == Some(self.identity.node)
    }

    /// The refusal for a partition that this node does not lead.
    fn led_elsewhere(&self, id: &TopicPartition) -> Refusal {
        let leader = metadata::advertised(self, &self.view.borrow()).leader_of(id);
        let who = match leader {
            Some(node) if node != self.identity.node => format!("node {node} leads it"),
            // It has become so just now.
            Some(_) => "this node leads it and has not begun".into(),
            None => "nobody leads it at present".into(),
        };
        Refusal::new(Code::NotLeader, format!("{}: {who}", self.name_of(id)))
    }
}
