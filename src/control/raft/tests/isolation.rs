//! A leader that nobody hears any more and that hears nobody: it believes in its lease no longer than the others allow.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::AtomicU32;
use std::thread;

use super::super::wire::{self, Hello};
use super::leases::{TopicsAsNodes, register, topic_of};
use super::*;

/// The node that is cut off from all others; 0: none. A node's gate looks at who comes, because all others come through it.
static CUT_OFF: AtomicU32 = AtomicU32::new(0);

/// Stands before a node's port; gives the address.
fn gate(node: u32, port: u16) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || pass(node, port, near));
        }
    });
    address
}

fn pass(node: u32, port: u16, mut near: TcpStream) -> Option<()> {
    let mut header = [0; wire::FRAME_HEADER];
    near.read_exact(&mut header).ok()?;
    let mut hello = vec![0; wire::read_frame_header(header, 1000).ok()?.0];
    near.read_exact(&mut hello).ok()?;
    let from = Hello::decode(&hello).ok()?.from.node;
    let is_cut = move || [node, from].contains(&CUT_OFF.load(Relaxed));
    if is_cut() {
        return None;
    }
    let mut far = TcpStream::connect(("127.0.0.1", port)).ok()?;
    far.write_all(&wire::frame(&hello)).ok()?;
    let back = (far.try_clone().ok()?, near.try_clone().ok()?);
    thread::spawn(move || pump(back.0, back.1, is_cut));
    pump(near, far, is_cut);
    Some(())
}

fn pump(mut from: TcpStream, mut to: TcpStream, is_cut: impl Fn() -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if is_cut() || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_leader_that_is_cut_off_loses_its_lease_before_it_is_fenced() {
    let nodes = three_with(|node| {
        node.registry = || Box::new(TopicsAsNodes);
        node.timing.proposal = Duration::from_secs(5);
        node.advertised = Some(gate(node.node, node.port));
    });
    nodes.iter().for_each(register);
    let lease = |node: &TestNode| *node.store().lease().borrow();
    eventually("all have a lease", || nodes.iter().all(|node| lease(node).holds(Instant::now())));
    let leads = leader(&nodes);
    let (cut, others) = (&nodes[leads], [&nodes[(leads + 1) % 3], &nodes[(leads + 2) % 3]]);
    let registered = |by: &TestNode| topic_of(&by.store().view(), cut.node).is_some();

    CUT_OFF.store(cut.node, Relaxed);
    let begun = Instant::now();
    assert_eq!(cut.propose(create(1)).unwrap_err().code, Code::Unavailable, "alone it decides nothing");
    eventually("the others fence it", || {
        // Its own word first: it is the older one of the two.
        let holds = lease(cut).holds(Instant::now());
        let is_fenced = !registered(others[0]);
        assert!(!(holds && is_fenced), "fenced while it believed in its lease");
        is_fenced
    });
    let until = lease(cut).until.unwrap();
    assert!(until < begun + cut.timing.own_lease() + cut.timing.heartbeat, "nobody confirmed it: {:?} after the cut", until - begun);
    assert!(registered(cut) && cut.store().status().leads, "it does not know yet");
    for other in others {
        assert!(topic_of(&other.store().view(), other.node).is_some(), "those that are heard stay");
        other.decide(create(10 + other.node as u8));
    }

    CUT_OFF.store(0, Relaxed);
    eventually("it hears what was decided without it", || lease(cut).fenced && has_topics(cut, others.map(|other| 10 + other.node as u8)));
    // The proposal that was given up may have been applied or not; everywhere alike.
    all_alike(&nodes);
    register(cut);
    eventually("it has a lease again", || lease(cut).holds(Instant::now()));
}
