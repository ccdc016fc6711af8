"""Ctrl-C at the terminal: a command that waits ends at once, with the exit code shells know, and no traceback."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.messages.inference import InferenceRequest
from mint_stream.messages.training import TrainingEvent
from tests.provisioned import ensure_topics

pytestmark = pytest.mark.kafka

INTERRUPTED = 130


@asynccontextmanager
async def program(connection: Connection, pool: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`mint-stream ...` as a process of its own, its output piped; killed when the test fails before it has ended."""
    environment = os.environ | {"MINT_KAFKA__BOOTSTRAP_SERVERS": connection.bootstrap_servers, "MINT_POOL": pool}
    command = [sys.executable, "-m", "mint_stream.cli.main", *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@asynccontextmanager
async def records_of(connection: Connection, topic: str) -> AsyncIterator[asyncio.Queue[LogRecord]]:
    """What is written to a topic from now on."""
    found: asyncio.Queue[LogRecord] = asyncio.Queue()

    def apply(_: int, records: object, __: int) -> None:
        for record in records:
            found.put_nowait(record)

    reader = LogReader(connection, topic, apply, "latest")
    await reader.start()
    try:
        yield found
    finally:
        await reader.stop()


@pytest.mark.parametrize("how", [(), ("--stream",), ("--json",)])
async def test_an_interrupted_request_ends_with_130_and_says_nothing(connection: Connection, topic_prefix: str, how: tuple[str, ...]):
    """Nobody serves the pool; that the request lies in its topic is how the test knows that the command waits."""
    await ensure_topics(connection, topic_prefix)
    async with (
        records_of(connection, contracts.INFERENCE_REQUESTS.name(topic_prefix)) as asked,
        program(connection, topic_prefix, "generate", "--prompt", "hi", *how) as process,
    ):
        assert InferenceRequest.decode((await asked.get()).value).prompt == "hi"
        process.send_signal(signal.SIGINT)
        out, errors = await process.communicate()
    assert process.returncode == INTERRUPTED
    assert out == b"" and b"Traceback" not in errors


async def test_an_interrupted_watch_ends_with_130_and_has_shown_what_happened_so_far(connection: Connection, topic_prefix: str):
    await ensure_topics(connection, topic_prefix)
    producer = Producer(connection, source="test")
    await producer.start()
    event = TrainingEvent(job_id=topic_prefix, adapter_id="poet", tenant="t", worker_id="w", state="running", step=2, steps=4, at_ms=1)
    await producer.publish(contracts.TRAINING_EVENTS, event, topic_prefix)
    await producer.stop()
    async with program(connection, topic_prefix, "jobs", "watch", topic_prefix, "--json") as process:
        assert process.stdout is not None
        assert json.loads(await process.stdout.readline())["step"] == 2
        process.send_signal(signal.SIGINT)
        out, errors = await process.communicate()
    assert process.returncode == INTERRUPTED
    assert out == b"" and b"Traceback" not in errors
