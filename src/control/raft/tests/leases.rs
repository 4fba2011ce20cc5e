//! Nodes that fall silent are fenced, those that are heard are not, and a node's own lease ends first.

use super::super::ConsensusId;
use super::*;
use crate::cluster::CatalogueView;

/// A node is live while there is a topic of its name; its fence is that the topic goes.
#[derive(Debug)]
pub(super) struct TopicsAsNodes;

pub(super) fn topic_of(view: &CatalogueView, node: u32) -> Option<TopicId> {
    view.topic(&format!("node-{node}")).map(|topic| topic.id)
}

impl Registry for TopicsAsNodes {
    fn is_live(&self, view: &CatalogueView, node: u32, _life: ConsensusId) -> bool {
        topic_of(view, node).is_some()
    }

    fn fence(&self, view: &CatalogueView, node: u32) -> Option<Command> {
        topic_of(view, node).map(|id| Command::DeleteTopic { id })
    }
}

pub(super) fn register(node: &TestNode) {
    let id = TopicId(life());
    let name = format!("node-{}", node.node);
    node.propose(Command::CreateTopic { id, name, partitions: 1, replication_factor: 1, config: vec![] }).unwrap();
}

#[test]
fn a_silent_node_is_fenced_after_its_own_lease_has_ended() {
    let mut nodes = three_with(|node| node.registry = || Box::new(TopicsAsNodes));
    let holds = |node: &TestNode| node.store().lease().borrow().holds(Instant::now());
    eventually("none is registered yet", || nodes.iter().all(|node| node.store().lease().borrow().fenced));
    nodes.iter().for_each(register);
    eventually("all have a lease", || nodes.iter().all(holds));

    // Many leases later nobody is fenced, and no lease ended.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        assert!(nodes.iter().all(holds));
        std::thread::sleep(Duration::from_millis(10));
    }
    let leads = leader(&nodes);
    let (silent, other) = ((leads + 1) % 3, (leads + 2) % 3);
    let lease = *nodes[silent].store().lease().borrow();
    nodes[silent].fall_silent();
    let fenced = |by: &TestNode, node: &TestNode| topic_of(&by.store().view(), node.node).is_none();
    eventually("the silent one is fenced", || fenced(&nodes[other], &nodes[silent]));
    assert!(!lease.holds(Instant::now()), "its own lease has ended before");
    assert!(!fenced(&nodes[other], &nodes[leads]) && holds(&nodes[other]));
    nodes[silent].start(found());
    eventually("it is told that it is fenced", || nodes[silent].store().lease().borrow().fenced);
    register(&nodes[silent]);
    eventually("it has a lease again", || holds(&nodes[silent]));

    // The leader ends: the next one gives everybody the whole time but the one whose port refuses, and fences only that.
    nodes[leads].kill();
    eventually("the dead leader is fenced", || fenced(&nodes[other], &nodes[leads]));
    assert!(!fenced(&nodes[other], &nodes[silent]) && !fenced(&nodes[other], &nodes[other]));
    eventually("the others have leases", || holds(&nodes[silent]) && holds(&nodes[other]));
}
