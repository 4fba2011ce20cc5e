//! The consensus directory after a crash between every two steps of what is done to its files: formation, votes, appends, rolls, truncation, snapshots, purges.
//!
//! The steps are those of the running files, through their witness; the model of a file system is that of the catalogue's own enumeration.

use std::collections::BTreeMap;
use std::sync::Mutex;

use openraft::{CommittedLeaderId, StoredMembership};

use super::super::codec::snapshot_meta;
use super::super::formation::{self, Opened};
use super::super::log_files::lock;
use super::super::log_format::Owner;
use super::super::snapshot::{self, Proposers, Stored};
use super::super::{Entry, LogId, Member, Proposal, Vote};
use super::*;
use crate::control::metadata_crash::{Disk, Image, Step, owned};

const OWNER: Owner = Owner { cluster: CLUSTER, id: 71 };

/// What is known to be durable.
#[derive(Clone, Debug, PartialEq)]
struct State {
    vote: Vote,
    snapshot: Option<LogId>,
    previous: Option<LogId>,
    log: BTreeMap<u64, LogId>,
}

#[derive(Clone, Debug)]
enum Event {
    File(Step),
    /// From here on it may be like this.
    Begin(Box<State>),
    /// From here on it must.
    End,
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 71), index)
}

fn entry(id: LogId) -> Entry {
    let command = create(id.index as u8).encode().unwrap();
    let commands = vec![command.into(); 1 + id.index as usize % 3];
    Entry { log_id: id, payload: openraft::EntryPayload::Normal(Proposal { proposer: 5, sequence: id.index, commands }) }
}

fn open(path: &std::path::Path, witness: Witness) -> Result<Opened, super::super::machine::OpenError> {
    let me = Member { node: 1, address: "a:1".into() };
    formation::open_or_form(path, OWNER, &me, &found(), witness)
}

/// A life, and what became of it step by step.
fn events() -> Vec<Event> {
    let scratch = tempfile::tempdir().unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let witness = Witness::new(move |step| {
        if let Some(step) = owned(step) {
            lock(&heard).push(Event::File(step));
        }
    });
    let mut files = open(&scratch.path().join("consensus"), witness).unwrap();
    files.log.set_segment_bytes(2 * crate::limits::BLOCK as u64);
    let mut state = initial();
    let mut step = |files: &mut Opened, change: &dyn Fn(&mut State), work: &dyn Fn(&mut Opened)| {
        change(&mut state);
        lock(&events).push(Event::Begin(Box::new(state.clone())));
        work(files);
        lock(&events).push(Event::End);
    };
    let vote = |term| {
        let vote = Vote::new_committed(term, 71);
        (move |state: &mut State| state.vote = vote, move |files: &mut Opened| files.votes.save_vote(&vote).unwrap())
    };
    let append = |term: u64, range: std::ops::Range<u64>| {
        let ids: Vec<LogId> = range.map(|index| id(term, index)).collect();
        let entries: Vec<Entry> = ids.iter().copied().map(entry).collect();
        (
            move |state: &mut State| state.log.extend(ids.iter().map(|id| (id.index, *id))),
            move |files: &mut Opened| files.log.append(entries.clone()).unwrap(),
        )
    };
    let truncate = |from: u64| {
        (move |state: &mut State| state.log.retain(|index, _| *index < from), move |files: &mut Opened| files.log.truncate(from).unwrap())
    };
    let snapshot = |at: LogId| {
        let save = move |files: &mut Opened| {
            let catalogue = snapshot::empty_catalogue();
            let data = snapshot::encode_data(CLUSTER, catalogue.view(), &Proposers::default()).unwrap();
            files.snapshots.save(&Stored { meta: snapshot_meta(Some(at), StoredMembership::default()), data }).unwrap();
        };
        (move |state: &mut State| state.snapshot = Some(at), save)
    };
    let purge = |upto: LogId| {
        let change = move |state: &mut State| {
            if state.log.get(&upto.index) != Some(&upto) {
                state.log.clear();
            }
            state.log.retain(|index, _| *index > upto.index);
            state.previous = Some(upto);
        };
        (change, move |files: &mut Opened| files.log.purge(upto).unwrap())
    };
    macro_rules! go {
        ($op:expr) => {{
            let (change, work) = $op;
            step(&mut files, &change, &work);
        }};
    }
    go!(vote(1));
    let mut next = 1;
    // Across several files.
    for round in 0..24 {
        let count = 1 + round % 4;
        go!(append(1, next..next + count));
        next += count;
        files.votes.save_committed(Some(id(1, next / 3))).unwrap();
    }
    // In the middle of a file, then back over files, then with others in their place.
    go!(vote(2));
    go!(truncate(next - 2));
    next -= 2;
    go!(append(2, next..next + 5));
    go!(vote(3));
    go!(truncate(next - 15));
    next -= 15;
    for _ in 0..12 {
        go!(append(3, next..next + 3));
        next += 3;
    }
    go!(snapshot(id(3, next - 5)));
    go!(purge(id(3, next - 9)));
    go!(append(3, next..next + 2));
    next += 2;
    // From a leader that is far ahead, and once more in the place of what was never committed.
    go!(vote(9));
    go!(snapshot(id(9, next + 50)));
    go!(purge(id(9, next + 50)));
    go!(append(9, next + 51..next + 54));
    go!(snapshot(id(10, next + 53)));
    go!(vote(10));
    go!(purge(id(10, next + 53)));
    go!(append(10, next + 54..next + 56));
    drop(files);
    lock(&events).clone()
}

