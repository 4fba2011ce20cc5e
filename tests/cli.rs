//! The built `corelane` command: exit codes, what it prints when it can't do what it was asked, and a round trip through a broker.
#![cfg(feature = "cli")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use support::Broker;

fn corelane(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_corelane")).args(arguments).env_remove("CORELANE_LOG").output().expect("the command runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The exit code and standard error, which has one line.
fn failed(arguments: &[&str]) -> (i32, String) {
    let output = corelane(arguments);
    let error = text(&output.stderr);
    assert_eq!(error.trim_end().lines().count(), 1, "{arguments:?} says {error}");
    (output.status.code().unwrap(), error)
}

/// A port that nobody listens on.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn help_is_an_answer_with_an_example() {
    for command in [&["stat"][..], &["produce"], &["consume"], &["serve"], &["topic", "create"], &["topic", "alter"]] {
        let output = corelane(&[command, &["--help"]].concat());
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(text(&output.stdout).contains("Example: "), "{command:?}");
    }
    assert!(text(&corelane(&["--help"]).stdout).contains("Exit codes: 0 done"));
    assert_eq!(corelane(&["--version"]).status.code(), Some(0));
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [
        &[][..],
        &["nonsense"],
        &["stat", "--interval", "0"],
        &["stat", "--unknown"],
        &["topic", "create"],
        &["topic", "create", "a", "--config", "retention.ms"],
        &["topic", "alter", "a"],
        &["topic", "delete-records", "a", "--before", "7"],
        &["topic", "delete-records", "a", "--partition", "0", "--before", "-1"],
        &["produce", "a", "--key-separator", ""],
        &["produce", "a", "--partition", "-1"],
        &["consume", "a", "--from", "yesterday"],
        &["consume", "a", "--format", "%q"],
        &["consume", "a", "--count", "0"],
        &["serve", "--memory", "much"],
        &["serve", "--memory", "1K"],
        &["serve", "--listen", "0.0.0.0:0"],
        &["serve", "--shards", "0"],
        &["serve", "--durability", "fsync"],
        &["serve", "--config", "/nonexistent/corelane.toml"],
    ] {
        assert_eq!(corelane(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn no_broker_is_3_and_json_says_so_too() {
    let address = free_address();
    let (code, error) = failed(&["stat", "--admin", &address]);
    assert_eq!(code, 3);
    assert!(error.starts_with(&format!("corelane: no broker answers at the admin port {address}: ")), "{error}");
    for command in [&["topic", "list"][..], &["topic", "delete", "a"], &["produce", "a"], &["consume", "a"]] {
        let (code, error) = failed(&[command, &["--broker", &address]].concat());
        assert_eq!(code, 3, "{command:?}: {error}");
        assert!(error.contains(&address), "{error}");
    }
    let output = corelane(&["stat", "--admin", &address, "--json"]);
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &line["exit"]), (Some(3), &3.into()));
}

#[test]
fn something_that_is_no_broker_is_3() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        std::io::Write::write_all(&mut stream, b"SSH-2.0-OpenSSH\r\n").unwrap();
    });
    assert_eq!(failed(&["stat", "--admin", &address]).0, 3);
    server.join().unwrap();
}

/// A directory on the file system of the build, which is a disk.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A broker, and the command against it.
struct Served {
    broker: Broker,
}

impl Served {
    fn start(data: &Path) -> Served {
        Served { broker: Broker::start(data, &["--shards", "2", "--admin-listen", "127.0.0.1:0"]) }
    }

    fn address(&self) -> &str {
        &self.broker.addresses[0]
    }

    /// What a command prints; it must succeed.
    fn run(&self, arguments: &[&str]) -> String {
        let output = corelane(&[arguments, &["--broker", self.address()]].concat());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let (code, error) = failed(&[arguments, &["--broker", self.address()]].concat());
        assert_eq!(code, 4, "{arguments:?}: {error}");
        error
    }

