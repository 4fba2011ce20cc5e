//! Consumer groups of the client library against a real broker, alone and together with librdkafka's members.

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corelane::client::{
    AssignmentStrategy, Client, GroupConsumer, GroupConsumerBuilder, NewTopic, OffsetReset, ProducerRecord, RebalanceListener, SeekTo,
};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Message, TopicPartitionList};
use support::Broker;

const PATIENCE: Duration = Duration::from_secs(60);

/// A broker in a directory of its own, whose groups wait for nobody.
struct Place {
    data: tempfile::TempDir,
    address: String,
    broker: Option<Broker>,
}

impl Place {
    fn start() -> Place {
        // Not the system's scratch directory: that may be a tmpfs, which can't do direct I/O.
        let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut place = Place { data, address, broker: None };
        place.run();
        place
    }

    fn run(&mut self) {
        let flags = ["--listen", &self.address, "--shards", "1", "--group-initial-rebalance-delay-ms", "0"];
        // The kernel takes a killed process's listener apart a moment after the process is gone.
        let started = (0..50).find_map(|_| match Broker::try_start(&self.data.path().join("data"), &flags) {
            Ok(broker) => Some(broker),
            Err(_) => {
                std::thread::sleep(Duration::from_millis(100));
                None
            }
        });
        self.broker = Some(started.expect("the broker starts"));
    }

    /// SIGKILL, and again on the same data and address.
    fn restart(&mut self) {
        self.broker.take().unwrap().kill();
        self.run();
    }

    async fn client(&self) -> Client {
        Client::builder(&self.address).retry_backoff(Duration::from_millis(5), Duration::from_millis(50)).connect().await.unwrap()
    }

    fn librdkafka(&self, group: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        let settings = [
            ("bootstrap.servers", self.address.as_str()),
            ("group.id", group),
            ("auto.offset.reset", "earliest"),
            ("enable.auto.commit", "false"),
            ("heartbeat.interval.ms", "100"),
            ("session.timeout.ms", "6000"),
        ];
        settings.into_iter().for_each(|(name, value)| {
            config.set(name, value);
        });
        config
    }
}

/// A member that notices rebalances soon.
fn member(client: &Client, group: &str) -> GroupConsumerBuilder {
    let settings = client.group_consumer(group).offset_reset(OffsetReset::Earliest);
    settings.heartbeat_interval(Duration::from_millis(100)).session_timeout(Duration::from_secs(6)).subscribe(["t"])
}

/// Numbers from `numbers`, with their remainder by 10 as key.
async fn send(client: &Client, topic: &str, numbers: std::ops::Range<u64>) {
    let producer = client.producer().build().unwrap();
    for n in numbers {
        let (key, value) = ((n % 10).to_string(), n.to_string());
        drop(producer.send_nowait(ProducerRecord::to(topic).key(&key).value(&value)).await.unwrap());
    }
    producer.flush().await;
}

fn number(value: Option<&[u8]>) -> u64 {
    std::str::from_utf8(value.unwrap()).unwrap().parse().unwrap()
}

/// A member in a task of its own, which notes what it reads.
struct Reader {
    read: Arc<Mutex<Vec<u64>>>,
    assigned: Arc<Mutex<BTreeSet<u32>>>,
    stop: Arc<tokio::sync::Notify>,
    task: tokio::task::JoinHandle<GroupConsumer>,
}

impl Reader {
    fn start(mut consumer: GroupConsumer) -> Reader {
        let (read, assigned) = (Arc::new(Mutex::new(vec![])), Arc::new(Mutex::new(BTreeSet::new())));
        let stop = Arc::new(tokio::sync::Notify::new());
        let (noted, held, stopped) = (read.clone(), assigned.clone(), stop.clone());
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    record = consumer.next_record() => noted.lock().unwrap().push(number(record.unwrap().value.as_deref())),
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                    () = stopped.notified() => return consumer,
                }
                *held.lock().unwrap() = partitions_of(&consumer);
            }
        });
        Reader { read, assigned, stop, task }
    }

    fn assigned(&self) -> BTreeSet<u32> {
        self.assigned.lock().unwrap().clone()
    }

    fn read(&self) -> BTreeSet<u64> {
        self.read.lock().unwrap().iter().copied().collect()
    }

    async fn stop(self) -> GroupConsumer {
        self.stop.notify_one();
        self.task.await.unwrap()
    }
}

