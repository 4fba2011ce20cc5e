//! A cluster in the test's own process that does as it is told: nodes of one shard each, which lead, are silent, go and come back, or tell what was
//! true long ago.
//! It has the native protocol of real ones and no disk; all nodes share their logs, so whoever leads has all that was taken.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use corelane::batch::{self, BatchHeader};
use corelane::request::{
    Appended, Broker, Code, Fetch, FetchResult, Fetched, FoundOffset, ListOffsetResult, Metadata, OffsetSpec, PartitionMetadata, Produce,
    ProduceResult, Refusal, ReplicaLists, Request, Response, TopicMetadata, TopicPartitions,
};
use corelane::types::{TopicId, TopicPartition};
use corelane::wire::handshake::{HelloReply, encode_hello_reply};
use corelane::wire::{MAGIC, PREFIX_LEN, ResponseEncoder, decode_request, encode_response, peek};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The one topic.
pub const TOPIC: &str = "orders";
const TOPIC_ID: TopicId = TopicId([7; 16]);
const MAX_FRAME: usize = 1 << 24;

/// What a node does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// It answers.
    Serves,
    /// It takes connections and reads, and says nothing, as one that is stopped.
    Silent,
    /// Its process has ended: connections break, new ones are refused.
    Gone,
}

/// A log with what it knows of producers.
#[derive(Default)]
struct Log {
    batches: Vec<(i64, Bytes)>,
    end: i64,
    /// The batches of each producer: first and last sequence, base offset.
    producers: HashMap<i64, Vec<(i32, i32, i64)>>,
}

struct State {
    leaders: Vec<PartitionMetadata>,
    /// Nodes that metadata tells of.
    listed: Vec<bool>,
    addresses: Vec<String>,
    logs: Vec<Log>,
    /// What a node goes on telling.
    frozen: BTreeMap<usize, Metadata>,
    next_producer: i64,
    /// Batches that are taken while the connection breaks before the answer, to come.
    swallow: usize,
}

/// See the module's page.
pub struct Cluster {
    state: Arc<Mutex<State>>,
    modes: Vec<watch::Sender<Mode>>,
    _nodes: Vec<JoinHandle<()>>,
}

