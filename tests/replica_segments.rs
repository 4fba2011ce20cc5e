//! Whole segments from a leader's store to a follower's, on real disks: what is installed, refused, cut and recovered.

mod crash;
mod replicas;

use std::fs;
use std::path::Path;

use corelane::batch::BatchError;
use corelane::log::index::Index;
use corelane::log::paths;
use corelane::log::segment_check::{SegmentFault, SegmentWord};
use corelane::partition::ReplicaRefusal;
use corelane::request::Code;
use corelane::shard::replica::ReplicaError;
use corelane::shard::role::Role;
use corelane::shard::truncation::Truncation;
use corelane::types::Offset;

use replicas::{PARTITION, Running, batch, run};

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// All segments of two flushed stores are the same, byte for byte up to their valid ends, and so are their indexes, epochs and producers.
fn expect_same(leader: (&Running, &Path), follower: (&Running, &Path)) {
    let (ours, theirs) = (leader.0.cell.machine.borrow(), follower.0.cell.machine.borrow());
    assert_eq!(ours.segments(), theirs.segments());
    assert_eq!((ours.running_hash(), ours.max_timestamp()), (theirs.running_hash(), theirs.max_timestamp()));
    assert_eq!(ours.epochs(), theirs.epochs());
    let batches = |machine: &corelane::partition::Partition| {
        let mut of: Vec<_> =
            machine.state().producers.iter().map(|producer| (producer.id, producer.epoch, producer.batches.clone())).collect();
        of.sort_by_key(|(id, ..)| *id);
        of
    };
    assert_eq!(batches(&ours), batches(&theirs));
    for segment in ours.segments() {
        let read = |dir: &Path| fs::read(dir.join(segment.path(PARTITION))).unwrap()[..segment.valid_end as usize].to_vec();
        assert!(read(leader.1) == read(follower.1), "segment {} differs", segment.base_offset);
        let index = |dir: &Path| {
            let bytes = fs::read(dir.join(segment.index_path(PARTITION))).unwrap();
            Index::load(segment.base_offset, &bytes[4096..], segment.index_entries).0
        };
        assert_eq!(index(leader.1), index(follower.1), "index of segment {}", segment.base_offset);
    }
}

/// Names of the partition's files that are on their way to being something.
fn temporary(dir: &Path) -> Vec<String> {
    let Ok(files) = fs::read_dir(dir.join(paths::partition_dir(PARTITION))) else { return Vec::new() };
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".tmp")).collect()
}

async fn fill(leader: &Running, from: u64, count: u64) {
    for n in from..from + count {
        let len = if n % 11 == 5 { 200_000 } else { 2_000 * (n as usize % 24) };
        leader.produce(&batch(n, 3, len, Some((9 + n as i64 % 2, 3 * (n / 2) as i32)))).await;
    }
    leader.settle().await;
}

/// What the follower lacks: whole segments where one is due, batches elsewhere.
async fn catch_up(leader: &Running, follower: &Running) {
    let Role::Leader(epoch) = leader.cell.role() else { panic!("only a leader sends") };
    leader.flush().await;
    loop {
        let next = leader.cell.machine.borrow().segment_of(follower.end()).copied();
        match next.filter(|next| next.sealed) {
            None => return leader.replicate(follower, 1 << 20).await,
            Some(next) if next.is_rewritten() || next.base_offset == follower.end() => drop(leader.ship(follower).await),
            Some(_) => {
                let mut cursor = leader.store.follower_cursor(&leader.cell, follower.end()).await.unwrap();
                follower.take(epoch, &leader.read(&mut cursor, 1).await[0], 0).await.unwrap();
            }
        }
    }
}

