//! What tests of a whole broker share: the broker as a child process, and a connection that speaks the protocol's bytes
//! without the client library, so that a mistake there can't hide one in the broker.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use corelane::batch::{self, BatchBuilder, BatchIter, Compression};
use corelane::request::{
    Acks, CreateTopic, Fetch, FetchPartition, ListOffset, MetadataRequest, OffsetSpec, Produce, ProduceBatch, ProduceResult, ReadFrom,
    Refusal, Request, Response,
};
use corelane::types::{Offset, TopicId, TopicPartition};
use corelane::wire::handshake::{self, Hello};
use corelane::wire::{self, RequestEncoder};

/// A broker in a process of its own.
pub struct Broker {
    child: Child,
    /// Addresses by shard.
    pub addresses: Vec<String>,
    /// The admin port.
    pub admin: Option<String>,
}

impl Broker {
    /// Starts a broker on free ports and waits until it is ready.
    pub fn start(data: &Path, flags: &[&str]) -> Broker {
        Broker::try_start(data, flags).unwrap_or_else(|said| panic!("not ready: {said:?}"))
    }

    /// As [`Broker::start`]; what it says instead where it does not start.
    pub fn try_start(data: &Path, flags: &[&str]) -> Result<Broker, String> {
        Broker::try_start_in(Path::new("."), data, flags)
    }

    /// As [`Broker::start`], with a current directory of its own.
    pub fn start_in(current: &Path, data: &Path, flags: &[&str]) -> Broker {
        Broker::try_start_in(current, data, flags).unwrap_or_else(|said| panic!("not ready: {said:?}"))
    }

