//! Values of every request to a coordinator and of every answer, for the tests of whole frames.

use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::decode::{decode_request, decode_response};
use super::encode::{RequestEncoder, ResponseEncoder, encode_request, encode_response};
use super::frame::PREFIX_LEN;
use super::generated as g;
use crate::limits;
use crate::request::group::*;
use crate::request::{Broker, Code, Request, Response};

fn text() -> impl Strategy<Value = String> {
    "[a-zäß.-]{0,10}"
}

fn shared() -> impl Strategy<Value = Arc<str>> {
    text().prop_map(Arc::from)
}

fn blob() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn error() -> impl Strategy<Value = GroupError> {
    select(GroupError::ALL)
}

fn outcome<T: std::fmt::Debug + Clone>(done: impl Strategy<Value = T>) -> impl Strategy<Value = Result<T, GroupError>> {
    prop_oneof![2 => done.prop_map(Ok), 1 => error().prop_map(Err)]
}

fn member() -> impl Strategy<Value = MemberRef> {
    (text(), option::of(text())).prop_map(|(member_id, instance_id)| MemberRef { member_id, instance_id })
}

fn join() -> impl Strategy<Value = JoinGroup> {
    let protocol = (shared(), blob()).prop_map(|(name, metadata)| Protocol { name, metadata });
    (text(), member(), any::<[i32; 2]>(), text(), vec(protocol, 0..4), any::<[bool; 2]>()).prop_map(
        |(group, member, [session_timeout_ms, rebalance_timeout_ms], protocol_type, protocols, flags)| JoinGroup {
            group,
            member_id: member.member_id,
            instance_id: member.instance_id,
            client_id: String::new(),
            client_host: String::new(),
            session_timeout_ms,
            rebalance_timeout_ms,
            protocol_type,
            protocols,
            needs_member_id: flags[0],
            can_skip_assignment: flags[1],
            entropy: [0; 16],
        },
    )
}

fn sync() -> impl Strategy<Value = SyncGroup> {
    (text(), member(), any::<i32>(), option::of(text()), option::of(text()), vec((text(), blob()), 0..4)).prop_map(
        |(group, member, generation, protocol_type, protocol, assignments)| SyncGroup {
            group,
            member,
            generation,
            protocol_type,
            protocol,
            assignments,
        },
    )
}

fn topics() -> impl Strategy<Value = Vec<(String, Vec<i32>)>> {
    vec((text(), vec(any::<i32>(), 0..4)), 0..4)
}

fn commit() -> impl Strategy<Value = CommitOffsets> {
    let partition = (any::<i32>(), any::<i64>(), option::of(0..i32::MAX), option::of(text()))
        .prop_map(|(partition, offset, leader_epoch, metadata)| CommitPartition { partition, offset, leader_epoch, metadata });
    (text(), member(), any::<i32>(), vec((text(), vec(partition, 0..4)), 0..4))
        .prop_map(|(group, member, generation, topics)| CommitOffsets { group, member, generation, retention_ms: None, topics })
}

/// Any request to a coordinator that a client can send.
pub(super) fn request() -> impl Strategy<Value = GroupRequest> {
    prop_oneof![
        join().prop_map(GroupRequest::Join),
        sync().prop_map(GroupRequest::Sync),
        sync().prop_map(|sync| GroupRequest::SyncAssignedByBroker(SyncGroup { assignments: vec![], ..sync })),
        (text(), member(), any::<i32>()).prop_map(|(group, member, generation)| GroupRequest::Heartbeat(Heartbeat {
            group,
            member,
            generation
        })),
        (text(), vec(member(), 0..4)).prop_map(|(group, members)| GroupRequest::Leave(LeaveGroup { group, members })),
        commit().prop_map(GroupRequest::Commit),
        (text(), option::of(topics()), any::<bool>())
            .prop_map(|(group, topics, require_stable)| { GroupRequest::FetchOffsets(FetchOffsets { group, topics, require_stable }) }),
        vec(text(), 0..4).prop_map(GroupRequest::Describe),
        vec(select(&State::ALL[..]), 0..4).prop_map(GroupRequest::List),
        vec(text(), 0..4).prop_map(GroupRequest::Delete),
        (text(), topics()).prop_map(|(group, topics)| GroupRequest::DeleteOffsets { group, topics }),
    ]
}

