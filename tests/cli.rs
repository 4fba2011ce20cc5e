//! The built `corelane` command: exit codes, and what it prints when it can't do what it was asked.
#![cfg(feature = "cli")]

use std::io::Read;
use std::net::TcpListener;
use std::process::{Command, Output};

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
    for command in [&["stat"][..], &["produce"], &["topic", "create"], &["topic", "alter"]] {
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
        &["produce", "a", "--key-separator", ""],
        &["produce", "a", "--partition", "-1"],
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
    for command in [&["topic", "list"][..], &["topic", "delete", "a"], &["produce", "a"]] {
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
