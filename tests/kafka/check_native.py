"""Corelane's own client and Kafka's clients read what the others wrote: records, keys, headers, times, batches of every codec."""

import json
import subprocess
import time

import brokers
import kit
from confluent_kafka import Consumer, Producer, TopicPartition
from kafka import KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPythonPartition

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
COUNT = 1000
PATIENCE = 60
LONG_AGO = 1_600_000_000_000
# Large enough for batches of several compressed blocks.
TEXT = "a text that repeats itself, " * 20


class Native(brokers.Case):
    """Only against Corelane: Apache Kafka has no native protocol."""

    def native(self, topic):
        """What `corelane consume` reads: key, value, headers, time, by place."""
        lines = self.broker.run("consume", topic, "--exit-at-end", "--json").splitlines()
        records = [json.loads(line) for line in lines]
        return {(r["partition"], r["offset"]): (r["key"], r["payload"], [tuple(header) for header in r["headers"]], r["ts"]) for r in records}

    def expected(self, number):
        """Key, value, headers and time of a record."""
        key = f"key {number}" if number % 3 else None
        headers = [("origin", "a client"), ("empty", "")][: number % 3]
        return key, f"{number} {TEXT}", headers, LONG_AGO + number

    def test_native_reads_what_librdkafka_wrote(self):
        for codec in CODECS:
            with self.subTest(codec=codec):
                topic, places = f"librdkafka-{codec}", {}
                self.broker.create(topic, 2, retention_ms=-1)
                producer = Producer({"bootstrap.servers": self.broker.bootstrap, "compression.type": codec, "linger.ms": 50})
                for number in range(COUNT):
                    key, value, headers, when = self.expected(number)
                    noted = lambda error, message, number=number: places.update({(message.partition(), message.offset()): number})
                    producer.produce(topic, value, key, partition=number % 2, headers=headers, timestamp=when, on_delivery=noted)
                self.assertEqual(producer.flush(PATIENCE), 0)
                self.assertEqual(self.native(topic), {place: self.expected(number) for place, number in places.items()})

    def test_native_reads_what_kafka_python_wrote(self):
        for codec in CODECS:
            with self.subTest(codec=codec):
                topic = f"kafka-python-{codec}"
                self.broker.create(topic, 2, retention_ms=-1)
                producer = KafkaProducer(bootstrap_servers=self.broker.bootstrap, compression_type=None if codec == "none" else codec, linger_ms=50)
                futures = []
                for number in range(COUNT):
                    key, value, headers, when = self.expected(number)
                    headers = [(name, text.encode()) for name, text in headers]
                    futures.append(producer.send(topic, value.encode(), key and key.encode(), headers, partition=number % 2, timestamp_ms=when))
                places = [future.get(PATIENCE) for future in futures]
                producer.close(PATIENCE)
                self.assertEqual(self.native(topic), {(at.partition, at.offset): self.expected(number) for number, at in enumerate(places)})

    def test_native_reads_what_java_wrote(self):
        for codec in CODECS:
            with self.subTest(codec=codec):
                topic = f"java-{codec}"
                self.broker.create(topic, 1)
                lines = "".join(f"origin:java\tkey {number}\t{number} {TEXT}\n" for number in range(COUNT))
                properties = [f"--reader-property={one}=true" for one in ("parse.key", "parse.headers")]
                tool = kit.java("org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", self.broker.bootstrap, "--topic", topic)
                kit.run([*tool, "--compression-codec", codec, *properties], input=lines)
                records = self.native(topic)
                read = [(key, value, headers) for _, (key, value, headers, _) in sorted(records.items())]
                self.assertEqual(read, [(f"key {n}", f"{n} {TEXT}", [("origin", "java")]) for n in range(COUNT)])

    def test_kafka_clients_read_what_native_wrote(self):
        for codec in CODECS:
            with self.subTest(codec=codec):
                topic = f"native-{codec}"
                self.broker.create(topic, 1)
                lines = "".join(f"key {number}:{number} {TEXT}\n" if number % 3 else f"{number} {TEXT}\n" for number in range(COUNT))
                before = time.time() * 1000
                self.broker.run("produce", topic, "--key-separator", ":", "--compression", codec, input=lines)
                wanted = sorted((number, f"key {number}" if number % 3 else None) for number in range(COUNT))
                readers = {"kcat": self.kcat, "librdkafka": self.librdkafka, "kafka-python": self.kafka_python, "java": self.java}
                # A JVM's start takes longer than all others together.
                for name in readers if codec in ("snappy", "lz4") else list(readers)[:3]:
                    records = readers[name](topic)
                    self.assertEqual(sorted((int(value.split()[0]), key) for key, value, _ in records), wanted, name)
                    self.assertTrue(all(value.endswith(TEXT) for _, value, _ in records), name)
                    self.assertTrue(all(before - 1000 <= when <= time.time() * 1000 + 1000 for _, _, when in records), name)

    def kcat(self, topic):
        lines = kit.run(["kcat", "-b", self.broker.bootstrap, "-q", "-J", "-C", "-t", topic, "-e"]).splitlines()
        return [(record["key"], record["payload"], record["ts"]) for record in map(json.loads, lines)]

    def librdkafka(self, topic):
        settings = {"bootstrap.servers": self.broker.bootstrap, "group.id": "unused", "enable.auto.commit": False, "check.crcs": True}
        consumer = Consumer(settings)
        consumer.assign([TopicPartition(topic, 0, 0)])
        messages = consumer.consume(COUNT, PATIENCE)
        consumer.close()
        text = lambda value: None if value is None else value.decode()
        return [(text(message.key()), text(message.value()), message.timestamp()[1]) for message in messages]

    def kafka_python(self, topic):
        consumer = KafkaConsumer(bootstrap_servers=self.broker.bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=PATIENCE * 1000)
        consumer.assign([KafkaPythonPartition(topic, 0)])
        records = [next(consumer) for _ in range(COUNT)]
        consumer.close()
        return [(record.key and record.key.decode(), record.value.decode(), record.timestamp) for record in records]

    def java(self, topic):
        tool = kit.java("org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", self.broker.bootstrap, "--topic", topic)
        printed = [f"--formatter-property=print.{what}=true" for what in ("key", "timestamp")]
        said = kit.run([*tool, "--partition", "0", "--offset", "earliest", "--max-messages", str(COUNT), *printed]).decode()
        split = [line.split("\t") for line in said.splitlines() if line.startswith("CreateTime:")]
        return [(None if key == "null" else key, value, int(when.removeprefix("CreateTime:"))) for when, key, value in split]


