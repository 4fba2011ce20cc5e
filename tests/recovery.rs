//! Recovery of stores that were written by the store's rules, whole and after a crash at any moment.

mod crash;

use corelane::log::files::StoreFiles;
use corelane::types::{TopicId, TopicPartition};

use crash::check::{self, Acknowledged};
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

    // And then one again.
    let mut shards = open(&mut image, 1, 3, bug)?;
    some_appends(&mut image, &mut shards[0], 2, &mut sequence);
    Ok(image)
}

#[test]
fn a_whole_life_recovers() {
    let mut image = whole_life(None).unwrap();
    let events = image.events.take().unwrap();
    let mut acknowledged = Acknowledged::new();
    let result = check::enumerate(&Image::default(), &events, 0, 1, |_, so_far, _| {
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

/// Crashes a life of a store after each of its events, in so many random ways each.
fn crash_everywhere(bug: Option<Bug>, ways: u64, seed: u64) -> Result<check::Counts, String> {
    let mut image = whole_life(bug)?;
    let events = image.events.take().unwrap();
    let result = check::enumerate(&Image::default(), &events, ways, seed, |image, acknowledged, at| {
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
