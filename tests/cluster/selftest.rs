//! The tests beside the checks. The tools are tested: a planted difference between replicas is found, a cut stops what it is to stop and nothing else, a plan is the seed's.

use std::fs::OpenOptions;
use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use corelane::log::paths;
use corelane::types::TopicPartition;
use libtest_mimic::{Failed, Trial};

use super::faults::{self, Kind, Means};
use super::network::{Network, Node};
use super::nodes::copy_files;
use super::replicas::compare;
use crate::broker::wait_quiet;
use crate::crash::Numbers;
use crate::support::{Broker, batch_of};

/// A datagram is there, or it was dropped.
const WAIT: Duration = Duration::from_millis(500);

/// All of them.
pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("cluster_finds_a_planted_difference", || finds_a_planted_difference().map_err(Failed::from)),
        Trial::test("cluster_cuts_one_way", || cuts_one_way().map_err(Failed::from)),
        Trial::test("cluster_groups_find_planted_mistakes", || super::groups::finds_planted_mistakes().map_err(Failed::from)),
        Trial::test("cluster_order_finds_planted_mistakes", || super::order::finds_planted_mistakes().map_err(Failed::from)),
        Trial::test("cluster_finds_a_planted_loss", || super::run::finds_a_planted_loss().map_err(Failed::from)),
        Trial::test("cluster_of_the_readme", || super::readme::block_forms_a_cluster().map_err(Failed::from)),
        Trial::test("cluster_mends_damaged_segments", || super::mending::damaged_segments_are_mended().map_err(Failed::from)),
        Trial::test("cluster_plans_by_the_seed", || plans_by_the_seed().map_err(Failed::from)),
    ]
}

fn finds_a_planted_difference() -> Result<(), String> {
    let failed = |e: std::io::Error| e.to_string();
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(failed)?;
    let [data, one, other] = ["data", "one", "other"].map(|name| scratch.path().join(name));
    let broker = Broker::start(&data, &["--shards", "1"]);
    let topic = broker.connect().create("same", 2, &[("segment.bytes", "1048576")]);
    let partition = TopicPartition { topic, partition: 1 };
    for n in 0..40 {
        let appended = broker.connect().produce(partition, &batch_of([vec![n; 100_000]])).outcome;
        appended.map_err(|refusal| refusal.to_string())?;
    }
    broker.stop();
    wait_quiet(&data)?;
    copy_files(&data, &one)?;
    copy_files(&data, &other)?;
    let stores: [(Node, &Path); 2] = [(1, &one), (2, &other)];
    let compared = compare(&stores, topic, 2)?;
    if compared.segments < 4 || compared.bytes < 4_000_000 {
        return Err(format!("not all was compared: {compared:?}"));
    }
    let file = OpenOptions::new().read(true).write(true).open(other.join(paths::segment(partition, 0))).map_err(failed)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 500_000).map_err(failed)?;
    file.write_all_at(&[byte[0] ^ 1], 500_000).map_err(failed)?;
    drop(file);
    match compare(&stores, topic, 2) {
        Err(what) if what.contains("segment 0 at byte 500000") => Ok(()),
        other => Err(format!("a flipped bit is not found: {other:?}")),
    }
}

fn cuts_one_way() -> Result<(), String> {
    let network = match Network::namespaces(3) {
        Ok(network) => network,
        Err(reason) => {
            eprintln!("SKIPPED: no namespaces: {reason}");
            return Ok(());
        }
    };
    let bind = |node| network.within(Some(node), || UdpSocket::bind(network.clients(node)))?.map_err(|e| e.to_string());
    let sockets = network.nodes().map(bind).collect::<Result<Vec<_>, String>>()?;
    // Pairs that hear each other: all that send do so before any is asked.
    let heard = || -> Result<Vec<(Node, Node)>, String> {
        let mut heard = Vec::new();
        for from in network.nodes() {
            for to in network.nodes().filter(|to| *to != from) {
                let sent = sockets[from as usize - 1].send_to(&[from as u8], network.clients(to));
                sent.map_err(|e| e.to_string())?;
            }
        }
        for to in network.nodes() {
            let socket = &sockets[to as usize - 1];
            socket.set_read_timeout(Some(WAIT)).map_err(|e| e.to_string())?;
            let mut from = [0];
            while socket.recv(&mut from).is_ok() {
                heard.push((Node::from(from[0]), to));
            }
        }
        heard.sort_unstable();
        Ok(heard)
    };
    let all = vec![(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)];
    let expect = |what: &str, expected: &[(Node, Node)]| match heard()? {
        found if found == expected => Ok(()),
        found => Err(format!("{what}: {found:?} hear each other, not {expected:?}")),
    };
    expect("whole", &all)?;
    network.cut(1, 2)?;
    expect("1 is not heard by 2", &all[1..])?;
    network.cut(3, 2)?;
    expect("nor is 3", &all[1..5])?;
    network.mend(1, 2)?;
    network.mend(3, 2)?;
    expect("whole again", &all)
}

fn plans_by_the_seed() -> Result<(), String> {
    let means = Means { kinds: Kind::ALL.to_vec(), small_disk: Some(2), partitions: 6, nodes: 3 };
    let plans = |seed| -> Vec<_> { (0..400).scan(Numbers(seed), |random, _| Some(faults::draw(random, &means))).collect() };
    let first = plans(7);
    if first != plans(7) || first == plans(8) {
        return Err("a plan is not the seed's alone".into());
    }
    let drawn = |kind| first.iter().flat_map(|plan| &plan.faults).filter(|fault| fault.kind == kind).count();
    match Kind::ALL.into_iter().find(|kind| drawn(*kind) < 10) {
        Some(kind) => Err(format!("{} is drawn {} times in 400 plans", kind.name(), drawn(kind))),
        None if first.iter().all(|plan| plan.faults.len() == 1) => Err("no faults overlap".into()),
        None => Ok(()),
    }
}
