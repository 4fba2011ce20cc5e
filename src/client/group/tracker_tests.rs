use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// What the property holds against: a tracker, or one with a planted bug.
trait Tracks {
    fn offer(&mut self, place: Place, key: Option<Bytes>, offset: Offset);
    fn take(&mut self) -> Option<Ticket>;
    fn finish(&mut self, ticket: &Ticket, is_handled: bool);
    fn committable(&self) -> Vec<(Place, Offset)>;
    fn committed(&mut self, place: &Place, offset: Offset);
    fn forget(&mut self, place: &Place);
    fn running(&self, place: &Place) -> usize;
}

impl Tracks for Tracker<()> {
    fn offer(&mut self, place: Place, key: Option<Bytes>, offset: Offset) {
        Tracker::offer(self, place, key, offset, ());
    }

    fn take(&mut self) -> Option<Ticket> {
        Tracker::take(self).map(|(ticket, ())| ticket)
    }

    fn finish(&mut self, ticket: &Ticket, is_handled: bool) {
        Tracker::finish(self, ticket, is_handled);
    }

    fn committable(&self) -> Vec<(Place, Offset)> {
        Tracker::committable(self)
    }

    fn committed(&mut self, place: &Place, offset: Offset) {
        Tracker::committed(self, place, offset);
    }

    fn forget(&mut self, place: &Place) {
        Tracker::forget(self, place);
    }

    fn running(&self, place: &Place) -> usize {
        Tracker::running(self, |other| other == place)
    }
}

/// Commits past a record that is not handled: the last offset that is.
struct CommitsTooFar(Tracker<()>, BTreeMap<Place, Offset>);

/// Forgets that a key is being handled.
struct TwoAtOnce(Tracker<()>, u8);

macro_rules! delegate {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(fn $name(&mut self, $($arg: $type),*) $(-> $result)? { Tracks::$name(&mut self.0, $($arg),*) })*
    };
}

impl Tracks for CommitsTooFar {
    delegate! { offer(place: Place, key: Option<Bytes>, offset: Offset); take() -> Option<Ticket>; committed(place: &Place, offset: Offset); }

    fn finish(&mut self, ticket: &Ticket, is_handled: bool) {
        if is_handled {
            self.1.insert(ticket.lane.0.clone(), ticket.offset + 1);
        }
        self.0.finish(ticket, is_handled);
    }

    fn committable(&self) -> Vec<(Place, Offset)> {
        self.1.iter().map(|(place, offset)| (place.clone(), *offset)).collect()
    }

    fn forget(&mut self, place: &Place) {
        self.1.remove(place);
        self.0.forget(place);
    }

    fn running(&self, place: &Place) -> usize {
        Tracks::running(&self.0, place)
    }
}

impl Tracks for TwoAtOnce {
    delegate! { take() -> Option<Ticket>; finish(ticket: &Ticket, is_handled: bool); committed(place: &Place, offset: Offset); forget(place: &Place); }

    fn offer(&mut self, place: Place, key: Option<Bytes>, offset: Offset) {
        // Another lane for each record.
        self.1 = self.1.wrapping_add(1);
        let lane = [key.as_deref().unwrap_or_default(), &[self.1]].concat();
        Tracks::offer(&mut self.0, place, Some(lane.into()), offset);
    }

    fn committable(&self) -> Vec<(Place, Offset)> {
        self.0.committable()
    }

    fn running(&self, place: &Place) -> usize {
        Tracks::running(&self.0, place)
    }
}

const CONCURRENCY: usize = 3;

#[derive(Default)]
struct Model {
    next: BTreeMap<Place, Offset>,
    first: BTreeMap<Place, Offset>,
    keys: HashMap<(Place, Offset), Option<Bytes>>,
    open: BTreeMap<Place, BTreeSet<Offset>>,
    waiting: BTreeMap<Place, BTreeSet<Offset>>,
    running: Vec<Ticket>,
}

