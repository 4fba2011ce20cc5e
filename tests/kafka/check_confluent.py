"""confluent-kafka (librdkafka as PyPI has it): codecs, keys, headers, times, idempotence, administration, groups."""

import time

import brokers
from brokers import PATIENCE
from confluent_kafka import OFFSET_BEGINNING, Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic, OffsetSpec, ResourceType

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


class WithConfluent(brokers.Case):
    def producer(self, **settings):
        return Producer({"bootstrap.servers": self.broker.bootstrap, **dotted(settings)})

    def consumer(self, **settings):
        fixed = {"bootstrap.servers": self.broker.bootstrap, "group.id": "unused", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
        consumer = Consumer({**fixed, **dotted(settings)})
        self.addCleanup(consumer.close)
        return consumer

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.admin = AdminClient({"bootstrap.servers": cls.broker.bootstrap})

    def send(self, topic, values, **settings):
        """Sends the values, one by one to partitions in turn if a number of partitions is given, and waits for every acknowledgement."""
        partitions = settings.pop("partitions", None)
        producer, failed = self.producer(**settings), []
        for number, value in enumerate(values):
            where = {"partition": number % partitions} if partitions else {}
            producer.produce(topic, value=value, on_delivery=lambda error, _: failed.append(error) if error else None, **where)
        self.assertEqual(producer.flush(PATIENCE), 0)
        self.assertEqual(failed, [])

    def read(self, consumer, count, also=()):
        """The next `count` messages; the consumers of `also` are polled too, and what they get counts."""
        messages, begun = [], time.monotonic()
        while len(messages) < count:
            self.assertLess(time.monotonic() - begun, PATIENCE, f"{len(messages)} of {count} messages")
            for one in (consumer, *also):
                message = one.poll(0.05)
                if message is not None:
                    self.assertIsNone(message.error())
                    messages.append(message)
        return messages


def dotted(settings):
    return {name.replace("_", "."): value for name, value in settings.items()}


class Records(WithConfluent):
    def test_keys_headers_times_and_codecs(self):
        for codec in CODECS:
            with self.subTest(codec=codec):
                topic = f"confluent-{codec}"
                self.broker.create(topic, 3, retention_ms=-1)
                producer = self.producer(compression_type=codec, linger_ms=50)
                sent = {}
                for n in range(1500):
                    key = None if n % 7 == 0 else f"key {n}".encode()
                    value = None if n % 11 == 0 else f"value {n} of a text that repeats itself, repeats itself".encode()
                    headers = [("a", b"1"), ("a", b"2"), ("none", None), ("empty", b"")][: n % 5]
                    when = 1_600_000_000_000 + n * 1000
                    producer.produce(topic, value, key, partition=n % 3, headers=headers, timestamp=when)
                    sent[n % 3, n // 3] = (key, value, headers or None, (1, when))
                self.assertEqual(producer.flush(PATIENCE), 0)
                consumer = self.consumer()
                consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(3)])
                seen = {(m.partition(), m.offset()): (m.key(), m.value(), m.headers(), m.timestamp()) for m in self.read(consumer, 1500)}
                self.assertEqual(seen, sent)

    def test_times_of_the_broker(self):
        self.broker.create("confluent-append-time", 1, message_timestamp_type="LogAppendTime")
        before, times = int(time.time() * 1000), []
        producer = self.producer()
        producer.produce("confluent-append-time", b"x", timestamp=1, on_delivery=lambda _, message: times.append(message.timestamp()))
        producer.flush(PATIENCE)
        consumer = self.consumer()
        consumer.assign([TopicPartition("confluent-append-time", 0, 0)])
        (message,) = self.read(consumer, 1)
        kind, when = message.timestamp()
        self.assertEqual(kind, 2)
        self.assertTrue(before - 1000 <= when <= before + 60_000, (before, when))
        self.assertEqual(times[0][1], when)

    def test_idempotence_and_all_settings_of_acks(self):
        for settings in [{"acks": "0"}, {"acks": "1"}, {"acks": "all"}, {"enable_idempotence": True}]:
            with self.subTest(settings=settings):
                topic = "confluent-" + "-".join(f"{k}-{v}" for k, v in settings.items())
                self.broker.create(topic, 2)
                self.send(topic, [str(n) for n in range(2000)], partitions=2, **settings)
                consumer = self.consumer()
                consumer.assign([TopicPartition(topic, partition, 0) for partition in range(2)])
                read = [(m.partition(), int(m.value())) for m in self.read(consumer, 2000)]
                for partition in range(2):
                    self.assertEqual([value for where, value in read if where == partition], list(range(partition, 2000, 2)))

    def test_offsets_for_times_and_watermarks(self):
        topic = "confluent-times"
        self.broker.create(topic, 1, retention_ms=-1)
        producer = self.producer()
        for n in range(10):
            producer.produce(topic, str(n), timestamp=1_600_000_000_000 + n * 1000)
        producer.flush(PATIENCE)
        consumer = self.consumer()
        self.assertEqual(consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=PATIENCE), (0, 10))
        at = lambda when: consumer.offsets_for_times([TopicPartition(topic, 0, when)], timeout=PATIENCE)[0].offset
        self.assertEqual(at(1_600_000_003_000), 3)
        self.assertEqual(at(1_600_000_003_001), 4)
        # Behind the last: the end, which librdkafka gives as -1.
        self.assertEqual(at(1_700_000_000_000), -1)

    def test_a_record_too_large_is_refused(self):
        self.broker.create("confluent-small", 1, max_message_bytes=1000)
        producer, failed = self.producer(), []
        producer.produce("confluent-small", b"x" * 2000, on_delivery=lambda error, _: failed.append(error.code()))
        producer.flush(PATIENCE)
        self.assertEqual(failed, [KafkaError.MSG_SIZE_TOO_LARGE])

    def test_an_offset_out_of_range_is_an_error_if_asked_for(self):
        self.broker.create("confluent-range", 1)
        self.send("confluent-range", ["a"])
        consumer = self.consumer(auto_offset_reset="error")
        consumer.assign([TopicPartition("confluent-range", 0, 100)])
        message = None
        begun = time.monotonic()
        while message is None and time.monotonic() - begun < PATIENCE:
            message = consumer.poll(0.2)
        self.assertEqual(message.error().code(), KafkaError._AUTO_OFFSET_RESET)


