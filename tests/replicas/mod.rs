//! Stores of one shard and one partition, on a real disk and without a broker around them.

#![allow(dead_code, reason = "each test uses a part")]

pub mod node;

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use corelane::batch::{BatchBuilder, BatchHeader, BatchIter, Compression};
use corelane::log::cleaning::RewrittenSegment;
use corelane::log::journal::{EntryHeader, EntryKind};
use corelane::log::recovery::{OpenRequest, open_store};
use corelane::log::replacement::Replacement;
use corelane::log::segment::SegmentInfo;
use corelane::log::segment_check::SegmentWord;
use corelane::metrics::ShardMetrics;
use corelane::partition::{Partition, ReplicaAppend, Settings};
use corelane::request::{Acks, Appended, ProduceResult, Refusal};
use corelane::shard::adoption::Adoption;
use corelane::shard::blocking_files::BlockingFiles;
use corelane::shard::budget::Budget;
use corelane::shard::checkpoint::Checkpoints;
use corelane::shard::disk::Disk;
use corelane::shard::follower_read::{FollowerCursor, FollowerPart};
use corelane::shard::journal::{Journal, JournalIdentity, Urgency};
use corelane::shard::partition_cell::PartitionCell;
use corelane::shard::pending::{Answer, Patience, PendingProduce};
use corelane::shard::receipt::Receipt;
use corelane::shard::replica::ReplicaError;
use corelane::shard::reserve::Reserve;
use corelane::shard::ring::{JournalFile, Ring};
use corelane::shard::role::Role;
use corelane::shard::store::{Blocked, Store};
use corelane::shard::trace::{Trace, TraceEvent};
use corelane::shard::write_behind;
use corelane::types::{Offset, TopicId, TopicPartition};

/// The partition of all these stores.
pub const PARTITION: TopicPartition = TopicPartition { topic: TopicId([0x77; 16]), partition: 2 };
/// Their cluster.
pub const CLUSTER: [u8; 16] = [0xc1; 16];
/// Size of a journal file, bytes; of a store whose trace is kept the smallest that there may be, so that images of it are small.
const JOURNAL_FILE: (u64, u64) = (4 << 20, 1_052_672);

/// A running store.
pub struct Running {
    pub store: Rc<Store>,
    pub cell: Rc<PartitionCell>,
    pub checkpoints: Rc<Checkpoints>,
    /// What a recovery said of damage.
    pub damage: usize,
    tasks: Vec<glommio::Task<()>>,
}

/// Small segments, so that there are several.
pub fn settings() -> Settings {
    Settings { segment_bytes: 300_000, max_message_bytes: 32 << 20, ..Settings::default() }
}

impl Running {
    /// Opens (and recovers) the store in a directory.
    pub async fn open(dir: &Path, trace: Option<Arc<Trace>>) -> Running {
        std::fs::create_dir_all(dir).unwrap();
        let journal_file = if trace.is_some() { JOURNAL_FILE.1 } else { JOURNAL_FILE.0 };
        if let Some(trace) = &trace {
            trace.record(&TraceEvent::Mark { name: "start".into() });
        }
        let mut files = BlockingFiles::traced(dir, false, trace.clone());
        let owner = |_| 0;
        let request = OpenRequest { cluster: CLUSTER, shards: 1, salt: 77, now_ms: 0, catalogue: &[PARTITION], owner: &owner };
        let mut recovered = open_store(&mut files, &request).unwrap();
        drop(files);
        let damage = recovered.report.damage.len();
        assert!(damage == 0, "{:?}", recovered.report.damage);
        let disk = Disk::new(dir.to_path_buf(), true, trace);
        let budget = Budget::new(64 << 20);
        let metrics = Arc::new(ShardMetrics::new(0));
        let journals: Vec<_> = recovered.journals.iter().map(|journal| JournalFile { id: journal.id, size: journal.size }).collect();
        let ring = Ring::open(disk.clone(), CLUSTER, journal_file, 4, &journals, (recovered.next_journal_id, 1)).await.unwrap();
        let identity = JournalIdentity { generation: recovered.generation, salt: recovered.salt, shard: 0 };
        let journal = Journal::new(identity, ring.clone(), budget.accounted().clone(), metrics.clone());
        let reserve = Arc::new(Reserve::open(dir, true).unwrap());
        let store = Store::new(disk.clone(), reserve, ring, journal, budget, metrics.clone());
        let image = recovered.shards[0].remove(0);
        let machine = Partition::open_replica(image.state, 1000, 0);
        let topic = metrics.topic("replicated");
        let cell = PartitionCell::in_role("replicated", machine, settings(), Some(image.remainder), topic, disk, Role::Unassigned);
        store.insert(cell.clone());
        let checkpoints = Rc::new(Checkpoints::new(CLUSTER, recovered.generation, 0));
        let tasks = vec![
            glommio::spawn_local({
                let store = store.clone();
                async move { store.journal.clone().run().await.unwrap() }
            }),
            glommio::spawn_local({
                let store = store.clone();
                async move { store.ring.clone().run().await.unwrap() }
            }),
            glommio::spawn_local(write_behind::run(store.clone())),
        ];
        Running { store, cell, checkpoints, damage, tasks }
    }

