//! Fixtures, corrupt variants, and bytes from outside.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use openraft::{CommittedLeaderId, EntryPayload, Membership, StoredMembership};
use proptest::prelude::*;

use super::super::codec::snapshot_meta;
use super::super::log_format::{self, FormatError, LogHeader, Owner};
use super::super::snapshot::{self, Proposers, SnapshotError, Stored};
use super::super::wire::{self, Answer, HandshakeRefusal, Hello, Identity, MembershipRefusal, PROTOCOL, Request, SnapshotPiece};
use super::super::{Entry, LogId, Member, Proposal, Vote, golden};
use super::*;
use crate::limits::BLOCK;
use crate::request::Code;

const OWNER: Owner = Owner { cluster: CLUSTER, id: 0x1122_3344_5566_7788 };

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, OWNER.id), index)
}

fn member(node: u32) -> Member {
    Member { node, address: format!("node-{node}.example:9700") }
}

fn membership() -> Membership<u64, Member> {
    let nodes: BTreeMap<u64, Member> = (1..=4).map(|n| (u64::from(n) << 40, member(n))).collect();
    let voters: BTreeSet<u64> = nodes.keys().copied().take(3).collect();
    Membership::new(vec![voters.clone(), voters.into_iter().take(1).collect()], nodes)
}

fn proposal() -> Proposal {
    let commands = [create(1), Command::NodeStarted].iter().map(|command| command.encode().unwrap().into()).collect();
    Proposal { proposer: 77, sequence: 8, commands }
}

fn entries() -> Vec<Entry> {
    let payloads = [EntryPayload::Blank, EntryPayload::Normal(proposal()), EntryPayload::Membership(membership())];
    (11..).zip(payloads).map(|(index, payload)| Entry { log_id: id(3, index), payload }).collect()
}

/// A file of the log, and where each record ends.
fn log_file() -> (Vec<u8>, Vec<usize>) {
    let mut bytes = log_format::encode_header(&LogHeader { owner: OWNER, previous: Some(id(2, 10)), anew: true }).to_vec();
    let mut ends = Vec::new();
    for entry in entries() {
        log_format::put_entry_record(&mut bytes, &entry, 11);
        ends.push(bytes.len());
    }
    bytes.extend_from_slice(&log_format::mark_record(14));
    (bytes, ends)
}

fn stored() -> Stored {
    let mut proposers = Proposers::default();
    (1..4).for_each(|n| assert!(proposers.is_new(n, 10 * n, 100 + n)));
    let mut catalogue = snapshot::empty_catalogue();
    catalogue.apply(&create(1)).unwrap();
    let data = snapshot::encode_data(CLUSTER, catalogue.view(), &proposers).unwrap();
    Stored { meta: snapshot_meta(Some(id(3, 12)), StoredMembership::new(Some(id(3, 9)), membership())), data }
}

#[test]
fn the_golden_log_is_read_and_written_alike() {
    let (bytes, ends) = log_file();
    golden::same("log-1.bin", &bytes);
    let log = log_format::decode_log(&std::fs::read(golden::path("log-1.bin")).unwrap(), OWNER, true).unwrap();
    assert_eq!(log.entries.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>(), entries());
    assert_eq!((log.end, log.torn, log.header.anew, log.header.first()), (ends[2], 0, true, 11));
}

#[test]
fn the_golden_snapshot_is_read_and_written_alike() {
    golden::same("snapshot-1.bin", &snapshot::encode_file(OWNER, &stored()));
    let read = snapshot::decode_file(OWNER, &std::fs::read(golden::path("snapshot-1.bin")).unwrap()).unwrap();
    assert_eq!(read, stored());
    let (catalogue, proposers) = snapshot::decode_data(CLUSTER, &read.data).unwrap();
    assert!(catalogue.view().topic("t1").is_some() && proposers.last_of(3) == Some(30));
}

#[test]
fn torn_is_told_from_corrupt() {
    let (bytes, ends) = log_file();
    let decode = |bytes: &[u8], is_last| log_format::decode_log(bytes, OWNER, is_last);
    // Every flip in what the mark calls durable is corruption, and so is one in the header.
    for at in 0..ends[2] {
        let mut rotten = bytes.clone();
        rotten[at] ^= 0x10;
        let error = decode(&rotten, true).expect_err("rot");
        let fits = match error {
            FormatError::Corrupt { .. } => at >= BLOCK,
            FormatError::Kind { .. } | FormatError::Checksum { .. } => at < BLOCK,
            _ => false,
        };
        assert!(fits, "byte {at}: {error}");
    }
    // The mark itself means nothing, and without one the last entries may be torn, wherever the write was cut.
    for at in ends[2]..bytes.len() {
        let mut rotten = bytes.clone();
        rotten[at] ^= 0x10;
        let log = decode(&rotten, true).unwrap();
        assert_eq!((log.entries.len(), log.end), (3, ends[2]));
    }
    for cut in BLOCK..ends[2] {
        let log = decode(&bytes[..cut], true).unwrap();
        assert_eq!(log.entries.len(), ends.iter().filter(|end| **end <= cut).count());
        assert_eq!(log.end + log.torn, cut);
        let refused = decode(&bytes[..cut], false);
        assert_eq!(refused.is_err(), log.torn > 0, "a file with a successor is whole");
    }
    // The end of a write without its beginning: nothing behind says that it was durable.
    let mut torn = bytes[..ends[2]].to_vec();
    torn[BLOCK..BLOCK + 60].fill(0);
    assert_eq!(decode(&torn, true).unwrap().entries.len(), 0);
    for length in 0..BLOCK {
        assert!(matches!(decode(&bytes[..length], true), Err(FormatError::TooShort { .. })));
    }
    let newer = log_format::encode_block(log_format::KIND_LOG, &[]);
    assert!(decode(&newer, true).is_err());
}

