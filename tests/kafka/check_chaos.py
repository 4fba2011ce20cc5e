"""Twelve members of a group, of three client libraries, come and go at random while records are sent: half of those that go are killed, some
only stop for longer than their session. Of a cluster, nodes are killed and stopped besides. Every record is handled, none by two members of one
generation, no commit is lost, and at the end nothing waits.

In CI for --seconds 30 and a fixed seed; `tests/kafka/run chaos --seconds 300 --seed S` is the long form.
"""

import collections
import os
import random
import signal
import subprocess
import sys
import threading
import time
import unittest

import brokers
import chaos_ledger
import kit
from chaos_ledger import Committed, Handled
from confluent_kafka import ConsumerGroupTopicPartitions, Producer
from confluent_kafka.admin import AdminClient
from kafka import KafkaProducer

PARTITIONS = 24
TOPIC, GROUP = "chaos", "chaos-group"
# Twelve; all know the strategies of STRATEGIES, and all but kafka-python know more.
KINDS = ["confluent"] * 6 + ["kafka_python"] * 4 + ["java"] * 2
STRATEGIES = {"range": KINDS, "roundrobin": KINDS, "cooperative-sticky": ["confluent"] * 9 + ["java"] * 3}
RECORDS_PER_SECOND = 1000
# How long a stopped member does nothing: longer than its session, seconds.
STOPPED = 8
# From one fault of a cluster's node to the next, seconds.
NODE_EVERY = 10
# After the last event, until nothing waits: a session, a rebalance and what is behind, on a busy machine, seconds.
SETTLE = 120


