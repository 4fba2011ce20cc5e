//! Batches that librdkafka makes are read here as what was sent.
//!
//! A small server answers just enough of Kafka's protocol for a librdkafka producer to send its batches, and keeps their bytes. So
//! the format is checked against an encoder that is not ours. `cargo test --test batch_librdkafka -- --ignored capture_missing_fixtures`
//! writes what is captured where the file does not exist yet; `batch_fixtures` are the ones made here.

mod batch_samples;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use batch_samples::{LIMIT, Sample, load, read_back, samples, write_missing};
use bytes::Bytes;
use corelane::batch::{Compression, check_ingress, check_stored};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};

const TOPIC: &str = "captured";
const PRODUCER_ID: i64 = 7_000_000_001;
const PRODUCER_EPOCH: i16 = 2;
const MAX_REQUEST: usize = 1 << 20;

/// Kafka API keys, with the versions that the server answers. librdkafka takes the presence of some, never asked for here, as a sign of
/// a feature: FindCoordinator 0 of lz4, Produce 7 and Fetch 10 of zstd.
const PRODUCE: i16 = 0;
const METADATA: i16 = 3;
const API_VERSIONS: i16 = 18;
const INIT_PRODUCER_ID: i16 = 22;
const SERVED: [(i16, i16, i16); 7] =
    [(PRODUCE, 0, 7), (1, 0, 10), (2, 0, 1), (METADATA, 0, 1), (10, 0, 0), (API_VERSIONS, 0, 0), (INIT_PRODUCER_ID, 0, 0)];

/// Starts the server; batches come out of the channel. Its threads end with the test.
fn start_server() -> (SocketAddr, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (captured, batches) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let captured = captured.clone();
            std::thread::spawn(move || serve(stream, address, &captured));
        }
    });
    (address, batches)
}

fn serve(mut stream: TcpStream, address: SocketAddr, captured: &Sender<Vec<u8>>) -> io::Result<()> {
    loop {
        let mut size = [0; 4];
        stream.read_exact(&mut size)?;
        let size = u32::from_be_bytes(size) as usize;
        assert!(size <= MAX_REQUEST, "a request of {size} bytes");
        let mut request = vec![0; size];
        stream.read_exact(&mut request)?;
        let mut request = Request(&request);
        let (key, version, correlation) = (request.i16(), request.i16(), request.i32());
        request.string();
        let mut response = Response(correlation.to_be_bytes().to_vec());
        match key {
            API_VERSIONS => api_versions(version, &mut response),
            METADATA => metadata(address, &mut response),
            INIT_PRODUCER_ID => response.i32(0).i16(0).i64(PRODUCER_ID).i16(PRODUCER_EPOCH).end(),
            PRODUCE => produce(version, &mut request, captured, &mut response),
            other => panic!("librdkafka asks for API {other}, which the server does not announce as needed"),
        }
        stream.write_all(&(response.0.len() as u32).to_be_bytes())?;
        stream.write_all(&response.0)?;
    }
}

fn api_versions(version: i16, response: &mut Response) {
    const UNSUPPORTED_VERSION: i16 = 35;
    response.i16(if version == 0 { 0 } else { UNSUPPORTED_VERSION }).i32(SERVED.len() as i32);
    for (key, min, max) in SERVED {
        response.i16(key).i16(min).i16(max);
    }
}

/// One broker, this one, and one topic of one partition.
fn metadata(address: SocketAddr, response: &mut Response) {
    response.i32(1).i32(1).string(&address.ip().to_string()).i32(address.port().into()).i16(-1).i32(1);
    response.i32(1).i16(0).string(TOPIC).i8(0);
    response.i32(1).i16(0).i32(0).i32(1).i32(1).i32(1).i32(1).i32(1);
}

fn produce(version: i16, request: &mut Request<'_>, captured: &Sender<Vec<u8>>, response: &mut Response) {
    assert_eq!(version, 7, "librdkafka uses the newest version announced");
    request.string();
    let (_acks, _timeout, topics) = (request.i16(), request.i32(), request.i32());
    assert_eq!(topics, 1);
    assert_eq!(request.string(), Some(TOPIC));
    assert_eq!((request.i32(), request.i32()), (1, 0), "one partition, number 0");
    let len = request.i32() as usize;
    // The test may be over when a late batch comes.
    let _ = captured.send(request.take(len).to_vec());
    response.i32(1).string(TOPIC).i32(1).i32(0).i16(0).i64(0).i64(-1).i64(0).i32(0);
}

