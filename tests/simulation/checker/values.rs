//! Values and offsets belong together, one to one; and nothing is read that was not sent.

use corelane::types::Offset;

use super::facts::{Facts, Seen, Sighting};
use super::finding::{Finding, Kind};
use super::history::{Partition, Value};

/// Judges every sighting of every partition.
pub fn check(facts: &Facts, found: &mut Vec<Finding>) {
    for (partition, seen) in &facts.partitions {
        check_offsets(*partition, seen, found);
        let mut by_value: Vec<Sighting> = seen.sightings.clone();
        by_value.sort_unstable_by_key(|sighting| (sighting.value, sighting.offset, sighting.event));
        for same in by_value.chunk_by(|a, b| a.value == b.value) {
            check_value(facts, *partition, same, found);
        }
    }
}

/// One offset has one value, whoever looks.
fn check_offsets(partition: Partition, seen: &Seen, found: &mut Vec<Finding>) {
    for same in seen.sightings.chunk_by(|a, b| a.offset == b.offset) {
        let each: Vec<&[Sighting]> = same.chunk_by(|a, b| a.value == b.value).collect();
        if each.len() > 1 {
            let offset = same[0].offset;
            let words: Vec<String> = each.iter().map(|one| format!("value {} {}", one[0].value, how(&one[0]))).collect();
            found.push(Finding {
                kind: Kind::InconsistentOffset,
                partition: Some(partition),
                offset: Some(offset),
                values: each.iter().map(|one| one[0].value).collect(),
                events: each.iter().map(|one| one[0].event).collect(),
                text: format!("offset {offset} has {}", words.join(", ")),
            });
        }
    }
}

/// One value, with all that was seen of it in one partition.
fn check_value(facts: &Facts, partition: Partition, same: &[Sighting], found: &mut Vec<Finding>) {
    let value = same[0].value;
    let Some(read) = same.iter().filter(|sighting| sighting.read).min_by_key(|sighting| sighting.event) else {
        return check_places(facts, partition, value, same, found);
    };
    let (offset, event) = (read.offset, read.event);
    let mut push = |kind, offset: Offset, events: Vec<usize>, text: String| {
        found.push(Finding { kind, partition: Some(partition), offset: Some(offset), values: vec![value], events, text });
    };
    let Some(send) = facts.by_value.get(&value).map(|at| &facts.sends[*at]) else {
        return push(
            Kind::UnsentValue,
            offset,
            vec![event],
            format!("value {value}, read at offset {offset} in event {event}, was never sent"),
        );
    };
    if send.partition != partition {
        let text = format!(
            "value {value}, read at offset {offset} in event {event}, was sent to partition {} (event {})",
            send.partition, send.invoked
        );
        return push(Kind::UnsentValue, offset, vec![send.invoked, event], text);
    }
    if event < send.invoked {
        let text = format!("value {value}, read at offset {offset} in event {event}, was not sent before event {}", send.invoked);
        push(Kind::UnsentValue, offset, vec![event, send.invoked], text);
    }
    if send.is_refused() {
        let refused = send.last_event();
        let text = format!("value {value}, refused in event {refused}, was read at offset {offset} in event {event}");
        push(Kind::AbortedRead, offset, vec![refused, event], text);
    }
    check_places(facts, partition, value, same, found);
}

/// An idempotent producer's value is at one offset.
fn check_places(facts: &Facts, partition: Partition, value: Value, same: &[Sighting], found: &mut Vec<Finding>) {
    let each: Vec<&[Sighting]> = same.chunk_by(|a, b| a.offset == b.offset).collect();
    let Some(producer) = facts.send_to(partition, value).and_then(|send| send.producer) else { return };
    if each.len() > 1 {
        let words: Vec<String> = each.iter().map(|one| format!("at offset {} {}", one[0].offset, how(&one[0]))).collect();
        found.push(Finding {
            kind: Kind::Duplicate,
            partition: Some(partition),
            offset: Some(same[0].offset),
            values: vec![value],
            events: each.iter().map(|one| one[0].event).collect(),
            text: format!("value {value} of the idempotent producer {producer} is {}", words.join(", ")),
        });
    }
}

fn how(sighting: &Sighting) -> String {
    format!("({} in event {})", if sighting.read { "read" } else { "acknowledged" }, sighting.event)
}
