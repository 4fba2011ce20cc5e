//! Recovery of stores that were written by the store's rules, whole and after a crash at any moment.

mod crash;

use std::collections::BTreeMap;

use corelane::cluster::{Command, command_log};
use corelane::log::files::StoreFiles;
use corelane::log::inspect::{VerifyReport, verify};
use corelane::log::{identity, paths};
use corelane::types::{TopicId, TopicPartition};

use crash::Numbers;
use crash::check::{self, Acknowledged, Kept};
use crash::disk::Image;
use crash::writer::{Bug, Shard};

fn catalogue() -> Vec<TopicPartition> {
    let topic = |n| TopicId([n; 16]);
    vec![
        TopicPartition { topic: topic(0x11), partition: 0 },
        TopicPartition { topic: topic(0x11), partition: 1 },
        TopicPartition { topic: topic(0x22), partition: 0 },
    ]
}

fn open(image: &mut Image, shards: u32, salt: u64, bug: Option<Bug>) -> Result<Vec<Shard>, String> {
    let store = check::open(image, &catalogue(), shards, salt)?;
    if store.report.damage.is_empty() { Ok(Shard::all(store, bug)) } else { Err(format!("damage: {:?}", store.report.damage)) }
}

/// Appends to every partition of a shard, in several groups.
fn some_appends(image: &mut Image, shard: &mut Shard, rounds: usize, sequence: &mut i32) {
    for round in 0..rounds {
        for at in 0..shard.partitions.len() {
            let producer = (at == 0).then_some((7, 0, *sequence));
            *sequence += i32::from(at == 0) * 2;
            let batch = Shard::batch(2, 300 + 700 * (round % 3), 1000 + round as i64, round as u8, producer);
            shard.append(image, at, batch);
        }
        shard.commit(image);
    }
}

/// A life of a store that does everything once, over several generations with different numbers of shards. An error: a broken rule was seen on the way.
fn whole_life(bug: Option<Bug>) -> Result<Image, String> {
    let mut image = Image::recording();
    let mut sequence = 0;
    let mut shards = open(&mut image, 1, 1, bug)?;
    let shard = &mut shards[0];
    some_appends(&mut image, shard, 4, &mut sequence);
    shard.mark(&mut image);
    shard.flush(&mut image, 0, false);
    shard.checkpoint(&mut image);
    some_appends(&mut image, shard, 3, &mut sequence);
    shard.flush(&mut image, 0, true);
    some_appends(&mut image, shard, 2, &mut sequence);
    shard.append_large(&mut image, 1, Shard::batch(1, 20_000, 5000, 9, None));
    some_appends(&mut image, shard, 2, &mut sequence);
    shard.roll(&mut image, 1);
    some_appends(&mut image, shard, 2, &mut sequence);
    shard.carry(&mut image, 2);
    shard.flush(&mut image, 1, false);
    shard.checkpoint(&mut image);
    shard.adopt(&mut image, 2, Shard::batch(3, 9_000, 6000, 8, None));
    some_appends(&mut image, shard, 2, &mut sequence);

    // The process dies here; the next run has two shards.
    let mut shards = open(&mut image, 2, 2, bug)?;
    for shard in &mut shards {
        some_appends(&mut image, shard, 3, &mut sequence);
        for at in 0..shard.partitions.len() {
            shard.append_large(&mut image, at, Shard::batch(1, 30_000, 7000, 5, None));
        }
        some_appends(&mut image, shard, 1, &mut sequence);
        for lap in 0..3 {
            some_appends(&mut image, shard, 8, &mut sequence);
            for at in 0..shard.partitions.len() {
                shard.flush(&mut image, at, lap == 1);
            }
            shard.checkpoint(&mut image);
        }
        some_appends(&mut image, shard, 1, &mut sequence);
    }

    // Laps of the journal while one partition is not flushed at all.
    let mut shards = open(&mut image, 1, 3, bug)?;
    let shard = &mut shards[0];
    some_appends(&mut image, shard, 1, &mut sequence);
    for lap in 0..8 {
        for _ in 0..4 {
            shard.append(&mut image, 0, Shard::batch(1, 9_000, 8000 + lap, 4, None));
            shard.commit(&mut image);
        }
        shard.flush(&mut image, 0, false);
        shard.checkpoint(&mut image);
    }

    // And then one again.
    let mut shards = open(&mut image, 1, 4, bug)?;
    some_appends(&mut image, &mut shards[0], 2, &mut sequence);
    Ok(image)
}

