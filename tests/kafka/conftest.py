"""Fresh topics, a producer, and worker processes for the tests on the real broker."""

import asyncio
import gc
import sys
import uuid
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Intake, IntakeLimits
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.bus.seat import Seat


@pytest.fixture(autouse=True)
def leave_no_failed_futures():
    """aiokafka never reads some futures it fails when fenced: their complaint is printed here, not amid another test."""
    yield
    gc.collect()


@pytest.fixture
async def admin(connection):
    client = AIOKafkaAdminClient(**connection.options())
    await client.start()
    yield client
    await client.close()


@pytest.fixture
def make_topic(admin):
    """Create a topic of its own with a dead letter topic beside it; gives its name."""

    async def make(partitions: int = 1, **config: str) -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        settings = {key.replace("_", "."): value for key, value in config.items()}
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings), NewTopic(f"{name}-dlq", 1, 1)])
        return name

    return make


@pytest.fixture
async def producer(connection):
    made = Producer(connection, "test")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def fill(producer):
    """Write values to partitions in turn; gives (partition, offset) of each."""

    async def write(topic: str, values: list[bytes | None], partitions: int = 1) -> list[tuple[int, int]]:
        tasks = [
            await producer.send_raw(Outgoing(topic, b"k%d" % number, value, partition=number % partitions))
            for number, value in enumerate(values)
        ]
        return [(position.partition, position.offset) for position in await asyncio.gather(*tasks)]

    return write


@pytest.fixture
async def make_intake(connection, producer):
    """Start a member of a group; whatever is still running at the end is stopped."""
    made: list[Intake] = []

    async def make(topic: str, group: str = "", instance: str | None = None, **limits) -> Intake:
        given = {"commit_interval_s": 0.05, "session_timeout_s": 6.0} | limits
        intake = Intake(connection, [topic], group or topic, DeadLetters(producer), IntakeLimits(**given), Seat(instance))
        made.append(intake)
        await intake.start()
        return intake

    yield make
    for intake in made:
        await intake.stop()


@pytest.fixture
async def spawn_worker(connection):
    """Run tests/kafka/worker.py as a process of its own: a member with a static id, so that its successor need not wait for a timeout."""
    processes = []

    async def spawn(topic: str, results: str, instance: str, *options: str) -> asyncio.subprocess.Process:
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), connection.bootstrap_servers, topic, results, instance]
        process = await asyncio.create_subprocess_exec(*command, *options, stdout=asyncio.subprocess.PIPE)
        processes.append(process)
        return process

    yield spawn
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()
