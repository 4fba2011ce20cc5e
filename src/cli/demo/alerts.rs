//! `demo --scenario alerts`: events of services stream through the broker, a member of a group watches their error rates, and publishes an alert when one gets too high.
//!
//! Which alerts there must be is known from what was sent, by another way than the watcher's ([`crossings`]): each crossing one alert, read back from the topic
//! within [`PATIENCE_MS`], and none besides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Mutex, watch};

use super::error_rate::{ErrorRate, Rule, crossings};
use super::{Stage, View};
use crate::cli::exit::{Exit, Failure};
use crate::client::{Client, NewTopic, OffsetReset, ProducerRecord, SeekTo};
use crate::types::Timestamp;

const EVENTS: &str = "service-events";
const ALERTS: &str = "alerts";
const GROUP: &str = "alerting";
const SERVICES: [&str; 4] = ["cart", "payments", "search", "shipping"];
const RULE: Rule = Rule { window_ms: 2_000, threshold: 0.3, recovered: 0.1, least: 20 };
/// An alert is in its topic, and read, at most this long after the event that made the rate too high, ms.
const PATIENCE_MS: i64 = 1_000;
/// Between two events of a service.
const PACE: Duration = Duration::from_millis(10);
/// Events of each service: ten seconds.
const COUNT: u64 = 1_000;

/// What came of it.
pub struct Outcome {
    /// Events sent.
    events: u64,
    /// Alerts that there had to be, and how long after the crossing each was read, ms.
    delays: Vec<(String, i64)>,
    complaints: Vec<String>,
}

impl Outcome {
    /// Nothing is wrong.
    pub fn holds(&self) -> bool {
        self.complaints.is_empty()
    }

    /// What is wrong.
    pub fn complaint(&self) -> String {
        self.complaints.join("; ")
    }

    /// For programs.
    pub fn to_json(&self) -> serde_json::Value {
        let alerts: Vec<_> = self.delays.iter().map(|(service, ms)| json!({ "service": service, "after_ms": ms })).collect();
        json!({ "scenario": "alerts", "events": self.events, "alerts": alerts, "holds": self.holds(), "complaints": self.complaints })
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} events of {} services; an alert for each time a rate got above {}:", self.events, SERVICES.len(), RULE.threshold)?;
        self.delays.iter().try_for_each(|(service, ms)| writeln!(f, "  {service}: alert read {ms} ms after the crossing"))?;
        writeln!(f, "{}", if self.holds() { "every crossing was alerted in time, and nothing else was" } else { "it does NOT hold" })
    }
}

/// Whether the n-th event of a service is an error: few are, and half of them while something is planted.
fn is_error(service: &str, n: u64) -> bool {
    let bad = match service {
        "payments" => 300..500,
        "search" => 600..750,
        _ => 0..0,
    };
    if bad.contains(&n) { n.is_multiple_of(2) } else { n % 50 == 7 }
}

fn now_ms() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_millis() as Timestamp
}

/// Plays it.
pub async fn play(stage: &Stage, view: &View) -> Result<Outcome, Failure> {
    let client = Client::connect(&stage.addresses()).await?;
    client.admin().create_topic(NewTopic::new(EVENTS).partitions(4)).await?;
    client.admin().create_topic(NewTopic::new(ALERTS).partitions(1)).await?;
    let (stop, stopped) = watch::channel(false);
    let seen: Arc<Mutex<Vec<(String, Timestamp, Timestamp)>>> = Arc::default();
    let watcher = tokio::spawn(watch_rates(client.clone(), stopped.clone()));
    let reader = tokio::spawn(read_alerts(client.clone(), seen.clone(), stopped));
    view.say("events stream; error rates of payments and search are made to rise");
    let sent = send_events(&client).await?;
    tokio::time::sleep(Duration::from_millis(PATIENCE_MS as u64)).await;
    let _ = stop.send(true);
    for task in [watcher, reader] {
        task.await.map_err(|_| super::gone("a task"))??;
    }
    let seen = seen.lock().await;
    Ok(judge(&sent, &seen))
}

/// Events as sent, by service.
type Sent = BTreeMap<&'static str, Vec<(Timestamp, bool)>>;

async fn send_events(client: &Client) -> Result<Sent, Failure> {
    let producer = client.producer().linger(Duration::ZERO).build()?;
    let mut sent = Sent::new();
    let mut tick = tokio::time::interval(PACE);
    for n in 0..COUNT {
        tick.tick().await;
        for service in SERVICES {
            let (at, is_error) = (now_ms(), is_error(service, n));
            let value = if is_error { "error" } else { "ok" };
            let record = ProducerRecord::to(EVENTS).key(service).value(value).timestamp(at);
            // Not waited for one by one: the producer keeps their order.
            drop(producer.send_nowait(record).await?);
            sent.entry(service).or_default().push((at, is_error));
        }
    }
    producer.flush().await;
    Ok(sent)
}

