"""Cold adapters under a real worker on the real broker: one read of the store however many wait, no trouble for others, no leftovers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mint_stream.bus.connection import Connection
from mint_stream.cache import DiskTier
from mint_stream.messages.adapters import Revision
from mint_stream.messages.inference import InferenceResult
from mint_stream.store.delayed import DelayedStore
from tests.child_process import module, said
from tests.factories import random_weights
from tests.serving_desk import Desk
from tests.workers.serving_process import LIMITS
from tests.workers.test_serving import with_nan

pytestmark = pytest.mark.kafka


@pytest.fixture
def store(tmp_path: Path) -> DelayedStore:
    return DelayedStore((tmp_path / "store").as_uri(), latency_s=0.02)


@pytest.fixture
async def desk(connection: Connection, tmp_path: Path, store: DelayedStore) -> AsyncIterator[Desk]:
    desk = await Desk.open(connection, tmp_path, store=store, disk=DiskTier(tmp_path / "disk", 2**20))
    await desk.begin()
    yield desk
    await desk.close()


async def ask_all(desk: Desk, adapters: Sequence[str]) -> list[str]:
    return await asyncio.gather(*(desk.ask(f"p{number}", adapter=adapter) for number, adapter in enumerate(adapters)))


async def results(desk: Desk, asked: Sequence[str]) -> list[InferenceResult]:
    return [await desk.result(request_id) for request_id in asked]


async def test_64_requests_for_one_cold_adapter_are_one_read_of_the_store(desk: Desk, store: DelayedStore) -> None:
    revision = desk.publish("cold", random_weights(seed=5))
    found = await results(desk, await ask_all(desk, ["cold"] * 64))
    assert {result.status for result in found} == {"ok"}
    assert store.reads == {revision.uri: 1}
    assert desk.loader.loads_total == 1


async def test_loads_begin_while_the_engine_is_busy_with_others(desk: Desk, store: DelayedStore) -> None:
    """Whatever the intake has taken looks ahead: no request waits for a place in the batch before its adapter is fetched."""
    names = [f"ahead-{number}" for number in range(16)]
    for seed, name in enumerate(names):
        desk.publish(name, random_weights(seed=seed))
    desk.engine.pause()
    asked = await ask_all(desk, names)
    await desk._until(lambda: True if desk.engine.load.waiting == 16 else desk._tell())
    assert store.reads.total() == 16 and not any(desk.results(request_id) for request_id in asked)
    desk.engine.resume()
    assert {result.status for result in await results(desk, asked)} == {"ok"}


async def test_a_poisoned_adapter_among_cold_ones_fails_its_own_requests_and_is_read_once(desk: Desk, store: DelayedStore) -> None:
    poison = desk.publish("poison", with_nan(random_weights(rank=3)))
    gone = desk.publish("gone", random_weights(seed=77))
    for name in ("config.json", "model.safetensors"):
        store.delete_object(f"{gone.uri}/adapter_{name}".removeprefix(f"{store.uri}/"))
    for seed in range(4):
        desk.publish(f"good-{seed}", random_weights(seed=seed))
    names = ["poison", "good-0", "gone", "good-1", "poison", "good-2", "gone", "good-3"] * 4
    found = await results(desk, await ask_all(desk, names))
    codes = {
        name: {result.error.code if result.error else "ok" for result, of in zip(found, names, strict=True) if of == name} for name in names
    }
    assert codes.pop("poison") == {"invalid-adapter"}
    assert codes.pop("gone") == {"store-unavailable"}
    assert set(map(str, codes.values())) == {"{'ok'}"}
    assert store.reads[str(poison.uri)] == 1, "the same bytes will fail again"
    assert store.reads[str(gone.uri)] <= 2 * 4, "tried again, so often and no more"


@asynccontextmanager
async def loading(desk: Desk, room: Path, revision: Revision) -> "AsyncIterator[asyncio.subprocess.Process]":
    arguments = (desk.connection.bootstrap_servers, desk.pool, str(room), revision.encode().decode())
    async with module("tests.workers.loading_process", *arguments) as process:
        yield process


@pytest.mark.long
@pytest.mark.timeout(90)
async def test_kill_9_during_a_load_leaves_nothing_wrong_and_another_worker_answers(
    connection: Connection, tmp_path: Path, store: DelayedStore
) -> None:
    desk = await Desk.open(connection, tmp_path, limits=LIMITS, store=store, disk=DiskTier(tmp_path / "disk", 2**20))
    revision = desk.publish("cold", random_weights(seed=5))
    async with loading(desk, tmp_path, revision) as victim:
        asked = await ask_all(desk, ["cold"] * 8)
        await said(victim, "loading")
        victim.kill()
        await victim.wait()
        await desk.begin()
        found = await results(desk, asked)
    assert {result.status for result in found} == {"ok"}
    assert {result.served_by.revision_digest for result in found if result.served_by} == {revision.digest}
    assert store.reads == {revision.uri: 1}
    await desk.close()
    assert not list((tmp_path / "disk" / "new").iterdir())
    with_disk = DiskTier(tmp_path / "disk", 2**20)
    assert with_disk.read(revision.digest) is not None
    with_disk.close()
