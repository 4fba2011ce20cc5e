//! Makes a real broker do everything that touches a disk once, one step after the other, and returns what it recorded.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use corelane::batch::{BatchBuilder, BatchHeader, Compression};
use corelane::request::{OffsetSpec, Request, Response};
use corelane::shard::trace::TraceEvent;
use corelane::types::{Offset, TopicId, TopicPartition};

use crate::crash::check::{self, Keyed};
use crate::crash::{Numbers, trace};
use crate::support::{Broker, Connection};

/// Small, so that a short trace has laps; the smallest that the broker takes.
const JOURNAL_FILE: &str = "1052672";
/// Longest wait for something that the broker does by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a broker did, and which part of it belongs to which step of the workload.
pub struct Life {
    /// Everything, in order.
    pub events: Vec<TraceEvent>,
    /// Steps by name, as ranges of events.
    pub steps: Vec<(&'static str, Range<usize>)>,
    /// What was sent to compacted topics.
    pub compacted: Arc<Compacted>,
}

/// What was sent to compacted topics.
#[derive(Clone, Debug, Default)]
pub struct Compacted {
    /// Which they are.
    pub topics: BTreeSet<TopicId>,
    /// The batches by their CRC.
    pub batches: HashMap<u32, Content>,
}

/// What is in a batch.
#[derive(Clone, Debug)]
pub struct Content {
    /// Its records, by offset from the first one.
    pub records: Vec<Keyed>,
    /// Idempotent producer's id, epoch and first sequence.
    pub producer: Option<(i64, i16, i32)>,
}

impl Life {
    /// The step that an event belongs to.
    pub fn step(&self, event: usize) -> &'static str {
        self.steps.iter().find(|(_, range)| range.contains(&event)).map_or("after the last step", |(name, _)| name)
    }
}

/// Every step, in order: a crash is to be tried in each.
pub const STEPS: [&str; 21] = [
    "first start",
    "topic creation",
    "small appends",
    "idempotent appends",
    "idempotent retry",
    "large appends",
    "segment roll",
    "journal lap",
    "adopted append",
    "topic with data deleted",
    "name used again",
    "retention",
    "cleaning",
    "small appends before the kill",
    "restart with more shards after a kill",
    "idempotent retry after the restart",
    "appends of the second run",
    "cleaning of what was cleaned",
    "clean stop",
    "restart with fewer shards, large batches left out",
    "appends behind them",
];

