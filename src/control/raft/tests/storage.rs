//! The library's own tests of a storage, and what they don't ask: other owners, missing files, failures.

use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload, RaftLogReader, StorageError};

use super::super::formation;
use super::super::log_files::LogFiles;
use super::super::log_format::{FormatError, Owner};
use super::super::log_store::LogStore;
use super::super::machine::Machine;
use super::super::snapshot::SnapshotFiles;
use super::super::votes::VoteFiles;
use super::super::{Entry, LogId, Member, Types, Vote};
use super::super::{directory, directory::Directory};
use super::*;

const OWNER: Owner = Owner { cluster: CLUSTER, id: 71 };

/// Of a log that goes on behind an entry, or begins with entry 0.
struct Builder(Option<LogId>);

impl StoreBuilder<Types, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<u64>> {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::open(scratch.path(), Witness::default()).unwrap();
        VoteFiles::make(&directory, OWNER).unwrap();
        LogFiles::make(&directory, OWNER, self.0).unwrap();
        let (log, _) = LogFiles::open(directory.clone(), OWNER).unwrap();
        let store = LogStore::new(log, VoteFiles::open(&directory, OWNER).unwrap());
        let machine = Machine::open(CLUSTER, SnapshotFiles::new(directory, OWNER), 5).unwrap();
        Ok((scratch, store, machine))
    }
}

macro_rules! of_the_library {
    ($module:ident, $behind:expr, $($name:ident)*) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $name() {
                block_on(async {
                    let (_scratch, log, machine) = Builder($behind).build().await.unwrap();
                    Suite::<Types, LogStore, Machine, Builder, tempfile::TempDir>::$name(log, machine).await.unwrap();
                });
            })*
        }
    };
}

// Without those that begin an empty log elsewhere than at its beginning: here that is a fault.
of_the_library! {
    from_the_beginning, None,
    last_membership_in_log_initial
    get_membership_initial
    get_membership_from_empty_log_and_sm
    get_initial_state_without_init
    get_initial_state_with_state
    get_initial_state_last_log_gt_sm
    get_initial_state_log_ids
    save_vote
    get_log_entries
    limited_get_log_entries
    try_get_log_entry
    initial_logs
    get_log_state
    get_log_id
    last_id_in_log
    last_applied_state
    purge_logs_upto_0
    purge_logs_upto_5
    purge_logs_upto_20
    delete_logs_since_11
    delete_logs_since_0
    append_to_log
    snapshot_meta
    apply_single
    apply_multiple
}

of_the_library! {
    behind_the_first_entry, Some(LogId::new(CommittedLeaderId::new(0, 0), 0)),
    get_membership_from_log_and_empty_sm
    get_membership_from_log_gt_sm_last_applied_1
    get_membership_from_log_gt_sm_last_applied_2
    get_membership_from_log_le_sm_last_applied
    last_membership_in_log
    last_membership_in_log_multi_step
}

#[test]
fn a_snapshot_goes_from_one_machine_to_another() {
    block_on(Suite::transfer_snapshot(&Builder(None))).unwrap();
}

fn formed() -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("consensus");
    open(&path, OWNER).unwrap();
    (scratch, path)
}

fn open(path: &std::path::Path, owner: Owner) -> Result<formation::Opened, String> {
    let me = Member { node: 1, address: "a:1".into() };
    formation::open_or_form(path, owner, &me, &found(), Witness::default()).map_err(|error| error.to_string())
}

