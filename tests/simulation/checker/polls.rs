//! A consumer reads forward and leaves nothing out.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use corelane::types::Offset;

use super::facts::Facts;
use super::finding::{Finding, Kind};
use super::history::{ClientId, History, Operation, Partition, Phase, Record, Value};

/// The offsets that consumers passed by, by partition: they were at one end and came to the other, so they must have read everything in between.
pub type Passed = BTreeMap<Partition, Vec<Range<Offset>>>;

/// Where a consumer is in one partition.
struct Position {
    /// The offset that must come next.
    next: Offset,
    /// Where it began.
    from: Offset,
    /// The event that brought it there; `None` at the start of the log.
    since: Option<usize>,
}

/// A consumer.
struct Consumer {
    positions: HashMap<Partition, Position>,
    /// It was never assigned anything: partitions are read from their start.
    from_start: bool,
}

/// Follows every consumer.
pub fn check(history: &History, facts: &Facts, found: &mut Vec<Finding>) -> Passed {
    let mut consumers: HashMap<ClientId, Consumer> = HashMap::new();
    let mut passed = Passed::new();
    for (at, event) in history.events().iter().enumerate() {
        if event.phase == Phase::Invoke || event.phase == Phase::Fail {
            continue;
        }
        let consumer = || Consumer { positions: HashMap::new(), from_start: true };
        match &event.operation {
            Operation::Poll { records } if event.phase == Phase::Ok => {
                let consumer = consumers.entry(event.client).or_insert_with(consumer);
                for record in records {
                    consumer.handle_record(at, *record, facts, &mut passed, found);
                }
            }
            Operation::Assign { positions } => {
                let consumer = consumers.entry(event.client).or_insert_with(consumer);
                consumer.forget(&mut passed);
                let known =
                    positions.iter().filter(|_| event.phase == Phase::Ok).filter_map(|(partition, offset)| Some((*partition, (*offset)?)));
                consumer.positions.extend(known.map(|(partition, next)| (partition, Position { next, from: next, since: Some(at) })));
            }
            Operation::Subscribe => consumers.entry(event.client).or_insert_with(consumer).forget(&mut passed),
            Operation::FinalRead { partition, start, records, .. } if event.phase == Phase::Ok => {
                let position = Position { next: *start, from: *start, since: None };
                let mut reader = Consumer { positions: HashMap::from([(*partition, position)]), from_start: false };
                for (offset, value) in records.iter().copied() {
                    reader.handle_record(at, Record { partition: *partition, offset, value }, facts, &mut passed, found);
                }
            }
            _ => {}
        }
    }
    for consumer in consumers.values_mut() {
        consumer.forget(&mut passed);
    }
    passed.values_mut().for_each(merge);
    passed
}

impl Consumer {
    fn handle_record(&mut self, at: usize, record: Record, facts: &Facts, passed: &mut Passed, found: &mut Vec<Finding>) {
        let Record { partition, offset, value } = record;
        let start = if self.from_start { 0 } else { offset };
        let position = self.positions.entry(partition).or_insert(Position { next: start, from: start, since: None });
        let since = position.since.map_or_else(|| "the start of the log".into(), |event| format!("event {event}"));
        let mut push = |kind, text: String, values: Vec<Value>| {
            let events = position.since.into_iter().filter(|since| *since != at).chain([at]).collect();
            found.push(Finding { kind, partition: Some(partition), offset: Some(offset), values, events, text });
        };
        let next = position.next;
        if offset < next {
            push(
                Kind::NonmonotonicPoll,
                format!("offset {offset} (value {value}) in event {at}, where {next} was due since {since}"),
                vec![value],
            );
            passed.entry(partition).or_default().push(position.from..next);
            position.from = offset;
        } else if offset > next {
            let seen = &facts.partitions[&partition];
            let due = seen.sightings.partition_point(|sighting| sighting.offset < next.max(seen.start));
            if let Some(left) = seen.sightings.get(due).filter(|sighting| sighting.offset < offset) {
                let text = format!(
                    "offset {offset} (value {value}) in event {at}, where {next} was due since {since}: at least offset {} (value {}, event {}) was left out",
                    left.offset, left.value, left.event
                );
                push(Kind::SkippedPoll, text, vec![left.value, value]);
            }
        }
        // No offset is negative, nor the last one of all: such ones are found elsewhere.
        position.next = offset.saturating_add(1);
        position.since = Some(at);
    }

    /// Its positions are what somebody else makes them from now on.
    fn forget(&mut self, passed: &mut Passed) {
        for (partition, position) in self.positions.drain() {
            passed.entry(partition).or_default().push(position.from..position.next);
        }
        self.from_start = false;
    }
}

/// Sorts ranges and makes one of those that overlap.
fn merge(ranges: &mut Vec<Range<Offset>>) {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<Offset>> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    *ranges = merged;
}
