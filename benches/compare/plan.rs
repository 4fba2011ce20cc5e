//! The cases, and the order in which they are run.

use crate::systems::System;

/// What the records are sent with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientKind {
    /// The driver on Kafka's Java client (on NATS's for NATS).
    Java,
    /// The driver on librdkafka.
    Librdkafka,
    /// Kafka's own load generator, as it is: one producer, no keys, a number of records instead of a window.
    ProducerPerformance,
    /// Kafka's own reading tool, as it is: one member of a group.
    ConsumerPerformance,
}

impl ClientKind {
    pub fn name(self) -> &'static str {
        match self {
            ClientKind::Java => "java",
            ClientKind::Librdkafka => "librdkafka",
            ClientKind::ProducerPerformance => "producer-performance",
            ClientKind::ConsumerPerformance => "consumer-performance",
        }
    }
}

/// How records are sent.
#[derive(Clone, Debug)]
pub enum Load {
    /// As fast as the client accepts them.
    Full,
    /// At a rate that rises until acknowledgements fall behind: what is sustained in an open loop.
    Rising,
    /// At half of what the slower of Kafka and Corelane did in the case of this name.
    HalfOf(String),
}

/// What else a case does.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Nothing.
    Produce,
    /// Writes three times this `retention.bytes` of each partition.
    Retention(u64),
    /// Lets a consumer begin this many bytes behind while production goes on; cold: with the page cache dropped before.
    Behind { bytes: u64, cold: bool },
    /// Writes so many bytes first; then a group's only member reads them.
    Consume(u64),
}

/// A measurement that is repeated on several systems.
#[derive(Clone, Debug)]
pub struct Case {
    /// That are one broker: 1, or [`THREE`], on which every partition has a replica on each.
    pub nodes: u16,
    pub client: ClientKind,
    pub producers: u32,
    pub partitions: u32,
    /// Of a record's value; keys have 8 more.
    pub record_bytes: u32,
    pub load: Load,
    pub kind: Kind,
    pub systems: Vec<System>,
    pub repeats: usize,
    /// Seconds before the window.
    pub warm_up: f64,
    /// Seconds of the window.
    pub seconds: f64,
}

impl Case {
    /// In step names and results.
    pub fn name(&self) -> String {
        let (client, producers, partitions, bytes) = (self.client.name(), self.producers, self.partitions, self.record_bytes);
        let end = match (&self.kind, &self.load) {
            (Kind::Retention(_), _) => "-retention",
            (Kind::Behind { cold: false, .. }, _) => "-behind",
            (Kind::Behind { cold: true, .. }, _) => "-behind-cold",
            (Kind::Consume(_), _) => "-read",
            (Kind::Produce, Load::HalfOf(_)) => "-half",
            (Kind::Produce, Load::Rising) => "-open",
            (Kind::Produce, Load::Full) => "",
        };
        let nodes = if self.nodes == THREE { "-three-nodes" } else { "" };
        format!("{client}-{producers}p-{partitions}t-{bytes}b{nodes}{end}")
    }

    /// For people.
    pub fn title(&self) -> String {
        let counted = |count: u32, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let what = match (&self.kind, &self.load) {
            (Kind::Retention(bytes), _) => format!("three times `retention.bytes` ({} MiB a partition)", bytes >> 20),
            (Kind::Behind { bytes, cold }, _) => {
                let cache = if *cold { "page cache dropped" } else { "page cache as it is" };
                format!("a consumer that begins {} MiB behind, {cache}, while production goes on at half load", bytes >> 20)
            }
            (Kind::Consume(bytes), _) => format!("{} MiB are there, a group of one reads them", bytes >> 20),
            (Kind::Produce, Load::HalfOf(_)) if self.nodes == THREE => "open loop at half of the slower one's maximum".into(),
            (Kind::Produce, Load::HalfOf(_)) => "open loop at half of what the slower one sustains".into(),
            (Kind::Produce, Load::Rising) => "open loop, the rate rising until acknowledgements fall behind".into(),
            (Kind::Produce, Load::Full) => "as fast as it goes".into(),
        };
        let (producers, partitions) = (counted(self.producers, "producer"), counted(self.partitions, "partition"));
        let nodes = if self.nodes == THREE { "three nodes, " } else { "" };
        format!("{nodes}{}, {producers}, {partitions}, {} B: {what}", self.client.name(), self.record_bytes)
    }
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Step {
    pub case: Case,
    pub system: System,
    pub repeat: usize,
}

impl Step {
    /// Its name in the file of results.
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.case.name(), self.system.name(), self.repeat)
    }
}