/// Reads a request's fields; librdkafka is trusted to send them all.
struct Request<'a>(&'a [u8]);

impl<'a> Request<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take(2).try_into().expect("two bytes"))
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take(4).try_into().expect("four bytes"))
    }

    fn string(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.i16()).ok()?;
        Some(std::str::from_utf8(self.take(len)).expect("UTF-8"))
    }
}

struct Response(Vec<u8>);

impl Response {
    fn i8(&mut self, value: i8) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn i16(&mut self, value: i16) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn i32(&mut self, value: i32) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn i64(&mut self, value: i64) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn string(&mut self, value: &str) -> &mut Self {
        self.i16(value.len() as i16);
        self.0.extend_from_slice(value.as_bytes());
        self
    }

    fn end(&mut self) {}
}

/// What librdkafka makes of the records: the batches of its produce requests, in order.
fn capture(compression: Compression, idempotent: bool, records: &[Sample]) -> Vec<Bytes> {
    let (address, batches) = start_server();
    let producer: BaseProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", address.to_string())
        .set("compression.type", compression.name())
        .set("enable.idempotence", idempotent.to_string())
        .set("linger.ms", "300")
        .create()
        .expect("valid settings");
    for record in records {
        send(&producer, record);
    }
    producer.flush(Duration::from_secs(60)).expect("every record is acknowledged");
    batches.try_iter().map(Bytes::from).collect()
}

fn send(producer: &BaseProducer<DefaultProducerContext>, sample: &Sample) {
    let mut record = BaseRecord::<[u8], [u8]>::to(TOPIC).partition(0).timestamp(sample.timestamp);
    if let Some(key) = &sample.key {
        record = record.key(key);
    }
    if let Some(value) = &sample.value {
        record = record.payload(value);
    }
    if !sample.headers.is_empty() {
        let headers = sample
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (name, value)| headers.insert(Header { key: name, value: value.as_ref() }));
        record = record.headers(headers);
    }
    producer.send(record).map_err(|(e, _)| e).expect("queued");
}

fn check_captured(compression: Compression, idempotent: bool, batches: &[Bytes]) {
    let mut read = vec![];
    let mut sequence = 0;
    for batch in batches {
        let header = check_ingress(batch, LIMIT).expect("librdkafka's batches pass");
        assert_eq!(header.compression(), Ok(compression));
        if idempotent {
            assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (PRODUCER_ID, PRODUCER_EPOCH, sequence));
            sequence = header.last_sequence() + 1;
        } else {
            assert!(!header.has_producer());
        }
        assert_eq!(check_stored(batch), Ok(header));
        read.extend(read_back(batch));
    }
    assert_eq!(read, samples());
}

fn fixture_name(compression: Compression, idempotent: bool) -> String {
    format!("librdkafka-{compression}{}", if idempotent { "-idempotent" } else { "" })
}

fn cases() -> impl Iterator<Item = (Compression, bool)> {
    Compression::ALL.into_iter().map(|codec| (codec, false)).chain([(Compression::None, true)])
}

#[test]
fn batches_of_librdkafka_are_read() {
    for (compression, idempotent) in cases() {
        let batches = capture(compression, idempotent, &samples());
        assert!(!batches.is_empty(), "{compression}: nothing captured");
        check_captured(compression, idempotent, &batches);
    }
}

#[test]
fn captured_fixtures_are_read() {
    for (compression, idempotent) in cases() {
        check_captured(compression, idempotent, &[load(&fixture_name(compression, idempotent))]);
    }
}

/// librdkafka's uncompressed bytes are the ones that the builder here makes.
#[test]
fn librdkafka_and_the_builder_agree_byte_for_byte() {
    let (theirs, ours) = (load("librdkafka-none"), load("samples-none"));
    // Bytes 12 to 15 are the leader epoch, which the broker overwrites.
    assert_eq!(theirs[..12], ours[..12]);
    assert_eq!(theirs[16..], ours[16..]);
}

#[test]
#[ignore = "writes files"]
fn capture_missing_fixtures() {
    for (compression, idempotent) in cases() {
        let batches = capture(compression, idempotent, &samples());
        let [batch] = &batches[..] else { panic!("{} batches where one is wanted: try again", batches.len()) };
        write_missing(&fixture_name(compression, idempotent), batch);
    }
}
