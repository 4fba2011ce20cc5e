//! Three brokers as processes, faults, and what clients see of them.
//!
//! ```text
//!  clients (threads of the test) --> history --> tests/simulation/checker
//!      |
//!  [ node 1 ] -- [ node 2 ] -- [ node 3 ]   processes, each in a network namespace of its own where that is allowed
//!      ^  killed, stopped, asked to stop, cut off, wiped, filled
//!  faults: drawn from a seed
//! ```
//!
//! | module | has |
//! | --- | --- |
//! | `network` | addresses of nodes; namespaces and the cuts between them |
//! | `nodes` | the processes |
//! | `view` | what a cluster says of itself |
//! | `clients` | producers and consumers that write a history |
//! | `faults` | kinds of faults, and one fault from its begin to its end |
//! | `run` | the check `cluster`: faults under load, then the judgement |
//! | `replicas` | stopped stores, compared byte for byte |
//! | `failover` | the check `failover`: how long producers wait for another leader |
//! | `groups` | the check `cluster_groups`: a consumer group whose coordinator is hit |
//! | `growth` | the check `growth`: a node comes and another goes, under load |
//! | `raise` | a topic gets more partitions under load |
//! | `catch_up` | the check `catch_up`: a wiped node gets whole segments as files |
//! | `bare_copy` | the copy by two processes that catch-up is held against |
//! | `live` | what load feels of a node that catches up |
//! | `keyed` | load by key at a pace, with latencies |
//! | `order` | the judge of its records: pure |
//! | `lives` | clusters that live for several rounds |
//! | `mending` | segments that rot under a running cluster |
//! | `idle` | the check `idle`: what partitions cost that nobody uses |
//! | `readme` | the README's three nodes |
//! | `selftest` | the tools themselves, with planted mistakes |

#![allow(dead_code, reason = "each test uses a part")]

pub mod bare_copy;
pub mod catch_up;
pub mod clients;
pub mod failover;
pub mod faults;
pub mod groups;
pub mod growth;
pub mod idle;
pub mod keyed;
pub mod live;
pub mod lives;
pub mod mending;
pub mod network;
pub mod nodes;
pub mod order;
pub mod raise;
pub mod readme;
pub mod replicas;
pub mod run;
pub mod selftest;
pub mod view;

use std::time::{Duration, Instant};

/// Waits until something is so; says what is not, with the last reason, when the time is over. The deadlines are for a machine that does much else.
pub fn wait_until(what: &str, patience: Duration, mut done: impl FnMut() -> Result<(), String>) -> Result<Duration, String> {
    let begun = Instant::now();
    loop {
        match done() {
            Ok(()) => return Ok(begun.elapsed()),
            Err(reason) if begun.elapsed() > patience => return Err(format!("{what}: not within {} s: {reason}", patience.as_secs())),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
