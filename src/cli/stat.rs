//! `corelane stat`: what the admin port tells, as a table.

use std::io::{self, Write};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::exit::{Exit, Failure, output_failed};
use crate::limits;

/// Flags of `stat`.
#[derive(clap::Args)]
#[command(after_help = "Example: corelane stat --interval 5")]
pub struct StatArgs {
    /// The broker's admin port
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9644")]
    pub admin: String,
    /// Seconds over which rates are measured
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Print everything that is known as JSON, at once and without rates
    #[arg(long)]
    pub json: bool,
}

/// Asks, waits, asks again, prints.
pub fn run(args: StatArgs) -> Result<(), Failure> {
    let output = super::block_on(async {
        let first = ask(&args.admin).await?;
        if args.json {
            return Ok(format!("{first:#}\n"));
        }
        tokio::time::sleep(Duration::from_secs(args.interval)).await;
        Ok(table(&first, &ask(&args.admin).await?, args.interval))
    })?;
    io::stdout().write_all(output.as_bytes()).or_else(|e| output_failed(&e))
}

async fn ask(admin: &str) -> Result<Value, Failure> {
    let unreachable = |cause: String| Failure::new(Exit::Unreachable, format!("no broker answers at the admin port {admin}: {cause}"));
    let wait = Duration::from_secs(limits::ADMIN_HEADER_S);
    let body = timeout(wait, get(admin, "/stat")).await.map_err(|_| unreachable("no answer in time".into()))?.map_err(unreachable)?;
    serde_json::from_slice(&body).map_err(|e| unreachable(format!("its answer is not that of a broker ({e})")))
}

/// One HTTP GET, its body bounded.
async fn get(host: &str, path: &str) -> Result<Bytes, String> {
    let stream = TcpStream::connect(host).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", host).body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    if !response.status().is_success() {
        return Err(format!("{path} answers {}", response.status()));
    }
    let body = Limited::new(response.into_body(), limits::MAX_STAT_ANSWER).collect().await;
    body.map(|b| b.to_bytes()).map_err(|e| e.to_string())
}

type Cell = fn(&Shard<'_>) -> String;

/// One column a thing, one line a shard.
const COLUMNS: [(&str, Cell); 16] = [
    ("shard", |s| s.now["shard"].to_string()),
    ("address", |s| s.now["address"].as_str().unwrap_or("-").to_owned()),
    ("cpu", |s| s.now["cpu"].as_u64().map_or("-".into(), |n| n.to_string())),
    ("conns", |s| s.gauge("connections").to_string()),
    ("parts", |s| s.gauge("partitions").to_string()),
    ("in rec/s", |s| per_second(s.rate("records_in"))),
    ("in B/s", |s| bytes(s.rate("record_bytes_in"))),
    ("out rec/s", |s| per_second(s.rate("records_out"))),
    ("out B/s", |s| bytes(s.rate("record_bytes_out"))),
    ("dev B/s", |s| bytes(s.rate("device_bytes"))),
    ("sync p50", |s| s.latency("sync", "p50_us")),
    ("sync p99", |s| s.latency("sync", "p99_us")),
    ("journal", |s| s.share("journal_used_bytes", "journal_capacity_bytes")),
    ("memory", |s| bytes(MEMORY.iter().map(|name| s.gauge(name) as f64).sum())),
    ("mesh/s", |s| per_second(s.rate("mesh_sent"))),
    ("errors", |s| s.errors().to_string()),
];

const MEMORY: [&str; 5] =
    ["memory_unflushed_bytes", "memory_tail_bytes", "memory_cache_bytes", "memory_receive_bytes", "memory_send_bytes"];

struct Shard<'a> {
    before: &'a Value,
    now: &'a Value,
    seconds: f64,
}

