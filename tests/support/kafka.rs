//! A connection that speaks Kafka's protocol by the codec, one frame at a time: what client libraries hide can be done with it.
#![allow(dead_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{FetchRequest, ProduceRequest, RequestHeader, ResponseHeader, TopicName};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};

/// A blocking connection.
pub struct KafkaConnection {
    /// The socket.
    pub socket: TcpStream,
    next: i32,
}

impl KafkaConnection {
    /// Connects.
    pub fn open(address: &str) -> KafkaConnection {
        let socket = TcpStream::connect(address).expect("the broker listens");
        socket.set_nodelay(true).expect("a socket option");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket option");
        KafkaConnection { socket, next: 1 }
    }

    /// A second handle of the same connection, for sending while this one receives.
    pub fn sender(&self) -> KafkaConnection {
        KafkaConnection { socket: self.socket.try_clone().expect("a descriptor"), next: self.next }
    }

    /// The frame of a request, with the next correlation id.
    pub fn frame<R: Request>(&mut self, version: i16, request: &R) -> (i32, BytesMut) {
        let correlation = self.next;
        self.next += 1;
        let mut frame = BytesMut::new();
        frame.put_i32(0);
        let head = RequestHeader::default().with_request_api_key(R::KEY).with_request_api_version(version);
        let head = head.with_correlation_id(correlation).with_client_id(Some(StrBytes::from_static_str("raw")));
        head.encode(&mut frame, R::header_version(version)).expect("it encodes");
        request.encode(&mut frame, version).expect("it encodes");
        let len = frame.len() as u32 - 4;
        frame[..4].copy_from_slice(&len.to_be_bytes());
        (correlation, frame)
    }

    /// Sends a request; its correlation id.
    pub fn send<R: Request>(&mut self, version: i16, request: &R) -> i32 {
        let (correlation, frame) = self.frame(version, request);
        self.socket.write_all(&frame).expect("the broker reads");
        correlation
    }

    /// The next answer's correlation id, and what follows.
    pub fn receive(&mut self) -> (i32, Bytes) {
        self.try_receive().expect("an answer")
    }

    /// As [`KafkaConnection::receive`]; `None` if the broker closed the connection.
    pub fn try_receive(&mut self) -> Option<(i32, Bytes)> {
        let mut len = [0; 4];
        match self.socket.read_exact(&mut len) {
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return None,
            read => read.expect("an answer in time"),
        }
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        self.socket.read_exact(&mut frame).expect("a whole answer");
        let mut frame = Bytes::from(frame);
        Some((frame.get_i32(), frame))
    }

    /// The next answer, to a request of this kind and version.
    pub fn receive_as<R: Request>(&mut self, version: i16) -> (i32, R::Response) {
        let (correlation, rest) = self.receive();
        (correlation, answer_of::<R>(correlation, version, rest))
    }

    /// One request, one answer.
    pub fn ask<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let correlation = self.send(version, request);
        let (answered, response) = self.receive_as::<R>(version);
        assert_eq!(answered, correlation);
        response
    }
}

/// Decodes an answer's body, which may have nothing behind it.
pub fn answer_of<R: Request>(correlation: i32, version: i16, rest: Bytes) -> R::Response {
    let mut frame = BytesMut::new();
    frame.put_i32(correlation);
    frame.put(rest);
    let mut frame = frame.freeze();
    ResponseHeader::decode(&mut frame, R::Response::header_version(version)).expect("a header");
    let response = R::Response::decode(&mut frame, version).expect("an answer that decodes");
    assert!(frame.is_empty(), "{} bytes behind an answer", frame.len());
    response
}

/// A name.
pub fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.into()))
}

/// A request that appends a batch.
pub fn produce(topic: &str, partition: i32, acks: i16, batch: &Bytes) -> ProduceRequest {
    let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch.clone()));
    let topic = TopicProduceData::default().with_name(topic_name(topic)).with_partition_data(vec![data]);
    ProduceRequest::default().with_acks(acks).with_timeout_ms(10_000).with_topic_data(vec![topic])
}

/// A request that reads a partition.
pub fn fetch(topic: &str, partition: i32, offset: i64, max_bytes: i32, max_wait_ms: i32) -> FetchRequest {
    let wanted = FetchPartition::default().with_partition(partition).with_fetch_offset(offset).with_partition_max_bytes(max_bytes);
    let topic = FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![wanted]);
    let request = FetchRequest::default().with_replica_id((-1).into()).with_max_wait_ms(max_wait_ms).with_min_bytes(1);
    request.with_max_bytes(max_bytes).with_topics(vec![topic])
}
