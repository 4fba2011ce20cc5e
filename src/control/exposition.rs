//! The counters in the two forms that leave the process: Prometheus text and the JSON of `corelane stat`.
//!
//! Names come from the enumerated lists of [`crate::metrics`] with `corelane_` before them. Times are seconds in Prometheus, as is
//! its custom, and microseconds in JSON.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use hdrhistogram::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};

use super::status::{NodeState, NodeStatus, ShardPlace};
use crate::cluster::CatalogueView;
use crate::metrics::{Counter, Gauge, RequestKind, ShardMetrics, Stage, TopicCounts};
use crate::request::Code;
use crate::request::cluster::{ConsensusMember, ConsensusState};

/// Content type of [`prometheus_text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the stages' buckets, s.
const BUCKETS: [f64; 20] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.000_75, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 5.0, 30.0,
];

/// Everything as OpenMetrics text.
pub fn prometheus_text(shards: &[Arc<ShardMetrics>], status: &Arc<NodeStatus>, view: &Arc<CatalogueView>) -> String {
    let mut registry = Registry::with_prefix("corelane");
    registry.register_collector(Box::new(NodeCollector { status: Arc::clone(status), view: Arc::clone(view) }));
    registry.register_collector(Box::new(ShardCollector { shards: shards.to_vec() }));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a String takes everything");
    text
}

#[derive(Debug)]
struct NodeCollector {
    status: Arc<NodeStatus>,
    view: Arc<CatalogueView>,
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauges = [
            ("ready", "1 while every shard serves.", i64::from(self.status.state() == NodeState::Ready)),
            ("uptime_seconds", "Since the start.", (self.status.uptime_ms() / 1000) as i64),
            ("topics", "Topics.", self.view.topics().len() as i64),
            ("topic_partitions", "Partitions of all topics.", self.view.partitions() as i64),
            ("node_epoch", "Node epoch of the last registration.", self.view.node_epoch() as i64),
        ];
        for (name, help, value) in gauges {
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct ShardCollector {
    shards: Vec<Arc<ShardMetrics>>,
}

impl Collector for ShardCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for counter in Counter::ALL {
            let mut family = encoder.encode_descriptor(counter.name(), counter.help(), None, MetricType::Counter)?;
            for shard in &self.shards {
                count(&mut family, &[("shard", shard.shard().to_string())], shard.counter(*counter))?;
            }
        }
        for gauge in Gauge::ALL {
            let mut family = encoder.encode_descriptor(gauge.name(), gauge.help(), None, MetricType::Gauge)?;
            for shard in &self.shards {
                let labels = [("shard", shard.shard().to_string())];
                ConstGauge::new(shard.gauge(*gauge).min(i64::MAX as u64) as i64).encode(family.encode_family(&labels)?)?;
            }
        }
        self.encode_requests(&mut encoder)?;
        self.encode_errors(&mut encoder)?;
        self.encode_stages(&mut encoder)?;
        self.encode_topics(&mut encoder)
    }
}

impl ShardCollector {
    fn encode_requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor("requests", "Requests by kind.", None, MetricType::Counter)?;
        for shard in &self.shards {
            for kind in RequestKind::ALL {
                let labels = [("shard", shard.shard().to_string()), ("kind", kind.name().to_owned())];
                count(&mut family, &labels, shard.requests(*kind))?;
            }
        }
        Ok(())
    }

    fn encode_errors(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor("errors", "Refusals by code.", None, MetricType::Counter)?;
        for shard in &self.shards {
            for (value, errors) in shard.errors() {
                count(&mut family, &[("shard", shard.shard().to_string()), ("code", code_name(value))], errors)?;
            }
        }
        Ok(())
    }

    fn encode_stages(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "How long each stage of a request took.";
        let mut family = encoder.encode_descriptor("stage_seconds", help, None, MetricType::Histogram)?;
        for shard in &self.shards {
            for stage in Stage::ALL {
                let histogram = shard.stage(*stage);
                let labels = [("shard", shard.shard().to_string()), ("stage", stage.name().to_owned())];
                let sum_s = histogram.mean() * histogram.len() as f64 / 1e9;
                let mut labelled = family.encode_family(&labels)?;
                labelled.encode_histogram::<NoLabelSet>(sum_s, histogram.len(), &buckets(&histogram), None)?;
            }
        }
        Ok(())
    }

    fn encode_topics(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Pick = fn(TopicCounts) -> u64;
        let families: [(&str, &str, Pick); 4] = [
            ("topic_records_in", "Records acknowledged, by topic.", |c| c.records_in),
            ("topic_bytes_in", "Bytes of batches acknowledged, by topic.", |c| c.bytes_in),
            ("topic_records_out", "Records sent to consumers, by topic.", |c| c.records_out),
            ("topic_bytes_out", "Bytes of batches sent to consumers, by topic.", |c| c.bytes_out),
        ];
        for (name, help, pick) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for shard in &self.shards {
                for (topic, metrics) in shard.topics() {
                    count(&mut family, &[("shard", shard.shard().to_string()), ("topic", topic)], pick(metrics.counts()))?;
                }
            }
        }
        Ok(())
    }
}

