"""Commands run in this process as a user would run them, and the session's fleet to run them against."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from typer.testing import CliRunner, Result

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.cli.main import app
from mint_stream.client import Client
from tests.adapter_commands import BASE
from tests.echo_serving import POOL, EchoServing
from tests.provisioned import ensure_topics
from tests.registrar_ground import Ground

Run = Callable[..., Result]
Command = Callable[..., Awaitable[Result]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Run:
    """`run("adapters", "list", ...)`: its exit code and output. Local state goes to a fresh directory."""
    monkeypatch.setenv("MINT_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
async def fleet(connection: Connection) -> AsyncIterator[Connection]:
    """Topics, the base of pool `tiny`, a registrar and something that answers."""
    await ensure_topics(connection, POOL)
    name = f"cli-{uuid.uuid4().hex[:8]}"
    producer = Producer(connection, source="test")
    await producer.start()
    await producer.publish(contracts.BASE_MODELS, BASE, BASE.pool)
    await producer.stop()
    async with EchoServing(connection, name), Ground.of_fleet(connection).registrar():
        yield connection


@pytest.fixture
def command(run, fleet: Connection, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`await command("adapters", "list")` against the fleet, in a thread, as this loop serves it."""
    monkeypatch.setenv("MINT_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:9")
    monkeypatch.setenv("MINT_POOL", POOL)
    return lambda *arguments: asyncio.to_thread(run, *arguments, "--bootstrap", fleet.bootstrap_servers)


@pytest.fixture
async def client(fleet: Connection) -> AsyncIterator[Client]:
    async with Client(fleet, POOL) as client:
        yield client
