//! A leader's store and a follower's, on real disks: what is appended, cut and read back.

mod crash;
mod replicas;

use std::fs;
use std::path::Path;

use corelane::batch::BatchHeader;
use corelane::log::index::Index;
use corelane::log::leader_epochs::UNKNOWN_START;
use corelane::log::paths;
use corelane::partition::{ReplicaAppend, ReplicaRefusal};
use corelane::request::Code;
use corelane::shard::follower_read::FollowerReadError;
use corelane::shard::replica::ReplicaError;
use corelane::shard::role::Role;
use corelane::shard::truncation::Truncation;

use replicas::{PARTITION, Running, batch, bytes_of, run};

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// The segments of two flushed stores are the same, byte for byte, up to their valid ends.
fn expect_same_segments(leader: (&Running, &Path), follower: (&Running, &Path)) {
    let (ours, theirs) = (leader.0.cell.machine.borrow(), follower.0.cell.machine.borrow());
    let names = |machine: &corelane::partition::Partition| -> Vec<_> {
        machine.segments().iter().map(|s| (s.base_offset, s.end_offset, s.valid_end, s.running_hash)).collect()
    };
    assert_eq!(names(&ours), names(&theirs));
    assert_eq!((ours.running_hash(), ours.max_timestamp()), (theirs.running_hash(), theirs.max_timestamp()));
    for segment in ours.segments() {
        let path = paths::segment(PARTITION, segment.base_offset);
        let read = |dir: &Path| fs::read(dir.join(&path)).unwrap()[..segment.valid_end as usize].to_vec();
        assert!(read(leader.1) == read(follower.1), "segment {} differs", segment.base_offset);
        let index = |dir: &Path| {
            let bytes = fs::read(dir.join(paths::index(PARTITION, segment.base_offset))).unwrap();
            Index::load(segment.base_offset, &bytes[4096..], segment.index_entries).0
        };
        assert_eq!(index(leader.1), index(follower.1), "index of segment {}", segment.base_offset);
    }
}

fn refusal(error: ReplicaError) -> ReplicaRefusal {
    match error {
        ReplicaError::Refused(refusal) => refusal,
        other => panic!("{other}"),
    }
}

/// Small, large and rolled: 24 batches of about 50 KB, one of 200 KB.
async fn fill(leader: &Running, from: u64) {
    fill_with(leader, from, 0).await;
}

/// As [`fill`], with other values.
async fn fill_with(leader: &Running, from: u64, salt: u64) {
    for n in from..from + 24 {
        leader.produce(&batch(n + salt, 3, if n % 11 == 5 { 200_000 } else { 2_000 * (n as usize % 24) }, Some((9, 3 * n as i32)))).await;
    }
    leader.settle().await;
}

