"""kcat, as Debian has it: produce, consume, list, ask for offsets, work in a group."""

import json
import subprocess
import threading
import time

import brokers
import kit

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


class WithKcat(brokers.Case):
    def kcat(self, *arguments, **options):
        return kit.run(["kcat", "-b", self.broker.bootstrap, *arguments], **options)

    def consume(self, topic, *arguments):
        """Records as kcat's JSON has them."""
        lines = self.kcat("-q", "-J", "-C", "-t", topic, "-e", *arguments).splitlines()
        return [json.loads(line) for line in lines]


class Kcat(WithKcat):
    def test_what_is_produced_is_consumed(self):
        for codec in CODECS:
            with self.subTest(codec=codec):
                topic = f"kcat-{codec}"
                sent = [(f"key-{n % 50}", f"value {n} of a text that repeats itself, repeats itself") for n in range(2000)]
                lines = "".join(f"{key}:{value}\n" for key, value in sent)
                self.kcat("-P", "-t", topic, "-z", codec, "-K:", "-H", "origin=kcat", "-X", "linger.ms=50", input=lines)
                read = self.consume(topic)
                self.assertEqual([(record["key"], record["payload"]) for record in read], sent)
                self.assertEqual([record["offset"] for record in read], list(range(2000)))
                self.assertTrue(all(record["headers"] == ["origin", "kcat"] for record in read), read[0])
                self.assertTrue(all(record["tstype"] == "create" and record["ts"] > 0 for record in read), read[0])

    def test_every_acknowledgement_and_idempotence(self):
        for setting in ["acks=0", "acks=1", "acks=all", "enable.idempotence=true"]:
            with self.subTest(setting=setting):
                topic = "kcat-" + setting.replace("=", "-")
                self.broker.create(topic, 3)
                self.kcat("-P", "-t", topic, "-X", setting, input="".join(f"{n}\n" for n in range(1000)))
                # What is not acknowledged is there some time after kcat has ended.
                read = []
                for _ in range(100):
                    read = self.consume(topic)
                    if len(read) >= 1000:
                        break
                self.assertEqual(sorted(int(record["payload"]) for record in read), list(range(1000)))

    def test_large_and_empty_values(self):
        topic = "kcat-sizes"
        large = self.broker.directory / "large"
        large.write_bytes(b"x" * 900_000)
        self.kcat("-P", "-t", topic, large)
        self.kcat("-P", "-t", topic, "-Z", "-K:", input="key:\n")
        first, second = self.consume(topic)
        self.assertEqual(first["payload"], "x" * 900_000)
        self.assertEqual((second["key"], second["payload"]), ("key", None))
        refused = self.broker.directory / "refused"
        refused.write_bytes(b"x" * 1_500_000)
        # The broker refuses what is larger than a topic's max.message.bytes; kcat itself by default what is larger than 1 MB.
        with self.assertRaisesRegex(AssertionError, "Message size too large|Broker: Message size too large"):
            self.kcat("-P", "-t", topic, "-X", "message.max.bytes=2000000", refused)

    def test_list_names_topics_partitions_and_brokers(self):
        self.broker.create("kcat-listed", 7)
        listing = json.loads(self.kcat("-L", "-J"))
        self.assertIn(listing["controllerid"], [broker["id"] for broker in listing["brokers"]])
        topic = next(topic for topic in listing["topics"] if topic["topic"] == "kcat-listed")
        self.assertEqual([partition["partition"] for partition in topic["partitions"]], list(range(7)))
        ids = {broker["id"] for broker in listing["brokers"]}
        self.assertTrue(all(partition["leader"] in ids for partition in topic["partitions"]), topic)
        text = self.kcat("-L", "-t", "kcat-listed").decode()
        self.assertIn('topic "kcat-listed" with 7 partitions:', text)

    def test_offsets_by_position_and_time(self):
        topic = "kcat-offsets"
        self.kcat("-P", "-t", topic, input="".join(f"{n}\n" for n in range(100)))
        self.kcat("-P", "-t", topic, "-X", "acks=all", input="later\n")
        values = lambda *arguments: [record["payload"] for record in self.consume(topic, *arguments)]
        self.assertEqual(values("-o", "97"), ["97", "98", "99", "later"])
        self.assertEqual(values("-o", "-2"), ["99", "later"])
        self.assertEqual(values("-o", "10", "-c", "2"), ["10", "11"])
        time = self.consume(topic, "-o", "-1")[0]["ts"]
        self.assertEqual(values("-o", f"s@{time}")[-1], "later")
        self.assertEqual(values("-o", f"e@{time}")[:3], ["0", "1", "2"])
        self.assertEqual(values("-o", f"s@{time + 1}"), [])
        asked = lambda timestamp: self.kcat("-Q", "-t", f"{topic}:0:{timestamp}").decode().strip()
        self.assertEqual(asked(-1), f"{topic} [0] offset 101")
        self.assertEqual(asked(-2), f"{topic} [0] offset 0")

    def test_a_partition_that_is_not_there_is_named(self):
        self.broker.create("kcat-one", 1)
        with self.assertRaisesRegex(AssertionError, "[Uu]nknown partition"):
            self.kcat("-P", "-t", "kcat-one", "-p", "5", input="lost\n")


