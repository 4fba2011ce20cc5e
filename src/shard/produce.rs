//! Produce requests: checks each batch and hands it to its partition, here or on another shard.

use std::rc::Rc;
use std::time::Instant;

use async_channel::Receiver;
use bytes::Bytes;

use crate::batch::{self, BatchError, BatchErrorKind};
use crate::limits::{ADOPT_APPEND, LARGE_APPEND, MAX_COMPACTED_BLOCK};
use crate::metrics::Counter;
use crate::request::{Acks, Code, Produce, ProduceBatch, Refusal, Request, Response};
use crate::shard::context::Context;
use crate::shard::mesh::{MeshReply, shard_gone};
use crate::shard::partition_cell::PartitionCell;
use crate::shard::pending::{Answer, Completion, Patience, PendingProduce};
use crate::shard::read_replica;
use crate::shard::role::Role;
use crate::shard::store::{Blocked, LargeBatch};
use crate::types::TopicPartition;

/// Appends the batches of a request. Returns when each has its place in its partition's order; `answer` hears when all are decided.
pub async fn produce(context: &Rc<Context>, request: &Produce, payload: &[u8], answer: Box<dyn Answer>) {
    let pending = PendingProduce::new(request.batches.iter().map(|b| b.partition), request.into(), answer);
    let mut elsewhere: Vec<(usize, &ProduceBatch)> = Vec::new();
    for (index, batch) in request.batches.iter().enumerate() {
        if !context.is_mine(&batch.partition) {
            elsewhere.push((index, batch));
            continue;
        }
        append_of_client(context, &batch.partition, &payload[batch.range.clone()], pending.completion(index)).await;
    }
    if !elsewhere.is_empty() {
        forward(context, request, payload, &pending, elsewhere).await;
    }
}

/// Checks a client's batch and appends it to a partition of this shard.
async fn append_of_client(context: &Rc<Context>, id: &TopicPartition, bytes: &[u8], done: Completion) {
    match context.store.partition(id).and_then(|cell| early_refusal(context, &cell, bytes.len(), done.patience.acks)) {
        Some(refusal) => done.complete(Err(refusal)),
        None => append(context, id, bytes, done).await,
    }
}

/// Why a client's batch of `len` bytes is refused whatever is in it.
///
/// A leader without a lease takes nothing, whatever copies are asked for: another one may lead, and what only this one has would be cut.
pub fn early_refusal(context: &Context, cell: &PartitionCell, len: usize, acks: Acks) -> Option<Refusal> {
    if let Some(refusal) = cell.not_served() {
        return Some(refusal);
    }
    if let Some(refusal) = read_replica::doubt(context, cell) {
        return Some(refusal);
    }
    if let Role::Leader(_) = cell.role() {
        if acks == Acks::All && !cell.enough_replicas.get() {
            return Some(cell.refusal(Code::NotEnoughReplicas, "fewer replicas are in sync than min.insync.replicas asks for"));
        }
        if len > ADOPT_APPEND {
            let words = format!("a batch of {len} bytes; where there are other replicas it has at most {ADOPT_APPEND}");
            return Some(cell.refusal(Code::RecordTooLarge, words));
        }
    }
    let settings = cell.settings.get();
    if settings.internal {
        return Some(cell.refusal(Code::InvalidTopicName, "only the broker writes to it"));
    }
    let max = settings.max_message_bytes;
    match len > max {
        true => Some(batch_refusal(cell, &BatchError::TooLarge { max, actual: len })),
        false => too_large_to_compact(cell, len),
    }
}

/// Checks one batch, of a client or of the broker's own, and appends it to a partition of this shard.
pub async fn append(context: &Rc<Context>, id: &TopicPartition, bytes: &[u8], done: Completion) {
    let Some(cell) = context.store.partition(id) else {
        return done.complete(Err(context.unknown(id)));
    };
    let header = match batch::check_ingress(bytes, cell.settings.get().max_message_bytes) {
        Ok(header) => header,
        Err(error) => return done.complete(Err(batch_refusal(&cell, &error))),
    };
    if let Err(refusal) = check_keys(&cell, &header, &bytes[batch::HEADER_LEN..]) {
        return done.complete(Err(refusal));
    }
    if bytes.len() > ADOPT_APPEND {
        let words = format!("a batch of {} bytes comes alone in its request, as all of more than {ADOPT_APPEND} do", bytes.len());
        return done.complete(Err(Refusal::new(Code::RecordTooLarge, words)));
    }
    let store = &context.store;
    if bytes.len() >= LARGE_APPEND {
        let position = cell.machine.borrow().next_position().unwrap_or(crate::limits::BLOCK as u64);
        return append_large(context, &cell, &header, store.large_batch(bytes, position), done).await;
    }
    let mut done = done;
    loop {
        match store.append(&cell, &header, bytes, done) {
            Ok(()) | Err(Blocked::Decided) => return,
            Err(Blocked::Room(back)) => done = back,
        }
        if let Err(refusal) = store.make_room(&cell, &header, bytes.len()).await {
            return done.complete(Err(refusal));
        }
    }
}

