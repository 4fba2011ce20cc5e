//! A leader and its followers, one rule at a time.

use super::*;
use crate::replication::message::{Ack, Append, Epochs, Refused, Truncate};

const LEASE: Millis = 1_000_000;

fn state(end: i64, watermark: i64, epochs: &[(i32, i64)], promised: i32) -> LogState {
    let entries = epochs.iter().map(|(epoch, start)| EpochStart { epoch: *epoch, start: *start }).collect();
    LogState {
        log_start: 0,
        log_end: end,
        durable_end: end,
        watermark,
        epochs: EpochTable::from_entries(entries).unwrap(),
        promised,
        running_hash: Some(end as u64),
    }
}

/// Three nodes, node 1 leads from offset 100 in the record's epoch; node epochs are 7.
struct Led {
    leader: Leader,
    record: PartitionRecord,
    min_insync: usize,
    effects: Vec<Effect>,
}

impl Led {
    fn new(change: impl FnOnce(&mut PartitionRecord)) -> Led {
        let mut record = PartitionRecord::new(&[1, 2, 3], |_| true);
        record.leader_epoch = 5;
        change(&mut record);
        let mut effects = Vec::new();
        let view = MetadataView { record: &record, min_insync: 2, node_epoch: &|_| Some(7) };
        let log = state(100, 50, &[(0, 0), (3, 60)], 4);
        let mut leader = Leader::new(1, &view, log, LeaderSettings::default(), 0, &mut effects).unwrap();
        assert_eq!(effects, [Effect::JournalEpoch { epoch: 5, start: Some(100) }]);
        effects.clear();
        leader.handle_lease(LEASE, 0, &mut effects);
        leader.handle_connection(2, true, 0, &mut effects);
        leader.handle_connection(3, true, 0, &mut effects);
        assert!(effects.is_empty(), "nothing is sent before the epoch is on disk");
        leader.handle_epoch_journaled(5, 0, &mut effects);
        assert_eq!(effects.iter().filter(|e| matches!(e, Effect::Send { message: Message::Open(_), .. })).count(), 2);
        effects.clear();
        Led { leader, record, min_insync: 2, effects }
    }

    fn stream(&self, node: NodeId) -> StreamId {
        let incarnation = self.record.replica(node).unwrap().incarnation;
        StreamId { leader_epoch: 5, node_epoch: 7, incarnation, session: 1 }
    }

    /// The follower's log is the leader's up to `end`.
    fn aligned(&mut self, node: NodeId, end: i64) {
        let stream = self.stream(node);
        let epochs = state(end, 0, &[(0, 0), (3, 60)], 5).epochs;
        self.leader.handle_epochs(node, &Epochs { stream, log_end: end, epochs, watermark: 0 }, 1, &mut self.effects);
        self.ack(node, end, 1);
    }

    fn ack(&mut self, node: NodeId, end: i64, now: Millis) {
        let ack = Ack { stream: self.stream(node), durable_end: end, log_end: end, rewind: false };
        self.leader.handle_ack(node, &ack, now, &mut self.effects);
    }

    fn tell(&mut self, now: Millis) {
        let view = MetadataView { record: &self.record, min_insync: self.min_insync, node_epoch: &|_| Some(7) };
        self.leader.handle_record(&view, now, &mut self.effects);
    }

    fn proposals(&mut self) -> Vec<IsrChange> {
        self.effects.drain(..).filter_map(|e| if let Effect::ProposeIsr(change) = e { Some(change) } else { None }).collect()
    }

    fn watermark(&self) -> i64 {
        self.leader.log().watermark
    }
}