struct Workload {
    data: PathBuf,
    trace: PathBuf,
    numbers: Numbers,
    /// Ends of the steps, bytes of the trace file.
    ends: Vec<(&'static str, u64)>,
    compacted: Compacted,
}

/// Runs the workload below `dir`, which is on a real disk.
pub fn lived(dir: &Path, seed: u64) -> Life {
    let mut workload = Workload {
        data: dir.join("data"),
        trace: dir.join("trace"),
        numbers: Numbers(seed),
        ends: Vec::new(),
        compacted: Compacted::default(),
    };
    workload.run();
    let (starts, events): (Vec<usize>, Vec<TraceEvent>) =
        trace::parse(&fs::read(&workload.trace).expect("there is a trace")).into_iter().unzip();
    let mut from = 0;
    let steps = workload.ends.iter().map(|(name, end)| {
        let to = starts.partition_point(|start| (*start as u64) < *end);
        let step = (*name, from..to);
        from = to;
        step
    });
    let steps = steps.collect();
    Life { events, steps, compacted: Arc::new(workload.compacted) }
}

impl Workload {
    fn run(&mut self) {
        let broker = self.start(1);
        self.done("first start");
        let mut connection = broker.connect();
        let settings = [("segment.bytes", "1048576"), ("max.message.bytes", "16777216"), ("retention.ms", "-1")];
        let topic = connection.create("traced", 3, &settings);
        let part = |partition| TopicPartition { topic, partition };
        self.done("topic creation");
        for round in 0..10 {
            self.append(&mut connection, part(round % 3), 50 + 217 * round as usize);
        }
        self.done("small appends");
        let producer = match connection.ask(&Request::InitProducerId, &[]).0 {
            Response::ProducerId(id, epoch) => (id, epoch),
            other => panic!("{other:?}"),
        };
        let idempotent: Vec<_> = (0..7).map(|n| self.idempotent(producer, 2 * n)).collect();
        let offsets: Vec<Offset> = idempotent.iter().map(|batch| produce(&mut connection, part(1), batch)).collect();
        self.done("idempotent appends");
        // The last ones are remembered: the second time they get the offsets of the first time, and nothing is appended.
        for n in 2..7 {
            assert_eq!(produce(&mut connection, part(1), &idempotent[n]), offsets[n], "a retry is answered with the original's offset");
        }
        self.append(&mut connection, part(1), 300);
        self.done("idempotent retry");
        for len in [140_000, 200_001, 131_072] {
            self.append(&mut connection, part(0), len);
            self.append(&mut connection, part(0), 77);
        }
        self.done("large appends");
        for _ in 0..12 {
            self.append(&mut connection, part(2), 90_000);
        }
        self.done("segment roll");
        for round in 0..52 {
            self.append(&mut connection, part(1), 100_000);
            self.append(&mut connection, part(round % 3), 40);
        }
        self.done("journal lap");
        let adopted = self.sparse((8 << 20) + 70_000);
        produce(&mut connection, part(2), &adopted);
        self.append(&mut connection, part(2), 500);
        self.done("adopted append");
        self.deletion(&mut connection);
        self.retention(&mut connection);
        let compacted = self.compacted_topic(&mut connection);
        self.cleaning(&mut connection, compacted, producer, 0);
        self.done("cleaning");
        for round in 0..6 {
            self.append(&mut connection, part(round % 3), 1_500);
        }
        self.done("small appends before the kill");
        broker.kill();

        let broker = self.start(2);
        self.done("restart with more shards after a kill");
        for n in 2..7 {
            let mut connection = broker.connect_owner(part(1));
            assert_eq!(produce(&mut connection, part(1), &idempotent[n]), offsets[n], "a restart remembers the producer");
        }
        self.append(&mut broker.connect_owner(part(1)), part(1), 310);
        self.done("idempotent retry after the restart");
        for round in 0..12 {
            let mut connection = broker.connect_owner(part(round % 3));
            self.append(&mut connection, part(round % 3), 200 + 1_800 * round as usize);
        }
        for partition in 0..3 {
            let mut connection = broker.connect_owner(part(partition));
            self.append(&mut connection, part(partition), 150_000);
            for _ in 0..14 {
                self.append(&mut connection, part(partition), 95_000);
            }
            self.append(&mut connection, part(partition), 60);
        }
        self.done("appends of the second run");
        self.cleaning(&mut broker.connect_owner(compacted), compacted, producer, 10);
        self.done("cleaning of what was cleaned");
        assert_eq!(broker.stop(), 0);
        self.done("clean stop");

        let broker = self.start_with(1, &["--memory", "32M"]);
        let mut connection = broker.connect();
        for round in 0..12 {
            let large = self.sparse(900_000 + 37 * round as usize);
            produce(&mut connection, part(round % 2), &large);
        }
        self.done("restart with fewer shards, large batches left out");
        for round in 0..12 {
            self.append(&mut connection, part(round % 3), 100 + 900 * round as usize);
        }
        broker.kill();
        self.done("appends behind them");
        assert_eq!(self.ends.iter().map(|(name, _)| *name).collect::<Vec<_>>(), STEPS, "every step is done");
    }

    /// A topic with data in all forms goes, and its name comes back.
    fn deletion(&mut self, connection: &mut Connection) {
        let settings = [("max.message.bytes", "16777216"), ("retention.ms", "-1")];
        let gone = TopicPartition { topic: connection.create("gone", 1, &settings), partition: 0 };
        for len in [100, 150_000, 3_000, 20_000] {
            self.append(connection, gone, len);
        }
        let before = self.marks("topic deleted");
        match connection.ask(&Request::DeleteTopic("gone".into()), &[]).0 {
            Response::TopicDeleted => {}
            other => panic!("{other:?}"),
        }
        self.wait("the topic's files are gone", |workload| workload.marks("topic deleted") > before);
        self.done("topic with data deleted");
        let again: TopicId = connection.create("gone", 1, &settings);
        assert_ne!(again, gone.topic, "another topic of the same name");
        for len in [2_000, 10] {
            self.append(connection, TopicPartition { topic: again, partition: 0 }, len);
        }
        self.done("name used again");
    }