#[test]
fn a_whole_life_recovers() {
    let mut image = whole_life(None).unwrap();
    let events = image.events.take().unwrap();
    let mut acknowledged = Acknowledged::new();
    let result = check::enumerate(&Image::default(), &events, (0, 1), 1, |_, so_far, _| {
        acknowledged = so_far.clone();
        Ok(())
    });
    result.unwrap();
    assert!(acknowledged.values().map(|batches| batches.len()).sum::<usize>() > 100);
    for shards in [1, 2, 5] {
        check::recover_and_compare(image.clone(), &catalogue(), shards, &acknowledged).unwrap();
    }
}

#[test]
fn an_empty_store_gets_its_first_generation() {
    let mut image = Image::default();
    let store = check::open(&mut image, &[], 3, 9).unwrap();
    assert_eq!((store.generation, store.shards.len(), store.next_journal_id), (1, 3, 1));
    let store = check::open(&mut image, &catalogue(), 2, 9).unwrap();
    assert_eq!((store.generation, store.report.partitions), (2, 3));
}

#[test]
fn unknown_files_are_set_aside_and_dropped_partitions_removed() {
    let mut image = Image::recording();
    let mut shards = open(&mut image, 1, 1, None).unwrap();
    some_appends(&mut image, &mut shards[0], 3, &mut 0);
    for path in ["notes.txt", "journal/0000000000000001.journal.bak", "topics/x", "topics/11111111-1111-1111-1111-111111111111/0/old.log"] {
        image.put(path, b"keep me");
    }
    image.create_dir("lost+found").unwrap();
    let kept: Vec<TopicPartition> = catalogue()[..1].to_vec();
    let store = check::open(&mut image, &kept, 1, 2).unwrap();
    assert_eq!(store.report.damage.len(), 4, "{:?}", store.report.damage);
    let in_quarantine = image.files().filter(|(path, _)| path.starts_with("quarantine/")).count();
    assert_eq!(in_quarantine, 4);
    let topics: Vec<_> = image.files().filter(|(path, _)| path.starts_with("topics/")).map(|(path, _)| path.to_string()).collect();
    assert_eq!(topics.len(), 2, "log and index of the partition that is left: {topics:?}");
}

/// The very first write of a store, cut short: of the identity's block its bytes are there, of the zeros behind them not all.
#[test]
fn an_identity_that_was_written_in_part_is_read() {
    let mut image = Image::default();
    check::open(&mut image, &[], 1, 9).unwrap();
    let whole = image.bytes(paths::META);
    let newest = identity::read(&mut image).unwrap().unwrap();
    let slot = (newest.sequence % 2) as usize * 4096;
    let mut image = Image::default();
    image.put(paths::META, &[&vec![0; slot], &whole[slot..slot + 512]].concat());
    assert_eq!(identity::read(&mut image).unwrap(), Some(newest));
    assert_eq!(verify(&mut image, &mut |_| ()).unwrap().damage, []);
}

/// Crashes a life of a store after each of its events, in so many random ways each.
fn crash_everywhere(bug: Option<Bug>, ways: u64, seed: u64) -> Result<check::Counts, String> {
    let mut image = whole_life(bug)?;
    let events = image.events.take().unwrap();
    let result = check::enumerate(&Image::default(), &events, (ways, 1), seed, |image, acknowledged, at| {
        let shards = 1 + (at % 3) as u32;
        check::recover_and_compare(image, &catalogue(), shards, acknowledged)
    });
    result.map_err(|loser| format!("{loser:?}"))
}

#[test]
fn nothing_acknowledged_is_lost_in_any_crash() {
    let seed = std::env::var("SEED").map_or(42, |seed| seed.parse().unwrap());
    let counts = crash_everywhere(None, 24, seed).unwrap();
    assert!(counts.images > 2500, "{counts:?}");
    for event in ["create", "create_dir", "write", "sync", "rename", "unlink", "allocate", "acknowledge"] {
        assert!(counts.by_event.get(event).is_some_and(|count| *count > 0), "no crash after {event}: {counts:?}");
    }
}