fn partitions_of(consumer: &GroupConsumer) -> BTreeSet<u32> {
    consumer.assignment().into_iter().flat_map(|(_, partitions)| partitions).collect()
}

async fn eventually(what: &str, done: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}"));
}

fn is_divided(a: &BTreeSet<u32>, b: &BTreeSet<u32>, all: u32) -> bool {
    a.len().abs_diff(b.len()) <= 1 && a.is_disjoint(b) && a.len() + b.len() == all as usize
}

async fn topic(client: &Client, name: &str, partitions: u32) {
    client.admin().create_topic(NewTopic::new(name).partitions(partitions)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_share_a_topic_and_take_over_from_each_other() {
    let place = Place::start();
    let client = place.client().await;
    topic(&client, "t", 4).await;
    send(&client, "t", 0..100).await;
    for strategy in [AssignmentStrategy::Range, AssignmentStrategy::RoundRobin, AssignmentStrategy::CooperativeSticky] {
        let group = strategy.name();
        let first = Reader::start(member(&client, group).strategies([strategy]).build().unwrap());
        eventually("one member reads everything", || first.read().len() == 100).await;
        assert_eq!(first.assigned(), BTreeSet::from([0, 1, 2, 3]));
        let second = Reader::start(member(&client, group).strategies([strategy]).build().unwrap());
        eventually("two share", || is_divided(&first.assigned(), &second.assigned(), 4)).await;
        // What the first has committed as it gave partitions up is not read again.
        assert_eq!(second.read(), BTreeSet::new());
        first.stop().await.close().await.unwrap();
        eventually("the other takes over after a leave", || second.assigned().len() == 4).await;
        let third = Reader::start(member(&client, group).strategies([strategy]).build().unwrap());
        eventually("two share again", || is_divided(&second.assigned(), &third.assigned(), 4)).await;
        drop(second.stop().await);
        eventually("the other takes over from a dropped one", || third.assigned().len() == 4).await;
        third.stop().await.close().await.unwrap();
    }
}

#[test]
fn a_dead_member_is_missed_after_its_session() {
    let alive = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dying = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let place = Place::start();
    let (first, second) = (dying.block_on(place.client()), alive.block_on(place.client()));
    alive.block_on(topic(&second, "t", 2));
    let lost = dying.block_on(async { Reader::start(member(&first, "g").build().unwrap()) });
    let left = alive.block_on(async { Reader::start(member(&second, "g").build().unwrap()) });
    alive.block_on(eventually("two share", || is_divided(&lost.assigned(), &left.assigned(), 2)));
    // Its tasks end where they stand, and nobody says good-bye.
    dying.shutdown_background();
    alive.block_on(eventually("all is taken over", || left.assigned().len() == 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_and_membership_survive_a_killed_broker() {
    let mut place = Place::start();
    let client = place.client().await;
    topic(&client, "t", 2).await;
    send(&client, "t", 0..50).await;
    let mut consumer = member(&client, "g").manual_commit().build().unwrap();
    let mut seen = HashMap::new();
    for _ in 0..50 {
        let record = consumer.next_record().await.unwrap();
        seen.insert(record.partition, record.offset + 1);
    }
    consumer.commit().await.unwrap();
    place.restart();
    let committed: HashMap<u32, i64> = consumer.committed().await.unwrap().into_iter().map(|(_, p, offset)| (p, offset.unwrap())).collect();
    assert_eq!(committed, seen);
    send(&client, "t", 50..60).await;
    for _ in 0..10 {
        let record = consumer.next_record().await.unwrap();
        assert!(number(record.value.as_deref()) >= 50);
    }
    let position = consumer.position("t", 0).unwrap();
    consumer.commit_offsets(&[("t", 0, position - 1)]).await.unwrap();
    assert!(consumer.commit_offsets(&[("other", 0, 1)]).await.is_err(), "not assigned");
    assert!(consumer.committed().await.unwrap().contains(&("t".into(), 0, Some(position - 1))));
    consumer.close().await.unwrap();
    // What was not committed comes again.
    let mut again = member(&client, "g").build().unwrap();
    let first = again.next_record().await.unwrap();
    assert!(number(first.value.as_deref()) >= 50);
}

/// What happened to which partitions.
type Happening = (&'static str, Vec<u32>);

/// Notes what it is told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Happening>>>);

impl Told {
    fn note(&self, what: &'static str, partitions: &[(String, Vec<u32>)]) {
        self.0.lock().unwrap().push((what, partitions.iter().flat_map(|(_, partitions)| partitions.clone()).collect()));
    }
}

impl RebalanceListener for Told {
    fn assigned(&mut self, partitions: &[(String, Vec<u32>)]) {
        self.note("assigned", partitions);
    }

    fn revoked(&mut self, partitions: &[(String, Vec<u32>)]) {
        self.note("revoked", partitions);
    }

    fn lost(&mut self, partitions: &[(String, Vec<u32>)]) {
        self.note("lost", partitions);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cooperative_members_keep_what_they_need_not_give_up() {
    let place = Place::start();
    let client = place.client().await;
    topic(&client, "t", 4).await;
    let told = Told::default();
    let cooperative = || member(&client, "g").strategies([AssignmentStrategy::CooperativeSticky]);
    let first = Reader::start(cooperative().on_rebalance(told.clone()).build().unwrap());
    eventually("one has all", || first.assigned().len() == 4).await;
    let second = Reader::start(cooperative().build().unwrap());
    eventually("two share", || is_divided(&first.assigned(), &second.assigned(), 4)).await;
    let given = second.assigned();
    let said = told.0.lock().unwrap().clone();
    assert_eq!(said, [("assigned", vec![0, 1, 2, 3]), ("revoked", given.into_iter().collect())], "two were never touched");

    // An eager one gives up everything.
    let told = Told::default();
    let eager = || member(&client, "eager").strategies([AssignmentStrategy::Range]);
    let first = Reader::start(eager().on_rebalance(told.clone()).build().unwrap());
    eventually("one has all", || first.assigned().len() == 4).await;
    let second = Reader::start(eager().build().unwrap());
    eventually("two share", || is_divided(&first.assigned(), &second.assigned(), 4)).await;
    assert_eq!(told.0.lock().unwrap()[1], ("revoked", vec![0, 1, 2, 3]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_application_leaves_and_comes_back() {
    let place = Place::start();
    let client = place.client().await;
    topic(&client, "t", 2).await;
    send(&client, "t", 0..20).await;
    let told = Told::default();
    let mut silent = member(&client, "g").max_poll_interval(Duration::from_millis(300)).on_rebalance(told.clone()).build().unwrap();
    silent.next_record().await.unwrap();
    let other = Reader::start(member(&client, "g").build().unwrap());
    eventually("the other one takes all", || other.assigned().len() == 2).await;
    let back = Reader::start(silent);
    eventually("it is back", || is_divided(&back.assigned(), &other.assigned(), 2)).await;
    assert_eq!(told.0.lock().unwrap()[1], ("lost", vec![0, 1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_member_finds_its_partitions_again() {
    let place = Place::start();
    let client = place.client().await;
    topic(&client, "t", 4).await;
    let named = |name: &str| member(&client, "g").instance_id(name).session_timeout(Duration::from_secs(30));
    let told = Told::default();
    let (first, second) =
        (Reader::start(named("a").on_rebalance(told.clone()).build().unwrap()), Reader::start(named("b").build().unwrap()));
    eventually("two share", || is_divided(&first.assigned(), &second.assigned(), 4)).await;
    let (before, said) = (second.assigned(), told.0.lock().unwrap().len());
    second.stop().await.close().await.unwrap();
    let second = Reader::start(named("b").build().unwrap());
    eventually("it has its own again", || second.assigned() == before).await;
    assert_eq!(told.0.lock().unwrap().len(), said, "the other one was not bothered");
    // Another one of that name ends the first.
    let third = Reader::start(named("b").build().unwrap());
    eventually("the newer one has them", || third.assigned() == before).await;
    eventually("the older one is refused", || second.task.is_finished()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pattern_finds_topics_that_come_later() {
    let place = Place::start();
    let client = place.client().await;
    topic(&client, "orders-a", 1).await;
    topic(&client, "other", 1).await;
    assert!(client.group_consumer("g").subscribe_pattern("(").build().is_err());
    let settings = member(&client, "g").subscribe_pattern("orders-.*").metadata_max_age(Duration::from_millis(100));
    let mut consumer = settings.build().unwrap();
    send(&client, "other", 0..10).await;
    send(&client, "orders-a", 10..20).await;
    for n in 10..20 {
        assert_eq!(number(consumer.next_record().await.unwrap().value.as_deref()), n);
    }
    topic(&client, "orders-b", 1).await;
    send(&client, "orders-b", 20..30).await;
    for n in 20..30 {
        let record = tokio::time::timeout(PATIENCE, consumer.next_record()).await.unwrap().unwrap();
        assert_eq!((&*record.topic, number(record.value.as_deref())), ("orders-b", n));
    }
    consumer.seek("orders-a", 0, SeekTo::Offset(5)).await.unwrap();
    assert_eq!(consumer.next_record().await.unwrap().offset, 5);
    consumer.pause("orders-a", 0).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), consumer.next_record()).await.is_err(), "paused");
    consumer.resume("orders-a", 0).unwrap();
    assert_eq!(consumer.next_record().await.unwrap().offset, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_committed_offset_the_reset_decides() {
    let place = Place::start();
    let client = place.client().await;
    topic(&client, "t", 1).await;
    send(&client, "t", 0..10).await;
    let mut fail = member(&client, "fail").offset_reset(OffsetReset::Fail).build().unwrap();
    let error = fail.next_record().await.unwrap_err().to_string();
    assert!(error.contains("no offset"), "{error}");
    fail.seek("t", 0, SeekTo::Earliest).await.unwrap();
    assert_eq!(fail.next_record().await.unwrap().offset, 0);
    let latest = Reader::start(member(&client, "latest").offset_reset(OffsetReset::Latest).build().unwrap());
    eventually("assigned", || latest.assigned().len() == 1).await;
    send(&client, "t", 10..12).await;
    eventually("only the new ones", || latest.read() == BTreeSet::from([10, 11])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_assigned_and_not_committed_is_behind_too() {
    let place = Place::start();
    let client = place.client().await;
    topic(&client, "t", 2).await;
    for partition in 0..2 {
        let producer = client.producer().build().unwrap();
        for _ in 0..5 {
            producer.send(ProducerRecord::to("t").partition(partition).value("1")).await.unwrap();
        }
    }
    client.admin().delete_records("t", 1, Some(2)).await.unwrap();
    let reader = Reader::start(member(&client, "g").manual_commit().build().unwrap());
    eventually("everything is read", || reader.assigned().len() == 2 && reader.read.lock().unwrap().len() == 8).await;
    let positions = async || client.admin().group_positions("g").await.unwrap().into_iter().map(|p| (p.partition, p.offset, p.end, p.lag));
    assert_eq!(positions().await.collect::<Vec<_>>(), [(0, None, 5, 5), (1, None, 5, 3)]);
    let mut consumer = reader.stop().await;
    consumer.commit_offsets(&[("t", 1, 4)]).await.unwrap();
    assert_eq!(positions().await.collect::<Vec<_>>(), [(0, None, 5, 5), (1, Some(4), 5, 1)]);
    consumer.close().await.unwrap();
    assert_eq!(positions().await.collect::<Vec<_>>(), [(1, Some(4), 5, 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_and_librdkafka_members_share_a_group_and_its_offsets() {
    let place = Place::start();
    let client = place.client().await;
    topic(&client, "t", 4).await;
    send(&client, "t", 0..100).await;
    // Offsets of one are those of the other.
    let theirs: BaseConsumer = place.librdkafka("offsets").create().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..4 {
        list.add_partition_offset("t", partition, rdkafka::Offset::Offset(i64::from(partition))).unwrap();
    }
    theirs.commit(&list, CommitMode::Sync).unwrap();
    let mut ours = member(&client, "offsets").manual_commit().build().unwrap();
    let first = ours.next_record().await.unwrap();
    assert_eq!(first.offset, i64::from(first.partition));
    ours.commit_offsets(&[("t", 3, 7)]).await.unwrap();
    ours.close().await.unwrap();
    let committed = theirs.committed_offsets(list, Duration::from_secs(10)).unwrap();
    assert_eq!(committed.find_partition("t", 3).unwrap().offset(), rdkafka::Offset::Offset(7));

    // Each way of leading: whoever comes first leads.
    for (group, strategies, first_is_ours) in [
        ("range-ours", "range,roundrobin", true),
        ("range-theirs", "range,roundrobin", false),
        ("cooperative-ours", "cooperative-sticky", true),
        ("cooperative-theirs", "cooperative-sticky", false),
    ] {
        let strategy = if strategies.starts_with("range") { AssignmentStrategy::Range } else { AssignmentStrategy::CooperativeSticky };
        let theirs = || Theirs::start(place.librdkafka(group).set("partition.assignment.strategy", strategies).create().unwrap());
        let ours = || Reader::start(member(&client, group).strategies([strategy]).build().unwrap());
        let (ours, theirs) = if first_is_ours {
            let ours = ours();
            eventually("ours has all", || ours.assigned().len() == 4).await;
            (ours, theirs())
        } else {
            let theirs = theirs();
            eventually("theirs has all", || theirs.assigned().len() == 4).await;
            (ours(), theirs)
        };
        eventually("a native and a Kafka member share", || is_divided(&ours.assigned(), &theirs.assigned(), 4)).await;
        let all = || ours.read().union(&theirs.read.lock().unwrap()).count() == 100;
        eventually("everything is read", all).await;
        theirs.stop();
        eventually("ours takes over", || ours.assigned().len() == 4).await;
        ours.stop().await.close().await.unwrap();
    }
}

/// librdkafka's member in a thread of its own.
struct Theirs {
    consumer: Arc<BaseConsumer>,
    read: Arc<Mutex<BTreeSet<u64>>>,
    is_stopping: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Theirs {
    fn start(consumer: BaseConsumer) -> Theirs {
        consumer.subscribe(&["t"]).unwrap();
        let (consumer, read, is_stopping) = (Arc::new(consumer), Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
        let (polled, noted, stops) = (consumer.clone(), read.clone(), is_stopping.clone());
        let thread = std::thread::spawn(move || {
            while !stops.load(Ordering::Relaxed) {
                if let Some(record) = polled.poll(Duration::from_millis(20)) {
                    noted.lock().unwrap().insert(number(record.unwrap().payload()));
                }
            }
        });
        Theirs { consumer, read, is_stopping, thread }
    }

    fn assigned(&self) -> BTreeSet<u32> {
        self.consumer.assignment().unwrap().elements().iter().map(|element| element.partition() as u32).collect()
    }

    fn stop(self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.consumer.unsubscribe();
        drop(self.consumer);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_keeps_the_order_of_each_key_and_commits_what_is_handled() {
    let place = Place::start();
    let client = place.client().await;
    topic(&client, "t", 3).await;
    send(&client, "t", 0..300).await;
    let handled: Arc<Mutex<BTreeMap<u64, Vec<u64>>>> = Arc::default();
    let at_once: Arc<Mutex<BTreeSet<u64>>> = Arc::default();
    let most = Arc::new(AtomicUsize::new(0));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let listener = {
        let (handled, at_once, most) = (handled.clone(), at_once.clone(), most.clone());
        client.listen(["t"], "g", move |record| {
            let (handled, at_once, most) = (handled.clone(), at_once.clone(), most.clone());
            async move {
                let n = number(record.value.as_deref());
                {
                    let mut at_once = at_once.lock().unwrap();
                    assert!(at_once.insert(n % 10), "two of a key at once");
                    most.fetch_max(at_once.len(), Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(1 + n % 3)).await;
                at_once.lock().unwrap().remove(&(n % 10));
                handled.lock().unwrap().entry(n % 10).or_default().push(n);
                Ok::<(), String>(())
            }
        })
    };
    let listener = listener.concurrency(4).attempts(1).without_dead_letters();
    let listener = listener.member(|member| member.offset_reset(OffsetReset::Earliest));
    let task = tokio::spawn(listener.run_until(async { drop(stopped.await) }));
    eventually("all are handled", || handled.lock().unwrap().values().map(Vec::len).sum::<usize>() == 300).await;
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
    for (key, numbers) in &*handled.lock().unwrap() {
        assert_eq!(*numbers, (0..30).map(|n| n * 10 + key).collect::<Vec<_>>(), "key {key} in order, each once");
    }
    assert!((2..=4).contains(&most.load(Ordering::Relaxed)), "{most:?} at once");
    let mut after = member(&client, "g").build().unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(500), after.next_record()).await.is_err(), "all of it is committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_handled_is_tried_again_and_put_away() {
    let place = Place::start();
    let client = place.client().await;
    topic(&client, "t", 3).await;
    send(&client, "t", 0..30).await;
    let calls: Arc<Mutex<HashMap<u64, u32>>> = Arc::default();
    let counted = calls.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let listener = client.listen(["t"], "g", move |record| {
        let n = number(record.value.as_deref());
        let call = *counted.lock().unwrap().entry(n).and_modify(|calls| *calls += 1).or_insert(1);
        async move {
            match n {
                7 => Err(format!("{n} can't be handled")),
                8 => panic!("of 8"),
                9 if call < 3 => Err("not yet".to_string()),
                _ => Ok(()),
            }
        }
    });
    let listener = listener.attempts(3).backoff(Duration::from_millis(1), Duration::from_millis(5));
    let listener = listener.member(|member| member.offset_reset(OffsetReset::Earliest));
    let task = tokio::spawn(listener.run_until(async { drop(stopped.await) }));
    let mut letters = client.consumer().build().unwrap();
    eventually("all are called", || calls.lock().unwrap().values().sum::<u32>() == 30 + 3 * 2).await;
    let mut found = BTreeMap::new();
    let opened = tokio::time::timeout(PATIENCE, async { while letters.assign_topic("t.DLT", SeekTo::Earliest).await.is_err() {} });
    opened.await.unwrap();
    while found.len() < 2 {
        let letter = tokio::time::timeout(PATIENCE, letters.next_record()).await.unwrap().unwrap().unwrap();
        found.insert(number(letter.value.as_deref()), letter);
    }
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
    for (n, words) in [(7, "7 can't be handled"), (8, "the handler panicked: of 8")] {
        let letter = &found[&n];
        assert_eq!(letter.key.as_deref(), Some(n.to_string().as_bytes()));
        let header = |name: &str| letter.headers().find(|h| h.name == name.as_bytes()).unwrap().value.unwrap().to_vec();
        assert_eq!(header("kafka_dlt-original-topic"), b"t");
        assert_eq!(header("kafka_dlt-original-partition"), letter.partition.to_be_bytes());
        assert_eq!(header("kafka_dlt-original-consumer-group"), b"g");
        assert_eq!(header("kafka_dlt-exception-message"), words.as_bytes());
        let offset = i64::from_be_bytes(header("kafka_dlt-original-offset").try_into().unwrap());
        let mut original = client.consumer().build().unwrap();
        original.assign("t", letter.partition, SeekTo::Offset(offset)).await.unwrap();
        let original = original.next_record().await.unwrap().unwrap();
        assert_eq!((original.value, original.timestamp), (letter.value.clone(), letter.timestamp));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_can_not_be_are_refused() {
    let place = Place::start();
    let client = place.client().await;
    let refusals = [
        (client.group_consumer("").subscribe(["t"]), "group id"),
        (client.group_consumer("g"), "not subscribed"),
        (client.group_consumer("g").subscribe(["t"]).strategies([]), "strategy"),
        (client.group_consumer("g").subscribe(["t"]).heartbeat_interval(Duration::from_secs(60)), "heartbeat"),
    ];
    for (settings, words) in refusals {
        let error = settings.build().err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
    // The broker's own bounds.
    let mut short = client
        .group_consumer("g")
        .subscribe(["t"])
        .session_timeout(Duration::from_millis(10))
        .heartbeat_interval(Duration::from_millis(5))
        .build()
        .unwrap();
    let error = short.next_record().await.unwrap_err().to_string();
    assert!(error.contains("session timeout"), "{error}");
}

fn consume(place: &Place, flags: &[&str]) -> String {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_corelane"));
    let output = command.args(["consume", "t", "--broker", &place.address]).args(flags).output().expect("the command runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_goes_on_where_its_group_stopped() {
    let place = Place::start();
    let client = place.client().await;
    topic(&client, "t", 1).await;
    send(&client, "t", 0..10).await;
    assert_eq!(consume(&place, &["--group", "g", "--from-beginning", "--count", "3"]), "0\n1\n2\n");
    assert_eq!(consume(&place, &["--group", "g", "--count", "2", "--format", "%o=%s\\n"]), "3=3\n4=4\n");
    let line = consume(&place, &["--group", "g", "--count", "1", "--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["offset"], 5);
}
