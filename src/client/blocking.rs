//! The client for programs without async: the same things, each call waiting until it is done.
//!
//! A [`BlockingClient`] owns a small runtime of one thread, which does all the work behind the scenes; its producers and consumers keep it alive.
//! Not to be used from async code.
//!
//! ```no_run
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use corelane::client::blocking::BlockingClient;
//! use corelane::client::{ProducerRecord, SeekTo};
//! let client = BlockingClient::connect("localhost:9092")?;
//! let producer = client.producer(|settings| settings)?;
//! producer.send(ProducerRecord::to("orders").value("paid"))?;
//! let mut consumer = client.consumer(|settings| settings)?;
//! consumer.assign_topic("orders", SeekTo::Earliest)?;
//! for record in &mut consumer {
//!     println!("{:?}", record?.value);
//! }
//! # Ok(()) }
//! ```

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::{
    Admin, Client, ClientBuilder, ClientError, ConsumeError, ConsumedBatch, Consumer, ConsumerBuilder, ConsumerRecord, DeliveryFuture,
    GroupPosition, NewTopic, PlannedReset, ProduceError, Producer, ProducerBuilder, ProducerRecord, RecordMetadata, ResetTo, SeekTo,
    TopicChanges,
};
use crate::request::group::{DescribedGroup, ListedGroup};
use crate::request::{Metadata, OffsetSpec, TopicDescription};
use crate::types::{Offset, Timestamp};

/// A client with a runtime of its own.
#[derive(Clone)]
pub struct BlockingClient {
    client: Client,
    runtime: Arc<Runtime>,
}

/// One thread that runs the client's tasks, until the last handle is dropped.
struct Runtime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    fn start() -> io::Result<Runtime> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("corelane-client".into()).spawn(move || {
            drop(sender.send(runtime.handle().clone()));
            let _ = runtime.block_on(stopped);
        })?;
        let handle = receiver.recv().map_err(io::Error::other)?;
        Ok(Runtime { handle, stop: Some(stop), thread: Some(thread) })
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl BlockingClient {
    /// As [`Client::connect`].
    ///
    /// # Errors
    /// As there; or no thread can be started.
    pub fn connect(addresses: &str) -> Result<BlockingClient, ClientError> {
        BlockingClient::from_builder(Client::builder(addresses))
    }

    /// As [`ClientBuilder::connect`].
    ///
    /// # Errors
    /// As there; or no thread can be started.
    pub fn from_builder(builder: ClientBuilder) -> Result<BlockingClient, ClientError> {
        let runtime = Runtime::start().map_err(|e| ClientError::Invalid(format!("can't start the client's thread: {e}")))?;
        let client = runtime.wait(builder.connect())?;
        Ok(BlockingClient { client, runtime: Arc::new(runtime) })
    }

    /// A producer; `set` changes its settings.
    ///
    /// # Errors
    /// As [`ProducerBuilder::build`].
    pub fn producer(&self, set: impl FnOnce(ProducerBuilder) -> ProducerBuilder) -> Result<BlockingProducer, ClientError> {
        let producer = self.runtime.wait(async { set(self.client.producer()).build() })?;
        Ok(BlockingProducer { producer, runtime: self.runtime.clone() })
    }

    /// A consumer; `set` changes its settings.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::build`].
    pub fn consumer(&self, set: impl FnOnce(ConsumerBuilder) -> ConsumerBuilder) -> Result<BlockingConsumer, ClientError> {
        let consumer = self.runtime.wait(async { set(self.client.consumer()).build() })?;
        Ok(BlockingConsumer { consumer, runtime: self.runtime.clone() })
    }

    /// Topics and offsets.
    pub fn admin(&self) -> BlockingAdmin {
        BlockingAdmin { admin: self.client.admin(), runtime: self.runtime.clone() }
    }
}

/// As [`Producer`].
#[derive(Clone)]
pub struct BlockingProducer {
    producer: Producer,
    runtime: Arc<Runtime>,
}

impl BlockingProducer {
    /// As [`Producer::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send(&self, record: ProducerRecord<'_>) -> Result<RecordMetadata, ProduceError> {
        self.runtime.wait(self.producer.send(record))
    }

    /// As [`Producer::send_nowait`]; [`BlockingProducer::wait`] tells what became of the record.
    ///
    /// # Errors
    /// As there.
    pub fn send_nowait(&self, record: ProducerRecord<'_>) -> Result<DeliveryFuture, ProduceError> {
        // The common case without entering the runtime.
        match self.producer.try_send(record) {
            Ok(delivery) => Ok(delivery),
            Err(_) => self.runtime.wait(self.producer.send_nowait(record)),
        }
    }

    /// Waits until the record is acknowledged or given up.
    ///
    /// # Errors
    /// As [`Producer::send`].
    pub fn wait(&self, delivery: DeliveryFuture) -> Result<RecordMetadata, ProduceError> {
        self.runtime.wait(delivery)
    }

    /// As [`Producer::flush`].
    pub fn flush(&self) {
        self.runtime.wait(self.producer.flush());
    }
}

/// As [`Consumer`]; an iterator of records without end.
pub struct BlockingConsumer {
    consumer: Consumer,
    runtime: Arc<Runtime>,
}

impl BlockingConsumer {
    /// As [`Consumer::assign`].
    ///
    /// # Errors
    /// As there.
    pub fn assign(&mut self, topic: &str, partition: u32, from: SeekTo) -> Result<(), ClientError> {
        self.runtime.wait(self.consumer.assign(topic, partition, from))
    }