#[test]
fn every_broken_rule_is_seen() {
    for bug in [
        Bug::SkipSync,
        Bug::AcknowledgeEarly,
        Bug::OverwriteTailBlock,
        Bug::ReuseJournalEarly,
        Bug::SkipSegmentSync,
        Bug::SkipLargeSync,
        Bug::SkipNameSync,
    ] {
        let caught = (0..4).find_map(|seed| crash_everywhere(Some(bug), 12, seed).err());
        println!("{bug:?}: {caught:?}");
        assert!(caught.is_some(), "{bug:?} is not seen");
    }
}

/// One thing that a shard may do to one of its partitions.
fn random_step(image: &mut Image, shard: &mut Shard, numbers: &mut Numbers, sequences: &mut BTreeMap<TopicPartition, i32>) {
    let at = numbers.below(shard.partitions.len() as u64) as usize;
    let partition = shard.partitions[at].state.partition;
    let open = shard.partitions[at].state.segments.last().is_some_and(|last| !last.sealed);
    let small = |numbers: &mut Numbers, producer| {
        let (count, len) = (1 + numbers.below(4) as usize, 1 + numbers.below(3000) as usize);
        Shard::batch(count, len, numbers.below(1000) as i64, numbers.draw() as u8, producer)
    };
    match numbers.below(24) {
        0..=9 => {
            for _ in 0..1 + numbers.below(4) {
                let at = numbers.below(shard.partitions.len() as u64) as usize;
                let batch = small(numbers, None);
                shard.append(image, at, batch);
            }
            shard.commit(image);
        }
        10 => {
            let sequence = sequences.entry(partition).or_default();
            let batch = Shard::batch(3, 100, 50, 1, Some((9, 0, *sequence)));
            *sequence += 3;
            shard.append(image, at, batch);
            shard.commit(image);
        }
        11 => shard.append_large(image, at, Shard::batch(1, 9_000 + numbers.below(30_000) as usize, 70, 2, None)),
        12 => shard.adopt(image, at, Shard::batch(2, 3_000 + numbers.below(9_000) as usize, 80, 3, None)),
        13 if open && shard.partitions[at].state.segments.last().is_some_and(|last| last.end_offset > last.base_offset) => {
            shard.roll(image, at);
            shard.commit(image);
        }
        14..=15 => shard.flush(image, at, false),
        16 => shard.flush(image, at, true),
        17 => shard.carry(image, at),
        18..=19 => shard.checkpoint(image),
        20 => shard.mark(image),
        21..=22 if open => {
            let keep = shard.partitions[at].state.log_end;
            for _ in 0..1 + numbers.below(3) {
                let batch = small(numbers, None);
                shard.append(image, at, batch);
                shard.commit_silently(image);
            }
            if numbers.below(2) == 0 {
                // What comes after the cut may be a large one in its blocks.
                shard.append_large_silently(image, at, Shard::batch(1, 9_000 + numbers.below(30_000) as usize, 75, 4, None));
            }
            shard.truncate(image, at, keep);
        }
        23 => {
            // Retention moves it to the end of a segment, a client anywhere.
            let state = &shard.partitions[at].state;
            let sealed: Vec<_> = state.segments.iter().filter(|segment| segment.sealed).map(|s| s.end_offset).collect();
            let start = match sealed.is_empty() || numbers.below(2) == 0 {
                true => state.log_start + numbers.below((state.log_end - state.log_start) as u64 + 1) as i64,
                false => sealed[numbers.below(sealed.len() as u64) as usize],
            };
            shard.log_start(image, at, start);
        }
        _ => {}
    }
}

