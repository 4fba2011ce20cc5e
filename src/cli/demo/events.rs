//! `demo --scenario events`: two services exchange events, with retries and a dead-letter topic, and one of them is killed on the way.
//!
//! The reservation service publishes reservations and hears of notifications; the notification service, a process of its own, handles each reservation and publishes
//! a notification. Some reservations fail at first, some always. At the end each that can be handled has its notification, and the others are in the
//! dead-letter topic. What is handled twice because of the kill is counted, and allowed: at least once is what a group gives.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Stage, View};
use crate::cli::exit::{Exit, Failure};
use crate::client::{Client, NewTopic, OffsetReset, ProducerRecord, SeekTo};

const RESERVATIONS: &str = "reservations";
const DEAD_LETTERS: &str = "reservations.DLT";
const NOTIFICATIONS: &str = "notifications";
const SERVICE: &str = "notification-service";
const PARTITIONS: u32 = 3;
const COUNT: u32 = 2_000;
/// Each so-manieth reservation fails at its first attempt, and can't be handled at all.
const FLAKY: u32 = 25;
const POISON: u32 = 100;
/// Notifications after which the notification service is killed.
const KILL_AFTER: usize = 500;
/// All has to be over by then.
const PATIENCE: Duration = Duration::from_secs(25);

/// What came of it.
pub struct Outcome {
    notified: usize,
    again: usize,
    dead: usize,
    handled_before_kill: usize,
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
        json!({
            "scenario": "events", "reservations": COUNT, "notified": self.notified, "notified_again": self.again, "dead_letters": self.dead,
            "handled_before_kill": self.handled_before_kill, "holds": self.holds(), "complaints": self.complaints,
        })
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { notified, again, dead, handled_before_kill, .. } = self;
        writeln!(
            f,
            "{COUNT} reservations; the notification service got SIGKILL after {handled_before_kill} notifications and was started again"
        )?;
        writeln!(f, "{notified} have their notification ({again} came again), {dead} that can't be handled are in {DEAD_LETTERS}")?;
        writeln!(f, "{}", if self.holds() { "nothing is missing" } else { "it does NOT hold" })
    }
}

fn is_poison(id: u32) -> bool {
    id.is_multiple_of(POISON)
}

/// The notification service: what `corelane demo --scenario notification-service` runs.
pub async fn serve(addresses: &str) -> Result<(), Failure> {
    let client = Client::connect(addresses).await?;
    let producer = Arc::new(client.producer().linger(Duration::ZERO).build()?);
    let failed_once: Arc<Mutex<HashSet<u32>>> = Arc::default();
    let handler = move |record: crate::client::ConsumerRecord| {
        let (producer, failed_once) = (producer.clone(), failed_once.clone());
        async move {
            let text = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
            let id: u32 = text.parse().map_err(|_| format!("{text:?} is no reservation"))?;
            if is_poison(id) {
                return Err(format!("reservation {id} can't be handled"));
            }
            if id.is_multiple_of(FLAKY) && failed_once.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
                return Err(format!("reservation {id} fails once"));
            }
            // What the work takes.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let key = record.key.unwrap_or_default();
            let sent = producer.send(ProducerRecord::to(NOTIFICATIONS).key(&key).value(&text)).await;
            sent.map(drop).map_err(|error| error.to_string())
        }
    };
    let listener = client
        .listen([RESERVATIONS], SERVICE, handler)
        .attempts(3)
        .backoff(Duration::from_millis(20), Duration::from_millis(100))
        .commit_interval(Duration::from_millis(100))
        .member(|member| member.offset_reset(OffsetReset::Earliest).session_timeout(Duration::from_secs(6)));
    Ok(listener.run().await?)
}

/// The notification service as a process; it ends with this.
struct Service(Child);