/// Runs a random history; an error names what does not hold.
fn check(tracker: &mut dyn Tracks, choices: &[(u8, u8, u8)]) -> Result<(), String> {
    let mut model = Model::default();
    for (action, which, key) in choices {
        let place: Place = ("t".into(), u32::from(which % 2));
        match action % 6 {
            0 | 1 => {
                // Compaction leaves gaps.
                let offset = model.next.get(&place).copied().unwrap_or(0) + Offset::from(*which % 3);
                let key = (key % 4 > 0).then(|| Bytes::copy_from_slice(&[key % 4]));
                tracker.offer(place.clone(), key.clone(), offset);
                model.first.entry(place.clone()).or_insert(offset);
                model.next.insert(place.clone(), offset + 1);
                model.open.entry(place.clone()).or_default().insert(offset);
                model.waiting.entry(place.clone()).or_default().insert(offset);
                model.keys.insert((place, offset), key);
            }
            2 => match tracker.take() {
                Some(ticket) => {
                    let (place, offset) = (ticket.lane.0.clone(), ticket.offset);
                    let key = &model.keys[&(place.clone(), offset)];
                    if model.running.iter().any(|other| other.lane.0 == place && model.keys[&(place.clone(), other.offset)] == *key) {
                        return Err("two records of a key at once".into());
                    }
                    let waiting = model.waiting.get_mut(&place).ok_or("a record of a forgotten partition")?;
                    if waiting.iter().any(|earlier| *earlier < offset && model.keys[&(place.clone(), *earlier)] == *key) {
                        return Err("a later record of a key first".into());
                    }
                    if !waiting.remove(&offset) {
                        return Err("a record twice".into());
                    }
                    model.running.push(ticket);
                    if model.running.len() > CONCURRENCY {
                        return Err("more at once than allowed".into());
                    }
                }
                None => {
                    let busy: HashSet<_> = model.running.iter().map(|t| (&t.lane.0, &model.keys[&(t.lane.0.clone(), t.offset)])).collect();
                    let mut waits = model.waiting.iter().flat_map(|(place, offsets)| offsets.iter().map(move |offset| (place, *offset)));
                    let may = |(place, offset): (&Place, Offset)| !busy.contains(&(place, &model.keys[&(place.clone(), offset)]));
                    if model.running.len() < CONCURRENCY && waits.any(may) {
                        return Err("a record that may be handled is not".into());
                    }
                }
            },
            3 if !model.running.is_empty() => {
                let ticket = model.running.remove(usize::from(*which) % model.running.len());
                tracker.finish(&ticket, true);
                model.open.get_mut(&ticket.lane.0).map(|open| open.remove(&ticket.offset));
            }
            4 => {
                for (place, offset) in tracker.committable() {
                    let open = model.open.get(&place).and_then(|open| open.first());
                    if open.is_some_and(|open| *open < offset) {
                        return Err("a commit past an unhandled offset".into());
                    }
                    let expected = open.copied().unwrap_or(model.next[&place]);
                    if offset != expected {
                        return Err(format!("a commit of {offset}, not of {expected}"));
                    }
                    tracker.committed(&place, offset);
                }
                if !tracker.committable().is_empty() {
                    return Err("committed twice".into());
                }
            }
            5 if tracker.running(&place) == 0 => {
                tracker.forget(&place);
                model.waiting.remove(&place);
                model.open.remove(&place);
                model.keys.retain(|(of, _), _| *of != place);
                // It may come back, from any place on.
                model.next.insert(place, Offset::from(*key));
            }
            _ => {}
        }
    }
    Ok(())
}

fn histories() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
    proptest::collection::vec(any::<(u8, u8, u8)>(), 0..300)
}

proptest! {
    #[test]
    fn order_is_kept_and_nothing_unhandled_is_committed(choices in histories()) {
        let outcome = check(&mut Tracker::new(CONCURRENCY), &choices);
        prop_assert_eq!(outcome, Ok(()));
    }
}

/// The first thing that a planted bug does wrong in some history.
fn caught(tracker: impl Fn() -> Box<dyn Tracks>) -> BTreeSet<String> {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let histories = (0..200).map(|_| histories().new_tree(&mut runner).unwrap().current());
    histories.filter_map(|history| check(tracker().as_mut(), &history).err()).collect()
}

#[test]
fn planted_bugs_are_caught() {
    let too_far = caught(|| Box::new(CommitsTooFar(Tracker::new(CONCURRENCY), BTreeMap::new())));
    assert!(too_far.contains("a commit past an unhandled offset"), "{too_far:?}");
    let two = caught(|| Box::new(TwoAtOnce(Tracker::new(CONCURRENCY), 0)));
    assert!(two.contains("two records of a key at once"), "{two:?}");
}

#[test]
fn a_record_that_is_given_up_holds_its_position() {
    let place: Place = ("t".into(), 0);
    let mut tracker = Tracker::new(2);
    (5..8).for_each(|offset| tracker.offer(place.clone(), None, offset, ()));
    let (ticket, ()) = tracker.take().unwrap();
    tracker.finish(&ticket, false);
    tracker.drop_waiting(|_| true);
    assert_eq!((tracker.committable(), tracker.waiting()), (vec![(place.clone(), 5)], 0));
    tracker.committed(&place, 5);
    assert_eq!(tracker.committable(), []);
}

#[test]
fn a_ticket_of_a_former_term_changes_nothing() {
    let place: Place = ("t".into(), 0);
    let mut tracker = Tracker::new(2);
    tracker.offer(place.clone(), None, 0, ());
    let (old, ()) = tracker.take().unwrap();
    tracker.forget(&place);
    tracker.offer(place.clone(), None, 0, ());
    tracker.finish(&old, true);
    assert_eq!(tracker.committable(), [(place.clone(), 0)]);
    assert_eq!(tracker.running(|_| true), 0);
}
