//! Fetch requests: what is there now, from memory or disk, and waiting for more.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::limits;
use crate::log::segment::FIRST_POSITION;
use crate::metrics::Counter;
use crate::request::{
    Code, Fetch, FetchPartition, FetchResult, Fetched, ListOffset, ListOffsetResult, OffsetSpec, ReadFrom, Refusal, Request, Response,
};
use crate::shard::budget::Building;
use crate::shard::buffer::Piece;
use crate::shard::context::Context;
use crate::shard::event::{Event, Ticket, wait_any};
use crate::shard::mesh::{MeshReply, SegmentPart, shard_gone};
use crate::shard::net::{Outgoing, Sender, Turn};
use crate::shard::offsets::list_offsets;
use crate::shard::partition_cell::PartitionCell;
use crate::shard::read_replica;
use crate::shard::write_behind;

/// An answer: one result for each partition asked, and the bytes in the same order.
pub struct FetchAnswer {
    /// Results in the order of the request.
    pub results: Vec<FetchResult>,
    /// Batches in the order of the results.
    pub pieces: Vec<Outgoing>,
    /// Their sum.
    pub bytes: usize,
    /// What it could be, but for one batch.
    most: usize,
    /// There was more, and no room for it.
    is_cut: bool,
    /// Counts what is in memory of it until it is queued, or given up.
    building: Building,
}

impl FetchAnswer {
    /// An empty one that may grow to `most` bytes.
    fn new(context: &Context, most: usize) -> FetchAnswer {
        FetchAnswer {
            results: Vec::new(),
            pieces: Vec::new(),
            bytes: 0,
            most,
            is_cut: false,
            building: Building::new(&context.store.budget),
        }
    }

    /// Bytes that may still come in. Answers that are put together at the same time take the room from each other, so this is asked before each piece.
    fn room(&self, context: &Context) -> usize {
        self.most.saturating_sub(self.bytes).min(context.store.budget.answer_room(self.bytes))
    }

    fn push(&mut self, piece: Outgoing) {
        self.bytes += piece.len();
        self.building.add(piece.in_memory());
        self.pieces.push(piece);
    }

    /// Whether the client should hear of it at once: enough bytes, as many as there may be, a refusal, or that it should ask somebody else.
    fn is_enough(&self, min_bytes: usize) -> bool {
        let is_news = |result: &FetchResult| match &result.outcome {
            Ok(fetched) => fetched.preferred.is_some(),
            // A follower hears of the watermark in a moment, which ends the wait as records do.
            Err(refusal) => refusal.code != Code::OffsetNotAvailable,
        };
        self.bytes >= min_bytes.min(self.most) || self.is_cut || self.results.iter().any(is_news)
    }
}

/// Answers a fetch whose partitions may be anywhere on this node. What is answered is read in the connection's turn, which ends when the answer is queued;
/// a wait for more takes no turn. `None` if the connection is over.
pub async fn fetch(context: &Rc<Context>, sender: &Rc<Sender>, request: &Fetch) -> Option<(FetchAnswer, Turn)> {
    let cells = match request.partitions.iter().all(|p| context.is_mine(&p.partition)) {
        true => Some(cells(context, request)),
        false => None,
    };
    let mut wait = Wait::begin(request);
    // A shard has said that there is enough.
    let mut told = false;
    loop {
        let turn = sender.turn(&context.store.budget).await?;
        let mut tickets = tickets(cells.as_deref().unwrap_or_default());
        tickets.push((sender.over(), sender.over().ticket()));
        let answer = match &cells {
            Some(cells) => read_now(context, request, cells).await,
            None => ask_everywhere(context, request).await,
        };
        if wait.is_over(context) || answer.is_enough(request.min_bytes as usize) || told {
            return Some((answer, turn));
        }
        drop((answer, turn));
        wait.count(context);
        match &cells {
            Some(_) => drop(wait_any(&tickets, wait.deadline).await),
            None => {
                wait_everywhere(context, request, wait.left_ms()).await;
                // Its own idea of enough may be smaller than this shard's; to ask again and again would make it no more.
                told = true;
            }
        }
    }
}

