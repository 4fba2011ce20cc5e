"""A member of a group as a process of its own: `chaos_member.py KIND BOOTSTRAP GROUP TOPIC STRATEGY LIST`.

Each record is written to the list before the position behind it is committed, and a commit is written once the broker has confirmed it
(chaos_ledger.parse). SIGTERM ends it: it commits and leaves.
"""

import os
import signal
import sys
import time

# Positions are committed at least so often, seconds.
COMMIT_EVERY = 0.2
SESSION_MS = 6000
HEARTBEAT_MS = 500


class List:
    """The list. Each line is one write, which a kill of the process does not undo."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.generation = -1

    def add(self, kind, partition, offset):
        os.write(self.file, f"{kind} {self.generation} {partition} {offset}\n".encode())

    def say(self, words):
        os.write(self.file, f"# {words}\n".replace("\n", " ").encode() + b"\n")


class Ending:
    def __init__(self):
        self.asked = False
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked", True))


def confluent(bootstrap, group, topic, strategy, notes):
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    consumer = Consumer({
        "bootstrap.servers": bootstrap, "group.id": group, "partition.assignment.strategy": strategy, "enable.auto.commit": False,
        "auto.offset.reset": "earliest", "session.timeout.ms": SESSION_MS, "heartbeat.interval.ms": HEARTBEAT_MS, "log_level": 2,
        "reconnect.backoff.max.ms": 500,
    })
    handled, ending = {}, Ending()

    def commit():
        if handled:
            # What is refused, as it is while others join, is tried again.
            positions = [TopicPartition(topic, partition, offset) for partition, offset in handled.items()]
            try:
                for done in consumer.commit(offsets=positions, asynchronous=False):
                    if done.error is None:
                        notes.add("C", done.partition, done.offset)
                        del handled[done.partition]
            except KafkaException as refused:
                notes.say(f"commit: {refused}")

    def assigned(_, partitions):
        # What librdkafka writes of its membership: a mark, the generation as a 32-bit number, the names.
        mark, _, rest = consumer.consumer_group_metadata().partition(b":")
        assert mark == b"CGMDv2", mark
        notes.generation = int.from_bytes(rest[:4], "little", signed=True)
        notes.say(f"generation {notes.generation}: {sorted(p.partition for p in partitions)}")

    def revoked(_, partitions):
        commit()
        for one in partitions:
            handled.pop(one.partition, None)
        notes.say(f"revoked {sorted(p.partition for p in partitions)}")

    def lost(_, partitions):
        handled.clear()
        notes.say(f"lost {sorted(p.partition for p in partitions)}")

    consumer.subscribe([topic], on_assign=assigned, on_revoke=revoked, on_lost=lost)
    last = time.monotonic()
    while not ending.asked:
        message = consumer.poll(0.1)
        if message is not None and message.error() is not None:
            notes.say(message.error())
        elif message is not None:
            notes.add("H", message.partition(), message.offset())
            handled[message.partition()] = message.offset() + 1
        if time.monotonic() - last > COMMIT_EVERY:
            commit()
            last = time.monotonic()
    commit()
    consumer.close()


def kafka_python(bootstrap, group, topic, strategy, notes):
    from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
    from kafka.coordinator.assignors.range import RangePartitionAssignor
    from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
    from kafka.errors import KafkaError
    from kafka.structs import OffsetAndMetadata

    assignor = {"range": RangePartitionAssignor, "roundrobin": RoundRobinPartitionAssignor}[strategy]
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, group_id=group, partition_assignment_strategy=[assignor], enable_auto_commit=False,
        auto_offset_reset="earliest", session_timeout_ms=SESSION_MS, heartbeat_interval_ms=HEARTBEAT_MS, reconnect_backoff_max_ms=500,
    )
    handled, ending = {}, Ending()

    def commit():
        if handled:
            positions = dict(handled)
            try:
                consumer.commit({TopicPartition(topic, partition): OffsetAndMetadata(offset, "", -1) for partition, offset in positions.items()})
            except KafkaError as refused:
                return notes.say(f"commit: {refused!r}")
            handled.clear()
            for partition, offset in positions.items():
                notes.add("C", partition, offset)

    class Listener(ConsumerRebalanceListener):
        def on_partitions_revoked(self, revoked):
            commit()
            handled.clear()
            notes.say(f"revoked {sorted(p.partition for p in revoked)}")

        def on_partitions_lost(self, lost):
            handled.clear()
            notes.say(f"lost {sorted(p.partition for p in lost)}")

        def on_partitions_assigned(self, assigned):
            notes.generation = consumer.group_metadata().generation_id
            notes.say(f"generation {notes.generation}: {sorted(p.partition for p in assigned)}")

    consumer.subscribe([topic], listener=Listener())
    while not ending.asked:
        for records in consumer.poll(timeout_ms=int(COMMIT_EVERY * 1000), max_records=200).values():
            for record in records:
                notes.add("H", record.partition, record.offset)
                handled[record.partition] = record.offset + 1
        commit()
    commit()
    consumer.close()


if __name__ == "__main__":
    kind, *words, path = sys.argv[1:]
    {"confluent": confluent, "kafka_python": kafka_python}[kind](*words, List(path))
