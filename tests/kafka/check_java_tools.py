"""Kafka's own command line tools against Apache Kafka and Corelane: what they print is the same, but for what differences.toml lists.

Times, ids and addresses are masked. A difference that the list does not have fails, and an entry of the list that no longer occurs does too.
"""

import base64
import collections
import difflib
import json
import os
import re
import subprocess
import threading
import tomllib
import unittest

import brokers
import kit
import tool_steps
from brokers import PATIENCE
from confluent_kafka import Consumer

ALL = tool_steps.TOPICS + tool_steps.CONFIGS + tool_steps.CONSOLE + tool_steps.DELETED + tool_steps.GROUPS

MASKS = [
    # A set-up that has no logger says so once.
    (r"(?m)^SLF4J: .*\n", ""),
    (r"127\.0\.0\.1:\d+|localhost:\d+", "HOST:PORT"),
    (r"/?127\.0\.0\.1\b|\blocalhost\b", "HOST"),
    # Ids of members, topics and clusters: sixteen bytes in hexadecimal digits or Base64.
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "ID"),
    (r"\b(TopicId|Cluster ID): \S+", r"\1: ID"),
    # Milliseconds since 1970, and dates.
    (r"\b1[6-9]\d{11}\b", "TIME"),
    (r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\]", "[TIME]"),
    # Shards are brokers to clients; which one has what follows from their number.
    (r"\b(Leader|Replicas|Isr|broker|Broker): ?\d+\b", r"\1: NODE"),
    (r"(HOST:PORT)\s+\(\d+\)", r"\1 (NODE)"),
    (r"(?<=; the known ones are ).*", "ALL"),
    (r"/\S*interop-\w+/\S*", "PATH"),
    # Columns are as wide as what stands in them.
    (r"[ \t]+", " "),
    (r"(?m) $", ""),
]


class Tools:
    """A JVM that runs one tool after another against a broker."""

    def __init__(self, broker):
        self.broker = broker
        with open(broker.directory / "tools.log", "wb") as log:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(kit.java("Tools"), stdin=pipe, stdout=pipe, stderr=log, text=True)

    def run(self, step):
        """What a step prints, masked, line by line, and its exit code."""
        arguments = list(step.arguments)
        if step.file:
            path = self.broker.directory / "file-of-a-step"
            path.write_text(step.file)
            arguments[arguments.index("FILE")] = str(path)
        where = [] if step.tool == "cluster" else ["--bootstrap-server", self.broker.bootstrap]
        after = ["--bootstrap-server", self.broker.bootstrap] if step.tool == "cluster" else []
        words = [step.input, tool_steps.TOOLS[step.tool], *where, *arguments, *after]
        self.process.stdin.write(" ".join(base64.b64encode(word.encode()).decode() or "-" for word in words) + "\n")
        self.process.stdin.flush()
        watchdog = threading.Timer(PATIENCE, self.process.kill)
        watchdog.start()
        answer = self.process.stdout.readline()
        watchdog.cancel()
        if not answer:
            raise AssertionError(f"{step.name} takes more than {PATIENCE} s")
        code, *said = answer.split()
        output, errors = ("" if text == "-" else base64.b64decode(text).decode() for text in said)
        lines = [f"out: {line}" for line in masked(output).splitlines()] + [f"err: {line}" for line in masked(errors).splitlines()]
        lines = [line for line in lines if line not in ("out:", "err:") and not re.match(r"err: (\s*at |\t)", line)]
        return (sorted(lines) if step.unordered else lines) + [f"exit code {code}"]

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def masked(text):
    text = re.sub(r'(?m)^\{"brokers":.*$', lambda found: partitions_in(found.group()), text)
    for pattern, instead in MASKS:
        text = re.sub(pattern, instead, text)
    return text


def partitions_in(description):
    """What log-dirs says, whichever brokers have the partitions."""
    directories = [directory for broker in json.loads(description)["brokers"] for directory in broker["logDirs"]]
    partitions = [{**partition, "size": "SOME" if partition["size"] > 0 else "NONE"} for one in directories for partition in one["partitions"]]
    return f"errors: {[one['error'] for one in directories if one['error']]} partitions: {sorted(partitions, key=lambda p: p['partition'])}"


class Member:
    """A member of a group, for as long as the block lasts."""

    def __init__(self, broker, group):
        self.group = group
        settings = {"bootstrap.servers": broker.bootstrap, "group.id": group, "client.id": "guest", "enable.auto.commit": False}
        self.consumer = Consumer(settings)
        self.over = threading.Event()
        self.joined = threading.Event()

    def __enter__(self):
        self.consumer.subscribe(["rooms"], on_assign=lambda *_: self.joined.set())
        self.thread = threading.Thread(target=self.work)
        self.thread.start()
        if not self.joined.wait(PATIENCE):
            self.__exit__()
            raise AssertionError(f"no partition for a member of {self.group} in {PATIENCE} s")
        return self

    def work(self):
        while not self.over.is_set():
            self.consumer.poll(0.1)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.consumer.close()


def transcript(broker, steps):
    """What each step says, by number and name."""
    tools, said, member = Tools(broker), {}, None
    counts = collections.Counter()
    try:
        for step in steps:
            if (member and member.group) != (step.member_of or None):
                if member:
                    member.__exit__()
                member = Member(broker, step.member_of).__enter__() if step.member_of else None
            counts[step.name] += 1
            name = step.name if counts[step.name] == 1 else f"{step.name} (time {counts[step.name]})"
            said[name] = tools.run(step)
    finally:
        if member:
            member.__exit__()
        tools.close()
    return said


