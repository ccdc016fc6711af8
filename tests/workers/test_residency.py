"""Who has an adapter loaded goes on serving it: across a rolling restart nothing is loaded that some worker had."""

import asyncio
from pathlib import Path

import pytest

from mint_stream import contracts
from mint_stream.adapter import AdapterWeights
from mint_stream.bus.connection import Connection
from mint_stream.bus.routing import Routing, homes
from mint_stream.bus.seat import Seat
from mint_stream.cache.disk import DiskTier
from mint_stream.messages.inference import InferenceRequest
from tests.factories import random_weights
from tests.provisioned import PARTITIONS
from tests.serving_desk import Desk

pytestmark = pytest.mark.kafka

WORKERS = ("a", "b", "c")
LANES = (contracts.INFERENCE_REQUESTS, contracts.INFERENCE_BATCH)


class Fleet:
    """Workers of one pool, by name. A worker's disk tier and seat outlive it; it leaves the group at once when it stops."""

    def __init__(self, connection: Connection, room: Path) -> None:
        self.connection = connection
        self.room = room
        self.pool: str | None = None
        self.desks: dict[str, Desk] = {}
        self.disks: dict[str, list[DiskTier]] = {name: [] for name in WORKERS}
        self.adapters: dict[str, AdapterWeights] = {f"adapter-{n}": random_weights(rank=1, seed=n) for n in range(16)}
        self.routing = Routing()

    async def start(self, name: str) -> None:
        seat = Seat(name, self.room / name, static=False)
        disk = DiskTier(self.room / f"{name}-disk", 2**20)
        desk = await Desk.open(self.connection, self.room, self.pool, seat=seat, disk=disk)
        self.pool, self.desks[name] = desk.pool, desk
        self.disks[name].append(disk)
        for adapter_id, weights in self.adapters.items():
            desk.publish(adapter_id, weights)
        await desk.begin()

    async def stop(self, name: str) -> None:
        await self.desks.pop(name).close()
        self.disks[name][-1].close()

    async def settled(self) -> dict[str, frozenset[tuple[str, int]]]:
        """Who has what, once all of both lanes is somebody's and everybody has something."""
        intakes = {name: desk.intake for name, desk in self.desks.items()}

        def level() -> bool:
            return sum(len(one.assigned) for one in intakes.values()) == 2 * PARTITIONS and all(one.assigned for one in intakes.values())

        waits = [asyncio.create_task(one.until(level)) for one in intakes.values()]
        await asyncio.wait(waits, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        assert level()
        return {name: intake.assigned for name, intake in intakes.items()}

    async def ask_everybody(self) -> None:
        """Each adapter in both lanes, at its home."""
        desk = next(iter(self.desks.values()))
        asked = []
        for adapter_id in self.adapters:
            request = InferenceRequest(request_id="r", prompt="p", adapter=adapter_id)
            for lane, home in zip(LANES, (self.routing.online(request, PARTITIONS), homes(adapter_id, 1, PARTITIONS)[0]), strict=True):
                asked.append(await desk.ask("p", adapter=adapter_id, partition=home, lane=lane))
        for request_id in asked:
            assert (await desk.result(request_id)).status == "ok"

    @property
    def loads(self) -> dict[str, int]:
        """From the store, in all of a worker's lives: what its disk did not have."""
        return {name: sum(disk.tally.misses for disk in disks) for name, disks in self.disks.items()}

    def homed(self, partitions: frozenset[tuple[str, int]]) -> int:
        """How many adapters have their home among these."""
        numbers = {number for _, number in partitions}
        return sum(homes(adapter_id, 1, PARTITIONS)[0] in numbers for adapter_id in self.adapters)


async def test_a_rolling_restart_loads_only_what_stands_in_for_who_is_away(connection: Connection, tmp_path: Path) -> None:
    fleet = Fleet(connection, tmp_path)
    for name in WORKERS:
        await fleet.start(name)
    before = await fleet.settled()
    await fleet.ask_everybody()
    assert fleet.loads == {name: fleet.homed(mine) for name, mine in before.items()}, "one worker an adapter, for both lanes"
    for name in WORKERS:
        first = fleet.loads
        await fleet.stop(name)
        await fleet.settled()
        await fleet.ask_everybody()
        meanwhile = fleet.loads
        assert sum(meanwhile.values()) - sum(first.values()) <= fleet.homed(before[name]), (
            "what it had is loaded elsewhere while it is away"
        )
        await fleet.start(name)
        assert await fleet.settled() == before
        await fleet.ask_everybody()
        assert fleet.loads == meanwhile, "and nothing at all when it is back"
    for name in WORKERS:
        await fleet.stop(name)