fn count<const N: usize>(family: &mut MetricEncoder<'_>, labels: &[(&str, String); N], value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(family.encode_family(labels)?)
}

/// Counts per bucket (not summed up), the last one without a bound.
fn buckets(histogram: &Histogram<u64>) -> Vec<(f64, u64)> {
    let mut buckets: Vec<(f64, u64)> = BUCKETS.iter().copied().chain([f64::MAX]).map(|bound_s| (bound_s, 0)).collect();
    for recorded in histogram.iter_recorded() {
        let value_s = recorded.value_iterated_to() as f64 / 1e9;
        buckets[BUCKETS.partition_point(|bound_s| *bound_s < value_s)].1 += recorded.count_at_value();
    }
    buckets
}

fn code_name(value: i16) -> String {
    Code::from_value(value).map_or_else(|| value.to_string(), |code| format!("{code:?}"))
}

/// The line of `serve --json` once every shard accepts.
pub fn ready_json(status: &NodeStatus, admin: Option<SocketAddr>) -> Value {
    let shard = |p: &ShardPlace| json!({ "shard": p.shard, "address": p.address.to_string(), "cpu": p.cpu });
    json!({
        "ready": true,
        "node": status.node(),
        "pid": std::process::id(),
        "shards": status.places().iter().map(shard).collect::<Vec<_>>(),
        "admin": admin.map(|a| a.to_string()),
    })
}

/// Everything as the JSON of `corelane stat`.
pub fn stat_json(shards: &[Arc<ShardMetrics>], status: &NodeStatus, view: &CatalogueView, consensus: &ConsensusState) -> Value {
    let member = |member: &ConsensusMember| json!({ "node": member.node, "address": member.address, "votes": member.votes });
    json!({
        "node": status.node(),
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "state": status.state().name(),
        "uptime_ms": status.uptime_ms(),
        "topics": view.topics().len(),
        "partitions": view.partitions(),
        "consensus": {
            "leader": consensus.leader,
            "term": consensus.term,
            "applied": consensus.applied,
            "members": consensus.members.iter().map(member).collect::<Vec<_>>(),
            "failure": consensus.failure,
        },
        "shards": shards.iter().map(|shard| shard_json(shard, status)).collect::<Vec<_>>(),
    })
}

fn shard_json(shard: &ShardMetrics, status: &NodeStatus) -> Value {
    let place = status.places().iter().find(|p| p.shard == shard.shard());
    let topic = |(name, metrics): (String, Arc<crate::metrics::TopicMetrics>)| {
        let counts = metrics.counts();
        let value = json!({
            "records_in": counts.records_in, "bytes_in": counts.bytes_in,
            "records_out": counts.records_out, "bytes_out": counts.bytes_out,
        });
        (name, value)
    };
    json!({
        "shard": shard.shard(),
        "address": place.map(|p| p.address.to_string()),
        "cpu": place.map(|p| p.cpu),
        "counters": object(Counter::ALL, |c| (c.name(), shard.counter(*c).into())),
        "gauges": object(Gauge::ALL, |g| (g.name(), shard.gauge(*g).into())),
        "requests": object(RequestKind::ALL, |k| (k.name(), shard.requests(*k).into())),
        "errors": shard.errors().into_iter().map(|(code, n)| (code_name(code), n.into())).collect::<Map<_, Value>>(),
        "stages": object(Stage::ALL, |s| (s.name(), stage_json(&shard.stage(*s)))),
        "topics": shard.topics().into_iter().map(topic).collect::<Map<_, _>>(),
    })
}

