"""Kafka's VerifiableProducer and VerifiableConsumer while the broker is killed again and again: every record that was acknowledged is read,
at the offset and with the value that were acknowledged.

In CI 3 kills; `tests/kafka/run verifiable --long` has 20.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import unittest
from dataclasses import dataclass, field

import brokers
import kit
from confluent_kafka import ConsumerGroupTopicPartitions
from confluent_kafka.admin import AdminClient

TOPIC, GROUP, PARTITIONS = "verified", "verifiers", 6
RECORDS_PER_SECOND = 2000
# At least so many acknowledgements between two kills.
ACKS_BETWEEN_KILLS = 1000
# For that, and for the rest to be read at the end, seconds.
PATIENCE = 90
# Faults that are described; the rest are counted.
DESCRIBED = 5


@dataclass
class Ledger:
    """What was acknowledged against what was read; both by partition and offset."""

    acknowledged: dict = field(default_factory=dict)
    read: dict = field(default_factory=dict)
    faults: list = field(default_factory=list)

    def acknowledge(self, place, value):
        before = self.acknowledged.setdefault(place, value)
        if before != value:
            self.faults.append(f"{place} was given to {before} and {value}")

    def observe(self, place, value):
        before = self.read.setdefault(place, value)
        if before != value:
            self.faults.append(f"{place} had {before} and has {value}")

    def missing(self):
        return [place for place in self.acknowledged if place not in self.read]

    def verdict(self):
        """Words for each fault, if the reading is over."""
        lost = [f"lost: {place} {self.acknowledged[place]}" for place in self.missing()]
        changed = [
            f"{place} has {self.read[place]}, acknowledged was {value}"
            for place, value in self.acknowledged.items()
            if self.read.get(place, value) != value
        ]
        found = self.faults + lost + changed
        return found and [f"{len(found)} faults", *found[:DESCRIBED]]


class Tool:
    """A tool that prints a line of JSON for all that happens, which `noted` is given."""

    def __init__(self, broker, name, noted, *words):
        self.name = name
        self.log = broker.directory / f"{name}.log"
        command = kit.java(f"org.apache.kafka.tools.{name}", "--bootstrap-server", broker.bootstrap, "--topic", TOPIC, *words, options=["-Xmx256m"])
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
        self.noted, self.last = noted, ""
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()

    def follow(self):
        for line in self.process.stdout:
            self.last = line
            self.noted(json.loads(line))

    def expect_running(self):
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended by itself with {self.process.returncode}: {self.last} {self.log.read_text()[-2000:]}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        self.thread.join()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.thread.join()
        self.process.stdout.close()


class Verifiable(brokers.Case):
    def test_nothing_acknowledged_is_lost_across_kills(self):
        kills = 20 if os.environ["INTEROP_LONG"] else 3
        chance = random.Random(int(os.environ["INTEROP_SEED"] or random.randrange(1 << 32)))
        self.broker.create(TOPIC, PARTITIONS)
        self.ledger, self.events = Ledger(), []
        producer = Tool(self.broker, "VerifiableProducer", self.sent, "--throughput", str(RECORDS_PER_SECOND), "--repeating-keys", "100")
        self.addCleanup(producer.close)
        consumer = Tool(self.broker, "VerifiableConsumer", self.consumed, "--group-id", GROUP, "--verbose", "--session-timeout", "6000")
        self.addCleanup(consumer.close)
        tools = [producer, consumer]
        for _ in range(kills):
            self.wait_for_more(ACKS_BETWEEN_KILLS, tools)
            time.sleep(chance.uniform(0, 0.5))
            self.broker.kill()
            time.sleep(chance.uniform(0, 1))
            self.broker.start()
        self.wait_for_more(ACKS_BETWEEN_KILLS, tools)
        producer.stop()
        begun = time.monotonic()
        while self.ledger.missing() or self.behind():
            consumer.expect_running()
            if time.monotonic() - begun > PATIENCE:
                self.fail(f"{self.ledger.verdict()}, behind {self.behind()}: {self.events[-10:]} {self.broker.last_words()}")
            time.sleep(0.2)
        consumer.stop()
        self.assertFalse(self.ledger.verdict())
        print(f"{kills} kills, {len(self.ledger.acknowledged)} acknowledged, {len(self.ledger.read)} read", file=sys.stderr)
        # The same run on a broker that forgets one record, or gives another in its place.
        place = next(iter(self.ledger.acknowledged))
        kept = self.ledger.read.pop(place)
        self.assertRegex(str(self.ledger.verdict()), "1 faults.*lost")
        self.ledger.read[place] = f"not {kept}"
        self.assertRegex(str(self.ledger.verdict()), "1 faults.*acknowledged was")

    def sent(self, event):
        if event["name"] == "producer_send_success":
            self.ledger.acknowledge((event["partition"], event["offset"]), event["value"])

    def consumed(self, event):
        if event["name"] == "record_data":
            self.ledger.observe((event["partition"], event["offset"]), event["value"])
        elif event["name"] != "records_consumed":
            self.events.append(event)

    def wait_for_more(self, count, tools):
        """Until so many more records are acknowledged."""
        enough, begun = len(self.ledger.acknowledged) + count, time.monotonic()
        while len(self.ledger.acknowledged) < enough:
            self.broker.expect_running()
            for tool in tools:
                tool.expect_running()
            missing = enough - len(self.ledger.acknowledged)
            self.assertLess(time.monotonic() - begun, PATIENCE, f"{missing} acknowledgements too few: {tools[0].last} {self.broker.last_words()}")
            time.sleep(0.02)

    def behind(self):
        """Where the group's committed position is not behind the last acknowledged record of a partition."""
        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap, "log_level": 2})
        answer = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(GROUP)])[GROUP].result(60)
        kept, ends = {one.partition: one.offset for one in answer.topic_partitions}, {}
        for partition, offset in list(self.ledger.acknowledged):
            ends[partition] = max(ends.get(partition, 0), offset + 1)
        return {partition: (kept.get(partition), end) for partition, end in ends.items() if kept.get(partition, 0) < end}


class Verdict(unittest.TestCase):
    """The ledger sees each fault."""

    def test_each_fault(self):
        ledger = Ledger()
        ledger.acknowledge((0, 1), "a")
        self.assertRegex(str(ledger.verdict()), "lost")
        ledger.observe((0, 1), "a")
        ledger.observe((0, 1), "a")
        self.assertFalse(ledger.verdict())
        ledger.observe((0, 1), "b")
        self.assertRegex(str(ledger.verdict()), "had a and has b")
        ledger = Ledger()
        ledger.acknowledge((0, 1), "a")
        ledger.acknowledge((0, 1), "b")
        self.assertRegex(str(ledger.verdict()), "given to a and b")
        ledger = Ledger({(0, 1): "a"}, {(0, 1): "b"})
        self.assertRegex(str(ledger.verdict()), "has b, acknowledged was a")
