"""Brokers as child processes: Corelane as one node or as three, and Apache Kafka with which the checks themselves are checked.

Both have the same face: `start`, `kill` (SIGKILL), `stop` (SIGTERM, which must end with code 0), `bootstrap`. A broker that is started again
has the same port and the same data.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import kit

# A start may take this long until clients are served, a stop until the process is gone, seconds.
PATIENCE = 60
# Of the broker's log, lines that a failure shows.
LAST_LINES = 30


def free_ports(count):
    """The first of `count` ports in a row that are free now. Below the range from which connections take their own ports: a client that tries
    again and again while the broker is down would come to have the broker's port itself."""
    for _ in range(500):
        first = random.randrange(12_000, 30_000)
        sockets = []
        try:
            for port in range(first, first + count):
                listener = socket.socket()
                sockets.append(listener)
                listener.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for listener in sockets:
                listener.close()
    raise RuntimeError("no free ports")


class Broker:
    """A broker's process and its directory, which is removed by `close`."""

    # Of a topic that is made without a number.
    REPLICAS = 1

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="interop-", dir=kit.scratch()))
        self.log = self.directory / "broker.log"
        self.process = None

    def command(self):
        raise NotImplementedError

    def is_ready(self):
        raise NotImplementedError

    @property
    def bootstrap(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        """Starts the process and waits until clients are served. Returns itself."""
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        begun = time.monotonic()
        while not self.is_ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"the broker ended at its start with {self.process.returncode}: {self.last_words()}")
            if time.monotonic() - begun > PATIENCE:
                raise RuntimeError(f"the broker is not ready after {PATIENCE} s: {self.last_words()}")
            time.sleep(0.02)
        return self

    def kill(self):
        self.expect_running()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.expect_running()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=PATIENCE)
        if code not in self.codes_of_a_stop:
            raise RuntimeError(f"the broker ended with {code} when asked to: {self.last_words()}")

    def create(self, topic, partitions, **config):
        """Creates a topic."""
        from confluent_kafka.admin import AdminClient, NewTopic

        config = {name.replace("_", "."): str(value) for name, value in config.items()}
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 2})
        admin.create_topics([NewTopic(topic, partitions, config=config)])[topic].result(PATIENCE)

    def expect_running(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the broker ended by itself with {self.process.returncode}: {self.last_words()}")

    def last_words(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LAST_LINES:])

    def close(self):
        """Ends the process and removes its data."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class Corelane(Broker):
    """`corelane serve` with two shards, so that clients meet more than one address."""

    name = "corelane"
    codes_of_a_stop = (0,)
    SHARDS = 2

    def __init__(self, *options):
        super().__init__()
        self.port = free_ports(self.SHARDS)
        self.options = options
        self.said = 0

    def command(self):
        self.said = self.log.stat().st_size
        fixed = ["serve", "--json", "--admin-listen", "none", "--memory", "256M", "--shards", str(self.SHARDS)]
        return [kit.corelane(), *fixed, "--listen", self.bootstrap, "--data", str(self.directory / "data"), *self.options]

    def is_ready(self):
        with open(self.log, "rb") as log:
            log.seek(self.said)
            return b'"ready":true' in log.read()

    def run(self, *arguments, **options):
        """A command of Corelane's own client against this broker."""
        return kit.run([kit.corelane(), arguments[0], "--broker", self.bootstrap, *arguments[1:]], **options)


class Node(Corelane):
    """One of several nodes, with one shard."""

    SHARDS = 1
    # Of a node: for clients, consensus and replication.
    PORTS = 3

    def __init__(self, number, first, *options):
        super().__init__(*options)
        self.number, self.first = number, first
        # All nodes' in a row.
        self.port = first + (number - 1) * self.PORTS

    def command(self):
        others = range(1, self.number) if self.said == 0 else range(1, NODES + 1)
        join = [word for other in others if other != self.number for word in ("--join", f"127.0.0.1:{self.first + (other - 1) * self.PORTS + 1}")]
        consensus = f"127.0.0.1:{self.port + 1}"
        return [*super().command(), "--node-id", str(self.number), "--cluster-listen", consensus, *join]


