"""Serving and training on one resident base in one process: neither changes a bit of what the other makes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from mint_stream.app.local_system import LocalSystem
from mint_stream.app.resident import Resident
from mint_stream.app.train import TrainRole
from mint_stream.app.workplace import Workplace
from mint_stream.bus.connection import Connection
from mint_stream.client import Client
from mint_stream.messages.inference import InferenceResult, Sampling
from mint_stream.messages.training import Hyperparameters, LoraSettings, TrainingEvent, TrainingJob
from mint_stream.metrics import Metrics
from mint_stream.settings import Settings
from mint_stream.workers.clock import now_ms
from tests.factories import chat_lines, tiny_base
from tests.provisioned import PARTITIONS

SOME = Sampling(max_tokens=20, ignore_eos=True)


@pytest.fixture
def settings(connection: Connection, tmp_path: Path) -> Settings:
    (tmp_path / "good.jsonl").write_bytes(chat_lines(12))
    return Settings.load(
        base=str(tiny_base(tmp_path / "base", hidden_size=64, intermediate_size=128)),
        pool=f"work-{uuid4().hex[:8]}",
        home=tmp_path / "home",
        partitions=PARTITIONS,
        kafka={"bootstrap_servers": connection.bootstrap_servers},
        store={"allowed_roots": (tmp_path.as_uri(),)},
        training={"busy_share": 0.5},
    )


@asynccontextmanager
async def up(settings: Settings) -> AsyncIterator[LocalSystem]:
    """A registrar, and a process that serves and trains."""
    system = LocalSystem(settings, {"register": 1, "work": 1}, lambda change: None)
    try:
        await system.start()
        assert await system.ready(), system.given_up
        yield system
    finally:
        await system.stop()


def job(settings: Settings, name: str) -> TrainingJob:
    return TrainingJob(
        job_id=name,
        adapter_id=name,
        dataset_uri=f"{settings.home.parent.as_uri()}/good.jsonl",
        hyperparameters=Hyperparameters(steps=20, batch_size=4, learning_rate=1e-2, max_length_tokens=128),
        lora=LoraSettings(rank=4, dropout=0.1),
        publish_every_steps=10,
        submitted_at_ms=now_ms(),
    )


async def ended(client: Client, name: str) -> TrainingEvent:
    async for event in client.watch(name):
        if event.terminal:
            return event
    raise AssertionError("a job ends by an event")


async def trained(client: Client, settings: Settings, name: str) -> list[str | None]:
    """Digests of the revisions that a job publishes."""
    watching = asyncio.create_task(ended(client, name))
    await client.train(job(settings, name))
    assert (await watching).state == "succeeded"
    return [revision.digest for revision in (await client.adapter(name)).revisions]


async def asked(client: Client, until: asyncio.Task[object]) -> list[InferenceResult]:
    """Answers of the base, one after the other, until that is over."""
    answers = [await client.generate("once upon a time", sampling=SOME)]
    while not until.done():
        answers.append(await client.generate("once upon a time", sampling=SOME))
    return answers


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(180)
async def test_what_is_trained_between_steps_has_the_bits_of_a_trainer_of_its_own_and_answers_do_not_change(
    settings: Settings, connection: Connection
) -> None:
    async with up(settings), Client(settings) as client:
        before = await client.generate("once upon a time", sampling=SOME)
        training = asyncio.create_task(trained(client, settings, f"{settings.pool}-beside"))
        answers = await asked(client, training)
        beside = await training
        assert {answer.text for answer in answers} == {before.text} and len(answers) > 1
        name = f"{settings.pool}-beside"
        adapted = await client.generate("once upon a time", name, sampling=SOME, after=(await client.adapter(name)).position)
        assert adapted.served_by is not None and adapted.served_by.revision_digest in beside
    async with register(settings), alone(settings, connection), Client(settings) as client:
        assert await trained(client, settings, f"{settings.pool}-alone") == beside


@asynccontextmanager
async def register(settings: Settings) -> AsyncIterator[None]:
    system = LocalSystem(settings, {"register": 1}, lambda change: None)
    await system.start()
    yield
    await system.stop()


@asynccontextmanager
async def alone(settings: Settings, connection: Connection) -> AsyncIterator[None]:
    with Workplace(settings.home, "train") as workplace:
        role = TrainRole(settings, connection, Metrics(), workplace)
        await role.start()
        working = asyncio.create_task(role.run())
        yield
        await role.drain()
        await working


async def test_a_base_that_two_roles_ask_for_is_loaded_once(settings: Settings) -> None:
    resident = Resident(settings)
    one, other = await asyncio.gather(resident.base(), resident.base())
    assert one is other and one.packed is other.packed
