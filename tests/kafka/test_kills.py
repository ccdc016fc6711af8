"""Worker processes that are killed with -9."""

import asyncio
import signal

import pytest

from mint_stream.bus.table import LogReader, LogRecord

pytestmark = pytest.mark.kafka


async def until(process: asyncio.subprocess.Process, line: str) -> list[str]:
    """Read what a worker says up to `line`."""
    said: list[str] = []
    async with asyncio.timeout(30):
        while line not in said:
            read = await process.stdout.readline()
            assert read, f"the worker ended after {said}"
            said.append(read.decode().strip())
    return said


async def ended(process: asyncio.subprocess.Process) -> list[str]:
    async with asyncio.timeout(30):
        said, _ = await process.communicate()
    return said.decode().split("\n")


class Log:
    """Everything on a topic as it arrives."""

    def __init__(self, connection, topic: str) -> None:
        self.records: list[LogRecord] = []
        self.grown = asyncio.Event()
        self.reader = LogReader(connection, topic, self.add)

    def add(self, partition, records, offset) -> None:
        self.records.extend(records)
        self.grown.set()

    async def until(self, condition) -> None:
        async with asyncio.timeout(30):
            while not condition([record.value for record in self.records]):
                self.grown.clear()
                await self.grown.wait()


async def test_a_killed_worker_loses_nothing(make_topic, fill, spawn_worker, connection):
    topic, results = await make_topic(2), await make_topic()
    log = Log(connection, results)
    await log.reader.start()
    worker = await spawn_worker(topic, results, "w")
    await until(worker, "ready")
    written = await fill(topic, [b"v"] * 200, partitions=2)
    for count in (40, 120):
        await log.until(lambda values, count=count: len(set(values)) >= count)
        worker.send_signal(signal.SIGKILL)
        await ended(worker)
        worker = await spawn_worker(topic, results, "w", "9")
    await log.until(lambda values: len(set(values)) == 200)
    assert {record.value for record in log.records} == {f"{partition}/{offset}".encode() for partition, offset in written}
    await log.reader.stop()


async def test_a_record_that_kills_its_workers_is_found_dead_lettered_and_its_neighbours_are_answered(
    make_topic, fill, spawn_worker, connection
):
    topic, results = await make_topic(2), await make_topic()
    values = [b"v"] * 20
    values[6] = b"poison"
    await fill(topic, values, partitions=2)
    answers, dead = Log(connection, results), Log(connection, f"{topic}-dlq")
    await answers.reader.start()
    await dead.reader.start()
    lives = 0
    while not dead.records:
        worker = await spawn_worker(topic, results, "w", "2")
        lives += 1
        assert lives <= 5
        dying = asyncio.create_task(worker.wait())
        buried = asyncio.create_task(dead.until(lambda values: bool(values)))
        await asyncio.wait((dying, buried), return_when=asyncio.FIRST_COMPLETED)
        buried.cancel()
        if dying.done():
            assert worker.returncode == -signal.SIGKILL
    assert [record.value for record in dead.records] == [b"poison"]
    assert dict(dead.records[0].headers)["mint_error_code"] == b"poison-record"
    assert dict(dead.records[0].headers)["mint_origin_offset"] == b"3"
    await answers.until(lambda found: len(set(found)) == 19)
    await answers.reader.stop()
    await dead.reader.stop()
    assert lives >= 3