#[test]
fn the_watermark_moves_from_the_epochs_start_on() {
    let mut led = Led::new(|_| {});
    led.aligned(2, 100);
    led.aligned(3, 70);
    assert_eq!(
        (led.watermark(), led.leader.latest(1)),
        (50, None),
        "60 to 100 are there, but the leader before may have shown more than 70"
    );
    led.ack(3, 100, 2);
    assert_eq!((led.watermark(), led.leader.latest(2)), (100, Some(100)));
    assert_eq!(led.leader.latest(LEASE), None, "the lease is over");
    led.leader.handle_appended(110, 110, 3);
    led.ack(2, 110, 4);
    led.ack(3, 110, 4);
    assert_eq!(led.watermark(), 100, "not durable here");
    led.leader.handle_durable(110, LEASE, &mut led.effects);
    assert_eq!(led.watermark(), 100, "no lease");
    led.leader.handle_lease(LEASE + 10, LEASE, &mut led.effects);
    assert_eq!(led.watermark(), 110);
}

#[test]
fn a_follower_that_stands_still_is_put_out_when_consensus_says_so() {
    let mut led = Led::new(|_| {});
    led.aligned(2, 100);
    led.aligned(3, 100);
    assert_eq!(led.leader.next_timeout(), None, "an idle partition has no timer");
    led.leader.handle_appended(110, 110, 1000);
    led.leader.handle_durable(110, 1001, &mut led.effects);
    led.ack(2, 110, 1002);
    assert_eq!(led.leader.next_timeout(), Some(11_000));
    led.leader.poll(10_999, &mut led.effects);
    assert!(led.proposals().is_empty());
    led.leader.poll(11_000, &mut led.effects);
    let change = led.proposals().pop().unwrap();
    assert_eq!((&change.leave[..], led.watermark()), (&[3][..], 100));
    led.leader.poll(12_000, &mut led.effects);
    assert_eq!(led.proposals(), std::slice::from_ref(&change), "the same one again");
    led.record.change_isr(&change, 2, |_| Some(7)).unwrap();
    led.tell(12_001);
    assert_eq!(led.watermark(), 110);
}

#[test]
fn a_follower_whose_disk_fails_is_not_waited_for() {
    let mut led = Led::new(|_| {});
    led.aligned(2, 100);
    led.aligned(3, 100);
    led.leader.handle_appended(110, 110, 20_000);
    led.leader.handle_durable(110, 20_001, &mut led.effects);
    led.ack(2, 110, 20_002);
    let refuse = |led: &mut Led, refusal, now| {
        let refused = Refused { stream: led.stream(3), refusal };
        led.leader.handle_refused(3, &refused, now, &mut led.effects);
    };
    refuse(&mut led, Refusal::Invalid("anything else"), 20_003);
    assert!(led.proposals().is_empty(), "another refusal says nothing of the disk");
    refuse(&mut led, Refusal::Storage { end: 100 }, 20_003);
    let change = led.proposals().pop().unwrap();
    assert_eq!(&change.leave[..], &[3][..]);
    led.record.change_isr(&change, 2, |_| Some(7)).unwrap();
    led.tell(20_010);
    assert_eq!(led.watermark(), 110);
    let mut follower = Led::new(|_| {});
    follower.aligned(2, 100);
    follower.aligned(3, 100);
    refuse(&mut follower, Refusal::Storage { end: 100 }, 20_000);
    assert!(follower.proposals().is_empty(), "it has all that there is: it leaves when it is behind");
}

#[test]
fn a_joiner_bounds_the_watermark_until_its_outcome_is_known() {
    let mut led = Led::new(|record| record.isr = vec![1, 2]);
    led.aligned(2, 100);
    led.aligned(3, 99);
    assert!(led.proposals().is_empty(), "below the epoch's start");
    led.ack(3, 100, 2);
    let change = led.proposals().pop().unwrap();
    led.leader.handle_appended(110, 110, 3);
    led.leader.handle_durable(110, 3, &mut led.effects);
    led.ack(2, 110, 3);
    assert_eq!(led.watermark(), 100);
    let stale = RecordRefusal::StaleVersion { expected: 1, actual: 0 };
    led.leader.handle_proposal_refused(change.version, &stale, 4, &mut led.effects);
    assert_eq!(led.watermark(), 100, "an earlier answer may have been yes");
    led.leader.handle_proposal_refused(change.version, &RecordRefusal::StaleNode(3), 5, &mut led.effects);
    assert_eq!(led.watermark(), 110);
    led.effects.clear();
    led.ack(3, 110, 6);
    assert!(led.proposals().is_empty() && led.leader.next_timeout() == Some(1005), "after a refusal it waits");
    led.leader.poll(1005, &mut led.effects);
    assert_eq!(led.proposals().len(), 1);
}