    /// Ends without a word, as a process that is killed, and opens again what is on the disk then. It is another directory: the old one's files are still locked.
    pub async fn restart(self, dir: &mut tempfile::TempDir, trace: Option<Arc<Trace>>) -> Running {
        for task in self.tasks {
            task.cancel().await;
        }
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        *dir = copy;
        Running::open(dir.path(), trace).await
    }

    /// Leads in an epoch that begins at the log's end.
    pub async fn lead(&self, epoch: i32) {
        self.store.set_role(&self.cell, Role::Unassigned).unwrap();
        self.store.begin_epoch(&self.cell, epoch, self.end()).await.unwrap();
        self.store.set_role(&self.cell, Role::Leader(epoch)).unwrap();
    }

    /// Follows the leader of an epoch that begins at `start`.
    pub async fn follow(&self, epoch: i32, start: Offset) {
        self.store.set_role(&self.cell, Role::Unassigned).unwrap();
        self.store.begin_epoch(&self.cell, epoch, start).await.unwrap();
        self.store.set_role(&self.cell, Role::Follower(epoch)).unwrap();
    }

    /// The log's end.
    pub fn end(&self) -> Offset {
        self.cell.machine.borrow().ladder().appended()
    }

    /// The watermark.
    pub fn watermark(&self) -> Offset {
        self.cell.machine.borrow().ladder().committed()
    }

    /// Appends as a client's request does; what it is answered comes later.
    pub async fn produce(&self, batch: &[u8]) -> Produced {
        let produced = Produced::default();
        let pending = PendingProduce::new(std::iter::once(PARTITION), Patience::new(Acks::All, 0), Box::new(produced.clone()));
        let mut done = pending.completion(0);
        let header = BatchHeader::parse(batch).unwrap();
        loop {
            let blocked = if batch.len() < corelane::limits::LARGE_APPEND {
                self.store.append(&self.cell, &header, batch, done)
            } else {
                let position = self.cell.machine.borrow().next_position().unwrap_or(4096);
                let large = self.store.large_batch(batch, position);
                self.store.append_large(&self.cell, &header, large, done).map_err(|(blocked, _)| blocked)
            };
            match blocked {
                Ok(()) | Err(Blocked::Decided) => return produced,
                Err(Blocked::Room(back)) => done = back,
            }
            if let Err(refusal) = self.store.make_room(&self.cell, &header, batch.len()).await {
                done.complete(Err(refusal));
                return produced;
            }
        }
    }

    /// Everything from `cursor` on, in parts.
    pub async fn read(&self, cursor: &mut FollowerCursor, max_bytes: usize) -> Vec<FollowerPart> {
        self.store.read_for_follower(&self.cell, cursor, max_bytes).await.unwrap()
    }

    /// Until the log is durable up to its end.
    pub async fn settle(&self) {
        self.store.wait_reached(&self.cell, self.end()).await.unwrap();
    }

    /// Sends everything that `to` does not have, as a stream does.
    pub async fn replicate(&self, to: &Running, max_bytes: usize) {
        let Role::Leader(epoch) = self.cell.role() else { panic!("only a leader sends") };
        self.settle().await;
        let mut cursor = self.store.follower_cursor(&self.cell, to.end()).await.unwrap();
        loop {
            let parts = self.read(&mut cursor, max_bytes).await;
            if parts.is_empty() {
                return;
            }
            for part in parts {
                let end = to.take(epoch, &part, self.watermark()).await.unwrap();
                assert_eq!(end, part.end_offset);
            }
        }
    }