/// Where records are compacted, each must have a key: one without could be neither superseded nor kept for ever.
pub fn check_keys(cell: &PartitionCell, header: &batch::BatchHeader, block: &[u8]) -> Result<(), Refusal> {
    if !cell.settings.get().compacted {
        return Ok(());
    }
    batch::check_keys(header, block, MAX_COMPACTED_BLOCK).map_err(|error| batch_refusal(cell, &error))
}

/// As [`check_keys`] for a batch in two pieces, which are put together for it.
pub fn large_keys(cell: &PartitionCell, header: &batch::BatchHeader, head: &[u8], body: &[u8]) -> Result<(), Refusal> {
    match cell.settings.get().compacted {
        true => check_keys(cell, header, &[head, body].concat()[batch::HEADER_LEN..]),
        false => Ok(()),
    }
}

/// The refusal of a batch that is too large for a partition whose records are compacted: the cleaner looks into every batch.
pub fn too_large_to_compact(cell: &PartitionCell, len: usize) -> Option<Refusal> {
    let words = || format!("a batch of {len} bytes; where records are compacted it has at most {ADOPT_APPEND}");
    (cell.settings.get().compacted && len > ADOPT_APPEND).then(|| cell.refusal(Code::RecordTooLarge, words()))
}

/// Appends a checked large batch.
pub async fn append_large(
    context: &Rc<Context>,
    cell: &Rc<PartitionCell>,
    header: &batch::BatchHeader,
    bytes: LargeBatch,
    done: Completion,
) {
    let len = bytes.head.len() + bytes.body_len;
    let (mut bytes, mut done) = (bytes, done);
    loop {
        match context.store.append_large(cell, header, bytes, done) {
            Ok(()) | Err((Blocked::Decided, _)) => return,
            Err((Blocked::Room(back), batch)) => (done, bytes) = (back, batch),
        }
        if let Err(refusal) = context.store.make_room(cell, header, len).await {
            return done.complete(Err(refusal));
        }
    }
}

/// Hands batches to the shards that own their partitions, in order, and follows their answers.
async fn forward(
    context: &Rc<Context>,
    request: &Produce,
    payload: &[u8],
    pending: &Rc<PendingProduce>,
    elsewhere: Vec<(usize, &ProduceBatch)>,
) {
    for shard in 0..context.mesh.shards() {
        let theirs: Vec<_> = elsewhere.iter().filter(|(_, b)| context.owner(&b.partition) == shard).collect();
        if theirs.is_empty() {
            continue;
        }
        let mut copy = Vec::with_capacity(theirs.iter().map(|(_, b)| b.range.len()).sum());
        let batches = theirs
            .iter()
            .map(|(_, b)| {
                let start = copy.len();
                copy.extend_from_slice(&payload[b.range.clone()]);
                ProduceBatch { partition: b.partition, range: start..copy.len() }
            })
            .collect();
        let completions: Vec<_> = theirs.iter().map(|(index, _)| pending.completion(*index)).collect();
        let produce = Produce { batches, ..request.clone() };
        context.metrics.add(Counter::MeshSent, 1);
        follow(context.mesh.send(shard, Request::Produce(produce), Bytes::from(copy)).await, completions);
    }
}

/// Decides batches by the answer of the shard that has their partitions.
fn follow(answer: Receiver<MeshReply>, completions: Vec<Completion>) {
    glommio::spawn_local(async move {
        match answer.recv().await.map(|reply| reply.response) {
            Ok(Response::Produce(results)) => completions.into_iter().zip(results).for_each(|(done, result)| done.complete(result.outcome)),
            Ok(Response::Refused(refusal)) => refuse_all(completions, &refusal),
            _ => refuse_all(completions, &shard_gone()),
        }
    })
    .detach();
}

/// Appends a client's batch to a partition anywhere on this node. Returns when it has its place in the partition's order.
pub async fn append_anywhere(context: &Rc<Context>, id: TopicPartition, bytes: Vec<u8>, done: Completion) {
    if context.is_mine(&id) {
        return append_of_client(context, &id, &bytes, done).await;
    }
    context.metrics.add(Counter::MeshSent, 1);
    let batches = vec![ProduceBatch { partition: id, range: 0..bytes.len() }];
    let Patience { acks, deadline, .. } = done.patience;
    let left = deadline.saturating_duration_since(Instant::now()).as_millis().max(1);
    let produce = Produce { acks, timeout_ms: left as u32, batches, crc_trailer: false };
    follow(context.mesh.send(context.owner(&id), Request::Produce(produce), Bytes::from(bytes)).await, vec![done]);
}

fn refuse_all(completions: Vec<Completion>, refusal: &Refusal) {
    completions.into_iter().for_each(|done| done.complete(Err(refusal.clone())));
}

/// The refusal of a batch that does not check.
pub fn batch_refusal(cell: &PartitionCell, error: &BatchError) -> Refusal {
    let code = match error.kind() {
        BatchErrorKind::Corrupt => Code::CorruptBatch,
        BatchErrorKind::TooLarge => Code::RecordTooLarge,
        BatchErrorKind::UnsupportedCompression => Code::UnsupportedCompression,
        BatchErrorKind::Invalid => Code::InvalidRecord,
    };
    cell.refusal(code, error)
}
