//! Who is refused, and what it gets; no majority; how little an idle cluster costs.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::super::store::{self, StartError};
use super::super::wire::{self, Hello, Identity, MembershipRefusal, PROTOCOL};
use super::*;

#[test]
fn strangers_are_refused_with_the_reason() {
    let mut founder = TestNode::new(1);
    founder.start(found()).ready();
    let address = founder.address();
    assert_eq!(block_on(store::find_cluster(std::slice::from_ref(&address), LONG)).unwrap(), CLUSTER);

    let mut stranger = TestNode::new(2);
    stranger.timing.proposal = Duration::from_secs(2);
    stranger.try_start([8; 16], join(&founder)).unwrap();
    let error = stranger.store().ready_blocking(Duration::from_secs(3)).unwrap_err();
    assert!(matches!(error, StartError::NotReady(_)), "{error}");
    assert!(stranger.store().counters().handshakes_refused.load(Relaxed) > 1, "it was refused again and again");
    assert!(founder.store().status().members.len() == 1);

    // An id that is in use, and then an address.
    let mut second = TestNode::new(1);
    second.timing.proposal = Duration::from_secs(2);
    second.start(join(&founder));
    let error = second.store().ready_blocking(Duration::from_secs(3)).unwrap_err();
    assert!(matches!(&error, StartError::NotLetIn(MembershipRefusal::NodeInUse { node: 1, address: a }) if *a == address), "{error}");
    let mut third = TestNode::new(3);
    third.advertised = Some(address.clone());
    third.start(Origin::Join { members: vec![format!("localhost:{}", founder.port)] });
    let error = third.store().ready_blocking(Duration::from_secs(3)).unwrap_err();
    assert!(matches!(&error, StartError::NotLetIn(MembershipRefusal::AddressInUse { node: 1, .. })), "{error}");

    // Whoever speaks another version, means another life, or is a copy.
    let me = Identity { cluster: CLUSTER, node: 1, id: founder.store().status().id };
    let stranger = Identity { cluster: CLUSTER, node: 7, id: 77 };
    let greet = |hello: Hello| -> String {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(&wire::frame(&hello.encode())).unwrap();
        let mut header = [0; wire::FRAME_HEADER];
        stream.read_exact(&mut header).unwrap();
        let (length, _) = wire::read_frame_header(header, 1000).unwrap();
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).unwrap();
        wire::decode_welcome(&payload).unwrap().unwrap_err().to_string()
    };
    let hello = Hello { protocol: PROTOCOL, from: stranger, to: 0 };
    assert!(greet(Hello { protocol: 9, ..hello }).contains("speaks version 1"));
    assert!(greet(Hello { to: 5, ..hello }).contains("incarnation"));
    assert!(greet(Hello { from: me, ..hello }).contains("runs twice"));
    assert!(greet(Hello { from: Identity { cluster: [1; 16], ..stranger }, ..hello }).contains("belongs to cluster"));
}

#[test]
fn rubbish_on_the_port_harms_nobody() {
    let mut founder = TestNode::new(1);
    founder.start(found()).ready();
    let hello = wire::frame(&Hello { protocol: PROTOCOL, from: Identity { cluster: CLUSTER, node: 7, id: 77 }, to: 0 }.encode());
    let mut too_long = hello.clone();
    too_long.extend_from_slice(&(u32::MAX).to_le_bytes());
    too_long.extend_from_slice(&[0; 4]);
    let mut harmed = hello.clone();
    let frame = wire::frame(&wire::Request::Leader.encode());
    harmed.extend_from_slice(&[&frame[..frame.len() - 1], &[99]].concat());
    for rubbish in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 10_000], hello[..9].to_vec(), too_long, harmed] {
        let mut stream = TcpStream::connect(founder.address()).unwrap();
        let _ = stream.write_all(&rubbish);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
        let _ = stream.read_to_end(&mut Vec::new());
    }
    founder.decide(create(1));
}

#[test]
fn without_a_majority_proposals_are_refused_in_time_and_reads_go_on() {
    let mut nodes = three_with(|node| node.timing.proposal = Duration::from_secs(3));
    nodes[0].decide(create(1));
    let leads = leader(&nodes);
    for at in (0..3).filter(|at| *at != leads) {
        nodes[at].kill();
    }
    for n in 2..4 {
        let begun = Instant::now();
        let refusal = nodes[leads].propose(create(n)).unwrap_err();
        assert_eq!(refusal.code, Code::Unavailable, "{refusal}");
        let took = begun.elapsed();
        assert!((Duration::from_secs(2)..LONG).contains(&took), "{took:?}");
    }
    assert!(has_topics(&nodes[leads], [1]));
    eventually("its lease has ended", || !nodes[leads].store().lease().borrow().holds(Instant::now()));
    let other = (leads + 1) % 3;
    nodes[other].start(found()).ready();
    nodes[other].decide(create(5));
    nodes[(leads + 2) % 3].start(found()).ready();
    all_alike(&nodes);
}

#[test]
fn an_idle_cluster_costs_little() {
    let nodes = three();
    std::thread::sleep(Duration::from_secs(2));
    let sent = || -> Vec<(u64, u64)> {
        let count = |node: &TestNode| {
            let counters = node.store().counters();
            (counters.frames_sent.load(Relaxed), counters.bytes_sent.load(Relaxed))
        };
        nodes.iter().map(count).collect()
    };
    let (before, entries) = (sent(), nodes[0].store().status().last_entry);
    std::thread::sleep(Duration::from_secs(5));
    let after = sent();
    let frames: u64 = after.iter().zip(&before).map(|(after, before)| after.0 - before.0).sum();
    let bytes: u64 = after.iter().zip(&before).map(|(after, before)| after.1 - before.1).sum();
    println!("an idle cluster of three: {} frames and {} bytes a second, all nodes together", frames / 5, bytes / 5);
    assert_eq!(nodes[0].store().status().last_entry, entries, "nothing is written");
    assert!((50..300).contains(&frames) && bytes < 5 * 6_000, "{frames} frames, {bytes} bytes in 5 s");
}