    /// One batch, received into a file of its own.
    async fn receive_adopted(&self, bytes: &[u8]) -> Adoption {
        let mut adoption = Adoption::begin(&self.store, &self.cell, bytes.len()).await.unwrap();
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = adoption.space(rest.len());
            let len = space.len();
            space.copy_from_slice(&rest[..len]);
            adoption.advance(len).await;
            rest = &rest[len..];
        }
        adoption
    }

    /// Appends a batch that is too large for memory, as a client's request does.
    pub async fn adopt(&self, batch: &[u8]) -> Produced {
        let produced = Produced::default();
        let pending = PendingProduce::new(std::iter::once(PARTITION), Patience::new(Acks::All, 0), Box::new(produced.clone()));
        self.receive_adopted(batch).await.finish(None, pending.completion(0)).await;
        produced
    }

    /// Takes a part as the follower.
    pub async fn take(&self, epoch: i32, part: &FollowerPart, high_watermark: Offset) -> Result<Offset, ReplicaError> {
        let bytes = bytes_of(part).await;
        if part.is_adopted {
            let adoption = self.receive_adopted(&bytes).await;
            return adoption.finish_replica(epoch, part.running_hash).await;
        }
        let append = ReplicaAppend { epoch, segment: part.segment, running_hash: part.running_hash, batches: &bytes };
        self.store.append_replica(&self.cell, &append, high_watermark).await
    }

    /// What this store says of the segment that holds `from`, from there on.
    pub fn word(&self, from: Offset) -> SegmentWord {
        self.cell.machine.borrow().word(&self.segment(from), from)
    }

    /// The segment that holds an offset.
    pub fn segment(&self, offset: Offset) -> SegmentInfo {
        *self.cell.machine.borrow().segment_of(offset).expect("it is in the log")
    }

    /// The bytes of the segment that holds `from`, from there on.
    pub async fn segment_bytes(&self, from: Offset) -> Vec<u8> {
        let info = self.segment(from);
        let (file, start) = self.store.segment_from(&self.cell, &info, from).await.unwrap();
        let block = start / 4096 * 4096;
        let read = file.read(block, ((info.valid_end - block) as usize).next_multiple_of(4096)).await.unwrap();
        read[(start - block) as usize..(info.valid_end - block) as usize].to_vec()
    }

    /// A receipt that has taken `bytes` in pieces, of a segment that begins at `base`.
    pub async fn receive(&self, base: Offset, bytes: &[u8]) -> Result<Receipt, ReplicaError> {
        let queue = glommio::executor().create_task_queue(glommio::Shares::Static(100), glommio::Latency::NotImportant, "segments");
        let mut receipt = Receipt::begin(&self.store, &self.cell, queue, base, bytes.len() as u64).await?;
        for piece in bytes.chunks(70_001) {
            if let Err(error) = receipt.take(piece).await {
                receipt.abandon().await;
                return Err(error);
            }
        }
        Ok(receipt)
    }

    /// Ships the segment that goes on where `to` ends, as a file.
    pub async fn ship(&self, to: &Running) -> Offset {
        let Role::Leader(epoch) = self.cell.role() else { panic!("only a leader sends") };
        let from = to.end();
        let bytes = self.segment_bytes(from).await;
        let receipt = to.receive(from, &bytes).await.unwrap();
        let received = receipt.finish(&self.word(from)).await.unwrap();
        received.install(epoch).await.unwrap()
    }

    /// Rewrites sealed segments as a cleaning does: of their batches those stay for which `keep` says so, and the last one. One journal entry puts the new one in their place.
    pub async fn rewrite(&self, first: Offset, end: Offset, keep: impl Fn(&BatchHeader) -> bool) {
        let old: Vec<SegmentInfo> =
            self.cell.machine.borrow().segments().iter().filter(|s| s.base_offset >= first && s.end_offset <= end).copied().collect();
        let generation = old.iter().map(|segment| segment.rewrite_generation).max().unwrap() + 1;
        let mut rewritten = RewrittenSegment::new(SegmentInfo {
            end_offset: first,
            ..SegmentInfo::new(first, generation, old.last().unwrap().running_hash)
        });
        for segment in &old {
            for found in BatchIter::new(&self.segment_bytes(segment.base_offset).await) {
                let (header, bytes) = found.unwrap();
                if keep(&header) || header.next_offset() == end {
                    rewritten.push(bytes).unwrap();
                }
            }
        }
        let finished = rewritten.finish();
        let info = SegmentInfo { sealed: true, ..finished.info };
        let disk = self.store.disk.clone();
        let (log, index) = (disk.create(&info.path(PARTITION)).await.unwrap(), disk.create(&info.index_path(PARTITION)).await.unwrap());
        let block = |bytes: &[u8]| {
            let mut memory = glommio::allocate_dma_buffer_global(bytes.len());
            memory.as_bytes_mut().copy_from_slice(bytes);
            Rc::new(memory)
        };
        log.write(block(&finished.rest.1), finished.rest.0).await.unwrap();
        log.write(block(&info.header_block(PARTITION)), 0).await.unwrap();
        index.write(block(&info.index_header_block(PARTITION)), 0).await.unwrap();
        let blocks = finished.index.blocks_from(0).unwrap();
        index.write(block(&blocks.bytes), blocks.position).await.unwrap();
        let gone = self.cell.machine.borrow_mut().replace_segments(info).unwrap();
        assert_eq!(gone.len(), old.len());
        let payload = Replacement::of(&info).encode();
        let machine = self.cell.machine.borrow();
        let entry = EntryHeader {
            kind: EntryKind::Replace,
            must_understand: true,
            topic_partition: PARTITION,
            leader_epoch: machine.epoch(),
            segment: info.base_offset,
            position: info.valid_end,
            base_offset: machine.ladder().appended(),
            end_offset: machine.ladder().appended(),
            high_watermark: machine.ladder().committed(),
            running_hash: machine.running_hash(),
            max_timestamp: machine.max_timestamp(),
            payload_len: payload.len() as u32,
            carried: 0,
        };
        drop(machine);
        self.store.journal.add(&entry, Urgency::Sync, None, |space| space.copy_from_slice(&payload));
        self.store.reader.forget_replaced(&self.cell, &old);
        self.store.forget_entries(&self.cell, self.cell.forget_below(info.end_offset));
    }

    /// Takes a checkpoint.
    pub async fn checkpoint(&self) {
        self.checkpoints.take(&self.store).await.unwrap();
    }

    /// Flushes everything.
    pub async fn flush(&self) {
        write_behind::flush(&self.store, &self.cell, true).await.unwrap();
    }
}