impl Cluster {
    /// Nodes that serve; partition p is led by node p, in epoch 1.
    pub async fn start(nodes: usize, partitions: usize) -> Cluster {
        let mut listeners = Vec::new();
        for _ in 0..nodes {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let state = State {
            leaders: (0..partitions).map(|p| leader(Some(p % nodes), 1)).collect(),
            listed: vec![true; nodes],
            addresses: listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect(),
            logs: (0..partitions).map(|_| Log::default()).collect(),
            frozen: BTreeMap::new(),
            next_producer: 100,
            swallow: 0,
        };
        let state = Arc::new(Mutex::new(state));
        let modes: Vec<_> = (0..nodes).map(|_| watch::Sender::new(Mode::Serves)).collect();
        let start = |(node, listener)| tokio::spawn(serve(node, listener, state.clone(), modes[node].subscribe()));
        let _nodes = listeners.into_iter().enumerate().map(start).collect();
        Cluster { state, modes, _nodes }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Where these nodes listen, in this order.
    pub fn addresses(&self, nodes: &[usize]) -> String {
        let state = self.lock();
        nodes.iter().map(|node| state.addresses[*node].as_str()).collect::<Vec<_>>().join(",")
    }

    /// From now on the node does this.
    pub fn set_mode(&self, node: usize, mode: Mode) {
        self.modes[node].send_replace(mode);
    }

    /// Metadata tells of the node, or not.
    pub fn list(&self, node: usize, listed: bool) {
        self.lock().listed[node] = listed;
    }

    /// Another node leads the partition, or nobody; in the next epoch.
    pub fn lead(&self, partition: usize, node: Option<usize>) {
        let place = &mut self.lock().leaders[partition];
        *place = leader(node, place.leader_epoch + 1);
    }

    /// The node goes on telling what is true now.
    pub fn freeze(&self, node: usize) {
        let mut state = self.lock();
        let told = state.metadata();
        state.frozen.insert(node, told);
    }

    /// The topic has one partition more, led by that node.
    pub fn add_partition(&self, node: usize) {
        let mut state = self.lock();
        state.leaders.push(leader(Some(node), 1));
        state.logs.push(Log::default());
    }

    /// Of so many requests to come the batches are taken, and their connections break before the answers.
    pub fn swallow_answers(&self, requests: usize) {
        self.lock().swallow = requests;
    }

    /// How many records the log of a partition has.
    pub fn end(&self, partition: usize) -> i64 {
        self.lock().logs[partition].end
    }
}

fn leader(node: Option<usize>, leader_epoch: i32) -> PartitionMetadata {
    PartitionMetadata { leader: node.map(|node| node as u32 * 1024), leader_epoch }
}

impl State {
    fn metadata(&self) -> Metadata {
        let broker = |(node, address): (usize, &String)| {
            let (host, port) = address.rsplit_once(':').unwrap();
            Broker { id: node as u32 * 1024, host: host.into(), port: port.parse().unwrap() }
        };
        let brokers: Vec<_> = self.addresses.iter().enumerate().filter(|(node, _)| self.listed[*node]).map(broker).collect();
        let found = TopicPartitions {
            id: TOPIC_ID,
            partitions: self.leaders.clone(),
            replicas: ReplicaLists::default(),
            max_message_bytes: 1 << 20,
        };
        let controller = brokers.first().map_or(0, |broker| broker.id);
        Metadata { cluster: [1; 16], brokers, controller, topics: vec![TopicMetadata { name: TOPIC.into(), found: Ok(found) }] }
    }

    fn led(&mut self, node: usize, partition: &TopicPartition) -> Result<&mut Log, Refusal> {
        let at = partition.partition as usize;
        match self.leaders.get(at) {
            None => Err(Refusal::new(Code::UnknownTopicOrPartition, "no such partition")),
            Some(place) if place.leader != Some(node as u32 * 1024) => Err(Refusal::new(Code::NotLeader, "another node leads it")),
            Some(_) => Ok(&mut self.logs[at]),
        }
    }

    fn produce(&mut self, node: usize, produce: &Produce, payload: &Bytes) -> Vec<ProduceResult> {
        let append = |batch: &corelane::request::ProduceBatch| {
            let outcome = self.led(node, &batch.partition).and_then(|log| log.append(&payload[batch.range.clone()]));
            ProduceResult { partition: batch.partition, outcome }
        };
        produce.batches.iter().map(append).collect()
    }

    fn fetch(&mut self, node: usize, fetch: &Fetch) -> (Vec<FetchResult>, Vec<u8>) {
        let mut payload = Vec::new();
        let results = fetch.partitions.iter().map(|wanted| {
            let outcome = self.led(node, &wanted.partition).map(|log| {
                let before = payload.len();
                let batches = log.batches.iter().filter(|(_, bytes)| BatchHeader::parse(bytes).unwrap().next_offset() > wanted.offset);
                batches.take(3).for_each(|(_, bytes)| payload.extend_from_slice(bytes));
                Fetched { high_watermark: log.end, log_start: 0, bytes: (payload.len() - before) as u32, preferred: None }
            });
            FetchResult { partition: wanted.partition, outcome }
        });
        let results = results.collect();
        (results, payload)
    }
}

impl Log {
    fn append(&mut self, bytes: &[u8]) -> Result<Appended, Refusal> {
        let header = batch::check_ingress(bytes, 1 << 20).map_err(|e| Refusal::new(Code::CorruptBatch, e.to_string()))?;
        let appended = |base_offset| Appended { base_offset, log_append_time: -1, log_start: 0 };
        let known = self.producers.entry(header.producer_id).or_default();
        let (first, last) = (header.base_sequence, header.last_sequence());
        if let Some((.., base)) = known.iter().find(|(f, l, _)| (*f, *l) == (first, last)) {
            return Ok(appended(*base));
        }
        if known.last().map_or(0, |(_, last, _)| last + 1) != first {
            return Err(Refusal::new(Code::OutOfOrderSequence, format!("{first} after {known:?}")));
        }
        known.push((first, last, self.end));
        let mut stored = bytes.to_vec();
        batch::stamp(&mut stored, self.end, 1);
        self.batches.push((self.end, stored.into()));
        self.end += i64::from(header.record_count);
        Ok(appended(self.end - i64::from(header.record_count)))
    }
}

/// A node, until the cluster is dropped: while it is gone its port is free.
async fn serve(node: usize, listener: TcpListener, state: Arc<Mutex<State>>, mut mode: watch::Receiver<Mode>) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    loop {
        let Some(open) = &listener else {
            if mode.wait_for(|mode| *mode != Mode::Gone).await.is_err() {
                return;
            }
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).unwrap();
            listener = Some(socket.listen(64).unwrap());
            continue;
        };
        tokio::select! {
            accepted = open.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let (state, mut mode) = (state.clone(), mode.clone());
                tokio::spawn(async move {
                    let mut end = mode.clone();
                    tokio::select! {
                        _ = connection(node, stream, state, &mut mode) => {}
                        _ = end.wait_for(|mode| *mode == Mode::Gone) => {}
                    }
                });
            }
            gone = async { mode.wait_for(|mode| *mode == Mode::Gone).await.map(drop) } => {
                if gone.is_err() {
                    return;
                }
                listener = None;
            }
        }
    }
}

