"""Fixtures that any test may ask for: a real Kafka for the whole run, and topics of its own for each test."""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch: idle threads that spin would starve the broker
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from mint_stream.bus.connection import Connection
from mint_stream.bus.local_kafka import LocalKafka
from mint_stream.errors import BaseUnusable
from mint_stream.model.pull import pull
from tests.s3_server import S3Server, find_server, running_server

# Machines are shared, so a slow example is no failure. Importing hypothesis here, early, also keeps its pytest plugin from doing so in the
# terminal summary, deep in the stack, where CPython 3.11 fails to compile it ("AST constructor recursion depth mismatch").
hypothesis.settings.register_profile("mint", deadline=None)
hypothesis.settings.load_profile("mint")

FreshTopic = Callable[..., Awaitable[str]]


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """A running broker, whose log cleaner does not rest for 15 s as by default. Tests that stop or kill one start their own."""
    with LocalKafka(tmp_path_factory.mktemp("kafka"), extra_properties={"log.cleaner.backoff.ms": "200"}) as broker:
        yield broker


@pytest.fixture(scope="session")
def connection(kafka: LocalKafka) -> Connection:
    """How to reach the session's broker."""
    return Connection(kafka.bootstrap_servers)


@pytest.fixture
def topic_prefix() -> str:
    """Starts the names of this test's topics, groups and pools: no other test uses it."""
    return f"t{uuid4().hex[:10]}"


@pytest.fixture
def fresh_topic(connection: Connection, topic_prefix: str) -> FreshTopic:
    """`await fresh_topic(partitions=1, **config)` creates a topic and returns its name; config keys are written with underscores."""

    async def create(partitions: int = 1, **config: object) -> str:
        name = f"{topic_prefix}-{uuid4().hex[:6]}"
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        admin = AIOKafkaAdminClient(**connection.options())
        await admin.start()
        try:
            await admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1, topic_configs=settings)])
        finally:
            await admin.close()
        return name

    return create


@pytest.fixture
def kafka_dir(tmp_path: Path) -> Path:
    """An empty data directory for a broker of the test's own."""
    return tmp_path / "kafka"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; tests that ask for it are marked s3."""
    program = find_server()
    if program is None:
        pytest.skip("no S3 server here: put versitygw on PATH or name it in MINT_TEST_S3_SERVER")
    with running_server(program, tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The built-in base's directory, pulled once into MINT_TEST_HOME or the user's cache; tests that ask for it are marked model."""
    home = Path(os.environ.get("MINT_TEST_HOME") or Path.home() / ".cache" / "mint_stream-tests")
    try:
        return pull("smollm2-135m", home, print)
    except BaseUnusable as error:
        pytest.skip(f"the built-in base cannot be fetched here: {error}")
