//! Cost of one frame's header: what is paid for every batch.
#![allow(missing_docs)] // criterion's macro makes a public function

use std::hint::black_box;

use corelane::request::{Acks, Appended, Fetch, FetchPartition, Produce, ProduceBatch, ProduceResult, ReadFrom, Request, Response};
use corelane::types::{TopicId, TopicPartition};
use corelane::wire::{self, PREFIX_LEN, RequestEncoder, ResponseEncoder};
use criterion::{Criterion, criterion_group, criterion_main};

fn place(partition: u32) -> TopicPartition {
    TopicPartition { topic: TopicId([1; 16]), partition }
}

fn produce(c: &mut Criterion) {
    let batches = vec![ProduceBatch { partition: place(3), range: 0..1000 }];
    let request = Request::Produce(Produce { acks: Acks::All, timeout_ms: 1000, batches, crc_trailer: false });
    let appended = Appended { base_offset: 7, log_append_time: -1, log_start: 0 };
    let response = Response::Produce(vec![ProduceResult { partition: place(3), outcome: Ok(appended) }]);
    let (mut requests, mut responses) = (RequestEncoder::new(), ResponseEncoder::new());
    let (mut out, mut spare) = (vec![], vec![]);
    c.bench_function("encode a produce request of one batch", |b| {
        b.iter(|| {
            out.clear();
            wire::encode_request(&mut requests, 9, black_box(&request), 1000, &mut out).unwrap();
        });
    });
    let header = out[PREFIX_LEN..].to_vec();
    c.bench_function("check and decode a produce request of one batch", |b| {
        b.iter(|| {
            let prefix = wire::peek(black_box(&out), 10_000).unwrap().unwrap();
            prefix.check_header(&header).unwrap();
            let (_, decoded) = wire::decode_request_reusing(black_box(&header), 1000, &mut spare).unwrap();
            if let Request::Produce(produce) = decoded {
                spare = produce.batches;
            }
        });
    });
    let mut out = vec![];
    c.bench_function("encode a produce response of one result", |b| {
        b.iter(|| {
            out.clear();
            wire::encode_response(&mut responses, 9, black_box(&response), 0, &mut out);
        });
    });
    let header = out[PREFIX_LEN..].to_vec();
    c.bench_function("decode a produce response of one result", |b| b.iter(|| wire::decode_response(black_box(&header), 0).unwrap()));
}

fn fetch(c: &mut Criterion) {
    let partition = |p| FetchPartition { partition: place(p), offset: 5, max_bytes: 1 << 20, leader_epoch: Some(1) };
    let fetch = Fetch {
        max_wait_ms: 500,
        min_bytes: 1,
        max_bytes: 1 << 24,
        partitions: (0..1000).map(partition).collect(),
        from: ReadFrom::Leader,
    };
    let request = Request::Fetch(fetch);
    let mut encoder = RequestEncoder::new();
    let mut out = vec![];
    c.bench_function("encode a fetch of 1000 partitions", |b| {
        b.iter(|| {
            out.clear();
            wire::encode_request(&mut encoder, 9, black_box(&request), 0, &mut out).unwrap();
        });
    });
    let header = out[PREFIX_LEN..].to_vec();
    c.bench_function("decode a fetch of 1000 partitions", |b| b.iter(|| wire::decode_request(black_box(&header), 0).unwrap()));
}

criterion_group!(benches, produce, fetch);
criterion_main!(benches);