/// Waits while the node is silent.
async fn voice(mode: &mut watch::Receiver<Mode>) {
    let _ = mode.wait_for(|mode| *mode != Mode::Silent).await;
}

async fn connection(node: usize, stream: TcpStream, state: Arc<Mutex<State>>, mode: &mut watch::Receiver<Mode>) -> std::io::Result<()> {
    let (mut read, write) = stream.into_split();
    let write = Arc::new(tokio::sync::Mutex::new(write));
    let mut magic = [0; MAGIC.len()];
    read.read_exact(&mut magic).await?;
    frame(&mut read).await?;
    voice(mode).await;
    let reply = HelloReply {
        version: 1,
        cluster: [1; 16],
        node: node as u32,
        shard: 0,
        max_frame: MAX_FRAME as u32,
        max_in_flight: 100,
        software: String::new(),
    };
    let mut out = vec![];
    encode_hello_reply(&Ok(reply), &mut out);
    write.lock().await.write_all(&out).await?;
    loop {
        let (header, payload) = frame(&mut read).await?;
        let (correlation, request) = decode_request(&header, payload.len()).expect("a request");
        voice(mode).await;
        match request {
            // In the order in which they come; the others may overtake.
            Request::Produce(produce) => {
                let (results, is_swallowed) = {
                    let mut state = state.lock().unwrap();
                    let results = state.produce(node, &produce, &payload);
                    let is_swallowed = state.swallow > 0 && results.iter().any(|result| result.outcome.is_ok());
                    state.swallow -= usize::from(is_swallowed);
                    (results, is_swallowed)
                };
                if is_swallowed {
                    return Ok(());
                }
                answer(&write, correlation, &Response::Produce(results), &[]).await?;
            }
            Request::Fetch(fetch) => {
                let (state, write, mut mode) = (state.clone(), write.clone(), mode.clone());
                tokio::spawn(async move {
                    let deadline = tokio::time::Instant::now() + Duration::from_millis(fetch.max_wait_ms.into());
                    loop {
                        let (results, payload) = state.lock().unwrap().fetch(node, &fetch);
                        let is_enough = !payload.is_empty() || results.iter().any(|result| result.outcome.is_err());
                        if is_enough || tokio::time::Instant::now() >= deadline {
                            voice(&mut mode).await;
                            return answer(&write, correlation, &Response::Fetch(results), &payload).await;
                        }
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                });
            }
            request => {
                let response = other(node, &mut state.lock().unwrap(), &request);
                answer(&write, correlation, &response, &[]).await?;
            }
        }
    }
}

fn other(node: usize, state: &mut State, request: &Request) -> Response {
    match request {
        Request::Metadata(_) => Response::Metadata(state.frozen.get(&node).cloned().unwrap_or_else(|| state.metadata())),
        Request::InitProducerId => {
            state.next_producer += 1;
            Response::ProducerId(state.next_producer, 0)
        }
        Request::ListOffsets(questions) => {
            let answer = |question: &corelane::request::ListOffset| {
                let end = state.led(node, &question.partition).map(|log| log.end);
                let offset = |end| if question.spec == OffsetSpec::Earliest { 0 } else { end };
                let outcome = end.map(|end| FoundOffset { offset: offset(end), timestamp: -1, leader_epoch: None });
                ListOffsetResult { partition: question.partition, outcome }
            };
            Response::ListOffsets(questions.iter().map(answer).collect())
        }
        other => Response::Refused(Refusal::new(Code::UnsupportedVersion, format!("{other:?} is not served here"))),
    }
}

async fn answer(write: &tokio::sync::Mutex<OwnedWriteHalf>, correlation: u64, response: &Response, payload: &[u8]) -> std::io::Result<()> {
    let mut out = vec![];
    encode_response(&mut ResponseEncoder::new(), correlation, response, payload.len(), &mut out);
    out.extend_from_slice(payload);
    write.lock().await.write_all(&out).await
}

/// The header and payload of the next frame.
async fn frame(read: &mut OwnedReadHalf) -> std::io::Result<(Vec<u8>, Bytes)> {
    let mut prefix = [0; PREFIX_LEN];
    read.read_exact(&mut prefix).await?;
    let prefix = peek(&prefix, MAX_FRAME).unwrap().unwrap();
    let mut header = vec![0; prefix.header_len()];
    read.read_exact(&mut header).await?;
    let mut payload = vec![0; prefix.payload_len()];
    read.read_exact(&mut payload).await?;
    Ok((header, payload.into()))
}
