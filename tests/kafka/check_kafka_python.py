"""kafka-python: codecs, keys, headers, times, idempotence, administration, groups."""

import collections
import threading
import time

import brokers
from brokers import PATIENCE
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, NewPartitions, NewTopic
from kafka.errors import (
    InvalidConfigurationError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    MessageSizeTooLargeError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from kafka.structs import OffsetAndMetadata

CODECS = [None, "gzip", "snappy", "lz4", "zstd"]


class WithKafkaPython(brokers.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.admin = KafkaAdminClient(bootstrap_servers=cls.broker.bootstrap)
        cls.addClassCleanup(cls.admin.close)

    def producer(self, **settings):
        producer = KafkaProducer(bootstrap_servers=self.broker.bootstrap, **settings)
        self.addCleanup(producer.close, timeout=5)
        return producer

    def consumer(self, *topics, **settings):
        settings = {"auto_offset_reset": "earliest", "enable_auto_commit": False, **settings}
        consumer = KafkaConsumer(*topics, bootstrap_servers=self.broker.bootstrap, **settings)
        self.addCleanup(consumer.close)
        return consumer

    def send(self, topic, values, partitions=1, **settings):
        producer = self.producer(**settings)
        futures = [producer.send(topic, value.encode(), partition=number % partitions) for number, value in enumerate(values)]
        producer.flush(timeout=PATIENCE)
        return [future.get(timeout=PATIENCE) for future in futures]

    def read(self, consumer, count):
        records, begun = [], time.monotonic()
        while len(records) < count:
            self.assertLess(time.monotonic() - begun, PATIENCE, f"{len(records)} of {count} records")
            for batch in consumer.poll(timeout_ms=200).values():
                records.extend(batch)
        return records


class Records(WithKafkaPython):
    def test_keys_headers_times_and_codecs(self):
        for codec in CODECS:
            with self.subTest(codec=codec):
                topic = f"python-{codec}"
                self.broker.create(topic, 3, retention_ms=-1)
                producer = self.producer(compression_type=codec, linger_ms=50)
                sent, futures = {}, []
                for n in range(600):
                    key = None if n % 7 == 0 else f"key {n}".encode()
                    value = None if key and n % 11 == 0 else f"value {n} of a text that repeats itself, repeats itself".encode()
                    headers = [("a", b"1"), ("a", b"2"), ("empty", b"")][: n % 4]
                    when = 1_600_000_000_000 + n * 1000
                    futures.append(producer.send(topic, value, key, headers, partition=n % 3, timestamp_ms=when))
                    sent[n % 3, n // 3] = (key, value, headers, 0, when)
                producer.flush(timeout=PATIENCE)
                places = [(done.partition, done.offset) for done in (future.get(timeout=PATIENCE) for future in futures)]
                self.assertEqual(places, [(n % 3, n // 3) for n in range(600)])
                consumer = self.consumer()
                consumer.assign([TopicPartition(topic, partition) for partition in range(3)])
                records = self.read(consumer, 600)
                seen = {(r.partition, r.offset): (r.key, r.value, list(r.headers), r.timestamp_type, r.timestamp) for r in records}
                self.assertEqual(seen, sent)

    def test_idempotence_and_all_settings_of_acks(self):
        plain = {"enable_idempotence": False}
        for settings in [{"acks": 0, **plain}, {"acks": 1, **plain}, {"acks": "all"}, {"enable_idempotence": True}]:
            with self.subTest(settings=settings):
                topic = "python-" + "-".join(f"{k}-{v}" for k, v in settings.items())
                self.broker.create(topic, 2)
                self.send(topic, [str(n) for n in range(1000)], partitions=2, **settings)
                consumer = self.consumer()
                consumer.assign([TopicPartition(topic, partition) for partition in range(2)])
                read = [(r.partition, int(r.value)) for r in self.read(consumer, 1000)]
                for partition in range(2):
                    self.assertEqual([value for where, value in read if where == partition], list(range(partition, 1000, 2)))

    def test_offsets_by_time_beginnings_and_ends(self):
        topic = "python-times"
        self.broker.create(topic, 1, retention_ms=-1)
        producer = self.producer()
        for n in range(10):
            producer.send(topic, str(n).encode(), partition=0, timestamp_ms=1_600_000_000_000 + n * 1000)
        producer.flush(timeout=PATIENCE)
        consumer, partition = self.consumer(), TopicPartition(topic, 0)
        self.assertEqual(consumer.beginning_offsets([partition]), {partition: 0})
        self.assertEqual(consumer.end_offsets([partition]), {partition: 10})
        at = lambda when: consumer.offsets_for_times({partition: when})[partition]
        self.assertEqual((at(1_600_000_003_000).offset, at(1_600_000_003_001).timestamp), (3, 1_600_000_004_000))
        self.assertIsNone(at(1_700_000_000_000))

    def test_a_record_too_large_is_refused(self):
        self.broker.create("python-small", 1, max_message_bytes=1000)
        with self.assertRaises(MessageSizeTooLargeError):
            self.producer().send("python-small", b"x" * 2000, partition=0).get(timeout=PATIENCE)

    def test_a_topic_is_created_by_its_use(self):
        self.send("python-made-by-use", ["a"])
        self.assertIn("python-made-by-use", self.admin.list_topics())


class Administration(WithKafkaPython):
    def test_topics_are_created_described_grown_and_deleted(self):
        create = lambda *arguments, **config: self.admin.create_topics([NewTopic(*arguments, **config)])
        create("admin-a", 3, 1, topic_configs={"retention.ms": "1234567"})
        with self.assertRaises(TopicAlreadyExistsError):
            create("admin-a", 3, 1)
        with self.assertRaises(InvalidReplicationFactorError):
            create("admin-b", 3, 4)
        with self.assertRaises(InvalidConfigurationError):
            create("admin-b", 1, 1, topic_configs={"retention.ms": "soon"})
        (described,) = self.admin.describe_topics(["admin-a"])
        self.assertEqual(sorted(partition["partition_index"] for partition in described["partitions"]), [0, 1, 2])
        self.admin.create_partitions({"admin-a": NewPartitions(5)})
        with self.assertRaises(InvalidPartitionsError):
            self.admin.create_partitions({"admin-a": NewPartitions(4)})
        self.assertEqual(len(self.admin.describe_topics(["admin-a"])[0]["partitions"]), 5)
        self.admin.delete_topics(["admin-a"])
        with self.assertRaises(UnknownTopicOrPartitionError):
            self.admin.delete_topics(["admin-a"])

    def test_settings_of_topics(self):
        self.broker.create("admin-config", 1)
        config = lambda: self.admin.describe_configs([ConfigResource("topic", "admin-config")], config_filter="all")["topic"]["admin-config"]
        self.assertEqual(config()["retention.ms"]["value"], "604800000")
        for incremental in (True, False):
            with self.subTest(incremental=incremental):
                self.admin.alter_configs([ConfigResource("topic", "admin-config", {"retention.ms": "86400000"})], incremental=incremental)
                self.assertEqual(config()["retention.ms"]["value"], "86400000")
                self.admin.reset_configs([ConfigResource("topic", "admin-config", ["retention.ms"])], incremental=incremental)
                self.assertEqual(config()["retention.ms"]["value"], "604800000")

    def test_the_cluster_and_its_log_directories_are_described(self):
        self.broker.create("admin-dirs", 2)
        self.send("admin-dirs", ["x" * 1000] * 10, partitions=2)
        cluster = self.admin.describe_cluster()
        ids = [broker["broker_id"] for broker in cluster["brokers"]]
        self.assertIn(cluster["controller_id"], ids)
        sizes = collections.defaultdict(list)
        for broker in self.admin.describe_log_dirs():
            for directory in broker["log_dirs"]:
                for topic in directory["topics"]:
                    for partition in topic["partitions"]:
                        if topic["name"] == "admin-dirs":
                            sizes[partition["partition_index"]].append(partition["partition_size"])
        self.assertEqual(sorted(sizes), [0, 1])
        for each in sizes.values():
            self.assertEqual(len(each), self.broker.REPLICAS, "each replica is counted once")
            self.assertTrue(all(5000 <= size < 100_000 for size in each), sizes)


class Groups(WithKafkaPython):
    def in_group(self, group, *topics, **settings):
        return self.consumer(*topics, group_id=group, session_timeout_ms=6000, heartbeat_interval_ms=500, **settings)

    def test_a_commit_is_kept_with_its_metadata(self):
        self.broker.create("group-commit", 2)
        self.send("group-commit", [str(n) for n in range(20)], partitions=2)
        first = self.in_group("commit", "group-commit")
        self.read(first, 20)
        zero, one = TopicPartition("group-commit", 0), TopicPartition("group-commit", 1)
        first.commit({zero: OffsetAndMetadata(4, "noted", -1), one: OffsetAndMetadata(6, "", -1)})
        self.assertEqual((first.committed(zero), first.committed(one)), (4, 6))
        self.assertEqual(first.committed(zero, metadata=True).metadata, "noted")
        first.close()
        again = self.in_group("commit", "group-commit")
        read = self.read(again, 10)
        self.assertEqual(sorted((r.partition, r.offset) for r in read), [(0, n) for n in range(4, 10)] + [(1, n) for n in range(6, 10)])

    def test_two_members_share_and_one_takes_over(self):
        self.broker.create("group-shared", 4)
        members = [Member(self, "shared") for _ in range(2)]
        for member in members:
            self.addCleanup(member.stop)
        self.until(lambda: all(len(member.assignment) == 2 for member in members), members)
        self.assertEqual(members[0].assignment | members[1].assignment, set(range(4)))
        members[1].stop()
        self.until(lambda: len(members[0].assignment) == 4, members)

    def until(self, holds, members):
        begun = time.monotonic()
        while not holds():
            self.assertLess(time.monotonic() - begun, PATIENCE, [(member.assignment, member.failure) for member in members])
            time.sleep(0.05)

    def test_groups_are_listed_described_altered_and_deleted(self):
        self.broker.create("group-admin", 2)
        self.send("group-admin", [str(n) for n in range(20)], partitions=2)
        consumer = self.in_group("administered", "group-admin", client_id="client-of-a-check")
        self.read(consumer, 20)
        consumer.commit()
        listed = {group["group_id"]: group for group in self.admin.list_groups()}
        self.assertEqual(listed["administered"]["protocol_type"], "consumer")
        self.assertEqual(listed["administered"]["group_state"], "Stable")
        self.assertIn("administered", [group["group_id"] for group in self.admin.list_groups(states_filter=["Stable"])])
        self.assertNotIn("administered", [group["group_id"] for group in self.admin.list_groups(states_filter=["Empty"])])
        described = self.admin.describe_groups(["administered"])["administered"]
        self.assertEqual((described["group_state"], described["protocol_type"], described["protocol_data"]), ("Stable", "consumer", "range"))
        (member,) = described["members"]
        self.assertEqual(member["client_id"], "client-of-a-check")
        self.assertEqual(self.admin.delete_groups(["administered"]), {"administered": "NonEmptyGroupError"})
        consumer.close()
        self.assertEqual(self.admin.describe_groups(["administered"])["administered"]["group_state"], "Empty")
        zero, one = TopicPartition("group-admin", 0), TopicPartition("group-admin", 1)
        offsets = lambda: {partition: done.offset for partition, done in self.admin.list_group_offsets("administered")["administered"].items()}
        self.assertEqual(offsets(), {zero: 10, one: 10})
        self.admin.alter_group_offsets("administered", {one: OffsetAndMetadata(3, "", -1)})
        self.assertEqual(offsets(), {zero: 10, one: 3})
        self.admin.delete_group_offsets("administered", [one])
        self.assertEqual(offsets(), {zero: 10})
        self.assertEqual(self.admin.delete_groups(["administered"]), {"administered": "OK"})
        self.assertNotIn("administered", [group["group_id"] for group in self.admin.list_groups()])


class Member:
    """A consumer that polls in a thread of its own, as kafka-python's consumers may wait in a poll for the others of their group."""

    def __init__(self, case, group):
        self.assignment, self.failure = set(), None
        self.over = threading.Event()
        self.consumer = case.in_group(group, "group-shared")
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self):
        try:
            while not self.over.is_set():
                self.consumer.poll(timeout_ms=100)
                self.assignment = {partition.partition for partition in self.consumer.assignment()}
            self.consumer.close()
        except Exception as failure:
            self.failure = failure

    def stop(self):
        self.over.set()
        self.thread.join(PATIENCE)