impl Shard<'_> {
    fn gauge(&self, name: &str) -> u64 {
        self.now["gauges"][name].as_u64().unwrap_or(0)
    }

    fn rate(&self, counter: &str) -> f64 {
        let value = |shard: &Value| shard["counters"][counter].as_u64().unwrap_or(0);
        value(self.now).saturating_sub(value(self.before)) as f64 / self.seconds
    }

    fn latency(&self, stage: &str, quantile: &str) -> String {
        let stage = &self.now["stages"][stage];
        match stage["count"].as_u64() {
            Some(1..) => format!("{:.0} us", stage[quantile].as_f64().unwrap_or(0.0)),
            _ => "-".into(),
        }
    }

    fn share(&self, part: &str, whole: &str) -> String {
        match self.gauge(whole) {
            0 => "-".into(),
            whole => format!("{} %", self.gauge(part) * 100 / whole),
        }
    }

    fn errors(&self) -> u64 {
        self.now["errors"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum()
    }
}

fn table(before: &Value, now: &Value, seconds: u64) -> String {
    let none = Vec::new();
    let (earlier, shards) = (before["shards"].as_array().unwrap_or(&none), now["shards"].as_array().unwrap_or(&none));
    let mut rows = vec![COLUMNS.map(|(name, _)| name.to_owned())];
    for shard in shards {
        // A broker that was restarted in between has other shards: its rates count from zero.
        let same = earlier.iter().find(|s| s["shard"] == shard["shard"] && before["pid"] == now["pid"]);
        let shard = Shard { before: same.unwrap_or(&Value::Null), now: shard, seconds: seconds as f64 };
        rows.push(COLUMNS.map(|(_, cell)| cell(&shard)));
    }
    let widths: Vec<usize> = (0..COLUMNS.len()).map(|c| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0)).collect();
    let mut text = format!(
        "node {}  version {}  {}  up {} s  topics {}  partitions {}\n",
        now["node"],
        now["version"].as_str().unwrap_or("?"),
        now["state"].as_str().unwrap_or("?"),
        now["uptime_ms"].as_u64().unwrap_or(0) / 1000,
        now["topics"],
        now["partitions"]
    );
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn per_second(rate: f64) -> String {
    match rate {
        r if r >= 1e7 => format!("{:.1}M", r / 1e6),
        r if r >= 1e4 => format!("{:.1}k", r / 1e3),
        r => format!("{r:.0}"),
    }
}

fn bytes(amount: f64) -> String {
    const UNITS: [(f64, &str); 3] = [(1073741824.0, "G"), (1048576.0, "M"), (1024.0, "K")];
    match UNITS.iter().find(|(size, _)| amount >= *size) {
        Some((size, letter)) => format!("{:.1}{letter}", amount / size),
        None => format!("{amount:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(records: u64) -> Value {
        json!({
            "node": 1, "version": "0.1.0", "pid": 7, "state": "ready", "uptime_ms": 61_000, "topics": 2, "partitions": 9,
            "shards": [{
                "shard": 0, "address": "127.0.0.1:9092", "cpu": 3,
                "counters": { "records_in": records, "record_bytes_in": records * 1024 },
                "gauges": { "connections": 4, "partitions": 9, "journal_used_bytes": 1, "journal_capacity_bytes": 4, "memory_tail_bytes": 2048 },
                "stages": { "sync": { "count": 3, "p50_us": 190.5, "p99_us": 400.0 } },
                "errors": { "NotLeader": 2, "DiskFull": 1 },
            }],
        })
    }

    #[test]
    fn rates_are_differences_by_time() {
        let text = table(&sample(1000), &sample(51_000), 5);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "node 1  version 0.1.0  ready  up 61 s  topics 2  partitions 9");
        let cells: Vec<&str> = lines[2].split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
        let expected = ["0", "127.0.0.1:9092", "3", "4", "9", "10.0k", "9.8M", "0", "0", "0", "190 us", "400 us", "25 %", "2.0K", "0", "3"];
        assert_eq!(cells, expected, "{text}");
    }

    #[test]
    fn a_restart_in_between_counts_from_zero() {
        let mut earlier = sample(99_000);
        earlier["pid"] = 6.into();
        assert!(table(&earlier, &sample(1000), 1).contains(" 1000 "));
    }
}