/// Answers a fetch of this shard's partitions: at once with what is there if that is enough, else when it is or the wait is over.
pub async fn fetch_mine(context: &Rc<Context>, request: &Fetch) -> FetchAnswer {
    let cells = cells(context, request);
    let mut wait = Wait::begin(request);
    loop {
        let tickets = tickets(&cells);
        let answer = read_now(context, request, &cells).await;
        if wait.is_over(context) || answer.is_enough(request.min_bytes as usize) {
            return answer;
        }
        drop(answer);
        wait.count(context);
        wait_any(&tickets, wait.deadline).await;
    }
}

/// What an answer may hold, but for one batch.
fn most_bytes(request: &Fetch) -> usize {
    request.max_bytes.min(limits::MAX_FETCH_BYTES) as usize
}

fn cells(context: &Context, request: &Fetch) -> Vec<Option<Rc<PartitionCell>>> {
    request.partitions.iter().map(|p| context.store.partition(&p.partition)).collect()
}

fn tickets(cells: &[Option<Rc<PartitionCell>>]) -> Vec<(&Event, Ticket)> {
    cells.iter().flatten().map(|c| (&c.committed, c.committed.ticket())).collect()
}

/// The wait of a fetch for as much as it wants.
struct Wait {
    deadline: Instant,
    counted: bool,
}

impl Wait {
    fn begin(request: &Fetch) -> Wait {
        let most = Duration::from_millis(u64::from(request.max_wait_ms.min(limits::MAX_FETCH_WAIT_MS)));
        Wait { deadline: Instant::now() + most, counted: false }
    }

    fn is_over(&self, context: &Context) -> bool {
        Instant::now() >= self.deadline || context.draining.get()
    }

    fn left_ms(&self) -> u32 {
        self.deadline.saturating_duration_since(Instant::now()).as_millis() as u32
    }

    /// It goes on: a request counts once.
    fn count(&mut self, context: &Context) {
        if !std::mem::replace(&mut self.counted, true) {
            context.metrics.add(Counter::LongPolls, 1);
        }
    }
}

async fn read_now(context: &Rc<Context>, request: &Fetch, cells: &[Option<Rc<PartitionCell>>]) -> FetchAnswer {
    let mut answer = FetchAnswer::new(context, most_bytes(request));
    for (wanted, cell) in request.partitions.iter().zip(cells) {
        let outcome = match cell {
            None => Err(context.unknown(&wanted.partition)),
            Some(cell) => read_partition(context, cell, wanted, &request.from, &mut answer).await,
        };
        answer.results.push(FetchResult { partition: wanted.partition, outcome });
    }
    answer
}

