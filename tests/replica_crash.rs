//! Crashes of a follower's disk after every event of a life in which its log is cut again and again: what is recovered is the old log or the cut one, never a mixture, and an epoch that
//! was promised is known.
//!
//! The follower is the real store; its leaders are stores too, and their disks are not looked at. Broken followers are made of the whole one's trace.

mod crash;
mod replicas;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use corelane::batch::BatchIter;
use corelane::log::journal::{ENTRY_HEADER_LEN, Entries, EntryKind, GROUP_HEADER_LEN, GroupHeader, entry_space, parse_group, seal_group};
use corelane::log::paths;
use corelane::log::recovery::{OpenRequest, open_store};
use corelane::shard::role::Role;
use corelane::shard::trace::{Trace, TraceEvent};
use corelane::shard::truncation::Truncation;
use corelane::types::Offset;

use crash::check;
use crash::disk::{CrashDisk, Image, Loss};
use replicas::{CLUSTER, PARTITION, Running, batch, run};

/// Random crashes after each event.
const WAYS: u64 = 12;
/// Of so many images one is recovered twice.
const TWICE_ONE_IN: u64 = 10;

/// Appends to a leader; `salt` tells the values of different leaders apart.
async fn fill(leader: &Running, lens: &[usize], salt: u64) {
    for (n, len) in lens.iter().enumerate() {
        let from = leader.end() as u64;
        leader.produce(&batch(salt * 100_000 + from * 100 + n as u64, 2, *len, None)).await;
    }
    leader.settle().await;
}

/// Cuts the follower back to `to` for a leader of `epoch`, and follows it.
async fn cut(follower: &Running, to: Offset, epoch: i32) {
    follower.store.set_role(&follower.cell, Role::Unassigned).unwrap();
    let asked = Truncation { offset: to, epoch, epoch_start: to, unclean: false };
    follower.store.truncate(&follower.cell, asked).await.unwrap();
    follower.store.mark(&format!("epoch {epoch}"));
    follower.store.set_role(&follower.cell, Role::Follower(epoch)).unwrap();
}

/// A leader of `epoch` with the first `common` records of another one.
async fn next_leader(from: &Running, dir: &Path, common: Offset, epoch: i32) -> Running {
    let next = Running::open(dir, None).await;
    let Role::Leader(present) = from.cell.role() else { panic!("it leads") };
    let (_, start) = from.cell.machine.borrow().epoch_start();
    next.follow(present, start).await;
    while next.end() < common {
        if from.segment(next.end()).is_rewritten() {
            from.ship(&next).await;
            continue;
        }
        let mut cursor = from.store.follower_cursor(&from.cell, next.end()).await.unwrap();
        for part in from.read(&mut cursor, 1).await {
            next.take(present, &part, 0).await.unwrap();
        }
    }
    assert_eq!(next.end(), common);
    next.lead(epoch).await;
    next
}

/// What a follower does to its disk.
fn life() -> Vec<TraceEvent> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("trace");
    let trace = Arc::new(Trace::open(&path).unwrap());
    run(async || {
        let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut own = tempfile::tempdir().unwrap();
        let follower = Running::open(own.path(), Some(trace.clone())).await;
        let one = Running::open(dirs[0].path(), None).await;
        one.lead(1).await;
        follower.follow(1, 0).await;
        follower.store.mark("epoch 1");
        fill(&one, &[100, 700, 3_000, 5_000, 900, 140_000, 50], 1).await;
        one.replicate(&follower, 1 << 20).await;
        let two = next_leader(&one, dirs[1].path(), one.end(), 2).await;
        // Over three segments, one of which begins behind the common end.
        fill(&one, &[150_000, 60, 160_000, 2_000, 150_000, 70, 4_096], 1).await;
        one.replicate(&follower, 1 << 20).await;
        let common = two.end();
        fill(&two, &[40, 900, 130_000, 6_000], 2).await;
        cut(&follower, common, 2).await;
        two.replicate(&follower, 1 << 20).await;
        // Within a block, twice, with nothing flushed in between but by the cut itself.
        let three = next_leader(&two, dirs[2].path(), common + 4, 3).await;
        fill(&three, &[300, 200], 3).await;
        cut(&follower, common + 4, 3).await;
        three.replicate(&follower, 1 << 20).await;
        follower.checkpoint().await;
        fill(&three, &[500, 170_000, 160_000, 90], 4).await;
        three.replicate(&follower, 1 << 20).await;
        follower.flush().await;
        follower.checkpoint().await;
        let follower = follower.restart(&mut own, Some(trace.clone())).await;
        follower.follow(3, common + 4).await;
        // A restart, and then a cut of what is below the checkpoint.
        let four = next_leader(&three, dirs[3].path(), common + 6, 4).await;
        fill(&four, &[800, 20, 150_000, 160_000, 30], 5).await;
        cut(&follower, common + 6, 4).await;
        four.replicate(&follower, 1 << 20).await;
        follower.flush().await;
        follower.checkpoint().await;
        assert_eq!(follower.end(), four.end());
    });
    crash::trace::parse(&std::fs::read(&path).unwrap()).into_iter().map(|(_, event)| event).collect()
}

