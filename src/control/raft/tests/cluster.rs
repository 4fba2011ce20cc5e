//! A cluster grows, loses nodes, and gets them back.

use super::*;
use crate::control::metadata::SingleNodeLog;
use crate::control::metadata::tests::registration;

#[test]
fn a_single_node_takes_its_catalogue_over_and_is_a_cluster_of_one() {
    let mut node = TestNode::new(1);
    let file = node.scratch.path().join("catalogue");
    SingleNodeLog::create(&file, CLUSTER, &Witness::default()).unwrap();
    let (log, _) = SingleNodeLog::open(&file, &registration(1, CLUSTER), Witness::default()).unwrap();
    block_on(async {
        log.propose(create(1)).await.unwrap();
        log.propose(Command::AllocateProducerIds { count: 10 }).await.unwrap();
    });
    let before = log.view();
    drop(log);
    let begun = Instant::now();
    node.start(Origin::Found { catalogue: Some(file.clone()) });
    assert!(!file.exists(), "it must not be taken over a second time");
    assert_eq!(*node.store().view(), *before, "it is there before anything is decided");
    node.ready();
    println!("a node that is alone was ready after {:?}", begun.elapsed());
    assert_eq!(node.propose(Command::AllocateProducerIds { count: 10 }), Ok(Applied::ProducerIds(10..20)));
    assert_eq!(node.propose(create(1)).unwrap_err().code, Code::TopicExists);
    let group: Vec<_> = (2..40).map(create).chain([create(2)]).collect();
    let outcomes = block_on(node.store().propose_all(group));
    assert!(outcomes[..38].iter().all(Result::is_ok) && outcomes[38].is_err(), "each has its own outcome");
    assert_eq!(outcomes[0].as_ref().unwrap().view.topics().len(), 2, "and the state right after it");
    let view = node.store().view();
    for _ in 0..2 {
        node.kill();
        node.start(Origin::Return);
        assert_eq!(*node.store().view(), *view, "what was committed is shown at once");
        node.ready();
    }
    assert_eq!(voters(&node), [1]);
}

#[test]
fn three_nodes_take_proposals_anywhere_and_go_on_without_their_leader() {
    let mut nodes = three();
    let seen: Vec<_> = nodes.iter().map(|node| node.store().subscribe()).collect();
    for (n, node) in (1..).zip(&nodes) {
        assert!(matches!(node.propose(create(n)), Ok(Applied::TopicCreated(_))));
        assert!(has_topics(node, 1..=n), "a proposer sees its own change, and all before it");
    }
    assert_eq!(nodes[1].propose(create(1)).unwrap_err().code, Code::TopicExists);
    all_alike(&nodes);
    assert!(seen.iter().all(|view| view.borrow().topics().len() == 3));

    for round in 0..3u8 {
        let gone = leader(&nodes);
        nodes[gone].kill();
        let begun = Instant::now();
        let other = (gone + 1) % 3;
        nodes[other].decide(create(10 + 2 * round));
        let paused = begun.elapsed();
        println!("round {round}: the next change was there {} ms after the leader was gone", paused.as_millis());
        nodes[(gone + 2) % 3].decide(create(11 + 2 * round));
        nodes[gone].start(found()).ready();
        assert!(has_topics(&nodes[gone], 10..=11 + 2 * round), "it has caught up");
        all_alike(&nodes);
    }
    // All three at once: everything that was acknowledged is on disk.
    nodes.iter_mut().for_each(TestNode::kill);
    for node in &mut nodes {
        node.start(found());
        assert!(has_topics(node, 1..=3), "what it knew to be committed is shown before anybody answers");
    }
    nodes.iter().for_each(TestNode::ready);
    assert!(nodes.iter().all(|node| has_topics(node, (1..=3).chain(10..=15))));
    all_alike(&nodes);
}

