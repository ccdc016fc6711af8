"""A careful fetch that a rebalance overtakes: what comes late is asked for again, and no record counts as done that was not delivered."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import RequestTimedOutError

from mint_stream.bus.fetching import fetch_each
from mint_stream.bus.offsets import fresh
from mint_stream.bus.tenure import Tenure

FIRST, SECOND = TopicPartition("t", 0), TopicPartition("t", 1)


class Member:
    """Two partitions with records up to `END`, of which the first few were fetched; `during` happens while the second is asked for."""

    END, FETCHED = 8, 5

    def __init__(self, during: Callable[["Member"], None] = lambda _: None) -> None:
        self.tenures = {partition: Tenure(partition, fresh(0), 8) for partition in (FIRST, SECOND)}
        self.position = dict.fromkeys(self.tenures, 0)
        self._during = during
        for tenure in self.tenures.values():
            tenure.held = True
            tenure.accept(_records(0, self.FETCHED))

    def positions(self) -> dict[TopicPartition, int]:
        return {partition: tenure.fetch_offset for partition, tenure in self.tenures.items() if tenure.held}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.position[partition] = offset

    async def fetch_one(self, partition: TopicPartition, offset: int) -> tuple[list[Any], int]:
        await asyncio.sleep(0)
        if partition == SECOND:
            self._during(self)
        return _records(offset, self.END), self.END

    async def fetch(self) -> None:
        for partition, records in (await fetch_each(self.seek, self.positions, self.fetch_one)).items():
            self.tenures[partition].accept(records)

    def deliver_all(self, partition: TopicPartition) -> list[int]:
        tenure, out = self.tenures[partition], []
        while tenure.head() is not None:
            out.append(tenure.pop().offset)
            tenure.tracker.delivered(out[-1])
        return out


def _records(first: int, end: int) -> list[Any]:
    return [SimpleNamespace(offset=offset, key=b"k", value=b"v", headers=()) for offset in range(first, end)]


def rebalance(member: Member) -> None:
    """Both partitions stay: as `Tenancy` does, what was fetched is dropped and fetching goes on behind what was delivered."""
    for partition, tenure in member.tenures.items():
        tenure.forget_fetched()
        member.seek(partition, tenure.resume_offset)


def lose_the_first(member: Member) -> None:
    rebalance(member)
    member.tenures[FIRST].held = False


@pytest.mark.parametrize("partition", [FIRST, SECOND])
async def test_what_was_asked_for_before_a_rebalance_is_dropped_and_everything_comes_again(partition: TopicPartition) -> None:
    member = Member(during=rebalance)
    await member.fetch()
    assert member.deliver_all(partition) == []
    assert member.position[partition] == 0 == member.tenures[partition].tracker.next_offset


async def test_without_a_rebalance_the_batch_follows_what_was_fetched_and_fetching_goes_on_behind_it() -> None:
    member = Member()
    await member.fetch()
    assert [member.deliver_all(partition) for partition in member.tenures] == [list(range(member.END))] * 2
    assert set(member.position.values()) == {member.END}


async def test_after_the_rebalance_every_record_is_delivered() -> None:
    interruptions = [rebalance]
    member = Member(during=lambda member: interruptions.pop()(member) if interruptions else None)
    await member.fetch()
    await member.fetch()
    assert [member.deliver_all(partition) for partition in member.tenures] == [list(range(member.END))] * 2


async def test_a_partition_that_was_lost_meanwhile_is_left_alone() -> None:
    member = Member(during=lose_the_first)
    await member.fetch()
    assert not member.tenures[FIRST].fetched
    assert member.position[FIRST] == 0


async def test_a_partition_that_cannot_be_fetched_does_not_stop_the_other() -> None:
    def refuse(_: Member) -> None:
        raise RequestTimedOutError

    member = Member(during=refuse)
    await member.fetch()
    assert member.deliver_all(FIRST) == list(range(member.END))
    assert member.position[SECOND] == member.FETCHED