NODES = 3


class Cluster:
    """Three nodes of Corelane with the face of one broker: `kill` and `stop` are done to one of them, in turn, and `start` brings back what is away. Topics have three replicas, of which two
    must be in sync."""

    name = "corelane"
    REPLICAS = NODES

    def __init__(self, *options):
        first = free_ports(NODES * Node.PORTS)
        self.nodes = [Node(number, first, *options) for number in range(1, NODES + 1)]
        self.next = 0

    @property
    def directory(self):
        return self.nodes[0].directory

    @property
    def bootstrap(self):
        return ",".join(node.bootstrap for node in self.nodes)

    def start(self):
        """The first one forms the cluster. Waits until every replica is in sync."""
        for node in self.nodes:
            if node.process is None or node.process.poll() is not None:
                node.start()
        begun = time.monotonic()
        while "healthy" not in (words := self.status()):
            if time.monotonic() - begun > PATIENCE:
                raise RuntimeError(f"the cluster is not well after {PATIENCE} s: {words} {self.last_words()}")
            time.sleep(0.1)
        return self

    def status(self):
        return subprocess.run([kit.corelane(), "cluster", "status", "--broker", self.bootstrap], capture_output=True, text=True).stdout

    def in_turn(self):
        self.next += 1
        return self.nodes[(self.next - 1) % NODES]

    def kill(self):
        self.in_turn().kill()

    def stop(self):
        self.in_turn().stop()

    def create(self, topic, partitions, **config):
        Broker.create(self, topic, partitions, **config)

    def run(self, *arguments, **options):
        return Corelane.run(self, *arguments, **options)

    def expect_running(self):
        for node in self.nodes:
            node.expect_running()

    def last_words(self):
        return "\n".join(f"node {node.number}: {node.last_words()}" for node in self.nodes)

    def close(self):
        for node in self.nodes:
            node.close()


class ApacheKafka(Broker):
    """One node in KRaft mode with the defaults, but for the copies of its own topics, of which one node can hold one."""

    name = "kafka"
    # The JVM's way to say that SIGTERM ended it.
    codes_of_a_stop = (0, 143)

    def __init__(self, **settings):
        super().__init__()
        self.port = free_ports(2)
        self.settings = settings

    def command(self):
        file = self.directory / "server.properties"
        first = not file.exists()
        controller = f"127.0.0.1:{self.port + 1}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "log.dirs": self.directory / "data",
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            **self.settings,
        }
        file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        if first:
            kit.run(kit.java("kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", file))
        return kit.java("kafka.Kafka", file, options=["-Xmx512m"])

    def is_ready(self):
        """A node that serves answers a request for its versions; before, its port refuses."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                # ApiVersions, version 0, correlation id 1, no client id.
                connection.sendall(bytes([0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 255, 255]))
                return len(connection.recv(8)) == 8
        except OSError:
            return False


# An empty group waits so long for more members, milliseconds; three seconds, the default of both brokers, would be most of a check's time.
INITIAL_DELAY = 300


def chosen():
    """The broker that the run is about: Corelane, with `--against cluster` as three nodes, or with `--against kafka` Apache Kafka."""
    if os.environ.get("INTEROP_AGAINST", "corelane") == "kafka":
        return ApacheKafka(**{"group.initial.rebalance.delay.ms": INITIAL_DELAY})
    kind = Cluster if os.environ.get("INTEROP_AGAINST") == "cluster" else Corelane
    return kind("--group-initial-rebalance-delay-ms", str(INITIAL_DELAY))


class Case(unittest.TestCase):
    """Checks that share one broker."""

    @classmethod
    def setUpClass(cls):
        cls.broker = chosen()
        cls.addClassCleanup(cls.broker.close)
        cls.broker.start()
