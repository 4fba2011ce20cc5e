//! The demo in small: it kills its broker, finds nothing amiss, and leaves nothing behind.
#![cfg(feature = "cli")]

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Runs it in an empty directory; what it leaves there is the second result.
fn demo(arguments: &[&str]) -> (Output, usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_corelane"))
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", directory.path())
        .env_remove("CORELANE_LOG")
        .output()
        .expect("the command runs");
    (output, std::fs::read_dir(directory.path()).expect("readable").count())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn nothing_is_lost_duplicated_or_out_of_order_over_a_kill() {
    let input = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let (output, left) = demo(&["--json", "--records", "60000", "--seconds", "2", "--input", input]);
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let acknowledged = result["acknowledged"].as_u64().expect("a count");
    assert!(acknowledged >= 60_000, "{result}");
    for none in ["lost", "duplicated", "out_of_order", "foreign", "undelivered"] {
        assert_eq!(result[none], 0, "{none} of {result}");
    }
    assert_eq!(result["read"].as_u64(), Some(acknowledged), "{result}");
    assert_eq!(result["consumed"].as_u64(), Some(acknowledged), "the live consumers went on: {result}");
    assert!(result["in_flight_at_kill"].as_u64() > Some(0), "killed at a quiet moment: {result}");
    assert!(result["recovered_ms"].as_f64() > Some(0.0), "{result}");
    assert_eq!(result["latency"]["count"].as_u64(), Some(acknowledged), "{result}");
    assert_eq!(left, 0, "the scratch directory is removed");
}

#[test]
fn people_get_the_result_in_words() {
    let input = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let (output, _) = demo(&["--records", "1000", "--seconds", "1", "--input", input]);
    let words = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{words}{}", text(&output.stderr));
    let verdict = words.lines().find(|line| line.starts_with("acknowledged ") && line.contains("recovered in ")).expect(&words);
    assert!(verdict.contains(", lost 0, duplicated 0, out of order 0, recovered in ") && verdict.ends_with(" ms"), "{verdict}");
    for part in ["SIGKILL to the broker", "records/s", "p99 ", "Cargo.toml, each sent ", "Try next:"] {
        assert!(words.contains(part), "no {part:?} in {words}");
    }
}

/// Each signal, while records flow: the broker ends, and nothing is left.
#[test]
fn a_demo_that_is_told_to_stop_leaves_nothing_behind() {
    for signal in ["-TERM", "-INT"] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut child = Command::new(env!("CARGO_BIN_EXE_corelane"))
            .args(["demo", "--seconds", "600", "--input", concat!(env!("CARGO_MANIFEST_DIR"), "/src")])
            .env("TMPDIR", directory.path())
            .env_remove("CORELANE_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
        let broker = said.by_ref().map(|line| line.expect("words")).find(|line| line.starts_with("broker: ")).expect("it starts a broker");
        let address = broker.split(" at ").nth(1).and_then(|rest| rest.split(',').next()).expect("an address").to_string();
        TcpStream::connect(&address).expect("the broker listens");
        said.by_ref().map(|line| line.expect("words")).find(|line| line.contains(", in flight ")).expect("records flow");
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
        said.for_each(drop);
        let ended = child.wait_with_output().expect("our child");
        let last = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{signal}: {last}");
        assert!(last.contains("the broker is stopped"), "{signal}: {last}");
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 0, "{signal}: the scratch directory is there");
        // The kernel may take a killed process's listeners apart a moment later.
        let begun = Instant::now();
        while TcpStream::connect(&address).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{signal}: the broker runs on");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn input_that_is_not_there_is_wrong_usage() {
    let (output, left) = demo(&["--json", "--input", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--input /nonexistent: No such file"), "{}", text(&output.stderr));
    assert_eq!(left, 0);
}
