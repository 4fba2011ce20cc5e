//! What was acknowledged is there, and the log is whole from its start to its end.

use std::collections::{HashMap, HashSet};

use corelane::types::Offset;

use super::facts::{Facts, FinalRead, Seen, Send};
use super::finding::{Finding, Kind};
use super::history::{Partition, Value};
use super::polls::Passed;

/// Judges every partition.
pub fn check(facts: &Facts, passed: &Passed, found: &mut Vec<Finding>) {
    let mut acknowledged: HashMap<Partition, Vec<&Send>> = HashMap::new();
    for send in facts.sends.iter().filter(|send| send.is_ok()) {
        acknowledged.entry(send.partition).or_default().push(send);
    }
    for (partition, seen) in &facts.partitions {
        let judge = Judge { partition: *partition, facts, seen, acknowledged: acknowledged.get(partition).map_or(&[], |sends| sends) };
        judge.check_negative(found);
        for last in &seen.finals {
            judge.check_kept(last, found);
            judge.check_whole(last, found);
            judge.check_end(last, found);
        }
        if seen.finals.is_empty() {
            judge.check_passed(passed, found);
        }
    }
}

struct Judge<'a> {
    partition: Partition,
    facts: &'a Facts,
    seen: &'a Seen,
    acknowledged: &'a [&'a Send],
}

impl Judge<'_> {
    fn finding(&self, kind: Kind, offset: Option<Offset>, values: Vec<Value>, events: Vec<usize>, text: String) -> Finding {
        Finding { kind, partition: Some(self.partition), offset, values, events, text }
    }

    /// What was read or acknowledged is in the final read.
    fn check_kept(&self, last: &FinalRead, found: &mut Vec<Finding>) {
        let kept: HashSet<Value> = last.records.iter().map(|(_, value)| *value).collect();
        let mut read = HashSet::new();
        for sighting in self.seen.sightings.iter().filter(|sighting| sighting.read && sighting.event != last.event) {
            let (value, offset) = (sighting.value, sighting.offset);
            let sent = self.facts.send_to(self.partition, value).is_some_and(|send| !send.is_refused());
            if read.insert(value) && sent && offset >= self.seen.start && !kept.contains(&value) {
                let text = format!(
                    "value {value}, read at offset {offset} in event {}, is gone in the final read of event {}",
                    sighting.event, last.event
                );
                found.push(self.finding(Kind::LostWrite, Some(offset), vec![value], vec![sighting.event, last.event], text));
            }
        }
        let highest = self.seen.sightings.iter().rev().find(|sighting| sighting.read);
        for send in self.acknowledged {
            let (value, event) = (send.value, send.last_event());
            if kept.contains(&value) || read.contains(&value) || send.offset.is_some_and(|offset| offset < self.seen.start) {
                continue;
            }
            let place = send.offset.map_or_else(String::new, |offset| format!(" at offset {offset}"));
            let begin = format!("value {value}, acknowledged{place} in event {event}, was never read");
            let later = highest.filter(|highest| send.offset.is_some_and(|offset| offset < highest.offset));
            let (kind, events, text) = match later {
                Some(later) => {
                    let text = format!("{begin}, though offset {} was, in event {}", later.offset, later.event);
                    (Kind::LostWrite, vec![event, later.event, last.event], text)
                }
                None => (Kind::Unseen, vec![event, last.event], format!("{begin}, not even by the final read of event {}", last.event)),
            };
            found.push(self.finding(kind, send.offset, vec![value], events, text));
        }
    }

    /// Nobody read everything: what a consumer passed by must have been read all the same.
    fn check_passed(&self, passed: &Passed, found: &mut Vec<Finding>) {
        let ranges = passed.get(&self.partition).map_or(&[][..], |ranges| ranges);
        let read: HashSet<Value> = self.seen.sightings.iter().filter(|sighting| sighting.read).map(|sighting| sighting.value).collect();
        for send in self.acknowledged {
            let Some(offset) = send.offset.filter(|_| !read.contains(&send.value)) else { continue };
            let at = ranges.partition_point(|range| range.end <= offset);
            if let Some(range) = ranges.get(at).filter(|range| range.start <= offset) {
                let (value, event) = (send.value, send.last_event());
                let text = format!(
                    "value {value}, acknowledged at offset {offset} in event {event}, was never read, though offsets {} to {} were passed",
                    range.start,
                    range.end - 1
                );
                found.push(self.finding(Kind::LostWrite, Some(offset), vec![value], vec![event], text));
            }
        }
    }

    /// The final read has every offset from the log's start to its end.
    fn check_whole(&self, last: &FinalRead, found: &mut Vec<Finding>) {
        let mut offsets: Vec<Offset> = last.records.iter().map(|(offset, _)| *offset).filter(|offset| *offset < last.end).collect();
        offsets.push(last.end);
        offsets.sort_unstable();
        let mut due = last.start;
        for offset in offsets {
            if offset > due {
                let text = format!(
                    "nothing at offsets {due} to {} in the final read of event {}, from {} to {}",
                    offset - 1,
                    last.event,
                    last.start,
                    last.end
                );
                found.push(self.finding(Kind::Hole, Some(due), vec![], vec![last.event], text));
            }
            due = due.max(offset.saturating_add(1));
        }
    }

    /// Nothing was seen at or past the end of the log.
    fn check_end(&self, last: &FinalRead, found: &mut Vec<Finding>) {
        let past = self.seen.sightings.partition_point(|sighting| sighting.offset < last.end);
        for same in self.seen.sightings[past..].chunk_by(|a, b| a.offset == b.offset) {
            let (offset, value, event) = (same[0].offset, same[0].value, same[0].event);
            let how = if same[0].read { "read" } else { "acknowledged" };
            let text = format!(
                "value {value} was {how} at offset {offset} in event {event}, and the log ends at {} (event {})",
                last.end, last.event
            );
            found.push(self.finding(Kind::BeyondEnd, Some(offset), vec![value], vec![event, last.event], text));
        }
    }

    fn check_negative(&self, found: &mut Vec<Finding>) {
        for sighting in self.seen.sightings.iter().take_while(|sighting| sighting.offset < 0) {
            let text = format!("value {} at offset {} in event {}", sighting.value, sighting.offset, sighting.event);
            found.push(self.finding(Kind::BeyondEnd, Some(sighting.offset), vec![sighting.value], vec![sighting.event], text));
        }
    }
}