/// A life of random steps and restarts.
fn random_life(seed: u64, steps: usize) -> Image {
    let mut numbers = Numbers(seed);
    let mut image = Image::recording();
    let mut sequences = BTreeMap::new();
    for run in 0..1 + numbers.below(3) {
        let shards = 1 + numbers.below(2) as u32;
        let mut shards = open(&mut image, shards, 100 + run, None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        shards.retain(|shard| !shard.partitions.is_empty());
        for _ in 0..steps {
            let shard = numbers.below(shards.len() as u64) as usize;
            random_step(&mut image, &mut shards[shard], &mut numbers, &mut sequences);
        }
    }
    image
}

#[test]
fn random_lives_survive_random_crashes() {
    let lives: u64 = std::env::var("LIVES").map_or(6, |lives| lives.parse().unwrap());
    let first: u64 = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut images = 0;
    for seed in first..first + lives {
        let mut image = random_life(seed, 40);
        let events = image.events.take().unwrap();
        let result = check::enumerate(&Image::default(), &events, (6, 12), seed, |image, acknowledged, at| {
            images += 1;
            check::recover_and_compare(image, &catalogue(), 1 + (at % 3) as u32, acknowledged)
        });
        result.unwrap_or_else(|loser| panic!("seed {seed}: {loser:?}"));
    }
    assert!(images > 50 * lives, "{images} images of {lives} lives");
}

/// What was cut off is in the journal, and a later batch, whose bytes are in the segment alone, in the very blocks that it was in. A replay of the one must not write over the other.
#[test]
fn what_was_cut_is_not_written_over_what_came_after() {
    // The last one is more than a replay keeps in memory.
    for (before, cut, after) in [(1, 60_000, 60_000), (0, 9_000, 60_000), (5, 60_000, 9_000), (700, 9_000, 5_000_000)] {
        let mut image = Image::recording();
        let mut shards = open(&mut image, 1, 1, None).unwrap();
        let shard = &mut shards[0];
        some_appends(&mut image, shard, 3, &mut 0);
        let keep = shard.partitions[1].state.log_end;
        for _ in 0..before {
            shard.append(&mut image, 1, Shard::batch(1, 6_500, 60, 1, None));
            shard.commit_silently(&mut image);
        }
        shard.append_large_silently(&mut image, 1, Shard::batch(1, cut, 70, 2, None));
        shard.truncate(&mut image, 1, keep);
        shard.append_large(&mut image, 1, Shard::batch(1, after, 80, 3, None));
        some_appends(&mut image, shard, 1, &mut 6);
        let events = image.events.take().unwrap();
        let mut images = 0;
        let result = check::enumerate(&Image::default(), &events, (4, 8), 1, |image, acknowledged, _| {
            images += 1;
            check::recover_and_compare(image, &catalogue(), 1, acknowledged)
        });
        result.unwrap_or_else(|loser| panic!("{before}, {cut}, {after}: {loser:?}"));
        assert!(images > 20, "{images} images");
    }
}

type Logs = BTreeMap<TopicPartition, BTreeMap<i64, Kept>>;

/// Recovers a damaged image of which verify said `report`. What is served must be what was there; what is missing must be said.
fn recover_damaged(image: &Image, report: &VerifyReport, whole: &Logs) -> Result<(), String> {
    let named = !report.damage.is_empty();
    let mut recovered = image.clone();
    let store = match check::open(&mut recovered, &catalogue(), 1, 5) {
        Ok(store) => store,
        Err(_) if named => return Ok(()),
        Err(error) => return Err(format!("verify finds nothing, and {error}")),
    };
    let said = !store.report.damage.is_empty() || !store.report.torn.is_empty() || !report.ambiguous.is_empty();
    for partition in store.shards.iter().flatten() {
        let state = &partition.state;
        if state.quarantined {
            if store.report.damage.is_empty() {
                return Err(format!("{} is quarantined without a word", state.partition));
            }
            continue;
        }
        let logs = match check::read_partition(&recovered, state) {
            Ok(logs) => logs,
            // A read finds it, and verify has found it.
            Err(_) if named => continue,
            Err(error) => return Err(format!("verify finds nothing, and {error}")),
        };
        let before = &whole[&state.partition];
        if let Some((offset, kept)) = logs.iter().find(|(offset, kept)| before.get(offset) != Some(kept)) {
            return Err(format!("{} at {offset}: {kept:?} was {:?}", state.partition, before.get(offset)));
        }
        if report.damage.is_empty() && report.ambiguous.is_empty() && (logs.len() < before.len() || !store.report.torn.is_empty()) {
            return Err(format!("{}: verify finds nothing, and recovery is {:?}", state.partition, store.report));
        }
        if logs.len() < before.len() && !said {
            return Err(format!("{}: {} of {} batches, and nothing is said", state.partition, logs.len(), before.len()));
        }
        if logs.len() < before.len() && store.report.damage.is_empty() && store.report.torn.is_empty() {
            return Err(format!("{}: truncated with {:?} only", state.partition, report.ambiguous));
        }
    }
    Ok(())
}

/// A small store that holds every kind of file, with a live journal.
fn small_life() -> Image {
    let mut image = Image::default();
    let mut sequence = 0;
    let mut shards = open(&mut image, 1, 1, None).unwrap();
    let shard = &mut shards[0];
    (shard.journal_file, shard.allocation) = (36 * 1024, 8 * 1024);
    some_appends(&mut image, shard, 2, &mut sequence);
    shard.flush(&mut image, 0, true);
    shard.checkpoint(&mut image);
    shard.append_large(&mut image, 1, Shard::batch(1, 9_000, 5000, 9, None));
    shard.roll(&mut image, 1);
    some_appends(&mut image, shard, 1, &mut sequence);
    shard.adopt(&mut image, 2, Shard::batch(3, 3_000, 6000, 8, None));
    shard.flush(&mut image, 1, true);
    shard.flush(&mut image, 2, false);
    shard.checkpoint(&mut image);
    some_appends(&mut image, shard, 2, &mut sequence);
    shard.mark(&mut image);
    // The writer has no command log: one as a broker makes it.
    let mut log = command_log::encode_header(check::CLUSTER, &command_log::Snapshot::default()).to_vec();
    for (at, topic) in [0x11, 0x22].into_iter().enumerate() {
        let (id, name) = (TopicId([topic; 16]), format!("topic-{topic}"));
        let create = Command::CreateTopic { id, name, partitions: 2 - at as u32, replication_factor: 1, config: vec![] };
        log.extend(command_log::encode_record(2 * at as u64 + 1, &create).unwrap());
        log.extend(command_log::encode_record(2 * at as u64 + 2, &Command::DurableMark).unwrap());
    }
    image.put(paths::CATALOGUE, &log);
    image
}

/// What is said of a flip.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Said {
    /// Its file is named as damaged.
    Named,
    /// Its file is named, as what a crash may have left: a slot of two, the last group of a journal, the last mark of the catalogue.
    Ambiguous,
    /// Nothing: recovery makes of it what it makes of the undamaged store.
    Nothing,
}