#[test]
fn one_that_was_away_for_long_gets_a_snapshot_and_a_wiped_one_comes_back_as_another() {
    let mut nodes = three_with(|node| node.snapshot_entries = 20);
    nodes[2].kill();
    let mut next = 0;
    let mut grow = |nodes: &[TestNode]| {
        for _ in 0..45 {
            next += 1;
            nodes[next as usize % 2].decide(create(next));
        }
        next
    };
    let last = grow(&nodes);
    let files = |node: &TestNode| -> Vec<String> {
        let names = std::fs::read_dir(node.directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let snapshot_of = |node: &TestNode| files(node).into_iter().filter(|name| name.starts_with("snapshot-")).max();
    eventually("snapshots are made", || snapshot_of(&nodes[0]) > Some("snapshot-00000000000000000020".into()));
    nodes[2].start(found()).ready();
    assert!(has_topics(&nodes[2], 1..=last));
    assert!(snapshot_of(&nodes[2]) > Some("snapshot-00000000000000000020".into()), "it came as a snapshot: {:?}", files(&nodes[2]));
    all_alike(&nodes);

    let before = nodes[2].store().status().id;
    nodes[2].wipe();
    let origin = join(&nodes[0]);
    nodes[2].start(origin).ready();
    let after = nodes[2].store().status().id;
    assert_ne!(before, after);
    assert!(has_topics(&nodes[2], 1..=last));
    eventually("the new life votes in the place of the old", || {
        let members = nodes[0].store().status().members;
        members.len() == 3 && members.iter().any(|(id, _, votes)| *id == after && *votes)
    });
    // Its vote counts: with one of the others gone it makes the majority.
    let gone = leader(&nodes);
    let gone = if gone == 2 { 0 } else { gone };
    nodes[gone].kill();
    nodes[2].decide(create(200));
}

#[test]
fn a_fourth_node_learns_and_votes_when_one_is_removed() {
    let mut nodes = three();
    let mut fourth = TestNode::new(4);
    fourth.start(join(&nodes[1])).ready();
    fourth.decide(create(1));
    assert_eq!(voters(&fourth), [1, 2, 3]);
    let gone = leader(&nodes);
    let removed = nodes[(gone + 1) % 3].node;
    eventually("one is removed", || block_on(fourth.store().remove(removed)).is_ok() || !voters(&fourth).contains(&removed));
    nodes[(gone + 1) % 3].kill();
    // While voters change, a majority of the old ones is needed, too: those are two, and one of them is about to go.
    let has_changed = || fourth.store().node.raft.metrics().borrow().membership_config.membership().get_joint_config().len() == 1;
    eventually("the fourth votes", || voters(&fourth).contains(&4) && !voters(&fourth).contains(&removed) && has_changed());
    nodes[gone].kill();
    fourth.decide(create(2));
    let error = block_on(fourth.store().remove(17)).unwrap_err();
    assert!(error.to_string().contains("no node 17"), "{error}");
}

/// A change of voters has two steps, and the library takes the second one only while whoever asked for the first one waits.
#[test]
fn a_change_of_voters_whose_author_is_gone_is_finished_by_the_next_leader() {
    let mut nodes = three();
    let at = leader(&nodes);
    let removed = nodes[(at + 1) % 3].node;
    let configs = |node: &TestNode| node.store().node.raft.metrics().borrow().membership_config.membership().get_joint_config().clone();
    let left: std::collections::BTreeSet<_> = {
        let members = nodes[at].store().node.members().0;
        members.into_iter().filter(|(_, member)| member.node != removed).map(|(id, _)| id).collect()
    };
    let node = nodes[at].store().node.clone();
    block_on(async {
        let mut metrics = node.raft.metrics();
        let is_joint = metrics.wait_for(|metrics| metrics.membership_config.membership().get_joint_config().len() > 1);
        tokio::pin!(is_joint);
        loop {
            let change = node.raft.change_membership(openraft::ChangeMembers::ReplaceAllVoters(left.clone()), false);
            tokio::select! {
                biased;
                _ = &mut is_joint => break,
                outcome = change => assert!(outcome.is_err(), "it has had both steps: {outcome:?}"),
            }
            // The change before it is not committed yet.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    drop(node);
    // The others have it before the leader goes, or it may be as if it had never been.
    let (begun, stays) = (Instant::now(), (0..3).find(|other| *other != at && nodes[*other].node != removed).unwrap());
    while configs(&nodes[stays]).len() == 1 && begun.elapsed() < Duration::from_millis(150) {
        std::thread::yield_now();
    }
    println!("cut off at {:?}", configs(&nodes[stays]));
    nodes[at].kill();
    nodes[at].start(Origin::Return);
    nodes[at].ready();
    eventually("one majority decides", || [at, stays].iter().all(|node| configs(&nodes[*node]).len() == 1));
    nodes[stays].decide(create(1));
    nodes[at].decide(create(2));
    all_alike(&[nodes.swap_remove(at.max(stays)), nodes.swap_remove(at.min(stays))]);
}