class Member:
    """A place for a member, empty or with a process."""

    def __init__(self, broker, number, kind, strategy):
        self.number, self.kind = number, kind
        self.words = [broker.bootstrap, GROUP, TOPIC, strategy]
        self.directory = broker.directory
        self.lists, self.process, self.back_at = [], None, 0

    def start(self):
        path = self.directory / f"member-{self.number}-{len(self.lists)}.list"
        self.lists.append(path)
        if self.kind == "java":
            command = kit.java("ChaosMember", *self.words, path, options=["-Xmx64m", "-XX:+UseSerialGC"])
        else:
            command = [sys.executable, kit.HERE / "chaos_member.py", self.kind, *self.words, path]
        environment = {**os.environ, "PYTHONPATH": str(kit.python_packages()), "PYTHONDONTWRITEBYTECODE": "1"}
        with open(path.with_suffix(".log"), "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def end(self, number):
        """SIGKILL, or SIGTERM after which it leaves the group."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        # One that had hardly begun ends as any process does; 143 is the JVM's word.
        if number == signal.SIGTERM and code not in (0, 143, -signal.SIGTERM):
            raise AssertionError(f"a member ended with {code}: {self.lists[-1].with_suffix('.log').read_text()[-2000:]}")
        self.process = None

    def expect_running(self):
        if self.process and self.process.poll() is not None:
            raise AssertionError(f"a member ended by itself: {self.lists[-1].with_suffix('.log').read_text()[-2000:]}")

    def events(self):
        for path in self.lists:
            if path.exists():
                yield from chaos_ledger.parse(path.stem, path.read_text())


class WithLibrdkafka:
    """A producer that tells `noted` of each record: an error or none, and its partition."""

    def __init__(self, bootstrap, noted):
        self.producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5, "log_level": 2})
        self.noted = lambda error, message: noted(error, message.partition())

    def send(self, value, partition):
        self.producer.produce(TOPIC, value, partition=partition, on_delivery=self.noted)

    def poll(self):
        self.producer.poll(0.01)

    def flush(self):
        return self.producer.flush(60)


class WithKafkaPython:
    """The same. It is asked of where nodes go: a producer of librdkafka may end its process then (librdkafka issue 5315: a null pointer when a broker goes)."""

    def __init__(self, bootstrap, noted):
        self.producer = KafkaProducer(bootstrap_servers=bootstrap.split(","), enable_idempotence=True, linger_ms=5)
        self.noted = noted

    def send(self, value, partition):
        sent = self.producer.send(TOPIC, value=value.encode(), partition=partition)
        sent.add_callback(lambda told: self.noted(None, told.partition))
        sent.add_errback(lambda error: self.noted(error, partition))

    def poll(self):
        time.sleep(0.01)

    def flush(self):
        self.producer.flush(60)
        return 0


class Sender(threading.Thread):
    """Sends at an even rate until it is told to stop, and knows what was acknowledged."""

    def __init__(self, broker):
        super().__init__(daemon=True)
        self.producer = (WithKafkaPython if broker.REPLICAS > 1 else WithLibrdkafka)(broker.bootstrap, self.noted)
        self.over, self.sent, self.failed = threading.Event(), collections.Counter(), []

    def run(self):
        begun, count = time.monotonic(), 0
        while not self.over.is_set():
            while count < (time.monotonic() - begun) * RECORDS_PER_SECOND:
                self.producer.send(str(count), count % PARTITIONS)
                count += 1
            self.producer.poll()

    def noted(self, error, partition):
        if error:
            self.failed.append(error)
        else:
            self.sent[partition] += 1

    def finish(self):
        self.over.set()
        self.join()
        waiting = self.producer.flush()
        if waiting or self.failed:
            raise AssertionError(f"{waiting} records without an answer, failed: {self.failed[:3]}")


class Chaos(brokers.Case):
    def test_members_come_and_go(self):
        seconds = int(os.environ["INTEROP_SECONDS"] or 30)
        seed = int(os.environ["INTEROP_SEED"] or (random.randrange(1 << 32) if os.environ["INTEROP_LONG"] else 1))
        chance = random.Random(seed)
        strategy = list(STRATEGIES)[seed % len(STRATEGIES)]
        print(f"seed {seed}, {strategy}, {seconds} s", file=sys.stderr, flush=True)
        self.broker.create(TOPIC, PARTITIONS)
        self.members = [Member(self.broker, number, kind, strategy) for number, kind in enumerate(STRATEGIES[strategy])]
        self.sender = Sender(self.broker)
        try:
            ended = self.come_and_go(chance, seconds)
            self.settle()
        except AssertionError as failed:
            raise AssertionError(f"seed {seed}: {failed}\n{self.story()}") from None
        finally:
            for member in self.members:
                if member.process:
                    member.process.kill()
                    member.process.wait()
        events = [event for member in self.members for event in member.events()]
        self.assertEqual(chaos_ledger.faults(self.sender.sent, events), [], f"seed {seed}")
        handled, generations = sum(isinstance(event, Handled) for event in events), {event.generation for event in events}
        records = sum(self.sender.sent.values())
        print(f"{records} records, {handled} handled, {len(generations)} generations with records, {dict(ended)}", file=sys.stderr)
        self.assertGreater(len(generations), 2, "the group was never rebalanced")
        self.planted(events)

    def come_and_go(self, chance, seconds):
        for member in self.members:
            member.start()
        self.sender.start()
        ended, stopped, begun = collections.Counter(), {}, time.monotonic()
        broker_at = begun + NODE_EVERY
        while time.monotonic() - begun < seconds:
            # Now and then long enough for a killed member's session to end, so that the group has a generation that lasts.
            time.sleep(chance.uniform(7, 10) if chance.random() < 0.3 else chance.uniform(0.2, 2))
            now = time.monotonic()
            for member in [member for member, until in stopped.items() if now > until]:
                member.process.send_signal(signal.SIGCONT)
                del stopped[member]
            for member in self.members:
                member.expect_running()
                if member.process is None and now > member.back_at:
                    member.start()
            if self.broker.REPLICAS > 1 and now > broker_at:
                # A cluster loses a node and goes on; every third time it is asked to stop.
                ended["nodes"] += 1
                self.broker.stop() if ended["nodes"] % 3 == 0 else self.broker.kill()
                time.sleep(chance.uniform(0, 2))
                self.broker.start()
                broker_at = time.monotonic() + NODE_EVERY
            member = chance.choice(self.members)
            if member.process is None or member in stopped:
                continue
            # Half are killed.
            how = ["killed", "left", "killed", "stopped"][(sum(ended.values()) - ended["nodes"]) % 4]
            ended[how] += 1
            if how == "stopped":
                member.process.send_signal(signal.SIGSTOP)
                stopped[member] = now + STOPPED
            else:
                member.end(signal.SIGKILL if how == "killed" else signal.SIGTERM)
                member.back_at = now + chance.uniform(0, 4)
        for member in stopped:
            member.process.send_signal(signal.SIGCONT)
        return ended

    def settle(self):
        """All are there again, and the lag is zero at last."""
        for member in self.members:
            if member.process is None:
                member.start()
        self.sender.finish()
        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap})
        begun, behind = time.monotonic(), None
        while behind != {}:
            for member in self.members:
                member.expect_running()
            self.assertLess(time.monotonic() - begun, SETTLE, f"still behind: {behind}")
            time.sleep(0.5)
            answer = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(GROUP)])[GROUP].result(60)
            kept = {one.partition: one.offset for one in answer.topic_partitions}
            behind = {partition: count - kept.get(partition, 0) for partition, count in self.sender.sent.items() if kept.get(partition, 0) != count}
        while (found := self.described(admin)) != ("STABLE", len(self.members)):
            self.assertLess(time.monotonic() - begun, SETTLE, f"the group is {found}")
            time.sleep(0.5)
        for member in self.members:
            member.end(signal.SIGTERM)

    def described(self, admin):
        group = admin.describe_consumer_groups([GROUP])[GROUP].result(60)
        return group.state.name, len(group.members)

    def story(self):
        """The last words of each member's life, and the broker's."""
        lives = []
        for member in self.members:
            for path in member.lists[-2:]:
                words = [line for line in path.read_text().splitlines() if line.startswith("#")] if path.exists() else []
                log = path.with_suffix(".log").read_text(errors="replace")[-500:]
                lives.append("\n    ".join([f"{path.stem} ({member.kind})", *words[-6:], log]))
        return "\n".join([*lives, self.broker.last_words()])

    def planted(self, events):
        """The same lists with a fault in them: each is seen."""
        sent = self.sender.sent
        one = next(event for event in events if isinstance(event, Handled) and event.generation > 0)
        lost = [event for event in events if (event.partition, event.offset) != (one.partition, one.offset) or isinstance(event, Committed)]
        twice = [*events, Handled("another", one.generation, one.partition, one.offset)]
        last = max(event.generation for event in events)
        again = [*events, Handled("another", last + 1, one.partition, one.offset)]
        for words, changed in {"not handled": lost, "two members": twice, "handled again": again}.items():
            self.assertRegex(" ".join(chaos_ledger.faults(sent, changed)), words)


class Ledger(unittest.TestCase):
    """The ledger sees each fault."""

    GOOD = [Handled("a", 1, 0, 0), Handled("a", 1, 0, 1), Committed("a", 1, 0, 1), Handled("b", 2, 0, 1), Handled("b", 2, 0, 2)]

    def faults(self, events, sent=3):
        return " ".join(chaos_ledger.faults({0: sent}, events))

    def test_a_record_may_come_again_in_a_later_generation(self):
        self.assertEqual(self.faults(self.GOOD), "")

    def test_a_lost_record(self):
        self.assertRegex(self.faults(self.GOOD, 4), "^not handled: 1, as partition 0 offset 3$")
        self.assertRegex(self.faults(self.GOOD[:1] + self.GOOD[2:3] + self.GOOD[4:]), "not handled: 1, as partition 0 offset 1")

    def test_a_record_that_nobody_sent(self):
        self.assertRegex(self.faults(self.GOOD, 2), "never sent: 1")

    def test_two_members_of_one_generation(self):
        self.assertRegex(self.faults([*self.GOOD, Handled("c", 2, 0, 2)]), "two members in one generation: 1")
        self.assertRegex(self.faults([*self.GOOD, Committed("c", 1, 0, 1)]), "two members in one generation: 1")

    def test_a_lost_commit(self):
        self.assertRegex(self.faults([*self.GOOD, Handled("c", 3, 0, 0)]), "handled again although .*: 1")

    def test_a_line_that_was_being_written(self):
        self.assertEqual(list(chaos_ledger.parse("a", "# words\nH 1 2 3\nC 1 2 4\nH 1 2")), [Handled("a", 1, 2, 3), Committed("a", 1, 2, 4)])