    fn try_start_in(current: &Path, data: &Path, flags: &[&str]) -> Result<Broker, String> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_corelane"))
            .current_dir(current)
            .args(["serve", "--json", "--data"])
            .arg(data)
            .args(if flags.contains(&"--listen") { &[][..] } else { &["--listen", "127.0.0.1:0"][..] })
            .args(if flags.contains(&"--memory") { &[][..] } else { &["--memory", "256M"][..] })
            .args(if flags.contains(&"--admin-listen") { &[][..] } else { &["--admin-listen", "none"][..] })
            .args(flags)
            .env("CORELANE_LOG", std::env::var("CORELANE_LOG").unwrap_or_else(|_| "warn".into()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the broker's binary starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the broker says something");
        let ready = serde_json::from_str::<serde_json::Value>(&line).ok().filter(|ready| ready["ready"] == true);
        let Some(ready) = ready else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(line);
        };
        let shards = ready["shards"].as_array().expect("a list of shards");
        Ok(Broker {
            child,
            addresses: shards.iter().map(|s| s["address"].as_str().expect("an address").into()).collect(),
            admin: ready["admin"].as_str().map(Into::into),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What its open descriptors name.
    pub fn open_files(&self) -> Vec<String> {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs");
        let named = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        named.map(|path| path.to_string_lossy().into_owned()).collect()
    }

    /// The sum over all shards of a counter or gauge at the admin port.
    pub fn metric(&self, name: &str) -> u64 {
        let admin = self.admin.as_deref().expect("started with an admin port");
        let mut socket = TcpStream::connect(admin).expect("the admin port");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket option");
        write!(socket, "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n").expect("a request");
        let mut text = String::new();
        socket.read_to_string(&mut text).expect("an answer");
        let start = format!("corelane_{name}{{");
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(&start)).collect();
        assert_eq!(lines.len(), self.addresses.len(), "{name} once for each shard");
        let value = |line: &str| line.rsplit_once(' ').and_then(|(_, value)| value.parse::<u64>().ok());
        lines.iter().map(|line| value(line).unwrap_or_else(|| panic!("no number in {line:?}"))).sum()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    /// SIGTERM, and its exit code.
    pub fn stop(mut self) -> i32 {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
        self.child.wait().expect("our child").code().unwrap_or(-1)
    }

    /// Addresses for a client.
    pub fn bootstrap(&self) -> String {
        self.addresses.join(",")
    }

    /// A raw connection to the shard that owns a partition.
    pub fn connect_owner(&self, partition: TopicPartition) -> Connection {
        Connection::open(&self.addresses[partition.topic.shard_of(partition.partition, self.addresses.len() as u32) as usize])
    }

    /// A raw connection to the first shard.
    pub fn connect(&self) -> Connection {
        Connection::open(&self.addresses[0])
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A blocking connection; one request at a time unless `send` and `receive` are used by themselves.
pub struct Connection {
    /// The socket.
    pub socket: TcpStream,
    encoder: RequestEncoder,
    next: u64,
}

impl Connection {
    /// Connects and shakes hands.
    pub fn open(address: &str) -> Connection {
        let mut socket = TcpStream::connect(address).expect("the broker listens");
        socket.set_nodelay(true).expect("a socket option");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket option");
        let mut out = wire::MAGIC.to_vec();
        let hello = Hello {
            version_min: handshake::VERSION_MIN,
            version_max: handshake::VERSION_MAX,
            client_id: "test".into(),
            software: "test".into(),
        };
        handshake::encode_hello(&hello, &mut out);
        socket.write_all(&out).expect("the broker reads");
        let mut connection = Connection { socket, encoder: RequestEncoder::new(), next: 1 };
        let (header, _) = connection.frame();
        handshake::decode_hello_reply(&header).expect("a reply").expect("not refused");
        connection
    }

    fn frame(&mut self) -> (Vec<u8>, Vec<u8>) {
        let mut prefix = [0; wire::PREFIX_LEN];
        self.socket.read_exact(&mut prefix).expect("an answer");
        let parsed = wire::peek_response(&prefix, u32::MAX as usize).expect("a frame").expect("whole");
        let mut header = vec![0; parsed.header_len()];
        self.socket.read_exact(&mut header).expect("a header");
        parsed.check_header(&header).expect("a checked header");
        let mut payload = vec![0; parsed.payload_len()];
        self.socket.read_exact(&mut payload).expect("a payload");
        (header, payload)
    }

    /// A second handle of the same connection, for sending while this one receives.
    pub fn sender(&self) -> Connection {
        let socket = self.socket.try_clone().expect("a descriptor");
        Connection { socket, encoder: RequestEncoder::new(), next: self.next }
    }

    /// Sends a request.
    pub fn send(&mut self, request: &Request, payload: &[u8]) -> u64 {
        let mut out = Vec::new();
        let correlation = self.next;
        self.next += 1;
        wire::encode_request(&mut self.encoder, correlation, request, payload.len(), &mut out).expect("it fits");
        self.socket.write_all(&out).expect("the broker reads");
        self.socket.write_all(payload).expect("the broker reads");
        correlation
    }

    /// The next answer.
    pub fn receive(&mut self) -> (u64, Response, Bytes) {
        let (header, payload) = self.frame();
        let (correlation, response) = wire::decode_response(&header, payload.len()).expect("an answer that decodes");
        (correlation, response, payload.into())
    }

    /// One request, one answer.
    pub fn ask(&mut self, request: &Request, payload: &[u8]) -> (Response, Bytes) {
        let correlation = self.send(request, payload);
        let (answered, response, payload) = self.receive();
        assert_eq!(answered, correlation);
        (response, payload)
    }

    /// Creates a topic.
    pub fn create(&mut self, name: &str, partitions: u32, config: &[(&str, &str)]) -> TopicId {
        let config = config.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let create =
            CreateTopic { name: name.into(), partitions: Some(partitions), replication_factor: None, config, validate_only: false };
        match self.ask(&Request::CreateTopic(create), &[]).0 {
            Response::TopicCreated(description) => description.id,
            other => panic!("creating {name}: {other:?}"),
        }
    }

    /// Deletes a topic.
    pub fn delete(&mut self, name: &str) {
        match self.ask(&Request::DeleteTopic(name.into()), &[]).0 {
            Response::TopicDeleted => {}
            other => panic!("deleting {name}: {other:?}"),
        }
    }

    /// The id of a topic, if there is one.
    pub fn topic(&mut self, name: &str) -> Option<TopicId> {
        let request = MetadataRequest { topics: Some(vec![name.into()]), create_missing: false };
        match self.ask(&Request::Metadata(request), &[]).0 {
            Response::Metadata(metadata) => metadata.topics[0].found.as_ref().ok().map(|t| t.id),
            other => panic!("{other:?}"),
        }
    }

    /// Appends one batch.
    pub fn produce(&mut self, partition: TopicPartition, batch: &[u8]) -> ProduceResult {
        let produce = produce_one(partition, batch);
        match self.ask(&produce, batch).0 {
            Response::Produce(mut results) => results.remove(0),
            other => panic!("{other:?}"),
        }
    }

    /// Whole batches from `offset` on, as bytes, and the watermark.
    pub fn fetch(&mut self, partition: TopicPartition, offset: Offset, max_bytes: u32, max_wait_ms: u32) -> (Bytes, Offset) {
        let wanted = FetchPartition { partition, offset, max_bytes, leader_epoch: None };
        let fetch = Fetch { max_wait_ms, min_bytes: 1, max_bytes, partitions: vec![wanted], from: ReadFrom::Leader };
        match self.ask(&Request::Fetch(fetch), &[]) {
            (Response::Fetch(mut results), payload) => {
                let fetched = results.remove(0).outcome.unwrap_or_else(|e| panic!("fetch of {partition} at {offset}: {e}"));
                assert_eq!(fetched.bytes as usize, payload.len());
                (payload, fetched.high_watermark)
            }
            (other, _) => panic!("{other:?}"),
        }
    }

    /// Reads one batch of a partition, or hears why not.
    pub fn try_fetch(&mut self, partition: TopicPartition, offset: Offset) -> Result<Bytes, Refusal> {
        let wanted = FetchPartition { partition, offset, max_bytes: 1, leader_epoch: None };
        match self.ask(
            &Request::Fetch(Fetch { max_wait_ms: 0, min_bytes: 0, max_bytes: 1, partitions: vec![wanted], from: ReadFrom::Leader }),
            &[],
        ) {
            (Response::Fetch(mut results), payload) => results.remove(0).outcome.map(|_| payload),
            (other, _) => panic!("{other:?}"),
        }
    }

    /// An offset of a partition.
    pub fn offset(&mut self, partition: TopicPartition, spec: OffsetSpec) -> Offset {
        match self.ask(&Request::ListOffsets(vec![ListOffset { partition, spec }]), &[]).0 {
            Response::ListOffsets(results) => results[0].outcome.as_ref().unwrap_or_else(|e| panic!("{e}")).offset,
            other => panic!("{other:?}"),
        }
    }

    /// Every record from `from` to the watermark: (offset, value).
    pub fn read_all(&mut self, partition: TopicPartition, from: Offset) -> Vec<(Offset, Vec<u8>)> {
        let mut records = Vec::new();
        let mut offset = from;
        loop {
            let (bytes, high_watermark) = self.fetch(partition, offset, 1 << 20, 0);
            if bytes.is_empty() {
                assert!(offset >= high_watermark, "{partition}: nothing at {offset}, the watermark is {high_watermark}");
                return records;
            }
            for batch in BatchIter::new(&bytes) {
                let (header, batch) = batch.expect("whole batches");
                let set = batch::decode(Bytes::copy_from_slice(batch), 1 << 30).expect("a batch that decodes");
                for record in set.records() {
                    let record = record.expect("a record");
                    if record.offset >= offset {
                        records.push((record.offset, record.value.unwrap_or_default().to_vec()));
                    }
                }
                offset = header.next_offset();
            }
        }
    }
}

/// A produce request with one batch.
pub fn produce_one(partition: TopicPartition, batch: &[u8]) -> Request {
    let batches = vec![ProduceBatch { partition, range: 0..batch.len() }];
    Request::Produce(Produce { acks: Acks::All, timeout_ms: 10_000, batches, crc_trailer: false })
}

/// A batch of these values.
pub fn batch_of<V: AsRef<[u8]>>(values: impl IntoIterator<Item = V>) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    for value in values {
        builder.append(1_700_000_000_000, None, Some(value.as_ref()), &[]).expect("it fits");
    }
    builder.build()
}