#[test]
fn damaged_snapshots_are_refused() {
    let bytes = snapshot::encode_file(OWNER, &stored());
    for at in 0..bytes.len() {
        let mut rotten = bytes.clone();
        rotten[at] ^= 0x10;
        assert!(snapshot::decode_file(OWNER, &rotten).is_err(), "byte {at}");
    }
    for length in 0..bytes.len() {
        assert!(snapshot::decode_file(OWNER, &bytes[..length]).is_err(), "{length} bytes");
    }
    let data = stored().data;
    assert!(matches!(snapshot::decode_data([1; 16], &data), Err(SnapshotError::Cluster(_))));
    assert!(matches!(snapshot::decode_data(CLUSTER, &data[..2]), Err(SnapshotError::Proposers(_))));
    assert!(matches!(snapshot::decode_data(CLUSTER, &data[..100]), Err(SnapshotError::Catalogue(_))));
}

#[test]
fn the_proposer_that_was_silent_longest_is_forgotten_first() {
    let mut proposers = Proposers::default();
    let most = crate::limits::MAX_PROPOSERS as u64;
    (0..most).for_each(|n| assert!(proposers.is_new(n, 5, n)));
    assert!(!proposers.is_new(0, 5, most) && !proposers.is_new(0, 4, most) && proposers.is_new(0, 6, most));
    assert!(proposers.is_new(most, 1, most + 1));
    assert_eq!((proposers.last_of(0), proposers.last_of(1), proposers.last_of(2)), (Some(6), None, Some(5)));
}

fn requests() -> Vec<Request> {
    let vote = Vote::new_committed(3, OWNER.id);
    let append = AppendEntriesRequest { vote, prev_log_id: Some(id(2, 10)), entries: entries(), leader_commit: Some(id(2, 9)) };
    let Stored { meta, data } = stored();
    let piece = SnapshotPiece { vote, meta, total: data.len() as u64 + 7, offset: 7, data };
    vec![
        Request::Vote(VoteRequest { vote: Vote::new(4, 9), last_log_id: None }),
        Request::Append(append),
        Request::Snapshot(piece),
        Request::Leader,
        Request::Join { id: 12, member: member(3) },
        Request::Propose(proposal()),
        Request::Heartbeat { id: 12 },
        Request::Remove { node: 4 },
    ]
}

fn answers() -> Vec<Answer> {
    vec![
        Answer::Vote(VoteResponse { vote: Vote::new(4, 9), vote_granted: true, last_log_id: Some(id(1, 2)) }),
        Answer::Append(AppendEntriesResponse::Success),
        Answer::Append(AppendEntriesResponse::PartialSuccess(Some(id(1, 2)))),
        Answer::Append(AppendEntriesResponse::Conflict),
        Answer::Append(AppendEntriesResponse::HigherVote(Vote::new_committed(5, 6))),
        Answer::Snapshot(Vote::new_committed(5, 6)),
        Answer::More,
        Answer::Leader(Some((5, member(1)))),
        Answer::Done,
        Answer::Alive,
        Answer::Fenced,
        Answer::NotLeader(None),
        Answer::Membership(MembershipRefusal::NodeInUse { node: 3, address: "h:1".into() }),
        Answer::Membership(MembershipRefusal::AddressInUse { node: 3, address: "h:1".into() }),
        Answer::Membership(MembershipRefusal::Full(9)),
        Answer::Membership(MembershipRefusal::Unknown(9)),
        Answer::Membership(MembershipRefusal::LastVoter(9)),
        Answer::Refused(Refusal::new(Code::Unavailable, "ä word")),
    ]
}