def differences(kafka, corelane):
    """For each step whose lines differ: those that only Kafka's has, those that only Corelane's has."""
    found = {}
    for name, lines in kafka.items():
        diff = list(difflib.ndiff(lines, corelane[name]))
        only = [[line[2:] for line in diff if line.startswith(sign)] for sign in "-+"]
        if any(only):
            found[name] = {"kafka": only[0], "corelane": only[1]}
    return found


class Listed:
    """differences.toml: whole lines that one side has in certain steps, and words that Kafka's lines have in any step."""

    def __init__(self, text):
        parsed = tomllib.loads(text)
        entries = parsed.get("lines", []) + parsed.get("words", [])
        assert all(entry["reason"].strip() for entry in entries), "a difference without its reason"
        self.words = [(entry["kafka"], entry["corelane"]) for entry in parsed.get("words", [])]
        self.lines = collections.defaultdict(lambda: {"kafka": [], "corelane": []})
        for entry in parsed.get("lines", []):
            for step in entry["steps"]:
                for side in ("kafka", "corelane"):
                    self.lines[step][side].extend(line for line in entry.get(side, "").splitlines() if line)

    def unexplained(self, kafka, corelane):
        """Words for every difference that is not listed, and for every listed one that is not found."""
        kafka, words = {step: list(lines) for step, lines in kafka.items()}, []
        for pattern, instead in self.words:
            changed = {step: [re.sub(pattern, instead, line) for line in lines] for step, lines in kafka.items()}
            if changed == kafka:
                words.append(f"listed, and kafka no longer says: {pattern}")
            kafka = changed
        found = differences(kafka, corelane)
        for step in sorted({*found, *self.lines}):
            for side in ("kafka", "corelane"):
                have = collections.Counter(found.get(step, {}).get(side, []))
                want = collections.Counter(self.lines[step][side] if step in self.lines else [])
                words += [f"{step}\n    not listed, only {side} says: {line}" for line in (have - want).elements()]
                words += [f"{step}\n    listed, and {side} alone no longer says: {line}" for line in (want - have).elements()]
        return words


class JavaTools(unittest.TestCase):
    def test_both_brokers_say_the_same(self):
        said = {}

        def play(broker):
            try:
                said[broker.name] = transcript(broker.start(), ALL)
            except Exception as failure:
                said[broker.name] = failure

        settings = {"group.initial.rebalance.delay.ms": 0, "num.partitions": 1}
        both = [brokers.ApacheKafka(**settings), brokers.Corelane("--group-initial-rebalance-delay-ms", "0")]
        for broker in both:
            self.addCleanup(broker.close)
        threads = [threading.Thread(target=play, args=[broker]) for broker in both]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        for broker in both:
            if isinstance(said[broker.name], Exception):
                raise said[broker.name]
        if keep := os.environ.get("INTEROP_TRANSCRIPTS"):
            for name, lines in said.items():
                text = "".join(f"$ {step}\n" + "".join(f"{line}\n" for line in answer) for step, answer in lines.items())
                (kit.Path(keep) / f"{name}.txt").write_text(text)
        words = Listed((kit.HERE / "differences.toml").read_text()).unexplained(said["kafka"], said["corelane"])
        self.assertFalse(words, "\n" + "\n".join(words))


class Comparison(unittest.TestCase):
    """The comparison itself can fail."""

    KAFKA = {"list": ["out: a", "out: b", "exit code 0"], "describe": ["out: x", "exit code 0"]}

    def unexplained(self, corelane, listed=""):
        return Listed(listed).unexplained(self.KAFKA, {**self.KAFKA, **corelane})

    def test_a_line_that_is_missing_or_new_or_moved_or_another_exit_code_is_seen(self):
        self.assertEqual(self.unexplained({}), [])
        less, more = ["out: a", "exit code 0"], ["out: a", "out: b", "out: c", "exit code 0"]
        for lines in (less, more, ["out: a", "out: b", "exit code 1"], ["out: b", "out: a", "exit code 0"]):
            self.assertTrue(self.unexplained({"list": lines}), lines)

    def test_a_listed_line_must_differ_and_nothing_else_may(self):
        listed = "[[lines]]\nreason = 'r'\nsteps = ['list']\nkafka = 'out: b'\n"
        self.assertEqual(self.unexplained({"list": ["out: a", "exit code 0"]}, listed), [])
        self.assertTrue(self.unexplained({"list": ["exit code 0"]}, listed))
        self.assertTrue(self.unexplained({}, listed))
        self.assertTrue(self.unexplained({"list": ["out: a", "exit code 0"]}, listed.replace("['list']", "['list', 'describe']")))

    def test_listed_words_must_differ_and_nothing_else_may(self):
        listed = "[[words]]\nreason = 'r'\nkafka = 'x$'\ncorelane = 'y'\n"
        self.assertEqual(self.unexplained({"describe": ["out: y", "exit code 0"]}, listed), [])
        self.assertTrue(self.unexplained({}, listed))
        self.assertTrue(self.unexplained({"describe": ["out: z", "exit code 0"]}, listed))
        self.assertTrue(Listed(listed.replace("x$", "w$")).unexplained(self.KAFKA, self.KAFKA))

    def test_a_difference_needs_a_reason(self):
        with self.assertRaises(AssertionError):
            Listed("[[words]]\nreason = ' '\nkafka = 'x'\ncorelane = 'y'\n")

    def test_what_is_masked(self):
        self.assertEqual(masked("Topic: a\tTopicId: yTGy0rXzSYmdk68NQDEa2w\tLeader: 3\n"), "Topic: a TopicId: ID Leader: NODE\n")
        self.assertEqual(masked("CreateTime:1795864632078 127.0.0.1:9092"), "CreateTime:TIME HOST:PORT")
        self.assertEqual(masked("retention.ms=86400000"), "retention.ms=86400000")