class Administration(WithConfluent):
    def error_of(self, future):
        with self.assertRaises(KafkaException) as refused:
            future.result(PATIENCE)
        return refused.exception.args[0].code()

    def test_topics_are_created_described_grown_and_deleted(self):
        admin = self.admin
        create = lambda topic: admin.create_topics([topic])[topic.topic]
        create(NewTopic("admin-a", 3, 1, config={"retention.ms": "1234567"})).result(PATIENCE)
        self.assertEqual(self.error_of(create(NewTopic("admin-a", 3, 1))), KafkaError.TOPIC_ALREADY_EXISTS)
        self.assertEqual(self.error_of(create(NewTopic("admin-b", 3, 4))), KafkaError.INVALID_REPLICATION_FACTOR)
        self.assertEqual(self.error_of(create(NewTopic("admin-b", 0, 1))), KafkaError.INVALID_PARTITIONS)
        self.assertEqual(self.error_of(create(NewTopic("bad/name", 1, 1))), KafkaError.TOPIC_EXCEPTION)
        self.assertEqual(self.error_of(create(NewTopic("admin-b", 1, 1, config={"retention.ms": "soon"}))), KafkaError.INVALID_CONFIG)
        self.assertNotIn("admin-b", admin.list_topics(timeout=PATIENCE).topics)
        admin.create_partitions([NewPartitions("admin-a", 5)])["admin-a"].result(PATIENCE)
        self.assertEqual(self.error_of(admin.create_partitions([NewPartitions("admin-a", 4)])["admin-a"]), KafkaError.INVALID_PARTITIONS)
        self.assertEqual(sorted(admin.list_topics("admin-a", timeout=PATIENCE).topics["admin-a"].partitions), list(range(5)))
        admin.delete_topics(["admin-a"])["admin-a"].result(PATIENCE)
        self.assertEqual(self.error_of(admin.delete_topics(["admin-a"])["admin-a"]), KafkaError.UNKNOWN_TOPIC_OR_PART)
        self.assertNotIn("admin-a", admin.list_topics(timeout=PATIENCE).topics)

    def config(self, resource):
        described = self.admin.describe_configs([resource])[resource].result(PATIENCE)
        return {name: (entry.value, entry.is_default) for name, entry in described.items()}

    def test_settings_of_topics(self):
        self.broker.create("admin-config", 1)
        admin, resource = self.admin, ConfigResource(ResourceType.TOPIC, "admin-config")
        self.assertEqual(self.config(resource)["cleanup.policy"], ("delete", True))
        change = lambda name, value, how: ConfigResource(
            ResourceType.TOPIC, "admin-config", incremental_configs=[ConfigEntry(name, value, incremental_operation=how)]
        )
        apply = lambda changed: admin.incremental_alter_configs([changed])[changed]
        apply(change("retention.ms", "86400000", AlterConfigOpType.SET)).result(PATIENCE)
        self.assertEqual(self.config(resource)["retention.ms"], ("86400000", False))
        self.assertEqual(self.error_of(apply(change("retention.ms", "soon", AlterConfigOpType.SET))), KafkaError.INVALID_CONFIG)
        apply(change("retention.ms", None, AlterConfigOpType.DELETE)).result(PATIENCE)
        self.assertEqual(self.config(resource)["retention.ms"], ("604800000", True))

    def test_settings_of_a_broker(self):
        broker = min(self.admin.list_topics(timeout=PATIENCE).brokers)
        self.assertTrue(self.config(ConfigResource(ResourceType.BROKER, str(broker))))

    def test_records_are_deleted_and_offsets_listed(self):
        self.broker.create("admin-records", 1)
        self.send("admin-records", [str(n) for n in range(20)])
        admin, partition = self.admin, TopicPartition("admin-records", 0, 7)
        self.assertEqual(list(admin.delete_records([partition]).values())[0].result(PATIENCE).low_watermark, 7)
        offset = lambda spec: list(admin.list_offsets({TopicPartition("admin-records", 0): spec}).values())[0].result(PATIENCE).offset
        self.assertEqual((offset(OffsetSpec.earliest()), offset(OffsetSpec.latest())), (7, 20))
        self.assertEqual(offset(OffsetSpec.for_timestamp(1)), 7)
        beyond = TopicPartition("admin-records", 0, 100)
        self.assertEqual(self.error_of(list(admin.delete_records([beyond]).values())[0]), KafkaError.OFFSET_OUT_OF_RANGE)

    def test_the_cluster_is_described(self):
        cluster = self.admin.describe_cluster().result(PATIENCE)
        self.assertIn(cluster.controller.id, [node.id for node in cluster.nodes])
        self.assertTrue(cluster.cluster_id)


