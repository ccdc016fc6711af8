"""Members of a group on the real broker: who comes back has what it had, and nobody else's partitions move."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Intake, IntakeLimits
from mint_stream.bus.seat import Seat

pytestmark = pytest.mark.kafka

PARTITIONS = 13
NAMES = ("a", "b", "c", "d")


class Group:
    """Members by name. Each keeps its memory in a file, and unless its seat is static it leaves at once when it stops."""

    def __init__(self, connection, producer, topic: str, room: Path, static: bool = False) -> None:
        self.static = static
        self.members: dict[str, Intake] = {}
        self._parts = (connection, [topic], topic, DeadLetters(producer), IntakeLimits(session_timeout_s=20.0 if static else 6.0))
        self._room = room

    async def start(self, name: str) -> None:
        self.members[name] = Intake(*self._parts, Seat(name, self._room / name, self.static))
        await self.members[name].start()

    async def stop(self, name: str) -> None:
        await self.members.pop(name).stop()

    async def settled(self) -> dict[str, frozenset[tuple[str, int]]]:
        """Who has what, once everything is somebody's and everybody has a share."""
        least = PARTITIONS // len(self.members)

        def level() -> bool:
            return sum(len(one.assigned) for one in self.members.values()) == PARTITIONS and all(
                len(one.assigned) >= least for one in self.members.values()
            )

        waits = [asyncio.create_task(member.until(level)) for member in self.members.values()]
        await asyncio.wait(waits, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        assert level()
        return {name: member.assigned for name, member in self.members.items()}


@asynccontextmanager
async def started(group: Group) -> AsyncIterator[Group]:
    async with AsyncExitStack() as end:
        end.push_async_callback(lambda: asyncio.gather(*(member.stop() for member in group.members.values())))
        for name in NAMES:
            await group.start(name)
        yield group


async def test_a_rolling_restart_gives_everybody_back_what_it_had(connection, producer, fresh_topic, tmp_path):
    async with started(Group(connection, producer, await fresh_topic(PARTITIONS), tmp_path)) as group:
        before = await group.settled()
        for name in NAMES:
            await group.stop(name)
            meanwhile = await group.settled()
            assert all(meanwhile[other] > before[other] for other in meanwhile), "only what was its own moved"
            await group.start(name)
            assert await group.settled() == before


async def test_a_restart_in_a_static_seat_moves_nothing_at_all(connection, producer, fresh_topic, tmp_path):
    async with started(Group(connection, producer, await fresh_topic(PARTITIONS), tmp_path, static=True)) as group:
        before = await group.settled()
        for name in NAMES:
            await group.stop(name)
            assert {other: member.assigned for other, member in group.members.items()} == {n: before[n] for n in NAMES if n != name}
            await group.start(name)
            assert await group.settled() == before
