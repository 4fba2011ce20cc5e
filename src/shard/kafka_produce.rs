//! Produce requests of Kafka's protocol: which batches go where, and the answer.
//!
//! A batch's bytes go to [`crate::shard::produce`] as they are, which checks them as it checks those of the native protocol: one whole batch of
//! format 2, neither control nor transactional. What is checked here is what only this protocol has.

use std::cell::RefCell;
use std::rc::Rc;

use crate::batch::Compression;
use crate::kafka::{self, Answering, DecodeError, FrameError, FrameStart, Place, ProduceRequest, Produced, kafka_code};
use crate::limits;
use crate::metrics::RequestKind;
use crate::request::{Acks, Code, Produce, ProduceBatch, ProduceResult, Refusal};
use crate::shard::context::Context;
use crate::shard::kafka_exchange::Exchange;
use crate::shard::net::OpenRequest;
use crate::shard::pending::{Answer, Completion, Patience, PendingProduce};
use crate::shard::produce;
use crate::types::TopicPartition;

/// Where a batch's attributes are.
const ATTRIBUTES: std::ops::Range<usize> = 21..23;
/// Kafka's code for acknowledgements that can't be.
const INVALID_REQUIRED_ACKS: i16 = 21;

/// Appends the batches of a request that is wholly in `frame`. Returns when each has its place in its partition's order.
pub async fn produce(exchange: &Rc<Exchange>, start: FrameStart, frame: &[u8]) -> Result<(), FrameError> {
    let (head, body) = kafka::decode_head(start, frame).map_err(|error| malformed(start, error))?;
    let request = kafka::decode_produce(body, start.version).map_err(|error| malformed(start, error))?;
    let Begun { produce, answer, .. } = plan(&exchange.context, start, head.correlation, &request, frame).begin(exchange);
    produce::produce(&exchange.context, &produce, frame, answer).await;
    Ok(())
}

/// The end of a connection whose request does not decode.
pub fn malformed(start: FrameStart, error: DecodeError) -> FrameError {
    FrameError::Body { key: start.api.key as i16, version: start.version, error }
}

/// The partition of a name and an index, if there is one.
pub fn resolve(context: &Context, topic: &str, partition: i32) -> Option<TopicPartition> {
    // No topic has a longer name; a request may ask for a long one a hundred thousand times.
    if topic.len() > limits::MAX_TOPIC_NAME {
        return None;
    }
    let view = context.view.borrow();
    let topic = view.topic(topic)?;
    let partition = u32::try_from(partition).ok().filter(|partition| *partition < topic.partitions)?;
    Some(TopicPartition { topic: topic.id, partition })
}

/// The refusal where there is none. It does not repeat the name: there may be one for each of a hundred thousand partitions.
pub fn unknown(partition: i32) -> Refusal {
    Refusal::new(Code::UnknownTopicOrPartition, format!("there is no such topic, or it has no partition {partition}"))
}

/// A request of which it is known what is to be appended and what is refused.
pub struct Planned {
    produce: Produce,
    outcomes: Outcomes,
}

/// A planned request that has its place among those of its connection.
pub struct Begun {
    /// What is to be appended.
    pub produce: Produce,
    /// Hears of its outcome.
    pub answer: Box<dyn Answer>,
    /// Where its answer goes; `None` is not answered at all.
    pub place: Option<Place>,
}

/// What is answered, but for what is not known yet.
struct Outcomes {
    start: FrameStart,
    correlation: i32,
    topics: Vec<(String, Vec<Outcome>)>,
}

/// Of one partition of the request.
struct Outcome {
    index: i32,
    /// `None` is the next of the batches.
    refusal: Option<(i16, Refusal)>,
}

/// A request whose batches come one by one.
pub struct Streamed {
    exchange: Rc<Exchange>,
    start: FrameStart,
    /// What is waited for.
    pub acks: Acks,
    /// Why nothing of it is appended.
    refusal: Option<(i16, Refusal)>,
    outcomes: Rc<RefCell<Outcomes>>,
    pending: Rc<PendingProduce>,
    has_place: bool,
}

struct StreamedAnswer {
    exchange: Rc<Exchange>,
    place: Option<Place>,
    outcomes: Rc<RefCell<Outcomes>>,
    _open: OpenRequest,
}

impl Answer for StreamedAnswer {
    fn produced(&self, results: Vec<ProduceResult>) {
        self.outcomes.borrow().tell(&self.exchange, self.place, &results);
    }
}

