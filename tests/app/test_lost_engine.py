"""A serving worker whose engine dies ends itself: it answers nothing in the engine's place, and the next worker answers everything."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from aiokafka.admin import AIOKafkaAdminClient

from mint_stream.app.serve import ServeRole
from mint_stream.app.workplace import Workplace
from mint_stream.bus.connection import Connection
from mint_stream.client import Client
from mint_stream.errors import EngineFailed
from mint_stream.messages.inference import Sampling
from mint_stream.metrics import Metrics
from mint_stream.settings import Settings
from tests.factories import tiny_base
from tests.provisioned import PARTITIONS, ensure_topics

pytestmark = pytest.mark.kafka

ASKED = 12


@pytest.fixture
async def settings(connection: Connection, tmp_path: Path) -> Settings:
    pool = f"lost-{uuid4().hex[:8]}"
    await ensure_topics(connection, pool)
    kafka = {"bootstrap_servers": connection.bootstrap_servers}
    base = str(tiny_base(tmp_path / "base"))
    return Settings.load(base=base, pool=pool, home=tmp_path / "home", partitions=PARTITIONS, kafka=kafka)


@asynccontextmanager
async def worker(settings: Settings, connection: Connection) -> AsyncIterator[tuple[ServeRole, asyncio.Task[None]]]:
    """A serve role and its run, which ends at the end of the block at the latest."""
    with Workplace(settings.home, "serve") as place:
        role = ServeRole(settings, connection, Metrics(), place)
        await role.start()
        running = asyncio.create_task(role.run())
        try:
            yield role, running
        finally:
            await role.drain()
            await asyncio.wait({running})


async def closed(settings: Settings, connection: Connection) -> int:
    """Records of the pool's lanes that are committed as done."""
    admin = AIOKafkaAdminClient(**connection.options())
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(f"serve-{settings.pool_name}")
    finally:
        await admin.close()
    return sum(max(known.offset, 0) for known in offsets.values())


def broken(role: ServeRole) -> None:
    """From the next step on nothing can be computed, as after a CUDA error."""
    model: Any = role._engine._base.model  # type: ignore[union-attr]
    model.model.norm.weight.data = torch.zeros(3)


async def test_a_worker_whose_engine_dies_answers_nothing_closes_nothing_and_leaves_all_to_the_next(
    settings: Settings, connection: Connection
) -> None:
    few = Sampling(max_tokens=3, ignore_eos=True)
    async with Client(settings) as client:
        async with worker(settings, connection) as (role, running):
            broken(role)
            asked = [asyncio.create_task(client.generate(f"prompt {number}", sampling=few)) for number in range(ASKED)]
            await asyncio.wait({running})
            assert isinstance(running.exception(), EngineFailed)
        assert await closed(settings, connection) == 0
        assert not any(one.done() for one in asked)
        async with worker(settings, connection) as (_, running):
            results = await asyncio.gather(*asked)
    assert [(one.status, len(one.tokens)) for one in results] == [("ok", 3)] * ASKED
    assert running.exception() is None and await closed(settings, connection) == ASKED
