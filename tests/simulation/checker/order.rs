//! Offsets follow the order of sending.

use std::collections::HashMap;

use corelane::types::{Offset, ProducerId};

use super::facts::Facts;
use super::finding::{Finding, Kind};
use super::history::{Partition, Value};

/// Judges every send whose offset is known: from its acknowledgement, or because somebody read it.
pub fn check(facts: &Facts, found: &mut Vec<Finding>) {
    let read = lowest_read(facts);
    // Of each idempotent producer in each partition: the highest offset so far, and whose it is.
    let mut highest: HashMap<(ProducerId, Partition), (Offset, usize)> = HashMap::new();
    for (place, send) in facts.sends.iter().enumerate().filter(|(_, send)| !send.is_refused()) {
        let Some(offset) = send.offset.or_else(|| read.get(&send.value).copied()) else { continue };
        let before = send.producer.and_then(|producer| highest.get(&(producer, send.partition)).copied());
        let acknowledged = send.floor.filter(|(floor, _)| offset <= *floor);
        let (what, earlier) = match (acknowledged, before.filter(|(before, _)| offset <= *before)) {
            (Some(floor), _) => ("acknowledged before this one was sent", Some(floor)),
            (None, Some(before)) => ("sent before it by the same idempotent producer", Some(before)),
            (None, None) => ("", None),
        };
        if let Some((other, other_place)) = earlier {
            let other_send = &facts.sends[other_place];
            let text = format!(
                "value {} (sent in event {}) is at offset {offset}, value {} (event {}), {what}, at offset {other}",
                send.value,
                send.invoked,
                other_send.value,
                other_send.last_event()
            );
            found.push(Finding {
                kind: Kind::NonmonotonicSend,
                partition: Some(send.partition),
                offset: Some(offset),
                values: vec![other_send.value, send.value],
                events: vec![other_send.last_event(), send.invoked],
                text,
            });
        }
        if let Some(producer) = send.producer.filter(|_| before.is_none_or(|(before, _)| offset > before)) {
            highest.insert((producer, send.partition), (offset, place));
        }
    }
}

/// Where each value was read first in its log: every copy of it was appended after it was sent, so the first one is what counts.
fn lowest_read(facts: &Facts) -> HashMap<Value, Offset> {
    let mut read = HashMap::new();
    for (partition, seen) in &facts.partitions {
        for sighting in seen.sightings.iter().filter(|sighting| sighting.read && facts.send_to(*partition, sighting.value).is_some()) {
            read.entry(sighting.value).or_insert(sighting.offset);
        }
    }
    read
}
