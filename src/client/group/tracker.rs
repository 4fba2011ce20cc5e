//! Which record may be handled now, and up to where everything is handled. Pure.
//!
//! Records of one key of a partition are handled one after the other, and so are those of a partition without a key; everything else goes side by side, up to
//! a number. A position is committable when every record before it is handled.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::types::Offset;

/// A partition of a topic.
pub(super) type Place = (Arc<str>, u32);

/// What is handled in order.
type Lane = (Place, Option<Bytes>);

/// A record that is being handled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ticket {
    lane: Lane,
    offset: Offset,
    /// Of the partition when the record came.
    term: u64,
}

/// See the module's page; `R` is a record.
#[derive(Debug)]
pub(super) struct Tracker<R> {
    concurrency: usize,
    partitions: BTreeMap<Place, Progress>,
    /// Records that wait, by lane; a lane with a record being handled is in it too.
    lanes: HashMap<Lane, VecDeque<(Ticket, R)>>,
    /// Lanes whose next record may be handled.
    ready: VecDeque<Lane>,
    running: usize,
    waiting: usize,
    terms: u64,
}

#[derive(Debug)]
struct Progress {
    /// Offsets that came and are not handled.
    open: BTreeSet<Offset>,
    /// One past the last offset that came.
    next: Offset,
    committed: Option<Offset>,
    running: usize,
    term: u64,
}

impl Progress {
    fn handled_up_to(&self) -> Offset {
        self.open.first().copied().unwrap_or(self.next)
    }
}

impl<R> Tracker<R> {
    /// So many records are handled at once, at least one.
    pub fn new(concurrency: usize) -> Tracker<R> {
        Tracker {
            concurrency: concurrency.max(1),
            partitions: BTreeMap::new(),
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            running: 0,
            waiting: 0,
            terms: 0,
        }
    }

    /// A record came; those of a partition come in the order of their offsets.
    pub fn offer(&mut self, place: Place, key: Option<Bytes>, offset: Offset, record: R) {
        let terms = &mut self.terms;
        let progress = self.partitions.entry(place.clone()).or_insert_with(|| {
            *terms += 1;
            Progress { open: BTreeSet::new(), next: offset, committed: None, running: 0, term: *terms }
        });
        progress.open.insert(offset);
        progress.next = offset + 1;
        let lane = (place, key);
        let ticket = Ticket { lane: lane.clone(), offset, term: progress.term };
        let records = self.lanes.entry(lane.clone()).or_insert_with(|| {
            self.ready.push_back(lane);
            VecDeque::new()
        });
        records.push_back((ticket, record));
        self.waiting += 1;
    }

    /// A record to be handled now.
    pub fn take(&mut self) -> Option<(Ticket, R)> {
        if self.running >= self.concurrency {
            return None;
        }
        let lane = self.ready.pop_front()?;
        let (ticket, record) = self.lanes.get_mut(&lane)?.pop_front()?;
        if let Some(progress) = self.partitions.get_mut(&lane.0) {
            progress.running += 1;
        }
        self.running += 1;
        self.waiting -= 1;
        Some((ticket, record))
    }

    /// It is handled, or was given up and its partition is read again from there on by somebody (`is_handled` false).
    pub fn finish(&mut self, ticket: &Ticket, is_handled: bool) {
        self.running -= 1;
        let Some(progress) = self.partitions.get_mut(&ticket.lane.0).filter(|progress| progress.term == ticket.term) else { return };
        progress.running -= 1;
        if is_handled {
            progress.open.remove(&ticket.offset);
        }
        match self.lanes.get(&ticket.lane) {
            Some(records) if records.is_empty() => drop(self.lanes.remove(&ticket.lane)),
            Some(_) => self.ready.push_back(ticket.lane.clone()),
            None => {}
        }
    }

    /// Positions that can be committed and have not been noted as such.
    pub fn committable(&self) -> Vec<(Place, Offset)> {
        let advanced = self.partitions.iter().map(|(place, progress)| (place, progress.committed, progress.handled_up_to()));
        let advanced = advanced.filter(|(_, committed, up_to)| committed.is_none_or(|committed| committed < *up_to));
        advanced.map(|(place, _, up_to)| (place.clone(), up_to)).collect()
    }

    /// This was committed.
    pub fn committed(&mut self, place: &Place, offset: Offset) {
        if let Some(progress) = self.partitions.get_mut(place) {
            progress.committed = progress.committed.max(Some(offset));
        }
    }

    /// Records that wait are not handled any more; those that are being handled go on.
    pub fn drop_waiting(&mut self, of: impl Fn(&Place) -> bool) {
        let (ready, waiting) = (&mut self.ready, &mut self.waiting);
        self.lanes.retain(|lane, records| {
            if !of(&lane.0) {
                return true;
            }
            *waiting -= records.len();
            records.clear();
            ready.retain(|other| other != lane);
            false
        });
    }

    /// The partition is somebody else's: nothing of it counts any more.
    pub fn forget(&mut self, place: &Place) {
        self.drop_waiting(|other| other == place);
        self.partitions.remove(place);
    }

    /// Records of these partitions that are being handled.
    pub fn running(&self, of: impl Fn(&Place) -> bool) -> usize {
        self.partitions.iter().filter(|(place, _)| of(place)).map(|(_, progress)| progress.running).sum()
    }

    /// Records that wait to be handled.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
