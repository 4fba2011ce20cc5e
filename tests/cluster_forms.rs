//! How nodes become a cluster: founding, joining, going back, taking over a store of a node that was alone, and who is refused and what it is told.

#[path = "support/places.rs"]
mod places;
mod support;

use std::process::{Child, Command};
use std::time::Duration;

use places::{Place, SHARDS, command, create, scratch};
use serde_json::Value;
use support::{Broker, eventually};

fn cluster_of(status: &Value) -> String {
    status["cluster"].as_str().unwrap_or_else(|| panic!("no cluster in {status}")).to_owned()
}

#[test]
fn three_processes_are_one_broker_and_come_back_as_one() {
    let directory = scratch();
    let places: Vec<Place> = (1..=3).map(|node| Place::new(directory.path(), node)).collect();
    let mut running = vec![places[0].start(&[])];
    running.extend(places[1..].iter().map(|place| place.start(&[&places[0]])));
    create(&places[0], "t", 4, 3);
    places[2].wait_healthy(3);
    let status = places[1].status();
    for partition in status["partitions"].as_array().expect("a list") {
        assert_eq!(partition["isr"].as_array().map(Vec::len), Some(3), "{status}");
    }
    places[0].produce("t", 0..300);

    // One stops; the others go on without it, and it goes back without being told where to.
    assert_eq!(running.remove(0).stop(), 0);
    places[1].produce("t", 300..600);
    running.insert(0, places[0].start(&[]));
    places[0].wait_healthy(3);

    // All are killed at once, and none can go on alone: they wait for each other.
    running.drain(..).for_each(Broker::kill);
    let mut others: Vec<Child> = places[1..].iter().map(|place| place.spawn(&[])).collect();
    running.push(places[0].start(&[]));
    places[0].wait_healthy(3);
    assert_eq!(places[0].consume("t"), (0..600).collect::<Vec<_>>());
    for other in &mut others {
        other.kill().expect("our child");
        other.wait().expect("our child");
    }
}