class SharedGroups(brokers.Case):
    """One group of members of both protocols, one after the other and at the same time."""

    TOTAL = 400

    def fill(self, topic):
        self.broker.create(topic, 4)
        producer = Producer({"bootstrap.servers": self.broker.bootstrap})
        for number in range(self.TOTAL):
            producer.produce(topic, str(number), partition=number % 4)
        self.assertEqual(producer.flush(PATIENCE), 0)

    def kcat(self, topic, group, count):
        settings = ["-X", "auto.offset.reset=earliest"]
        command = ["kcat", "-b", self.broker.bootstrap, "-q", *settings, "-f", "%s\n", "-c", str(count), "-G", group, topic]
        return [int(line) for line in kit.run(command).splitlines()]

    def native(self, topic, group, count):
        said = self.broker.run("consume", topic, "--group", group, "--from-beginning", "--count", str(count))
        return [int(line) for line in said.splitlines()]

    def described(self, group):
        return json.loads(kit.run([kit.corelane(), "group", "describe", group, "--broker", self.broker.bootstrap, "--json"]))

    def committed(self, group):
        """As a Kafka client is told."""
        consumer = Consumer({"bootstrap.servers": self.broker.bootstrap, "group.id": group, "enable.auto.commit": False})
        asked = [TopicPartition(group, partition) for partition in range(4)]
        found = {one.partition: one.offset for one in consumer.committed(asked, timeout=PATIENCE) if one.offset > 0}
        consumer.close()
        return found

    def test_each_goes_on_where_the_other_stopped(self):
        for first, second in [(self.kcat, self.native), (self.native, self.kcat)]:
            with self.subTest(first=first.__name__):
                # The topic is called as the group.
                name = f"shared-{first.__name__}"
                self.fill(name)
                one = first(name, name, 150)
                told = {position["partition"]: position["offset"] for position in self.described(name)["positions"]}
                self.assertEqual(sum(told.values()), 150)
                self.assertEqual({partition: offset for partition, offset in told.items() if offset}, self.committed(name))
                two = second(name, name, self.TOTAL - 150)
                self.assertEqual(sorted(one + two), list(range(self.TOTAL)))
                described = self.described(name)
                self.assertEqual((described["state"], [position["lag"] for position in described["positions"]]), ("Empty", [0] * 4))

    def test_both_are_members_of_one_generation(self):
        name = "mixed"
        self.fill(name)
        settings = ["-X", "auto.offset.reset=earliest", "-X", "session.timeout.ms=6000", "-X", "partition.assignment.strategy=range"]
        commands = [
            ["kcat", "-b", self.broker.bootstrap, "-q", "-u", *settings, "-G", name, name],
            [kit.corelane(), "consume", name, "--group", name, "--from-beginning", "--broker", self.broker.bootstrap],
        ]
        members = []
        try:
            for command in commands:
                members.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            begun, shares = time.monotonic(), None
            while shares != [2, 2]:
                self.assertLess(time.monotonic() - begun, PATIENCE, f"{shares}")
                time.sleep(0.2)
                self.assertEqual([member.poll() for member in members], [None, None])
                # Until the first has joined there is no group.
                groups = kit.run([kit.corelane(), "group", "list", "--broker", self.broker.bootstrap]).decode().split()
                joined = self.described(name)["members"] if name in groups else []
                shares = [len(member["partitions"].get(name, [])) for member in joined]
            lag = None
            while lag != [0] * 4:
                self.assertLess(time.monotonic() - begun, PATIENCE, f"{lag}")
                time.sleep(0.2)
                lag = [position["lag"] for position in self.described(name)["positions"]]
        finally:
            for member in members:
                member.kill()
                member.wait()