fn entries(term: u64, range: std::ops::Range<u64>) -> Vec<Entry> {
    range.map(|index| Entry { log_id: LogId::new(CommittedLeaderId::new(term, 71), index), payload: EntryPayload::Blank }).collect()
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let (_scratch, path) = formed();
    assert!(open(&path, Owner { id: 72, ..OWNER }).unwrap_err().contains("belongs to node"));
    assert!(open(&path, Owner { cluster: [1; 16], ..OWNER }).unwrap_err().contains("belongs to node"));
    let mut files = open(&path, OWNER).unwrap();
    files.log.append(entries(1, 1..9)).unwrap();
    assert!(open(&path, OWNER).unwrap_err().contains("the last vote is"), "entries of a term that was never voted in");
    files.votes.save_vote(&Vote::new_committed(1, 71)).unwrap();
    files.votes.save_committed(Some(LogId::new(CommittedLeaderId::new(1, 71), 8))).unwrap();
    drop(files);
    open(&path, OWNER).unwrap();

    let log = path.join("log-00000000000000000001");
    let whole = std::fs::read(&log).unwrap();
    std::fs::write(&log, &whole[..whole.len() - 100]).unwrap();
    assert!(open(&path, OWNER).unwrap_err().contains("was committed here"), "the end of the log is lost");
    std::fs::write(&log, &whole).unwrap();

    let aside = |name: &str| {
        let (file, away) = (path.join(name), path.join("away"));
        std::fs::rename(&file, &away).unwrap();
        let refused = open(&path, OWNER).unwrap_err();
        std::fs::rename(&away, &file).unwrap();
        refused
    };
    assert!(aside("vote").contains("could vote twice"));
    assert!(aside("log-00000000000000000001").contains("no log"));
    assert!(aside("snapshot-00000000000000000000").contains("newest snapshot"));
    assert!(open(&path, OWNER).is_ok());
}

#[test]
fn an_older_catalogue_of_another_cluster_or_a_damaged_one_is_not_taken_over() {
    let scratch = tempfile::tempdir().unwrap();
    let (file, path) = (scratch.path().join("catalogue"), scratch.path().join("consensus"));
    crate::control::metadata::SingleNodeLog::create(&file, [1; 16], &Witness::default()).unwrap();
    let me = Member { node: 1, address: "a:1".into() };
    let origin = Origin::Found { catalogue: Some(file.clone()) };
    let form = || formation::open_or_form(&path, OWNER, &me, &origin, Witness::default()).map_err(|error| error.to_string());
    assert!(form().unwrap_err().contains("is that of cluster"));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(form().unwrap_err().contains("damaged"));
    std::fs::remove_file(&file).unwrap();
    crate::control::metadata::SingleNodeLog::create(&file, CLUSTER, &Witness::default()).unwrap();
    let known = formation::open_or_form(&path, OWNER, &me, &Origin::Return, Witness::default()).map_err(|error| error.to_string());
    assert!(known.unwrap_err().contains("are lost"), "who has been in a cluster is not made anew");
    assert!(file.exists() && form().unwrap().is_new, "nothing of the refused tries is in the way");
}

/// A failed write or sync poisons: neither what comes after is taken, nor does the library hear that anything was done.
#[test]
fn after_a_failed_write_nothing_is_taken() {
    let (_scratch, path) = formed();
    let mut files = open(&path, OWNER).unwrap();
    files.log.append(entries(1, 1..3)).unwrap();
    files.log.break_file();
    assert!(matches!(files.log.append(entries(1, 3..4)), Err(directory::StorageError::Io { .. })));
    assert!(matches!(files.log.append(entries(1, 3..4)), Err(directory::StorageError::Poisoned)));
    assert!(matches!(files.log.truncate(2), Err(directory::StorageError::Poisoned)));
    let mut store = LogStore::new(files.log, files.votes);
    let last = block_on(async {
        assert!(store.truncate(LogId::new(CommittedLeaderId::new(1, 71), 2)).await.is_err());
        store.get_log_state().await.unwrap().last_log_id
    });
    assert_eq!(last.unwrap().index, 2, "what was not written is not shown");
}