#[test]
fn too_few_in_sync_stop_the_watermark() {
    let mut led = Led::new(|record| record.isr = vec![1]);
    led.leader.handle_appended(110, 110, 3);
    led.leader.handle_durable(110, 3, &mut led.effects);
    assert_eq!((led.watermark(), led.leader.has_enough_replicas()), (50, false));
    led.min_insync = 1;
    led.record.version += 1;
    led.tell(4);
    assert_eq!(led.watermark(), 110);
}

#[test]
fn another_life_of_a_replica_is_another_replica() {
    let mut led = Led::new(|_| {});
    led.aligned(2, 100);
    led.aligned(3, 100);
    let old = led.stream(3);
    led.record.replica_lost(3, 2, |_| true);
    led.record.isr.push(3);
    led.tell(5);
    led.leader.handle_appended(110, 110, 6);
    led.leader.handle_durable(110, 6, &mut led.effects);
    led.ack(2, 110, 6);
    let ack = Ack { stream: old, durable_end: 110, log_end: 110, rewind: false };
    led.leader.handle_ack(3, &ack, 7, &mut led.effects);
    assert_eq!(led.watermark(), 100);
}

#[test]
fn an_epoch_is_led_once() {
    let record = PartitionRecord { leader_epoch: 4, ..PartitionRecord::new(&[1, 2], |_| true) };
    let view = MetadataView { record: &record, min_insync: 1, node_epoch: &|_| Some(7) };
    let refused = Leader::new(1, &view, state(10, 10, &[(4, 0)], 4), LeaderSettings::default(), 0, &mut Vec::new());
    assert_eq!(refused.err(), Some(Refusal::EpochUsed { epoch: 4, promised: 4 }));
}

#[test]
fn what_is_shipped_is_of_one_epoch_and_in_the_window() {
    let mut led = Led::new(|_| {});
    led.leader.handle_appended(110, 110, 1);
    led.aligned(2, 50);
    let shipped = |from: i64, to: i64| Shipped {
        base_offset: from,
        end_offset: to,
        bytes: 3 << 20,
        hash_before: from as u64,
        hash_after: to as u64,
        opens_segment: false,
    };
    let first = led.leader.next_to_ship(2).unwrap();
    assert_eq!((first.from, first.until), (50, 60));
    let append = led.leader.handle_shipped(2, &first, &shipped(50, 60), 2).unwrap();
    assert_eq!((append.previous_epoch, append.epoch), (0, 0));
    assert_eq!(led.leader.handle_shipped(2, &first, &shipped(50, 60), 2), None, "it was shipped");
    let second = led.leader.next_to_ship(2).unwrap();
    assert_eq!((second.from, second.until, second.bytes), (60, 100, 1 << 20));
    let append = led.leader.handle_shipped(2, &second, &shipped(60, 100), 2).unwrap();
    assert_eq!((append.previous_epoch, append.epoch), (0, 3));
    assert_eq!(led.leader.next_to_ship(2), None, "the window is full");
    led.ack(2, 60, 3);
    let third = led.leader.next_to_ship(2).unwrap();
    let append = led.leader.handle_shipped(2, &third, &shipped(100, 110), 3).unwrap();
    assert_eq!((append.previous_epoch, append.epoch), (3, 5));
    // A gap: from the follower's end again.
    let ack = Ack { stream: led.stream(2), durable_end: 60, log_end: 60, rewind: true };
    led.leader.handle_ack(2, &ack, 4, &mut led.effects);
    assert_eq!(led.leader.next_to_ship(2).map(|ship| ship.from), Some(60));
    led.leader.handle_connection(2, false, 5, &mut led.effects);
    assert_eq!(led.leader.next_to_ship(2), None);
}