    /// As [`Consumer::assign_topic`].
    ///
    /// # Errors
    /// As there.
    pub fn assign_topic(&mut self, topic: &str, from: SeekTo) -> Result<(), ClientError> {
        self.runtime.wait(self.consumer.assign_topic(topic, from))
    }

    /// As [`Consumer::seek`].
    ///
    /// # Errors
    /// As there.
    pub fn seek(&mut self, topic: &str, partition: u32, to: SeekTo) -> Result<(), ClientError> {
        self.runtime.wait(self.consumer.seek(topic, partition, to))
    }

    /// The next record, or `None` when none has come within `timeout`.
    ///
    /// # Errors
    /// As [`Consumer::next_record`].
    pub fn poll(&mut self, timeout: Duration) -> Option<Result<ConsumerRecord, ConsumeError>> {
        let consumer = &mut self.consumer;
        self.runtime.wait(async { tokio::time::timeout(timeout, consumer.next_record()).await.ok().flatten() })
    }

    /// The next batch, or `None` when none has come within `timeout`.
    ///
    /// # Errors
    /// As [`Consumer::next_batch`].
    pub fn poll_batch(&mut self, timeout: Duration) -> Option<Result<ConsumedBatch, ConsumeError>> {
        let consumer = &mut self.consumer;
        self.runtime.wait(async { tokio::time::timeout(timeout, consumer.next_batch()).await.ok().flatten() })
    }

    /// Positions, pause and resume, which wait for nothing.
    pub fn consumer(&mut self) -> &mut Consumer {
        &mut self.consumer
    }
}

impl Iterator for BlockingConsumer {
    type Item = Result<ConsumerRecord, ConsumeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.runtime.wait(self.consumer.next_record())
    }
}

/// As [`Admin`].
#[derive(Clone)]
pub struct BlockingAdmin {
    admin: Admin,
    runtime: Arc<Runtime>,
}

impl BlockingAdmin {
    /// As [`Admin::create_topic`].
    ///
    /// # Errors
    /// As there.
    pub fn create_topic(&self, topic: NewTopic) -> Result<TopicDescription, ClientError> {
        self.runtime.wait(self.admin.create_topic(topic))
    }

    /// As [`Admin::delete_topic`].
    ///
    /// # Errors
    /// As there.
    pub fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        self.runtime.wait(self.admin.delete_topic(name))
    }

    /// As [`Admin::describe_topic`].
    ///
    /// # Errors
    /// As there.
    pub fn describe_topic(&self, name: &str) -> Result<TopicDescription, ClientError> {
        self.runtime.wait(self.admin.describe_topic(name))
    }

    /// As [`Admin::alter_topic`].
    ///
    /// # Errors
    /// As there.
    pub fn alter_topic(&self, changes: TopicChanges) -> Result<TopicDescription, ClientError> {
        self.runtime.wait(self.admin.alter_topic(changes))
    }

    /// As [`Admin::metadata`].
    ///
    /// # Errors
    /// As there.
    pub fn metadata(&self) -> Result<Metadata, ClientError> {
        self.runtime.wait(self.admin.metadata())
    }

    /// As [`Admin::list_topics`].
    ///
    /// # Errors
    /// As there.
    pub fn list_topics(&self) -> Result<Vec<String>, ClientError> {
        self.runtime.wait(self.admin.list_topics())
    }

    /// As [`Admin::offset`].
    ///
    /// # Errors
    /// As there.
    pub fn offset(&self, topic: &str, partition: u32, spec: OffsetSpec) -> Result<(Offset, Timestamp), ClientError> {
        self.runtime.wait(self.admin.offset(topic, partition, spec))
    }

    /// As [`Admin::delete_records`].
    ///
    /// # Errors
    /// As there.
    pub fn delete_records(&self, topic: &str, partition: u32, before: Option<Offset>) -> Result<Offset, ClientError> {
        self.runtime.wait(self.admin.delete_records(topic, partition, before))
    }

    /// As [`Admin::list_groups`].
    ///
    /// # Errors
    /// As there.
    pub fn list_groups(&self) -> Result<Vec<ListedGroup>, ClientError> {
        self.runtime.wait(self.admin.list_groups())
    }

    /// As [`Admin::describe_group`].
    ///
    /// # Errors
    /// As there.
    pub fn describe_group(&self, group: &str) -> Result<DescribedGroup, ClientError> {
        self.runtime.wait(self.admin.describe_group(group))
    }

    /// As [`Admin::group_positions`].
    ///
    /// # Errors
    /// As there.
    pub fn group_positions(&self, group: &str) -> Result<Vec<GroupPosition>, ClientError> {
        self.runtime.wait(self.admin.group_positions(group))
    }

    /// As [`Admin::plan_reset`].
    ///
    /// # Errors
    /// As there.
    pub fn plan_reset(&self, group: &str, topics: &[String], to: ResetTo) -> Result<Vec<PlannedReset>, ClientError> {
        self.runtime.wait(self.admin.plan_reset(group, topics, to))
    }

    /// As [`Admin::reset_group`].
    ///
    /// # Errors
    /// As there.
    pub fn reset_group(&self, group: &str, plan: &[PlannedReset]) -> Result<(), ClientError> {
        self.runtime.wait(self.admin.reset_group(group, plan))
    }

    /// As [`Admin::delete_group`].
    ///
    /// # Errors
    /// As there.
    pub fn delete_group(&self, group: &str) -> Result<(), ClientError> {
        self.runtime.wait(self.admin.delete_group(group))
    }
}