fn what_is_said(damaged: &Image, path: &str, whole: &Logs) -> Result<Said, String> {
    let report = verify(&mut damaged.clone(), &mut |_| ()).map_err(|error| error.to_string())?;
    recover_damaged(damaged, &report, whole)?;
    if report.damage.iter().any(|damage| damage.file == path) {
        return Ok(Said::Named);
    }
    if !report.damage.is_empty() {
        return Err(format!("another file is blamed: {:?}", report.damage));
    }
    if report.ambiguous.iter().any(|damage| damage.file == path) {
        return Ok(Said::Ambiguous);
    }
    Ok(Said::Nothing)
}

fn kind_of(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("journal") => "journal",
        Some("log") => "segment",
        Some("index") => "index",
        Some("checkpoint") => "checkpoint",
        _ if path == paths::META => "identity",
        _ if path == paths::GENERATION => "generation",
        _ if path == paths::CATALOGUE => "catalogue",
        _ => panic!("{path} is of no kind"),
    }
}

/// The same for a log of commands: all of them, or an error, or all but a mark.
fn read_commands(bytes: &[u8], whole: &[(u64, Command)]) -> Result<(), String> {
    let Ok(log) = command_log::decode_log(bytes) else { return Ok(()) };
    let lost = &whole[log.commands.len().min(whole.len())..];
    match log.commands[..] == whole[..whole.len() - lost.len()] && lost.iter().all(|(_, command)| *command == Command::DurableMark) {
        true => Ok(()),
        false => Err(format!("{:?} are lost of {whole:?}", lost)),
    }
}

/// A follower's log that was cut within a block, and whose segment was sealed there, has the batch that went behind its last one.
#[test]
fn what_a_cut_left_behind_is_told_from_damage() {
    let image = small_life();
    let store = check::open(&mut image.clone(), &catalogue(), 1, 5).unwrap();
    let partitions = store.shards.iter().flatten().map(|partition| &partition.state);
    let mut sealed = partitions.flat_map(|state| state.segments.iter().map(|segment| (state.partition, *segment)));
    let has_room = |end: u64| end.next_multiple_of(4096) - end >= 16;
    let (partition, segment) = sealed.find(|(_, segment)| segment.sealed && !segment.adopted && has_room(segment.valid_end)).unwrap();
    let path = segment.path(partition);
    let damage_with = |first: [u8; 8]| {
        let mut image = image.clone();
        image.file_mut(&path).write(segment.valid_end, &[first, [7; 8]].concat());
        verify(&mut image, &mut |_| ()).unwrap().damage
    };
    assert_eq!(damage_with(segment.end_offset.to_be_bytes()), []);
    for other in [segment.end_offset + 1, segment.end_offset ^ 0x0100, 0, -1] {
        let damage = damage_with(other.to_be_bytes());
        assert!(damage.len() == 1 && damage[0].file == path, "{other}: {damage:?}");
    }
}