#[test]
fn a_follower_has_the_leaders_segments_byte_for_byte() {
    run(async || {
        let (a, mut b) = (scratch(), scratch());
        let (leader, follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
        leader.lead(1).await;
        follower.follow(1, 0).await;
        fill(&leader, 0).await;
        leader.replicate(&follower, 100_000).await;
        // The rest from disk.
        leader.flush().await;
        fill(&leader, 24).await;
        leader.flush().await;
        leader.replicate(&follower, 1_000_000).await;
        assert_eq!(follower.end(), leader.end());
        assert!(leader.cell.machine.borrow().segments().len() > 3);
        follower.flush().await;
        expect_same_segments((&leader, a.path()), (&follower, b.path()));
        // After a kill, too; it goes on where it was.
        let follower = follower.restart(&mut b, None).await;
        assert_eq!((follower.end(), follower.cell.machine.borrow().epoch()), (leader.end(), 1));
        follower.follow(1, 0).await;
        fill(&leader, 48).await;
        leader.replicate(&follower, 1_000_000).await;
        leader.flush().await;
        follower.flush().await;
        expect_same_segments((&leader, a.path()), (&follower, b.path()));
    });
}

/// The leader's retention has taken what the replica needs next: its log begins anew where the leader's begins now, and a kill behind any step finds that.
#[test]
fn a_replica_begins_anew_where_the_leaders_log_begins() {
    run(async || {
        let (a, mut b) = (scratch(), scratch());
        let (leader, follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
        leader.lead(1).await;
        follower.follow(1, 0).await;
        fill(&leader, 0).await;
        leader.replicate(&follower, 100_000).await;
        follower.flush().await;
        follower.checkpoint().await;
        fill(&leader, 24).await;
        fill(&leader, 48).await;
        leader.flush().await;
        let first = leader.cell.machine.borrow().segments().iter().map(|s| s.base_offset).find(|base| *base > follower.end()).unwrap();
        let cursor = leader.store.follower_cursor(&leader.cell, first).await.unwrap();
        let state =
            |running: &Running| (running.cell.machine.borrow().log_start(), running.end(), running.cell.machine.borrow().running_hash());
        follower.store.restart(&follower.cell, first, cursor.running_hash).await.unwrap();
        assert_eq!(state(&follower), (first, first, cursor.running_hash));
        let follower = follower.restart(&mut b, None).await;
        assert_eq!((state(&follower), follower.watermark()), ((first, first, cursor.running_hash), first));
        follower.follow(1, 0).await;
        leader.replicate(&follower, 100_000).await;
        let follower = follower.restart(&mut b, None).await;
        follower.follow(1, 0).await;
        follower.flush().await;
        follower.checkpoint().await;
        let follower = follower.restart(&mut b, None).await;
        assert_eq!(state(&follower), (first, leader.end(), leader.cell.machine.borrow().running_hash()));
        for segment in follower.cell.machine.borrow().segments() {
            let path = paths::segment(PARTITION, segment.base_offset);
            let read = |dir: &Path| fs::read(dir.join(&path)).unwrap()[..segment.valid_end as usize].to_vec();
            assert!(read(a.path()) == read(b.path()), "segment {} differs", segment.base_offset);
        }
        let files = fs::read_dir(b.path().join(paths::partition_dir(PARTITION))).unwrap();
        let early =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).filter(|name| name.starts_with("00000000000000000000"));
        assert_eq!(early.count(), 0, "what is before went");
    });
}

/// Whether a refusal is the one.
type Expected<'a> = &'a dyn Fn(&ReplicaRefusal) -> bool;

#[test]
fn what_does_not_fit_changes_nothing() {
    run(async || {
        let (a, b) = (scratch(), scratch());
        let (leader, follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
        leader.lead(2).await;
        follower.follow(2, 0).await;
        for n in 0..4 {
            leader.produce(&batch(n, 2, 500, None)).await;
        }
        leader.replicate(&follower, 1 << 20).await;
        leader.produce(&batch(4, 2, 500, None)).await;
        leader.settle().await;
        let mut cursor = leader.store.follower_cursor(&leader.cell, 8).await.unwrap();
        let part = leader.read(&mut cursor, 1 << 20).await.remove(0);
        let good = bytes_of(&part).await;
        let before = follower.cell.machine.borrow().state();
        let append = ReplicaAppend { epoch: 2, segment: part.segment, running_hash: part.running_hash, batches: &good };
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        let (flipped, moved, later, earlier, cut) =
            (changed(80, good[80] ^ 1), changed(7, 9), changed(15, 3), changed(15, 1), good[..good.len() - 1].to_vec());
        let is_offset = |refusal: &ReplicaRefusal| matches!(refusal, ReplicaRefusal::Offset { expected: 8, actual: 9 });
        let cases: [(&str, ReplicaAppend<'_>, Expected<'_>); 8] = [
            ("a flipped bit", ReplicaAppend { batches: &flipped, ..append }, &|r| matches!(r, ReplicaRefusal::Batch { offset: 8, .. })),
            ("half a batch", ReplicaAppend { batches: &cut, ..append }, &|r| matches!(r, ReplicaRefusal::Batch { .. })),
            ("another offset", ReplicaAppend { batches: &moved, ..append }, &is_offset),
            ("a later epoch", ReplicaAppend { batches: &later, ..append }, &|r| matches!(r, ReplicaRefusal::BatchEpoch { actual: 3, .. })),
            ("an earlier epoch", ReplicaAppend { batches: &earlier, ..append }, &|r| matches!(r, ReplicaRefusal::BatchEpoch { .. })),
            ("another leader", ReplicaAppend { epoch: 1, ..append }, &|r| matches!(r, ReplicaRefusal::Epoch { expected: 2, actual: 1 })),
            ("another hash", ReplicaAppend { running_hash: 5, ..append }, &|r| matches!(r, ReplicaRefusal::RunningHash { offset: 10, .. })),
            ("another segment", ReplicaAppend { segment: 4, ..append }, &|r| matches!(r, ReplicaRefusal::Segment { .. })),
        ];
        for (what, append, expected) in cases {
            let error = refusal(follower.store.append_replica(&follower.cell, &append, 10).await.unwrap_err());
            assert!(expected(&error), "{what}: {error}");
            assert_eq!(follower.cell.machine.borrow().state(), before, "{what}");
        }
        assert_eq!(follower.store.append_replica(&follower.cell, &append, 10).await.unwrap(), 10);
        assert_eq!(follower.watermark(), 10);
        let twice = refusal(follower.store.append_replica(&follower.cell, &append, 10).await.unwrap_err());
        assert_eq!(twice, ReplicaRefusal::Offset { expected: 10, actual: 8 });
        let client = follower.produce(&batch(9, 1, 10, None)).await;
        assert_eq!(client.now().unwrap().unwrap_err().code, Code::NotLeader);
    });
}

#[test]
fn produce_waits_for_the_watermark_and_hears_when_leadership_goes() {
    run(async || {
        let mut dir = scratch();
        let leader = Running::open(dir.path(), None).await;
        leader.lead(1).await;
        let first = leader.produce(&batch(1, 2, 100, Some((7, 0)))).await;
        let second = leader.produce(&batch(2, 2, 100, Some((7, 2)))).await;
        leader.settle().await;
        assert_eq!((leader.watermark(), first.now()), (0, None), "durable here is not committed");
        let retry = leader.produce(&batch(1, 2, 100, Some((7, 0)))).await;
        assert!(retry.now().is_none());
        assert!(leader.cell.set_watermark(2));
        assert_eq!((first.offset(), retry.offset(), second.now()), (Some(0), Some(0), None));
        let late = leader.produce(&batch(1, 2, 100, Some((7, 0)))).await;
        assert_eq!(late.offset(), Some(0), "committed: answered at once");
        // What was told and is not here yet is committed when it is.
        leader.cell.set_watermark(100);
        assert_eq!((leader.watermark(), second.offset()), (4, Some(2)));
        leader.cell.set_role(Role::Leader(1));
        let third = leader.produce(&batch(3, 2, 100, Some((7, 4)))).await;
        leader.settle().await;
        leader.store.set_role(&leader.cell, Role::Unassigned).unwrap();
        assert_eq!(third.now().unwrap().unwrap_err().code, Code::RequestTimedOut);
        assert_eq!(leader.watermark(), 4);
        // The only replica again: what is durable is committed.
        leader.store.set_role(&leader.cell, Role::Alone).unwrap();
        assert_eq!(leader.watermark(), 6);
        let again = leader.restart(&mut dir, None).await;
        assert_eq!(again.end(), 6);
        again.lead(2).await;
        let retry = again.produce(&batch(3, 2, 100, Some((7, 4)))).await;
        assert_eq!(again.watermark() < 6, retry.now().is_none(), "a retry waits for what an earlier leader appended");
        again.cell.set_watermark(6);
        assert_eq!(retry.offset(), Some(4));
    });
}

#[test]
fn an_epoch_is_known_after_a_crash_even_before_its_records() {
    run(async || {
        let (a, mut b) = (scratch(), scratch());
        let (leader, follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
        leader.lead(3).await;
        leader.produce(&batch(1, 5, 100, None)).await;
        leader.settle().await;
        leader.lead(5).await;
        leader.produce(&batch(2, 5, 100, None)).await;
        leader.settle().await;
        // The follower has nothing yet, and promises epoch 5.
        follower.follow(5, 5).await;
        let follower = follower.restart(&mut b, None).await;
        assert_eq!(follower.cell.machine.borrow().epochs(), [(5, 5)]);
        let stale = follower.store.begin_epoch(&follower.cell, 4, 0).await.unwrap_err();
        assert_eq!(refusal(stale), ReplicaRefusal::Epoch { expected: 5, actual: 4 });
        follower.follow(5, 5).await;
        leader.replicate(&follower, 1 << 20).await;
        assert_eq!(follower.cell.machine.borrow().epochs(), [(3, 0), (5, 5)]);
        let inside = follower.store.set_role(&follower.cell, Role::Unassigned);
        inside.unwrap();
        let inside = follower.store.begin_epoch(&follower.cell, 6, 9).await.unwrap_err();
        assert_eq!(refusal(inside), ReplicaRefusal::EpochStart { epoch: 6, start: 9, log_end: 10 });
        let follower = follower.restart(&mut b, None).await;
        assert_eq!(follower.cell.machine.borrow().epochs(), [(3, 0), (5, 5)]);
    });
}

/// Who led an epoch without a record in it may get more of the epoch before: from a replica that was ahead, and leads next.
#[test]
fn an_epoch_that_was_led_without_a_record_leaves_room_for_an_older_ones() {
    for crash in [false, true] {
        run(async || {
            let (a, mut b) = (scratch(), scratch());
            let (leader, mut follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
            leader.lead(11).await;
            follower.follow(11, 0).await;
            fill(&leader, 0).await;
            leader.replicate(&follower, 100_000).await;
            fill(&leader, 24).await;
            follower.lead(12).await;
            leader.lead(13).await;
            fill(&leader, 48).await;
            if crash {
                follower = follower.restart(&mut b, None).await;
            }
            follower.follow(13, UNKNOWN_START).await;
            leader.replicate(&follower, 100_000).await;
            let epochs = |running: &Running| running.cell.machine.borrow().epochs().to_vec();
            assert_eq!(epochs(&follower), epochs(&leader));
            let follower = follower.restart(&mut b, None).await;
            assert_eq!((follower.end(), epochs(&follower)), (leader.end(), epochs(&leader)));
            follower.flush().await;
            leader.flush().await;
            expect_same_segments((&leader, a.path()), (&follower, b.path()));
        });
    }
}

#[test]
fn a_cut_log_goes_on_as_the_new_leaders() {
    run(async || {
        for (round, restart, flush) in [(0, false, false), (1, true, false), (2, false, true), (3, true, true)] {
            let (mut a, b) = (scratch(), scratch());
            let (mut one, two) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
            one.lead(1).await;
            two.follow(1, 0).await;
            fill(&one, 0).await;
            one.replicate(&two, 1 << 20).await;
            let common = one.end();
            one.cell.set_watermark(common);
            // The old leader goes on alone, over several segments; the other one leads from the common end on.
            fill_with(&one, 24, 1000).await;
            if flush {
                one.flush().await;
                one.checkpoint().await;
            }
            if restart {
                one = one.restart(&mut a, None).await;
            }
            two.lead(2).await;
            fill(&two, 24).await;
            one.store.set_role(&one.cell, Role::Unassigned).unwrap();
            let below = Truncation { offset: common - 3, epoch: 2, epoch_start: common, unclean: false };
            let error = refusal(one.store.truncate(&one.cell, below).await.unwrap_err());
            assert!(matches!(error, ReplicaRefusal::BelowWatermark { .. }), "{error}");
            let within = Truncation { offset: common + 1, epoch: 2, epoch_start: common + 1, unclean: false };
            let error = refusal(one.store.truncate(&one.cell, within).await.unwrap_err());
            assert!(matches!(error, ReplicaRefusal::WithinBatch { .. }), "{error}");
            let asked = Truncation { offset: common, epoch: 2, epoch_start: common, unclean: false };
            one.store.truncate(&one.cell, asked).await.unwrap();
            assert_eq!(one.end(), common);
            if round % 2 == 0 {
                // Recovery has the cut log as well.
                one = one.restart(&mut a, None).await;
                assert_eq!((one.end(), one.cell.machine.borrow().epochs().to_vec()), (common, vec![(1, 0), (2, common)]));
            }
            one.follow(2, common).await;
            two.replicate(&one, 1 << 20).await;
            assert_eq!(one.end(), two.end());
            one.flush().await;
            two.flush().await;
            expect_same_segments((&two, b.path()), (&one, a.path()));
            // The producer goes on where the new leader's log has it.
            let (of_one, of_two) = (one.cell.machine.borrow().state().producers, two.cell.machine.borrow().state().producers);
            assert_eq!(
                of_one.iter().map(|p| p.batches.last().copied()).collect::<Vec<_>>(),
                of_two.iter().map(|p| p.batches.last().copied()).collect::<Vec<_>>()
            );
            let one = one.restart(&mut a, None).await;
            assert_eq!(one.end(), two.end());
        }
    });
}

#[test]
fn producers_are_found_again_behind_a_cut() {
    run(async || {
        for restart in [false, true] {
            let mut dir = scratch();
            let mut one = Running::open(dir.path(), None).await;
            one.lead(1).await;
            one.produce(&batch(0, 2, 100, Some((5, 0)))).await;
            one.produce(&batch(1, 2, 100, Some((5, 2)))).await;
            one.settle().await;
            one.cell.set_watermark(4);
            for n in 2..40 {
                one.produce(&batch(n, 2, 100, Some((5, 2 * n as i32)))).await;
            }
            one.settle().await;
            one.store.set_role(&one.cell, Role::Unassigned).unwrap();
            let asked = Truncation { offset: 4, epoch: 2, epoch_start: 4, unclean: false };
            one.store.truncate(&one.cell, asked).await.unwrap();
            if restart {
                one = one.restart(&mut dir, None).await;
            }
            one.lead(3).await;
            one.cell.set_watermark(4);
            let retry = one.produce(&batch(1, 2, 100, Some((5, 2)))).await;
            assert_eq!(retry.offset(), Some(2));
            let next = one.produce(&batch(77, 2, 100, Some((5, 4)))).await;
            one.settle().await;
            one.cell.set_watermark(6);
            assert_eq!(next.offset(), Some(4), "restart: {restart}");
        }
    });
}

#[test]
fn an_adopted_batch_is_taken_as_a_segment_and_cut_off_again() {
    run(async || {
        let (a, mut b) = (scratch(), scratch());
        let (leader, follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
        leader.lead(1).await;
        follower.follow(1, 0).await;
        leader.produce(&batch(1, 2, 100, None)).await;
        let huge = batch(2, 1, 9 << 20, None);
        leader.adopt(&huge).await;
        leader.produce(&batch(3, 2, 100, None)).await;
        leader.replicate(&follower, 1 << 20).await;
        leader.flush().await;
        follower.flush().await;
        expect_same_segments((&leader, a.path()), (&follower, b.path()));
        assert!(follower.cell.machine.borrow().segments().iter().any(|segment| segment.adopted));
        // The cut is at its start: the segment before it is the open one again.
        follower.store.set_role(&follower.cell, Role::Unassigned).unwrap();
        let asked = Truncation { offset: 2, epoch: 2, epoch_start: 2, unclean: false };
        let refused = follower.store.truncate(&follower.cell, Truncation { offset: 1, ..asked }).await;
        assert!(matches!(refusal(refused.unwrap_err()), ReplicaRefusal::WithinBatch { .. }));
        follower.store.truncate(&follower.cell, asked).await.unwrap();
        assert!(!b.path().join(paths::segment(PARTITION, 2)).exists());
        let part = bytes_of(&leader.read(&mut leader.store.follower_cursor(&leader.cell, 3).await.unwrap(), 10).await[0]).await;
        assert_eq!(BatchHeader::parse(&part).unwrap().base_offset, 3);
        let follower = follower.restart(&mut b, None).await;
        assert_eq!(follower.end(), 2);
    });
}

#[test]
fn a_segment_without_a_record_gives_way_to_the_leaders() {
    run(async || {
        let (a, mut b) = (scratch(), scratch());
        let (leader, mut follower) = (Running::open(a.path(), None).await, Running::open(b.path(), None).await);
        leader.lead(1).await;
        follower.follow(1, 0).await;
        leader.produce(&batch(1, 2, 5_000, None)).await;
        leader.replicate(&follower, 1 << 20).await;
        for restart in [false, true] {
            // It has led for a while, and begun a segment; nothing came.
            follower.cell.enter().await;
            follower.store.roll(&follower.cell).await.unwrap();
            follower.cell.leave();
            if restart {
                follower.store.begin_epoch(&follower.cell, 1, 0).await.unwrap();
                follower = follower.restart(&mut b, None).await;
                follower.follow(1, 0).await;
            }
            leader.produce(&batch(2, 2, 5_000, None)).await;
            leader.replicate(&follower, 1 << 20).await;
            assert_eq!(follower.cell.machine.borrow().segments().len(), 1);
        }
        leader.flush().await;
        follower.flush().await;
        expect_same_segments((&leader, a.path()), (&follower, b.path()));
    });
}

#[test]
fn a_cut_below_the_watermark_is_an_administrators_choice() {
    run(async || {
        let mut dir = scratch();
        let one = Running::open(dir.path(), None).await;
        one.lead(1).await;
        for n in 0..6 {
            one.produce(&batch(n, 1, 50_000, None)).await;
        }
        one.settle().await;
        one.cell.set_watermark(5);
        one.store.set_role(&one.cell, Role::Unassigned).unwrap();
        let clean = Truncation { offset: 2, epoch: 4, epoch_start: 2, unclean: false };
        let before = one.cell.machine.borrow().state();
        assert!(one.store.truncate(&one.cell, clean).await.is_err());
        assert_eq!(one.cell.machine.borrow().state(), before);
        one.store.truncate(&one.cell, Truncation { unclean: true, ..clean }).await.unwrap();
        assert_eq!((one.end(), one.watermark(), one.cell.level_end()), (2, 2, 2));
        // Everything goes.
        one.store.truncate(&one.cell, Truncation { offset: 0, epoch: 5, epoch_start: 0, unclean: true }).await.unwrap();
        let one = one.restart(&mut dir, None).await;
        assert_eq!((one.end(), one.watermark(), one.cell.machine.borrow().epochs().to_vec()), (0, 0, vec![(5, 0)]));
        one.lead(6).await;
        one.cell.set_watermark(10);
        let produced = one.produce(&batch(9, 1, 100, None)).await;
        one.settle().await;
        one.cell.set_watermark(1);
        assert_eq!(produced.offset(), Some(0));
    });
}

#[test]
fn a_reader_for_a_follower_begins_where_a_batch_does() {
    run(async || {
        let mut dir = scratch();
        let mut one = Running::open(dir.path(), None).await;
        one.lead(1).await;
        fill(&one, 0).await;
        let mut ends = vec![];
        for from_disk in [false, true] {
            if from_disk {
                one = one.restart(&mut dir, None).await;
                one.lead(2).await;
            }
            let mut cursor = one.store.follower_cursor(&one.cell, 0).await.unwrap();
            let mut walked = vec![cursor];
            while !one.read(&mut cursor, 1).await.is_empty() {
                walked.push(cursor);
            }
            for cursor in &walked {
                assert_eq!(one.store.follower_cursor(&one.cell, cursor.offset).await, Ok(*cursor));
            }
            let within = one.store.follower_cursor(&one.cell, walked[3].offset + 1).await;
            assert!(matches!(within, Err(FollowerReadError::NoBatch { .. })), "{within:?}");
            assert!(one.store.follower_cursor(&one.cell, one.end() + 1).await.is_err());
            ends.push((walked.len(), cursor));
        }
        assert_eq!(ends[0], ends[1]);
        assert_eq!(ends[0].1.running_hash, one.cell.machine.borrow().running_hash());
    });
}
