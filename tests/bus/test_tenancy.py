"""Rebalances that overtake a takeover: nothing is held whose takeover Kafka has not."""

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError
from aiokafka.structs import OffsetAndMetadata

from mint_stream.bus.commit_metadata import decode_metadata, encode_metadata
from mint_stream.bus.committer import Committer
from mint_stream.bus.handover import Handover
from mint_stream.bus.offsets import Progress, fresh
from mint_stream.bus.tenancy import Tenancy
from mint_stream.bus.tenure import Tenure

MINE = TopicPartition("t", 0)


class Group:
    """A coordinator as a member's clients see it. While `moving` it takes no commit."""

    def __init__(self) -> None:
        self._coordinator = SimpleNamespace(generation=0)
        self.moving = True
        self.refused = asyncio.Event()
        self.committed: dict[TopicPartition, OffsetAndMetadata] = {}
        self.paused: set[TopicPartition] = set()

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        if self.moving:
            self.refused.set()
            raise CommitFailedError
        self.committed |= offsets

    async def list_consumer_group_offsets(self, _: str, partitions: Collection[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        return {partition: self.committed.get(partition, OffsetAndMetadata(-1, "")) for partition in partitions}

    async def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Its position matters to nobody here."""

    def pause(self, *partitions: TopicPartition) -> None:
        self.paused |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self.paused -= set(partitions)


class Member:
    """One member's tenancy."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.tasks: list[asyncio.Task[None]] = []
        committer = Committer(group, 5.0, lambda *_: None)
        self.tenancy = Tenancy(group, Handover(group, group, "g"), committer, 8, lambda _: None, self.spawn)

    def spawn(self, work: Coroutine[Any, Any, None], _: str) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    async def assigned(self) -> None:
        self.group._coordinator.generation += 1
        await self.tenancy.on_partitions_assigned({MINE})

    async def revoked(self) -> None:
        await self.tenancy.on_partitions_revoked({MINE})

    @property
    def tenure(self) -> Tenure | None:
        return self.tenancy[MINE]


@pytest.fixture
async def member() -> AsyncIterator[Member]:
    member = Member(Group())
    yield member
    for task in member.tasks:
        task.cancel()
    await asyncio.gather(*member.tasks, return_exceptions=True)


def committed(group: Group) -> Progress:
    offset = group.committed[MINE]
    return decode_metadata(offset.offset, offset.metadata)


async def test_a_takeover_that_a_rebalance_cancelled_is_done_again_before_anything_is_held(member: Member) -> None:
    await member.assigned()
    await member.group.refused.wait()
    first = member.tenure
    await member.revoked()
    await member.assigned()
    assert first is not None and first.ended and not first.held
    assert MINE in member.group.paused
    member.group.moving = False
    await member.tasks[-1]
    assert member.tenure is not None and member.tenure.held
    assert (committed(member.group).tenure, committed(member.group).released) == (1, False)
    assert not member.group.paused


async def test_what_another_owner_did_between_two_attempts_to_take_over_is_found(member: Member) -> None:
    await member.assigned()
    await member.group.refused.wait()
    await member.revoked()
    theirs = Progress(next_offset=7, position=7, high=7, until=7, released=True, tenure=3)
    member.group.committed[MINE] = OffsetAndMetadata(7, encode_metadata(theirs))
    member.group.moving = False
    await member.assigned()
    await member.tasks[-1]
    assert member.tenure is not None and (member.tenure.number, member.tenure.resume_offset) == (4, 7)


async def test_a_takeover_that_was_committed_lasts_over_the_next_rebalance(member: Member) -> None:
    member.group.moving = False
    await member.assigned()
    await member.tasks[-1]
    first = member.tenure
    await member.revoked()
    assert first is not None and not first.held
    await member.assigned()
    assert member.tenure is first and first.held
    assert first.progress(released=False).next_offset == fresh(0).next_offset