fn messages() -> Vec<Vec<u8>> {
    let me = Identity { cluster: CLUSTER, node: 3, id: 9 };
    let refusals = [
        HandshakeRefusal::Protocol { expected: 1, actual: 2 },
        HandshakeRefusal::Cluster { expected: [1; 16], actual: [2; 16] },
        HandshakeRefusal::Incarnation { node: 3, expected: 4, actual: 5 },
        HandshakeRefusal::Twin(6),
    ];
    let hello = Hello { protocol: PROTOCOL, from: me, to: 4 };
    let welcomes = std::iter::once(Ok(me)).chain(refusals.map(Err));
    let mut messages = vec![hello.encode()];
    for welcome in welcomes {
        let bytes = wire::encode_welcome(&welcome);
        assert_eq!(wire::decode_welcome(&bytes).unwrap(), welcome);
        messages.push(bytes);
    }
    assert_eq!(Hello::decode(&messages[0]).unwrap(), hello);
    messages.extend(requests().iter().map(Request::encode).chain(answers().iter().map(Answer::encode)));
    messages
}

#[test]
fn messages_round_trip() {
    for request in requests() {
        let bytes = request.encode();
        assert_eq!(Request::decode(&bytes).unwrap().encode(), bytes, "{request:?}");
    }
    for answer in answers() {
        assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
    }
    golden::same("messages-1.bin", &messages().iter().flat_map(|message| wire::frame(message)).collect::<Vec<_>>());
    let long = "ä".repeat(5_000);
    let Answer::Refused(short) = Answer::decode(&Answer::Refused(Refusal::new(Code::Internal, long)).encode()).unwrap() else { panic!() };
    assert!(short.message.len() <= 4096);
}

/// What the library would take on trust.
#[test]
fn messages_that_make_no_sense_are_refused() {
    let vote = Vote::new_committed(3, OWNER.id);
    let append = |prev: Option<LogId>, entries: Vec<Entry>, vote| {
        Request::decode(&Request::Append(AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit: None }).encode()).is_ok()
    };
    assert!(append(Some(id(2, 10)), entries(), vote));
    assert!(!append(Some(id(2, 9)), entries(), vote), "a gap");
    assert!(!append(Some(id(3, 11)), entries(), vote), "over what was before");
    assert!(!append(Some(id(9, 10)), entries(), vote), "older than what was before");
    assert!(!append(Some(id(2, 10)), entries(), Vote::new_committed(2, 1)), "newer than who sends them");
    assert!(!append(Some(id(2, 10)), entries(), Vote::new(3, OWNER.id)), "of one that was not elected");
    let Stored { meta, data } = stored();
    let piece = |total, offset| {
        let piece = SnapshotPiece { vote, meta: meta.clone(), total, offset, data: data.clone() };
        Request::decode(&Request::Snapshot(piece).encode()).is_ok()
    };
    let length = data.len() as u64;
    assert!(piece(length, 0) && !piece(length - 1, 0) && !piece(length, 1) && !piece(u64::MAX, 0) && !piece(length, u64::MAX));
    let nobody = Membership::<u64, Member>::new(vec![[5].into()], BTreeMap::from([(6, member(1))]));
    let strange = vec![Entry { log_id: id(3, 11), payload: EntryPayload::Membership(nobody) }];
    // The library itself gives a voter that is no member an empty description, so that it goes through as one without an address.
    let _ = append(Some(id(2, 10)), strange, vote);
    assert!(wire::read_frame_header([255; 8], 100).is_err());
    assert!(wire::check_payload(b"abc", 1).is_err());
}

fn decode_all(bytes: &[u8]) {
    let _ = Request::decode(bytes);
    let _ = Answer::decode(bytes);
    let _ = Hello::decode(bytes);
    let _ = wire::decode_welcome(bytes);
    let _ = snapshot::decode_data(CLUSTER, bytes);
    let _ = snapshot::decode_file(OWNER, bytes);
    let _ = log_format::decode_log(bytes, OWNER, true);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(kind in 0u8..14, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        decode_all(&bytes);
        decode_all(&[&[kind], bytes.as_slice()].concat());
    }

    #[test]
    fn changed_messages_never_panic(which in any::<proptest::sample::Index>(), at in any::<proptest::sample::Index>(), value in any::<[u8; 8]>(), cut in any::<proptest::sample::Index>()) {
        let messages = messages();
        let mut message = which.get(&messages).clone();
        decode_all(&message[..cut.index(message.len())]);
        let at = at.index(message.len());
        for (to, from) in message[at..].iter_mut().zip(value) {
            *to = from;
        }
        decode_all(&message);
    }

    /// Records whose checksums are right and whose content is not: the content is what is wrong with them.
    #[test]
    fn changed_records_never_panic(at in any::<proptest::sample::Index>(), value in any::<u8>()) {
        let (bytes, ends) = log_file();
        let at = BLOCK + at.index(ends[2] - BLOCK);
        let mut changed = bytes.clone();
        changed[at] = value;
        decode_all(&changed);
    }
}

#[test]
fn a_snapshot_of_nothing_has_a_name() {
    let meta = snapshot_meta(None, StoredMembership::default());
    assert_eq!(meta.snapshot_id, "empty");
    assert_eq!(Bytes::default().len(), 0);
}
