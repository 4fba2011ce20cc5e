//! Faults: what may be done to a cluster, drawn from a seed, begun and ended.

use std::fmt;
use std::time::Duration;

use super::network::{Network, Node};
use super::nodes::Nodes;
use super::view;
use crate::crash::Numbers;
use crate::small_disk::SmallDisk;

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// SIGKILL; later a start.
    Kill,
    /// SIGKILL, a start that is killed wherever it is, and later another start.
    KillStart,
    /// SIGSTOP; later SIGCONT.
    Pause,
    /// SIGTERM; later a start.
    Stop,
    /// Each node is asked to stop and started again, one after the other.
    RollingRestart,
    /// All are killed at once; later all start.
    KillAll,
    /// SIGKILL, and its data directory goes; later a start, empty.
    Wipe,
    /// Its disk is full; later there is room.
    DiskFull,
    /// It and the others don't reach each other.
    Isolate,
    /// The others don't hear it.
    Mute,
    /// It does not hear the others.
    Deaf,
    /// It and one other don't reach each other; the third one reaches both.
    CutPair,
    /// One other does not hear it.
    CutOneWay,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 13] = [
        Kind::Kill,
        Kind::KillStart,
        Kind::Pause,
        Kind::Stop,
        Kind::RollingRestart,
        Kind::KillAll,
        Kind::Wipe,
        Kind::DiskFull,
        Kind::Isolate,
        Kind::Mute,
        Kind::Deaf,
        Kind::CutPair,
        Kind::CutOneWay,
    ];

    /// All, or those that `CORELANE_FAULTS` names.
    pub fn wanted() -> Result<Vec<Kind>, String> {
        let Ok(names) = std::env::var("CORELANE_FAULTS") else { return Ok(Kind::ALL.to_vec()) };
        let find = |name: &str| Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| format!("no fault is named {name:?}"));
        names.split(',').map(find).collect()
    }

    /// Its name in counts.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::KillStart => "kill_start",
            Kind::Pause => "pause",
            Kind::Stop => "planned_stop",
            Kind::RollingRestart => "rolling_restart",
            Kind::KillAll => "kill_all",
            Kind::Wipe => "wipe",
            Kind::DiskFull => "disk_full",
            Kind::Isolate => "isolate",
            Kind::Mute => "mute",
            Kind::Deaf => "deaf",
            Kind::CutPair => "cut_pair",
            Kind::CutOneWay => "cut_one_way",
        }
    }

    /// Whether it is done to the network.
    pub fn is_of_network(self) -> bool {
        matches!(self, Kind::Isolate | Kind::Mute | Kind::Deaf | Kind::CutPair | Kind::CutOneWay)
    }

    /// Whether another fault may be under way at the same time: nothing is lost by it, and it is over soon.
    fn goes_with_others(self) -> bool {
        self.is_of_network() || matches!(self, Kind::Kill | Kind::Pause)
    }
}

/// Who is hit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// That node.
    Node(Node),
    /// Whoever leads that partition when it begins.
    LeaderOf(u32),
}

/// One fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// To whom.
    pub target: Target,
    /// Where there is one: the other side of a cut, as the number of nodes behind the target.
    pub other: u32,
    /// From its begin to its end.
    pub hold: Duration,
}

/// What comes next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// One fault, or two that overlap.
    pub faults: Vec<Fault>,
    /// From the begin of the first to the begin of the second.
    pub apart: Duration,
    /// Whether the next one waits until all is well again; otherwise so long.
    pub rest: Option<Duration>,
}

/// What can be done here.
#[derive(Clone, Debug)]
pub struct Means {
    /// Kinds.
    pub kinds: Vec<Kind>,
    /// The node whose disk can be filled.
    pub small_disk: Option<Node>,
    /// Partitions of the topic.
    pub partitions: u32,
    /// Nodes.
    pub nodes: u32,
}

/// Draws what comes next.
pub fn draw(random: &mut Numbers, means: &Means) -> Plan {
    let first = draw_fault(random, means, &|_| true);
    let mut faults = vec![first];
    if first.kind.goes_with_others() && random.below(5) == 0 {
        faults.push(draw_fault(random, means, &Kind::goes_with_others));
    }
    let apart = Duration::from_millis(random.below(1500));
    let rest = (random.below(4) == 0).then(|| Duration::from_millis(random.below(1500)));
    Plan { faults, apart, rest }
}