/// Adds one partition's batches: whole ones, at least one if the answer is empty so far.
async fn read_partition(
    context: &Rc<Context>,
    cell: &Rc<PartitionCell>,
    wanted: &FetchPartition,
    from: &ReadFrom,
    answer: &mut FetchAnswer,
) -> Result<Fetched, Refusal> {
    read_replica::check_readable(context, cell, from, wanted.offset)?;
    let (high_watermark, log_start) = check_bounds(cell, wanted)?;
    let preferred = read_replica::preferred_broker(context, cell, wanted.offset, from);
    if preferred.is_some() {
        return Ok(Fetched { high_watermark, log_start, bytes: 0, preferred });
    }
    let cuts = cell.cuts.get();
    let mut taken = 0;
    let mut records = 0;
    let mut offset = wanted.offset;
    let is_first = answer.bytes == 0;
    while offset < high_watermark {
        if cell.cuts.get() != cuts {
            // What is there now is of another past, and this watermark is not its.
            break;
        }
        let left = answer.room(context).min((wanted.max_bytes as usize).saturating_sub(taken));
        let at_least_one = taken == 0 && is_first;
        if left == 0 && !at_least_one {
            break;
        }
        let mut pieces = Vec::new();
        match read_tail(cell, context.store.budget.is_tail_pressed(), offset, high_watermark, left, at_least_one, &mut pieces) {
            Some((bytes, end)) if bytes > 0 => {
                pieces.into_iter().for_each(|piece| answer.push(piece));
                taken += bytes;
                records += end - offset;
                offset = end;
                context.metrics.add(Counter::TailHits, 1);
                break;
            }
            Some(_) => break,
            None => {}
        }
        if let Some(refusal) = cell.gone() {
            // It went while an earlier part was read.
            if taken > 0 {
                break;
            }
            return Err(refusal);
        }
        let adopted = cell.machine.borrow().segment_of(offset).filter(|s| s.adopted).copied();
        if let Some(info) = adopted {
            if at_least_one {
                let (file, len) = context.store.reader.whole_segment(cell, &info).await?;
                taken += len;
                records += info.end_offset - offset;
                answer.push(Outgoing::Segment { file, position: FIRST_POSITION, len });
            }
            break;
        }
        if !at_least_one && cell.left_out(offset).is_some_and(|batch| batch > left) {
            // It is not flushed for an answer that has no room for it.
            break;
        }
        let run = match write_behind::bring_in(&context.store, cell, offset).await {
            Ok(()) => context.store.reader.run(cell, offset).await,
            Err(refusal) => Err(refusal),
        };
        let run = match run {
            Ok(run) => run,
            // The pieces before it are in the answer already, and are good; the next fetch hears of it.
            Err(_) if taken > 0 => break,
            Err(refusal) => return Err(refusal),
        };
        context.store.reader.read_ahead(&context.store, cell, &run);
        if cell.cuts.get() != cuts {
            break;
        }
        // Others may have taken the room meanwhile.
        let left = left.min(answer.room(context));
        let range = run.from(offset, left.max(1), high_watermark);
        if range.is_empty() {
            // Nothing is left up to the run's end.
            offset = run.end_offset;
            continue;
        }
        if !at_least_one && range.len() > left {
            break;
        }
        let end = run.offset_after(&range);
        records += run.records(offset, &range);
        taken += range.len();
        answer.push(if is_small_part(range.len(), run.pinned()) {
            Outgoing::Owned(run.part(&range).to_vec())
        } else {
            Outgoing::Run(run, range)
        });
        offset = end;
    }
    if taken == 0 && cell.cuts.get() != cuts {
        return Err(cell.refusal(Code::OffsetNotAvailable, "its log was cut while it was read"));
    }
    answer.is_cut |= answer.bytes > 0 && offset < high_watermark && answer.room(context) < answer.most.saturating_sub(answer.bytes);
    cell.metrics.count_out(records as u64, taken as u64);
    context.metrics.add(Counter::RecordsOut, records as u64);
    context.metrics.add(Counter::RecordBytesOut, taken as u64);
    Ok(Fetched { high_watermark, log_start, bytes: taken as u32, preferred: None })
}

fn check_bounds(cell: &PartitionCell, wanted: &FetchPartition) -> Result<(i64, i64), Refusal> {
    let machine = cell.machine.borrow();
    if let Some(epoch) = wanted.leader_epoch {
        let current = machine.epoch();
        let message = || format!("leader epoch {epoch}, the current one is {current}");
        if epoch < current {
            return Err(cell.refusal(Code::FencedLeaderEpoch, message()));
        }
        if epoch > current {
            return Err(cell.refusal(Code::UnknownLeaderEpoch, message()));
        }
    }
    let (high_watermark, log_start) = (machine.ladder().committed(), machine.log_start());
    if wanted.offset < log_start || wanted.offset > machine.ladder().appended() {
        let message = format!("it has offsets {log_start} to {high_watermark}, not {}", wanted.offset);
        return Err(cell.refusal(Code::OffsetOutOfRange, message));
    }
    if wanted.offset > high_watermark && !cell.role().leads() {
        let message = format!(
            "this follower has heard of records up to offset {high_watermark} that they are committed, not up to {}",
            wanted.offset
        );
        return Err(cell.refusal(Code::OffsetNotAvailable, message));
    }
    Ok((high_watermark, log_start))
}

/// Adds batches from memory: (bytes, offset after them). `None` if `offset` is not there. With `copies` nothing of the tail is kept for the peer.
fn read_tail(
    cell: &PartitionCell,
    copies: bool,
    offset: i64,
    high_watermark: i64,
    room: usize,
    at_least_one: bool,
    pieces: &mut Vec<Outgoing>,
) -> Option<(usize, i64)> {
    let tail = cell.tail.borrow();
    let mut taken = 0;
    let mut end = offset;
    let mut of_one_buffer = Vec::new();
    for chunk in tail.from(offset)? {
        let must = at_least_one && taken == 0;
        if chunk.end_offset > high_watermark || (taken + chunk.batch_len() > room && !must) {
            break;
        }
        taken += chunk.batch_len();
        end = chunk.end_offset;
        for piece in chunk.pieces() {
            if of_one_buffer.last().is_some_and(|last| !piece.shares_buffer_with(last)) {
                push_pieces(&mut of_one_buffer, pieces, copies);
            }
            of_one_buffer.push(piece);
        }
    }
    push_pieces(&mut of_one_buffer, pieces, copies);
    Some((taken, end))
}

