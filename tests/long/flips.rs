//! Flips single bits in a store that a real broker wrote, a hundred at a time, each in another file or far from the others, and has `inspect verify` find them.
//!
//! A flip is *named* when verify reports damage in its file at the place of the structure that holds it; where the byte has no meaning (padding behind a
//! batch, a group or a checkpoint; blocks allocated ahead; groups that a checkpoint has made superfluous) nothing needs to be said. What has a
//! meaning is worked out from the undamaged store. Now and then a broker is started on a damaged copy: it must serve every batch as it was written, or refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use corelane::batch::{BatchHeader, BatchIter, check_stored};
use corelane::limits::BLOCK;
use corelane::log::checkpoint;
use corelane::log::file_header::{self, CheckpointHeader, GenerationRecord};
use corelane::log::index::{INDEX_ENTRY_LEN, entry_position};
use corelane::log::inspect::{VerifyReport, inspect_segment, verify};
use corelane::log::journal::{parse_group, peek_group};
use corelane::log::paths::{self, PartitionFile};
use corelane::request::{Code, Fetch, FetchPartition, ReadFrom, Request, Response};
use corelane::shard::blocking_files::BlockingFiles;
use corelane::types::{Offset, TopicPartition};

use crate::crash::Numbers;
use crate::harness::{Check, Entry, Round};
use crate::support::{Broker, Connection, batch_of};

/// As registered. The short form has a smaller store: see [`Flips::start`].
pub const ENTRY: Entry = Entry {
    name: "flips",
    about: "random bit flips in a store of 1 GiB, 100 a round",
    short_rounds: 3,
    start: || Box::new(Flips::default()),
};

/// Flips of a round.
const FLIPS: usize = 100;
/// Partitions of the store.
const PARTITIONS: u32 = 6;
/// Bytes appended to the long form's store, and the short one's.
const BYTES: (u64, u64) = (1 << 30, 48 << 20);
/// Flips that a broker is started with.
const SERVED_FLIPS: usize = 3;
/// A broker is started on a damaged copy in every so many rounds.
const SERVED_EVERY: u64 = 25;

/// The store, made in the first round.
#[derive(Default)]
struct Flips {
    store: Option<Store>,
}

struct Store {
    dir: tempfile::TempDir,
    /// Below `dir`: every file and its length.
    files: Vec<(String, u64)>,
    len: u64,
    meaning: BTreeMap<String, Vec<Piece>>,
    /// What the broker was given, by partition and offset: the CRC.
    written: BTreeMap<TopicPartition, BTreeMap<Offset, u32>>,
}

/// Bytes of a file that mean something, together.
#[derive(Clone, Debug)]
struct Piece {
    bytes: Range<u64>,
    what: &'static str,
}

impl Check for Flips {
    fn round(&mut self, round: &mut Round<'_>) -> Result<(), String> {
        if self.store.is_none() {
            self.store = Some(Store::make(if round.is_short { BYTES.1 } else { BYTES.0 })?);
        }
        let store = self.store.as_ref().expect("just made");
        let mut numbers = Numbers(round.seed);
        let flips = store.choose(&mut numbers);
        flips.iter().try_for_each(|flip| store.flip(flip))?;
        let outcome = store.look(&flips, round);
        // Two flips of a bit are none. A broker is shown a few only: it is to have something left to serve.
        let (few, rest) = flips.split_at(flips.len().min(SERVED_FLIPS));
        rest.iter().try_for_each(|flip| store.flip(flip))?;
        let served = match round.number % SERVED_EVERY {
            0 if outcome.is_ok() => store.serve_damaged(round),
            _ => Ok(()),
        };
        few.iter().try_for_each(|flip| store.flip(flip))?;
        outcome.and(served)
    }
}

/// One bit.
#[derive(Clone, Debug)]
struct Flip {
    file: String,
    at: u64,
    bit: u8,
}