fn initial() -> State {
    let first = LogId::new(CommittedLeaderId::new(0, 0), 0);
    State { vote: Vote::default(), snapshot: Some(first), previous: Some(first), log: BTreeMap::new() }
}

fn judge(image: &Image, before: &State, after: &State) -> Result<(), String> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("consensus");
    std::fs::create_dir(&path).unwrap();
    for (name, bytes) in image {
        std::fs::write(path.join(name), bytes).unwrap();
    }
    let opened = open(&path, Witness::default()).map_err(|error| error.to_string())?;
    let vote = opened.votes.vote();
    if vote != before.vote && vote != after.vote {
        return Err(format!("the vote is {vote}, not {} or {}", before.vote, after.vote));
    }
    let snapshot = opened.snapshots.load().map_err(|error| error.to_string())?.and_then(|stored| stored.meta.last_log_id);
    if snapshot != before.snapshot && snapshot != after.snapshot {
        return Err(format!("the snapshot ends with {snapshot:?}, not {:?} or {:?}", before.snapshot, after.snapshot));
    }
    let memory = opened.log.memory();
    let memory = lock(&memory);
    let found: BTreeMap<u64, LogId> = memory.entries.iter().map(|(entry, _)| (entry.log_id.index, entry.log_id)).collect();
    for (index, id) in after.log.iter().filter(|(index, id)| before.log.get(index) == Some(id)) {
        if found.get(index) != Some(id) {
            return Err(format!("entry {id} was acknowledged and is lost: {:?} is there", found.get(index)));
        }
    }
    let purged = after.previous.map_or(0, |id| id.index);
    for (index, id) in found.iter().filter(|(index, _)| **index > purged) {
        if before.log.get(index) != Some(id) && after.log.get(index) != Some(id) {
            return Err(format!("entry {id} was never written, or was cut"));
        }
    }
    if memory.entries.iter().any(|(found, _)| *found != entry(found.log_id)) {
        return Err("an entry has another content".into());
    }
    Ok(())
}

/// Opens what a crash left after each step. Returns how many images there were.
fn check(events: &[Event]) -> Result<usize, String> {
    let mut disk = Disk::default();
    let (mut before, mut after, mut images) = (initial(), initial(), 0);
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Begin(state) => after = State::clone(state),
            Event::End => before = after.clone(),
            Event::File(step) => {
                let earlier = disk.clone();
                disk.take(step);
                let torn = disk.torn_images(&earlier, step);
                for image in disk.whole_images().into_iter().chain(torn) {
                    images += 1;
                    let name: String = format!("{step:?}").chars().take(50).collect();
                    judge(&image, &before, &after).map_err(|error| format!("after step {at}, {name}: {error}"))?;
                }
            }
        }
    }
    Ok(images)
}

#[test]
fn a_crash_between_any_two_steps_loses_no_entry_and_no_vote() {
    let events = events();
    let count = |wanted: &dyn Fn(&Step) -> bool| events.iter().filter(|event| matches!(event, Event::File(step) if wanted(step))).count();
    assert!(count(&|step| matches!(step, Step::Rename(_, to) if to.starts_with("log-"))) > 4, "files follow each other");
    assert!(count(&|step| matches!(step, Step::Remove(name) if name.starts_with("log-"))) > 4, "and go");
    let images = check(&events).unwrap();
    println!("{images} images");
    assert!(images > 1_000, "{images} images");

    // An append is one write and one sync, and the write of its mark.
    let mut appends = events.split(|event| matches!(event, Event::Begin(_)));
    let first = appends.nth(3).unwrap();
    let steps: Vec<_> = first.iter().filter(|event| matches!(event, Event::File(Step::Sync(_) | Step::Write(..)))).collect();
    assert_eq!(steps.len(), 3 + 1, "and that of the committed index: {steps:?}");
}

/// Steps that files with a bug would have taken: the check sees that something is lost.
#[test]
fn planted_bugs_are_caught() {
    let events = events();
    let without = |wrong: &dyn Fn(&Step) -> bool| -> Vec<Event> {
        let (mut kept, mut skipping) = (Vec::new(), false);
        for event in &events {
            match event {
                Event::File(step) if wrong(step) => skipping = true,
                Event::File(Step::Synced) if skipping => skipping = false,
                event => kept.push(event.clone()),
            }
        }
        kept
    };
    let sync_of =
        |name: &'static str| move |step: &Step| matches!(step, Step::Sync(file) if file.starts_with(name) && !file.ends_with(".tmp"));
    check(&without(&sync_of("vote"))).expect_err("votes that are not synced");
    check(&without(&sync_of("log-"))).expect_err("entries that are not synced");
    check(&without(&|step| matches!(step, Step::Sync(file) if file.ends_with(".tmp"))))
        .expect_err("files that get their name before they are synced");
    check(&without(&|step| *step == Step::SyncDir)).expect_err("names that are not synced");

    // A vote that is written over the last synced one.
    let overwritten: Vec<Event> = events
        .iter()
        .map(|event| match event {
            Event::File(Step::Write(file, _, bytes)) if file == "vote" => Event::File(Step::Write(file.clone(), 0, bytes.clone())),
            event => event.clone(),
        })
        .collect();
    check(&overwritten).expect_err("a vote in one slot only");
}
