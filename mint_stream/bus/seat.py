"""A member's place in its group: a stable name, and what it was last given, told to the group when it joins again.

join ─► metadata(topics) carries name and claim ─► the group's leader calls assign ─► on_assignment is the next claim, kept in a file
"""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

from mint_stream.bus.seating import Claim, seats

log = logging.getLogger(__name__)

Given = dict[str, list[int]]
"""Partitions by topic."""


class Seat:
    """One member, for the life of its process."""

    def __init__(self, name: str | None = None, path: Path | None = None, static: bool = True) -> None:
        """`name` is the same in every process that takes this place; None: nobody's. `path` is a file that outlives the process.

        A `static` member does not leave when it stops: its partitions wait for its next process until the session ends."""
        self.name = name or uuid4().hex
        self.instance_id = name if static else None
        self._path = path
        self._given = _read(path)
        self._held = False
        self._generation: Callable[[], int] = lambda: -1

    @property
    def given(self) -> Given:
        """What this member has, or had when it was last one."""
        return self._given

    def assignors(self, generation: Callable[[], int]) -> tuple[type[AbstractPartitionAssignor], ...]:
        """For `partition_assignment_strategy`. One: with two, aiokafka joins twice. `generation` is 0 or less while it is no member."""
        self._generation = generation
        return (type("SeatAssignor", (SeatAssignor,), {"seat": self}),)

    def claim(self) -> bytes:
        """What the group's leader is told. Who was thrown out meanwhile holds nothing: others have it now."""
        held = self._held and self._generation() > 0
        return json.dumps({"name": self.name, "held": held, "given": self._given}).encode()

    def take(self, given: Given) -> None:
        """What the group gave."""
        self._given, self._held = given, True
        if self._path is not None:
            _write(self._path, given)


class SeatAssignor(AbstractPartitionAssignor):  # type: ignore[misc]  # aiokafka has no stubs
    """Gives members their partitions by `seating`. aiokafka calls it on the class, so each member has a class of its own."""

    name = "mint-seats"
    seat: ClassVar[Seat]

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """What this member says when it joins."""
        return ConsumerProtocolMemberMetadata(0, sorted(topics), cls.seat.claim())

    @classmethod
    def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
        """What this member got."""
        cls.seat.take({topic: sorted(numbers) for topic, numbers in assignment.assignment})

    @classmethod
    def assign(cls, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]) -> dict[str, ConsumerProtocolMemberAssignment]:
        """What everybody gets, decided by the leader."""
        said = {member_id: _said(member_id, metadata.user_data) for member_id, metadata in members.items()}
        given: dict[str, Given] = {member_id: {} for member_id in members}
        for (member_ids, numbers), topics in _cohorts(cluster, members).items():
            names = _names(said, member_ids)
            claims = {name: _claim(said[member_id], topics) for name, member_id in names.items()}
            for name, got in seats(claims, numbers).items():
                given[names[name]] |= {topic: list(got) for topic in topics} if got else {}
        return {member_id: ConsumerProtocolMemberAssignment(0, sorted(mine.items()), b"") for member_id, mine in given.items()}


def _cohorts(
    cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
) -> dict[tuple[tuple[str, ...], frozenset[int]], list[str]]:
    """Topics that the same members read and that have the same partitions."""
    readers: defaultdict[str, list[str]] = defaultdict(list)
    for member_id in sorted(members):
        for topic in members[member_id].subscription:
            readers[topic].append(member_id)
    found: defaultdict[tuple[tuple[str, ...], frozenset[int]], list[str]] = defaultdict(list)
    for topic in sorted(readers):
        numbers = frozenset(cluster.partitions_for_topic(topic) or ())
        found[tuple(readers[topic]), numbers].append(topic)
    return dict(found)


def _said(member_id: str, user_data: bytes | None) -> dict[str, Any]:
    """What a member told; nothing, when it is not understood."""
    try:
        said = json.loads(user_data or b"{}")
        numbers = [number for one in said.get("given", {}).values() for number in one]
        if isinstance(said, dict) and all(isinstance(number, int) for number in numbers):
            return said
    except (ValueError, AttributeError, TypeError):
        pass
    log.warning("group member %s says nothing of what it had", member_id)
    return {}


def _names(said: Mapping[str, Mapping[str, Any]], member_ids: Iterable[str]) -> dict[str, str]:
    """Members by stable name; of two in the same place, which is a mistake, the second is told apart by its member id."""
    found: dict[str, str] = {}
    for member_id in sorted(member_ids):
        name = str(said[member_id].get("name", member_id))
        found[f"{name}/{member_id}" if name in found else name] = member_id
    return found


def _claim(said: Mapping[str, Any], topics: Iterable[str]) -> Claim:
    given = said.get("given", {})
    return Claim(frozenset(number for topic in topics for number in given.get(topic, ())), bool(said.get("held", False)))


def _read(path: Path | None) -> Given:
    try:
        found = json.loads(path.read_bytes()) if path is not None else {}
        return {str(topic): [int(number) for number in numbers] for topic, numbers in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("what was had before is not known, %s cannot be read: %s", path, error)
        return {}


def _write(path: Path, given: Given) -> None:
    """Whole or not at all. Without it the next process gets other partitions, and works."""
    fresh = path.with_suffix(".new")
    try:
        fresh.write_text(json.dumps(given))
        fresh.replace(path)
    except OSError as error:
        log.warning("what is had cannot be kept in %s: %s", path, error)
