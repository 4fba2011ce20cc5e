//! A history with a mistake of every kind, and its twin without.

use crate::checker::{Event, History, HistoryError, Kind, Operation, Phase, check, report};
use crate::clients::Clients;

fn kinds(history: &History) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = check(history).iter().map(|finding| finding.kind).collect();
    kinds.dedup();
    kinds
}

/// Both are made by `write`, which is told whether to make the mistake.
#[track_caller]
fn planted(expected: &[Kind], write: impl Fn(&mut Clients, bool)) {
    let mut clean = Clients::default();
    write(&mut clean, false);
    let found = check(&clean.0);
    assert!(found.is_empty(), "the clean twin:\n{}", report(&clean.0, &found));
    let mut bad = Clients::default();
    write(&mut bad, true);
    assert_eq!(kinds(&bad.0), expected, "{}", report(&bad.0, &check(&bad.0)));
}

const P: Option<i64> = Some(7);

#[test]
fn a_write_that_a_consumer_passed_by_is_lost() {
    planted(&[Kind::LostWrite, Kind::SkippedPoll], |clients, bad| {
        (0..3).for_each(|n| clients.sent(P, 0, 100 + n as u64, n));
        clients.poll(1, if bad { &[(0, 0, 100), (0, 2, 102)] } else { &[(0, 0, 100), (0, 1, 101), (0, 2, 102)] });
    });
}

#[test]
fn a_consumer_that_began_later_has_passed_nothing_by() {
    planted(&[Kind::LostWrite, Kind::SkippedPoll], |clients, bad| {
        (0..3).for_each(|n| clients.sent(P, 0, 100 + n as u64, n));
        clients.assign(1, &[(0, if bad { Some(1) } else { None })]);
        clients.poll(1, &[(0, 2, 102)]);
    });
}

#[test]
fn a_write_below_the_end_of_a_final_read_is_lost() {
    planted(&[Kind::LostWrite, Kind::SkippedPoll, Kind::Hole], |clients, bad| {
        (0..3).for_each(|n| clients.sent(P, 0, 100 + n as u64, n));
        clients.final_read(0, 0, 3, if bad { &[(0, 100), (2, 102)] } else { &[(0, 100), (1, 101), (2, 102)] });
    });
}

#[test]
fn a_write_that_another_one_took_the_place_of_is_lost() {
    planted(&[Kind::LostWrite, Kind::InconsistentOffset, Kind::NonmonotonicSend], |clients, bad| {
        (0..2).for_each(|n| clients.sent(P, 0, 100 + n as u64, n));
        (102..104).for_each(|value| clients.send(Some(8), 0, value));
        match bad {
            false => clients.final_read(0, 0, 4, &[(0, 100), (1, 101), (2, 102), (3, 103)]),
            true => clients.final_read(0, 0, 3, &[(0, 100), (1, 102), (2, 103)]),
        }
    });
}

#[test]
fn a_write_that_was_read_and_is_gone_is_lost_though_nobody_acknowledged_it() {
    planted(&[Kind::LostWrite, Kind::BeyondEnd], |clients, bad| {
        clients.sent(P, 0, 100, 0);
        clients.send(P, 0, 101);
        clients.end(Phase::Info, P, 0, 101, None);
        clients.poll(1, &[(0, 0, 100), (0, 1, 101)]);
        match bad {
            false => clients.final_read(0, 0, 2, &[(0, 100), (1, 101)]),
            true => clients.final_read(0, 0, 1, &[(0, 100)]),
        }
    });
}

#[test]
fn each_of_several_final_reads_has_everything() {
    planted(&[Kind::Unseen, Kind::BeyondEnd], |clients, bad| {
        clients.sent(P, 0, 100, 0);
        if bad {
            // The first replica that is read has nothing; nothing else read the value before.
            clients.final_read(0, 0, 0, &[]);
        } else {
            clients.final_read(0, 0, 1, &[(0, 100)]);
        }
    });
    planted(&[Kind::LostWrite, Kind::BeyondEnd], |clients, bad| {
        clients.sent(P, 0, 100, 0);
        clients.final_read(0, 0, 1, &[(0, 100)]);
        match bad {
            false => clients.final_read(0, 0, 1, &[(0, 100)]),
            true => clients.final_read(0, 0, 0, &[]),
        }
    });
}

