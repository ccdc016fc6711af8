"""Quarantine: what will fail wherever it is loaded is reported, once a revision however many report it; what may pass is not."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.partitioner import murmur2_partition
from mint_stream.bus.producer import Producer
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.errors import (
    AdapterNotLoaded,
    AdapterUnloadable,
    BaseMismatch,
    Cancelled,
    CorruptObject,
    DeadlineExceeded,
    InvalidAdapter,
    MintError,
    StoreUnavailable,
    leaves,
)
from mint_stream.messages.adapters import Quarantine, Revision, decode_command
from mint_stream.workers.quarantine import UNSERVABLE, QuarantineReports
from tests.provisioned import PARTITIONS, ensure_topics


def revision(adapter_id: str, number: int = 1) -> Revision:
    return Revision(adapter_id=adapter_id, number=number, state="announced", digest="a" * 64, pool="p", uri="u", announced_at_ms=0)


@pytest.fixture
async def producer(connection: Connection, topic_prefix: str) -> AsyncIterator[Producer]:
    await ensure_topics(connection, topic_prefix)
    producer = Producer(connection, source="test")
    await producer.start()
    yield producer
    await producer.stop()


class Commands:
    """Quarantine commands of one adapter, and the partition each stands in."""

    def __init__(self, adapter_id: str) -> None:
        self._adapter_id = adapter_id
        self.found: list[tuple[int, Quarantine]] = []

    def take(self, partition: int, records: Sequence[LogRecord], _next: int) -> None:
        for record in records:
            if record.key == self._adapter_id.encode():
                command = decode_command(record.value)
                assert isinstance(command, Quarantine)
                self.found.append((partition, command))

    @asynccontextmanager
    async def reading(self, connection: Connection) -> AsyncIterator[None]:
        reader = LogReader(connection, contracts.ADAPTER_COMMANDS.name(), self.take, "latest")
        await reader.start()
        yield
        await reader.caught_up()
        await reader.stop()


@pytest.mark.kafka
async def test_one_worker_reports_a_revision_once_however_many_requests_fail(
    connection: Connection, producer: Producer, topic_prefix: str
) -> None:
    commands, reports = Commands(topic_prefix), QuarantineReports(producer)
    async with commands.reading(connection):
        failures = (CorruptObject(f"bit {number}") for number in range(20))
        await asyncio.gather(*(reports.report(revision(topic_prefix, 3), error) for error in failures))
        await reports.report(revision(topic_prefix, 3), InvalidAdapter("and another reason"))
    [(partition, command)] = commands.found
    assert (command.number, command.reason) == (3, "corrupt-object: bit 0")
    assert partition == murmur2_partition(topic_prefix.encode(), PARTITIONS)


@pytest.mark.kafka
async def test_the_reports_of_a_whole_fleet_are_one_command(connection: Connection, producer: Producer, topic_prefix: str) -> None:
    """Its id says so: the registrar answers the second one as a repetition."""
    commands = Commands(topic_prefix)
    async with commands.reading(connection):
        for _ in range(3):
            await QuarantineReports(producer).report(revision(topic_prefix, 3), CorruptObject("x"))
        await QuarantineReports(producer).report(revision(topic_prefix, 4), CorruptObject("x"))
    ids = [command.command_id for _, command in commands.found]
    assert len(ids) == 4 and len(set(ids[:3])) == 1 and ids[3] not in ids[:3]


@pytest.mark.kafka
@pytest.mark.parametrize(
    "error",
    [StoreUnavailable("x"), AdapterNotLoaded("x"), DeadlineExceeded("x"), Cancelled("x"), BaseMismatch("x")],
    ids=lambda error: error.code,
)
async def test_what_may_pass_or_is_not_the_revisions_fault_is_not_reported(
    connection: Connection, producer: Producer, topic_prefix: str, error: MintError
) -> None:
    commands, reports = Commands(topic_prefix), QuarantineReports(producer)
    async with commands.reading(connection):
        await reports.report(revision(topic_prefix), error)
    assert not commands.found
    async with commands.reading(connection):
        await reports.report(revision(topic_prefix), AdapterUnloadable("now it is"))
    assert len(commands.found) == 1


def test_only_three_errors_condemn_a_revision() -> None:
    assert {code for code, leaf in leaves().items() if issubclass(leaf, UNSERVABLE)} == {
        "adapter-unloadable",
        "corrupt-object",
        "invalid-adapter",
    }