fn joined() -> impl Strategy<Value = Result<Joined, JoinRefused>> {
    let member = (shared(), option::of(shared()), blob()).prop_map(|(member_id, instance_id, metadata)| MemberMetadata {
        member_id,
        instance_id,
        metadata,
    });
    let joined = (any::<i32>(), option::of(shared()), option::of(shared()), shared(), shared(), any::<bool>(), vec(member, 0..4)).prop_map(
        |(generation, protocol_type, protocol, leader, member_id, skip_assignment, members)| Joined {
            generation,
            protocol_type,
            protocol,
            leader,
            member_id,
            skip_assignment,
            members,
        },
    );
    let refused = (error(), shared()).prop_map(|(error, member_id)| JoinRefused { error, member_id });
    prop_oneof![joined.prop_map(Ok), refused.prop_map(Err)]
}

fn outcomes() -> impl Strategy<Value = Vec<TopicOutcome>> {
    let topic = (text(), vec((any::<i32>(), outcome(Just(()))), 0..4)).prop_map(|(topic, partitions)| TopicOutcome { topic, partitions });
    vec(topic, 0..4)
}

fn fetched() -> impl Strategy<Value = Vec<FetchedTopic>> {
    let commit = (any::<i64>(), any::<Option<i32>>(), shared(), any::<i64>(), any::<Option<i64>>()).prop_map(
        |(offset, leader_epoch, metadata, commit_timestamp, expire_timestamp)| {
            Arc::new(OffsetCommit { offset, leader_epoch, metadata, commit_timestamp, expire_timestamp })
        },
    );
    let partition = (any::<i32>(), outcome(option::of(commit))).prop_map(|(partition, outcome)| FetchedOffset { partition, outcome });
    vec((text(), vec(partition, 0..4)).prop_map(|(topic, partitions)| FetchedTopic { topic, partitions }), 0..4)
}

fn described() -> impl Strategy<Value = (String, Result<DescribedGroup, GroupError>)> {
    let member = (shared(), option::of(shared()), shared(), shared(), blob(), blob()).prop_map(
        |(member_id, instance_id, client_id, client_host, metadata, assignment)| DescribedMember {
            member_id,
            instance_id,
            client_id,
            client_host,
            metadata,
            assignment,
        },
    );
    let group = (select(&State::ALL[..]), shared(), shared(), vec(member, 0..4));
    (text(), outcome(group)).prop_map(|(name, outcome)| {
        let group: Arc<str> = name.as_str().into();
        let described =
            outcome.map(|(state, protocol_type, protocol, members)| DescribedGroup { group, state, protocol_type, protocol, members });
        (name, described)
    })
}

/// Any answer of a coordinator.
pub(super) fn answer() -> impl Strategy<Value = GroupAnswer> {
    let synced = (option::of(shared()), option::of(shared()), blob()).prop_map(|(protocol_type, protocol, assignment)| Synced {
        protocol_type,
        protocol,
        assignment,
    });
    let left = (member(), outcome(Just(()))).prop_map(|(member, outcome)| Left { member, outcome });
    let listed =
        (shared(), shared(), select(&State::ALL[..])).prop_map(|(group, protocol_type, state)| ListedGroup { group, protocol_type, state });
    prop_oneof![
        joined().prop_map(GroupAnswer::Join),
        outcome(synced).prop_map(GroupAnswer::Sync),
        outcome(Just(())).prop_map(GroupAnswer::Heartbeat),
        outcome(vec(left, 0..4)).prop_map(GroupAnswer::Leave),
        outcomes().prop_map(GroupAnswer::Commit),
        outcome(fetched()).prop_map(GroupAnswer::FetchOffsets),
        vec(described(), 0..4).prop_map(GroupAnswer::Describe),
        outcome(vec(listed, 0..4)).prop_map(GroupAnswer::List),
        vec((text(), outcome(Just(()))), 0..4).prop_map(GroupAnswer::DeleteGroups),
        outcome(outcomes()).prop_map(GroupAnswer::DeleteOffsets),
    ]
}

