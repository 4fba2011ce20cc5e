"""The command lines of Kafka's tools that are run against both brokers, in this order."""

from dataclasses import dataclass, field

TOOLS = {
    "topics": "org.apache.kafka.tools.TopicCommand",
    "configs": "org.apache.kafka.tools.ConfigCommand",
    "produce": "org.apache.kafka.tools.ConsoleProducer",
    "consume": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "all-groups": "org.apache.kafka.tools.GroupsCommand",
    "offsets": "org.apache.kafka.tools.GetOffsetShell",
    "delete-records": "org.apache.kafka.tools.DeleteRecordsCommand",
    "log-dirs": "org.apache.kafka.tools.LogDirsCommand",
    "cluster": "org.apache.kafka.tools.ClusterTool",
}


@dataclass
class Step:
    """One command line. Its name is that of the tool and its arguments."""

    tool: str
    words: str
    input: str = ""
    # The order of the lines says nothing: the tool prints what it has in a hash table.
    unordered: bool = False
    # Text of a file whose path stands for FILE among the words.
    file: str = ""
    # While it runs, a member of this group is there.
    member_of: str = ""
    arguments: list = field(init=False)

    def __post_init__(self):
        self.arguments = self.words.split()

    @property
    def name(self):
        return f"{self.tool} {self.words}" + (f" | a member of {self.member_of}" if self.member_of else "")


def records(topic, words, values, **more):
    return Step("produce", f"--topic {topic} {words}".strip(), input="".join(f"{value}\n" for value in values), **more)


KEYED = "--reader-property parse.key=true --reader-property key.separator=:"
WITH_ALL = " ".join(f"--formatter-property print.{what}=true" for what in ("key", "partition", "offset", "headers", "timestamp"))
KEYS = "--formatter-property print.key=true"

TOPICS = [
    Step("topics", "--list"),
    Step("topics", "--create --topic rooms --partitions 3 --replication-factor 1 --config retention.ms=86400000"),
    Step("topics", "--create --topic rooms --partitions 3"),
    Step("topics", "--create --topic rooms --partitions 3 --if-not-exists"),
    Step("topics", "--create --topic by-default"),
    Step("topics", "--create --topic bad/name"),
    Step("topics", "--create --topic dotted.name"),
    Step("topics", "--create --topic dotted_name"),
    Step("topics", "--create --topic copies --replication-factor 2"),
    Step("topics", "--create --topic none --partitions 0"),
    Step("topics", "--create --topic soon --config retention.ms=soon"),
    Step("topics", "--create --topic soon --config no.such.setting=1"),
    Step("topics", "--create --topic placed --replica-assignment 1:2"),
    Step("topics", "--list"),
    Step("topics", "--describe --topic rooms"),
    Step("topics", "--describe", unordered=True),
    Step("topics", "--describe --topic nowhere"),
    Step("topics", "--describe --topic nowhere --if-exists"),
    Step("topics", "--describe --topics-with-overrides", unordered=True),
    Step("topics", "--describe --under-replicated-partitions"),
    Step("topics", "--describe --unavailable-partitions"),
    Step("topics", "--alter --topic rooms --partitions 5"),
    Step("topics", "--alter --topic rooms --partitions 4"),
    Step("topics", "--alter --topic nowhere --partitions 4"),
    Step("topics", "--describe --topic rooms"),
    Step("topics", "--delete --topic by-default"),
    Step("topics", "--delete --topic by-default"),
    Step("topics", "--delete --topic by-default --if-exists"),
    Step("topics", "--list"),
]

CONFIGS = [
    Step("configs", "--describe --entity-type topics --entity-name rooms"),
    Step("configs", "--describe --entity-type topics --entity-name rooms --all"),
    Step("configs", "--alter --entity-type topics --entity-name rooms --add-config segment.bytes=16777216,cleanup.policy=delete"),
    Step("configs", "--describe --entity-type topics --entity-name rooms"),
    Step("configs", "--alter --entity-type topics --entity-name rooms --delete-config segment.bytes,cleanup.policy"),
    Step("configs", "--alter --entity-type topics --entity-name rooms --delete-config segment.bytes"),
    Step("configs", "--alter --entity-type topics --entity-name rooms --add-config retention.ms=soon"),
    Step("configs", "--alter --entity-type topics --entity-name rooms --add-config retention.ms=-2"),
    Step("configs", "--alter --entity-type topics --entity-name rooms --add-config no.such.setting=1"),
    Step("configs", "--alter --entity-type topics --entity-name nowhere --add-config retention.ms=1000"),
    Step("configs", "--describe --entity-type topics --entity-name rooms"),
    Step("configs", "--describe --entity-type topics --entity-name nowhere"),
    Step("configs", "--describe --entity-type topics", unordered=True),
    Step("configs", "--describe --entity-type brokers --entity-name 1"),
    Step("configs", "--describe --entity-type brokers --entity-default"),
    Step("configs", "--describe --entity-type brokers --entity-name 77"),
]