    fn produce(&self, topic: &str, lines: &str, flags: &[&str]) -> serde_json::Value {
        let mut child = Command::new(env!("CARGO_BIN_EXE_corelane"))
            .args(["produce", topic, "--json", "--broker", self.address()])
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn records_make_the_round_trip_and_outlive_the_broker() {
    let directory = scratch();
    let broker = Served::start(directory.path());
    assert!(
        broker.run(&["topic", "create", "scores", "--partitions", "1", "--config", "retention.ms=-1"]).starts_with("created scores: 1 ")
    );
    assert_eq!(broker.run(&["topic", "list"]), "scores\n");
    let acked = broker.produce("scores", "alice\t42\nbob\t7\n\nlast", &["--key-separator", "\\t", "--compression", "zstd"]);
    assert_eq!((&acked["records"], &acked["partitions"][0]["last"]), (&4.into(), &3.into()));
    let all = "0 alice=42|1 bob=7|2 =|3 =last|";
    let consume = ["consume", "scores", "--exit-at-end", "--format", "%o %k=%s|"];
    assert_eq!(broker.run(&consume), all);
    assert_eq!(broker.run(&["consume", "scores", "--from", "1", "--count", "2", "--format", "%o,"]), "1,2,");
    assert_eq!(broker.run(&["consume", "scores", "--from", "latest", "--exit-at-end"]), "");
    let line: serde_json::Value = serde_json::from_str(&broker.run(&["consume", "scores", "--count", "1", "--json"])).unwrap();
    assert_eq!((&line["key"], &line["payload"], &line["offset"]), (&"alice".into(), &"42".into(), &0.into()));
    let stat = corelane(&["stat", "--json", "--admin", broker.broker.admin.as_deref().unwrap()]);
    let stat: serde_json::Value = serde_json::from_slice(&stat.stdout).unwrap();
    assert_eq!((&stat["topics"], &stat["state"], stat["shards"].as_array().unwrap().len()), (&1.into(), &"ready".into(), 2));
    assert_eq!(broker.broker.stop(), 0);

    let broker = Served::start(directory.path());
    assert_eq!(broker.run(&consume), all);
    let described: serde_json::Value = serde_json::from_str(&broker.run(&["topic", "describe", "scores", "--json"])).unwrap();
    assert_eq!(described["config"]["retention.ms"], serde_json::json!({ "value": "-1", "set": true }));
    assert_eq!((&described["partition_states"][0]["latest"], &described["partition_states"][0]["leader_epoch"]), (&4.into(), &1.into()));
    assert_eq!(broker.run(&["topic", "delete-records", "scores", "--partition", "0", "--before", "3"]), "scores 0: records from 3 on\n");
    assert_eq!(broker.run(&consume), "3 =last|");
    let emptied: serde_json::Value = serde_json::from_str(&broker.run(&["topic", "delete-records", "scores", "--json"])).unwrap();
    assert_eq!(emptied, serde_json::json!({ "topic": "scores", "partitions": [{ "partition": 0, "earliest": 4 }] }));
    assert_eq!(broker.run(&consume), "");
    assert!(broker.run(&["topic", "alter", "scores", "--partitions", "3", "--config", "retention.ms="]).starts_with("altered scores: 3 "));
    assert_eq!(broker.run(&["topic", "delete", "scores"]), "deleted scores\n");
    assert_eq!(broker.run(&["topic", "list"]), "");
    assert_eq!(broker.broker.stop(), 0);
}

#[test]
fn what_the_broker_refuses_is_4() {
    let directory = scratch();
    let broker = Served::start(directory.path());
    broker.run(&["topic", "create", "a"]);
    assert!(broker.refused(&["topic", "create", "a"]).contains("topic a exists"));
    assert!(broker.refused(&["topic", "create", "b", "--config", "retention.hours=1"]).contains("the known ones are cleanup.policy"));
    assert!(broker.refused(&["topic", "create", "b", "--replication-factor", "3"]).contains("1 node"));
    assert!(broker.refused(&["topic", "create", "b c"]).contains("' '"));
    for command in
        [&["topic", "describe", "b"][..], &["topic", "delete", "b"], &["topic", "alter", "b", "--partitions", "2"], &["consume", "b"]]
    {
        assert!(broker.refused(command).contains("UnknownTopicOrPartition"), "{command:?}");
    }
    assert!(broker.refused(&["consume", "a", "--from", "7", "--count", "1"]).contains("OffsetOutOfRange"));
    assert!(broker.refused(&["topic", "delete-records", "a", "--partition", "0", "--before", "7"]).contains("OffsetOutOfRange"));
}

#[test]
fn a_broker_serves_from_a_relative_directory() {
    let directory = scratch();
    for data in [&[][..], &["--data", "below"]] {
        let mut process = Command::new(env!("CARGO_BIN_EXE_corelane"))
            .current_dir(directory.path())
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "none", "--memory", "64M", "--shards", "1", "--json"])
            .args(data)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let _ = BufReader::new(process.stdout.take().unwrap()).read_line(&mut line);
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(line.contains("\"ready\":true"), "{data:?}: {line}");
    }
    assert!(directory.path().join("corelane-data/meta").exists() && directory.path().join("below/meta").exists());
}