/// The watcher: a member of a group that keeps a rate for each service. The alert is keyed by the service and says when the rate got too high.
async fn watch_rates(client: Client, mut stopped: watch::Receiver<bool>) -> Result<(), Failure> {
    let producer = client.producer().linger(Duration::ZERO).build()?;
    let mut consumer = client.group_consumer(GROUP).subscribe([EVENTS]).offset_reset(OffsetReset::Earliest).build()?;
    let mut rates: BTreeMap<Vec<u8>, ErrorRate> = BTreeMap::new();
    loop {
        let record = tokio::select! {
            _ = stopped.changed() => break,
            record = consumer.next_record() => record.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?,
        };
        let service = record.key.as_deref().unwrap_or_default().to_vec();
        let is_error = record.value.as_deref() == Some(b"error");
        let rate = rates.entry(service.clone()).or_insert_with(|| ErrorRate::new(RULE));
        if let Some(share) = rate.observe(record.timestamp, is_error) {
            let alert = json!({ "since": record.timestamp, "rate": share }).to_string();
            producer.send(ProducerRecord::to(ALERTS).key(&service).value(&alert)).await?;
        }
    }
    Ok(consumer.close().await?)
}

/// Service, moment of the crossing as the alert has it, and when it was read.
async fn read_alerts(
    client: Client,
    seen: Arc<Mutex<Vec<(String, Timestamp, Timestamp)>>>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let mut consumer = client.consumer().build()?;
    consumer.assign(ALERTS, 0, SeekTo::Earliest).await?;
    loop {
        let record = tokio::select! {
            _ = stopped.changed() => return Ok(()),
            record = consumer.next_record() => record,
        };
        let Some(record) = record else { return Ok(()) };
        let record = record.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        let alert: serde_json::Value = serde_json::from_slice(record.value.as_deref().unwrap_or_default())
            .map_err(|error| Failure::new(Exit::Failed, format!("an alert does not read: {error}")))?;
        let service = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
        seen.lock().await.push((service, alert["since"].as_i64().unwrap_or(-1), now_ms()));
    }
}

/// Compares the alerts with what had to come.
fn judge(sent: &Sent, seen: &[(String, Timestamp, Timestamp)]) -> Outcome {
    let mut outcome = Outcome { events: 0, delays: Vec::new(), complaints: Vec::new() };
    let mut left: Vec<_> = seen.to_vec();
    for (service, events) in sent {
        outcome.events += events.len() as u64;
        for at in crossings(&RULE, events) {
            match left.iter().position(|(of, since, _)| of == service && *since == at) {
                None => outcome.complaints.push(format!("{service} got above the threshold at {at} and nobody was told")),
                Some(index) => {
                    let (_, _, read) = left.remove(index);
                    outcome.delays.push(((*service).to_owned(), read - at));
                    if read - at > PATIENCE_MS {
                        outcome.complaints.push(format!("the alert for {service} came after {} ms, later than {PATIENCE_MS}", read - at));
                    }
                }
            }
        }
    }
    if outcome.delays.len() + outcome.complaints.len() < 2 {
        outcome.complaints.push("two services were made to fail, and fewer rates got above the threshold".into());
    }
    outcome.complaints.extend(left.into_iter().map(|(service, since, _)| format!("a false alert for {service} at {since}")));
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> Sent {
        let events = |service| (0..COUNT).map(move |n| (n as i64 * 10, is_error(service, n))).collect();
        SERVICES.into_iter().map(|service| (service, events(service))).collect()
    }

    /// What a watcher without fault would have said, each alert read 20 ms later.
    fn alerts() -> Vec<(String, Timestamp, Timestamp)> {
        let of = |(service, events): (&&str, &Vec<_>)| {
            crossings(&RULE, events).into_iter().map(|at| (service.to_string(), at, at + 20)).collect::<Vec<_>>()
        };
        sent().iter().flat_map(of).collect()
    }

    #[test]
    fn what_is_planted_crosses_once_each() {
        let outcome = judge(&sent(), &alerts());
        assert!(outcome.holds(), "{}", outcome.complaint());
        assert_eq!(outcome.delays, [("payments".to_owned(), 20), ("search".to_owned(), 20)]);
    }

    #[test]
    fn late_missing_and_false_alerts_are_noticed() {
        let mut late = alerts();
        late[0].2 = late[0].1 + PATIENCE_MS + 1;
        assert!(judge(&sent(), &late).complaint().contains("later than"));
        assert!(judge(&sent(), &alerts()[1..]).complaint().contains("nobody was told"));
        let mut wrong = alerts();
        wrong.push(("cart".into(), 5, 6));
        assert!(judge(&sent(), &wrong).complaint().contains("false alert for cart"));
    }
}