/// Takes the segment that goes on where the follower ends as a file; from then on each of its batches must be there.
async fn ship(leader: &Running, follower: &Running, trace: &Trace) {
    let bytes = leader.segment_bytes(follower.end()).await;
    leader.ship(follower).await;
    for (header, _) in BatchIter::new(&bytes).map(Result::unwrap) {
        let count = header.record_count as u32;
        trace.record(&TraceEvent::Acknowledge { partition: PARTITION, base_offset: header.base_offset, count, crc: header.crc });
    }
}

/// What a follower does to its disk that catches up by whole segments.
fn life_of_segments() -> Vec<TraceEvent> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("trace");
    let trace = Arc::new(Trace::open(&path).unwrap());
    run(async || {
        let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut own = tempfile::tempdir().unwrap();
        let follower = Running::open(own.path(), Some(trace.clone())).await;
        let one = Running::open(dirs[0].path(), None).await;
        one.lead(1).await;
        follower.follow(1, 0).await;
        follower.store.mark("epoch 1");
        for n in 0..24 {
            one.produce(&batch(n, 2, 60_000 + 100 * n as usize, Some((9, 2 * n as i32)))).await;
        }
        one.settle().await;
        one.flush().await;
        // The first one as batches, which are in the journal only when the next one comes as a file.
        let mut cursor = one.store.follower_cursor(&one.cell, 0).await.unwrap();
        while follower.end() < one.segment(0).end_offset {
            follower.take(1, &one.read(&mut cursor, 1).await[0], 0).await.unwrap();
        }
        ship(&one, &follower, &trace).await;
        ship(&one, &follower, &trace).await;
        follower.checkpoint().await;
        // A stream that ends in the middle, and a rewritten segment.
        let bytes = one.segment_bytes(follower.end()).await;
        follower.receive(follower.end(), &bytes[..100_000]).await.unwrap().abandon().await;
        let next = one.segment(follower.end());
        one.cell.set_watermark(one.end());
        one.rewrite(next.base_offset, next.end_offset, |header| header.base_offset % 4 == 0).await;
        ship(&one, &follower, &trace).await;
        one.replicate(&follower, 1 << 20).await;
        let follower = follower.restart(&mut own, Some(trace.clone())).await;
        follower.follow(1, 0).await;
        // A cut within a segment that came as a file, and one of another leader behind it.
        for n in 24..40 {
            one.produce(&batch(n, 2, 60_000, Some((9, 2 * n as i32)))).await;
        }
        one.settle().await;
        one.flush().await;
        while follower.end() < one.segment(follower.end()).end_offset && one.segment(follower.end()).base_offset < follower.end() {
            let mut cursor = one.store.follower_cursor(&one.cell, follower.end()).await.unwrap();
            follower.take(1, &one.read(&mut cursor, 1).await[0], 0).await.unwrap();
        }
        let at = follower.end() + 2;
        ship(&one, &follower, &trace).await;
        let two = next_leader(&one, dirs[1].path(), at, 2).await;
        for n in 40..60 {
            two.produce(&batch(n, 2, 60_000, None)).await;
        }
        two.settle().await;
        two.flush().await;
        cut(&follower, at, 2).await;
        while two.segment(follower.end()).base_offset < follower.end() {
            let mut cursor = two.store.follower_cursor(&two.cell, follower.end()).await.unwrap();
            follower.take(2, &two.read(&mut cursor, 1).await[0], 0).await.unwrap();
        }
        ship(&two, &follower, &trace).await;
        follower.checkpoint().await;
        ship(&two, &follower, &trace).await;
        assert!(follower.cell.machine.borrow().segments().len() > 6);
    });
    crash::trace::parse(&std::fs::read(&path).unwrap()).into_iter().map(|(_, event)| event).collect()
}