/// How much is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    Smoke,
    ThreeNodes,
    Quick,
    Full,
}

impl Extent {
    pub fn name(self) -> &'static str {
        match self {
            Extent::Smoke => "smoke",
            Extent::ThreeNodes => "three-nodes",
            Extent::Quick => "quick",
            Extent::Full => "full",
        }
    }

    /// After so many seconds no further step is begun.
    pub fn budget_seconds(self) -> u64 {
        match self {
            Extent::Smoke => 5 * 60,
            Extent::ThreeNodes => 14 * 60,
            Extent::Quick => 14 * 60,
            Extent::Full => 89 * 60,
        }
    }

    /// The phases in their order: half load comes after what it is the half of.
    pub fn phases(self) -> Vec<Vec<Case>> {
        match self {
            Extent::Smoke => smoke(),
            Extent::ThreeNodes => three_nodes(3).into(),
            Extent::Quick => quick(),
            Extent::Full => full(),
        }
    }

    /// Every step in its order: repeats alternate between the systems, and every other one has them in the opposite order.
    pub fn steps(self) -> Vec<Step> {
        let mut steps = Vec::new();
        for phase in self.phases() {
            for repeat in 0..phase.iter().map(|case| case.repeats).max().unwrap_or(0) {
                for case in phase.iter().filter(|case| repeat < case.repeats) {
                    let mut systems = case.systems.clone();
                    if repeat % 2 == 1 {
                        systems.reverse();
                    }
                    steps.extend(systems.into_iter().map(|system| Step { case: case.clone(), system, repeat }));
                }
            }
        }
        steps
    }
}

/// Seconds before a window in which latencies are taken.
const STEADY_AFTER: f64 = 15.0;
const TWO: [System; 2] = [System::Kafka, System::Corelane];
/// Nodes of a cluster.
const THREE: u16 = 3;

fn java(producers: u32, partitions: u32, record_bytes: u32) -> Case {
    Case {
        nodes: 1,
        client: ClientKind::Java,
        producers,
        partitions,
        record_bytes,
        load: Load::Full,
        kind: Kind::Produce,
        systems: TWO.to_vec(),
        repeats: 3,
        warm_up: 5.0,
        seconds: 8.0,
    }
}

/// The rate doubles every `warm_up` seconds, for at most ten times as long.
fn rising(case: &Case, repeats: usize) -> Case {
    Case { load: Load::Rising, seconds: case.warm_up * 9.0, repeats, ..case.clone() }
}

/// Java compiles fifty producers for ten seconds and more, with which it takes the cores; what it does then is the steady state.
fn half_of(case: &Case) -> Case {
    let warm_up = if case.warm_up < 1.0 { case.warm_up } else { STEADY_AFTER };
    Case { load: Load::HalfOf(rising(case, 1).name()), warm_up, seconds: case.seconds * 1.25, ..case.clone() }
}

/// All systems but these two: what other durability costs, and what the client can do at most.
fn others(case: Case, repeats: usize) -> Case {
    Case { systems: System::ALL.into_iter().filter(|system| !TWO.contains(system)).collect(), repeats, ..case }
}

/// A cluster's maximum, then its latency at half of it. Kafka's three virtual machines compile on the cores that the producers' one has, so the
/// maximum is taken as late as latencies are.
fn three_nodes(repeats: usize) -> [Vec<Case>; 2] {
    let full = Case { nodes: THREE, repeats, warm_up: STEADY_AFTER, seconds: 10.0, ..java(12, 12, 1024) };
    // What was due while everything was compiled is to be sent by then, too.
    let half = Case { warm_up: STEADY_AFTER + 5.0, ..half_of_maximum(&full) };
    [vec![full], vec![half]]
}

/// What a cluster is held to speaks of half of its maximum, which is more than half of what an open loop sustains.
fn half_of_maximum(case: &Case) -> Case {
    Case { load: Load::HalfOf(case.name()), ..case.clone() }
}