/// Whether so few bytes of so large a buffer are wanted that a copy is better than to keep all of it for a peer that may be slow.
fn is_small_part(wanted: usize, buffer: usize) -> bool {
    wanted < buffer / 8
}

/// Adds pieces of one buffer to an answer.
fn push_pieces(of_one_buffer: &mut Vec<Piece>, pieces: &mut Vec<Outgoing>, copies: bool) {
    let wanted = of_one_buffer.iter().map(Piece::len).sum();
    if of_one_buffer.first().is_some_and(|first| copies || is_small_part(wanted, first.pinned())) {
        let mut copy = Vec::with_capacity(wanted);
        of_one_buffer.drain(..).for_each(|piece| copy.extend_from_slice(piece.bytes()));
        pieces.push(Outgoing::Owned(copy));
    } else {
        pieces.extend(of_one_buffer.drain(..).map(Outgoing::Tail));
    }
}

/// Asks the shards concerned for what they have now, in the order of the request, until the answer is full.
async fn ask_everywhere(context: &Rc<Context>, request: &Fetch) -> FetchAnswer {
    let mut parts: Vec<Option<FetchAnswer>> = (0..context.mesh.shards()).map(|_| None).collect();
    let now = Fetch { max_wait_ms: 0, ..request.clone() };
    let mut bytes = 0;
    for shard in request.partitions.iter().map(|p| context.owner(&p.partition)) {
        if parts[shard as usize].is_some() || bytes >= most_bytes(request) {
            continue;
        }
        if let Some(part) = of_shard(context, &now, shard) {
            let answer = ask(context, shard, part).await;
            if bytes > 0 && answer.pieces.iter().any(|piece| matches!(piece, Outgoing::Segment { .. })) {
                // With what is there already the frame could be longer than one may be. It comes when its partition is the first.
                continue;
            }
            bytes += answer.bytes;
            parts[shard as usize] = Some(answer);
        }
    }
    for shard in 0..context.mesh.shards() {
        if parts[shard as usize].is_none()
            && let Some(part) = of_shard(context, &now, shard)
        {
            parts[shard as usize] = Some(bounds(context, &part).await);
        }
    }
    join(context, request, parts)
}

/// What is said of partitions that an answer has no room for: where their logs begin and end, so that nobody takes the answer for the end.
async fn bounds(context: &Rc<Context>, part: &Fetch) -> FetchAnswer {
    let specs = [OffsetSpec::Earliest, OffsetSpec::Latest];
    let ask = |wanted: &FetchPartition| specs.map(|spec| ListOffset { partition: wanted.partition, spec });
    let questions: Vec<_> = part.partitions.iter().flat_map(ask).collect();
    let found = list_offsets(context, &questions).await;
    let followed = bounds_of_followed(context, part, &found, specs.len()).await;
    let result = |(wanted, found): (&FetchPartition, &[ListOffsetResult])| {
        let outcome = match found {
            [ListOffsetResult { outcome: Ok(start), .. }, ListOffsetResult { outcome: Ok(end), .. }] => {
                Ok(Fetched { high_watermark: end.offset, log_start: start.offset, bytes: 0, preferred: None })
            }
            other => Err(other.iter().find_map(|one| one.outcome.clone().err()).unwrap_or_else(shard_gone)),
        };
        let known = followed.iter().find(|result| result.partition == wanted.partition);
        known.cloned().unwrap_or(FetchResult { partition: wanted.partition, outcome })
    };
    let results = part.partitions.iter().zip(found.chunks(specs.len())).map(result).collect();
    FetchAnswer { results, ..FetchAnswer::new(context, usize::MAX) }
}

