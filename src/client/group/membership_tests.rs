use super::*;

fn profile(strategies: &[AssignmentStrategy]) -> Profile {
    Profile {
        group: "g".into(),
        client_id: "c".into(),
        instance_id: None,
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 20_000,
        strategies: strategies.to_vec(),
    }
}

fn topics(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn partitions(numbers: &[i32]) -> TopicPartitions {
    if numbers.is_empty() { TopicPartitions::new() } else { [("t".to_string(), numbers.iter().copied().collect())].into() }
}

fn joined(id: &str, generation: i32) -> Result<Joined, JoinRefused> {
    Ok(Joined {
        generation,
        protocol_type: Some("consumer".into()),
        protocol: Some("range".into()),
        leader: "leader".into(),
        member_id: id.into(),
        skip_assignment: false,
        members: vec![],
    })
}

fn synced(numbers: &[i32]) -> Result<Synced, GroupError> {
    let assignment = Assignment { partitions: partitions(numbers), user_data: None }.encode();
    Ok(Synced { protocol_type: None, protocol: None, assignment })
}

fn refused(error: GroupError, id: &str) -> Result<Joined, JoinRefused> {
    Err(JoinRefused { error, member_id: id.into() })
}

fn member(strategies: &[AssignmentStrategy]) -> Membership {
    Membership::new(profile(strategies), topics(&["t"]))
}

/// Goes through a join and a sync, and takes what it is given; what it had to release on the way is returned.
fn settle(member: &mut Membership, generation: i32, numbers: &[i32]) -> Vec<(TopicPartitions, bool)> {
    let mut released = vec![];
    loop {
        match member.step() {
            Step::Release { partitions, is_lost } => {
                member.released(&partitions);
                released.push((partitions, is_lost));
            }
            Step::Join(_) => assert_eq!(member.handle_joined(member.round(), joined("m", generation)), Then::Proceed),
            Step::Sync(_) => assert_eq!(member.handle_synced(member.round(), synced(numbers)), Then::Proceed),
            Step::Take(_) => {
                member.taken();
                return released;
            }
            step => panic!("{step:?}"),
        }
    }
}

const EAGER: &[AssignmentStrategy] = &[AssignmentStrategy::Range, AssignmentStrategy::CooperativeSticky];
const COOPERATIVE: &[AssignmentStrategy] = &[AssignmentStrategy::CooperativeSticky];

fn subscription(step: Step) -> (String, Subscription) {
    let Step::Join(join) = step else { panic!("no join: {step:?}") };
    (join.member_id, Subscription::decode(&join.protocols[0].metadata).unwrap())
}

#[test]
fn a_new_member_joins_with_the_id_that_it_is_given() {
    let mut member = member(EAGER);
    let Step::Join(join) = member.step() else { panic!("a join") };
    assert_eq!((join.member_id.as_str(), join.protocol_type.as_str(), join.needs_member_id), ("", "consumer", true));
    assert_eq!(join.protocols.iter().map(|p| &*p.name).collect::<Vec<_>>(), ["range", "cooperative-sticky"]);
    assert_eq!(member.heartbeat(), None);
    assert_eq!(member.farewell(), None, "nobody knows it");
    assert_eq!(member.handle_joined(0, refused(GroupError::MemberIdRequired, "m")), Then::Proceed);
    assert_eq!(subscription(member.step()).0, "m");
    assert_eq!(member.handle_joined(0, joined("m", 3)), Then::Proceed);
    let Step::Sync(sync) = member.step() else { panic!("a sync") };
    assert_eq!((sync.generation, sync.member.member_id.as_str(), sync.assignments.len()), (3, "m", 0));
    assert_eq!(member.heartbeat().unwrap().generation, 3);
    assert_eq!(member.handle_synced(member.round(), synced(&[0, 2])), Then::Proceed);
    assert_eq!(member.step(), Step::Take(partitions(&[0, 2])));
    member.taken();
    assert_eq!((member.step(), member.owned().clone()), (Step::Rest, partitions(&[0, 2])));
    assert_eq!(member.farewell().unwrap().members[0].member_id, "m");
}

#[test]
fn an_eager_member_gives_up_everything_before_it_joins() {
    let mut member = member(EAGER);
    settle(&mut member, 1, &[0, 1]);
    assert_eq!(member.handle_refusal(&member.identity(), GroupError::RebalanceInProgress), Then::Proceed);
    assert_eq!(member.step(), Step::Release { partitions: partitions(&[0, 1]), is_lost: false });
    assert_eq!(member.heartbeat().unwrap().generation, 1, "alive while it gives up");
    assert_eq!(settle(&mut member, 2, &[1]), [(partitions(&[0, 1]), false)]);
    assert_eq!(member.step(), Step::Rest);
}

#[test]
fn a_cooperative_member_reads_on_and_joins_again_when_it_has_let_go() {
    let mut member = member(COOPERATIVE);
    settle(&mut member, 1, &[0, 1]);
    member.rejoin();
    let (_, subscribed) = subscription(member.step());
    assert_eq!((subscribed.owned, subscribed.generation), (partitions(&[0, 1]), Some(1)));
    assert_eq!(settle(&mut member, 2, &[1]), [(partitions(&[0]), false)]);
    let (_, subscribed) = subscription(member.step());
    assert_eq!((subscribed.owned, subscribed.generation), (partitions(&[1]), Some(2)), "what it let go is free in the next generation");
    assert_eq!(settle(&mut member, 3, &[1, 2]), []);
    assert_eq!((member.step(), member.owned().clone()), (Step::Rest, partitions(&[1, 2])));
}

#[test]
fn topics_that_are_not_subscribed_to_any_more_are_released_first() {
    let mut member = member(COOPERATIVE);
    settle(&mut member, 1, &[0]);
    member.subscribe(topics(&["other"]));
    assert_eq!(member.step(), Step::Release { partitions: partitions(&[0]), is_lost: false });
}

#[test]
fn a_lost_generation_loses_the_partitions_of_every_strategy() {
    for strategies in [EAGER, COOPERATIVE] {
        for (error, id) in [(GroupError::IllegalGeneration, "m"), (GroupError::UnknownMemberId, "")] {
            let mut member = member(strategies);
            settle(&mut member, 1, &[0]);
            member.handle_refusal(&member.identity(), error);
            assert_eq!(member.heartbeat(), None);
            assert_eq!(member.step(), Step::Release { partitions: partitions(&[0]), is_lost: true });
            member.released(&partitions(&[0]));
            let (member_id, subscribed) = subscription(member.step());
            assert_eq!((member_id.as_str(), subscribed.owned, subscribed.generation), (id, TopicPartitions::new(), None), "{error}");
        }
    }
}

#[test]
fn every_error_of_a_join_and_a_sync_has_its_reaction() {
    for error in GroupError::ALL {
        let mut member = member(EAGER);
        let then = member.handle_joined(0, refused(*error, "id"));
        let expected = match error {
            GroupError::CoordinatorLoadInProgress | GroupError::UnknownServerError => Then::BackOff,
            GroupError::NotCoordinator | GroupError::CoordinatorNotAvailable => Then::FindCoordinator,
            _ => Then::Proceed,
        };
        assert_eq!(then, expected, "{error}");
        let goes_on = matches!(
            error,
            GroupError::CoordinatorLoadInProgress
                | GroupError::UnknownServerError
                | GroupError::NotCoordinator
                | GroupError::CoordinatorNotAvailable
                | GroupError::RebalanceInProgress
                | GroupError::IllegalGeneration
                | GroupError::UnknownMemberId
                | GroupError::MemberIdRequired
        );
        assert_eq!(matches!(member.step(), Step::Join(_)), goes_on, "{error}");
        assert_eq!(member.step() == Step::Failed(*error), !goes_on, "{error}");

        let mut member = self::member(EAGER);
        member.handle_joined(0, joined("m", 1));
        member.handle_synced(member.round(), Err(*error));
        let asks_again =
            matches!(error, GroupError::CoordinatorLoadInProgress | GroupError::NotCoordinator | GroupError::CoordinatorNotAvailable);
        assert_eq!(matches!(member.step(), Step::Sync(_)), asks_again, "{error}");
    }
}

#[test]
fn a_fenced_member_ends_with_its_partitions_lost() {
    let mut member = member(EAGER);
    settle(&mut member, 1, &[0]);
    member.handle_refusal(&member.identity(), GroupError::FencedInstanceId);
    assert_eq!(member.step(), Step::Release { partitions: partitions(&[0]), is_lost: true });
    member.released(&partitions(&[0]));
    assert_eq!(member.step(), Step::Failed(GroupError::FencedInstanceId));
    assert_eq!((member.heartbeat(), member.farewell()), (None, None), "its name is another's");
}

#[test]
fn answers_that_were_overtaken_change_nothing() {
    let mut member = member(EAGER);
    settle(&mut member, 1, &[0]);
    let (identity, round) = (member.identity(), member.round());
    member.rejoin();
    settle(&mut member, 2, &[1]);
    assert_eq!(member.handle_refusal(&identity, GroupError::UnknownMemberId), Then::Proceed);
    member.handle_joined(round, joined("other", 9));
    member.handle_synced(round, synced(&[5]));
    assert_eq!((member.step(), member.owned().clone(), member.identity().1), (Step::Rest, partitions(&[1]), 2));
}

#[test]
fn a_rebalance_while_it_takes_its_partitions_follows_at_once() {
    let mut member = member(EAGER);
    member.handle_joined(0, joined("m", 1));
    member.handle_synced(member.round(), synced(&[0]));
    member.handle_refusal(&member.identity(), GroupError::RebalanceInProgress);
    assert_eq!(member.step(), Step::Take(partitions(&[0])));
    member.taken();
    assert_eq!(member.step(), Step::Release { partitions: partitions(&[0]), is_lost: false });
}

#[test]
fn one_that_was_silent_is_away_until_it_comes_back() {
    let mut member = member(EAGER);
    settle(&mut member, 1, &[0]);
    member.go_away();
    assert_eq!(member.step(), Step::Release { partitions: partitions(&[0]), is_lost: true });
    member.released(&partitions(&[0]));
    assert_eq!((member.step(), member.heartbeat()), (Step::Away, None));
    member.rejoin();
    assert_eq!(member.step(), Step::Away);
    member.come_back();
    assert_eq!(subscription(member.step()).0, "");
}

#[test]
fn static_members_do_not_say_good_bye() {
    let mut member = Membership::new(Profile { instance_id: Some("i".into()), ..profile(EAGER) }, topics(&["t"]));
    settle(&mut member, 1, &[0]);
    assert_eq!(member.farewell(), None);
    assert_eq!(member.heartbeat().unwrap().member.instance_id.as_deref(), Some("i"));
}

#[test]
fn an_assignment_that_does_not_read_ends_it() {
    let mut member = member(EAGER);
    member.handle_joined(0, joined("m", 1));
    let garbage = Synced { protocol_type: None, protocol: None, assignment: b"\x00"[..].into() };
    member.handle_synced(member.round(), Ok(garbage));
    assert_eq!(member.step(), Step::Failed(GroupError::InconsistentGroupProtocol));
}