#[test]
fn a_flip_in_every_byte_is_named_or_without_meaning() {
    let image = small_life();
    let mut recovered = image.clone();
    let store = check::open(&mut recovered, &catalogue(), 1, 5).unwrap();
    let states: Vec<_> = store.shards.iter().flatten().map(|partition| &partition.state).collect();
    assert!(states.iter().any(|state| !state.producers.is_empty()), "a producer is remembered");
    assert!(states.iter().any(|state| state.segments.iter().any(|segment| segment.adopted)), "a segment was adopted");
    let whole: Logs = states.iter().map(|state| (state.partition, check::read_partition(&recovered, state).unwrap())).collect();
    let commands = command_log::decode_log(&image.bytes(paths::CATALOGUE)).unwrap().commands;
    let report = verify(&mut image.clone(), &mut |_| ()).unwrap();
    assert!(report.damage.is_empty() && report.ambiguous.is_empty(), "{report:?}");

    let places: Vec<(&str, u64)> = image.files().flat_map(|(path, data)| (0..data.len()).map(move |at| (path, at))).collect();
    let sizes: BTreeMap<&str, u64> = image.files().map(|(path, data)| (path, data.len())).collect();
    println!("{} bytes: {sizes:#?}", places.len());
    let flip = &|(path, at): (&str, u64)| {
        let mut damaged = image.clone();
        let data = damaged.file_mut(path);
        let mut byte = [0];
        assert_eq!(data.read(at, &mut byte), 1);
        // Every bit has its turn.
        data.write(at, &[byte[0] ^ (1 << (at % 8))]);
        let said = what_is_said(&damaged, path, &whole).unwrap_or_else(|error| panic!("{path} at {at}: {error}"));
        if path == paths::CATALOGUE {
            read_commands(&damaged.bytes(path), &commands).unwrap_or_else(|error| panic!("{path} at {at}: {error}"));
        }
        let kind = kind_of(path);
        // These have no padding: the checksum covers their blocks. A segment of which nothing is flushed needs no file yet.
        let log = image.data(&path.replace(".index", ".log")).expect("an index has its segment");
        let is_header = at < 4096 && log.written_blocks().any(|block| block == 4096);
        let silent = said == Said::Nothing && (matches!(kind, "identity" | "generation" | "catalogue") || is_header);
        assert!(!silent, "{path} at {at}: nothing is said");
        // Of these one flip leaves no doubt.
        assert!(said != Said::Ambiguous || !matches!(kind, "generation" | "segment" | "index"), "{path} at {at} is ambiguous");
        (kind, said)
    };
    let mut counts: BTreeMap<(&str, Said), u64> = BTreeMap::new();
    std::thread::scope(|scope| {
        let halves = [0, 1].map(|first| {
            let places = &places;
            scope.spawn(move || {
                let mut counts: BTreeMap<(&str, Said), u64> = BTreeMap::new();
                places.iter().skip(first).step_by(2).for_each(|place| *counts.entry(flip(*place)).or_default() += 1);
                counts
            })
        });
        for half in halves {
            half.join().expect("every flip is seen").into_iter().for_each(|(key, count)| *counts.entry(key).or_default() += count);
        }
    });
    println!("{} bytes: {counts:#?}", places.len());
    for kind in ["identity", "generation", "catalogue", "journal", "checkpoint", "segment", "index"] {
        let seen = |said| counts.get(&(kind, said)).is_some_and(|count| *count > 0);
        assert!(seen(Said::Named) || seen(Said::Ambiguous), "no flip in {kind} was ever said");
    }
    assert!(counts.contains_key(&("journal", Said::Ambiguous)), "the last group of a journal may be torn");
}