/// What a recovery must find.
#[derive(Clone, Default)]
struct Expected {
    /// CRCs of batches by offset, that the leader was told of.
    kept: BTreeMap<Offset, u32>,
    /// The log is about to be cut there.
    cutting: Option<Offset>,
    /// CRCs of batches that were cut off.
    dead: BTreeSet<u32>,
    /// The newest epoch that was promised.
    epoch: i32,
}

impl Expected {
    /// True if more is expected now.
    fn take(&mut self, event: &TraceEvent) -> bool {
        match event {
            TraceEvent::Acknowledge { base_offset, crc, .. } => drop(self.kept.insert(*base_offset, *crc)),
            TraceEvent::Cut { offset, is_done: false, .. } => self.cutting = Some(*offset),
            TraceEvent::Cut { offset, .. } => {
                self.cutting = None;
                self.dead.extend(self.kept.split_off(offset).values());
            }
            TraceEvent::Mark { name } if name.starts_with("epoch ") => self.epoch = name[6..].parse().unwrap(),
            _ => return false,
        }
        true
    }

    fn check(&self, mut image: Image, twice: bool) -> Result<(), String> {
        let open = |image: &mut Image, salt| {
            let owner = |_| 0;
            let request = OpenRequest { cluster: CLUSTER, shards: 1, salt, now_ms: 0, catalogue: &[PARTITION], owner: &owner };
            let store = open_store(image, &request).map_err(|error| error.to_string())?;
            if !store.report.damage.is_empty() {
                return Err(format!("damage: {:?}", store.report.damage));
            }
            Ok(store.shards[0][0].state.clone())
        };
        let state = open(&mut image, 11)?;
        let found = check::read_partition(&image, &state)?;
        let known = state.epochs.last().map_or(0, |(epoch, _)| *epoch);
        if known < self.epoch {
            return Err(format!("epoch {} was promised, {known} is known", self.epoch));
        }
        let below = self.cutting.unwrap_or(Offset::MAX);
        let is_there = |(offset, crc): (&Offset, &u32)| found.get(offset).is_some_and(|kept| kept.crc == *crc);
        if let Some(lost) = self.kept.range(..below).find(|kept| !is_there(*kept)) {
            return Err(format!("lost: {lost:?}"));
        }
        let behind: Vec<bool> = self.kept.range(below..).map(is_there).collect();
        if behind.iter().any(|is| *is) && !behind.iter().all(|is| *is) {
            return Err(format!("neither the old log nor the cut one: {behind:?}"));
        }
        if let Some((offset, _)) = found.iter().find(|(_, kept)| self.dead.contains(&kept.crc)) {
            return Err(format!("the batch at {offset} was cut off"));
        }
        let litter = image.files().find(|(path, _)| path.ends_with(".tmp"));
        if let Some((path, _)) = litter {
            return Err(format!("{path} is still there"));
        }
        // The last batch of each producer in the log is known, or its next one would be refused.
        let mut last = BTreeMap::new();
        for stored in check::read_stored(&image, &state)? {
            last.extend(stored.producer.map(|(id, ..)| (id, stored.base_offset)));
        }
        for (id, offset) in last {
            let known = state.producers.iter().find(|producer| producer.id == id).and_then(|producer| producer.batches.last());
            if known.map(|batch| batch.base_offset) != Some(offset) {
                return Err(format!("of producer {id} the batch at {offset} is not known: {known:?}"));
            }
        }
        if twice && open(&mut image, 12)?.running_hash != state.running_hash {
            return Err("a second recovery changed something".into());
        }
        Ok(())
    }
}

