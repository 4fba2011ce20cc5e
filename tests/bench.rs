//! `corelane bench` from outside: what programs read of it, with a broker that it starts itself.
#![cfg(feature = "cli")]

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_corelane")).arg("bench").args(arguments).output().expect("corelane runs")
}

fn json(arguments: &[&str]) -> Value {
    let output = bench(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("standard output is JSON and nothing else")
}

#[test]
fn produce_names_durability_latencies_and_limits() {
    let plot = tempfile::NamedTempFile::new().unwrap();
    let file = plot.path().to_str().unwrap();
    let result =
        json(&["produce", "--in-flight", "1", "--record-size", "100", "--warm-up", "0.1", "--duration", "5", "--json", "--plot", file]);
    assert_eq!(result["durability"], "durable");
    assert!(result["produce"]["records"].as_u64().unwrap() > 0);
    assert_eq!(result["produce"]["failed"], 0);
    for latency in ["latency_from_intended", "latency_from_actual"] {
        for percentile in ["p50_us", "p90_us", "p99_us", "p99_9_us", "p99_99_us", "max_us"] {
            assert!(result["produce"][latency][percentile].as_f64().unwrap() > 0.0, "{latency} {percentile}");
        }
    }
    assert!(result["broker"]["cpu_seconds"].as_f64().unwrap() > 0.0 && result["broker"]["peak_rss_bytes"].as_u64().unwrap() > 0);
    assert!(!result["limits"].as_array().unwrap().is_empty());
    let svg = std::fs::read_to_string(plot.path()).unwrap();
    assert!(svg.contains("durable") && svg.contains("<polyline"));
}

#[test]
fn latency_follows_each_record_to_its_consumer() {
    let result = json(&["latency", "--rate", "200", "--record-size", "100", "--warm-up", "0.3", "--duration", "1", "--json"]);
    assert_eq!(result["workload"]["loop"], "open");
    // Sent on time whatever the broker does.
    let sent = result["produce"]["latency_from_intended"]["count"].as_u64().unwrap();
    assert!((199..=201).contains(&sent), "{sent}");
    assert!(result["consume"]["latency_from_intended"]["count"].as_u64().unwrap() > 0);
}

#[test]
fn consume_reads_what_was_filled() {
    let result = json(&["consume", "--fill", "4000000", "--partitions", "3", "--consumers", "2", "--duration", "20", "--cold", "--json"]);
    assert_eq!(result["consume"]["records"], 4_000_000_u64.div_ceil(1024));
}

#[test]
fn the_suite_reports_all_sixteen_figures() {
    let result = json(&["suite", "--only", "start_empty", "--repeats", "2", "--scale", "0.05", "--json"]);
    let figures = result.as_array().unwrap();
    assert_eq!(figures.len(), 16);
    let keys = ["name", "value", "unit", "samples", "reference", "reference_name", "ratio", "target", "holds", "durability", "seconds"];
    for figure in figures {
        assert!(keys.iter().all(|key| figure.get(key).is_some()), "{figure}");
    }
    let measured = figures.iter().find(|figure| figure["name"] == "start_empty").unwrap();
    assert_eq!(measured["samples"].as_array().unwrap().len(), 2);
    assert!(measured["value"].as_f64().unwrap() > 0.0);
    let left_out = figures.iter().find(|figure| figure["name"] == "produce_1p_1k").unwrap();
    assert!(left_out["value"].is_null() && left_out["holds"].is_null(), "what was not measured does not hold");
}

#[test]
fn wrong_settings_are_usage_errors() {
    for arguments in [
        &["produce", "--producers", "0"][..],
        &["produce", "--record-size", "huge"],
        &["suite", "--only", "nothing"],
        &["limits", "--seconds", "0"],
        &["consume", "--cold", "--broker", "127.0.0.1:1"],
    ] {
        assert_eq!(bench(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_broker_that_is_not_there_is_unreachable() {
    assert_eq!(bench(&["produce", "--broker", "127.0.0.1:1"]).status.code(), Some(3));
}