fn smoke() -> Vec<Vec<Case>> {
    let both = Case { repeats: 1, warm_up: 0.3, seconds: 0.7, ..java(2, 4, 100) };
    let case = Case { systems: vec![System::Corelane], warm_up: 0.9, ..both.clone() };
    let librdkafka = Case { client: ClientKind::Librdkafka, ..both.clone() };
    let reading = Case { client: ClientKind::ConsumerPerformance, kind: Kind::Consume(8 << 20), ..case.clone() };
    let retention = Case { kind: Kind::Retention(1 << 20), ..case.clone() };
    let half = half_of(&case);
    let behind = Case { kind: Kind::Behind { bytes: 8 << 20, cold: false }, ..half.clone() };
    // Three of Kafka's nodes take some seconds for their first record where the machine has other things to do.
    let three = Case { nodes: THREE, warm_up: 3.0, seconds: 1.0, ..both.clone() };
    let half_of_three = Case { systems: vec![System::Corelane], ..half_of_maximum(&three) };
    vec![vec![rising(&both, 1), librdkafka, case, retention, reading, three], vec![half, behind, half_of_three]]
}

fn quick() -> Vec<Vec<Case>> {
    let shorter = |case: Case| Case { warm_up: 4.0, ..case };
    let (hundred, thousand) = (shorter(java(50, 100, 1024)), shorter(java(50, 1000, 1024)));
    let half = half_of(&hundred);
    let once = |case: &Case, system| Case { systems: vec![system], repeats: 1, ..case.clone() };
    let small = |case: &Case| once(case, System::CorelaneSmall);
    let librdkafka = Case { client: ClientKind::Librdkafka, repeats: 1, ..hundred.clone() };
    let [maximum_of_three, half_of_three] = three_nodes(1);
    vec![
        vec![hundred.clone(), thousand.clone()],
        vec![rising(&hundred, 1)],
        vec![half.clone()],
        maximum_of_three,
        half_of_three,
        vec![small(&hundred), small(&thousand), small(&half), once(&hundred, System::CorelaneMemory), once(&hundred, System::KafkaFlushed)],
        vec![librdkafka],
        vec![once(&hundred, System::Nats)],
    ]
}

fn full() -> Vec<Vec<Case>> {
    let longer = |case: Case| Case { repeats: 5, seconds: 10.0, ..case };
    let (hundred, thousand) = (longer(java(50, 100, 1024)), longer(java(50, 1000, 1024)));
    let halves = [half_of(&hundred), half_of(&thousand)];
    let behind = |cold| Case { kind: Kind::Behind { bytes: 5 << 30, cold }, repeats: 1, seconds: 30.0, ..halves[0].clone() };
    let retention = Case { kind: Kind::Retention(100 << 20), repeats: 1, ..java(10, 10, 1024) };
    let tool = |record_bytes| Case { client: ClientKind::ProducerPerformance, ..java(1, 10, record_bytes) };
    let reading =
        |record_bytes| Case { client: ClientKind::ConsumerPerformance, kind: Kind::Consume(2 << 30), ..java(4, 10, record_bytes) };
    let [maximum_of_three, half_of_three] = three_nodes(3);
    let mut matrix = Vec::new();
    for client in [ClientKind::Java, ClientKind::Librdkafka] {
        for record_bytes in [100, 1024] {
            for partitions in [1, 10, 100, 1000] {
                for producers in [1, 50] {
                    let case = Case { client, repeats: 2, warm_up: 3.0, seconds: 5.0, ..java(producers, partitions, record_bytes) };
                    if [hundred.name(), thousand.name()].contains(&case.name()) {
                        continue;
                    }
                    matrix.push(case);
                }
            }
        }
    }
    vec![
        vec![rising(&hundred, 3), rising(&thousand, 3)],
        vec![hundred.clone(), thousand],
        halves.to_vec(),
        maximum_of_three,
        half_of_three,
        vec![others(hundred, 3), others(halves[0].clone(), 3)],
        vec![retention, behind(false), behind(true)],
        vec![tool(100), tool(1024), reading(100), reading(1024)],
        matrix,
    ]
}