fn object<T>(all: &[T], entry: impl Fn(&T) -> (&'static str, Value)) -> Map<String, Value> {
    all.iter().map(entry).map(|(name, value)| (name.to_owned(), value)).collect()
}

fn stage_json(histogram: &Histogram<u64>) -> Value {
    let at_us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    json!({
        "count": histogram.len(),
        "p50_us": at_us(0.5),
        "p99_us": at_us(0.99),
        "p999_us": at_us(0.999),
        "max_us": histogram.max() as f64 / 1e3,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::cluster::Catalogue;

    fn busy_shard(shard: u32) -> Arc<ShardMetrics> {
        let metrics = ShardMetrics::new(shard);
        metrics.add(Counter::RecordsIn, 7);
        metrics.set(Gauge::MemoryTail, 4096);
        metrics.count_request(RequestKind::Produce);
        metrics.count_error(Code::UnknownTopicOrPartition.value());
        metrics.topic("a.b").count_in(7, 700);
        for latency_ns in [9_000, 20_000, 20_000, 400_000, 40_000_000_000] {
            metrics.record(Stage::Sync, latency_ns);
        }
        Arc::new(metrics)
    }

    fn text() -> String {
        let view = Arc::clone(Catalogue::new().view());
        prometheus_text(&[busy_shard(0), busy_shard(1)], &Arc::new(NodeStatus::new(1)), &view)
    }

    /// Samples by name with labels, or the first line that is none: the text format's grammar, as far as we use it.
    fn parse(text: &str) -> Result<HashMap<&str, f64>, &str> {
        let mut samples = HashMap::new();
        let mut typed = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                typed.push(rest.split(' ').next().unwrap_or(""));
            }
            if line.starts_with("# ") {
                continue;
            }
            let (name, value) = line.rsplit_once(' ').ok_or(line)?;
            let family = name.split('{').next().unwrap_or("");
            let labels_close = !name.contains('{') || name.ends_with("\"}");
            let known = typed.last().is_some_and(|t| family.starts_with(t));
            let value: f64 = value.parse().map_err(|_| line)?;
            if !labels_close || !known || !name.starts_with("corelane_") || samples.insert(name, value).is_some() {
                return Err(line);
            }
        }
        if text.ends_with("# EOF\n") { Ok(samples) } else { Err("no end") }
    }

    #[test]
    fn the_text_parses_and_says_what_was_counted() {
        let text = text();
        let samples = parse(&text).unwrap();
        for (name, value) in [
            ("corelane_records_in_total{shard=\"0\"}", 7.0),
            ("corelane_memory_tail_bytes{shard=\"1\"}", 4096.0),
            ("corelane_requests_total{shard=\"1\",kind=\"produce\"}", 1.0),
            ("corelane_errors_total{shard=\"0\",code=\"UnknownTopicOrPartition\"}", 1.0),
            ("corelane_topic_bytes_in_total{shard=\"0\",topic=\"a.b\"}", 700.0),
            ("corelane_stage_seconds_bucket{le=\"0.00001\",shard=\"0\",stage=\"sync\"}", 1.0),
            ("corelane_stage_seconds_bucket{le=\"0.000025\",shard=\"0\",stage=\"sync\"}", 3.0),
            ("corelane_stage_seconds_bucket{le=\"+Inf\",shard=\"0\",stage=\"sync\"}", 5.0),
            ("corelane_stage_seconds_count{shard=\"0\",stage=\"sync\"}", 5.0),
            ("corelane_ready", 0.0),
        ] {
            assert_eq!(samples.get(name), Some(&value), "{name} in\n{text}");
        }
    }

    #[test]
    fn the_parser_sees_a_broken_line() {
        let text = text();
        let broken = text.replace("corelane_records_in_total{shard=\"0\"} 7", "corelane_records_in_total{shard=\"0\"}7");
        assert_ne!(text, broken);
        parse(&broken).unwrap_err();
        parse(&text.replace("# EOF", "")).unwrap_err();
        parse(&text.replace("shard=\"1\"", "shard=\"0\"")).unwrap_err();
    }

    #[test]
    fn the_json_names_everything() {
        let view = Arc::clone(Catalogue::new().view());
        let status = NodeStatus::new(1);
        let address = "127.0.0.1:9092".parse().unwrap();
        status.set_ready(vec![ShardPlace { shard: 0, address, cpu: 3 }]);
        let ready = ready_json(&status, Some("127.0.0.1:9644".parse().unwrap()));
        let expected = json!({
            "ready": true, "node": 1, "pid": std::process::id(), "admin": "127.0.0.1:9644",
            "shards": [{ "shard": 0, "address": "127.0.0.1:9092", "cpu": 3 }],
        });
        assert_eq!(ready, expected);
        let stat = stat_json(&[busy_shard(0)], &status, &view, &ConsensusState { leader: Some(7), ..ConsensusState::default() });
        let shard = &stat["shards"][0];
        assert_eq!((&stat["state"], &shard["address"], &shard["cpu"]), (&json!("ready"), &json!("127.0.0.1:9092"), &json!(3)));
        assert_eq!((&shard["counters"]["records_in"], &shard["topics"]["a.b"]["bytes_in"]), (&json!(7), &json!(700)));
        assert_eq!((&shard["stages"]["sync"]["count"], &shard["errors"]["UnknownTopicOrPartition"]), (&json!(5), &json!(1)));
    }
}