#[test]
fn an_acknowledged_write_that_the_final_read_lacks_is_unseen() {
    planted(&[Kind::Unseen, Kind::BeyondEnd], |clients, bad| {
        clients.sent(P, 0, 100, 0);
        clients.sent(P, 0, 101, 1);
        match bad {
            false => clients.final_read(0, 0, 2, &[(0, 100), (1, 101)]),
            true => clients.final_read(0, 0, 1, &[(0, 100)]),
        }
    });
    planted(&[Kind::Unseen], |clients, bad| {
        clients.send(P, 0, 100);
        // Acknowledged, and the client did not get to know where.
        clients.end(if bad { Phase::Ok } else { Phase::Info }, P, 0, 100, None);
        clients.final_read(0, 0, 0, &[]);
    });
}

#[test]
fn what_was_deleted_from_the_start_is_not_lost() {
    planted(&[Kind::LostWrite, Kind::SkippedPoll, Kind::Hole], |clients, bad| {
        (0..4).for_each(|n| clients.sent(P, 0, 100 + n as u64, n));
        clients.final_read(0, if bad { 1 } else { 2 }, 4, &[(2, 102), (3, 103)]);
    });
}

#[test]
fn a_value_at_two_offsets_is_a_duplicate() {
    planted(&[Kind::Duplicate], |clients, bad| {
        clients.sent(P, 0, 100, 0);
        clients.send(P, 0, 101);
        clients.end(Phase::Info, P, 0, 101, None);
        match bad {
            false => clients.final_read(0, 0, 2, &[(0, 100), (1, 101)]),
            true => clients.final_read(0, 0, 3, &[(0, 100), (1, 101), (2, 101)]),
        }
    });
    // An acknowledgement counts as much as a read.
    planted(&[Kind::Duplicate], |clients, bad| {
        clients.sent(P, 0, 100, 0);
        clients.send(P, 0, 101);
        clients.send(Some(8), 0, 102);
        clients.end(Phase::Ok, P, 0, 101, Some(if bad { 2 } else { 1 }));
        clients.poll(1, &[(0, 0, 100), (0, 1, 101)]);
    });
}

#[test]
fn a_producer_that_is_not_idempotent_may_leave_a_value_twice() {
    planted(&[Kind::Duplicate], |clients, bad| {
        let producer = bad.then_some(7);
        clients.sent(producer, 0, 100, 1);
        clients.final_read(0, 0, 2, &[(0, 100), (1, 100)]);
    });
}

#[test]
fn a_refused_value_is_not_read() {
    planted(&[Kind::AbortedRead], |clients, bad| {
        clients.send(P, 0, 100);
        clients.end(if bad { Phase::Fail } else { Phase::Info }, P, 0, 100, None);
        clients.poll(1, &[(0, 0, 100)]);
    });
}

#[test]
fn two_readers_see_one_value_at_an_offset() {
    planted(&[Kind::InconsistentOffset], |clients, bad| {
        clients.send(P, 0, 100);
        clients.send(Some(8), 0, 101);
        clients.poll(1, &[(0, 0, 100)]);
        clients.poll(2, &[(0, 0, if bad { 101 } else { 100 })]);
    });
    planted(&[Kind::InconsistentOffset], |clients, bad| {
        clients.send(P, 0, 100);
        clients.send(Some(8), 0, 101);
        clients.end(Phase::Ok, P, 0, 100, Some(0));
        clients.end(Phase::Ok, Some(8), 0, 101, Some(if bad { 0 } else { 1 }));
    });
}

/// Four records, and a consumer.
fn polled(before: impl Fn(&mut Clients), polls: &[&[(u32, i64, u64)]]) -> History {
    let mut clients = Clients::default();
    (0..4).for_each(|n| clients.sent(P, 0, 100 + n as u64, n));
    for poll in polls {
        clients.poll(1, poll);
        before(&mut clients);
    }
    clients.0
}