#[test]
fn a_follower_that_needs_what_went_is_opened_anew() {
    let mut led = Led::new(|_| {});
    led.aligned(2, 100);
    led.aligned(3, 100);
    led.record.reassign(&[1, 2, 3, 4]).unwrap();
    led.leader.handle_connection(4, true, 2, &mut led.effects);
    led.tell(2);
    assert!(
        matches!(led.effects.last(), Some(Effect::Send { to: 4, message: Message::Open(_) })),
        "it was connected before it had a replica"
    );
    led.aligned(4, 50);
    led.effects.clear();
    led.leader.handle_log_start(60, 3, &mut led.effects);
    let Some(Effect::Send { to: 4, message: Message::Open(open) }) = led.effects.pop() else { panic!("{:?}", led.effects) };
    assert!(led.effects.is_empty() && open.stream.session == 2);
    let epochs = Epochs { stream: open.stream, log_end: 50, epochs: state(50, 0, &[(0, 0)], 5).epochs, watermark: 0 };
    led.leader.handle_epochs(4, &epochs, 3, &mut led.effects);
    let cut = Truncate { stream: open.stream, to: 60, restart: true, hash_before: 0 };
    assert_eq!(led.effects, [Effect::Send { to: 4, message: Message::Truncate(cut) }]);
}

#[test]
fn a_follower_that_lies_is_not_believed() {
    let mut led = Led::new(|_| {});
    led.aligned(2, 100);
    led.aligned(3, 100);
    led.ack(3, 1000, 2);
    assert!(matches!(led.effects.last(), Some(Effect::Refuse { from: 3, .. })));
    assert_eq!(led.leader.next_to_ship(3), None);
}

const ME: ReplicaIdentity = ReplicaIdentity { node_epoch: 7, incarnation: 2 };
const STREAM: StreamId = StreamId { leader_epoch: 5, node_epoch: 7, incarnation: 2, session: 1 };

fn append(base: i64, end: i64) -> Append {
    Append {
        stream: STREAM,
        previous_epoch: 3,
        epoch: 5,
        base_offset: base,
        end_offset: end,
        watermark: 0,
        log_start: 0,
        hash_before: base as u64,
        hash_after: end as u64,
        opens_segment: false,
    }
}

/// A follower at 100, committed to 50, whose log is being opened by node 1 in epoch 5.
fn opened() -> (Follower, Vec<Effect>) {
    let mut follower = Follower::new(ME, state(100, 50, &[(0, 0), (3, 60)], 4));
    let mut effects = Vec::new();
    follower.handle_message(1, &Message::Open(message::Open { stream: STREAM }), &mut effects);
    (follower, effects)
}

fn aligned() -> (Follower, Vec<Effect>) {
    let (mut follower, mut effects) = opened();
    follower.handle_epoch_journaled(5, &mut effects);
    follower.handle_truncate(1, &Truncate { stream: STREAM, to: 100, restart: false, hash_before: 0 }, &mut effects);
    assert!(follower.is_aligned());
    effects.clear();
    (follower, effects)
}

#[test]
fn nothing_is_answered_before_the_epoch_is_journaled_and_the_log_durable() {
    let (mut follower, mut effects) = opened();
    assert_eq!(effects, [Effect::JournalEpoch { epoch: 5, start: None }]);
    follower.handle_truncate(1, &Truncate { stream: STREAM, to: 90, restart: false, hash_before: 0 }, &mut effects);
    assert_eq!(effects.len(), 1, "a cut of a stream that is not there yet");
    follower.handle_epoch_journaled(5, &mut effects);
    assert!(matches!(&effects[1], Effect::Send { to: 1, message: Message::Epochs(epochs) } if epochs.log_end == 100));
    let mut busy = Follower::new(ME, LogState { durable_end: 80, ..state(100, 50, &[(0, 0), (3, 60)], 5) });
    effects.clear();
    busy.handle_open(1, &message::Open { stream: STREAM }, &mut effects);
    assert!(effects.is_empty(), "the epoch is promised already, but appends are in flight");
    busy.handle_durable(100, &mut effects);
    assert_eq!(effects.len(), 1);
}

