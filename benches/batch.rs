//! What a batch costs: checksums, checking as the broker does, building as the producer does, reading as the consumer does.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use corelane::batch::{
    BatchBuilder, BatchHeader, BatchIter, Compression, Records, check_ingress, check_stored, decode, stamp_log_append_time_head,
};
use corelane::checksum::{crc32, crc32c, running_hash};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const LIMIT: usize = 1 << 30;

/// A batch of `count` records of 100 bytes.
fn batch_of(count: usize, compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new(compression);
    for i in 0..count {
        builder.append(1_700_000_000_000 + i as i64, Some(b"key"), Some(value(i).as_bytes()), &[]).expect("a small record fits");
    }
    builder.build()
}

fn value(i: usize) -> String {
    format!("{i:010} GET /index.html HTTP/1.1 200 {:>60}", i.wrapping_mul(2_654_435_761))
}

fn checksums(c: &mut Criterion) {
    let bytes = vec![0x5a; 1 << 20];
    for len in [16, 100, 1000, 4096, 65536, 1 << 20] {
        let mut group = c.benchmark_group("checksum");
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("crc32c/{len}"), |b| b.iter(|| crc32c(black_box(&bytes[..len]))));
        group.bench_function(format!("crc32/{len}"), |b| b.iter(|| crc32(black_box(&bytes[..len]))));
        group.finish();
    }
    c.bench_function("checksum/running_hash", |b| b.iter(|| running_hash(black_box(7), black_box(&bytes[..61]))));
}

fn checking(c: &mut Criterion) {
    let batch = batch_of(37, Compression::None);
    let mut group = c.benchmark_group(format!("check {} bytes", batch.len()));
    group.throughput(Throughput::Bytes(batch.len() as u64));
    group.bench_function("parse", |b| b.iter(|| BatchHeader::parse(black_box(&batch))));
    group.bench_function("ingress", |b| b.iter(|| check_ingress(black_box(&batch), LIMIT)));
    group.bench_function("stored", |b| b.iter(|| check_stored(black_box(&batch))));
    group.bench_function("stamp log append time, head only", |b| {
        let mut head = batch[..61].to_vec();
        b.iter(|| stamp_log_append_time_head(black_box(&mut head), 1_700_000_000_000))
    });
    group.finish();
    let many = batch.repeat(100);
    c.bench_function("walk 100 batches", |b| b.iter(|| BatchIter::new(black_box(&many)).filter(Result::is_ok).count()));
}

fn building(c: &mut Criterion) {
    let payload = [0x61; 100];
    let mut group = c.benchmark_group("build 100 x 100 B");
    group.throughput(Throughput::Elements(100));
    for compression in Compression::ALL {
        group.bench_function(compression.name(), |b| {
            b.iter_batched(
                || BytesMut::with_capacity(16 * 1024),
                |buffer| {
                    let mut builder = BatchBuilder::with_buffer(compression, buffer);
                    for i in 0..100 {
                        builder.append(1_700_000_000_000 + i, None, Some(black_box(&payload)), &[]).expect("a small record fits");
                    }
                    builder.build()
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn reading(c: &mut Criterion) {
    let mut group = c.benchmark_group("read 100 x 100 B");
    group.throughput(Throughput::Elements(100));
    let plain = batch_of(100, Compression::None);
    group.bench_function("borrowed", |b| b.iter(|| Records::of_batch(black_box(&plain)).expect("a batch").filter(Result::is_ok).count()));
    for compression in Compression::ALL {
        let batch = batch_of(100, compression);
        group.bench_function(format!("owned/{compression}"), |b| {
            b.iter(|| decode(black_box(batch.clone()), LIMIT).expect("a batch").into_iter().filter(Result::is_ok).count());
        });
    }
    group.finish();
}

criterion_group!(benches, checksums, checking, building, reading);
criterion_main!(benches);