impl Store {
    /// A stopped store with everything in it.
    fn make(bytes: u64) -> Result<Store, String> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|e| e.to_string())?;
        let mut written: BTreeMap<TopicPartition, BTreeMap<Offset, u32>> = BTreeMap::new();
        let broker = Broker::start(dir.path(), &["--shards", "2"]);
        let topic = broker.connect().create(
            "flipped",
            PARTITIONS,
            &[("segment.bytes", "8388608"), ("max.message.bytes", "16777216"), ("retention.ms", "-1")],
        );
        let mut numbers = Numbers(11);
        let mut connections: Vec<Connection> =
            (0..PARTITIONS).map(|partition| broker.connect_owner(TopicPartition { topic, partition })).collect();
        let (mut appended, mut n) = (0, 0);
        while appended < bytes {
            let len = match n % 200 {
                100 => (8 << 20) + 100_000,
                at if at % 20 == 7 => 700_000,
                at if at % 20 == 9 => 140_000,
                at if at % 3 == 0 => 90_000,
                _ => 200 + numbers.below(4_000) as usize,
            };
            let partition = TopicPartition { topic, partition: n % PARTITIONS };
            let mut value = vec![0; len];
            value.chunks_exact_mut(8).for_each(|piece| piece.copy_from_slice(&numbers.draw().to_le_bytes()));
            let batch = batch_of([&value]);
            let crc = BatchHeader::parse(&batch).map_err(|e| e.to_string())?.crc;
            let result = connections[partition.partition as usize].produce(partition, &batch);
            let offset = result.outcome.map_err(|refusal| refusal.to_string())?.base_offset;
            written.entry(partition).or_default().insert(offset, crc);
            appended += batch.len() as u64;
            n += 1;
        }
        drop(connections);
        let code = broker.stop();
        if code != 0 {
            return Err(format!("the broker ends with {code}"));
        }
        let mut files = Vec::new();
        list(dir.path(), "", &mut files)?;
        files.sort();
        let report = report(dir.path())?;
        if !report.damage.is_empty() || !report.ambiguous.is_empty() {
            return Err(format!("the undamaged store: {report:?}"));
        }
        let meaning = meaning(dir.path(), &files)?;
        let len = files.iter().map(|(_, len)| len).sum();
        Ok(Store { dir, files, len, meaning, written })
    }

    /// Three of four at random over all bytes, the fourth over all files, so that the small ones get their share. No two in one file, and one at
    /// most in what tells of all the others: the first would hide the second.
    fn choose(&self, numbers: &mut Numbers) -> Vec<Flip> {
        let (mut flips, mut taken) = (Vec::new(), BTreeSet::new());
        for number in 0..FLIPS * 20 {
            let (file, at) = if number % 4 == 3 {
                let (file, len) = &self.files[numbers.below(self.files.len() as u64) as usize];
                (file, numbers.below(*len))
            } else {
                self.nth_byte(numbers.below(self.len))
            };
            let flip = Flip { file: file.clone(), at, bit: numbers.below(8) as u8 };
            let place = match self.piece(&flip).map(|piece| piece.what) {
                // Where there is no meaning, nothing is hidden.
                None => None,
                // These tell how far everything else goes and what of it counts: alone, or not in this round.
                Some("generation" | "checkpoint") if flips.is_empty() => return vec![flip],
                Some("generation" | "checkpoint") => continue,
                Some("journal group" | "last journal group") => Some("a group".to_string()),
                Some(_) => Some(file.clone()),
            };
            if place.is_none_or(|place| taken.insert(place)) {
                flips.push(flip);
            }
            if flips.len() == FLIPS {
                break;
            }
        }
        flips
    }

    fn nth_byte(&self, mut n: u64) -> (&String, u64) {
        for (file, len) in &self.files {
            if n < *len {
                return (file, n);
            }
            n -= len;
        }
        unreachable!("it is within all files together")
    }

    fn piece(&self, flip: &Flip) -> Option<&Piece> {
        self.meaning.get(&flip.file)?.iter().find(|piece| piece.bytes.contains(&flip.at))
    }

    fn flip(&self, flip: &Flip) -> Result<(), String> {
        let path = self.dir.path().join(&flip.file);
        let change = || {
            let file = fs::File::options().read(true).write(true).open(&path)?;
            let mut byte = [0];
            file.read_exact_at(&mut byte, flip.at)?;
            file.write_all_at(&[byte[0] ^ (1 << flip.bit)], flip.at)?;
            file.sync_data()
        };
        change().map_err(|e: std::io::Error| format!("{}: {e}", path.display()))
    }

    /// Whether verify names each flip.
    fn look(&self, flips: &[Flip], round: &mut Round<'_>) -> Result<(), String> {
        let report = report(self.dir.path())?;
        for flip in flips {
            let Some(piece) = self.piece(flip) else {
                round.count("without meaning", 1);
                continue;
            };
            let named = report.damage.iter().any(|damage| damage.file == flip.file);
            let doubtful = report.ambiguous.iter().any(|damage| damage.file == flip.file);
            match (named, doubtful) {
                (true, _) => round.count(&format!("named: {}", piece.what), 1),
                // Of two slots one holds, and the last group of a journal may be torn: reported all the same.
                (false, true) if matches!(piece.what, "identity" | "checkpoint" | "last journal group" | "catalogue") => {
                    round.count(&format!("reported as ambiguous: {}", piece.what), 1);
                }
                _ => return Err(format!("{flip:?} in {piece:?} is not named: {:?}", report.damage)),
            }
        }
        let known: BTreeSet<&str> = flips.iter().map(|flip| flip.file.as_str()).collect();
        if let Some(wrong) =
            report.damage.iter().find(|damage| !known.contains(damage.file.as_str()) && !is_consequence(&damage.file, flips))
        {
            return Err(format!("damage where nothing was flipped: {wrong}"));
        }
        round.count("flips", flips.len() as u64);
        Ok(())
    }

    /// Starts a broker on a copy: what it serves is what was written.
    fn serve_damaged(&self, round: &mut Round<'_>) -> Result<(), String> {
        let copy = round.scratch.join("copy");
        for (file, _) in &self.files {
            let to = copy.join(file);
            fs::create_dir_all(to.parent().expect("a file is in a directory")).map_err(|e| e.to_string())?;
            fs::copy(self.dir.path().join(file), &to).map_err(|e| e.to_string())?;
        }
        let Ok(broker) = Broker::try_start(&copy, &["--shards", "2"]) else {
            round.count("refused to start", 1);
            return Ok(());
        };
        for (partition, written) in &self.written {
            let mut connection = broker.connect_owner(*partition);
            for (offset, crc) in written {
                match fetch(&mut connection, *partition, *offset) {
                    Ok(bytes) => {
                        let Some(Ok((header, batch))) = BatchIter::new(&bytes).next() else {
                            return Err(format!("{partition} at {offset}: nothing, and no error"));
                        };
                        if check_stored(batch).is_err() || (header.base_offset, header.crc) != (*offset, *crc) {
                            return Err(format!("{partition} at {offset}: served {header:?}, written was CRC {crc}"));
                        }
                        round.count("batches served", 1);
                    }
                    Err(Code::OffsetOutOfRange) => return Err(format!("{partition} at {offset}: cut off silently")),
                    Err(_) => round.count("batches refused", 1),
                }
            }
        }
        broker.kill();
        Ok(())
    }
}

