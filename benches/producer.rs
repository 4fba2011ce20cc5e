//! What a producer costs per record, against a broker in this process that only acknowledges.
#![allow(missing_docs)] // criterion's macro makes a public function

use std::time::Duration;

use bytes::BytesMut;
use corelane::client::{Client, ProducerRecord};
use corelane::request::{
    Appended, Broker, Metadata, PartitionMetadata, ProduceResult, ReplicaLists, Request, Response, TopicMetadata, TopicPartitions,
};
use corelane::types::TopicId;
use corelane::wire::handshake::{HelloReply, encode_hello_reply};
use corelane::wire::{self, MAGIC, ResponseEncoder};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn answer(request: Request, port: u16) -> Response {
    match request {
        Request::Metadata(_) => {
            let partitions = vec![PartitionMetadata { leader: Some(0), leader_epoch: 0 }];
            let found =
                Ok(TopicPartitions { id: TopicId([1; 16]), partitions, replicas: ReplicaLists::default(), max_message_bytes: 1 << 20 });
            let brokers = vec![Broker { id: 0, host: "127.0.0.1".into(), port }];
            Response::Metadata(Metadata {
                cluster: [0; 16],
                brokers,
                controller: 0,
                topics: vec![TopicMetadata { name: "t".into(), found }],
            })
        }
        Request::InitProducerId => Response::ProducerId(1, 0),
        Request::Produce(produce) => {
            let appended = Appended { base_offset: 0, log_append_time: -1, log_start: 0 };
            let result = |batch: &corelane::request::ProduceBatch| ProduceResult { partition: batch.partition, outcome: Ok(appended) };
            Response::Produce(produce.batches.iter().map(result).collect())
        }
        other => panic!("not asked for here: {other:?}"),
    }
}

async fn serve(mut stream: TcpStream, port: u16) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut got, mut out, mut encoder) = (BytesMut::with_capacity(1 << 20), Vec::new(), ResponseEncoder::new());
    let mut is_greeted = false;
    stream.read_exact(&mut [0; MAGIC.len()]).await?;
    loop {
        while let Some(prefix) = wire::peek(&got, 100 << 20).unwrap().filter(|p| got.len() >= p.total_len()) {
            let frame = got.split_to(prefix.total_len());
            if std::mem::replace(&mut is_greeted, true) {
                let (correlation, request) = wire::decode_request(&frame[prefix.header_range()], prefix.payload_len()).unwrap();
                wire::encode_response(&mut encoder, correlation, &answer(request, port), 0, &mut out);
            } else {
                let (version, software) = (1, String::new());
                let reply = HelloReply { version, cluster: [0; 16], node: 0, shard: 0, max_frame: 100 << 20, max_in_flight: 100, software };
                encode_hello_reply(&Ok(reply), &mut out);
            }
        }
        stream.write_all(&out).await?;
        out.clear();
        got.reserve(1 << 20);
        if stream.read_buf(&mut got).await? == 0 {
            return Ok(());
        }
    }
}

fn start() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, port));
            }
        });
    });
    port
}

fn produce(c: &mut Criterion) {
    const RECORDS: u64 = 200_000;
    let port = start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime.block_on(Client::connect(&format!("127.0.0.1:{port}"))).unwrap();
    let mut group = c.benchmark_group("100-byte records");
    group.throughput(Throughput::Elements(RECORDS)).sample_size(20).measurement_time(Duration::from_secs(6));
    for batch_size in [16, 64, 256, 1000] {
        let producer = runtime.block_on(async { client.producer().batch_size(batch_size * 1024).build().unwrap() });
        group.bench_function(format!("{batch_size} KiB batches"), |b| {
            b.iter(|| {
                runtime.block_on(async {
                    let mut last = None;
                    for n in 0..RECORDS {
                        let mut value = [0; 100];
                        value[..8].copy_from_slice(&n.to_le_bytes());
                        last = Some(producer.send_nowait(ProducerRecord::to("t").value(&value)).await.unwrap());
                    }
                    producer.flush().await;
                    last.unwrap().await.unwrap();
                });
            });
        });
    }
}

criterion_group!(benches, produce);
criterion_main!(benches);