fn draw_fault(random: &mut Numbers, means: &Means, allowed: &dyn Fn(Kind) -> bool) -> Fault {
    let kinds: Vec<Kind> = means.kinds.iter().copied().filter(|kind| allowed(*kind)).collect();
    let kind = kinds[random.below(kinds.len() as u64) as usize];
    let target = match (kind, means.small_disk) {
        (Kind::DiskFull, Some(node)) => Target::Node(node),
        _ if random.below(2) == 0 => Target::LeaderOf(random.below(means.partitions.into()) as u32),
        _ => Target::Node(1 + random.below(means.nodes.into()) as Node),
    };
    let most = match kind {
        // Past the time after which others elect, as often as within it.
        Kind::Kill | Kind::Pause | Kind::Isolate | Kind::Mute | Kind::Deaf | Kind::CutPair | Kind::CutOneWay => 7000,
        Kind::Wipe | Kind::DiskFull => 8000,
        Kind::Stop | Kind::KillStart => 3000,
        Kind::RollingRestart | Kind::KillAll => 1000,
    };
    Fault {
        kind,
        target,
        other: 1 + random.below(u64::from(means.nodes) - 1) as u32,
        hold: Duration::from_millis(200 + random.below(most)),
    }
}

/// A fault under way.
#[derive(Debug)]
pub struct Begun {
    kind: Kind,
    node: Node,
    cuts: Vec<(Node, Node)>,
}

impl fmt::Display for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of node {}", self.kind.name(), self.node)?;
        self.cuts.iter().try_for_each(|(from, to)| write!(f, ", {from} not to {to}"))
    }
}

/// What a ballast file is called.
const BALLAST: &str = "ballast";

impl Fault {
    /// Begins. `None` where the same node is hit already.
    pub fn begin(&self, nodes: &mut Nodes, topic: &str, disk: Option<&SmallDisk>) -> Result<Option<Begun>, String> {
        let node = match self.target {
            Target::Node(node) => node,
            Target::LeaderOf(partition) => leader_of(&nodes.network, topic, partition).unwrap_or(1),
        };
        let all: Vec<Node> = nodes.network.nodes().collect();
        let other = (node - 1 + self.other) % all.len() as Node + 1;
        let others = all.iter().copied().filter(|other| *other != node);
        let cuts: Vec<(Node, Node)> = match self.kind {
            Kind::Isolate => others.flat_map(|other| [(node, other), (other, node)]).collect(),
            Kind::Mute => others.map(|other| (node, other)).collect(),
            Kind::Deaf => others.map(|other| (other, node)).collect(),
            Kind::CutPair => vec![(node, other), (other, node)],
            Kind::CutOneWay => vec![(node, other)],
            _ => Vec::new(),
        };
        if !nodes.is_up(node) && !self.kind.is_of_network() {
            return Ok(None);
        }
        let begun = Begun { kind: self.kind, node, cuts };
        match self.kind {
            Kind::Kill => nodes.kill(node)?,
            Kind::KillStart => {
                nodes.kill(node)?;
                nodes.start(node)?;
                std::thread::sleep(self.hold / 5);
                nodes.kill(node)?;
            }
            Kind::Pause => nodes.pause(node)?,
            Kind::Stop => drop(nodes.stop(node)?),
            Kind::RollingRestart => roll(nodes, topic, &all)?,
            Kind::KillAll => all.iter().try_for_each(|node| nodes.kill(*node))?,
            Kind::Wipe => {
                nodes.kill(node)?;
                nodes.wipe(node)?;
            }
            Kind::DiskFull => disk.ok_or("no disk can be filled")?.fill(BALLAST),
            _ => begun.cuts.iter().try_for_each(|(from, to)| nodes.network.cut(*from, *to))?,
        }
        Ok(Some(begun))
    }
}

impl Begun {
    /// Who is hit.
    pub fn node(&self) -> Node {
        self.node
    }

    /// Ends. Nodes that are started may not be ready yet.
    pub fn end(self, nodes: &mut Nodes, disk: Option<&SmallDisk>) -> Result<(), String> {
        match self.kind {
            Kind::Kill | Kind::KillStart | Kind::Stop | Kind::Wipe => nodes.start(self.node),
            Kind::Pause => nodes.resume(self.node),
            Kind::KillAll => nodes.network.nodes().try_for_each(|node| nodes.start(node)),
            Kind::RollingRestart => Ok(()),
            Kind::DiskFull => {
                disk.ok_or("no disk can be filled")?.free(BALLAST);
                Ok(())
            }
            _ => self.cuts.iter().try_for_each(|(from, to)| nodes.network.mend(*from, *to)),
        }
    }
}

/// As an operator does it: the next one when the last one is in sync again.
fn roll(nodes: &mut Nodes, topic: &str, all: &[Node]) -> Result<(), String> {
    for node in all {
        nodes.stop(*node)?;
        nodes.start(*node)?;
        nodes.wait_ready(*node)?;
        let healthy = || view::expect_healthy(&nodes.network, topic, all.len()).map(drop);
        super::wait_until("after a restart all replicas are in sync", super::run::HEALTH_PATIENCE, healthy)?;
    }
    Ok(())
}

/// Who leads a partition, as the first node sees it that answers.
pub fn leader_of(network: &Network, topic: &str, partition: u32) -> Option<Node> {
    network.nodes().find_map(|node| view::topic(network, node, topic).ok()?.get(&partition)?.leader)
}