fn fetch(connection: &mut Connection, partition: TopicPartition, offset: Offset) -> Result<bytes::Bytes, Code> {
    let wanted = FetchPartition { partition, offset, max_bytes: 1, leader_epoch: None };
    let fetch = Fetch { max_wait_ms: 0, min_bytes: 1, max_bytes: 1, partitions: vec![wanted], from: ReadFrom::Leader };
    match connection.ask(&Request::Fetch(fetch), &[]) {
        (Response::Fetch(mut results), payload) => results.remove(0).outcome.map(|_| payload).map_err(|refusal| refusal.code),
        (Response::Refused(refusal), _) => Err(refusal.code),
        (other, _) => panic!("{other:?}"),
    }
}

/// An index is held against its segment, and a partition's files against checkpoints: damage in one may show in the other.
fn is_consequence(file: &str, flips: &[Flip]) -> bool {
    let partition = paths::parent(file);
    flips.iter().any(|flip| paths::parent(&flip.file) == partition)
}

fn report(dir: &Path) -> Result<VerifyReport, String> {
    verify(&mut BlockingFiles::read_only(dir, true), &mut |_| ()).map_err(|e| e.to_string())
}

fn list(root: &Path, below: &str, files: &mut Vec<(String, u64)>) -> Result<(), String> {
    let entries = fs::read_dir(root.join(below)).map_err(|e| e.to_string())?;
    for entry in entries {
        let entry = entry.map_err(|e| e.to_string())?;
        let path = PathBuf::from(below).join(entry.file_name());
        let path = path.to_string_lossy().into_owned();
        let metadata = entry.metadata().map_err(|e| e.to_string())?;
        if metadata.is_dir() {
            list(root, &path, files)?;
        } else if metadata.len() > 0 {
            files.push((path, metadata.len()));
        }
    }
    Ok(())
}