    fn retention(&mut self, connection: &mut Connection) {
        let settings = [("segment.bytes", "1048576"), ("retention.bytes", "1048576"), ("retention.ms", "-1")];
        let short = TopicPartition { topic: connection.create("short", 1, &settings), partition: 0 };
        for _ in 0..26 {
            self.append(connection, short, 100_000);
        }
        let deadline = Instant::now() + PATIENCE;
        while connection.offset(short, OffsetSpec::Earliest) == 0 || self.marks("segment deleted") == 0 {
            assert!(Instant::now() < deadline, "retention deletes the oldest segment");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.done("retention");
    }

    fn compacted_topic(&mut self, connection: &mut Connection) -> TopicPartition {
        let settings = [("cleanup.policy", "compact"), ("segment.bytes", "1048576"), ("min.cleanable.dirty.ratio", "0.01")];
        let topic = connection.create("compacted", 1, &settings);
        self.compacted.topics.insert(topic);
        TopicPartition { topic, partition: 0 }
    }

    /// Three segments full of a few keys, tombstones among them, small and large batches, some of an idempotent producer; until they are cleaned.
    fn cleaning(&mut self, connection: &mut Connection, partition: TopicPartition, (id, epoch): (i64, i16), first_sequence: i32) {
        let before = (self.marks("clean"), self.marks("replaced segments removed"));
        for round in 0..26 {
            let key = |this: &mut Workload| [b'k', this.numbers.below(6) as u8];
            let mut builder = BatchBuilder::new(if round % 4 == 3 { Compression::Lz4 } else { Compression::None });
            let mut value = vec![0; if round == 9 { 140_000 } else { 90_000 }];
            for piece in value.chunks_mut(8) {
                piece.copy_from_slice(&self.numbers.draw().to_le_bytes()[..piece.len()]);
            }
            let time = 1_700_000_000_000 + round;
            builder.append(time, Some(&key(self)), Some(&value), &[]).expect("it fits");
            builder.append(time, Some(&key(self)), (round % 3 > 0).then_some(&value[..50]), &[]).expect("it fits");
            let producer = (round % 5 == 1).then_some((id, epoch, first_sequence + 2 * (round as i32 / 5)));
            if let Some((id, epoch, sequence)) = producer {
                builder.set_producer(id, epoch, sequence);
            }
            let batch = builder.build();
            let header = BatchHeader::parse(&batch).expect("a batch");
            self.compacted.batches.insert(header.crc, Content { records: check::keyed(&batch).expect("it has records"), producer });
            produce(connection, partition, &batch);
        }
        self.wait("segments are cleaned", |workload| {
            workload.marks("clean") > before.0 && workload.marks("replaced segments removed") > before.1
        });
    }

    fn start(&self, shards: u32) -> Broker {
        self.start_with(shards, &[])
    }

    fn start_with(&self, shards: u32, flags: &[&str]) -> Broker {
        fs::create_dir_all(&self.data).expect("a directory");
        let trace = self.trace.to_str().expect("a path in UTF-8");
        let shards = shards.to_string();
        let always = ["--shards", &shards, "--disk-trace", trace, "--journal-file", JOURNAL_FILE];
        Broker::start(&self.data, &[&always, flags].concat())
    }

    /// Ends a step: what the broker has recorded by now belongs to it.
    fn done(&mut self, name: &'static str) {
        self.ends.push((name, fs::metadata(&self.trace).expect("there is a trace").len()));
    }

    fn wait(&self, what: &str, mut until: impl FnMut(&Workload) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !until(self) {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How often the broker has said by now that it did something.
    fn marks(&self, name: &str) -> usize {
        let bytes = fs::read(&self.trace).expect("there is a trace");
        let events = trace::parse(&bytes);
        events.iter().filter(|(_, event)| matches!(event, TraceEvent::Mark { name: mark } if mark == name)).count()
    }

    fn append(&mut self, connection: &mut Connection, partition: TopicPartition, len: usize) {
        let batch = self.batch(len, None);
        produce(connection, partition, &batch);
    }

    fn idempotent(&mut self, (id, epoch): (i64, i16), sequence: i32) -> Vec<u8> {
        self.batch(120, Some((id, epoch, sequence)))
    }

    /// Two records, or one with a large value, that no other batch is like.
    fn batch(&mut self, len: usize, producer: Option<(i64, i16, i32)>) -> Vec<u8> {
        let mut value = vec![0; len];
        for piece in value.chunks_mut(8) {
            piece.copy_from_slice(&self.numbers.draw().to_le_bytes()[..piece.len()]);
        }
        let mut builder = BatchBuilder::new(Compression::None);
        if producer.is_some() {
            builder.append(1_700_000_000_000, None, Some(b"first"), &[]).expect("it fits");
        }
        builder.append(1_700_000_000_000 + len as i64, None, Some(&value), &[]).expect("it fits");
        if let Some((id, epoch, sequence)) = producer {
            builder.set_producer(id, epoch, sequence);
        }
        builder.build().to_vec()
    }

    /// A batch of zeros with a few blocks that are not: images of it stay small.
    fn sparse(&mut self, len: usize) -> Vec<u8> {
        let mut value = vec![0; len];
        for piece in value.chunks_mut(1 << 18) {
            for byte in piece.iter_mut().take(5_000) {
                *byte = self.numbers.draw() as u8;
            }
        }
        let mut builder = BatchBuilder::new(Compression::None);
        builder.append(1_700_000_000_000, None, Some(&value), &[]).expect("it fits");
        builder.build().to_vec()
    }
}

fn produce(connection: &mut Connection, partition: TopicPartition, batch: &[u8]) -> Offset {
    let result = connection.produce(partition, batch);
    result.outcome.unwrap_or_else(|refusal| panic!("{partition}: {refusal}")).base_offset
}