impl Streamed {
    /// Takes a place for the answer, which waits until the request has come whole.
    pub fn begin(exchange: &Rc<Exchange>, start: FrameStart, correlation: i32, request: &ProduceRequest<'_>) -> Streamed {
        exchange.context.metrics.count_request(RequestKind::Produce);
        let acks = acks_of(request.acks);
        let place = (acks != Some(Acks::None)).then(|| exchange.begin());
        place.into_iter().for_each(|place| exchange.receiving(place));
        let outcomes = Rc::new(RefCell::new(Outcomes { start, correlation, topics: Vec::new() }));
        let patience = Patience::new(acks.unwrap_or(Acks::Leader), u32::try_from(request.timeout_ms).unwrap_or(0));
        let answer =
            StreamedAnswer { exchange: exchange.clone(), place, outcomes: outcomes.clone(), _open: exchange.sender.begin_request() };
        Streamed {
            exchange: exchange.clone(),
            start,
            acks: acks.unwrap_or(Acks::Leader),
            refusal: whole_refusal(start, acks, request),
            outcomes,
            pending: PendingProduce::growing(patience, Box::new(answer)),
            has_place: place.is_some(),
        }
    }

    /// Batches of this topic follow.
    pub fn topic(&self, name: String) {
        self.outcomes.borrow_mut().topics.push((name, Vec::new()));
    }

    /// The next batch, of which the first bytes are at hand: where it goes and the right to decide it; `None` where it is refused already.
    pub fn batch(&self, index: i32, first: &[u8]) -> Option<(TopicPartition, Completion)> {
        let mut outcomes = self.outcomes.borrow_mut();
        let (topic, of_topic) = outcomes.topics.last_mut()?;
        let found = match &self.refusal {
            Some(refusal) => Err(refusal.clone()),
            None => find(&self.exchange.context, self.start, topic, index, first),
        };
        let (id, refusal) = match found {
            Ok(id) => (Some(id), None),
            Err(refusal) => (None, Some(refusal)),
        };
        of_topic.push(Outcome { index, refusal });
        id.map(|id| (id, self.pending.add(id)))
    }

    /// All of it has come.
    pub fn end(self) {
        self.pending.seal();
        if self.has_place {
            self.exchange.received();
        }
    }
}

fn acks_of(acks: i16) -> Option<Acks> {
    match acks {
        0 => Some(Acks::None),
        1 => Some(Acks::Leader),
        -1 => Some(Acks::All),
        _ => None,
    }
}

/// Where a batch goes of which the first bytes are at hand.
fn find(context: &Context, start: FrameStart, topic: &str, index: i32, first: &[u8]) -> Result<TopicPartition, (i16, Refusal)> {
    let id = resolve(context, topic, index).ok_or_else(|| of_code(unknown(index)))?;
    unsupported_compression(start, first).map_or(Ok(id), Err)
}

/// Decides which batches of a request are to be appended. `frame` begins with the request; of a batch that has not come whole, the header has.
pub fn plan(context: &Context, start: FrameStart, correlation: i32, request: &ProduceRequest<'_>, frame: &[u8]) -> Planned {
    let acks = acks_of(request.acks);
    let mut batches = Vec::new();
    let mut outcome = |topic: &str, partition: &kafka::ProducePartition| {
        let range = partition.records.clone().unwrap_or(0..0);
        let found = match whole_refusal(start, acks, request) {
            Some(refusal) => Err(refusal),
            None => find(context, start, topic, partition.index, frame.get(range.start..).unwrap_or_default()),
        };
        let refused = match found {
            Ok(id) => {
                batches.push(ProduceBatch { partition: id, range });
                None
            }
            Err(refusal) => Some(refusal),
        };
        Outcome { index: partition.index, refusal: refused }
    };
    let topics =
        request.topics.iter().map(|t| (t.name.to_owned(), t.partitions.iter().map(|p| outcome(t.name, p)).collect::<Vec<_>>())).collect();
    let produce = Produce {
        acks: acks.unwrap_or(Acks::Leader),
        timeout_ms: u32::try_from(request.timeout_ms).unwrap_or(0),
        batches,
        crc_trailer: false,
    };
    Planned { produce, outcomes: Outcomes { start, correlation, topics } }
}

fn of_code(refusal: Refusal) -> (i16, Refusal) {
    (kafka_code(refusal.code, Answering::Produce), refusal)
}

