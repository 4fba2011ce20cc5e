//! The catalogue after a crash between every two steps of what is done to its file: commits, groups of them, a compaction.
//!
//! The steps are those of the running log, through its witness; a model of a file system says what may be left of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::metadata::tests::registration;
use super::metadata::{FileStep, MetadataStore, SingleNodeLog, Witness};
use crate::cluster::{Applied, Command};
use crate::request::Code;
use crate::types::TopicId;

const CLUSTER: [u8; 16] = [7; 16];

/// A step, by file names.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Step {
    Create(String),
    Write(String, u64, Vec<u8>),
    Written,
    SetLen(String, u64),
    Sync(String),
    SyncDir,
    Synced,
    Rename(String, String),
    Remove(String),
    /// A topic was acknowledged.
    Acknowledge(String),
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

pub(super) fn owned(step: FileStep<'_>) -> Option<Step> {
    Some(match step {
        FileStep::Create(path) => Step::Create(name(path)),
        FileStep::WriteStart { path, position, bytes } => Step::Write(name(path), position, bytes.to_vec()),
        FileStep::WriteEnd => Step::Written,
        FileStep::SetLen(path, len) => Step::SetLen(name(path), len),
        FileStep::SyncStart(path) => Step::Sync(name(path)),
        FileStep::SyncDirStart(_) => Step::SyncDir,
        FileStep::SyncEnd => Step::Synced,
        FileStep::Rename(from, to) => Step::Rename(name(from), name(to)),
        FileStep::Committed(Applied::TopicCreated(topic)) => Step::Acknowledge(topic.name.clone()),
        FileStep::Remove(path) => Step::Remove(name(path)),
        FileStep::Committed(_) => return None,
    })
}

/// A directory: what a kill leaves of it, and what a loss of power leaves for certain.
#[derive(Clone, Default)]
pub(super) struct Disk {
    /// Content as written and as synced.
    files: Vec<(Vec<u8>, Vec<u8>)>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    syncing: Option<Step>,
}

pub(super) type Image = BTreeMap<String, Vec<u8>>;

impl Disk {
    fn content(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.files[self.names[name]].0
    }

    pub(super) fn take(&mut self, step: &Step) {
        match step {
            Step::Create(name) => {
                // An existing one is cut to nothing by the next step.
                if !self.names.contains_key(name) {
                    self.files.push(Default::default());
                    self.names.insert(name.clone(), self.files.len() - 1);
                }
            }
            Step::Write(name, position, bytes) => overwrite(self.content(name), *position as usize, bytes),
            Step::SetLen(name, len) => self.content(name).resize(*len as usize, 0),
            Step::Sync(_) | Step::SyncDir => self.syncing = Some(step.clone()),
            Step::Synced => match self.syncing.take() {
                Some(Step::Sync(name)) => {
                    let file = &mut self.files[self.names[&name]];
                    file.1 = file.0.clone();
                }
                Some(_) => self.synced_names = self.names.clone(),
                None => {}
            },
            Step::Rename(from, to) => {
                let file = self.names.remove(from).unwrap();
                self.names.insert(to.clone(), file);
            }
            Step::Remove(name) => {
                self.names.remove(name);
            }
            Step::Written | Step::Acknowledge(_) => {}
        }
    }

    /// Parts of the write in hand over what was there `before`: its beginning, or only its end, because the blocks of a long one may be written in any order.
    pub(super) fn torn_images(&self, before: &Disk, step: &Step) -> Vec<Image> {
        let Step::Write(name, position, bytes) = step else { return Vec::new() };
        let (at, end) = (*position as usize, *position as usize + bytes.len());
        let old = before.files[before.names[name]].0.clone();
        // In the middle, and early: of a block it is the beginning that has content.
        let (half, early) = (at + bytes.len() / 2, at + bytes.len().min(64) / 2);
        [(at..half, half), (half..end, end), (at..early, early), (early..end, end)]
            .map(|(written, length)| {
                let mut torn = self.clone();
                let new = torn.content(name);
                let mut content = old.clone();
                content.resize(old.len().max(length), 0);
                content[written.clone()].copy_from_slice(&new[written]);
                *new = content;
                torn.whole_images().swap_remove(0)
            })
            .into()
    }

    /// What a crash right now may leave: everything; only what was synced; the names without what was not synced; half of the write in hand.
    fn images(&self, step: &Step) -> Vec<Image> {
        let mut images = self.whole_images();
        if let Step::Write(name, position, bytes) = step {
            let mut torn = self.clone();
            torn.content(name).truncate(*position as usize + bytes.len() / 2);
            images.push(torn.whole_images().swap_remove(0));
        }
        images
    }

    /// The same, but for a write in hand.
    pub(super) fn whole_images(&self) -> Vec<Image> {
        let image = |names: &BTreeMap<String, usize>, content: &dyn Fn(usize) -> Vec<u8>| -> Image {
            names.iter().map(|(name, file)| (name.clone(), content(*file))).collect()
        };
        let (written, synced) = (|file: usize| self.files[file].0.clone(), |file: usize| self.files[file].1.clone());
        let mut images = vec![image(&self.names, &written), image(&self.synced_names, &synced), image(&self.names, &synced)];
        images.push(image(&self.synced_names, &written));
        images
    }
}