#[test]
fn a_node_without_its_cluster_can_be_stopped() {
    let directory = scratch();
    let places: Vec<Place> = (1..=3).map(|node| Place::new(directory.path(), node)).collect();
    let running = [places[0].start(&[]), places[1].start(&[&places[0]]), places[2].start(&[&places[0]])];
    // All three vote, so that one alone is no majority.
    eventually("three vote", || voters(&places[0]).len() == 3);
    running.into_iter().for_each(Broker::kill);
    let mut alone = places[0].spawn(&[]);
    eventually("it listens", || std::net::TcpStream::connect(&places[0].consensus).is_ok());
    std::thread::sleep(Duration::from_millis(300));
    assert!(alone.try_wait().expect("our child").is_none(), "it waits for the others");
    assert!(Command::new("kill").args(["-TERM", &alone.id().to_string()]).status().expect("kill runs").success());
    let mut ended = None;
    eventually("it ends", || {
        ended = alone.try_wait().expect("our child");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
}

fn voters(at: &Place) -> Vec<u64> {
    let members = at.status()["consensus"]["members"].as_array().cloned().unwrap_or_default();
    members.iter().filter(|member| member["votes"] == true).filter_map(|member| member["node"].as_u64()).collect()
}

/// Of two voters none could stop.
#[test]
fn a_cluster_shrinks_to_one_node_as_its_commands_say() {
    let directory = scratch();
    let places: Vec<Place> = (1..=3).map(|node| Place::new(directory.path(), node)).collect();
    let mut running = vec![Some(places[0].start(&[]))];
    running.extend(places[1..].iter().map(|place| Some(place.start(&[&places[0]]))));
    create(&places[0], "t", 6, 1);
    places[0].produce("t", 0..100);
    eventually("three vote", || voters(&places[0]).len() == 3);
    let mut go = |node: u64, asked: &Place| {
        let id = node.to_string();
        let said = asked.ask(&["cluster", "decommission", &id]);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(running[node as usize - 1].take().expect("it runs").stop(), 0);
        eventually("it is removed", || asked.ask(&["cluster", "remove", &id]).status.success());
    };
    go(3, &places[0]);
    eventually("one of two votes", || voters(&places[0]).len() == 1);
    let stays = voters(&places[0])[0];
    let last = &places[stays as usize - 1];
    go(3 - stays, last);
    last.wait_healthy(1);
    last.produce("t", 100..200);
    assert_eq!(last.consume("t"), (0..200).collect::<Vec<_>>());
    running[stays as usize - 1].take().expect("it runs").kill();
    let _again = last.start(&[]);
    assert_eq!(last.consume("t"), (0..200).collect::<Vec<_>>());
}

#[test]
fn a_store_of_a_node_that_was_alone_becomes_a_cluster_with_its_topics() {
    let directory = scratch();
    let (first, second) = (Place::new(directory.path(), 0), Place::new(directory.path(), 7));
    let alone = Broker::start(&first.data, &["--shards", "2", "--listen", &first.clients]);
    create(&first, "old", 3, 1);
    first.produce("old", 0..200);
    let cluster = cluster_of(&first.status());
    assert_eq!(alone.stop(), 0);

    // Its topics can't come into a cluster that is there.
    let other = Place::new(directory.path(), 9);
    let founder = other.start(&[]);
    let said = first.refused(&first.with(&[&other]));
    let theirs = cluster_of(&other.status());
    assert!(said.contains(&cluster) && said.contains(&theirs), "{said}");
    founder.kill();
    let numbered = Place { node: 4, data: first.data.clone(), clients: first.clients.clone(), consensus: first.consensus.clone() };
    let said = numbered.refused(&numbered.flags());
    assert!(said.contains("node 0") && said.contains("node 4"), "{said}");

    let taken_over = first.start(&[]);
    first.wait_healthy(1);
    assert_eq!(cluster_of(&first.status()), cluster, "the cluster keeps its id");
    assert!(!first.data.join("catalogue").exists(), "the consensus has it now");
    assert_eq!(first.consume("old"), (0..200).collect::<Vec<_>>());
    let joined = second.start(&[&first]);
    second.wait_healthy(2);
    let moved = first.ask(&["topic", "alter", "old", "--replicas", "0=7,0"]);
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    eventually("the new node has a replica that is in sync", || {
        let status = first.status();
        status["partitions"].as_array().is_some_and(|all| all.iter().any(|p| p["isr"].as_array().is_some_and(|isr| isr.len() == 2)))
    });
    assert_eq!(joined.stop(), 0);
    assert_eq!(taken_over.stop(), 0);

    // Its place is in the cluster now, whatever the flags say.
    let said = first.refused(&["--shards".into(), "2".into(), "--listen".into(), first.clients.clone()]);
    assert!(said.contains("--cluster-listen"), "{said}");
    let inspected = command(&["inspect", "verify", "--data"]).arg(&first.data).output().expect("it runs");
    let said = String::from_utf8_lossy(&inspected.stdout);
    assert!(inspected.status.success() && said.contains("consensus"), "{said}");
    let repaired = command(&["inspect", "repair", "--data"]).arg(&first.data).output().expect("it runs");
    let said = String::from_utf8_lossy(&repaired.stderr);
    assert!(!repaired.status.success() && said.contains("node of a cluster"), "{said}");
    std::fs::remove_dir_all(first.data.join("consensus")).expect("it was there");
    let said = first.refused(&first.flags());
    assert!(said.contains("consensus files are lost"), "{said}");
}

#[test]
fn who_is_refused_is_told_why_and_may_try_again() {
    let directory = scratch();
    let (first, second) = (Place::new(directory.path(), 1), Place::new(directory.path(), 2));
    let running = first.start(&[]);

    let said = second.refused(&[
        "--cluster-listen".into(),
        second.consensus.clone(),
        "--join".into(),
        first.consensus.clone(),
        "--listen".into(),
        second.clients.clone(),
    ]);
    assert!(said.contains("--node-id"), "{said}");

    // An id that is in use: nothing stays of the attempt.
    let twin = Place { node: 1, data: second.data.clone(), clients: second.clients.clone(), consensus: second.consensus.clone() };
    let said = twin.refused(&twin.with(&[&first]));
    assert!(said.contains('1') && said.contains(&first.consensus), "{said}");
    assert!(!second.data.join("consensus").exists() && !second.data.join("meta").exists());

    // Ports of another node on this host.
    let (host, port) = first.consensus.rsplit_once(':').expect("a port");
    let port: u16 = port.parse().expect("a number");
    let overlapping =
        Place { node: 2, data: second.data.clone(), clients: second.clients.clone(), consensus: format!("{host}:{}", port + 1) };
    let said = overlapping.refused(&overlapping.with(&[&first]));
    assert!(said.contains(&format!("{} to {}", port + 1, port + 1 + SHARDS)) && said.contains("--cluster-listen"), "{said}");

    // A first start that was cut short left an identity and nothing else.
    let joined = second.start(&[&first]);
    second.wait_healthy(2);
    assert_eq!(joined.stop(), 0);
    running.kill();
}

#[test]
fn a_first_start_that_was_cut_short_begins_again() {
    let directory = scratch();
    let (first, second) = (Place::new(directory.path(), 1), Place::new(directory.path(), 2));
    // An identity and nothing else, of a cluster that nobody knows.
    assert_eq!(Broker::start(&second.data, &["--shards", "1"]).stop(), 0);
    for entry in std::fs::read_dir(&second.data).expect("it is there").map(|entry| entry.expect("an entry")) {
        match entry.file_name() == "meta" {
            true => {}
            false if entry.path().is_dir() => std::fs::remove_dir_all(entry.path()).expect("a directory"),
            false => std::fs::remove_file(entry.path()).expect("a file"),
        }
    }
    let running = [first.start(&[]), second.start(&[&first])];
    second.wait_healthy(2);
    assert_eq!(cluster_of(&first.status()), cluster_of(&second.status()));
    running.into_iter().for_each(|node| assert_eq!(node.stop(), 0));
}