/// Crashes after every event from `from` on; how many images were recovered.
fn enumerate(events: &[TraceEvent], from: usize, seed: u64) -> Result<u64, String> {
    let mut disk = CrashDisk::of(&Image::default());
    let (mut expected, mut told) = (Expected::default(), 0);
    let (mut seen, mut images) = (HashSet::new(), 0);
    for (at, event) in events.iter().enumerate() {
        let changed = disk.apply(event);
        let news = expected.take(event);
        told += u64::from(news);
        if at < from || !(changed || news) {
            continue;
        }
        let random = (0..if disk.is_settled() { 0 } else { WAYS }).map(|way| {
            let seed = seed ^ ((at as u64) << 20) ^ way;
            if way % 2 == 0 { Loss::Some(seed) } else { Loss::Torn(seed, 4096) }
        });
        for loss in [Loss::Nothing, Loss::Everything].into_iter().chain(random) {
            let image = disk.crash(loss);
            if !seen.insert((image.fingerprint(), told)) {
                continue;
            }
            images += 1;
            expected
                .check(image, images % TWICE_ONE_IN == 0)
                .map_err(|what| format!("crash after event {at} of {}, {loss:?}: {what}", events.len()))?;
        }
    }
    Ok(images)
}

/// A rule that a follower breaks.
#[derive(Clone, Copy, Debug)]
enum Bug {
    /// Files of segments that are cut off go before the entry is durable.
    RemoveEarly,
    /// The entry does not have the surviving bytes of the cut block.
    ForgetSurviving,
    /// The cut counts before its entry is durable.
    CountEarly,
    /// The leader is told that its epoch is known before that is durable.
    PromiseEarly,
    /// The entry of a cut is not synced.
    SkipSync,
    /// A received file is not synced before its entry is written.
    InstallUnsynced,
    /// Its temporary name is not.
    InstallUnnamed,
    /// The leader is told that a segment is here before its entry is durable.
    InstallEarly,
}

fn broken(events: &[TraceEvent], bug: Bug) -> Vec<TraceEvent> {
    match bug {
        Bug::RemoveEarly => {
            let is_removal = |event: &TraceEvent| matches!(event, TraceEvent::Unlink { path } if path.contains("topics/"));
            moved_to_the_cut(events, is_removal)
        }
        Bug::CountEarly => moved_to_the_cut(events, |event| matches!(event, TraceEvent::Cut { is_done: true, .. })),
        Bug::PromiseEarly => moved_to_the_cut(events, is_promise),
        Bug::ForgetSurviving => without_surviving(events),
        Bug::InstallUnsynced => without_sync(
            events,
            |event| matches!(event, TraceEvent::SyncStart { path, .. } if path.ends_with(".tmp") && path.starts_with(paths::TOPICS_DIR)),
        ),
        Bug::InstallUnnamed => {
            // The directory's syncs but for those behind a renaming.
            let mut renamed = false;
            without_sync(events, |event| {
                match event {
                    TraceEvent::Rename { .. } => renamed = true,
                    TraceEvent::Mark { name } if name == "installed" => renamed = false,
                    _ => {}
                }
                let is_partitions = matches!(event, TraceEvent::SyncDirStart { path, .. } if *path == paths::partition_dir(PARTITION));
                is_partitions && !renamed
            })
        }
        Bug::InstallEarly => {
            let mut out: Vec<TraceEvent> = Vec::new();
            let mut at = None;
            for event in events {
                match (event, at) {
                    (TraceEvent::Acknowledge { .. }, Some(at)) => out.insert(at, event.clone()),
                    _ => out.push(event.clone()),
                }
                match event {
                    TraceEvent::Mark { name } if name == "install" => at = Some(out.len()),
                    TraceEvent::Create { .. } => at = None,
                    _ => {}
                }
            }
            out
        }
        Bug::SkipSync => {
            let (mut gone, mut cutting) = (HashSet::new(), false);
            let stays = |event: &&TraceEvent| match event {
                TraceEvent::Cut { is_done, .. } => {
                    cutting = !is_done;
                    true
                }
                TraceEvent::SyncStart { id, path } if cutting && path.starts_with(paths::JOURNAL_DIR) => !gone.insert(*id),
                TraceEvent::SyncEnd { id } => !gone.contains(id),
                _ => true,
            };
            events.iter().filter(stays).cloned().collect()
        }
    }
}

/// Without some syncs.
fn without_sync(events: &[TraceEvent], mut is_it: impl FnMut(&TraceEvent) -> bool) -> Vec<TraceEvent> {
    let mut gone = HashSet::new();
    let stays = |event: &&TraceEvent| match event {
        TraceEvent::SyncStart { id, .. } | TraceEvent::SyncDirStart { id, .. } if is_it(event) => !gone.insert(*id),
        TraceEvent::SyncEnd { id } => !gone.contains(id),
        event => {
            is_it(event);
            true
        }
    };
    events.iter().filter(stays).cloned().collect()
}