fn overwrite(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    content.resize(content.len().max(at + bytes.len()), 0);
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Opens what a crash left after each step from `from` on; every acknowledged topic must be there. Returns how many images there were.
fn check(steps: &[Step], from: usize) -> Result<usize, String> {
    let (mut disk, mut acknowledged, mut images) = (Disk::default(), Vec::new(), 0);
    for (at, step) in steps.iter().enumerate() {
        disk.take(step);
        if let Step::Acknowledge(topic) = step {
            acknowledged.push(topic.clone());
        }
        if at < from {
            continue;
        }
        for image in disk.images(step) {
            images += 1;
            let directory = tempfile::tempdir().unwrap();
            for (name, bytes) in &image {
                std::fs::write(directory.path().join(name), bytes).unwrap();
            }
            let opened = SingleNodeLog::open(&directory.path().join("catalogue"), &registration(0, CLUSTER), Witness::default());
            let (log, _) = opened.map_err(|error| format!("after step {at}: {error}"))?;
            if let Some(lost) = acknowledged.iter().find(|topic| log.view().topic(topic).is_none()) {
                return Err(format!("after step {at}: {lost} is lost"));
            }
        }
    }
    Ok(images)
}

fn create(n: usize) -> Command {
    let id = TopicId((n as u128 + 1).to_be_bytes());
    Command::CreateTopic { id, name: format!("t{n}"), partitions: 1, replication_factor: 1, config: vec![] }
}

/// Long in the log and of no effect, so that a compaction comes soon.
fn alter(n: usize) -> Command {
    let config = vec![("retention.ms".to_string(), Some("123456".to_string())); 1300];
    Command::AlterTopic { id: TopicId((n as u128 + 1).to_be_bytes()), partitions: None, config }
}

/// The steps of a life with a compaction, and the number of the one with which what is of interest begins.
fn life() -> (Vec<Step>, usize) {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("catalogue");
    let steps = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&steps);
    let witness = Witness::new(move |step| hears.lock().unwrap().extend(owned(step)));
    SingleNodeLog::create(&path, CLUSTER, &witness).unwrap();
    let (log, _) = SingleNodeLog::open(&path, &registration(0, CLUSTER), witness).unwrap();
    let length = || std::fs::metadata(&path).unwrap().len();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut from = 0;
    runtime.block_on(async {
        log.propose(create(0)).await.unwrap();
        while length() + 100_000 < crate::limits::CATALOGUE_COMPACT {
            log.propose(alter(0)).await.unwrap();
        }
        from = steps.lock().unwrap().len();
        for n in (1..).step_by(3) {
            let before = length();
            let group = vec![create(n), create(n), alter(0), create(n + 1), create(n + 2)];
            let outcomes = log.propose_all(group).await;
            let codes: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().err().map(|refusal| refusal.code)).collect();
            assert_eq!(codes, [None, Some(Code::TopicExists), None, None, None], "each has its own outcome");
            assert_eq!(outcomes[0].as_ref().unwrap().view.topics().len(), n + 1, "and the state right after it");
            if length() < before {
                break;
            }
        }
        log.propose(create(1000)).await.unwrap();
        log.propose(create(1001)).await.unwrap();
    });
    assert!(length() < 10_000, "the file is as long as its state needs: {}", length());
    drop(log);
    let (log, opened) = SingleNodeLog::open(&path, &registration(0, CLUSTER), Witness::default()).unwrap();
    assert_eq!((opened.node_epoch, opened.torn), (2, None), "the epoch goes on from the snapshot");
    assert!(log.view().topic("t0").is_some_and(|topic| topic.config.retention_ms == Some(123_456)));
    let steps = steps.lock().unwrap().clone();
    (steps, from)
}

#[test]
fn a_crash_between_any_two_steps_loses_nothing() {
    let (steps, from) = life();
    assert!(steps[from..].iter().any(|step| matches!(step, Step::Rename(..))), "a compaction is in it");
    let images = check(&steps, from).unwrap();
    assert!(images > 100, "{images} images");

    // A group is one write and one sync; the other sync is of the mark before it.
    let end = steps.iter().position(|step| *step == Step::Acknowledge("t1".into())).unwrap();
    let syncs = steps[from..end].iter().filter(|step| **step == Step::Sync("catalogue".into())).count();
    assert_eq!(syncs, 2, "{:?}", steps[from..end].iter().filter(|step| !matches!(step, Step::Write(..))).collect::<Vec<_>>());
}

/// Steps that a log with a bug would have taken: the check sees that something is lost.
#[test]
fn planted_bugs_are_caught() {
    let (steps, _) = life();
    let without = |wrong: &dyn Fn(&Step) -> bool| -> Vec<Step> {
        let mut kept = Vec::new();
        let mut skipping = false;
        for step in &steps {
            match step {
                step if wrong(step) => skipping = true,
                Step::Synced if skipping => skipping = false,
                step => kept.push(step.clone()),
            }
        }
        kept
    };
    let unsynced_file = without(&|step| *step == Step::Sync("catalogue.tmp".into()));
    check(&unsynced_file, 0).expect_err("a snapshot that is not synced before it gets the name");
    let unsynced_name = without(&|step| *step == Step::SyncDir);
    check(&unsynced_name, 0).expect_err("a name that is not synced before it is appended to");
    let unsynced_commands = without(&|step| *step == Step::Sync("catalogue".into()));
    check(&unsynced_commands, 0).expect_err("commands that are not synced");
}
