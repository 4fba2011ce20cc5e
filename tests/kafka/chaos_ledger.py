"""What the members of a group handled and committed, against what was sent. Pure: whoever has the lists gets the same faults.

Records of a partition count from 0 without a gap. A member is one process from its start to its end; its generation is the one that it was
told with its last assignment.
"""

import collections
from dataclasses import dataclass

# Faults of a kind that are described; the rest are counted.
DESCRIBED = 5


@dataclass(frozen=True)
class Handled:
    """A member had this record in its hands."""

    member: str
    generation: int
    partition: int
    offset: int


@dataclass(frozen=True)
class Committed:
    """A member was told that its position is kept: everything below `offset` is done."""

    member: str
    generation: int
    partition: int
    offset: int


def parse(member, lines):
    """The list of a member: `H generation partition offset` and `C generation partition offset`, one a line; a last line without its end was
    being written when the process was killed."""
    kinds = {"H": Handled, "C": Committed}
    for line in lines.splitlines(keepends=True):
        kind, *rest = line.split()
        if line.endswith("\n") and kind in kinds:
            generation, partition, offset = map(int, rest)
            yield kinds[kind](member, generation, partition, offset)


def faults(sent, events):
    """Words for each broken promise. `sent`: for each partition how many records it has."""
    found = collections.defaultdict(list)
    handled = [event for event in events if isinstance(event, Handled)]
    commits = [event for event in events if isinstance(event, Committed)]
    done = {(event.partition, event.offset) for event in handled}
    for partition, count in sent.items():
        for offset in range(count):
            if (partition, offset) not in done:
                found["not handled"].append(f"partition {partition} offset {offset}")
    for event in handled:
        if not 0 <= event.offset < sent.get(event.partition, 0):
            found["never sent"].append(str(event))
    owner = {}
    for event in handled + commits:
        first = owner.setdefault((event.generation, event.partition), event)
        if first.member != event.member:
            found["a partition with two members in one generation"].append(f"{first} and {event}")
    found.update(commits_lost(handled, commits))
    return [f"{what}: {len(words)}, as {'; '.join(words[:DESCRIBED])}" for what, words in found.items()]


def commits_lost(handled, commits):
    """A generation begins behind what was committed in those before it."""
    highest = collections.defaultdict(dict)
    for commit in commits:
        generations = highest[commit.partition]
        generations[commit.generation] = max(commit.offset, generations.get(commit.generation, 0))
    least, found = {}, collections.defaultdict(list)
    for event in handled:
        key = (event.partition, event.generation)
        if key not in least or event.offset < least[key].offset:
            least[key] = event
    for (partition, generation), event in least.items():
        before = [offset for g, offset in highest[partition].items() if g < generation]
        if before and event.offset < max(before):
            found["handled again although an earlier generation had committed it"].append(f"{event}, committed {max(before)}")
    return found
