//! One pass over the events: sends with their ends, who saw which value where, final reads.

use std::collections::{BTreeMap, HashMap};

use corelane::types::{Offset, ProducerId};

use super::finding::{Finding, Kind};
use super::history::{Event, History, Operation, Partition, Phase, Record, Value};

/// A send and what became of it.
pub struct Send {
    /// What.
    pub value: Value,
    /// By which idempotent producer.
    pub producer: Option<ProducerId>,
    /// Where to.
    pub partition: Partition,
    /// The event with which it began.
    pub invoked: usize,
    /// How it ended, and the event of that.
    pub ended: Option<(Phase, usize)>,
    /// Where it was acknowledged to be.
    pub offset: Option<Offset>,
    /// The highest offset of the partition that was acknowledged before it began, with the place of that send in [`Facts::sends`].
    pub floor: Option<(Offset, usize)>,
}

impl Send {
    /// Acknowledged.
    pub fn is_ok(&self) -> bool {
        matches!(self.ended, Some((Phase::Ok, _)))
    }

    /// Refused for certain.
    pub fn is_refused(&self) -> bool {
        matches!(self.ended, Some((Phase::Fail, _)))
    }

    /// The event that shows how it ended, or else that it began.
    pub fn last_event(&self) -> usize {
        self.ended.map_or(self.invoked, |(_, event)| event)
    }
}

/// A value that somebody saw at an offset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sighting {
    /// Where.
    pub offset: Offset,
    /// What.
    pub value: Value,
    /// In which event.
    pub event: usize,
    /// By reading; else an acknowledgement said so.
    pub read: bool,
}

/// A read of everything that is in a partition.
pub struct FinalRead {
    /// In which event.
    pub event: usize,
    /// The log's start.
    pub start: Offset,
    /// One past the log's last offset.
    pub end: Offset,
    /// What was read, by offset.
    pub records: Vec<(Offset, Value)>,
}

/// A partition as it was seen.
#[derive(Default)]
pub struct Seen {
    /// Who saw what, by offset, value and event.
    pub sightings: Vec<Sighting>,
    /// All offsets that anybody saw anything at, in order.
    pub offsets: Vec<Offset>,
    /// Final reads.
    pub finals: Vec<FinalRead>,
    /// The highest of the starts that final reads saw: below it nothing is expected.
    pub start: Offset,
    /// The highest offset that was acknowledged so far, while gathering.
    highest_acknowledged: Option<(Offset, usize)>,
}

/// What the rules look at.
#[derive(Default)]
pub struct Facts {
    /// In the order in which they began.
    pub sends: Vec<Send>,
    /// Where a value's send is in `sends`.
    pub by_value: HashMap<Value, usize>,
    /// By partition.
    pub partitions: BTreeMap<Partition, Seen>,
}

impl Facts {
    /// Reads a history once.
    pub fn gather(history: &History, found: &mut Vec<Finding>) -> Facts {
        let mut facts = Facts::default();
        for (at, event) in history.events().iter().enumerate() {
            match (&event.operation, event.phase) {
                (Operation::Send { .. }, Phase::Invoke) => facts.handle_invoke(at, event, found),
                (Operation::Send { .. }, _) => facts.handle_end(at, event, found),
                (Operation::Poll { records }, Phase::Ok) => {
                    for Record { partition, offset, value } in records.iter().copied() {
                        facts.saw(partition, Sighting { offset, value, event: at, read: true });
                    }
                }
                (Operation::FinalRead { partition, start, end, records }, Phase::Ok) => {
                    for (offset, value) in records.iter().copied() {
                        facts.saw(*partition, Sighting { offset, value, event: at, read: true });
                    }
                    let seen = facts.partitions.entry(*partition).or_default();
                    seen.start = seen.start.max(*start);
                    seen.finals.push(FinalRead { event: at, start: *start, end: *end, records: records.clone() });
                }
                _ => {}
            }
        }
        for seen in facts.partitions.values_mut() {
            seen.sightings.sort_unstable();
            seen.offsets = seen.sightings.iter().map(|sighting| sighting.offset).collect();
            seen.offsets.dedup();
        }
        facts
    }

    /// The send of a value to a partition.
    pub fn send_to(&self, partition: Partition, value: Value) -> Option<&Send> {
        self.by_value.get(&value).map(|at| &self.sends[*at]).filter(|send| send.partition == partition)
    }

    fn saw(&mut self, partition: Partition, sighting: Sighting) {
        self.partitions.entry(partition).or_default().sightings.push(sighting);
    }

    fn handle_invoke(&mut self, at: usize, event: &Event, found: &mut Vec<Finding>) {
        let Operation::Send { producer, partition, value, .. } = event.operation else { return };
        if let Some(earlier) = self.by_value.get(&value) {
            let first = self.sends[*earlier].invoked;
            found.push(malformed(partition, value, vec![first, at], format!("value {value} is sent in events {first} and {at}")));
            return;
        }
        let seen = self.partitions.entry(partition).or_default();
        if let Some(last) = seen.finals.last() {
            let text = format!("value {value} is sent in event {at}, after the final read of event {}", last.event);
            found.push(malformed(partition, value, vec![last.event, at], text));
        }
        let floor = seen.highest_acknowledged;
        self.by_value.insert(value, self.sends.len());
        self.sends.push(Send { value, producer, partition, invoked: at, ended: None, offset: None, floor });
    }

    fn handle_end(&mut self, at: usize, event: &Event, found: &mut Vec<Finding>) {
        let Operation::Send { producer, partition, value, offset } = event.operation else { return };
        let mut bad = |events: Vec<usize>, text: String| found.push(malformed(partition, value, events, text));
        let Some(place) = self.by_value.get(&value).copied() else {
            return bad(vec![at], format!("the send of value {value} ends in event {at} and never began"));
        };
        let send = &mut self.sends[place];
        if let Some((_, earlier)) = send.ended {
            return bad(vec![earlier, at], format!("the send of value {value} ends in events {earlier} and {at}"));
        }
        if (send.producer, send.partition) != (producer, partition) {
            return bad(
                vec![send.invoked, at],
                format!("the send of value {value} ends in event {at} as another one than it began in event {}", send.invoked),
            );
        }
        send.ended = Some((event.phase, at));
        if event.phase != Phase::Ok {
            return;
        }
        send.offset = offset;
        let seen = self.partitions.entry(partition).or_default();
        if let Some(last) = seen.finals.last() {
            bad(vec![last.event, at], format!("value {value} is acknowledged in event {at}, after the final read of event {}", last.event));
        }
        if let Some(offset) = offset {
            if seen.highest_acknowledged.is_none_or(|(highest, _)| offset > highest) {
                seen.highest_acknowledged = Some((offset, place));
            }
            self.saw(partition, Sighting { offset, value, event: at, read: false });
        }
    }
}

fn malformed(partition: Partition, value: Value, events: Vec<usize>, text: String) -> Finding {
    Finding { kind: Kind::Malformed, partition: Some(partition), offset: None, values: vec![value], events, text }
}
