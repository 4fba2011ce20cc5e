//! A topic gets more partitions under keyed load: how long until producers write to the new ones and a group reads from them, and whether all is
//! there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use corelane::client::{AssignmentStrategy, NewTopic, OffsetReset};

use super::keyed::{Common, Keyed, Shape};
use super::nodes::Nodes;
use super::order::Order;
use super::run::HEALTH_PATIENCE;
use super::wait_until;
use crate::harness::Round;

const TOPIC: &str = "raised";
const GROUP: &str = "raised";
/// Partitions before and afterwards.
const BEFORE: u32 = 3;
const AFTER: u32 = 12;
const MEMBERS: u32 = 2;
/// How a member hears of a rebalance.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// What has to happen behind a refresh: new partitions get leaders, a record comes; in a group two rebalances, each as long as a heartbeat.
const WRITE_SLACK: Duration = Duration::from_millis(500);
const READ_SLACK: Duration = Duration::from_secs(2);
/// How long load goes on afterwards.
const GOES_ON: Duration = Duration::from_secs(2);

/// What the group has read.
#[derive(Default)]
struct Group {
    order: Mutex<Order>,
    places: Mutex<HashMap<u32, Place>>,
}

/// Of one partition.
#[derive(Clone, Copy)]
struct Place {
    first_read: Instant,
    /// One past the last offset that was read.
    position: i64,
}

impl Group {
    fn places(&self) -> HashMap<u32, Place> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Raises the partitions of a topic of its own, with so many records a second, and clients that refresh their metadata so often.
pub fn raise(round: &mut Round<'_>, nodes: &Nodes, per_second: f64, metadata_max_age: Duration) -> Result<(), String> {
    let new = NewTopic::new(TOPIC).partitions(BEFORE).replication_factor(3).config("min.insync.replicas", "2");
    nodes.create_topic(new)?;
    let shape = Shape { topic: TOPIC, partitions: BEFORE, per_second, metadata_max_age: Some(metadata_max_age), is_read: true };
    let load = Keyed::start(nodes.network.clone(), nodes.bootstrap(), &shape);
    let group = Arc::<Group>::default();
    let members: Vec<_> = (0..MEMBERS)
        .map(|_| {
            let group = group.clone();
            load.common.spawn(async move |common| read(common, group, metadata_max_age).await)
        })
        .collect();
    let expect_partitions = |what: &str, found: usize, expected: u32| {
        load.expect_no_complaint()?;
        if found == expected as usize { Ok(()) } else { Err(format!("{found} of {expected} partitions are {what}")) }
    };
    let expect_both = |expected| {
        expect_partitions("written", load.common.first_written().len(), expected)?;
        expect_partitions("read by the group", group.places().len(), expected)
    };
    wait_until("partitions are written and read", HEALTH_PATIENCE, || expect_both(BEFORE))?;

    load.common.add_partitions(AFTER);
    let asked = Instant::now();
    nodes.run_command(&["topic", "alter", TOPIC, "--partitions", &AFTER.to_string()])?;
    let answered = asked.elapsed();
    wait_until("new partitions are written and read", HEALTH_PATIENCE + metadata_max_age * 3, || expect_both(AFTER))?;
    let written = load.common.first_written().values().map(|at| at.saturating_duration_since(asked)).max().unwrap_or_default();
    let read = group.places().values().map(|place| place.first_read.saturating_duration_since(asked)).max().unwrap_or_default();
    std::thread::sleep(GOES_ON);

    let common = load.common.clone();
    let sent = load.finish()?;
    for member in members {
        member.join().map_err(|_| "a member has panicked")?;
    }
    common.expect_no_complaint()?;
    // What the group has read is each record once, too: members commit what they give up.
    group.order.lock().unwrap_or_else(PoisonError::into_inner).judge(&sent).map_err(|what| format!("the group: {what}"))?;

    nodes.run_command(&["topic", "delete", TOPIC])?;
    let [answered_ms, written_ms, read_ms, age_ms] = [answered, written, read, metadata_max_age].map(|time| time.as_millis());
    let records = sent.values().sum::<u64>();
    eprintln!(
        "{BEFORE} partitions raised to {AFTER} in {answered_ms} ms: all written after {written_ms} ms, all read by a group of {MEMBERS} after {read_ms} ms; \
         metadata is refreshed every {age_ms} ms; {records} records, each once"
    );
    let name = |what: &str| format!("run{}_raised_{what}", round.number + 1);
    for (name, figure) in [("written_ms", written_ms), ("read_ms", read_ms)].map(|(what, figure)| (name(what), figure)) {
        round.count(&name, figure as u64);
    }
    if !round.is_short {
        let most = metadata_max_age + WRITE_SLACK;
        round.target(written <= most, &format!("new partitions are written after {written_ms} ms, expected {} at most", most.as_millis()));
        let most = metadata_max_age + READ_SLACK;
        round
            .target(read <= most, &format!("new partitions are read by a group after {read_ms} ms, expected {} at most", most.as_millis()));
    }
    Ok(())
}

/// A member, until the group has read all that there is.
async fn read(common: Arc<Common>, group: Arc<Group>, metadata_max_age: Duration) -> Result<(), String> {
    let client = common.connect().await?;
    let member = client.group_consumer(GROUP).subscribe([common.topic.clone()]).offset_reset(OffsetReset::Earliest);
    let member =
        member.strategies([AssignmentStrategy::CooperativeSticky]).heartbeat_interval(HEARTBEAT).metadata_max_age(metadata_max_age);
    let member = member.reading(|reading| reading.max_wait(Duration::from_millis(500)));
    let mut member = member.build().map_err(|e| e.to_string())?;
    let mut ends_since = None;
    loop {
        if let Some(ends) = common.last() {
            let places = group.places();
            let position = |partition: usize| places.get(&(partition as u32)).map_or(0, |place| place.position);
            let Some(behind) = (0..ends.len()).find(|partition| position(*partition) < ends[*partition]) else {
                return member.close().await.map_err(|e| e.to_string());
            };
            if ends_since.get_or_insert_with(Instant::now).elapsed() > HEALTH_PATIENCE {
                return Err(format!("the group is at {} of partition {behind}, which ends at {}", position(behind), ends[behind]));
            }
        }
        let Ok(next) = tokio::time::timeout(Duration::from_millis(200), member.next_batch()).await else { continue };
        let batch = next.map_err(|e| e.to_string())?;
        common.take(&batch, &mut group.order.lock().unwrap_or_else(PoisonError::into_inner))?;
        let mut places = group.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(batch.partition).or_insert_with(|| Place { first_read: Instant::now(), position: 0 });
        place.position = place.position.max(batch.next_offset());
    }
}