#[test]
fn shipped_segments_are_the_leaders_byte_for_byte() {
    run(async || {
        let (a, mut b) = (scratch(), scratch());
        let (leader, follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
        leader.lead(1).await;
        follower.follow(1, 0).await;
        fill(&leader, 0, 24).await;
        // Epochs change within a segment.
        leader.lead(3).await;
        fill(&leader, 24, 36).await;
        let (_, start) = leader.cell.machine.borrow().epoch_start();
        follower.follow(3, start).await;
        catch_up(&leader, &follower).await;
        assert!(leader.cell.machine.borrow().segments().len() > 4);
        assert_eq!((follower.end(), temporary(b.path()).len()), (leader.end(), 0));
        // And on as always: the open segment is followed by a roll, and by a segment again.
        fill(&leader, 60, 12).await;
        leader.replicate(&follower, 1 << 20).await;
        fill(&leader, 72, 30).await;
        catch_up(&leader, &follower).await;
        leader.flush().await;
        follower.flush().await;
        expect_same((&leader, a.path()), (&follower, b.path()));
        // After a kill with and without a checkpoint behind them.
        let follower = follower.restart(&mut b, None).await;
        expect_same((&leader, a.path()), (&follower, b.path()));
        follower.follow(3, 0).await;
        fill(&leader, 102, 20).await;
        catch_up(&leader, &follower).await;
        // A checkpoint that has not seen the flush would bring index entries with a later bound of timestamps.
        follower.flush().await;
        follower.checkpoint().await;
        let follower = follower.restart(&mut b, None).await;
        leader.flush().await;
        expect_same((&leader, a.path()), (&follower, b.path()));
    });
}

fn shipped(error: ReplicaError) -> SegmentFault {
    match error {
        ReplicaError::Refused(ReplicaRefusal::Shipped(fault)) => fault,
        other => panic!("{other}"),
    }
}

/// Whether a fault is the one.
type Expected<'a> = &'a dyn Fn(&SegmentFault) -> bool;

#[test]
fn what_is_not_the_leaders_segment_leaves_no_trace() {
    run(async || {
        let (a, b) = (scratch(), scratch());
        let (leader, follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
        leader.lead(2).await;
        follower.follow(2, 0).await;
        fill(&leader, 0, 40).await;
        leader.flush().await;
        leader.ship(&follower).await;
        let (from, before) = (follower.end(), follower.cell.machine.borrow().state());
        let (good, word) = (leader.segment_bytes(from).await, leader.word(from));
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        let middle = good.len() / 2;
        let bad: [(&str, Vec<u8>, Expected<'_>); 4] = [
            ("a flipped bit", changed(middle, good[middle] ^ 4), &|f| {
                matches!(f, SegmentFault::Batch { error: BatchError::Crc { .. }, .. })
            }),
            ("another length", changed(8, 0xff), &|f| matches!(f, SegmentFault::Batch { error: BatchError::Length { .. }, .. })),
            ("an earlier offset", changed(7, 0), &|f| matches!(f, SegmentFault::Offset { .. })),
            ("another magic", changed(16, 1), &|f| matches!(f, SegmentFault::Batch { error: BatchError::Magic { .. }, .. })),
        ];
        for (what, bytes, expected) in bad {
            let Err(error) = follower.receive(from, &bytes).await else { panic!("{what}") };
            let fault = shipped(error);
            assert!(expected(&fault), "{what}: {fault}");
        }
        let (other_epoch, endless) = (changed(15, 1), changed(8, 0x7f));
        let words: [(&str, &[u8], SegmentWord, Expected<'_>); 9] = [
            ("a batch without an end", &endless, word.clone(), &|f| matches!(f, SegmentFault::End { .. })),
            ("another hash at its end", &good, SegmentWord { hash_after: 5, ..word.clone() }, &|f| {
                matches!(f, SegmentFault::RunningHash { .. })
            }),
            ("another hash before it", &good, SegmentWord { hash_before: Some(5), ..word.clone() }, &|f| {
                matches!(f, SegmentFault::RunningHash { .. })
            }),
            ("another end", &good, SegmentWord { end_offset: word.end_offset + 1, ..word.clone() }, &|f| {
                matches!(f, SegmentFault::End { cut: 0, .. })
            }),
            ("half a batch", &good[..good.len() - 1], word.clone(), &|f| matches!(f, SegmentFault::End { .. })),
            ("no epoch", &good, SegmentWord { epochs: Vec::new(), ..word.clone() }, &|f| {
                matches!(f, SegmentFault::Epoch { actual: 2, .. })
            }),
            ("an epoch too many", &good, SegmentWord { epochs: vec![(2, from), (3, from + 3)], ..word.clone() }, &|f| {
                matches!(f, SegmentFault::Epoch { expected: Some(3), actual: 2, .. })
            }),
            ("a batch of another epoch", &other_epoch, word.clone(), &|f| matches!(f, SegmentFault::Epoch { actual: 1, .. })),
            ("no adopted one", &good, SegmentWord { adopted: true, ..word.clone() }, &|f| matches!(f, SegmentFault::Adopted { .. })),
        ];
        for (what, bytes, word, expected) in words {
            let receipt = follower.receive(from, bytes).await.unwrap();
            let Err(error) = receipt.finish(&word).await else { panic!("{what}") };
            let fault = shipped(error);
            assert!(expected(&fault), "{what}: {fault}");
        }
        // What comes from another leader, does not follow, or comes twice.
        let receipt = follower.receive(from, &good).await.unwrap();
        let error = receipt.finish(&word).await.unwrap().install(1).await.unwrap_err();
        assert_eq!(error, ReplicaError::Refused(ReplicaRefusal::Epoch { expected: 2, actual: 1 }));
        let next = word.end_offset;
        let receipt = follower.receive(next, &leader.segment_bytes(next).await).await.unwrap();
        let error = receipt.finish(&leader.word(next)).await.unwrap().install(2).await.unwrap_err();
        assert_eq!(error, ReplicaError::Refused(ReplicaRefusal::Offset { expected: from, actual: next }));
        // A stream that ends in the middle.
        follower.receive(from, &good[..middle]).await.unwrap().abandon().await;
        let huge = follower.receive(from, &[]).await.unwrap();
        huge.abandon().await;
        let queue = glommio::executor().create_task_queue(glommio::Shares::Static(100), glommio::Latency::NotImportant, "segments");
        let begun = corelane::shard::receipt::Receipt::begin(&follower.store, &follower.cell, queue, from, u64::from(u32::MAX)).await;
        assert!(matches!(begun.err(), Some(ReplicaError::Store(refusal)) if refusal.code == Code::InvalidRequest));
        assert_eq!((follower.cell.machine.borrow().state(), temporary(b.path())), (before, Vec::new()));
        leader.ship(&follower).await;
        assert_eq!(follower.end(), next);
    });
}

#[test]
fn a_rewritten_segment_is_shipped_and_so_is_the_rest_of_one() {
    run(async || {
        for known in [0, 1, 4] {
            let (a, mut b) = (scratch(), scratch());
            let (leader, follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
            leader.lead(1).await;
            follower.follow(1, 0).await;
            fill(&leader, 0, 60).await;
            leader.flush().await;
            // It has the first batches as they were appended.
            let mut cursor = leader.store.follower_cursor(&leader.cell, 0).await.unwrap();
            for _ in 0..known {
                follower.take(1, &leader.read(&mut cursor, 1).await[0], 0).await.unwrap();
            }
            leader.cell.set_watermark(leader.end());
            let ends: Vec<Offset> = leader.cell.machine.borrow().segments().iter().map(|segment| segment.end_offset).collect();
            leader.rewrite(0, ends[1], |header| header.base_offset % 2 == 0 && header.base_offset != 3 * known).await;
            leader.rewrite(ends[2], ends[3], |header| header.base_offset % 2 == 1).await;
            catch_up(&leader, &follower).await;
            follower.flush().await;
            let names = |running: &Running| -> Vec<_> {
                let machine = running.cell.machine.borrow();
                let of_all = machine.segments().iter().map(|s| (s.end_offset, s.rewrite_generation, s.running_hash, s.max_timestamp));
                of_all.skip(if known > 0 && std::ptr::eq(running, &follower) { 1 } else { 0 }).collect()
            };
            assert_eq!(names(&leader), names(&follower));
            if known == 0 {
                assert_eq!(leader.cell.machine.borrow().segments(), follower.cell.machine.borrow().segments());
            } else {
                let machine = follower.cell.machine.borrow();
                assert_eq!(machine.segments()[1].base_offset, 3 * known, "the rest of the rewritten one is a segment of its own");
            }
            let state = follower.cell.machine.borrow().state();
            let follower = follower.restart(&mut b, None).await;
            let again = follower.cell.machine.borrow().state();
            assert_eq!((again.segments, again.epochs, again.running_hash), (state.segments, state.epochs, state.running_hash));
            // Each segment is read back, batch by batch.
            let segments: Vec<_> = follower.cell.machine.borrow().segments().iter().copied().collect();
            for segment in segments.iter().filter(|segment| segment.base_offset >= 3 * known) {
                let ours = follower.segment_bytes(segment.base_offset).await;
                assert!(ours == leader.segment_bytes(segment.base_offset).await, "segment {}", segment.base_offset);
            }
            follower.follow(1, 0).await;
            fill(&leader, 60, 30).await;
            catch_up(&leader, &follower).await;
            assert_eq!(follower.cell.machine.borrow().running_hash(), leader.cell.machine.borrow().running_hash());
        }
    });
}

/// An elected leader that lacks records may have the others cut back into what was rewritten there: that log goes, and the leader's comes in its place.
#[test]
fn a_rewritten_segment_is_cut_nowhere_and_gives_way_as_a_whole() {
    run(async || {
        let (a, mut b) = (scratch(), scratch());
        let (leader, other) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
        other.lead(1).await;
        fill(&other, 0, 60).await;
        other.flush().await;
        other.cell.set_watermark(other.end());
        let end = other.cell.machine.borrow().segments()[1].end_offset;
        other.rewrite(0, end, |header| header.base_offset % 2 == 0).await;
        other.store.set_role(&other.cell, Role::Unassigned).unwrap();
        for offset in [0, 3] {
            let cut = other.store.truncate(&other.cell, Truncation { offset, epoch: 2, epoch_start: offset, unclean: true }).await;
            assert!(matches!(cut, Err(ReplicaError::Refused(ReplicaRefusal::Rewritten { segment: 0, .. }))), "{offset}: {cut:?}");
        }
        other.store.restart(&other.cell, 0, 0).await.unwrap();
        leader.lead(2).await;
        fill(&leader, 0, 20).await;
        leader.flush().await;
        other.follow(2, 0).await;
        catch_up(&leader, &other).await;
        other.flush().await;
        expect_same((&leader, a.path()), (&other, b.path()));
        let other = other.restart(&mut b, None).await;
        assert_eq!(other.end(), leader.end());
    });
}

#[test]
fn a_shipped_segment_is_cut_as_any_other() {
    run(async || {
        for restart in [false, true] {
            let (a, mut b) = (scratch(), scratch());
            let (leader, mut follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
            leader.lead(1).await;
            follower.follow(1, 0).await;
            fill(&leader, 0, 40).await;
            leader.flush().await;
            leader.ship(&follower).await;
            let cut = follower.end() + 6;
            leader.ship(&follower).await;
            leader.ship(&follower).await;
            follower.store.set_role(&follower.cell, Role::Unassigned).unwrap();
            let asked = Truncation { offset: cut, epoch: 2, epoch_start: cut, unclean: false };
            follower.store.truncate(&follower.cell, asked).await.unwrap();
            if restart {
                follower = follower.restart(&mut b, None).await;
            }
            assert_eq!(follower.end(), cut);
            // Another leader, which has the same up to the cut.
            let c = scratch();
            let other = Running::open(c.path(), None).await;
            other.follow(1, 0).await;
            let mut cursor = leader.store.follower_cursor(&leader.cell, 0).await.unwrap();
            while other.end() < cut {
                for part in leader.read(&mut cursor, 1).await {
                    other.take(1, &part, 0).await.unwrap();
                }
            }
            other.lead(2).await;
            for n in 0..30 {
                other.produce(&batch(5_000 + n, 2, 30_000, None)).await;
            }
            other.settle().await;
            follower.follow(2, cut).await;
            catch_up(&other, &follower).await;
            other.flush().await;
            follower.flush().await;
            expect_same((&other, c.path()), (&follower, b.path()));
            let follower = follower.restart(&mut b, None).await;
            expect_same((&other, c.path()), (&follower, b.path()));
        }
    });
}

#[test]
fn an_empty_segment_gives_way_to_a_shipped_one() {
    run(async || {
        for first in [0, 8] {
            let (a, mut b) = (scratch(), scratch());
            let (leader, follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
            leader.lead(1).await;
            follower.follow(1, 0).await;
            fill(&leader, 0, 40).await;
            leader.flush().await;
            if first > 0 {
                leader.ship(&follower).await;
            }
            follower.cell.enter().await;
            follower.store.roll(&follower.cell).await.unwrap();
            follower.cell.leave();
            leader.ship(&follower).await;
            let end = follower.end();
            let follower = follower.restart(&mut b, None).await;
            assert_eq!(follower.end(), end);
            follower.follow(1, 0).await;
            catch_up(&leader, &follower).await;
            follower.flush().await;
            expect_same((&leader, a.path()), (&follower, b.path()));
        }
    });
}

#[test]
fn an_adopted_batch_is_shipped_as_the_segment_that_it_is() {
    run(async || {
        let (a, mut b) = (scratch(), scratch());
        let (leader, follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
        leader.lead(1).await;
        follower.follow(1, 0).await;
        leader.produce(&batch(1, 2, 100, None)).await;
        let huge = batch(2, 1, 9 << 20, None);
        leader.adopt(&huge).await;
        leader.produce(&batch(3, 2, 100, None)).await;
        leader.settle().await;
        catch_up(&leader, &follower).await;
        leader.flush().await;
        follower.flush().await;
        expect_same((&leader, a.path()), (&follower, b.path()));
        let follower = follower.restart(&mut b, None).await;
        expect_same((&leader, a.path()), (&follower, b.path()));
    });
}