/// Any answer to the question where coordinators are.
pub(super) fn coordinators() -> impl Strategy<Value = Vec<Result<Broker, GroupError>>> {
    vec(outcome((any::<u32>(), text(), any::<u16>()).prop_map(|(id, host, port)| Broker { id, host, port })), 0..4)
}

proptest! {
    #[test]
    fn requests_to_coordinators_round_trip(request in request(), correlation: u64) {
        let (mut frame, request) = (vec![], Request::Group(request));
        encode_request(&mut RequestEncoder::new(), correlation, &request, 0, &mut frame).unwrap();
        prop_assert_eq!(decode_request(&frame[PREFIX_LEN..], 0), Ok((correlation, request)));
    }

    #[test]
    fn answers_of_coordinators_round_trip(answer in answer(), correlation: u64) {
        let (mut frame, answer) = (vec![], Response::Group(answer));
        encode_response(&mut ResponseEncoder::new(), correlation, &answer, 0, &mut frame);
        prop_assert_eq!(decode_response(&frame[PREFIX_LEN..], 0), Ok((correlation, answer)));
    }
}

/// The header of a request with this body.
fn header(b: &mut flatbuffers::FlatBufferBuilder<'_>, body_type: g::RequestBody, body: super::groups::Body) -> Vec<u8> {
    let root = g::Request::create(b, &g::RequestArgs { correlation: 5, body_type, body: Some(body) });
    b.finish_minimal(root);
    b.finished_data().to_vec()
}

#[track_caller]
fn is_refused(header: &[u8], words: &str) {
    let error = decode_request(header, 0).unwrap_err();
    assert_eq!((error.correlation(), error.refusal().code), (Some(5), Code::InvalidRequest));
    assert!(error.to_string().contains(words), "{error} does not say {words:?}");
}

#[test]
fn an_assignment_of_a_member_for_whom_the_broker_assigns_is_refused() {
    let sync = SyncGroup {
        group: "g".into(),
        member: MemberRef::default(),
        generation: 1,
        protocol_type: None,
        protocol: None,
        assignments: vec![("m".into(), Bytes::new())],
    };
    let mut frame = vec![];
    encode_request(&mut RequestEncoder::new(), 5, &Request::Group(GroupRequest::SyncAssignedByBroker(sync)), 0, &mut frame).unwrap();
    is_refused(&frame[PREFIX_LEN..], "expected no assignments, got 1");
}

#[test]
fn states_and_epochs_that_are_none_are_refused() {
    let mut b = flatbuffers::FlatBufferBuilder::new();
    let states = Some(b.create_vector(&[g::GroupState::Stable, g::GroupState(9)]));
    let list = g::ListGroupsRequest::create(&mut b, &g::ListGroupsRequestArgs { states });
    is_refused(&header(&mut b, g::RequestBody::ListGroupsRequest, list.as_union_value()), "0 to 4, not 9");

    let partition = CommitPartition { partition: 0, offset: 1, leader_epoch: Some(-3), metadata: None };
    let topics = vec![("t".into(), vec![partition])];
    let commit = CommitOffsets { group: "g".into(), member: MemberRef::default(), generation: -1, retention_ms: None, topics };
    let mut frame = vec![];
    encode_request(&mut RequestEncoder::new(), 5, &Request::Group(GroupRequest::Commit(commit)), 0, &mut frame).unwrap();
    is_refused(&frame[PREFIX_LEN..], "absent, not -3");
}

#[test]
fn more_groups_than_one_request_may_name_are_refused() {
    let names = |count| (0..count).map(|n| n.to_string()).collect::<Vec<String>>();
    for request in [Request::FindCoordinator, |names| Request::Group(GroupRequest::Describe(names))] {
        let mut frame = vec![];
        encode_request(&mut RequestEncoder::new(), 5, &request(names(limits::MAX_GROUPS_OF_REQUEST)), 0, &mut frame).unwrap();
        assert!(decode_request(&frame[PREFIX_LEN..], 0).is_ok());
        frame.clear();
        encode_request(&mut RequestEncoder::new(), 5, &request(names(limits::MAX_GROUPS_OF_REQUEST + 1)), 0, &mut frame).unwrap();
        is_refused(&frame[PREFIX_LEN..], "at most 10000 groups, not 10001");
    }
}
