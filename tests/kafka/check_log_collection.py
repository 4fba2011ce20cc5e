"""rsyslog ships lines to the broker with omkafka, the broker is killed in the middle, and a group writes what arrives as Elasticsearch's bulk
requests: every line arrives at least once.

In CI and by command the same 100,000 lines.
"""

import json
import signal
import subprocess
import sys
import threading
import time
import unittest

import brokers
import kit
from confluent_kafka import Consumer, KafkaException

LINES = 100_000
TOPIC, GROUP, INDEX = "logs", "indexer", "logs-of-a-check"
# The broker is killed when so many lines have arrived, and is away for so long, seconds.
KILL_AT, AWAY = LINES // 3, 2
# Until all have arrived, on a busy machine, seconds.
PATIENCE = 180

# Lines that could not be sent wait on disk and are sent again: without `action.resumeRetryCount` and the queue rsyslog discards them.
CONFIG = """
global(workDirectory="{directory}" maxMessageSize="64k")
module(load="imfile" pollingInterval="1")
module(load="omkafka")
template(name="line" type="string" string="%msg%")
input(type="imfile" file="{directory}/program.log" tag="program:" ruleset="ship")
ruleset(name="ship") {{
    action(type="omkafka" broker=["{bootstrap}"] topic="{topic}" template="line" partitions.auto="on"
           confParam=["compression.codec=lz4", "linger.ms=20", "queue.buffering.max.messages=20000", "message.timeout.ms=300000"]
           resubmitOnFailure="on" keepFailedMessages="on" failedMsgFile="{directory}/failed"
           action.resumeRetryCount="-1" action.resumeInterval="1"
           queue.type="LinkedList" queue.size="200000" queue.saveOnShutdown="on" queue.filename="ship")
}}
"""


def line(number):
    return f"{number} GET /rooms/{number % 977}?floor={number % 13} 200 {number * 7 % 5000} \"a client\""


class Rsyslog:
    """An rsyslogd of the check's own: its own configuration, process-id file and work directory."""

    def __init__(self, broker):
        self.directory = broker.directory / "rsyslog"
        self.directory.mkdir()
        self.source = self.directory / "program.log"
        config = self.directory / "rsyslog.conf"
        config.write_text(CONFIG.format(directory=self.directory, bootstrap=broker.bootstrap, topic=TOPIC))
        program = "/usr/sbin/rsyslogd"
        kit.run([program, "-N1", "-f", config])
        self.log = self.directory / "rsyslogd.log"
        with open(self.log, "wb") as log:
            command = [program, "-n", "-f", config, "-i", self.directory / "pid"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def close(self):
        self.process.kill()
        self.process.wait()


class Indexer:
    """A member of a group that writes the requests of Elasticsearch's bulk interface, two lines of JSON for each record, and commits what it
    has written. A document's id is its place, so that what is written twice is indexed once."""

    def __init__(self, broker, path):
        settings = {"bootstrap.servers": broker.bootstrap, "group.id": GROUP, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
        self.consumer = Consumer({**settings, "session.timeout.ms": 6000, "log_level": 2})
        self.consumer.subscribe([TOPIC])
        self.file = open(path, "a")

    def work(self):
        """Writes the next records; their values."""
        messages = [message for message in self.consumer.consume(1000, 0.2) if not message.error()]
        for message in messages:
            place = f"{message.topic()}-{message.partition()}-{message.offset()}"
            document = {"@timestamp": message.timestamp()[1], "message": message.value().decode()}
            self.file.write(json.dumps({"index": {"_index": INDEX, "_id": place}}) + "\n" + json.dumps(document) + "\n")
        self.file.flush()
        if messages:
            try:
                self.consumer.commit(asynchronous=False)
            except KafkaException:
                # While the broker is away; the next commit has this position too.
                pass
        return [message.value().decode() for message in messages]

    def close(self):
        self.consumer.close()
        self.file.close()


def missing(lines, bulk):
    """Lines that no document has. An error where the file is no bulk request."""
    documents, found = {}, bulk.splitlines()
    if len(found) % 2:
        raise AssertionError("an action without its document")
    for action, document in zip(found[::2], found[1::2]):
        where, what = json.loads(action)["index"], json.loads(document)
        if where["_index"] != INDEX or documents.setdefault(where["_id"], what) != what:
            raise AssertionError(f"{action} stands for two documents")
    return sorted(set(lines) - {document["message"] for document in documents.values()})


class LogCollection(brokers.Case):
    def test_no_line_is_lost_when_the_broker_is_killed(self):
        self.broker.create(TOPIC, 4)
        rsyslog = Rsyslog(self.broker)
        self.addCleanup(rsyslog.close)
        bulk = self.broker.directory / "bulk.ndjson"
        indexer = Indexer(self.broker, bulk)
        begun, written, arrived, kill = time.monotonic(), 0, set(), None
        with open(rsyslog.source, "w") as source:
            while len(arrived) < LINES:
                self.assertIsNone(rsyslog.process.poll(), rsyslog.log.read_text())
                if time.monotonic() - begun > PATIENCE:
                    failed = rsyslog.directory / "failed"
                    words = failed.read_text()[-500:] if failed.exists() else ""
                    self.fail(f"{len(arrived)} of {LINES} lines arrived: {rsyslog.log.read_text()[-1000:]} {words} {self.broker.last_words()}")
                if written < LINES:
                    source.writelines(line(number) + "\n" for number in range(written, written + 5000))
                    source.flush()
                    written += 5000
                if not kill and len(arrived) > KILL_AT:
                    # In a thread of its own: the group's member may wait for the broker meanwhile.
                    kill = threading.Thread(target=self.kill_and_start)
                    kill.start()
                arrived.update(indexer.work())
        kill.join()
        seconds = time.monotonic() - begun
        rsyslog.stop()
        indexer.close()
        written = [line(number) for number in range(LINES)]
        self.assertEqual(missing(written, bulk.read_text()), [])
        count = bulk.read_text().count("\n") // 2
        print(f"{LINES} lines, {count} documents, a kill, {seconds:.1f} s", file=sys.stderr)

    def kill_and_start(self):
        self.broker.kill()
        time.sleep(AWAY)
        self.broker.start()


class Comparison(unittest.TestCase):
    """The comparison sees what is missing, and what is no bulk request."""

    def bulk(self, *messages):
        pairs = [(json.dumps({"index": {"_index": INDEX, "_id": f"{n}"}}), json.dumps({"message": text})) for n, text in enumerate(messages)]
        return "".join(f"{action}\n{document}\n" for action, document in pairs)

    def test_a_line_that_is_missing(self):
        self.assertEqual(missing(["a", "b"], self.bulk("b", "a", "a")), [])
        self.assertEqual(missing(["a", "b"], self.bulk("b")), ["a"])

    def test_a_request_that_is_cut_or_contradicts_itself(self):
        for bulk in (self.bulk("a").splitlines()[0], self.bulk("a") + self.bulk("b")):
            with self.assertRaises(AssertionError):
                missing(["a"], bulk)