fn is_promise(event: &TraceEvent) -> bool {
    matches!(event, TraceEvent::Mark { name } if name.starts_with("epoch "))
}

/// What comes with a cut comes when it begins.
fn moved_to_the_cut(events: &[TraceEvent], is_it: impl Fn(&TraceEvent) -> bool) -> Vec<TraceEvent> {
    let mut out: Vec<TraceEvent> = Vec::new();
    let mut cut = None;
    for event in events {
        match cut.filter(|_| is_it(event)) {
            Some(at) => out.insert(at, event.clone()),
            None => out.push(event.clone()),
        }
        match event {
            TraceEvent::Cut { is_done: false, .. } => cut = Some(out.len()),
            event if is_promise(event) => cut = None,
            _ => {}
        }
    }
    out
}

/// Zeros in place of the surviving bytes, in groups that check and follow each other all the same.
fn without_surviving(events: &[TraceEvent]) -> Vec<TraceEvent> {
    let mut checksums: HashMap<u32, u32> = HashMap::new();
    let change = |event: &TraceEvent| {
        let TraceEvent::WriteStart { id, path, position, bytes } = event else { return event.clone() };
        let Some((header, group)) = parse_group(bytes).ok().filter(|_| path.starts_with(paths::JOURNAL_DIR)) else { return event.clone() };
        let old = corelane::log::journal::stored_checksum(group);
        let mut bytes = bytes.clone();
        let mut at = GROUP_HEADER_LEN;
        for (entry, payload) in Entries::new(group).flatten() {
            if entry.kind == EntryKind::Truncate {
                bytes[at + ENTRY_HEADER_LEN..][..payload.len()].fill(0);
            }
            at += entry_space(payload.len());
        }
        let previous_checksum = checksums.get(&header.previous_checksum).copied().unwrap_or(header.previous_checksum);
        let len = group.len();
        checksums.insert(old, seal_group(&mut bytes[..len], &GroupHeader { previous_checksum, ..header }));
        TraceEvent::WriteStart { id: *id, path: path.clone(), position: *position, bytes }
    };
    events.iter().map(change).collect()
}

#[test]
fn a_cut_log_is_the_old_one_or_the_cut_one_at_every_crash() {
    let events = life();
    let cuts = events.iter().filter(|event| matches!(event, TraceEvent::Cut { is_done: true, .. })).count();
    let marks = |name: &str| events.iter().filter(|event| matches!(event, TraceEvent::Mark { name: mark } if mark == name)).count();
    assert!(cuts >= 3 && marks("cut segment removed") >= 2, "{cuts} cuts");
    let images: u64 = (1..4).map(|seed| enumerate(&events, 0, seed).unwrap()).sum();
    println!("{} events, {cuts} cuts, {images} images", events.len());
    assert!(images > 2_000, "{images} images");
    for bug in [Bug::RemoveEarly, Bug::ForgetSurviving, Bug::CountEarly, Bug::PromiseEarly, Bug::SkipSync] {
        let broken = broken(&events, bug);
        let from = broken.iter().zip(&events).position(|(broken, whole)| broken != whole).expect("it changes something");
        let caught = enumerate(&broken, from, 1);
        println!("{bug:?}: {caught:?}");
        assert!(caught.is_err(), "{bug:?} is not seen in {caught:?} images");
    }
}

#[test]
fn a_segment_that_came_as_a_file_is_there_whole_or_not_at_all_at_every_crash() {
    let events = life_of_segments();
    let installed = events.iter().filter(|event| matches!(event, TraceEvent::Mark { name } if name == "installed")).count();
    assert!(installed >= 5, "{installed} segments");
    let images: u64 = (1..3).map(|seed| enumerate(&events, 0, seed).unwrap()).sum();
    println!("{} events, {installed} segments, {images} images", events.len());
    assert!(images > 500, "{images} images");
    for bug in [Bug::InstallUnsynced, Bug::InstallUnnamed, Bug::InstallEarly] {
        let broken = broken(&events, bug);
        let from = broken.iter().zip(&events).position(|(broken, whole)| broken != whole).expect("it changes something");
        let caught = enumerate(&broken, from, 1);
        println!("{bug:?}: {caught:?}");
        assert!(caught.is_err(), "{bug:?} is not seen in {caught:?} images");
    }
}