#[test]
fn a_consumer_goes_forward_and_leaves_nothing_out() {
    let nothing = |_: &mut Clients| {};
    let [a, b, c, d] = [(0, 0, 100), (0, 1, 101), (0, 2, 102), (0, 3, 103)];
    let all: &[&[_]] = &[&[a, b, c, d]];
    assert_eq!(kinds(&polled(nothing, all)), []);
    assert_eq!(kinds(&polled(nothing, &[&[a, b], &[c], &[], &[d]])), []);
    // Within a poll, and between two.
    let back: &[&[&[_]]] = &[&[&[a, b, a, b, c, d]], &[&[a, b, c], &[b, c, d]], &[&[a, a, b, c, d]], &[&[a, b], &[b, c, d]]];
    for polls in back {
        assert_eq!(kinds(&polled(nothing, polls)), [Kind::NonmonotonicPoll], "{polls:?}");
    }
    // Another consumer reads all, so nothing is lost.
    let reading = |clients: &mut Clients| clients.poll(2, &[]);
    let skips: &[&[&[_]]] = &[&[&[a, c, d]], &[&[a], &[c, d]], &[&[b]]];
    for polls in skips {
        let mut history = polled(reading, polls);
        let mut other = Clients::default();
        other.poll(2, all[0]);
        history.events_mut().extend(other.0.events().to_vec());
        assert_eq!(kinds(&history), [Kind::SkippedPoll], "{polls:?}");
    }
    // A rebalance or a seek in between makes it right.
    let subscribed: &[&[&[_]]] = &[&[&[a, b, c], &[b, c, d]], &[&[a, b], &[d]]];
    for polls in subscribed {
        assert_eq!(kinds(&polled(|clients| clients.subscribe(1), polls)), [], "{polls:?}");
        assert_eq!(kinds(&polled(|clients| clients.assign(1, &[(0, None)]), polls)), [], "{polls:?}");
    }
    assert_eq!(kinds(&polled(|clients| clients.assign(1, &[(0, Some(1))]), &[&[a, b, c], &[b, c, d]])), []);
    assert_eq!(kinds(&polled(|clients| clients.assign(1, &[(0, Some(2))]), &[&[a, b, c], &[b, c, d]])), [Kind::NonmonotonicPoll]);
}

#[test]
fn offsets_follow_the_order_of_sending() {
    // Both on their way at once, of one idempotent producer.
    planted(&[Kind::NonmonotonicSend], |clients, bad| {
        clients.send(P, 0, 100);
        clients.send(P, 0, 101);
        clients.end(Phase::Ok, P, 0, 101, Some(i64::from(!bad)));
        clients.end(Phase::Ok, P, 0, 100, Some(i64::from(bad)));
    });
    // The same of a producer that promises no order.
    planted(&[Kind::NonmonotonicSend], |clients, bad| {
        let producer = bad.then_some(7);
        clients.send(producer, 0, 100);
        clients.send(producer, 0, 101);
        clients.end(Phase::Ok, producer, 0, 101, Some(0));
        clients.end(Phase::Ok, producer, 0, 100, Some(1));
    });
    // Of two producers, one after the other.
    planted(&[Kind::NonmonotonicSend], |clients, bad| {
        clients.sent(P, 0, 100, if bad { 1 } else { 0 });
        clients.sent(Some(8), 0, 101, if bad { 0 } else { 1 });
    });
    // Nobody knows when a send without an answer arrived, but its producer's later ones came after it.
    planted(&[Kind::NonmonotonicSend], |clients, bad| {
        clients.send(P, 0, 100);
        clients.end(Phase::Info, P, 0, 100, None);
        clients.sent(P, 0, 101, i64::from(!bad));
        match bad {
            false => clients.poll(1, &[(0, 0, 100), (0, 1, 101)]),
            true => clients.poll(1, &[(0, 0, 101), (0, 1, 100)]),
        }
    });
}

#[test]
fn nothing_is_beyond_the_end() {
    planted(&[Kind::BeyondEnd], |clients, bad| {
        clients.sent(P, 0, 100, 0);
        clients.final_read(0, 0, i64::from(!bad), &[(0, 100)]);
    });
    planted(&[Kind::BeyondEnd], |clients, bad| {
        clients.sent(P, 0, 100, if bad { -1 } else { 0 });
    });
}

#[test]
fn the_log_has_no_holes() {
    planted(&[Kind::Hole], |clients, bad| {
        clients.send(P, 0, 100);
        clients.send(P, 0, 101);
        match bad {
            false => clients.final_read(0, 0, 2, &[(0, 100), (1, 101)]),
            true => clients.final_read(0, 0, 3, &[(0, 100), (2, 101)]),
        }
    });
}

#[test]
fn only_what_was_sent_is_read() {
    planted(&[Kind::UnsentValue], |clients, bad| {
        clients.send(P, 0, 100);
        clients.poll(1, &[(0, 0, if bad { 555 } else { 100 })]);
    });
    planted(&[Kind::UnsentValue], |clients, bad| {
        clients.send(P, 0, 100);
        clients.poll(1, &[(u32::from(bad), 0, 100)]);
    });
    planted(&[Kind::UnsentValue], |clients, bad| {
        if bad {
            clients.poll(1, &[(0, 0, 100)]);
        }
        clients.send(P, 0, 100);
        clients.poll(2, &[(0, 0, 100)]);
    });
}