#[test]
fn what_one_message_carries_is_bounded() {
    let (_scratch, path) = formed();
    let mut files = open(&path, OWNER).unwrap();
    let command = vec![7; crate::limits::MAX_COMMAND];
    let proposal = super::super::Proposal { proposer: 1, sequence: 1, commands: vec![command.into(); 12] };
    for entry in entries(1, 1..9) {
        files.log.append(vec![Entry { payload: EntryPayload::Normal(proposal.clone()), ..entry }]).unwrap();
    }
    let names: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().filter(|name| name.starts_with("log-")).count() > 2, "{names:?}");
    let mut store = LogStore::new(files.log, files.votes);
    block_on(async {
        let mut reader = store.get_log_reader().await;
        assert_eq!(reader.limited_get_log_entries(2, 9).await.unwrap().len(), 2, "768 KiB each, 2 MiB in all");
        assert_eq!(reader.try_get_log_entries(1..9).await.unwrap().len(), 8);
        assert!(reader.limited_get_log_entries(20, 22).await.is_err());
    });
}

/// One that failed there stopped the consensus of a leader that came back; one that gave what had taken the place of its entries sent the next leader's log as its own.
#[test]
fn a_stream_of_an_ended_leadership_gets_no_entries_and_stops_nobody() {
    let (_scratch, path) = formed();
    let mut files = open(&path, OWNER).unwrap();
    files.log.append(entries(1, 1..9)).unwrap();
    let mut store = LogStore::new(files.log, files.votes);
    let id = |term, index| LogId::new(CommittedLeaderId::new(term, 71), index);
    block_on(async {
        let mut reader = store.get_log_reader().await;
        store.truncate(id(1, 20)).await.unwrap();
        assert_eq!(reader.limited_get_log_entries(5, 9).await.unwrap().len(), 4, "there was nothing to cut");
        store.truncate(id(1, 5)).await.unwrap();
        assert_eq!(reader.limited_get_log_entries(5, 9).await.unwrap(), [], "they are gone");
        store.blocking_append(entries(2, 5..9)).await.unwrap();
        assert_eq!(reader.limited_get_log_entries(6, 9).await.unwrap(), [], "others stand there");
        let mut reader = store.get_log_reader().await;
        assert_eq!(reader.limited_get_log_entries(6, 9).await.unwrap(), entries(2, 6..9), "a new stream reads them");
        store.purge(id(2, 7)).await.unwrap();
        assert_eq!(reader.limited_get_log_entries(8, 9).await.unwrap(), entries(2, 8..9));
        assert_eq!(reader.limited_get_log_entries(7, 9).await.unwrap(), [], "a snapshot stands for them");
        store.purge(id(3, 30)).await.unwrap();
        assert_eq!(reader.limited_get_log_entries(31, 33).await.unwrap(), [], "a snapshot took the place of the log");
    });
}

#[test]
fn rot_in_any_file_of_the_log_is_seen() {
    let (_scratch, path) = formed();
    let mut files = open(&path, OWNER).unwrap();
    files.log.set_segment_bytes(4_500);
    files.votes.save_vote(&Vote::new_committed(1, 71)).unwrap();
    for at in 1..30 {
        files.log.append(entries(1, at..at + 1)).unwrap();
    }
    drop(files);
    let mut seen = 0;
    for entry in std::fs::read_dir(&path).unwrap() {
        let file = entry.unwrap().path();
        if !file.file_name().unwrap().to_str().unwrap().starts_with("log-") {
            continue;
        }
        let good = std::fs::read(&file).unwrap();
        // The mark of the last file may rot: it means nothing.
        let is_last = !path.join(format!("log-{:020}", 30)).exists() && good.len() % 8 == 0;
        let last = good.len() - if is_last { 32 } else { 0 };
        for at in (0..last).step_by(13) {
            let mut rotten = good.clone();
            rotten[at] ^= 4;
            std::fs::write(&file, rotten).unwrap();
            assert!(open(&path, OWNER).is_err(), "byte {at} of {}", file.display());
            seen += 1;
        }
        std::fs::write(&file, good).unwrap();
    }
    assert!(seen > 300);
    assert!(matches!(super::super::log_format::decode_log(&[], OWNER, true), Err(FormatError::TooShort { actual: 0 })));
}
