"""A client and something that serves it, over the session's broker."""

import uuid
from collections.abc import AsyncIterator

import pytest

from mint_stream.bus.connection import Connection
from mint_stream.client import Client
from tests.echo_serving import POOL, EchoServing
from tests.provisioned import ensure_topics


@pytest.fixture(scope="session")
async def fleet(connection: Connection) -> Connection:
    """The session's broker with the topics of pool `tiny`."""
    await ensure_topics(connection, POOL)
    return connection


@pytest.fixture
async def serving(fleet: Connection) -> AsyncIterator[EchoServing]:
    async with EchoServing(fleet, group=f"echo-{uuid.uuid4().hex}") as serving:
        yield serving


@pytest.fixture
async def client(fleet: Connection) -> AsyncIterator[Client]:
    async with Client(fleet, pool=POOL) as client:
        yield client


@pytest.fixture
def unique() -> str:
    """A name no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"