#[test]
fn streams_of_other_times_are_refused() {
    for (stream, refusal) in [
        (StreamId { node_epoch: 6, ..STREAM }, Refusal::StaleNodeEpoch { expected: 7, actual: 6 }),
        (StreamId { incarnation: 1, ..STREAM }, Refusal::StaleIncarnation { expected: 2, actual: 1 }),
        (StreamId { leader_epoch: 3, ..STREAM }, Refusal::StaleEpoch { promised: 4, actual: 3 }),
    ] {
        let mut follower = Follower::new(ME, state(100, 50, &[(0, 0)], 4));
        let mut effects = Vec::new();
        follower.handle_open(1, &message::Open { stream }, &mut effects);
        assert_eq!(effects[0], Effect::Refuse { from: 1, refusal });
        assert!(follower.stream().is_none());
    }
}

#[test]
fn a_cut_goes_to_the_common_end_once_and_not_below_the_watermark() {
    let (mut follower, mut effects) = opened();
    follower.handle_epoch_journaled(5, &mut effects);
    effects.clear();
    let cut = Truncate { stream: STREAM, to: 70, restart: false, hash_before: 0 };
    follower.handle_truncate(1, &cut, &mut effects);
    assert_eq!(effects, [Effect::Truncate { to: 70, unclean: false }]);
    follower.handle_truncate(1, &cut, &mut effects);
    assert!(effects.len() == 1 && follower.is_cutting());
    follower.handle_truncated(70, Some(70), &mut effects);
    assert!(matches!(&effects[1], Effect::Send { message: Message::Ack(ack), .. } if ack.durable_end == 70));
    follower.handle_append(1, &append(70, 80), &mut effects);
    follower.handle_truncate(1, &cut, &mut effects);
    assert_eq!(follower.log().log_end, 80, "a cut that comes twice");

    for (unclean_epoch, is_cut) in [(None, false), (Some(3), false), (Some(4), true)] {
        let (mut follower, mut effects) = opened();
        follower.handle_record(ME, unclean_epoch);
        follower.handle_epoch_journaled(5, &mut effects);
        effects.clear();
        follower.handle_truncate(1, &Truncate { stream: STREAM, to: 40, restart: false, hash_before: 0 }, &mut effects);
        match is_cut {
            true => assert_eq!(effects, [Effect::Truncate { to: 40, unclean: true }]),
            false => assert_eq!(effects[0], Effect::Refuse { from: 1, refusal: Refusal::BelowWatermark { to: 40, watermark: 50 } }),
        }
    }
}

#[test]
fn a_log_that_begins_anew_takes_the_leaders_place_and_hash() {
    let (mut follower, mut effects) = opened();
    follower.handle_epoch_journaled(5, &mut effects);
    follower.handle_truncate(1, &Truncate { stream: STREAM, to: 300, restart: true, hash_before: 0 }, &mut effects);
    assert_eq!(effects.last(), Some(&Effect::Restart { at: 300, hash_before: 0 }));
    follower.handle_truncated(300, None, &mut effects);
    effects.clear();
    follower.handle_append(1, &Append { previous_epoch: 4, hash_before: 999, ..append(300, 310) }, &mut effects);
    assert_eq!(effects, [Effect::Append { base_offset: 300, end_offset: 310, opens_segment: false }]);
    assert_eq!((follower.log().log_start, follower.log().epochs.epoch_at(305)), (300, 5));
}