class Groups(WithConfluent):
    def in_group(self, group, topics, **settings):
        consumer = self.consumer(group_id=group, session_timeout_ms=6000, heartbeat_interval_ms=500, **settings)
        consumer.subscribe(topics)
        return consumer

    def test_a_commit_is_kept_with_its_metadata(self):
        self.broker.create("group-commit", 2)
        self.send("group-commit", [str(n) for n in range(20)], partitions=2)
        first = self.in_group("commit", ["group-commit"])
        self.read(first, 20)
        wanted = [TopicPartition("group-commit", 0, 4, "noted"), TopicPartition("group-commit", 1, 6)]
        self.assertTrue(all(done.error is None for done in first.commit(offsets=wanted, asynchronous=False)))
        committed = first.committed([TopicPartition("group-commit", n) for n in range(2)], timeout=PATIENCE)
        self.assertEqual([(done.offset, done.metadata or "") for done in committed], [(4, "noted"), (6, "")])
        first.close()
        again = self.in_group("commit", ["group-commit"])
        read = self.read(again, 10)
        self.assertEqual(sorted((m.partition(), m.offset()) for m in read), [(0, n) for n in range(4, 10)] + [(1, n) for n in range(6, 10)])
        self.assertEqual(again.committed([TopicPartition("group-commit", 0)], timeout=PATIENCE)[0].offset, 4)

    def test_automatic_commits(self):
        self.broker.create("group-auto", 1)
        self.send("group-auto", ["a", "b", "c"])
        consumer = self.in_group("auto", ["group-auto"], enable_auto_commit=True)
        self.read(consumer, 3)
        consumer.close()
        committed = self.consumer(group_id="auto").committed([TopicPartition("group-auto", 0)], timeout=PATIENCE)
        self.assertEqual(committed[0].offset, 3)

    def test_two_members_share_and_one_takes_over(self):
        self.broker.create("group-shared", 4)
        for strategy in ["range", "roundrobin", "cooperative-sticky"]:
            with self.subTest(strategy=strategy):
                group = f"shared-{strategy}"
                one = self.in_group(group, ["group-shared"], partition_assignment_strategy=strategy)
                two = self.in_group(group, ["group-shared"], partition_assignment_strategy=strategy)
                self.until(lambda: len(one.assignment()) == len(two.assignment()) == 2, [one, two])
                parts = lambda consumer: {partition.partition for partition in consumer.assignment()}
                self.assertEqual(parts(one) | parts(two), set(range(4)))
                two.close()
                self.until(lambda: len(one.assignment()) == 4, [one])
                one.close()

    def until(self, holds, consumers):
        begun = time.monotonic()
        while not holds():
            self.assertLess(time.monotonic() - begun, PATIENCE, [consumer.assignment() for consumer in consumers])
            for consumer in consumers:
                message = consumer.poll(0.05)
                self.assertTrue(message is None or message.error() is None, message and message.error())

    def test_a_static_member_comes_back_to_its_partitions(self):
        self.broker.create("group-static", 2)
        settings = {"group_id": "static", "session_timeout_ms": 30_000, "heartbeat_interval_ms": 500}
        join = lambda name: self.consumer(group_instance_id=name, **settings)
        one, two = join("one"), join("two")
        for consumer in (one, two):
            consumer.subscribe(["group-static"])
        self.until(lambda: len(one.assignment()) == len(two.assignment()) == 1, [one, two])
        had = two.assignment()[0].partition
        kept = one.assignment()[0].partition
        # A static member that is closed does not leave.
        two.close()
        back = join("two")
        back.subscribe(["group-static"])
        self.until(lambda: len(back.assignment()) == 1, [one, back])
        self.assertEqual((back.assignment()[0].partition, one.assignment()[0].partition), (had, kept))

    def test_groups_are_listed_described_altered_and_deleted(self):
        self.broker.create("group-admin", 2)
        self.send("group-admin", [str(n) for n in range(20)], partitions=2)
        consumer = self.in_group("administered", ["group-admin"], client_id="client-of-a-check")
        self.read(consumer, 20)
        consumer.commit(asynchronous=False)
        admin = self.admin
        listed = admin.list_consumer_groups().result(PATIENCE)
        self.assertEqual(listed.errors, [])
        self.assertIn("administered", [group.group_id for group in listed.valid])
        described = admin.describe_consumer_groups(["administered"])["administered"].result(PATIENCE)
        self.assertEqual((described.state.name, described.partition_assignor), ("STABLE", "range"))
        (member,) = described.members
        self.assertEqual((member.client_id, member.member_id), ("client-of-a-check", consumer.memberid()))
        self.assertEqual([(p.topic, p.partition) for p in member.assignment.topic_partitions], [("group-admin", 0), ("group-admin", 1)])
        delete = lambda: admin.delete_consumer_groups(["administered"])["administered"]
        with self.assertRaises(KafkaException) as refused:
            delete().result(PATIENCE)
        self.assertEqual(refused.exception.args[0].code(), KafkaError.NON_EMPTY_GROUP)
        consumer.close()
        described = admin.describe_consumer_groups(["administered"])["administered"].result(PATIENCE)
        self.assertEqual((described.state.name, described.members), ("EMPTY", []))
        asked = ConsumerGroupTopicPartitions("administered")
        listed = lambda: admin.list_consumer_group_offsets([asked])["administered"].result(PATIENCE)
        offsets = lambda: {one.partition: one.offset for one in listed().topic_partitions}
        self.assertEqual(offsets(), {0: 10, 1: 10})
        altered = ConsumerGroupTopicPartitions("administered", [TopicPartition("group-admin", 1, 3)])
        admin.alter_consumer_group_offsets([altered])["administered"].result(PATIENCE)
        self.assertEqual(offsets(), {0: 10, 1: 3})
        delete().result(PATIENCE)
        self.assertNotIn("administered", [group.group_id for group in admin.list_consumer_groups().result(PATIENCE).valid])

    def test_a_pattern_finds_topics_that_come_later(self):
        self.broker.create("pattern-a", 1)
        consumer = self.in_group("pattern", ["^pattern-.*"], topic_metadata_refresh_interval_ms=500)
        self.until(lambda: len(consumer.assignment()) == 1, [consumer])
        self.broker.create("pattern-b", 1)
        self.until(lambda: len(consumer.assignment()) == 2, [consumer])

    def test_commits_outlive_a_kill_of_the_broker(self):
        self.broker.create("group-kill", 1)
        self.send("group-kill", ["a", "b", "c"])
        consumer = self.in_group("killed", ["group-kill"])
        self.read(consumer, 3)
        consumer.commit(asynchronous=False)
        self.broker.kill()
        self.broker.start()
        self.send("group-kill", ["d"])
        # The member finds its group again; nothing that was committed comes again.
        (message,) = self.read(consumer, 1)
        self.assertEqual((message.value(), message.offset()), (b"d", 3))
        committed = consumer.committed([TopicPartition("group-kill", 0)], timeout=PATIENCE)
        self.assertEqual(committed[0].offset, 3)
