//! Connections that break at any moment: nothing is applied twice, nothing that was acknowledged is lost.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use super::super::Proposal;
use super::super::peer::Dialer;
use super::super::wire::{Answer, Identity, Request};
use super::*;
use crate::types::ProducerId;

/// Stands before a node's port and cuts connections after a number of bytes that comes from a seed.
struct Cutter {
    address: String,
    cuts: Arc<AtomicU64>,
    active: Arc<AtomicBool>,
}

fn cutter(port: u16, seed: u64) -> Cutter {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (cuts, active) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (cut, is_active) = (Arc::clone(&cuts), Arc::clone(&active));
    thread::spawn(move || {
        let mut state = seed;
        for stream in listener.incoming() {
            let Ok(near) = stream else { return };
            let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            for way in 0..2 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                // Answers are short: a cut within them is what loses an acknowledgement.
                let budget = if way == 0 { 200 + (state >> 33) % 4_000 } else { 60 + (state >> 33) % 400 };
                let (near, far) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let (from, to) = if way == 0 { (near, far) } else { (far, near) };
                let (cut, is_active) = (Arc::clone(&cut), Arc::clone(&is_active));
                thread::spawn(move || pump(from, to, budget, &cut, &is_active));
            }
        }
    });
    Cutter { address, cuts, active }
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut budget: u64, cuts: &AtomicU64, active: &AtomicBool) {
    let mut buffer = [0; 4096];
    loop {
        let read = from.read(&mut buffer).unwrap_or(0);
        if read == 0 {
            break;
        }
        let mut passed = read;
        if active.load(Relaxed) {
            passed = read.min(budget as usize);
            budget -= passed as u64;
        }
        let sent = to.write_all(&buffer[..passed]);
        if passed < read {
            cuts.fetch_add(1, Relaxed);
            break;
        }
        if sent.is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn no_proposal_is_applied_twice_when_connections_break() {
    let mut nodes: Vec<TestNode> = (1..=3).map(TestNode::new).collect();
    let cutters: Vec<Cutter> = nodes.iter().map(|node| cutter(node.port, u64::from(node.node) * 77)).collect();
    for (node, cutter) in nodes.iter_mut().zip(&cutters) {
        node.advertised = Some(cutter.address.clone());
    }
    nodes[0].start(found());
    for at in 1..3 {
        let origin = join(&nodes[0]);
        nodes[at].start(origin);
    }
    nodes.iter().for_each(TestNode::ready);
    eventually("all three vote", || nodes.iter().all(|node| voters(node).len() == 3));
    cutters.iter().for_each(|cutter| cutter.active.store(true, Relaxed));

    let followers: Vec<&TestNode> = nodes.iter().filter(|node| !node.store().status().leads).collect();
    let repeated = || -> u64 { nodes.iter().map(|node| node.store().repeated()).max().unwrap() };
    let cuts = || -> u64 { cutters.iter().map(|cutter| cutter.cuts.load(Relaxed)).sum() };
    let (mut given, mut unknown, begun) = (Vec::<ProducerId>::new(), 0u64, Instant::now());
    for round in 0.. {
        let node = followers[round % followers.len()];
        match node.propose(Command::AllocateProducerIds { count: 1 }) {
            Ok(Applied::ProducerIds(ids)) => given.push(ids.start),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => {
                assert_eq!(refusal.code, crate::request::Code::Unavailable, "{refusal}");
                unknown += 1;
            }
        }
        if (given.len() >= 150 && repeated() >= 1 && cuts() >= 50) || begun.elapsed() > LONG {
            break;
        }
    }
    cutters.iter().for_each(|cutter| cutter.active.store(false, Relaxed));
    let (cuts, repeated) = (cuts(), repeated());
    println!("{} given, {unknown} unknown, {cuts} connections cut, {repeated} proposals in the log twice", given.len());
    assert!(given.len() >= 150 && cuts >= 50, "the test shows nothing");
    all_alike(&nodes);
    let Ok(Applied::ProducerIds(next)) = nodes[0].propose(Command::AllocateProducerIds { count: 1 }) else { panic!("ids") };
    judge(&given, unknown, next.start).unwrap();
}

/// The same proposal again, as somebody sends it whose answer was lost; and one that comes when a later one has been applied.
#[test]
fn a_proposal_that_comes_again_is_not_applied_again() {
    let mut node = TestNode::new(1);
    node.start(found()).ready();
    let me = Identity { cluster: CLUSTER, node: 7, id: 77 };
    let dialer = Dialer::new(me, Arc::default(), node.timing.heartbeat);
    let command: bytes::Bytes = Command::AllocateProducerIds { count: 1 }.encode().unwrap().into();
    for sequence in [1, 1, 3, 1, 2, 3] {
        let proposal = Proposal { proposer: 5, sequence, commands: vec![command.clone()] };
        let answer = block_on(dialer.ask(&node.address(), &Request::Propose(proposal), LONG)).unwrap();
        assert_eq!(answer, Answer::Done);
    }
    node.kill();
    node.start(Origin::Return).ready();
    let proposal = Proposal { proposer: 5, sequence: 3, commands: vec![command] };
    assert_eq!(block_on(dialer.ask(&node.address(), &Request::Propose(proposal), LONG)).unwrap(), Answer::Done);
    assert_eq!(node.propose(Command::AllocateProducerIds { count: 1 }), Ok(Applied::ProducerIds(2..3)), "1 and 3, once each");
    assert_eq!(node.store().repeated(), 5, "four before the restart, read again, and one after it");
    let rubbish = Proposal { proposer: 5, sequence: 9, commands: vec![vec![1; 40].into()] };
    let answer = block_on(dialer.ask(&node.address(), &Request::Propose(rubbish), LONG)).unwrap();
    assert!(matches!(answer, Answer::Refused(refusal) if refusal.code == crate::request::Code::InvalidRequest), "it would stop every node");
    node.propose(create(1)).unwrap();
}

/// Of proposals that take one id each: each that was acknowledged was applied once, and none of the others more than once.
fn judge(given: &[ProducerId], unknown: u64, applied: ProducerId) -> Result<(), String> {
    let mut sorted = given.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() != given.len() {
        return Err("an id was given twice".into());
    }
    if sorted.last().is_some_and(|last| *last >= applied) {
        return Err("an id was given and is free again".into());
    }
    let (least, most) = (given.len() as i64, given.len() as i64 + unknown as i64);
    if !(least..=most).contains(&applied) {
        return Err(format!("{applied} were applied of {least} acknowledged and {unknown} unknown"));
    }
    Ok(())
}

#[test]
fn the_judge_sees_planted_histories() {
    judge(&[0, 2, 1], 0, 3).unwrap();
    judge(&[0, 3], 2, 4).unwrap();
    judge(&[0, 1], 1, 4).expect_err("applied twice");
    judge(&[0, 1, 1], 1, 3).expect_err("given twice");
    judge(&[0, 3], 0, 3).expect_err("lost");
}
