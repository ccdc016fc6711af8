"""A serving worker takes production back only from a revision that no worker can serve, for nothing gives it back."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from transformers import AutoModelForCausalLM

from mint_stream import contracts
from mint_stream.adapter import AdapterWeights
from mint_stream.app.importing import import_adapter, publish
from mint_stream.app.register import RegisterRole
from mint_stream.app.serve import ServeRole
from mint_stream.app.serve_parts import pool_base
from mint_stream.app.workplace import Workplace
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.client import Client
from mint_stream.messages.adapters import Quarantine, decode_command
from mint_stream.messages.inference import InferenceResult, Sampling
from mint_stream.metrics import Metrics
from mint_stream.model.base import load_base
from mint_stream.settings import Settings
from mint_stream.workers.pools import found_pool
from tests.factories import byte_tokenizer, peft_files, tiny_base
from tests.provisioned import PARTITIONS, ensure_topics

pytestmark = pytest.mark.kafka

OVERFLOWS = "~"
"""The base's embedding of this character is not finite."""
FOUNDERS_RANK, OWN_RANK = 8, 2


@pytest.fixture(scope="module")
async def settings(connection: Connection, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Of a worker whose own rank cap is below that of its pool, which was founded before by another."""
    room = tmp_path_factory.mktemp("blame")
    pool = f"blame-{uuid4().hex[:8]}"
    await ensure_topics(connection, pool)
    kafka = {"bootstrap_servers": connection.bootstrap_servers}
    settings = Settings.load(base=str(base_at(room)), pool=pool, home=room / "home", partitions=PARTITIONS, kafka=kafka)
    serving = settings.serving.model_copy(update={"max_rank": FOUNDERS_RANK})
    producer = Producer(connection, "founder")
    await producer.start()
    await found_pool(connection, producer, pool_base(load_base(Path(settings.base)), settings.model_copy(update={"serving": serving})))
    await producer.stop()
    return settings.model_copy(update={"serving": serving.model_copy(update={"max_rank": OWN_RANK})})


def base_at(room: Path) -> Path:
    path = tiny_base(room / "base")
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    with torch.no_grad():
        model.get_input_embeddings().weight[byte_tokenizer()(OVERFLOWS)["input_ids"]] = float("inf")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
async def client(settings: Settings, connection: Connection) -> AsyncIterator[Client]:
    """Both roles, and a client of theirs."""
    with Workplace(settings.home, "serve") as place, Workplace(settings.home, "register") as office:
        roles = [ServeRole(settings, connection, Metrics(), place), RegisterRole(settings, connection, Metrics(), office)]
        for role in roles:
            await role.start()
        running = [asyncio.create_task(role.run()) for role in roles]
        async with Client(settings) as client:
            yield client
        for role in roles:
            await role.drain()
        await asyncio.gather(*running)


async def imported(client: Client, settings: Settings, room: Path, **changes: object) -> str:
    """A new adapter of random weights."""
    name, directory = f"blame-{uuid4().hex[:8]}", room / "adapter"
    directory.mkdir()
    for file, content in peft_files(Path(settings.base), **changes).items():
        (directory / file).write_bytes(content)
    await import_adapter(client, settings, name, str(directory))
    return name


async def asked(client: Client, prompt: str, name: str) -> InferenceResult:
    head = await client.adapter(name)
    return await client.generate(prompt, name, sampling=Sampling(max_tokens=3, ignore_eos=True), after=head.position)


async def quarantined(client: Client, name: str) -> bool:
    """Whether any worker asked for the adapter's quarantine so far."""
    found: list[str] = []

    def take(_partition: int, records: Sequence[LogRecord], _next: int) -> None:
        commands = [decode_command(record.value) for record in records if record.key == name.encode()]
        found.extend(command.adapter_id for command in commands if isinstance(command, Quarantine))

    reader = LogReader(client.connection, contracts.ADAPTER_COMMANDS.name(), take)
    await reader.start()
    await reader.caught_up()
    await reader.stop()
    return bool(found)


async def test_a_rank_that_the_pool_allows_is_served_though_this_worker_was_set_to_less(
    client: Client, settings: Settings, tmp_path: Path
) -> None:
    name = await imported(client, settings, tmp_path, r=FOUNDERS_RANK)
    assert (await asked(client, "hello", name)).status == "ok"
    assert not await quarantined(client, name)


async def test_a_prompt_that_the_base_itself_cannot_compute_is_no_fault_of_the_adapter(
    client: Client, settings: Settings, tmp_path: Path
) -> None:
    name = await imported(client, settings, tmp_path)
    refused = await asked(client, f"a{OVERFLOWS}b", name)
    assert refused.error is not None
    assert (refused.error.code, "the base computes" in refused.error.message) == ("invalid-request", True)
    assert (await asked(client, "hello", name)).status == "ok"
    assert not await quarantined(client, name)


async def test_an_adapter_that_overflows_where_the_base_does_not_is_taken_back(client: Client, settings: Settings) -> None:
    weights = AdapterWeights.from_files(peft_files(Path(settings.base)))
    for layer in weights.layers.values():
        layer.B.fill_(1e30)
    name = f"blame-{uuid4().hex[:8]}"
    await publish(client, settings, name, weights, await client.pool_base())
    refused = await asked(client, "hello", name)
    assert refused.error is not None and refused.error.code == "adapter-unloadable"
    assert await quarantined(client, name)