/// What means something, file by file, in a store that was stopped in order: everything is in segments, and the newest checkpoints say how much.
fn meaning(dir: &Path, files: &[(String, u64)]) -> Result<BTreeMap<String, Vec<Piece>>, String> {
    let bytes = |file: &str| fs::read(dir.join(file)).map_err(|e| format!("{file}: {e}"));
    let record: GenerationRecord = file_header::decode(&bytes(paths::GENERATION)?).map_err(|e| e.to_string())?;
    let mut meaning: BTreeMap<String, Vec<Piece>> = BTreeMap::new();
    let mut add = |file: &str, bytes: Range<u64>, what| meaning.entry(file.into()).or_default().push(Piece { bytes, what });
    // By shard: the newest checkpoint's first group that is needed.
    let mut needed: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    let mut states = BTreeMap::new();
    for (file, _) in files.iter().filter(|(file, _)| file.starts_with(paths::CHECKPOINT_DIR)) {
        let content = bytes(file)?;
        let header: CheckpointHeader = file_header::decode(&content).map_err(|e| e.to_string())?;
        let (_, body) = checkpoint::decode(&content).map_err(|e| e.to_string())?;
        add(file, 0..BLOCK as u64 + header.body_len, "checkpoint");
        let newest = needed.entry(header.shard).or_insert((0, 0));
        if body.sequence >= newest.0 {
            *newest = (body.sequence, body.replay_from);
            states.extend(body.partitions.into_iter().map(|state| (state.partition, state)));
        }
    }
    let mut groups = Vec::new();
    for (file, len) in files {
        match file.as_str() {
            paths::META => add(file, 0..2 * BLOCK as u64, "identity"),
            paths::GENERATION => add(file, 0..BLOCK as u64, "generation"),
            paths::CATALOGUE => add(file, 0..*len, "catalogue"),
            _ if file.starts_with(paths::JOURNAL_DIR) => {
                add(file, 0..BLOCK as u64, "journal header");
                let content = bytes(file)?;
                for at in (BLOCK..content.len()).step_by(BLOCK) {
                    let Some(Ok((header, _))) = peek_group(&content[at..]).map(|_| parse_group(&content[at..])) else { continue };
                    let from = needed.get(&u32::from(header.shard)).map_or(0, |(_, from)| *from);
                    if header.position == at as u64 && header.generation == record.generation && header.sequence >= from {
                        groups.push((header.shard, header.sequence, file, at as u64..at as u64 + u64::from(header.length)));
                    }
                }
            }
            _ => {}
        }
    }
    groups.sort_by_key(|(shard, sequence, ..)| (*shard, *sequence));
    for (at, (shard, _, file, bytes)) in groups.iter().enumerate() {
        let is_last = groups.get(at + 1).is_none_or(|(next, ..)| next != shard);
        add(file, bytes.clone(), if is_last { "last journal group" } else { "journal group" });
    }
    for state in states.values() {
        for segment in &state.segments {
            let path = segment.path(state.partition);
            add(&path, 0..BLOCK as u64, "segment header");
            let what = if segment.adopted { "adopted batch" } else { "batch" };
            let mut files = BlockingFiles::read_only(dir, true);
            let mut batches = Vec::new();
            inspect_segment(&mut files, &path, &mut |line| batches.push((line.position, line.header.total_len())))
                .map_err(|e| e.to_string())?;
            for (position, len) in batches.into_iter().filter(|(position, _)| *position < segment.valid_end) {
                add(&path, position..position + len as u64, what);
            }
            let index = segment.index_path(state.partition);
            if segment.index_entries > 0 {
                add(&index, 0..BLOCK as u64, "index header");
                add(&index, BLOCK as u64..entry_position(segment.index_entries as usize - 1) + INDEX_ENTRY_LEN as u64, "index entry");
            }
        }
    }
    let is_known = |file: &str| match file.rsplit('/').next().and_then(paths::parse_partition_file) {
        Some(PartitionFile::Segment(..)) => meaning.contains_key(file),
        _ => true,
    };
    match files.iter().find(|(file, _)| !is_known(file)) {
        Some((file, _)) => Err(format!("{file} is in no checkpoint")),
        None => Ok(meaning),
    }
}