class KcatInGroups(WithKcat):
    """Balanced consumers."""

    def in_group(self, group, topic, *arguments):
        settings = ["-X", "auto.offset.reset=earliest"]
        lines = self.kcat("-q", *settings, "-f", "%p %o %s\n", "-G", group, *arguments, topic).decode().splitlines()
        return [line.split(" ", 2) for line in lines]

    def test_a_group_goes_on_where_it_stopped(self):
        topic = "kcat-group"
        self.broker.create(topic, 4)
        produce = lambda values: self.kcat("-P", "-t", topic, input="".join(f"{n}\n" for n in values))
        produce(range(200))
        self.assertEqual(sorted(int(value) for _, _, value in self.in_group("g", topic, "-c", "200")), list(range(200)))
        produce(range(200, 300))
        self.assertEqual(sorted(int(value) for _, _, value in self.in_group("g", topic, "-c", "100")), list(range(200, 300)))
        self.assertEqual(self.in_group("g", topic, "-e"), [])
        everything = self.in_group("another", topic, "-e")
        self.assertEqual(len(everything), 300)

    def test_two_members_share_the_partitions(self):
        topic = "kcat-shared"
        self.broker.create(topic, 4)
        for strategy in ["range", "roundrobin", "cooperative-sticky"]:
            with self.subTest(strategy=strategy):
                self.share(topic, f"g-{strategy}", strategy)

    def share(self, topic, group, strategy):
        settings = ["-X", "auto.offset.reset=latest", "-X", f"partition.assignment.strategy={strategy}", "-X", "session.timeout.ms=6000"]
        command = ["kcat", "-b", self.broker.bootstrap, "-q", *settings, "-u", "-f", "%p %s\n", "-G", group, topic]
        members, read = [], [[], []]
        try:
            for number in range(2):
                member = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                members.append(member)
                threading.Thread(target=lambda m=member, r=read[number]: r.extend(m.stdout), daemon=True).start()
            # Sent on and on until both have had records: who has which partition is known by what comes.
            begun, sent = time.monotonic(), 0
            while time.monotonic() - begun < 60:
                for partition in range(4):
                    self.kcat("-P", "-t", topic, "-p", str(partition), input=f"{strategy}-{sent}\n")
                sent += 1
                last = [{line.split()[0] for line in lines[-8:]} for lines in read]
                if all(len(partitions) == 2 for partitions in last) and not last[0] & last[1]:
                    return
            self.fail(f"two members of {group} have {last} after {sent} rounds")
        finally:
            for member in members:
                member.kill()
                member.wait()
