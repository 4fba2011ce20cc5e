//! Fetch requests of Kafka's protocol.

use std::rc::Rc;

use crate::kafka::{
    self, Answering, FetchAnswerWriter, FetchedPartition, FrameError, FrameStart, Reader, RequestHead, kafka_code, put_length,
};
use crate::limits;
use crate::request::{Code, Fetch, FetchPartition, FetchResult, ReadFrom};
use crate::shard::context::Context;
use crate::shard::fetch::{FetchAnswer, fetch};
use crate::shard::kafka_exchange::Exchange;
use crate::shard::kafka_produce::{malformed, resolve};
use crate::shard::net::Outgoing;

/// Kafka's code for a fetch session that there is not.
const FETCH_SESSION_ID_NOT_FOUND: i16 = 70;

/// A request of which it is known what is to be read.
pub struct PlannedFetch {
    start: FrameStart,
    correlation: i32,
    session_id: i32,
    fetch: Fetch,
    topics: Vec<(String, Vec<Wanted>)>,
}

/// A partition of the request.
struct Wanted {
    index: i32,
    /// The next of the partitions to be read; unknown otherwise.
    is_known: bool,
}

/// Finds the partitions of a request.
pub fn plan(context: &Context, start: FrameStart, head: &RequestHead<'_>, body: Reader<'_>) -> Result<PlannedFetch, FrameError> {
    let request = kafka::decode_fetch(body, head.version).map_err(|error| malformed(start, error))?;
    let positive = |value: i32| u32::try_from(value).unwrap_or(0);
    let mut partitions = Vec::new();
    let mut unknown = false;
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let wanted = topic.partitions.iter().map(|p| {
            let id = resolve(context, topic.name, p.index);
            unknown |= id.is_none();
            partitions.extend(id.map(|partition| FetchPartition {
                partition,
                offset: p.offset,
                max_bytes: positive(p.max_bytes),
                leader_epoch: (p.leader_epoch >= 0).then_some(p.leader_epoch),
            }));
            Wanted { index: p.index, is_known: id.is_some() }
        });
        topics.push((topic.name.to_owned(), wanted.collect()));
    }
    // A client hears of an unknown topic at once.
    let max_wait_ms = if unknown { 0 } else { positive(request.max_wait_ms) };
    let from = match request.rack {
        None => ReadFrom::Leader,
        // No node is in a rack with a longer name.
        Some(rack) if rack.is_empty() || rack.len() > limits::MAX_HOST_NAME => ReadFrom::InSync,
        Some(rack) => ReadFrom::Rack(rack.into()),
    };
    let fetch = Fetch { max_wait_ms, min_bytes: positive(request.min_bytes), max_bytes: positive(request.max_bytes), partitions, from };
    Ok(PlannedFetch { start, correlation: head.correlation, session_id: request.session_id, fetch, topics })
}

impl PlannedFetch {
    /// Reads, waits for as much as is wanted, and queues the answer; nothing is queued where the connection is over.
    pub async fn answer(self, exchange: &Rc<Exchange>) {
        let flexible = self.start.api.is_flexible(self.start.version);
        if self.session_id != 0 {
            exchange.context.metrics.count_error(FETCH_SESSION_ID_NOT_FOUND);
            let writer = FetchAnswerWriter::new(self.correlation, self.start.version, flexible, FETCH_SESSION_ID_NOT_FOUND, 0);
            return exchange.send_parts(vec![Outgoing::Owned(writer.finish().0)]);
        }
        // The turn ends when the answer is queued.
        let Some((answer, _turn)) = fetch(&exchange.context, &exchange.sender, &self.fetch).await else { return };
        for refusal in answer.results.iter().filter_map(|r| r.outcome.as_ref().err()) {
            exchange.context.metrics.count_error(refusal.code.value());
        }
        exchange.send_parts(self.frame(answer, flexible));
    }

    /// The frame: what is written here, and the batches as they lie in memory or files.
    fn frame(&self, answer: FetchAnswer, flexible: bool) -> Vec<Outgoing> {
        let mut writer = FetchAnswerWriter::new(self.correlation, self.start.version, flexible, 0, self.topics.len());
        let mut parts = Vec::new();
        let mut results = answer.results.into_iter().peekable();
        let mut batches = Batches { pieces: answer.pieces.into_iter(), rest: None };
        let mut asked = self.fetch.partitions.iter();
        for (name, partitions) in &self.topics {
            writer.begin_topic(name, partitions.len());
            for wanted in partitions {
                let outcome = match wanted.is_known {
                    true => asked.next().map(|asked| (asked, results.next_if(|result| result.partition == asked.partition))),
                    false => None,
                };
                let fetched = fetched(wanted.index, outcome);
                writer.begin_partition(&fetched);
                if fetched.bytes > 0 {
                    parts.push(Outgoing::Owned(writer.give_out(fetched.bytes)));
                    batches.take(fetched.bytes, &mut parts);
                }
                writer.end_partition();
            }
            writer.end_topic();
        }
        let (last, len) = writer.finish();
        if let Some(Outgoing::Owned(first)) = parts.first_mut() {
            put_length(first, len);
        }
        parts.push(Outgoing::Owned(last));
        parts
    }
}

/// What a partition's part of the answer says before its batches.
fn fetched(index: i32, outcome: Option<(&FetchPartition, Option<FetchResult>)>) -> FetchedPartition {
    let refused = |code| FetchedPartition {
        index,
        error: kafka_code(code, Answering::Read),
        high_watermark: -1,
        log_start: -1,
        bytes: 0,
        preferred: None,
    };
    match outcome {
        None => refused(Code::UnknownTopicOrPartition),
        Some((_, Some(FetchResult { outcome: Ok(fetched), .. }))) => FetchedPartition {
            index,
            error: 0,
            high_watermark: fetched.high_watermark,
            log_start: fetched.log_start,
            bytes: fetched.bytes as usize,
            preferred: fetched.preferred,
        },
        Some((_, Some(FetchResult { outcome: Err(refusal), .. }))) => refused(refusal.code),
        Some((_, None)) => refused(Code::Internal),
    }
}

/// The pieces of an answer, cut where partitions begin.
struct Batches {
    pieces: std::vec::IntoIter<Outgoing>,
    rest: Option<Outgoing>,
}

impl Batches {
    /// Moves the next `bytes` to `parts`.
    fn take(&mut self, bytes: usize, parts: &mut Vec<Outgoing>) {
        let mut left = bytes;
        while left > 0 {
            let piece = self.rest.take().or_else(|| self.pieces.next()).expect("an answer's bytes are in its pieces");
            let (now, later) = piece.split(left);
            left -= now.len();
            parts.push(now);
            self.rest = later;
        }
    }
}