impl Service {
    fn start(addresses: &str) -> Result<Service, Failure> {
        let failed = |error: std::io::Error| Failure::new(Exit::Host, format!("the notification service can't be started: {error}"));
        let program = std::env::current_exe().map_err(failed)?;
        let arguments = ["demo", "--scenario", "notification-service", "--broker", addresses];
        Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn().map(Service).map_err(failed)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Plays it.
pub async fn play(stage: &Stage, view: &View) -> Result<Outcome, Failure> {
    let addresses = stage.addresses();
    let client = Client::connect(&addresses).await?;
    for topic in [RESERVATIONS, NOTIFICATIONS, DEAD_LETTERS] {
        client.admin().create_topic(NewTopic::new(topic).partitions(PARTITIONS)).await?;
    }
    let deadline = Instant::now() + PATIENCE;
    let service = Service::start(&addresses)?;
    let producer = client.producer().build()?;
    for id in 1..=COUNT {
        let (key, value) = (format!("guest-{}", id % 40), id.to_string());
        drop(producer.send_nowait(ProducerRecord::to(RESERVATIONS).key(&key).value(&value)).await?);
    }
    producer.flush().await;
    view.say(&format!("{COUNT} reservations are published"));

    let expected: BTreeSet<u32> = (1..=COUNT).filter(|id| !is_poison(*id)).collect();
    let poison: BTreeSet<u32> = (1..=COUNT).filter(|id| is_poison(*id)).collect();
    let mut notified: BTreeMap<u32, usize> = BTreeMap::new();
    let mut notifications =
        client.group_consumer("reservation-service").subscribe([NOTIFICATIONS]).offset_reset(OffsetReset::Earliest).build()?;
    let mut handled_before_kill = 0;
    let mut service = Some(service);
    while notified.len() < expected.len() && Instant::now() < deadline {
        if handled_before_kill == 0 && notified.len() >= KILL_AFTER {
            handled_before_kill = notified.len();
            drop(service.take());
            view.say(&format!("SIGKILL to the notification service after {handled_before_kill} notifications; starting it again"));
            service = Some(Service::start(&addresses)?);
        }
        let read = tokio::time::timeout(Duration::from_millis(100), notifications.next_record()).await;
        let Ok(record) = read else { continue };
        let record = record.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        *notified.entry(id_of(record.value.as_deref())?).or_default() += 1;
    }
    notifications.close().await?;
    let dead = dead_letters(&client, poison.len(), deadline).await?;
    drop(service);
    Ok(judge(&expected, &poison, &notified, &dead, handled_before_kill))
}

fn id_of(value: Option<&[u8]>) -> Result<u32, Failure> {
    let text = String::from_utf8_lossy(value.unwrap_or_default());
    text.parse().map_err(|_| Failure::new(Exit::Failed, format!("{text:?} is no reservation")))
}

/// What is in the dead-letter topic, once there are as many as wanted.
async fn dead_letters(client: &Client, wanted: usize, deadline: Instant) -> Result<BTreeSet<u32>, Failure> {
    let mut consumer = client.consumer().build()?;
    consumer.assign_topic(DEAD_LETTERS, SeekTo::Earliest).await?;
    let mut dead = BTreeSet::new();
    while dead.len() < wanted && Instant::now() < deadline {
        let Ok(Some(record)) = tokio::time::timeout(Duration::from_millis(100), consumer.next_record()).await else { continue };
        let record = record.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        dead.insert(id_of(record.value.as_deref())?);
    }
    Ok(dead)
}

fn judge(
    expected: &BTreeSet<u32>,
    poison: &BTreeSet<u32>,
    notified: &BTreeMap<u32, usize>,
    dead: &BTreeSet<u32>,
    handled_before_kill: usize,
) -> Outcome {
    let mut complaints = Vec::new();
    let got: BTreeSet<u32> = notified.keys().copied().collect();
    let mut compare = |what: &str, numbers: Vec<&u32>| {
        if let Some(first) = numbers.first() {
            complaints.push(format!("{} {what}, the first is {first}", numbers.len()));
        }
    };
    compare("reservations have no notification", expected.difference(&got).collect());
    compare("notifications are of nothing that can be handled", got.difference(expected).collect());
    compare("reservations that can't be handled are not in the dead-letter topic", poison.difference(dead).collect());
    compare("dead letters are of reservations that can be handled", dead.difference(poison).collect());
    if handled_before_kill == 0 {
        complaints.push("the notification service was not killed".into());
    }
    let again = notified.values().map(|times| times - 1).sum();
    Outcome { notified: got.len(), again, dead: dead.len(), handled_before_kill, complaints }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_too_much_is_noticed() {
        let (expected, poison) = (BTreeSet::from([1, 2]), BTreeSet::from([100]));
        let notified = |ids: &[u32]| ids.iter().map(|id| (*id, 1)).collect::<BTreeMap<_, _>>();
        let judged = |ids: &[u32], dead: &[u32], kill| judge(&expected, &poison, &notified(ids), &dead.iter().copied().collect(), kill);
        assert!(judged(&[1, 2], &[100], 1).holds());
        assert!(judged(&[1], &[100], 1).complaint().contains("1 reservations have no notification, the first is 2"));
        assert!(judged(&[1, 2, 100], &[100], 1).complaint().contains("of nothing that can be handled"));
        assert!(judged(&[1, 2], &[], 1).complaint().contains("not in the dead-letter topic"));
        assert!(judged(&[1, 2], &[2, 100], 1).complaint().contains("dead letters"));
        assert!(judged(&[1, 2], &[100], 0).complaint().contains("not killed"));
    }
}
