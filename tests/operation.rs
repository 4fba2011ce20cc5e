//! `corelane cluster` against a broker that is alone: a cluster of one, by the same ways as one of many.
#![cfg(feature = "cli")]

mod support;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::Broker;

struct Served {
    broker: Broker,
}

impl Served {
    fn start(data: &Path) -> Served {
        Served { broker: Broker::start(data, &["--shards", "2"]) }
    }

    fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
        // By the second shard: whoever is asked knows of all.
        command.args(arguments).args(["--broker", &self.broker.addresses[1]]).env_remove("CORELANE_LOG");
        command.output().expect("the command runs")
    }

    /// What a command prints; it must succeed.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.run(&[arguments, &["--json"]].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// The exit code, and what is said on standard error.
    fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.command(arguments);
        assert!(!output.status.success(), "{arguments:?}: {}", text(&output.stdout));
        (output.status.code().expect("it ends by itself"), text(&output.stderr))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A directory on the file system of the build, which is a disk.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn a_broker_that_is_alone_is_a_healthy_cluster_of_one() {
    let data = scratch();
    let served = Served::start(data.path());
    let status = served.json(&["cluster", "status"]);
    assert_eq!((&status["health"], &status["problems"]), (&json!("healthy"), &json!([])), "{status}");
    let node = status["nodes"][0]["node"].as_u64().unwrap();
    served.run(&["topic", "create", "orders", "--partitions", "5"]);

    let status = served.json(&["cluster", "status", "--topic", "orders", "--all"]);
    assert_eq!((&status["nodes"][0]["leads"], &status["nodes"][0]["behind"]), (&json!(5), &json!(0)), "{status}");
    assert_eq!(status["nodes"][0]["leads_by_shard"].as_array().unwrap().len(), 2);
    assert_eq!(status["consensus"]["leader"], json!(node));
    let partitions = status["partitions"].as_array().unwrap();
    assert_eq!(partitions.len(), 5);
    assert!(partitions.iter().all(|p| p["leader"] == json!(node) && p["isr"] == json!([node])), "{status}");

    let shown = served.run(&["cluster", "status", "--all", "--most", "2"]);
    assert!(shown.starts_with("healthy\ncluster ") && shown.contains("\norders  1 "), "{shown}");
    assert!(shown.contains("and 3 partitions more"), "{shown}");
}

#[test]
fn what_one_node_can_do_is_done_and_the_rest_refused() {
    let data = scratch();
    let served = Served::start(data.path());
    served.run(&["topic", "create", "orders", "--partitions", "3"]);
    let node = served.json(&["cluster", "status"])["nodes"][0]["node"].to_string();

    assert_eq!(served.run(&["cluster", "rebalance"]), "the cluster is even, 0 moves begun\n");
    assert_eq!(served.run(&["cluster", "rebalance", "--dry-run"]), "nothing to move\n");
    assert!(served.run(&["cluster", "add", &node]).starts_with(&format!("node {node} has 3 replicas and leads 3 partitions")));
    let verified = served.json(&["cluster", "verify"]);
    assert_eq!((&verified["partitions"], &verified["replicas"], &verified["differences"]), (&json!(3), &json!(3), &json!([])));
    assert_eq!(served.json(&["cluster", "decommission", &node, "--cancel"])["retiring"], json!(false));
    let altered = served.run(&["topic", "alter", "orders", "--replicas", &format!("1={node}")]);
    assert!(altered.starts_with("altered orders: 3 partition(s)"), "where it is already: {altered}");

    for (arguments, expected) in [
        (&["cluster", "decommission", &node][..], "no other node"),
        (&["cluster", "decommission", "77"], "node 77 is not registered"),
        (&["cluster", "remove", &node], "while it runs"),
        (&["cluster", "remove", "77"], "node 77 is not registered"),
        (&["cluster", "elect", "orders", "1"], "partition 1 of topic orders: node"),
        (&["cluster", "elect", "orders", "9"], "no partition"),
        (&["cluster", "elect", "nothing", "1"], "no topic"),
        (&["cluster", "elect", "--node", "77", "orders", "1"], "77"),
        (&["cluster", "elect", "--unclean", "orders", "1"], "nobody has to be elected"),
        (&["cluster", "status", "--topic", "nothing"], "no topic"),
        (&["topic", "alter", "orders", "--replicas", "1=77"], "77"),
        (&["topic", "alter", "orders", "--replicas", "9=77"], "no partition"),
    ] {
        let (code, said) = served.fails(arguments);
        assert_eq!(code, 4, "{arguments:?}: {said}");
        assert!(said.contains(expected) && said.lines().count() == 1, "{arguments:?}: {said}");
    }
    let (code, said) = served.fails(&["cluster", "add", "77", "--patience", "0"]);
    assert!(code == 1 && said.contains("node 77 is not registered: start it"), "{said}");
    for arguments in [&["topic", "alter", "orders", "--replicas", "1"][..], &["topic", "alter", "orders", "--no-wait"], &["cluster", "add"]]
    {
        assert_eq!(served.fails(arguments).0, 2, "{arguments:?}");
    }
    // What was refused has changed nothing.
    assert_eq!(served.json(&["cluster", "status"])["health"], json!("healthy"));
    assert_eq!(served.json(&["cluster", "status"])["nodes"][0]["retiring"], json!(false));
}