/// Why nothing of a request is appended.
fn whole_refusal(start: FrameStart, acks: Option<Acks>, request: &ProduceRequest<'_>) -> Option<(i16, Refusal)> {
    if start.version < kafka::FIRST_WITH_BATCHES {
        let words = format!("Produce version {} is older than record batches: at least 3 is needed", start.version);
        return Some(of_code(Refusal::new(Code::UnsupportedVersion, words)));
    }
    if request.transactional_id.is_some() {
        return Some(of_code(Refusal::new(Code::UnsupportedVersion, "transactions are not served")));
    }
    if acks.is_none() {
        let refusal = Refusal::new(Code::InvalidRequest, format!("acks is 0, 1 or -1, not {}", request.acks));
        return Some((INVALID_REQUIRED_ACKS, refusal));
    }
    None
}

/// Consumers of older versions do not know zstd (KIP-110): a producer of an older version may not send it.
fn unsupported_compression(start: FrameStart, batch: &[u8]) -> Option<(i16, Refusal)> {
    let attributes = batch.get(ATTRIBUTES).and_then(|bytes| bytes.try_into().ok()).map_or(0, i16::from_be_bytes);
    let is_zstd = Compression::from_codec((attributes & 0b111) as u8) == Some(Compression::Zstd);
    let words = || format!("zstd needs Produce version {} or later, not {}", kafka::FIRST_WITH_ZSTD, start.version);
    (is_zstd && start.version < kafka::FIRST_WITH_ZSTD).then(|| of_code(Refusal::new(Code::UnsupportedCompression, words())))
}

impl Planned {
    /// Takes the request's place: from here on its answer is owed.
    pub fn begin(self, exchange: &Rc<Exchange>) -> Begun {
        let Planned { produce, outcomes } = self;
        exchange.context.metrics.count_request(RequestKind::Produce);
        let place = (produce.acks != Acks::None).then(|| exchange.begin());
        let answer = KafkaProduceAnswer { exchange: exchange.clone(), place, outcomes, _open: exchange.sender.begin_request() };
        Begun { produce, answer: Box::new(answer), place }
    }
}

struct KafkaProduceAnswer {
    exchange: Rc<Exchange>,
    /// `None` is not answered at all.
    place: Option<Place>,
    outcomes: Outcomes,
    _open: OpenRequest,
}

impl Answer for KafkaProduceAnswer {
    fn produced(&self, results: Vec<ProduceResult>) {
        self.outcomes.tell(&self.exchange, self.place, &results);
    }
}

impl Outcomes {
    /// Answers the request, or ends the connection where a failure has no other way to be heard of.
    fn tell(&self, exchange: &Rc<Exchange>, place: Option<Place>, results: &[ProduceResult]) {
        let Outcomes { start, correlation, topics } = self;
        let early = topics.iter().flat_map(|(_, outcomes)| outcomes).filter_map(|o| o.refusal.as_ref().map(|(_, refusal)| refusal));
        let refusals = early.chain(results.iter().filter_map(|result| result.outcome.as_ref().err()));
        let mut first_refusal = None;
        for refusal in refusals {
            exchange.context.metrics.count_error(refusal.code.value());
            first_refusal.get_or_insert(&refusal.message);
        }
        let Some(place) = place else {
            return first_refusal.into_iter().for_each(|words| exchange.fail_silent(words));
        };
        let mut results = results.iter();
        let mut room = limits::MAX_KAFKA_DETAILS;
        let answered: Vec<(&str, Vec<Produced<'_>>)> = topics
            .iter()
            .map(|(name, outcomes)| {
                let of = outcomes.iter().map(|outcome| {
                    let produced = match &outcome.refusal {
                        Some((code, refusal)) => Produced::refused(outcome.index, *code, Some(&refusal.message)),
                        None => produced_of(outcome.index, results.next()),
                    };
                    let left = room.checked_sub(produced.message.map_or(0, str::len));
                    room = left.unwrap_or(0);
                    Produced { message: produced.message.filter(|_| left.is_some()), ..produced }
                });
                (name.as_str(), of.collect())
            })
            .collect();
        let topics = answered.iter().map(|(name, of)| (*name, of.iter().copied()));
        let frame = kafka::encode_produced(*correlation, start.version, start.api.is_flexible(start.version), topics);
        exchange.answer(place, frame);
    }
}

fn produced_of(index: i32, result: Option<&ProduceResult>) -> Produced<'_> {
    match result.map(|result| &result.outcome) {
        Some(Ok(appended)) => Produced {
            index,
            error: 0,
            base_offset: appended.base_offset,
            log_append_time: appended.log_append_time,
            log_start: appended.log_start,
            message: None,
        },
        Some(Err(refusal)) => Produced::refused(index, kafka_code(refusal.code, Answering::Produce), Some(&refusal.message)),
        None => Produced::refused(index, Code::Internal.value(), None),
    }
}