/// The same of partitions that this node only follows, whose offsets are the leader's to list: a read of one batch says it.
async fn bounds_of_followed(context: &Rc<Context>, part: &Fetch, found: &[ListOffsetResult], each: usize) -> Vec<FetchResult> {
    let is_led_elsewhere = |one: &ListOffsetResult| one.outcome.as_ref().is_err_and(|refusal| refusal.code == Code::NotLeader);
    let followed = part.partitions.iter().zip(found.chunks(each)).filter(|(_, found)| found.iter().any(is_led_elsewhere));
    let mut results = Vec::new();
    for (wanted, _) in followed.filter(|_| part.from != ReadFrom::Leader) {
        let read = Fetch { max_bytes: 1, partitions: vec![FetchPartition { max_bytes: 1, ..*wanted }], ..part.clone() };
        results.extend(ask(context, context.owner(&wanted.partition), read).await.results.into_iter().map(|mut result| {
            result.outcome = result.outcome.map(|fetched| Fetched { bytes: 0, ..fetched });
            result
        }));
    }
    results
}

/// Ends when one of the shards has enough, after `max_wait_ms` at the latest.
async fn wait_everywhere(context: &Rc<Context>, request: &Fetch, max_wait_ms: u32) {
    let request = Fetch { max_wait_ms, ..request.clone() };
    let waits: FuturesUnordered<_> = (0..context.mesh.shards())
        .filter_map(|shard| of_shard(context, &request, shard).map(|part| (shard, part)))
        .map(|(shard, part)| async move {
            match shard == context.mesh.shard() {
                true => drop(fetch_mine(context, &part).await),
                false => drop(context.mesh.probe(shard, part).await.recv().await),
            }
        })
        .collect();
    futures_util::pin_mut!(waits);
    waits.next().await;
}

fn of_shard(context: &Context, request: &Fetch, shard: u32) -> Option<Fetch> {
    let partitions: Vec<_> = request.partitions.iter().filter(|p| context.owner(&p.partition) == shard).copied().collect();
    (!partitions.is_empty()).then(|| Fetch { partitions, ..request.clone() })
}

async fn ask(context: &Rc<Context>, shard: u32, part: Fetch) -> FetchAnswer {
    if shard == context.mesh.shard() {
        return fetch_mine(context, &part).await;
    }
    context.metrics.add(Counter::MeshSent, 1);
    let partitions: Vec<_> = part.partitions.iter().map(|p| p.partition).collect();
    let answer = context.mesh.send(shard, Request::Fetch(part), Bytes::new()).await;
    let refused = |refusal: Refusal| {
        let results = partitions.iter().map(|partition| FetchResult { partition: *partition, outcome: Err(refusal.clone()) }).collect();
        FetchAnswer { results, ..FetchAnswer::new(context, usize::MAX) }
    };
    let Ok(MeshReply { response: Response::Fetch(results), segment, payload }) = answer.recv().await else {
        return refused(shard_gone());
    };
    let mut given = FetchAnswer { results, ..FetchAnswer::new(context, usize::MAX) };
    if let Some(SegmentPart { path, position, len }) = segment {
        match context.store.disk.open(&path).await {
            Ok(file) => given.push(Outgoing::Segment { file: Rc::new(file), position, len }),
            Err(error) => return refused(Refusal::new(Code::Storage, format!("{path}: {error}"))),
        }
    }
    if !payload.is_empty() {
        given.push(Outgoing::Shared(payload));
    }
    given
}

/// Puts the shards' answers back into the order of the request. Each shard's bytes are cut at its results' bounds.
fn join(context: &Context, request: &Fetch, parts: Vec<Option<FetchAnswer>>) -> FetchAnswer {
    let most = most_bytes(request);
    let mut answer = FetchAnswer::new(context, most);
    let mut parts: Vec<_> = parts
        .into_iter()
        .map(|p| p.unwrap_or_else(|| FetchAnswer::new(context, 0)))
        .map(|p| {
            answer.is_cut |= p.is_cut;
            (p.results.into_iter(), p.pieces.into_iter().peekable(), None)
        })
        .collect();
    for wanted in &request.partitions {
        let (results, pieces, rest) = &mut parts[context.owner(&wanted.partition) as usize];
        let Some(result) = results.next() else { continue };
        let mut left = result.outcome.as_ref().map_or(0, |f| f.bytes as usize);
        while left > 0 {
            let piece: Outgoing = rest.take().or_else(|| pieces.next()).expect("an answer's bytes are in its pieces");
            let (now, later) = piece.split(left);
            left -= now.len();
            answer.push(now);
            *rest = later;
        }
        answer.results.push(result);
    }
    answer
}