#[test]
fn a_history_that_contradicts_itself_is_a_mistake_of_the_test() {
    let mistakes: [fn(&mut Clients); 6] = [
        |clients| clients.send(P, 0, 100),
        |clients| clients.end(Phase::Ok, P, 0, 100, Some(0)),
        |clients| clients.end(Phase::Info, P, 0, 555, None),
        |clients| clients.send(P, 0, 102),
        |clients| clients.end(Phase::Ok, P, 0, 101, None),
        |clients| clients.end(Phase::Fail, P, 1, 101, None),
    ];
    for (at, mistake) in mistakes.iter().enumerate() {
        planted(&[Kind::Malformed], |clients, bad| {
            clients.sent(P, 0, 100, 0);
            clients.send(P, 0, 101);
            // The fourth and the fifth come after the final read.
            let after = at == 3 || at == 4;
            if bad && !after {
                mistake(clients);
            }
            clients.final_read(0, 0, 2, &[(0, 100), (1, 101)]);
            if bad && after {
                mistake(clients);
            }
        });
    }
}

#[test]
fn a_report_tells_the_whole_story() {
    let mut clients = Clients::default();
    (0..30).for_each(|n| clients.sent(P, 0, 100 + n as u64, n));
    let all: Vec<(u32, i64, u64)> = (0..30).filter(|n| *n != 20).map(|n| (0, n, 100 + n as u64)).collect();
    clients.poll(1, &all);
    let report = report(&clients.0, &check(&clients.0));
    let expected = "\
lost write: 1
  lost write: partition 0: value 120, acknowledged at offset 20 in event 41, was never read, though offsets 0 to 29 were passed
    event 41: 410 us, client 7, ok send { producer: some(7), partition: 0, value: 120, offset: some(20) }
skipped poll: 1
  skipped poll: partition 0: offset 21 (value 121) in event 61, where 20 was due since event 61: at least offset 20 (value 120, event 41) was left out
    event 61: 610 us, client 1, ok poll, 29 records: 0/16=116 0/17=117 0/18=118 0/19=119 0/21=121 0/22=122 0/23=123 0/24=124 (those from number 16)
";
    assert_eq!(report.to_lowercase(), expected);
}

#[test]
fn json_lines_keep_everything() {
    let mut clients = Clients::default();
    clients.sent(P, 0, 100, 0);
    clients.send(None, 1, 101);
    clients.end(Phase::Fail, None, 1, 101, None);
    clients.subscribe(1);
    clients.assign(1, &[(0, Some(0)), (1, None)]);
    clients.poll(1, &[(0, 0, 100)]);
    clients.final_read(0, 0, 1, &[(0, 100)]);
    let mut text = Vec::new();
    clients.0.write(&mut text).unwrap();
    assert_eq!(History::read(&text[..]).unwrap(), clients.0);
    let lines: Vec<&str> = std::str::from_utf8(&text).unwrap().lines().collect();
    assert_eq!(lines[1], r#"{"time_us":10,"client":7,"phase":"ok","op":"send","producer":7,"partition":0,"value":100,"offset":0}"#);
    assert_eq!(lines[7], r#"{"time_us":70,"client":1,"phase":"ok","op":"poll","records":[[0,0,100]]}"#);
    // A killed client's last line is cut somewhere.
    let torn = History::read(&text[..text.len() - 5]).unwrap();
    assert_eq!(torn.events(), &clients.0.events()[..clients.0.events().len() - 1]);
    let bad = [&text[..], b"{\"time_us\":1}\n"].concat();
    assert!(matches!(History::read(&bad[..]), Err(HistoryError::Line { line: 10, .. })));
}

#[test]
fn logs_of_several_clients_become_one_history() {
    let event = |time_us, phase, value, offset| Event {
        time_us,
        client: value as u32,
        phase,
        operation: Operation::Send { producer: None, partition: 0, value, offset },
    };
    let parts = [
        vec![event(5, Phase::Invoke, 1, None), event(8, Phase::Ok, 1, Some(1))],
        vec![event(8, Phase::Invoke, 2, None), event(9, Phase::Ok, 2, Some(0))],
    ];
    let of = |events: &[Event]| {
        let mut history = History::default();
        events.iter().cloned().for_each(|event| history.push(event));
        history
    };
    let merged = History::merge(parts.iter().map(|part| of(part)));
    let order: Vec<(u64, Phase)> = merged.events().iter().map(|event| (event.time_us, event.phase)).collect();
    assert_eq!(order, [(5, Phase::Invoke), (8, Phase::Invoke), (8, Phase::Ok), (9, Phase::Ok)]);
    assert!(check(&merged).is_empty(), "in the same microsecond the second may have begun before the first was acknowledged");
}