/// The bytes of a part.
pub async fn bytes_of(part: &FollowerPart) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in &part.pieces {
        match piece {
            corelane::shard::net::Outgoing::Segment { file, position, len } => {
                let read = file.read(*position, len.next_multiple_of(4096)).await.unwrap();
                bytes.extend_from_slice(&read[..*len]);
            }
            other => other.copy_to(&mut bytes),
        }
    }
    assert_eq!(bytes.len(), part.bytes);
    bytes
}

/// What a client is answered.
#[derive(Clone, Default)]
pub struct Produced(Rc<RefCell<Option<Result<Appended, Refusal>>>>, Rc<Cell<bool>>);

impl Produced {
    /// The answer, if there is one.
    pub fn now(&self) -> Option<Result<Appended, Refusal>> {
        self.0.borrow().clone()
    }

    /// The offset that it was given.
    pub fn offset(&self) -> Option<Offset> {
        self.now().and_then(Result::ok).map(|appended| appended.base_offset)
    }
}

impl Answer for Produced {
    fn produced(&self, results: Vec<ProduceResult>) {
        *self.0.borrow_mut() = results.into_iter().next().map(|result| result.outcome);
        self.1.set(true);
    }
}

/// A batch that no other one is like: `records` records, one of them of about `len` bytes; of an idempotent producer (id, first sequence) if so.
pub fn batch(seed: u64, records: usize, len: usize, producer: Option<(i64, i32)>) -> Vec<u8> {
    let mut numbers = super::crash::Numbers(seed);
    let mut builder = BatchBuilder::new(Compression::None);
    for record in 0..records {
        let mut value = vec![0; if record == 0 { len } else { 10 }];
        value.chunks_mut(8).for_each(|piece| piece.copy_from_slice(&numbers.draw().to_le_bytes()[..piece.len()]));
        builder.append(1_700_000_000_000 + seed as i64 + record as i64, None, Some(&value), &[]).unwrap();
    }
    if let Some((id, sequence)) = producer {
        builder.set_producer(id, 0, sequence);
    }
    builder.build().to_vec()
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// Runs a test on an executor of its own.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    glommio::LocalExecutor::default().run(async { test().await });
}