#[test]
fn what_the_host_can_not_do_is_5() {
    let directory = scratch();
    let broker = Served::start(directory.path());
    let data = directory.path().to_str().unwrap();
    let (code, error) = failed(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "none", "--data", data]);
    assert_eq!(code, 5);
    assert!(error.contains("in use by another broker"), "{error}");
    let other = scratch();
    let other = other.path().to_str().unwrap();
    let (code, error) = failed(&["serve", "--listen", broker.address(), "--shards", "1", "--admin-listen", "none", "--data", other]);
    assert_eq!(code, 5);
    assert!(error.contains("another program has the port"), "{error}");
    let (code, error) = failed(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "none", "--data", "/proc/corelane"]);
    assert_eq!(code, 5);
    assert!(error.contains("the data directory /proc/corelane can't be created"), "{error}");
}

#[test]
fn a_group_is_listed_described_reset_and_deleted() {
    let directory = scratch();
    let broker = Served::start(directory.path());
    broker.run(&["topic", "create", "orders", "--partitions", "1", "--config", "retention.ms=-1"]);
    broker.produce("orders", "a\nb\nc\n", &[]);
    let json =
        |arguments: &[&str]| -> serde_json::Value { serde_json::from_str(&broker.run(&[arguments, &["--json"]].concat())).expect("JSON") };
    let read = broker.run(&["consume", "orders", "--group", "billing", "--from-beginning", "--count", "2", "--format", "%s|"]);
    assert_eq!(read, "a|b|");
    assert_eq!(broker.run(&["group", "list"]), "billing\n");
    let described = json(&["group", "describe", "billing"]);
    assert_eq!((&described["state"], &described["members"]), (&"Empty".into(), &serde_json::json!([])));
    let expected = serde_json::json!([{ "topic": "orders", "partition": 0, "offset": 2, "end": 3, "lag": 1 }]);
    assert_eq!(described["positions"], expected);
    assert!(broker.run(&["group", "describe", "billing"]).contains("billing: Empty, 0 member(s)"));

    // A plan changes nothing.
    let plan = ["group", "reset-offsets", "billing", "--topic", "orders", "--to-earliest"];
    assert_eq!(json(&plan)["partitions"], serde_json::json!([{ "topic": "orders", "partition": 0, "before": 2, "after": 0 }]));
    assert_eq!(json(&["group", "describe", "billing"])["positions"], expected);
    broker.run(&[&plan[..], &["--execute"]].concat());
    assert_eq!(json(&["group", "describe", "billing"])["positions"][0]["lag"], 3);
    let shift = ["group", "reset-offsets", "billing", "--shift-by", "1", "--execute"];
    assert_eq!(json(&shift)["partitions"][0]["after"], 1);
    let last = ["group", "reset-offsets", "billing", "--to-offset", "99", "--execute"];
    assert_eq!(json(&last)["partitions"][0]["after"], 3, "as far as the partition goes");

    for (flag, place, after) in
        [("--to-timestamp", "2020-01-01T00:00Z", 0), ("--by-duration", "PT1H", 0), ("--to-datetime", "9999-01-01", 3)]
    {
        let plan = json(&["group", "reset-offsets", "billing", flag, place]);
        assert_eq!(plan["partitions"][0]["after"], after, "{flag} {place}");
    }

    assert!(broker.refused(&["group", "describe", "nobody"]).contains("there is no group"));
    assert!(broker.refused(&["group", "delete", "nobody"]).contains("no such group"));
    assert_eq!(broker.run(&["group", "delete", "billing"]), "deleted billing\n");
    assert_eq!(broker.run(&["group", "list"]), "");
}