CONSOLE = [
    Step("topics", "--create --topic guests --partitions 1"),
    records("guests", KEYED, ["ann:1", "bob:2", "ann:3"]),
    records("guests", f"{KEYED} --reader-property parse.headers=true", ["from:north\tcat:4", "from:south,by:boat\tdan:5"]),
    records("guests", "--command-property acks=0", ["6"]),
    records("guests", "--command-property acks=1", ["7"]),
    *[records("guests", f"--compression-codec {codec}", [codec] * 20) for codec in ("gzip", "snappy", "lz4", "zstd")],
    Step("consume", f"--topic guests --partition 0 --offset earliest --max-messages 87 {WITH_ALL}"),
    Step("consume", "--topic guests --partition 0 --offset 3 --max-messages 2"),
    Step("consume", "--topic guests --partition 0 --offset 500 --timeout-ms 2000"),
    Step("consume", "--topic guests --partition 9 --offset 0 --timeout-ms 2000"),
    records("made-by-use", "", ["x"]),
    Step("topics", "--describe --topic made-by-use"),
    records("rooms", f"{KEYED}", [f"{n}:room {n}" for n in range(50)]),
    Step("offsets", "--topic rooms"),
    Step("offsets", "--topic guests --time earliest"),
    Step("offsets", "--topic guests --time latest"),
    Step("offsets", "--topic made-by-use --time max-timestamp"),
    Step("offsets", "--topic guests --time 1"),
    Step("offsets", "--topic nowhere"),
    Step("offsets", "--topic-partitions guests:0,rooms:1-3"),
    Step("log-dirs", "--describe --topic-list guests"),
    Step("cluster", "cluster-id"),
]

DELETED = [
    Step("delete-records", "--offset-json-file FILE", file='{"partitions": [{"topic": "guests", "partition": 0, "offset": 5}], "version": 1}'),
    Step("delete-records", "--offset-json-file FILE", file='{"partitions": [{"topic": "guests", "partition": 0, "offset": 5000}], "version": 1}'),
    Step("offsets", "--topic guests --time earliest"),
    Step("consume", "--topic guests --partition 0 --offset earliest --max-messages 2"),
]

PICKED = f"--from-beginning --max-messages 50 {KEYS}"
GROUPS = [
    Step("groups", "--list"),
    Step("groups", "--describe --group nobody"),
    Step("groups", "--delete --group nobody"),
    Step("consume", f"--topic rooms --group desk {PICKED}", unordered=True),
    Step("consume", "--topic rooms --group desk --timeout-ms 3000"),
    Step("groups", "--list"),
    Step("groups", "--list --state"),
    Step("groups", "--list --state empty"),
    Step("groups", "--list --state stable"),
    Step("all-groups", "--list"),
    Step("groups", "--describe --group desk", unordered=True),
    Step("groups", "--describe --group desk --state"),
    Step("groups", "--describe --group desk --members"),
    Step("groups", "--describe --group desk", member_of="desk", unordered=True),
    Step("groups", "--describe --group desk --members", member_of="desk"),
    Step("groups", "--describe --group desk --members --verbose", member_of="desk"),
    Step("groups", "--describe --group desk --state", member_of="desk"),
    Step("groups", "--list --state", member_of="desk"),
    Step("groups", "--delete --group desk", member_of="desk"),
    Step("groups", "--reset-offsets --group desk --topic rooms --to-earliest --execute", member_of="desk"),
    Step("groups", "--delete-offsets --group desk --topic rooms", member_of="desk"),
    Step("groups", "--reset-offsets --group desk --topic rooms --to-earliest --dry-run", unordered=True),
    Step("groups", "--reset-offsets --group desk --topic rooms:0,2 --to-earliest --execute", unordered=True),
    Step("groups", "--describe --group desk", unordered=True),
    Step("groups", "--reset-offsets --group desk --topic rooms:0 --shift-by 2 --execute"),
    Step("groups", "--reset-offsets --group desk --topic rooms:0 --to-offset 1 --execute"),
    Step("groups", "--reset-offsets --group desk --topic rooms:0 --to-offset 1000 --execute"),
    Step("groups", "--reset-offsets --group desk --topic rooms:0 --to-datetime 2020-01-01T00:00:00.000 --execute"),
    Step("groups", "--reset-offsets --group desk --topic rooms:0 --by-duration PT1H --execute"),
    Step("groups", "--reset-offsets --group desk --topic rooms:0 --to-current --execute"),
    Step("groups", "--reset-offsets --group desk --all-topics --to-latest --execute", unordered=True),
    Step("groups", "--reset-offsets --group desk --all-topics --to-current --export --dry-run", unordered=True),
    Step("groups", "--reset-offsets --group desk --from-file FILE --execute", file="rooms,1,4\n"),
    Step("groups", "--reset-offsets --group later --topic guests --to-offset 9 --execute"),
    Step("groups", "--describe --all-groups", unordered=True),
    Step("consume", f"--topic guests --group later --max-messages 3 {KEYS}"),
    Step("groups", "--delete-offsets --group desk --topic rooms:0"),
    Step("groups", "--delete-offsets --group desk --topic nowhere"),
    Step("groups", "--describe --group desk", unordered=True),
    Step("groups", "--delete --group desk"),
    Step("groups", "--delete --group desk"),
    Step("groups", "--list"),
]