#[test]
fn only_what_fits_is_appended() {
    let (mut follower, mut effects) = aligned();
    for (bad, refusal) in [
        (Append { previous_epoch: 4, ..append(100, 110) }, Refusal::PreviousEpoch { offset: 100, expected: 3, actual: 4 }),
        (Append { hash_before: 5, ..append(100, 110) }, Refusal::RunningHash { offset: 100, expected: 100, actual: 5 }),
    ] {
        let (mut follower, mut effects) = aligned();
        follower.handle_append(1, &bad, &mut effects);
        assert_eq!(effects[0], Effect::Refuse { from: 1, refusal });
        assert!(follower.stream().is_none() && follower.log().log_end == 100);
    }
    follower.handle_append(1, &append(105, 110), &mut effects);
    follower.handle_append(1, &append(110, 115), &mut effects);
    assert_eq!(effects.len(), 1, "a gap is told once");
    assert!(matches!(&effects[0], Effect::Send { message: Message::Ack(ack), .. } if ack.rewind && ack.log_end == 100));
    effects.clear();
    follower.handle_append(1, &Append { watermark: 105, ..append(100, 110) }, &mut effects);
    assert_eq!(effects[0], Effect::Append { base_offset: 100, end_offset: 110, opens_segment: false });
    assert_eq!(effects[1], Effect::Watermark { to: 100 }, "of what is durable here");
    effects.clear();
    follower.handle_durable(110, &mut effects);
    assert_eq!(effects[0], Effect::Watermark { to: 105 });
    assert!(matches!(&effects[1], Effect::Send { message: Message::Ack(ack), .. } if ack.durable_end == 110));
    let stale = Append { stream: StreamId { session: 0, ..STREAM }, ..append(110, 120) };
    follower.handle_append(1, &stale, &mut effects);
    assert_eq!((effects.len(), follower.log().log_end), (2, 110));
}

#[test]
fn a_segment_of_several_epochs_is_taken_whole() {
    let (mut follower, mut effects) = aligned();
    let segment = |epochs: &[(i32, i64)]| message::Segment {
        stream: STREAM,
        previous_epoch: 3,
        epochs: epochs.iter().map(|(epoch, start)| EpochStart { epoch: *epoch, start: *start }).collect(),
        base_offset: 100,
        end_offset: 200,
        watermark: 0,
        hash_before: 100,
        hash_after: 200,
        rewrite_generation: 0,
        adopted: false,
    };
    for bad in [&[][..], &[(3, 101)], &[(2, 100)], &[(4, 100), (4, 150)], &[(4, 100), (6, 150)], &[(4, 100), (5, 200)]] {
        let (mut follower, mut effects) = aligned();
        follower.handle_segment(1, &segment(bad), &mut effects);
        assert!(matches!(effects[0], Effect::Refuse { .. }), "{bad:?}");
    }
    follower.handle_segment(1, &segment(&[(3, 100), (4, 150)]), &mut effects);
    assert_eq!(effects, [Effect::Append { base_offset: 100, end_offset: 200, opens_segment: true }]);
    assert_eq!((follower.log().epochs.epoch_at(149), follower.log().epochs.epoch_at(199)), (3, 4));
}

/// Through a rewritten segment a chain of its own leads: what is before it is not compared, what comes behind it is.
#[test]
fn a_rewritten_segment_says_nothing_of_the_hash_before_it() {
    let segment = |rewrite_generation, stream| message::Segment {
        stream,
        previous_epoch: 3,
        epochs: vec![EpochStart { epoch: 3, start: 100 }],
        base_offset: 100,
        end_offset: 200,
        watermark: 0,
        hash_before: 77,
        hash_after: 200,
        rewrite_generation,
        adopted: false,
    };
    let (mut follower, mut effects) = aligned();
    follower.handle_segment(1, &segment(0, STREAM), &mut effects);
    assert!(matches!(effects[0], Effect::Refuse { refusal: Refusal::RunningHash { expected: 100, actual: 77, .. }, .. }), "{effects:?}");
    let (mut follower, mut effects) = aligned();
    follower.handle_segment(1, &segment(1, STREAM), &mut effects);
    assert_eq!(effects, [Effect::Append { base_offset: 100, end_offset: 200, opens_segment: true }]);
    assert_eq!(follower.log().running_hash, Some(200));
    // One whose bytes did not come is asked for again, once it is of the present stream.
    let (mut follower, mut effects) = aligned();
    follower.handle_segment_lost(&segment(0, StreamId { session: 0, ..STREAM }), &mut effects);
    assert_eq!(effects, []);
    follower.handle_segment_lost(&segment(0, STREAM), &mut effects);
    assert!(
        matches!(&effects[..], [Effect::Send { to: 1, message: Message::Ack(ack) }] if ack.rewind && ack.log_end == 100),
        "{effects:?}"
    );
}
